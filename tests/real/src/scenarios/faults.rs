//! Drift, tools that are missing or fail, and a person without permission.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use snapslot_test_support::Outcome;

use super::blockers_lvm::refused;
use crate::harness::Test;
use crate::subject::Storage;
use crate::tap::{self, Missing, Trip};
use crate::tools::run;
use crate::{lvm, zfs};

pub fn lvm_drift(test: &mut Test) {
    for kind in [lvm::Kind::Thin, lvm::Kind::Thick] {
        let volume = test.step(&format!("a {kind:?} volume"), |_| lvm::Volume::new(kind, 8));
        drift(test, &volume);
    }
}

pub fn zfs_drift(test: &mut Test) {
    let dataset = test.step("a volume", |_| zfs::Dataset::new(zfs::Kind::Zvol, 8));
    drift(test, &dataset);
}

fn drift(test: &mut Test, storage: &dyn Storage) {
    let locator = storage.locator();
    storage.scribble(1);
    // Volumes of several kinds have this name, one after the other.
    test.fresh_records();
    test.case(
        "the snapshot removed by hand: drifted, not restored, delete forgets it",
        |subject| {
            subject.verb("take", locator, &[]).expect(0);
            storage.remove_by_hand(&storage.snapshots()[0]);
            assert_eq!(subject.state(locator), "drifted");
            assert_eq!(subject.verb("check", locator, &[]).code(), 8);
            refused(subject, storage, "restore", &[8], &[]);
            refused(subject, storage, "take", &[8], &[]);
            let deleted = subject.verb("delete", locator, &[]);
            deleted.expect(0);
            assert_eq!(deleted.slot(), "empty");
            assert_eq!(storage.layout(), storage.base());
        },
    );
    test.case("the volume replaced by another of its name: not taken for the old one", |subject| {
        subject.verb("take", locator, &[]).expect(0);
        storage.replace_by_hand();
        storage.scribble(9);
        let theirs = storage.content();
        let state = subject.state(locator);
        assert_ne!(
            state,
            "held",
            "the snapshot of another volume is said to be this one's: {}",
            storage.layout()
        );
        let restore = subject.verb("restore", locator, &[]);
        assert_eq!(restore.code(), 8, "{}", restore.process.account());
        storage.content().expect(&theirs, "of the new volume");
    });
}

pub fn lvm_faults(test: &mut Test) {
    let volume = test.step("a thin volume", |_| lvm::Volume::new(lvm::Kind::Thin, 8));
    tool_missing(test, &volume, "lvm");
    commands_fail(test, &volume, 5);
    no_permission(test, &volume);
    if test.is_quick() {
        return;
    }
    let volume = test.step("a thick volume", |_| lvm::Volume::new(lvm::Kind::Thick, 8));
    commands_fail(test, &volume, 5);
}

pub fn zfs_faults(test: &mut Test) {
    let dataset = test.step("a volume", |_| zfs::Dataset::new(zfs::Kind::Zvol, 8));
    tool_missing(test, &dataset, "zfs");
    commands_fail(test, &dataset, 1);
    no_permission(test, &dataset);
    let dataset =
        test.step("an encrypted volume", |_| zfs::Dataset::new(zfs::Kind::EncryptedZvol, 8));
    test.case("its key unloaded: the slot works, the content comes back", |subject| {
        dataset.scribble(1);
        let first = dataset.content();
        run("zfs unload-key tank/vm1");
        subject.verb("take", dataset.locator(), &[]).expect(0);
        run("zfs load-key tank/vm1");
        zfs::wait_for_node();
        dataset.scribble(2);
        run("zfs unload-key tank/vm1");
        subject.verb("restore", dataset.locator(), &[]).expect(0);
        subject.verb("delete", dataset.locator(), &[]).expect(0);
        run("zfs load-key tank/vm1");
        zfs::wait_for_node();
        dataset.content().expect(&first, "restored without its key");
    });
}

