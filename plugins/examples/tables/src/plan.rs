//! What is written, and in which order. Every plan begins by setting the seal and ends by clearing it, each
//! by one write of the header.

use snapslot_plugin_sdk::{Failure, FailureKind, Fill, Image, Mask, NewSnapshot, Plan};

use crate::format::{BLOCK, Header, SEAL, SHARED, SNAPSHOTS, STATE_AT, Saved};

/// Sets the seal: from here on the plan is under way.
fn begin(header: &Header, plan: &mut dyn Plan) -> Result<(), Failure> {
    plan.seal(STATE_AT as u64, SEAL)?;
    plan.write(0, &Header { state: SEAL | 1, ..header.clone() }.bytes())?;
    plan.barrier("set the seal")
}

/// Writes entries into a free room. Nothing refers to it yet, so they may be half there after a crash.
fn new_table(
    image: &dyn Image,
    header: &Header,
    room: u64,
    entries: &[u64],
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let (start, end) = (header.room(room), header.room(room + 1));
    // All of an image may end before rooms that were never used.
    if image.size() < end {
        plan.extend(end)?;
    }
    let shared = |entry: &u64| if *entry == 0 { 0 } else { entry | SHARED };
    let bytes: Vec<u8> = entries.iter().flat_map(|e| shared(e).to_be_bytes()).collect();
    if !bytes.is_empty() {
        plan.write(start, &bytes)?;
    }
    plan.barrier("write the new table")
}

fn room_for_a_table(header: &Header) -> Result<u64, Failure> {
    header.free_room().ok_or_else(|| {
        Failure::new(FailureKind::Corrupt, "rooms", "there is no room for one more table")
    })
}

/// The table in use becomes the snapshot's; a copy of it, all blocks shared, is the one in use.
pub fn take(
    image: &dyn Image,
    header: &Header,
    new: &NewSnapshot,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    if header.saved.len() >= SNAPSHOTS {
        let what = format!("the image has {SNAPSHOTS} snapshots, and no room for more");
        return Err(Failure::new(FailureKind::Unsupported, "full", what));
    }
    let room = room_for_a_table(header)?;
    let entries = header.table(image, header.current)?;
    begin(header, plan)?;
    new_table(image, header, room, &entries, plan)?;
    let mut after = header.clone();
    after.saved.push(Saved {
        table: header.current,
        mark: new.mark.clone(),
        seconds: new.taken_seconds,
        nanoseconds: new.taken_nanoseconds,
    });
    after.current = room;
    plan.write(0, &after.bytes())?;
    plan.barrier("let the new table count, and clear the seal")
}

/// A copy of the snapshot's table, all blocks shared, is the one in use. What the machine wrote since is
/// nobody's then.
pub fn restore(
    image: &dyn Image,
    header: &Header,
    saved: &Saved,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let entries = header.table(image, saved.table)?;
    let now = header.table(image, header.current)?;
    if now.iter().zip(&entries).all(|(a, b)| a & !SHARED == b & !SHARED) {
        // It is as it was: the best plan is none.
        return Ok(());
    }
    let room = room_for_a_table(header)?;
    begin(header, plan)?;
    new_table(image, header, room, &entries, plan)?;
    plan.write(0, &Header { current: room, ..header.clone() }.bytes())?;
    plan.barrier("let the old table count, and clear the seal")
}

/// The snapshot does not count any more; only then are blocks that no other shares marked as that.
pub fn delete(
    image: &dyn Image,
    header: &Header,
    saved: &Saved,
    plan: &mut dyn Plan,
) -> Result<(), Failure> {
    let mut after = header.clone();
    after.saved.retain(|s| s.mark != saved.mark);
    let now = header.table(image, header.current)?;
    let others: Vec<Vec<u64>> =
        after.saved.iter().map(|s| header.table(image, s.table)).collect::<Result<_, _>>()?;
    begin(header, plan)?;
    // The state is another than before, so that the host knows after a crash how far it was.
    after.state = SEAL | 2;
    plan.write(0, &after.bytes())?;
    plan.barrier("take the snapshot out of the header")?;
    let mut select = vec![0_u8; now.len().div_ceil(8)];
    for (n, entry) in now.iter().enumerate() {
        let block = entry & !SHARED;
        let alone = others.iter().all(|other| other[n] & !SHARED != block);
        if entry & SHARED != 0 && alone {
            select[n / 8] |= 1 << (n % 8);
        }
    }
    if select.iter().any(|bits| *bits != 0) {
        plan.mask(vec![Mask {
            offset: header.room(header.current),
            count: u32::try_from(now.len()).unwrap_or(u32::MAX),
            stride: 8,
            clear: SHARED,
            set: 0,
            select,
        }])?;
    }
    // Nothing reads it any more; a table of zeroes shows that it is nobody's.
    let length = (header.blocks * 8).next_multiple_of(BLOCK);
    if length > 0 {
        plan.fill(vec![Fill { offset: header.room(saved.table), length, pattern: vec![0; 8] }])?;
    }
    plan.barrier("mark the blocks that nobody shares")?;
    plan.write(0, &Header { state: 0, ..after }.bytes())?;
    plan.barrier("clear the seal")
}
