//! Moving content: sharing blocks, or copying them.
//!
//! A whole copy goes in windows, each made durable before the next: what progress says is on the
//! disk, and the page cache is not filled with what nobody will read soon. Within a window,
//! pieces go side by side. A fresh file keeps holes: runs of zeroes are not written. On a device,
//! what is equal already is not written.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::unistd::{Whence, lseek64};
use snapslot_disk::Doing;

use super::CopyError;

pub use snapslot_content::Watch;

/// Bytes moved at once by one thread.
const PIECE: u64 = 1 << 20;
/// Bytes compared at once: also the shortest run of zeroes that stays a hole.
const GRAIN: usize = 64 << 10;
/// Pieces to a window.
const WINDOW: usize = 128;
/// More threads than this only contend.
const THREADS_MAX: usize = 4;

/// What lies at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Onto {
    /// A new file that reads as zeroes: zeroes need not be written.
    Fresh,
    /// Something with content: what is equal need not be written.
    Used,
}

/// A copy from one file to the same offsets of another.
pub(super) struct Move<'a> {
    pub(super) from: &'a File,
    pub(super) to: &'a File,
    /// Names, to say.
    pub(super) from_name: String,
    pub(super) to_name: String,
    pub(super) onto: Onto,
}

impl Move<'_> {
    /// Copies these ranges. `window` is called after each window; it makes the window durable.
    pub(super) fn run(
        &self,
        ranges: &[Range<u64>],
        watch: &Watch<'_>,
        window: &dyn Fn() -> Result<(), CopyError>,
    ) -> Result<(), CopyError> {
        let total = ranges.iter().map(|r| r.end - r.start).sum();
        let mut done = 0;
        (watch.progress)(done, total);
        let mut pieces = ranges.iter().flat_map(pieces);
        loop {
            let now: Vec<_> = pieces.by_ref().take(WINDOW).collect();
            let (Some(first), Some(last)) = (now.first(), now.last()) else { return Ok(()) };
            if (watch.stop)() {
                return Err(CopyError::Cancelled);
            }
            self.pieces(&now)?;
            window()?;
            forget(self.to, first.start..last.end);
            done += now.iter().map(|p| p.end - p.start).sum::<u64>();
            (watch.progress)(done, total);
        }
    }

    fn pieces(&self, pieces: &[Range<u64>]) -> Result<(), CopyError> {
        let threads = std::thread::available_parallelism()
            .map_or(1, std::num::NonZero::get)
            .min(THREADS_MAX)
            .min(pieces.len());
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let error = Mutex::new(None);
        let work = || {
            let (mut new, mut old) = (Vec::new(), Vec::new());
            while !failed.load(Ordering::Relaxed) {
                let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                if let Err(e) = self.piece(piece, &mut new, &mut old) {
                    failed.store(true, Ordering::Relaxed);
                    error.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        match error.into_inner().unwrap_or_else(|e| e.into_inner()) {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    fn piece(
        &self,
        piece: &Range<u64>,
        new: &mut Vec<u8>,
        old: &mut Vec<u8>,
    ) -> Result<(), CopyError> {
        // At most PIECE, which fits.
        let length = (piece.end - piece.start) as usize;
        new.resize(length, 0);
        read(self.from, &self.from_name, piece.start, new)?;
        if self.onto == Onto::Used {
            old.resize(length, 0);
            read(self.to, &self.to_name, piece.start, old)?;
        }
        let same = |at: usize, end: usize| match self.onto {
            Onto::Fresh => new[at..end].iter().all(|b| *b == 0),
            Onto::Used => new[at..end] == old[at..end],
        };
        let mut at = 0;
        while at < length {
            let run = at;
            while at < length && !same(at, length.min(at + GRAIN)) {
                at = length.min(at + GRAIN);
            }
            if at > run {
                self.to
                    .write_all_at(&new[run..at], piece.start + run as u64)
                    .map_err(|e| CopyError::io(&self.to_name, Doing::Write, e))?;
            } else {
                at = length.min(at + GRAIN);
            }
        }
        Ok(())
    }
}

/// Pieces at multiples of [`PIECE`], so that two never share a block of the file system.
fn pieces(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { mut start, end } = *range;
    std::iter::from_fn(move || {
        (start < end).then(|| {
            let stop = (start / PIECE + 1).saturating_mul(PIECE).min(end);
            std::mem::replace(&mut start, stop)..stop
        })
    })
}

/// Fills the buffer; a file that ends before has changed meanwhile.
pub(super) fn read(file: &File, name: &str, at: u64, buf: &mut [u8]) -> Result<(), CopyError> {
    file.read_exact_at(buf, at).map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => CopyError::Changed { name: name.to_owned() },
        _ => CopyError::io(name, Doing::Read, e),
    })
}

/// Tells the kernel that nobody will read this soon. Advice: that it fails changes nothing.
fn forget(file: &File, range: Range<u64>) {
    if let (Ok(start), Ok(length)) =
        (i64::try_from(range.start), i64::try_from(range.end - range.start))
    {
        let _ = posix_fadvise(file, start, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
}

/// The size of a file or block device.
pub(super) fn size(file: &File, name: &str) -> Result<u64, CopyError> {
    let fail = |e: Errno| CopyError::io(name, Doing::Stat, e);
    let end = lseek64(file, 0, Whence::SeekEnd).map_err(fail)?;
    u64::try_from(end).map_err(|_| fail(Errno::EOVERFLOW))
}

/// Where a file of this size has data: all of it where the file system does not tell.
pub(super) fn data(file: &File, size: u64, name: &str) -> Result<Vec<Range<u64>>, CopyError> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < size {
        let seek = |at: u64, whence| match i64::try_from(at) {
            Ok(at) => lseek64(file, at, whence).map(|to| to.unsigned_abs()),
            Err(_) => Err(Errno::EFBIG),
        };
        let start = match seek(at, Whence::SeekData) {
            Ok(start) => start.min(size),
            // Nothing but a hole up to the end.
            Err(Errno::ENXIO) => break,
            // No such question here: a block device, or an old file system.
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) if at == 0 => {
                return Ok(std::iter::once(0..size).collect());
            }
            Err(e) => return Err(CopyError::io(name, Doing::Read, e)),
        };
        let end = seek(start, Whence::SeekHole)
            .map_err(|e| CopyError::io(name, Doing::Read, e))?
            .clamp(start, size);
        if end == start {
            break;
        }
        found.push(start..end);
        at = end;
    }
    Ok(found)
}
