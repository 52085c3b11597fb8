//! Locators: which volume is meant.

use std::fmt;
use std::path::{Path, PathBuf};

use snapslot_command::{Place, PlaceError, PlaceKind};

/// Bytes of a locator: a path's limit and a backend's name.
const LOCATOR_MAX: usize = 4096 + 33;

/// What is known of a backend without starting it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name in locators.
    pub name: String,
    /// What kind of place its volumes have.
    pub place: PlaceKind,
    /// File endings by which a bare path is known as its own.
    pub endings: Vec<String>,
}

/// A volume's address, `backend:place`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    /// The backend's name.
    pub backend: String,
    /// The place, in the storage's own terms; for files an absolute path without links.
    pub place: Place,
}

/// Not a locator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocatorError {
    /// Not of the form.
    #[error(
        "{given:?} is not a volume: a volume is a path that ends in .qcow2, or backend:place like qcow2:/srv/vm1.img, lvm:vg0/vm1 or zfs:tank/vm1"
    )]
    Form {
        /// What was given, shortened.
        given: String,
    },
    /// Not a place of the backend's kind.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// No plugin of that name.
    #[error("there is no backend {backend:?}; `snapslot plugin list` shows those there are")]
    Backend {
        /// The name.
        backend: String,
    },
    /// The file is not there or cannot be reached.
    #[error("{path}: {why}")]
    Missing {
        /// The path.
        path: String,
        /// What the system said.
        why: String,
    },
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.backend, self.place)
    }
}

/// Whether this can be a machine's name: `[A-Za-z0-9][A-Za-z0-9._-]*`, at most 64 bytes, not
/// ending like an image that one of these backends serves.
pub fn is_machine_name(text: &str, backends: &[Known]) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !backends.iter().flat_map(|b| &b.endings).any(|ending| text.ends_with(ending.as_str()))
}

fn form(text: &str) -> LocatorError {
    LocatorError::Form { given: text.chars().take(80).collect() }
}

/// Which backend a text names, by its word before a colon or by its ending; and what is left of the text.
/// Looks at nothing.
pub(crate) fn named<'k, 't>(
    text: &'t str,
    backends: &'k [Known],
) -> Result<(&'k Known, &'t str), LocatorError> {
    if text.is_empty() || text.len() > LOCATOR_MAX || text.chars().any(char::is_control) {
        return Err(form(text));
    }
    let word = text.split_once(':').filter(|(backend, _)| {
        !backend.is_empty()
            && backend.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    });
    let find = |name: &str| backends.iter().find(|b| b.name == name);
    let ending = || backends.iter().find(|b| b.endings.iter().any(|e| text.ends_with(e)));
    match word {
        Some((name, place)) => match (find(name), ending()) {
            (Some(backend), _) => Ok((backend, place)),
            // A file may have a colon in its name; but only one that ends as it should.
            (None, Some(backend)) => Ok((backend, text)),
            (None, None) => Err(LocatorError::Backend { backend: name.to_owned() }),
        },
        None => ending().map(|backend| (backend, text)).ok_or_else(|| form(text)),
    }
}

impl Locator {
    /// Reads what a person typed. `backends` are those there are.
    pub fn parse(text: &str, backends: &[Known]) -> Result<Locator, LocatorError> {
        let form = || form(text);
        let (backend, place) = named(text, backends)?;
        if place.is_empty() {
            return Err(form());
        }
        let place = match backend.place {
            PlaceKind::Image | PlaceKind::Directory => {
                let path = canonical(Path::new(place))?;
                Place::parse(backend.place, path.to_str().ok_or_else(form)?)?
            }
            PlaceKind::LvmVolume => Place::parse(backend.place, without_dev(place))?,
            PlaceKind::ZfsDataset => {
                Place::parse(backend.place, place.strip_prefix("/dev/zvol/").unwrap_or(place))?
            }
        };
        Ok(Locator { backend: backend.name.clone(), place })
    }

