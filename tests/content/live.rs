//! A raw disk that is served and written while its slot is used.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use snapslot_test_support::{Ends, Process, Scratch, Snapslot, SplitMix64, assert_same, setting};

use crate::{MIB, program, snapslot};

const SIZE: u64 = 24 * MIB + 4096 + 512;

pub(crate) struct Served {
    pub(crate) snapslot: Snapslot,
    pub(crate) volume: String,
    pub(crate) disk: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) uri: String,
}

impl Served {
    fn new(scratch: &Scratch) -> Served {
        let disk = scratch.join("vm.img");
        std::fs::write(&disk, SplitMix64::new(1).bytes(SIZE as usize)).expect("room");
        Served::over(scratch, disk)
    }

    /// A disk that is there.
    pub(crate) fn over(scratch: &Scratch, disk: PathBuf) -> Served {
        let socket = scratch.join("s");
        Served {
            snapslot: snapslot(scratch),
            volume: format!("raw:{}", disk.display()),
            uri: format!("nbd+unix:///?socket={}", socket.display()),
            disk,
            socket,
        }
    }

    /// Starts it. The socket of one that was killed may be there still.
    pub(crate) fn start(&self, more: &[&str]) -> Process {
        let socket = self.socket.display().to_string();
        let mut all = vec!["serve", &self.volume, "--socket", &socket];
        all.extend(more);
        self.snapslot.start(&all).listening(&self.socket)
    }

    /// Has the present disk open at a socket of its own, which is given too.
    fn open_now(&self, scratch: &Scratch) -> (Process, PathBuf) {
        let socket = scratch.join("now");
        let said = socket.display().to_string();
        let process = self.snapslot.start(["open", &self.volume, "--live", "--socket", &said]);
        (process.listening(&socket), socket)
    }

    #[track_caller]
    pub(crate) fn verb(&self, verb: &str, more: &[&str]) -> snapslot_test_support::Outcome {
        self.snapslot.verb(verb, Path::new(&self.volume), more)
    }

