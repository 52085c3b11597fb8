//! Listening, and the connections there are.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};

use crate::export::Export;
use crate::handshake::{Outcome, Terms, greet, haggle};
use crate::pool::Pool;
use crate::tls::Tls;
use crate::transmit::{End, transmit};

/// Connections at once: each has a thread and a mebibyte of buffers.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a client may be silent before it has chosen an export.
const QUIET: Duration = Duration::from_secs(30);
/// Bytes in flight on a socket: an answer of a mebibyte goes out in one call.
const SOCKET_BUFFER: usize = 2 << 20;
/// How often it is looked whether to stop.
const TICK: u16 = 200;

/// An export under its name.
#[derive(Clone)]
pub struct Announced {
    /// Its name; clients without one get the first export.
    pub name: String,
    /// What it is, for people.
    pub description: String,
    /// The export.
    pub export: Arc<dyn Export>,
}

/// Where clients come from.
pub enum Listener {
    /// Processes of this host.
    Unix(UnixListener),
    /// Others.
    Tcp(TcpListener),
}

impl Listener {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Listener::Unix(l) => l.as_fd(),
            Listener::Tcp(l) => l.as_fd(),
        }
    }
}

/// A server.
pub struct Server {
    exports: Vec<Announced>,
    tls: Option<Tls>,
    stop: AtomicBool,
    served: AtomicU64,
    live: Mutex<Vec<RawFd>>,
    pool: OnceLock<Pool>,
}

/// What a server has done.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Requests.
    pub requests: u64,
    /// Connections now.
    pub connections: usize,
}

enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Server {
    /// One for these exports, of which there is at least one.
    pub fn new(exports: Vec<Announced>, tls: Option<Tls>) -> Server {
        let (stop, served) = (AtomicBool::new(false), AtomicU64::new(0));
        let (live, pool) = (Mutex::default(), OnceLock::new());
        Server { exports, tls, stop, served, live, pool }
    }

    /// What it has done so far.
    pub fn served(&self) -> Served {
        let connections = self.live.lock().unwrap_or_else(|e| e.into_inner()).len();
        Served { requests: self.served.load(Ordering::Relaxed), connections }
    }

    /// Takes in clients until `stop` says so; then ends every connection and waits for them.
    pub fn run(&self, listeners: &[Listener], stop: &(dyn Fn() -> bool + Sync)) -> io::Result<()> {
        let pool = self.pool()?;
        for listener in listeners {
            match listener {
                Listener::Unix(l) => l.set_nonblocking(true)?,
                Listener::Tcp(l) => l.set_nonblocking(true)?,
            }
        }
        std::thread::scope(|scope| {
            while !stop() {
                let mut fds: Vec<PollFd<'_>> =
                    listeners.iter().map(|l| PollFd::new(l.fd(), PollFlags::POLLIN)).collect();
                match poll(&mut fds, PollTimeout::from(TICK)) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(e) => return Err(e.into()),
                }
                for listener in listeners {
                    let taken = match listener {
                        Listener::Unix(l) => l.accept().map(|(s, _)| Stream::Unix(s)),
                        Listener::Tcp(l) => l.accept().map(|(s, _)| Stream::Tcp(s)),
                    };
                    // That one client cannot be taken in is no reason to leave the others.
                    let Ok(stream) = taken else { continue };
                    if self.served().connections >= CONNECTIONS_MAX {
                        tracing::warn!("a client was sent away: there are {CONNECTIONS_MAX}");
                        continue;
                    }
                    let started = std::thread::Builder::new()
                        .name("nbd".to_owned())
                        .spawn_scoped(scope, move || self.connection(stream, pool));
                    if let Err(e) = started {
                        tracing::warn!("a client was sent away: {e}");
                    }
                }
            }
            self.stop.store(true, Ordering::Relaxed);
            let live = self.live.lock().unwrap_or_else(|e| e.into_inner());
            for socket in live.iter() {
                // Reading ends at once; answers under way are still sent.
                let _ = shutdown(*socket, Shutdown::Read);
            }
            drop(live);
            Ok(())
        })
    }

    fn pool(&self) -> io::Result<&Pool> {
        match self.pool.get() {
            Some(pool) => Ok(pool),
            None => {
                let pool = Pool::new()?;
                Ok(self.pool.get_or_init(|| pool))
            }
        }
    }

    /// Serves one client that is connected already, until it leaves or is sent away.
    pub fn serve_one(&self, client: UnixStream) -> io::Result<()> {
        let pool = self.pool()?;
        self.connection(Stream::Unix(client), pool);
        Ok(())
    }

    fn connection(&self, stream: Stream, pool: &Pool) {
        match self.serve(stream, pool) {
            Ok(End::Left | End::Stopped) => {}
            Ok(End::Junk(why)) => tracing::warn!("a client was sent away: {why}"),
            Ok(End::Io(e)) => tracing::info!("a client was lost: {e}"),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!("a client was sent away: {e}");
            }
            Err(e) => tracing::info!("a client left: {e}"),
        }
    }

    fn serve(&self, stream: Stream, pool: &Pool) -> io::Result<End> {
        let tls = self.tls.as_ref().filter(|_| matches!(stream, Stream::Tcp(_)));
        let haggled = |outcome| match outcome {
            Outcome::Go(agreed) => Some(agreed),
            Outcome::Tls | Outcome::End => None,
        };
        let (socket, agreed) = match stream {
            Stream::Unix(mut s) => {
                s.set_nonblocking(false)?;
                let own = Live::new(self, s.as_raw_fd());
                s.set_read_timeout(Some(QUIET))?;
                let no_zeroes = greet(&mut s)?;
                let outcome = haggle(&mut s, &self.exports, Terms { tls: false }, no_zeroes)?;
                s.set_read_timeout(None)?;
                ((OwnedFd::from(s), own), haggled(outcome))
            }
            Stream::Tcp(mut s) => {
                s.set_nonblocking(false)?;
                s.set_nodelay(true)?;
                let own = Live::new(self, s.as_raw_fd());
                s.set_read_timeout(Some(QUIET))?;
                let no_zeroes = greet(&mut s)?;
                let terms = Terms { tls: tls.is_some() };
                match (haggle(&mut s, &self.exports, terms, no_zeroes)?, tls) {
                    (Outcome::Tls, Some(tls)) => {
                        drop(own);
                        let mut plain = tls.accept(s, QUIET)?;
                        let own = Live::new(self, plain.as_raw_fd());
                        plain.set_read_timeout(Some(QUIET))?;
                        let terms = Terms { tls: false };
                        let outcome = haggle(&mut plain, &self.exports, terms, no_zeroes)?;
                        plain.set_read_timeout(None)?;
                        ((OwnedFd::from(plain), own), haggled(outcome))
                    }
                    (outcome, _) => {
                        s.set_read_timeout(None)?;
                        ((OwnedFd::from(s), own), haggled(outcome))
                    }
                }
            }
        };
        let (socket, _own) = socket;
        let Some(agreed) = agreed else { return Ok(End::Left) };
        // As much as the system allows: an ordinary user gets less.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER));
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER));
        let export = self.exports[agreed.export].export.clone();
        let _used = Used::new(export.clone());
        Ok(transmit(socket, export, agreed, pool, &self.stop, &self.served))
    }
}

/// A connection, on the list while it lasts.
struct Live<'s> {
    server: &'s Server,
    socket: RawFd,
}

impl<'s> Live<'s> {
    fn new(server: &'s Server, socket: RawFd) -> Self {
        server.live.lock().unwrap_or_else(|e| e.into_inner()).push(socket);
        if server.stop.load(Ordering::Relaxed) {
            let _ = shutdown(socket, Shutdown::Read);
        }
        Live { server, socket }
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        let mut live = self.server.live.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(i) = live.iter().position(|fd| *fd == self.socket) {
            live.swap_remove(i);
        }
    }
}

struct Used(Arc<dyn Export>);

impl Used {
    fn new(export: Arc<dyn Export>) -> Self {
        export.used(true);
        Used(export)
    }
}

impl Drop for Used {
    fn drop(&mut self) {
        self.0.used(false);
    }
}
