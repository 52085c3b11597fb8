//! Setting a disk that is a file to what an image holds: a new file, in place of it.

use std::path::Path;
use std::sync::Arc;

use snapslot_capture::Copies;
use snapslot_content::export::{Exported, Format, replace};
use snapslot_content::{Content, ContentError, Watch};
use snapslot_disk::FileDisk;
use snapslot_runtime::Facts;

use crate::error::EngineError;
use crate::operate::Context;
use crate::volume::Volume;

/// A file that may be replaced, and how.
pub(super) struct Replaced<'v> {
    volume: &'v Volume,
    pub disk: &'v FileDisk,
    path: &'v Path,
    copies: &'v Copies,
    format: Format,
}

impl<'e> Context<'e> {
    /// Refuses where that would lose more than the disk's present content.
    pub(super) fn replaced(&self, at: usize, facts: &Facts) -> Result<Replaced<'e>, EngineError> {
        let volume = &self.volumes[at];
        let refuse =
            |why: String| EngineError::NoContent { volume: volume.locator.to_string(), why };
        let (Some(disk), Some(path), Some(copies)) =
            (&volume.image, volume.locator.path(), &volume.copies)
        else {
            return Err(refuse("it is no file that could be replaced".to_owned()));
        };
        let format = match self.plugins[at].description() {
            d if d.copies.is_some() => Format::Raw,
            d if d.name == "qcow2" && self.engine.is_built_in("qcow2") => Format::Qcow2,
            d => return Err(refuse(format!("images of {} cannot be written here", d.name))),
        };
        if format == Format::Qcow2 && !facts.snapshots.is_empty() {
            return Err(refuse(format!(
                "it would be written anew, and its {} snapshots would be lost: `snapslot delete` empties the slot first",
                facts.snapshots.len()
            )));
        }
        let copied = |e| EngineError::copy(&volume.locator, &e);
        if copies.shares_with_disk().map_err(copied)? {
            return Err(refuse(
                "its snapshot was taken while it was served and lies partly in the disk itself, so it would be lost: \
                 `snapslot delete` empties the slot first, after `snapslot export` if it is to be kept"
                    .to_owned(),
            ));
        }
        if let Some(who) = copies.user().map_err(copied)? {
            return Err(refuse(format!("it is in use by {who}")));
        }
        Ok(Replaced { volume, disk, path, copies, format })
    }
}

impl Replaced<'_> {
    pub(super) fn write(
        &self,
        content: &Arc<dyn Content>,
        watch: &Watch<'_>,
    ) -> Result<Exported, EngineError> {
        let dress = |file: &std::fs::File| {
            let refuse = |why| ContentError::Target { name: self.volume.locator.to_string(), why };
            self.copies.dress(file).map_err(|e| refuse(e.to_string()))?;
            // Writing the image takes long, and what has no locks may have been begun meanwhile.
            match self.copies.user().map_err(|e| refuse(e.to_string()))? {
                Some(who) => Err(refuse(format!("it is in use by {who} by now"))),
                None => Ok(()),
            }
        };
        replace(&**content, self.path, self.format, watch, &dress)
            .map_err(|e| EngineError::content(&self.volume.locator, e))
    }
}
