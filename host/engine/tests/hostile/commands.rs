//! What it does to storage that is changed by commands: modelled ZFS, on which every command that was
//! run is written down.

use std::sync::Arc;
use std::time::Duration;

use snapslot_command::{Answer, Command, Executor, RunError};
use snapslot_engine::{Asked, Confine, PlaceKind, Tools, Verb};
use snapslot_testkit::storage::machine::{Kind, Machine as Storage};

use crate::{BRISK, HASTY, PATIENT, confined, is_told, numbered, opened};

const VOLUME: &str = "hostile:tank/vm1";

/// The number of its description, what it does then, and the exit code it is worth.
const CASES: [(usize, &str, u8); 10] = [
    (51, "names its snapshot like an option", 7),
    (52, "asks for help", 7),
    (53, "names another's snapshot", 7),
    (54, "names two in one", 7),
    (55, "asks for ever", 7),
    (56, "names another dataset", 7),
    (57, "acts as it was not declared", 7),
    (58, "plans nothing", 7),
    (59, "plans a thousand commands", 7),
    (61, "leaves a hole", 7),
];

/// Storage of which some command fails with this exit code.
struct Failing(Storage, i32);

impl Executor for Failing {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        match command.arguments.first().is_some_and(|verb| verb == "snapshot") {
            true => Ok(Answer {
                exit_code: self.1,
                output: Vec::new(),
                errors: b"cannot create snapshot: the pool is on fire\n".to_vec(),
            }),
            false => self.0.run(command),
        }
    }
}

fn changes(storage: &Storage) -> Vec<String> {
    let looks = |line: &String| line.contains("zfs list") || line.contains("zfs get");
    storage.log().into_iter().filter(|line| !looks(line)).collect()
}

fn take(
    scratch: &std::path::Path,
    number: usize,
    confine: Confine,
    limit: Option<Duration>,
    tools: Arc<dyn Executor>,
) -> Result<snapslot_engine::Done, snapslot_engine::EngineError> {
    let component = numbered(number);
    let tools = Some(Tools(tools));
    let engine = opened(scratch, component, PlaceKind::ZfsDataset, confine, limit, tools)?;
    engine.operate(VOLUME, Verb::Take, &Asked::default(), &|_, _, _| ())
}

#[test]
fn no_command_is_run_that_it_may_not_have() {
    for confine in [confined(), Confine::Here] {
        for (number, case, exit) in CASES {
            let scratch = tempfile::tempdir().expect("a directory");
            let storage = Storage::new(Kind::Zvol);
            storage.write(2);
            // It asks for ever.
            let limit = if number == 55 { HASTY } else { PATIENT };
            let tools = Arc::new(storage.clone());
            let result = take(scratch.path(), number, confine.clone(), limit, tools);
            let error = result.expect_err(case);
            assert_eq!(error.exit(), exit, "{case}: {error}");
            is_told(case, &error, "hostile:tank/vm1");
            // Story: what it waited for its commands was never its own time, so one that asked on for ever,
            // and was told no for ever, was not ended.
            let text = error.to_string();
            assert!(number != 55 || text.contains("computed for longer"), "{case}: {text}");
            assert_eq!(changes(&storage), Vec::<String>::new(), "{case}");
            assert_eq!(storage.sees(), Ok(2), "{case}");
        }
    }
    println!("{} cases", 2 * CASES.len());
}

#[test]
fn the_same_plugin_can_do_it_right() {
    let scratch = tempfile::tempdir().expect("a directory");
    let storage = Storage::new(Kind::Zvol);
    storage.write(2);
    take(scratch.path(), 50, confined(), PATIENT, Arc::new(storage.clone())).expect("a take");
    storage.write(3);
    let tools = Some(Tools(Arc::new(storage.clone())));
    let kind = PlaceKind::ZfsDataset;
    let engine = opened(scratch.path(), numbered(50), kind, confined(), PATIENT, tools);
    let engine = engine.expect("an engine");
    let run = |verb| engine.operate(VOLUME, verb, &Asked::default(), &|_, _, _| ());
    run(Verb::Restore).expect("a restore");
    assert_eq!(storage.sees(), Ok(2));
    run(Verb::Delete).expect("a delete");
}

/// A command of its plan fails, and it is asked what that means.
#[test]
fn a_failure_it_cannot_explain_is_told_in_the_tools_own_words() {
    for (code, case, limit) in [
        (41, "explain-loops", BRISK),
        (42, "explain-traps", PATIENT),
        (43, "explains in colours", PATIENT),
    ] {
        for confine in [confined(), Confine::Here] {
            let scratch = tempfile::tempdir().expect("a directory");
            let storage = Storage::new(Kind::Zvol);
            storage.write(2);
            let tools = Arc::new(Failing(storage.clone(), code));
            let error = take(scratch.path(), 50, confine, limit, tools).expect_err(case);
            assert_eq!(error.exit(), 1, "{case}: {error}");
            is_told(case, &error, "hostile:tank/vm1");
            let text = error.to_string();
            assert!(code == 43 || text.contains("the pool is on fire"), "{case}: {text}");
            assert_eq!(storage.sees(), Ok(2), "{case}");
        }
    }
}

/// It made a snapshot, and says afterwards that there is none.
#[test]
fn facts_that_change_when_it_is_done_are_told() {
    let scratch = tempfile::tempdir().expect("a directory");
    let storage = Storage::new(Kind::Zvol);
    storage.write(2);
    let error = take(scratch.path(), 60, confined(), PATIENT, Arc::new(storage.clone()));
    let error = error.expect_err("a lie");
    is_told("facts that change", &error, "hostile:tank/vm1");
    assert!(matches!(error.exit(), 7 | 8), "{error}");
    assert_eq!(storage.sees(), Ok(2));
}
