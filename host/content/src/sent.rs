//! What a stream of `zfs send` says was written to a volume since the snapshot it begins from.
//!
//! A stream (OpenZFS, `include/sys/zfs_ioctl.h`) is records of 312 bytes, numbers in the machine's own order, some
//! with a payload behind them:
//!
//! ```text
//! BEGIN  from which snapshot, to which
//!   OBJECT   one that has changed
//!   FREE     a range of it without blocks now
//!   WRITE    a block of it, with its content      WRITE_EMBEDDED  the same of a very small one
//!   …
//! END
//! ```
//!
//! A volume's content is its object 1. The payloads are passed over. A block that was written with what was there
//! before is in it too. What is told as freed reads as zeroes now, and may have before: ZFS tells of whatever was never
//! written beside what was, up to the reach of an indirect block (16 MiB of blocks of 16 KiB). Behind the last block it
//! tells of nothing (`send_cb` passes over holes there), but where that is, behind OBJECT and before all else.
//! How much there is to read follows what was written, not the volume's size.

use snapslot_disk::Range;

use crate::diff::append;
use crate::joined;

/// What a stream told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Written since, in order.
    pub written: Vec<Range>,
    /// Without blocks now, and perhaps before, in order.
    pub freed: Vec<Range>,
}

const HEAD: usize = 312;
const MAGIC: u64 = 0x0002_f5ba_cbac;
/// A stream of one snapshot, not a package of several.
const SINGLE: u64 = 1;
/// An object set that is a volume.
const VOLUME: u32 = 3;
/// The object that has its content.
const CONTENT: u64 = 1;
/// The largest block that ZFS has.
const BLOCK_MAX: u64 = 16 << 20;
/// Bytes of the list behind BEGIN: some hundreds; and of what is behind an object: a node's size.
const EXTRA_MAX: u64 = 1 << 20;
/// Runs kept: 256 MiB of them, which a volume has that was written at sixteen million places apart.
const RUNS_MAX: usize = 1 << 24;

/// Why a stream is not what it was asked to be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SentError {
    /// It is not of the kind known here.
    #[error("what `zfs send` gave is not understood: {0}")]
    Unknown(String),
    /// It begins from another snapshot.
    #[error("`zfs send` gave what changed since the snapshot with guid {0}, which is another one")]
    Other(u64),
    /// More runs than are kept.
    #[error("it was written at more than {RUNS_MAX} places apart")]
    TooMany,
    /// Its end is missing.
    #[error("what `zfs send` gave ends before its end")]
    CutOff,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before BEGIN.
    Start,
    /// Within, towards the snapshot with this guid.
    Within { to: u64 },
    /// Behind END.
    End,
}

/// A stream, taken in as it comes.
#[derive(Debug)]
pub struct Sent {
    from: u64,
    at: At,
    /// A record that has not come wholly yet.
    head: Vec<u8>,
    /// Bytes of a payload that are to be passed over.
    behind: u64,
    /// Whether the record before told of the volume's content as an object.
    object_told: bool,
    /// From where on nothing is behind the content's last block.
    tail: Option<u64>,
    written: Vec<Range>,
    freed: Vec<Range>,
}

impl Sent {
    /// One that begins from the snapshot with this guid; from nothing with 0.
    pub fn since(guid: u64) -> Sent {
        Sent {
            from: guid,
            at: At::Start,
            head: Vec::with_capacity(HEAD),
            behind: 0,
            object_told: false,
            tail: None,
            written: Vec::new(),
            freed: Vec::new(),
        }
    }

    /// Takes in the next bytes of it.
    pub fn take_in(&mut self, mut bytes: &[u8]) -> Result<(), SentError> {
        while !bytes.is_empty() {
            let passed = usize::try_from(self.behind).unwrap_or(usize::MAX).min(bytes.len());
            self.behind -= passed as u64;
            bytes = &bytes[passed..];
            let (of_head, rest) = bytes.split_at(bytes.len().min(HEAD - self.head.len()));
            self.head.extend_from_slice(of_head);
            bytes = rest;
            if self.head.len() == HEAD {
                let head = std::mem::take(&mut self.head);
                self.behind = self.record(&Record(&head))?;
                self.head = head;
                self.head.clear();
            }
        }
        Ok(())
    }

    /// Where the content's last block ends, once it was told: before any of its blocks.
    pub fn last_block_ends(&self) -> Option<u64> {
        self.tail
    }

