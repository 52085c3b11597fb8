//! A file or device whose bytes are the content.

use std::sync::Arc;

use nix::unistd::{Whence, lseek64};
use snapslot_disk::Disk;

use crate::{Content, ContentError, Run, SharedRange};

/// Raw content.
pub struct Plain {
    disk: Arc<dyn Disk>,
    size: u64,
}

impl Plain {
    /// The whole of a disk, as large as it is now.
    pub fn new(disk: Arc<dyn Disk>) -> Result<Self, ContentError> {
        let size = disk.size()?;
        Ok(Plain { disk, size })
    }

    fn seek(&self, offset: u64, whence: Whence) -> Option<u64> {
        let at = i64::try_from(offset).ok()?;
        lseek64(self.disk.descriptor()?, at, whence).ok().and_then(|to| u64::try_from(to).ok())
    }
}

impl Content for Plain {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ContentError> {
        self.within(offset, buf.len() as u64)?;
        Ok(self.disk.read_at(offset, buf)?)
    }

    fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ContentError> {
        self.within(offset, buf.len() as u64)?;
        Ok(self.disk.read_at_once(offset, buf)?)
    }

    fn run(&self, offset: u64, limit: u64) -> Result<Run, ContentError> {
        self.within(offset, limit - offset)?;
        // Where the file system does not tell (a device), all is data.
        let Some(hole) = self.seek(offset, Whence::SeekHole) else {
            return Ok(Run { start: offset, length: limit - offset, zero: false });
        };
        if hole > offset {
            let length = hole.min(limit) - offset;
            return Ok(Run { start: offset, length, zero: false });
        }
        // No data behind is an error of its own: then it is a hole up to the end.
        let data = self.seek(offset, Whence::SeekData).unwrap_or(limit).clamp(offset, limit);
        match data == offset {
            true => Ok(Run { start: offset, length: limit - offset, zero: false }),
            false => Ok(Run { start: offset, length: data - offset, zero: true }),
        }
    }

    fn data_bytes(&self, start: u64, end: u64) -> Result<u64, ContentError> {
        self.within(start, end - start)?;
        // A call for each end of a run, where going from run to run makes three for two.
        let (mut at, mut data) = (start, 0);
        while at < end {
            // No data behind is an error of its own; where the file system does not tell, all is data.
            let Some(from) = self.seek(at, Whence::SeekData) else {
                return Ok(if self.seek(at, Whence::SeekHole).is_some() {
                    data
                } else {
                    end - start
                });
            };
            let to = self.seek(from, Whence::SeekHole).unwrap_or(end);
            let (from, to) = (from.clamp(at, end), to.clamp(at, end));
            data += to.saturating_sub(from);
            at = to.max(at + 1);
        }
        Ok(data)
    }

    fn shared(&self, offset: u64, limit: u64) -> Option<SharedRange<'_>> {
        let file = self.disk.descriptor()?;
        Some(SharedRange { file, offset, length: limit - offset })
    }
}
