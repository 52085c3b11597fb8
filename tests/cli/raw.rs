//! Disks without snapshots of their own: whole copies beside a file, or of a block device.
//!
//! Goal: a take shares blocks where the file system can and says the price where it cannot; what
//! comes back is what was there, byte for byte; nothing of ours is left beside the disk but the
//! copy that holds the slot; whoever has the disk open is not passed by; a kill leaves no half
//! copy that counts. Method: the real binary on sparse files whose content is told by a seed, read
//! back whole by the test itself; on this directory's file system, on XFS and btrfs of their own
//! (loop mounts, for root), and on a loop device. How much is shared is judged by the file
//! system's free space, not by what the command says.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use snapslot_test_support::needs::{self, ROOT};
use snapslot_test_support::{Finished, Outcome, Scratch, Snapslot, SplitMix64, assert_same, run};

use crate::{MIB, image, snapslot, words};

/// A raw disk, and what must be in it: `(mebibyte, seed)` for each mebibyte with data.
struct Disk {
    path: PathBuf,
}

fn mebibyte(seed: u64) -> Vec<u8> {
    SplitMix64::new(seed).bytes(MIB as usize)
}

impl Disk {
    /// A sparse file of so many mebibytes.
    fn create(directory: &Path, name: &str, mebibytes: u64, data: &[(u64, u64)]) -> Disk {
        let disk = Disk { path: directory.join(name) };
        File::create_new(&disk.path).expect("a file").set_len(mebibytes * MIB).expect("a size");
        disk.write(data);
        disk
    }

    fn volume(&self) -> String {
        format!("raw:{}", self.path.display())
    }

    /// The machine writes these mebibytes.
    fn write(&self, data: &[(u64, u64)]) {
        let file = File::options().write(true).open(&self.path).expect("the disk");
        for (at, seed) in data {
            file.write_all_at(&mebibyte(*seed), at * MIB).expect("room for the data");
        }
    }

    #[track_caller]
    fn verb(&self, snapslot: &Snapslot, verb: &str, more: &[&str]) -> Outcome {
        snapslot.verb(verb, Path::new(&self.volume()), more)
    }

    /// The copy that is kept under this mark.
    fn copy(&self, mark: &str) -> Disk {
        let name = format!("{}.snapslot-{mark}", self.path.display());
        Disk { path: name.into() }
    }

    fn inode(&self) -> u64 {
        std::fs::metadata(&self.path).expect("the disk").ino()
    }

    /// Blocks of 512 bytes that are allocated.
    fn blocks(&self) -> u64 {
        let file = File::open(&self.path).expect("the disk");
        // Room is given when content goes out.
        file.sync_all().expect("a flush");
        file.metadata().expect("the disk").blocks()
    }

    /// It has this many mebibytes, these with data and the others zero.
    #[track_caller]
    fn assert_content(&self, what: &str, mebibytes: u64, data: &[(u64, u64)]) {
        let mut file = File::open(&self.path).unwrap_or_else(|e| panic!("{what}: {e}"));
        let (mut found, zero) = (vec![0; MIB as usize], vec![0; MIB as usize]);
        for at in 0..mebibytes {
            file.read_exact(&mut found).unwrap_or_else(|e| panic!("{what}, mebibyte {at}: {e}"));
            match data.iter().find(|(place, _)| *place == at) {
                Some((_, seed)) => {
                    assert_same(&format!("{what}, mebibyte {at}"), &found, &mebibyte(*seed));
                }
                None => assert_same(&format!("{what}, mebibyte {at}"), &found, &zero),
            }
        }
        assert_eq!(file.read(&mut found).expect("its end"), 0, "{what} is longer than it was");
    }

    /// Beside the disk lie the copies with these marks, and nothing else of ours.
    #[track_caller]
    fn assert_only(&self, marks: &[&str]) {
        assert_eq!(self.beside(), marks, "what lies beside {}", self.path.display());
    }

