//! What changed on a thin volume, told by its pool's metadata.
//!
//! Judged by `thin_delta`, which reads the same metadata, and by the bytes: whatever differs lies in what is told. The
//! moment of the metadata that the engine holds meanwhile is gone afterwards, however it ends; one that somebody else
//! holds stays.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use snapslot_test_support::Ends;

use super::differs;
use crate::harness::Test;
use crate::lvm::{self, POOL, VG};
use crate::subject::{Storage, Subject};
use crate::tools::{run, try_run, within};

const CHUNK: u64 = 64 << 10;
const SIZE: u32 = 32;
const TOOL: &str = "/usr/sbin/dmsetup";
const REAL_TOOL: &str = "/run/real-tools/dmsetup";
const ARMED: &str = "/run/kill-at";

pub fn all(test: &mut Test) {
    let volume = test.step("a thin volume", |_| lvm::Volume::new(lvm::Kind::Thin, SIZE));
    let (device, quick) = (volume.device(), test.is_quick());
    test.step("nothing differs right after the take", |subject| {
        volume.scribble(1);
        subject.verb("take", volume.locator(), &[]).expect(0);
        let diff = told(subject, &volume, &[]);
        assert_eq!(diff["by-content"], false, "{diff}");
        assert_eq!(blocks(&diff), BTreeSet::new());
        assert_eq!(held(), "-");
        let status = measured(subject, &volume);
        let counts = (&status["changed-bytes"], &status["held-bytes"], &status["at-least"]);
        assert_eq!(counts, (&0.into(), &0.into(), &false.into()), "{status}");
        assert_eq!(held(), "-");
    });
    test.step("what was written and discarded since is told, as thin_delta tells it", |subject| {
        let file = fs::OpenOptions::new().write(true).open(device).expect("the device");
        for block in [0, 1, 2, 77, 78, 300, 511] {
            file.write_all_at(&[7; 4096], block * CHUNK + 8192).expect("a write");
        }
        file.sync_all().expect("a flush");
        drop(file);
        run(&format!("blkdiscard -o {} -l {} {device}", 100 * CHUNK, 5 * CHUNK));
        agrees(subject, &volume);
        for seed in if quick { 3..4 } else { 3..6 } {
            volume.scribble(seed);
            agrees(subject, &volume);
        }
    });
    test.step("while it is written", |subject| {
        let ends = Ends::default();
        std::thread::scope(|scope| {
            let _end = ends.at_the_end();
            scope.spawn(|| {
                for seed in 100.. {
                    if ends.has_come() {
                        break;
                    }
                    volume.scribble(seed);
                }
            });
            for _ in 0..if quick { 2 } else { 5 } {
                let diff = told(subject, &volume, &[]);
                assert_eq!(diff["by-content"], false, "{diff}");
            }
        });
        agrees(subject, &volume);
    });
    test.step("a restore leaves nothing that differs", |subject| {
        subject.verb("restore", volume.locator(), &[]).expect(0);
        let diff = told(subject, &volume, &[]);
        assert_eq!((&diff["by-content"], blocks(&diff)), (&Value::Bool(false), BTreeSet::new()));
    });
    test.step("a volume that grew differs where it grew", |subject| {
        run(&format!("lvextend -qq -y -L +1M {VG}/vm1"));
        let diff = told(subject, &volume, &[]);
        let from = u64::from(SIZE) << 20;
        assert_eq!(blocks(&diff), (from / CHUNK..(from + (1 << 20)) / CHUNK).collect());
        subject.verb("restore", volume.locator(), &[]).expect(0);
    });
    test.step("what somebody else holds stays held, and the bytes are compared", |subject| {
        message("reserve_metadata_snap");
        let theirs = held();
        assert_ne!(theirs, "-");
        let status = subject.verb("status", volume.locator(), &[]).expect(0)["volumes"][0].clone();
        assert_eq!(status["changed-bytes"], Value::Null, "{status}");
        let diff = told(subject, &volume, &[]);
        assert_eq!(diff["by-content"], true, "{diff}");
        assert_eq!(held(), theirs);
        message("release_metadata_snap");
        assert_eq!(told(subject, &volume, &[])["by-content"], false);
    });
    for (at, when) in [("reserve", "before it holds"), ("release", "while it holds")] {
        test.case(&format!("killed {when}: the next one lets go, and recover does"), |subject| {
            let _tool = Wrapped::install();
            // By recover, and by the next one that wants it.
            for by_recover in [true, false] {
                if quick && by_recover == (at == "reserve") {
                    continue;
                }
                fs::write(ARMED, format!("{at}_metadata_snap")).expect("armed");
                let killed = subject.verb("diff", volume.locator(), &[]);
                assert!(
                    !Path::new(ARMED).exists(),
                    "it was not killed: {}",
                    killed.process.account()
                );
                assert_eq!(held() == "-", at == "reserve", "what a killed engine holds");
                if by_recover {
                    subject.verb("recover", volume.locator(), &[]).expect(0);
                    assert_eq!(held(), "-");
                }
                agrees(subject, &volume);
            }
        });
    }
    differs::killed_exports(test, &volume, false);
    test.step("the slot is emptied", |subject| {
        subject.verb("delete", volume.locator(), &[]).expect(0);
    });
}

