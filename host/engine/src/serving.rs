//! Content as a network block device.

use std::io;
use std::sync::Arc;

use snapslot_content::{Content, ContentError};
use snapslot_disk::DiskError;
use snapslot_nbd::{Export, Extent};

/// Content, served read-only.
pub struct ReadOnly(pub Arc<dyn Content>);

pub(crate) fn as_io(error: ContentError) -> io::Error {
    match error {
        ContentError::Disk(e) => disk_as_io(e),
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    }
}

pub(crate) fn disk_as_io(error: DiskError) -> io::Error {
    match error {
        DiskError::Io { source, .. } => source,
        other => io::Error::other(other.to_string()),
    }
}

impl Export for ReadOnly {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf).map_err(|e| {
            tracing::warn!("a read of {} bytes at {offset} failed: {e}", buf.len());
            as_io(e)
        })
    }

    fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        // That it fails is told by the other way of reading.
        Ok(self.0.read_at_once(offset, buf).unwrap_or(false))
    }

    fn extents(&self, offset: u64, length: u64, most: usize) -> io::Result<Vec<Extent>> {
        let (mut at, end) = (offset, offset + length);
        let mut found = Vec::new();
        while at < end && found.len() < most {
            let run = self.0.run(at, end).map_err(as_io)?;
            found.push(Extent { length: run.length, hole: run.zero, zero: run.zero });
            at += run.length;
        }
        Ok(found)
    }
}
