//! Compiled plugins, kept between runs.
//!
//! Compiled code is trusted code: whoever can write it runs as us. So it lies in a directory
//! that only this user can write, under a name made of the component's digest and of all that
//! the compiler's output depends on; where that cannot be had, plugins are compiled anew in
//! memory every time. Nothing compiled is ever accepted from anybody.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

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
        (meta.is_file() && is_ours(&meta)).then_some(file)
    }

    /// Keeps it. That it cannot be kept costs time at the next run, and nothing else.
    pub(crate) fn keep(&self, digest: &str, key: u64, code: &[u8]) {
        let Some(path) = self.path(digest, key) else { return };
        if let Err(error) = store(&path, code) {
            tracing::debug!(%error, "a compiled plugin could not be kept");
        }
    }
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
