//! Frames on the socket between the engine and the process that runs plugins: a length (32 bits, little
//! endian) and that many bytes of postcard. To the process a descriptor may come with one.
//!
//! The two ends are not alike. The process believes the engine and waits for it as long as it takes.
//! The engine believes nothing: each frame has a limit, in bytes and in what it may be decoded to; every
//! wait, for reading and for writing, has an end; descriptors from there are never taken in.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, send, sendmsg,
};
use postcard::de_flavors::Flavor;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest frame to the process: a component, and what it takes to send it.
const TO_PROCESS_MAX: usize = 96 << 20;
/// The largest frame from the process. One call hands over 32 MiB at most, a step of a plan 8 MiB.
pub(super) const FRAME_MAX: usize = 48 << 20;
/// Numbers and lengths in one frame, each at least a byte: all that could be many values in few bytes.
/// The longest list that the contract allows, of 65,536 snapshots, has some three million.
const NUMBERS_MAX: usize = 8 << 20;
/// How much is taken in at once.
const INTAKE: usize = 64 << 10;

fn framed<T: Serialize>(words: &T, most: usize) -> io::Result<Vec<u8>> {
    let mut frame = postcard::to_extend(words, vec![0; 4]).map_err(io::Error::other)?;
    let length = frame.len() - 4;
    if length > most {
        return Err(io::Error::other("a frame is longer than the other end takes in"));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?;
    frame[..4].copy_from_slice(&length.to_le_bytes());
    Ok(frame)
}

/// The engine's end.
#[derive(Debug)]
pub(super) struct Wary {
    socket: UnixStream,
    /// What has come and was not taken yet.
    inbox: Vec<u8>,
}

impl Wary {
    pub(super) fn new(socket: UnixStream) -> Wary {
        Wary { socket, inbox: Vec::new() }
    }

    /// Sends a frame; fails if it is not taken by then.
    pub(super) fn send<T: Serialize>(
        &mut self,
        words: &T,
        descriptor: Option<BorrowedFd<'_>>,
        until: Instant,
    ) -> io::Result<()> {
        let frame = framed(words, TO_PROCESS_MAX)?;
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let mut sent = 0;
        while sent < frame.len() {
            let done = match descriptor.filter(|_| sent == 0) {
                None => send(self.socket.as_raw_fd(), &frame[sent..], flags),
                Some(descriptor) => {
                    let raw = [descriptor.as_raw_fd()];
                    let with = [ControlMessage::ScmRights(&raw)];
                    let parts = [IoSlice::new(&frame)];
                    sendmsg::<()>(self.socket.as_raw_fd(), &parts, &with, flags, None)
                }
            };
            match done {
                Ok(more) => sent += more,
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, until)?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next frame, of at most so many bytes; fails if it is not whole by then.
    pub(super) fn receive<T: DeserializeOwned>(
        &mut self,
        most: usize,
        until: Instant,
    ) -> io::Result<T> {
        loop {
            if let Some(head) = self.inbox.first_chunk::<4>() {
                let length = u32::from_le_bytes(*head) as usize;
                if length > most {
                    return Err(nonsense("a frame is longer than any has reason to be"));
                }
                if let Some(frame) = self.inbox.get(4..4 + length) {
                    let words = decoded(frame)?;
                    self.inbox.drain(..4 + length);
                    if self.inbox.is_empty() && length > INTAKE {
                        self.inbox = Vec::new();
                    }
                    return Ok(words);
                }
            }
            self.take_in(until)?;
        }
    }

    /// Takes in what is there; waits if there is nothing. Memory grows with what arrives: a length
    /// alone has nobody set it aside.
    fn take_in(&mut self, until: Instant) -> io::Result<()> {
        let mut some = [0; INTAKE];
        let again = Again::new();
        loop {
            // Descriptors that come along are closed by the kernel, as there is no room for them.
            match recv(self.socket.as_raw_fd(), &mut some, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => {
                    self.inbox.extend_from_slice(&some[..more]);
                    // Somebody who always has more to say is not let past the time.
                    return left(until).map(|_| ());
                }
                Err(Errno::EAGAIN) if again.is_worth_it() => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLIN, until)?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn wait(&self, what: PollFlags, until: Instant) -> io::Result<()> {
        // At least a millisecond, or it would be asked again and again.
        let most = left(until)?.max(Duration::from_millis(1));
        let most = PollTimeout::try_from(most).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(self.socket.as_fd(), what)], most) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Asking again before sleeping: most answers come sooner than a sleeper wakes.
struct Again(Instant);

/// How long it is asked again.
const AGAIN: Duration = Duration::from_micros(60);

impl Again {
    fn new() -> Again {
        Again(Instant::now())
    }

    fn is_worth_it(&self) -> bool {
        // Where there is one processor only, the other end needs it.
        std::thread::yield_now();
        self.0.elapsed() < AGAIN
    }
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Something that no process for plugins says.
pub(super) fn nonsense(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Words out of a frame, and nothing behind them.
pub(super) fn decoded<T: DeserializeOwned>(frame: &[u8]) -> io::Result<T> {
    let few = Few { bytes: frame, numbers: 0 };
    let mut decoder = postcard::Deserializer::from_flavor(few);
    let words = T::deserialize(&mut decoder)
        .map_err(|e| nonsense(&format!("a frame cannot be understood: {e}")))?;
    match decoder.finalize() {
        Ok(true) => Ok(words),
        _ => Err(nonsense("a frame has something behind its words")),
    }
}

/// Bytes to be decoded, in which numbers are counted: an empty text is one byte on the way and two
/// dozen in memory.
struct Few<'de> {
    bytes: &'de [u8],
    numbers: usize,
}

impl<'de> Flavor<'de> for Few<'de> {
    /// Whether nothing is left.
    type Remainder = bool;
    type Source = &'de [u8];

    fn pop(&mut self) -> postcard::Result<u8> {
        self.numbers += 1;
        match self.bytes.split_first() {
            Some((first, rest)) if self.numbers <= NUMBERS_MAX => {
                self.bytes = rest;
                Ok(*first)
            }
            Some(_) => Err(postcard::Error::SerdeDeCustom),
            None => Err(postcard::Error::DeserializeUnexpectedEnd),
        }
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.bytes.len())
    }

    fn try_take_n(&mut self, count: usize) -> postcard::Result<&'de [u8]> {
        let (taken, rest) =
            self.bytes.split_at_checked(count).ok_or(postcard::Error::DeserializeUnexpectedEnd)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn finalize(self) -> postcard::Result<bool> {
        Ok(self.bytes.is_empty())
    }
}

/// The process's end.
#[derive(Debug)]
pub(super) struct Trusting(UnixStream);

impl Trusting {
    pub(super) fn new(socket: UnixStream) -> Trusting {
        Trusting(socket)
    }

    pub(super) fn send<T: Serialize>(&mut self, words: &T, most: usize) -> io::Result<()> {
        let frame = framed(words, most)?;
        let mut sent = 0;
        while sent < frame.len() {
            match send(self.0.as_raw_fd(), &frame[sent..], MsgFlags::MSG_NOSIGNAL) {
                Ok(more) => sent += more,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next frame, and the descriptor that came with it.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<(T, Option<OwnedFd>)> {
        let mut head = [0; 4];
        let mut descriptor = None;
        let mut have = 0;
        let again = Again::new();
        let mut sleep = false;
        while have < head.len() {
            let mut space = cmsg_space!([i32; 1]);
            let mut parts = [IoSliceMut::new(&mut head[have..])];
            let mut flags = MsgFlags::MSG_CMSG_CLOEXEC;
            flags.set(MsgFlags::MSG_DONTWAIT, !sleep);
            let got = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags);
            let got = match got {
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => {
                    sleep = !again.is_worth_it();
                    continue;
                }
                got => got?,
            };
            for message in got.cmsgs()? {
                if let ControlMessageOwned::ScmRights(raws) = message {
                    for raw in raws {
                        // SAFETY: the kernel has just made this descriptor for us.
                        descriptor = Some(unsafe { OwnedFd::from_raw_fd(raw) });
                    }
                }
            }
            if got.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += got.bytes;
        }
        let length = u32::from_le_bytes(head) as usize;
        let mut frame = vec![0; length];
        (&self.0).read_exact(&mut frame)?;
        Ok((postcard::from_bytes(&frame).map_err(io::Error::other)?, descriptor))
    }
}
