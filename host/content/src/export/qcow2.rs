//! Qcow2 images, written from nothing: version 3, clusters of 64 KiB, counts of 16 bits.
//!
//! ```text
//! 0          header (one cluster)
//! 64 KiB     content, as it comes: whole clusters, and packed ones byte after byte
//!            L2 tables │ L1 table │ refcount blocks │ refcount table
//! ```
//! Content goes where the next free place is, so threads only meet to move that on. The tables
//! are kept in memory (8 bytes for each cluster of content) and written at the end. The file has no
//! name yet, so no order among these writes matters; it is flushed before it is named.
//! Field by field: docs/interop/qcow2.txt of QEMU.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use flate2::{Compress, FlushCompress, Status};
use snapslot_disk::Doing;

use super::target::{Target, clone_range};
use super::{Packing, Sink};
use crate::{ContentError, SharedRange, is_zero};

/// Bytes of a cluster, QEMU's own default.
pub(super) const CLUSTER: u64 = 64 << 10;
const CLUSTER_BITS: u32 = 16;
const ENTRIES: u64 = CLUSTER / 8;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const REFCOUNT_BITS_ORDER: u32 = 4;
const COUNTS_PER_BLOCK: u64 = CLUSTER / 2;
/// In a compressed entry, sectors behind the first: the field begins at this bit.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);
/// Bytes of room asked for at once.
const ROOM: u64 = 64 << 20;
/// The largest disk: an L1 table of 32 MiB, which is QEMU's own limit.
const SIZE_MAX: u64 = (32 << 20) / 8 * ENTRIES * CLUSTER;

type Table = Box<[AtomicU64]>;

pub(super) struct Qcow2<'t> {
    target: &'t Target,
    size: u64,
    packing: Option<(Packing, Option<i32>)>,
    tables: Vec<OnceLock<Table>>,
    /// Where the next content goes, and up to where there is room set aside.
    next: Mutex<(u64, u64)>,
    written: AtomicU64,
}

impl<'t> Qcow2<'t> {
    pub(super) fn new(
        target: &'t Target,
        size: u64,
        packing: Option<(Packing, Option<i32>)>,
    ) -> Result<Self, ContentError> {
        if size > SIZE_MAX {
            let why =
                format!("a qcow2 image with clusters of 64 KiB holds at most {SIZE_MAX} bytes");
            return Err(ContentError::Target { name: target.name().to_owned(), why });
        }
        let tables = (0..size.div_ceil(CLUSTER * ENTRIES)).map(|_| OnceLock::new()).collect();
        let next = Mutex::new((CLUSTER, CLUSTER));
        Ok(Qcow2 { target, size, packing, tables, next, written: AtomicU64::new(0) })
    }

