//! An operation, crashed and failed at every event, and held against what may be seen.
//!
//! For each state before recovery: the judge lets it pass, and what can be told from outside
//! is exactly what it was before or what it is after. Recovery then leaves, byte for byte, the
//! image of before or of after and no journal; doing it twice does nothing more; crashing in
//! the middle of it and doing it again leads to the same bytes.

use std::fmt::Debug;
use std::sync::Arc;

use snapslot_capture::{Plan, PlanView};
use snapslot_disk::Disk;
use snapslot_disk::sim::{Event, Fate, Fault, World};
use snapslot_plugin_sdk::Goal;

use crate::crash::{Arrived, Choice, Count, Files, History, Options};
use crate::rng::Rng;
use crate::sim_host::{IMAGE, JOURNAL, Planner, Recovered, RunError, recover, run};

/// Who says what is right.
pub trait Judge {
    /// What can be told from outside.
    type Picture: PartialEq + Debug;

    /// Looks at an image.
    fn picture(&self, image: &[u8]) -> Result<Self::Picture, String>;

    /// Whether this may be found after a crash, before recovery.
    fn check_crashed(&self, image: &[u8]) -> Result<(), String>;

    /// Whether this may be left when an operation or recovery has ended.
    fn check_settled(&self, image: &[u8]) -> Result<(), String>;

    /// Costly looks, on a sample: the files after the crash, and the image after recovery.
    fn second_opinion(&self, _crashed: &Files, _settled: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// How much of the costly to do.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// How states are listed.
    pub states: Options,
    /// Of the states in which recovery redoes the plan, one in so many is crashed again inside
    /// recovery.
    pub nested_every: usize,
    /// How the states inside recovery are listed.
    pub nested: Options,
    /// One state in so many, and the first whose plan is redone, gets a second opinion; 0: none.
    pub opinion_every: usize,
}

impl Depth {
    /// The usual depth for the seeded number of subsets.
    pub fn new(states: Options) -> Self {
        let nested = Options { seeded: 2, exhaustive: 2, tears: false, ..states };
        Depth { states, nested_every: 150, nested, opinion_every: 200 }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// States at a crash.
    pub states: Count,
    /// States in which recovery redid the plan.
    pub redone: usize,
    /// States at a crash inside recovery.
    pub nested: usize,
    /// States looked at by a second judge.
    pub opinions: usize,
    /// Runs with a fault.
    pub faults: usize,
    /// States left by them.
    pub after_faults: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.states.listed += other.states.listed;
        self.states.distinct += other.states.distinct;
        self.redone += other.redone;
        self.nested += other.nested;
        self.opinions += other.opinions;
        self.faults += other.faults;
        self.after_faults += other.after_faults;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} distinct states of {} listed, {} redone, {} inside recovery, {} second opinions, {} fault runs with {} states",
            self.states.distinct,
            self.states.listed,
            self.redone,
            self.nested,
            self.opinions,
            self.faults,
            self.after_faults
        )
    }
}

/// What an operation leads to when nothing goes wrong.
#[derive(Debug)]
pub struct Outcome {
    /// The image after it.
    pub after: Vec<u8>,
    /// The plan.
    pub plan: Plan,
    /// What was looked at on the way.
    pub tally: Tally,
}

/// The variable that names a directory in which the files of a failure are kept.
pub const KEEP: &str = "SNAPSLOT_CRASH_KEEP";

/// Keeps the image before and the files after the crash, if asked to. What to say of it.
fn keep(before: &[u8], crashed: &Files) -> String {
    let Some(place) = std::env::var_os(KEEP).map(std::path::PathBuf::from) else {
        return format!("    {KEEP}=directory keeps the files\n");
    };
    let all = crashed.iter().map(|(name, bytes)| (format!("crashed-{name}"), &bytes[..]));
    for (name, bytes) in all.chain([("before".to_owned(), before)]) {
        if let Err(e) = std::fs::write(place.join(&name), bytes) {
            return format!("    {name} cannot be kept: {e}\n");
        }
    }
    format!("    the files are in {}\n", place.display())
}

