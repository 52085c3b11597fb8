//! Take, restore and delete.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use serde::Serialize;
use snapslot_command::Place;
use snapslot_disk::{Companion as _, EngineLock, Holder, ImageLock, LockError, PASSING};
use snapslot_runtime::{Facts, Goal, NewSnapshot, Plugin, Snapshot};
use snapslot_slot::{Consistency, Moment, NOTE_MAX, Occupant, Refusal, Request, State, decide};

use crate::carry::Planned;
use crate::engine::{Engine, refused};
use crate::error::EngineError;
use crate::meta::Meta;
use crate::rehearse::Depth;
use crate::status::{derive, image_lock_error, left_behind, lock_error, parts};
use crate::store::{Machine, Seen, StoreError};
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
    /// Take: room to set aside for what changes while it is held, where the storage wants it said.
    pub room: Option<Room>,
    /// Take: a whole copy may be made where nothing can be shared.
    pub full_copy: bool,
    /// Restore, delete: what the person was shown who said yes; none if nobody was asked.
    pub shown: Option<Shown>,
}

/// How much room to set aside for a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// So many bytes.
    Bytes(u64),
    /// So many percent of the volume's size.
    Percent(u32),
}

impl Room {
    pub(crate) fn of(self, size: u64) -> u64 {
        match self {
            Room::Bytes(bytes) => bytes,
            Room::Percent(percent) => {
                u64::try_from(u128::from(size) * u128::from(percent) / 100).unwrap_or(u64::MAX)
            }
        }
    }
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
    /// Commands run.
    pub commands: u64,
    /// Copies made, put back or removed.
    pub copies: u64,
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
        let result = self.operate_on(machine.clone(), verb, asked, observer, begun);
        match result {
            // What is left of a machine can be emptied.
            Err(error) if verb == Verb::Delete && error.is_not_found() => {
                match self.without_gone(&machine)? {
                    None => Err(error),
                    Some(rest) if rest.volumes.is_empty() => self.forget(&machine, asked),
                    Some(rest) => self.operate_on(rest, verb, asked, observer, begun),
                }
            }
            result => result,
        }
    }

    fn operate_on(
        &self,
        machine: Machine,
        verb: Verb,
        asked: &Asked,
        observer: Observer<'_>,
        begun: Instant,
    ) -> Result<Done, EngineError> {
        let locators = self.locators(&machine)?;
        let volumes = Volume::open_to_change(self, &locators)?;
        let _engine_locks = self.lock(&machine, &volumes)?;
        match asked.dry_run {
            true => self.refuse_interrupted(&machine, &volumes)?,
            false => drop(self.recover_locked(&machine, &volumes, observer)?),
        }
        // Recovery, or another process before the lock, may have changed the record.
        let recorded = self.store.machine(&machine.name)?;
        let known = recorded.is_some();
        let machine = recorded.map_or(machine.clone(), |m| m.with_volumes_of(&machine));
        self.refuse_claimed(&machine)?;
        let _image_locks = lock_images(&volumes)?;

        let plugins = self.plugins(&volumes)?;
        let context = Context::new(self, &volumes, &plugins, observer);
        let (facts, settled) = match asked.dry_run {
            true => (context.look_at_whole(&machine.name)?, Vec::new()),
            false => (context.look_at_settled(&machine.name))
                .map_err(|e| context.told(&machine.name, e))?,
        };
        let machine = match settled.is_empty() {
            true => machine,
            false => match self.store.machine(&machine.name)? {
                Some(recorded) => recorded.with_volumes_of(&machine),
                None => machine,
            },
        };
        let state = derive(&machine, known, &facts.iter().collect::<Vec<_>>(), &volumes);
        let enable = self.decide(&machine, &state, verb, asked)?;
        let _keeping = if enable { self.keep_plugins(&locators)? } else { None };
        let mark = state.occupant().map(|o| o.mark.clone());
        if asked.shown.as_ref().is_some_and(|shown| shown.mark != mark) {
            return Err(EngineError::Changed { machine: machine.name.clone() });
        }
        let mut done = Done::nothing(&machine.name);
        done.slot = state.clone();
        done.enabled = enable && !asked.dry_run;
        if !asked.dry_run {
            // From here on others are told what is going on, and since when.
            context.begun.set(Some(self.store.begin(&machine.name, verb.word(), self.now())?));
        }
        let result = context.run(&machine, &state, verb, asked, facts, enable, &mut done);
        context.end_unused(&result);
        done.elapsed_microseconds = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        result.map(|()| done)
    }

    /// One engine at a time, on every volume, in an order all engines share. A command that outlived
    /// its engine has its lock still, and is waited for a little.
    pub(crate) fn lock<'v>(
        &self,
        machine: &Machine,
        volumes: &'v [Volume],
    ) -> Result<Vec<EngineLock<'v>>, EngineError> {
        let mut sorted: Vec<&Volume> = volumes.iter().collect();
        sorted.sort_by_key(|v| v.locator.to_string());
        let begun = Instant::now();
        let lock = |v: &&'v Volume| loop {
            let failed = |e| lock_error(&v.locator, e, |who| self.since(&machine.name, who));
            match v.take_lock() {
                Err(LockError::Held { holders, .. })
                    if v.has_lock_file() && !EngineLock::has_engine(&v.lock).map_err(failed)? =>
                {
                    if begun.elapsed() > self.patience {
                        let volume = v.locator.to_string();
                        return Err(EngineError::LeftOver { volume, holders });
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                result => return result.map_err(failed),
            }
        };
        let mut locks: Vec<EngineLock<'v>> = sorted.iter().map(lock).collect::<Result<_, _>>()?;
        let mut devices: Vec<_> =
            volumes.iter().filter_map(|v| Some((v, v.device_lock.as_ref()?))).collect();
        devices.sort_by_key(|(_, lock)| lock.path().to_owned());
        for (volume, lock) in devices {
            let taken = EngineLock::take(lock);
            locks.push(taken.map_err(|e| lock_error(&volume.locator, e, |_| None))?);
        }
        Ok(locks)
    }

    /// On a dry run: says what a real one would recover first, and changes nothing.
    pub(crate) fn refuse_interrupted(
        &self,
        machine: &Machine,
        volumes: &[Volume],
    ) -> Result<(), EngineError> {
        let what = match volumes.iter().find_map(left_behind) {
            Some(meta) => format!("a {} of it was interrupted", meta.verb),
            None if machine.pending.is_some() => {
                "a snapshot that was replaced or consumed is still to be removed".to_owned()
            }
            None => return Ok(()),
        };
        Err(EngineError::Unrecovered { machine: machine.name.clone(), what })
    }

    /// Since when one of these is at work on the machine, if the record says.
    pub(crate) fn since(&self, machine: &str, workers: &[Holder]) -> Option<Moment> {
        let recorded = self.store.running(machine).ok().flatten()?;
        // Of processes that cannot be seen the record is believed.
        let at_it = workers.is_empty() || workers.iter().any(|w| w.pid == recorded.process);
        at_it.then_some(recorded.started)
    }

    /// Refuses a bare volume that has come to a machine of another name since it was looked up.
    fn refuse_claimed(&self, machine: &Machine) -> Result<(), EngineError> {
        for volume in &machine.volumes {
            if let Some(other) = self.store.machine_of(volume)?
                && other.name != machine.name
            {
                return Err(EngineError::Usage(format!(
                    "{volume} has just become a volume of the machine {}; nothing was changed",
                    other.name
                )));
            }
        }
        Ok(())
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
            Ok(()) if verb == Verb::Take && self.store.machine(&machine.name)?.is_none() => {
                // A snapshot of ours on a volume that has no slot here: to fill it anew gives it one.
                match self.settings.enable_on_take {
                    true => Ok(true),
                    false => Err(refused(&machine.name, Refusal::Disabled)),
                }
            }
            Ok(()) if verb == Verb::Restore && asked.consume && self.settings.enable_on_take => {
                Ok(self.store.machine(&machine.name)?.is_none())
            }
            Ok(()) => Ok(false),
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
    let mut images = Vec::new();
    for volume in volumes {
        if let Some(disk) = &volume.image
            && !volume.is_served()?
        {
            images.push((volume, disk));
        }
    }
    (images.into_iter())
        .map(|(v, disk)| ImageLock::exclusive(disk).map_err(|e| image_lock_error(&v.locator, e)))
        .collect()
}

