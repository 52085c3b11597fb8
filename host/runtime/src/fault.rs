//! What can go wrong with a plugin.

use crate::bindings::types::{Failure, FailureKind};

/// A plugin that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is larger than a plugin has reason to be.
    #[error("the component has {size} bytes; at most {limit} are compiled")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// It asks for something that no plugin gets.
    #[error(
        "the component imports {import}, which no plugin is given; plugins see volumes only through snapslot:backend"
    )]
    Import {
        /// What it imports.
        import: String,
    },
    /// It speaks another era of the contract.
    #[error("the component speaks {theirs}; this host speaks snapslot:backend 0.1")]
    Version {
        /// What it speaks.
        theirs: String,
    },
    /// It declares a grant that no person should be asked to approve.
    #[error("the component cannot be used: {0}")]
    Grant(#[from] snapslot_command::GrantError),
    /// It asks for more than a person approved.
    #[error(
        "the component asks for what nobody approved: {}; `snapslot plugin add` with its file shows it and asks",
        .grants.join(", ")
    )]
    NotApproved {
        /// The names of the grants.
        grants: Vec<String>,
    },
    /// It does not compile, link or describe itself.
    #[error("the component cannot be used: {0}")]
    Unusable(String),
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
