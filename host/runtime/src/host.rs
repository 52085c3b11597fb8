//! What a plugin is given: sight of one volume, a plan to fill, a log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use snapslot_capture::{Act, Mask, PlanBuilder, PlanError, Save, Seal};
use snapslot_command::{Executor, FillError, Grant, Place, RunError};
use snapslot_disk::Disk;
use wasmtime::component::{Resource, ResourceTable};
use wasmtime::{StoreLimits, StoreLimitsBuilder};

use crate::bindings::types::{
    Answer, Argument, Failure, FailureKind, NewSnapshot, Role, SavedCopy, Saving,
};
use crate::bindings::{log, planning, sight, types};

/// Linear memory: the counts of one window (64 MiB), tables, and room for other planners.
const MEMORY_MAX: usize = 512 << 20;
/// Handles: a target, a plan, an image or two.
const HANDLES_MAX: usize = 64;
/// One read, one list.
const READ_MAX: u64 = 8 << 20;
const RANGES_MAX: usize = 65_536;
/// Commands asked for in one call: one look costs one, so this is room and no more.
const COMMANDS_MAX: usize = 64;
/// Log text of one call, and of one line.
const LOG_MAX: usize = 1 << 20;
const LOG_LINE_MAX: usize = 8 << 10;
/// Lines kept to be shown with a fault.
const LOG_KEPT: usize = 32;

/// What a plugin may see of one volume. What its description does not name is not shown.
#[derive(Clone)]
pub struct Sight {
    /// Where it is.
    pub place: Place,
    /// The image with role `disk`.
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

/// The commands a plugin may ask for and plan.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants {
    pub(crate) queries: Vec<Grant>,
    pub(crate) actions: Vec<Grant>,
    pub(crate) disk: bool,
    pub(crate) changes: bool,
    pub(crate) copies: bool,
}

/// An image handle.
pub struct ImageHandle {
    disk: Arc<dyn Disk>,
    role: Role,
}

/// A volume handle.
pub struct TargetHandle(pub(crate) Sight);

/// A plan handle. The builder lives in the host, not in the table.
pub struct PlanHandle;

/// The host's side of one call.
pub(crate) struct Host {
    pub(crate) table: ResourceTable,
    pub(crate) limits: StoreLimits,
    pub(crate) plan: PlanBuilder,
    pub(crate) plugin: String,
    pub(crate) grants: Arc<Grants>,
    place: Option<Place>,
    asked: usize,
    pub(crate) lines: Vec<String>,
    /// Time spent reading for the plugin: the storage's, not its own.
    pub(crate) reading: Duration,
    logged: usize,
    log_full: AtomicBool,
}

impl Host {
    pub(crate) fn new(plugin: &str, grants: Arc<Grants>) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        let limits = StoreLimitsBuilder::new()
            .memory_size(MEMORY_MAX)
            .table_elements(100_000)
            .instances(32)
            .tables(32)
            .memories(4)
            .trap_on_grow_failure(true)
            .build();
        Host {
            table,
            limits,
            plan: PlanBuilder::new(),
            plugin: plugin.to_owned(),
            grants,
            place: None,
            asked: 0,
            lines: Vec::new(),
            reading: Duration::ZERO,
            logged: 0,
            log_full: AtomicBool::new(false),
        }
    }
}

impl Host {
    /// Hands the volume in.
    pub(crate) fn target(&mut self, sight: &Sight) -> wasmtime::Result<Resource<TargetHandle>> {
        self.place = Some(sight.place.clone());
        let handle = self.table.push(TargetHandle(sight.clone()))?;
        Ok(Resource::new_borrow(handle.rep()))
    }
}

fn limit(what: &str, limit: u64, asked: u64) -> Failure {
    Failure::new(FailureKind::Limit, "limit", format!("{what}: {asked} asked, {limit} allowed"))
        .with("limit", limit)
        .with("asked", asked)
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
        self.reading += begun.elapsed();
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
        self.reading += begun.elapsed();
        Ok(result.map(|()| buffer))
    }

    fn drop(&mut self, image: Resource<ImageHandle>) -> wasmtime::Result<()> {
        self.table.delete(image)?;
        Ok(())
    }
}

impl sight::HostTarget for Host {
    fn place(&mut self, target: Resource<TargetHandle>) -> wasmtime::Result<String> {
        Ok(self.table.get(&target)?.0.place.to_string())
    }

