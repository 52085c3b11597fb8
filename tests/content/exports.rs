//! Exports and diffs over the features of qcow2, and of raw disks.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use snapslot_test_support::needs::{self, ROOT};
use snapslot_test_support::{Image, Process, Scratch, Snapslot, SplitMix64, assert_same, qemu_img};

use crate::{MIB, program, sha256, snapslot};

/// Sets of options that QEMU accepts, and what it writes first is then compressed by this.
const FEATURES: [(&str, &[&str], Option<&str>); 14] = [
    ("plain", &[], None),
    ("version 2", &["compat=0.10"], None),
    ("512 bytes", &["cluster_size=512"], None),
    ("4 KiB", &["cluster_size=4096"], None),
    ("2 MiB", &["cluster_size=2M"], None),
    ("subclusters", &["extended_l2=on"], None),
    ("16-bit counts of 4 KiB", &["cluster_size=4096", "refcount_bits=16"], None),
    ("8-bit counts", &["refcount_bits=8"], None),
    ("64-bit counts", &["refcount_bits=64"], None),
    ("lazy counts", &["lazy_refcounts=on"], None),
    ("zlib", &[], Some("zlib")),
    ("zstd", &[], Some("zstd")),
    ("zlib of 4 KiB", &["cluster_size=4096"], Some("zlib")),
    ("metadata ahead", &["preallocation=metadata"], None),
];
const SIZE: u64 = 12 * MIB + 512;

/// An image with these features, some content, a snapshot in its slot, and other content since.
struct Subject {
    scratch: Scratch,
    image: Image,
    name: String,
    before: Vec<u8>,
}

fn guest(random: &mut SplitMix64, n: usize) -> Vec<String> {
    (0..n)
        .map(|_| {
            let length = 512 * random.between(1, 600);
            let at = 512 * random.below((SIZE - length) / 512);
            match random.below(5) {
                0 => format!("write -q -z {at} {length}"),
                1 => format!("discard -q {at} {length}"),
                _ => format!("write -q -P {} {at} {length}", random.between(1, 256)),
            }
        })
        .collect()
}

