//! Goal: on storage that is changed by commands, nothing is lost and the slot stays legal,
//! wherever the engine or a command dies; and every sentence the tools can say is passed on.
//!
//! Method: the real engine and the real plugins over LVM and ZFS in memory. Every command of
//! every verb is, in a run of its own, not run, half run, or run without its answer coming back,
//! and everything after it fails as if the engine had died there. Then a new engine recovers.
//! The judge knows only the content the machine had, what was taken, and the storage's own view.

mod committed;
mod edges;
mod machines;
mod truth;

use std::path::Path;
use std::sync::Arc;

use snapslot_command::Executor;
use snapslot_engine::{Asked, Depth, Done, Engine, EngineError, Measure, Settings, Tools, Verb};
use snapslot_slot::{Consistency, State};
use snapslot_testkit::qemu::Bench;
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::{Kind, Machine as Storage, Trouble};

const KINDS: [Kind; 5] = Kind::ALL;

/// A volume on modelled storage, and an engine's own state.
struct Machine {
    storage: Storage,
    kind: Kind,
    scratch: Bench,
}

impl std::ops::Deref for Machine {
    type Target = Storage;

    fn deref(&self) -> &Storage {
        &self.storage
    }
}

impl Machine {
    fn new(kind: Kind) -> Machine {
        let scratch = Bench::in_memory();
        Machine { storage: Storage::new(kind), kind, scratch }
    }

    fn volume(&self) -> &'static str {
        match self.kind {
            Kind::Thin | Kind::Thick | Kind::ThickInactive => "lvm:vg/vm1",
            Kind::Zvol | Kind::Dataset => "zfs:tank/vm1",
        }
    }

    fn engine(&self) -> Engine {
        engine(self.scratch.directory(), self.storage.clone())
    }

    fn run(&self, verb: Verb, asked: &Asked) -> Result<Done, EngineError> {
        self.engine().operate(self.volume(), verb, asked, &|_, _, _| ())
    }

    fn slot(&self) -> State {
        self.engine().status(self.volume(), Measure::Wholly).expect("a status").slot
    }

    fn mark(&self) -> Option<String> {
        self.slot().occupant().map(|o| o.mark.clone())
    }

    fn lines(&self) -> Vec<String> {
        self.storage.log()
    }

    fn log(&self) -> String {
        self.lines().join("\n  ")
    }
}

fn engine(scratch: &Path, storage: impl Executor + 'static) -> Engine {
    Engine::open(Settings {
        state_dir: scratch.join("state"),
        // One for all tests: compiling the plugins takes a while.
        cache_dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugin-cache"),
        rehearsal: Depth::Bounded,
        enable_on_take: true,
        more_plugins: Vec::new(),
        plugin_time_max: None,
        confine: snapslot_engine::Confine::Here,
        record: None,
        tools: Some(Tools(Arc::new(committed::Committed::new(storage, scratch)))),
    })
    .expect("an engine")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Take,
    Replace,
    Restore,
    Consume,
    Delete,
}

impl Act {
    const ALL: [Act; 5] = [Act::Take, Act::Replace, Act::Restore, Act::Consume, Act::Delete];

    fn verb(self) -> (Verb, Asked) {
        match self {
            Act::Take => (Verb::Take, Asked::default()),
            Act::Replace => (Verb::Take, Asked { replace: true, ..Asked::default() }),
            Act::Restore => (Verb::Restore, Asked::default()),
            Act::Consume => (Verb::Restore, Asked { consume: true, ..Asked::default() }),
            Act::Delete => (Verb::Delete, Asked::default()),
        }
    }
}

/// A machine that is ready for this act: it sees generation 2; a slot that is held holds 1.
fn ready(kind: Kind, act: Act) -> (Machine, Option<String>) {
    let machine = Machine::new(kind);
    let asked = Asked { note: Some("before".to_owned()), ..Asked::default() };
    let mark = (act != Act::Take).then(|| {
        machine.run(Verb::Take, &asked).expect("a take");
        machine.mark().expect("held")
    });
    machine.write(2);
    (machine, mark)
}

