//! Goal: a power cut at any moment of a live disk's life leaves the snapshot whole and the machine's
//! flushed writes in place.
//!
//! Method: a life of writes, flushes, takes, restores and deletes on simulated files. The machine is crashed
//! after every event, with none, all and every single one of the pending events kept, torn heads of the last
//! one, and seeded subsets; then the disk is opened as after a restart. A model that knows nothing of the store
//! says what each sector may hold and which snapshot there may be. Besides, the simulated disk itself
//! refuses a write over a block whose old content is not durable in the store at that moment, and reads a
//! moment that is held for a reader after every write.

mod moment;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use snapslot_content::Content as _;
use snapslot_disk::sim::{Fate, Fault, SECTOR, SimDisk, World};
use snapslot_disk::{Disk, DiskError, Range};
use snapslot_live::store::{Head, State};
use snapslot_live::{BLOCK, Knobs, LiveDisk, LiveError, OnFull, Snapshot};

use moment::{Moment, READER};

const BLOCKS: u64 = 24;
/// The last block is short.
const SIZE: u64 = BLOCKS * BLOCK + 1536;
const MARKS: [&str; 3] = ["00000000000000a1", "00000000000000b2", "00000000000000c3"];
const KNOBS: Knobs =
    Knobs { store_max: 1 << 30, on_full: OnFull::LoseSnapshot, waiting_max: 1 << 20 };

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below.max(1)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        offset: u64,
        length: u64,
        byte: u8,
    },
    Zero {
        offset: u64,
        length: u64,
        punch: bool,
    },
    Trim {
        offset: u64,
        length: u64,
    },
    Flush,
    Commit,
    Take(usize),
    Restore(usize),
    Delete(usize),
    /// Of the disk as it is then, for a reader.
    Hold,
    LetGo,
}

/// A moment that is held, and what it is of.
struct Held {
    moment: Moment,
    then: Vec<u8>,
}

impl Held {
    /// What its reader reads is of the moment, or does not count.
    fn judge(&self, world: &World, what: &str) {
        let mut bytes = vec![0; SIZE as usize];
        match self.moment.opened(world.disk("disk")).read_at(0, &mut bytes) {
            Ok(()) => assert!(bytes == self.then, "{what}: what is read is not of the moment"),
            Err(e) => assert!(self.moment.is_gone(), "{what}: {e}"),
        }
    }
}

/// The disk, watched: no write may come before what it destroys is durable in the store.
struct Watched {
    world: World,
    disk: SimDisk,
    taken: Arc<Mutex<Option<Vec<u8>>>>,
    /// The store is small: the snapshot may be given up.
    may_be_lost: bool,
    held: Arc<Mutex<Option<Held>>>,
}

impl Watched {
    fn judge(&self, offset: u64, data: &[u8]) {
        let taken = self.taken.lock().expect("the lock");
        let Some(taken) = taken.as_ref() else { return };
        // What would be there if the power went now and nothing that is pending reached the disk.
        let cut = self.world.crash(self.world.log().len(), |_| Fate::Lost);
        let store = cut.bytes("store").expect("a store with a durable name");
        let store: Box<dyn Disk> =
            Box::new(World::new(BTreeMap::from([("s".to_owned(), store)])).disk("s"));
        let snapshot = Snapshot::open(Arc::new(cut.disk("disk")), store).expect("it opens");
        if snapshot.is_none() && self.may_be_lost {
            // Durably so: that nothing is there would be no snapshot that can be read either.
            let store = cut.disk("store");
            let head = Head::of(&store).expect("a store").expect("a head");
            assert_eq!(head.state, State::Lost, "overwritten without a word");
            return;
        }
        let saved = snapshot.expect("a durable snapshot").changed().expect("its log");
        let (mut at, end) = (offset, offset + data.len() as u64);
        while at < end {
            let stop = ((at / BLOCK + 1) * BLOCK).min(end);
            let same = data[(at - offset) as usize..(stop - offset) as usize]
                == taken[at as usize..stop as usize];
            let there = saved.iter().any(|r| r.offset <= at && stop <= r.offset + r.length);
            assert!(same || there, "block {} is overwritten before it is saved", at / BLOCK);
            at = stop;
        }
    }
}

