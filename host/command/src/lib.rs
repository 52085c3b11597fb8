//! The storage's own tools: what may be run, and the one way it is run.
//!
//! A plugin declares *grants*: templates of commands with typed holes. This crate alone makes a
//! [`Command`] of one: it is one of the host's own table (`table.rs`), the program's path comes from
//! there, every hole is filled with a value that fits the storage's grammar and the volume at hand,
//! and no value can become an option, be empty, or name what belongs to somebody else. [`Executor`] is the one way a command
//! is run: by [`Runner`] for real, by a model in tests.
//!
//! This crate knows no plugin, no plan and no policy.

mod command;
mod fits;
mod grammar;
mod grant;
mod place;
mod runner;
mod table;

pub use command::{Answer, Command, Executor, RunError};
pub use grammar::Grammar;
pub use grant::{FillError, Filled, Grant, GrantError, Guard, Hole};
pub use place::{Place, PlaceError, PlaceKind};
pub use runner::{PROGRAMS, Runner};
pub use table::{Purpose, table_in_words};
