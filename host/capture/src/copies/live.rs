//! The snapshot of a disk that is served, or was: it lies in a store beside the disk, not in a copy.
//!
//! ```text
//! vm.img.snapslot-live       what the snapshot has saved (its shape: `snapslot_live::store`)
//! ```
//! While a process serves the disk it alone changes disk and store, and does what it is asked over its
//! control socket; otherwise it is done here, with the same code. The store of a moment that is held for whoever
//! reads the present disk has no name, and goes with the last who has it open.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapslot_content::{Content, Plain, Range};
use snapslot_disk::{Disk, Doing, FileCompanion, FileDisk};
use snapslot_live::control::{Answer, Lent, Moment, Request, ask};
use snapslot_live::store::{Head, State};
use snapslot_live::{Knobs, LiveDisk, LiveError, OnFull, Snapshot, Standing};

use super::{Copies, CopyError, Opened, SavedCopy, which};
use crate::Save;

/// The store's part of its name.
const LIVE: &str = "live";

/// What the store of a moment is called, as it has no name.
const NOW: &str = "the store of what is read of the present disk";

/// A disk that is served now.
#[derive(Clone, Debug)]
pub struct Served {
    /// The process that serves it.
    pub pid: u32,
    /// Clients that use it now.
    pub clients: usize,
    /// How its snapshot stands.
    pub standing: Standing,
}

impl Copies {
    /// The same, of a disk that may be served: `socket` is where its server is asked.
    #[must_use]
    pub fn served_at(mut self, socket: PathBuf) -> Self {
        self.socket = Some(socket);
        self
    }