    /// What it told, of contents of so many bytes: what the longer one has more counts as written. Of the snapshot it
    /// begins from it does not tell where the last block ended, and nothing of what lay between there and where it ends
    /// now: that is to be said, or all behind counts as freed.
    pub fn told(
        mut self,
        sizes: [u64; 2],
        last_block_ended: Option<u64>,
    ) -> Result<Told, SentError> {
        if self.at != At::End || self.behind > 0 || !self.head.is_empty() {
            return Err(SentError::CutOff);
        }
        let (short, long) = (sizes[0].min(sizes[1]), sizes[0].max(sizes[1]));
        if let Some(tail) = self.tail {
            let end = last_block_ended.unwrap_or(u64::MAX);
            self.freed.push(Range { offset: tail, length: end.saturating_sub(tail) });
        }
        let within = |ranges: Vec<Range>, more: u64| {
            let cut = |r: Range| {
                (r.offset < short)
                    .then(|| Range { offset: r.offset, length: r.length.min(short - r.offset) })
            };
            let mut ranges: Vec<Range> = ranges.into_iter().filter_map(cut).collect();
            ranges.push(Range { offset: short, length: more });
            joined(ranges)
        };
        Ok(Told { written: within(self.written, long - short), freed: within(self.freed, 0) })
    }

    /// Bytes behind it.
    fn record(&mut self, record: &Record<'_>) -> Result<u64, SentError> {
        let kind = record.u32(0);
        let told = std::mem::take(&mut self.object_told);
        let to = match self.at {
            At::Start if kind == 0 => return self.begin(record),
            At::Within { to } => to,
            _ => return Err(unknown(format!("a record of kind {kind} out of place"))),
        };
        let object = record.u64(8);
        let of_content = object == CONTENT;
        // The snapshot it leads to stands in every record, where it has its own numbers before it.
        let (its_to, behind) = match kind {
            // OBJECT
            1 => {
                self.object_told = of_content;
                let (bonus, raw) = (u64::from(record.u32(28)), u64::from(record.u32(36)));
                (40, limited(if raw > 0 { raw } else { bonus.next_multiple_of(8) }, EXTRA_MAX)?)
            }
            // FREEOBJECTS
            2 => {
                let number = record.u64(16);
                if object <= CONTENT && object.saturating_add(number) > CONTENT {
                    return Err(unknown("the volume's content is gone".to_owned()));
                }
                (24, 0)
            }
            // WRITE
            3 => {
                let size = limited(record.u64(32), BLOCK_MAX)?;
                if of_content {
                    add(&mut self.written, record.u64(24), size)?;
                }
                let packed = record.0[50] != 0;
                (40, if packed { limited(record.u64(96), BLOCK_MAX)? } else { size })
            }
            // FREE
            4 => {
                let (offset, length) = (record.u64(16), record.u64(24));
                // Behind an object stands that nothing is behind its last block, changed or not.
                if told && of_content && length == u64::MAX {
                    self.tail = Some(offset);
                } else if of_content {
                    add(&mut self.freed, offset, length.min(u64::MAX - offset))?;
                }
                (32, 0)
            }
            // END
            5 => {
                self.at = At::End;
                (40, 0)
            }
            // SPILL
            7 => {
                let packed = record.u64(40);
                let size = if packed > 0 { packed } else { record.u64(16) };
                (24, limited(size, BLOCK_MAX)?)
            }
            // WRITE_EMBEDDED
            8 => {
                if of_content {
                    add(&mut self.written, record.u64(16), limited(record.u64(24), BLOCK_MAX)?)?;
                }
                (32, limited(u64::from(record.u32(52)).next_multiple_of(8), EXTRA_MAX)?)
            }
            // OBJECT_RANGE
            9 => (24, 0),
            _ => return Err(unknown(format!("a record of kind {kind}"))),
        };
        if record.u64(its_to) != to {
            return Err(unknown(format!("a record of kind {kind} is of another stream")));
        }
        Ok(behind)
    }

    fn begin(&mut self, record: &Record<'_>) -> Result<u64, SentError> {
        if record.u64(8) != MAGIC {
            return Err(unknown("it is no stream, or another machine's".to_owned()));
        }
        let (single, volume) = (record.u64(16) & 3 == SINGLE, record.u32(32) == VOLUME);
        if !single || !volume {
            return Err(unknown("it is not the stream of one volume".to_owned()));
        }
        let from = record.u64(48);
        if from != self.from {
            return Err(SentError::Other(from));
        }
        self.at = At::Within { to: record.u64(40) };
        limited(u64::from(record.u32(4)), EXTRA_MAX)
    }
}

