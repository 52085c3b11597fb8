//! The engine killed before, during and after every command that changes storage.
//!
//! Method: a clean run of each verb counts its changing commands; then, for each of them and each
//! way, the same verb is run on the same storage with the tap armed, so that SIGKILL hits the
//! engine there. `recover` follows at once, while a command of the dead engine may still be
//! running. What must be true then, by the storage's own tools:
//!
//! - the slot is what it was before the verb or what it is after it, and so is the content; only a
//!   restore of a thick volume may end with its content restored and the slot empty: LVM's merge
//!   consumes the snapshot, and after a crash it is not taken again;
//! - a held slot really gives the content back; an emptied one leaves no trace at all;
//! - the next operation works without anybody typing anything else.

use crate::harness::Test;
use crate::subject::{Storage, Subject};
use crate::tap::{self, Trip};
use crate::{lvm, zfs};

pub fn thin(test: &mut Test) {
    let volume = test.step("a thin volume", |_| lvm::Volume::new(lvm::Kind::Thin, 8));
    every_command(test, &volume);
}

pub fn thick(test: &mut Test) {
    let volume = test.step("a thick volume", |_| lvm::Volume::new(lvm::Kind::Thick, 8));
    every_command(test, &volume);
}

pub fn zvol(test: &mut Test) {
    let dataset = test.step("a volume", |_| zfs::Dataset::new(zfs::Kind::Zvol, 8));
    every_command(test, &dataset);
}

pub fn mounted(test: &mut Test) {
    let dataset = test.step("a file system", |_| zfs::Dataset::new(zfs::Kind::Mounted, 8));
    every_command(test, &dataset);
}

/// A verb with what it needs to begin with.
struct Verb {
    name: &'static str,
    more: &'static [&'static str],
    /// Whether the slot is held before it.
    held_before: bool,
    /// Whether it is held after it.
    held_after: bool,
}

const VERBS: [Verb; 5] = [
    Verb { name: "take", more: &[], held_before: false, held_after: true },
    Verb { name: "restore", more: &[], held_before: true, held_after: true },
    Verb { name: "delete", more: &[], held_before: true, held_after: false },
    Verb { name: "take", more: &["--replace"], held_before: true, held_after: true },
    Verb { name: "restore", more: &["--consume"], held_before: true, held_after: false },
];

const TRIPS: [fn(u32) -> Trip; 3] = [Trip::Before, Trip::During, Trip::After];

fn every_command(test: &mut Test, storage: &dyn Storage) {
    storage.scribble(1);
    // A quick run has the verb with the most commands, killed where most can be half done.
    let (verbs, trips) = if test.is_quick() { (1..2, 1..2) } else { (0..VERBS.len(), 0..3) };
    let (verbs, trips) = (&VERBS[verbs], &TRIPS[trips]);
    for verb in verbs {
        let title = format!("{} {}", verb.name, verb.more.join(" "));
        let title = title.trim_end();
        let commands =
            test.step(&format!("{title}: a clean run, its commands counted"), |subject| {
                prepare(subject, storage, verb, 10);
                let (done, ran) =
                    tap::watch(|| subject.verb(verb.name, storage.locator(), verb.more));
                done.expect(0);
                if verb.held_after {
                    subject.verb("delete", storage.locator(), &[]).expect(0);
                }
                assert_eq!(storage.layout(), storage.base(), "after a clean {title}");
                let changing = tap::changing(&ran);
                assert!(!changing.is_empty(), "no command went through the tap: {ran:?}");
                changing
            });
        for (n, command) in (1..).zip(&commands) {
            for trip in trips.iter().map(|trip| trip(n)) {
                let name = format!("{title}: killed {trip}: {command}");
                // Whatever it left, the next round starts clean; a failure must not spoil others.
                if test.case(&name, |subject| killed(subject, storage, verb, trip)).is_none() {
                    test.step("put right by hand after the failure", |subject| {
                        mend(subject, storage);
                    });
                }
            }
        }
    }
}

/// The slot as the verb needs it, and content that differs from what the slot holds.
fn prepare(subject: &Subject, storage: &dyn Storage, verb: &Verb, seed: u64) {
    if verb.held_before {
        subject.verb("take", storage.locator(), &[]).expect(0);
    }
    storage.scribble(seed);
}

fn killed(subject: &Subject, storage: &dyn Storage, verb: &Verb, trip: Trip) {
    let locator = storage.locator();
    let old = storage.content();
    prepare(subject, storage, verb, 20);
    let new = storage.content();
    tap::arm(trip);
    let victim = subject.verb(verb.name, locator, verb.more);
    let ran = tap::log();
    let tripped = tap::tripped();
    tap::clear();
    assert!(tripped, "the command did not come: {ran:?}\n{}", victim.process.account());
    assert_eq!(victim.process.signal, Some(9), "{}", victim.process.account());

    let (recovered, mended) = tap::watch(|| subject.verb("recover", locator, &[]));
    let account = || {
        format!(
            "before the kill: {:?}\nrecover ran: {:?}\n{}\n{}",
            tap::changing(&ran),
            tap::changing(&mended),
            recovered.process.account(),
            storage.layout()
        )
    };
    assert_eq!(recovered.code(), 0, "{}", account());
    let state = subject.state(locator);
    let content = storage.content();
    let held = match state.as_str() {
        "held" => true,
        "empty" => false,
        other => panic!("after recovery the slot is {other}; {}", account()),
    };
    let restored = content == old;
    let consumed = storage.merges() && verb.name == "restore" && restored && !held;
    assert!(
        held == verb.held_before || held == verb.held_after || consumed,
        "the slot is {state}: neither what it was nor what it was to be; {}",
        account()
    );
    assert!(restored || content == new, "the content is of neither side; {}", account());
    if verb.name != "restore" {
        assert!(content == new, "{} changed the content; {}", verb.name, account());
    }
    assert_eq!(storage.snapshots().len(), usize::from(held), "{}", account());
    if held {
        // What the slot promises: which of the two it is, is told by the verb.
        storage.scribble(30);
        subject.verb("restore", locator, &[]).expect(0);
        let back = storage.content();
        match (verb.name, verb.held_before) {
            ("take", false) => back.expect(&new, "restored from the taken snapshot"),
            ("take", true) => assert!(back == old || back == new, "a mixture; {}", account()),
            _ => back.expect(&old, "restored from the snapshot"),
        }
        subject.verb("delete", locator, &[]).expect(0);
    } else if verb.name == "restore" {
        assert!(restored, "the snapshot is gone and the content was not restored; {}", account());
    }
    assert_eq!(storage.layout(), storage.base(), "{}", account());
    assert_eq!(subject.verb("check", locator, &[]).expect(0)["sound"], true);
}

/// After a failed case: whatever it left is removed with the storage's own tools.
pub fn mend(subject: &Subject, storage: &dyn Storage) {
    for snapshot in storage.snapshots() {
        storage.remove_by_hand(&snapshot);
    }
    let _ = subject.verb("recover", storage.locator(), &[]);
    let _ = subject.verb("delete", storage.locator(), &[]);
    assert_eq!(storage.layout(), storage.base(), "it could not be put right");
    assert_eq!(subject.state(storage.locator()), "empty");
}
