//! The engine's end of one process: hands in what a call may see, answers what it asks, and believes
//! nothing it says.
//!
//! Whatever comes from there is bounded before it is taken in (`frames.rs`), and checked as if its sender
//! wished us ill: words out of turn end the process, the plan is made here step by step, and a call has an
//! end, however much there is still to be said.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Instant;

use snapslot_capture::Plan;
use snapslot_command::PlaceKind;
use snapslot_disk::Disk;

use super::frames::{FRAME_MAX, Wary};
use super::process::Process;
use super::sandbox::Confinement;
use super::wire::{DiskThere, Order, SeenThere, Told, Word};
use crate::bindings::types::{Description, Role};
use crate::cache::Cache;
use crate::call::{Building, Call, Ended, Reply};
use crate::code::CODE_MAX;
use crate::flaw::Flaw;
use crate::host::Sight;
use crate::limits::Limits;
use crate::machine::Linked;
use crate::outside::{Grants, Outside, World};
use crate::read_fault::ReadFault;
use crate::shown::plain;

/// Frames in which nothing long is said.
const SHORT_MAX: usize = 1 << 20;
/// Words of one call. The longest plans look at some million tables through the socket, one by one.
const WORDS_MAX: usize = 1 << 24;
/// The largest read a plugin can ask for in one.
const READ_MAX: u32 = 8 << 20;

/// A component, and what is granted to it: enough to make it ready in a new process.
pub(crate) struct Component {
    pub(crate) digest: String,
    pub(crate) bytes: Cow<'static, [u8]>,
    pub(crate) granted: Option<Description>,
}

/// How a process was lost.
#[derive(Debug)]
pub(super) enum Lost {
    /// It did not answer in time.
    Late,
    /// It said what no such process says.
    Nonsense(String),
    /// It is gone.
    Gone(io::Error),
    /// It is not held as it must be.
    Free(Confinement),
}

impl From<io::Error> for Lost {
    fn from(error: io::Error) -> Lost {
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Lost::Late,
            io::ErrorKind::InvalidData => Lost::Nonsense(error.to_string()),
            _ => Lost::Gone(error),
        }
    }
}

fn out_of_turn() -> Lost {
    Lost::Nonsense("a word out of turn".to_owned())
}

/// One process.
pub(super) struct Worker {
    /// None where a test plays it.
    process: Option<Process>,
    channel: Wary,
    limits: Limits,
    /// Whether it must be held by all there is.
    strict: bool,
    ready: Option<(u64, Confinement)>,
    /// What was seen of its component, once that is ready.
    linked: Option<Linked>,
    granted: Option<Description>,
    /// What it was told before it was asked.
    ahead: Ahead,
}

/// What a process was told to do and has not been heard about yet.
#[derive(Clone, Copy, Debug, Default)]
struct Ahead {
    load: bool,
    describe: bool,
}

impl Worker {
    pub(super) fn begin(
        process: Option<Process>,
        channel: Wary,
        limits: Limits,
        strict: bool,
    ) -> io::Result<Worker> {
        let (ready, linked, granted) = (None, None, None);
        let ahead = Ahead::default();
        let mut worker = Worker { process, channel, limits, strict, ready, linked, granted, ahead };
        let until = worker.soon();
        worker.channel.send(&Order::Begin { limits }, None, until)?;
        Ok(worker)
    }

    /// When it must have done what costs no more than compiling.
    fn soon(&self) -> Instant {
        Instant::now() + self.limits.compiling
    }

    pub(super) fn ready(&mut self) -> Result<(u64, Confinement), Lost> {
        if let Some(ready) = self.ready {
            return Ok(ready);
        }
        let Word::Ready { key, confinement } = self.channel.receive(SHORT_MAX, self.soon())? else {
            return Err(out_of_turn());
        };
        if self.strict && !confinement.is_whole() {
            return Err(Lost::Free(confinement));
        }
        Ok(*self.ready.insert((key, confinement)))
    }

