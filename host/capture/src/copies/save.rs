//! Making a copy, and what that would take.
//!
//! Order: a new file `….part` that only its owner can open | content, by sharing blocks or whole |
//! the moment as its time of modification | flush | rename to its name | flush of the folder.
//! Cut off before the rename, there is a `.part` that [`Copies::settle`](super::Copies::settle) removes; after it, there is
//! the copy, whole. The disk is only read.

use std::ffi::OsStr;
use std::fs::{File, FileTimes, Metadata};
use std::time::{Duration, UNIX_EPOCH};

use snapslot_disk::Doing;

use crate::Save;

use super::content::{self, Move, Onto};
use super::folder::Event;
use super::{
    CopyError, Opened, PART, PROBE, SavedCopy, Saving, Watch, attributes, check_mark, modified, sys,
};

/// A multiple of every file system's block: the part that is shared to see whether it can be.
const PROBE_LENGTH: u64 = 1 << 20;

/// What a copy is made of.
pub(super) struct From<'a> {
    pub(super) file: &'a File,
    /// Its name, to say.
    pub(super) name: String,
    /// Whether it is the disk, which others may have too.
    pub(super) is_disk: bool,
}

impl Opened {
    /// What one more copy would take.
    pub(super) fn saving(&self) -> Result<Saving, CopyError> {
        let disk = self.open_disk(false)?;
        let size = content::size(&disk, &self.say())?;
        let bytes = content::data(&disk, size, &self.say())?.iter().map(|r| r.end - r.start).sum();
        let shares = self.is_file && self.can_share(&disk, size)?;
        Ok(Saving { shares, bytes, available: self.folder.available()? })
    }

    fn can_share(&self, disk: &File, size: u64) -> Result<bool, CopyError> {
        let name = self.name(PROBE);
        let trial = match self.folder.nameless()? {
            Some(file) => file,
            None => {
                self.remove_own(&name)?;
                let file = self.folder.create(&name)?;
                self.folder.remove(&name)?;
                file
            }
        };
        attributes::shape(disk, &trial);
        let length = if size > PROBE_LENGTH { PROBE_LENGTH } else { 0 };
        sys::clone_start(disk, &trial, length)
            .map_err(|e| CopyError::io(self.folder.say(&name), Doing::Write, e))
    }

    /// Saves a copy of the disk's present content: whole, or not at all.
    pub(super) fn save(&self, new: &Save, watch: &Watch<'_>) -> Result<SavedCopy, CopyError> {
        let mark = new.mark.as_str();
        check_mark(mark)?;
        if self.marker()?.is_some() {
            return Err(CopyError::Unfinished { name: self.say() });
        }
        let name = self.name(mark);
        if self.folder.id(&name)?.is_some() {
            return Err(CopyError::Exists { name: self.folder.say(&name) });
        }
        let disk = self.open_disk(false)?;
        self.refuse_unsuitable(&disk)?;
        let part = self.name(&format!("{mark}{PART}"));
        self.remove_own(&part)?;
        self.tidy(&part, self.save_as(&name, &part, &disk, new, watch))?;
        let listed = self.list()?.into_iter().find(|c| c.mark == mark);
        listed.ok_or_else(|| CopyError::Missing { name: self.folder.say(&name) })
    }

    /// A disk that could not be restored gets no snapshot either: it would be a trap.
    pub(super) fn refuse_unsuitable(&self, disk: &File) -> Result<(), CopyError> {
        if !self.is_file {
            return Ok(());
        }
        match attributes::unsuitable(disk, self.folder.file()) {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(CopyError::Unsuitable { name: self.say(), why }),
            Err(e) => Err(CopyError::io(self.say(), Doing::Stat, e)),
        }
    }

    /// After a failure, removes what was begun. That this may fail too is for `settle`.
    pub(super) fn tidy<T>(
        &self,
        name: &OsStr,
        result: Result<T, CopyError>,
    ) -> Result<T, CopyError> {
        if let Err(e) = &result
            && !e.is_crash()
        {
            let _ = self.folder.remove(name);
            let _ = self.folder.sync();
        }
        result
    }

