//! An operation, crashed and upset at every event, and held against what may be seen.
//!
//! For each state before recovery: the judge lets it pass, and what can be told from outside
//! is exactly what it was before or what it is after. Recovery then leaves, byte for byte, the
//! image of before or of after and no journal; doing it twice does nothing more; crashing in
//! the middle of it and doing it again leads to the same bytes.
//!
//! - `power` lists the states that a power cut leaves, also inside recovery;
//! - `upsets` makes every call go wrong in every way.
//!
//! A state is judged once, however often it is come to.

mod power;
mod upsets;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;

use snapslot_capture::{Plan, PlanView};
use snapslot_disk::Disk;
use snapslot_disk::sim::{Event, Files, Flat, Paged, World};
use snapslot_plugin_sdk::Goal;

use crate::crash::{Count, History, Options, digest_files};
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
    fn second_opinion(
        &self,
        _crashed: &BTreeMap<String, Vec<u8>>,
        _settled: &[u8],
    ) -> Result<(), String> {
        Ok(())
    }
}

/// How much of the costly to do.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// How states are listed.
    pub states: Options,
    /// How the states inside recovery are listed.
    pub nested: Options,
    /// So many states of each boundary, of those whose plan is redone, are crashed again inside recovery,
    pub nested_first: usize,
    /// and of the others one in so many.
    pub nested_every: usize,
    /// One call in so many goes wrong in every way.
    pub upset_every: usize,
    /// One state in so many, and the first whose plan is redone, gets a second opinion; 0: none.
    pub opinion_every: usize,
}

impl Depth {
    /// The usual depth for this list of states.
    pub fn new(states: Options) -> Self {
        let nested = Options { seeded: 1, exhaustive: 1, singles: 1, tears: false, ..states };
        Depth {
            states,
            nested,
            nested_first: 12,
            nested_every: 32,
            upset_every: 1,
            opinion_every: 1000,
        }
    }
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// States at a crash.
    pub states: Count,
    /// States in which recovery redid the plan.
    pub redone: usize,
    /// Recoveries that were crashed at every event.
    pub nested_from: usize,
    /// States at a crash inside recovery; distinct are those not come to by the first crash.
    pub nested: Count,
    /// States looked at by a second judge.
    pub opinions: usize,
    /// Runs in which something went wrong and was told.
    pub faults: usize,
    /// Runs in which something went wrong and was not told.
    pub lies: usize,
    /// States left by them.
    pub after_faults: usize,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.states += other.states;
        self.redone += other.redone;
        self.nested_from += other.nested_from;
        self.nested += other.nested;
        self.opinions += other.opinions;
        self.faults += other.faults;
        self.lies += other.lies;
        self.after_faults += other.after_faults;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} distinct states of {} listed, {} redone; inside {} recoveries {} more of {} listed; {} second opinions; {} runs that failed and {} that were lied to, with {} states",
            self.states.distinct,
            self.states.listed,
            self.redone,
            self.nested_from,
            self.nested.distinct,
            self.nested.listed,
            self.opinions,
            self.faults,
            self.lies,
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
    let all = crashed.iter().map(|(name, bytes)| (format!("crashed-{name}"), bytes.to_vec()));
    for (name, bytes) in all.chain([("before".to_owned(), before.to_vec())]) {
        if let Err(e) = std::fs::write(place.join(&name), bytes) {
            return format!("    {name} cannot be kept: {e}\n");
        }
    }
    format!("    the files are in {}\n", place.display())
}

fn files(image: &[u8]) -> Files {
    Files::from([(IMAGE.to_owned(), image.into())])
}

fn image(files: &Files) -> Result<&Paged, String> {
    files.get(IMAGE).ok_or_else(|| "the image is gone".to_owned())
}

/// The image after the operation, when nothing goes wrong.
pub fn plain(planner: &dyn Planner, before: &[u8], goal: &Goal) -> Result<Vec<u8>, RunError> {
    let world = World::of(files(before));
    run(planner, &world, goal)?;
    world.bytes(IMAGE).ok_or_else(|| RunError::Failed("the image is gone".to_owned()))
}