    /// Has it make a component ready whose compiled code this is, and ask it what it is, while the engine does
    /// something else.
    pub(super) fn expect(&mut self, kept: &File) -> io::Result<()> {
        let until = self.soon();
        self.channel.send(&Order::Load, Some(kept.as_fd()), until)?;
        let order = Order::Call { call: Call::Describe, seen: None };
        self.channel.send(&order, None, until)?;
        self.ahead = Ahead { load: true, describe: true };
        Ok(())
    }

    /// Whether it makes a component ready that nobody has asked for yet.
    pub(super) fn is_ahead(&self) -> bool {
        self.ahead.load
    }

    /// Makes the component ready, and gives what was seen of it.
    pub(super) fn load(
        &mut self,
        component: &Component,
        cache: &Cache,
    ) -> Result<Result<Linked, Vec<Flaw>>, Lost> {
        if let Some(linked) = &self.linked {
            return Ok(Ok(linked.clone()));
        }
        let (key, _) = self.ready()?;
        let until = self.soon();
        if std::mem::take(&mut self.ahead.load) {
            return match self.channel.receive(SHORT_MAX, until)? {
                Word::Linked(result) => Ok(self.linked(result)),
                // Then it ends, since it was told to go on: another one does it from the beginning.
                _ => Err(out_of_turn()),
            };
        }
        if let Some(kept) = cache.find(&component.digest, key) {
            self.channel.send(&Order::Load, Some(kept.as_fd()), until)?;
            match self.channel.receive(SHORT_MAX, until)? {
                Word::Linked(result) => return Ok(self.linked(result)),
                Word::Damaged => {}
                _ => return Err(out_of_turn()),
            }
        }
        // What is compiled here is kept, and is run as it is from then on. No plugin has run here yet: one
        // that got out of wasm could make it its own.
        let order = Order::Compile { component: component.bytes.to_vec() };
        self.channel.send(&order, None, until)?;
        match self.channel.receive(SHORT_MAX, until)? {
            Word::Linked(Ok(linked)) => {
                let most = usize::try_from(CODE_MAX).unwrap_or(usize::MAX);
                let Word::Code(code) = self.channel.receive(most, until)? else {
                    return Err(out_of_turn());
                };
                if let Some(code) = code {
                    cache.keep(&component.digest, key, &code);
                }
                Ok(self.linked(Ok(linked)))
            }
            Word::Linked(Err(flaws)) => Ok(self.linked(Err(flaws))),
            _ => Err(out_of_turn()),
        }
    }

    fn linked(&mut self, result: Result<Linked, Vec<Flaw>>) -> Result<Linked, Vec<Flaw>> {
        let result = result?;
        let linked = Linked {
            imports: result.imports.iter().map(|import| plain(import, 256)).collect(),
            contract: plain(&result.contract, 64),
        };
        self.linked = Some(linked.clone());
        Ok(linked)
    }

