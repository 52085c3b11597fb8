//! An image, read by the extents that its plugin listed.

use std::sync::{Arc, Mutex};

use snapslot_disk::Disk;

use crate::unpack::unpack;
use crate::{At, Compression, Content, ContentError, Extent, Run, SharedRange};

/// Extents kept of one view: 768 MiB of memory, and what a disk of 2 TiB has in which no two clusters
/// of 64 KiB lie side by side.
pub const EXTENTS_MAX: usize = 32 << 20;

/// One extent, small: there can be millions.
#[derive(Clone, Copy, Debug)]
struct Entry {
    start: u64,
    /// Where it lies in the image, where it does.
    offset: u64,
    /// Bytes of a packed one, and its kind: see [`Entry::at`].
    packed: u32,
}

const ZERO: u32 = u32::MAX;
const BACKING: u32 = u32::MAX - 1;
const DATA: u32 = u32::MAX - 2;
/// Set in the length of a packed extent that is a Zstandard frame.
const ZSTD: u32 = 1 << 30;

impl Entry {
    fn at(&self) -> At {
        match self.packed {
            ZERO => At::Zero,
            BACKING => At::Backing,
            DATA => At::Data(self.offset),
            packed => At::Packed {
                offset: self.offset,
                length: packed & !ZSTD,
                method: match packed & ZSTD {
                    0 => Compression::Deflate,
                    _ => Compression::Zstd,
                },
            },
        }
    }
}

/// The extents of one view, ascending and without gaps.
#[derive(Debug, Default)]
pub struct Map {
    entries: Vec<Entry>,
    end: u64,
}

impl Map {
    /// Adds what comes next. `name` is what to say of the image.
    pub fn push(&mut self, extent: &Extent, name: &str) -> Result<(), ContentError> {
        let unlike = || ContentError::Unlike { name: name.to_owned(), at: extent.start };
        let end = extent.start.checked_add(extent.length).ok_or_else(unlike)?;
        if extent.start != self.end || extent.length == 0 {
            return Err(unlike());
        }
        let (offset, packed) = match extent.at {
            At::Zero => (0, ZERO),
            At::Backing => (0, BACKING),
            At::Data(offset) => (offset, DATA),
            At::Packed { offset, length, method } => {
                if length >= ZSTD || extent.length > PACKED_MAX {
                    return Err(unlike());
                }
                (offset, length | if method == Compression::Zstd { ZSTD } else { 0 })
            }
        };
        let goes_on = self.entries.last().is_some_and(|last| {
            last.packed == packed
                && match extent.at {
                    At::Zero | At::Backing => true,
                    At::Data(offset) => {
                        last.offset.checked_add(extent.start - last.start) == Some(offset)
                    }
                    At::Packed { .. } => false,
                }
        });
        self.end = end;
        if goes_on {
            return Ok(());
        }
        if self.entries.len() >= EXTENTS_MAX {
            return Err(ContentError::TooMany { name: name.to_owned(), limit: EXTENTS_MAX });
        }
        self.entries.push(Entry { start: extent.start, offset, packed });
        Ok(())
    }

    /// The guest offset up to which it goes.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The extent that the offset lies in, whole.
    pub fn find(&self, offset: u64) -> Option<Extent> {
        let next = self.entries.partition_point(|e| e.start <= offset);
        let entry = self.entries.get(next.checked_sub(1)?)?;
        let end = self.entries.get(next).map_or(self.end, |e| e.start);
        (offset < end).then(|| Extent {
            start: entry.start,
            length: end - entry.start,
            at: entry.at(),
        })
    }
}

/// Bytes of the largest packed extent: the largest cluster of qcow2. More would be a bomb.
const PACKED_MAX: u64 = 2 << 20;

/// An unpacked extent: guest programs read it in small parts, one after the other.
struct Unpacked {
    start: u64,
    bytes: Vec<u8>,
}

/// Fills what lies in one extent, from a guest offset on; `false`: it would have to wait.
type Fill<'a> = dyn Fn(&Extent, u64, &mut [u8]) -> Result<bool, ContentError> + 'a;

/// The content of an image.
pub struct Mapped {
    name: String,
    disk: Arc<dyn Disk>,
    map: Map,
    backing: Option<Arc<dyn Content>>,
    last: Mutex<Option<Unpacked>>,
}

impl Mapped {
    /// The view whose extents these are. Without `backing`, content in a backing file is an error
    /// when it is read.
    pub fn new(
        name: &str,
        disk: Arc<dyn Disk>,
        map: Map,
        backing: Option<Arc<dyn Content>>,
    ) -> Self {
        Mapped { name: name.to_owned(), disk, map, backing, last: Mutex::new(None) }
    }

    fn find(&self, offset: u64) -> Result<Extent, ContentError> {
        let (size, length) = (self.map.end(), 1);
        self.map.find(offset).ok_or(ContentError::Outside { size, offset, length })
    }

