//! All that reaches a plugin from outside its sandbox, and all that it says: except the bytes of
//! images, which it reads through a disk.
//!
//! Here grants are enforced: a command is made from a grant and values, or not at all. Where
//! plugins run in a process of their own (`apart`), that process has [`World`] as words on a socket, and
//! this side of the socket is [`Outside`] still.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use snapslot_command::{Executor, FillError, Filled, Grant, Place, RunError};

use crate::bindings::types::{Answer, Argument, Failure, FailureKind, SavedCopy, Saving};
use crate::host::{CopiesView, Sight};
use crate::shown::{deceives, plain};

/// Commands asked for in one call: one look costs one, so this is room and no more.
pub(crate) const COMMANDS_MAX: usize = 64;
/// Log text of one call, and of one line.
const LOG_MAX: usize = 1 << 20;
const LOG_LINE_MAX: usize = 8 << 10;
/// Lines kept to be shown with a fault.
const LOG_KEPT: usize = 32;

/// The commands a plugin may ask for and plan, and whether it may see and change the image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants {
    pub(crate) queries: Vec<Grant>,
    pub(crate) actions: Vec<Grant>,
    pub(crate) disk: bool,
    pub(crate) pool_metadata: bool,
    pub(crate) changes: bool,
    pub(crate) copies: bool,
}

impl Grants {
    /// The command of this action with these values.
    pub(crate) fn act(
        &self,
        place: &Place,
        action: &str,
        arguments: &[Argument],
    ) -> Result<Filled, Failure> {
        filled(&self.actions, "action", place, action, arguments)
    }
}

fn filled(
    grants: &[Grant],
    kind: &str,
    place: &Place,
    name: &str,
    arguments: &[Argument],
) -> Result<Filled, Failure> {
    let Some(grant) = grants.iter().find(|g| g.name == name) else {
        return Err(not_granted(kind, name));
    };
    let values: Vec<(&str, &str)> =
        arguments.iter().map(|a| (a.hole.as_str(), a.value.as_str())).collect();
    grant.fill(place, &values).map_err(|error| unfillable(&error))
}

/// How loud a line of the log is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Loud {
    Debug,
    Info,
    Warn,
}

/// What a plugin can reach during one call.
pub(crate) trait World: Send {
    fn ask(&mut self, query: &str, arguments: &[Argument]) -> Result<Answer, Failure>;
    fn copies(&mut self) -> Result<Vec<SavedCopy>, Failure>;
    fn saving(&mut self) -> Result<Saving, Failure>;
    fn log(&mut self, loud: Loud, message: &str);
    /// The last lines of the log, or all of them.
    fn lines(&mut self) -> Vec<String>;
}

/// The real world, for one call.
pub(crate) struct Outside {
    plugin: String,
    grants: Arc<Grants>,
    place: Option<Place>,
    commands: Option<Arc<dyn Executor>>,
    copies: Option<Arc<dyn CopiesView>>,
    asked: usize,
    lines: Vec<String>,
    /// Whether all lines are kept, and not only the last.
    all_lines: bool,
    logged: usize,
    log_full: bool,
}

impl Outside {
    pub(crate) fn new(plugin: &str, grants: Arc<Grants>, sight: Option<&Sight>) -> Self {
        Outside {
            plugin: plugin.to_owned(),
            grants,
            place: sight.map(|s| s.place.clone()),
            commands: sight.and_then(|s| s.commands.clone()),
            copies: sight.and_then(|s| s.copies.clone()),
            asked: 0,
            lines: Vec::new(),
            all_lines: false,
            logged: 0,
            log_full: false,
        }
    }

    /// Keeps every line of the log, which has its own limit, and not only the last.
    pub(crate) fn keep_all(&mut self, all: bool) {
        self.all_lines = all;
    }

    fn shelf(&self) -> Result<&dyn CopiesView, Failure> {
        let shelf = self.copies.as_deref().filter(|_| self.grants.copies);
        shelf.ok_or_else(|| not_granted("copies", ""))
    }
}

impl World for Outside {
    fn ask(&mut self, query: &str, arguments: &[Argument]) -> Result<Answer, Failure> {
        let (Some(place), Some(commands)) = (&self.place, &self.commands) else {
            return Err(not_granted("query", query));
        };
        if self.asked >= COMMANDS_MAX {
            return Err(limit("commands asked", COMMANDS_MAX as u64, self.asked as u64 + 1));
        }
        self.asked += 1;
        let filled = filled(&self.grants.queries, "query", place, query, arguments)?;
        match commands.run(&filled.command) {
            Ok(a) => Ok(Answer { exit_code: a.exit_code, output: a.output, errors: a.errors }),
            Err(error) => Err(not_run(&error)),
        }
    }

    fn copies(&mut self) -> Result<Vec<SavedCopy>, Failure> {
        self.shelf()?.list()
    }

    fn saving(&mut self) -> Result<Saving, Failure> {
        self.shelf()?.saving()
    }

    fn log(&mut self, loud: Loud, message: &str) {
        if self.logged + message.len() > LOG_MAX {
            if !self.log_full {
                self.log_full = true;
                tracing::warn!(plugin = %self.plugin, "the plugin's log is full; the rest is dropped");
            }
            return;
        }
        self.logged += message.len();
        let mut end = message.len().min(LOG_LINE_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let line: String = (message[..end].chars().filter(|c| !deceives(*c)))
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        match loud {
            Loud::Debug => tracing::debug!(plugin = %self.plugin, "{line}"),
            Loud::Info => tracing::info!(plugin = %self.plugin, "{line}"),
            Loud::Warn => tracing::warn!(plugin = %self.plugin, "{line}"),
        }
        if self.lines.len() == LOG_KEPT && !self.all_lines {
            self.lines.remove(0);
        }
        self.lines.push(line);
    }

    fn lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.lines)
    }
}

/// More than the contract allows.
pub(crate) fn limit(what: &str, limit: u64, asked: u64) -> Failure {
    Failure::new(FailureKind::Limit, "limit", format!("{what}: {asked} asked, {limit} allowed"))
        .with("limit", limit)
        .with("asked", asked)
}

/// Something the plugin has no grant for.
pub(crate) fn not_granted(kind: &str, name: &str) -> Failure {
    let name = plain(name, 64);
    let grant = format!("{kind} {name}");
    let grant = grant.trim();
    let message = format!("the plugin has no grant for the {grant}");
    Failure::new(FailureKind::NotGranted, "not-granted", message).with("grant", grant)
}

fn unfillable(error: &FillError) -> Failure {
    Failure::new(FailureKind::Invalid, "argument", error.to_string())
        .with("grant", &error.grant)
        .with("hole", &error.hole)
}

/// A command that gave no answer.
pub fn not_run(error: &RunError) -> Failure {
    let (kind, code) = match error {
        RunError::Missing { .. } => (FailureKind::Unsupported, "tool-missing"),
        RunError::Start { .. } => (FailureKind::Io, "tool-failed"),
        RunError::Deadline { .. } | RunError::Unkillable { .. } => (FailureKind::Io, "tool-hung"),
        RunError::TooMuch { .. } => (FailureKind::Io, "tool-flood"),
        RunError::Killed { .. } => (FailureKind::Io, "tool-died"),
    };
    Failure::new(kind, code, error.to_string())
}
