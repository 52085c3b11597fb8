//! Every command this backend may have run, word by word, with the reason for it.
//!
//! Promises that hold for all of them:
//! - what is destroyed or renamed is named by name *and* UUID, in the command itself (`--select`)
//!   or by a guard right before it; `--select` and the guards' looks are LVM's own check, so a
//!   volume that took the name in the meantime is left alone;
//! - a volume group is always given: an empty list would mean all groups;
//! - no option comes from a hole, and every volume made, renamed or removed but the volume itself
//!   has a name of ours (`NAME_snapslot_…`).

use snapslot_plugin_sdk::{CommandGrant, Grammar, Guard, ImageGrant, Role, hole};

/// The look: one process for everything a plan depends on.
pub(crate) const LOOK: &str = "look";
/// The same for LVM before 2.03.12, which does not know `lv_autoactivation`.
pub(crate) const LOOK_OLDER: &str = "look-older";

/// The numbers that volumes have inside their pool.
pub(crate) const NUMBERS: &str = "thin-numbers";

/// Takes a snapshot of a thin volume.
pub(crate) const TAKE_THIN: &str = "take-thin";
/// Takes a snapshot of a thick volume.
pub(crate) const TAKE_THICK: &str = "take-thick";
/// Removes a volume of ours.
pub(crate) const REMOVE: &str = "remove";
/// Makes the volume-to-be from the slot's snapshot. It is activated when it has the volume's name.
pub(crate) const MAKE: &str = "restore-make";
/// The same, to stay inactive.
pub(crate) const MAKE_INACTIVE: &str = "restore-make-inactive";
/// Makes the volume-to-be read-only, as the volume is.
pub(crate) const COPY_READ_ONLY: &str = "restore-copy-read-only";
/// Sets the activation-skip flag of the volume-to-be, as the volume has it.
pub(crate) const COPY_SKIP: &str = "restore-copy-skip";
/// Turns autoactivation off for the volume-to-be, as it is for the volume.
pub(crate) const COPY_NO_AUTO: &str = "restore-copy-no-autoactivation";
/// Gives the volume-to-be one of the volume's tags.
pub(crate) const COPY_TAG: &str = "restore-copy-tag";
/// Marks the volume as the one that will step aside.
pub(crate) const MARK_OLD: &str = "restore-mark-old";
/// Renames the volume out of the way.
pub(crate) const STEP_ASIDE: &str = "restore-step-aside";
/// Gives the volume-to-be the volume's name.
pub(crate) const STEP_IN: &str = "restore-step-in";
/// Gives the old volume its name back.
pub(crate) const STEP_BACK: &str = "restore-step-back";
/// Marks a thick volume as being restored.
pub(crate) const BEGIN: &str = "restore-begin";
/// The same for an inactive one, which is to be inactive again afterwards.
pub(crate) const BEGIN_INACTIVE: &str = "restore-begin-inactive";
/// Activates the volume.
pub(crate) const ACTIVATE: &str = "activate";
/// Merges the slot's snapshot into its thick volume.
pub(crate) const MERGE: &str = "restore-merge";
/// Has a merge begun that was put off, or go on.
pub(crate) const REFRESH: &str = "restore-refresh";
/// Deactivates the volume.
pub(crate) const DEACTIVATE: &str = "deactivate";
/// Takes our working tags off the volume.
pub(crate) const UNMARK: &str = "unmark";

/// What is asked of every logical volume. Fields of segments are left out on purpose: with one of
/// them `lvs` prints a row for each segment.
macro_rules! fields {
    () => {
        "vg_name,vg_free,vg_extent_size,lv_name,lv_uuid,lv_size,lv_attr,lv_layout,lv_role,\
         lv_tags,lv_time,lv_active,lv_device_open,lv_skip_activation,lv_health_status,\
         lv_snapshot_invalid,lv_merging,lv_merge_failed,origin,pool_lv,data_percent,\
         metadata_percent,snap_percent,lv_read_ahead,lv_minor"
    };
}

/// Settings of the administrator that would change the report's shape. In the form with slashes:
/// braces are for holes.
const REPORT_SHAPE: &str = "report/time_format=\"%s\" report/list_item_separator=\",\"";

/// Seconds for a look. A look waits for whoever holds the group's lock.
const LOOK_SECONDS: u32 = 120;
/// Seconds for a change of metadata.
const CHANGE_SECONDS: u32 = 600;
/// Seconds for a removal, which may have to discard every block.
const REMOVE_SECONDS: u32 = 7_200;
/// Seconds for a merge, which copies all that changed.
const MERGE_SECONDS: u32 = 86_400;

