//! The journal: a plan made durable before the image is touched.
//!
//! ```text
//! 0   "SNAPSLOT JOURNAL"  version u32 = 1   0 u32   0 u64          (32 bytes)
//! 32  record*                                                       little-endian
//!       length u32   kind u32   number u32   crc32c u32   payload[length]
//!       kind 1 meta    what the engine needs to finish the operation, its own encoding
//!            2 seal    offset u64, bits u64
//!            3 step    a step, see `put_step`
//!            4 commit  crc32c of all records' checks u32; always the last record of the plan
//!            5 work    nothing; behind the commit, once the work on images has begun
//! ```
//!
//! The check of a record covers its first 12 bytes and its payload. Everything is written, then
//! the file is flushed, then its name is synced: only a journal that is whole can have a valid
//! commit record, so the flush *is* the commit point, and until it returns the image has not
//! been touched. A journal without a valid commit record is of an operation that never began.
//!
//! The note of work is for plans over several volumes. What an image shows of a plan is its header, and that stays
//! as the seal made it while tables and counts are being changed; so whether a seal may simply be taken off again
//! cannot be seen there. The note is durable before anything but seals is written to any of the images. Up to
//! so many bytes behind the commit record count as that note, whole, torn or damaged: to go on where one could have gone back is
//! right, to go back where one should have gone on is not.

use std::time::Duration;

use snapslot_command::Command;
use snapslot_disk::{Companion, Disk, DiskError};

use crate::plan::{Plan, PlanBuilder, PlanError, Seal, limits};
use crate::step::{Act, Mask, Save, Step};

const MAGIC: &[u8; 16] = b"SNAPSLOT JOURNAL";
const VERSION: u32 = 1;
const HEADER: usize = 32;
const RECORD: usize = 16;
const META: u32 = 1;
const SEAL: u32 = 2;
const STEP: u32 = 3;
const COMMIT: u32 = 4;
const WORK: u32 = 5;
/// The meta record is a page of JSON; this leaves room for 64 volumes with long names.
const META_MAX: usize = 1 << 20;
/// What the limits of a plan allow, with the records' heads.
const JOURNAL_MAX: u64 = (limits::DATA + limits::STEPS * 96 + META_MAX) as u64;
/// Written in pieces of this size.
const SPILL: usize = 1 << 20;

/// A journal that cannot be read. The image has not been touched because of it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Bytes that are not a journal of ours, or of a later version.
    #[error("{name} is not a journal this version can read: {why}")]
    Foreign {
        /// Its name.
        name: String,
        /// What is strange.
        why: &'static str,
    },
    /// A whole journal whose plan is malformed: made by a faulty or foreign program.
    #[error("{name} holds a malformed plan: {source}")]
    Plan {
        /// Its name.
        name: String,
        /// What is wrong.
        source: PlanError,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// What was found where a journal may be.
#[derive(Debug)]
pub enum Found {
    /// No journal.
    Nothing,
    /// A journal that never became valid: the operation it is of never began.
    Uncommitted,
    /// A committed plan, and what the engine wrote with it.
    Committed {
        /// The engine's own words.
        meta: Vec<u8>,
        /// The plan.
        plan: Plan,
        /// Whether more than seals may have been written to the images of its operation.
        work: bool,
    },
}

/// Writes the journal and makes it durable: the commit point. On failure the journal is removed
/// again and nothing has happened.
pub fn commit(place: &dyn Companion, meta: &[u8], plan: &Plan) -> Result<(), JournalError> {
    if meta.len() > META_MAX {
        return Err(JournalError::Foreign {
            name: place.name(),
            why: "its meta record is too long",
        });
    }
    let result = write_all(place, meta, plan);
    if result.is_err() {
        // Best effort: a journal without a valid commit record is ignored anyway.
        let _ = place.remove();
    }
    result
}

/// Notes in a committed journal that the work on images begins, and makes that durable.
pub fn note_work(place: &dyn Companion) -> Result<(), JournalError> {
    let foreign = |why| JournalError::Foreign { name: place.name(), why };
    let file = place.reopen()?.ok_or_else(|| foreign("it is not there any more"))?;
    let head = head(0, WORK, u32::MAX);
    let mut record = head.to_vec();
    record.extend_from_slice(&check(&head, &[]).to_le_bytes());
    file.write_at(file.size()?, &record)?;
    file.flush()?;
    Ok(())
}

fn write_all(place: &dyn Companion, meta: &[u8], plan: &Plan) -> Result<(), JournalError> {
    let file = place.create()?;
    let mut out = Writer { file: &*file, at: 0, buffer: Vec::new(), number: 0, chain: 0 };
    out.buffer.extend_from_slice(MAGIC);
    out.buffer.extend_from_slice(&VERSION.to_le_bytes());
    out.buffer.resize(HEADER, 0);
    out.record(META, meta)?;
    if let Some(seal) = plan.seal() {
        let mut payload = seal.offset.to_le_bytes().to_vec();
        payload.extend_from_slice(&seal.bits.to_le_bytes());
        out.record(SEAL, &payload)?;
    }
    let mut payload = Vec::new();
    for step in plan.steps() {
        payload.clear();
        put_step(&mut payload, step);
        out.record(STEP, &payload)?;
    }
    let chain = out.chain.to_le_bytes();
    out.record(COMMIT, &chain)?;
    out.spill()?;
    file.flush()?;
    place.sync_name()?;
    Ok(())
}

struct Writer<'a> {
    file: &'a dyn Disk,
    at: u64,
    buffer: Vec<u8>,
    number: u32,
    chain: u32,
}

