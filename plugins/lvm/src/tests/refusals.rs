//! Goal: what stands in the way is refused before anything is changed, with the right kind of
//! failure and words that help.

use snapslot_plugin_sdk::{Answer, Backend, FailureKind, Goal, NewSnapshot};

use super::{MARK, complaint, facts, held, plan, recorded_text, short, target, uuid, with_report};
use crate::Lvm;

fn slot() -> String {
    format!("vm1_snapslot_{MARK}")
}

/// A report with one thing different.
fn changed(name: &str, from: &str, to: &str) -> String {
    let text = recorded_text(name);
    assert!(text.contains(from), "{name} has no {from}");
    text.replacen(from, to, 1)
}

/// A report with one volume more.
fn with_volume(name: &str, lv: &str, fields: &[(&str, &str)]) -> String {
    let text = recorded_text(name);
    let start = text.find("                  {\"vg_name\"").expect("a row");
    let row = text[start..].lines().next().expect("a row").trim().trim_end_matches(',');
    let set = |row: String, field: &str, value: &str| {
        let at = row.find(&format!("\"{field}\":\"")).expect("the field") + field.len() + 4;
        let end = at + row[at..].find('"').expect("its end");
        format!("{}{value}{}", &row[..at], &row[end..])
    };
    let mut row = set(row.to_owned(), "lv_name", lv);
    row = set(row, "lv_uuid", "cccccc-cccc-cccc-cccc-cccc-cccc-cccccc");
    row = set(row, "lv_role", "public");
    row = set(row, "lv_layout", "linear");
    row = set(row, "lv_attr", "-wi-a-----");
    for field in ["origin", "pool_lv", "lv_tags", "lv_merging", "lv_device_open"] {
        row = set(row, field, "");
    }
    for (field, value) in fields {
        row = set(row, field, value);
    }
    format!("{}{row},\n{}", &text[..start], &text[start..])
}

#[track_caller]
fn refused(group: &str, report: &str, goal: &Goal, kind: FailureKind, code: &str, words: &[&str]) {
    let failure = plan(&with_report(group, report), goal).expect_err("it must be refused");
    assert_eq!((failure.kind, failure.code.as_str()), (kind, code), "{failure:?}");
    for word in words {
        assert!(failure.message.contains(word), "{word:?} is not in: {}", failure.message);
    }
}

#[test]
fn open_volumes() {
    let kind = FailureKind::InUse;
    let goal = Goal::Restored(uuid("thin-open", &slot()));
    refused("vt", recorded_text("thin-open"), &goal, kind, "in-use", &["vt/vm1", "stop"]);
    // A take needs nobody to stop.
    let report = changed("thin-open", &format!("{}\",", slot()), "elsewhere\",");
    plan(&with_report("vt", &report), &held(None)).expect("a take of a running machine");

    let slot_open = recorded_text("thick-slot-open");
    let identity = uuid("thick-slot-open", &slot());
    for goal in [Goal::Restored(identity.clone()), Goal::Empty(identity)] {
        refused("vk", slot_open, &goal, kind, "in-use", &[&slot()]);
    }
    let words = ["vt/vm1_snapslot_old", "open"];
    refused("vt", recorded_text("thin-in-old-open"), &Goal::Settled, kind, "in-use", &words);

    // The volume gets its name back even if the rest has to wait.
    let aside = changed(
        "thin-aside",
        "\"lv_name\":\"vm1_snapslot_old\"",
        "\"lv_device_open\":\"open\", \"lv_name\":\"vm1_snapslot_old\"",
    );
    let settle = plan(&with_report("vt", &aside), &Goal::Settled).expect("a plan");
    assert_eq!(short(&settle), ["restore-step-in own=vm1_snapslot_new"]);
    assert_eq!(settle.notes.len(), 1, "{:?}", settle.notes);
    let goal = Goal::Restored(uuid("thin-aside", &slot()));
    refused("vt", &aside, &goal, kind, "in-use", &["vt/vm1_snapslot_old"]);
}

