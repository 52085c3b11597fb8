//! Thin volumes: take, restore, and the end of a restore that was stopped.
//!
//! A restore makes the volume anew from the snapshot and swaps the names. In every state between
//! two commands the volume's content from before, or the restored one, is there under a name of
//! ours, and the snapshot always is:
//!
//! | after | there is | a crash here is settled by |
//! |---|---|---|
//! | make, copy, mark | volume, new (not active) | removing new |
//! | step aside | new, old | new steps in, old is removed: no way back is needed |
//! | step in | volume (not active), old | activating the volume, removing old |
//! | activate | volume, old | removing old |
//! | remove | volume, marked | taking the marks off |
//!
//! The new volume is not active before it has the volume's name: its content has the same UUIDs and
//! labels, and whoever looks at devices would take one for the other. The old one is active still
//! when the new one is activated, since a pool without an active volume is deactivated, and checked as a
//! whole when it is activated again.

use snapslot_plugin_sdk::stretches::Stretches;
use snapslot_plugin_sdk::{
    Change, Failure, FailureKind, Image, NewSnapshot, Plan, Role, StretchPage, Target, argument,
};

use crate::facts::no_such_snapshot;
use crate::grants::{
    ACTIVATE, COPY_NO_AUTO, COPY_READ_ONLY, COPY_SKIP, COPY_TAG, MAKE, MAKE_INACTIVE, MARK_OLD,
    NUMBERS, REMOVE, STEP_ASIDE, STEP_BACK, STEP_IN, TAKE_THIN,
};
use crate::look::{Fill, Lv};
use crate::plan::{name_clash, refuse_dependents, refuse_open, remove, settle, taking, unmark};
use crate::state::{Slot, State, is_own_tag};
use crate::words::{bytes, some_of};
use crate::{metadata, report, thick, unsupported};

/// No take into a pool whose data is as full: what the machine writes while the slot is held
/// needs room of its own, and a pool without room fails writes.
const TAKE_DATA_MAX: Fill = Fill(9_900);
/// No new volume in a pool whose data is as full: LVM makes none.
const RESTORE_DATA_MAX: Fill = Fill(10_000);
/// No new volume in a pool whose metadata is as full: a pool that runs out of it has to be
/// repaired offline.
const METADATA_MAX: Fill = Fill(9_500);
/// So many tags of its own a volume may have to be restored: each is one command.
const TAGS_MAX: usize = 40;
/// A tag that a grant's hole takes.
const TAG_BYTES_MAX: usize = 128;

/// Plans a take.
pub(crate) fn take(
    state: &State<'_>,
    pool: &str,
    name: &str,
    new: &NewSnapshot,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    refuse_full(state, pool, TAKE_DATA_MAX)?;
    settle(state, plan)?;
    note_filling(state, pool, plan)?;
    plan.act(TAKE_THIN, &taking(name, &new.mark, (new.taken_seconds, new.taken_nanoseconds)))
}

/// Plans a restore.
pub(crate) fn restore(
    state: &State<'_>,
    pool: &str,
    slot: Slot<'_>,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let (new, old) = names(state);
    for (name, ours) in [(&new, state.new), (&old, state.old)] {
        if ours.is_none() && state.look.find(name).is_some() {
            return Err(name_clash(state, name));
        }
    }
    if let Some(old) = state.old {
        // What cannot be removed yet is in the way of the volume that is to step aside now.
        refuse_open(state, old)?;
        refuse_dependents(state, old)?;
    }
    refuse_full(state, slot.lv.pool.as_deref().unwrap_or(pool), RESTORE_DATA_MAX)?;
    let volume = settle(state, plan)?;
    refuse_open(state, volume)?;
    refuse_dependents(state, volume)?;
    let tags = tags_to_copy(state, volume)?;
    if volume.size != slot.lv.size {
        plan.note(&format!(
            "{} was resized since: it goes from {} back to {}",
            state.look.place(),
            bytes(volume.size),
            bytes(slot.lv.size)
        ))?;
    }
    let foreign = state.thin_snapshots();
    if !foreign.is_empty() {
        let foreign = some_of(foreign.iter().map(|lv| state.look.say(&lv.name)));
        plan.note(&format!("{foreign}, made of it by others, stay and lose their link to it"))?;
    }
    note_lost(state, volume, plan)?;
    let own = argument("own", &new);
    let active = thick::is_active_at_rest(state, volume);
    let make = if active { MAKE } else { MAKE_INACTIVE };
    let source = [argument("snapshot", &slot.lv.name), argument("uuid", &slot.lv.uuid)];
    let [snapshot, uuid] = source;
    plan.act(make, &[own.clone(), argument("mark", slot.mark), snapshot, uuid])?;
    if volume.is_read_only() {
        plan.act(COPY_READ_ONLY, std::slice::from_ref(&own))?;
    }
    if volume.skipped {
        plan.act(COPY_SKIP, std::slice::from_ref(&own))?;
    }
    if !volume.autoactivated {
        plan.act(COPY_NO_AUTO, std::slice::from_ref(&own))?;
    }
    for tag in tags {
        plan.act(COPY_TAG, &[own.clone(), argument("tag", tag)])?;
    }
    let uuid = argument("uuid", &volume.uuid);
    plan.act(MARK_OLD, &[argument("mark", slot.mark), uuid.clone()])?;
    plan.act(STEP_ASIDE, &[argument("own", &old), uuid.clone()])?;
    plan.act(STEP_IN, &[own])?;
    if active {
        plan.act(ACTIVATE, &[])?;
    }
    plan.act(REMOVE, &[argument("own", &old), uuid])?;
    unmark(&[slot.mark], plan)
}

