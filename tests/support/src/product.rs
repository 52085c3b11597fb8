//! Running the `snapslot` binary.

use std::ffi::OsStr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Finished, Process};

/// No command of the tests comes near this, on a slow machine either; whoever does hangs.
const DEADLINE: Duration = Duration::from_secs(600);

/// The binary with a state directory of its own. All of a build share one cache directory, as
/// compiling a plugin takes longer than any test.
#[derive(Clone, Debug)]
pub struct Snapslot {
    binary: PathBuf,
    state: PathBuf,
    cache: PathBuf,
}

impl Snapslot {
    /// The binary (`env!("CARGO_BIN_EXE_snapslot")`) with its records in `state`.
    ///
    /// # Panics
    /// When the cache directory cannot be made, or the binary does not even list its plugins.
    pub fn new(binary: impl Into<PathBuf>, state: impl Into<PathBuf>) -> Self {
        static WARM: OnceLock<()> = OnceLock::new();
        let binary = binary.into();
        let beside = binary.parent().unwrap_or(Path::new("."));
        let cache = beside.join("snapslot-test-cache");
        let snapslot = Snapslot { binary, state: state.into(), cache };
        WARM.get_or_init(|| {
            let made =
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&snapslot.cache);
            made.expect("a cache directory beside the binary");
            // So that no test that measures time pays for the compilation.
            snapslot.run(["plugin", "list"]).expect(0);
        });
        snapslot
    }

    /// The same binary and cache with other records.
    pub fn with_state(&self, state: impl Into<PathBuf>) -> Self {
        Snapslot { state: state.into(), ..self.clone() }
    }

    /// Where its records are.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Where its compiled plugins are.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The command, with `--json`, ready to be started.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(["--json", "--rehearse", "full"]);
        command.arg("--state-dir").arg(&self.state).arg("--cache-dir").arg(&self.cache);
        command.args(arguments);
        // What the person who runs the tests has set must not reach what is tested.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SNAPSLOT_") {
                command.env_remove(name);
            }
        }
        command.env("LC_ALL", "C").env("RUST_BACKTRACE", "1");
        command
    }

    /// Starts it and returns at once.
    #[track_caller]
    pub fn start<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Process {
        Process::start(self.command(arguments))
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        self.run_within(DEADLINE, arguments)
    }

    /// Runs it and kills it at the deadline.
    #[track_caller]
    pub fn run_within<S: AsRef<OsStr>>(
        &self,
        deadline: Duration,
        arguments: impl IntoIterator<Item = S>,
    ) -> Outcome {
        Outcome::from(self.start(arguments).finish(deadline))
    }

    /// A verb on one volume or machine, with `--yes` where it would ask.
    #[track_caller]
    pub fn verb(&self, verb: &str, what: &Path, more: &[&str]) -> Outcome {
        let mut arguments: Vec<&OsStr> = vec![verb.as_ref(), what.as_os_str()];
        if matches!(verb, "restore" | "delete") {
            arguments.push("--yes".as_ref());
        }
        arguments.extend(more.iter().map(OsStr::new));
        self.run(arguments)
    }
}

/// How a command ended, with what it printed as JSON.
#[derive(Debug)]
pub struct Outcome {
    /// The process.
    pub process: Finished,
    /// Its standard output, if that is one JSON object.
    pub json: Option<Value>,
}

impl From<Finished> for Outcome {
    fn from(process: Finished) -> Self {
        let json = serde_json::from_slice(&process.stdout).ok().filter(Value::is_object);
        Outcome { process, json }
    }
}

impl Outcome {
    /// The exit code; -1 when a signal ended it.
    pub fn code(&self) -> i32 {
        self.process.code.unwrap_or(-1)
    }

    /// The exit code must be this one; gives the JSON object, which must be there and agree.
    ///
    /// # Panics
    /// When the code or the JSON is another.
    #[track_caller]
    pub fn expect(&self, code: i32) -> &Value {
        assert!(self.code() == code, "expected exit {code}, got {}", self.process.account());
        let Some(json) = &self.json else {
            panic!("standard output is not one JSON object: {}", self.process.account());
        };
        assert!(json["schema"] == "snapslot/1", "another schema: {}", self.process.account());
        if code != 0 {
            let told = &json["error"];
            let whole = told["code"].is_string() && told["message"].is_string();
            assert!(
                told["exit"] == code && whole,
                "the JSON error does not say exit {code}, a code and a message: {}",
                self.process.account()
            );
        }
        json
    }

    /// The state of the slot that the command printed (`empty`, `held`, …).
    ///
    /// # Panics
    /// When it printed none.
    #[track_caller]
    pub fn slot(&self) -> &str {
        let state = self.json.as_ref().and_then(|j| j["slot"]["state"].as_str());
        state.unwrap_or_else(|| panic!("no slot state printed: {}", self.process.account()))
    }

    /// The name under which QEMU's tools show the snapshot that holds the slot.
    ///
    /// # Panics
    /// When the slot is not held.
    #[track_caller]
    pub fn snapshot_name(&self) -> String {
        let part = self.json.as_ref().map(|j| &j["slot"]["occupant"]["parts"][0]["name"]);
        let name = part.and_then(Value::as_str);
        name.unwrap_or_else(|| panic!("no occupant printed: {}", self.process.account())).to_owned()
    }
}

/// Where the journal of an operation on this image lies.
pub fn journal_of(image: &Path) -> PathBuf {
    let mut name = image.file_name().unwrap_or_default().to_owned();
    name.push(".snapslot-journal");
    image.with_file_name(name)
}