impl Disk for Watched {
    fn size(&self) -> Result<u64, DiskError> {
        self.disk.size()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.disk.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.judge(offset, data);
        self.disk.write_at(offset, data)?;
        if let Some(held) = &*self.held.lock().expect("the lock") {
            held.judge(&self.world, &format!("{} bytes written at {offset}", data.len()));
        }
        Ok(())
    }
    fn discard(&self, range: Range) -> Result<bool, DiskError> {
        self.judge(range.offset, &vec![0; range.length as usize]);
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
        self.disk.flush()
    }
}

/// What may be there after a crash.
#[derive(Clone)]
struct Allowed {
    /// Contents since the last flush: each sector is of one of them.
    contents: Vec<Vec<u8>>,
    /// Snapshots: mark and content; none.
    snapshots: Vec<Option<(String, Vec<u8>)>>,
    /// One whose content may be gone.
    lost: Option<String>,
}

/// A life, and after each event of it what a crash may leave.
struct Story {
    world: World,
    /// Up to this many events, this is allowed.
    chapters: Vec<(usize, Allowed)>,
    steps: Vec<Step>,
    /// Moments that were not held to their end.
    given_up: usize,
}

fn start(seed: u64) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..SIZE).map(|i| if i % 64 == 0 { dice.roll(256) as u8 } else { (i / 512) as u8 }).collect()
}

fn live(steps: Vec<Step>, seed: u64) -> Story {
    live_with(steps, seed, KNOBS)
}

