//! What differs between two thin volumes, from the metadata of their pool alone.
//!
//! A pool's metadata (the kernel's `drivers/md/dm-thin-metadata.c` and `persistent-data/dm-btree`) is blocks of 4 KiB,
//! all numbers in little endian:
//!
//! ```text
//! block 0: superblock
//!    │ held root: a copy of the superblock at one moment, whose blocks stay as they are
//!    ▼
//! data mapping root: a tree, thin volume's number → root of its tree
//!    ▼
//! a tree per volume, block of the volume → block of the pool's data (40 bits), time it was mapped (24)
//! ```
//!
//! A snapshot begins with its origin's tree, and a tree is changed by copying the nodes on the way to what changes. So
//! nodes that both trees refer to are alike with all that is below them, and are not read: the cost follows what
//! changed since, not the volume's size.
//!
//! Every number is taken for hostile, every node is checked as the kernel does (its own number, its sum, its order).

use snapslot_plugin_sdk::stretches::Stretches;
use snapslot_plugin_sdk::{Change, Failure, FailureKind, Image, StretchPage};

use crate::unsupported;

const BLOCK: u64 = 4096;
/// Of the superblock.
const MAGIC: u64 = 27_022_010;
const SUPERBLOCK_SALT: u32 = 160_774;
/// Versions of the layout known here: the second is that of all kernels so far.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;
/// Of a node.
const NODE_SALT: u32 = 121_107;
const NODE_HEAD: usize = 32;
const INTERNAL: u32 = 1;
const LEAF: u32 = 2;
/// Nodes of the largest pool (16 GiB of metadata) are some four million; a node has 84 children at least, but for the root.
const DEPTH_MAX: u32 = 10;
/// Nodes of one level that are compared: what a disk of 2 TiB has whose every block of 64 KiB was written since.
const NODES_MAX: usize = 1 << 18;
/// Nodes read at once: 4 MiB.
const AT_ONCE: usize = 1024;

/// Lists what differs between the volumes of these numbers, each of so many bytes.
pub(crate) fn differences(
    metadata: &dyn Image,
    [then, now]: [(u64, u64); 2],
    found: Stretches,
) -> Result<StretchPage, Failure> {
    let pool = Pool::open(metadata)?;
    let (short, long) = (then.1.min(now.1), then.1.max(now.1));
    let mut found = found.up_to(long);
    let levels = pool.apart([then.0, now.0], found.cursor() / pool.chunk)?;
    let mut add = |block: u64, _: bool| {
        let start = block.saturating_mul(pool.chunk);
        if start < short {
            found.add(start, start.saturating_add(pool.chunk));
        }
        !found.is_full()
    };
    merge(levels.map(|level| Leaves::of(&pool, level)), u64::MAX, &mut add)?;
    found.add(short, long);
    Ok(found.into_page())
}

/// Counts what differs, from so many leaves of either tree at most. What the first of the two has where they differ is
/// held by it alone, unless other snapshots have it too.
pub(crate) fn change(
    metadata: &dyn Image,
    [then, now]: [(u64, u64); 2],
    leaves_max: usize,
) -> Result<Change, Failure> {
    let pool = Pool::open(metadata)?;
    let (short, long) = (then.1.min(now.1), then.1.max(now.1));
    let levels = pool.apart([then.0, now.0], 0)?;
    // Where the first leaf begins that is not read any more.
    let end = levels.iter().filter_map(|level| Some(level.get(leaves_max)?.0)).min();
    let mut change = Change { changed_bytes: 0, held_bytes: 0, at_least: end.is_some() };
    let mut add = |block: u64, in_first: bool| {
        let start = block.saturating_mul(pool.chunk);
        change.changed_bytes += pool.chunk.min(short.saturating_sub(start));
        change.held_bytes += if in_first { pool.chunk } else { 0 };
        true
    };
    let end = end.unwrap_or(u64::MAX);
    merge(levels.map(|level| Leaves::of(&pool, level)), end, &mut add)?;
    change.changed_bytes += long - short;
    Ok(change)
}

/// Every key before this one that one has and the other has not, or has with another place, and whether the first has
/// it; ends when no more is wanted.
fn merge(
    of: [Leaves<'_>; 2],
    end: u64,
    add: &mut dyn FnMut(u64, bool) -> bool,
) -> Result<(), Failure> {
    let [mut a, mut b] = of;
    loop {
        let (this, other) = (a.first()?, b.first()?);
        let key = [this, other].into_iter().flatten().map(|(key, _)| key).min();
        let Some(key) = key.filter(|key| *key < end) else { return Ok(()) };
        let (of_a, of_b) = (this.filter(|e| e.0 == key), other.filter(|e| e.0 == key));
        if of_a.map(|e| e.1) != of_b.map(|e| e.1) && !add(key, of_a.is_some()) {
            return Ok(());
        }
        a.at += usize::from(of_a.is_some());
        b.at += usize::from(of_b.is_some());
    }
}

/// The entries of some leaves of a tree, read as they are needed.
struct Leaves<'p> {
    pool: &'p Pool<'p>,
    level: Vec<(u64, u64)>,
    /// Leaves read so far.
    read: usize,
    entries: Vec<(u64, u64)>,
    at: usize,
    /// The last key of those before.
    last: Option<u64>,
}

