//! A plugin's whole conversation with the host, written down, and held again without the storage.
//!
//! A recording is text: one JSON object on a line. The first names the format; each other one is a call:
//! which plugin was asked what of which volume, what it heard from the storage while it
//! answered (sizes and bytes read, commands and what they said, copies), and what it answered.
//! Replaying gives a plugin the same things to hear and compares what it answers: the bug report that
//! reproduces. A recording has the metadata that was read in it, and only as much of a guest's data as the
//! plugin reads, which for the built-in ones is none.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use snapslot_capture::Plan;
use snapslot_command::{Answer, Command, Executor, Place, RunError};
use snapslot_disk::{Disk, DiskError, Doing, Range};

use crate::bindings::types::{Failure, FailureKind, PlaceKind, SavedCopy, Saving};
use crate::call::{Call, Reply};
use crate::fault::CallError;
use crate::host::{CopiesView, Sight};

const FORMAT: &str = "snapslot-recording/1";
/// What one call hears at most is kept; more makes a recording nobody can send.
const HEARD_MAX: usize = 1 << 30;

/// Something a plugin heard.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Heard {
    Size(u64),
    Read { offset: u64, length: usize, bytes: Bytes },
    ReadFailed { offset: u64, length: usize, why: String },
    Ran { command: String, exit_code: i32, output: Bytes, errors: Bytes },
    NotRun { command: String, why: String },
    Copies(Vec<SavedCopy>),
    Saving(Saving),
    NoCopies(Failure),
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

    fn get(&self) -> Result<Vec<u8>, String> {
        match self {
            Bytes::Zeroes(length) if *length <= 16 << 20 => Ok(vec![0; *length]),
            Bytes::Zeroes(_) => Err("more zeroes than a read has".to_owned()),
            Bytes::Base64(text) => STANDARD.decode(text).map_err(|e| e.to_string()),
        }
    }
}

/// One call, as it stands on a line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Line {
    plugin: String,
    digest: String,
    kind: Option<PlaceKind>,
    place: Option<String>,
    call: Call,
    heard: Vec<Heard>,
    /// Whether more was heard than is kept.
    cut: bool,
    result: Value,
}

/// Where a recording is written.
pub struct Recording(Mutex<BufWriter<File>>);

impl Recording {
    /// Begins one, in a new file that only this user can read.
    pub fn begin(path: &Path) -> io::Result<Recording> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let mut out = BufWriter::new(file);
        writeln!(out, "{}", json!({ "format": FORMAT, "host": env!("CARGO_PKG_VERSION") }))?;
        out.flush()?;
        Ok(Recording(Mutex::new(out)))
    }

    /// Writes a call down. That it cannot be written is told, and harms nothing else.
    pub(crate) fn write(
        &self,
        plugin: (&str, &str),
        call: &Call,
        sight: Option<&Sight>,
        ears: &Ears,
        result: &Result<Reply<Plan>, CallError>,
    ) {
        let heard = std::mem::take(&mut *lock(&ears.heard));
        let line = Line {
            plugin: plugin.0.to_owned(),
            digest: plugin.1.to_owned(),
            kind: sight.map(|s| s.place.kind().into()),
            place: sight.map(|s| s.place.to_string()),
            call: call.clone(),
            cut: heard.1 > HEARD_MAX,
            heard: heard.0,
            result: in_short(result),
        };
        let mut out = lock(&self.0);
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
fn in_short(result: &Result<Reply<Plan>, CallError>) -> Value {
    match result {
        Ok(Reply::Described(d)) => json!({ "description": d }),
        Ok(Reply::Facts(facts)) => json!({ "facts": facts }),
        Ok(Reply::Planned(plan)) => {
            let all = Sha256::digest(format!("{plan:?}"));
            let digest: String = all.iter().map(|b| format!("{b:02x}")).collect();
            let acts: Vec<String> = plan.acts().map(|a| a.command.to_string()).collect();
            let phases: Vec<(&str, usize)> = plan.phases().map(|(t, s)| (t, s.len())).collect();
            json!({ "plan": { "phases": phases, "commands": acts, "sha256": digest } })
        }
        Ok(Reply::Page(page)) => json!({ "extents": page.extents.len(), "page": page }),
        Ok(Reply::Stretches(page)) => json!({ "stretches": page }),
        Ok(Reply::Change(change)) => json!({ "change": change }),
        Ok(Reply::Explained(failure)) => json!({ "explained": failure }),
        Err(CallError::Refused(failure)) => json!({ "refused": failure }),
        Err(CallError::Fault { cause, .. }) => json!({ "fault": cause }),
    }
}

/// What listens while a plugin is answered.
#[derive(Clone, Default)]
pub(crate) struct Ears {
    heard: Arc<Mutex<(Vec<Heard>, usize)>>,
}

impl Ears {
    fn hear(&self, heard: Heard, bytes: usize) {
        let mut all = lock(&self.heard);
        all.1 += bytes;
        if all.1 <= HEARD_MAX {
            all.0.push(heard);
        }
    }

    /// The same sight, listened to.
    pub(crate) fn at(&self, sight: &Sight) -> Sight {
        let ears = || self.clone();
        Sight {
            place: sight.place.clone(),
            disk: (sight.disk.clone()).map(|d| Arc::new(HeardDisk(d, ears())) as Arc<dyn Disk>),
            commands: (sight.commands.clone())
                .map(|c| Arc::new(HeardCommands(c, ears())) as Arc<dyn Executor>),
            copies: (sight.copies.clone())
                .map(|c| Arc::new(HeardCopies(c, ears())) as Arc<dyn CopiesView>),
        }
    }
}

struct HeardDisk(Arc<dyn Disk>, Ears);

impl Disk for HeardDisk {
    fn size(&self) -> Result<u64, DiskError> {
        let size = self.0.size()?;
        self.1.hear(Heard::Size(size), 8);
        Ok(size)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let (result, length) = (self.0.read_at(offset, buf), buf.len());
        match &result {
            Ok(()) => self.1.hear(Heard::Read { offset, length, bytes: Bytes::of(buf) }, length),
            Err(e) => self.1.hear(Heard::ReadFailed { offset, length, why: e.to_string() }, 64),
        }
        result
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.0.write_at(offset, data)
    }

    fn extend(&self, size: u64) -> Result<(), DiskError> {
        self.0.extend(size)
    }

    fn reserve(&self, ranges: &[Range]) -> Result<bool, DiskError> {
        self.0.reserve(ranges)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        self.0.release_reserve()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.0.flush()
    }
}

struct HeardCommands(Arc<dyn Executor>, Ears);

impl Executor for HeardCommands {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let result = self.0.run(command);
        let command = command.to_string();
        match &result {
            Ok(a) => self.1.hear(
                Heard::Ran {
                    command,
                    exit_code: a.exit_code,
                    output: Bytes::of(&a.output),
                    errors: Bytes::of(&a.errors),
                },
                a.output.len() + a.errors.len(),
            ),
            Err(e) => self.1.hear(Heard::NotRun { command, why: e.to_string() }, 64),
        }
        result
    }
}

