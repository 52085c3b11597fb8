//! The qcow2 backend: plans internal snapshots of QEMU's image format.
//!
//! It reads an image through the handle it is given and streams the steps that take, restore or
//! delete an internal snapshot, as QEMU's own tools would see it. Offsets and names in comments
//! are those of the format's specification (QEMU, docs/interop/qcow2).
//!
//! # Order on disk
//!
//! Every plan is sealed: its first write marks the image *dirty* and stamps its header, its last
//! takes both away ([`header`]). Between them:
//!
//! - **take**: new clusters, reference counts up, COPIED bits off | header names the snapshot
//! - **restore**: new L1 table, counts up | header switches L1 table and size | counts down
//! - **delete**: new snapshot table | header forgets the snapshot | counts down, COPIED bits on
//!
//! `|` is a flush. No count is ever lower than the references that exist, whatever part of a
//! phase a crash leaves; so without any recovery an image has its content and at worst leaks,
//! and the dirty bit tells QEMU to count anew before it writes.

mod bitmaps;
mod blocks;
mod content;
mod delete;
mod draft;
mod free;
mod header;
mod inspect;
mod refcounts;
mod restore;
mod snapshots;
mod tables;
mod take;
#[cfg(test)]
mod tests;
mod volume;

use snapslot_plugin_sdk::{
    Backend, Change, Description, ExtentPage, Facts, Failure, FailureKind, Goal, ImageGrant,
    PlaceKind, Plan, Role, StretchPage, Target, View,
};

use volume::Volume;

/// The backend.
#[derive(Debug)]
pub struct Qcow2;

impl Backend for Qcow2 {
    fn describe() -> Description {
        Description {
            name: "qcow2".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "internal snapshots in qcow2 images, as QEMU's tools make them".to_owned(),
            endings: vec![".qcow2".to_owned()],
            place: PlaceKind::Image,
            images: vec![ImageGrant {
                role: Role::Disk,
                changes: true,
                reason: "the snapshot lives inside the image".to_owned(),
            }],
            copies: None,
            queries: Vec::new(),
            actions: Vec::new(),
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        let image = target.image(Role::Disk)?;
        inspect::inspect(&Volume::open_to_look(&*image)?)
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        let image = target.image(Role::Disk)?;
        let volume = Volume::open(&*image)?;
        inspect::refuse_unsound(&volume)?;
        make_room(&volume);
        let planned = match goal {
            Goal::Held(new) => take::plan(&volume, new, plan),
            Goal::Restored(identity) | Goal::Consumed(identity) => {
                restore::plan(&volume, identity, plan)
            }
            Goal::Empty(identity) => delete::plan(&volume, identity, plan),
            // What was interrupted is in the host's journal, not in the image.
            Goal::Settled => Ok(()),
        };
        planned.map_err(|failure| match failure.kind {
            FailureKind::Limit => too_many_tables(&volume),
            _ => failure,
        })
    }

    fn extents(
        target: &dyn Target,
        view: &View,
        cursor: u64,
        max: u32,
    ) -> Result<ExtentPage, Failure> {
        let image = target.image(Role::Disk)?;
        content::extents(&Volume::open_to_look(&*image)?, view, cursor, max)
    }

    fn differences(
        target: &dyn Target,
        identity: &str,
        cursor: u64,
        max: u32,
    ) -> Result<StretchPage, Failure> {
        let image = target.image(Role::Disk)?;
        content::differences(&Volume::open_to_look(&*image)?, identity, cursor, max)
    }

    fn measure(target: &dyn Target, identity: &str, quick: bool) -> Result<Change, Failure> {
        let image = target.image(Role::Disk)?;
        content::measure(&Volume::open(&*image)?, identity, quick)
    }
}

/// Has memory grow once by what counting may need, not by 64 KiB again and again: each growth is
/// a call of the system. What is not used is never touched, and costs nothing.
fn make_room(volume: &Volume<'_>) {
    /// Tables, steps, and what else there is.
    const OTHERS: u64 = 2 << 20;
    let counts = volume.clusters().min(refcounts::WINDOW) * 2;
    let on_disk =
        (volume.refcount_table.len() as u64 * volume.cluster_size()).min(blocks::KEPT_MAX);
    let room = (counts + on_disk + OTHERS) as usize;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(room)));
}

/// The plan is longer than the contract lets one be. It has a step for each L2 table that has no neighbour, so
/// that takes a disk of terabytes with very small clusters.
fn too_many_tables(volume: &Volume<'_>) -> Failure {
    let message = format!(
        "a disk of {} bytes in clusters of {} bytes has more tables than one change may touch; `qemu-img \
         convert -O qcow2 -o cluster_size=64k` makes an image that needs a hundred times fewer",
        volume.header.fields.size,
        volume.cluster_size()
    );
    unsupported("too-many-tables", message)
}

/// The image contradicts itself.
pub(crate) fn corrupt(code: &str, message: impl Into<String>) -> Failure {
    let message = format!("{}; `qemu-img check` on the image tells more", message.into());
    Failure::new(FailureKind::Corrupt, code, message)
}

/// The image is sound and uses something this backend does not handle.
pub(crate) fn unsupported(code: &str, message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Unsupported, code, message)
}

#[cfg(not(feature = "library"))]
snapslot_plugin_sdk::export_backend!(crate::Qcow2);
