//! A volume, opened.

use std::path::PathBuf;
use std::sync::Arc;

use snapslot_disk::{FileCompanion, FileDisk};
use snapslot_runtime::{Failure, FailureKind, Sight};

use crate::error::EngineError;
use crate::locator::Locator;

/// What is appended to the image's name for the journal's.
const JOURNAL_SUFFIX: &str = ".snapslot-journal";

/// One volume of a machine, its image open.
pub(crate) struct Volume {
    pub locator: Locator,
    pub disk: Arc<FileDisk>,
}

impl Volume {
    pub fn open_to_look(locator: &Locator) -> Result<Volume, EngineError> {
        let disk = FileDisk::open_read_only(&locator.path());
        Self::opened(locator, disk)
    }

    pub fn open_to_change(locator: &Locator) -> Result<Volume, EngineError> {
        let disk = FileDisk::open_writable(&locator.path());
        Self::opened(locator, disk)
    }

    fn opened(
        locator: &Locator,
        disk: Result<FileDisk, snapslot_disk::DiskError>,
    ) -> Result<Volume, EngineError> {
        let disk = disk.map_err(|e| EngineError::disk(locator, e))?;
        if !disk.is_file() {
            // An image on a device cannot grow and has no place beside it for a journal.
            let failure = Failure::new(
                FailureKind::Unsupported,
                "block-device",
                "it is a block device; images are handled as files only",
            );
            let (volume, failure) = (locator.to_string(), Box::new(failure));
            return Err(EngineError::Backend { volume, failure });
        }
        Ok(Volume { locator: locator.clone(), disk: Arc::new(disk) })
    }

    /// The journal lies beside the image: it travels with it, and another host finds it.
    pub fn journal(&self) -> FileCompanion {
        journal_of(&self.locator)
    }

    /// What a plugin may see of it.
    pub fn sight(&self) -> Sight {
        Sight { place: self.locator.place.clone(), disk: self.disk.clone() }
    }
}

/// The journal of a volume's image.
pub(crate) fn journal_of(locator: &Locator) -> FileCompanion {
    FileCompanion::new(journal_path(locator), locator.path())
}

pub(crate) fn journal_path(locator: &Locator) -> PathBuf {
    let path = locator.path();
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(JOURNAL_SUFFIX);
    path.with_file_name(name)
}
