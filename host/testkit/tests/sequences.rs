//! Goal: no order of take, restore, delete, guest write and resize leads anywhere but to the
//! goal, crash or not.
//! Method: every sequence up to length 3 on small images; each verb that ends one is crashed at
//! every event, its last write torn, and its recovery crashed too.

use snapslot_plugin_qcow2::Qcow2;
use snapslot_testkit::crash::Options;
use snapslot_testkit::qcow2_judge::Qcow2Judge;
use snapslot_testkit::qemu::Bench;
use snapslot_testkit::sim_host::native;
use snapslot_testkit::story::{Act, Story};
use snapslot_testkit::trial::Depth;
use snapslot_testkit::walk::{Walked, walk};

fn all(options: &str, foreign: bool, first: &[Act]) {
    let bench = Bench::new();
    bench.img(&["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "64K"]);
    bench.io("a.qcow2", &["write -q -P 1 0 20k", "write -q -P 2 50k 14k"]);
    if foreign {
        bench.img(&["snapshot", "-c", "foreign", "a.qcow2"]);
        bench.io("a.qcow2", &["write -q -P 3 18k 4k"]);
    }
    let image = bench.read("a.qcow2");
    let judge = Qcow2Judge::new(bench, &image, Vec::new());
    let depth = Depth { opinion_every: 0, ..Depth::new(Options::deep()) };
    let planner = native::<Qcow2>();
    let mut story = Story::new(&planner, &judge, image, depth);
    for act in first {
        story.act(*act).unwrap_or_else(|e| panic!("{act:?}, before it begins: {e}"));
    }
    let walked = walk(&story, 3).unwrap_or_else(|e| panic!("{options}, after {first:?}: {e}"));
    let Walked { sequences, refused, tally } = walked;
    println!("{options}, {foreign}: {sequences} sequences, {refused} refused; {tally}");
    assert!(sequences > 50 && tally.states.distinct > 1000, "{sequences}: {tally}");
    assert!(tally.states.distinct >= 10_000 || tally.states.sampled == 0, "{tally}");
}

#[test]
fn version_3() {
    all("cluster_size=512", false, &[]);
}

#[test]
fn version_3_held_and_foreign() {
    all("cluster_size=1024", true, &[Act::Take, Act::Guest("write -q -P 40 0 5k")]);
}

#[test]
fn version_2() {
    all("compat=0.10,cluster_size=512", false, &[]);
}
