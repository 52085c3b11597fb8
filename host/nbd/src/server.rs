//! Listening, and the connections there are.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::connections::{Connections, Place};
use crate::export::Export;
use crate::handshake::{Agreed, Outcome, Terms, greet, haggle};
use crate::pool::Pool;
use crate::socket::Timed;
use crate::tls::{Tls, carry};
use crate::transmit::{End, transmit};

/// How long a client may take until it has chosen an export, TLS and all.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// How long answers may take to go out when the server stops.
const GRACE: Duration = Duration::from_secs(5);
/// How long nobody is taken in after that failed, as it does where there are too many open files.
const REST: Duration = Duration::from_millis(50);
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
    fn fd(&self) -> BorrowedFd<'_> {
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
    handshake: Duration,
    grace: Duration,
    stop: AtomicBool,
    served: AtomicU64,
    connections: Connections,
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
        let (connections, pool) = (Connections::default(), OnceLock::new());
        let (handshake, grace) = (HANDSHAKE, GRACE);
        Server { exports, tls, handshake, grace, stop, served, connections, pool }
    }

    /// The same, which waits so long for clients: until they have chosen an export, and until answers are out
    /// when it stops.
    #[must_use]
    pub fn waiting(mut self, handshake: Duration, grace: Duration) -> Server {
        (self.handshake, self.grace) = (handshake, grace);
        self
    }

    /// What it has done so far.
    pub fn served(&self) -> Served {
        let connections = self.connections.count();
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
                    let entered = taken.and_then(|stream| {
                        let place = self.connections.enter(&stream, stream.is_local())?;
                        std::thread::Builder::new()
                            .name("nbd".to_owned())
                            .spawn_scoped(scope, move || self.connection(stream, place, pool))
                    });
                    match entered {
                        Ok(_) => {}
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                        Err(e) => {
                            tracing::warn!("a client was sent away: {e}");
                            std::thread::sleep(REST);
                        }
                    }
                }
            }
            self.stop.store(true, Ordering::Relaxed);
            self.connections.stop(self.grace);
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
        let place = self.connections.enter(&client, true)?;
        self.connection(Stream::Unix(client), place, pool);
        Ok(())
    }

    fn connection(&self, stream: Stream, place: Place<'_>, pool: &Pool) {
        match self.serve(stream, &place, pool) {
            Ok(End::Left | End::Stopped) => {}
            Ok(End::Junk(why)) => tracing::warn!("a client was sent away: {why}"),
            Ok(End::Io(e)) => tracing::info!("a client was lost: {e}"),
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!("a client was sent away: {e}");
            }
            Err(e) => tracing::info!("a client left: {e}"),
        }
    }

    fn serve(&self, stream: Stream, place: &Place<'_>, pool: &Pool) -> io::Result<End> {
        let until = Instant::now() + self.handshake;
        let tls = self.tls.as_ref().filter(|_| !stream.is_local());
        let socket = match stream {
            Stream::Unix(s) => OwnedFd::from(s),
            Stream::Tcp(s) => {
                s.set_nodelay(true)?;
                OwnedFd::from(s)
            }
        };
        let mut timed = Timed::new(&socket, until);
        let no_zeroes = greet(&mut timed)?;
        let terms = Terms { tls: tls.is_some() };
        match (haggle(&mut timed, &self.exports, terms, no_zeroes)?, tls) {
            (Outcome::Go(agreed), _) => Ok(self.transmission(socket, agreed, place, pool)),
            (Outcome::Tls, Some(tls)) => {
                let session = tls.accept(&mut timed)?;
                let (ours, theirs) = UnixStream::pair()?;
                std::thread::scope(|scope| {
                    // It ends when our end is closed and the last bytes are out.
                    std::thread::Builder::new()
                        .name("nbd-tls".to_owned())
                        .spawn_scoped(scope, || carry(session, &socket, theirs))?;
                    let ours = OwnedFd::from(ours);
                    let mut timed = Timed::new(&ours, until);
                    let terms = Terms { tls: false };
                    match haggle(&mut timed, &self.exports, terms, no_zeroes)? {
                        Outcome::Go(agreed) => Ok(self.transmission(ours, agreed, place, pool)),
                        Outcome::Tls | Outcome::End => Ok(End::Left),
                    }
                })
            }
            (Outcome::Tls | Outcome::End, _) => Ok(End::Left),
        }
    }

    fn transmission(&self, socket: OwnedFd, agreed: Agreed, place: &Place<'_>, pool: &Pool) -> End {
        if !place.choose() {
            return End::Junk("there are too many");
        }
        // As much as the system allows: an ordinary user gets less.
        let _ = setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &SOCKET_BUFFER));
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BUFFER)
            .or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &SOCKET_BUFFER));
        let export = self.exports[agreed.export].export.clone();
        let _used = Used::new(export.clone());
        match transmit(socket, export, agreed, pool, &self.stop, &self.served) {
            Ok(end) => end,
            Err(e) => End::Io(e),
        }
    }
}

impl Stream {
    fn is_local(&self) -> bool {
        matches!(self, Stream::Unix(_))
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(s) => s.as_fd(),
            Stream::Tcp(s) => s.as_fd(),
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