fn live_with(steps: Vec<Step>, seed: u64, knobs: Knobs) -> Story {
    let first = start(seed);
    let world = World::new(BTreeMap::from([("disk".to_owned(), first.clone())]));
    let taken = Arc::new(Mutex::new(None));
    let held: Arc<Mutex<Option<Held>>> = Arc::default();
    let is_held = || held.lock().expect("the lock").is_some();
    let mut given_up = 0;
    let disk = Watched {
        world: world.clone(),
        held: held.clone(),
        disk: world.disk("disk"),
        taken: taken.clone(),
        may_be_lost: knobs.store_max < KNOBS.store_max,
    };
    let live =
        LiveDisk::open(Arc::new(disk), Box::new(world.companion("store")), knobs).expect("opens");
    let mut lost: Option<String> = None;
    let mut now = first.clone();
    let mut snapshot: Option<(String, Vec<u8>)> = None;
    let mut contents = vec![first];
    let mut chapters = Vec::new();
    for step in &steps {
        let mut allowed = Allowed {
            contents: contents.clone(),
            snapshots: vec![snapshot.clone()],
            lost: lost.clone(),
        };
        match step {
            Step::Write { offset, length, byte } => {
                let data: Vec<u8> =
                    (0..*length).map(|i| byte.wrapping_add((i / 512) as u8)).collect();
                live.write(*offset, &data).expect("a write");
                now[*offset as usize..(*offset + *length) as usize].copy_from_slice(&data);
                contents.push(now.clone());
                allowed.contents.push(now.clone());
            }
            Step::Zero { offset, length, punch } => {
                live.zero(*offset, *length, *punch).expect("zeroes");
                now[*offset as usize..(*offset + *length) as usize].fill(0);
                contents.push(now.clone());
                allowed.contents.push(now.clone());
            }
            Step::Trim { offset, length } => {
                live.trim(*offset, *length).expect("a hint");
                if snapshot.is_none() && lost.is_none() && !is_held() {
                    // As the simulated disk does it; while a snapshot or a moment is held nothing happens.
                    now[*offset as usize..(*offset + *length) as usize].fill(0);
                    contents.push(now.clone());
                    allowed.contents.push(now.clone());
                }
            }
            Step::Flush => {
                live.flush().expect("a flush");
                contents = vec![now.clone()];
            }
            Step::Commit => live.commit().expect("a commit"),
            Step::Take(i) => {
                let result = live.take(MARKS[*i], 7, 8);
                assert_eq!(result.is_ok(), snapshot.is_none() && lost.is_none(), "{result:?}");
                if result.is_ok() {
                    snapshot = Some((MARKS[*i].to_owned(), now.clone()));
                    *taken.lock().expect("the lock") = Some(now.clone());
                    allowed.snapshots.push(snapshot.clone());
                    contents = vec![now.clone()];
                }
            }
            Step::Restore(i) => {
                let ours = snapshot.as_ref().filter(|(m, _)| m == MARKS[*i]).cloned();
                let result = live.restore(MARKS[*i]);
                assert_eq!(result.is_ok(), ours.is_some(), "{result:?}");
                if let Some((_, then)) = ours {
                    now = then.clone();
                    contents = vec![now.clone()];
                    allowed.contents.push(then);
                }
            }
            Step::Delete(i) => {
                let mark = snapshot.as_ref().map(|(m, _)| m).or(lost.as_ref());
                let ours = mark.is_some_and(|m| m == MARKS[*i]);
                *taken.lock().expect("the lock") = None;
                let result = live.delete(MARKS[*i]);
                assert_eq!(result.is_ok(), ours, "{result:?}");
                if ours {
                    (snapshot, lost) = (None, None);
                    allowed.snapshots.push(None);
                }
            }
            Step::Hold => match Moment::of(&live) {
                Ok(moment) => {
                    let new = Held { moment, then: now.clone() };
                    assert!(held.lock().expect("the lock").replace(new).is_none());
                }
                Err(e) => assert!(matches!(e, LiveError::Busy) && is_held(), "{e}"),
            },
            Step::LetGo => {
                *held.lock().expect("the lock") = None;
                live.let_go(READER);
            }
        }
        if held.lock().expect("the lock").take_if(|held| held.moment.is_gone()).is_some() {
            given_up += 1;
        }
        if live.standing().lost && lost.is_none() {
            lost = snapshot.take().map(|(mark, _)| mark);
            assert!(lost.is_some(), "a snapshot is lost that nobody took");
            *taken.lock().expect("the lock") = None;
            allowed.lost.clone_from(&lost);
        }
        let mut read = vec![0; SIZE as usize];
        live.read(0, &mut read).expect("a read");
        assert!(read == now, "what was written is not what is read, after {step:?}");
        chapters.push((world.log().len(), allowed));
    }
    let last = Allowed { contents, snapshots: vec![snapshot], lost };
    chapters.push((world.log().len(), last));
    Story { world, chapters, steps, given_up }
}

