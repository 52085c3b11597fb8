//! A served disk in trouble: full stores and file systems, servers that were killed, clients and readers that
//! vanish, and verbs that come at the wrong moment.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use snapslot_test_support::needs::{self, ROOT};
use snapslot_test_support::{Process, Scratch, SplitMix64, assert_same};

use crate::live::{Served, ask, choose};
use crate::{MIB, program};

const LONG: Duration = Duration::from_secs(60);

fn served(scratch: &Scratch, size: u64) -> Served {
    let disk = scratch.join("vm.img");
    std::fs::write(&disk, SplitMix64::new(3).bytes(size as usize)).expect("room");
    Served::over(scratch, disk)
}

fn client(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).expect("it listens");
    choose(&stream);
    stream
}

/// Writes so many mebibytes from this one on, and gives the first error.
fn fill(stream: &UnixStream, from: u64, count: u64, byte: u8) -> u32 {
    let block = vec![byte; 64 << 10];
    let codes = (0..count * 16)
        .map(|i| ask(stream, 1, from * MIB + i * (64 << 10), &block).expect("the server is there"));
    codes.into_iter().find(|code| *code != 0).unwrap_or(0)
}

fn flush(stream: &UnixStream) -> u32 {
    ask(stream, 3, 0, &[]).expect("the server is there")
}

/// Story: `L failures` has it. Here with the server's own thread that commits.
#[test]
fn no_flush_succeeds_while_the_store_is_full_and_writes_are_to_fail() {
    let scratch = Scratch::new();
    let served = served(&scratch, 16 * MIB);
    let process = served.start(&["--store-size", "1M", "--on-full", "fail-writes"]);
    served.verb("take", &[]).expect(0);
    let stream = client(&served.socket);
    assert_eq!(fill(&stream, 0, 4, 1), 0, "it waits in memory");
    for i in 0..5 {
        assert_eq!(flush(&stream), 28, "flush {i}");
    }
    served.verb("delete", &[]).expect(0);
    assert_eq!(flush(&stream), 0);
    assert!(served.bytes()[..4 * MIB as usize].iter().all(|b| *b == 1));
    // What is in memory only when it ends is said to be lost; the snapshot is whole.
    let then = served.bytes();
    served.verb("take", &[]).expect(0);
    assert_eq!(fill(&stream, 0, 4, 2), 0, "it waits in memory");
    assert_eq!(flush(&stream), 28);
    drop(stream);
    program("kill", &["-TERM", &process.id().to_string()]);
    let done = process.finish(LONG);
    assert_eq!(done.code, Some(8), "{}", done.account());
    assert!(done.text().contains("not-durable"), "{}", done.account());
    let out = scratch.join("out.raw");
    served.verb("export", &[&out.display().to_string()]).expect(0);
    assert_same("the snapshot", &std::fs::read(&out).expect("it"), &then);
}

/// Story: `L failures` has it. Here with `open`, and with an export under way, which gave what the disk had become
/// and ended well.
#[test]
fn a_snapshot_that_is_lost_while_it_is_read_is_not_exported() {
    let scratch = Scratch::new();
    let served = served(&scratch, 64 * MIB);
    let process = served.start(&["--store-size", "1M"]);
    served.verb("take", &[]).expect(0);
    let looking = scratch.join("look");
    let opened =
        served.snapslot.start(["open", &served.volume, "--socket", &looking.display().to_string()]);
    let reader = listening(&looking);
    choose(&reader);
    assert_eq!(ask(&reader, 5, 8 * MIB, &[]), Some(22), "the socket works");
    let mut export = served.snapslot.command(["export", &served.volume, "-"]);
    // Standard output is the image, so no JSON.
    let arguments: Vec<_> =
        export.get_args().filter(|a| *a != "--json").map(ToOwned::to_owned).collect();
    let mut plain = std::process::Command::new(export.get_program());
    plain.args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).stdin(Stdio::null());
    export = plain;
    let mut export = export.spawn().expect("it starts");
    let mut out = export.stdout.take().expect("a pipe");
    out.read_exact(&mut [0; 4096]).expect("its beginning");
    let stream = client(&served.socket);
    assert_eq!(fill(&stream, 16, 40, 1), 0, "the machine goes on");
    assert_eq!(flush(&stream), 0);
    assert_eq!(served.verb("status", &[]).expect(0)["slot"]["drift"], "snapshot-lost");
    let mut rest = Vec::new();
    out.read_to_end(&mut rest).expect("the rest");
    let ended = export.wait().expect("it ends");
    assert_eq!(ended.code(), Some(8), "{} bytes were exported as the snapshot", rest.len());
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend([0; 12]);
    request.extend((16 * MIB).to_be_bytes());
    request.extend(512_u32.to_be_bytes());
    (&reader).write_all(&request).expect("a socket");
    let mut reply = [0; 16];
    (&reader).read_exact(&mut reply).expect("an answer");
    assert_eq!(reply[4..8], 5_u32.to_be_bytes(), "what is no snapshot is read as it");
    drop((stream, reader));
    end(opened, 0);
    served.stop(process);
}

