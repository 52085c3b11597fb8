//! The store: what a live snapshot has saved.
//!
//! ```text
//! 0        head A, 4,096 bytes  ┐ the valid one with the higher sequence counts;
//! 4096     head B, 4,096 bytes  ┘ a change of state writes the other one, then flushes
//! 8192     segment │ segment │ …
//!
//! head:    "SNAPLIVE" │ version 4 │ crc 4 │ sequence 8 │ generation 8 │ disk size 8 │ taken s 8 │ ns 4 │ state 1 │ mark 16 │ stamp 8
//! segment: "SNAPSEGM" │ crc 4 │ crc of the data 4 │ generation 8 │ number 8 │ count 8 │ block numbers, 8 each
//!          │ zeroes up to a multiple of 4,096 │ the blocks, 4,096 bytes each
//! ```
//! All numbers are little-endian. A segment is written and flushed before any of its blocks is overwritten
//! on the disk, and before the next segment of the store is begun: so only the last one can be torn, its
//! checksum says so, and a torn one stands for blocks that were not overwritten yet. A generation is
//! one life of the log: a restore begins the next one, which makes all segments of the last invalid.
//!
//! The store is made, and its name durable, before its first head: a store without a valid head is
//! of a take that never was.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

use snapslot_disk::{Disk, DiskError, Doing};
use snapslot_slot::is_mark;

use crate::blocks::{BLOCK, Bytes};

const HEAD: u64 = 4096;
const LOG: u64 = 2 * HEAD;
const HEAD_MAGIC: &[u8; 8] = b"SNAPLIVE";
const SEGMENT_MAGIC: &[u8; 8] = b"SNAPSEGM";
const VERSION: u32 = 1;
/// Bytes of a segment before its block numbers.
const SEGMENT_HEAD: usize = 40;
/// Blocks of one segment: 16 MiB, so that what is in memory at once stays small.
pub(crate) const SEGMENT_MAX: usize = 4096;

/// What the store is for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The snapshot is whole.
    Held,
    /// The disk is being set back.
    Restoring,
    /// The snapshot could not be kept whole: its content is gone.
    Lost,
}

/// The head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Grows with every change.
    pub(crate) sequence: u64,
    /// The log's life.
    pub generation: u64,
    /// Bytes of the disk.
    pub disk_size: u64,
    /// When it was taken, seconds since 1970,
    pub taken_seconds: u64,
    /// and nanoseconds.
    pub taken_nanoseconds: u32,
    /// What it is for.
    pub state: State,
    /// The slot's mark.
    pub mark: String,
    /// What the disk's file said of its last change when its server was stopped in good order; 0: it serves,
    /// or nobody knows. Another one later tells that the disk was written past its server.
    pub stamp: u64,
}

impl Head {
    /// The first one of a snapshot that is taken at this time, seconds since 1970 and nanoseconds.
    pub(crate) fn new(mark: &str, disk_size: u64, taken: (u64, u32)) -> Head {
        Head {
            sequence: 0,
            generation: 1,
            disk_size,
            taken_seconds: taken.0,
            taken_nanoseconds: taken.1,
            state: State::Held,
            mark: mark.to_owned(),
            stamp: 0,
        }
    }

