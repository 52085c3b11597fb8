//! What can go wrong with copies, in words that help.

use std::io;

use snapslot_disk::{DiskError, Doing};

/// An operation on copies that failed. What it says of the disk holds: unless told otherwise,
/// the disk is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The file system cannot share blocks, and a whole copy was not allowed.
    #[error("{name} cannot share blocks with a copy: it would be {bytes} bytes to read and write")]
    NotShared {
        /// The disk.
        name: String,
        /// Bytes a whole copy reads and writes.
        bytes: u64,
        /// Bytes free where it would lie.
        available: u64,
    },
    /// Not enough room for a whole copy.
    #[error(
        "a whole copy in {folder} needs {needed} bytes and {available} are free; free some and try again"
    )]
    NoSpace {
        /// Where the copy would lie.
        folder: String,
        /// Bytes it takes.
        needed: u64,
        /// Bytes that are free.
        available: u64,
    },
    /// There is no copy with this mark.
    #[error("there is no copy {name}")]
    Missing {
        /// Its name.
        name: String,
    },
    /// There is one already.
    #[error("{name} is there already")]
    Exists {
        /// Its name.
        name: String,
    },
    /// A file by the name of ours that cannot be ours.
    #[error("{name} is not taken for a copy of ours: {why}; move it away or put it right")]
    Untrusted {
        /// The file.
        name: String,
        /// Why not.
        why: &'static str,
    },
    /// Somebody has the disk open.
    #[error("{name} is in use by {who}; a restore would not reach them")]
    InUse {
        /// The disk.
        name: String,
        /// By whom.
        who: String,
    },
    /// The disk is of a kind whose content could not be set back.
    #[error("{name} could not be restored: {why}")]
    Unsuitable {
        /// The disk.
        name: String,
        /// Why not, and what helps.
        why: String,
    },
    /// It was written, resized or replaced while it was copied.
    #[error("{name} changed while it was copied")]
    Changed {
        /// The file.
        name: String,
    },
    /// The copy is not of the device's size.
    #[error(
        "{name} has {device} bytes and the copy {copy}: bring the device back to that size first"
    )]
    Size {
        /// The device.
        name: String,
        /// Its size in bytes.
        device: u64,
        /// That of the copy.
        copy: u64,
    },
    /// A put-back was begun and not ended.
    #[error("a restore of {name} was begun and not ended; recover it first")]
    Unfinished {
        /// The device.
        name: String,
    },
    /// Somebody wrote to a device whose put-back was not ended.
    #[error(
        "{name} was written by somebody else while its restore was half done; restore again, or remove {marker} to keep what is there"
    )]
    Overtaken {
        /// The device.
        name: String,
        /// The file that says how far the restore is.
        marker: String,
    },
    /// The moment cannot be recorded on this file system.
    #[error("the file system of {name} cannot record the time of the snapshot")]
    Time {
        /// The copy.
        name: String,
    },
    /// The live snapshot, or who serves the disk, says no.
    #[error("{name}: {why}")]
    Live {
        /// The disk.
        name: String,
        /// Why.
        why: String,
    },
    /// Who serves the disk has something else to do with it.
    #[error("{name}: {why}")]
    Busy {
        /// The disk.
        name: String,
        /// What.
        why: String,
    },
    /// The caller wanted it stopped; all is as before.
    #[error("stopped as asked; all is as before")]
    Cancelled,
}

impl CopyError {
    /// What the system said while doing something to a file.
    pub(super) fn io(name: impl Into<String>, doing: Doing, source: impl Into<io::Error>) -> Self {
        CopyError::Disk(DiskError::io(name, doing, source.into()))
    }

    /// Whether there is not enough room.
    pub fn is_no_space(&self) -> bool {
        match self {
            CopyError::NoSpace { .. } => true,
            CopyError::Disk(e) => e.is_no_space(),
            _ => false,
        }
    }

    /// Whether the machine is taken to have lost power at this point: nothing is tidied up then.
    pub(super) fn is_crash(&self) -> bool {
        matches!(self, CopyError::Disk(DiskError::Crashed))
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            CopyError::Disk(_) => "disk",
            CopyError::NotShared { .. } => "full-copy",
            CopyError::NoSpace { .. } => "no-space",
            CopyError::Missing { .. } => "no-such-copy",
            CopyError::Exists { .. } => "copy-exists",
            CopyError::Untrusted { .. } => "name-clash",
            CopyError::InUse { .. } => "in-use",
            CopyError::Unsuitable { .. } => "not-restorable",
            CopyError::Changed { .. } => "changed",
            CopyError::Size { .. } => "resized",
            CopyError::Unfinished { .. } => "unfinished",
            CopyError::Overtaken { .. } => "overtaken",
            CopyError::Time { .. } => "no-time",
            CopyError::Live { .. } => "live",
            CopyError::Busy { .. } => "busy",
            CopyError::Cancelled => "cancelled",
        }
    }
}
