//! Setting a device to what an image holds: never half of it.
//!
//! The slot must be empty. A snapshot is taken into it, the way back; then the image is written, and flushed; then the
//! snapshot goes again. What stops it after the take, an error, Ctrl-C or a crash, leads back to what was there
//! before, at once or by the next command ([`note`](super::note) says how far it was).

use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use snapslot_content::export::{Exported, overwrite};
use snapslot_content::{Content, ContentError, Watch};
use snapslot_disk::{Companion as _, DiskError};
use snapslot_runtime::{Facts, Goal, NewSnapshot, Snapshot};
use snapslot_slot::Moment;

use super::note::{ImportNote, Stage};
use crate::error::EngineError;
use crate::meta::Meta;
use crate::operate::{Context, half_done, look_at, refuse_used};
use crate::store::Machine;
use crate::volume::Volume;

/// The volume's device.
pub(super) fn device_of(volume: &Volume) -> Result<PathBuf, EngineError> {
    let refuse = |why: String| EngineError::NoContent { volume: volume.locator.to_string(), why };
    let path =
        volume.locator.place.device().ok_or_else(|| {
            refuse("it has no device that an image could be written to".to_owned())
        })?;
    match std::fs::metadata(&path) {
        Ok(meta) if meta.file_type().is_block_device() => Ok(path),
        Ok(_) => Err(refuse(format!("{} is no device", path.display()))),
        Err(e) => Err(refuse(format!(
            "its device {} cannot be had ({e}); a volume that is not active has none, and a file system of ZFS is \
             filled by `zfs receive`",
            path.display()
        ))),
    }
}

impl<'e> Context<'e> {
    /// Refuses where it could not be written; the device's path.
    fn writable(
        &self,
        at: usize,
        before: &Facts,
        content: &Arc<dyn Content>,
    ) -> Result<PathBuf, EngineError> {
        let volume = &self.volumes[at];
        let path = device_of(volume)?;
        let (has, wants) = (before.virtual_size, content.size());
        if wants > has {
            return Err(EngineError::NoContent {
                volume: volume.locator.to_string(),
                why: format!(
                    "it has {has} bytes and the image {wants}: make the volume that large first"
                ),
            });
        }
        refuse_used(self.volumes)?;
        Ok(path)
    }

    /// For a dry run: whether it could be written, and the way back taken before.
    pub(super) fn plan_device(
        &self,
        at: usize,
        before: &Facts,
        content: &Arc<dyn Content>,
        full_copy: bool,
    ) -> Result<(), EngineError> {
        self.writable(at, before, content)?;
        let goal = self.way_back(&self.engine.new_mark()?, self.engine.now(), full_copy);
        self.plan_one(&self.volumes[at], &self.plugins[at], before.clone(), goal).map(drop)
    }

    /// A snapshot in the slot.
    fn way_back(&self, mark: &str, now: Moment, full_copy: bool) -> Goal {
        Goal::Held(NewSnapshot {
            mark: mark.to_owned(),
            taken_seconds: now.seconds.cast_unsigned(),
            taken_nanoseconds: now.nanoseconds,
            room: None,
            beside: 0,
            full_copy,
        })
    }

    /// Takes the way back, writes, and gives up the way back.
    pub(super) fn write_device(
        &self,
        machine: &Machine,
        at: usize,
        before: &Facts,
        content: &Arc<dyn Content>,
        full_copy: bool,
        watch: &Watch<'_>,
    ) -> Result<Exported, EngineError> {
        let (volume, plugin) = (&self.volumes[at], &self.plugins[at]);
        let failed = |e| EngineError::disk(&volume.locator, e);
        let path = self.writable(at, before, content)?;
        let (mark, now) = (self.engine.new_mark()?, self.engine.now());
        let mut note =
            ImportNote::begin(volume, Meta::of_import(machine, &mark, now)).map_err(failed)?;
        let goal = self.way_back(&mark, now, full_copy);
        let guarded = (self.plan_one(volume, plugin, before.clone(), goal))
            .and_then(|plan| plan.run_rest(self))
            .and_then(|()| volume.inspect(plugin))
            .and_then(|facts| match whole(&facts, &mark) {
                Some(_) => Ok(facts),
                None => Err(EngineError::Unexpected {
                    volume: volume.locator.to_string(),
                    found: "no snapshot to go back to".to_owned(),
                }),
            });
        let written = guarded.and_then(|guarded| {
            note.reach(Stage::Written).map_err(failed)?;
            // Once the device is open: it must still be the one whose snapshot was taken.
            let same = |file: &File| -> Result<(), ContentError> {
                let refuse =
                    |why: String| ContentError::Target { name: volume.locator.to_string(), why };
                let facts = volume.inspect(plugin).map_err(|e| refuse(e.without_claim()))?;
                let number = |meta: std::io::Result<std::fs::Metadata>| {
                    meta.map(|m| m.rdev()).map_err(|e| refuse(e.to_string()))
                };
                let is = facts.identity == guarded.identity
                    && whole(&facts, &mark).is_some()
                    && number(file.metadata())? == number(std::fs::metadata(&path))?;
                match is {
                    true => Ok(()),
                    false => Err(refuse(
                        "it is another volume by now, or its way back is gone".to_owned(),
                    )),
                }
            };
            overwrite(&**content, &path, watch, &same)
                .map_err(|e| EngineError::content(&volume.locator, e))
        });
        match written {
            Ok(done) => {
                note.reach(Stage::Done).map_err(failed)?;
                // What is written is written.
                let half = |e| half_done(machine, "the disk is what the image holds", e);
                self.end_import(at, note).map_err(half)?;
                self.saw(&look_at(self.volumes, self.plugins)?);
                Ok(done)
            }
            Err(error) => match self.end_import(at, note) {
                Ok(_) => Err(error),
                Err(and) => Err(EngineError::Unsettled {
                    volume: volume.locator.to_string(),
                    cause: format!(
                        "{}; then going back failed: {}",
                        error.without_claim(),
                        and.without_claim()
                    ),
                }),
            },
        }
    }