    /// Names of ours, after `.snapslot-`.
    fn beside(&self) -> Vec<String> {
        let stem = format!("{}.snapslot-", self.path.file_name().expect("it").display());
        let folder = std::fs::read_dir(self.path.parent().expect("it")).expect("the folder");
        let names = folder.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
        let mut ours: Vec<_> =
            names.filter_map(|n| Some(n.strip_prefix(&stem)?.to_owned())).collect();
        ours.sort();
        ours
    }

    /// Whether blocks cannot be shared here, by coreutils' word.
    fn cannot_share(&self) -> bool {
        let trial = self.path.with_extension("trial");
        let shared = program("cp", &["--reflink=always".as_ref(), &self.path, &trial]);
        let _ = std::fs::remove_file(&trial);
        shared.code != Some(0)
    }
}

fn program(name: &str, arguments: &[&Path]) -> Finished {
    let mut command = Command::new(name);
    command.args(arguments).env("LC_ALL", "C");
    run(command, Duration::from_secs(60))
}

/// The mark in the JSON of a command that shows a held slot.
#[track_caller]
fn mark(outcome: &Outcome) -> String {
    let mark = outcome.expect(0)["slot"]["occupant"]["mark"].as_str().map(str::to_owned);
    mark.unwrap_or_else(|| panic!("no mark printed: {}", outcome.process.account()))
}

