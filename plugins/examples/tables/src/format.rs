//! The format: what is where, and what is sound. Nothing is used before it is checked: an image's bytes are
//! a stranger's.
//!
//! ```text
//! 0    magic      "SNAPTABS"
//! 8    state      0 at rest; while a plan is under way SEAL and the number of its step
//! 16   blocks     how many the disk has
//! 24   tables     offset of the first of six rooms, a multiple of 4096
//! 32   current    which room has the table in use
//! 40   saved      four times: room, mark (16 bytes), seconds, nanoseconds; a mark of zeroes: none
//! ```

use snapslot_plugin_sdk::{Failure, FailureKind, Image, is_mark};

/// Bytes of a block, and what tables begin at multiples of.
pub const BLOCK: u64 = 4096;
/// A snapshot has the block too.
pub const SHARED: u64 = 1;
/// The bit of the state word that says: a plan is under way.
pub const SEAL: u64 = 1 << 63;
/// The header: one sector, which is written whole or not at all.
pub const HEADER: usize = 512;
/// The state word.
pub const STATE_AT: usize = 8;
/// Snapshots, and rooms for tables: theirs, the one in use, and one that is free.
pub const SNAPSHOTS: usize = 4;
pub const ROOMS: u64 = SNAPSHOTS as u64 + 2;
/// A disk of 16 TiB has tables of 32 GiB; more than this does not fit into a plugin's memory.
const BLOCKS_MAX: u64 = 4 << 20;

const MAGIC: &[u8; 8] = b"SNAPTABS";
const SAVED_AT: usize = 40;
const SAVED: usize = 40;

/// A snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    pub table: u64,
    pub mark: String,
    pub seconds: u64,
    pub nanoseconds: u32,
}

/// The header.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    pub state: u64,
    pub blocks: u64,
    pub tables: u64,
    pub current: u64,
    pub saved: Vec<Saved>,
}

fn corrupt(code: &str, what: &str) -> Failure {
    Failure::new(FailureKind::Corrupt, code, what)
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

impl Header {
    /// Reads and checks it.
    pub fn read(image: &dyn Image) -> Result<Header, Failure> {
        if image.size() < HEADER as u64 {
            return Err(corrupt("short", "the image is shorter than a header"));
        }
        let bytes = image.read_at(0, HEADER as u32)?;
        if &bytes[..8] != MAGIC {
            return Err(corrupt("magic", "it is no image of this format"));
        }
        let mut saved = Vec::new();
        for n in 0..SNAPSHOTS {
            let at = SAVED_AT + n * SAVED;
            let mark = &bytes[at + 8..at + 24];
            if mark.iter().all(|b| *b == 0) {
                continue;
            }
            let mark = String::from_utf8_lossy(mark).into_owned();
            let nanoseconds = u32::try_from(word(&bytes, at + 32)).unwrap_or(u32::MAX);
            if !is_mark(&mark) || nanoseconds > 999_999_999 {
                return Err(corrupt("snapshot", "a snapshot's entry makes no sense"));
            }
            let (table, seconds) = (word(&bytes, at), word(&bytes, at + 24));
            saved.push(Saved { table, mark, seconds, nanoseconds });
        }
        let header = Header {
            state: word(&bytes, STATE_AT),
            blocks: word(&bytes, 16),
            tables: word(&bytes, 24),
            current: word(&bytes, 32),
            saved,
        };
        let last = header.tables.checked_add(ROOMS * header.blocks.min(BLOCKS_MAX) * 8 + BLOCK);
        let placed = header.tables.is_multiple_of(BLOCK) && header.tables >= HEADER as u64;
        if header.blocks > BLOCKS_MAX || !placed || last.is_none_or(|l| l > i64::MAX as u64) {
            return Err(corrupt("tables", "it has too many blocks, or tables where none can be"));
        }
        let in_use = header.tables_in_use();
        let twice = (1..in_use.len()).any(|n| in_use[..n].contains(&in_use[n]));
        if twice || in_use.iter().any(|room| *room >= ROOMS) {
            return Err(corrupt("tables", "two tables lie in one room, or one in none"));
        }
        Ok(header)
    }

    /// As it is written.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for word in [self.state, self.blocks, self.tables, self.current] {
            bytes.extend(word.to_be_bytes());
        }
        for saved in &self.saved {
            bytes.extend(saved.table.to_be_bytes());
            bytes.extend(saved.mark.as_bytes());
            bytes.extend(saved.seconds.to_be_bytes());
            bytes.extend(u64::from(saved.nanoseconds).to_be_bytes());
        }
        bytes.resize(HEADER, 0);
        bytes
    }

    /// The disk's size in bytes.
    pub fn size(&self) -> u64 {
        self.blocks * BLOCK
    }

    /// Where a room begins.
    pub fn room(&self, number: u64) -> u64 {
        self.tables + number * (self.blocks * 8).next_multiple_of(BLOCK)
    }

    /// The rooms whose tables count.
    pub fn tables_in_use(&self) -> Vec<u64> {
        std::iter::once(self.current).chain(self.saved.iter().map(|s| s.table)).collect()
    }

    /// A room that none has.
    pub fn free_room(&self) -> Option<u64> {
        let in_use = self.tables_in_use();
        (0..ROOMS).find(|room| !in_use.contains(room))
    }

    /// The entries of the table in a room, checked.
    pub fn table(&self, image: &dyn Image, room: u64) -> Result<Vec<u64>, Failure> {
        const PIECE: u64 = 4 << 20;
        let (mut at, end) = (self.room(room), self.room(room) + self.blocks * 8);
        if end > image.size() {
            return Err(corrupt("short", "a table reaches past the image's end"));
        }
        let mut entries = Vec::new();
        while at < end {
            let bytes = image.read_at(at, (end - at).min(PIECE) as u32)?;
            at += bytes.len() as u64;
            entries.extend(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word)));
        }
        let sound = |entry: &u64| {
            let block = entry & !SHARED;
            block == 0 || (block.is_multiple_of(BLOCK) && block < image.size())
        };
        match entries.iter().all(sound) {
            true => Ok(entries),
            false => Err(corrupt("entry", "a block lies outside the image, or askew")),
        }
    }
}
