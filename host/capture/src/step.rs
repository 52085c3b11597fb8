//! The steps of a plan and what each does to bytes.

use snapslot_command::Command;

/// A run of 64-bit big-endian words in which some bits change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// First byte of the first word; a multiple of 8.
    pub offset: u64,
    /// Words.
    pub count: u32,
    /// Bytes from word to word: 8 or 16.
    pub stride: u32,
    /// Bits to clear.
    pub clear: u64,
    /// Bits to set, after clearing.
    pub set: u64,
    /// One bit for each word, lowest bit of the first byte first; empty means all words.
    pub select: Vec<u8>,
}

impl Mask {
    /// One past the last byte of the last word.
    pub fn end(&self) -> Option<u64> {
        let last = u64::from(self.count.checked_sub(1)?).checked_mul(u64::from(self.stride))?;
        self.offset.checked_add(last)?.checked_add(8)
    }

    fn selected(&self, word: u64) -> bool {
        self.select.is_empty() || {
            let byte = usize::try_from(word / 8).ok().and_then(|i| self.select.get(i));
            byte.is_some_and(|b| b >> (word % 8) & 1 == 1)
        }
    }

    /// Applies it to a window of the image that begins at `base`. Says whether a byte changed.
    pub fn apply(&self, base: u64, window: &mut [u8]) -> bool {
        let Some(end) = self.end() else { return false };
        let window_end = base + window.len() as u64;
        if self.offset >= window_end || end <= base {
            return false;
        }
        let stride = u64::from(self.stride);
        let first = base.saturating_sub(self.offset) / stride;
        let mut changed = false;
        if self.stride == 8 && self.select.is_empty() {
            // The common case, whole words in a row: one pass that the compiler vectorises.
            let mut at = self.offset + first * 8;
            let mut left = u64::from(self.count) - first;
            if at < base {
                changed |= self.apply_bytes(at, base, window);
                at += 8;
                left -= 1;
            }
            let start = (at - base).min(window.len() as u64) as usize;
            let whole = left.min((window.len() - start) as u64 / 8);
            let stop = start + whole as usize * 8;
            let (keep, set) = ((!self.clear).to_be(), self.set.to_be());
            let mut differs = 0_u64;
            for word in window[start..stop].as_chunks_mut::<8>().0 {
                let old = u64::from_ne_bytes(*word);
                let new = (old & keep) | set;
                differs |= old ^ new;
                *word = new.to_ne_bytes();
            }
            changed |= differs != 0;
            if whole < left && stop < window.len() {
                changed |= self.apply_bytes(base + stop as u64, base, window);
            }
            return changed;
        }
        for i in first..u64::from(self.count) {
            let at = self.offset + i * stride;
            if at >= window_end {
                break;
            }
            if self.selected(i) {
                changed |= self.apply_bytes(at, base, window);
            }
        }
        changed
    }

    /// One word, byte by byte: right also where the window cuts through it.
    fn apply_bytes(&self, at: u64, base: u64, window: &mut [u8]) -> bool {
        let (clear, set) = (self.clear.to_be_bytes(), self.set.to_be_bytes());
        let mut changed = false;
        for k in 0..8 {
            let Some(index) = (at + k as u64).checked_sub(base) else { continue };
            if let Some(byte) = usize::try_from(index).ok().and_then(|i| window.get_mut(i)) {
                let new = (*byte & !clear[k]) | set[k];
                changed |= new != *byte;
                *byte = new;
            }
        }
        changed
    }
}

/// A command that a plan has run, made from a grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Act {
    /// The grant's name.
    pub action: String,
    /// The command.
    pub command: Command,
    /// What is looked at right before, and what it must say.
    pub guard: Option<(Command, String)>,
}

/// A copy to be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Save {
    /// The mark it is saved under.
    pub mark: String,
    /// The moment recorded with it: seconds since 1970,
    pub taken_seconds: u64,
    /// and nanoseconds within the second.
    pub taken_nanoseconds: u32,
    /// Whether every byte may be copied where blocks cannot be shared.
    pub full_copy: bool,
}

/// One step of a plan. Those on bytes are idempotent: doing one twice is doing it once. Those of
/// commands and copies are not carried on after a crash: the storage is looked at, and a new plan
/// made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Writes bytes.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        data: Vec<u8>,
    },
    /// Repeats a pattern.
    Fill {
        /// First byte.
        offset: u64,
        /// Bytes, a multiple of the pattern's length.
        length: u64,
        /// 1 to 16 bytes.
        pattern: Vec<u8>,
    },
    /// Changes bits of words.
    Mask(Mask),
    /// Makes the image at least this long.
    Extend {
        /// Bytes.
        size: u64,
    },
    /// Runs a command.
    Act(Act),
    /// Saves a copy of the disk.
    Save(Save),
    /// Sets the disk back to a copy.
    PutBack {
        /// The copy's mark.
        mark: String,
    },
    /// Removes a copy.
    Discard {
        /// The copy's mark.
        mark: String,
    },
    /// Ends a phase: what came before is durable before what comes after starts.
    Barrier {
        /// What the phase did, in a few words.
        title: String,
    },
}

impl Step {
    /// The bytes it touches: first and one past the last; `None` for steps that touch none.
    pub fn span(&self) -> Option<(u64, u64)> {
        match self {
            Step::Write { offset, data } => Some((*offset, offset.checked_add(data.len() as u64)?)),
            Step::Fill { offset, length, .. } => Some((*offset, offset.checked_add(*length)?)),
            Step::Mask(mask) => Some((mask.offset, mask.end()?)),
            _ => None,
        }
    }

    /// Applies it to a window of the image that begins at `base`. Says whether a byte changed.
    pub fn apply(&self, base: u64, window: &mut [u8]) -> bool {
        match self {
            Step::Mask(mask) => mask.apply(base, window),
            Step::Write { .. } | Step::Fill { .. } => self.overwrite(base, window),
            _ => false,
        }
    }

    fn overwrite(&self, base: u64, window: &mut [u8]) -> bool {
        let Some((start, end)) = self.span() else { return false };
        let from = start.max(base);
        let to = end.min(base + window.len() as u64);
        if from >= to {
            return false;
        }
        let target = &mut window[(from - base) as usize..(to - base) as usize];
        match self {
            Step::Write { data, .. } => {
                let source = &data[(from - start) as usize..(to - start) as usize];
                let changed = target != source;
                target.copy_from_slice(source);
                changed
            }
            Step::Fill { pattern, .. } => {
                fill(target, pattern, ((from - start) % pattern.len() as u64) as usize)
            }
            _ => false,
        }
    }
}

/// Fills with a pattern that is `phase` bytes in already.
fn fill(target: &mut [u8], pattern: &[u8], phase: usize) -> bool {
    let n = pattern.len();
    let mut changed = false;
    for (i, byte) in target.iter_mut().enumerate().take(n) {
        let new = pattern[(phase + i) % n];
        changed |= *byte != new;
        *byte = new;
    }
    // The rest repeats what is there now: copy in doubling runs.
    let mut done = n.min(target.len());
    while done < target.len() {
        let take = done.min(target.len() - done);
        let (head, tail) = target.split_at_mut(done);
        changed |= tail[..take] != head[..take];
        tail[..take].copy_from_slice(&head[..take]);
        done += take;
    }
    changed
}
