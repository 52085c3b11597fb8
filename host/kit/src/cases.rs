//! Cases: which are wanted, what came of each, and what one leans on another for.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::report::{Case, Outcome};
use crate::tools::Beyond;

/// Which cases are wanted.
///
/// By whole parts of a name: `crash/Thin/restore/3` is that case and those below it, and not
/// `crash/Thin/restore/30`.
#[derive(Clone, Debug, Default)]
pub struct Selection(pub Option<String>);

impl Selection {
    /// Whether the case of this name is wanted.
    pub fn wants(&self, name: &str) -> bool {
        self.0.as_deref().is_none_or(|only| is_below(name, only))
    }

    /// Whether a case of this name or below it may be.
    pub fn may_want(&self, name: &str) -> bool {
        self.wants(name) || self.0.as_deref().is_some_and(|only| is_below(only, name))
    }
}

fn is_below(name: &str, of: &str) -> bool {
    let of = of.trim_end_matches('/');
    name.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Where a run that ends at its first failure has ended: at this part of it.
pub struct Stop(AtomicUsize);

impl Stop {
    pub fn new() -> Stop {
        Stop(AtomicUsize::new(usize::MAX))
    }

    fn at(&self, part: usize) {
        self.0.fetch_min(part, Ordering::Relaxed);
    }

    /// Parts before the one that failed are done to their end, so that what is reported does not hang
    /// on how fast each was.
    fn is_before(&self, part: usize) -> bool {
        self.0.load(Ordering::Relaxed) < part
    }
}

/// What a case found: nothing to say, or some words, as how many states were looked at.
pub type Found = Result<Option<String>, String>;

/// The cases of one part of a run.
pub struct Cases<'a> {
    pub selection: &'a Selection,
    pub progress: &'a (dyn Fn(&Case) + Sync),
    /// Set if the run ends at its first failure.
    pub stop: Option<&'a Stop>,
    pub part: usize,
    /// Tells whether the plugin asked for something that the kit has no model of.
    pub beyond: &'a Beyond,
    /// What differs from run to run and must not stand in a report, and what stands there instead.
    pub hide: (String, &'static str),
    pub cases: Vec<(Case, Duration)>,
    pub over: bool,
}

/// One of several steps, each of which goes on from where the one before it ended.
pub struct Step<'s> {
    name: String,
    run: Box<dyn FnMut() -> Found + 's>,
    /// Whether the others go on without it where it cannot be tried.
    optional: bool,
}

impl<'s> Step<'s> {
    pub fn new(name: impl Into<String>, mut run: impl FnMut() -> Result<(), String> + 's) -> Self {
        Step { name: name.into(), run: Box::new(move || run().map(|()| None)), optional: false }
    }

    pub fn telling(name: impl Into<String>, run: impl FnMut() -> Found + 's) -> Self {
        Step { name: name.into(), run: Box::new(run), optional: false }
    }

    /// The others go on without it where it cannot be tried.
    pub fn optional(self) -> Self {
        Step { optional: true, ..self }
    }
}

