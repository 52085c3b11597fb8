//! The plan being drafted: small steps are gathered, and the phases every verb shares.

use snapslot_plugin_sdk::{Failure, Fill, Mask, Plan};

use crate::free::{Free, Run};
use crate::header::{Fields, REFCOUNT_TABLE_BYTES_MAX, STAMP};
use crate::refcounts::{Counts, encode, entries_per_block, windows};
use crate::unsupported;
use crate::volume::Volume;

/// Steps are handed over in batches of this many.
const BATCH: usize = 4096;
/// Or once their selections have this many bytes.
const BATCH_BYTES: usize = 1 << 20;

pub(crate) struct Draft<'p> {
    plan: &'p mut dyn Plan,
    masks: Vec<Mask>,
    mask_bytes: usize,
    fills: Vec<Fill>,
}

impl<'p> Draft<'p> {
    pub fn new(plan: &'p mut dyn Plan) -> Self {
        Draft { plan, masks: Vec::new(), mask_bytes: 0, fills: Vec::new() }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        self.plan.write(offset, data)
    }

    pub fn fill(&mut self, fill: Fill) -> Result<(), Failure> {
        if let Some(last) = self.fills.last_mut()
            && last.offset + last.length == fill.offset
            && last.pattern == fill.pattern
        {
            last.length += fill.length;
            return Ok(());
        }
        self.fills.push(fill);
        if self.fills.len() >= BATCH { self.hand_over() } else { Ok(()) }
    }

    /// Changes bits; a run that goes on where the last one ended becomes part of it.
    pub fn mask(&mut self, mask: Mask) -> Result<(), Failure> {
        if let Some(last) = self.masks.last_mut()
            && last.select.is_empty()
            && mask.select.is_empty()
            && last.offset + u64::from(last.count) * u64::from(last.stride) == mask.offset
            && (last.stride, last.clear, last.set) == (mask.stride, mask.clear, mask.set)
            && let Some(count) = last.count.checked_add(mask.count)
        {
            last.count = count;
            return Ok(());
        }
        self.mask_bytes += mask.select.len();
        self.masks.push(mask);
        if self.masks.len() >= BATCH || self.mask_bytes >= BATCH_BYTES {
            self.hand_over()
        } else {
            Ok(())
        }
    }

    fn hand_over(&mut self) -> Result<(), Failure> {
        self.mask_bytes = 0;
        if !self.fills.is_empty() {
            self.plan.fill(std::mem::take(&mut self.fills))?;
        }
        if !self.masks.is_empty() {
            self.plan.mask(std::mem::take(&mut self.masks))?;
        }
        Ok(())
    }

    pub fn extend(&mut self, size: u64) -> Result<(), Failure> {
        self.plan.extend(size)
    }

    pub fn barrier(&mut self, title: &str) -> Result<(), Failure> {
        self.hand_over()?;
        self.plan.barrier(title)
    }

    /// Declares the seal and writes the sealed header with these fields.
    pub fn seal(&mut self, volume: &Volume<'_>, fields: &Fields) -> Result<(), Failure> {
        let (sector, stamp_at) = volume.header.sealed_sector(fields)?;
        self.plan.seal(stamp_at, STAMP)?;
        self.write(0, &sector)
    }

    /// The last phase: the header with these fields, the seal off.
    pub fn unseal(&mut self, volume: &Volume<'_>, fields: &Fields) -> Result<(), Failure> {
        self.write(0, &volume.header.plain_sector(fields))?;
        self.barrier("mark the image as whole")
    }

    /// Clusters that hold bytes, written; the rest of the last one stays as it is.
    pub fn write_new(
        &mut self,
        volume: &Volume<'_>,
        cluster: u64,
        data: &[u8],
    ) -> Result<(), Failure> {
        self.write(cluster << volume.header.cluster_bits, data)
    }
}

/// New clusters and the room to count them.
pub(crate) struct Room {
    /// Every new cluster.
    pub new: Vec<Run>,
    /// One past the last cluster of the image afterwards.
    pub end: u64,
    /// New refcount blocks: index and cluster.
    blocks: Vec<(u64, u64)>,
    /// A new refcount table: first cluster and entries.
    table: Option<(u64, Vec<u64>)>,
}

