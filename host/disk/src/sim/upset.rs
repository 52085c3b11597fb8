//! How a disk goes wrong, other than by a crash.
//!
//! Some of it is told (an error number, a read or write that came short), some is not (a write that went elsewhere, a
//! read that gives what was there before, a bit that flipped). What is told must be told on, and survived. What is
//! not told cannot be survived by whoever has no second copy; there the claim is that nobody crashes or hangs over it.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::{Event, Files, SECTOR};
use crate::{DiskError, Doing};

/// A way to go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upset {
    /// A call fails with this error number: 5 EIO, 28 ENOSPC, 30 EROFS, 110 ETIMEDOUT.
    Errno(i32),
    /// A read gives a part, and fails.
    ShortRead,
    /// A part of a write reaches the disk, and it fails.
    ShortWrite,
    /// A read gives what was there before the file was last written to.
    StaleRead,
    /// A write goes to another place of the file, and is said to have succeeded.
    Misdirected,
    /// A bit of what is read is another.
    BitFlip,
}

impl Upset {
    /// All of it.
    pub const ALL: [Upset; 9] = [
        Upset::Errno(5),
        Upset::Errno(28),
        Upset::Errno(30),
        Upset::Errno(110),
        Upset::ShortRead,
        Upset::ShortWrite,
        Upset::StaleRead,
        Upset::Misdirected,
        Upset::BitFlip,
    ];

    /// Whether whoever made the call is told.
    pub fn is_told(self) -> bool {
        !matches!(self, Upset::StaleRead | Upset::Misdirected | Upset::BitFlip)
    }
}

/// What goes wrong, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mishap {
    /// The call, counted from 0; reads and looks count.
    pub at: usize,
    /// Whether all later calls go wrong too.
    pub for_ever: bool,
    /// How.
    pub upset: Upset,
}

