//! Serving a disk that is written, with live copy-on-write.
//!
//! The process holds QEMU's locks on the image, so that nobody writes it past the server, and listens on a
//! control socket, by which `take`, `restore`, `delete`, `diff` and `status` of other processes reach it. Their
//! side is in `snapslot_capture`: there a disk that is served is one whose copy costs nothing.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use snapslot_disk::ImageLock;
use snapslot_live::control::{Answer, Request, ask, hear};
use snapslot_live::{Knobs, LiveDisk, LiveError, OnFull};
use snapslot_nbd::{Export, Extent};
use std::os::fd::AsFd;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::operate::Room;
use crate::serving::disk_as_io;
use crate::status::{image_lock_error, lock_error};
use crate::volume::Volume;

/// Memory for first writes that wait for their old content to be durable.
const WAITING_MAX: u64 = 64 << 20;
/// How long a first write waits at most before it is brought to the disk unasked.
const UNASKED: Duration = Duration::from_secs(1);

/// How a disk is to be served.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServeOptions {
    /// Room for what the snapshot saves; none: as much as the disk has.
    pub store: Option<Room>,
    /// What goes on when that is full.
    pub on_full: OnFull,
}

/// A disk that is served.
pub struct LiveExport {
    live: LiveDisk,
    clients: AtomicUsize,
}

impl LiveExport {
    /// How its snapshot stands.
    pub fn standing(&self) -> snapslot_live::Standing {
        self.live.standing()
    }

    fn answer(&self, request: Request) -> Answer {
        let refused =
            |e: &LiveError| Answer::Refused { code: e.code().to_owned(), message: e.to_string() };
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
                return Answer::Refused {
                    code: "in-use".to_owned(),
                    message: format!("{clients} clients of its server; stop the machine first"),
                };
            }
            Request::Restore { mark } => self.live.restore(&mark),
            Request::Delete { mark } => self.live.delete(&mark),
        };
        match done {
            Ok(()) => {
                Answer::Done { pid: std::process::id(), clients, standing: self.live.standing() }
            }
            Err(e) => refused(&e),
        }
    }
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

    fn serve(&self, export: &LiveExport, stop: &(dyn Fn() -> bool + Sync)) {
        while !stop() {
            let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::from(100_u16));
            let Ok((stream, _)) = self.listener.accept() else { continue };
            if let Err(e) =
                stream.set_nonblocking(false).and_then(|()| hear(stream, |r| export.answer(r)))
            {
                tracing::info!("a request to the server was lost: {e}");
            }
        }
    }
}

impl Engine {
    /// Serves a disk while `work` runs, which is given the export.
    pub fn serve<T>(
        &self,
        text: &str,
        options: ServeOptions,
        work: impl FnOnce(&str, Arc<LiveExport>) -> T,
    ) -> Result<T, EngineError> {
        let (machine, known) = self.resolve(text)?;
        if known {
            self.recover(text)?;
        }
        let locators = self.locators(&machine)?;
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
        let live = {
            // No other engine is at work on it while its snapshot is put in order.
            let _engine = volume.take_lock().map_err(|e| lock_error(locator, e, None))?;
            let size =
                snapslot_disk::Disk::size(&**disk).map_err(|e| EngineError::disk(locator, e))?;
            let store_max = options.store.map_or(u64::MAX, |room| room.of(size));
            let knobs = Knobs { store_max, on_full: options.on_full, waiting_max: WAITING_MAX };
            copies.live_disk(knobs).map_err(|e| EngineError::copy(locator, &e))?
        };
        let said = locator.to_string();
        live.when_lost(move |mark, why| {
            tracing::error!(
                "{said}: THE SNAPSHOT {mark} IS LOST: {why}. The machine goes on; `snapslot delete {said}` empties \
                 the slot"
            );
        });
        let socket = crate::volume::control_socket(&self.settings.state_dir, locator);
        let control = Control::bind(socket.clone()).map_err(|e| {
            let what = snapslot_disk::DiskError::io(
                socket.display().to_string(),
                snapslot_disk::Doing::Open,
                e,
            );
            EngineError::disk(locator, what)
        })?;
        let export = Arc::new(LiveExport { live, clients: AtomicUsize::new(0) });
        let stop = std::sync::atomic::AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            scope.spawn(|| control.serve(&export, &|| stop.load(Ordering::Relaxed)));
            scope.spawn(|| bring_to_disk(&export, locator, &stop));
            let done = work(&locator.to_string(), export.clone());
            stop.store(true, Ordering::Relaxed);
            done
        });
        drop(control);
        copies.leave(&export.live).map_err(|e| EngineError::NoContent {
            volume: locator.to_string(),
            why: format!("what was written last may not be durable: {e}"),
        })?;
        Ok(done)
    }
}

/// Commits when enough waits, or after a while.
fn bring_to_disk(
    export: &LiveExport,
    locator: &crate::locator::Locator,
    stop: &std::sync::atomic::AtomicBool,
) {
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