    /// Restored, by a server that hears of a client that left a moment later.
    #[track_caller]
    pub(crate) fn restored(&self) {
        let begun = Instant::now();
        loop {
            let done = self.verb("restore", &[]);
            if done.code() != 5 || begun.elapsed() > Duration::from_secs(60) {
                done.expect(0);
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub(crate) fn qemu_io(&self, commands: &[&str]) {
        let mut all = vec!["-f", "raw"];
        for command in commands {
            all.extend(["-c", command]);
        }
        all.push(&self.uri);
        let done = program("qemu-io", &all).expect_success();
        assert!(!done.text().contains("failed"), "{}", done.text());
    }

    pub(crate) fn stop(&self, process: Process) {
        program("kill", &["-TERM", &process.id().to_string()]);
        let done = process.finish(Duration::from_secs(60));
        assert_eq!(done.code, Some(0), "{}", done.account());
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.disk).expect("the disk")
    }
}

/// No store, nor anything else of ours, is beside the disk.
#[track_caller]
fn assert_nothing_left(scratch: &Scratch) {
    let left: Vec<_> =
        std::fs::read_dir(scratch.path()).expect("it").flatten().map(|e| e.file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().contains("snapslot-")), "{left:?}");
}

#[test]
fn a_slot_lives_on_a_disk_that_is_being_served() {
    let scratch = Scratch::new();
    let served = Served::new(&scratch);
    let first = served.bytes();
    let process = served.start(&[]);
    served.verb("take", &[]).expect(0);
    served.qemu_io(&[
        "write -q -P 1 0 1M",
        "write -q -P 2 10M 4k",
        "write -q -P 3 20971008 1k",
        "flush",
    ]);
    let status = served.verb("status", &[]);
    assert_eq!(status.slot(), "held");
    let blocks = 256 + 1 + 2;
    assert_eq!(status.expect(0)["volumes"][0]["changed-bytes"], blocks * 4096);
    let diff = served.verb("diff", &[]);
    let ranges = diff.expect(0)["volumes"][0]["ranges"].clone();
    assert_eq!(ranges[0]["start"], 0);
    assert_eq!(ranges[1]["start"], 10 * MIB);
    assert_eq!(ranges[2]["start"], 20_971_008 / 4096 * 4096);
    // A second one must wait; the first is exported and looked into while all goes on.
    assert_eq!(served.verb("take", &[]).code(), 3);
    let out = scratch.join("out.raw");
    served.verb("export", &[&out.display().to_string()]).expect(0);
    assert_same("exported", &std::fs::read(&out).expect("it"), &first);
    let copy = scratch.join("copy.raw").display().to_string();
    let opened = served.snapslot.run([
        "open",
        &served.volume,
        "--",
        "qemu-img",
        "convert",
        "-f",
        "raw",
        "-O",
        "raw",
        "{uri}",
        &copy,
    ]);
    assert_eq!(opened.code(), 0, "{}", opened.process.account());
    assert_same("opened", &std::fs::read(&copy).expect("it"), &first);
    // Not while a client has it; then at once, and the slot stays.
    let client = UnixStream::connect(&served.socket).expect("it listens");
    choose(&client);
    let refused = served.verb("restore", &[]);
    assert_eq!(refused.expect(5)["error"]["code"], "in-use");
    drop(client);
    served.restored();
    assert_same("restored", &served.bytes(), &first);
    served.qemu_io(&["write -q -P 9 3M 64k", "flush"]);
    // Off and on again: the slot is where it was.
    served.stop(process);
    assert_eq!(served.verb("status", &[]).slot(), "held");
    let process = served.start(&[]);
    assert_eq!(served.verb("status", &[]).slot(), "held");
    served.verb("restore", &["--consume"]).expect(0);
    assert_same("restored and consumed", &served.bytes(), &first);
    assert_eq!(served.verb("status", &[]).slot(), "empty");
    served.stop(process);
    assert_nothing_left(&scratch);
}

#[test]
fn without_its_server_the_slot_is_restored_and_deleted_too() {
    for verb in ["restore", "delete"] {
        let scratch = Scratch::new();
        let served = Served::new(&scratch);
        let first = served.bytes();
        let process = served.start(&[]);
        served.verb("take", &[]).expect(0);
        served.qemu_io(&["write -q -P 1 0 5M", "flush"]);
        let now = served.bytes();
        served.stop(process);
        served.verb(verb, &[]).expect(0);
        let expected = if verb == "restore" { first } else { now };
        assert_same(verb, &served.bytes(), &expected);
    }
}

#[test]
fn a_disk_written_past_its_server_has_lost_its_snapshot() {
    let scratch = Scratch::new();
    let served = Served::new(&scratch);
    let process = served.start(&[]);
    served.verb("take", &[]).expect(0);
    served.qemu_io(&["write -q -P 1 0 1M", "flush"]);
    served.stop(process);
    // Only looked at, it stays.
    let path = served.disk.display().to_string();
    program("qemu-io", &["-r", "-f", "raw", "-c", "read 0 4k", &path]).expect_success();
    assert_eq!(served.verb("status", &[]).slot(), "held");
    program("qemu-io", &["-f", "raw", "-c", "write -q -P 7 8M 4k", &path]).expect_success();
    let now = served.bytes();
    let status = served.verb("status", &[]);
    assert_eq!(status.expect(0)["slot"]["drift"], "snapshot-lost");
    assert_eq!(served.verb("restore", &[]).code(), 8);
    let out = scratch.join("out.raw").display().to_string();
    assert_ne!(
        served.verb("export", &[&out]).code(),
        0,
        "what is not the snapshot was exported as it"
    );
    let process = served.start(&[]);
    assert_eq!(served.verb("status", &[]).expect(0)["slot"]["drift"], "snapshot-lost");
    assert_same("nothing was set back", &served.bytes(), &now);
    served.verb("delete", &[]).expect(0);
    served.verb("take", &[]).expect(0);
    served.stop(process);
}

#[test]
fn nobody_else_writes_a_disk_that_is_served() {
    let scratch = Scratch::new();
    let served = Served::new(&scratch);
    let process = served.start(&[]);
    let path = served.disk.display().to_string();
    let theirs = program("qemu-io", &["-f", "raw", "-c", "write 0 4k", &path]);
    assert!(theirs.code != Some(0), "QEMU writes a disk that is served");
    let second = served.snapslot.run(["serve", &served.volume]);
    assert_eq!(second.expect(5)["error"]["code"], "in-use");
    served.stop(process);
}

#[test]
fn a_full_store_is_told_and_the_machine_goes_on() {
    let scratch = Scratch::new();
    let served = Served::new(&scratch);
    let process = served.start(&["--store-size", "1M"]);
    served.verb("take", &[]).expect(0);
    served.qemu_io(&[
        "write -q -P 1 0 512k",
        "flush",
        "write -q -P 2 1M 8M",
        "flush",
        "read -q -P 2 1M 8M",
    ]);
    let status = served.verb("status", &[]);
    assert_eq!(status.slot(), "drifted");
    assert_eq!(status.expect(0)["slot"]["drift"], "snapshot-lost");
    assert_eq!(served.verb("restore", &[]).code(), 8);
    served.verb("delete", &[]).expect(0);
    served.verb("take", &[]).expect(0);
    program("kill", &["-TERM", &process.id().to_string()]);
    let done = process.finish(Duration::from_secs(60));
    assert!(done.stderr.contains("LOST"), "nobody was told: {}", done.stderr);
    // The other way round.
    served.verb("delete", &[]).expect(0);
    let first = served.bytes();
    let process = served.start(&["--store-size", "1M", "--on-full", "fail-writes"]);
    served.verb("take", &[]).expect(0);
    let all = ["-f", "raw", "-c", "write -q -P 3 0 8M", "-c", "flush", &served.uri];
    let done = program("qemu-io", &all);
    assert!(
        format!("{}{}", done.text(), done.stderr).contains("No space left"),
        "{}",
        done.account()
    );
    assert_eq!(served.verb("status", &[]).slot(), "held");
    served.restored();
    assert_same("restored", &served.bytes(), &first);
    served.stop(process);
}

/// Chooses the export, with simple replies.
pub(crate) fn choose(stream: &UnixStream) {
    let mut stream = stream;
    let mut hello = [0; 18];
    stream.read_exact(&mut hello).expect("a greeting");
    stream.write_all(&3_u32.to_be_bytes()).expect("flags");
    stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0").expect("an option");
    stream.read_exact(&mut hello[..10]).expect("an export");
}

/// One request and its answer; none: the server is gone.
pub(crate) fn ask(mut stream: &UnixStream, kind: u16, offset: u64, data: &[u8]) -> Option<u32> {
    let length = if kind == 1 { data.len() as u32 } else { 0 };
    let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
    out.extend([0; 2]);
    out.extend(kind.to_be_bytes());
    out.extend([1; 8]);
    out.extend(offset.to_be_bytes());
    out.extend(length.to_be_bytes());
    if kind == 1 {
        out.extend(data);
    }
    stream.write_all(&out).ok()?;
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).ok()?;
    Some(u32::from_be_bytes(reply[4..8].try_into().expect("4")))
}

