//! Goal: what fails is told to who must know, for as long as it fails, and what was promised before holds.
//!
//! Method: a disk and a store that fail as they are told to, and a reader of the snapshot beside the server.

mod moment;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use snapslot_content::{Content as _, ContentError};
use snapslot_disk::sim::{Fate, Fault, SimDisk, World};
use snapslot_disk::{Companion, Disk, DiskError, Doing, FileCompanion, FileDisk, Range};
use snapslot_live::{BLOCK, Knobs, LiveDisk, LiveError, OnFull, Snapshot};

use moment::{Moment, READER};

const MARK: &str = "00000000000000a1";
const OTHER: &str = "00000000000000b2";
const BLOCKS: u64 = 64;
const SIZE: u64 = BLOCKS * BLOCK;
/// Room for a segment of fifteen blocks, and not for a second one.
const SMALL: u64 = 76 << 10;

fn knobs(store_max: u64, on_full: OnFull) -> Knobs {
    Knobs { store_max, on_full, waiting_max: 32 * BLOCK }
}

/// A disk or a store on a file system with so much room: what lies from `holes` on takes some of it.
struct Sparse {
    disk: SimDisk,
    holes: u64,
    room: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
    then: Hook,
}

/// Done once, right after the next flush.
type Hook = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

impl Sparse {
    /// A store, behind whose heads all is appended.
    fn store(disk: SimDisk, room: &Arc<AtomicU64>, then: &Hook) -> Sparse {
        let (room, then) = (room.clone(), then.clone());
        Sparse { disk, holes: 8192, room, fails: Arc::default(), then }
    }
}

impl Disk for Sparse {
    fn size(&self) -> Result<u64, DiskError> {
        self.disk.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.disk.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let error = |errno| {
            let source = std::io::Error::from_raw_os_error(errno);
            Err(DiskError::io("disk", Doing::Write, source))
        };
        if self.fails.load(Ordering::SeqCst) {
            return error(5);
        }
        let needed = if offset >= self.holes { data.len() as u64 } else { 0 };
        let takes = |room: u64| room.checked_sub(needed);
        if self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, takes).is_err() {
            return error(28);
        }
        self.disk.write_at(offset, data)
    }
    fn discard(&self, range: Range) -> Result<bool, DiskError> {
        let gives = |room: u64| Some(room.saturating_add(range.length));
        let _ = self.room.fetch_update(Ordering::SeqCst, Ordering::SeqCst, gives);
        self.disk.discard(range)
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
        let then = self.then.lock().expect("the lock").take();
        if let Some(then) = then {
            then();
        }
        result
    }
}

/// The slot's store there.
struct InRoom(World, Arc<AtomicU64>, Hook);

impl Companion for InRoom {
    fn create(&self) -> Result<Box<dyn Disk>, DiskError> {
        self.0.companion("store").create()?;
        Ok(Box::new(Sparse::store(self.0.disk("store"), &self.1, &self.2)))
    }
    fn open(&self) -> Result<Option<Box<dyn Disk>>, DiskError> {
        self.0.companion("store").open()
    }
    fn reopen(&self) -> Result<Option<Box<dyn Disk>>, DiskError> {
        self.0.companion("store").reopen()
    }
    fn remove(&self) -> Result<(), DiskError> {
        self.0.companion("store").remove()
    }
    fn sync_name(&self) -> Result<(), DiskError> {
        self.0.companion("store").sync_name()
    }
    fn name(&self) -> String {
        "store".to_owned()
    }
}

struct Setting {
    world: World,
    room: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
    /// After the next flush of the slot's store.
    then: Hook,
    live: Arc<LiveDisk>,
}

fn setting(knobs: Knobs) -> Setting {
    let world = World::new(BTreeMap::from([("disk".to_owned(), vec![1; SIZE as usize])]));
    let (room, fails) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicBool::new(false)));
    // The second half is holes.
    let (holes, fails_too) = (SIZE / 2, fails.clone());
    let disk = world.disk("disk");
    let disk = Sparse { disk, holes, room: room.clone(), fails: fails_too, then: Hook::default() };
    let then = Hook::default();
    let store = InRoom(world.clone(), room.clone(), then.clone());
    let live = LiveDisk::open(Arc::new(disk), Box::new(store), knobs);
    Setting { world, room, fails, then, live: Arc::new(live.expect("opens")) }
}

