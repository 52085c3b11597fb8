//! The whole life of a slot: take, restore as often as one likes, replace, consume, delete.
//!
//! Judged by the storage's own tools and by the content, byte by byte; the engine's word is
//! compared with theirs.

use snapslot_test_support::assert_same;

use crate::harness::Test;
use crate::subject::{Content, Storage, Subject, occupant};
use crate::{lvm, tap, zfs};

pub fn thin(test: &mut Test) {
    let volume = test.step("a thin volume", |_| lvm::Volume::new(lvm::Kind::Thin, 16));
    whole(test, &volume);
}

pub fn thick(test: &mut Test) {
    let volume = test.step("a thick volume", |_| lvm::Volume::new(lvm::Kind::Thick, 16));
    whole(test, &volume);
}

pub fn zvol(test: &mut Test) {
    dataset(test, zfs::Kind::Zvol);
}

pub fn mounted(test: &mut Test) {
    dataset(test, zfs::Kind::Mounted);
}

pub fn unmounted(test: &mut Test) {
    dataset(test, zfs::Kind::Unmounted);
}

pub fn encrypted(test: &mut Test) {
    dataset(test, zfs::Kind::Encrypted);
}

pub fn encrypted_zvol(test: &mut Test) {
    dataset(test, zfs::Kind::EncryptedZvol);
}

fn dataset(test: &mut Test, kind: zfs::Kind) {
    let dataset = test.step("a dataset", |_| zfs::Dataset::new(kind, 16));
    whole(test, &dataset);
}

/// A dry run of a verb: no command that changes anything, nothing changed, a plan shown.
pub fn dry(test: &mut Test, storage: &dyn Storage, verb: &str) {
    test.case(&format!("a dry {verb} changes nothing"), |subject| {
        let (layout, content) = (storage.layout(), storage.content());
        let (outcome, ran) = tap::watch(|| subject.verb(verb, storage.locator(), &["--dry-run"]));
        let phases = outcome.expect(0)["volumes"][0]["plan"]["phases"].as_array().map(Vec::len);
        assert!(phases.is_some_and(|n| n > 0), "no plan shown: {}", outcome.process.account());
        assert_eq!(tap::changing(&ran), Vec::<String>::new(), "commands of a dry {verb}");
        assert_eq!(storage.layout(), layout);
        storage.content().expect(&content, &format!("after a dry {verb}"));
    });
}

/// The snapshot as an image of its own: a device's bytes; a file system has none.
fn exported(subject: &Subject, storage: &dyn Storage, first: &Content) {
    let out = "/tmp/exported.raw";
    let export = || subject.verb("export", storage.locator(), &[out, "--force"]);
    let Content::Bytes(bytes) = first else {
        assert_eq!(export().expect(6)["error"]["code"], "no-content");
        return;
    };
    // Its device is hidden before and after.
    let layout = storage.layout();
    export().expect(0);
    assert_same("the export", &std::fs::read(out).expect("the export"), bytes);
    assert_eq!(storage.layout(), layout, "after an export");
    assert_eq!(storage.shown(), Vec::<String>::new(), "devices of snapshots");
    std::fs::remove_file(out).expect("the export");
}

