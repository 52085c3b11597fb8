//! A qcow2 image's life: guest writes by QEMU, and the three verbs, each crashed everywhere.

use snapslot_plugin_sdk::{Goal, NewSnapshot};

use crate::crash::Files;
use crate::qcow2_judge::Qcow2Judge;
use crate::qcow2_model::Qcow2;
use crate::qemu::Bench;
use crate::sim_host::{IMAGE, Planner, RunError, inspect};
use crate::trial::{Depth, Tally, Trial};

/// What happens in a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Take into the slot.
    Take,
    /// Restore from the slot.
    Restore,
    /// Delete what the slot holds.
    Delete,
    /// A guest writes: a qemu-io command.
    Guest(&'static str),
    /// A guest writes this byte in many places all over the disk, so that there are many tables to change.
    Scatter(u8),
    /// The disk gets this size, in bytes.
    Resize(&'static str),
    /// The disk gets longer by half.
    Grow,
    /// The disk gets half as long.
    Shrink,
}

/// What came of an act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// It was done.
    Done,
    /// The backend refused, by this code, and nothing was touched.
    Refused(String),
}

/// An image on its way through a life.
#[derive(Clone)]
pub struct Story<'a> {
    /// Who plans.
    pub planner: &'a dyn Planner,
    /// Who judges.
    pub judge: &'a Qcow2Judge,
    /// The image now.
    pub image: Vec<u8>,
    /// How deep to look.
    pub depth: Depth,
    /// Whether faults are injected besides crashes.
    pub faults: bool,
    /// What was looked at so far.
    pub tally: Tally,
    /// Takes so far; each has a mark of its own.
    pub takes: u64,
}

/// The picture's snapshots whose names are not a slot's.
fn foreign(
    judge: &Qcow2Judge,
    image: &[u8],
) -> Result<Vec<crate::qcow2_model::SnapshotPicture>, String> {
    let picture = Qcow2::read(image)?.picture(&judge.backing)?;
    Ok(picture.snapshots.into_iter().filter(|s| !s.name.starts_with("snapslot-")).collect())
}

/// Places that a guest writes to who scatters.
const PLACES: u64 = 9;

/// Writes of a byte all over a disk of this size, as qemu-io's commands. Another byte, slightly other places.
pub fn scattered(size: u64, byte: u8) -> Vec<String> {
    let place = |i: u64| (i * size / PLACES + u64::from(byte) % 7 * 512) / 512 * 512;
    (0..PLACES).map(|i| format!("write -q -P {byte} {} 700", place(i))).collect()
}

impl<'a> Story<'a> {
    /// A life that begins with this image.
    pub fn new(
        planner: &'a dyn Planner,
        judge: &'a Qcow2Judge,
        image: Vec<u8>,
        depth: Depth,
    ) -> Self {
        Story { planner, judge, image, depth, faults: false, tally: Tally::default(), takes: 0 }
    }

    fn active(&self) -> Result<u128, String> {
        Qcow2::read(&self.image)?.active_digest(&self.judge.backing)
    }

    /// The slot's snapshot as the backend reports it: identity and mark.
    fn slot(&self) -> Result<Option<(String, String)>, String> {
        let files = Files::from([(IMAGE.to_owned(), self.image.as_slice().into())]);
        let world = snapslot_disk::sim::World::of(files);
        let facts = inspect(self.planner, &world).map_err(|f| f.message)?;
        let mut found = facts.snapshots.into_iter();
        Ok(found.find_map(|s| Some((s.identity, s.mark?))))
    }

    /// Does one thing. The error tells a fault.
    pub fn act(&mut self, act: Act) -> Result<Came, String> {
        self.try_act(act).map_err(|e| format!("{act:?}: {e}"))
    }