fn subject(features: &[&str], compression: Option<&str>, seed: u64) -> Subject {
    let scratch = Scratch::new();
    let mut random = SplitMix64::new(seed);
    let path = scratch.join("disk.qcow2");
    let image = match compression {
        None => Image::create(&path, features, SIZE),
        Some(method) => {
            let source = scratch.join("source.raw");
            let bytes: Vec<u8> =
                (0..SIZE).map(|i| if i / 40_000 % 3 == 0 { 0 } else { (i / 11) as u8 }).collect();
            std::fs::write(&source, bytes).expect("room");
            let kind = format!("compression_type={method}");
            let mut options = vec![kind.as_str()];
            options.extend(features);
            let (from, to, options) =
                (source.display().to_string(), path.display().to_string(), options.join(","));
            qemu_img(["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, &from, &to])
                .expect_success();
            Image::at(&path)
        }
    };
    image.guest(guest(&mut random, 12));
    let before = image.active();
    let taken = snapslot(&scratch).verb("take", image.path(), &[]);
    taken.expect(0);
    let name = taken.snapshot_name();
    image.guest(guest(&mut random, 8));
    Subject { scratch, image, name, before }
}

fn raw_of(path: &Path, format: &str) -> Vec<u8> {
    if format == "raw" {
        return std::fs::read(path).expect("the export");
    }
    let image = Image::at(path);
    image.assert_clean();
    image.active()
}

#[test]
fn exports_are_what_the_slot_and_the_disk_hold() {
    let mut exported = 0;
    for (i, (what, features, compression)) in FEATURES.iter().enumerate() {
        let Subject { scratch, image, name, before } =
            subject(features, *compression, 7 + i as u64);
        let snapslot = snapslot(&scratch);
        assert_same(&format!("{what}: the test's own idea"), &image.snapshot(&name), &before);
        for (ending, more) in [
            ("raw", &[][..]),
            ("qcow2", &[]),
            ("qcow2", &["--compress", "zstd"]),
            ("qcow2", &["--compress", "zlib", "--level", "1"]),
        ] {
            for live in [false, true] {
                let out = scratch.join(&format!("out-{exported}.{ending}"));
                let path = out.display().to_string();
                let mut arguments = vec![path.as_str(), "--checksum"];
                arguments.extend(more);
                if live {
                    arguments.push("--live");
                }
                let done = snapslot.verb("export", image.path(), &arguments);
                let told = done.expect(0);
                let expected = if live { image.active() } else { before.clone() };
                assert_same(
                    &format!("{what}, {ending} {more:?}"),
                    &raw_of(&out, ending),
                    &expected,
                );
                let plain = scratch.join("plain");
                std::fs::write(&plain, &expected).expect("room");
                assert_eq!(told["sha256"], sha256(&plain), "{what}");
                exported += 1;
            }
        }
        // The slot and the disk are as they were.
        image.assert_clean();
        assert_same(&format!("{what}, afterwards"), &image.snapshot(&name), &before);
    }
    println!("{exported} exports");
    assert!(exported >= 100);
}

#[test]
fn a_diff_names_all_that_changed_and_by_content_nothing_else() {
    for (i, (what, features, compression)) in FEATURES.iter().enumerate() {
        let Subject { scratch, image, before, .. } = subject(features, *compression, 90 + i as u64);
        let now = image.active();
        let snapslot = snapslot(&scratch);
        let changed: Vec<u64> = (0..SIZE.div_ceil(4096))
            .filter(|b| {
                let (a, z) = ((b * 4096) as usize, ((b + 1) * 4096).min(SIZE) as usize);
                now[a..z] != before[a..z]
            })
            .collect();
        for exact in [false, true] {
            let more: &[&str] = if exact { &["--content"] } else { &[] };
            let done = snapslot.verb("diff", image.path(), more);
            let volume = done.expect(0)["volumes"][0].clone();
            assert_eq!(volume["by-content"], exact, "{what}");
            let number = |v: &serde_json::Value| v.as_u64().expect("a number");
            let ranges: Vec<(u64, u64)> = (volume["ranges"].as_array().expect("ranges").iter())
                .map(|r| (number(&r["start"]), number(&r["length"])))
                .collect();
            assert!(ranges.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "{what}: {ranges:?}");
            // A cluster may be smaller than a block.
            let within =
                |b: u64| ranges.iter().any(|(s, l)| *s < (b + 1) * 4096 && b * 4096 < s + l);
            for block in &changed {
                assert!(within(*block), "{what}: block {block} changed and is not named");
            }
            let named = (0..SIZE.div_ceil(4096)).filter(|b| within(*b)).count();
            assert!(
                !exact || named == changed.len(),
                "{what}: {named} blocks named, {} changed",
                changed.len()
            );
            let sum: u64 = ranges.iter().map(|(_, l)| l).sum();
            assert_eq!(number(&volume["changed-bytes"]), sum, "{what}");
        }
    }
}

#[test]
fn content_in_a_backing_file_is_read_only_when_it_is_named() {
    let scratch = Scratch::new();
    let base = Image::create(scratch.join("base.qcow2"), &[], 4 * MIB);
    base.guest(["write -q -P 5 0 3M"]);
    let middle =
        Image::create_backed(scratch.join("middle.qcow2"), &[], 6 * MIB, (base.path(), "qcow2"));
    middle.guest(["write -q -P 6 1M 1M"]);
    let top =
        Image::create_backed(scratch.join("top.qcow2"), &[], 8 * MIB, (middle.path(), "qcow2"));
    top.guest(["write -q -P 7 1536k 64k", "write -q -P 8 7M 64k"]);
    let expected = top.active();
    let snapslot = snapslot(&scratch);
    snapslot.verb("take", top.path(), &[]).expect(0);
    top.guest(["write -q -P 9 0 8M"]);
    let out = scratch.join("out.raw").display().to_string();
    let refused = snapslot.verb("export", top.path(), &[&out]);
    assert_eq!(refused.expect(6)["error"]["code"], "backing");
    assert!(!Path::new(&out).exists(), "something is left of a refused export");
    let named = |image: &Image| format!("qcow2:{}", image.path().display());
    let short = snapslot.verb("export", top.path(), &[&out, "--backing", &named(&middle)]);
    assert_eq!(short.expect(6)["error"]["code"], "backing");
    let chain = ["--backing", &named(&middle), "--backing", &named(&base)];
    let mut arguments = vec![out.as_str()];
    arguments.extend(chain);
    snapslot.verb("export", top.path(), &arguments).expect(0);
    assert_same("over two backing files", &raw_of(Path::new(&out), "raw"), &expected);
}

#[test]
fn what_cannot_be_exported_is_refused_and_leaves_nothing() {
    let Subject { scratch, image, before, .. } = subject(&[], None, 3);
    let snapslot = snapslot(&scratch);
    let out = scratch.join("out.raw");
    let path = out.display().to_string();
    let export = |more: &[&str]| snapslot.verb("export", image.path(), more);
    std::fs::write(&out, "somebody's").expect("room");
    assert_eq!(export(&[&path]).expect(6)["error"]["code"], "exists");
    assert_eq!(std::fs::read(&out).expect("it"), b"somebody's");
    export(&[&path, "--force"]).expect(0);
    assert_same("replaced", &std::fs::read(&out).expect("it"), &before);
    assert_eq!(export(&["/no/such/place/out.raw"]).code(), 1);
    assert_eq!(export(&[&path, "--format", "raw", "--compress", "zstd"]).code(), 2);
    assert_eq!(export(&["-"]).code(), 2, "the image and --json on one output");
    // Onto what it is made of, or anybody's disk.
    let link = scratch.join("link.raw");
    std::os::unix::fs::symlink(image.path(), &link).expect("room");
    let other = Image::create(scratch.join("other.qcow2"), &[], 4 * MIB);
    snapslot.verb("take", other.path(), &[]).expect(0);
    let stranger = Image::create(scratch.join("stranger.qcow2"), &[], 4 * MIB);
    let running = stranger.hold(true);
    let kept = scratch.join("disk.qcow2.snapslot-journal");
    for (onto, code, exit) in [
        (image.path(), "no-content", 6),
        (&link, "no-content", 6),
        (other.path(), "no-content", 6),
        (stranger.path(), "in-use", 5),
        (&kept, "no-content", 6),
    ] {
        let content = std::fs::read(onto).ok();
        let refused = export(&[&onto.display().to_string(), "--force"]);
        assert_eq!(refused.expect(exit)["error"]["code"], code, "onto {}", onto.display());
        assert!(std::fs::read(onto).ok() == content, "{} was changed", onto.display());
    }
    drop(running);
    image.assert_clean();
    // A machine that runs: its present disk is not exported, its snapshot is.
    let held = image.hold(true);
    assert_eq!(export(&[&path, "--force", "--live"]).expect(5)["error"]["code"], "in-use");
    export(&[&path, "--force"]).expect(0);
    assert_same("of a running machine", &std::fs::read(&out).expect("it"), &before);
    drop(held);
    snapslot.verb("delete", image.path(), &[]).expect(0);
    assert_eq!(export(&[&path, "--force"]).expect(4)["error"]["code"], "slot-empty");
    // LUKS: what is in the image is not the content.
    let secret = Image::create_luks(scratch.join("secret.qcow2"), &[], 4 * MIB);
    secret.guest(["write -q -P 5 0 1M"]);
    snapslot.verb("take", secret.path(), &[]).expect(0);
    let out = scratch.join("secret.raw");
    let refused = snapslot.verb("export", secret.path(), &[&out.display().to_string()]);
    assert_eq!(refused.expect(6)["error"]["code"], "no-content");
    assert!(!out.exists());
    let left: Vec<_> =
        std::fs::read_dir(scratch.path()).expect("it").flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains("part")), "{left:?}");
}