/// Opens what a crash left, and judges it.
fn judge(crashed: &World, allowed: &Allowed, what: &str) {
    let open = || {
        LiveDisk::open(Arc::new(crashed.disk("disk")), Box::new(crashed.companion("store")), KNOBS)
            .unwrap_or_else(|e| panic!("{what}: {e}"))
    };
    let disk = open();
    let mark = disk.standing().mark;
    let check_content = |disk: &LiveDisk| {
        let mut now = vec![0; SIZE as usize];
        disk.read(0, &mut now).expect("a read");
        for (i, sector) in now.chunks(SECTOR).enumerate() {
            let at = i * SECTOR;
            let one = allowed.contents.iter().any(|c| c[at..at + sector.len()] == *sector);
            assert!(one, "{what}: sector {i} is neither what was flushed nor what came after");
        }
    };
    if disk.standing().lost {
        assert!(mark.is_some() && mark == allowed.lost, "{what}: {mark:?} is lost");
        check_content(&disk);
        assert!(disk.restore(MARKS[0]).is_err());
        let mark = mark.expect("one");
        disk.delete(&mark).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(open().standing().mark.is_none());
        return;
    }
    let then = (allowed.snapshots.iter()).find(|s| s.as_ref().map(|(m, _)| m) == mark.as_ref());
    let Some(then) = then else { panic!("{what}: a snapshot {mark:?} that nobody took") };
    let content = |crashed: &World| -> Vec<u8> {
        let store: Box<dyn Disk> = Box::new(crashed.disk("store"));
        let snapshot = Snapshot::open(Arc::new(crashed.disk("disk")), store);
        let snapshot = snapshot.expect("its store").expect("a snapshot");
        let mut bytes = vec![0; SIZE as usize];
        snapshot.read_at(0, &mut bytes).expect("a read");
        bytes
    };
    if let Some((_, then)) = then {
        assert!(content(crashed) == *then, "{what}: the snapshot is not what was taken");
    }
    check_content(&disk);
    let mut now = vec![0; SIZE as usize];
    // Life goes on, and a restore brings all of it back.
    if let Some((mark, then)) = then {
        disk.write(3 * BLOCK, &[0xee; 3 * BLOCK as usize]).expect("a write");
        disk.flush().expect("a flush");
        assert!(content(crashed) == *then, "{what}: the snapshot broke later");
        disk.restore(mark).expect("a restore");
        disk.read(0, &mut now).expect("a read");
        assert!(now == *then, "{what}: the restore is not what was taken");
        drop(disk);
        open().read(0, &mut now).expect("a read");
        assert!(now == *then, "{what}: the restore did not last");
    }
}

/// Crashes a story at every event. Gives the number of states.
fn crash_everywhere(story: &Story, name: &str, subsets: usize) -> usize {
    let mut states = 0;
    let mut dice = Dice(0x5eed ^ story.chapters.len() as u64);
    let events = story.world.log().len();
    for upto in 0..=events {
        let chapter = story.chapters.iter().position(|(end, _)| upto <= *end).expect("a chapter");
        let allowed = &story.chapters[chapter].1;
        let pending = story.world.pending(upto);
        let mut try_one = |fate: &dyn Fn(usize) -> Fate, which: &str| {
            states += 1;
            let step = story.steps.get(chapter);
            let what = format!("{name}, {upto} of {events} events, in {step:?}, {which}");
            judge(&story.world.crash(upto, fate), allowed, &what);
        };
        try_one(&|_| Fate::Lost, "none kept");
        try_one(&|_| Fate::Kept, "all kept");
        for one in &pending {
            try_one(&|i| if i == *one { Fate::Kept } else { Fate::Lost }, "one kept");
            try_one(&|i| if i == *one { Fate::Lost } else { Fate::Kept }, "one dropped");
        }
        if let Some(last) = pending.last() {
            for sectors in [1, 2, 7, 8, 9, 16, 40] {
                try_one(
                    &|i| if i == *last { Fate::Torn(sectors) } else { Fate::Kept },
                    "the last torn",
                );
            }
        }
        if pending.len() <= 10 {
            for bits in 0..1_usize << pending.len() {
                let kept = |i: usize| pending.binary_search(&i).is_ok_and(|k| bits >> k & 1 == 1);
                try_one(&|i| if kept(i) { Fate::Kept } else { Fate::Lost }, "a subset");
            }
        } else {
            for _ in 0..subsets {
                let bits = dice.roll(u64::MAX);
                try_one(
                    &|i| if bits >> (i % 64) & 1 == 1 { Fate::Kept } else { Fate::Lost },
                    "a subset",
                );
            }
        }
    }
    states
}

fn write(block: u64, within: u64, length: u64, byte: u8) -> Step {
    let offset = block * BLOCK + within;
    Step::Write { offset, length: length.min(SIZE - offset), byte }
}