#[test]
fn merges_that_wait() {
    let report = recorded_text("thick-put-off-open");
    let goals = [Goal::Settled, held(None), Goal::Empty("x".to_owned())];
    for goal in goals {
        let words = ["vk/vm1", "snapslot recover"];
        refused("vk", report, &goal, FailureKind::InUse, "merge-pending", &words);
    }
    let unfinished = facts(&target("thick-put-off-open")).expect("facts").unfinished;
    assert!(unfinished.is_some_and(|u| u.contains("waits to be merged into vk/vm1")));
    // Once it is under way, LVM tells how much is left of it, and it goes on beside the machine.
    let first = "\"snap_percent\":\"\"";
    let under_way = changed("thick-put-off-open", first, "\"snap_percent\":\"29.20\"");
    let target = with_report("vk", &under_way);
    let unfinished = facts(&target).expect("facts").unfinished.expect("not over");
    assert!(unfinished.contains("29.20 % of its store are left"), "{unfinished}");
    // Story: after a reboot in the middle of a large merge every verb ended with 8, and with the advice to
    // leave the machine off, until the kernel was through.
    for goal in [Goal::Settled, held(None), Goal::Empty("x".to_owned())] {
        let words = ["vk/vm1", "29.20 %", "can be used", "snapslot recover"];
        refused("vk", &under_way, &goal, FailureKind::InUse, "merge-pending", &words);
    }
    // It is through, and the snapshot has to go out of the metadata.
    let through = changed("thick-put-off-open", first, "\"snap_percent\":\"0.00\"");
    let settle = plan(&with_report("vk", &through), &Goal::Settled).expect("a plan");
    assert_eq!(short(&settle), ["restore-refresh".to_owned(), format!("unmark mark={MARK}")]);
}

/// The kernel gives a merge up when it cannot write.
#[test]
fn a_merge_that_failed_is_told() {
    let failed = "\"lv_merge_failed\":\"merge failed\"";
    let report = changed("thick-put-off", "\"lv_merge_failed\":\"\"", failed);
    let unfinished = facts(&with_report("vk", &report)).expect("facts").unfinished;
    assert!(unfinished.is_some_and(|u| u.contains("failed in the kernel")), "{report}");
}

/// A command that was killed while it had the volume suspended: every write to it waits. What it
/// loaded beside the live tables is thrown away, as the tables of a merge would cost the snapshot;
/// a machine that waits is woken.
#[test]
fn a_suspended_volume_is_put_in_order() {
    let suspended = changed("thick-held", "owi-a-s---", "owi-s-s---");
    let begun = changed("thick-begun", "owi-a-s---", "owi-s-s---");
    let open = |report: &str| {
        let idle = "\"lv_device_open\":\"\"";
        report.replacen(idle, "\"lv_device_open\":\"open\"", 1)
    };
    let settled = |report: &str| {
        let target = with_report("vk", report);
        assert!(facts(&target).expect("facts").unfinished.is_some(), "{report}");
        short(&plan(&target, &Goal::Settled).expect("a plan"))
    };
    assert_eq!(settled(&suspended), ["deactivate", "activate"]);
    assert_eq!(settled(&open(&suspended)), ["restore-refresh"]);
    let unmark = format!("unmark mark={MARK}");
    assert_eq!(settled(&begun), ["deactivate", "activate", &unmark]);
    let words = ["vk/vm1", "suspended"];
    refused("vk", &open(&begun), &Goal::Settled, FailureKind::InUse, "in-use", &words);
    // A machine that was started before the recovery has a volume that is whole.
    assert_eq!(settled(&open(recorded_text("thick-begun"))), [unmark]);
}