    fn fail(&self, doing: Doing, e: std::io::Error) -> ContentError {
        ContentError::io(self.target.name(), doing, e)
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<(), ContentError> {
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.target.write_at(at, bytes).map_err(|e| self.fail(Doing::Write, e))
    }

    /// Room for so many bytes, from a multiple of `align` on.
    fn room(&self, length: u64, align: u64) -> u64 {
        let mut next = self.next.lock().unwrap_or_else(|e| e.into_inner());
        let at = next.0.next_multiple_of(align);
        next.0 = at + length;
        if next.0 > next.1 {
            next.1 = next.0 + ROOM;
            self.target.set_aside(at, next.1 - at);
        }
        at
    }

    fn clone(&self, range: SharedRange<'_>, at: u64) -> Result<bool, ContentError> {
        let shared = clone_range(range.file, range.offset, range.length, self.target.file(), at);
        shared.map_err(|e| self.fail(Doing::Write, e))
    }

    fn entry(&self, guest: u64) -> &AtomicU64 {
        let cluster = guest / CLUSTER;
        let table = self.tables[(cluster / ENTRIES) as usize]
            .get_or_init(|| (0..ENTRIES).map(|_| AtomicU64::new(0)).collect());
        &table[(cluster % ENTRIES) as usize]
    }

    fn point(&self, guest: u64, host: u64) {
        self.entry(guest).store(host | COPIED, Ordering::Relaxed);
    }

    fn plain(&self, start: u64, bytes: &[u8]) -> Result<(), ContentError> {
        let clusters: Vec<&[u8]> = bytes.chunks(CLUSTER as usize).collect();
        let mut i = 0;
        while i < clusters.len() {
            let run = i;
            while i < clusters.len() && !is_zero(clusters[i]) {
                i += 1;
            }
            if i > run {
                let from = run * CLUSTER as usize;
                let to = bytes.len().min(i * CLUSTER as usize);
                let at = self.room((i - run) as u64 * CLUSTER, CLUSTER);
                self.write(at, &bytes[from..to])?;
                for k in run..i {
                    let guest = start + k as u64 * CLUSTER;
                    self.point(guest, at + (k - run) as u64 * CLUSTER);
                }
            } else {
                i += 1;
            }
        }
        Ok(())
    }

    fn packed(
        &self,
        start: u64,
        bytes: &[u8],
        packing: Packing,
        level: Option<i32>,
    ) -> Result<(), ContentError> {
        let mut packer = Packer::new(packing, level).map_err(|e| self.fail(Doing::Write, e))?;
        // All of a piece goes out in one write; clusters that do not shrink go by themselves.
        let mut joined: Vec<u8> = Vec::with_capacity(bytes.len() / 2);
        let mut parts: Vec<(u64, usize, usize)> = Vec::new();
        let mut whole = Vec::new();
        for (i, cluster) in bytes.chunks(CLUSTER as usize).enumerate() {
            let guest = start + i as u64 * CLUSTER;
            if is_zero(cluster) {
                continue;
            }
            let cluster = match cluster.len() as u64 {
                CLUSTER => cluster,
                _ => {
                    whole.clear();
                    whole.extend_from_slice(cluster);
                    whole.resize(CLUSTER as usize, 0);
                    &whole
                }
            };
            let before = joined.len();
            match packer.pack(cluster, &mut joined).map_err(|e| self.fail(Doing::Write, e))? {
                true => parts.push((guest, before, joined.len())),
                false => {
                    joined.truncate(before);
                    let at = self.room(CLUSTER, CLUSTER);
                    self.write(at, cluster)?;
                    self.point(guest, at);
                }
            }
        }
        if joined.is_empty() {
            return Ok(());
        }
        let at = self.room(joined.len() as u64, 1);
        self.write(at, &joined)?;
        for (guest, from, to) in parts {
            let (offset, end) = (at + from as u64, at + to as u64);
            // Sectors that it touches, behind the first.
            let sectors = (end - 1) / 512 - offset / 512;
            let entry = COMPRESSED | sectors << SECTORS_SHIFT | offset;
            self.entry(guest).store(entry, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Counts references of every cluster of content.
    fn counts(&self, clusters: u64) -> Vec<u16> {
        let mut counts = vec![0_u16; clusters as usize];
        counts[0] = 1;
        for table in self.tables.iter().filter_map(OnceLock::get) {
            for entry in table {
                let entry = entry.load(Ordering::Relaxed);
                if entry & COMPRESSED != 0 {
                    let offset = entry & ((1 << SECTORS_SHIFT) - 1);
                    let sectors = entry >> SECTORS_SHIFT & ((1 << (62 - SECTORS_SHIFT)) - 1);
                    let end = (offset / 512 + sectors) * 512;
                    for cluster in offset / CLUSTER..=end / CLUSTER {
                        // A packed cluster is of some bytes: fewer than 65,536 begin in one.
                        counts[cluster as usize] += 1;
                    }
                } else if entry != 0 {
                    counts[((entry & !COPIED) / CLUSTER) as usize] += 1;
                }
            }
        }
        counts
    }

    fn header(&self, l1: (u64, u64), refcounts: (u64, u64)) -> Vec<u8> {
        let mut header = vec![0; 112];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"QFI\xfb");
        put(4, &3_u32.to_be_bytes());
        put(20, &CLUSTER_BITS.to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(36, &(l1.1 as u32).to_be_bytes());
        put(40, &l1.0.to_be_bytes());
        put(48, &refcounts.0.to_be_bytes());
        put(56, &(refcounts.1 as u32).to_be_bytes());
        // Incompatible: bit 3, another compression than deflate.
        let zstd = matches!(self.packing, Some((Packing::Zstd, _)));
        put(72, &(u64::from(zstd) << 3).to_be_bytes());
        put(96, &REFCOUNT_BITS_ORDER.to_be_bytes());
        put(100, &112_u32.to_be_bytes());
        put(104, &[u8::from(zstd)]);
        header
    }
}

impl Sink for Qcow2<'_> {
    fn data(&self, _number: u64, start: u64, bytes: &[u8]) -> Result<(), ContentError> {
        match self.packing {
            None => self.plain(start, bytes),
            Some((packing, level)) => self.packed(start, bytes, packing, level),
        }
    }

    fn zero(&self, _number: u64, _start: u64, _length: u64) -> Result<(), ContentError> {
        Ok(())
    }

    fn can_share(&self, _start: u64, mut range: SharedRange<'_>) -> Result<bool, ContentError> {
        range.length = range.length.min(CLUSTER);
        let next = self.next.lock().unwrap_or_else(|e| e.into_inner());
        // The next place stays the next: the same content, or other, goes there first.
        self.clone(range, next.0.next_multiple_of(CLUSTER))
    }

    fn share(&self, start: u64, range: SharedRange<'_>) -> Result<bool, ContentError> {
        let length = range.length.next_multiple_of(CLUSTER);
        let at = {
            // The place is taken only if blocks can be shared there.
            let mut next = self.next.lock().unwrap_or_else(|e| e.into_inner());
            let at = next.0.next_multiple_of(CLUSTER);
            if !self.clone(range, at)? {
                return Ok(false);
            }
            next.0 = at + length;
            next.1 = next.1.max(next.0);
            at
        };
        for i in 0..range.length.div_ceil(CLUSTER) {
            self.point(start + i * CLUSTER, at + i * CLUSTER);
        }
        Ok(true)
    }

    fn finish(&self) -> Result<u64, ContentError> {
        let end = self.next.lock().unwrap_or_else(|e| e.into_inner()).0.next_multiple_of(CLUSTER);
        let used = |t: &&OnceLock<Table>| t.get().is_some();
        let l2_tables = self.tables.iter().filter(used).count() as u64;
        let l1_entries = self.tables.len() as u64;
        let l1_clusters = (l1_entries * 8).div_ceil(CLUSTER).max(1);
        let l1_at = end + l2_tables * CLUSTER;
        let before = (l1_at + l1_clusters * CLUSTER) / CLUSTER;
        // Blocks count themselves and their table too.
        let (mut blocks, mut table) = (1, 1);
        while (before + blocks + table).div_ceil(COUNTS_PER_BLOCK) > blocks
            || (blocks * 8).div_ceil(CLUSTER) > table
        {
            blocks = (before + blocks + table).div_ceil(COUNTS_PER_BLOCK);
            table = (blocks * 8).div_ceil(CLUSTER);
        }
        let mut l1 = Vec::with_capacity((l1_clusters * CLUSTER) as usize);
        let mut at = end;
        for table in &self.tables {
            let Some(table) = table.get() else {
                l1.extend_from_slice(&[0; 8]);
                continue;
            };
            let bytes: Vec<u8> =
                table.iter().flat_map(|e| e.load(Ordering::Relaxed).to_be_bytes()).collect();
            self.write(at, &bytes)?;
            l1.extend_from_slice(&(at | COPIED).to_be_bytes());
            at += CLUSTER;
        }
        l1.resize((l1_clusters * CLUSTER) as usize, 0);
        self.write(l1_at, &l1)?;
        let blocks_at = before * CLUSTER;
        let table_at = blocks_at + blocks * CLUSTER;
        let mut counts = self.counts(end / CLUSTER);
        counts.resize((before + blocks + table) as usize, 1);
        // Room at the end of the last data cluster may have nothing in it; all others count.
        let mut bytes: Vec<u8> = counts.iter().flat_map(|c| c.to_be_bytes()).collect();
        bytes.resize((blocks * CLUSTER) as usize, 0);
        self.write(blocks_at, &bytes)?;
        let mut bytes: Vec<u8> =
            (0..blocks).flat_map(|i| (blocks_at + i * CLUSTER).to_be_bytes()).collect();
        bytes.resize((table * CLUSTER) as usize, 0);
        self.write(table_at, &bytes)?;
        self.write(0, &self.header((l1_at, l1_entries), (table_at, table)))?;
        // Gives back the room that was set aside behind the end.
        let length = table_at + table * CLUSTER;
        self.target.file().set_len(length).map_err(|e| self.fail(Doing::Resize, e))?;
        Ok(self.written.load(Ordering::Relaxed))
    }
}

/// Compresses clusters one by one, with one context for all of them.
enum Packer {
    Zlib(Box<Compress>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Packer {
    fn new(packing: Packing, level: Option<i32>) -> std::io::Result<Self> {
        Ok(match packing {
            // The window is part of the format: 4 KiB.
            Packing::Zlib => Packer::Zlib(Box::new(Compress::new_with_window_bits(
                flate2::Compression::new(level.unwrap_or(6).clamp(0, 9).unsigned_abs()),
                false,
                12,
            ))),
            Packing::Zstd => Packer::Zstd(zstd::bulk::Compressor::new(level.unwrap_or(1))?),
        })
    }

    /// Appends; `false` if it does not get smaller.
    fn pack(&mut self, cluster: &[u8], to: &mut Vec<u8>) -> std::io::Result<bool> {
        let before = to.len();
        let most = cluster.len() - 512;
        match self {
            Packer::Zlib(stream) => {
                stream.reset();
                to.reserve(most);
                let room = to.capacity();
                let result = stream.compress_vec(cluster, to, FlushCompress::Finish);
                debug_assert!(to.capacity() == room, "it writes into the room there is");
                Ok(matches!(result.map_err(std::io::Error::other)?, Status::StreamEnd)
                    && to.len() - before <= most)
            }
            Packer::Zstd(stream) => {
                let bound = zstd::zstd_safe::compress_bound(cluster.len());
                to.resize(before + bound, 0);
                let n = stream.compress_to_buffer(cluster, &mut to[before..])?;
                to.truncate(before + n);
                Ok(n <= most)
            }
        }
    }
}
