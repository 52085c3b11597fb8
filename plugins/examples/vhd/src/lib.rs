//! An example of a third party's backend: the slot on VHD images, fixed and dynamic.
//!
//! VHD has no snapshots within an image, so the snapshot is a copy that the host keeps. What this
//! backend adds to `raw` is that it knows the format: it gives the disk's size, says where content is,
//! and refuses in words what it cannot answer for, before a copy of it is kept.
//!
//! The format (Microsoft, "Virtual Hard Disk Image Format Specification", 2006), all big-endian:
//!
//! ```text
//! fixed     content                                        footer (512 bytes)
//! dynamic   footer copy, header (1024 bytes), block table, blocks …, footer
//! block     a bitmap with one bit for each sector, in whole sectors; then the content
//! ```

mod format;
#[cfg(test)]
mod tests;

use snapslot_plugin_sdk::{
    Backend, Content, Description, Extent, ExtentPage, Facts, Failure, FailureKind, Goal,
    ImageGrant, PlaceKind, Plan, Role, Target, View, copies,
};

use format::{Kind, Vhd};

/// The backend.
#[derive(Debug)]
pub struct VhdBackend;

impl Backend for VhdBackend {
    fn describe() -> Description {
        Description {
            name: "vhd".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "whole copies of VHD images, sharing blocks where the file system can"
                .to_owned(),
            endings: vec![".vhd".to_owned(), ".vpc".to_owned()],
            place: PlaceKind::Image,
            images: vec![ImageGrant {
                role: Role::Disk,
                changes: false,
                reason: "to see that it is a sound VHD image, and how large its disk is".to_owned(),
            }],
            copies: Some("the snapshot is a copy of the image: VHD has none within".to_owned()),
            queries: Vec::new(),
            actions: Vec::new(),
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        let image = target.image(Role::Disk)?;
        let vhd = Vhd::read(&*image)?;
        let format = match &vhd.kind {
            Kind::Fixed => "VHD, fixed".to_owned(),
            Kind::Dynamic(d) => format!("VHD, dynamic, blocks of {} KiB", d.block / 1024),
        };
        Ok(Facts {
            identity: None,
            virtual_size: vhd.virtual_size,
            format,
            snapshots: copies::snapshots(target)?
                .into_iter()
                // A copy is as long as the image; the disk in it is as long as the disk.
                .map(|s| snapslot_plugin_sdk::Snapshot { virtual_size: vhd.virtual_size, ..s })
                .collect(),
            findings: vhd.findings,
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
        max: u32,
    ) -> Result<ExtentPage, Failure> {
        if let View::Snapshot(identity) = view {
            copies::find(target, identity)?;
            let what = "what a copy holds is not in the image".to_owned();
            return Err(Failure::new(FailureKind::Unsupported, "no-extents", what));
        }
        let image = target.image(Role::Disk)?;
        let vhd = Vhd::read(&*image)?;
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = cursor;
        while at < vhd.virtual_size {
            let (length, content) = vhd.content_at(&*image, at)?;
            let extent = Extent { start: at, length, content };
            at += length;
            let full = extents.len() == max as usize;
            match extents.last_mut() {
                Some(last) if goes_on(last, &extent) => last.length += length,
                _ if full => return Ok(ExtentPage { extents, next: Some(extent.start) }),
                _ => extents.push(extent),
            }
        }
        Ok(ExtentPage { extents, next: None })
    }
}

/// Whether an extent only continues the one before it.
fn goes_on(last: &Extent, next: &Extent) -> bool {
    match (&last.content, &next.content) {
        (Content::Zero, Content::Zero) => true,
        (Content::Data(a), Content::Data(b)) => a + last.length == *b,
        _ => false,
    }
}

/// A failure of the image itself.
fn corrupt(code: &str, what: String) -> Failure {
    Failure::new(FailureKind::Corrupt, code, what)
}

snapslot_plugin_sdk::export_backend!(crate::VhdBackend);
