//! A machine with a volume on LVM and one on ZFS: one slot, all or none.

use std::fs::OpenOptions;

use crate::harness::Test;
use crate::subject::{Content, Storage, Subject};
use crate::tap::{self, Trip};
use crate::{lvm, zfs};

const MACHINE: &str = "vm1";

struct Both {
    lvm: lvm::Volume,
    zfs: zfs::Dataset,
}

impl Both {
    fn new() -> Both {
        Both {
            lvm: lvm::Volume::new(lvm::Kind::Thin, 8),
            zfs: zfs::Dataset::new(zfs::Kind::Zvol, 8),
        }
    }

    fn enable(&self, subject: &Subject) {
        let [a, b] = [self.lvm.locator(), self.zfs.locator()];
        subject.snapslot().run(["enable", MACHINE, "--volume", a, "--volume", b]).expect(0);
    }

    fn scribble(&self, seed: u64) {
        self.lvm.scribble(seed);
        // The ZFS one last: it waits for udev.
        self.zfs.scribble(seed + 1000);
    }

    fn content(&self) -> [Content; 2] {
        [self.lvm.content(), self.zfs.content()]
    }

    fn snapshots(&self) -> [usize; 2] {
        [self.lvm.snapshots().len(), self.zfs.snapshots().len()]
    }

    fn layout(&self) -> String {
        format!("{}{}", self.lvm.layout(), self.zfs.layout())
    }

    fn base(&self) -> String {
        format!("{}{}", self.lvm.base(), self.zfs.base())
    }
}

fn expect(found: &[Content; 2], expected: &[Content; 2], when: &str) {
    found[0].expect(&expected[0], &format!("of the LVM volume {when}"));
    found[1].expect(&expected[1], &format!("of the ZFS volume {when}"));
}

pub fn all(test: &mut Test) {
    let both = test.step("a volume on each, one machine", |subject| {
        let both = Both::new();
        both.enable(subject);
        both
    });
    both.scribble(1);
    let first = both.content();
    test.step("taken as one", |subject| {
        let taken = subject.verb("take", MACHINE, &["--note", "both"]);
        let parts = taken.expect(0)["slot"]["occupant"]["parts"].as_array().map(Vec::len);
        assert_eq!((parts, both.snapshots()), (Some(2), [1, 1]));
    });
    both.scribble(2);
    let second = both.content();
    test.step("one of them in use keeps both as they are", |subject| {
        let layout = both.layout();
        for device in [both.lvm.device().to_owned(), zfs::device()] {
            let open = OpenOptions::new().read(true).write(true).open(&device);
            let (busy, ran) = tap::watch(|| subject.verb("restore", MACHINE, &[]));
            drop(open);
            zfs::wait_for_node();
            busy.expect(5);
            assert_eq!(tap::changing(&ran), Vec::<String>::new(), "with {device} open");
        }
        assert_eq!(both.layout(), layout);
        expect(&both.content(), &second, "after refused restores");
    });
    test.step("restored as one", |subject| {
        subject.verb("restore", MACHINE, &[]).expect(0);
        expect(&both.content(), &first, "after restore");
        assert_eq!(both.snapshots(), [1, 1]);
    });
    test.step("by one of its volumes the whole machine is meant", |subject| {
        both.scribble(3);
        subject.verb("restore", both.zfs.locator(), &[]).expect(0);
        expect(&both.content(), &first, "after restore by one volume");
    });
    test.step("one part removed by hand: partial, neither is restored", |subject| {
        both.scribble(4);
        let then = both.content();
        both.zfs.remove_by_hand(&both.zfs.snapshots()[0]);
        let status = subject.verb("status", MACHINE, &[]);
        assert_eq!(status.expect(0)["slot"]["drift"], "partial");
        subject.verb("restore", MACHINE, &[]).expect(8);
        expect(&both.content(), &then, "after a refused restore");
        let deleted = subject.verb("delete", MACHINE, &[]);
        deleted.expect(0);
        assert_eq!(both.layout(), both.base());
    });
}

pub fn crash(test: &mut Test) {
    let both = test.step("a volume on each, one machine", |subject| {
        let both = Both::new();
        both.enable(subject);
        both.scribble(1);
        both
    });
    for (verb, held_before, held_after) in
        [("take", false, true), ("restore", true, true), ("delete", true, false)]
    {
        let commands =
            test.step(&format!("{verb}: a clean run, its commands counted"), |subject| {
                if held_before {
                    subject.verb("take", MACHINE, &[]).expect(0);
                }
                let (done, ran) = tap::watch(|| subject.verb(verb, MACHINE, &[]));
                done.expect(0);
                if held_after {
                    subject.verb("delete", MACHINE, &[]).expect(0);
                }
                assert_eq!(both.layout(), both.base(), "after a clean {verb}");
                tap::changing(&ran)
            });
        for (n, command) in (1..).zip(&commands) {
            for trip in [Trip::Before(n), Trip::After(n)] {
                let name = format!("{verb}: killed {trip}: {command}");
                test.step(&name, |subject| {
                    killed(subject, &both, verb, [held_before, held_after], trip)
                });
            }
        }
    }
}

fn killed(subject: &Subject, both: &Both, verb: &str, held: [bool; 2], trip: Trip) {
    let old = both.content();
    if held[0] {
        subject.verb("take", MACHINE, &[]).expect(0);
    }
    both.scribble(20);
    let new = both.content();
    tap::arm(trip);
    let victim = subject.verb(verb, MACHINE, &[]);
    let tripped = tap::tripped();
    tap::clear();
    assert!(tripped && victim.process.signal == Some(9), "{}", victim.process.account());
    let recovered = subject.verb("recover", MACHINE, &[]);
    recovered.expect(0);
    let account = || format!("{}\n{}", recovered.process.account(), both.layout());
    let state = subject.state(MACHINE);
    let is_held = match state.as_str() {
        "held" => true,
        "empty" => false,
        _ => panic!("the slot is {state}; {}", account()),
    };
    assert!(held.contains(&is_held), "the slot is {state}; {}", account());
    assert_eq!(both.snapshots(), [usize::from(is_held); 2], "{}", account());
    let now = both.content();
    let sides = [0, 1].map(|i| (now[i] == old[i], now[i] == new[i]));
    let whole_old = sides.iter().all(|s| s.0);
    let whole_new = sides.iter().all(|s| s.1);
    assert!(whole_new || (verb == "restore" && whole_old), "as one: {sides:?}; {}", account());
    if is_held {
        both.scribble(30);
        subject.verb("restore", MACHINE, &[]).expect(0);
        let back = if verb == "take" { &new } else { &old };
        expect(&both.content(), back, "restored after recovery");
        subject.verb("delete", MACHINE, &[]).expect(0);
    }
    assert_eq!(both.layout(), both.base(), "{}", account());
}
