//! Who has a disk open, so that a restore would pass them by.
//!
//! A restore puts another file under the image's name: a process that has the old one open would
//! go on with it, unseen. Told from /proc and /sys; sees what this user may see, all for root.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// The first user found, in words. This process itself does not count.
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
    let me = std::process::id();
    let Ok(processes) = fs::read_dir("/proc") else { return Ok(None) };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        // A child of ours that has not begun its program yet still has our descriptors.
        if pid == me || (parent(pid) == Some(me) && same_program(pid)) {
            continue;
        }
        // Not ours to look into, or gone: nothing to tell.
        let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        if open.flatten().any(|fd| fs::metadata(fd.path()).is_ok_and(|m| same(&m))) {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let name: String = name.trim().chars().filter(|c| !c.is_control()).collect();
            return Ok(Some(format!("{name} (pid {pid})")));
        }
    }
    Ok(None)
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

/// Whether a process runs the program that this one runs.
fn same_program(pid: u32) -> bool {
    let of = |who: &str| fs::read_link(format!("/proc/{who}/exe")).ok();
    of(&pid.to_string()).is_some_and(|theirs| Some(theirs) == of("self"))
}

/// The process that started another (proc(5), `PPid` in its status).
fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}
