//! Crash enumeration over the simulated disk, and independent judges.
//!
//! [`crash`] lists every state a power cut can leave; [`sim_host`] runs any backend on a
//! simulated machine; [`trial`] joins both and holds each state against what may be seen;
//! [`qcow2_model`] says what is in a qcow2 image without the planner's help.

pub mod crash;
pub mod inflate;
pub mod malformed;
pub mod qcow2_judge;
pub mod qcow2_model;
pub mod qemu;
pub mod rng;
pub mod sim_commands;
pub mod sim_host;
pub mod storage;
pub mod story;
pub mod toy;
pub mod trial;
pub mod troubled;
pub mod walk;
