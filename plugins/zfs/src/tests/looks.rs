//! What a look makes of a listing.

use snapslot_plugin_sdk::{FailureKind, Snapshot};

use super::*;

fn slot(guid: u64, mark: &str, size: u64) -> Snapshot {
    Snapshot {
        identity: guid.to_string(),
        name: format!("snapslot-{mark}"),
        mark: Some(mark.to_owned()),
        taken_seconds: 1_795_344_146,
        taken_nanoseconds: 5,
        virtual_size: size,
        vm_state_size: 0,
        lost: false,
    }
}

fn codes(facts: &Facts) -> Vec<&str> {
    assert!(facts.findings.iter().all(|f| !f.blocks && !f.message.is_empty()));
    facts.findings.iter().map(|f| f.code.as_str()).collect()
}

#[test]
fn a_volume_and_its_snapshot() {
    let empty = facts(&seen("setup", "tank/vm1", 0));
    assert_eq!(empty.virtual_size, 32 << 20);
    assert_eq!((empty.format.as_str(), empty.snapshots.len()), ("ZFS volume", 0));
    let held = facts(&seen("zvol", "tank/vm1", 0));
    assert_eq!(held.virtual_size, 32 << 20);
    assert_eq!(held.snapshots, [slot(10574076448428932593, MARK, 32 << 20)]);
    assert_eq!((codes(&held), &held.unfinished), (vec![], &None));
}

/// Children and neighbours come along in the listing, and are not of it.
#[test]
fn a_file_system_among_others() {
    let alone = facts(&seen("setup", "tank/ds", 0));
    assert_eq!((alone.virtual_size, alone.format.as_str()), (0, "ZFS file system"));
    let held = facts(&seen("fs", "tank/ds", 1));
    assert_eq!(held.snapshots, [slot(14611376746204108196, MARK, 0)]);
    let pool = facts(&seen("setup", "tank", 0));
    assert_eq!((pool.format.as_str(), pool.snapshots.len()), ("ZFS file system", 0));
    // A snapshot of a dataset whose name begins alike.
    let alike = with_of("tank/vm1", said("zvol", "receive_resume_token", 0));
    let alike = answering("tank/vm", alike);
    assert_eq!(Zfs::inspect(&alike).map_err(|f| f.code), Err("unknown-answer".to_owned()));
}

/// Order is that of transaction groups; `creation` has whole seconds. Names may have spaces.
#[test]
fn foreign_snapshots_in_order() {
    let facts = facts(&seen("zvol", "tank/vm1", 3));
    let names: Vec<&str> = facts.snapshots.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["snapslot-0123456789abcdef", "daily-1", "daily-2", "with space"]);
    let last = &facts.snapshots[3];
    assert_eq!(last.identity, "12721749188957276663");
    assert_eq!((last.mark.as_ref(), last.taken_seconds), (None, 1_795_445_676));
    assert_eq!(codes(&facts), ["newer-snapshots"]);
    // The same lines upside down.
    let mut target = seen("zvol", "tank/vm1", 3);
    let text = String::from_utf8(target.answers[0].1.output.clone()).expect("text");
    let lines: Vec<&str> = text.lines().rev().collect();
    target.answers[0].1.output = lines.join("\n").into_bytes();
    assert_eq!(super::facts(&target), facts);
}

/// A snapshot keeps the size of its time, and a rollback brings it back.
#[test]
fn a_volume_that_was_grown() {
    let grown = facts(&seen("grow", "tank/vm1", 0));
    assert_eq!((grown.virtual_size, grown.snapshots[0].virtual_size), (48 << 20, 32 << 20));
    let back = facts(&seen("grow", "tank/vm1", 1));
    assert_eq!((back.virtual_size, &back.snapshots), (32 << 20, &grown.snapshots));
}

