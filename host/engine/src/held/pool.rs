//! A moment of a thin pool's metadata, held while it is read.
//!
//! The metadata of a pool changes at any time. Device mapper keeps a moment of it on request: what was there then is not
//! written over before it is let go (Documentation/admin-guide/device-mapper/thin-provisioning.rst of the kernel,
//! `reserve_metadata_snap`). A pool keeps one at most.
//!
//! One that is held without a note is somebody else's, and is left alone: what it holds is no use to us. (Whoever lets
//! go of ours by hand, and holds one of their own before we come by again, loses it: the kernel does not say whose it is.)
//! Notes are named by the pool's UUID.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::stat::{major, minor};
use snapslot_command::Executor;
use snapslot_disk::{Disk, FileDisk};

use super::note::Note;
use super::{Failed, command, flush, run};
use crate::volume::Volume;

/// A message to a pool is done in milliseconds, but for a pool that waits for its disk.
const DEADLINE: Duration = Duration::from_secs(60);
/// The same for a look that goes without where it takes longer.
const DEADLINE_OF_A_LOOK: Duration = Duration::from_secs(5);
/// Percent of the metadata's blocks that may be used for it to be held: what is written meanwhile is written anew.
const FULL: u64 = 95;
/// What a note says of a moment that is held.
const HELD: &str = "held\n";
const RESERVE: &str = "reserve_metadata_snap";
const RELEASE: &str = "release_metadata_snap";

/// The metadata of the pool that a volume lies in, at one moment.
pub(crate) struct Metadata<'e> {
    pub(crate) disk: Arc<FileDisk>,
    _reserved: Reserved<'e>,
}

impl<'e> Metadata<'e> {
    /// Holds it, after at most so long of waiting for who else does; or why there is none to be had. None: the volume is
    /// not thin.
    pub(crate) fn of(
        volume: &Volume,
        tools: &'e dyn Executor,
        state_dir: &Path,
        patience: Duration,
    ) -> Result<Option<Metadata<'e>>, String> {
        let device = volume.locator.place.device().ok_or("it has no device")?;
        let Some(mut pool) = Pool::of(&device)? else { return Ok(None) };
        match patience.is_zero() {
            true => pool.deadline = DEADLINE_OF_A_LOOK,
            false => flush(&device),
        }
        let note = Note::take(&notes(state_dir), &pool.uuid, patience)?;
        let reserved = Reserved::of(pool, note, tools)?;
        let disk = Arc::new(reserved.pool.metadata()?);
        Ok(Some(Metadata { disk, _reserved: reserved }))
    }
}

/// Lets go of what was left held.
pub(super) fn let_go(tools: &dyn Executor, state_dir: &Path) {
    for (uuid, mut note) in Note::all(&notes(state_dir)) {
        // Of a pool that is not there nothing can be let go.
        let Some(pool) = Pool::named(&uuid) else { continue };
        if let Err(why) = pool.let_go(&mut note, tools) {
            tracing::warn!("the metadata of {} is held still: {why}", pool.name);
        }
    }
}

fn notes(state_dir: &Path) -> PathBuf {
    state_dir.join("pools")
}

/// A thin pool's device.
struct Pool {
    /// Of the kernel.
    name: String,
    uuid: String,
    /// Where the kernel tells of it.
    told: PathBuf,
    /// How long it may take to tell it something.
    deadline: Duration,
}

impl Pool {
    /// The pool that a thin volume's device lies in.
    fn of(device: &Path) -> Result<Option<Pool>, String> {
        // One that is not active has no device.
        let Ok(meta) = fs::metadata(device) else { return Ok(None) };
        let number = meta.rdev();
        let told = format!("/sys/dev/block/{}:{}", major(number), minor(number));
        let [pool] = &below(Path::new(&told), "-tpool")?[..] else { return Ok(None) };
        Pool::at(pool).map(Some).ok_or_else(|| "its pool has no name".to_owned())
    }

    fn at(told: &Path) -> Option<Pool> {
        let word = |name: &str| fs::read_to_string(told.join("dm").join(name)).ok();
        let (name, uuid) = (word("name")?.trim().to_owned(), word("uuid")?.trim().to_owned());
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
        let sound = |word: &str| !word.is_empty() && !word.starts_with(['-', '.']);
        (sound(&name) && sound(&uuid) && name.bytes().chain(uuid.bytes()).all(plain))
            .then(|| Pool { name, uuid, told: told.to_owned(), deadline: DEADLINE })
    }

