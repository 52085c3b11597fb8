//! What is in a slot, taken out of it and looked into.
//!
//! Goal: an exported image, a served snapshot and a list of changes are those of the disk, whatever features
//! the image has. Method: images that QEMU made and wrote, judged by qemu-img and by the bytes it converts
//! them to; clients of QEMU and libnbd against our server; and a server that is killed under load.

mod clients;
mod exports;
mod live;
mod trouble;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use snapslot_test_support::{Finished, Scratch, Snapslot, run};

const MIB: u64 = 1 << 20;

/// The binary under test, with records of its own.
fn snapslot(scratch: &Scratch) -> Snapslot {
    Snapslot::new(env!("CARGO_BIN_EXE_snapslot"), scratch.join("state"))
}

/// Runs a program of the system.
#[track_caller]
fn program(name: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(name);
    command.args(arguments).env("LC_ALL", "C");
    run(command, Duration::from_secs(120))
}

/// SHA-256 by coreutils.
#[track_caller]
fn sha256(path: &Path) -> String {
    let done = program("sha256sum", &[&path.to_string_lossy()]).expect_success();
    String::from_utf8_lossy(&done.stdout).split(' ').next().unwrap_or_default().to_owned()
}
