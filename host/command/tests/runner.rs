//! Goal: whatever a program does, it does it with nothing of ours, and it ends.
//! Method: shell scripts stand in for the storage's tools.

use std::fs;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{BorrowedFd, FromRawFd, IntoRawFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::process::Stdio;
use std::time::{Duration, Instant};

use snapslot_command::{Command, Executor, RunError, Runner};

struct Tools {
    directory: tempfile::TempDir,
}

impl Tools {
    fn with(program: &str, script: &str) -> Tools {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join(program);
        // By a child: what this process has open for writing, the children of other tests have too for a moment,
        // and then nobody can run it ("Text file busy").
        let mut install = std::process::Command::new("install")
            .args(["-m", "755", "/dev/stdin"])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .expect("install");
        let mut content = install.stdin.take().expect("its input");
        write!(content, "#!/bin/sh\n{script}\n").expect("a script");
        drop(content);
        assert!(install.wait().expect("its end").success());
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
fn one_that_is_listened_to_may_say_more_than_is_kept_and_is_ended_by_who_listens() {
    let listened = |script: &str, deadline, hear: &mut dyn FnMut(&[u8]) -> ControlFlow<()>| {
        let tools = Tools::with("zfs", script);
        let command = Command { program: "zfs".to_owned(), deadline, ..command(&[]) };
        Runner::in_directories(vec![tools.directory.path().to_owned()])
            .run_listening(&command, hear)
    };
    let long = Duration::from_secs(20);

    let (mut heard, mut last) = (0, 0);
    let script = "head -c 30000000 /dev/zero; printf x; echo oops >&2; exit 3";
    let answer = listened(script, long, &mut |bytes| {
        heard += bytes.len();
        last = *bytes.last().unwrap_or(&last);
        ControlFlow::Continue(())
    });
    let answer = answer.expect("it ran").expect("an answer");
    assert_eq!((heard, last), (30_000_001, b'x'));
    assert_eq!((answer.exit_code, answer.output.len(), &*answer.complaint()), (3, 0, "oops"));

    let begun = Instant::now();
    let broken_off = listened("cat /dev/zero", long, &mut |_| ControlFlow::Break(()));
    assert!(matches!(broken_off, Ok(None)), "{broken_off:?}");
    assert!(begun.elapsed() < long, "it was not ended");
    let begun = Instant::now();
    let mut asked = 0;
    let in_silence = listened("sleep 600", long, &mut |bytes| {
        asked += 1;
        assert!(bytes.is_empty());
        if asked < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    assert!(matches!(in_silence, Ok(None)), "{in_silence:?}");
    assert!(begun.elapsed() < long, "it was not asked in silence");

    // Half a second of silence is too much for one, and four seconds with a word now and then are not for another
    // that may be silent for three.
    let silence = Duration::from_millis(500);
    let silent = listened("echo a; sleep 600", silence, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(silent, Err(RunError::Deadline { .. })), "{silent:?}");
    let silence = Duration::from_secs(3);
    let script = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.5; done";
    let slow = listened(script, silence, &mut |_| ControlFlow::Continue(()));
    assert_eq!(slow.expect("it ran").expect("an answer").exit_code, 0);
}

/// Returns when nobody has the FIFO open for writing any more.
fn all_gone(mut fifo: fs::File) {
    let mut nothing = Vec::new();
    fifo.read_to_end(&mut nothing).expect("the end of a FIFO");
}

/// A FIFO in the tools' directory, and its reading end.
fn fifo(tools: &Tools, name: &str) -> fs::File {
    let path = tools.directory.path().join(name);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    let flags = nix::libc::O_NONBLOCK;
    let file = fs::File::options().read(true).custom_flags(flags).open(&path).expect("its end");
    // From here on reading waits for the writers.
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::empty()))
        .expect("flags");
    file
}

#[test]
fn a_program_that_hangs_is_ended_with_its_children() {
    let tools = Tools::with("lvs", "exec 9>\"${0%lvs}alive\"; sleep 600 & wait");
    let alive = fifo(&tools, "alive");
    let mut slow = command(&[]);
    slow.deadline = Duration::from_millis(300);
    let begun = Instant::now();
    assert!(matches!(tools.run(&slow), Err(RunError::Deadline { .. })));
    assert!(begun.elapsed() < Duration::from_secs(10));
    // The program and its child had it open: hangs here if one of them lives.
    all_gone(alive);
    // One that closes its output and goes on is not waited for either.
    let tools = Tools::with("lvs", "exec >&- 2>&-; sleep 600");
    assert!(matches!(tools.run(&slow), Err(RunError::Deadline { .. })));
    // Story: the group of one that died of a signal was ended by a number that was free by then.
    let tools = Tools::with("lvs", "exec 9>\"${0%lvs}alive\"; sleep 600 >&- 2>&- & kill -9 $$");
    let alive = fifo(&tools, "alive");
    let dies = tools.run(&command(&[]));
    assert!(matches!(dies, Err(RunError::Killed { signal: 9, .. })), "{dies:?}");
    all_gone(alive);
}

/// Whether somebody has an OFD lock on the file.
fn is_locked(path: &std::path::Path) -> bool {
    let file = fs::File::options().read(true).write(true).open(path).expect("the lock's file");
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole())).is_err()
}

fn whole() -> nix::libc::flock {
    // SAFETY: plain integers, all zeroes is a valid value: a lock of the whole file.
    let mut lock: nix::libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = nix::libc::F_WRLCK as nix::libc::c_short;
    lock
}

#[test]
fn what_is_locked_stays_so_until_the_command_has_ended() {
    // Story: an engine was killed while `lvconvert` ran. Its lock went with it, and the next engine
    // recovered what the command was still changing.
    for input in [None, Some("program".to_owned())] {
        let tools = Tools::with("zfs", "cat; read word < \"${0%zfs}go\"; echo $word");
        let go = tools.directory.path().join("go");
        nix::unistd::mkfifo(&go, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        let path = tools.directory.path().join("lock");
        let open =
            || fs::File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = open().expect("a file");
        nix::fcntl::fcntl(&lock, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole())).expect("a lock");
        let command = Command { program: "zfs".to_owned(), input: input.clone(), ..command(&[]) };
        let runner = Runner::in_directories(vec![tools.directory.path().to_owned()]);
        let ours = lock.into_raw_fd();
        let answer = std::thread::scope(|scope| {
            // SAFETY: it is open until the command has been begun, and not used after that.
            let held = unsafe { BorrowedFd::borrow_raw(ours) };
            let running = scope.spawn(move || runner.run_holding(&command, held));
            // Opening it waits until the command is there.
            let mut word = fs::File::options().write(true).open(&go).expect("the other end");
            // SAFETY: it is ours. Now nobody but the command has it, as if its engine had died.
            drop(unsafe { fs::File::from_raw_fd(ours) });
            assert!(is_locked(&path), "{input:?}");
            word.write_all(b"went\n").expect("a word");
            drop(word);
            running.join().expect("no panic").expect("an answer")
        });
        assert_eq!(answer.output, [input.unwrap_or_default().as_bytes(), b"went\n"].concat());
        assert!(!is_locked(&path));
    }
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
