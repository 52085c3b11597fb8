//! A host for unit tests: images in memory, plans that are recorded and can be applied.
//!
//! It says no where the host would: reads past the end or too large, malformed steps, plans that are too
//! long or go two ways, queries and actions that are not declared or are filled wrongly
//! ([`MemoryTarget::declaring`], [`RecordedPlan::of`]). What it does not have: the host's check of a whole
//! plan (overlap, growth, seal) and its rehearsal, which `snapslot plugin test` makes; the limits of one call
//! (64 commands, 64 handles, time, memory).
//!
//! ```
//! use snapslot_plugin_sdk::double::{MemoryImage, MemoryTarget, Recorded, RecordedPlan};
//! use snapslot_plugin_sdk::{Image, Plan, Role, Target};
//!
//! let target = MemoryTarget { disk: MemoryImage(vec![7; 4096]), ..MemoryTarget::default() };
//! let image = target.image(Role::Disk)?;
//! assert_eq!(image.read_at(4090, 6)?, [7; 6]);
//! assert!(image.read_at(4090, 7).is_err(), "past the end");
//!
//! let mut plan = RecordedPlan::default();
//! plan.write(512, b"mark")?;
//! plan.barrier("mark")?;
//! assert_eq!(plan.steps[0], Recorded::Write(512, b"mark".to_vec()));
//! let mut after = target.disk.0.clone();
//! plan.apply(&mut after);
//! assert_eq!(&after[512..516], b"mark");
//! # Ok::<(), snapslot_plugin_sdk::Failure>(())
//! ```

use crate::{
    Answer, Argument, CommandGrant, Description, Failure, FailureKind, Fill, Image, Mask,
    NewSnapshot, Plan, Role, SavedCopy, Saving, Target, declared, is_mark,
};

/// The contract's limits, as its text has them.
const READ_MAX: u64 = 8 << 20;
const RANGES_MAX: usize = 65_536;
const OUTPUT_MAX: usize = 8 << 20;
const STEPS_MAX: usize = 1 << 20;
const STEP_MAX: usize = 8 << 20;
const DATA_MAX: usize = 1 << 30;
const ACTS_MAX: usize = 64;
const NOTES_MAX: usize = 16;
const IMAGE_MAX: u64 = i64::MAX as u64;

fn over(what: &str, limit: u64, asked: u64) -> Failure {
    Failure::new(FailureKind::Limit, "limit", format!("{what}: {asked} asked, {limit} allowed"))
        .with("limit", limit)
        .with("asked", asked)
}

/// An image in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryImage(pub Vec<u8>);

impl Image for &MemoryImage {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        if u64::from(length) > READ_MAX {
            return Err(over("bytes in one read", READ_MAX, u64::from(length)));
        }
        let range = usize::try_from(offset)
            .ok()
            .and_then(|start| Some(start..start.checked_add(length as usize)?));
        range.and_then(|r| self.0.get(r)).map(<[u8]>::to_vec).ok_or_else(|| {
            Failure::new(FailureKind::Invalid, "read-outside", "the read reaches past the end")
        })
    }

    fn read_ranges(&self, ranges: &[(u64, u32)]) -> Result<Vec<u8>, Failure> {
        if ranges.len() > RANGES_MAX {
            return Err(over("ranges in one read", RANGES_MAX as u64, ranges.len() as u64));
        }
        let total = ranges.iter().map(|(_, length)| u64::from(*length)).sum();
        if total > READ_MAX {
            return Err(over("bytes in one read", READ_MAX, total));
        }
        let mut all = Vec::new();
        for (offset, length) in ranges {
            all.extend(self.read_at(*offset, *length)?);
        }
        Ok(all)
    }
}

/// A volume with one image in memory, and answers that were written down for its queries.
#[derive(Clone, Debug, Default)]
pub struct MemoryTarget {
    /// The place part of its locator.
    pub place: String,
    /// The disk.
    pub disk: MemoryImage,
    /// The metadata of its thin pool, while it is at hand.
    pub pool_metadata: Option<MemoryImage>,
    /// What each query answers, by its name; whatever its arguments are.
    pub answers: Vec<(String, Answer)>,
    /// The copies the host keeps.
    pub copies: Vec<SavedCopy>,
    /// What one more would take.
    pub saving: Option<Saving>,
    /// The queries that are declared; none: any is answered, whatever its arguments are.
    pub queries: Option<Vec<CommandGrant>>,
}