fn tool_missing(test: &mut Test, storage: &dyn Storage, tool: &'static str) {
    test.case(&format!("{tool} is not installed: said so, by name"), |subject| {
        let missing = Missing::tool(tool);
        let outcomes = ["take", "status"].map(|verb| subject.verb(verb, storage.locator(), &[]));
        drop(missing);
        for outcome in outcomes {
            let account = outcome.process.account();
            assert!(matches!(outcome.code(), 1 | 6), "{account}");
            outcome.expect(outcome.code());
            assert!(
                account.contains("not installed"),
                "it does not say what is missing: {account}"
            );
        }
        assert_eq!(storage.layout(), storage.base());
    });
}

/// Every changing command of a life made to fail once: nothing is lost, and it can be mended.
fn commands_fail(test: &mut Test, storage: &dyn Storage, code: u8) {
    let locator = storage.locator();
    storage.scribble(1);
    test.fresh_records();
    // A first take that fails leaves the slot as it was: not enabled yet.
    test.step("a slot, enabled", |subject| {
        subject.snapslot().run(["enable", locator]).expect(0).clone()
    });
    // A quick run has the verb with the most commands.
    let verbs: &[&str] =
        if test.is_quick() { &["restore"] } else { &["take", "restore", "delete"] };
    for &verb in verbs {
        for n in 1..20 {
            let more = test.case(&format!("{verb}: its command {n} fails"), |subject| {
                let old = storage.content();
                if verb != "take" {
                    subject.verb("take", locator, &[]).expect(0);
                }
                storage.scribble(2);
                let new = storage.content();
                tap::arm(Trip::Fail(n, code));
                let failed = subject.verb(verb, locator, &[]);
                let tripped = tap::tripped();
                let ran = tap::changing(&tap::log());
                tap::clear();
                let account =
                    || format!("ran {ran:?}\n{}\n{}", failed.process.account(), storage.layout());
                if tripped {
                    assert!(matches!(failed.code(), 0 | 1 | 5 | 8), "{}", account());
                    if failed.code() != 0 {
                        failed.expect(failed.code());
                    }
                } else {
                    assert_eq!(failed.code(), 0, "{}", account());
                }
                let now = storage.content();
                assert!(now == new || (verb == "restore" && now == old), "{}", account());
                // What `1` promises: nothing changed.
                if failed.code() == 1 {
                    assert!(now == new, "exit 1, and the content is another; {}", account());
                }
                let recovered = subject.verb("recover", locator, &[]);
                assert_eq!(recovered.code(), 0, "{}\n{}", recovered.process.account(), account());
                let state = subject.state(locator);
                assert!(matches!(state.as_str(), "held" | "empty"), "{state}; {}", account());
                if state == "held" {
                    subject.verb("restore", locator, &[]).expect(0);
                    let back = storage.content();
                    assert!(back == if verb == "take" { new } else { old }, "{}", account());
                    subject.verb("delete", locator, &[]).expect(0);
                }
                assert_eq!(storage.layout(), storage.base(), "{}", account());
                tripped
            });
            match more {
                Some(true) => {}
                Some(false) => break,
                None => {
                    test.step("put right by hand after the failure", |subject| {
                        super::crash::mend(subject, storage);
                    });
                }
            }
        }
    }
}

fn no_permission(test: &mut Test, storage: &dyn Storage) {
    test.case("somebody without permission: said so, nothing changed", |subject| {
        let home = "/run/nobody";
        run(&format!("rm -rf {home}"));
        run(&format!("mkdir -p {home}/state"));
        // The compiled plugins, so that it is the storage that refuses.
        run(&format!("cp -r {} {home}/cache", subject.snapslot().cache().display()));
        run(&format!("chown -R 65534:65534 {home}"));
        run(&format!("chmod -R go-rwx {home}"));
        let mut command = Command::new(subject.snapslot().command::<&str>([]).get_program());
        command.args([
            "--json",
            "--state-dir",
            "/run/nobody/state",
            "--cache-dir",
            "/run/nobody/cache",
        ]);
        command.args(["take", storage.locator()]).uid(65534).gid(65534).env_clear();
        let layout = storage.layout();
        let outcome = Outcome::from(snapslot_test_support::run(command, Duration::from_secs(120)));
        let account = outcome.process.account();
        assert!(matches!(outcome.code(), 1 | 6), "{account}");
        outcome.expect(outcome.code());
        let words = account.to_lowercase();
        assert!(words.contains("permission") || words.contains("root"), "{account}");
        assert_eq!(storage.layout(), layout);
    });
}
