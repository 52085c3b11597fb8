//! Compiled plugins, kept between runs.
//!
//! Compiled code is trusted code: whoever can write it runs as us. So it lies in a directory
//! that only this user can write, under a name made of the component's digest and of all that
//! the compiler's output depends on; where that cannot be had, plugins are compiled anew in
//! memory every time. Nothing compiled is ever accepted from anybody.
//!
//! There is an end to what is kept: what was used longest ago goes first.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;

/// Files that are kept at most, and their bytes: some tens of plugins in three releases, or a few with a
/// language's whole runtime.
const FILES_MAX: usize = 128;
const BYTES_MAX: u64 = 1 << 30;
/// How exactly it is known when one was used.
const USED_TO: Duration = Duration::from_secs(3600);
/// A half file that is older than this is a crash's.
const HALF_MAX: Duration = Duration::from_secs(3600);

pub(crate) struct Cache {
    directory: Option<PathBuf>,
}

impl Cache {
    /// The cache in this directory, if it is safe to use.
    pub(crate) fn open(directory: &Path) -> Cache {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        let meta = fs::symlink_metadata(directory);
        let safe = made.is_ok() && meta.is_ok_and(|m| m.is_dir() && is_ours(&m));
        if !safe {
            tracing::warn!(
                directory = %directory.display(),
                "the cache directory is missing or writable by others: plugins are compiled anew"
            );
        }
        Cache { directory: safe.then(|| directory.to_owned()) }
    }

    fn path(&self, digest: &str, key: u64) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{digest}-{key:016x}.cwasm")))
    }

    /// The code of this component for a machine with this key, open for reading.
    pub(crate) fn find(&self, digest: &str, key: u64) -> Option<File> {
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(self.path(digest, key)?)
            .ok()?;
        let meta = file.metadata().ok()?;
        if !meta.is_file() || !is_ours(&meta) {
            return None;
        }
        if age(&meta) > USED_TO {
            // That it cannot be noted makes it go earlier, and nothing else.
            let _ = file.set_modified(SystemTime::now());
        }
        Some(file)
    }

    /// Keeps it. That it cannot be kept costs time at the next run, and nothing else.
    pub(crate) fn keep(&self, digest: &str, key: u64, code: &[u8]) {
        let Some(path) = self.path(digest, key) else { return };
        if code.len() as u64 > BYTES_MAX / 2 {
            return;
        }
        if let Err(error) = store(&path, code) {
            tracing::debug!(%error, "a compiled plugin could not be kept");
        }
        self.trim();
    }

    /// Removes all code of this component.
    pub(crate) fn forget(&self, digest: &str) {
        for (path, _) in self.files() {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name.strip_prefix(digest).is_some_and(|rest| rest.starts_with('-')) {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// Files that look as if this program had made them.
    fn files(&self) -> Vec<(PathBuf, fs::Metadata)> {
        let Some(directory) = &self.directory else { return Vec::new() };
        let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
        (entries.flatten())
            .filter(|e| e.path().extension().is_some_and(|e| e == "cwasm" || e == "part"))
            .filter_map(|e| Some((e.path(), e.metadata().ok().filter(fs::Metadata::is_file)?)))
            .collect()
    }

    /// Removes what is too much, and what crashes left. Another process that has one of them open
    /// reads it to its end.
    fn trim(&self) {
        let (mut kept, halves): (Vec<_>, Vec<_>) = (self.files().into_iter())
            .partition(|(path, _)| path.extension().is_some_and(|e| e == "cwasm"));
        for (path, _) in halves.iter().filter(|(_, meta)| age(meta) > HALF_MAX) {
            let _ = fs::remove_file(path);
        }
        kept.sort_by_key(|(_, meta)| age(meta));
        let mut bytes = 0_u64;
        for (n, (path, meta)) in kept.iter().enumerate() {
            bytes = bytes.saturating_add(meta.len());
            if n >= FILES_MAX || bytes > BYTES_MAX {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn age(meta: &fs::Metadata) -> Duration {
    let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    SystemTime::now().duration_since(used).unwrap_or_default()
}

/// Written beside and renamed, so that nobody ever sees half of it.
fn store(path: &Path, code: &[u8]) -> std::io::Result<()> {
    let beside = path.with_extension(format!("{}.part", std::process::id()));
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&beside)
        // Durable before it gets its name: after a power cut there is all of it or none.
        .and_then(|mut file| file.write_all(code).and_then(|()| file.sync_all()));
    let result = written.and_then(|()| fs::rename(&beside, path));
    if result.is_err() {
        let _ = fs::remove_file(&beside);
    }
    result
}

fn is_ours(meta: &fs::Metadata) -> bool {
    meta.uid() == nix::unistd::Uid::effective().as_raw() && meta.permissions().mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    //! Goal: the cache has an end, the code that is used stays, and what is not the cache's is left alone.

    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let scratch = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(scratch.path());
        let old = SystemTime::now() - Duration::from_secs(100_000);
        let digest = |n: usize| format!("{n:064x}");
        let aged = |path: &Path, n: usize| {
            let file = fs::OpenOptions::new().write(true).open(path).expect("it");
            file.set_modified(old + Duration::from_secs(n as u64)).expect("aged");
        };
        for n in 0..FILES_MAX {
            cache.keep(&digest(n), 1, b"code");
            aged(&cache.path(&digest(n), 1).expect("a path"), n);
        }
        for name in ["notes.txt", "of-a-crash.part"] {
            fs::write(scratch.path().join(name), b"x").expect("written");
            aged(&scratch.path().join(name), 0);
        }
        // The oldest is used, and so it is not the oldest any more.
        assert!(cache.find(&digest(0), 1).is_some());
        for n in FILES_MAX..FILES_MAX + 3 {
            cache.keep(&digest(n), 1, b"code");
        }
        let there = |n: usize| cache.find(&digest(n), 1).is_some();
        assert_eq!([0, 1, 2, 3, 4].map(there), [true, false, false, false, true]);
        assert!(there(FILES_MAX + 2));
        assert!(scratch.path().join("notes.txt").exists());
        assert!(!scratch.path().join("of-a-crash.part").exists());
        // Story: a plugin that was removed left its compiled code for ever.
        cache.keep(&digest(4), 2, b"of another release");
        cache.forget(&digest(4));
        assert!(!there(4) && cache.find(&digest(4), 2).is_none() && there(6));
    }
}