#[test]
fn the_whole_life_on_every_kind() {
    for kind in KINDS {
        let (machine, _) = ready(kind, Act::Take);
        let taken = machine.run(Verb::Take, &Asked::default());
        let taken = taken.unwrap_or_else(|e| panic!("{kind:?}: take: {e}\n  {}", machine.log()));
        assert!(matches!(taken.slot, State::Held { .. }), "{kind:?}");
        let again = machine.run(Verb::Take, &Asked::default()).expect_err("held");
        assert_eq!(again.exit(), 3, "{kind:?}: {again}");
        for generation in 3..5 {
            machine.write(generation);
            let done = machine.run(Verb::Restore, &Asked::default());
            done.unwrap_or_else(|e| panic!("{kind:?}: restore: {e}\n  {}", machine.log()));
            assert_eq!(machine.sees(), Ok(2), "{kind:?}: {}", machine.log());
            assert!(machine.mark().is_some(), "{kind:?}: restore keeps the snapshot");
        }
        let before = machine.mark();
        machine.write(5);
        let (verb, asked) = Act::Replace.verb();
        machine.run(verb, &asked).unwrap_or_else(|e| panic!("{kind:?}: replace: {e}"));
        assert_ne!(machine.mark(), before, "{kind:?}");
        machine.write(6);
        let (verb, asked) = Act::Consume.verb();
        machine.run(verb, &asked).unwrap_or_else(|e| panic!("{kind:?}: consume: {e}"));
        assert_eq!((machine.sees(), machine.mark()), (Ok(5), None), "{kind:?}");
        machine.run(Verb::Take, &Asked::default()).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
        machine.run(Verb::Delete, &Asked::default()).unwrap_or_else(|e| panic!("{kind:?}: {e}"));
        assert_eq!((machine.sees(), machine.mark()), (Ok(5), None), "{kind:?}");
        assert_eq!(machine.run(Verb::Restore, &Asked::default()).expect_err("empty").exit(), 4);
        let names = machine.names();
        assert!(!names.iter().any(|n| n.contains("snapslot")), "{kind:?}: left behind: {names:?}");
    }
}

#[test]
fn a_dry_run_runs_nothing_that_changes() {
    for kind in KINDS {
        for act in Act::ALL {
            let (machine, _) = ready(kind, act);
            let (verb, asked) = act.verb();
            machine.crash_at(1, When::Before);
            let done = machine.run(verb, &Asked { dry_run: true, ..asked });
            let done = done.unwrap_or_else(|e| panic!("{kind:?} {act:?}: {e}"));
            assert!(!done.changed && done.volumes[0].plan.steps > 0, "{kind:?} {act:?}");
            for phase in &done.volumes[0].plan.phases {
                println!("{kind:?} {act:?}: {}: {}", phase.title, phase.steps.join("; "));
            }
            assert!(!machine.restart(), "{kind:?} {act:?}: a dry run ran something");
        }
    }
}

#[test]
fn looking_costs_one_process_before_a_change_and_one_after() {
    for kind in KINDS {
        for act in Act::ALL {
            let (machine, _) = ready(kind, act);
            let before = machine.lines().len();
            let (verb, asked) = act.verb();
            machine.run(verb, &asked).unwrap_or_else(|e| panic!("{kind:?} {act:?}: {e}"));
            let lines = machine.lines().split_off(before);
            let is_look = |l: &&String| {
                ["lvs ", "vgs ", "zfs list ", "zfs get "].iter().any(|look| l.starts_with(look))
            };
            // Runs of looks, each the same question over and over if it were not remembered.
            let mut asked_twice = Vec::new();
            for group in lines.split(|l| !is_look(&l)) {
                let mut seen = Vec::new();
                for line in group {
                    if seen.contains(&line) {
                        asked_twice.push(line.clone());
                    }
                    seen.push(line);
                }
            }
            let all = lines.join("\n  ");
            assert!(asked_twice.is_empty(), "{kind:?} {act:?}: {asked_twice:?} in\n  {all}");
            println!("{kind:?} {act:?}: {} commands", lines.len());
        }
    }
}

/// Runs an act with a crash at its n-th command. `None`: it has fewer.
fn crashed(kind: Kind, act: Act, n: u64, when: When) -> Option<(Machine, Option<String>)> {
    let (machine, mark) = ready(kind, act);
    let (verb, asked) = act.verb();
    machine.crash_at(n, when);
    let result = machine.run(verb, &asked);
    if !machine.restart() {
        result.unwrap_or_else(|e| panic!("{kind:?} {act:?}: {e}\n  {}", machine.log()));
        return None;
    }
    Some((machine, mark))
}

#[test]
fn a_crash_at_every_command_leaves_then_or_now() {
    let mut states = 0;
    for kind in KINDS {
        for act in Act::ALL {
            for n in 1.. {
                let mut any = false;
                for when in [When::Before, When::Inside, When::After] {
                    let Some((machine, mark)) = crashed(kind, act, n, when) else { continue };
                    any = true;
                    states += 1;
                    judge(&machine, act, mark.as_ref(), &format!("{kind:?} {act:?} {n} {when:?}"));
                }
                if !any {
                    break;
                }
            }
        }
    }
    println!("{states} crashes");
    assert!(states >= 100, "only {states} crashes were tried");
}

/// Whether a restore uses the snapshot up before it is made again.
fn merges(kind: Kind) -> bool {
    matches!(kind, Kind::Thick | Kind::ThickInactive)
}

