//! The life of a slot, through the real engine: every verb, every refusal, and what must stay as it is.

use std::path::PathBuf;

use snapslot_engine::{Asked, Done, Engine, EngineError, Measure, Tools, Verb};
use snapslot_runtime::{Goal, NewSnapshot, Sight};
use snapslot_slot::State;
use snapslot_testkit::rng::Rng;
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::{Kind, Machine};

use crate::files::{FileMachine, Sample};
use crate::{Bench, Cases};

/// A virtual machine with one volume.
pub trait Live {
    /// Its volume, as a locator.
    fn volume(&self) -> String;
    /// A fresh engine over its storage.
    fn engine(&self) -> Result<Engine, EngineError>;
    /// The guest writes something of this generation. `Ok(false)`: it cannot be made to.
    fn write(&self, generation: u64) -> Result<bool, String>;
    /// What the guest sees, told apart from whatever else it saw.
    fn sees(&self) -> Result<String, String>;
    /// What is left of us in the storage.
    fn left(&self) -> Vec<String>;
    /// What the plugin sees.
    fn sight(&self) -> Result<Sight, String>;
}

/// A volume on modelled storage.
pub struct StorageMachine<'a> {
    bench: &'a Bench<'a>,
    /// The storage.
    pub storage: Machine,
    state: tempfile::TempDir,
}

impl<'a> StorageMachine<'a> {
    pub fn new(bench: &'a Bench<'a>, kind: Kind) -> Result<Self, String> {
        Ok(StorageMachine { bench, storage: Machine::new(kind), state: bench.directory()? })
    }
}

impl Live for StorageMachine<'_> {
    fn volume(&self) -> String {
        format!("{}:{}", self.bench.name(), self.storage.kind().place())
    }

    fn engine(&self) -> Result<Engine, EngineError> {
        let tools = Tools(std::sync::Arc::new(self.storage.clone()));
        self.bench.engine(self.state.path(), Some(tools))
    }

    fn write(&self, generation: u64) -> Result<bool, String> {
        self.storage.write(generation);
        Ok(true)
    }

    fn sees(&self) -> Result<String, String> {
        self.storage.sees().map(|g| format!("generation {g}"))
    }

    fn left(&self) -> Vec<String> {
        self.storage.names().into_iter().filter(|n| n.contains("snapslot")).collect()
    }

    fn sight(&self) -> Result<Sight, String> {
        let d = self.bench.plugin.description();
        let place = snapslot_command::Place::parse(d.place.into(), self.storage.kind().place());
        Ok(Sight {
            place: place.map_err(|e| e.to_string())?,
            disk: None,
            commands: Some(std::sync::Arc::new(self.storage.clone())),
            copies: None,
        })
    }
}

pub fn on_storage(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    let prefix = format!("life/{kind:?}");
    let names = [&prefix, &format!("plan/{kind:?}"), &format!("crash/{kind:?}/sequences")];
    if !names.iter().any(|name| cases.wants(name)) {
        return;
    }
    match StorageMachine::new(bench, kind) {
        Ok(live) => {
            script(&prefix, &live, cases);
            plans(bench, &format!("plan/{kind:?}"), &live, cases);
            drift(&prefix, &live, cases);
            sequences(bench, kind, cases);
        }
        Err(why) => cases.not_tried(&prefix, &why),
    }
}

pub fn on_file(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    let prefix = format!("life/{}", sample.name);
    if !cases.wants(&prefix) && !cases.wants(&format!("plan/{}", sample.name)) {
        return;
    }
    match FileMachine::new(bench, sample) {
        Ok(live) => {
            script(&prefix, &live, cases);
            if bench.plugin.description().copies.is_none() {
                plans(bench, &format!("plan/{}", sample.name), &live, cases);
            }
        }
        Err(why) => cases.not_tried(&prefix, &why),
    }
}

/// Runs a verb; copies may be whole ones.
pub fn operate(live: &dyn Live, verb: Verb, asked: Asked) -> Result<Done, EngineError> {
    let asked = Asked { full_copy: true, ..asked };
    live.engine()?.operate(&live.volume(), verb, &asked, &|_, _, _| ())
}