/// The queries.
pub(crate) fn queries() -> Vec<CommandGrant> {
    let look = |name: &str, fields: &str, reason: &str| {
        let words = [
            "lvs",
            "-a",
            "--units",
            "b",
            "--nosuffix",
            "--reportformat",
            "json",
            "--config",
            REPORT_SHAPE,
            "-o",
            fields,
            "{group}",
        ];
        grant(name, &words, LOOK_SECONDS, reason)
    };
    let all = vec![
        look(
            LOOK,
            concat!(fields!(), ",lv_autoactivation"),
            "to see the volume, its snapshots, its pool and what is free in its group",
        ),
        look(
            LOOK_OLDER,
            fields!(),
            "the same where LVM is older than 2.03.12 and refuses the other",
        ),
        look(
            NUMBERS,
            "lv_name,lv_uuid,pool_lv,thin_id",
            "to find a thin volume and its snapshot in the metadata of their pool",
        ),
    ];
    all.into_iter().map(with_holes).collect()
}

/// The metadata of the volume's thin pool.
pub(crate) fn pool_metadata() -> ImageGrant {
    ImageGrant {
        role: Role::PoolMetadata,
        changes: false,
        reason: "to tell what changed since a take without reading the volume".to_owned(),
    }
}

/// The actions.
pub(crate) fn actions() -> Vec<CommandGrant> {
    let mut all = taking();
    all.extend(thin_restore());
    all.extend(thick_restore());
    all.push(grant(
        UNMARK,
        &[
            "lvchange",
            "--deltag",
            "snapslot.new={mark}",
            "--deltag",
            "snapslot.old={mark}",
            "--deltag",
            "snapslot.restoring={mark}",
            "--deltag",
            "snapslot.inactive={mark}",
            "{group}/{volume}",
        ],
        CHANGE_SECONDS,
        "takes a restore's own marks off the volume when the restore is over",
    ));
    all.into_iter().map(with_holes).collect()
}

/// What take and delete need.
fn taking() -> Vec<CommandGrant> {
    vec![
        grant(
            TAKE_THIN,
            &[
                "lvcreate",
                "-y",
                "-s",
                "-pr",
                "-ky",
                "-n",
                "{snapshot}",
                "--addtag",
                "snapslot.mark={mark}",
                "--addtag",
                "snapslot.taken={seconds}.{nanoseconds}",
                "{group}/{volume}",
            ],
            CHANGE_SECONDS,
            "takes a read-only snapshot of a thin volume, kept out of activation",
        ),
        grant(
            TAKE_THICK,
            &[
                "lvcreate",
                "-y",
                "-s",
                "-L",
                "{room}b",
                "-n",
                "{snapshot}",
                "--addtag",
                "snapslot.mark={mark}",
                "--addtag",
                "snapslot.taken={seconds}.{nanoseconds}",
                "{group}/{volume}",
            ],
            CHANGE_SECONDS,
            "takes a snapshot of a thick volume, with a store of the given size for what changes",
        ),
        grant(
            REMOVE,
            &["lvremove", "-y", "--select", "lv_uuid={uuid}", "{group}/{own}"],
            REMOVE_SECONDS,
            "removes the slot's snapshot, or a volume of ours that a restore no longer needs; \
             only if it still is the one that was looked at",
        ),
    ]
}

/// What the restore of a thin volume needs.
fn thin_restore() -> Vec<CommandGrant> {
    let make = |name: &str, tags: &[&str], reason: &str| {
        let mut words = vec!["lvcreate", "-y", "-s", "-prw", "-kn", "-an", "-n", "{own}"];
        words.extend(["--addtag", "snapslot.new={mark}"]);
        words.extend(tags);
        words.push("{group}/{snapshot}");
        let guard = Some(same("{group}/{snapshot}"));
        CommandGrant { guard, ..grant(name, &words, CHANGE_SECONDS, reason) }
    };
    let change = |name: &str, words: &[&str], reason: &str| {
        let mut all = vec!["lvchange"];
        all.extend(words);
        all.push("{group}/{own}");
        grant(name, &all, CHANGE_SECONDS, reason)
    };
    vec![
        make(
            MAKE,
            &[],
            "makes the volume-to-be of a thin restore out of the slot's snapshot, not active yet",
        ),
        make(
            MAKE_INACTIVE,
            &["--addtag", "snapslot.inactive={mark}"],
            "the same for a volume that is not active, and that this one is not to be either",
        ),
        change(COPY_READ_ONLY, &["-pr"], "the volume-to-be is read-only if the volume is"),
        change(COPY_SKIP, &["-ky"], "it is skipped on activation if the volume is"),
        change(
            COPY_NO_AUTO,
            &["--setautoactivation", "n"],
            "it is not activated by itself if the volume is not",
        ),
        change(COPY_TAG, &["--addtag", "{tag}"], "it has the tags that the volume has"),
        CommandGrant {
            guard: Some(same_and_idle("{group}/{volume}")),
            ..grant(
                MARK_OLD,
                &["lvchange", "--addtag", "snapslot.old={mark}", "{group}/{volume}"],
                CHANGE_SECONDS,
                "marks the volume that will step aside, so that it is known by more than its name",
            )
        },
        CommandGrant {
            guard: Some(same_and_idle("{group}/{volume}")),
            ..grant(
                STEP_ASIDE,
                &["lvrename", "{group}", "{volume}", "{own}"],
                CHANGE_SECONDS,
                "the volume steps aside; only if nobody has it open",
            )
        },
        grant(
            STEP_IN,
            &["lvrename", "{group}", "{own}", "{volume}"],
            CHANGE_SECONDS,
            "the volume made from the snapshot takes its name",
        ),
        CommandGrant {
            guard: Some(same("{group}/{own}")),
            ..grant(
                STEP_BACK,
                &["lvrename", "{group}", "{own}", "{volume}"],
                CHANGE_SECONDS,
                "the volume gets its name back if the restore cannot go on",
            )
        },
    ]
}