/// What must hold after recovery.
fn judge(machine: &Machine, act: Act, mark: Option<&String>, at: &str) {
    let told = |what: String| -> ! { panic!("{at}: {what}\n  {}", machine.log()) };
    let recovered = machine.engine().recover(machine.volume());
    if let Err(e) = &recovered {
        told(format!("recovery fails: {e}"));
    }
    let sees = machine.sees().unwrap_or_else(|e| told(e));
    let slot = machine.slot();
    if !matches!(slot, State::Held { .. } | State::Empty | State::Disabled) {
        told(format!("the slot is {slot:?}"));
    }
    let now = machine.mark();
    // What was known of it is known still.
    if let (State::Held { occupant }, true) = (&slot, now.is_some() && now.as_ref() == mark) {
        let known = (occupant.note.as_deref(), occupant.consistency);
        if known != (Some("before"), Consistency::Offline) {
            told(format!("of the snapshot {known:?} is known"));
        }
    }
    // The snapshot that was held, the one that took its place, or none.
    match act {
        Act::Take if sees != 2 => told(format!("a take changed the content to {sees}")),
        Act::Replace if sees != 2 || now.is_none() => {
            told(format!("replacing left {sees} and {now:?}"));
        }
        Act::Delete if sees != 2 => told(format!("a delete changed the content to {sees}")),
        Act::Restore | Act::Consume if sees != 1 && sees != 2 => {
            told(format!("a restore left {sees}"));
        }
        // Only a merge uses its snapshot up.
        Act::Restore if now.as_ref() != mark && (now.is_some() || !merges(machine.kind)) => {
            told(format!("a restore lost the slot: {now:?}"));
        }
        Act::Take | Act::Delete if now.is_some() && act == Act::Delete && now.as_ref() != mark => {
            told(format!("a delete left {now:?}"));
        }
        // The content of then is never lost: it is in the slot or on the disk.
        Act::Restore | Act::Consume if sees == 2 && now.as_ref() != mark => {
            told(format!("neither restored nor held: {now:?}"));
        }
        _ => {}
    }
    // Recovering twice is recovering once.
    machine.engine().recover(machine.volume()).unwrap_or_else(|e| told(format!("again: {e}")));
    if (machine.sees(), machine.mark()) != (Ok(sees), now.clone()) {
        told("the second recovery changed something".to_owned());
    }
    // And the slot works on.
    if now.is_some() {
        let done = machine.run(Verb::Restore, &Asked::default());
        done.unwrap_or_else(|e| told(format!("restore after it: {e}")));
        let expected = if now.as_ref() == mark { 1 } else { 2 };
        if machine.sees() != Ok(expected) {
            told(format!("restored to {:?}, expected {expected}", machine.sees()));
        }
        let done = machine.run(Verb::Delete, &Asked::default());
        done.unwrap_or_else(|e| told(format!("delete after it: {e}")));
    }
    machine.write(9);
    machine
        .run(Verb::Take, &Asked::default())
        .unwrap_or_else(|e| told(format!("take after it: {e}")));
    let sees = machine.sees();
    if sees != Ok(9) {
        told(format!("after all that the machine sees {sees:?}"));
    }
}

#[test]
fn a_crash_in_recovery_is_recovered_from() {
    let mut states = 0;
    for kind in KINDS {
        for act in Act::ALL {
            for n in 1.. {
                let Some((machine, _)) = crashed(kind, act, n, When::After) else { break };
                drop(machine);
                for when in [When::Before, When::Inside, When::After] {
                    for second in 1.. {
                        let Some((machine, mark)) = crashed(kind, act, n, when) else { break };
                        machine.crash_at(second, When::Inside);
                        let result = machine.engine().recover(machine.volume());
                        if !machine.restart() {
                            let at = format!("{kind:?} {act:?} {n} {when:?}");
                            result.unwrap_or_else(|e| panic!("{at}: {e}\n  {}", machine.log()));
                            break;
                        }
                        states += 1;
                        let at = format!("{kind:?} {act:?} {n} {when:?}, recovery {second}");
                        judge(&machine, act, mark.as_ref(), &at);
                    }
                }
            }
        }
    }
    println!("{states} crashes inside recovery");
    assert!(states >= 10, "only {states} crashes were tried");
}

#[test]
fn a_command_that_fails_changes_nothing_or_is_ended() {
    let mut tried = 0;
    for kind in KINDS {
        for act in Act::ALL {
            for n in 1.. {
                let (machine, mark) = ready(kind, act);
                let (verb, asked) = act.verb();
                machine.trouble_at(n, Trouble::Fails);
                let result = machine.run(verb, &asked);
                let at = format!("{kind:?} {act:?} {n}");
                machine.restart();
                let Err(error) = result else { break };
                tried += 1;
                assert!(error.to_string().contains(machine.volume()), "{at}: {error}");
                judge(&machine, act, mark.as_ref(), &at);
            }
        }
    }
    println!("{tried} failures");
    assert!(tried >= 30, "only {tried} failures were tried");
}
