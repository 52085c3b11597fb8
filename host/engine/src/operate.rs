//! Take, restore and delete.

use std::sync::Arc;
use std::time::Instant;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use serde::Serialize;
use snapslot_capture::{Plan, Redo, Report, Step, check, execute_phases, journal, reserve};
use snapslot_disk::{Companion, Disk, EngineLock, FileId, ImageLock};
use snapslot_runtime::{Facts, Failure, FailureKind, Goal, NewSnapshot, Plugin, Snapshot};
use snapslot_slot::{Consistency, Moment, NOTE_MAX, Occupant, Refusal, Request, State, decide};

use crate::engine::{Engine, now, refused};
use crate::error::EngineError;
use crate::recover::{Meta, before_seal};
use crate::rehearse::{Depth, reached, rehearse};
use crate::status::{derive, lock_error, parts};
use crate::store::Machine;
use crate::volume::Volume;

/// The three verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verb {
    /// Fill the slot.
    Take,
    /// Set the machine back.
    Restore,
    /// Empty the slot.
    Delete,
}

impl Verb {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            Verb::Take => "take",
            Verb::Restore => "restore",
            Verb::Delete => "delete",
        }
    }
}

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// A note to keep with a take.
    pub note: Option<String>,
    /// Take: fill a held slot anew.
    pub replace: bool,
    /// Restore: empty the slot after it.
    pub consume: bool,
    /// Stop before the commit.
    pub dry_run: bool,
    /// Restore, delete: what the person was shown who said yes; none if nobody was asked.
    pub shown: Option<Shown>,
}

/// What a person saw before saying yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The mark of the snapshot that held the slot, if one did.
    pub mark: Option<String>,
}

/// Told how far an execution is: volume, bytes done, bytes in all. From any thread.
pub type Observer<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// One phase of a plan, for people.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlannedPhase {
    /// What it does.
    pub title: String,
    /// Its steps, in words.
    #[serde(skip)]
    pub steps: Vec<String>,
    /// How many there are.
    pub count: usize,
    /// Bytes it touches.
    pub bytes: u64,
}

/// What was planned and done on one volume.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeDone {
    /// Its locator.
    pub volume: String,
    /// The plan.
    pub plan: PlanDone,
    /// What carrying it out took; nothing on a dry run.
    pub executed: Option<ReportDone>,
    /// Worth knowing.
    pub warnings: Vec<String>,
}

/// A plan, summed up.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlanDone {
    /// Steps.
    pub steps: usize,
    /// Phases.
    pub phases: Vec<PlannedPhase>,
    /// How deep it was rehearsed.
    pub rehearsal: Depth,
}

/// What carrying out took.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ReportDone {
    /// Flushes of the image.
    pub flushes: u64,
    /// Bytes written to it.
    pub bytes_written: u64,
    /// Bytes read in order to change them.
    pub bytes_read: u64,
}

/// What an operation did.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Done {
    /// The machine.
    pub machine: String,
    /// Its slot afterwards; on a dry run as it is.
    pub slot: State,
    /// Whether storage was changed.
    pub changed: bool,
    /// Whether the slot was made on the way.
    pub enabled: bool,
    /// The volumes.
    pub volumes: Vec<VolumeDone>,
    /// From lock to release.
    pub elapsed_microseconds: u64,
}

impl Done {
    /// Nothing done yet.
    pub(crate) fn nothing(machine: &str) -> Done {
        Done {
            machine: machine.to_owned(),
            slot: State::Empty,
            changed: false,
            enabled: false,
            volumes: Vec::new(),
            elapsed_microseconds: 0,
        }
    }
}

/// One volume with its plan.
struct Planned<'e> {
    volume: &'e Volume,
    plugin: &'e Plugin<'e>,
    before: Facts,
    goal: Goal,
    plan: Arc<Plan>,
}

