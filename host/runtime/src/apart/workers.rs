//! The processes: one for each component, so that no plugin's code ever runs where another's has run.
//!
//! The first is started before it is known for which, and readies itself meanwhile. One that is lost
//! fails the call at hand as its plugin's fault, and the next call gets a new one.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use snapslot_capture::Plan;

use super::frames::Wary;
use super::parent::{Component, Lost, Worker};
use super::process::start;
use super::sandbox::Confinement;
use crate::cache::Cache;
use crate::call::{Call, Ended, Reply};
use crate::flaw::{Flaw, in_words};
use crate::host::Sight;
use crate::limits::Limits;
use crate::machine::Linked;
use crate::outside::{Grants, Outside};

/// Processes at once. Who has more plugins than that at work starts some of them again.
const PROCESSES_MAX: usize = 16;

/// The processes there are.
pub(crate) struct Apart {
    /// Serves when called with [`ARGUMENT`](super::ARGUMENT).
    program: PathBuf,
    limits: Limits,
    strict: bool,
    /// One that has no component yet.
    spare: Mutex<Option<Worker>>,
    /// By digest; the one that was used last stands last.
    homes: Mutex<Vec<(String, Home)>>,
    /// Those that end.
    ending: Mutex<Vec<Worker>>,
}

/// The place of one component's process; none before it is needed, and after it was lost.
type Home = Arc<Mutex<Option<Worker>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Apart {
    /// Starts the first.
    pub(crate) fn start(program: PathBuf, limits: Limits, strict: bool) -> io::Result<Apart> {
        let (spare, homes, ending) = (Mutex::default(), Mutex::default(), Mutex::default());
        let apart = Apart { program, limits, strict, spare, homes, ending };
        *lock(&apart.spare) = Some(apart.begin()?);
        Ok(apart)
    }

    fn begin(&self) -> io::Result<Worker> {
        let (process, ours) = start(&self.program)?;
        Worker::begin(Some(process), Wary::new(ours), self.limits, self.strict)
    }

    /// What a process gives up.
    pub(crate) fn confinement(&self) -> Result<Confinement, String> {
        // All are made alike: any of them tells.
        let homes: Vec<Home> = lock(&self.homes).iter().map(|(_, home)| home.clone()).collect();
        for home in homes {
            if let Some(worker) = &mut *lock(&home) {
                return worker.ready().map(|(_, held)| held).map_err(in_short);
            }
        }
        let mut spare = lock(&self.spare);
        let worker = match &mut *spare {
            Some(worker) => worker,
            none => none.insert(self.begin().map_err(|e| cannot_start(&e))?),
        };
        worker.ready().map(|(_, held)| held).map_err(|lost| match spare.take() {
            Some(worker) => worker.end(lost),
            None => in_short(lost),
        })
    }

    /// Makes a component ready, and gives what was seen of it.
    pub(crate) fn load(
        &self,
        component: &Component,
        cache: &Cache,
    ) -> Result<Result<Linked, Vec<Flaw>>, String> {
        self.with(component, |worker| worker.load(component, cache))
    }

    /// Calls it.
    pub(crate) fn call(
        &self,
        component: &Component,
        cache: &Cache,
        call: &Call,
        sight: Option<&Sight>,
        grants: &Grants,
        outside: &mut Outside,
    ) -> Result<Reply<Plan>, Ended> {
        let lost = |cause| Ended::Fault { cause, trace: Vec::new() };
        let called = self.with(component, |worker| {
            if let Err(flaws) = worker.load(component, cache)? {
                let why = in_words(&flaws);
                return Ok(Err(lost(format!("it cannot be loaded any more: {why}"))));
            }
            worker.call(component, call, sight, grants, outside)
        });
        called.unwrap_or_else(|cause| Err(lost(cause)))
    }

    /// Does something with the component's process; starts one if there is none. The error says in
    /// words how it was lost.
    fn with<T>(
        &self,
        component: &Component,
        f: impl FnOnce(&mut Worker) -> Result<T, Lost>,
    ) -> Result<T, String> {
        let home = self.home_of(&component.digest);
        let mut there = lock(&home);
        let worker = match &mut *there {
            Some(worker) => worker,
            none => {
                let new = match lock(&self.spare).take() {
                    Some(spare) => spare,
                    None => self.begin().map_err(|e| cannot_start(&e))?,
                };
                none.insert(new)
            }
        };
        f(worker).map_err(|lost| match there.take() {
            Some(worker) => worker.end(lost),
            None => in_short(lost),
        })
    }

    fn home_of(&self, digest: &str) -> Home {
        let mut homes = lock(&self.homes);
        let found = homes.iter().position(|(of, _)| of == digest);
        let entry = match found {
            Some(at) => homes.remove(at),
            None => (digest.to_owned(), Home::default()),
        };
        let home = entry.1.clone();
        homes.push(entry);
        // The one that was used longest ago, of those that nobody uses now.
        if homes.len() > PROCESSES_MAX
            && let Some(idle) = homes.iter().position(|(_, home)| Arc::strong_count(home) == 1)
        {
            homes.remove(idle);
        }
        home
    }

    /// Ends all of them, and does not wait until they are gone: that is for [`Apart::end`].
    pub(crate) fn end_soon(&self) {
        let homes = lock(&self.homes);
        let mut ending = lock(&self.ending);
        for (_, home) in homes.iter() {
            if let Some(mut worker) = lock(home).take() {
                worker.end_soon();
                ending.push(worker);
            }
        }
    }

    /// Ends all of them; another call would start one again.
    pub(crate) fn end(&self) {
        lock(&self.spare).take();
        lock(&self.ending).clear();
        let homes = std::mem::take(&mut *lock(&self.homes));
        for (_, home) in homes {
            lock(&home).take();
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.end();
    }
}

fn cannot_start(error: &io::Error) -> String {
    format!("the process for plugins cannot be started: {error}")
}

fn in_short(lost: Lost) -> String {
    format!("the process for plugins was lost: {lost:?}")
}
