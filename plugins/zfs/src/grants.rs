//! Every command this backend asks for: what it looks with, and what its plans contain.
//!
//! None of them has `-r` or `-R`, which destroy what others made, none has `-f`, and none has
//! `-d`, which says yes now and destroys later.

use snapslot_plugin_sdk::{CommandGrant, Grammar, Guard, hole};

/// The query that shows everything.
pub(crate) const LOOK: &str = "look";
/// The query that tells whether the pool is there.
pub(crate) const POOL: &str = "pool";
/// The query that names who holds a snapshot.
pub(crate) const HOLDS: &str = "holds";
/// The query that counts what was written since a snapshot.
pub(crate) const WRITTEN: &str = "written";
/// The action that makes a snapshot.
pub(crate) const TAKE: &str = "take";
/// The action that sets back what is not mounted.
pub(crate) const ROLLBACK: &str = "rollback";
/// The action that sets back a mounted file system.
pub(crate) const ROLLBACK_MOUNTED: &str = "rollback-mounted";
/// The action that destroys a snapshot of what is not mounted.
pub(crate) const DESTROY: &str = "destroy";
/// The action that destroys a snapshot of a mounted file system.
pub(crate) const DESTROY_MOUNTED: &str = "destroy-mounted";

/// The properties a look shows, in the order of its columns. The last three are ours; they come
/// last because nothing else in a line could hold a tab.
pub(crate) const COLUMNS: [&str; 23] = [
    "name",
    "type",
    "guid",
    "createtxg",
    "creation",
    "used",
    "referenced",
    "written",
    "available",
    "volsize",
    "refquota",
    "refreservation",
    "usedbyrefreservation",
    "userrefs",
    "defer_destroy",
    "clones",
    "mounted",
    "encryption",
    "keystatus",
    "receive_resume_token",
    "snapslot:mark",
    "snapslot:taken",
    "snapslot:of",
];

/// The query commands.
pub(crate) fn queries() -> Vec<CommandGrant> {
    let look = CommandGrant {
        name: LOOK.to_owned(),
        template: words(&[
            "zfs",
            "list",
            "-Hp",
            "-t",
            "filesystem,volume,snapshot,bookmark",
            "-s",
            "createtxg",
            "-d",
            "1",
            "-o",
            &COLUMNS.join(","),
            "{dataset}",
        ]),
        holes: vec![hole("dataset", Grammar::ZfsDataset)],
        input: None,
        guard: None,
        deadline_seconds: 60,
        reason: "shows the dataset, its snapshots, bookmarks, clones, holds and room: all of it \
                 in one look, so that it fits together"
            .to_owned(),
    };
    let holds = CommandGrant {
        name: HOLDS.to_owned(),
        template: words(&["zfs", "holds", "-H", "{dataset}@{snapshot}"]),
        holes: vec![hole("dataset", Grammar::ZfsDataset), hole("snapshot", Grammar::ZfsOwn)],
        input: None,
        guard: None,
        deadline_seconds: 60,
        reason: "names who holds the slot's snapshot when it cannot be deleted for that".to_owned(),
    };
    let written = CommandGrant {
        name: WRITTEN.to_owned(),
        template: words(&["zfs", "get", "-Hp", "-o", "value", "written@{snapshot}", "{dataset}"]),
        holes: vec![hole("dataset", Grammar::ZfsDataset), hole("snapshot", Grammar::ZfsOwn)],
        input: None,
        guard: None,
        deadline_seconds: 60,
        reason: "counts what was written since the slot's snapshot when newer snapshots exist"
            .to_owned(),
    };
    let pool = CommandGrant {
        name: POOL.to_owned(),
        template: words(&["zfs", "list", "-Hp", "-o", "name", "{pool}"]),
        holes: vec![hole("pool", Grammar::ZfsPool)],
        input: None,
        guard: None,
        deadline_seconds: 60,
        reason: "tells a dataset that is gone from a pool that is not imported".to_owned(),
    };
    vec![look, holds, written, pool]
}

/// The commands that plans contain.
pub(crate) fn actions() -> Vec<CommandGrant> {
    let take = CommandGrant {
        name: TAKE.to_owned(),
        template: words(&[
            "zfs",
            "snapshot",
            "-o",
            "snapslot:mark={mark}",
            "-o",
            "snapslot:taken={seconds}.{nanoseconds}",
            "-o",
            "snapslot:of={guid}",
            "{dataset}@{snapshot}",
        ]),
        holes: vec![
            hole("dataset", Grammar::ZfsDataset),
            hole("snapshot", Grammar::ZfsOwn),
            hole("mark", Grammar::Mark),
            hole("seconds", Grammar::Number),
            hole("nanoseconds", Grammar::Number),
            hole("guid", Grammar::Number),
        ],
        input: None,
        guard: None,
        deadline_seconds: 300,
        reason: "take: makes the slot's snapshot, with its mark, its time and its dataset as \
                 properties of it"
            .to_owned(),
    };
    let rollback = by_program(
        ROLLBACK,
        include_str!("rollback.lua"),
        "restore: sets a volume or unmounted file system back to the slot's snapshot; ZFS itself \
         checks in the same transaction that it is that very snapshot, the newest one, and that \
         nobody has the volume open",
    );
    let rollback_mounted = guarded(
        ROLLBACK_MOUNTED,
        "rollback",
        "restore: sets a mounted file system back to the slot's snapshot, if that is the newest",
    );
    let destroy = by_program(
        DESTROY,
        include_str!("destroy.lua"),
        "delete: destroys the slot's snapshot and nothing else; ZFS itself checks in the same \
         transaction that it is that very snapshot",
    );
    let destroy_mounted = guarded(
        DESTROY_MOUNTED,
        "destroy",
        "delete: destroys the slot's snapshot of a mounted file system and nothing else; closes \
         the view of it under .zfs/snapshot first, which a program inside ZFS cannot",
    );
    vec![take, rollback, rollback_mounted, destroy, destroy_mounted]
}

/// An action that a program inside ZFS does: look and change in one transaction group.
fn by_program(name: &str, program: &str, reason: &str) -> CommandGrant {
    CommandGrant {
        name: name.to_owned(),
        template: words(&[
            "zfs",
            "program",
            "-j",
            "{pool}",
            "-",
            "{dataset}",
            "{snapshot}",
            "{guid}",
        ]),
        holes: vec![
            hole("pool", Grammar::ZfsPool),
            hole("dataset", Grammar::ZfsDataset),
            hole("snapshot", Grammar::ZfsOwn),
            hole("guid", Grammar::Number),
        ],
        input: Some(program.to_owned()),
        guard: None,
        deadline_seconds: 600,
        reason: reason.to_owned(),
    }
}

/// An action on a snapshot by its name, after a look that its guid is the one meant.
fn guarded(name: &str, verb: &str, reason: &str) -> CommandGrant {
    CommandGrant {
        name: name.to_owned(),
        template: words(&["zfs", verb, "{dataset}@{snapshot}"]),
        holes: vec![
            hole("dataset", Grammar::ZfsDataset),
            hole("snapshot", Grammar::ZfsOwn),
            hole("guid", Grammar::Number),
        ],
        input: None,
        guard: Some(Guard {
            template: words(&["zfs", "list", "-Hp", "-o", "guid", "{dataset}@{snapshot}"]),
            equals: "guid".to_owned(),
        }),
        deadline_seconds: 600,
        reason: reason.to_owned(),
    }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
