//! What can go wrong with a plugin.

use crate::bindings::types::{Failure, FailureKind};
use crate::flaw::{Flaw, in_words};

/// A plugin that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The component itself.
    #[error("the component cannot be used: {}", in_words(.flaws))]
    Flawed {
        /// All that is wrong with it.
        flaws: Vec<Flaw>,
    },
    /// It asks for more than a person approved.
    #[error(
        "the component asks for what nobody approved: {}; `snapslot plugin add` with its file shows it and asks",
        .grants.join(", ")
    )]
    NotApproved {
        /// The names of the grants.
        grants: Vec<String>,
    },
    /// The host cannot run plugins at all, or lost the process that does.
    #[error("{0}")]
    Host(String),
}

/// A call that did not give a result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The plugin says no, in the contract's words.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The plugin trapped, ran out of a limit, or answered nonsense.
    #[error("the plugin {plugin} failed in {call}: {cause}")]
    Fault {
        /// Its name.
        plugin: String,
        /// The export.
        call: &'static str,
        /// Why, in a line.
        cause: String,
        /// The last lines it wrote to its log, then the wasm backtrace where there is one.
        log: Vec<String>,
    },
}

impl LoadError {
    /// The lines that the component logged before it broke down, for its author.
    pub fn log(&self) -> Vec<String> {
        match self {
            LoadError::Flawed { flaws } => flaws.iter().flat_map(Flaw::log).cloned().collect(),
            _ => Vec::new(),
        }
    }
}

impl Failure {
    /// A failure with a stable code and a sentence.
    pub fn new(kind: FailureKind, code: &str, message: impl Into<String>) -> Self {
        Failure { kind, code: code.to_owned(), message: message.into(), data: Vec::new() }
    }

    /// Adds a figure or name, by key.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.data.push((key.to_owned(), value.to_string()));
        self
    }
}
