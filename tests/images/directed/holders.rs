//! Images that are in use: by QEMU while we want them, and by us while QEMU does.

use snapslot_test_support::{Holding, assert_same};

use super::{Case, MIB};

#[track_caller]
fn refused_because_of(case: &Case, verb: &str, holder: &Holding) {
    let outcome = case.refused(verb, &[], 5);
    let error = &outcome.expect(5)["error"];
    assert!(
        error.to_string().contains(&holder.id().to_string()),
        "the holder is not named: {error}"
    );
}

#[test]
fn an_image_that_a_machine_writes_is_refused_and_the_holder_named() {
    let case = Case::new(&[], MIB);
    case.fill(1, 0, MIB);
    {
        let holder = case.image.hold(true);
        refused_because_of(&case, "take", &holder);
    }
    case.done("take", &[]);
    case.fill(2, 0, MIB);
    let reference = case.image.active();
    {
        let holder = case.image.hold(true);
        refused_because_of(&case, "restore", &holder);
        refused_because_of(&case, "delete", &holder);
        // Looking is allowed.
        assert_eq!(case.verb("status", &[]).slot(), "held");
    }
    assert_same("the disk", &case.image.active(), &reference);
    case.done("restore", &[]);
}

#[test]
fn an_image_that_a_daemon_has_open_is_refused_and_the_holder_named() {
    let case = Case::new(&[], MIB);
    case.fill(1, 0, MIB);
    let holder = case.image.hold_by_daemon();
    refused_because_of(&case, "take", &holder);
    drop(holder);
    case.done("take", &[]);
}

/// Who only reads relies on tables that a take moves.
#[test]
fn an_image_that_is_being_read_is_refused() {
    let case = Case::new(&[], MIB);
    case.fill(1, 0, MIB);
    let holder = case.image.hold(false);
    refused_because_of(&case, "take", &holder);
}
