//! Serving a disk that is written, with live copy-on-write.
//!
//! The process holds QEMU's locks on the image, so that nobody writes it past the server, and listens on a
//! control socket, by which `take`, `restore`, `delete`, `diff` and `status` of other processes reach it. Their
//! side is in `snapslot_capture`: there a disk that is served is one whose copy costs nothing.

use std::io;
use std::net::Shutdown;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use snapslot_capture::Copies;
use snapslot_disk::{EngineLock, ImageLock, LockError};
use snapslot_live::control::{Answer, Request, ask, hear, lend, say};
use snapslot_live::{Knobs, LiveDisk, LiveError, OnFull};
use snapslot_nbd::{Export, Extent};
use std::os::fd::AsFd;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::locator::Locator;
use crate::operate::Room;
use crate::serving::disk_as_io;
use crate::status::{image_lock_error, left_behind, lock_error};
use crate::volume::Volume;

/// Memory for first writes that wait for their old content to be durable.
const WAITING_MAX: u64 = 64 << 20;
/// How long a first write waits at most before it is brought to the disk unasked.
const UNASKED: Duration = Duration::from_secs(1);

/// How long a reader of the present disk is waited for that may be gone.
const LEAVING: Duration = Duration::from_secs(1);
/// Requests of other processes that are answered at once.
const HEARD_MAX: usize = 16;
/// How long an engine that is at work on the disk is waited for when its server stops.
const LAST_WORK: Duration = Duration::from_secs(60);

/// How a disk is to be served.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServeOptions {
    /// Room for what the snapshot saves; none: as much as the file system has.
    pub store: Option<Room>,
    /// What goes on when that is full.
    pub on_full: OnFull,
}

/// A disk that is served.
pub struct LiveExport {
    live: LiveDisk,
    copies: Arc<Copies>,
    clients: AtomicUsize,
}

impl LiveExport {
    /// How its snapshot stands.
    pub fn standing(&self) -> snapslot_live::Standing {
        self.live.standing()
    }

    /// Holds the disk as it is now, for as long as somebody is at the other end.
    fn hold(&self, mark: &str, stream: &UnixStream, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let disk = self.live.reopened()?;
        let begun = Instant::now();
        let store = loop {
            let (store, lent) = match self.copies.nameless_store() {
                Ok(made) => made,
                Err(e) => {
                    let code = if e.is_no_space() { "no-space" } else { "io" };
                    return say(stream, &refused(code, e.to_string()));
                }
            };
            let reader = stream.try_clone()?;
            let gone = move |why: &str| {
                // Before anything more is overwritten: whoever reads asks after each read.
                let _ = reader.shutdown(Shutdown::Both);
                tracing::warn!("the present disk is not held any longer for who reads it: {why}");
            };
            match self.live.hold(mark, Box::new(store), gone) {
                Ok(()) => break lent,
                // Who has read it may be gone, and is let go of in a moment.
                Err(LiveError::Busy) if begun.elapsed() < LEAVING && !stop() => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) => return say(stream, &refused(e.code(), e.to_string())),
            }
        };
        let lent = lend(stream, &self.done(), [disk.as_fd(), store.as_fd()], stop);
        // Its reader is told before it is let go of: it may be the server that goes.
        let _ = stream.shutdown(Shutdown::Both);
        self.live.let_go(mark);
        lent
    }

    fn done(&self) -> Answer {
        let clients = self.clients.load(Ordering::Acquire);
        Answer::Done { pid: std::process::id(), clients, standing: self.live.standing() }
    }

    /// Hears one request, does what is asked, and answers.
    fn hear(&self, stream: &UnixStream, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let request = match hear(stream, stop)? {
            Ok(request) => request,
            Err(refusal) => return say(stream, &refusal),
        };
        let clients = self.clients.load(Ordering::Acquire);
        let done = match request {
            Request::Standing => Ok(()),
            Request::Commit => self.live.commit(),
            Request::Take { mark, seconds, nanoseconds } => {
                let taken = self.live.take(&mark, seconds, nanoseconds);
                if taken.is_ok() {
                    tracing::info!("snapshot {mark} taken, with {clients} clients");
                }
                taken
            }
            Request::Restore { .. } if clients > 0 => {
                let message = format!("{clients} clients of its server; stop the machine first");
                return say(stream, &refused("in-use", message));
            }
            Request::Restore { mark } => self.live.restore(&mark),
            Request::Delete { mark } => self.live.delete(&mark),
            Request::Hold { mark } => return self.hold(&mark, stream, stop),
        };
        say(stream, &done.map_or_else(|e| refused(e.code(), e.to_string()), |()| self.done()))
    }
}

