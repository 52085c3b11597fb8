//! Restore: the active tables become the snapshot's again.
//!
//! Only where the two L1 tables name different L2 tables, and in those only entries that differ,
//! is anything counted: cost follows what changed since the take. The new L1 table is written to
//! fresh clusters and switched to by the header, with the disk's size, in one sector.
//!
//! Where the L1 tables agree there is nothing to do at all: the shared L2 tables and what they
//! name have two references and no COPIED bit, and keep them.

use std::cell::RefCell;

use snapslot_plugin_sdk::{Failure, Mask, Plan};

use crate::bitmaps;
use crate::corrupt;
use crate::draft::{Counting, Draft, Room, Turn};
use crate::free::{Free, Run};
use crate::refcounts::Counts;
use crate::tables::{Refers, refers};
use crate::take::size_differs;
use crate::volume::{COPIED, OFFSET_MASK, Volume, l1_bytes};

/// Where the two trees part: index in the L1 tables, active L2 offset, the snapshot's (0: none).
pub(crate) type Parting = (usize, u64, u64);

pub(crate) fn plan(
    volume: &Volume<'_>,
    identity: &str,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let (_, snapshot) = volume.snapshots.find(identity)?;
    let header = &volume.header;
    let fields = &header.fields;
    let bits = header.cluster_bits;
    let size = snapshot.disk_size.unwrap_or(fields.size);
    if size != fields.size && header.version == 2 {
        return Err(size_differs(fields.size, size));
    }
    let active = volume.active_l1()?;
    let kept = volume.read_l1(snapshot.l1_table_offset, snapshot.l1_size)?;
    let partings = part(&active, &kept);
    if partings.is_empty() && size == fields.size {
        return Ok(()); // as the snapshot is, to the byte
    }
    let needed = header.l1_entries_for(size).max(kept.len() as u64).max(1);
    if needed * 8 > crate::header::L1_BYTES_MAX {
        return Err(corrupt("snapshot-size", format!("the snapshot claims {size} bytes of disk")));
    }
    let mut l1: Vec<u64> = kept.iter().map(|e| e & !COPIED).collect();
    l1.resize(needed as usize, 0);

    let mut free = Free::new(volume);
    let l1_at = free.take(volume.clusters_for(needed * 8))?;
    let room = Room::make(volume, free)?;
    let mut after = fields.clone();
    after.size = size;
    after.l1_size = needed as u32;
    after.l1_table_offset = l1_at << bits;
    let mut unused: Vec<_> = room.switch_table(volume, &mut after).into_iter().collect();
    if fields.l1_size > 0 {
        let old = volume.clusters_for(u64::from(fields.l1_size) * 8);
        unused.push((fields.l1_table_offset >> bits, old));
    }

    let mut draft = Draft::new(plan);
    draft.seal(volume, fields)?;
    draft.barrier("mark the image as being changed")?;
    room.draft(volume, &mut draft)?;
    draft.write_new(volume, l1_at, &l1_bytes(&l1))?;
    bitmaps::mark_inconsistent(volume, &mut draft)?;

    let dropped = RefCell::new(Dropped::default());
    let mut up = |counts: &mut Counts<'_>, draft: &mut Draft<'_>, turn: Turn| {
        let mut dropped = dropped.borrow_mut();
        let gather = turn.first.then_some(&mut *dropped);
        adopt(volume, &partings, counts, draft, gather)
    };
    let mut down =
        |counts: &mut Counts<'_>, _: &mut Draft<'_>, _: Turn| match &dropped.borrow().runs {
            Some(runs) => (runs.iter())
                .try_for_each(|(start, length)| counts.sub(*start, *length, 1, |_, _| ())),
            None => drop_active(volume, &partings, counts),
        };
    let (sealed, _) = header.sealed_sector(&after)?;
    let switch = |d: &mut Draft<'_>| {
        d.barrier("count what comes back")?;
        d.write(0, &sealed)?;
        d.barrier("switch to the snapshot's tables")
    };
    Counting { volume, room: &room, unused: &unused, doubles: false }.run(
        &mut draft,
        &mut up,
        switch,
        Some(&mut down),
    )?;
    draft.barrier("free what the disk had since")?;
    draft.unseal(volume, &after)
}

/// Where two L1 tables name different L2 tables.
pub(crate) fn part(active: &[u64], kept: &[u64]) -> Vec<Parting> {
    let at = |table: &[u64], i: usize| table.get(i).map_or(0, |e| e & OFFSET_MASK);
    (0..active.len().max(kept.len()))
        .map(|i| (i, at(active, i), at(kept, i)))
        .filter(|(_, a, k)| a != k)
        .collect()
}

