//! Goal: the crash enumeration and its judges find planners that are wrong. Method: the sound qcow2
//! planner, with one thing wrong in the plans it gives; each of them must be caught in a short life
//! of an image, and the same life without the fault must pass. That the rest of the tests find
//! nothing means something only because of this one.

use std::sync::Arc;

use snapslot_capture::{Plan, PlanBuilder, Seal, Step};
use snapslot_disk::Disk;
use snapslot_plugin_qcow2::Qcow2;
use snapslot_plugin_sdk::{Facts, Failure, FailureKind, Goal};
use snapslot_testkit::crash::Options;
use snapslot_testkit::qcow2_judge::Qcow2Judge;
use snapslot_testkit::qemu::Bench;
use snapslot_testkit::sim_host::{Planner, native};
use snapslot_testkit::story::Act::{self, Delete, Guest, Restore, Take};
use snapslot_testkit::story::{Came, Story};
use snapslot_testkit::trial::Depth;

/// A plan in pieces.
struct Pieces {
    seal: Option<Seal>,
    phases: Vec<(String, Vec<Step>)>,
}

/// Which plans are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum In {
    Take,
    Restore,
    Delete,
}

type Fault = fn(&mut Pieces);

/// What is wrong, in which plans, and the fault.
const FAULTS: &[(&str, In, Fault)] = &[
    ("no flush between seal and work", In::Take, |p| merge(p, 0)),
    ("no flush before the header names the snapshot", In::Take, |p| merge(p, 1)),
    ("the header names the snapshot before it is counted", In::Take, |p| p.phases.swap(1, 2)),
    ("the shared clusters are not counted", In::Take, |p| drop_write(p, 1, is_counts)),
    ("a count is too low", In::Take, |p| change(p, 1, is_counts, |d| d[1] -= 1)),
    ("a count is too high", In::Take, |p| change(p, 1, is_counts, |d| d[1] += 1)),
    ("a new cluster is not counted", In::Take, |p| change(p, 1, is_counts, |d| last(d, 0))),
    ("the L1 table is not copied", In::Take, |p| drop_write(p, 1, is_l1)),
    ("the copied L1 table leads elsewhere", In::Take, |p| change(p, 1, is_l1, |d| d[5] ^= 4)),
    ("the snapshot table is not written", In::Take, |p| drop_write(p, 1, is_table)),
    ("the snapshot bears another mark", In::Take, |p| change(p, 1, is_table, |d| d[80] ^= 1)),
    ("the snapshot has another size", In::Take, |p| change(p, 1, is_table, |d| d[54] ^= 1)),
    ("COPIED stays set in the L1 table", In::Take, |p| drop_mask(p, 1, 0)),
    ("COPIED stays set in the L2 table", In::Take, |p| drop_mask(p, 1, 1)),
    ("no seal at all", In::Take, |p| {
        p.phases.remove(0);
        p.seal = None;
    }),
    ("the seal is never taken off", In::Take, |p| change(p, 2, |_| true, |d| d[79] |= 1)),
    ("the image is not grown to hold all", In::Take, |p| {
        p.phases[1].1.retain(|s| !matches!(s, Step::Extend { .. }));
        p.phases[1].1.retain(|s| !matches!(s, Step::Write { data, .. } if is_table(data)));
    }),
    ("no flush between counting and switching", In::Restore, |p| merge(p, 1)),
    ("no flush between switching and freeing", In::Restore, |p| merge(p, 2)),
    ("no flush between freeing and taking the seal off", In::Restore, |p| merge(p, 3)),
    ("it switches before it counts", In::Restore, |p| p.phases.swap(1, 2)),
    ("it frees before it switches", In::Restore, |p| p.phases.swap(2, 3)),
    ("it takes the seal off before it frees", In::Restore, |p| p.phases.swap(3, 4)),
    ("it never switches", In::Restore, |p| drop(p.phases.remove(2))),
    ("it never frees", In::Restore, |p| drop(p.phases.remove(3))),
    ("it frees one too many", In::Restore, |p| change(p, 3, is_counts, free_one)),
    ("it never takes the seal off", In::Restore, |p| drop(p.phases.pop())),
    ("the L1 table is written in place", In::Restore, |p| {
        // Where the table that is in use lies, in an image made by qemu-img with these options.
        for step in &mut p.phases[1].1 {
            if let Step::Write { offset, data } = step
                && is_l1(data)
            {
                *offset = 0x30000;
            }
        }
    }),
    ("it frees before it forgets", In::Delete, |p| p.phases.swap(0, 1)),
    ("no flush between forgetting and freeing", In::Delete, |p| merge(p, 0)),
    ("no flush between freeing and taking the seal off", In::Delete, |p| merge(p, 1)),
    ("what the snapshot held is never freed", In::Delete, |p| drop_write(p, 1, is_counts)),
    ("what the disk needs is freed too", In::Delete, |p| change(p, 1, is_counts, free_one)),
    ("COPIED stays clear", In::Delete, |p| drop_mask(p, 1, 0)),
    ("it never forgets", In::Delete, |p| drop(p.phases.remove(0))),
];

/// Counts of 16 bits each: no other write of these plans has a length like that.
fn is_counts(data: &[u8]) -> bool {
    data.len() < 64 && !data.len().is_multiple_of(8)
}

/// A table of one entry.
fn is_l1(data: &[u8]) -> bool {
    data.len() == 8
}

