//! Storage that is changed by commands: a crash, or trouble, at every one.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Instant;

use snapslot_engine::{Asked, EngineError, Measure, Verb};
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::Kind;

use crate::bench::Bench;
use crate::cases::Cases;
use crate::machine::{Live, StorageMachine, mark, operate};
use snapslot_testkit::troubled::Trouble;

/// What was found sound: after which act, with what held before, in which state of everything.
type Known = RefCell<HashSet<(Act, Option<String>, u128)>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
        let asked = Asked::default();
        match self {
            Act::Take => (Verb::Take, asked),
            Act::Replace => (Verb::Take, Asked { replace: true, ..asked }),
            Act::Restore => (Verb::Restore, asked),
            Act::Consume => (Verb::Restore, Asked { consume: true, ..asked }),
            Act::Delete => (Verb::Delete, asked),
        }
    }

    fn word(self) -> &'static str {
        match self {
            Act::Take => "take",
            Act::Replace => "replace",
            Act::Restore => "restore",
            Act::Consume => "consume",
            Act::Delete => "delete",
        }
    }
}

/// A machine that is ready for the act: it sees generation 2; a slot that is held holds 1.
fn ready<'a>(
    bench: &'a Bench<'a>,
    kind: Kind,
    act: Act,
) -> Result<(StorageMachine<'a>, Option<String>), String> {
    let live = StorageMachine::new(bench, kind)?;
    let mut held = None;
    if act != Act::Take {
        operate(&live, Verb::Take, Asked::default())
            .map_err(|e| format!("the take before: {e}"))?;
        held = mark(&live)?;
    }
    live.storage.write(2);
    Ok((live, held))
}

/// The longest list of commands that a plan is tried with.
const COMMANDS_MAX: u64 = 64;

/// A crash before, inside and after every command.
pub fn crashes(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    let known = Known::default();
    for act in Act::ALL {
        let prefix = format!("crash/{kind:?}/{}", act.word());
        for n in 1..=COMMANDS_MAX {
            if !cases.may_want(&prefix) {
                break;
            }
            // A command that no case is wanted of may be there or not.
            let mut any = false;
            for when in [When::Before, When::Inside, When::After] {
                let name = format!("{prefix}/{n}/{when:?}");
                if !cases.wants(&name) {
                    any = true;
                    continue;
                }
                let mut reached = false;
                let begun = Instant::now();
                let outcome = cases.guarded(|| {
                    let (live, held) = ready(bench, kind, act)?;
                    let (verb, asked) = act.verb();
                    live.storage.crash_at(n, when);
                    let result = operate(&live, verb, asked);
                    reached = live.storage.restart();
                    let rest = match reached {
                        true => judged(&live, act, held.as_ref(), &known),
                        false => result.map(|_| ()).map_err(|e| e.to_string()),
                    };
                    rest.map(|()| None).map_err(|e| told(&live, e))
                });
                if reached || outcome.0 != crate::Outcome::Held {
                    cases.ran(&name, outcome, begun.elapsed());
                    any |= reached;
                }
            }
            if !any {
                break;
            }
        }
        inside_recovery(bench, kind, act, &known, cases);
    }
}

/// A crash at a command, and another one in the recovery from it.
fn inside_recovery(bench: &Bench<'_>, kind: Kind, act: Act, known: &Known, cases: &mut Cases<'_>) {
    cases.run_telling(&format!("crash/{kind:?}/{}/inside-recovery", act.word()), || {
        let mut crashes = 0;
        for n in 1..=COMMANDS_MAX {
            for (first, then) in [
                (When::After, When::Before),
                (When::After, When::Inside),
                (When::After, When::After),
                (When::Inside, When::Inside),
            ] {
                for second in 1..=COMMANDS_MAX {
                    let (live, held) = ready(bench, kind, act)?;
                    let (verb, asked) = act.verb();
                    live.storage.crash_at(n, first);
                    let _ = operate(&live, verb, asked);
                    if !live.storage.restart() {
                        return Ok(Some(format!("{crashes} crashes in recovery")));
                    }
                    live.storage.crash_at(second, then);
                    let engine = live.engine().map_err(|e| e.to_string())?;
                    let _ = engine.recover(&live.volume());
                    let reached = live.storage.restart();
                    judged(&live, act, held.as_ref(), known).map_err(|e| {
                        told(
                            &live,
                            format!("crashed at {n} {first:?}, and at {second} {then:?} in recovery: {e}"),
                        )
                    })?;
                    if !reached {
                        break;
                    }
                    crashes += 1;
                }
            }
        }
        Ok(Some(format!("{crashes} crashes in recovery")))
    });
}

