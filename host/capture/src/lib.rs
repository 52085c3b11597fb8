//! Plans and how they are carried out, natively.
//!
//! A [`Plan`] is a list of [`Step`]s that keep to one [`Way`]: idempotent changes of one image,
//! divided into phases by barriers; commands of the storage; or copies of the disk. It is checked ([`check`]), made durable in a journal ([`journal`]), executed ([`execute`])
//! and, before that, can be looked through as if it had been executed ([`PlanView`]). This
//! crate knows no wasm, no image format and no policy.

mod act;
mod check;
mod copies;
mod execute;
pub mod journal;
mod plan;
mod step;
mod view;

pub use act::{ActCause, ActError, run_acts};
pub use check::{CheckError, check, check_shape};
pub use copies::{Changed, Copies, CopyError, Ended, SavedCopy, Saving, Served, Settled, Watch};
pub use execute::{
    ExecuteError, Redo, Report, Resume, execute, execute_phases, reserve, resume_at,
};
pub use plan::{Plan, PlanBuilder, PlanError, Seal, Way, limits};
pub use step::{Act, Mask, Save, Step};
pub use view::PlanView;
