//! The commit: what waits is saved, and overwritten. The order is at the head of the module above.

use std::sync::atomic::Ordering;

use snapslot_disk::{Disk, DiskError};

use super::{Held, LiveDisk, LiveError, OnFull, RUN_MAX, Slot, lock};
use crate::blocks::{BLOCK, runs};
use crate::store::{SEGMENT_MAX, Tail};

/// Why a moment is held no longer.
const NO_ROOM: &str = "the file system is full";

/// Gives the content of blocks, one after the other.
type Fill<'a> = dyn Fn(&[u64], &mut [u8]) -> Result<(), DiskError> + 'a;
/// Makes what was appended to a store as durable as it is to be.
type Secured<'a> = dyn Fn(&dyn Disk) -> Result<(), DiskError> + 'a;

/// Whether more room in the file system would help; a store that has all it may have is another matter.
fn takes_room(error: &LiveError) -> bool {
    matches!(error, LiveError::Disk(e) if e.is_no_space())
}

impl LiveDisk {
    /// Saves what waits to be overwritten, and overwrites it.
    pub fn commit(&self) -> Result<(), LiveError> {
        // A commit under way may have what a flush is about; and what one that failed left is going still, so
        // that nothing waits does not mean that there is nothing to do.
        let mut slot = lock(&self.slot);
        if self.waiting.load(Ordering::Acquire) + self.going.load(Ordering::Acquire) == 0 {
            return self.check_sound();
        }
        let result = self.commit_noted(&mut slot);
        drop(slot);
        let _order = lock(&self.wanted);
        self.ended.notify_all();
        result
    }

    /// The same of who has the slot, and takes note of how it stands then.
    pub(super) fn commit_noted(&self, slot: &mut Slot) -> Result<(), LiveError> {
        let result = self.commit_with(slot);
        self.note(slot);
        result
    }

    fn commit_with(&self, slot: &mut Slot) -> Result<(), LiveError> {
        self.check_sound()?;
        let nobody_reads = |slot: &Slot| slot.held.is_none() && slot.now.is_none();
        if nobody_reads(slot) {
            // The snapshot went, and what waited could not be brought to the disk then.
            return self.end_waiting();
        }
        let blocks = self.gather();
        let fresh: Vec<u64> = blocks.iter().copied().filter(|b| !self.is_saved(*b)).collect();
        let mut saved = self.save_held(slot, &fresh);
        if saved.as_ref().is_err_and(takes_room) && slot.now.is_some() {
            self.give_up(slot, NO_ROOM);
            saved = self.save_held(slot, &fresh);
        }
        if slot.held.is_some() {
            match saved {
                Ok(()) => {}
                Err(e) if e.is_no_space() && self.knobs.on_full == OnFull::FailWrites => {
                    let why = format!("{e}, and writes are to fail before the snapshot is lost");
                    return self.stuck(Err(LiveError::Stuck { why, no_space: true }));
                }
                Err(e) => self.lose(slot, &e.to_string())?,
            }
        }
        self.save_now(slot, &fresh);
        if nobody_reads(slot) {
            // There is nothing left to keep the old content for.
            return self.end_waiting();
        }
        // From here on the old content is durable in the snapshot's store, and its reader's has it.
        for block in fresh {
            self.mark_saved(block);
        }
        let mut overwritten = self.overwrite(&blocks);
        if overwritten.as_ref().is_err_and(DiskError::is_no_space) && slot.now.is_some() {
            self.give_up(slot, NO_ROOM);
            if nobody_reads(slot) {
                return self.end_waiting();
            }
            // What waits by now is not saved yet: only what is left of this commit.
            let is_left = |block: &u64| lock(self.shard(*block)).going.contains_key(block);
            let left: Vec<u64> = blocks.iter().copied().filter(is_left).collect();
            overwritten = self.overwrite(&left);
        }
        self.stuck(overwritten.map_err(LiveError::from))
    }

    /// Gives up the moment that is held, if one is, for the room that it takes; whether it was.
    pub(super) fn make_room(&self) -> bool {
        let mut slot = lock(&self.slot);
        let has_now = slot.now.is_some();
        self.give_up(&mut slot, NO_ROOM);
        has_now
    }

