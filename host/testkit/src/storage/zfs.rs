//! ZFS in memory: the `zfs` command as plugins and people use it, with content behind it.
//!
//! [`Model`] runs commands ([`Executor`]) and answers them as ZFS 2.1.11 did when it was recorded:
//! exit codes, messages, columns, the JSON of channel programs. Channel programs are not known by
//! name: their Lua is run, so that what is tested is the program that is shipped.
//!
//! It keeps what ZFS keeps: guids, transaction groups, holds, clones, bookmarks, inherited user
//! properties, keys, mounts, openers, and room counted by blocks. Content is a sparse map from
//! block to number, so that a test can say what the machine would read.
//!
//! Faults: the caller dies before, inside or after a change ([`Model::crash_at`]); a command hangs,
//! dies or says nonsense ([`Model::fault_at`]). Every change the plugin makes is one transaction
//! of ZFS: inside of it means either before or after, and chance decides.
//!
//! What the model was never told it does not guess: it panics and names the command.

mod change;
mod lua;
mod lua_run;
mod names;
mod pool;
mod program;
mod shape;
mod show;

pub use super::When;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use snapslot_command::{Answer, Command, Executor, RunError};

use crate::rng::Rng;
use pool::{Content, Dataset, Kind, Pool};

pub use pool::View;

/// When the first pool is made: 2026-11-22T10:42:00Z.
const EPOCH: u64 = 1_795_344_120;

/// How far whoever runs the commands gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// All of it.
    Root,
    /// A user to whom nothing is delegated: may look.
    User,
    /// A user who may not open `/dev/zfs`.
    NoDevice,
    /// The kernel's modules are not loaded.
    NoModules,
}

/// What goes wrong with a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The program is not there.
    Missing,
    /// It does not end in time; whether it did its work is said.
    Hang {
        /// Whether it did its work.
        done: bool,
    },
    /// A signal ends it; whether it did its work is said.
    Dies {
        /// Whether it did its work.
        done: bool,
    },
    /// It does its work and says nothing.
    Empty,
    /// It does its work and says something else.
    Rubbish,
    /// It does its work and says bytes that are not text.
    NotText,
    /// It does its work, and each line has a column more.
    ExtraColumn,
    /// It does nothing and answers this.
    Says(Answer),
}

/// Why the guest could not read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// The pool, or the dataset's quota, is full.
    NoRoom,
    /// The key is not loaded.
    NoKey,
    /// The pool takes no writes.
    ReadOnly,
}

/// What a command says, before it is bytes.
#[derive(Clone, Debug, Default)]
struct Reply {
    code: i32,
    out: String,
    err: String,
}

impl Reply {
    fn fine() -> Self {
        Reply::default()
    }

    fn says(out: impl Into<String>) -> Self {
        Reply { code: 0, out: out.into(), err: String::new() }
    }

    fn fails(err: impl Into<String>) -> Self {
        Reply { code: 1, out: String::new(), err: format!("{}\n", err.into()) }
    }

    /// A mistake in the words of the command. The help that follows is left out but for its head.
    fn usage(err: &str) -> Self {
        let line = if err.is_empty() { String::new() } else { format!("{err}\n") };
        Reply { code: 2, out: String::new(), err: format!("{line}usage:\n") }
    }
}

/// Everything there is.
#[derive(Clone, Debug)]
struct World {
    pools: BTreeMap<String, Pool>,
    rng: Rng,
    now: u64,
    access: Access,
}

/// The pool's part of a name.
fn pool_name(name: &str) -> &str {
    name.split(['/', '@', '#']).next().unwrap_or(name)
}

