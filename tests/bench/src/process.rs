//! Runs one command as a whole process and says what it cost.
//!
//! Wall time is from just before the process is made to just after it has been waited for, so it holds
//! everything a person at a shell would wait for except the shell itself. The peak of memory is the
//! kernel's (`ru_maxrss` of `wait4`). Linux carries the peak of the process *that did the exec* into the
//! child's figure, so the bench keeps its own memory small; [`own_peak_kib`] says how small.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::Failure;

/// What one process did and cost.
#[derive(Debug)]
pub(crate) struct Run {
    /// From before the process was made to after it was waited for.
    pub(crate) wall: Duration,
    /// Processor time of the process in user mode and in the kernel together.
    pub(crate) cpu: Duration,
    /// The most memory the process held at once, in KiB.
    pub(crate) peak_kib: u64,
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// What it printed.
    pub(crate) stdout: String,
    /// What it complained of.
    pub(crate) stderr: String,
}

impl Run {
    /// The run if it ended with exit code 0, else a failure that quotes what it said.
    pub(crate) fn succeeded(self, what: &str) -> Result<Self, Failure> {
        if self.status.success() {
            return Ok(self);
        }
        let said = format!("{}{}", self.stderr, self.stdout);
        Err(Failure(format!("{what}: {}: {}", self.status, said.trim())))
    }
}

/// Runs `command` to its end.
pub(crate) fn run(command: &mut Command) -> Result<Run, Failure> {
    run_with_input(command, None)
}

/// Runs `command` to its end with `input`, if any, as its standard input.
///
/// Input and output go through unlinked files, not pipes: the child never waits for the bench.
pub(crate) fn run_with_input(command: &mut Command, input: Option<&[u8]>) -> Result<Run, Failure> {
    let program = command.get_program().to_string_lossy().into_owned();
    let cannot = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound if program.starts_with("qemu") => {
            Failure(format!("{program} is not installed; it is in Debian's package qemu-utils"))
        }
        _ => Failure(format!("cannot run {program}: {error}")),
    };
    let mut stdout = tempfile::tempfile().map_err(cannot)?;
    let mut stderr = tempfile::tempfile().map_err(cannot)?;
    let stdin = match input {
        None => Stdio::null(),
        Some(bytes) => {
            let mut file = tempfile::tempfile().map_err(cannot)?;
            file.write_all(bytes).and_then(|()| file.rewind()).map_err(cannot)?;
            Stdio::from(file)
        }
    };
    command
        .env("LC_ALL", "C")
        .stdin(stdin)
        .stdout(stdout.try_clone().map_err(cannot)?)
        .stderr(stderr.try_clone().map_err(cannot)?);

    let begin = Instant::now();
    let child = command.spawn().map_err(cannot)?;
    let (status, usage) = wait4(child.id()).map_err(cannot)?;
    let wall = begin.elapsed();

    Ok(Run {
        wall,
        cpu: to_duration(usage.ru_utime) + to_duration(usage.ru_stime),
        peak_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
        status,
        stdout: read_all(&mut stdout).map_err(cannot)?,
        stderr: read_all(&mut stderr).map_err(cannot)?,
    })
}

/// The most memory this process has held at once, in KiB: the floor below which a child's figure says nothing.
pub(crate) fn own_peak_kib() -> u64 {
    // SAFETY: rusage is plain integers, for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `usage` is a live, writable rusage for the length of the call.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) } != 0 {
        return 0;
    }
    u64::try_from(usage.ru_maxrss).unwrap_or(0)
}

/// Whether the files under `dir` live in memory, where a flush costs nothing.
pub(crate) fn is_in_memory(dir: &Path) -> bool {
    statfs(dir).is_some_and(|fs| fs.f_type == libc::TMPFS_MAGIC)
}

/// The bytes an ordinary user may still write under `dir`, or `None` where that cannot be told.
pub(crate) fn free_bytes(dir: &Path) -> Option<u64> {
    let fs = statfs(dir)?;
    u64::try_from(fs.f_bsize).ok().map(|block| block.saturating_mul(fs.f_bavail))
}

fn statfs(dir: &Path) -> Option<libc::statfs> {
    let path = std::ffi::CString::new(dir.as_os_str().as_encoded_bytes()).ok()?;
    // SAFETY: statfs is plain integers, for which all zeroes is a value.
    let mut fs: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends in NUL and `fs` is a live, writable statfs for the length of the call.
    (unsafe { libc::statfs(path.as_ptr(), &mut fs) } == 0).then_some(fs)
}

fn wait4(pid: u32) -> std::io::Result<(ExitStatus, libc::rusage)> {
    let pid = libc::pid_t::try_from(pid).map_err(std::io::Error::other)?;
    let mut status = 0;
    // SAFETY: rusage is plain integers, for which all zeroes is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live, writable locals. The pid is our own child's and nobody else
        // waits for it: std's handle of it is dropped without waiting.
        if unsafe { libc::wait4(pid, &mut status, 0, &mut usage) } == pid {
            return Ok((ExitStatus::from_raw(status), usage));
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn to_duration(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let micros = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(micros)
}

fn read_all(file: &mut File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