/// The message of a command that must be refused with this exit and this code.
#[track_caller]
fn refusal(outcome: &Outcome, exit: i32, code: &str) -> String {
    let error = &outcome.expect(exit)["error"];
    assert!(error["code"] == code, "not {code}: {}", outcome.process.account());
    error["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_full_copy_is_made_only_when_it_is_allowed() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let disk = Disk::create(scratch.path(), "disk.img", 64, &[(3, 1), (4, 2), (40, 3)]);
    if !disk.cannot_share() {
        println!(
            "{}: blocks are shared there; full copies are not tested",
            scratch.path().display()
        );
        return;
    }
    let inode = disk.inode();
    for more in [&[][..], &["--dry-run"]] {
        let refused = disk.verb(&snapslot, "take", more);
        let message = refusal(&refused, 6, "full-copy");
        assert!(message.contains("a full copy of 3.0 MiB"), "the cost is not told: {message}");
        assert!(message.contains("--full-copy"), "the way is not told: {message}");
        let details = &refused.expect(6)["error"]["data"]["details"];
        assert_eq!(details["needed"], (3 * MIB).to_string());
    }
    let (code, out, err) = words(&snapslot, &["take", &disk.volume()]);
    assert!(code == 6 && out.is_empty() && err.contains("take it with --full-copy"), "{err}");
    disk.assert_only(&[]);

    let planned = disk.verb(&snapslot, "take", &["--full-copy", "--dry-run"]);
    let note = planned.expect(0)["volumes"][0]["warnings"][0].as_str().unwrap_or_default();
    assert!(note.contains("a full copy of 3.0 MiB"), "{}", planned.process.account());
    disk.assert_only(&[]);

    let taken = disk.verb(&snapslot, "take", &["--full-copy", "--note", "first"]);
    let first = mark(&taken);
    assert_eq!(taken.snapshot_name(), format!("disk.img.snapslot-{first}"));
    disk.assert_only(&[&first]);
    disk.assert_content("the disk", 64, &[(3, 1), (4, 2), (40, 3)]);
    assert_eq!(disk.inode(), inode, "a take must only read the disk");
    disk.copy(&first).assert_content("the copy", 64, &[(3, 1), (4, 2), (40, 3)]);
    let (blocks, copied) = (disk.blocks(), disk.copy(&first).blocks());
    assert!(copied <= blocks + 8, "the copy of a sparse file is not sparse: {copied} > {blocks}");
    // What changed only a comparison tells; what the copy takes, its file.
    let status = disk.verb(&snapslot, "status", &[]).expect(0)["volumes"][0].clone();
    assert_eq!(status["changed-bytes"], serde_json::Value::Null, "{status}");
    assert_eq!(status["held-bytes"], copied * 512, "{status}");
    let (code, out, _) = words(&snapslot, &["status", &disk.volume()]);
    assert!(code == 0 && out.contains("`diff` compares it; held by the slot: 3.0 MiB"), "{out}");

    let held = disk.verb(&snapslot, "take", &["--full-copy"]);
    refusal(&held, 3, "slot-held");
    assert_eq!(held.expect(3)["error"]["data"]["occupant"]["note"], "first");
    disk.assert_only(&[&first]);
}

#[test]
fn a_file_goes_through_every_verb() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let (then, now) = ([(0, 1), (5, 2), (63, 3)], [(0, 1), (5, 9), (20, 4), (63, 3)]);
    let disk = Disk::create(scratch.path(), "disk.img", 64, &then);
    // What a machine needs to start from it comes back too.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    std::fs::set_permissions(&disk.path, mode).expect("chmod");
    let first = mark(&disk.verb(&snapslot, "take", &["--full-copy"]));

    // Longer and other: restore brings the size back as well.
    disk.write(&[(5, 9), (20, 4)]);
    File::options().write(true).open(&disk.path).expect("it").set_len(80 * MIB).expect("room");
    let changed = disk.inode();
    for verb in ["restore", "delete"] {
        disk.verb(&snapslot, verb, &["--dry-run"]).expect(0);
        refusal(&snapslot.run([verb, &disk.volume()]), 6, "not-confirmed");
    }
    assert_eq!(disk.inode(), changed, "a dry run touched the disk");
    disk.assert_only(&[&first]);
    let restored = disk.verb(&snapslot, "restore", &[]);
    assert_eq!(mark(&restored), first, "the slot must stay as it was");
    disk.assert_content("restored", 64, &then);
    assert_ne!(disk.inode(), changed, "a restore must put a new file in place by rename");
    assert_eq!(std::fs::metadata(&disk.path).expect("it").mode() & 0o7777, 0o640);
    disk.assert_only(&[&first]);
    let status = disk.verb(&snapslot, "status", &[]);
    let volume = &status.expect(0)["volumes"][0];
    assert_eq!((status.slot(), mark(&status)), ("held", first.clone()));
    assert_eq!((&volume["format"], &volume["virtual-size"]), (&"raw".into(), &(64 * MIB).into()));
    assert_eq!(volume["interrupted"], false, "{}", status.process.account());

    disk.write(&[(5, 9), (20, 4)]);
    let second = mark(&disk.verb(&snapslot, "take", &["--full-copy", "--replace"]));
    assert_ne!(first, second);
    disk.assert_only(&[&second]);
    disk.write(&[(5, 8), (0, 8)]);
    assert_eq!(disk.verb(&snapslot, "restore", &["--consume"]).slot(), "empty");
    disk.assert_content("restored and consumed", 64, &now);
    disk.assert_only(&[]);
    refusal(&disk.verb(&snapslot, "restore", &[]), 4, "slot-empty");

    let third = mark(&disk.verb(&snapslot, "take", &["--full-copy"]));
    disk.assert_only(&[&third]);
    assert_eq!(disk.verb(&snapslot, "delete", &[]).slot(), "empty");
    disk.assert_content("after the delete", 64, &now);
    disk.assert_only(&[]);

    let history = disk.verb(&snapslot, "history", &[]);
    let operations = history.expect(0)["operations"].as_array().cloned().unwrap_or_default();
    let mut seen = Vec::new();
    for operation in operations.iter().rev() {
        assert_eq!(operation["outcome"], "done", "{operation}");
        seen.push(operation["verb"].as_str().unwrap_or_default());
    }
    // A replacing take and a consuming restore are two operations each.
    let expected = ["take", "restore", "take", "take", "restore", "restore", "take", "delete"];
    assert_eq!(seen, expected);
}

