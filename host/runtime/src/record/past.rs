//! A recording read, and a world in which everything is as it was heard.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::OFlag;
use serde_json::Value;
use snapslot_command::{Answer, Command, Executor, Place, RunError};
use snapslot_disk::{Disk, DiskError, Range};

use super::{Bytes, FORMAT, Heard, Line, lock};
use crate::bindings::types::{Failure, FailureKind, SavedCopy, Saving};
use crate::call::Call;
use crate::host::{CopiesView, Sight};
use crate::read_fault::ReadFault;
use crate::shown::plain;

/// Bytes of a recording, of one line of it, and calls in it.
const RECORDING_MAX: u64 = 1 << 30;
const LINE_MAX: u64 = 512 << 20;
const CALLS_MAX: usize = 100_000;
/// The largest read there is.
const READ_MAX: usize = 8 << 20;
/// The name that failures say.
const NAME: &str = "the recording";

/// A call of a recording, ready to be held again.
pub struct Recorded {
    /// The plugin's name.
    pub plugin: String,
    /// The digest of its component.
    pub digest: String,
    /// Names of grants that it did not have.
    pub denied: Vec<String>,
    /// The export that was called.
    pub call: &'static str,
    /// The volume's place, to say.
    pub place: Option<String>,
    /// What it logged then, to say.
    pub log: Vec<String>,
    /// What it answered then.
    pub result: Value,
    pub(crate) asked: Call,
    pub(crate) sight: Option<Sight>,
}

/// Reads a recording.
pub fn read_recording(path: &Path) -> Result<Vec<Recorded>, String> {
    let told = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .map_err(|e| told(&e))?;
    let meta = file.metadata().map_err(|e| told(&e))?;
    if !meta.is_file() {
        return Err(told(&"it is not a file"));
    }
    if meta.len() > RECORDING_MAX {
        return Err(told(&format!("it has more than {RECORDING_MAX} bytes")));
    }
    let mut input = BufReader::new(file.take(RECORDING_MAX));
    let mut line = |at: usize| -> Result<Option<Vec<u8>>, String> {
        let mut bytes = Vec::new();
        let told = |e: &dyn std::fmt::Display| told(&format!("line {at}: {e}"));
        (&mut input).take(LINE_MAX).read_until(b'\n', &mut bytes).map_err(|e| told(&e))?;
        match bytes.last() {
            None => Ok(None),
            Some(b'\n') => Ok(Some(bytes)),
            Some(_) => Err(told(&"it is cut off, or too long")),
        }
    };
    let first = line(1).ok().flatten().unwrap_or_default();
    let format: Value = serde_json::from_slice(&first).unwrap_or_default();
    if format["format"] != FORMAT {
        return Err(told(&format!("it is no recording of this program ({FORMAT})")));
    }
    let mut all = Vec::new();
    for at in 2.. {
        let Some(bytes) = line(at)? else { break };
        if all.len() >= CALLS_MAX {
            return Err(told(&format!("it has more than {CALLS_MAX} calls")));
        }
        let call = serde_json::from_slice(&bytes).map_err(|e| e.to_string()).and_then(recorded);
        all.push(call.map_err(|e| told(&format!("line {at}: {}", plain(&e, 512))))?);
    }
    Ok(all)
}

fn recorded(line: Line) -> Result<Recorded, String> {
    if line.cut {
        return Err("more was heard than was kept".to_owned());
    }
    // It names a plugin that is here, never a file.
    let named = (1..=32).contains(&line.plugin.len())
        && line.plugin.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let digested = line.digest.len() == 64 && line.digest.bytes().all(|b| b.is_ascii_hexdigit());
    if !named || !digested {
        return Err("it names no plugin and digest".to_owned());
    }
    let sight = match (line.kind, &line.place) {
        (Some(kind), Some(place)) => {
            let place = Place::parse(kind.into(), place).map_err(|e| e.to_string())?;
            Some(again(place, line.heard)?)
        }
        _ => None,
    };
    Ok(Recorded {
        plugin: line.plugin,
        digest: line.digest,
        denied: line.denied,
        call: line.call.name(),
        place: line.place.map(|p| plain(&p, 4096)),
        log: line.log.iter().take(1024).map(|l| plain(l, 8192)).collect(),
        result: line.result,
        asked: line.call,
        sight,
    })
}