    /// Where its server is asked.
    pub fn socket(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Who serves it now, if anybody does.
    pub fn served(&self) -> Result<Option<Served>, CopyError> {
        match self.asked(&Request::Standing)? {
            Some(Answer::Done { pid, clients, standing }) => {
                Ok(Some(Served { pid, clients, standing }))
            }
            Some(refused) => Err(self.refused(refused)),
            None => Ok(None),
        }
    }

    fn asked(&self, request: &Request) -> Result<Option<Answer>, CopyError> {
        self.asked_by(|socket| ask(socket, request))
    }

    fn asked_by<T>(
        &self,
        ask: impl FnOnce(&Path) -> io::Result<Option<T>>,
    ) -> Result<Option<T>, CopyError> {
        let Some(socket) = &self.socket else { return Ok(None) };
        ask(socket).map_err(|e| CopyError::io(socket.display().to_string(), Doing::Open, e))
    }

    /// Has it done by who serves the disk; `false`: nobody does.
    fn by_server(&self, request: &Request) -> Result<bool, CopyError> {
        match self.asked(request)? {
            None => Ok(false),
            Some(Answer::Done { .. }) => Ok(true),
            Some(refused) => Err(self.refused(refused)),
        }
    }

    fn refused(&self, answer: Answer) -> CopyError {
        let name = self.disk.display().to_string();
        match answer {
            Answer::Refused { code, message } if code == "in-use" => {
                CopyError::InUse { name, who: message }
            }
            Answer::Refused { code, message } if code == "busy" => {
                CopyError::Busy { name, why: message }
            }
            Answer::Refused { code, message } if code == "no-space" => {
                let full = std::io::Error::new(std::io::ErrorKind::StorageFull, message);
                CopyError::io(name, Doing::Write, full)
            }
            Answer::Refused { message, .. } => CopyError::Live { name, why: message },
            Answer::Done { .. } => {
                CopyError::Live { name, why: "it answered strangely".to_owned() }
            }
        }
    }

    /// Opens the store's companion and the disk, for who serves it. A device is claimed as long as it is open: the
    /// kernel mounts and maps it for nobody else. `herald` is told, with mark and cause, when the snapshot is lost.
    pub fn live_disk(
        &self,
        knobs: Knobs,
        herald: impl Fn(&str, &str) + Send + Sync + 'static,
    ) -> Result<LiveDisk, CopyError> {
        let opened = self.open()?;
        let disk = match opened.is_file {
            true => FileDisk::open_writable(&opened.disk)?,
            false => FileDisk::of_writable(opened.open_disk(true)?, &opened.disk)?,
        };
        let stamp = opened.stamp();
        let live = LiveDisk::open(Arc::new(disk), Box::new(opened.live_companion()), knobs);
        let live = live.map_err(|e| opened.live_error(e))?;
        live.when_lost(herald);
        live.begin(stamp).map_err(|e| opened.live_error(e))?;
        Ok(live)
    }

    /// Flushes it and takes note of the disk as it is, so that a write past its server shows.
    pub fn leave(&self, live: &LiveDisk) -> Result<(), CopyError> {
        let opened = self.open()?;
        live.flush().map_err(|e| opened.live_error(e))?;
        live.end(opened.stamp()).map_err(|e| opened.live_error(e))
    }

    /// Whether a snapshot of it lies partly in the disk itself: then the disk must not be written past its
    /// server, nor replaced.
    pub fn shares_with_disk(&self) -> Result<bool, CopyError> {
        Ok(self.live_head()?.is_some())
    }

    /// The head of the live snapshot, if there is one.
    pub(super) fn live_head(&self) -> Result<Option<Head>, CopyError> {
        Ok(self.open()?.live_store()?.map(|(head, _)| head))
    }

    /// Whether this mark is the live snapshot's.
    pub(super) fn is_live(&self, mark: &str) -> Result<bool, CopyError> {
        Ok(self.live_head()?.is_some_and(|h| h.mark == mark))
    }

    /// Whether the disk was written past its server, or given another size.
    fn is_overtaken(&self, head: &Head) -> Result<bool, CopyError> {
        let opened = self.open()?;
        let size = std::fs::metadata(&opened.disk).ok().filter(|_| opened.is_file);
        let resized = head.state == State::Held && size.is_some_and(|m| m.len() != head.disk_size);
        Ok((resized || head.is_overtaken(opened.stamp())) && self.served()?.is_none())
    }

    /// The live snapshot as one of those that are listed.
    pub(super) fn live_listed(&self) -> Result<Option<SavedCopy>, CopyError> {
        let opened = self.open()?;
        let Some((head, file)) = opened.live_store()? else { return Ok(None) };
        let name = opened.name(LIVE);
        let meta =
            file.metadata().map_err(|e| CopyError::io(opened.folder.say(&name), Doing::Stat, e))?;
        Ok(Some(SavedCopy {
            identity: which(&meta),
            name: name.to_string_lossy().into_owned(),
            taken_seconds: head.taken_seconds,
            taken_nanoseconds: head.taken_nanoseconds,
            size: head.disk_size,
            held_bytes: meta.blocks().saturating_mul(512),
            lost: head.state == State::Lost || self.is_overtaken(&head)?,
            mark: head.mark,
        }))
    }

    /// Takes a live snapshot; `false`: nobody serves the disk.
    pub(super) fn save_live(&self, new: &Save) -> Result<bool, CopyError> {
        self.by_server(&Request::Take {
            mark: new.mark.clone(),
            seconds: new.taken_seconds,
            nanoseconds: new.taken_nanoseconds,
        })
    }

    pub(super) fn restore_live(&self, mark: &str) -> Result<(), CopyError> {
        if self.by_server(&Request::Restore { mark: mark.to_owned() })? {
            return Ok(());
        }
        let opened = self.open()?;
        if opened.is_file {
            opened.refuse_used(&opened.open_disk(false)?)?;
        }
        let live = self.live_disk(OFFLINE, |_, _| {})?;
        live.restore(mark).map_err(|e| opened.live_error(e))?;
        self.leave(&live)
    }

    pub(super) fn discard_live(&self, mark: &str) -> Result<(), CopyError> {
        if self.by_server(&Request::Delete { mark: mark.to_owned() })? {
            return Ok(());
        }
        // One that is half set back is set back first: the rest of the disk is in the store.
        self.settle_live()?;
        let opened = self.open()?;
        // The disk need not be opened for it, whatever became of it.
        if opened.remove_own(&opened.name(LIVE))? {
            opened.folder.sync()?;
        }
        Ok(())
    }

    /// Ends a restore of the live snapshot that was cut off; a server that runs ends it itself.
    pub(super) fn settle_live(&self) -> Result<bool, CopyError> {
        if !self.live_unfinished()? {
            return Ok(false);
        }
        self.leave(&self.live_disk(OFFLINE, |_, _| {})?)?;
        Ok(true)
    }

    pub(super) fn live_unfinished(&self) -> Result<bool, CopyError> {
        let restoring = self.live_head()?.is_some_and(|h| h.state == State::Restoring);
        Ok(restoring && self.served()?.is_none())
    }

    /// What the snapshot with this mark holds, to be read.
    pub fn open_content(&self, mark: &str) -> Result<Arc<dyn Content>, CopyError> {
        super::check_mark(mark)?;
        let opened = self.open()?;
        if self.is_live(mark)?
            && let Some(snapshot) = opened.live_snapshot()?
        {
            if self.is_overtaken(snapshot.head())? {
                let why =
                    "the disk was written past its server, so the snapshot is lost".to_owned();
                return Err(CopyError::Live { name: opened.say(), why });
            }
            return Ok(Arc::new(snapshot));
        }
        let (name, file, _) = opened.open_copy(mark)?;
        let path = opened.folder.path().join(&name);
        let disk = FileDisk::of_descriptor(file, &path)?;
        Plain::new(Arc::new(disk)).map(|p| Arc::new(p) as Arc<dyn Content>).map_err(of_content)
    }

    /// What a disk that is served holds at this moment, to be read while its machine goes on writing. `mark` is its
    /// own. None: nobody serves it.
    pub fn open_now(&self, mark: &str) -> Result<Option<Arc<dyn Content>>, CopyError> {
        let asked = self.asked_by(|socket| Moment::ask(socket, mark))?;
        let Lent { moment, disk, store } = match asked {
            None => return Ok(None),
            Some(Err(Answer::Refused { code, .. })) if code == "usage" => {
                let name = self.disk.display().to_string();
                let why = "its server is of another version; stop it and start it again".to_owned();
                return Err(CopyError::Live { name, why });
            }
            Some(Err(refused)) => return Err(self.refused(refused)),
            Some(Ok(lent)) => lent,
        };
        let opened = self.open()?;
        let store = FileDisk::of_descriptor(store, Path::new(NOW))?;
        let disk: Arc<dyn Disk> = Arc::new(FileDisk::of_descriptor(disk, &opened.disk)?);
        let held = move || moment.is_held();
        let now = Snapshot::of_now(disk, Box::new(store), held).map_err(of_content)?;
        let strange =
            || CopyError::Live { name: opened.say(), why: "its server holds nothing".to_owned() };
        Ok(Some(Arc::new(now.ok_or_else(strange)?)))
    }

    /// A store for such a moment, for who serves the disk: where the snapshot's lies, and without a name. Also as
    /// the file to lend.
    pub fn nameless_store(&self) -> Result<(FileDisk, File), CopyError> {
        let opened = self.open()?;
        let folder = opened.folder.path();
        let made = tempfile::tempfile_in(folder).and_then(|file| Ok((file.try_clone()?, file)));
        let (file, lent) =
            made.map_err(|e| CopyError::io(folder.display().to_string(), Doing::Name, e))?;
        Ok((FileDisk::of_writable(file, Path::new(NOW))?, lent))
    }

    /// Bytes of storage that a copy has, shared or not.
    pub fn held_bytes(&self, mark: &str) -> Result<u64, CopyError> {
        super::check_mark(mark)?;
        let (_, _, meta) = self.open()?.open_copy(mark)?;
        Ok(meta.blocks().saturating_mul(512))
    }

    /// Where the disk differs from what was saved, as far as that can be known without reading either: a live
    /// snapshot knows, to the block of 4 KiB, and copies that share blocks with the disk do not where they lie elsewhere.
    /// None: only reading both tells.
    pub fn changed(&self, mark: &str) -> Result<Option<Changed>, CopyError> {
        if !self.is_live(mark)? {
            return self.open()?.parted(mark);
        }
        // What waits in the server's memory counts too.
        self.by_server(&Request::Commit)?;
        let snapshot = self.open()?.live_snapshot()?;
        let ranges = snapshot.map(|s| s.changed().map_err(of_content)).transpose()?;
        Ok(ranges.map(|ranges| {
            let held_bytes = ranges.iter().map(|r| r.length).sum();
            Changed { ranges, held_bytes }
        }))
    }
}

/// How far a disk has moved away from what was saved of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Where it differs, or may; ascending.
    pub ranges: Vec<Range>,
    /// Bytes of storage that what was saved needs for itself.
    pub held_bytes: u64,
}