impl<'p> Leaves<'p> {
    fn of(pool: &'p Pool<'p>, level: Vec<(u64, u64)>) -> Self {
        Leaves { pool, level, read: 0, entries: Vec::new(), at: 0, last: None }
    }

    /// The next block of the volume and where it is.
    fn first(&mut self) -> Result<Option<(u64, u64)>, Failure> {
        while self.at >= self.entries.len() {
            let rest = &self.level[self.read..];
            if rest.is_empty() {
                return Ok(None);
            }
            let some = &rest[..rest.len().min(AT_ONCE)];
            self.entries.clear();
            self.at = 0;
            for node in self.pool.nodes(some)? {
                if !node.leaf {
                    return Err(uneven());
                }
                if let (Some(last), Some((first, _))) = (self.last, node.entries.first())
                    && last >= *first
                {
                    return Err(corrupt("a tree of it is out of order"));
                }
                self.last = node.entries.last().map(|e| e.0).or(self.last);
                // Without the time: a block that was mapped again lies elsewhere.
                self.entries.extend(node.entries.iter().map(|(key, value)| (*key, value >> 24)));
            }
            self.read += some.len();
        }
        Ok(self.entries.get(self.at).copied())
    }
}

/// One moment of a pool.
struct Pool<'i> {
    metadata: &'i dyn Image,
    blocks: u64,
    /// Bytes of a block of data.
    chunk: u64,
    /// The tree of volumes.
    volumes: u64,
}

/// A node of a tree.
struct Node {
    leaf: bool,
    entries: Vec<(u64, u64)>,
}

impl<'i> Pool<'i> {
    fn open(metadata: &'i dyn Image) -> Result<Self, Failure> {
        let mut pool = Pool { metadata, blocks: metadata.size() / BLOCK, chunk: 0, volumes: 0 };
        let live = pool.superblock(0)?;
        let held = u64_at(&live, 56);
        if held == 0 {
            return Err(unsupported("not-held", "no moment of the pool's metadata is held"));
        }
        let moment = pool.superblock(held)?;
        pool.chunk = u64::from(u32_at(&moment, 336)) * 512;
        // What the kernel allows: 64 KiB to 1 GiB, in steps of 64 KiB.
        if !(64 << 10..=1 << 30).contains(&pool.chunk) || !pool.chunk.is_multiple_of(64 << 10) {
            return Err(corrupt(format!("its blocks of data have {} bytes", pool.chunk)));
        }
        pool.volumes = u64_at(&moment, 320);
        Ok(pool)
    }

    fn superblock(&self, at: u64) -> Result<Vec<u8>, Failure> {
        let block = self.blocks(&[at])?;
        checked(&block, at, 8, SUPERBLOCK_SALT)?;
        if u64_at(&block, 32) != MAGIC {
            return Err(corrupt(format!("block {at} is no superblock")));
        }
        let version = u32_at(&block, 40);
        if !VERSIONS.contains(&version) {
            return Err(unsupported(
                "metadata-version",
                format!("its layout is version {version}"),
            ));
        }
        Ok(block)
    }

    /// The root of a volume's tree.
    fn root_of(&self, volume: u64) -> Result<u64, Failure> {
        let mut at = self.volumes;
        for _ in 0..DEPTH_MAX {
            let node = self.node(at)?;
            // The last whose keys begin at or before this one.
            let next = node.entries.partition_point(|(key, _)| *key <= volume);
            let entry = next.checked_sub(1).and_then(|i| node.entries.get(i));
            match entry {
                Some((key, root)) if node.leaf && *key == volume => return Ok(*root),
                Some((_, child)) if !node.leaf => at = *child,
                _ => return Err(unsupported("not-in-pool", format!("it has no volume {volume}"))),
            }
        }
        Err(too_deep())
    }

    /// The leaves of the trees of both volumes, but for those that both have and those that end before this block of the
    /// volume. Each with the first of its keys.
    fn apart(&self, volumes: [u64; 2], from: u64) -> Result<[Vec<(u64, u64)>; 2], Failure> {
        let roots = [self.root_of(volumes[0])?, self.root_of(volumes[1])?];
        if roots[0] == roots[1] {
            return Ok(Default::default());
        }
        let mut depths = [self.depth(roots[0])?, self.depth(roots[1])?];
        let mut levels = roots.map(|root| vec![(0, root)]);
        loop {
            if depths[0] == depths[1] {
                part(&mut levels);
                if depths[0] == 1 {
                    return Ok(levels);
                }
            }
            // The taller goes down alone until both are as tall: only then are nodes of a level alike.
            let tallest = depths[0].max(depths[1]);
            for (depth, level) in depths.iter_mut().zip(&mut levels) {
                if *depth == tallest {
                    *level = self.below(level)?;
                    // One that ends before another begins that begins early enough.
                    let next = level.partition_point(|(key, _)| *key <= from);
                    level.drain(..next.saturating_sub(1));
                    *depth -= 1;
                }
            }
        }
    }

