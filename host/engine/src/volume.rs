//! A volume, opened: its image or device where it has one, its lock, its journal.
//!
//! | place | lock | journal |
//! |---|---|---|
//! | a file | a byte of the file itself | beside it: it travels with it, and another host finds it |
//! | a device, logical volume, dataset, directory | a file of the state directory; of `/run/snapslot` for root | in the state directory |
//!
//! What root's engines lock does not hang on where their records are, and a device has one more lock,
//! by its number: `lvm:vg/vm1` and `raw:/dev/dm-3` may be the same.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::stat::{major, minor};
use snapslot_capture::Copies;
use snapslot_command::Place;
use snapslot_disk::{
    DiskError, Doing, EngineLock, FileCompanion, FileDisk, FileId, LockError, Users, users,
    users_of_file_system,
};
use snapslot_runtime::{Facts, Failure, FailureKind, Plugin, Sight};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::keep::Shelf;
use crate::locator::Locator;
use crate::looks::{Changes, Looks};

const JOURNAL_SUFFIX: &str = ".snapslot-journal";
const LOCK_SUFFIX: &str = ".lock";

/// One volume of a machine.
#[derive(Clone)]
pub(crate) struct Volume {
    pub locator: Locator,
    /// Its image or device, where its place is a path to one.
    pub image: Option<Arc<FileDisk>>,
    /// What engines lock.
    pub lock: Arc<FileDisk>,
    /// The same of its device, by whatever name.
    pub device_lock: Option<Arc<FileDisk>>,
    /// The copies kept of it, where its place is a path.
    pub copies: Option<Arc<Copies>>,
    looks: Arc<Looks>,
    /// The journal's path, and the path whose owner may own it.
    journal: (PathBuf, PathBuf),
}

impl Volume {
    pub fn open_to_look(
        engine: &Engine,
        locator: &Locator,
        looks: &Arc<Looks>,
    ) -> Result<Volume, EngineError> {
        Self::open(engine, locator, looks.clone(), FileDisk::open_read_only)
    }

    /// All volumes of one operation: they share what was looked at.
    pub fn open_to_change(
        engine: &Engine,
        locators: &[Locator],
    ) -> Result<Vec<Volume>, EngineError> {
        let looks = Looks::new(engine.commands.clone());
        let open = |l| Self::open(engine, l, looks.clone(), FileDisk::open_writable);
        locators.iter().map(open).collect()
    }

    fn open(
        engine: &Engine,
        locator: &Locator,
        looks: Arc<Looks>,
        open: fn(&Path) -> Result<FileDisk, DiskError>,
    ) -> Result<Volume, EngineError> {
        let failed = |e| EngineError::disk(locator, e);
        let state_dir = &engine.settings.state_dir;
        let image = match &locator.place {
            Place::Image(path) => Some(Arc::new(open(path).map_err(failed)?)),
            _ => None,
        };
        let image_is_file = image.as_ref().is_some_and(|disk| disk.is_file());
        let directory = lock_directory(engine);
        let (lock, device_lock) = match &image {
            Some(disk) if disk.is_file() => (disk.clone(), None),
            _ => {
                private_directories(&journal_path(locator, state_dir, false).0)
                    .map_err(|e| failed(DiskError::io(locator.to_string(), Doing::Open, e)))?;
                let path = with_suffix(path_in(&directory, locator), LOCK_SUFFIX);
                let device = device_lock(&directory, locator).map_err(failed)?;
                (Arc::new(lock_file(&path).map_err(failed)?), device.map(Arc::new))
            }
        };
        let copies = locator.path().zip(image.as_ref()).map(|(path, disk)| match disk.is_file() {
            true => Copies::beside(path),
            false => Copies::in_directory(path, &state_dir.join("copies")),
        });
        Ok(Volume {
            locator: locator.clone(),
            image,
            lock,
            device_lock,
            copies: copies.map(|c| Arc::new(c.served_at(control_socket(state_dir, locator)))),
            looks,
            journal: journal_path(locator, state_dir, image_is_file),
        })
    }

    pub fn journal(&self) -> FileCompanion {
        let (path, of) = self.journal.clone();
        FileCompanion::new(path, of)
    }

    /// How far this volume's part of a restore over several is (see [`crate::part`]).
    pub fn part_note(&self) -> FileCompanion {
        self.beside_journal("-part")
    }

