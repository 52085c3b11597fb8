//! Plans of images with one step wrong.

use snapslot_plugin_sdk::double::{Recorded, RecordedPlan};

use crate::{Base, Fault, How, In};

/// A plan in pieces.
#[derive(Debug)]
pub struct Pieces {
    seal: Option<(u64, u64)>,
    notes: Vec<String>,
    phases: Vec<(String, Vec<Recorded>)>,
    /// Where the L1 table lies that is in use.
    l1: u64,
}

impl Pieces {
    pub(crate) fn of(plan: RecordedPlan, l1: u64) -> Pieces {
        let mut phases = Vec::new();
        let mut steps = Vec::new();
        for step in plan.steps {
            match step {
                Recorded::Barrier(title) => phases.push((title, std::mem::take(&mut steps))),
                step => steps.push(step),
            }
        }
        if !steps.is_empty() {
            phases.push(("the rest".to_owned(), steps));
        }
        Pieces { seal: plan.seal, notes: plan.notes, phases, l1 }
    }

    pub(crate) fn into_plan(self) -> RecordedPlan {
        let mut plan = RecordedPlan::default();
        plan.seal = self.seal;
        plan.notes = self.notes;
        for (title, steps) in self.phases {
            plan.steps.extend(steps);
            plan.steps.push(Recorded::Barrier(title));
        }
        plan
    }
}

/// What is wrong, in which plans, and how it is made so.
type Planted = (&'static str, In, fn(&mut Pieces));

pub(crate) fn faults() -> impl Iterator<Item = Fault> {
    let fault = |(what, within, change): (_, _, fn(&mut Pieces))| Fault {
        what,
        base: Base::Qcow2,
        how: How::Steps(within, change),
    };
    let all: Vec<Planted> = vec![
        ("no flush between seal and work", In::Take, |p| merge(p, 0)),
        ("no flush before the header names the snapshot", In::Take, |p| merge(p, 1)),
        ("the header names the snapshot before it is counted", In::Take, |p| swap(p, 1, 2)),
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
            p.phases[1].1.retain(|s| !matches!(s, Recorded::Extend(_)));
            p.phases[1].1.retain(|s| !matches!(s, Recorded::Write(_, data) if is_table(data)));
        }),
        ("no flush between counting and switching", In::Restore, |p| merge(p, 1)),
        ("no flush between switching and freeing", In::Restore, |p| merge(p, 2)),
        ("no flush between freeing and taking the seal off", In::Restore, |p| merge(p, 3)),
        ("it switches before it counts", In::Restore, |p| swap(p, 1, 2)),
        ("it frees before it switches", In::Restore, |p| swap(p, 2, 3)),
        ("it takes the seal off before it frees", In::Restore, |p| swap(p, 3, 4)),
        ("it never switches", In::Restore, |p| remove(p, 2)),
        ("it never frees", In::Restore, |p| remove(p, 3)),
        ("it frees one too many", In::Restore, |p| change(p, 3, is_counts, free_one)),
        ("it never takes the seal off", In::Restore, |p| drop(p.phases.pop())),
        ("the L1 table is written in place", In::Restore, |p| {
            let in_use = p.l1;
            for step in &mut p.phases[1].1 {
                if let Recorded::Write(offset, data) = step
                    && is_l1(data)
                {
                    *offset = in_use;
                }
            }
        }),
        ("it frees before it forgets", In::Delete, |p| swap(p, 0, 1)),
        ("no flush between forgetting and freeing", In::Delete, |p| merge(p, 0)),
        ("no flush between freeing and taking the seal off", In::Delete, |p| merge(p, 1)),
        ("what the snapshot held is never freed", In::Delete, |p| drop_write(p, 1, is_counts)),
        ("what the disk needs is freed too", In::Delete, |p| change(p, 1, is_counts, free_one)),
        ("COPIED stays clear", In::Delete, |p| drop_mask(p, 1, 0)),
        ("it never forgets", In::Delete, |p| remove(p, 0)),
    ];
    all.into_iter().map(fault)
}

/// Natively a fault that changes nothing is a mistake of the test's own. A component goes on: a panic there
/// would be caught for another reason than the fault.
fn must(holds: bool, p: &Pieces) {
    assert!(holds || cfg!(target_arch = "wasm32"), "there is no such step: {p:?}");
}

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
    if let Some(used) = counts.chunks_exact_mut(2).find(|c| c.iter().any(|b| *b != 0)) {
        used.fill(0);
    }
}

fn merge(p: &mut Pieces, first: usize) {
    let there = first + 1 < p.phases.len();
    must(there, p);
    if there {
        let (_, second) = p.phases.remove(first + 1);
        p.phases[first].1.extend(second);
    }
}

fn swap(p: &mut Pieces, a: usize, b: usize) {
    let there = a.max(b) < p.phases.len();
    must(there, p);
    if there {
        p.phases.swap(a, b);
    }
}

fn remove(p: &mut Pieces, phase: usize) {
    let there = phase < p.phases.len();
    must(there, p);
    if there {
        p.phases.remove(phase);
    }
}

fn steps(p: &mut Pieces, phase: usize) -> Option<&mut Vec<Recorded>> {
    must(phase < p.phases.len(), p);
    p.phases.get_mut(phase).map(|(_, steps)| steps)
}

fn drop_write(p: &mut Pieces, phase: usize, which: fn(&[u8]) -> bool) {
    let Some(steps) = steps(p, phase) else { return };
    let before = steps.len();
    steps.retain(|s| !matches!(s, Recorded::Write(_, data) if which(data)));
    let fewer = steps.len() < before;
    must(fewer, p);
}

fn drop_mask(p: &mut Pieces, phase: usize, nth: usize) {
    let Some(steps) = steps(p, phase) else { return };
    let masks: Vec<usize> =
        (0..steps.len()).filter(|i| matches!(steps[*i], Recorded::Mask(_))).collect();
    let found = masks.get(nth).copied();
    found.map(|at| steps.remove(at));
    must(found.is_some(), p);
}

fn change(p: &mut Pieces, phase: usize, which: fn(&[u8]) -> bool, f: fn(&mut [u8])) {
    let Some(steps) = steps(p, phase) else { return };
    let mut any = false;
    for step in steps {
        if let Recorded::Write(_, data) = step
            && which(data)
        {
            f(data);
            any = true;
        }
    }
    must(any, p);
}
