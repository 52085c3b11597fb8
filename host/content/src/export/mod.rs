//! Content written out as an image of its own.
//!
//! ```text
//! pieces of the content, taken by threads side by side
//!    │ read, unpacked                      or blocks shared with the source
//!    ▼
//! raw file or device │ qcow2, plain or packed │ a stream, in order
//!    │ and, where wanted, in order through SHA-256
//! flushed, then named
//! ```
//! A file has no name before it is whole and durable ([`target`]): whatever stops an export leaves
//! nothing behind. Zeroes become holes.

mod order;
mod qcow2;
mod raw;
mod stream;
mod target;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use crate::pieces::{Cut, How, Piece, each, first_shared};
use crate::{Content, ContentError, SharedRange, Watch};
use order::{Digest, Order};
use target::Target;

/// How the bytes go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// The content as it is.
    Raw,
    /// A qcow2 image, version 3, clusters of 64 KiB.
    Qcow2,
}

/// How clusters of a qcow2 image are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Packing {
    /// Deflate: any QEMU reads it.
    Zlib,
    /// Zstandard: QEMU 5.1 and later; several times faster.
    Zstd,
}

/// Where to.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A file by this name, which gets it when it is whole; or a block device.
    Path(PathBuf),
    /// A stream: raw only.
    Stdout,
}

/// What is wanted.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The format.
    pub format: Format,
    /// Compression; none for plain.
    pub packing: Option<Packing>,
    /// Its level; none: the fastest that is worth it.
    pub level: Option<i32>,
    /// SHA-256 of the content, as a raw image would have it.
    pub digest: bool,
    /// Replace what is there.
    pub force: bool,
    /// Whether the image is made durable before it is named.
    pub sync: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Exported {
    /// Guest-visible size in bytes.
    pub virtual_size: u64,
    /// Bytes of content read.
    pub read_bytes: u64,
    /// Bytes whose blocks are shared with the source.
    pub shared_bytes: u64,
    /// Bytes written to the target.
    pub written_bytes: u64,
    /// SHA-256 of the content in hexadecimal, where it was wanted.
    pub sha256: Option<String>,
}

/// What takes pieces of content. Called from several threads, in no order.
trait Sink: Sync {
    /// Bytes; some of them may be zeroes.
    fn data(&self, number: u64, start: u64, bytes: &[u8]) -> Result<(), ContentError>;
    /// A run of zeroes.
    fn zero(&self, number: u64, start: u64, length: u64) -> Result<(), ContentError>;
    /// A run of data comes, of which no byte was given yet.
    fn ahead(&self, _start: u64, _length: u64) {}
    /// Whether blocks can be shared between that file and the target: tried with the first of them, which
    /// must be moved there in any case.
    fn can_share(&self, _start: u64, _range: SharedRange<'_>) -> Result<bool, ContentError> {
        Ok(false)
    }
    /// Shares blocks; `false`: it cannot.
    fn share(&self, _start: u64, _range: SharedRange<'_>) -> Result<bool, ContentError> {
        Ok(false)
    }
    /// Ends it: what remains to be written. Gives the bytes written in all.
    fn finish(&self) -> Result<u64, ContentError>;
    /// Ends waiting for others: one of them failed.
    fn give_up(&self) {}
}

/// Writes content out.
pub fn export(
    content: &dyn Content,
    to: &Destination,
    wanted: &Wanted,
    watch: &Watch<'_>,
) -> Result<Exported, ContentError> {
    match to {
        Destination::Stdout => {
            if wanted.format != Format::Raw {
                let why = "only raw images can be written to a stream".to_owned();
                return Err(ContentError::Target { name: "standard output".to_owned(), why });
            }
            to_stream(content, std::io::stdout(), "standard output", wanted.digest, watch)
        }
        Destination::Path(path) => to_path(content, path, wanted, watch, &|_| Ok(())),
    }
}

/// Writes content out in place of a file that is there. `dress` is given the new file when it is whole, and
/// before it has the name: for owner and mode.
pub fn replace(
    content: &dyn Content,
    path: &Path,
    format: Format,
    watch: &Watch<'_>,
    dress: &dyn Fn(&File) -> Result<(), ContentError>,
) -> Result<Exported, ContentError> {
    let wanted =
        Wanted { format, packing: None, level: None, digest: false, force: true, sync: true };
    to_path(content, path, &wanted, watch, dress)
}

/// Writes content over a block device, and zeroes over what is behind it. `same` is given the device when it is
/// open to nobody else, and before anything is written: for a last look at what it is.
pub fn overwrite(
    content: &dyn Content,
    path: &Path,
    watch: &Watch<'_>,
    same: &dyn Fn(&File) -> Result<(), ContentError>,
) -> Result<Exported, ContentError> {
    let target = Target::open(path, true, true)?;
    if target.is_file() {
        let why = "it is no block device".to_owned();
        return Err(ContentError::Target { name: target.name().to_owned(), why });
    }
    same(target.file())?;
    let sink = raw::Raw::new(&target, content.size())?;
    let done = run(content, &sink, Cut { grain: 4096, share: false, holes: false }, false, watch)?;
    sink.clear_rest()?;
    target.keep(true)?;
    Ok(done)
}

