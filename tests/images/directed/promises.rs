//! What each verb promises about the image, and about bytes it leaves alone.

use std::os::unix::fs::MetadataExt;

use snapslot_test_support::assert_same;

use super::{Case, MIB, assert_disk};

fn some_data(options: &[&str]) -> Case {
    let case = Case::new(options, 4 * MIB);
    case.fill(1, 0, MIB);
    case.fill(2, 3 * MIB, 64 << 10);
    case
}

#[test]
fn a_held_slot_refuses_a_second_take() {
    let case = some_data(&[]);
    let name = case.done("take", &["--note", "before the upgrade"]).snapshot_name();
    let refusal = case.refused("take", &[], 3);
    let told = refusal.expect(3);
    assert_eq!(told["error"]["code"], "slot-held");
    let names: Vec<String> = case.image.snapshots().into_iter().map(|s| s.name).collect();
    assert_eq!(names, [name]);
}

#[test]
fn an_empty_slot_has_nothing_to_restore_or_delete() {
    let case = some_data(&[]);
    case.done("take", &[]);
    case.done("delete", &[]);
    assert_eq!(case.refused("restore", &[], 4).expect(4)["error"]["code"], "slot-empty");
    case.refused("delete", &[], 4);
}

#[test]
fn restoring_an_unchanged_disk_writes_nothing() {
    for options in [&[][..], &["cluster_size=512"], &["compat=0.10"], &["extended_l2=on"]] {
        let case = some_data(options);
        case.done("take", &[]);
        let before = case.image.bytes();
        let stamp = || {
            let found = std::fs::metadata(case.image.path()).expect("the image");
            (found.mtime(), found.mtime_nsec(), found.ino())
        };
        let was = stamp();
        let outcome = case.done("restore", &[]);
        assert_eq!(stamp(), was, "{options:?}: the image was written to or replaced");
        assert_same("the image", &case.image.bytes(), &before);
        let executed = &outcome.expect(0)["volumes"][0]["executed"];
        assert!(
            executed.is_null() || (executed["flushes"] == 0 && executed["bytes-written"] == 0),
            "{options:?}: {executed}"
        );
    }
}

#[test]
fn restore_keeps_the_snapshot_and_consume_empties_the_slot() {
    let case = some_data(&[]);
    let reference = case.image.active();
    case.done("take", &[]);
    for byte in [7, 8] {
        case.fill(byte, 0, 2 * MIB);
        let outcome = case.done("restore", &[]);
        assert_eq!(outcome.slot(), "held");
        assert_disk(&case, &reference);
    }
    case.fill(9, MIB, MIB);
    assert_eq!(case.done("restore", &["--consume"]).slot(), "empty");
    assert_disk(&case, &reference);
    assert_eq!(case.image.snapshots(), []);
}

#[test]
fn a_dry_run_shows_the_plan_and_touches_nothing() {
    let case = some_data(&["cluster_size=4k"]);
    let steps = |verb: &str| {
        let before = case.image.bytes();
        let outcome = case.verb(verb, &["--dry-run"]);
        assert_same("the image after a dry run", &case.image.bytes(), &before);
        let json = outcome.expect(0);
        assert_eq!(json["changed"], false, "{verb}: {json}");
        json["volumes"][0]["plan"]["steps"].as_u64().expect("a count of steps")
    };
    assert!(steps("take") > 0);
    case.done("take", &[]);
    assert_eq!(steps("restore"), 0, "an unchanged disk needs no step");
    case.fill(3, 0, MIB);
    assert!(steps("restore") > 0);
    assert!(steps("delete") > 0);
}

#[test]
fn replacing_gives_the_new_content_and_leaves_one_snapshot() {
    let case = some_data(&[]);
    let old = case.done("take", &[]).snapshot_name();
    case.fill(5, MIB, MIB);
    let reference = case.image.active();
    let new = case.done("take", &["--replace"]).snapshot_name();
    assert_ne!(old, new);
    let names: Vec<String> = case.image.snapshots().into_iter().map(|s| s.name).collect();
    assert_eq!(names, std::slice::from_ref(&new));
    assert_same("the new snapshot", &case.image.snapshot(&new), &reference);
    case.fill(6, 0, 4 * MIB);
    case.done("restore", &[]);
    assert_disk(&case, &reference);
}

/// QEMU must keep a snapshot whole when the guest writes over every byte afterwards: it goes by
/// refcounts and COPIED flags, which `qemu-img check` trusts in part.
#[test]
fn a_guest_that_overwrites_everything_leaves_the_snapshot_whole() {
    for options in [&["cluster_size=512"][..], &["compat=0.10"], &["extended_l2=on"]] {
        let case = some_data(options);
        let reference = case.image.active();
        let name = case.done("take", &[]).snapshot_name();
        case.fill(0xee, 0, 4 * MIB);
        case.image.assert_clean();
        assert_same("the snapshot", &case.image.snapshot(&name), &reference);
        case.done("restore", &[]);
        assert_disk(&case, &reference);
        // The restored disk shares clusters with the snapshot: once more.
        case.fill(0xdd, 0, 4 * MIB);
        assert_same("the snapshot", &case.image.snapshot(&name), &reference);
        case.done("delete", &[]);
        assert_disk(&case, &[0xdd; 4 << 20]);
    }
}

/// After a delete nothing is shared any more, so a guest's write goes to the cluster that is
/// there: with the COPIED flags wrong QEMU would allocate, and the file would grow.
#[test]
fn after_a_delete_the_guest_writes_in_place() {
    for options in [&["cluster_size=4k"][..], &["compat=0.10"], &["extended_l2=on"]] {
        let case = some_data(options);
        case.done("take", &[]);
        case.done("delete", &[]);
        let length = case.image.bytes().len();
        case.fill(0xaa, 0, MIB);
        case.image.assert_clean();
        assert_eq!(case.image.bytes().len(), length, "{options:?}: the guest's write allocated");
    }
}