/// What the restore of a thick volume needs.
fn thick_restore() -> Vec<CommandGrant> {
    vec![
        CommandGrant {
            guard: Some(same_and_idle("{group}/{volume}")),
            ..grant(
                BEGIN,
                &["lvchange", "--addtag", "snapslot.restoring={mark}", "{group}/{volume}"],
                CHANGE_SECONDS,
                "marks a thick volume as being restored; only if nobody has it open",
            )
        },
        CommandGrant {
            guard: Some(same_and_idle("{group}/{volume}")),
            ..grant(
                BEGIN_INACTIVE,
                &[
                    "lvchange",
                    "--addtag",
                    "snapslot.restoring={mark}",
                    "--addtag",
                    "snapslot.inactive={mark}",
                    "{group}/{volume}",
                ],
                CHANGE_SECONDS,
                "the same, and that it is to be inactive again afterwards",
            )
        },
        grant(
            ACTIVATE,
            &["lvchange", "-ay", "-K", "{group}/{volume}"],
            CHANGE_SECONDS,
            "a merge goes on only while its volume is active; and a volume that stepped in is active if \
             the one before it was",
        ),
        CommandGrant {
            guard: Some(same_and_idle("{group}/{snapshot}")),
            ..grant(
                MERGE,
                &["lvconvert", "-y", "-i", "1", "--merge", "{group}/{snapshot}"],
                MERGE_SECONDS,
                "merges the slot's snapshot into its thick volume, which is the restore; LVM \
                 removes the snapshot with it, and it is taken again at once",
            )
        },
        grant(
            REFRESH,
            &["lvchange", "--refresh", "{group}/{volume}"],
            CHANGE_SECONDS,
            "has a merge begun that was put off or broken off, and wakes a volume that a killed \
             command left suspended",
        ),
        grant(
            DEACTIVATE,
            &["lvchange", "-an", "{group}/{volume}"],
            CHANGE_SECONDS,
            "nobody has a volume open that lets itself be deactivated, and it loses what a killed \
             command left; and one that was not active before its restore is not afterwards",
        ),
    ]
}

/// A guard: the volume of this name is the one with the UUID given.
fn same(volume: &str) -> Guard {
    let template = ["lvs", "--noheadings", "-o", "lv_uuid", volume];
    Guard { template: template.map(str::to_owned).to_vec(), equals: "uuid".to_owned() }
}

/// A guard: the same, and nobody has it open. An open volume is not shown, so that the answer is
/// empty and not the UUID.
fn same_and_idle(volume: &str) -> Guard {
    let template =
        ["lvs", "--noheadings", "-o", "lv_uuid", "--select", "lv_device_open!=open", volume];
    Guard { template: template.map(str::to_owned).to_vec(), equals: "uuid".to_owned() }
}

/// A grant, yet without its holes.
fn grant(name: &str, words: &[&str], deadline_seconds: u32, reason: &str) -> CommandGrant {
    CommandGrant {
        name: name.to_owned(),
        template: words.iter().map(|&w| w.to_owned()).collect(),
        holes: Vec::new(),
        input: None,
        guard: None,
        deadline_seconds,
        reason: reason.to_owned(),
    }
}

/// Declares the holes of a grant: those its template and its guard name.
fn with_holes(mut grant: CommandGrant) -> CommandGrant {
    const ALL: [(&str, Grammar); 10] = [
        ("group", Grammar::LvmGroup),
        ("volume", Grammar::LvmVolume),
        ("snapshot", Grammar::LvmOwn),
        ("own", Grammar::LvmOwn),
        ("mark", Grammar::Mark),
        ("uuid", Grammar::Uuid),
        ("seconds", Grammar::Number),
        ("nanoseconds", Grammar::Number),
        ("room", Grammar::Number),
        ("tag", Grammar::LvmTag),
    ];
    let guard = grant.guard.as_ref();
    let guarded = guard.map(|g| g.template.as_slice()).unwrap_or_default();
    let stands = |name: &str| {
        let place = format!("{{{name}}}");
        guard.is_some_and(|g| g.equals == name)
            || grant.template.iter().chain(guarded).any(|word| word.contains(&place))
    };
    let holes = ALL.iter().filter(|(name, _)| stands(name));
    grant.holes = holes.map(|&(name, grammar)| hole(name, grammar)).collect();
    grant
}
