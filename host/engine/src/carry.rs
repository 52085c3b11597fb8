//! Plans, and carrying them out over all volumes of a machine: all or none.
//!
//! Images have plans with a seal: they can be begun, and then go back or on. Storage that is
//! changed by commands or copies (here: *other* storage) has no seal: what is done is done. So the
//! order is
//!
//! ```text
//! take, restore   seals of images | commands and copies | noted | work on images | seals off
//! delete          seals of images | noted | work on images | seals off | commands and copies
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
use snapslot_command::RunError;
use snapslot_disk::{Companion, DiskError};
use snapslot_runtime::{Answer, Facts, Failure, FailureKind, Goal, Plugin, Sight, not_run};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::keep::in_contract;
use crate::meta::Meta;
use crate::operate::{Context, Done, PlanDone, PlannedPhase, ReportDone, VolumeDone};
use crate::others::restores;
use crate::part::PartNote;
use crate::recover::{before_seal, unseal};
use crate::rehearse::{as_planned, reached, rehearse};
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
pub(crate) enum StepError {
    Act(Box<ActError>),
    Copy(CopyError),
    /// What is written down before it could not be.
    Note(DiskError),
}

impl StepError {
    /// Whether a command was begun and gave no answer: then it may have done its work.
    fn is_open(&self) -> bool {
        let unknown =
            |e: &RunError| !matches!(e, RunError::Missing { .. } | RunError::Start { .. });
        matches!(self, StepError::Act(e) if matches!(&e.cause, ActCause::Run(e) if unknown(e)))
    }

    /// Whether a command works on that could not be ended.
    fn works_on(&self) -> bool {
        let works_on = |e: &RunError| matches!(e, RunError::Unkillable { .. });
        matches!(self, StepError::Act(e) if matches!(&e.cause, ActCause::Run(e) if works_on(e)))
    }

