//! Goal: no order of take, restore, delete, guest write and resize leads anywhere but to the
//! goal, crash or not.
//! Method: every sequence up to length 3 on small images; each verb that ends one is crashed at
//! every event.

use snapslot_plugin_qcow2::Qcow2;
use snapslot_testkit::crash::Options;
use snapslot_testkit::qcow2_judge::Qcow2Judge;
use snapslot_testkit::qemu::Bench;
use snapslot_testkit::sim_host::native;
use snapslot_testkit::story::{Act, Came, Story};
use snapslot_testkit::trial::{Depth, Tally};

const ACTS: [Act; 7] = [
    Act::Take,
    Act::Restore,
    Act::Delete,
    Act::Guest("write -q -P 31 3k 21k"),
    Act::Guest("discard 16k 14k"),
    Act::Resize("96K"),
    Act::Resize("32K"),
];

#[derive(Default)]
struct Walk {
    sequences: usize,
    refused: usize,
    tally: Tally,
}

impl Walk {
    fn on(&mut self, story: &Story<'_>, path: &mut Vec<Act>, left: usize) {
        if left == 0 {
            return;
        }
        for act in ACTS {
            let mut next = story.clone();
            next.tally = Tally::default();
            path.push(act);
            let came = next.act(act).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            match came {
                Came::Done => {
                    self.sequences += 1;
                    self.tally += next.tally;
                    self.on(&next, path, left - 1);
                }
                Came::Refused(code) => {
                    let expected = ["slot", "v2", "v2-resized"].contains(&code.as_str());
                    assert!(expected, "{path:?} refused: {code}");
                    self.refused += 1;
                }
            }
            path.pop();
        }
    }
}

fn walk(options: &str, foreign: bool, first: &[Act]) {
    let bench = Bench::new();
    bench.img(&["create", "-q", "-f", "qcow2", "-o", options, "a.qcow2", "64K"]);
    bench.io("a.qcow2", &["write -q -P 1 0 20k", "write -q -P 2 50k 14k"]);
    if foreign {
        bench.img(&["snapshot", "-c", "foreign", "a.qcow2"]);
        bench.io("a.qcow2", &["write -q -P 3 18k 4k"]);
    }
    let image = bench.read("a.qcow2");
    let judge = Qcow2Judge::new(bench, &image, Vec::new());
    let depth = Depth::new(Options::from_environment(6, 5));
    let planner = native::<Qcow2>();
    let mut story = Story::new(&planner, &judge, image, Depth { opinion_every: 0, ..depth });
    let mut path = Vec::new();
    for act in first {
        path.push(*act);
        story.act(*act).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    }
    let mut walk = Walk::default();
    walk.on(&story, &mut path, 3);
    let Walk { sequences, refused, tally } = walk;
    println!("{options}, {foreign}: {sequences} sequences, {refused} refused; {tally}");
    assert!(sequences > 50 && tally.states.distinct > 1000, "{sequences}: {tally}");
}

#[test]
fn version_3() {
    walk("cluster_size=512", false, &[]);
}

#[test]
fn version_3_held_and_foreign() {
    walk("cluster_size=1024", true, &[Act::Take, Act::Guest("write -q -P 40 0 5k")]);
}

#[test]
fn version_2() {
    walk("compat=0.10,cluster_size=512", false, &[]);
}
