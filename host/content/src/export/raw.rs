//! Raw images: the content at its own offsets, zeroes as holes.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek64};
use snapslot_disk::Doing;

use super::Sink;
use super::target::{Target, clone_range};
use crate::{Content, ContentError, SharedRange, is_zero};

/// Zeroes are looked for in parts of this size: a block of the usual file systems.
const GRAIN: usize = 4096;
/// The shortest run of content that room is set aside for.
const ROOM_MIN: u64 = 1 << 20;
/// The shortest run of zeroes within data that becomes a hole.
const HOLE_MIN: usize = 64 << 10;

pub(super) struct Raw<'t> {
    target: &'t Target,
    content: &'t dyn Content,
    size: u64,
    written: AtomicU64,
    /// Room is set aside once, when it is known that blocks cannot be shared.
    room: Once,
    shared: AtomicBool,
    reserved: AtomicBool,
}

impl<'t> Raw<'t> {
    pub(super) fn new(target: &'t Target, content: &'t dyn Content) -> Result<Self, ContentError> {
        let size = content.size();
        let fail = |doing, e: std::io::Error| ContentError::io(target.name(), doing, e);
        if target.is_file() {
            target.file().set_len(size).map_err(|e| fail(Doing::Resize, e))?;
        } else {
            let room = lseek64(target.file(), 0, Whence::SeekEnd)
                .map_err(|e| fail(Doing::Stat, e.into()))?
                .unsigned_abs();
            if room < size {
                let why = format!("the device has {room} bytes, and {size} are to be written");
                return Err(ContentError::Target { name: target.name().to_owned(), why });
            }
        }
        let (written, reserved) = (AtomicU64::new(0), AtomicBool::new(false));
        let (room, shared) = (Once::new(), AtomicBool::new(false));
        Ok(Raw { target, content, size, written, room, shared, reserved })
    }

    fn fail(&self, doing: Doing, e: std::io::Error) -> ContentError {
        ContentError::io(self.target.name(), doing, e)
    }

    fn write(&self, start: u64, bytes: &[u8]) -> Result<(), ContentError> {
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.target.write_at(start, bytes).map_err(|e| self.fail(Doing::Write, e))
    }

    fn part(&self, start: u64, bytes: &[u8], from: usize, to: usize) -> Result<(), ContentError> {
        if from >= to {
            return Ok(());
        }
        self.write(start + from as u64, &bytes[from..to])
    }

    /// Sets room aside where there is content, so that the file system finds all of it at once. That it
    /// cannot, or has no room, is for the writes to say.
    fn reserve(&self) {
        let mut at = 0;
        while at < self.size {
            let Ok(run) = self.content.run(at, self.size) else { return };
            at = run.start + run.length;
            if run.zero || run.length < ROOM_MIN {
                continue;
            }
            let (Ok(start), Ok(length)) = (i64::try_from(run.start), i64::try_from(run.length))
            else {
                return;
            };
            let keep = FallocateFlags::FALLOC_FL_KEEP_SIZE;
            if fallocate(self.target.file(), keep, start, length).is_err() {
                return;
            }
            self.reserved.store(true, Ordering::Relaxed);
        }
    }

    /// A hole within content: what was set aside for it is given back.
    fn hole(&self, start: u64, length: usize) {
        if !self.reserved.load(Ordering::Relaxed) {
            return;
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // It reads as zeroes all the same if this fails.
        let _ = fallocate(self.target.file(), flags, start.cast_signed(), length as i64);
    }
}

impl Sink for Raw<'_> {
    fn data(&self, _number: u64, start: u64, bytes: &[u8]) -> Result<(), ContentError> {
        if !self.target.is_file() {
            return self.write(start, bytes);
        }
        if !self.shared.load(Ordering::Relaxed) {
            self.room.call_once(|| self.reserve());
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
                from = at.min(bytes.len());
                self.hole(start + hole as u64, from - hole);
            }
            while at < bytes.len() && !is_zero(&bytes[at..bytes.len().min(at + GRAIN)]) {
                at += GRAIN;
            }
        }
        self.part(start, bytes, from, bytes.len())
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
        let whole = start.is_multiple_of(4096)
            && (length.is_multiple_of(4096) || start + length == self.size);
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

    fn share(&self, start: u64, range: SharedRange<'_>) -> Result<bool, ContentError> {
        let to = self.target.file();
        let shared = clone_range(range.file, range.offset, range.length, to, start);
        let shared = shared.map_err(|e| self.fail(Doing::Write, e))?;
        self.shared.fetch_or(shared, Ordering::Relaxed);
        Ok(shared)
    }

    fn finish(&self) -> Result<u64, ContentError> {
        Ok(self.written.load(Ordering::Relaxed))
    }
}