/// Ends a swap of names wherever it was stopped, and takes leftover marks off; returns what is
/// the volume then.
pub(crate) fn settle_swap<'a>(state: &State<'a>, plan: &mut dyn Plan) -> Result<&'a Lv, Failure> {
    let volume = match (state.volume, state.new, state.old) {
        (Some(volume), new, Some(old)) => {
            if !state.took_the_place_of(volume, old) {
                return Err(foreign_volume(state, old));
            }
            // It is there again in any case, before anything is removed.
            thick::settle_device(state, volume, plan)?;
            if let Some(new) = new {
                remove(state, new, plan)?;
            }
            remove(state, old, plan)?;
            volume
        }
        (Some(volume), Some(new), None) => {
            thick::settle_device(state, volume, plan)?;
            remove(state, new, plan)?;
            volume
        }
        (Some(volume), None, None) => {
            thick::settle_device(state, volume, plan)?;
            volume
        }
        (None, Some(new), old) => {
            plan.act(STEP_IN, &[argument("own", &new.name)])?;
            thick::settle_device(state, new, plan)?;
            if let Some(old) = old {
                // The volume has its name again in any case; the rest can wait.
                if let Err(failure) = remove(state, old, plan) {
                    plan.note(&format!("its content from before stays: {}", failure.message))?;
                    return Ok(new);
                }
            }
            new
        }
        (None, None, Some(old)) => {
            plan.act(STEP_BACK, &[argument("own", &old.name), argument("uuid", &old.uuid)])?;
            thick::settle_device(state, old, plan)?;
            old
        }
        (None, None, None) => {
            let message = format!("there is no logical volume {}", state.look.place());
            return Err(Failure::new(FailureKind::NotFound, "no-such-volume", message));
        }
    };
    if state.is_merged(volume) {
        plan.note(&format!(
            "the restore of {} used its snapshot up, and what was written since is not known: the \
             slot is empty",
            state.look.place()
        ))?;
    }
    unmark(&state.working_marks(volume), plan)?;
    Ok(volume)
}

/// Tells of settings of the volume that the one in its place will not have.
fn note_lost(state: &State<'_>, volume: &Lv, plan: &mut dyn Plan) -> Result<(), Failure> {
    let place = state.look.place();
    if let Some(ahead) = &volume.read_ahead {
        plan.note(&format!(
            "the readahead of {place}, {ahead} bytes, is not carried over: `lvchange -r` sets it again"
        ))?;
    }
    if let Some(minor) = &volume.minor {
        plan.note(&format!(
            "the persistent device number of {place}, {minor}, is not carried over: `lvchange -My` \
             sets it again"
        ))?;
    }
    Ok(())
}

/// The names of the volume-to-be and of the one that steps aside.
fn names(state: &State<'_>) -> (String, String) {
    let volume = &state.look.volume;
    (format!("{volume}_snapslot_new"), format!("{volume}_snapslot_old"))
}

/// A restore moved the volume aside, and what has its name now is not what the restore put there.
fn foreign_volume(state: &State<'_>, old: &Lv) -> Failure {
    let place = state.look.place();
    let old = state.look.say(&old.name);
    let message = format!(
        "{place} is not the volume that a restore put there, and {old} has the content from \
         before that restore; keep the one you want: rename {place} away and `snapslot recover` \
         brings {old} back, or remove {old}"
    );
    Failure::new(FailureKind::Changed, "foreign-volume", message)
}

/// The volume's own tags; a failure if they cannot all be carried over.
fn tags_to_copy<'a>(state: &State<'_>, volume: &'a Lv) -> Result<Vec<&'a str>, Failure> {
    let tags = volume.tags.iter().map(String::as_str);
    let tags: Vec<&str> = tags.filter(|t| !is_own_tag(t)).collect();
    let place = state.look.place();
    if tags.len() > TAGS_MAX {
        let message =
            format!("{place} has {} tags; a restore carries over {TAGS_MAX} at most", tags.len());
        return Err(unsupported("too-many-tags", message));
    }
    let misfit = |t: &&&str| t.len() > TAG_BYTES_MAX || t.starts_with('-');
    if let Some(tag) = tags.iter().find(misfit) {
        let tag: String = tag.chars().take(32).collect();
        let message = format!(
            "{place} has a tag that begins with a hyphen or is longer than {TAG_BYTES_MAX} bytes \
             and would be lost: {tag}…"
        );
        return Err(unsupported("unfit-tag", message));
    }
    Ok(tags)
}

