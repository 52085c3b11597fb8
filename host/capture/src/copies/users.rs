//! Who has a disk open, so that a restore would pass them by.
//!
//! A restore puts another file under the image's name: a process that has the old one open would
//! go on with it, unseen. Told from /proc and /sys; sees what this user may see, all for root.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use snapslot_disk::processes;

/// The first user found, in words. This process itself does not count; nor does the kernel, which has
/// no device that we could open (`O_EXCL`).
pub(super) fn user(file: &File) -> std::io::Result<Option<String>> {
    let own = file.metadata()?;
    let device = own.file_type().is_block_device();
    if !device && let Some(user) = loop_device(own.dev(), own.ino()) {
        return Ok(Some(user));
    }
    let same = |m: &fs::Metadata| {
        if device {
            m.file_type().is_block_device() && m.rdev() == own.rdev()
        } else {
            (m.dev(), m.ino()) == (own.dev(), own.ino())
        }
    };
    let users = processes(&|fd: &Path| fs::metadata(fd).is_ok_and(|m| same(&m)));
    Ok(users.first().map(|user| format!("{} (pid {})", user.program, user.pid)))
}

/// A loop device over this file: it is held by the kernel, no process shows it.
fn loop_device(device: u64, inode: u64) -> Option<String> {
    for block in fs::read_dir("/sys/block").ok()?.flatten() {
        let Ok(path) = fs::read_to_string(block.path().join("loop/backing_file")) else { continue };
        let backing = fs::metadata(path.trim_end_matches('\n'));
        if backing.is_ok_and(|m| (m.dev(), m.ino()) == (device, inode)) {
            return Some(format!("the loop device {}", block.file_name().to_string_lossy()));
        }
    }
    None
}
