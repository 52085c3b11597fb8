//! Restore and delete ask a person, and only a yes is a yes.

use std::io::Write;
use std::process::{Command, Stdio};

use snapslot_test_support::{Scratch, Snapslot};

use crate::{image, snapslot, words};

/// Runs the binary on a terminal of its own, with `typed` typed in; exit code and screen.
pub fn on_a_terminal(snapslot: &Snapslot, arguments: &str, typed: &str) -> (i32, String) {
    let line = format!("'{}' {arguments}", env!("CARGO_BIN_EXE_snapslot"));
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("SNAPSLOT_STATE_DIR", snapslot.state())
        .env("SNAPSLOT_CACHE_DIR", snapslot.cache())
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("`script`, of Debian's package bsdutils");
    script.stdin.take().expect("piped").write_all(typed.as_bytes()).expect("to be read");
    let done = script.wait_with_output().expect("an end");
    (done.status.code().unwrap_or(-1), String::from_utf8_lossy(&done.stdout).into_owned())
}

#[test]
fn a_no_changes_nothing_and_a_yes_goes_back() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let path = format!("'{}'", image.path().display());
    snapslot.verb("take", image.path(), &[]).expect(0);
    let taken = image.active();
    image.guest(["write -q -P 99 1M 1M"]);
    let changed = image.bytes();
    for typed in ["n\n", "\n", "no\n", "yess\n", "\x04"] {
        let (code, screen) = on_a_terminal(&snapslot, &format!("restore {path}"), typed);
        assert_eq!(code, 6, "{typed:?}: {screen}");
        assert!(screen.contains("1.0 MiB changed since would be lost"), "{screen}");
        assert!(image.bytes() == changed, "{typed:?} changed the image");
    }
    let (code, screen) = on_a_terminal(&snapslot, &format!("restore {path}"), "y\n");
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains("Restored:"), "{screen}");
    assert!(image.active() == taken);
    let (code, screen) = on_a_terminal(&snapslot, &format!("delete {path}"), "no\n");
    assert_eq!((code, snapslot.verb("status", image.path(), &[]).slot()), (6, "held"), "{screen}");
    let (code, screen) = on_a_terminal(&snapslot, &format!("delete {path}"), "yes\n");
    assert_eq!(code, 0, "{screen}");
    assert_eq!(snapslot.verb("status", image.path(), &[]).slot(), "empty");
    image.assert_clean();
}

#[test]
fn without_a_terminal_it_must_be_told() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let path = image.path().display().to_string();
    snapslot.verb("take", image.path(), &[]).expect(0);
    let before = image.bytes();
    for verb in ["restore", "delete"] {
        let (code, out, err) = words(&snapslot, &[verb, &path]);
        assert_eq!(code, 6);
        assert!(out.is_empty() && err.contains("--yes"), "{err}");
        assert!(!err.contains('\x1b'), "colour without a terminal: {err:?}");
    }
    assert!(image.bytes() == before);
}
