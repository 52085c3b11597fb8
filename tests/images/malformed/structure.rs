//! Damage to what the tables say about one another.

use snapslot_test_support::{SplitMix64, setting};

use super::Damage;
use crate::{be32, be64};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the tables of a sound image are.
struct Map {
    cluster: u64,
    l1: u64,
    l1_size: u64,
    l2: u64,
    data: u64,
    table: u64,
    block: u64,
    snapshots: u64,
    snapshot_l1: u64,
    end: u64,
}

impl Map {
    fn of(sound: &[u8]) -> Map {
        let l1 = be64(sound, 40);
        let table = be64(sound, 48);
        let snapshots = be64(sound, 64);
        let l2 = be64(sound, l1 as usize) & OFFSET;
        Map {
            cluster: 1 << be32(sound, 20),
            l1,
            l1_size: u64::from(be32(sound, 36)),
            l2,
            data: be64(sound, l2 as usize) & OFFSET,
            table,
            block: be64(sound, table as usize) & OFFSET,
            snapshots,
            snapshot_l1: be64(sound, snapshots as usize),
            end: (sound.len() as u64).next_multiple_of(1 << be32(sound, 20)),
        }
    }

    /// Places an entry must not point at.
    fn bad_places(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("the header", 0),
            ("the active L1", self.l1),
            ("an active L2", self.l2),
            ("the refcount table", self.table),
            ("a refcount block", self.block),
            ("the snapshot table", self.snapshots),
            ("a snapshot's L1", self.snapshot_l1),
            ("a data cluster", self.data),
            ("the end of the file", self.end),
            ("beyond the end", self.end + 1000 * self.cluster),
            ("the last place there is", OFFSET & !(self.cluster - 1)),
            ("nowhere aligned", self.data + 512),
        ]
    }
}

fn set64(sound: &[u8], at: u64, value: u64) -> Vec<u8> {
    let mut bytes = sound.to_vec();
    bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
    bytes
}

/// Entries of every table, each pointing at every place it must not.
pub(super) fn pointers(sound: &[u8]) -> Vec<Damage> {
    let map = Map::of(sound);
    let mut damages = Vec::new();
    let mut entry = |what: &str, at: u64, flags: u64| {
        for (place, offset) in map.bad_places() {
            let name = format!("{what} points at {place}");
            damages.push(Damage::new(name, set64(sound, at, offset | flags)));
        }
        for (reserved, bit) in [("bit 1", 1_u64 << 1), ("bit 8", 1 << 8), ("bit 56", 1 << 56)] {
            let name = format!("{what} has reserved {reserved} set");
            let value = be64(sound, at as usize) | bit;
            damages.push(Damage::new(name, set64(sound, at, value)));
        }
    };
    entry("the first active L1 entry", map.l1, COPIED);
    entry("the second active L1 entry", map.l1 + 8, 0);
    entry("the first active L2 entry", map.l2, COPIED);
    entry("the second active L2 entry, shared,", map.l2 + 8, 0);
    entry("the first refcount table entry", map.table, 0);
    entry("the second refcount table entry", map.table + 8, 0);
    entry("the foreign snapshot's first L1 entry", map.snapshot_l1, 0);
    entry("the foreign snapshot's record", map.snapshots, 0);
    for (what, at) in [("active L1", map.l1), ("active L2", map.l2)] {
        for (how, value) in [
            ("at the end of the file", COMPRESSED | (sound.len() as u64 - 1)),
            ("of the greatest length", COMPRESSED | (0x3f << 56) | map.data),
            ("with every bit set", COMPRESSED | !COPIED),
            ("with COPIED", COMPRESSED | COPIED | map.data),
        ] {
            let name = format!("the first {what} entry is compressed {how}");
            damages.push(Damage::new(name, set64(sound, at, value)));
        }
    }
    let same = be64(sound, map.l1 as usize);
    let two = "two active L1 entries share an L2 without counting it";
    damages.push(Damage::new(two, set64(sound, map.l1 + 8, same)));
    let same = be64(sound, map.l2 as usize);
    let two = "two active L2 entries share a cluster without counting it";
    damages.push(Damage::new(two, set64(sound, map.l2 + 16, same)));
    damages
}

