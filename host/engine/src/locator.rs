//! Locators: which volume is meant.

use std::fmt;
use std::path::{Path, PathBuf};

/// Bytes of a locator: a path's limit and a backend's name.
const LOCATOR_MAX: usize = 4096 + 33;

/// A volume's address, `backend:place`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locator {
    /// The backend's name.
    pub backend: String,
    /// The place, in the backend's own terms; for files an absolute path without links.
    pub place: String,
}

/// Not a locator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocatorError {
    /// Not of the form.
    #[error(
        "{given:?} is not a volume: a volume is a path that ends in .qcow2, or backend:place like qcow2:/srv/vm1.img"
    )]
    Form {
        /// What was given, shortened.
        given: String,
    },
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
/// ending like an image.
pub fn is_machine_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !text.ends_with(".qcow2")
}

impl Locator {
    /// Reads what a person typed. `backends` are the names there are.
    pub fn parse(text: &str, backends: &[&str]) -> Result<Locator, LocatorError> {
        let given = || text.chars().take(80).collect::<String>();
        let form = || LocatorError::Form { given: given() };
        if text.is_empty() || text.len() > LOCATOR_MAX || text.chars().any(char::is_control) {
            return Err(form());
        }
        let named = text.split_once(':').filter(|(backend, _)| {
            !backend.is_empty()
                && backend
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        });
        let (backend, place) = match named {
            Some((backend, place)) if backends.contains(&backend) => (backend, place),
            // A file may have a colon in its name; but only one that ends as it should.
            _ if text.ends_with(".qcow2") => ("qcow2", text),
            Some((backend, _)) => {
                return Err(LocatorError::Backend { backend: backend.to_owned() });
            }
            None => return Err(form()),
        };
        if place.is_empty() {
            return Err(form());
        }
        let path = canonical(Path::new(place))?;
        let place = path.to_str().ok_or_else(form)?.to_owned();
        Ok(Locator { backend: backend.to_owned(), place })
    }

    /// The place as a path.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(&self.place)
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
        for good in ["vm1", "a", "web-01.example", "A_b"] {
            assert!(is_machine_name(good), "{good:?}");
        }
        let long = "x".repeat(65);
        for bad in ["", "-rf", ".hidden", "a/b", "a b", "a\n", "é", "x.qcow2", &long, "a:b", "a@b"]
        {
            assert!(!is_machine_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn locators_need_a_backend_that_is_there_or_a_known_ending() {
        let parse = |text| Locator::parse(text, &["qcow2"]);
        assert!(matches!(parse(""), Err(LocatorError::Form { .. })));
        assert!(matches!(parse("disk.img"), Err(LocatorError::Form { .. })));
        assert!(matches!(parse("zfs:tank/vm"), Err(LocatorError::Backend { .. })));
        assert!(matches!(parse("qcow2:"), Err(LocatorError::Form { .. })));
        assert!(matches!(parse("a\0b.qcow2"), Err(LocatorError::Form { .. })));
        assert!(matches!(parse("/no/such/dir/x.qcow2"), Err(LocatorError::Missing { .. })));
        let found = parse("qcow2:/new.img").expect("a file that is not there yet has a name");
        assert_eq!(found.to_string(), "qcow2:/new.img");
    }
}
