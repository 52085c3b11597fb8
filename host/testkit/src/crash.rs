//! Every state that a power cut can leave behind.
//!
//! Fault model: that of [`snapslot_disk::sim`]; besides, the sectors of the last write may have
//! arrived in any combination, not only from the front. For a history of events, states are
//! listed at every event boundary:
//!
//! - none, all, each single one kept and each single one lost of the pending events;
//! - every subset of them where there are at most [`Options::exhaustive`], else
//!   [`Options::seeded`] random ones;
//! - the last write torn after each of its sectors, and in random combinations of sectors,
//!   with the others lost, kept and at random.
//!
//! States equal in every byte of every file are visited once.

use std::collections::HashSet;
use std::fmt;

pub use snapslot_disk::sim::Files;
use snapslot_disk::sim::{Event, Paged, SECTOR};

use crate::rng::{Rng, digest};

/// Above this many sectors a write is torn at this many random ones instead of at every one.
const TEARS_MAX: usize = 256;

/// How thoroughly to look.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Random subsets for each boundary with more pending events than `exhaustive`.
    pub seeded: usize,
    /// Up to so many pending events every subset is visited.
    pub exhaustive: usize,
    /// At each boundary, so many events are the single one kept or lost; random ones if more
    /// are pending.
    pub singles: usize,
    /// Whether writes are torn.
    pub tears: bool,
    /// Seed of all choices.
    pub seed: u64,
}

/// The variable that says how many random subsets to visit at each boundary.
pub const STATES: &str = "SNAPSLOT_CRASH_STATES";
/// The variable that replays another seed.
pub const SEED: &str = "SNAPSLOT_CRASH_SEED";

impl Options {
    /// All subsets of up to ten pending events, else four hundred, or as many as the environment asks for.
    ///
    /// # Panics
    /// If a variable is set and not a number.
    pub fn deep() -> Self {
        let number = |name| {
            std::env::var(name).ok().map(|text| {
                text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is not a number: {text}"))
            })
        };
        Options {
            seeded: number(STATES).map_or(500, |n| n as usize),
            exhaustive: 10,
            singles: usize::MAX,
            tears: true,
            seed: number(SEED).unwrap_or(1),
        }
    }
}

/// What became of one event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// All of it.
    Kept,
    /// Nothing.
    Lost,
    /// Of a write, these sectors, in order of offset.
    Sectors(Vec<bool>),
}

/// One way for the machine to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// So many events of the history happened.
    pub boundary: usize,
    /// What became of each event that was pending then, by index.
    pub pending: Vec<(usize, Arrived)>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "after {} events", self.boundary)?;
        let list = |f: &mut fmt::Formatter<'_>, word, wanted: &Arrived| {
            let of: Vec<_> = self
                .pending
                .iter()
                .filter(|(_, a)| a == wanted)
                .map(|(i, _)| i.to_string())
                .collect();
            if of.is_empty() { Ok(()) } else { write!(f, ", {word} {}", of.join(" ")) }
        };
        list(f, "kept", &Arrived::Kept)?;
        list(f, "lost", &Arrived::Lost)?;
        for (index, arrived) in &self.pending {
            if let Arrived::Sectors(sectors) = arrived {
                let bits: String = sectors.iter().map(|s| if *s { '1' } else { '0' }).collect();
                write!(f, ", of {index} the sectors {bits}")?;
            }
        }
        Ok(())
    }
}

/// What happened to some files.
#[derive(Clone, Debug)]
pub struct History {
    start: Files,
    log: Vec<Event>,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.listed += other.listed;
        self.distinct += other.distinct;
        self.sampled += other.sampled;
    }
}

/// How many states there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Choices listed.
    pub listed: usize,
    /// States among them that differ in some byte.
    pub distinct: usize,
    /// Boundaries with so much pending that only some of the subsets were listed.
    pub sampled: usize,
}

impl History {
    /// Events that happened to files which were all durable at first.
    pub fn new(start: Files, log: Vec<Event>) -> Self {
        History { start, log }
    }

    /// The events.
    pub fn log(&self) -> &[Event] {
        &self.log
    }

    /// The events in a few words each, for a report.
    pub fn tell(&self) -> String {
        let mut text = String::new();
        for (i, event) in self.log.iter().enumerate() {
            let words = match event {
                Event::Write { file, offset, data } => {
                    format!("write {file} {:#x} +{:#x}", offset, data.len())
                }
                Event::Extend { file, size } => format!("extend {file} to {size:#x}"),
                Event::Flush { file } => format!("flush {file}"),
                Event::Create { file } => format!("create {file}"),
                Event::Remove { file } => format!("remove {file}"),
                Event::SyncNames => "sync names".to_owned(),
            };
            text.push_str(&format!("    {i}: {words}\n"));
        }
        text
    }

    /// The files after this crash.
    pub fn state(&self, choice: &Choice) -> Files {
        self.build(&self.start, 0, choice)
    }

