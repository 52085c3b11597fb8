//! What a machine's slot is now: storage and record, side by side.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use snapslot_capture::journal::{self, Found};
use snapslot_disk::{EngineLock, FileId, Holder, LockError, Users, probe_writer};
use snapslot_runtime::{Change, Facts, Finding, Snapshot};
use snapslot_slot::{Consistency, Drift, Moment, Occupant, Part, Running, State};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::import::import_left;
use crate::locator::Locator;
use crate::looks::Looks;
use crate::meta::Meta;
use crate::store::Machine;
use crate::volume::Volume;

/// A snapshot found in a volume.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct FoundSnapshot {
    /// The storage's own identity of it.
    pub identity: String,
    /// The name the storage's own tools show.
    pub name: String,
    /// The slot's mark, if it is one of ours.
    pub mark: Option<String>,
    /// When it was taken, as the storage has it.
    pub taken: Moment,
    /// Guest-visible size then, in bytes.
    pub virtual_size: u64,
    /// Bytes of saved machine memory that come with it.
    pub vm_state_size: u64,
    /// Whether its content is gone.
    pub lost: bool,
}

impl From<Snapshot> for FoundSnapshot {
    fn from(s: Snapshot) -> Self {
        FoundSnapshot {
            taken: taken(&s),
            identity: s.identity,
            name: s.name,
            mark: s.mark,
            virtual_size: s.virtual_size,
            vm_state_size: s.vm_state_size,
            lost: s.lost,
        }
    }
}

fn taken(snapshot: &Snapshot) -> Moment {
    Moment {
        seconds: i64::try_from(snapshot.taken_seconds).unwrap_or(i64::MAX),
        nanoseconds: snapshot.taken_nanoseconds,
    }
}

/// A volume, looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VolumeStatus {
    /// Its locator.
    pub volume: String,
    /// Guest-visible size in bytes.
    pub virtual_size: u64,
    /// The format in a few words.
    pub format: String,
    /// Every snapshot found.
    pub snapshots: Vec<FoundSnapshot>,
    /// Health.
    pub findings: Vec<Finding>,
    /// Who uses it; none: nobody does. Empty: somebody we cannot see.
    #[serde(skip)]
    pub users: Option<Users>,
    /// Whether somebody has it open: an image for writing, a device at all.
    pub in_use: bool,
    /// Guest bytes that a restore would set back.
    pub changed_bytes: Option<u64>,
    /// Bytes of storage that only the snapshot holds.
    pub held_bytes: Option<u64>,
    /// Whether both may be more, because not all was looked at.
    pub at_least: bool,
    /// Engines at work on it, by process id; empty: none that can be seen.
    pub worked_on_by: Vec<u32>,
    /// The same, for people; none: nobody is at work on it.
    #[serde(skip)]
    pub workers: Option<Vec<Holder>>,
    /// Whether a change of it was interrupted.
    pub interrupted: bool,
    /// What is half done, where the storage itself shows it.
    pub unfinished: Option<String>,
}

/// A machine, looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// The machine's name.
    pub machine: String,
    /// What its slot is.
    pub slot: State,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// Whether it is measured how far a machine has moved from its snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// No.
    Not,
    /// As far as a few milliseconds show.
    Quickly,
    /// To the end.
    Wholly,
}

/// One volume under examination.
struct Looked {
    locator: Locator,
    volume: Volume,
    facts: Facts,
    users: Option<Users>,
    workers: Option<Vec<Holder>>,
    interrupted: bool,
}

impl Engine {
    /// Looks at a machine.
    pub fn status(&self, text: &str, measure: Measure) -> Result<Status, EngineError> {
        let (machine, known) = self.resolve(text)?;
        self.status_of(&machine, known, measure, &self.looks())
    }

    /// Looks at many machines, each by its name: what tells of several of them is asked once.
    pub fn statuses(&self, names: &[String], measure: Measure) -> Vec<Result<Status, EngineError>> {
        let looks = self.looks();
        let one = |name: &String| {
            let (machine, known) = self.resolve(name)?;
            self.status_of(&machine, known, measure, &looks)
        };
        names.iter().map(one).collect()
    }

