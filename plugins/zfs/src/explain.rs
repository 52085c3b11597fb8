//! What ZFS said when a command failed, in the contract's words.
//!
//! ZFS has exit codes 1 (failed) and 2 (usage, and a missing dataset of `zfs snapshot`), so the
//! words decide. They are those of ZFS 2.1 under `LC_ALL=C`; what is not known is passed on.

use snapslot_plugin_sdk::{Answer, Failure, FailureKind};

use crate::grants::{DESTROY, DESTROY_MOUNTED, ROLLBACK, ROLLBACK_MOUNTED, TAKE};

/// What our programs put before their words (see the `.lua` files).
const OURS: &str = "snapslot: ";

/// Words of ZFS, and what they mean; the first that is found counts.
const WORDS: [(&str, Meaning); 21] = [
    ("more recent snapshots or bookmarks exist", Meaning::Newer),
    ("clones of previous snapshots exist", Meaning::Newer),
    ("has dependent clones", Meaning::Cloned),
    ("dataset already exists", Meaning::Clash),
    ("dataset is busy", Meaning::Busy),
    ("Device or resource busy", Meaning::Busy),
    ("dataset does not exist", Meaning::Gone),
    ("could not find any snapshots", Meaning::Gone),
    ("no such pool", Meaning::Gone),
    ("cannot open pool", Meaning::Gone),
    ("out of space", Meaning::Full),
    ("quota exceeded", Meaning::Quota),
    ("pool is read-only", Meaning::ReadOnly),
    ("I/O is currently suspended", Meaning::Suspended),
    ("must be run as root", Meaning::Permission),
    ("ermission denied", Meaning::Permission),
    ("ZFS modules", Meaning::Modules),
    ("/dev/zfs", Meaning::Modules),
    ("libzfs library", Meaning::Modules),
    ("Timed out", Meaning::Late),
    ("Memory limit exhausted", Meaning::Late),
];

#[derive(Clone, Copy, Debug)]
enum Meaning {
    Again,
    Busy,
    Changed,
    Clash,
    Cloned,
    Full,
    Gone,
    Late,
    Modules,
    Newer,
    Permission,
    Quota,
    ReadOnly,
    Suspended,
}

/// The failure behind an answer.
pub(crate) fn explain(command: &str, answer: &Answer) -> Failure {
    let words = String::from_utf8_lossy(&answer.errors).into_owned();
    if let Some((word, name)) = ours(&words) {
        return match meaning(command, &word) {
            Some(meaning) => meaning.failure(command, &name),
            None => unknown(command, &format!("ZFS gives {word} for {name}"), answer),
        };
    }
    let line = complaint(&words);
    match WORDS.iter().find(|(said, _)| words.contains(said)) {
        Some((_, meaning)) => meaning.failure(command, &line),
        None => unknown(command, &line, answer),
    }
}

fn unknown(command: &str, line: &str, answer: &Answer) -> Failure {
    let message = format!("{}: {line} (exit code {})", doing(command), answer.exit_code);
    Failure::new(FailureKind::Io, "command-failed", message)
}

/// The first line that says something.
fn complaint(words: &str) -> String {
    // The head of a failed program's words says nothing by itself.
    let head = "Channel program execution failed:";
    let told = words.lines().map(str::trim).find(|l| !l.is_empty() && *l != head);
    shown(told.unwrap_or("it gave no reason"))
}

/// What our program said: a word, and the name it is about.
fn ours(words: &str) -> Option<(String, String)> {
    let line = words.lines().find_map(|l| l.find(OURS).map(|at| &l[at + OURS.len()..]))?;
    let (word, name) = line.trim().split_once(' ')?;
    Some((shown(word), shown(name)))
}