/// A call that can go wrong.
pub(super) enum Call<'a> {
    Event(&'a Event),
    Look { file: &'a str, doing: Doing, read: Option<(u64, usize)> },
}

/// What becomes of it.
pub(super) enum Outcome {
    /// It fails, and nothing happened.
    Fails(DiskError),
    /// Something else happens, and perhaps it fails.
    Instead(Event, Option<DiskError>),
    /// A read gives this.
    Answer(Vec<u8>),
}

impl Upset {
    /// What it makes of a call; none if this cannot befall it. `n` is the call's number.
    pub(super) fn befalls(
        self,
        call: &Call<'_>,
        now: &Files,
        stale: &BTreeMap<String, (u64, Vec<u8>)>,
        n: usize,
    ) -> Option<Outcome> {
        match (self, call) {
            (Upset::Errno(errno), call) => possible(errno, call).then(|| {
                let (name, doing) = named(call);
                Outcome::Fails(DiskError::io(name, doing, io::Error::from_raw_os_error(errno)))
            }),
            (Upset::ShortRead, Call::Look { file, read: Some((_, length)), .. }) if *length > 0 => {
                let short = io::Error::from(io::ErrorKind::UnexpectedEof);
                Some(Outcome::Fails(DiskError::io(*file, Doing::Read, short)))
            }
            (Upset::ShortWrite, Call::Event(Event::Write { file, offset, data })) => {
                // Whole sectors of it, as a disk writes.
                let middle = (*offset + data.len() as u64 / 2) / SECTOR as u64 * SECTOR as u64;
                let half = middle.saturating_sub(*offset) as usize;
                let part: Arc<[u8]> = data[..half].into();
                let part = Event::Write { file: file.clone(), offset: *offset, data: part };
                let error = io::Error::from(io::ErrorKind::WriteZero);
                let error = DiskError::io(file.clone(), Doing::Write, error);
                match half {
                    0 => Some(Outcome::Fails(error)),
                    _ => Some(Outcome::Instead(part, Some(error))),
                }
            }
            (Upset::Misdirected, Call::Event(Event::Write { file, offset, data })) => {
                let size = now.get(file)?.len() as u64;
                // The next page, or the first.
                let elsewhere = offset + 4096;
                let offset =
                    if elsewhere < size { elsewhere } else { (offset % 4096) ^ SECTOR as u64 };
                let other = Event::Write { file: file.clone(), offset, data: data.clone() };
                Some(Outcome::Instead(other, None))
            }
            (Upset::StaleRead, Call::Look { file, read: Some((offset, length)), .. }) => {
                let (written, old) = stale.get(*file)?;
                let mut is = vec![0; *length];
                if !now.get(*file)?.read(*offset, &mut is) {
                    return None;
                }
                let mut was = is.clone();
                let from = (*written).max(*offset);
                let to = (written + old.len() as u64).min(offset + *length as u64);
                if from < to {
                    let there = &old[(from - written) as usize..(to - written) as usize];
                    was[(from - offset) as usize..(to - offset) as usize].copy_from_slice(there);
                }
                (is != was).then_some(Outcome::Answer(was))
            }
            (Upset::BitFlip, Call::Look { file, read: Some((offset, length)), .. })
                if *length > 0 =>
            {
                let mut bytes = vec![0; *length];
                if !now.get(*file)?.read(*offset, &mut bytes) {
                    return None;
                }
                // Some bit, another for each call.
                let bit = (n.wrapping_mul(2_654_435_761) ^ *length) % (8 * length);
                bytes[bit / 8] ^= 1 << (bit % 8);
                Some(Outcome::Answer(bytes))
            }
            _ => None,
        }
    }
}

/// Whether a call can fail so: reading needs no room and no permission to write.
fn possible(errno: i32, call: &Call<'_>) -> bool {
    match call {
        Call::Event(_) => true,
        Call::Look { .. } => !matches!(errno, 28 | 30),
    }
}

fn named(call: &Call<'_>) -> (String, Doing) {
    match call {
        Call::Look { file, doing, .. } => ((*file).to_owned(), *doing),
        Call::Event(event) => match event {
            Event::Flush { file } => (file.clone(), Doing::Flush),
            Event::Write { file, .. } => (file.clone(), Doing::Write),
            Event::Extend { file, .. } => (file.clone(), Doing::Resize),
            Event::Create { file } | Event::Remove { file } => (file.clone(), Doing::Name),
            Event::SyncNames => ("the directory".to_owned(), Doing::Name),
        },
    }
}

#[cfg(test)]
mod tests {
    //! Goal: each mishap comes when it was told to, does what it says, and is told or not as it says.

    use super::super::World;
    use super::*;
    use crate::{Companion, Disk};

    fn world() -> World {
        let world = World::new(BTreeMap::from([("a".to_owned(), vec![7; 20_000])]));
        world.disk("a").write_at(0, &[9; 1024]).expect("a write");
        world
    }

    #[test]
    fn each_does_what_its_name_says() {
        for upset in Upset::ALL {
            let world = world();
            let disk = world.disk("a");
            let sound = world.bytes("a").expect("it");
            let calls = world.calls();
            world.mishap(Some(Mishap { at: calls, for_ever: true, upset }));
            let mut read = [0; 600];
            let was_read = disk.read_at(0, &mut read);
            let wrote = disk.write_at(4096, &[1; 2048]);
            let now = world.bytes("a").expect("it");
            let changed = |range: std::ops::Range<usize>| now[range.clone()] != sound[range];
            match upset {
                Upset::Errno(28 | 30) => {
                    assert!(was_read.is_ok() && wrote.is_err() && now == sound);
                }
                Upset::Errno(_) => assert!(was_read.is_err() && wrote.is_err() && now == sound),
                Upset::ShortRead => assert!(was_read.is_err() && wrote.is_ok()),
                Upset::ShortWrite => {
                    assert!(was_read.is_ok() && wrote.is_err());
                    assert!(changed(4096..5120) && !changed(5120..20_000));
                }
                Upset::StaleRead => assert!(was_read.is_ok() && read == [7; 600] && wrote.is_ok()),
                Upset::Misdirected => {
                    assert!(wrote.is_ok() && !changed(0..8192) && changed(8192..10_240));
                }
                Upset::BitFlip => {
                    let flipped: u32 = read.iter().map(|b| (b ^ 9).count_ones()).sum();
                    assert!(was_read.is_ok() && wrote.is_ok() && flipped == 1, "{flipped}");
                }
            }
            assert!(world.upsets() > 0, "{upset:?}");
        }
    }

    #[test]
    fn a_flush_that_failed_stays_failed() {
        for errno in [5, 28, 30, 110] {
            let world = world();
            let disk = world.disk("a");
            let upset = Upset::Errno(errno);
            world.mishap(Some(Mishap { at: world.calls(), for_ever: false, upset }));
            assert!(disk.flush().is_err());
            let refused =
                |r: Result<(), DiskError>| matches!(r, Err(DiskError::FlushFailedBefore { .. }));
            assert!(
                refused(disk.flush())
                    && refused(disk.write_at(0, &[1]))
                    && refused(disk.extend(1 << 20))
            );
        }
    }

    #[test]
    fn once_is_once_and_names_can_fail_too() {
        let world = world();
        let place = world.companion("b");
        let upset = Upset::Errno(5);
        world.mishap(Some(Mishap { at: world.calls(), for_ever: false, upset }));
        assert!(place.open().is_err());
        assert!(place.open().expect("once").is_none());
        for (n, what) in ["create", "sync", "remove"].into_iter().enumerate() {
            world.mishap(Some(Mishap { at: world.calls(), for_ever: false, upset }));
            let failed = match n {
                0 => place.create().is_err(),
                1 => place.sync_name().is_err(),
                _ => place.remove().is_err(),
            };
            assert!(failed, "{what}");
        }
        assert_eq!(world.upsets(), 4);
    }
}
