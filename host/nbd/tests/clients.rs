//! Goal: a client that is slow, silent or rude harms itself and nobody else.
//!
//! Method: a server in this process over exports that the test can hold up, and clients made of bytes.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use snapslot_nbd::{
    Announced, CONNECTIONS_MAX, Export, LOCAL_MIN, Limits, Listener, STRANGERS_MAX, Server,
};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Long enough for a machine that is busy; whatever takes longer hangs.
const LONG: Duration = Duration::from_secs(60);

/// All its bytes are 7. Nothing is read at once, so helpers do; a flush waits while it is held up.
#[derive(Default)]
struct Sevens {
    held_up: Mutex<bool>,
    released: Condvar,
    flushing: AtomicUsize,
}

impl Sevens {
    fn hold_up(&self, held: bool) {
        *self.held_up.lock().expect("the lock") = held;
        self.released.notify_all();
    }
}

impl Export for Sevens {
    fn size(&self) -> u64 {
        SIZE
    }
    fn limits(&self) -> Limits {
        Limits { smallest: 512, preferred: 65_536 }
    }
    fn read(&self, _offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(7);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        self.flushing.fetch_add(1, Ordering::SeqCst);
        let held = self.held_up.lock().expect("the lock");
        drop(self.released.wait_while(held, |held| *held));
        Ok(())
    }
}

struct Running {
    server: Arc<Server>,
    export: Arc<Sevens>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<io::Result<()>>>,
    socket: PathBuf,
    tcp: std::net::SocketAddr,
    _folder: tempfile::TempDir,
}

