//! Moments of a storage that are held while they are looked at, and let go of afterwards.
//!
//! | held | how | for |
//! |---|---|---|
//! | the metadata of a thin pool (`pool.rs`) | device mapper's metadata snapshot | what changed on a thin volume |
//! | the present content of a ZFS volume (`dataset.rs`) | a snapshot for that time | what changed on it |
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

use std::path::Path;

use snapslot_command::Executor;

pub(crate) use dataset::{Present, Untold};
pub(crate) use pool::Metadata;

/// Lets go of what engines that were killed left held.
pub(crate) fn let_go(tools: &dyn Executor, state_dir: &Path) {
    pool::let_go(tools, state_dir);
    dataset::let_go(tools, state_dir);
}
