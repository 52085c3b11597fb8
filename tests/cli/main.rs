//! The command line as people and scripts meet it.
//!
//! Goal: words, questions, exit codes and JSON shapes are what the README says. Method: the real
//! binary on real images, once as a person (a terminal by `script`), once as a script (`--json`).

mod asking;
mod busy;
mod contract;
mod faults;
mod guide;
mod machines;
mod plugins;
mod plugins_operator;
mod raw;

use std::process::Command;
use std::time::Duration;

use snapslot_test_support::{Image, Scratch, Snapslot, run};

const MIB: u64 = 1 << 20;

/// The binary under test, with records of its own.
fn snapslot(scratch: &Scratch) -> Snapslot {
    Snapslot::new(env!("CARGO_BIN_EXE_snapslot"), scratch.join("state"))
}

/// A small image with something in it.
fn image(scratch: &Scratch, name: &str) -> Image {
    let image = Image::create(scratch.join(name), &[], 8 * MIB);
    image.guest(["write -q -P 17 0 3M"]);
    image
}

/// The binary as a person runs it: words, not JSON.
fn words(snapslot: &Snapslot, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapslot"));
    command.arg("--state-dir").arg(snapslot.state()).args(arguments);
    command.env("SNAPSLOT_CACHE_DIR", snapslot.cache());
    let done = run(command, Duration::from_secs(60));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (done.code.unwrap_or(-1), text(&done.stdout), done.stderr)
}
