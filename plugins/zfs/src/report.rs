//! What is reported after looking: facts, findings, and how far the content has moved away.

use snapslot_plugin_sdk::{
    Change, Facts, Failure, FailureKind, Finding, Snapshot, Target, argument,
};

use crate::blockers;
use crate::explain;
use crate::grants::WRITTEN;
use crate::look::{self, Dataset, is_own_name};

/// The contract's limits.
const SNAPSHOTS_MAX: usize = 65_536;
const FINDINGS_MAX: usize = 64;

/// The facts of the contract.
///
/// A file system has no size that a guest sees, so its virtual size, and that of its snapshots,
/// is 0.
pub(crate) fn facts(dataset: &Dataset) -> Result<Facts, Failure> {
    if dataset.snapshots.len() > SNAPSHOTS_MAX {
        let found = dataset.snapshots.len();
        let message = format!("{} has {found} snapshots, {SNAPSHOTS_MAX} are listed", dataset.name);
        let failure = Failure::new(FailureKind::Limit, "too-many-snapshots", message);
        return Err(failure.with("limit", SNAPSHOTS_MAX).with("asked", found));
    }
    let secrecy = match (dataset.encrypted, dataset.key_loaded) {
        (false, _) => "",
        (true, true) => ", encrypted",
        (true, false) => ", encrypted, key not loaded",
    };
    Ok(Facts {
        // Snapshots go with their dataset: none is ever taken for another's.
        identity: None,
        virtual_size: dataset.size,
        format: format!("ZFS {}{secrecy}", dataset.kind_in_words()),
        snapshots: dataset.snapshots.iter().map(snapshot).collect(),
        findings: findings(dataset),
        unfinished: None,
    })
}

fn snapshot(found: &look::Snapshot) -> Snapshot {
    Snapshot {
        identity: found.guid.to_string(),
        name: found.name.clone(),
        mark: found.mark.clone(),
        taken_seconds: found.taken_seconds,
        taken_nanoseconds: found.taken_nanoseconds,
        virtual_size: found.size,
        vm_state_size: 0,
        lost: false,
    }
}

/// What is worth telling. None of it stops every plan: each plan refuses what it cannot do.
fn findings(dataset: &Dataset) -> Vec<Finding> {
    let finding =
        |code: &str, message: String| Finding { code: code.to_owned(), message, blocks: false };
    let mut blockers = vec![blockers::receiving(dataset)];
    let mut told = Vec::new();
    for slot in dataset.snapshots.iter().filter(|s| s.mark.is_some()) {
        blockers.push(blockers::newer(dataset, slot));
        blockers.push(blockers::refquota(dataset, slot));
        blockers.push(blockers::held(dataset, slot, &[]));
        blockers.push(blockers::cloned(dataset, slot));
        if slot.doomed {
            let full = dataset.full_name(slot);
            let message = format!(
                "{full} was destroyed by somebody with `-d`: it goes as soon as its holds and \
                 clones are gone"
            );
            told.push(finding("doomed", message));
        }
    }
    for foreign in dataset.snapshots.iter().filter(|s| s.mark.is_none() && is_own_name(&s.name)) {
        let full = dataset.full_name(foreign);
        let message = match foreign.stray {
            true => format!(
                "{full} is the slot's snapshot of another dataset: it was received, or moved here \
                 when a clone was promoted. It counts as somebody else's"
            ),
            false => format!(
                "{full} has the name of a slot's snapshot and not its mark, so it counts as \
                 somebody else's"
            ),
        };
        told.push(finding("name-clash", message));
    }
    if dataset.available == 0 {
        let message = format!("no room is left for {}: writing to it fails", dataset.name);
        told.push(finding("full", message));
    }
    let blockers = blockers.into_iter().flatten().map(|f| finding(&f.code, f.message));
    blockers.chain(told).take(FINDINGS_MAX).collect()
}

/// How far the content has moved away: `written` of the dataset, which counts since the newest
/// snapshot, or since the one named; and the snapshot's own `used`.
///
/// Both are bytes as stored: compressed, and without what the last seconds' transaction group
/// still holds in memory. What was only freed is not counted.
pub(crate) fn measure(
    target: &dyn Target,
    dataset: &Dataset,
    identity: &str,
) -> Result<Change, Failure> {
    let Some(slot) = dataset.snapshot(identity) else {
        let message = format!("{} has no snapshot with guid {identity}", dataset.name);
        return Err(Failure::new(FailureKind::NotFound, "no-snapshot", message));
    };
    let newest = dataset.snapshots.last().is_some_and(|s| s.guid == slot.guid);
    let changed_bytes =
        if newest { dataset.written } else { written_since(target, dataset, slot)? };
    Ok(Change { changed_bytes, held_bytes: slot.used, at_least: false })
}

fn written_since(
    target: &dyn Target,
    dataset: &Dataset,
    slot: &look::Snapshot,
) -> Result<u64, Failure> {
    let unknown = |why: String| Failure::new(FailureKind::Unsupported, "no-measure", why);
    if slot.mark.is_none() {
        let full = dataset.full_name(slot);
        return Err(unknown(format!(
            "what changed since {full} is only counted for the slot's own"
        )));
    }
    let answer = target.ask(WRITTEN, &[argument("snapshot", &slot.name)])?;
    if answer.exit_code != 0 {
        return Err(explain::explain(WRITTEN, &answer));
    }
    let text = String::from_utf8_lossy(&answer.output).trim().to_owned();
    text.parse().map_err(|_| {
        let shown: String = text.chars().filter(|c| !c.is_control()).take(64).collect();
        unknown(format!("ZFS says {shown:?} was written since {}", dataset.full_name(slot)))
    })
}
