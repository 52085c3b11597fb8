//! What runs commands in the kit: a model of storage, or nothing. Never a program of this machine.

use std::sync::{Arc, Mutex, PoisonError};

use snapslot_command::{Answer, Command, Executor, RunError};

use crate::cases::quietly;

/// Remembers the first thing that was asked for and that the kit has no model of.
#[derive(Clone, Debug, Default)]
pub struct Beyond(Arc<Mutex<Option<String>>>);

impl Beyond {
    /// Notes that something could not be tried: what then fails is no failure of the plugin's.
    pub fn note(&self, what: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(what);
    }

    /// What it was, since this was last asked.
    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// What every engine and every plugin of the kit gets for running commands.
///
/// A type of its own, so that an engine cannot be made here without one.
///
/// Story: a plugin whose volumes are images, and whose plans hold commands all the same, was tried with
/// this machine's own programs: what nobody had approved yet was run as whoever tried it.
#[derive(Clone)]
pub struct KitTools {
    model: Option<Arc<dyn Executor>>,
    beyond: Beyond,
}

impl KitTools {
    /// No program is there.
    pub fn none(beyond: &Beyond) -> KitTools {
        KitTools { model: None, beyond: beyond.clone() }
    }

    /// A model answers.
    pub fn model(model: Arc<dyn Executor>, beyond: &Beyond) -> KitTools {
        KitTools { model: Some(model), beyond: beyond.clone() }
    }
}

impl Executor for KitTools {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let missing = |why: &str| {
            self.beyond.note(format!("it asks for `{command}`: {why}"));
            RunError::Missing { program: command.program.clone(), why: why.to_owned() }
        };
        let Some(model) = &self.model else {
            return Err(missing("the kit runs no program of this machine"));
        };
        // A model panics at what it was never told, rather than guess.
        let mut answer = None;
        let panicked = quietly(|| {
            answer = Some(model.run(command));
            Ok(())
        });
        match (answer, panicked) {
            (Some(answer), _) => answer,
            (None, why) => Err(missing(&why.err().unwrap_or_default())),
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: whoever asks for a program is told that it is missing, even where this machine has it; and the kit
    //! knows that something was asked for that it could not try.

    use std::time::Duration;

    use super::*;

    #[test]
    fn no_program_is_run() {
        let scratch = tempfile::tempdir().expect("a directory");
        let planted = scratch.path().join("planted");
        let beyond = Beyond::default();
        let command = Command {
            program: "touch".to_owned(),
            arguments: vec![planted.display().to_string()],
            input: None,
            deadline: Duration::from_secs(10),
        };
        let answer = KitTools::none(&beyond).run(&command);
        assert!(matches!(answer, Err(RunError::Missing { .. })), "{answer:?}");
        assert!(!planted.exists());
        assert!(beyond.take().is_some_and(|why| why.contains("touch")));
    }
}
