//! The slot: what it can be, what may be asked of it, and when the answer is no.
//!
//! These are the shapes of `snapslot:slot` (see `wit/slot`), natively. Pure: no storage, no
//! files, no clock. What `--json` prints of a slot is these types, serialised.

mod policy;
mod types;

pub use policy::decide;
pub use types::{
    Consistency, Drift, MARK_LENGTH, Moment, NOTE_MAX, Occupant, Part, Refusal, Request, Running,
    State, is_mark,
};
