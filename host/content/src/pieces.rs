//! Going through content in pieces, several threads side by side.
//!
//! Each thread takes the next piece for itself; pieces are numbered in order, for who must put
//! them together in order again.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Content, ContentError, SharedRange};

/// Bytes of a piece: what a page cache of large folios takes in one (a huge page), and many requests of a disk.
pub(crate) const PIECE: u64 = 2 << 20;
/// Reads in flight that a disk can put in order; more threads than this only contend.
const THREADS_MAX: usize = 8;

/// Who watches, and may stop, a long move of content.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Told bytes done and bytes in all, from any thread.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
    /// Asked between pieces; `true` stops what can still be taken back.
    pub stop: &'a (dyn Fn() -> bool + Sync),
}

impl Watch<'_> {
    /// Nobody watches.
    pub const NONE: Watch<'static> = Watch { progress: &|_, _| {}, stop: &|| false };
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

/// What to do next.
pub(crate) enum Piece<'a> {
    /// Bytes to be read.
    Data { number: u64, start: u64, length: u64 },
    /// Known zeroes; of any length.
    Zero { number: u64, start: u64, length: u64 },
    /// Bytes that lie in a file as they are, and may be shared; of any length, with holes among them where the cut
    /// says so.
    Shared { number: u64, start: u64, range: SharedRange<'a> },
}

/// How content is cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Pieces begin at multiples of this, which divides [`PIECE`].
    pub grain: u64,
    /// Whether to ask for files to share blocks of.
    pub share: bool,
    /// Whether holes between them may be shared along, as holes: one call for many runs.
    pub holes: bool,
}

struct Cursor<'a> {
    content: &'a dyn Content,
    at: u64,
    number: u64,
    cut: Cut,
    /// Up to where data was told of that comes.
    told: u64,
}

/// Blocks are shared where both ends are multiples of this: a block of the usual file systems.
const SHARED_GRAIN: u64 = 4096;
/// Shorter runs are copied faster than they are shared.
const SHARED_MIN: u64 = 64 << 10;
/// Longer runs are shared in parts: one that cannot be shared after all is one thread's to copy.
const SHARED_MAX: u64 = 1 << 30;
/// Pieces looked at for one that could be shared, before any is moved: enough for all but an odd image, and done in
/// a millisecond.
const TRIALS_MAX: usize = 1024;

/// Data is told of so far ahead: what a file system finds room for in a moment.
const AHEAD: u64 = 64 << 20;

impl<'a> Cursor<'a> {
    fn new(content: &'a dyn Content, cut: Cut) -> Self {
        Cursor { content, at: 0, number: 0, cut, told: 0 }
    }

    fn next(&mut self, share: bool) -> Result<Option<Piece<'a>>, ContentError> {
        let size = self.content.size();
        if self.at >= size {
            return Ok(None);
        }
        let (start, number) = (self.at, self.number);
        let run = self.content.run(start, size)?;
        let whole =
            |end: u64| if end == size { end } else { end / self.cut.grain * self.cut.grain };
        let run_end = run.start + run.length;
        if run.zero && whole(run_end) > start {
            (self.at, self.number) = (whole(run_end), number + 1);
            return Ok(Some(Piece::Zero { number, start, length: self.at - start }));
        }
        if share
            && !run.zero
            && let Some(mut range) = {
                let most = if self.cut.holes { size } else { run_end };
                self.content.shared(start, most.min(start + SHARED_MAX))
            }
        {
            let length = match start + range.length {
                end if end == size => range.length,
                end => (end / self.cut.grain * self.cut.grain).saturating_sub(start),
            };
            if length >= SHARED_MIN && range.offset % SHARED_GRAIN == 0 {
                range.length = length;
                (self.at, self.number) = (start + length, number + 1);
                return Ok(Some(Piece::Shared { number, start, range }));
            }
        }
        // Up to the next zeroes that are worth it, or the next multiple.
        let most = ((start / PIECE + 1) * PIECE).min(size);
        let mut end = run_end.min(most);
        while end < most {
            let run = self.content.run(end, most)?;
            let up = end.next_multiple_of(self.cut.grain);
            if run.zero && up < whole(run.start + run.length) {
                end = up;
                break;
            }
            end = run.start + run.length;
        }
        let end = if end == size { end } else { end.next_multiple_of(self.cut.grain).min(most) };
        (self.at, self.number) = (end, number + 1);
        if !run.zero && start >= self.told {
            self.told = run_end.min(start + AHEAD);
        }
        Ok(Some(Piece::Data { number, start, length: end - start }))
    }
}

