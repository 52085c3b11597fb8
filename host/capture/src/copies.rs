//! Whole copies of a disk, kept beside it: snapshots for storage that has none.
//!
//! # What lies where
//!
//! ```text
//! vm.img                                 the disk, a file
//! vm.img.snapslot-0123456789abcdef       a copy: whole, time of modification = when taken
//! vm.img.snapslot-0123456789abcdef.part  a copy being made
//! vm.img.snapslot-restoring              what will be the disk
//! vm.img.snapslot-probe                  an empty file, there for an instant
//! ```
//! Copies of a block device lie in a folder of the engine's, under the device's own identity
//! ([`identity`]); how far a put-back is stands in the name of one more file ([`overwrite`]).
//!
//! # What is promised
//!
//! - A name without `.part` is a whole copy, durable. [`Copies::save`] makes it so by its order:
//!   new file | content | time | flush | rename | flush of the folder.
//! - A file's content is the old or the copy's, at any instant: [`replace`] makes the new disk
//!   beside the old one and renames it over. A device's content is the old, the copy's, or
//!   something that nobody takes for a disk until it is whole ([`overwrite`]).
//! - A step that fails leaves all as it was; one that is cut off is taken back, or finished past
//!   its point of no return, by [`Copies::settle`], and settling twice is settling once.
//! - Blocks are shared where the file system can (FICLONE); otherwise it takes permission to copy
//!   the whole.
//!
//! One engine at a time works on a disk: its lock is the caller's business, but that a file which a restore
//! puts in the disk's place has it too, as long as the [`Copies`] live. So is stopping the machine: blocks
//! are shared in one instant, and a whole copy of a disk that somebody has is refused.

mod attributes;
mod content;
mod error;
mod folder;
mod identity;
mod live;
mod overwrite;
mod replace;
mod save;
mod sys;
#[cfg(test)]
mod tests;
mod users;

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use snapslot_disk::Doing;
use snapslot_slot::is_mark;

use crate::Save;

pub use content::Watch;
pub use error::CopyError;
use folder::Folder;
pub use live::{Changed, Served};

/// Between the disk's name and what of ours it is.
const JOINT: &str = ".snapslot-";
/// The ending of what is not whole.
const PART: &str = ".part";
/// What will be the disk.
const RESTORING: &str = "restoring";
/// What is tried out.
const PROBE: &str = "probe";

/// A copy that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedCopy {
    /// The mark it was saved under.
    pub mark: String,
    /// Which file it is: its inode number and when that was made. Another file under the same
    /// name has another one; reading does not change it.
    pub identity: String,
    /// Its file name.
    pub name: String,
    /// The moment recorded with it: seconds since 1970-01-01T00:00:00Z,
    pub taken_seconds: u64,
    /// and nanoseconds within the second.
    pub taken_nanoseconds: u32,
    /// Its size in bytes: that of the disk at the time.
    pub size: u64,
    /// Bytes of storage it holds at most; what it shares with the disk counts too.
    pub held_bytes: u64,
    /// Whether its content is gone: a live snapshot whose store ran full.
    pub lost: bool,
}

impl SavedCopy {
    fn order(&self) -> (u64, u32, &str) {
        (self.taken_seconds, self.taken_nanoseconds, &self.mark)
    }
}

/// What saving a copy would take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saving {
    /// Whether blocks can be shared: then it is done in a moment.
    pub shares: bool,
    /// Bytes to be read and written where they cannot.
    pub bytes: u64,
    /// Bytes that are free where the copy would lie.
    pub available: u64,
}

/// What settling found of a put-back that was cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The disk is as it was before.
    TakenBack,
    /// The disk is that of the copy with this mark.
    Finished(String),
}

/// What settling did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Files that were removed.
    pub removed: Vec<String>,
    /// The put-back that was ended, if there was one.
    pub put_back: Option<Ended>,
}

/// The copies of one disk. Nothing is opened until it is asked for something.
#[derive(Debug)]
pub struct Copies {
    disk: PathBuf,
    /// Where they lie: none for beside the disk.
    folder: Option<PathBuf>,
    /// Where the process is asked that serves the disk, if one does.
    socket: Option<PathBuf>,
    /// The file that a restore put in the disk's place, with its lock.
    put: Mutex<Option<File>>,
    #[cfg(test)]
    pretend: tests::Pretend,
}

impl Copies {
    /// Those of a regular file, which lie beside it. The path's last part must not be a link.
    pub fn beside(image: &Path) -> Self {
        Self::new(image, None)
    }

