//! Volumes of an interrupted operation whose storage has no seal: what they came to, and what
//! becomes of them.

use snapslot_runtime::{Facts, Goal, Plugin, Snapshot};

use crate::decide::{self, Direction};
use crate::error::EngineError;
use crate::meta::Meta;
use crate::operate::Context;
use crate::part::{Part, PartNote};
use crate::volume::Volume;

/// Whether a goal sets content back.
pub(crate) fn restores(goal: &Goal) -> bool {
    matches!(goal, Goal::Restored(_) | Goal::Consumed(_))
}

/// Such a volume, after what was half done there has been ended.
pub(crate) struct Other<'e> {
    pub volume: &'e Volume,
    plugin: &'e Plugin<'e>,
    /// What it shows, with nothing half done.
    facts: Facts,
    pub goal: Goal,
    /// Whether its part is done.
    pub done: bool,
    /// Whether its part may be done: then there is no way back any more.
    pub begun: bool,
    /// Whether something had to be ended.
    pub settled: bool,
    /// Whether its part cannot be done any more: the snapshot went away before it was begun.
    pub hopeless: bool,
}

impl<'e> Other<'e> {
    pub fn found(
        context: &Context<'e>,
        volume: &'e Volume,
        plugin: &'e Plugin<'e>,
        meta: &Meta,
    ) -> Result<Other<'e>, EngineError> {
        let failed = |e| EngineError::disk(&volume.locator, e);
        let ended = context.settle(volume, plugin, volume.inspect(plugin)?)?;
        let facts = ended.facts;
        let goal = meta.goal();
        let has = |wanted: &dyn Fn(&Snapshot) -> bool| facts.snapshots.iter().any(wanted);
        let (done, begun, hopeless) = match &goal {
            Goal::Held(new) => {
                let done = has(&|s| s.mark.as_ref() == Some(&new.mark));
                (done, done, false)
            }
            Goal::Empty(identity) => {
                let done = !has(&|s| s.identity == *identity);
                (done, done, false)
            }
            Goal::Restored(identity) | Goal::Consumed(identity) => {
                let gone = !has(&|s| s.identity == *identity);
                let part = Part::of(volume).map_err(failed)?;
                let begun = part != Part::NotBegun;
                // A merge uses the snapshot up: that it is gone is the restore that came to pass.
                (part == Part::Done || (begun && gone), begun, gone && !begun)
            }
            Goal::Settled => (true, true, false),
        };
        Ok(Other { volume, plugin, facts, goal, done, begun, settled: ended.any, hopeless })
    }

    /// What is decided by.
    pub fn part(&self) -> decide::Part {
        decide::Part { done: self.done, begun: self.begun }
    }

    /// Whether its content is still to be set back if the operation goes on.
    pub fn is_to_be_restored(&self) -> bool {
        restores(&self.goal) && !self.done && !self.hopeless
    }

    /// Takes its part back, or does it. Gives whether anything was done.
    pub fn bring(&self, context: &Context<'e>, direction: Direction) -> Result<bool, EngineError> {
        let facts = self.facts.clone();
        match (direction, &self.goal, self.done || self.hopeless) {
            (Direction::On, Goal::Restored(_) | Goal::Consumed(_), false) => {
                let failed = |e| EngineError::disk(&self.volume.locator, e);
                let plan = context.plan_one(self.volume, self.plugin, facts, self.goal.clone())?;
                let note = PartNote::begin(self.volume).map_err(failed)?;
                plan.run_rest(context)?;
                note.done().map_err(failed)?;
                Ok(true)
            }
            (Direction::On, Goal::Empty(_), false) => {
                let goal = self.goal.clone();
                context.plan_one(self.volume, self.plugin, facts, goal)?.run_rest(context)?;
                Ok(true)
            }
            (Direction::Back, Goal::Held(new), true) => {
                context.take_back(self.volume, self.plugin, facts, &new.mark)
            }
            _ => Ok(false),
        }
    }
}