impl Writer<'_> {
    fn record(&mut self, kind: u32, payload: &[u8]) -> Result<(), DiskError> {
        let head = head(payload.len() as u32, kind, self.number);
        let check = check(&head, payload);
        self.chain = crc32c::crc32c_append(self.chain, &check.to_le_bytes());
        self.number += 1;
        self.buffer.extend_from_slice(&head);
        self.buffer.extend_from_slice(&check.to_le_bytes());
        self.buffer.extend_from_slice(payload);
        if self.buffer.len() >= SPILL { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), DiskError> {
        self.file.write_at(self.at, &self.buffer)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

fn head(length: u32, kind: u32, number: u32) -> [u8; 12] {
    let mut head = [0; 12];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..8].copy_from_slice(&kind.to_le_bytes());
    head[8..].copy_from_slice(&number.to_le_bytes());
    head
}

fn check(head: &[u8; 12], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), payload)
}

/// Reads what is there.
pub fn read(place: &dyn Companion) -> Result<Found, JournalError> {
    let Some(file) = place.open()? else { return Ok(Found::Nothing) };
    let size = file.size()?;
    if size > JOURNAL_MAX {
        return Err(JournalError::Foreign { name: place.name(), why: "it is too large" });
    }
    let mut bytes = vec![0; size as usize];
    file.read_at(0, &mut bytes)?;
    parse(&bytes, &place.name())
}

/// Reads a journal from memory.
pub fn parse(bytes: &[u8], name: &str) -> Result<Found, JournalError> {
    let foreign = |why| JournalError::Foreign { name: name.to_owned(), why };
    if bytes.len() < HEADER {
        return Ok(Found::Uncommitted);
    }
    let zeroes = |part: &[u8]| part.iter().all(|b| *b == 0);
    if &bytes[..16] != MAGIC {
        // The first write may have been lost while a later one arrived.
        let lost = zeroes(&bytes[..16]);
        return if lost {
            Ok(Found::Uncommitted)
        } else {
            Err(foreign("it begins with other words"))
        };
    }
    if bytes[16..20] != VERSION.to_le_bytes() {
        return Err(foreign("it is of another version"));
    }
    if !zeroes(&bytes[20..HEADER]) {
        return Ok(Found::Uncommitted);
    }
    let mut at = HEADER;
    let mut chain = 0;
    let mut meta = None;
    let mut plan = PlanBuilder::new();
    for number in 0_u32.. {
        let Some((kind, payload, checked)) = next_record(bytes, at, number) else {
            return Ok(Found::Uncommitted);
        };
        at += RECORD + payload.len();
        if kind == COMMIT {
            if payload != u32::to_le_bytes(chain) {
                return Ok(Found::Uncommitted);
            }
            break;
        }
        chain = crc32c::crc32c_append(chain, &checked.to_le_bytes());
        let malformed = |source| JournalError::Plan { name: name.to_owned(), source };
        match kind {
            META if number == 0 => meta = Some(payload.to_vec()),
            SEAL => {
                let mut fields = Fields(payload);
                let seal = fields.u64().zip(fields.u64());
                let (offset, bits) = seal.ok_or_else(|| foreign("its seal is cut short"))?;
                plan.seal(Seal { offset, bits }).map_err(malformed)?;
            }
            STEP => {
                let step = get_step(payload).ok_or_else(|| foreign("a step is cut short"))?;
                add(&mut plan, step).map_err(malformed)?;
            }
            _ => return Err(foreign("it has records of an unknown kind")),
        }
    }
    let meta = meta.ok_or_else(|| foreign("it does not say what it is for"))?;
    let plan =
        plan.finish().map_err(|source| JournalError::Plan { name: name.to_owned(), source })?;
    match bytes.len() - at {
        0 => Ok(Found::Committed { meta, plan, work: false }),
        1..=RECORD => Ok(Found::Committed { meta, plan, work: true }),
        _ => Err(foreign("something lies behind its end")),
    }
}

fn next_record(bytes: &[u8], at: usize, number: u32) -> Option<(u32, &[u8], u32)> {
    let head: &[u8; RECORD] = bytes.get(at..at.checked_add(RECORD)?)?.try_into().ok()?;
    let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
    let length = usize::try_from(word(0)).ok()?;
    let start = at + RECORD;
    let payload = bytes.get(start..start.checked_add(length)?)?;
    let first: &[u8; 12] = head[..12].try_into().ok()?;
    (word(8) == number && word(12) == check(first, payload)).then_some((word(4), payload, word(12)))
}

