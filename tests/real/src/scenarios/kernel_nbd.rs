//! The kernel's own NBD client: a file system on a disk that is served, taken, restored and looked into.
//!
//! Judged by the file system's files, by its checker, and by the bytes of the disk: what is mounted through
//! `/dev/nbd0` is what a machine's kernel would see.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use snapslot_test_support::{Process, SplitMix64, assert_same};

use crate::harness::Test;
use crate::subject::Subject;
use crate::tools::{run, try_run, within};

/// On a file system that can make holes.
const DISK: &str = "/mnt/store/nbd-disk.img";
const STORE: &str = "/dev/ram2";
const SOCKET: &str = "/run/nbd-test.sock";
const LOOK: &str = "/run/nbd-look.sock";
const DEVICE: &str = "/dev/nbd0";
/// As many bytes as files were written.
const COUNT: &str = "/run/nbd-count";
const LONG: Duration = Duration::from_secs(60);
const MOUNT: &str = "/mnt/nbd";
const MIB: usize = 1 << 20;
const SIZE: usize = 48 * MIB;

fn volume() -> String {
    format!("raw:{DISK}")
}

fn served(subject: &Subject, verb: &str, socket: &str) -> Process {
    subject.start(verb, &volume(), &["--socket", socket]).listening(Path::new(socket))
}

fn end(process: Process) {
    run(&format!("kill -TERM {}", process.id()));
    let done = process.finish(Duration::from_secs(60));
    assert_eq!(done.code, Some(0), "{}", done.account());
}

