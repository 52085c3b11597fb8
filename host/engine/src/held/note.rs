//! What is noted of one storage while something of it is held.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;

use crate::volume::private_directories;

/// How long it is waited for another process to be done with the storage, and how often it is tried meanwhile.
const STEP: Duration = Duration::from_millis(50);
/// How long a command is waited for whose engine was killed.
const ORPHANED: Duration = Duration::from_secs(20);
/// Bytes of the longest note: the full name of a ZFS snapshot has at most 255.
const LONGEST: u64 = 512;

/// A note, locked.
pub(super) struct Note {
    file: File,
    folder: PathBuf,
}

impl Note {
    /// Waits for whoever has it, at most so long.
    pub(super) fn take(folder: &Path, name: &str, patience: Duration) -> Result<Note, String> {
        let mut left = patience;
        loop {
            match Note::open(folder, name).map_err(|e| format!("it cannot be noted: {e}"))? {
                Some(note) => return Ok(note),
                None if left.is_zero() => {
                    return Err("another process holds a moment of it".to_owned());
                }
                None => std::thread::sleep(STEP.min(left)),
            }
            left = left.saturating_sub(STEP);
        }
    }

    /// None: somebody has it.
    pub(super) fn open(folder: &Path, name: &str) -> io::Result<Option<Note>> {
        let path = folder.join(name);
        if !path.exists() {
            private_directories(&path)?;
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Note { file, folder: folder.to_owned() })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Every note of a folder that nobody has, with its name.
    pub(super) fn all(folder: &Path) -> impl Iterator<Item = (String, Note)> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.filter_map(move |entry| {
            let name = entry.file_name().into_string().ok()?;
            let note = Note::open(folder, &name).ok()??;
            Some((name, note))
        })
    }

    /// What it says; empty: nothing is held.
    pub(super) fn says(&mut self) -> Result<String, String> {
        let mut said = String::new();
        let read = |file: &mut File, said: &mut String| {
            file.rewind()?;
            file.take(LONGEST).read_to_string(said)
        };
        read(&mut self.file, &mut said).map_err(|e| format!("its note: {e}"))?;
        Ok(said.trim_end().to_owned())
    }

    /// Durable when it returns.
    pub(super) fn write(&mut self, what: &str) -> Result<(), String> {
        let write = || {
            let mut file = &self.file;
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(what.as_bytes())?;
            file.sync_all()?;
            // Its name, and its folder's, may be new. To take it back they need not be on the disk.
            let folders = [Some(self.folder.as_path()), self.folder.parent()];
            for folder in folders.into_iter().flatten().filter(|_| !what.is_empty()) {
                File::open(folder)?.sync_all()?;
            }
            Ok::<_, io::Error>(())
        };
        write().map_err(|e| format!("it could not be noted: {e}"))
    }

    /// For a command that is to have it for as long as it lives.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The note of this name, if there is one. Whoever asks has the volume for themselves: only a command that outlives
    /// its engine may have the note still, and is waited for.
    pub(super) fn existing(folder: &Path, name: &str) -> Option<Note> {
        folder.join(name).exists().then(|| Note::take(folder, name, ORPHANED).ok()).flatten()
    }
}