impl World {
    fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.get(pool_name(name))
    }

    fn pool_mut(&mut self, name: &str) -> &mut Pool {
        self.pools.get_mut(pool_name(name)).expect("the pool is there")
    }

    fn dataset(&self, name: &str) -> Option<&Dataset> {
        self.pool(name)?.datasets.get(name)
    }

    fn dataset_mut(&mut self, name: &str) -> Option<&mut Dataset> {
        self.pools.get_mut(pool_name(name))?.datasets.get_mut(name)
    }

    fn snapshot(&self, full: &str) -> Option<&pool::Snapshot> {
        let (dataset, name) = full.split_once('@')?;
        self.dataset(dataset)?.snapshot(name)
    }

    fn exists(&self, name: &str) -> bool {
        if name.contains('@') {
            self.snapshot(name).is_some()
        } else {
            self.dataset(name).is_some()
        }
    }

    /// Begins a transaction group in the pool of this name: each change has one of its own.
    fn txg(&mut self, name: &str) -> u64 {
        let pool = self.pool_mut(name);
        pool.txg += 1;
        pool.txg
    }

    fn guid(&mut self) -> u64 {
        self.rng.next_u64() | 1
    }

    /// Runs one command, whole.
    fn run(&mut self, words: &[String], input: Option<&str>, line: &str) -> Reply {
        match self.access {
            Access::Root | Access::User => {}
            Access::NoDevice => {
                return Reply::fails("Permission denied the ZFS utilities must be run as root.");
            }
            Access::NoModules => {
                return Reply::fails(
                    "The ZFS modules are not loaded.\n\
                     Try running '/sbin/modprobe zfs' as root to load them.",
                );
            }
        }
        let Some((verb, rest)) = words.split_first() else { unknown(line) };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        self.pools.values_mut().for_each(|pool| pool.slack = 0);
        let reply = match verb.as_str() {
            "list" => self.list(&rest),
            "get" => self.get(&rest),
            "holds" => self.holds(&rest),
            "snapshot" => self.take(&rest),
            "rollback" => self.rollback(&rest),
            "destroy" => self.destroy(&rest),
            "bookmark" => self.bookmark(&rest),
            "hold" => self.hold(&rest),
            "release" => self.release(&rest),
            "program" => self.program(&rest, input),
            "create" => self.create(&rest),
            "clone" => self.clone_snapshot(&rest),
            "promote" => self.promote(&rest),
            "rename" => self.rename(&rest),
            "set" => self.set(&rest),
            "inherit" => self.inherit(&rest),
            "mount" => self.mount(&rest, true),
            "unmount" => self.mount(&rest, false),
            "load-key" => self.key(&rest, true),
            "unload-key" => self.key(&rest, false),
            _ => None,
        };
        reply.unwrap_or_else(|| unknown(line))
    }
}

/// The end of a test that asks for what the model was never told.
fn unknown(line: &str) -> ! {
    panic!("the model of ZFS does not know this, or not in this state: {line}")
}

/// Whether a command of this verb changes anything.
fn changes(words: &[String]) -> bool {
    !words.first().is_some_and(|v| ["list", "get", "holds"].contains(&v.as_str()))
}

#[derive(Debug)]
struct Inner {
    world: World,
    crash: Option<(u64, When)>,
    faults: BTreeMap<u64, Fault>,
    /// Commands since the faults were set, and those of them that change something.
    ran: u64,
    changed: u64,
    dead: bool,
    log: Vec<String>,
}

/// A machine with ZFS.
#[derive(Debug)]
pub struct Model(Mutex<Inner>);

impl Model {
    /// All there is, in words: two machines with the same words answer alike from here on. The time is left
    /// out: it only says when.
    pub fn all(&self) -> String {
        let mut world = self.0.lock().unwrap_or_else(PoisonError::into_inner).world.clone();
        world.now = 0;
        format!("{world:?}")
    }

    /// A machine without pools. Guids come from the seed: the same seed, the same guids.
    pub fn new(seed: u64) -> Self {
        let (pools, rng) = (BTreeMap::new(), Rng::new(seed));
        let world = World { pools, rng, now: EPOCH, access: Access::Root };
        Model(Mutex::new(Inner {
            world,
            crash: None,
            faults: BTreeMap::new(),
            ran: 0,
            changed: 0,
            dead: false,
            log: Vec::new(),
        }))
    }

    /// A machine with one pool of 384 MiB, `tank`, mounted nowhere.
    pub fn with_tank(seed: u64) -> Self {
        let model = Model::new(seed);
        model.add_pool("tank", 384 << 20);
        model
    }

    /// The same machine as it is now, for trying what would happen. Faults do not go along.
    #[must_use]
    pub fn fork(&self) -> Self {
        let copy = Model::new(0);
        copy.lock().world = self.lock().world.clone();
        copy
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, f: impl FnOnce(&mut World) -> T) -> T {
        f(&mut self.lock().world)
    }

