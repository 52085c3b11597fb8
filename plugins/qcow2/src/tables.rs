//! L2 tables: reading many, and what their entries refer to.
//!
//! ```text
//! standard    63 COPIED · 62 = 0 · 55..9 host offset · 0 reads as zeroes
//! compressed  63 = 0    · 62 = 1 · low x bits: host offset, above them: further sectors,
//!             with x = 62 - (cluster_bits - 8)
//! extended    the same, then 64 bits: 0..31 subcluster allocated, 32..63 reads as zeroes
//! ```

use snapslot_plugin_sdk::Failure;

use crate::corrupt;
use crate::volume::{COPIED, OFFSET_MASK, Volume};

pub(crate) const COMPRESSED: u64 = 1 << 62;
pub(crate) const READS_ZERO: u64 = 1;
const STANDARD_RESERVED: u64 = !(OFFSET_MASK | COPIED | COMPRESSED | READS_ZERO);

/// Tables are read in batches of this many bytes, in the order of their place in the file. They
/// stay in the processor's second-level cache while the host hands them over and we walk them.
const BATCH: u64 = 256 << 10;

/// What an entry refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refers {
    /// No cluster.
    Nothing,
    /// One cluster.
    Cluster(u64),
    /// Compressed bytes, in these clusters (first and last).
    Packed(u64, u64),
}

/// What is found in a table.
pub(crate) trait Visit {
    /// Entries `index..index + length` refer to as many neighbouring clusters, all with or all
    /// without the COPIED bit.
    fn run(&mut self, index: u64, length: u64, cluster: u64, copied: bool) -> Result<(), Failure>;
    /// An entry refers to compressed bytes in these clusters.
    fn packed(&mut self, index: u64, first: u64, last: u64) -> Result<(), Failure>;
}

/// Offset and length in bytes of what a compressed entry refers to.
pub(crate) fn packed_bytes(volume: &Volume<'_>, entry: u64) -> (u64, u64) {
    let bits = volume.header.cluster_bits;
    let shift = 62 - (bits - 8);
    let offset = entry & ((1 << shift) - 1);
    let sectors = (entry >> shift & ((1 << (bits - 8)) - 1)) + 1;
    (offset, sectors * 512 - offset % 512)
}

/// What one entry refers to, checked.
pub(crate) fn refers(volume: &Volume<'_>, entry: u64) -> Result<Refers, Failure> {
    let strange = || corrupt("l2-entry", format!("an L2 entry is {entry:#018x}"));
    if entry & COMPRESSED != 0 {
        let (offset, length) = packed_bytes(volume, entry);
        let bits = volume.header.cluster_bits;
        let (first, last) = (offset >> bits, (offset + length - 1) >> bits);
        if entry & COPIED != 0 || last >= volume.clusters() {
            return Err(strange());
        }
        return Ok(Refers::Packed(first, last));
    }
    let offset = entry & OFFSET_MASK;
    let plain_reserved = if volume.header.extended_l2() { READS_ZERO } else { 0 };
    if entry & (STANDARD_RESERVED | plain_reserved) != 0
        || !offset.is_multiple_of(volume.cluster_size())
        || (offset == 0 && entry & COPIED != 0)
    {
        return Err(strange());
    }
    if offset == 0 {
        return Ok(Refers::Nothing);
    }
    let cluster = offset >> volume.header.cluster_bits;
    if cluster >= volume.clusters() {
        return Err(strange());
    }
    Ok(Refers::Cluster(cluster))
}

/// Walks a table, joining neighbouring entries into runs.
pub(crate) fn walk(
    volume: &Volume<'_>,
    table: &[u8],
    visit: &mut impl Visit,
) -> Result<(), Failure> {
    let stride = volume.header.l2_entry_size() as usize;
    let cluster_size = volume.cluster_size();
    let entries = table.len() / stride;
    let words = table.as_chunks::<8>().0;
    let entry = |i: usize| u64::from_be_bytes(words[i * (stride / 8)]);
    let mut i = 0;
    while i < entries {
        let first = entry(i);
        if first == 0 {
            i += 1;
            // Sparse tables are mostly zeroes; they go by 16 entries at a time.
            while stride == 8 && i + 16 <= entries && all_zero(&words[i..i + 16]) {
                i += 16;
            }
            continue;
        }
        match refers(volume, first)? {
            Refers::Nothing => i += 1,
            Refers::Packed(a, b) => {
                visit.packed(i as u64, a, b)?;
                i += 1;
            }
            Refers::Cluster(cluster) => {
                let mut length = 1;
                let next = first.wrapping_add(cluster_size);
                if i + 1 == entries || entry(i + 1) != next {
                    // Alone, as most are in a fragmented image.
                } else if stride == 8 {
                    length += run_length(&words[i + 1..], first, cluster_size);
                } else {
                    while i + length < entries
                        && entry(i + length) == first.wrapping_add(length as u64 * cluster_size)
                    {
                        length += 1;
                    }
                }
                if cluster + length as u64 > volume.clusters() {
                    return Err(corrupt("l2-entry", "an L2 entry points past the image's end"));
                }
                visit.run(i as u64, length as u64, cluster, first & COPIED != 0)?;
                i += length;
            }
        }
    }
    Ok(())
}

