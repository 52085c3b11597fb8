//! Goal: every state a real LVM shows is read for what it is, and planned from as it should be.
//! Method: reports of LVM 2.03.16, recorded along whole lives of a thin and a thick volume with
//! the commands of the grants.

use snapslot_plugin_sdk::{Backend, FailureKind, Goal};

use super::{MARK, facts, held, plan, recorded_text, short, target, uuid, with_report};
use crate::Lvm;

fn settling(name: &str) -> Vec<String> {
    short(&plan(&target(name), &Goal::Settled).unwrap_or_else(|f| panic!("{name}: {f:?}")))
}

fn slot() -> String {
    format!("vm1_snapslot_{MARK}")
}

#[test]
fn a_thin_life() {
    // State, snapshots of ours, what the settling does.
    let unmark = format!("unmark mark={MARK}");
    let named = |volume: &str, report: &str| format!("own={volume} uuid={}", uuid(report, volume));
    let remove = |volume: &str, report: &str| format!("remove {}", named(volume, report));
    let new = "vm1_snapslot_new";
    let old = "vm1_snapslot_old";
    let states: [(&str, usize, Vec<String>); 9] = [
        ("thin-empty", 0, vec![]),
        ("thin-held", 1, vec![]),
        ("thin-made", 1, vec![remove(new, "thin-made")]),
        ("thin-marked", 1, vec![remove(new, "thin-marked"), unmark.clone()]),
        (
            "thin-aside",
            1,
            vec![format!("restore-step-in own={new}"), remove(old, "thin-aside"), unmark.clone()],
        ),
        ("thin-in", 1, vec![remove(old, "thin-in"), unmark.clone()]),
        ("thin-removed", 1, vec![unmark]),
        ("thin-restored", 1, vec![]),
        ("thin-open", 1, vec![]),
    ];
    for (name, slots, settle) in states {
        let facts = facts(&target(name)).unwrap_or_else(|f| panic!("{name}: {f:?}"));
        assert_eq!(facts.virtual_size, 32 << 20, "{name}");
        // While it has no name, it is still the volume from before the restore.
        let main = if name == "thin-aside" { old } else { "vm1" };
        assert_eq!(facts.identity, Some(uuid(name, main)), "{name}");
        assert_eq!(facts.format, "LVM thin volume in pool vt/pool", "{name}");
        assert_eq!(facts.snapshots.len(), slots, "{name}: {:?}", facts.snapshots);
        assert_eq!(facts.unfinished.is_some(), !settle.is_empty(), "{name}: {facts:?}");
        assert_eq!(settling(name), settle, "{name}");
        for snapshot in &facts.snapshots {
            assert_eq!(snapshot.identity, uuid(name, &slot()), "{name}");
            assert_eq!(snapshot.mark.as_deref(), Some(MARK), "{name}");
            let taken = (snapshot.taken_seconds, snapshot.taken_nanoseconds);
            assert_eq!(taken, (1_700_000_000, 5), "{name}");
            assert_eq!(snapshot.virtual_size, 32 << 20, "{name}");
            assert!(!snapshot.lost, "{name}");
        }
    }
}

