//! Installing plugins: a person is shown what one asks for, and what they approve is what it gets.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use serde::Serialize;
use snapslot_runtime::{Approved, COMPONENT_MAX, Description, Flaw, LoadError, Plugin};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::installed::{InstallError, Installed, Keeping, digest, read_bounded};
use crate::locator::{Known, Locator};

/// How often a plugin that is just being replaced is looked for anew.
const REPLACED_MAX: usize = 100;

/// A component that may be installed: it was compiled, and described itself.
#[derive(Debug)]
pub struct Candidate {
    /// What it asks for.
    pub description: Description,
    /// Its sha256.
    pub digest: String,
    /// What it imports.
    pub imports: Vec<String>,
    /// The version of the contract that it speaks.
    pub contract: String,
    /// The plugin of the same name that it would take the place of.
    pub replaces: Option<Installed>,
    /// Whether the component that is installed is still what was approved.
    whole: bool,
    component: Vec<u8>,
}

impl Candidate {
    /// Names of grants that the one before it was not approved for.
    pub fn news(&self) -> Vec<String> {
        let before = self.replaces.as_ref().map(|p| &p.approved.declared);
        before.map_or_else(|| self.description.grant_names(), |b| self.description.more_than(b))
    }

    /// Whether it is installed already, as it is, and undamaged.
    pub fn is_there(&self) -> bool {
        self.whole && self.replaces.as_ref().is_some_and(|p| p.digest == self.digest)
    }

    /// The grants it is not to have: those named, and those that its predecessor was denied, unless they are
    /// named as given now. Refuses names of grants that it does not ask for.
    pub fn denied(&self, without: &[String], with: &[String]) -> Result<Vec<String>, EngineError> {
        self.check_denied(without)?;
        self.check_denied(with)?;
        if let Some(both) = without.iter().find(|name| with.contains(name)) {
            return Err(EngineError::Usage(format!("{both:?} cannot be both given and denied")));
        }
        let asked = self.description.grant_names();
        let before = self.replaces.iter().flat_map(|p| &p.approved.denied);
        let mut denied: Vec<String> = (before.filter(|name| asked.contains(name)))
            .filter(|name| !with.contains(name))
            .chain(without)
            .cloned()
            .collect();
        denied.sort();
        denied.dedup();
        Ok(denied)
    }

    /// Refuses names of grants that it does not ask for.
    fn check_denied(&self, denied: &[String]) -> Result<(), EngineError> {
        let names = self.description.grant_names();
        match denied.iter().find(|d| !names.contains(d)) {
            None => Ok(()),
            Some(unknown) => Err(EngineError::Usage(format!(
                "it asks for no {unknown:?}; its grants are {}",
                names.join(", ")
            ))),
        }
    }
}

/// What verifying a plugin found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verified {
    /// The plugin; or a file that belongs to none.
    pub name: String,
    /// Its digest, where it has one.
    pub digest: Option<String>,
    /// What is wrong; nothing if it is as it was approved.
    pub problems: Vec<String>,
}

/// Reads a component from a file that a person named.
pub fn read_component(path: &Path) -> Result<Vec<u8>, EngineError> {
    let usage = |why: String| EngineError::Usage(format!("{}: {why}", path.display()));
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .and_then(|file| file.metadata().map(|meta| (file, meta)));
    let (file, meta) = file.map_err(|source| InstallError::Io {
        doing: "open",
        path: path.display().to_string(),
        source,
    })?;
    if !meta.is_file() {
        return Err(usage("it is not a file".to_owned()));
    }
    let too_large = |size: u64| {
        let flaws = vec![Flaw::TooLarge { size, limit: COMPONENT_MAX as u64 }];
        refused(path, &LoadError::Flawed { flaws })
    };
    if meta.len() > COMPONENT_MAX as u64 {
        return Err(too_large(meta.len()));
    }
    let bytes = read_bounded(file, COMPONENT_MAX as u64).map_err(|source| InstallError::Io {
        doing: "read",
        path: path.display().to_string(),
        source,
    })?;
    bytes.ok_or_else(|| too_large(COMPONENT_MAX as u64 + 1))
}