impl Setting {
    /// The present disk, held in a store on its file system.
    fn moment(&self) -> Moment {
        let store = |room| Box::new(Sparse::store(room, &self.room, &Hook::default())) as Box<_>;
        Moment::stored(&self.live, store).expect("a moment")
    }

    /// What a power cut leaves of the disk at this moment.
    fn durable(&self) -> Vec<u8> {
        let cut = self.world.crash(self.world.log().len(), |_| Fate::Lost);
        cut.bytes("disk").expect("a disk")
    }

    #[track_caller]
    fn reads(&self, block: u64, byte: u8) {
        let mut found = vec![0; BLOCK as usize];
        self.live.read(block * BLOCK, &mut found).expect("a read");
        assert!(found.iter().all(|b| *b == byte), "block {block} is not {byte}");
    }
}

fn block(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK as usize]
}

/// Story: the commit of once a second took what waited, failed because the store was full, and left it *going*.
/// The machine's next flush found nothing waiting and said that all was durable, while the writes were in memory
/// only. A flush now goes on with what a commit left, and fails as long as that fails.
#[test]
fn a_flush_after_a_commit_that_failed_is_no_success() {
    let s = setting(knobs(SMALL, OnFull::FailWrites));
    s.live.take(MARK, 1, 1).expect("a take");
    for i in 0..15 {
        s.live.write(i * BLOCK, &block(2)).expect("it waits");
    }
    // The store takes them; then fifteen more that it does not take.
    s.live.flush().expect("there is room");
    for i in 15..30 {
        s.live.write(i * BLOCK, &block(3)).expect("it waits");
    }
    assert!(s.live.commit().is_err_and(|e| e.is_no_space()), "the store is full");
    for _ in 0..3 {
        assert!(
            s.live.flush().is_err_and(|e| e.is_no_space()),
            "a flush of what is in memory only"
        );
        assert!(s.live.commit().is_err_and(|e| e.is_no_space()));
    }
    s.reads(20, 3);
    // Where room comes after all, it is durable.
    s.live.delete(MARK).expect("a delete");
    s.live.flush().expect("nothing is in the way");
    assert!(s.durable()[15 * BLOCK as usize..30 * BLOCK as usize].iter().all(|b| *b == 3));
}

/// Story: as above, with a disk that failed for a while; and once all that may wait was going, nothing tried
/// again, so that first writes failed for ever.
#[test]
fn what_a_failing_disk_did_not_take_is_brought_to_it_when_it_works_again() {
    let s = setting(knobs(1 << 20, OnFull::LoseSnapshot));
    s.live.take(MARK, 1, 1).expect("a take");
    for i in 0..32 {
        s.live.write(i * BLOCK, &block(2)).expect("it waits");
    }
    s.fails.store(true, Ordering::SeqCst);
    assert!(s.live.commit().is_err(), "the disk fails");
    assert!(s.live.flush().is_err(), "a flush of what is in memory only");
    let refused = s.live.write(40 * BLOCK, &block(4));
    assert!(matches!(refused, Err(LiveError::Stuck { .. })), "{refused:?}");
    s.fails.store(false, Ordering::SeqCst);
    // What the server's own thread does once a second.
    s.live.commit().expect("the disk works");
    s.live.write(40 * BLOCK, &block(4)).expect("and takes writes");
    s.live.flush().expect("durably");
    let durable = s.durable();
    assert!(durable[..32 * BLOCK as usize].iter().all(|b| *b == 2));
    assert!(durable[40 * BLOCK as usize..41 * BLOCK as usize].iter().all(|b| *b == 4));
    assert!(!s.live.standing().lost);
}