#[test]
fn thin_plans() {
    let take = plan(&target("thin-empty"), &held(None)).expect("a plan");
    let times = format!("mark={MARK} seconds=1700000000 nanoseconds=5");
    assert_eq!(short(&take), [format!("take-thin snapshot={} {times}", slot())]);

    let snapshot = uuid("thin-held", &slot());
    let volume = uuid("thin-held", "vm1");
    let restore = plan(&target("thin-held"), &Goal::Restored(snapshot.clone())).expect("a plan");
    let slot = slot();
    assert_eq!(
        short(&restore),
        [
            format!(
                "restore-make own=vm1_snapslot_new mark={MARK} snapshot={slot} uuid={snapshot}"
            ),
            "restore-copy-tag own=vm1_snapslot_new tag=customer=7".to_owned(),
            format!("restore-mark-old mark={MARK} uuid={volume}"),
            format!("restore-step-aside own=vm1_snapslot_old uuid={volume}"),
            "restore-step-in own=vm1_snapslot_new".to_owned(),
            "activate".to_owned(),
            format!("remove own=vm1_snapslot_old uuid={volume}"),
            format!("unmark mark={MARK}"),
        ]
    );
    let delete = plan(&target("thin-held"), &Goal::Empty(snapshot.clone())).expect("a plan");
    assert_eq!(short(&delete), [format!("remove own={slot} uuid={snapshot}")]);

    assert_eq!(restore.notes, Vec::<String>::new());
    // What the volume-to-be will not have is told.
    let auto = "\"lv_autoactivation\"";
    let set = format!("\"lv_read_ahead\":\"1048576\", \"lv_minor\":\"77\", {auto}");
    let text = recorded_text("thin-held").replace(auto, &set);
    assert_ne!(text, recorded_text("thin-held"));
    let goal = Goal::Restored(snapshot.clone());
    let notes = plan(&with_report("vt", &text), &goal).expect("a plan").notes;
    assert!(notes.iter().any(|n| n.contains("readahead") && n.contains("1048576")), "{notes:?}");
    assert!(notes.iter().any(|n| n.contains("device number") && n.contains("77")), "{notes:?}");

    // Restored while inactive, read-only, skipped and not autoactivated: so is what comes back.
    let snapshot = uuid("thin-asleep", &slot);
    let restore = plan(&target("thin-asleep"), &Goal::Restored(snapshot)).expect("a plan");
    let actions: Vec<String> = short(&restore)
        .iter()
        .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(
        actions,
        [
            "restore-make-inactive",
            "restore-copy-read-only",
            "restore-copy-skip",
            "restore-copy-no-autoactivation",
            "restore-copy-tag",
            "restore-mark-old",
            "restore-step-aside",
            "restore-step-in",
            "remove",
            "unmark",
        ]
    );
}

#[test]
fn an_external_origin_is_no_origin() {
    // Story: a thin volume read from a volume outside of its pool. Once it had been restored, LVM showed
    // that one as its snapshot's origin, and the slot was lost: the snapshot was taken for another's.
    let held = recorded_text("thin-held");
    let slot = slot();
    let row = |name: &str| {
        let wanted = format!("\"lv_name\":\"{name}\"");
        held.lines().find(|line| line.contains(&wanted)).expect("a row").trim_end_matches(',')
    };
    let outside = row("pool")
        .replace("\"lv_name\":\"pool\"", "\"lv_name\":\"base\"")
        .replace(&uuid("thin-held", "pool"), "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb")
        .replace("\"lv_layout\":\"thin,pool\"", "\"lv_layout\":\"linear\"")
        .replace("\"lv_role\":\"private\"", "\"lv_role\":\"public,origin,extthinorigin\"");
    let unlinked = row(&slot).replace("\"origin\":\"vm1\"", "\"origin\":\"base\"");
    assert_ne!(unlinked, row(&slot));
    let report = held.replace(row(&slot), &format!("{unlinked},\n{outside}"));
    let facts = facts(&with_report("vt", &report)).expect("facts");
    let marks: Vec<_> = facts.snapshots.iter().filter_map(|s| s.mark.as_deref()).collect();
    assert_eq!(marks, [MARK]);
    let goal = Goal::Restored(uuid("thin-held", &slot));
    plan(&with_report("vt", &report), &goal).expect("a plan");
    // One that is linked to another volume of its pool is that one's still.
    let foreign = row(&slot).replace("\"origin\":\"vm1\"", "\"origin\":\"vm2\"");
    let other = row("vm1")
        .replace("\"lv_name\":\"vm1\"", "\"lv_name\":\"vm2\"")
        .replace(&uuid("thin-held", "vm1"), "bbbbbb-bbbb-bbbb-bbbb-bbbb-bbbb-bbbbbb");
    let report = held.replace(row(&slot), &format!("{foreign},\n{other}"));
    let facts = super::facts(&with_report("vt", &report)).expect("facts");
    assert!(facts.snapshots.iter().all(|s| s.mark.is_none()), "{:?}", facts.snapshots);
}