#[test]
fn room() {
    let full = recorded_text("thick-full");
    for room in [None, Some(8 << 20)] {
        let failure = plan(&with_report("vk", full), &held(room)).expect_err("no room");
        assert_eq!(failure.kind, FailureKind::NoSpace, "{failure:?}");
        let keys: Vec<&str> = failure.data.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(keys, ["needed", "available"]);
    }
    // Less than all is free: that is taken, and told.
    let free = "\"vg_free\":\"130023424\"";
    let little = recorded_text("thick-empty").replace(free, "\"vg_free\":\"13000000\"");
    assert_ne!(little, recorded_text("thick-empty"));
    let take = plan(&with_report("vk", &little), &held(None)).expect("a plan");
    assert!(short(&take)[0].ends_with(" room=12582912"), "{:?}", short(&take));
    assert!(take.notes[0].contains("12 MiB of 32 MiB"), "{:?}", take.notes);
    let goal = held(Some(16 << 20));
    refused("vk", &little, &goal, FailureKind::NoSpace, "no-space", &["vk", "16 MiB", "12 MiB"]);

    // Of what is free each of two volumes has its part.
    // Story: two volumes of one machine were each planned with all that was free in their group, and the
    // second one's take failed.
    let beside = |room, beside| match held(room) {
        Goal::Held(new) => Goal::Held(NewSnapshot { beside, ..new }),
        other => other,
    };
    let twice = beside(None, 32 << 20);
    let take = plan(&target("thick-empty"), &twice).expect("a plan");
    assert!(short(&take)[0].ends_with(" room=37748736"), "enough for both: {:?}", short(&take));
    let middle = recorded_text("thick-empty").replace(free, "\"vg_free\":\"67108864\"");
    let take = plan(&with_report("vk", &middle), &twice).expect("a plan");
    assert!(short(&take)[0].ends_with(" room=20971520"), "{:?}", short(&take));
    let both = beside(Some(8 << 20), 8 << 20);
    let words = ["vk", "8 MiB", "other volumes"];
    refused("vk", &little, &both, FailureKind::NoSpace, "no-space", &words);

    let full = recorded_text("thin-full");
    let mut other = held(None);
    if let Goal::Held(new) = &mut other {
        new.mark = "fedcba9876543210".to_owned();
    }
    let words = ["vt/pool", "100.00 %", "lvextend"];
    refused("vt", full, &other, FailureKind::NoSpace, "pool-full", &words);
    let goal = Goal::Restored(uuid("thin-full", &slot()));
    refused("vt", full, &goal, FailureKind::NoSpace, "pool-full", &words);
    // A delete is what helps.
    plan(&target("thin-full"), &Goal::Empty(uuid("thin-full", &slot()))).expect("a plan");

    let narrow =
        changed("thin-empty", "\"metadata_percent\":\"10.94\"", "\"metadata_percent\":\"96.10\"");
    let words = ["metadata", "vt/pool", "96.10 %"];
    refused("vt", &narrow, &held(None), FailureKind::NoSpace, "pool-metadata-full", &words);
    let filling = changed("thin-empty", "\"data_percent\":\"6.25\"", "\"data_percent\":\"85.00\"");
    let take = plan(&with_report("vt", &filling), &held(None)).expect("a plan");
    assert!(take.notes[0].contains("85.00 %"), "{:?}", take.notes);
}

/// LVM calls a merge a success that overflowed another snapshot of the volume.
#[test]
fn siblings_that_a_restore_would_overflow() {
    let name = "thick-foreign";
    let goal = Goal::Restored(uuid(name, &slot()));
    plan(&target(name), &goal).expect("8 MiB take what 6 MiB bring");
    let small = changed(name, "\"lv_size\":\"8388608\"", "\"lv_size\":\"4194304\"");
    let words = ["vk/daily", "would be lost"];
    refused("vk", &small, &goal, FailureKind::NoSpace, "sibling-too-small", &words);
    let unknown = changed(name, "\"snap_percent\":\"0.00\"", "\"snap_percent\":\"\"");
    let words = ["vk/daily", "only while the volume is active"];
    refused("vk", &unknown, &goal, FailureKind::NoSpace, "sibling-too-small", &words);
    // One that is lost already is not spared.
    let lost = small.replace(
        "\"lv_name\":\"daily\"",
        "\"lv_snapshot_invalid\":\"snapshot invalid\", \"lv_name\":\"daily\"",
    );
    plan(&with_report("vk", &lost), &goal).expect("a plan");
}

