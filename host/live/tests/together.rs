//! Goal: what threads do at once neither loses a write nor breaks the snapshot.
//!
//! Method: a write put right between the steps of a take, from within the disk; and threads that write,
//! read and check their own part of a real file while commits, flushes and takes go on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use snapslot_content::Content as _;
use snapslot_disk::sim::{Fate, World};
use snapslot_disk::{Companion as _, Disk, DiskError, FileCompanion, FileDisk, Range};
use snapslot_live::{BLOCK, Knobs, LiveDisk, OnFull, Snapshot};
use snapslot_test_support::Ends;

const MARK: &str = "00000000000000a1";
const READER: &str = "00000000000000d4";
const KNOBS: Knobs =
    Knobs { store_max: 1 << 30, on_full: OnFull::LoseSnapshot, waiting_max: 256 << 10 };

type Hook = Mutex<Option<Box<dyn FnOnce() + Send>>>;

/// A disk that does something once, right after its next flush.
struct Hooked {
    disk: Arc<dyn Disk>,
    then: Arc<Hook>,
}

impl Disk for Hooked {
    fn size(&self) -> Result<u64, DiskError> {
        self.disk.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.disk.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.disk.write_at(offset, data)
    }
    fn extend(&self, size: u64) -> Result<(), DiskError> {
        self.disk.extend(size)
    }
    fn reserve(&self, ranges: &[Range]) -> Result<bool, DiskError> {
        self.disk.reserve(ranges)
    }
    fn release_reserve(&self) -> Result<(), DiskError> {
        self.disk.release_reserve()
    }
    fn flush(&self) -> Result<(), DiskError> {
        let result = self.disk.flush();
        let hook = self.then.lock().expect("the lock").take();
        if let Some(hook) = hook {
            hook();
        }
        result
    }
}

#[test]
fn a_write_between_the_flush_and_the_gate_of_a_take_is_in_the_snapshot_for_good() {
    let size = 16 * BLOCK;
    let world = World::new(BTreeMap::from([("disk".to_owned(), vec![1; size as usize])]));
    let then: Arc<Hook> = Arc::default();
    let disk = Arc::new(Hooked { disk: Arc::new(world.disk("disk")), then: then.clone() });
    let live: Arc<OnceLock<LiveDisk>> = Arc::default();
    let opened = LiveDisk::open(disk, Box::new(world.companion("store")), KNOBS).expect("opens");
    assert!(live.set(opened).is_ok());
    let of_hook = live.clone();
    *then.lock().expect("the lock") = Some(Box::new(move || {
        of_hook.get().expect("a disk").write(5 * BLOCK, &[9; 4096]).expect("a write");
    }));
    live.get().expect("a disk").take(MARK, 1, 1).expect("a take");
    assert!(then.lock().expect("the lock").is_none(), "the write never was");
    // The take is done: no power cut may take anything from it.
    let cut = world.crash(world.log().len(), |_| Fate::Lost);
    let store: Box<dyn Disk> = Box::new(cut.disk("store"));
    let snapshot = Snapshot::open(Arc::new(cut.disk("disk")), store).expect("its store");
    let mut bytes = vec![0; size as usize];
    snapshot.expect("a snapshot").read_at(0, &mut bytes).expect("a read");
    let mut wanted = vec![1; size as usize];
    wanted[5 * BLOCK as usize..6 * BLOCK as usize].fill(9);
    assert!(bytes == wanted, "the snapshot lost a write that came before it");
}

/// Story: who asked how the slot stands waited for a restore to end, hours on a large disk, and so did `status`.
#[test]
fn how_it_stands_is_told_while_it_is_restored() {
    let world = World::new(BTreeMap::from([("disk".to_owned(), vec![1; 16 * BLOCK as usize])]));
    let then: Arc<Hook> = Arc::default();
    let disk = Arc::new(Hooked { disk: Arc::new(world.disk("disk")), then: then.clone() });
    let live: Arc<OnceLock<LiveDisk>> = Arc::default();
    let opened = LiveDisk::open(disk, Box::new(world.companion("store")), KNOBS).expect("opens");
    assert!(live.set(opened).is_ok());
    let disk = live.get().expect("a disk");
    disk.take(MARK, 1, 1).expect("a take");
    disk.write(0, &[9; 4096]).expect("a write");
    disk.flush().expect("a flush");
    let heard = Arc::new(Mutex::new(None));
    let (of_hook, hears) = (live.clone(), heard.clone());
    // In the middle of the restore.
    *then.lock().expect("the lock") = Some(Box::new(move || {
        let (told, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || told.send(of_hook.get().expect("a disk").standing()));
        let answer = answer.recv_timeout(std::time::Duration::from_secs(60));
        *hears.lock().expect("the lock") = Some(answer.expect("nobody says how it stands"));
    }));
    disk.restore(MARK).expect("a restore");
    let heard = heard.lock().expect("the lock").take().expect("it was asked");
    assert_eq!((heard.mark.as_deref(), heard.saved_bytes), (Some(MARK), BLOCK));
    assert_eq!(disk.standing().saved_bytes, 0);
}

