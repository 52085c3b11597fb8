//! The plugin as a planner of trials: the contract's types on this side and on that are generated
//! apart, and mean the same.

use std::sync::Arc;

use snapslot_capture::Plan;
use snapslot_disk::Disk;
use snapslot_plugin_sdk as sdk;
use snapslot_runtime::{CallError, Facts, Failure, FailureKind, Goal, NewSnapshot, Plugin, Sight};
use snapslot_testkit::sim_host::Planner;

use crate::bench::Bench;

/// A component that plans for a simulated disk.
pub struct Component<'a> {
    plugin: &'a Plugin<'a>,
    bench: &'a Bench<'a>,
}

impl<'a> Component<'a> {
    pub fn new(plugin: &'a Plugin<'a>, bench: &'a Bench<'a>) -> Self {
        Component { plugin, bench }
    }

    fn sight(&self, disk: Arc<dyn Disk>) -> Sight {
        self.bench.sight(disk)
    }
}

impl Planner for Component<'_> {
    fn inspect(&self, disk: Arc<dyn Disk>) -> Result<sdk::Facts, sdk::Failure> {
        self.plugin.inspect(&self.sight(disk)).map(facts).map_err(failure)
    }

    fn plan(&self, disk: Arc<dyn Disk>, wanted: &sdk::Goal) -> Result<Plan, sdk::Failure> {
        self.plugin.plan(&self.sight(disk), &goal(wanted)).map_err(failure)
    }
}

/// A fault of the plugin has the kind `internal`, which no plugin can give by itself here.
fn failure(error: CallError) -> sdk::Failure {
    match error {
        CallError::Refused(Failure { kind, code, message, .. }) => {
            let kind = match kind {
                FailureKind::Corrupt => sdk::FailureKind::Corrupt,
                FailureKind::NoSpace => sdk::FailureKind::NoSpace,
                FailureKind::NotFound => sdk::FailureKind::NotFound,
                FailureKind::Io => sdk::FailureKind::Io,
                _ => sdk::FailureKind::Unsupported,
            };
            sdk::Failure::new(kind, &code, message)
        }
        fault => sdk::Failure::new(sdk::FailureKind::Internal, "fault", fault.to_string()),
    }
}

/// Of facts, what trials look at.
fn facts(facts: Facts) -> sdk::Facts {
    let snapshot = |s: snapslot_runtime::Snapshot| sdk::Snapshot {
        identity: s.identity,
        name: s.name,
        mark: s.mark,
        taken_seconds: s.taken_seconds,
        taken_nanoseconds: s.taken_nanoseconds,
        virtual_size: s.virtual_size,
        vm_state_size: s.vm_state_size,
        lost: s.lost,
    };
    sdk::Facts {
        identity: facts.identity,
        virtual_size: facts.virtual_size,
        format: facts.format,
        snapshots: facts.snapshots.into_iter().map(snapshot).collect(),
        findings: Vec::new(),
        unfinished: facts.unfinished,
    }
}

fn goal(goal: &sdk::Goal) -> Goal {
    match goal {
        sdk::Goal::Held(new) => Goal::Held(NewSnapshot {
            mark: new.mark.clone(),
            taken_seconds: new.taken_seconds,
            taken_nanoseconds: new.taken_nanoseconds,
            room: new.room,
            beside: new.beside,
            full_copy: new.full_copy,
        }),
        sdk::Goal::Restored(identity) => Goal::Restored(identity.clone()),
        sdk::Goal::Consumed(identity) => Goal::Consumed(identity.clone()),
        sdk::Goal::Empty(identity) => Goal::Empty(identity.clone()),
        sdk::Goal::Settled => Goal::Settled,
    }
}
