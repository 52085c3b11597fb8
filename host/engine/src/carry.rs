//! Plans, and carrying them out over all volumes of a machine: all or none.
//!
//! Images have plans with a seal: they can be begun, and then go back or on. Storage that is
//! changed by commands or copies (here: *other* storage) has no seal: what is done is done. So the
//! order is
//!
//! ```text
//! take, restore   seals of images | commands and copies | work on images | seals off
//! delete          seals of images | work on images | seals off | commands and copies
//! ```
//!
//! A command that fails while nothing lies behind its point of no return takes all back: seals are
//! taken off, snapshots just made are removed. After a crash `recover` decides the same way.

use std::sync::Arc;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use snapslot_capture::{
    ActCause, ActError, CopyError, Plan, Redo, Report, Step, Watch, Way, check, execute_phases,
    journal, reserve, run_acts,
};
use snapslot_disk::Companion;
use snapslot_runtime::{Answer, Facts, Failure, FailureKind, Goal, Plugin, not_run};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::keep::in_contract;
use crate::operate::{Context, Done, PlanDone, PlannedPhase, ReportDone, VolumeDone};
use crate::recover::{Meta, before_seal, unseal};
use crate::rehearse::{reached, rehearse};
use crate::store::Machine;
use crate::volume::{Volume, changes_image};

/// Commands that may take longer than this can be interrupted: nobody waits a day for Ctrl-C.
const HELD_BACK_SECONDS_MAX: u64 = 4 * 3600;

/// One volume with its plan.
pub(crate) struct Planned<'e> {
    pub volume: &'e Volume,
    pub plugin: &'e Plugin<'e>,
    pub before: Facts,
    pub goal: Goal,
    pub plan: Arc<Plan>,
}

/// What carrying out one volume's plan came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Work {
    image: Report,
    commands: u64,
    copies: u64,
}

/// A command or copy that failed.
enum StepError {
    Act(Box<ActError>),
    Copy(CopyError),
}

