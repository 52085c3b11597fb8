//! Several volumes of one machine: all of then, or all of now.
//!
//! Story: a restore of several volumes was written down as done volume by volume, after the last
//! command of each. Killed after a volume was past its point of no return and before that note, it
//! was taken for one that had not begun: the volume was restored, the next one was not, and the
//! machine was left with one disk of then and one of now. A thick volume that was merged had lost
//! its snapshot besides, and recovery asked for that one again, in vain, for ever. Now the begin is
//! noted too, and what was begun goes on.

use snapslot_engine::{Asked, Done, Engine, EngineError, Measure, Verb};
use snapslot_slot::State;
use snapslot_testkit::qemu::Bench;
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::Kind::{self, Dataset, Thick, ThickInactive, Thin, Zvol};
use snapslot_testkit::storage::together::Together;

use crate::{Act, engine};

/// Where a qcow2 image stands among the volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    None,
    First,
    Last,
}

const SETS: [(&[Kind], Image); 9] = [
    (&[Thin, Zvol], Image::None),
    (&[Zvol, Thin], Image::None),
    (&[Thick, Thin], Image::None),
    (&[Thin, Thick], Image::None),
    (&[Thick, ThickInactive], Image::None),
    (&[Dataset, Thick, Zvol], Image::None),
    (&[Thin], Image::First),
    (&[Zvol], Image::Last),
    (&[Thick], Image::First),
];

/// Bytes of each of the image's places that are written.
const PIECE: u64 = 64 << 10;

pub struct Machine {
    pub storage: Together,
    image: Image,
    bench: Bench,
}

pub const NAME: &str = "vm";

impl Machine {
    /// Around storage that a test has laid out, with nothing enabled.
    pub fn around(storage: Together) -> Machine {
        Machine { storage, image: Image::None, bench: Bench::in_memory() }
    }

