//! Seeing, and stopping, the commands that the engine runs.
//!
//! The engine runs programs by absolute path, so the place to stand is that path: the real `lvm`,
//! `zfs` and `zpool` are moved away and this program is put in their place. Called under such a
//! name it writes the command line to a log, does what it was armed to do, and otherwise becomes
//! the real tool. It is armed by files, since the engine gives its commands no environment.
//!
//! Only commands that change storage are counted; the N-th of them can be made to
//!
//! | trip | do |
//! |---|---|
//! | before | kill the engine (SIGKILL) and not run |
//! | during | start, kill the engine at once, and go on alone |
//! | after | run to its end, then kill the engine before it hears of it |
//! | fail | not run and end with an exit code |
//! | hold | wait until it is let go |

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tools::REAL;

const FOLDER: &str = "/run/tap";
const TAPPED: [&str; 3] = ["lvm", "zfs", "zpool"];

/// What the N-th changing command, counted from 1, is made to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trip {
    Before(u32),
    During(u32),
    After(u32),
    Fail(u32, u8),
    Hold(u32),
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trip::Before(n) => write!(f, "before {n} 0"),
            Trip::During(n) => write!(f, "during {n} 0"),
            Trip::After(n) => write!(f, "after {n} 0"),
            Trip::Fail(n, code) => write!(f, "fail {n} {code}"),
            Trip::Hold(n) => write!(f, "hold {n} 0"),
        }
    }
}

impl Trip {
    fn read(text: &str) -> Option<Trip> {
        let mut words = text.split_whitespace();
        let (word, n, code) = (words.next()?, words.next()?, words.next()?);
        let n = n.parse().ok()?;
        Some(match word {
            "before" => Trip::Before(n),
            "during" => Trip::During(n),
            "after" => Trip::After(n),
            "fail" => Trip::Fail(n, code.parse().ok()?),
            "hold" => Trip::Hold(n),
            _ => return None,
        })
    }

    fn at(self) -> u32 {
        match self {
            Trip::Before(n) | Trip::During(n) | Trip::After(n) => n,
            Trip::Fail(n, _) | Trip::Hold(n) => n,
        }
    }
}

/// A command that went through the tap.
#[derive(Clone, Debug)]
pub struct Ran {
    /// The words; the program's name without its folder.
    pub words: Vec<String>,
    /// Whether it changes storage.
    pub changes: bool,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words.join(" "))
    }
}

/// Puts the tap in the tools' place. Once a boot.
pub fn install() {
    fs::create_dir_all(REAL).expect("a folder for the real tools");
    fs::create_dir_all(FOLDER).expect("a folder for the tap");
    // The engine may be run as somebody else, and its commands still are to be seen.
    open_to_all(FOLDER, 0o777);
    let this = std::env::current_exe().expect("the path of this program");
    for tool in TAPPED {
        let path = place(tool);
        // A copy, not a rename: `lvs` and the others are links to this path.
        fs::copy(&path, format!("{REAL}/{tool}")).expect("a copy of the real tool");
        let beside = path.with_extension("tap");
        fs::copy(&this, &beside).expect("a copy of this program");
        fs::rename(&beside, &path).expect("to be in the tool's place");
    }
    clear();
}

fn place(tool: &str) -> PathBuf {
    Path::new("/usr/sbin").join(tool)
}

fn open_to_all(path: impl AsRef<Path>, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
}