impl Engine {
    /// Carries out a verb on a machine.
    pub fn operate(
        &self,
        text: &str,
        verb: Verb,
        asked: &Asked,
        observer: Observer<'_>,
    ) -> Result<Done, EngineError> {
        let begun = Instant::now();
        if let Some(note) = &asked.note
            && (note.len() > NOTE_MAX || note.chars().any(char::is_control))
        {
            return Err(EngineError::Usage(format!(
                "a note has at most {NOTE_MAX} bytes and no control characters"
            )));
        }
        let (machine, _) = self.resolve(text)?;
        let locators = self.locators(&machine)?;
        let volumes: Vec<Volume> =
            locators.iter().map(Volume::open_to_change).collect::<Result<_, _>>()?;
        let _engine_locks = self.lock(&machine, &volumes)?;
        self.recover_locked(&machine, &volumes)?;
        // Recovery, or another process before the lock, may have changed the record.
        let recorded = self.store.machine(&machine.name)?;
        let known = recorded.is_some();
        let machine = recorded.unwrap_or(machine);
        let _image_locks = lock_images(&volumes)?;

        let plugins: Vec<Plugin<'_>> =
            locators.iter().map(|l| self.plugin(&l.backend)).collect::<Result<_, _>>()?;
        let facts = look_at(&volumes, &plugins)?;
        let state = derive(&machine, known, &facts.iter().collect::<Vec<_>>(), &volumes);
        let enable = self.decide(&machine, &state, verb, asked)?;
        let mark = state.occupant().map(|o| o.mark.clone());
        if asked.shown.as_ref().is_some_and(|shown| shown.mark != mark) {
            return Err(EngineError::Changed { machine: machine.name.clone() });
        }
        let context = Context { engine: self, volumes: &volumes, plugins: &plugins, observer };
        let mut done = Done::nothing(&machine.name);
        done.slot = state.clone();
        done.enabled = enable && !asked.dry_run;
        let result = context.run(&machine, &state, verb, asked, facts, enable, &mut done);
        done.elapsed_microseconds = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        result.map(|()| done)
    }

    /// One engine at a time, on every volume, in an order all engines share.
    pub(crate) fn lock<'v>(
        &self,
        machine: &Machine,
        volumes: &'v [Volume],
    ) -> Result<Vec<EngineLock<'v>>, EngineError> {
        let mut sorted: Vec<&Volume> = volumes.iter().collect();
        sorted.sort_by(|a, b| a.locator.cmp(&b.locator));
        let since = || self.store.running(&machine.name).ok().flatten().map(|o| o.started);
        (sorted.iter())
            .map(|v| EngineLock::take(&v.disk).map_err(|e| lock_error(&v.locator, e, since())))
            .collect()
    }

    /// The rule. Says whether the volume is to be enabled on the way.
    fn decide(
        &self,
        machine: &Machine,
        state: &State,
        verb: Verb,
        asked: &Asked,
    ) -> Result<bool, EngineError> {
        let request = match verb {
            Verb::Take => Request::Take { replace: asked.replace },
            Verb::Restore => Request::Restore { consume: asked.consume },
            Verb::Delete => Request::Delete,
        };
        match decide(state, request) {
            Ok(()) => Ok(verb == Verb::Take && self.store.machine(&machine.name)?.is_none()),
            Err(Refusal::Disabled) if verb == Verb::Take && self.settings.enable_on_take => {
                Ok(true)
            }
            // A bare volume without a slot has nothing in it: that is what people want to hear.
            Err(Refusal::Disabled) if verb != Verb::Take => {
                Err(refused(&machine.name, Refusal::Empty))
            }
            Err(refusal) => Err(refused(&machine.name, refusal)),
        }
    }
}

/// QEMU's locks on every image: nobody else can have them open.
pub(crate) fn lock_images(volumes: &[Volume]) -> Result<Vec<ImageLock<'_>>, EngineError> {
    (volumes.iter())
        .map(|v| {
            ImageLock::exclusive(&v.disk).map_err(|e| match lock_error(&v.locator, e, None) {
                EngineError::Busy { volume, holders, .. } => EngineError::InUse { volume, holders },
                other => other,
            })
        })
        .collect()
}

pub(crate) fn look_at(
    volumes: &[Volume],
    plugins: &[Plugin<'_>],
) -> Result<Vec<Facts>, EngineError> {
    (volumes.iter().zip(plugins))
        .map(|(v, p)| p.inspect(&v.sight()).map_err(|e| EngineError::call(&v.locator, e)))
        .collect()
}

/// What the stages of one operation share.
pub(crate) struct Context<'e> {
    pub engine: &'e Engine,
    pub volumes: &'e [Volume],
    pub plugins: &'e [Plugin<'e>],
    pub observer: Observer<'e>,
}

