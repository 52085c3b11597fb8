//! A simulated machine's files, for crashing.
//!
//! # Fault model
//!
//! The world has named files. A write or growth of a file is *pending* until a flush of that
//! file succeeds; making or removing a name is pending until the name is synced. Every such
//! event goes to a log. At a crash any subset of the pending events has reached the disk, and a
//! write may be torn at 512-byte sectors. [`World::crash`] builds the world after a crash from
//! a prefix of the log and a choice for each pending event, so that a test can enumerate.
//! Besides, the n-th event can be made to fail ([`World::fail_at`]), once or for ever.
//!
//! Simplification, told: a flush is all-or-nothing (it covers every earlier write of its file),
//! as `fdatasync` promises. A flush made to fail leaves its writes pending.
//!
//! Besides, any call can go wrong in other ways, reads too ([`World::mishap`], [`upset`]): disks lie.

mod paged;
pub mod upset;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

pub use paged::{Flat, PAGE, Paged};
use upset::{Call, Mishap, Outcome};

use crate::{Companion, Disk, DiskError, Doing, Range};

/// The files of a machine.
pub type Files = BTreeMap<String, Paged>;

/// Sector size, the unit in which a write can be torn.
pub const SECTOR: usize = 512;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes written.
    Write {
        /// File.
        file: String,
        /// Offset.
        offset: u64,
        /// Bytes.
        data: Arc<[u8]>,
    },
    /// File grown.
    Extend {
        /// File.
        file: String,
        /// New size.
        size: u64,
    },
    /// Flush of a file that succeeded.
    Flush {
        /// File.
        file: String,
    },
    /// Name made.
    Create {
        /// File.
        file: String,
    },
    /// Name removed.
    Remove {
        /// File.
        file: String,
    },
    /// Names synced.
    SyncNames,
}

impl Event {
    fn apply(&self, files: &mut Files) {
        match self {
            Event::Write { file, offset, data } => {
                if let Some(bytes) = files.get_mut(file) {
                    bytes.write(*offset, data);
                }
            }
            Event::Extend { file, size } => {
                if let Some(bytes) = files.get_mut(file) {
                    bytes.grow(*size as usize);
                }
            }
            Event::Create { file } => {
                files.insert(file.clone(), Paged::default());
            }
            Event::Remove { file } => {
                files.remove(file);
            }
            Event::Flush { .. } | Event::SyncNames => {}
        }
    }

    /// Whether a later success of `flush` makes this durable.
    fn covered_by(&self, flush: &Event) -> bool {
        match (self, flush) {
            (Event::Write { file, .. } | Event::Extend { file, .. }, Event::Flush { file: f }) => {
                file == f
            }
            (Event::Create { .. } | Event::Remove { .. }, Event::SyncNames) => true,
            _ => false,
        }
    }
}

/// What becomes of one pending event at a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never reached the disk.
    Lost,
    /// All of it did.
    Kept,
    /// Of a write, only the first `n` sectors it touches did; else as lost.
    Torn(usize),
}

/// A fault to inject.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// The event (counted from 0, reads not counted) from which on it fails.
    pub at: usize,
    /// Whether all later events fail too.
    pub for_ever: bool,
    /// With what error number.
    pub errno: i32,
}

#[derive(Default)]
struct State {
    start: Files,
    now: Files,
    /// What was there before the last write to each file: where, and these bytes.
    stale: BTreeMap<String, (u64, Vec<u8>)>,
    log: Vec<Event>,
    attempts: usize,
    fault: Option<Fault>,
    calls: usize,
    mishap: Option<Mishap>,
    upsets: usize,
    flush_failed: BTreeMap<String, bool>,
}

/// The files of a simulated machine. Clones share them.
#[derive(Clone, Default)]
pub struct World(Arc<Mutex<State>>);

impl World {
    /// A world with these files, all durable.
    pub fn new(files: BTreeMap<String, Vec<u8>>) -> Self {
        World::of(files.into_iter().map(|(name, bytes)| (name, bytes.into())).collect())
    }

