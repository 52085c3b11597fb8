//! Delete: the snapshot is forgotten, then what only it named is free.
//!
//! The header forgets the snapshot first; from then on its references are leaks at worst. Then
//! every cluster its tables name has one reference less, and where one is left that is the
//! active disk's, the COPIED bit goes on again.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use snapslot_plugin_sdk::{Failure, Mask, Plan};

use crate::draft::{Counting, Draft, Room, Turn};
use crate::free::{Free, Run};
use crate::refcounts::Counts;
use crate::restore::{Parting, for_each_parting, part};
use crate::tables::{self, COMPRESSED, Visit};
use crate::volume::{COPIED, OFFSET_MASK, Volume};

pub(crate) fn plan(
    volume: &Volume<'_>,
    identity: &str,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let Ok((index, snapshot)) = volume.snapshots.find(identity) else {
        return Ok(()); // gone already
    };
    let header = &volume.header;
    let fields = &header.fields;
    let bits = header.cluster_bits;
    let active = volume.active_l1()?;
    let kept = volume.read_l1(snapshot.l1_table_offset, snapshot.l1_size)?;

    let mut free = Free::new(volume);
    let table = volume.snapshots.without(index);
    let mut after = fields.clone();
    after.nb_snapshots -= 1;
    after.snapshots_offset = 0;
    if !table.is_empty() {
        after.snapshots_offset = free.take(volume.clusters_for(table.len() as u64))? << bits;
    }
    let room = Room::make(volume, free)?;
    let mut unused: Vec<Run> = room.switch_table(volume, &mut after).into_iter().collect();
    unused.push((fields.snapshots_offset >> bits, volume.clusters_for(volume.snapshots.length)));
    if snapshot.l1_size > 0 {
        let length = volume.clusters_for(u64::from(snapshot.l1_size) * 8);
        unused.push((snapshot.l1_table_offset >> bits, length));
    }

    let mut draft = Draft::new(plan);
    let (sealed, _) = header.sealed_sector(&after)?;
    if table.is_empty() {
        // Nothing to prepare: the seal and the switch are one write.
        draft.seal(volume, &after)?;
    } else {
        draft.seal(volume, fields)?;
        draft.barrier("mark the image as being changed")?;
        room.draft(volume, &mut draft)?;
        draft.write(after.snapshots_offset, &table)?;
    }
    let mut up = |_: &mut Counts<'_>, _: &mut Draft<'_>, _: Turn| Ok(());
    let mut gathered = Gathered::default();
    let mut down = |counts: &mut Counts<'_>, draft: &mut Draft<'_>, turn: Turn| {
        gathered.whole = turn.first && turn.last;
        release(volume, &active, &kept, counts, draft, &mut gathered)?;
        if turn.last { gathered.emit(draft) } else { Ok(()) }
    };
    let switch = |d: &mut Draft<'_>| {
        if !table.is_empty() {
            d.barrier("write the new snapshot table")?;
            d.write(0, &sealed)?;
        }
        d.barrier("forget the snapshot in the header")
    };
    Counting { volume, room: &room, unused: &unused, doubles: false }.run(
        &mut draft,
        &mut up,
        switch,
        Some(&mut down),
    )?;
    draft.barrier("free what only the snapshot held")?;
    draft.unseal(volume, &after)
}

/// One reference less for all that the snapshot names; COPIED on where the active disk is alone.
fn release(
    volume: &Volume<'_>,
    active: &[u64],
    kept: &[u64],
    counts: &mut Counts<'_>,
    draft: &mut Draft<'_>,
    gathered: &mut Gathered,
) -> Result<(), Failure> {
    let bits = volume.header.cluster_bits;
    let l1_at = volume.header.fields.l1_table_offset;
    let partings = part(active, kept);
    let mut shared: Vec<(usize, u64)> = (kept.iter().enumerate())
        .map(|(i, e)| (i, e & OFFSET_MASK))
        .filter(|(i, at)| *at != 0 && active.get(*i).is_some_and(|a| a & OFFSET_MASK == *at))
        .collect();
    // Tables both have: at least two references each, and to all they name.
    let mut alone: Vec<usize> = Vec::new();
    tables::for_each(volume, &mut shared, |index, offset, table| {
        counts.sub(offset >> bits, 1, 2, |_, _| alone.push(index))?;
        let mut bits = Bits::new(volume, offset, table.len());
        tables::walk(volume, table, &mut Release { counts, alone: &mut bits, least: 2 })?;
        gathered.take(bits, draft)
    })?;
    alone.sort_unstable();
    for run in alone.chunk_by(|a, b| a + 1 == *b) {
        draft.mask(Mask {
            offset: l1_at + run[0] as u64 * 8,
            count: run.len() as u32,
            stride: 8,
            clear: 0,
            set: COPIED,
            select: Vec::new(),
        })?;
    }
    for_each_parting(volume, &partings, |parting, of_active, of_kept| {
        release_parted(volume, parting, (of_active, of_kept), counts, draft, gathered)
    })
}

