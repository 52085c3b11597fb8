//! The fixtures themselves: what the other scenarios take for granted about tools, tap and judge.

use crate::harness::Test;
use crate::subject::{Content, Storage};
use crate::tap::{self, Trip};
use crate::tools::{run, run_failing, try_run};
use crate::{lvm, zfs};

fn a_judge_that_sees(test: &mut Test, storage: &dyn Storage) {
    test.step("content is read back as written, and a change is seen", |_| {
        storage.scribble(1);
        let first = storage.content();
        assert!(storage.content() == first, "two readings differ");
        storage.scribble(2);
        assert!(storage.content() != first, "a change was not seen");
        storage.scribble(1);
        storage.scribble(2);
        assert!(!matches!(&first, Content::Bytes(b) if b.iter().all(|x| *x == 0)));
    });
}

/// Through the tap as the engine would, by absolute path.
fn through_the_tap(test: &mut Test, looks: &str, changes: &str) {
    test.step("the tap lets commands through, and counts those that change storage", |_| {
        let call = |line: &str| {
            let line = format!("/usr/sbin/{line}");
            snapslot_test_support::run(shell(&line), std::time::Duration::from_secs(60))
        };
        let (_, ran) = tap::watch(|| {
            call(looks).expect_success();
            call(changes).expect_success();
        });
        assert_eq!(ran.iter().map(ToString::to_string).collect::<Vec<_>>(), [looks, changes]);
        assert_eq!(tap::changing(&ran), [changes]);
        tap::arm(Trip::Fail(1, 5));
        assert_eq!(call(looks).code, Some(0));
        assert_eq!(call(changes).code, Some(5));
        assert!(tap::tripped());
        // The shell that calls stands for the engine.
        tap::arm(Trip::After(1));
        let killed = call(&format!("{looks}; /usr/sbin/{changes}; echo survived"));
        assert_eq!((killed.code, killed.signal), (None, Some(9)), "{}", killed.account());
        tap::clear();
    });
}

fn shell(line: &str) -> std::process::Command {
    let mut command = std::process::Command::new("/usr/bin/bash");
    // Two commands, so that the shell stays and is a parent.
    command.args(["-c", &format!("{line}; exit $?")]);
    command
}

pub fn lvm(test: &mut Test) {
    for kind in [lvm::Kind::Thick, lvm::Kind::Thin] {
        let volume = test.step("a volume is made", |_| lvm::Volume::new(kind, 8));
        a_judge_that_sees(test, &volume);
        test.step("snapshots made and removed by hand come and go", |_| {
            let size = if kind == lvm::Kind::Thick { "-L 4M" } else { "" };
            run(&format!("lvcreate -qq -y -s {size} -n hand vg/vm1"));
            assert_eq!(volume.snapshots(), ["hand"]);
            assert!(volume.layout() != volume.base());
            volume.remove_by_hand("hand");
            assert_eq!(volume.layout(), volume.base());
        });
        test.step("an open volume is seen to be open", |_| {
            let open = std::fs::File::open(volume.device()).expect("the device");
            assert_eq!(volume.field("vm1", "lv_device_open"), "open");
            drop(open);
            assert_eq!(volume.field("vm1", "lv_device_open"), "");
        });
    }
    through_the_tap(test, "lvs vg", "lvchange --addtag x vg/vm1");
    test.case("a volume that is not there is an error", |_| {
        assert!(run_failing("lvs vg/none").contains("Failed to find logical volume"));
    });
}

pub fn zfs(test: &mut Test) {
    for kind in [zfs::Kind::Zvol, zfs::Kind::Mounted, zfs::Kind::Unmounted, zfs::Kind::Encrypted] {
        let dataset = test.step("a dataset is made", |_| zfs::Dataset::new(kind, 8));
        a_judge_that_sees(test, &dataset);
        test.step("a snapshot by hand goes back to what was", |_| {
            let before = dataset.content();
            run("zfs snapshot tank/vm1@hand");
            assert_eq!(dataset.snapshots(), ["tank/vm1@hand"]);
            dataset.scribble(3);
            run("zfs rollback tank/vm1@hand");
            dataset.content().expect(&before, "after a rollback by hand");
            dataset.remove_by_hand("tank/vm1@hand");
            assert_eq!(dataset.layout(), dataset.base());
        });
    }
    through_the_tap(test, "zfs list -H tank", "zfs set a:b=c tank");
    test.case("a dataset that is not there is an error", |_| {
        assert!(try_run("zfs list tank/none").stderr.contains("does not exist"));
    });
}
