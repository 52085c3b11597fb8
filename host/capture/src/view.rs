//! The image as a plan would make it, without making it.

use std::sync::Arc;

use snapslot_disk::{Disk, DiskError, Doing, Range};

use crate::plan::Plan;
use crate::step::Step;

/// A read-only disk that shows what `plan` would make of the disk below. Nothing is copied:
/// a read applies the steps that touch it, so a plan over 128 MiB of tables costs no memory.
pub struct PlanView {
    base: Arc<dyn Disk>,
    base_size: u64,
    size: u64,
    plan: Arc<Plan>,
    /// Spans by start; with each, the largest end up to and including it.
    index: Vec<(u64, u64, usize, u64)>,
}

impl PlanView {
    /// The view of `base` through `plan`.
    pub fn new(plan: Arc<Plan>, base: Arc<dyn Disk>) -> Result<Self, DiskError> {
        let base_size = base.size()?;
        let mut size = base_size;
        let mut index = Vec::new();
        for (i, step) in plan.steps().iter().enumerate() {
            if let Step::Extend { size: wanted } = step {
                size = size.max(*wanted);
            }
            if let Some((start, end)) = step.span() {
                size = size.max(end);
                index.push((start, end, i, 0));
            }
        }
        index.sort_unstable();
        let mut reach = 0;
        for entry in &mut index {
            reach = reach.max(entry.1);
            entry.3 = reach;
        }
        Ok(PlanView { base, base_size, size, plan, index })
    }
}

impl Disk for PlanView {
    fn size(&self) -> Result<u64, DiskError> {
        Ok(self.size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let Some(end) = end else {
            return Err(DiskError::OutOfBounds {
                name: "the planned image".to_owned(),
                size: self.size,
                offset,
                length: buf.len() as u64,
            });
        };
        let below = self.base_size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let (old, new) = buf.split_at_mut(below);
        if !old.is_empty() {
            self.base.read_at(offset, old)?;
        }
        new.fill(0);
        let last = self.index.partition_point(|(start, ..)| *start < end);
        let mut touching: Vec<usize> = self.index[..last]
            .iter()
            .rev()
            .take_while(|(.., reach)| *reach > offset)
            .filter(|(_, step_end, ..)| *step_end > offset)
            .map(|(_, _, step, _)| *step)
            .collect();
        touching.sort_unstable();
        for step in touching {
            self.plan.steps()[step].apply(offset, buf);
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> Result<(), DiskError> {
        Err(refused())
    }

    fn extend(&self, _size: u64) -> Result<(), DiskError> {
        Err(refused())
    }

    fn reserve(&self, _ranges: &[Range]) -> Result<bool, DiskError> {
        Err(refused())
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        Err(refused())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Err(refused())
    }
}

fn refused() -> DiskError {
    let what = std::io::Error::from(std::io::ErrorKind::ReadOnlyFilesystem);
    DiskError::io("the planned image", Doing::Write, what)
}