/// What an engine that does not serve the disk does with it saves nothing.
const OFFLINE: Knobs = Knobs { store_max: u64::MAX, on_full: OnFull::LoseSnapshot, waiting_max: 0 };

fn of_content(error: snapslot_content::ContentError) -> CopyError {
    match error {
        snapslot_content::ContentError::Disk(e) => CopyError::Disk(e),
        gone @ snapslot_content::ContentError::Gone { .. } => {
            CopyError::Live { name: "the snapshot".to_owned(), why: gone.to_string() }
        }
        other => {
            CopyError::io("the snapshot", Doing::Read, std::io::Error::other(other.to_string()))
        }
    }
}

impl Opened {
    /// How far the disk has parted from a copy that shares blocks with it; none if it shares none.
    fn parted(&self, mark: &str) -> Result<Option<Changed>, CopyError> {
        if !self.is_file {
            return Ok(None);
        }
        let (name, copy, _) = self.open_copy(mark)?;
        let disk = self.open_disk(false)?;
        let laid = |file: &std::fs::File, name: String| {
            let size = super::content::size(file, &name)?;
            snapslot_content::laid(file, size).map_err(|e| CopyError::io(name, Doing::Stat, e))
        };
        let (Some(now), Some(then)) =
            (laid(&disk, self.say())?, laid(&copy, self.folder.say(&name))?)
        else {
            return Ok(None);
        };
        Ok((then.shared > 0).then(|| Changed {
            ranges: snapslot_content::by_map(&now.map, &then.map),
            held_bytes: then.own,
        }))
    }

