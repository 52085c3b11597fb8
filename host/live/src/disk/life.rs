//! The life of the snapshot: found again, taken, restored, deleted, given up. The order of each is at the head of
//! the module above.

use std::sync::atomic::Ordering;

use snapslot_disk::{Disk, DiskError, Range};
use snapslot_slot::is_mark;

use super::{Held, LiveDisk, LiveError, RUN_MAX, Shard, Slot, lock};
use crate::blocks::{BLOCK, ByBlock, runs};
use crate::store::{Head, State, Tail, saved};

/// Why a moment is held no longer.
const CHANGED: &str = "the slot was changed meanwhile";

impl Held {
    /// Makes the head durable as it is now, as the one that counts.
    fn write_head(&mut self) -> Result<(), DiskError> {
        self.head.sequence += 1;
        self.head.write(&*self.store)
    }
}

/// Gives the room of what was saved back. A hint: where it cannot be done the room goes with the store.
pub(super) fn empty(store: &dyn Disk) {
    let offset = Tail::start(0).at;
    if let Some(length) =
        store.size().ok().and_then(|size| size.checked_sub(offset)).filter(|n| *n > 0)
    {
        let _ = store.discard(Range { offset, length });
    }
}

impl LiveDisk {
    pub(super) fn find(&self) -> Result<(), LiveError> {
        let Some(store) = self.companion.reopen()? else { return Ok(()) };
        let Some(head) = Head::of(&*store)? else {
            // Of a take that never was.
            self.companion.remove()?;
            self.companion.sync_name()?;
            return Ok(());
        };
        let mut slot = lock(&self.slot);
        if head.state == State::Lost {
            // A crash may have come before its room was given back.
            empty(&*store);
            slot.lost = Some((head, "its store was full or failed".to_owned()));
            return Ok(());
        }
        if head.disk_size != self.size {
            let size = LiveError::Size { then: head.disk_size, now: self.size };
            if head.state == State::Restoring {
                // Part of the disk is set back and the rest is in the store: neither is to go.
                return Err(size);
            }
            // Whoever gave it another size has written it past us.
            let (tail, places) = (Tail::start(head.generation), ByBlock::default());
            slot.held = Some(Held { head, store, tail, places });
            return self.lose(&mut slot, &size.to_string());
        }
        let (tail, places) = (Tail::start(head.generation), ByBlock::default());
        let mut held = Held { head, store, tail, places };
        while let Some((blocks, at)) = held.tail.next(&*held.store, self.size)? {
            held.note(&blocks, at);
            blocks.into_iter().for_each(|block| self.mark_saved(block));
        }
        let restoring = held.head.state == State::Restoring;
        if restoring {
            self.write_back(&mut held)?;
        } else {
            // Segments read here may be in memory only; what overwrites the disk comes after.
            held.store.flush()?;
        }
        slot.held = Some(held);
        *self.gate.write().unwrap_or_else(|e| e.into_inner()) = true;
        Ok(())
    }

    /// Begins to use the disk, whose file says this of its last change: a snapshot past which it was written is
    /// given up.
    pub fn begin(&self, stamp: Option<u64>) -> Result<(), LiveError> {
        let mut slot = lock(&self.slot);
        let Some(held) = slot.held.as_mut() else { return Ok(()) };
        if held.head.is_overtaken(stamp) {
            self.lose(&mut slot, "the disk was written past its server")?;
            self.note(&slot);
            return self.end_waiting();
        }
        if held.head.stamp != 0 {
            held.head.stamp = 0;
            held.write_head()?;
        }
        Ok(())
    }

    /// Ends using it, all being flushed: from now on nobody should write it.
    pub fn end(&self, stamp: Option<u64>) -> Result<(), LiveError> {
        let mut slot = lock(&self.slot);
        if let (Some(held), Some(stamp)) = (slot.held.as_mut(), stamp) {
            held.head.stamp = stamp;
            held.write_head()?;
        }
        Ok(())
    }

    /// Gives the snapshot up, durably: the store says so, or is not there any more.
    pub(super) fn lose(&self, slot: &mut Slot, why: &str) -> Result<(), LiveError> {
        let Some(mut held) = slot.held.take() else { return Ok(()) };
        held.head.state = State::Lost;
        match held.write_head() {
            // Readers that find nothing there any more find the head that says why.
            Ok(()) => empty(&*held.store),
            Err(_) if self.remove_store().is_ok() => {}
            Err(_) => {
                // Neither: to go on would leave a snapshot that claims to be whole.
                slot.held = Some(held);
                return Err(self.break_down(&format!("its snapshot cannot be given up: {why}")));
            }
        }
        slot.lost = Some((held.head, why.to_owned()));
        slot.untold = !self.tell(slot);
        Ok(())
    }

    fn remove_store(&self) -> Result<(), DiskError> {
        self.companion.remove().and_then(|()| self.companion.sync_name())
    }