/// Trouble with every command, looks too: with that one, or with it and all after it.
pub fn troubles(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    looks(bench, kind, cases);
    let known = Known::default();
    for act in Act::ALL {
        for trouble in Trouble::ALL {
            for for_ever in [false, true] {
                let word = if for_ever { "-for-ever" } else { "" };
                let prefix = format!("trouble/{kind:?}/{}/{trouble:?}{word}", act.word());
                for n in 1..=COMMANDS_MAX {
                    if !cases.may_want(&prefix) {
                        break;
                    }
                    let name = format!("{prefix}/{n}");
                    if !cases.wants(&name) {
                        continue;
                    }
                    let mut came = false;
                    let begun = Instant::now();
                    let outcome = cases.guarded(|| {
                        let (live, held) = ready(bench, kind, act)?;
                        let (verb, asked) = act.verb();
                        live.trouble.at(n, for_ever, trouble);
                        let result = operate(&live, verb, asked);
                        // Beyond its last command nothing is disturbed any more.
                        came = live.trouble.over();
                        let rest = said(&result, trouble)
                            .and_then(|()| kept(&live, act, held.as_ref(), &result))
                            .and_then(|()| judged(&live, act, held.as_ref(), &known));
                        rest.map(|()| None).map_err(|e| told(&live, e))
                    });
                    if !came && outcome.0 == crate::Outcome::Held {
                        break;
                    }
                    cases.ran(&name, outcome, begun.elapsed());
                }
            }
        }
    }
}

/// What is said to be done is done: looked at again, now that nothing is disturbed.
fn kept<T, E>(
    live: &StorageMachine<'_>,
    act: Act,
    held: Option<&String>,
    result: &Result<T, E>,
) -> Result<(), String> {
    if result.is_err() {
        return Ok(());
    }
    let (sees, now) = (live.storage.sees()?, mark(live)?);
    let is = match act {
        Act::Take | Act::Replace => sees == 2 && now.is_some() && now.as_ref() != held,
        Act::Restore => sees == 1 && now.as_ref() == held,
        Act::Consume => sees == 1 && now.is_none() && live.left().is_empty(),
        Act::Delete => sees == 2 && now.is_none() && live.left().is_empty(),
    };
    match is {
        true => Ok(()),
        false => Err(format!(
            "{} is said to be done: the guest sees {sees}, the slot is held by {now:?}, before it was by {held:?}, \
             and of ours there is {:?}",
            act.word(),
            live.left()
        )),
    }
}

/// A look that is disturbed shows the slot as it is, or fails: it never shows another.
fn looks(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    for trouble in Trouble::ALL {
        for for_ever in [false, true] {
            let word = if for_ever { "-for-ever" } else { "" };
            cases.run_telling(&format!("trouble/{kind:?}/status/{trouble:?}{word}"), || {
                let (live, held) = ready(bench, kind, Act::Restore)?;
                for n in 1..=COMMANDS_MAX {
                    live.trouble.at(n, for_ever, trouble);
                    let engine = live.engine().map_err(|e| e.to_string())?;
                    let status = engine.status(&live.volume(), Measure::Wholly);
                    let came = live.trouble.over();
                    match &status {
                        Ok(status) if status.slot.occupant().map(|o| &o.mark) != held.as_ref() => {
                            return Err(told(
                                &live,
                                format!(
                                    "at command {n} the slot is told to be {}",
                                    status.slot.word()
                                ),
                            ));
                        }
                        _ => said(&status, trouble)?,
                    }
                    if !came {
                        return Ok(Some(format!("{} commands", n - 1)));
                    }
                }
                Ok(None)
            });
        }
    }
}

