//! What is different between two views.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use snapslot_disk::Range;

use crate::pieces::{Cut, How, Piece, Watch, each};
use crate::{At, Content, ContentError, Map, is_zero};

/// Bytes compared at once: a block of the usual guests.
const GRAIN: usize = 4096;

/// Bytes read at once where they are only looked at.
const PIECE: u64 = 1 << 20;

/// Ranges in order, those that touch each other joined.
pub fn joined(mut ranges: Vec<Range>) -> Vec<Range> {
    ranges.retain(|r| r.length > 0);
    ranges.sort_unstable();
    ranges.dedup_by(|next, last| {
        let touches = next.offset <= last.offset + last.length;
        if touches {
            last.length = last.length.max(next.offset + next.length - last.offset);
        }
        touches
    });
    ranges
}

/// Adds a range, to the last one if it goes on with it.
pub(crate) fn append(ranges: &mut Vec<Range>, range: Range) {
    match ranges.last_mut() {
        Some(last) if last.offset + last.length == range.offset => last.length += range.length,
        _ => ranges.push(range),
    }
}

/// Where two views of one image do not lie at the same place. What is different is always among
/// it; what lies elsewhere may be the same all the same. Beyond the end of the shorter all differs.
pub fn by_map(now: &Map, then: &Map) -> Vec<Range> {
    let (mut at, mut found) = (0, Vec::new());
    let short = now.end().min(then.end());
    while at < short {
        let (Some(a), Some(b)) = (now.find(at), then.find(at)) else { break };
        let end = (a.start + a.length).min(b.start + b.length).min(short);
        let same = match (a.at, b.at) {
            (At::Data(x), At::Data(y)) => x + (at - a.start) == y + (at - b.start),
            (At::Packed { .. }, At::Packed { .. }) => a == b,
            (x, y) => x == y,
        };
        if !same {
            found.push(Range { offset: at, length: end - at });
        }
        at = end;
    }
    let long = now.end().max(then.end());
    found.push(Range { offset: short, length: long - short });
    joined(found)
}

/// Where two views read differently, to the block of 4 KiB. Reads both where either has
/// something; beyond the end of the shorter all differs.
pub fn by_content(
    now: &dyn Content,
    then: &dyn Content,
    watch: &Watch<'_>,
) -> Result<Vec<Range>, ContentError> {
    let both = Both { now, then, size: now.size().min(then.size()) };
    let found = Mutex::new(Vec::new());
    let failed = AtomicBool::new(false);
    let cut = Cut { grain: GRAIN as u64, share: false, holes: false };
    let work = |(a, b): &mut (Vec<u8>, Vec<u8>), piece: Piece<'_>| {
        let Piece::Data { start, length, .. } = piece else { return Ok(()) };
        let length = length as usize;
        a.resize(length, 0);
        b.resize(length, 0);
        now.read_at(start, a)?;
        then.read_at(start, b)?;
        let mut own = Vec::new();
        for (i, (x, y)) in a.chunks(GRAIN).zip(b.chunks(GRAIN)).enumerate() {
            if x != y {
                let offset = start + (i * GRAIN) as u64;
                own.push(Range { offset, length: x.len() as u64 });
            }
        }
        if !own.is_empty() {
            found.lock().unwrap_or_else(|e| e.into_inner()).extend(joined(own));
        }
        Ok(())
    };
    let how = How { cut, sharing: &AtomicBool::new(false), failed: &failed, ahead: &|_, _| () };
    each(&both, &how, watch, &Default::default, &work)?;
    let mut found = found.into_inner().unwrap_or_else(|e| e.into_inner());
    let long = now.size().max(then.size());
    found.push(Range { offset: both.size, length: long - both.size });
    Ok(joined(found))
}

/// What does not read as zeroes within these ranges, to the block of 4 KiB.
pub fn not_zero(
    content: &dyn Content,
    ranges: &[Range],
    watch: &Watch<'_>,
) -> Result<Vec<Range>, ContentError> {
    let (mut found, mut buffer) = (Vec::new(), Vec::new());
    for range in ranges {
        let end = range.offset.saturating_add(range.length).min(content.size());
        let mut at = range.offset;
        while at < end {
            if (watch.stop)() {
                return Err(ContentError::Stopped);
            }
            let run = content.run(at, end.min(at + PIECE))?;
            if !run.zero {
                buffer.resize(run.length as usize, 0);
                content.read_at(at, &mut buffer)?;
                let blocks = (at..).step_by(GRAIN).zip(buffer.chunks(GRAIN));
                for (offset, block) in blocks.filter(|(_, block)| !is_zero(block)) {
                    append(&mut found, Range { offset, length: block.len() as u64 });
                }
            }
            at += run.length.max(1);
        }
    }
    Ok(joined(found))
}

/// Something where either view has something.
struct Both<'a> {
    now: &'a dyn Content,
    then: &'a dyn Content,
    size: u64,
}

impl Content for Both<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ContentError> {
        self.now.read_at(offset, buf)
    }

    fn run(&self, offset: u64, limit: u64) -> Result<crate::Run, ContentError> {
        let (a, b) = (self.now.run(offset, limit)?, self.then.run(offset, limit)?);
        let length = match (a.zero, b.zero) {
            (true, true) | (false, false) => a.length.min(b.length),
            // To the end of the one that has something: the other may have some within.
            (true, false) => b.length,
            (false, true) => a.length,
        };
        Ok(crate::Run { start: offset, length, zero: a.zero && b.zero })
    }
}

#[cfg(test)]
mod tests {
    //! Goal: of given ranges, only what is not zeroes, whatever the file system tells of holes.

    use std::io::{Seek, SeekFrom, Write};
    use std::sync::Arc;

    use snapslot_disk::FileDisk;

    use super::*;
    use crate::Plain;

    #[test]
    fn what_is_not_zero_within_ranges_is_found() {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(8 << 20).expect("its length");
        let mut put = |at: u64, bytes: &[u8]| {
            file.seek(SeekFrom::Start(at)).expect("a place");
            file.write_all(bytes).expect("a write");
        };
        put(5000, &[7]);
        // Zeroes that are written, and something across the end of a piece.
        put(2 << 20, &[0; 1 << 20]);
        put((4 << 20) - 1, &[7; 2]);
        put(7 << 20, &[7; 100]);
        file.flush().expect("all of it");
        let disk = FileDisk::open_read_only(file.path()).expect("the file");
        let content = Plain::new(Arc::new(disk)).expect("content");
        let range = |offset: u64, length: u64| Range { offset, length };
        let found = |ranges: &[Range]| not_zero(&content, ranges, &Watch::NONE).expect("read");
        let all = [range(4096, 4096), range((4 << 20) - 4096, 8192), range(7 << 20, 4096)];
        assert_eq!(found(&[range(0, 8 << 20)]), all);
        // Ends behind the content, and a range that begins behind it.
        assert_eq!(found(&[range(7 << 20, 4 << 20), range(9 << 20, 4096)]), all[2..]);
        assert_eq!(found(&[range(0, 4096), range(8192, 1 << 20)]), []);
        let stopped = Watch { stop: &|| true, ..Watch::NONE };
        let outcome = not_zero(&content, &all, &stopped);
        assert!(matches!(outcome, Err(ContentError::Stopped)), "{outcome:?}");
    }
}
