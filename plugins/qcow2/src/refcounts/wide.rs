//! What differs in counts of 16 bits, which nearly all images have.
//!
//! One pass over a block tells of each stretch of it whether it is as it was, all one new count, or neither; only
//! the last kind is looked at count by count. That is the whole of most blocks of a disk that is taken.

use snapslot_plugin_sdk::{Failure, Fill};

use super::{FILL_MIN, emit_difference, encode_into, more};
use crate::draft::Draft;

/// Counts looked at together.
const STRETCH: usize = 64;

/// What a run of counts is, next to what is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Is {
    /// The same.
    Unchanged,
    /// All this count, and on disk not all of them.
    All(u16),
    /// Anything else.
    Mixed,
}

/// A run of counts: what it is, its first, one past its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    is: Is,
    from: usize,
    to: usize,
}

/// Divides a block into runs. Says whether any count has more than doubled.
pub(super) fn runs(old: &[u8], new: &[u16], runs: &mut Vec<Run>) -> bool {
    runs.clear();
    let mut bad = false;
    let mut add = |is: Is, from: usize, to: usize| match runs.last_mut() {
        Some(last) if last.is == is => last.to = to,
        _ => runs.push(Run { is, from, to }),
    };
    let (wide_old, wide_new) = (old.as_chunks::<{ STRETCH * 2 }>().0, new.as_chunks::<STRETCH>().0);
    for (i, (old, new)) in wide_old.iter().zip(wide_new).enumerate() {
        let (is, more) = stretch(old, new);
        bad |= more;
        add(is, i * STRETCH, (i + 1) * STRETCH);
    }
    let at = wide_new.len() * STRETCH;
    if at < new.len() {
        // Blocks of tiny clusters are shorter than a stretch.
        let pairs = old[at * 2..].as_chunks::<2>().0.iter().zip(&new[at..]);
        bad |= pairs.fold(0, |bad, (o, n)| bad | more(u16::from_be_bytes(*o), *n)) != 0;
        add(Is::Mixed, at, new.len());
    }
    join_short(runs);
    bad
}

/// What a stretch is, and whether any count in it has more than doubled. Without a branch: the compiler makes
/// vector code of it.
fn stretch(old: &[u8; STRETCH * 2], new: &[u16; STRETCH]) -> (Is, bool) {
    let (mut bad, mut differs, mut unlike) = (0, 0, 0);
    for (old, new_one) in old.as_chunks::<2>().0.iter().zip(new) {
        let old = u16::from_be_bytes(*old);
        bad |= more(old, *new_one);
        differs |= old ^ *new_one;
        unlike |= new[0] ^ *new_one;
    }
    let is = match (differs, unlike) {
        (0, _) => Is::Unchanged,
        (_, 0) => Is::All(new[0]),
        _ => Is::Mixed,
    };
    (is, bad != 0)
}

/// Runs of one count that are too short for a fill become part of what is mixed around them.
fn join_short(runs: &mut Vec<Run>) {
    let mut kept = 0;
    for i in 0..runs.len() {
        let mut run = runs[i];
        if matches!(run.is, Is::All(_)) && (run.to - run.from) * 2 < FILL_MIN {
            run.is = Is::Mixed;
        }
        match kept {
            1.. if run.is == Is::Mixed && runs[kept - 1].is == Is::Mixed => {
                runs[kept - 1].to = run.to;
            }
            _ => {
                runs[kept] = run;
                kept += 1;
            }
        }
    }
    runs.truncate(kept);
}

/// Emits one run of a block that begins at `offset`. `bytes` is room to be used again.
pub(super) fn emit(
    draft: &mut Draft<'_>,
    offset: u64,
    old: &[u8],
    new: &[u16],
    run: &Run,
    bytes: &mut Vec<u8>,
) -> Result<(), Failure> {
    let at = offset + run.from as u64 * 2;
    match run.is {
        Is::Unchanged => Ok(()),
        Is::All(count) => draft.fill(Fill {
            offset: at,
            length: (run.to - run.from) as u64 * 2,
            pattern: count.to_be_bytes().to_vec(),
        }),
        Is::Mixed => {
            encode_into(&new[run.from..run.to], 4, bytes);
            emit_difference(draft, at, &old[run.from * 2..run.to * 2], bytes, 2)
        }
    }
}

#[cfg(test)]
mod tests {
    use snapslot_plugin_sdk::double::RecordedPlan;
    use snapslot_test_support::SplitMix64;

    use super::*;

    /// Whatever the counts are, what is emitted makes the new ones of the old ones.
    #[test]
    fn what_is_emitted_makes_the_new_of_the_old() {
        let mut random = SplitMix64::new(0x7769_6465);
        for round in 0..2000_u64 {
            let length = [16, 64, 256, 2048, 300][random.below(5) as usize];
            let mut draw = |most: u64| -> Vec<u16> {
                let mut all = Vec::new();
                while all.len() < length {
                    let longest = [1, 9, 200, 3000][random.below(4) as usize];
                    let run = 1 + random.below(longest);
                    let value = random.below(most) as u16;
                    all.extend(std::iter::repeat_n(value, run as usize));
                }
                all.truncate(length);
                all
            };
            let (before, mut after) = (draw(3), draw(3));
            if round % 3 == 0 {
                after.iter_mut().zip(&before).for_each(|(a, b)| *a = b + (*a & 1));
            }
            let mut old = Vec::new();
            encode_into(&before, 4, &mut old);
            let mut found = Vec::new();
            let bad = runs(&old, &after, &mut found);
            let expected = before.iter().zip(&after).any(|(o, n)| more(*o, *n) != 0);
            assert_eq!(bad, expected, "round {round}");
            let mut plan = RecordedPlan::default();
            let mut draft = Draft::new(&mut plan);
            let mut room = Vec::new();
            for run in &found {
                emit(&mut draft, 512, &old, &after, run, &mut room).expect("emitted");
            }
            draft.barrier("all").expect("handed over");
            let mut disk = vec![0; 512];
            disk.extend_from_slice(&old);
            plan.apply(&mut disk);
            let mut new = Vec::new();
            encode_into(&after, 4, &mut new);
            assert!(disk[512..] == new, "round {round}: {before:?} {after:?} {found:?}");
        }
    }
}
