//! For backends whose storage has no snapshots: the snapshot is a whole copy that the host keeps.
//!
//! On a file system that shares blocks between files the host makes one in a moment; elsewhere it
//! takes as long and as much room as the disk has bytes, and is made only if the person allowed that.
//! Saving and putting back are whole or not at all, also after a crash. A backend that goes this way
//! asks for the grant `copies` in its description and needs nothing else to be complete:
//!
//! ```
//! use snapslot_plugin_sdk::{Facts, Failure, Goal, Plan, Role, Target, copies};
//!
//! fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
//!     Ok(Facts {
//!         identity: None,
//!         virtual_size: target.image(Role::Disk)?.size(),
//!         format: "my format".to_owned(),
//!         snapshots: copies::snapshots(target)?,
//!         findings: Vec::new(),
//!         unfinished: None,
//!     })
//! }
//!
//! fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
//!     copies::plan(target, goal, plan)
//! }
//! ```

use crate::{Failure, FailureKind, Goal, NewSnapshot, Plan, SavedCopy, Snapshot, Target};

/// The copies the host keeps of this disk, as snapshots; oldest first.
pub fn snapshots(target: &dyn Target) -> Result<Vec<Snapshot>, Failure> {
    Ok(target.copies()?.into_iter().map(snapshot).collect())
}

/// Plans any goal.
///
/// Fails with `unsupported` (code `full-copy`, data `needed` and `available` in bytes) where nothing
/// can be shared and a full copy was not allowed, with `no-space` where there is no room for it, and
/// with `not-found` where there is no such copy.
pub fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
    match goal {
        Goal::Held(new) => held(target, new, plan),
        Goal::Restored(identity) | Goal::Consumed(identity) => {
            plan.put_back(&find(target, identity)?.mark)
        }
        Goal::Empty(identity) => match find(target, identity) {
            Ok(copy) => plan.discard(&copy.mark),
            // It is gone: that is the goal.
            Err(failure) if failure.kind == FailureKind::NotFound => Ok(()),
            Err(failure) => Err(failure),
        },
        // Copies are whole or not there; the host ends what it began by itself.
        Goal::Settled => Ok(()),
    }
}

/// The copy with this identity.
pub fn find(target: &dyn Target, identity: &str) -> Result<SavedCopy, Failure> {
    target.copies()?.into_iter().find(|c| c.identity == identity).ok_or_else(|| {
        let what = format!("{} has no copy {identity}; it was removed or replaced", target.place());
        Failure::new(FailureKind::NotFound, "no-such-snapshot", what)
    })
}

fn held(target: &dyn Target, new: &NewSnapshot, plan: &mut dyn Plan) -> Result<(), Failure> {
    if target.copies()?.iter().any(|c| c.mark == new.mark) {
        return Ok(());
    }
    let saving = target.saving()?;
    if !saving.shares {
        let (bytes, free) = (size_in_words(saving.bytes), size_in_words(saving.available));
        let with_figures = |kind, code, what: String| {
            let failure = Failure::new(kind, code, what);
            failure.with("needed", saving.bytes).with("available", saving.available)
        };
        let place = target.place();
        // First, so that nobody is sent for a permission that would not help.
        if saving.bytes > saving.available {
            let what = format!(
                "{place} has no shared blocks: a snapshot would be a full copy of {bytes}, and \
                 {free} are free; make room where the copy would lie"
            );
            return Err(with_figures(FailureKind::NoSpace, "no-space", what));
        }
        if !new.full_copy {
            let what = format!(
                "{place} has no shared blocks: a snapshot would be a full copy of {bytes} ({free} \
                 free); take it with --full-copy"
            );
            return Err(with_figures(FailureKind::Unsupported, "full-copy", what));
        }
        plan.note(&format!(
            "the snapshot is a full copy of {bytes} ({free} free); restoring it copies as much once more"
        ))?;
    }
    plan.save(new)
}

fn snapshot(copy: SavedCopy) -> Snapshot {
    Snapshot {
        identity: copy.identity,
        name: copy.name,
        mark: Some(copy.mark),
        taken_seconds: copy.taken_seconds,
        taken_nanoseconds: copy.taken_nanoseconds,
        virtual_size: copy.size,
        vm_state_size: 0,
        lost: copy.lost,
    }
}

/// `12.0 GiB`, rounded down: no room is promised that is not there.
pub fn size_in_words(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(power) = (bytes.max(1).ilog2() / 10).checked_sub(1) else {
        return format!("{bytes} bytes");
    };
    // A 64-bit number has at most 6 such powers; ten times its last part stays below 2^64.
    let unit = 1_u64 << (10 * (power + 1));
    let (whole, part) = (bytes / unit, (((bytes % unit) >> (10 * power)) * 10) >> 10);
    format!("{whole}.{part} {}", units[power as usize])
}
