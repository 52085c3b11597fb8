//! Reference counts: loaded as needed, changed in memory, emitted as what differs.
//!
//! On disk a count has 1 to 64 bits; in memory it has 16. A cluster can be named once by each
//! of 65,536 snapshots and the active tables at the most QEMU allows, and a 16-bit image cannot
//! say more; wider images with higher counts are refused.

mod wide;

use std::ops::Range;

use snapslot_plugin_sdk::{Failure, Fill};

use crate::blocks;
use crate::draft::Draft;
use crate::header::be64;
use crate::volume::Volume;
use crate::{corrupt, unsupported};

/// Clusters whose counts are held at once: 64 MiB. A larger image is done in several passes
/// over its tables.
#[cfg(not(test))]
pub(crate) const WINDOW: u64 = 32 << 20;
/// In unit tests images are small, and several windows are what is to be tried.
#[cfg(test)]
pub(crate) const WINDOW: u64 = 1 << 10;
/// A run of equal counts becomes a fill from this many bytes on; shorter ones are written out.
const FILL_MIN: usize = 256;
/// Differences nearer than this many bytes are written in one piece.
const GAP: usize = 64;

struct Block {
    values: Vec<u16>,
    /// Claimed clusters of the block, and their counts.
    claimed: Vec<(usize, u16)>,
    /// The values that are on disk when the next emission takes effect, if they are not those
    /// in the file now.
    base: Option<Vec<u16>>,
    /// An earlier phase of the plan writes these values; what changes now is relative to them.
    settled: bool,
    changed: bool,
}

/// The counts of a window of the image.
pub(crate) struct Counts<'v> {
    volume: &'v Volume<'v>,
    /// Entries of a refcount block, a power of two: its exponent. Divisions by it are in the
    /// innermost loops.
    block_bits: u32,
    window: Range<u64>,
    /// Blocks of the window.
    blocks: Vec<Option<Block>>,
    /// Clusters that no reference may name, ascending; empty while nothing is claimed.
    claims: Vec<u64>,
    max: u16,
}

/// The windows that cover an image of this many clusters.
pub(crate) fn windows(volume: &Volume<'_>, clusters: u64) -> Vec<Range<u64>> {
    let per_block = entries_per_block(volume);
    let step = (WINDOW / per_block).max(1) * per_block;
    let end = clusters.max(1);
    (0..end.div_ceil(step)).map(|i| i * step..((i + 1) * step).min(end)).collect()
}

/// Entries of a refcount block.
pub(crate) fn entries_per_block(volume: &Volume<'_>) -> u64 {
    (volume.cluster_size() * 8) >> volume.header.refcount_order
}

/// The highest count the image can hold, as far as it is told here.
pub(crate) fn max_count(volume: &Volume<'_>) -> u16 {
    match volume.header.refcount_order {
        order @ 0..4 => (1 << (1 << order)) - 1,
        _ => u16::MAX,
    }
}

impl<'v> Counts<'v> {
    pub fn new(volume: &'v Volume<'v>, window: Range<u64>) -> Self {
        let block_bits = entries_per_block(volume).trailing_zeros();
        let blocks = window.end.div_ceil(1 << block_bits) - (window.start >> block_bits);
        Counts {
            volume,
            block_bits,
            blocks: (0..blocks).map(|_| None).collect(),
            window,
            claims: Vec::new(),
            max: max_count(volume),
        }
    }

    /// Whether this window holds the cluster.
    pub fn covers(&self, cluster: u64) -> bool {
        self.window.contains(&cluster)
    }

    fn block(&mut self, index: u64) -> Result<&mut Block, Failure> {
        let first = self.window.start >> self.block_bits;
        let slot = &mut self.blocks[(index - first) as usize];
        if slot.is_none() {
            let values = match blocks::block(self.volume, index)? {
                Some(bytes) => decode(&bytes, self.volume.header.refcount_order)?,
                None => vec![0; 1 << self.block_bits], // exists only in the plan, or not at all
            };
            let mut block =
                Block { values, claimed: Vec::new(), base: None, settled: false, changed: false };
            block.claim(index << self.block_bits, &self.claims);
            *slot = Some(block);
        }
        slot.as_mut().ok_or_else(vanished)
    }

    /// The count of a cluster of the window.
    pub fn get(&mut self, cluster: u64) -> Result<u16, Failure> {
        let within = cluster & ((1 << self.block_bits) - 1);
        Ok(self.block(cluster >> self.block_bits)?.values[within as usize])
    }