/// A copy that is gone, or another file under its name, is not taken for the snapshot.
#[test]
fn a_copy_that_went_behind_our_back_is_drift() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let disk = Disk::create(scratch.path(), "disk.img", 8, &[(1, 1)]);
    let first = mark(&disk.verb(&snapslot, "take", &["--full-copy"]));
    disk.write(&[(1, 2)]);
    std::fs::remove_file(&disk.copy(&first).path).expect("the copy");
    let status = disk.verb(&snapslot, "status", &[]);
    assert_eq!(
        (status.slot(), &status.expect(0)["slot"]["drift"]),
        ("drifted", &"snapshot-gone".into())
    );
    refusal(&disk.verb(&snapslot, "restore", &[]), 8, "drifted");
    disk.assert_content("after the refusal", 8, &[(1, 2)]);
    assert_eq!(disk.verb(&snapslot, "delete", &[]).slot(), "empty");
    disk.assert_only(&[]);
}

/// A program that has a disk open, ended when dropped.
struct Holder(Child);

impl Holder {
    /// `qemu-io`, ready: its locks are taken.
    fn qemu(disk: &Disk, read_only: bool) -> Self {
        let mut command = Command::new("qemu-io");
        command.args(read_only.then_some("-r")).args(["-f", "raw"]).arg(&disk.path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().expect("qemu-io (apt-get install qemu-utils)");
        let mut holder = Holder(child);
        let mut prompt = [0; 8];
        let output = holder.0.stdout.as_mut().expect("a pipe from qemu-io");
        output.read_exact(&mut prompt).expect("qemu-io's prompt");
        assert_eq!(&prompt, b"qemu-io>", "qemu-io did not open {}", disk.path.display());
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_disk_in_use_is_refused_and_the_holder_named() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let disk = Disk::create(scratch.path(), "disk.img", 8, &[(1, 1)]);
    let refused = |verb: &str, more: &[&str], pid: u32, kept: &[&str]| {
        let outcome = disk.verb(&snapslot, verb, more);
        let message = refusal(&outcome, 5, "in-use");
        assert!(message.contains(&format!("pid {pid}")), "the holder is not named: {message}");
        disk.assert_only(kept);
    };
    for read_only in [false, true] {
        let holder = Holder::qemu(&disk, read_only);
        refused("take", &["--full-copy"], holder.0.id(), &[]);
    }
    let kept = mark(&disk.verb(&snapslot, "take", &["--full-copy"]));
    disk.write(&[(1, 2)]);
    {
        let holder = Holder::qemu(&disk, false);
        for verb in ["restore", "delete"] {
            refused(verb, &[], holder.0.id(), &[&kept]);
        }
        let status = disk.verb(&snapslot, "status", &[]);
        assert_eq!(
            (status.slot(), &status.expect(0)["volumes"][0]["in-use"]),
            ("held", &true.into())
        );
    }
    // A program without QEMU's locks would go on with the old file, unseen: this test is one.
    let open = File::open(&disk.path).expect("the disk");
    refused("restore", &[], std::process::id(), &[&kept]);
    drop(open);
    disk.assert_content("after the refusals", 8, &[(1, 2)]);
    disk.verb(&snapslot, "restore", &[]).expect(0);
    disk.assert_content("restored", 8, &[(1, 1)]);
}

/// A restore would change one name of two: the snapshot would be a trap, so there is none.
#[test]
fn a_file_with_two_names_is_refused() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let disk = Disk::create(scratch.path(), "disk.img", 8, &[(1, 1)]);
    let other = scratch.join("other.img");
    std::fs::hard_link(&disk.path, &other).expect("a hard link");
    let message = refusal(&disk.verb(&snapslot, "take", &["--full-copy"]), 6, "not-restorable");
    assert!(message.contains("2 names (hard links)"), "{message}");
    disk.assert_only(&[]);
    std::fs::remove_file(&other).expect("the link");
    let kept = mark(&disk.verb(&snapslot, "take", &["--full-copy"]));
    // The link comes after the take: what holds the slot stays, and so does the disk.
    disk.write(&[(1, 2)]);
    std::fs::hard_link(&disk.path, &other).expect("a hard link");
    let message = refusal(&disk.verb(&snapslot, "restore", &[]), 6, "not-restorable");
    assert!(message.contains("2 names (hard links)"), "{message}");
    disk.assert_content("after the refusal", 8, &[(1, 2)]);
    disk.assert_only(&[&kept]);
    std::fs::remove_file(&other).expect("the link");
    disk.verb(&snapslot, "restore", &[]).expect(0);
    disk.assert_content("restored", 8, &[(1, 1)]);
}

/// Two volumes of two kinds, one slot: all or none.
#[test]
fn a_machine_of_a_raw_and_a_qcow2_disk_goes_back_together() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let qcow2 = image(&scratch, "system.qcow2");
    let then = [(2, 1), (7, 2)];
    let raw = Disk::create(scratch.path(), "data.img", 16, &then);
    let (system, data) = (qcow2.path().display().to_string(), raw.volume());
    snapslot.run(["enable", "vm1", "--volume", &system, "--volume", &data]).expect(0);
    let active = qcow2.active();
    if raw.cannot_share() {
        let before = qcow2.bytes();
        refusal(&snapslot.run(["take", "vm1"]), 6, "full-copy");
        assert_same("the qcow2 disk after a refusal of the other", &qcow2.bytes(), &before);
        raw.assert_only(&[]);
    }
    let verb = |verb: &str, more: &[&str]| snapslot.verb(verb, Path::new("vm1"), more);
    let taken = verb("take", &["--full-copy"]);
    let kept = mark(&taken);
    assert_eq!(taken.expect(0)["slot"]["occupant"]["parts"].as_array().map(Vec::len), Some(2));
    raw.assert_only(&[&kept]);

