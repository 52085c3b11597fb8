//! What a plugin is given: sight of one volume, a plan to fill, a log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use snapslot_capture::{Act, Mask, PlanBuilder, PlanError, Save, Seal};
use snapslot_command::{Executor, Place, PlaceKind};
use snapslot_disk::Disk;
use wasmtime::component::{Resource, ResourceTable};

use crate::bindings::types::{
    Answer, Argument, Failure, FailureKind, NewSnapshot, Role, SavedCopy, Saving,
};
use crate::bindings::{log, planning, sight, types};
use crate::holdings::Holdings;
use crate::outside::{COMMANDS_MAX, Grants, Loud, World, limit, not_granted};
use crate::shown::plain;

/// Handles: a target, a plan, an image or two.
const HANDLES_MAX: usize = 64;
/// One read, one list.
const READ_MAX: u64 = 8 << 20;
const RANGES_MAX: usize = 65_536;
/// A line that is printed and not ended is one by then.
const PRINTED_MAX: usize = 8 << 10;

/// What a plugin may see of one volume. What its description does not name is not shown.
#[derive(Clone)]
pub struct Sight {
    /// Where it is.
    pub place: Place,
    /// The image with role `disk`; of a logical volume, that with role `pool-metadata`.
    pub disk: Option<Arc<dyn Disk>>,
    /// The storage's own tools.
    pub commands: Option<Arc<dyn Executor>>,
    /// The copies that the host keeps.
    pub copies: Option<Arc<dyn CopiesView>>,
}

/// The copies that the host keeps of one disk, for looking.
pub trait CopiesView: Send + Sync {
    /// What there is, oldest first.
    fn list(&self) -> Result<Vec<SavedCopy>, Failure>;
    /// What one more would take.
    fn saving(&self) -> Result<Saving, Failure>;
}

/// A volume as one call sees it.
pub(crate) struct Seen {
    pub(crate) place: Place,
    pub(crate) disk: Option<Arc<dyn Disk>>,
}

/// An image handle.
pub struct ImageHandle {
    disk: Arc<dyn Disk>,
    role: Role,
}

/// A volume handle.
pub struct TargetHandle(());

/// A plan handle. The builder lives in the host, not in the table.
pub struct PlanHandle;

/// The host's side of one call.
pub(crate) struct Host {
    pub(crate) table: ResourceTable,
    pub(crate) holdings: Holdings,
    pub(crate) plan: PlanBuilder,
    /// What each command of the plan was made from, in its order.
    pub(crate) acts: Vec<(String, Vec<Argument>)>,
    grants: Arc<Grants>,
    seen: Option<Seen>,
    pub(crate) world: Box<dyn World>,
    /// Since when it is at work: it may have been made ready long before.
    pub(crate) begun: Instant,
    /// Time spent reading for it: the storage's, not its own.
    pub(crate) waited: Duration,
    /// Time its commands took, which have deadlines of their own.
    pub(crate) commanded: Duration,
    /// Commands it asked for.
    asked: usize,
    /// What it printed of a line.
    printed: Vec<u8>,
}

