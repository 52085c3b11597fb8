//! The process that runs plugins: gives up its rights, then does as the socket says until it closes.

use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use snapslot_command::{Place, PlaceKind};
use snapslot_disk::Disk;

use super::frames::{FRAME_MAX, Trusting};
use super::sandbox::{self, Most};
use super::seen::{Image, Source, end};
use super::wire::{DiskThere, Order, SeenThere, Told, Word};
use crate::bindings::types::{
    Answer, Argument, Description, Failure, FailureKind, SavedCopy, Saving,
};
use crate::call::{Ended, Planned, Reply, drafted};
use crate::code::CODE_MAX;
use crate::flaw::Flaw;
use crate::grants::effective;
use crate::host::Seen;
use crate::limits::Limits;
use crate::machine::{Linked, Loaded, Machine, Prepared};
use crate::outside::{Grants, Loud, World};

/// Where the socket is: the only descriptor that is handed down.
const SOCKET: i32 = 0;
/// Steps of a plan that go in one frame, and roughly their bytes.
const STEPS_AT_ONCE: usize = 4096;
const BYTES_AT_ONCE: usize = 1 << 20;
/// The engine is gone, or what it said makes no sense: there is nothing left to do.
const LOST: i32 = 3;

/// One end, shared by all that talk within one call.
#[derive(Clone)]
pub(super) struct Line(Arc<Mutex<Trusting>>);

impl Line {
    fn channel(&self) -> MutexGuard<'_, Trusting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, word: &Word) {
        // Compiled code is the one long thing that is said.
        let most = if matches!(word, Word::Code(_)) { usize::MAX } else { FRAME_MAX };
        if self.channel().send(word, most).is_err() {
            std::process::exit(LOST);
        }
    }

    fn hear<T: DeserializeOwned>(&self) -> (T, Option<OwnedFd>) {
        let heard = self.channel().receive();
        heard.unwrap_or_else(|_| std::process::exit(LOST))
    }

    pub(super) fn ask(&self, word: &Word) -> Told {
        self.say(word);
        self.hear().0
    }
}

/// Is that process, and does not come back.
///
/// To be called first of all by a program that was started with [`ARGUMENT`](super::ARGUMENT).
pub fn serve() -> ! {
    // Nothing that is open by inheritance is of use here.
    // SAFETY: nothing in this process uses a descriptor above the socket's yet.
    unsafe {
        libc::syscall(libc::SYS_close_range, SOCKET + 1, u32::MAX, 0);
    }
    // SAFETY: it only sets the name that `ps` shows, from a text that ends in a zero.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"snapslot-plugin".as_ptr());
    }
    std::panic::set_hook(Box::new(|_| {}));
    // SAFETY: it was handed down as this process's standard input, and nothing else owns it.
    let socket = unsafe { UnixStream::from_raw_fd(SOCKET) };
    let closed = socket.try_clone();
    let line = Line(Arc::new(Mutex::new(Trusting::new(socket))));
    let mut confinement = sandbox::give_up_rights(Most::default());
    // Wasm is made ready while the engine still reads what it is asked to do.
    let (Ok(mut machine), Ok(closed)) = (Machine::new(Limits::default()), closed) else {
        std::process::exit(LOST)
    };
    // A plugin may compute while the engine dies. Starting a thread takes calls that are given up
    // once it runs.
    let (started, running) = mpsc::sync_channel(1);
    machine.tick(move || {
        let _ = started.try_send(());
        let mut ends = [PollFd::new(closed.as_fd(), PollFlags::empty())];
        let _ = poll(&mut ends, PollTimeout::ZERO);
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR;
        if ends[0].revents().is_some_and(|r| r.intersects(gone)) {
            std::process::exit(LOST);
        }
    });
    let _ = running.recv();
    confinement.calls = sandbox::give_up_calls();
    let (Order::Begin { limits }, _) = line.hear() else { std::process::exit(LOST) };
    machine.limit(limits);
    line.say(&Word::Ready { key: machine.key(), confinement });
    let mut worker = Worker { machine, line, ready: None, next: None };
    loop {
        let (order, descriptor) = worker.line.hear();
        worker.obey(order, descriptor);
    }
}

struct Worker {
    machine: Machine,
    line: Line,
    /// The one component that runs here, and what is granted to it.
    ready: Option<(Loaded, Arc<Grants>)>,
    /// Made ready for the next call.
    next: Option<Prepared>,
}

