//! Moments of a storage that are held while they are looked at, and let go of afterwards.
//!
//! | held | how | for |
//! |---|---|---|
//! | the metadata of a thin pool (`pool.rs`) | device mapper's metadata snapshot | what changed on a thin volume |
//! | the present content of a ZFS volume (`dataset.rs`) | a snapshot for that time | what changed on it |
//! | the device of a slot's snapshot (`shown.rs`) | active for that time, or not hidden | its content |
//!
//! Either outlives the process that holds it, and a restart of the machine. So it is noted before it is asked for, and
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
//! One process at a time has the note of one storage.

mod dataset;
mod note;
mod pool;
mod shown;

use std::path::Path;
use std::time::Duration;

use snapslot_command::{Command, Executor};

pub(crate) use dataset::{Present, Untold};
pub(crate) use pool::Metadata;
pub(crate) use shown::Shown;

/// Lets go of what engines that were killed left held.
pub(crate) fn let_go(tools: &dyn Executor, state_dir: &Path) {
    pool::let_go(tools, state_dir);
    dataset::let_go(tools, state_dir);
    shown::let_go(tools, state_dir);
}

/// How often, and how long apart, what somebody looks at in passing is tried again.
const PASSING: (u32, Duration) = (30, Duration::from_millis(100));

/// Again while it fails for this reason.
fn patiently(mut work: impl FnMut() -> Result<(), String>, reason: &str) -> Result<(), String> {
    for _ in 1..PASSING.0 {
        match work() {
            Err(why) if why.contains(reason) => std::thread::sleep(PASSING.1),
            result => return result,
        }
    }
    work()
}

fn command(program: &str, words: &[&str], deadline: Duration) -> Command {
    let arguments = words.iter().map(|&word| word.to_owned()).collect();
    Command { program: program.to_owned(), arguments, input: None, deadline }
}

fn run(
    tools: &dyn Executor,
    deadline: Duration,
    program: &str,
    words: &[&str],
) -> Result<(), String> {
    let command = command(program, words, deadline);
    match tools.run(&command) {
        Ok(answer) if answer.exit_code == 0 => Ok(()),
        Ok(answer) => Err(format!("`{command}`: {}", answer.complaint())),
        Err(e) => Err(e.to_string()),
    }
}