/// An operation on one image, run once without anything going wrong.
pub struct Trial<'a, J: Judge> {
    planner: &'a dyn Planner,
    judge: &'a J,
    goal: &'a Goal,
    before: &'a [u8],
    start: Files,
    after: Paged,
    before_picture: J::Picture,
    after_picture: J::Picture,
    plan: Plan,
    /// Calls made until there was a plan.
    planning: usize,
    calls: usize,
    history: History,
    /// Files that were found as they may be, recovered or not.
    judged: RefCell<HashSet<u128>>,
    /// Images that were, before recovery.
    seen: RefCell<HashSet<u128>>,
    flat: RefCell<Flat>,
}

impl<'a, J: Judge> Trial<'a, J> {
    /// Runs it. `Ok(Err(error))`: it was refused, and nothing was touched.
    pub fn begin(
        planner: &'a dyn Planner,
        judge: &'a J,
        before: &'a [u8],
        goal: &'a Goal,
    ) -> Result<Result<Self, RunError>, String> {
        let start = files(before);
        let world = World::of(start.clone());
        let ran = match run(planner, &world, goal) {
            Ok(ran) => ran,
            Err(error @ (RunError::Refused(_) | RunError::Check(_))) if world.log().is_empty() => {
                return Ok(Err(error));
            }
            Err(error) => return Err(format!("without any fault: {error}")),
        };
        let contents = world.contents();
        let after = image(&contents)?.clone();
        if contents.contains_key(JOURNAL) {
            return Err("the journal is left behind".to_owned());
        }
        let bytes = after.to_vec();
        judge.check_settled(&bytes).map_err(|e| format!("after the operation: {e}"))?;
        as_seen_before(before, &ran.plan, &bytes)?;
        Ok(Ok(Trial {
            planner,
            judge,
            goal,
            before,
            after,
            before_picture: judge.picture(before)?,
            after_picture: judge.picture(&bytes)?,
            plan: ran.plan,
            planning: ran.planning,
            calls: world.calls(),
            history: History::new(start.clone(), world.log()),
            start,
            judged: RefCell::default(),
            seen: RefCell::default(),
            flat: RefCell::default(),
        }))
    }

    /// The plan that was run.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The image after it.
    pub fn after(&self) -> Vec<u8> {
        self.after.to_vec()
    }

    /// Judges what a crash left: as it is, and as recovery leaves it. Gives what recovery did and the world it did it
    /// in; nothing if the very same files were judged before.
    fn judge(&self, crashed: &Files) -> Result<Option<(Recovered, World)>, String> {
        if !self.judged.borrow_mut().insert(digest_files(crashed)) {
            return Ok(None);
        }
        let judged = self.judge_anew(crashed);
        if judged.is_err() {
            // Whoever shrinks the case comes to the same files again.
            self.judged.borrow_mut().remove(&digest_files(crashed));
        }
        judged.map(Some)
    }

    fn judge_anew(&self, crashed: &Files) -> Result<(Recovered, World), String> {
        self.before_recovery(crashed)?;
        let world = World::of(crashed.clone());
        let did = self.settles(&world)?;
        Ok((did, world))
    }

    fn before_recovery(&self, crashed: &Files) -> Result<(), String> {
        let image = image(crashed)?;
        let digest = image.digest();
        if self.seen.borrow().contains(&digest) {
            return Ok(());
        }
        let mut flat = self.flat.borrow_mut();
        let bytes = flat.of(image);
        self.judge.check_crashed(bytes).map_err(|e| format!("before recovery: {e}"))?;
        let picture = self.judge.picture(bytes).map_err(|e| format!("before recovery: {e}"))?;
        if picture != self.before_picture && picture != self.after_picture {
            return Err(format!(
                "before recovery it is neither as before nor as after:\n  found  {picture:x?}\n  before {:x?}\n  after  {:x?}",
                self.before_picture, self.after_picture
            ));
        }
        self.seen.borrow_mut().insert(digest);
        Ok(())
    }