    /// Ends an import: what is not done is taken back, then the way back goes. Gives whether anything was there to end.
    pub(crate) fn end_import(&self, at: usize, mut note: ImportNote) -> Result<bool, EngineError> {
        let (volume, plugin) = (&self.volumes[at], &self.plugins[at]);
        let failed = |e| EngineError::disk(&volume.locator, e);
        let mark = note.mark().to_owned();
        let mut facts = self.settle(volume, plugin, volume.inspect(plugin)?)?.facts;
        let mut changed = false;
        if matches!(note.stage, Stage::Written | Stage::Back) {
            match (whole(&facts, &mark).cloned(), note.stage) {
                (Some(snapshot), stage) => {
                    tracing::info!(volume = %volume.locator, "the import is taken back");
                    refuse_used(self.volumes)?;
                    if stage == Stage::Written {
                        note.reach(Stage::Back).map_err(failed)?;
                    }
                    let goal = Goal::Consumed(snapshot.identity);
                    self.plan_one(volume, plugin, facts, goal)?.run_rest(self)?;
                    facts = self.settle(volume, plugin, volume.reopened()?.inspect(plugin)?)?.facts;
                    changed = true;
                }
                // A merge uses the snapshot up.
                (None, Stage::Back) if !facts.snapshots.iter().any(|s| is(s, &mark)) => {}
                (None, _) => {
                    return Err(EngineError::HalfImported { volume: volume.locator.to_string() });
                }
            }
        }
        let taken = self.take_back(volume, plugin, facts, &mark)?;
        ImportNote::clear(volume).map_err(failed)?;
        Ok(changed || taken)
    }

    /// Ends what imports onto these volumes were interrupted; gives those on which one was.
    pub(crate) fn end_imports(&self, machine: &str) -> Result<Vec<String>, EngineError> {
        let mut ended = Vec::new();
        for (at, volume) in self.volumes.iter().enumerate() {
            let failed = |e| EngineError::disk(&volume.locator, e);
            if !is_noted(volume).map_err(failed)? {
                continue;
            }
            match ImportNote::of(volume, true).map_err(failed)? {
                Some(note) => {
                    self.end_import(at, note)?;
                    ended.push(volume.locator.to_string());
                }
                // Cut off while it was written.
                None => ImportNote::clear(volume).map_err(failed)?,
            }
        }
        if !ended.is_empty() {
            self.saw(&look_at(self.volumes, self.plugins)?);
            // Setting back makes a volume another one, as some storage counts.
            if let Some(known) = self.engine.store.machine(machine)? {
                self.record(&known, known.occupant.as_ref(), known.pending.as_deref())?;
            }
            if let Some(left) = self.engine.store.running(machine)? {
                self.end(left.operation, "taken-back");
            }
        }
        Ok(ended)
    }
}

fn is(snapshot: &Snapshot, mark: &str) -> bool {
    snapshot.mark.as_deref() == Some(mark)
}

/// The way back, if it leads there.
fn whole<'f>(facts: &'f Facts, mark: &str) -> Option<&'f Snapshot> {
    facts.snapshots.iter().find(|s| is(s, mark) && !s.lost)
}

/// Whether there is a note of one, even a part of a note.
pub(crate) fn is_noted(volume: &Volume) -> Result<bool, DiskError> {
    Ok(volume.is_written_in_place() && volume.import_note().open()?.is_some())
}

/// Whether somebody's import was begun there and not ended.
pub(crate) fn import_left(volume: &Volume) -> Option<Meta> {
    if !volume.is_written_in_place() {
        return None;
    }
    ImportNote::of(volume, false).ok().flatten().map(|note| note.meta)
}
