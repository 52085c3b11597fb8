//! Storage that is changed by commands: a crash, or trouble, at every one.

use std::time::Instant;

use snapslot_engine::{Asked, Verb};
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::{Kind, Trouble};

use crate::life::{Live, StorageMachine, mark, operate};
use crate::{Bench, Cases};

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

pub fn crashes(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    for act in Act::ALL {
        for n in 1..=COMMANDS_MAX {
            let mut any = false;
            for when in [When::Before, When::Inside, When::After] {
                let name = format!("crash/{kind:?}/{}/{n}/{when:?}", act.word());
                let mut reached = false;
                let mut tried = || -> Result<(), String> {
                    let (live, held) = ready(bench, kind, act)?;
                    let (verb, asked) = act.verb();
                    live.storage.crash_at(n, when);
                    let result = operate(&live, verb, asked);
                    reached = live.storage.restart();
                    if !reached {
                        return result.map(|_| ()).map_err(|e| told(&live, e.to_string()));
                    }
                    judged(&live, act, held.as_ref()).map_err(|e| told(&live, e))
                };
                if !cases.wants(&name) {
                    // Whether there is such a command has to be known all the same.
                    any = true;
                    continue;
                }
                let begun = Instant::now();
                let outcome = tried();
                if reached || outcome.is_err() {
                    cases.ran(&name, outcome, begun.elapsed());
                    any |= reached;
                }
            }
            if !any || cases.options.only.is_some() && n > 30 {
                break;
            }
        }
    }
    if cases.options.only.is_none() {
        inside_recovery(bench, kind, cases);
    }
}

/// A crash at a command, and another one in the recovery from it.
fn inside_recovery(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    for act in Act::ALL {
        cases.run(&format!("crash/{kind:?}/{}/inside-recovery", act.word()), || {
            for n in 1..=COMMANDS_MAX {
                for second in 1..=COMMANDS_MAX {
                    let (live, held) = ready(bench, kind, act)?;
                    let (verb, asked) = act.verb();
                    live.storage.crash_at(n, When::After);
                    let _ = operate(&live, verb, asked);
                    if !live.storage.restart() {
                        return Ok(());
                    }
                    live.storage.crash_at(second, When::Inside);
                    let engine = live.engine().map_err(|e| e.to_string())?;
                    let _ = engine.recover(&live.volume());
                    let reached = live.storage.restart();
                    judged(&live, act, held.as_ref()).map_err(|e| {
                        told(&live, format!("crashed at {n}, and at {second} in recovery: {e}"))
                    })?;
                    if !reached {
                        break;
                    }
                }
            }
            Ok(())
        });
    }
}

pub fn troubles(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    for act in Act::ALL {
        for trouble in Trouble::ALL {
            for n in 1..=COMMANDS_MAX {
                let name = format!("trouble/{kind:?}/{}/{trouble:?}/{n}", act.word());
                if !cases.wants(&name) {
                    break;
                }
                let mut failed = false;
                let mut tried = || -> Result<(), String> {
                    let (live, held) = ready(bench, kind, act)?;
                    let (verb, asked) = act.verb();
                    let before = live.storage.log().len();
                    live.storage.trouble_at(n, trouble);
                    let result = operate(&live, verb, asked);
                    // Beyond its last command nothing is disturbed any more.
                    failed = (live.storage.log().len() - before) as u64 >= n;
                    live.storage.restart();
                    if let Err(error) = &result {
                        if error.code() == "plugin-fault" {
                            return Err(told(&live, format!("the plugin breaks down: {error}")));
                        }
                        let words = error.to_string();
                        if words.chars().any(char::is_control) {
                            return Err(format!(
                                "control characters reach the terminal: {words:?}"
                            ));
                        }
                    }
                    judged(&live, act, held.as_ref()).map_err(|e| told(&live, e))
                };
                let begun = Instant::now();
                let outcome = tried();
                if !failed && outcome.is_ok() {
                    break;
                }
                cases.ran(&name, outcome, begun.elapsed());
            }
        }
    }
}

fn told(live: &StorageMachine<'_>, what: String) -> String {
    format!("{what}\nthe commands were\n  {}", live.storage.log().join("\n  "))
}

/// What must hold after recovery.
fn judged(live: &StorageMachine<'_>, act: Act, held: Option<&String>) -> Result<(), String> {
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
    live.storage.write(9);
    operate(live, Verb::Take, Asked::default()).map_err(|e| format!("a take after it: {e}"))?;
    match live.storage.sees()? {
        9 => Ok(()),
        other => Err(format!("after all that the guest sees {other}")),
    }
}