    /// Calls `f` with each block's part of the run that lies in the window, and where it is
    /// within the run.
    fn each(
        &mut self,
        start: u64,
        length: u64,
        mut f: impl FnMut(&mut Block, Range<usize>, u64) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let end = (start + length).min(self.window.end);
        let mut at = start.max(self.window.start);
        while at < end {
            let index = at >> self.block_bits;
            let base = index << self.block_bits;
            let stop = (base + (1 << self.block_bits)).min(end);
            let block = self.block(index)?;
            f(block, (at - base) as usize..(stop - base) as usize, at - start)?;
            at = stop;
        }
        Ok(())
    }

    /// Counts these clusters (ascending) as free for a while: they belong to the image's own
    /// tables or are about to, and whoever finds a reference to one finds it uncounted.
    pub fn claim(&mut self, clusters: Vec<u64>) {
        let first = self.window.start >> self.block_bits;
        for (i, block) in self.blocks.iter_mut().enumerate() {
            if let Some(block) = block {
                block.claim((first + i as u64) << self.block_bits, &clusters);
            }
        }
        self.claims = clusters;
    }

    /// Ends that.
    pub fn unclaim(&mut self) {
        self.claims.clear();
        for block in self.blocks.iter_mut().flatten() {
            for (i, count) in block.claimed.drain(..) {
                block.values[i] = count;
                if let Some(base) = &mut block.base {
                    base[i] = count;
                }
            }
        }
    }

    /// A new cluster: from none to one reference.
    pub fn set_new(&mut self, start: u64, length: u64) -> Result<(), Failure> {
        self.each(start, length, |block, range, _| {
            block.changed = true;
            let values = &mut block.values[range];
            if values.iter().any(|v| *v != 0) {
                return Err(used_uncounted());
            }
            values.fill(1);
            Ok(())
        })
    }

    /// Each cluster of the run must have a reference.
    pub fn verify(&mut self, start: u64, length: u64) -> Result<(), Failure> {
        self.each(start, length, |block, range, _| {
            let low = block.values[range].iter().fold(u16::MAX, |low, v| low.min(*v));
            if low == 0 { Err(used_uncounted()) } else { Ok(()) }
        })
    }

    /// One more reference to each cluster of the run. Each must have one; exactly one if
    /// `exclusive`, which is what the COPIED bit says.
    pub fn add(&mut self, start: u64, length: u64, exclusive: bool) -> Result<(), Failure> {
        let max = self.max;
        if length == 1 && self.covers(start) {
            // The way of a fragmented image: no loops, no ranges.
            let within = (start & ((1 << self.block_bits) - 1)) as usize;
            let block = self.block(start >> self.block_bits)?;
            let value = &mut block.values[within];
            if *value != 0 && *value < max && !(exclusive && *value > 1) {
                *value += 1;
                block.changed = true;
                return Ok(());
            }
        }
        self.each(start, length, |block, range, _| {
            block.changed = true;
            let values = &mut block.values[range];
            let (mut low, mut high) = (u16::MAX, 0);
            for value in values.iter_mut() {
                low = low.min(*value);
                high = high.max(*value);
                *value = value.wrapping_add(1);
            }
            if low == 0 {
                return Err(used_uncounted());
            }
            if exclusive && high > 1 {
                return Err(corrupt(
                    "copied",
                    "the image says of a shared cluster that it is not shared",
                ));
            }
            if high >= max {
                return Err(unsupported(
                    "refcount-overflow",
                    format!(
                        "a cluster of the image has {high} references, the most that its \
                         refcount_bits can count, so no further snapshot is possible; another \
                         snapshot must go first, or the image be converted to wider ones"
                    ),
                )
                .with("references", high));
            }
            Ok(())
        })
    }

    /// One reference less to each cluster of the run. Each must have at least `least`. Says
    /// through `ones` which runs (start within the run, length) have one reference left.
    pub fn sub(
        &mut self,
        start: u64,
        length: u64,
        least: u16,
        mut ones: impl FnMut(u64, u64),
    ) -> Result<(), Failure> {
        if length == 1 && self.covers(start) {
            let within = (start & ((1 << self.block_bits) - 1)) as usize;
            let block = self.block(start >> self.block_bits)?;
            let value = &mut block.values[within];
            if *value >= least.max(1) && (block.base.is_some() || !block.settled) {
                *value -= 1;
                if *value == 1 {
                    ones(0, 1);
                }
                block.changed = true;
                return Ok(());
            }
        }
        self.each(start, length, |block, range, at| {
            if block.settled && block.base.is_none() {
                block.base = Some(block.values.clone());
            }
            block.changed = true;
            let values = &mut block.values[range];
            let (mut low, mut high) = (u16::MAX, 0);
            for value in values.iter_mut() {
                low = low.min(*value);
                high = high.max(*value);
                *value = value.wrapping_sub(1);
            }
            if low < least.max(1) {
                return Err(corrupt(
                    "refcount-low",
                    format!("a cluster with {least} or more references is counted as having {low}"),
                ));
            }
            if low == 2 && high == 2 {
                ones(at, values.len() as u64);
            } else {
                let mut i = 0;
                while i < values.len() {
                    let run = values[i..].iter().take_while(|v| **v == 1).count();
                    if run > 0 {
                        ones(at + i as u64, run as u64);
                    }
                    i += run.max(1);
                }
            }
            Ok(())
        })
    }