#[test]
fn a_moment_has_what_is_written_and_cannot_be_brought_to_the_disk() {
    let s = setting(knobs(SMALL, OnFull::FailWrites));
    s.live.take(MARK, 1, 1).expect("a take");
    for i in 0..30 {
        s.live.write(i * BLOCK, &block(3)).expect("it waits");
    }
    s.live.write(BLOCKS * BLOCK - 512, &[3; 512]).expect("it waits");
    assert!(s.live.commit().is_err_and(|e| e.is_no_space()), "the store is full");
    let moment = Moment::of(&s.live).expect("a moment");
    let _ = s.live.write(0, &block(4));
    let mut found = vec![0; SIZE as usize];
    moment.opened(s.world.disk("disk")).read_at(0, &mut found).expect("a read");
    let mut wanted = vec![1; SIZE as usize];
    wanted[..30 * BLOCK as usize].fill(3);
    wanted[SIZE as usize - 512..].fill(3);
    assert!(found == wanted, "it lacks what waited");
}

/// Story: the store of a moment took the last room of the file system, and what was given up then was the slot's
/// snapshot, or the machine's writes.
#[test]
fn a_moment_on_a_full_file_system_is_what_goes() {
    for (held, on_full) in
        [(false, OnFull::LoseSnapshot), (true, OnFull::LoseSnapshot), (true, OnFull::FailWrites)]
    {
        let mut ended = 0;
        for blocks in 4..40 {
            let s = setting(knobs(1 << 30, on_full));
            if held {
                s.live.take(MARK, 1, 1).expect("a take");
            }
            let moment = s.moment();
            s.room.store(blocks * BLOCK, Ordering::SeqCst);
            for i in [0, 1, 40, 41] {
                s.live.write(i * BLOCK, &block(2)).expect("it waits");
            }
            let flushed = s.live.flush();
            let needed = if held { 5 + 2 } else { 2 };
            if blocks < needed {
                assert!(moment.is_gone(), "{blocks} blocks of room");
                continue;
            }
            // There is room for all but the moment.
            flushed.unwrap_or_else(|e| panic!("held: {held}, {blocks} blocks: {e}"));
            assert!(!s.live.standing().lost, "held: {held}, {blocks} blocks");
            assert_eq!(s.live.standing().mark.is_some(), held);
            ended += u64::from(moment.is_gone());
            assert_eq!(s.live.standing().waiting_bytes, 0);
            s.reads(40, 2);
        }
        assert!(ended > 1, "held: {held}: it was never given up");
    }
}

/// Story: what was written while the commit saved was overwritten by its second try, saved by nobody.
#[test]
fn a_commit_that_is_tried_again_overwrites_what_it_has_saved_alone() {
    let s = setting(knobs(1 << 30, OnFull::LoseSnapshot));
    s.live.take(MARK, 1, 1).expect("a take");
    let moment = s.moment();
    // Both stores take two blocks for it; then there is none for the hole.
    s.room.store(4 * BLOCK, Ordering::SeqCst);
    s.live.write(40 * BLOCK, &block(2)).expect("it waits");
    let writer = s.live.clone();
    *s.then.lock().expect("the lock") = Some(Box::new(move || {
        writer.write(10 * BLOCK, &block(3)).expect("it waits");
    }));
    s.live.commit().expect("there is room without the moment");
    assert!(moment.is_gone(), "it was not given up");
    assert!(s.then.lock().expect("the lock").is_none(), "the write never was");
    s.room.store(1 << 30, Ordering::SeqCst);
    s.live.flush().expect("there is room");
    s.reads(10, 3);
    s.live.restore(MARK).expect("a restore");
    s.reads(10, 1);
    s.reads(40, 1);
}

/// A store that has more than it may have now loses nothing because somebody reads.
#[test]
fn a_moment_costs_a_snapshot_nothing_whose_store_is_over_its_bound() {
    let s = setting(knobs(1 << 30, OnFull::LoseSnapshot));
    s.live.take(MARK, 1, 1).expect("a take");
    s.live.write(0, &vec![2; 30 * BLOCK as usize]).expect("it waits");
    s.live.flush().expect("there is room");
    let world = s.world.crash(s.world.log().len(), |_| Fate::Kept);
    let small = knobs(SMALL, OnFull::LoseSnapshot);
    let live =
        LiveDisk::open(Arc::new(world.disk("disk")), Box::new(world.companion("store")), small);
    let live = live.expect("opens");
    let moment = Moment::of(&live).expect("a moment");
    live.let_go(READER);
    assert!(!moment.is_gone() && !live.standing().lost);
    live.restore(MARK).expect("a restore");
}