/// The present disk, held and open.
fn moment(live: &LiveDisk, disk: &Arc<dyn Disk>, folder: &Path) -> Snapshot {
    let file = tempfile::tempfile_in(folder).expect("a file");
    let lent = file.try_clone().expect("a descriptor");
    let store = FileDisk::of_writable(file, Path::new("moment")).expect("a store");
    let held = Arc::new(AtomicBool::new(true));
    let told = held.clone();
    live.hold(READER, Box::new(store), move |_| told.store(false, Ordering::SeqCst))
        .expect("a moment");
    let store = FileDisk::of_descriptor(lent, Path::new("moment")).expect("a store");
    let held = move || held.load(Ordering::SeqCst);
    let content = Snapshot::of_now(disk.clone(), Box::new(store), held);
    content.expect("opens").expect("a moment")
}

#[test]
fn threads_that_write_find_what_they_wrote_and_the_snapshot_stays() {
    const THREADS: u64 = 4;
    const PART: u64 = 300 * BLOCK;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk");
    let first: Vec<u8> = (0..THREADS * PART + 700).map(|i| (i / 97) as u8).collect();
    std::fs::write(&path, &first).expect("a file");
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open_writable(&path).expect("opens"));
    let companion = || FileCompanion::new(folder.path().join("store"), path.clone());
    let live = LiveDisk::open(disk.clone(), Box::new(companion()), KNOBS).expect("opens");
    let ends = Ends::default();
    let (mut rounds, writes) = (0, AtomicU64::new(0));
    std::thread::scope(|scope| {
        let end = ends.at_the_end();
        scope.spawn(|| {
            while !ends.has_come() {
                live.wait_until_wanted(std::time::Duration::from_millis(1));
                live.commit().expect("a commit");
            }
        });
        let writers: Vec<_> = (0..THREADS)
            .map(|t| {
                let (live, ends, first, writes) = (&live, &ends, &first, &writes);
                scope.spawn(move || {
                    let base = t * PART;
                    let mut own = first[base as usize..(base + PART) as usize].to_vec();
                    let mut seed = 77 + t;
                    let mut dice = |below: u64| {
                        seed ^= seed << 13;
                        seed ^= seed >> 7;
                        seed ^= seed << 17;
                        seed % below
                    };
                    while !ends.has_come() {
                        let length = 512 * (1 + dice(20));
                        let at = 512 * dice((PART - length) / 512);
                        let byte = dice(256) as u8;
                        live.write(base + at, &vec![byte; length as usize]).expect("a write");
                        own[at as usize..(at + length) as usize].fill(byte);
                        writes.fetch_add(1, Ordering::Relaxed);
                        let length = 1 + dice(30_000);
                        let at = dice(PART - length);
                        let mut read = vec![0; length as usize];
                        live.read(base + at, &mut read).expect("a read");
                        assert!(
                            read == own[at as usize..(at + length) as usize],
                            "thread {t} reads otherwise"
                        );
                        if dice(64) == 0 {
                            live.flush().expect("a flush");
                        }
                    }
                    own
                })
            })
            .collect();
        // Takes while they write: whatever a snapshot reads, it reads twice.
        let read = |snapshot: &Snapshot| {
            let mut bytes = vec![0; first.len()];
            snapshot.read_at(0, &mut bytes).expect("a read");
            bytes
        };
        // However many it takes until enough was written, on a slow machine too; a writer that ends has failed.
        let enough = |rounds| rounds >= 30 && writes.load(Ordering::Relaxed) > 1000;
        while !enough(rounds) && !writers.iter().any(|w| w.is_finished()) {
            // A moment that began before the snapshot, one beside it, and none.
            if rounds % 3 == 0 {
                let moment = moment(&live, &disk, folder.path());
                let once = read(&moment);
                assert!(read(&moment) == once, "the moment changes");
                live.let_go(READER);
            }
            live.take(MARK, 1, 1).expect("a take");
            let moment = (rounds % 3 == 1).then(|| moment(&live, &disk, folder.path()));
            let then = moment.as_ref().map(read);
            let store = companion().open().expect("its store").expect("a store");
            let snapshot = Snapshot::open(disk.clone(), store).expect("opens").expect("a snapshot");
            let once = read(&snapshot);
            for _ in 0..3 {
                std::thread::sleep(std::time::Duration::from_millis(5));
                assert!(read(&snapshot) == once, "the snapshot changes");
                if let (Some(moment), Some(then)) = (&moment, &then) {
                    assert!(read(moment) == *then, "the moment changes");
                }
            }
            if rounds % 2 == 0 {
                live.let_go(READER);
                assert!(read(&snapshot) == once, "the snapshot changes with its neighbour");
            }
            live.delete(MARK).expect("a delete");
            rounds += 1;
        }
        drop(end);
        let mut all = first.clone();
        for (t, writer) in writers.into_iter().enumerate() {
            let own = writer.join().expect("a thread");
            all[t * PART as usize..(t + 1) * PART as usize].copy_from_slice(&own);
        }
        live.flush().expect("a flush");
        assert!(std::fs::read(&path).expect("the file") == all, "the disk is not what was written");
        println!("{} writes, {rounds} snapshots", writes.load(Ordering::Relaxed));
    });
}
