//! An in-memory LVM that answers the commands the LVM backend may run.
//!
//! For: every path of the LVM planner, and crashes before, inside and after each command, in
//! microseconds and without device-mapper. What it says was recorded from LVM 2.03.16; a test
//! replays those recordings against it (`tests/lvm_model.rs`). Where no recording reaches, it
//! follows LVM's sources of that release, and the place says so.
//!
//! It promises:
//! - the same state and the same commands give the same answers, UUIDs and times included;
//! - exit codes, messages and the shape of reports are LVM's;
//! - content is kept: blocks of 4 KiB, each a number, so that a test can judge what a restore did;
//! - what it does not know is a panic that shows the command line, never a guess.
//!
//! Left out: several physical volumes, stripes, mirrors, RAID, caches, VDO, thin pools that grow
//! by themselves, locks between two commands (the engine runs one at a time on a volume).
//!
//! Fault model. A command may not be run at all, be ended half way, or be run with its answer
//! lost ([`When`]). *Half way* is what the tool's own order of commits can leave:
//!
//! | command | half done |
//! |---|---|
//! | `lvcreate -s -L` (thick) | a plain volume with the snapshot's name and tags: the store, not yet joined to its origin |
//! | `lvcreate -s` (thin) | the snapshot is there, not active |
//! | `lvremove` of several | all but the last are gone |
//! | `lvremove` of a thick snapshot | a plain volume again, as with `lvcreate` |
//! | `lvremove` of another | it is not active any more |
//! | `lvconvert --merge` (thick) | the merge is under way in the kernel, nobody waits for its end |
//! | `lvconvert --merge` (thin) | both volumes are not active, nothing is merged |
//! | `lvchange --refresh`, `-ay` | a merge it starts is under way, nobody waits for its end |
//! | others | LVM commits once: as when the answer is lost |

mod change;
mod content;
mod convert;
mod create;
mod options;
mod remove;
mod report;
mod room;
mod rows;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use snapslot_command::{Answer, Command, Executor, RunError};

pub use content::GuestError;

pub use super::When;
use options::Line;
use state::State;

/// Bytes in a block: the unit in which content is kept.
pub const BLOCK_BYTES: u64 = 4096;

/// What may go wrong with one command.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It hangs at this point and is ended at its deadline.
    Hangs(When),
    /// A signal ends it at this point. The caller lives on.
    Dies(When),
    /// It is run, and what it printed is lost; the exit code is 0.
    Silent,
    /// It is run, and this is its standard output instead.
    Prints(Vec<u8>),
    /// It is not run, says this and exits with this code.
    Fails(i32, String),
    /// The program is not on the machine.
    Missing,
}

/// One thin layer of fault injection over the model's state.
struct Inner {
    state: State,
    /// Commands run by the caller, oldest first.
    log: Vec<String>,
    /// How many of them were to change something.
    changes: u64,
    /// At which change the caller dies, and how.
    crash: Option<(u64, When)>,
    /// The caller is dead: no command of its is run any more.
    dead: bool,
    /// Faults for coming commands, by how many commands come first.
    faults: VecDeque<(u64, Fault)>,
}

/// An in-memory LVM. Volumes are named `group/volume` as on the command line.
pub struct Lvm(Mutex<Inner>);

