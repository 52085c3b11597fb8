//! Real qcow2 images, judged by QEMU's tools alone.
//!
//! - [`model`]: random walks over the feature matrix against a byte-level reference;
//! - [`directed`]: one behaviour each;
//! - [`malformed`]: images that lie, in every field and in their structure.

mod directed;
mod malformed;
mod model;

use snapslot_test_support::{Scratch, Snapslot};

/// The binary under test, with records of its own in this test's directory.
fn snapslot(scratch: &Scratch) -> Snapslot {
    Snapslot::new(env!("CARGO_BIN_EXE_snapslot"), scratch.join("state"))
}

/// Big-endian fields of an image's bytes.
fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(word)
}
