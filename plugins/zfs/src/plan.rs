//! The plans: one command each, or none where the goal is reached.

use snapslot_plugin_sdk::{Argument, Failure, FailureKind, NewSnapshot, Plan, Target, argument};

use crate::blockers;
use crate::grants::{DESTROY, DESTROY_MOUNTED, HOLDS, ROLLBACK, ROLLBACK_MOUNTED, TAKE};
use crate::look::{Dataset, Kind, Snapshot, own_name};

/// Plans a take.
pub(crate) fn take(
    dataset: &Dataset,
    new: &NewSnapshot,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    if dataset.snapshots.iter().any(|s| s.mark.as_ref() == Some(&new.mark)) {
        return Ok(());
    }
    let name = own_name(&new.mark);
    if let Some(clash) = dataset.snapshots.iter().find(|s| s.name == name) {
        let full = dataset.full_name(clash);
        let message = format!(
            "{full} is there already and does not carry the slot's mark, so it is not touched; \
             rename or destroy it"
        );
        return Err(Failure::new(FailureKind::Unsupported, "name-clash", message));
    }
    refuse([blockers::receiving(dataset), blockers::no_room(dataset)])?;

    if new.room.is_some() {
        plan.note(
            "ZFS sets no room aside for a snapshot: what changes while it is held comes out of \
             the pool's free space",
        )?;
    }
    // Below the reservation, the pool has room for everything to be written anew. Above it, the
    // machine meets a full pool as write errors.
    let whole = match dataset.kind {
        Kind::Volume => dataset.size,
        Kind::FileSystem => dataset.referenced,
    };
    if dataset.refreservation < whole && dataset.available < whole {
        plan.note(&format!(
            "{} bytes are free for what changes while the snapshot is held, of {whole} that could; \
             once they are used up, writing fails",
            dataset.available
        ))?;
    }
    plan.act(
        TAKE,
        &[
            argument("snapshot", &name),
            argument("mark", &new.mark),
            argument("seconds", new.taken_seconds),
            argument("nanoseconds", new.taken_nanoseconds),
            argument("guid", dataset.guid),
        ],
    )
}

/// Plans a restore.
pub(crate) fn restore(
    dataset: &Dataset,
    identity: &str,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let Some(slot) = dataset.snapshot(identity) else {
        let message = format!("{} has no snapshot with guid {identity}", dataset.name);
        return Err(Failure::new(FailureKind::NotFound, "no-snapshot", message));
    };
    require_ours(dataset, slot)?;
    refuse([
        blockers::receiving(dataset),
        blockers::newer(dataset, slot),
        blockers::refquota(dataset, slot),
        blockers::no_room(dataset),
    ])?;

    if slot.size != dataset.size {
        plan.note(&format!(
            "the size of {} goes back from {} to {} bytes",
            dataset.name, dataset.size, slot.size
        ))?;
        if dataset.refreservation != 0 {
            plan.note(&format!(
                "the reservation (refreservation) stays {} bytes; `zfs set refreservation=auto {}` \
                 makes it fit",
                dataset.refreservation, dataset.name
            ))?;
        }
    }
    if dataset.refquota != 0 {
        plan.note("the refquota stays what it is now: ZFS does not restore properties")?;
    }
    if !dataset.mounted {
        return plan.act(ROLLBACK, &named(slot));
    }
    plan.note(&format!(
        "{} is mounted: programs that have files open on it may get errors or see the old content",
        dataset.name
    ))?;
    plan.act(ROLLBACK_MOUNTED, &named(slot))
}

/// Plans a delete.
pub(crate) fn delete(
    target: &dyn Target,
    dataset: &Dataset,
    identity: &str,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let Some(slot) = dataset.snapshot(identity) else { return Ok(()) };
    require_ours(dataset, slot)?;
    if slot.holds != 0 {
        refuse([blockers::held(dataset, slot, &hold_tags(target, slot))])?;
    }
    refuse([blockers::cloned(dataset, slot)])?;
    plan.act(if dataset.mounted { DESTROY_MOUNTED } else { DESTROY }, &named(slot))
}

/// The arguments of the actions on a snapshot.
fn named(slot: &Snapshot) -> [Argument; 2] {
    [argument("snapshot", &slot.name), argument("guid", slot.guid)]
}

/// Fails with the first thing that stands in the way.
fn refuse<const N: usize>(blockers: [Option<Failure>; N]) -> Result<(), Failure> {
    match blockers.into_iter().flatten().next() {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Only what carries our name and mark is changed, whatever its guid.
fn require_ours(dataset: &Dataset, slot: &Snapshot) -> Result<(), Failure> {
    if slot.mark.is_some() {
        return Ok(());
    }
    let full = dataset.full_name(slot);
    let message = format!(
        "{full} has the guid of the slot's snapshot and not its name or mark: it was renamed or \
         its property `snapslot:mark` changed, so it is not touched; set that right by hand"
    );
    Err(Failure::new(FailureKind::Changed, "renamed", message))
}

/// The names of the holds: for the sentence only, so it may fail.
fn hold_tags(target: &dyn Target, slot: &Snapshot) -> Vec<String> {
    let Ok(answer) = target.ask(HOLDS, &[argument("snapshot", &slot.name)]) else {
        return Vec::new();
    };
    if answer.exit_code != 0 {
        return Vec::new();
    }
    let text = String::from_utf8_lossy(&answer.output).into_owned();
    (text.lines())
        .filter_map(|line| line.split('\t').nth(1))
        .map(|tag| tag.chars().filter(|c| !c.is_control()).take(128).collect())
        .collect()
}
