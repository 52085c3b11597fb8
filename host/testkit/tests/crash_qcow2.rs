//! Goal: take, restore and delete on qcow2 survive a crash and a fault at every event.
//! Method: small images of every kind, made by QEMU; the planner runs natively on a simulated
//! disk; every state is judged by the model, a sample by QEMU (see `trial`).
//!
//! Deeper: `SNAPSLOT_CRASH_STATES=1000 cargo test --release -p snapslot-testkit`.

use snapslot_disk::sim::World;
use snapslot_plugin_qcow2::Qcow2;
use snapslot_plugin_sdk::{Goal, NewSnapshot};
use snapslot_testkit::crash::Options;
use snapslot_testkit::qcow2_judge::Qcow2Judge;
use snapslot_testkit::qcow2_model;
use snapslot_testkit::qemu::{Bench, world_files};
use snapslot_testkit::sim_host::{IMAGE, native, run};
use snapslot_testkit::story::{Act, Came, Story};
use snapslot_testkit::trial::Depth;

use Act::{Delete, Guest, Resize, Restore, Take};

fn depth() -> Depth {
    Depth::new(Options::from_environment(20, 6))
}

const FIRST: &[&str] = &[
    "write -q -P 1 0 40k",
    "write -q -z 8k 4k",
    "write -q -P 3 120k 33k",
    "write -q -P 4 200k 512",
];

/// A life of one image; `options` as for `qemu-img create -o`.
fn life(options: &str, size: &str, foreign: bool, acts: &[Act]) {
    let bench = Bench::new();
    let backed = options.contains("backing_file");
    let mut backing = Vec::new();
    if backed {
        backing = (0..150_000_u32).map(|i| (i / 700) as u8).collect();
        backing.resize(147 * 1024, 0);
        bench.write("base.raw", &backing);
    }
    bench.img(&["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", size]);
    if foreign {
        bench.io("a.qcow2", &["write -q -P 8 4k 90k"]);
        bench.img(&["snapshot", "-c", "foreign one", "a.qcow2"]);
    }
    bench.io("a.qcow2", FIRST);
    if foreign {
        bench.img(&["snapshot", "-c", "foreign two", "a.qcow2"]);
        bench.io("a.qcow2", &["write -q -P 9 10k 12k"]);
    }
    live(bench, options, backing, depth(), acts);
}

/// The life of `a.qcow2`.
fn live(bench: Bench, options: &str, backing: Vec<u8>, depth: Depth, acts: &[Act]) {
    let image = bench.read("a.qcow2");
    let judge = Qcow2Judge::new(bench, &image, backing);
    let planner = native::<Qcow2>();
    let mut story = Story::new(&planner, &judge, image, depth);
    // Each event fails in four ways: not where there are hundreds of them.
    story.faults = depth.states.singles == usize::MAX;
    for act in acts {
        let came = story.act(*act).unwrap_or_else(|e| panic!("{options}: {e}"));
        assert_eq!(came, Came::Done, "{options}: {act:?}");
    }
    println!("{options}: {}", story.tally);
    assert!(story.tally.states.distinct > 70, "{options}: {}", story.tally);
}

const USUAL: &[Act] = &[
    Take,
    Guest("write -q -P 11 20k 30k"),
    Guest("write -q -z 130k 5k"),
    Restore,
    Guest("write -q -P 12 0 512"),
    Restore,
    Delete,
    Take,
    Guest("discard 0 128k"),
    Delete,
];

#[test]
fn clusters_512() {
    life("cluster_size=512", "256K", false, USUAL);
}

#[test]
fn clusters_512_foreign() {
    life("cluster_size=512", "256K", true, USUAL);
}

#[test]
fn clusters_4096() {
    life("cluster_size=4096", "1M", false, USUAL);
}

#[test]
fn clusters_4096_foreign() {
    life("cluster_size=4096", "1M", true, USUAL);
}

#[test]
fn clusters_65536_foreign() {
    life("cluster_size=65536", "1M", true, USUAL);
}

#[test]
fn version_2() {
    life("compat=0.10,cluster_size=512", "256K", false, USUAL);
    life("compat=0.10,cluster_size=65536", "1M", true, USUAL);
}

#[test]
fn version_2_with_backing_file() {
    life("compat=0.10,cluster_size=4096,backing_file=base.raw,backing_fmt=raw", "1M", false, USUAL);
}

#[test]
fn backing_file() {
    life("cluster_size=4096,backing_file=base.raw,backing_fmt=raw", "1M", true, USUAL);
}

