//! What is planned and what is refused.

use snapslot_plugin_sdk::{Argument, FailureKind};

use super::*;
use crate::grants::{DESTROY, DESTROY_MOUNTED, HOLDS, ROLLBACK, ROLLBACK_MOUNTED, TAKE, WRITTEN};

/// The slot's snapshot of tank/vm1 in the first sections of the record.
const VM1: u64 = 10574076448428932593;

fn is(failure: &Failure, kind: FailureKind, code: &str, part: &str) {
    assert_eq!((failure.kind, failure.code.as_str()), (kind, code), "{failure:?}");
    assert!(failure.message.contains(part), "{}", failure.message);
}

#[test]
fn a_take() {
    let target = seen("setup", "tank/vm1", 0);
    let plan = planned(&target, &held(MARK)).expect("a plan");
    let arguments: Vec<Argument> = vec![
        argument("snapshot", "snapslot-0123456789abcdef"),
        argument("mark", MARK),
        argument("seconds", "1795344146"),
        argument("nanoseconds", "5"),
        argument("guid", "17065991963253178052"),
    ];
    assert_eq!(plan.steps, [Recorded::Act(TAKE.to_owned(), arguments)]);
    assert_eq!(plan.notes, Vec::<String>::new(), "its reservation covers it all");
    // That very command was run next: there is nothing left to do.
    assert_eq!(steps(&seen("zvol", "tank/vm1", 0), &held(MARK)), []);
    // File systems, and encrypted ones without key, are no different.
    for target in [seen("setup", "tank/ds", 0), seen("encrypted", "tank/enc", 1)] {
        assert_eq!(steps(&target, &held(OTHER_MARK)).len(), 1, "{}", target.place);
    }
}

#[test]
fn a_take_tells_of_room() {
    let target = seen("setup", "tank/vm1", 0);
    let mut goal = held(MARK);
    if let Goal::Held(new) = &mut goal {
        new.room = Some(1 << 30);
    }
    let notes = planned(&target, &goal).expect("a plan").notes;
    assert!(notes.len() == 1 && notes[0].contains("sets no room aside"), "{notes:?}");
    // A sparse volume of 100 MiB in a pool that has 50 left (field changed: no reservation).
    let sparse = changed(seen("full", "tank/res", 0), "tank/res", "refreservation", "0");
    let notes = planned(&sparse, &held(MARK)).expect("a plan").notes;
    assert!(notes.len() == 1 && notes[0].contains("51585024 bytes are free"), "{notes:?}");
}

/// Where ZFS said `out of space` the plan is refused, and where it went well it is not.
#[test]
fn room_for_a_reservation_is_judged_as_zfs_does() {
    assert_eq!(said("full", "zfs snapshot", 0).exit_code, 1);
    let failure = refused(&seen("full", "tank/res", 0), &held(MARK));
    is(&failure, FailureKind::NoSpace, "no-space", "refreservation");
    assert_eq!((data(&failure, "needed"), data(&failure, "available")), ("106053632", "47276032"));
    assert_eq!(said("full", "zfs snapshot", 1).exit_code, 0);
    assert_eq!(steps(&seen("full", "tank/res", 1), &held(MARK)).len(), 1);
    // A restore meets the same rule.
    let slot = 11196723206483369277;
    assert_eq!(said("full-restore", "zfs program", 0).exit_code, 1);
    let failure = refused(&seen("full-restore", "tank/res", 0), &restored(slot));
    is(&failure, FailureKind::NoSpace, "no-space", "refreservation");
    assert_eq!((data(&failure, "needed"), data(&failure, "available")), ("17014784", "7975424"));
    assert_eq!(said("full-restore", "zfs program", 1).exit_code, 0);
    let target = seen("full-restore", "tank/res", 1);
    assert_eq!(steps(&target, &restored(slot)), act(ROLLBACK, MARK, slot));
    // With a refquota the listing does not show the room for the reservation: ZFS must judge.
    let quota = changed(seen("full", "tank/res", 0), "tank/res", "refquota", "1");
    assert_eq!(steps(&quota, &held(MARK)).len(), 1);
}

