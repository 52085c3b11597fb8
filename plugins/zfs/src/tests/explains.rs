//! What a failed command's words become.

use snapslot_plugin_sdk::FailureKind;

use super::*;
use crate::grants::{DESTROY, DESTROY_MOUNTED, ROLLBACK, ROLLBACK_MOUNTED, TAKE, WRITTEN};

/// The grant that a recorded command is of, if it is of one.
fn grant_of(command: &str) -> Option<&'static str> {
    let starts = |start: &str| command.starts_with(start);
    let own = command.contains("@snapslot-");
    Some(match () {
        () if starts("zfs list -Hp -t filesystem,volume,snapshot,bookmark") => LOOK,
        () if starts("zfs snapshot -o snapslot:mark") => TAKE,
        () if command.contains("zfs program") && command.ends_with("rollback.lua") => ROLLBACK,
        () if command.contains("zfs program") && command.ends_with("destroy.lua") => DESTROY,
        () if starts("zfs rollback tank") && own => ROLLBACK_MOUNTED,
        () if starts("zfs destroy tank") && own && !command.contains(';') => DESTROY_MOUNTED,
        () if starts("zfs get -Hp -o value written@") => WRITTEN,
        () => return None,
    })
}

/// Every complaint in the record has its kind, code and help.
#[test]
fn everything_that_was_heard() {
    // Section, grant, the complaint's part, then what it is to become.
    let known: &[(&str, &str, &str, FailureKind, &str)] = &[
        ("setup", LOOK, "does not exist", FailureKind::NotFound, "no-volume"),
        ("zvol", TAKE, "already exists", FailureKind::Unsupported, "name-clash"),
        ("zvol", TAKE, "does not exist", FailureKind::NotFound, "no-volume"),
        ("zvol", ROLLBACK, "errno-16", FailureKind::InUse, "in-use"),
        ("zvol", ROLLBACK, "changed", FailureKind::Changed, "changed"),
        ("zvol", ROLLBACK, "gone", FailureKind::Changed, "changed"),
        ("zvol", ROLLBACK, "newer", FailureKind::Unsupported, "newer-snapshots"),
        ("zvol", ROLLBACK, "errno-17", FailureKind::Unsupported, "newer-snapshots"),
        ("zvol", ROLLBACK_MOUNTED, "more recent", FailureKind::Unsupported, "newer-snapshots"),
        ("holds", DESTROY, "errno-16", FailureKind::InUse, "in-use"),
        ("holds", DESTROY_MOUNTED, "is busy", FailureKind::InUse, "in-use"),
        ("clones", DESTROY, "errno-17", FailureKind::InUse, "cloned"),
        ("guids", DESTROY, "changed", FailureKind::Changed, "changed"),
        ("snapdev", DESTROY, "errno-16", FailureKind::InUse, "in-use"),
        ("fs", ROLLBACK, "errno-16", FailureKind::InUse, "in-use"),
        ("fs", DESTROY, "errno-16", FailureKind::InUse, "in-use"),
        ("fs", DESTROY_MOUNTED, "is busy", FailureKind::InUse, "in-use"),
        ("refquota", ROLLBACK, "errno-122", FailureKind::NoSpace, "quota"),
        ("refquota", ROLLBACK_MOUNTED, "out of space", FailureKind::NoSpace, "no-space"),
        ("receiving", TAKE, "is busy", FailureKind::InUse, "in-use"),
        ("perm", DESTROY, "must be run as root", FailureKind::Io, "permission"),
        ("readonly", TAKE, "read-only", FailureKind::Unsupported, "read-only"),
        ("readonly", DESTROY, "read-only", FailureKind::Unsupported, "read-only"),
        ("readonly", ROLLBACK, "read-only", FailureKind::Unsupported, "read-only"),
        ("readonly", LOOK, "does not exist", FailureKind::NotFound, "no-volume"),
        ("readonly", TAKE, "does not exist", FailureKind::NotFound, "no-volume"),
        ("readonly", ROLLBACK, "no such pool", FailureKind::NotFound, "no-snapshot"),
        ("full-restore", ROLLBACK, "errno-28", FailureKind::NoSpace, "no-space"),
        ("full-restore", ROLLBACK_MOUNTED, "out of space", FailureKind::NoSpace, "no-space"),
        ("full-restore", TAKE, "out of space", FailureKind::NoSpace, "no-space"),
        ("mounted-elsewhere", ROLLBACK, "errno-16", FailureKind::InUse, "in-use"),
        ("mounted-elsewhere", DESTROY_MOUNTED, "not find", FailureKind::NotFound, "no-snapshot"),
        ("mounted-volume", ROLLBACK, "errno-16", FailureKind::InUse, "in-use"),
        ("big-guids", DESTROY, "changed", FailureKind::Changed, "changed"),
        ("big-guids", ROLLBACK, "changed", FailureKind::Changed, "changed"),
        ("modules", LOOK, "not loaded", FailureKind::Unsupported, "no-kernel-support"),
        ("full", TAKE, "out of space", FailureKind::NoSpace, "no-space"),
    ];
    let mut met = vec![false; known.len()];
    for entry in record().iter().filter(|e| e.answer.exit_code != 0) {
        let Some(grant) = grant_of(&entry.command) else { continue };
        let words = String::from_utf8_lossy(&entry.answer.errors).into_owned();
        let index = known.iter().position(|(section, of, part, ..)| {
            *section == entry.section && *of == grant && words.contains(part)
        });
        let Some(index) = index else {
            panic!("{}: nothing is expected of `{}`: {words}", entry.section, entry.command)
        };
        met[index] = true;
        let (.., kind, code) = known[index];
        let failure = Zfs::explain(grant, &entry.answer);
        assert_eq!(
            (failure.kind, failure.code.as_str()),
            (kind, code),
            "{}: {words}",
            entry.command
        );
        let help = failure.message.split_once("; ").map_or("", |(_, help)| help);
        assert!(help.len() > 15, "no help in {:?}", failure.message);
        let bare = !failure.message.chars().any(char::is_control);
        assert!(bare && !failure.message.contains("traceback"), "{:?}", failure.message);
    }
    let unmet: Vec<_> = known.iter().zip(&met).filter(|(_, met)| !**met).collect();
    assert!(unmet.is_empty(), "the record has no {unmet:?}");
}