    /// From here on, the values so far are those on disk: the phase that writes them ends.
    pub fn settle(&mut self) {
        for block in self.blocks.iter_mut().flatten().filter(|b| b.changed) {
            block.settled = true;
            block.changed = false;
        }
    }

    /// Emits what differs from the disk, block by block. Blocks that the plan makes anew are
    /// left out: they are written whole elsewhere. `doubled`: every reference of the active disk
    /// was added once more, which also tells whether all were counted.
    pub fn emit(&mut self, draft: &mut Draft<'_>, doubled: bool) -> Result<(), Failure> {
        let order = self.volume.header.refcount_order;
        let first = self.window.start >> self.block_bits;
        // Used for one block after the other: what is new costs more than what it holds.
        let (mut new, mut base_bytes, mut runs) = (Vec::new(), Vec::new(), Vec::new());
        for (i, block) in self.blocks.iter_mut().enumerate() {
            let index = first + i as u64;
            let offset = self.volume.refcount_table.get(index as usize).copied().unwrap_or(0);
            let Some(block) = block.as_mut().filter(|b| b.changed && offset != 0) else { continue };
            if order == 4 && block.base.is_none() {
                let on_disk = blocks::block(self.volume, index)?.ok_or_else(vanished)?;
                let more = wide::runs(&on_disk, &block.values, &mut runs);
                if doubled && more {
                    return Err(shared_uncounted());
                }
                for run in &runs {
                    wide::emit(draft, offset, &on_disk, &block.values, run, &mut new)?;
                }
                continue;
            }
            encode_into(&block.values, order, &mut new);
            let on_disk;
            let old = match &block.base {
                Some(base) => {
                    encode_into(base, order, &mut base_bytes);
                    base_bytes.as_slice()
                }
                None => {
                    on_disk = blocks::block(self.volume, index)?.ok_or_else(vanished)?;
                    &on_disk
                }
            };
            if doubled {
                refuse_uncounted_sharing(old, order, &block.values)?;
            }
            emit_difference(draft, offset, old, &new, ((1_usize << order) / 8).max(1))?;
        }
        Ok(())
    }
}

impl Block {
    fn claim(&mut self, base: u64, clusters: &[u64]) {
        let from = clusters.partition_point(|c| *c < base);
        let to = clusters.partition_point(|c| *c < base + self.values.len() as u64);
        for cluster in &clusters[from..to] {
            let i = (cluster - base) as usize;
            self.claimed.push((i, self.values[i]));
            self.values[i] = 0;
        }
    }
}

/// After every reference was added once more, no count may have more than doubled: else there
/// were more references than counted, thus two users of one cluster.
fn refuse_uncounted_sharing(old: &[u8], order: u32, new: &[u16]) -> Result<(), Failure> {
    let bad = if order == 4 {
        let pairs = old.as_chunks::<2>().0.iter().zip(new);
        pairs.fold(0, |bad, (old, new)| bad | more(u16::from_be_bytes(*old), *new))
    } else {
        let pairs = decode(old, order)?;
        pairs.iter().zip(new).fold(0, |bad, (old, new)| bad | more(*old, *new))
    };
    if bad == 0 { Ok(()) } else { Err(shared_uncounted()) }
}

/// Whether a count is more than twice what it was; that of a new cluster goes from none to one.
fn more(old: u16, new: u16) -> u16 {
    u16::from(new.saturating_sub(old.max(1)) > old.max(1))
}

fn shared_uncounted() -> Failure {
    corrupt("shared", "the image uses a cluster in two places and counts one")
}

fn vanished() -> Failure {
    corrupt("refcount-block", "a refcount block vanished")
}

fn used_uncounted() -> Failure {
    corrupt(
        "refcount-zero",
        "the image uses a cluster that is counted as free or belongs to its own tables",
    )
}