fn listening(socket: &Path) -> UnixStream {
    for _ in 0..1000 {
        if let Ok(stream) = UnixStream::connect(socket) {
            return stream;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("nobody listens at {}", socket.display());
}

#[track_caller]
fn end(process: Process, code: i32) {
    program("kill", &["-TERM", &process.id().to_string()]);
    let done = process.finish(LONG);
    assert_eq!(done.code, Some(code), "{}", done.account());
}

/// A small file system in memory, unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(scratch: &Scratch, size: &str) -> Small {
        let at = scratch.join("small");
        std::fs::create_dir(&at).expect("room");
        let path = at.display().to_string();
        program("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", &path])
            .expect_success();
        Small(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let done = program("umount", &["-l", &self.0.display().to_string()]);
        if done.code != Some(0) {
            eprintln!("{}", done.account());
        }
    }
}

/// Story: a sparse disk and its store on one file system. The store filled it up, the snapshot was lost, and yet
/// every later write failed, and the slot could not be emptied, as its journal had no room.
#[test]
fn a_full_file_system_costs_the_snapshot_and_the_slot_can_be_emptied() {
    if !needs::has(&[ROOT]) {
        return;
    }
    let scratch = Scratch::new();
    let small = Small::new(&scratch, "24m");
    let disk = small.0.join("vm.img");
    let mut file = std::fs::File::create(&disk).expect("room");
    file.write_all(&vec![1; 8 * MIB as usize]).expect("room");
    file.set_len(64 * MIB).expect("a sparse file");
    drop(file);
    let served = Served::over(&scratch, disk);
    let process = served.start(&[]);
    served.verb("take", &[]).expect(0);
    let stream = client(&served.socket);
    assert_eq!((fill(&stream, 0, 8, 2), flush(&stream)), (0, 0), "the store takes it");
    // Eight of the disk, eight of the store, and ten more: for which the snapshot has to go.
    assert_eq!((fill(&stream, 8, 10, 3), flush(&stream)), (0, 0), "the machine goes on");
    assert_eq!(served.verb("status", &[]).expect(0)["slot"]["drift"], "snapshot-lost");
    assert_eq!((fill(&stream, 0, 1, 4), flush(&stream)), (0, 0));
    // Now the file system is full for good: the machine is told, and the slot can be emptied.
    assert_eq!(fill(&stream, 18, 12, 5), 28, "there is no room");
    let filler = small.0.join("filler");
    let _ = std::fs::write(&filler, vec![0; 8 * MIB as usize]);
    served.verb("delete", &[]).expect(0);
    assert_eq!(served.verb("status", &[]).slot(), "empty");
    std::fs::remove_file(&filler).expect("it is there");
    assert_eq!((fill(&stream, 0, 1, 6), flush(&stream)), (0, 0));
    drop(stream);
    served.stop(process);
}

