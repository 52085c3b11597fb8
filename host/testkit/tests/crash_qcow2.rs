//! Goal: take, restore and delete on qcow2 survive a crash and a fault at every event.
//! Method: small images of every kind, made by QEMU; the planner runs natively on a simulated
//! disk; every state is judged by the model, a sample by QEMU (see `trial`). At each boundary all subsets
//! of up to ten pending writes, else four hundred of them, or as many as asked for (`SNAPSLOT_CRASH_STATES`); at least ten thousand states
//! for each kind of image that has them.

use snapslot_disk::sim::World;
use snapslot_plugin_qcow2::Qcow2;
use snapslot_plugin_sdk::{Goal, NewSnapshot};
use snapslot_testkit::crash::Options;
use snapslot_testkit::qcow2_judge::Qcow2Judge;
use snapslot_testkit::qcow2_model;
use snapslot_testkit::qemu::{Bench, world_files};
use snapslot_testkit::sim_host::{IMAGE, native, run};
use snapslot_testkit::story::{Act, Came, Story, scattered};
use snapslot_testkit::trial::Depth;

use Act::{Delete, Guest, Resize, Restore, Scatter, Take};

fn depth() -> Depth {
    Depth::new(Options::deep())
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
    scatter(&bench, size);
    live(bench, options, backing, depth(), acts);
}

/// Something all over the disk: tables to change in many places.
fn scatter(bench: &Bench, size: &str) {
    let (number, unit) = size.split_at(size.len() - 1);
    let shift = [("K", 10), ("M", 20), ("G", 30)].into_iter().find(|(u, _)| *u == unit);
    let size = number.parse::<u64>().expect("a number") << shift.expect("a unit").1;
    let commands = scattered(size, 5);
    bench.io("a.qcow2", &commands.iter().map(String::as_str).collect::<Vec<_>>());
}

/// The life of `a.qcow2`.
fn live(bench: Bench, options: &str, backing: Vec<u8>, depth: Depth, acts: &[Act]) {
    let image = bench.read("a.qcow2");
    let judge = Qcow2Judge::new(bench, &image, backing);
    let planner = native::<Qcow2>();
    let mut story = Story::new(&planner, &judge, image, depth);
    story.faults = true;
    for act in acts {
        let came = story.act(*act).unwrap_or_else(|e| panic!("{options}: {e}"));
        assert_eq!(came, Came::Done, "{options}: {act:?}");
    }
    println!("{options}: {}", story.tally);
    // Ten thousand states, or all there are.
    let states = story.tally.states;
    assert!(states.distinct >= 10_000 || states.sampled == 0, "{options}: {}", story.tally);
    assert!(states.distinct > 70 && story.tally.nested_from > 10, "{options}: {}", story.tally);
    assert!(story.tally.faults > 1000 && story.tally.lies > 200, "{options}: {}", story.tally);
}

const USUAL: &[Act] = &[
    Take,
    Scatter(11),
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
    life("cluster_size=512", "1M", false, USUAL);
}

#[test]
fn clusters_512_foreign() {
    life("cluster_size=512", "1M", true, USUAL);
}

#[test]
fn clusters_4096() {
    life("cluster_size=4096", "48M", false, USUAL);
}

#[test]
fn clusters_4096_foreign() {
    life("cluster_size=4096", "48M", true, USUAL);
}

#[test]
fn clusters_65536_foreign() {
    life("cluster_size=65536", "8G", true, USUAL);
}

#[test]
fn version_2() {
    life("compat=0.10,cluster_size=512", "1M", false, USUAL);
    life("compat=0.10,cluster_size=65536", "8G", true, USUAL);
}

#[test]
fn version_2_with_backing_file() {
    life(
        "compat=0.10,cluster_size=4096,backing_file=base.raw,backing_fmt=raw",
        "48M",
        false,
        USUAL,
    );
}

#[test]
fn backing_file() {
    life("cluster_size=4096,backing_file=base.raw,backing_fmt=raw", "48M", true, USUAL);
}

#[test]
fn narrow_counts() {
    life("cluster_size=512,refcount_bits=2", "1M", false, USUAL);
    life("cluster_size=4096,refcount_bits=4", "48M", true, USUAL);
    life("cluster_size=4096,refcount_bits=8", "48M", true, USUAL);
}

#[test]
fn wide_counts() {
    life("cluster_size=4096,refcount_bits=32", "48M", false, USUAL);
    life("cluster_size=512,refcount_bits=64", "1M", true, USUAL);
}

#[test]
fn extended_l2() {
    life("cluster_size=16384,extended_l2=on", "256M", true, USUAL);
}

#[test]
fn lazy_refcounts() {
    life("cluster_size=4096,lazy_refcounts=on", "48M", false, USUAL);
}

#[test]
fn resized() {
    let acts = &[
        Take,
        Resize("64M"),
        Guest("write -q -P 21 60M 8k"),
        Scatter(23),
        Restore,
        Resize("128K"),
        Guest("write -q -P 22 100k 4k"),
        Restore,
        Scatter(24),
        Delete,
        Take,
        Delete,
    ];
    life("cluster_size=512", "1M", false, acts);
    life("cluster_size=4096", "48M", true, acts);
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
    // A hundred and thirty writes are pending at a hundred and thirty boundaries: ten thousand states and more
    // come of fewer random ones, and of fewer recoveries; its calls are of the same kinds as in every other life here.
    let states = Options { seeded: 30, singles: 30, ..depth().states };
    let depth = Depth { nested_first: 1, nested_every: 1000, upset_every: 7, ..Depth::new(states) };
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
    let acts = &[
        Take,
        Guest("write -q -P 61 20k 30k"),
        Restore,
        Scatter(62),
        Restore,
        Guest("write -q -P 63 1k 9k"),
        Delete,
        Take,
        Delete,
    ];
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