/// A sight in which everything is as it was heard.
fn again(place: Place, heard: Vec<Heard>) -> Result<Sight, String> {
    let name = place.to_string();
    let mut disk = PastDisk { name, sizes: Past::default(), reads: Past::default() };
    let mut commands = Past::default();
    let copies = PastCopies::default();
    for heard in heard {
        match heard {
            Heard::Size(size) => disk.sizes.add((), Ok(size)),
            Heard::SizeFailed(fault) => disk.sizes.add((), Err(fault)),
            Heard::Read { offset, length, bytes } => {
                let stretch = Stretch::of(bytes)?;
                if stretch.len() != length || length > READ_MAX {
                    return Err("a read has other bytes than it says".to_owned());
                }
                disk.reads.add((offset, length), Ok(stretch));
            }
            Heard::ReadFailed { offset, length, fault } => {
                disk.reads.add((offset, length), Err(fault));
            }
            Heard::Ran { command, exit_code, output, errors } => {
                commands.add(command, Ok((exit_code, Stretch::of(output)?, Stretch::of(errors)?)));
            }
            Heard::NotRun { command, fault } => commands.add(command, Err(fault)),
            Heard::Copies(result) => lock(&copies.0).0.add((), result),
            Heard::Saving(result) => lock(&copies.0).1.add((), result),
        }
    }
    Ok(Sight {
        place,
        disk: Some(Arc::new(Told(Mutex::new(disk)))),
        commands: Some(Arc::new(PastCommands(Mutex::new(commands)))),
        copies: Some(Arc::new(copies)),
    })
}

/// Answers by what was asked, in their order. Asked more often than then, the last one is given again.
struct Past<K, V>(Vec<(K, V, bool)>);

impl<K, V> Default for Past<K, V> {
    fn default() -> Self {
        Past(Vec::new())
    }
}

impl<K: PartialEq, V: Clone> Past<K, V> {
    fn add(&mut self, asked: K, answer: V) {
        self.0.push((asked, answer, false));
    }

    fn next(&mut self, asked: &K) -> Option<V> {
        let fresh = self.0.iter_mut().find(|(k, _, given)| k == asked && !given);
        if let Some((_, answer, given)) = fresh {
            *given = true;
            return Some(answer.clone());
        }
        self.0.iter().rev().find(|(k, ..)| k == asked).map(|(_, answer, _)| answer.clone())
    }
}

/// Bytes that were read. Zeroes are made when they are asked for: a line could have terabytes of them.
#[derive(Clone)]
enum Stretch {
    Zeroes(usize),
    Bytes(Arc<[u8]>),
}

impl Stretch {
    fn of(bytes: Bytes) -> Result<Stretch, String> {
        match bytes {
            Bytes::Zeroes(length) if length <= READ_MAX => Ok(Stretch::Zeroes(length)),
            Bytes::Zeroes(_) => Err("more zeroes than a read has".to_owned()),
            Bytes::Base64(text) => {
                Ok(Stretch::Bytes(STANDARD.decode(text).map_err(|e| e.to_string())?.into()))
            }
        }
    }

    fn len(&self) -> usize {
        match self {
            Stretch::Zeroes(length) => *length,
            Stretch::Bytes(bytes) => bytes.len(),
        }
    }

    fn copy(&self, from: usize, to: &mut [u8]) {
        match self {
            Stretch::Zeroes(_) => to.fill(0),
            Stretch::Bytes(bytes) => to.copy_from_slice(&bytes[from..from + to.len()]),
        }
    }

    fn all(&self) -> Vec<u8> {
        let mut all = vec![0; self.len()];
        self.copy(0, &mut all);
        all
    }
}

/// An image of which only what was read is known.
struct PastDisk {
    name: String,
    sizes: Past<(), Result<u64, ReadFault>>,
    reads: Past<(u64, usize), Result<Stretch, ReadFault>>,
}