impl Lvm {
    /// All there is, in words: two machines with the same words answer alike from here on. The time is left
    /// out: it only says when.
    pub fn all(&self) -> String {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner).state.clone();
        state.clock = 0;
        format!("{state:?}")
    }

    /// A machine without volume groups. The seed decides the UUIDs.
    pub fn new(seed: u64) -> Lvm {
        Lvm(Mutex::new(Inner {
            state: State::new(seed),
            log: Vec::new(),
            changes: 0,
            crash: None,
            dead: false,
            faults: VecDeque::new(),
        }))
    }

    /// Adds a volume group of so many bytes, a multiple of the extent of 4 MiB.
    pub fn add_group(&self, name: &str, bytes: u64) {
        self.inner().state.add_group(name, bytes);
    }

    /// Runs a command as typed by somebody else: it counts for no crash and no fault, and works
    /// after the caller died. Words are divided at blanks; quotes are not known.
    pub fn hand(&self, line: &str) -> Answer {
        self.words(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// The same, divided into words already.
    pub fn words(&self, words: &[&str]) -> Answer {
        let words = words.iter().map(|&word| word.to_owned()).collect();
        self.inner().state.run(&Line::parse(words), false)
    }

    /// The same, for setting a stage: it must succeed.
    #[track_caller]
    pub fn stage(&self, line: &str) {
        let answer = self.hand(line);
        assert_eq!(answer.exit_code, 0, "`{line}` failed: {}", answer.complaint());
    }

    /// The caller dies at the `n`-th change from now, 1 being the next. From then on all its
    /// commands give [`RunError::Killed`] until [`Lvm::restart`].
    pub fn crash_at(&self, n: u64, when: When) {
        assert!(n > 0, "changes are counted from 1");
        let mut inner = self.inner();
        inner.crash = Some((inner.changes + n, when));
    }

    /// Injects a fault into the `n`-th command from now, 1 being the next; looks count too.
    pub fn fault_at(&self, n: u64, fault: Fault) {
        assert!(n > 0, "commands are counted from 1");
        let mut inner = self.inner();
        let at = inner.log.len() as u64 + n;
        inner.faults.push_back((at, fault));
    }

    /// The caller lives again. Faults and crashes that did not come are forgotten.
    pub fn restart(&self) {
        let mut inner = self.inner();
        inner.dead = false;
        inner.crash = None;
        inner.faults.clear();
    }

    /// The machine restarts: nobody has anything open, volumes are activated as LVM does it at
    /// boot, merges that wait for that are done. The caller lives again.
    pub fn reboot(&self) {
        self.restart();
        self.inner().state.reboot();
    }

    /// Whether the caller is dead.
    pub fn crashed(&self) -> bool {
        self.inner().dead
    }

    /// How many commands that change something were asked for so far, to list all crash points.
    pub fn changes(&self) -> u64 {
        self.inner().changes
    }

    /// The caller's commands, oldest first, as a person would type them.
    pub fn log(&self) -> Vec<String> {
        self.inner().log.clone()
    }

    /// Somebody opens the volume's device.
    #[track_caller]
    pub fn open(&self, volume: &str) {
        self.inner().state.open(volume, false);
    }

    /// Somebody mounts it: LVM has other words for that.
    #[track_caller]
    pub fn mount(&self, volume: &str) {
        self.inner().state.open(volume, true);
    }

    /// Leaves the volume's device suspended, as a command that was ended while it changed tables
    /// does: what reads or writes it hangs until a refresh or an activation.
    #[track_caller]
    pub fn suspend(&self, volume: &str) {
        let mut inner = self.inner();
        let id = inner.state.expect(volume);
        assert!(inner.state.lv(id).active, "{volume} is not active");
        inner.state.lv_mut(id).suspended = true;
    }

    /// The last one who opened or mounted it lets go.
    #[track_caller]
    pub fn close(&self, volume: &str) {
        self.inner().state.close(volume);
    }

    /// Writes a block as the machine would. 0 is a block of zeroes.
    #[track_caller]
    pub fn guest_write(&self, volume: &str, block: u64, value: u64) -> Result<(), GuestError> {
        let mut inner = self.inner();
        let id = inner.state.expect(volume);
        inner.state.guest_write(id, block, value)
    }

    /// Reads a block as the machine would.
    #[track_caller]
    pub fn guest_read(&self, volume: &str, block: u64) -> Result<u64, GuestError> {
        let inner = self.inner();
        inner.state.guest_read(inner.state.expect(volume), block)
    }

    /// Gives the blocks of a thin volume back to its pool; nothing on others.
    #[track_caller]
    pub fn guest_discard(&self, volume: &str) {
        let mut inner = self.inner();
        let id = inner.state.expect(volume);
        inner.state.discard(id);
    }

    /// All that is not zero in a volume, active or not; none if its content is lost.
    #[track_caller]
    pub fn content(&self, volume: &str) -> Option<BTreeMap<u64, u64>> {
        let inner = self.inner();
        inner.state.content(inner.state.expect(volume))
    }

    /// Uses up so many bytes of a thin pool, as by volumes the test does not care about.
    #[track_caller]
    pub fn occupy_pool(&self, pool: &str, bytes: u64) {
        let mut inner = self.inner();
        let id = inner.state.expect(pool);
        inner.state.occupy(id, bytes);
    }

    /// Uses up so much of a thin pool's metadata, in percent, besides what is in use.
    #[track_caller]
    pub fn occupy_pool_metadata(&self, pool: &str, percent: u64) {
        let mut inner = self.inner();
        let id = inner.state.expect(pool);
        inner.state.occupy_metadata(id, percent);
    }

    /// From now on a merge that nobody waits for takes so many looks to end; 0 at first.
    pub fn slow_merges(&self, looks: u32) {
        self.inner().state.merge_looks = looks;
    }

    /// Names of all volumes of a group, those in brackets too, in LVM's order.
    pub fn names(&self, group: &str) -> Vec<String> {
        let answer = self.hand(&format!("lvs -a --noheadings -o lv_name {group}"));
        let text = String::from_utf8(answer.output).expect("text");
        text.lines().map(|l| l.trim().to_owned()).collect()
    }

    /// A field of a volume as `lvs` shows it.
    #[track_caller]
    pub fn field(&self, volume: &str, field: &str) -> String {
        let line = format!("lvs --units b --nosuffix --noheadings -o {field} {volume}");
        let answer = self.hand(&line);
        assert_eq!(answer.exit_code, 0, "`{line}` failed: {}", answer.complaint());
        String::from_utf8(answer.output).expect("text").trim().to_owned()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic of the model is the test's failure; what follows need not hide it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Executor for Lvm {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        self.inner().run(command)
    }
}

impl Inner {
    fn run(&mut self, command: &Command) -> Result<Answer, RunError> {
        let text = command.to_string();
        assert!(command.input.is_none(), "LVM reads no input: {text}");
        let killed = || RunError::Killed { command: text.clone(), signal: 9 };
        self.log.push(text.clone());
        let mut words = vec![command.program.clone()];
        words.extend(command.arguments.iter().cloned());
        let line = Line::parse(words);
        if self.dead {
            return Err(killed());
        }
        if line.changes() {
            self.changes += 1;
            if let Some((at, when)) = self.crash
                && at == self.changes
            {
                self.dead = true;
                self.run_until(&line, when);
                return Err(killed());
            }
        }
        match self.fault() {
            None => Ok(self.state.run(&line, false)),
            Some(fault) => self.run_with(&line, fault, command.deadline, &text),
        }
    }

    /// The fault for the command that was logged last.
    fn fault(&mut self) -> Option<Fault> {
        let now = self.log.len() as u64;
        let found = self.faults.iter().position(|(at, _)| *at == now)?;
        self.faults.remove(found).map(|(_, fault)| fault)
    }

    fn run_with(
        &mut self,
        line: &Line,
        fault: Fault,
        deadline: Duration,
        text: &str,
    ) -> Result<Answer, RunError> {
        let command = text.to_owned();
        match fault {
            Fault::Hangs(when) => {
                self.run_until(line, when);
                Err(RunError::Deadline { command, seconds: deadline.as_secs() })
            }
            Fault::Dies(when) => {
                self.run_until(line, when);
                Err(RunError::Killed { command, signal: 11 })
            }
            Fault::Silent => {
                self.state.run(line, false);
                Ok(Answer::default())
            }
            Fault::Prints(output) => {
                let answer = self.state.run(line, false);
                Ok(Answer { output, ..answer })
            }
            Fault::Fails(exit_code, errors) => {
                Ok(Answer { exit_code, output: Vec::new(), errors: errors.into_bytes() })
            }
            Fault::Missing => Err(RunError::Missing {
                program: line.program.clone(),
                why: "was not found".to_owned(),
            }),
        }
    }

    fn run_until(&mut self, line: &Line, when: When) {
        match when {
            When::Before => {}
            When::After => {
                self.state.run(line, false);
            }
            When::Inside => {
                // A command that would fail does nothing half way either.
                let would = self.state.clone().run(line, false);
                if would.exit_code == 0 {
                    self.state.run(line, true);
                }
            }
        }
    }
}