#[test]
fn a_life_survives_a_power_cut_at_every_event() {
    let steps = vec![
        write(0, 0, 2 * BLOCK, 1),
        write(9, 100, 1000, 2),
        Step::Take(0),
        write(1, 0, BLOCK, 3),
        write(2, 512, 512, 4),
        write(5, 512, 512, 4),
        write(8, 3000, 3000, 5),
        write(11, 0, 512, 5),
        write(16, 0, 512, 5),
        write(18, 0, 512, 5),
        write(23, 0, 512, 5),
        Step::Commit,
        write(14, 0, 512, 6),
        write(16, 0, 512, 6),
        write(18, 512, 512, 6),
        write(6, 0, 512, 6),
        Step::Flush,
        write(1, 0, 512, 6),
        write(12, 0, 5 * BLOCK, 7),
        write(24, 512, 1024, 8),
        Step::Commit,
        write(13, 0, BLOCK, 9),
        write(20, 0, BLOCK, 10),
        Step::Flush,
        Step::Restore(0),
        write(2, 0, BLOCK, 11),
        write(21, 0, BLOCK, 12),
        Step::Flush,
        write(22, 0, BLOCK, 13),
        Step::Delete(0),
        write(22, 0, BLOCK, 14),
        Step::Flush,
        Step::Take(1),
        write(22, 0, BLOCK, 15),
        write(0, 0, 512, 16),
        write(2, 0, 512, 16),
        write(4, 0, 512, 16),
        write(6, 0, 512, 16),
        write(8, 0, 512, 16),
        write(10, 0, 512, 16),
        write(12, 0, 512, 16),
        Step::Commit,
        write(0, 1024, 512, 17),
        write(4, 1024, 512, 17),
        write(10, 1024, 512, 17),
        Step::Restore(1),
        Step::Restore(1),
        Step::Delete(1),
    ];
    let states = crash_everywhere(&live(steps, 1), "a life", 1000);
    println!("{states} states");
    assert!(states > 10_000, "{states}");
}

#[test]
fn zeroes_and_trims_survive_it_too() {
    let zero = |block: u64, within: u64, length: u64, punch| Step::Zero {
        offset: block * BLOCK + within,
        length,
        punch,
    };
    let trim = |block: u64, length: u64| Step::Trim { offset: block * BLOCK, length };
    let steps = vec![
        write(0, 0, 2 * BLOCK, 1),
        zero(1, 512, BLOCK, true),
        trim(4, 2 * BLOCK),
        Step::Flush,
        zero(8, 0, 3 * BLOCK, true),
        trim(12, BLOCK),
        Step::Take(0),
        zero(0, 0, BLOCK, true),
        zero(3, 1024, BLOCK, false),
        trim(16, 4 * BLOCK),
        write(16, 512, 512, 2),
        trim(16, BLOCK),
        Step::Flush,
        // What is saved is zeroed in place.
        zero(0, 0, 5 * BLOCK, true),
        zero(23, 0, BLOCK + 1536, true),
        Step::Commit,
        zero(16, 0, BLOCK, true),
        Step::Flush,
        Step::Restore(0),
        zero(2, 0, 512, true),
        Step::Delete(0),
        zero(2, 0, 2 * BLOCK, true),
        trim(20, BLOCK),
        Step::Take(1),
        write(20, 0, 512, 3),
        trim(20, BLOCK),
        Step::Flush,
    ];
    let states = crash_everywhere(&live(steps, 2), "zeroes", 1000);
    println!("{states} states");
    assert!(states > 700, "{states}");
}

