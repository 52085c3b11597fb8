//! The folder that copies lie in, by descriptor: the path may lead elsewhere later, this does not.
//!
//! Names are made anew or replaced by rename only, never through a link. Every change is told to
//! a probe, by which tests stop the sequence after each of its steps.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, RenameFlags, openat, renameat, renameat2};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use snapslot_disk::{DiskError, Doing};

use super::CopyError;

/// A change that was made, for the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// A new, empty file.
    Created(&'a OsStr),
    /// Some of its content, or all of it.
    Wrote(&'a OsStr),
    /// Its content, owner and times are durable.
    Flushed(&'a OsStr),
    /// A name moved, replacing what was there.
    Renamed(&'a OsStr, &'a OsStr),
    /// A name is gone.
    Removed(&'a OsStr),
    /// Names are durable.
    Synced,
    /// The device was written.
    DiskWrote,
    /// What was written to the device is durable.
    DiskFlushed,
}

/// Told of every change; an error stops the sequence there.
pub(super) type Probe = Arc<dyn Fn(Event<'_>) -> Result<(), DiskError> + Send + Sync>;

/// An open folder.
pub(super) struct Folder {
    dir: File,
    path: PathBuf,
    probe: Option<Probe>,
}

impl std::fmt::Debug for Folder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Folder").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self, CopyError> {
        let dir = File::options()
            .read(true)
            .custom_flags((OFlag::O_DIRECTORY | OFlag::O_CLOEXEC).bits())
            .open(path)
            .map_err(|e| CopyError::io(path.display().to_string(), Doing::Open, e))?;
        Ok(Folder { dir, path: path.to_owned(), probe: None })
    }

    /// The same; makes it if it is not there, for its owner alone.
    pub(super) fn open_or_make(path: &Path) -> Result<Self, CopyError> {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            // The name is durable before anything inside it matters.
            Ok(()) => Folder::open(path.parent().unwrap_or(Path::new("/")))?.sync()?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(CopyError::io(path.display().to_string(), Doing::Name, e)),
        }
        Folder::open(path)
    }

    #[cfg(test)]
    pub(super) fn set_probe(&mut self, probe: Option<Probe>) {
        self.probe = probe;
    }

    pub(super) fn tell(&self, event: Event<'_>) -> Result<(), CopyError> {
        match &self.probe {
            Some(probe) => Ok(probe(event)?),
            None => Ok(()),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.dir
    }

    /// A name in it, to say.
    pub(super) fn say(&self, name: &OsStr) -> String {
        self.path.join(name).display().to_string()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    fn error(&self, name: &OsStr, doing: Doing, e: Errno) -> CopyError {
        CopyError::io(self.say(name), doing, e)
    }

    /// Opens a plain file for reading; `None` if the name is not there.
    pub(super) fn read(&self, name: &OsStr) -> Result<Option<File>, CopyError> {
        // O_NONBLOCK: a FIFO by this name must not hang the engine.
        let flags = OFlag::O_RDONLY
            | OFlag::O_NOFOLLOW
            | OFlag::O_NONBLOCK
            | OFlag::O_NOCTTY
            | OFlag::O_CLOEXEC;
        let file = match openat(&self.dir, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return Err(self.untrusted(name, "it is a symbolic link")),
            Err(e) => return Err(self.error(name, Doing::Open, e)),
        };
        let meta = file.metadata().map_err(|e| CopyError::io(self.say(name), Doing::Stat, e))?;
        if !meta.is_file() {
            return Err(self.untrusted(name, "it is not a plain file"));
        }
        Ok(Some(file))
    }

    fn untrusted(&self, name: &OsStr, why: &'static str) -> CopyError {
        CopyError::Untrusted { name: self.say(name), why }
    }

    /// Whether a file by a name of ours may be believed to be ours: plain, with one name, written
    /// by nobody else, of this user, of root or of the disk's owner. Who could write it
    /// otherwise could have us write anything into the disk.
    pub(super) fn trust(
        &self,
        name: &OsStr,
        file: &File,
        owner: Option<u32>,
    ) -> Result<Metadata, CopyError> {
        let meta = file.metadata().map_err(|e| CopyError::io(self.say(name), Doing::Stat, e))?;
        match snapslot_disk::untrusted(&meta, owner) {
            None => Ok(meta),
            Some(why) => Err(self.untrusted(name, why)),
        }
    }

    /// Makes a new, empty file that only its owner can open.
    pub(super) fn create(&self, name: &OsStr) -> Result<File, CopyError> {
        let flags =
            OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(|e| self.error(name, Doing::Name, e))?;
        self.tell(Event::Created(name))?;
        Ok(fd.into())
    }

    /// A file without a name, for trying things out; `None` where there is no such thing.
    pub(super) fn nameless(&self) -> Result<Option<File>, CopyError> {
        let flags = OFlag::O_RDWR | OFlag::O_TMPFILE | OFlag::O_CLOEXEC;
        match openat(&self.dir, ".", flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT | Errno::EINVAL) => Ok(None),
            Err(e) => Err(self.error(OsStr::new("."), Doing::Name, e)),
        }
    }

    /// Makes content, owner and times durable.
    pub(super) fn flush(&self, name: &OsStr, file: &File) -> Result<(), CopyError> {
        file.sync_all().map_err(|e| CopyError::io(self.say(name), Doing::Flush, e))?;
        self.tell(Event::Flushed(name))
    }

    /// Moves a name to one that is not there yet.
    pub(super) fn rename_new(&self, from: &OsStr, to: &OsStr) -> Result<(), CopyError> {
        match renameat2(&self.dir, from, &self.dir, to, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(CopyError::Exists { name: self.say(to) }),
            // Not every file system has the flag (NFS). The volume's lock keeps other engines
            // out, so looking first does as well.
            Err(Errno::EINVAL | Errno::ENOSYS) => {
                if self.id(to)?.is_some() {
                    return Err(CopyError::Exists { name: self.say(to) });
                }
                renameat(&self.dir, from, &self.dir, to)
                    .map_err(|e| self.error(to, Doing::Name, e))?;
            }
            Err(e) => return Err(self.error(to, Doing::Name, e)),
        }
        self.tell(Event::Renamed(from, to))
    }

    /// Moves a name over another, in one instant.
    pub(super) fn rename_over(&self, from: &OsStr, to: &OsStr) -> Result<(), CopyError> {
        renameat(&self.dir, from, &self.dir, to).map_err(|e| match e {
            Errno::EBUSY => CopyError::InUse {
                name: self.say(to),
                who: "a mount that lies on this very name".to_owned(),
            },
            e => self.error(to, Doing::Name, e),
        })?;
        self.tell(Event::Renamed(from, to))
    }

    /// Removes a name; whether it was there.
    pub(super) fn remove(&self, name: &OsStr) -> Result<bool, CopyError> {
        match unlinkat(&self.dir, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => {}
            Err(Errno::ENOENT) => return Ok(false),
            Err(e) => return Err(self.error(name, Doing::Name, e)),
        }
        self.tell(Event::Removed(name))?;
        Ok(true)
    }

    /// Makes names durable.
    pub(super) fn sync(&self) -> Result<(), CopyError> {
        self.dir
            .sync_all()
            .map_err(|e| CopyError::io(self.path.display().to_string(), Doing::Flush, e))?;
        self.tell(Event::Synced)
    }

    /// Which file a name is: device and inode number.
    pub(super) fn id(&self, name: &OsStr) -> Result<Option<(u64, u64)>, CopyError> {
        match fstatat(&self.dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(self.error(name, Doing::Stat, e)),
        }
    }

    /// The names in it that begin so, in order.
    pub(super) fn names(&self, prefix: &OsStr) -> Result<Vec<std::ffi::OsString>, CopyError> {
        use std::os::unix::ffi::OsStrExt;
        let fail = |e| CopyError::io(self.path.display().to_string(), Doing::Read, e);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(fail)? {
            let name = entry.map_err(fail)?.file_name();
            if name.as_bytes().starts_with(prefix.as_bytes()) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Bytes free for this user.
    pub(super) fn available(&self) -> Result<u64, CopyError> {
        let stat = nix::sys::statvfs::fstatvfs(&self.dir)
            .map_err(|e| CopyError::io(self.path.display().to_string(), Doing::Stat, e))?;
        let (blocks, size): (u64, u64) = (stat.blocks_available(), stat.fragment_size());
        Ok(blocks.saturating_mul(size))
    }
}
