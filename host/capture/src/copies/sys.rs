//! Calls of the kernel that have no safe wrapper here: cloning, inode flags, extended attributes.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::libc;

/// Inode flags, as `lsattr` shows them (include/uapi/linux/fs.h, FS_*_FL).
pub(super) mod flag {
    /// No change at all.
    pub(in super::super) const IMMUTABLE: i32 = 0x10;
    /// Only appended to.
    pub(in super::super) const APPEND: i32 = 0x20;
    /// Compressed.
    pub(in super::super) const COMPRESS: i32 = 0x4;
    /// Overwritten in place (btrfs). A clone needs both files alike in this.
    pub(in super::super) const NO_COW: i32 = 0x0080_0000;
}

/// `struct fsxattr` of include/uapi/linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) flags: u32,
    pub(super) extent_size: u32,
    pub(super) extents: u32,
    pub(super) project: u32,
    pub(super) cow_extent_size: u32,
    pad: [u8; 8],
}

/// FS_XFLAG_EXTSIZE and FS_XFLAG_COWEXTSIZE: the sizes in the layout count.
pub(super) const LAYOUT_SIZES: u32 = 0x800 | 0x1_0000;

const GET_LAYOUT: libc::Ioctl = libc::_IOR::<Layout>(b'X' as u32, 31);
const SET_LAYOUT: libc::Ioctl = libc::_IOW::<Layout>(b'X' as u32, 32);

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes `to` share all blocks of `from`: `false` where this cannot be.
pub(super) fn clone_whole(from: &File, to: &File) -> io::Result<bool> {
    // SAFETY: both descriptors are open; FICLONE takes a descriptor by value and no memory.
    shared(done(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }))
}

/// The same for the first bytes; 0: for all.
pub(super) fn clone_start(from: &File, to: &File, length: u64) -> io::Result<bool> {
    let range = libc::file_clone_range {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: 0,
        src_length: length,
        dest_offset: 0,
    };
    // SAFETY: the kernel reads one `file_clone_range`, which lives until the call returns.
    shared(done(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) }))
}

/// ioctl_ficlone(2): what says that these two files cannot share, rather than that it went wrong.
fn shared(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) => match e.raw_os_error() {
            Some(
                libc::EOPNOTSUPP
                | libc::ENOTTY
                | libc::ENOSYS
                | libc::EXDEV
                | libc::EINVAL
                | libc::ETXTBSY,
            ) => Ok(false),
            _ => Err(e),
        },
    }
}

/// Inode flags; 0 where the file system has none.
pub(super) fn flags(file: &File) -> i32 {
    let mut flags: libc::c_int = 0;
    // SAFETY: the kernel writes one int (whatever the call's number says), which is there.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) };
    if result < 0 { 0 } else { flags }
}

/// Sets inode flags.
pub(super) fn set_flags(file: &File, flags: i32) -> io::Result<()> {
    let flags: libc::c_int = flags;
    // SAFETY: the kernel reads one int, which lives until the call returns.
    done(unsafe { libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) })
}

/// Extent sizes and project; `None` where the file system has none.
pub(super) fn layout(file: &File) -> Option<Layout> {
    let mut layout = Layout::default();
    // SAFETY: the kernel writes one `struct fsxattr`, whose shape and size `Layout` has.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), GET_LAYOUT, &raw mut layout) };
    (result >= 0).then_some(layout)
}

/// Sets extent sizes and project.
pub(super) fn set_layout(file: &File, layout: &Layout) -> io::Result<()> {
    // SAFETY: the kernel reads one `struct fsxattr`, whose shape and size `Layout` has.
    done(unsafe { libc::ioctl(file.as_raw_fd(), SET_LAYOUT, std::ptr::from_ref(layout)) })
}

/// What a call writes to a buffer.
fn written(call: impl Fn(&mut [u8]) -> isize) -> io::Result<Vec<u8>> {
    // XATTR_LIST_MAX and XATTR_SIZE_MAX are 64 KiB: the kernel never has more.
    let mut buf = vec![0; 65_536];
    match usize::try_from(call(&mut buf)) {
        Ok(length) => {
            buf.truncate(length);
            Ok(buf)
        }
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Names of the extended attributes this user can see; none where there are none.
pub(super) fn attributes(file: &File) -> io::Result<Vec<CString>> {
    let list = written(|buf| {
        // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
        unsafe { libc::flistxattr(file.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) }
    });
    match list {
        Ok(list) => Ok(list
            .split(|b| *b == 0)
            .filter(|n| !n.is_empty())
            .filter_map(|n| CString::new(n).ok())
            .collect()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
            Ok(Vec::new())
        }
        Err(e) => Err(e),
    }
}

/// The value of one; `None` if it is not there.
pub(super) fn attribute(file: &File, name: &CStr) -> io::Result<Option<Vec<u8>>> {
    let value = written(|buf| {
        // SAFETY: `name` ends in zero; the kernel writes at most `buf.len()` bytes to `buf`.
        unsafe {
            libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
        }
    });
    match value {
        Ok(value) => Ok(Some(value)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets one.
pub(super) fn set_attribute(file: &File, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` ends in zero; the kernel reads `value.len()` bytes of `value`.
    done(unsafe {
        libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0)
    })
}

/// Takes one away.
pub(super) fn remove_attribute(file: &File, name: &CStr) -> io::Result<()> {
    // SAFETY: `name` ends in zero; nothing else is read.
    done(unsafe { libc::fremovexattr(file.as_raw_fd(), name.as_ptr()) })
}
