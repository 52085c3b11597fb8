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
//! Volumes go in step, and [`decide`](crate::decide) says whether all go back, seals being taken off
//! again, or all that have begun are carried on. Nothing is written to a volume whose seal is gone.
//!
//! Storage that is changed by commands or copies has no seal. There nothing is redone: what is
//! half done is ended by the storage's own look at it ([`Goal::Settled`]), and then
//!
//! | verb | a part is done if | then |
//! |---|---|---|
//! | take | the snapshot is there | on if all are done, else back: those that were taken are removed |
//! | delete | the snapshot is gone | on if one is done, else back |
//! | restore | its note says so ([`crate::part`]), or it was begun and has used the snapshot up | on if one was begun: a machine is never left with one disk of then and one of now |
//!
//! A restore of several volumes that used the snapshot of one up, and was cut off before that was
//! taken again, leaves no slot to go back to: the other volumes' snapshots go too, and the slot is
//! empty, as it is after the same with one volume. All disks have its content.
//!
//! An import onto a device has a note of its own, and is taken back or ended by it ([`crate::import`]).
//!
//! Of several volumes the first one's journal decides: it is written last and removed last, so
//! the others count only while it is there.

use serde::Serialize;
use snapslot_capture::journal::{self, Found};
use snapslot_capture::{Plan, Redo, Resume, Step, Way, check_shape, execute_phases, resume_at};
use snapslot_command::Place;
use snapslot_disk::{Companion, Disk, DiskError};
use snapslot_runtime::{Facts, Goal, Snapshot};
use snapslot_slot::{Occupant, State};

use crate::decide::{self, Aim, Direction, Progress};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::held;
use crate::import::is_noted;
use crate::locator::Locator;
use crate::meta::Meta;
use crate::operate::{Context, Done, Observer, Verb, lock_images, look_at, refuse_used};
use crate::others::Other;
use crate::status::{derive, parts};
use crate::store::Machine;
use crate::volume::{Volume, journal_of};