impl MemoryTarget {
    /// A volume whose query of this name ends well with this output.
    #[must_use]
    pub fn answering(mut self, query: &str, output: impl Into<Vec<u8>>) -> Self {
        let answer = Answer { exit_code: 0, output: output.into(), errors: Vec::new() };
        self.answers.push((query.to_owned(), answer));
        self
    }

    /// The same, asked only what this description declares, with arguments that fit.
    ///
    /// ```
    /// use snapslot_plugin_sdk::double::MemoryTarget;
    /// use snapslot_plugin_sdk::{
    ///     CommandGrant, Description, FailureKind, Grammar, PlaceKind, Target, argument, hole,
    /// };
    ///
    /// let look = CommandGrant {
    ///     name: "holds".to_owned(),
    ///     template: ["zfs", "holds", "{dataset}@{own}"].map(str::to_owned).to_vec(),
    ///     holes: vec![hole("dataset", Grammar::ZfsDataset), hole("own", Grammar::ZfsOwn)],
    ///     input: None,
    ///     guard: None,
    ///     deadline_seconds: 60,
    ///     reason: "names who holds it".to_owned(),
    /// };
    /// # let description = Description {
    /// #     name: "x".to_owned(), version: String::new(), summary: String::new(), endings: vec![],
    /// #     place: PlaceKind::ZfsDataset, images: vec![], copies: None, queries: vec![look],
    /// #     actions: vec![],
    /// # };
    /// let target = MemoryTarget { place: "tank/vm1".to_owned(), ..MemoryTarget::default() }
    ///     .answering("holds", "")
    ///     .declaring(&description);
    /// assert!(target.ask("holds", &[argument("own", "snapslot-1")]).is_ok());
    /// let wrong = target.ask("holds", &[argument("own", "-r")]).expect_err("no name of ours");
    /// assert_eq!(wrong.kind, FailureKind::Invalid);
    /// ```
    #[must_use]
    pub fn declaring(mut self, description: &Description) -> Self {
        self.queries = Some(description.queries.clone());
        self
    }
}

impl Target for MemoryTarget {
    fn place(&self) -> String {
        self.place.clone()
    }

    fn image(&self, role: Role) -> Result<Box<dyn Image + '_>, Failure> {
        match role {
            Role::Disk => Ok(Box::new(&self.disk)),
            Role::PoolMetadata => match &self.pool_metadata {
                Some(metadata) => Ok(Box::new(metadata)),
                None => Err(Failure::new(FailureKind::Unsupported, "not-at-hand", "none here")),
            },
            Role::Backing => {
                Err(Failure::new(FailureKind::NotGranted, "no-backing", "no backing file here"))
            }
        }
    }

    fn ask(&self, query: &str, arguments: &[Argument]) -> Result<Answer, Failure> {
        if let Some(queries) = &self.queries {
            declared::check(queries, "query", query, arguments, &self.place)?;
        }
        let found = self.answers.iter().find(|(name, _)| name == query);
        let answer = found.map(|(_, answer)| answer.clone()).ok_or_else(|| {
            let what = format!("no query {query} here");
            Failure::new(FailureKind::NotGranted, "no-query", what)
        })?;
        match answer.output.len() > OUTPUT_MAX {
            true => Err(Failure::new(FailureKind::Io, "tool-flood", "it wrote more than 8 MiB")),
            false => Ok(answer),
        }
    }

    fn copies(&self) -> Result<Vec<SavedCopy>, Failure> {
        Ok(self.copies.clone())
    }

    fn saving(&self) -> Result<Saving, Failure> {
        let none = Failure::new(FailureKind::NotGranted, "no-copies", "no copies here");
        self.saving.ok_or(none)
    }
}

/// A step as recorded.
#[derive(Clone, Debug, PartialEq)]
pub enum Recorded {
    /// Bytes to write.
    Write(u64, Vec<u8>),
    /// A pattern to repeat.
    Fill(Fill),
    /// Bits to change.
    Mask(Mask),
    /// Growth.
    Extend(u64),
    /// An action.
    Act(String, Vec<Argument>),
    /// A copy to save.
    Save(NewSnapshot),
    /// A copy to put back.
    PutBack(String),
    /// A copy to remove.
    Discard(String),
    /// End of a phase.
    Barrier(String),
}

impl Recorded {
    /// Which of the three ways it goes.
    fn way(&self) -> Option<u8> {
        match self {
            Recorded::Write(..) | Recorded::Fill(_) | Recorded::Mask(_) | Recorded::Extend(_) => {
                Some(0)
            }
            Recorded::Act(..) => Some(1),
            Recorded::Save(_) | Recorded::PutBack(_) | Recorded::Discard(_) => Some(2),
            Recorded::Barrier(_) => None,
        }
    }
}