/// The mark of the snapshot that holds the slot.
pub fn mark(live: &dyn Live) -> Result<Option<String>, String> {
    let status = live
        .engine()
        .and_then(|e| e.status(&live.volume(), Measure::Wholly))
        .map_err(|e| e.to_string())?;
    Ok(status.slot.occupant().map(|o| o.mark.clone()))
}

fn done(live: &dyn Live, verb: Verb, asked: Asked) -> Result<Done, String> {
    operate(live, verb, asked).map_err(|e| e.to_string())
}

fn refused(result: Result<Done, EngineError>, exit: u8) -> Result<(), String> {
    match result {
        Err(error) if error.exit() == exit => Ok(()),
        Err(error) => Err(format!("exit code {} instead of {exit}: {error}", error.exit())),
        Ok(_) => Err("it was done, and should have been refused".to_owned()),
    }
}

fn same(found: &str, wanted: &str) -> Result<(), String> {
    match found == wanted {
        true => Ok(()),
        false => Err(format!("the guest sees {found}, and should see {wanted}")),
    }
}

/// Plans without what differs from run to run: marks, times.
fn steps_of(done: &Done) -> Vec<String> {
    let steps = done.volumes.iter().flat_map(|v| &v.plan.phases).flat_map(|p| &p.steps);
    steps
        .map(|s| s.split(|c: char| !c.is_ascii_alphabetic()).collect::<Vec<_>>().concat())
        .map(|words| words.chars().filter(|c| !c.is_ascii_hexdigit()).collect())
        .collect()
}

fn script(prefix: &str, live: &dyn Live, cases: &mut Cases<'_>) {
    let name = |case: &str| format!("{prefix}/{case}");
    // Later steps need earlier ones: from the first that fails on, nothing more is tried.
    let mut going = true;
    let mut step = |case: &str, f: &mut dyn FnMut() -> Result<(), String>| {
        if going {
            let before = cases.cases.len();
            cases.run(&name(case), f);
            going = !matches!(
                cases.cases.get(before).map(|c| &c.outcome),
                Some(crate::Outcome::Failed { .. })
            );
        }
    };
    let then = std::cell::RefCell::new(String::new());
    step("a-take-fills-the-slot-and-changes-nothing", &mut || {
        let before = live.sees()?;
        let dry = done(live, Verb::Take, Asked { dry_run: true, ..Asked::default() })?;
        let took = done(live, Verb::Take, Asked::default())?;
        if !matches!(took.slot, State::Held { .. }) {
            return Err(format!("the slot is {}", took.slot.word()));
        }
        same(&live.sees()?, &before)?;
        *then.borrow_mut() = before;
        match steps_of(&dry) == steps_of(&took) {
            true => Ok(()),
            false => Err(format!(
                "a dry run shows another plan:\n{:?}\n{:?}",
                steps_of(&dry),
                steps_of(&took)
            )),
        }
    });
    step("a-held-slot-is-not-filled", &mut || {
        refused(operate(live, Verb::Take, Asked::default()), 3)
    });
    let wrote = std::cell::Cell::new(true);
    step("the-guest-writes", &mut || {
        wrote.set(live.write(2)?);
        match wrote.get() && live.sees()? == *then.borrow() {
            true => Err("its writes are not seen".to_owned()),
            false => Ok(()),
        }
    });
    for (case, asked) in
        [("a-restore-goes-back", Asked::default()), ("and-again", Asked::default())]
    {
        step(case, &mut || {
            done(live, Verb::Restore, asked.clone())?;
            same(&live.sees()?, &then.borrow())?;
            match mark(live)? {
                Some(_) => Ok(()),
                None => Err("the snapshot is gone".to_owned()),
            }
        });
    }
    step("a-replacing-take-keeps-what-the-guest-sees", &mut || {
        let old = mark(live)?;
        live.write(3)?;
        let now = live.sees()?;
        done(live, Verb::Take, Asked { replace: true, ..Asked::default() })?;
        same(&live.sees()?, &now)?;
        *then.borrow_mut() = now;
        match mark(live)? {
            new if new.is_some() && new != old => Ok(()),
            new => Err(format!("the slot is held by {new:?}, before it was {old:?}")),
        }
    });
    step("a-consuming-restore-empties-the-slot", &mut || {
        live.write(4)?;
        done(live, Verb::Restore, Asked { consume: true, ..Asked::default() })?;
        same(&live.sees()?, &then.borrow())?;
        match mark(live)? {
            None => Ok(()),
            Some(mark) => Err(format!("{mark} is there still")),
        }
    });
    step("an-empty-slot-is-not-restored", &mut || {
        refused(operate(live, Verb::Restore, Asked::default()), 4)
    });
    step("a-delete-frees-and-changes-nothing", &mut || {
        let before = live.sees()?;
        done(live, Verb::Take, Asked::default())?;
        live.write(5)?;
        let now = live.sees()?;
        done(live, Verb::Delete, Asked::default())?;
        drop(before);
        same(&live.sees()?, &now)
    });
    step("nothing-of-ours-is-left", &mut || match live.left().as_slice() {
        [] => Ok(()),
        left => Err(format!("left behind: {}", left.join(", "))),
    });
}

