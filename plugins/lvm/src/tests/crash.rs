//! Goal: whatever command a crash stops, before, inside or after, the volume's content and the
//! slot's are not lost, one plan to `settled` ends what is half done, and the goal can be reached
//! from there. A second crash, inside the settling, changes nothing of that.
//!
//! Method: every plan is run on a group in memory up to every point; then, from every point, the
//! settling up to every point of its own. A failure prints the scenario and the points.

use snapslot_plugin_sdk::Goal;
use snapslot_plugin_sdk::double::RecordedPlan;

use super::group::{End, Group, NOW, THEN, Volume};
use super::{MARK, facts, held, plan, short};

/// A volume as machines have them.
struct Scenario {
    name: &'static str,
    thin: bool,
    change: fn(&mut Volume),
}

const SCENARIOS: [Scenario; 7] = [
    Scenario { name: "thin", thin: true, change: |_| {} },
    Scenario { name: "thin, inactive", thin: true, change: |v| v.active = false },
    Scenario {
        name: "thin, read-only, skipped, not autoactivated",
        thin: true,
        change: |v| {
            v.read_only = true;
            v.skipped = true;
            v.auto = false;
        },
    },
    Scenario {
        name: "thin, tagged",
        thin: true,
        change: |v| v.tags = vec!["customer=7".to_owned(), "backup".to_owned()],
    },
    Scenario { name: "thick", thin: false, change: |_| {} },
    Scenario { name: "thick, inactive", thin: false, change: |v| v.active = false },
    Scenario {
        name: "thick, tagged",
        thin: false,
        change: |v| v.tags = vec!["customer=7".to_owned()],
    },
];

fn start(scenario: &Scenario, held: bool) -> Group {
    let mut group = if held { Group::held(scenario.thin) } else { Group::new(scenario.thin) };
    let volume = group.find_mut("vm1").expect("the volume");
    (scenario.change)(volume);
    let active = volume.active;
    for v in group.volumes.iter_mut().filter(|v| !v.thin) {
        v.active = active;
    }
    group
}

/// Every state in which a crash may leave a plan: what it is called, and the group.
fn stops(before: &Group, plan: &RecordedPlan, what: &str) -> Vec<(String, Group)> {
    let mut all = vec![(format!("{what}: before anything"), before.clone())];
    let mut group = before.clone();
    for (i, line) in short(plan).iter().enumerate() {
        let mut torn = group.clone();
        if torn.step(&plan.steps[i], End::Inside).unwrap_or_else(|why| panic!("{line}: {why}")) {
            all.push((format!("{what}: inside {line}"), torn));
        }
        group.step(&plan.steps[i], End::Well).unwrap_or_else(|why| panic!("{line}: {why}"));
        all.push((format!("{what}: after {line}"), group.clone()));
    }
    all
}

fn planned(group: &Group, goal: &Goal, what: &str) -> RecordedPlan {
    plan(group, goal).unwrap_or_else(|failure| panic!("{what}: no plan to {goal:?}: {failure:?}"))
}

/// What is true at every moment of a restore, and of its settling.
fn check_nothing_lost(group: &Group, what: &str) {
    let now = group.volumes.iter().any(|v| v.content == NOW && v.origin.is_none());
    let restored = ["vm1", "vm1_snapslot_new"]
        .iter()
        .any(|name| group.find(name).is_some_and(|v| v.content == THEN));
    assert!(now || restored, "{what}: the volume's content is gone: {group:#?}");
    let slot = group.volumes.iter().any(|v| v.content == THEN);
    assert!(slot, "{what}: the slot's content is gone: {group:#?}");
}

/// What is true once all is settled: nothing of ours is left but the slot, and the volume is what
/// it was but for its content.
fn check_settled(group: &Group, scenario: &Scenario, what: &str) {
    let facts = facts(group).unwrap_or_else(|failure| panic!("{what}: {failure:?}"));
    assert_eq!(facts.unfinished, None, "{what}: {group:#?}");
    let again = planned(group, &Goal::Settled, what);
    assert_eq!(short(&again), Vec::<String>::new(), "{what}: it is settled: {group:#?}");
    let volume = group.find("vm1").unwrap_or_else(|| panic!("{what}: no volume: {group:#?}"));
    let fresh = start(scenario, false);
    let mut like = fresh.find("vm1").expect("the volume").clone();
    like.content = volume.content;
    like.uuid.clone_from(&volume.uuid);
    like.origin.clone_from(&volume.origin);
    let mut volume = volume.clone();
    volume.tags.sort();
    like.tags.sort();
    assert_eq!(volume, like, "{what}: the volume is not as it was");
    for v in &group.volumes {
        let known = v.name == "vm1" || v.name == format!("vm1_snapslot_{MARK}");
        assert!(known, "{what}: {} is left: {group:#?}", v.name);
    }
}

