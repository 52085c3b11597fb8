//! Running a program to its end, or to its deadline.

use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// What a program said and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// The command line, to paste.
    pub command: String,
    /// Its exit status; none when it was ended by a signal.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it had to be killed at its deadline.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error, made printable.
    pub stderr: String,
    /// From start to end.
    pub elapsed: Duration,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Everything there is to say about it, for a failure.
    pub fn account(&self) -> String {
        let end = match (self.timed_out, self.code, self.signal) {
            (true, ..) => format!("killed after {:?}", self.elapsed),
            (_, Some(code), _) => format!("exit {code}"),
            (_, None, signal) => format!("ended by signal {signal:?}"),
        };
        format!(
            "`{}`: {end}\n--- stdout\n{}\n--- stderr\n{}",
            self.command,
            self.text().trim_end(),
            self.stderr.trim_end()
        )
    }

    /// Fails unless it exited with 0.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn expect_success(self) -> Self {
        assert!(self.code == Some(0), "{}", self.account());
        self
    }
}

/// A server that does not listen by then never does.
const LISTENS: Duration = Duration::from_secs(120);

/// A program that is running.
#[derive(Debug)]
pub struct Process {
    child: Child,
    command: String,
    started: Instant,
    output: Receiver<Vec<u8>>,
    errors: Receiver<Vec<u8>>,
}

impl Process {
    /// Starts it with nothing to read on standard input.
    ///
    /// # Panics
    /// When it cannot be started; for QEMU's tools the message says what to install.
    #[track_caller]
    pub fn start(command: Command) -> Self {
        Process::start_with(command, Stdio::null())
    }

    /// Waits until it listens on this socket.
    ///
    /// # Panics
    /// When it ends instead, or does not listen however long it takes.
    #[track_caller]
    #[must_use]
    pub fn listening(mut self, socket: &Path) -> Self {
        while UnixStream::connect(socket).is_err() {
            let gone = self.has_ended() || self.age() > LISTENS;
            assert!(!gone, "it does not listen: {}", self.finish(Duration::ZERO).account());
            std::thread::sleep(Duration::from_millis(20));
        }
        self
    }

    #[track_caller]
    pub(crate) fn start_with(mut command: Command, input: Stdio) -> Self {
        let words: Vec<OsString> = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(OsString::from)
            .collect();
        let shown = words.iter().map(|w| quote(&w.to_string_lossy())).collect::<Vec<_>>().join(" ");
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("{}", cannot_start(&shown, &error)),
        };
        let output = drain(child.stdout.take());
        let errors = drain(child.stderr.take());
        Process { child, command: shown, started, output, errors }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How long it has been running.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL. Fine if it has ended.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    /// Waits for its end, and kills it if that does not come within `deadline` of now.
    pub fn finish(mut self, deadline: Duration) -> Finished {
        let until = Instant::now() + deadline;
        let left = || until.saturating_duration_since(Instant::now());
        // A pipe ends when its last writer does: that is the signal waited for.
        let first = self.output.recv_timeout(left());
        let second = self.errors.recv_timeout(left());
        let timed_out = first.is_err() || second.is_err();
        if timed_out {
            self.kill();
        }
        let stdout = first.or_else(|_| self.output.recv()).unwrap_or_default();
        let stderr = second.or_else(|_| self.errors.recv()).unwrap_or_default();
        let status: ExitStatus = self.child.wait().expect("the status of a child of this process");
        Finished {
            command: self.command,
            code: status.code(),
            signal: status.signal(),
            timed_out,
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            elapsed: self.started.elapsed(),
        }
    }
}

/// Runs a program to its end.
///
/// # Panics
/// When it cannot be started.
#[track_caller]
pub fn run(command: Command, deadline: Duration) -> Finished {
    Process::start(command).finish(deadline)
}

pub(crate) fn cannot_start(shown: &str, error: &std::io::Error) -> String {
    let qemu = shown.starts_with("qemu-");
    match error.kind() {
        ErrorKind::NotFound if qemu => format!(
            "`{shown}` cannot be started: QEMU's tools are missing; \
             these tests need the Debian package qemu-utils (apt-get install qemu-utils)"
        ),
        _ => format!("`{shown}` cannot be started: {error}"),
    }
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn tells_how_a_program_ended() {
        let done = run(shell("echo out; echo err >&2; exit 3"), Duration::from_secs(10));
        assert_eq!((done.code, done.signal, done.timed_out), (Some(3), None, false));
        assert_eq!((done.text().as_str(), done.stderr.as_str()), ("out\n", "err\n"));
        let killed = run(shell("kill -9 $$"), Duration::from_secs(10));
        assert_eq!((killed.code, killed.signal, killed.timed_out), (None, Some(9), false));
    }

    #[test]
    fn kills_at_the_deadline() {
        let stuck = run(shell("exec cat /dev/zero > /dev/null"), Duration::from_millis(50));
        assert!(stuck.timed_out && stuck.signal == Some(9), "{}", stuck.account());
    }

    #[test]
    fn a_missing_tool_says_what_to_install() {
        let missing = std::io::Error::from(ErrorKind::NotFound);
        assert!(cannot_start("qemu-img check x", &missing).contains("package qemu-utils"));
    }
}
