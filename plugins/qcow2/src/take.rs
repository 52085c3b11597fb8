//! Take: the active tables become shared with a new snapshot.
//!
//! Every cluster the active tables name gets one reference more, every COPIED bit goes off, and
//! a copy of the L1 table is listed in a new snapshot table. Cost: each L2 table and refcount
//! block of the active disk is read and written once.

use snapslot_plugin_sdk::{Failure, FailureKind, Mask, NewSnapshot, Plan};

use crate::draft::{Counting, Draft, Room, Turn};
use crate::free::{Free, Run};
use crate::refcounts::{Counts, max_count};
use crate::tables::{self, Visit};
use crate::unsupported;
use crate::volume::{COPIED, OFFSET_MASK, Volume, l1_bytes};

pub(crate) fn plan(
    volume: &Volume<'_>,
    new: &NewSnapshot,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let snapshots = &volume.snapshots;
    if snapshots.entries.iter().any(|e| e.mark().as_ref() == Some(&new.mark)) {
        return Ok(()); // reached already
    }
    if max_count(volume) < 2 {
        return Err(unsupported(
            "refcount-overflow",
            "the image counts references with 1 bit, so no cluster can be shared and no \
             snapshot made; `qemu-img amend` or `convert` with -o refcount_bits=16 helps",
        ));
    }
    let fields = &volume.header.fields;
    let bits = volume.header.cluster_bits;
    let active = volume.active_l1()?;

    let mut free = Free::new(volume);
    let l1_copy = match active.len() {
        0 => 0,
        n => free.take(volume.clusters_for(n as u64 * 8))?,
    };
    let table = snapshots.with_new(new, l1_copy << bits, fields.l1_size, fields.size)?;
    let table_at = free.take(volume.clusters_for(table.len() as u64))?;
    let room = Room::make(volume, free)?;

    let mut after = fields.clone();
    after.nb_snapshots += 1;
    after.snapshots_offset = table_at << bits;
    let mut unused: Vec<Run> = room.switch_table(volume, &mut after).into_iter().collect();
    if snapshots.length > 0 {
        unused.push((fields.snapshots_offset >> bits, volume.clusters_for(snapshots.length)));
    }

    let mut draft = Draft::new(plan);
    draft.seal(volume, fields)?;
    draft.barrier("mark the image as being changed")?;
    room.draft(volume, &mut draft)?;
    let shared: Vec<u64> = active.iter().map(|e| e & !COPIED).collect();
    if !shared.is_empty() {
        draft.write_new(volume, l1_copy, &l1_bytes(&shared))?;
    }
    draft.write_new(volume, table_at, &table)?;
    if active.iter().any(|e| e & COPIED != 0) {
        draft.mask(Mask {
            offset: fields.l1_table_offset,
            count: fields.l1_size,
            stride: 8,
            clear: COPIED,
            set: 0,
            select: Vec::new(),
        })?;
    }

    let mut up = |counts: &mut Counts<'_>, draft: &mut Draft<'_>, turn: Turn| {
        share_active(volume, &active, counts, draft, turn.first)
    };
    let mut down = |_: &mut Counts<'_>, _: &mut Draft<'_>, _: Turn| Ok(());
    let header = &volume.header;
    let counting = Counting { volume, room: &room, unused: &unused, doubles: true };
    if unused.is_empty() {
        counting.run(&mut draft, &mut up, |d| d.barrier("count and share"), None)?;
        draft.write(0, &header.plain_sector(&after))?;
        return draft.barrier("name the snapshot in the header");
    }
    let (sealed, _) = header.sealed_sector(&after)?;
    let switch = |d: &mut Draft<'_>| {
        d.barrier("count and share")?;
        d.write(0, &sealed)?;
        d.barrier("name the snapshot in the header")
    };
    counting.run(&mut draft, &mut up, switch, Some(&mut down))?;
    draft.barrier("free the old tables")?;
    draft.unseal(volume, &after)
}

/// One reference more for all that the active tables name; COPIED off where it is on.
fn share_active(
    volume: &Volume<'_>,
    active: &[u64],
    counts: &mut Counts<'_>,
    draft: &mut Draft<'_>,
    first: bool,
) -> Result<(), Failure> {
    let bits = volume.header.cluster_bits;
    let stride = volume.header.l2_entry_size() as u32;
    let mut l2: Vec<(usize, u64)> = (active.iter().enumerate())
        .map(|(i, e)| (i, e & OFFSET_MASK))
        .filter(|(_, offset)| *offset != 0)
        .collect();
    tables::for_each(volume, &mut l2, |index, offset, table| {
        counts.add(offset >> bits, 1, active[index] & COPIED != 0)?;
        let mut share = Share { counts, any_copied: false };
        tables::walk(volume, table, &mut share).map_err(|f| f.with("l1-index", index))?;
        if share.any_copied && first {
            draft.mask(Mask {
                offset,
                count: (table.len() / stride as usize) as u32,
                stride,
                clear: COPIED,
                set: 0,
                select: Vec::new(),
            })?;
        }
        Ok(())
    })
}

struct Share<'c, 'v> {
    counts: &'c mut Counts<'v>,
    any_copied: bool,
}

impl Visit for Share<'_, '_> {
    fn run(&mut self, _: u64, length: u64, cluster: u64, copied: bool) -> Result<(), Failure> {
        self.any_copied |= copied;
        self.counts.add(cluster, length, copied)
    }

    fn packed(&mut self, _: u64, first: u64, last: u64) -> Result<(), Failure> {
        self.counts.add(first, last - first + 1, false)
    }
}

/// What restore says where the sizes differ and the format cannot follow.
pub(crate) fn size_differs(now: u64, then: u64) -> Failure {
    Failure::new(
        FailureKind::Unsupported,
        "v2-resized",
        format!(
            "the disk had {then} bytes when the snapshot was taken and has {now} now, and an image \
             of version 2 cannot be resized while it holds snapshots; \
             `qemu-img amend -o compat=1.1` makes it version 3"
        ),
    )
    .with("size", now)
    .with("snapshot-size", then)
}