#[test]
fn a_snapshot_that_is_given_up_is_so_at_every_event() {
    // The store has room for its heads and a few segments; the machine never hears of it.
    let knobs = Knobs { store_max: 8192 + 10 * BLOCK, ..KNOBS };
    let steps = vec![
        Step::Take(0),
        write(0, 0, BLOCK, 1),
        write(3, 512, 1024, 1),
        Step::Flush,
        write(0, 512, 512, 2),
        write(5, 0, 4 * BLOCK, 2),
        Step::Flush,
        // More than there is room for.
        write(10, 0, 6 * BLOCK, 3),
        write(1, 0, 512, 3),
        write(18, 512, 512, 3),
        Step::Flush,
        write(20, 0, 512, 4),
        Step::Flush,
        write(12, 0, BLOCK, 5),
        Step::Delete(0),
        Step::Take(1),
        write(12, 0, BLOCK, 6),
        Step::Flush,
        write(0, 0, 12 * BLOCK, 7),
        Step::Commit,
        Step::Delete(1),
        Step::Take(2),
        write(2, 0, BLOCK, 8),
        Step::Flush,
    ];
    let story = live_with(steps, 4, knobs);
    let lost = story.chapters.iter().filter(|(_, allowed)| allowed.lost.is_some()).count();
    assert_eq!(lost, 7, "two of the three snapshots are given up");
    let states = crash_everywhere(&story, "given up", 1000);
    println!("{states} states");
    assert!(states > 700, "{states}");
}

#[test]
fn a_moment_is_held_for_its_reader_and_costs_the_snapshot_nothing() {
    let steps = vec![
        write(0, 0, 2 * BLOCK, 1),
        Step::Hold,
        write(1, 512, 512, 2),
        Step::Hold,
        write(3, 0, BLOCK, 2),
        Step::Flush,
        write(3, 512, 2 * BLOCK, 3),
        Step::Commit,
        Step::LetGo,
        write(3, 512, 2 * BLOCK, 4),
        Step::Take(0),
        // On its way, on the disk, and saved: each of them is of the moment.
        write(5, 0, 2 * BLOCK, 5),
        Step::Flush,
        write(6, 512, 512, 6),
        write(8, 512, 512, 6),
        write(24, 512, 1024, 6),
        Step::Hold,
        write(5, 512, 512, 7),
        write(6, 0, BLOCK, 7),
        write(8, 0, BLOCK, 7),
        write(10, 0, BLOCK, 7),
        write(24, 0, 512, 7),
        Step::Flush,
        write(10, 0, 512, 8),
        Step::Commit,
        Step::LetGo,
        write(10, 512, 512, 9),
        write(12, 0, BLOCK, 9),
        Step::Hold,
        write(12, 0, BLOCK, 10),
        write(0, 0, 512, 10),
        Step::Flush,
        // Whoever changes the slot does not wait for a reader.
        Step::Restore(0),
        Step::Hold,
        write(0, 0, BLOCK, 11),
        Step::Delete(0),
        write(0, 0, BLOCK, 12),
        Step::Hold,
        write(2, 0, BLOCK, 13),
        Step::Take(1),
        write(2, 0, BLOCK, 14),
        Step::Hold,
        write(2, 512, 512, 15),
        Step::Flush,
    ];
    let story = live(steps, 6);
    assert_eq!(story.given_up, 3);
    let states = crash_everywhere(&story, "held", 1000);
    println!("{states} states");
    assert!(states > 1400, "{states}");
}

#[test]
fn a_moment_without_room_is_given_up_and_nothing_else() {
    let knobs = Knobs { store_max: 8192 + 10 * BLOCK, ..KNOBS };
    let mut steps = vec![
        Step::Hold,
        write(0, 0, BLOCK, 1),
        Step::Flush,
        // More than there is room for.
        write(2, 0, 11 * BLOCK, 2),
        Step::Flush,
        Step::Take(0),
        write(0, 0, 8 * BLOCK, 3),
        Step::Flush,
        Step::Hold,
    ];
    // The snapshot has these, and each takes two blocks of the moment's room.
    for block in 0..6 {
        steps.extend([write(block, 0, BLOCK, 4), Step::Flush]);
    }
    // And the other way round: the snapshot goes, and the moment stays.
    steps.extend([
        Step::Hold,
        write(12, 0, 4 * BLOCK, 5),
        Step::Flush,
        write(12, 0, 2 * BLOCK, 6),
        write(17, 0, 2 * BLOCK, 6),
        Step::Flush,
    ]);
    let story = live_with(steps, 7, knobs);
    let lost = story.chapters.iter().filter(|(_, allowed)| allowed.lost.is_some()).count();
    assert_eq!((story.given_up, lost), (2, 5));
    let states = crash_everywhere(&story, "held without room", 1000);
    println!("{states} states");
    assert!(states > 300, "{states}");
}

