//! Plugins in a process of their own, that can do nothing but compute and read.
//!
//! Wasm is the first wall: a component reaches only what is handed in. This is the second: even code
//! that broke out of the first finds itself in a process without files, network, other processes or
//! a user's rights, with image descriptors that are open for reading only. It may tell lies on its one
//! socket; so everything that comes from there is checked again by the process that has the rights:
//! commands are made anew from grants, plans are built anew step by step, lists are bounded.
//!
//! ```text
//! engine ── workers.rs, parent.rs ──(socket: wire.rs, frames.rs)── child.rs ── machine.rs ── wasm
//!                    │                                                │
//!          commands, copies, log, journal             images, read-only (seen.rs, sandbox.rs)
//! ```
//!
//! There is one process for each component: what got out of one plugin's wasm finds nothing of another's.
//! Images that are files are read there directly; what is no file (an image seen through a plan) is read
//! over the socket.

mod child;
mod frames;
mod judge;
mod parent;
mod process;
mod sandbox;
mod seen;
#[cfg(test)]
mod tests;
mod wire;
mod workers;

pub use child::serve;
pub use judge::{Judged, judge_words};
pub(crate) use parent::Component;
pub use process::start_early;
pub use sandbox::{Confinement, Most, give_up_all, give_up_files, give_up_rights};
pub(crate) use workers::Apart;

/// The argument by which a program that uses this crate is told to be that process.
pub const ARGUMENT: &str = "__plugins";
