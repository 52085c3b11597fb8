//! Images that lie.
//!
//! Goal: whatever stands in an image, no verb crashes, hangs, blames the plugin, or makes
//! things worse.
//!
//! Method: a sound image with everything in it (backing file, compressed clusters, a foreign
//! snapshot) is damaged in one place: every field of the header and of the snapshot table gets
//! boundary values, tables get entries that point where they must not, the file is cut, bits
//! flip (`snapslot_testkit::malformed`). Then every verb runs, each on a fresh copy; those that need a held slot on an image
//! that was damaged after the take. For each: an exit code other than 7 within ten seconds and
//! JSON on standard output; where the verb failed, not a byte of the image has changed; where
//! it was done, what QEMU could read of the disk and of our snapshot before reads the same, and where
//! `qemu-img check` found no error before, it finds none now and foreign snapshots read the same.
//! (Foreign snapshots that are broken already are neither followed nor trusted by anyone.)
//!
//! `SNAPSLOT_TEST_CASE` runs only the cases whose name contains it, `SNAPSLOT_TEST_SEED` flips
//! other bits.

mod bench;

use bench::Bench;
use snapslot_test_support::setting;
use snapslot_testkit::malformed;

#[test]
fn every_header_field() {
    Bench::run("every_header_field", malformed::header);
}

#[test]
fn every_snapshot_table_field() {
    Bench::run("every_snapshot_table_field", malformed::snapshot_table);
}

#[test]
fn tables_that_point_where_they_must_not() {
    Bench::run("tables_that_point_where_they_must_not", malformed::pointers);
}

#[test]
fn counts_that_are_wrong() {
    Bench::run("counts_that_are_wrong", malformed::counts);
}

#[test]
fn files_that_are_cut() {
    Bench::run("files_that_are_cut", malformed::truncations);
}

#[test]
fn garbage_and_flipped_bits() {
    let seed = setting("SNAPSLOT_TEST_SEED", 0x6172_6261);
    Bench::run("garbage_and_flipped_bits", |sound| malformed::garbage(sound, seed));
}
