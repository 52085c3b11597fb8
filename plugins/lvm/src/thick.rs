//! Thick volumes: take, restore, and the end of a restore that was stopped.
//!
//! A thick snapshot is a store of what was there before each change. A restore merges it into the
//! volume, which consumes it, and takes it again at once: the volume's content *is* the
//! snapshot's then, if nobody has written in between.
//!
//! | after | there is | a crash here is settled by |
//! |---|---|---|
//! | begin | volume (marked), snapshot | a fresh activation, taking the mark off |
//! | deactivate, activate | the same; perhaps not active | the same |
//! | merge, begun | volume, merging | LVM's merge: `--refresh` has it go on |
//! | merge, ended | volume (marked) | taking the mark off; the slot is empty |
//! | take | volume (marked), snapshot | as after begin |
//!
//! After a crash the snapshot is not taken again: a machine may have been started since, and then
//! the snapshot would have its content, not the one the slot's record tells of.

use snapslot_plugin_sdk::{Change, Failure, FailureKind, NewSnapshot, Plan, argument};

use crate::facts::no_such_snapshot;
use crate::grants::{ACTIVATE, BEGIN, BEGIN_INACTIVE, DEACTIVATE, MERGE, REFRESH, TAKE_THICK};
use crate::look::{Fill, Lv};
use crate::plan::{in_use, merge_pending, refuse_open, settle, taking, unmark};
use crate::state::{INACTIVE, RESTORING, Slot, State, mark_in};
use crate::unsupported;
use crate::words::bytes;

/// Bytes of a chunk, the unit of what a store keeps. LVM's default, which it has no setting for.
const CHUNK: u64 = 4096;
/// Changes that one chunk of the store's tables describes (16 bytes each).
const PER_TABLE: u64 = CHUNK / 16;

/// Plans a take.
pub(crate) fn take(
    state: &State<'_>,
    name: &str,
    new: &NewSnapshot,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let volume = settle(state, plan)?;
    let freed: u64 = state.stores.iter().map(|store| store.size).sum();
    let free = state.look.free.saturating_add(freed);
    let room = room(state, volume, new, free)?;
    if room < whole(volume.size, state.look.extent) {
        plan.note(&format!(
            "{} of {} are set aside for what changes: once more than that has changed, the \
             snapshot is lost",
            bytes(room),
            bytes(volume.size)
        ))?;
    } else {
        plan.note(&format!(
            "{} are set aside, enough for all of {} to change",
            bytes(room),
            bytes(volume.size)
        ))?;
    }
    let mut arguments = taking(name, &new.mark, (new.taken_seconds, new.taken_nanoseconds));
    arguments.push(argument("room", room));
    plan.act(TAKE_THICK, &arguments)
}

/// Plans a restore; `stays` tells whether the snapshot is wanted afterwards.
pub(crate) fn restore(
    state: &State<'_>,
    slot: Slot<'_>,
    stays: bool,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let volume = settle(state, plan)?;
    refuse_open(state, volume)?;
    let name = state.look.say(&slot.lv.name);
    if slot.lv.open {
        return Err(in_use(&name, "LVM would put the restore off until nobody has it open"));
    }
    if volume.is_read_only() {
        let place = state.look.place();
        let message = format!("{place} is read-only; `lvchange -prw {place}` makes it writable");
        return Err(unsupported("read-only", message));
    }
    spare_siblings(state, slot)?;
    let active = is_active_at_rest(state, volume);
    let begin = if active { BEGIN } else { BEGIN_INACTIVE };
    plan.act(begin, &[argument("mark", slot.mark), argument("uuid", &volume.uuid)])?;
    if active {
        // The kernel refuses this while anybody has the volume open, and it throws away tables
        // that a killed command may have left beside the live ones.
        plan.act(DEACTIVATE, &[])?;
    }
    plan.act(ACTIVATE, &[])?;
    let snapshot = argument("snapshot", &slot.lv.name);
    plan.act(MERGE, &[snapshot, argument("uuid", &slot.lv.uuid)])?;
    if stays {
        let mut again = taking(&slot.lv.name, slot.mark, slot.taken());
        again.push(argument("room", slot.lv.size));
        plan.act(TAKE_THICK, &again)?;
    }
    if !active {
        plan.act(DEACTIVATE, &[])?;
    }
    unmark(&[slot.mark], plan)
}

