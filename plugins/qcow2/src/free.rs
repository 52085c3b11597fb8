//! Free clusters.
//!
//! Looks from the end of the image backwards: what an earlier snapshot gave back is usually
//! there, so that taking and deleting for ever reuses the same clusters. Only when no run is
//! long enough is the image grown.

use snapslot_plugin_sdk::Failure;

use crate::blocks::block;
use crate::corrupt;
use crate::refcounts::{decode, entries_per_block};
use crate::volume::Volume;

/// A run of clusters: first and how many.
pub(crate) type Run = (u64, u64);

/// Runs remembered (4 MiB of them). Beyond that, those too short for what is sought are let go: an image can have
/// a hundred million, and they are only ever a place for something small.
const RUNS_MAX: usize = 1 << 18;

pub(crate) struct Free<'v> {
    volume: &'v Volume<'v>,
    /// Blocks below this index are not searched yet.
    unsearched: usize,
    /// Found so far, from the highest down, as they are found. None touches another.
    runs: Vec<Run>,
    /// No run is longer than this.
    longest: u64,
    /// The first cluster that was never used.
    end: u64,
    /// What has been given out.
    taken: Vec<Run>,
}

impl<'v> Free<'v> {
    pub fn new(volume: &'v Volume<'v>) -> Self {
        let per_block = entries_per_block(volume);
        let blocks = volume.clusters().div_ceil(per_block).min(volume.refcount_table.len() as u64);
        Free {
            volume,
            unsearched: blocks as usize,
            runs: Vec::new(),
            longest: 0,
            end: volume.clusters(),
            taken: Vec::new(),
        }
    }

    /// All runs given out.
    pub fn taken(&self) -> &[Run] {
        &self.taken
    }

    /// One past the last cluster of the image with what was given out.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// A run of `count` clusters, one at least, that nothing refers to.
    pub fn take(&mut self, count: u64) -> Result<u64, Failure> {
        let start = loop {
            if let Some(start) = self.lowest(count) {
                break start;
            }
            if self.unsearched > 0 {
                self.unsearched -= 1;
                self.search(self.unsearched, count)?;
                continue;
            }
            // Free clusters at the very end are part of the new run.
            let tail = self.runs.iter().position(|run| run.1 > 0 && run.0 + run.1 == self.end);
            let start = tail.map_or(self.end, |i| self.runs.remove(i).0);
            self.end = start + count;
            break start;
        };
        self.refuse_used(start, count)?;
        self.taken.push((start, count));
        Ok(start)
    }

    /// The first clusters of the lowest run that is long enough: that keeps the image short.
    fn lowest(&mut self, count: u64) -> Option<u64> {
        if count > self.longest {
            return None;
        }
        let Some(i) = self.runs.iter().rposition(|run| run.1 >= count) else {
            self.longest = count - 1;
            return None;
        };
        let run = &mut self.runs[i];
        let start = run.0;
        *run = (run.0 + count, run.1 - count);
        while self.runs.last().is_some_and(|run| run.1 == 0) {
            self.runs.pop();
        }
        Some(start)
    }

    /// Adds the free runs of a block, joined with the one right behind it. `wanted` is sought.
    fn search(&mut self, index: usize, wanted: u64) -> Result<(), Failure> {
        let per_block = entries_per_block(self.volume);
        let base = index as u64 * per_block;
        let limit = per_block.min(self.end.saturating_sub(base));
        let Some(bytes) = block(self.volume, index as u64)? else {
            // Not even counted. The file's own bytes there are nobody's; using them would need
            // a new block, so they come last: leave them.
            return Ok(());
        };
        let order = self.volume.header.refcount_order;
        if order == 4 {
            // Most blocks of a full image have nothing free: one look without decoding.
            let pairs = bytes.as_chunks::<2>().0.iter();
            if !pairs.fold(false, |free, pair| free | (u16::from_ne_bytes(*pair) == 0)) {
                return Ok(());
            }
        }
        let values = decode(&bytes, order)?;
        let mut at = limit as usize;
        while at > 0 {
            let used = values[..at].iter().rev().take_while(|v| **v != 0).count();
            at -= used;
            let free = values[..at].iter().rev().take_while(|v| **v == 0).count();
            at -= free;
            if free > 0 {
                let (start, length) = (base + at as u64, free as u64);
                self.found(start, length, wanted);
            }
        }
        Ok(())
    }

    /// A run below all found before.
    fn found(&mut self, start: u64, length: u64, wanted: u64) {
        let full = self.runs.len() >= RUNS_MAX;
        let run = match self.runs.last_mut() {
            Some(last) if last.1 > 0 && last.0 == start + length => (start, length + last.1),
            Some(last) if full && last.1 < wanted => (start, length),
            _ => {
                self.longest = self.longest.max(length);
                return self.runs.push((start, length));
            }
        };
        self.longest = self.longest.max(run.1);
        if let Some(last) = self.runs.last_mut() {
            *last = run;
        }
    }

    /// A count of zero must be true at least of the tables we know.
    fn refuse_used(&self, start: u64, count: u64) -> Result<(), Failure> {
        let v = self.volume;
        let f = &v.header.fields;
        let bits = v.header.cluster_bits;
        let end = start + count;
        let overlaps = |offset: u64, bytes: u64| {
            bytes > 0 && (offset >> bits) < end && (offset + bytes - 1) >> bits >= start
        };
        let used = start == 0
            || overlaps(f.l1_table_offset, u64::from(f.l1_size) * 8)
            || overlaps(f.refcount_table_offset, u64::from(f.refcount_table_clusters) << bits)
            || overlaps(f.snapshots_offset, v.snapshots.length)
            || v.refcount_table.iter().any(|b| *b != 0 && overlaps(*b, 1 << bits))
            || v.snapshots
                .entries
                .iter()
                .any(|e| overlaps(e.l1_table_offset.min(v.file_size), u64::from(e.l1_size) * 8));
        if used {
            return Err(corrupt("refcount-zero", "the image counts one of its own tables as free"));
        }
        Ok(())
    }
}