/// How much a process has written so far; nothing once it has ended.
fn written(process: u32) -> u64 {
    let told = std::fs::read_to_string(format!("/proc/{process}/io")).unwrap_or_default();
    let bytes = told.lines().find_map(|line| line.strip_prefix("wchar: "));
    bytes.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[test]
fn an_export_goes_to_a_pipe_and_a_killed_one_leaves_nothing() {
    let Subject { scratch, image, before, .. } = subject(&[], None, 4);
    let snapslot = snapslot(&scratch);
    let shell = format!(
        "{} --state-dir {} export {} - 2>/dev/null | sha256sum",
        env!("CARGO_BIN_EXE_snapslot"),
        snapslot.state().display(),
        image.path().display()
    );
    let piped = program("sh", &["-c", &shell]).expect_success();
    let plain = scratch.join("plain");
    std::fs::write(&plain, &before).expect("room");
    assert!(String::from_utf8_lossy(&piped.stdout).starts_with(&sha256(&plain)));
    // A larger one, killed on its way.
    let large = Image::create(scratch.join("large.qcow2"), &[], 512 * MIB);
    large.guest(["write -q -P 3 0 500M"]);
    snapslot.verb("take", large.path(), &[]).expect(0);
    let folder = scratch.join("out");
    std::fs::create_dir(&folder).expect("room");
    let out = folder.join("large.raw").display().to_string();
    for signal in ["-KILL", "-INT"] {
        let interrupted = || {
            let mut process =
                snapslot.start(["export".as_ref(), large.path().as_os_str(), out.as_ref()]);
            // In the middle of it, however fast the machine is.
            while !process.has_ended() && written(process.id()) < 64 * MIB {
                std::thread::sleep(Duration::from_millis(1));
            }
            program("kill", &[signal, &process.id().to_string()]);
            let done = process.finish(Duration::from_secs(60));
            let left: Vec<_> =
                std::fs::read_dir(&folder).expect("it").flatten().map(|e| e.path()).collect();
            // Either nothing, or all of it: it gets its name when it is whole, and its process ends a moment later.
            if left.is_empty() {
                assert_ne!(done.code, Some(0), "{}", done.account());
                return true;
            }
            assert_eq!(left, [Path::new(&out)], "{signal}: {}", done.account());
            let bytes = std::fs::read(&out).expect("it");
            assert_eq!(bytes.len() as u64, 512 * MIB, "{signal}");
            let (filled, empty) = bytes.split_at(500 * MIB as usize);
            assert!(filled.iter().all(|b| *b == 3) && empty.iter().all(|b| *b == 0), "{signal}");
            std::fs::remove_file(&out).expect("it");
            false
        };
        assert!((0..20).any(|_| interrupted()), "{signal} always comes too late");
    }
}

/// Raw disks share blocks with their exports where the file system can.
fn shares_blocks(kind: &str, mkfs: &[&str]) {
    if !needs::has(&[ROOT, mkfs[0]]) {
        return;
    }
    let scratch = Scratch::new();
    let (file, at) = (scratch.join("fs"), scratch.join("mnt"));
    std::fs::File::create(&file).and_then(|f| f.set_len(512 * MIB)).expect("room");
    std::fs::create_dir(&at).expect("room");
    let mut make = mkfs.to_vec();
    let path = file.display().to_string();
    make.push(&path);
    program(make[0], &make[1..]).expect_success();
    let mount = at.display().to_string();
    let mounted = program("mount", &["-o", "loop", &path, &mount]);
    assert!(mounted.code == Some(0), "{kind} cannot be mounted: {}", mounted.account());
    let disk = at.join("vm.img");
    // A long run, a hole, and runs too short for a call each with holes between them.
    let (long, short, runs) = (40 * MIB, 8192, 64);
    let mut bytes = SplitMix64::new(5).bytes(long as usize);
    bytes.resize(68 * MIB as usize, 0);
    let made = std::fs::File::create(&disk).expect("room");
    made.set_len(bytes.len() as u64).expect("room");
    made.write_all_at(&bytes[..long as usize], 0).expect("room");
    for at in (64 * MIB..).step_by(64 << 10).take(runs) {
        let run = &mut bytes[at as usize..][..short];
        run.fill(7);
        made.write_all_at(run, at).expect("room");
    }
    made.sync_all().expect("room");
    drop(made);
    let data = long + (short * runs) as u64;
    let snapslot = snapslot(&scratch);
    let volume = format!("raw:{}", disk.display());
    snapslot.verb("take", Path::new(&volume), &[]).expect(0);
    for (name, format) in [("out.raw", "raw"), ("out.qcow2", "qcow2")] {
        let out = at.join(name);
        let done = snapslot.verb("export", Path::new(&volume), &[&out.display().to_string()]);
        let told = done.expect(0);
        // In a qcow2 image a cluster that a hole is shared for would be one.
        let shared = if format == "raw" { data } else { long };
        assert_eq!(told["shared-bytes"], shared, "{kind}, {format}");
        assert!(out.metadata().expect("it").blocks() * 512 < data + 8 * MIB, "{kind}, {format}");
        assert_same(&format!("{kind}, {format}"), &raw_of(&out, format), &bytes);
        assert!(out.metadata().expect("it").blocks() > 0);
    }
    program("umount", &[&mount]).expect_success();
}

#[test]
fn xfs_shares_blocks_with_an_export() {
    shares_blocks("xfs", &["mkfs.xfs", "-q", "-m", "reflink=1"]);
}

#[test]
fn btrfs_shares_blocks_with_an_export() {
    shares_blocks("btrfs", &["mkfs.btrfs", "-q"]);
}

/// Goal: zeroes that the disk has written down take no room in an export, though room was set aside for the run they lie in.
#[test]
fn zeroes_within_data_are_holes_in_an_export() {
    let scratch = Scratch::new();
    let disk = scratch.join("vm.img");
    let mut bytes = SplitMix64::new(6).bytes(40 * MIB as usize);
    // Of many pieces, of one, at a piece's end, and too short to be worth it.
    let zeroes = [(3 * MIB, 9 * MIB), (17 * MIB + 4096, MIB), (22 * MIB - 65_536, 131_072)];
    for (at, length) in zeroes.into_iter().chain([(30 * MIB, 8192)]) {
        bytes[at as usize..(at + length) as usize].fill(0);
    }
    std::fs::write(&disk, &bytes).expect("room");
    let snapslot = snapslot(&scratch);
    let volume = format!("raw:{}", disk.display());
    let room: u64 = zeroes.iter().map(|(_, length)| length).sum();
    for more in [&["--live"][..], &["--live", "--no-sync"], &["--live", "--checksum"]] {
        let out = scratch.join("out.raw");
        let to = out.display().to_string();
        let all: Vec<&str> =
            [to.as_str(), "--force"].into_iter().chain(more.iter().copied()).collect();
        snapslot.verb("export", Path::new(&volume), &all).expect(0);
        assert_same("the export", &std::fs::read(&out).expect("it"), &bytes);
        // What the file system has put off is done.
        std::fs::File::open(&out).and_then(|f| f.sync_all()).expect("a flush");
        let taken = out.metadata().expect("it").blocks() * 512;
        let most = 40 * MIB - room;
        assert!(taken <= most + MIB / 2, "{more:?}: it takes {taken} bytes, {most} are enough");
    }
}

#[test]
fn an_export_to_a_device_overwrites_all_of_it() {
    if !needs::has(&[ROOT]) {
        return;
    }
    let Subject { scratch, image, before, .. } = subject(&[], None, 6);
    let snapslot = snapslot(&scratch);
    let file = scratch.join("device");
    std::fs::write(&file, vec![0xaa; 16 * MIB as usize]).expect("room");
    let made = program("losetup", &["--show", "-f", &file.display().to_string()]).expect_success();
    let device = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    let refused = snapslot.verb("export", image.path(), &[&device]);
    let done = snapslot.verb("export", image.path(), &[&device, "--force"]);
    program("losetup", &["-d", &device]).expect_success();
    assert_eq!(refused.expect(6)["error"]["code"], "target");
    done.expect(0);
    let bytes = std::fs::read(&file).expect("it");
    assert_same("the device", &bytes[..SIZE as usize], &before);
    assert!(
        bytes[SIZE as usize..].iter().all(|b| *b == 0xaa),
        "more was written than the disk has"
    );
}

#[test]
fn an_exported_image_comes_back() {
    let Subject { scratch, image, before, .. } = subject(&[], None, 21);
    let snapslot = snapslot(&scratch);
    let out = scratch.join("away.qcow2");
    let away = out.display().to_string();
    snapslot.verb("export", image.path(), &[&away, "--compress", "zstd"]).expect(0);
    // The image would be written anew, and what is in its slot lost.
    let refused = snapslot.verb("restore", image.path(), &["--from", &away]);
    assert_eq!(refused.expect(6)["error"]["code"], "no-content");
    snapslot.verb("delete", image.path(), &[]).expect(0);
    image.guest(["write -q -P 99 0 4M"]);
    std::fs::set_permissions(image.path(), std::os::unix::fs::PermissionsExt::from_mode(0o640))
        .expect("it");
    // Not without a yes, not while a machine has it.
    let path = image.path().display().to_string();
    let asked = snapslot.run(["restore", path.as_str(), "--from", &away]);
    assert_eq!(asked.expect(6)["error"]["code"], "not-confirmed");
    let held = image.hold(true);
    assert_eq!(snapslot.verb("restore", image.path(), &["--from", &away]).code(), 5);
    drop(held);
    snapslot.verb("restore", image.path(), &["--from", &away]).expect(0);
    image.assert_clean();
    assert_same("put back", &image.active(), &before);
    assert_eq!(image.path().metadata().expect("it").mode() & 0o777, 0o640);
    // And it has a slot as before.
    snapslot.verb("take", image.path(), &[]).expect(0);
    snapslot.verb("delete", image.path(), &[]).expect(0);
    // A raw disk keeps what its slot holds.
    let disk = scratch.join("vm.img");
    let first = SplitMix64::new(8).bytes(3 * MIB as usize);
    std::fs::write(&disk, &first).expect("room");
    let volume = format!("raw:{}", disk.display());
    snapslot.verb("take", Path::new(&volume), &["--full-copy"]).expect(0);
    snapslot.verb("restore", Path::new(&volume), &["--from", &away]).expect(0);
    assert_same("a raw disk", &std::fs::read(&disk).expect("it"), &before);
    assert_eq!(snapslot.verb("status", Path::new(&volume), &[]).slot(), "held");
    snapslot.verb("restore", Path::new(&volume), &[]).expect(0);
    assert_same("its slot", &std::fs::read(&disk).expect("it"), &first);
    let itself = snapslot.verb("restore", Path::new(&volume), &["--from", &volume]);
    assert_ne!(itself.code(), 0, "a disk is put back from itself");
    let rubbish = scratch.join("rubbish.qcow2");
    std::fs::write(&rubbish, [7; 4096]).expect("room");
    let refused =
        snapslot.verb("restore", Path::new(&volume), &["--from", &rubbish.display().to_string()]);
    assert_ne!(refused.code(), 0);
    assert_same("after rubbish", &std::fs::read(&disk).expect("it"), &first);
}

/// Goal: a dry run of an import says how it would be done, or why it would be refused as the import itself is, and
/// changes nothing, also over an import that was cut off.
#[test]
fn a_dry_run_of_an_import_says_how_and_changes_nothing() {
    let Subject { scratch, image, before, .. } = subject(&[], None, 22);
    let snapslot = snapslot(&scratch);
    let away = scratch.join("away.raw").display().to_string();
    snapslot.verb("export", image.path(), &[&away]).expect(0);
    let from = format!("raw:{away}");
    let path = image.path().display().to_string();
    // Without a yes, as nothing is done.
    let dry = |volume: &str| snapslot.run(["restore", volume, "--from", &from, "--dry-run"]);
    assert_eq!(dry(&path).expect(6)["error"]["code"], "no-content");
    snapslot.verb("delete", image.path(), &[]).expect(0);
    image.guest(["write -q -P 98 0 4M"]);
    let now = std::fs::read(image.path()).expect("the image");
    let told = dry(&path).expect(0).clone();
    let size = before.len() as u64;
    assert_eq!((&told["way"], &told["dry-run"]), (&"replaced".into(), &true.into()), "{told}");
    assert_eq!(
        (&told["virtual-size"], &told["written-bytes"]),
        (&size.into(), &0.into()),
        "{told}"
    );
    assert_same("the image", &std::fs::read(image.path()).expect("it"), &now);
    let held = image.hold(true);
    assert_eq!(dry(&path).code(), 5);
    drop(held);
    if !needs::has(&[ROOT]) {
        return;
    }
    let to = Overwritten::new(96 * MIB as usize);
    let dry = |full_copy: bool| {
        let mut words = to.import().to_vec();
        words.push("--dry-run");
        words.retain(|w| *w != "--yes" && (full_copy || *w != "--full-copy"));
        to.snapslot.run(words)
    };
    let told = dry(true).expect(0).clone();
    assert_eq!((&told["way"], &told["dry-run"]), (&"in-place".into(), &true.into()), "{told}");
    // What the way back would cost is refused as in the import.
    assert_eq!(dry(false).code(), 6);
    assert_same("the device", &to.device.bytes(), &to.old);
    assert_eq!(to.snapslot.verb("status", Path::new(&to.volume), &[]).slot(), "disabled");
    let mut process = to.snapslot.start(to.import());
    until_written(&mut process, &to.file, &to.old);
    process.kill();
    process.finish(Duration::from_secs(60));
    let half = to.device.bytes();
    if half != to.new {
        assert_eq!(dry(true).code(), 8, "over an import that was cut off");
    }
    assert_same("after the dry run", &to.device.bytes(), &half);
    to.snapslot.verb("recover", Path::new(&to.volume), &[]).expect(0);
}

/// A file as a block device, until it is dropped.
struct Loop(String);

impl Loop {
    #[track_caller]
    fn of(file: &Path) -> Loop {
        let made = program("losetup", &["--show", "-f", &file.display().to_string()]);
        Loop(String::from_utf8_lossy(&made.expect_success().stdout).trim().to_owned())
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.0).expect("the device")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        program("losetup", &["-d", &self.0]);
    }
}

