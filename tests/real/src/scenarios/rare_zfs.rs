//! States of ZFS that are rare: snapshots that were sent or promoted away, file systems that somebody uses,
//! datasets and pools that are gone.

use std::fs::File;

use crate::harness::Test;
use crate::subject::Storage;
use crate::tap;
use crate::tools::{run, try_words};
use crate::zfs;

pub fn all(test: &mut Test) {
    replica(test);
    promoted(test);
    used(test);
    gone(test);
}

fn replica(test: &mut Test) {
    let dataset = test.step("a volume", |_| zfs::Dataset::new(zfs::Kind::Zvol, 8));
    dataset.scribble(1);
    test.case("a replica with the slot's snapshot in it holds no slot", |subject| {
        subject.verb("take", dataset.locator(), &[]).expect(0);
        let snapshot = dataset.snapshots().concat();
        let line = format!("zfs send -R {snapshot} | zfs receive tank/copy");
        try_words(&["bash", "-o", "pipefail", "-c", &line]).expect_success();
        zfs::wait_for_node();
        subject.snapslot().run(["enable", "zfs:tank/copy"]).expect(0);
        assert_eq!(subject.state("zfs:tank/copy"), "empty");
        // Of the two snapshots there only its own is removed.
        subject.verb("take", "zfs:tank/copy", &[]).expect(0);
        assert_eq!(subject.state("zfs:tank/copy"), "held");
        subject.verb("delete", "zfs:tank/copy", &[]).expect(0);
        let part = snapshot.rsplit('@').next().unwrap_or_default();
        assert_eq!(zfs::property(&format!("tank/copy@{part}"), "type"), "snapshot");
        subject.snapslot().run(["disable", "zfs:tank/copy"]).expect(0);
        assert_eq!(subject.state(dataset.locator()), "held");
        run("zfs destroy -r tank/copy");
        subject.verb("delete", dataset.locator(), &[]).expect(0);
        assert_eq!(dataset.layout(), dataset.base());
    });
}

fn promoted(test: &mut Test) {
    let dataset = test.step("a file system", |_| zfs::Dataset::new(zfs::Kind::Mounted, 8));
    test.fresh_records();
    dataset.scribble(1);
    let first = dataset.content();
    test.case(
        "promote moves the snapshot away: drifted here, no slot there; and back",
        |subject| {
            subject.verb("take", dataset.locator(), &[]).expect(0);
            dataset.scribble(2);
            run(&format!(
                "zfs clone -o mountpoint=none {} tank/clone",
                dataset.snapshots().concat()
            ));
            run("zfs promote tank/clone");
            assert_eq!(dataset.snapshots(), Vec::<String>::new());
            assert_eq!(subject.state(dataset.locator()), "drifted");
            subject.snapslot().run(["enable", "zfs:tank/clone"]).expect(0);
            assert_eq!(subject.state("zfs:tank/clone"), "empty");
            subject.snapslot().run(["disable", "zfs:tank/clone"]).expect(0);
            let (said, ran) = tap::watch(|| subject.verb("restore", dataset.locator(), &[]));
            said.expect(8);
            assert_eq!(tap::changing(&ran), Vec::<String>::new());
            run("zfs promote tank/vm1");
            run("zfs destroy tank/clone");
            assert_eq!(subject.state(dataset.locator()), "held");
            subject.verb("restore", dataset.locator(), &[]).expect(0);
            dataset.content().expect(&first, "restored once the snapshot was back");
            subject.verb("delete", dataset.locator(), &[]).expect(0);
            assert_eq!(dataset.layout(), dataset.base());
        },
    );
}

fn used(test: &mut Test) {
    let dataset = test.step("a mounted file system", |_| zfs::Dataset::new(zfs::Kind::Mounted, 8));
    test.fresh_records();
    dataset.scribble(1);
    let first = dataset.content();
    test.case(
        "a file of it that somebody has open: not restored, and by whom is said",
        |subject| {
            std::fs::write("/mnt/vm1/open", "open").expect("a file");
            subject.verb("take", dataset.locator(), &[]).expect(0);
            let open = File::open("/mnt/vm1/open").expect("the file");
            let (said, ran) = tap::watch(|| subject.verb("restore", dataset.locator(), &[]));
            drop(open);
            said.expect(5);
            let pid = std::process::id().to_string();
            assert!(said.process.account().contains(&pid), "{}", said.process.account());
            assert_eq!(tap::changing(&ran), Vec::<String>::new());
            std::fs::write("/mnt/vm1/open", "other").expect("a file");
            subject.verb("restore", dataset.locator(), &[]).expect(0);
            assert_eq!(std::fs::read("/mnt/vm1/open").expect("the file"), b"open");
            std::fs::remove_file("/mnt/vm1/open").expect("the file");
            dataset.content().expect(&first, "restored once nobody had it open");
            subject.verb("delete", dataset.locator(), &[]).expect(0);
            assert_eq!(dataset.layout(), dataset.base());
        },
    );
}

fn gone(test: &mut Test) {
    test.fresh_records();
    let dataset = test.step("two volumes, one machine", |subject| {
        let dataset = zfs::Dataset::new(zfs::Kind::Zvol, 8);
        run("zfs create -s -V 8M -b 16K tank/vm2");
        zfs::wait_for_node();
        let both = ["enable", "pair", "--volume", dataset.locator(), "--volume", "zfs:tank/vm2"];
        subject.snapslot().run(both).expect(0);
        subject.verb("take", "pair", &[]).expect(0);
        dataset
    });
    test.case("the pool is not imported: nothing is concluded from that", |subject| {
        run("zpool export tank");
        for verb in ["delete", "restore"] {
            assert_eq!(subject.verb(verb, "pair", &[]).expect(1)["error"]["code"], "no-pool");
        }
        assert_ne!(subject.snapslot().run(["disable", "pair"]).code(), 0);
        run("zpool import -d /dev tank");
        zfs::wait_for_node();
        assert_eq!(subject.state("pair"), "held");
    });
    test.case("one of them destroyed by hand: said so, emptied, disabled", |subject| {
        run("zfs destroy -r tank/vm2");
        let content = dataset.content();
        let restore = subject.verb("restore", "pair", &[]);
        assert_eq!(restore.code(), 1, "{}", restore.process.account());
        assert!(restore.process.account().contains("tank/vm2"), "{}", restore.process.account());
        assert_ne!(subject.snapslot().run(["disable", "pair"]).code(), 0);
        subject.verb("delete", "pair", &[]).expect(0);
        dataset.content().expect(&content, "of the volume that is there");
        assert_eq!(dataset.snapshots(), Vec::<String>::new());
        subject.snapslot().run(["disable", "pair"]).expect(0);
    });
}
