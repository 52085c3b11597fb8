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

pub(crate) struct Free<'v> {
    volume: &'v Volume<'v>,
    /// Blocks below this index are not searched yet.
    unsearched: usize,
    runs: Vec<Run>,
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

    /// A run of `count` clusters that nothing refers to.
    pub fn take(&mut self, count: u64) -> Result<u64, Failure> {
        let start = loop {
            // The lowest of those found: keeps the image short.
            let fitting = self.runs.iter().enumerate().filter(|(_, run)| run.1 >= count);
            if let Some((i, _)) = fitting.min_by_key(|(_, run)| run.0) {
                let run = &mut self.runs[i];
                let start = run.0;
                *run = (run.0 + count, run.1 - count);
                break start;
            }
            if self.unsearched > 0 {
                self.unsearched -= 1;
                self.search(self.unsearched)?;
                continue;
            }
            // Free clusters at the very end are part of the new run.
            let tail = self.runs.iter().position(|run| run.1 > 0 && run.0 + run.1 == self.end);
            let start = tail.map_or(self.end, |i| self.runs.swap_remove(i).0);
            self.end = start + count;
            break start;
        };
        self.refuse_used(start, count)?;
        self.taken.push((start, count));
        Ok(start)
    }

    /// Adds the free runs of a block, joined with those right behind it.
    fn search(&mut self, index: usize) -> Result<(), Failure> {
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
                match self.runs.iter_mut().find(|run| run.0 == start + length && run.1 > 0) {
                    Some(next) => *next = (start, next.1 + length),
                    None => self.runs.push((start, length)),
                }
            }
        }
        Ok(())
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