fn whole(test: &mut Test, storage: &dyn Storage) {
    let locator = storage.locator();
    storage.scribble(1);
    let first = storage.content();
    dry(test, storage, "take");
    let mark = test.step("take holds the slot", |subject| {
        let taken = subject.verb("take", locator, &["--note", "before the upgrade"]);
        taken.expect(0);
        assert_eq!(taken.slot(), "held");
        let (mark, name) = occupant(&taken);
        assert_eq!(storage.snapshots().len(), 1, "{}", storage.layout());
        assert!(
            storage.snapshots()[0].contains(name.trim_start_matches('@')),
            "the engine calls it {name}, the tools {:?}",
            storage.snapshots()
        );
        storage.content().expect(&first, "after take");
        mark
    });
    test.case("the slot is held: a second take is refused", |subject| {
        let layout = storage.layout();
        let (again, ran) = tap::watch(|| subject.verb("take", locator, &[]));
        assert_eq!(again.expect(3)["error"]["code"], "slot-held");
        assert_eq!(tap::changing(&ran), Vec::<String>::new());
        assert_eq!(storage.layout(), layout);
    });
    test.case("status tells the same, and only looks", |subject| {
        let (status, ran) = tap::watch(|| subject.verb("status", locator, &[]));
        status.expect(0);
        assert_eq!((status.slot(), occupant(&status).0.as_str()), ("held", mark.as_str()));
        assert_eq!(tap::changing(&ran), Vec::<String>::new());
        assert!(!ran.is_empty(), "the storage was not even looked at");
        let note = &status.expect(0)["slot"]["occupant"]["note"];
        assert_eq!(note, "before the upgrade");
    });
    storage.scribble(2);
    test.case("what the slot holds is exported, or it is said what stands in the way", |subject| {
        exported(subject, storage, &first);
    });
    dry(test, storage, "restore");
    test.step("restore gives back exactly what was, and keeps the slot", |subject| {
        let restored = subject.verb("restore", locator, &[]);
        restored.expect(0);
        storage.content().expect(&first, "after restore");
        assert_eq!(restored.slot(), "held");
        assert_eq!(subject.state(locator), "held");
        assert_eq!(storage.snapshots().len(), 1, "{}", storage.layout());
    });
    test.step("restore works again, and again", |subject| {
        for seed in [3, 4] {
            storage.scribble(seed);
            subject.verb("restore", locator, &[]).expect(0);
            storage.content().expect(&first, "after another restore");
        }
        assert_eq!(storage.snapshots().len(), 1, "{}", storage.layout());
    });
    storage.scribble(5);
    let second = storage.content();
    test.step("take --replace holds the new state instead of the old", |subject| {
        let replaced = subject.verb("take", locator, &["--replace"]);
        replaced.expect(0);
        assert_ne!(occupant(&replaced).0, mark);
        assert_eq!(storage.snapshots().len(), 1, "{}", storage.layout());
        storage.content().expect(&second, "after take --replace");
    });
    storage.scribble(6);
    test.step("restore --consume gives it back and empties the slot", |subject| {
        let consumed = subject.verb("restore", locator, &["--consume"]);
        consumed.expect(0);
        assert_eq!(consumed.slot(), "empty");
        storage.content().expect(&second, "after restore --consume");
        assert_eq!(storage.snapshots(), Vec::<String>::new());
        assert_eq!(subject.verb("restore", locator, &[]).expect(4)["error"]["code"], "slot-empty");
    });
    test.case("nothing is left over", |_| assert_eq!(storage.layout(), storage.base()));
    test.step("take and delete leave the content and no trace", |subject| {
        subject.verb("take", locator, &[]).expect(0);
        storage.scribble(7);
        let third = storage.content();
        let (planned, ran) = tap::watch(|| subject.verb("delete", locator, &["--dry-run"]));
        planned.expect(0);
        assert_eq!(tap::changing(&ran), Vec::<String>::new(), "commands of a dry delete");
        let deleted = subject.verb("delete", locator, &[]);
        deleted.expect(0);
        assert_eq!(deleted.slot(), "empty");
        storage.content().expect(&third, "after delete");
        assert_eq!(storage.snapshots(), Vec::<String>::new());
        assert_eq!(storage.layout(), storage.base());
        assert_eq!(subject.verb("delete", locator, &[]).expect(4)["error"]["code"], "slot-empty");
    });
    test.case("check finds all sound, history tells what was done", |subject| {
        assert_eq!(subject.verb("check", locator, &[]).expect(0)["sound"], true);
        let history = subject.verb("history", locator, &[]);
        let verbs: Vec<&str> = history.expect(0)["operations"]
            .as_array()
            .map(|list| list.iter().filter_map(|o| o["verb"].as_str()).collect())
            .unwrap_or_default();
        for verb in ["take", "restore", "delete"] {
            assert!(verbs.contains(&verb), "no {verb} in {verbs:?}");
        }
    });
}