    /// Recovery leads to exactly one of the two ends, and a second one has nothing to do.
    fn settles(&self, world: &World) -> Result<Recovered, String> {
        let did = recover(world).map_err(|e| format!("recovery failed: {e}"))?;
        let files = world.contents();
        if files.len() != 1 {
            return Err(format!(
                "after recovery ({did:?}) there is more than the image: {:?}",
                files.keys()
            ));
        }
        let image = image(&files)?;
        let before = image_of(&self.start)?;
        // Both ends were judged when the operation was run: what is one of them needs no other look.
        if *image != self.after && (image != before || did == Recovered::Redone) {
            let other = if did == Recovered::Redone { &self.after } else { before };
            let at = image.first_difference(other);
            return Err(format!(
                "after recovery ({did:?}) the image is neither of the two: {} bytes, first difference at {at:x?} (sizes before {}, after {})",
                image.len(),
                before.len(),
                self.after.len()
            ));
        }
        if image == before && *image != self.after {
            self.before_is_settled(did)?;
        }
        if did != Recovered::Redone {
            let touched = world.log().iter().any(
                |e| matches!(e, Event::Write { file, .. } | Event::Extend { file, .. } if file == IMAGE),
            );
            if touched {
                return Err(format!("recovery ({did:?}) wrote to the image"));
            }
        }
        let again = World::of(files.clone());
        let second = recover(&again).map_err(|e| format!("second recovery failed: {e}"))?;
        if second != Recovered::Nothing || again.contents() != files {
            return Err(format!("a second recovery still had something to do: {second:?}"));
        }
        Ok(did)
    }

    /// An operation begins with an image that is settled; that is looked at once.
    fn before_is_settled(&self, did: Recovered) -> Result<(), String> {
        let looked = digest_files(&self.start).wrapping_add(1);
        if self.judged.borrow_mut().insert(looked) {
            self.judge
                .check_settled(self.before)
                .map_err(|e| format!("after recovery ({did:?}): {e}"))?;
        }
        Ok(())
    }
}

fn image_of(files: &Files) -> Result<&Paged, String> {
    image(files)
}

/// What the plan was seen to do before it was done is what it did.
fn as_seen_before(before: &[u8], plan: &Plan, after: &[u8]) -> Result<(), String> {
    let base = World::of(files(before));
    let disk = Arc::new(base.disk(IMAGE));
    let view = PlanView::new(Arc::new(plan.clone()), disk).map_err(|e| e.to_string())?;
    let mut seen = vec![0; view.size().map_err(|e| e.to_string())? as usize];
    view.read_at(0, &mut seen).map_err(|e| e.to_string())?;
    if seen != after {
        let at = seen.iter().zip(after).position(|(a, b)| a != b);
        return Err(format!("the view through the plan differs from what it does, at {at:?}"));
    }
    Ok(())
}

/// Crashes the operation everywhere. `Ok(Err(error))`: it was refused and touched nothing.
pub fn crash<J: Judge>(
    planner: &dyn Planner,
    judge: &J,
    before: &[u8],
    goal: &Goal,
    depth: &Depth,
) -> Result<Result<Outcome, RunError>, String> {
    let trial = match Trial::begin(planner, judge, before, goal)? {
        Ok(trial) => trial,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let tally = trial.power_cuts(depth)?;
    Ok(Ok(Outcome { after: trial.after(), plan: trial.plan, tally }))
}

/// Makes every call of the operation and of its recovery go wrong in every way, once and for ever.
pub fn faults<J: Judge>(
    planner: &dyn Planner,
    judge: &J,
    before: &[u8],
    goal: &Goal,
    depth: &Depth,
) -> Result<Tally, String> {
    match Trial::begin(planner, judge, before, goal)? {
        Ok(trial) => trial.upsets(depth),
        Err(refusal) => Err(refusal.to_string()),
    }
}