/// A plan that remembers its steps. Once a step was refused every later one is, as with the host.
#[derive(Clone, Debug, Default)]
pub struct RecordedPlan {
    /// The steps, in order.
    pub steps: Vec<Recorded>,
    /// The seal: offset and bits.
    pub seal: Option<(u64, u64)>,
    /// Sentences for the person.
    pub notes: Vec<String>,
    /// The actions that are declared and the volume's place; none: any is taken.
    declared: Option<(Vec<CommandGrant>, String)>,
    data: usize,
    broken: Option<Failure>,
}

impl RecordedPlan {
    /// A plan with the actions of this description, for a volume at `place`.
    pub fn of(description: &Description, place: &str) -> RecordedPlan {
        let declared = Some((description.actions.clone(), place.to_owned()));
        RecordedPlan { declared, ..RecordedPlan::default() }
    }

    /// Carries the steps out on bytes in memory, as far as they lie within what memory can have.
    pub fn apply(&self, image: &mut Vec<u8>) {
        let place = |offset: u64, length: u64| -> Option<std::ops::Range<usize>> {
            let end = offset.checked_add(length).filter(|end| *end <= IMAGE_MAX)?;
            Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?)
        };
        let grow = |image: &mut Vec<u8>, end: usize| {
            if image.len() < end {
                image.resize(end, 0);
            }
        };
        for step in &self.steps {
            match step {
                Recorded::Write(offset, data) => {
                    let Some(range) = place(*offset, data.len() as u64) else { continue };
                    grow(image, range.end);
                    image[range].copy_from_slice(data);
                }
                Recorded::Fill(run) if !run.pattern.is_empty() => {
                    let Some(range) = place(run.offset, run.length) else { continue };
                    grow(image, range.end);
                    let pattern = run.pattern.iter().cycle();
                    image[range].iter_mut().zip(pattern).for_each(|(byte, new)| *byte = *new);
                }
                Recorded::Mask(m) => {
                    for word in 0..u64::from(m.count) {
                        let bit = |bytes: &[u8]| {
                            let byte = usize::try_from(word / 8).ok().and_then(|at| bytes.get(at));
                            byte.is_some_and(|byte| byte >> (word % 8) & 1 == 1)
                        };
                        let at = m.offset.saturating_add(word * u64::from(m.stride));
                        if at >= image.len() as u64 {
                            break;
                        }
                        let range = place(at, 8).filter(|_| m.select.is_empty() || bit(&m.select));
                        let Some(bytes) = range.and_then(|range| image.get_mut(range)) else {
                            continue;
                        };
                        let mut old = [0; 8];
                        old.copy_from_slice(bytes);
                        let new = u64::from_be_bytes(old) & !m.clear | m.set;
                        bytes.copy_from_slice(&new.to_be_bytes());
                    }
                }
                Recorded::Extend(size) => {
                    let Some(range) = place(0, *size) else { continue };
                    grow(image, range.end);
                }
                Recorded::Fill(_)
                | Recorded::Act(..)
                | Recorded::Save(_)
                | Recorded::PutBack(_)
                | Recorded::Discard(_)
                | Recorded::Barrier(_) => {}
            }
        }
    }

    fn fail(&mut self, failure: Failure) -> Result<(), Failure> {
        self.broken.get_or_insert_with(|| failure.clone());
        Err(failure)
    }

    fn malformed(&mut self, why: &str) -> Result<(), Failure> {
        let what = format!("step {} is malformed: {why}", self.steps.len());
        self.fail(Failure::new(FailureKind::Invalid, "plan", what))
    }

    fn too_many(&mut self, what: &str, limit: usize) -> Result<(), Failure> {
        let what = format!("the plan has more {what} than the {limit} allowed");
        self.fail(Failure::new(FailureKind::Limit, "plan", what))
    }

    fn add(&mut self, data: usize, step: Recorded) -> Result<(), Failure> {
        if let Some(failure) = &self.broken {
            return Err(failure.clone());
        }
        let first = self.steps.iter().find_map(Recorded::way);
        if let (Some(one), Some(other)) = (first, step.way())
            && one != other
        {
            return self.malformed("it goes another way than the steps before it");
        }
        if data > STEP_MAX {
            return self.too_many("bytes in a step", STEP_MAX);
        }
        self.data += data;
        if self.data > DATA_MAX {
            return self.too_many("bytes", DATA_MAX);
        }
        if self.steps.len() >= STEPS_MAX {
            return self.too_many("steps", STEPS_MAX);
        }
        self.steps.push(step);
        Ok(())
    }
}

