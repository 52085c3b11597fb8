//! How far a volume's part of a restore over several volumes is.
//!
//! That storage without a seal was set back cannot be seen on it afterwards: `zfs rollback` leaves no
//! trace, and neither does a raw disk. So it is written down, in a file beside the journal:
//!
//! ```text
//! -                not begun: none of its commands was run
//! an empty file    begun: it may be set back, wholly or not at all
//! "done"           done
//! ```
//! Each line is durable before the next begins. A part that was begun and is not done goes on after a
//! crash: with the others it is set back once more, which changes nothing where it was already.

use snapslot_disk::{Companion as _, Disk, DiskError};

use crate::volume::Volume;

const DONE: &[u8] = b"done";

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    NotBegun,
    Begun,
    Done,
}

impl Part {
    /// Reads it.
    pub fn of(volume: &Volume) -> Result<Part, DiskError> {
        let Some(file) = volume.part_note().open()? else { return Ok(Part::NotBegun) };
        let mut found = [0; DONE.len()];
        // A shorter file was cut off while it was written: it is not known to be done.
        let whole = file.size()? >= DONE.len() as u64;
        if whole {
            file.read_at(0, &mut found)?;
        }
        Ok(if found == DONE { Part::Done } else { Part::Begun })
    }
}

/// The note of a part that was begun.
pub(crate) struct PartNote(Box<dyn Disk>);

impl PartNote {
    /// Notes that the part is begun. A note that is there is of this operation, since the commit
    /// removes those of others: the part was begun before.
    pub fn begin(volume: &Volume) -> Result<PartNote, DiskError> {
        let note = volume.part_note();
        if let Some(file) = note.reopen()? {
            return Ok(PartNote(file));
        }
        let file = note.create()?;
        file.flush()?;
        note.sync_name()?;
        Ok(PartNote(file))
    }

    /// Notes that it is done.
    pub fn done(&self) -> Result<(), DiskError> {
        self.0.write_at(0, DONE)?;
        self.0.flush()
    }
}
