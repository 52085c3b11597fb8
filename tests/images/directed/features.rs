//! Resizes, versions and what else an image may carry.

use snapslot_test_support::{Image, assert_same};

use super::{Case, MIB, assert_disk};
use crate::be32;

fn resize(case: &Case, size: u64) {
    let text = size.to_string();
    case.image.qemu_img(&["resize", "-q", "--shrink"], &[&text]).expect_success();
}

#[test]
fn a_disk_grown_after_the_take_is_restored_to_its_old_size() {
    for options in [&["cluster_size=512"][..], &["cluster_size=64k"], &["extended_l2=on"]] {
        let case = Case::new(options, 2 * MIB + 512);
        case.fill(1, MIB, MIB + 512);
        let reference = case.image.active();
        case.done("take", &[]);
        resize(&case, 9 * MIB);
        case.fill(2, 0, 9 * MIB);
        case.done("restore", &[]);
        assert_disk(&case, &reference);
        // What lies beyond the old end must not come back.
        resize(&case, 9 * MIB);
        assert_same("the new part", &case.image.active()[2 << 20 | 512..], &[0; (7 << 20) - 512]);
        case.done("delete", &[]);
    }
}

#[test]
fn a_disk_shrunk_after_the_take_is_restored_to_its_old_size() {
    for options in [&["cluster_size=512"][..], &["cluster_size=64k"], &["extended_l2=on"]] {
        let case = Case::new(options, 5 * MIB);
        case.fill(1, 0, 5 * MIB);
        let reference = case.image.active();
        case.done("take", &[]);
        resize(&case, MIB + 512);
        case.fill(2, 0, MIB + 512);
        case.done("restore", &[]);
        assert_disk(&case, &reference);
        case.fill(3, 0, 5 * MIB);
        case.done("restore", &["--consume"]);
        assert_disk(&case, &reference);
    }
}

#[test]
fn version_2_stays_version_2() {
    for (cluster, backed) in [("512", false), ("64k", false), ("512", true), ("64k", true)] {
        let cluster = format!("cluster_size={cluster}");
        let options = ["compat=0.10", &cluster];
        let mut case = Case::new(&options, 4 * MIB);
        let behind = case.scratch.join("behind.raw");
        if backed {
            std::fs::write(&behind, vec![0x5a; 4 << 20]).expect("a backing file");
            let path = case.scratch.join("v2.qcow2");
            case.image = Image::create_backed(path, &options, 4 * MIB, (&behind, "raw"));
        }
        case.fill(1, MIB, MIB);
        let reference = case.image.active();
        let first_sector = |from: usize| case.image.bytes()[from..512].to_vec();
        let tail = first_sector(72);
        for verb in ["take", "restore", "delete"] {
            case.fill(2, 0, 512);
            case.fill(if backed { 0x5a } else { 0 }, 0, 512);
            if verb == "restore" {
                case.fill(3, 0, 4 * MIB);
            }
            case.done(verb, &[]);
            assert_eq!(be32(&case.image.bytes(), 4), 2, "the version after {verb}");
            assert_same("what follows the header of version 2", &first_sector(72), &tail);
            assert_disk(&case, &reference);
        }
    }
}

/// A backing file is read by QEMU, and by nobody else here: not a byte of it may change.
#[test]
fn a_backing_file_is_left_alone() {
    let mut case = Case::new(&[], MIB);
    let behind = case.scratch.join("behind.raw");
    std::fs::write(&behind, vec![7; 2 << 20]).expect("a backing file");
    let path = case.scratch.join("over.qcow2");
    case.image = Image::create_backed(path, &[], 4 * MIB, (&behind, "raw"));
    case.fill(1, 0, MIB);
    let reference = case.image.active();
    case.done("take", &[]);
    case.fill(2, 0, 4 * MIB);
    case.done("restore", &[]);
    assert_disk(&case, &reference);
    case.done("delete", &[]);
    assert_disk(&case, &reference);
    assert_same("the backing file", &std::fs::read(&behind).expect("it"), &[7; 2 << 20]);
}

/// A backing file that is not there concerns the guest's reads, not the snapshot of this layer.
#[test]
fn a_backing_file_that_is_gone_does_not_lose_this_layer() {
    let mut case = Case::new(&[], MIB);
    let behind = case.scratch.join("behind.raw");
    let away = case.scratch.join("away.raw");
    std::fs::write(&behind, vec![7; 1 << 20]).expect("a backing file");
    let path = case.scratch.join("over.qcow2");
    case.image = Image::create_backed(path, &[], MIB, (&behind, "raw"));
    case.fill(1, 0, 64 << 10);
    let reference = case.image.active();
    case.done("take", &[]);
    case.fill(2, 0, MIB);
    std::fs::rename(&behind, &away).expect("a rename");
    let outcome = case.verb("restore", &[]);
    std::fs::rename(&away, &behind).expect("a rename");
    case.image.assert_clean();
    let expected = if outcome.code() == 0 { reference } else { vec![2; 1 << 20] };
    assert_disk(&case, &expected);
}

/// Story: a bitmap says which blocks changed since a backup. A restore changes blocks that
/// nobody marks: a bitmap that still counts as good afterwards loses data in the next backup.
#[test]
fn a_bitmap_is_not_trusted_after_a_restore_that_changed_content() {
    let case = Case::new(&[], 4 * MIB);
    case.fill(1, 0, 4 * MIB);
    case.done("take", &[]);
    case.fill(2, 0, MIB);
    case.image.qemu_img(&["bitmap", "--add"], &["backup"]).expect_success();
    let before = case.image.bytes();
    let outcome = case.verb("restore", &[]);
    if outcome.code() != 0 {
        outcome.expect(6);
        return assert_same("the image after a refusal", &case.image.bytes(), &before);
    }
    case.image.assert_clean();
    let info = case.image.info();
    let bitmaps =
        info["format-specific"]["data"]["bitmaps"].as_array().cloned().unwrap_or_default();
    for bitmap in bitmaps {
        let flags = bitmap["flags"].as_array().cloned().unwrap_or_default();
        assert!(flags.iter().any(|f| f == "in-use"), "still trusted: {bitmap}");
    }
}

/// And it stays good where content stays: a take and a delete change none.
#[test]
fn a_bitmap_survives_take_and_delete() {
    let case = Case::new(&[], 4 * MIB);
    case.fill(1, 0, 4 * MIB);
    case.image.qemu_img(&["bitmap", "--add"], &["backup"]).expect_success();
    case.fill(2, MIB, MIB);
    let bitmaps = || case.image.info()["format-specific"]["data"]["bitmaps"].clone();
    let before = bitmaps();
    assert!(before.is_array(), "a bitmap was added");
    case.done("take", &[]);
    assert_eq!(bitmaps(), before);
    case.done("delete", &[]);
    assert_eq!(bitmaps(), before);
}
