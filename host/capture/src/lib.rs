//! Plans and how they are carried out, natively.
//!
//! A [`Plan`] is a list of idempotent [`Step`]s on one image, divided into phases by barriers.
//! It is checked ([`check`]), made durable in a journal ([`journal`]), executed ([`execute`])
//! and, before that, can be looked through as if it had been executed ([`PlanView`]). This
//! crate knows no wasm, no image format and no policy.

mod check;
mod execute;
mod extent;
pub mod journal;
mod plan;
mod step;
mod view;

pub use check::{CheckError, check, check_shape};
pub use execute::{
    ExecuteError, Redo, Report, Resume, execute, execute_phases, reserve, resume_at,
};
pub use extent::{Compression, Content, Extent};
pub use plan::{Plan, PlanBuilder, PlanError, Seal, limits};
pub use step::{Mask, Step};
pub use view::PlanView;