/// What a machine wrote in turn, block after block and round after round, as far as it had come at one moment.
#[track_caller]
fn assert_of_one_moment(bytes: &[u8], blocks: usize) -> usize {
    let rounds: Vec<u8> = bytes.chunks(4096).take(blocks).map(|block| block[0]).collect();
    for (i, block) in bytes.chunks(4096).take(blocks).enumerate() {
        assert!(block.iter().all(|byte| *byte == rounds[i]), "block {i} is of two moments");
    }
    let come = rounds.iter().take_while(|round| **round == rounds[0]).count();
    assert!(
        rounds[come..].iter().all(|round| *round == rounds[0].wrapping_sub(1)),
        "of more than one moment: {rounds:?}"
    );
    come
}

#[test]
fn the_present_disk_is_exported_while_it_is_written() {
    const BLOCKS: usize = 150;
    let scratch = Scratch::new();
    let served = Served::new(&scratch);
    let process = served.start(&[]);
    let stream = UnixStream::connect(&served.socket).expect("it listens");
    choose(&stream);
    for block in 0..BLOCKS as u64 {
        assert_eq!(ask(&stream, 1, block * 4096, &[0; 4096]), Some(0));
    }
    let ends = Ends::default();
    let written = AtomicUsize::new(0);
    let mut places = BTreeSet::new();
    std::thread::scope(|scope| {
        let _end = ends.at_the_end();
        scope.spawn(|| {
            for turn in 0.. {
                let (block, round) = (turn % BLOCKS, (1 + turn / BLOCKS) as u8);
                if ends.has_come() {
                    break;
                }
                assert_eq!(ask(&stream, 1, block as u64 * 4096, &[round; 4096]), Some(0));
                if turn % 61 == 0 {
                    assert_eq!(ask(&stream, 3, 0, &[]), Some(0));
                }
                written.fetch_add(1, Ordering::Relaxed);
            }
        });
        let out = scratch.join("now.raw");
        let path = out.display().to_string();
        let slot = scratch.join("slot.raw");
        let mut taken = None;
        for turn in 0..16 {
            // Something was written since the last one.
            let before = written.load(Ordering::Relaxed);
            while written.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
            let done = served.verb("export", &[&path, "--live", "--force", "--no-sync"]);
            assert_eq!(done.expect(0)["content"], "current");
            let bytes = std::fs::read(&out).expect("it");
            assert_eq!(bytes.len() as u64, SIZE);
            places.insert(assert_of_one_moment(&bytes, BLOCKS));
            match turn % 8 {
                // The slot is empty, filled, and held while the present disk is read.
                2 => {
                    served.verb("take", &[]).expect(0);
                }
                5 => {
                    served.verb("diff", &["--content"]).expect(0);
                    served.verb("delete", &[]).expect(0);
                    taken = None;
                }
                3 | 4 => {
                    let slot = slot.display().to_string();
                    served.verb("export", &[&slot, "--force", "--no-sync"]).expect(0);
                    let bytes = std::fs::read(&slot).expect("it");
                    assert_of_one_moment(&bytes, BLOCKS);
                    assert!(
                        *taken.get_or_insert_with(|| bytes.clone()) == bytes,
                        "the slot changes"
                    );
                }
                _ => {}
            }
        }
    });
    println!("{} writes, at {places:?}", written.load(Ordering::Relaxed));
    assert!(places.len() > 2, "it was never in the middle of a round: {places:?}");
    drop(stream);
    served.stop(process);
    assert_nothing_left(&scratch);
}

