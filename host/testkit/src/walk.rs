//! All orders of take, restore, delete, guest write, discard and resize up to a length, on one qcow2 image; each verb that
//! is done is crashed at every event.

use crate::story::{Act, Came, Story};
use crate::trial::Tally;

/// What may happen at each place of a sequence.
pub const ACTS: [Act; 7] = [
    Act::Take,
    Act::Restore,
    Act::Delete,
    Act::Guest("write -q -P 31 3k 21k"),
    Act::Guest("discard 16k 14k"),
    Act::Grow,
    Act::Shrink,
];

/// Refusals that are right: of the slot's rule, which comes before the backend; and of version 2, whose
/// snapshots do not say how long the disk was.
const REFUSALS: [&str; 3] = ["slot", "v2", "v2-resized"];

/// What was walked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walked {
    /// Sequences that were done to their end.
    pub sequences: usize,
    /// Acts that were refused.
    pub refused: usize,
    /// States looked at.
    pub tally: Tally,
}

/// Walks on from a story, every way of so many acts. The error names the acts that lead to it; shorter ones come
/// before longer ones that begin with them.
pub fn walk(story: &Story<'_>, length: usize) -> Result<Walked, String> {
    let mut walked = Walked::default();
    on(story, &mut Vec::new(), length, &mut walked)?;
    Ok(walked)
}

fn on(
    story: &Story<'_>,
    path: &mut Vec<Act>,
    left: usize,
    walked: &mut Walked,
) -> Result<(), String> {
    if left == 0 {
        return Ok(());
    }
    for act in ACTS {
        let mut next = story.clone();
        next.tally = Tally::default();
        path.push(act);
        match next.act(act).map_err(|e| format!("{path:?}: {e}"))? {
            Came::Done => {
                walked.sequences += 1;
                walked.tally += next.tally;
                on(&next, path, left - 1, walked)?;
            }
            Came::Refused(code) if REFUSALS.contains(&code.as_str()) => walked.refused += 1,
            Came::Refused(code) => return Err(format!("{path:?} refused: {code}")),
        }
        path.pop();
    }
    Ok(())
}
