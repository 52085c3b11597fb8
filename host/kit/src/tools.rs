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
