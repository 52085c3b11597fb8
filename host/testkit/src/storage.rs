//! Storage that has commands, modelled in memory.
//!
//! Each model answers the commands that the plugins declare as the real tools do, keeps content
//! so that it can be judged, and can be made to die before, inside and after any command.

pub mod lvm;
pub mod machine;
pub mod together;
pub mod zfs;

/// How far a command comes before its caller dies, or the command itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// It is not run.
    Before,
    /// It is ended half way, in whatever state the tool's own order can leave; each model says which.
    Inside,
    /// It is run to its end, and nobody hears of it.
    After,
}
