//! Goal: a crash at every command finds planners of commands that are wrong. Method: the sound LVM and ZFS
//! planners with one thing wrong in the plans they give, crashed before, inside and after every command; each must be
//! caught, and the sound ones must pass the same.

use snapslot_plugin_lvm::Lvm;
use snapslot_plugin_sdk::{Backend, Goal, NewSnapshot};
use snapslot_plugin_zfs::Zfs;
use snapslot_testkit::sim_commands::{Act, Alter, as_planned, inspect, recover, run};
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::{Kind, Machine};

const MARK: &str = "00000000000000ab";

type Fault = fn(&Goal, Vec<Act>) -> Vec<Act>;

/// On what, what is wrong, and the fault.
const FAULTS: &[(Kind, &str, Fault)] = &[
    (Kind::Thin, "a restore removes the old volume first", |goal, acts| {
        restoring(goal, acts, |acts| to_front(acts, "remove"))
    }),
    (Kind::Thin, "a restore never removes the old volume", |goal, acts| {
        restoring(goal, acts, |acts| without(acts, "remove"))
    }),
    (Kind::Thin, "a restore never steps in", |goal, acts| {
        restoring(goal, acts, |acts| without(acts, "restore-step-in"))
    }),
    (Kind::Thin, "a restore steps in before the old one steps aside", |goal, acts| {
        restoring(goal, acts, |acts| to_front(acts, "restore-step-in"))
    }),
    (Kind::Thin, "a restore leaves its tags", |goal, acts| {
        restoring(goal, acts, |acts| without(acts, "unmark"))
    }),
    (Kind::Thin, "nothing is ever settled", |goal, acts| match goal {
        Goal::Settled => Vec::new(),
        _ => acts,
    }),
    (Kind::Thin, "a take takes nothing", |goal, acts| match goal {
        Goal::Held(_) => Vec::new(),
        _ => acts,
    }),
    (Kind::Thin, "a delete deletes nothing", |goal, acts| match goal {
        Goal::Empty(_) => Vec::new(),
        _ => acts,
    }),
    (Kind::Thick, "a restore merges and takes no snapshot again", |goal, acts| {
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
    (Kind::Thick, "a restore never merges", |goal, acts| {
        restoring(goal, acts, |acts| {
            acts.into_iter().filter(|(a, _)| !a.contains("merge")).collect()
        })
    }),
    (Kind::Zvol, "a restore rolls nothing back", |goal, acts| {
        restoring(goal, acts, |_| Vec::new())
    }),
    (Kind::Dataset, "a delete deletes nothing", |goal, acts| match goal {
        Goal::Empty(_) => Vec::new(),
        _ => acts,
    }),
    (Kind::Zvol, "a take bears another mark", |goal, mut acts| {
        if let Goal::Held(_) = goal {
            for argument in acts.iter_mut().flat_map(|(_, arguments)| arguments) {
                argument.value = argument.value.replace(MARK, "00000000000000cd");
            }
        }
        acts
    }),
    (Kind::Zvol, "a delete means another snapshot's identity", |goal, mut acts| {
        if let Goal::Empty(_) = goal {
            for argument in acts.iter_mut().flat_map(|(_, arguments)| arguments) {
                if argument.value.parse::<u64>().is_ok() {
                    argument.value = "12345".to_owned();
                }
            }
        }
        acts
    }),
];

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

fn take() -> Goal {
    Goal::Held(NewSnapshot {
        mark: MARK.to_owned(),
        taken_seconds: 1_700_000_000,
        taken_nanoseconds: 1,
        room: None,
        beside: 0,
        full_copy: false,
    })
}

/// The identity of our snapshot, if it is there.
fn ours<B: Backend>(storage: &Machine) -> Result<Option<String>, String> {
    let found = inspect::<B>(storage)?.snapshots;
    Ok(found.into_iter().find(|s| s.mark.as_deref() == Some(MARK)).map(|s| s.identity))
}

/// Take, restore and delete without a crash, then each with one at every command.
fn lives<B: Backend>(kind: Kind, alter: Alter<'_>) -> Result<(), String> {
    for verb in ["take", "restore", "delete"] {
        for n in 0..40 {
            for when in [When::Before, When::Inside, When::After] {
                let at = |e: String| format!("{verb}, crashed at {n} {when:?}: {e}");
                let (storage, crashed) = one::<B>(kind, verb, n, when, alter).map_err(at)?;
                if n > 0 && !crashed {
                    // It has no such command.
                    break;
                }
                judged::<B>(&storage, verb, crashed).map_err(at)?;
            }
        }
    }
    Ok(())
}

/// One verb with a crash at its n-th command (0: none), recovered from.
fn one<B: Backend>(
    kind: Kind,
    verb: &str,
    n: u64,
    when: When,
    alter: Alter<'_>,
) -> Result<(Machine, bool), String> {
    let storage = Machine::new(kind);
    let goal = match verb {
        "take" => {
            storage.write(2);
            take()
        }
        _ => {
            // What comes before is sound: the fault is looked for in its own verb.
            run::<B>(&storage, &take(), &as_planned)?;
            storage.write(2);
            let identity = ours::<B>(&storage)?.ok_or("the take before made nothing")?;
            if verb == "restore" { Goal::Restored(identity) } else { Goal::Empty(identity) }
        }
    };
    if n > 0 {
        storage.crash_at(n, when);
    }
    let result = run::<B>(&storage, &goal, alter);
    let crashed = storage.restart();
    if !crashed {
        result?;
        if let Some(what) = inspect::<B>(&storage)?.unfinished {
            return Err(format!("done, and half done still: {what}"));
        }
    }
    recover::<B>(&storage, alter)?;
    Ok((storage, crashed))
}

fn judged<B: Backend>(storage: &Machine, verb: &str, crashed: bool) -> Result<(), String> {
    let (sees, held) = (storage.sees()?, ours::<B>(storage)?.is_some());
    let good = match (verb, crashed) {
        ("take", false) => sees == 2 && held,
        ("take", true) | ("delete", true) => sees == 2,
        ("restore", false) => sees == 1 && held,
        // The content of then is on the disk or in the snapshot.
        ("restore", true) => sees == 1 || (sees == 2 && held),
        _ => sees == 2 && !held,
    };
    if !good {
        return Err(format!(
            "the guest sees {sees}, the snapshot is {}",
            if held { "there" } else { "gone" }
        ));
    }
    let half: Vec<String> = (storage.names().into_iter())
        .filter(|n| n.contains("snapslot") && !n.contains(MARK))
        .collect();
    match half.as_slice() {
        [] => Ok(()),
        left => Err(format!("left behind: {}", left.join(", "))),
    }
}

fn live(kind: Kind, alter: Alter<'_>) -> Result<(), String> {
    match kind {
        Kind::Thin | Kind::Thick | Kind::ThickInactive => lives::<Lvm>(kind, alter),
        Kind::Zvol | Kind::Dataset => lives::<Zfs>(kind, alter),
    }
}

#[test]
fn the_sound_planners_pass() {
    for kind in Kind::ALL {
        live(kind, &as_planned).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
    }
}

#[test]
fn each_broken_planner_is_caught() {
    let mut missed = Vec::new();
    for (kind, what, fault) in FAULTS {
        match live(*kind, fault) {
            Err(caught) => println!("{kind:?}, {what}: {caught}"),
            Ok(()) => missed.push(format!("{kind:?}, {what}")),
        }
    }
    println!("{} broken planners", FAULTS.len());
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}
