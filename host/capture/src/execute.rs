//! Carrying a plan out.
//!
//! Phase by phase; within a phase in order of offset, on all processors, in pieces of a
//! megabyte; a flush after each phase. Words that are as they should be already are
//! not written, but for a redo: after a failed flush the cache may show what the disk lacks.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use snapslot_disk::{Disk, DiskError, Range};

use crate::plan::Plan;
use crate::step::Step;

/// Bytes handled at once by one thread: large enough that the system call does not matter,
/// small enough to stay in the second-level cache.
const PIECE: u64 = 512 << 10;
/// More threads than this only contend for the page cache's locks.
const THREADS_MAX: usize = 4;
/// Below this much work a second thread costs more than it brings.
const BYTES_FOR_THREADS: u64 = 4 << 20;

/// Pieces of fewer bytes than this on average are left for the flush to write: it joins neighbours
/// of many batches. With tables of 4 KiB, asking early made it a quarter slower.
const BYTES_FOR_BEHIND: u64 = 16 << 10;

impl Report {
    /// Adds what another part of the plan took.
    pub fn add(&mut self, other: Report) {
        self.flushes += other.flushes;
        self.written += other.written;
        self.read += other.read;
    }
}

/// Ranges nearer than this are set aside as one: they mostly share a block of the file system.
const NEAR: u64 = 4096;

/// What carrying a plan out took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Flushes of the image.
    pub flushes: u64,
    /// Bytes written.
    pub written: u64,
    /// Bytes read in order to change them.
    pub read: u64,
}

/// Carrying a plan out failed part-way. The journal still holds the plan.
#[derive(Debug, thiserror::Error)]
#[error("phase {phase} ({title}) of the plan failed: {source}")]
pub struct ExecuteError {
    /// The phase, from 0.
    pub phase: usize,
    /// What it does.
    pub title: String,
    /// What went wrong.
    #[source]
    pub source: DiskError,
}

/// Sets room aside for everything the plan writes anew. Before the commit: a full disk then
/// shows while nothing has changed.
pub fn reserve(plan: &Plan, disk: &dyn Disk) -> Result<bool, DiskError> {
    let mut ranges: Vec<Range> = plan
        .steps()
        .iter()
        // Words whose bits change lie in tables that were read, thus are there.
        .filter(|s| matches!(s, Step::Write { .. } | Step::Fill { .. }))
        .filter_map(Step::span)
        .map(|(start, end)| Range { offset: start, length: end - start })
        .collect();
    ranges.sort_unstable();
    let mut joined: Vec<Range> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.offset + last.length + NEAR >= range.offset => {
                let end = (range.offset + range.length).max(last.offset + last.length);
                last.length = end - last.offset;
            }
            _ => joined.push(range),
        }
    }
    let result = disk.reserve(&joined);
    if result.is_err() {
        // Best effort: what was set aside past the end goes back; the error that counts is the
        // one at hand.
        let _ = disk.release_reserve();
    }
    result
}

/// Where to carry a plan on after a crash: the phase whose write of the seal's word is what the
/// image has there now. `None`: the image does not bear the seal, the plan is void.
///
/// Not from the first phase: that would set the switch back under reference counts that have
/// moved on, and a second crash there would leave less counted than there is. That phase itself
/// is done again, because its write may not have been durable yet.
pub fn resume_at(plan: &Plan, disk: &dyn Disk) -> Result<Resume, DiskError> {
    let Some(seal) = plan.seal() else {
        // Who wrote meanwhile cannot be known.
        return Ok(if plan.is_empty() { Resume::Void } else { Resume::Foreign });
    };
    let size = disk.size()?;
    let mut word = [0; 8];
    if seal.offset.checked_add(8).is_none_or(|end| end > size) {
        return Ok(Resume::Void);
    }
    disk.read_at(seal.offset, &mut word)?;
    if u64::from_be_bytes(word) & seal.bits != seal.bits {
        return Ok(Resume::Void);
    }
    for (phase, (_, steps)) in plan.phases().enumerate() {
        for step in steps {
            let Step::Write { offset, data } = step else { continue };
            let end = offset.saturating_add(data.len() as u64);
            if *offset > seal.offset || end < seal.offset + 8 || end > size {
                continue;
            }
            let mut now = vec![0; data.len()];
            disk.read_at(*offset, &mut now)?;
            if now == *data {
                return Ok(Resume::From(phase));
            }
        }
    }
    Ok(Resume::Foreign)
}

/// What a crash left of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The image does not bear the seal: the plan never began, ended, or was overtaken.
    Void,
    /// It goes on from this phase.
    From(usize),
    /// The image bears the seal, but in bytes that this plan never wrote.
    Foreign,
}

/// Carries the plan out. `progress` is told bytes done and bytes in all, from any thread.
pub fn execute(
    plan: &Plan,
    disk: &dyn Disk,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Report, ExecuteError> {
    execute_phases(plan, 0..plan.phases().count(), Redo::No, disk, progress)
}

/// Whether a phase may have been carried out in part before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Redo {
    /// It is the first time.
    No,
    /// After a crash or a failed flush. What the cache shows need not be on the disk, so that
    /// words which are as they should be are written all the same.
    Yes,
}