    /// How far an import onto this volume is (see [`crate::import`]).
    pub fn import_note(&self) -> FileCompanion {
        self.beside_journal("-import")
    }

    /// The journal of what ends a change that was interrupted.
    pub fn rest_journal(&self) -> FileCompanion {
        self.beside_journal("-rest")
    }

    fn beside_journal(&self, suffix: &str) -> FileCompanion {
        let (path, of) = self.journal.clone();
        FileCompanion::new(with_suffix(path, suffix), of)
    }

    /// What a plugin may see of it.
    pub fn sight(&self) -> Sight {
        let disk = self.image.clone().map(|d| d as Arc<dyn snapslot_disk::Disk>);
        let copies = self.copies.clone().map(|c| Arc::new(Shelf(c)) as Arc<_>);
        Sight {
            place: self.locator.place.clone(),
            disk,
            commands: Some(self.looks.clone()),
            copies,
        }
    }

    /// Looks at it.
    pub fn inspect(&self, plugin: &Plugin<'_>) -> Result<Facts, EngineError> {
        plugin.inspect(&self.sight()).map_err(|e| EngineError::call(&self.locator, e))
    }

    /// The image, for a plan that changes it.
    pub fn disk(&self) -> Result<&Arc<FileDisk>, EngineError> {
        self.image.as_ref().ok_or_else(|| {
            let what = std::io::Error::other("it has no image");
            EngineError::disk(
                &self.locator,
                DiskError::io(self.locator.to_string(), Doing::Open, what),
            )
        })
    }

    /// The commands that change something.
    pub fn changes(&self) -> Changes {
        let lock = self.has_lock_file().then(|| self.lock.clone());
        Changes { looks: self.looks.clone(), lock }
    }