#[test]
fn encrypted_with_and_without_its_key() {
    let open = facts(&seen("encrypted", "tank/enc", 0));
    let locked = facts(&seen("encrypted", "tank/enc", 1));
    assert_eq!(open.format, "ZFS volume, encrypted");
    assert_eq!(locked.format, "ZFS volume, encrypted, key not loaded");
    assert_eq!((locked.virtual_size, &locked.snapshots), (16 << 20, &open.snapshots));
    let files = facts(&seen("encrypted", "tank/encfs", 0));
    assert_eq!(files.format, "ZFS file system, encrypted, key not loaded");
    assert_eq!(files.snapshots.len(), 1);
}

/// The dataset's own property shows on every snapshot of it; only name and mark together count.
#[test]
fn an_inherited_mark_is_nobodys() {
    let facts = facts(&seen("names", "tank/vm1", 0));
    assert_eq!(facts.snapshots.len(), 2);
    assert!(facts.snapshots.iter().all(|s| s.mark.is_none()));
    assert_eq!(facts.snapshots[0].taken_seconds, 1_795_445_712, "its creation");
    assert_eq!(codes(&facts), ["name-clash"]);
}

/// Story: `zfs send -R` takes user properties along. The replica's snapshot, and one that moved to a
/// clone by `zfs promote`, was taken for the slot of the dataset it came to.
#[test]
fn a_snapshot_of_another_dataset_is_no_slot() {
    let own = format!("tank/vm1@snapslot-{MARK}");
    for of in ["-", "", "1", "170659919632531780520"] {
        let target = changed(seen("zvol", "tank/vm1", 0), &own, "snapslot:of", of);
        let facts = facts(&target);
        assert_eq!(facts.snapshots[0].mark, None, "{of:?}");
        assert_eq!(codes(&facts), ["name-clash"], "{of:?}");
        assert!(facts.findings[0].message.contains("another dataset"), "{:?}", facts.findings);
        let goal = restored(10574076448428932593);
        assert_eq!(refused(&target, &goal).code, "renamed", "{of:?}");
    }
}

#[test]
fn a_dataset_that_is_gone_and_a_pool_that_is_not_there() {
    let look = said("setup", "tank/nope", 0);
    let asked = |pool: i32| MemoryTarget {
        place: "tank/nope".to_owned(),
        answers: vec![
            (LOOK.to_owned(), look.clone()),
            (
                grants::POOL.to_owned(),
                Answer { exit_code: pool, output: Vec::new(), errors: Vec::new() },
            ),
        ],
        ..MemoryTarget::default()
    };
    let gone = Zfs::inspect(&asked(0)).expect_err("no such dataset");
    assert_eq!((gone.kind, gone.code.as_str()), (FailureKind::NotFound, "no-volume"));
    let away = Zfs::inspect(&asked(1)).expect_err("no such pool");
    assert_eq!((away.kind, away.code.as_str()), (FailureKind::Io, "no-pool"));
    assert!(away.message.contains("zpool import"), "{}", away.message);
}

/// ZFS takes tabs and line ends in user properties and prints them as they are.
#[test]
fn a_property_that_tears_its_line() {
    let facts = facts(&seen("names", "tank/vm1", 1));
    let names: Vec<&str> = facts.snapshots.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["snapslot-fedcba9876543210", "other"]);
    // One column more than there are.
    let more = changed(seen("names", "tank/vm1", 0), "tank/vm1@other", "snapslot:mark", "a\tb");
    assert_eq!(super::facts(&more).snapshots.len(), 2);
    // In a line that says whether a snapshot is ours that would hide it.
    let ours = "tank/vm1@snapslot-fedcba9876543210";
    for name in ["tank/vm1", ours] {
        let torn = changed(seen("names", "tank/vm1", 1), name, "snapslot:of", "1\tb");
        let refused = Zfs::inspect(&torn).expect_err("a look at a torn line");
        assert_eq!(refused.code, "unknown-answer");
        assert!(refused.message.contains(name), "{}", refused.message);
    }
}

/// Ours with a time that somebody spoiled is still ours.
#[test]
fn a_spoiled_time() {
    let name = format!("tank/vm1@snapslot-{MARK}");
    for bad in ["-", "", "5", "1.1000000000", "-1.5", "1.5.5", "x.y"] {
        let target = changed(seen("zvol", "tank/vm1", 0), &name, "snapslot:taken", bad);
        let snapshot = &facts(&target).snapshots[0];
        assert_eq!(snapshot.mark.as_deref(), Some(MARK), "{bad:?}");
        assert_eq!((snapshot.taken_seconds, snapshot.taken_nanoseconds), (1_795_445_666, 0));
    }
}