/// No new volume in a pool without room. LVM does not tell the fill of a pool that is not active:
/// then it is LVM that refuses.
fn refuse_full(state: &State<'_>, name: &str, data_max: Fill) -> Result<(), Failure> {
    let Some(pool) = state.look.find(name) else {
        let message = format!("{} has no pool {name}", state.look.group);
        return Err(Failure::new(FailureKind::Corrupt, "no-pool", message));
    };
    let name = state.look.say(name);
    if pool.health == "out_of_data" || pool.data.is_some_and(|fill| fill >= data_max) {
        let fill = pool.data.unwrap_or(Fill(10_000));
        let free = pool.size - fill.of(pool.size).min(pool.size);
        let message = format!(
            "the pool {name} is {fill} full, {} of {} are free; `lvextend -L +… {name}` gives it \
             room",
            bytes(free),
            bytes(pool.size)
        );
        let needed = pool.size / 10_000 * u64::from(10_000 - data_max.0 + 1);
        return Err(Failure::new(FailureKind::NoSpace, "pool-full", message)
            .with("needed", needed.max(free + 1))
            .with("available", free));
    }
    if let Some(fill) = pool.metadata.filter(|fill| *fill >= METADATA_MAX) {
        let message = format!(
            "the metadata of the pool {name} is {fill} full, and a pool that runs out of it must \
             be repaired; `lvextend --poolmetadatasize +… {name}` gives it room"
        );
        return Err(Failure::new(FailureKind::NoSpace, "pool-metadata-full", message));
    }
    if !pool.health.is_empty() {
        let message = format!("LVM says that the pool {name} is {}", pool.health);
        return Err(Failure::new(FailureKind::Corrupt, "pool-health", message));
    }
    Ok(())
}

/// Tells of a pool that fills up: what the machine writes from now on is kept twice.
fn note_filling(state: &State<'_>, name: &str, plan: &mut dyn Plan) -> Result<(), Failure> {
    let Some(pool) = state.look.find(name) else { return Ok(()) };
    match pool.data.filter(|fill| *fill >= crate::facts::FILL_TOLD) {
        Some(fill) => plan.note(&format!(
            "the pool {} is {fill} full: what changes from now on needs room in it, and at 100 % \
             the machine's writes fail",
            state.look.say(name)
        )),
        None => Ok(()),
    }
}

/// Where the volume's blocks are others than those of the snapshot, by the metadata of their pool.
pub(crate) fn differences(
    target: &dyn Target,
    state: &State<'_>,
    identity: &str,
    cursor: u64,
    max: u32,
) -> Result<StretchPage, Failure> {
    let found = Stretches::new(cursor, max)?;
    let (metadata, pair) = then_and_now(target, state, identity)?;
    metadata::differences(&*metadata, pair, found)
}

/// How many bytes that are, and how many the snapshot holds.
pub(crate) fn measure(
    target: &dyn Target,
    state: &State<'_>,
    identity: &str,
    quick: bool,
) -> Result<Change, Failure> {
    let (metadata, pair) = then_and_now(target, state, identity)?;
    // Five mebibytes of either tree.
    metadata::change(&*metadata, pair, if quick { 1280 } else { usize::MAX })
}

/// A volume by its number in the pool, and its bytes.
type Numbered = (u64, u64);

/// The pool's metadata; the snapshot and the volume.
fn then_and_now<'t>(
    target: &'t dyn Target,
    state: &State<'_>,
    identity: &str,
) -> Result<(Box<dyn Image + 't>, [Numbered; 2]), Failure> {
    let Some(slot) = state.slot(identity) else { return Err(no_such_snapshot(state, identity)) };
    let Some(volume) = state.volume.filter(|v| v.is_thin() && slot.lv.is_thin()) else {
        return Err(unsupported("no-differences", "only thin volumes share what did not change"));
    };
    if volume.pool != slot.lv.pool {
        return Err(unsupported("no-differences", "volume and snapshot are in two pools"));
    }
    // Asked for first: where it is not at hand nothing else is of use.
    let image = target.image(Role::PoolMetadata)?;
    let answer = target.ask(NUMBERS, &[])?;
    let rows = match answer.exit_code {
        0 => report::rows(&answer.output).ok(),
        _ => None,
    };
    let number = |of: &Lv| -> Result<u64, Failure> {
        let field = |row: &report::Row, name: &str| {
            row.iter().find(|(n, _)| n == name).map(|(_, v)| v.trim().to_owned())
        };
        let same = |row: &&report::Row| field(row, "lv_uuid").as_deref() == Some(of.uuid.as_str());
        let row = rows.iter().flatten().find(same);
        row.and_then(|row| field(row, "thin_id")?.parse().ok()).ok_or_else(|| {
            let name = state.look.say(&of.name);
            unsupported("no-number", format!("LVM does not tell the number of {name} in its pool"))
        })
    };
    let pair = [(number(slot.lv)?, slot.lv.size), (number(volume)?, volume.size)];
    Ok((image, pair))
}
