//! Damage to what the tables say about one another.

use super::{Damage, be32, be64};
use crate::rng::Rng;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the tables of a sound image are; 0 for what it has none of.
struct Map {
    cluster: u64,
    l1: u64,
    l1_size: u64,
    l2: u64,
    data: u64,
    table: u64,
    block: u64,
    /// Bytes of a count.
    count: u64,
    snapshots: u64,
    snapshot_l1: u64,
    end: u64,
}

impl Map {
    fn of(sound: &[u8]) -> Map {
        // What is no image has a map all the same.
        let cluster = 1 << be32(sound, 20).clamp(9, 21);
        let l1 = be64(sound, 40);
        let table = be64(sound, 48);
        let snapshots = if be32(sound, 60) == 0 { 0 } else { be64(sound, 64) };
        let l2 = be64(sound, l1 as usize) & OFFSET;
        let order = if be32(sound, 4) >= 3 { be32(sound, 96) } else { 4 };
        let end = (sound.len() as u64).next_multiple_of(cluster);
        // Outside the file there is nothing to damage.
        let within = |at: u64| if at.saturating_add(cluster) <= end { at } else { 0 };
        Map {
            cluster,
            l1: within(l1),
            l1_size: u64::from(be32(sound, 36)).min(cluster / 8),
            l2: within(l2),
            data: within(be64(sound, l2 as usize) & OFFSET),
            table: within(table),
            block: within(be64(sound, table as usize) & OFFSET),
            count: (1 << order.min(6)) / 8,
            snapshots: within(snapshots),
            snapshot_l1: if snapshots == 0 { 0 } else { within(be64(sound, snapshots as usize)) },
            end,
        }
    }

    /// Places an entry must not point at.
    fn bad_places(&self) -> Vec<(&'static str, u64)> {
        let mut places = vec![
            ("the active L1", self.l1),
            ("an active L2", self.l2),
            ("the refcount table", self.table),
            ("a refcount block", self.block),
            ("the snapshot table", self.snapshots),
            ("a snapshot's L1", self.snapshot_l1),
            ("a data cluster", self.data),
        ];
        places.retain(|(_, at)| *at != 0);
        places.extend([
            ("the header", 0),
            ("the end of the file", self.end),
            ("beyond the end", self.end + 1000 * self.cluster),
            ("the last place there is", OFFSET & !(self.cluster - 1)),
            ("nowhere aligned", self.data + 512),
        ]);
        places
    }
}

/// The image with another word in it; none if it has no such place, or holds that already.
fn set64(sound: &[u8], at: u64, value: u64) -> Option<Vec<u8>> {
    let mut bytes = sound.to_vec();
    let at = usize::try_from(at).ok()?;
    let room = bytes.get_mut(at..at.checked_add(8)?)?;
    if at == 0 || *room == value.to_be_bytes() {
        return None;
    }
    room.copy_from_slice(&value.to_be_bytes());
    Some(bytes)
}