    pub(crate) fn looks(&self) -> Arc<Looks> {
        Looks::new(self.commands.clone())
    }

    pub(crate) fn status_of(
        &self,
        machine: &Machine,
        known: bool,
        measure: Measure,
        looks: &Arc<Looks>,
    ) -> Result<Status, EngineError> {
        let mut volumes = Vec::new();
        let mut running = None;
        let mut interrupted = None;
        for locator in self.locators(machine)? {
            let volume = Volume::open_to_look(self, &locator, looks)?;
            let plugin = self.plugin(&locator.backend)?;
            volume.suits(&plugin)?;
            let workers = EngineLock::taken_by(&volume.lock)
                .map_err(|e| lock_error(&locator, e, |_| None))?;
            let mut left = left_behind(&volume);
            if let Some(workers) = &workers {
                running = running.or_else(|| self.running(machine, workers, left.take()));
                // A journal beside an image that somebody works on is not of an interrupted change.
                left = None;
            }
            let facts = match volume.inspect(&plugin) {
                Ok(facts) => facts,
                // Half-way through a change an image need not read: say what is going on.
                Err(_) if workers.is_some() => Facts {
                    identity: None,
                    virtual_size: 0,
                    format: "being changed".to_owned(),
                    snapshots: Vec::new(),
                    findings: Vec::new(),
                    unfinished: None,
                },
                Err(error) => return Err(error),
            };
            let users = who_uses(&volume)?;
            let interrupted_here = left.is_some();
            interrupted = interrupted.or(left);
            volumes.push(Looked {
                locator,
                volume,
                facts,
                users,
                workers,
                interrupted: interrupted_here,
            });
        }
        let facts: Vec<&Facts> = volumes.iter().map(|v| &v.facts).collect();
        let mut slot = derive(machine, known, &facts, &volumes);
        if let Some(meta) = interrupted.filter(|_| running.is_none()) {
            slot = in_progress(&meta.verb, meta.running(None));
        }
        if let Some((verb, now)) = running {
            slot = in_progress(&verb, now);
        }
        let marked = match &slot {
            State::Held { occupant } => Some(occupant.mark.clone()),
            _ => None,
        };
        let mut seen = Vec::new();
        for Looked { locator, volume, mut facts, users, workers, interrupted } in volumes {
            let of_slot = facts.snapshots.iter().find(|s| s.mark.is_some() && s.mark == marked);
            // What cannot be measured is left out: status is about the slot.
            let change = of_slot.filter(|_| measure != Measure::Not).and_then(|s| {
                let plugin = self.plugin(&locator.backend).ok()?;
                let quick = measure == Measure::Quickly;
                let mut sight = volume.sight();
                // Somebody else has it for as long as a diff takes.
                let patience = if quick { Duration::ZERO } else { Duration::from_secs(5) };
                let _held = self.show_pool(&volume, &plugin, patience, &mut sight);
                plugin.measure(&sight, &s.identity, quick).ok().or_else(|| {
                    // A live snapshot knows what it saved, and a file system what is shared.
                    let changed = volume.copies.as_ref()?.changed(s.mark.as_ref()?).ok()??;
                    Some(Change {
                        changed_bytes: changed.ranges.iter().map(|r| r.length).sum(),
                        held_bytes: changed.held_bytes,
                        at_least: false,
                    })
                })
            });
            // A copy that shares nothing holds all of its own, whatever changed.
            let copy = of_slot.filter(|_| change.is_none() && measure != Measure::Not);
            let of_copy =
                copy.and_then(|s| volume.copies.as_ref()?.held_bytes(s.mark.as_ref()?).ok());
            seen.push(VolumeStatus {
                volume: locator.to_string(),
                virtual_size: facts.virtual_size,
                format: facts.format,
                snapshots: facts.snapshots.into_iter().map(FoundSnapshot::from).collect(),
                findings: facts.findings,
                in_use: users.is_some(),
                users,
                changed_bytes: change.map(|c| c.changed_bytes),
                held_bytes: change.map(|c| c.held_bytes).or(of_copy),
                at_least: change.is_some_and(|c| c.at_least),
                worked_on_by: workers.iter().flatten().map(|w| w.pid).collect(),
                workers,
                interrupted: interrupted || facts.unfinished.is_some(),
                unfinished: facts.unfinished.take(),
            });
        }
        Ok(Status { machine: machine.name.clone(), slot, volumes: seen })
    }

