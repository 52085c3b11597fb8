//! What a guest sees.

use std::collections::BTreeMap;

use super::{COMPRESSED, OFFSET, Qcow2, Snapshot, ZERO, words};
use crate::inflate::inflate;
use crate::rng::digest;

/// A snapshot as it can be told from outside: two equal ones are the same snapshot with the
/// same content, wherever its tables lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPicture {
    /// Unique ID string.
    pub id: String,
    /// Name.
    pub name: String,
    /// Time taken: seconds and nanoseconds.
    pub taken: (u32, u32),
    /// Time the guest had been running, in nanoseconds.
    pub guest_clock: u64,
    /// Virtual size.
    pub size: u64,
    /// Extra data as stored.
    pub extra: Vec<u8>,
    /// Digest of disk content and VM state.
    pub content: u128,
}

/// An image as it can be told from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Virtual size of the active disk.
    pub size: u64,
    /// Digest of its content.
    pub content: u128,
    /// The snapshots, in order.
    pub snapshots: Vec<SnapshotPicture>,
}

impl Qcow2<'_> {
    /// Content of the active disk. Unallocated clusters are read from `backing`, and as zeroes
    /// past its end.
    pub fn active_content(&self, backing: &[u8]) -> Result<Vec<u8>, String> {
        let h = self.header();
        self.content(h.l1_table_offset, h.l1_size, h.size, backing)
    }

    /// Content of a snapshot's disk.
    pub fn snapshot_content(&self, snapshot: &Snapshot, backing: &[u8]) -> Result<Vec<u8>, String> {
        let size = snapshot.disk_size.unwrap_or(self.header().size);
        self.content(snapshot.l1_table_offset, snapshot.l1_size, size, backing)
    }

    /// Everything that can be told from outside.
    pub fn picture(&self, backing: &[u8]) -> Result<Picture, String> {
        let h = self.header();
        let content = self.active_digest(backing)?;
        let mut snapshots = Vec::new();
        for s in self.snapshots() {
            let size = s.disk_size.unwrap_or(self.header().size);
            let mut content = self.snapshot_digest(s, backing)?;
            if s.vm_state_size > 0 {
                content = content.rotate_left(1) ^ self.vm_state(s, size)?;
            }
            snapshots.push(SnapshotPicture {
                id: s.id.clone(),
                name: s.name.clone(),
                taken: s.taken,
                guest_clock: s.guest_clock,
                size,
                extra: s.extra.clone(),
                content,
            });
        }
        Ok(Picture { size: h.size, content, snapshots })
    }

    /// A digest of the active disk's content and size.
    pub fn active_digest(&self, backing: &[u8]) -> Result<u128, String> {
        let h = self.header();
        self.digest(h.l1_table_offset, h.l1_size, 0, h.size, backing)
    }

    /// The same of a snapshot's disk.
    pub fn snapshot_digest(&self, snapshot: &Snapshot, backing: &[u8]) -> Result<u128, String> {
        let size = snapshot.disk_size.unwrap_or(self.header().size);
        self.digest(snapshot.l1_table_offset, snapshot.l1_size, 0, size, backing)
    }

    /// Content of the active disk, as clusters that are not all zeroes, by their offset.
    pub fn active_clusters(&self, backing: &[u8]) -> Result<BTreeMap<u64, Vec<u8>>, String> {
        let h = self.header();
        let mut all = BTreeMap::new();
        self.clusters(h.l1_table_offset, h.l1_size, 0, h.size, backing, &mut |at, bytes| {
            all.insert(at, bytes.to_vec());
        })?;
        Ok(all)
    }

    /// VM state lies behind the last L1 entry that describes the disk.
    fn vm_state(&self, s: &Snapshot, size: u64) -> Result<u128, String> {
        let start = size.checked_next_multiple_of(self.header().l2_reach());
        let start = start.ok_or("a disk that ends past 2^64")?;
        let end = start.checked_add(s.vm_state_size).ok_or("VM state past 2^64")?;
        self.digest(s.l1_table_offset, s.l1_size, start, end, &[])
    }

    /// A digest of content, zeroes left out: how they are stored does not matter.
    fn digest(
        &self,
        l1: u64,
        entries: u32,
        from: u64,
        to: u64,
        backing: &[u8],
    ) -> Result<u128, String> {
        let mut all = u128::from(to - from);
        self.clusters(l1, entries, from, to, backing, &mut |at, bytes| {
            let place =
                u128::from(at / 512 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
            all = all.wrapping_add((digest(bytes) ^ place).wrapping_mul(place | 1));
        })?;
        Ok(all)
    }

    fn content(&self, l1: u64, entries: u32, size: u64, backing: &[u8]) -> Result<Vec<u8>, String> {
        let length = usize::try_from(size).ok().filter(|n| *n <= 1 << 30);
        let length = length.ok_or_else(|| format!("{size} bytes are too many for a test"))?;
        let mut out = vec![0; length];
        self.clusters(l1, entries, 0, size, backing, &mut |at, bytes| {
            out[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
        })?;
        Ok(out)
    }

    /// Gives every cluster between two guest offsets that is not all zeroes, in order; `from` is at the
    /// beginning of a cluster.
    fn clusters(
        &self,
        l1: u64,
        entries: u32,
        from: u64,
        to: u64,
        backing: &[u8],
        see: &mut dyn FnMut(u64, &[u8]),
    ) -> Result<(), String> {
        let h = self.header();
        let cluster = h.cluster_size();
        let mut buffer = vec![0; cluster as usize];
        let mut give = |at: u64, entry: u64, bitmap: u64| -> Result<(), String> {
            let out = &mut buffer[..cluster.min(to - at) as usize];
            let below = backing.get(at as usize..).unwrap_or(&[]);
            let below = &below[..below.len().min(out.len())];
            out[..below.len()].copy_from_slice(below);
            out[below.len()..].fill(0);
            if entry != 0 || bitmap != 0 {
                self.cluster_content(entry, bitmap, out)
                    .map_err(|e| format!("guest offset {at:#x}: {e}"))?;
            }
            if out.iter().any(|b| *b != 0) {
                see(at, out);
            }
            Ok(())
        };
        let mut at = 0;
        for (i, entry) in self.l1(l1, entries).enumerate() {
            at = (i as u64).saturating_mul(h.l2_reach());
            if at >= to {
                return Ok(());
            }
            let table = entry & OFFSET;
            let reach = at.saturating_add(h.l2_reach()).min(to);
            if table == 0 {
                while at < reach.min(backing.len() as u64) {
                    give(at, 0, 0)?;
                    at += cluster;
                }
                at = reach;
                continue;
            }
            let outside = || format!("L1 entry {i} refers to {table:#x}, outside the file");
            let mut entries = words(self.cluster(table).ok_or_else(outside)?);
            while at < reach {
                // A table that the end of the file cuts short has zeroes from there.
                let entry = entries.next().unwrap_or(0);
                let bitmap = if h.extended_l2() { entries.next().unwrap_or(0) } else { 0 };
                if at >= from && (entry != 0 || bitmap != 0 || at < backing.len() as u64) {
                    give(at, entry, bitmap)?;
                }
                at += cluster;
            }
        }
        // What the table is too short for is in the backing file.
        while at < to.min(backing.len() as u64) {
            give(at, 0, 0)?;
            at += cluster;
        }
        Ok(())
    }

    /// `out` holds what the backing file has there.
    fn cluster_content(&self, entry: u64, bitmap: u64, out: &mut [u8]) -> Result<(), String> {
        let h = self.header();
        if entry & COMPRESSED != 0 {
            let (offset, length) = self.compressed_span(entry);
            let left = (self.bytes.len() as u64).saturating_sub(offset);
            let packed = self.slice(offset, length.min(left)).unwrap_or(&[]);
            let size = h.cluster_size() as usize;
            let content = if h.incompatible_features & 1 << 3 != 0 {
                let mut raw = packed.to_vec();
                raw.resize(size, 0);
                raw
            } else {
                inflate(packed, size).ok_or("compressed bytes do not unpack to a cluster")?
            };
            out.copy_from_slice(&content[..out.len()]);
            return Ok(());
        }
        if !h.extended_l2() {
            if entry & ZERO != 0 {
                out.fill(0);
            } else if entry & OFFSET != 0 {
                self.data(entry & OFFSET, 0, out)?;
            }
            return Ok(());
        }
        let piece = (h.cluster_size() / 32) as usize;
        for (i, part) in out.chunks_mut(piece).enumerate() {
            if bitmap >> (i + 32) & 1 == 1 {
                part.fill(0);
            } else if bitmap >> i & 1 == 1 {
                self.data(entry & OFFSET, i * piece, part)?;
            }
        }
        Ok(())
    }

    /// Bytes of a data cluster; a file that ends inside it reads as zeroes from there.
    fn data(&self, cluster: u64, skip: usize, out: &mut [u8]) -> Result<(), String> {
        let found = self.cluster(cluster);
        let found = found.ok_or_else(|| format!("data at {cluster:#x} is outside the file"))?;
        let found = found.get(skip..).unwrap_or(&[]);
        let there = found.len().min(out.len());
        out[..there].copy_from_slice(&found[..there]);
        out[there..].fill(0);
        Ok(())
    }
}
