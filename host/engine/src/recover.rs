//! After a crash: the journals decide.
//!
//! A journal without a valid commit record is of an operation that never began. For each volume
//! with a committed one, the sector of the plan's seal tells how far it came:
//!
//! | the sector is | then this volume |
//! |---|---|
//! | what it was before the plan | has not begun |
//! | what phase *n* wrote, sealed | is in or behind phase *n* |
//! | what the last phase wrote | is done |
//! | something else, not sealed | was overtaken: another program repaired it by its own rules |
//!
//! Volumes go in step: seals first, then the work, then seals off. So if one has not begun (or
//! was overtaken) and none is past its seal, all go back: seals are taken off again. Otherwise
//! all that have begun are carried on. Nothing is written to a volume whose seal is gone.
//!
//! Storage that is changed by commands or copies has no seal. There nothing is redone: what is
//! half done is ended by the storage's own look at it ([`Goal::Settled`]), and then
//!
//! | verb | a part is done if | where some are done and some are not |
//! |---|---|---|
//! | take | the snapshot is there | back: those that were taken are removed |
//! | delete | the snapshot is gone | on |
//! | restore | its marker says so | on: a machine is never left with one disk of then and one of now |
//!
//! Of several volumes the first one's journal decides: it is written last and removed last, so
//! the others count only while it is there.

use serde::{Deserialize, Serialize};
use snapslot_capture::journal::{self, Found};
use snapslot_capture::{Plan, Redo, Resume, Step, Way, check_shape, execute_phases, resume_at};
use snapslot_command::Place;
use snapslot_disk::{Companion, Disk, DiskError};
use snapslot_runtime::{Facts, Goal, NewSnapshot, Plugin, Snapshot};
use snapslot_slot::{Moment, Occupant, Running, State};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::locator::Locator;
use crate::operate::{Context, Done, Verb, lock_images, refuse_used};
use crate::status::{derive, parts};
use crate::store::Machine;
use crate::volume::{Volume, journal_of};

/// What the engine writes into a journal with the plan.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Meta {
    pub verb: String,
    pub machine: String,
    pub volumes: Vec<String>,
    pub started: Moment,
    pub process: u32,
    /// The occupant the verb is about: the new one of a take, the present one of a restore.
    pub occupant: Option<Occupant>,
    /// A mark whose snapshots go after this plan: what a take replaces, a restore consumes.
    pub then_remove: Option<String>,
    #[serde(default)]
    pub volume: String,
    #[serde(default)]
    pub decider: Option<String>,
    #[serde(default)]
    pub goal: String,
    /// The bytes that the plan's last phase overwrites, as they were, in hexadecimal.
    #[serde(default)]
    pub before: String,
}

impl Meta {
    pub fn new(
        started: Moment,
        machine: &Machine,
        verb: Verb,
        occupant: Option<Occupant>,
        then_remove: Option<String>,
    ) -> Meta {
        Meta {
            verb: verb.word().to_owned(),
            machine: machine.name.clone(),
            volumes: machine.volumes.clone(),
            started,
            process: std::process::id(),
            occupant,
            then_remove,
            volume: String::new(),
            decider: None,
            goal: String::new(),
            before: String::new(),
        }
    }

    /// The second half of an operation: the same verb, nothing after it.
    pub fn removal(&self, started: Moment) -> Meta {
        Meta { then_remove: None, started, ..self.clone() }
    }

    pub fn write(
        &self,
        volume: &str,
        decider: Option<&str>,
        goal: &Goal,
        before: Vec<u8>,
    ) -> Vec<u8> {
        let goal = match goal {
            Goal::Held(new) => format!("held {}", new.mark),
            Goal::Restored(identity) => format!("restored {identity}"),
            Goal::Empty(identity) => format!("empty {identity}"),
            Goal::Settled => "settled".to_owned(),
        };
        let meta = Meta {
            volume: volume.to_owned(),
            decider: decider.map(ToOwned::to_owned),
            goal,
            before: before.iter().map(|b| format!("{b:02x}")).collect(),
            ..self.clone()
        };
        serde_json::to_vec(&meta).unwrap_or_default()
    }

    pub fn read(bytes: &[u8]) -> Option<Meta> {
        serde_json::from_slice(bytes).ok()
    }