/// Where every write takes new room: one to what is saved finds none, and the moment goes.
#[test]
fn a_moment_goes_before_a_write_to_what_is_saved_fails() {
    for held in [false, true] {
        let s = setting(knobs(1 << 30, OnFull::LoseSnapshot));
        if held {
            s.live.take(MARK, 1, 1).expect("a take");
        }
        let moment = s.moment();
        s.live.write(40 * BLOCK, &block(2)).expect("it waits");
        s.live.flush().expect("there is room");
        s.room.store(0, Ordering::SeqCst);
        s.live.write(40 * BLOCK, &block(3)).expect("there is room without the moment");
        s.live.flush().expect("and then it is durable");
        assert!(moment.is_gone() && !s.live.standing().lost);
        s.reads(40, 3);
    }
}

/// Story: a moment's beginning brings what waits to the disk; that the snapshot went with it was not told of until the
/// next commit (the fuzzer's).
#[test]
fn a_snapshot_that_goes_as_a_moment_begins_is_known_to_be_lost() {
    let s = setting(knobs(SMALL, OnFull::LoseSnapshot));
    s.live.take(MARK, 1, 1).expect("a take");
    for i in 0..30 {
        s.live.write(i * BLOCK, &block(3)).expect("it waits");
    }
    let moment = Moment::of(&s.live).expect("a moment");
    assert!(!moment.is_gone());
    assert!(s.live.standing().lost, "{:?}", s.live.standing());
}

/// Story: a flush that waited behind a commit of another thread found nothing waiting when that had failed, and
/// succeeded.
#[test]
fn a_flush_behind_a_commit_that_fails_is_no_success() {
    let s = setting(knobs(SMALL, OnFull::FailWrites));
    s.live.take(MARK, 1, 1).expect("a take");
    for i in 0..15 {
        s.live.write(i * BLOCK, &block(2)).expect("it waits");
    }
    s.live.flush().expect("there is room");
    s.live.write(20 * BLOCK, &block(3)).expect("it waits");
    let succeeded = std::thread::scope(|scope| {
        let all: Vec<_> = (0..8).map(|_| scope.spawn(|| s.live.flush().is_ok())).collect();
        all.into_iter().map(|t| t.join().expect("a thread")).filter(|ok| *ok).count()
    });
    assert_eq!(succeeded, 0, "flushes of what is in memory only");
}

/// Story: the store ran full on a file system that was full too. The snapshot was given up, but what waited was
/// for holes of the disk and could not be written: the disk was declared broken and every later write failed,
/// though the room that the store had taken was of use to nobody. It is given back now, and what waits is tried
/// again.
#[test]
fn a_full_file_system_costs_the_snapshot_and_not_the_machine() {
    let s = setting(knobs(SMALL, OnFull::LoseSnapshot));
    s.live.take(MARK, 1, 1).expect("a take");
    s.room.store(4 * BLOCK, Ordering::SeqCst);
    for i in (0..15).chain(40..56) {
        // Those of the second half are for holes.
        s.live.write(i * BLOCK, &block(5)).expect("it waits");
    }
    let full = s.live.flush();
    assert!(full.as_ref().is_err_and(LiveError::is_no_space), "{full:?}");
    assert!(s.live.standing().lost, "{:?}", s.live.standing());
    // What needs no room is written and durable; the rest can be read and waits.
    s.live.write(0, &block(6)).expect("a write to what is there");
    s.reads(0, 6);
    s.reads(40, 5);
    assert!(s.live.flush().is_err_and(|e| e.is_no_space()));
    // The slot can be emptied, the file system being full or not.
    s.live.delete(MARK).expect("a delete");
    assert!(s.world.bytes("store").is_none());
    s.room.store(u64::MAX, Ordering::SeqCst);
    s.live.flush().expect("there is room");
    let durable = s.durable();
    assert!(durable[..BLOCK as usize].iter().all(|b| *b == 6));
    assert!(durable[BLOCK as usize..15 * BLOCK as usize].iter().all(|b| *b == 5));
    assert!(durable[40 * BLOCK as usize..41 * BLOCK as usize].iter().all(|b| *b == 5));
}