    fn save_as(
        &self,
        name: &OsStr,
        part: &OsStr,
        disk: &File,
        new: &Save,
        watch: &Watch<'_>,
    ) -> Result<(), CopyError> {
        let say = self.folder.say(part);
        let file = self.folder.create(part)?;
        // A file system that makes it somebody else's (NFS for root) would have it refused later.
        self.folder.trust(part, &file, self.owner())?;
        attributes::shape(disk, &file);
        let from = From { file: disk, name: self.say(), is_disk: true };
        self.transfer(&from, &file, part, new.full_copy, watch)?;
        let fail = |e| CopyError::io(&say, Doing::Name, e);
        let moment = UNIX_EPOCH
            .checked_add(Duration::from_secs(new.taken_seconds))
            .and_then(|m| m.checked_add(Duration::from_nanos(new.taken_nanoseconds.into())))
            .ok_or_else(|| fail(std::io::ErrorKind::InvalidInput.into()))?;
        file.set_times(FileTimes::new().set_modified(moment)).map_err(fail)?;
        if modified(&file.metadata().map_err(fail)?).as_secs() != new.taken_seconds {
            return Err(CopyError::Time { name: say });
        }
        self.folder.flush(part, &file)?;
        self.folder.rename_new(part, name)?;
        // Whether the name outlives a crash is unknown if this fails: then it goes again.
        self.tidy(name, self.folder.sync())
    }

    /// Fills a new file from another: shares its blocks, or copies them if that is allowed. Blocks are
    /// shared in one instant; a whole copy takes its time, and is of one moment only if nobody has the
    /// disk. A device's times tell of no write, so it is looked for users, before and after.
    pub(super) fn transfer(
        &self,
        from: &From<'_>,
        to: &File,
        to_name: &OsStr,
        full_copy: bool,
        watch: &Watch<'_>,
    ) -> Result<(), CopyError> {
        let (source, from_name) = (from, from.name.as_str());
        let from = source.file;
        let say = self.folder.say(to_name);
        let size = content::size(from, from_name)?;
        let look = || from.metadata().map_err(|e| CopyError::io(from_name, Doing::Stat, e));
        let before = look()?;
        let shared = self.is_file
            && sys::clone_whole(from, to).map_err(|e| CopyError::io(&say, Doing::Write, e))?;
        if shared {
            self.folder.tell(Event::Wrote(to_name))?;
            (watch.progress)(size, size);
        } else {
            let ranges = content::data(from, size, from_name)?;
            let needed = ranges.iter().map(|r| r.end - r.start).sum();
            let available = self.folder.available()?;
            if !full_copy {
                let name = from_name.to_owned();
                return Err(CopyError::NotShared { name, bytes: needed, available });
            }
            if needed > available {
                let folder = self.folder.path().display().to_string();
                return Err(CopyError::NoSpace { folder, needed, available });
            }
            if source.is_disk {
                self.refuse_used(from)?;
            }
            to.set_len(size).map_err(|e| CopyError::io(&say, Doing::Resize, e))?;
            let (from_name, onto) = (from_name.to_owned(), Onto::Fresh);
            let content = Move { from, to, from_name, to_name: say.clone(), onto };
            content.run(&ranges, watch, &|| {
                self.folder.tell(Event::Wrote(to_name))?;
                to.sync_data().map_err(|e| CopyError::io(&say, Doing::Flush, e))
            })?;
        }
        if source.is_disk && !shared {
            self.refuse_used(from)?;
        }
        // Shared blocks are of one instant; a whole copy is so only if nobody wrote meanwhile.
        let stamp = |m: &Metadata| (m.len(), (!shared).then(|| modified(m)));
        if stamp(&before) != stamp(&look()?)
            || content::size(from, from_name)? != size
            || content::size(to, &say)? != size
        {
            return Err(CopyError::Changed { name: from_name.to_owned() });
        }
        Ok(())
    }
}