#[test]
fn a_restore_survives_crashes_everywhere() {
    let mut points = 0;
    for scenario in &SCENARIOS {
        let before = start(scenario, true);
        let identity = before.slot().expect("the slot").uuid.clone();
        let goal = Goal::Restored(identity.clone());
        let restore = planned(&before, &goal, scenario.name);
        let mut after = before.clone();
        after.run(&restore).unwrap_or_else(|why| panic!("{}: {why}", scenario.name));
        check_settled(&after, scenario, scenario.name);
        assert_eq!(after.find("vm1").map(|v| v.content), Some(THEN), "{}", scenario.name);
        let slot = after.slot().unwrap_or_else(|| panic!("{}: no slot", scenario.name));
        assert_eq!(slot.content, THEN, "{}", scenario.name);

        for (what, group) in stops(&before, &restore, scenario.name) {
            check_nothing_lost(&group, &what);
            let settle = planned(&group, &Goal::Settled, &what);
            for (what, mut group) in stops(&group, &settle, &what) {
                points += 1;
                check_nothing_lost(&group, &what);
                let rest = planned(&group, &Goal::Settled, &what);
                group.run(&rest).unwrap_or_else(|why| panic!("{what}: {why}"));
                check_settled_after_merge(&group, scenario, &what);
                check_nothing_lost(&group, &what);
                // The slot survives, but for the moment between a thick merge and the take.
                let Some(slot) = group.slot() else {
                    assert!(!scenario.thin, "{what}: the slot is gone");
                    assert_eq!(group.find("vm1").map(|v| v.content), Some(THEN), "{what}");
                    continue;
                };
                let again = planned(&group, &Goal::Restored(slot.uuid.clone()), &what);
                group.run(&again).unwrap_or_else(|why| panic!("{what}: {why}"));
                assert_eq!(group.find("vm1").map(|v| v.content), Some(THEN), "{what}");
                check_settled_after_merge(&group, scenario, &what);
            }
            // Asked for the goal itself, it plans the rest as well.
            if !group.volumes.iter().any(|v| v.merging)
                && let Some(slot) = group.slot()
            {
                let mut group = group.clone();
                let rest = planned(&group, &Goal::Restored(slot.uuid.clone()), &what);
                group.run(&rest).unwrap_or_else(|why| panic!("{what}: {why}"));
                assert_eq!(group.find("vm1").map(|v| v.content), Some(THEN), "{what}");
                check_settled_after_merge(&group, scenario, &what);
            }
        }
    }
    assert!(points >= 120, "only {points} points were tried");
}

/// As [`check_settled`]; a merge that a crash broke off leaves an inactive volume active, as it
/// needs that.
fn check_settled_after_merge(group: &Group, scenario: &Scenario, what: &str) {
    let mut group = group.clone();
    if scenario.name == "thick, inactive" && what.contains("inside restore-merge") {
        for v in &mut group.volumes {
            v.active = false;
        }
    }
    check_settled(&group, scenario, what);
}

#[test]
fn a_take_survives_crashes_everywhere() {
    for scenario in &SCENARIOS {
        let before = start(scenario, false);
        let take = planned(&before, &held(None), scenario.name);
        for (what, group) in stops(&before, &take, scenario.name) {
            let settle = planned(&group, &Goal::Settled, &what);
            for (what, mut group) in stops(&group, &settle, &what) {
                let rest = planned(&group, &Goal::Settled, &what);
                group.run(&rest).unwrap_or_else(|why| panic!("{what}: {why}"));
                check_settled(&group, scenario, &what);
                let again = planned(&group, &held(None), &what);
                group.run(&again).unwrap_or_else(|why| panic!("{what}: {why}"));
                check_held(&group, scenario, &what);
            }
            let mut group = group;
            let rest = planned(&group, &held(None), &what);
            group.run(&rest).unwrap_or_else(|why| panic!("{what}: {why}"));
            check_held(&group, scenario, &what);
        }
    }
}

fn check_held(group: &Group, scenario: &Scenario, what: &str) {
    check_settled(group, scenario, what);
    let again = planned(group, &held(None), what);
    assert_eq!(short(&again), Vec::<String>::new(), "{what}: it is held");
    let facts = facts(group).expect("facts");
    let marks: Vec<_> = facts.snapshots.iter().map(|s| s.mark.as_deref()).collect();
    assert_eq!(marks, [Some(MARK)], "{what}");
    assert_eq!(group.slot().map(|s| s.content), Some(NOW), "{what}");
    assert_eq!(group.find("vm1").map(|v| v.content), Some(NOW), "{what}");
}

#[test]
fn a_delete_survives_crashes_everywhere() {
    for scenario in &SCENARIOS {
        let before = start(scenario, true);
        let goal = Goal::Empty(before.slot().expect("the slot").uuid.clone());
        let delete = planned(&before, &goal, scenario.name);
        for (what, mut group) in stops(&before, &delete, scenario.name) {
            let rest = planned(&group, &goal, &what);
            group.run(&rest).unwrap_or_else(|why| panic!("{what}: {why}"));
            check_settled(&group, scenario, &what);
            assert_eq!(group.slot(), None, "{what}");
            assert_eq!(short(&planned(&group, &goal, &what)), Vec::<String>::new(), "{what}");
            assert_eq!(group.find("vm1").map(|v| v.content), Some(NOW), "{what}");
        }
    }
}

