//! Goal: each goal gives the one step that reaches it, or says what it would cost. Method: a host
//! in memory that is told which copies there are and what one more takes.

use snapslot_plugin_sdk::double::{MemoryImage, MemoryTarget, Recorded, RecordedPlan};
use snapslot_plugin_sdk::{
    Backend, Content, Failure, FailureKind, Goal, NewSnapshot, PlaceKind, SavedCopy, Saving, View,
    copies,
};

use crate::Raw;

const MARK: &str = "00000000000000ab";
const GIB: u64 = 1 << 30;

fn copy() -> SavedCopy {
    SavedCopy {
        mark: MARK.to_owned(),
        identity: "12:made-5.000000006".to_owned(),
        name: "vm.img.snapslot-00000000000000ab".to_owned(),
        taken_seconds: 1_700_000_000,
        taken_nanoseconds: 123_456_789,
        size: 4096,
        held_bytes: 2048,
        lost: false,
    }
}

fn target(copies: Vec<SavedCopy>, saving: Option<Saving>) -> MemoryTarget {
    let disk = MemoryImage(vec![7; 8192]);
    MemoryTarget { place: "/srv/vm.img".to_owned(), disk, copies, saving, ..Default::default() }
}

fn new(full_copy: bool) -> NewSnapshot {
    NewSnapshot {
        mark: MARK.to_owned(),
        taken_seconds: 1,
        taken_nanoseconds: 2,
        room: None,
        beside: 0,
        full_copy,
    }
}

fn plan(target: &MemoryTarget, goal: &Goal) -> Result<RecordedPlan, Failure> {
    let mut plan = RecordedPlan::default();
    Raw::plan(target, goal, &mut plan).map(|()| plan)
}

fn saving(shares: bool, bytes: u64, available: u64) -> Option<Saving> {
    Some(Saving { shares, bytes, available })
}

#[test]
fn it_asks_for_the_disk_to_look_at_and_for_copies_and_for_nothing_else() {
    let says = Raw::describe();
    assert_eq!((says.name.as_str(), says.place), ("raw", PlaceKind::Image));
    assert!(says.images.iter().all(|i| !i.changes), "{:?}", says.images);
    assert!(says.copies.is_some() && says.queries.is_empty() && says.actions.is_empty());
}

#[test]
fn facts_are_the_size_and_the_copies() {
    let facts = Raw::inspect(&target(vec![copy()], None)).expect("facts");
    assert_eq!((facts.virtual_size, facts.unfinished), (8192, None));
    let [found] = facts.snapshots.as_slice() else { panic!("{:?}", facts.snapshots) };
    let as_saved = copy();
    assert_eq!(found.identity, as_saved.identity);
    assert_eq!(found.mark.as_deref(), Some(MARK));
    assert_eq!(found.virtual_size, 4096, "that of the copy, not of the disk now");
    assert_eq!((found.taken_seconds, found.taken_nanoseconds), (1_700_000_000, 123_456_789));
    assert!(!found.lost);
}

#[test]
fn a_shared_copy_is_saved_whatever_it_would_cost_whole() {
    for full_copy in [false, true] {
        let target = target(Vec::new(), saving(true, 12 * GIB, GIB));
        let plan = plan(&target, &Goal::Held(new(full_copy))).expect("a plan");
        assert_eq!(plan.steps, [Recorded::Save(new(full_copy))]);
        assert!(plan.notes.is_empty(), "{:?}", plan.notes);
    }
}

#[test]
fn a_whole_copy_is_told_before_it_is_made() {
    let target = target(Vec::new(), saving(false, 12 * GIB, 34 * GIB + GIB / 8));
    let refused = plan(&target, &Goal::Held(new(false))).expect_err("not allowed yet");
    assert_eq!((refused.kind, refused.code.as_str()), (FailureKind::Unsupported, "full-copy"));
    assert_eq!(
        refused.message,
        "/srv/vm.img has no shared blocks: a snapshot would be a full copy of 12.0 GiB (34.1 GiB \
         free); take it with --full-copy"
    );
    let allowed = plan(&target, &Goal::Held(new(true))).expect("a plan");
    assert_eq!(allowed.steps, [Recorded::Save(new(true))]);
    assert!(allowed.notes[0].contains("12.0 GiB"), "{:?}", allowed.notes);
}

