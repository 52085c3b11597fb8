//! Runs backend plugins.
//!
//! A plugin is a wasm component that speaks `snapslot:backend`. It is compiled once into a cache
//! that only this user can write, gets a fresh store with fresh limits for every call, sees one
//! volume through read-only handles, and streams a plan into a builder that keeps the contract's
//! limits. This crate knows no policy and changes nothing.

mod bindings;
mod cache;
mod fault;
mod grants;
mod host;
mod memory;
mod plugin;

pub use bindings::types::{
    Answer, Change, CommandGrant, Compression, Content, Description, Extent, ExtentPage, Facts,
    Failure, FailureKind, Finding, Goal, Grammar, Guard, Hole, ImageGrant, NewSnapshot, Packed,
    PlaceKind, Role, SavedCopy, Saving, Snapshot, View,
};
pub use fault::{CallError, LoadError};
pub use host::{CopiesView, Sight, not_run};
pub use plugin::{Plugin, Runtime};