#[test]
fn names_that_are_taken() {
    let kind = FailureKind::Unsupported;
    let slot = slot();
    let report = with_volume("thick-empty", &slot, &[]);
    refused("vk", &report, &held(None), kind, "name-clash", &[&slot, "not Snapslot's"]);
    let report = with_volume("thin-empty", &slot, &[("lv_tags", "snapslot.mark=1111111111111111")]);
    refused("vt", &report, &held(None), kind, "name-clash", &[&slot]);
    let goal = Goal::Restored(uuid("thin-held", &slot));
    for own in ["vm1_snapslot_new", "vm1_snapslot_old"] {
        let report = with_volume("thin-held", own, &[]);
        refused("vt", &report, &goal, kind, "name-clash", &[own]);
        let settle = plan(&with_report("vt", &report), &Goal::Settled).expect("a plan");
        assert_eq!(short(&settle), Vec::<String>::new(), "{own} is not ours");
    }
    // A tag alone makes nothing ours either.
    let report = with_volume("thin-held", "copy", &[("lv_tags", &format!("snapslot.mark={MARK}"))]);
    let facts = facts(&with_report("vt", &report)).expect("facts");
    assert_eq!(facts.snapshots.len(), 1, "{:?}", facts.snapshots);
}

#[test]
fn long_names() {
    for (length, hyphens, fits) in [(85, 0, true), (94, 0, true), (95, 0, false), (85, 30, false)] {
        let volume = format!("{}{}", "n".repeat(length - hyphens), "-".repeat(hyphens));
        let report = recorded_text("thick-empty").replace("\"vm1\"", &format!("\"{volume}\""));
        let mut target = with_report("vk", &report);
        target.place = format!("vk/{volume}");
        match plan(&target, &held(None)) {
            Ok(_) => assert!(fits, "{length} letters, {hyphens} hyphens"),
            Err(failure) => {
                assert!(!fits, "{length} letters, {hyphens} hyphens: {failure:?}");
                assert_eq!(failure.code, "name-too-long");
            }
        }
    }
}

#[test]
fn volumes_that_cannot_have_a_slot() {
    let kind = FailureKind::Unsupported;
    let cases = [
        ("\"lv_layout\":\"linear\"", "\"lv_layout\":\"cache\"", "layout"),
        ("\"lv_layout\":\"linear\"", "\"lv_layout\":\"mirror\"", "layout"),
        ("\"lv_layout\":\"linear\"", "\"lv_layout\":\"thin,pool\"", "pool"),
        ("\"lv_layout\":\"linear\"", "\"lv_layout\":\"\"", "layout"),
        ("\"lv_role\":\"public\"", "\"lv_role\":\"private,raid,image\"", "hidden-volume"),
        ("\"lv_role\":\"public\"", "\"lv_role\":\"public,snapshot,thicksnapshot\"", "snapshot"),
    ];
    for (from, to, code) in cases {
        let report = changed("thick-empty", from, to);
        refused("vk", &report, &held(None), kind, code, &["vk/vm1"]);
        let failure = facts(&with_report("vk", &report)).expect_err("no facts either");
        assert_eq!(failure.code, code);
    }
    for layout in ["striped", "raid,raid1", "raid,raid10,raid10_near"] {
        let to = format!("\"lv_layout\":\"{layout}\"");
        let report = changed("thick-empty", "\"lv_layout\":\"linear\"", &to);
        plan(&with_report("vk", &report), &held(None))
            .unwrap_or_else(|f| panic!("{layout}: {f:?}"));
    }
    let mut own = target("thin-held");
    own.place = format!("vt/{}", slot());
    assert_eq!(plan(&own, &held(None)).expect_err("a snapshot of ours").code, "own-snapshot");
    let mut pool = target("thin-held");
    pool.place = "vt/pool".to_owned();
    assert_eq!(plan(&pool, &held(None)).expect_err("a pool").code, "pool");

    let reader = [("origin", "vm1"), ("pool_lv", "pool2"), ("lv_layout", "thin,sparse")];
    let report = with_volume("thin-empty", "reader", &reader);
    refused("vt", &report, &held(None), kind, "external-origin", &["vt/vm1", "vt/reader"]);
}