/// What a component is, and all that is wrong with it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Checked {
    /// Its size in bytes.
    pub size: u64,
    /// Its sha256; none if it was too large to be read.
    pub digest: Option<String>,
    /// What it imports, where it got that far.
    pub imports: Vec<String>,
    /// The version of the contract that it speaks, where it got that far.
    pub contract: Option<String>,
    /// What it says of itself, where it got that far.
    pub description: Option<Description>,
    /// What is wrong.
    pub flaws: Vec<Flaw>,
}

impl Engine {
    /// Says of a file whether it is a plugin for this host, and all that keeps it from being one.
    pub fn check_component(&self, path: &Path) -> Result<Checked, EngineError> {
        let mut checked = Checked {
            size: 0,
            digest: None,
            imports: vec![],
            contract: None,
            description: None,
            flaws: vec![],
        };
        checked.size = std::fs::metadata(path).map(|m| m.len()).unwrap_or(0);
        if checked.size > COMPONENT_MAX as u64 {
            checked.flaws.push(Flaw::TooLarge { size: checked.size, limit: COMPONENT_MAX as u64 });
            return Ok(checked);
        }
        let component = read_component(path)?;
        checked.digest = Some(digest(&component));
        match self.runtime.load(&component) {
            Ok(plugin) => {
                checked.imports = plugin.imports().to_vec();
                checked.contract = Some(plugin.contract().to_owned());
                checked.description = Some(plugin.description().clone());
            }
            Err(LoadError::Flawed { flaws }) => checked.flaws = flaws,
            Err(other) => return Err(refused(path, &other)),
        }
        Ok(checked)
    }

    /// Compiles a component, asks it what it is, and says what approving it would mean. Changes
    /// nothing but the cache.
    pub fn consider(&self, path: &Path) -> Result<Candidate, EngineError> {
        let component = read_component(path)?;
        let loaded = self.runtime.load(&component).map_err(|e| refused(path, &e))?;
        let description = loaded.description().clone();
        let (name, digest) = (description.name.clone(), loaded.digest().to_owned());
        let (imports, contract) = (loaded.imports().to_vec(), loaded.contract().to_owned());
        if self.is_built_in(&name) {
            return Err(InstallError::Taken(format!(
                "{} calls itself {name}, and that is a built-in plugin",
                path.display()
            ))
            .into());
        }
        let installed = self.installed()?;
        let replaces = installed.iter().find(|p| p.name == name).cloned();
        self.not_taken(&description, &installed)?;
        let whole = replaces.as_ref().is_some_and(|p| self.shelf.component(p).is_ok());
        Ok(Candidate { description, digest, imports, contract, replaces, whole, component })
    }

    /// Refuses a plugin that serves what another one serves, or that leaves volumes unserved.
    fn not_taken(
        &self,
        description: &Description,
        installed: &[Installed],
    ) -> Result<(), EngineError> {
        let name = &description.name;
        let built_in = self.backends().iter().filter(|k| self.is_built_in(&k.name)).cloned();
        let others = built_in.chain(installed.iter().map(known)).filter(|k| k.name != *name);
        for other in others {
            for ending in &description.endings {
                // A path that ends in the longer one ends in the shorter one too.
                let same = |e: &&String| e.ends_with(ending.as_str()) || ending.ends_with(*e);
                if let Some(theirs) = other.endings.iter().find(same) {
                    return Err(InstallError::Taken(format!(
                        "{name} serves paths that end in {ending}, and the plugin {} those that end in {theirs}",
                        other.name
                    ))
                    .into());
                }
            }
        }
        let before = installed.iter().find(|p| p.name == *name).map(|p| p.approved.declared.place);
        let machines = self.machines_on(name)?;
        match before {
            Some(before) if before != description.place && !machines.is_empty() => {
                Err(InstallError::Taken(format!(
                    "{name} as it is serves {}, as {} needs, and this one {}; disable those first",
                    before.word(),
                    machines.join(", "),
                    description.place.word()
                ))
                .into())
            }
            _ => Ok(()),
        }
    }

