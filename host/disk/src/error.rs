//! What can go wrong with bytes.

use std::fmt;
use std::io;

/// What was being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// Opening the file.
    Open,
    /// Asking its size or identity.
    Stat,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Growing or shrinking.
    Resize,
    /// Setting room aside.
    Reserve,
    /// Making writes durable.
    Flush,
    /// Making, removing or syncing a name.
    Name,
}

impl fmt::Display for Doing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Doing::Open => "open",
            Doing::Stat => "look at",
            Doing::Read => "read",
            Doing::Write => "write",
            Doing::Resize => "resize",
            Doing::Reserve => "set room aside in",
            Doing::Flush => "make durable",
            Doing::Name => "create or remove",
        })
    }
}

/// An operation on bytes that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// The system refused.
    #[error("cannot {doing} {name}: {source}")]
    Io {
        /// The file, to say.
        name: String,
        /// What was being done.
        doing: Doing,
        /// What the system said.
        source: io::Error,
    },
    /// A read or write outside the disk.
    #[error("{name} has {size} bytes; {length} bytes at {offset} are outside it")]
    OutOfBounds {
        /// The file, to say.
        name: String,
        /// Its size.
        size: u64,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
    },
    /// A flush failed before; nothing more is written through this handle.
    #[error(
        "an earlier flush of {name} failed, so nothing more is written to it until it is opened anew"
    )]
    FlushFailedBefore {
        /// The file, to say.
        name: String,
    },
    /// The simulated machine lost power.
    #[error("the simulated machine has crashed")]
    Crashed,
}

impl DiskError {
    /// Wraps what the system said.
    pub fn io(name: impl Into<String>, doing: Doing, source: io::Error) -> Self {
        DiskError::Io { name: name.into(), doing, source }
    }

    /// Whether it is for want of space.
    pub fn is_no_space(&self) -> bool {
        matches!(self, DiskError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Whether the file is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, DiskError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// Whether the caller lacks permission.
    pub fn is_denied(&self) -> bool {
        matches!(self, DiskError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem))
    }
}