fn refused(code: &str, message: String) -> Answer {
    Answer::Refused { code: code.to_owned(), message }
}

fn as_io(error: LiveError) -> io::Error {
    match error {
        LiveError::Disk(e) => disk_as_io(e),
        e if e.is_no_space() => io::Error::new(io::ErrorKind::StorageFull, e.to_string()),
        e => io::Error::other(e.to_string()),
    }
}

impl Export for LiveExport {
    fn size(&self) -> u64 {
        self.live.size()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.live.read(offset, buf).map_err(as_io)
    }
    fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        Ok(self.live.read_at_once(offset, buf).unwrap_or(false))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.live.write(offset, data).map_err(as_io)
    }
    fn writes_at_once(&self) -> bool {
        true
    }
    fn zero(&self, offset: u64, length: u64, punch: bool) -> io::Result<()> {
        self.live.zero(offset, length, punch).map_err(as_io)
    }
    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.live.trim(offset, length).map_err(as_io)
    }
    fn flush(&self) -> io::Result<()> {
        self.live.flush().map_err(as_io)
    }
    fn extents(&self, offset: u64, length: u64, most: usize) -> io::Result<Vec<Extent>> {
        let runs = self.live.runs(offset, length, most).map_err(as_io)?;
        Ok(runs.into_iter().map(|(length, zero)| Extent { length, hole: zero, zero }).collect())
    }
    fn used(&self, by_one_more: bool) {
        if by_one_more {
            self.clients.fetch_add(1, Ordering::AcqRel);
        } else {
            self.clients.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// The control socket; it goes when this does.
struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Control {
    fn bind(path: PathBuf) -> io::Result<Control> {
        use std::os::fd::AsRawFd;
        let directory = path.parent().map(PathBuf::from).unwrap_or_default();
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        // Nobody answers there: we have the image's lock, so it is of a server that died.
        if ask(&path, &Request::Standing)?.is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let _ = std::fs::remove_file(&path);
        let open = std::fs::File::open(&directory)?;
        let name = path.file_name().unwrap_or_default();
        // By way of the directory: a socket's own path may be at most 108 bytes.
        let short = PathBuf::from("/proc/self/fd").join(open.as_raw_fd().to_string()).join(name);
        let listener = UnixListener::bind(short)?;
        listener.set_nonblocking(true)?;
        Ok(Control { listener, path })
    }

    /// Hears and answers, each request by a thread of its own: who asks how it stands need not wait for a restore.
    fn serve(&self, export: &LiveExport, stop: &(dyn Fn() -> bool + Sync)) {
        let heard = AtomicUsize::new(0);
        let hear_one = |stream: UnixStream| {
            let answered = stream.set_nonblocking(false).and_then(|()| export.hear(&stream, stop));
            if let Err(e) = answered {
                tracing::info!("a request to the server was lost: {e}");
            }
        };
        let (heard, hear_one) = (&heard, &hear_one);
        std::thread::scope(|scope| {
            while !stop() {
                let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::from(100_u16));
                if heard.load(Ordering::Acquire) >= HEARD_MAX {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
                let Ok((stream, _)) = self.listener.accept() else { continue };
                heard.fetch_add(1, Ordering::AcqRel);
                scope.spawn(move || {
                    hear_one(stream);
                    heard.fetch_sub(1, Ordering::AcqRel);
                });
            }
        });
    }
}

impl Engine {
    /// Whether something was begun on one of these and not ended.
    fn is_unfinished(&self, locators: &[Locator]) -> Result<bool, EngineError> {
        for locator in locators {
            let volume = Volume::open_to_look(self, locator, &self.looks())?;
            let copies = volume.copies.as_ref().map(|copies| copies.unfinished()).transpose();
            let unfinished = copies.map_err(|e| EngineError::copy(locator, &e))?.flatten();
            if unfinished.is_some() || left_behind(&volume).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Serves a disk while `work` runs, which is given the export.
    pub fn serve<T>(
        &self,
        text: &str,
        options: ServeOptions,
        work: impl FnOnce(&str, Arc<LiveExport>) -> T,
    ) -> Result<T, EngineError> {
        let (machine, known) = self.resolve(text)?;
        let locators = self.locators(&machine)?;
        // Recovery wants all locks for itself; who looks at the snapshot does not keep the machine from its disk.
        if known && (machine.pending.is_some() || self.is_unfinished(&locators)?) {
            self.recover(text)?;
        }
        let locator = &locators[self.one_of(text, &machine.name, &locators)?];
        let volume = Volume::open_to_change(self, std::slice::from_ref(locator))?.remove(0);
        let plugin = self.plugin(&locator.backend)?;
        let (Some(copies), Some(disk), true) =
            (&volume.copies, &volume.image, plugin.description().copies.is_some())
        else {
            let why =
                "its storage has snapshots of its own: serving is for disks without, like raw:";
            return Err(EngineError::NoContent {
                volume: locator.to_string(),
                why: why.to_owned(),
            });
        };
        let _image = match disk.is_file() {
            true => Some(ImageLock::exclusive(disk).map_err(|e| image_lock_error(locator, e))?),
            false => {
                let users = volume.users()?;
                if !users.is_empty() {
                    return Err(EngineError::InUse { volume: locator.to_string(), users });
                }
                None
            }
        };
        // No engine is at work on it while its snapshot is put in order, nor before it can ask us.
        let engine = engine_lock(locator, &volume, copies)?;
        let size = snapslot_disk::Disk::size(&**disk).map_err(|e| EngineError::disk(locator, e))?;
        let store_max = options.store.map_or(u64::MAX, |room| room.of(size));
        let knobs = Knobs { store_max, on_full: options.on_full, waiting_max: WAITING_MAX };
        let said = locator.to_string();
        let herald = move |mark: &str, why: &str| {
            tracing::error!(
                "{said}: THE SNAPSHOT {mark} IS LOST: {why}. The machine goes on; `snapslot delete {said}` empties \
                 the slot"
            );
        };
        let live = copies.live_disk(knobs, herald).map_err(|e| EngineError::copy(locator, &e))?;
        let socket = crate::volume::control_socket(&self.settings.state_dir, locator);
        let control = Control::bind(socket.clone()).map_err(|e| {
            let what = snapslot_disk::DiskError::io(
                socket.display().to_string(),
                snapslot_disk::Doing::Open,
                e,
            );
            EngineError::disk(locator, what)
        })?;
        drop(engine);
        let export =
            Arc::new(LiveExport { live, copies: copies.clone(), clients: AtomicUsize::new(0) });
        let stop = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            scope.spawn(|| control.serve(&export, &|| stop.load(Ordering::Relaxed)));
            scope.spawn(|| bring_to_disk(&export, locator, &stop));
            // Also if it panics: else nobody would ever stop.
            let _stop = Stop(&stop);
            let done = work(&locator.to_string(), export.clone());
            // Who is at work asks us still; from then on until all is durable nobody begins.
            (done, last_lock(&volume))
        });
        let (done, _engine) = done;
        drop(control);
        copies.leave(&export.live).map_err(|e| EngineError::NotDurable {
            volume: locator.to_string(),
            cause: e.to_string(),
        })?;
        Ok(done)
    }
}

/// The engine's lock on a disk that is to be served. Who only reads its snapshot may go on meanwhile, unless a
/// restore is to be ended.
fn engine_lock<'v>(
    locator: &Locator,
    volume: &'v Volume,
    copies: &Copies,
) -> Result<EngineLock<'v>, EngineError> {
    let busy = |e| lock_error(locator, e, |_| None);
    let shared = EngineLock::share(&volume.lock).map_err(busy)?;
    if !volume.lock.still_named().map_err(|e| EngineError::disk(locator, e))? {
        // A restore has put another file in its place just now.
        let what = io::Error::other("it was replaced by another file just now");
        let (name, doing) = (locator.to_string(), snapslot_disk::Doing::Open);
        return Err(EngineError::disk(locator, snapslot_disk::DiskError::io(name, doing, what)));
    }
    if copies.unfinished().map_err(|e| EngineError::copy(locator, &e))?.is_none() {
        return Ok(shared);
    }
    drop(shared);
    EngineLock::take(&volume.lock).map_err(busy)
}

/// The same when it ends. None after a while: what is to be made durable is not left for that.
fn last_lock(volume: &Volume) -> Option<EngineLock<'_>> {
    let begun = Instant::now();
    loop {
        match EngineLock::share(&volume.lock) {
            Ok(lock) => return Some(lock),
            Err(LockError::Held { .. }) if begun.elapsed() < LAST_WORK => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(e) => {
                tracing::warn!("{}: {e}", volume.locator);
                return None;
            }
        }
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Commits when enough waits, or after a while.
fn bring_to_disk(export: &LiveExport, locator: &Locator, stop: &AtomicBool) {
    let mut failed = false;
    while !stop.load(Ordering::Relaxed) {
        export.live.wait_until_wanted(UNASKED);
        let result = export.live.commit();
        if let (Err(e), false) = (&result, failed) {
            tracing::error!("{locator}: {e}");
        }
        failed = result.is_err();
    }
}
