//! What must hold of a plan before it is committed, whoever made it.

use snapslot_disk::{Disk, DiskError};

use crate::plan::{Plan, Seal};
use crate::step::Step;

/// A plan that must not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A step reaches past the end of the image as the plan makes it.
    #[error("step {step} touches bytes {start} to {end}, past the image's end at {size}")]
    Outside {
        /// Its number, from 0.
        step: usize,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
        /// Size of the image as the plan makes it.
        size: u64,
    },
    /// Two steps of one phase touch the same bytes: their order would matter.
    #[error("phase {phase} ({title}) touches byte {at} twice")]
    Overlap {
        /// The phase, from 0.
        phase: usize,
        /// What it says it does.
        title: String,
        /// The byte.
        at: u64,
    },
    /// The plan grows the image more than it has reason to.
    #[error(
        "the plan grows the image from {from} to {to} bytes, where its writes explain {written} more"
    )]
    Growth {
        /// Size now.
        from: u64,
        /// Size planned.
        to: u64,
        /// New bytes that its writes explain.
        written: u64,
    },
    /// The seal is not set first, cleared last, and untouched between.
    #[error("the plan's seal is {0}")]
    Seal(&'static str),
    /// Looking failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A plan may leave this much unwritten room at the end, and behind each write there: a cluster
/// of the largest kind, of which a table may need a few bytes.
const SLACK: u64 = 2 << 20;

/// Checks bounds, overlap, growth and the seal against the image as it is now.
pub fn check(plan: &Plan, disk: &dyn Disk) -> Result<(), CheckError> {
    check_shape(plan, disk)?;
    match plan.seal() {
        Some(seal) if !plan.is_empty() => check_seal(plan, seal, disk),
        None if plan.phases().count() > 1 => {
            Err(CheckError::Seal("missing: a plan of several phases could not be carried on"))
        }
        _ => Ok(()),
    }
}

/// Checks bounds, overlap and growth: what must hold of a plan that is under way too.
pub fn check_shape(plan: &Plan, disk: &dyn Disk) -> Result<(), CheckError> {
    let before = disk.size()?;
    let mut size = before;
    let mut written = 0_u64;
    for (step, s) in plan.steps().iter().enumerate() {
        if let Step::Extend { size: wanted } = s {
            size = size.max(*wanted);
        }
        if let Some((start, end)) = s.span() {
            if end > size {
                return Err(CheckError::Outside { step, start, end, size });
            }
            let new = end.saturating_sub(start.max(before));
            written = written.saturating_add(if new > 0 { new.saturating_add(SLACK) } else { 0 });
        }
    }
    if size > before && size - before > written.saturating_add(SLACK) {
        return Err(CheckError::Growth { from: before, to: size, written });
    }
    for (phase, (title, steps)) in plan.phases().enumerate() {
        let mut spans: Vec<_> = steps.iter().filter_map(Step::span).collect();
        spans.sort_unstable();
        if let Some(pair) = spans.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            let at = pair[1].0;
            return Err(CheckError::Overlap { phase, title: title.to_owned(), at });
        }
    }
    Ok(())
}

fn check_seal(plan: &Plan, seal: Seal, disk: &dyn Disk) -> Result<(), CheckError> {
    let phases: Vec<_> = plan.phases().collect();
    let broken = |why| Err(CheckError::Seal(why));
    // A plan of one write is atomic by itself and leaves no moment to seal.
    if phases.len() < 2 {
        return match phases[0].1 {
            [Step::Write { data, offset }] if within_sector(*offset, data.len()) => Ok(()),
            _ => broken("missing: a plan of one phase must be one write within a sector"),
        };
    }
    let mut word = [0; 8];
    disk.read_at(seal.offset, &mut word)?;
    if u64::from_be_bytes(word) & seal.bits != 0 {
        return broken("set already: another plan is under way or was left behind");
    }
    let mut switches: Vec<&[u8]> = Vec::new();
    for (i, (_, steps)) in phases.iter().enumerate() {
        for step in *steps {
            step.apply(seal.offset, &mut word);
            let Some((start, end)) = step.span() else { continue };
            if start < seal.offset + 8 && seal.offset < end {
                let Step::Write { data, .. } = step else {
                    return broken("touched by a step that is not a write");
                };
                if steps.len() > 1 || switches.contains(&data.as_slice()) {
                    return broken("written twice alike, or together with other things");
                }
                switches.push(data);
            }
        }
        let set = u64::from_be_bytes(word) & seal.bits == seal.bits;
        let last = i + 1 == phases.len();
        if set == last {
            return broken(
                "not set by the first phase, kept through the others, cleared by the last",
            );
        }
        // The switch must be one sector: a torn one could be anything.
        let one_write =
            matches!(steps, [Step::Write { offset, data }] if within_sector(*offset, data.len()));
        if (i == 0 || last) && !one_write {
            return broken("set or cleared by more than one write within a sector");
        }
    }
    Ok(())
}

fn within_sector(offset: u64, length: usize) -> bool {
    offset % 512 + length as u64 <= 512
}
