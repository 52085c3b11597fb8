//! The contract's limits and edges: pages of any length, identities of nothing, moments at the end of time.

use snapslot_runtime::{CallError, FailureKind, Goal, NewSnapshot, View};
use snapslot_testkit::trial::plain;

use crate::bench::Bench;
use crate::cases::Cases;
use crate::content::{content, disk_of, extents, joined, views};
use crate::convert::Component;
use crate::files::Sample;
use crate::images::{CANNOT_WRITE, held};
use crate::machine::Live;
use crate::plans::new_snapshot;

/// Identities that no snapshot has: unknown ones, options, paths, all that a command line might take apart.
fn nobody() -> Vec<String> {
    let mut all: Vec<String> = [
        "",
        "0",
        "-1",
        "18446744073709551615",
        "-",
        "--",
        "--help",
        "-f",
        "..",
        "../x",
        "/",
        "@",
        "#",
        "x@y",
        "x\0y",
        "x\ny",
        "x y",
        "$(x)",
        "*",
        "vg",
        "vg/vm1",
        "\u{202e}x",
        "é",
        "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAAAA",
    ]
    .map(str::to_owned)
    .to_vec();
    all.push("x".repeat(512));
    all
}

/// What holds for every plugin.
pub fn identities(bench: &Bench<'_>, prefix: &str, live: &dyn Live, cases: &mut Cases<'_>) {
    cases.run_telling(&format!("{prefix}/identities-of-nothing"), || {
        let before = live.all()?;
        let all = nobody();
        for identity in &all {
            let at = |e: String| format!("{identity:?}: {e}");
            let sight = live.sight()?;
            match bench.plugin.plan(&sight, &Goal::Restored(identity.clone())) {
                Err(CallError::Refused(f)) => no_fault(f.kind).map_err(at)?,
                Err(fault) => return Err(at(fault.to_string())),
                Ok(_) => return Err(at("it plans a restore of what is not there".to_owned())),
            }
            match bench.plugin.plan(&sight, &Goal::Empty(identity.clone())) {
                Err(CallError::Refused(f)) => no_fault(f.kind).map_err(at)?,
                Err(fault) => return Err(at(fault.to_string())),
                Ok(plan) if !plan.is_empty() => {
                    return Err(at("it plans a delete of what is not there".to_owned()));
                }
                Ok(_) => {}
            }
            for asked in [
                bench.plugin.measure(&sight, identity, false).map(|_| ()),
                bench.plugin.differences(&sight, identity, 0, 10).map(|_| ()),
            ] {
                match asked {
                    Err(CallError::Refused(_)) => {}
                    Err(fault) => return Err(at(fault.to_string())),
                    Ok(()) => return Err(at("it compares with what is not there".to_owned())),
                }
            }
        }
        match live.all()? == before {
            true => Ok(Some(format!("{} identities", all.len()))),
            false => Err("asking changed something".to_owned()),
        }
    });
    cases.run_telling(&format!("{prefix}/moments-and-marks-at-the-edges"), || {
        let mut planned = 0;
        for (seconds, nanoseconds) in moments() {
            for mark in ["0000000000000000", "ffffffffffffffff", "0123456789abcdef"] {
                let goal = Goal::Held(NewSnapshot {
                    mark: mark.to_owned(),
                    taken_seconds: seconds,
                    taken_nanoseconds: nanoseconds,
                    ..new_snapshot()
                });
                match bench.plugin.plan(&live.sight()?, &goal) {
                    Ok(plan) if plan.is_empty() => {
                        return Err(format!(
                            "a take of {seconds} s with mark {mark} plans nothing"
                        ));
                    }
                    Ok(_) => planned += 1,
                    Err(CallError::Refused(_)) => {}
                    Err(fault) => return Err(format!("{seconds} s, {mark}: {fault}")),
                }
            }
        }
        match planned {
            0 => Err("no moment at all can be taken".to_owned()),
            _ => Ok(Some(format!("{planned} moments and marks"))),
        }
    });
}

/// A refusal that blames the plugin itself is a fault in other words.
fn no_fault(kind: FailureKind) -> Result<(), String> {
    match kind {
        FailureKind::Internal | FailureKind::NotGranted | FailureKind::Limit => {
            Err(format!("that is refused as `{kind:?}`: the fault of the plugin"))
        }
        _ => Ok(()),
    }
}

fn moments() -> [(u64, u32); 8] {
    let day = 86_400;
    [
        (0, 0),
        (1, 999_999_999),
        (day, 0),
        ((1 << 31) - 1, 999_999_999),
        (1 << 31, 0),
        ((1 << 32) - 1, 0),
        (1 << 32, 0),
        (u64::MAX, 999_999_999),
    ]
}