    /// Calls it.
    pub(super) fn call(
        &mut self,
        component: &Component,
        call: &Call,
        sight: Option<&Sight>,
        grants: &Grants,
        outside: &mut Outside,
    ) -> Result<Result<Reply<Plan>, Ended>, Lost> {
        let mut until = Instant::now() + self.limits.of_a_call();
        if self.granted != component.granted
            && let Some(description) = component.granted.clone()
        {
            let order = Order::Grant { description: description.clone() };
            self.channel.send(&order, None, until)?;
            self.granted = Some(description);
        }
        // What is not granted is not even at hand there.
        let at_hand = [Role::Disk, Role::PoolMetadata];
        let sees = |d: &Description| d.images.iter().any(|image| at_hand.contains(&image.role));
        let granted = component.granted.as_ref().is_some_and(sees);
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
        match (std::mem::take(&mut self.ahead.describe), call) {
            (true, Call::Describe) => {}
            (true, _) => return Err(out_of_turn()),
            (false, _) => {
                let order = Order::Call { call: call.clone(), seen };
                self.channel.send(&order, image.as_ref().map(AsFd::as_fd), until)?;
            }
        }
        let place = sight.map(|s| &s.place).filter(|_| matches!(call, Call::Plan(_)));
        let mut plan = Building::new(grants, place);
        for _ in 0..WORDS_MAX {
            let told = match self.channel.receive(FRAME_MAX, until)? {
                Word::Ask { query, arguments } => {
                    let begun = Instant::now();
                    let answer = outside.ask(&query, &arguments);
                    // A command has a deadline of its own.
                    until += begun.elapsed();
                    Told::Answer(answer)
                }
                Word::Copies => Told::Copies(outside.copies()),
                Word::Saving => Told::Saving(outside.saving()),
                Word::Log { loud, message } => {
                    outside.log(loud, &message);
                    continue;
                }
                Word::Size => Told::Size(match disk {
                    Some(disk) => disk.size().map_err(|e| ReadFault::from(&e)),
                    None => Err(ReadFault::of_words("there is no image")),
                }),
                Word::Read { offset, length } => Told::Bytes(read(disk, offset, length)),
                Word::Steps(steps) => {
                    for step in steps {
                        plan.add(step).map_err(|e| Lost::Nonsense(e.to_string()))?;
                    }
                    continue;
                }
                Word::Ended(Err(ended)) => return Ok(Err(ended)),
                Word::Ended(Ok(reply)) => {
                    return reply
                        .try_map(|end| plan.end(end))
                        .map(Ok)
                        .map_err(|e| Lost::Nonsense(e.to_string()));
                }
                _ => return Err(out_of_turn()),
            };
            self.channel.send(&told, None, until)?;
        }
        Err(Lost::Nonsense("more words than any plugin has reason to".to_owned()))
    }

    /// Ends the process for good, and says how it was lost.
    pub(super) fn end(mut self, lost: Lost) -> String {
        let words = match lost {
            Lost::Late => "did not answer in time and was ended".to_owned(),
            Lost::Nonsense(why) => {
                format!("said what makes no sense and was ended: {}", plain(&why, 512))
            }
            Lost::Free(held) => {
                return format!("plugins cannot be confined: {}", held.in_words());
            }
            Lost::Gone(error) => match self.stop() {
                Some(status) => how(status),
                None => format!("is gone: {error}"),
            },
        };
        format!("the process in which it ran {words}")
    }

    /// Has the process end; dropping takes note of it.
    pub(super) fn end_soon(&mut self) {
        if let Some(process) = &self.process {
            process.kill();
        }
    }

    /// Ends the process. It holds nothing: there is nothing to end in order. One that is ending
    /// already ends as it was about to.
    fn stop(&mut self) -> Option<ExitStatus> {
        let process = self.process.take()?;
        process.kill();
        process.wait()
    }
}

impl Drop for Worker {
    /// Nobody else may be there to take note of its end.
    fn drop(&mut self) {
        self.stop();
    }
}

fn how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(6), _) => "used up its memory, or broke down, and was ended".to_owned(),
        (Some(24), _) => "ran out of processor time and was ended".to_owned(),
        (Some(31), _) => {
            "made a system call that no plugin has reason to make and was ended".to_owned()
        }
        (Some(9), _) => "closed its socket, or was ended by the system".to_owned(),
        (Some(signal), _) => format!("was ended by signal {signal}"),
        (None, code) => format!("ended by itself with code {}", code.unwrap_or(-1)),
    }
}

/// The same file opened anew, for reading only, whatever the engine may do with it. Without `/proc` it
/// is read over the socket.
fn read_only(descriptor: BorrowedFd<'_>) -> Option<File> {
    File::open(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).ok()
}

fn read(
    disk: Option<&dyn Disk>,
    offset: u64,
    length: u32,
) -> Result<serde_bytes::ByteBuf, ReadFault> {
    let Some(disk) = disk else { return Err(ReadFault::of_words("there is no image")) };
    if length > READ_MAX {
        return Err(ReadFault::of_words(format!("more than {READ_MAX} bytes at once")));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    match disk.read_append(offset, length as usize, &mut bytes) {
        Ok(()) => Ok(serde_bytes::ByteBuf::from(bytes)),
        Err(error) => Err(ReadFault::from(&error)),
    }
}
