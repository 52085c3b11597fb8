//! What is served.

use std::io;

/// What a run of bytes is, as `base:allocation` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes, above zero.
    pub length: u64,
    /// Whether nothing is allocated for it.
    pub hole: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
}

/// Sizes of requests, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests begin and end at multiples of this, a power of two.
    pub smallest: u32,
    /// The size that costs least.
    pub preferred: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { smallest: 1, preferred: 4096 }
    }
}

/// A disk that is served. Called from many threads at once; requests are within its size.
///
/// A write that has returned is seen by every read that begins afterwards, on any connection; it is
/// durable once a `flush` that began afterwards has returned.
pub trait Export: Send + Sync {
    /// Its size in bytes. It never changes.
    fn size(&self) -> u64;

    /// Whether nobody may write it.
    fn read_only(&self) -> bool {
        true
    }

    /// Sizes of requests.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Fills `buf`.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Fills `buf` if that needs no waiting for a device; `false`: it would, and `buf` is anything.
    fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        let _ = (offset, buf);
        Ok(false)
    }

    /// Writes all of `data`.
    fn write(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Whether a write of so many bytes may be done by the thread that reads requests: that it hardly
    /// ever waits for a device.
    fn writes_at_once(&self) -> bool {
        false
    }

    /// Makes a run read as zeroes; `punch`: its room may be given back.
    fn zero(&self, _offset: u64, _length: u64, _punch: bool) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Nobody needs what is in this run any longer. A hint.
    fn trim(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    /// Makes every write that has returned durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// What a run consists of, from `offset` on: one or more extents, not beyond `length` in all, at
    /// most `most` of them.
    fn extents(&self, _offset: u64, length: u64, _most: usize) -> io::Result<Vec<Extent>> {
        Ok(vec![Extent { length, hole: false, zero: false }])
    }

    /// A connection has begun to use it, or (`false`) has ended.
    fn used(&self, _by_one_more: bool) {}
}