    /// Levels of a tree, at least one.
    fn depth(&self, root: u64) -> Result<u32, Failure> {
        let mut at = root;
        for depth in 1..=DEPTH_MAX {
            let node = self.node(at)?;
            match node.entries.first() {
                Some((_, child)) if !node.leaf => at = *child,
                _ => return Ok(depth),
            }
        }
        Err(too_deep())
    }

    fn below(&self, level: &[(u64, u64)]) -> Result<Vec<(u64, u64)>, Failure> {
        let mut all: Vec<(u64, u64)> = Vec::new();
        for some in level.chunks(AT_ONCE) {
            for node in self.nodes(some)? {
                if node.leaf {
                    return Err(uneven());
                }
                if let (Some(last), Some(first)) = (all.last(), node.entries.first())
                    && last.0 >= first.0
                {
                    return Err(corrupt("a tree of it is out of order"));
                }
                all.extend(node.entries);
                if all.len() > NODES_MAX {
                    return Err(unsupported("too-many", "too much of it was written since"));
                }
            }
        }
        Ok(all)
    }

    fn blocks(&self, numbers: &[u64]) -> Result<Vec<u8>, Failure> {
        if let Some(outside) = numbers.iter().find(|n| **n >= self.blocks) {
            return Err(corrupt(format!("it refers to block {outside} of {}", self.blocks)));
        }
        let ranges: Vec<(u64, u32)> = numbers.iter().map(|n| (n * BLOCK, BLOCK as u32)).collect();
        let bytes = self.metadata.read_ranges(&ranges)?;
        match bytes.len() == numbers.len() * BLOCK as usize {
            true => Ok(bytes),
            false => Err(corrupt("it was read in part only")),
        }
    }

    fn node(&self, at: u64) -> Result<Node, Failure> {
        node(&self.blocks(&[at])?, at)
    }

    /// At most [`AT_ONCE`].
    fn nodes(&self, level: &[(u64, u64)]) -> Result<Vec<Node>, Failure> {
        let numbers: Vec<u64> = level.iter().map(|(_, number)| *number).collect();
        let bytes = self.blocks(&numbers)?;
        bytes
            .chunks(BLOCK as usize)
            .zip(numbers)
            .map(|(block, number)| node(block, number))
            .collect()
    }
}

/// Takes out what both levels have.
fn part(levels: &mut [Vec<(u64, u64)>; 2]) {
    let sorted = |level: &Vec<(u64, u64)>| {
        let mut all: Vec<u64> = level.iter().map(|(_, number)| *number).collect();
        all.sort_unstable();
        all
    };
    let [a, b] = [sorted(&levels[0]), sorted(&levels[1])];
    levels[0].retain(|(_, number)| b.binary_search(number).is_err());
    levels[1].retain(|(_, number)| a.binary_search(number).is_err());
}

fn node(block: &[u8], number: u64) -> Result<Node, Failure> {
    checked(block, number, 8, NODE_SALT)?;
    let (flags, entries, most) = (u32_at(block, 4), u32_at(block, 16), u32_at(block, 20));
    let (entries, most) = (entries as usize, most as usize);
    let leaf = match flags {
        LEAF => true,
        INTERNAL => false,
        _ => return Err(corrupt(format!("node {number} is neither leaf nor branch"))),
    };
    // Values of both trees have eight bytes, as keys have.
    let room = (BLOCK as usize - NODE_HEAD) / 16;
    if u32_at(block, 24) != 8 || most > room || entries > most || (!leaf && entries == 0) {
        return Err(corrupt(format!("node {number} has {entries} entries of {most}")));
    }
    let key = |i: usize| u64_at(block, NODE_HEAD + i * 8);
    let value = |i: usize| u64_at(block, NODE_HEAD + most * 8 + i * 8);
    let entries: Vec<(u64, u64)> = (0..entries).map(|i| (key(i), value(i))).collect();
    if entries.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
        return Err(corrupt(format!("node {number} is out of order")));
    }
    Ok(Node { leaf, entries })
}

/// Whether the block is the one of this number, which stands at `at`, and whole. The sum is the kernel's CRC-32C of what
/// follows it, neither begun nor ended as others do.
fn checked(block: &[u8], number: u64, at: usize, salt: u32) -> Result<(), Failure> {
    let sum = !crc32c::crc32c(block.get(4..).unwrap_or_default()) ^ salt;
    if u64_at(block, at) != number || u32_at(block, 0) != sum {
        return Err(corrupt(format!("block {number} is not what was written there")));
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn corrupt(what: impl Into<String>) -> Failure {
    let message = format!("the thin pool's metadata cannot be made sense of: {}", what.into());
    Failure::new(FailureKind::Corrupt, "pool-metadata", message)
}

fn uneven() -> Failure {
    corrupt("a tree of it has branches of unlike height")
}

fn too_deep() -> Failure {
    corrupt("a tree of it is deeper than any can be")
}
