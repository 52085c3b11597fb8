//! Who uses a block device.
//!
//! Storage that is changed by commands has no lock of its own against the machines on it:
//! `zfs rollback` under a running machine succeeds and corrupts it. So before content is set back
//! the host looks: processes that have the device open, mounts, and the kernel itself (swap, device
//! mapper, md, loop), which holds it exclusively.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;
use nix::sys::stat::{major, minor};

use crate::holder::{Holder, looks_in_passing, processes};
use crate::{DiskError, Doing};

/// What uses a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users {
    /// Processes that have it open, as far as /proc tells.
    pub holders: Vec<Holder>,
    /// Where it is mounted.
    pub mounts: Vec<String>,
    /// Whether the kernel holds it for a mount, swap, another device or the like.
    pub claimed: bool,
}

impl Users {
    /// Whether nothing uses it.
    pub fn is_empty(&self) -> bool {
        self.holders.is_empty() && self.mounts.is_empty() && !self.claimed
    }

    /// Whether these are only processes of udev's, which look at a device after each change and
    /// are gone in a moment.
    pub fn only_looks(&self) -> bool {
        let looks = |h: &Holder| looks_in_passing(&h.program);
        !self.claimed && self.mounts.is_empty() && self.holders.iter().all(looks)
    }

    /// For people: " by qemu-system-x86 (pid 7), mounted at /mnt".
    pub fn in_words(&self) -> String {
        let mut words = Holder::in_words(&self.holders);
        for mount in &self.mounts {
            words.push_str(&format!(", mounted at {mount}"));
        }
        if self.claimed && self.mounts.is_empty() {
            words.push_str(", held by the kernel for another device, swap or a file system");
        }
        words
    }
}

/// What uses the block device at this path; nothing uses one that is not there.
pub fn users(path: &Path) -> Result<Users, DiskError> {
    let error = |source| DiskError::io(path.display().to_string(), Doing::Stat, source);
    let meta = match fs::metadata(path) {
        Ok(meta) if meta.file_type().is_block_device() => meta,
        Ok(_) => return Ok(Users::default()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Users::default()),
        Err(e) => return Err(error(e)),
    };
    let device = meta.rdev();
    // An exclusive open fails while the kernel has claimed the device; it claims nothing itself.
    let opened = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path);
    let claimed = match opened {
        Ok(_) => false,
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => true,
        // Gone meanwhile, or no medium: nobody reads from it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENXIO | libc::ENOENT)) => false,
        Err(e) => return Err(DiskError::io(path.display().to_string(), Doing::Open, e)),
    };
    let holders = processes(&|fd: &Path| {
        fs::metadata(fd).is_ok_and(|m| m.file_type().is_block_device() && m.rdev() == device)
    });
    Ok(Users { holders, mounts: mounts(device), claimed })
}

/// Where a device is mounted, by this process' own view (proc(5), mountinfo: fields 3 and 5).
fn mounts(device: u64) -> Vec<String> {
    let number = format!("{}:{}", major(device), minor(device));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    (table.lines())
        .filter_map(|line| {
            let mut fields = line.split(' ');
            (fields.nth(2) == Some(&number)).then(|| fields.nth(1).unwrap_or("?").to_owned())
        })
        .take(16)
        .collect()
}

#[cfg(test)]
mod tests {
    //! Goal: a device that is not there is used by nobody; a file is no device.

    use super::*;

    #[test]
    fn no_device_has_no_users() {
        assert!(users(Path::new("/dev/no-such-device")).expect("an answer").is_empty());
        assert!(users(Path::new("/proc/self/exe")).expect("an answer").is_empty());
    }
}
