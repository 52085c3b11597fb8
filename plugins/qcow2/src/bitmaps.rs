//! Persistent dirty bitmaps.
//!
//! A restore changes the disk's content behind the bitmaps' back. They are kept, counted and
//! listed, and marked *in use* in their directory, which is how the format says "inconsistent":
//! QEMU will not trust them, and `qemu-img bitmap --remove` can remove them.

use snapslot_plugin_sdk::Failure;

use crate::corrupt;
use crate::draft::Draft;
use crate::header::AUTOCLEAR_BITMAPS;
use crate::volume::Volume;

/// QEMU's limits: 65,535 bitmaps, 64 MiB of directory... ours is lower, to be held at once.
const DIRECTORY_MAX: u64 = 8 << 20;
const ENTRY_HEAD: usize = 24;
const IN_USE: u32 = 1;

pub(crate) fn mark_inconsistent(volume: &Volume<'_>, draft: &mut Draft<'_>) -> Result<(), Failure> {
    let Some(directory) = volume.header.bitmaps else { return Ok(()) };
    if volume.header.autoclear & AUTOCLEAR_BITMAPS == 0 {
        return Ok(()); // not trusted already
    }
    let inside = directory.offset.checked_add(directory.size);
    if directory.size > DIRECTORY_MAX || inside.is_none_or(|end| end > volume.file_size) {
        return Err(corrupt("bitmap-directory", "the list of bitmaps is not inside the image"));
    }
    let bytes = volume.read(directory.offset, directory.size)?;
    let mut at = 0;
    for _ in 0..directory.count {
        // 0 table offset u64, 8 table size u32, 12 flags u32, 16 type u8, 17 granularity u8,
        // 18 name size u16, 20 extra size u32, then extra and name, padded to 8.
        let Some(head) = bytes.get(at..at + ENTRY_HEAD) else {
            return Err(corrupt("bitmap-directory", "the list of bitmaps is cut short"));
        };
        let word = |i: usize| u32::from_be_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let flags = word(12);
        if flags & IN_USE == 0 {
            let marked = (flags | IN_USE).to_be_bytes();
            draft.write(directory.offset + at as u64 + 12, &marked)?;
        }
        let name = usize::from(u16::from_be_bytes([head[18], head[19]]));
        let next = (at + ENTRY_HEAD)
            .checked_add(word(20) as usize)
            .and_then(|at| at.checked_add(name)?.checked_next_multiple_of(8));
        at = next.ok_or_else(|| corrupt("bitmap-directory", "the list of bitmaps is cut short"))?;
    }
    Ok(())
}