fn told(subject: &Subject, volume: &lvm::Volume, more: &[&str]) -> Value {
    differs::told(subject, volume.locator(), more)
}

/// The pool's blocks that lie in what is told.
fn blocks(diff: &Value) -> BTreeSet<u64> {
    differs::blocks(diff, CHUNK)
}

/// The volume's part of `status`, with its sizes: it goes without them where its pool's metadata cannot be had shortly.
#[track_caller]
fn measured(subject: &Subject, volume: &lvm::Volume) -> Value {
    let mut status = Value::Null;
    let told = within(Duration::from_secs(120), || {
        status = subject.verb("status", volume.locator(), &[]).expect(0)["volumes"][0].clone();
        !status["changed-bytes"].is_null()
    });
    assert!(told, "it tells no size of change: {status}");
    status
}

/// The same set as `thin_delta`, and none is missing of which the bytes differ.
#[track_caller]
fn agrees(subject: &Subject, volume: &lvm::Volume) {
    let by_metadata = told(subject, volume, &[]);
    assert_eq!(by_metadata["by-content"], false, "{by_metadata}");
    assert_eq!(held(), "-", "a moment is held still");
    let told_blocks = blocks(&by_metadata);
    let (by_tool, held_blocks) = by_tool(volume);
    assert_eq!(told_blocks, by_tool, "thin_delta tells otherwise");
    let status = measured(subject, volume);
    assert_eq!(status["changed-bytes"], by_metadata["changed-bytes"], "status tells otherwise");
    assert_eq!(status["held-bytes"], held_blocks * CHUNK, "{status}");
    let by_content = told(subject, volume, &["--content"]);
    assert_eq!(volume.shown(), Vec::<String>::new(), "devices of snapshots");
    assert_eq!(by_content["by-content"], true, "{by_content}");
    let missing: Vec<u64> = blocks(&by_content).difference(&told_blocks).copied().collect();
    assert_eq!(missing, Vec::<u64>::new(), "blocks whose bytes differ were not told");
}

/// The blocks that differ as `thin_delta` says, and how many of them the snapshot has.
fn by_tool(volume: &lvm::Volume) -> (BTreeSet<u64>, u64) {
    let snapshot = volume.snapshots().pop().expect("a snapshot");
    let id = |name: &str| lvm::field_of(name, "thin_id");
    let (then, now) = (id(&snapshot), id("vm1"));
    message("reserve_metadata_snap");
    let metadata = format!("/dev/mapper/{VG}-{POOL}_tmeta");
    let said = try_run(&format!("thin_delta -m --snap1 {then} --snap2 {now} {metadata}"));
    message("release_metadata_snap");
    let said = said.expect_success().text();
    let attribute = |line: &str, name: &str| -> u64 {
        let rest = line.split(&format!("{name}=\"")).nth(1).expect("an attribute");
        rest.split('"').next().and_then(|n| n.parse().ok()).expect("a number")
    };
    let (mut differing, mut held) = (BTreeSet::new(), 0);
    for line in said.lines().map(str::trim) {
        let begins = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
        if begins(&["<different", "<left_only", "<right_only"]) {
            let (begin, length) = (attribute(line, "begin"), attribute(line, "length"));
            differing.extend(begin..begin + length);
            held += if begins(&["<right_only"]) { 0 } else { length };
        }
    }
    (differing, held)
}

fn message(what: &str) {
    run(&format!("dmsetup message {VG}-{POOL}-tpool 0 {what}"));
}

/// The block of the metadata that is held; `-` for none.
fn held() -> String {
    let status = run(&format!("dmsetup status {VG}-{POOL}-tpool"));
    // start length thin-pool transaction used/total used/total held …
    status.split_whitespace().nth(6).expect("the pool's status").to_owned()
}

/// A tool that kills who calls it, once, when it is armed and the message is that.
struct Wrapped;

impl Wrapped {
    fn install() -> Wrapped {
        fs::copy(TOOL, REAL_TOOL).expect("a copy of the tool");
        let script = format!(
            "#!/bin/sh\nif [ -e {ARMED} ] && [ \"$4\" = \"$(cat {ARMED})\" ]; then\n  rm {ARMED}\n  kill -9 $PPID\n  \
             exit 1\nfi\nexec {REAL_TOOL} \"$@\"\n"
        );
        let beside = format!("{TOOL}.new");
        fs::write(&beside, script).expect("a script");
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o755)).expect("permissions");
        fs::rename(&beside, TOOL).expect("to be in the tool's place");
        Wrapped
    }
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        let _ = fs::rename(REAL_TOOL, TOOL).or_else(|_| fs::copy(REAL_TOOL, TOOL).map(drop));
    }
}