struct Ends<'a, P> {
    before: &'a [u8],
    after: Vec<u8>,
    before_picture: P,
    after_picture: P,
    plan: Plan,
    history: History,
    attempts: usize,
}

fn files(image: &[u8]) -> Files {
    Files::from([(IMAGE.to_owned(), image.to_vec())])
}

fn image(files: &Files) -> Result<&[u8], String> {
    files.get(IMAGE).map(Vec::as_slice).ok_or_else(|| "the image is gone".to_owned())
}

/// Runs the operation once, undisturbed. `Err(Ok(error))`: refused, and nothing was touched.
fn undisturbed<'a, J: Judge>(
    planner: &dyn Planner,
    judge: &J,
    before: &'a [u8],
    goal: &Goal,
) -> Result<Ends<'a, J::Picture>, Result<RunError, String>> {
    let world = World::new(files(before));
    let planned = match run(planner, &world, goal) {
        Ok(plan) => plan,
        Err(error @ (RunError::Refused(_) | RunError::Check(_))) if world.log().is_empty() => {
            return Err(Ok(error));
        }
        Err(error) => return Err(Err(format!("without any fault: {error}"))),
    };
    let rest = || {
        let after = world.bytes(IMAGE).ok_or("the image is gone")?;
        if world.bytes(JOURNAL).is_some() {
            return Err("the journal is left behind".to_owned());
        }
        judge.check_settled(&after).map_err(|e| format!("after the operation: {e}"))?;
        // What the plan was seen to do before is what it did.
        let base = World::new(files(before));
        let disk = Arc::new(base.disk(IMAGE));
        let view = PlanView::new(Arc::new(planned.clone()), disk).map_err(|e| e.to_string())?;
        let mut seen = vec![0; view.size().map_err(|e| e.to_string())? as usize];
        view.read_at(0, &mut seen).map_err(|e| e.to_string())?;
        if seen != after {
            let at = seen.iter().zip(&after).position(|(a, b)| a != b);
            return Err(format!("the view through the plan differs from what it does, at {at:?}"));
        }
        Ok(Ends {
            before,
            before_picture: judge.picture(before)?,
            after_picture: judge.picture(&after)?,
            after,
            plan: planned,
            history: History::new(files(before), world.log()),
            attempts: world.attempts(),
        })
    };
    rest().map_err(Err)
}

/// Crashes the operation everywhere. `Ok(Err(error))`: it was refused and touched nothing.
pub fn crash<J: Judge>(
    planner: &dyn Planner,
    judge: &J,
    before: &[u8],
    goal: &Goal,
    depth: &Depth,
) -> Result<Result<Outcome, RunError>, String> {
    let ends = match undisturbed(planner, judge, before, goal) {
        Ok(ends) => ends,
        Err(Ok(refusal)) => return Ok(Err(refusal)),
        Err(Err(fault)) => return Err(fault),
    };
    let mut tally = Tally::default();
    let states = ends.history.visit(&depth.states, |choice, crashed| {
        tally.states.distinct += 1;
        one_state(judge, &ends, &crashed, depth, &mut tally).map_err(|fault| {
            let seed = depth.states.seed;
            let (choice, fault) = shrunk(judge, &ends, choice, fault, depth);
            let crashed = ends.history.state(&choice);
            let kept = keep(before, &crashed);
            format!(
                "seed {seed}, crashed {choice}:\n  {fault}\n  the history was\n{}{kept}",
                ends.history.tell()
            )
        })
    })?;
    tally.states = states;
    Ok(Ok(Outcome { after: ends.after, plan: ends.plan, tally }))
}

