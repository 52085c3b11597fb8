//! Two engines on one volume.
//!
//! Not gated: started together, again and again; whatever the timing, one result and no damage.
//! Gated: the first one is held inside its first changing command, so the second one surely
//! meets it at work, and has to say busy.

use std::time::Duration;

use snapslot_test_support::{Outcome, setting};

use crate::harness::Test;
use crate::subject::Storage;
use crate::tap::Held;
use crate::{lvm, zfs};

const DEADLINE: Duration = Duration::from_secs(120);

pub fn lvm(test: &mut Test) {
    let volume = test.step("a thin volume", |_| lvm::Volume::new(lvm::Kind::Thin, 8));
    both(test, &volume);
}

pub fn zfs(test: &mut Test) {
    let dataset = test.step("a volume", |_| zfs::Dataset::new(zfs::Kind::Zvol, 8));
    both(test, &dataset);
}

fn both(test: &mut Test, storage: &dyn Storage) {
    let locator = storage.locator();
    let rounds = if test.is_quick() { 4 } else { setting("SNAPSLOT_RACE_ROUNDS", 20) };
    storage.scribble(1);
    let content = storage.content();
    test.step(&format!("{rounds} rounds of two takes at once: one wins"), |subject| {
        let (mut busy, mut late) = (0, 0);
        for round in 0..rounds {
            let pair = [0, 1].map(|_| subject.start("take", locator, &[]));
            let pair = pair.map(|p| Outcome::from(p.finish(DEADLINE)));
            let mut codes = [pair[0].code(), pair[1].code()];
            codes.sort_unstable();
            let account =
                || format!("{}\n{}", pair[0].process.account(), pair[1].process.account());
            match codes {
                [0, 5] => busy += 1,
                // The second one came when the first was through.
                [0, 3] => late += 1,
                _ => panic!("round {round}: exit codes {codes:?}\n{}", account()),
            }
            let held = pair.iter().filter(|o| o.code() == 0).count();
            assert_eq!(
                (held, storage.snapshots().len()),
                (1, 1),
                "round {round}: {}",
                storage.layout()
            );
            subject.verb("delete", locator, &[]).expect(0);
        }
        println!("NOTE {locator}: of {rounds} races the loser said busy in {busy}, held in {late}");
        storage.content().expect(&content, "after the races");
        assert_eq!(storage.layout(), storage.base());
    });
    test.step("an engine at work: every other verb says busy, status still tells", |subject| {
        let gate = Held::arm(1);
        let first = subject.start("take", locator, &[]);
        gate.wait();
        let mut busy = Vec::new();
        for verb in ["take", "restore", "delete"] {
            busy.push((verb, subject.verb(verb, locator, &[])));
        }
        let status = subject.verb("status", locator, &[]);
        gate.let_go();
        let first = Outcome::from(first.finish(DEADLINE));
        for (verb, outcome) in busy {
            assert_eq!(outcome.expect(5)["error"]["code"], "busy", "{verb}");
        }
        // It may say that a take is running, or that it cannot look now; not that all is quiet.
        assert!(matches!(status.code(), 0 | 5), "{}", status.process.account());
        if status.code() == 0 {
            assert_eq!(status.slot(), "taking", "{}", status.process.account());
        }
        first.expect(0);
        assert_eq!(storage.snapshots().len(), 1);
    });
    test.step("restore against delete: either order, never a mixture", |subject| {
        subject.verb("delete", locator, &[]).expect(0);
        for round in 0..rounds.div_ceil(4) {
            let then = storage.content();
            subject.verb("take", locator, &[]).expect(0);
            storage.scribble(100 + round);
            let since = storage.content();
            let pair = ["restore", "delete"].map(|verb| subject.start(verb, locator, &[]));
            let [restore, delete] = pair.map(|p| Outcome::from(p.finish(DEADLINE)));
            match (restore.code(), delete.code()) {
                (0, 0 | 5) => storage.content().expect(&then, "after restore came first"),
                (4 | 5, 0) => storage.content().expect(&since, "after delete came first"),
                other => panic!(
                    "round {round}: exit codes {other:?}\n{}\n{}",
                    restore.process.account(),
                    delete.process.account()
                ),
            }
            if delete.code() != 0 {
                subject.verb("delete", locator, &[]).expect(0);
            }
            assert_eq!(storage.layout(), storage.base(), "round {round}");
        }
    });
}