#[test]
fn want_of_room_is_told_with_figures_and_before_any_permission() {
    for full_copy in [false, true] {
        let target = target(Vec::new(), saving(false, 12 * GIB, 12 * GIB - 1));
        let refused = plan(&target, &Goal::Held(new(full_copy))).expect_err("no room");
        assert_eq!((refused.kind, refused.code.as_str()), (FailureKind::NoSpace, "no-space"));
        let figures =
            |key: &str| refused.data.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
        assert_eq!(figures("needed"), Some((12 * GIB).to_string()));
        assert_eq!(figures("available"), Some((12 * GIB - 1).to_string()));
        assert!(refused.message.contains("11.9 GiB are free"), "{}", refused.message);
    }
    let just = target(Vec::new(), saving(false, GIB, GIB));
    plan(&just, &Goal::Held(new(true))).expect("exactly enough is enough");
}

#[test]
fn what_is_reached_needs_no_steps_and_no_look_at_the_cost() {
    // Without `saving` the host would fail: it is not even asked.
    let there = target(vec![copy()], None);
    assert!(plan(&there, &Goal::Held(new(false))).expect("a plan").steps.is_empty());
    assert!(plan(&there, &Goal::Settled).expect("a plan").steps.is_empty());
    let gone = target(Vec::new(), None);
    assert!(plan(&gone, &Goal::Empty(copy().identity)).expect("a plan").steps.is_empty());
}

#[test]
fn restore_and_delete_go_by_identity() {
    let mut other = copy();
    (other.mark, other.identity) = ("00000000000000cd".to_owned(), "13:made-7.0".to_owned());
    let both = target(vec![copy(), other.clone()], None);
    let restore = plan(&both, &Goal::Restored(other.identity.clone())).expect("a plan");
    assert_eq!(restore.steps, [Recorded::PutBack(other.mark.clone())]);
    let delete = plan(&both, &Goal::Empty(copy().identity)).expect("a plan");
    assert_eq!(delete.steps, [Recorded::Discard(MARK.to_owned())]);
    // The mark is the same and the file is another: not the snapshot that was meant.
    let replaced = plan(&both, &Goal::Restored("14:made-9.0".to_owned())).expect_err("replaced");
    assert_eq!(replaced.kind, FailureKind::NotFound);
}

#[test]
fn the_disk_is_one_extent_and_the_copy_is_not_in_it() {
    let target = target(vec![copy()], None);
    let page = Raw::extents(&target, &View::Current, 4096, 10).expect("extents");
    let [all] = page.extents.as_slice() else { panic!("{page:?}") };
    assert_eq!((all.start, all.length, page.next), (4096, 4096, None));
    assert!(matches!(all.content, Content::Data(4096)), "{all:?}");
    assert!(Raw::extents(&target, &View::Current, 8192, 10).expect("the end").extents.is_empty());
    assert!(Raw::extents(&target, &View::Current, 8193, 10).is_err());
    let copy = Raw::extents(&target, &View::Snapshot(copy().identity), 0, 10);
    assert_eq!(copy.expect_err("not there").kind, FailureKind::Unsupported);
}

#[test]
fn what_changed_is_not_guessed() {
    let failure =
        Raw::measure(&target(vec![copy()], None), &copy().identity, false).expect_err("unknown");
    assert_eq!((failure.kind, failure.code.as_str()), (FailureKind::Unsupported, "no-measure"));
    assert_eq!(failure.data, [("held".to_owned(), "2048".to_owned())]);
    let failure =
        Raw::measure(&target(Vec::new(), None), "1:made-1.0", false).expect_err("not there");
    assert_eq!(failure.kind, FailureKind::NotFound);
}

#[test]
fn sizes_are_said_in_words() {
    for (bytes, words) in [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (GIB - 1, "1023.9 MiB"),
        (12 * GIB, "12.0 GiB"),
        (u64::MAX, "15.9 EiB"),
    ] {
        assert_eq!(copies::size_in_words(bytes), words, "{bytes}");
    }
}
