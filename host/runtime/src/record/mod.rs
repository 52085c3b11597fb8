//! A plugin's whole conversation with the host, written down, and held again without the storage.
//!
//! A recording is text: one JSON object on a line. The first names the format; each other one is a call:
//! which plugin was asked what of which volume, what it had no grant for, what it heard from the storage
//! while it answered (sizes and bytes read, commands and what they said, copies; failures too), what it
//! logged, and what it answered, plans step by step. The first call of a plugin is `describe`. Replaying
//! gives a plugin the same things to hear, in their order, and compares what it answers: the bug report
//! that reproduces. A recording has the metadata that was read in it, and only as much of a guest's data as
//! the plugin reads, which for the built-in ones is none.
//!
//! A recording comes from somebody else. What is in it is bounded before it is taken in, is shown without
//! what a terminal would act on, and never says which file is opened.

mod ears;
mod past;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use snapslot_capture::{Plan, Step};
use snapslot_command::RunError;

use crate::bindings::types::{Failure, PlaceKind, SavedCopy, Saving};
use crate::call::{Call, Reply};
use crate::fault::CallError;
use crate::host::Sight;
use crate::read_fault::ReadFault;

pub(crate) use ears::Ears;
pub use past::{Recorded, read_recording};

const FORMAT: &str = "snapslot-recording/2";
/// What one call hears at most is kept; more makes a recording nobody can send.
const HEARD_MAX: usize = 256 << 20;
/// Of a plan so many steps are written out, with so many bytes; its digest is of all.
const STEPS_KEPT: usize = 10_000;
const STEP_BYTES_KEPT: usize = 4 << 20;

/// Something a plugin heard.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Heard {
    Size(u64),
    SizeFailed(ReadFault),
    Read { offset: u64, length: usize, bytes: Bytes },
    ReadFailed { offset: u64, length: usize, fault: ReadFault },
    Ran { command: String, exit_code: i32, output: Bytes, errors: Bytes },
    NotRun { command: String, fault: NotRun },
    Copies(Result<Vec<SavedCopy>, Failure>),
    Saving(Result<Saving, Failure>),
}

/// Why a command gave no answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum NotRun {
    Missing { program: String, why: String },
    Start { program: String, errno: Option<i32>, why: String },
    Deadline { command: String, seconds: u64 },
    TooMuch { command: String, limit: usize },
    Unkillable { command: String, seconds: u64, pid: u32 },
    Killed { command: String, signal: i32 },
}

impl From<&RunError> for NotRun {
    fn from(error: &RunError) -> NotRun {
        match error {
            RunError::Missing { program, why } => {
                NotRun::Missing { program: program.clone(), why: why.clone() }
            }
            RunError::Start { program, source } => NotRun::Start {
                program: program.clone(),
                errno: source.raw_os_error(),
                why: source.to_string(),
            },
            RunError::Deadline { command, seconds } => {
                NotRun::Deadline { command: command.clone(), seconds: *seconds }
            }
            RunError::TooMuch { command, limit } => {
                NotRun::TooMuch { command: command.clone(), limit: *limit }
            }
            RunError::Unkillable { command, seconds, pid } => {
                NotRun::Unkillable { command: command.clone(), seconds: *seconds, pid: *pid }
            }
            RunError::Killed { command, signal } => {
                NotRun::Killed { command: command.clone(), signal: *signal }
            }
        }
    }
}

impl From<NotRun> for RunError {
    fn from(then: NotRun) -> RunError {
        match then {
            NotRun::Missing { program, why } => RunError::Missing { program, why },
            NotRun::Start { program, errno, why } => RunError::Start {
                program,
                source: errno.map_or_else(|| io::Error::other(why), io::Error::from_raw_os_error),
            },
            NotRun::Deadline { command, seconds } => RunError::Deadline { command, seconds },
            NotRun::TooMuch { command, limit } => RunError::TooMuch { command, limit },
            NotRun::Unkillable { command, seconds, pid } => {
                RunError::Unkillable { command, seconds, pid }
            }
            NotRun::Killed { command, signal } => RunError::Killed { command, signal },
        }
    }
}

/// Bytes as text: nothing but zeroes is only counted.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Bytes {
    Zeroes(usize),
    Base64(String),
}

impl Bytes {
    fn of(bytes: &[u8]) -> Bytes {
        match bytes.iter().all(|b| *b == 0) {
            true => Bytes::Zeroes(bytes.len()),
            false => Bytes::Base64(STANDARD.encode(bytes)),
        }
    }
}

/// One call, as it stands on a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Line {
    plugin: String,
    digest: String,
    /// Names of grants it asked for and did not have.
    denied: Vec<String>,
    kind: Option<PlaceKind>,
    place: Option<String>,
    call: Call,
    heard: Vec<Heard>,
    /// Whether more was heard than is kept.
    cut: bool,
    log: Vec<String>,
    result: Value,
}