fn add(to: &mut Vec<Range>, offset: u64, length: u64) -> Result<(), SentError> {
    if offset.checked_add(length).is_none() {
        return Err(unknown(format!("{length} bytes at {offset}")));
    }
    append(to, Range { offset, length });
    match to.len() > RUNS_MAX {
        true => Err(SentError::TooMany),
        false => Ok(()),
    }
}

/// 312 bytes.
struct Record<'a>(&'a [u8]);

impl Record<'_> {
    fn u32(&self, at: usize) -> u32 {
        self.0.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        self.0.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
    }
}

fn limited(bytes: u64, most: u64) -> Result<u64, SentError> {
    match bytes <= most {
        true => Ok(bytes),
        false => Err(unknown(format!("{bytes} bytes in one piece"))),
    }
}

fn unknown(what: String) -> SentError {
    SentError::Unknown(what)
}

#[cfg(test)]
mod tests {
    //! Goal: what a stream tells, told; and no stream that is something else is taken for one.
    //! Method: streams made as OpenZFS lays them out, taken in whole and byte by byte. Real ones come from the real
    //! `zfs send` (`tests/real`, `zfs-diff`).

    use super::*;

    const FROM: u64 = 0x1111_2222_3333_4444;
    const TO: u64 = 0x5555_6666_7777_8888;

