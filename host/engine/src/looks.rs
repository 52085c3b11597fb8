//! One look costs one process: answers of looks, remembered until something is changed.
//!
//! Between the lock and the first change a plugin is asked several times (to inspect, to plan, to
//! plan what a replacing take will delete), and each time it asks the storage the same. Nobody but
//! a person typing commands could have changed the answer meanwhile, and against that stands what
//! is looked at right before anything is destroyed: guards are never answered from here.
//!
//! Over many machines too: the volumes of one group are told by one report.
//!
//! Every change clears all that is remembered, before it and after it; so does age.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use snapslot_command::{Answer, Command, Executor, RunError};
use snapslot_disk::{Disk as _, FileDisk};

/// Older answers are not given again.
const AGE_MAX: Duration = Duration::from_secs(5);
/// More are not kept.
const KEPT_MAX: usize = 64;
/// An answer may have eight mebibytes.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// The storage's commands, for the length of one operation, or of one look at many machines.
pub(crate) struct Looks {
    tools: Arc<dyn Executor>,
    kept: Mutex<Vec<(Instant, Command, Answer)>>,
}

impl Looks {
    pub fn new(tools: Arc<dyn Executor>) -> Arc<Looks> {
        Arc::new(Looks { tools, kept: Mutex::default() })
    }

    fn kept(&self) -> MutexGuard<'_, Vec<(Instant, Command, Answer)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For looking.
impl Executor for Looks {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        let now = Instant::now();
        let known = {
            let mut kept = self.kept();
            kept.retain(|(when, ..)| now.duration_since(*when) < AGE_MAX);
            kept.iter().find(|(_, of, _)| of == command).map(|(.., answer)| answer.clone())
        };
        if let Some(answer) = known {
            return Ok(answer);
        }
        let answer = self.tools.run(command)?;
        let mut kept = self.kept();
        let bytes: usize = kept.iter().map(|(.., a)| a.output.len() + a.errors.len()).sum();
        if kept.len() < KEPT_MAX && bytes + answer.output.len() <= KEPT_BYTES_MAX {
            // It is as old as the moment it was asked for.
            kept.push((now, command.clone(), answer.clone()));
        }
        Ok(answer)
    }
}

/// For changing: run for real, whatever was asked before.
pub(crate) struct Changes {
    pub looks: Arc<Looks>,
    /// The engine's lock, where it is a file of its own: commands keep it as long as they live.
    pub lock: Option<Arc<FileDisk>>,
}

impl Executor for Changes {
    fn run(&self, command: &Command) -> Result<Answer, RunError> {
        self.looks.kept().clear();
        let tools = &self.looks.tools;
        let result = match self.lock.as_ref().and_then(|lock| lock.descriptor()) {
            Some(held) => tools.run_holding(command, held),
            None => tools.run(command),
        };
        if let (Err(RunError::Unkillable { .. }), Some(lock)) = (&result, &self.lock) {
            // It works on: so nobody else may begin.
            lock.leave_locked();
        }
        self.looks.kept().clear();
        result
    }
}
