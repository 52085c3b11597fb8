//! Goal: the crash enumeration finds faults that are there and none that are not.
//! Method: a storage small enough to be seen to be right, and kinds of it with one known fault
//! each; take, restore and delete, crashed and failed at every event.

use snapslot_plugin_sdk::{Goal, NewSnapshot};
use snapslot_testkit::crash::Options;
use snapslot_testkit::sim_host::native;
use snapslot_testkit::toy::{Toy, ToyJudge, fault, image};
use snapslot_testkit::trial::{Depth, Tally, crash, faults};

fn held() -> Goal {
    let mark = "0123456789abcdef".to_owned();
    Goal::Held(NewSnapshot {
        mark,
        taken_seconds: 1,
        taken_nanoseconds: 0,
        room: None,
        beside: 0,
        full_copy: false,
    })
}

fn life<const FAULT: u8>(with_faults: bool) -> Result<Tally, String> {
    let states = Options { seeded: 30, exhaustive: 10, singles: usize::MAX, tears: true, seed: 1 };
    let depth = Depth::new(states);
    let mut tally = Tally::default();
    let mut now = image(7);
    let one = "0123456789abcdef".to_owned();
    for goal in [held(), Goal::Restored(one.clone()), Goal::Empty(one)] {
        if let Goal::Restored(_) = goal {
            now[1024 + 100..1024 + 900].fill(9);
        }
        let outcome = crash(&native::<Toy<FAULT>>(), &ToyJudge, &now, &goal, &depth)?
            .map_err(|e| e.to_string())?;
        tally += outcome.tally;
        if with_faults {
            tally += faults(&native::<Toy<FAULT>>(), &ToyJudge, &now, &goal, &depth)?;
        }
        now = outcome.after;
    }
    Ok(tally)
}

#[test]
fn a_sound_storage_survives() {
    let tally = life::<{ fault::NONE }>(true).unwrap_or_else(|e| panic!("{e}"));
    println!("toy: {tally}");
    assert!(
        tally.states.distinct > 60 && tally.redone > 10 && tally.nested.listed > 100,
        "{tally}"
    );
    assert!(tally.faults > 200, "{tally}");
}

#[test]
fn each_fault_is_found() {
    let found = [
        (life::<{ fault::EARLY }>(false), "before recovery"),
        (life::<{ fault::IN_PLACE }>(false), "before recovery"),
        (life::<{ fault::LATE }>(false), "the plan's seal"),
    ];
    for (i, (result, words)) in found.into_iter().enumerate() {
        let text = result.err().unwrap_or_else(|| panic!("fault {} was not found", i + 1));
        assert!(text.contains(words), "fault {}: {text}", i + 1);
        println!("fault {}: {}", i + 1, text.lines().take(2).collect::<Vec<_>>().join(" "));
    }
}