    /// A record of a kind, with numbers at places; the widths are 4 and 8 bytes.
    fn record(kind: u32, words: &[(usize, u32)], numbers: &[(usize, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD];
        bytes[..4].copy_from_slice(&kind.to_ne_bytes());
        for (at, word) in words {
            bytes[*at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        for (at, number) in numbers {
            bytes[*at..at + 8].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }

    fn begin() -> Vec<u8> {
        let mut bytes =
            record(0, &[(4, 40), (32, VOLUME)], &[(8, MAGIC), (16, SINGLE), (40, TO), (48, FROM)]);
        bytes.extend([7; 40]);
        bytes
    }

    fn object(number: u64) -> Vec<u8> {
        let mut bytes = record(1, &[(28, 9)], &[(8, number), (40, TO)]);
        bytes.extend([7; 16]);
        bytes
    }

    fn write(object: u64, offset: u64, size: u64, packed: Option<u64>) -> Vec<u8> {
        let numbers =
            [(8, object), (24, offset), (32, size), (40, TO), (96, packed.unwrap_or_default())];
        let mut bytes = record(3, &[], &numbers);
        bytes[50] = u8::from(packed.is_some());
        bytes.resize(HEAD + packed.unwrap_or(size) as usize, 7);
        bytes
    }

    fn embedded(object: u64, offset: u64, length: u64) -> Vec<u8> {
        let numbers = [(8, object), (16, offset), (24, length), (32, TO)];
        let mut bytes = record(8, &[(52, 13)], &numbers);
        bytes.extend([7; 16]);
        bytes
    }

    fn free(object: u64, offset: u64, length: u64) -> Vec<u8> {
        record(4, &[], &[(8, object), (16, offset), (24, length), (32, TO)])
    }

    fn end() -> Vec<u8> {
        record(5, &[], &[(40, TO)])
    }

    type Pairs = Vec<(u64, u64)>;

    /// What is told as written, and as freed.
    fn told(stream: &[u8], piece: usize, sizes: [u64; 2]) -> Result<(Pairs, Pairs), SentError> {
        told_of(stream, piece, sizes, Some(0))
    }

    fn told_of(
        stream: &[u8],
        piece: usize,
        sizes: [u64; 2],
        ended: Option<u64>,
    ) -> Result<(Pairs, Pairs), SentError> {
        let mut sent = Sent::since(FROM);
        for piece in stream.chunks(piece) {
            sent.take_in(piece)?;
        }
        let told = sent.told(sizes, ended)?;
        let pairs = |of: Vec<Range>| of.into_iter().map(|r| (r.offset, r.length)).collect();
        Ok((pairs(told.written), pairs(told.freed)))
    }

    /// All kinds there are: of the content and of what else a volume has.
    fn stream() -> Vec<u8> {
        let spill = {
            let mut bytes = record(7, &[], &[(8, 2), (16, 512), (24, TO)]);
            bytes.extend([7; 512]);
            bytes
        };
        [
            begin(),
            record(9, &[], &[(8, 0), (16, 32), (24, TO)]),
            record(2, &[], &[(8, 3), (16, 29), (24, TO)]),
            object(1),
            free(1, 1 << 20, u64::MAX),
            write(1, 0, 16384, None),
            write(1, 16384, 16384, Some(512)),
            embedded(1, 65536, 16384),
            free(1, 131_072, 65536),
            object(2),
            free(2, 512, u64::MAX),
            object(5),
            write(5, 0, 512, None),
            spill,
            end(),
        ]
        .concat()
    }

    #[test]
    fn what_was_written_and_freed_is_told_however_it_comes() {
        let expected = (vec![(0, 32768), (65536, 16384)], vec![(131_072, 65536)]);
        for piece in [1, 7, 311, 312, 313, 4096, usize::MAX] {
            assert_eq!(told(&stream(), piece, [1 << 20; 2]), Ok(expected.clone()), "in {piece}");
        }
    }

    #[test]
    fn what_lay_behind_the_last_block_counts_as_freed() {
        let of = |records: &[Vec<u8>], ended| {
            let stream = [begin(), records.concat(), end()].concat();
            told_of(&stream, usize::MAX, [1 << 20; 2], ended)
        };
        let tail = free(1, 65536, u64::MAX);
        let records = [object(1), tail.clone(), write(1, 0, 512, None)];
        let freed = |pairs| Ok((vec![(0, 512)], pairs));
        assert_eq!(of(&records, Some(4096)), freed(vec![]));
        assert_eq!(of(&records, Some(65536)), freed(vec![]));
        assert_eq!(of(&records, Some(81920)), freed(vec![(65536, 16384)]));
        assert_eq!(of(&records, None), freed(vec![(65536, (1 << 20) - 65536)]));
        // Where it does not stand behind its object it was freed.
        let rest = Ok((vec![], vec![(65536, (1 << 20) - 65536)]));
        assert_eq!(of(&[object(1), tail.clone(), tail.clone()], Some(0)), rest);
        assert_eq!(of(std::slice::from_ref(&tail), Some(0)), rest);
        // It is told before any block is.
        let mut sent = Sent::since(FROM);
        sent.take_in(&[begin(), object(1)].concat()).expect("a stream");
        assert_eq!(sent.last_block_ends(), None);
        sent.take_in(&tail).expect("a stream");
        assert_eq!(sent.last_block_ends(), Some(65536));
    }

    #[test]
    fn the_rest_of_the_longer_one_is_told_and_nothing_outside() {
        let stream = [begin(), write(1, 32768, 65536, Some(1)), end()].concat();
        for (sizes, expected) in [
            ([65536, 131_072], vec![(32768, 98304)]),
            ([131_072, 65536], vec![(32768, 98304)]),
            ([65536, 65536], vec![(32768, 32768)]),
            ([16384, 16384], vec![]),
        ] {
            assert_eq!(told(&stream, 100, sizes), Ok((expected, vec![])), "{sizes:?}");
        }
    }

    #[test]
    fn what_is_no_such_stream_is_refused() {
        let unlike = |stream: Vec<u8>| {
            let told = told(&stream, usize::MAX, [1 << 20; 2]);
            assert!(matches!(told, Err(SentError::Unknown(_))), "{told:?}");
        };
        let with = |at: usize, bytes: &[u8]| {
            let mut stream = stream();
            stream[at..at + bytes.len()].copy_from_slice(bytes);
            stream
        };
        unlike(b"usage: zfs send".repeat(30));
        // Another kind first; a package; a file system's; more behind it than there can be.
        unlike(with(0, &[3]));
        unlike(with(16, &[2]));
        unlike(with(32, &[2]));
        unlike(with(4, &[0xff; 4]));
        // The object set anew in the middle, a kind there is not, a record of another stream.
        unlike([begin(), begin()].concat());
        unlike([begin(), record(6, &[], &[(32, TO)]), end()].concat());
        unlike([begin(), free(1, 0, 512), record(5, &[], &[(40, FROM)])].concat());
        // A block larger than any, a range behind the last number, the content gone.
        unlike([begin(), record(3, &[], &[(8, 1), (32, BLOCK_MAX + 1), (40, TO)])].concat());
        unlike([begin(), embedded(1, u64::MAX - 1, 512)].concat());
        unlike([begin(), record(2, &[], &[(8, 0), (16, 5), (24, TO)])].concat());
        // Something behind its end.
        unlike([stream(), free(1, 0, 512)].concat());
    }

    #[test]
    fn one_from_another_snapshot_or_cut_off_is_refused() {
        let mut other = stream();
        other[48..56].copy_from_slice(&5_u64.to_ne_bytes());
        assert_eq!(told(&other, usize::MAX, [0; 2]), Err(SentError::Other(5)));
        let whole = stream();
        for length in 0..whole.len() {
            let told = told(&whole[..length], usize::MAX, [1 << 20; 2]);
            assert_eq!(told, Err(SentError::CutOff), "cut off at {length}");
        }
    }
}
