//! Machines of several volumes, and storage that changed behind our back.

use std::ffi::OsStr;
use std::path::Path;

use snapslot_test_support::{Image, Outcome, assert_same};

use super::{Case, MIB};

/// A machine `vm` with two disks.
struct Pair {
    case: Case,
    second: Image,
}

impl Pair {
    fn new(second: &[&str]) -> Pair {
        let case = Case::new(&[], 2 * MIB);
        let second = Image::create(case.scratch.join("second.qcow2"), second, 2 * MIB);
        case.fill(1, 0, MIB);
        second.guest(["write -P 2 0 1M"]).expect_success();
        let words: [&OsStr; 6] = [
            "enable".as_ref(),
            "vm".as_ref(),
            "--volume".as_ref(),
            case.image.path().as_os_str(),
            "--volume".as_ref(),
            second.path().as_os_str(),
        ];
        case.product.run(words).expect(0);
        Pair { case, second }
    }

    #[track_caller]
    fn verb(&self, verb: &str) -> Outcome {
        self.case.product.verb(verb, Path::new("vm"), &[])
    }

    fn both(&self) -> [&Image; 2] {
        [&self.case.image, &self.second]
    }

    /// A verb that fails must leave both as they are.
    #[track_caller]
    fn refused(&self, verb: &str, code: i32) {
        let before = self.both().map(Image::bytes);
        self.verb(verb).expect(code);
        for (image, bytes) in self.both().iter().zip(before) {
            assert_same(&image.path().display().to_string(), &image.bytes(), &bytes);
        }
    }
}

#[test]
fn two_volumes_are_taken_restored_and_deleted_together() {
    let pair = Pair::new(&["cluster_size=4k"]);
    let references = pair.both().map(Image::active);
    pair.verb("take").expect(0);
    let names = pair.both().map(|image| {
        image.assert_clean();
        image.snapshots().into_iter().map(|s| s.name).collect::<Vec<_>>()
    });
    assert_eq!(names[0].len(), 1);
    assert_eq!(names[0], names[1], "one mark for the machine");
    for image in pair.both() {
        image.guest(["write -P 9 0 2M"]).expect_success();
    }
    pair.verb("restore").expect(0);
    for (image, reference) in pair.both().iter().zip(&references) {
        image.assert_clean();
        assert_same("a restored volume", &image.active(), reference);
    }
    pair.verb("delete").expect(0);
    for image in pair.both() {
        image.assert_clean();
        assert_eq!(image.snapshots(), []);
    }
}

#[test]
fn one_volume_that_cannot_be_taken_keeps_the_other_from_it() {
    let pair = Pair::new(&["refcount_bits=1"]);
    pair.refused("take", 6);
    assert_eq!(pair.verb("status").slot(), "empty");
}

#[test]
fn one_volume_in_use_keeps_the_other_from_being_changed() {
    let pair = Pair::new(&[]);
    let holder = pair.second.hold(true);
    pair.refused("take", 5);
    drop(holder);
    pair.verb("take").expect(0);
    for image in pair.both() {
        image.guest(["write -P 9 0 2M"]).expect_success();
    }
    let holder = pair.second.hold(true);
    pair.refused("restore", 5);
    pair.refused("delete", 5);
    drop(holder);
    pair.verb("restore").expect(0);
}

#[test]
fn a_snapshot_that_somebody_deleted_is_drift() {
    let case = Case::new(&[], MIB);
    case.fill(1, 0, MIB);
    let name = case.done("take", &[]).snapshot_name();
    case.image.qemu_img(&["snapshot", "-d", &name], &[]).expect_success();
    assert_eq!(case.verb("status", &[]).slot(), "drifted");
    let before = case.image.bytes();
    let restore = case.verb("restore", &[]);
    assert_ne!(restore.code(), 0, "there is nothing to restore: {}", restore.process.account());
    assert_same("the image", &case.image.bytes(), &before);
}

#[test]
fn one_volume_without_its_snapshot_is_drift() {
    let pair = Pair::new(&[]);
    pair.verb("take").expect(0);
    let name = pair.second.snapshots().remove(0).name;
    pair.second.qemu_img(&["snapshot", "-d", &name], &[]).expect_success();
    assert_eq!(pair.verb("status").slot(), "drifted");
    let before = pair.case.image.bytes();
    assert_ne!(pair.verb("restore").code(), 0);
    assert_same("the volume that has it", &pair.case.image.bytes(), &before);
}

#[test]
fn an_image_that_was_replaced_is_drift() {
    let case = Case::new(&[], MIB);
    case.fill(1, 0, MIB);
    case.done("take", &[]);
    let other = Image::create(case.scratch.join("other.qcow2"), &[], 2 * MIB);
    other.guest(["write -P 3 0 2M"]).expect_success();
    std::fs::rename(other.path(), case.image.path()).expect("a rename");
    assert_eq!(case.verb("status", &[]).slot(), "drifted");
    let before = case.image.bytes();
    assert_ne!(case.verb("restore", &[]).code(), 0);
    assert_same("the image", &case.image.bytes(), &before);
    // The way out: there is nothing of ours in it, so emptying the slot touches nothing.
    assert_eq!(case.done("delete", &[]).slot(), "empty");
    assert_same("the image", &case.image.bytes(), &before);
    case.done("take", &[]);
}
