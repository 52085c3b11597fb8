//! Disks that are files.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::unistd::{Whence, lseek64};

use crate::{Companion, Disk, DiskError, Doing, Range};

/// Which file it is, whatever its name: device and inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
}

/// A regular file or block device, opened once and addressed by offset.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    path: PathBuf,
    id: FileId,
    is_file: bool,
    writable: bool,
    flush_failed: AtomicBool,
    left_locked: AtomicBool,
}

impl FileDisk {
    /// Opens for reading only.
    pub fn open_read_only(path: &Path) -> Result<Self, DiskError> {
        Self::open(path, false)
    }

    /// Opens for reading and writing.
    pub fn open_writable(path: &Path) -> Result<Self, DiskError> {
        Self::open(path, true)
    }

    fn open(path: &Path, writable: bool) -> Result<Self, DiskError> {
        let name = || path.display().to_string();
        // O_NONBLOCK: a FIFO in place of an image must not hang the engine. It has no meaning
        // for the regular files and block devices that are let through below.
        let file = OpenOptions::new()
            .read(true)
            .write(writable)
            // No link at the end of the path: it was resolved when the volume was named, and one
            // that is there now was put in between.
            .custom_flags(
                (OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW).bits(),
            )
            .open(path)
            .map_err(|e| DiskError::io(name(), Doing::Open, e))?;
        Self::from_file(file, path, writable)
    }

    /// A file that is open already.
    fn from_file(file: File, path: &Path, writable: bool) -> Result<Self, DiskError> {
        let name = || path.display().to_string();
        let meta = file.metadata().map_err(|e| DiskError::io(name(), Doing::Stat, e))?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            let what = std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                "it is neither a regular file nor a block device",
            );
            return Err(DiskError::io(name(), Doing::Open, what));
        }
        Ok(FileDisk {
            file,
            path: path.to_owned(),
            id: FileId { device: meta.dev(), inode: meta.ino() },
            is_file: kind.is_file(),
            writable,
            flush_failed: AtomicBool::new(false),
            left_locked: AtomicBool::new(false),
        })
    }

    /// A file that is open for reading, with a name to say.
    pub fn of_descriptor(file: File, name: &Path) -> Result<Self, DiskError> {
        Self::from_file(file, name, false)
    }

    /// A file that is open for reading and writing, with a name to say.
    pub fn of_writable(file: File, name: &Path) -> Result<Self, DiskError> {
        Self::from_file(file, name, true)
    }

    /// Which file it is.
    pub fn id(&self) -> FileId {
        self.id
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a regular file, not a block device.
    pub fn is_file(&self) -> bool {
        self.is_file
    }

    /// Whether it was opened for writing.
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Has a lock on it end with the last process that has it open, not with the lock's own value: one
    /// that could not be ended is still at work.
    pub fn leave_locked(&self) {
        self.left_locked.store(true, Ordering::Release);
    }

    pub(crate) fn is_left_locked(&self) -> bool {
        self.left_locked.load(Ordering::Acquire)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Whether the path still leads to this file.
    pub fn still_named(&self) -> Result<bool, DiskError> {
        match std::fs::metadata(&self.path) {
            Ok(meta) => Ok(self.id == FileId { device: meta.dev(), inode: meta.ino() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.error(Doing::Stat, e)),
        }
    }

    fn error(&self, doing: Doing, source: std::io::Error) -> DiskError {
        DiskError::io(self.path.display().to_string(), doing, source)
    }

    fn outside(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let (name, size) = (self.path.display().to_string(), self.size()?);
        Err(DiskError::OutOfBounds { name, size, offset, length })
    }

    fn refuse_after_failed_flush(&self) -> Result<(), DiskError> {
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(DiskError::FlushFailedBefore { name: self.path.display().to_string() });
        }
        Ok(())
    }
}

/// Whether the system can be asked for these bytes: it takes larger offsets for negative ones.
fn addressable(offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| i64::try_from(end).is_ok())
}

