//! Help, usage, exit codes, JSON shapes, completions, manual pages, dry runs.

use std::collections::BTreeSet;

use serde_json::Value;
use snapslot_test_support::Scratch;

use crate::{image, snapslot, words};

const VERBS: [&str; 14] = [
    "enable",
    "disable",
    "take",
    "status",
    "list",
    "restore",
    "delete",
    "check",
    "recover",
    "history",
    "plugin",
    "completions",
    "man",
    "help",
];

#[test]
fn every_verb_has_help() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let (code, top, _) = words(&snapslot, &["--help"]);
    assert_eq!(code, 0);
    for verb in VERBS {
        assert!(top.contains(&format!("\n  {verb}")), "{verb} is not in\n{top}");
        let (code, help, _) = words(&snapslot, &["help", verb]);
        assert_eq!(code, 0, "help {verb}");
        assert!(help.contains("Usage: snapslot"), "{help}");
    }
    assert!(top.contains("Examples:") && top.contains("Exit codes:"), "{top}");
}

#[test]
fn nonsense_is_usage() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["take"],
        &["take", "a.qcow2", "b.qcow2"],
        &["take", "--", "-rf"],
        &["take", "disk.img"],
        &["take", ""],
        &["take", "a\nb.qcow2"],
        &["take", "ceph:tank/vm"],
        &["take", "zfs:tank/vm@daily"],
        &["take", "lvm:vg0"],
        &["take", "lvm:vg0/-f"],
        &["take", "a.qcow2", "--store-size", "0"],
        &["status", "qcow2:"],
        &["status", "no-such-machine"],
        &["enable", "vm1"],
        &["enable", "-x"],
        &["enable", "a b", "--volume", "x.qcow2"],
        &["history", "--limit", "0"],
        &["completions", "cobol"],
    ] {
        let (code, out, err) = words(&snapslot, arguments);
        assert_eq!(code, 2, "{arguments:?}: {err}");
        assert!(out.is_empty() && !err.is_empty(), "{arguments:?} printed {out:?}");
    }
    snapslot.run(["take"]).expect(2);
    snapslot.run(["frobnicate"]).expect(2);
    let long = format!("{}.qcow2", "x".repeat(5000));
    assert_eq!(words(&snapslot, &["take", &long]).0, 2);
}

#[test]
fn each_exit_code_has_its_case() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let path = image.path();
    let code = |o: snapslot_test_support::Outcome, exit: i32| {
        o.expect(exit)["error"]["code"].as_str().map(str::to_owned)
    };
    let missing = scratch.join("missing.qcow2");
    assert_eq!(code(snapslot.verb("take", &missing, &[]), 1).as_deref(), Some("not-found"));
    assert_eq!(code(snapslot.verb("restore", path, &[]), 4).as_deref(), Some("slot-empty"));
    assert_eq!(code(snapslot.verb("delete", path, &[]), 4).as_deref(), Some("slot-empty"));
    let refused = snapslot.verb("take", path, &["--no-enable"]);
    assert_eq!(code(refused, 6).as_deref(), Some("disabled"));
    snapslot.verb("take", path, &["--note", "first"]).expect(0);
    let held = snapslot.verb("take", path, &[]);
    assert_eq!(held.expect(3)["error"]["data"]["occupant"]["note"], "first");
    assert_eq!(code(held, 3).as_deref(), Some("slot-held"));
    let asked = snapslot.run(["restore".as_ref(), path.as_os_str()]);
    assert_eq!(code(asked, 6).as_deref(), Some("not-confirmed"));
    assert_eq!(code(snapslot.verb("disable", path, &[]), 3).as_deref(), Some("slot-held"));
    let holding = image.hold(true);
    let busy = snapslot.verb("restore", path, &[]);
    let pid = busy.expect(5)["error"]["data"]["holders"][0]["pid"].as_u64();
    assert_eq!(pid, Some(u64::from(holding.id())));
    drop(holding);
    image
        .qemu_img(&["snapshot", "-d", held_name(&snapslot.verb("status", path, &[])).as_str()], &[])
        .expect_success();
    assert_eq!(snapslot.verb("status", path, &[]).slot(), "drifted");
    assert_eq!(code(snapslot.verb("restore", path, &[]), 8).as_deref(), Some("drifted"));
    assert_eq!(snapslot.verb("check", path, &[]).code(), 8);
    assert_eq!(snapslot.verb("delete", path, &[]).slot(), "empty");
    snapslot.verb("disable", path, &[]).expect(0);
    image.assert_clean();
}

