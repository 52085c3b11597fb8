//! A connected socket, read and written without waiting, or until a moment.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};

/// What there is now.
pub(crate) fn receive_now(socket: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<usize> {
    loop {
        match recv(socket.as_raw_fd(), buf, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => return Ok(n),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// What goes out now.
pub(crate) fn send_now(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(n) => return Ok(n),
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Waits for these, at most until then; whether any came. Ends also when a socket is shut down.
pub(crate) fn wait(fds: &mut [PollFd<'_>], until: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                // Rounded up: else the last millisecond is spent asking.
                let left = left.as_millis().saturating_add(u128::from(!left.is_zero()));
                PollTimeout::try_from(left.min(60_000) as u64).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(fds, timeout) {
            Ok(0) if until.is_some_and(|until| until <= Instant::now()) => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Sends all of it, waiting as long as that takes, or until then.
pub(crate) fn send_all(
    socket: BorrowedFd<'_>,
    mut bytes: &[u8],
    until: Option<Instant>,
) -> io::Result<()> {
    while !bytes.is_empty() {
        match send_now(socket, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if !wait(&mut [PollFd::new(socket, PollFlags::POLLOUT)], until)? {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A socket all of whose reading and writing must be done by a moment, however little comes at once.
pub(crate) struct Timed<'a> {
    socket: BorrowedFd<'a>,
    until: Instant,
}

impl<'a> Timed<'a> {
    pub(crate) fn new(socket: &'a impl AsFd, until: Instant) -> Self {
        Timed { socket: socket.as_fd(), until }
    }

    fn late() -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, "it took too long to say what it wants")
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match receive_now(self.socket, buf) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !wait(&mut [PollFd::new(self.socket, PollFlags::POLLIN)], Some(self.until))?
                    {
                        return Err(Self::late());
                    }
                }
                // One byte at a time is in time each time: the whole is what counts.
                Ok(n) if n > 0 && self.until <= Instant::now() => return Err(Self::late()),
                result => return result,
            }
        }
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send_all(self.socket, bytes, Some(self.until)).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that never waits.
pub(crate) struct Now<'a>(pub(crate) BorrowedFd<'a>);

impl Write for Now<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        send_now(self.0, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How long what was answered last may take to go out, once nothing more is to come.
pub(crate) const LINGER: Duration = Duration::from_secs(10);
