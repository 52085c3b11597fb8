//! Compiled plugins, kept between runs.
//!
//! Compiled code is trusted code: whoever can write it runs as us. So it lies in a directory
//! that only this user can write, under a name made of the component's digest and of all that
//! the compiler's output depends on; where that cannot be had, plugins are compiled anew in
//! memory every time. Nothing compiled is ever accepted from anybody.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

pub(crate) struct Cache {
    directory: Option<PathBuf>,
}

impl Cache {
    /// The cache in this directory, if it is safe to use.
    pub(crate) fn open(directory: &Path) -> Cache {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        let safe = made.is_ok() && only_ours(directory);
        if !safe {
            tracing::warn!(
                directory = %directory.display(),
                "the cache directory is missing or writable by others: plugins are compiled anew"
            );
        }
        Cache { directory: safe.then(|| directory.to_owned()) }
    }

    /// The component, from the cache or compiled now.
    pub(crate) fn component(
        &self,
        engine: &Engine,
        digest: &str,
        bytes: &[u8],
    ) -> wasmtime::Result<Component> {
        let Some(directory) = &self.directory else { return Component::new(engine, bytes) };
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let path = directory.join(format!("{digest}-{:016x}.cwasm", hasher.finish()));
        if is_ours(&path) {
            // SAFETY: the file was written by this user, as checked here and for its directory,
            // and this program writes there only what its own compiler made.
            let load = || unsafe { Component::deserialize_file(engine, &path) };
            // A file damaged by the disk may even make the loader panic.
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(load)) {
                Ok(Ok(component)) => return Ok(component),
                Ok(Err(error)) => tracing::debug!(%error, "a cached plugin is compiled anew"),
                Err(_) => tracing::warn!("a cached plugin is damaged; it is compiled anew"),
            }
        }
        let component = Component::new(engine, bytes)?;
        if let Err(error) = component.serialize().and_then(|code| Ok(store(&path, &code)?)) {
            tracing::debug!(%error, "a compiled plugin could not be kept");
        }
        Ok(component)
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

fn only_ours(directory: &Path) -> bool {
    fs::symlink_metadata(directory).is_ok_and(|m| {
        m.is_dir() && m.uid() == effective_user() && m.permissions().mode() & 0o022 == 0
    })
}

fn is_ours(file: &Path) -> bool {
    fs::symlink_metadata(file).is_ok_and(|m| {
        m.is_file() && m.uid() == effective_user() && m.permissions().mode() & 0o022 == 0
    })
}

fn effective_user() -> u32 {
    nix::unistd::Uid::effective().as_raw()
}
