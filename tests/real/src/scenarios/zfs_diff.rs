//! What was written to a ZFS volume since the take, told by `zfs send`.
//!
//! Judged by what was written, to the block, and by the bytes: whatever differs lies in what is told. The snapshot that
//! is made for it is gone afterwards, and the slot's is hidden again, however it ends.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use snapslot_test_support::Ends;

use super::differs::{self, blocks, told};
use crate::harness::Test;
use crate::subject::{Storage, Subject};
use crate::tap::{self, Trip};
use crate::tools::run;
use crate::zfs::{self, DATASET, Dataset, Kind, device};

/// Of the volume.
const BLOCK: u64 = 16 << 10;
const SIZE: u32 = 64;

pub fn all(test: &mut Test) {
    let volume = test.step("a volume, half written", |_| {
        let volume = Dataset::new(Kind::Zvol, SIZE);
        // The small pool has no room to set aside for each of its snapshots.
        run(&format!("zfs set refreservation=none {DATASET}"));
        volume
    });
    let quick = test.is_quick();
    test.step("nothing differs right after the take", |subject| {
        // Wholly where the first indirect block tells of, one block where the second does, nothing behind.
        write((0..1024).chain([1500, 3000]), 1);
        subject.verb("take", volume.locator(), &[]).expect(0);
        same(&differing(subject, &volume), []);
    });
    test.step("what was written and discarded since is told, to the block", |subject| {
        let written = [0, 1, 2, 77, 300, 1023, 1024, 2047];
        write(written, 2);
        run(&format!("blkdiscard -o {} -l {} {}", 100 * BLOCK, 5 * BLOCK, device()));
        // The last block that there was.
        run(&format!("blkdiscard -o {} -l {} {}", 2900 * BLOCK, 1000 * BLOCK, device()));
        zfs::settle();
        same(&differing(subject, &volume), written.into_iter().chain(100..105).chain([3000]));
        agrees(subject, &volume);
    });
    test.step("holes beside are told where the snapshot cannot be shown", |subject| {
        let before = differing(subject, &volume);
        write([3500], 2);
        // Without udev no device gets a name.
        run("udevadm control --stop-exec-queue");
        let now = differing(subject, &volume);
        run("udevadm control --start-exec-queue");
        zfs::settle();
        let more = &now - &before;
        assert!(more.contains(&3500) && more.contains(&1025), "{:?}", more.first());
        same(&(&differing(subject, &volume) - &before), [3500]);
    });
    test.step("others' snapshots in between do not matter", |subject| {
        run(&format!("zfs snapshot {DATASET}@others"));
        let before = differing(subject, &volume);
        write([500], 3);
        same(&(&differing(subject, &volume) - &before), [500]);
        run(&format!("zfs destroy {DATASET}@others"));
    });
    test.step("while it is in use and written", |subject| {
        let ends = Ends::default();
        std::thread::scope(|scope| {
            let _end = ends.at_the_end();
            scope.spawn(|| {
                let file = fs::OpenOptions::new().write(true).open(device()).expect("the device");
                for block in (700..900).cycle() {
                    if ends.has_come() {
                        break;
                    }
                    file.write_all_at(&[4; BLOCK as usize], block * BLOCK).expect("a write");
                }
            });
            for _ in 0..if quick { 2 } else { 5 } {
                differing(subject, &volume);
            }
        });
        zfs::settle();
        agrees(subject, &volume);
    });
    test.step("while it is written its present content is exported, of one moment", |subject| {
        let write = |turn: u64, file: &fs::File| {
            let (block, round) = (700 + turn % 200, 10 + (turn / 200) as u8);
            file.write_all_at(&[round; BLOCK as usize], block * BLOCK).expect("a write");
        };
        // Each write has ended before the next one begins.
        let mut options = fs::OpenOptions::new();
        let file = options.write(true).custom_flags(libc::O_SYNC).open(device());
        let file = file.expect("the device");
        (0..200).for_each(|turn| write(turn, &file));
        let ends = Ends::default();
        std::thread::scope(|scope| {
            let _end = ends.at_the_end();
            scope.spawn(|| {
                (200..).take_while(|_| !ends.has_come()).for_each(|turn| write(turn, &file))
            });
            for _ in 0..if quick { 2 } else { 6 } {
                let out = "/tmp/exported.raw";
                let words = [out, "--live", "--force", "--no-sync"];
                subject.verb("export", volume.locator(), &words).expect(0);
                let bytes = fs::read(out).expect("the image");
                assert_of_one_moment(&bytes[(700 * BLOCK) as usize..(900 * BLOCK) as usize]);
                only_the_slots(&volume);
            }
            // By content, too.
            let diff = told(subject, volume.locator(), &["--content"]);
            assert_eq!(diff["by-content"], true, "{diff}");
        });
        only_the_slots(&volume);
        drop(file);
        zfs::settle();
    });
    test.step("a restore leaves nothing that differs", |subject| {
        subject.verb("restore", volume.locator(), &[]).expect(0);
        zfs::settle();
        same(&differing(subject, &volume), []);
    });
    test.step("a volume that shrank and grew differs where it lost something", |subject| {
        // Half of what was written is cut off; what reads zero now was something else.
        run(&format!("zfs set volsize={}M {DATASET}", SIZE / 8));
        zfs::settle();
        agrees(subject, &volume);
        run(&format!("zfs set volsize={SIZE}M {DATASET}"));
        zfs::settle();
        agrees(subject, &volume);
        run(&format!("zfs set volsize={}M {DATASET}", SIZE + 1));
        zfs::settle();
        agrees(subject, &volume);
        subject.verb("restore", volume.locator(), &[]).expect(0);
        zfs::settle();
        write([9], 5);
        same(&differing(subject, &volume), [9]);
    });
    test.step(
        "what is discarded up to the end is told, wherever the last block is then",
        |subject| {
            subject.verb("delete", volume.locator(), &[]).expect(0);
            write([2100, 3000], 8);
            subject.verb("take", volume.locator(), &[]).expect(0);
            // Within an indirect block that stays, and with it.
            for from in [2900, 2048] {
                let length = u64::from(SIZE) * 64 - from;
                run(&format!("blkdiscard -o {} -l {} {}", from * BLOCK, length * BLOCK, device()));
                zfs::settle();
                agrees(subject, &volume);
                let expected: &[u64] = if from == 2900 { &[3000] } else { &[2100, 3000] };
                same(&differing(subject, &volume), expected.iter().copied());
            }
            subject.verb("restore", volume.locator(), &[]).expect(0);
            zfs::settle();
        },
    );
    test.case("a snapshot that is made after its engine was killed is not forgotten", |subject| {
        let held = tap::Held::arm(1);
        let process = subject.start("diff", volume.locator(), &[]);
        held.wait();
        run(&format!("kill -KILL {}", process.id()));
        process.finish(std::time::Duration::from_secs(60));
        // The command has the note still.
        subject.verb("recover", volume.locator(), &[]).expect(0);
        held.let_go();
        let is_there = || volume.snapshots().iter().any(|name| name.contains("@snapslot-now-"));
        for _ in 0..100 {
            if is_there() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(is_there(), "it was not made");
        tap::clear();
        std::thread::sleep(std::time::Duration::from_millis(500));
        subject.verb("recover", volume.locator(), &[]).expect(0);
        only_the_slots(&volume);
    });
    // The snapshot, the sending and as much of what the slot holds, the destroying.
    for n in [1, 2, 4] {
        for trip in [Trip::Before(n), Trip::During(n), Trip::After(n)] {
            // What is destroyed at the end is as it was after the sending.
            if quick && (n == 4 || matches!(trip, Trip::During(_))) {
                continue;
            }
            test.case(&format!("killed, {trip}: nothing is left by who comes next"), |subject| {
                for next in ["recover", "diff", "restore"] {
                    if quick && (next == "restore") != (n == 2) {
                        continue;
                    }
                    write([9], 5);
                    tap::arm(trip);
                    let killed = subject.verb("diff", volume.locator(), &[]);
                    let (tripped, ran) = (tap::tripped(), tap::log());
                    tap::clear();
                    assert!(tripped, "it was not killed: {ran:?}\n{}", killed.process.account());
                    subject.verb(next, volume.locator(), &[]).expect(0);
                    only_the_slots(&volume);
                }
                zfs::settle();
                write([9], 5);
                same(&differing(subject, &volume), [9]);
            });
        }
    }
    test.step("where no snapshot can be made the bytes are compared", |subject| {
        write([9], 6);
        tap::arm(Trip::Fail(1, 1));
        let diff = told(subject, volume.locator(), &[]);
        assert!(tap::tripped(), "the command did not come");
        tap::clear();
        assert_eq!((&diff["by-content"], blocks(&diff, BLOCK)), (&true.into(), [9].into()));
        only_the_slots(&volume);
    });
    differs::killed_exports(test, &volume, false);
    differs::killed_exports(test, &volume, true);
    test.step("the slot is emptied", |subject| {
        subject.verb("delete", volume.locator(), &[]).expect(0);
    });
    let volume = test.step("an encrypted one", |_| Dataset::new(Kind::EncryptedZvol, SIZE));
    test.step("told with its key and without", |subject| {
        write(0..1024, 6);
        subject.verb("take", volume.locator(), &[]).expect(0);
        write([3, 400, 511, 512], 7);
        same(&differing(subject, &volume), [3, 400, 511, 512]);
        // Without it there is no device. Who looks at one has it open.
        zfs::settle();
        run(&format!("zfs unload-key {DATASET}"));
        same(&differing(subject, &volume), [3, 400, 511, 512]);
        run(&format!("zfs load-key {DATASET}"));
        zfs::wait_for_node();
        subject.verb("delete", volume.locator(), &[]).expect(0);
    });
}

/// Writes these blocks wholly.
fn write(blocks: impl IntoIterator<Item = u64>, seed: u8) {
    let file = fs::OpenOptions::new().write(true).open(device()).expect("the device");
    for block in blocks {
        let bytes: Vec<u8> = (0..BLOCK).map(|i| (i * 31 + block) as u8 ^ seed).collect();
        file.write_all_at(&bytes, block * BLOCK).expect("a write");
    }
    file.sync_all().expect("a flush");
    drop(file);
    zfs::settle();
}

/// What is told from metadata, and nothing else is left of it.
#[track_caller]
fn differing(subject: &Subject, volume: &Dataset) -> BTreeSet<u64> {
    let diff = told(subject, volume.locator(), &[]);
    assert_eq!(diff["by-content"], false, "{diff}");
    only_the_slots(volume);
    assert_eq!(volume.shown(), Vec::<String>::new(), "the slot's is shown still");
    blocks(&diff, BLOCK)
}

/// Says only what is not the same.
#[track_caller]
fn same(found: &BTreeSet<u64>, expected: impl IntoIterator<Item = u64>) {
    let expected: BTreeSet<u64> = expected.into_iter().collect();
    let some = |of: &BTreeSet<u64>, but: &BTreeSet<u64>| -> Vec<u64> {
        of.difference(but).take(20).copied().collect()
    };
    let (more, missing) = (some(found, &expected), some(&expected, found));
    assert!(more.is_empty() && missing.is_empty(), "told besides: {more:?}, not told: {missing:?}");
}

#[track_caller]
fn only_the_slots(volume: &Dataset) {
    let left: Vec<_> =
        volume.snapshots().into_iter().filter(|name| name.contains("@snapslot-now-")).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// What was written block after block, round after round: up to where the last write was going on it is of one round,
/// from there on of the round before.
#[track_caller]
fn assert_of_one_moment(bytes: &[u8]) {
    let last = bytes.iter().copied().max().unwrap_or_default();
    let whole = |block: &&[u8], round: u8| block.iter().all(|byte| *byte == round);
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK as usize).collect();
    let come = blocks.iter().take_while(|block| whole(block, last)).count();
    let rest = blocks[come..].iter().skip_while(|block| !whole(block, last - 1));
    let written = rest.clone().count();
    assert!(rest.clone().all(|block| whole(block, last - 1)), "later blocks are there");
    assert!(come + written + 1 >= blocks.len(), "of {} blocks {come} and {written}", blocks.len());
    let between = blocks.get(come).filter(|_| come + written < blocks.len());
    assert!(between.is_none_or(|b| b.iter().all(|byte| (last - 1..=last).contains(byte))));
}

/// None is missing of which the bytes differ.
#[track_caller]
fn agrees(subject: &Subject, volume: &Dataset) {
    let by_metadata = differing(subject, volume);
    let by_content = told(subject, volume.locator(), &["--content"]);
    assert_eq!(by_content["by-content"], true, "{by_content}");
    let missing = &blocks(&by_content, BLOCK) - &by_metadata;
    let some: Vec<_> = missing.iter().take(20).collect();
    assert!(missing.is_empty(), "their bytes differ: {some:?}");
}
