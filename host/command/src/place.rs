//! Where a volume is, in the terms of its storage. A place that parses is one that exists as a
//! name in that storage's own grammar and cannot be read as an option, as nothing, or as more
//! than one volume.

use std::fmt;
use std::path::{Path, PathBuf};

/// What kind of place a backend's volumes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceKind {
    /// A file or block device, by absolute path.
    Image,
    /// A logical volume, `group/volume`.
    LvmVolume,
    /// A ZFS dataset, `pool/…/name`.
    ZfsDataset,
    /// A directory, by absolute path.
    Directory,
}

/// A place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file or block device.
    Image(PathBuf),
    /// A logical volume.
    LvmVolume {
        /// Its volume group.
        group: String,
        /// Its name.
        volume: String,
    },
    /// A ZFS dataset.
    ZfsDataset(String),
    /// A directory.
    Directory(PathBuf),
}

/// Not a place of that kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {wanted}: {why}")]
pub struct PlaceError {
    /// What was given, shortened.
    pub given: String,
    /// What it should be.
    pub wanted: &'static str,
    /// What is wrong.
    pub why: &'static str,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Image(path) | Place::Directory(path) => write!(f, "{}", path.display()),
            Place::LvmVolume { group, volume } => write!(f, "{group}/{volume}"),
            Place::ZfsDataset(dataset) => f.write_str(dataset),
        }
    }
}

impl Place {
    /// Reads a place of this kind. Paths must be absolute already.
    pub fn parse(kind: PlaceKind, text: &str) -> Result<Place, PlaceError> {
        match kind {
            PlaceKind::Image => Ok(Place::Image(absolute(text, "a file")?)),
            PlaceKind::Directory => Ok(Place::Directory(absolute(text, "a directory")?)),
            PlaceKind::LvmVolume => lvm(text),
            PlaceKind::ZfsDataset => zfs(text),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> PlaceKind {
        match self {
            Place::Image(_) => PlaceKind::Image,
            Place::LvmVolume { .. } => PlaceKind::LvmVolume,
            Place::ZfsDataset(_) => PlaceKind::ZfsDataset,
            Place::Directory(_) => PlaceKind::Directory,
        }
    }

    /// The block device that may show its content. It need not be there: a volume can be
    /// inactive, a dataset can be a file system.
    pub fn device(&self) -> Option<PathBuf> {
        match self {
            Place::LvmVolume { group, volume } => Some(Path::new("/dev").join(group).join(volume)),
            Place::ZfsDataset(dataset) => {
                // udev's rule replaces blanks, which the storage allows, by pluses.
                Some(Path::new("/dev/zvol").join(dataset.replace(' ', "+")))
            }
            Place::Image(path) => Some(path.clone()),
            Place::Directory(_) => None,
        }
    }
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(80).collect()
}

fn absolute(text: &str, wanted: &'static str) -> Result<PathBuf, PlaceError> {
    let bad = |why| PlaceError { given: short(text), wanted, why };
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(bad("its path is not absolute"));
    }
    if text.len() > 4096 || text.bytes().any(|b| b == 0 || b == b'\n') {
        return Err(bad("its path has bytes that are not allowed"));
    }
    if path.components().any(|c| matches!(c, std::path::Component::ParentDir)) {
        return Err(bad("its path goes up"));
    }
    Ok(path.to_owned())
}

/// LVM's own grammar of names (lvm(8), VALID NAMES), and what it keeps for itself.
fn lvm(text: &str) -> Result<Place, PlaceError> {
    let bad = |why| PlaceError { given: short(text), wanted: "a logical volume", why };
    let Some((group, volume)) = text.split_once('/') else {
        return Err(bad("it has the form group/volume"));
    };
    // Nothing empty: to LVM an empty group means all groups, and a group all its volumes.
    for name in [group, volume] {
        if let Err(why) = lvm_name(name) {
            return Err(bad(why));
        }
    }
    if lvm_reserved(volume) {
        return Err(bad("LVM keeps names like this for itself"));
    }
    Ok(Place::LvmVolume { group: group.to_owned(), volume: volume.to_owned() })
}

fn lvm_name(name: &str) -> Result<(), &'static str> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+_.-".contains(&b);
    if name.is_empty() {
        return Err("a name is empty");
    }
    if name.len() > 127 {
        return Err("a name is longer than 127 characters");
    }
    if name.starts_with('-') || name == "." || name == ".." || !name.bytes().all(allowed) {
        return Err("LVM's names have letters, digits and +_.- and do not begin with a hyphen");
    }
    Ok(())
}

