//! An opened image: its header, its refcount table, and checked reads.

use std::cell::RefCell;

use snapslot_plugin_sdk::{Failure, Image};

use crate::blocks::Blocks;
use crate::header::{Header, REFCOUNT_TABLE_BYTES_MAX, be64};
use crate::refcounts::entries_per_block;
use crate::snapshots::Snapshots;
use crate::{corrupt, unsupported};

/// The contract lets one read be this long.
const READ_MAX: u64 = 8 << 20;

/// Bits of an L1 entry and of a refcount table entry that are an offset.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const REFCOUNT_TABLE_MASK: u64 = !0x1ff;
/// An L1 or L2 entry whose cluster has exactly one reference.
pub(crate) const COPIED: u64 = 1 << 63;
const L1_RESERVED: u64 = !(OFFSET_MASK | COPIED);

pub(crate) struct Volume<'a> {
    pub image: &'a dyn Image,
    pub header: Header,
    pub file_size: u64,
    /// One past the last cluster that a reference may name: the file's end, rounded up.
    clusters: u64,
    /// Offsets of the refcount blocks; 0 for none.
    pub refcount_table: Vec<u64>,
    /// Refcount blocks read so far.
    pub blocks: RefCell<Blocks>,
    pub snapshots: Snapshots,
}

impl<'a> Volume<'a> {
    /// Opens an image to look at it: reference counts are not read.
    pub fn open_to_look(image: &'a dyn Image) -> Result<Self, Failure> {
        let header = Header::read(image)?;
        let file_size = image.size();
        let mut volume = Volume {
            image,
            file_size,
            clusters: file_size.div_ceil(header.cluster_size()),
            header,
            refcount_table: Vec::new(),
            blocks: RefCell::default(),
            snapshots: Snapshots::default(),
        };
        volume.snapshots = Snapshots::read(&volume)?;
        Ok(volume)
    }

    /// Opens an image with its refcount table.
    pub fn open(image: &'a dyn Image) -> Result<Self, Failure> {
        let mut volume = Volume::open_to_look(image)?;
        volume.read_refcount_table()?;
        Ok(volume)
    }

    pub fn cluster_size(&self) -> u64 {
        self.header.cluster_size()
    }

    /// One past the last cluster that a reference may name: the file's end, rounded up.
    pub fn clusters(&self) -> u64 {
        self.clusters
    }

    /// Clusters that hold `bytes` bytes.
    pub fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// Where the image's own tables lie, but for refcount blocks: offsets and lengths in bytes of the header,
    /// the refcount table, the L1 tables and the snapshot table.
    fn own_tables(&self) -> impl Iterator<Item = (u64, u64)> {
        let f = &self.header.fields;
        let l1s =
            (self.snapshots.entries.iter()).map(|e| (e.l1_table_offset, u64::from(e.l1_size) * 8));
        let refcounts = u64::from(f.refcount_table_clusters) << self.header.cluster_bits;
        [
            (0, self.cluster_size()),
            (f.refcount_table_offset, refcounts),
            (f.l1_table_offset, u64::from(f.l1_size) * 8),
            (f.snapshots_offset, self.snapshots.length),
        ]
        .into_iter()
        .chain(l1s)
    }

    /// The clusters of the image's own tables, ascending: the header, the refcount structures, the
    /// L1 tables and the snapshot table. Two of them in one place are refused.
    pub fn own_clusters(&self) -> Result<Vec<u64>, Failure> {
        let bits = self.header.cluster_bits;
        let blocks = self.refcount_table.iter().filter(|b| **b != 0).map(|b| (*b, 1 << bits));
        let mut clusters = Vec::new();
        for (offset, length) in self.own_tables().chain(blocks) {
            let first = offset >> bits;
            let end = first.checked_add(self.clusters_for(length));
            match end.filter(|end| *end <= self.clusters || length == 0) {
                Some(end) => clusters.extend(first..end),
                None => {
                    let what = format!("a table is said to be at {offset}, past the image's end");
                    return Err(corrupt("table", what));
                }
            }
        }
        clusters.sort_unstable();
        if let Some(pair) = clusters.windows(2).find(|pair| pair[0] == pair[1]) {
            let what = format!("two of the image's own tables are at {}", pair[0] << bits);
            return Err(corrupt("overlap", what));
        }
        Ok(clusters)
    }