impl Room {
    /// Makes sure that everything given out can be counted; gives out more for that if needed.
    pub fn make(volume: &Volume<'_>, mut free: Free<'_>) -> Result<Room, Failure> {
        let per_block = entries_per_block(volume);
        let old_entries = (u64::from(volume.header.fields.refcount_table_clusters)
            << volume.header.cluster_bits)
            / 8;
        let exists = |i: u64| volume.refcount_table.get(i as usize).is_some_and(|b| *b != 0);
        let mut blocks: Vec<(u64, u64)> = Vec::new();
        let mut table: Option<(u64, u64)> = None;
        loop {
            let needed = free
                .taken()
                .iter()
                .flat_map(|(start, count)| start / per_block..=(start + count - 1) / per_block);
            let missing =
                needed.filter(|i| !exists(*i) && blocks.iter().all(|(b, _)| b != i)).min();
            if let Some(index) = missing {
                blocks.push((index, free.take(1)?));
                continue;
            }
            // A table that is full by now moves to a larger place, with half as much again.
            let highest = blocks.iter().map(|(i, _)| i + 1).max().unwrap_or(0);
            let entries = table
                .map_or(old_entries, |(_, clusters)| (clusters << volume.header.cluster_bits) / 8);
            if highest <= entries {
                break;
            }
            if table.is_some() {
                return Err(unsupported("refcount-table", "the refcount table cannot grow enough"));
            }
            let bytes = ((highest + highest / 2) * 8).min(REFCOUNT_TABLE_BYTES_MAX);
            if highest * 8 > bytes {
                return Err(unsupported(
                    "refcount-table",
                    "the refcount table is as long as it can be",
                ));
            }
            let clusters = volume.clusters_for(bytes);
            table = Some((free.take(clusters)?, clusters));
        }
        let table = table.map(|(start, clusters)| {
            let mut entries = volume.refcount_table.clone();
            entries.resize(((clusters << volume.header.cluster_bits) / 8) as usize, 0);
            for (index, cluster) in &blocks {
                entries[*index as usize] = cluster << volume.header.cluster_bits;
            }
            (start, entries)
        });
        let mut new = free.taken().to_vec();
        new.sort_unstable();
        Ok(Room { new, end: free.end(), blocks, table })
    }

    /// The phase that makes room: the file's length, new refcount blocks, a new table.
    pub fn draft(&self, volume: &Volume<'_>, draft: &mut Draft<'_>) -> Result<(), Failure> {
        let bits = volume.header.cluster_bits;
        if self.end << bits > volume.file_size {
            draft.extend(self.end << bits)?;
        }
        let per_block = entries_per_block(volume);
        for (index, cluster) in &self.blocks {
            let mut values = vec![0; per_block as usize];
            let base = index * per_block;
            for (start, count) in &self.new {
                for c in (*start).max(base)..(start + count).min(base + per_block) {
                    values[(c - base) as usize] = 1;
                }
            }
            draft.write_new(volume, *cluster, &encode(&values, volume.header.refcount_order))?;
        }
        if let Some((start, entries)) = &self.table {
            let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
            draft.write_new(volume, *start, &bytes)?;
        }
        if !self.blocks.is_empty() {
            draft.barrier("make room for reference counts")?;
            if self.table.is_none() {
                for (index, cluster) in &self.blocks {
                    let entry = (cluster << bits).to_be_bytes();
                    draft.write(volume.header.fields.refcount_table_offset + index * 8, &entry)?;
                }
            }
        }
        Ok(())
    }

    /// Puts a new refcount table into the header; returns the old one's clusters, to be freed.
    pub fn switch_table(&self, volume: &Volume<'_>, fields: &mut Fields) -> Option<Run> {
        let (start, entries) = self.table.as_ref()?;
        let old = (
            fields.refcount_table_offset >> volume.header.cluster_bits,
            u64::from(fields.refcount_table_clusters),
        );
        fields.refcount_table_offset = start << volume.header.cluster_bits;
        fields.refcount_table_clusters = volume.clusters_for(entries.len() as u64 * 8) as u32;
        Some(old)
    }
}

/// Which of the windows it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Turn {
    /// The first, in which what has nothing to do with counts is emitted.
    pub first: bool,
    /// The last, by which everything has been seen.
    pub last: bool,
}

/// A pass over the tables that changes counts, for one window of them.
pub(crate) type Pass<'f> =
    &'f mut dyn FnMut(&mut Counts<'_>, &mut Draft<'_>, Turn) -> Result<(), Failure>;