    /// The machines with a volume of this plugin.
    fn machines_on(&self, name: &str) -> Result<Vec<String>, EngineError> {
        let prefix = format!("{name}:");
        Ok((self.store.machines()?.into_iter())
            .filter(|m| m.volumes.iter().any(|v| v.starts_with(&prefix)))
            .map(|m| m.name)
            .collect())
    }

    /// Installs it, but for the grants of these names.
    pub fn install(
        &self,
        candidate: Candidate,
        denied: &[String],
    ) -> Result<Installed, EngineError> {
        candidate.check_denied(denied)?;
        let changing = self.shelf.change()?;
        // Somebody may have been quicker: then what was shown is not what would be replaced, or
        // another plugin serves its endings now.
        let installed = self.shelf.read()?;
        let now_there = installed.iter().find(|p| p.name == candidate.description.name);
        if now_there != candidate.replaces.as_ref() {
            return Err(InstallError::Busy.into());
        }
        self.not_taken(&candidate.description, &installed)?;
        let plugin = Installed {
            name: candidate.description.name.clone(),
            digest: candidate.digest,
            approved: Approved { declared: candidate.description, denied: denied.to_vec() },
            added: self.now(),
            user: nix::unistd::Uid::current().as_raw(),
        };
        changing.add(plugin.clone(), &candidate.component)?;
        Ok(plugin)
    }