#[test]
fn what_stands_in_the_way_is_told_before() {
    let told = |section, dataset, n| facts(&seen(section, dataset, n)).findings;
    let one = |section, dataset, n, code: &str, part: &str| {
        let findings = told(section, dataset, n);
        assert_eq!(findings.len(), 1, "{section}: {findings:?}");
        assert_eq!(findings[0].code, code, "{section}");
        assert!(findings[0].message.contains(part), "{section}: {}", findings[0].message);
    };
    one("holds", "tank/vm1", 0, "held", "2 holds");
    one("clones", "tank/vm1", 0, "cloned", "tank/cl, tank/cl2");
    one("refquota", "tank/ds", 0, "refquota", "1048576");
    one("receiving", "tank/rec", 0, "receiving", "zfs receive -A tank/rec");
    one("zvol", "tank/vm1", 4, "newer-bookmarks", "tank/vm1#mark");
    let doomed = facts(&seen("clones", "tank/vm1", 1));
    assert_eq!(codes(&doomed), ["cloned", "doomed"]);
    let full = changed(seen("full", "tank/res", 0), "tank/res", "available", "0");
    assert_eq!(codes(&facts(&full)), ["full"]);
}

#[test]
fn a_place_that_is_no_dataset() {
    for place in ["tank/vm1@a", "tank/vm1#a"] {
        // It has no answers: nothing may be asked.
        let target = MemoryTarget { place: place.to_owned(), ..MemoryTarget::default() };
        let failure = Zfs::inspect(&target).expect_err(place);
        assert_eq!(
            (failure.kind, failure.code.as_str()),
            (FailureKind::Unsupported, "not-a-dataset")
        );
    }
}

/// A listing that is not understood wholly is not believed in part.
#[test]
fn listings_nobody_knows() {
    let sound = seen("zvol", "tank/vm1", 3);
    let text = String::from_utf8(sound.answers[0].1.output.clone()).expect("text");
    facts(&sound);
    let own = format!("tank/vm1@snapslot-{MARK}");
    let cut = text.trim_end().rsplit_once('\t').expect("columns").0.to_owned();
    let spoiled: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("rubbish", b"segmentation fault\n".to_vec()),
        ("bytes", vec![0xff, 0xfe, 0x00]),
        ("only snapshots", text.split_once('\n').expect("lines").1.as_bytes().to_vec()),
        ("a line cut short", cut.into_bytes()),
        ("the volume twice", format!("{text}{text}").into_bytes()),
        ("spaces for tabs", text.replace('\t', " ").into_bytes()),
    ];
    for (what, output) in spoiled {
        let answer = Answer { exit_code: 0, output, errors: Vec::new() };
        let failure = Zfs::inspect(&answering("tank/vm1", answer)).expect_err(what);
        assert_eq!(failure.code, "unknown-answer", "{what}");
        assert_eq!(failure.kind, FailureKind::Unsupported, "{what}");
    }
    let fields = [
        ("tank/vm1", "type", "snapshot"),
        ("tank/vm1", "volsize", "-"),
        ("tank/vm1", "volsize", "32M"),
        ("tank/vm1", "available", "-1"),
        ("tank/vm1", "written", ""),
        (&own, "type", "volume"),
        (&own, "guid", "18446744073709551616"),
        (&own, "createtxg", "-"),
        (&own, "userrefs", "-"),
        (&own, "used", "1.5K"),
    ];
    for (name, column, value) in fields {
        let target = changed(seen("zvol", "tank/vm1", 3), name, column, value);
        let failure = Zfs::inspect(&target).expect_err(column);
        assert_eq!(failure.code, "unknown-answer", "{column} of {name} is {value:?}");
        let shown = column == "type" || failure.message.contains(column);
        assert!(shown, "{}", failure.message);
    }
}