    /// Whether a volume can be looked at, and which file it is.
    pub(crate) fn look(&self, locator: &Locator) -> Result<Option<FileId>, EngineError> {
        let volume = Volume::open_to_look(self, locator, &self.looks())?;
        let plugin = self.plugin(&locator.backend)?;
        volume.suits(&plugin)?;
        volume.inspect(&plugin)?;
        Ok(volume.file())
    }

    /// What is being done by these: as the record says, if it is one of them that is at it; else as the
    /// journal on the volume says. None: nothing has been changed so far, by a plan in the making or a dry run.
    fn running(
        &self,
        machine: &Machine,
        workers: &[Holder],
        journal: Option<Meta>,
    ) -> Option<(String, Running)> {
        let recorded = self.store.running(&machine.name).ok().flatten();
        // Of processes that cannot be seen the record is believed.
        let at_it = |process| workers.is_empty() || workers.iter().any(|w| w.pid == process);
        match (recorded.filter(|o| at_it(o.process)), journal) {
            (Some(o), _) => Some((
                o.verb,
                Running { operation: o.operation, since: o.started, process: Some(o.process) },
            )),
            (None, Some(meta)) => {
                let process = workers.first().map(|w| w.pid);
                Some((meta.verb.clone(), meta.running(process)))
            }
            (None, None) => None,
        }
    }
}

/// Who has an image open for writing, or a device at all.
fn who_uses(volume: &Volume) -> Result<Option<Users>, EngineError> {
    if let Some(disk) = volume.image.as_ref().filter(|d| d.is_file()) {
        let writers = probe_writer(disk).map_err(|e| lock_error(&volume.locator, e, |_| None))?;
        return Ok(writers.map(|holders| Users { holders, ..Users::default() }));
    }
    Ok(Some(volume.users()?).filter(|users| !users.is_empty()))
}

fn in_progress(verb: &str, running: Running) -> State {
    match verb {
        "restore" => State::Restoring { running },
        "delete" => State::Deleting { running },
        _ => State::Taking { running },
    }
}

/// The meta record of a committed journal beside the image.
pub(crate) fn left_behind(volume: &Volume) -> Option<Meta> {
    match journal::read(&volume.journal()) {
        Ok(Found::Committed { meta, .. }) => Meta::read(&meta),
        _ => import_left(volume),
    }
}