/// The same crash with as little lost as still shows a fault: which writes matter is what one wants to
/// know first. Gives also what is wrong then.
fn shrunk<J: Judge>(
    judge: &J,
    ends: &Ends<'_, J::Picture>,
    choice: &Choice,
    fault: String,
    depth: &Depth,
) -> (Choice, String) {
    let (mut least, mut fault) = (choice.clone(), fault);
    for i in 0..least.pending.len() {
        if least.pending[i].1 == Arrived::Kept {
            continue;
        }
        let mut less = least.clone();
        less.pending[i].1 = Arrived::Kept;
        let files = ends.history.state(&less);
        if let Err(still) = one_state(judge, ends, &files, depth, &mut Tally::default()) {
            (least, fault) = (less, still);
        }
    }
    (least, fault)
}

fn one_state<J: Judge>(
    judge: &J,
    ends: &Ends<'_, J::Picture>,
    crashed: &Files,
    depth: &Depth,
    tally: &mut Tally,
) -> Result<(), String> {
    before_recovery(judge, ends, crashed)?;
    let world = World::new(crashed.clone());
    let did = settles(judge, ends, &world)?;
    if did == Recovered::Redone {
        tally.redone += 1;
        if tally.redone % depth.nested_every == 1 || depth.nested_every == 1 {
            let inside = History::new(crashed.clone(), world.log());
            let count = inside.visit(&depth.nested, |choice, again| {
                let rest = || {
                    before_recovery(judge, ends, &again)?;
                    settles(judge, ends, &World::new(again.clone())).map(|_| ())
                };
                let tell =
                    |e| format!("crashed again inside recovery, {choice}: {e}\n{}", inside.tell());
                rest().map_err(tell)
            })?;
            tally.nested += count.distinct;
        }
    }
    let first_redone = did == Recovered::Redone && tally.redone == 1;
    if depth.opinion_every > 0
        && (first_redone || tally.states.distinct.is_multiple_of(depth.opinion_every))
    {
        let settled = world.bytes(IMAGE).unwrap_or_default();
        judge.second_opinion(crashed, &settled).map_err(|e| format!("second opinion: {e}"))?;
        tally.opinions += 1;
    }
    Ok(())
}

fn before_recovery<J: Judge>(
    judge: &J,
    ends: &Ends<'_, J::Picture>,
    crashed: &Files,
) -> Result<(), String> {
    let image = image(crashed)?;
    judge.check_crashed(image).map_err(|e| format!("before recovery: {e}"))?;
    let picture = judge.picture(image).map_err(|e| format!("before recovery: {e}"))?;
    if picture != ends.before_picture && picture != ends.after_picture {
        return Err(format!(
            "before recovery it is neither as before nor as after:\n  found  {picture:x?}\n  before {:x?}\n  after  {:x?}",
            ends.before_picture, ends.after_picture
        ));
    }
    Ok(())
}

/// Recovery leads to exactly one of the two ends, and a second one has nothing to do.
fn settles<J: Judge>(
    judge: &J,
    ends: &Ends<'_, J::Picture>,
    world: &World,
) -> Result<Recovered, String> {
    let did = recover(world).map_err(|e| format!("recovery failed: {e}"))?;
    let files = world.files();
    if files.len() != 1 {
        return Err(format!(
            "after recovery ({did:?}) there is more than the image: {:?}",
            files.keys()
        ));
    }
    let image = image(&files)?;
    if image != ends.after && (image != ends.before || did == Recovered::Redone) {
        let other = if did == Recovered::Redone { &ends.after[..] } else { ends.before };
        let at = image.iter().zip(other).position(|(a, b)| a != b);
        return Err(format!(
            "after recovery ({did:?}) the image is neither of the two: {} bytes, first difference at {at:x?} (sizes before {}, after {})",
            image.len(),
            ends.before.len(),
            ends.after.len()
        ));
    }
    judge.check_settled(image).map_err(|e| format!("after recovery ({did:?}): {e}"))?;
    if did != Recovered::Redone {
        let touched = world.log().iter().any(
            |e| matches!(e, Event::Write { file, .. } | Event::Extend { file, .. } if file == IMAGE),
        );
        if touched {
            return Err(format!("recovery ({did:?}) wrote to the image"));
        }
    }
    let again = World::new(files.clone());
    let second = recover(&again).map_err(|e| format!("second recovery failed: {e}"))?;
    if second != Recovered::Nothing || again.files() != files {
        return Err(format!("a second recovery still had something to do: {second:?}"));
    }
    Ok(did)
}