/// Goal: an image is put back onto a device wholly, and what hinders it is told before anything is written. Method: a
/// loop device larger than the image, every hindrance in turn.
#[test]
fn an_image_comes_back_onto_a_device() {
    if !needs::has(&[ROOT]) {
        return;
    }
    let Subject { scratch, image, before, .. } = subject(&[], None, 33);
    let snapslot = snapslot(&scratch);
    let away = scratch.join("away.qcow2").display().to_string();
    snapslot.verb("export", image.path(), &[&away]).expect(0);
    let file = scratch.join("device");
    let old = SplitMix64::new(34).bytes(SIZE as usize + 3 * MIB as usize);
    std::fs::write(&file, &old).expect("room");
    let device = Loop::of(&file);
    let volume = format!("raw:{}", device.0);
    let volume = Path::new(&volume);
    let import = |more: &[&str]| {
        snapslot.verb("restore", volume, &[&["--from", away.as_str()], more].concat())
    };
    // It can share nothing, so what the way back costs is asked first.
    assert_eq!(import(&[]).expect(6)["error"]["code"], "full-copy");
    snapslot.verb("take", volume, &["--full-copy"]).expect(0);
    assert_eq!(import(&["--full-copy"]).expect(3)["error"]["code"], "slot-held");
    snapslot.verb("delete", volume, &[]).expect(0);
    let small = scratch.join("small");
    std::fs::write(&small, vec![0x55; MIB as usize]).expect("room");
    let small = Loop::of(&small);
    let small_volume = format!("raw:{}", small.0);
    let more = ["--from", &away, "--full-copy"];
    let refused = snapslot.verb("restore", Path::new(&small_volume), &more);
    assert_eq!(refused.expect(6)["error"]["code"], "no-content");
    assert!(small.bytes().iter().all(|b| *b == 0x55));
    assert_same("after refusals", &device.bytes(), &old);

    let done = import(&["--full-copy"]);
    assert_eq!(done.expect(0)["virtual-size"], SIZE);
    let now = device.bytes();
    assert_same("the device", &now[..SIZE as usize], &before);
    assert!(now[SIZE as usize..].iter().all(|b| *b == 0), "old content lies behind the image");
    assert_eq!(snapslot.verb("status", volume, &[]).slot(), "empty");
    assert_eq!(snapslot.verb("recover", volume, &[]).expect(0)["finished"], serde_json::json!([]));
}