/// Entries of every table, each pointing at every place it must not.
pub fn pointers(sound: &[u8]) -> Vec<Damage> {
    let map = Map::of(sound);
    let mut damages = Vec::new();
    let mut entry = |what: &str, table: u64, index: u64, flags: u64| {
        if table == 0 {
            return;
        }
        let at = table + 8 * index;
        for (place, offset) in map.bad_places() {
            let damaged = set64(sound, at, offset | flags);
            damages.extend(damaged.map(|b| Damage::new(format!("{what} points at {place}"), b)));
        }
        for (reserved, bit) in [("bit 1", 1_u64 << 1), ("bit 8", 1 << 8), ("bit 56", 1 << 56)] {
            let name = format!("{what} has reserved {reserved} set");
            let damaged = set64(sound, at, be64(sound, at as usize) | bit);
            damages.extend(damaged.map(|b| Damage::new(name, b)));
        }
    };
    entry("the first active L1 entry", map.l1, 0, COPIED);
    entry("the second active L1 entry", map.l1, 1, 0);
    entry("the first active L2 entry", map.l2, 0, COPIED);
    entry("the second active L2 entry, shared,", map.l2, 1, 0);
    entry("the first refcount table entry", map.table, 0, 0);
    entry("the second refcount table entry", map.table, 1, 0);
    entry("the first snapshot's first L1 entry", map.snapshot_l1, 0, 0);
    entry("the first snapshot's record", map.snapshots, 0, 0);
    let mut other = |name: &str, table: u64, index: u64, value: u64| {
        if table != 0 {
            let damaged = set64(sound, table + 8 * index, value);
            damages.extend(damaged.map(|b| Damage::new(name, b)));
        }
    };
    for (what, table) in [("active L1", map.l1), ("active L2", map.l2)] {
        for (how, value) in [
            ("at the end of the file", COMPRESSED | (sound.len() as u64).saturating_sub(1)),
            ("of the greatest length", COMPRESSED | (0x3f << 56) | map.data),
            ("with every bit set", COMPRESSED | !COPIED),
            ("with COPIED", COMPRESSED | COPIED | map.data),
        ] {
            other(&format!("the first {what} entry is compressed {how}"), table, 0, value);
        }
    }
    let two = "two active L1 entries share an L2 without counting it";
    other(two, map.l1, 1, be64(sound, map.l1 as usize));
    let two = "two active L2 entries share a cluster without counting it";
    other(two, map.l2, 2, be64(sound, map.l2 as usize));
    // Every cluster of the disk unpacks from the same few bytes.
    if map.l2 != 0 && map.data != 0 {
        let mut bytes = sound.to_vec();
        let range = map.l2 as usize..(map.l2 + map.cluster) as usize;
        if let Some(table) = bytes.get_mut(range) {
            for entry in table.as_chunks_mut::<8>().0 {
                *entry = (COMPRESSED | map.data).to_be_bytes();
            }
            damages.push(Damage::new("every cluster unpacks from the same bytes", bytes));
        }
    }
    damages
}

/// Refcounts that are too low, too high, at their limits.
pub fn counts(sound: &[u8]) -> Vec<Damage> {
    let map = Map::of(sound);
    let mut damages = Vec::new();
    let mut places = vec![
        ("the active L1", map.l1),
        ("an active L2", map.l2),
        ("the refcount table", map.table),
        ("a refcount block", map.block),
        ("the snapshot table", map.snapshots),
        ("a snapshot's L1", map.snapshot_l1),
        ("a data cluster", map.data),
    ];
    places.retain(|(_, at)| *at != 0);
    places.push(("the header", 0));
    if map.block == 0 || map.count == 0 {
        return damages;
    }
    let width = map.count as usize;
    let most = u64::MAX >> (64 - 8 * width);
    let top = most / 2;
    for (what, offset) in places {
        for count in [0, 1, 2, 3, 4, top, top + 1, most - 1, most] {
            let at = map.block + offset / map.cluster * map.count;
            let in_block = offset / map.cluster * map.count < map.cluster;
            let mut bytes = sound.to_vec();
            let range = at as usize..(at + map.count) as usize;
            let Some(room) = bytes.get_mut(range).filter(|_| in_block) else { continue };
            if *room == count.to_be_bytes()[8 - width..] {
                continue;
            }
            room.copy_from_slice(&count.to_be_bytes()[8 - width..]);
            damages.push(Damage::new(format!("{what} is counted {count} times"), bytes));
        }
    }
    let block = map.block as usize..(map.block + map.cluster) as usize;
    for (how, fill) in [("zero", 0), ("at the most", 0xff)] {
        let mut bytes = sound.to_vec();
        if let Some(room) = bytes.get_mut(block.clone()) {
            room.fill(fill);
            damages.push(Damage::new(format!("every count is {how}"), bytes));
        }
    }
    // Counts for clusters beyond the end: an allocator that trusts them finds nothing free.
    let past = block.start + (sound.len() / map.cluster as usize + 1) * width;
    let mut bytes = sound.to_vec();
    if let Some(room) = bytes.get_mut(past..block.end.max(past)).filter(|room| !room.is_empty()) {
        room.fill(1);
        damages.push(Damage::new("everything beyond the end is counted", bytes));
    }
    damages
}

