//! States of storage that are rare, and what is made of them.

use snapslot_engine::{Asked, EngineError, Measure, Room, Verb};
use snapslot_slot::State;
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::Kind;
use snapslot_testkit::storage::together::Together;

use crate::Act;
use crate::machines::{Image, Machine, NAME, ready};

#[test]
fn a_thin_volume_with_an_external_origin_keeps_its_slot() {
    // Story: see the LVM plugin's `an_external_origin_is_no_origin`. Here the whole way.
    let storage = Together::new(&[Kind::Thin]);
    for line in [
        "lvcreate -y -L 64M -n base vg",
        "lvchange -an vg/base",
        "lvchange -pr vg/base",
        "lvcreate -y -s --thinpool vg/pool -n vm9 vg/base",
    ] {
        storage.hand(line);
    }
    let lvm = storage.lvm();
    let write = |value| lvm.guest_write("vg/vm9", 3, value).expect("room");
    let sees = || lvm.guest_read("vg/vm9", 3).expect("a block");
    write(1);
    let machine = Machine::around(storage.clone());
    let run = |verb| {
        let done = machine.engine().operate("lvm:vg/vm9", verb, &Asked::default(), &|_, _, _| ());
        done.unwrap_or_else(|e| panic!("{verb:?}: {e}"))
    };
    run(Verb::Take);
    for value in [2, 3] {
        write(value);
        let done = run(Verb::Restore);
        assert_eq!(sees(), 1);
        assert!(matches!(done.slot, State::Held { .. }), "{:?}", done.slot);
        let slot = machine.engine().status("lvm:vg/vm9", Measure::Not).expect("a status").slot;
        assert!(matches!(slot, State::Held { .. }), "{slot:?}");
    }
    run(Verb::Delete);
    assert_eq!(storage.others(), Vec::<String>::new());
}

#[test]
fn a_merge_that_takes_long_is_waited_for() {
    // Story: the host went down in the middle of a large merge. After the next boot every verb ended with 8
    // and said that the machine should stay off, though it could be used and nothing was wrong.
    let (machine, _) = ready(&[Kind::Thick], Image::None, Act::Restore);
    let lvm = machine.storage.lvm();
    lvm.slow_merges(1_000);
    // Marked, deactivated, activated, merged.
    machine.storage.crash_at(4, When::Inside);
    let _ = machine.run(Verb::Restore, &Asked::default());
    assert!(machine.storage.restart());
    assert_eq!(machine.sees(), Ok(1), "it shows the snapshot's content already");
    let mut errors = vec![machine.engine().recover(NAME).expect_err("it is under way")];
    for (verb, asked) in Act::ALL.map(Act::verb) {
        errors.push(machine.run(verb, &asked).expect_err("it is under way"));
    }
    for error in errors {
        let words = error.to_string();
        assert_eq!(error.exit(), 5, "{words}");
        assert!(words.contains("50.00 %") && words.contains("can be used"), "{words}");
    }
    let status = machine.engine().status(NAME, Measure::Not).expect("a status");
    let unfinished = status.volumes[0].unfinished.clone().expect("it is told");
    assert!(unfinished.contains("50.00 %"), "{unfinished}");
    for _ in 0..1_000 {
        lvm.hand("lvs vg");
    }
    machine.engine().recover(NAME).expect("through");
    assert_eq!((machine.sees(), machine.slot()), (Ok(1), State::Empty));
    machine.run(Verb::Take, &Asked::default()).expect("the slot works on");
}

#[test]
fn two_volumes_of_a_group_share_what_is_free() {
    let machine = Machine::new(&[Kind::Thick, Kind::Thick], Image::None);
    // 1 GiB in all, 128 MiB in the volumes: less is left than both stores would like.
    machine.storage.hand("lvcreate -y -L 800M -n filler vg");
    let store = |name: &str| -> u64 {
        let names = machine.storage.others();
        let name = names.iter().find(|n| n.starts_with(name)).expect("a snapshot");
        machine.storage.lvm().field(&format!("vg/{name}"), "lv_size").parse().expect("bytes")
    };
    let taken = machine.run(Verb::Take, &Asked::default());
    taken.unwrap_or_else(|e| panic!("{e}"));
    let sizes = [store("vm1_"), store("vm2_")];
    assert_eq!(sizes[0], sizes[1]);
    assert!((32 << 20..=48 << 20).contains(&sizes[0]), "{sizes:?}");
    machine.run(Verb::Delete, &Asked::default()).expect("deleted");
    // What is asked for both and does not fit is refused before anything is made.
    let changes = machine.storage.log().len();
    let asked = Asked { room: Some(Room::Percent(100)), ..Asked::default() };
    let error = machine.run(Verb::Take, &asked).expect_err("no room for both");
    assert_eq!((error.exit(), error.code().as_str()), (1, "no-space"), "{error}");
    assert!(error.to_string().contains("other volumes"), "{error}");
    let made = machine.storage.log().split_off(changes);
    assert!(made.iter().all(|line| line.starts_with("lvs ")), "{made:?}");
}

#[test]
fn what_is_consumed_is_not_made_again() {
    // Story: `--consume` on a thick volume merged the snapshot, took it again with all its room, and
    // removed that.
    let (machine, _) = ready(&[Kind::Thick], Image::None, Act::Consume);
    let before = machine.storage.log().len();
    let (verb, asked) = Act::Consume.verb();
    machine.run(verb, &asked).expect("consumed");
    let ran = machine.storage.log().split_off(before);
    let makes = |line: &String| line.starts_with("lvcreate") || line.starts_with("lvremove");
    assert!(!ran.iter().any(makes), "{ran:#?}");
    assert_eq!((machine.sees(), machine.slot()), (Ok(1), State::Empty));
    assert_eq!(machine.storage.others(), Vec::<String>::new());
}

