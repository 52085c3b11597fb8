//! Runs backend plugins.
//!
//! A plugin is a wasm component that speaks `snapslot:backend`. It is compiled once into a cache
//! that only this user can write, gets a fresh store with fresh limits for every call, sees one
//! volume through read-only handles, and streams a plan into a builder that keeps the contract's
//! limits. This crate knows no policy and changes nothing.

mod apart;
mod approved;
mod bindings;
mod cache;
mod call;
mod code;
mod described;
mod fault;
mod flaw;
mod grants;
mod holdings;
mod host;
mod inert;
mod limits;
mod machine;
mod memory;
mod offered;
mod outside;
mod plugin;
mod read_fault;
mod record;
mod runtime;
mod shown;

pub use apart::{
    ARGUMENT, Confinement, Judged, Most, give_up_all, give_up_files, give_up_rights, judge_words,
    serve, start_early,
};
pub use approved::Approved;
pub use bindings::types::{
    Answer, Change, CommandGrant, Compression, Content, Description, Extent, ExtentPage, Facts,
    Failure, FailureKind, Finding, Goal, Grammar, Guard, Hole, ImageGrant, NewSnapshot, Packed,
    PlaceKind, Role, SavedCopy, Saving, Snapshot, Stretch, StretchPage, View,
};
pub use fault::{CallError, LoadError};
pub use flaw::Flaw;
pub use host::{CopiesView, Sight};
pub use limits::Limits;
pub use outside::not_run;
pub use plugin::Plugin;
pub use record::{Recorded, Recording, read_recording};
pub use runtime::{COMPONENT_MAX, Confine, Runtime};
pub use shown::plain;