#[test]
fn who_reads_the_present_disk_is_told_when_it_is_no_longer_held() {
    let scratch = Scratch::new();
    let served = Served::new(&scratch);
    let first = served.bytes();
    let read = |socket: &Path| {
        let uri = format!("nbd+unix:///?socket={}", socket.display());
        let copy = scratch.join("copy.raw");
        let said = copy.display().to_string();
        let done = program("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, &said]);
        (done.code == Some(0)).then(|| std::fs::read(copy).expect("it"))
    };
    for why in ["its reader is killed", "its server is killed", "its server ends", "full"] {
        println!("{why}");
        let mut first = first.clone();
        std::fs::write(&served.disk, &first).expect("room");
        let process = served.start(&["--store-size", "4M"]);
        served.qemu_io(&["write -q -P 5 7M 64k"]);
        first[7 << 20..][..64 << 10].fill(5);
        let (reader, socket) = served.open_now(&scratch);
        served.qemu_io(&["write -q -P 1 0 1M", "flush", "write -q -P 2 12M 1M"]);
        assert_same(why, &read(&socket).expect("it is held"), &first);
        // One at a time; and the slot is not changed under who reads.
        let out = scratch.join("out.raw").display().to_string();
        assert_eq!(served.verb("export", &[&out, "--live"]).expect(5)["error"]["code"], "busy");
        assert_eq!(served.verb("take", &[]).expect(5)["error"]["code"], "busy");
        let kill = |process: Process, signal: &str| {
            program("kill", &[signal, &process.id().to_string()]);
            process.finish(Duration::from_secs(60))
        };
        match why {
            "its reader is killed" => {
                kill(reader, "-KILL");
                served.verb("take", &[]).expect(0);
                served.verb("export", &[&out, "--live"]).expect(0);
                assert_same("later", &std::fs::read(&out).expect("it"), &served.bytes());
                served.stop(process);
                served.verb("delete", &[]).expect(0);
                std::fs::remove_file(&out).expect("it");
                continue;
            }
            "full" => {
                served.qemu_io(&["write -q -P 3 2M 8M", "flush", "read -q -P 3 2M 8M"]);
                assert_eq!(read(&socket), None, "more than there is room for");
                let told = kill(process, "-TERM");
                assert_eq!(told.code, Some(0), "{}", told.account());
                assert!(told.stderr.contains("not held any longer"), "{}", told.stderr);
            }
            _ => {
                kill(process, if why == "its server ends" { "-TERM" } else { "-KILL" });
                // Nobody saves what is overwritten now.
                let path = served.disk.display().to_string();
                program("qemu-io", &["-f", "raw", "-c", "write -q -P 9 20M 64k", &path])
                    .expect_success();
                assert_eq!(read(&socket), None, "{why}");
            }
        }
        let told = kill(reader, "-TERM");
        assert!(told.stderr.contains("is held no longer"), "{}", told.account());
    }
}

/// Killed under load, again and again: what was flushed is there, and the snapshot is what was taken. A
/// flush that is missing shows only in a power cut; that is for the simulation (`host/live/tests/crash.rs`).
#[test]
fn a_server_killed_under_load_loses_nothing() {
    let scratch = Scratch::new();
    let served = Served::new(&scratch);
    let mut random = SplitMix64::new(setting("SNAPSLOT_SEED", 11));
    let rounds = setting("SNAPSLOT_LIVE_KILLS", 25);
    let mut process = served.start(&[]);
    let mut taken: Option<Vec<u8>> = None;
    let mut now = served.bytes();
    let mut kills_with_snapshot = 0;
    for round in 0..rounds {
        match (&taken, random.below(3)) {
            (None, _) => {
                served.verb("take", &[]).expect(0);
                taken = Some(now.clone());
            }
            (Some(then), 0) => {
                served.verb("restore", &[]).expect(0);
                now.clone_from(then);
            }
            (Some(_), 1) => {
                served.verb("delete", &[]).expect(0);
                taken = None;
            }
            _ => {}
        }
        // A machine that writes, and flushes now and then, until the server is gone.
        let stream = UnixStream::connect(&served.socket).expect("it listens");
        choose(&stream);
        let pid = process.id().to_string();
        let after = Duration::from_millis(random.between(1, 60));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(after);
            program("kill", &["-KILL", &pid]);
        });
        // Of each block what was flushed last, and everything since.
        let mut since: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        loop {
            let block = random.below(SIZE / 4096);
            let byte = random.below(256) as u8;
            since.entry(block).or_default().push(byte);
            if ask(&stream, 1, block * 4096, &[byte; 4096]).is_none() {
                break;
            }
            if random.chance(1, 40) {
                match ask(&stream, 3, 0, &[]) {
                    None => break,
                    Some(code) => assert_eq!(code, 0, "a flush failed"),
                }
                for (block, bytes) in std::mem::take(&mut since) {
                    let byte = *bytes.last().expect("one");
                    now[(block * 4096) as usize..][..4096].fill(byte);
                }
            }
        }
        killer.join().expect("a thread");
        let _ = process.finish(Duration::from_secs(30));
        kills_with_snapshot += u64::from(taken.is_some());
        process = served.start(&[]);
        // What the machine finds.
        let found = scratch.join("found.raw");
        let path = found.display().to_string();
        let _ = std::fs::remove_file(&found);
        program("qemu-img", &["convert", "-f", "raw", "-O", "raw", &served.uri, &path])
            .expect_success();
        let found = std::fs::read(&found).expect("it");
        for (i, block) in found.chunks(4096).enumerate() {
            let was = &now[i * 4096..][..block.len()];
            let one_of = since
                .get(&(i as u64))
                .is_some_and(|b| b.iter().any(|b| block.iter().all(|x| x == b)));
            assert!(
                block == was || one_of,
                "round {round}: block {i} is neither what was flushed nor what came after"
            );
        }
        now = found;
        if let Some(then) = &taken {
            let out = scratch.join("out.raw").display().to_string();
            served.verb("export", &[&out, "--force", "--no-sync"]).expect(0);
            assert_same(&format!("round {round}"), &std::fs::read(&out).expect("it"), then);
        }
    }
    println!("{rounds} kills, {kills_with_snapshot} with a snapshot held");
    assert!(kills_with_snapshot > 0);
    served.stop(process);
}