    /// Those of a block device, which lie in a folder of the engine's; it is made when there is
    /// none yet.
    pub fn in_directory(device: &Path, folder: &Path) -> Self {
        Self::new(device, Some(folder))
    }

    fn new(disk: &Path, folder: Option<&Path>) -> Self {
        Copies {
            disk: disk.to_owned(),
            folder: folder.map(Path::to_owned),
            socket: None,
            put: Mutex::default(),
            #[cfg(test)]
            pretend: tests::Pretend::default(),
        }
    }

    fn open(&self) -> Result<Opened, CopyError> {
        let opened = match &self.folder {
            None => Opened::beside(&self.disk),
            #[cfg(test)]
            Some(folder) if self.pretend.device => {
                Opened::of_device(self.disk.clone(), "pretended".into(), folder)
            }
            Some(folder) => Opened::in_directory(&self.disk, folder),
        };
        #[cfg(test)]
        let opened = opened.map(|o| self.pretend.probed(o));
        opened
    }

    /// Which file or device it is now. A restore of a file changes it, and nothing else of ours
    /// does: so it tells, after a crash, whether a restore came to pass.
    pub fn disk_identity(&self) -> Result<String, CopyError> {
        self.open()?.disk_identity()
    }

    /// The copies, oldest first. A file that has the name of one and cannot be ours is an error.
    pub fn list(&self) -> Result<Vec<SavedCopy>, CopyError> {
        let mut found = self.open()?.list()?;
        found.extend(self.live_listed()?);
        found.sort_by(|a, b| a.order().cmp(&b.order()));
        Ok(found)
    }

    /// What one more copy would take.
    pub fn saving(&self) -> Result<Saving, CopyError> {
        if self.served()?.is_some() {
            // Nothing is copied: what changes from now on is saved first.
            return Ok(Saving {
                shares: true,
                bytes: 0,
                available: self.open()?.folder.available()?,
            });
        }
        self.open()?.saving()
    }

    /// Who has the disk open, the first that is found, in words. This process does not count.
    pub fn user(&self) -> Result<Option<String>, CopyError> {
        if let Some(served) = self.served()? {
            let who = |n| format!("{n} clients of its server (pid {})", served.pid);
            return Ok((served.clients > 0).then(|| who(served.clients)));
        }
        let opened = self.open()?;
        let disk = opened.open_disk(false)?;
        users::user(&disk).map_err(|e| CopyError::io(opened.say(), Doing::Stat, e))
    }

    /// Gives a file that is to take the disk's place its owner, mode and extended attributes.
    pub fn dress(&self, file: &File) -> Result<(), CopyError> {
        let opened = self.open()?;
        let disk = opened.open_disk(false)?;
        opened.refuse_unsuitable(&disk)?;
        attributes::dress(&disk, file, &opened.say())
    }

    /// Saves a copy of the disk's present content: whole, or not at all.
    pub fn save(&self, new: &Save, watch: &Watch<'_>) -> Result<SavedCopy, CopyError> {
        let mark = &new.mark;
        check_mark(mark)?;
        if self.save_live(new)? {
            let listed = self.live_listed()?.filter(|c| c.mark == *mark);
            return listed
                .ok_or_else(|| CopyError::Missing { name: self.disk.display().to_string() });
        }
        self.open()?.save(new, watch)
    }

    /// Sets the disk back to the copy with this mark: wholly, or not at all. `watch` cannot stop
    /// it any more once a device has begun to change.
    pub fn put_back(&self, mark: &str, watch: &Watch<'_>) -> Result<(), CopyError> {
        check_mark(mark)?;
        if self.is_live(mark)? {
            return self.restore_live(mark);
        }
        let opened = self.open()?;
        if !opened.is_file {
            return opened.overwrite(mark, watch);
        }
        let new = opened.replace(mark, watch)?;
        *self.put.lock().unwrap_or_else(PoisonError::into_inner) = Some(new);
        Ok(())
    }

    /// Removes the copy with this mark; fine if there is none.
    pub fn discard(&self, mark: &str) -> Result<(), CopyError> {
        check_mark(mark)?;
        if self.is_live(mark)? {
            return self.discard_live(mark);
        }
        self.open()?.discard(mark)
    }

    /// What was begun and not ended, in words.
    pub fn unfinished(&self) -> Result<Option<String>, CopyError> {
        if self.live_unfinished()? {
            let disk = self.disk.display();
            return Ok(Some(format!("a restore of {disk} from its live snapshot was cut off")));
        }
        self.open()?.unfinished()
    }

