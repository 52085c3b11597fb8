//! The one test helper everyone uses.
//!
//! It runs two things and compares bytes: QEMU's own tools ([`Image`]), which are the judges,
//! and the `snapslot` binary ([`Snapslot`]), which is judged. It links nothing of the product:
//! what it knows of a qcow2 image it asks of QEMU, so that product and judge cannot share a
//! mistake.
//!
//! A missing judge is a failure that says what to install; what else may be missing is in [`needs`].
//! Every process runs with a deadline, so a hang is a failure and not a stuck test run.

mod bytes;
mod ends;
mod image;
pub mod needs;
mod process;
mod product;
mod random;
mod scratch;
mod served;

pub use bytes::{assert_same, difference, digest};
pub use ends::{AtTheEnd, Ends};
pub use image::{Check, Holding, Image, Snapshot, qemu_img, qemu_io};
pub use process::{Finished, Process, run};
pub use product::{Outcome, Snapslot, journal_of};
pub use random::SplitMix64;
pub use scratch::Scratch;

/// A number from the environment, for making a test longer or replaying it.
///
/// # Panics
/// When the variable is set to something that is not a number.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")),
        Err(_) => default,
    }
}