fn is_table(data: &[u8]) -> bool {
    (64..512).contains(&data.len())
}

fn last(data: &mut [u8], value: u8) {
    let at = data.len() - 1;
    data[at] = value;
}

/// The first count that is not 0 becomes 0.
fn free_one(counts: &mut [u8]) {
    let used = counts.chunks_exact_mut(2).find(|c| c.iter().any(|b| *b != 0));
    used.expect("a count that is not 0").fill(0);
}

fn merge(p: &mut Pieces, first: usize) {
    let (_, second) = p.phases.remove(first + 1);
    p.phases[first].1.extend(second);
}

fn drop_write(p: &mut Pieces, phase: usize, which: fn(&[u8]) -> bool) {
    let before = p.phases[phase].1.len();
    p.phases[phase].1.retain(|s| !matches!(s, Step::Write { data, .. } if which(data)));
    assert!(p.phases[phase].1.len() < before, "there is no such write: {:?}", p.phases[phase]);
}

fn drop_mask(p: &mut Pieces, phase: usize, nth: usize) {
    let steps = &mut p.phases[phase].1;
    let masks: Vec<usize> =
        (0..steps.len()).filter(|i| matches!(steps[*i], Step::Mask(_))).collect();
    steps.remove(masks[nth]);
}

fn change(p: &mut Pieces, phase: usize, which: fn(&[u8]) -> bool, f: fn(&mut [u8])) {
    let mut any = false;
    for step in &mut p.phases[phase].1 {
        if let Step::Write { data, .. } = step
            && which(data)
        {
            f(data);
            any = true;
        }
    }
    assert!(any, "there is no such write: {:?}", p.phases[phase]);
}

/// The sound planner with a fault in some of its plans.
struct Broken {
    within: In,
    fault: Fault,
}

impl Planner for Broken {
    fn inspect(&self, disk: Arc<dyn Disk>) -> Result<Facts, Failure> {
        native::<Qcow2>().inspect(disk)
    }

    fn plan(&self, disk: Arc<dyn Disk>, goal: &Goal) -> Result<Plan, Failure> {
        let sound = native::<Qcow2>().plan(disk, goal)?;
        let here = match goal {
            Goal::Held(_) => In::Take,
            Goal::Restored(_) | Goal::Consumed(_) => In::Restore,
            Goal::Empty(_) | Goal::Settled => In::Delete,
        };
        if here != self.within || sound.is_empty() {
            return Ok(sound);
        }
        let phases = sound.phases().map(|(title, steps)| (title.to_owned(), steps.to_vec()));
        let mut pieces = Pieces { seal: sound.seal(), phases: phases.collect() };
        (self.fault)(&mut pieces);
        built(pieces).map_err(|e| Failure::new(FailureKind::Invalid, "plan", e.to_string()))
    }
}

fn built(pieces: Pieces) -> Result<Plan, snapslot_capture::PlanError> {
    let mut plan = PlanBuilder::new();
    if let Some(seal) = pieces.seal {
        plan.seal(seal)?;
    }
    for (title, steps) in pieces.phases {
        for step in steps {
            match step {
                Step::Write { offset, data } => plan.write(offset, data)?,
                Step::Fill { offset, length, pattern } => plan.fill(offset, length, pattern)?,
                Step::Mask(mask) => plan.mask(mask)?,
                Step::Extend { size } => plan.extend(size)?,
                other => panic!("a qcow2 plan has {other:?}"),
            }
        }
        plan.barrier(&title)?;
    }
    plan.finish()
}

const LIFE: &[Act] =
    &[Take, Guest("write -q -P 11 0 100k"), Restore, Guest("write -q -P 12 64k 1k"), Delete];

/// How the life ended: well, or caught in which act by what.
fn live(planner: &dyn Planner) -> Result<(), String> {
    let bench = Bench::new();
    bench.img(&["create", "-q", "-f", "qcow2", "a.qcow2", "1M"]);
    bench.io("a.qcow2", &["write -q -P 1 0 200k"]);
    let image = bench.read("a.qcow2");
    let judge = Qcow2Judge::new(bench, &image, Vec::new());
    let mut depth = Depth::new(Options::from_environment(10, 5));
    depth.opinion_every = 0;
    let mut story = Story::new(planner, &judge, image, depth);
    for act in LIFE {
        match story.act(*act)? {
            Came::Done => {}
            Came::Refused(code) => return Err(format!("{act:?}: refused: {code}")),
        }
    }
    Ok(())
}

#[test]
fn the_sound_planner_passes() {
    live(&native::<Qcow2>()).expect("the sound planner");
}

#[test]
fn each_broken_planner_is_caught() {
    let mut missed = Vec::new();
    for (what, within, fault) in FAULTS {
        match live(&Broken { within: *within, fault: *fault }) {
            Err(caught) => {
                // Not because there was nothing to break.
                assert!(
                    caught.starts_with(&format!("{within:?}:")),
                    "{within:?}, {what}: {caught}"
                );
                println!(
                    "{within:?}, {what}: {}",
                    caught.lines().take(2).collect::<Vec<_>>().join(" ")
                );
            }
            Ok(()) => missed.push(format!("{within:?}, {what}")),
        }
    }
    println!("{} broken planners", FAULTS.len());
    assert!(missed.is_empty(), "not caught: {missed:#?}");
}
