//! Running the storage tools by hand, as a person would, beside the engine.

use std::process::Command;
use std::time::{Duration, Instant};

use snapslot_test_support::Finished;

/// LVM waits some seconds for a device in use; nothing comes near this, but on a machine with
/// other work an emulated guest is slow.
const DEADLINE: Duration = Duration::from_secs(180);

/// Where the real tools lie while [`crate::tap`] stands in their place.
pub const REAL: &str = "/run/real-tools";

/// Runs a command line (words parted by single blanks) and gives how it ended.
pub fn try_run(line: &str) -> Finished {
    let words: Vec<&str> = line.split_whitespace().collect();
    try_words(&words)
}

/// The same with words that may hold blanks.
pub fn try_words(words: &[&str]) -> Finished {
    let mut command = command(words);
    command.env("LC_ALL", "C");
    snapslot_test_support::run(command, DEADLINE)
}

/// The command, going to the real tool past the tap.
pub fn command(words: &[&str]) -> Command {
    let name = words.first().copied().unwrap_or_default();
    let is_lvm = ["lv", "vg", "pv"].iter().any(|p| name.starts_with(p)) && !name.contains('/');
    let (program, first) = match name {
        "zfs" => ("zfs", None),
        _ if is_lvm => ("lvm", Some(name)),
        _ => {
            let mut command = Command::new(name);
            command.args(&words[1..]);
            return command;
        }
    };
    let real = format!("{REAL}/{program}");
    let there = std::path::Path::new(&real).exists();
    let mut command = Command::new(if there { real } else { format!("/usr/sbin/{program}") });
    command.args(first).args(&words[1..]);
    command
}

/// Runs a command line that must succeed; gives its output.
#[track_caller]
pub fn run(line: &str) -> String {
    try_run(line).expect_success().text()
}

/// Whether it comes to be so in time.
pub fn within(time: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if is_so() {
            return true;
        }
        if began.elapsed() > time {
            return false;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Runs a command line that must fail; gives everything it said.
#[track_caller]
pub fn run_failing(line: &str) -> String {
    let done = try_run(line);
    assert!(done.code.is_some_and(|c| c != 0), "this should have failed: {}", done.account());
    format!("{}{}", done.text(), done.stderr)
}
