//! What stands in the way on LVM: each is named, with its exit code, and nothing is changed.

use std::fs::OpenOptions;
use std::time::Duration;

use crate::harness::Test;
use crate::subject::{Storage, Subject, occupant};
use crate::tools::{run, try_run, within};
use crate::{lvm, tap};

/// The verb is refused with this exit code and words among these; nothing is changed by it.
#[track_caller]
pub fn refused(
    subject: &Subject,
    storage: &dyn Storage,
    verb: &str,
    codes: &[i32],
    words: &[&str],
) {
    let (layout, content) = (storage.layout(), storage.content());
    let (outcome, ran) = tap::watch(|| subject.verb(verb, storage.locator(), &[]));
    let account = outcome.process.account();
    assert!(codes.contains(&outcome.code()), "expected exit {codes:?}: {account}\nran: {ran:?}");
    outcome.expect(outcome.code());
    let json = outcome.json.unwrap_or_default();
    let message = json["error"]["message"].as_str().unwrap_or_default().to_lowercase();
    let named = words.is_empty() || words.iter().any(|w| message.contains(&w.to_lowercase()));
    assert!(named, "the message names none of {words:?}: {account}");
    assert_eq!(storage.layout(), layout, "after a refused {verb}: {account}");
    storage.content().expect(&content, &format!("after a refused {verb}"));
}

pub fn all(test: &mut Test) {
    for kind in [lvm::Kind::Thin, lvm::Kind::Thick] {
        open_volume(test, kind);
    }
    group_full(test);
    pool_full(test);
    if !test.is_quick() {
        pool_metadata_low(test);
    }
    foreign_names(test);
    merge_put_off(test);
    not_there(test);
}

fn open_volume(test: &mut Test, kind: lvm::Kind) {
    let volume = test.step(&format!("a {kind:?} volume"), |_| lvm::Volume::new(kind, 8));
    volume.scribble(1);
    let first = volume.content();
    test.case(&format!("{kind:?}: an open volume is not restored, only in use"), |subject| {
        subject.verb("take", volume.locator(), &[]).expect(0);
        volume.scribble(2);
        let open = OpenOptions::new().read(true).write(true).open(volume.device());
        refused(subject, &volume, "restore", &[5], &["in use", "open"]);
        drop(open);
        subject.verb("restore", volume.locator(), &[]).expect(0);
        volume.content().expect(&first, "restored once it was closed");
    });
    test.case(&format!("{kind:?}: a mounted volume is not restored"), |subject| {
        subject.verb("delete", volume.locator(), &[]).expect(0);
        run(&format!("mkfs.ext4 -q -F {}", volume.device()));
        subject.verb("take", volume.locator(), &[]).expect(0);
        run("mkdir -p /mnt/lv");
        run(&format!("mount {} /mnt/lv", volume.device()));
        let busy = subject.verb("restore", volume.locator(), &[]);
        run("umount /mnt/lv");
        busy.expect(5);
        subject.verb("restore", volume.locator(), &[]).expect(0);
        run(&format!("e2fsck -fn {}", volume.device()));
        subject.verb("delete", volume.locator(), &[]).expect(0);
        assert_eq!(volume.layout(), volume.base());
    });
}

fn group_full(test: &mut Test) {
    let volume = test.step("a thick volume in a full group", |_| {
        lvm::clear();
        lvm::make_group(64);
        run("lvcreate -qq -y -L 16M -n vm1 vg");
        run("lvcreate -qq -y -l 100%FREE -n filler vg");
        lvm::Volume::existing(lvm::Kind::Thick)
    });
    test.case("no room in the group for a snapshot: said so, nothing changed", |subject| {
        refused(subject, &volume, "take", &[1], &["space", "room", "free"]);
    });
    test.case("with room again it works", |subject| {
        run("lvremove -qq -y vg/filler");
        subject.verb("take", volume.locator(), &[]).expect(0);
        subject.verb("delete", volume.locator(), &[]).expect(0);
    });
}

fn pool_full(test: &mut Test) {
    let volume = test.step("a thin volume in a pool that is full", |_| {
        lvm::clear();
        lvm::make_group(256);
        lvm::make_pool(16);
        run("lvcreate -qq -y -V 8M -T vg/pool -n vm1");
        run("lvcreate -qq -y -V 16M -T vg/pool -n filler");
        let volume = lvm::Volume::existing(lvm::Kind::Thin);
        volume.scribble(1);
        // Fails at the end of the pool, as it should.
        let _ = try_run("dd if=/dev/zero of=/dev/vg/filler bs=64K oflag=direct status=none");
        let used = lvm::field_of("pool", "data_percent");
        assert!(used.starts_with("100"), "the pool is {used} % full");
        volume
    });
    test.case("a full pool: take is refused, said why", |subject| {
        refused(subject, &volume, "take", &[1], &["pool"]);
    });
}

fn pool_metadata_low(test: &mut Test) {
    let volume = test.step("a thin pool short of metadata", |_| {
        let volume = lvm::Volume::new(lvm::Kind::Thin, 8);
        volume.scribble(1);
        // Volumes that only the pool knows: each takes a block of its metadata.
        for first in (1000..1400).step_by(50) {
            let lines = (first..first + 50)
                .map(|id| format!("dmsetup message vg-pool-tpool 0 'create_thin {id}' || exit 0"));
            std::fs::write("/run/fill", lines.collect::<Vec<_>>().join("\n")).expect("a script");
            run("bash /run/fill");
        }
        let used = lvm::field_of("pool", "metadata_percent");
        assert!(used.parse::<f64>().is_ok_and(|p| p > 75.0), "metadata {used} % used");
        volume
    });
    test.case("little metadata left: take is refused or done, never half", |subject| {
        let layout = volume.layout();
        let taken = subject.verb("take", volume.locator(), &[]);
        match taken.code() {
            0 => {
                subject.verb("delete", volume.locator(), &[]).expect(0);
            }
            1 | 6 => {
                let account = taken.process.account();
                assert!(account.contains("pool"), "{account}");
            }
            _ => panic!("{}", taken.process.account()),
        }
        assert_eq!(volume.layout(), layout);
    });
}

