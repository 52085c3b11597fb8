//! Running the commands of a plan, one after the other.
//!
//! Nothing here is redone after a crash: a command may have run, or half run. Recovery looks at
//! the storage and asks for a new plan.

use snapslot_command::{Answer, Executor, RunError};

use crate::plan::Plan;
use crate::step::Act;

/// A command of a plan that did not do its work. Those before it did.
#[derive(Debug, thiserror::Error)]
#[error("`{}`: {cause}", .act.command)]
pub struct ActError {
    /// Its number among the plan's commands, from 0.
    pub number: usize,
    /// The command.
    pub act: Act,
    /// Why.
    #[source]
    pub cause: ActCause,
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ActCause {
    /// It said no.
    #[error("exit code {}: {}", .0.exit_code, .0.complaint())]
    Refused(Answer),
    /// What was to be changed is not what was planned for; the command was not run.
    #[error("`{look}` says {found:?} where {expected:?} was planned for")]
    Changed {
        /// The look.
        look: String,
        /// What it had to say.
        expected: String,
        /// What it said.
        found: String,
    },
    /// It gave no answer.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Runs a plan's commands. `progress` is told how many are done and how many there are.
pub fn run_acts(
    plan: &Plan,
    executor: &dyn Executor,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<u64, Box<ActError>> {
    let all = plan.acts().count() as u64;
    for (number, act) in plan.acts().enumerate() {
        run_act(act, executor)
            .map_err(|cause| Box::new(ActError { number, act: act.clone(), cause }))?;
        progress(number as u64 + 1, all);
    }
    Ok(all)
}

fn run_act(act: &Act, executor: &dyn Executor) -> Result<(), ActCause> {
    if let Some((look, expected)) = &act.guard {
        let answer = executor.run(look)?;
        if answer.exit_code != 0 {
            return Err(ActCause::Refused(answer));
        }
        let said = String::from_utf8_lossy(&answer.output);
        if said.trim() != expected {
            return Err(ActCause::Changed {
                look: look.to_string(),
                expected: expected.clone(),
                found: said.trim().chars().filter(|c| !c.is_control()).take(128).collect(),
            });
        }
    }
    let answer = executor.run(&act.command)?;
    if answer.exit_code != 0 {
        return Err(ActCause::Refused(answer));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    //! Goal: a guard that says otherwise stops the plan before the command, a failure after it.

    use std::sync::Mutex;
    use std::time::Duration;

    use snapslot_command::Command;

    use super::*;
    use crate::plan::PlanBuilder;

    struct Scripted(Mutex<Vec<String>>);

    impl Executor for Scripted {
        fn run(&self, command: &Command) -> Result<Answer, RunError> {
            let line = command.to_string();
            self.0.lock().expect("unpoisoned").push(line.clone());
            let exit_code = if line.contains("fail") { 5 } else { 0 };
            Ok(Answer { exit_code, output: b"  right\n".to_vec(), errors: b"no".to_vec() })
        }
    }

    fn command(program: &str, word: &str) -> Command {
        Command {
            program: program.to_owned(),
            arguments: vec![word.to_owned()],
            input: None,
            deadline: Duration::from_secs(1),
        }
    }

    fn run(expected: &str, words: [&str; 2]) -> (Result<u64, Box<ActError>>, Vec<String>) {
        let mut plan = PlanBuilder::new();
        for word in words {
            let guard = Some((command("lvs", "look"), expected.to_owned()));
            let act = Act { action: "do".to_owned(), command: command("lvremove", word), guard };
            plan.act(act).expect("a sound step");
        }
        let plan = plan.finish().expect("a sound plan");
        let scripted = Scripted(Mutex::new(Vec::new()));
        let result = run_acts(&plan, &scripted, &|_, _| ());
        (result, scripted.0.into_inner().expect("unpoisoned"))
    }

    #[test]
    fn guards_and_failures_stop() {
        let (result, ran) = run("right", ["a", "b"]);
        assert_eq!(result.expect("all ran"), 2);
        assert_eq!(ran, ["lvs look", "lvremove a", "lvs look", "lvremove b"]);

        let (result, ran) = run("wrong", ["a", "b"]);
        let error = result.expect_err("stopped");
        assert!(matches!(error.cause, ActCause::Changed { .. }), "{error}");
        assert_eq!(ran, ["lvs look"]);

        let (result, ran) = run("right", ["fail", "b"]);
        let error = result.expect_err("stopped");
        assert!(matches!(error.cause, ActCause::Refused(_)) && error.number == 0, "{error}");
        assert_eq!(ran, ["lvs look", "lvremove fail"]);
    }

    #[test]
    fn a_plan_keeps_to_one_way() {
        let mut plan = PlanBuilder::new();
        plan.write(0, vec![1]).expect("a sound step");
        let act = Act { action: "do".to_owned(), command: command("lvs", "x"), guard: None };
        assert!(plan.act(act).is_err());
        assert!(plan.finish().is_err());
    }
}
