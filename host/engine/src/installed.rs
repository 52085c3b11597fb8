//! Plugins that were installed: components, and what was approved of them.
//!
//! ```text
//! STATE/plugins/lock.json      name, digest, what was shown and approved, by whom and when
//! STATE/plugins/DIGEST.wasm    the component, as it was then
//! STATE/plugins/lock           held alone by who changes any of this, shared by who begins to need it
//! ```
//!
//! The component is copied in, so that what happens to the file it came from does not matter, and
//! what is loaded is what was approved: its digest is taken anew each time. `lock.json` is the one
//! thing that says which plugins there are. It is replaced whole, after the component it names is
//! durable and before one it does not name any more goes; so a crash leaves the old state or the new
//! one, and at worst a component that nobody names.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};
use snapslot_disk::untrusted;
use snapslot_runtime::{Approved, COMPONENT_MAX};
use snapslot_slot::Moment;

/// How often a file that is just being replaced is opened anew.
const REPLACED_MAX: usize = 100;
/// The shape of `lock.json`.
const VERSION: u32 = 1;
/// A thousand plugins with all grants the contract allows.
const LOCK_MAX: u64 = 64 << 20;

/// One installed plugin.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Installed {
    /// Its name in locators.
    pub name: String,
    /// The component's sha256, in hexadecimal.
    pub digest: String,
    /// What was shown, and what of it was denied.
    pub approved: Approved,
    /// When that was.
    pub added: Moment,
    /// By which user, as a number.
    pub user: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct Lock {
    version: u32,
    plugins: Vec<Installed>,
}

/// What is wrong with what is installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be read or written.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A file cannot be believed.
    #[error(
        "{path} is not used: {why}; put it right, or move it away and add its plugins anew from files you trust"
    )]
    Untrusted {
        /// The file or directory.
        path: String,
        /// Why.
        why: String,
    },
    /// The component is not the one that was approved.
    #[error(
        "{path} has changed since the plugin {name} was added (sha256 {found}, approved {approved}); add it anew from a file you trust, or remove it"
    )]
    Changed {
        /// The plugin.
        name: String,
        /// The component.
        path: String,
        /// Its digest now.
        found: String,
        /// The digest that was approved.
        approved: String,
    },
    /// Another process is changing what is installed.
    #[error(
        "another process is adding, removing or beginning to need a plugin; try again when it is done"
    )]
    Busy,
    /// It is not installed.
    #[error("no plugin {name} is installed; `snapslot plugin list` shows those there are")]
    Missing {
        /// The name.
        name: String,
    },
    /// The name or an ending is taken.
    #[error("{0}")]
    Taken(String),
    /// Volumes need it.
    #[error("the plugin {name} is needed by {}; disable them first", .machines.join(", "))]
    Needed {
        /// The plugin.
        name: String,
        /// The machines.
        machines: Vec<String>,
    },
}

/// The directory.
#[derive(Debug)]
pub(crate) struct Shelf(PathBuf);

/// The right that nothing of it is changed meanwhile.
#[derive(Debug)]
pub(crate) struct Keeping(#[allow(dead_code, reason = "held, not looked at")] Flock<File>);

/// The right to change it.
pub(crate) struct Changing<'s> {
    shelf: &'s Shelf,
    _held: Flock<File>,
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.display().to_string();
    move |source| InstallError::Io { doing, path, source }
}

impl Shelf {
    pub fn of(state_dir: &Path) -> Shelf {
        Shelf(state_dir.join("plugins"))
    }

    fn lock_file(&self) -> PathBuf {
        self.0.join("lock.json")
    }

    /// Where the component with this digest lies.
    pub fn component_file(&self, digest: &str) -> PathBuf {
        self.0.join(format!("{digest}.wasm"))
    }