    qcow2.guest(["write -q -P 99 1M 1M"]).expect_success();
    raw.write(&[(2, 9), (11, 9)]);
    {
        // One of the two in use: neither goes back.
        let before = qcow2.bytes();
        let _holder = Holder::qemu(&raw, false);
        refusal(&verb("restore", &[]), 5, "in-use");
        assert_same("the qcow2 disk while the other is in use", &qcow2.bytes(), &before);
        raw.assert_only(&[&kept]);
    }
    assert_eq!(mark(&verb("restore", &[])), kept);
    raw.assert_content("the raw disk", 16, &then);
    assert_same("the qcow2 disk", &qcow2.active(), &active);
    qcow2.assert_clean();
    raw.assert_only(&[&kept]);

    assert_eq!(verb("delete", &[]).slot(), "empty");
    raw.assert_content("the raw disk after the delete", 16, &then);
    assert_same("the qcow2 disk after the delete", &qcow2.active(), &active);
    assert!(qcow2.snapshots().is_empty());
    qcow2.assert_clean();
    raw.assert_only(&[]);
}

/// A file system of its own on a loop device, unmounted when dropped.
struct Mounted {
    place: PathBuf,
}

impl Mounted {
    fn new(scratch: &Scratch, kind: &str, make: &[&str]) -> Mounted {
        let (backing, place) = (scratch.join(&format!("{kind}.fs")), scratch.join(kind));
        File::create_new(&backing).expect("a file").set_len(512 * MIB).expect("a size");
        std::fs::create_dir(&place).expect("a mount point");
        let mut command = Command::new(make[0]);
        command.args(&make[1..]).arg(&backing);
        let found = command.output().unwrap_or_else(|e| {
            panic!("{}: {e}; this test needs it: apt-get install xfsprogs btrfs-progs", make[0])
        });
        assert!(found.status.success(), "{make:?}: {}", String::from_utf8_lossy(&found.stderr));
        let options = ["-t", kind, "-o", "loop"].map(Path::new);
        program("mount", &[&options[..], &[&backing, &place]].concat()).expect_success();
        Mounted { place }
    }

