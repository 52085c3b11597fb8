//! A volume, opened.

use std::path::PathBuf;
use std::sync::Arc;

use snapslot_disk::{FileCompanion, FileDisk};
use snapslot_runtime::Sight;

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
        Ok(Volume { locator: locator.clone(), disk: Arc::new(disk) })
    }

    /// The journal lies beside the image: it travels with it, and another host finds it.
    pub fn journal(&self) -> FileCompanion {
        FileCompanion::new(journal_path(&self.locator))
    }

    /// What a plugin may see of it.
    pub fn sight(&self) -> Sight {
        Sight { place: self.locator.place.clone(), disk: self.disk.clone() }
    }
}

pub(crate) fn journal_path(locator: &Locator) -> PathBuf {
    let path = locator.path();
    let mut name = path.file_name().map(ToOwned::to_owned).unwrap_or_default();
    name.push(JOURNAL_SUFFIX);
    path.with_file_name(name)
}