    /// Makes a pool, mounted nowhere, as `zpool create -m none`.
    pub fn add_pool(&self, name: &str, bytes: u64) {
        self.with(|world| {
            world.pools.insert(name.to_owned(), Pool::new(name, bytes));
            let kind = Kind::FileSystem { mounted: false, busy: false };
            let properties = [("mountpoint".to_owned(), "none".to_owned())].into();
            world.add_dataset(name, kind, properties, None, 0);
        });
    }

    /// Destroys a pool, as `zpool destroy`.
    pub fn remove_pool(&self, name: &str) {
        self.with(|world| world.pools.remove(name)).expect("the pool is there");
    }

    /// Runs a command as typed: no faults, no log. Words may stand in single quotes.
    pub fn typed(&self, line: &str) -> Answer {
        self.typed_with(line, None)
    }

    /// Runs a command as typed, with a text for its standard input.
    pub fn typed_with(&self, line: &str, input: Option<&str>) -> Answer {
        let mut words = split(line);
        assert!(!words.is_empty() && words.remove(0) == "zfs", "not a zfs command: {line}");
        answer(self.with(|world| world.run(&words, input, line)))
    }

    /// Runs a command as typed, which must end well; gives its output.
    pub fn must(&self, line: &str) -> String {
        let answer = self.typed(line);
        assert!(answer.exit_code == 0, "{line}: {}", answer.complaint());
        String::from_utf8_lossy(&answer.output).into_owned()
    }

    /// Lets time pass.
    pub fn advance(&self, seconds: u64) {
        self.with(|world| world.now += seconds);
    }

    /// Says who runs the commands.
    pub fn set_access(&self, access: Access) {
        self.with(|world| world.access = access);
    }

    /// Says whether the pool takes writes.
    pub fn set_read_only(&self, pool: &str, on: bool) {
        self.with(|world| world.pool_mut(pool).readonly = on);
    }

    /// Changes a volume's size behind everybody's back.
    pub fn resize(&self, volume: &str, bytes: u64) {
        self.on(volume, |d| match &mut d.kind {
            Kind::Volume { size, .. } => *size = bytes,
            Kind::FileSystem { .. } => panic!("{volume} is a file system"),
        });
    }

    fn on<T>(&self, name: &str, f: impl FnOnce(&mut Dataset) -> T) -> T {
        self.with(|world| {
            f(world.dataset_mut(name).unwrap_or_else(|| panic!("there is no {name}")))
        })
    }

    /// Opens the volume's device, or goes into the file system.
    pub fn open(&self, name: &str) {
        self.on(name, |d| match &mut d.kind {
            Kind::Volume { opens, .. } => *opens += 1,
            Kind::FileSystem { busy, .. } => *busy = true,
        });
    }

    /// Closes it again, or goes out.
    pub fn close(&self, name: &str) {
        self.on(name, |d| match &mut d.kind {
            Kind::Volume { opens, .. } => *opens -= 1,
            Kind::FileSystem { busy, .. } => *busy = false,
        });
    }

    /// Looks into a snapshot under `.zfs/snapshot`, or closes that view.
    pub fn view(&self, snapshot: &str, view: View) {
        let (dataset, name) = snapshot.split_once('@').expect("a snapshot's name");
        self.on(dataset, |d| d.snapshot_mut(name).expect("the snapshot is there").view = view);
    }

    /// The guest writes a block; none gives its room back. The block may lie anywhere.
    pub fn guest_write(
        &self,
        name: &str,
        block: u64,
        value: Option<u64>,
    ) -> Result<(), GuestError> {
        self.with(|world| {
            let dataset = world.dataset(name).unwrap_or_else(|| panic!("there is no {name}"));
            if dataset.key.as_ref().is_some_and(|(_, loaded)| !loaded) {
                return Err(GuestError::NoKey);
            }
            let pool = world.pool_mut(name);
            match pool.readonly {
                true => Err(GuestError::ReadOnly),
                false => pool.write(name, block, value).then_some(()).ok_or(GuestError::NoRoom),
            }
        })
    }

    /// The guest reads a block.
    pub fn guest_read(&self, name: &str, block: u64) -> Result<Option<u64>, GuestError> {
        let locked = |d: &Dataset| d.key.as_ref().is_some_and(|(_, loaded)| !loaded);
        self.on(name, |d| match locked(d) {
            true => Err(GuestError::NoKey),
            false => Ok(d.head.blocks.get(&block).map(|b| b.value)),
        })
    }

