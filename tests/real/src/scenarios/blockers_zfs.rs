//! What stands in the way on ZFS: each is named, with its exit code, and nothing is changed.

use std::fs::OpenOptions;

use super::blockers_lvm::refused;
use crate::harness::Test;
use crate::subject::{Storage, Subject, occupant};
use crate::tools::{run, try_run};
use crate::zfs;

/// The slot's snapshot as ZFS names it.
fn held(subject: &Subject, dataset: &zfs::Dataset) -> String {
    let taken = subject.verb("take", dataset.locator(), &[]);
    taken.expect(0);
    let name = occupant(&taken).1;
    let part = name.rsplit('@').next().unwrap_or(&name).to_owned();
    format!("{}@{part}", zfs::DATASET)
}

/// Whatever the slot holds goes, and the dataset is as it was made.
fn emptied(subject: &Subject, dataset: &zfs::Dataset) {
    subject.verb("delete", dataset.locator(), &[]).expect(0);
    assert_eq!(dataset.layout(), dataset.base());
}

pub fn all(test: &mut Test) {
    for kind in [zfs::Kind::Zvol, zfs::Kind::Mounted] {
        let dataset = test.step(&format!("a {kind:?} dataset"), |_| zfs::Dataset::new(kind, 8));
        dataset.scribble(1);
        newer(test, &dataset);
        holds_and_clones(test, &dataset);
        foreign_names(test, &dataset);
        if kind == zfs::Kind::Zvol {
            open_volume(test, &dataset);
        } else {
            used_file_system(test, &dataset);
        }
    }
    no_room(test);
    not_there(test);
}

fn newer(test: &mut Test, dataset: &zfs::Dataset) {
    test.case("a newer snapshot: restore is refused, names it, and it stays", |subject| {
        let first = dataset.content();
        held(subject, dataset);
        dataset.scribble(2);
        run("zfs snapshot tank/vm1@nightly");
        refused(subject, dataset, "restore", &[6], &["nightly"]);
        run("zfs destroy tank/vm1@nightly");
        subject.verb("restore", dataset.locator(), &[]).expect(0);
        dataset.content().expect(&first, "restored once nothing newer was there");
        emptied(subject, dataset);
    });
    test.case("a newer bookmark: restore is refused, names it, and it stays", |subject| {
        held(subject, dataset);
        dataset.scribble(3);
        run("zfs snapshot tank/vm1@sent");
        run("zfs bookmark tank/vm1@sent tank/vm1#sent");
        run("zfs destroy tank/vm1@sent");
        refused(subject, dataset, "restore", &[6], &["sent"]);
        run("zfs destroy tank/vm1#sent");
        emptied(subject, dataset);
    });
    test.case("an older snapshot is in nobody's way", |subject| {
        run("zfs snapshot tank/vm1@older");
        let first = dataset.content();
        held(subject, dataset);
        dataset.scribble(4);
        subject.verb("restore", dataset.locator(), &[]).expect(0);
        dataset.content().expect(&first, "restored beside an older snapshot");
        subject.verb("delete", dataset.locator(), &[]).expect(0);
        assert_eq!(dataset.snapshots(), ["tank/vm1@older"]);
        run("zfs destroy tank/vm1@older");
    });
}

fn holds_and_clones(test: &mut Test, dataset: &zfs::Dataset) {
    test.case("a hold on the slot's snapshot: delete is refused, restore works", |subject| {
        let first = dataset.content();
        let snapshot = held(subject, dataset);
        run(&format!("zfs hold backup {snapshot}"));
        refused(subject, dataset, "delete", &[5], &["backup"]);
        assert_eq!(zfs::property(&snapshot, "defer_destroy"), "off");
        dataset.scribble(5);
        subject.verb("restore", dataset.locator(), &[]).expect(0);
        dataset.content().expect(&first, "restored from a snapshot with a hold");
        run(&format!("zfs release backup {snapshot}"));
        emptied(subject, dataset);
    });
    test.case("a clone of the slot's snapshot: delete is refused, names it", |subject| {
        let snapshot = held(subject, dataset);
        run(&format!("zfs clone {snapshot} tank/clone"));
        refused(subject, dataset, "delete", &[5], &["tank/clone"]);
        run("zfs destroy tank/clone");
        emptied(subject, dataset);
    });
}