/// A device with old content, and an image with new that is to be written over it.
struct Overwritten {
    snapslot: Snapslot,
    file: PathBuf,
    device: Loop,
    volume: String,
    from: String,
    old: Vec<u8>,
    new: Vec<u8>,
    /// Last: the device is given back before its file goes.
    _scratch: Scratch,
}

impl Overwritten {
    fn new(size: usize) -> Overwritten {
        let scratch = Scratch::new();
        let (file, image) = (scratch.join("device"), scratch.join("new.raw"));
        let (old, new) = (SplitMix64::new(1).bytes(size), SplitMix64::new(2).bytes(size));
        std::fs::write(&file, &old).expect("room");
        std::fs::write(&image, &new).expect("room");
        let device = Loop::of(&file);
        Overwritten {
            snapslot: snapslot(&scratch),
            volume: format!("raw:{}", device.0),
            from: format!("raw:{}", image.display()),
            _scratch: scratch,
            file,
            device,
            old,
            new,
        }
    }

    fn import(&self) -> [&str; 6] {
        ["restore", &self.volume, "--yes", "--full-copy", "--from", &self.from]
    }
}

/// Waits until the beginning of a file is not that of `old` any more, or the process has ended.
fn until_written(process: &mut Process, file: &Path, old: &[u8]) {
    let file = std::fs::File::open(file).expect("it");
    let mut head = [0; 4096];
    while !process.has_ended()
        && file.read_exact_at(&mut head, 0).is_ok()
        && head[..] == old[..head.len()]
    {
        std::thread::yield_now();
    }
}

