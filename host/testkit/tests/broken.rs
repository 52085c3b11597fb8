//! Goal: the crash enumeration and its judges find planners that are wrong. Method: the sound qcow2
//! planner, with one thing wrong in the plans it gives (`tests/broken`); each of them must be caught in a short life
//! of an image, and the same life without the fault must pass. That the rest of the tests find
//! nothing means something only because of this one. The kit's own tests run the same faults as a component.

use snapslot_test_broken::{Base, Broken, How, faults, sound, with_fault};
use snapslot_testkit::crash::Options;
use snapslot_testkit::qcow2_judge::Qcow2Judge;
use snapslot_testkit::qemu::Bench;
use snapslot_testkit::sim_host::native;
use snapslot_testkit::story::Act::{self, Delete, Guest, Restore, Take};
use snapslot_testkit::story::{Came, Story};
use snapslot_testkit::trial::Depth;

const LIFE: &[Act] =
    &[Take, Guest("write -q -P 11 0 100k"), Restore, Guest("write -q -P 12 64k 1k"), Delete];

/// How the life ended with this fault: well, or caught in which act by what.
fn live(fault: usize) -> Result<(), String> {
    let bench = Bench::new();
    bench.img(&["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    bench.io("a.qcow2", &["write -q -P 1 0 200k"]);
    let image = bench.read("a.qcow2");
    let judge = Qcow2Judge::new(bench, &image, Vec::new());
    let mut depth = Depth::new(Options::deep());
    depth.opinion_every = 0;
    with_fault(fault, || {
        let planner = native::<Broken>();
        let mut story = Story::new(&planner, &judge, image, depth);
        for act in LIFE {
            match story.act(*act)? {
                Came::Done => {}
                Came::Refused(code) => return Err(format!("{act:?}: refused: {code}")),
            }
        }
        Ok(())
    })
}

#[test]
fn the_sound_planner_passes() {
    live(sound(Base::Qcow2)).expect("the sound planner");
}

#[test]
fn each_broken_planner_is_caught() {
    let mut missed = Vec::new();
    let mut tried = 0;
    for (number, fault) in faults().iter().enumerate() {
        let How::Steps(within, _) = fault.how else { continue };
        tried += 1;
        match live(number) {
            Err(caught) => {
                // Not because there was nothing to break.
                assert!(
                    caught.starts_with(&format!("{within:?}:")),
                    "{within:?}, {}: {caught}",
                    fault.what
                );
                println!(
                    "{within:?}, {}: {}",
                    fault.what,
                    caught.lines().take(2).collect::<Vec<_>>().join(" ")
                );
            }
            Ok(()) => missed.push(format!("{within:?}, {}", fault.what)),
        }
    }
    println!("{tried} broken planners");
    assert!(missed.is_empty() && tried >= 35, "not caught: {missed:#?}");
}
