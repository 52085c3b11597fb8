//! Snapshots that somebody else made: found, listed, and never touched.

use snapslot_test_support::assert_same;

use super::{Case, MIB, assert_disk};
use crate::{be32, be64};

/// Story: QEMU's tools take "1" for an id or for a name. Ours has an id that is somebody
/// else's name: only the right one may go.
#[test]
fn names_that_are_numbers_confuse_nobody() {
    let case = Case::new(&["cluster_size=4k"], MIB);
    case.fill(1, 0, MIB);
    // The ids are 1 to 4 in this order, so ours is 5: the name of the last.
    for name in ["2", "3", "1", "5"] {
        case.image.qemu_img(&["snapshot", "-c", name], &[]).expect_success();
        case.fill(name.as_bytes()[0], 0, 64 << 10);
    }
    let foreign = case.image.snapshots();
    let contents: Vec<Vec<u8>> = foreign.iter().map(|s| case.image.snapshot(&s.name)).collect();
    let reference = case.image.active();
    case.done("take", &[]);
    case.fill(9, 0, MIB);
    case.done("take", &["--replace"]);
    case.done("restore", &[]);
    case.done("delete", &[]);
    assert_ne!(case.image.active(), reference);
    assert_eq!(case.image.snapshots(), foreign);
    for (snapshot, content) in foreign.iter().zip(&contents) {
        assert_same("a foreign snapshot", &case.image.snapshot(&snapshot.name), content);
    }
}

/// A foreign snapshot whose name nearly looks like ours is still foreign.
#[test]
fn a_look_alike_is_not_ours() {
    let case = Case::new(&[], MIB);
    case.fill(1, 0, MIB);
    let names = [
        "snapslot-0123456789abcde",
        "snapslot-0123456789abcdef0",
        "snapslot-0123456789ABCDEF",
        "snapslot-0123456789abcdeg",
        "snapslot-",
        "Snapslot-0123456789abcdef",
    ];
    for name in names {
        case.image.qemu_img(&["snapshot", "-c", name], &[]).expect_success();
    }
    let foreign = case.image.snapshots();
    case.done("take", &[]);
    case.done("delete", &[]);
    assert_eq!(case.image.snapshots(), foreign);
    assert_eq!(foreign.len(), names.len());
}

/// The image travels: on a host that has no record of it, the snapshot in it holds the slot, and
/// what is not known of it is said to be unknown.
#[test]
fn a_held_image_that_came_from_elsewhere_is_held() {
    let case = Case::new(&[], MIB);
    case.fill(1, 0, MIB);
    let reference = case.image.active();
    let name = case.done("take", &[]).snapshot_name();
    case.fill(2, 0, MIB);
    let elsewhere =
        Case { product: case.product.with_state(case.scratch.join("elsewhere")), ..case };
    let status = elsewhere.verb("status", &[]);
    assert_eq!((status.slot(), status.snapshot_name()), ("held", name));
    assert_eq!(status.expect(0)["slot"]["occupant"]["consistency"], "unknown");
    elsewhere.refused("take", &[], 3);
    elsewhere.done("restore", &[]);
    assert_disk(&elsewhere, &reference);
    elsewhere.done("delete", &[]);
    assert_eq!(elsewhere.image.snapshots(), []);
}

/// Machine memory saved with a snapshot lies beyond the end of the disk, under first-level
/// entries that the disk itself does not have. No machine runs here, so one is put together: a
/// longer disk is written and snapshotted, then the snapshot's record is changed to say that
/// the tail is memory, as QEMU would have written it.
#[test]
fn a_foreign_snapshot_with_machine_memory_is_kept() {
    const DISK: u64 = MIB;
    const MEMORY: u64 = 64 << 10;
    let case = Case::new(&["cluster_size=512"], DISK + MEMORY);
    case.fill(1, 0, 128 << 10);
    case.fill(0x4d, DISK, MEMORY);
    case.image.qemu_img(&["snapshot", "-c", "running"], &[]).expect_success();
    let short = DISK.to_string();
    case.image.qemu_img(&["resize", "-q", "--shrink"], &[&short]).expect_success();
    let record = be64(&case.image.bytes(), 64) as usize;
    assert_eq!(be64(&case.image.bytes(), record + 48), DISK + MEMORY, "the record's disk size");
    case.patch(record + 32, &(MEMORY as u32).to_be_bytes());
    case.patch(record + 40, &MEMORY.to_be_bytes());
    case.patch(record + 48, &DISK.to_be_bytes());
    case.image.assert_clean();
    let foreign = case.image.snapshots();
    assert!(foreign[0].line.contains("64 KiB"), "{}", foreign[0].line);

    let reference = case.image.active();
    case.done("take", &[]);
    case.fill(2, 0, MIB);
    case.done("restore", &[]);
    assert_disk(&case, &reference);
    case.fill(3, 0, MIB);
    case.done("delete", &[]);
    assert_eq!(case.image.snapshots(), foreign);

    // The memory itself: turned back into disk on the same record, and applied.
    let record = be64(&case.image.bytes(), 64) as usize;
    assert_eq!(be32(&case.image.bytes(), record + 32), MEMORY as u32);
    case.patch(record + 32, &0_u32.to_be_bytes());
    case.patch(record + 40, &0_u64.to_be_bytes());
    case.patch(record + 48, &(DISK + MEMORY).to_be_bytes());
    case.image.qemu_img(&["snapshot", "-a", "running"], &[]).expect_success();
    let content = case.image.active();
    assert_same("the saved memory", &content[DISK as usize..], &[0x4d; MEMORY as usize]);
    assert_same("the foreign disk", &content[..128 << 10], &[1; 128 << 10]);
}