    pub fn running(&self, process: Option<u32>) -> Running {
        Running { operation: 0, since: self.started, process }
    }
}

/// What recovery did to a machine.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Recovered {
    /// The machine.
    pub machine: String,
    /// Its slot now.
    pub slot: State,
    /// Volumes on which an interrupted change was finished.
    pub finished: Vec<String>,
    /// Volumes from which the journal of a change that never began, or had ended, was removed.
    pub cleared: Vec<String>,
}

impl Engine {
    /// Finishes what was interrupted.
    pub fn recover(&self, text: &str) -> Result<Recovered, EngineError> {
        let (machine, known) = self.resolve(text)?;
        let locators = self.locators(&machine)?;
        let volumes = Volume::open_to_change(self, &locators)?;
        let _locks = self.lock(&machine, &volumes)?;
        let (mut finished, cleared) = self.recover_locked(&machine, &volumes)?;
        // And what storage without a seal shows half done, without a journal that tells of it.
        let plugins = self.plugins(&volumes)?;
        let context = Context::new(self, &volumes, &plugins, &|_, _, _| ());
        let (facts, settled) = context.look_at_settled(&machine.name)?;
        finished.extend(settled);
        finished.dedup();
        let recorded = self.store.machine(&machine.name)?;
        let known = known || recorded.is_some();
        let machine = recorded.unwrap_or(machine);
        let slot = derive(&machine, known, &facts.iter().collect::<Vec<_>>(), &volumes);
        Ok(Recovered { machine: machine.name, slot, finished, cleared })
    }

    /// The same under locks that the caller holds: volumes finished, volumes cleared.
    pub(crate) fn recover_locked(
        &self,
        machine: &Machine,
        volumes: &[Volume],
    ) -> Result<(Vec<String>, Vec<String>), EngineError> {
        let mut found = Vec::new();
        for volume in volumes {
            let name = volume.locator.to_string();
            let read = journal::read(&volume.journal());
            match read.map_err(|source| EngineError::Journal { volume: name, source })? {
                Found::Nothing => {}
                Found::Uncommitted => found.push((volume, None)),
                Found::Committed { meta, plan } => {
                    let meta = Meta::read(&meta).ok_or_else(|| EngineError::ForeignJournal {
                        volume: volume.locator.to_string(),
                        journal: volume.journal().name(),
                        why: "the journal beside it was not written by this program".to_owned(),
                    })?;
                    found.push((volume, Some((meta, plan))));
                }
            }
        }
        if found.is_empty() && machine.pending.is_none() {
            return Ok((Vec::new(), Vec::new()));
        }
        // Nobody may have the image open while we decide, nor while we write.
        let locks = lock_images(volumes)?;
        let plugins = self.plugins(volumes)?;
        let context = Context::new(self, volumes, &plugins, &|_, _, _| ());
        let mut cleared = Vec::new();
        let mut first: Option<Meta> = None;
        let mut begun = Vec::new();
        let mut others = Vec::new();
        for (volume, committed) in &found {
            let name = volume.locator.to_string();
            let Some((meta, plan)) = committed else {
                cleared.push(name);
                continue;
            };
            first.get_or_insert_with(|| meta.clone());
            if plan.way() != Some(Way::Image) {
                let at = volumes.iter().position(|v| std::ptr::eq(v, *volume));
                if let (true, Some(plugin)) = (self.decided(meta, volume), at.map(|i| &plugins[i]))
                {
                    others.push(Other::found(&context, volume, plugin, meta)?);
                } else {
                    cleared.push(name);
                }
                continue;
            }
            let progress = progress(volume, plan, meta)?;
            if self.decided(meta, volume) {
                begun.push((*volume, meta, plan, progress));
            } else if matches!(progress, Progress::Behind(_)) {
                return Err(foreign(
                    volume,
                    "the journal beside it is one of several and the one that decides is not in \
                     its place; put all files of the machine back where they were",
                ));
            } else {
                cleared.push(name);
            }
        }
        let direction = direction(&begun, &others);
        let mut finished = Vec::new();
        for (volume, meta, plan, progress) in &begun {
            match progress {
                Progress::Behind(_) if direction == Direction::Back => {
                    let before = from_hex(&meta.before).unwrap_or_default();
                    unseal(volume, plan, &before)?;
                    cleared.push(volume.locator.to_string());
                }
                Progress::Behind(_) => finished.push(volume.locator.to_string()),
                Progress::NotBegun | Progress::Done | Progress::Overtaken => {
                    cleared.push(volume.locator.to_string());
                }
            }
        }
        let pending = others.iter().any(|o| !o.done && matches!(o.goal, Goal::Restored(_)));
        if direction == Direction::On && pending {
            refuse_used(volumes)?;
        }
        if direction == Direction::On {
            carry_on(&begun)?;
        }
        let mut brought = false;
        for other in &others {
            let did = other.bring(&context, direction)?;
            brought |= did;
            let list = if did || other.settled { &mut finished } else { &mut cleared };
            list.push(other.volume.locator.to_string());
        }
        let went_on = begun.iter().any(|(.., p)| matches!(p, Progress::Done))
            || (direction == Direction::On && (brought || others.iter().any(|o| o.done)))
            || (direction == Direction::On && !begun.is_empty() && !finished.is_empty());
        self.follow(machine, &context, first, went_on)?;
        if let Some(left) = self.store.running(&machine.name)? {
            let outcome = if went_on { "recovered" } else { "never-began" };
            self.store.end(left.operation, self.now(), outcome)?;
        }
        drop(locks);
        Ok((finished, cleared))
    }