    fn bytes(&self) -> [u8; HEAD as usize] {
        let mut out = [0; HEAD as usize];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(HEAD_MAGIC);
        put(&VERSION.to_le_bytes());
        put(&[0; 4]);
        for n in [self.sequence, self.generation, self.disk_size, self.taken_seconds] {
            put(&n.to_le_bytes());
        }
        put(&self.taken_nanoseconds.to_le_bytes());
        put(&[match self.state {
            State::Held => 1,
            State::Restoring => 2,
            State::Lost => 3,
        }]);
        put(&self.mark.as_bytes()[..16.min(self.mark.len())]);
        put(&self.stamp.to_le_bytes());
        let crc = crc32c::crc32c(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn read(bytes: &[u8]) -> Option<Head> {
        let mut copy = bytes.get(..HEAD as usize)?.to_vec();
        let crc = u32_at(&copy, 12);
        copy[12..16].fill(0);
        if &copy[..8] != HEAD_MAGIC || u32_at(&copy, 8) != VERSION || crc32c::crc32c(&copy) != crc {
            return None;
        }
        let mark = std::str::from_utf8(&copy[53..69]).ok().filter(|m| is_mark(m))?;
        Some(Head {
            sequence: u64_at(&copy, 16),
            generation: u64_at(&copy, 24),
            disk_size: u64_at(&copy, 32),
            taken_seconds: u64_at(&copy, 40),
            taken_nanoseconds: u32_at(&copy, 48),
            state: match copy[52] {
                1 => State::Held,
                2 => State::Restoring,
                3 => State::Lost,
                _ => return None,
            },
            mark: mark.to_owned(),
            stamp: u64_at(&copy, 69),
        })
    }

    /// Whether the disk was written past its server: `now` is what its file says; none: it says nothing.
    pub fn is_overtaken(&self, now: Option<u64>) -> bool {
        self.stamp != 0 && now.is_some_and(|now| now != self.stamp)
    }

    /// The head that counts; none: there is no snapshot.
    pub fn of(store: &dyn Disk) -> Result<Option<Head>, DiskError> {
        let size = store.size()?;
        let mut found: Option<Head> = None;
        for slot in 0..2 {
            if size < (slot + 1) * HEAD {
                continue;
            }
            let mut bytes = vec![0; HEAD as usize];
            store.read_at(slot * HEAD, &mut bytes)?;
            if let Some(head) = Head::read(&bytes)
                && found.as_ref().is_none_or(|f| f.sequence < head.sequence)
            {
                found = Some(head);
            }
        }
        Ok(found)
    }

    /// Writes it in place of the older one, and flushes.
    pub(crate) fn write(&self, store: &dyn Disk) -> Result<(), DiskError> {
        self.put(store)?;
        store.flush()
    }

    /// Writes it in place of the older one.
    pub(crate) fn put(&self, store: &dyn Disk) -> Result<(), DiskError> {
        store.write_at(self.sequence % 2 * HEAD, &self.bytes())
    }

    /// Whether what was read by this head is of its snapshot still: the head has moved on only to say that the
    /// disk is being set back, which changes nothing that was not saved.
    pub(crate) fn still_holds(&self, store: &dyn Disk) -> Result<bool, DiskError> {
        // A store that was removed is read on by those who have it open; the disk is not saved in it any more.
        if store.descriptor().is_some_and(is_removed) {
            return Ok(false);
        }
        let now = Head::of(store)?;
        Ok(now.is_some_and(|now| {
            now.state != State::Lost && now.mark == self.mark && now.generation == self.generation
        }))
    }
}

fn is_removed(file: BorrowedFd<'_>) -> bool {
    let meta = file.try_clone_to_owned().map(File::from).and_then(|file| file.metadata());
    meta.map_or(true, |meta| meta.nlink() == 0)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

/// Where the log goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) generation: u64,
    pub(crate) number: u64,
    pub(crate) at: u64,
}

impl Tail {
    pub(crate) fn start(generation: u64) -> Self {
        Tail { generation, number: 0, at: LOG }
    }

    /// Bytes that a segment of so many blocks takes.
    pub(crate) fn bytes_of(blocks: usize) -> u64 {
        (SEGMENT_HEAD as u64 + blocks as u64 * 8).next_multiple_of(BLOCK) + blocks as u64 * BLOCK
    }

    /// Appends a segment, not flushed, in one write. Gives where each block lies.
    pub(crate) fn append(
        &mut self,
        store: &dyn Disk,
        blocks: &[u64],
        fill: &mut dyn FnMut(&mut [u8]) -> Result<(), DiskError>,
        buf: &mut Vec<u8>,
    ) -> Result<u64, DiskError> {
        let head = (SEGMENT_HEAD + blocks.len() * 8).next_multiple_of(BLOCK as usize);
        let whole = head + blocks.len() * BLOCK as usize;
        buf.resize(whole.max(buf.len()), 0);
        let out = &mut buf[..whole];
        fill(&mut out[head..])?;
        out[..head].fill(0);
        out[..8].copy_from_slice(SEGMENT_MAGIC);
        let crc = crc32c::crc32c(&out[head..]);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out[16..24].copy_from_slice(&self.generation.to_le_bytes());
        out[24..32].copy_from_slice(&self.number.to_le_bytes());
        out[32..40].copy_from_slice(&(blocks.len() as u64).to_le_bytes());
        for (i, block) in blocks.iter().enumerate() {
            let at = SEGMENT_HEAD + i * 8;
            out[at..at + 8].copy_from_slice(&block.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out[..head]);
        out[8..12].copy_from_slice(&crc.to_le_bytes());
        store.write_at(self.at, out)?;
        let data = self.at + head as u64;
        self.at += whole as u64;
        self.number += 1;
        Ok(data)
    }

    /// Reads the next segment's blocks, and where they lie; none: the log ends here, or with a segment that
    /// is not whole. One that another follows was flushed before that one was begun, so it is whole.
    pub(crate) fn next(
        &mut self,
        store: &dyn Disk,
        disk_size: u64,
    ) -> Result<Option<(Vec<u64>, u64)>, DiskError> {
        let mut after = *self;
        let Some(found) = after.read(store, disk_size, false)? else { return Ok(None) };
        if { after }.read(store, disk_size, false)?.is_none() {
            return self.read(store, disk_size, true);
        }
        *self = after;
        Ok(Some(found))
    }

    /// Reads a segment. With `data` its bytes are checked too.
    fn read(
        &mut self,
        store: &dyn Disk,
        disk_size: u64,
        data: bool,
    ) -> Result<Option<(Vec<u64>, u64)>, DiskError> {
        let size = store.size()?;
        let mut first = vec![0; BLOCK as usize];
        if self.at + BLOCK > size {
            return Ok(None);
        }
        store.read_at(self.at, &mut first)?;
        let count = u64_at(&first, 32);
        let ours = &first[..8] == SEGMENT_MAGIC
            && u64_at(&first, 16) == self.generation
            && u64_at(&first, 24) == self.number
            && (1..=SEGMENT_MAX as u64).contains(&count);
        let count = count as usize;
        if !ours || self.at + Self::bytes_of(count) > size {
            return Ok(None);
        }
        let head = (SEGMENT_HEAD + count * 8).next_multiple_of(BLOCK as usize);
        let mut bytes = first;
        if head > bytes.len() {
            bytes.resize(head, 0);
            store.read_at(self.at, &mut bytes)?;
        }
        let crc = u32_at(&bytes, 8);
        let of_data = u32_at(&bytes, 12);
        bytes[8..12].fill(0);
        if crc32c::crc32c(&bytes) != crc {
            return Ok(None);
        }
        let at = self.at + head as u64;
        if data && checksum(store, at, count)? != of_data {
            return Ok(None);
        }
        let blocks: Vec<u64> = (0..count).map(|i| u64_at(&bytes, SEGMENT_HEAD + i * 8)).collect();
        let last = disk_size.div_ceil(BLOCK);
        if blocks.iter().any(|b| *b >= last) {
            let what = std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "the store of the live snapshot names blocks outside the disk",
            );
            return Err(DiskError::io("the store", Doing::Read, what));
        }
        self.at += Self::bytes_of(count);
        self.number += 1;
        Ok(Some((blocks, at)))
    }
}

fn checksum(store: &dyn Disk, at: u64, count: usize) -> Result<u32, DiskError> {
    let (mut crc, mut block) = (0, [0; BLOCK as usize]);
    for i in 0..count as u64 {
        store.read_at(at + i * BLOCK, &mut block)?;
        crc = crc32c::crc32c_append(crc, &block);
    }
    Ok(crc)
}

/// Reads a saved block.
pub(crate) fn saved(store: &dyn Disk, at: u64) -> Result<Bytes, DiskError> {
    let mut block = crate::blocks::empty();
    store.read_at(at, &mut block[..])?;
    Ok(block)
}
