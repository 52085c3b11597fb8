//! A full disk, a directory that cannot be written, no privileges.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use snapslot_test_support::needs::is_root;
use snapslot_test_support::{Scratch, journal_of, run};

use crate::{image, snapslot};

/// A user other than root, for tests that run as root: `nobody`.
const NOBODY: u32 = 65_534;

/// On a file system with no room left a take fails with nothing changed, and works once there is
/// room. A mount of its own in a name space of its own.
#[test]
fn a_full_disk_changes_nothing() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let script = r#"
        set -e
        mount -t tmpfs -o size=12m tmpfs "$1"
        qemu-img create -q -f qcow2 "$1/disk.qcow2" 8M
        qemu-io -f qcow2 -c "write -q -P 7 0 6M" "$1/disk.qcow2"
        before=$(cksum < "$1/disk.qcow2")
        dd if=/dev/zero of="$1/filler" bs=4k status=none 2>/dev/null || true
        code=0; "$2" --json --state-dir "$3" --cache-dir "$4" take "$1/disk.qcow2" || code=$?
        test "$(cksum < "$1/disk.qcow2")" = "$before" || { echo "the image changed"; exit 90; }
        test -e "$1/disk.qcow2.snapslot-journal" && { echo "a journal is left"; exit 91; }
        test $code = 1 || { echo "exit $code"; exit 92; }
        rm "$1/filler"
        "$2" --json --state-dir "$3" --cache-dir "$4" take "$1/disk.qcow2"
        qemu-img check -q "$1/disk.qcow2"
    "#;
    let directory = scratch.join("small");
    std::fs::create_dir(&directory).expect("a mount point");
    let mut command = Command::new("unshare");
    command.arg(if is_root() { "--mount" } else { "--map-root-user" });
    if !is_root() {
        command.arg("--mount");
    }
    command.args(["sh", "-c", script, "sh"]);
    command.arg(&directory).arg(env!("CARGO_BIN_EXE_snapslot"));
    command.arg(snapslot.state()).arg(snapslot.cache());
    let done = run(command, Duration::from_secs(60));
    assert_eq!(done.code, Some(0), "{}", done.account());
    assert!(done.text().contains("no-space"), "{}", done.account());
}

/// No root for an image one owns; and where the journal cannot be made, nothing happens.
#[test]
fn an_owner_needs_no_privileges() {
    let scratch = Scratch::new();
    let image = image(&scratch, "disk.qcow2");
    let (image_path, directory) = (image.path().to_owned(), scratch.path().to_owned());
    // The build's directory may be closed to others.
    let binary = scratch.join("snapslot");
    // By a child: what this process has open for writing, the children of other tests have too for a moment, and
    // then nobody can run it ("Text file busy").
    let mut copy = Command::new("cp");
    copy.arg(env!("CARGO_BIN_EXE_snapslot")).arg(&binary);
    run(copy, Duration::from_secs(60)).expect_success();
    let own = scratch.join("own");
    std::fs::create_dir(&own).expect("a directory");
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o777)).expect("chmod");
    let open = |mode| {
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    std::fs::set_permissions(&image_path, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    let user = |verb: &str| {
        let mut command = Command::new(&binary);
        command.arg("--json");
        command.arg("--state-dir").arg(own.join("state")).arg("--cache-dir").arg(own.join("cache"));
        command.arg(verb).arg(&image_path);
        if verb == "restore" {
            command.arg("--yes");
        }
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        run(command, Duration::from_secs(60))
    };
    open(0o777);
    let taken = user("take");
    assert_eq!(taken.code, Some(0), "{}", taken.account());
    image.assert_clean();
    // The journal lies beside the image: where no file can be made, nothing is begun.
    open(0o555);
    image.guest(["write -q -P 5 0 64k"]);
    let before = image.bytes();
    let denied = user("restore");
    open(0o777);
    assert_eq!(denied.code, Some(1), "{}", denied.account());
    assert!(denied.text().contains("nothing was changed"), "{}", denied.account());
    assert!(image.bytes() == before);
    assert_eq!(user("restore").code, Some(0));
    image.assert_clean();
}

/// Story: recovery carried out whatever file lay by the journal's name, and making the journal
/// opened it a second time by name. What is not plainly ours is neither obeyed nor written to.
#[test]
fn a_file_put_in_the_journals_place_is_neither_obeyed_nor_written() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let journal = journal_of(image.path());
    let victim = scratch.join("victim");
    let content = b"SNAPSLOT JOURNAL and then something else, long enough for a head";
    std::fs::write(&victim, content).expect("a file");
    let before = image.bytes();
    let refused = |what: &str| {
        let outcome = snapslot.verb("take", image.path(), &[]);
        assert!(matches!(outcome.code(), 1 | 8), "{what}: {}", outcome.process.account());
        assert!(image.bytes() == before, "{what}: the image changed");
        assert_eq!(std::fs::read(&victim).expect("the file"), content, "{what}");
        std::fs::remove_file(&journal).or_else(|_| std::fs::remove_dir(&journal)).expect(what);
    };
    std::os::unix::fs::symlink(&victim, &journal).expect("a link");
    refused("a symbolic link");
    std::fs::hard_link(&victim, &journal).expect("a link");
    refused("a hard link");
    std::fs::write(&journal, content).expect("a file");
    std::fs::set_permissions(&journal, std::fs::Permissions::from_mode(0o666)).expect("chmod");
    refused("a file that anybody may write");
    std::fs::create_dir(&journal).expect("a directory");
    refused("a directory");
    let made = Command::new("mkfifo").arg(&journal).status().expect("mkfifo, of coreutils");
    assert!(made.success());
    refused("a pipe");
    snapslot.verb("take", image.path(), &[]).expect(0);
    image.assert_clean();
}
