//! Raw images: the content at its own offsets, zeroes as holes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use snapslot_disk::Doing;

use super::Sink;
use super::target::{Target, clone_range};
use crate::{ContentError, SharedRange, is_zero};

/// Zeroes are looked for in parts of this size: a block of the usual file systems.
const GRAIN: usize = 4096;
/// The shortest run of data that room is set aside for.
const ROOM_MIN: u64 = 1 << 20;
/// The shortest run of zeroes within data that becomes a hole.
const HOLE_MIN: usize = 64 << 10;

pub(super) struct Raw<'t> {
    target: &'t Target,
    /// Of the content.
    size: u64,
    /// Of the target.
    room: u64,
    written: AtomicU64,
    /// Whether room was set aside somewhere.
    roomed: AtomicBool,
}

impl<'t> Raw<'t> {
    pub(super) fn new(target: &'t Target, size: u64) -> Result<Self, ContentError> {
        let fail = |doing, e: std::io::Error| ContentError::io(target.name(), doing, e);
        let mut room = size;
        if target.is_file() {
            target.file().set_len(size).map_err(|e| fail(Doing::Resize, e))?;
        } else {
            room = lseek64(target.file(), 0, Whence::SeekEnd)
                .map_err(|e| fail(Doing::Stat, e.into()))?
                .unsigned_abs();
            if room < size {
                let why = format!("the device has {room} bytes, and {size} are to be written");
                return Err(ContentError::Target { name: target.name().to_owned(), why });
            }
        }
        Ok(Raw { target, size, room, written: AtomicU64::new(0), roomed: AtomicBool::new(false) })
    }

    /// Zeroes behind the content.
    pub(super) fn clear_rest(&self) -> Result<(), ContentError> {
        let even = self.size.next_multiple_of(4096).min(self.room);
        self.zero(0, self.size, even - self.size)?;
        self.zero(0, even, self.room - even)
    }

    fn fail(&self, doing: Doing, e: std::io::Error) -> ContentError {
        ContentError::io(self.target.name(), doing, e)
    }

    fn write(&self, start: u64, bytes: &[u8]) -> Result<(), ContentError> {
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.target.write_at(start, bytes).map_err(|e| self.fail(Doing::Write, e))
    }

    /// Gives back room that was set aside and is not needed. Without that it is zeroes too.
    fn empty(&self, start: u64, length: usize) {
        if self.roomed.load(Ordering::Relaxed)
            && let (Ok(at), Ok(length)) = (i64::try_from(start), i64::try_from(length))
        {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let _ = fallocate(self.target.file(), flags, at, length);
        }
    }

    fn part(&self, start: u64, bytes: &[u8], from: usize, to: usize) -> Result<(), ContentError> {
        if from >= to {
            return Ok(());
        }
        self.write(start + from as u64, &bytes[from..to])
    }
}

impl Sink for Raw<'_> {
    fn data(&self, _number: u64, start: u64, bytes: &[u8]) -> Result<(), ContentError> {
        if !self.target.is_file() {
            return self.write(start, bytes);
        }
        let (mut from, mut at) = (0, 0);
        while at < bytes.len() {
            let hole = at;
            while at < bytes.len() && is_zero(&bytes[at..bytes.len().min(at + GRAIN)]) {
                at += GRAIN;
            }
            // Short runs of zeroes are written with what is around them: each part is a call.
            if at - hole >= HOLE_MIN || (hole == 0 && at >= bytes.len()) {
                self.part(start, bytes, from, hole)?;
                self.empty(start + hole as u64, at.min(bytes.len()) - hole);
                from = at.min(bytes.len());
            }
            while at < bytes.len() && !is_zero(&bytes[at..bytes.len().min(at + GRAIN)]) {
                at += GRAIN;
            }
        }
        self.part(start, bytes, from, bytes.len())
    }

    fn ahead(&self, start: u64, length: u64) {
        // Each page that is written where there is room already costs less.
        if self.target.is_file() && length >= ROOM_MIN && self.target.set_aside(start, length) {
            self.roomed.store(true, Ordering::Relaxed);
        }
    }

    fn zero(&self, _number: u64, start: u64, length: u64) -> Result<(), ContentError> {
        if self.target.is_file() {
            return Ok(());
        }
        // A device has old content there.
        let (Ok(at), Ok(bytes)) = (i64::try_from(start), i64::try_from(length)) else {
            let error = std::io::Error::from(nix::errno::Errno::EFBIG);
            return Err(self.fail(Doing::Write, error));
        };
        let flags = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let end = start + length;
        let whole = start.is_multiple_of(4096)
            && (end.is_multiple_of(4096) || end == self.size || end == self.room);
        if whole && fallocate(self.target.file(), flags, at, bytes).is_ok() {
            return Ok(());
        }
        static ZEROES: [u8; 65_536] = [0; 65_536];
        let mut done = 0;
        while done < length {
            let n = (length - done).min(ZEROES.len() as u64);
            self.write(start + done, &ZEROES[..n as usize])?;
            done += n;
        }
        Ok(())
    }

    fn can_share(&self, start: u64, mut range: SharedRange<'_>) -> Result<bool, ContentError> {
        range.length = range.length.min(GRAIN as u64);
        self.share(start, range)
    }

    fn share(&self, start: u64, range: SharedRange<'_>) -> Result<bool, ContentError> {
        let to = self.target.file();
        let shared = clone_range(range.file, range.offset, range.length, to, start);
        shared.map_err(|e| self.fail(Doing::Write, e))
    }

    fn finish(&self) -> Result<u64, ContentError> {
        Ok(self.written.load(Ordering::Relaxed))
    }
}