fn held_name(outcome: &snapslot_test_support::Outcome) -> String {
    outcome.snapshot_name()
}

/// The keys of an object and of all objects in it, as dotted paths.
fn keys(value: &Value, at: &str, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                keys(value, &path, into);
                into.insert(path);
            }
        }
        Value::Array(list) => list.iter().for_each(|v| keys(v, at, into)),
        _ => {}
    }
}

/// What `--json` prints is a promise: a key that goes or is renamed breaks scripts. Adding one
/// means adding it here.
#[test]
fn the_json_of_every_command_keeps_its_keys() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let path = image.path();
    let slot = "slot slot.state slot.occupant slot.occupant.mark slot.occupant.taken \
                slot.occupant.taken.seconds slot.occupant.taken.nanoseconds slot.occupant.note \
                slot.occupant.consistency slot.occupant.parts slot.occupant.parts.volume \
                slot.occupant.parts.identity slot.occupant.parts.name \
                slot.occupant.parts.virtual-size";
    let done = "machine changed enabled elapsed-microseconds volumes volumes.volume volumes.plan \
                volumes.plan.steps volumes.plan.phases volumes.plan.phases.title \
                volumes.plan.phases.count volumes.plan.phases.bytes volumes.plan.rehearsal \
                volumes.executed volumes.executed.flushes volumes.executed.bytes-written \
                volumes.executed.bytes-read volumes.executed.commands volumes.executed.copies \
                volumes.warnings";
    let status = "machine volumes volumes.volume volumes.virtual-size volumes.format \
                  volumes.snapshots volumes.snapshots.identity volumes.snapshots.name \
                  volumes.snapshots.mark volumes.snapshots.taken \
                  volumes.snapshots.taken.seconds volumes.snapshots.taken.nanoseconds \
                  volumes.snapshots.virtual-size volumes.snapshots.vm-state-size volumes.snapshots.lost volumes.unfinished \
                  volumes.findings volumes.in-use \
                  volumes.changed-bytes volumes.held-bytes volumes.at-least volumes.worked-on-by volumes.interrupted \
                  confinement confinement.process confinement.files confinement.calls confinement.user \
                  confinement.limits";
    let check = |outcome: snapslot_test_support::Outcome, expected: &[&str]| {
        let mut found = BTreeSet::new();
        keys(outcome.expect(0), "", &mut found);
        let all = expected.iter().flat_map(|e| e.split_whitespace()).chain(["schema", "verb"]);
        let expected: BTreeSet<String> = all.map(str::to_owned).collect();
        let difference: Vec<_> = found.symmetric_difference(&expected).collect();
        assert!(difference.is_empty(), "keys that are missing or new: {difference:?}");
    };
    check(snapslot.verb("take", path, &["--note", "n"]), &[slot, done]);
    check(snapslot.verb("status", path, &[]), &[slot, status]);
    let list = slot.replace("slot", "machines.slot") + " machines.filling";
    check(snapslot.run(["list"]), &["machines machines.machine machines.volumes", &list]);
    image.guest(["write -q -P 18 1M 64k"]);
    check(snapslot.verb("restore", path, &[]), &[slot, done]);
    check(
        snapslot.verb("delete", path, &["--dry-run"]),
        [slot, done, "dry-run volumes.plan.phases.steps"]
            .map(|s| {
                s.replace(
                    "volumes.executed.flushes volumes.executed.bytes-written \
                volumes.executed.bytes-read volumes.executed.commands volumes.executed.copies ",
                    "",
                )
            })
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .as_slice(),
    );
    check(snapslot.verb("delete", path, &[]), &["slot slot.state", done]);
    check(
        snapslot.verb("recover", path, &[]),
        &["machines machines.machine machines.slot machines.slot.state machines.finished \
         machines.cleared machine slot slot.state finished cleared"],
    );
    check(
        snapslot.verb("check", path, &[]),
        &["machines machines.machine machines.slot machines.slot.state machines.problems sound"],
    );
    check(
        snapslot.verb("history", path, &["--limit", "1"]),
        &["operations operations.operation operations.machine operations.verb operations.started \
         operations.started.seconds operations.started.nanoseconds operations.finished \
         operations.finished.seconds operations.finished.nanoseconds operations.outcome \
         operations.process"],
    );
    check(
        snapslot.run(["plugin", "list"]),
        &[
            "plugins plugins.name plugins.version plugins.summary plugins.source plugins.digest plugins.problem",
        ],
    );
    check(
        snapslot.run(["plugin", "show", "qcow2"]),
        &[
            "name version summary source endings place copies images images.role images.changes images.reason \
         queries actions digest imports confinement confinement.process confinement.files \
         confinement.calls confinement.user confinement.limits denied effective added user",
        ],
    );
    check(snapslot.verb("disable", path, &[]), &["machine changed slot slot.state"]);
    check(snapslot.verb("enable", path, &[]), &["machine changed volumes slot slot.state"]);
    check(snapslot.run(["completions", "bash"]), &["script"]);
    check(snapslot.run(["man"]), &["page"]);
}

