//! What can go wrong with content.

use snapslot_disk::{DiskError, Doing};

/// Content that could not be read, written or compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContentError {
    /// The system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Compressed bytes that do not unpack.
    #[error("the compressed bytes at {offset} of {name} do not unpack to {length} bytes: {why}")]
    Packed {
        /// The image, to say.
        name: String,
        /// Where in it.
        offset: u64,
        /// Bytes they stand for.
        length: u64,
        /// What the library said.
        why: String,
    },
    /// Content in a backing file that nobody granted.
    #[error(
        "part of the content is in the backing file of {name}, which is read only if it is named: --backing qcow2:FILE or --backing raw:FILE"
    )]
    NoBacking {
        /// The image, to say.
        name: String,
    },
    /// More extents than are kept.
    #[error("{name} is in more than {limit} pieces, more than are kept in memory")]
    TooMany {
        /// The image, to say.
        name: String,
        /// How many are kept at most.
        limit: usize,
    },
    /// Extents that make no sense.
    #[error("the content of {name} is listed with gaps, or outside the disk, at {at}")]
    Unlike {
        /// The image, to say.
        name: String,
        /// The guest offset.
        at: u64,
    },
    /// What is read went while it was read.
    #[error("{what} is gone: it was lost or deleted while it was read")]
    Gone {
        /// What.
        what: String,
    },
    /// A moment that was held for who reads it is held no longer.
    #[error("{what} is held no longer, and what was read of it does not count; try again")]
    NotHeld {
        /// What.
        what: String,
    },
    /// Reading outside the view.
    #[error("the disk has {size} bytes; {length} bytes at {offset} are outside it")]
    Outside {
        /// Its size.
        size: u64,
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        length: u64,
    },
    /// The target is there already.
    #[error("{name} is there already; --force replaces it")]
    Exists {
        /// The file.
        name: String,
    },
    /// The target cannot take it.
    #[error("{name}: {why}")]
    Target {
        /// The file or device.
        name: String,
        /// Why.
        why: String,
    },
    /// Somebody stopped it.
    #[error("it was stopped; nothing is left behind")]
    Stopped,
}

impl ContentError {
    pub(crate) fn io(name: &str, doing: Doing, source: std::io::Error) -> Self {
        DiskError::io(name, doing, source).into()
    }
}