/// Story: `serve` had the signal that ends who writes to a pipe without a reader as other commands have it: a
/// client or an asker that hung up at the wrong moment, or a log that nobody read, took the machine's disk away.
#[test]
fn a_server_outlives_who_reads_its_words() {
    let scratch = Scratch::new();
    let served = served(&scratch, 4 * MIB);
    let socket = served.socket.display().to_string();
    let mut command = served.snapslot.command(["serve", &served.volume, "--socket", &socket]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    drop(child.stderr.take());
    drop(listening(&served.socket));
    for round in 0..50 {
        // Goes before it is answered.
        let mut vanishing = UnixStream::connect(&served.socket).expect("it listens");
        let mut options = 3_u32.to_be_bytes().to_vec();
        for _ in 0..100 {
            options.extend(b"IHAVEOPT\0\0\0\x03\0\0\0\0");
        }
        let _ = vanishing.write_all(&options);
        drop(vanishing);
        // Says what is warned of.
        let mut junk = UnixStream::connect(&served.socket).expect("it listens");
        let _ = junk.write_all(&[0xff; 64]);
        let _ = junk.read_to_end(&mut Vec::new());
        let live = served.snapslot.state().join("live");
        for control in std::fs::read_dir(live).expect("a control socket").flatten() {
            let mut asker = UnixStream::connect(control.path()).expect("it listens");
            let _ = asker.write_all(b"{\"ask\":\"standing\"}\n");
        }
        assert!(child.try_wait().expect("a child").is_none(), "it ended in round {round}");
    }
    let stream = client(&served.socket);
    assert_eq!((fill(&stream, 0, 1, 1), flush(&stream)), (0, 0));
    drop(stream);
    program("kill", &["-TERM", &child.id().to_string()]);
    assert_eq!(child.wait().expect("a child").code(), Some(0));
}

/// Story: a running `open` of the snapshot kept a server that had died from being started again, as it wanted the
/// engine's lock for itself; so the machine was down until somebody stopped looking.
#[test]
fn a_server_starts_while_its_snapshot_is_looked_into() {
    let scratch = Scratch::new();
    let served = served(&scratch, 8 * MIB);
    let then = served.bytes();
    let mut process = served.start(&[]);
    served.verb("take", &[]).expect(0);
    served.qemu_io(&["write -q -P 1 0 1M", "flush"]);
    let looking = scratch.join("look");
    let path = looking.display().to_string();
    let opened = served.snapslot.start(["open", &served.volume, "--socket", &path]);
    drop(listening(&looking));
    process.kill();
    process.finish(LONG);
    let process = served.start(&[]);
    served.qemu_io(&["write -q -P 2 2M 1M", "flush"]);
    let copy = scratch.join("copy").display().to_string();
    let uri = format!("nbd+unix:///?socket={path}");
    program("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, &copy]).expect_success();
    assert_same("the snapshot", &std::fs::read(&copy).expect("it"), &then);
    end(opened, 0);
    served.stop(process);
}

/// Story: a disk that was given another size while it was not served could neither be served nor have its slot
/// emptied.
#[test]
fn a_resized_disk_is_served_and_its_slot_can_be_emptied() {
    for (serve_first, kill) in [(false, false), (false, true), (true, false), (true, true)] {
        let scratch = Scratch::new();
        let served = served(&scratch, 8 * MIB);
        let mut process = served.start(&[]);
        served.verb("take", &[]).expect(0);
        served.qemu_io(&["write -q -P 1 0 1M", "flush"]);
        if kill {
            process.kill();
            process.finish(LONG);
        } else {
            served.stop(process);
        }
        let file = std::fs::File::options().write(true).open(&served.disk).expect("a disk");
        file.set_len(12 * MIB).expect("room");
        drop(file);
        assert_eq!(served.verb("status", &[]).expect(0)["slot"]["drift"], "snapshot-lost");
        assert_eq!(served.verb("restore", &[]).code(), 8);
        if serve_first {
            let process = served.start(&[]);
            served.qemu_io(&["write -q -P 2 10M 1M", "flush"]);
            assert_eq!(served.verb("status", &[]).expect(0)["slot"]["drift"], "snapshot-lost");
            program("kill", &["-TERM", &process.id().to_string()]);
            let done = process.finish(LONG);
            assert!(done.stderr.contains("LOST"), "nobody was told: {}", done.account());
        }
        served.verb("delete", &[]).expect(0);
        assert_eq!(served.verb("status", &[]).slot(), "empty");
        let process = served.start(&[]);
        served.verb("take", &[]).expect(0);
        served.stop(process);
    }
}

/// Story: a snapshot that had to be given up when the server began was told to nobody.
#[test]
fn what_is_lost_at_the_beginning_is_said() {
    let scratch = Scratch::new();
    let served = served(&scratch, 4 * MIB);
    let process = served.start(&[]);
    served.verb("take", &[]).expect(0);
    served.stop(process);
    let path = served.disk.display().to_string();
    program("qemu-io", &["-f", "raw", "-c", "write -q -P 7 1M 4k", &path]).expect_success();
    let process = served.start(&[]);
    program("kill", &["-TERM", &process.id().to_string()]);
    let done = process.finish(LONG);
    assert!(done.stderr.contains("LOST"), "{}", done.account());
    assert!(done.stderr.contains("past its server"), "{}", done.account());
}

/// Story: told to end, `serve -- COMMAND` waited for a command that nobody had told.
#[test]
fn a_command_is_told_to_end_and_served_until_it_has() {
    let scratch = Scratch::new();
    let served = served(&scratch, 4 * MIB);
    let ready = scratch.join("ready").display().to_string();
    program("mkfifo", &[&ready]).expect_success();
    // What a machine does when it is told: it writes what it has left.
    let script =
        "trap 'qemu-io -f raw -c \"write -q -P 9 0 64k\" -c flush \"$NBD_URI\"; exit 7' TERM
        echo > \"$0\"; while :; do sleep 0.1; done";
    let process =
        served.snapslot.start(["serve", &served.volume, "--", "sh", "-c", script, &ready]);
    std::fs::read(&ready).expect("it is ready");
    end(process, 7);
    assert!(served.bytes()[..64 << 10].iter().all(|b| *b == 9), "it was not served to its end");
}

/// The moment is of the disk that is served, whatever has its name by now.
#[test]
fn the_present_disk_is_that_of_its_server() {
    let scratch = Scratch::new();
    let served = served(&scratch, 4 * MIB);
    let first = served.bytes();
    let process = served.start(&[]);
    let other = scratch.join("other");
    std::fs::write(&other, vec![9; first.len()]).expect("room");
    std::fs::rename(&other, &served.disk).expect("a name");
    let out = scratch.join("out.raw");
    served.verb("export", &[&out.display().to_string(), "--live"]).expect(0);
    assert_same("the disk that is served", &std::fs::read(&out).expect("it"), &first);
    served.stop(process);
}

/// Zeroes, trims and writes that are to be durable at once, as QEMU sends them, with a snapshot and without one.
#[test]
fn what_qemu_zeroes_and_trims_is_what_the_disk_has() {
    let scratch = Scratch::new();
    let served = served(&scratch, 16 * MIB);
    let process = served.start(&[]);
    let mut now = served.bytes();
    let mut fill = |from: usize, length: usize, byte: u8| now[from..from + length].fill(byte);
    for (round, at) in [0, 8 * MIB as usize].into_iter().enumerate() {
        let m = |n: usize| format!("{}", at + n);
        served.qemu_io(&[
            &format!("write -q -z {} 64k", m(4096)),
            &format!("write -q -z -u {} 96k", m(1 << 20)),
            &format!("write -q -z {} 1k", m((2 << 20) + 512)),
            &format!("write -q -f -P 9 {} 4k", m(3 << 20)),
            &format!("discard -q {} 64k", m(4 << 20)),
            &format!("write -q -P 8 {} 64k", m(4 << 20)),
            "flush",
        ]);
        fill(at + 4096, 64 << 10, 0);
        fill(at + (1 << 20), 96 << 10, 0);
        fill(at + (2 << 20) + 512, 1 << 10, 0);
        fill(at + (3 << 20), 4096, 9);
        fill(at + (4 << 20), 64 << 10, 8);
        if round == 0 {
            served.verb("take", &[]).expect(0);
        }
    }
    assert_same("the disk", &served.bytes(), &now);
    let then = {
        let mut then = SplitMix64::new(3).bytes(16 * MIB as usize);
        then[..8 * MIB as usize].copy_from_slice(&now[..8 * MIB as usize]);
        then
    };
    let out = scratch.join("out.raw");
    served.verb("export", &[&out.display().to_string()]).expect(0);
    assert_same("the snapshot", &std::fs::read(&out).expect("it"), &then);
    served.verb("restore", &[]).expect(0);
    assert_same("restored", &served.bytes(), &then);
    served.stop(process);
}

/// Story: a device that is served was claimed by nobody: it could be mounted under the machine that wrote it.
#[test]
fn a_served_device_is_claimed() {
    if !needs::has(&[ROOT]) {
        return;
    }
    let scratch = Scratch::new();
    let file = scratch.join("file");
    std::fs::write(&file, vec![1; 8 * MIB as usize]).expect("room");
    let made = program("losetup", &["--find", "--show", &file.display().to_string()]);
    let device = PathBuf::from(made.expect_success().text().trim());
    let detach = Detach(device.clone());
    let served = Served::over(&scratch, device.clone());
    let process = served.start(&[]);
    let claim = || {
        let flags = 0o200; // O_EXCL
        std::fs::File::options().read(true).custom_flags(flags).open(&device)
    };
    let refused = claim().expect_err("somebody else claims a device that is served");
    assert_eq!(refused.raw_os_error(), Some(16), "{refused}");
    let out = scratch.join("out.raw");
    served.verb("export", &[&out.display().to_string(), "--live"]).expect(0);
    assert_same("its present content", &std::fs::read(&out).expect("it"), &served.bytes());
    served.verb("take", &[]).expect(0);
    served.qemu_io(&["write -q -P 2 0 1M", "flush"]);
    served.restored();
    assert!(served.bytes().iter().all(|b| *b == 1));
    served.verb("delete", &[]).expect(0);
    served.stop(process);
    claim().expect("it is free again");
    drop(detach);
}

struct Detach(PathBuf);

impl Drop for Detach {
    fn drop(&mut self) {
        let done = program("losetup", &["--detach", &self.0.display().to_string()]);
        if done.code != Some(0) {
            eprintln!("{}", done.account());
        }
    }
}
