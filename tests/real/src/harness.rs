//! Scenarios and checks: the smallest harness that does not let a failure pass.
//!
//! A scenario is a function over fixtures of its own; a check is a named closure that panics to
//! fail, with everything that is needed to understand it in the message. After a failed
//! [`Test::step`] the scenario ends, since what follows builds on it; a failed [`Test::case`]
//! lets the others go on. A scenario without a check is a failure too.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::time::Instant;

use crate::scenarios;
use crate::subject::Subject;

/// Which guest runs it: one guest a group, so that two processors are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// LVM, without udev.
    Lvm,
    /// ZFS, and what needs both; with udev.
    Zfs,
}

impl Group {
    /// As the runner outside names it.
    pub fn word(self) -> &'static str {
        match self {
            Group::Lvm => "lvm",
            Group::Zfs => "zfs",
        }
    }
}

/// One scenario.
pub struct Scenario {
    pub group: Group,
    pub name: &'static str,
    /// What it shows, in a line.
    pub shows: &'static str,
    pub run: fn(&mut Test),
}

/// What a scenario works with.
pub struct Test {
    /// The engine with records of its own.
    pub subject: Subject,
    name: &'static str,
    quick: bool,
    records: u32,
    checks: u32,
    failed: u32,
}

/// The scenario cannot go on; it was printed already.
struct Stop;

impl Test {
    /// Whether a part will do of what is done again and again.
    pub fn is_quick(&self) -> bool {
        self.quick
    }

    /// From here on the engine knows nothing of what it did before.
    pub fn fresh_records(&mut self) {
        self.records += 1;
        self.subject = self.subject.named(&format!("{}-{}", self.name, self.records));
    }

    /// A check that others build on: when it fails, the scenario ends.
    pub fn step<T>(&mut self, name: &str, check: impl FnOnce(&Subject) -> T) -> T {
        match self.attempt(name, check) {
            Some(value) => value,
            None => resume_unwind(Box::new(Stop)),
        }
    }

    /// A check of its own.
    pub fn case<T>(&mut self, name: &str, check: impl FnOnce(&Subject) -> T) -> Option<T> {
        self.attempt(name, check)
    }

    fn attempt<T>(&mut self, name: &str, check: impl FnOnce(&Subject) -> T) -> Option<T> {
        self.checks += 1;
        let began = Instant::now();
        match catch_unwind(AssertUnwindSafe(|| check(&self.subject))) {
            Ok(value) => {
                println!("ok {}: {name} ({:.1} s)", self.name, began.elapsed().as_secs_f64());
                Some(value)
            }
            Err(panic) => {
                self.failed += 1;
                println!("FAILED {}: {name}: {}", self.name, indented(&told(panic.as_ref())));
                None
            }
        }
    }
}

thread_local! {
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

fn told(panic: &(dyn Any + Send)) -> String {
    let words = panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "a panic without words".to_owned());
    PLACE.with(|place| format!("{words} [{}]", place.borrow()))
}

/// So that no line of a message looks like one of the protocol.
fn indented(text: &str) -> String {
    text.trim_end().replace('\r', "").replace('\n', "\n    ")
}

/// Runs these scenarios in this order; whether all checks held.
pub fn run(binary: &Path, names: &[&str], quick: bool) -> Result<bool, String> {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line()));
        PLACE.with(|p| *p.borrow_mut() = place.unwrap_or_default());
    }));
    let chosen = names
        .iter()
        .map(|name| {
            let found = scenarios::ALL.iter().find(|s| s.name == *name);
            found.ok_or_else(|| format!("there is no scenario {name}"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let base = catch_unwind(|| Subject::prepare(binary));
    let base = base.map_err(|panic| indented(&told(panic.as_ref())))?;
    let mut all_held = true;
    for scenario in chosen {
        println!("SCENARIO {}", scenario.name);
        let began = Instant::now();
        let mut test = Test {
            subject: base.named(scenario.name),
            name: scenario.name,
            quick,
            records: 0,
            checks: 0,
            failed: 0,
        };
        let ended = catch_unwind(AssertUnwindSafe(|| (scenario.run)(&mut test)));
        if let Err(panic) = ended
            && !panic.is::<Stop>()
        {
            test.failed += 1;
            println!(
                "FAILED {}: outside of a check: {}",
                test.name,
                indented(&told(panic.as_ref()))
            );
        }
        if test.checks == 0 {
            test.failed += 1;
            println!("FAILED {}: it checked nothing", test.name);
        }
        if let Err(panic) = catch_unwind(scenarios::clear) {
            test.failed += 1;
            println!("FAILED {}: clearing up: {}", test.name, indented(&told(panic.as_ref())));
        }
        let seconds = began.elapsed().as_secs_f64();
        println!("DONE {} {} {} {seconds:.1}", test.name, test.checks, test.failed);
        all_held &= test.failed == 0;
    }
    Ok(all_held)
}