/// Refuses to go on while somebody uses a device whose content is to be set back.
pub(crate) fn refuse_used(volumes: &[Volume]) -> Result<(), EngineError> {
    let begun = Instant::now();
    for volume in volumes {
        loop {
            let users = volume.users()?;
            if users.is_empty() {
                break;
            }
            if !users.only_looks() || begun.elapsed() > PASSING {
                return Err(EngineError::InUse { volume: volume.locator.to_string(), users });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

pub(crate) fn look_at(
    volumes: &[Volume],
    plugins: &[Plugin<'_>],
) -> Result<Vec<Facts>, EngineError> {
    (volumes.iter().zip(plugins))
        .map(|(v, p)| {
            v.suits(p)?;
            v.inspect(p)
        })
        .collect()
}

/// What the stages of one operation share.
pub(crate) struct Context<'e> {
    pub engine: &'e Engine,
    pub volumes: &'e [Volume],
    pub plugins: &'e [Plugin<'e>],
    pub observer: Observer<'e>,
    /// The storage's own identity of each volume, by the last look.
    pub identities: RefCell<Vec<Option<String>>>,
    /// The operation in the history that has begun and that nothing is carried out for yet.
    pub begun: Cell<Option<u64>>,
    /// The one that is done, and will be recorded so together with what it did.
    pub done: Cell<Option<u64>>,
    /// Whether ending what was interrupted has changed something.
    pub acted: Cell<bool>,
}

impl<'e> Context<'e> {
    pub fn new(
        engine: &'e Engine,
        volumes: &'e [Volume],
        plugins: &'e [Plugin<'e>],
        observer: Observer<'e>,
    ) -> Self {
        Context {
            engine,
            volumes,
            plugins,
            observer,
            identities: RefCell::default(),
            begun: Cell::new(None),
            done: Cell::new(None),
            acted: Cell::new(false),
        }
    }

    /// Looks; where storage without a seal shows something half done, ends that and looks again.
    /// Gives also the volumes on which that was so.
    pub fn look_at_settled(&self, name: &str) -> Result<(Vec<Facts>, Vec<String>), EngineError> {
        let (mut all, mut settled) = (Vec::new(), Vec::new());
        let looked_at = look_at(self.volumes, self.plugins)?;
        for ((volume, plugin), facts) in self.volumes.iter().zip(self.plugins).zip(looked_at) {
            let ended = self.settle(volume, plugin, facts)?;
            settled.extend(ended.any.then(|| volume.locator.to_string()));
            all.push(ended.facts);
            // Its own journal, if it was killed: nothing is half done any more.
            let _ = volume.rest_journal().remove();
        }
        self.saw(&all);
        if !settled.is_empty()
            && let Some(known) = self.engine.store.machine(name)?
        {
            // Ending a restore makes the volume another one, as the storage counts.
            self.record(&known, known.occupant.as_ref(), known.pending.as_deref())?;
        }
        Ok((all, settled))
    }

    /// Ends the operation that has begun if nothing was carried out for it.
    fn end_unused(&self, result: &Result<(), EngineError>) {
        if let Some(operation) = self.begun.take() {
            let outcome = result.as_ref().map_or_else(EngineError::code, |()| "done".to_owned());
            self.end(operation, &outcome);
        }
    }

    /// An operation is done. The record of what it did says so too: written at once, and flushed once.
    pub fn has_done(&self, operation: u64) {
        self.end_done();
        self.done.set(Some(operation));
    }

    /// Ends the operation that is done, if nothing was recorded of what it did.
    fn end_done(&self) {
        if let Some(operation) = self.done.take() {
            self.end(operation, "done");
        }
    }

    /// Ends an operation in the history. What was done is what counts: a history that cannot be written is
    /// told by its gap.
    pub fn end(&self, operation: u64, outcome: &str) {
        if let Err(error) = self.engine.store.end(operation, self.engine.now(), outcome) {
            tracing::warn!(%error, "the history could not be written");
        }
    }

    /// Looks, for a dry run: it ends nothing, and says what would have to be ended first.
    pub(crate) fn look_at_whole(&self, name: &str) -> Result<Vec<Facts>, EngineError> {
        let all = look_at(self.volumes, self.plugins)?;
        for ((volume, plugin), facts) in self.volumes.iter().zip(self.plugins).zip(&all) {
            let mut what = facts.unfinished.clone();
            if let (Some(copies), true) = (&volume.copies, plugin.description().copies.is_some()) {
                let found = copies.unfinished();
                what = found.map_err(|e| EngineError::copy(&volume.locator, &e))?;
            }
            if let Some(what) = what {
                return Err(EngineError::Unrecovered { machine: name.to_owned(), what });
            }
        }
        self.saw(&all);
        Ok(all)
    }

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
        let occupant = state.occupant();
        match verb {
            Verb::Take => {
                let new = self.new_occupant(asked)?;
                let sizes: Vec<u64> = facts.iter().map(|f| f.virtual_size).collect();
                let goal = |(at, size): (usize, &u64)| {
                    Goal::Held(NewSnapshot {
                        mark: new.mark.clone(),
                        taken_seconds: new.taken.seconds.cast_unsigned(),
                        taken_nanoseconds: new.taken.nanoseconds,
                        room: asked.room.map(|room| room.of(*size)),
                        beside: self.beside(at, &sizes, asked.room),
                        full_copy: asked.full_copy,
                    })
                };
                let goals = sizes.iter().enumerate().map(goal).collect();
                let planned = self.plan(facts, goals)?;
                let replaced = occupant.map(|o| o.mark.clone());
                if asked.dry_run {
                    return self.only_shown(&planned, replaced.as_deref(), done);
                }
                if let Some(old) = &replaced {
                    // The second half must be possible before the first is begun.
                    self.plan_removal(seen_before(&planned), old)?;
                }
                let meta = Meta::new(
                    self.engine.now(),
                    machine,
                    verb,
                    Some(new.clone()),
                    replaced.clone(),
                );
                let after = self.carry_out(machine, &planned, &meta, done)?;
                if replaced.is_none() {
                    self.engine.plugins_have_done();
                }
                if enable {
                    self.enable(machine)?;
                }
                let held = self.held(machine, &new, &after);
                self.record(machine, Some(&held), replaced.as_deref())?;
                self.end_journals();
                if let Some(old) = replaced {
                    self.remove_mark(machine, after, &old, &meta, done)
                        .and_then(|_| self.record(machine, Some(&held), None))
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
                    .map(|s| {
                        s.map(|s| match asked.consume {
                            true => Goal::Consumed(s.identity),
                            false => Goal::Restored(s.identity),
                        })
                    })
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| EngineError::Changed { machine: machine.name.clone() })?;
                if !asked.dry_run {
                    refuse_used(self.volumes)?;
                }
                let planned = self.plan(facts, goals)?;
                let consumed = asked.consume.then(|| occupant.mark.clone());
                if asked.dry_run {
                    return self.only_shown(&planned, consumed.as_deref(), done);
                }
                if asked.consume {
                    self.plan_removal(seen_before(&planned), &occupant.mark)?;
                }
                if enable {
                    // What is still to go afterwards must have a place in the record.
                    self.enable(machine)?;
                }
                let meta = Meta::new(
                    self.engine.now(),
                    machine,
                    verb,
                    Some(occupant.clone()),
                    consumed.clone(),
                );
                let after = self.carry_out(machine, &planned, &meta, done)?;
                if consumed.is_none() {
                    self.engine.plugins_have_done();
                }
                // A snapshot that had to be made again has another identity.
                let kept = self.held(machine, occupant, &after);
                let same = machine.occupant.as_ref() == Some(&kept) && machine.seen == self.seen();
                if consumed.is_some() || !same {
                    self.record(machine, Some(&kept), consumed.as_deref())?;
                }
                done.slot = State::Held { occupant: kept };
                self.end_journals();
                if let Some(mark) = consumed {
                    self.remove_mark(machine, after, &mark, &meta, done)
                        .and_then(|_| self.record(machine, None, None))
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
                        let planned = self.plan_removal(facts.clone(), mark)?;
                        done.volumes.extend(planned.iter().map(|p| p.summary(self.engine, None)));
                    }
                    return Ok(());
                }
                let meta = Meta::new(self.engine.now(), machine, verb, None, None);
                let (mut before, mut after) = (Some(facts), Vec::new());
                for mark in &marks {
                    let seen = match before.take() {
                        Some(facts) => facts,
                        None => look_at(self.volumes, self.plugins)?,
                    };
                    after = self.remove_mark(machine, seen, mark, &meta, done)?;
                }
                if marks.is_empty() {
                    // Otherwise each removal has recorded it, before its journal went.
                    self.record(machine, None, None)?;
                }
                // Another of ours may be there still: say what is, not what should be.
                let facts = match after.len() == self.volumes.len() {
                    true => after,
                    false => look_at(self.volumes, self.plugins)?,
                };
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

    /// Sums up what a dry run would do: these plans, and then the removal of what they replace or use up.
    fn only_shown(
        &self,
        planned: &[Planned<'e>],
        removed: Option<&str>,
        done: &mut Done,
    ) -> Result<(), EngineError> {
        let then = removed.map(|mark| self.plan_removal_after(planned, mark)).transpose()?;
        let all = planned.iter().chain(then.iter().flatten());
        done.volumes = all.map(|p| p.summary(self.engine, None)).collect();
        Ok(())
    }

    /// What the machine's other volumes that draw on the same room as this one want set aside.
    fn beside(&self, at: usize, sizes: &[u64], asked: Option<Room>) -> u64 {
        let group = |volume: &Volume| match &volume.locator.place {
            Place::LvmVolume { group, .. } => Some((volume.locator.backend.clone(), group.clone())),
            _ => None,
        };
        let ours = group(&self.volumes[at]);
        let others = self.volumes.iter().zip(sizes).enumerate();
        others
            .filter(|(i, (volume, _))| *i != at && ours.is_some() && group(volume) == ours)
            .map(|(_, (_, size))| asked.map_or(*size, |room| room.of(*size)))
            .fold(0, u64::saturating_add)
    }

    /// What is known of the machine now. Files are under QEMU's locks, none shared: nobody has
    /// them open. Devices may be in use: then the snapshot is what a power cut would leave.
    fn consistency(&self) -> Result<Consistency, EngineError> {
        for (volume, plugin) in self.volumes.iter().zip(self.plugins) {
            if !volume.users()?.is_empty() {
                return Ok(Consistency::Crash);
            }
            // A plain file may also be in use by the kernel, which takes none of QEMU's locks.
            if let (Some(copies), true) = (&volume.copies, plugin.description().copies.is_some()) {
                let user = copies.user().map_err(|e| EngineError::copy(&volume.locator, &e))?;
                if user.is_some() {
                    return Ok(Consistency::Crash);
                }
            }
        }
        Ok(Consistency::Offline)
    }

    fn new_occupant(&self, asked: &Asked) -> Result<Occupant, EngineError> {
        let consistency = self.consistency()?;
        Ok(Occupant {
            mark: self.engine.new_mark()?,
            taken: self.engine.now(),
            note: asked.note.clone(),
            consistency,
            parts: Vec::new(),
        })
    }

    /// Puts the machine into the record.
    fn enable(&self, machine: &Machine) -> Result<(), EngineError> {
        let unrecorded = |source| EngineError::Unrecorded { machine: machine.name.clone(), source };
        match self.engine.store.enable(&machine.name, &machine.volumes).map_err(unrecorded)? {
            true => Ok(()),
            // Whoever makes a slot has a share of our lock, so this is no race but a mistake.
            false => Err(unrecorded(StoreError::Claimed { volume: machine.volumes.join(", ") })),
        }
    }

    fn plan_removal(&self, facts: Vec<Facts>, mark: &str) -> Result<Vec<Planned<'e>>, EngineError> {
        let mut planned = Vec::new();
        for ((volume, plugin), before) in self.volumes.iter().zip(self.plugins).zip(facts) {
            let found = before.snapshots.iter().find(|s| s.mark.as_deref() == Some(mark));
            if let Some(identity) = found.map(|s| s.identity.clone()) {
                planned.push(self.plan_one(volume, plugin, before, Goal::Empty(identity))?);
            }
        }
        Ok(planned)
    }

    /// Deletes the snapshots with this mark, as an operation of its own, from what was seen last. Gives what is seen
    /// then of the volumes that had one.
    pub(crate) fn remove_mark(
        &self,
        machine: &Machine,
        facts: Vec<Facts>,
        mark: &str,
        of: &Meta,
        done: &mut Done,
    ) -> Result<Vec<Facts>, EngineError> {
        let planned = self.plan_removal(facts, mark)?;
        let meta = of.removal(self.engine.now(), mark);
        let after = self.carry_out(machine, &planned, &meta, done)?;
        if of.verb == Verb::Delete.word() {
            if after.len() == self.volumes.len() {
                // Hardly ever is there another mark to go; then they are asked anew.
                self.engine.plugins_have_done();
            }
            self.record(machine, None, None)?;
        }
        self.end_journals();
        Ok(after)
    }

    fn held(&self, machine: &Machine, new: &Occupant, after: &[Facts]) -> Occupant {
        let found: Vec<Option<&Snapshot>> = (after.iter())
            .map(|f| f.snapshots.iter().find(|s| s.mark.as_ref() == Some(&new.mark)))
            .collect();
        Occupant { parts: parts(machine, &found), ..new.clone() }
    }

    /// Which volumes these are, by the last look at each.
    fn seen(&self) -> Vec<Seen> {
        let identities = self.identities.borrow();
        (self.volumes.iter().enumerate())
            .map(|(i, volume)| Seen {
                file: volume.file_now(),
                identity: identities.get(i).cloned().flatten(),
            })
            .collect()
    }

    /// Remembers which volumes were looked at.
    pub(crate) fn saw(&self, facts: &[Facts]) {
        *self.identities.borrow_mut() = facts.iter().map(|f| f.identity.clone()).collect();
    }

    pub(crate) fn record(
        &self,
        machine: &Machine,
        occupant: Option<&Occupant>,
        pending: Option<&str>,
    ) -> Result<(), EngineError> {
        let seen = self.seen();
        let done = |operation| (operation, self.engine.now());
        self.engine
            .store
            .set_occupant(&machine.name, occupant, pending, &seen, self.done.get().map(done))
            .map_err(|source| EngineError::Unrecorded { machine: machine.name.clone(), source })?;
        self.done.set(None);
        Ok(())
    }
}

impl Drop for Context<'_> {
    fn drop(&mut self) {
        self.end_done();
    }
}

/// What was seen of the volumes when these plans were made.
fn seen_before(planned: &[Planned<'_>]) -> Vec<Facts> {
    planned.iter().map(|p| p.before.clone()).collect()
}

pub(crate) fn half_done(machine: &Machine, done: &'static str, error: EngineError) -> EngineError {
    EngineError::HalfDone { machine: machine.name.clone(), done, source: Box::new(error) }
}

fn identities(facts: &[Facts], mark: &str) -> Vec<Option<Snapshot>> {
    (facts.iter())
        .map(|f| f.snapshots.iter().find(|s| s.mark.as_deref() == Some(mark)).cloned())
        .collect()
}
