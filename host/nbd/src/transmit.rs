//! The transmission phase: requests in, answers out.
//!
//! Two buffers. Whatever has arrived is taken into the one with a single call; requests are parsed
//! there, and data to be written is written from there. Answers gather in the other and go out
//! together when nothing more has arrived. A short while of asking again comes before sleeping:
//! being woken takes longer than most requests.

use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags};

use crate::export::Export;
use crate::handshake::Agreed;
use crate::line::{Line, Waiting};
use crate::pool::Pool;
use crate::socket::{LINGER, receive_now, wait};
use crate::wire::{
    ALLOCATION_ID, HEAD, Head, REQUEST_MAX, SIMPLE_MAGIC, STATE_HOLE, STATE_ZERO, STRUCTURED_MAGIC,
    chunk, command, error, head,
};

/// Bytes taken at once, and gathered before they are sent.
const BUFFER: usize = 512 << 10;
/// How long it is asked again before sleeping.
const SPIN: Duration = Duration::from_micros(40);
/// Extents of one answer.
const EXTENTS_MAX: usize = 4096;

/// Why a connection ended.
pub(crate) enum End {
    /// The client said so, or hung up between requests.
    Left,
    /// The server stops.
    Stopped,
    /// It sent what is no request.
    Junk(&'static str),
    Io(io::Error),
}

/// Serves one connection until it ends.
pub(crate) fn transmit(
    socket: OwnedFd,
    export: Arc<dyn Export>,
    agreed: Agreed,
    pool: &Pool,
    stop: &AtomicBool,
    served: &AtomicU64,
) -> io::Result<End> {
    let (line, woken) = Line::new(socket)?;
    let mut connection = Connection {
        size: export.size(),
        limits: export.limits(),
        read_only: export.read_only(),
        export,
        agreed,
        pool,
        line: line.clone(),
        woken,
        input: vec![0; BUFFER],
        from: 0,
        to: 0,
        out: Out { bytes: vec![0; BUFFER], len: 0 },
        spin: true,
    };
    let end = connection.run(stop, served);
    line.wait_for_all();
    if matches!(end, End::Left | End::Stopped) && !line.is_broken() {
        // What was asked before is answered, to one that reads it.
        let _ = line.send(&[], Some(Instant::now() + LINGER));
    }
    Ok(end)
}

struct Connection<'a> {
    export: Arc<dyn Export>,
    size: u64,
    limits: crate::Limits,
    read_only: bool,
    agreed: Agreed,
    pool: &'a Pool,
    line: Arc<Line>,
    /// Tells that helpers left something to be sent.
    woken: PipeReader,
    /// What has arrived and is not dealt with: `from..to`.
    input: Vec<u8>,
    from: usize,
    to: usize,
    out: Out,
    spin: bool,
}

/// Answers that gather. Its bytes are never cleared: they are overwritten.
struct Out {
    bytes: Vec<u8>,
    len: usize,
}

impl Out {
    /// Room for so many bytes at the end, which are anything.
    fn room(&mut self, length: usize) -> &mut [u8] {
        let at = self.len;
        if self.bytes.len() < at + length {
            self.bytes.resize(at + length, 0);
        }
        self.len += length;
        &mut self.bytes[at..at + length]
    }

    fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
    }
}

