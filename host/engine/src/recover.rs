//! After a crash: the journal decides.
//!
//! - No valid commit record: the operation never began. The journal is removed.
//! - Committed, and the image bears the plan's seal: nobody else has written since. The plan is
//!   carried on from the phase whose header the image has; all steps are idempotent.
//! - Committed, and no seal: the plan never began, or ended, or another program opened the image
//!   meanwhile and repaired it by its own rules. All three leave a whole image; the storage is
//!   looked at and the record follows it.
//!
//! Of several volumes the first one's journal decides: it is written last and removed last, so
//! the others count only while it is there.

use serde::{Deserialize, Serialize};
use snapslot_capture::journal::{self, Found};
use snapslot_capture::{Plan, Resume, execute_from, resume_at};
use snapslot_disk::{Companion, FileCompanion};
use snapslot_runtime::{Facts, Goal, Snapshot};
use snapslot_slot::{Moment, Occupant, Running, State};

use crate::engine::{Engine, now};
use crate::error::EngineError;
use crate::operate::{Context, Done, Verb, decider_journal, lock_images, look_at};
use crate::status::{derive, parts};
use crate::store::Machine;
use crate::volume::Volume;

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
}

impl Meta {
    pub fn new(
        machine: &Machine,
        verb: Verb,
        occupant: Option<Occupant>,
        then_remove: Option<String>,
    ) -> Meta {
        Meta {
            verb: verb.word().to_owned(),
            machine: machine.name.clone(),
            volumes: machine.volumes.clone(),
            started: now(),
            process: std::process::id(),
            occupant,
            then_remove,
            volume: String::new(),
            decider: None,
            goal: String::new(),
        }
    }

    /// The second half of an operation: the same verb, nothing after it.
    pub fn removal(&self) -> Meta {
        Meta { then_remove: None, started: now(), ..self.clone() }
    }

    pub fn write(&self, volume: &str, decider: Option<&str>, goal: &Goal) -> Vec<u8> {
        let goal = match goal {
            Goal::Held(new) => format!("held {}", new.mark),
            Goal::Restored(identity) => format!("restored {identity}"),
            Goal::Empty(identity) => format!("empty {identity}"),
        };
        let meta = Meta {
            volume: volume.to_owned(),
            decider: decider.map(ToOwned::to_owned),
            goal,
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
        let volumes: Vec<Volume> =
            locators.iter().map(Volume::open_to_change).collect::<Result<_, _>>()?;
        let _locks = self.lock(&machine, &volumes)?;
        let (finished, cleared) = self.recover_locked(&machine, &volumes)?;
        let machine = self.store.machine(&machine.name)?.unwrap_or(machine);
        let known = known || self.store.machine(&machine.name)?.is_some();
        let slot = self.status_unlocked(&machine, known, &volumes)?;
        Ok(Recovered { machine: machine.name, slot, finished, cleared })
    }

    fn status_unlocked(
        &self,
        machine: &Machine,
        known: bool,
        volumes: &[Volume],
    ) -> Result<State, EngineError> {
        let plugins: Vec<_> = (volumes.iter())
            .map(|v| self.plugin(&v.locator.backend))
            .collect::<Result<_, _>>()?;
        let facts = look_at(volumes, &plugins)?;
        Ok(derive(machine, known, &facts.iter().collect::<Vec<_>>(), volumes))
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
        let (mut finished, mut cleared) = (Vec::new(), Vec::new());
        let mut first: Option<Meta> = None;
        for (volume, committed) in &found {
            let name = volume.locator.to_string();
            let go_on = match committed {
                Some((meta, plan)) if self.decided(meta, &name) => {
                    resume(volume, plan)?.map(|phase| (meta, plan, phase))
                }
                _ => None,
            };
            if let Some((meta, plan, phase)) = go_on {
                tracing::info!(volume = %name, verb = %meta.verb, phase, "an interrupted change is finished");
                execute_from(plan, phase, &*volume.disk, &|_, _| ())
                    .map_err(|source| EngineError::Interrupted { volume: name.clone(), source })?;
                finished.push(name);
            } else {
                cleared.push(name);
            }
            if let Some((meta, _)) = committed {
                first.get_or_insert_with(|| meta.clone());
            }
        }
        self.follow(machine, volumes, first, !finished.is_empty())?;
        drop(locks);
        Ok((finished, cleared))
    }

    /// Whether the journal that decides over this one is there, whole.
    fn decided(&self, meta: &Meta, volume: &str) -> bool {
        match &meta.decider {
            Some(decider) if decider != volume => decider_journal(self, decider)
                .and_then(|path| journal::read(&FileCompanion::new(path)).ok())
                .is_some_and(|found| match found {
                    Found::Committed { meta: bytes, .. } => Meta::read(&bytes)
                        .is_some_and(|m| m.started == meta.started && m.process == meta.process),
                    _ => false,
                }),
            _ => true,
        }
    }

    /// The record follows the storage; journals go; what was to come after is done.
    fn follow(
        &self,
        machine: &Machine,
        volumes: &[Volume],
        meta: Option<Meta>,
        redone: bool,
    ) -> Result<(), EngineError> {
        let plugins: Vec<_> = (volumes.iter())
            .map(|v| self.plugin(&v.locator.backend))
            .collect::<Result<_, _>>()?;
        let context = Context { engine: self, volumes, plugins: &plugins, observer: &|_, _, _| () };
        let facts = look_at(volumes, &plugins)?;
        if let Some(meta) = &meta {
            self.follow_storage(machine, &context, meta, &facts, redone)?;
        }
        context.end_journals()?;
        // A second half that was still to come: the snapshot that was replaced or consumed goes.
        let Some(known) = self.store.machine(&machine.name)? else { return Ok(()) };
        let Some(mark) = &known.pending else { return Ok(()) };
        let mut done = Done::nothing(&machine.name);
        let meta = meta.unwrap_or_else(|| Meta::new(machine, Verb::Delete, None, None));
        let second = Meta { verb: "recover".to_owned(), ..meta.removal() };
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
        let about = meta.occupant.as_ref().and_then(|o| Some((o, there(&o.mark)?)));
        match (meta.verb.as_str(), about) {
            ("take", Some((occupant, parts))) => {
                if known.is_none() {
                    self.store.enable(&machine.name, &machine.volumes)?;
                }
                let held = Occupant { parts, ..occupant.clone() };
                context.record(machine, Some(&held), meta.then_remove.as_deref())
            }
            ("restore", Some((occupant, _))) if redone => {
                context.record(machine, Some(occupant), meta.then_remove.as_deref())
            }
            ("delete" | "restore", _) => match known.and_then(|m| m.occupant) {
                Some(recorded) if there(&recorded.mark).is_none() => {
                    context.record(machine, None, None)
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

/// The phase from which the plan is carried on, if it is.
fn resume(volume: &Volume, plan: &Plan) -> Result<Option<usize>, EngineError> {
    match resume_at(plan, &*volume.disk).map_err(|e| EngineError::disk(&volume.locator, e))? {
        Resume::Void => Ok(None),
        Resume::From(phase) => Ok(Some(phase)),
        Resume::Foreign => Err(EngineError::ForeignJournal {
            volume: volume.locator.to_string(),
            journal: volume.journal().name(),
            why: "the image bears the seal of an interrupted change, but not of the one in the \
                  journal"
                .to_owned(),
        }),
    }
}
