//! Ending what was begun: after a crash, and after a step that failed.
//!
//! What is done here is a plan like any other, and is committed before it is run, into a journal of
//! its own (`…-rest`): the one of the operation that was interrupted stays beside it and goes on
//! deciding. Nothing is read out of it after a crash. What is half done then is seen from the
//! storage, as before.

use std::time::{Duration, Instant};

use snapslot_capture::{CopyError, Ended, Watch, journal};
use snapslot_disk::Companion as _;
use snapslot_runtime::{Facts, Goal, Plugin};
use snapslot_slot::Moment;

use crate::carry::{Planned, StepError};
use crate::error::EngineError;
use crate::meta::Meta;
use crate::operate::Context;
use crate::volume::Volume;

/// How long the storage is given to end something in the background.
const PASSING: Duration = Duration::from_secs(3);

/// A volume after what was half done there has been ended.
pub(crate) struct Settled {
    /// What there is.
    pub facts: Facts,
    /// Whether there was anything to end.
    pub any: bool,
    /// Whether that was a restore by copies, which is finished now.
    pub put_back: bool,
}

impl<'e> Context<'e> {
    /// Removes the snapshot with this mark, which a take has just made. Gives whether it was there.
    pub fn take_back(
        &self,
        volume: &'e Volume,
        plugin: &'e Plugin<'e>,
        facts: Facts,
        mark: &str,
    ) -> Result<bool, EngineError> {
        let made = facts.snapshots.iter().find(|s| s.mark.as_deref() == Some(mark));
        let Some(identity) = made.map(|s| s.identity.clone()) else { return Ok(false) };
        tracing::info!(volume = %volume.locator, "the snapshot is taken back");
        self.plan_one(volume, plugin, facts, Goal::Empty(identity))?.run_rest(self)?;
        Ok(true)
    }

    /// Ends what these facts show half done in storage that has no seal.
    pub fn settle(
        &self,
        volume: &'e Volume,
        plugin: &'e Plugin<'e>,
        facts: Facts,
    ) -> Result<Settled, EngineError> {
        if let (Some(copies), true) = (&volume.copies, plugin.description().copies.is_some()) {
            let failed = |e: CopyError| EngineError::copy(&volume.locator, &e);
            if copies.unfinished().map_err(failed)?.is_none() {
                return Ok(Settled { facts, any: false, put_back: false });
            }
            let ended = copies.settle(&Watch::NONE).map_err(|e| match e {
                // The system refused in the middle of it.
                CopyError::Disk(_) => {
                    self.acted.set(true);
                    let volume = volume.locator.to_string();
                    EngineError::Unsettled { volume, cause: e.to_string() }
                }
                _ => failed(e),
            })?;
            self.acted.set(true);
            let put_back = matches!(ended.put_back, Some(Ended::Finished(_)));
            return Ok(Settled { facts: volume.reopened()?.inspect(plugin)?, any: true, put_back });
        }
        let Some(unfinished) = &facts.unfinished else {
            return Ok(Settled { facts, any: false, put_back: false });
        };
        if plugin.description().actions.is_empty() {
            // It has nothing to end it with; and what an image has half done is in our journal.
            let name = plugin.description().name.clone();
            return Err(EngineError::Plugin {
                volume: volume.locator.to_string(),
                cause: format!(
                    "the plugin {name} finds something half done ({unfinished}) and cannot end it"
                ),
                plugin: name,
                log: Vec::new(),
            });
        }
        let rest = self.plan_one(volume, plugin, facts, Goal::Settled)?;
        rest.run_rest(self)?;
        let begun = Instant::now();
        let after = loop {
            let after = rest.look_again()?;
            if after.unfinished.is_none() || begun.elapsed() > PASSING {
                break after;
            }
            // The storage may end it in the background, as LVM does with a merge.
            std::thread::sleep(Duration::from_millis(100));
        };
        if after.unfinished.is_some() {
            // Under way still, or in somebody's way: the plugin says so, and if not it is a riddle.
            let found = "something is half done still".to_owned();
            self.plan_one(volume, plugin, after, Goal::Settled)?;
            return Err(EngineError::Unexpected { volume: volume.locator.to_string(), found });
        }
        Ok(Settled { facts: after, any: true, put_back: false })
    }

    /// An error of recovery, once it has changed something: it must not say that nothing was.
    pub fn told(&self, machine: &str, error: EngineError) -> EngineError {
        match self.acted.get() && error.claims_nothing_changed() {
            true => EngineError::Partly { machine: machine.to_owned(), source: Box::new(error) },
            false => error,
        }
    }
}

impl Planned<'_> {
    /// Commits a plan of commands or copies that ends what was begun, and runs it.
    pub fn run_rest(&self, context: &Context<'_>) -> Result<(), EngineError> {
        if self.plan.is_empty() {
            return Ok(());
        }
        let name = self.volume.locator.to_string();
        let place = self.volume.rest_journal();
        let failed = |source| EngineError::Journal { volume: name.clone(), source };
        // One that is there is of a recovery that was killed.
        place.remove().map_err(|e| failed(e.into()))?;
        let text =
            Meta::of_rest(&name, context.engine.now()).write(&name, None, &self.goal, Vec::new());
        journal::commit(&place, &text, &self.plan).map_err(failed)?;
        let result = self.run(&|_, _, _| ());
        if let Err(error) = place.remove() {
            tracing::warn!(volume = %name, %error, "the journal of the rest could not be removed");
        }
        match result {
            Ok(_) => {
                context.acted.set(true);
                Ok(())
            }
            Err(error) => Err(self.rest_failed(context, &error)),
        }
    }

    /// A step of it failed: says whether anything was changed by then.
    fn rest_failed(&self, context: &Context<'_>, error: &StepError) -> EngineError {
        let failure = self.explained(error);
        let unchanged = error.is_first_refusal()
            && self.look_again().is_ok_and(|now| {
                self.is_as_before(&now) && now.unfinished == self.before.unfinished
            });
        if unchanged {
            return EngineError::backend(&self.volume.locator, failure);
        }
        context.acted.set(true);
        EngineError::Unsettled { volume: self.volume.locator.to_string(), cause: failure.message }
    }

    /// Whether the volume and its own snapshots are as they were when this was planned. What others
    /// do with theirs meanwhile is not ours to judge.
    pub fn is_as_before(&self, now: &Facts) -> bool {
        let own = |facts: &Facts| -> Vec<String> {
            let own = facts.snapshots.iter().filter(|s| s.mark.is_some());
            own.map(|s| s.identity.clone()).collect()
        };
        now.identity == self.before.identity
            && now.virtual_size == self.before.virtual_size
            && own(now) == own(&self.before)
            && self.volume.file_now() == self.volume.file()
    }
}

impl Meta {
    fn of_rest(volume: &str, started: Moment) -> Meta {
        Meta {
            verb: "recover".to_owned(),
            machine: volume.to_owned(),
            volumes: vec![volume.to_owned()],
            started,
            process: std::process::id(),
            occupant: None,
            then_remove: None,
            mark: None,
            volume: String::new(),
            decider: None,
            goal: String::new(),
            before: String::new(),
        }
    }
}
