//! Blocks of the disk.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Bytes of a block: what is saved at once, and a page of most guests.
pub const BLOCK: u64 = 4096;

/// A block's bytes.
pub(crate) type Bytes = Box<[u8; BLOCK as usize]>;

/// By block number.
pub(crate) type ByBlock<T> = HashMap<u64, T, BuildHasherDefault<Mix>>;

/// Spreads block numbers, which nobody outside can choose to collide for gain: a guest that slows
/// down its own disk harms itself.
#[derive(Default)]
pub(crate) struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u64(&mut self, n: u64) {
        let mixed = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// An empty block.
pub(crate) fn empty() -> Bytes {
    Box::new([0; BLOCK as usize])
}

/// Runs of neighbours in an ascending list: first block and how many.
pub(crate) fn runs(blocks: &[u64], longest: usize) -> Vec<(u64, usize)> {
    let mut found: Vec<(u64, usize)> = Vec::new();
    for block in blocks {
        match found.last_mut() {
            Some((first, n)) if *first + *n as u64 == *block && *n < longest => *n += 1,
            _ => found.push((*block, 1)),
        }
    }
    found
}
