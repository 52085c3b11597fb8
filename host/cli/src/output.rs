//! Words on standard output, errors on standard error; with `--json` one object on standard
//! output, errors too.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde_json::{Value, json};
use snapslot_engine::EngineError;
use tracing_subscriber::EnvFilter;

use crate::args::Color;

/// The shape of the JSON; a change that could break a reader makes it `snapslot/2`.
const SCHEMA: &str = "snapslot/1";

/// `noisy`: faults are made on purpose, and what is said of them is no news.
pub fn start_log(verbose: u8, noisy: bool, color: Color) {
    let level = match verbose {
        0 if noisy => "error",
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("SNAPSLOT_LOG").unwrap_or_else(|_| {
        EnvFilter::new(format!(
            "{level},snapslot={level},snapslot_runtime={level},snapslot_engine={level}"
        ))
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(use_color(color, std::io::stderr().is_terminal()))
        .without_time()
        // Nobody may be reading; that is no reason to end.
        .log_internal_errors(false)
        .with_target(false)
        .init();
}

fn use_color(color: Color, terminal: bool) -> bool {
    match color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none(),
    }
}

/// A command line that makes no sense, or help: in words, and with `--json` as an object.
pub fn usage(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|a| a == "--json");
    if json && error.use_stderr() {
        let text = error.to_string();
        let message = text.trim().trim_start_matches("error: ");
        let error = json!({ "code": "usage", "exit": 2, "message": message, "data": {} });
        let object = json!({ "schema": SCHEMA, "verb": null, "error": error });
        let _ = writeln!(std::io::stdout(), "{object}");
    } else {
        let _ = error.print();
    }
    ExitCode::from(if error.use_stderr() { 2 } else { 0 })
}

/// How results are shown.
#[derive(Clone, Copy)]
pub struct Output {
    pub json: bool,
    pub verb: &'static str,
    color: bool,
}

/// What a command came to.
pub enum Failed {
    /// The engine said no.
    Engine(EngineError),
    /// A person or script did not confirm.
    NotConfirmed(String),
    /// Something of the command line's own.
    Other(anyhow::Error),
}

impl From<EngineError> for Failed {
    fn from(error: EngineError) -> Self {
        Failed::Engine(error)
    }
}

impl From<anyhow::Error> for Failed {
    fn from(error: anyhow::Error) -> Self {
        Failed::Other(error)
    }
}

impl Output {
    pub fn new(json: bool, verb: &'static str, color: Color) -> Self {
        Output { json, verb, color: use_color(color, std::io::stdout().is_terminal()) }
    }

    /// A word that stands out.
    pub fn strong(self, text: &str) -> String {
        if self.color { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Prints the result: the object, or the words.
    pub fn done(self, result: Value, words: &str) {
        let mut out = std::io::stdout().lock();
        // A closed pipe is the reader's choice.
        let _ = if self.json {
            let mut object = json!({ "schema": SCHEMA, "verb": self.verb });
            if let (Some(into), Value::Object(more)) = (object.as_object_mut(), result) {
                into.extend(more);
            }
            writeln!(out, "{object}")
        } else {
            write!(out, "{words}")
        };
    }

    /// Prints the failure; gives the exit code.
    pub fn failed(self, failed: &Failed) -> ExitCode {
        let (code, exit, message, data) = match failed {
            Failed::Engine(e) => (e.code(), e.exit(), e.to_string(), e.data()),
            Failed::NotConfirmed(why) => ("not-confirmed".to_owned(), 6, why.clone(), json!({})),
            Failed::Other(e) => ("failed".to_owned(), 1, format!("{e:#}"), json!({})),
        };
        if self.json {
            let error = json!({ "code": code, "exit": exit, "message": message, "data": data });
            let object = json!({ "schema": SCHEMA, "verb": self.verb, "error": error });
            let _ = writeln!(std::io::stdout(), "{object}");
        } else {
            let _ = writeln!(std::io::stderr(), "snapslot: {message}");
            if let Failed::Engine(EngineError::Plugin { log, .. }) = failed {
                for line in log {
                    let _ = writeln!(std::io::stderr(), "  plugin: {line}");
                }
            }
        }
        ExitCode::from(exit)
    }
}
