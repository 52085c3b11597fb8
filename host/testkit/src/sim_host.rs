//! The life of an operation on a simulated machine, for any backend.
//!
//! A small engine: what of the real one touches bytes, in the same order, and nothing else
//! (no policy, no locks, no records). A backend runs natively against a file of a
//! [`World`], so that everything it plans can be crashed at every event.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use snapslot_capture::journal::{self, Found};
use snapslot_capture::{
    Mask as CaptureMask, Plan as CapturePlan, PlanBuilder, Redo, Resume, Save, Seal,
    execute_phases, resume_at,
};
use snapslot_disk::sim::World;
use snapslot_disk::{Companion, Disk, DiskError, Range};
use snapslot_plugin_sdk::{
    Answer, Argument, Backend, Facts, Failure, FailureKind, Fill, Goal, Image, Mask, NewSnapshot,
    Plan, Role, SavedCopy, Saving, Target,
};

/// Name of the image in the world.
pub const IMAGE: &str = "disk";
/// Name of the journal in the world.
pub const JOURNAL: &str = "disk.snapslot-journal";

/// A disk as a backend sees it.
pub struct DiskImage<'a>(pub &'a dyn Disk);

fn io(error: impl ToString) -> Failure {
    Failure::new(FailureKind::Io, "read-failed", error.to_string())
}

impl Image for DiskImage<'_> {
    fn size(&self) -> u64 {
        self.0.size().unwrap_or(0)
    }

    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        let mut buffer = vec![0; length as usize];
        self.0.read_at(offset, &mut buffer).map_err(io)?;
        Ok(buffer)
    }

    fn read_ranges(&self, ranges: &[(u64, u32)]) -> Result<Vec<u8>, Failure> {
        let mut all = Vec::new();
        for (offset, length) in ranges {
            all.extend(self.read_at(*offset, *length)?);
        }
        Ok(all)
    }
}

/// A volume of one image and no commands.
pub struct DiskTarget<'a>(pub &'a dyn Disk);

impl Target for DiskTarget<'_> {
    fn place(&self) -> String {
        IMAGE.to_owned()
    }

    fn image(&self, role: Role) -> Result<Box<dyn Image + '_>, Failure> {
        match role {
            Role::Disk => Ok(Box::new(DiskImage(self.0))),
            Role::Backing | Role::PoolMetadata => {
                Err(Failure::new(FailureKind::NotGranted, "not-granted", "no backing file here"))
            }
        }
    }

    fn ask(&self, query: &str, _arguments: &[Argument]) -> Result<Answer, Failure> {
        Err(Failure::new(FailureKind::NotGranted, "not-granted", format!("no query {query} here")))
    }

    fn copies(&self) -> Result<Vec<SavedCopy>, Failure> {
        Err(Failure::new(FailureKind::NotGranted, "not-granted", "no copies here"))
    }

    fn saving(&self) -> Result<Saving, Failure> {
        Err(Failure::new(FailureKind::NotGranted, "not-granted", "no copies here"))
    }
}

/// A plan that goes into a [`PlanBuilder`].
#[derive(Debug, Default)]
pub struct BuiltPlan(pub PlanBuilder);

fn refused(error: snapslot_capture::PlanError) -> Failure {
    Failure::new(FailureKind::Invalid, "malformed-plan", error.to_string())
}

