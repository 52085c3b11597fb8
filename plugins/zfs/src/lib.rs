//! The ZFS backend: plans snapshots of volumes (zvols) and file systems.
//!
//! It looks at the dataset with one `zfs list` and plans the one command that takes, restores or
//! deletes the slot's snapshot. The snapshot is `DATASET@snapslot-MARK` with the user properties
//! `snapslot:mark`, `snapslot:taken` (`SECONDS.NANOSECONDS`, two whole numbers) and `snapslot:of` (the
//! guid of its dataset); its identity is its guid. A snapshot that was sent somewhere, or moved to a
//! clone that was promoted, takes its name and properties along and is no slot of the dataset there.
//!
//! # Why every crash point is safe
//!
//! Every plan is a single command, and each of these commands takes effect within one
//! transaction group of the pool: after a crash it has happened or it has not. So nothing is ever
//! half done, `settled` has nothing to do, and recovery is to look again.
//!
//! - **take**: `zfs snapshot`; mark and time go with it into the same transaction
//! - **restore**: a rollback to the newest snapshot, which stays
//! - **delete**: a destroy of that one snapshot
//!
//! A name says nothing about identity. Restore and delete compare the guid right before they
//! change anything: for volumes and unmounted file systems inside the same transaction
//! ([`grants`]), for mounted file systems, which ZFS only handles from outside, by the host's
//! guard. A restore is always planned, also where nothing seems to have changed: what was written
//! in the last seconds may not be counted yet.
//!
//! # What it refuses
//!
//! Nothing here destroys what others made. Newer snapshots and bookmarks (a restore would need
//! them gone), holds and clones (a delete would), a quota or a pool too full for it: all are named
//! in the refusal, by [`blockers`], from the same look.

mod blockers;
mod explain;
mod grants;
mod look;
mod plan;
mod report;
#[cfg(test)]
mod tests;

use snapslot_plugin_sdk::{
    Answer, Backend, Change, Description, Facts, Failure, Goal, PlaceKind, Plan, Target,
};

use look::Dataset;

/// The backend.
#[derive(Debug)]
pub struct Zfs;

impl Backend for Zfs {
    fn describe() -> Description {
        Description {
            name: "zfs".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "snapshots of ZFS volumes and file systems".to_owned(),
            endings: Vec::new(),
            place: PlaceKind::ZfsDataset,
            images: Vec::new(),
            copies: None,
            queries: grants::queries(),
            actions: grants::actions(),
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        report::facts(&Dataset::look(target)?)
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        // Nothing is ever half done, so this needs no look either.
        if *goal == Goal::Settled {
            return Ok(());
        }
        let dataset = Dataset::look(target)?;
        match goal {
            Goal::Held(new) => plan::take(&dataset, new, plan),
            Goal::Restored(identity) | Goal::Consumed(identity) => {
                plan::restore(&dataset, identity, plan)
            }
            Goal::Empty(identity) => plan::delete(target, &dataset, identity, plan),
            Goal::Settled => Ok(()),
        }
    }

    fn measure(target: &dyn Target, identity: &str, _quick: bool) -> Result<Change, Failure> {
        report::measure(target, &Dataset::look(target)?, identity)
    }

    fn explain(command: &str, answer: &Answer) -> Failure {
        explain::explain(command, answer)
    }
}

#[cfg(not(feature = "library"))]
snapslot_plugin_sdk::export_backend!(crate::Zfs);