struct HeardCopies(Arc<dyn CopiesView>, Ears);

impl CopiesView for HeardCopies {
    fn list(&self) -> Result<Vec<SavedCopy>, Failure> {
        let result = self.0.list();
        let heard = match &result {
            Ok(copies) => Heard::Copies(copies.clone()),
            Err(failure) => Heard::NoCopies(failure.clone()),
        };
        self.1.hear(heard, 1024);
        result
    }

    fn saving(&self) -> Result<Saving, Failure> {
        let result = self.0.saving();
        let heard = match &result {
            Ok(saving) => Heard::Saving(*saving),
            Err(failure) => Heard::NoCopies(failure.clone()),
        };
        self.1.hear(heard, 64);
        result
    }
}

/// A call of a recording, ready to be held again.
pub struct Recorded {
    /// The plugin's name.
    pub plugin: String,
    /// The digest of its component.
    pub digest: String,
    /// The export that was called.
    pub call: &'static str,
    /// The volume's place.
    pub place: Option<String>,
    /// What it answered then.
    pub result: Value,
    pub(crate) asked: Call,
    pub(crate) sight: Option<Sight>,
}

/// Reads a recording.
pub fn read_recording(path: &Path) -> Result<Vec<Recorded>, String> {
    let told = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let mut lines = BufReader::new(File::open(path).map_err(|e| told(&e))?).lines();
    let first = lines.next().transpose().map_err(|e| told(&e))?.unwrap_or_default();
    let format: Value = serde_json::from_str(&first).unwrap_or_default();
    if format["format"] != FORMAT {
        return Err(told(&format!("it is no recording of this program ({FORMAT})")));
    }
    let mut all = Vec::new();
    for (n, line) in lines.enumerate() {
        let at = |e: &dyn std::fmt::Display| told(&format!("line {}: {e}", n + 2));
        let line = line.map_err(|e| at(&e))?;
        let line: Line = serde_json::from_str(&line).map_err(|e| at(&e))?;
        if line.cut {
            return Err(at(&"more was heard than was kept"));
        }
        let sight = match (line.kind, &line.place) {
            (Some(kind), Some(place)) => {
                let place = Place::parse(kind.into(), place).map_err(|e| at(&e))?;
                Some(again(place, line.heard).map_err(|e| at(&e))?)
            }
            _ => None,
        };
        all.push(Recorded {
            plugin: line.plugin,
            digest: line.digest,
            call: line.call.name(),
            place: line.place,
            result: line.result,
            asked: line.call,
            sight,
        });
    }
    Ok(all)
}