impl Worker {
    fn obey(&mut self, order: Order, descriptor: Option<OwnedFd>) {
        match order {
            Order::Load if self.ready.is_none() => {
                let component = descriptor.and_then(|d| {
                    let file = File::from(d);
                    // SAFETY: the engine sends only code that it compiled itself and kept where
                    // nobody else can write; a file once kept is replaced, and not written to.
                    let mapped = unsafe { self.machine.revive_mapped(&file, end(&file).ok()?) };
                    // SAFETY: the same.
                    mapped.or_else(|| unsafe { self.machine.revive(&whole(&file)?) })
                });
                let Some(component) = component else { return self.line.say(&Word::Damaged) };
                let linked = self.machine.link(&component);
                let linked = self.shelve(linked);
                self.line.say(&Word::Linked(linked));
            }
            Order::Compile { component } if self.ready.is_none() => {
                let compiled = match self.machine.compile(&component) {
                    Ok((component, code)) => self.machine.link(&component).map(|l| (l, code)),
                    Err(flaw) => Err(vec![flaw]),
                };
                match compiled {
                    Ok((loaded, code)) => {
                        let linked = self.shelve(Ok(loaded));
                        self.line.say(&Word::Linked(linked));
                        self.line.say(&Word::Code(code.map(serde_bytes::ByteBuf::from)));
                    }
                    Err(flaws) => self.line.say(&Word::Linked(Err(flaws))),
                }
            }
            Order::Grant { description } => self.grant(&description),
            Order::Call { call, seen } => {
                let Some((loaded, grants)) = &self.ready else { std::process::exit(LOST) };
                let seen = seen.map(|seen| self.seen(seen, descriptor));
                let world = Box::new(Far(self.line.clone()));
                let prepared = match self.next.take() {
                    Some(prepared) => prepared,
                    None => self.machine.prepare(loaded),
                };
                let (result, _, remains) =
                    self.machine.call(prepared, &call, grants.clone(), seen, world);
                let well = matches!(result, Ok(_) | Err(Ended::Refused(_)));
                self.report(result);
                // While the engine does something with the answer. Not after one that ended badly: its start
                // may be what does not end.
                drop(remains);
                if let (true, Some((loaded, _))) = (well, &self.ready) {
                    self.next = Some(self.machine.prepare(loaded));
                }
            }
            // One component to a process, and one beginning.
            Order::Begin { .. } | Order::Load | Order::Compile { .. } => std::process::exit(LOST),
        }
    }

    /// Says how a call ended; a plan step by step before that.
    fn report(&self, result: Result<Reply<Planned>, Ended>) {
        let told = match result {
            Ok(Reply::Planned(planned)) => {
                let (steps, end) = drafted(planned);
                let (mut some, mut weight) = (Vec::new(), 0);
                for step in steps {
                    weight += step.weight();
                    some.push(step);
                    if some.len() >= STEPS_AT_ONCE || weight >= BYTES_AT_ONCE {
                        self.line.say(&Word::Steps(std::mem::take(&mut some)));
                        weight = 0;
                    }
                }
                if !some.is_empty() {
                    self.line.say(&Word::Steps(some));
                }
                Ok(Reply::Planned(end))
            }
            Ok(other) => other.try_map(|_| {
                let cause = "it planned in another call".to_owned();
                Err(Ended::Fault { cause, trace: Vec::new() })
            }),
            Err(ended) => Err(ended),
        };
        if self.line.channel().send(&Word::Ended(told), FRAME_MAX).is_err() {
            // What it reports is too long even to be said.
            let cause = "its report is too long".to_owned();
            let trace = Vec::new();
            self.line.say(&Word::Ended(Err(Ended::Fault { cause, trace })));
        }
    }

    fn shelve(&mut self, loaded: Result<Loaded, Vec<Flaw>>) -> Result<Linked, Vec<Flaw>> {
        let loaded = loaded?;
        let linked = loaded.linked.clone();
        self.ready = Some((loaded, Arc::default()));
        Ok(linked)
    }

    fn grant(&mut self, description: &Description) {
        // The engine checks it too, and tells what is wrong; here it means: nothing is granted.
        let grants = effective(description).unwrap_or_default();
        if let Some((_, mine)) = &mut self.ready {
            *mine = Arc::new(grants);
        }
    }

    fn seen(&self, there: SeenThere, descriptor: Option<OwnedFd>) -> Seen {
        let kind = match there.kind {
            0 => PlaceKind::Image,
            1 => PlaceKind::LvmVolume,
            2 => PlaceKind::ZfsDataset,
            _ => PlaceKind::Directory,
        };
        let Ok(place) = Place::parse(kind, &there.place) else { std::process::exit(LOST) };
        let source = match (there.disk, descriptor) {
            (DiskThere::Descriptor, Some(descriptor)) => Some(Source::File(File::from(descriptor))),
            (DiskThere::Socket, _) => Some(Source::Socket(self.line.clone())),
            _ => None,
        };
        let name = there.place;
        let disk = source.map(|source| Arc::new(Image { name, source }) as Arc<dyn Disk>);
        Seen { place, disk }
    }
}

fn whole(file: &File) -> Option<Vec<u8>> {
    let size = end(file).ok().filter(|size| *size <= CODE_MAX)?;
    let mut code = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut code, 0).ok()?;
    Some(code)
}

/// The world, over the socket.
struct Far(Line);

/// An answer to something else than was asked.
pub(super) fn confused() -> Failure {
    Failure::new(FailureKind::Io, "confused", "the engine answered something else")
}

impl World for Far {
    fn ask(&mut self, query: &str, arguments: &[Argument]) -> Result<Answer, Failure> {
        let word = Word::Ask { query: query.to_owned(), arguments: arguments.to_vec() };
        match self.0.ask(&word) {
            Told::Answer(result) => result,
            _ => Err(confused()),
        }
    }

    fn copies(&mut self) -> Result<Vec<SavedCopy>, Failure> {
        match self.0.ask(&Word::Copies) {
            Told::Copies(result) => result,
            _ => Err(confused()),
        }
    }

    fn saving(&mut self) -> Result<Saving, Failure> {
        match self.0.ask(&Word::Saving) {
            Told::Saving(result) => result,
            _ => Err(confused()),
        }
    }

    fn log(&mut self, loud: Loud, message: &str) {
        self.0.say(&Word::Log { loud, message: message.to_owned() });
    }

    fn lines(&mut self) -> Vec<String> {
        // They are on the other side.
        Vec::new()
    }
}