    /// Takes a snapshot.
    pub fn take(&self, mark: &str, seconds: u64, nanoseconds: u32) -> Result<(), LiveError> {
        if !is_mark(mark) {
            return Err(LiveError::Mark { mark: mark.to_owned() });
        }
        self.check_sound()?;
        let mut slot = lock(&self.slot);
        if let Some(mark) = Self::mark_of(&slot) {
            return Err(LiveError::Held { mark });
        }
        self.give_up(&mut slot, CHANGED);
        if *self.enter() {
            // Of a snapshot that went: it comes before this one.
            self.end_waiting()?;
        }
        self.companion.remove()?;
        let store = self.companion.create()?;
        let begun = self.companion.sync_name().and_then(|()| self.disk.flush());
        if let Err(e) = begun {
            let _ = self.companion.remove();
            return Err(e.into());
        }
        let mut head = Head::new(mark, self.size, (seconds, nanoseconds));
        self.no_saved();
        *self.close() = true;
        // Writes go on; first ones wait, and no commit takes them before the head is durable.
        let tail = Tail::start(1);
        let durable = self.disk.flush().and_then(|()| {
            store.extend(tail.at)?;
            // Both of them: so that giving the snapshot up on a full file system needs no room.
            head.put(&*store)?;
            head.sequence = 1;
            head.write(&*store)
        });
        let places = ByBlock::default();
        let mut held = Held { head, store, tail, places };
        let Err(e) = durable else {
            slot.held = Some(held);
            self.note(&slot);
            return Ok(());
        };
        // A head may be durable all the same, of a snapshot that nobody keeps.
        held.head.state = State::Lost;
        if self.remove_store().or_else(|_| held.write_head()).is_err() {
            let why = "a snapshot that could not be taken cannot be given up";
            return Err(self.break_down(&format!("{why}: {e}")));
        }
        // What waits is tried again if it cannot be brought to the disk now.
        let _ = self.end_waiting();
        Err(e.into())
    }

    /// Ends the time of first writes: what waits goes to the disk as it is. What cannot be brought there, for want
    /// of room or whatever else, goes on waiting, and the next commit tries again.
    pub(super) fn end_waiting(&self) -> Result<(), LiveError> {
        let mut gate = self.close();
        let blocks = self.gather();
        self.stuck(self.overwrite(&blocks).map_err(LiveError::from))?;
        self.no_saved();
        *gate = false;
        Ok(())
    }

    pub(super) fn mark_of(slot: &Slot) -> Option<String> {
        let head = slot.held.as_ref().map(|h| &h.head).or(slot.lost.as_ref().map(|(h, _)| h));
        head.map(|h| h.mark.clone())
    }

    /// Sets the disk back to the snapshot, which stays. Nobody may be using the disk.
    pub fn restore(&self, mark: &str) -> Result<(), LiveError> {
        self.check_sound()?;
        let mut slot = lock(&self.slot);
        if let Some((head, why)) = slot.lost.as_ref().filter(|(h, _)| h.mark == mark) {
            return Err(LiveError::Lost { mark: head.mark.clone(), why: why.clone() });
        }
        if slot.held.as_ref().is_some_and(|h| h.head.mark == mark) {
            self.give_up(&mut slot, CHANGED);
        }
        let Some(held) = slot.held.as_mut().filter(|h| h.head.mark == mark) else {
            return Err(LiveError::Missing { mark: mark.to_owned() });
        };
        let _closed = self.close();
        // It would be set back at once: where nothing was saved the disk has the old content still.
        for shard in &self.shards {
            let mut shard = lock(shard);
            self.waiting.fetch_sub(shard.waiting.len(), Ordering::AcqRel);
            self.going.fetch_sub(shard.going.len(), Ordering::AcqRel);
            *shard = Shard::default();
        }
        held.head.state = State::Restoring;
        if let Err(e) = held.write_head().and_then(|()| self.write_back(held)) {
            return Err(self.break_down(&e.to_string()));
        }
        self.note(&slot);
        Ok(())
    }

    /// The second half of a restore, from the head that says so on. Done twice it is done once.
    fn write_back(&self, held: &mut Held) -> Result<(), DiskError> {
        let mut blocks: Vec<u64> = held.places.keys().copied().collect();
        blocks.sort_unstable();
        for (first, n) in runs(&blocks, RUN_MAX) {
            let mut bytes = Vec::with_capacity(n * BLOCK as usize);
            for block in first..first + n as u64 {
                if let Some(place) = held.places.get(&block) {
                    bytes.extend_from_slice(&saved(&*held.store, *place)?[..]);
                }
            }
            let end = ((first + n as u64) * BLOCK).min(self.size);
            bytes.truncate((end - first * BLOCK) as usize);
            self.disk.write_at(first * BLOCK, &bytes)?;
        }
        self.disk.flush()?;
        held.head.state = State::Held;
        held.head.generation += 1;
        held.write_head()?;
        held.tail = Tail::start(held.head.generation);
        held.places.clear();
        self.no_saved();
        Ok(())
    }

    /// Drops the snapshot.
    pub fn delete(&self, mark: &str) -> Result<(), LiveError> {
        self.check_sound()?;
        let mut slot = lock(&self.slot);
        if Self::mark_of(&slot).as_deref() != Some(mark) {
            return Err(LiveError::Missing { mark: mark.to_owned() });
        }
        self.remove_store()?;
        self.give_up(&mut slot, CHANGED);
        *slot = Slot::default();
        self.note(&slot);
        // It is gone. What cannot be brought to the disk is told by the next flush.
        let _ = self.end_waiting();
        drop(slot);
        self.ended.notify_all();
        Ok(())
    }
}
