//! What all plans share: settling first, then the goal; checks before anything is changed.

use snapslot_plugin_sdk::{Argument, Failure, FailureKind, Goal, NewSnapshot, Plan, argument};

use crate::facts::no_such_snapshot;
use crate::grants::{REMOVE, UNMARK};
use crate::look::{Fill, Lv};
use crate::state::{Kind, State};
use crate::words::some_of;
use crate::{thick, thin, unsupported};

/// The host's device-mapper takes names of so many bytes.
const DEVICE_NAME_MAX: usize = 127;

/// Plans a goal.
pub(crate) fn plan(state: &State<'_>, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
    if *goal != Goal::Settled {
        refuse_ailing(state)?;
    }
    match goal {
        Goal::Settled => settle(state, plan).map(|_| ()),
        Goal::Held(new) => held(state, new, plan),
        Goal::Restored(identity) => restored(state, identity, true, plan),
        Goal::Consumed(identity) => restored(state, identity, false, plan),
        Goal::Empty(identity) => empty(state, identity, plan),
    }
}

/// Ends what is half done; returns what is the volume then.
pub(crate) fn settle<'a>(state: &State<'a>, plan: &mut dyn Plan) -> Result<&'a Lv, Failure> {
    let volume = match state.merging {
        Some(merging) if !state.merge_is_ours() => return Err(merge_pending(state, merging)),
        Some(merging) => thick::settle_merge(state, merging, plan)?,
        None => thin::settle_swap(state, plan)?,
    };
    for store in &state.stores {
        remove(state, store, plan)?;
    }
    Ok(volume)
}

fn held(state: &State<'_>, new: &NewSnapshot, plan: &mut dyn Plan) -> Result<(), Failure> {
    refuse_merge(state)?;
    if state.slots.iter().any(|slot| slot.mark == new.mark) {
        return settle(state, plan).map(|_| ());
    }
    let name = format!("{}_snapslot_{}", state.look.volume, new.mark);
    let half_made = state.stores.iter().any(|store| store.name == name);
    if !half_made && state.look.find(&name).is_some() {
        return Err(name_clash(state, &name));
    }
    refuse_long_names(state, &name)?;
    match &state.kind {
        Kind::Thin(pool) => thin::take(state, pool, &name, new, plan),
        Kind::Thick => thick::take(state, &name, new, plan),
    }
}

/// `stays` tells whether the snapshot is wanted afterwards.
fn restored(
    state: &State<'_>,
    identity: &str,
    stays: bool,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    refuse_merge(state)?;
    let slot = state.slot(identity).ok_or_else(|| no_such_snapshot(state, identity))?;
    let name = state.look.say(&slot.lv.name);
    if slot.lv.invalid {
        let message = format!(
            "more was changed than the store of {name} holds: its content is gone, and it can \
             only be deleted"
        );
        return Err(Failure::new(FailureKind::Corrupt, "snapshot-lost", message));
    }
    match (&state.kind, slot.lv.is_thin()) {
        (Kind::Thin(pool), true) => thin::restore(state, pool, slot, plan),
        (Kind::Thick, false) => thick::restore(state, slot, stays, plan),
        _ => Err(unsupported(
            "other-kind",
            format!(
                "{} is not the kind of volume that {name} was taken of; somebody replaced it",
                state.look.place()
            ),
        )),
    }
}

fn empty(state: &State<'_>, identity: &str, plan: &mut dyn Plan) -> Result<(), Failure> {
    refuse_merge(state)?;
    let Some(slot) = state.slot(identity) else {
        let foreign = no_such_snapshot(state, identity);
        if foreign.kind != FailureKind::NotFound {
            return Err(foreign);
        }
        return settle(state, plan).map(|_| ());
    };
    let name = state.look.say(&slot.lv.name);
    if slot.lv.open {
        return Err(in_use(&name, "something has it open, and it cannot be deleted before"));
    }
    refuse_dependents(state, slot.lv)?;
    settle(state, plan)?;
    remove(state, slot.lv, plan)
}

/// Removes a volume of ours, by name and UUID.
pub(crate) fn remove(state: &State<'_>, lv: &Lv, plan: &mut dyn Plan) -> Result<(), Failure> {
    if lv.open {
        let name = state.look.say(&lv.name);
        return Err(in_use(&name, "it is to be removed, and something has it open"));
    }
    refuse_dependents(state, lv)?;
    plan.act(REMOVE, &[argument("own", &lv.name), argument("uuid", &lv.uuid)])
}

