//! What stands in a journal beside the plan.

use serde::{Deserialize, Serialize};
use snapslot_runtime::{Goal, NewSnapshot};
use snapslot_slot::{Moment, Occupant, Running};

use crate::operate::Verb;
use crate::store::Machine;

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
    /// The mark whose snapshots a delete removes.
    #[serde(default)]
    pub mark: Option<String>,
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
            mark: None,
            volume: String::new(),
            decider: None,
            goal: String::new(),
            before: String::new(),
        }
    }

    /// An import, for the time of which this mark's snapshot leads back.
    pub fn of_import(machine: &Machine, mark: &str, started: Moment) -> Meta {
        let meta = Meta::new(started, machine, Verb::Restore, None, None);
        Meta { verb: "import".to_owned(), mark: Some(mark.to_owned()), ..meta }
    }

    /// The removal of a mark's snapshots, as the operation itself or its second half: the same verb, nothing
    /// after it.
    pub fn removal(&self, started: Moment, mark: &str) -> Meta {
        Meta { then_remove: None, started, mark: Some(mark.to_owned()), ..self.clone() }
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
            Goal::Consumed(identity) => format!("consumed {identity}"),
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

    /// The goal that was written.
    pub fn goal(&self) -> Goal {
        match self.goal.split_once(' ') {
            Some(("held", mark)) => Goal::Held(NewSnapshot {
                mark: mark.to_owned(),
                taken_seconds: self.started.seconds.cast_unsigned(),
                taken_nanoseconds: self.started.nanoseconds,
                room: None,
                beside: 0,
                full_copy: false,
            }),
            Some(("restored", identity)) => Goal::Restored(identity.to_owned()),
            Some(("consumed", identity)) => Goal::Consumed(identity.to_owned()),
            Some(("empty", identity)) => Goal::Empty(identity.to_owned()),
            _ => Goal::Settled,
        }
    }

    pub fn running(&self, process: Option<u32>) -> Running {
        Running { operation: 0, since: self.started, process }
    }
}
