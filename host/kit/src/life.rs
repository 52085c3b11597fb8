//! The life of a slot, through the real engine: every verb, every refusal, and what must stay as it is.

use std::cell::{Cell, RefCell};

use snapslot_engine::{Asked, Done, EngineError, Verb};
use snapslot_slot::State;

use crate::cases::{Cases, Step};
use crate::clock::EPOCH;
use crate::machine::{Live, mark, operate};
use crate::tools::Beyond;

pub fn done(live: &dyn Live, verb: Verb, asked: Asked) -> Result<Done, String> {
    operate(live, verb, asked).map_err(|e| e.to_string())
}

pub fn refused(result: Result<Done, EngineError>, exit: u8) -> Result<(), String> {
    match result {
        Err(error) if error.exit() == exit => Ok(()),
        Err(error) => Err(format!("exit code {} instead of {exit}: {error}", error.exit())),
        Ok(_) => Err("it was done, and should have been refused".to_owned()),
    }
}

pub fn same(found: &str, wanted: &str) -> Result<(), String> {
    match found == wanted {
        true => Ok(()),
        false => Err(format!("the guest sees {found}, and should see {wanted}")),
    }
}

/// Plans in full: every phase, every step.
fn plans(done: &Done) -> Vec<String> {
    let volumes = done.volumes.iter();
    let lines = volumes.flat_map(|v| &v.plan.phases).flat_map(|phase| {
        let head = format!("{} ({} steps, {} bytes)", phase.title, phase.count, phase.bytes);
        std::iter::once(head).chain(phase.steps.iter().cloned())
    });
    lines.collect()
}

/// A dry run, which must change nothing; then the run itself, which must do what the dry run showed. Both at the
/// same moment, with the same mark: what is shown is what is run, to the letter.
fn dry_then_real(live: &dyn Live, verb: Verb, asked: Asked) -> Result<Done, String> {
    let moment = live.clock().state();
    let before = live.all()?;
    let dry = done(live, verb, Asked { dry_run: true, ..asked.clone() })?;
    if dry.changed || live.all()? != before {
        return Err("a dry run changed something".to_owned());
    }
    live.clock().back_to(moment);
    let real = done(live, verb, asked)?;
    // What a replacing take or a consuming restore deletes is planned when the first half is done.
    let (shown, run) = (plans(&dry), plans(&real));
    match run.starts_with(&shown) && (!shown.is_empty() || run.is_empty()) {
        true => Ok(real),
        false => Err(format!(
            "a dry run shows another plan:\n  {}\nand not\n  {}",
            shown.join("\n  "),
            run.join("\n  ")
        )),
    }
}

/// A slot from its first take to its last delete.
pub fn script(prefix: &str, live: &dyn Live, beyond: &Beyond, cases: &mut Cases<'_>) {
    let name = |case: &str| format!("{prefix}/{case}");
    let then = RefCell::new(String::new());
    let wrote = Cell::new(true);
    let write = |generation| -> Result<(), String> {
        let before = live.sees()?;
        wrote.set(live.write(generation)? && wrote.get());
        match wrote.get() && live.sees()? == before {
            true => Err("its writes are not seen".to_owned()),
            false => Ok(()),
        }
    };
    let restored = || -> Result<(), String> {
        dry_then_real(live, Verb::Restore, Asked::default())?;
        same(&live.sees()?, &then.borrow())?;
        match mark(live)? {
            Some(_) => Ok(()),
            None => Err("the snapshot is gone".to_owned()),
        }
    };
    let mut steps = vec![
        Step::new(name("a-take-fills-the-slot-and-changes-nothing"), || {
            let before = live.sees()?;
            let took = dry_then_real(live, Verb::Take, Asked::default())?;
            if !matches!(took.slot, State::Held { .. }) {
                return Err(format!("the slot is {}", took.slot.word()));
            }
            same(&live.sees()?, &before)?;
            *then.borrow_mut() = before;
            Ok(())
        }),
        Step::new(name("a-held-slot-is-not-filled"), || {
            refused(operate(live, Verb::Take, Asked::default()), 3)
        }),
        Step::new(name("the-guest-writes"), || write(2)),
        Step::new(name("a-restore-goes-back"), restored),
        Step::new(name("and-again"), restored),
        Step::new(name("a-replacing-take-keeps-what-the-guest-sees"), || {
            let old = mark(live)?;
            write(3)?;
            let now = live.sees()?;
            dry_then_real(live, Verb::Take, Asked { replace: true, ..Asked::default() })?;
            same(&live.sees()?, &now)?;
            *then.borrow_mut() = now;
            match mark(live)? {
                new if new.is_some() && new != old => Ok(()),
                new => Err(format!("the slot is held by {new:?}, before it was {old:?}")),
            }
        }),
        Step::new(name("a-consuming-restore-empties-the-slot"), || {
            write(4)?;
            dry_then_real(live, Verb::Restore, Asked { consume: true, ..Asked::default() })?;
            same(&live.sees()?, &then.borrow())?;
            match mark(live)? {
                None => Ok(()),
                Some(mark) => Err(format!("{mark} is there still")),
            }
        }),
        Step::new(name("an-empty-slot-is-not-restored"), || {
            refused(operate(live, Verb::Restore, Asked::default()), 4)
        }),
        Step::new(name("an-empty-slot-is-not-deleted"), || {
            refused(operate(live, Verb::Delete, Asked::default()), 4)
        }),
        Step::new(name("a-delete-frees-and-changes-nothing"), || {
            done(live, Verb::Take, Asked::default())?;
            write(5)?;
            let now = live.sees()?;
            dry_then_real(live, Verb::Delete, Asked::default())?;
            same(&live.sees()?, &now)
        }),
        Step::new(name("nothing-of-ours-is-left"), || match live.left().as_slice() {
            [] => Ok(()),
            left => Err(format!("left behind: {}", left.join(", "))),
        }),
        Step::new(name("every-write-was-seen"), || match wrote.get() {
            true => Ok(()),
            false => {
                let why =
                    "the guest could not be made to write: nothing is allocated, or all is shared";
                beyond.note(why.to_owned());
                Err(why.to_owned())
            }
        }),
    ];
    if live.refused().is_some() {
        // What a plan gets wrong may be put right after a command failed; but nothing was in its way.
        steps.push(Step::new(name("no-command-failed"), || {
            match live.refused().unwrap_or_default().as_slice() {
                [] => Ok(()),
                refused => Err(format!("nothing disturbed it, and it ran {}", refused.join("; "))),
            }
        }));
    }
    cases.script(steps);
}