#[test]
fn a_thick_life() {
    let unmark = format!("unmark mark={MARK}");
    let half_made = uuid("thick-half-made", &slot());
    let [off, on] = ["deactivate", "activate"].map(str::to_owned);
    let states: [(&str, usize, Vec<String>); 12] = [
        ("thick-empty", 0, vec![]),
        ("thick-held", 1, vec![]),
        ("thick-slot-open", 1, vec![]),
        ("thick-foreign", 2, vec![]),
        ("thick-begun", 1, vec![off.clone(), on.clone(), unmark.clone()]),
        ("thick-put-off", 0, vec!["restore-refresh".to_owned(), unmark.clone()]),
        ("thick-put-off-asleep", 0, vec!["activate".to_owned(), unmark.clone()]),
        ("thick-merged", 0, vec![unmark.clone()]),
        ("thick-retaken", 1, vec![off, on, unmark]),
        ("thick-asleep", 1, vec![]),
        ("thick-lost", 1, vec![]),
        ("thick-half-made", 0, vec![format!("remove own={} uuid={half_made}", slot())]),
    ];
    for (name, snapshots, settle) in states {
        let facts = facts(&target(name)).unwrap_or_else(|f| panic!("{name}: {f:?}"));
        assert_eq!(facts.virtual_size, 32 << 20, "{name}");
        assert_eq!(facts.identity, Some(uuid(name, "vm1")), "{name}");
        assert_eq!(facts.format, "LVM volume, linear", "{name}");
        assert_eq!(facts.snapshots.len(), snapshots, "{name}: {:?}", facts.snapshots);
        assert_eq!(facts.unfinished.is_some(), !settle.is_empty(), "{name}: {facts:?}");
        assert_eq!(settling(name), settle, "{name}");
        for snapshot in &facts.snapshots {
            assert_eq!(snapshot.identity, uuid(name, &snapshot.name), "{name}");
            assert_eq!(snapshot.virtual_size, 32 << 20, "{name}: not that of the store");
            assert_eq!(snapshot.lost, name == "thick-lost", "{name}");
            assert_eq!(snapshot.mark.is_some(), snapshot.name == slot(), "{name}");
        }
    }
}