/// Takes the working tags of these restores off the volume.
pub(crate) fn unmark(marks: &[&str], plan: &mut dyn Plan) -> Result<(), Failure> {
    marks.iter().try_for_each(|mark| plan.act(UNMARK, &[argument("mark", mark)]))
}

/// What both kinds of take are told.
pub(crate) fn taking(name: &str, mark: &str, taken: (u64, u32)) -> Vec<Argument> {
    vec![
        argument("snapshot", name),
        argument("mark", mark),
        argument("seconds", taken.0),
        argument("nanoseconds", taken.1),
    ]
}

/// Somebody has it open.
pub(crate) fn in_use(name: &str, why: &str) -> Failure {
    let message = format!("{name} is in use: {why}");
    Failure::new(FailureKind::InUse, "in-use", message)
}

/// A name that a plan needs is taken by a volume that is not ours.
pub(crate) fn name_clash(state: &State<'_>, name: &str) -> Failure {
    let name = state.look.say(name);
    let message = format!("{name} is there and is not Snapslot's; rename or remove it");
    unsupported("name-clash", message)
}

/// Somebody has the volume open: no restore.
pub(crate) fn refuse_open(state: &State<'_>, volume: &Lv) -> Result<(), Failure> {
    if volume.open {
        let name = state.look.say(&volume.name);
        return Err(in_use(&name, "stop the machine, or unmount it, before it is restored"));
    }
    Ok(())
}

/// LVM would remove these together with the volume.
pub(crate) fn refuse_dependents(state: &State<'_>, lv: &Lv) -> Result<(), Failure> {
    let dependents = state.dependents(lv);
    if dependents.is_empty() {
        return Ok(());
    }
    let names = some_of(dependents.iter().map(|d| state.look.say(&d.name)));
    let message = format!(
        "{names} would be removed together with {}; remove or detach what depends on it first",
        state.look.say(&lv.name)
    );
    Err(unsupported("has-dependents", message))
}

/// No plan while parts of the volume are missing.
fn refuse_ailing(state: &State<'_>) -> Result<(), Failure> {
    match state.volume {
        Some(volume) if volume.is_broken() => {
            let message = format!(
                "LVM says that {} is {}; `lvs -a -o+devices` tells more",
                state.look.place(),
                volume.health
            );
            Err(Failure::new(FailureKind::Corrupt, "volume-health", message))
        }
        _ => Ok(()),
    }
}

/// A pending merge blocks everything: it sets the volume back, and LVM refuses snapshots.
fn refuse_merge(state: &State<'_>) -> Result<(), Failure> {
    match state.merging {
        None => Ok(()),
        Some(merging) => Err(merge_pending(state, merging)),
    }
}

/// A merge waits, or is under way.
pub(crate) fn merge_pending(state: &State<'_>, merging: &Lv) -> Failure {
    let what = state.look.say(&merging.name);
    let place = state.look.place();
    let message = match state.volume {
        Some(volume) if volume.merge_is_under_way() => {
            let left = volume.store.unwrap_or(Fill(0));
            format!(
                "{what} is being merged into {place}, {left} of its store are left to copy. {place} \
                 shows its content already and can be used; the slot is free again when the merge \
                 is through: then `snapslot recover`, or any verb"
            )
        }
        _ if !state.merge_is_ours() => format!(
            "{what}, which is not ours, waits to be merged into {place} and will set it back; \
             `lvchange -an` and `-ay` on {place} begin that, and afterwards there is a way again"
        ),
        _ => format!(
            "{what} waits to be merged into {place}, which sets it back. Stop what has it open, \
             then `snapslot recover`"
        ),
    };
    Failure::new(FailureKind::InUse, "merge-pending", message)
}

/// Names that LVM would accept and then fail with half way: it leaves the volume suspended.
fn refuse_long_names(state: &State<'_>, name: &str) -> Result<(), Failure> {
    // Hyphens are doubled, and the store of a thick snapshot is a device of its own.
    let escaped = |n: &str| n.len() + n.matches('-').count();
    let device = escaped(&state.look.group) + 1 + escaped(name) + "-cow".len();
    if device > DEVICE_NAME_MAX || name.len() > DEVICE_NAME_MAX {
        let message = format!(
            "the snapshot's name {} is longer than device names may be; rename the volume or its \
             group",
            state.look.say(name)
        );
        return Err(unsupported("name-too-long", message));
    }
    Ok(())
}