    /// Ends what was begun: takes it back, or finishes it past its point of no return.
    pub fn settle(&self, watch: &Watch<'_>) -> Result<Settled, CopyError> {
        self.settle_live()?;
        self.open()?.settle(watch)
    }
}

/// The copies of one disk, with their folder open.
#[derive(Debug)]
struct Opened {
    folder: Folder,
    /// What names of ours begin with, before [`JOINT`].
    stem: OsString,
    disk: PathBuf,
    is_file: bool,
}

impl Opened {
    fn beside(image: &Path) -> Result<Self, CopyError> {
        let parent = match image.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        let Some(name) = image.file_name() else {
            let none = std::io::Error::from(std::io::ErrorKind::InvalidInput);
            return Err(CopyError::io(image.display().to_string(), Doing::Open, none));
        };
        let folder = Folder::open(parent)?;
        Ok(Opened { folder, stem: name.to_owned(), disk: image.to_owned(), is_file: true })
    }

    fn in_directory(device: &Path, folder: &Path) -> Result<Self, CopyError> {
        let name = || device.display().to_string();
        let fail = |e| CopyError::io(name(), Doing::Stat, e);
        let disk = std::fs::canonicalize(device).map_err(fail)?;
        let meta = std::fs::metadata(&disk).map_err(fail)?;
        let unsuitable = |why: &str| CopyError::Unsuitable { name: name(), why: why.to_owned() };
        if !meta.file_type().is_block_device() {
            return Err(unsuitable("it is not a block device"));
        }
        let numbers = (major(meta.rdev()), minor(meta.rdev()));
        let stem = identity::stem(Path::new("/sys"), numbers.0, numbers.1).ok_or_else(|| {
            unsuitable(
                "it has no identity of its own that lasts over a restart (a serial number, a \
                 world-wide name), so a copy might come back to another disk; give it one, or put \
                 a logical volume on it",
            )
        })?;
        Opened::of_device(disk, stem, folder)
    }

    fn of_device(disk: PathBuf, stem: OsString, folder: &Path) -> Result<Self, CopyError> {
        let folder = Folder::open_or_make(folder)?;
        let meta = folder
            .file()
            .metadata()
            .map_err(|e| CopyError::io(folder.path().display().to_string(), Doing::Stat, e))?;
        // Who can rename here could have us write any file to the device.
        let ours = [0, nix::unistd::Uid::effective().as_raw()];
        if meta.mode() & 0o022 != 0 || !ours.contains(&meta.uid()) {
            let name = folder.path().display().to_string();
            return Err(CopyError::Untrusted { name, why: "others may write the folder" });
        }
        Ok(Opened { folder, stem, disk, is_file: false })
    }

    fn disk_identity(&self) -> Result<String, CopyError> {
        if !self.is_file {
            return Ok(self.stem.to_string_lossy().into_owned());
        }
        let file = self.open_disk(false)?;
        let meta = file.metadata().map_err(|e| CopyError::io(self.say(), Doing::Stat, e))?;
        Ok(which(&meta))
    }

    fn list(&self) -> Result<Vec<SavedCopy>, CopyError> {
        let owner = self.owner();
        let mut found = Vec::new();
        for name in self.ours()? {
            let Some(mark) = self.part_of_ours(&name).filter(|m| is_mark(m)) else { continue };
            // Gone between the two looks: somebody removed it, and that is what is there.
            let Some(file) = self.folder.read(&name)? else { continue };
            let meta = self.folder.trust(&name, &file, owner)?;
            found.push(SavedCopy {
                mark: mark.to_owned(),
                identity: which(&meta),
                name: name.to_string_lossy().into_owned(),
                taken_seconds: modified(&meta).as_secs(),
                taken_nanoseconds: modified(&meta).subsec_nanos(),
                size: meta.len(),
                held_bytes: meta.blocks().saturating_mul(512),
                lost: false,
            });
        }
        found.sort_by(|a, b| a.order().cmp(&b.order()));
        Ok(found)
    }

    fn discard(&self, mark: &str) -> Result<(), CopyError> {
        check_mark(mark)?;
        if self.marker()?.is_some() {
            // The device's other half is in it.
            return Err(CopyError::Unfinished { name: self.say() });
        }
        if self.remove_own(&self.name(mark))? {
            self.folder.sync()?;
        }
        Ok(())
    }