impl Running {
    fn new(handshake: Duration, grace: Duration) -> Running {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = tcp.local_addr().expect("its port");
        let listeners =
            [Listener::Unix(UnixListener::bind(&socket).expect("a socket")), Listener::Tcp(tcp)];
        let export = Arc::new(Sevens::default());
        let announced =
            Announced { name: "disk".into(), description: "sevens".into(), export: export.clone() };
        let server = Arc::new(Server::new(vec![announced], None).waiting(handshake, grace));
        let stop = Arc::new(AtomicBool::new(false));
        let (of_thread, stopping) = (server.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            of_thread.run(&listeners, &|| stopping.load(Ordering::Relaxed))
        });
        Running {
            server,
            export,
            stop,
            thread: Some(thread),
            socket,
            tcp: address,
            _folder: folder,
        }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).expect("it listens");
        stream.set_read_timeout(Some(LONG)).expect("a socket");
        stream
    }

    fn connect_tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.tcp).expect("it listens");
        stream.set_read_timeout(Some(LONG)).expect("a socket");
        stream
    }

    fn stop(mut self) -> Duration {
        let begun = Instant::now();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("it ends").expect("well");
        begun.elapsed()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Also when the test fails.
        self.export.hold_up(false);
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"IHAVEOPT".to_vec();
    out.extend(kind.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
    out
}

fn request(kind: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
    out.extend([0; 2]);
    out.extend(kind.to_be_bytes());
    out.extend(cookie.to_be_bytes());
    out.extend(offset.to_be_bytes());
    out.extend(length.to_be_bytes());
    out
}

fn greeted<S: Read + Write>(stream: &mut S) -> io::Result<()> {
    let mut hello = [0; 18];
    stream.read_exact(&mut hello)?;
    assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
    Ok(())
}

fn choose<S: Read + Write>(stream: &mut S) -> io::Result<()> {
    greeted(stream)?;
    stream.write_all(&3_u32.to_be_bytes())?;
    stream.write_all(&option(1, b""))?;
    let mut size = [0; 10];
    stream.read_exact(&mut size)?;
    assert_eq!(size[..8], SIZE.to_be_bytes());
    Ok(())
}

fn read<S: Read + Write>(stream: &mut S) {
    stream.write_all(&request(0, 9, 0, 512)).expect("a socket");
    let mut answer = [0; 16 + 512];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(answer[4..16], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    assert!(answer[16..].iter().all(|b| *b == 7));
}

/// Story: helpers are shared, and each waited on the socket of a client that did not read its answers: sixteen
/// reads by one such client, and nobody else's flush or read was ever answered, nor did the server stop.
#[test]
fn a_client_that_does_not_read_holds_up_nobody_else() {
    let server = Running::new(LONG, Duration::from_millis(100));
    let mut rude: Vec<_> = (0..4).map(|_| server.connect()).collect();
    for stream in &mut rude {
        choose(stream).expect("an export");
        stream.set_nonblocking(true).expect("a socket");
        for i in 0..200 {
            // As many as the socket takes.
            let _ = stream.write_all(&request(0, i, 0, MIB as u32));
        }
    }
    let mut polite = server.connect();
    choose(&mut polite).expect("an export");
    for _ in 0..20 {
        read(&mut polite);
    }
    polite.write_all(&request(3, 1, 0, 0)).expect("a socket");
    polite.read_exact(&mut [0; 16]).expect("the answer to a flush");
    // One that reads late gets all of it.
    let mut late = rude.remove(0);
    late.set_nonblocking(false).expect("a socket");
    for _ in 0..100 {
        let mut answer = vec![0; 16 + MIB as usize];
        late.read_exact(&mut answer).expect("an answer");
        assert_eq!(answer[..8], [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0]);
        assert!(answer[16..].iter().all(|b| *b == 7), "answers are mixed up");
    }
    let took = server.stop();
    assert!(took < Duration::from_secs(20), "it stops only after {took:?}");
}

/// One client has at most half of the helpers, whatever it asks for.
#[test]
fn requests_of_one_client_leave_helpers_for_others() {
    let server = Running::new(LONG, LONG);
    server.export.hold_up(true);
    let mut greedy = server.connect();
    choose(&mut greedy).expect("an export");
    for i in 0..64 {
        greedy.write_all(&request(3, i, 0, 0)).expect("a socket");
    }
    let mut other = server.connect();
    choose(&mut other).expect("an export");
    read(&mut other);
    while server.export.flushing.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    read(&mut other);
    server.export.hold_up(false);
    for _ in 0..64 {
        greedy.read_exact(&mut [0; 16]).expect("the answer to a flush");
    }
    server.stop();
}

/// Story: the time of the handshake was counted anew with each byte, so that one that sent a byte now and then
/// kept its place for ever.
#[test]
fn a_handshake_has_one_deadline_however_it_drips() {
    let server = Running::new(Duration::from_millis(500), LONG);
    let mut stream = server.connect();
    let begun = Instant::now();
    greeted(&mut stream).expect("a greeting");
    // These may come too late already on a busy machine: then it was sent away before.
    let _ = stream.write_all(&3_u32.to_be_bytes());
    // An option without an end, byte by byte, until it is sent away.
    let mut sent = 0;
    let _ = stream.write_all(b"IHAVEOPT\0\0\0\x03\0\0\x40\0");
    while stream.write_all(&[0]).is_ok() && begun.elapsed() < LONG {
        sent += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() < LONG, "{sent} bytes, and it is still there");
    assert!(sent < 16_384);
    server.stop();
}

/// Story: connections had one limit, whoever they were of: sixty-four silent strangers on TCP, and a machine did
/// not get at its disk by the unix socket.
#[test]
fn silent_strangers_lock_nobody_out() {
    let server = Running::new(LONG, LONG);
    let silent: Vec<TcpStream> = (0..100).map(|_| server.connect_tcp()).collect();
    let mut machine = server.connect();
    choose(&mut machine).expect("the machine gets in");
    // And so do others, for whom the first strangers make room.
    let mut other = server.connect_tcp();
    choose(&mut other).expect("a client over TCP gets in");
    read(&mut other);
    assert!(server.server.served().connections <= STRANGERS_MAX + 2);
    // Over TCP there is no getting at the places of this host.
    let remote: Vec<_> = (0..CONNECTIONS_MAX)
        .filter_map(|_| {
            let mut stream = server.connect_tcp();
            // The place is taken after the answer, so ask for something.
            let asked = choose(&mut stream)
                .and_then(|()| stream.write_all(&request(0, 9, 0, 512)))
                .and_then(|()| stream.read_exact(&mut [0; 16 + 512]));
            asked.ok().map(|()| stream)
        })
        .collect();
    assert!(remote.len() < CONNECTIONS_MAX - LOCAL_MIN, "{}", remote.len());
    let local: Vec<_> = (0..LOCAL_MIN - 1)
        .map(|_| {
            let mut stream = server.connect();
            choose(&mut stream).expect("a place of this host");
            read(&mut stream);
            stream
        })
        .collect();
    read(&mut machine);
    drop((silent, remote, local));
    server.stop();
}

/// Connections that are idle, greeting or waiting are ended by the end of the server, at once.
#[test]
fn a_server_that_stops_waits_for_nobody_who_waits_for_it() {
    let server = Running::new(LONG, LONG);
    let mut idle = server.connect();
    choose(&mut idle).expect("an export");
    read(&mut idle);
    let mut idle_tcp = server.connect_tcp();
    choose(&mut idle_tcp).expect("an export");
    let mut greeting = server.connect();
    greeted(&mut greeting).expect("a greeting");
    let took = server.stop();
    assert!(took < LONG / 2, "{took:?}");
    assert_eq!(idle.read(&mut [0; 1]).expect("it is closed"), 0);
}

/// Both ways in which a client can name an export, and what is said of it.
#[test]
fn an_export_is_told_as_the_client_wants_it() {
    let server = Running::new(LONG, LONG);
    // The old way, with and without the zeroes that nobody needs.
    for (flags, zeroes) in [(3_u32, 0), (1, 124)] {
        let mut stream = server.connect();
        greeted(&mut stream).expect("a greeting");
        stream.write_all(&flags.to_be_bytes()).expect("a socket");
        stream.write_all(&option(1, b"disk")).expect("a socket");
        let mut size = [0; 10];
        stream.read_exact(&mut size).expect("an export");
        assert_eq!(size[..8], SIZE.to_be_bytes());
        let mut rest = vec![1; zeroes];
        stream.read_exact(&mut rest).expect("zeroes");
        assert!(rest.iter().all(|b| *b == 0));
        read(&mut stream);
    }
    // The new way: sizes of requests are told; the smallest one only counts for who asked.
    for asked in [false, true] {
        for go in [false, true] {
            let mut stream = server.connect();
            greeted(&mut stream).expect("a greeting");
            stream.write_all(&3_u32.to_be_bytes()).expect("a socket");
            let mut data = 4_u32.to_be_bytes().to_vec();
            data.extend(b"disk");
            data.extend(u16::from(asked).to_be_bytes());
            if asked {
                data.extend(3_u16.to_be_bytes());
            }
            stream.write_all(&option(if go { 7 } else { 6 }, &data)).expect("a socket");
            let mut told = None;
            loop {
                let mut head = [0; 20];
                stream.read_exact(&mut head).expect("an answer");
                let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4"));
                let mut data = vec![0; word(16) as usize];
                stream.read_exact(&mut data).expect("its data");
                match word(12) {
                    3 if data[..2] == [0, 3] => told = Some(data[2..].to_vec()),
                    3 => assert!(data[..2] != [0, 0] || data[2..10] == SIZE.to_be_bytes()),
                    1 => break,
                    other => panic!("an answer of kind {other:#x}"),
                }
            }
            let sizes: Vec<u32> = (told.expect("sizes").chunks(4))
                .map(|w| u32::from_be_bytes(w.try_into().expect("4")))
                .collect();
            assert_eq!(sizes, [if asked { 512 } else { 1 }, 65_536, 32 << 20]);
            if go {
                read(&mut stream);
            }
        }
    }
    server.stop();
}
