//! Real processes that die, race, and meet QEMU half-way.
//!
//! A killed process shows what is wrong in the order of its steps and in its recovery. It cannot
//! show a missing flush, as the page cache survives; that is for the simulated disk.
//!
//! - [`kills`]: SIGKILL at random moments of every verb and of recovery;
//! - [`races`]: two processes at one image;
//! - [`machines`]: SIGKILL at a verb on two disks;
//! - [`in_between`]: the same in the middle of the work on one of them, and QEMU at one before recovery;
//! - [`locks`]: QEMU at an image that is being changed;
//! - [`repair`]: QEMU's repair of an image whose change was interrupted.

mod in_between;
mod kills;
mod locks;
mod machines;
mod races;
mod repair;
mod subject;

use snapslot_test_support::{Process, Scratch, Snapslot};

/// The binary under test, with records of its own in this test's directory.
fn snapslot(scratch: &Scratch) -> Snapslot {
    Snapslot::new(env!("CARGO_BIN_EXE_snapslot"), scratch.join("state"))
}

/// Sends a signal, by the name that `kill` knows. Fine if the process has ended.
fn signal(process: &Process, name: &str) {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("kill -{name} {}", process.id())]);
    snapslot_test_support::run(command, std::time::Duration::from_secs(10));
}