    /// All of the content of a dataset or snapshot, key or no key.
    pub fn content(&self, name: &str) -> Option<BTreeMap<u64, u64>> {
        let values = |c: &Content| c.blocks.iter().map(|(at, b)| (*at, b.value)).collect();
        self.with(|world| match name.contains('@') {
            true => world.snapshot(name).map(|s| values(&s.content)),
            false => world.dataset(name).map(|d| values(&d.head)),
        })
    }

    /// Whether content was changed under somebody who has it open.
    pub fn is_corrupted(&self, name: &str) -> bool {
        self.on(name, |d| d.corrupted)
    }

    /// Name and guid of each snapshot of the dataset, oldest first.
    pub fn snapshots(&self, name: &str) -> Vec<(String, u64)> {
        self.on(name, |d| d.snapshots.iter().map(|s| (s.name.clone(), s.guid)).collect())
    }

    /// From now on, the caller dies at the `nth` command that changes something (from 1), and is
    /// dead until [`Model::restart`].
    pub fn crash_at(&self, nth: u64, when: When) {
        let mut inner = self.lock();
        (inner.crash, inner.changed) = (Some((nth, when)), 0);
    }

    /// From now on, the `nth` command (from 1) goes wrong.
    pub fn fault_at(&self, nth: u64, fault: Fault) {
        let mut inner = self.lock();
        let at = inner.ran + nth;
        inner.faults.insert(at, fault);
    }

    /// The caller lives again; nothing goes wrong any more.
    pub fn restart(&self) {
        let mut inner = self.lock();
        (inner.crash, inner.dead) = (None, false);
        inner.faults.clear();
    }

    /// Whether the caller died.
    pub fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Every command run so far but those typed, in order.
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }
}

fn answer(reply: Reply) -> Answer {
    let Reply { code, out, err } = reply;
    Answer { exit_code: code, output: out.into_bytes(), errors: err.into_bytes() }
}

/// The words of a line.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    assert!(!quoted, "a quote is not closed: {line}");
    words.extend(word);
    words
}

impl Executor for Model {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let line = command.to_string();
        let killed = || RunError::Killed { command: command.to_string(), signal: 9 };
        let mut inner = self.lock();
        if inner.dead {
            return Err(killed());
        }
        assert!(command.program == "zfs", "the model of ZFS has no such program: {line}");
        inner.log.push(line.clone());
        inner.ran += 1;
        let mut dies = None;
        if changes(&command.arguments) {
            inner.changed += 1;
            dies = inner.crash.filter(|(nth, _)| *nth == inner.changed).map(|(_, when)| when);
        }
        let ran = inner.ran;
        let fault = inner.faults.remove(&ran);
        let undone = match &fault {
            Some(Fault::Missing | Fault::Says(_)) => true,
            Some(Fault::Hang { done } | Fault::Dies { done }) => !done,
            _ => false,
        };
        let skipped = match dies {
            Some(When::Before) => true,
            Some(When::Inside) => inner.world.rng.coin(),
            Some(When::After) | None => undone,
        };
        let mut said = Answer::default();
        if !skipped {
            said = answer(inner.world.run(&command.arguments, command.input.as_deref(), &line));
        }
        if dies.is_some() {
            inner.dead = true;
            return Err(killed());
        }
        match fault {
            None => Ok(said),
            Some(Fault::Missing) => Err(RunError::Missing {
                program: command.program.clone(),
                why: "is not installed here".to_owned(),
            }),
            Some(Fault::Hang { .. }) => {
                Err(RunError::Deadline { command: line, seconds: command.deadline.as_secs() })
            }
            Some(Fault::Dies { .. }) => Err(killed()),
            Some(Fault::Says(answer)) => Ok(answer),
            Some(Fault::Empty) => Ok(Answer { output: Vec::new(), ..said }),
            Some(Fault::Rubbish) => Ok(Answer { output: b"lorem\tipsum\n{]\n".to_vec(), ..said }),
            Some(Fault::NotText) => Ok(Answer { output: vec![0xff, 0xfe, 0x09, 0x0a], ..said }),
            Some(Fault::ExtraColumn) => {
                let text = String::from_utf8_lossy(&said.output).replace('\n', "\t-\n");
                Ok(Answer { output: text.into_bytes(), ..said })
            }
        }
    }
}