/// Busy is not always the same: what helps depends on what was tried.
#[test]
fn busy_in_a_delete_and_in_a_restore() {
    let busy = complaint("cannot destroy snapshot tank/v@a: dataset is busy");
    for (command, part) in [
        (DESTROY, "`zfs holds` tells"),
        (DESTROY_MOUNTED, "`zfs holds` tells"),
        (ROLLBACK, "stop the machine"),
        (ROLLBACK_MOUNTED, "stop the machine"),
    ] {
        let message = Zfs::explain(command, &busy).message;
        assert!(message.contains(part), "{command}: {message}");
    }
}

fn complaint(errors: &str) -> Answer {
    Answer { exit_code: 1, output: Vec::new(), errors: errors.as_bytes().to_vec() }
}

/// Words of ZFS that this record lacks, from its sources (2.1, `libzfs_util.c`, `zfs_main.c`).
#[test]
fn words_not_heard_yet() {
    let cases = [
        (
            "/dev/zfs and /proc/self/mounts are required.",
            FailureKind::Unsupported,
            "no-kernel-support",
        ),
        ("Permission denied the ZFS utilities must be run as root.", FailureKind::Io, "permission"),
        ("cannot rollback 'tank/v': permission denied", FailureKind::Io, "permission"),
        ("cannot create snapshots : pool I/O is currently suspended", FailureKind::Io, "suspended"),
        ("Channel program execution failed:\nTimed out.", FailureKind::Io, "program-ended"),
        (
            "cannot destroy 'tank/v@a': snapshot has dependent clones\nuse '-R' to destroy",
            FailureKind::InUse,
            "cloned",
        ),
        (
            "Channel program execution failed:\nsnapslot: errno-11 tank/v",
            FailureKind::Changed,
            "try-again",
        ),
        (
            "Channel program execution failed:\nsnapslot: errno-28 tank/v",
            FailureKind::NoSpace,
            "no-space",
        ),
    ];
    for (words, kind, code) in cases {
        let failure = Zfs::explain(DESTROY_MOUNTED, &complaint(words));
        assert_eq!((failure.kind, failure.code.as_str()), (kind, code), "{words}");
    }
}

/// What is not known is passed on, short and clean, never swallowed.
#[test]
fn words_nobody_knows() {
    let cases = [
        ("internal error: out of cheese\n", "internal error: out of cheese"),
        ("", "it gave no reason"),
        (
            "Channel program execution failed:\nsnapslot: errno-5 tank/v\nstack",
            "ZFS gives errno-5 for tank/v",
        ),
        ("Channel program execution failed:\n[string \"x\"]:3: boom", "[string \"x\"]:3: boom"),
        ("Channel program execution failed:\nsnapslot: ", "snapslot:"),
        ("a\x07b\u{1b}[31m\n", "ab[31m"),
    ];
    for (words, part) in cases {
        let failure = Zfs::explain(ROLLBACK, &complaint(words));
        assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Io, "command-failed"));
        assert!(failure.message.contains(part), "{words:?} became {:?}", failure.message);
    }
    let long = Zfs::explain(TAKE, &complaint(&"x".repeat(60_000)));
    assert!(long.message.len() < 700, "{} bytes", long.message.len());
    let bytes = Answer { exit_code: -1, output: Vec::new(), errors: vec![0xff; 9] };
    assert_eq!(Zfs::explain(LOOK, &bytes).code, "command-failed");
}

/// Every word the programs can end with is understood.
#[test]
fn the_programs_words_are_known() {
    for (program, command) in
        [(include_str!("../rollback.lua"), ROLLBACK), (include_str!("../destroy.lua"), DESTROY)]
    {
        let words: Vec<&str> = (program.split("error(\"snapslot: ").skip(1))
            .filter_map(|rest| rest.split([' ', '"']).next())
            .collect();
        assert!(words.contains(&"gone") && words.contains(&"errno-"), "{words:?}");
        for word in words {
            let word = if word == "errno-" { "errno-16" } else { word };
            let failure = Zfs::explain(command, &complaint(&format!("snapslot: {word} tank/v@a")));
            assert_ne!(failure.code, "command-failed", "{word} of {command}");
            assert!(failure.message.contains("tank/v@a"), "{}", failure.message);
        }
    }
}
