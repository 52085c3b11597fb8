//! States of LVM that are rare: external origins, merges that take long, groups that two stores share,
//! volumes that are gone.

use std::fs;

use super::blockers_lvm::refused;
use crate::harness::Test;
use crate::subject::{Storage, Subject};
use crate::tap::{self, Trip};
use crate::tools::run;
use crate::{content, lvm};

/// How much of its time the kernel may merge, in percent.
const THROTTLE: &str = "/sys/module/dm_snapshot/parameters/snapshot_copy_throttle";

pub fn all(test: &mut Test) {
    external_origin(test);
    consumed(test);
    long_merge(test);
    shared_room(test);
    gone(test);
}

fn external_origin(test: &mut Test) {
    let volume = test.step("a thin volume that reads from one outside of its pool", |_| {
        lvm::clear();
        lvm::make_group(256);
        lvm::make_pool(32);
        run("lvcreate -qq -y -L 8M -n base vg");
        content::scribble("/dev/vg/base", 1, 24);
        run("lvchange -qq -an vg/base");
        run("lvchange -qq -pr vg/base");
        run("lvcreate -qq -y -s -kn --thinpool vg/pool -n vm1 vg/base");
        lvm::Volume::existing(lvm::Kind::Thin)
    });
    volume.scribble(2);
    let first = volume.content();
    test.case("an external origin: the whole life of a slot, and it stays", |subject| {
        let locator = volume.locator();
        subject.verb("take", locator, &[]).expect(0);
        for seed in [3, 4] {
            volume.scribble(seed);
            subject.verb("restore", locator, &[]).expect(0);
            volume.content().expect(&first, "restored over an external origin");
            assert_eq!(subject.state(locator), "held");
        }
        subject.verb("delete", locator, &[]).expect(0);
        volume.content().expect(&first, "after delete");
        // A volume made from its own snapshot does not read from outside of the pool by itself.
        let names = |layout: &str| layout.lines().map(name_of).collect::<Vec<_>>();
        assert_eq!(names(&volume.layout()), names(volume.base()));
        assert_eq!(lvm::field_of("base", "lv_permissions"), "read-only");
    });
}

fn name_of(line: &str) -> String {
    line.split('|').next().unwrap_or_default().trim().to_owned()
}

fn consumed(test: &mut Test) {
    let volume = test.step("a thick volume", |_| lvm::Volume::new(lvm::Kind::Thick, 8));
    test.fresh_records();
    volume.scribble(1);
    let first = volume.content();
    test.case("restore --consume makes no snapshot that is removed again", |subject| {
        subject.verb("take", volume.locator(), &[]).expect(0);
        volume.scribble(2);
        let (done, ran) = tap::watch(|| subject.verb("restore", volume.locator(), &["--consume"]));
        done.expect(0);
        let changing = tap::changing(&ran);
        let merges = changing.iter().filter(|c| c.contains("--merge")).count();
        let makes = changing.iter().any(|c| c.contains("lvcreate") || c.contains("lvremove"));
        assert!(merges == 1 && !makes, "{changing:#?}");
        volume.content().expect(&first, "after restore --consume");
        assert_eq!(volume.layout(), volume.base());
    });
}

/// The kernel merges at its usual speed again when this goes.
struct Slow(String);

impl Slow {
    fn merges() -> Slow {
        let usual = fs::read_to_string(THROTTLE).expect("the kernel's throttle");
        fs::write(THROTTLE, "1").expect("to set the kernel's throttle");
        Slow(usual)
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        fs::write(THROTTLE, self.0.trim()).expect("to set the kernel's throttle back");
    }
}

/// The store of a volume that is merged, suspended: the kernel merges nothing more until this goes.
///
/// What is merged already can be read meanwhile, what is not cannot.
struct Halted(String);

impl Halted {
    fn merge() -> Halted {
        let devices = run("dmsetup info --noheadings -c -o name");
        let mut stores = devices.lines().map(str::trim).filter(|name| name.ends_with("-cow"));
        let store = stores.next().expect("a snapshot's store").to_owned();
        assert_eq!(stores.next(), None, "one snapshot");
        run(&format!("dmsetup suspend {store}"));
        Halted(store)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        run(&format!("dmsetup resume {}", self.0));
    }
}

/// Kills what waits for a merge; gives how many processes that were.
fn end_merging_tools() -> usize {
    let mut ended = 0;
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        if words.contains("lvconvert") && words.contains("--merge") {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            // SAFETY: sends a signal; no memory of ours is touched.
            ended += usize::from(unsafe { libc::kill(pid, libc::SIGKILL) } == 0);
        }
    }
    ended
}

