//! TLS, with a client that chooses what goes into which segment: what is a matter of luck with a real
//! client is certain with this one.

use snapslot_test_support::needs;
use std::io::{self, Cursor, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use snapslot_nbd::{Announced, Export, Listener, Server, Tls};

const SIZE: u64 = 8 << 20;

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

/// A server with TLS while `work` runs, which is given its address; and how long it took to stop.
fn served(scratch: &Path, work: impl FnOnce(SocketAddr)) -> Duration {
    certificates(scratch);
    let tls = Tls::from_directory(scratch).expect("certificates");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let export: Arc<dyn Export> = Arc::new(Sevens(SIZE));
    let announced = Announced { name: "disk".into(), description: String::new(), export };
    let server = Server::new(vec![announced], Some(tls));
    let stop = AtomicBool::new(false);
    let mut stopped = Instant::now();
    std::thread::scope(|scope| {
        let listeners = [Listener::Tcp(listener)];
        let stopping = Stop(&stop);
        let (server, stop) = (&server, &stop);
        scope.spawn(move || server.run(&listeners, &|| stop.load(Ordering::Relaxed)));
        work(address);
        drop(stopping);
        stopped = Instant::now();
    });
    stopped.elapsed()
}

/// A client that may begin with TLS.
fn begun(address: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(address).expect("a server");
    tcp.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let mut hello = [0; 18];
    tcp.read_exact(&mut hello).expect("a greeting");
    tcp.write_all(&3_u32.to_be_bytes()).expect("a socket");
    tcp.write_all(&option(5, b"")).expect("a socket");
    let mut reply = [0; 20];
    tcp.read_exact(&mut reply).expect("an answer");
    assert_eq!(reply[12..16], 1_u32.to_be_bytes(), "TLS may begin");
    tcp
}

/// The client's side of TLS, but for its last word.
fn almost(scratch: &Path, tcp: &mut TcpStream) -> ClientConnection {
    let mut session = client(scratch);
    session.write_tls(tcp).expect("a socket");
    while session.is_handshaking() {
        session.read_tls(tcp).expect("an answer");
        session.process_new_packets().expect("what a server says");
    }
    session
}

fn read_request(cookie: u64, length: u32) -> Vec<u8> {
    let mut read = 0x2560_9513_u32.to_be_bytes().to_vec();
    read.extend([0; 4]);
    read.extend(cookie.to_be_bytes());
    read.extend(4096_u64.to_be_bytes());
    read.extend(length.to_be_bytes());
    read
}

/// Sends all that the session has in one segment.
fn in_one(session: &mut ClientConnection, tcp: &mut TcpStream) {
    let mut segment = Cursor::new(Vec::new());
    while session.wants_write() {
        session.write_tls(&mut segment).expect("room");
    }
    tcp.write_all(segment.get_ref()).expect("a socket");
}

/// What comes: until there is so much, or until the server has said that nothing more does.
fn hear(session: &mut ClientConnection, tcp: &mut TcpStream, enough: usize) -> (Vec<u8>, bool) {
    let (mut plain, mut buf) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        match session.reader().read(&mut buf) {
            Ok(0) => return (plain, true),
            Ok(n) => plain.extend_from_slice(&buf[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if plain.len() >= enough {
                    return (plain, false);
                }
                let n = session.read_tls(tcp).expect("an answer");
                assert!(n > 0, "hung up after {} bytes, without a word", plain.len());
                session.process_new_packets().expect("what a server says");
            }
            Err(e) => panic!("{e}"),
        }
    }
}

/// Story: a client's first option came in one segment with the end of its handshake. It was unpacked
/// with the handshake, lay in the session, and the server waited for the socket to tell of it: for ever,
/// and after thirty seconds the client was sent away. It is now taken before any waiting.
#[test]
fn the_first_option_may_come_with_the_end_of_the_handshake() {
    if !needs::has(&["openssl"]) {
        return;
    }
    let scratch = tempfile::tempdir().expect("room");
    served(scratch.path(), |address| {
        let mut tcp = begun(address);
        let mut session = almost(scratch.path(), &mut tcp);
        // EXPORT_NAME has an answer of ten bytes, and then requests follow.
        session.writer().write_all(&option(1, b"disk")).expect("room");
        session.writer().write_all(&read_request(42, 512)).expect("room");
        in_one(&mut session, &mut tcp);
        let (plain, _) = hear(&mut session, &mut tcp, 10 + 16 + 512);
        assert_eq!(plain[..8], SIZE.to_be_bytes());
        assert_eq!(plain[18..26], 42_u64.to_be_bytes());
        assert_eq!(plain[26..], [7; 512]);
    });
}

/// Story: what a client said right before its goodbye was dropped with it; and the last bytes of an answer went
/// out only if the socket took them at once, as the thread that carries them was left to itself.
#[test]
fn what_was_asked_before_the_goodbye_is_answered_to_the_last_byte() {
    if !needs::has(&["openssl"]) {
        return;
    }
    const READS: usize = 12;
    const EACH: u32 = 1 << 20;
    let scratch = tempfile::tempdir().expect("room");
    served(scratch.path(), |address| {
        for goodbye in ["TLS", "NBD", "both"] {
            let mut tcp = begun(address);
            let mut session = almost(scratch.path(), &mut tcp);
            session.writer().write_all(&option(1, b"disk")).expect("room");
            for i in 0..READS {
                session.writer().write_all(&read_request(i as u64, EACH)).expect("room");
            }
            if goodbye != "TLS" {
                let mut leave = 0x2560_9513_u32.to_be_bytes().to_vec();
                leave.extend([0, 0, 0, 2]);
                leave.extend([0; 20]);
                session.writer().write_all(&leave).expect("room");
            }
            if goodbye != "NBD" {
                session.send_close_notify();
            }
            in_one(&mut session, &mut tcp);
            let (plain, said) = hear(&mut session, &mut tcp, usize::MAX);
            assert_eq!(plain.len(), 10 + READS * (16 + EACH as usize), "goodbye by {goodbye}");
            assert!(said, "goodbye by {goodbye}");
            let answers = plain[10..].chunks(16 + EACH as usize);
            assert!(answers.into_iter().all(|a| a[16..].iter().all(|b| *b == 7)));
        }
    });
}

/// Story: a client in the middle of its TLS handshake was on no list, so that the server waited for it to end when
/// it was to stop. Nor does one hold it up that does not take its answers.
#[test]
fn a_server_that_stops_ends_handshakes_and_those_who_do_not_read() {
    if !needs::has(&["openssl"]) {
        return;
    }
    let scratch = tempfile::tempdir().expect("room");
    let mut kept = Vec::new();
    let took = served(scratch.path(), |address| {
        kept.push(begun(address));
        let mut tcp = begun(address);
        let mut session = almost(scratch.path(), &mut tcp);
        session.writer().write_all(&option(1, b"disk")).expect("room");
        for i in 0..64 {
            session.writer().write_all(&read_request(i, 1 << 20)).expect("room");
        }
        in_one(&mut session, &mut tcp);
        // It has begun to answer.
        hear(&mut session, &mut tcp, 4096);
        kept.push(tcp);
    });
    assert!(took < Duration::from_secs(25), "it stopped only after {took:?}");
}

/// Ends the server also when the test fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
