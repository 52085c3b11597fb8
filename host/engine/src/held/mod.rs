//! Moments of a storage that are held while they are looked at, and let go of afterwards.
//!
//! | held | how | for |
//! |---|---|---|
//! | the metadata of a thin pool (`pool.rs`) | device mapper's metadata snapshot | what changed on a thin volume |
//! | the present content of a ZFS volume (`dataset.rs`) | a snapshot for that time | that content, and what changed on it |
//! | the device of a snapshot (`shown.rs`) | active for that time, or not hidden | its content |
//!
//! Each outlives the process that holds it, and a restart of the machine. So it is noted before it is asked for, and
//! whoever comes next lets go of what was left:
//!
//! | step | the note | a crash after it leaves | which ends |
//! |---|---|---|---|
//! | note it, durable | written | a note of nothing | the next one: there is nothing to let go of, and no harm |
//! | hold | written | a moment that is held for nobody | the next one, or `recover`, lets go of it |
//! | read | written | the same | the same |
//! | let go | written | a note of nothing | the next one |
//! | take the note back, durable | empty | nothing | |
//!
//! One process at a time has the note of one storage; and a command that holds, or lets go, has it for as long as it
//! lives, also when the engine that began it is killed: nobody finds nothing to let go of before it has held.

mod dataset;
mod note;
mod pool;
mod shown;

use std::path::{Path, PathBuf};
use std::time::Duration;

use snapslot_command::{Command, Executor, Place, RunError};

use crate::volume::Volume;
use note::Note;

pub(crate) use dataset::{Present, Untold};
pub(crate) use pool::Metadata;
pub(crate) use shown::Shown;

/// What is held of a volume by commands, and how it is let go of.
struct Kind {
    /// For people.
    what: &'static str,
    /// Its notes, in the state directory.
    folder: &'static str,
    /// The note of a volume; none: nothing of this kind is ever held of it.
    note_of: fn(&Place) -> Option<String>,
    /// Does so with what is noted, if anything is, in so many tries.
    undo: fn(&mut Note, &dyn Executor, u32) -> Result<(), String>,
}

const KINDS: [Kind; 2] = [dataset::KIND, shown::KIND];

impl Kind {
    fn notes(&self, state_dir: &Path) -> PathBuf {
        state_dir.join(self.folder)
    }

    fn let_go(&self, mut note: Note, tools: &dyn Executor, tries: u32) {
        if let Err(why) = (self.undo)(&mut note, tools, tries) {
            let said = note.says().unwrap_or_default();
            tracing::warn!("{} may be there still ({said}): {why}", self.what);
        }
    }
}

/// Lets go of all that engines that were killed left held.
pub(crate) fn let_go(tools: &dyn Executor, state_dir: &Path) {
    pool::let_go(tools, state_dir);
    for kind in KINDS {
        for (_, note) in Note::all(&kind.notes(state_dir)) {
            kind.let_go(note, tools, PASSING.0);
        }
    }
}

/// Lets go of what would stand in the way of a change of this volume, which the caller has locked, not for long. Other
/// storage may take its time.
pub(crate) fn let_go_of(volume: &Volume, tools: &dyn Executor, state_dir: &Path) {
    for kind in KINDS {
        if let Some(name) = (kind.note_of)(&volume.locator.place)
            && let Some(note) = Note::existing(&kind.notes(state_dir), &name)
        {
            kind.let_go(note, tools, SHORTLY);
        }
    }
}

/// Has what was written to a device and is not on the disks yet written there: it is present, too.
fn flush(device: &Path) {
    // Best effort: what the storage then shows is a moment all the same.
    let _ = std::fs::File::open(device).and_then(|device| device.sync_all());
}

/// How often, and how long apart, what somebody looks at in passing is tried again.
const PASSING: (u32, Duration) = (50, Duration::from_millis(100));
/// The same before a change, which is not to wait long for it.
const SHORTLY: u32 = 5;

/// Why a command did not do it.
#[derive(Debug)]
struct Failed {
    /// For people.
    why: String,
    /// All that it said.
    said: String,
    /// Whether it ended by itself, so that what it was to do is not done.
    ended: bool,
    /// Whether it goes on, as it cannot be ended.
    goes_on: bool,
}

impl Failed {
    fn says(&self, words: &str) -> bool {
        self.said.contains(words)
    }
}

impl From<Failed> for String {
    fn from(failed: Failed) -> String {
        failed.why
    }
}

impl From<String> for Failed {
    fn from(why: String) -> Failed {
        Failed { said: String::new(), ended: true, goes_on: false, why }
    }
}

/// Again while it fails for this reason.
fn patiently(
    mut work: impl FnMut() -> Result<(), Failed>,
    reason: &str,
    tries: u32,
) -> Result<(), Failed> {
    for _ in 1..tries {
        match work() {
            Err(failed) if failed.says(reason) => std::thread::sleep(PASSING.1),
            result => return result,
        }
    }
    work()
}

fn command(program: &str, words: &[&str], deadline: Duration) -> Command {
    let arguments = words.iter().map(|&word| word.to_owned()).collect();
    Command { program: program.to_owned(), arguments, input: None, deadline }
}

/// Runs it, and it has the note while it lives.
fn run(
    tools: &dyn Executor,
    note: &Note,
    deadline: Duration,
    program: &str,
    words: &[&str],
) -> Result<(), Failed> {
    let command = command(program, words, deadline);
    match tools.run_holding(&command, note.descriptor()) {
        Ok(answer) if answer.exit_code == 0 => Ok(()),
        Ok(answer) => Err(Failed {
            why: format!("`{command}`: {}", answer.complaint()),
            said: String::from_utf8_lossy(&answer.errors).into_owned(),
            ended: true,
            goes_on: false,
        }),
        Err(e) => Err(Failed {
            why: e.to_string(),
            said: String::new(),
            ended: matches!(e, RunError::Missing { .. }),
            goes_on: matches!(e, RunError::Unkillable { .. }),
        }),
    }
}