    /// The place as a path, where it is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Image(path) | Place::Directory(path) => Some(path),
            Place::LvmVolume { .. } | Place::ZfsDataset(_) => None,
        }
    }
}

/// People paste device paths: `/dev/vg/lv` is `vg/lv`.
fn without_dev(place: &str) -> &str {
    match place.strip_prefix("/dev/") {
        Some(rest) if !rest.starts_with("mapper/") => rest,
        _ => place,
    }
}

/// Absolute and without links, so that one file is one volume. A file that is gone keeps its
/// name, so that its slot can still be asked about.
fn canonical(path: &Path) -> Result<PathBuf, LocatorError> {
    let missing = |e: std::io::Error| LocatorError::Missing {
        path: path.display().to_string(),
        why: e.to_string(),
    };
    match path.canonicalize() {
        Ok(found) => Ok(found),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let name = path
                .file_name()
                .ok_or_else(|| missing(std::io::Error::from(std::io::ErrorKind::NotFound)))?;
            let parent = match path.parent() {
                Some(p) if !p.as_os_str().is_empty() => p,
                _ => Path::new("."),
            };
            Ok(parent.canonicalize().map_err(missing)?.join(name))
        }
        Err(e) => Err(missing(e)),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: nothing that could be read as something else becomes a volume or a name.

    use super::*;

    #[test]
    fn names_are_plain() {
        let backends = backends();
        for good in ["vm1", "a", "web-01.example", "A_b"] {
            assert!(is_machine_name(good, &backends), "{good:?}");
        }
        let long = "x".repeat(65);
        for bad in ["", "-rf", ".hidden", "a/b", "a b", "a\n", "é", "x.qcow2", &long, "a:b", "a@b"]
        {
            assert!(!is_machine_name(bad, &backends), "{bad:?}");
        }
    }

    fn backends() -> Vec<Known> {
        let known = |name: &str, place, endings: &[&str]| Known {
            name: name.to_owned(),
            place,
            endings: endings.iter().map(|e| (*e).to_owned()).collect(),
        };
        vec![
            known("qcow2", PlaceKind::Image, &[".qcow2"]),
            known("lvm", PlaceKind::LvmVolume, &[]),
            known("zfs", PlaceKind::ZfsDataset, &[]),
        ]
    }

    #[test]
    fn locators_need_a_backend_that_is_there_or_a_known_ending() {
        let parse = |text| Locator::parse(text, &backends());
        assert!(matches!(parse(""), Err(LocatorError::Form { .. })));
        assert!(matches!(parse("disk.img"), Err(LocatorError::Form { .. })));
        assert!(matches!(parse("ceph:pool/vm"), Err(LocatorError::Backend { .. })));
        assert!(matches!(parse("qcow2:"), Err(LocatorError::Form { .. })));
        assert!(matches!(parse("a\0b.qcow2"), Err(LocatorError::Form { .. })));
        assert!(matches!(parse("/no/such/dir/x.qcow2"), Err(LocatorError::Missing { .. })));
        let found = parse("qcow2:/new.img").expect("a file that is not there yet has a name");
        assert_eq!(found.to_string(), "qcow2:/new.img");
    }

    #[test]
    fn volumes_of_lvm_and_zfs_have_one_spelling() {
        let parse = |text| Locator::parse(text, &backends());
        for (given, means) in [
            ("lvm:vg0/vm1", "lvm:vg0/vm1"),
            ("lvm:/dev/vg0/vm1", "lvm:vg0/vm1"),
            ("zfs:tank/vm1", "zfs:tank/vm1"),
            ("zfs:/dev/zvol/tank/vm1", "zfs:tank/vm1"),
        ] {
            assert_eq!(parse(given).expect("a volume").to_string(), means);
        }
        for bad in ["lvm:vg0", "lvm:/dev/mapper/vg0-vm1", "zfs:tank/vm1@snap", "zfs:/tank", "lvm:"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
