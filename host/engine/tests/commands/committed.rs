//! Goal: a command that changes something is run only out of a plan that was committed.
//!
//! Method: whatever a test of this program has the engine run goes through here, where the journals of
//! the engine are read first: one of them must hold the very command. Every test is held to that.

use std::path::{Path, PathBuf};

use snapslot_capture::journal::{self, Found};
use snapslot_command::{Answer, Command, Executor, RunError};
use snapslot_disk::FileCompanion;

/// Storage whose changes must have been committed.
pub struct Committed<S> {
    storage: S,
    journals: PathBuf,
}

impl<S> Committed<S> {
    pub fn new(storage: S, scratch: &Path) -> Self {
        Committed { storage, journals: scratch.join("state/journals") }
    }
}

impl<S: Executor> Executor for Committed<S> {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let first = command.arguments.first().map(String::as_str);
        let looks = matches!(command.program.as_str(), "lvs" | "vgs")
            || matches!(first, Some("list" | "get" | "holds"));
        assert!(looks || is_committed(&self.journals, command), "no journal has `{command}`");
        self.storage.run(command)
    }
}

fn is_committed(directory: &Path, command: &Command) -> bool {
    let Ok(entries) = std::fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return is_committed(&path, command);
        }
        match journal::read(&FileCompanion::new(path.clone(), directory.to_owned())) {
            Ok(Found::Committed { plan, .. }) => plan.acts().any(|act| act.command == *command),
            // A note beside the journal, or one that is being written.
            _ => false,
        }
    })
}