#[test]
fn what_would_be_removed_along() {
    let kind = FailureKind::Unsupported;
    let slot = slot();
    let identity = uuid("thin-foreign", &slot);
    let goal = Goal::Restored(identity.clone());
    let report = recorded_text("thin-foreign");
    refused("vt", report, &goal, kind, "has-dependents", &["vt/thickofthin", "vt/vm1"]);
    let reader = [("origin", slot.as_str()), ("pool_lv", "pool2"), ("lv_layout", "thin,sparse")];
    let report = with_volume("thin-held", "reader", &reader);
    let goal = Goal::Empty(uuid("thin-held", &slot));
    refused("vt", &report, &goal, kind, "has-dependents", &["vt/reader", &slot]);
    // A thin snapshot of the slot in the same pool stands on its own.
    let child = [("origin", slot.as_str()), ("pool_lv", "pool"), ("lv_layout", "thin,sparse")];
    let report = with_volume("thin-held", "child", &child);
    plan(&with_report("vt", &report), &goal).expect("a plan");
}

#[test]
fn what_cannot_be_restored() {
    let slot = slot();
    let goal = Goal::Restored(uuid("thick-lost", &slot));
    let report = recorded_text("thick-lost");
    refused("vk", report, &goal, FailureKind::Corrupt, "snapshot-lost", &[&slot, "deleted"]);

    let goal = Goal::Restored("nobody".to_owned());
    let report = recorded_text("thick-held");
    refused("vk", report, &goal, FailureKind::NotFound, "no-such-snapshot", &["vk/vm1"]);

    let daily = uuid("thick-foreign", "daily");
    let report = recorded_text("thick-foreign");
    for goal in [Goal::Restored(daily.clone()), Goal::Empty(daily)] {
        refused("vk", report, &goal, FailureKind::Unsupported, "not-ours", &["vk/daily"]);
    }
    let goal = Goal::Restored(uuid("thick-held", &slot));
    let read_only =
        changed("thick-held", "\"lv_attr\":\"owi-a-s---\"", "\"lv_attr\":\"ori-a-s---\"");
    refused(
        "vk",
        &read_only,
        &goal,
        FailureKind::Unsupported,
        "read-only",
        &["lvchange -prw vk/vm1"],
    );

    let goal = Goal::Restored(uuid("thin-held", &slot));
    let long = format!("\"lv_tags\":\"{}\"", "t".repeat(129));
    let report = changed("thin-held", "\"lv_tags\":\"customer=7\"", &long);
    refused("vt", &report, &goal, FailureKind::Unsupported, "unfit-tag", &["vt/vm1"]);
    let many: Vec<String> = (0..41).map(|i| format!("t{i}")).collect();
    let many = format!("\"lv_tags\":\"{}\"", many.join(","));
    let report = changed("thin-held", "\"lv_tags\":\"customer=7\"", &many);
    refused("vt", &report, &goal, FailureKind::Unsupported, "too-many-tags", &["41"]);

    let partial = "\"lv_health_status\":\"partial\", \"lv_name\":\"vm1\"";
    let report = changed("thick-held", "\"lv_name\":\"vm1\"", partial).replacen(
        "\"lv_health_status\":\"\"",
        "\"lv_check_needed\":\"\"",
        1,
    );
    let kind = FailureKind::Corrupt;
    refused("vk", &report, &held(None), kind, "volume-health", &["vk/vm1 is partial"]);
}

