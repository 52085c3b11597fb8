//! The disk that saves before it overwrites.
//!
//! # Where a write is on its way
//!
//! ```text
//! no snapshot, or the block is saved          the first write to a block since the take
//! ─────────────────────────────────────       ────────────────────────────────────────────
//! the disk, at once                           waiting (memory) → going (a commit took it)
//!                                             1. old content read from the disk, appended to the store
//!                                             2. store flushed
//!                                             3. the block counts as saved
//!                                             4. new content written to the disk
//! ```
//! A write to a block that is going waits as a copy of its own, for the next commit, so that step 4 of
//! this one cannot overwrite it. A read looks at what waits, then at what goes, then at the disk. A flush
//! is a commit and then a flush of the disk.
//!
//! # The take
//!
//! store made, its name durable | disk flushed | *the gate closes for a moment: from now on first writes wait*
//! | disk flushed again: all that was written before the gate is durable | head written and flushed | commits may
//! begin. Cut off before the head is durable there is no snapshot, and nothing was overwritten for it.
//!
//! # The restore
//!
//! what waits is dropped | head says *restoring*, flushed | saved blocks written back | disk flushed | head says
//! *held*, in the log's next generation, flushed. Cut off in between, it is done again from its beginning.
//!
//! # When something fails
//!
//! The store full or failing: the snapshot is given up, durably, and its room goes back to the file system; then
//! what waits goes to the disk, and the machine goes on. Or, if so set, first writes fail and flushes with them.
//! The disk full or failing: what waits stays in memory and is tried again by every commit, also where there is no
//! snapshot any more; flushes fail as long as that fails, and so do first writes beyond what may wait. A failed
//! flush of the disk is final.

mod commit;
mod error;
mod life;
mod now;

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use snapslot_disk::{Companion, Disk, DiskError};

use crate::blocks::{BLOCK, ByBlock, Bytes, empty};
use crate::store::{Head, Tail};
use now::Now;

pub use error::LiveError;

/// Parts of what waits, each with a lock of its own: neighbours are in the same one.
const SHARDS: usize = 64;
const SHARD_BLOCKS: u64 = 16;
/// Bytes of one read or write of neighbouring blocks.
const RUN_MAX: usize = 256;

/// What is to go on when the store is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// The machine: the snapshot is lost.
    #[default]
    LoseSnapshot,
    /// The snapshot: the machine's first writes fail, for want of room.
    FailWrites,
}

/// Settings.
#[derive(Clone, Copy, Debug)]
pub struct Knobs {
    /// Bytes the store may take.
    pub store_max: u64,
    /// What goes on when it is full.
    pub on_full: OnFull,
    /// Bytes that may wait in memory; the next first write waits for a commit.
    pub waiting_max: u64,
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Standing {
    /// The snapshot's mark; none: there is no snapshot.
    pub mark: Option<String>,
    /// Whether its content is gone.
    pub lost: bool,
    /// Why it was lost.
    pub why: Option<String>,
    /// Blocks saved, in bytes.
    pub saved_bytes: u64,
    /// Bytes of the store.
    pub store_bytes: u64,
    /// First writes that wait in memory, in bytes.
    pub waiting_bytes: u64,
}

#[derive(Default)]
struct Shard {
    /// First writes since the last commit began.
    waiting: ByBlock<Bytes>,
    /// What the commit under way took.
    going: ByBlock<Bytes>,
}

impl Shard {
    fn newest(&self, block: u64) -> Option<&Bytes> {
        self.waiting.get(&block).or_else(|| self.going.get(&block))
    }
}

/// A snapshot that is held.
struct Held {
    head: Head,
    store: Box<dyn Disk>,
    tail: Tail,
    /// Where saved blocks lie in the store.
    places: ByBlock<u64>,
}

impl Held {
    /// Takes note of blocks that lie one after the other from `at` on.
    fn note(&mut self, blocks: &[u64], at: u64) {
        let each = blocks.iter().enumerate().map(|(i, block)| (*block, at + i as u64 * BLOCK));
        self.places.extend(each);
    }
}

/// What there is of a snapshot.
#[derive(Default)]
struct Slot {
    held: Option<Held>,
    /// One whose content is gone, and why.
    lost: Option<(Head, String)>,
    /// It went before there was anybody to be told.
    untold: bool,
    /// A moment that is held for a reader, beside it.
    now: Option<Now>,
}

/// A disk with room for one live snapshot.
pub struct LiveDisk {
    disk: Arc<dyn Disk>,
    size: u64,
    companion: Box<dyn Companion>,
    knobs: Knobs,
    /// Closed for the instant in which a snapshot begins or ends; `true`: first writes wait, as there is one that is
    /// whole, or a moment that is held.
    gate: RwLock<bool>,
    shards: Vec<Mutex<Shard>>,
    /// Bits of blocks that are saved in every store there is. Only ever set while first writes go on.
    saved: Vec<AtomicU64>,
    waiting: AtomicUsize,
    going: AtomicUsize,
    /// The commit under way has this, and everything else that changes the snapshot.
    slot: Mutex<Slot>,
    buf: Mutex<Vec<u8>>,
    /// Told when a commit ends or is wanted.
    wanted: Mutex<bool>,
    ended: Condvar,
    begin: Condvar,
    broken: Mutex<Option<String>>,
    is_broken: AtomicBool,
    /// Why the last commit came to nothing, and whether it was for want of room.
    stuck: Mutex<Option<(String, bool)>>,
    is_stuck: AtomicBool,
    /// How the slot stood when it was last changed: whoever asks need not wait for a restore to end.
    stood: Mutex<Standing>,
    /// Told, with mark and cause, when the snapshot is given up.
    herald: OnceLock<Herald>,
}

/// Reads of the disk itself; `false`: it would have to wait.
type Below<'a> = dyn Fn(u64, &mut [u8]) -> Result<bool, DiskError> + 'a;

type Herald = Box<dyn Fn(&str, &str) + Send + Sync>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

impl LiveDisk {
    /// Opens a disk; what a crash left of its snapshot is put in order.
    pub fn open(
        disk: Arc<dyn Disk>,
        companion: Box<dyn Companion>,
        knobs: Knobs,
    ) -> Result<LiveDisk, LiveError> {
        let size = disk.size()?;
        let words = size.div_ceil(BLOCK).div_ceil(64);
        let live = LiveDisk {
            disk,
            size,
            companion,
            knobs,
            gate: RwLock::new(false),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            saved: (0..words).map(|_| AtomicU64::new(0)).collect(),
            waiting: AtomicUsize::new(0),
            going: AtomicUsize::new(0),
            slot: Mutex::default(),
            buf: Mutex::default(),
            wanted: Mutex::new(false),
            ended: Condvar::new(),
            begin: Condvar::new(),
            broken: Mutex::new(None),
            is_broken: AtomicBool::new(false),
            stuck: Mutex::new(None),
            is_stuck: AtomicBool::new(false),
            stood: Mutex::default(),
            herald: OnceLock::new(),
        };
        live.find()?;
        live.note(&lock(&live.slot));
        Ok(live)
    }