#[test]
fn a_take_that_would_clash() {
    // Its own property on the dataset makes no snapshot ours.
    let failure = refused(&seen("names", "tank/vm1", 0), &held(OTHER_MARK));
    is(&failure, FailureKind::Unsupported, "name-clash", "tank/vm1@snapslot-fedcba9876543210");
}

#[test]
fn nothing_during_a_receive() {
    for (dataset, n) in [("tank/rec", 0), ("tank/rec2", 0)] {
        let failure = refused(&seen("receiving", dataset, n), &held(MARK));
        is(&failure, FailureKind::InUse, "receiving", dataset);
    }
    let token = "1-c4f7cf443-e0-789c";
    let target = changed(seen("zvol", "tank/vm1", 0), "tank/vm1", "receive_resume_token", token);
    is(&refused(&target, &restored(VM1)), FailureKind::InUse, "receiving", "tank/vm1");
    // What is ours may go.
    assert_eq!(steps(&target, &empty(VM1)), act(DESTROY, MARK, VM1));
}

/// Whoever has it open, or mounted elsewhere, is seen by the program alone.
#[test]
fn what_is_in_use_is_found_by_zfs() {
    for (section, dataset, guid) in [
        ("zvol", "tank/vm1", VM1),
        ("mounted-volume", "tank/vm1", 11999227782022582019),
        ("mounted-elsewhere", "tank/ds", 10410031775114108939),
    ] {
        let n = usize::from(section == "zvol");
        assert_eq!(steps(&seen(section, dataset, n), &restored(guid)), act(ROLLBACK, MARK, guid));
        let answer = said(section, "rollback.lua", 0);
        is(&Zfs::explain(ROLLBACK, &answer), FailureKind::InUse, "in-use", dataset);
    }
}

/// Volumes and unmounted file systems by the program, mounted ones by the command.
#[test]
fn a_restore() {
    let plan = planned(&seen("zvol", "tank/vm1", 1), &restored(VM1)).expect("a plan");
    assert_eq!((plan.steps, plan.notes.len()), (act(ROLLBACK, MARK, VM1), 0));
    let (mounted, unmounted) = (14611376746204108196, 738753335253132100);
    let plan = planned(&seen("fs", "tank/ds", 1), &restored(mounted)).expect("a plan");
    assert_eq!(plan.steps, act(ROLLBACK_MOUNTED, MARK, mounted));
    assert!(plan.notes.len() == 1 && plan.notes[0].contains("is mounted"), "{:?}", plan.notes);
    let target = seen("fs", "tank/ds", 3);
    assert_eq!(steps(&target, &restored(unmounted)), act(ROLLBACK, MARK, unmounted));
    let locked = 12822180801029214347;
    let target = seen("encrypted", "tank/enc", 1);
    assert_eq!(steps(&target, &restored(locked)), act(ROLLBACK, MARK, locked));
    // After it, the same again: whether anything was written since cannot be known.
    assert_eq!(steps(&seen("zvol", "tank/vm1", 2), &restored(VM1)), act(ROLLBACK, MARK, VM1));
}

#[test]
fn a_restore_tells_what_else_changes() {
    let notes = planned(&seen("grow", "tank/vm1", 0), &restored(VM1)).expect("a plan").notes;
    assert!(notes.len() == 2 && notes[0].contains("from 50331648 to 33554432"), "{notes:?}");
    // A channel program leaves the reservation as it is; `zfs rollback` would have it follow.
    assert!(notes[1].contains("stays 54001664 bytes"), "{notes:?}");
    let sparse = changed(seen("grow", "tank/vm1", 0), "tank/vm1", "refreservation", "none");
    assert_eq!(planned(&sparse, &restored(VM1)).expect("a plan").notes.len(), 1);
    let target = changed(seen("fs", "tank/ds", 3), "tank/ds", "refquota", "99999999");
    let notes = planned(&target, &restored(738753335253132100)).expect("a plan").notes;
    assert!(notes.len() == 1 && notes[0].contains("refquota stays"), "{notes:?}");
}