    /// Whether the directory is there. Refused if others can write it: they could put an older
    /// list of ours back, or take one away.
    fn is_there(&self) -> Result<bool, InstallError> {
        let meta = match fs::symlink_metadata(&self.0) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(failed("look at", &self.0)(e)),
        };
        let ours = [nix::unistd::Uid::effective().as_raw(), 0].contains(&meta.uid());
        let why = match (meta.is_dir(), ours, meta.mode() & 0o022) {
            (false, ..) => "it is not a directory",
            (_, false, _) => "it belongs to somebody else",
            (.., 1..) => "others may write it",
            _ => return Ok(true),
        };
        let path = self.0.display().to_string();
        Err(InstallError::Untrusted { path, why: why.to_owned() })
    }

    /// What is installed, by name.
    pub fn read(&self) -> Result<Vec<Installed>, InstallError> {
        if !self.is_there()? {
            return Ok(Vec::new());
        }
        let path = self.lock_file();
        let Some(bytes) = trusted(&path, LOCK_MAX)? else { return Ok(Vec::new()) };
        let wrong = |why: String| InstallError::Untrusted { path: path.display().to_string(), why };
        let lock: Lock = serde_json::from_slice(&bytes)
            .map_err(|e| wrong(format!("it cannot be read as a list of plugins: {e}")))?;
        if lock.version != VERSION {
            return Err(wrong(format!(
                "it has version {}, this program knows version {VERSION}",
                lock.version
            )));
        }
        for (i, plugin) in lock.plugins.iter().enumerate() {
            let digest_ok = is_digest(&plugin.digest);
            let twice = lock.plugins[..i].iter().any(|p| p.name == plugin.name);
            if !digest_ok || twice || plugin.name != plugin.approved.declared.name {
                return Err(wrong(format!("what it says of {:?} contradicts itself", plugin.name)));
            }
        }
        Ok(lock.plugins)
    }

    /// The component of an installed plugin, exactly as it was approved.
    pub fn component(&self, plugin: &Installed) -> Result<Vec<u8>, InstallError> {
        let path = self.component_file(&plugin.digest);
        let bytes = trusted(&path, COMPONENT_MAX as u64)?
            .ok_or_else(|| failed("open", &path)(io::ErrorKind::NotFound.into()))?;
        let found = digest(&bytes);
        if found != plugin.digest {
            return Err(InstallError::Changed {
                name: plugin.name.clone(),
                path: path.display().to_string(),
                found,
                approved: plugin.digest.clone(),
            });
        }
        Ok(bytes)
    }

    /// Components that no plugin names, and halves of files: what a crash left. What does not look
    /// as if we had made it is not ours to tell of or to remove.
    pub fn orphans(&self, installed: &[Installed]) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let named = |name: &str| installed.iter().any(|p| name == format!("{}.wasm", p.digest));
        (entries.flatten().map(|e| e.path()))
            .filter(|path| {
                let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                let half = name.strip_suffix(".part");
                half.is_some_and(|stem| stem == "lock" || is_digest(stem))
                    || (name.strip_suffix(".wasm").is_some_and(is_digest) && !named(name))
            })
            .collect()
    }

    /// Takes the right to change it; fails if somebody else has it.
    pub fn change(&self) -> Result<Changing<'_>, InstallError> {
        if !self.is_there()? {
            let above = self.0.parent().unwrap_or(Path::new("/"));
            (fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0))
                // Its name is durable before anything in it is said to be.
                .and_then(|()| File::open(above)?.sync_all())
                .map_err(failed("make", &self.0))?;
        }
        let held = self.locked(FlockArg::LockExclusiveNonblock)?;
        Ok(Changing { shelf: self, _held: held })
    }

    /// Sees to it that nothing is changed for as long as what comes back is held; waits for who changes
    /// something now, which takes a moment.
    pub fn keep(&self) -> Result<Keeping, InstallError> {
        self.locked(FlockArg::LockShared).map(Keeping)
    }

    fn locked(&self, how: FlockArg) -> Result<Flock<File>, InstallError> {
        let path = self.0.join("lock");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlag::O_NOFOLLOW.bits())
            .open(&path)
            .map_err(failed("open", &path))?;
        match Flock::lock(file, how) {
            Ok(held) => Ok(held),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(InstallError::Busy),
            Err((_, errno)) => Err(failed("lock", &path)(errno.into())),
        }
    }
}