/// The same where the two have tables of their own, which may name the same clusters.
fn release_parted(
    volume: &Volume<'_>,
    (_, active_at, kept_at): &Parting,
    (active, kept): (&[u8], &[u8]),
    counts: &mut Counts<'_>,
    draft: &mut Draft<'_>,
    gathered: &mut Gathered,
) -> Result<(), Failure> {
    if *kept_at == 0 {
        return verify(volume, *active_at, active, counts);
    }
    counts.sub(kept_at >> volume.header.cluster_bits, 1, 1, |_, _| ())?;
    // Where one reference is left, by the snapshot's entries ...
    let mut ones = Bits::new(volume, 0, kept.len());
    tables::walk(volume, kept, &mut Release { counts, alone: &mut ones, least: 1 })?;
    if *active_at == 0 {
        return Ok(());
    }
    // ... it is the active disk's if its entry names the same cluster.
    let stride = volume.header.l2_entry_size() as usize;
    let mut bits = Bits::new(volume, *active_at, active.len());
    for i in ones.indexes() {
        let at = i as usize * stride;
        let (a, k) = (Volume::word(active, at), Volume::word(kept, at));
        let same = a & COMPRESSED == 0 && a & OFFSET_MASK != 0 && (a ^ k) & OFFSET_MASK == 0;
        if same && a & COPIED == 0 {
            bits.set(i, 1);
        }
    }
    gathered.take(bits, draft)?;
    verify(volume, *active_at, active, counts)
}

/// What only the active disk names must be counted still.
fn verify(
    volume: &Volume<'_>,
    at: u64,
    table: &[u8],
    counts: &mut Counts<'_>,
) -> Result<(), Failure> {
    counts.verify(at >> volume.header.cluster_bits, 1)?;
    tables::walk(volume, table, &mut Verify { counts })
}

struct Verify<'c, 'v> {
    counts: &'c mut Counts<'v>,
}

impl Visit for Verify<'_, '_> {
    fn run(&mut self, _: u64, length: u64, cluster: u64, _: bool) -> Result<(), Failure> {
        self.counts.verify(cluster, length)
    }

    fn packed(&mut self, _: u64, first: u64, last: u64) -> Result<(), Failure> {
        self.counts.verify(first, last - first + 1)
    }
}

struct Release<'c, 'v> {
    counts: &'c mut Counts<'v>,
    alone: &'c mut Bits,
    least: u16,
}

impl Visit for Release<'_, '_> {
    fn run(&mut self, index: u64, length: u64, cluster: u64, _: bool) -> Result<(), Failure> {
        let alone = &mut *self.alone;
        self.counts.sub(cluster, length, self.least, |at, n| alone.set(index + at, n))
    }

    fn packed(&mut self, _: u64, first: u64, last: u64) -> Result<(), Failure> {
        // A compressed cluster never has the COPIED bit.
        self.counts.sub(first, last - first + 1, self.least, |_, _| ())
    }
}

/// Entries found in several windows of the counts: two selections of one table would touch the
/// same bytes, so each table's are gathered and emitted once. At most 1/64 of the tables.
#[derive(Default)]
struct Gathered {
    /// One window shows everything: nothing needs gathering.
    whole: bool,
    tables: BTreeMap<u64, (Bits, Vec<u8>)>,
}

impl Gathered {
    fn take(&mut self, bits: Bits, draft: &mut Draft<'_>) -> Result<(), Failure> {
        if self.whole {
            return bits.emit(draft);
        }
        if bits.runs.is_empty() {
            return Ok(());
        }
        let select = bits.select();
        match self.tables.entry(bits.offset) {
            Entry::Vacant(new) => {
                new.insert((bits, select));
            }
            Entry::Occupied(mut old) => {
                for (into, from) in old.get_mut().1.iter_mut().zip(select) {
                    *into |= from;
                }
            }
        }
        Ok(())
    }

    fn emit(&mut self, draft: &mut Draft<'_>) -> Result<(), Failure> {
        std::mem::take(&mut self.tables)
            .into_values()
            .try_for_each(|(bits, select)| draft.mask(bits.mask(0, bits.entries, select)))
    }
}

/// Entries of one L2 table, as runs.
struct Bits {
    offset: u64,
    stride: u32,
    entries: u32,
    /// Ascending, not touching.
    runs: Vec<(u64, u64)>,
}

impl Bits {
    fn new(volume: &Volume<'_>, offset: u64, bytes: usize) -> Self {
        let stride = volume.header.l2_entry_size() as u32;
        Bits { offset, stride, entries: bytes as u32 / stride, runs: Vec::new() }
    }

    fn set(&mut self, index: u64, length: u64) {
        match self.runs.last_mut() {
            Some(last) if last.0 + last.1 == index => last.1 += length,
            _ => self.runs.push((index, length)),
        }
    }

    fn indexes(&self) -> impl Iterator<Item = u64> {
        self.runs.iter().flat_map(|(start, length)| *start..start + length)
    }

    fn mask(&self, first: u64, count: u32, select: Vec<u8>) -> Mask {
        Mask {
            offset: self.offset + first * u64::from(self.stride),
            count,
            stride: self.stride,
            clear: 0,
            set: COPIED,
            select,
        }
    }

    fn select(&self) -> Vec<u8> {
        let mut select = vec![0; self.entries.div_ceil(8) as usize];
        for i in self.indexes() {
            select[(i / 8) as usize] |= 1 << (i % 8);
        }
        select
    }

    /// COPIED on for these entries: a few runs as such, many as a selection.
    fn emit(&self, draft: &mut Draft<'_>) -> Result<(), Failure> {
        if self.runs.len() > 4 {
            return draft.mask(self.mask(0, self.entries, self.select()));
        }
        (self.runs.iter()).try_for_each(|(start, length)| {
            draft.mask(self.mask(*start, *length as u32, Vec::new()))
        })
    }
}