    fn try_act(&mut self, act: Act) -> Result<Came, String> {
        let held = self.slot()?;
        let nothing = || Came::Refused("slot".to_owned());
        let goal = match (act, held) {
            (Act::Guest(command), _) => return self.guest(&[command]),
            (Act::Scatter(byte), _) => return self.scatter(byte),
            (Act::Resize(size), _) => return self.resize(size),
            (Act::Grow, _) => return self.resize(&self.size_by(3, 2)?),
            (Act::Shrink, _) => return self.resize(&self.size_by(1, 2)?),
            (Act::Take, Some(_)) | (Act::Restore | Act::Delete, None) => return Ok(nothing()),
            (Act::Take, None) => {
                self.takes += 1;
                let mark = format!("{:016x}", self.takes);
                Goal::Held(NewSnapshot {
                    mark,
                    taken_seconds: 1_700_000_000,
                    taken_nanoseconds: 7,
                    room: None,
                    beside: 0,
                    full_copy: false,
                })
            }
            (Act::Restore, Some((identity, _))) => Goal::Restored(identity),
            (Act::Delete, Some((identity, _))) => Goal::Empty(identity),
        };
        let active = self.active()?;
        let others = foreign(self.judge, &self.image)?;
        let image = std::mem::take(&mut self.image);
        let trial = match Trial::begin(self.planner, self.judge, &image, &goal)? {
            Ok(trial) => trial,
            Err(RunError::Refused(failure)) => {
                self.image = image;
                return Ok(Came::Refused(failure.code));
            }
            Err(error) => return Err(error.to_string()),
        };
        self.tally += trial.power_cuts(&self.depth)?;
        if self.faults && !trial.plan().is_empty() {
            self.tally += trial.upsets(&self.depth)?;
        }
        self.image = trial.after();
        self.reached(act, active)?;
        if let Goal::Held(new) = &goal
            && self.slot()?.is_none_or(|(_, mark)| mark != new.mark)
        {
            return Err("the snapshot does not bear the mark that was asked for".to_owned());
        }
        if foreign(self.judge, &self.image)? != others {
            return Err("a foreign snapshot changed".to_owned());
        }
        Ok(Came::Done)
    }

    /// The goal is what the model sees.
    fn reached(&self, act: Act, active_before: u128) -> Result<(), String> {
        let image = Qcow2::read(&self.image)?;
        let ours = image.snapshots().iter().find(|s| s.name.starts_with("snapslot-"));
        let content = |s| image.snapshot_digest(s, &self.judge.backing);
        let active = self.active()?;
        let wrong = match (act, ours) {
            (Act::Take, Some(s)) => content(s)? != active_before || active != active_before,
            (Act::Restore, Some(s)) => content(s)? != active,
            (Act::Delete, None) => active != active_before,
            _ => true,
        };
        if wrong { Err("the goal is not reached".to_owned()) } else { Ok(()) }
    }

    fn scatter(&mut self, byte: u8) -> Result<Came, String> {
        let commands = scattered(Qcow2::read(&self.image)?.header().size, byte);
        self.guest(&commands.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// A guest writes, through QEMU.
    pub fn guest(&mut self, commands: &[&str]) -> Result<Came, String> {
        let bench: &Bench = &self.judge.bench;
        bench.write("guest.qcow2", &self.image);
        bench.io("guest.qcow2", commands);
        self.image = bench.read("guest.qcow2");
        self.sound()
    }

    /// A part of its present size, in whole sectors; long enough still for what guests write.
    fn size_by(&self, times: u64, of: u64) -> Result<String, String> {
        let size = Qcow2::read(&self.image)?.header().size;
        Ok((size * times / of / 512 * 512).max(32 << 10).to_string())
    }

    fn resize(&mut self, size: &str) -> Result<Came, String> {
        let bench = &self.judge.bench;
        bench.write("guest.qcow2", &self.image);
        let version = self.judge.version;
        if version == 2 && !Qcow2::read(&self.image)?.snapshots().is_empty() {
            return Ok(Came::Refused("v2".to_owned()));
        }
        bench.img(&["resize", "-q", "-f", "qcow2", "--shrink", "guest.qcow2", size]);
        self.image = bench.read("guest.qcow2");
        self.sound()
    }

    /// What QEMU made of it must be sound, else the next verdict is of QEMU.
    fn sound(&self) -> Result<Came, String> {
        let verdict = Qcow2::read(&self.image)?.judge();
        if verdict.clean() { Ok(Came::Done) } else { Err(format!("QEMU left{verdict}")) }
    }
}
