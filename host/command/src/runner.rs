//! Runs commands for real.
//!
//! A program is looked for in the host's own directories under its bare name, and believed only
//! if nobody but root could have put it there. It gets an empty environment but for `LC_ALL=C`,
//! no descriptors but its input and output, a process group of its own that is ended with it, a
//! deadline and a cap on what it may say. No shell is ever involved.
//!
//! A command outlives an engine that is killed: it is not cut off in its middle, and it keeps the
//! engine's lock ([`Executor::run_holding`]), so that nobody looks at what it is still changing. The
//! lock's file is its standard input, because LVM's tools close every other descriptor they find; a
//! command with an input of its own has it as one more. Nothing is in that file, and nothing is read
//! from it after a crash.

use std::fs;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
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
/// A killed process is gone in a moment, but for one that waits for a device in the kernel.
const END_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether a process has ended that has closed its output.
const LOOK: Duration = Duration::from_micros(200);
/// Milliseconds of silence before who listens is asked whether to go on.
const SILENCE: u8 = 100;
/// Reads of one pipe at once.
const ROUNDS: u32 = 16;

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
        self.run_with(command, None, None).map(Option::unwrap_or_default)
    }

    fn run_holding(&self, command: &Command, held: BorrowedFd<'_>) -> Result<Answer, RunError> {
        self.run_with(command, Some(held), None).map(Option::unwrap_or_default)
    }

    fn run_listening(
        &self,
        command: &Command,
        hear: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<Option<Answer>, RunError> {
        self.run_with(command, None, Some(hear))
    }
}

impl Runner {
    fn run_with(
        &self,
        command: &Command,
        held: Option<BorrowedFd<'_>>,
        hear: Option<Listener<'_>>,
    ) -> Result<Option<Answer>, RunError> {
        let path = self.find(&command.program)?;
        let begun = Instant::now();
        tracing::debug!(%command, "running");
        let start = |source| RunError::Start { program: command.program.clone(), source };
        let mut child = spawn(&path, command, held).map_err(start)?;
        let outcome = converse(&mut child, command, hear);
        let took = begun.elapsed();
        match &outcome {
            Ok(Some(answer)) => {
                tracing::debug!(%command, exit = answer.exit_code, ?took, "ran");
                return outcome;
            }
            Ok(None) => tracing::debug!(%command, ?took, "ended by who listened"),
            Err(why) => tracing::debug!(%command, ?took, %why, "failed"),
        }
        match end(&mut child, END_MAX) {
            true => outcome,
            false => Err(RunError::Unkillable {
                command: command.to_string(),
                seconds: command.deadline.as_secs(),
                pid: child.id(),
            }),
        }
    }
}

/// Who hears what a command writes.
type Listener<'a> = &'a mut dyn FnMut(&[u8]) -> ControlFlow<()>;

fn spawn(path: &Path, command: &Command, held: Option<BorrowedFd<'_>>) -> std::io::Result<Child> {
    let mut process = Process::new(path);
    let input = match (&command.input, held) {
        (Some(_), _) => Stdio::piped(),
        (None, Some(held)) => Stdio::from(held.try_clone_to_owned()?),
        (None, None) => Stdio::null(),
    };
    process
        .args(&command.arguments)
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let kept = held.filter(|_| command.input.is_some()).map(|held| held.as_raw_fd());
    let descriptors_max = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    // SAFETY: between fork and exec only async-signal-safe system calls are made.
    unsafe {
        process.pre_exec(move || {
            // Whoever started us may have left descriptors open across exec.
            close_on_exec(descriptors_max)?;
            if let Some(kept) = kept
                && libc::fcntl(kept, libc::F_SETFD, 0) < 0
            {
                return Err(std::io::Error::last_os_error());
            }
            // Signals that the engine holds back are not held back in the tool.
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            // If the engine is killed nobody listens any more: that must not stop the tool.
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            libc::umask(0o022);
            Ok(())
        });
    }
    process.spawn()
}

/// Has every descriptor but the first three close when a program is begun. Async-signal-safe.
fn close_on_exec(descriptors_max: u64) -> std::io::Result<()> {
    // SAFETY: changes flags of descriptors only; no memory is passed.
    let done = unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if done == 0 {
        return Ok(());
    }
    match std::io::Error::last_os_error() {
        // Linux before 5.9 has no such call, and before 5.11 not this flag of it.
        e if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL)) => {
            close_each_on_exec(descriptors_max);
            Ok(())
        }
        e => Err(e),
    }
}