#[test]
fn narrow_counts() {
    life("cluster_size=512,refcount_bits=2", "256K", false, USUAL);
    life("cluster_size=4096,refcount_bits=4", "1M", true, USUAL);
    life("cluster_size=4096,refcount_bits=8", "1M", true, USUAL);
}

#[test]
fn wide_counts() {
    life("cluster_size=4096,refcount_bits=32", "1M", false, USUAL);
    life("cluster_size=512,refcount_bits=64", "256K", true, USUAL);
}

#[test]
fn extended_l2() {
    life("cluster_size=16384,extended_l2=on", "1M", true, USUAL);
}

#[test]
fn lazy_refcounts() {
    life("cluster_size=4096,lazy_refcounts=on", "1M", false, USUAL);
}

#[test]
fn resized() {
    let acts = &[
        Take,
        Resize("2M"),
        Guest("write -q -P 21 1500k 8k"),
        Restore,
        Resize("128K"),
        Guest("write -q -P 22 100k 4k"),
        Restore,
        Delete,
    ];
    life("cluster_size=512", "256K", false, acts);
    life("cluster_size=4096", "256K", true, acts);
}

/// An L1 table of several sectors and clusters: a restore that overwrote it would be torn.
#[test]
fn long_l1() {
    let acts = &[
        Guest("write -q -P 41 3000k 2k"),
        Take,
        Guest("write -q -P 42 0 2k"),
        Guest("write -q -P 43 2900k 200k"),
        Restore,
        Delete,
    ];
    life("cluster_size=512", "4M", true, acts);
}

/// The file is nearly as long as its refcount table reaches, so that the take must move it.
#[test]
fn refcount_table_grows() {
    let options = "cluster_size=512,refcount_bits=64";
    let made = (3955..3975_u32).rev().find_map(|filled| {
        let bench = Bench::new();
        bench.img(&["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "2M"]);
        bench.io("a.qcow2", &[&format!("write -q -P 51 0 {}", filled * 512)]);
        let world = World::new(world_files(bench.read("a.qcow2")));
        let before = world.bytes(IMAGE)?;
        let mark = "0".repeat(16);
        let goal = Goal::Held(NewSnapshot {
            mark,
            taken_seconds: 1,
            taken_nanoseconds: 0,
            room: None,
            beside: 0,
            full_copy: false,
        });
        run(&native::<Qcow2>(), &world, &goal).unwrap_or_else(|e| panic!("{filled} clusters: {e}"));
        let table = |bytes: &[u8]| {
            let image = qcow2_model::Qcow2::read(bytes).expect("readable");
            image.header().refcount_table_offset
        };
        (table(&before) != table(&world.bytes(IMAGE)?)).then_some(bench)
    });
    let bench = made.expect("a size at which the take needs a longer refcount table");
    let states = Options { singles: 2, seeded: 2, tears: false, ..depth().states };
    let depth = Depth { nested_every: 1 << 40, ..Depth::new(states) };
    live(bench, "refcount table grows", Vec::new(), depth, &[Take]);
}

#[test]
fn compressed() {
    let bench = Bench::new();
    let noise: Vec<u8> = (0..262_144_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> (i / 5000 % 24)) as u8)
        .collect();
    bench.write("base.raw", &noise);
    let options = "cluster_size=4096";
    bench.img(&["convert", "-c", "-O", "qcow2", "-o", options, "base.raw", "a.qcow2"]);
    let acts =
        &[Take, Guest("write -q -P 61 20k 30k"), Restore, Guest("write -q -P 62 1k 9k"), Delete];
    live(bench, "compressed", Vec::new(), depth(), acts);
}

#[test]
fn bitmaps() {
    let bench = Bench::new();
    bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", "a.qcow2", "1M"]);
    bench.io("a.qcow2", FIRST);
    bench.img(&["bitmap", "--add", "-g", "512", "a.qcow2", "b0"]);
    bench.io("a.qcow2", &["write -q -P 71 30k 30k"]);
    // No second opinion: on any image with bitmaps and snapshots, whoever made them, QEMU 10's
    // `check -r` writes the header back with no snapshots before it has read them.
    let depth = Depth { opinion_every: 0, ..depth() };
    live(bench, "bitmaps", Vec::new(), depth, USUAL);
}

#[test]
fn preallocated() {
    life("cluster_size=4096,preallocation=metadata", "512K", false, USUAL);
}