    /// The pool of this UUID, if it is active.
    fn named(uuid: &str) -> Option<Pool> {
        let all = fs::read_dir("/sys/block").ok()?.flatten();
        all.filter_map(|entry| Pool::at(&entry.path())).find(|pool| pool.uuid == uuid)
    }

    /// Its metadata, to be read; nothing of it from the cache.
    fn metadata(&self) -> Result<FileDisk, String> {
        let [told] = &below(&self.told, "-tmeta")?[..] else {
            return Err(format!("the metadata of {} is not one device", self.name));
        };
        let name = told.file_name().ok_or("a device without a name")?;
        let disk = FileDisk::open_read_only(&Path::new("/dev").join(name));
        let disk = disk.map_err(|e| e.to_string())?;
        let number = fs::metadata(disk.path()).map_err(|e| e.to_string())?.rdev();
        let is = format!("{}:{}", major(number), minor(number));
        if fs::read_to_string(told.join("dev")).map_err(|e| e.to_string())?.trim() != is {
            return Err(format!("{} is another device", disk.path().display()));
        }
        // The pool writes past the cache of its device, which may have what was there before.
        let descriptor = disk.descriptor().ok_or("a device without a descriptor")?;
        posix_fadvise(descriptor, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .map_err(|e| e.to_string())?;
        Ok(disk)
    }

    fn tell(&self, message: &str, note: &Note, tools: &dyn Executor) -> Result<(), Failed> {
        run(tools, note, self.deadline, "dmsetup", &["message", &self.name, "0", message])
    }

    /// Whether there is room for what is written anew of the metadata while a moment of it is held.
    fn has_room(&self, tools: &dyn Executor) -> Result<(), String> {
        let command = command("dmsetup", &["status", "--noflush", &self.name], self.deadline);
        let answer = tools.run(&command).map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&answer.output);
        // start length thin-pool transaction used/total …
        let of_metadata = said.split_whitespace().nth(4).and_then(|w| w.split_once('/'));
        let (Some(used), Some(total)) = (
            of_metadata.and_then(|w| w.0.parse::<u64>().ok()),
            of_metadata.and_then(|w| w.1.parse::<u64>().ok()),
        ) else {
            return Err(format!("`{command}`: {}", answer.complaint()));
        };
        match used.saturating_mul(100) < total.saturating_mul(FULL) {
            true => Ok(()),
            false => Err(format!("{used} of {total} blocks of the pool's metadata are used")),
        }
    }

    /// Lets go of what is noted, if anything is.
    fn let_go(&self, note: &mut Note, tools: &dyn Executor) -> Result<(), String> {
        if note.says()?.is_empty() {
            return Ok(());
        }
        match self.tell(RELEASE, note, tools) {
            // Nothing is held: a crash came before it was.
            Err(failed) if !failed.says("Invalid argument") => Err(failed.into()),
            _ => note.write(""),
        }
    }
}

/// The devices that this one lies on whose UUID has this ending.
fn below(told: &Path, ending: &str) -> Result<Vec<PathBuf>, String> {
    let fail = |e: io::Error| format!("{}: {e}", told.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(told.join("slaves")).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let uuid = fs::read_to_string(path.join("dm/uuid")).unwrap_or_default();
        if uuid.starts_with("LVM-") && uuid.trim().ends_with(ending) {
            found.push(path);
        }
    }
    Ok(found)
}

/// A moment that is held. Let go of when dropped.
struct Reserved<'e> {
    pool: Pool,
    note: Note,
    tools: &'e dyn Executor,
}

impl<'e> Reserved<'e> {
    fn of(pool: Pool, mut note: Note, tools: &'e dyn Executor) -> Result<Self, String> {
        pool.let_go(&mut note, tools)?;
        pool.has_room(tools)?;
        note.write(HELD)?;
        match pool.tell(RESERVE, &note, tools) {
            Ok(()) => Ok(Reserved { pool, note, tools }),
            Err(failed) => {
                // What others hold is not ours to let go.
                if failed.ended {
                    note.write("")?;
                } else if !failed.goes_on {
                    // It may have been reserved and only not been told.
                    pool.let_go(&mut note, tools)?;
                }
                Err(failed.into())
            }
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if let Err(why) = self.pool.let_go(&mut self.note, self.tools) {
            tracing::warn!(
                "a moment of the metadata of {} is held still ({why}); `snapslot recover` lets go of it, or \
                 `dmsetup message {} 0 {RELEASE}`",
                self.pool.name,
                self.pool.name,
            );
        }
    }
}