fn long_merge(test: &mut Test) {
    let volume = test.step("a thick volume", |_| lvm::Volume::new(lvm::Kind::Thick, 16));
    test.fresh_records();
    volume.scribble(1);
    let first = volume.content();
    test.step("a merge that takes long, its engine killed: in use, and what is left", |subject| {
        subject.verb("take", volume.locator(), &[]).expect(0);
        let name = volume.snapshots().concat();
        // Many small pieces: the kernel has to put each back by itself, and waits between them.
        content::stripe(volume.device(), 2);
        let slow = Slow::merges();
        // Marked, deactivated, activated, merged.
        tap::arm(Trip::During(4));
        let victim = subject.verb("restore", volume.locator(), &[]);
        let (tripped, ran) = (tap::tripped(), tap::changing(&tap::log()));
        tap::clear();
        assert!(tripped && ran.last().is_some_and(|c| c.contains("--merge")), "{ran:?}");
        assert_eq!(victim.process.signal, Some(9), "{}", victim.process.account());
        // The command goes on alone; once the kernel merges it is ended too, as by the host's end.
        while lvm::field_of("vm1", "snap_percent").is_empty() {
            assert_ne!(lvm::field_of(&name, "lv_name"), "", "it is merged already");
        }
        assert!(end_merging_tools() > 0, "nobody waits for the end of the merge");
        // However slow, it would end at some time: it stands still while they are asked.
        let halted = Halted::merge();
        let left: f64 = lvm::field_of("vm1", "snap_percent").parse().expect("a merge");
        assert!(left > 0.0, "it is merged already");
        for verb in ["recover", "take", "restore", "delete"] {
            let said = subject.verb(verb, volume.locator(), &[]);
            let account = said.process.account();
            assert_eq!(said.code(), 5, "{account}");
            assert!(account.contains("can be used") && account.contains(" %"), "{account}");
        }
        drop(halted);
        volume.content().expect(&first, "while it is merged");
        drop(slow);
        let mut ended = (0..100).map(|_| subject.verb("recover", volume.locator(), &[]));
        let ended = ended.find(|said| said.code() != 5);
        ended.expect("a merge that ends").expect(0);
        assert_eq!(subject.state(volume.locator()), "empty");
        volume.content().expect(&first, "after the merge");
        assert_eq!(volume.layout(), volume.base());
    });
}

fn enable(subject: &Subject, machine: &str, volumes: &[&str]) {
    let mut words = vec!["enable", machine];
    words.extend(volumes.iter().flat_map(|v| ["--volume", v]));
    subject.snapslot().run(words).expect(0);
}

fn shared_room(test: &mut Test) {
    test.fresh_records();
    test.step("two thick volumes in a group with little room", |subject| {
        lvm::clear();
        lvm::make_group(64);
        run("lvcreate -qq -y -L 16M -n vm1 vg");
        run("lvcreate -qq -y -L 16M -n vm2 vg");
        run("lvcreate -qq -y -l 12 -n filler vg");
        enable(subject, "both", &["lvm:vg/vm1", "lvm:vg/vm2"]);
    });
    let layout = lvm::layout();
    test.case("taken as one they share what is free", |subject| {
        subject.verb("take", "both", &[]).expect(0);
        let sizes = |name: &str| {
            let line =
                format!("lvs --noheadings --units b --nosuffix -o lv_size -S origin={name} vg");
            run(&line).trim().parse::<u64>().unwrap_or_else(|e| panic!("{name}: {e}"))
        };
        let (one, two) = (sizes("vm1"), sizes("vm2"));
        assert!(one == two && one >= 4 << 20, "{one} and {two} bytes");
        subject.verb("delete", "both", &[]).expect(0);
        assert_eq!(lvm::layout(), layout);
    });
    test.case("what is asked for both and does not fit is refused, and nothing made", |subject| {
        let (said, ran) = tap::watch(|| subject.verb("take", "both", &["--store-size", "100%"]));
        assert_eq!(said.expect(1)["error"]["code"], "no-space");
        assert_eq!(tap::changing(&ran), Vec::<String>::new());
        assert_eq!(lvm::layout(), layout);
    });
}

fn gone(test: &mut Test) {
    test.fresh_records();
    let volume = test.step("a thin volume beside a thick one, one machine", |subject| {
        let volume = lvm::Volume::new(lvm::Kind::Thin, 8);
        run("lvcreate -qq -y -L 8M -n vm2 vg");
        enable(subject, "pair", &["lvm:vg/vm1", "lvm:vg/vm2"]);
        volume
    });
    test.case("one of them removed by hand: said so, emptied, disabled", |subject| {
        volume.scribble(1);
        subject.verb("take", "pair", &[]).expect(0);
        run("lvremove -qq -y vg/vm2");
        let layout = lvm::layout();
        let content = volume.content();
        let restore = subject.verb("restore", "pair", &[]);
        assert_eq!(restore.code(), 1, "{}", restore.process.account());
        assert!(restore.process.account().contains("vg/vm2"), "{}", restore.process.account());
        assert_eq!(lvm::layout(), layout);
        // What is there holds its part of the slot still.
        assert_ne!(subject.snapslot().run(["disable", "pair"]).code(), 0);
        subject.verb("delete", "pair", &[]).expect(0);
        volume.content().expect(&content, "of the volume that is there");
        assert_eq!(volume.snapshots(), Vec::<String>::new());
        subject.snapslot().run(["disable", "pair"]).expect(0);
    });
    test.case("the volume that is there is in no machine any more", |subject| {
        refused(subject, &volume, "restore", &[4, 7], &[]);
        subject.verb("take", volume.locator(), &[]).expect(0);
        subject.verb("delete", volume.locator(), &[]).expect(0);
    });
}
