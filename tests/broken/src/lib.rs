//! Plugins with one thing wrong each: what tests that find nothing are tested with.
//!
//! One backend that is qcow2's, LVM's or ZFS's with the fault of a number in [`FAULTS`]. As a component the number
//! stands in its bytes, for a test to write another there ([`component_with`]); natively a thread has it ([`with_fault`]).
//! Number 0 is sound.

mod calls;
mod commands;
mod images;

use std::cell::Cell;

use snapslot_plugin_lvm::Lvm;
use snapslot_plugin_qcow2::Qcow2;
use snapslot_plugin_sdk::double::{Recorded, RecordedPlan};
use snapslot_plugin_sdk::{
    Answer, Argument, Backend, Change, Description, ExtentPage, Facts, Failure, Goal, Plan, Role,
    StretchPage, Target, View,
};
use snapslot_plugin_zfs::Zfs;

pub use commands::Act;
pub use images::Pieces;

/// Whose planner it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// qcow2's.
    Qcow2,
    /// LVM's; a kind of volume on which the fault shows.
    Lvm(&'static str),
    /// ZFS's; the same.
    Zfs(&'static str),
}

/// Which plans are wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum In {
    /// Those of a take.
    Take,
    /// Those of a restore.
    Restore,
    /// Those of a delete.
    Delete,
}

/// What is wrong.
#[derive(Clone, Copy)]
pub enum How {
    /// Nothing.
    Sound,
    /// Steps of a plan that changes an image.
    Steps(In, fn(&mut Pieces)),
    /// Commands of a plan.
    Commands(fn(&Goal, Vec<Act>) -> Vec<Act>),
    /// Something else that is said or asked; each by its own name.
    Calls(calls::Wrong),
}

/// A fault.
pub struct Fault {
    /// In words.
    pub what: &'static str,
    /// Whose planner has it.
    pub base: Base,
    /// What is done wrong.
    pub how: How,
}

/// All faults, by number: the sound ones first, then those of images, of commands, of the rest.
pub fn faults() -> Vec<Fault> {
    let sound = [Base::Qcow2, Base::Lvm("Thin"), Base::Zfs("Zvol")];
    (sound.into_iter().map(|base| Fault { what: "nothing", base, how: How::Sound }))
        .chain(images::faults())
        .chain(commands::faults())
        .chain(calls::faults())
        .collect()
}

/// The number of the sound planner with this base.
pub fn sound(base: Base) -> usize {
    match base {
        Base::Qcow2 => 0,
        Base::Lvm(_) => 1,
        Base::Zfs(_) => 2,
    }
}

/// The number stands behind the marker. A test writes another into the component.
static CHOSEN: [u8; 20] = *b"@@broken-fault:00000";
const MARKER: &[u8] = b"@@broken-fault:";
/// What a fault that runs commands on this machine would leave there; a path of this length.
static PLANTED: [u8; 40] = *b"/tmp/snapslot-broken-planted-00000000000";

thread_local! {
    static NATIVE: Cell<usize> = const { Cell::new(0) };
}

/// Natively: what this does is done with this fault, on this thread.
pub fn with_fault<T>(number: usize, f: impl FnOnce() -> T) -> T {
    let before = NATIVE.replace(number);
    let result = f();
    NATIVE.set(before);
    result
}

/// The component with another fault.
///
/// # Panics
/// If these are not the bytes of this crate's component.
pub fn component_with(component: &[u8], number: usize) -> Vec<u8> {
    let digits = format!("{number:05}");
    replaced(component, MARKER, MARKER.len(), digits.as_bytes())
}

/// The component with another path for what it would plant; of the same length.
///
/// # Panics
/// If these are not the bytes of this crate's component, or the path has another length.
pub fn component_planting(component: &[u8], path: &str) -> Vec<u8> {
    assert_eq!(path.len(), PLANTED.len(), "the path must have the length of the one it replaces");
    replaced(component, b"/tmp/snapslot-broken-planted-", 0, path.as_bytes())
}