/// Names LVM refuses to give ("Names starting/including … are reserved").
pub(crate) fn lvm_reserved(name: &str) -> bool {
    const INSIDE: [&str; 14] = [
        "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_imeta", "_mimage", "_mlog", "_pmspare",
        "_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata",
    ];
    name.starts_with("snapshot")
        || name.starts_with("pvmove")
        || INSIDE.iter().any(|part| name.contains(part))
}

/// ZFS's own grammar of dataset names, narrowed: no blank, which the tools take and then print
/// ambiguously.
fn zfs(text: &str) -> Result<Place, PlaceError> {
    let bad = |why| PlaceError { given: short(text), wanted: "a ZFS dataset", why };
    if text.contains(['@', '#']) {
        return Err(bad("it names a snapshot or bookmark; give the dataset's name"));
    }
    if text.is_empty() || text.len() > 200 {
        return Err(bad("its length is not 1 to 200"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.:".contains(&b);
    for part in text.split('/') {
        if part.is_empty() {
            return Err(bad("a part of it is empty"));
        }
        if part.starts_with('-') || part == "." || part == ".." || !part.bytes().all(allowed) {
            return Err(bad(
                "its parts have letters, digits and _-.: and do not begin with a hyphen",
            ));
        }
    }
    Ok(Place::ZfsDataset(text.to_owned()))
}

#[cfg(test)]
mod tests {
    //! Goal: nothing passes that a tool would read as an option, as all volumes, or as another.

    use super::*;

    #[test]
    fn logical_volumes() {
        for good in ["vg/lv", "vg0/vm-1", "a/1a+b.c_c-d"] {
            assert!(Place::parse(PlaceKind::LvmVolume, good).is_ok(), "{good}");
        }
        let long = format!("vg/{}", "x".repeat(128));
        for bad in [
            "",
            "/",
            "vg",
            "vg/",
            "/lv",
            "vg/a/b",
            "-a/lv",
            "vg/-a",
            "vg/..",
            "vg/a b",
            "vg/a@b",
            "vg/ü",
            "vg/a\nb",
            "vg/snapshot1",
            "vg/x_tmeta",
            "vg/pvmove0",
            "vg/a\0",
            "vg/@tag",
            &long,
        ] {
            assert!(Place::parse(PlaceKind::LvmVolume, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn datasets() {
        for good in ["tank", "tank/vm1", "tank/a:b_c-d.e/x"] {
            assert!(Place::parse(PlaceKind::ZfsDataset, good).is_ok(), "{good}");
        }
        let long = "x".repeat(201);
        for bad in [
            "",
            "/",
            "tank/",
            "/tank",
            "tank//x",
            "tank/vm@s",
            "tank/vm#b",
            "-r",
            "tank/-r",
            "tank/a b",
            "tank/..",
            "tank/.",
            "tank/a%b",
            "tank/a,b",
            "tank/ü",
            "tank/a\nb",
            &long,
        ] {
            assert!(Place::parse(PlaceKind::ZfsDataset, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths() {
        assert!(Place::parse(PlaceKind::Image, "/srv/a b.img").is_ok());
        for bad in ["a.img", "/srv/../etc/x", "/a\nb", "/a\0b", ""] {
            assert!(Place::parse(PlaceKind::Image, bad).is_err(), "{bad:?}");
        }
    }
}