/// Somebody starts the machine while a restore waits for recovery: what it has written is not
/// taken for the slot's content.
#[test]
fn a_thick_slot_is_not_taken_again_by_settling() {
    let before = start(&SCENARIOS[4], true);
    let identity = before.slot().expect("the slot").uuid.clone();
    let restore = planned(&before, &Goal::Restored(identity), "thick");
    let mut group = before.clone();
    for (step, line) in restore.steps.iter().zip(short(&restore)) {
        group.step(step, End::Well).unwrap_or_else(|why| panic!("{line}: {why}"));
        if line.starts_with("restore-merge") {
            break;
        }
    }
    assert!(group.slot().is_none(), "the merge consumed it: {:?}", short(&restore));
    group.find_mut("vm1").expect("the volume").content = 3;
    let settle = planned(&group, &Goal::Settled, "thick");
    assert_eq!(short(&settle), [format!("unmark mark={MARK}")]);
    assert!(settle.notes.iter().any(|n| n.contains("the slot is empty")), "{:?}", settle.notes);
}

/// A volume that is opened between the look and the command: nothing is changed.
#[test]
fn a_volume_opened_at_the_last_moment_stays_as_it_is() {
    for scenario in &SCENARIOS {
        let mut group = start(scenario, true);
        let identity = group.slot().expect("the slot").uuid.clone();
        let restore = planned(&group, &Goal::Restored(identity), scenario.name);
        group.find_mut("vm1").expect("the volume").open = true;
        group.find_mut("vm1").expect("the volume").active = true;
        let stopped = group.run(&restore).expect_err("a guard stops it");
        assert!(stopped.contains("is not what it was"), "{}: {stopped}", scenario.name);
        let settle = planned(&group, &Goal::Settled, scenario.name);
        group.run(&settle).unwrap_or_else(|why| panic!("{}: {why}", scenario.name));
        assert_eq!(group.find("vm1").map(|v| v.content), Some(NOW), "{}", scenario.name);
        assert_eq!(group.slot().map(|s| s.content), Some(THEN), "{}", scenario.name);
        assert_eq!(facts(&group).expect("facts").unfinished, None, "{}", scenario.name);
    }
}

/// Something opens a thick volume after the last guard: LVM puts the merge off. That is told, it
/// blocks everything else, and it is ended once nobody has the volume open.
#[test]
fn a_merge_that_was_put_off_is_ended_later() {
    let mut group = start(&SCENARIOS[4], true);
    let identity = group.slot().expect("the slot").uuid.clone();
    let goal = Goal::Restored(identity.clone());
    let restore = planned(&group, &goal, "thick");
    let merge = short(&restore).iter().position(|l| l.starts_with("restore-merge"));
    let merge = merge.expect("a merge");
    for step in &restore.steps[..merge] {
        group.step(step, End::Well).expect("what comes before");
    }
    group.find_mut("vm1").expect("the volume").open = true;
    group.step(&restore.steps[merge], End::Well).expect("LVM calls it a success");
    let failed = group.step(&restore.steps[merge + 1], End::Well).expect_err("no take now");
    assert!(failed.contains("merging snapshot"), "{failed}");
    assert!(facts(&group).expect("facts").unfinished.is_some());
    for goal in [Goal::Settled, held(None), goal, Goal::Empty(identity)] {
        let failure = plan(&group, &goal).expect_err("nothing can be done while it is open");
        assert_eq!(failure.code, "merge-pending", "{goal:?}: {failure:?}");
    }
    group.find_mut("vm1").expect("the volume").open = false;
    let settle = planned(&group, &Goal::Settled, "thick");
    group.run(&settle).expect("settled");
    check_settled(&group, &SCENARIOS[4], "thick, put off");
    assert_eq!(group.find("vm1").map(|v| v.content), Some(THEN));
}

/// What somebody else made while a restore was stopped is not removed, and neither is what the
/// volume held.
#[test]
fn a_volume_that_took_the_name_is_not_ours() {
    let before = start(&SCENARIOS[0], true);
    let identity = before.slot().expect("the slot").uuid.clone();
    let restore = planned(&before, &Goal::Restored(identity), "thin");
    let (_, mut group) = stops(&before, &restore, "thin")
        .into_iter()
        .find(|(what, _)| what.contains("after restore-step-aside"))
        .expect("the volume steps aside");
    let mut foreign = before.find("vm1").expect("the volume").clone();
    foreign.uuid = "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb".to_owned();
    group.volumes.push(foreign);
    let failure = plan(&group, &Goal::Settled).expect_err("there are two volumes now");
    assert_eq!(failure.code, "foreign-volume", "{failure:?}");
    group.find_mut("vm1").expect("the foreign one").name = "elsewhere".to_owned();
    let settle = planned(&group, &Goal::Settled, "thin");
    group.run(&settle).expect("settled");
    assert_eq!(group.find("vm1").map(|v| v.content), Some(THEN));
    assert!(group.find("elsewhere").is_some());
}
