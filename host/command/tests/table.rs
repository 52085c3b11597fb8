//! Goal: of what a plugin declares nothing gets past the host's table, whoever approves it: no other
//! volume, no group, no pool, no option of its own, no program. Method: grants that did get past it
//! once, each of which this host would have run as root; and those of the built-in plugins' kind,
//! which must still be had.

use std::path::Path;

use snapslot_command::{Grammar, Grant, Guard, Hole, Place, PlaceKind, Purpose, table_in_words};

/// Every grammar, under its name in the contract.
const GRAMMARS: [(&str, Grammar); 12] = [
    ("lvm-group", Grammar::LvmGroup),
    ("lvm-volume", Grammar::LvmVolume),
    ("zfs-pool", Grammar::ZfsPool),
    ("zfs-dataset", Grammar::ZfsDataset),
    ("path", Grammar::Path),
    ("lvm-own", Grammar::LvmOwn),
    ("zfs-own", Grammar::ZfsOwn),
    ("path-own", Grammar::PathOwn),
    ("mark", Grammar::Mark),
    ("number", Grammar::Number),
    ("uuid", Grammar::Uuid),
    ("lvm-tag", Grammar::LvmTag),
];

/// A grant of these words, divided by `~`; its holes are named as their grammars are.
fn grant(line: &str) -> Grant {
    let holes = GRAMMARS.iter().filter(|(name, _)| line.contains(&format!("{{{name}}}")));
    Grant {
        name: "x".to_owned(),
        template: line.split('~').filter(|w| !w.is_empty()).map(str::to_owned).collect(),
        holes: holes.map(|&(name, grammar)| Hole { name: name.to_owned(), grammar }).collect(),
        input: None,
        guard: None,
        deadline_seconds: 60,
    }
}

use PlaceKind::{Directory, Image, LvmVolume as Lvm, ZfsDataset as Zfs};
use Purpose::{Change, Look};

#[test]
fn what_the_table_has_is_had() {
    let good = [
        (
            Lvm,
            Look,
            "lvs~-a~--units~b~--nosuffix~--reportformat~json~--config~report/time_format=\"%s\" report/list_item_separator=\",\"~-o~lv_name,lv_uuid~{lvm-group}",
        ),
        (
            Lvm,
            Look,
            "lvs~--noheadings~-o~lv_uuid~--select~lv_device_open!=open~{lvm-group}/{lvm-volume}",
        ),
        (Lvm, Look, "lvs~--select~lv_uuid={uuid}~{lvm-group}"),
        (Lvm, Look, "vgs~-o~vg_free~{lvm-group}"),
        (
            Lvm,
            Change,
            "lvcreate~-y~-s~-pr~-ky~-n~{lvm-own}~--addtag~snapslot.mark={mark}~{lvm-group}/{lvm-volume}",
        ),
        (Lvm, Change, "lvcreate~-y~-s~-L~{number}b~-n~{lvm-own}~{lvm-group}/{lvm-volume}"),
        (Lvm, Change, "lvremove~-y~--select~lv_uuid={uuid}~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvchange~--addtag~{lvm-tag}~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvchange~--setautoactivation~n~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvconvert~-y~-i~1~--merge~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvrename~{lvm-group}~{lvm-volume}~{lvm-own}"),
        (Zfs, Look, "zfs~get~-Hp~-o~value~written@{zfs-own}~{zfs-dataset}"),
        (Zfs, Look, "zfs~get~-Hp~all~{zfs-dataset}"),
        (Zfs, Look, "zfs~list~-Hp~-t~all~-d~1~-o~name,snapslot:mark~{zfs-dataset}"),
        (Zfs, Look, "zfs~holds~-H~{zfs-dataset}@{zfs-own}"),
        (Zfs, Change, "zfs~snapshot~-o~snapslot:taken={number}.{number}~{zfs-dataset}@{zfs-own}"),
        (Zfs, Change, "zfs~rollback~{zfs-dataset}@{zfs-own}"),
        (Directory, Look, "btrfs~subvolume~show~{path}"),
        (Directory, Change, "btrfs~subvolume~snapshot~-r~{path}~{path-own}"),
        (Directory, Change, "btrfs~subvolume~delete~{path-own}"),
    ];
    for (kind, purpose, line) in good {
        let checked = grant(line).check(kind, purpose);
        assert!(checked.is_ok(), "{line}: {checked:?}");
    }
}