impl PastDisk {
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let length = buf.len();
        match self.reads.next(&(offset, length)) {
            Some(Ok(stretch)) => {
                stretch.copy(0, buf);
                return Ok(());
            }
            Some(Err(fault)) => return Err(fault.again(&self.name, offset, length)),
            None => {}
        }
        // Another component may cut its reads otherwise.
        let end = offset.saturating_add(length as u64);
        for ((start, _), read, _) in self.reads.0.iter().rev() {
            if let Ok(stretch) = read
                && *start <= offset
                && end <= start.saturating_add(stretch.len() as u64)
            {
                stretch.copy((offset - start) as usize, buf);
                return Ok(());
            }
        }
        Err(unknown(format!("bytes {offset} to {end} were not read then")))
    }
}

fn unknown(what: String) -> DiskError {
    ReadFault::of_words(what).again(NAME, 0, 0)
}

struct Told(Mutex<PastDisk>);

impl Disk for Told {
    fn size(&self) -> Result<u64, DiskError> {
        let mut disk = lock(&self.0);
        match disk.sizes.next(&()) {
            Some(size) => size.map_err(|fault| fault.again(&disk.name, 0, 0)),
            None => Err(unknown("the size was not asked for then".to_owned())),
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        lock(&self.0).read(offset, buf)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        Err(unknown("nothing is written".to_owned()))
    }

    fn extend(&self, _: u64) -> Result<(), DiskError> {
        Err(unknown("nothing is written".to_owned()))
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

type Ran = Result<(i32, Stretch, Stretch), super::NotRun>;

/// Commands that say what they said.
struct PastCommands(Mutex<Past<String, Ran>>);

impl Executor for PastCommands {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let asked = command.to_string();
        match lock(&self.0).next(&asked) {
            Some(Ok((exit_code, output, errors))) => {
                Ok(Answer { exit_code, output: output.all(), errors: errors.all() })
            }
            Some(Err(fault)) => Err(fault.into()),
            None => Err(RunError::Missing {
                program: command.program.clone(),
                why: format!("was not asked for `{asked}` then"),
            }),
        }
    }
}

type Copies = (Past<(), Result<Vec<SavedCopy>, Failure>>, Past<(), Result<Saving, Failure>>);

/// Copies as they were told.
#[derive(Default)]
struct PastCopies(Mutex<Copies>);

fn not_recorded() -> Failure {
    Failure::new(FailureKind::Io, "not-recorded", "copies were not asked for then")
}

impl CopiesView for PastCopies {
    fn list(&self) -> Result<Vec<SavedCopy>, Failure> {
        let next = lock(&self.0).0.next(&());
        next.unwrap_or_else(|| Err(not_recorded()))
    }

    fn saving(&self) -> Result<Saving, Failure> {
        let next = lock(&self.0).1.next(&());
        next.unwrap_or_else(|| Err(not_recorded()))
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what was asked twice and answered otherwise is answered so again.

    use super::*;

    #[test]
    fn answers_come_in_their_order_and_the_last_one_stays() {
        let mut past = Past::default();
        // Story: the same query always got its first answer, so a plugin that looked again saw nothing new.
        for (asked, answer) in [("a", 1), ("b", 2), ("a", 3)] {
            past.add(asked, answer);
        }
        let given = ["a", "b", "a", "a", "b", "c"].map(|asked| past.next(&asked));
        assert_eq!(given, [Some(1), Some(2), Some(3), Some(3), Some(2), None]);
    }

    #[test]
    fn reads_that_are_cut_otherwise_find_their_bytes() {
        let bytes = Stretch::Bytes(Arc::from((0..100).collect::<Vec<u8>>()));
        let mut disk =
            PastDisk { name: "x".to_owned(), sizes: Past::default(), reads: Past::default() };
        disk.reads.add((1000, 100), Ok(bytes));
        disk.reads.add((2000, 1 << 20), Ok(Stretch::Zeroes(1 << 20)));
        let mut some = [9; 10];
        disk.read(1050, &mut some).expect("read then");
        assert_eq!(some[0], 50);
        disk.read(2000 + (1 << 19), &mut some).expect("read then");
        assert_eq!(some, [0; 10]);
        for outside in [995, 1095, u64::MAX - 3] {
            assert!(disk.read(outside, &mut some).is_err(), "{outside}");
        }
    }
}