impl Plan for BuiltPlan {
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let most = snapslot_capture::limits::STEP_DATA;
        for (i, part) in data.chunks(most).enumerate() {
            self.0.write(offset + (i * most) as u64, part.to_vec()).map_err(refused)?;
        }
        Ok(())
    }

    fn fill(&mut self, runs: Vec<Fill>) -> Result<(), Failure> {
        runs.into_iter()
            .try_for_each(|r| self.0.fill(r.offset, r.length, r.pattern))
            .map_err(refused)
    }

    fn mask(&mut self, runs: Vec<Mask>) -> Result<(), Failure> {
        runs.into_iter()
            .try_for_each(|m| {
                let Mask { offset, count, stride, clear, set, select } = m;
                self.0.mask(CaptureMask { offset, count, stride, clear, set, select })
            })
            .map_err(refused)
    }

    fn extend(&mut self, size: u64) -> Result<(), Failure> {
        self.0.extend(size).map_err(refused)
    }

    fn act(&mut self, action: &str, _arguments: &[Argument]) -> Result<(), Failure> {
        Err(Failure::new(
            FailureKind::NotGranted,
            "not-granted",
            format!("no action {action} here"),
        ))
    }

    fn save(&mut self, new: &NewSnapshot) -> Result<(), Failure> {
        let save = Save {
            mark: new.mark.clone(),
            taken_seconds: new.taken_seconds,
            taken_nanoseconds: new.taken_nanoseconds,
            full_copy: new.full_copy,
        };
        self.0.save(save).map_err(refused)
    }

    fn put_back(&mut self, mark: &str) -> Result<(), Failure> {
        self.0.put_back(mark.to_owned()).map_err(refused)
    }

    fn discard(&mut self, mark: &str) -> Result<(), Failure> {
        self.0.discard(mark.to_owned()).map_err(refused)
    }

    fn note(&mut self, message: &str) -> Result<(), Failure> {
        self.0.note(message).map_err(refused)
    }

    fn barrier(&mut self, title: &str) -> Result<(), Failure> {
        self.0.barrier(title).map_err(refused)
    }

    fn seal(&mut self, offset: u64, bits: u64) -> Result<(), Failure> {
        self.0.seal(Seal { offset, bits }).map_err(refused)
    }
}

/// Something that looks and plans: a backend, natively or as a component.
pub trait Planner {
    /// Looks at the disk.
    fn inspect(&self, disk: Arc<dyn Disk>) -> Result<Facts, Failure>;
    /// The plan from what is there to the goal.
    fn plan(&self, disk: Arc<dyn Disk>, goal: &Goal) -> Result<CapturePlan, Failure>;
}

/// A backend that runs natively.
#[derive(Debug)]
pub struct Native<B>(PhantomData<B>);

/// The backend `B`, natively.
pub fn native<B: Backend>() -> Native<B> {
    Native(PhantomData)
}

impl<B: Backend> Planner for Native<B> {
    fn inspect(&self, disk: Arc<dyn Disk>) -> Result<Facts, Failure> {
        sized(&*disk, |disk| B::inspect(&DiskTarget(disk)))
    }

    fn plan(&self, disk: Arc<dyn Disk>, goal: &Goal) -> Result<CapturePlan, Failure> {
        let mut built = BuiltPlan::default();
        sized(&*disk, |disk| B::plan(&DiskTarget(disk), goal, &mut built))?;
        built.0.finish().map_err(refused)
    }
}

/// Asks a backend. In the contract an image's size cannot fail to be told: where it does, the host ends the call.
fn sized<T>(
    disk: &dyn Disk,
    ask: impl FnOnce(&dyn Disk) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let sized = SizedDisk { disk, failed: Mutex::default() };
    let answer = ask(&sized);
    match sized.failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(why) => Err(io(why)),
        None => answer,
    }
}

/// A disk that remembers that its size could not be told.
struct SizedDisk<'a> {
    disk: &'a dyn Disk,
    failed: Mutex<Option<String>>,
}

impl Disk for SizedDisk<'_> {
    fn size(&self) -> Result<u64, DiskError> {
        self.disk.size().inspect_err(|e| {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).replace(e.to_string());
        })
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.disk.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.disk.write_at(offset, data)
    }

    fn extend(&self, size: u64) -> Result<(), DiskError> {
        self.disk.extend(size)
    }

    fn reserve(&self, ranges: &[Range]) -> Result<bool, DiskError> {
        self.disk.reserve(ranges)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        self.disk.release_reserve()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.disk.flush()
    }
}

/// Looks at the world's image.
pub fn inspect(planner: &dyn Planner, world: &World) -> Result<Facts, Failure> {
    planner.inspect(Arc::new(world.disk(IMAGE)))
}