impl Host {
    /// Of a plugin that is made ready before it is called.
    pub(crate) fn idle() -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        Host {
            table,
            holdings: Holdings::default(),
            plan: PlanBuilder::new(),
            acts: Vec::new(),
            grants: Arc::default(),
            seen: None,
            world: Box::new(Before(Vec::new())),
            begun: Instant::now(),
            waited: Duration::ZERO,
            commanded: Duration::ZERO,
            asked: 0,
            printed: Vec::new(),
        }
    }

    /// Begins the call: from here on it has what it was granted, and its time runs.
    pub(crate) fn begin(
        &mut self,
        grants: Arc<Grants>,
        seen: Option<Seen>,
        mut world: Box<dyn World>,
    ) {
        for line in self.world.lines() {
            world.log(Loud::Info, &line);
        }
        (self.grants, self.seen, self.world, self.begun) = (grants, seen, world, Instant::now());
    }

    /// Hands the volume in.
    pub(crate) fn target(&mut self) -> wasmtime::Result<Resource<TargetHandle>> {
        let handle = self.table.push(TargetHandle(()))?;
        Ok(Resource::new_borrow(handle.rep()))
    }

    /// The volume this handle is of: there is one, but only for who holds a handle.
    fn seen(&self, target: &Resource<TargetHandle>) -> wasmtime::Result<&Seen> {
        self.table.get(target)?;
        self.seen.as_ref().ok_or_else(|| wasmtime::Error::msg("no volume was handed in"))
    }

    /// Lets the world answer; the time it takes is not the plugin's own.
    fn wait<T>(&mut self, f: impl FnOnce(&mut dyn World) -> T) -> T {
        let begun = Instant::now();
        let result = f(&mut *self.world);
        self.waited += begun.elapsed();
        result
    }

    /// Takes what it prints into its log, line by line.
    pub(crate) fn print(&mut self, bytes: &[u8]) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            for part in part.chunks(PRINTED_MAX) {
                self.printed.extend_from_slice(part);
                if part.ends_with(b"\n") || self.printed.len() >= PRINTED_MAX {
                    self.print_rest();
                }
            }
        }
    }

    /// The line that was begun, as it is.
    pub(crate) fn print_rest(&mut self) {
        let line = std::mem::take(&mut self.printed);
        let line = String::from_utf8_lossy(&line);
        if !line.trim().is_empty() {
            self.world.log(Loud::Info, line.trim_end());
        }
    }
}

/// The world of a plugin before it is called: what it logs at its start is kept until then, and there is nothing
/// else.
struct Before(Vec<String>);

/// More lines are nobody's; the call's own limit tells of them.
const LINES_BEFORE_MAX: usize = 1000;

impl World for Before {
    fn ask(&mut self, _: &str, _: &[Argument]) -> Result<Answer, Failure> {
        Err(not_called())
    }

    fn copies(&mut self) -> Result<Vec<SavedCopy>, Failure> {
        Err(not_called())
    }

    fn saving(&mut self) -> Result<Saving, Failure> {
        Err(not_called())
    }

    fn log(&mut self, _: Loud, message: &str) {
        if self.0.len() < LINES_BEFORE_MAX {
            self.0.push(plain(message, PRINTED_MAX));
        }
    }

    fn lines(&mut self) -> Vec<String> {
        std::mem::take(&mut self.0)
    }
}

fn not_called() -> Failure {
    Failure::new(FailureKind::Internal, "not-called", "it was not called yet")
}

fn refused(error: &PlanError) -> Failure {
    let kind = match error {
        PlanError::Limit { .. } => FailureKind::Limit,
        PlanError::Malformed { .. } => FailureKind::Invalid,
    };
    Failure::new(kind, "plan", error.to_string())
}

type Answered<T> = wasmtime::Result<Result<T, Failure>>;

impl types::Host for Host {}
impl sight::Host for Host {}
impl planning::Host for Host {}

fn read(disk: &dyn Disk, offset: u64, length: usize, buffer: &mut Vec<u8>) -> Result<(), Failure> {
    disk.read_append(offset, length, buffer).map_err(|e| {
        let outside = matches!(e, snapslot_disk::DiskError::OutOfBounds { .. });
        let (kind, code) = match outside {
            true => (FailureKind::Invalid, "read-outside"),
            false => (FailureKind::Io, "read"),
        };
        Failure::new(kind, code, e.to_string())
    })
}

impl sight::HostImage for Host {
    fn size(&mut self, image: Resource<ImageHandle>) -> wasmtime::Result<u64> {
        Ok(self.table.get(&image)?.disk.size()?)
    }

    fn read_at(
        &mut self,
        image: Resource<ImageHandle>,
        offset: u64,
        length: u32,
    ) -> Answered<Vec<u8>> {
        let disk = &self.table.get(&image)?.disk;
        if u64::from(length) > READ_MAX {
            return Ok(Err(limit("bytes in one read", READ_MAX, u64::from(length))));
        }
        let begun = Instant::now();
        let mut buffer = Vec::with_capacity(length as usize);
        let result = read(&**disk, offset, length as usize, &mut buffer).map(|()| buffer);
        self.waited += begun.elapsed();
        Ok(result)
    }

