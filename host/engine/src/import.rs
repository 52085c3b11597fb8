//! Putting an exported image back in place of a disk.
//!
//! The new disk is written beside the old one, without a name, and takes its name when it is whole and durable,
//! with its owner and mode. Whatever stops it leaves the old disk. For disks that are files: a raw one becomes the
//! image's content; a qcow2 image is written anew, which is done only while it holds no snapshot, as that would
//! be lost. A raw disk's copy lies beside it and stays; a live snapshot, which lies partly in the disk itself,
//! is in the way.

use std::sync::Arc;

use serde::Serialize;
use snapslot_content::export::{Exported, Format, replace};
use snapslot_content::{Content, ContentError, Watch};
use snapslot_disk::{FileDisk, Users};
use snapslot_runtime::View;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::operate::{Context, lock_images};
use crate::view::{image, reading_all, sight_of};
use crate::volume::Volume;

/// What was put back.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Imported {
    /// The volume.
    pub volume: String,
    /// The image.
    pub from: String,
    /// The disk's size now, in bytes.
    pub virtual_size: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes whose blocks are shared with the image.
    pub shared_bytes: u64,
}

impl Engine {
    /// Sets a disk to what an image holds. `backing` names the image's chain of backing files.
    pub fn import(
        &self,
        text: &str,
        from: &str,
        backing: &[String],
        watch: &Watch<'_>,
    ) -> Result<Imported, EngineError> {
        let (machine, known) = self.resolve(text)?;
        let locators = self.locators(&machine)?;
        let index = self.one_of(text, &machine.name, &locators)?;
        let volumes = Volume::open_to_change(self, &locators)?;
        let _engine_locks = self.lock(&machine, &volumes)?;
        self.recover_locked(&machine, &volumes)?;
        let machine = self.store.machine(&machine.name)?.unwrap_or(machine);
        let volume = &volumes[index];
        let refuse =
            |why: String| EngineError::NoContent { volume: volume.locator.to_string(), why };
        if volume.is_served()? {
            return Err(EngineError::InUse {
                volume: volume.locator.to_string(),
                users: Users::default(),
            });
        }
        let _image_locks = lock_images(&volumes)?;
        let plugins = self.plugins(&volumes)?;
        let context = Context::new(self, &volumes, &plugins, &|_, _, _| {});
        let (facts, _) = context.look_at_settled(&machine.name)?;
        let (Some(disk), Some(path), Some(copies)) =
            (volume.image.as_ref().filter(|d| d.is_file()), volume.locator.path(), &volume.copies)
        else {
            return Err(refuse(
                "an image is put back in place of a file only; for a device take a snapshot, write the image \
                 to it by `qemu-img convert -n`, and the slot is the way back"
                    .to_owned(),
            ));
        };
        let format = match plugins[index].description() {
            d if d.copies.is_some() => Format::Raw,
            d if d.name == "qcow2" && self.is_built_in("qcow2") => Format::Qcow2,
            d => return Err(refuse(format!("images of {} cannot be written here", d.name))),
        };
        if format == Format::Qcow2 && !facts[index].snapshots.is_empty() {
            return Err(refuse(format!(
                "it would be written anew, and its {} snapshots would be lost: `snapslot delete` empties the slot first",
                facts[index].snapshots.len()
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
        let done = self.with_image(from, backing, |image, content| {
            if image.id() == disk.id() {
                return Err(EngineError::Usage(format!("{from} is the disk itself")));
            }
            let operation = self.store.begin(&machine.name, "import", self.now())?;
            let dress = |file: &std::fs::File| {
                let refuse = |why| ContentError::Target { name: volume.locator.to_string(), why };
                copies.dress(file).map_err(|e| refuse(e.to_string()))?;
                // Writing the image takes long, and what has no locks may have been begun meanwhile.
                match copies.user().map_err(|e| refuse(e.to_string()))? {
                    Some(who) => Err(refuse(format!("it is in use by {who} by now"))),
                    None => Ok(()),
                }
            };
            let done = replace(&**content, path, format, watch, &dress)
                .map_err(|e| EngineError::content(&volume.locator, e));
            let outcome = done.as_ref().map_or_else(EngineError::code, |_| "done".to_owned());
            self.store.end(operation, self.now(), &outcome)?;
            done
        })?;
        if known {
            context.record(&machine, machine.occupant.as_ref(), machine.pending.as_deref())?;
        }
        let Exported { virtual_size, written_bytes, shared_bytes, .. } = done;
        let volume = volume.locator.to_string();
        Ok(Imported { volume, from: from.to_owned(), virtual_size, written_bytes, shared_bytes })
    }

    /// Opens the present content of an image that is no volume of ours.
    fn with_image<T>(
        &self,
        text: &str,
        backing: &[String],
        work: impl FnOnce(&FileDisk, &Arc<dyn Content>) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut chain = vec![self.open_file(text)?];
        for below in backing {
            chain.push(self.open_file(below)?);
        }
        let _kept = reading_all(&chain)?;
        let mut content: Option<Arc<dyn Content>> = None;
        for (locator, disk) in chain.iter().rev() {
            let plugin = self.plugin(&locator.backend)?;
            let sight = sight_of(locator, disk);
            let facts = match plugin.description().copies.is_some() {
                true => None,
                false => Some(plugin.inspect(&sight).map_err(|e| EngineError::call(locator, e))?),
            };
            let blocked =
                facts.iter().flat_map(|f| &f.findings).find(|f| f.blocks || f.code == "encrypted");
            if let Some(finding) = blocked {
                let why = finding.message.clone();
                return Err(EngineError::NoContent { volume: locator.to_string(), why });
            }
            content = Some(image(locator, disk, &plugin, &View::Current, content)?);
        }
        match &content {
            Some(content) => work(&chain[0].1, content),
            None => Err(EngineError::Usage(format!("{text} holds nothing"))),
        }
    }
}
