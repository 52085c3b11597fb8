//! Goal: what [`super`] promises. Method: real files, in a folder of their own; a probe that is
//! told of every change stops the sequence there, or makes it fail.

mod crash;
mod crash_device;
mod mounts;
mod plain;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use snapslot_disk::{DiskError, Doing};

use super::folder::{Event, Probe};
use super::{Copies, Opened, Watch};
use crate::Save;

pub(super) const MARK: &str = "0123456789abcdef";

/// What tests change about [`Copies`].
#[derive(Clone, Default)]
pub(super) struct Pretend {
    /// A file is taken for a block device.
    pub(super) device: bool,
    probe: Option<Probe>,
}

impl std::fmt::Debug for Pretend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pretend")
    }
}

impl Pretend {
    pub(super) fn probed(&self, mut opened: Opened) -> Opened {
        opened.folder.set_probe(self.probe.clone());
        opened
    }
}

fn device(disk: &Path, folder: &Path) -> Copies {
    let mut copies = Copies::in_directory(disk, folder);
    copies.pretend.device = true;
    copies
}

fn probed(
    copies: &mut Copies,
    probe: impl Fn(Event<'_>) -> Result<(), DiskError> + Send + Sync + 'static,
) {
    copies.pretend.probe = Some(Arc::new(probe));
}

/// How a stopped sequence ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// As by power lost: nothing more is done.
    Crash,
    /// As by a full disk: what was begun can be tidied up.
    Fail,
}

/// Stops right after the change with this number, from 0, whatever it is.
fn stopping(copies: &mut Copies, after: usize, how: Stop) {
    let count = Mutex::new(0);
    probed(copies, move |event| {
        // A rename or removal that fails has not happened: there is no failing after it.
        let happened = matches!(event, Event::Renamed(..) | Event::Removed(_));
        if how == Stop::Fail && happened {
            return Ok(());
        }
        let mut count = count.lock().expect("unpoisoned");
        *count += 1;
        match (*count == after + 1, how) {
            (false, _) => Ok(()),
            (true, Stop::Crash) => Err(DiskError::Crashed),
            (true, Stop::Fail) => {
                let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
                Err(DiskError::io(format!("{event:?}"), Doing::Write, full))
            }
        }
    });
}

fn save(full_copy: bool) -> Save {
    Save {
        mark: MARK.to_owned(),
        taken_seconds: 1_700_000_000,
        taken_nanoseconds: 123_456_789,
        full_copy,
    }
}

/// Bytes that are all of one kind, never zero, and differ from place to place.
fn bytes(kind: u8, length: usize) -> Vec<u8> {
    (0..length).map(|i| (((i / 512 + i) % 63) as u8 + 1) | (kind << 6)).collect()
}

/// A folder in memory: fsync costs nothing there, and there are many.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
        .expect("a folder")
}

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).expect("a file");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("its mode");
}

/// A folder with an image, and its copies.
fn image(content: &[u8]) -> (tempfile::TempDir, PathBuf, Copies) {
    let dir = scratch();
    let path = dir.path().join("vm.img");
    write(&path, content);
    let copies = Copies::beside(&path);
    (dir, path, copies)
}

type Listing = BTreeMap<OsString, Vec<u8>>;

/// Every file of a folder.
fn listing(dir: &Path) -> Listing {
    std::fs::read_dir(dir)
        .expect("a folder")
        .map(|e| e.expect("an entry"))
        .map(|e| (e.file_name(), std::fs::read(e.path()).expect("a file")))
        .collect()
}

/// Their names and lengths, for messages.
fn brief(files: &Listing) -> Vec<(&OsStr, usize)> {
    files.iter().map(|(name, content)| (name.as_os_str(), content.len())).collect()
}

fn copy_name(image: &str) -> OsString {
    format!("{image}.snapslot-{MARK}").into()
}

const QUIET: &Watch<'static> = &Watch::NONE;