/// What stands in a journal that was left.
struct Left {
    meta: Meta,
    plan: Plan,
    /// Whether more than seals may have been written to images.
    work: bool,
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
        self.recover_watched(text, &|_, _, _| ())
    }

    /// The same, for who watches: a restore that goes on may have much to copy.
    pub fn recover_watched(
        &self,
        text: &str,
        observer: Observer<'_>,
    ) -> Result<Recovered, EngineError> {
        let (machine, known) = self.resolve(text)?;
        let locators = self.locators(&machine)?;
        let volumes = Volume::open_to_change(self, &locators)?;
        let _locks = self.lock(&machine, &volumes)?;
        held::let_go(&*self.commands, &self.settings.state_dir);
        let (mut finished, cleared) = self.recover_locked(&machine, &volumes, observer)?;
        // And what storage without a seal shows half done, without a journal that tells of it.
        let plugins = self.plugins(&volumes)?;
        let context = Context::new(self, &volumes, &plugins, observer);
        let looked = context.look_at_settled(&machine.name);
        let (facts, settled) = looked.map_err(|e| context.told(&machine.name, e))?;
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
        observer: Observer<'_>,
    ) -> Result<(Vec<String>, Vec<String>), EngineError> {
        for volume in volumes {
            held::let_go_of(volume, &*self.commands, &self.settings.state_dir);
        }
        let mut found = Vec::new();
        for volume in volumes {
            let name = volume.locator.to_string();
            let read = journal::read(&volume.journal());
            match read.map_err(|source| EngineError::Journal { volume: name, source })? {
                Found::Nothing => {}
                Found::Uncommitted => found.push((volume, None)),
                Found::Committed { meta, plan, work } => {
                    let meta = Meta::read(&meta).ok_or_else(|| EngineError::ForeignJournal {
                        volume: volume.locator.to_string(),
                        journal: volume.journal().name(),
                        why: "the journal beside it was not written by this program".to_owned(),
                    })?;
                    self.refuse_part(&meta, volume, volumes)?;
                    found.push((volume, Some(Left { meta, plan, work })));
                }
            }
        }
        let mut imports = false;
        for volume in volumes {
            imports |= is_noted(volume).map_err(|e| EngineError::disk(&volume.locator, e))?;
        }
        if found.is_empty() && machine.pending.is_none() && !imports {
            return Ok((Vec::new(), Vec::new()));
        }
        // Nobody may have the image open while we decide, nor while we write.
        let _locks = lock_images(volumes)?;
        let plugins = self.plugins(volumes)?;
        let context = Context::new(self, volumes, &plugins, observer);
        let ended = || -> Result<_, EngineError> {
            let (mut finished, cleared) = self.recover_found(machine, &context, &found)?;
            // While one is under way nothing else is, and there is no journal.
            finished.extend(context.end_imports(&machine.name)?);
            Ok((finished, cleared))
        };
        ended().map_err(|e| context.told(&machine.name, e))
    }

    /// Refuses to recover some of a machine's volumes without the others: journals that decide over all would
    /// be gone with them. Volumes that are not there any more are not waited for.
    fn refuse_part(
        &self,
        meta: &Meta,
        volume: &Volume,
        volumes: &[Volume],
    ) -> Result<(), EngineError> {
        let at_hand = |l: &Locator| volumes.iter().any(|v| v.locator == *l);
        let mut missing = Vec::new();
        for name in &meta.volumes {
            let Ok(there) = Locator::parse(name, self.backends()) else { continue };
            let places = [self.beside(&there, volume), Some(there)];
            let mut places = places.into_iter().flatten();
            if places.clone().any(|l| at_hand(&l)) {
                continue;
            }
            let exists = |l: &Locator| match l.path() {
                Some(path) => path.exists(),
                None => self.look(l).is_ok(),
            };
            if let Some(found) = places.find(exists) {
                missing.push(found.to_string());
            }
        }
        if missing.is_empty() || meta.volumes.len() < 2 {
            return Ok(());
        }
        let mut all: Vec<String> = volumes.iter().map(|v| v.locator.to_string()).collect();
        all.append(&mut missing);
        Err(EngineError::Together {
            volume: volume.locator.to_string(),
            verb: meta.verb.clone(),
            machine: meta.machine.clone(),
            all,
        })
    }

    /// A volume of the same file name in the folder of another: where it is if the machine's files were moved
    /// together.
    fn beside(&self, there: &Locator, volume: &Volume) -> Option<Locator> {
        let (name, path) = there.path()?.file_name().zip(volume.locator.path())?;
        Some(Locator {
            backend: there.backend.clone(),
            place: Place::Image(path.with_file_name(name)),
        })
    }

    /// Decides over these journals, and does what is to be done.
    fn recover_found(
        &self,
        machine: &Machine,
        context: &Context<'_>,
        found: &[(&Volume, Option<Left>)],
    ) -> Result<(Vec<String>, Vec<String>), EngineError> {
        let mut cleared = Vec::new();
        let mut first: Option<Meta> = None;
        let mut work = false;
        let mut begun = Vec::new();
        let mut others = Vec::new();
        for (volume, committed) in found {
            let name = volume.locator.to_string();
            let Some(Left { meta, plan, work: noted }) = committed else {
                cleared.push(name);
                continue;
            };
            first.get_or_insert_with(|| meta.clone());
            // Only the one that decides has the note; any that has it says the same.
            work |= noted;
            if plan.way() != Some(Way::Image) {
                let at = context.volumes.iter().position(|v| std::ptr::eq(v, *volume));
                let plugin = at.map(|i| &context.plugins[i]);
                if let (true, Some(plugin)) = (self.decided(meta, volume), plugin) {
                    others.push(Other::found(
                        context,
                        &context.volumes[at.unwrap_or(0)],
                        plugin,
                        meta,
                    )?);
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
        let images: Vec<Progress> = begun.iter().map(|(.., progress)| *progress).collect();
        let parts: Vec<decide::Part> = others.iter().map(Other::part).collect();
        let aim = match first.as_ref().map(Meta::goal) {
            Some(Goal::Held(_)) => Aim::Held,
            Some(Goal::Restored(_) | Goal::Consumed(_)) => Aim::Restored,
            Some(Goal::Empty(_) | Goal::Settled) | None => Aim::Empty,
        };
        let direction = decide::direction(&images, &parts, aim, work);
        if direction == Direction::On && others.iter().any(Other::is_to_be_restored) {
            refuse_used(context.volumes)?;
        }
        let mut finished = Vec::new();
        for (volume, meta, plan, progress) in &begun {
            let name = volume.locator.to_string();
            match progress {
                Progress::Behind(_) if direction == Direction::Back => {
                    let before = from_hex(&meta.before).unwrap_or_default();
                    unseal(volume, plan, &before)?;
                    cleared.push(name);
                }
                Progress::Behind(_) => finished.push(name),
                Progress::NotBegun | Progress::Done | Progress::Overtaken => cleared.push(name),
            }
        }
        if direction == Direction::On {
            carry_on(&begun)?;
        }
        let mut brought = false;
        for other in &others {
            let did = other.bring(context, direction)?;
            brought |= did;
            let list = if did || other.settled { &mut finished } else { &mut cleared };
            list.push(other.volume.locator.to_string());
        }
        let went_on = begun.iter().any(|(.., p)| matches!(p, Progress::Done))
            || (direction == Direction::On && (brought || others.iter().any(|o| o.done)))
            || (direction == Direction::On && !begun.is_empty() && !finished.is_empty());
        let left = left_behind(&begun, &others);
        let restores = first.as_ref().is_some_and(|meta| meta.verb == Verb::Restore.word());
        self.follow(machine, context, first, went_on)?;
        if let Some(left) = self.store.running(&machine.name)? {
            let outcome = if went_on { "recovered" } else { "never-began" };
            self.store.end(left.operation, self.now(), outcome)?;
        }
        if went_on && restores && !left.is_empty() {
            return Err(EngineError::Mixed { machine: machine.name.clone(), left });
        }
        Ok((finished, cleared))
    }

    /// Whether the journal that decides over this one is there, whole: where it was, or beside
    /// this volume if the machine's files were moved together.
    fn decided(&self, meta: &Meta, volume: &Volume) -> bool {
        let Some(decider) = meta.decider.as_ref().filter(|d| **d != meta.volume) else {
            return true;
        };
        let Ok(there) = Locator::parse(decider, self.backends()) else { return false };
        let here = self.beside(&there, volume);
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
        let second = Meta { verb: "recover".to_owned(), ..meta.removal(self.now(), mark) };
        let facts = look_at(context.volumes, context.plugins)?;
        context.remove_mark(machine, facts, mark, &second, &mut done)?;
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
            ("restore", Some((occupant, parts))) => {
                // The journal vouches for a part that was made again under the same mark.
                let consumed = meta.then_remove.clone().filter(|_| redone);
                let pending = consumed.or_else(still_pending);
                let kept = Occupant { parts, ..occupant.clone() };
                context.record(machine, Some(&kept), pending.as_deref())
            }
            // A volume's snapshot was used up: what is left of the slot goes with it.
            ("restore", None)
                if redone
                    && let Some(mark) = partly(facts, meta.occupant.as_ref().map(|o| &o.mark)) =>
            {
                context.record(machine, None, Some(&mark))
            }
            // One volume was overtaken while the others went on: what they got is taken back.
            ("take", None)
                if let Some(mark) = partly(facts, meta.occupant.as_ref().map(|o| &o.mark)) =>
            {
                if known.is_none() {
                    self.store.enable(&machine.name, &machine.volumes)?;
                }
                let kept = known.as_ref().and_then(|m| m.occupant.as_ref());
                context.record(machine, kept, Some(&mark))
            }
            // The same of a delete: what is left on a volume goes too.
            ("delete", _) if redone && let Some(mark) = partly(facts, meta.mark.as_ref()) => {
                context.record(machine, None, Some(&mark))
            }
            ("delete" | "restore", _) => match known {
                // What is left of it was to go, and still is.
                Some(m) if m.occupant.as_ref().is_some_and(|o| there(&o.mark).is_none()) => {
                    context.record(machine, None, m.pending.as_deref())
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

/// The mark, where some volumes have its snapshot.
fn partly(facts: &[Facts], mark: Option<&String>) -> Option<String> {
    let mark = mark?;
    let has = |f: &Facts| f.snapshots.iter().any(|s| s.mark.as_ref() == Some(mark));
    facts.iter().any(has).then(|| mark.clone())
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

type Begun<'a> = (&'a Volume, &'a Meta, &'a Plan, Progress);

/// Volumes on which the operation does not go on, whatever becomes of the others.
fn left_behind(begun: &[Begun<'_>], others: &[Other<'_>]) -> Vec<String> {
    let images =
        begun.iter().filter(|(.., p)| matches!(p, Progress::NotBegun | Progress::Overtaken));
    let hopeless = others.iter().filter(|o| o.hopeless).map(|o| o.volume.locator.to_string());
    images.map(|(volume, ..)| volume.locator.to_string()).chain(hopeless).collect()
}

/// Carries all volumes on, in step.
fn carry_on(begun: &[Begun<'_>]) -> Result<(), EngineError> {
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
