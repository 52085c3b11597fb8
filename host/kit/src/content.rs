//! What an image shows: by the plugin's own extents, over bytes that the kit keeps.

use std::collections::BTreeMap;
use std::sync::Arc;

use snapslot_disk::Disk;
use snapslot_disk::sim::World;
use snapslot_runtime::{Content, Extent, Facts, Sight, View};
use snapslot_testkit::rng::digest;
use snapslot_testkit::sim_host::IMAGE;

use crate::bench::Bench;

/// Content is compared in blocks of so many bytes.
pub const BLOCK: u64 = 4096;
/// Extents asked for at once.
const PAGE: u32 = 1000;
/// No format cuts content smaller, on the whole.
const EXTENT_MIN: u64 = 256;

/// A disk of these bytes.
pub fn disk_of(bytes: &[u8]) -> Arc<dyn Disk> {
    let world = World::new(BTreeMap::from([(IMAGE.to_owned(), bytes.to_vec())]));
    Arc::new(world.disk(IMAGE))
}

/// A view of an image, and its size.
pub fn views(facts: &Facts) -> Vec<(String, View, u64)> {
    let current = ("current".to_owned(), View::Current, facts.virtual_size);
    let snapshots = facts.snapshots.iter().map(|s| {
        let name = format!("{} {}", s.identity, s.name);
        (name, View::Snapshot(s.identity.clone()), s.virtual_size)
    });
    std::iter::once(current).chain(snapshots).collect()
}

/// All extents of a view, asked for in pages of this length. They cover all of it, or that is told.
pub fn extents(
    bench: &Bench<'_>,
    sight: &Sight,
    view: &View,
    size: u64,
    page: u32,
) -> Result<Vec<Extent>, String> {
    let mut all: Vec<Extent> = Vec::new();
    let mut cursor = 0;
    let most = size / EXTENT_MIN + 1024;
    loop {
        let found = bench.plugin.extents(sight, view, cursor, page).map_err(|e| e.to_string())?;
        // The host sees to it that a page has no gap and goes on where it ends.
        let reach = found.extents.last().map_or(cursor, |e| e.start + e.length);
        all.extend(found.extents);
        if all.len() as u64 > most {
            return Err(format!("more than {most} extents of a disk of {size} bytes"));
        }
        match found.next {
            Some(next) => cursor = next,
            None if reach == size => return Ok(all),
            None => {
                return Err(format!("its extents end at {reach}, and the disk at {size} bytes"));
            }
        }
    }
}

/// Extents as one list without cuts that mean nothing: start, end, and where it lies.
pub fn joined(extents: &[Extent]) -> Vec<(u64, u64, Content)> {
    let mut all: Vec<(u64, u64, Content)> = Vec::new();
    for extent in extents {
        let mut start = extent.start;
        let end = extent.start + extent.length;
        let mut content = extent.content;
        if let Some((_, last, _)) = all.last() {
            // A page begins with the extent that its cursor is in.
            if let Content::Data(at) = content {
                content = Content::Data(at + last.saturating_sub(start));
            }
            start = start.max(*last);
        }
        if start >= end {
            continue;
        }
        if let Some((first, last, before)) = all.last_mut() {
            let goes_on = match (&before, &content) {
                (Content::Data(a), Content::Data(b)) => *a + (*last - *first) == *b,
                (Content::Zero, Content::Zero) | (Content::Backing, Content::Backing) => true,
                _ => false,
            };
            if goes_on {
                *last = end;
                continue;
            }
        }
        all.push((start, end, content));
    }
    all
}

/// What a view shows: a digest of every block that is not all zeroes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    blocks: BTreeMap<u64, u128>,
}