#[test]
fn what_is_newer_blocks_a_restore_by_name() {
    let failure = refused(&seen("zvol", "tank/vm1", 3), &restored(VM1));
    let names = "tank/vm1@with space, tank/vm1@daily-2, tank/vm1@daily-1;";
    is(&failure, FailureKind::Unsupported, "newer-snapshots", names);
    assert_eq!((data(&failure, "newest"), data(&failure, "count")), ("tank/vm1@with space", "3"));
    let failure = refused(&seen("zvol", "tank/vm1", 4), &restored(VM1));
    is(&failure, FailureKind::Unsupported, "newer-bookmarks", "tank/vm1#mark");
    // A bookmark of the slot's own snapshot has its transaction group, and is no hindrance.
    let same = changed(seen("zvol", "tank/vm1", 4), "tank/vm1#mark", "createtxg", "19");
    assert_eq!(steps(&same, &restored(VM1)), act(ROLLBACK, MARK, VM1));
    // A newer slot's, when another is to be restored.
    let older = seen("encrypted", "tank/enc", 2);
    let failure = refused(&older, &restored(12822180801029214347));
    is(&failure, FailureKind::Unsupported, "newer-snapshots", "snapslot-fedcba9876543210");
    assert_eq!(
        steps(&older, &restored(11255622849086086827)),
        act(ROLLBACK, OTHER_MARK, 11255622849086086827)
    );
}

#[test]
fn many_names_are_counted() {
    let mut target = seen("zvol", "tank/vm1", 3);
    let line = String::from_utf8(target.answers[0].1.output.clone()).expect("text");
    let line = line.lines().last().expect("a line").to_owned();
    for n in 0..40 {
        let more = line
            .replace("with space", &format!("n{n}"))
            .replace("\t42\t", &format!("\t{}\t", 50 + n));
        target.answers[0].1.output.extend_from_slice(more.as_bytes());
        target.answers[0].1.output.push(b'\n');
    }
    let failure = refused(&target, &restored(VM1));
    let part = "tank/vm1@n39, tank/vm1@n38, tank/vm1@n37 (and 40 more)";
    is(&failure, FailureKind::Unsupported, "newer-snapshots", part);
}

#[test]
fn holds_and_clones_block_a_delete_and_no_restore() {
    let held = seen("holds", "tank/vm1", 0);
    let cloned = seen("clones", "tank/vm1", 0);
    for target in [&held, &cloned] {
        assert_eq!(steps(target, &restored(VM1)), act(ROLLBACK, MARK, VM1));
    }
    // Who holds it is asked only now, and is a courtesy.
    let failure = refused(&held, &empty(VM1));
    is(&failure, FailureKind::InUse, "held", "has 2 holds");
    let mut asked = held;
    asked.answers.push((HOLDS.to_owned(), said("holds", "zfs holds", 0)));
    is(&refused(&asked, &empty(VM1)), FailureKind::InUse, "held", "held by keep, two words;");
    is(&refused(&cloned, &empty(VM1)), FailureKind::InUse, "cloned", "tank/cl, tank/cl2;");
}

#[test]
fn a_refquota_below_the_snapshot() {
    let failure = refused(&seen("refquota", "tank/ds", 0), &restored(6198487326949491496));
    is(&failure, FailureKind::NoSpace, "refquota", "raise it");
    assert_eq!((data(&failure, "needed"), data(&failure, "available")), ("4304896", "1048576"));
}