#[test]
fn random_lives_survive_it_too() {
    let mut states = 0;
    for seed in 1..=80_u64 {
        let mut dice = Dice(seed * 0x1234_5677 + 1);
        let mut held: Option<usize> = None;
        let steps = (0..22)
            .map(|_| match (dice.roll(14), held) {
                (0 | 1, None) => {
                    let mark = dice.roll(3) as usize;
                    held = Some(mark);
                    Step::Take(mark)
                }
                (0, Some(mark)) => Step::Restore(mark),
                (1, Some(mark)) if dice.roll(2) == 0 => {
                    held = None;
                    Step::Delete(mark)
                }
                (2 | 3, _) => Step::Flush,
                (4, _) => Step::Commit,
                (5, _) => {
                    let (offset, length) = (dice.roll(BLOCKS) * BLOCK, 512 * (1 + dice.roll(16)));
                    let length = length.min(SIZE - offset);
                    match dice.roll(3) {
                        0 => Step::Trim { offset, length },
                        punch => Step::Zero { offset, length, punch: punch == 1 },
                    }
                }
                (6, _) if dice.roll(3) == 0 => Step::LetGo,
                (6, _) => Step::Hold,
                _ => write(
                    dice.roll(BLOCKS),
                    dice.roll(8) * 512,
                    512 * (1 + dice.roll(24)),
                    dice.roll(256) as u8,
                ),
            })
            .collect();
        states += crash_everywhere(&live(steps, seed), &format!("random life {seed}"), 300);
    }
    println!("{states} states");
    assert!(states > 50_000, "{states}");
}

#[test]
fn a_crash_while_a_crash_is_put_in_order() {
    // A restore, cut off everywhere; then its second run, cut off everywhere.
    let steps = vec![
        write(0, 0, SIZE, 1),
        Step::Take(0),
        write(2, 0, 6 * BLOCK, 2),
        Step::Flush,
        write(15, 0, 3 * BLOCK, 3),
        Step::Flush,
        Step::Restore(0),
    ];
    let story = live(steps, 5);
    let (begin, end) = (story.chapters[5].0, story.chapters[6].0);
    let allowed = &story.chapters[6].1;
    let mut states = 0;
    for upto in begin..=end {
        for kept in [Fate::Lost, Fate::Kept] {
            let first = story.world.crash(upto, |_| kept);
            let opened = LiveDisk::open(
                Arc::new(first.disk("disk")),
                Box::new(first.companion("store")),
                KNOBS,
            );
            drop(opened.expect("opens"));
            for again in 0..=first.log().len() {
                for kept in [Fate::Lost, Fate::Kept] {
                    let second = first.crash(again, |_| kept);
                    judge(&second, allowed, &format!("restore cut at {upto}, again at {again}"));
                    states += 1;
                }
            }
        }
    }
    println!("{states} states");
    assert!(states > 40, "{states}");
}