/// What is said of a failure is said of the storage or of the plugin's refusal, in words fit for a terminal.
fn said<T>(result: &Result<T, EngineError>, trouble: Trouble) -> Result<(), String> {
    let Err(error) = result else { return Ok(()) };
    let words = error.to_string();
    if error.code() == "plugin-fault" {
        return Err(format!("the plugin breaks down: {words}"));
    }
    if words.chars().any(char::is_control) {
        return Err(format!("control characters reach the terminal: {words:?}"));
    }
    // The exit codes of the contract's kinds: trouble of the storage is 1, what it says of itself may make it
    // unsupported (6) or in use (5), what is half done needs a person (8). Never the plugin's own fault (7),
    // and never the slot's rule (3, 4): the slot's state is not what a troubled command says it is.
    match error.exit() {
        1 | 5 | 6 | 8 => Ok(()),
        exit => Err(format!("{trouble:?} of a command ends with exit code {exit}: {words}")),
    }
}

fn told(live: &StorageMachine<'_>, what: String) -> String {
    format!("{what}\nthe commands were\n  {}", live.storage.log().join("\n  "))
}

/// What must hold after recovery.
///
/// Most disturbances lead to one of a few states. What comes of a state is looked at once: one that was found
/// sound is not gone through again.
fn judged(
    live: &StorageMachine<'_>,
    act: Act,
    held: Option<&String>,
    known: &Known,
) -> Result<(), String> {
    let state = (act, held.cloned(), live.everything()?);
    if !known.borrow().contains(&state) {
        judged_anew(live, act, held)?;
        known.borrow_mut().insert(state);
    }
    Ok(())
}

fn judged_anew(live: &StorageMachine<'_>, act: Act, held: Option<&String>) -> Result<(), String> {
    let engine = |what: &str| live.engine().map_err(|e| format!("{what}: {e}"));
    engine("recovery")?.recover(&live.volume()).map_err(|e| format!("recovery fails: {e}"))?;
    let sees = live.storage.sees()?;
    let now = mark(live)?;
    match act {
        Act::Take if sees != 2 => return Err(format!("a take changed the content to {sees}")),
        Act::Replace if sees != 2 || now.is_none() => {
            return Err(format!("replacing left {sees} and {now:?}"));
        }
        Act::Delete if sees != 2 => return Err(format!("a delete changed the content to {sees}")),
        Act::Restore | Act::Consume if sees != 1 && sees != 2 => {
            return Err(format!("a restore left {sees}"));
        }
        Act::Restore | Act::Consume if sees == 2 && now.as_ref() != held => {
            return Err(format!("neither restored nor held: {now:?}"));
        }
        _ => {}
    }
    engine("a second recovery")?.recover(&live.volume()).map_err(|e| format!("again: {e}"))?;
    if (live.storage.sees()?, mark(live)?) != (sees, now.clone()) {
        return Err("a second recovery changed something".to_owned());
    }
    // And the slot works on.
    if now.is_some() {
        operate(live, Verb::Restore, Asked::default())
            .map_err(|e| format!("a restore after it: {e}"))?;
        let expected = if now.as_ref() == held { 1 } else { 2 };
        if live.storage.sees()? != expected {
            return Err(format!("restored to {}, not {expected}", live.storage.sees()?));
        }
        operate(live, Verb::Delete, Asked::default())
            .map_err(|e| format!("a delete after it: {e}"))?;
    }
    // Neither a snapshot nor half of one is left.
    let left = live.left();
    if !left.is_empty() {
        return Err(format!("left behind: {}", left.join(", ")));
    }
    live.storage.write(9);
    operate(live, Verb::Take, Asked::default()).map_err(|e| format!("a take after it: {e}"))?;
    match live.storage.sees()? {
        9 => Ok(()),
        other => Err(format!("after all that the guest sees {other}")),
    }
}
