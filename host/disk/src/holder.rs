//! Who has a file open, told from /proc.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use crate::FileId;

/// A process that holds locks on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Program name, as the kernel has it.
    pub program: String,
    /// The machine's name, where the command line tells (`-name`), cleaned for print.
    pub machine: Option<String>,
}

impl Holder {
    /// `" by qemu-system-x86 (pid 12, machine vm1)"`, or nothing known.
    pub fn in_words(holders: &[Holder]) -> String {
        let mut text = String::new();
        for (i, h) in holders.iter().enumerate() {
            text.push_str(if i == 0 { " by " } else { " and " });
            let _ = write!(text, "{} (pid {}", h.program, h.pid);
            if let Some(machine) = &h.machine {
                let _ = write!(text, ", machine {machine}");
            }
            text.push(')');
        }
        if holders.is_empty() {
            text.push_str(" by a process of another user");
        }
        text
    }
}

/// How long a passing look at a device is waited for. After every write and close udev opens it to see what it is now.
pub const PASSING: Duration = Duration::from_secs(10);

/// Whether a program of this name is udev, or what udev's rules have look at a device: ZFS's `60-zvol.rules` runs
/// `zvol_id`. Others may bear such a name; who waits for one waits for a moment only.
pub fn looks_in_passing(program: &str) -> bool {
    program.contains("udev") || program.starts_with("zvol_id")
}

/// Processes other than this one that hold locks on the file. Sees only processes that /proc
/// lets us look into: all for root, else those of the same user. At most 16.
pub fn holders(id: FileId) -> Vec<Holder> {
    processes(&|fd| locks(fd, id))
}

/// Processes other than this one with a descriptor of which this is true; its path is
/// `/proc/PID/fd/N`. A child of this one that has not begun its program yet, and has all of its
/// descriptors still, counts as this one. By process id, at most 16.
pub fn processes(wanted: &dyn Fn(&Path) -> bool) -> Vec<Holder> {
    processes_that(&|pid| {
        let fds = fs::read_dir(format!("/proc/{pid}/fd"));
        fds.is_ok_and(|fds| fds.flatten().any(|fd| wanted(&fd.path())))
    })
}

/// Processes other than this one of which this is true; the rest as in [`processes`].
pub(crate) fn processes_that(wanted: &dyn Fn(u32) -> bool) -> Vec<Holder> {
    let own = std::process::id();
    let mut found = Vec::new();
    for pid in numbers() {
        if pid == own || found.len() >= 16 {
            continue;
        }
        if wanted(pid) && !unborn(pid, own) {
            found.push(describe(pid));
        }
    }
    found.sort_by_key(|h| h.pid);
    found
}

/// The numbers of all processes.
pub(crate) fn numbers() -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Whether it is a child of this process (proc(5), `PPid` in its status) that runs this program.
fn unborn(pid: u32, own: u32) -> bool {
    let program = |who: &str| fs::read_link(format!("/proc/{who}/exe")).ok();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.is_some_and(|text| text.trim().parse() == Ok(own))
        && program(&pid.to_string()).is_some_and(|theirs| Some(theirs) == program("self"))
}

/// Whether the descriptor is of this file and has a lock.
fn locks(fd: &Path, id: FileId) -> bool {
    let info = || {
        let number = fd.file_name()?;
        fs::read_to_string(fd.parent()?.with_file_name("fdinfo").join(number)).ok()
    };
    fs::metadata(fd).is_ok_and(|m| FileId { device: m.dev(), inode: m.ino() } == id)
        && info().is_some_and(|text| text.lines().any(|line| line.starts_with("lock:")))
}

fn describe(pid: u32) -> Holder {
    let clean = |s: &str| s.chars().filter(|c| !c.is_control()).take(64).collect::<String>();
    let program = fs::read_to_string(format!("/proc/{pid}/comm"))
        .map_or_else(|_| "?".to_owned(), |s| clean(s.trim()));
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = command.split(|b| *b == 0);
    let machine = words
        .by_ref()
        .find(|w| *w == b"-name")
        .and_then(|_| words.next())
        .map(|w| String::from_utf8_lossy(w))
        .and_then(|w| {
            w.split(',').next().map(|first| clean(first.strip_prefix("guest=").unwrap_or(first)))
        });
    Holder { pid, program, machine }
}
