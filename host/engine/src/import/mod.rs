//! Putting an exported image back in place of a disk.
//!
//! A disk that is a file is written beside the old one, without a name, and takes its name when it is whole and durable,
//! with its owner and mode. Whatever stops it leaves the old disk. A raw one becomes the image's content; a qcow2
//! image is written anew, which is done only while it holds no snapshot, as that would be lost. A raw disk's copy lies
//! beside it and stays; a live snapshot, which lies partly in the disk itself, is in the way.
//!
//! A device is written in place, with the slot as the way back ([`device`]).

mod device;
mod file;
mod note;

use std::sync::Arc;

use serde::Serialize;
use snapslot_content::export::Exported;
use snapslot_content::{Content, Watch};
use snapslot_disk::{FileDisk, Users};
use snapslot_runtime::{Facts, View};
use snapslot_slot::{Refusal, Request, decide};

use crate::engine::{Engine, refused};
use crate::error::EngineError;
use crate::operate::{Context, lock_images};
use crate::status::derive;
use crate::store::Machine;
use crate::view::{image, reading_all, sight_of};
use crate::volume::Volume;

pub(crate) use device::{import_left, is_noted};

/// What is wanted.
#[derive(Clone, Copy, Debug)]
pub struct Import<'a> {
    /// The image.
    pub from: &'a str,
    /// Its chain of backing files, the nearest first.
    pub backing: &'a [String],
    /// Of a device that can share nothing a whole copy may be made meanwhile, to go back to.
    pub full_copy: bool,
    /// Only look whether it could be done, and how.
    pub dry_run: bool,
}

/// How a disk comes to hold something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// A new file takes the disk's place.
    Replaced,
    /// It is written where it is, while the slot holds the way back.
    InPlace,
}

/// What was put back, or would be.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Imported {
    /// The volume.
    pub volume: String,
    /// The image.
    pub from: String,
    /// How.
    pub way: Way,
    /// Whether it was only looked at.
    pub dry_run: bool,
    /// The disk's size now, in bytes.
    pub virtual_size: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes whose blocks are shared with the image.
    pub shared_bytes: u64,
}

impl Engine {
    /// Sets a disk to what an image holds.
    pub fn import(
        &self,
        text: &str,
        wanted: &Import<'_>,
        watch: &Watch<'_>,
    ) -> Result<Imported, EngineError> {
        let &Import { from, backing, full_copy, dry_run } = wanted;
        let (machine, known) = self.resolve(text)?;
        let locators = self.locators(&machine)?;
        let index = self.one_of(text, &machine.name, &locators)?;
        let volumes = Volume::open_to_change(self, &locators)?;
        let _engine_locks = self.lock(&machine, &volumes)?;
        let volume = &volumes[index];
        match dry_run {
            true => self.refuse_interrupted(&machine, &volumes)?,
            false => self.recover_before(&machine, &volumes, volume)?,
        }
        let machine = self.store.machine(&machine.name)?.unwrap_or(machine);
        if volume.is_served()? {
            return Err(EngineError::InUse {
                volume: volume.locator.to_string(),
                users: Users::default(),
            });
        }
        let _image_locks = lock_images(&volumes)?;
        let plugins = self.plugins(&volumes)?;
        let context = Context::new(self, &volumes, &plugins, &|_, _, _| {});
        let facts = match dry_run {
            true => context.look_at_whole(&machine.name)?,
            false => context.look_at_settled(&machine.name)?.0,
        };
        let file = match volume.is_written_in_place() {
            true => {
                self.refuse_held(&machine, known, &facts, &volumes)?;
                None
            }
            false => Some(context.replaced(index, &facts[index])?),
        };
        let mut virtual_size = 0;
        let done = self.with_image(from, backing, |image, content| {
            virtual_size = content.size();
            if file.as_ref().is_some_and(|file| image.id() == file.disk.id()) {
                return Err(EngineError::Usage(format!("{from} is the disk itself")));
            }
            if dry_run {
                if file.is_none() {
                    context.plan_device(index, &facts[index], content, full_copy)?;
                }
                return Ok(None);
            }
            let operation = self.store.begin(&machine.name, "import", self.now())?;
            let done = match &file {
                Some(file) => file.write(content, watch),
                None => {
                    let facts = &facts[index];
                    context.write_device(&machine, index, facts, content, full_copy, watch)
                }
            };
            let outcome = done.as_ref().map_or_else(EngineError::code, |_| "done".to_owned());
            self.store.end(operation, self.now(), &outcome)?;
            done.map(Some)
        })?;
        if known && !dry_run {
            context.record(&machine, machine.occupant.as_ref(), machine.pending.as_deref())?;
        }
        let written = done.as_ref();
        Ok(Imported {
            volume: volume.locator.to_string(),
            from: from.to_owned(),
            way: if file.is_some() { Way::Replaced } else { Way::InPlace },
            dry_run,
            virtual_size,
            written_bytes: written.map_or(0, |e: &Exported| e.written_bytes),
            shared_bytes: written.map_or(0, |e| e.shared_bytes),
        })
    }

    /// Ends what was interrupted.
    fn recover_before(
        &self,
        machine: &Machine,
        volumes: &[Volume],
        volume: &Volume,
    ) -> Result<(), EngineError> {
        let recover = || self.recover_locked(machine, volumes, &|_, _, _| ()).map(drop);
        match recover() {
            // Of an import that cannot be taken back the rest is this: another one.
            Err(EngineError::HalfImported { volume: half })
                if half == volume.locator.to_string() =>
            {
                note::ImportNote::clear(volume)
                    .map_err(|e| EngineError::disk(&volume.locator, e))?;
                recover()
            }
            recovered => recovered,
        }
    }

    /// The way back is kept in the slot: it must be empty.
    fn refuse_held(
        &self,
        machine: &Machine,
        known: bool,
        facts: &[Facts],
        volumes: &[Volume],
    ) -> Result<(), EngineError> {
        let state = derive(machine, known, &facts.iter().collect::<Vec<_>>(), volumes);
        match decide(&state, Request::Take { replace: false }) {
            Ok(()) | Err(Refusal::Disabled) => Ok(()),
            Err(refusal) => Err(refused(&machine.name, refusal)),
        }
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