#[test]
fn the_json_of_errors_and_of_drift_keeps_its_keys() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let path = image.path();
    let check = |found: &Value, expected: &str| {
        let mut names = BTreeSet::new();
        keys(found, "", &mut names);
        let expected: BTreeSet<String> = expected.split_whitespace().map(str::to_owned).collect();
        let difference: Vec<_> = names.symmetric_difference(&expected).collect();
        assert!(difference.is_empty(), "keys that are missing or new: {difference:?} in {found}");
    };
    let whole = "error error.code error.data error.exit error.message schema verb";
    let part = "occupant occupant.mark occupant.taken occupant.taken.seconds occupant.taken.nanoseconds \
                occupant.note occupant.consistency occupant.parts occupant.parts.volume \
                occupant.parts.identity occupant.parts.name occupant.parts.virtual-size";
    let holders = "holders holders.pid holders.program holders.machine";
    let data = |outcome: &snapslot_test_support::Outcome, exit: i32| {
        outcome.expect(exit)["error"]["data"].clone()
    };

    let empty = snapslot.verb("restore", path, &[]);
    check(empty.expect(4), &format!("{whole} error.data.machine error.data.refusal"));
    snapslot.verb("take", path, &[]).expect(0);
    let held = snapslot.verb("take", path, &[]);
    check(&data(&held, 3), &format!("machine refusal {part}"));
    let missing = snapslot.verb("take", &scratch.join("none.qcow2"), &[]);
    check(&data(&missing, 1), "volume");
    let usage = snapslot.run(["take"]);
    check(usage.expect(2), whole);
    let holding = image.hold(true);
    check(
        &data(&snapslot.verb("restore", path, &[]), 5),
        &format!("volume {holders} mounts claimed"),
    );
    drop(holding);
    let name = held_name(&snapslot.verb("status", path, &[]));
    image.qemu_img(&["snapshot", "-d", &name], &[]).expect_success();
    let drifted = snapslot.verb("status", path, &[]);
    let recorded = part.replace("occupant", "recorded");
    check(&drifted.expect(0)["slot"], &format!("state drift {recorded}"));
    check(&data(&snapslot.verb("restore", path, &[]), 8), "machine refusal drift");
}