    /// Bytes that are free once all is written out.
    fn free(&self) -> u64 {
        let place = File::open(&self.place).expect("the mount point");
        nix::unistd::syncfs(&place).expect("all written out");
        let stat = nix::sys::statvfs::fstatvfs(&place).expect("statvfs");
        stat.blocks_free() * stat.fragment_size()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = program("umount", &[&self.place]);
        if done.code != Some(0) {
            eprintln!("{} stays mounted: {}", self.place.display(), done.account());
        }
    }
}

/// 64 MiB of data in 1 GiB; a copy of it would be seen in the free space, a shared one is not.
fn blocks_are_shared(kind: &str, make: &[&str]) {
    const SIZE: u64 = 1024;
    const SLACK: u64 = 8 * MIB;
    if !needs::has(&[ROOT, make[0]]) {
        return;
    }
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let mounted = Mounted::new(&scratch, kind, make);
    let then: Vec<(u64, u64)> = (0..64).map(|i| (i * 16 + i % 3, i + 1)).collect();
    let disk = Disk::create(&mounted.place, "disk.img", SIZE, &then);
    let empty_slot = mounted.free();
    let near = |what: &str, by: u64| {
        let (now, most) = (mounted.free(), by + SLACK);
        let used = empty_slot.abs_diff(now);
        assert!(used < most, "{kind}, {what}: {used} bytes of space, at most {most} expected");
    };
    let planned = disk.verb(&snapslot, "take", &["--dry-run"]);
    assert_eq!(planned.expect(0)["volumes"][0]["warnings"], serde_json::json!([]));
    disk.assert_only(&[]);
    let first = mark(&disk.verb(&snapslot, "take", &[]));
    near("take", 0);
    disk.assert_only(&[&first]);
    disk.write(&[(0, 1000), (500, 1001)]);
    disk.copy(&first).assert_content("the copy after the disk changed", SIZE, &then);
    near("two mebibytes changed", 2 * MIB);
    // Known without reading either: from where their blocks lie.
    let status = disk.verb(&snapslot, "status", &[]);
    let told = &status.expect(0)["volumes"][0];
    assert_eq!(told["changed-bytes"], 2 * MIB, "{kind}");
    // One of the two had nothing where it was written.
    assert_eq!(told["held-bytes"], MIB, "{kind}");
    let diff = disk.verb(&snapslot, "diff", &[]);
    let told = &diff.expect(0)["volumes"][0];
    let range = |at: u64| serde_json::json!({ "start": at * MIB, "length": MIB });
    assert_eq!(told["by-content"], false, "{kind}");
    assert_eq!(told["ranges"], serde_json::json!([range(0), range(500)]), "{kind}");
    assert_eq!(mark(&disk.verb(&snapslot, "restore", &[])), first);
    disk.assert_content("restored", SIZE, &then);
    near("restore", 0);
    let second = mark(&disk.verb(&snapslot, "take", &["--replace"]));
    disk.assert_only(&[&second]);
    near("take --replace", 0);
    disk.write(&[(3, 1002)]);
    assert_eq!(disk.verb(&snapslot, "restore", &["--consume"]).slot(), "empty");
    disk.assert_content("restored and consumed", SIZE, &then);
    disk.verb(&snapslot, "take", &[]).expect(0);
    assert_eq!(disk.verb(&snapslot, "delete", &[]).slot(), "empty");
    disk.assert_content("after the delete", SIZE, &then);
    disk.assert_only(&[]);
    near("delete", 0);
}

#[test]
fn xfs_shares_blocks() {
    blocks_are_shared("xfs", &["mkfs.xfs", "-q", "-m", "reflink=1"]);
}

#[test]
fn btrfs_shares_blocks() {
    blocks_are_shared("btrfs", &["mkfs.btrfs", "-q"]);
}

