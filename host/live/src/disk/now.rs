//! The disk as it is at one moment, held for whoever reads it meanwhile while the machine goes on writing.
//!
//! It is a second snapshot beside the slot's, which nobody keeps: its store has no name, none of it is flushed, and
//! it ends with its reader or with this process. Where its store is full or fails, or the file system is full, or the
//! slot is filled, emptied or set back, it is given up and its room given back, though its reader may have the store
//! open still; the slot's snapshot and the machine's writes never are given up for its sake.
//!
//! ```text
//! hold       the gate closes for a moment: what waits in memory is of the moment too, and is copied to the store
//! write      a first write waits, as with a snapshot; the commit saves the old content in every store there is
//! given up   its reader is told, and only then is anything overwritten that it has not got
//! ```

use snapslot_disk::{Disk, DiskError};
use snapslot_slot::is_mark;

use super::life::empty;
use super::{Held, LiveDisk, LiveError, Slot, lock};
use crate::blocks::{BLOCK, ByBlock};
use crate::store::{Head, Tail};

/// A moment that is held.
pub(super) struct Now {
    pub(super) held: Held,
    /// Tells its reader that it is given up, and why.
    gone: Box<dyn FnOnce(&str) + Send>,
}

impl Now {
    /// Tells its reader first: what is read of an empty store is nothing.
    fn end(self, why: &str) {
        (self.gone)(why);
        empty(&*self.held.store);
    }
}

impl LiveDisk {
    /// Holds the disk as it is now in an empty store, until it is let go of. `gone` tells its reader that what is
    /// read from then on does not count.
    pub fn hold(
        &self,
        mark: &str,
        store: Box<dyn Disk>,
        gone: impl FnOnce(&str) + Send + 'static,
    ) -> Result<(), LiveError> {
        if !is_mark(mark) {
            return Err(LiveError::Mark { mark: mark.to_owned() });
        }
        self.check_sound()?;
        let mut slot = lock(&self.slot);
        if slot.now.is_some() {
            return Err(LiveError::Busy);
        }
        let head = Head::new(mark, self.size, (0, 0));
        let tail = Tail::start(head.generation);
        store.extend(tail.at)?;
        head.put(&*store)?;
        let mut held = Held { head, store, tail, places: ByBlock::default() };
        // Most of what waits goes to the disk while writes go on. What cannot is copied with the rest.
        let _ = self.commit_noted(&mut slot);
        let mut gate = self.close();
        let blocks = self.gather();
        self.copy_going(&mut held, &blocks)?;
        self.no_saved();
        *gate = true;
        slot.now = Some(Now { held, gone: Box::new(gone) });
        Ok(())
    }

    /// Lets go of the moment that is held with this mark, if it is. Its reader reads no more, or was told.
    pub fn let_go(&self, mark: &str) {
        let mut slot = lock(&self.slot);
        if slot.now.as_ref().is_none_or(|now| now.held.head.mark != mark) {
            return;
        }
        // Most of what waits goes to the disk while the machine goes on.
        let _ = self.commit_noted(&mut slot);
        if let Some(now) = slot.now.take() {
            empty(&*now.held.store);
            self.without_now(&slot);
        }
        drop(slot);
        self.ended.notify_all();
    }

    /// Gives up the moment that is held, if one is.
    pub(super) fn give_up(&self, slot: &mut Slot, why: &str) {
        if let Some(now) = slot.now.take() {
            now.end(why);
            self.without_now(slot);
        }
    }

    /// Goes on without it: what only it was to have need not wait any more.
    fn without_now(&self, slot: &Slot) {
        match &slot.held {
            Some(held) => held.places.keys().for_each(|block| self.mark_saved(*block)),
            // What cannot be brought to the disk is told by the next flush.
            None => drop(self.end_waiting()),
        }
    }

    /// Saves blocks for its reader, in this machine's memory or on disk. Where it cannot it is given up.
    pub(super) fn save_now(&self, slot: &mut Slot, blocks: &[u64]) {
        let Some(now) = &mut slot.now else { return };
        let saved = self.save(&mut now.held, blocks, &|_| Ok(()));
        if let Err(e) = saved
            && let Some(now) = slot.now.take()
        {
            now.end(&e.to_string());
        }
    }

    /// Appends blocks as they are on their way.
    fn copy_going(&self, held: &mut Held, blocks: &[u64]) -> Result<(), DiskError> {
        let fill = |some: &[u64], out: &mut [u8]| {
            for (block, into) in some.iter().zip(out.chunks_mut(BLOCK as usize)) {
                match lock(self.shard(*block)).going.get(block) {
                    Some(bytes) => into.copy_from_slice(&bytes[..]),
                    None => into.copy_from_slice(&self.old(*block)?[..]),
                }
            }
            Ok(())
        };
        self.append(held, blocks, &fill, &|_| Ok(()))
    }
}