/// A snapshot taken while something of the last one waits has that in it.
#[test]
fn a_take_after_a_lost_snapshot_has_what_was_written_before() {
    let s = setting(knobs(SMALL, OnFull::LoseSnapshot));
    s.live.take(MARK, 1, 1).expect("a take");
    s.room.store(0, Ordering::SeqCst);
    for i in 40..56 {
        s.live.write(i * BLOCK, &block(5)).expect("it waits");
    }
    assert!(s.live.flush().is_err());
    s.live.delete(MARK).expect("a delete");
    assert!(s.live.take(OTHER, 2, 2).is_err(), "a take without what was written");
    s.room.store(u64::MAX, Ordering::SeqCst);
    s.live.take(OTHER, 2, 2).expect("a take");
    s.live.write(40 * BLOCK, &block(7)).expect("a write");
    s.live.flush().expect("a flush");
    s.live.restore(OTHER).expect("a restore");
    s.reads(40, 5);
    s.reads(0, 1);
}

/// The store of a lost snapshot keeps its heads alone, also where the machine stopped before they were left alone.
#[test]
fn a_lost_snapshot_holds_no_room() {
    let s = setting(knobs(SMALL, OnFull::LoseSnapshot));
    s.live.take(MARK, 1, 1).expect("a take");
    for i in 0..15 {
        s.live.write(i * BLOCK, &block(2)).expect("it waits");
    }
    s.live.flush().expect("there is room");
    for i in 15..30 {
        s.live.write(i * BLOCK, &block(3)).expect("it waits");
    }
    s.live.flush().expect("the machine goes on");
    assert!(s.live.standing().lost);
    let only_heads = |world: &World| {
        let store = world.bytes("store").expect("it stays, to say so");
        store[8192..].iter().all(|b| *b == 0)
    };
    assert!(only_heads(&s.world));
    let log = s.world.log();
    for upto in 0..=log.len() {
        let cut = s.world.crash(upto, |_| Fate::Lost);
        let open = LiveDisk::open(
            Arc::new(cut.disk("disk")),
            Box::new(cut.companion("store")),
            knobs(SMALL, OnFull::LoseSnapshot),
        );
        if open.expect("opens").standing().lost {
            assert!(only_heads(&cut), "after {upto} events");
        }
    }
}

/// Story: the flush of a take's head failed, the store could not be removed, and both were passed over: the disk
/// went on without saving, under a head that said the snapshot was whole.
#[test]
fn a_take_that_fails_leaves_no_snapshot_that_nobody_keeps() {
    let mut tried = 0;
    for for_ever in [false, true] {
        for at in 0..16 {
            let world = World::new(BTreeMap::from([("disk".to_owned(), vec![1; SIZE as usize])]));
            let live = LiveDisk::open(
                Arc::new(world.disk("disk")),
                Box::new(Unremovable(world.clone())),
                knobs(1 << 20, OnFull::LoseSnapshot),
            )
            .expect("opens");
            world.fail_at(Some(Fault { at, for_ever, errno: 5 }));
            let taken = live.take(MARK, 1, 1).is_ok();
            let wrote = live.write(0, &block(9)).is_ok();
            let _ = live.flush();
            world.fail_at(None);
            if taken {
                continue;
            }
            tried += 1;
            for fate in [Fate::Lost, Fate::Kept] {
                let after = world.crash(world.log().len(), |_| fate);
                let again = LiveDisk::open(
                    Arc::new(after.disk("disk")),
                    Box::new(after.companion("store")),
                    knobs(1 << 20, OnFull::LoseSnapshot),
                )
                .expect("opens");
                let standing = again.standing();
                if standing.mark.is_some() && !standing.lost {
                    // There is one all the same: then nothing may have been written past it.
                    again.restore(MARK).expect("a restore");
                    let mut bytes = vec![0; SIZE as usize];
                    again.read(0, &mut bytes).expect("a read");
                    assert!(bytes.iter().all(|b| *b == 1), "event {at}, wrote: {wrote}");
                }
            }
        }
    }
    assert!(tried > 6, "{tried}");
}

/// A companion that cannot be removed once it is there.
struct Unremovable(World);