fn all_zero(words: &[[u8; 8]]) -> bool {
    words.iter().fold(0, |all, w| all | u64::from_ne_bytes(*w)) == 0
}

/// Words compared at once.
const GROUP: usize = 16;

/// How many words go on from `first`, each one cluster further than the one before.
pub(crate) fn run_length(words: &[[u8; 8]], first: u64, cluster_size: u64) -> usize {
    let mut expected = first;
    let mut length = 0;
    let group = cluster_size.wrapping_mul(GROUP as u64);
    loop {
        let next = expected.wrapping_add(cluster_size);
        if next.is_multiple_of(group) {
            // From here on nothing is carried within a group: its words differ in the same bits as the
            // numbers of its clusters, and are compared as they lie. No branch between them, so that the
            // compiler makes vector code of it.
            for some in words[length..].as_chunks::<GROUP>().0 {
                let base = expected.wrapping_add(cluster_size).to_be();
                let mut differs = 0;
                for (k, word) in some.iter().enumerate() {
                    let step = cluster_size.wrapping_mul(k as u64).to_be();
                    differs |= u64::from_ne_bytes(*word) ^ base ^ step;
                }
                if differs != 0 {
                    break;
                }
                length += GROUP;
                expected = expected.wrapping_add(group);
            }
        }
        match words.get(length) {
            Some(word) if u64::from_be_bytes(*word) == expected.wrapping_add(cluster_size) => {}
            _ => return length,
        }
        expected = expected.wrapping_add(cluster_size);
        length += 1;
    }
}

/// Reads L2 tables (index in their L1 table, offset), in the order of their place in the file.
pub(crate) fn for_each(
    volume: &Volume<'_>,
    tables: &mut [(usize, u64)],
    mut f: impl FnMut(usize, u64, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let size = volume.cluster_size();
    tables.sort_unstable_by_key(|(_, offset)| *offset);
    for batch in tables.chunks((BATCH / size).max(1) as usize) {
        let mut ranges: Vec<(u64, u32)> = Vec::with_capacity(batch.len());
        for (_, offset) in batch {
            match ranges.last_mut() {
                Some(last) if last.0 + u64::from(last.1) == *offset => last.1 += size as u32,
                _ => ranges.push((*offset, size as u32)),
            }
        }
        let bytes = match ranges.as_slice() {
            [(offset, length)] => volume.image.read_at(*offset, *length)?,
            _ => volume.image.read_ranges(&ranges)?,
        };
        if bytes.len() as u64 != size * batch.len() as u64 {
            return Err(corrupt("l2-read", "the host read another number of bytes than asked"));
        }
        for ((index, offset), table) in batch.iter().zip(bytes.chunks_exact(size as usize)) {
            f(*index, *offset, table)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: runs are as long as counting one by one says. Method: every start within two groups, every
    /// length, with and without the COPIED bit, broken at every word.
    #[test]
    fn runs_end_where_the_first_word_differs() {
        for bits in [9, 16, 21] {
            let cluster = 1 << bits;
            for start in 1..=2 * GROUP as u64 {
                for flags in [0, COPIED] {
                    let first = start << bits | flags;
                    for length in 0..3 * GROUP {
                        let word = |k: usize| (first + (k as u64 + 1) * cluster).to_be_bytes();
                        let mut words: Vec<[u8; 8]> = (0..length).map(word).collect();
                        assert_eq!(run_length(&words, first, cluster), length);
                        words.extend((length..5 * GROUP).map(word));
                        words[length][usize::from(start % 2 == 0) * 6] ^= 0x20;
                        assert_eq!(run_length(&words, first, cluster), length, "{first:#x}");
                    }
                }
            }
        }
    }
}
