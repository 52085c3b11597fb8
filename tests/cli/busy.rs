//! What is said of a volume that another engine works on.

use std::fs::File;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use snapslot_test_support::{Outcome, Scratch, run};

use crate::{image, snapslot};

/// The engine's own byte: see host/disk/src/lock.rs.
const ENGINE_BYTE: i64 = 0x5350_534c;

/// Has the engine's lock on an image, as an engine that plans has it.
fn at_work(path: &std::path::Path) -> File {
    let file = File::options().read(true).write(true).open(path).expect("the image");
    let lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: ENGINE_BYTE,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_OFD_SETLK(&lock)).expect("a lock nobody has");
    file
}

/// Story: while another engine planned, recovered or tried a dry run, `status` and `check` said that a take had
/// been interrupted, and to recover it. A killed operation of before lent its process and time.
#[test]
fn an_engine_that_has_changed_nothing_yet_is_told_as_what_it_is() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let path = image.path();
    snapslot.verb("take", path, &[]).expect(0);
    let ours = u64::from(std::process::id());

    let file = at_work(path);
    let status = snapslot.verb("status", path, &[]);
    let told = status.expect(0);
    assert_eq!(status.slot(), "held");
    assert_eq!(told["volumes"][0]["worked-on-by"][0].as_u64(), Some(ours), "{told}");
    let check = snapslot.verb("check", path, &[]);
    assert_eq!(check.code(), 5, "{}", check.process.account());
    let problems = check.json.as_ref().map(|j| j["machines"][0]["problems"].to_string());
    assert!(problems.is_some_and(|p| p.contains(&format!("(pid {ours})"))), "{check:?}");
    let busy = snapslot.verb("delete", path, &[]);
    let error = &busy.expect(5)["error"];
    assert_eq!(error["data"]["holders"][0]["pid"].as_u64(), Some(ours), "{error}");
    // Nothing says since when; what the record has of others is not it.
    assert!(error["data"]["since"].is_null(), "{error}");
    drop(file);
    assert_eq!(snapslot.verb("check", path, &[]).code(), 0);
}

#[test]
fn enabling_by_a_take_can_be_turned_off_in_the_usual_ways() {
    let scratch = Scratch::new();
    let image = image(&scratch, "disk.qcow2");
    let snapslot = snapslot(&scratch);
    for (value, code) in [("1", 6), ("yes", 6), ("true", 6), ("0", 0), ("false", 3), ("", 3)] {
        let mut command = snapslot.command(["take".as_ref(), image.path().as_os_str()]);
        command.env("SNAPSLOT_NO_ENABLE", value);
        let taken = Outcome::from(run(command, Duration::from_secs(60)));
        assert_eq!(taken.code(), code, "{value:?}: {}", taken.process.account());
    }
    // A snapshot that came with the image is not filled anew against it either.
    let other = snapslot.with_state(scratch.join("other"));
    let replaced = other.verb("take", image.path(), &["--replace", "--no-enable"]);
    assert_eq!(replaced.expect(6)["error"]["code"], "disabled");
}

#[test]
fn a_damaged_record_says_what_helps_and_that_helps() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let taken = snapslot.verb("take", image.path(), &[]);
    let record = snapslot.state().join("record.sqlite");
    for more in ["", "-wal", "-shm"] {
        std::fs::write(format!("{}{more}", record.display()), "not a record").expect("room");
    }
    let refused = snapslot.verb("restore", image.path(), &[]);
    let error = &refused.expect(1)["error"];
    assert_eq!(error["code"], "store");
    let message = error["message"].as_str().unwrap_or_default();
    for part in ["nothing was changed", "record.sqlite", "moved out of the state directory"] {
        assert!(message.contains(part), "{message}");
    }
    for more in ["", "-wal", "-shm"] {
        // SQLite may have taken the log away itself.
        let _ = std::fs::remove_file(format!("{}{more}", record.display()));
    }
    let found = snapslot.verb("status", image.path(), &[]);
    assert_eq!((found.slot(), found.snapshot_name()), ("held", taken.snapshot_name()));
}
