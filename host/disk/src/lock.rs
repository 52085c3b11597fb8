//! Locks on image files: QEMU's, and the engine's own.
//!
//! QEMU guards an image with *open file description* locks on single bytes (block/file-posix.c;
//! observed with `/proc/locks`): a read lock on byte 100+p says "I use permission p", one on
//! byte 200+p says "I do not share permission p". Before it goes on, a process tests for locks
//! of others that contradict. Taking the same locks makes QEMU and qemu-img refuse an image we
//! change, and us one they have open. The locks end with the process, so none is ever stale.

use std::fs::File;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use crate::{Disk as _, DiskError, Doing, FileDisk, Holder, holders};

/// Permissions of QEMU's block layer: consistent read, write, write unchanged, resize.
const PERMISSIONS: [i64; 4] = [0, 1, 2, 3];
const USED_BASE: i64 = 100;
const UNSHARED_BASE: i64 = 200;
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;
/// Far from QEMU's bytes; locks past the end of a file are fine.
const ENGINE_BYTE: i64 = 0x5350_534c;
/// Held by an engine and, unlike the other, by none of the commands that it runs.
const ALIVE_BYTE: i64 = ENGINE_BYTE + 1;

/// Why a lock was not to be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error("{name} is in use{}", Holder::in_words(.holders))]
    Held {
        /// The file.
        name: String,
        /// Who, as far as /proc tells.
        holders: Vec<Holder>,
    },
    /// The system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

fn region(kind: i32, byte: i64) -> libc::flock {
    // SAFETY: `flock` is plain integers; all zeroes is a valid value of it.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = kind as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = byte;
    lock.l_len = 1;
    lock
}

/// Sets or clears a lock. `Ok(false)`: somebody else has one that excludes it.
fn set(file: &File, kind: i32, byte: i64) -> Result<bool, Errno> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&region(kind, byte))) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether another description holds any lock on the byte.
fn held_by_others(file: &File, byte: i64) -> Result<bool, Errno> {
    held_against(file, libc::F_WRLCK, byte)
}

/// Whether another description holds a lock on the byte that excludes one of this kind.
fn held_against(file: &File, kind: i32, byte: i64) -> Result<bool, Errno> {
    let mut lock = region(kind, byte);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn system(disk: &FileDisk, errno: Errno) -> LockError {
    LockError::Disk(DiskError::io(disk.path().display().to_string(), Doing::Open, errno.into()))
}

fn held(disk: &FileDisk) -> LockError {
    LockError::Held { name: disk.path().display().to_string(), holders: holders(disk.id()) }
}

/// QEMU's locks on one image, all permissions used and none shared: nobody else can have it
/// open, not even to read. Ends when dropped, or with the process.
#[derive(Debug)]
pub struct ImageLock<'a> {
    disk: &'a FileDisk,
}

impl<'a> ImageLock<'a> {
    /// Takes them all or none. The disk need not be writable.
    pub fn exclusive(disk: &'a FileDisk) -> Result<Self, LockError> {
        let lock = ImageLock { disk }; // from here on, dropping it gives back what was taken
        for p in PERMISSIONS {
            for byte in [USED_BASE + p, UNSHARED_BASE + p] {
                // A read lock conflicts only with write locks, which nobody takes here.
                if !set(disk.file(), libc::F_RDLCK, byte).map_err(|e| system(disk, e))? {
                    return Err(held(disk));
                }
            }
        }
        // Announce first, then test: two that do this at once see each other.
        for p in PERMISSIONS {
            for byte in [USED_BASE + p, UNSHARED_BASE + p] {
                if held_by_others(disk.file(), byte).map_err(|e| system(disk, e))? {
                    return Err(held(disk));
                }
            }
        }
        Ok(lock)
    }
}

impl<'a> ImageLock<'a> {
    /// What a program takes that reads the present content: consistent reading is used; writing and
    /// resizing are not shared. Others may read too.
    pub fn reading(disk: &'a FileDisk) -> Result<Self, LockError> {
        let lock = ImageLock { disk };
        let conflicts = [USED_BASE + WRITE, USED_BASE + RESIZE, UNSHARED_BASE + CONSISTENT_READ];
        for byte in [USED_BASE + CONSISTENT_READ, UNSHARED_BASE + WRITE, UNSHARED_BASE + RESIZE] {
            if !set(disk.file(), libc::F_RDLCK, byte).map_err(|e| system(disk, e))? {
                return Err(held(disk));
            }
        }
        for byte in conflicts {
            if held_by_others(disk.file(), byte).map_err(|e| system(disk, e))? {
                return Err(held(disk));
            }
        }
        Ok(lock)
    }
}