fn foreign_names(test: &mut Test, dataset: &zfs::Dataset) {
    test.case("a snapshot that looks like ours but is not is never touched", |subject| {
        let foreign = "tank/vm1@snapslot-0123456789abcdef";
        run(&format!("zfs snapshot {foreign}"));
        let guid = zfs::property(foreign, "guid");
        assert_eq!(subject.state(dataset.locator()), "empty");
        held(subject, dataset);
        dataset.scribble(6);
        subject.verb("restore", dataset.locator(), &[]).expect(0);
        subject.verb("delete", dataset.locator(), &[]).expect(0);
        assert_eq!(dataset.snapshots(), [foreign]);
        assert_eq!(zfs::property(foreign, "guid"), guid);
        run(&format!("zfs destroy {foreign}"));
    });
    test.case("a mark inherited from the pool makes no snapshot ours", |subject| {
        run("zfs set snapslot:mark=00000000000000aa tank");
        run("zfs snapshot tank/vm1@theirs");
        assert_eq!(subject.state(dataset.locator()), "empty");
        held(subject, dataset);
        subject.verb("delete", dataset.locator(), &[]).expect(0);
        assert_eq!(dataset.snapshots(), ["tank/vm1@theirs"]);
        run("zfs destroy tank/vm1@theirs");
        run("zfs inherit snapslot:mark tank");
    });
}

fn open_volume(test: &mut Test, dataset: &zfs::Dataset) {
    test.case("an open volume is not restored, only in use", |subject| {
        let first = dataset.content();
        held(subject, dataset);
        dataset.scribble(7);
        let open = OpenOptions::new().read(true).write(true).open(zfs::device());
        refused(subject, dataset, "restore", &[5], &["in use", "open"]);
        drop(open);
        zfs::wait_for_node();
        subject.verb("restore", dataset.locator(), &[]).expect(0);
        dataset.content().expect(&first, "restored once it was closed");
        emptied(subject, dataset);
    });
    test.case("a volume with a mounted file system is not restored", |subject| {
        run(&format!("mkfs.ext4 -q -F {}", zfs::device()));
        zfs::wait_for_node();
        held(subject, dataset);
        run("mkdir -p /mnt/zv");
        run(&format!("mount {} /mnt/zv", zfs::device()));
        let busy = subject.verb("restore", dataset.locator(), &[]);
        run("umount /mnt/zv");
        zfs::wait_for_node();
        busy.expect(5);
        subject.verb("restore", dataset.locator(), &[]).expect(0);
        run(&format!("e2fsck -fn {}", zfs::device()));
        emptied(subject, dataset);
    });
}

fn used_file_system(test: &mut Test, dataset: &zfs::Dataset) {
    test.case("a look into .zfs/snapshot does not stand in the way for good", |subject| {
        let snapshot = held(subject, dataset);
        let part = snapshot.rsplit('@').next().unwrap_or_default().to_owned();
        // Looking mounts it.
        run(&format!("ls /mnt/vm1/.zfs/snapshot/{part}"));
        emptied(subject, dataset);
    });
}

fn no_room(test: &mut Test) {
    let dataset = test.step("a reserved volume in a pool without room", |_| {
        zfs::clear();
        zfs::make_pool();
        run("zfs create -V 8M -b 16K tank/vm1");
        zfs::wait_for_node();
        crate::content::overwrite(&zfs::device(), 1);
        run("zpool sync tank");
        // What is left is reserved only now, and not written: into a pool that is full ZFS writes slowly.
        run("zfs create -o mountpoint=none tank/filler");
        let free = zfs::property("tank", "available").parse::<u64>().expect("bytes");
        run(&format!("zfs set refreservation={} tank/filler", free - (2 << 20)));
        zfs::Dataset::existing(zfs::Kind::Zvol)
    });
    test.case(
        "a reserved volume needs its reservation again: said so, nothing changed",
        |subject| {
            let by_hand = try_run("zfs snapshot tank/vm1@hand");
            assert!(by_hand.stderr.contains("out of space"), "{}", by_hand.account());
            refused(subject, &dataset, "take", &[1], &["space", "room", "free"]);
        },
    );
    test.case("with room again it works", |subject| {
        run("zfs destroy tank/filler");
        subject.verb("take", dataset.locator(), &[]).expect(0);
        subject.verb("delete", dataset.locator(), &[]).expect(0);
        assert_eq!(dataset.snapshots(), Vec::<String>::new());
    });
}

fn not_there(test: &mut Test) {
    test.step("a dataset", |_| zfs::Dataset::new(zfs::Kind::Zvol, 8));
    for (place, codes) in [
        ("zfs:tank/none", &[1][..]),
        ("zfs:none/vm1", &[1]),
        ("zfs:", &[2]),
        ("zfs:tank/vm1@x", &[2]),
        ("zfs:tank//vm1", &[2]),
        ("zfs:-x/vm1", &[2]),
        ("zfs:tank/vm1#x", &[2]),
    ] {
        test.case(&format!("{place} is refused in words"), |subject| {
            let outcome = subject.verb("take", place, &[]);
            assert!(codes.contains(&outcome.code()), "{}", outcome.process.account());
            outcome.expect(outcome.code());
        });
    }
}