impl Changing<'_> {
    /// Adds a plugin, or puts it in the place of one of the same name.
    pub fn add(&self, plugin: Installed, component: &[u8]) -> Result<(), InstallError> {
        let mut plugins = self.shelf.read()?;
        plugins.retain(|p| p.name != plugin.name);
        let file = self.shelf.component_file(&plugin.digest);
        plugins.push(plugin);
        let text = self.text(&mut plugins)?;
        self.write(&file, component)?;
        self.commit(&plugins, &text)
    }

    /// Removes a plugin.
    pub fn remove(&self, name: &str) -> Result<(), InstallError> {
        let mut plugins = self.shelf.read()?;
        let before = plugins.len();
        plugins.retain(|p| p.name != name);
        if plugins.len() == before {
            return Err(InstallError::Missing { name: name.to_owned() });
        }
        let text = self.text(&mut plugins)?;
        self.commit(&plugins, &text)
    }

    /// The list as it is written: in order, and never longer than what is read again.
    fn text(&self, plugins: &mut [Installed]) -> Result<Vec<u8>, InstallError> {
        plugins.sort_by(|a, b| a.name.cmp(&b.name));
        let path = self.shelf.lock_file();
        let mut text =
            serde_json::to_vec_pretty(&Lock { version: VERSION, plugins: plugins.to_vec() })
                .map_err(|e| failed("write", &path)(e.into()))?;
        text.push(b'\n');
        if text.len() as u64 > LOCK_MAX {
            return Err(failed("write", &path)(io::ErrorKind::FileTooLarge.into()));
        }
        Ok(text)
    }

    fn commit(&self, plugins: &[Installed], text: &[u8]) -> Result<(), InstallError> {
        self.write(&self.shelf.lock_file(), text)?;
        for orphan in self.shelf.orphans(plugins) {
            // It is not named any more; one that stays is told by `verify`.
            let _ = fs::remove_file(orphan);
        }
        Ok(())
    }

    /// Writes a file whole: durable beside, renamed, and the name durable.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<(), InstallError> {
        let beside = path.with_extension("part");
        // Nobody else writes here: what lies there is left of a crash.
        let _ = fs::remove_file(&beside);
        (OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside))
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&beside, path))
            .and_then(|()| File::open(&self.shelf.0)?.sync_all())
            .map_err(failed("write", path))
    }
}

fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// The sha256 of these bytes, in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// A file of ours, whole; none if it is not there. Refused if others could have written it.
fn trusted(path: &Path, most: u64) -> Result<Option<Vec<u8>>, InstallError> {
    let wrong = |why: &str| InstallError::Untrusted {
        path: path.display().to_string(),
        why: why.to_owned(),
    };
    // Story: a file that was replaced between opening it and looking at it has no name any more,
    // and was told as one that has more than one.
    for _ in 0..REPLACED_MAX {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
            .open(path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed("open", path)(e)),
        };
        let meta = file.metadata().map_err(failed("look at", path))?;
        if meta.nlink() == 0 {
            continue;
        }
        if let Some(why) = untrusted(&meta, None) {
            return Err(wrong(why));
        }
        return read_bounded(file, most)
            .map_err(failed("read", path))?
            .map(Some)
            .ok_or_else(|| wrong(&format!("it has more than {most} bytes")));
    }
    Err(InstallError::Busy)
}

/// All of a file; none if it has more than so many bytes.
pub(crate) fn read_bounded(file: File, most: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= most).then_some(bytes))
}