/// The same for some of its phases.
pub fn execute_phases(
    plan: &Plan,
    phases: std::ops::Range<usize>,
    redo: Redo,
    disk: &dyn Disk,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Report, ExecuteError> {
    let total = plan.steps().iter().filter_map(Step::span).map(|(s, e)| e - s).sum();
    let done = AtomicU64::new(0);
    let mut report = Report::default();
    for (phase, (title, steps)) in plan.phases().enumerate() {
        if !phases.contains(&phase) {
            continue;
        }
        let fail = |source| ExecuteError { phase, title: title.to_owned(), source };
        run_phase(steps, redo, disk, &mut report, &|n| {
            progress(done.fetch_add(n, Ordering::Relaxed) + n, total);
        })
        .map_err(fail)?;
        disk.flush().map_err(fail)?;
        report.flushes += 1;
    }
    Ok(report)
}

/// A piece of work: part of one step.
struct Piece {
    step: usize,
    start: u64,
    end: u64,
}

fn run_phase(
    steps: &[Step],
    redo: Redo,
    disk: &dyn Disk,
    report: &mut Report,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(), DiskError> {
    for step in steps {
        if let Step::Extend { size } = step {
            disk.extend(*size)?;
        }
    }
    let mut pieces = Vec::new();
    let mut bytes = 0;
    for (i, step) in steps.iter().enumerate() {
        let Some((start, end)) = step.span() else { continue };
        bytes += end - start;
        let mut at = start;
        while at < end {
            // Pieces end on multiples of PIECE, so that words and pages are not cut.
            let next = (at / PIECE + 1).saturating_mul(PIECE).min(end);
            pieces.push(Piece { step: i, start: at, end: next });
            at = next;
        }
    }
    pieces.sort_unstable_by_key(|p| p.start);
    // Asking how many processors there are reads files; small phases need not.
    let threads = if bytes < BYTES_FOR_THREADS {
        1
    } else {
        std::thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX))
    };
    let behind = threads > 1 && bytes / pieces.len().max(1) as u64 >= BYTES_FOR_BEHIND;
    let (written, read) = (AtomicU64::new(0), AtomicU64::new(0));
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<DiskError>> = Mutex::new(None);
    // Threads take runs of neighbouring pieces, so that small tables do not fight over the
    // counter and each thread reads ahead of itself.
    let batch = (pieces.len() / (threads * 8)).clamp(1, 64);
    let work = || {
        let mut buffer = Vec::new();
        loop {
            let first = next.fetch_add(batch, Ordering::Relaxed);
            if first >= pieces.len() {
                return;
            }
            let mine = &pieces[first..(first + batch).min(pieces.len())];
            let mut any_written = false;
            for piece in mine {
                match do_piece(&steps[piece.step], piece, redo, disk, &mut buffer) {
                    Ok((w, r)) => {
                        any_written |= w > 0;
                        written.fetch_add(w, Ordering::Relaxed);
                        read.fetch_add(r, Ordering::Relaxed);
                        progress(piece.end - piece.start);
                    }
                    Err(error) => {
                        next.store(pieces.len(), Ordering::Relaxed);
                        if let Ok(mut slot) = failed.lock() {
                            slot.get_or_insert(error);
                        }
                        return;
                    }
                }
            }
            // The storage works while the next batch is changed, not only once all is.
            if let ([first, .., last], true) = (mine, any_written && behind) {
                disk.write_behind(Range { offset: first.start, length: last.end - first.start });
            }
        }
    };
    if threads > 1 && pieces.len() > 1 {
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
    } else {
        work();
    }
    report.written += written.into_inner();
    report.read += read.into_inner();
    match failed.into_inner().unwrap_or(None) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Bytes written and read.
fn do_piece(
    step: &Step,
    piece: &Piece,
    redo: Redo,
    disk: &dyn Disk,
    buffer: &mut Vec<u8>,
) -> Result<(u64, u64), DiskError> {
    let length = piece.end - piece.start;
    match step {
        Step::Write { offset, data } => {
            let part = &data[(piece.start - offset) as usize..(piece.end - offset) as usize];
            disk.write_at(piece.start, part)?;
            Ok((length, 0))
        }
        Step::Fill { .. } => {
            buffer.resize(length as usize, 0);
            step.apply(piece.start, buffer);
            disk.write_at(piece.start, buffer)?;
            Ok((length, 0))
        }
        Step::Mask(mask) => {
            buffer.resize(length as usize, 0);
            disk.read_at(piece.start, buffer)?;
            if !mask.apply(piece.start, buffer) && redo == Redo::No {
                return Ok((0, length));
            }
            disk.write_at(piece.start, buffer)?;
            Ok((length, length))
        }
        _ => Ok((0, 0)),
    }
}
