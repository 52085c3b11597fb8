//! Random walks over the feature matrix.
//!
//! Goal: whatever a guest wrote and whatever an image is made of, take, restore and delete do
//! what they say, and QEMU's tools find nothing to complain about after any of them.
//!
//! Method: each feature set gets an image and a walk of random steps: guest writes of all kinds,
//! resizes, QEMU's own snapshots, and the verbs. A copy of the guest's bytes in memory says
//! what the disk and the snapshots must hold. After every verb QEMU's tools are asked: check,
//! the list of snapshots, the content of the disk and of the snapshots. The walk is a function
//! of a seed; a failure prints it, the steps, and the command that replays it.
//!
//! `SNAPSLOT_TEST_WALKS` (walks for each feature set, 1), `SNAPSLOT_TEST_STEPS` (24) and
//! `SNAPSLOT_TEST_SEED` make it longer, or another.

mod feature;
mod reference;
mod walk;

use feature::{Backing, Feature};
use snapslot_test_support::{SplitMix64, setting};

/// Walks with each of these; `test` is the name of the test, for the replay.
fn walks(test: &str, features: &[Feature]) {
    let walks = setting("SNAPSLOT_TEST_WALKS", 1);
    let seed = setting("SNAPSLOT_TEST_SEED", 0x51a9_5107);
    let mut counts = walk::Counts::default();
    for feature in features {
        for n in 0..walks {
            counts.add(&walk::walk(test, feature, seed, n));
        }
    }
    println!("{test}: {} walks, {counts}", features.len() as u64 * walks);
    counts.assert_worked(test);
}

fn clusters(sizes: &[u64]) -> Vec<Feature> {
    sizes.iter().map(|size| Feature::new().cluster(*size)).collect()
}

#[test]
fn small_clusters() {
    walks("small_clusters", &clusters(&[512, 1 << 10, 2 << 10, 4 << 10]));
}

#[test]
fn middle_clusters() {
    walks("middle_clusters", &clusters(&[8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10]));
}

#[test]
fn large_clusters() {
    walks("large_clusters", &clusters(&[256 << 10, 512 << 10, 1 << 20, 2 << 20]));
}

#[test]
fn refcount_widths() {
    let mut features: Vec<Feature> =
        [2, 4, 8, 16, 32, 64].map(|bits| Feature::new().cluster(4096).refcount_bits(bits)).into();
    features.push(Feature::new().cluster(512).refcount_bits(2));
    features.push(Feature::new().cluster(512).refcount_bits(64));
    features.push(Feature::new().cluster(65536).refcount_bits(8).compressed("zlib"));
    features.push(Feature::new().cluster(65536).refcount_bits(32).foreign());
    walks("refcount_widths", &features);
}

#[test]
fn version_2() {
    let v2 = || Feature::new().version_2();
    walks(
        "version_2",
        &[
            v2().cluster(512),
            v2().cluster(4096),
            v2().cluster(65536),
            v2().cluster(2 << 20),
            v2().cluster(512).backing(Backing::Larger),
            v2().cluster(65536).backing(Backing::Smaller),
            v2().cluster(4096).compressed("zlib"),
            v2().cluster(4096).foreign(),
        ],
    );
}

#[test]
fn compressed_clusters() {
    let of = |cluster, method| Feature::new().cluster(cluster).compressed(method);
    walks(
        "compressed_clusters",
        &[
            of(512, "zlib"),
            of(4096, "zlib"),
            of(65536, "zlib"),
            of(4096, "zstd"),
            of(65536, "zstd"),
            of(65536, "zstd").foreign().backing(Backing::Larger),
            of(4096, "zlib").refcount_bits(4),
        ],
    );
}

#[test]
fn extended_l2() {
    let of = |cluster| Feature::new().extended_l2().cluster(cluster);
    walks(
        "extended_l2",
        &[
            of(16 << 10),
            of(64 << 10),
            of(2 << 20),
            of(16 << 10).compressed("zstd").foreign(),
            of(64 << 10).backing(Backing::Larger),
        ],
    );
}

#[test]
fn lazy_and_preallocated() {
    let of = |option| Feature::new().option(option);
    walks(
        "lazy_and_preallocated",
        &[
            of("lazy_refcounts=on").cluster(512),
            of("lazy_refcounts=on").cluster(65536).foreign(),
            of("preallocation=metadata").cluster(512),
            of("preallocation=metadata").cluster(65536),
            of("preallocation=falloc").cluster(4096),
        ],
    );
}

#[test]
fn backing_files() {
    let of = |cluster, backing| Feature::new().cluster(cluster).backing(backing);
    walks(
        "backing_files",
        &[
            of(512, Backing::Smaller),
            of(4096, Backing::Larger),
            of(65536, Backing::Smaller),
            of(65536, Backing::Larger).foreign(),
            of(65536, Backing::Qcow2),
        ],
    );
}

#[test]
fn encrypted() {
    walks(
        "encrypted",
        &[
            Feature::new().luks().cluster(65536),
            Feature::new().luks().cluster(4096).foreign(),
            Feature::new().luks().cluster(512),
        ],
    );
}

#[test]
fn persistent_bitmaps() {
    walks(
        "persistent_bitmaps",
        &[
            Feature::new().bitmap().cluster(512),
            Feature::new().bitmap().cluster(4096),
            Feature::new().bitmap().cluster(65536),
        ],
    );
}

#[test]
fn foreign_snapshots() {
    walks(
        "foreign_snapshots",
        &[
            Feature::new().foreign().cluster(512),
            Feature::new().foreign().cluster(4096),
            Feature::new().foreign().cluster(65536).option("lazy_refcounts=on"),
        ],
    );
}

/// Features in random company; another seed gives another company.
#[test]
fn mixed() {
    let seed = setting("SNAPSLOT_TEST_SEED", 0x51a9_5107);
    let mut random = SplitMix64::new(seed ^ 0x006d_6978);
    let features: Vec<Feature> = (0..10).map(|_| Feature::random(&mut random)).collect();
    walks("mixed", &features);
}

/// One-bit counts cannot count a snapshot: every take is refused and nothing is touched.
#[test]
fn one_bit_refcounts() {
    walks(
        "one_bit_refcounts",
        &[
            Feature::new().refcount_bits(1).cluster(512),
            Feature::new().refcount_bits(1).cluster(65536).backing(Backing::Larger),
        ],
    );
}
