//! What a block device is called in the names of its copies.
//!
//! Its path will not do: after a restart it may be another disk's, and a copy put back to the
//! wrong disk is a disk lost. So it is what the device says of itself in sysfs
//! (Documentation/ABI/stable/sysfs-block): the identity of device mapper or md, the world-wide
//! name, the serial number; for a loop device its file; for a partition its disk's identity with
//! its number and first sector. A device that says nothing is refused.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// The longest it may be: with the longest part of ours a name stays below 255 bytes.
const LENGTH_MAX: usize = 180;

/// The identity of the device with this number, as a part of a file name.
pub(super) fn stem(sysfs: &Path, major: u64, minor: u64) -> Option<OsString> {
    let device = fs::canonicalize(sysfs.join(format!("dev/block/{major}:{minor}"))).ok()?;
    let stem = match (said(&device, "partition"), said(&device, "start")) {
        (Some(number), Some(start)) => {
            format!("{}+part{number}+{start}", whole(device.parent()?)?)
        }
        _ => whole(&device)?,
    };
    (stem.len() <= LENGTH_MAX).then(|| stem.into())
}

fn whole(device: &Path) -> Option<String> {
    let sources = [
        ("dm", "dm/uuid"),
        ("md", "md/uuid"),
        ("wwid", "wwid"),
        ("wwid", "device/wwid"),
        ("serial", "serial"),
        ("serial", "device/serial"),
        ("loop", "loop/backing_file"),
    ];
    let (kind, text) =
        sources.iter().find_map(|(kind, file)| Some((*kind, said(device, file)?)))?;
    let mut name = format!("{kind}-{}", escaped(&text));
    if kind == "loop" {
        if text.ends_with(" (deleted)") {
            return None;
        }
        if let Some(offset) = said(device, "loop/offset").filter(|o| o != "0") {
            let _ = write!(name, "+{offset}");
        }
    }
    Some(name)
}

/// The line a file of sysfs has, if it is there and not blank.
fn said(device: &Path, file: &str) -> Option<String> {
    let text = fs::read_to_string(device.join(file)).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Two texts never give the same name, and none has the `+` that parts are joined with.
fn escaped(text: &str) -> String {
    let mut name = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') {
            name.push(byte.into());
        } else {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name
}

#[cfg(test)]
mod tests {
    //! Goal: the name follows the device, never its number. Method: a sysfs made of files.

    use super::*;

    fn device(sysfs: &Path, number: &str, place: &str, files: &[(&str, &str)]) {
        let home = sysfs.join("devices").join(place);
        for (file, text) in files {
            let path = home.join(file);
            fs::create_dir_all(path.parent().expect("a folder")).expect("sysfs");
            fs::write(path, text).expect("sysfs");
        }
        fs::create_dir_all(&home).expect("sysfs");
        fs::create_dir_all(sysfs.join("dev/block")).expect("sysfs");
        std::os::unix::fs::symlink(&home, sysfs.join("dev/block").join(number)).expect("sysfs");
    }

    #[test]
    fn it_is_what_the_device_says_of_itself() {
        let dir = tempfile::tempdir().expect("a folder");
        let sys = dir.path();
        let long = "x".repeat(LENGTH_MAX);
        device(sys, "253:1", "dm-1", &[("dm/uuid", "LVM-abc\n"), ("size", "1\n")]);
        device(sys, "254:0", "vda", &[("serial", "disk one\n")]);
        device(sys, "254:1", "vda/vda1", &[("partition", "1\n"), ("start", "2048\n")]);
        device(sys, "8:0", "sda", &[("device/wwid", "naa.500\n"), ("serial", "\n")]);
        device(sys, "7:0", "loop0", &[("loop/backing_file", "/a/b.img\n"), ("loop/offset", "0\n")]);
        device(sys, "7:1", "loop1", &[("loop/backing_file", "/a/b\n"), ("loop/offset", "512\n")]);
        device(sys, "7:2", "loop2", &[("loop/backing_file", "/a/b (deleted)\n")]);
        device(sys, "254:16", "vdb", &[("serial", "\n")]);
        device(sys, "254:32", "vdc", &[("serial", &long)]);
        for (major, minor, expected) in [
            (253, 1, Some("dm-LVM-abc")),
            (254, 0, Some("serial-disk%20one")),
            (254, 1, Some("serial-disk%20one+part1+2048")),
            (8, 0, Some("wwid-naa%2E500")),
            (7, 0, Some("loop-%2Fa%2Fb%2Eimg")),
            (7, 1, Some("loop-%2Fa%2Fb+512")),
            (7, 2, None),
            (254, 16, None),
            (254, 32, None),
            (9, 9, None),
        ] {
            let found = stem(sys, major, minor);
            assert_eq!(found.as_deref(), expected.map(std::ffi::OsStr::new), "{major}:{minor}");
        }
    }
}
