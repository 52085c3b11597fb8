//! Putting a copy back in place of a file.
//!
//! Order: a new file `….snapslot-restoring` | the copy's content, by sharing blocks or whole | owner,
//! mode, access lists and labels of the present disk | flush | rename over the disk | flush of the
//! folder. The name leads to the old disk before the rename and to the new one after it, and the
//! new one was durable before it had the name. Cut off before the rename, there is a file that
//! [`Copies::settle`](super::Copies::settle) removes; after it, nothing is left to do.
//!
//! The new file has the engine's lock before it has the name, as the old one has: the lock goes with the
//! name, and no other engine begins while this one has its record to write.
//!
//! Only what has the name open would go on with the old disk, unseen: so users are looked for,
//! and a disk with several names, or one that cannot be renamed over, is refused first.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use snapslot_disk::{Doing, PASSING, lock_for_engine, looks_in_passing};

use super::save::From;
use super::{CopyError, Opened, RESTORING, Watch, attributes, users};

impl Opened {
    /// Gives the new disk, with its lock.
    pub(super) fn replace(&self, mark: &str, watch: &Watch<'_>) -> Result<File, CopyError> {
        let (copy_name, copy, _) = self.open_copy(mark)?;
        let disk = self.open_disk(false)?;
        self.refuse_unsuitable(&disk)?;
        self.refuse_used(&disk)?;
        let name = self.name(RESTORING);
        self.remove_own(&name)?;
        self.tidy(&name, self.replace_by(&name, &copy_name, &copy, &disk, watch))
    }

    pub(super) fn refuse_used(&self, disk: &File) -> Result<(), CopyError> {
        let begun = Instant::now();
        loop {
            match users::user(disk) {
                Ok(None) => return Ok(()),
                Ok(Some(who)) if looks_in_passing(&who) && begun.elapsed() < PASSING => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(Some(who)) => return Err(CopyError::InUse { name: self.say(), who }),
                Err(e) => return Err(CopyError::io(self.say(), Doing::Stat, e)),
            }
        }
    }

    fn replace_by(
        &self,
        name: &OsStr,
        copy_name: &OsStr,
        copy: &File,
        disk: &File,
        watch: &Watch<'_>,
    ) -> Result<File, CopyError> {
        let file = self.folder.create(name)?;
        let locked = lock_for_engine(&file);
        match locked.map_err(|e| CopyError::io(self.folder.say(name), Doing::Open, e))? {
            true => {}
            false => return Err(CopyError::Changed { name: self.folder.say(name) }),
        }
        attributes::shape(disk, &file);
        // The copy is nobody's but ours.
        let from = From { file: copy, name: self.folder.say(copy_name), is_disk: false };
        self.transfer(&from, &file, name, true, watch)?;
        attributes::dress(disk, &file, &self.folder.say(name))?;
        self.folder.flush(name, &file)?;
        // A whole copy takes its time: is it still the disk that was looked at, and nobody's?
        let then = disk.metadata().map_err(|e| CopyError::io(self.say(), Doing::Stat, e))?;
        if self.folder.id(&self.stem)? != Some((then.dev(), then.ino())) {
            return Err(CopyError::Changed { name: self.say() });
        }
        self.refuse_used(disk)?;
        self.folder.rename_over(name, &self.stem)?;
        self.folder.sync()?;
        Ok(file)
    }
}