fn foreign_names(test: &mut Test) {
    let volume = test.step("a thin volume", |_| lvm::Volume::new(lvm::Kind::Thin, 8));
    volume.scribble(1);
    let first = volume.content();
    test.case("a snapshot that looks like ours but is not stays as it is", |subject| {
        let foreign = "vm1_snapslot_0123456789abcdef";
        run(&format!("lvcreate -qq -y -s -n {foreign} vg/vm1"));
        run("lvcreate -qq -y -s -n nightly vg/vm1");
        let uuids =
            || ["vm1_snapslot_0123456789abcdef", "nightly"].map(|n| lvm::field_of(n, "lv_uuid"));
        let before = uuids();
        let locator = volume.locator();
        assert_eq!(subject.state(locator), "empty");
        subject.verb("take", locator, &[]).expect(0);
        volume.scribble(2);
        subject.verb("restore", locator, &[]).expect(0);
        volume.content().expect(&first, "restored beside foreign snapshots");
        subject.verb("delete", locator, &[]).expect(0);
        assert_eq!(uuids(), before);
        assert_eq!(volume.snapshots(), ["nightly", foreign]);
    });
}

fn merge_put_off(test: &mut Test) {
    let volume = test.step("a thick volume with a merge that was put off", |_| {
        let volume = lvm::Volume::new(lvm::Kind::Thick, 8);
        volume.scribble(1);
        run("lvcreate -qq -y -s -L 8M -n hand vg/vm1");
        volume.scribble(2);
        let open = OpenOptions::new().read(true).open(volume.device());
        run("lvconvert -qq -y --merge vg/hand");
        drop(open);
        assert_eq!(lvm::field_of("hand", "lv_merging"), "merging");
        volume
    });
    test.case("a merge of somebody else's is pending: take is refused, said why", |subject| {
        // The volume's content is on its way: only the layout is compared.
        let layout = volume.layout();
        let taken = subject.verb("take", volume.locator(), &[]);
        assert_eq!(taken.code(), 5, "{}", taken.process.account());
        assert!(taken.process.account().contains("merg"), "{}", taken.process.account());
        assert_eq!(volume.layout(), layout);
    });
    test.case("when it is through, take works", |subject| {
        run("lvchange -an vg/vm1");
        run("lvchange -ay vg/vm1");
        let _ = try_run("lvconvert -i 1 --startpoll vg/vm1");
        // Whoever merged before goes on alone.
        let merged = || try_run("lvs vg/hand").code != Some(0);
        assert!(within(Duration::from_secs(120), merged), "it is being merged still");
        subject.verb("take", volume.locator(), &[]).expect(0);
        subject.verb("delete", volume.locator(), &[]).expect(0);
    });
}

fn not_there(test: &mut Test) {
    test.step("a volume", |_| lvm::Volume::new(lvm::Kind::Thin, 8));
    for (place, codes) in [
        ("lvm:vg/none", &[1][..]),
        ("lvm:none/vm1", &[1]),
        ("lvm:vg", &[2]),
        ("lvm:vg/", &[2]),
        ("lvm:/vm1", &[2]),
        ("lvm:vg/-x", &[2]),
        ("lvm:vg/a b", &[2]),
        ("lvm:vg/snapshot0", &[2]),
        ("lvm:vg/pool", &[6]),
    ] {
        test.case(&format!("{place} is refused in words"), |subject| {
            let outcome = subject.verb("take", place, &[]);
            assert!(codes.contains(&outcome.code()), "{}", outcome.process.account());
            outcome.expect(outcome.code());
        });
    }
}

pub fn overflow(test: &mut Test) {
    let volume = test.step("a thick volume in a group with little room", |_| {
        lvm::clear();
        lvm::make_group(64);
        run("lvcreate -qq -y -L 32M -n vm1 vg");
        run("lvcreate -qq -y -l 20 -n filler vg");
        lvm::Volume::existing(lvm::Kind::Thick)
    });
    volume.scribble(1);
    let name = test.step("a take with less room than the volume has", |subject| {
        let taken = subject.verb("take", volume.locator(), &[]);
        taken.expect(0);
        occupant(&taken).1
    });
    let name = name.rsplit('/').next().unwrap_or(&name).to_owned();
    test.step("writing all of the volume overflows the snapshot", |_| {
        crate::content::overwrite(volume.device(), 7);
        // The state is seen when the device-mapper is asked; the tools do that.
        assert_eq!(lvm::field_of(&name, "lv_snapshot_invalid"), "snapshot invalid");
    });
    let content = volume.content();
    test.case("status does not say held: the snapshot is lost", |subject| {
        let status = subject.verb("status", volume.locator(), &[]);
        status.expect(0);
        assert_eq!(status.slot(), "drifted", "{}", status.process.account());
        assert_eq!(subject.verb("check", volume.locator(), &[]).code(), 8);
    });
    test.case("it is not restored, which would be noise", |subject| {
        refused(subject, &volume, "restore", &[8], &["content is lost"]);
    });
    test.case("delete clears it", |subject| {
        let deleted = subject.verb("delete", volume.locator(), &[]);
        deleted.expect(0);
        assert_eq!(deleted.slot(), "empty");
        volume.content().expect(&content, "after the lost snapshot was deleted");
        assert_eq!(volume.layout(), volume.base());
    });
}