    /// Whether the journal that decides over this one is there, whole: where it was, or beside
    /// this volume if the machine's files were moved together.
    fn decided(&self, meta: &Meta, volume: &Volume) -> bool {
        let Some(decider) = meta.decider.as_ref().filter(|d| **d != meta.volume) else {
            return true;
        };
        let Ok(there) = Locator::parse(decider, self.backends()) else { return false };
        let moved = there.path().and_then(|p| p.file_name()).zip(volume.locator.path());
        let here = moved.map(|(name, path)| Locator {
            backend: there.backend.clone(),
            place: Place::Image(path.with_file_name(name)),
        });
        [Some(there), here].into_iter().flatten().any(|locator| {
            match journal::read(&journal_of(&locator, &self.settings.state_dir)) {
                Ok(Found::Committed { meta: bytes, .. }) => Meta::read(&bytes)
                    .is_some_and(|m| m.started == meta.started && m.process == meta.process),
                _ => false,
            }
        })
    }

    /// The record follows the storage; journals go; what was to come after is done.
    fn follow(
        &self,
        machine: &Machine,
        context: &Context<'_>,
        meta: Option<Meta>,
        redone: bool,
    ) -> Result<(), EngineError> {
        let (facts, _) = context.look_at_settled(&machine.name)?;
        if let Some(meta) = &meta {
            self.follow_storage(machine, context, meta, &facts, redone)?;
        }
        context.end_journals();
        // A second half that was still to come: the snapshot that was replaced or consumed goes.
        let Some(known) = self.store.machine(&machine.name)? else { return Ok(()) };
        let Some(mark) = &known.pending else { return Ok(()) };
        let mut done = Done::nothing(&machine.name);
        let meta = meta.unwrap_or_else(|| Meta::new(self.now(), machine, Verb::Delete, None, None));
        let second = Meta { verb: "recover".to_owned(), ..meta.removal(self.now()) };
        context.remove_mark(machine, mark, &second, &mut done)?;
        let kept = known.occupant.filter(|o| o.mark != *mark);
        context.record(machine, kept.as_ref(), None)
    }