/// Somebody deletes the snapshot by hand: it is told as that, and never as a slot that is held.
pub fn what_others_delete(prefix: &str, live: &dyn Live, cases: &mut Cases<'_>) {
    cases.run(&format!("{prefix}/what-others-delete-is-told"), || {
        done(live, Verb::Take, Asked::default())?;
        live.write(2)?;
        live.others_delete()?;
        let before = live.all()?;
        refused(operate(live, Verb::Restore, Asked::default()), 8)?;
        if live.all()? != before {
            return Err("a restore that was refused changed something".to_owned());
        }
        let sees = live.sees()?;
        done(live, Verb::Delete, Asked::default())?;
        done(live, Verb::Take, Asked::default())?;
        same(&live.sees()?, &sees)?;
        done(live, Verb::Delete, Asked::default()).map(|_| ())
    });
}

/// Where a clock jumps to: what comes of it, as a name, and the moment.
const JUMPS: [(&str, i64); 8] = [
    ("a-second-back", EPOCH - 1),
    ("a-second-on", EPOCH + 3),
    ("a-day-back", EPOCH - 86_400),
    ("a-day-on", EPOCH + 86_400),
    ("to-the-epoch", 0),
    ("to-2038", i32::MAX as i64),
    ("past-2038", i32::MAX as i64 + 1),
    ("past-2106", u32::MAX as i64 + 1),
];

/// The clock jumps before a take, in the midst of it, or after it: the slot is as with any other clock.
pub fn clock_jumps<L: Live>(
    prefix: &str,
    machine: impl Fn() -> Result<L, String>,
    cases: &mut Cases<'_>,
) {
    for (what, to) in JUMPS {
        cases.run_telling(&format!("{prefix}/the-clock-jumps/{what}"), || {
            for looks in 0..LOOKS {
                let live = machine()?;
                let at = |e: String| format!("after {looks} looks at the clock: {e}");
                jumped(&live, looks, to).map_err(at)?;
            }
            Ok(Some(format!("at each of {LOOKS} looks")))
        });
    }
}

/// More looks at the clock than a take needs: then it jumps in what comes after.
const LOOKS: u32 = 5;

fn jumped(live: &dyn Live, looks: u32, to: i64) -> Result<(), String> {
    live.clock().jumps(looks, to);
    let then = live.sees()?;
    if let Err(error) = operate(live, Verb::Take, Asked::default()) {
        // A format may have no room for a moment that far off; then it says so, and nothing is changed.
        let clean = live.left().is_empty() && mark(live)?.is_none() && live.sees()? == then;
        return match (to > i64::from(i32::MAX) || to < 1, clean, error.exit()) {
            (true, true, 1 | 6) => Ok(()),
            _ => Err(format!("a take ends with exit code {}: {error}", error.exit())),
        };
    }
    let held = mark(live)?.ok_or("a take leaves an empty slot")?;
    live.write(2)?;
    refused(operate(live, Verb::Take, Asked::default()), 3)?;
    done(live, Verb::Restore, Asked::default())?;
    same(&live.sees()?, &then)?;
    if mark(live)?.as_ref() != Some(&held) {
        return Err("after a restore another snapshot is held".to_owned());
    }
    done(live, Verb::Delete, Asked::default())?;
    same(&live.sees()?, &then)?;
    match live.left().as_slice() {
        [] => Ok(()),
        left => Err(format!("left behind: {}", left.join(", "))),
    }
}

/// Somebody else's snapshot is as it was, whatever is done with ours.
pub fn what_others_took(prefix: &str, live: &dyn Live, cases: &mut Cases<'_>) {
    let name = format!("{prefix}/what-others-took-stays");
    if !cases.wants(&name) {
        return;
    }
    match live.others_take() {
        Ok(true) => {}
        Ok(false) => {
            let why = "how somebody else makes a snapshot of this kind is not known to the kit";
            cases.does_not_apply(&name, why);
            return;
        }
        Err(why) => {
            cases.run(&name, || Err(why));
            return;
        }
    }
    cases.run(&name, || {
        let there = live.of_others()?;
        if there.is_empty() {
            return Err("the plugin does not see it".to_owned());
        }
        for (verb, asked) in [
            (Verb::Take, Asked::default()),
            (Verb::Restore, Asked::default()),
            (Verb::Take, Asked { replace: true, ..Asked::default() }),
            (Verb::Restore, Asked { consume: true, ..Asked::default() }),
            (Verb::Take, Asked::default()),
            (Verb::Delete, Asked::default()),
        ] {
            live.write(7)?;
            done(live, verb, asked).map_err(|e| format!("{}: {e}", verb.word()))?;
            let now = live.of_others()?;
            if now != there {
                return Err(format!("after {} it is {now}, not {there}", verb.word()));
            }
        }
        Ok(())
    });
}
