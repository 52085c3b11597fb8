//! Where an export may not go: onto what it, or a slot, is made of.
//!
//! An export that replaces a file takes the old one away. That must be nobody's disk: no volume that has a
//! slot, not the exported one or its backing files, nothing that is kept beside a volume, and no
//! image that some program has open.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use snapslot_command::Place;
use snapslot_disk::{FileDisk, ImageLock};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::locator::Locator;
use crate::status::image_lock_error;

/// What the engine keeps beside a volume has this in its name.
const OURS: &str = ".snapslot-";

/// What a path leads to: a file by its place, a device by what it is.
#[derive(PartialEq, Eq)]
enum Is {
    File(u64, u64),
    Device(u64),
}

fn is(path: &Path) -> Option<Is> {
    let meta = std::fs::metadata(path).ok()?;
    Some(match meta.file_type().is_block_device() {
        true => Is::Device(meta.rdev()),
        false => Is::File(meta.dev(), meta.ino()),
    })
}

fn path_of(locator: &Locator) -> Option<PathBuf> {
    match &locator.place {
        Place::Image(path) => Some(path.clone()),
        place => place.device(),
    }
}

impl Engine {
    /// Has something written to `out`, an export of the volume `text`, if that harms no disk. What is there
    /// already is kept from other programs meanwhile.
    pub fn writing_to<T>(
        &self,
        out: &Path,
        text: &str,
        backing: &[String],
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let refuse = |why: String| EngineError::NoContent { volume: text.to_owned(), why };
        if out.file_name().is_some_and(|name| name.to_string_lossy().contains(OURS)) {
            let why = format!("{} is a name for what Snapslot itself keeps there", out.display());
            return Err(refuse(why));
        }
        let Some(there) = is(out) else { return work() };
        let (machine, _) = self.resolve(text)?;
        let mut guarded: Vec<String> = machine.volumes;
        guarded.extend(backing.iter().cloned());
        guarded.extend(self.store.machines()?.into_iter().flat_map(|m| m.volumes));
        for name in guarded {
            // Of a backend that is not there any more nothing is known but its name.
            let Ok(locator) = Locator::parse(&name, self.backends()) else { continue };
            if path_of(&locator).and_then(|path| is(&path)).is_some_and(|i| i == there) {
                return Err(refuse(format!("{} is {locator}, which would be lost", out.display())));
            }
        }
        if matches!(there, Is::Device(_)) {
            // It is opened exclusively; that is for whoever writes it.
            return work();
        }
        let name = || out.display();
        let real = std::fs::canonicalize(out).unwrap_or_else(|_| out.to_owned());
        let disk = FileDisk::open_read_only(&real).map_err(|e| EngineError::disk(name(), e))?;
        let _nobody_elses = ImageLock::exclusive(&disk).map_err(|e| image_lock_error(name(), e))?;
        work()
    }
}
