//! How other processes of this host ask the one that serves a disk.
//!
//! One request and one answer for each connection, each a line of JSON, over a unix socket in the engine's
//! state directory, which only its owner can enter.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

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

/// Connects by way of the directory: a socket's own path may be at most 108 bytes (unix(7)).
fn connect(socket: &Path) -> io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    if socket.as_os_str().len() < 100 {
        return UnixStream::connect(socket);
    }
    let directory = std::fs::File::open(socket.parent().unwrap_or(Path::new(".")))?;
    let name = socket.file_name().unwrap_or_default();
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    UnixStream::connect(short)
}

/// Asks; none: nobody serves there.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Option<Answer>> {
    let mut stream = match connect(socket) {
        Ok(stream) => stream,
        Err(e)
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    stream.set_write_timeout(Some(PROMPT))?;
    stream.set_read_timeout(Some(ANSWER))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut line = String::new();
    BufReader::new(stream.take(LINE_MAX)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_str(&line)?))
}

/// Hears one request and answers it; unless it is to `stop` before one is there.
pub fn hear(
    mut stream: UnixStream,
    stop: &dyn Fn() -> bool,
    answer: impl FnOnce(Request) -> Answer,
) -> io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    stream.set_write_timeout(Some(PROMPT))?;
    let line = hear_line(&stream, stop)?;
    let answer = match serde_json::from_slice(&line) {
        Ok(request) => answer(request),
        Err(e) => Answer::Refused { code: "usage".to_owned(), message: e.to_string() },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line)
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
