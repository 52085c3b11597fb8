//! The one way to bytes.
//!
//! Everything that reads or changes a volume goes through [`Disk`]: files on a file system
//! ([`FileDisk`]), and simulated ones ([`sim`]) that can be crashed and made to fail. This
//! crate knows bytes, locks and who holds them; it knows no format, no plan and no policy.

use std::os::fd::BorrowedFd;

mod device;
mod error;
mod file;
mod holder;
mod lock;
mod mounted;
pub mod sim;

pub use device::{Users, users};
pub use error::{DiskError, Doing};
pub use file::{FileCompanion, FileDisk, FileId, untrusted};
pub use holder::{Holder, PASSING, holders, looks_in_passing, processes};
pub use lock::{EngineLock, ImageLock, LockError, lock_for_engine, probe_writer};
pub use mounted::users_of_file_system;

/// A run of bytes: offset and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Random access to the bytes of one volume's image.
///
/// A write is durable once a `flush` that began after it has returned `Ok`. A flush that failed
/// once stays failed: every later write and flush of this disk is refused, because the kernel
/// may have dropped the pages it could not write and would report success the second time.
pub trait Disk: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> Result<u64, DiskError>;

    /// The open file it is, where it is one and nothing stands between: for whoever may read it in
    /// another process.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Fills `buf` from `offset`. Reading past the end is an error, never a short read.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError>;

    /// Fills `buf` from `offset` if that needs no waiting for a device. `Ok(false)`: it would, or nobody
    /// knows; `buf` is anything then.
    fn read_at_once(&self, _offset: u64, _buf: &mut [u8]) -> Result<bool, DiskError> {
        Ok(false)
    }

    /// Appends `length` bytes from `offset` on to `buf`. For whoever would fill a fresh buffer with
    /// zeroes only to overwrite them. On failure `buf` is as it was.
    fn read_append(&self, offset: u64, length: usize, buf: &mut Vec<u8>) -> Result<(), DiskError> {
        let before = buf.len();
        buf.resize(before + length, 0);
        let result = self.read_at(offset, &mut buf[before..]);
        if result.is_err() {
            buf.truncate(before);
        }
        result
    }

    /// Writes all of `data` at `offset`, growing the disk if that is past its end.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError>;

    /// Grows to at least `size`; new bytes read as zeroes. Never shrinks.
    fn extend(&self, size: u64) -> Result<(), DiskError>;

    /// Sets room aside so that writing these ranges cannot fail for want of space. Changes
    /// neither content nor size. `Ok(false)`: this storage cannot promise it.
    fn reserve(&self, ranges: &[Range]) -> Result<bool, DiskError>;

    /// Gives back what `reserve` set aside past the end of the disk.
    fn release_reserve(&self) -> Result<(), DiskError>;

    /// Makes a range read as zeroes and gives its room back. `Ok(false)`: this storage cannot; nothing
    /// has changed then.
    fn discard(&self, _range: Range) -> Result<bool, DiskError> {
        Ok(false)
    }

    /// What was written in this range may go to the storage now: a flush will follow and need
    /// not find all of it waiting. A hint; it makes nothing durable and reports nothing.
    fn write_behind(&self, _range: Range) {}

    /// Makes everything written so far durable.
    fn flush(&self) -> Result<(), DiskError>;
}

/// A place for one small companion file of a volume: the journal.
///
/// Separate from [`Disk`] because creating and removing names has durability rules of its own:
/// a name is durable once `sync_name` has returned.
pub trait Companion: Send + Sync {
    /// Makes a new, empty file; fails if there is one.
    fn create(&self) -> Result<Box<dyn Disk>, DiskError>;
    /// Opens it, or `None` if there is none.
    fn open(&self) -> Result<Option<Box<dyn Disk>>, DiskError>;
    /// Opens it to be written, or `None` if there is none.
    fn reopen(&self) -> Result<Option<Box<dyn Disk>>, DiskError>;
    /// Removes it; fine if there is none.
    fn remove(&self) -> Result<(), DiskError>;
    /// Makes the presence or absence of the name durable.
    fn sync_name(&self) -> Result<(), DiskError>;
    /// The name, to say.
    fn name(&self) -> String;
}