impl Companion for Unremovable {
    fn create(&self) -> Result<Box<dyn Disk>, DiskError> {
        self.0.companion("store").create()
    }
    fn open(&self) -> Result<Option<Box<dyn Disk>>, DiskError> {
        self.0.companion("store").open()
    }
    fn reopen(&self) -> Result<Option<Box<dyn Disk>>, DiskError> {
        self.0.companion("store").reopen()
    }
    fn remove(&self) -> Result<(), DiskError> {
        if self.0.bytes("store").is_none() {
            return Ok(());
        }
        let source = std::io::Error::from_raw_os_error(1);
        Err(DiskError::io("store", Doing::Name, source))
    }
    fn sync_name(&self) -> Result<(), DiskError> {
        self.0.companion("store").sync_name()
    }
    fn name(&self) -> String {
        "store".to_owned()
    }
}

/// Story: who read the snapshot in another process read the store's head once. The snapshot was lost, the disk
/// went on without saving, and the reader gave what the disk had by then as the snapshot, to an export that ended
/// well. The head is now read after everything else.
#[test]
fn a_reader_of_a_snapshot_that_goes_is_told() {
    for way in ["lost", "deleted", "deleted and taken again", "restored"] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![1; SIZE as usize]).expect("a file");
        let companion = || FileCompanion::new(folder.path().join("store"), path.clone());
        let disk: Arc<dyn Disk> = Arc::new(FileDisk::open_writable(&path).expect("opens"));
        let knobs = knobs(SMALL, OnFull::LoseSnapshot);
        let live = LiveDisk::open(disk.clone(), Box::new(companion()), knobs).expect("opens");
        live.take(MARK, 1, 1).expect("a take");
        live.write(0, &block(2)).expect("a write");
        live.flush().expect("a flush");
        let store = companion().open().expect("its store").expect("a store");
        let snapshot = Snapshot::open(disk.clone(), store).expect("opens").expect("a snapshot");
        let mut all = vec![0; SIZE as usize];
        snapshot.read_at(0, &mut all).expect("it is there");
        assert!(all.iter().all(|b| *b == 1));
        assert!(snapshot.changed().is_ok());
        match way {
            "lost" => {}
            "restored" => live.restore(MARK).expect("a restore"),
            _ => live.delete(MARK).expect("a delete"),
        }
        if way == "deleted and taken again" {
            live.take(MARK, 1, 1).expect("a take");
        }
        for i in 0..BLOCKS {
            live.write(i * BLOCK, &block(3)).expect("a write");
            live.flush().expect("a flush");
        }
        assert_eq!(
            live.standing().lost,
            matches!(way, "lost" | "deleted and taken again" | "restored")
        );
        let mut buf = block(0);
        let told =
            |result: Result<(), ContentError>| matches!(result, Err(ContentError::Gone { .. }));
        for at in [0, BLOCK, SIZE - BLOCK] {
            assert!(told(snapshot.read_at(at, &mut buf)), "{way}: {} is read at {at}", buf[0]);
        }
        assert!(told(snapshot.changed().map(|_| ())), "{way}");
    }
}

/// Story: a disk that was given another size while it was not served could neither be served nor have its slot
/// emptied. It was written past its server: its snapshot is lost, durably, and that is all.
#[test]
fn a_disk_of_another_size_has_lost_its_snapshot() {
    for size in [SIZE / 2, SIZE * 2] {
        let s = setting(knobs(1 << 20, OnFull::LoseSnapshot));
        s.live.take(MARK, 1, 1).expect("a take");
        s.live.write(0, &block(2)).expect("a write");
        s.live.flush().expect("a flush");
        let mut files = s.world.files();
        files.get_mut("disk").expect("it").resize(size as usize, 0);
        let world = World::new(files);
        let open = |world: &World| {
            LiveDisk::open(
                Arc::new(world.disk("disk")),
                Box::new(world.companion("store")),
                knobs(1 << 20, OnFull::LoseSnapshot),
            )
            .expect("opens")
        };
        let live = open(&world);
        assert!(live.standing().lost);
        assert!(live.standing().why.is_some_and(|why| why.contains(&size.to_string())));
        live.write(0, &block(4)).expect("it is a disk");
        live.flush().expect("as before");
        drop(live);
        // Given its old size back it is not the old disk.
        let mut files = world.files();
        files.get_mut("disk").expect("it").resize(SIZE as usize, 0);
        let world = World::new(files);
        assert!(open(&world).standing().lost);
        open(&world).delete(MARK).expect("a delete");
    }
}