    fn image(
        &mut self,
        target: Resource<TargetHandle>,
        role: Role,
    ) -> Answered<Resource<ImageHandle>> {
        let target = self.table.get(&target)?;
        match role {
            Role::Disk => match target.0.disk.clone().filter(|_| self.grants.disk) {
                Some(disk) => Ok(Ok(self.table.push(ImageHandle { disk, role })?)),
                None => Ok(Err(not_granted("image", "disk"))),
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
        let sight = &self.table.get(&target)?.0;
        let grant = self.grants.queries.iter().find(|g| g.name == query);
        let (Some(grant), Some(commands)) = (grant, sight.commands.clone()) else {
            return Ok(Err(not_granted("query", &query)));
        };
        if self.asked >= COMMANDS_MAX {
            return Ok(Err(limit("commands asked", COMMANDS_MAX as u64, self.asked as u64 + 1)));
        }
        self.asked += 1;
        let filled = match grant.fill(&sight.place, &pairs(&arguments)) {
            Ok(filled) => filled,
            Err(error) => return Ok(Err(unfillable(&error))),
        };
        let begun = Instant::now();
        let result = commands.run(&filled.command);
        self.reading += begun.elapsed();
        Ok(match result {
            Ok(a) => Ok(Answer { exit_code: a.exit_code, output: a.output, errors: a.errors }),
            Err(error) => Err(not_run(&error)),
        })
    }

    fn copies(&mut self, target: Resource<TargetHandle>) -> Answered<Vec<SavedCopy>> {
        let copies = self.table.get(&target)?.0.copies.clone().filter(|_| self.grants.copies);
        let begun = Instant::now();
        let result = copies.map_or_else(|| Err(not_granted("copies", "")), |c| c.list());
        self.reading += begun.elapsed();
        Ok(result)
    }

    fn saving(&mut self, target: Resource<TargetHandle>) -> Answered<Saving> {
        let copies = self.table.get(&target)?.0.copies.clone().filter(|_| self.grants.copies);
        let begun = Instant::now();
        let result = copies.map_or_else(|| Err(not_granted("copies", "")), |c| c.saving());
        self.reading += begun.elapsed();
        Ok(result)
    }

    fn drop(&mut self, target: Resource<TargetHandle>) -> wasmtime::Result<()> {
        self.table.delete(target)?;
        Ok(())
    }
}

fn pairs(arguments: &[Argument]) -> Vec<(&str, &str)> {
    arguments.iter().map(|a| (a.hole.as_str(), a.value.as_str())).collect()
}

fn unfillable(error: &FillError) -> Failure {
    Failure::new(FailureKind::Invalid, "argument", error.to_string())
        .with("grant", &error.grant)
        .with("hole", &error.hole)
}

/// A command that gave no answer.
pub fn not_run(error: &RunError) -> Failure {
    let (kind, code) = match error {
        RunError::Missing { .. } => (FailureKind::Unsupported, "tool-missing"),
        RunError::Start { .. } => (FailureKind::Io, "tool-failed"),
        RunError::Deadline { .. } => (FailureKind::Io, "tool-hung"),
        RunError::TooMuch { .. } => (FailureKind::Io, "tool-flood"),
        RunError::Killed { .. } => (FailureKind::Io, "tool-died"),
    };
    Failure::new(kind, code, error.to_string())
}

fn not_granted(kind: &str, name: &str) -> Failure {
    let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
    let message = format!("the plugin has no grant for the {kind} {name}");
    Failure::new(FailureKind::NotGranted, "not-granted", message)
        .with("grant", format!("{kind} {name}"))
}

impl Host {
    fn may_change(&self, image: &Resource<ImageHandle>) -> wasmtime::Result<Result<(), Failure>> {
        Ok(match self.table.get(image)?.role {
            Role::Disk if self.grants.changes => Ok(()),
            Role::Disk => Err(not_granted("change of image", "disk")),
            Role::Backing => Err(not_granted("change of image", "backing")),
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
        let grant = self.grants.actions.iter().find(|g| g.name == action);
        let (Some(grant), Some(place)) = (grant, &self.place) else {
            return Ok(Err(not_granted("action", &action)));
        };
        let filled = match grant.fill(place, &pairs(&arguments)) {
            Ok(filled) => filled,
            Err(error) => return Ok(Err(unfillable(&error))),
        };
        let act = Act { action, command: filled.command, guard: filled.guard };
        Ok(self.plan.act(act).map_err(|e| refused(&e)))
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
        Ok(self.plan.note(&message).map_err(|e| refused(&e)))
    }

    fn barrier(&mut self, _: Resource<PlanHandle>, title: String) -> Answered<()> {
        Ok(self.plan.barrier(&title).map_err(|e| refused(&e)))
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
        if self.logged + message.len() > LOG_MAX {
            if !self.log_full.swap(true, Ordering::Relaxed) {
                tracing::warn!(plugin = %self.plugin, "the plugin's log is full; the rest is dropped");
            }
            return Ok(());
        }
        self.logged += message.len();
        let mut end = message.len().min(LOG_LINE_MAX);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let line: String =
            message[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match level {
            log::Level::Debug => tracing::debug!(plugin = %self.plugin, "{line}"),
            log::Level::Info => tracing::info!(plugin = %self.plugin, "{line}"),
            log::Level::Warn => tracing::warn!(plugin = %self.plugin, "{line}"),
        }
        if self.lines.len() == LOG_KEPT {
            self.lines.remove(0);
        }
        self.lines.push(line);
        Ok(())
    }
}