    /// Lists the states, each once. Stops at the first error.
    pub fn visit<E>(
        &self,
        options: &Options,
        mut see: impl FnMut(&Choice, Files) -> Result<(), E>,
    ) -> Result<Count, E> {
        let mut rng = Rng::new(options.seed);
        let mut count = Count::default();
        let mut seen = HashSet::new();
        let mut base = self.start.clone();
        let mut settled = 0;
        for boundary in 0..=self.log.len() {
            let pending = self.pending(boundary);
            // Up to the first pending event all is decided: do it once.
            let fixed = pending.first().copied().unwrap_or(boundary);
            while settled < fixed {
                apply(&self.log[settled], &Arrived::Kept, &mut base);
                settled += 1;
            }
            count.sampled += usize::from(pending.len() > options.exhaustive);
            for fates in self.fates(boundary, &pending, options, &mut rng) {
                let pending = pending.iter().copied().zip(fates).collect();
                let choice = Choice { boundary, pending };
                count.listed += 1;
                let files = self.build(&base, settled, &choice);
                if seen.insert(digest_files(&files)) {
                    count.distinct += 1;
                    see(&choice, files)?;
                }
            }
        }
        Ok(count)
    }

    fn build(&self, base: &Files, from: usize, choice: &Choice) -> Files {
        let mut files = base.clone();
        let mut pending = choice.pending.iter();
        let mut next = pending.next();
        for (i, event) in self.log[..choice.boundary].iter().enumerate() {
            let arrived = match next {
                Some((index, arrived)) if *index == i => {
                    next = pending.next();
                    arrived
                }
                _ => &Arrived::Kept,
            };
            if i >= from {
                apply(event, arrived, &mut files);
            }
        }
        files
    }

    /// Events that no flush has covered by this boundary, by index.
    pub fn pending(&self, boundary: usize) -> Vec<usize> {
        let mut pending = Vec::new();
        for (i, event) in self.log[..boundary].iter().enumerate() {
            match event {
                Event::Flush { file } => pending.retain(|p: &usize| {
                    !matches!(&self.log[*p],
                        Event::Write { file: f, .. } | Event::Extend { file: f, .. } if f == file)
                }),
                Event::SyncNames => pending.retain(|p| {
                    !matches!(&self.log[*p], Event::Create { .. } | Event::Remove { .. })
                }),
                _ => pending.push(i),
            }
        }
        pending
    }

    fn fates(
        &self,
        boundary: usize,
        pending: &[usize],
        options: &Options,
        rng: &mut Rng,
    ) -> Vec<Vec<Arrived>> {
        let n = pending.len();
        let fate = |kept| if kept { Arrived::Kept } else { Arrived::Lost };
        let mut all: Vec<Vec<Arrived>> = Vec::new();
        if n <= options.exhaustive {
            for subset in 0_u64..1 << n {
                all.push((0..n).map(|i| fate(subset >> i & 1 == 1)).collect());
            }
        } else {
            all.push(vec![Arrived::Lost; n]);
            all.push(vec![Arrived::Kept; n]);
            let singles = options.singles.min(n);
            for i in 0..singles {
                let single = if singles == n { i } else { rng.below(n as u64) as usize };
                all.push((0..n).map(|i| fate(i == single)).collect());
                all.push((0..n).map(|i| fate(i != single)).collect());
            }
            for _ in 0..options.seeded {
                all.push((0..n).map(|_| fate(rng.coin())).collect());
            }
        }
        let last = pending.last().filter(|last| **last + 1 == boundary);
        if let Some(Event::Write { offset, data, .. }) = last.map(|last| &self.log[*last])
            && options.tears
        {
            let sectors = sectors(*offset, data.len());
            for torn in tears(sectors, rng) {
                let others: [&mut dyn FnMut() -> bool; 3] =
                    [&mut || false, &mut || true, &mut || rng.coin()];
                for other in others {
                    let mut fates: Vec<_> = (1..n).map(|_| fate(other())).collect();
                    fates.push(Arrived::Sectors(torn.clone()));
                    all.push(fates);
                }
            }
        }
        all
    }
}

/// Combinations of a write's sectors: each front part, each single one missing, some at random.
fn tears(sectors: usize, rng: &mut Rng) -> Vec<Vec<bool>> {
    let mut all = Vec::new();
    if sectors < 2 {
        return all;
    }
    let cuts: Vec<usize> = if sectors <= TEARS_MAX {
        (1..sectors).collect()
    } else {
        (0..TEARS_MAX).map(|_| 1 + rng.below(sectors as u64 - 1) as usize).collect()
    };
    for cut in cuts {
        all.push((0..sectors).map(|i| i < cut).collect());
    }
    for _ in 0..sectors.min(8) {
        all.push((0..sectors).map(|_| rng.coin()).collect());
    }
    all
}

fn sectors(offset: u64, length: usize) -> usize {
    (offset as usize % SECTOR + length).div_ceil(SECTOR)
}