impl Disk for FileDisk {
    fn size(&self) -> Result<u64, DiskError> {
        let meta = self.file.metadata().map_err(|e| self.error(Doing::Stat, e))?;
        if meta.file_type().is_block_device() {
            let end = lseek64(&self.file, 0, Whence::SeekEnd)
                .map_err(|e| self.error(Doing::Stat, e.into()))?;
            return Ok(u64::try_from(end).unwrap_or(0));
        }
        Ok(meta.len())
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let length = buf.len() as u64;
        if !addressable(offset, length) {
            return self.outside(offset, length);
        }
        match self.file.read_exact_at(buf, offset) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => self.outside(offset, length),
            Err(e) => Err(self.error(Doing::Read, e)),
        }
    }

    fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> Result<bool, DiskError> {
        if !addressable(offset, buf.len() as u64) {
            return Ok(false);
        }
        let part = nix::libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
        let (file, at) = (self.file.as_raw_fd(), offset.cast_signed());
        // SAFETY: the descriptor is open as long as `self` is; the one part is `buf`, which may be
        // written and lives until the call returns.
        let read =
            unsafe { nix::libc::preadv2(file, &raw const part, 1, at, nix::libc::RWF_NOWAIT) };
        // A failure may be of this way of reading alone: the other one will tell.
        Ok(usize::try_from(read).is_ok_and(|n| n == buf.len()))
    }

    fn read_append(&self, offset: u64, length: usize, buf: &mut Vec<u8>) -> Result<(), DiskError> {
        if !addressable(offset, length as u64) {
            return self.outside(offset, length as u64);
        }
        buf.reserve(length);
        let mut done = 0;
        while done < length {
            let room = &mut buf.spare_capacity_mut()[done..length];
            let at = (offset + done as u64).cast_signed();
            // SAFETY: the descriptor is open as long as `self` is, and `room` is that long and
            // may be written.
            let read = unsafe {
                nix::libc::pread(self.file.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), at)
            };
            match usize::try_from(read) {
                Ok(0) => return self.outside(offset, length as u64),
                Ok(read) => done += read,
                Err(_) => {
                    let error = std::io::Error::last_os_error();
                    if error.kind() != std::io::ErrorKind::Interrupted {
                        return Err(self.error(Doing::Read, error));
                    }
                }
            }
        }
        // SAFETY: so many bytes behind the old end have room and were read just now.
        unsafe { buf.set_len(buf.len() + length) };
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.refuse_after_failed_flush()?;
        self.file.write_all_at(data, offset).map_err(|e| self.error(Doing::Write, e))
    }

    fn extend(&self, size: u64) -> Result<(), DiskError> {
        self.refuse_after_failed_flush()?;
        if self.size()? >= size {
            return Ok(());
        }
        self.file.set_len(size).map_err(|e| self.error(Doing::Resize, e))
    }

    fn reserve(&self, ranges: &[Range]) -> Result<bool, DiskError> {
        for range in ranges {
            let (Ok(offset), Ok(length)) =
                (i64::try_from(range.offset), i64::try_from(range.length))
            else {
                return Err(self.error(Doing::Reserve, std::io::Error::from(Errno::EFBIG)));
            };
            // Where there is no hole there is room already; asking is ten times cheaper.
            let hole = lseek64(&self.file, offset, Whence::SeekHole);
            if length == 0 || hole.is_ok_and(|hole| hole >= offset.saturating_add(length)) {
                continue;
            }
            match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, length) {
                Ok(()) => {}
                // Not every file system can; then a full disk shows while writing, and the
                // journal carries the change on once there is room.
                Err(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::ENOSYS | Errno::EINVAL) => {
                    return Ok(false);
                }
                Err(e) => return Err(self.error(Doing::Reserve, e.into())),
            }
        }
        Ok(true)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        let meta = self.file.metadata().map_err(|e| self.error(Doing::Stat, e))?;
        if meta.file_type().is_file() {
            // Truncating to the present size drops blocks allocated past it.
            self.file.set_len(meta.len()).map_err(|e| self.error(Doing::Resize, e))?;
        }
        Ok(())
    }

    fn discard(&self, range: Range) -> Result<bool, DiskError> {
        self.refuse_after_failed_flush()?;
        let (Ok(offset), Ok(length)) = (i64::try_from(range.offset), i64::try_from(range.length))
        else {
            return Ok(false);
        };
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match fallocate(&self.file, flags, offset, length) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::ENOSYS | Errno::EINVAL) => Ok(false),
            Err(e) => Err(self.error(Doing::Write, e.into())),
        }
    }

    fn write_behind(&self, range: Range) {
        let (Ok(offset), Ok(length)) = (i64::try_from(range.offset), i64::try_from(range.length))
        else {
            return;
        };
        // Without the flags that wait: those take note of errors, which are for `flush` to report.
        let flags = nix::libc::SYNC_FILE_RANGE_WRITE;
        // SAFETY: the descriptor is open as long as `self` is; no memory is passed. What it
        // returns says nothing that `flush` would not.
        unsafe { nix::libc::sync_file_range(self.file.as_raw_fd(), offset, length, flags) };
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.refuse_after_failed_flush()?;
        self.file.sync_data().map_err(|e| {
            self.flush_failed.store(true, Ordering::Release);
            self.error(Doing::Flush, e)
        })
    }
}

