//! Who uses a mounted file system.
//!
//! A ZFS file system has no device that could be looked at: what is on it is used by processes that have
//! a file of it open, run or mapped, that stand in it, or whose root it is; and by loop devices over
//! its files. `zfs rollback` goes on beneath all of them. Sees what this user may see, all for root;
//! the kernel's own NFS server shows in none of these places.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};

use crate::Users;
use crate::holder::{numbers, processes_that};

/// Who uses the file system of this kind and source (mountinfo's fields, a dataset's name for ZFS),
/// wherever it is mounted. That it is mounted is no use by itself.
pub fn users_of_file_system(kind: &str, source: &str) -> Users {
    let (mut devices, mut places) = (BTreeSet::new(), Vec::new());
    for table in tables() {
        for mount in table.lines().filter_map(Mount::read) {
            if mount.kind == kind && mount.source == source {
                devices.insert(mount.device);
                places.push(mount.place);
            }
        }
    }
    if devices.is_empty() {
        return Users::default();
    }
    let on_it = |path: &Path| {
        fs::metadata(path).is_ok_and(|m| devices.contains(&(major(m.dev()), minor(m.dev()))))
    };
    let holders = processes_that(&|pid| uses(pid, &on_it, &devices));
    let claimed = loop_files().iter().any(|file| on_it(Path::new(file)));
    if holders.is_empty() && !claimed {
        return Users::default();
    }
    places.sort();
    places.dedup();
    places.truncate(16);
    Users { holders, mounts: places, claimed }
}

type Device = (u64, u64);

fn uses(pid: u32, on_it: &dyn Fn(&Path) -> bool, devices: &BTreeSet<Device>) -> bool {
    let of = |what: &str| format!("/proc/{pid}/{what}");
    ["cwd", "root", "exe"].iter().any(|link| on_it(Path::new(&of(link))))
        || fs::read_dir(of("fd")).is_ok_and(|fds| fds.flatten().any(|fd| on_it(&fd.path())))
        || fs::read_to_string(of("maps")).is_ok_and(|text| maps(&text, devices))
}

/// Whether one of these mappings (proc(5): the fourth field is the device) is of a file there.
fn maps(text: &str, devices: &BTreeSet<Device>) -> bool {
    let device = |line: &str| {
        let (major, minor) = line.split_ascii_whitespace().nth(3)?.split_once(':')?;
        Some((u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?))
    };
    text.lines().filter_map(device).any(|d| devices.contains(&d))
}

/// The tables of mounts of all mount namespaces that can be seen, each once.
fn tables() -> Vec<String> {
    let mut seen = BTreeSet::new();
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    seen.extend(own);
    let mut tables = vec![fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()];
    for pid in numbers() {
        let Ok(namespace) = fs::read_link(format!("/proc/{pid}/ns/mnt")) else { continue };
        if seen.insert(namespace) {
            tables.push(fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default());
        }
    }
    tables
}

/// Files that loop devices are over.
fn loop_files() -> Vec<String> {
    let Ok(blocks) = fs::read_dir("/sys/block") else { return Vec::new() };
    let file = |block: fs::DirEntry| {
        let text = fs::read_to_string(block.path().join("loop/backing_file")).ok()?;
        Some(text.trim_end_matches('\n').to_owned())
    };
    blocks.flatten().filter_map(file).collect()
}

/// A line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: Device,
    place: String,
    kind: String,
    source: String,
}

impl Mount {
    /// proc(5): `36 35 98:0 /root /place options optional… - kind source options`.
    fn read(line: &str) -> Option<Mount> {
        let (first, last) = line.split_once(" - ")?;
        let mut first = first.split(' ').skip(2);
        let (major, minor) = first.next()?.split_once(':')?;
        let place = unescaped(first.nth(1)?);
        let mut last = last.split(' ');
        Some(Mount {
            device: (major.parse().ok()?, minor.parse().ok()?),
            place,
            kind: last.next()?.to_owned(),
            source: unescaped(last.next()?),
        })
    }
}

/// Blanks and the like stand as three octal digits after a backslash.
fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = (byte == b'\\').then(|| after.get(..3)).flatten();
        let code = code.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                out.push(code);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    //! Goal: whoever uses a mounted file system is found, in whichever way. Method: a file system that
    //! every Linux has mounted, and a process that stands in it, has a file of it open, maps one.

    use std::process::{Child, Command, Stdio};

    use super::*;

    /// The file system that a directory is on, and another directory in it of this test's own.
    fn shared_memory() -> (Mount, tempfile::TempDir) {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in shared memory");
        let device = fs::metadata(directory.path()).expect("it is there").dev();
        let device = (major(device), minor(device));
        let table = fs::read_to_string("/proc/self/mountinfo").expect("a table");
        let mount = table.lines().filter_map(Mount::read).find(|m| m.device == device);
        (mount.expect("it is mounted"), directory)
    }

    fn told(mount: &Mount, child: &Child) -> bool {
        let users = users_of_file_system(&mount.kind, &mount.source);
        users.holders.iter().any(|h| h.pid == child.id())
    }

    #[test]
    fn whoever_uses_it_is_found() {
        let (mount, directory) = shared_memory();
        let path = directory.path();
        let file = path.join("file");
        fs::write(&file, vec![1; 4096]).expect("a file");
        let ways: [(&str, &dyn Fn() -> Command); 3] = [
            ("a process elsewhere", &|| {
                let mut command = Command::new("sleep");
                command.current_dir("/").stdin(Stdio::null());
                command
            }),
            ("a process that stands in it", &|| {
                let mut command = Command::new("sleep");
                command.current_dir(path).stdin(Stdio::null());
                command
            }),
            ("a process with a file of it open", &|| {
                let mut command = Command::new("sleep");
                command.current_dir("/").stdin(fs::File::open(&file).expect("the file"));
                command
            }),
        ];
        for (what, command) in ways {
            let mut child = command().arg("600").spawn().expect("sleep");
            let found = told(&mount, &child);
            child.kill().and_then(|()| child.wait()).expect("an end");
            assert_eq!(found, what != "a process elsewhere", "{what}");
        }
        let of = |text: &str| maps(text, &BTreeSet::from([(0, 47)]));
        assert!(of("7f0000-7f1000 r-xp 00000000 00:2f 12 /mnt/vm1/program\n"));
        assert!(!of("7f0000-7f1000 r-xp 00000000 00:30 12 /mnt/vm2/program\n[vdso]\n"));
        let nobodys = users_of_file_system(&mount.kind, "no such source");
        assert!(nobodys.is_empty(), "{nobodys:?}");
    }

    #[test]
    fn lines_are_read() {
        let line = "36 35 0:47 / /mnt/vm\\0401 rw,noatime shared:1 - zfs tank/vm\\0401 rw,xattr";
        let mount = Mount::read(line).expect("a mount");
        assert_eq!(mount.device, (0, 47));
        assert_eq!((mount.place.as_str(), mount.source.as_str()), ("/mnt/vm 1", "tank/vm 1"));
        assert_eq!(mount.kind, "zfs");
        for bad in ["", "36 35", "36 35 047 / /mnt - zfs x", "36 35 0:47 / /mnt rw zfs x"] {
            assert_eq!(Mount::read(bad), None, "{bad:?}");
        }
    }
}
