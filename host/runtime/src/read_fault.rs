//! A read that failed, as it is told to others and written down: with what makes it the same failure
//! there.

use std::io;

use serde::{Deserialize, Serialize};
use snapslot_disk::{DiskError, Doing};

/// Why bytes could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReadFault {
    /// They are not within the disk, which has this size.
    Outside { size: u64 },
    /// The system said so; its number where it has one.
    Failed { errno: Option<i32>, words: String },
}

impl ReadFault {
    pub(crate) fn of_words(words: impl Into<String>) -> ReadFault {
        ReadFault::Failed { errno: None, words: words.into() }
    }

    /// The failure it was, of these bytes.
    pub(crate) fn again(self, name: &str, offset: u64, length: usize) -> DiskError {
        match self {
            ReadFault::Outside { size } => {
                let length = length as u64;
                DiskError::OutOfBounds { name: name.to_owned(), size, offset, length }
            }
            ReadFault::Failed { errno: Some(errno), .. } => {
                DiskError::io(name, Doing::Read, io::Error::from_raw_os_error(errno))
            }
            ReadFault::Failed { errno: None, words } => {
                DiskError::io(name, Doing::Read, io::Error::other(words))
            }
        }
    }
}

impl From<&DiskError> for ReadFault {
    fn from(error: &DiskError) -> ReadFault {
        match error {
            DiskError::OutOfBounds { size, .. } => ReadFault::Outside { size: *size },
            DiskError::Io { source, .. } => {
                ReadFault::Failed { errno: source.raw_os_error(), words: source.to_string() }
            }
            other => ReadFault::of_words(other.to_string()),
        }
    }
}