    pub fn new(kinds: &[Kind], image: Image) -> Machine {
        let machine = Machine { storage: Together::new(kinds), image, bench: Bench::in_memory() };
        let mut volumes = machine.storage.locators();
        if image != Image::None {
            machine.bench.img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "8M"]);
            machine.write_image(1);
            let locator = format!("qcow2:{}", machine.bench.path("disk.qcow2").display());
            volumes.insert(if image == Image::First { 0 } else { volumes.len() }, locator);
        }
        machine.engine().enable(NAME, &volumes).expect("a slot");
        machine
    }

    fn write_image(&self, generation: u64) {
        let lines: Vec<String> =
            (0..4).map(|i| format!("write -q -P {generation} {} {PIECE}", i * PIECE * 9)).collect();
        self.bench.io("disk.qcow2", &lines.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// The guest writes to all of them.
    fn write(&self, generation: u64) {
        self.storage.write(generation);
        if self.image != Image::None {
            self.write_image(generation);
        }
    }

    /// The generation that all of them show.
    pub fn sees(&self) -> Result<u64, String> {
        let mut all = self.storage.sees()?;
        if self.image != Image::None {
            let shows = |generation: &u64| {
                let line = |i| format!("read -q -P {generation} {} {PIECE}", i * PIECE * 9);
                let lines: Vec<String> = (0..4).map(line).collect();
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                let said = self.bench.try_io("disk.qcow2", &lines);
                said.status.success() && said.stdout.is_empty()
            };
            let image = (1..=9).find(shows).ok_or("the image shows a mixture")?;
            all.push(image);
        }
        all.dedup();
        match all.as_slice() {
            [one] => Ok(*one),
            mixed => Err(format!("one disk of then and one of now: {mixed:?}")),
        }
    }

    pub fn engine(&self) -> Engine {
        engine(self.bench.directory(), self.storage.clone())
    }

    pub fn run(&self, verb: Verb, asked: &Asked) -> Result<Done, EngineError> {
        self.engine().operate(NAME, verb, asked, &|_, _, _| ())
    }

    pub fn slot(&self) -> State {
        self.engine().status(NAME, Measure::Wholly).expect("a status").slot
    }

    /// The mark that holds the slot; an error if it is neither held nor empty.
    fn mark(&self) -> Result<Option<String>, String> {
        match self.slot() {
            State::Held { occupant } => Ok(Some(occupant.mark)),
            State::Empty => Ok(None),
            other => Err(format!("the slot is {other:?}")),
        }
    }

    fn log(&self) -> String {
        self.storage.log().join("\n  ")
    }
}

/// Ready for the act: all see generation 2; a slot that is held holds 1.
pub fn ready(kinds: &[Kind], image: Image, act: Act) -> (Machine, Option<String>) {
    let machine = Machine::new(kinds, image);
    let asked = Asked { note: Some("before".to_owned()), ..Asked::default() };
    let mark = (act != Act::Take).then(|| {
        machine.run(Verb::Take, &asked).unwrap_or_else(|e| panic!("a take: {e}"));
        machine.mark().expect("a legal slot").expect("held")
    });
    machine.write(2);
    (machine, mark)
}

/// What must hold after recovery.
fn judge(machine: &Machine, act: Act, mark: Option<&String>, at: &str) {
    let told = |what: String| -> ! { panic!("{at}: {what}\n  {}", machine.log()) };
    if let Err(e) = machine.engine().recover(NAME) {
        told(format!("recovery fails: {e}"));
    }
    let sees = machine.sees().unwrap_or_else(|e| told(e));
    let now = machine.mark().unwrap_or_else(|e| told(e));
    let restores = matches!(act, Act::Restore | Act::Consume);
    if sees != 2 && !(restores && sees == 1) {
        told(format!("{act:?} left {sees}"));
    }
    // The content of then is on the disks or in the slot.
    if act != Act::Take && act != Act::Delete && sees == 2 && now.is_none() {
        told("neither restored nor held".to_owned());
    }
    if restores && sees == 2 && now.as_ref() != mark {
        told(format!("neither restored nor held: {now:?}"));
    }
    if now.is_some() && now.as_ref() == mark {
        match machine.slot() {
            State::Held { occupant } if occupant.note.as_deref() == Some("before") => {}
            other => told(format!("the note is lost: {other:?}")),
        }
    }
    if now.is_none() {
        let left = machine.storage.others();
        if !left.is_empty() {
            told(format!("an empty slot, and there is {left:?}"));
        }
    }
    machine.engine().recover(NAME).unwrap_or_else(|e| told(format!("again: {e}")));
    if (machine.sees(), machine.mark()) != (Ok(sees), Ok(now.clone())) {
        told("the second recovery changed something".to_owned());
    }
    // And the slot works on.
    if now.is_some() {
        machine.write(5);
        machine
            .run(Verb::Restore, &Asked::default())
            .unwrap_or_else(|e| told(format!("restore after it: {e}")));
        let expected = if now.as_ref() == mark { 1 } else { 2 };
        if machine.sees() != Ok(expected) {
            told(format!("restored to {:?}, expected {expected}", machine.sees()));
        }
        machine
            .run(Verb::Delete, &Asked::default())
            .unwrap_or_else(|e| told(format!("delete after it: {e}")));
    }
    machine
        .run(Verb::Take, &Asked::default())
        .unwrap_or_else(|e| told(format!("take after it: {e}")));
}

fn crashed(
    set: (&[Kind], Image),
    act: Act,
    n: u64,
    when: When,
) -> Option<(Machine, Option<String>)> {
    let (machine, mark) = ready(set.0, set.1, act);
    let (verb, asked) = act.verb();
    machine.storage.crash_at(n, when);
    let result = machine.run(verb, &asked);
    if !machine.storage.restart() {
        result.unwrap_or_else(|e| panic!("{set:?} {act:?}: {e}\n  {}", machine.log()));
        return None;
    }
    Some((machine, mark))
}

#[test]
fn a_crash_at_every_command_leaves_all_disks_of_then_or_all_of_now() {
    let mut states = 0;
    for set in SETS {
        for act in Act::ALL {
            for n in 1.. {
                let mut any = false;
                for when in [When::Before, When::Inside, When::After] {
                    let Some((machine, mark)) = crashed(set, act, n, when) else { continue };
                    any = true;
                    states += 1;
                    judge(&machine, act, mark.as_ref(), &format!("{set:?} {act:?} {n} {when:?}"));
                }
                if !any {
                    break;
                }
            }
        }
    }
    println!("{states} crashes");
    assert!(states >= 400, "only {states} crashes were tried");
}

#[test]
fn a_crash_in_recovery_of_several_volumes_is_recovered_from() {
    let mut states = 0;
    for (set, act) in [(0, Act::Restore), (2, Act::Restore), (4, Act::Consume), (7, Act::Restore)] {
        let set = SETS[set];
        for n in 1.. {
            let mut any = false;
            for second in 1.. {
                let Some((machine, mark)) = crashed(set, act, n, When::After) else { break };
                any = true;
                machine.storage.crash_at(second, When::After);
                let result = machine.engine().recover(NAME);
                let at = format!("{set:?} {act:?} {n}, recovery {second}");
                if !machine.storage.restart() {
                    result.unwrap_or_else(|e| panic!("{at}: {e}\n  {}", machine.log()));
                    break;
                }
                states += 1;
                judge(&machine, act, mark.as_ref(), &at);
            }
            if !any {
                break;
            }
        }
    }
    println!("{states} crashes inside recovery");
    assert!(states >= 100, "only {states} crashes were tried");
}