impl Cases<'_> {
    /// Whether the case of this name is to be run.
    pub fn wants(&self, name: &str) -> bool {
        self.goes_on() && self.selection.wants(name)
    }

    /// Whether one of this name or below it may be.
    pub fn may_want(&self, name: &str) -> bool {
        self.goes_on() && self.selection.may_want(name)
    }

    /// Whether no failure has ended this part, or one before it.
    pub fn goes_on(&self) -> bool {
        !self.over && self.stop.is_none_or(|stop| !stop.is_before(self.part))
    }

    /// Runs a case that leans on no other.
    pub fn run(&mut self, name: &str, f: impl FnOnce() -> Result<(), String>) {
        self.run_telling(name, || f().map(|()| None));
    }

    /// The same, with something to tell.
    pub fn run_telling(&mut self, name: &str, f: impl FnOnce() -> Found) {
        if self.wants(name) {
            let begun = Instant::now();
            let outcome = self.guarded(f);
            self.add(name, outcome, begun.elapsed());
        }
    }

    /// Runs steps that go on from one another. Those that are not wanted are run all the same if one
    /// behind them is, and not reported: what they lead to is needed. After one that fails the others
    /// are not tried.
    pub fn script(&mut self, steps: Vec<Step<'_>>) {
        let Some(last) = steps.iter().rposition(|s| self.wants(&s.name)) else { return };
        let mut ended: Option<String> = None;
        for Step { name, run, optional } in steps.into_iter().take(last + 1) {
            let wanted = self.wants(&name);
            if let Some(before) = &ended {
                let why = format!("it goes on from {before}, which did not hold");
                self.not_tried(&name, &why);
                continue;
            }
            let begun = Instant::now();
            let outcome = self.guarded(run);
            let goes_on = match outcome.0 {
                Outcome::NotTried { .. } => optional,
                _ => matches!(outcome.0, Outcome::Held),
            };
            if !goes_on {
                ended = Some(name.clone());
            }
            if wanted {
                self.add(&name, outcome, begun.elapsed());
            }
            if !self.goes_on() {
                return;
            }
        }
    }

    /// Runs something of a case. What panics is told as a failure: the kit's judges panic at what they
    /// cannot even read.
    pub fn guarded(&self, f: impl FnOnce() -> Found) -> (Outcome, Option<String>) {
        self.beyond.take();
        let found = quietly(f);
        let beyond = self.beyond.take();
        match (found, beyond) {
            (Ok(told), _) => (Outcome::Held, told),
            (Err(_), Some(why)) => (Outcome::NotTried { why: self.hidden(&why) }, None),
            (Err(why), None) => (Outcome::Failed { why: self.hidden(&why) }, None),
        }
    }

    /// Adds one that was run already.
    pub fn ran(&mut self, name: &str, outcome: (Outcome, Option<String>), took: Duration) {
        if self.wants(name) {
            self.add(name, outcome, took);
        }
    }

    /// It could have been tried, and was not.
    pub fn not_tried(&mut self, name: &str, why: &str) {
        if self.wants(name) {
            let why = self.hidden(why);
            self.add(name, (Outcome::NotTried { why }, None), Duration::ZERO);
        }
    }

    /// There is nothing of the kind in this plugin.
    pub fn does_not_apply(&mut self, name: &str, why: &str) {
        if self.wants(name) {
            let why = why.to_owned();
            self.add(name, (Outcome::DoesNotApply { why }, None), Duration::ZERO);
        }
    }

    fn hidden(&self, text: &str) -> String {
        text.replace(&self.hide.0, self.hide.1)
    }

    fn add(&mut self, name: &str, (outcome, told): (Outcome, Option<String>), took: Duration) {
        let case = Case { name: name.to_owned(), outcome, told };
        (self.progress)(&case);
        if let (Outcome::Failed { .. }, Some(stop)) = (&case.outcome, self.stop) {
            stop.at(self.part);
            self.over = true;
        }
        self.cases.push((case, took));
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs something whose panics are results, and not news for the terminal.
pub fn quietly<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    let was = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.set(was);
    result.unwrap_or_else(|panic| {
        let words = (panic.downcast_ref::<String>().map(String::as_str))
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(words.unwrap_or("the kit broke down over it").to_owned())
    })
}

#[cfg(test)]
mod tests {
    //! Goal: a name means one case and those below it; what a case leans on is run, and not told.

    use super::*;

    fn run(only: Option<&str>, failing: &str) -> Vec<(String, &'static str)> {
        let selection = Selection(only.map(str::to_owned));
        let beyond = Beyond::default();
        let mut cases = Cases {
            selection: &selection,
            progress: &|_| (),
            stop: None,
            part: 0,
            beyond: &beyond,
            hide: ("/tmp/x1".to_owned(), "/scratch"),
            cases: Vec::new(),
            over: false,
        };
        let count = Cell::new(0);
        let step = |name: &str, needs: u32| {
            let fails = name == failing;
            let count = &count;
            Step::new(name, move || {
                assert_eq!(count.replace(needs + 1), needs, "what it goes on from was not run");
                if fails { Err("no, in /tmp/x1/3".to_owned()) } else { Ok(()) }
            })
        };
        cases.script(vec![step("a/1", 0), step("a/2", 1), step("a/10", 2)]);
        let word = |o: &Outcome| match o {
            Outcome::Held => "held",
            Outcome::Failed { why } if why.contains("/scratch/3") => "failed",
            Outcome::NotTried { .. } => "not tried",
            _ => "something else",
        };
        cases.cases.iter().map(|(c, _)| (c.name.clone(), word(&c.outcome))).collect()
    }

    #[test]
    fn what_a_step_goes_on_from_is_run_and_not_told() {
        let all = run(None, "");
        assert_eq!(all.len(), 3);
        for (name, word) in all {
            assert_eq!(run(Some(&name), ""), [(name.clone(), word)]);
        }
        assert_eq!(run(Some("a"), "").len(), 3);
        assert!(run(Some("b"), "").is_empty());
    }

    #[test]
    fn what_goes_on_from_a_failure_is_not_tried_alone_or_with_all() {
        let all = run(None, "a/2");
        let words: Vec<_> = all.iter().map(|(_, word)| *word).collect();
        assert_eq!(words, ["held", "failed", "not tried"]);
        for (name, word) in all {
            assert_eq!(run(Some(&name), "a/2"), [(name.clone(), word)]);
        }
    }

    #[test]
    fn a_panic_is_a_failure_in_words() {
        let panicked = quietly::<()>(|| panic!("as {}", "told"));
        assert_eq!(panicked, Err("as told".to_owned()));
    }
}
