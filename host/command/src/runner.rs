//! Runs commands for real.
//!
//! A program is looked for in the host's own directories under its bare name, and believed only
//! if nobody but root could have put it there. It gets an empty environment but for `LC_ALL=C`,
//! no descriptors but its input and output, a process group of its own that is ended with it, a
//! deadline and a cap on what it may say. No shell is ever involved.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::command::{Answer, Command, Executor, RunError};

/// The programs that plugins can have run at all. Each one is a storage's own tool that takes no
/// code from its arguments.
pub const PROGRAMS: [&str; 9] =
    ["btrfs", "lvchange", "lvconvert", "lvcreate", "lvremove", "lvrename", "lvs", "vgs", "zfs"];

const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// A report of ten thousand volumes has some five megabytes.
const OUTPUT_MAX: usize = 8 << 20;
const ERRORS_MAX: usize = 64 << 10;

/// Runs programs of this machine.
#[derive(Clone, Debug)]
pub struct Runner {
    directories: Vec<PathBuf>,
}

impl Default for Runner {
    fn default() -> Self {
        Runner { directories: DIRECTORIES.iter().map(PathBuf::from).collect() }
    }
}

impl Runner {
    /// Looks for programs elsewhere: for tests that put programs of their own there.
    pub fn in_directories(directories: Vec<PathBuf>) -> Self {
        Runner { directories }
    }

    /// The program's path.
    fn find(&self, program: &str) -> Result<PathBuf, RunError> {
        let missing = |why: String| RunError::Missing { program: program.to_owned(), why };
        if program.contains('/') || program.is_empty() {
            return Err(missing("is not a bare name".to_owned()));
        }
        for directory in &self.directories {
            let path = directory.join(program);
            // Links are followed: lvm's commands are links to one program.
            let Ok(meta) = fs::metadata(&path) else { continue };
            if !meta.is_file() || meta.mode() & 0o111 == 0 {
                continue;
            }
            let ours = nix::unistd::Uid::effective().as_raw();
            if meta.mode() & 0o022 != 0 || (meta.uid() != 0 && meta.uid() != ours) {
                let why = format!("is at {}, but others could have written it", path.display());
                return Err(missing(why));
            }
            return Ok(path);
        }
        let looked: Vec<String> =
            self.directories.iter().map(|d| d.display().to_string()).collect();
        Err(missing(format!("is not installed (looked in {})", looked.join(", "))))
    }
}

impl Executor for Runner {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let path = self.find(&command.program)?;
        let begun = Instant::now();
        tracing::debug!(%command, "running");
        let start = |source| RunError::Start { program: command.program.clone(), source };
        let mut child = spawn(&path, command).map_err(start)?;
        let result = converse(&mut child, command, begun);
        if result.is_err() {
            end(&mut child);
        }
        let answer = result?;
        tracing::debug!(%command, exit = answer.exit_code, took = ?begun.elapsed(), "ran");
        Ok(answer)
    }
}

fn spawn(path: &Path, command: &Command) -> std::io::Result<Child> {
    let mut process = Process::new(path);
    process
        .args(&command.arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(if command.input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    // SAFETY: between fork and exec only async-signal-safe system calls are made.
    unsafe {
        process.pre_exec(|| {
            // Whoever started us may have left descriptors open across exec.
            if libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
                != 0
            {
                return Err(std::io::Error::last_os_error());
            }
            // Signals that the engine holds back are not held back in the tool.
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::umask(0o022);
            Ok(())
        });
    }
    process.spawn()
}

/// Feeds it, listens to it, and waits for its end.
fn converse(child: &mut Child, command: &Command, begun: Instant) -> Result<Answer, RunError> {
    let start = |source| RunError::Start { program: command.program.clone(), source };
    let mut input = child.stdin.take().zip(command.input.as_deref());
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    for fd in [out.as_ref().map(|o| o.as_raw_fd()), err.as_ref().map(|e| e.as_raw_fd())] {
        not_blocking(fd.into_iter()).map_err(start)?;
    }
    not_blocking(input.iter().map(|(pipe, _)| pipe.as_raw_fd())).map_err(start)?;
    while out.is_some() || err.is_some() {
        let left = time_left(command, begun)?;
        {
            let mut waiting = Vec::new();
            waiting.extend(out.iter().map(|o| PollFd::new(o.as_fd(), PollFlags::POLLIN)));
            waiting.extend(err.iter().map(|e| PollFd::new(e.as_fd(), PollFlags::POLLIN)));
            waiting.extend(input.iter().map(|(i, _)| PollFd::new(i.as_fd(), PollFlags::POLLOUT)));
            match poll(&mut waiting, left) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(start(e.into())),
            }
        }
        if let Some((pipe, rest)) = &mut input {
            match pipe.write(rest.as_bytes()) {
                Ok(n) if n < rest.len() => *rest = &rest[n..],
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                // All said, or it does not want to hear more: its exit code says what it is worth.
                _ => input = None,
            }
        }
        take_in(&mut out, &mut output, OUTPUT_MAX, command)?;
        take_in(&mut err, &mut errors, ERRORS_MAX, command)?;
    }
    loop {
        if let Some(status) = child.try_wait().map_err(start)? {
            let Some(exit_code) = status.code() else {
                let signal = status.signal().unwrap_or(0);
                return Err(RunError::Killed { command: command.to_string(), signal });
            };
            return Ok(Answer { exit_code, output, errors });
        }
        time_left(command, begun)?;
        // It has closed its output and is about to end.
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn time_left(command: &Command, begun: Instant) -> Result<PollTimeout, RunError> {
    let left = command.deadline.saturating_sub(begun.elapsed());
    if left.is_zero() {
        let seconds = command.deadline.as_secs();
        return Err(RunError::Deadline { command: command.to_string(), seconds });
    }
    Ok(PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX))
}

fn not_blocking(fds: impl Iterator<Item = libc::c_int>) -> std::io::Result<()> {
    for fd in fds {
        // SAFETY: the descriptor is open; the call changes only its flags.
        let done = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
        if done < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Reads what is there; at the end of the stream it is closed.
fn take_in<R: Read>(
    from: &mut Option<R>,
    into: &mut Vec<u8>,
    most: usize,
    command: &Command,
) -> Result<(), RunError> {
    let Some(pipe) = from else { return Ok(()) };
    let mut buffer = [0; 16 << 10];
    loop {
        match pipe.read(&mut buffer) {
            Ok(0) => {
                *from = None;
                return Ok(());
            }
            Ok(n) => into.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(RunError::Start { program: command.program.clone(), source });
            }
        }
        if into.len() > most {
            return Err(RunError::TooMuch { command: command.to_string(), limit: most });
        }
    }
}

/// Ends the program and all it started.
fn end(child: &mut Child) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // Its group has its number. Best effort: it may have ended by itself.
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.wait();
}