    /// Whether it was the first of its plan, and said no itself or was not begun: then nothing was
    /// changed, unless another look tells otherwise.
    pub fn is_first_refusal(&self) -> bool {
        match self {
            StepError::Act(e) => e.number == 0 && !self.is_open(),
            StepError::Copy(_) | StepError::Note(_) => true,
        }
    }
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
        let plan = planned(volume, plugin, &volume.sight(), &goal)?;
        let depth = self.engine.rehearsal_of(&volume.locator.backend);
        rehearse(plugin, volume, &before, &plan, &goal, depth)?;
        Ok(Planned { volume, plugin, before, goal, plan })
    }

    /// For a dry run: how the snapshots with this mark would be removed once these plans are carried out. What commands
    /// leave of a snapshot that they use up is not known before.
    pub fn plan_removal_after(
        &self,
        first: &[Planned<'e>],
        mark: &str,
    ) -> Result<Vec<Planned<'e>>, EngineError> {
        let mut removals = Vec::new();
        for Planned { volume, plugin, plan, goal, .. } in first {
            let failed = |e| EngineError::call(&volume.locator, e);
            let sight = match plan.way() {
                Some(Way::Commands) if matches!(goal, Goal::Consumed(_)) => continue,
                Some(Way::Image) => as_planned(volume, plan)?,
                _ => volume.sight(),
            };
            let before = plugin.inspect(&sight).map_err(failed)?;
            let found = before.snapshots.iter().find(|s| s.mark.as_deref() == Some(mark));
            if let Some(goal) = found.map(|s| Goal::Empty(s.identity.clone())) {
                let plan = planned(volume, plugin, &sight, &goal)?;
                removals.push(Planned { volume, plugin, before, goal, plan });
            }
        }
        Ok(removals)
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
        let operation = match self.begun.take() {
            Some(begun) => begun,
            None => self.engine.store.begin(&machine.name, &meta.verb, meta.started)?,
        };
        let result = self.carry_out_begun(planned, meta, done);
        match &result {
            Ok(_) => self.has_done(operation),
            Err(error) => self.end(operation, &error.code()),
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
        let committed = match commit(&changing, meta) {
            Err(e) if e.is_no_space() && needs_no_journal(&changing) => {
                tracing::warn!("there is no room for a journal, and a delete needs none: {e}");
                Ok(Vec::new())
            }
            committed => committed,
        };
        let befores = committed.inspect_err(|_| {
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
            self.images(planned, Stage::Seal, &mut work)?;
            note_work(&changing)?;
            for stage in [Stage::Work, Stage::Unseal] {
                self.images(planned, stage, &mut work)?;
            }
            self.others(planned, &befores, meta, &mut work)?;
        } else {
            self.images(planned, Stage::Seal, &mut work)?;
            self.others(planned, &befores, meta, &mut work)?;
            note_work(&changing)?;
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
            reached(&p.before, &facts, &p.goal, p.plan.way()).map_err(|found| {
                EngineError::Unexpected { volume: name, found: found.to_owned() }
            })?;
            after.push(facts);
        }
        self.saw(&after);
        Ok(after)
    }

    /// One stage of all plans of images. In step: first all seals, then all the work, then all
    /// seals off. So after a crash either nothing but seals was written, and all can go back, or all
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
        let several = planned.len() > 1 || meta.then_remove.is_some();
        let mut finished: Vec<usize> = Vec::new();
        for (i, (p, work)) in planned.iter().zip(work).enumerate() {
            if p.plan.is_empty() || p.plan.way() == Some(Way::Image) {
                continue;
            }
            let noted = several && restores(&p.goal);
            let note = noted.then(|| PartNote::begin(p.volume)).transpose();
            let ran = match &note {
                Ok(_) => p.run(self.observer),
                Err(_) => Ok((0, 0)),
            };
            let (note, ran) = match (note, ran) {
                (Err(error), _) => (None, Err(StepError::Note(error))),
                (Ok(note), ran) => (note, ran),
            };
            match ran {
                Ok((commands, copies)) => (work.commands, work.copies) = (commands, copies),
                Err(error) => self.stopped(planned, i, &finished, error, befores)?,
            }
            if let Some(note) = note {
                note.done().map_err(|e| EngineError::Unsettled {
                    volume: p.volume.locator.to_string(),
                    cause: format!("it is done, but that could not be noted: {e}"),
                })?;
            }
            finished.push(i);
        }
        Ok(())
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
        if error.works_on() {
            // What it still changes is nobody's to look at.
            return Err(unsettled(failure.message));
        }
        let ended = p.volume.inspect(p.plugin).and_then(|f| self.settle(p.volume, p.plugin, f));
        let ended = ended.map_err(|e| {
            unsettled(format!("{}; ending it failed too: {}", failure.message, e.without_claim()))
        })?;
        let words = &failure.message;
        if ended.put_back && restores(&p.goal) {
            tracing::warn!(volume = %p.volume.locator, "done, after a step failed: {words}");
            return Ok(());
        }
        let back = |e: EngineError| {
            let why = e.without_claim();
            unsettled(format!("{}; taking it back failed too: {why}", failure.message))
        };
        if let Goal::Held(new) = &p.goal {
            // It may have been made all the same, before its command failed.
            for made in finished.iter().chain([&at]).map(|i| &planned[*i]) {
                let facts = made.look_again().map_err(back)?;
                self.take_back(made.volume, made.plugin, facts, &new.mark).map_err(back)?;
            }
        }
        let now = p.look_again()?;
        if now.identity != p.before.identity
            && reached(&p.before, &now, &p.goal, p.plan.way()).is_ok()
        {
            // It was past its point of no return, and settling has done the rest.
            tracing::warn!(volume = %p.volume.locator, "done, after a step failed: {words}");
            return Ok(());
        }
        // Storage without an identity does not show that its content was set back.
        let unknown = error.is_open()
            && restores(&p.goal)
            && (now.identity.is_none() || p.before.identity.is_none());
        let differs = !p.is_as_before(&now);
        let images_done = matches!(p.goal, Goal::Empty(_))
            && planned.iter().any(|p| p.plan.way() == Some(Way::Image));
        let others_done = !matches!(p.goal, Goal::Held(_)) && !finished.is_empty();
        if differs || unknown || images_done || others_done {
            // The journals stay: the record follows the storage at the next command.
            let what = match (differs, unknown) {
                (true, _) => "by then it had changed already",
                (_, true) => "whether its content was set back is not known",
                _ => "other volumes of the machine are done already",
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

    /// Removes the journals, the decider's last. One that cannot be removed is recognised as done
    /// by the next command; those before it then stay too.
    pub fn end_journals(&self) {
        for (i, (volume, plugin)) in self.volumes.iter().zip(self.plugins).enumerate().rev() {
            let journal = volume.journal();
            let removed = journal.remove().and_then(|()| {
                if !changes_image(plugin) {
                    volume.part_note().remove()?;
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

/// Whether it is one removal of one copy. That is one step of the file system, which is done or not: and it may be
/// what makes room.
fn needs_no_journal(changing: &[(usize, &Planned<'_>)]) -> bool {
    let [(_, only)] = changing else { return false };
    let removes = |s: &&Step| matches!(s, Step::Discard { .. });
    let steps = only.plan.steps().iter().filter(|s| !matches!(s, Step::Barrier { .. }));
    only.plan.way() == Some(Way::Copies)
        && steps.clone().count() == 1
        && steps.clone().all(|s| removes(&s))
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
            Some(_) => p.volume.part_note().remove(),
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

/// Of several volumes, notes in the journal that decides that images get more than their seals now: from here on
/// there is no way back (see [`decide`](crate::decide)).
fn note_work(changing: &[(usize, &Planned<'_>)]) -> Result<(), EngineError> {
    let images = changing.iter().any(|(_, p)| p.plan.way() == Some(Way::Image));
    match changing {
        [(_, decider), _, ..] if images => {
            journal::note_work(&decider.volume.journal()).map_err(|e| EngineError::Unsettled {
                volume: decider.volume.locator.to_string(),
                cause: format!("that the work begins could not be noted: {e}"),
            })
        }
        _ => Ok(()),
    }
}

impl Planned<'_> {
    /// Runs a plan of commands or copies. Gives how many of each there were.
    pub fn run(&self, observer: crate::operate::Observer<'_>) -> Result<(u64, u64), StepError> {
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
    pub fn explained(&self, error: &StepError) -> Failure {
        let act = match error {
            StepError::Copy(error) => return in_contract(error),
            StepError::Note(error) => {
                return Failure::new(FailureKind::Io, "io", error.to_string());
            }
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

    pub fn look_again(&self) -> Result<Facts, EngineError> {
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
        let told = restores(&self.goal) && !self.plan.is_empty();
        let findings = (self.before.findings.iter()).filter(|f| told && !f.blocks);
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

/// A plan, checked against what is seen.
fn planned(
    volume: &Volume,
    plugin: &Plugin<'_>,
    sight: &Sight,
    goal: &Goal,
) -> Result<Arc<Plan>, EngineError> {
    let plan = plugin.plan(sight, goal).map_err(|e| EngineError::call(&volume.locator, e))?;
    if let (Some(Way::Image), Some(disk)) = (plan.way(), &sight.disk) {
        check(&plan, &**disk).map_err(|e| {
            EngineError::unsafe_plan(&volume.locator, &plugin.description().name, e)
        })?;
    }
    Ok(Arc::new(plan))
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