/// What our program's word means; `errno-` is followed by Linux's number of an error.
fn meaning(command: &str, word: &str) -> Option<Meaning> {
    Some(match word {
        "gone" | "changed" | "errno-2" | "errno-3" => Meaning::Changed,
        "newer" => Meaning::Newer,
        "errno-11" => Meaning::Again,
        "errno-16" => Meaning::Busy,
        // A rollback meets newer bookmarks, a destroy clones.
        "errno-17" if command == ROLLBACK => Meaning::Newer,
        "errno-17" => Meaning::Cloned,
        "errno-28" => Meaning::Full,
        "errno-30" => Meaning::ReadOnly,
        "errno-122" => Meaning::Quota,
        _ => return None,
    })
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(512).collect()
}

const LOOKED: &str = "the dataset could not be looked at";

/// What the command was for.
fn doing(command: &str) -> &'static str {
    match command {
        TAKE => "the snapshot could not be made",
        ROLLBACK | ROLLBACK_MOUNTED => "the snapshot could not be restored",
        DESTROY | DESTROY_MOUNTED => "the snapshot could not be deleted",
        _ => LOOKED,
    }
}

impl Meaning {
    fn failure(self, command: &str, line: &str) -> Failure {
        let (kind, code, helps) = match self {
            Meaning::Again => (
                FailureKind::Changed,
                "try-again",
                "the snapshot was made in this very moment; try again",
            ),
            Meaning::Busy if matches!(command, DESTROY | DESTROY_MOUNTED) => (
                FailureKind::InUse,
                "in-use",
                "it is held (`zfs holds` tells), or somebody looks into it (under .zfs/snapshot, \
                 or as a device if snapdev is visible); end that and try again",
            ),
            Meaning::Busy => (
                FailureKind::InUse,
                "in-use",
                "somebody has it open or mounted (a file system perhaps in a container of its own); \
                 stop the machine, or unmount it, and try again",
            ),
            Meaning::Changed => (
                FailureKind::Changed,
                "changed",
                "the snapshot is not the one that was looked at a moment ago; nothing was done",
            ),
            Meaning::Clash => (
                FailureKind::Unsupported,
                "name-clash",
                "somebody made a snapshot of that name; rename or destroy it",
            ),
            Meaning::Cloned => {
                (FailureKind::InUse, "cloned", "clones depend on it; destroy or promote them first")
            }
            Meaning::Full => (
                FailureKind::NoSpace,
                "no-space",
                "make room in the pool, or lower the dataset's reservation (refreservation)",
            ),
            Meaning::Gone if command != TAKE && doing(command) != LOOKED => (
                FailureKind::NotFound,
                "no-snapshot",
                "it was there a moment ago; nothing was done",
            ),
            Meaning::Gone => (
                FailureKind::NotFound,
                "no-volume",
                "is the name right? `zfs list` shows what there is",
            ),
            Meaning::Late => (
                FailureKind::Io,
                "program-ended",
                "ZFS ended the program before it changed anything; try again when the pool is \
                 less busy",
            ),
            Meaning::Modules => (
                FailureKind::Unsupported,
                "no-kernel-support",
                "this kernel has no ZFS loaded: `modprobe zfs`",
            ),
            Meaning::Newer => (
                FailureKind::Unsupported,
                "newer-snapshots",
                "there are newer snapshots or bookmarks than the slot's, and ZFS restores the \
                 newest only; destroy them, or delete the slot's and take a new one",
            ),
            Meaning::Permission => (
                FailureKind::Io,
                "permission",
                "run it as root, or let root delegate with `zfs allow`: a take can be delegated; \
                 restore and delete of volumes need root",
            ),
            Meaning::Quota => (
                FailureKind::NoSpace,
                "quota",
                "a quota or limit of the dataset stands against it; raise it",
            ),
            Meaning::ReadOnly => (
                FailureKind::Unsupported,
                "read-only",
                "the pool was imported read-only; import it for writing",
            ),
            Meaning::Suspended => (
                FailureKind::Io,
                "suspended",
                "the pool waits for a failed device; `zpool status` tells, `zpool clear` lets it go \
                 on",
            ),
        };
        Failure::new(kind, code, format!("{}: {line}; {helps}", doing(command)))
    }
}
