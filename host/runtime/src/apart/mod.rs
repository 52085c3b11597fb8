//! Plugins in a process of their own, that can do nothing but compute and read.
//!
//! Wasm is the first wall: a component reaches only what is handed in. This is the second: even code
//! that broke out of the first finds itself in a process without files, network, other processes or
//! a user's rights, with image descriptors that are open for reading only. It may tell lies on its one
//! socket; so everything that comes from there is checked again by the process that has the rights:
//! commands are made anew from grants, plans are built anew step by step, lists are bounded.
//!
//! ```text
//! engine ── parent.rs ──(socket, wire.rs)── child.rs ── machine.rs ── wasm
//!              │                                │
//!    commands, copies, log, journal     images, read-only (sandbox.rs)
//! ```
//!
//! Images that are files are read there directly; what is no file (an image seen through a plan) is read
//! over the socket.

mod child;
mod parent;
mod sandbox;
mod wire;

pub use child::serve;
pub(crate) use parent::{Apart, Component};
pub use sandbox::{Confinement, give_up_all};

/// The argument by which a program that uses this crate is told to be that process.
pub const ARGUMENT: &str = "__plugins";
