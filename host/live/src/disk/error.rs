//! Why something was not done.

use snapslot_disk::DiskError;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The disk or the store failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// There is a snapshot already.
    #[error("the disk has a live snapshot already: {mark}")]
    Held {
        /// Its mark.
        mark: String,
    },
    /// There is none with this mark.
    #[error("the disk has no live snapshot {mark}")]
    Missing {
        /// The mark.
        mark: String,
    },
    /// Its content is gone.
    #[error("the live snapshot {mark} is lost: {why}")]
    Lost {
        /// The mark.
        mark: String,
        /// Why.
        why: String,
    },
    /// The disk is not the one it was.
    #[error("the disk has {now} bytes and had {then} when its live snapshot was taken")]
    Size {
        /// Bytes then.
        then: u64,
        /// Bytes now.
        now: u64,
    },
    /// The store has no room.
    #[error("the store of the live snapshot is full")]
    Full,
    /// What waits cannot be written for now; it is tried again with the next flush.
    #[error("what was written last cannot be brought to the disk: {why}")]
    Stuck {
        /// Why.
        why: String,
        /// Whether it is for want of room.
        no_space: bool,
    },
    /// One at a time reads the disk as it is.
    #[error("somebody else reads the present disk already; wait until that is done")]
    Busy,
    /// A mark that is none.
    #[error("{mark:?} is no mark")]
    Mark {
        /// What was given.
        mark: String,
    },
    /// It failed before, and is not to be trusted any more.
    #[error(
        "the disk cannot be written any longer: {why}; stop the machine, see to the cause and serve it again"
    )]
    Broken {
        /// What went wrong.
        why: String,
    },
}

impl LiveError {
    /// Whether it is for want of room.
    pub fn is_no_space(&self) -> bool {
        match self {
            LiveError::Full => true,
            LiveError::Disk(e) => e.is_no_space(),
            LiveError::Stuck { no_space, .. } => *no_space,
            _ => false,
        }
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            e if e.is_no_space() => "no-space",
            LiveError::Held { .. } => "slot-held",
            LiveError::Missing { .. } => "not-found",
            LiveError::Lost { .. } => "lost",
            LiveError::Size { .. } => "changed",
            LiveError::Busy => "busy",
            LiveError::Mark { .. } => "usage",
            _ => "io",
        }
    }
}