/// Starts a verb and kills it once the file that it fills has some of its content. Where it comes to its end before
/// that, `again` makes the disk what it was, and it is tried once more.
#[track_caller]
fn killed(
    disk: &Disk,
    snapslot: &Snapslot,
    verb: &str,
    more: &[&str],
    file: &str,
    again: impl Fn(),
) {
    for _ in 0..50 {
        if is_killed(disk, snapslot, verb, more, file) {
            return;
        }
        disk.verb(snapslot, "recover", &[]).expect(0);
        again();
    }
    panic!("{verb} always ends before it is killed");
}

/// Whether the kill came in time.
#[track_caller]
fn is_killed(disk: &Disk, snapslot: &Snapslot, verb: &str, more: &[&str], file: &str) -> bool {
    let mut arguments = vec![verb.to_owned(), disk.volume()];
    arguments.extend(more.iter().map(|m| (*m).to_owned()));
    let mut process = snapslot.start(&arguments);
    let begun = |name: &String| {
        let path = format!("{}.snapslot-{name}", disk.path.display());
        name.ends_with(file) && std::fs::metadata(path).is_ok_and(|m| m.blocks() > 0)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !disk.beside().iter().any(begun) && !process.has_ended() {
        let late = Instant::now() > deadline;
        assert!(!late, "no {file}: {}", process.finish(Duration::ZERO).account());
        std::thread::yield_now();
    }
    process.kill();
    let done = process.finish(Duration::from_secs(60));
    assert!(done.signal == Some(9) || done.code == Some(0), "{}", done.account());
    done.signal == Some(9) && disk.beside().iter().any(|n| n.ends_with(file))
}

/// Three windows of a whole copy (128 MiB each) and holes: a kill comes in the middle of it.
#[test]
fn a_kill_leaves_no_half_copy_that_counts() {
    const SIZE: u64 = 1024;
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let then: Vec<(u64, u64)> = (0..384).map(|i| (i * 2, i + 1)).collect();
    let disk = Disk::create(scratch.path(), "disk.img", SIZE, &then);
    if !disk.cannot_share() {
        println!("{}: blocks are shared there; there is no middle of a copy", disk.volume());
        return;
    }
    let interrupted = |state: &str| {
        let status = disk.verb(&snapslot, "status", &[]);
        let volume = &status.expect(0)["volumes"][0];
        assert_eq!((status.slot(), &volume["interrupted"]), (state, &true.into()));
        volume["snapshots"].as_array().map_or(usize::MAX, Vec::len)
    };
    let emptied = || {
        if disk.verb(&snapslot, "status", &[]).slot() == "held" {
            disk.verb(&snapslot, "delete", &[]).expect(0);
        }
    };
    killed(&disk, &snapslot, "take", &["--full-copy"], ".part", emptied);
    assert_eq!(interrupted("taking"), 0, "half a copy counts as a snapshot");
    disk.verb(&snapslot, "recover", &[]).expect(0);
    disk.assert_only(&[]);
    disk.assert_content("recovered", SIZE, &then);
    refusal(&disk.verb(&snapslot, "restore", &[]), 4, "slot-empty");

    // And once more, with the next command in place of `recover`.
    killed(&disk, &snapslot, "take", &["--full-copy"], ".part", emptied);
    let kept = mark(&disk.verb(&snapslot, "take", &["--full-copy"]));
    disk.assert_only(&[&kept]);
    disk.copy(&kept).assert_content("the copy", SIZE, &then);

    // The same for what will be the disk: the old one stays until the new one is whole.
    let mut now = then.clone();
    now[7].1 = 1000;
    disk.write(&now[7..8]);
    killed(&disk, &snapslot, "restore", &["--yes"], "restoring", || disk.write(&now[7..8]));
    disk.assert_content("killed while restored", SIZE, &now);
    assert_eq!(interrupted("restoring"), 1, "the snapshot is gone");
    let recovered = disk.verb(&snapslot, "recover", &[]);
    assert_eq!(recovered.expect(0)["slot"]["occupant"]["mark"], kept);
    disk.assert_only(&[&kept]);
    disk.assert_content("recovered", SIZE, &now);
    disk.verb(&snapslot, "restore", &["--consume"]).expect(0);
    disk.assert_content("restored", SIZE, &then);
    disk.assert_only(&[]);
}

/// A loop device over a file, detached when dropped.
struct Loop(Disk);

impl Loop {
    fn over(backing: &Disk) -> Loop {
        let words = ["--find", "--show"].map(Path::new);
        let done = program("losetup", &[words[0], words[1], &backing.path]).expect_success();
        Loop(Disk { path: done.text().trim().into() })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let done = program("losetup", &["--detach".as_ref(), &self.0.path]);
        if done.code != Some(0) {
            eprintln!("{}", done.account());
        }
    }
}

/// The lock that engines of root have on a block device, whatever it is called.
fn engine_lock(device: &Path) -> File {
    let number = std::fs::metadata(device).expect("the device").rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let path = format!("/run/snapslot/locks/device/{major}-{minor}");
    let file = File::options().read(true).write(true).open(path).expect("it was locked before");
    // SAFETY: plain integers, all zeroes is a valid value.
    let mut lock: nix::libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = nix::libc::F_WRLCK as nix::libc::c_short;
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).expect("nobody has it");
    file
}