/// Refcounts of fewer than 8 bits start at the lowest bits of a byte; wider ones are big-endian.
pub(crate) fn decode(bytes: &[u8], order: u32) -> Result<Vec<u16>, Failure> {
    let too_high = || {
        unsupported(
            "refcount-high",
            "a cluster's reference count is above 65,535, more than snapshots can explain",
        )
    };
    Ok(match order {
        0..=2 => {
            let (bits, mask) = (1_u32 << order, (1_u16 << (1 << order)) - 1);
            bytes
                .iter()
                .flat_map(|b| (0..8 / bits).map(move |i| u16::from(*b) >> (i * bits) & mask))
                .collect()
        }
        3 => bytes.iter().map(|b| u16::from(*b)).collect(),
        4 => bytes.as_chunks::<2>().0.iter().map(|b| u16::from_be_bytes(*b)).collect(),
        5 => {
            let wide = bytes.as_chunks::<4>().0.iter().map(|b| u32::from_be_bytes(*b));
            wide.map(|v| u16::try_from(v).map_err(|_| too_high())).collect::<Result<_, _>>()?
        }
        _ => {
            let wide = bytes.as_chunks::<8>().0.iter().map(|b| be64(b, 0));
            wide.map(|v| u16::try_from(v).map_err(|_| too_high())).collect::<Result<_, _>>()?
        }
    })
}

/// The bytes of a block with these counts.
pub(crate) fn encode(values: &[u16], order: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_into(values, order, &mut bytes);
    bytes
}

fn encode_into(values: &[u16], order: u32, bytes: &mut Vec<u8>) {
    bytes.clear();
    match order {
        0..=2 => {
            let bits = 1_u32 << order;
            let pack = |c: &[u16]| c.iter().rev().fold(0, |byte, v| byte << bits | *v as u8);
            bytes.extend(values.chunks(8 / bits as usize).map(pack));
        }
        3 => bytes.extend(values.iter().map(|v| *v as u8)),
        4 => {
            bytes.resize(values.len() * 2, 0);
            for (pair, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *pair = value.to_be_bytes();
            }
        }
        5 => bytes.extend(values.iter().flat_map(|v| u32::from(*v).to_be_bytes())),
        _ => bytes.extend(values.iter().flat_map(|v| u64::from(*v).to_be_bytes())),
    }
}

/// Emits the bytes in which `new` differs from `old`: long runs of one count as fills, the rest
/// as they are. Units are whole counts.
fn emit_difference(
    draft: &mut Draft<'_>,
    offset: u64,
    old: &[u8],
    new: &[u8],
    unit: usize,
) -> Result<(), Failure> {
    let mut at = 0;
    while let Some(start) = next_difference(old, new, at).map(|i| i - i % unit) {
        let run = constant_run(&new[start..], unit);
        if run >= FILL_MIN {
            let last = last_difference(old, new, start, start + run) + 1;
            let end = last.next_multiple_of(unit);
            draft.fill(Fill {
                offset: offset + start as u64,
                length: (end - start) as u64,
                pattern: new[start..start + unit].to_vec(),
            })?;
            at = end;
            continue;
        }
        // Literal: up to a gap, a long run, or the end.
        let mut end = start + unit;
        let mut probe = end;
        while probe < new.len() && probe - end < GAP {
            if old[probe..probe + unit] != new[probe..probe + unit] {
                if new[probe..].len() >= FILL_MIN
                    && constant_run(&new[probe..probe + FILL_MIN], unit) >= FILL_MIN
                {
                    break;
                }
                end = probe + unit;
            }
            probe += unit;
        }
        draft.write(offset + start as u64, &new[start..end])?;
        at = end;
    }
    Ok(())
}

/// Whether 64 bytes are the same. Written out: a call of `memcmp` is slow where this runs.
fn same(a: &[u8; 64], b: &[u8; 64]) -> bool {
    let (a, b) = (a.as_chunks::<8>().0, b.as_chunks::<8>().0);
    let differs = a
        .iter()
        .zip(b)
        .fold(0, |all, (x, y)| all | (u64::from_ne_bytes(*x) ^ u64::from_ne_bytes(*y)));
    differs == 0
}

fn next_difference(old: &[u8], new: &[u8], from: usize) -> Option<usize> {
    let (wide_old, wide_new) = (old[from..].as_chunks::<64>().0, new[from..].as_chunks::<64>().0);
    let alike = wide_old.iter().zip(wide_new).take_while(|(a, b)| same(a, b)).count();
    (from + alike * 64..new.len()).find(|i| old[*i] != new[*i])
}

fn last_difference(old: &[u8], new: &[u8], start: usize, end: usize) -> usize {
    (start..end).rev().find(|i| old[*i] != new[*i]).unwrap_or(start)
}

/// How many bytes from the start on repeat the first unit.
fn constant_run(bytes: &[u8], unit: usize) -> usize {
    let mut pattern = [0; 64];
    for (i, byte) in pattern.iter_mut().enumerate() {
        *byte = bytes[i % unit];
    }
    let wide = bytes.as_chunks::<64>().0.iter().take_while(|c| same(c, &pattern)).count() * 64;
    let tail = bytes[wide..].chunks_exact(unit).take_while(|c| *c == &pattern[..unit]).count();
    wide + tail * unit
}
