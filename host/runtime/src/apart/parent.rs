//! The engine's end: starts the process, hands in what a call may see, answers what it asks, and
//! believes nothing it says.
//!
//! The process is started before it is needed and readies itself meanwhile. If it dies or falls silent
//! the call at hand fails as the plugin's fault, and the next call gets a new process.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use snapslot_command::PlaceKind;
use snapslot_disk::{Disk, DiskError};

use super::sandbox::Confinement;
use super::wire::{Channel, DiskThere, Order, ReadFault, SeenThere, Told, Word};
use crate::bindings::types::Description;
use crate::cache::Cache;
use crate::call::{Call, Draft, Ended, Reply};
use crate::flaw::{Flaw, in_words};
use crate::host::Sight;
use crate::outside::{Outside, World};

/// How long the process may be silent beyond what a plugin may compute: slow storage answers
/// within that, or the call has failed.
const SILENCE_MAX: Duration = Duration::from_secs(600);
/// How long compiling may take: a component with a language's whole runtime takes some twenty seconds.
const COMPILING_MAX: Duration = Duration::from_secs(120);
/// The largest read a plugin can ask for in one.
const READ_MAX: u32 = 8 << 20;

/// The process, if there is one.
pub(crate) struct Apart {
    program: PathBuf,
    own_time_max: Duration,
    worker: Mutex<Option<Worker>>,
}

struct Worker {
    child: Child,
    channel: Channel,
    ready: Option<(u64, Confinement)>,
    /// By digest, what each component that is ready imports.
    loaded: HashMap<String, Vec<String>>,
    /// Whether code of a plugin's has run in it.
    called: bool,
}

/// A component, and what is granted to it: enough to make it ready in a new process.
pub(crate) struct Component {
    pub(crate) digest: String,
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) granted: Option<Description>,
}

impl Apart {
    /// Starts the process. `program` serves when called with [`ARGUMENT`](super::ARGUMENT).
    pub(crate) fn start(program: PathBuf, own_time_max: Duration) -> io::Result<Apart> {
        let worker = Worker::start(&program, own_time_max)?;
        Ok(Apart { program, own_time_max, worker: Mutex::new(Some(worker)) })
    }

    /// What it gave up.
    pub(crate) fn confinement(&self) -> Result<Confinement, String> {
        self.with(|worker| worker.ready().map(|(_, confinement)| confinement))
    }

    /// Makes a component ready, and gives what it imports.
    pub(crate) fn load(
        &self,
        component: &Component,
        cache: &Cache,
    ) -> Result<Result<Vec<String>, Vec<Flaw>>, String> {
        self.with(|worker| {
            let (key, _) = worker.ready()?;
            if worker.called && cache.keeps() && cache.find(&component.digest, key).is_none() {
                // What is compiled here is kept, and is run as it is from then on. So it is never
                // made where a plugin has run: one that got out of wasm could make it its own.
                let fresh = Worker::start(&self.program, self.own_time_max)?;
                std::mem::replace(worker, fresh).stop();
            }
            worker.load(component, cache)
        })
    }

    /// Tells what is granted to it.
    pub(crate) fn grant(&self, component: &Component) -> Result<(), String> {
        self.with(|worker| worker.grant(component))
    }

    /// Calls it.
    pub(crate) fn call(
        &self,
        component: &Component,
        cache: &Cache,
        call: &Call,
        sight: Option<&Sight>,
        outside: &mut Outside,
    ) -> Result<Reply<Draft>, Ended> {
        let lost = |cause| Ended::Fault { cause, trace: Vec::new() };
        let patience = self.own_time_max + SILENCE_MAX;
        let called = self.with(|worker| {
            if !worker.loaded.contains_key(&component.digest)
                && let Err(flaws) = worker.load(component, cache)?
            {
                return Ok(Err(lost(format!(
                    "it cannot be loaded any more: {}",
                    in_words(&flaws)
                ))));
            }
            worker.call(component, call, sight, outside, patience)
        });
        called.unwrap_or_else(|cause| Err(lost(cause)))
    }

