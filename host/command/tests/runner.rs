//! Goal: whatever a program does, it does it with nothing of ours, and it ends.
//! Method: shell scripts stand in for the storage's tools.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use snapslot_command::{Command, Executor, RunError, Runner};

struct Tools {
    directory: tempfile::TempDir,
}

impl Tools {
    fn with(program: &str, script: &str) -> Tools {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(program);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        Tools { directory }
    }

    fn run(&self, command: &Command) -> Result<snapslot_command::Answer, RunError> {
        Runner::in_directories(vec![self.directory.path().to_owned()]).run(command)
    }
}

fn command(arguments: &[&str]) -> Command {
    Command {
        program: "lvs".to_owned(),
        arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
        input: None,
        deadline: Duration::from_secs(20),
    }
}

#[test]
fn exit_code_output_and_errors_come_back() {
    let tools = Tools::with("lvs", "echo \"$1|$2\"; echo oops >&2; exit 5");
    let answer = tools.run(&command(&["a b", "$(id)"])).expect("an answer");
    assert_eq!(answer.exit_code, 5);
    assert_eq!(answer.output, b"a b|$(id)\n");
    assert_eq!(answer.complaint(), "oops");
}

#[test]
fn it_inherits_nothing() {
    // SAFETY: a plain open; the descriptor has no close-on-exec flag, which is the point.
    let leaked = unsafe { nix::libc::open(c"/dev/null".as_ptr(), nix::libc::O_RDONLY) };
    assert!(leaked > 2);
    let tools = Tools::with("lvs", "/usr/bin/env; ls /proc/self/fd | tr '\\n' ' '; pwd");
    let answer = tools.run(&command(&[])).expect("an answer");
    let text = String::from_utf8(answer.output).expect("text");
    assert!(text.contains("LC_ALL=C"), "{text}");
    for name in ["HOME=", "LVM_SYSTEM_DIR=", "CARGO", "USER="] {
        assert!(!text.contains(name), "{name} came through: {text}");
    }
    // ls itself opens one more, to read the directory.
    assert!(text.contains("0 1 2 3 /"), "descriptors came through: {text}");
}

#[test]
fn input_is_given_and_need_not_be_read() {
    let long = "x".repeat(1 << 20);
    let with = |input: &str| Command { input: Some(input.to_owned()), ..command(&[]) };
    let answer = Tools::with("lvs", "wc -c").run(&with(&long)).expect("an answer");
    assert_eq!(String::from_utf8_lossy(&answer.output).trim(), "1048576");
    let answer = Tools::with("lvs", "exit 3").run(&with(&long)).expect("an answer");
    assert_eq!(answer.exit_code, 3);
}

#[test]
fn a_program_that_hangs_is_ended_with_its_children() {
    let tools = Tools::with("lvs", "sleep 600 & echo $!; wait");
    let mut slow = command(&[]);
    slow.deadline = Duration::from_millis(300);
    let begun = Instant::now();
    assert!(matches!(tools.run(&slow), Err(RunError::Deadline { .. })));
    assert!(begun.elapsed() < Duration::from_secs(10));
    // One that closes its output and goes on is not waited for either.
    let tools = Tools::with("lvs", "exec >&- 2>&-; sleep 600");
    assert!(matches!(tools.run(&slow), Err(RunError::Deadline { .. })));
}

#[test]
fn a_program_that_dies_or_floods_is_told() {
    let dies = Tools::with("lvs", "kill -9 $$").run(&command(&[]));
    assert!(matches!(dies, Err(RunError::Killed { signal: 9, .. })), "{dies:?}");
    let floods = Tools::with("lvs", "yes").run(&command(&[]));
    assert!(matches!(floods, Err(RunError::TooMuch { .. })), "{floods:?}");
    let floods = Tools::with("lvs", "yes >&2").run(&command(&[]));
    assert!(matches!(floods, Err(RunError::TooMuch { .. })), "{floods:?}");
}

#[test]
fn programs_that_are_missing_or_writable_by_others_are_not_run() {
    let tools = Tools::with("zfs", "exit 0");
    let missing = tools.run(&command(&[])).expect_err("no lvs there");
    assert!(missing.to_string().contains("not installed"), "{missing}");
    let tools = Tools::with("lvs", "exit 0");
    let path = tools.directory.path().join("lvs");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("writable");
    let refused = tools.run(&command(&[])).expect_err("others could have written it");
    assert!(refused.to_string().contains("others"), "{refused}");
}