/// All sequences of up to three verbs, the guest writing between them, against a slot of paper; then each
/// once more with a crash in it, at a command that the seed chooses.
fn sequences(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    const VERBS: [(Verb, bool); 5] = [
        (Verb::Take, false),
        (Verb::Take, true),
        (Verb::Restore, false),
        (Verb::Restore, true),
        (Verb::Delete, false),
    ];
    let all = (1..=3_u32).flat_map(|length| (0..5_usize.pow(length)).map(move |n| (length, n)));
    let all: Vec<Vec<(Verb, bool)>> = all
        .map(|(length, n)| (0..length).map(|i| VERBS[n / 5_usize.pow(i) % 5]).collect())
        .collect();
    cases.run(&format!("life/{kind:?}/sequences"), || {
        for verbs in &all {
            let live = StorageMachine::new(bench, kind)?;
            let (mut sees, mut held): (u64, Option<u64>) = (1, None);
            for (n, (verb, also)) in verbs.iter().enumerate() {
                let at = |e: String| format!("{verbs:?}, at the {}. verb: {e}", n + 1);
                let asked = Asked {
                    replace: *verb == Verb::Take && *also,
                    consume: *verb == Verb::Restore && *also,
                    ..Asked::default()
                };
                let expected = match (verb, held, also) {
                    (Verb::Take, Some(_), false) => 3,
                    (Verb::Restore | Verb::Delete, None, _) => 4,
                    _ => 0,
                };
                let result = operate(&live, *verb, asked);
                let exit = result.as_ref().err().map_or(0, EngineError::exit);
                if exit != expected {
                    return Err(at(format!("exit code {exit}, not {expected}: {result:?}")));
                }
                match (verb, held, also) {
                    _ if exit != 0 => {}
                    (Verb::Take, ..) => held = Some(sees),
                    (Verb::Restore, Some(then), consume) => {
                        (sees, held) = (then, held.filter(|_| !consume));
                    }
                    _ => held = None,
                }
                let (found, there) = (live.storage.sees().map_err(at)?, mark(&live)?.is_some());
                if (found, there) != (sees, held.is_some()) {
                    return Err(at(format!(
                        "the guest sees {found} and the slot is held: {there}; it should be {sees} and {}",
                        held.is_some()
                    )));
                }
                sees = 10 + n as u64;
                live.storage.write(sees);
            }
        }
        Ok(())
    });
    let mut rng = Rng::new(bench.options.seed);
    cases.run(&format!("crash/{kind:?}/sequences"), || {
        for verbs in &all {
            let live = StorageMachine::new(bench, kind)?;
            let when = [When::Before, When::Inside, When::After][rng.below(3) as usize];
            let (n, which) = (1 + rng.below(8), rng.below(verbs.len() as u64) as usize);
            let at = |e: String| {
                format!(
                    "{verbs:?}, crashed in the {}. verb at its command {n}, {when:?}: {e}",
                    which + 1
                )
            };
            let mut then = Vec::new();
            for (i, (verb, also)) in verbs.iter().enumerate() {
                then.push(live.storage.sees().map_err(at)?);
                if i == which {
                    live.storage.crash_at(n, when);
                }
                let asked = Asked {
                    replace: *verb == Verb::Take && *also,
                    consume: *verb == Verb::Restore && *also,
                    ..Asked::default()
                };
                let result = operate(&live, *verb, asked);
                if live.storage.restart() {
                    let engine = live.engine().map_err(|e| at(e.to_string()))?;
                    engine
                        .recover(&live.volume())
                        .map_err(|e| at(format!("recovery fails: {e}")))?;
                } else if let Err(error) = result
                    && !matches!(error.exit(), 3 | 4)
                {
                    return Err(at(error.to_string()));
                }
                let sees = live.storage.sees().map_err(at)?;
                if !then.contains(&sees) {
                    return Err(at(format!("the guest sees {sees}, which it never wrote then")));
                }
                live.storage.write(20 + i as u64);
            }
        }
        Ok(())
    });
}