    /// Takes the engine's lock.
    pub fn take_lock(&self) -> Result<EngineLock<'_>, LockError> {
        match self.has_lock_file() {
            true => EngineLock::take_for_commands(&self.lock),
            false => EngineLock::take(&self.lock),
        }
    }

    /// Whether its lock is a file of its own. An image is no file to give to a command.
    pub fn has_lock_file(&self) -> bool {
        self.image.as_ref().is_none_or(|disk| !Arc::ptr_eq(disk, &self.lock))
    }

    /// Whether it is no file, so that an image can only be written over what it holds.
    pub fn is_written_in_place(&self) -> bool {
        self.image.as_ref().is_none_or(|disk| !disk.is_file())
    }

    /// Which file it is, where it is one.
    pub fn file(&self) -> Option<FileId> {
        self.image.as_ref().map(|disk| disk.id())
    }

    /// The same, by its name: a restore may have put another file in its place.
    pub fn file_now(&self) -> Option<FileId> {
        let path = self.locator.path().filter(|_| self.image.is_some())?;
        let now = std::fs::metadata(path).ok();
        now.map(|m| FileId { device: m.dev(), inode: m.ino() }).or_else(|| self.file())
    }

    /// The same volume, its image opened anew by its name, to look.
    pub fn reopened(&self) -> Result<Volume, EngineError> {
        let image = match (&self.image, self.locator.path()) {
            (Some(_), Some(path)) => {
                let disk = FileDisk::open_read_only(path);
                Some(Arc::new(disk.map_err(|e| EngineError::disk(&self.locator, e))?))
            }
            _ => None,
        };
        Ok(Volume { image, ..self.clone() })
    }

    /// Whether a process of ours serves it now: then that one has its locks.
    pub fn is_served(&self) -> Result<bool, EngineError> {
        let Some(copies) = &self.copies else { return Ok(false) };
        let served = copies.served().map_err(|e| EngineError::copy(&self.locator, &e))?;
        Ok(served.is_some())
    }

    /// Who uses the device that shows its content, or the file system it is. Files have QEMU's locks for
    /// that.
    pub fn users(&self) -> Result<Users, EngineError> {
        if self.is_served()? {
            // Its clients are what counts, and their server says so when it matters.
            return Ok(Users::default());
        }
        let device = match self.locator.place.device() {
            Some(path) if self.is_written_in_place() => path,
            _ => return Ok(Users::default()),
        };
        match &self.locator.place {
            // A file system has no device: it is used where it is mounted.
            Place::ZfsDataset(dataset) if matches!(device.try_exists(), Ok(false)) => {
                Ok(users_of_file_system("zfs", dataset))
            }
            _ => users(&device).map_err(|e| EngineError::disk(&self.locator, e)),
        }
    }

    /// Refuses what the plugin cannot be given: an image on a device cannot grow, and has no place
    /// beside it for a journal.
    pub fn suits(&self, plugin: &Plugin<'_>) -> Result<(), EngineError> {
        match &self.image {
            Some(disk) if changes_image(plugin) && !disk.is_file() => {
                let failure = Failure::new(
                    FailureKind::Unsupported,
                    "block-device",
                    "it is a block device; images are handled as files only",
                );
                Err(EngineError::backend(&self.locator, failure))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a plugin's plans change an image; those of others are of commands or copies.
pub(crate) fn changes_image(plugin: &Plugin<'_>) -> bool {
    plugin.description().images.iter().any(|i| i.changes)
}

/// The journal of a volume that is not open. A file that is gone counts as one.
pub(crate) fn journal_of(locator: &Locator, state_dir: &Path) -> FileCompanion {
    let is_file = |path: &Path| std::fs::metadata(path).map_or(true, |m| m.is_file());
    let (path, of) = journal_path(locator, state_dir, locator.path().is_some_and(is_file));
    FileCompanion::new(path, of)
}

/// The journal's path, and the path whose owner may own it.
fn journal_path(locator: &Locator, state_dir: &Path, is_file: bool) -> (PathBuf, PathBuf) {
    let beside = locator.path().filter(|_| is_file && matches!(locator.place, Place::Image(_)));
    match beside {
        Some(path) => (with_suffix(path.to_owned(), JOURNAL_SUFFIX), path.to_owned()),
        None => {
            let journals = state_dir.join("journals");
            (with_suffix(path_in(&journals, locator), JOURNAL_SUFFIX), journals)
        }
    }
}

/// Where the process is asked that serves a volume. Its name is short, as sockets' are.
pub(crate) fn control_socket(state_dir: &Path, locator: &Locator) -> PathBuf {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(locator.to_string());
    let name: String = digest[..12].iter().map(|b| format!("{b:02x}")).collect();
    state_dir.join("live").join(name)
}

fn with_suffix(path: PathBuf, suffix: &str) -> PathBuf {
    let mut name = path.into_os_string();
    name.push(suffix);
    name.into()
}

/// A place as a path below a directory: its parts are the path's, as their own grammar keeps
/// them from being `..` or empty.
fn path_in(directory: &Path, locator: &Locator) -> PathBuf {
    let place = locator.place.to_string();
    let parts = place.split('/').filter(|p| !p.is_empty() && *p != "." && *p != "..");
    parts.fold(directory.join(&locator.backend), |path, part| path.join(part))
}

/// Where engines of this user lock what has no file of its own. Modelled storage is no other engine's.
fn lock_directory(engine: &Engine) -> PathBuf {
    let shared = Path::new("/run/snapslot/locks");
    let root = nix::unistd::Uid::effective().is_root() && engine.settings.tools.is_none();
    // A system without `/run`, or where it cannot be written, has the other place.
    match root && private_directories(&shared.join("device/x")).is_ok() {
        true => shared.to_owned(),
        false => engine.settings.state_dir.join("locks"),
    }
}

/// The lock of the volume's device, if it has one now.
fn device_lock(directory: &Path, locator: &Locator) -> Result<Option<FileDisk>, DiskError> {
    let Some(meta) = locator.place.device().and_then(|d| std::fs::metadata(d).ok()) else {
        return Ok(None);
    };
    if !meta.file_type().is_block_device() {
        return Ok(None);
    }
    let name = format!("{}-{}", major(meta.rdev()), minor(meta.rdev()));
    lock_file(&directory.join("device").join(name)).map(Some)
}

fn lock_file(path: &Path) -> Result<FileDisk, DiskError> {
    let failed = |source| DiskError::io(path.display().to_string(), Doing::Open, source);
    private_directories(path).map_err(failed)?;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed)?;
    FileDisk::open_writable(path)
}

/// Makes the directories above a path, for this user only.
pub(crate) fn private_directories(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    match path.parent() {
        Some(parent) => std::fs::DirBuilder::new().recursive(true).mode(0o700).create(parent),
        None => Ok(()),
    }
}
