//! Plans of commands with one thing wrong.

use snapslot_plugin_sdk::double::{Recorded, RecordedPlan};
use snapslot_plugin_sdk::{Argument, Goal};

use crate::{Base, Fault, How, valued};

/// A command of a plan: an action and its values.
pub type Act = (String, Vec<Argument>);

pub(crate) fn changed(
    mut plan: RecordedPlan,
    goal: &Goal,
    change: fn(&Goal, Vec<Act>) -> Vec<Act>,
) -> RecordedPlan {
    let mut acts = Vec::new();
    for step in std::mem::take(&mut plan.steps) {
        match step {
            Recorded::Act(action, arguments) => acts.push((action, arguments)),
            // Phases of commands are titles, no more: commands run one after the other.
            _ => continue,
        }
    }
    let acts = change(goal, acts);
    let steps = acts.into_iter().map(|(action, arguments)| Recorded::Act(action, arguments));
    let mut steps: Vec<Recorded> = steps.collect();
    if !steps.is_empty() {
        steps.push(Recorded::Barrier("all of it".to_owned()));
    }
    plan.steps = steps;
    plan
}

const THIN: Base = Base::Lvm("Thin");
const THICK: Base = Base::Lvm("Thick");
const ZVOL: Base = Base::Zfs("Zvol");
const DATASET: Base = Base::Zfs("Dataset");

type Change = fn(&Goal, Vec<Act>) -> Vec<Act>;

pub(crate) fn faults() -> impl Iterator<Item = Fault> {
    let all: Vec<(Base, &'static str, Change)> = vec![
        (THIN, "a restore removes the old volume first", |goal, acts| {
            restoring(goal, acts, |acts| to_front(acts, "remove"))
        }),
        (THIN, "a restore never removes the old volume", |goal, acts| {
            restoring(goal, acts, |acts| without(acts, "remove"))
        }),
        (THIN, "a restore never steps in", |goal, acts| {
            restoring(goal, acts, |acts| without(acts, "restore-step-in"))
        }),
        (THIN, "a restore steps in before the old one steps aside", |goal, acts| {
            restoring(goal, acts, |acts| to_front(acts, "restore-step-in"))
        }),
        (THIN, "a restore leaves its tags", |goal, acts| {
            restoring(goal, acts, |acts| without(acts, "unmark"))
        }),
        (THIN, "nothing is ever settled", |goal, acts| match goal {
            Goal::Settled => Vec::new(),
            _ => acts,
        }),
        (THIN, "a take takes nothing", |goal, acts| match goal {
            Goal::Held(_) => Vec::new(),
            _ => acts,
        }),
        (THIN, "a delete deletes nothing", |goal, acts| match goal {
            Goal::Empty(_) => Vec::new(),
            _ => acts,
        }),
        (THICK, "a restore merges and takes no snapshot again", |goal, acts| {
            restoring(goal, acts, |mut acts| {
                let merge = acts.iter().position(|(a, _)| a.contains("merge"));
                let from = merge.map_or(acts.len(), |m| m + 1);
                let kept: Vec<Act> = acts
                    .drain(from..)
                    .filter(|(a, _)| !a.contains("take") && !a.contains("snapshot"))
                    .collect();
                acts.extend(kept);
                acts
            })
        }),
        (THICK, "a restore never merges", |goal, acts| {
            restoring(goal, acts, |acts| {
                acts.into_iter().filter(|(a, _)| !a.contains("merge")).collect()
            })
        }),
        (ZVOL, "a restore rolls nothing back", |goal, acts| restoring(goal, acts, |_| Vec::new())),
        (DATASET, "a delete deletes nothing", |goal, acts| match goal {
            Goal::Empty(_) => Vec::new(),
            _ => acts,
        }),
        (ZVOL, "a take bears another mark", |goal, acts| match goal {
            Goal::Held(new) => {
                let other: String = new.mark.chars().rev().collect();
                let other = if other == new.mark { "00000000000000cd".to_owned() } else { other };
                with_values(acts, |value| value.replace(&new.mark, &other))
            }
            _ => acts,
        }),
        (ZVOL, "a delete means another snapshot's identity", |goal, acts| match goal {
            Goal::Empty(_) => with_values(acts, |value| match value.parse::<u64>() {
                Ok(_) => "12345".to_owned(),
                Err(_) => value.to_owned(),
            }),
            _ => acts,
        }),
    ];
    all.into_iter().map(|(base, what, change)| Fault { what, base, how: How::Commands(change) })
}

fn with_values(acts: Vec<Act>, f: impl Fn(&str) -> String) -> Vec<Act> {
    let with = |(action, arguments): Act| {
        (action, arguments.iter().map(|a| valued(a, f(&a.value))).collect())
    };
    acts.into_iter().map(with).collect()
}

fn restoring(goal: &Goal, acts: Vec<Act>, f: impl Fn(Vec<Act>) -> Vec<Act>) -> Vec<Act> {
    // What a crash left of a restore is ended by the same faulty planner.
    match goal {
        Goal::Restored(_) => f(acts),
        _ => acts,
    }
}

fn to_front(mut acts: Vec<Act>, action: &str) -> Vec<Act> {
    if let Some(at) = acts.iter().position(|(a, _)| a == action) {
        let act = acts.remove(at);
        acts.insert(0, act);
    }
    acts
}

fn without(acts: Vec<Act>, action: &str) -> Vec<Act> {
    acts.into_iter().filter(|(a, _)| a != action).collect()
}