    /// The same, of files that others may share.
    pub fn of(files: Files) -> Self {
        World(Arc::new(Mutex::new(State { now: files.clone(), start: files, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A file of this world as a disk. It need not exist until it is used.
    pub fn disk(&self, file: &str) -> SimDisk {
        SimDisk { world: self.clone(), file: file.to_owned() }
    }

    /// A file of this world as a companion.
    pub fn companion(&self, file: &str) -> SimCompanion {
        SimCompanion { world: self.clone(), file: file.to_owned() }
    }

    /// What is in a file now, crash or not.
    pub fn bytes(&self, file: &str) -> Option<Vec<u8>> {
        self.state().now.get(file).map(Paged::to_vec)
    }

    /// All files now, each in one piece.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.state().now.iter().map(|(name, bytes)| (name.clone(), bytes.to_vec())).collect()
    }

    /// All files now.
    pub fn contents(&self) -> Files {
        self.state().now.clone()
    }

    /// Everything that happened, in order.
    pub fn log(&self) -> Vec<Event> {
        self.state().log.clone()
    }

    /// How many events were attempted.
    pub fn attempts(&self) -> usize {
        self.state().attempts
    }

    /// How many calls were made: events, and reads and looks besides.
    pub fn calls(&self) -> usize {
        self.state().calls
    }

    /// Makes a call go wrong as told, or all from one on.
    pub fn mishap(&self, mishap: Option<Mishap>) {
        self.state().mishap = mishap;
    }

    /// How many calls went wrong by a mishap.
    pub fn upsets(&self) -> usize {
        self.state().upsets
    }

    /// Makes events fail from now on as told.
    pub fn fail_at(&self, fault: Option<Fault>) {
        self.state().fault = fault;
    }

    /// The events still pending when the machine stops after the first `upto` events of the
    /// log, by index.
    pub fn pending(&self, upto: usize) -> Vec<usize> {
        let state = self.state();
        let log = &state.log[..upto];
        (0..log.len())
            .filter(|&i| {
                !matches!(log[i], Event::Flush { .. } | Event::SyncNames)
                    && !log[i + 1..].iter().any(|later| log[i].covered_by(later))
            })
            .collect()
    }

    /// The world after a crash: the first `upto` events happened, and of those pending each
    /// has the fate that `fate(index)` gives.
    pub fn crash(&self, upto: usize, fate: impl Fn(usize) -> Fate) -> World {
        let pending = self.pending(upto);
        let state = self.state();
        let mut files = state.start.clone();
        for (i, event) in state.log[..upto].iter().enumerate() {
            let fate = if pending.binary_search(&i).is_ok() { fate(i) } else { Fate::Kept };
            match (fate, event) {
                (Fate::Kept, _) => event.apply(&mut files),
                (Fate::Torn(sectors), Event::Write { file, offset, data }) => {
                    let head = (*offset as usize) % SECTOR;
                    let keep = (sectors * SECTOR).saturating_sub(head).min(data.len());
                    if keep > 0 {
                        let part: Arc<[u8]> = data[..keep].into();
                        Event::Write { file: file.clone(), offset: *offset, data: part }
                            .apply(&mut files);
                    }
                }
                (Fate::Torn(_) | Fate::Lost, _) => {}
            }
        }
        World::of(files)
    }

    fn happen(&self, event: Event) -> Result<(), DiskError> {
        let mut state = self.state();
        let (event, upset) = match state.upset(&Call::Event(&event)) {
            None => (event, None),
            Some(Outcome::Fails(error)) => {
                if let Event::Flush { file } = &event {
                    state.flush_failed.insert(file.clone(), true);
                }
                return Err(error);
            }
            Some(Outcome::Instead(other, error)) => (other, error),
            Some(Outcome::Answer(_)) => (event, None),
        };
        let n = state.attempts;
        state.attempts += 1;
        if let Some(fault) = state.fault
            && (n == fault.at || (fault.for_ever && n > fault.at))
        {
            let (name, doing) = match &event {
                Event::Flush { file } => {
                    state.flush_failed.insert(file.clone(), true);
                    (file.clone(), Doing::Flush)
                }
                Event::Write { file, .. } => (file.clone(), Doing::Write),
                Event::Extend { file, .. } => (file.clone(), Doing::Resize),
                Event::Create { file } | Event::Remove { file } => (file.clone(), Doing::Name),
                Event::SyncNames => ("the directory".to_owned(), Doing::Name),
            };
            let source = std::io::Error::from_raw_os_error(fault.errno);
            return Err(DiskError::io(name, doing, source));
        }
        if let Event::Write { file, offset, data } = &event
            && let Some(bytes) = state.now.get(file)
        {
            // Past the end there was nothing.
            let mut old = vec![0; data.len()];
            if bytes.read(*offset, &mut old) {
                state.stale.insert(file.clone(), (*offset, old));
            }
        }
        event.apply(&mut state.now);
        state.log.push(event);
        upset.map_or(Ok(()), Err)
    }
}

impl State {
    /// What becomes of a call that a mishap may befall.
    fn upset(&mut self, call: &Call<'_>) -> Option<Outcome> {
        let n = self.calls;
        self.calls += 1;
        let mishap = self.mishap.filter(|m| n == m.at || (m.for_ever && n > m.at))?;
        let outcome = mishap.upset.befalls(call, &self.now, &self.stale, n)?;
        self.upsets += 1;
        Some(outcome)
    }
}

/// A file of a [`World`].
#[derive(Clone)]
pub struct SimDisk {
    world: World,
    file: String,
}

impl SimDisk {
    /// Looks at the file, as a call that can go wrong.
    fn look<T>(
        &self,
        doing: Doing,
        read: Option<(u64, usize)>,
        answer: impl FnOnce(Option<Vec<u8>>, &Paged) -> Result<T, DiskError>,
    ) -> Result<T, DiskError> {
        let mut state = self.world.state();
        let instead = match state.upset(&Call::Look { file: &self.file, doing, read }) {
            Some(Outcome::Fails(error)) => return Err(error),
            Some(Outcome::Answer(bytes)) => Some(bytes),
            Some(Outcome::Instead(..)) | None => None,
        };
        let Some(bytes) = state.now.get(&self.file) else {
            let gone = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(DiskError::io(self.file.clone(), Doing::Open, gone));
        };
        answer(instead, bytes)
    }

    fn refuse_after_failed_flush(&self) -> Result<(), DiskError> {
        if self.world.state().flush_failed.get(&self.file).copied().unwrap_or(false) {
            return Err(DiskError::FlushFailedBefore { name: self.file.clone() });
        }
        Ok(())
    }
}

impl Disk for SimDisk {
    fn size(&self) -> Result<u64, DiskError> {
        self.look(Doing::Stat, None, |_, bytes| Ok(bytes.len() as u64))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let length = buf.len();
        self.look(Doing::Read, Some((offset, length)), |instead, bytes| {
            if let Some(instead) = instead {
                buf.copy_from_slice(&instead);
                return Ok(());
            }
            match bytes.read(offset, buf) {
                true => Ok(()),
                false => Err(DiskError::OutOfBounds {
                    name: self.file.clone(),
                    size: bytes.len() as u64,
                    offset,
                    length: length as u64,
                }),
            }
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.refuse_after_failed_flush()?;
        let event = Event::Write { file: self.file.clone(), offset, data: data.into() };
        self.world.happen(event)
    }

    fn extend(&self, size: u64) -> Result<(), DiskError> {
        self.refuse_after_failed_flush()?;
        if self.size()? >= size {
            return Ok(());
        }
        self.world.happen(Event::Extend { file: self.file.clone(), size })
    }

    fn discard(&self, range: Range) -> Result<bool, DiskError> {
        self.refuse_after_failed_flush()?;
        // Pending, and possibly torn, as the write that it amounts to.
        let end = range.offset.saturating_add(range.length).min(self.size()?);
        let zeroes = vec![0; end.saturating_sub(range.offset) as usize];
        let file = self.file.clone();
        let event = Event::Write { file, offset: range.offset, data: zeroes.into() };
        self.world.happen(event).map(|()| true)
    }

    fn reserve(&self, _ranges: &[Range]) -> Result<bool, DiskError> {
        Ok(false)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.refuse_after_failed_flush()?;
        self.world.happen(Event::Flush { file: self.file.clone() })
    }
}

/// A companion file of a [`World`].
#[derive(Clone)]
pub struct SimCompanion {
    world: World,
    file: String,
}

impl SimCompanion {
    /// Whether the file is there, as a call that can go wrong.
    fn there(&self) -> Result<bool, DiskError> {
        let mut state = self.world.state();
        let look = Call::Look { file: &self.file, doing: Doing::Open, read: None };
        match state.upset(&look) {
            Some(Outcome::Fails(error)) => Err(error),
            _ => Ok(state.now.contains_key(&self.file)),
        }
    }
}

impl Companion for SimCompanion {
    fn create(&self) -> Result<Box<dyn Disk>, DiskError> {
        if self.world.state().now.contains_key(&self.file) {
            let there = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
            return Err(DiskError::io(self.file.clone(), Doing::Name, there));
        }
        self.world.happen(Event::Create { file: self.file.clone() })?;
        Ok(Box::new(self.world.disk(&self.file)))
    }

    fn open(&self) -> Result<Option<Box<dyn Disk>>, DiskError> {
        Ok(self.there()?.then(|| Box::new(self.world.disk(&self.file)) as Box<dyn Disk>))
    }

    fn reopen(&self) -> Result<Option<Box<dyn Disk>>, DiskError> {
        self.open()
    }

    fn remove(&self) -> Result<(), DiskError> {
        self.world.happen(Event::Remove { file: self.file.clone() })
    }

    fn sync_name(&self) -> Result<(), DiskError> {
        self.world.happen(Event::SyncNames)
    }

    fn name(&self) -> String {
        self.file.clone()
    }
}
