//! Where the bytes of a file lie on its file system: two files that share blocks are alike there.
//!
//! `FS_IOC_FIEMAP`, Documentation/filesystems/fiemap.rst of the kernel.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

use crate::{At, Extent, Map};

/// The head of `struct fiemap`, and the extents that follow it.
#[repr(C)]
struct Request {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    extents: [Found; AT_ONCE],
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Found {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_longs: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const AT_ONCE: usize = 512;
/// What waits in memory is given a place first.
const SYNC: u32 = 1;
const LAST: u32 = 1;
/// No place yet, or one that does not hold the bytes as they are read.
const ELSEWHERE: u32 = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400;
/// Given a place, and nothing written: reads as zeroes.
const UNWRITTEN: u32 = 0x800;
const SHARED: u32 = 0x2000;
const FIEMAP: libc::Ioctl = libc::_IOWR::<[u64; 4]>(b'f' as u32, 11);

/// Where a file's bytes lie.
#[derive(Debug, Default)]
pub struct Laid {
    /// Each at an offset of its device.
    pub map: Map,
    /// Bytes in blocks that no other file has.
    pub own: u64,
    /// Bytes in blocks that another file has too.
    pub shared: u64,
}

/// Asks the file system; none where it does not say for all of it. What somebody writes meanwhile may be missed.
pub fn laid(file: &File, size: u64) -> io::Result<Option<Laid>> {
    let mut laid = Laid::default();
    let nothing = Found {
        logical: 0,
        physical: 0,
        length: 0,
        reserved_longs: [0; 2],
        flags: 0,
        reserved: [0; 3],
    };
    let mut request = Box::new(Request {
        start: 0,
        length: 0,
        flags: 0,
        mapped: 0,
        count: AT_ONCE as u32,
        reserved: 0,
        extents: [nothing; AT_ONCE],
    });
    let mut done = false;
    while !done && laid.map.end() < size {
        request.start = laid.map.end();
        request.length = size - request.start;
        request.flags = if request.start == 0 { SYNC } else { 0 };
        request.mapped = 0;
        // SAFETY: the kernel reads the head and writes at most `count` extents behind it, for which there is room,
        // and all of which may be any bits.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FIEMAP, &raw mut *request) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::ENOTTY | libc::EBADR | libc::EINVAL) => Ok(None),
                _ => Err(error),
            };
        }
        let found = request.extents.get(..request.mapped as usize).unwrap_or_default();
        // None: from here on there is a hole.
        done = found.is_empty();
        let before = laid.map.end();
        for one in found {
            done |= one.flags & LAST != 0;
            if one.flags & ELSEWHERE != 0 || !push(&mut laid, one, size) {
                return Ok(None);
            }
        }
        done |= laid.map.end() == before;
    }
    let rest = size - laid.map.end().min(size);
    Ok((rest == 0 || hole(&mut laid.map, size)).then_some(laid))
}

/// False: more, or other, than can be kept.
fn push(laid: &mut Laid, found: &Found, size: u64) -> bool {
    let Some(end) = found.logical.checked_add(found.length) else { return false };
    // Asked for the middle of an extent, it says the whole of it.
    let start = found.logical.max(laid.map.end());
    let end = end.min(size);
    if start >= end {
        return true;
    }
    if start > laid.map.end() && !hole(&mut laid.map, start) {
        return false;
    }
    let Some(physical) = found.physical.checked_add(start - found.logical) else { return false };
    let length = end - start;
    let at = match found.flags & UNWRITTEN {
        0 => At::Data(physical),
        _ => At::Zero,
    };
    match found.flags & SHARED {
        0 => laid.own = laid.own.saturating_add(length),
        _ => laid.shared = laid.shared.saturating_add(length),
    }
    laid.map.push(&Extent { start, length, at }, "").is_ok()
}

fn hole(map: &mut Map, end: u64) -> bool {
    let start = map.end();
    map.push(&Extent { start, length: end - start, at: At::Zero }, "").is_ok()
}