/// Calls `f` with both L2 tables of each parting; one that does not exist is all zeroes.
pub(crate) fn for_each_parting(
    volume: &Volume<'_>,
    partings: &[Parting],
    mut f: impl FnMut(&Parting, &[u8], &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let size = volume.cluster_size();
    let zeroes = vec![0; size as usize];
    // The partings of one read: 512 tables of 4 KiB, or one of each kind of 2 MiB.
    let batch = ((1 << 20) / size).max(1) as usize;
    for some in partings.chunks(batch) {
        let ranges: Vec<(u64, u32)> = (some.iter())
            .flat_map(|(_, a, k)| [*a, *k])
            .filter(|offset| *offset != 0)
            .map(|offset| (offset, size as u32))
            .collect();
        let bytes = volume.image.read_ranges(&ranges)?;
        let mut tables = bytes.chunks_exact(size as usize);
        let mut next = |offset: u64| match offset {
            0 => Ok(zeroes.as_slice()),
            _ => tables.next().ok_or_else(|| corrupt("l2-read", "a table could not be read")),
        };
        for parting in some {
            let active = next(parting.1)?;
            let kept = next(parting.2)?;
            f(parting, active, kept)?;
        }
    }
    Ok(())
}

/// Calls `f` with the index and both entries where two L2 tables differ in more than COPIED.
pub(crate) fn differing(
    stride: usize,
    active: &[u8],
    kept: &[u8],
    mut f: impl FnMut(usize, u64, u64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (a, k) = (active.as_chunks::<8>().0, kept.as_chunks::<8>().0);
    let words = stride / 8;
    let keep = (!COPIED).to_be();
    let mut i = 0;
    while i < a.len() {
        if words == 1 && i + 8 <= a.len() {
            let mut differs = 0;
            for j in 0..8 {
                differs |= u64::from_ne_bytes(a[i + j]) ^ u64::from_ne_bytes(k[i + j]);
            }
            if differs & keep == 0 {
                i += 8;
                continue;
            }
        }
        let stop = if words == 1 { (i + 8).min(a.len()) } else { i + words };
        while i < stop {
            let (x, y) = (u64::from_be_bytes(a[i]), u64::from_be_bytes(k[i]));
            let more = words == 2 && a[i + 1] != k[i + 1];
            if (x ^ y) & !COPIED != 0 || more {
                f(i / words, x, y)?;
            }
            i += words;
        }
    }
    Ok(())
}

/// Runs of clusters that lose a reference, as seen while the tables were read for what gains
/// one: so they need not be read a second time. `None` once there are too many to keep.
struct Dropped {
    runs: Option<Vec<Run>>,
}

/// 16 MiB of runs.
const DROPPED_MAX: usize = 1 << 20;

impl Default for Dropped {
    fn default() -> Self {
        Dropped { runs: Some(Vec::new()) }
    }
}

impl Dropped {
    fn add(&mut self, start: u64, length: u64) {
        match &mut self.runs {
            Some(runs) if runs.len() < DROPPED_MAX => runs.push((start, length)),
            runs => *runs = None,
        }
    }
}

/// One reference more for all that comes back. With `gather`, the first time: notes what goes,
/// and clears COPIED bits that another program left.
fn adopt(
    volume: &Volume<'_>,
    partings: &[Parting],
    counts: &mut Counts<'_>,
    draft: &mut Draft<'_>,
    mut gather: Option<&mut Dropped>,
) -> Result<(), Failure> {
    let stride = volume.header.l2_entry_size();
    let bits = volume.header.cluster_bits;
    for_each_parting(volume, partings, |(_, active_at, kept_at), active, kept| {
        if *kept_at != 0 {
            counts.add(kept_at >> bits, 1, false)?;
            let firsts = kept.chunks_exact(stride as usize);
            let copied = firsts.filter(|e| e[0] & 0x80 != 0).count();
            if gather.is_some() && copied > 0 {
                // Cleared when it was shared; but another program may have been less careful.
                draft.mask(Mask {
                    offset: *kept_at,
                    count: (kept.len() as u64 / stride) as u32,
                    stride: stride as u32,
                    clear: COPIED,
                    set: 0,
                    select: Vec::new(),
                })?;
            }
        }
        if let Some(dropped) = gather.as_deref_mut().filter(|_| *active_at != 0) {
            dropped.add(active_at >> bits, 1);
        }
        differing(stride as usize, active, kept, |_, old, new| {
            let (old, new) = (refers(volume, old)?, refers(volume, new)?);
            if old == new && !matches!(new, Refers::Packed(..)) {
                // The same cluster, seen differently (reads as zeroes, other subclusters).
                return Ok(());
            }
            if let Some(dropped) = gather.as_deref_mut() {
                match old {
                    Refers::Nothing => {}
                    Refers::Cluster(cluster) => dropped.add(cluster, 1),
                    Refers::Packed(first, last) => dropped.add(first, last - first + 1),
                }
            }
            match new {
                Refers::Nothing => Ok(()),
                Refers::Cluster(cluster) => counts.add(cluster, 1, false),
                Refers::Packed(first, last) => counts.add(first, last - first + 1, false),
            }
        })
    })
}

/// One reference less for all that the disk had and the snapshot has not.
fn drop_active(
    volume: &Volume<'_>,
    partings: &[Parting],
    counts: &mut Counts<'_>,
) -> Result<(), Failure> {
    let stride = volume.header.l2_entry_size() as usize;
    for_each_parting(volume, partings, |(_, active_at, _), active, kept| {
        if *active_at == 0 {
            return Ok(());
        }
        counts.sub(active_at >> volume.header.cluster_bits, 1, 1, |_, _| ())?;
        differing(stride, active, kept, |_, old, new| {
            match (refers(volume, old)?, refers(volume, new)?) {
                (old, new) if old == new && !matches!(old, Refers::Packed(..)) => Ok(()),
                (Refers::Nothing, _) => Ok(()),
                (Refers::Cluster(cluster), _) => counts.sub(cluster, 1, 1, |_, _| ()),
                (Refers::Packed(first, last), _) => {
                    counts.sub(first, last - first + 1, 1, |_, _| ())
                }
            }
        })
    })
}