    fn backing(&self) -> Result<&Arc<dyn Content>, ContentError> {
        self.backing.as_ref().ok_or_else(|| ContentError::NoBacking { name: self.name.clone() })
    }

    /// Has each part of `buf` filled that lies in one extent, given the extent and the part's guest offset;
    /// `false` as soon as one is not.
    fn each_extent(
        &self,
        offset: u64,
        buf: &mut [u8],
        fill: &Fill<'_>,
    ) -> Result<bool, ContentError> {
        self.within(offset, buf.len() as u64)?;
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let extent = self.find(at)?;
            let n = (extent.start + extent.length - at).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(n);
            if !fill(&extent, at, now)? {
                return Ok(false);
            }
            (at, rest) = (at + n as u64, later);
        }
        Ok(true)
    }

    fn read_packed(
        &self,
        extent: &Extent,
        within: u64,
        buf: &mut [u8],
    ) -> Result<(), ContentError> {
        let At::Packed { offset, length, method } = extent.at else { return Ok(()) };
        let from = within as usize;
        let whole = within == 0 && buf.len() as u64 == extent.length;
        if !whole
            && let Ok(last) = self.last.lock()
            && let Some(last) = last.as_ref().filter(|l| l.start == extent.start)
        {
            buf.copy_from_slice(&last.bytes[from..from + buf.len()]);
            return Ok(());
        }
        // The last sector listed may lie past the end of the image.
        let there = self.disk.size()?.saturating_sub(offset).min(u64::from(length));
        let mut packed = Vec::new();
        self.disk.read_append(offset, there as usize, &mut packed)?;
        let failed = |why| ContentError::Packed {
            name: self.name.clone(),
            offset,
            length: extent.length,
            why,
        };
        if whole {
            return unpack(method, &packed, buf).map_err(failed);
        }
        let mut bytes = vec![0; extent.length as usize];
        unpack(method, &packed, &mut bytes).map_err(failed)?;
        buf.copy_from_slice(&bytes[from..from + buf.len()]);
        if let Ok(mut last) = self.last.lock() {
            *last = Some(Unpacked { start: extent.start, bytes });
        }
        Ok(())
    }
}

/// Reads what lies before the end of a backing file; behind it are zeroes.
fn read_below(below: &dyn Content, offset: u64, buf: &mut [u8]) -> Result<(), ContentError> {
    let there = below.size().saturating_sub(offset).min(buf.len() as u64) as usize;
    let (old, new) = buf.split_at_mut(there);
    new.fill(0);
    if old.is_empty() { Ok(()) } else { below.read_at(offset, old) }
}

impl Content for Mapped {
    fn size(&self) -> u64 {
        self.map.end()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), ContentError> {
        self.each_extent(offset, buf, &|extent, at, now| {
            let within = at - extent.start;
            match extent.at {
                At::Zero => now.fill(0),
                At::Data(host) => self.disk.read_at(host + within, now)?,
                At::Packed { .. } => self.read_packed(extent, within, now)?,
                At::Backing => read_below(&**self.backing()?, at, now)?,
            }
            Ok(true)
        })
        .map(|_| ())
    }

    fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> Result<bool, ContentError> {
        self.each_extent(offset, buf, &|extent, at, now| match extent.at {
            At::Zero => {
                now.fill(0);
                Ok(true)
            }
            At::Data(host) => Ok(self.disk.read_at_once(host + (at - extent.start), now)?),
            At::Packed { .. } | At::Backing => Ok(false),
        })
    }

    fn run(&self, offset: u64, limit: u64) -> Result<Run, ContentError> {
        self.within(offset, limit - offset)?;
        let of = |offset: u64| -> Result<(u64, bool), ContentError> {
            let extent = self.find(offset)?;
            let end = (extent.start + extent.length).min(limit);
            match extent.at {
                At::Zero => Ok((end, true)),
                At::Data(_) | At::Packed { .. } => Ok((end, false)),
                At::Backing => {
                    let below = self.backing()?;
                    let there = below.size().min(end);
                    if offset >= there {
                        return Ok((end, true));
                    }
                    let run = below.run(offset, there)?;
                    Ok((run.start + run.length, run.zero))
                }
            }
        };
        let (mut end, zero) = of(offset)?;
        while end < limit {
            match of(end)? {
                (next, same) if same == zero => end = next,
                _ => break,
            }
        }
        Ok(Run { start: offset, length: end - offset, zero })
    }

    fn shared(&self, offset: u64, limit: u64) -> Option<SharedRange<'_>> {
        let extent = self.map.find(offset)?;
        let end = (extent.start + extent.length).min(limit);
        match extent.at {
            At::Data(host) => Some(SharedRange {
                file: self.disk.descriptor()?,
                offset: host + (offset - extent.start),
                length: end - offset,
            }),
            At::Backing => {
                let below = self.backing.as_ref()?;
                below.shared(offset, end.min(below.size()).max(offset))
            }
            At::Zero | At::Packed { .. } => None,
        }
    }
}