fn replaced(component: &[u8], marker: &[u8], skip: usize, with: &[u8]) -> Vec<u8> {
    let found = component.windows(marker.len()).position(|w| w == marker);
    let at = found.expect("the marker") + skip;
    let mut bytes = component.to_vec();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

fn planted() -> String {
    // SAFETY: it is a static; read like this the compiler cannot know what is in it.
    let path = unsafe { std::ptr::read_volatile(&raw const PLANTED) };
    String::from_utf8_lossy(&path).into_owned()
}

fn number() -> usize {
    if cfg!(target_arch = "wasm32") {
        // SAFETY: as above.
        let text = unsafe { std::ptr::read_volatile(&raw const CHOSEN) };
        return text[MARKER.len()..].iter().fold(0, |n, d| n * 10 + usize::from(d - b'0'));
    }
    NATIVE.get()
}

fn fault() -> Fault {
    let mut all = faults();
    let n = number() % all.len();
    all.swap_remove(n)
}

/// The backend.
#[derive(Debug)]
pub struct Broken;

/// One method of the backend whose planner it is.
macro_rules! of_base {
    ($base:expr, $method:ident($($argument:expr),*)) => {
        match $base {
            Base::Qcow2 => Qcow2::$method($($argument),*),
            Base::Lvm(_) => Lvm::$method($($argument),*),
            Base::Zfs(_) => Zfs::$method($($argument),*),
        }
    };
}
pub(crate) use of_base;

impl Backend for Broken {
    fn describe() -> Description {
        let fault = fault();
        let mut d = of_base!(fault.base, describe());
        d.name = "broken".to_owned();
        d.endings = Vec::new();
        match fault.how {
            How::Calls(wrong) => calls::described(wrong, d),
            _ => d,
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        let fault = fault();
        match fault.how {
            How::Calls(wrong) => calls::inspect(wrong, fault.base, target),
            _ => of_base!(fault.base, inspect(target)),
        }
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        let fault = fault();
        let mut sound = RecordedPlan::default();
        match fault.how {
            How::Calls(wrong) => calls::plan(wrong, fault.base, target, goal, &mut sound)?,
            _ => of_base!(fault.base, plan(target, goal, &mut sound))?,
        }
        let wrong = match fault.how {
            How::Steps(within, change) if within == of_goal(goal) && !sound.steps.is_empty() => {
                let mut pieces = Pieces::of(sound, l1_of(target));
                change(&mut pieces);
                pieces.into_plan()
            }
            How::Commands(change) => commands::changed(sound, goal, change),
            _ => sound,
        };
        told(wrong, plan)
    }

    fn extents(
        target: &dyn Target,
        view: &View,
        cursor: u64,
        max: u32,
    ) -> Result<ExtentPage, Failure> {
        let fault = fault();
        match fault.how {
            How::Calls(wrong) => calls::extents(wrong, fault.base, target, view, cursor, max),
            _ => of_base!(fault.base, extents(target, view, cursor, max)),
        }
    }

    fn measure(target: &dyn Target, identity: &str, quick: bool) -> Result<Change, Failure> {
        of_base!(fault().base, measure(target, identity, quick))
    }

    fn differences(
        target: &dyn Target,
        identity: &str,
        cursor: u64,
        max: u32,
    ) -> Result<StretchPage, Failure> {
        let fault = fault();
        match fault.how {
            How::Calls(wrong) => {
                calls::differences(wrong, fault.base, target, identity, cursor, max)
            }
            _ => of_base!(fault.base, differences(target, identity, cursor, max)),
        }
    }

    fn explain(command: &str, answer: &Answer) -> Failure {
        of_base!(fault().base, explain(command, answer))
    }
}

fn of_goal(goal: &Goal) -> In {
    match goal {
        Goal::Held(_) => In::Take,
        Goal::Restored(_) | Goal::Consumed(_) => In::Restore,
        Goal::Empty(_) | Goal::Settled => In::Delete,
    }
}

/// Where the L1 table lies that an image has now: 0 for what is no image.
fn l1_of(target: &dyn Target) -> u64 {
    let header = target.image(Role::Disk).and_then(|image| image.read_at(40, 8));
    let bytes: Option<[u8; 8]> = header.ok().and_then(|b| b.try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}

/// Gives the steps of one plan to another.
fn told(from: RecordedPlan, plan: &mut dyn Plan) -> Result<(), Failure> {
    if let Some((offset, bits)) = from.seal {
        plan.seal(offset, bits)?;
    }
    for note in &from.notes {
        plan.note(note)?;
    }
    for step in from.steps {
        match step {
            Recorded::Write(offset, data) => plan.write(offset, &data)?,
            Recorded::Fill(run) => plan.fill(vec![run])?,
            Recorded::Mask(run) => plan.mask(vec![run])?,
            Recorded::Extend(size) => plan.extend(size)?,
            Recorded::Act(action, arguments) => plan.act(&action, &arguments)?,
            Recorded::Save(new) => plan.save(&new)?,
            Recorded::PutBack(mark) => plan.put_back(&mark)?,
            Recorded::Discard(mark) => plan.discard(&mark)?,
            Recorded::Barrier(title) => plan.barrier(&title)?,
        }
    }
    Ok(())
}

/// An argument with another value.
pub(crate) fn valued(argument: &Argument, value: String) -> Argument {
    Argument { hole: argument.hole.clone(), value }
}

snapslot_plugin_sdk::export_backend!(crate::Broken);
