//! The process that runs plugins: gives up its rights, then does as the socket says until it closes.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::de::DeserializeOwned;
use snapslot_command::{Place, PlaceKind};
use snapslot_disk::{Disk, DiskError, Doing, FileDisk, Range};

use super::sandbox;
use super::wire::{Channel, DiskThere, Order, ReadFault, SeenThere, Told, Word};
use crate::bindings::types::{
    Answer, Argument, Description, Failure, FailureKind, SavedCopy, Saving,
};
use crate::call::{Draft, Ended};
use crate::flaw::Flaw;
use crate::grants::effective;
use crate::host::Seen;
use crate::machine::{Loaded, Machine};
use crate::outside::{Grants, Loud, World};

/// Where the socket is: the only descriptor that is handed down.
const SOCKET: i32 = 0;
/// Compiled code has a few megabytes; that of a language's whole runtime some hundred.
const CODE_MAX: u64 = 1 << 30;
/// The engine is gone, or what it said makes no sense: there is nothing left to do.
const LOST: i32 = 3;

/// One end, shared by all that talk within one call.
#[derive(Clone)]
struct Line(Arc<Mutex<Channel>>);

impl Line {
    fn channel(&self) -> MutexGuard<'_, Channel> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, word: &Word) {
        if self.channel().send(word, None).is_err() {
            std::process::exit(LOST);
        }
    }

    fn hear<T: DeserializeOwned>(&self) -> (T, Option<OwnedFd>) {
        let heard = self.channel().receive(None);
        heard.unwrap_or_else(|_| std::process::exit(LOST))
    }

    fn ask(&self, word: &Word) -> Told {
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
    let line = Line(Arc::new(Mutex::new(Channel::new(socket))));
    let mut confinement = sandbox::give_up_files();
    let (Order::Begin { own_time_max }, _) = line.hear() else { std::process::exit(LOST) };
    let (Ok(machine), Ok(closed)) = (Machine::new(own_time_max), closed) else {
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
    line.say(&Word::Ready { key: machine.key(), confinement });
    let mut worker = Worker { machine, line, ready: HashMap::new() };
    loop {
        let (order, descriptor) = worker.line.hear();
        worker.obey(order, descriptor);
    }
}

struct Worker {
    machine: Machine,
    line: Line,
    ready: HashMap<String, (Loaded, Arc<Grants>)>,
}

impl Worker {
    fn obey(&mut self, order: Order, descriptor: Option<OwnedFd>) {
        match order {
            Order::Begin { .. } => std::process::exit(LOST),
            Order::Load { digest } => {
                let code = descriptor.and_then(|d| whole(&File::from(d)));
                // SAFETY: the engine sends only code that it compiled itself and kept where
                // nobody else can write.
                let component = code.and_then(|code| unsafe { self.machine.revive(&code) });
                let Some(component) = component else { return self.line.say(&Word::Damaged) };
                let linked = self.machine.link(&component);
                let loaded = self.shelve(digest, linked);
                self.line.say(&Word::Loaded(loaded));
            }
            Order::Compile { digest, component } => {
                let compiled = match self.machine.compile(&component) {
                    Ok((component, code)) => self.machine.link(&component).map(|l| (l, code)),
                    Err(flaw) => Err(vec![flaw]),
                };
                let word = match compiled {
                    Ok((loaded, code)) => match self.shelve(digest, Ok(loaded)) {
                        Ok(imports) => {
                            Word::Compiled { imports, code: code.map(serde_bytes::ByteBuf::from) }
                        }
                        Err(fault) => Word::Loaded(Err(fault)),
                    },
                    Err(fault) => Word::Loaded(Err(fault)),
                };
                self.line.say(&word);
            }
            Order::Grant { digest, description } => self.grant(&digest, &description),
            Order::Call { digest, call, seen } => {
                let Some((loaded, grants)) = self.ready.get(&digest) else {
                    std::process::exit(LOST)
                };
                let seen = seen.map(|seen| self.seen(seen, descriptor));
                let world = Box::new(Far(self.line.clone()));
                let (result, _) = self.machine.call(loaded, &call, grants.clone(), seen, world);
                let word = Word::Ended(result.map(|reply| reply.map(Draft::from)));
                if self.line.channel().send(&word, None).is_err() {
                    // What it reports is too long even to be said.
                    let cause = "its report is too long".to_owned();
                    let trace = Vec::new();
                    self.line.say(&Word::Ended(Err(Ended::Fault { cause, trace })));
                }
            }
        }
    }

    fn shelve(
        &mut self,
        digest: String,
        linked: Result<Loaded, Vec<Flaw>>,
    ) -> Result<Vec<String>, Vec<Flaw>> {
        let loaded = linked?;
        let imports = loaded.imports.clone();
        self.ready.insert(digest, (loaded, Arc::default()));
        Ok(imports)
    }

    fn grant(&mut self, digest: &str, description: &Description) {
        // The engine checks it too, and tells what is wrong; here it means: nothing is granted.
        let grants = effective(description).unwrap_or_default();
        if let Some((_, mine)) = self.ready.get_mut(digest) {
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
        let disk: Option<Arc<dyn Disk>> = match (there.disk, descriptor) {
            (DiskThere::Descriptor, Some(descriptor)) => {
                let name = std::path::Path::new(&there.place);
                match FileDisk::of_descriptor(File::from(descriptor), name) {
                    Ok(disk) => Some(Arc::new(disk)),
                    Err(_) => std::process::exit(LOST),
                }
            }
            (DiskThere::Socket, _) => {
                Some(Arc::new(FarDisk { line: self.line.clone(), name: there.place }))
            }
            _ => None,
        };
        Seen { place, disk }
    }
}

fn whole(file: &File) -> Option<Vec<u8>> {
    let size = file.metadata().ok()?.len();
    if size > CODE_MAX {
        return None;
    }
    let mut code = vec![0; usize::try_from(size).ok()?];
    file.read_exact_at(&mut code, 0).ok()?;
    Some(code)
}

/// The world, over the socket.
struct Far(Line);

/// An answer to something else than was asked.
fn confused() -> Failure {
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

/// An image that is no file: read over the socket.
struct FarDisk {
    line: Line,
    name: String,
}

impl FarDisk {
    fn failed(&self, words: String) -> DiskError {
        DiskError::io(self.name.clone(), Doing::Read, std::io::Error::other(words))
    }

    fn never(&self) -> DiskError {
        let what = std::io::Error::from(std::io::ErrorKind::ReadOnlyFilesystem);
        DiskError::io(self.name.clone(), Doing::Write, what)
    }
}

impl Disk for FarDisk {
    fn size(&self) -> Result<u64, DiskError> {
        match self.line.ask(&Word::Size) {
            Told::Size(size) => size.map_err(|e| self.failed(e)),
            _ => Err(self.failed(confused().message)),
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let length = u32::try_from(buf.len())
            .map_err(|_| self.failed("more than four gibibytes at once".to_owned()))?;
        match self.line.ask(&Word::Read { offset, length }) {
            Told::Bytes(Ok(bytes)) if bytes.len() == buf.len() => {
                buf.copy_from_slice(&bytes);
                Ok(())
            }
            Told::Bytes(Err(ReadFault::Outside { size })) => Err(DiskError::OutOfBounds {
                name: self.name.clone(),
                size,
                offset,
                length: u64::from(length),
            }),
            Told::Bytes(Err(ReadFault::Failed(words))) => Err(self.failed(words)),
            _ => Err(self.failed(confused().message)),
        }
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        Err(self.never())
    }

    fn extend(&self, _: u64) -> Result<(), DiskError> {
        Err(self.never())
    }

    fn reserve(&self, _: &[Range]) -> Result<bool, DiskError> {
        Ok(false)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Err(self.never())
    }
}