    /// Does something with the process; starts one if there is none. The error says in words how
    /// it was lost.
    fn with<T>(&self, f: impl FnOnce(&mut Worker) -> io::Result<T>) -> Result<T, String> {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        let there = match &mut *worker {
            Some(there) => there,
            none => {
                let new = Worker::start(&self.program, self.own_time_max)
                    .map_err(|e| format!("the process for plugins cannot be started: {e}"))?;
                none.insert(new)
            }
        };
        f(there).map_err(|error| match worker.take() {
            Some(lost) => lost.end(&error),
            None => error.to_string(),
        })
    }
}

impl Worker {
    fn start(program: &PathBuf, own_time_max: Duration) -> io::Result<Worker> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(program)
            .arg0("snapslot")
            .arg(super::ARGUMENT)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .current_dir("/")
            // Ctrl-C is for the engine, which ends in order.
            .process_group(0)
            .spawn()?;
        let mut channel = Channel::new(ours);
        channel.send(&Order::Begin { own_time_max }, None)?;
        Ok(Worker { child, channel, ready: None, loaded: HashMap::new(), called: false })
    }

    fn ready(&mut self) -> io::Result<(u64, Confinement)> {
        if let Some(ready) = self.ready {
            return Ok(ready);
        }
        let (Word::Ready { key, confinement }, _) = self.channel.receive(Some(COMPILING_MAX))?
        else {
            return Err(confused());
        };
        Ok(*self.ready.insert((key, confinement)))
    }

    fn load(
        &mut self,
        component: &Component,
        cache: &Cache,
    ) -> io::Result<Result<Vec<String>, Vec<Flaw>>> {
        if let Some(imports) = self.loaded.get(&component.digest).cloned() {
            self.grant(component)?;
            return Ok(Ok(imports));
        }
        let (key, _) = self.ready()?;
        let digest = || component.digest.clone();
        if let Some(kept) = cache.find(&component.digest, key) {
            self.channel.send(&Order::Load { digest: digest() }, Some(kept.as_fd()))?;
            match self.channel.receive(Some(COMPILING_MAX))?.0 {
                Word::Loaded(result) => return self.loaded(component, result),
                Word::Damaged => {}
                _ => return Err(confused()),
            }
        }
        let order = Order::Compile { digest: digest(), component: component.bytes.to_vec() };
        self.channel.send(&order, None)?;
        match self.channel.receive(Some(COMPILING_MAX))?.0 {
            Word::Compiled { imports, code } => {
                if let Some(code) = code.filter(|_| !self.called) {
                    cache.keep(&component.digest, key, &code);
                }
                self.loaded(component, Ok(imports))
            }
            Word::Loaded(Err(fault)) => Ok(Err(fault)),
            _ => Err(confused()),
        }
    }

    fn loaded(
        &mut self,
        component: &Component,
        result: Result<Vec<String>, Vec<Flaw>>,
    ) -> io::Result<Result<Vec<String>, Vec<Flaw>>> {
        if let Ok(imports) = &result {
            self.loaded.insert(component.digest.clone(), imports.clone());
            self.grant(component)?;
        }
        Ok(result)
    }

    fn grant(&mut self, component: &Component) -> io::Result<()> {
        let Some(description) = component.granted.clone() else { return Ok(()) };
        let digest = component.digest.clone();
        self.channel.send(&Order::Grant { digest, description }, None)
    }

    fn call(
        &mut self,
        component: &Component,
        call: &Call,
        sight: Option<&Sight>,
        outside: &mut Outside,
        patience: Duration,
    ) -> io::Result<Result<Reply<Draft>, Ended>> {
        let granted = component.granted.as_ref().is_some_and(|d| !d.images.is_empty());
        let disk = sight.and_then(|s| s.disk.as_deref()).filter(|_| granted);
        let image = disk.and_then(|disk| disk.descriptor()).and_then(read_only);
        let seen = sight.map(|sight| SeenThere {
            kind: match sight.place.kind() {
                PlaceKind::Image => 0,
                PlaceKind::LvmVolume => 1,
                PlaceKind::ZfsDataset => 2,
                PlaceKind::Directory => 3,
            },
            place: sight.place.to_string(),
            disk: match (disk, &image) {
                (None, _) => DiskThere::None,
                (Some(_), Some(_)) => DiskThere::Descriptor,
                (Some(_), None) => DiskThere::Socket,
            },
        });
        self.called = true;
        let order = Order::Call { digest: component.digest.clone(), call: call.clone(), seen };
        self.channel.send(&order, image.as_ref().map(AsFd::as_fd))?;
        loop {
            let told = match self.channel.receive(Some(patience))?.0 {
                Word::Ask { query, arguments } => Told::Answer(outside.ask(&query, &arguments)),
                Word::Copies => Told::Copies(outside.copies()),
                Word::Saving => Told::Saving(outside.saving()),
                Word::Log { loud, message } => {
                    outside.log(loud, &message);
                    continue;
                }
                Word::Size => Told::Size(match disk {
                    Some(disk) => disk.size().map_err(|e| e.to_string()),
                    None => Err("there is no image".to_owned()),
                }),
                Word::Read { offset, length } => Told::Bytes(read(disk, offset, length)),
                Word::Ended(result) => return Ok(result),
                _ => return Err(confused()),
            };
            self.channel.send(&told, None)?;
        }
    }

    /// Ends the process. It holds nothing: there is nothing to end in order.
    fn stop(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends the process for good, and says how it was lost.
    fn end(mut self, error: &io::Error) -> String {
        let silent = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        // It may be gone already, which is as good.
        let ended = match silent {
            true => None,
            false => self.child.try_wait().ok().flatten(),
        };
        let _ = self.child.kill();
        let last = self.child.wait().ok();
        match ended.or(last).filter(|_| !silent) {
            Some(status) => format!("the process in which it ran {}", how(status)),
            None => "the process in which it ran fell silent and was ended".to_owned(),
        }
    }
}