impl Drop for ImageLock<'_> {
    fn drop(&mut self) {
        for p in PERMISSIONS {
            for byte in [USED_BASE + p, UNSHARED_BASE + p] {
                let _ = set(self.disk.file(), libc::F_UNLCK, byte);
            }
        }
    }
}

/// Who has the image open for writing, by QEMU's locks; empty when nobody has. Takes no lock.
pub fn probe_writer(disk: &FileDisk) -> Result<Option<Vec<Holder>>, LockError> {
    let used = held_by_others(disk.file(), USED_BASE + WRITE).map_err(|e| system(disk, e))?;
    Ok(used.then(|| holders(disk.id())))
}

/// The engine's own lock on one image: one engine at a time.
#[derive(Debug)]
pub struct EngineLock<'a> {
    disk: &'a FileDisk,
    /// The same file, opened once more: no command gets this description.
    alive: Option<File>,
}

impl<'a> EngineLock<'a> {
    /// Takes it, or says who has it. The disk must be writable.
    pub fn take(disk: &'a FileDisk) -> Result<Self, LockError> {
        if !set(disk.file(), libc::F_WRLCK, ENGINE_BYTE).map_err(|e| system(disk, e))? {
            return Err(held(disk));
        }
        // Replaced between opening and locking: what we hold is not what the name says.
        if !disk.still_named()? || disk.size().is_err() {
            let what = std::io::Error::other("it was replaced by another file just now");
            return Err(DiskError::io(disk.path().display().to_string(), Doing::Open, what).into());
        }
        Ok(EngineLock { disk, alive: None })
    }

    /// The same, for a file that commands are given to hold: if they outlive the engine,
    /// [`EngineLock::has_engine`] tells.
    pub fn take_for_commands(disk: &'a FileDisk) -> Result<Self, LockError> {
        let mut lock = Self::take(disk)?;
        let again = File::options().read(true).write(true).open(disk.path());
        let alive = again.and_then(|file| match set(&file, libc::F_WRLCK, ALIVE_BYTE) {
            Ok(true) => Ok(file),
            Ok(false) => Err(std::io::Error::other("somebody else says to be its engine")),
            Err(e) => Err(e.into()),
        });
        let name = || disk.path().display().to_string();
        lock.alive = Some(alive.map_err(|e| DiskError::io(name(), Doing::Open, e))?);
        Ok(lock)
    }

    /// Whether an engine is there that has it, or a share of it. If none is and it is not to be had, a
    /// command has it that outlived its engine; or that ended just now.
    pub fn has_engine(disk: &FileDisk) -> Result<bool, LockError> {
        held_by_others(disk.file(), ALIVE_BYTE).map_err(|e| system(disk, e))
    }

    /// Takes a share of it: others may look too, and nobody may change anything.
    pub fn share(disk: &'a FileDisk) -> Result<Self, LockError> {
        for byte in [ALIVE_BYTE, ENGINE_BYTE] {
            if !set(disk.file(), libc::F_RDLCK, byte).map_err(|e| system(disk, e))? {
                let _ = set(disk.file(), libc::F_UNLCK, ALIVE_BYTE);
                return Err(held(disk));
            }
        }
        Ok(EngineLock { disk, alive: None })
    }

    /// Who has it now to change something, as far as it can be seen; none: nobody.
    pub fn taken_by(disk: &FileDisk) -> Result<Option<Vec<Holder>>, LockError> {
        // A read lock conflicts with write locks alone.
        let taken =
            held_against(disk.file(), libc::F_RDLCK, ENGINE_BYTE).map_err(|e| system(disk, e))?;
        Ok(taken.then(|| holders(disk.id())))
    }
}

/// Takes the engine's lock on a file that is to take an image's place, so that no other engine comes
/// between: it ends when the file is closed. False if somebody has it, which nobody can who has not
/// opened the file by its name.
pub fn lock_for_engine(file: &File) -> std::io::Result<bool> {
    Ok(set(file, libc::F_WRLCK, ENGINE_BYTE)?)
}

impl Drop for EngineLock<'_> {
    fn drop(&mut self) {
        // By a call, not by closing: a process that is being made has a copy of all descriptors for a
        // moment. This one first, so that who gets the other gets it too.
        if let Some(alive) = &self.alive {
            let _ = set(alive, libc::F_UNLCK, ALIVE_BYTE);
        }
        if self.disk.is_left_locked() {
            return;
        }
        for byte in [ALIVE_BYTE, ENGINE_BYTE] {
            let _ = set(self.disk.file(), libc::F_UNLCK, byte);
        }
    }
}