impl<'e> Context<'e> {
    #[allow(clippy::too_many_arguments)]
    fn run(
        &self,
        machine: &Machine,
        state: &State,
        verb: Verb,
        asked: &Asked,
        facts: Vec<Facts>,
        enable: bool,
        done: &mut Done,
    ) -> Result<(), EngineError> {
        let store = &self.engine.store;
        let occupant = state.occupant();
        match verb {
            Verb::Take => {
                let new = new_occupant(asked)?;
                let goals = vec![
                    Goal::Held(NewSnapshot {
                        mark: new.mark.clone(),
                        taken_seconds: new.taken.seconds.cast_unsigned(),
                        taken_nanoseconds: new.taken.nanoseconds,
                    });
                    self.volumes.len()
                ];
                let planned = self.plan(facts, goals)?;
                if let Some(old) = occupant {
                    // The second half must be possible before the first is begun.
                    self.plan_removal(&old.mark)?;
                }
                if asked.dry_run {
                    done.volumes = planned.iter().map(|p| p.summary(self.engine, None)).collect();
                    return Ok(());
                }
                let replaced = occupant.map(|o| o.mark.clone());
                let meta = Meta::new(machine, verb, Some(new.clone()), replaced.clone());
                let after = self.carry_out(machine, &planned, &meta, done)?;
                if enable {
                    store.enable(&machine.name, &machine.volumes).map_err(|source| {
                        EngineError::Unrecorded { machine: machine.name.clone(), source }
                    })?;
                }
                let held = self.held(machine, &new, &after);
                self.record(machine, Some(&held), replaced.as_deref())?;
                self.end_journals();
                if let Some(old) = replaced {
                    self.remove_mark(machine, &old, &meta, done)
                        .and_then(|()| self.record(machine, Some(&held), None))
                        .map_err(|e| half_done(machine, "the new snapshot is taken", e))?;
                }
                done.slot = State::Held { occupant: held };
                Ok(())
            }
            Verb::Restore => {
                let Some(occupant) = occupant else {
                    return Err(refused(&machine.name, Refusal::Empty));
                };
                let goals = identities(&facts, &occupant.mark)
                    .into_iter()
                    .map(|s| s.map(|s| Goal::Restored(s.identity)))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| EngineError::Changed { machine: machine.name.clone() })?;
                let planned = self.plan(facts, goals)?;
                if asked.consume {
                    self.plan_removal(&occupant.mark)?;
                }
                if asked.dry_run {
                    done.volumes = planned.iter().map(|p| p.summary(self.engine, None)).collect();
                    return Ok(());
                }
                let consumed = asked.consume.then(|| occupant.mark.clone());
                let meta = Meta::new(machine, verb, Some(occupant.clone()), consumed.clone());
                self.carry_out(machine, &planned, &meta, done)?;
                if consumed.is_some() || machine.occupant.as_ref() != Some(occupant) {
                    self.record(machine, Some(occupant), consumed.as_deref())?;
                }
                self.end_journals();
                if let Some(mark) = consumed {
                    self.remove_mark(machine, &mark, &meta, done)
                        .and_then(|()| self.record(machine, None, None))
                        .map_err(|e| half_done(machine, "the content is restored", e))?;
                    done.slot = State::Empty;
                }
                Ok(())
            }
            Verb::Delete => {
                let mark = match state {
                    State::Held { occupant } => Some(occupant.mark.clone()),
                    State::Drifted { recorded, .. } => recorded.as_ref().map(|o| o.mark.clone()),
                    _ => None,
                };
                // Of a drifted slot, whatever parts are left.
                let marks: Vec<String> = match mark {
                    Some(mark) => vec![mark],
                    None => (facts.iter().flat_map(|f| &f.snapshots))
                        .filter_map(|s| s.mark.clone())
                        .collect(),
                };
                if asked.dry_run {
                    for mark in &marks {
                        let planned = self.plan_removal(mark)?;
                        done.volumes.extend(planned.iter().map(|p| p.summary(self.engine, None)));
                    }
                    return Ok(());
                }
                let meta = Meta::new(machine, verb, None, None);
                for mark in &marks {
                    self.remove_mark(machine, mark, &meta, done)?;
                }
                if marks.is_empty() {
                    // Otherwise each removal has recorded it, before its journal went.
                    self.record(machine, None, None)?;
                }
                // Another of ours may be there still: say what is, not what should be.
                let facts = look_at(self.volumes, self.plugins)?;
                let cleared = Machine { occupant: None, ..machine.clone() };
                let all: Vec<&Facts> = facts.iter().collect();
                done.slot = match derive(&cleared, true, &all, self.volumes) {
                    State::Disabled => State::Empty,
                    state => state,
                };
                Ok(())
            }
        }
    }

    /// Plans, checks and rehearses every volume before anything is done to any.
    fn plan(&self, facts: Vec<Facts>, goals: Vec<Goal>) -> Result<Vec<Planned<'e>>, EngineError> {
        let mut all = Vec::new();
        for (((volume, plugin), before), goal) in
            self.volumes.iter().zip(self.plugins).zip(facts).zip(goals)
        {
            all.push(self.plan_one(volume, plugin, before, goal)?);
        }
        Ok(all)
    }

    fn plan_one(
        &self,
        volume: &'e Volume,
        plugin: &'e Plugin<'e>,
        before: Facts,
        goal: Goal,
    ) -> Result<Planned<'e>, EngineError> {
        if let Some(finding) = before.findings.iter().find(|f| f.blocks) {
            let failure =
                Failure::new(FailureKind::Unsupported, &finding.code, finding.message.clone());
            return Err(EngineError::Backend {
                volume: volume.locator.to_string(),
                failure: Box::new(failure),
            });
        }
        let plan = plugin
            .plan(&volume.sight(), &goal)
            .map_err(|e| EngineError::call(&volume.locator, e))?;
        let name = &plugin.description().name;
        check(&plan, &*volume.disk)
            .map_err(|e| EngineError::unsafe_plan(&volume.locator, name, e))?;
        let plan = Arc::new(plan);
        let depth = self.engine.settings.rehearsal;
        rehearse(plugin, volume, &before, &plan, &goal, depth)?;
        Ok(Planned { volume, plugin, before, goal, plan })
    }

    /// Commit, execute, look again. On return the storage is as the goal says, and the journals
    /// are still there.
    fn carry_out(
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
        if let Err(error) = store.end(operation, now(), &outcome) {
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
        let changing: Vec<&Planned<'e>> = planned.iter().filter(|p| !p.plan.is_empty()).collect();
        if let Err(error) = commit(&changing, meta) {
            for p in &changing {
                // Best effort: the error that counts is the one at hand.
                let _ = p.volume.disk.release_reserve();
            }
            return Err(error);
        }
        let _held_back = HeldBack::new();
        // In step: first all seals, then all the work, then all seals off. So after a crash
        // either no volume is past its seal, and all can go back, or all are sealed, and all
        // can go on.
        let mut reports = vec![Report::default(); planned.len()];
        for stage in 0..3 {
            for (p, report) in planned.iter().zip(&mut reports) {
                let count = p.plan.phases().count();
                let phases = match stage {
                    0 => 0..1.min(count),
                    1 => 1.min(count)..count.saturating_sub(1).max(1).min(count),
                    _ => count.saturating_sub(1).max(1).min(count)..count,
                };
                let name = p.volume.locator.to_string();
                let part = execute_phases(&p.plan, phases, Redo::No, &*p.volume.disk, &|n, all| {
                    (self.observer)(&name, n, all);
                });
                report
                    .add(part.map_err(|source| EngineError::Interrupted { volume: name, source })?);
            }
        }
        let mut after = Vec::new();
        for (p, report) in planned.iter().zip(reports) {
            let name = p.volume.locator.to_string();
            done.changed |= report.flushes > 0;
            done.volumes.push(p.summary(self.engine, Some(report)));
            let facts = if p.plan.is_empty() {
                p.before.clone()
            } else {
                p.plugin.inspect(&p.volume.sight()).map_err(|e| EngineError::Unexpected {
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
        Ok(after)
    }

    fn plan_removal(&self, mark: &str) -> Result<Vec<Planned<'e>>, EngineError> {
        let facts = look_at(self.volumes, self.plugins)?;
        let mut planned = Vec::new();
        for ((volume, plugin), before) in self.volumes.iter().zip(self.plugins).zip(facts) {
            let found = before.snapshots.iter().find(|s| s.mark.as_deref() == Some(mark));
            if let Some(identity) = found.map(|s| s.identity.clone()) {
                planned.push(self.plan_one(volume, plugin, before, Goal::Empty(identity))?);
            }
        }
        Ok(planned)
    }

    /// Deletes the snapshots with this mark, as an operation of its own.
    pub(crate) fn remove_mark(
        &self,
        machine: &Machine,
        mark: &str,
        of: &Meta,
        done: &mut Done,
    ) -> Result<(), EngineError> {
        let planned = self.plan_removal(mark)?;
        let meta = of.removal();
        self.carry_out(machine, &planned, &meta, done)?;
        if of.verb == Verb::Delete.word() {
            self.record(machine, None, None)?;
        }
        self.end_journals();
        Ok(())
    }

    fn held(&self, machine: &Machine, new: &Occupant, after: &[Facts]) -> Occupant {
        let found: Vec<Option<&Snapshot>> = (after.iter())
            .map(|f| f.snapshots.iter().find(|s| s.mark.as_ref() == Some(&new.mark)))
            .collect();
        Occupant { parts: parts(machine, &found), ..new.clone() }
    }

    pub(crate) fn record(
        &self,
        machine: &Machine,
        occupant: Option<&Occupant>,
        pending: Option<&str>,
    ) -> Result<(), EngineError> {
        let files: Vec<FileId> = self.volumes.iter().map(|v| v.disk.id()).collect();
        self.engine
            .store
            .set_occupant(&machine.name, occupant, pending, &files)
            .map_err(|source| EngineError::Unrecorded { machine: machine.name.clone(), source })
    }

    /// Removes the journals, the decider's last. One that cannot be removed is recognised as done
    /// by the next command; those before it then stay too.
    pub(crate) fn end_journals(&self) {
        for (i, volume) in self.volumes.iter().enumerate().rev() {
            let journal = volume.journal();
            let removed = journal.remove().and_then(|()| {
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

/// Signals that would end the process wait until the change is through: a fraction of a second,
/// and nobody has to recover from an impatient Ctrl-C. Threads started meanwhile inherit it.
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

/// Sets room aside and makes every plan durable, or none.
fn commit(changing: &[&Planned<'_>], meta: &Meta) -> Result<(), EngineError> {
    for p in changing {
        reserve(&p.plan, &*p.volume.disk).map_err(|e| EngineError::disk(&p.volume.locator, e))?;
    }
    let decider = changing.first().map(|p| p.volume.locator.to_string());
    for (i, p) in changing.iter().enumerate().rev() {
        let before = before_seal(&p.plan, &*p.volume.disk)
            .map_err(|e| EngineError::disk(&p.volume.locator, e))?;
        let name = p.volume.locator.to_string();
        let text = meta.write(&name, decider.as_deref(), &p.goal, before);
        if let Err(source) = journal::commit(&p.volume.journal(), &text, &p.plan) {
            for written in &changing[i + 1..] {
                // Without the decider's journal these are of an operation that never began.
                let _ = written.volume.journal().remove();
            }
            return Err(EngineError::Journal { volume: name, source });
        }
    }
    Ok(())
}

impl Planned<'_> {
    fn summary(&self, engine: &Engine, report: Option<Report>) -> VolumeDone {
        let phases = (self.plan.phases())
            .map(|(title, steps)| PlannedPhase {
                title: title.to_owned(),
                steps: steps.iter().map(in_words).collect(),
                count: steps.len(),
                bytes: steps.iter().filter_map(Step::span).map(|(s, e)| e - s).sum(),
            })
            .collect();
        let restores = matches!(self.goal, Goal::Restored(_)) && !self.plan.is_empty();
        VolumeDone {
            volume: self.volume.locator.to_string(),
            plan: PlanDone {
                steps: self.plan.steps().len(),
                phases,
                rehearsal: engine.settings.rehearsal,
            },
            executed: report.map(|r| ReportDone {
                flushes: r.flushes,
                bytes_written: r.written,
                bytes_read: r.read,
            }),
            warnings: (self.before.findings.iter())
                .filter(|f| restores && !f.blocks)
                .map(|f| f.message.clone())
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
        Step::Barrier { title } => title.clone(),
    }
}

fn half_done(machine: &Machine, done: &'static str, error: EngineError) -> EngineError {
    EngineError::HalfDone { machine: machine.name.clone(), done, source: Box::new(error) }
}

fn identities(facts: &[Facts], mark: &str) -> Vec<Option<Snapshot>> {
    (facts.iter())
        .map(|f| f.snapshots.iter().find(|s| s.mark.as_deref() == Some(mark)).cloned())
        .collect()
}

fn new_occupant(asked: &Asked) -> Result<Occupant, EngineError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)
        .map_err(|e| EngineError::Usage(format!("the system has no randomness: {e}")))?;
    let taken: Moment = now();
    Ok(Occupant {
        mark: random.iter().map(|b| format!("{b:02x}")).collect(),
        taken,
        note: asked.note.clone(),
        // QEMU's locks are ours, none shared: nobody has the disk open.
        consistency: Consistency::Offline,
        parts: Vec::new(),
    })
}
