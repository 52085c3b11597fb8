//! What a guest sees.

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
        let active = self.active_content(backing)?;
        let mut snapshots = Vec::new();
        for s in self.snapshots() {
            let mut content = self.snapshot_content(s, backing)?;
            let size = s.disk_size.unwrap_or(self.header().size);
            if s.vm_state_size > 0 {
                content.extend(self.vm_state(s, size)?);
            }
            snapshots.push(SnapshotPicture {
                id: s.id.clone(),
                name: s.name.clone(),
                taken: s.taken,
                guest_clock: s.guest_clock,
                size,
                extra: s.extra.clone(),
                content: digest(&content),
            });
        }
        Ok(Picture { size: self.header().size, content: digest(&active), snapshots })
    }

    /// VM state lies behind the last L1 entry that describes the disk.
    fn vm_state(&self, s: &Snapshot, size: u64) -> Result<Vec<u8>, String> {
        let start = size.div_ceil(self.header().l2_reach()) * self.header().l2_reach();
        let end = start.checked_add(s.vm_state_size).ok_or("VM state past 2^64")?;
        let mut all = self.content(s.l1_table_offset, s.l1_size, end, &[])?;
        Ok(all.split_off(start as usize))
    }

    fn content(&self, l1: u64, entries: u32, size: u64, backing: &[u8]) -> Result<Vec<u8>, String> {
        let h = self.header();
        let length = usize::try_from(size).ok().filter(|n| *n <= 1 << 30);
        let length = length.ok_or_else(|| format!("{size} bytes are too many for a test"))?;
        let mut out = vec![0; length];
        let below = backing.len().min(length);
        out[..below].copy_from_slice(&backing[..below]);
        for (i, entry) in self.l1(l1, entries).enumerate() {
            let table = entry & OFFSET;
            let start = i as u64 * h.l2_reach();
            if table == 0 || start >= size {
                continue;
            }
            let outside = || format!("L1 entry {i} refers to {table:#x}, outside the file");
            let mut entries = words(self.cluster(table).ok_or_else(outside)?);
            let mut at = start as usize;
            while let Some(entry) = entries.next() {
                let bitmap = if h.extended_l2() { entries.next().unwrap_or(0) } else { 0 };
                if at >= out.len() {
                    break;
                }
                let end = (at + h.cluster_size() as usize).min(out.len());
                if entry != 0 || bitmap != 0 {
                    self.cluster_content(entry, bitmap, &mut out[at..end])
                        .map_err(|e| format!("guest offset {at:#x}: {e}"))?;
                }
                at = end;
            }
        }
        Ok(out)
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