/// Which plugin was asked.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) plugin: &'a str,
    pub(crate) digest: &'a str,
    pub(crate) denied: &'a [String],
}

/// Where a recording is written.
pub struct Recording(Mutex<Writing>);

struct Writing {
    out: BufWriter<File>,
    /// Digests and denied grants of plugins whose `describe` stands in it already.
    described: HashSet<(String, Vec<String>)>,
}

impl Recording {
    /// Begins one, in a new file that only this user can read.
    pub fn begin(path: &Path) -> io::Result<Recording> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut out = BufWriter::new(file);
        writeln!(out, "{}", json!({ "format": FORMAT, "host": env!("CARGO_PKG_VERSION") }))?;
        out.flush()?;
        Ok(Recording(Mutex::new(Writing { out, described: HashSet::new() })))
    }

    /// Writes a call down. That it cannot be written is told, and harms nothing else.
    pub(crate) fn write(
        &self,
        asked: Asked<'_>,
        call: &Call,
        sight: Option<&Sight>,
        ears: &Ears,
        log: Vec<String>,
        result: &Result<Reply<Plan>, CallError>,
    ) {
        let mut writing = lock(&self.0);
        if matches!(call, Call::Describe)
            && !writing.described.insert((asked.digest.to_owned(), asked.denied.to_vec()))
        {
            return;
        }
        let (heard, bytes) = ears.all();
        let line = Line {
            plugin: asked.plugin.to_owned(),
            digest: asked.digest.to_owned(),
            denied: asked.denied.to_vec(),
            kind: sight.map(|s| s.place.kind().into()),
            place: sight.map(|s| s.place.to_string()),
            call: call.clone(),
            cut: bytes > HEARD_MAX,
            heard,
            log,
            result: in_short(result),
        };
        let out = &mut writing.out;
        let written = serde_json::to_writer(&mut *out, &line)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"))
            .and_then(|()| out.flush());
        if let Err(error) = written {
            tracing::warn!(%error, "the recording cannot be written");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of a call, as far as two runs of it can be compared.
pub(crate) fn in_short(result: &Result<Reply<Plan>, CallError>) -> Value {
    match result {
        Ok(Reply::Described(d)) => json!({ "description": d }),
        Ok(Reply::Facts(facts)) => json!({ "facts": facts }),
        Ok(Reply::Planned(plan)) => {
            let all = Sha256::digest(format!("{plan:?}"));
            let digest: String = all.iter().map(|b| format!("{b:02x}")).collect();
            let acts: Vec<String> = plan.acts().map(|a| a.command.to_string()).collect();
            let phases: Vec<(&str, usize)> = plan.phases().map(|(t, s)| (t, s.len())).collect();
            let seal = plan.seal().map(|s| json!({ "offset": s.offset, "bits": s.bits }));
            json!({ "plan": {
                "phases": phases, "commands": acts, "sha256": digest, "seal": seal,
                "notes": plan.notes(), "steps": steps(plan), "step-count": plan.steps().len(),
            }})
        }
        Ok(Reply::Page(page)) => json!({ "extents": page.extents.len(), "page": page }),
        Ok(Reply::Stretches(page)) => json!({ "stretches": page }),
        Ok(Reply::Change(change)) => json!({ "change": change }),
        Ok(Reply::Explained(failure)) => json!({ "explained": failure }),
        Err(CallError::Refused(failure)) => json!({ "refused": failure }),
        Err(CallError::Fault { cause, .. }) => json!({ "fault": cause }),
    }
}

/// The steps of a plan, as many as are kept.
fn steps(plan: &Plan) -> Vec<Value> {
    let mut room = STEP_BYTES_KEPT;
    let mut bytes = |all: &[u8]| {
        let kept = &all[..all.len().min(room)];
        room -= kept.len();
        json!({ "count": all.len(), "bytes": Bytes::of(kept) })
    };
    (plan.steps().iter().take(STEPS_KEPT))
        .map(|step| match step {
            Step::Write { offset, data } => json!({ "write": offset, "data": bytes(data) }),
            Step::Fill { offset, length, pattern } => {
                json!({ "fill": offset, "length": length, "pattern": pattern })
            }
            Step::Mask(m) => json!({
                "mask": m.offset, "count": m.count, "stride": m.stride, "clear": m.clear,
                "set": m.set, "select": bytes(&m.select),
            }),
            Step::Extend { size } => json!({ "extend": size }),
            Step::Act(act) => json!({
                "act": act.action, "command": act.command.to_string(),
                "guard": act.guard.as_ref().map(|(look, says)| [look.to_string(), says.clone()]),
            }),
            Step::Save(save) => json!({ "save": save.mark, "full-copy": save.full_copy }),
            Step::PutBack { mark } => json!({ "put-back": mark }),
            Step::Discard { mark } => json!({ "discard": mark }),
            Step::Barrier { title } => json!({ "barrier": title }),
        })
        .collect()
}