impl Apart {
    /// Ends the process, and takes note of its end: nobody else may be there to do it.
    pub(crate) fn end(&self) {
        let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut worker) = worker.take() {
            // It holds nothing: there is nothing to end in order.
            let _ = worker.child.kill();
            let _ = worker.child.wait();
        }
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        self.end();
    }
}

fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        // A failed allocation would say so on standard error, and that call is one it has given up.
        (Some(31), _) => {
            "used up its memory, or made a system call that no plugin has reason to make, and was ended"
                .to_owned()
        }
        (Some(24), _) => "ran out of processor time and was ended".to_owned(),
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, code) => format!("ended by itself with code {}", code.unwrap_or(-1)),
    }
}

fn confused() -> io::Error {
    io::Error::other("the process for plugins said something that makes no sense")
}

/// The same file opened anew, for reading only, whatever the engine may do with it. Without `/proc` it
/// is read over the socket.
fn read_only(descriptor: std::os::fd::BorrowedFd<'_>) -> Option<File> {
    File::open(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).ok()
}

fn read(
    disk: Option<&dyn Disk>,
    offset: u64,
    length: u32,
) -> Result<serde_bytes::ByteBuf, ReadFault> {
    let Some(disk) = disk else {
        return Err(ReadFault::Failed("there is no image".to_owned()));
    };
    if length > READ_MAX {
        return Err(ReadFault::Failed(format!("more than {READ_MAX} bytes at once")));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    match disk.read_append(offset, length as usize, &mut bytes) {
        Ok(()) => Ok(serde_bytes::ByteBuf::from(bytes)),
        Err(DiskError::OutOfBounds { size, .. }) => Err(ReadFault::Outside { size }),
        Err(error) => Err(ReadFault::Failed(error.to_string())),
    }
}