    /// Who is told, with mark and cause, when the snapshot has to be given up, or had to be when the disk was
    /// opened. The first one counts.
    pub fn when_lost(&self, herald: impl Fn(&str, &str) + Send + Sync + 'static) {
        let mut slot = lock(&self.slot);
        if self.herald.set(Box::new(herald)).is_ok() && std::mem::take(&mut slot.untold) {
            self.tell(&slot);
        }
    }

    /// Tells of a snapshot that was lost; whether there is somebody to be told.
    fn tell(&self, slot: &Slot) -> bool {
        let (Some(herald), Some((head, why))) = (self.herald.get(), &slot.lost) else {
            return false;
        };
        herald(&head.mark, why);
        true
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The disk, opened again to be read alone: the same file, whatever has its name by now.
    pub fn reopened(&self) -> std::io::Result<std::fs::File> {
        let Some(disk) = self.disk.descriptor() else {
            return Err(std::io::ErrorKind::Unsupported.into());
        };
        std::fs::File::open(format!("/proc/self/fd/{}", disk.as_raw_fd()))
    }

    fn enter(&self) -> RwLockReadGuard<'_, bool> {
        self.gate.read().unwrap_or_else(|e| e.into_inner())
    }

    fn close(&self) -> RwLockWriteGuard<'_, bool> {
        self.gate.write().unwrap_or_else(|e| e.into_inner())
    }

    fn shard(&self, block: u64) -> &Mutex<Shard> {
        &self.shards[(block / SHARD_BLOCKS) as usize % SHARDS]
    }

    fn mark_saved(&self, block: u64) {
        let bit = 1 << (block % 64);
        self.saved[(block / 64) as usize].fetch_or(bit, Ordering::Release);
    }

    fn is_saved(&self, block: u64) -> bool {
        self.saved[(block / 64) as usize].load(Ordering::Acquire) & 1 << (block % 64) != 0
    }

    fn no_saved(&self) {
        for word in &self.saved {
            // Most are zero already, and untouched memory stays so.
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn check_sound(&self) -> Result<(), LiveError> {
        if !self.is_broken.load(Ordering::Acquire) {
            return Ok(());
        }
        let why = lock(&self.broken).clone().unwrap_or_default();
        Err(LiveError::Broken { why })
    }

    fn break_down(&self, why: &str) -> LiveError {
        lock(&self.broken).get_or_insert_with(|| why.to_owned());
        self.is_broken.store(true, Ordering::Release);
        self.ended.notify_all();
        LiveError::Broken { why: why.to_owned() }
    }

    fn outside(&self, offset: u64, length: u64) -> Result<(), LiveError> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size) {
            return Ok(());
        }
        let name = "the disk".to_owned();
        Err(DiskError::OutOfBounds { name, size: self.size, offset, length }.into())
    }

