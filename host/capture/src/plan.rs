//! A plan: steps, and the seal under which they may be redone.

use snapslot_slot::is_mark;

use crate::step::{Act, Mask, Save, Step};

/// Limits on what a plugin can make the host hold. Each is in the contract's text too.
pub mod limits {
    /// Steps in a plan. A take at 1 TiB with 4 KiB clusters has some 530,000 tables, each one
    /// step at most.
    pub const STEPS: usize = 1 << 20;
    /// Bytes of step data in a plan: literal reference counts of a shuffled image of 64 TiB.
    pub const DATA: usize = 1 << 30;
    /// Bytes of one step.
    pub const STEP_DATA: usize = 8 << 20;
    /// Bytes of a fill pattern.
    pub const PATTERN: usize = 16;
    /// Commands in a plan. A thin restore has some ten.
    pub const ACTS: usize = 64;
    /// Sentences for the person, and bytes of each.
    pub const NOTES: usize = 16;
    /// Bytes of one such sentence.
    pub const NOTE: usize = 1024;
    /// Bytes of a barrier's title.
    pub const TITLE: usize = 120;
    /// The largest image a step may address; that of the largest files Linux has.
    pub const IMAGE: u64 = i64::MAX as u64;
}

/// Bits of one 64-bit big-endian word of the image that are set while the plan is under way.
///
/// The first phase sets them, the last clears them; software that opens the image for writing
/// without knowing them wipes them out. So after a crash: all set means nobody else wrote since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// First byte of the word.
    pub offset: u64,
    /// Its bits.
    pub bits: u64,
}

/// A malformed or too large plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Too much of something.
    #[error("the plan has more {what} than the {limit} allowed")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is allowed.
        limit: u64,
    },
    /// A step that makes no sense.
    #[error("step {step} is malformed: {why}")]
    Malformed {
        /// Its number, from 0.
        step: usize,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The three ways in which storage is changed. One plan keeps to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Bytes of an image.
    Image,
    /// The storage's own commands.
    Commands,
    /// Copies that the host keeps.
    Copies,
}

impl Step {
    /// Its way; none for a barrier.
    fn way(&self) -> Option<Way> {
        match self {
            Step::Write { .. } | Step::Fill { .. } | Step::Mask(_) | Step::Extend { .. } => {
                Some(Way::Image)
            }
            Step::Act(_) => Some(Way::Commands),
            Step::Save(_) | Step::PutBack { .. } | Step::Discard { .. } => Some(Way::Copies),
            Step::Barrier { .. } => None,
        }
    }
}

/// A finished plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) seal: Option<Seal>,
    pub(crate) notes: Vec<String>,
}

impl Plan {
    /// The steps, in order. A plan that has any ends with a barrier.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The steps, given away.
    pub fn into_steps(self) -> Vec<Step> {
        self.steps
    }

    /// The seal, if the plugin declared one.
    pub fn seal(&self) -> Option<Seal> {
        self.seal
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Its way; none if there is nothing to do.
    pub fn way(&self) -> Option<Way> {
        self.steps.iter().find_map(Step::way)
    }

    /// The commands, in order.
    pub fn acts(&self) -> impl Iterator<Item = &Act> {
        self.steps.iter().filter_map(|s| if let Step::Act(act) = s { Some(act) } else { None })
    }

    /// What the person should know about it.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The phases: title and steps of each.
    pub fn phases(&self) -> impl Iterator<Item = (&str, &[Step])> {
        let mut rest = self.steps.as_slice();
        std::iter::from_fn(move || {
            let end = rest.iter().position(|s| matches!(s, Step::Barrier { .. }))?;
            let (phase, tail) = rest.split_at(end);
            let Step::Barrier { title } = &tail[0] else { return None };
            rest = &tail[1..];
            Some((title.as_str(), phase))
        })
    }
}

/// Takes steps one by one, refuses malformed ones, keeps the limits.
#[derive(Debug, Default)]
pub struct PlanBuilder {
    plan: Plan,
    data: usize,
    broken: Option<PlanError>,
}

impl PlanBuilder {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes to write.
    pub fn write(&mut self, offset: u64, data: Vec<u8>) -> Result<(), PlanError> {
        if data.is_empty() {
            return self.malformed("it writes no bytes");
        }
        if data.len() > limits::STEP_DATA {
            return self.fail(PlanError::Limit {
                what: "bytes in a step",
                limit: limits::STEP_DATA as u64,
            });
        }
        self.add(data.len(), Step::Write { offset, data })
    }

    /// Adds a run of a pattern.
    pub fn fill(&mut self, offset: u64, length: u64, pattern: Vec<u8>) -> Result<(), PlanError> {
        if pattern.is_empty() || pattern.len() > limits::PATTERN {
            return self.malformed("its pattern has not 1 to 16 bytes");
        }
        if length == 0 || !length.is_multiple_of(pattern.len() as u64) {
            return self.malformed("its length is not a multiple of its pattern's");
        }
        self.add(pattern.len(), Step::Fill { offset, length, pattern })
    }