/// Has a merge that waits begin, one that was broken off go on, or one that is through end. A merge
/// goes on in the background; the volume can be used meanwhile, and shows the snapshot's content from
/// the merge's first moment.
pub(crate) fn settle_merge<'a>(
    state: &State<'a>,
    merging: &'a Lv,
    plan: &mut dyn Plan,
) -> Result<&'a Lv, Failure> {
    let Some(volume) = state.volume else { return Err(merge_pending(state, merging)) };
    let place = state.look.place();
    if volume.merge_is_under_way() && volume.store > Some(Fill(0)) {
        // The kernel is at it, and needs nobody; only the end needs somebody, who takes the snapshot
        // out of the metadata.
        return Err(merge_pending(state, merging));
    }
    if !volume.merge_is_under_way() && (volume.open || merging.open) {
        return Err(merge_pending(state, merging));
    }
    if volume.active {
        plan.act(REFRESH, &[])?;
    } else {
        plan.act(ACTIVATE, &[])?;
        plan.note(&format!("{place} is activated, and stays so: a merge needs that"))?;
    }
    plan.note(&format!(
        "the merge of {} into {place} ends in the background; the slot is empty then",
        state.look.say(&merging.name)
    ))?;
    unmark(&state.working_marks(volume), plan)?;
    Ok(volume)
}

/// Whether the volume is active when no restore is at work on it: one that was stopped may have
/// it either way, and its marks tell how it was.
pub(crate) fn is_active_at_rest(state: &State<'_>, volume: &Lv) -> bool {
    let begun = mark_in(volume, RESTORING).is_some() || state.stepped_in(volume);
    mark_in(volume, INACTIVE).is_none() && (begun || volume.active)
}

/// Puts the volume's device in order after a restore was stopped, or a command was killed.
///
/// An `lvconvert --merge` that is killed before it has changed the metadata may leave the tables
/// of the merge loaded beside the live ones. Whatever resumes the devices next makes them live,
/// and then the kernel finds the snapshot invalid: its content would be lost. Deactivating throws
/// them away. (Observed with LVM 2.03.16 and Linux 6.1, killed at each of its ioctls.)
///
/// A command holds the group's lock while it suspends a volume, and a look waits for that lock:
/// whoever suspended this one is not at work any more.
pub(crate) fn settle_device(
    state: &State<'_>,
    volume: &Lv,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let begun = mark_in(volume, RESTORING).is_some();
    let inactive_after = mark_in(volume, INACTIVE).is_some();
    let stepped_in = state.stepped_in(volume);
    let open = volume.open || state.slots.iter().any(|slot| slot.lv.open && !slot.lv.is_thin());
    let suspended = volume.is_suspended();
    if !volume.active {
        if (begun || stepped_in) && !inactive_after {
            plan.act(ACTIVATE, &[])?;
        }
    } else if suspended || (begun && !state.is_merged(volume)) {
        match (open, suspended) {
            (false, _) => {
                plan.act(DEACTIVATE, &[])?;
                if !inactive_after {
                    plan.act(ACTIVATE, &[])?;
                }
            }
            (true, true) if begun => {
                let why = "a restore was stopped while it was suspended, and it has to be \
                           deactivated before anything else";
                return Err(in_use(&state.look.place(), why));
            }
            (true, true) => plan.act(REFRESH, &[])?,
            // A machine uses it, so it is whole.
            (true, false) => {}
        }
    } else if inactive_after && !open {
        plan.act(DEACTIVATE, &[])?;
    }
    Ok(())
}

/// Bytes of a store in which every chunk of the volume has room, in extents.
fn whole(size: u64, extent: u64) -> u64 {
    let chunks = size.div_ceil(CHUNK);
    // One chunk is the store's header, and the tables begin with a chunk of their own.
    let all = chunks.saturating_add(chunks.div_ceil(PER_TABLE)).saturating_add(2);
    all.saturating_mul(CHUNK).div_ceil(extent).saturating_mul(extent)
}