    fn read_ranges(
        &mut self,
        image: Resource<ImageHandle>,
        ranges: Vec<(u64, u32)>,
    ) -> Answered<Vec<u8>> {
        let disk = &self.table.get(&image)?.disk;
        if ranges.len() > RANGES_MAX {
            return Ok(Err(limit("ranges in one read", RANGES_MAX as u64, ranges.len() as u64)));
        }
        let total: u64 = ranges.iter().map(|(_, length)| u64::from(*length)).sum();
        if total > READ_MAX {
            return Ok(Err(limit("bytes in one read", READ_MAX, total)));
        }
        let begun = Instant::now();
        let mut buffer = Vec::with_capacity(total as usize);
        let result = (ranges.into_iter())
            .try_for_each(|(offset, length)| read(&**disk, offset, length as usize, &mut buffer));
        self.waited += begun.elapsed();
        Ok(result.map(|()| buffer))
    }

    fn drop(&mut self, image: Resource<ImageHandle>) -> wasmtime::Result<()> {
        self.table.delete(image)?;
        Ok(())
    }
}

impl sight::HostTarget for Host {
    fn place(&mut self, target: Resource<TargetHandle>) -> wasmtime::Result<String> {
        Ok(self.seen(&target)?.place.to_string())
    }

    fn image(
        &mut self,
        target: Resource<TargetHandle>,
        role: Role,
    ) -> Answered<Resource<ImageHandle>> {
        let seen = self.seen(&target)?;
        // What is at hand of a logical volume is its pool's metadata.
        let of_pool = seen.place.kind() == PlaceKind::LvmVolume;
        let disk = seen.disk.clone();
        match role {
            Role::Disk => match disk.filter(|_| self.grants.disk && !of_pool) {
                Some(disk) => Ok(Ok(self.table.push(ImageHandle { disk, role })?)),
                None => Ok(Err(not_granted("image", "disk"))),
            },
            Role::PoolMetadata if !self.grants.pool_metadata => {
                Ok(Err(not_granted("image", "pool-metadata")))
            }
            Role::PoolMetadata => match disk.filter(|_| of_pool) {
                Some(disk) => Ok(Ok(self.table.push(ImageHandle { disk, role })?)),
                None => Ok(Err(Failure::new(
                    FailureKind::Unsupported,
                    "not-at-hand",
                    "no metadata of a thin pool is at hand now",
                ))),
            },
            Role::Backing => Ok(Err(Failure::new(
                FailureKind::NotGranted,
                "not-granted",
                "the backing file is not granted to this plugin",
            )
            .with("grant", "image backing"))),
        }
    }

    fn ask(
        &mut self,
        target: Resource<TargetHandle>,
        query: String,
        arguments: Vec<Argument>,
    ) -> Answered<Answer> {
        self.seen(&target)?;
        // Refused here, on its own time: who asks on regardless is not waited for.
        if self.asked >= COMMANDS_MAX {
            let asked = self.asked as u64 + 1;
            return Ok(Err(limit("commands asked", COMMANDS_MAX as u64, asked)));
        }
        self.asked += 1;
        let begun = Instant::now();
        let result = self.world.ask(&query, &arguments);
        self.commanded += begun.elapsed();
        Ok(result)
    }

    fn copies(&mut self, target: Resource<TargetHandle>) -> Answered<Vec<SavedCopy>> {
        self.seen(&target)?;
        Ok(self.wait(|world| world.copies()))
    }

    fn saving(&mut self, target: Resource<TargetHandle>) -> Answered<Saving> {
        self.seen(&target)?;
        Ok(self.wait(|world| world.saving()))
    }

    fn drop(&mut self, target: Resource<TargetHandle>) -> wasmtime::Result<()> {
        self.table.delete(target)?;
        Ok(())
    }
}

impl Host {
    fn may_change(&self, image: &Resource<ImageHandle>) -> wasmtime::Result<Result<(), Failure>> {
        Ok(match self.table.get(image)?.role {
            Role::Disk if self.grants.changes => Ok(()),
            Role::Disk => Err(not_granted("change of image", "disk")),
            Role::Backing | Role::PoolMetadata => {
                Err(not_granted("change of image", self.table.get(image)?.role.word()))
            }
        })
    }

    fn add(
        &mut self,
        image: &Resource<ImageHandle>,
        f: impl FnOnce(&mut PlanBuilder) -> Result<(), PlanError>,
    ) -> Answered<()> {
        Ok(match self.may_change(image)? {
            Ok(()) => f(&mut self.plan).map_err(|e| refused(&e)),
            Err(failure) => Err(failure),
        })
    }

