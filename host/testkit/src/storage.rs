//! Storage that has commands, modelled in memory.
//!
//! Each model answers the commands that the plugins declare as the real tools do, keeps content
//! so that it can be judged, and can be made to die before, inside and after any command.

pub mod lvm;
pub mod zfs;