/// Refcounts, of 16 bits here.
pub(super) fn counts(sound: &[u8]) -> Vec<Damage> {
    let map = Map::of(sound);
    let mut damages = Vec::new();
    let places = [
        ("the header", 0),
        ("the active L1", map.l1),
        ("an active L2", map.l2),
        ("the refcount table", map.table),
        ("a refcount block", map.block),
        ("the snapshot table", map.snapshots),
        ("a snapshot's L1", map.snapshot_l1),
        ("a data cluster", map.data),
    ];
    for (what, offset) in places {
        for count in [0_u16, 1, 2, 3, 4, 0x7fff, 0x8000, 0xfffe, 0xffff] {
            let at = (map.block + offset / map.cluster * 2) as usize;
            if sound[at..at + 2] == count.to_be_bytes() {
                continue;
            }
            let mut bytes = sound.to_vec();
            bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
            damages.push(Damage::new(format!("{what} is counted {count} times"), bytes));
        }
    }
    for (how, fill) in [("zero", 0), ("at the most", 0xff)] {
        let mut bytes = sound.to_vec();
        bytes[map.block as usize..(map.block + map.cluster) as usize].fill(fill);
        damages.push(Damage::new(format!("every count is {how}"), bytes));
    }
    // Counts for clusters beyond the end: an allocator that trusts them finds nothing free.
    let mut bytes = sound.to_vec();
    let past = map.block as usize + sound.len() / map.cluster as usize * 2 + 2;
    bytes[past..(map.block + map.cluster) as usize].fill(1);
    damages.push(Damage::new("everything beyond the end is counted", bytes));
    damages
}

pub(super) fn truncations(sound: &[u8]) -> Vec<Damage> {
    let map = Map::of(sound);
    let mut lengths = vec![0, 1, 4, 8, 24, 71, 72, 73, 103, 104, 105, 112, 119, 511, 512, 513];
    for place in [map.l1, map.l2, map.table, map.block, map.snapshots, map.snapshot_l1, map.data] {
        lengths.extend([place, place + 1, place + 8, place + map.cluster - 1]);
    }
    let end = sound.len() as u64;
    lengths.extend([end / 2, end - 1, end - 511, end - 512, end - map.cluster]);
    lengths.extend([(end - 1) & !(map.cluster - 1), end & !511]);
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
pub(super) fn garbage(sound: &[u8]) -> Vec<Damage> {
    let map = Map::of(sound);
    let seed = setting("SNAPSLOT_TEST_SEED", 0x6172_6261);
    let mut random = SplitMix64::new(seed);
    let mut damages = Vec::new();
    let tables = [
        ("the header", 0, 112),
        ("the header's extensions", 112, 200),
        ("the active L1", map.l1, map.l1_size * 8),
        ("an active L2", map.l2, map.cluster),
        ("the refcount table", map.table, map.cluster),
        ("a refcount block", map.block, map.cluster),
        ("the snapshot table", map.snapshots, 128),
        ("a snapshot's L1", map.snapshot_l1, 24),
    ];
    for (what, at, length) in tables {
        let range = at as usize..(at + length) as usize;
        for n in 0..4 {
            let mut bytes = sound.to_vec();
            let noise = match n {
                0 => vec![0; range.len()],
                1 => vec![0xff; range.len()],
                _ => random.bytes(range.len()),
            };
            bytes[range.clone()].copy_from_slice(&noise);
            if at == 0 {
                // Recognizable still, or nothing looks further.
                bytes[..8].copy_from_slice(&sound[..8]);
            }
            damages.push(Damage::new(format!("{what} is noise {n} (seed {seed})"), bytes));
        }
        for _ in 0..8 {
            let mut bytes = sound.to_vec();
            let at = range.start + random.below(range.len() as u64) as usize;
            let bit = random.below(8);
            bytes[at] ^= 1 << bit;
            damages.push(Damage::new(format!("{what}, bit {bit} of byte {at} flipped"), bytes));
        }
    }
    // The image is its own backing file.
    let mut bytes = sound.to_vec();
    let name = b"disk.qcow2";
    let at = be64(sound, 8) as usize;
    bytes[at..at + name.len()].copy_from_slice(name);
    bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
    let name = "the backing file is the image itself".to_owned();
    damages.push(Damage { name, bytes, meaningful: false });
    damages
}
