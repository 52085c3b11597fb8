//! From a fuzzer's bytes to things worth trying: images with some fields changed, plans, names.
//!
//! Apart from the targets, which are thin, so that what is generated can be looked at and tested.

use snapslot_capture::{Mask, PlanBuilder, PlanError, Seal};

/// Takes numbers off the front of the fuzzer's bytes; zeroes once they are used up.
#[derive(Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number of 64 bits: often a small one, often one at an edge.
    pub fn number(&mut self) -> u64 {
        const EDGES: [u64; 8] =
            [0, 1, u64::MAX, i64::MAX as u64, 1 << 63, u32::MAX as u64, 1 << 32, 1 << 56];
        match self.byte() % 4 {
            0 => u64::from(self.byte()),
            1 => EDGES[usize::from(self.byte()) % EDGES.len()],
            2 => u64::from(self.byte()) << (self.byte() % 64),
            _ => (0..8).fold(0, |n, _| n << 8 | u64::from(self.byte())),
        }
    }

    /// Whether there is more.
    pub fn more(&self) -> bool {
        !self.0.is_empty()
    }

    /// Some text of at most so many bytes.
    pub fn text(&mut self, most: usize) -> String {
        let length = usize::from(self.byte()) % (most + 1);
        let (now, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        String::from_utf8_lossy(now).into_owned()
    }
}

/// Images that qemu-img made (`seeds/make`), small enough that a change matters.
pub const IMAGES: [&[u8]; 3] = [
    include_bytes!("../seeds/images/v3.qcow2"),
    include_bytes!("../seeds/images/snapshots.qcow2"),
    include_bytes!("../seeds/images/v2.qcow2"),
];

/// Where the header's fields begin (the qcow2 specification, "Header").
const FIELDS: [usize; 20] =
    [0, 4, 8, 16, 20, 24, 32, 36, 40, 48, 56, 60, 64, 72, 80, 88, 96, 100, 104, 112];

/// An image with some of its words changed, and perhaps cut.
pub fn image(bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut image = IMAGES[usize::from(bytes.byte()) % IMAGES.len()].to_vec();
    for _ in 0..bytes.byte() % 8 {
        let at = match bytes.byte() % 2 {
            0 => FIELDS[usize::from(bytes.byte()) % FIELDS.len()],
            _ => (usize::from(bytes.byte()) << 8 | usize::from(bytes.byte())) % image.len(),
        };
        let value = bytes.number().to_be_bytes();
        // Fields have 4 or 8 bytes.
        let width = if bytes.byte() % 2 == 0 { 4 } else { 8 };
        for (to, from) in image.iter_mut().skip(at).zip(&value[8 - width..]) {
            *to = *from;
        }
    }
    if bytes.byte() % 8 == 7 {
        image.truncate(bytes.number() as usize % image.len().max(1));
    }
    image
}

/// A plan of some steps, as far as they are well formed.
pub fn plan(bytes: &mut Bytes<'_>) -> PlanBuilder {
    let mut plan = PlanBuilder::new();
    for _ in 0..64 {
        if !bytes.more() {
            break;
        }
        // A malformed step breaks the plan for good: that too is worth trying, but rarely.
        let _: Result<(), PlanError> = step(&mut plan, bytes);
    }
    plan
}

fn step(plan: &mut PlanBuilder, bytes: &mut Bytes<'_>) -> Result<(), PlanError> {
    let offset = |bytes: &mut Bytes<'_>| match bytes.byte() % 8 {
        0 => bytes.number(),
        _ => u64::from(bytes.byte()) * 8,
    };
    match bytes.byte() % 8 {
        0 => plan.seal(Seal { offset: offset(bytes), bits: bytes.number() }),
        1 => {
            let length = usize::from(bytes.byte()) % 96;
            let value = bytes.byte();
            plan.write(offset(bytes), vec![value; length])
        }
        2 => {
            let pattern = bytes.text(16).into_bytes();
            let length = pattern.len() as u64 * u64::from(bytes.byte());
            plan.fill(offset(bytes), length, pattern)
        }
        3 | 4 => {
            let count = u32::from(bytes.byte());
            let select = match bytes.byte() % 2 {
                0 => Vec::new(),
                _ => vec![bytes.byte(); (count as usize).div_ceil(8)],
            };
            let stride = if bytes.byte() % 2 == 0 { 8 } else { 16 };
            let (clear, set) = (bytes.number(), bytes.number());
            plan.mask(Mask { offset: offset(bytes), count, stride, clear, set, select })
        }
        5 => plan.extend(offset(bytes)),
        _ => plan.barrier("phase"),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is generated reaches what it is for.

    use super::*;

    #[test]
    fn no_bytes_give_a_sound_image_and_no_plan() {
        assert_eq!(image(&mut Bytes(&[])), IMAGES[0]);
        assert!(plan(&mut Bytes(&[])).is_empty());
    }

    #[test]
    fn bytes_change_images_and_make_steps() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert_ne!(image(&mut Bytes(&bytes)), IMAGES[0]);
        assert!(!plan(&mut Bytes(&bytes)).is_empty());
    }
}