fn add(plan: &mut PlanBuilder, step: Step) -> Result<(), PlanError> {
    match step {
        Step::Write { offset, data } => plan.write(offset, data),
        Step::Fill { offset, length, pattern } => plan.fill(offset, length, pattern),
        Step::Mask(mask) => plan.mask(mask),
        Step::Extend { size } => plan.extend(size),
        Step::Act(act) => plan.act(act),
        Step::Save(save) => plan.save(save),
        Step::PutBack { mark } => plan.put_back(mark),
        Step::Discard { mark } => plan.discard(mark),
        Step::Barrier { title } => plan.barrier(&title),
    }
}

/// Tag u8, then the fields in the order of the struct, numbers little-endian, the one byte
/// string last.
fn put_step(out: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write { offset, data } => {
            out.push(1);
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(data);
        }
        Step::Fill { offset, length, pattern } => {
            out.push(2);
            out.extend_from_slice(&offset.to_le_bytes());
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(pattern);
        }
        Step::Mask(m) => {
            out.push(3);
            out.extend_from_slice(&m.offset.to_le_bytes());
            out.extend_from_slice(&m.count.to_le_bytes());
            out.extend_from_slice(&m.stride.to_le_bytes());
            out.extend_from_slice(&m.clear.to_le_bytes());
            out.extend_from_slice(&m.set.to_le_bytes());
            out.extend_from_slice(&m.select);
        }
        Step::Extend { size } => {
            out.push(4);
            out.extend_from_slice(&size.to_le_bytes());
        }
        Step::Barrier { title } => {
            out.push(5);
            out.extend_from_slice(title.as_bytes());
        }
        Step::Act(act) => {
            out.push(6);
            put_text(out, &act.action);
            put_command(out, &act.command);
            out.push(u8::from(act.guard.is_some()));
            if let Some((guard, expected)) = &act.guard {
                put_command(out, guard);
                put_text(out, expected);
            }
        }
        Step::Save(save) => {
            out.push(7);
            out.extend_from_slice(&save.taken_seconds.to_le_bytes());
            out.extend_from_slice(&save.taken_nanoseconds.to_le_bytes());
            out.push(u8::from(save.full_copy));
            put_text(out, &save.mark);
        }
        Step::PutBack { mark } => {
            out.push(8);
            put_text(out, mark);
        }
        Step::Discard { mark } => {
            out.push(9);
            put_text(out, mark);
        }
    }
}

fn get_step(payload: &[u8]) -> Option<Step> {
    let (tag, rest) = payload.split_first()?;
    let mut f = Fields(rest);
    Some(match tag {
        1 => Step::Write { offset: f.u64()?, data: f.0.to_vec() },
        2 => Step::Fill { offset: f.u64()?, length: f.u64()?, pattern: f.0.to_vec() },
        3 => Step::Mask(Mask {
            offset: f.u64()?,
            count: f.u32()?,
            stride: f.u32()?,
            clear: f.u64()?,
            set: f.u64()?,
            select: f.0.to_vec(),
        }),
        4 => Step::Extend { size: f.u64()? },
        5 => Step::Barrier { title: std::str::from_utf8(f.0).ok()?.to_owned() },
        6 => {
            let (action, command) = (f.text()?, f.command()?);
            let guard = match f.byte()? {
                0 => None,
                _ => Some((f.command()?, f.text()?)),
            };
            Step::Act(Act { action, command, guard })
        }
        7 => Step::Save(Save {
            taken_seconds: f.u64()?,
            taken_nanoseconds: f.u32()?,
            full_copy: f.byte()? != 0,
            mark: f.text()?,
        }),
        8 => Step::PutBack { mark: f.text()? },
        9 => Step::Discard { mark: f.text()? },
        _ => return None,
    })
}

/// Length u32, then the bytes.
fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Seconds u64, words u32, the words, whether there is an input u8, the input.
fn put_command(out: &mut Vec<u8>, command: &Command) {
    out.extend_from_slice(&command.deadline.as_secs().to_le_bytes());
    out.extend_from_slice(&(command.arguments.len() as u32 + 1).to_le_bytes());
    put_text(out, &command.program);
    command.arguments.iter().for_each(|word| put_text(out, word));
    out.push(u8::from(command.input.is_some()));
    put_text(out, command.input.as_deref().unwrap_or_default());
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn text(&mut self) -> Option<String> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(std::str::from_utf8(text).ok()?.to_owned())
    }

    fn command(&mut self) -> Option<Command> {
        let deadline = Duration::from_secs(self.u64()?);
        let words = self.u32()?;
        let program = self.text()?;
        let arguments = (1..words).map(|_| self.text()).collect::<Option<Vec<_>>>()?;
        let has_input = self.byte()? != 0;
        let input = self.text()?;
        Some(Command { program, arguments, input: has_input.then_some(input), deadline })
    }

    fn u64(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn u32(&mut self) -> Option<u32> {
        let (head, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*head))
    }
}