/// Story: an image was put back in place of a disk whose snapshot lay partly in that disk. The snapshot was gone
/// after that, or, its server having been killed, given back as a mixture.
#[test]
fn an_image_is_not_put_in_place_of_a_disk_that_its_snapshot_needs() {
    let scratch = Scratch::new();
    let served = Served::new(&scratch);
    let before = served.bytes();
    let image = scratch.join("other.raw");
    std::fs::write(&image, SplitMix64::new(77).bytes(SIZE as usize)).expect("room");
    let from = format!("raw:{}", image.display());
    for killed in [false, true] {
        let process = served.start(&[]);
        if !killed {
            served.verb("take", &[]).expect(0);
        }
        served.qemu_io(&["write -P 9 0 1M", "flush"]);
        match killed {
            false => served.stop(process),
            true => {
                program("kill", &["-KILL", &process.id().to_string()]);
                process.finish(Duration::from_secs(60));
            }
        }
        let now = served.bytes();
        let refused = served.verb("restore", &["--from", &from]);
        assert_eq!(refused.expect(6)["error"]["code"], "no-content", "killed: {killed}");
        assert_same("the disk", &served.bytes(), &now);
        assert_eq!(served.verb("status", &[]).slot(), "held", "killed: {killed}");
    }
    served.verb("restore", &[]).expect(0);
    assert_same("what was taken", &served.bytes(), &before);
    served.verb("delete", &[]).expect(0);
    served.verb("restore", &["--from", &from]).expect(0);
    assert_same("put back", &served.bytes(), &std::fs::read(&image).expect("it"));
}