/// Writes raw content to a stream, in order.
fn to_stream(
    content: &dyn Content,
    to: impl Write + Send,
    name: &str,
    digest: bool,
    watch: &Watch<'_>,
) -> Result<Exported, ContentError> {
    let sink = stream::Stream::new(to, name);
    run(content, &sink, Cut { grain: 4096, share: false, holes: false }, digest, watch)
}

fn to_path(
    content: &dyn Content,
    path: &Path,
    wanted: &Wanted,
    watch: &Watch<'_>,
    dress: &dyn Fn(&File) -> Result<(), ContentError>,
) -> Result<Exported, ContentError> {
    let target = Target::open(path, wanted.force, wanted.sync)?;
    let share = target.is_file() && wanted.packing.is_none() && !wanted.digest;
    let done = match wanted.format {
        Format::Raw => {
            if wanted.packing.is_some() {
                let why = "raw images cannot be compressed; --format qcow2 can".to_owned();
                return Err(ContentError::Target { name: target.name().to_owned(), why });
            }
            let sink = raw::Raw::new(&target, content.size())?;
            run(content, &sink, Cut { grain: 4096, share, holes: true }, wanted.digest, watch)?
        }
        Format::Qcow2 => {
            if !target.is_file() {
                let why = "a qcow2 image is written to a file, not to a device".to_owned();
                return Err(ContentError::Target { name: target.name().to_owned(), why });
            }
            let packing = wanted.packing.map(|p| (p, wanted.level));
            let sink = qcow2::Qcow2::new(&target, content.size(), packing)?;
            run(
                content,
                &sink,
                Cut { grain: qcow2::CLUSTER, share, holes: false },
                wanted.digest,
                watch,
            )?
        }
    };
    dress(target.file())?;
    target.keep(wanted.sync)?;
    Ok(done)
}

/// One thread's own.
#[derive(Default)]
struct Own {
    buffer: Vec<u8>,
}

impl Own {
    /// So many bytes of memory that begins at a multiple of what direct writes want.
    fn bytes(&mut self, length: usize) -> &mut [u8] {
        let grain = target::DIRECT_GRAIN as usize;
        if self.buffer.len() < length + grain {
            self.buffer.resize(length + grain, 0);
        }
        let skip = self.buffer.as_ptr().align_offset(grain).min(grain);
        &mut self.buffer[skip..skip + length]
    }
}

fn run(
    content: &dyn Content,
    sink: &dyn Sink,
    mut cut: Cut,
    digest: bool,
    watch: &Watch<'_>,
) -> Result<Exported, ContentError> {
    // Found out before the threads begin: a run to be shared is given to one of them whole, and it
    // alone would copy it.
    if let Some((start, range)) = first_shared(content, cut)? {
        cut.share = sink.can_share(start, range)?;
    }
    let (sharing, failed) = (AtomicBool::new(true), AtomicBool::new(false));
    let shared = std::sync::atomic::AtomicU64::new(0);
    let read = std::sync::atomic::AtomicU64::new(0);
    let digest = digest.then(Digest::default);
    let order = Order::default();
    let data = |own: &mut Own, number: u64, start: u64, length: u64| -> Result<(), ContentError> {
        // At most a piece, which fits.
        let bytes = own.bytes(length as usize);
        content.read_at(start, bytes)?;
        read.fetch_add(length, Ordering::Relaxed);
        sink.data(number, start, bytes)?;
        match &digest {
            Some(digest) => order.turn(number, || digest.data(bytes)),
            None => Ok(()),
        }
    };
    let work = |own: &mut Own, piece: Piece<'_>| match piece {
        Piece::Data { number, start, length } => data(own, number, start, length),
        Piece::Zero { number, start, length } => {
            sink.zero(number, start, length)?;
            match &digest {
                Some(digest) => order.turn(number, || digest.zero(length)),
                None => Ok(()),
            }
        }
        Piece::Shared { number, start, range } => {
            // Holes among it are not counted; to find them takes a while, which passes meanwhile.
            let count = || match cut.holes {
                true => content.data_bytes(start, start + range.length),
                false => Ok(range.length),
            };
            let (done, counted) = std::thread::scope(|scope| {
                let counting = cut.holes.then(|| scope.spawn(count));
                let done = sink.share(start, range);
                (done, counting.map_or_else(count, |c| c.join().unwrap_or(Ok(range.length))))
            });
            if done? {
                shared.fetch_add(counted?, Ordering::Relaxed);
                return Ok(());
            }
            sharing.store(false, Ordering::Relaxed);
            let (mut at, end) = (start, start + range.length);
            while at < end {
                let stop = ((at / crate::pieces::PIECE + 1) * crate::pieces::PIECE).min(end);
                data(own, number, at, stop - at)?;
                at = stop;
            }
            Ok(())
        }
    };
    // One that fails must not leave others waiting for their turn.
    let guarded = |own: &mut Own, piece: Piece<'_>| {
        let result = work(own, piece);
        if result.is_err() {
            order.give_up();
            sink.give_up();
        }
        result
    };
    let ahead = |start, length| sink.ahead(start, length);
    let how = How { cut, sharing: &sharing, failed: &failed, ahead: &ahead };
    each(content, &how, watch, &Own::default, &guarded)?;
    let written = sink.finish()?;
    Ok(Exported {
        virtual_size: content.size(),
        read_bytes: read.into_inner(),
        shared_bytes: shared.into_inner(),
        written_bytes: written,
        sha256: digest.map(Digest::finish),
    })
}
