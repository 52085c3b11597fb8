//! TLS, by rustls: its own thread turns what is encrypted into a plain local connection.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{Shutdown, shutdown};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::socket::{LINGER, Now, receive_now, send_now, wait};

/// Certificates of a server, and of those whose clients it lets in.
#[derive(Clone)]
pub struct Tls(Arc<ServerConfig>);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

fn bad(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.to_string())
}

impl Tls {
    /// Reads a directory as QEMU and libvirt have it: `server-cert.pem`, `server-key.pem` and
    /// `ca-cert.pem`. Clients must have a certificate of that authority.
    pub fn from_directory(directory: &Path) -> io::Result<Tls> {
        let path = |name: &str| directory.join(name);
        let chain = |name: &str| -> io::Result<Vec<CertificateDer<'static>>> {
            let path = path(name);
            let read = CertificateDer::pem_file_iter(&path).and_then(Iterator::collect);
            read.map_err(|e| bad(format_args!("{}: {e}", path.display())))
        };
        let key_path = path("server-key.pem");
        let key = PrivateKeyDer::from_pem_file(&key_path)
            .map_err(|e| bad(format_args!("{}: {e}", key_path.display())))?;
        let mut roots = RootCertStore::empty();
        for certificate in chain("ca-cert.pem")? {
            roots.add(certificate).map_err(bad)?;
        }
        let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build().map_err(bad)?;
        let config = ServerConfig::builder()
            .with_client_cert_verifier(clients)
            .with_single_cert(chain("server-cert.pem")?, key)
            .map_err(bad)?;
        Ok(Tls(Arc::new(config)))
    }

    /// Does the handshake.
    pub(crate) fn accept(&self, tcp: &mut (impl Read + Write)) -> io::Result<ServerConnection> {
        let mut session = ServerConnection::new(self.0.clone()).map_err(bad)?;
        while session.is_handshaking() {
            session.complete_io(tcp)?;
        }
        Ok(session)
    }
}

/// Bytes carried at once.
const BUFFER: usize = 128 << 10;

/// Carries bytes both ways until both are at their end: the client's is when it says so or hangs up, ours when our
/// end of `plain` is closed; then what is left has a little time to go out.
pub(crate) fn carry(session: ServerConnection, tcp: &OwnedFd, plain: UnixStream) {
    // Whatever ends it, both ends hear of it by their streams being closed.
    if let Err(e) = (Carrier { session, tcp: tcp.as_fd(), plain: &plain }).run() {
        tracing::info!("a client over TLS was lost: {e}");
        let _ = shutdown(tcp.as_raw_fd(), Shutdown::Both);
    }
}

struct Carrier<'a> {
    session: ServerConnection,
    tcp: BorrowedFd<'a>,
    plain: &'a UnixStream,
}

fn again(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

impl Carrier<'_> {
    fn run(&mut self) -> io::Result<()> {
        self.session.set_buffer_limit(Some(BUFFER));
        let mut buf = vec![0; BUFFER];
        // From the client, unpacked.
        let mut inward: Vec<u8> = Vec::new();
        // Nothing more comes from the client, and ours know; nothing more comes from ours, since then.
        let (mut client_ended, mut told) = (false, false);
        let mut ours_ended: Option<Instant> = None;
        loop {
            // Before any waiting: what came with the end of the handshake is in the session already, and
            // the socket will never tell of it again.
            client_ended |= self.unpack(&mut inward, &mut buf)?;
            if client_ended && inward.is_empty() && !told {
                // It may be gone.
                let _ = self.plain.shutdown(std::net::Shutdown::Write);
                told = true;
            }
            if ours_ended.is_some() && !self.session.wants_write() {
                return Ok(());
            }
            // A socket of which nothing is wanted is left out: that it is closed would be told again and again.
            let mut of_tcp = PollFlags::empty();
            let mut of_plain = PollFlags::empty();
            match inward.is_empty() {
                true if client_ended || ours_ended.is_some() => {}
                true => of_tcp |= PollFlags::POLLIN,
                false => of_plain |= PollFlags::POLLOUT,
            }
            match self.session.wants_write() {
                true => of_tcp |= PollFlags::POLLOUT,
                false => of_plain |= PollFlags::POLLIN,
            }
            let mut fds = Vec::with_capacity(2);
            for (fd, wanted) in [(self.tcp, of_tcp), (self.plain.as_fd(), of_plain)] {
                if !wanted.is_empty() {
                    fds.push(PollFd::new(fd, wanted));
                }
            }
            if !wait(&mut fds, ours_ended)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // Whatever was told, all is tried: what cannot be done says so.
            if of_tcp.contains(PollFlags::POLLIN) {
                match receive_now(self.tcp, &mut buf) {
                    Ok(0) => client_ended = true,
                    Ok(n) => self.take_in(&buf[..n], &mut inward)?,
                    Err(e) if again(&e) => {}
                    Err(e) => return Err(e),
                }
            }
            if !inward.is_empty() {
                match send_now(self.plain.as_fd(), &inward) {
                    Ok(n) => drop(inward.drain(..n)),
                    Err(e) if again(&e) => {}
                    // Ours are gone; what they said last is still to go out.
                    Err(_) => {
                        inward.clear();
                        client_ended = true;
                    }
                }
            }
            if !self.session.wants_write() && ours_ended.is_none() {
                match receive_now(self.plain.as_fd(), &mut buf[..BUFFER / 2]) {
                    Ok(n) if n > 0 => self.session.writer().write_all(&buf[..n])?,
                    Err(e) if again(&e) => {}
                    Ok(_) | Err(_) => {
                        self.session.send_close_notify();
                        ours_ended = Some(Instant::now() + LINGER);
                        inward.clear();
                    }
                }
            }
            while self.session.wants_write() {
                match self.session.write_tls(&mut Now(self.tcp)) {
                    Ok(_) => {}
                    Err(e) if again(&e) => break,
                    Err(e) => return Err(e),
                }
            }
        }
    }

    /// Has the session take all of it. It takes a few kilobytes at once, and no more than it can hold unpacked.
    fn take_in(&mut self, mut bytes: &[u8], inward: &mut Vec<u8>) -> io::Result<()> {
        let mut buf = [0; 16 << 10];
        while !bytes.is_empty() {
            self.session.read_tls(&mut bytes)?;
            if let Err(e) = self.session.process_new_packets() {
                // Why it is sent away.
                let _ = self.session.write_tls(&mut Now(self.tcp));
                return Err(bad(e));
            }
            self.unpack(inward, &mut buf)?;
        }
        Ok(())
    }

    /// Takes what is unpacked; whether the client has said that nothing more comes.
    fn unpack(&mut self, inward: &mut Vec<u8>, buf: &mut [u8]) -> io::Result<bool> {
        loop {
            match self.session.reader().read(buf) {
                Ok(0) => return Ok(true),
                Ok(n) => inward.extend_from_slice(&buf[..n]),
                Err(e) if again(&e) => return Ok(false),
                // It hung up without saying so.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(true),
                Err(e) => return Err(e),
            }
        }
    }
}
