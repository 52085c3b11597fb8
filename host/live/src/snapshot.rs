//! The snapshot's content, read beside the process that serves the disk.
//!
//! A block that is in the store is read there, any other from the disk. The disk may be overwritten
//! between asking the store and reading the disk; but the store has the block before that happens. So the
//! store is asked again after the disk was read, and what it has by then counts. And whoever serves the disk may
//! give the snapshot up, after which nothing is saved any more: so the head is read last, and what was read
//! counts only if the snapshot is there by then. The head says so before the disk is overwritten.
//!
//! A moment that is held for its reader alone is read in the same way; that it is given up is told to its reader
//! instead, as its store has no name.

use std::sync::{Arc, Mutex};

use snapslot_content::{Content, ContentError, Range, Run};
use snapslot_disk::Disk;

use crate::blocks::{BLOCK, ByBlock};
use crate::store::{Head, State, Tail, saved};

/// A live snapshot, for reading.
pub struct Snapshot {
    disk: Arc<dyn Disk>,
    store: Box<dyn Disk>,
    head: Head,
    /// Disk reading without the store, for holes.
    plain: snapslot_content::Plain,
    log: Mutex<Log>,
    /// Whether it is held still, where the store does not say so.
    held: Option<Box<Held>>,
}

type Held = dyn Fn() -> bool + Send + Sync;

struct Log {
    tail: Tail,
    places: ByBlock<u64>,
}

impl Snapshot {
    /// Opens it; none: the store holds no snapshot that can be read.
    pub fn open(
        disk: Arc<dyn Disk>,
        store: Box<dyn Disk>,
    ) -> Result<Option<Snapshot>, ContentError> {
        let Some(head) = Head::of(&*store)?.filter(|h| h.state != State::Lost) else {
            return Ok(None);
        };
        let log =
            Mutex::new(Log { tail: Tail::start(head.generation), places: ByBlock::default() });
        let plain = snapslot_content::Plain::new(disk.clone())?;
        let plain_size = plain.size();
        let snapshot = Snapshot { disk, store, head, plain, log, held: None };
        if plain_size != snapshot.head.disk_size {
            return Err(snapshot.lost());
        }
        snapshot.catch_up()?;
        Ok(Some(snapshot))
    }

    /// Opens a moment of the disk that is held for this reader, in a store without a name: `held` says whether it
    /// still is.
    pub fn of_now(
        disk: Arc<dyn Disk>,
        store: Box<dyn Disk>,
        held: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Option<Snapshot>, ContentError> {
        let snapshot = Snapshot::open(disk, store)?;
        Ok(snapshot.map(|snapshot| Snapshot { held: Some(Box::new(held)), ..snapshot }))
    }

    /// The head it was opened by.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Takes note of what was saved meanwhile. A segment that is not whole yet is left for the next time.
    fn catch_up(&self) -> Result<(), ContentError> {
        let mut log = self.log.lock().unwrap_or_else(|e| e.into_inner());
        let log = &mut *log;
        while let Some((blocks, at)) = log.tail.next(&*self.store, self.head.disk_size)? {
            for (i, block) in blocks.iter().enumerate() {
                log.places.insert(*block, at + i as u64 * BLOCK);
            }
        }
        Ok(())
    }

    /// After everything that was read: whether it was read of the snapshot.
    fn check(&self) -> Result<(), ContentError> {
        let still = match &self.held {
            Some(held) => held(),
            None => self.head.still_holds(&*self.store)?,
        };
        if still { Ok(()) } else { Err(self.lost()) }
    }

    fn lost(&self) -> ContentError {
        match &self.held {
            Some(_) => ContentError::NotHeld { what: "the present disk".to_owned() },
            None => ContentError::Gone { what: format!("the live snapshot {}", self.head.mark) },
        }
    }

    fn place(&self, block: u64) -> Option<u64> {
        self.log.lock().unwrap_or_else(|e| e.into_inner()).places.get(&block).copied()
    }

    /// Where the disk may differ from the snapshot: what was saved, joined.
    pub fn changed(&self) -> Result<Vec<Range>, ContentError> {
        self.catch_up()?;
        self.check()?;
        let log = self.log.lock().unwrap_or_else(|e| e.into_inner());
        let range = |block: &u64| {
            let offset = block * BLOCK;
            Range { offset, length: BLOCK.min(self.head.disk_size - offset) }
        };
        Ok(snapslot_content::joined(log.places.keys().map(range).collect()))
    }
}

impl Content for Snapshot {
    fn size(&self) -> u64 {
        self.head.disk_size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ContentError> {
        self.within(offset, buf.len() as u64)?;
        self.disk.read_at(offset, buf)?;
        // What the disk shows is of the snapshot only where the store, asked now, has nothing.
        self.catch_up()?;
        let (mut at, end) = (offset, offset + buf.len() as u64);
        while at < end {
            let block = at / BLOCK;
            let stop = ((block + 1) * BLOCK).min(end);
            if let Some(place) = self.place(block) {
                let bytes = saved(&*self.store, place)?;
                let within = (at % BLOCK) as usize;
                let n = (stop - at) as usize;
                let into = (at - offset) as usize;
                buf[into..into + n].copy_from_slice(&bytes[within..within + n]);
            }
            at = stop;
        }
        self.check()
    }

    fn run(&self, offset: u64, limit: u64) -> Result<Run, ContentError> {
        // Holes of the disk are zeroes of the snapshot only where nothing was saved: what is read
        // first is the disk, as above.
        let run = self.plain.run(offset, limit)?;
        if !run.zero {
            return Ok(run);
        }
        self.catch_up()?;
        self.check()?;
        let log = self.log.lock().unwrap_or_else(|e| e.into_inner());
        let (first, last) = (offset / BLOCK, (run.start + run.length - 1) / BLOCK);
        let hit = if (log.places.len() as u64) < last - first {
            log.places.keys().filter(|b| (first..=last).contains(*b)).min().copied()
        } else {
            (first..=last).find(|b| log.places.contains_key(b))
        };
        match hit {
            None => Ok(run),
            Some(block) if block * BLOCK <= offset => {
                let end = ((block + 1) * BLOCK).min(limit);
                Ok(Run { start: offset, length: end - offset, zero: false })
            }
            Some(block) => Ok(Run { start: offset, length: block * BLOCK - offset, zero: true }),
        }
    }
}