/// Somebody deletes the snapshot by hand: it is told as that, and never as a slot that is held.
fn drift(prefix: &str, live: &StorageMachine<'_>, cases: &mut Cases<'_>) {
    cases.run(&format!("{prefix}/what-others-delete-is-told"), || {
        done(live, Verb::Take, Asked::default())?;
        let names = live.left();
        let [name] = names.as_slice() else {
            return Err(format!("a take left {names:?}"));
        };
        let by_hand = match live.storage.kind() {
            Kind::Thin | Kind::Thick | Kind::ThickInactive => format!("lvremove -y vg/{name}"),
            Kind::Zvol | Kind::Dataset => {
                format!("zfs destroy tank/vm1@{}", name.rsplit('@').next().unwrap_or(name))
            }
        };
        let before = live.sees()?;
        live.storage.hand(&by_hand);
        refused(operate(live, Verb::Restore, Asked::default()), 8)?;
        same(&live.sees()?, &before)?;
        done(live, Verb::Delete, Asked::default())?;
        done(live, Verb::Take, Asked::default())?;
        done(live, Verb::Delete, Asked::default()).map(|_| ())
    });
}

/// What the plugin plans, asked directly.
fn plans(bench: &Bench<'_>, prefix: &str, live: &dyn Live, cases: &mut Cases<'_>) {
    let new = NewSnapshot {
        mark: "00000000000000ab".to_owned(),
        taken_seconds: 1_700_000_000,
        taken_nanoseconds: 1,
        room: None,
        beside: 0,
        full_copy: true,
    };
    let goal = Goal::Held(new);
    let ask = |goal: &Goal| bench.plugin.plan(&live.sight()?, goal).map_err(|e| e.to_string());
    cases.run(&format!("{prefix}/the-same-plan-twice"), || match ask(&goal)? == ask(&goal)? {
        true => Ok(()),
        false => Err("asked twice, it plans two things".to_owned()),
    });
    cases.run(&format!("{prefix}/nothing-to-settle"), || match ask(&Goal::Settled)?.is_empty() {
        true => Ok(()),
        false => Err("nothing is half done, and it plans to end something".to_owned()),
    });
    cases.run(&format!("{prefix}/a-goal-that-is-reached-takes-no-step"), || {
        done(live, Verb::Take, Asked::default())?;
        let facts = bench.plugin.inspect(&live.sight()?).map_err(|e| e.to_string())?;
        let held =
            facts.snapshots.iter().find(|s| s.mark.is_some()).ok_or("no snapshot bears a mark")?;
        let again = Goal::Held(NewSnapshot {
            mark: held.mark.clone().unwrap_or_default(),
            taken_seconds: held.taken_seconds,
            taken_nanoseconds: held.taken_nanoseconds,
            room: None,
            beside: 0,
            full_copy: true,
        });
        if !ask(&again)?.is_empty() {
            return Err("the snapshot is there, and it plans to make it".to_owned());
        }
        let gone = Goal::Empty(held.identity.clone());
        done(live, Verb::Delete, Asked::default())?;
        match ask(&gone)?.is_empty() {
            true => Ok(()),
            false => Err("the snapshot is gone, and it plans to delete it".to_owned()),
        }
    });
}

/// A path for an image in its own directory.
pub fn image_in(directory: &tempfile::TempDir) -> PathBuf {
    directory.path().join("disk.img")
}