#[test]
fn what_it_has_not_is_refused_whoever_approves_it() {
    let bad = [
        // Story: a plugin of images, which needs no tool at all, asked for this and could have it.
        (Image, Change, "zfs~destroy~-r~tank"),
        (Image, Look, "lvs~{path}"),
        // A tool of other storage.
        (Lvm, Change, "zfs~destroy~{zfs-dataset}@{zfs-own}"),
        (Zfs, Look, "lvs~{lvm-group}"),
        (Directory, Look, "zfs~list~{zfs-dataset}"),
        // Story: a tag that stood in an option's own word made `--config` of it, and a look wrote a
        // log to any file, as root, while a status was looked at.
        (Lvm, Look, "lvs~-dddddd~--c{lvm-tag}~{lvm-group}"),
        (Lvm, Look, "lvs~--{lvm-tag}~{lvm-group}"),
        (Lvm, Look, "lvs~-{lvm-tag}~{lvm-group}"),
        (Lvm, Look, "lvs~--config~{lvm-tag}~{lvm-group}"),
        (Lvm, Look, "lvs~--config~report/x={lvm-tag}~{lvm-group}"),
        (Lvm, Look, "lvs~--select~{lvm-tag}~{lvm-group}"),
        (Lvm, Look, "lvs~--select~lv_tags={lvm-tag}~{lvm-group}"),
        (Lvm, Look, "lvs~-o~{lvm-tag}~{lvm-group}"),
        // Options cut short, which LVM takes for the whole.
        (Lvm, Look, "lvs~--com~x~{lvm-group}"),
        (Lvm, Look, "lvs~--pr~x~{lvm-group}"),
        (Lvm, Look, "lvs~--pro~x~{lvm-group}"),
        (Lvm, Look, "lvs~--conf~log{file=\"/x\"}~{lvm-group}"),
        (Lvm, Look, "vgs~--commandprofile~x~{lvm-group}"),
        (Lvm, Look, "vgs~--profile~x~{lvm-group}"),
        (Lvm, Look, "lvs~--config=log/file=\"/x\"~{lvm-group}"),
        (Lvm, Look, "lvs~--config~log{file=\"/etc/cron.d/x\"}~{lvm-group}"),
        (Lvm, Look, "lvs~--config~log/file=\"/etc/cron.d/x\"~{lvm-group}"),
        (Lvm, Look, "lvs~--config~report/x=\"1\" log/file=\"/x\"~{lvm-group}"),
        (Lvm, Look, "lvs~--config~report/x=\"1\"log/file=\"/x\"~{lvm-group}"),
        (Lvm, Look, "lvs~--config~report/x=\"1\\\" log/file=\"/x\"~{lvm-group}"),
        (Lvm, Look, "lvs~--config~report/x=\"1~{lvm-group}"),
        (Lvm, Look, "lvs~--config~report{x=1}log{file=\"/x\"}~{lvm-group}"),
        (Lvm, Look, "vgs~{lvm-group}~--config"),
        // A setting that has LVM run a program as root.
        (
            Lvm,
            Change,
            "lvremove~-y~--config~global/thin_check_executable=\"/x\"~{lvm-group}/{lvm-own}",
        ),
        (Lvm, Change, "lvremove~-y~--conf~report/x=\"1\"~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvchange~--profile~x~{lvm-group}/{lvm-own}"),
        // Looks that show everything.
        (Lvm, Look, "lvs"),
        (Lvm, Look, "lvs~-a"),
        (Lvm, Look, "vgs~--noheadings"),
        (Zfs, Look, "zfs~list"),
        (Zfs, Look, "zfs~get~all"),
        (Directory, Look, "btrfs~filesystem~show"),
        // A group where a volume is expected means all its volumes; a number or mark names another.
        (Lvm, Change, "lvremove~-y~{lvm-group}"),
        (Lvm, Change, "lvchange~-an~{lvm-group}"),
        (Lvm, Change, "lvremove~-y~vg0"),
        (Lvm, Change, "lvremove~-y~vg0/vm2"),
        (Lvm, Change, "lvremove~-y"),
        (Lvm, Change, "lvremove~-y~{lvm-tag}"),
        (Lvm, Change, "lvremove~-y~@{lvm-tag}"),
        (Lvm, Change, "lvremove~-y~{lvm-group}/{lvm-tag}"),
        (Lvm, Change, "lvremove~-y~{lvm-group}/{mark}"),
        (Lvm, Change, "lvremove~-y~{lvm-group}/{number}"),
        (Lvm, Change, "lvremove~-y~{uuid}"),
        (Lvm, Change, "lvremove~-y~{uuid}/{lvm-own}"),
        (Lvm, Change, "lvremove~-y~{lvm-own}"),
        (Lvm, Change, "lvremove~-y~{lvm-group}/{lvm-volume}"),
        (Lvm, Change, "lvremove~-y~{lvm-group}/{lvm-own}~{lvm-group}"),
        (Lvm, Change, "lvremove~-y~--select~{lvm-tag}~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvremove~-ff~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvremove~--~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvconvert~--merge~{lvm-group}/{lvm-volume}"),
        (Lvm, Change, "lvconvert~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvcreate~-s~-n~{mark}~{lvm-group}/{lvm-volume}"),
        (Lvm, Change, "lvcreate~-s~{lvm-group}/{lvm-volume}"),
        (Lvm, Change, "lvcreate~-n~{lvm-own}~{lvm-group}/{lvm-volume}"),
        (Lvm, Change, "lvrename~{lvm-group}~{lvm-volume}~{lvm-tag}"),
        (Lvm, Change, "lvrename~{lvm-group}~{lvm-volume}"),
        (Lvm, Change, "lvchange~--addtag~-{lvm-tag}~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "lvchange~{lvm-group}/{lvm-own}~--addtag"),
        (Zfs, Change, "zfs~destroy~-r~{zfs-dataset}@{zfs-own}"),
        (Zfs, Change, "zfs~destroy~{zfs-dataset}"),
        (Zfs, Change, "zfs~destroy~{zfs-pool}"),
        (Zfs, Change, "zfs~destroy~tank/other"),
        (Zfs, Change, "zfs~destroy~{zfs-pool}/{mark}"),
        (Zfs, Change, "zfs~destroy~{zfs-dataset}/{mark}@{zfs-own}"),
        (Zfs, Change, "zfs~destroy~{zfs-dataset}@{number}"),
        (Zfs, Change, "zfs~destroy~-r~{lvm-tag}"),
        (Zfs, Change, "zfs~rollback~-r~{zfs-dataset}@{zfs-own}"),
        (Zfs, Change, "zfs~snapshot~-r~{zfs-dataset}@{zfs-own}"),
        (Zfs, Change, "zfs~snapshot~-o~quota={number}~{zfs-dataset}@{zfs-own}"),
        (Zfs, Change, "zfs~set~mountpoint=/etc~{zfs-dataset}"),
        (Zfs, Change, "zfs~receive~{zfs-dataset}"),
        (Zfs, Look, "zfs~destroy~{zfs-dataset}@{zfs-own}"),
        (Directory, Change, "btrfs~subvolume~delete~{path}"),
        (Directory, Change, "btrfs~subvolume~delete~/"),
        (Directory, Change, "btrfs~device~delete~{path}"),
        (Directory, Look, "btrfs~subvolume~delete~{path-own}"),
        (Lvm, Look, "lvremove~{lvm-group}/{lvm-own}"),
        (Lvm, Change, "sh~-c~x"),
        (Lvm, Look, ""),
    ];
    for (kind, purpose, line) in bad {
        let checked = grant(line).check(kind, purpose);
        let Err(error) = checked else { panic!("{line} was let through") };
        println!("{error}");
    }
    println!("{} grants", bad.len());
}

#[test]
fn a_guard_only_looks_and_a_program_inside_zfs_is_a_known_one() {
    let sound = grant("lvremove~-y~{lvm-group}/{lvm-own}");
    let guarded = |line: &str| Grant {
        holes: [
            sound.holes.clone(),
            vec![Hole { name: "uuid".to_owned(), grammar: Grammar::Uuid }],
        ]
        .concat(),
        guard: Some(Guard { template: grant(line).template, equals: "uuid".to_owned() }),
        ..sound.clone()
    };
    guarded("lvs~-o~lv_uuid~{lvm-group}/{lvm-own}").check(Lvm, Change).expect("a guard");
    for line in
        ["lvs", "lvremove~-y~{lvm-group}/{lvm-own}", "lvs~--config~log/file=\"/x\"~{lvm-group}"]
    {
        assert!(guarded(line).check(Lvm, Change).is_err(), "{line}");
    }
    let line = "zfs~program~-j~{zfs-pool}~-~{zfs-dataset}~{zfs-own}~{number}";
    let program = |text: Option<&str>| Grant { input: text.map(str::to_owned), ..grant(line) };
    let known = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/zfs/src/destroy.lua");
    let known = std::fs::read_to_string(known).expect("it");
    program(Some(&known)).check(Zfs, Change).expect("a known program");
    let other = format!("{known}\nzfs.sync.destroy(\"tank/other\")\n");
    for text in [None, Some(""), Some(other.as_str())] {
        assert!(program(text).check(Zfs, Change).is_err(), "{text:?}");
    }
    let fed =
        Grant { input: Some("x".to_owned()), ..grant("zfs~rollback~{zfs-dataset}@{zfs-own}") };
    assert!(fed.check(Zfs, Change).is_err());
    // A file of the plugin's naming is no program, whatever is in it.
    let file = Grant { input: Some(known), ..grant("zfs~program~{zfs-pool}~/tmp/x~{zfs-dataset}") };
    assert!(file.check(Zfs, Change).is_err());
}

#[test]
fn no_value_leaves_its_place_in_a_command() {
    let place = Place::parse(Lvm, "vg/vm1").expect("a place");
    let tagged = grant("lvchange~--addtag~{lvm-tag}~{lvm-group}/{lvm-own}");
    tagged.check(Lvm, Change).expect("a grant");
    let filled =
        |tag: &str| tagged.fill(&place, &[("lvm-tag", tag), ("lvm-own", "vm1_snapslot_1")]);
    let command = filled("a=b/c:d").expect("filled").command;
    assert_eq!(command.arguments, ["--addtag", "a=b/c:d", "vg/vm1_snapslot_1"]);
    for bad in ["", "-x", "--config", "a b", "a\nb", "a\"b", "ä"] {
        assert!(filled(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_guide_shows_the_table() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/GUIDE.md");
    let guide = std::fs::read_to_string(guide).expect("the guide");
    let lacks = |line: &String| !guide.lines().any(|l| l.trim() == line);
    let lacking: Vec<String> = table_in_words().into_iter().filter(lacks).collect();
    assert!(lacking.is_empty(), "the guide lacks these lines:\n{}", lacking.join("\n"));
}