    /// Adds a change of bits.
    pub fn mask(&mut self, mask: Mask) -> Result<(), PlanError> {
        if mask.count == 0 || !matches!(mask.stride, 8 | 16) || !mask.offset.is_multiple_of(8) {
            return self.malformed("its words are not aligned runs");
        }
        if !mask.select.is_empty() && mask.select.len() as u64 != u64::from(mask.count).div_ceil(8)
        {
            return self.malformed("its selection has not one bit for each word");
        }
        if mask.select.len() > limits::STEP_DATA {
            return self.fail(PlanError::Limit {
                what: "bytes in a step",
                limit: limits::STEP_DATA as u64,
            });
        }
        self.add(mask.select.len(), Step::Mask(mask))
    }

    /// Adds growth.
    pub fn extend(&mut self, size: u64) -> Result<(), PlanError> {
        if size > limits::IMAGE {
            return self.malformed("it grows the image past what a file can be");
        }
        self.add(0, Step::Extend { size })
    }

    /// Adds a command.
    pub fn act(&mut self, act: Act) -> Result<(), PlanError> {
        if self.plan.acts().count() >= limits::ACTS {
            return self.fail(PlanError::Limit { what: "commands", limit: limits::ACTS as u64 });
        }
        let words = act.command.arguments.iter().map(String::len).sum();
        self.add(words, Step::Act(act))
    }

    /// Adds a copy to save.
    pub fn save(&mut self, save: Save) -> Result<(), PlanError> {
        if !is_mark(&save.mark) {
            return self.malformed("its mark is not 16 hexadecimal digits");
        }
        self.add(save.mark.len(), Step::Save(save))
    }

    /// Adds setting the disk back to a copy.
    pub fn put_back(&mut self, mark: String) -> Result<(), PlanError> {
        if !is_mark(&mark) {
            return self.malformed("its mark is not 16 hexadecimal digits");
        }
        self.add(mark.len(), Step::PutBack { mark })
    }

    /// Adds removing a copy.
    pub fn discard(&mut self, mark: String) -> Result<(), PlanError> {
        if !is_mark(&mark) {
            return self.malformed("its mark is not 16 hexadecimal digits");
        }
        self.add(mark.len(), Step::Discard { mark })
    }

    /// Adds a sentence for the person.
    pub fn note(&mut self, text: &str) -> Result<(), PlanError> {
        if self.plan.notes.len() >= limits::NOTES {
            return self.fail(PlanError::Limit { what: "notes", limit: limits::NOTES as u64 });
        }
        let clean: String = text.chars().filter(|c| !c.is_control()).take(limits::NOTE).collect();
        self.plan.notes.push(clean);
        Ok(())
    }

    /// Ends a phase. A phase without steps is no phase.
    pub fn barrier(&mut self, title: &str) -> Result<(), PlanError> {
        if matches!(self.plan.steps.last(), None | Some(Step::Barrier { .. })) {
            return Ok(());
        }
        let clean: String = title.chars().filter(|c| !c.is_control()).take(limits::TITLE).collect();
        self.add(clean.len(), Step::Barrier { title: clean })
    }

    /// Declares the seal.
    pub fn seal(&mut self, seal: Seal) -> Result<(), PlanError> {
        if self.plan.seal.is_some() || seal.bits == 0 || !seal.offset.is_multiple_of(8) {
            return self.malformed("its seal is declared twice, empty or not aligned");
        }
        self.plan.seal = Some(seal);
        Ok(())
    }

    /// How many steps there are so far.
    pub fn len(&self) -> usize {
        self.plan.steps.len()
    }

    /// Whether there are no steps yet.
    pub fn is_empty(&self) -> bool {
        self.plan.steps.is_empty()
    }

    /// The plan, ended by a barrier.
    pub fn finish(mut self) -> Result<Plan, PlanError> {
        self.barrier("finish")?;
        match self.broken {
            Some(error) => Err(error),
            None => Ok(self.plan),
        }
    }

    fn malformed(&mut self, why: &'static str) -> Result<(), PlanError> {
        let step = self.plan.steps.len();
        self.fail(PlanError::Malformed { step, why })
    }

    /// Once broken, always broken: a plugin that ignores the error gains nothing.
    fn fail(&mut self, error: PlanError) -> Result<(), PlanError> {
        self.broken.get_or_insert(error.clone());
        Err(error)
    }

    fn add(&mut self, data: usize, step: Step) -> Result<(), PlanError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let touches = matches!(step, Step::Write { .. } | Step::Fill { .. } | Step::Mask(_));
        if touches && step.span().is_none_or(|(_, end)| end > limits::IMAGE) {
            return self.malformed("it reaches past what an image can be");
        }
        if let (Some(one), Some(other)) = (self.plan.way(), step.way())
            && one != other
        {
            return self.malformed("it goes another way than the steps before it");
        }
        self.data += data;
        if self.plan.steps.len() >= limits::STEPS {
            return self.fail(PlanError::Limit { what: "steps", limit: limits::STEPS as u64 });
        }
        if self.data > limits::DATA {
            return self.fail(PlanError::Limit { what: "bytes", limit: limits::DATA as u64 });
        }
        self.plan.steps.push(step);
        Ok(())
    }
}
