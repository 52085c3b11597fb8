//! How far an import onto a device is.
//!
//! A device is overwritten in place, so it has what a file has not: a time at which it is neither. For that time the
//! slot, empty before, holds a snapshot of the device as it was, the way back. A file beside the journal says how far
//! things are:
//!
//! ```text
//! -        nothing was begun, or all is over
//! META     the way back may have been taken; the device is as it was
//! META w   the device may have been written to: the way back leads to what it was
//! META wb  the way back is being gone; when its snapshot is gone too, it was gone to the end
//! META wd  the device holds the image, and that is durable
//! ```
//! `META` is the operation as a line of JSON, with the snapshot's mark; after it comes a letter for each stage. Each is
//! durable before the next stage begins: the file before the take, `w` before the first byte is written, `d` after the
//! device was flushed. A line that is not whole was cut off while it was written, before anything else was done.
//! Last the snapshot goes, then the file.

use snapslot_disk::{Companion as _, Disk, DiskError};

use crate::meta::Meta;
use crate::volume::Volume;

/// A line is at most this long: a machine's name and its volumes.
const LINE_MAX: u64 = 1 << 20;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nothing was written to the device.
    Guarded,
    /// Something may have been.
    Written,
    /// It is being set back.
    Back,
    /// It holds the image.
    Done,
}

/// The note of an import that was begun.
pub(crate) struct ImportNote {
    file: Box<dyn Disk>,
    length: u64,
    /// What was begun.
    pub meta: Meta,
    /// How far it came.
    pub stage: Stage,
}

impl ImportNote {
    /// Notes that one begins.
    pub fn begin(volume: &Volume, meta: Meta) -> Result<ImportNote, DiskError> {
        let place = volume.import_note();
        let mut line = serde_json::to_vec(&meta).unwrap_or_default();
        line.push(b'\n');
        let file = place.create()?;
        file.write_at(0, &line)?;
        file.flush()?;
        place.sync_name()?;
        Ok(ImportNote { file, length: line.len() as u64, meta, stage: Stage::Guarded })
    }

    /// The one that is there. What is no whole note is removed by `clear` alone.
    pub fn of(volume: &Volume, to_change: bool) -> Result<Option<ImportNote>, DiskError> {
        let place = volume.import_note();
        let Some(file) = (if to_change { place.reopen()? } else { place.open()? }) else {
            return Ok(None);
        };
        let length = file.size()?.min(LINE_MAX);
        // At most a mebibyte.
        let mut text = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_at(0, &mut text)?;
        let whole = text.iter().position(|b| *b == b'\n').and_then(|end| {
            let meta = Meta::read(&text[..end])?;
            meta.mark.as_ref()?;
            Some((meta, &text[end + 1..]))
        });
        Ok(whole.map(|(meta, stages)| {
            let stage = match stages {
                [b'w', b'd', ..] => Stage::Done,
                [b'w', b'b', ..] => Stage::Back,
                [b'w', ..] => Stage::Written,
                _ => Stage::Guarded,
            };
            ImportNote { file, length, meta, stage }
        }))
    }

    /// The mark of the way back.
    pub fn mark(&self) -> &str {
        self.meta.mark.as_deref().unwrap_or_default()
    }

    /// Notes the next stage.
    pub fn reach(&mut self, stage: Stage) -> Result<(), DiskError> {
        let letter = match stage {
            Stage::Guarded => return Ok(()),
            Stage::Written => b'w',
            Stage::Back => b'b',
            Stage::Done => b'd',
        };
        self.file.write_at(self.length, &[letter])?;
        self.file.flush()?;
        self.length += 1;
        self.stage = stage;
        Ok(())
    }

    /// Removes it, or what is left of one.
    pub fn clear(volume: &Volume) -> Result<(), DiskError> {
        let place = volume.import_note();
        place.remove()?;
        place.sync_name()
    }
}