/// The slot's state, from record and storage. The storage is the truth about snapshots.
pub(crate) fn derive<T>(machine: &Machine, known: bool, facts: &[&Facts], volumes: &[T]) -> State
where
    T: HasFile,
{
    let of_mark = |mark: &str| -> Vec<Option<&Snapshot>> {
        let find = |f: &&Facts| -> Option<usize> {
            f.snapshots.iter().position(|s| s.mark.as_deref() == Some(mark))
        };
        facts.iter().map(|f| find(f).map(|i| &f.snapshots[i])).collect()
    };
    if let Some(recorded) = &machine.occupant {
        // A snapshot that stands by itself outlives its volume: it is not the new one's.
        let known = machine.seen.iter().zip(facts);
        if facts.iter().all(|f| f.unfinished.is_none())
            && known.into_iter().any(|(then, now)| {
                then.identity.is_some() && now.identity.is_some() && then.identity != now.identity
            })
        {
            let recorded = Some(recorded.clone());
            return State::Drifted { drift: Drift::VolumeReplaced, recorded };
        }
        let mut found = of_mark(&recorded.mark);
        // The same name on another snapshot is not the one that was recorded.
        for (snapshot, part) in found.iter_mut().zip(&recorded.parts) {
            *snapshot = snapshot.filter(|s| s.identity == part.identity);
        }
        if found.iter().flatten().any(|s| s.lost) {
            return State::Drifted { drift: Drift::SnapshotLost, recorded: Some(recorded.clone()) };
        }
        if found.iter().all(Option::is_some) {
            let mut occupant = recorded.clone();
            occupant.parts = parts(machine, &found);
            return State::Held { occupant };
        }
        let drift = if found.iter().any(Option::is_some) {
            Drift::Partial
        } else if (machine.seen.iter().zip(volumes))
            .any(|(then, now)| then.file.is_some_and(|t| Some(t) != now.file()))
        {
            Drift::VolumeReplaced
        } else {
            Drift::SnapshotGone
        };
        // One that the record does not know may have come in its place.
        return match adopted(machine, facts) {
            Some(occupant) if drift != Drift::Partial => State::Held { occupant },
            _ => State::Drifted { drift, recorded: Some(recorded.clone()) },
        };
    }
    match adopted(machine, facts) {
        Some(occupant) if is_lost(&occupant, facts) => {
            State::Drifted { drift: Drift::SnapshotLost, recorded: Some(occupant) }
        }
        Some(occupant) => State::Held { occupant },
        None if facts.iter().any(|f| f.snapshots.iter().any(|s| s.mark.is_some())) => {
            State::Drifted { drift: Drift::Partial, recorded: None }
        }
        None if known => State::Empty,
        None => State::Disabled,
    }
}

/// Whether a part of it has lost its content.
fn is_lost(occupant: &Occupant, facts: &[&Facts]) -> bool {
    let of = |s: &&Snapshot| s.mark.as_ref() == Some(&occupant.mark);
    facts.iter().any(|f| f.snapshots.iter().filter(of).any(|s| s.lost))
}

/// A snapshot of ours that no record knows: taken on another host, or the record was lost.
fn adopted(machine: &Machine, facts: &[&Facts]) -> Option<Occupant> {
    let newest = (facts.first()?.snapshots.iter())
        .filter(|s| s.mark.is_some())
        .max_by_key(|s| (s.taken_seconds, s.taken_nanoseconds))?;
    let mark = newest.mark.clone()?;
    let found: Vec<Option<&Snapshot>> = (facts.iter())
        .map(|f| f.snapshots.iter().find(|s| s.mark.as_ref() == Some(&mark)))
        .collect();
    found.iter().all(Option::is_some).then(|| Occupant {
        taken: taken(newest),
        note: None,
        consistency: Consistency::Unknown,
        parts: parts(machine, &found),
        mark,
    })
}

pub(crate) fn parts(machine: &Machine, found: &[Option<&Snapshot>]) -> Vec<Part> {
    (machine.volumes.iter().zip(found))
        .filter_map(|(volume, snapshot)| {
            snapshot.map(|s| Part {
                volume: volume.clone(),
                identity: s.identity.clone(),
                name: s.name.clone(),
                virtual_size: s.virtual_size,
            })
        })
        .collect()
}

/// Something that knows which file a volume is.
pub(crate) trait HasFile {
    fn file(&self) -> Option<FileId>;
}

impl HasFile for Volume {
    fn file(&self) -> Option<FileId> {
        Volume::file(self)
    }
}

impl HasFile for Looked {
    fn file(&self) -> Option<FileId> {
        self.volume.file()
    }
}

pub(crate) fn lock_error(
    volume: impl ToString,
    error: LockError,
    since: impl FnOnce(&[Holder]) -> Option<Moment>,
) -> EngineError {
    match error {
        LockError::Held { holders, .. } => {
            let since = since(&holders);
            EngineError::Busy { volume: volume.to_string(), holders, since }
        }
        LockError::Disk(source) => EngineError::disk(volume, source),
    }
}

/// The same for a lock on an image: who has it uses the disk.
pub(crate) fn image_lock_error(volume: impl ToString, error: LockError) -> EngineError {
    match lock_error(volume, error, |_| None) {
        EngineError::Busy { volume, holders, .. } => {
            EngineError::InUse { volume, users: Users { holders, ..Users::default() } }
        }
        other => other,
    }
}