impl Seen {
    pub fn digest(&self) -> u128 {
        self.blocks.iter().fold(0, |all, (at, block)| {
            all.rotate_left(13) ^ block ^ u128::from(*at).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    }

    /// The blocks that differ.
    pub fn differs(&self, other: &Seen) -> Vec<u64> {
        let all = self.blocks.keys().chain(other.blocks.keys());
        let mut differ: Vec<u64> =
            all.copied().filter(|at| self.blocks.get(at) != other.blocks.get(at)).collect();
        differ.sort_unstable();
        differ.dedup();
        differ
    }
}

/// Reads what a view shows, by the plugin's extents and the image's bytes.
pub fn content(bench: &Bench<'_>, sight: &Sight, view: &View, size: u64) -> Result<Seen, String> {
    let disk = sight.disk.clone().ok_or("no image")?;
    let mut seen = Seen::default();
    // A block may be in two extents: its bytes are put together first.
    let mut part: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (start, end, content) in joined(&extents(bench, sight, view, size, PAGE)?) {
        match content {
            Content::Zero | Content::Backing => {}
            Content::Compressed(packed) => {
                let mut bytes = vec![0; packed.length as usize];
                disk.read_at(packed.offset, &mut bytes).map_err(|e| e.to_string())?;
                seen.blocks.insert(start / BLOCK, digest(&bytes));
            }
            Content::Data(at) => {
                let mut guest = start;
                while guest < end {
                    let within = guest % BLOCK;
                    let length = (BLOCK - within).min(end - guest);
                    let block =
                        part.entry(guest / BLOCK).or_insert_with(|| vec![0; BLOCK as usize]);
                    let room = &mut block[within as usize..(within + length) as usize];
                    disk.read_at(at + (guest - start), room).map_err(|e| e.to_string())?;
                    guest += length;
                }
            }
        }
    }
    for (at, bytes) in part {
        if bytes.iter().any(|b| *b != 0) {
            *seen.blocks.entry(at).or_default() ^= digest(&bytes);
        }
    }
    Ok(seen)
}

/// Where a guest may write, and what it writes: bytes in which its content lies and that no snapshot
/// shares. Nothing, if all is shared, or zeroes.
///
/// The kit does not know how a guest of a strange format allocates: it overwrites what is allocated.
pub fn guest_writes(
    bench: &Bench<'_>,
    sight: &Sight,
    pattern: u8,
) -> Result<Vec<(u64, Vec<u8>)>, String> {
    let disk = sight.disk.clone().ok_or("no image")?;
    if !bench.lists_extents(sight) {
        // Where content lies is not known: a sample of one's own keeps the middle free of what the
        // format needs, as the kit's sample does.
        let size = disk.size().map_err(|e| e.to_string())?;
        return Ok(vec![(size / 2, vec![pattern; (size / 4).min(BLOCK) as usize])]);
    }
    let facts = bench.plugin.inspect(sight).map_err(|e| e.to_string())?;
    let mut own = Vec::new();
    let mut shared = Vec::new();
    // Snapshots that are not in the image share nothing with it.
    let mut views = views(&facts);
    views.truncate(if bench.changes_images() { usize::MAX } else { 1 });
    for (_, view, size) in views {
        for (start, end, content) in joined(&extents(bench, sight, &view, size, PAGE)?) {
            match (content, &view) {
                (Content::Data(at), View::Current) => own.push((at, end - start)),
                (Content::Data(at), View::Snapshot(_)) => shared.push((at, end - start)),
                (Content::Compressed(p), View::Snapshot(_)) => shared.push((p.offset, p.length)),
                _ => {}
            }
        }
    }
    let free = |at: u64, length: u64| shared.iter().all(|(s, l)| at + length <= *s || s + l <= at);
    let mut writes = Vec::new();
    for (at, length) in own {
        // In pieces: a run of data may be shared in part.
        let pieces =
            (0..length.div_ceil(BLOCK)).map(|n| (at + n * BLOCK, BLOCK.min(length - n * BLOCK)));
        let free = pieces.filter(|(at, length)| free(*at, *length));
        // Every other one, by the pattern: what is written differs from time to time.
        let chosen = free.enumerate().filter(|(n, _)| (n + usize::from(pattern)) % 3 != 0);
        writes.extend(chosen.map(|(_, (at, length))| (at, vec![pattern; length as usize])).take(8));
    }
    Ok(writes)
}