fn within(offset: u64, length: u64) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= IMAGE_MAX)
}

const OUTSIDE: &str = "it reaches past what an image can be";

impl Plan for RecordedPlan {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        if data.is_empty() {
            return self.malformed("it writes no bytes");
        }
        if !within(offset, data.len() as u64) {
            return self.malformed(OUTSIDE);
        }
        // As the SDK does it on its way to the host.
        for (i, part) in data.chunks(STEP_MAX).enumerate() {
            let at = offset + (i * STEP_MAX) as u64;
            self.add(part.len(), Recorded::Write(at, part.to_vec()))?;
        }
        Ok(())
    }

    fn fill(&mut self, runs: Vec<Fill>) -> Result<(), Failure> {
        for run in runs {
            if !(1..=16).contains(&run.pattern.len()) {
                return self.malformed("its pattern has not 1 to 16 bytes");
            }
            if run.length == 0 || !run.length.is_multiple_of(run.pattern.len() as u64) {
                return self.malformed("its length is not a multiple of its pattern's");
            }
            if !within(run.offset, run.length) {
                return self.malformed(OUTSIDE);
            }
            self.add(run.pattern.len(), Recorded::Fill(run))?;
        }
        Ok(())
    }

    fn mask(&mut self, runs: Vec<Mask>) -> Result<(), Failure> {
        for run in runs {
            if run.count == 0 || !matches!(run.stride, 8 | 16) || !run.offset.is_multiple_of(8) {
                return self.malformed("its words are not aligned runs");
            }
            let bits = u64::from(run.count).div_ceil(8);
            if !run.select.is_empty() && run.select.len() as u64 != bits {
                return self.malformed("its selection has not one bit for each word");
            }
            if !within(run.offset, u64::from(run.count - 1) * u64::from(run.stride) + 8) {
                return self.malformed(OUTSIDE);
            }
            self.add(run.select.len(), Recorded::Mask(run))?;
        }
        Ok(())
    }

    fn extend(&mut self, size: u64) -> Result<(), Failure> {
        if size > IMAGE_MAX {
            return self.malformed("it grows the image past what a file can be");
        }
        self.add(0, Recorded::Extend(size))
    }

    fn act(&mut self, action: &str, arguments: &[Argument]) -> Result<(), Failure> {
        if let Some((actions, place)) = &self.declared {
            declared::check(actions, "action", action, arguments, place)?;
        }
        let acts = self.steps.iter().filter(|s| matches!(s, Recorded::Act(..))).count();
        if acts >= ACTS_MAX {
            return self.too_many("commands", ACTS_MAX);
        }
        self.add(0, Recorded::Act(action.to_owned(), arguments.to_vec()))
    }

    fn save(&mut self, new: &NewSnapshot) -> Result<(), Failure> {
        if !is_mark(&new.mark) {
            return self.malformed("its mark is not 16 hexadecimal digits");
        }
        self.add(0, Recorded::Save(new.clone()))
    }

    fn put_back(&mut self, mark: &str) -> Result<(), Failure> {
        if !is_mark(mark) {
            return self.malformed("its mark is not 16 hexadecimal digits");
        }
        self.add(0, Recorded::PutBack(mark.to_owned()))
    }

    fn discard(&mut self, mark: &str) -> Result<(), Failure> {
        if !is_mark(mark) {
            return self.malformed("its mark is not 16 hexadecimal digits");
        }
        self.add(0, Recorded::Discard(mark.to_owned()))
    }

    fn note(&mut self, message: &str) -> Result<(), Failure> {
        if self.notes.len() >= NOTES_MAX {
            return self.too_many("notes", NOTES_MAX);
        }
        self.notes.push(message.to_owned());
        Ok(())
    }

    fn barrier(&mut self, title: &str) -> Result<(), Failure> {
        if matches!(self.steps.last(), None | Some(Recorded::Barrier(_))) {
            return Ok(());
        }
        self.add(0, Recorded::Barrier(title.to_owned()))
    }

    fn seal(&mut self, offset: u64, bits: u64) -> Result<(), Failure> {
        if self.seal.is_some() || bits == 0 || !offset.is_multiple_of(8) {
            return self.malformed("its seal is declared twice, empty or not aligned");
        }
        self.seal = Some((offset, bits));
        Ok(())
    }
}
