//! One behaviour each, on images made for it.

mod features;
mod foreign;
mod growth;
mod holders;
mod limits;
mod machines;
mod promises;

use snapslot_test_support::{Image, Outcome, Scratch, Snapslot, assert_same};

use crate::snapslot;

const MIB: u64 = 1 << 20;

/// An image and the binary, in a directory of their own.
struct Case {
    image: Image,
    product: Snapslot,
    scratch: Scratch,
}

impl Case {
    fn new(options: &[&str], size: u64) -> Case {
        let scratch = Scratch::new();
        let image = Image::create(scratch.join("disk.qcow2"), options, size);
        Case { image, product: snapslot(&scratch), scratch }
    }

    /// Runs a verb on the image.
    #[track_caller]
    fn verb(&self, verb: &str, more: &[&str]) -> Outcome {
        self.product.verb(verb, self.image.path(), more)
    }

    /// Runs a verb that must be done, and leave a clean image.
    #[track_caller]
    fn done(&self, verb: &str, more: &[&str]) -> Outcome {
        let outcome = self.verb(verb, more);
        outcome.expect(0);
        self.image.assert_clean();
        outcome
    }

    /// Runs a verb that must be refused with this code, and leave every byte as it was.
    #[track_caller]
    fn refused(&self, verb: &str, more: &[&str], code: i32) -> Outcome {
        let before = self.image.bytes();
        let outcome = self.verb(verb, more);
        outcome.expect(code);
        assert_same("the image after a refusal", &self.image.bytes(), &before);
        let journal = snapslot_test_support::journal_of(self.image.path());
        assert!(!journal.exists(), "a refused {verb} left a journal");
        outcome
    }

    /// Writes a byte over a range, as a guest.
    #[track_caller]
    fn fill(&self, byte: u8, offset: u64, length: u64) {
        self.image.guest([format!("write -P {byte} {offset} {length}")]).expect_success();
    }

    /// Changes bytes of the image file itself.
    fn patch(&self, offset: usize, bytes: &[u8]) {
        let mut all = self.image.bytes();
        all[offset..offset + bytes.len()].copy_from_slice(bytes);
        std::fs::write(self.image.path(), all).expect("the changed image");
    }
}

/// What the guest sees must be this.
#[track_caller]
fn assert_disk(case: &Case, expected: &[u8]) {
    assert_same("the disk", &case.image.active(), expected);
}
