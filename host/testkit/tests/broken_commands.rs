//! Goal: a crash at every command finds planners of commands that are wrong. Method: the sound LVM and ZFS
//! planners with one thing wrong in the plans they give (`tests/broken`), crashed before, inside and after every command;
//! each must be caught, and the sound ones must pass the same.

use snapslot_plugin_sdk::{Goal, NewSnapshot};
use snapslot_test_broken::{Base, Broken, How, faults, sound, with_fault};
use snapslot_testkit::sim_commands::{inspect, recover, run};
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::{Kind, Machine};

const MARK: &str = "00000000000000ab";

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
fn ours(storage: &Machine) -> Result<Option<String>, String> {
    let found = inspect::<Broken>(storage)?.snapshots;
    Ok(found.into_iter().find(|s| s.mark.as_deref() == Some(MARK)).map(|s| s.identity))
}

/// The sound planner for a kind of volume.
fn sound_for(kind: Kind) -> usize {
    match kind {
        Kind::Thin | Kind::Thick | Kind::ThickInactive => sound(Base::Lvm("Thin")),
        Kind::Zvol | Kind::Dataset => sound(Base::Zfs("Zvol")),
    }
}

/// Take, restore and delete without a crash, then each with one at every command.
fn lives(kind: Kind, fault: usize) -> Result<(), String> {
    for verb in ["take", "restore", "delete"] {
        for n in 0..40 {
            for when in [When::Before, When::Inside, When::After] {
                let at = |e: String| format!("{verb}, crashed at {n} {when:?}: {e}");
                let (storage, crashed) = one(kind, verb, n, when, fault).map_err(at)?;
                if n > 0 && !crashed {
                    // It has no such command.
                    break;
                }
                judged(&storage, verb, crashed).map_err(at)?;
            }
        }
    }
    Ok(())
}

/// One verb with a crash at its n-th command (0: none), recovered from.
fn one(
    kind: Kind,
    verb: &str,
    n: u64,
    when: When,
    fault: usize,
) -> Result<(Machine, bool), String> {
    let storage = Machine::new(kind);
    let goal = match verb {
        "take" => {
            storage.write(2);
            take()
        }
        _ => {
            // What comes before is sound: the fault is looked for in its own verb.
            with_fault(sound_for(kind), || run::<Broken>(&storage, &take()))?;
            storage.write(2);
            let identity = with_fault(sound_for(kind), || ours(&storage))?
                .ok_or("the take before made nothing")?;
            if verb == "restore" { Goal::Restored(identity) } else { Goal::Empty(identity) }
        }
    };
    if n > 0 {
        storage.crash_at(n, when);
    }
    with_fault(fault, || {
        let result = run::<Broken>(&storage, &goal);
        let crashed = storage.restart();
        if !crashed {
            result?;
            if let Some(what) = inspect::<Broken>(&storage)?.unfinished {
                return Err(format!("done, and half done still: {what}"));
            }
        }
        recover::<Broken>(&storage)?;
        Ok((storage, crashed))
    })
}

fn judged(storage: &Machine, verb: &str, crashed: bool) -> Result<(), String> {
    let (sees, held) = (storage.sees()?, ours(storage)?.is_some());
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

fn live(kind: Kind, fault: usize) -> Result<(), String> {
    with_fault(fault, || lives(kind, fault))
}

fn kind(name: &str) -> Kind {
    let found = Kind::ALL.into_iter().find(|k| format!("{k:?}") == name);
    found.unwrap_or_else(|| panic!("no kind of volume is called {name}"))
}

#[test]
fn the_sound_planners_pass() {
    for kind in Kind::ALL {
        live(kind, sound_for(kind)).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
    }
}

#[test]
fn each_broken_planner_is_caught() {
    let mut missed = Vec::new();
    let mut tried = 0;
    for (number, fault) in faults().iter().enumerate() {
        let (How::Commands(_), Base::Lvm(on) | Base::Zfs(on)) = (fault.how, fault.base) else {
            continue;
        };
        tried += 1;
        match live(kind(on), number) {
            Err(caught) => println!("{on}, {}: {caught}", fault.what),
            Ok(()) => missed.push(format!("{on}, {}", fault.what)),
        }
    }
    println!("{tried} broken planners");
    assert!(missed.is_empty() && tried >= 14, "not caught: {missed:#?}");
}
