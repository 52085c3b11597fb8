//! The linear memory of plugins: as wasmtime makes it, but in huge pages where it is large.
//!
//! Every call gets fresh memory, and counting fills tens of megabytes of it. In pages of 4 KiB
//! the faults take longer than the counting; in huge pages they vanish. What wasmtime's own
//! memory promises holds here too: all of the reservation and a guard on either side belong to
//! this memory alone, nothing of it can be reached but what was granted, it never moves, it
//! begins as zeroes, and nothing of it outlives the call.

use std::ptr;

use nix::libc;
use wasmtime::{LinearMemory, MemoryCreator, MemoryType};

/// Memory that is smaller is left in small pages: zeroing huge ones for a look at a header costs
/// more than it saves.
const HUGE_FROM: usize = 2 << 20;

/// Makes it.
pub(crate) struct HugeMemory;

/// One memory: guard, reservation, guard. Only the first `size` bytes of the reservation, rounded
/// up to whole pages, can be read and written.
struct Reserved {
    mapping: *mut libc::c_void,
    mapped: usize,
    base: *mut u8,
    reserved: usize,
    size: usize,
}

// SAFETY: the mapping belongs to this value alone and is not tied to a thread.
unsafe impl Send for Reserved {}
// SAFETY: through a shared reference only numbers and the address are handed out.
unsafe impl Sync for Reserved {}

// SAFETY: `new_memory` gives zeroed anonymous memory with at least the reservation and guard asked
// for, all of it inaccessible but `minimum` bytes.
unsafe impl MemoryCreator for HugeMemory {
    fn new_memory(
        &self,
        _: MemoryType,
        minimum: usize,
        _: Option<usize>,
        reserved_size_in_bytes: Option<usize>,
        guard_size_in_bytes: usize,
    ) -> Result<Box<dyn LinearMemory>, String> {
        let reserved = reserved_size_in_bytes.ok_or("a memory without a reservation")?;
        if minimum > reserved {
            return Err(format!("a memory of {minimum} bytes is larger than {reserved}"));
        }
        let mapped = guard_size_in_bytes.checked_mul(2).and_then(|g| g.checked_add(reserved));
        let mapped = mapped.ok_or("a memory larger than the address space")?;
        // SAFETY: a new mapping at an address of the system's choice touches nothing that is.
        let mapping = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapping == libc::MAP_FAILED {
            return Err(format!("no address space: {}", std::io::Error::last_os_error()));
        }
        // SAFETY: the mapping is longer than its first guard.
        let base = unsafe { mapping.cast::<u8>().add(guard_size_in_bytes) };
        let mut memory = Reserved { mapping, mapped, base, reserved, size: 0 };
        memory.grow_to(minimum).map_err(|e| e.to_string())?;
        Ok(Box::new(memory))
    }
}

// SAFETY: the base never moves; `size` bytes from it on are accessible, and past the page in which
// they end nothing is up to the end of the guard.
unsafe impl LinearMemory for Reserved {
    fn byte_size(&self) -> usize {
        self.size
    }

    fn byte_capacity(&self) -> usize {
        self.reserved
    }

    fn grow_to(&mut self, new_size: usize) -> wasmtime::Result<()> {
        if new_size < self.size || new_size > self.reserved {
            return Err(wasmtime::Error::msg("a memory cannot shrink or outgrow its reservation"));
        }
        if new_size == 0 {
            return Ok(());
        }
        // Wasm's pages are whole pages of any system this runs on; the kernel rounds up others,
        // and the reservation is whole pages.
        // SAFETY: the range lies in our own mapping, and what was accessible stays so.
        let done = unsafe {
            libc::mprotect(self.base.cast(), new_size, libc::PROT_READ | libc::PROT_WRITE)
        };
        if done != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        if new_size > HUGE_FROM {
            // Not all systems have them; then pages stay small.
            // SAFETY: advice about our own mapping; it changes no content.
            unsafe { libc::madvise(self.base.cast(), new_size, libc::MADV_HUGEPAGE) };
        }
        self.size = new_size;
        Ok(())
    }

    fn as_ptr(&self) -> *mut u8 {
        self.base
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and nobody uses a memory that is dropped.
        unsafe { libc::munmap(self.mapping, self.mapped) };
    }
}
