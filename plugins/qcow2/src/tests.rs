//! Goal: counting in several windows gives what counting in one gives. Method: windows of 1,024
//! clusters (see [`crate::refcounts`]), fragmented images of a few thousand, every verb planned
//! natively and applied in memory, judged by qemu-img.
//!
//! Story: a delete emitted the selection of one table once for each window; the host refused the
//! plan as touching bytes twice, so the slot of a large fragmented image could not be emptied.

use snapslot_plugin_sdk::double::{MemoryImage, MemoryTarget, Recorded, RecordedPlan};
use snapslot_plugin_sdk::{Backend, Goal, NewSnapshot, View};
use snapslot_test_support::{Image, Scratch, SplitMix64};

use crate::Qcow2;

const MARK: &str = "00000000000000ab";

/// Plans a goal on the image, applies the plan, and writes the image back.
fn reach(image: &Image, goal: &Goal) -> usize {
    let bytes = image.bytes();
    let target = MemoryTarget { disk: MemoryImage(bytes.clone()), ..MemoryTarget::default() };
    let mut plan = RecordedPlan::default();
    Qcow2::plan(&target, goal, &mut plan).unwrap_or_else(|f| panic!("{goal:?}: {f:?}"));
    no_byte_twice(&plan);
    let mut after = bytes;
    plan.apply(&mut after);
    std::fs::write(image.path(), &after).expect("the image, written back");
    image.assert_clean();
    plan.steps.len()
}

/// Two steps of a phase never touch the same bytes, a mask's gaps included.
fn no_byte_twice(plan: &RecordedPlan) {
    let mut spans: Vec<(u64, u64)> = Vec::new();
    for step in &plan.steps {
        match step {
            Recorded::Write(offset, data) => spans.push((*offset, offset + data.len() as u64)),
            Recorded::Fill(run) => spans.push((run.offset, run.offset + run.length)),
            Recorded::Mask(m) => {
                let last = u64::from(m.count - 1) * u64::from(m.stride);
                spans.push((m.offset, m.offset + last + 8));
            }
            Recorded::Barrier(title) => {
                spans.sort_unstable();
                let twice = spans.windows(2).find(|pair| pair[0].1 > pair[1].0);
                assert!(twice.is_none(), "{title}: {twice:?}");
                spans.clear();
            }
            _ => {}
        }
    }
}

fn identity(image: &Image) -> String {
    let target = MemoryTarget { disk: MemoryImage(image.bytes()), ..MemoryTarget::default() };
    let facts = Qcow2::inspect(&target).expect("facts");
    let ours = facts.snapshots.into_iter().find(|s| s.mark.as_deref() == Some(MARK));
    ours.expect("our snapshot").identity
}

fn walk(options: &[&str], seed: u64) {
    let scratch = Scratch::new();
    let size = 2 << 20;
    let image = Image::create(scratch.join("disk.qcow2"), options, size);
    let mut random = SplitMix64::new(seed);
    let mut scatter = |count: u64, byte: u64| {
        let writes: Vec<String> = (0..count)
            .map(|i| format!("write -q -P {} {} 512", byte + i % 7, random.below(size / 512) * 512))
            .collect();
        image.guest(writes).expect_success();
    };
    scatter(800, 1);
    image.qemu_img(&["snapshot", "-c", "foreign"], &[]).expect_success();
    scatter(800, 20);
    let foreign = image.snapshot("foreign");
    let taken = image.active();
    let new = NewSnapshot {
        mark: MARK.to_owned(),
        taken_seconds: 1,
        taken_nanoseconds: 0,
        room: None,
        beside: 0,
        full_copy: false,
    };
    assert!(reach(&image, &Goal::Held(new.clone())) > 0);
    assert_eq!(reach(&image, &Goal::Held(new)), 0, "seed {seed}: the goal was reached");
    assert!(image.active() == taken && image.snapshot(&format!("snapslot-{MARK}")) == taken);
    scatter(800, 40);
    let kept = identity(&image);
    assert!(reach(&image, &Goal::Restored(kept.clone())) > 0);
    assert_eq!(reach(&image, &Goal::Restored(kept.clone())), 0, "seed {seed}");
    assert!(image.active() == taken, "seed {seed}: the restored content is another");
    scatter(800, 60);
    let now = image.active();
    assert!(reach(&image, &Goal::Empty(kept.clone())) > 0);
    assert_eq!(reach(&image, &Goal::Empty(kept)), 0, "seed {seed}");
    assert!(image.active() == now, "seed {seed}: the delete changed the disk");
    assert!(image.snapshot("foreign") == foreign, "seed {seed}: a foreign snapshot changed");
}

#[test]
fn several_windows_of_counts() {
    for seed in 1..=3 {
        walk(&["cluster_size=512"], seed);
        walk(&["cluster_size=512,refcount_bits=8"], seed);
        walk(&["cluster_size=512,refcount_bits=64,compat=1.1"], seed);
        walk(&["cluster_size=512,compat=0.10"], seed);
    }
}

/// Story, found by fuzzing: a snapshot that claimed a disk of 25 PB, in an image of 9 KB, was listed
/// table by table, 800 thousand million of them; whoever asked where its content is waited for ever.
#[test]
fn a_snapshot_that_claims_a_huge_disk_is_listed_at_once() {
    let scratch = Scratch::new();
    let image = Image::create(scratch.join("a.qcow2"), &["cluster_size=512"], 64 << 10);
    image.guest(["write -q -P 1 0 3k"]);
    image.qemu_img(&["snapshot", "-c", "s"], &[]);
    let mut bytes = image.bytes();
    let word = |bytes: &[u8], at: usize| {
        u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
    };
    // The snapshot's extra data: bytes of machine memory, then of the disk.
    let disk_size = word(&bytes, 64) as usize + 40 + 8;
    assert_eq!(word(&bytes, disk_size), 64 << 10);
    bytes[disk_size..disk_size + 8].copy_from_slice(&(91_u64 << 48).to_be_bytes());
    let target = MemoryTarget { disk: MemoryImage(bytes), ..MemoryTarget::default() };
    let facts = Qcow2::inspect(&target).expect("facts");
    let view = View::Snapshot(facts.snapshots[0].identity.clone());
    let page = Qcow2::extents(&target, &view, 0, 100).expect("extents");
    let end = page.extents.last().map(|e| e.start + e.length);
    assert_eq!((end, page.next), (Some(91 << 48), None));
}