/// EIO and ENOSPC at every event, once and for ever, of the operation and of its recovery.
pub fn faults<J: Judge>(
    planner: &dyn Planner,
    judge: &J,
    before: &[u8],
    goal: &Goal,
    seed: u64,
) -> Result<Tally, String> {
    const ERRORS: [i32; 2] = [5, 28];
    let ends = match undisturbed(planner, judge, before, goal) {
        Ok(ends) => ends,
        Err(Ok(refusal)) => return Err(refusal.to_string()),
        Err(Err(fault)) => return Err(fault),
    };
    let mut tally = Tally::default();
    let mut rng = Rng::new(seed);
    for at in 0..ends.attempts {
        for (errno, for_ever) in ERRORS.into_iter().flat_map(|e| [(e, false), (e, true)]) {
            let world = World::new(files(before));
            world.fail_at(Some(Fault { at, for_ever, errno }));
            let result = run(planner, &world, goal);
            let tell = |e: String| {
                let history = History::new(files(before), world.log());
                format!(
                    "seed {seed}, error {errno} at event {at}, for ever {for_ever}: {e}\n{}",
                    history.tell()
                )
            };
            if result.is_ok() {
                return Err(tell("the operation says that it succeeded".to_owned()));
            }
            tally.faults += 1;
            tally.after_faults += after_fault(judge, &ends, &world, &mut rng).map_err(tell)?;
        }
    }
    tally.faults += faulty_recovery(judge, &ends, &mut rng)?;
    Ok(tally)
}

/// What failed may be on the disk or not; with all kept it is a restart without a crash.
fn after_fault<J: Judge>(
    judge: &J,
    ends: &Ends<'_, J::Picture>,
    world: &World,
    rng: &mut Rng,
) -> Result<usize, String> {
    let upto = world.log().len();
    let seed = rng.next_u64();
    let fates: [&dyn Fn(usize) -> Fate; 4] = [
        &|_| Fate::Kept,
        &|_| Fate::Lost,
        &|i| if Rng::new(seed ^ i as u64).coin() { Fate::Kept } else { Fate::Lost },
        &|i| if Rng::new(!seed ^ i as u64).coin() { Fate::Kept } else { Fate::Lost },
    ];
    for fate in fates {
        let after = world.crash(upto, fate);
        before_recovery(judge, ends, &after.files())?;
        settles(judge, ends, &after)?;
    }
    Ok(fates.len())
}

/// Recovery that fails at each of its events, and is then done again.
fn faulty_recovery<J: Judge>(
    judge: &J,
    ends: &Ends<'_, J::Picture>,
    rng: &mut Rng,
) -> Result<usize, String> {
    let mut runs = 0;
    let flushes: Vec<usize> = (0..ends.history.log().len())
        .filter(|i| matches!(&ends.history.log()[*i], Event::Flush { file } if file == IMAGE))
        .collect();
    for flush in flushes {
        let crashed = ends.history.state(&Choice { boundary: flush + 1, pending: Vec::new() });
        let whole = World::new(crashed.clone());
        recover(&whole)?;
        for at in 0..whole.attempts() {
            let world = World::new(crashed.clone());
            world.fail_at(Some(Fault { at, for_ever: rng.coin(), errno: 5 }));
            let tell =
                |e: String| format!("after event {flush}, recovery failing at its event {at}: {e}");
            if recover(&world).is_ok() {
                return Err(tell("it says that it succeeded".to_owned()));
            }
            after_fault(judge, ends, &world, rng).map_err(tell)?;
            runs += 1;
        }
    }
    Ok(runs)
}
