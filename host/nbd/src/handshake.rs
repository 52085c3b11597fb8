//! Haggling over options until an export is chosen.

use std::io::{self, Read, Write};

use crate::server::Announced;
use crate::wire::{
    ALLOCATION, ALLOCATION_ID, FIXED_NEWSTYLE, MAGIC, NO_ZEROES, OPTION_MAGIC, OPTION_REPLY_MAGIC,
    REQUEST_MAX, be16, be32, be64, flag, info, option, reply,
};

/// Bytes of one option's data: a name has 4,096 at most, and there are a few of them.
const OPTION_MAX: u32 = 16 << 10;
/// Options of one connection: a client needs ten.
const OPTIONS_MAX: usize = 256;
const NAME_MAX: usize = 4096;

/// What was agreed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreed {
    /// The export, by its place in the list.
    pub(crate) export: usize,
    /// Structured replies.
    pub(crate) structured: bool,
    /// Block status.
    pub(crate) allocation: bool,
}

/// How it ended.
pub(crate) enum Outcome {
    Go(Agreed),
    /// It wants TLS, and has been told to begin.
    Tls,
    /// It left, or was sent away.
    End,
}

/// What the server insists on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// TLS can be had, and is not on yet.
    pub(crate) tls: bool,
}

/// Greets a client.
pub(crate) fn greet<S: Read + Write>(stream: &mut S) -> io::Result<bool> {
    let mut hello = Vec::with_capacity(18);
    hello.extend(MAGIC.to_be_bytes());
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend((FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes());
    stream.write_all(&hello)?;
    let mut flags = [0; 4];
    stream.read_exact(&mut flags)?;
    let flags = u32::from_be_bytes(flags);
    let known = u32::from(FIXED_NEWSTYLE | NO_ZEROES);
    if flags & !known != 0 || flags & u32::from(FIXED_NEWSTYLE) == 0 {
        return Err(junk("it does not speak the fixed newstyle protocol"));
    }
    Ok(flags & u32::from(NO_ZEROES) != 0)
}

fn junk(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Answers options until one chooses an export.
pub(crate) fn haggle<S: Read + Write>(
    stream: &mut S,
    exports: &[Announced],
    terms: Terms,
    no_zeroes: bool,
) -> io::Result<Outcome> {
    let mut structured = false;
    // The export whose context was chosen: it holds for that one alone.
    let mut allocation: Option<usize> = None;
    for _ in 0..OPTIONS_MAX {
        let mut head = [0; 16];
        stream.read_exact(&mut head)?;
        if be64(&head, 0) != OPTION_MAGIC {
            return Err(junk("an option without its magic number"));
        }
        let (kind, length) = (be32(&head, 8), be32(&head, 12));
        if length > OPTION_MAX {
            // What cannot be skipped cheaply is not skipped.
            answer(stream, kind, reply::TOO_BIG, b"the option is too long")?;
            return Ok(Outcome::End);
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data)?;
        if terms.tls && !matches!(kind, option::STARTTLS | option::ABORT) {
            if kind == option::EXPORT_NAME {
                return Ok(Outcome::End);
            }
            answer(stream, kind, reply::TLS_REQUIRED, b"this server wants TLS first")?;
            continue;
        }
        match kind {
            option::EXPORT_NAME => {
                let Some(export) = find(exports, &data) else { return Ok(Outcome::End) };
                let mut out = Vec::with_capacity(134);
                out.extend(exports[export].export.size().to_be_bytes());
                out.extend(flags(&exports[export], structured).to_be_bytes());
                if !no_zeroes {
                    out.extend([0; 124]);
                }
                stream.write_all(&out)?;
                let allocation = allocation == Some(export);
                return Ok(Outcome::Go(Agreed { export, structured, allocation }));
            }
            option::ABORT => {
                answer(stream, kind, reply::ACK, b"")?;
                return Ok(Outcome::End);
            }
            option::LIST if !data.is_empty() => {
                answer(stream, kind, reply::INVALID, b"list takes no data")?;
            }
            option::LIST => {
                for export in exports {
                    let mut out = (export.name.len() as u32).to_be_bytes().to_vec();
                    out.extend(export.name.as_bytes());
                    out.extend(export.description.as_bytes());
                    answer(stream, kind, reply::SERVER, &out)?;
                }
                answer(stream, kind, reply::ACK, b"")?;
            }
            option::STARTTLS if !data.is_empty() => {
                answer(stream, kind, reply::INVALID, b"starttls takes no data")?;
            }
            option::STARTTLS if terms.tls => {
                answer(stream, kind, reply::ACK, b"")?;
                return Ok(Outcome::Tls);
            }
            option::STARTTLS => answer(stream, kind, reply::POLICY, b"there is no TLS here")?,
            option::INFO | option::GO => {
                let Some((name, wanted)) = named(&data) else {
                    answer(stream, kind, reply::INVALID, b"it is cut short")?;
                    continue;
                };
                let Some(export) = find(exports, name) else {
                    answer(stream, kind, reply::UNKNOWN, b"there is no export of this name")?;
                    continue;
                };
                let asked: Vec<u16> = wanted.chunks_exact(2).map(|w| be16(w, 0)).collect();
                tell(stream, kind, &exports[export], structured, &asked)?;
                answer(stream, kind, reply::ACK, b"")?;
                if kind == option::GO {
                    let allocation = allocation == Some(export);
                    return Ok(Outcome::Go(Agreed { export, structured, allocation }));
                }
            }
            option::STRUCTURED_REPLY if !data.is_empty() => {
                answer(stream, kind, reply::INVALID, b"it takes no data")?;
            }
            option::STRUCTURED_REPLY => {
                structured = true;
                answer(stream, kind, reply::ACK, b"")?;
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                let choose = kind == option::SET_META_CONTEXT;
                if choose {
                    allocation = None;
                }
                if !structured {
                    answer(stream, kind, reply::INVALID, b"structured replies come first")?;
                    continue;
                }
                let Some((name, queries)) = contexts(&data) else {
                    answer(stream, kind, reply::INVALID, b"it is cut short")?;
                    continue;
                };
                let Some(export) = find(exports, name) else {
                    answer(stream, kind, reply::UNKNOWN, b"there is no export of this name")?;
                    continue;
                };
                let all = !choose && (queries.is_empty() || queries.iter().any(|q| *q == b"base:"));
                if all || queries.iter().any(|q| *q == ALLOCATION.as_bytes()) {
                    let id = if choose { ALLOCATION_ID } else { 0 };
                    let mut out = id.to_be_bytes().to_vec();
                    out.extend(ALLOCATION.as_bytes());
                    answer(stream, kind, reply::META_CONTEXT, &out)?;
                    if choose {
                        allocation = Some(export);
                    }
                }
                answer(stream, kind, reply::ACK, b"")?;
            }
            _ => answer(stream, kind, reply::UNSUPPORTED, b"it is not known here")?,
        }
    }
    Err(junk("too many options"))
}

/// The export of this name; the empty name is the first one's.
fn find(exports: &[Announced], name: &[u8]) -> Option<usize> {
    if name.is_empty() {
        return (!exports.is_empty()).then_some(0);
    }
    exports.iter().position(|e| e.name.as_bytes() == name)
}

/// Transmission flags of an export.
fn flags(export: &Announced, structured: bool) -> u16 {
    let base = flag::HAS_FLAGS
        | flag::SEND_FLUSH
        | flag::SEND_FUA
        | flag::CAN_MULTI_CONN
        | flag::SEND_CACHE;
    base | if structured { flag::SEND_DF } else { 0 }
        | match export.export.read_only() {
            true => flag::READ_ONLY,
            false => flag::SEND_TRIM | flag::SEND_WRITE_ZEROES,
        }
}

fn tell<S: Write>(
    stream: &mut S,
    kind: u32,
    export: &Announced,
    structured: bool,
    asked: &[u16],
) -> io::Result<()> {
    let mut out = info::EXPORT.to_be_bytes().to_vec();
    out.extend(export.export.size().to_be_bytes());
    out.extend(flags(export, structured).to_be_bytes());
    answer(stream, kind, reply::INFO, &out)?;
    for (what, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
        if asked.contains(&what) {
            let mut out = what.to_be_bytes().to_vec();
            out.extend(text.as_bytes());
            answer(stream, kind, reply::INFO, &out)?;
        }
    }
    // A client that did not ask need not keep to block sizes; then any are taken, all the same.
    let limits = export.export.limits();
    let smallest = if asked.contains(&info::BLOCK_SIZE) { limits.smallest } else { 1 };
    let mut out = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for n in [smallest, limits.preferred, REQUEST_MAX] {
        out.extend(n.to_be_bytes());
    }
    answer(stream, kind, reply::INFO, &out)
}

fn answer<S: Write>(stream: &mut S, to: u32, kind: u32, data: &[u8]) -> io::Result<()> {
    let mut out = Vec::with_capacity(20 + data.len());
    out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    out.extend(to.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    stream.write_all(&out)
}

/// The name, and the list of informations wanted.
fn named(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = counted(data)?;
    let count = usize::from(u16::from_be_bytes(rest.get(..2)?.try_into().ok()?));
    let wanted = &rest[2..];
    (name.len() <= NAME_MAX && wanted.len() == count * 2).then_some((name, wanted))
}

/// The name, and the queries.
fn contexts(data: &[u8]) -> Option<(&[u8], Vec<&[u8]>)> {
    let (name, rest) = counted(data)?;
    let count = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
    let mut rest = &rest[4..];
    // Each query has a length of four bytes, so a count beyond that is a lie.
    if name.len() > NAME_MAX || count > rest.len() / 4 {
        return None;
    }
    let mut queries = Vec::with_capacity(count);
    for _ in 0..count {
        let (query, more) = counted(rest)?;
        queries.push(query);
        rest = more;
    }
    rest.is_empty().then_some((name, queries))
}

/// A string with its length before it, and what follows.
fn counted(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_be_bytes(data.get(..4)?.try_into().ok()?) as usize;
    data[4..].split_at_checked(length)
}