#[test]
fn the_json_of_content_keeps_its_keys() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let path = image.path();
    let check = |outcome: snapslot_test_support::Outcome, expected: &str| {
        let mut names = BTreeSet::new();
        keys(outcome.expect(0), "", &mut names);
        let expected: BTreeSet<String> =
            expected.split_whitespace().chain(["schema", "verb"]).map(str::to_owned).collect();
        let difference: Vec<_> = names.symmetric_difference(&expected).collect();
        assert!(difference.is_empty(), "keys that are missing or new: {difference:?}");
    };
    snapslot.verb("take", path, &[]).expect(0);
    image.guest(["write -q -P 18 1M 64k"]);
    let out = scratch.join("out.qcow2").display().to_string();
    check(
        snapslot.verb("export", path, &[&out, "--checksum"]),
        "volume out format compression content elapsed-microseconds virtual-size read-bytes shared-bytes \
         written-bytes sha256",
    );
    check(
        snapslot.verb("diff", path, &[]),
        "machine volumes volumes.volume volumes.size volumes.by-content volumes.changed-bytes volumes.ranges \
         volumes.ranges.start volumes.ranges.length",
    );
    snapslot.verb("delete", path, &[]).expect(0);
    check(
        snapslot.verb("restore", path, &["--from", &out]),
        "volume from way dry-run virtual-size written-bytes shared-bytes",
    );
}

#[test]
fn a_dry_run_shows_the_plan_that_runs_and_changes_nothing() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let path = image.path();
    let phases = |o: &snapslot_test_support::Outcome| -> Vec<(String, u64, u64)> {
        let volumes = o.expect(0)["volumes"].as_array().cloned().unwrap_or_default();
        let list = volumes.iter().flat_map(|v| v["plan"]["phases"].as_array().expect("phases"));
        let text = |v: &Value| v["title"].as_str().unwrap_or_default().to_owned();
        let number = |v: &Value, key: &str| v[key].as_u64().unwrap_or(u64::MAX);
        list.map(|p| (text(p), number(p, "count"), number(p, "bytes"))).collect()
    };
    // What a second plan does to the snapshot that is replaced or used up is shown too.
    let verbs: [(&str, &[&str]); 6] = [
        ("take", &[]),
        ("restore", &[]),
        ("take", &["--replace"]),
        ("restore", &["--consume"]),
        ("take", &["--note", "again"]),
        ("delete", &[]),
    ];
    for (verb, options) in verbs {
        let before = image.bytes();
        let planned = snapslot.verb(verb, path, &[options, &["--dry-run"]].concat());
        assert!(image.bytes() == before, "a dry {verb} {options:?} wrote to the image");
        assert!(!phases(&planned).is_empty(), "a dry {verb} {options:?} showed no plan");
        let ran = snapslot.verb(verb, path, options);
        assert_eq!(phases(&planned), phases(&ran), "{verb} {options:?}");
        image.guest(["write -q -P 19 2M 200k"]);
    }
    image.assert_clean();
}

#[test]
fn completions_and_manual_pages_know_every_verb() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = words(&snapslot, &["completions", shell]);
        assert_eq!(code, 0);
        for verb in ["take", "restore", "delete", "recover"] {
            assert!(script.contains(verb), "{shell} does not complete {verb}");
        }
    }
    let directory = scratch.join("pages");
    let written = snapslot.run(["man".as_ref(), "--dir".as_ref(), directory.as_os_str()]);
    written.expect(0);
    for verb in ["take", "restore", "delete", "recover", "plugin-show"] {
        let page = directory.join(format!("snapslot-{verb}.1"));
        let text = std::fs::read_to_string(&page).unwrap_or_default();
        assert!(text.contains(".TH"), "{} is no manual page", page.display());
    }
}

#[test]
fn notes_and_names_are_kept_within_bounds() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "with 'quotes' and: colon.qcow2");
    let long = "x".repeat(1025);
    for bad in ["a\nb", "\x1b[31m", long.as_str()] {
        snapslot.verb("take", image.path(), &["--note", bad]).expect(2);
    }
    let full = "é".repeat(512);
    let taken = snapslot.verb("take", image.path(), &["--note", &full]);
    assert_eq!(taken.expect(0)["slot"]["occupant"]["note"], full.as_str());
    assert_eq!(snapslot.verb("delete", image.path(), &[]).slot(), "empty");
}
