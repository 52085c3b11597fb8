//! What the plugin plans, asked directly: the same when asked twice, and nothing where there is nothing to do.

use snapslot_engine::{Asked, Verb};
use snapslot_runtime::{CallError, Goal, NewSnapshot, Snapshot};

use crate::bench::Bench;
use crate::cases::{Cases, Step};
use crate::life::done;
use crate::machine::Live;

/// A snapshot to be made.
pub fn new_snapshot() -> NewSnapshot {
    NewSnapshot {
        mark: "00000000000000ab".to_owned(),
        taken_seconds: 1_700_000_000,
        taken_nanoseconds: 1,
        room: None,
        beside: 0,
        full_copy: true,
    }
}

pub fn plans(bench: &Bench<'_>, prefix: &str, live: &dyn Live, cases: &mut Cases<'_>) {
    let ask = |goal: &Goal| bench.plugin.plan(&live.sight()?, goal).map_err(|e| e.to_string());
    let ours = || -> Result<Snapshot, String> {
        let facts = bench.plugin.inspect(&live.sight()?).map_err(|e| e.to_string())?;
        let mut found = facts.snapshots.into_iter().filter(|s| s.mark.is_some());
        found.next().ok_or_else(|| "no snapshot bears a mark".to_owned())
    };
    let twice = |goal: &Goal| match ask(goal)? == ask(goal)? {
        true => Ok(()),
        false => Err(format!("asked twice for {goal:?}, it plans two things")),
    };
    let nothing = |goal: &Goal, why: &str| match ask(goal)?.is_empty() {
        true => Ok(()),
        false => Err(why.to_owned()),
    };
    let settled = "nothing is half done, and it plans to end something";
    let name = |case: &str| format!("{prefix}/{case}");
    cases.script(vec![
        Step::new(name("the-same-take-twice"), || twice(&Goal::Held(new_snapshot()))),
        Step::new(name("nothing-to-settle"), || nothing(&Goal::Settled, settled)),
        Step::new(name("a-take-that-is-done-takes-no-step"), || {
            done(live, Verb::Take, Asked::default())?;
            let held = ours()?;
            let again = Goal::Held(NewSnapshot {
                mark: held.mark.clone().unwrap_or_default(),
                taken_seconds: held.taken_seconds,
                taken_nanoseconds: held.taken_nanoseconds,
                ..new_snapshot()
            });
            nothing(&again, "the snapshot is there, and it plans to make it")
        }),
        Step::new(name("nothing-to-settle-while-it-is-held"), || nothing(&Goal::Settled, settled)),
        Step::new(name("the-same-restore-and-delete-twice"), || {
            live.write(2)?;
            let identity = ours()?.identity;
            twice(&Goal::Restored(identity.clone()))?;
            twice(&Goal::Empty(identity))
        }),
        Step::new(name("a-delete-that-is-done-takes-no-step"), || {
            let gone = Goal::Empty(ours()?.identity);
            done(live, Verb::Delete, Asked::default())?;
            // That there is nothing of that identity may be told as well.
            match bench.plugin.plan(&live.sight()?, &gone) {
                Ok(plan) if !plan.is_empty() => {
                    Err("the snapshot is gone, and it plans to delete it".to_owned())
                }
                Ok(_) | Err(CallError::Refused(_)) => Ok(()),
                Err(fault) => Err(fault.to_string()),
            }
        }),
    ]);
}
