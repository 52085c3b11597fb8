//! Goal: a take keeps what there is, a restore gives it back, a delete leaves no trace; and whatever is in
//! an image, it is answered or refused. Method: an image in memory, a machine that writes to it by the
//! format's rule, plans that are applied; and every byte of a header changed.

use snapslot_plugin_sdk::double::{MemoryImage, MemoryTarget, RecordedPlan};
use snapslot_plugin_sdk::{
    Backend, Content, FailureKind, Goal, Image, NewSnapshot, Plan, Target, View,
};

use crate::Tables;
use crate::format::{BLOCK, Header, SHARED};

const BLOCKS: u64 = 16;
const MARK: &str = "0123456789abcdef";

/// An image whose even blocks hold their number.
fn image() -> Vec<u8> {
    let header = Header { state: 0, blocks: BLOCKS, tables: BLOCK, current: 0, saved: Vec::new() };
    let first = header.room(6);
    let mut image = header.bytes();
    image.resize(first as usize, 0);
    for n in (0..BLOCKS).step_by(2) {
        let entry = (image.len() as u64).to_be_bytes();
        let at = (header.room(0) + n * 8) as usize;
        image[at..at + 8].copy_from_slice(&entry);
        image.extend(vec![n as u8 + 1; BLOCK as usize]);
    }
    image
}

fn target(image: &[u8]) -> MemoryTarget {
    MemoryTarget { disk: MemoryImage(image.to_vec()), ..MemoryTarget::default() }
}

fn new() -> NewSnapshot {
    NewSnapshot {
        mark: MARK.to_owned(),
        taken_seconds: 1_700_000_000,
        taken_nanoseconds: 5,
        room: None, beside: 0,
        full_copy: false,
    }
}

/// Plans, and carries it out.
fn reach(image: &mut Vec<u8>, goal: &Goal) -> RecordedPlan {
    let mut plan = RecordedPlan::default();
    Tables::plan(&target(image), goal, &mut plan).expect("a plan");
    plan.apply(image);
    plan
}

/// Every block of a view, as its first byte.
fn sees(image: &[u8], view: &View) -> Vec<u8> {
    let target = target(image);
    let (mut cursor, mut blocks) = (Some(0), Vec::new());
    while let Some(at) = cursor {
        // In pages of three: what is cut is whole all the same.
        let page = Tables::extents(&target, view, at, 3).expect("a page");
        for extent in &page.extents {
            let content = |n: u64| match extent.content {
                Content::Data(offset) => image[(offset + n * BLOCK) as usize],
                _ => 0,
            };
            blocks.extend((0..extent.length / BLOCK).map(content));
        }
        cursor = page.next;
    }
    blocks
}

/// The machine writes a block, as the format says: where it is shared, elsewhere.
fn write(image: &mut Vec<u8>, block: u64, byte: u8) {
    let header = Header::read(&&MemoryImage(image.clone())).expect("a header");
    let at = (header.room(header.current) + block * 8) as usize;
    let mut entry = [0; 8];
    entry.copy_from_slice(&image[at..at + 8]);
    let mut offset = u64::from_be_bytes(entry);
    if offset == 0 || offset & SHARED != 0 {
        offset = (image.len() as u64).next_multiple_of(BLOCK);
        image.resize((offset + BLOCK) as usize, 0);
        image[at..at + 8].copy_from_slice(&offset.to_be_bytes());
    }
    image[offset as usize..(offset + BLOCK) as usize].fill(byte);
}

#[test]
fn a_whole_life() {
    let mut image = image();
    let before = sees(&image, &View::Current);
    let take = reach(&mut image, &Goal::Held(new()));
    assert_eq!(take.seal, Some((8, 1 << 63)));
    let facts = Tables::inspect(&target(&image)).expect("facts");
    assert_eq!(facts.snapshots[0].mark.as_deref(), Some(MARK));
    assert_eq!(sees(&image, &View::Current), before);
    // Asked again there is nothing to do.
    assert_eq!(reach(&mut image, &Goal::Held(new())).steps, Vec::new());
    let snapshot = View::Snapshot(MARK.to_owned());
    for (block, byte) in [(0, 90), (1, 91), (1, 92), (15, 93)] {
        write(&mut image, block, byte);
        assert_eq!(sees(&image, &snapshot), before, "the snapshot's block {block} changed");
    }
    assert_eq!(sees(&image, &View::Current)[1], 92);
    let change = Tables::measure(&target(&image), MARK, false).expect("figures");
    assert_eq!((change.changed_bytes, change.held_bytes), (3 * BLOCK, BLOCK));
    let page = Tables::differences(&target(&image), MARK, 0, 1).expect("a page");
    assert_eq!((page.stretches[0].start, page.stretches[0].length), (0, 2 * BLOCK));
    assert_eq!(page.next, Some(15 * BLOCK));
    reach(&mut image, &Goal::Restored(MARK.to_owned()));
    assert_eq!(sees(&image, &View::Current), before);
    assert_eq!(reach(&mut image, &Goal::Restored(MARK.to_owned())).steps, Vec::new());
    reach(&mut image, &Goal::Empty(MARK.to_owned()));
    let facts = Tables::inspect(&target(&image)).expect("facts");
    assert!(facts.snapshots.is_empty() && facts.findings.is_empty());
    assert_eq!(sees(&image, &View::Current), before);
    let header = Header::read(&&MemoryImage(image.clone())).expect("a header");
    let table = header.table(&&MemoryImage(image.clone()), header.current).expect("a table");
    assert!(table.iter().all(|entry| entry & SHARED == 0), "a block is said to be shared still");
}

#[test]
fn what_another_snapshot_shares_stays_shared() {
    let mut image = image();
    let before = sees(&image, &View::Current);
    reach(&mut image, &Goal::Held(new()));
    let other = "fedcba9876543210".to_owned();
    reach(&mut image, &Goal::Held(NewSnapshot { mark: other.clone(), ..new() }));
    reach(&mut image, &Goal::Empty(MARK.to_owned()));
    for block in 0..BLOCKS {
        write(&mut image, block, 99);
    }
    assert_eq!(sees(&image, &View::Snapshot(other)), before);
}

#[test]
fn whatever_is_in_an_image_is_answered_or_refused() {
    let mut sound = image();
    reach(&mut sound, &Goal::Held(new()));
    let mut refused = 0;
    for at in 0..600 {
        for change in [0x01, 0x80, 0xff] {
            let mut damaged = sound.clone();
            let at = if at < 200 { at } else { BLOCK as usize + at };
            damaged[at] ^= change;
            let target = target(&damaged);
            let goals = [
                Goal::Held(NewSnapshot { mark: "fedcba9876543210".to_owned(), ..new() }),
                Goal::Restored(MARK.to_owned()),
                Goal::Empty(MARK.to_owned()),
            ];
            refused += usize::from(Tables::inspect(&target).is_err());
            for goal in goals {
                let mut plan = RecordedPlan::default();
                let _ = Tables::plan(&target, &goal, &mut plan);
                assert!(plan.barrier("more").is_ok(), "byte {at}: a malformed step");
            }
            let _ = Tables::extents(&target, &View::Current, 0, 10_000);
            let _ = Tables::differences(&target, MARK, 0, 10_000);
            let _ = Tables::measure(&target, MARK, false);
        }
    }
    assert!(refused > 100, "only {refused} were refused");
    let short = target(&sound[..100]);
    assert_eq!(Tables::inspect(&short).expect_err("short").kind, FailureKind::Corrupt);
    assert!((&MemoryImage(sound)).size() > 0 && short.place().is_empty());
}
