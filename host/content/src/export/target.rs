//! Where an export goes.
//!
//! A file is made without a name (`O_TMPFILE`), filled, flushed, and only then linked; so whatever
//! stops it, a kill included, leaves nothing. Where the file system cannot do that it has a name of
//! its own, `.OUT.snapslot-part`, which is removed when the export fails. A block device is opened
//! exclusively, which the kernel refuses while anything has it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, OFlag, fallocate};
use nix::unistd::linkat;
use snapslot_disk::Doing;

use crate::ContentError;

pub(super) struct Target {
    file: File,
    /// The same file, written past the page cache: what is to be durable anyway need not be copied into
    /// memory first, and parts of it go side by side.
    direct: Option<File>,
    path: PathBuf,
    say: String,
    kind: Kind,
    force: bool,
}

/// What every usual device and file system takes past the page cache.
pub(super) const DIRECT_GRAIN: u64 = 4096;

enum Kind {
    /// It has no name yet.
    Nameless,
    /// It has this one until it is whole; it goes when dropped.
    Part(Part),
    Device,
}

struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Target {
    pub(super) fn open(path: &Path, force: bool, sync: bool) -> Result<Target, ContentError> {
        let say = path.display().to_string();
        let fail = |e| ContentError::io(&say, Doing::Open, e);
        let refuse = |why: &str| ContentError::Target { name: say.clone(), why: why.to_owned() };
        let there = match std::fs::symlink_metadata(path) {
            Ok(meta) => Some(meta),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(fail(e)),
        };
        // A link to a device is how devices are named; a link to a file would be replaced itself.
        let device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let (file, kind) = match there {
            Some(_) if device => {
                if !force {
                    return Err(refuse(
                        "it is a block device, whose content would be lost; --force overwrites it",
                    ));
                }
                let flags = OFlag::O_EXCL | OFlag::O_CLOEXEC;
                let open = OpenOptions::new().write(true).custom_flags(flags.bits()).open(path);
                let busy = |e: std::io::Error| match e.kind() {
                    std::io::ErrorKind::ResourceBusy => {
                        refuse("the device is in use by a file system, device mapper or md")
                    }
                    _ => fail(e),
                };
                (open.map_err(busy)?, Kind::Device)
            }
            Some(meta) if !meta.is_file() => {
                return Err(refuse("it is there already, and is neither a file nor a device"));
            }
            Some(_) if !force => return Err(ContentError::Exists { name: say }),
            _ => Self::create(path).map_err(fail)?,
        };
        let direct = sync.then(|| Self::direct(&file)).flatten();
        Ok(Target { file, direct, path: path.to_owned(), say, kind, force })
    }

    /// None where the file system has no such way.
    fn direct(file: &File) -> Option<File> {
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = OFlag::O_DIRECT | OFlag::O_CLOEXEC;
        OpenOptions::new().write(true).custom_flags(flags.bits()).open(own).ok()
    }

    /// Writes all of it, past the page cache where place, length and memory allow.
    pub(super) fn write_at(&self, at: u64, bytes: &[u8]) -> std::io::Result<()> {
        let fits = |n: u64| n.is_multiple_of(DIRECT_GRAIN);
        if let Some(direct) = &self.direct
            && fits(at)
            && fits(bytes.len() as u64)
            && fits(bytes.as_ptr() as u64)
        {
            match direct.write_all_at(bytes, at) {
                // A device of larger sectors: then as ever.
                Err(e) if e.raw_os_error() == Some(nix::libc::EINVAL) => {}
                result => return result,
            }
        }
        self.file.write_all_at(bytes, at)
    }

    /// Has the file system find room for a run before it is written: at once for all of it. Whether it did; that it cannot
    /// is for the write to say.
    pub(super) fn set_aside(&self, at: u64, length: u64) -> bool {
        let (Ok(at), Ok(length)) = (i64::try_from(at), i64::try_from(length)) else { return false };
        fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, length).is_ok()
    }

    fn create(path: &Path) -> std::io::Result<(File, Kind)> {
        let folder = folder(path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let nameless =
            options.clone().custom_flags((OFlag::O_TMPFILE | OFlag::O_CLOEXEC).bits()).open(folder);
        match nameless {
            Ok(file) => return Ok((file, Kind::Nameless)),
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(nix::libc::EOPNOTSUPP | nix::libc::EISDIR | nix::libc::EINVAL)
                ) => {}
            Err(e) => return Err(e),
        }
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".snapslot-{}-part", std::process::id()));
        let part = folder.join(name);
        let flags = OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = options.create_new(true).custom_flags(flags.bits()).open(&part)?;
        Ok((file, Kind::Part(Part(part))))
    }

    pub(super) fn name(&self) -> &str {
        &self.say
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn is_file(&self) -> bool {
        !matches!(self.kind, Kind::Device)
    }

    /// Makes it durable, then gives it its name, then makes the name durable.
    pub(super) fn keep(self, sync: bool) -> Result<(), ContentError> {
        let fail = |doing| move |e: std::io::Error| (doing, e);
        let result = (|| {
            if sync || matches!(self.kind, Kind::Device) {
                self.file.sync_all().map_err(fail(Doing::Flush))?;
            }
            match &self.kind {
                Kind::Device => return Ok(()),
                Kind::Part(part) => {
                    if self.force {
                        std::fs::rename(&part.0, &self.path).map_err(fail(Doing::Name))?;
                    } else {
                        std::fs::hard_link(&part.0, &self.path).map_err(fail(Doing::Name))?;
                    }
                }
                Kind::Nameless => self.link().map_err(fail(Doing::Name))?,
            }
            if sync {
                let folder = File::open(folder(&self.path)).and_then(|f| f.sync_all());
                folder.map_err(fail(Doing::Name))?;
            }
            Ok(())
        })();
        result.map_err(|(doing, e): (Doing, std::io::Error)| match e.kind() {
            std::io::ErrorKind::AlreadyExists => ContentError::Exists { name: self.say.clone() },
            _ => ContentError::io(&self.say, doing, e),
        })
    }

    fn link(&self) -> std::io::Result<()> {
        // By its place in /proc: naming a descriptor itself takes a privilege (linkat(2)).
        let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        if !self.force {
            linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &self.path, follow)?;
            return Ok(());
        }
        // A link never replaces: it gets a name beside, and that is renamed over.
        let mut name = OsString::from(".");
        name.push(self.path.file_name().unwrap_or_default());
        name.push(format!(".snapslot-{}-part", std::process::id()));
        let part = Part(folder(&self.path).join(name));
        let _ = std::fs::remove_file(&part.0);
        linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &part.0, follow)?;
        std::fs::rename(&part.0, &self.path)
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

/// Shares blocks of `from` with `to`; `false`: they cannot be shared.
pub(super) fn clone_range(
    from: std::os::fd::BorrowedFd<'_>,
    offset: u64,
    length: u64,
    to: &File,
    at: u64,
) -> std::io::Result<bool> {
    let range = nix::libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: offset,
        src_length: length,
        dest_offset: at,
    };
    // SAFETY: the kernel reads one struct, which lives until the call returns; both files are open.
    let done =
        unsafe { nix::libc::ioctl(to.as_raw_fd(), nix::libc::FICLONERANGE, &raw const range) };
    if done == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    // Not on this file system, not between these two, not at these offsets: then it is copied.
    match error.raw_os_error() {
        Some(
            nix::libc::EOPNOTSUPP
            | nix::libc::EXDEV
            | nix::libc::EINVAL
            | nix::libc::ENOTTY
            | nix::libc::EBADF
            | nix::libc::ENOSYS
            | nix::libc::ETXTBSY
            | nix::libc::EPERM,
        ) => Ok(false),
        _ => Err(error),
    }
}