fn attach(socket: &str, more: &str) {
    run(&format!("nbd-client -unix {socket} {DEVICE}{more}"));
    let began = Instant::now();
    while run(&format!("blockdev --getsize64 {DEVICE}")).trim() == "0" {
        assert!(began.elapsed() < Duration::from_secs(30), "{DEVICE} has no size");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn detach() {
    run(&format!("nbd-client -d {DEVICE}"));
}

fn put(name: &str, seed: u64, bytes: usize) -> Vec<u8> {
    let all = SplitMix64::new(seed).bytes(bytes);
    std::fs::write(format!("{MOUNT}/{name}"), &all).expect("room on the served disk");
    all
}

fn get(name: &str) -> Vec<u8> {
    std::fs::read(format!("{MOUNT}/{name}")).unwrap_or_else(|e| panic!("{name}: {e}"))
}

pub fn all(test: &mut Test) {
    test.step("the kernel attaches a served disk and makes a file system on it", |subject| {
        for left in [SOCKET, LOOK] {
            let _ = std::fs::remove_file(left);
        }
        run(&format!("mkfs.ext4 -q -F {STORE}"));
        std::fs::create_dir_all("/mnt/store").expect("a place to mount");
        run(&format!("mount {STORE} /mnt/store"));
        run("modprobe nbd nbds_max=2 max_part=0");
        std::fs::create_dir_all(MOUNT).expect("a place to mount");
        std::fs::File::create(DISK).and_then(|f| f.set_len(SIZE as u64)).expect("room");
        let server = served(subject, "serve", SOCKET);
        attach(SOCKET, "");
        assert_eq!(run(&format!("blockdev --getsize64 {DEVICE}")).trim(), SIZE.to_string());
        run(&format!("mkfs.ext4 -q {DEVICE}"));
        run(&format!("mount {DEVICE} {MOUNT}"));
        let first = put("first", 1, 3 * MIB);
        run(&format!("sync -f {MOUNT}"));
        run(&format!("umount {MOUNT}"));
        detach();
        end(server);
        // What was flushed is on the disk itself.
        let checked = try_run(&format!("e2fsck -fn {DISK}"));
        run("modprobe loop");
        run(&format!("mount -o loop,ro {DISK} {MOUNT}"));
        let found = get("first");
        run(&format!("umount {MOUNT}"));
        assert_eq!(checked.code, Some(0), "{}", checked.account());
        assert_same("a file on the disk", &found, &first);
    });
    test.step("a take while it is written is a moment of it, and a restore leads back there", |subject| {
        let server = served(subject, "serve", SOCKET);
        attach(SOCKET, "");
        run(&format!("mount {DEVICE} {MOUNT}"));
        let before = put("before", 2, 2 * MIB);
        run(&format!("sync -f {MOUNT}"));
        // Somebody writes and flushes all the time.
        let mut writer = Process::start({
            let mut command = std::process::Command::new("/bin/sh");
            let line = format!(
                "i=0; while :; do dd if=/dev/urandom of={MOUNT}/busy$((i % 4)) bs=64k count=16 conv=fsync status=none || exit 1; \
                 i=$((i + 1)); printf . >>{COUNT}; done"
            );
            command.args(["-c", &line]);
            command
        });
        let written = || fs::read_to_string(COUNT).unwrap_or_default().len();
        let writes_on = || {
            let before = written();
            assert!(within(LONG, || written() > before), "nothing is written");
        };
        writes_on();
        let taken = subject.verb("take", &volume(), &[]);
        writes_on();
        assert!(!writer.has_ended(), "the machine's writes failed");
        writer.kill();
        let _ = writer.finish(Duration::from_secs(60));
        taken.expect(0);
        assert_eq!(taken.slot(), "held");
        put("after", 3, 4 * MIB);
        put("before", 4, MIB);
        run(&format!("umount {MOUNT}"));
        detach();
        let changed = subject.verb("diff", &volume(), &[]);
        assert!(changed.expect(0)["volumes"][0]["changed-bytes"].as_u64() >= Some(4 * MIB as u64));
        subject.verb("restore", &volume(), &[]).expect(0);
        attach(SOCKET, "");
        // A power cut's state: the journal is replayed, and then nothing is wrong.
        run(&format!("mount {DEVICE} {MOUNT}"));
        let (found, after) = (get("before"), std::path::Path::new(MOUNT).join("after").exists());
        run(&format!("umount {MOUNT}"));
        let checked = try_run(&format!("e2fsck -fn {DEVICE}"));
        detach();
        assert_same("a file of before the take", &found, &before);
        assert!(!after, "a file of after the take is there");
        assert_eq!(checked.code, Some(0), "{}", checked.account());
        end(server);
    });
    test.step("the snapshot is looked into, and cannot be written", |subject| {
        assert_eq!(subject.state(&volume()), "held");
        let look = served(subject, "open", LOOK);
        attach(LOOK, "");
        assert_eq!(run(&format!("blockdev --getro {DEVICE}")).trim(), "1");
        let written = try_run(&format!("dd if=/dev/zero of={DEVICE} bs=4096 count=1 conv=fsync"));
        run(&format!("mount -o ro,noload {DEVICE} {MOUNT}"));
        let found = get("first");
        run(&format!("umount {MOUNT}"));
        detach();
        end(look);
        assert_ne!(written.code, Some(0), "{}", written.account());
        assert_same("a file of the snapshot", &found, &SplitMix64::new(1).bytes(3 * MIB));
    });
    test.case("a trim reaches the disk", |subject| {
        // While a snapshot is held all stays.
        subject.verb("delete", &volume(), &[]).expect(0);
        let server = served(subject, "serve", SOCKET);
        attach(SOCKET, "");
        run(&format!("mount {DEVICE} {MOUNT}"));
        put("large", 5, 16 * MIB);
        run(&format!("sync -f {MOUNT}"));
        let blocks =
            || std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(DISK).expect("it"));
        let full = blocks();
        std::fs::remove_file(format!("{MOUNT}/large")).expect("it");
        run(&format!("sync -f {MOUNT}"));
        run(&format!("fstrim {MOUNT}"));
        run(&format!("umount {MOUNT}"));
        let trimmed = blocks();
        detach();
        end(server);
        assert!(trimmed + 16 * 1024 < full, "{full} blocks before the trim, {trimmed} after it");
    });
    test.case(
        "a server that is killed is started again, and the disk has what was flushed",
        |subject| {
            let mut server = served(subject, "serve", SOCKET);
            attach(SOCKET, "");
            run(&format!("mount {DEVICE} {MOUNT}"));
            subject.verb("take", &volume(), &[]).expect(0);
            let flushed = put("flushed", 6, 2 * MIB);
            run(&format!("sync -f {MOUNT}"));
            server.kill();
            let _ = server.finish(Duration::from_secs(60));
            let _ = try_run(&format!("umount -f -l {MOUNT}"));
            let _ = try_run(&format!("nbd-client -d {DEVICE}"));
            let detached = || !Path::new("/sys/block/nbd0/pid").exists();
            assert!(within(LONG, detached), "it is attached still");
            let server = served(subject, "serve", SOCKET);
            attach(SOCKET, "");
            run(&format!("mount {DEVICE} {MOUNT}"));
            let found = get("flushed");
            run(&format!("umount {MOUNT}"));
            let checked = try_run(&format!("e2fsck -fn {DEVICE}"));
            detach();
            assert_same("what was flushed", &found, &flushed);
            assert_eq!(checked.code, Some(0), "{}", checked.account());
            assert_eq!(subject.state(&volume()), "held");
            subject.verb("delete", &volume(), &[]).expect(0);
            end(server);
        },
    );
    test.step("nothing is left", |_| {
        // An entry keeps its directory open.
        let entries = std::fs::read_dir("/mnt/store").expect("it").flatten();
        let names: Vec<_> = entries.map(|e| e.file_name()).collect();
        assert!(names.iter().all(|n| *n == "nbd-disk.img" || *n == "lost+found"), "{names:?}");
        run("umount /mnt/store");
    });
}