#[test]
fn volumes_that_are_not_there() {
    let kind = FailureKind::NotFound;
    for report in ["thin-none", "thin-gone"] {
        let words = ["vt/vm1", "lvs vt"];
        refused("vt", recorded_text(report), &held(None), kind, "no-such-volume", &words);
    }
}

#[test]
fn reports_that_are_none() {
    let kind = FailureKind::Io;
    let held_report = recorded_text("thin-held");
    let doubled = held_report.replacen("\"pool\"", "\"vm1\"", 1);
    let texts = [
        "",
        "rubbish",
        &held_report[..held_report.len() / 2],
        &held_report.replace("\"33554432\"", "\"-1\""),
        &held_report.replace("\"vg_name\":\"vt\"", "\"vg_name\":\"other\""),
        &held_report.replace("\"lv_uuid\"", "\"lv_id\""),
        &held_report.replace("\"4194304\"", "\"0\""),
        &doubled,
    ];
    for text in texts {
        refused("vt", text, &held(None), kind, "unreadable-report", &["vt"]);
    }
}

#[test]
fn complaints_are_put_into_words() {
    use FailureKind::{Corrupt, InUse, Io, NoSpace, NotFound, Unsupported};
    let cases = [
        ("take-again", Unsupported, "name-clash"),
        ("remove-open", InUse, "in-use"),
        ("take-full", NoSpace, "pool-full"),
        ("field", Unsupported, "lvm-too-old"),
        ("take-while-merging", InUse, "merge-pending"),
        ("merge-lost", Corrupt, "snapshot-lost"),
        ("take-no-room", NoSpace, "no-space"),
        ("no-volume", NotFound, "no-such-volume"),
        ("no-group", Io, "no-such-group"),
    ];
    for (name, kind, code) in cases {
        let failure = Lvm::explain("take-thin", &complaint(name));
        assert_eq!((failure.kind, failure.code.as_str()), (kind, code), "{name}: {failure:?}");
        assert!(!failure.message.contains('\n'), "{name}: {failure:?}");
    }
    let said = |exit_code: i32, errors: &[u8]| {
        Lvm::explain("remove", &Answer { exit_code, output: Vec::new(), errors: errors.to_vec() })
    };
    let nobody = b"  WARNING: Running as a non-root user. Functionality may be unavailable.\n  \
        /run/lock/lvm/P_global:aux: open failed: Permission denied\n";
    assert_eq!((said(5, nobody).kind, said(5, nobody).code.as_str()), (Io, "permission"));
    let kernel = b"  striped: Required device-mapper target(s) not detected in your kernel.\n  \
        Run `lvcreate --help' for more information.\n";
    assert_eq!(
        (said(3, kernel).kind, said(3, kernel).code.as_str()),
        (Unsupported, "no-kernel-support")
    );
    let strange = said(5, b"  WARNING: low\n  Something \x1b[31mnew\xff.\n  And more.\n");
    assert_eq!((strange.kind, strange.code.as_str()), (Io, "command-failed"));
    assert!(strange.message.contains("Something [31mnew"), "{}", strange.message);
    assert!(said(1, b"").message.contains("gave no reason"));
}

/// LVM before 2.03.12 does not know a field and is asked without it.
#[test]
fn an_older_lvm_is_asked_again() {
    let without = recorded_text("thin-held").replace(", \"lv_autoactivation\":\"enabled\"", "");
    let mut target = super::target("thin-held").answering("look-older", without);
    target.answers[0].1 = complaint("field");
    let restore = plan(&target, &Goal::Restored(uuid("thin-held", &slot()))).expect("a plan");
    let copies = short(&restore).iter().any(|l| l.contains("autoactivation"));
    assert!(!copies, "what cannot be turned off is on: {:?}", short(&restore));
}
