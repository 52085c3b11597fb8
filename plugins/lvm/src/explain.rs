//! Puts what LVM says when it fails into the contract's words.
//!
//! The phrases are those of LVM 2.03.16, with `LC_ALL=C`. What is not known is passed on as LVM
//! said it.

use snapslot_plugin_sdk::{Answer, Failure, FailureKind};

/// Phrase, kind, code, and what helps.
type Known = (&'static str, FailureKind, &'static str, &'static str);

/// The first phrase found decides: what says more stands first.
const KNOWN: &[Known] = &[
    (
        "Permission denied",
        FailureKind::Io,
        "permission",
        "logical volumes are root's; run it as root",
    ),
    (
        "Running as a non-root user",
        FailureKind::Io,
        "permission",
        "logical volumes are root's; run it as root",
    ),
    (
        "Required device-mapper target(s) not detected",
        FailureKind::Unsupported,
        "no-kernel-support",
        "the kernel lacks what this needs; `modprobe dm-snapshot dm-thin-pool` loads it where it \
         is installed",
    ),
    (
        "Unrecognised field",
        FailureKind::Unsupported,
        "lvm-too-old",
        "this LVM is too old; 2.03.11 and later are known to work",
    ),
    (
        "already exists in volume group",
        FailureKind::Unsupported,
        "name-clash",
        "a volume that is not Snapslot's has the name; rename or remove it",
    ),
    (
        "insufficient free space",
        FailureKind::NoSpace,
        "no-space",
        "`vgextend` adds room to the group; less may be set aside for the snapshot, too",
    ),
    (
        "Insufficient suitable allocatable extents",
        FailureKind::NoSpace,
        "no-space",
        "`vgextend` adds room to the group; less may be set aside for the snapshot, too",
    ),
    (
        "free space in thin pool",
        FailureKind::NoSpace,
        "pool-full",
        "`lvextend` on the pool gives it room",
    ),
    (
        "out of data space",
        FailureKind::NoSpace,
        "pool-full",
        "`lvextend` on the pool gives it room",
    ),
    (
        "merging snapshot",
        FailureKind::InUse,
        "merge-pending",
        "a merge waits for the volume to be activated anew; stop what has it open, then \
         `snapslot recover`",
    ),
    (
        "is merged to",
        FailureKind::InUse,
        "merge-pending",
        "a merge waits for the volume to be activated anew; stop what has it open, then \
         `snapslot recover`",
    ),
    (
        "lv_is_merging",
        FailureKind::InUse,
        "merge-pending",
        "a merge waits for the volume to be activated anew; stop what has it open, then \
         `snapslot recover`",
    ),
    (
        "Unable to merge invalidated snapshot",
        FailureKind::Corrupt,
        "snapshot-lost",
        "its store overflowed and its content is gone; delete it",
    ),
    (
        "into the read-only origin",
        FailureKind::Unsupported,
        "read-only",
        "`lvchange -prw` on the volume makes it writable",
    ),
    (" in use", FailureKind::InUse, "in-use", "stop what has it open"),
    ("is used by another device", FailureKind::InUse, "in-use", "stop what uses it"),
    ("too long", FailureKind::Unsupported, "name-too-long", "rename the volume or its group"),
    (
        "PVs are missing",
        FailureKind::Corrupt,
        "pv-missing",
        "a disk of the group is missing; `vgs -o+vg_missing_pv_count` tells more",
    ),
    (
        "Couldn't find device",
        FailureKind::Corrupt,
        "pv-missing",
        "a disk of the group is missing; `vgs -o+vg_missing_pv_count` tells more",
    ),
    ("is exported", FailureKind::Unsupported, "exported", "`vgimport` brings the group back"),
    (
        "Can't get lock",
        FailureKind::InUse,
        "locked",
        "another LVM command holds the group; try again",
    ),
    (
        "Failed to find logical volume",
        FailureKind::NotFound,
        "no-such-volume",
        "`lvs` lists what there is",
    ),
    (
        "Cannot process volume group",
        FailureKind::Io,
        "no-such-group",
        "`vgs` lists what there is; the group's disk may be missing",
    ),
    ("not found", FailureKind::NotFound, "no-such-volume", "`lvs` and `vgs` list what there is"),
];

/// The failure that an answer tells of.
pub(crate) fn explain(command: &str, answer: &Answer) -> Failure {
    let words = String::from_utf8_lossy(&answer.errors);
    let lines = || words.lines().map(str::trim).filter(|l| !l.is_empty());
    let known = KNOWN.iter().find(|(phrase, ..)| lines().any(|l| l.contains(phrase)));
    if let Some((phrase, kind, code, help)) = known {
        let line = lines().find(|l| l.contains(phrase)).unwrap_or_default();
        let line = line.strip_prefix("WARNING:").unwrap_or(line).trim();
        let message = format!("{}; {help}", shown(line).trim_end_matches('.'));
        return Failure::new(*kind, code, message);
    }
    // A warning says least; the first line is the cause, what follows it are consequences.
    let told = lines().find(|l| !l.starts_with("WARNING")).or_else(|| lines().next());
    let told = told.map(shown).unwrap_or_else(|| "it gave no reason".to_owned());
    let message = format!("LVM failed at {command} with exit code {}: {told}", answer.exit_code);
    Failure::new(FailureKind::Io, "command-failed", message)
}

/// A line for people: LVM's own words, without what would disturb a terminal.
fn shown(line: &str) -> String {
    line.chars().filter(|c| !c.is_control()).take(300).collect()
}