/// The file cut at every place that means something, and something else at its end.
pub fn truncations(sound: &[u8]) -> Vec<Damage> {
    let map = Map::of(sound);
    let mut lengths = vec![0, 1, 4, 8, 24, 71, 72, 73, 103, 104, 105, 112, 119, 511, 512, 513];
    for place in [map.l1, map.l2, map.table, map.block, map.snapshots, map.snapshot_l1, map.data] {
        lengths.extend([place, place + 1, place + 8, place + map.cluster - 1]);
    }
    let end = sound.len() as u64;
    let last = end.saturating_sub(1);
    lengths.extend([end / 2, last, end.saturating_sub(511), end.saturating_sub(512)]);
    lengths.extend([end.saturating_sub(map.cluster), last & !(map.cluster - 1), end & !511]);
    lengths.retain(|length| *length < end);
    lengths.sort_unstable();
    lengths.dedup();
    let cut = |length: u64| {
        Damage::new(format!("cut to {length} of {end} bytes"), sound[..length as usize].to_vec())
    };
    let mut damages: Vec<Damage> = lengths.into_iter().map(cut).collect();
    for more in [1, 511, 512, 4096, 1 << 20] {
        let mut bytes = sound.to_vec();
        bytes.extend(std::iter::repeat_n(0xa5, more));
        damages.push(Damage::new(format!("{more} bytes of something else at the end"), bytes));
    }
    damages
}

/// Whole tables of noise, loops, and single bits.
pub fn garbage(sound: &[u8], seed: u64) -> Vec<Damage> {
    let map = Map::of(sound);
    let mut random = Rng::new(seed);
    let mut damages = Vec::new();
    let mut tables = vec![
        ("the active L1", map.l1, map.l1_size * 8),
        ("an active L2", map.l2, map.cluster),
        ("the refcount table", map.table, map.cluster),
        ("a refcount block", map.block, map.cluster),
        ("the snapshot table", map.snapshots, 128),
        ("a snapshot's L1", map.snapshot_l1, 24),
    ];
    tables.retain(|(_, at, _)| *at != 0);
    tables.extend([("the header", 0, 112), ("the header's extensions", 112, 200)]);
    for (what, at, length) in tables {
        let end = (at + length).min(sound.len() as u64);
        if end <= at {
            continue;
        }
        let range = at as usize..end as usize;
        let mut add = |name: String, bytes: Vec<u8>| {
            if bytes != sound {
                damages.push(Damage::new(name, bytes));
            }
        };
        for n in 0..4 {
            let mut bytes = sound.to_vec();
            for byte in &mut bytes[range.clone()] {
                *byte = match n {
                    0 => 0,
                    1 => 0xff,
                    _ => random.next_u64() as u8,
                };
            }
            if at == 0 {
                // Recognizable still, or nothing looks further.
                bytes[..8.min(sound.len())].copy_from_slice(&sound[..8.min(sound.len())]);
            }
            add(format!("{what} is noise {n} (seed {seed})"), bytes);
        }
        let mut flipped = Vec::new();
        for _ in 0..8 {
            let at = range.start + random.below(range.len() as u64) as usize;
            let bit = random.below(8);
            if flipped.contains(&(at, bit)) {
                continue;
            }
            flipped.push((at, bit));
            let mut bytes = sound.to_vec();
            bytes[at] ^= 1 << bit;
            add(format!("{what}, bit {bit} of byte {at} flipped"), bytes);
        }
    }
    // The image is its own backing file.
    let name = b"disk.qcow2";
    let at = be64(sound, 8) as usize;
    let mut bytes = sound.to_vec();
    if let (true, Some(room)) = (at != 0, bytes.get_mut(at..at.saturating_add(name.len()))) {
        room.copy_from_slice(name);
        bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        let name = "the backing file is the image itself".to_owned();
        damages.push(Damage { name, bytes, meaningful: false });
    }
    damages
}