/// Drafts the two counting phases of a plan with a switch between them.
///
/// `up` adds references before the switch; `down` takes them away after it, then those of the
/// clusters in `unused` go. Where the counts do not fit into memory at once, both run once for
/// each window of them. While they run, the image's own tables and the new clusters are claimed:
/// an entry that points there is found out before anything is committed.
pub(crate) struct Counting<'a, 'v> {
    pub volume: &'a Volume<'v>,
    pub room: &'a Room,
    /// Clusters that nobody needs after the switch.
    pub unused: &'a [Run],
    /// Whether `up` adds every reference of the active disk once.
    pub doubles: bool,
}

impl Counting<'_, '_> {
    pub fn run(
        &self,
        draft: &mut Draft<'_>,
        up: Pass<'_>,
        switch: impl FnOnce(&mut Draft<'_>) -> Result<(), Failure>,
        down: Option<Pass<'_>>,
    ) -> Result<(), Failure> {
        let windows = windows(self.volume, self.room.end);
        let tables = self.volume.own_clusters()?;
        let mut with_new = tables.clone();
        with_new.extend(self.room.new.iter().flat_map(|(start, count)| *start..start + count));
        with_new.sort_unstable();
        let mut kept = None;
        for (i, window) in windows.iter().enumerate() {
            let mut counts = Counts::new(self.volume, window.clone());
            let turn = Turn { first: i == 0, last: i + 1 == windows.len() };
            self.up(&mut counts, draft, up, &tables, turn)?;
            counts.emit(draft, self.doubles)?;
            kept = Some(counts);
        }
        switch(draft)?;
        let Some(down) = down else { return Ok(()) };
        for (i, window) in windows.iter().enumerate() {
            let mut counts = match kept.take().filter(|_| windows.len() == 1) {
                Some(counts) => counts,
                None => {
                    // Nothing but the counts is wanted of this pass: as the first left them.
                    let mut counts = Counts::new(self.volume, window.clone());
                    let turn = Turn { first: false, last: false };
                    self.up(&mut counts, &mut Draft::new(&mut Discard), up, &tables, turn)?;
                    counts
                }
            };
            counts.settle();
            counts.claim(with_new.clone());
            down(&mut counts, draft, Turn { first: i == 0, last: i + 1 == windows.len() })?;
            counts.unclaim();
            for (start, length) in self.unused {
                counts.sub(*start, *length, 1, |_, _| ())?;
            }
            counts.emit(draft, false)?;
        }
        Ok(())
    }

    fn up(
        &self,
        counts: &mut Counts<'_>,
        draft: &mut Draft<'_>,
        up: &mut dyn FnMut(&mut Counts<'_>, &mut Draft<'_>, Turn) -> Result<(), Failure>,
        tables: &[u64],
        turn: Turn,
    ) -> Result<(), Failure> {
        counts.claim(tables.to_vec());
        up(counts, draft, turn)?;
        counts.unclaim();
        (self.room.new.iter()).try_for_each(|(start, length)| counts.set_new(*start, *length))
    }
}

/// A plan that forgets.
struct Discard;

impl Plan for Discard {
    fn write(&mut self, _: u64, _: &[u8]) -> Result<(), Failure> {
        Ok(())
    }
    fn fill(&mut self, _: Vec<Fill>) -> Result<(), Failure> {
        Ok(())
    }
    fn mask(&mut self, _: Vec<Mask>) -> Result<(), Failure> {
        Ok(())
    }
    fn extend(&mut self, _: u64) -> Result<(), Failure> {
        Ok(())
    }
    fn act(&mut self, _: &str, _: &[snapslot_plugin_sdk::Argument]) -> Result<(), Failure> {
        Ok(())
    }
    fn save(&mut self, _: &snapslot_plugin_sdk::NewSnapshot) -> Result<(), Failure> {
        Ok(())
    }
    fn put_back(&mut self, _: &str) -> Result<(), Failure> {
        Ok(())
    }
    fn discard(&mut self, _: &str) -> Result<(), Failure> {
        Ok(())
    }
    fn note(&mut self, _: &str) -> Result<(), Failure> {
        Ok(())
    }
    fn barrier(&mut self, _: &str) -> Result<(), Failure> {
        Ok(())
    }
    fn seal(&mut self, _: u64, _: u64) -> Result<(), Failure> {
        Ok(())
    }
}