fn file(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Forgets the log and disarms.
pub fn clear() {
    for name in ["trip", "tripped"] {
        let _ = fs::remove_file(file(name));
    }
    for name in ["log", "count"] {
        fs::write(file(name), "").expect("a file of the tap");
        open_to_all(file(name), 0o666);
    }
}

/// Arms it; what ran before no longer counts.
pub fn arm(trip: Trip) {
    clear();
    fs::write(file("trip"), trip.to_string()).expect("the trip's file");
}

/// Whether the armed command came, since [`arm`].
pub fn tripped() -> bool {
    file("tripped").exists()
}

/// What went through since [`clear`] or [`arm`].
pub fn log() -> Vec<Ran> {
    let text = fs::read_to_string(file("log")).unwrap_or_default();
    let ran = text.lines().filter_map(|line| {
        let (kind, words) = line.split_once('\t')?;
        let words = words.split('\u{1f}').map(str::to_owned).collect();
        Some(Ran { words, changes: kind == "changes" })
    });
    ran.collect()
}

/// Runs something with an empty log; gives what went through meanwhile.
pub fn watch<T>(work: impl FnOnce() -> T) -> (T, Vec<Ran>) {
    clear();
    let value = work();
    (value, log())
}

/// The commands that change storage among these, a line each.
pub fn changing(ran: &[Ran]) -> Vec<String> {
    ran.iter().filter(|r| r.changes).map(ToString::to_string).collect()
}

/// An armed [`Trip::Hold`].
pub struct Held;

impl Held {
    /// Arms it: the N-th changing command will wait.
    pub fn arm(n: u32) -> Held {
        for name in ["came", "go"] {
            let _ = fs::remove_file(file(name));
            crate::tools::run(&format!("mkfifo -m 666 {}", file(name).display()));
        }
        arm(Trip::Hold(n));
        Held
    }

    /// Waits until the command came. Blocks for good if it never does; the runner outside ends that.
    pub fn wait(&self) {
        let mut word = String::new();
        let came = File::open(file("came")).and_then(|mut f| f.read_to_string(&mut word));
        came.expect("word of the held command");
    }

    /// Lets it go on.
    pub fn let_go(self) {
        let gone = OpenOptions::new().write(true).open(file("go")).and_then(|mut f| f.write(b"go"));
        gone.expect("the held command to be there");
    }
}

/// Puts a tool out of the way, as if its package were not installed.
pub struct Missing(PathBuf);

impl Missing {
    pub fn tool(name: &str) -> Missing {
        let path = place(name);
        fs::rename(&path, path.with_extension("away")).expect("to move the tool away");
        Missing(path)
    }
}

impl Drop for Missing {
    fn drop(&mut self) {
        fs::rename(self.0.with_extension("away"), &self.0).expect("to put the tool back");
    }
}

/// Whether a command line changes storage. What is not known to only look, changes.
fn changes(words: &[String]) -> bool {
    let word = |at: usize| words.get(at).map(String::as_str).unwrap_or_default();
    let (command, rest) = if word(0) == "lvm" { (word(1), 2) } else { (word(0), 1) };
    match command {
        "zfs" => {
            let looks =
                matches!(word(1), "list" | "get" | "holds" | "diff" | "version" | "--version" | "");
            let dry = matches!(word(1), "destroy" | "send")
                && words[2..].iter().any(|w| w.starts_with('-') && w.contains('n'));
            !(looks || dry)
        }
        "zpool" => !matches!(word(1), "list" | "get" | "status" | "version" | "--version" | ""),
        "lvs" | "vgs" | "pvs" | "lvdisplay" | "vgdisplay" | "pvdisplay" | "version" | "help"
        | "lvmconfig" | "config" | "formats" | "segtypes" | "fullreport" | "--version" | "" => {
            false
        }
        _ => !words.get(rest..).unwrap_or_default().iter().any(|w| w == "-t" || w == "--test"),
    }
}

/// When called under the name of a tool: does what the head says. None when it is the suite.
pub fn run_if_tool() -> Option<u8> {
    let mut words: Vec<String> =
        std::env::args_os().map(|w| w.to_string_lossy().into_owned()).collect();
    let called = words.first()?.clone();
    let name = Path::new(&called).file_name()?.to_string_lossy().into_owned();
    let tool = match name.as_str() {
        "zfs" | "zpool" | "lvm" => name.clone(),
        _ if ["lv", "vg", "pv"].iter().any(|p| name.starts_with(p)) => "lvm".to_owned(),
        _ => return None,
    };
    words[0] = name.clone();
    let changes = changes(&words);
    note(changes, &words);
    let mut command = Command::new(format!("{REAL}/{tool}"));
    command.arg0(&name).args(std::env::args_os().skip(1));
    // As the engine starts its commands: they outlive it, and what they print then goes nowhere. The standard
    // library has a signal end them instead.
    // SAFETY: between fork and exec only a signal's handling is set.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGPIPE, libc::SIG_IGN);
            Ok(())
        });
    }
    if changes {
        let count = count();
        let trip = fs::read_to_string(file("trip")).ok().and_then(|t| Trip::read(&t));
        if let Some(trip) = trip.filter(|t| t.at() == count) {
            let _ = fs::write(file("tripped"), trip.to_string());
            if let Some(code) = act(trip, &mut command) {
                return Some(code);
            }
        }
    }
    let error = command.exec();
    eprintln!("the tap could not become {tool}: {error}");
    Some(126)
}

fn note(changes: bool, words: &[String]) {
    let kind = if changes { "changes" } else { "looks" };
    let line = format!("{kind}\t{}\n", words.join("\u{1f}"));
    // One write to a file opened for appending: lines of two commands do not mix.
    if let Ok(mut log) = OpenOptions::new().append(true).open(file("log")) {
        let _ = log.write_all(line.as_bytes());
    }
}

/// The number of this changing command since the tap was armed.
fn count() -> u32 {
    let opened = OpenOptions::new().read(true).append(true).open(file("count"));
    let Ok(mut counter) = opened else { return 0 };
    if counter.lock().is_err() {
        return 0;
    }
    let mut marks = String::new();
    let _ = counter.read_to_string(&mut marks);
    let _ = counter.write_all(b".");
    marks.len() as u32 + 1
}

/// Does it; an exit code when the tool itself is not to be run any more.
fn act(trip: Trip, command: &mut Command) -> Option<u8> {
    match trip {
        Trip::Before(_) => {
            kill_parent();
            Some(137)
        }
        Trip::During(_) => {
            let child = command.spawn();
            kill_parent();
            let _ = child.and_then(|mut c| c.wait());
            Some(137)
        }
        Trip::After(_) => {
            let _ = command.status();
            kill_parent();
            Some(137)
        }
        Trip::Fail(_, code) => {
            eprintln!("  the tap made this command fail");
            Some(code)
        }
        Trip::Hold(_) => {
            // Opening a FIFO waits for the other side.
            let _ = OpenOptions::new().write(true).open(file("came")).map(|mut f| f.write(b"came"));
            let mut word = String::new();
            let _ = File::open(file("go")).map(|mut f| f.read_to_string(&mut word));
            None
        }
    }
}

fn kill_parent() {
    let parent = std::os::unix::process::parent_id();
    // Process 1 means that the engine, which waits for this command, is gone already.
    if parent > 1 {
        // SAFETY: sends a signal; no memory of ours is touched.
        unsafe { libc::kill(parent as libc::pid_t, libc::SIGKILL) };
    }
}
