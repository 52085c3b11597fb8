//! Machines with several volumes: one slot, all or none.

use snapslot_test_support::{Outcome, Scratch, Snapslot, journal_of};

use crate::{image, snapslot};

fn verb(snapslot: &Snapslot, verb: &str, more: &[&str]) -> Outcome {
    let mut arguments = vec![verb, "vm1"];
    if matches!(verb, "restore" | "delete") {
        arguments.push("--yes");
    }
    arguments.extend(more);
    snapslot.run(arguments)
}

#[test]
fn two_disks_go_back_together() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let (a, b) = (image(&scratch, "a.qcow2"), image(&scratch, "b.qcow2"));
    let volumes = [a.path().display().to_string(), b.path().display().to_string()];
    let enable = ["enable", "vm1", "--volume", &volumes[0], "--volume", &volumes[1]];
    snapslot.run(enable).expect(0);
    snapslot.run(enable).expect(6);
    // A volume has one slot only.
    snapslot.run(["enable", "vm2", "--volume", &volumes[0]]).expect(2);
    let taken = verb(&snapslot, "take", &["--note", "both"]);
    assert_eq!(taken.expect(0)["slot"]["occupant"]["parts"].as_array().map(Vec::len), Some(2));
    let (then_a, then_b) = (a.active(), b.active());
    a.guest(["write -q -P 1 0 1M"]);
    b.guest(["write -q -P 2 4M 1M"]);
    // By one of its volumes the whole machine is meant.
    snapslot.verb("restore", a.path(), &[]).expect(0);
    assert!(a.active() == then_a && b.active() == then_b);
    let old = taken.snapshot_name();
    let replaced = verb(&snapslot, "take", &["--replace"]);
    assert_ne!(replaced.snapshot_name(), old);
    for image in [&a, &b] {
        assert_eq!(image.snapshots().len(), 1, "the replaced snapshot is still there");
        image.assert_clean();
        assert!(!journal_of(image.path()).exists());
    }
    assert_eq!(verb(&snapslot, "restore", &["--consume"]).slot(), "empty");
    assert!(a.snapshots().is_empty() && b.snapshots().is_empty());
    verb(&snapslot, "disable", &[]).expect(0);
}

#[test]
fn one_disk_in_use_keeps_all_as_they_are() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let (a, b) = (image(&scratch, "a.qcow2"), image(&scratch, "b.qcow2"));
    let volumes = [a.path().display().to_string(), b.path().display().to_string()];
    snapslot.run(["enable", "vm1", "--volume", &volumes[0], "--volume", &volumes[1]]).expect(0);
    let holding = b.hold(true);
    let before = a.bytes();
    verb(&snapslot, "take", &[]).expect(5);
    assert!(a.bytes() == before, "one disk was touched though the other was in use");
    drop(holding);
    verb(&snapslot, "take", &[]).expect(0);
    // One of the two loses its snapshot behind our back: neither is restored.
    let name = verb(&snapslot, "status", &[]).snapshot_name();
    a.qemu_img(&["snapshot", "-d", &name], &[]).expect_success();
    let status = verb(&snapslot, "status", &[]);
    assert_eq!(status.expect(0)["slot"]["drift"], "partial");
    verb(&snapslot, "restore", &[]).expect(8);
    // What is left of it is a snapshot still: nobody is asked, so nothing is deleted.
    snapslot.run(["delete", "vm1"]).expect(6);
    assert_eq!(b.snapshots().len(), 1);
    assert_eq!(verb(&snapslot, "delete", &[]).slot(), "empty");
    assert!(b.snapshots().is_empty());
    b.assert_clean();
}

#[test]
fn another_host_finds_the_snapshot_in_the_image() {
    let scratch = Scratch::new();
    let here = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let taken = here.verb("take", image.path(), &["--note", "stays here"]);
    let there = here.with_state(scratch.join("other-state"));
    let seen = there.verb("status", image.path(), &[]);
    let (taken, seen) = (taken.expect(0), seen.expect(0));
    assert_eq!(seen["slot"]["occupant"]["mark"], taken["slot"]["occupant"]["mark"]);
    assert_eq!(seen["slot"]["occupant"]["taken"], taken["slot"]["occupant"]["taken"]);
    assert_eq!(seen["slot"]["occupant"]["consistency"], "unknown");
    there.verb("take", image.path(), &[]).expect(3);
    assert_eq!(there.verb("delete", image.path(), &[]).slot(), "empty");
    assert_eq!(here.verb("status", image.path(), &[]).slot(), "drifted");
}

/// Story: `disable` and `delete` both wanted to open an image that was gone, so its record stayed
/// for ever.
#[test]
fn a_machine_whose_image_is_gone_can_be_forgotten() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    snapslot.verb("take", image.path(), &[]).expect(0);
    std::fs::remove_file(image.path()).expect("an image");
    assert_eq!(snapslot.run(["list"]).expect(0)["machines"][0]["error"]["code"], "not-found");
    snapslot.verb("disable", image.path(), &[]).expect(0);
    assert_eq!(snapslot.run(["list"]).expect(0)["machines"].as_array().map(Vec::len), Some(0));
}

/// Story: two names of one file were enabled as two volumes; the take then found the image held
/// by "another process", which was itself.
#[test]
fn one_file_is_one_volume() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = image(&scratch, "disk.qcow2");
    let link = scratch.join("link.qcow2");
    std::fs::hard_link(image.path(), &link).expect("a hard link");
    let volumes = [image.path().display().to_string(), link.display().to_string()];
    snapslot.run(["enable", "vm1", "--volume", &volumes[0], "--volume", &volumes[1]]).expect(2);
}