    fn save_held(&self, slot: &mut Slot, blocks: &[u64]) -> Result<(), LiveError> {
        let Some(held) = &mut slot.held else { return Ok(()) };
        self.save(held, blocks, &|store| store.flush())
    }

    /// Takes note of whether commits get on: where they do not, first writes fail instead of waiting.
    pub(super) fn stuck<T>(&self, result: Result<T, LiveError>) -> Result<T, LiveError> {
        let why = result.as_ref().err().map(|e| (e.to_string(), e.is_no_space()));
        self.is_stuck.store(why.is_some(), Ordering::Release);
        *lock(&self.stuck) = why;
        result
    }

    /// Has all that waits go; gives the blocks, ascending. What a commit could not end is among them.
    pub(super) fn gather(&self) -> Vec<u64> {
        let mut blocks: Vec<u64> = Vec::new();
        for shard in &self.shards {
            let mut shard = lock(shard);
            let shard = &mut *shard;
            for (block, bytes) in shard.waiting.drain() {
                if shard.going.insert(block, bytes).is_none() {
                    self.going.fetch_add(1, Ordering::AcqRel);
                }
                self.waiting.fetch_sub(1, Ordering::AcqRel);
            }
            blocks.extend(shard.going.keys());
        }
        blocks.sort_unstable();
        blocks
    }

    /// Appends blocks as the disk has them, those that the store has not got.
    pub(super) fn save(
        &self,
        held: &mut Held,
        blocks: &[u64],
        secured: &Secured<'_>,
    ) -> Result<(), LiveError> {
        let lacks = |block: &u64| !held.places.contains_key(block);
        let blocks: Vec<u64> = blocks.iter().copied().filter(lacks).collect();
        if blocks.is_empty() {
            return Ok(());
        }
        let needed: u64 = blocks.chunks(SEGMENT_MAX).map(|some| Tail::bytes_of(some.len())).sum();
        if held.tail.at.saturating_add(needed) > self.knobs.store_max {
            return Err(LiveError::Full);
        }
        let fill = |some: &[u64], out: &mut [u8]| {
            let mut at = 0;
            for (first, n) in runs(some, RUN_MAX) {
                let end = ((first + n as u64) * BLOCK).min(self.size);
                let length = (end - first * BLOCK) as usize;
                let into = &mut out[at..at + n * BLOCK as usize];
                into[length..].fill(0);
                self.disk.read_at(first * BLOCK, &mut into[..length])?;
                at += n * BLOCK as usize;
            }
            Ok(())
        };
        Ok(self.append(held, &blocks, &fill, secured)?)
    }

    /// Appends blocks as `fill` gives them. Each segment is secured before the next is begun: only the last one may be
    /// torn.
    pub(super) fn append(
        &self,
        held: &mut Held,
        blocks: &[u64],
        fill: &Fill<'_>,
        secured: &Secured<'_>,
    ) -> Result<(), DiskError> {
        let mut buf = lock(&self.buf);
        for some in blocks.chunks(SEGMENT_MAX) {
            let at = held.tail.append(&*held.store, some, &mut |out| fill(some, out), &mut buf)?;
            secured(&*held.store)?;
            held.note(some, at);
        }
        Ok(())
    }

    /// Writes what is going to the disk. Gone from memory only when it is there. What cannot be written, as where
    /// a hole of a full file system would have to be filled, does not keep the rest from being written.
    pub(super) fn overwrite(&self, blocks: &[u64]) -> Result<(), DiskError> {
        let mut buf = lock(&self.buf);
        let mut failed = None;
        for (first, n) in runs(blocks, RUN_MAX) {
            let room = buf.len().max(n * BLOCK as usize);
            buf.resize(room, 0);
            for i in 0..n {
                let block = first + i as u64;
                if let Some(bytes) = lock(self.shard(block)).going.get(&block) {
                    buf[i * BLOCK as usize..(i + 1) * BLOCK as usize].copy_from_slice(&bytes[..]);
                }
            }
            let end = ((first + n as u64) * BLOCK).min(self.size);
            let length = (end - first * BLOCK) as usize;
            if let Err(e) = self.disk.write_at(first * BLOCK, &buf[..length]) {
                failed.get_or_insert(e);
                continue;
            }
            for block in first..first + n as u64 {
                if lock(self.shard(block)).going.remove(&block).is_some() {
                    self.going.fetch_sub(1, Ordering::AcqRel);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}
