//! What is refused, in words and before anything has changed.

use snapslot_test_support::{Image, assert_same};

use super::{Case, MIB};

/// Story: each snapshot adds one to the count of every cluster. A count that does not fit any
/// more must be seen before the first byte is written.
#[test]
fn one_bit_refcounts_are_refused() {
    let case = Case::new(&["refcount_bits=1"], 4 * MIB);
    case.fill(1, 0, MIB);
    case.refused("take", &[], 6);
    case.image.assert_clean();
}

#[test]
fn two_bit_refcounts_hold_three_and_refuse_the_fourth() {
    let case = Case::new(&["refcount_bits=2"], 4 * MIB);
    case.fill(1, 0, MIB);
    case.image.qemu_img(&["snapshot", "-c", "foreign"], &[]).expect_success();
    let name = case.done("take", &[]).snapshot_name();
    // The disk, the foreign one and ours: full. Replacing would need one more for a moment.
    case.refused("take", &["--replace"], 6);
    assert_eq!(case.verb("status", &[]).snapshot_name(), name);
    case.done("restore", &[]);
    case.done("delete", &[]);
    case.image.qemu_img(&["snapshot", "-c", "second"], &[]).expect_success();
    case.refused("take", &[], 6);
    let names: Vec<String> = case.image.snapshots().into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["foreign", "second"]);
    case.image.assert_clean();
}

#[test]
fn an_external_data_file_is_refused() {
    let case = Case::new(&[], MIB);
    let data = case.scratch.join("data.raw");
    let option = format!("data_file={}", data.display());
    let case = Case { image: Image::create(case.scratch.join("e.qcow2"), &[&option], MIB), ..case };
    case.fill(1, 0, MIB);
    let before = std::fs::read(&data).expect("the data file");
    case.refused("take", &[], 6);
    assert_same("the data file", &std::fs::read(&data).expect("the data file"), &before);
}

/// Feature bits that say "do not touch what you do not understand".
#[test]
fn bits_that_forbid_are_obeyed() {
    for (bit, what) in [(1_u32, "corrupt"), (5, "unknown"), (40, "unknown"), (63, "unknown")] {
        let case = Case::new(&[], MIB);
        case.fill(1, 0, MIB);
        case.patch(72, &(1_u64 << bit).to_be_bytes());
        println!("incompatible feature bit {bit}, {what}");
        case.refused("take", &[], 6);
    }
}

#[test]
fn bits_that_forbid_are_obeyed_with_a_held_slot() {
    for bit in [1_u32, 40] {
        let case = Case::new(&[], MIB);
        case.fill(1, 0, MIB);
        case.done("take", &[]);
        case.fill(2, 0, MIB);
        case.patch(72, &(1_u64 << bit).to_be_bytes());
        case.refused("restore", &[], 6);
        case.refused("delete", &[], 6);
    }
}

/// A guest with lazy refcounts that was cut off leaves counts that are not to be trusted.
#[test]
fn a_dirty_image_is_refused_until_it_is_repaired() {
    let case = Case::new(&["lazy_refcounts=on"], 4 * MIB);
    let cut = case.image.guest(["write -P 1 0 1M", "flush", "abort"]);
    assert_ne!(cut.code, Some(0), "qemu-io was to be cut off");
    assert_eq!(case.image.bytes()[79] & 1, 1, "the dirty bit was to be left set");
    case.refused("take", &[], 6);
    case.image.qemu_img(&["check", "-q", "-r", "all"], &[]);
    case.image.assert_clean();
    case.done("take", &[]);
}

/// Values near the ends of 64 and 63 bits: sums of them must not wrap into something small.
#[test]
fn huge_values_are_refused() {
    let fields = [
        ("size", 24),
        ("l1_table_offset", 40),
        ("refcount_table_offset", 48),
        ("snapshots_offset", 64),
        ("backing_file_offset", 8),
    ];
    let values = [
        u64::MAX,
        u64::MAX - 511,
        1 << 63,
        (1 << 63) - 1,
        (1 << 63) - 512,
        (1 << 63) - 65_536,
        1 << 62,
        1 << 56,
    ];
    for (name, at) in fields {
        for value in values {
            let case = Case::new(&[], MIB);
            case.fill(1, 0, MIB);
            case.image.qemu_img(&["snapshot", "-c", "foreign"], &[]).expect_success();
            case.patch(at, &u64::to_be_bytes(value));
            if name == "backing_file_offset" {
                case.patch(16, &8_u32.to_be_bytes());
            }
            println!("{name} = {value:#x}");
            case.refused("take", &[], 6);
        }
    }
}

/// The largest disk QEMU makes: nothing is allocated, but the sums are large.
#[test]
fn a_disk_of_many_tebibytes_works() {
    for (options, size) in [
        (&["cluster_size=2M"][..], 1_u64 << 58),
        (&["cluster_size=512"], 4 << 30),
        (&["compat=0.10"], 1 << 45),
    ] {
        let case = Case::new(options, size);
        let ends = [0, (size / 2) & !511, size - 4096];
        for at in ends {
            case.fill(1, at, 4096);
        }
        case.done("take", &[]);
        for at in ends {
            case.fill(2, at, 4096);
        }
        case.done("restore", &[]);
        let reads = ends.map(|at| format!("read -P 1 {at} 4096"));
        case.image.look(reads).expect_success();
        case.done("delete", &[]);
    }
}

/// Encryption this program has never heard of may mean anything by a cluster's place.
#[test]
fn an_unknown_encryption_is_refused() {
    for method in [3_u32, 0x100, u32::MAX] {
        let case = Case::new(&[], MIB);
        case.fill(1, 0, MIB);
        case.patch(32, &method.to_be_bytes());
        println!("crypt_method = {method:#x}");
        case.refused("take", &[], 6);
    }
}

/// Story: a record whose id is said to be 32,767 bytes long makes the snapshot table reach over
/// the tables behind it. A take moves the snapshot table and frees the clusters of the old one:
/// those of the disk too, and the next guest write would destroy the snapshot just taken.
#[test]
fn a_snapshot_table_that_reaches_over_others_is_refused() {
    for field in [12, 14] {
        let case = Case::new(&["cluster_size=4k"], 4 * MIB);
        case.fill(1, 0, MIB);
        case.image.qemu_img(&["snapshot", "-c", "foreign"], &[]).expect_success();
        case.fill(2, 4096, 64 << 10);
        let record = crate::be64(&case.image.bytes(), 64) as usize;
        case.patch(record + field, &0x7fff_u16.to_be_bytes());
        case.refused("take", &[], 6);
    }
}