    fn live_path(&self) -> PathBuf {
        self.folder.path().join(self.name(LIVE))
    }

    fn live_companion(&self) -> FileCompanion {
        // Who owns the disk may own its store.
        FileCompanion::new(self.live_path(), self.disk.clone())
    }

    fn live_error(&self, error: LiveError) -> CopyError {
        match error {
            LiveError::Disk(e) => CopyError::Disk(e),
            LiveError::Missing { .. } => {
                CopyError::Missing { name: self.live_path().display().to_string() }
            }
            other => CopyError::Live { name: self.say(), why: other.to_string() },
        }
    }

    /// The head and the file of the store, if there is a snapshot.
    fn live_store(&self) -> Result<Option<(Head, std::fs::File)>, CopyError> {
        let name = self.name(LIVE);
        let Some(file) = self.folder.read(&name)? else { return Ok(None) };
        self.folder.trust(&name, &file, self.owner())?;
        let again =
            file.try_clone().map_err(|e| CopyError::io(self.folder.say(&name), Doing::Open, e))?;
        let disk = FileDisk::of_descriptor(again, &self.live_path())?;
        Ok(Head::of(&disk)?.map(|head| (head, file)))
    }

    fn live_snapshot(&self) -> Result<Option<Snapshot>, CopyError> {
        let Some((_, store)) = self.live_store()? else { return Ok(None) };
        let store = FileDisk::of_descriptor(store, &self.live_path())?;
        let disk: Arc<dyn Disk> = Arc::new(FileDisk::open_read_only(&self.disk)?);
        Snapshot::open(disk, Box::new(store)).map_err(of_content)
    }

    /// What the disk's file says of its last change; a device says nothing.
    fn stamp(&self) -> Option<u64> {
        let meta = std::fs::metadata(&self.disk).ok().filter(|_| self.is_file)?;
        let (seconds, nanoseconds) =
            (u64::try_from(meta.mtime()).ok()?, meta.mtime_nsec().unsigned_abs());
        seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds).map(|n| n.max(1))
    }
}
