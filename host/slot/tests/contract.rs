//! Goal: what `--json` prints is what `wit/slot` says. Method: the text of the contract is parsed, and its names are
//! held against those of values of every kind, as they are written out.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::Value;
use snapslot_slot::{Consistency, Drift, Moment, Occupant, Part, Refusal, Running, State};
use wit_parser::{Resolve, TypeDefKind};

type Names = BTreeSet<String>;

fn names<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Names {
    names.into_iter().map(|n| n.as_ref().to_owned()).collect()
}

struct Contract(Resolve);

impl Contract {
    fn read() -> Contract {
        let mut resolve = Resolve::default();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../wit/slot");
        resolve.push_dir(folder).unwrap_or_else(|e| panic!("{folder}: {e:#}"));
        Contract(resolve)
    }

    /// The names in a type: cases or fields.
    fn of(&self, name: &str) -> Names {
        let found = self.0.types.iter().map(|(_, t)| t);
        let found = found.filter(|t| t.name.as_deref() == Some(name));
        let mut listed = found.filter_map(|t| match &t.kind {
            TypeDefKind::Enum(e) => Some(names(e.cases.iter().map(|c| &c.name))),
            TypeDefKind::Record(r) => Some(names(r.fields.iter().map(|f| &f.name))),
            TypeDefKind::Variant(v) => Some(names(v.cases.iter().map(|c| &c.name))),
            _ => None,
        });
        listed.next_back().unwrap_or_else(|| panic!("the contract has no {name}"))
    }
}

fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("it can be written")
}

fn keys(value: &Value) -> Names {
    names(value.as_object().expect("an object").keys())
}

fn occupant() -> Occupant {
    let part = Part {
        volume: "qcow2:/a.qcow2".into(),
        identity: "1".into(),
        name: "snapslot-x".into(),
        virtual_size: 1,
    };
    Occupant {
        mark: "0123456789abcdef".into(),
        taken: Moment { seconds: 1, nanoseconds: 2 },
        note: None,
        consistency: Consistency::Offline,
        parts: vec![part],
    }
}

fn running() -> Running {
    Running { operation: 1, since: Moment { seconds: 1, nanoseconds: 0 }, process: None }
}

/// One of each kind.
fn states() -> Vec<State> {
    vec![
        State::Disabled,
        State::Empty,
        State::Held { occupant: occupant() },
        State::Taking { running: running() },
        State::Restoring { running: running() },
        State::Deleting { running: running() },
        State::Drifted { drift: Drift::Partial, recorded: None },
    ]
}

#[test]
fn records_have_the_fields_of_the_contract() {
    let contract = Contract::read();
    let occupant = json(&occupant());
    assert_eq!(keys(&occupant), contract.of("occupant"));
    assert_eq!(keys(&occupant["parts"][0]), contract.of("part"));
    assert_eq!(keys(&occupant["taken"]), contract.of("moment"));
    assert_eq!(keys(&json(&running())), contract.of("running"));
}

#[test]
fn enums_have_the_cases_of_the_contract() {
    let contract = Contract::read();
    let text = |value: Value| value.as_str().expect("a word").to_owned();
    let consistencies =
        [Consistency::Offline, Consistency::Quiesced, Consistency::Crash, Consistency::Unknown];
    assert_eq!(names(consistencies.map(|c| text(json(&c)))), contract.of("consistency"));
    let drifts = [Drift::SnapshotGone, Drift::VolumeReplaced, Drift::Partial, Drift::SnapshotLost];
    assert_eq!(names(drifts.map(|d| text(json(&d)))), contract.of("drift"));
}

#[test]
fn states_and_refusals_have_the_cases_of_the_contract() {
    let contract = Contract::read();
    let states: Vec<Value> = states().iter().map(json).collect();
    let words = |list: &[Value], tag: &str| {
        names(list.iter().map(|v| v[tag].as_str().expect("a word").to_owned()))
    };
    assert_eq!(words(&states, "state"), contract.of("state"));
    let refusals = [
        Refusal::Disabled,
        Refusal::AlreadyEnabled,
        Refusal::Occupied { occupant: Box::new(occupant()) },
        Refusal::Empty,
        Refusal::Busy { running: running() },
        Refusal::Drifted { drift: Drift::Partial },
        Refusal::Policy { words: "no".into() },
    ]
    .map(|r| json(&r));
    assert_eq!(words(&refusals, "refusal"), contract.of("refusal"));
    // What comes with a drifted state stands beside its word.
    let mut drifted = contract.of("difference");
    drifted.insert("state".to_owned());
    assert_eq!(keys(&states[6]), drifted);
}
