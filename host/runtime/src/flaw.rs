//! What can be wrong with a component before it was ever asked about a volume.

use serde::{Deserialize, Serialize};

use crate::shown::plain;

/// One thing that keeps a component from being a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Flaw {
    /// It is larger than a plugin has reason to be.
    #[error("it has {size} bytes; at most {limit} are compiled")]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// It has no bytes at all.
    #[error("it is empty")]
    Empty,
    /// It is not wasm.
    #[error("it is no WebAssembly: it does not begin as that does")]
    NotWasm,
    /// It is wasm written as text.
    #[error("it is WebAssembly written as text, not a component")]
    Text,
    /// It is a module, not a component.
    #[error("it is a WebAssembly module, not a component")]
    CoreModule,
    /// The compiler says no.
    #[error("it does not compile: {why}")]
    Compile {
        /// The compiler's words.
        why: String,
    },
    /// It imports what no plugin is given.
    #[error("it imports {import}, which no plugin is given")]
    Import {
        /// The import.
        import: String,
    },
    /// It speaks another version of the contract.
    #[error("it speaks {theirs}, and this host speaks snapslot:backend 0.1")]
    Version {
        /// What it imports or exports.
        theirs: String,
    },
    /// It needs what a later version of the contract has.
    #[error("it needs {what}, which this host does not have: it was built for a later 0.1")]
    Newer {
        /// The interface or function.
        what: String,
    },
    /// It lacks an export.
    #[error("it does not export {export}")]
    Export {
        /// The interface or function.
        export: String,
    },
    /// It has what it should, in other shapes.
    #[error("its imports or exports have other shapes than the contract's: {why}")]
    Link {
        /// What does not fit.
        why: String,
    },
    /// It cannot say what it is.
    #[error("it cannot describe itself: {why}{}", last_words(.log))]
    Describe {
        /// What happened.
        why: String,
        /// The last lines of its log, the words of a panic among them, then the wasm backtrace.
        #[serde(default)]
        log: Vec<String>,
    },
    /// What it says of itself breaks the contract.
    #[error("its description breaks the contract: {why}")]
    Description {
        /// What is wrong.
        why: String,
    },
    /// It asks for a grant that no person should be asked to approve.
    #[error("its grant {grant:?} {why}")]
    Grant {
        /// The grant's name.
        grant: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Flaw {
    /// With its texts fit to be shown: they are the component's, or come from where it ran.
    pub(crate) fn shown(self) -> Flaw {
        let fit = |text: String| plain(&text, 1024);
        match self {
            Flaw::Compile { why } => Flaw::Compile { why: fit(why) },
            Flaw::Import { import } => Flaw::Import { import: fit(import) },
            Flaw::Version { theirs } => Flaw::Version { theirs: fit(theirs) },
            Flaw::Newer { what } => Flaw::Newer { what: fit(what) },
            Flaw::Export { export } => Flaw::Export { export: fit(export) },
            Flaw::Link { why } => Flaw::Link { why: fit(why) },
            Flaw::Describe { why, log } => {
                Flaw::Describe { why: fit(why), log: log.into_iter().take(64).map(fit).collect() }
            }
            Flaw::Description { why } => Flaw::Description { why: fit(why) },
            Flaw::Grant { grant, why } => Flaw::Grant { grant: fit(grant), why: fit(why) },
            Flaw::TooLarge { .. } | Flaw::Empty | Flaw::NotWasm | Flaw::Text | Flaw::CoreModule => {
                self
            }
        }
    }

    /// The lines it logged before it broke down, for its author.
    pub fn log(&self) -> &[String] {
        if let Flaw::Describe { log, .. } = self { log } else { &[] }
    }

    /// What its author can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Flaw::TooLarge { .. } => {
                "build with opt-level and strip set, and leave language runtimes out where possible"
            }
            Flaw::Empty | Flaw::NotWasm => "name the .wasm file that the build made",
            Flaw::Text => {
                "turn it into a component first: `wasm-tools parse`, then `component new`"
            }
            Flaw::CoreModule => {
                "build for wasm32-wasip2, or make a component of it with `wasm-tools component new`"
            }
            Flaw::Compile { .. } => "build it anew; the file may be cut off or damaged",
            Flaw::Import { .. } => {
                "leave out what opens files, sockets or clocks: a plugin sees volumes only through \
                 snapslot:backend"
            }
            Flaw::Version { .. } => "build it with the SDK and the WIT of this release",
            Flaw::Newer { .. } => {
                "build it with the SDK of this release, or run it on a host that is as new"
            }
            Flaw::Export { .. } => "name your type in `export_backend!`, and build it as a cdylib",
            Flaw::Link { .. } => "generate the bindings anew from this release's WIT",
            Flaw::Describe { .. } => {
                "describe() sees nothing and computes nothing: it returns fixed values"
            }
            Flaw::Description { .. } => "the limits stand in wit/backend/backend.wit",
            Flaw::Grant { .. } => "the rules of templates stand in the guide, under Grants",
        }
    }
}

/// What a panic said, where one is in the log.
fn last_words(log: &[String]) -> String {
    let Some(at) = log.iter().position(|line| line.contains("panicked at")) else {
        return String::new();
    };
    // The words may stand in a line of their own, below the place.
    let more = log.get(at + 1).filter(|_| log[at].trim_end().ends_with(':'));
    let words: Vec<&str> = log[at].split_whitespace().chain(more.map(String::as_str)).collect();
    format!(" ({})", words.join(" "))
}

/// All flaws in one sentence.
pub(crate) fn in_words(flaws: &[Flaw]) -> String {
    flaws.iter().map(Flaw::to_string).collect::<Vec<_>>().join("; ")
}

/// Whether it can be a component at all, by its first bytes.
pub(crate) fn shape(bytes: &[u8]) -> Result<(), Flaw> {
    let starts_as_text = || {
        let text = bytes.trim_ascii_start();
        text.starts_with(b"(component") || text.starts_with(b"(module") || text.starts_with(b";;")
    };
    match bytes {
        [] => Err(Flaw::Empty),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Err(Flaw::CoreModule),
        [0, b'a', b's', b'm', ..] => Ok(()),
        _ if starts_as_text() => Err(Flaw::Text),
        _ => Err(Flaw::NotWasm),
    }
}
