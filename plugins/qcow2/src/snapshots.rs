//! The snapshot table.
//!
//! ```text
//! 0 l1_table_offset 8 l1_size 12 id_size u16 14 name_size u16 16 seconds 20 nanoseconds
//! 24 vm_clock u64 32 vm_state_size 36 extra_size 40 extra id name, padded to 8
//! extra: 0 vm_state_size u64 8 disk_size u64 16 icount u64; the rest is kept as it is
//! ```

use snapslot_plugin_sdk::{Failure, FailureKind, NewSnapshot, is_mark};

use crate::corrupt;
use crate::header::{L1_BYTES_MAX, SNAPSHOTS_MAX, be64};
use crate::unsupported;
use crate::volume::Volume;

const HEAD: usize = 40;
/// QEMU's limit (block/qcow2.h); it refuses longer tables.
const TABLE_BYTES_MAX: usize = 64 << 20;
/// Names are handed to the host with each look.
const NAMES_MAX: usize = 4 << 20;
/// QEMU keeps this much extra data.
const EXTRA_MAX: usize = 1024;
/// The contract's limit.
const IDENTITY_MAX: usize = 512;
/// Our snapshots' names begin with this, the mark follows.
const NAME_PREFIX: &str = "snapslot-";

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub l1_table_offset: u64,
    pub l1_size: u32,
    pub id: String,
    pub name: String,
    pub seconds: u32,
    pub nanoseconds: u32,
    pub vm_state_size: u64,
    /// Guest-visible size when taken, where the entry says it.
    pub disk_size: Option<u64>,
    /// The entry as it is on disk, padding included.
    raw: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshots {
    pub entries: Vec<Entry>,
    /// Bytes of the table.
    pub length: u64,
}

impl Entry {
    /// What the host remembers: number, moment and name. A snapshot made anew under the same
    /// name differs in one of them.
    pub fn identity(&self) -> String {
        let whole = format!("{}@{}.{:09}:{}", self.id, self.seconds, self.nanoseconds, self.name);
        plain(&whole)
    }

    /// The slot's mark, if this is a snapshot of ours.
    pub fn mark(&self) -> Option<String> {
        let mark = self.name.strip_prefix(NAME_PREFIX)?;
        is_mark(mark).then(|| mark.to_owned())
    }
}

/// An identity as the contract wants it: at most 512 bytes, no control characters. Guests and
/// other tools choose names; one that is out of bounds is shortened, and told apart by a digest.
fn plain(whole: &str) -> String {
    if whole.len() <= IDENTITY_MAX && !whole.chars().any(char::is_control) {
        return whole.to_owned();
    }
    // FNV-1a: who makes two snapshots with one identity harms only their own image, and takes and
    // deletes of ours go by names of ours.
    let digest = whole.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut short = String::new();
    for c in whole.chars().map(|c| if c.is_control() { '.' } else { c }) {
        if short.len() + c.len_utf8() + 17 > IDENTITY_MAX {
            break;
        }
        short.push(c);
    }
    format!("{short}#{digest:016x}")
}

impl Snapshots {
    pub fn read(volume: &Volume<'_>) -> Result<Snapshots, Failure> {
        let count = volume.header.fields.nb_snapshots;
        let start = volume.header.fields.snapshots_offset;
        if count == 0 {
            return Ok(Snapshots::default());
        }
        // Read in growing pieces: the table does not say how long it is.
        let room = volume.file_size.saturating_sub(start).min(TABLE_BYTES_MAX as u64);
        let mut bytes = volume.read(start, room.min(u64::from(count) * 256))?;
        let mut entries = Vec::new();
        let mut at = 0;
        for i in 0..count {
            loop {
                match parse(&bytes, at) {
                    Some(parsed) => {
                        let entry = parsed.map_err(|why| {
                            corrupt(
                                "snapshot-entry",
                                format!("entry {i} of the snapshot table {why}"),
                            )
                        })?;
                        at += entry.raw.len();
                        entries.push(entry);
                        break;
                    }
                    None if (bytes.len() as u64) < room => {
                        let more = (bytes.len() as u64 * 2).max(4096).min(room);
                        bytes = volume.read(start, more)?;
                    }
                    None => {
                        let what = format!("entry {i} of the snapshot table is cut short");
                        return Err(corrupt("snapshot-entry", what));
                    }
                }
            }
        }
        let names: usize = entries.iter().map(|e| e.name.len() + e.id.len()).sum();
        if names > NAMES_MAX {
            return Err(unsupported(
                "snapshot-names",
                "the names of the image's snapshots have more than 4 MiB together",
            ));
        }
        Ok(Snapshots { entries, length: at as u64 })
    }