/// Goal: a device that is written over has what it had or what the image holds, whenever the engine is killed. Method:
/// killed after times that grow until it gets to its end, then once the image's first bytes are there; after each a dry
/// run, which changes nothing, and `recover`.
#[test]
fn a_killed_import_onto_a_device_is_taken_back() {
    if !needs::has(&[ROOT]) {
        return;
    }
    let to = Overwritten::new(96 * MIB as usize);
    let Overwritten { snapslot, file, device, volume, old, new, .. } = &to;
    // Gives whether it had ended, and whether it was cut off in the middle.
    let killed = |wait: &dyn Fn(&mut Process)| -> (bool, bool) {
        let mut process = snapslot.start(to.import());
        wait(&mut process);
        let ended = process.has_ended();
        process.kill();
        process.finish(Duration::from_secs(60));
        let found = device.bytes();
        let half = snapslot.verb("restore", Path::new(volume), &["--dry-run"]);
        assert_same("after a dry run", &device.bytes(), &found);
        let recovered = snapslot.verb("recover", Path::new(volume), &[]);
        let finished = recovered.expect(0)["finished"].as_array().map_or(0, Vec::len);
        assert_eq!(half.code(), if finished > 0 { 8 } else { 4 }, "{}", half.process.account());
        let now = device.bytes();
        assert!(now == *old || now == *new, "a mixture");
        assert!(found != *old || now == *old, "nothing was written, and recovery wrote");
        assert_eq!(snapslot.verb("status", Path::new(volume), &[]).slot(), "disabled");
        let copies: Vec<_> = std::fs::read_dir(snapslot.state().join("copies"))
            .map(|found| found.flatten().collect())
            .unwrap_or_default();
        assert!(copies.is_empty(), "left: {copies:?}");
        if now == *new {
            std::fs::write(&device.0, old).expect("room");
        }
        (ended, found != *old && found != *new)
    };
    let mut wait = 5;
    while !killed(&|_| std::thread::sleep(Duration::from_millis(wait))).0 {
        wait += 15 + wait / 8;
    }
    assert!(
        (0..20).any(|_| killed(&|process| until_written(process, file, old)).1),
        "it was never killed in the middle"
    );
}

