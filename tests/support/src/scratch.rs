//! A directory for one test.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A directory that goes away with the test, and stays, named in the output, when the test
/// fails: the image that shows the fault is worth more than the space.
#[derive(Debug)]
pub struct Scratch {
    directory: Option<TempDir>,
}

impl Scratch {
    /// A new, empty one, below `TMPDIR`.
    ///
    /// # Panics
    /// When there is no place for it.
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("snapslot-test-").tempdir();
        Scratch { directory: Some(directory.expect("a temporary directory")) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        // It is there until dropped.
        self.directory.as_ref().map_or(Path::new(""), TempDir::path)
    }

    /// A name inside it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take().filter(|_| std::thread::panicking()) {
            eprintln!("the test's files are kept in {}", directory.keep().display());
        }
    }
}
