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
    ImageGrant, PlaceKind, Plan, Role, Target, View, copies,
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
            snapshots: copies::snapshots(target)?,
            findings: Vec::new(),
            // The host settles its own copies before it asks.
            unfinished: None,
        })
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        copies::plan(target, goal, plan)
    }

    fn extents(
        target: &dyn Target,
        view: &View,
        cursor: u64,
        _max: u32,
    ) -> Result<ExtentPage, Failure> {
        if let View::Snapshot(identity) = view {
            copies::find(target, identity)?;
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

    fn measure(target: &dyn Target, identity: &str, _quick: bool) -> Result<Change, Failure> {
        let copy = copies::find(target, identity)?;
        let what = format!(
            "what changed in {} since the snapshot shows only when disk and copy are read whole; \
             the copy holds at most {}",
            target.place(),
            copies::size_in_words(copy.held_bytes),
        );
        let failure = Failure::new(FailureKind::Unsupported, "no-measure", what);
        Err(failure.with("held", copy.held_bytes))
    }
}

snapslot_plugin_sdk::export_backend!(crate::Raw);