/// The first run whose blocks could be shared, for a trial.
pub(crate) fn first_shared(
    content: &dyn Content,
    cut: Cut,
) -> Result<Option<(u64, SharedRange<'_>)>, ContentError> {
    let mut cursor = Cursor::new(content, cut);
    for _ in 0..TRIALS_MAX {
        match cursor.next(cut.share)? {
            Some(Piece::Shared { start, range, .. }) => return Ok(Some((start, range))),
            Some(_) => {}
            None => break,
        }
    }
    Ok(None)
}

/// Threads that help here.
pub(crate) fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).clamp(2, THREADS_MAX)
}

/// How content is gone through.
pub(crate) struct How<'a> {
    pub cut: Cut,
    /// Whether files to share blocks of are asked for still.
    pub sharing: &'a AtomicBool,
    /// Whether one has failed: then all end.
    pub failed: &'a AtomicBool,
    /// Told of a run of data, offset and length, before any piece of it is given to a thread, and of none twice.
    pub ahead: &'a (dyn Fn(u64, u64) + Sync),
}

/// Has `work` done on every piece, with a state of each thread's own. The first failure ends all.
pub(crate) fn each<S>(
    content: &dyn Content,
    how: &How<'_>,
    watch: &Watch<'_>,
    state: &(dyn Fn() -> S + Sync),
    work: &(dyn Fn(&mut S, Piece<'_>) -> Result<(), ContentError> + Sync),
) -> Result<(), ContentError> {
    let &How { cut, sharing, failed, ahead } = how;
    // Where holes are shared along, what is told of is the disk: to go over all of its runs takes as long as to share
    // them.
    let by_place = cut.share && cut.holes;
    let total = if by_place { content.size() } else { content.data_bytes(0, content.size())? };
    let cursor = Mutex::new(Cursor::new(content, cut));
    let done = AtomicU64::new(0);
    let error = Mutex::new(None);
    (watch.progress)(0, total);
    let fail = |e| {
        failed.store(true, Ordering::Relaxed);
        error.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
    };
    let run = || {
        let mut own = state();
        while !failed.load(Ordering::Relaxed) {
            if (watch.stop)() {
                return fail(ContentError::Stopped);
            }
            let share = cut.share && sharing.load(Ordering::Relaxed);
            let next = {
                let mut cursor = cursor.lock().unwrap_or_else(|e| e.into_inner());
                let (at, told) = (cursor.at, cursor.told);
                let next = cursor.next(share);
                if cursor.told > told {
                    ahead(at, cursor.told - at);
                }
                next
            };
            let piece = match next {
                Ok(Some(piece)) => piece,
                Ok(None) => return,
                Err(e) => return fail(e),
            };
            let moved = match &piece {
                Piece::Data { length, .. } => *length,
                Piece::Zero { length, .. } => {
                    if by_place {
                        *length
                    } else {
                        0
                    }
                }
                Piece::Shared { range, .. } => range.length,
            };
            if let Err(e) = work(&mut own, piece) {
                return fail(e);
            }
            let now = done.fetch_add(moved, Ordering::Relaxed) + moved;
            (watch.progress)(now.min(total), total);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads() {
            scope.spawn(run);
        }
        run();
    });
    match error.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(e) => Err(e),
        None => Ok(()),
    }
}
