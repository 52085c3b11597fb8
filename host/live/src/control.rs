//! How other processes of this host ask the one that serves a disk.
//!
//! One request and one answer for each connection, each a line of JSON, over a unix socket in the engine's
//! state directory, which only its owner can enter. A moment of the disk is held for as long as the connection that
//! asked for it is there; the disk and its store come with the answer.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::disk::Standing;

/// Bytes of a line.
const LINE_MAX: u64 = 64 << 10;
/// How long an answer may take: a restore of a large disk takes its time.
const ANSWER: Duration = Duration::from_secs(24 * 3600);
/// How long the other end may take for its own line.
const PROMPT: Duration = Duration::from_secs(10);

/// How often it is looked whether to stop hearing.
const TICK: Duration = Duration::from_millis(100);

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "ask")]
pub enum Request {
    /// How it stands.
    Standing,
    /// Bring what waits to the disk.
    Commit,
    /// Take a snapshot.
    Take {
        /// Its mark.
        mark: String,
        /// When, seconds since 1970,
        seconds: u64,
        /// and nanoseconds.
        nanoseconds: u32,
    },
    /// Set the disk back.
    Restore {
        /// The snapshot's mark.
        mark: String,
    },
    /// Drop the snapshot.
    Delete {
        /// Its mark.
        mark: String,
    },
    /// Hold the disk as it is now for whoever asks.
    Hold {
        /// A mark of its own.
        mark: String,
    },
}

/// What is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "answer")]
pub enum Answer {
    /// It is done, or looked at.
    Done {
        /// The process that serves.
        pid: u32,
        /// Clients that use the disk now.
        clients: usize,
        /// How it stands.
        standing: Standing,
    },
    /// It is not.
    Refused {
        /// A stable word.
        code: String,
        /// A sentence.
        message: String,
    },
}

/// Connects by way of the directory: a socket's own path may be at most 108 bytes (unix(7)). None: nobody serves there.
fn connect(socket: &Path) -> io::Result<Option<UnixStream>> {
    let connected = if socket.as_os_str().len() < 100 {
        UnixStream::connect(socket)
    } else {
        File::open(socket.parent().unwrap_or(Path::new("."))).and_then(|directory| {
            let name = socket.file_name().unwrap_or_default();
            let directory = directory.as_raw_fd().to_string();
            UnixStream::connect(Path::new("/proc/self/fd").join(directory).join(name))
        })
    };
    match connected {
        Ok(stream) => Ok(Some(stream)),
        Err(e)
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn send_line<T: Serialize>(mut stream: &UnixStream, what: &T) -> io::Result<()> {
    stream.write_all(&line(what)?)
}

fn line<T: Serialize>(what: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    Ok(line)
}

fn hear_answer(from: impl Read) -> io::Result<Answer> {
    let mut line = String::new();
    BufReader::new(from.take(LINE_MAX)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&line)?)
}

fn asked(socket: &Path, request: &Request) -> io::Result<Option<UnixStream>> {
    let Some(stream) = connect(socket)? else { return Ok(None) };
    stream.set_write_timeout(Some(PROMPT))?;
    stream.set_read_timeout(Some(ANSWER))?;
    send_line(&stream, request)?;
    Ok(Some(stream))
}

/// Asks; none: nobody serves there.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Option<Answer>> {
    asked(socket, request)?.map(|stream| hear_answer(&stream)).transpose()
}

/// A moment of a served disk, held for as long as this is there.
#[derive(Debug)]
pub struct Moment(UnixStream);

/// What the server lends to who reads a moment.
#[derive(Debug)]
pub struct Lent {
    /// Nothing that is read counts unless this is held after it.
    pub moment: Moment,
    /// The disk.
    pub disk: File,
    /// What has been overwritten since.
    pub store: File,
}

impl Moment {
    /// Asks for one; or the refusal. None: nobody serves there.
    pub fn ask(socket: &Path, mark: &str) -> io::Result<Option<Result<Lent, Answer>>> {
        let request = Request::Hold { mark: mark.to_owned() };
        let Some(stream) = asked(socket, &request)? else { return Ok(None) };
        // Disk and store come with the first byte of the answer.
        let (mut first, mut room) = ([0], nix::cmsg_space!([std::os::fd::RawFd; 2]));
        let mut parts = [IoSliceMut::new(&mut first)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let heard = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
        let mut files = Vec::new();
        for message in heard.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raws) = message {
                // SAFETY: the kernel has just made them for this process, and nobody else knows of them.
                let owned = raws.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) });
                files.extend(owned.map(File::from));
            }
        }
        let heard = heard.bytes;
        let answer = hear_answer(first[..heard].chain(&stream))?;
        Ok(Some(match (answer, <[File; 2]>::try_from(files)) {
            (Answer::Done { .. }, Ok([disk, store])) => {
                Ok(Lent { moment: Moment(stream), disk, store })
            }
            (Answer::Done { .. }, Err(_)) => return Err(io::ErrorKind::InvalidData.into()),
            (refused, _) => Err(refused),
        }))
    }

    /// Whether it is held still. When it is not, nothing that was read before counts if this was not asked since.
    pub fn is_held(&self) -> bool {
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        // The server says nothing more; it only goes.
        recv(self.0.as_raw_fd(), &mut [0], flags) == Err(nix::errno::Errno::EAGAIN)
    }
}

/// Hears one request, or why there is none; unless it is to `stop` before one is there.
pub fn hear(stream: &UnixStream, stop: &dyn Fn() -> bool) -> io::Result<Result<Request, Answer>> {
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(PROMPT))?;
    let line = hear_line(stream, stop)?;
    Ok(serde_json::from_slice(&line)
        .map_err(|e| Answer::Refused { code: "usage".to_owned(), message: e.to_string() }))
}

/// Answers.
pub fn say(stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    send_line(stream, answer)
}

/// Answers that a moment is held, of this disk and in this store, and waits until nobody wants it any more, or it is to
/// `stop`.
pub fn lend(
    mut stream: &UnixStream,
    answer: &Answer,
    files: [BorrowedFd<'_>; 2],
    stop: &dyn Fn() -> bool,
) -> io::Result<()> {
    let line = line(answer)?;
    let raw = files.map(|file| file.as_raw_fd());
    let with = [ControlMessage::ScmRights(&raw)];
    let first = [IoSlice::new(&line[..1])];
    sendmsg::<()>(stream.as_raw_fd(), &first, &with, MsgFlags::MSG_NOSIGNAL, None)?;
    stream.write_all(&line[1..])?;
    while !stop() {
        match stream.read(&mut [0]) {
            Ok(0) => break,
            // There is nothing more to say.
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(e)
                if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// A line, or what there is when the other end has nothing more to say.
fn hear_line(stream: &UnixStream, stop: &dyn Fn() -> bool) -> io::Result<Vec<u8>> {
    let (begun, mut line) = (Instant::now(), Vec::new());
    let mut reader = BufReader::new(stream.take(LINE_MAX));
    loop {
        match reader.read_until(b'\n', &mut line) {
            Ok(_) => return Ok(line),
            // What came is in the line already.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if stop() || begun.elapsed() > PROMPT {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