    /// Fills `buf`.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), LiveError> {
        self.outside(offset, buf.len() as u64)?;
        let _open = self.enter();
        self.read_through(offset, buf, &|at, buf| self.disk.read_at(at, buf).map(|()| true))?;
        Ok(())
    }

    /// Fills `buf` if that needs no waiting for a device.
    pub fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> Result<bool, LiveError> {
        self.outside(offset, buf.len() as u64)?;
        let _open = self.enter();
        Ok(self.read_through(offset, buf, &|at, buf| self.disk.read_at_once(at, buf))?)
    }

    /// What waits and goes from memory, the rest by `below`; `false` as soon as that says so.
    fn read_through(
        &self,
        offset: u64,
        buf: &mut [u8],
        below: &Below<'_>,
    ) -> Result<bool, DiskError> {
        if self.waiting.load(Ordering::Acquire) == 0 && self.going.load(Ordering::Acquire) == 0 {
            return below(offset, buf);
        }
        let end = offset + buf.len() as u64;
        let (mut at, mut from) = (offset, offset);
        while at < end {
            let block = at / BLOCK;
            let stop = ((block + 1) * BLOCK).min(end);
            let shard = lock(self.shard(block));
            if let Some(bytes) = shard.newest(block) {
                let (within, into) = ((at % BLOCK) as usize, (at - offset) as usize);
                let n = (stop - at) as usize;
                buf[into..into + n].copy_from_slice(&bytes[within..within + n]);
                drop(shard);
                if from < at {
                    let (a, b) = ((from - offset) as usize, (at - offset) as usize);
                    if !below(from, &mut buf[a..b])? {
                        return Ok(false);
                    }
                }
                from = stop;
            }
            at = stop;
        }
        if from < end {
            let a = (from - offset) as usize;
            return below(from, &mut buf[a..]);
        }
        Ok(true)
    }

    /// Writes all of `data`.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), LiveError> {
        self.outside(offset, data.len() as u64)?;
        let most = (self.knobs.waiting_max / BLOCK).max(1) as usize;
        loop {
            self.check_sound()?;
            let open = self.enter();
            if !*open {
                self.disk.write_at(offset, data)?;
                return Ok(());
            }
            // The gate is not held while waiting: a take or delete may be what makes room.
            if self.waiting.load(Ordering::Acquire) + self.going.load(Ordering::Acquire) >= most {
                drop(open);
                if self.is_stuck.load(Ordering::Acquire)
                    && let Some((why, no_space)) = lock(&self.stuck).clone()
                {
                    return Err(LiveError::Stuck { why, no_space });
                }
                self.wait_for_room(most);
                continue;
            }
            let result = self.write_held(offset, data);
            drop(open);
            // Where every write takes new room, one to what is there may find none.
            if result.as_ref().is_err_and(LiveError::is_no_space) && self.make_room() {
                continue;
            }
            if self.waiting.load(Ordering::Relaxed) >= most / 4 {
                self.want_commit();
            }
            return result;
        }
    }

    fn want_commit(&self) {
        let mut wanted = lock(&self.wanted);
        if !*wanted {
            *wanted = true;
            self.begin.notify_one();
        }
    }

    fn wait_for_room(&self, most: usize) {
        self.want_commit();
        let wanted = lock(&self.wanted);
        let full =
            || self.waiting.load(Ordering::Acquire) + self.going.load(Ordering::Acquire) >= most;
        if full() && !self.is_broken.load(Ordering::Acquire) {
            // Not for ever: whoever should commit may have ended.
            let _ = self.ended.wait_timeout(wanted, Duration::from_millis(100));
        }
    }

    /// Waits until a commit is wanted, or so long; for the thread that commits.
    pub fn wait_until_wanted(&self, most: Duration) {
        let wanted = lock(&self.wanted);
        let (mut wanted, _) = self
            .begin
            .wait_timeout_while(wanted, most, |wanted| !*wanted)
            .unwrap_or_else(|e| e.into_inner());
        *wanted = false;
    }

    fn write_held(&self, offset: u64, data: &[u8]) -> Result<(), LiveError> {
        let end = offset + data.len() as u64;
        // Neighbouring saved blocks go to the disk in one call: from `from` up to `at`.
        let (mut at, mut from) = (offset, offset);
        let piece = |a: u64, b: u64| &data[(a - offset) as usize..(b - offset) as usize];
        while at < end {
            let block = at / BLOCK;
            let stop = ((block + 1) * BLOCK).min(end);
            let mut shard = lock(self.shard(block));
            let known = shard.newest(block).is_some();
            if !known && self.is_saved(block) {
                // It cannot begin to wait any more: saved blocks only do while a commit has them.
                drop(shard);
                at = stop;
                continue;
            }
            let within = (at % BLOCK) as usize;
            let n = (stop - at) as usize;
            if let Some(bytes) = shard.waiting.get_mut(&block) {
                bytes[within..within + n].copy_from_slice(piece(at, stop));
            } else {
                let mut bytes = match shard.going.get(&block) {
                    Some(going) => going.clone(),
                    None if n == self.length_of(block) => empty(),
                    None => self.old(block)?,
                };
                bytes[within..within + n].copy_from_slice(piece(at, stop));
                shard.waiting.insert(block, bytes);
                self.waiting.fetch_add(1, Ordering::AcqRel);
            }
            drop(shard);
            if from < at {
                self.disk.write_at(from, piece(from, at))?;
            }
            (at, from) = (stop, stop);
        }
        if from < end {
            self.disk.write_at(from, piece(from, end))?;
        }
        Ok(())
    }

    /// Bytes of a block: the last one may be shorter.
    fn length_of(&self, block: u64) -> usize {
        BLOCK.min(self.size - block * BLOCK) as usize
    }

    /// What the disk has in a block now.
    fn old(&self, block: u64) -> Result<Bytes, DiskError> {
        let mut bytes = empty();
        let n = self.length_of(block);
        self.disk.read_at(block * BLOCK, &mut bytes[..n])?;
        Ok(bytes)
    }

    /// Makes every write that has returned durable.
    pub fn flush(&self) -> Result<(), LiveError> {
        self.commit()?;
        self.check_sound()?;
        Ok(self.disk.flush()?)
    }

    /// Makes a run read as zeroes; with `punch` its room may be given back.
    pub fn zero(&self, offset: u64, length: u64, punch: bool) -> Result<(), LiveError> {
        self.outside(offset, length)?;
        if punch {
            let open = self.enter();
            self.check_sound()?;
            if !*open && self.disk.discard(snapslot_disk::Range { offset, length })? {
                return Ok(());
            }
        }
        static ZEROES: [u8; 65_536] = [0; 65_536];
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let n = (end - at).min(ZEROES.len() as u64);
            self.write(at, &ZEROES[..n as usize])?;
            at += n;
        }
        Ok(())
    }

    /// Nobody needs what is there. While a snapshot is held it stays.
    pub fn trim(&self, offset: u64, length: u64) -> Result<(), LiveError> {
        self.outside(offset, length)?;
        let open = self.enter();
        if !*open {
            self.disk.discard(snapslot_disk::Range { offset, length })?;
        }
        Ok(())
    }

    /// What a run consists of, from `offset` on: lengths, and whether they are holes of the disk. At most
    /// `most`, and not beyond `length`.
    pub fn runs(
        &self,
        offset: u64,
        length: u64,
        most: usize,
    ) -> Result<Vec<(u64, bool)>, LiveError> {
        self.outside(offset, length)?;
        let _open = self.enter();
        if self.waiting.load(Ordering::Acquire) + self.going.load(Ordering::Acquire) > 0 {
            // What waits may lie in a hole.
            return Ok(vec![(length, false)]);
        }
        let of_content = |e| match e {
            snapslot_content::ContentError::Disk(e) => LiveError::Disk(e),
            other => LiveError::Broken { why: other.to_string() },
        };
        let plain = snapslot_content::Plain::new(self.disk.clone()).map_err(of_content)?;
        let (mut at, end, mut found) = (offset, offset + length, Vec::new());
        while at < end && found.len() < most {
            let run = snapslot_content::Content::run(&plain, at, end).map_err(of_content)?;
            found.push((run.length, run.zero));
            at += run.length;
        }
        Ok(found)
    }

    /// How it stands. What is being changed stands as it did before.
    pub fn standing(&self) -> Standing {
        let waiting = self.waiting.load(Ordering::Relaxed) + self.going.load(Ordering::Relaxed);
        Standing { waiting_bytes: waiting as u64 * BLOCK, ..lock(&self.stood).clone() }
    }

    /// Takes note of how the slot stands, whenever it was changed.
    fn note(&self, slot: &Slot) {
        *lock(&self.stood) = Standing {
            mark: Self::mark_of(slot),
            lost: slot.lost.is_some(),
            why: slot.lost.as_ref().map(|(_, why)| why.clone()),
            saved_bytes: slot.held.as_ref().map_or(0, |h| h.places.len() as u64 * BLOCK),
            store_bytes: slot.held.as_ref().map_or(0, |h| h.tail.at),
            waiting_bytes: 0,
        };
    }
}
