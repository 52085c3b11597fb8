//! TLS, with a client that chooses what goes into which segment: what is a matter of luck with a real
//! client is certain with this one.

use std::io::{self, Cursor, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use snapslot_nbd::{Announced, Export, Listener, Server, Tls};

/// An export of so many bytes, all of them 7.
struct Sevens(u64);

impl Export for Sevens {
    fn size(&self) -> u64 {
        self.0
    }

    fn read(&self, _offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(7);
        Ok(())
    }
}

/// An authority, a server and a client, as `openssl` makes them.
fn certificates(directory: &Path) {
    let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=ca \
           -keyout ca-key.pem -out ca-cert.pem -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
         printf 'subjectAltName=DNS:localhost\\nbasicConstraints=CA:FALSE\\n' > ext
         for who in server client; do
           openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout $who-key.pem -out $who.csr
           openssl x509 -req -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 9 -extfile ext -out $who-cert.pem
         done";
    let done = Command::new("sh").args(["-ec", script]).current_dir(directory).output();
    let done = done.expect("a shell");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

fn client(directory: &Path) -> ClientConnection {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(directory.join("ca-cert.pem")).expect("made");
    roots.add(authority).expect("an authority");
    let own = CertificateDer::from_pem_file(directory.join("client-cert.pem")).expect("made");
    let key = PrivateKeyDer::from_pem_file(directory.join("client-key.pem")).expect("made");
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![own], key)
        .expect("a certificate");
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::new(config), name).expect("a client")
}

const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = OPTION_MAGIC.to_vec();
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

/// Story: a client's first option came in one segment with the end of its handshake. It was unpacked
/// with the handshake, lay in the session, and the server waited for the socket to tell of it: for ever,
/// and after thirty seconds the client was sent away. It is now taken before any waiting.
#[test]
fn the_first_option_may_come_with_the_end_of_the_handshake() {
    let scratch = tempfile::tempdir().expect("room");
    certificates(scratch.path());
    let tls = Tls::from_directory(scratch.path()).expect("certificates");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let export: Arc<dyn Export> = Arc::new(Sevens(1 << 20));
    let announced = Announced { name: "disk".into(), description: String::new(), export };
    let server = Server::new(vec![announced], Some(tls));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let listeners = [Listener::Tcp(listener)];
        let stopping = Stop(&stop);
        let (server, stop) = (&server, &stop);
        scope.spawn(move || server.run(&listeners, &|| stop.load(Ordering::Relaxed)));
        let begun = Instant::now();
        let mut tcp = TcpStream::connect(address).expect("a server");
        tcp.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let mut hello = [0; 18];
        tcp.read_exact(&mut hello).expect("a greeting");
        tcp.write_all(&3_u32.to_be_bytes()).expect("a socket");
        tcp.write_all(&option(5, b"")).expect("a socket");
        let mut reply = [0; 20];
        tcp.read_exact(&mut reply).expect("an answer");
        assert_eq!(reply[12..16], 1_u32.to_be_bytes(), "TLS may begin");

        let mut session = client(scratch.path());
        session.write_tls(&mut tcp).expect("a socket");
        while session.is_handshaking() {
            session.read_tls(&mut tcp).expect("an answer");
            session.process_new_packets().expect("what a server says");
        }
        // EXPORT_NAME has an answer of ten bytes, and then requests follow.
        session.writer().write_all(&option(1, b"disk")).expect("room");
        let mut read = 0x2560_9513_u32.to_be_bytes().to_vec();
        read.extend([0; 4]);
        read.extend(42_u64.to_be_bytes());
        read.extend(4096_u64.to_be_bytes());
        read.extend(512_u32.to_be_bytes());
        session.writer().write_all(&read).expect("room");
        let mut segment = Cursor::new(Vec::new());
        while session.wants_write() {
            session.write_tls(&mut segment).expect("room");
        }
        tcp.write_all(segment.get_ref()).expect("a socket");

        let mut plain = Vec::new();
        while plain.len() < 10 + 16 + 512 {
            let n = session.read_tls(&mut tcp).expect("an answer");
            assert!(n > 0, "sent away after {:?} with {} bytes", begun.elapsed(), plain.len());
            session.process_new_packets().expect("what a server says");
            match session.reader().read_to_end(&mut plain) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => panic!("{e}"),
            }
        }
        assert_eq!(plain[..8], (1_u64 << 20).to_be_bytes());
        assert_eq!(plain[18..26], 42_u64.to_be_bytes());
        assert_eq!(plain[26..], [7; 512]);
        drop(tcp);
        drop(stopping);
    });
}

/// Ends the server also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