    /// Refuses L2 tables that are said to lie where the image has another table of its own: what such a one
    /// lists changes with that.
    pub fn refuse_overlaid(&self, l1: &[u64]) -> Result<(), Failure> {
        let mut own: Vec<_> = self.own_tables().filter(|(_, length)| *length > 0).collect();
        own.sort_unstable();
        for at in l1.iter().map(|e| e & OFFSET_MASK).filter(|at| *at != 0) {
            // Nothing begins within the L2 table's cluster, and what begins before it ends before it.
            let next =
                own.partition_point(|(start, _)| *start < at.saturating_add(self.cluster_size()));
            let last =
                own[..next].last().map_or(0, |(start, length)| start.saturating_add(*length));
            if last > at {
                return Err(corrupt(
                    "overlap",
                    format!("an L2 table is said to be at {at}, in another table"),
                ));
            }
        }
        Ok(())
    }

    /// Reads `length` bytes, in as many calls as that takes.
    pub fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Failure> {
        if offset.checked_add(length).is_none_or(|end| end > self.file_size) {
            let what = format!("{length} bytes at {offset} are past the image's end");
            return Err(corrupt("truncated", what));
        }
        if length <= READ_MAX {
            return self.image.read_at(offset, length as u32);
        }
        let mut all = Vec::with_capacity(length as usize);
        let mut at = 0;
        while at < length {
            let part = READ_MAX.min(length - at);
            all.extend_from_slice(&self.image.read_at(offset + at, part as u32)?);
            at += part;
        }
        Ok(all)
    }

    fn read_refcount_table(&mut self) -> Result<(), Failure> {
        // What the longest refcount table can count; also keeps indexes within 32 bits.
        if self.clusters.div_ceil(entries_per_block(self)) > REFCOUNT_TABLE_BYTES_MAX / 8 {
            return Err(unsupported(
                "too-long",
                format!(
                    "the file has {} bytes, more than its reference counts can cover",
                    self.file_size
                ),
            ));
        }
        let f = &self.header.fields;
        let length = u64::from(f.refcount_table_clusters) << self.header.cluster_bits;
        let bytes = self.read(f.refcount_table_offset, length)?;
        let mut table: Vec<u64> =
            bytes.as_chunks::<8>().0.iter().map(|w| u64::from_be_bytes(*w)).collect();
        while table.last() == Some(&0) {
            table.pop();
        }
        for (i, entry) in table.iter().enumerate() {
            let inside = entry & !REFCOUNT_TABLE_MASK == 0
                && entry % self.cluster_size() == 0
                && entry.checked_add(self.cluster_size()).is_some_and(|end| end <= self.file_size);
            if *entry != 0 && !inside {
                let what = format!("refcount block {i} is said to be at {entry}");
                return Err(corrupt("refcount-block", what));
            }
        }
        let mut sorted: Vec<u64> = table.iter().copied().filter(|e| *e != 0).collect();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|p| p[0] == p[1]) {
            let what = format!("two refcount blocks are said to be at {}", pair[0]);
            return Err(corrupt("refcount-block", what));
        }
        self.refcount_table = table;
        Ok(())
    }

    /// An L1 table as offsets of L2 tables (0 for none) with their COPIED bits.
    pub fn read_l1(&self, offset: u64, entries: u32) -> Result<Vec<u64>, Failure> {
        if entries == 0 {
            return Ok(Vec::new());
        }
        let length = u64::from(entries) * 8;
        if !offset.is_multiple_of(self.cluster_size())
            || offset == 0
            || offset.checked_add(length).is_none_or(|end| end > self.file_size)
        {
            return Err(corrupt("l1-offset", format!("an L1 table is said to be at {offset}")));
        }
        let bytes = self.read(offset, length)?;
        let table: Vec<u64> =
            bytes.as_chunks::<8>().0.iter().map(|w| u64::from_be_bytes(*w)).collect();
        for (i, entry) in table.iter().enumerate() {
            let at = entry & OFFSET_MASK;
            let inside =
                at.checked_add(self.cluster_size()).is_some_and(|end| end <= self.file_size);
            if entry & L1_RESERVED != 0
                || !at.is_multiple_of(self.cluster_size())
                || (at != 0 && !inside)
            {
                let what = format!("entry {i} of the L1 table at {offset} is {entry:#x}");
                return Err(corrupt("l1-entry", what));
            }
        }
        let mut sorted: Vec<u64> =
            table.iter().map(|e| e & OFFSET_MASK).filter(|e| *e != 0).collect();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|p| p[0] == p[1]) {
            let what = format!("the L1 table at {offset} names the L2 table at {} twice", pair[0]);
            return Err(corrupt("l1-entry", what));
        }
        Ok(table)
    }

    /// The active L1 table.
    pub fn active_l1(&self) -> Result<Vec<u64>, Failure> {
        self.read_l1(self.header.fields.l1_table_offset, self.header.fields.l1_size)
    }

    /// The word at `at` of a table read before.
    pub fn word(bytes: &[u8], at: usize) -> u64 {
        be64(bytes, at)
    }
}

/// Bytes of an L1 table.
pub(crate) fn l1_bytes(table: &[u64]) -> Vec<u8> {
    table.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}
