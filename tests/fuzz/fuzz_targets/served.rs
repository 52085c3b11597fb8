//! A live disk behind the NBD server, a snapshot held, and later the present disk for a reader: whatever a client sends,
//! the snapshot is what was taken, while it is held and when it is restored, and the reader reads of one moment. A store
//! that runs full is told as such.
#![no_main]

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use snapslot_content::Content as _;
use snapslot_disk::sim::World;
use snapslot_fuzz::{Bytes, nbd_client};
use snapslot_live::{BLOCK, Knobs, LiveDisk, LiveError, OnFull, Snapshot};
use snapslot_nbd::{Announced, Export, Server};

const SIZE: u64 = 15 * BLOCK + 700;
const MARK: &str = "00000000000000aa";
const READER: &str = "00000000000000bb";

/// The disk of this run: a server and its helpers are made once.
struct Now(Mutex<Option<Arc<LiveDisk>>>);

impl Now {
    fn disk(&self) -> Arc<LiveDisk> {
        self.0.lock().expect("the lock").clone().expect("a disk")
    }
}

fn as_io(error: LiveError) -> io::Error {
    io::Error::other(error.to_string())
}

impl Export for Now {
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.disk().read(offset, buf).map_err(as_io)
    }
    fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        self.disk().read_at_once(offset, buf).map_err(as_io)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.disk().write(offset, data).map_err(as_io)
    }
    fn writes_at_once(&self) -> bool {
        true
    }
    fn zero(&self, offset: u64, length: u64, punch: bool) -> io::Result<()> {
        self.disk().zero(offset, length, punch).map_err(as_io)
    }
    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.disk().trim(offset, length).map_err(as_io)
    }
    fn flush(&self) -> io::Result<()> {
        self.disk().flush().map_err(as_io)
    }
}

static NOW: LazyLock<Arc<Now>> = LazyLock::new(|| Arc::new(Now(Mutex::new(None))));
static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let announced =
        Announced { name: "disk".into(), description: "live".into(), export: NOW.clone() };
    Server::new(vec![announced], None)
});

fn client(bytes: &mut Bytes<'_>) {
    let sent = nbd_client(bytes);
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        let mut reading = ours.try_clone().expect("a descriptor");
        scope.spawn(move || {
            let _ = reading.read_to_end(&mut Vec::new());
        });
        scope.spawn(move || {
            let _ = ours.write_all(&sent);
            let _ = ours.shutdown(Shutdown::Write);
        });
        SERVER.serve_one(theirs).expect("helpers");
    });
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let store_max = if bytes.byte() % 4 == 0 { 10 * BLOCK } else { 1 << 20 };
    // Enough for all blocks: nobody commits unasked here.
    let knobs = Knobs { store_max, on_full: OnFull::LoseSnapshot, waiting_max: 1 << 20 };
    let first: Vec<u8> = (0..SIZE).map(|i| (i / 512) as u8 | 0x80).collect();
    let world = World::new(BTreeMap::from([("disk".to_owned(), first)]));
    let open = || {
        LiveDisk::open(Arc::new(world.disk("disk")), Box::new(world.companion("store")), knobs)
            .expect("opens")
    };
    let live = Arc::new(open());
    *NOW.0.lock().expect("the lock") = Some(live.clone());
    let content = |live: &LiveDisk| {
        let mut content = vec![0; SIZE as usize];
        live.read(0, &mut content).expect("a read");
        content
    };
    // One client before the take, one after it.
    let (before, after) = bytes.0.split_at(bytes.0.len() / 3);
    client(&mut Bytes(before));
    let then = content(&live);
    live.take(MARK, 1, 2).expect("a take");
    let (before, after) = after.split_at(after.len() / 2);
    client(&mut Bytes(before));
    let (moment, is_held) = (content(&live), Arc::new(AtomicBool::new(true)));
    let room = World::new(BTreeMap::from([("room".to_owned(), Vec::new())]));
    let told = is_held.clone();
    live.hold(READER, Box::new(room.disk("room")), move |_| told.store(false, Ordering::SeqCst))
        .expect("a moment");
    client(&mut Bytes(after));
    live.flush().expect("a flush");
    let held = is_held.clone();
    let disk = Arc::new(world.disk("disk"));
    let reader =
        Snapshot::of_now(disk, Box::new(room.disk("room")), move || held.load(Ordering::SeqCst));
    let mut read = vec![0; SIZE as usize];
    match reader.expect("opens").expect("a moment").read_at(0, &mut read) {
        Ok(()) => assert!(read == moment, "what is read is not of the moment"),
        Err(e) => assert!(!is_held.load(Ordering::SeqCst) && store_max < 1 << 20, "{e}"),
    }
    live.let_go(READER);
    let now = content(&live);
    let lost = live.standing().lost;
    assert!(!lost || store_max < 1 << 20, "there was room");
    drop(live);
    *NOW.0.lock().expect("the lock") = None;
    // As after a restart.
    let live = open();
    assert!(content(&live) == now, "what was flushed is not there");
    assert_eq!(live.standing().lost, lost);
    if !lost {
        live.restore(MARK).expect("a restore");
        assert!(content(&live) == then, "the snapshot is not what was taken");
    }
    live.delete(MARK).expect("a delete");
    assert_eq!(world.bytes("disk").expect("it").len() as u64, SIZE, "the disk grew");
});
