//! What a guest does, and what it must then see.

use std::path::{Path, PathBuf};

use snapslot_test_support::{Scratch, SplitMix64};

use super::feature::Feature;

/// Sectors, the unit of the guest.
pub(super) const SECTOR: u64 = 512;

/// Bytes a guest can write: a file that `qemu-io` repeats over the range.
#[derive(Debug)]
pub(super) struct Pattern {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Pattern {
    /// Some that compress hardly, some that compress by half, some that compress well.
    pub(super) fn set(scratch: &Scratch, random: &mut SplitMix64) -> Vec<Pattern> {
        let noise = random.bytes(70_000);
        let mut half = random.bytes(70_000);
        half.iter_mut().for_each(|byte| *byte &= 0x0f);
        let mut sparse = vec![0; 70_000];
        for at in (0..sparse.len()).step_by(1000) {
            sparse[at] = noise[at];
        }
        let name = |n: usize| scratch.join(&format!("pattern-{n}"));
        let patterns = [noise, half, sparse].into_iter().enumerate();
        patterns
            .map(|(n, bytes)| {
                std::fs::write(name(n), &bytes).expect("a pattern file");
                Pattern { path: name(n), bytes }
            })
            .collect()
    }

    fn fill(&self, range: &mut [u8]) {
        for piece in range.chunks_mut(self.bytes.len()) {
            piece.copy_from_slice(&self.bytes[..piece.len()]);
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// One thing a guest does to a range of its disk.
#[derive(Debug)]
pub(super) enum Doing {
    Byte(u8),
    Pattern(usize),
    Zero { unmap: bool },
    Discard,
    Compressed(usize),
}

#[derive(Debug)]
pub(super) struct Action {
    pub(super) offset: u64,
    pub(super) length: u64,
    pub(super) doing: Doing,
}

impl Action {
    /// Something a guest with these features may do to a disk of this size.
    pub(super) fn random(feature: &Feature, size: u64, random: &mut SplitMix64) -> Action {
        let unit = feature.cluster;
        let (offset, length) = range(unit, size, random);
        let pattern = random.below(3) as usize;
        let doing = match random.below(12) {
            0..=2 => Doing::Byte(random.below(255) as u8 + 1),
            3..=5 => Doing::Pattern(pattern),
            6 => Doing::Zero { unmap: false },
            7 => Doing::Zero { unmap: true },
            8..=9 => Doing::Discard,
            _ if feature.compression.is_some() => {
                // One whole cluster: QEMU compresses nothing else, and refuses where there is
                // data of the guest's own already.
                let offset = offset / unit * unit;
                let length = unit.min(size - offset);
                return Action { offset, length, doing: Doing::Compressed(pattern) };
            }
            _ => Doing::Pattern(pattern),
        };
        Action { offset, length, doing }
    }

    /// As `qemu-io` wants it.
    pub(super) fn command(&self, patterns: &[Pattern]) -> String {
        let Action { offset, length, .. } = self;
        let file = |n: usize| patterns[n].path().display().to_string();
        match self.doing {
            Doing::Byte(byte) => format!("write -P {byte} {offset} {length}"),
            Doing::Pattern(n) => format!("write -s {} {offset} {length}", file(n)),
            Doing::Zero { unmap: false } => format!("write -z {offset} {length}"),
            Doing::Zero { unmap: true } => format!("write -z -u {offset} {length}"),
            Doing::Discard => format!("discard {offset} {length}"),
            Doing::Compressed(n) => format!("write -c -s {} {offset} {length}", file(n)),
        }
    }

    /// What the guest must see afterwards. After a discard that is for QEMU to say, inside the
    /// range.
    pub(super) fn apply(&self, patterns: &[Pattern], content: &mut [u8]) {
        let range = &mut content[self.offset as usize..(self.offset + self.length) as usize];
        match self.doing {
            Doing::Byte(byte) => range.fill(byte),
            Doing::Pattern(n) | Doing::Compressed(n) => patterns[n].fill(range),
            Doing::Zero { .. } => range.fill(0),
            Doing::Discard => {}
        }
    }
}

/// Whole sectors, whole clusters, runs of clusters, and pieces across their borders.
fn range(unit: u64, size: u64, random: &mut SplitMix64) -> (u64, u64) {
    let sectors = size / SECTOR;
    let longest = (unit * 5 / 2).clamp(16 << 10, 1 << 20);
    let (mut offset, mut length) = match random.below(4) {
        0 => (random.below(sectors) * SECTOR, SECTOR),
        1 => (random.below(size.div_ceil(unit)) * unit, unit * random.between(1, 3)),
        _ => (random.below(sectors) * SECTOR, random.between(1, longest / SECTOR) * SECTOR),
    };
    // The beginning and the end of the disk more often than chance would have it.
    if random.chance(1, 8) {
        offset = 0;
    } else if random.chance(1, 8) {
        offset = size.saturating_sub(length);
    }
    length = length.min(size - offset);
    (offset, length)
}