impl<'e> Context<'e> {
    /// Plans, checks and rehearses every volume before anything is done to any.
    pub fn plan(
        &self,
        facts: Vec<Facts>,
        goals: Vec<Goal>,
    ) -> Result<Vec<Planned<'e>>, EngineError> {
        let mut all = Vec::new();
        for (((volume, plugin), before), goal) in
            self.volumes.iter().zip(self.plugins).zip(facts).zip(goals)
        {
            all.push(self.plan_one(volume, plugin, before, goal)?);
        }
        Ok(all)
    }

    pub fn plan_one(
        &self,
        volume: &'e Volume,
        plugin: &'e Plugin<'e>,
        before: Facts,
        goal: Goal,
    ) -> Result<Planned<'e>, EngineError> {
        if let Some(finding) = before.findings.iter().find(|f| f.blocks) {
            let failure =
                Failure::new(FailureKind::Unsupported, &finding.code, finding.message.clone());
            return Err(EngineError::backend(&volume.locator, failure));
        }
        let plan = plugin
            .plan(&volume.sight(), &goal)
            .map_err(|e| EngineError::call(&volume.locator, e))?;
        if plan.way() == Some(Way::Image) {
            check(&plan, &**volume.disk()?).map_err(|e| {
                EngineError::unsafe_plan(&volume.locator, &plugin.description().name, e)
            })?;
        }
        let plan = Arc::new(plan);
        let depth = self.engine.rehearsal_of(&volume.locator.backend);
        rehearse(plugin, volume, &before, &plan, &goal, depth)?;
        Ok(Planned { volume, plugin, before, goal, plan })
    }

    /// Commit, execute, look again. On return the storage is as the goal says, and the journals
    /// are still there.
    pub fn carry_out(
        &self,
        machine: &Machine,
        planned: &[Planned<'e>],
        meta: &Meta,
        done: &mut Done,
    ) -> Result<Vec<Facts>, EngineError> {
        let store = &self.engine.store;
        let operation = store.begin(&machine.name, &meta.verb, meta.started)?;
        let result = self.carry_out_begun(planned, meta, done);
        let outcome = result.as_ref().map_or_else(EngineError::code, |_| "done".to_owned());
        // The operation is what counts; a history that cannot be written is told by its gap.
        if let Err(error) = store.end(operation, self.engine.now(), &outcome) {
            tracing::warn!(%error, "the history could not be written");
        }
        result
    }

    fn carry_out_begun(
        &self,
        planned: &[Planned<'e>],
        meta: &Meta,
        done: &mut Done,
    ) -> Result<Vec<Facts>, EngineError> {
        // All journals, the first volume's last: it is the one that decides (see `recover`).
        let changing: Vec<(usize, &Planned<'e>)> =
            planned.iter().enumerate().filter(|(_, p)| !p.plan.is_empty()).collect();
        let befores = commit(&changing, meta).inspect_err(|_| {
            for (_, p) in &changing {
                if let (Some(Way::Image), Ok(disk)) = (p.plan.way(), p.volume.disk()) {
                    // Best effort: the error that counts is the one at hand.
                    let _ = snapslot_disk::Disk::release_reserve(&**disk);
                }
            }
        })?;
        let _held_back = planned.iter().all(Planned::is_short).then(HeldBack::new);
        let mut work = vec![Work::default(); planned.len()];
        let empties = planned.iter().any(|p| matches!(p.goal, Goal::Empty(_)));
        if empties {
            for stage in [Stage::Seal, Stage::Work, Stage::Unseal] {
                self.images(planned, stage, &mut work)?;
            }
            self.others(planned, &befores, meta, &mut work)?;
        } else {
            self.images(planned, Stage::Seal, &mut work)?;
            self.others(planned, &befores, meta, &mut work)?;
            self.images(planned, Stage::Work, &mut work)?;
            self.images(planned, Stage::Unseal, &mut work)?;
        }
        let mut after = Vec::new();
        for (p, work) in planned.iter().zip(work) {
            let name = p.volume.locator.to_string();
            done.changed |= !p.plan.is_empty();
            done.volumes.push(p.summary(self.engine, Some(work)));
            let facts = if p.plan.is_empty() {
                p.before.clone()
            } else {
                p.look_again().map_err(|e| EngineError::Unexpected {
                    volume: name.clone(),
                    found: e.to_string(),
                })?
            };
            reached(&p.before, &facts, &p.goal).map_err(|found| EngineError::Unexpected {
                volume: name,
                found: found.to_owned(),
            })?;
            after.push(facts);
        }
        self.saw(&after);
        Ok(after)
    }

    /// One stage of all plans of images. In step: first all seals, then all the work, then all
    /// seals off. So after a crash either no volume is past its seal, and all can go back, or all
    /// are sealed, and all can go on.
    fn images(
        &self,
        planned: &[Planned<'e>],
        stage: Stage,
        work: &mut [Work],
    ) -> Result<(), EngineError> {
        for (p, work) in planned.iter().zip(work) {
            if p.plan.way() != Some(Way::Image) {
                continue;
            }
            let count = p.plan.phases().count();
            let phases = match stage {
                Stage::Seal => 0..1.min(count),
                Stage::Work => 1.min(count)..count.saturating_sub(1).max(1).min(count),
                Stage::Unseal => count.saturating_sub(1).max(1).min(count)..count,
            };
            let name = p.volume.locator.to_string();
            let part = execute_phases(&p.plan, phases, Redo::No, &**p.volume.disk()?, &|n, all| {
                (self.observer)(&name, n, all);
            });
            work.image
                .add(part.map_err(|source| EngineError::Interrupted { volume: name, source })?);
        }
        Ok(())
    }

    /// All plans of commands and copies, volume by volume.
    fn others(
        &self,
        planned: &[Planned<'e>],
        befores: &[(usize, Vec<u8>)],
        meta: &Meta,
        work: &mut [Work],
    ) -> Result<(), EngineError> {
        // What is consumed may go only once it is certain that it was restored.
        let marked = planned.len() > 1 || meta.then_remove.is_some();
        let mut finished: Vec<usize> = Vec::new();
        for (i, (p, work)) in planned.iter().zip(work).enumerate() {
            if p.plan.is_empty() || p.plan.way() == Some(Way::Image) {
                continue;
            }
            match p.run(self.observer) {
                Ok((commands, copies)) => (work.commands, work.copies) = (commands, copies),
                Err(error) => {
                    self.stopped(planned, i, &finished, error, befores)?;
                }
            }
            if marked {
                self.mark_done(p.volume)?;
            }
            finished.push(i);
        }
        Ok(())
    }

    /// Notes that this volume's part is done: a restore cannot be told from what it leaves.
    fn mark_done(&self, volume: &Volume) -> Result<(), EngineError> {
        let marker = volume.done_marker();
        let made = marker.create().and_then(|file| file.flush()).and_then(|()| marker.sync_name());
        made.map_err(|e| EngineError::Unsettled {
            volume: volume.locator.to_string(),
            cause: format!("it is done, but that could not be noted: {e}"),
        })
    }

    /// A step of volume `at` failed: takes back what can be taken back, and says how things are.
    /// Ends well if ending what was half done led to the goal after all.
    fn stopped(
        &self,
        planned: &[Planned<'e>],
        at: usize,
        finished: &[usize],
        error: StepError,
        befores: &[(usize, Vec<u8>)],
    ) -> Result<(), EngineError> {
        let p = &planned[at];
        let failure = p.explained(&error);
        let unsettled =
            |cause: String| EngineError::Unsettled { volume: p.volume.locator.to_string(), cause };
        let ended = p.volume.inspect(p.plugin).and_then(|f| self.settle(p.volume, p.plugin, f));
        if let Err(e) = ended {
            return Err(unsettled(format!("{}; ending it failed too: {e}", failure.message)));
        }
        let back = |e: EngineError| {
            unsettled(format!("{}; taking it back failed too: {e}", failure.message))
        };
        if let Goal::Held(new) = &p.goal {
            // It may have been made all the same, before its command failed.
            for made in finished.iter().chain([&at]).map(|i| &planned[*i]) {
                let facts = made.look_again().map_err(back)?;
                self.take_back(made.volume, made.plugin, facts, &new.mark).map_err(back)?;
            }
        }
        let now = p.look_again()?;
        if now.identity != p.before.identity && reached(&p.before, &now, &p.goal).is_ok() {
            // It was past its point of no return, and settling has done the rest.
            let words = &failure.message;
            tracing::warn!(volume = %p.volume.locator, "done, after a step failed: {words}");
            return Ok(());
        }
        let differs = (&now.identity, &now.snapshots, now.virtual_size)
            != (&p.before.identity, &p.before.snapshots, p.before.virtual_size);
        let images_done = matches!(p.goal, Goal::Empty(_))
            && planned.iter().any(|p| p.plan.way() == Some(Way::Image));
        let others_done = !matches!(p.goal, Goal::Held(_)) && !finished.is_empty();
        if differs || images_done || others_done {
            // The journals stay: the record follows the storage at the next command.
            let what = match differs {
                true => "by then it had changed already",
                false => "other volumes of the machine are done already",
            };
            return Err(unsettled(format!("{}; {what}", failure.message)));
        }
        for (i, before) in befores {
            let q = &planned[*i];
            unseal(q.volume, &q.plan, before).map_err(back)?;
        }
        self.end_journals();
        Err(EngineError::backend(&p.volume.locator, failure))
    }

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
        self.plan_one(volume, plugin, facts, Goal::Empty(identity))?.run_rest()?;
        Ok(true)
    }

    /// Ends what these facts show half done in storage that has no seal. Gives what there is then,
    /// and whether there was anything to end.
    pub fn settle(
        &self,
        volume: &'e Volume,
        plugin: &'e Plugin<'e>,
        facts: Facts,
    ) -> Result<(Facts, bool), EngineError> {
        if let (Some(copies), true) = (&volume.copies, plugin.description().copies.is_some()) {
            let failed = |e: CopyError| EngineError::copy(&volume.locator, &e);
            if copies.unfinished().map_err(failed)?.is_none() {
                return Ok((facts, false));
            }
            copies.settle(&Watch::NONE).map_err(failed)?;
            return Ok((volume.inspect(plugin)?, true));
        }
        let Some(unfinished) = &facts.unfinished else { return Ok((facts, false)) };
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
        rest.run_rest()?;
        let after = rest.look_again()?;
        reached(&rest.before, &after, &Goal::Settled).map_err(|found| EngineError::Unexpected {
            volume: volume.locator.to_string(),
            found: found.to_owned(),
        })?;
        Ok((after, true))
    }

    /// Removes the journals, the decider's last. One that cannot be removed is recognised as done
    /// by the next command; those before it then stay too.
    pub fn end_journals(&self) {
        for (i, (volume, plugin)) in self.volumes.iter().zip(self.plugins).enumerate().rev() {
            let journal = volume.journal();
            let removed = journal.remove().and_then(|()| {
                if !changes_image(plugin) {
                    volume.done_marker().remove()?;
                }
                // With one volume a journal that comes back after a power cut is recognised as
                // done. With several, the others must be gone for good before the decider goes.
                if i > 0 { journal.sync_name() } else { Ok(()) }
            });
            if let Err(error) = removed {
                tracing::warn!(volume = %volume.locator, %error, "the journal could not be removed");
                return;
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Seal,
    Work,
    Unseal,
}

/// Signals that would end the process wait until the change is through: mostly a fraction of a
/// second, and nobody has to recover from an impatient Ctrl-C. Threads started meanwhile inherit
/// it.
struct HeldBack(Option<SigSet>);

impl HeldBack {
    fn new() -> Self {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGPIPE] {
            set.add(signal);
        }
        HeldBack(set.thread_swap_mask(SigmaskHow::SIG_BLOCK).ok())
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = before.thread_set_mask();
        }
    }
}

/// Sets room aside and makes every plan durable, or none. Gives, for each image, its number and
/// the bytes that its last phase overwrites.
fn commit(
    changing: &[(usize, &Planned<'_>)],
    meta: &Meta,
) -> Result<Vec<(usize, Vec<u8>)>, EngineError> {
    for (_, p) in changing.iter().filter(|(_, p)| p.plan.way() == Some(Way::Image)) {
        reserve(&p.plan, &**p.volume.disk()?)
            .map_err(|e| EngineError::disk(&p.volume.locator, e))?;
    }
    let decider = changing.first().map(|(_, p)| p.volume.locator.to_string());
    let mut befores = Vec::new();
    for (n, (i, p)) in changing.iter().enumerate().rev() {
        let name = p.volume.locator.to_string();
        let mut before = Vec::new();
        if p.plan.way() == Some(Way::Image) {
            before = before_seal(&p.plan, &**p.volume.disk()?)
                .map_err(|e| EngineError::disk(&p.volume.locator, e))?;
            befores.push((*i, before.clone()));
        }
        let text = meta.write(&name, decider.as_deref(), &p.goal, before);
        // One that is left of an operation before would speak for this one.
        let cleared = match p.plan.way() {
            Some(Way::Image) | None => Ok(()),
            Some(_) => p.volume.done_marker().remove(),
        };
        let committed = cleared
            .map_err(journal::JournalError::from)
            .and_then(|()| journal::commit(&p.volume.journal(), &text, &p.plan));
        if let Err(source) = committed {
            for (_, written) in &changing[n + 1..] {
                // Without the decider's journal these are of an operation that never began.
                let _ = written.volume.journal().remove();
            }
            return Err(EngineError::Journal { volume: name, source });
        }
    }
    Ok(befores)
}

impl Planned<'_> {
    /// Runs a plan of commands or copies. Gives how many of each there were.
    fn run(&self, observer: crate::operate::Observer<'_>) -> Result<(u64, u64), StepError> {
        let name = self.volume.locator.to_string();
        let tell = |n, all| observer(&name, n, all);
        match self.plan.way() {
            Some(Way::Commands) => {
                let ran = run_acts(&self.plan, &self.volume.changes(), &tell);
                ran.map(|n| (n, 0)).map_err(StepError::Act)
            }
            Some(Way::Copies) => {
                let watch = Watch { progress: &tell, stop: &|| false };
                let Some(copies) = &self.volume.copies else { return Ok((0, 0)) };
                let mut ran = 0;
                for step in self.plan.steps() {
                    match step {
                        Step::Save(new) => copies.save(new, &watch).map(|_| ()),
                        Step::PutBack { mark } => copies.put_back(mark, &watch),
                        Step::Discard { mark } => copies.discard(mark),
                        _ => continue,
                    }
                    .map_err(StepError::Copy)?;
                    ran += 1;
                }
                Ok((0, ran))
            }
            Some(Way::Image) | None => Ok((0, 0)),
        }
    }

    /// What a step that failed said, in the contract's words.
    fn explained(&self, error: &StepError) -> Failure {
        let act = match error {
            StepError::Copy(error) => return in_contract(error),
            StepError::Act(act) => act,
        };
        match &act.cause {
            ActCause::Refused(answer) => {
                let answer = Answer {
                    exit_code: answer.exit_code,
                    output: answer.output.clone(),
                    errors: answer.errors.clone(),
                };
                let explained = self.plugin.explain(&act.act.action, &answer);
                explained.unwrap_or_else(|| {
                    Failure::new(FailureKind::Io, "command-failed", act.to_string())
                })
            }
            ActCause::Changed { .. } => {
                Failure::new(FailureKind::Changed, "changed", act.to_string())
            }
            ActCause::Run(error) => not_run(error),
        }
    }

    /// Runs a plan of commands or copies after a crash.
    pub fn run_rest(&self) -> Result<(), EngineError> {
        let ran = self.run(&|_, _, _| ());
        ran.map(|_| ()).map_err(|e| EngineError::backend(&self.volume.locator, self.explained(&e)))
    }

    fn look_again(&self) -> Result<Facts, EngineError> {
        // A restore may have put another file in the image's place.
        match (&self.volume.copies, self.plan.way()) {
            (Some(_), Some(Way::Copies)) => self.volume.reopened()?.inspect(self.plugin),
            _ => self.volume.inspect(self.plugin),
        }
    }

    fn is_short(&self) -> bool {
        let slow = |a: &snapslot_capture::Act| a.command.deadline.as_secs() > HELD_BACK_SECONDS_MAX;
        self.plan.way() != Some(Way::Copies) && !self.plan.acts().any(slow)
    }

    pub fn summary(&self, engine: &Engine, work: Option<Work>) -> VolumeDone {
        let phases = (self.plan.phases())
            .map(|(title, steps)| PlannedPhase {
                title: title.to_owned(),
                steps: steps.iter().map(in_words).collect(),
                count: steps.len(),
                bytes: steps.iter().filter_map(Step::span).map(|(s, e)| e - s).sum(),
            })
            .collect();
        let restores = matches!(self.goal, Goal::Restored(_)) && !self.plan.is_empty();
        let findings = (self.before.findings.iter()).filter(|f| restores && !f.blocks);
        VolumeDone {
            volume: self.volume.locator.to_string(),
            plan: PlanDone {
                steps: self.plan.steps().len(),
                phases,
                rehearsal: engine.rehearsal_of(&self.volume.locator.backend),
            },
            executed: work.map(|w| ReportDone {
                flushes: w.image.flushes,
                bytes_written: w.image.written,
                bytes_read: w.image.read,
                commands: w.commands,
                copies: w.copies,
            }),
            warnings: (findings.map(|f| f.message.clone()))
                .chain(self.plan.notes().iter().cloned())
                .collect(),
        }
    }
}

/// A step for people: what, where, how much.
fn in_words(step: &Step) -> String {
    match step {
        Step::Write { offset, data } => format!("write {} bytes at {offset}", data.len()),
        Step::Fill { offset, length, pattern } => {
            let hex: String = pattern.iter().map(|b| format!("{b:02x}")).collect();
            format!("fill {length} bytes at {offset} with {hex}")
        }
        Step::Mask(m) => {
            let which = if m.select.is_empty() { "" } else { " chosen" };
            let what = match (m.clear, m.set) {
                (clear, 0) => format!("clear {clear:#x} in"),
                (0, set) => format!("set {set:#x} in"),
                (clear, set) => format!("clear {clear:#x} and set {set:#x} in"),
            };
            format!("{what}{which} words of {} at {}", m.count, m.offset)
        }
        Step::Extend { size } => format!("grow the image to {size} bytes"),
        Step::Act(act) => match &act.guard {
            Some((look, expected)) => {
                format!("if `{look}` says {expected}: run {}", act.command)
            }
            None => format!("run {}", act.command),
        },
        Step::Save(save) => format!("save a copy of the disk under the mark {}", save.mark),
        Step::PutBack { mark } => format!("set the disk back to the copy {mark}"),
        Step::Discard { mark } => format!("remove the copy {mark}"),
        Step::Barrier { title } => title.clone(),
    }
}