    fn follow_storage(
        &self,
        machine: &Machine,
        context: &Context<'_>,
        meta: &Meta,
        facts: &[Facts],
        redone: bool,
    ) -> Result<(), EngineError> {
        let there = |mark: &str| {
            let found: Vec<Option<&Snapshot>> = (facts.iter())
                .map(|f| f.snapshots.iter().find(|s| s.mark.as_deref() == Some(mark)))
                .collect();
            found.iter().all(Option::is_some).then(|| parts(machine, &found))
        };
        let known = self.store.machine(&machine.name)?;
        let still_pending = || known.as_ref().and_then(|m| m.pending.clone());
        let about = meta.occupant.as_ref().and_then(|o| Some((o, there(&o.mark)?)));
        match (meta.verb.as_str(), about) {
            ("take", Some((occupant, parts))) => {
                if known.is_none() {
                    self.store.enable(&machine.name, &machine.volumes)?;
                }
                let pending = meta.then_remove.clone().or_else(still_pending);
                let pending = pending.filter(|mark| *mark != occupant.mark);
                let held = Occupant { parts, ..occupant.clone() };
                context.record(machine, Some(&held), pending.as_deref())
            }
            ("restore", Some((occupant, parts))) if redone => {
                let pending = meta.then_remove.clone().or_else(still_pending);
                let kept = Occupant { parts, ..occupant.clone() };
                context.record(machine, Some(&kept), pending.as_deref())
            }
            ("delete" | "restore", _) => match known {
                Some(m) if m.occupant.as_ref().is_some_and(|o| there(&o.mark).is_none()) => {
                    context.record(machine, None, None)
                }
                // What the interrupted change made another volume of, as the storage counts, is
                // the machine's volume still: the journal vouches for it.
                Some(m) => context.record(machine, m.occupant.as_ref(), m.pending.as_deref()),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// How far a volume's plan came.
enum Progress {
    NotBegun,
    /// In or behind this phase, sealed.
    Behind(usize),
    Done,
    Overtaken,
}

fn foreign(volume: &Volume, why: &str) -> EngineError {
    EngineError::ForeignJournal {
        volume: volume.locator.to_string(),
        journal: volume.journal().name(),
        why: why.to_owned(),
    }
}

fn progress(volume: &Volume, plan: &Plan, meta: &Meta) -> Result<Progress, EngineError> {
    let failed = |e| EngineError::disk(&volume.locator, e);
    match resume_at(plan, &**volume.disk()?).map_err(failed)? {
        Resume::From(phase) => {
            check_shape(plan, &**volume.disk()?).map_err(|e| {
                foreign(volume, &format!("the plan in its journal does not fit: {e}"))
            })?;
            return Ok(Progress::Behind(phase));
        }
        Resume::Foreign => {
            return Err(foreign(
                volume,
                "the image bears the seal of an interrupted change, but not of the one in the journal",
            ));
        }
        Resume::Void => {}
    }
    let Some((offset, last)) = last_write(plan) else { return Ok(Progress::Overtaken) };
    let mut now = vec![0; last.len()];
    if volume.disk()?.read_at(offset, &mut now).is_err() {
        return Ok(Progress::Overtaken);
    }
    Ok(if now == last {
        Progress::Done
    } else if Some(now) == from_hex(&meta.before) {
        Progress::NotBegun
    } else {
        Progress::Overtaken
    })
}

/// The one write of a sealed plan's last phase.
fn last_write(plan: &Plan) -> Option<(u64, &[u8])> {
    plan.seal()?;
    match plan.phases().last()?.1 {
        [Step::Write { offset, data }] => Some((*offset, data)),
        _ => None,
    }
}

/// The bytes that the plan's last phase overwrites, as they are now.
pub(crate) fn before_seal(plan: &Plan, disk: &dyn Disk) -> Result<Vec<u8>, DiskError> {
    let Some((offset, data)) = last_write(plan) else { return Ok(Vec::new()) };
    let mut before = vec![0; data.len()];
    disk.read_at(offset, &mut before)?;
    Ok(before)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().as_chunks::<2>().0;
    let pair = |p: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(p).ok()?, 16).ok();
    pairs.iter().map(pair).collect()
}

/// Takes the seal off a volume on which nothing else was done: `before` is what its first write
/// overwrote.
pub(crate) fn unseal(volume: &Volume, plan: &Plan, before: &[u8]) -> Result<(), EngineError> {
    let Some((offset, last)) = last_write(plan) else {
        return Err(foreign(volume, "its journal does not say what was there before"));
    };
    if before.len() != last.len() {
        return Err(foreign(volume, "its journal contradicts itself"));
    }
    let disk = volume.disk()?;
    disk.write_at(offset, before)
        .and_then(|()| disk.flush())
        .map_err(|e| EngineError::disk(&volume.locator, e))
}

/// Where an interrupted operation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Back,
    On,
}

fn direction(begun: &[(&Volume, &Meta, &Plan, Progress)], others: &[Other<'_>]) -> Direction {
    let held_back =
        begun.iter().any(|(.., p)| matches!(p, Progress::NotBegun | Progress::Overtaken));
    let past_seal = begun.iter().any(|(.., p)| matches!(p, Progress::Behind(1..) | Progress::Done));
    let some_done = others.iter().any(|o| o.done);
    let all_done = others.iter().all(|o| o.done);
    let on = match others.first().map(|o| &o.goal) {
        None => past_seal || !held_back,
        // Commands of a take come before the work on images, and can be taken back.
        Some(Goal::Held(_)) => past_seal || (!held_back && all_done),
        Some(Goal::Restored(_)) => past_seal || some_done,
        // Commands of a delete come last.
        Some(Goal::Empty(_) | Goal::Settled) => past_seal || some_done,
    };
    if on { Direction::On } else { Direction::Back }
}

/// A volume whose storage has no seal, after what was half done there has been ended.
struct Other<'e> {
    volume: &'e Volume,
    plugin: &'e Plugin<'e>,
    /// What it shows, with nothing half done.
    facts: Facts,
    goal: Goal,
    /// Whether its part is done.
    done: bool,
    /// Whether something had to be ended.
    settled: bool,
}

impl<'e> Other<'e> {
    fn found(
        context: &Context<'e>,
        volume: &'e Volume,
        plugin: &'e Plugin<'e>,
        meta: &Meta,
    ) -> Result<Other<'e>, EngineError> {
        let (facts, settled) = context.settle(volume, plugin, volume.inspect(plugin)?)?;
        let goal = match meta.goal.split_once(' ') {
            Some(("held", mark)) => Goal::Held(NewSnapshot {
                mark: mark.to_owned(),
                taken_seconds: meta.started.seconds.cast_unsigned(),
                taken_nanoseconds: meta.started.nanoseconds,
                room: None,
                full_copy: false,
            }),
            Some(("restored", identity)) => Goal::Restored(identity.to_owned()),
            Some(("empty", identity)) => Goal::Empty(identity.to_owned()),
            _ => Goal::Settled,
        };
        let has = |wanted: &dyn Fn(&Snapshot) -> bool| facts.snapshots.iter().any(wanted);
        let done = match &goal {
            Goal::Held(new) => has(&|s| s.mark.as_ref() == Some(&new.mark)),
            Goal::Empty(identity) => !has(&|s| s.identity == *identity),
            Goal::Restored(_) => {
                let marker = volume.done_marker().open();
                marker.map_err(|e| EngineError::disk(&volume.locator, e))?.is_some()
            }
            Goal::Settled => true,
        };
        Ok(Other { volume, plugin, facts, goal, done, settled })
    }

    /// Takes its part back, or does it. Gives whether anything was done.
    fn bring(&self, context: &Context<'e>, direction: Direction) -> Result<bool, EngineError> {
        let facts = self.facts.clone();
        match (direction, &self.goal, self.done) {
            (Direction::On, Goal::Restored(_) | Goal::Empty(_), false) => {
                let goal = self.goal.clone();
                context.plan_one(self.volume, self.plugin, facts, goal)?.run_rest()?;
                Ok(true)
            }
            (Direction::Back, Goal::Held(new), true) => {
                context.take_back(self.volume, self.plugin, facts, &new.mark)
            }
            _ => Ok(false),
        }
    }
}

/// Carries all volumes on, in step.
fn carry_on(begun: &[(&Volume, &Meta, &Plan, Progress)]) -> Result<(), EngineError> {
    for last in [false, true] {
        for (volume, meta, plan, progress) in begun {
            let Progress::Behind(phase) = progress else { continue };
            let name = volume.locator.to_string();
            let count = plan.phases().count();
            let phases = if last { count - 1..count } else { *phase..count - 1 };
            tracing::info!(volume = %name, verb = %meta.verb, ?phases, "an interrupted change is carried on");
            execute_phases(plan, phases, Redo::Yes, &**volume.disk()?, &|_, _| ())
                .map_err(|source| EngineError::Interrupted { volume: name, source })?;
        }
    }
    Ok(())
}
