//! TLS, by rustls: its own thread turns what is encrypted into a plain local connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

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

    /// Does the handshake and gives the plain end of the connection. `quiet` limits the handshake.
    pub(crate) fn accept(&self, mut tcp: TcpStream, quiet: Duration) -> io::Result<UnixStream> {
        let mut session = ServerConnection::new(self.0.clone()).map_err(bad)?;
        tcp.set_read_timeout(Some(quiet))?;
        while session.is_handshaking() {
            session.complete_io(&mut tcp)?;
        }
        tcp.set_read_timeout(None)?;
        let (ours, theirs) = UnixStream::pair()?;
        std::thread::Builder::new().name("nbd-tls".to_owned()).spawn(move || {
            // Whatever ends it, both ends hear of it by their streams being closed.
            let _ = carry(session, &mut tcp, &theirs);
        })?;
        Ok(ours)
    }
}

/// Bytes carried at once.
const BUFFER: usize = 128 << 10;

/// Carries bytes both ways until an end closes.
fn carry(mut session: ServerConnection, tcp: &mut TcpStream, plain: &UnixStream) -> io::Result<()> {
    tcp.set_nonblocking(true)?;
    plain.set_nonblocking(true)?;
    session.set_buffer_limit(Some(BUFFER));
    let mut buf = vec![0; BUFFER];
    let mut inward: Vec<u8> = Vec::new();
    let again = |e: &io::Error| e.kind() == io::ErrorKind::WouldBlock;
    loop {
        // Before any waiting: what came with the end of the handshake is in the session already, and
        // the socket will never tell of it again.
        while inward.len() < BUFFER {
            match session.reader().read(&mut buf) {
                Ok(0) => return Ok(()),
                Ok(n) => inward.extend_from_slice(&buf[..n]),
                Err(e) if again(&e) => break,
                Err(e) => return Err(e),
            }
        }
        let mut of_tcp = PollFlags::empty();
        let mut of_plain = PollFlags::empty();
        if inward.is_empty() {
            of_tcp |= PollFlags::POLLIN;
        } else {
            of_plain |= PollFlags::POLLOUT;
        }
        if session.wants_write() {
            of_tcp |= PollFlags::POLLOUT;
        } else {
            of_plain |= PollFlags::POLLIN;
        }
        let ready = {
            let mut fds = [PollFd::new(tcp.as_fd(), of_tcp), PollFd::new(plain.as_fd(), of_plain)];
            poll(&mut fds, PollTimeout::NONE).map_err(io::Error::from)?;
            fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()))
        };
        let broken = PollFlags::POLLERR | PollFlags::POLLHUP;
        if inward.is_empty() && ready[0].intersects(PollFlags::POLLIN | broken) {
            match session.read_tls(tcp) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(e) if again(&e) => {}
                Err(e) => return Err(e),
            }
            session.process_new_packets().map_err(bad)?;
            continue;
        }
        if !inward.is_empty() {
            match (&*plain).write(&inward) {
                Ok(n) => drop(inward.drain(..n)),
                Err(e) if again(&e) => {}
                Err(e) => return Err(e),
            }
        }
        if !session.wants_write() && ready[1].intersects(PollFlags::POLLIN | broken) {
            match (&*plain).read(&mut buf[..BUFFER / 2]) {
                Ok(0) => {
                    session.send_close_notify();
                    let _ = session.write_tls(tcp);
                    return Ok(());
                }
                Ok(n) => session.writer().write_all(&buf[..n])?,
                Err(e) if again(&e) => {}
                Err(e) => return Err(e),
            }
        }
        while session.wants_write() {
            match session.write_tls(tcp) {
                Ok(_) => {}
                Err(e) if again(&e) => break,
                Err(e) => return Err(e),
            }
        }
    }
}