/// Why a file by a name of ours cannot be believed to be ours; none if it can. It is believed only
/// if it is plain, with one name, writable by nobody else, of this user, of root or of the owner
/// of what it belongs to.
pub fn untrusted(meta: &std::fs::Metadata, owner: Option<u32>) -> Option<&'static str> {
    let ours = [Some(nix::unistd::Uid::effective().as_raw()), Some(0), owner];
    if !meta.is_file() {
        Some("it is not a plain file")
    } else if meta.nlink() != 1 {
        Some("it has more than one name")
    } else if meta.mode() & 0o022 != 0 {
        Some("others may write it")
    } else if !ours.contains(&Some(meta.uid())) {
        Some("it belongs to somebody else")
    } else {
        None
    }
}

/// A companion file in the directory of the volume's image.
///
/// It is made anew and never through a link, and one that is found is believed only if it is a
/// plain file with one name, writable by nobody else, of this user, of root or of the image's
/// owner: who could write it otherwise could have us write anything into the image.
#[derive(Debug, Clone)]
pub struct FileCompanion {
    path: PathBuf,
    image: PathBuf,
}

impl FileCompanion {
    /// The companion at `path` of the image at `image`.
    pub fn new(path: PathBuf, image: PathBuf) -> Self {
        FileCompanion { path, image }
    }

    fn error(&self, doing: Doing, source: std::io::Error) -> DiskError {
        DiskError::io(self.path.display().to_string(), doing, source)
    }

    fn trusted(&self, file: &File) -> Result<(), DiskError> {
        let meta = file.metadata().map_err(|e| self.error(Doing::Stat, e))?;
        let owner = std::fs::metadata(&self.image).map(|m| m.uid()).ok();
        let Some(why) = untrusted(&meta, owner) else { return Ok(()) };
        let what = std::io::Error::new(std::io::ErrorKind::InvalidData, why);
        Err(self.error(Doing::Open, what))
    }
}

impl Companion for FileCompanion {
    fn create(&self) -> Result<Box<dyn Disk>, DiskError> {
        // O_EXCL: never through a link that somebody put there, never over a journal. And never
        // opened a second time by name: the name may be another file's by then.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags((OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).bits())
            .open(&self.path)
            .map_err(|e| self.error(Doing::Name, e))?;
        Ok(Box::new(FileDisk::from_file(file, &self.path, true)?))
    }

    fn open(&self) -> Result<Option<Box<dyn Disk>>, DiskError> {
        match FileDisk::open_read_only(&self.path) {
            Ok(disk) => {
                self.trusted(disk.file())?;
                Ok(Some(Box::new(disk)))
            }
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn reopen(&self) -> Result<Option<Box<dyn Disk>>, DiskError> {
        match FileDisk::open_writable(&self.path) {
            Ok(disk) => {
                self.trusted(disk.file())?;
                Ok(Some(Box::new(disk)))
            }
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn remove(&self) -> Result<(), DiskError> {
        match std::fs::remove_file(&self.path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(self.error(Doing::Name, e)),
        }
    }

    fn sync_name(&self) -> Result<(), DiskError> {
        let parent = match self.path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p,
            _ => Path::new("."),
        };
        File::open(parent).and_then(|dir| dir.sync_all()).map_err(|e| self.error(Doing::Name, e))
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }
}