    fn copying(
        &mut self,
        f: impl FnOnce(&mut PlanBuilder) -> Result<(), PlanError>,
    ) -> Answered<()> {
        Ok(match self.grants.copies {
            true => f(&mut self.plan).map_err(|e| refused(&e)),
            false => Err(not_granted("copies", "")),
        })
    }
}

impl planning::HostPlan for Host {
    fn write(
        &mut self,
        _: Resource<PlanHandle>,
        image: Resource<ImageHandle>,
        offset: u64,
        data: Vec<u8>,
    ) -> Answered<()> {
        self.add(&image, |plan| plan.write(offset, data))
    }

    fn fill(
        &mut self,
        _: Resource<PlanHandle>,
        image: Resource<ImageHandle>,
        runs: Vec<planning::Fill>,
    ) -> Answered<()> {
        self.add(&image, |plan| {
            runs.into_iter().try_for_each(|r| plan.fill(r.offset, r.length, r.pattern))
        })
    }

    fn mask(
        &mut self,
        _: Resource<PlanHandle>,
        image: Resource<ImageHandle>,
        runs: Vec<planning::Mask>,
    ) -> Answered<()> {
        self.add(&image, |plan| {
            runs.into_iter().try_for_each(|r| {
                plan.mask(Mask {
                    offset: r.offset,
                    count: r.count,
                    stride: r.stride,
                    clear: r.clear,
                    set: r.set,
                    select: r.select,
                })
            })
        })
    }

    fn extend(
        &mut self,
        _: Resource<PlanHandle>,
        image: Resource<ImageHandle>,
        size: u64,
    ) -> Answered<()> {
        self.add(&image, |plan| plan.extend(size))
    }

    fn act(
        &mut self,
        _: Resource<PlanHandle>,
        action: String,
        arguments: Vec<Argument>,
    ) -> Answered<()> {
        let Some(seen) = &self.seen else { return Ok(Err(not_granted("action", &action))) };
        let filled = match self.grants.act(&seen.place, &action, &arguments) {
            Ok(filled) => filled,
            Err(failure) => return Ok(Err(failure)),
        };
        let act = Act { action: action.clone(), command: filled.command, guard: filled.guard };
        let added = self.plan.act(act).map_err(|e| refused(&e));
        if added.is_ok() {
            self.acts.push((action, arguments));
        }
        Ok(added)
    }

    fn save(&mut self, _: Resource<PlanHandle>, new: NewSnapshot) -> Answered<()> {
        self.copying(|plan| {
            plan.save(Save {
                mark: new.mark,
                taken_seconds: new.taken_seconds,
                taken_nanoseconds: new.taken_nanoseconds,
                full_copy: new.full_copy,
            })
        })
    }

    fn put_back(&mut self, _: Resource<PlanHandle>, mark: String) -> Answered<()> {
        self.copying(|plan| plan.put_back(mark))
    }

    fn discard(&mut self, _: Resource<PlanHandle>, mark: String) -> Answered<()> {
        self.copying(|plan| plan.discard(mark))
    }

    fn note(&mut self, _: Resource<PlanHandle>, message: String) -> Answered<()> {
        Ok(self.plan.note(&plain(&message, usize::MAX)).map_err(|e| refused(&e)))
    }

    fn barrier(&mut self, _: Resource<PlanHandle>, title: String) -> Answered<()> {
        Ok(self.plan.barrier(&plain(&title, usize::MAX)).map_err(|e| refused(&e)))
    }

    fn seal(
        &mut self,
        _: Resource<PlanHandle>,
        image: Resource<ImageHandle>,
        offset: u64,
        bits: u64,
    ) -> Answered<()> {
        self.add(&image, |plan| plan.seal(Seal { offset, bits }))
    }

    fn drop(&mut self, plan: Resource<PlanHandle>) -> wasmtime::Result<()> {
        self.table.delete(plan)?;
        Ok(())
    }
}

impl log::Host for Host {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        let loud = match level {
            log::Level::Debug => Loud::Debug,
            log::Level::Info => Loud::Info,
            log::Level::Warn => Loud::Warn,
        };
        self.world.log(loud, &message);
        Ok(())
    }
}