/// What holds for plugins of images.
pub fn images(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    let prefix = format!("limits/{}", sample.name);
    if !cases.may_want(&prefix) {
        return;
    }
    let names = ["pages-of-any-length", "what-differs-is-listed", "the-moment-is-kept"];
    let names = names.map(|case| format!("{prefix}/{case}"));
    if !bench.changes_images() || !bench.lists_extents(&bench.sight(disk_of(&sample.bytes))) {
        let why = "its snapshots are not in the image, or it lists no extents";
        for name in names {
            cases.does_not_apply(&name, why);
        }
        return;
    }
    let held = held(bench, sample);
    let [pages, differs, moment] = names;
    cases.run_telling(&pages, || {
        let (image, _) = held.clone()?;
        let sight = bench.sight(disk_of(&image));
        let facts = bench.plugin.inspect(&sight).map_err(|e| e.to_string())?;
        let mut listed = 0;
        for (name, view, size) in views(&facts) {
            let whole = joined(&extents(bench, &sight, &view, size, 1000)?);
            listed += whole.len();
            for page in [1, 2, 7] {
                if joined(&extents(bench, &sight, &view, size, page)?) != whole {
                    return Err(format!(
                        "{name}: pages of {page} say something else than pages of 1000"
                    ));
                }
            }
        }
        Ok(Some(format!("{listed} extents")))
    });
    cases.run_telling(&differs, || {
        let (image, wrote) = held.clone()?;
        if !wrote {
            bench.beyond.note(CANNOT_WRITE.to_owned());
            return Err(CANNOT_WRITE.to_owned());
        }
        let sight = bench.sight(disk_of(&image));
        let facts = bench.plugin.inspect(&sight).map_err(|e| e.to_string())?;
        let ours =
            facts.snapshots.iter().find(|s| s.mark.is_some()).ok_or("no snapshot of ours")?;
        let now = content(bench, &sight, &View::Current, facts.virtual_size)?;
        let view = View::Snapshot(ours.identity.clone());
        let then = content(bench, &sight, &view, ours.virtual_size)?;
        let changed = now.differs(&then);
        if changed.is_empty() {
            return Err("the guest wrote, and nothing differs from the snapshot".to_owned());
        }
        let mut told = Vec::new();
        for page in [1000, 1] {
            match listed(bench, &sight, &ours.identity, page) {
                Ok(list) => told.push(list),
                Err(CallError::Refused(f)) if f.code == "no-differences" => return Ok(None),
                Err(error) => return Err(error.to_string()),
            }
        }
        if told[0] != told[1] {
            return Err("pages of 1 list something else than pages of 1000".to_owned());
        }
        let block = crate::content::BLOCK;
        let missing = changed.iter().find(|at| {
            let (start, end) = (**at * block, (**at + 1) * block);
            !told[0].iter().any(|(s, l)| *s < end && start < s + l)
        });
        match missing {
            Some(at) => {
                Err(format!("guest offset {:#x} has changed, and is not listed", at * block))
            }
            None => Ok(Some(format!("{} blocks changed", changed.len()))),
        }
    });
    cases.run_telling(&moment, || {
        let planner = Component::new(bench.plugin, bench);
        let mut kept = 0;
        for (seconds, nanoseconds) in moments() {
            let goal = snapslot_plugin_sdk::Goal::Held(snapslot_plugin_sdk::NewSnapshot {
                mark: "00000000000000ab".to_owned(),
                taken_seconds: seconds,
                taken_nanoseconds: nanoseconds,
                room: None,
                beside: 0,
                full_copy: false,
            });
            let Ok(after) = plain(&planner, &sample.bytes, &goal) else { continue };
            let facts = bench.plugin.inspect(&bench.sight(disk_of(&after)));
            let facts = facts.map_err(|e| e.to_string())?;
            let ours = facts.snapshots.iter().find(|s| s.mark.is_some());
            let found = ours.map(|s| (s.taken_seconds, s.taken_nanoseconds));
            if found != Some((seconds, nanoseconds)) {
                return Err(format!("taken at {seconds}.{nanoseconds:09}, it says {found:?}"));
            }
            kept += 1;
        }
        match kept {
            0 => Err("no moment at all can be taken".to_owned()),
            _ => Ok(Some(format!("{kept} moments kept"))),
        }
    });
}

/// All that is listed as different, joined.
fn listed(
    bench: &Bench<'_>,
    sight: &snapslot_runtime::Sight,
    identity: &str,
    page: u32,
) -> Result<Vec<(u64, u64)>, CallError> {
    let mut all: Vec<(u64, u64)> = Vec::new();
    let mut cursor = 0;
    loop {
        let found = bench.plugin.differences(sight, identity, cursor, page)?;
        for stretch in found.stretches {
            match all.last_mut() {
                Some((start, length)) if *start + *length == stretch.start => {
                    *length += stretch.length
                }
                _ => all.push((stretch.start, stretch.length)),
            }
        }
        // The host sees to it that it goes on behind what it listed.
        match found.next {
            Some(next) => cursor = next,
            None => return Ok(all),
        }
    }
}