fn apply(event: &Event, arrived: &Arrived, files: &mut Files) {
    match (event, arrived) {
        (_, Arrived::Lost) => {}
        (Event::Write { file, offset, data }, arrived) => {
            let Some(bytes) = files.get_mut(file) else { return };
            match arrived {
                Arrived::Sectors(sectors) => {
                    let head = *offset as usize % SECTOR;
                    for (i, _) in sectors.iter().enumerate().filter(|(_, here)| **here) {
                        let from = (i * SECTOR).saturating_sub(head);
                        let to = ((i + 1) * SECTOR - head).min(data.len());
                        bytes.write(offset + from as u64, &data[from..to]);
                    }
                }
                _ => bytes.write(*offset, data),
            }
        }
        (Event::Extend { file, size }, _) => {
            if let Some(bytes) = files.get_mut(file) {
                bytes.grow(*size as usize);
            }
        }
        (Event::Create { file }, _) => {
            files.insert(file.clone(), Paged::default());
        }
        (Event::Remove { file }, _) => {
            files.remove(file);
        }
        (Event::Flush { .. } | Event::SyncNames, _) => {}
    }
}

/// A digest of all files and their names.
pub fn digest_files(files: &Files) -> u128 {
    files.iter().fold(0, |all, (name, bytes)| {
        all.rotate_left(17) ^ digest(name.as_bytes()).rotate_left(64) ^ bytes.digest()
    })
}

#[cfg(test)]
mod tests {
    //! Goal: this module and `World::crash` agree on what a crash leaves.
    //! Method: random histories, random fates of the kinds both know, byte for byte.

    use super::*;
    use snapslot_disk::sim::{Fate, World};
    use snapslot_disk::{Companion, Disk};

    #[test]
    fn agrees_with_the_world() {
        let mut rng = Rng::new(7);
        let mut compared = 0;
        for _ in 0..60 {
            let start = Files::from([("a".to_owned(), vec![1; 2000].into())]);
            let world = World::of(start.clone());
            let (a, b) = (world.disk("a"), world.companion("b"));
            for _ in 0..12 {
                let data = vec![rng.next_u64() as u8; 1 + rng.below(1500) as usize];
                let file = b.open().expect("open");
                match (rng.below(8), file) {
                    (0, _) => a.flush().expect("flush"),
                    (1, _) => b.sync_name().expect("sync"),
                    (2, None) => drop(b.create().expect("create")),
                    (2, Some(_)) => b.remove().expect("remove"),
                    (3, Some(file)) => file.flush().expect("flush"),
                    (4 | 5, Some(file)) => {
                        file.write_at(rng.below(900), &data).expect("write");
                    }
                    (6, _) => a.extend(2000 + rng.below(4000)).expect("extend"),
                    _ => a.write_at(rng.below(3000), &data).expect("write"),
                }
            }
            let history = History::new(start, world.log());
            for boundary in 0..=history.log().len() {
                assert_eq!(history.pending(boundary), world.pending(boundary));
                for _ in 0..8 {
                    let choice = Choice {
                        boundary,
                        pending: history
                            .pending(boundary)
                            .into_iter()
                            .map(|i| (i, fate(&history.log[i], &mut rng)))
                            .collect(),
                    };
                    let theirs = world.crash(boundary, |i| {
                        let found = choice.pending.iter().find(|(index, _)| *index == i);
                        match found.map(|(_, arrived)| arrived) {
                            Some(Arrived::Lost) => Fate::Lost,
                            Some(Arrived::Sectors(s)) => {
                                Fate::Torn(s.iter().filter(|s| **s).count())
                            }
                            _ => Fate::Kept,
                        }
                    });
                    assert_eq!(history.state(&choice), theirs.contents(), "{choice}");
                    compared += 1;
                }
            }
        }
        assert!(compared > 5000, "{compared}");
    }

    fn fate(event: &Event, rng: &mut Rng) -> Arrived {
        match (event, rng.below(3)) {
            (Event::Write { offset, data, .. }, 2) => {
                let n = sectors(*offset, data.len());
                let cut = rng.below(n as u64) as usize;
                Arrived::Sectors((0..n).map(|i| i < cut).collect())
            }
            (_, 0) => Arrived::Lost,
            _ => Arrived::Kept,
        }
    }

    #[test]
    fn visits_every_subset_once() {
        let start = Files::from([("a".to_owned(), vec![0; 4096].into())]);
        let world = World::of(start.clone());
        for i in 0..5_u64 {
            world.disk("a").write_at(i * 512, &[i as u8 + 1; 512]).expect("write");
        }
        let history = History::new(start, world.log());
        let options =
            Options { seeded: 0, exhaustive: 10, singles: usize::MAX, tears: true, seed: 1 };
        let count = history.visit(&options, |_, _| Ok::<_, ()>(())).expect("no error");
        assert_eq!(count.distinct, 32);
        // 1 + 2 + 4 + 8 + 16 + 32 subsets; a write of one sector cannot be torn.
        assert_eq!(count.listed, 63);
    }
}
