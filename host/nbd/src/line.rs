//! The socket of a connection, as its own thread and helpers use it.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use nix::sys::socket::{Shutdown, shutdown};

use crate::pool::HELPERS;
use crate::socket::{send_all, send_now};

/// Requests of one connection that helpers have: fewer than there are helpers, so that others get some too.
const WAITING_MAX: usize = HELPERS / 2;
/// Bytes that these requests carry, or are answered with; one request may go beyond.
const WAITING_BYTES_MAX: u64 = 64 << 20;
/// The socket, as both the connection's thread and helpers use it.
///
/// A helper never waits for the client: what the socket does not take at once is left for the connection's
/// thread, which is woken and sends it before anything else.
pub(crate) struct Line {
    pub(crate) socket: OwnedFd,
    left: Mutex<Left>,
    /// Whether there may be something there.
    is_left: AtomicBool,
    wake: PipeWriter,
    broken: AtomicBool,
    waiting: Mutex<Load>,
    answered: Condvar,
}

/// What helpers left to be sent.
#[derive(Default)]
struct Left {
    bytes: Vec<u8>,
    /// The connection's thread is sending, and looks here again before it does anything else.
    sending: bool,
    /// It was woken, and has not heard it yet.
    woken: bool,
}

/// What helpers have.
#[derive(Default)]
struct Load {
    requests: usize,
    bytes: u64,
}

impl Line {
    /// A line, and what tells its connection's thread that something is left.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<(Arc<Line>, PipeReader)> {
        let (woken, wake) = std::io::pipe()?;
        let line = Line {
            socket,
            left: Mutex::default(),
            is_left: AtomicBool::new(false),
            wake,
            broken: AtomicBool::new(false),
            waiting: Mutex::default(),
            answered: Condvar::new(),
        };
        Ok((Arc::new(line), woken))
    }

    /// Whether helpers may have left something.
    pub(crate) fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Acquire)
    }

    /// Whether the client is gone.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// It has heard that something is left.
    pub(crate) fn heard(&self) {
        self.left().woken = false;
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn waiting(&self) -> MutexGuard<'_, Load> {
        self.waiting.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// For helpers.
    pub(crate) fn answer(&self, bytes: &[u8]) {
        let mut left = self.left();
        if !left.bytes.is_empty() || left.sending {
            left.bytes.extend_from_slice(bytes);
            return;
        }
        match send_now(self.socket.as_fd(), bytes) {
            Ok(n) if n == bytes.len() => return,
            Ok(n) => left.bytes.extend_from_slice(&bytes[n..]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => left.bytes.extend_from_slice(bytes),
            Err(_) => return self.broken.store(true, Ordering::Relaxed),
        }
        self.is_left.store(true, Ordering::Release);
        if !left.woken {
            left.woken = true;
            // It fails only if nobody listens any more.
            let _ = (&self.wake).write_all(b"!");
        }
    }

    /// For the connection's thread: sends what helpers left, then this, between what others send.
    pub(crate) fn send(&self, own: &[u8], until: Option<Instant>) -> io::Result<()> {
        let mut left = self.left();
        left.sending = true;
        let mut bytes = std::mem::take(&mut left.bytes);
        drop(left);
        let mut own = Some(own).filter(|own| !own.is_empty());
        loop {
            let sent = send_all(self.socket.as_fd(), &bytes, until).and_then(|()| {
                send_all(self.socket.as_fd(), own.take().unwrap_or_default(), until)
            });
            if let Err(e) = sent {
                self.broken.store(true, Ordering::Relaxed);
                return Err(e);
            }
            let mut left = self.left();
            if left.bytes.is_empty() {
                left.sending = false;
                self.is_left.store(false, Ordering::Release);
                return Ok(());
            }
            bytes = std::mem::take(&mut left.bytes);
        }
    }

    /// Waits until helpers may have one more, of so many bytes.
    fn one_more(&self, bytes: u64) {
        let full = |load: &mut Load| {
            load.requests >= WAITING_MAX
                || (load.requests > 0 && load.bytes + bytes > WAITING_BYTES_MAX)
        };
        let waiting = self.answered.wait_while(self.waiting(), full);
        let mut waiting = waiting.unwrap_or_else(|e| e.into_inner());
        waiting.requests += 1;
        waiting.bytes += bytes;
    }

    pub(crate) fn wait_for_all(&self) {
        drop(self.answered.wait_while(self.waiting(), |load| load.requests > 0));
    }
}

/// Ends one request that waits, however it ends.
pub(crate) struct Waiting {
    pub(crate) line: Arc<Line>,
    bytes: u64,
}

impl Waiting {
    pub(crate) fn new(line: &Arc<Line>, bytes: u64) -> Self {
        line.one_more(bytes);
        Waiting { line: line.clone(), bytes }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The request will never be answered: better no connection than one that waits for ever.
            let _ = shutdown(self.line.socket.as_raw_fd(), Shutdown::Both);
        }
        let mut load = self.line.waiting();
        load.requests -= 1;
        load.bytes -= self.bytes;
        drop(load);
        self.line.answered.notify_all();
    }
}