/// A sight in which everything is as it was heard.
fn again(place: Place, heard: Vec<Heard>) -> Result<Sight, String> {
    let mut disk = PastDisk { size: None, reads: Vec::new() };
    let mut commands = Vec::new();
    let copies = PastCopies::default();
    for heard in heard {
        match heard {
            Heard::Size(size) => disk.size = Some(size),
            Heard::Read { offset, bytes, .. } => disk.reads.push((offset, Ok(bytes.get()?))),
            Heard::ReadFailed { offset, why, .. } => disk.reads.push((offset, Err(why))),
            Heard::Ran { command, exit_code, output, errors } => {
                let answer = Answer { exit_code, output: output.get()?, errors: errors.get()? };
                commands.push((command, Ok(answer)));
            }
            Heard::NotRun { command, why } => commands.push((command, Err(why))),
            Heard::Copies(list) => lock(&copies.0).lists.push_back(Ok(list)),
            Heard::Saving(saving) => lock(&copies.0).savings.push_back(Ok(saving)),
            Heard::NoCopies(failure) => {
                lock(&copies.0).lists.push_back(Err(failure.clone()));
                lock(&copies.0).savings.push_back(Err(failure));
            }
        }
    }
    Ok(Sight {
        place,
        disk: Some(Arc::new(disk)),
        commands: Some(Arc::new(PastCommands(commands))),
        copies: Some(Arc::new(copies)),
    })
}

type Read = (u64, Result<Vec<u8>, String>);

/// An image of which only what was read is known.
struct PastDisk {
    size: Option<u64>,
    reads: Vec<Read>,
}

impl PastDisk {
    fn unknown(what: String) -> DiskError {
        DiskError::io("the recording", Doing::Read, io::Error::other(what))
    }
}

impl Disk for PastDisk {
    fn size(&self) -> Result<u64, DiskError> {
        self.size.ok_or_else(|| Self::unknown("the size was not asked for then".to_owned()))
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let end = offset.saturating_add(buf.len() as u64);
        for (start, read) in &self.reads {
            match read {
                Ok(bytes) if *start <= offset && end <= start + bytes.len() as u64 => {
                    let from = (offset - start) as usize;
                    buf.copy_from_slice(&bytes[from..from + buf.len()]);
                    return Ok(());
                }
                Err(why) if *start == offset => return Err(Self::unknown(why.clone())),
                _ => {}
            }
        }
        Err(Self::unknown(format!("bytes {offset} to {end} were not read then")))
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        Err(Self::unknown("nothing is written".to_owned()))
    }

    fn extend(&self, _: u64) -> Result<(), DiskError> {
        Err(Self::unknown("nothing is written".to_owned()))
    }

    fn reserve(&self, _: &[Range]) -> Result<bool, DiskError> {
        Ok(false)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
}

/// Commands that say what they said.
struct PastCommands(Vec<(String, Result<Answer, String>)>);

impl Executor for PastCommands {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let asked = command.to_string();
        let missing = |why: String| RunError::Missing { program: command.program.clone(), why };
        match self.0.iter().find(|(then, _)| *then == asked) {
            Some((_, Ok(answer))) => Ok(answer.clone()),
            Some((_, Err(why))) => Err(missing(why.clone())),
            None => Err(missing(format!("was not asked for `{asked}` then"))),
        }
    }
}

#[derive(Default)]
struct Past {
    lists: VecDeque<Result<Vec<SavedCopy>, Failure>>,
    savings: VecDeque<Result<Saving, Failure>>,
}

/// Copies as they were told; the last answer again where more is asked.
#[derive(Default)]
struct PastCopies(Mutex<Past>);

fn next<T: Clone>(past: &mut VecDeque<Result<T, Failure>>) -> Result<T, Failure> {
    let answer = match past.len() {
        0 | 1 => past.front().cloned(),
        _ => past.pop_front(),
    };
    answer.unwrap_or_else(|| {
        Err(Failure::new(FailureKind::Io, "not-recorded", "copies were not asked for then"))
    })
}

impl CopiesView for PastCopies {
    fn list(&self) -> Result<Vec<SavedCopy>, Failure> {
        next(&mut lock(&self.0).lists)
    }

    fn saving(&self) -> Result<Saving, Failure> {
        next(&mut lock(&self.0).savings)
    }
}

/// What a plugin answers now, in the shape of [`Recorded::result`].
pub(crate) fn answer(result: &Result<Reply<Plan>, CallError>) -> Value {
    in_short(result)
}