#[test]
fn thick_plans() {
    let times = format!("mark={MARK} seconds=1700000000 nanoseconds=5");
    let take = plan(&target("thick-empty"), &held(None)).expect("a plan");
    // All of 32 MiB, the store's tables, in extents of 4 MiB: what LVM itself calls 100 %.
    assert_eq!(short(&take), [format!("take-thick snapshot={} {times} room={}", slot(), 36 << 20)]);
    assert_eq!(take.notes, ["36 MiB are set aside, enough for all of 32 MiB to change"]);

    let rooms = [(1, 4 << 20), (8 << 20, 8 << 20), ((8 << 20) + 1, 12 << 20), (1 << 40, 36 << 20)];
    for (asked, given) in rooms {
        let take = plan(&target("thick-empty"), &held(Some(asked))).expect("a plan");
        let last = format!(" room={given}");
        assert!(short(&take)[0].ends_with(&last), "{asked}: {:?}", short(&take));
    }

    let snapshot = uuid("thick-held", &slot());
    let volume = uuid("thick-held", "vm1");
    let consume = plan(&target("thick-held"), &Goal::Consumed(snapshot.clone())).expect("a plan");
    let restore = plan(&target("thick-held"), &Goal::Restored(snapshot.clone())).expect("a plan");
    // What is not wanted afterwards is not made again.
    let again = |line: &String| line.starts_with("take-thick");
    let but_the_take: Vec<String> = short(&restore).into_iter().filter(|l| !again(l)).collect();
    assert_eq!(short(&consume), but_the_take);
    assert!(short(&restore).iter().any(again));
    assert_eq!(
        short(&restore),
        [
            format!("restore-begin mark={MARK} uuid={volume}"),
            "deactivate".to_owned(),
            "activate".to_owned(),
            format!("restore-merge snapshot={} uuid={snapshot}", slot()),
            format!("take-thick snapshot={} {times} room={}", slot(), 12 << 20),
            format!("unmark mark={MARK}"),
        ]
    );

    let snapshot = uuid("thick-asleep", &slot());
    let restore = plan(&target("thick-asleep"), &Goal::Restored(snapshot)).expect("a plan");
    let actions: Vec<String> = short(&restore)
        .iter()
        .map(|l| l.split(' ').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(
        actions,
        [
            "restore-begin-inactive",
            "activate",
            "restore-merge",
            "take-thick",
            "deactivate",
            "unmark"
        ]
    );

    let lost = uuid("thick-lost", &slot());
    let delete = plan(&target("thick-lost"), &Goal::Empty(lost.clone())).expect("a plan");
    assert_eq!(short(&delete), [format!("remove own={} uuid={lost}", slot())]);
}

#[test]
fn what_is_gone_is_empty_already() {
    let nobody = "XXXXXX-XXXX-XXXX-XXXX-XXXX-XXXX-XXXXXX".to_owned();
    for name in ["thin-empty", "thin-held", "thick-empty", "thick-held"] {
        let delete = plan(&target(name), &Goal::Empty(nobody.clone())).expect("a plan");
        assert_eq!(short(&delete), Vec::<String>::new(), "{name}");
    }
}

#[test]
fn health_is_told() {
    let codes = |name: &str| -> Vec<(String, bool)> {
        let facts = facts(&target(name)).unwrap_or_else(|f| panic!("{name}: {f:?}"));
        facts.findings.into_iter().map(|f| (f.code, f.blocks)).collect()
    };
    let one = |code: &str| vec![(code.to_owned(), false)];
    assert_eq!(codes("thin-held"), []);
    assert_eq!(codes("thick-held"), []);
    assert_eq!(codes("thick-filling"), one("store-filling"));
    assert_eq!(codes("thick-lost"), one("snapshot-lost"));
    assert_eq!(codes("thin-filling"), one("pool-filling"));
    assert_eq!(codes("thin-foreign"), one("other-snapshots"));
    let full = codes("thin-full");
    assert_eq!(full, [("pool-health".to_owned(), false), ("pool-filling".to_owned(), false)]);

    let filling = facts(&target("thick-filling")).expect("facts");
    assert_eq!(
        filling.findings[0].message,
        format!(
            "the store of vk/{} is 92.09 % full; at 100 % the snapshot is lost. \
             `lvextend -L +6M vk/{}` gives it room",
            slot(),
            slot()
        )
    );
}

#[test]
fn change_is_measured_where_lvm_tells_it() {
    let change =
        Lvm::measure(&target("thick-held"), &uuid("thick-held", &slot()), false).expect("told");
    // 6 MiB were written; LVM says 50.26 % of 12 MiB, tables included.
    assert!((6 << 20..(6 << 20) + (64 << 10)).contains(&change.changed_bytes), "{change:?}");
    assert_eq!(change.held_bytes, change.changed_bytes);
    // A thin one by its pool's metadata, which is not at hand here; a thick one while it is active.
    for (name, code) in [("thin-held", "not-at-hand"), ("thick-asleep", "no-measure")] {
        let failure =
            Lvm::measure(&target(name), &uuid(name, &slot()), false).expect_err("not told");
        let unsupported = failure.kind == FailureKind::Unsupported;
        assert!(unsupported && failure.code == code, "{name}: {failure:?}");
    }
}

/// An administrator's settings print 1 for yes, and leave columns out that are empty.
#[test]
fn settings_of_the_administrator_do_not_matter() {
    let mut report = super::recorded_text("thick-put-off-open").to_owned();
    let words = [
        ("\"active\"", "\"1\""),
        ("\"open\"", "\"1\""),
        ("\"merging\"", "\"1\""),
        ("\"enabled\"", "\"1\""),
        ("\"unknown\"", "\"-1\""),
        ("\"lv_health_status\":\"\", ", ""),
    ];
    for (word, number) in words {
        assert!(report.contains(word), "{word}");
        report = report.replace(word, number);
    }
    let numbers = facts(&with_report("vk", &report)).expect("facts");
    assert_eq!(numbers, facts(&target("thick-put-off-open")).expect("facts"));
}
