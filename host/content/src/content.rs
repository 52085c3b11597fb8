//! One view of a volume.

use std::os::fd::BorrowedFd;

use crate::ContentError;

/// A run of content that is of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First guest byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Whether it is known to be zeroes.
    pub zero: bool,
}

/// Bytes of an open file that are the content, as they are.
#[derive(Clone, Copy, Debug)]
pub struct SharedRange<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// First byte in it.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// What a disk, or a snapshot of it, holds. Read-only and from any thread.
pub trait Content: Send + Sync {
    /// Guest-visible size in bytes.
    fn size(&self) -> u64;

    /// Fills `buf` from the guest offset. Reading past the end is an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ContentError>;

    /// Fills `buf` if that needs no waiting for a device; `false`: it would, and `buf` is anything.
    fn read_at_once(&self, _offset: u64, _buf: &mut [u8]) -> Result<bool, ContentError> {
        Ok(false)
    }

    /// The run that `offset` lies in, from there on; at most to `limit`. `offset` is below `limit`,
    /// which is within the size.
    fn run(&self, offset: u64, limit: u64) -> Result<Run, ContentError>;

    /// Bytes that are not known to be zeroes from one offset to another.
    fn data_bytes(&self, start: u64, end: u64) -> Result<u64, ContentError> {
        let (mut at, mut data) = (start, 0);
        while at < end {
            let run = self.run(at, end)?;
            data += if run.zero { 0 } else { run.length };
            at = run.start + run.length;
        }
        Ok(data)
    }

    /// The file in which the content from `offset` on lies as it is, and how much of it; none where
    /// there is no such file. For sharing blocks instead of copying them.
    fn shared(&self, _offset: u64, _limit: u64) -> Option<SharedRange<'_>> {
        None
    }

    /// Refuses what lies outside.
    fn within(&self, offset: u64, length: u64) -> Result<(), ContentError> {
        let size = self.size();
        match offset.checked_add(length).is_some_and(|end| end <= size) {
            true => Ok(()),
            false => Err(ContentError::Outside { size, offset, length }),
        }
    }
}

/// Whether all of it is zeroes.
pub fn is_zero(bytes: &[u8]) -> bool {
    const STRIDE: usize = 256;
    // One pass over each without a branch within: the compiler makes vectors of it.
    bytes.chunks(STRIDE).all(|chunk| chunk.iter().fold(0, |or, b| or | b) == 0)
}