#[test]
fn every_failure_of_disk_and_store_leaves_a_legal_state() {
    // Every event fails in turn, once and for ever; afterwards the machine restarts.
    let mut tried = 0;
    for errno in [5, 28] {
        for for_ever in [false, true] {
            for at in 0..60 {
                let first = start(3);
                let world = World::new(BTreeMap::from([("disk".to_owned(), first.clone())]));
                let live = LiveDisk::open(
                    Arc::new(world.disk("disk")),
                    Box::new(world.companion("store")),
                    KNOBS,
                )
                .expect("opens");
                world.fail_at(Some(Fault { at, for_ever, errno }));
                let mut taken = None;
                let mut now = first.clone();
                let put = |offset: u64, length: usize, byte: u8, now: &mut Vec<u8>| {
                    if live.write(offset, &vec![byte; length]).is_ok() {
                        now[offset as usize..offset as usize + length].fill(byte);
                        return true;
                    }
                    false
                };
                put(0, 5000, 1, &mut now);
                let before = now.clone();
                if live.take(MARKS[0], 1, 2).is_ok() {
                    taken = Some(before);
                }
                put(4096, 9000, 2, &mut now);
                let _ = live.flush();
                put(50_000, 9000, 3, &mut now);
                let flushed = live.flush().is_ok();
                let standing = live.standing();
                world.fail_at(None);
                drop(live);
                let restarted = world.crash(world.log().len(), |_| Fate::Kept);
                let disk = LiveDisk::open(
                    Arc::new(restarted.disk("disk")),
                    Box::new(restarted.companion("store")),
                    KNOBS,
                )
                .unwrap_or_else(|e| panic!("event {at}, error {errno}: {e}"));
                if standing.lost {
                    let after = disk.standing();
                    assert!(
                        after.lost || after.mark.is_none(),
                        "lost, and whole again: event {at}"
                    );
                }
                let after = disk.standing();
                if let (Some(then), Some(mark), false) = (&taken, &after.mark, after.lost) {
                    disk.restore(mark).expect("a restore");
                    let mut bytes = vec![0; SIZE as usize];
                    disk.read(0, &mut bytes).expect("a read");
                    assert!(bytes == *then, "event {at}, error {errno}: not what was taken");
                } else if flushed {
                    let mut bytes = vec![0; SIZE as usize];
                    disk.read(0, &mut bytes).expect("a read");
                    assert!(bytes == now, "event {at}, error {errno}: a flushed write is gone");
                }
                tried += 1;
            }
        }
    }
    println!("{tried} failures");
}

#[test]
fn a_full_store_ends_the_snapshot_or_the_writes_as_told() {
    for on_full in [OnFull::LoseSnapshot, OnFull::FailWrites] {
        let world = World::new(BTreeMap::from([("disk".to_owned(), start(9))]));
        let knobs = Knobs { store_max: 64 << 10, on_full, waiting_max: 32 << 10 };
        let live =
            LiveDisk::open(Arc::new(world.disk("disk")), Box::new(world.companion("store")), knobs)
                .expect("opens");
        live.take(MARKS[0], 1, 1).expect("a take");
        let mut failed = None;
        for block in 0..BLOCKS {
            let result = live
                .write(block * BLOCK, &[7; BLOCK as usize])
                .and_then(|()| if block % 4 == 3 { live.flush() } else { Ok(()) });
            if let Err(e) = result {
                failed.get_or_insert(e);
            }
        }
        let standing = live.standing();
        match on_full {
            OnFull::LoseSnapshot => {
                assert!(failed.is_none(), "the machine's writes fail: {failed:?}");
                assert!(standing.lost, "{standing:?}");
                assert!(live.restore(MARKS[0]).is_err(), "a lost snapshot is restored");
                let mut bytes = vec![0; (BLOCKS * BLOCK) as usize];
                live.read(0, &mut bytes).expect("a read");
                assert!(bytes.iter().all(|b| *b == 7), "a write is missing");
                assert!(live.take(MARKS[1], 1, 1).is_err(), "the slot must be emptied first");
                live.delete(MARKS[0]).expect("a delete");
                live.take(MARKS[1], 1, 1).expect("a take");
            }
            OnFull::FailWrites => {
                assert!(failed.is_some_and(|e| e.is_no_space()), "writes went on");
                assert!(!standing.lost, "{standing:?}");
                live.restore(MARKS[0]).expect("a restore");
                let mut bytes = vec![0; SIZE as usize];
                live.read(0, &mut bytes).expect("a read");
                assert!(bytes == start(9), "the snapshot is not what was taken");
            }
        }
    }
}
