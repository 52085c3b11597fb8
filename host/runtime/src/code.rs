//! Compiled code, where it is run: mapped from its file, not read and copied. That halves the time in which the
//! process for plugins becomes ready.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use nix::libc;
use wasmtime::CustomCodeMemory;

/// Compiled code has a few megabytes; that of a language's whole runtime some hundred.
pub(crate) const CODE_MAX: u64 = 1 << 30;

/// Maps a file of compiled code of so many bytes, to be read. None where that cannot be done. What is mapped stays until the process
/// ends, as what is compiled there does.
///
/// Pages that nobody has touched yet are as the file is: it must be one that only its makers can write.
pub(crate) fn map(file: &File, size: u64) -> Option<NonNull<[u8]>> {
    if !Pages::SUFFICE {
        return None;
    }
    let length = usize::try_from(size).ok().filter(|n| *n > 0 && size <= CODE_MAX)?;
    // SAFETY: a new private mapping at an address of the system's choice touches nothing that is.
    let at = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_PRIVATE,
            file.as_raw_fd(),
            0,
        )
    };
    if at == libc::MAP_FAILED {
        return None;
    }
    Some(NonNull::slice_from_raw_parts(NonNull::new(at.cast())?, length))
}

/// Makes code executable, wherever it lies: wasmtime itself does so only in memory it mapped.
pub(crate) struct Pages;

impl Pages {
    fn protect(from: *const u8, length: usize, how: i32) -> wasmtime::Result<()> {
        // SAFETY: wasmtime names pages of compiled code that it holds, and runs none of it yet or any more.
        let done = unsafe { libc::mprotect(from.cast_mut().cast(), length, how) };
        match done {
            0 => Ok(()),
            _ => Err(wasmtime::Error::from(std::io::Error::last_os_error())),
        }
    }
}

impl Pages {
    /// Whether protecting pages is all it takes to run what was written there. Processors of other kinds must be told
    /// of new code, which wasmtime does for memory of its own.
    pub(crate) const SUFFICE: bool = cfg!(target_arch = "x86_64");
}

impl CustomCodeMemory for Pages {
    fn required_alignment(&self) -> usize {
        // SAFETY: it asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(page).unwrap_or(4096)
    }

    fn publish_executable(&self, from: *const u8, length: usize) -> wasmtime::Result<()> {
        Self::protect(from, length, libc::PROT_READ | libc::PROT_EXEC)
    }

    fn unpublish_executable(&self, from: *const u8, length: usize) -> wasmtime::Result<()> {
        Self::protect(from, length, libc::PROT_READ | libc::PROT_WRITE)
    }
}