    /// The entry with this identity.
    pub fn find(&self, identity: &str) -> Result<(usize, &Entry), Failure> {
        let found = self.entries.iter().enumerate().find(|(_, e)| e.identity() == identity);
        found.ok_or_else(|| {
            Failure::new(
                FailureKind::NotFound,
                "snapshot-gone",
                format!("the image holds no snapshot {identity}"),
            )
        })
    }

    /// The table with a snapshot added: all bytes, in order.
    pub fn with_new(
        &self,
        new: &NewSnapshot,
        l1_table_offset: u64,
        l1_size: u32,
        disk_size: u64,
    ) -> Result<Vec<u8>, Failure> {
        if self.entries.len() as u64 >= u64::from(SNAPSHOTS_MAX) {
            return Err(unsupported(
                "snapshots-full",
                "the image holds 65,536 snapshots, the most it can",
            ));
        }
        let seconds = u32::try_from(new.taken_seconds).map_err(|_| {
            unsupported(
                "time",
                "the format counts seconds up to the year 2106, and this machine's clock shows a later time",
            )
        })?;
        let number = |e: &Entry| e.id.parse::<u64>().ok();
        let last = self.entries.iter().filter_map(number).max().unwrap_or(0);
        let id = last.checked_add(1).ok_or_else(|| {
            unsupported("snapshot-number", "the image's snapshot numbers are used up")
        })?;
        let (id, name) = (id.to_string(), format!("{NAME_PREFIX}{}", new.mark));
        let mut entry = Vec::new();
        entry.extend_from_slice(&l1_table_offset.to_be_bytes());
        entry.extend_from_slice(&l1_size.to_be_bytes());
        entry.extend_from_slice(&(id.len() as u16).to_be_bytes());
        entry.extend_from_slice(&(name.len() as u16).to_be_bytes());
        entry.extend_from_slice(&seconds.to_be_bytes());
        entry.extend_from_slice(&new.taken_nanoseconds.to_be_bytes());
        entry.extend_from_slice(&0_u64.to_be_bytes()); // vm_clock: no machine was running
        entry.extend_from_slice(&0_u32.to_be_bytes()); // vm_state_size
        entry.extend_from_slice(&24_u32.to_be_bytes());
        entry.extend_from_slice(&0_u64.to_be_bytes());
        entry.extend_from_slice(&disk_size.to_be_bytes());
        entry.extend_from_slice(&u64::MAX.to_be_bytes()); // icount: not recorded
        entry.extend_from_slice(id.as_bytes());
        entry.extend_from_slice(name.as_bytes());
        entry.resize(entry.len().next_multiple_of(8), 0);
        let table: Vec<u8> =
            self.entries.iter().flat_map(|e| e.raw.iter().copied()).chain(entry).collect();
        if table.len() > TABLE_BYTES_MAX {
            return Err(unsupported(
                "snapshots-full",
                "the image's snapshot table is as long as it can be",
            ));
        }
        Ok(table)
    }

    /// The table without one entry.
    pub fn without(&self, index: usize) -> Vec<u8> {
        let kept = self.entries.iter().enumerate().filter(|(i, _)| *i != index);
        kept.flat_map(|(_, e)| e.raw.iter().copied()).collect()
    }
}

/// `None`: more bytes are needed.
fn parse(bytes: &[u8], at: usize) -> Option<Result<Entry, String>> {
    let head = bytes.get(at..at + HEAD)?;
    let half = |i: usize| usize::from(u16::from_be_bytes([head[i], head[i + 1]]));
    let word = |i: usize| u32::from_be_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
    let (id_size, name_size, extra_size) = (half(12), half(14), word(36) as usize);
    if extra_size > EXTRA_MAX {
        return Some(Err(format!("has {extra_size} bytes of extra data, more than 1,024")));
    }
    let end = HEAD + extra_size + id_size + name_size;
    // The last entry's padding need not be in the file.
    let mut raw = bytes.get(at..at + end)?.to_vec();
    raw.resize(end.next_multiple_of(8), 0);
    let (extra, rest) = raw[HEAD..].split_at(extra_size);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let entry = Entry {
        l1_table_offset: be64(head, 0),
        l1_size: word(8),
        id: text(&rest[..id_size]),
        name: text(&rest[id_size..id_size + name_size]),
        seconds: word(16),
        nanoseconds: word(20),
        vm_state_size: if extra_size >= 8 { be64(extra, 0) } else { u64::from(word(32)) },
        disk_size: (extra_size >= 16).then(|| be64(extra, 8)),
        raw: raw.clone(),
    };
    if u64::from(entry.l1_size) * 8 > L1_BYTES_MAX {
        return Some(Err(format!("has an L1 table of {} entries", entry.l1_size)));
    }
    Some(Ok(entry))
}