impl Connection<'_> {
    fn run(&mut self, stop: &AtomicBool, served: &AtomicU64) -> End {
        loop {
            // All requests that are here whole.
            while self.to - self.from >= HEAD {
                let Ok(bytes) = <&[u8; HEAD]>::try_from(&self.input[self.from..self.from + HEAD])
                else {
                    return End::Junk("a request that is cut short");
                };
                let Some(request) = head(bytes) else {
                    return End::Junk("a request without its magic number");
                };
                let payload = match request.kind {
                    command::WRITE => request.length as usize,
                    _ => 0,
                };
                if payload > REQUEST_MAX as usize {
                    return End::Junk("a write that is longer than what was announced");
                }
                if self.to - self.from < HEAD + payload {
                    self.make_room(HEAD + payload);
                    break;
                }
                let data = self.from + HEAD;
                self.from = data + payload;
                served.fetch_add(1, Ordering::Relaxed);
                if request.kind == command::DISCONNECT {
                    let _ = self.send();
                    return End::Left;
                }
                self.answer(&request, data, payload);
                // What helpers left goes out before they get more to do: so it stays little.
                if (self.out.len >= BUFFER || self.line.is_left())
                    && let Err(e) = self.send()
                {
                    return End::Io(e);
                }
            }
            if let Err(e) = self.send() {
                return End::Io(e);
            }
            if stop.load(Ordering::Relaxed) {
                return End::Stopped;
            }
            match self.take() {
                Ok(0) if self.from == self.to => return End::Left,
                Ok(0) => return End::Junk("it hung up in the middle of a request"),
                Ok(_) => {}
                Err(e) => return End::Io(e),
            }
        }
    }

    /// Moves what is here to the front, and sees to it that so much fits.
    fn make_room(&mut self, length: usize) {
        if self.from > 0 && (self.from + length > self.input.len() || self.from == self.to) {
            self.input.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        if self.input.len() < length {
            self.input.resize(length.max(BUFFER), 0);
        }
    }

    /// Takes what has arrived; waits if nothing has.
    fn take(&mut self) -> io::Result<usize> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
        } else if self.to == self.input.len() {
            self.make_room(self.to - self.from + 1);
        }
        let begun = Instant::now();
        let mut look = self.spin;
        loop {
            if look {
                match receive_now(self.line.socket.as_fd(), &mut self.input[self.to..]) {
                    Ok(n) => {
                        // Asking again is worth it where requests follow each other closely.
                        self.spin = begun.elapsed() < 4 * SPIN;
                        self.to += n;
                        return Ok(n);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
                if self.spin && begun.elapsed() <= SPIN {
                    std::hint::spin_loop();
                    continue;
                }
            }
            let is_woken = {
                let of = |fd| PollFd::new(fd, PollFlags::POLLIN);
                let mut fds = [of(self.line.socket.as_fd()), of(self.woken.as_fd())];
                wait(&mut fds, None)?;
                fds[1].any().unwrap_or(true)
            };
            if is_woken {
                self.woken.read_exact(&mut [0])?;
                self.line.heard();
                self.line.send(&[], None)?;
            }
            look = true;
        }
    }

    fn send(&mut self) -> io::Result<()> {
        if self.line.is_broken() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if self.out.len > 0 || self.line.is_left() {
            self.line.send(&self.out.bytes[..self.out.len], None)?;
            self.out.len = 0;
            // One that asked for much does not keep the room for ever.
            if self.out.bytes.len() > 4 * BUFFER {
                self.out.bytes = vec![0; BUFFER];
            }
        }
        Ok(())
    }

    /// Answers one request, or has it answered later.
    fn answer(&mut self, request: &Head, data: usize, payload: usize) {
        if let Err(code) = self.check(request) {
            return self.done(request, code);
        }
        let (offset, length) = (request.offset, u64::from(request.length));
        let fua = request.flags & command::FUA != 0;
        match request.kind {
            command::READ => self.read(request),
            command::WRITE if !fua && self.export.writes_at_once() => {
                let result = self.export.write(offset, &self.input[data..data + payload]);
                self.done(request, code(result));
            }
            command::WRITE => {
                let bytes = self.input[data..data + payload].to_vec();
                self.later(*request, length, move |export| {
                    export.write(offset, &bytes)?;
                    if fua { export.flush() } else { Ok(()) }
                });
            }
            command::FLUSH => self.later(*request, 0, |export| export.flush()),
            command::TRIM => self.later(*request, 0, move |export| {
                export.trim(offset, length)?;
                if fua { export.flush() } else { Ok(()) }
            }),
            command::WRITE_ZEROES => {
                let punch = request.flags & command::NO_HOLE == 0;
                self.later(*request, 0, move |export| {
                    export.zero(offset, length, punch)?;
                    if fua { export.flush() } else { Ok(()) }
                });
            }
            command::BLOCK_STATUS => self.status(request),
            command::CACHE => self.later(*request, 1 << 20, move |export| {
                let mut at = offset;
                let mut buf = vec![0; 1 << 20];
                while at < offset + length {
                    let n = (offset + length - at).min(1 << 20);
                    export.read(at, &mut buf[..n as usize])?;
                    at += n;
                }
                Ok(())
            }),
            _ => self.done(request, error::EINVAL),
        }
    }

    /// Whether the request can be answered at all; else the error.
    fn check(&self, request: &Head) -> Result<(), u32> {
        let changes =
            matches!(request.kind, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if changes && self.read_only {
            return Err(error::EPERM);
        }
        let known = command::FUA
            | match request.kind {
                command::WRITE_ZEROES => command::NO_HOLE,
                command::READ => command::DF,
                command::BLOCK_STATUS => command::REQ_ONE,
                _ => 0,
            };
        if request.flags & !known != 0 {
            return Err(error::EINVAL);
        }
        if request.kind == command::FLUSH {
            return Ok(());
        }
        if request.kind > command::BLOCK_STATUS {
            return Err(error::EINVAL);
        }
        let length = u64::from(request.length);
        let end = request.offset.checked_add(length);
        if end.is_none_or(|end| end > self.size) {
            return Err(if changes { error::ENOSPC } else { error::EINVAL });
        }
        let odd = !(request.offset | length).is_multiple_of(u64::from(self.limits.smallest));
        if length == 0 || odd || (request.kind == command::READ && request.length > REQUEST_MAX) {
            return Err(error::EINVAL);
        }
        if request.kind == command::BLOCK_STATUS && !self.agreed.allocation {
            return Err(error::EINVAL);
        }
        Ok(())
    }

    fn read(&mut self, request: &Head) {
        let length = request.length as usize;
        let before = self.out.len;
        let ahead = ahead_of_data(self.agreed.structured, request);
        self.out.put(&ahead);
        let into = self.out.room(length);
        match self.export.read_at_once(request.offset, into) {
            Ok(true) => {}
            Ok(false) => {
                self.out.len = before;
                let (export, request) = (self.export.clone(), *request);
                let structured = self.agreed.structured;
                let waiting = Waiting::new(&self.line, u64::from(request.length));
                self.pool.run(move || {
                    let mut out = ahead_of_data(structured, &request);
                    let at = out.len();
                    out.resize(at + request.length as usize, 0);
                    if let Err(e) = export.read(request.offset, &mut out[at..]) {
                        out.clear();
                        put_end(
                            &mut |b| out.extend_from_slice(b),
                            structured,
                            &request,
                            code_of(&e),
                        );
                    }
                    waiting.line.answer(&out);
                });
            }
            Err(e) => {
                self.out.len = before;
                self.done(request, code_of(&e));
            }
        }
    }

    /// Has it done by a helper, and answered then.
    fn later(
        &mut self,
        request: Head,
        bytes: u64,
        work: impl FnOnce(&dyn Export) -> io::Result<()> + Send + 'static,
    ) {
        let (export, structured) = (self.export.clone(), self.agreed.structured);
        let waiting = Waiting::new(&self.line, bytes);
        self.pool.run(move || {
            let code = code(work(&*export));
            let mut out = Vec::with_capacity(32);
            put_end(&mut |b| out.extend_from_slice(b), structured, &request, code);
            waiting.line.answer(&out);
        });
    }

    fn status(&mut self, request: &Head) {
        let one = request.flags & command::REQ_ONE != 0;
        let most = if one { 1 } else { EXTENTS_MAX };
        let length = u64::from(request.length);
        let extents = match self.export.extents(request.offset, length, most) {
            Ok(extents) if !extents.is_empty() => extents,
            Ok(_) => return self.done(request, error::EIO),
            Err(e) => return self.done(request, code_of(&e)),
        };
        let mut list = Vec::new();
        let mut rest = length;
        for extent in extents.iter().take(most) {
            let length = extent.length.min(rest);
            if length == 0 {
                break;
            }
            rest -= length;
            let state =
                if extent.hole { STATE_HOLE } else { 0 } | if extent.zero { STATE_ZERO } else { 0 };
            list.extend((length as u32).to_be_bytes());
            list.extend(state.to_be_bytes());
        }
        let size = 4 + list.len() as u32;
        self.out.put(&chunk_head(request.cookie, chunk::DONE, chunk::BLOCK_STATUS, size));
        self.out.put(&ALLOCATION_ID.to_be_bytes());
        self.out.put(&list);
    }

    fn done(&mut self, request: &Head, code: u32) {
        let (structured, out) = (self.agreed.structured, &mut self.out);
        put_end(&mut |b| out.put(b), structured, request, code);
    }
}

/// What comes before the data of a read that succeeded.
fn ahead_of_data(structured: bool, request: &Head) -> Vec<u8> {
    if structured {
        let size = 8 + request.length;
        let mut out = chunk_head(request.cookie, chunk::DONE, chunk::OFFSET_DATA, size).to_vec();
        out.extend(request.offset.to_be_bytes());
        out
    } else {
        simple_head(request.cookie, 0).to_vec()
    }
}

/// The answer of what carries no data.
fn put_end(put: &mut dyn FnMut(&[u8]), structured: bool, request: &Head, code: u32) {
    // Simple replies are allowed for all but reads and block status, and shorter.
    let data = matches!(request.kind, command::READ | command::BLOCK_STATUS);
    match (structured && data, code) {
        (true, 0) => put(&chunk_head(request.cookie, chunk::DONE, chunk::NONE, 0)),
        (true, code) => {
            put(&chunk_head(request.cookie, chunk::DONE, chunk::ERROR, 6));
            put(&code.to_be_bytes());
            put(&0_u16.to_be_bytes());
        }
        (false, code) => put(&simple_head(request.cookie, code)),
    }
}

fn simple_head(cookie: u64, code: u32) -> [u8; 16] {
    let mut out = [0; 16];
    out[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    out[4..8].copy_from_slice(&code.to_be_bytes());
    out[8..].copy_from_slice(&cookie.to_be_bytes());
    out
}

fn chunk_head(cookie: u64, flags: u16, kind: u16, length: u32) -> [u8; 20] {
    let mut out = [0; 20];
    out[..4].copy_from_slice(&STRUCTURED_MAGIC.to_be_bytes());
    out[4..6].copy_from_slice(&flags.to_be_bytes());
    out[6..8].copy_from_slice(&kind.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..].copy_from_slice(&length.to_be_bytes());
    out
}

fn code(result: io::Result<()>) -> u32 {
    match result {
        Ok(()) => 0,
        Err(e) => code_of(&e),
    }
}

fn code_of(error: &io::Error) -> u32 {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => error::EPERM,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            error::ENOSPC
        }
        io::ErrorKind::Unsupported => error::ENOTSUP,
        io::ErrorKind::InvalidInput => error::EINVAL,
        io::ErrorKind::NotConnected => error::ESHUTDOWN,
        _ => error::EIO,
    }
}