#[test]
fn a_delete() {
    assert_eq!(steps(&seen("zvol", "tank/vm1", 0), &empty(VM1)), act(DESTROY, MARK, VM1));
    // Newer snapshots do not matter.
    assert_eq!(steps(&seen("zvol", "tank/vm1", 3), &empty(VM1)), act(DESTROY, MARK, VM1));
    let mounted = 14611376746204108196;
    let target = seen("fs", "tank/ds", 1);
    assert_eq!(steps(&target, &empty(mounted)), act(DESTROY_MOUNTED, MARK, mounted));
    let unmounted = 738753335253132100;
    let target = seen("fs", "tank/ds", 3);
    assert_eq!(steps(&target, &empty(unmounted)), act(DESTROY, MARK, unmounted));
    // It ran, in the record, right before this look: nothing is left to do.
    assert_eq!(steps(&seen("fs", "tank/ds", 2), &empty(mounted)), []);
    // Nor for what never was a guid.
    assert_eq!(steps(&target, &Goal::Empty("no guid".to_owned())), []);
}

/// The guid alone does not make it ours.
#[test]
fn what_was_renamed_is_not_touched() {
    let own = format!("tank/vm1@snapslot-{MARK}");
    let renamed = changed(seen("zvol", "tank/vm1", 0), &own, "name", "tank/vm1@keep");
    let unmarked = changed(seen("zvol", "tank/vm1", 0), &own, "snapslot:mark", "-");
    let crossed = changed(seen("zvol", "tank/vm1", 0), &own, "snapslot:mark", OTHER_MARK);
    for (target, name) in [(renamed, "@keep"), (unmarked, "@snapslot-"), (crossed, "@snapslot-")] {
        for goal in [restored(VM1), empty(VM1)] {
            is(&refused(&target, &goal), FailureKind::Changed, "renamed", name);
        }
    }
}

#[test]
fn a_snapshot_that_is_gone_cannot_be_restored() {
    for identity in ["1", "", "-1", "x"] {
        let failure = refused(&seen("zvol", "tank/vm1", 0), &Goal::Restored(identity.to_owned()));
        is(&failure, FailureKind::NotFound, "no-snapshot", "tank/vm1");
    }
}

/// Nothing is ever half done, so nothing is even looked at.
#[test]
fn settled_is_nothing() {
    let blind = MemoryTarget { place: "tank/vm1".to_owned(), ..MemoryTarget::default() };
    assert_eq!(steps(&blind, &Goal::Settled), []);
}

#[test]
fn how_far_it_moved_away() {
    let measured =
        |target: &MemoryTarget, guid: u64| Zfs::measure(target, &guid.to_string(), false);
    let fs = measured(&seen("fs", "tank/ds", 1), 14611376746204108196).expect("a measure");
    assert_eq!((fs.changed_bytes, fs.held_bytes), (61440, 61440));
    // With newer snapshots `written` of the dataset counts from the newest: it is asked anew.
    let mut target = seen("zvol", "tank/vm1", 3);
    assert_eq!(measured(&target, VM1).map_err(|f| f.code), Err("no-query".to_owned()));
    target.answers.push((WRITTEN.to_owned(), said("zvol", "zfs get", 0)));
    let vm1 = measured(&target, VM1).expect("a measure");
    assert_eq!((vm1.changed_bytes, vm1.held_bytes), (8192, 8192));
    // ZFS says `-` for a snapshot that is gone.
    target.answers[1].1 = said("zvol", "zfs get", 1);
    assert_eq!(measured(&target, VM1).map_err(|f| f.code), Err("no-measure".to_owned()));
    // The newest needs no more than the look; what is not ours is counted only then.
    assert!(measured(&target, 12721749188957276663).is_ok());
    assert!(measured(&target, 9454046132672159867).is_err_and(|f| f.code == "no-measure"));
    assert!(measured(&target, 1).is_err_and(|f| f.kind == FailureKind::NotFound));
}

#[test]
fn a_look_that_fails_fails_the_plan() {
    let mut target = answering("nopool/x", said("setup", "nopool/x", 0));
    let pool = Answer { exit_code: 1, output: Vec::new(), errors: Vec::new() };
    target.answers.push((grants::POOL.to_owned(), pool));
    for goal in [held(MARK), restored(1), empty(1)] {
        is(&refused(&target, &goal), FailureKind::Io, "no-pool", "nopool");
    }
}