#[test]
fn the_volume_to_be_is_not_active_beside_the_volume() {
    // Story: the restored volume was active under another name while the old one was: two devices with the
    // same UUIDs and labels, for as long as a crash kept them so.
    let (machine, _) = ready(&[Kind::Thin], Image::None, Act::Restore);
    // Made and marked; then the engine dies.
    machine.storage.crash_at(3, When::Before);
    let _ = machine.run(Verb::Restore, &Asked::default());
    assert!(machine.storage.restart());
    let lvm = machine.storage.lvm();
    assert_eq!(lvm.field("vg/vm1_snapslot_new", "lv_active"), "");
    assert_eq!(lvm.field("vg/vm1", "lv_active"), "active");
    machine.engine().recover(NAME).expect("recovered");
    assert_eq!(lvm.field("vg/vm1", "lv_active"), "active");
    // And it is active in the end, if the volume was.
    for active in [true, false] {
        machine.storage.hand(&format!("lvchange -a{} vg/vm1", if active { 'y' } else { 'n' }));
        machine.run(Verb::Restore, &Asked::default()).expect("restored");
        assert_eq!(lvm.field("vg/vm1", "lv_active") == "active", active);
    }
}

#[test]
fn an_inactive_store_may_have_run_over() {
    let (machine, _) = ready(&[Kind::ThickInactive], Image::None, Act::Restore);
    let status = machine.engine().status(NAME, Measure::Not).expect("a status");
    let told = status.volumes[0].findings.iter().any(|f| f.code == "fill-unknown" && !f.blocks);
    assert!(told, "{:?}", status.volumes[0].findings);
    machine.storage.hand("lvchange -ay vg/vm1");
    let status = machine.engine().status(NAME, Measure::Not).expect("a status");
    assert!(status.volumes[0].findings.is_empty(), "{:?}", status.volumes[0].findings);
}

#[test]
fn a_machine_whose_volume_is_gone_is_emptied_and_disabled() {
    // Story: a logical volume was removed, and its machine could never be emptied nor disabled again.
    for (kinds, remove) in [
        (&[Kind::Thin][..], &["lvremove -y vg/vm1"][..]),
        (&[Kind::Thick], &["lvremove -y vg/vm1"]),
        (&[Kind::Thin, Kind::Zvol], &["lvremove -y vg/vm1"]),
        (&[Kind::Zvol, Kind::Thin], &["zfs destroy -r tank/vm1"]),
        (&[Kind::Zvol, Kind::Thin], &["zfs destroy -r tank/vm1", "lvremove -y vg/vm2"]),
    ] {
        let at = format!("{kinds:?} {remove:?}");
        let machine = Machine::new(kinds, Image::None);
        machine.run(Verb::Take, &Asked::default()).unwrap_or_else(|e| panic!("{at}: {e}"));
        remove.iter().for_each(|line| machine.storage.hand(line));
        let error = machine.run(Verb::Restore, &Asked::default()).expect_err("it is gone");
        assert_eq!((error.exit(), error.code().starts_with("no-")), (1, true), "{at}: {error}");
        if remove.len() < kinds.len() {
            // What is there holds a part of the slot still.
            let error = machine.engine().disable(NAME).expect_err("not empty");
            assert!(matches!(error, EngineError::Refused { .. }), "{at}: {error}");
        }
        let done = machine.run(Verb::Delete, &Asked::default());
        let done = done.unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_eq!(done.slot, State::Empty, "{at}");
        let zfs = machine.storage.zfs();
        let left = kinds.iter().enumerate().filter(|(_, kind)| Kind::ZFS.contains(kind));
        for (i, _) in left {
            let place = machine.storage.place(i);
            let there = zfs.typed(&format!("zfs list -Hp -o name {place}")).exit_code == 0;
            assert!(!there || zfs.snapshots(&place).is_empty(), "{at}: {place}");
        }
        machine.engine().disable(NAME).unwrap_or_else(|e| panic!("{at}: {e}"));
    }
    // A pool that is not imported may hold all of it.
    let machine = Machine::new(&[Kind::Zvol], Image::None);
    machine.run(Verb::Take, &Asked::default()).expect("a take");
    machine.storage.zfs().remove_pool("tank");
    for error in [
        machine.run(Verb::Delete, &Asked::default()).expect_err("nobody knows"),
        machine.engine().disable(NAME).expect_err("nobody knows"),
    ] {
        assert_eq!((error.exit(), error.code().as_str()), (1, "no-pool"), "{error}");
    }
}

#[test]
fn volumes_of_one_group_are_told_by_one_report() {
    // Story: a list of a hundred machines asked LVM a hundred times for the same report.
    let machine = Machine::new(&[Kind::Thin, Kind::Thick, Kind::Thin], Image::None);
    let names = ["a", "b"].map(str::to_owned);
    machine.storage.hand("lvcreate -y -L 64M -n vm7 vg");
    machine.storage.hand("lvcreate -y -L 64M -n vm8 vg");
    machine.engine().enable("a", &["lvm:vg/vm7".to_owned()]).expect("a slot");
    machine.engine().enable("b", &["lvm:vg/vm8".to_owned()]).expect("a slot");
    let all = [vec![NAME.to_owned()], names.to_vec()].concat();
    let before = machine.storage.log().len();
    let found = machine.engine().statuses(&all, Measure::Wholly);
    assert!(found.iter().all(Result::is_ok), "{found:?}");
    let ran = machine.storage.log().split_off(before);
    assert_eq!(ran.len(), 1, "{ran:#?}");
}