/// Bytes to set aside for what changes. What is free is shared with what is taken beside it.
fn room(state: &State<'_>, volume: &Lv, new: &NewSnapshot, free: u64) -> Result<u64, Failure> {
    let extent = state.look.extent;
    let whole = whole(volume.size, extent);
    let free = free / extent * extent;
    let (room, beside) = match new.room {
        // LVM would cut a larger one down without a word that counts.
        Some(bytes) => {
            let room = bytes.max(1).div_ceil(extent).saturating_mul(extent).min(whole);
            (room, new.beside.div_ceil(extent).saturating_mul(extent))
        }
        None if new.beside == 0 => (whole.min(free).max(extent), 0),
        None => {
            // Each store has tables, and is rounded to extents: so many volumes may come beside.
            const BESIDE: u64 = 8;
            let others = self::whole(new.beside, extent).saturating_add(BESIDE * extent);
            let all = u128::from(whole) + u128::from(others);
            // A part of `free`, so it fits.
            let share = (u128::from(free) * u128::from(whole) / all) as u64 / extent * extent;
            (whole.min(share).max(extent), 0)
        }
    };
    let needed = room.saturating_add(beside);
    if needed > free {
        let others = match beside {
            0 => String::new(),
            beside => format!(", and the machine's other volumes there {}", bytes(beside)),
        };
        let message = format!(
            "{} has {} free, and a snapshot of {} needs {} to set aside{others}; `vgextend` adds room",
            state.look.group,
            bytes(free),
            state.look.place(),
            bytes(room)
        );
        return Err(Failure::new(FailureKind::NoSpace, "no-space", message)
            .with("needed", needed)
            .with("available", free));
    }
    Ok(room)
}

/// A merge writes into the volume, and every other snapshot of it keeps what was there: one whose
/// store is too small for that would be lost, and LVM would still call it a success.
fn spare_siblings(state: &State<'_>, slot: Slot<'_>) -> Result<(), Failure> {
    let brings = slot.lv.store.map_or(slot.lv.size, |fill| fill.of(slot.lv.size));
    let siblings = state.slots.iter().map(|s| s.lv).chain(state.others.iter().copied());
    let siblings = siblings.filter(|lv| lv.uuid != slot.lv.uuid && !lv.is_thin() && !lv.invalid);
    for sibling in siblings {
        // How full it is is not known while the volume is inactive: then it counts as full.
        let used = sibling.store.map_or(sibling.size, |fill| fill.of(sibling.size));
        let free = sibling.size.saturating_sub(used);
        let enough = sibling.size >= state.volume.map_or(0, |v| whole(v.size, state.look.extent));
        if free < brings && !enough {
            let name = state.look.say(&sibling.name);
            let left = match sibling.store {
                Some(_) => format!("the store of {name} has {} left", bytes(free)),
                None => format!("LVM tells the room of {name} only while the volume is active"),
            };
            let message = format!(
                "a restore would write up to {}, and {left}: that snapshot would be lost. \
                 `lvextend -L +… {name}` gives it room, or remove it",
                bytes(brings),
            );
            return Err(Failure::new(FailureKind::NoSpace, "sibling-too-small", message)
                .with("needed", brings)
                .with("available", free));
        }
    }
    Ok(())
}

/// How far the volume has moved away from the snapshot. Its store holds what was there before each
/// change, so its fill is the change, up to the store's own tables: an upper bound.
pub(crate) fn measure(state: &State<'_>, identity: &str) -> Result<Change, Failure> {
    let Some(slot) = state.slot(identity) else { return Err(no_such_snapshot(state, identity)) };
    let Some(fill) = slot.lv.store else {
        let name = state.look.say(&slot.lv.name);
        let message = format!("LVM tells the fill of {name} only while the volume is active");
        return Err(unsupported("no-measure", message));
    };
    let held_bytes = fill.of(slot.lv.size);
    let most = state.volume.map_or(u64::MAX, |v| v.size);
    Ok(Change { changed_bytes: held_bytes.min(most), held_bytes, at_least: false })
}