/// Goal: where somebody removed the way back of an import that was cut off, that is told, the machine's verbs are
/// refused, and another import ends it. Method: killed once the image's first bytes are there; the copy is deleted.
#[test]
fn an_import_without_a_way_back_is_told_and_ended_by_another() {
    if !needs::has(&[ROOT]) {
        return;
    }
    let to = Overwritten::new(192 * MIB as usize);
    let Overwritten { snapslot, file, device, volume, old, new, .. } = &to;
    let mut cut_off = false;
    for _ in 0..20 {
        let mut process = snapslot.start(to.import());
        until_written(&mut process, file, old);
        process.kill();
        process.finish(Duration::from_secs(60));
        let now = device.bytes();
        cut_off = now != *old && now != *new;
        if cut_off {
            break;
        }
        snapslot.verb("recover", Path::new(volume), &[]).expect(0);
        std::fs::write(&device.0, old).expect("room");
    }
    assert!(cut_off, "it was never killed in the middle");
    let half = device.bytes();
    let copies = snapslot.state().join("copies");
    std::fs::remove_dir_all(&copies).expect("the way back");
    for verb in ["recover", "take"] {
        let refused = snapslot.verb(verb, Path::new(volume), &[]);
        assert_eq!(refused.expect(8)["error"]["code"], "half-imported", "{verb}");
    }
    assert_same("after refusals", &device.bytes(), &half);
    snapslot.run(to.import()).expect(0);
    assert_same("the image", &device.bytes(), new);
    assert_eq!(snapslot.verb("recover", Path::new(volume), &[]).code(), 0);
}
