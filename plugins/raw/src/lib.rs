//! The raw backend: plans whole copies of disks whose storage has no snapshots.
//!
//! For plain files and block devices. The snapshot is a copy that the host keeps: on a file system
//! that shares blocks it is made in a moment; elsewhere the plan says what a whole copy would
//! cost, and is made only when that is allowed. The backend reads nothing but the disk's size;
//! what a copy is and how it is made whole or not at all is the host's business.

#[cfg(test)]
mod tests;

use snapslot_plugin_sdk::{
    Backend, Change, Content, Description, Extent, ExtentPage, Facts, Failure, FailureKind, Goal,
    ImageGrant, NewSnapshot, PlaceKind, Plan, Role, SavedCopy, Snapshot, Target, View,
};

/// The backend.
#[derive(Debug)]
pub struct Raw;

impl Backend for Raw {
    fn describe() -> Description {
        Description {
            name: "raw".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "whole copies of plain files and block devices, sharing blocks where the \
                      file system can"
                .to_owned(),
            endings: Vec::new(),
            place: PlaceKind::Image,
            images: vec![ImageGrant {
                role: Role::Disk,
                changes: false,
                reason: "the size of the disk is that of the image".to_owned(),
            }],
            copies: Some(
                "the snapshot is a copy of the disk, as the disk has none itself".to_owned(),
            ),
            queries: Vec::new(),
            actions: Vec::new(),
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        Ok(Facts {
            identity: None,
            virtual_size: target.image(Role::Disk)?.size(),
            format: "raw".to_owned(),
            snapshots: target.copies()?.into_iter().map(snapshot).collect(),
            findings: Vec::new(),
            // The host settles its own copies before it asks.
            unfinished: None,
        })
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        match goal {
            Goal::Held(new) => held(target, new, plan),
            Goal::Restored(identity) => match find(target, identity)? {
                Some(copy) => plan.put_back(&copy.mark),
                None => Err(no_such(target, identity)),
            },
            Goal::Empty(identity) => match find(target, identity)? {
                Some(copy) => plan.discard(&copy.mark),
                None => Ok(()),
            },
            // Copies are whole or not there; the host ends what it began by itself.
            Goal::Settled => Ok(()),
        }
    }

    fn extents(
        target: &dyn Target,
        view: &View,
        cursor: u64,
        _max: u32,
    ) -> Result<ExtentPage, Failure> {
        if let View::Snapshot(identity) = view {
            find(target, identity)?.ok_or_else(|| no_such(target, identity))?;
            let what = format!("what the copy of {} holds is not in the disk", target.place());
            return Err(Failure::new(FailureKind::Unsupported, "no-extents", what));
        }
        let size = target.image(Role::Disk)?.size();
        let rest = size.checked_sub(cursor).ok_or_else(|| {
            let what = format!("{} ends at {size}, before {cursor}", target.place());
            Failure::new(FailureKind::Invalid, "cursor-outside", what)
        })?;
        let all = Extent { start: cursor, length: rest, content: Content::Data(cursor) };
        let extents = if rest == 0 { Vec::new() } else { vec![all] };
        Ok(ExtentPage { extents, next: None })
    }

    fn measure(target: &dyn Target, identity: &str) -> Result<Change, Failure> {
        let copy = find(target, identity)?.ok_or_else(|| no_such(target, identity))?;
        let what = format!(
            "what changed in {} since the snapshot shows only when disk and copy are read whole; \
             the copy holds at most {}",
            target.place(),
            size_in_words(copy.held_bytes),
        );
        let failure = Failure::new(FailureKind::Unsupported, "no-measure", what);
        Err(failure.with("held", copy.held_bytes))
    }
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

fn find(target: &dyn Target, identity: &str) -> Result<Option<SavedCopy>, Failure> {
    Ok(target.copies()?.into_iter().find(|c| c.identity == identity))
}

fn no_such(target: &dyn Target, identity: &str) -> Failure {
    let what = format!("{} has no copy {identity}; it was removed or replaced", target.place());
    Failure::new(FailureKind::NotFound, "no-such-snapshot", what)
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
        lost: false,
    }
}

/// `12.0 GiB`, rounded down: no room is promised that is not there.
fn size_in_words(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(power) = (bytes.max(1).ilog2() / 10).checked_sub(1) else {
        return format!("{bytes} bytes");
    };
    // A 64-bit number has at most 6 such powers; ten times its last part stays below 2^64.
    let unit = 1_u64 << (10 * (power + 1));
    let (whole, part) = (bytes / unit, (((bytes % unit) >> (10 * power)) * 10) >> 10);
    format!("{whole}.{part} {}", units[power as usize])
}

snapslot_plugin_sdk::export_backend!(crate::Raw);