/// The plan from what is in the world to the goal.
pub fn plan(planner: &dyn Planner, world: &World, goal: &Goal) -> Result<CapturePlan, Failure> {
    planner.plan(Arc::new(world.disk(IMAGE)), goal)
}

/// Why an operation did not come to its end.
#[derive(Debug)]
pub enum RunError {
    /// The backend refused; nothing was touched.
    Refused(Failure),
    /// The plan must not be carried out; nothing was touched.
    Check(String),
    /// Bytes could not be written or made durable.
    Failed(String),
}

impl std::fmt::Display for RunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RunError::Refused(e) => write!(f, "the backend refused: {} ({})", e.message, e.code),
            RunError::Check(e) => write!(f, "the plan does not pass the check: {e}"),
            RunError::Failed(e) => write!(f, "failed: {e}"),
        }
    }
}

/// What an operation did.
#[derive(Debug)]
pub struct Ran {
    /// The plan that was run.
    pub plan: CapturePlan,
    /// How many calls were made until there was one.
    pub planning: usize,
}

/// Inspect, plan, check, commit, execute, forget the journal.
pub fn run(planner: &dyn Planner, world: &World, goal: &Goal) -> Result<Ran, RunError> {
    let plan = prepare(planner, world, goal)?;
    let planning = world.calls();
    carry_out(world, &plan)?;
    Ok(Ran { plan, planning })
}

/// Inspect and plan: the part that only looks.
pub fn prepare(planner: &dyn Planner, world: &World, goal: &Goal) -> Result<CapturePlan, RunError> {
    inspect(planner, world).map_err(RunError::Refused)?;
    plan(planner, world, goal).map_err(RunError::Refused)
}

/// Check, commit, execute, forget the journal.
pub fn carry_out(world: &World, plan: &CapturePlan) -> Result<(), RunError> {
    if plan.is_empty() {
        return Ok(());
    }
    let disk = world.disk(IMAGE);
    let failed = |e: &dyn std::fmt::Display| RunError::Failed(e.to_string());
    snapslot_capture::check(plan, &disk).map_err(|e| RunError::Check(e.to_string()))?;
    snapslot_capture::reserve(plan, &disk).map_err(|e| failed(&e))?;
    let place = world.companion(JOURNAL);
    journal::commit(&place, b"{}", plan).map_err(|e| failed(&e))?;
    snapslot_capture::execute(plan, &disk, &|_, _| {}).map_err(|e| failed(&e))?;
    forget(&place).map_err(|e| failed(&e))
}

fn forget(place: &dyn Companion) -> Result<(), snapslot_disk::DiskError> {
    place.remove()?;
    place.sync_name()
}

/// What recovery found to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// There was no journal.
    Nothing,
    /// The operation had never begun: its journal was not committed.
    NeverBegan,
    /// The seal is not set: not begun, at its end, or overtaken by somebody else's writes.
    Unsealed,
    /// The plan was carried out again, to its end.
    Redone,
}

/// What the engine does at its next start: carries a committed plan to its end where the image
/// is still sealed, and forgets the journal.
pub fn recover(world: &World) -> Result<Recovered, String> {
    let place = world.companion(JOURNAL);
    let did = match journal::read(&place).map_err(|e| e.to_string())? {
        Found::Nothing => return Ok(Recovered::Nothing),
        Found::Uncommitted => Recovered::NeverBegan,
        Found::Committed { plan, .. } => {
            let disk = world.disk(IMAGE);
            match resume_at(&plan, &disk).map_err(|e| e.to_string())? {
                Resume::From(phase) => {
                    let rest = phase..plan.phases().count();
                    execute_phases(&plan, rest, Redo::Yes, &disk, &|_, _| {})
                        .map_err(|e| e.to_string())?;
                    Recovered::Redone
                }
                Resume::Void => Recovered::Unsealed,
                Resume::Foreign => return Err("the seal is not of this journal's plan".to_owned()),
            }
        }
    };
    forget(&place).map_err(|e| e.to_string())?;
    Ok(did)
}