    fn unfinished(&self) -> Result<Option<String>, CopyError> {
        if self.marker()?.is_some() {
            return Ok(Some(format!("a restore of {} was cut off", self.say())));
        }
        Ok(self
            .leftovers()?
            .first()
            .map(|name| format!("{} was left by a change that was cut off", self.folder.say(name))))
    }

    fn settle(&self, watch: &Watch<'_>) -> Result<Settled, CopyError> {
        let mut settled = Settled::default();
        if !self.is_file {
            settled.put_back = self.end_overwrite(watch)?;
        }
        for name in self.leftovers()? {
            if self.remove_own(&name)? {
                if self.part_of_ours(&name) == Some(RESTORING) {
                    settled.put_back = Some(Ended::TakenBack);
                }
                settled.removed.push(self.folder.say(&name));
            }
        }
        // Also where nothing was removed: a rename that a crash overtook is durable only now.
        self.folder.sync()?;
        Ok(settled)
    }

    /// Files of ours that are not whole.
    fn leftovers(&self) -> Result<Vec<OsString>, CopyError> {
        let mut names = self.ours()?;
        names.retain(|name| {
            self.part_of_ours(name).is_some_and(|part| match part.strip_suffix(PART) {
                Some(whole) => is_mark(whole) || (!self.is_file && overwrite::is_marker(whole)),
                None => part == PROBE || (self.is_file && part == RESTORING),
            })
        });
        Ok(names)
    }

    fn ours(&self) -> Result<Vec<OsString>, CopyError> {
        self.folder.names(&self.name(""))
    }

    fn part_of_ours<'a>(&self, name: &'a OsStr) -> Option<&'a str> {
        let rest = name.as_bytes().strip_prefix(self.stem.as_bytes())?;
        std::str::from_utf8(rest.strip_prefix(JOINT.as_bytes())?).ok()
    }

    /// The name of this part of ours.
    fn name(&self, part: &str) -> OsString {
        let mut name = self.stem.clone();
        name.push(JOINT);
        name.push(part);
        name
    }

    fn say(&self) -> String {
        self.disk.display().to_string()
    }

    fn owner(&self) -> Option<u32> {
        self.is_file.then(|| std::fs::symlink_metadata(&self.disk).map(|m| m.uid()).ok()).flatten()
    }

    /// Removes a file of ours, if it is there; one that cannot be ours stays, and is an error.
    fn remove_own(&self, name: &OsStr) -> Result<bool, CopyError> {
        let Some(file) = self.folder.read(name)? else { return Ok(false) };
        self.folder.trust(name, &file, self.owner())?;
        self.folder.remove(name)
    }

    fn open_copy(&self, mark: &str) -> Result<(OsString, File, Metadata), CopyError> {
        let name = self.name(mark);
        let Some(file) = self.folder.read(&name)? else {
            return Err(CopyError::Missing { name: self.folder.say(&name) });
        };
        let meta = self.folder.trust(&name, &file, self.owner())?;
        Ok((name, file, meta))
    }

    fn open_disk(&self, write: bool) -> Result<File, CopyError> {
        if self.is_file {
            let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
            let file = self.folder.read(&self.stem)?;
            return file.ok_or_else(|| CopyError::io(self.say(), Doing::Open, gone));
        }
        // O_EXCL on a block device: refused while a mount, device mapper or md has it (open(2)).
        let flags = OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        File::options().read(true).write(write).custom_flags(flags.bits()).open(&self.disk).map_err(
            |e| match e.kind() {
                std::io::ErrorKind::ResourceBusy => CopyError::InUse {
                    name: self.say(),
                    who: "a mounted file system, device mapper or md".to_owned(),
                },
                _ => CopyError::io(self.say(), Doing::Open, e),
            },
        )
    }
}

fn check_mark(mark: &str) -> Result<(), CopyError> {
    if is_mark(mark) {
        return Ok(());
    }
    let what = std::io::Error::from(std::io::ErrorKind::InvalidInput);
    Err(CopyError::io(format!("a copy marked {mark:?}"), Doing::Name, what))
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn modified(meta: &Metadata) -> Duration {
    meta.modified().map(since_1970).unwrap_or_default()
}

/// The inode's number alone is given to another file when this one is removed; when it was made
/// tells the two apart. Where the file system does not know that, the time of modification does:
/// nothing changes a copy once it is saved.
fn which(meta: &Metadata) -> String {
    let (kind, time) = match meta.created() {
        Ok(time) => ("made", since_1970(time)),
        Err(_) => ("modified", modified(meta)),
    };
    format!("{}:{kind}-{}.{:09}", meta.ino(), time.as_secs(), time.subsec_nanos())
}