/// The same, one after the other. Those that are not open are no matter.
fn close_each_on_exec(descriptors_max: u64) {
    for descriptor in 3..libc::c_int::try_from(descriptors_max).unwrap_or(libc::c_int::MAX) {
        // SAFETY: changes a flag of a descriptor, or fails.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// Feeds it, listens to it, and waits for its end.
fn converse(
    child: &mut Child,
    command: &Command,
    mut hear: Option<Listener<'_>>,
) -> Result<Option<Answer>, RunError> {
    let mut begun = Instant::now();
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
        // Who listens is asked in silence, too, whether to go on.
        let left = if hear.is_some() { left.min(SILENCE.into()) } else { left };
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
        let most = if hear.is_some() { usize::MAX } else { OUTPUT_MAX };
        take_in(&mut out, &mut output, most, command)?;
        take_in(&mut err, &mut errors, ERRORS_MAX, command)?;
        if let Some(hear) = hear.as_mut() {
            if !output.is_empty() {
                begun = Instant::now();
            }
            if hear(&output).is_break() {
                return Ok(None);
            }
            output.clear();
        }
    }
    loop {
        match ended(child).map_err(start)? {
            // It stays to be waited for: its number is its group's, which is ended yet.
            Some(WaitStatus::Signaled(_, signal, _)) => {
                return Err(RunError::Killed {
                    command: command.to_string(),
                    signal: signal as i32,
                });
            }
            Some(_) => {
                let status = child.wait().map_err(start)?;
                let exit_code = status.code().unwrap_or(-1);
                return Ok(Some(Answer { exit_code, output, errors }));
            }
            None => {}
        }
        time_left(command, begun)?;
        // It has closed its output and is about to end.
        std::thread::sleep(LOOK);
    }
}

/// How it ended, if it did. It is not reaped by that.
fn ended(child: &Child) -> std::io::Result<Option<WaitStatus>> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
    match waitid(Id::Pid(pid_of(child)), flags) {
        Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::EINTR) => Ok(None),
        Ok(status) => Ok(Some(status)),
        Err(e) => Err(e.into()),
    }
}

fn pid_of(child: &Child) -> Pid {
    // The kernel's numbers are positive and fit.
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
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
    let mut buffer = [0; 64 << 10];
    // Not for ever, of one that writes as fast as it is read: others are listened to, too.
    for _ in 0..ROUNDS {
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
    Ok(())
}

/// Ends the program and all it started; false if it does not end within this time. It was not
/// reaped yet, so that its number, which is its group's, is still its own.
fn end(child: &mut Child, most: Duration) -> bool {
    // Best effort: it may have ended by itself.
    let _ = killpg(pid_of(child), Signal::SIGKILL);
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(None) if begun.elapsed() < most => std::thread::sleep(LOOK),
            Ok(None) => return false,
            // That it cannot be waited for means that it is gone.
            Ok(Some(_)) | Err(_) => return true,
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what cannot be tried from outside: a process that outlives its killing, and a kernel
    //! without `close_range`.

    use super::*;

    #[test]
    fn a_process_that_does_not_end_is_not_waited_for_for_ever() {
        // In a group of its own it is not reached by a signal to the group it is looked for in.
        let mut child = Process::new("sleep").arg("600").process_group(0).spawn().expect("sleep");
        let group = pid_of(&child);
        let mut other = Process::new("sleep").arg("600").spawn().expect("sleep");
        assert!(!end(&mut other, Duration::from_millis(20)), "nobody ended it");
        assert!(matches!(other.try_wait(), Ok(None)), "it was reaped");
        other.kill().and_then(|()| other.wait()).expect("an end");
        assert!(end(&mut child, END_MAX));
        assert!(killpg(group, None).is_err(), "its group is there still");
    }

    #[test]
    fn descriptors_are_closed_without_close_range_too() {
        // SAFETY: a plain open; the descriptor has no close-on-exec flag, which is the point.
        let leaked = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDONLY) };
        assert!(leaked > 2);
        close_each_on_exec(1024);
        // SAFETY: asks for a flag of a descriptor that is open.
        assert_eq!(unsafe { libc::fcntl(leaked, libc::F_GETFD) }, libc::FD_CLOEXEC);
    }
}
