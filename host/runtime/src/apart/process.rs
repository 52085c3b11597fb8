//! Starting and ending a process for plugins.
//!
//! One is started by running the program anew. The first may be split off this process instead, while that has done
//! nothing yet and has one thread: that saves loading the program a second time, a millisecond and more. What it knows of
//! this process then are the arguments it was called with: its copy of the environment is wiped, and descriptors, files
//! and rights it gives up like any other.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, chdir, fork, setpgid};

/// A child of this process.
#[derive(Debug)]
pub(super) struct Process(Pid);

/// One that was started before there was anything else, and for which program.
static EARLY: Mutex<Option<(PathBuf, Process, UnixStream)>> = Mutex::new(None);

fn early() -> std::sync::MutexGuard<'static, Option<(PathBuf, Process, UnixStream)>> {
    EARLY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the first process before it is known what it will do: it readies itself while the caller reads its
/// arguments. If nobody comes to need it, it ends with the caller, by its socket. That it cannot be started
/// is told when it is needed. `program` is the caller's own.
pub fn start_early(program: &Path) {
    if let Ok((process, ours)) = split_off() {
        *early() = Some((program.to_owned(), process, ours));
    }
}

/// One that serves the other end of the socket.
pub(super) fn start(program: &Path) -> io::Result<(Process, UnixStream)> {
    if let Some((_, process, ours)) = early().take_if(|(of, ..)| of == program) {
        return Ok((process, ours));
    }
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new(program)
        .arg0("snapslot")
        .arg(super::ARGUMENT)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .current_dir("/")
        // Ctrl-C is for the engine, which ends in order.
        .process_group(0)
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok((Process(Pid::from_raw(pid)), ours))
}

fn split_off() -> io::Result<(Process, UnixStream)> {
    // Of several threads the others would be missing there, and with them what they had locked.
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has several threads"));
    }
    let (ours, theirs) = UnixStream::pair()?;
    // SAFETY: this process has one thread, so its copy may do all that it may do.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            to_another_processor(child);
            Ok((Process(child), ours))
        }
        ForkResult::Child => {
            let _ = setpgid(Pid::from_raw(0), Pid::from_raw(0));
            let _ = chdir("/");
            // SAFETY: the socket takes the place of standard input, which nothing here reads.
            if unsafe { libc::dup2(theirs.as_raw_fd(), libc::STDIN_FILENO) } < 0 {
                std::process::exit(1);
            }
            wipe_environment();
            // It closes all descriptors but that one itself.
            std::mem::forget((ours, theirs));
            super::serve()
        }
    }
}

/// Moves a new process to another processor than this one's, if there is one. Where it was left, as often as not
/// behind this one, it would begin only once this one sleeps, two milliseconds later.
fn to_another_processor(child: Pid) {
    let Ok(all) = sched_getaffinity(Pid::from_raw(0)) else { return };
    // SAFETY: it takes nothing and tells a number.
    let Ok(here) = usize::try_from(unsafe { libc::sched_getcpu() }) else { return };
    let mut others = all;
    if others.unset(here).is_ok() && others != CpuSet::new() {
        // It stays there once it may be anywhere again.
        let _ = sched_setaffinity(child, &others).and_then(|()| sched_setaffinity(child, &all));
    }
}

/// Overwrites what the environment says, which may be secret, and empties it.
fn wipe_environment() {
    unsafe extern "C" {
        static mut environ: *mut *mut libc::c_char;
    }
    // SAFETY: this process has one thread, and nothing in it has kept a piece of the environment. The list
    // ends in a null, and each of its texts in a zero; their memory is this process's to write.
    unsafe {
        let mut entry = environ;
        while !entry.is_null() && !(*entry).is_null() {
            std::ptr::write_bytes(*entry, 0, libc::strlen(*entry));
            *entry = std::ptr::null_mut();
            entry = entry.add(1);
        }
    }
}

impl Process {
    /// Ends it. It holds nothing: there is nothing to end in order.
    pub(super) fn kill(&self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }

    /// Waits until it is gone, and takes note of how it ended.
    pub(super) fn wait(self) -> Option<ExitStatus> {
        let mut status = 0;
        loop {
            // SAFETY: the kernel writes one number, which lives until the call returns.
            match unsafe { libc::waitpid(self.0.as_raw(), &raw mut status, 0) } {
                -1 if Errno::last() == Errno::EINTR => {}
                -1 => return None,
                _ => return Some(ExitStatus::from_raw(status)),
            }
        }
    }
}