/// A device has nothing beside it: its copies lie with the records, under the name of the loop's
/// file, so that the same file on another loop device is the same disk.
#[test]
fn a_block_device_is_copied_and_set_back_in_place() {
    const SIZE: u64 = 16;
    if !needs::has(&[ROOT]) {
        return;
    }
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    // Both ends and the middle: the ends are put back last.
    let (then, now) = ([(0, 1), (7, 2), (15, 3)], [(0, 4), (7, 2), (8, 5), (15, 6)]);
    let backing = Disk::create(scratch.path(), "backing.img", SIZE, &then);
    let device = Loop::over(&backing);
    let disk = &device.0;
    let copies = || -> Vec<String> {
        let Ok(folder) = std::fs::read_dir(snapslot.state().join("copies")) else {
            return Vec::new();
        };
        folder.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    };
    let message = refusal(&disk.verb(&snapslot, "take", &[]), 6, "full-copy");
    assert!(message.contains("a full copy of 16.0 MiB"), "{message}");
    assert!(copies().is_empty(), "{:?}", copies());
    let taken = disk.verb(&snapslot, "take", &["--full-copy"]);
    let name = taken.snapshot_name();
    assert!(name.starts_with("loop-") && name.ends_with(&mark(&taken)), "{name}");
    assert_eq!(copies(), std::slice::from_ref(&name));
    disk.write(&now);
    {
        let open = File::open(&disk.path).expect("the device");
        let message = refusal(&disk.verb(&snapslot, "restore", &[]), 5, "in-use");
        assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
        drop(open);
    }
    disk.assert_content("after the refusal", SIZE, &now);
    {
        // Story: two engines with records of their own, or one by `raw:/dev/dm-3` and one by
        // `lvm:vg/vm1`, worked on one device at once.
        let lock = engine_lock(&disk.path);
        let elsewhere = snapslot.with_state(scratch.path().join("other-state"));
        let take = ["--full-copy"];
        refusal(&disk.verb(&elsewhere, "take", &take), 5, "busy");
        refusal(&disk.verb(&snapslot, "restore", &[]), 5, "busy");
        drop(lock);
    }
    assert_eq!(mark(&disk.verb(&snapslot, "restore", &[])), mark(&taken));
    disk.assert_content("the device", SIZE, &then);
    assert_eq!(copies(), [name]);
    assert_eq!(disk.verb(&snapslot, "delete", &[]).slot(), "empty");
    assert!(copies().is_empty(), "{:?}", copies());
    drop(device);
    backing.assert_content("the file under the device", SIZE, &then);
    backing.assert_only(&[]);
}