    /// The component of a built-in plugin.
    pub fn built_in(&self, name: &str) -> Option<&'static [u8]> {
        snapslot_builtin::PLUGINS.iter().find(|b| b.name == name).map(|b| b.component)
    }

    /// Loads a component with all it asks for but these grants, to be asked about what changes nothing.
    pub fn load_component(
        &self,
        name: &str,
        bytes: &[u8],
        denied: &[String],
    ) -> Result<Plugin<'_>, EngineError> {
        self.runtime.load_without(bytes, denied).map_err(|e| EngineError::load(name, &e))
    }

    /// The component of an installed plugin, as it was approved.
    pub fn installed_component(&self, plugin: &Installed) -> Result<Vec<u8>, EngineError> {
        Ok(self.shelf.component(plugin)?)
    }

    /// The plugins that were installed.
    pub fn installed(&self) -> Result<Vec<Installed>, EngineError> {
        Ok(self.shelf.read()?)
    }

    /// Removes a plugin that no machine with a slot needs.
    pub fn uninstall(&self, name: &str) -> Result<(), EngineError> {
        self.may_uninstall(name)?;
        let changing = self.shelf.change()?;
        // A slot may have come meanwhile; now none can: who makes one keeps the plugins meanwhile.
        self.may_uninstall(name)?;
        let gone = self.shelf.read()?.into_iter().find(|p| p.name == name);
        changing.remove(name)?;
        if let Some(plugin) = gone {
            self.runtime.forget(&plugin.digest);
        }
        Ok(())
    }

    /// Sees to it that the plugins of these volumes stay while a slot is made on them.
    pub(crate) fn keep_plugins<'l>(
        &self,
        locators: impl IntoIterator<Item = &'l Locator>,
    ) -> Result<Option<Keeping>, EngineError> {
        let of = |locator: &'l Locator| self.installed_plugin(&locator.backend);
        let needed: Vec<&Installed> = locators.into_iter().filter_map(of).collect();
        if needed.is_empty() {
            return Ok(None);
        }
        let keeping = self.shelf.keep()?;
        // It was there when this engine was opened.
        let now = self.shelf.read()?;
        match needed.iter().find(|plugin| !now.iter().any(|p| p.name == plugin.name)) {
            Some(gone) => Err(InstallError::Missing { name: gone.name.clone() }.into()),
            None => Ok(Some(keeping)),
        }
    }

    /// Refuses as `uninstall` would, and changes nothing.
    pub fn may_uninstall(&self, name: &str) -> Result<(), EngineError> {
        let there = self.installed()?.iter().any(|p| p.name == name);
        if self.is_built_in(name) {
            // One from before this release may have its name. It is not used, and may go.
            return match there {
                true => Ok(()),
                false => Err(InstallError::Taken(format!("{name} is built in and stays")).into()),
            };
        }
        if !there {
            return Err(InstallError::Missing { name: name.to_owned() }.into());
        }
        match self.machines_on(name)? {
            machines if machines.is_empty() => Ok(()),
            machines => Err(InstallError::Needed { name: name.to_owned(), machines }.into()),
        }
    }

    /// Holds installed plugins, or the one of this name, against what was approved.
    pub fn verify_plugins(&self, name: Option<&str>) -> Result<Vec<Verified>, EngineError> {
        let installed = self.installed()?;
        if let Some(name) = name
            && !installed.iter().any(|p| p.name == name)
        {
            return Err(InstallError::Missing { name: name.to_owned() }.into());
        }
        let mut all = Vec::new();
        for plugin in installed.iter().filter(|p| name.is_none_or(|n| p.name == n)) {
            let mut problems = match self.load_installed(plugin) {
                Ok(_) => Vec::new(),
                Err(error) => vec![error.to_string()],
            };
            if self.is_built_in(&plugin.name) {
                problems.push(format!(
                    "a built-in plugin has its name now and is used in its place; `snapslot plugin remove {}` removes it",
                    plugin.name
                ));
            }
            all.push(Verified {
                name: plugin.name.clone(),
                digest: Some(plugin.digest.clone()),
                problems,
            });
        }
        if name.is_none() {
            all.extend(self.left_over(&installed).into_iter().map(|path| Verified {
                name: path.display().to_string(),
                digest: None,
                problems: vec![
                    "it belongs to no plugin: an interrupted change left it; the next `snapslot plugin add` or `remove` removes it".to_owned(),
                ],
            }));
        }
        Ok(all)
    }

    /// What an interrupted change left; not what one that runs is about to name.
    fn left_over(&self, installed: &[Installed]) -> Vec<PathBuf> {
        let found = self.shelf.orphans(installed);
        if found.is_empty() {
            return found;
        }
        match self.shelf.change() {
            Ok(_held) => match self.shelf.read() {
                Ok(now) => self.shelf.orphans(&now),
                Err(_) => found,
            },
            Err(InstallError::Busy) => Vec::new(),
            // Who may not change anything may be told all the same.
            Err(_) => found,
        }
    }

    pub(crate) fn load_installed(&self, plugin: &Installed) -> Result<Plugin<'_>, EngineError> {
        let mut plugin = plugin.clone();
        // Story: a version that was replaced after the list was read had no component any more, and the
        // command failed. The list says which one there is now.
        for _ in 0..REPLACED_MAX {
            let component = match self.shelf.component(&plugin) {
                Err(InstallError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    let now = self.shelf.read()?.into_iter().find(|p| p.name == plugin.name);
                    match now {
                        Some(now) if now.digest != plugin.digest => {
                            plugin = now;
                            continue;
                        }
                        _ => self.shelf.component(&plugin)?,
                    }
                }
                component => component?,
            };
            return (self.runtime.load_approved(&component, &plugin.approved))
                .map_err(|e| EngineError::load(&plugin.name, &e));
        }
        Err(InstallError::Busy.into())
    }
}

/// What is known of an installed plugin without starting it.
pub(crate) fn known(plugin: &Installed) -> Known {
    Known {
        name: plugin.name.clone(),
        place: plugin.approved.declared.place.into(),
        endings: plugin.approved.declared.endings.clone(),
    }
}

fn refused(path: &Path, error: &LoadError) -> EngineError {
    EngineError::Plugin {
        volume: path.display().to_string(),
        plugin: "new".to_owned(),
        cause: error.to_string(),
        log: error.log(),
    }
}
