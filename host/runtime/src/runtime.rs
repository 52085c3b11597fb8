//! The machinery that plugins share, and loading them.

use std::borrow::Cow;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::apart::{Apart, Component, Confinement};
use crate::approved::Approved;
use crate::bindings::types::Description;
use crate::cache::Cache;
use crate::call::{Call, Reply};
use crate::described::broken_limits;
use crate::fault::{CallError, LoadError};
use crate::flaw::{Flaw, shape};
use crate::grants::effective;
use crate::limits::Limits;
use crate::machine::{Loaded, Machine};
use crate::plugin::{Code, Plugin};
use crate::record::Recording;

/// A component of plain code has 50 KiB to a few MiB; one with a language runtime some 20 MiB.
pub const COMPONENT_MAX: usize = 64 << 20;

/// Where plugins run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confine {
    /// In a process of their own: this program, called with [`ARGUMENT`](crate::ARGUMENT), calls
    /// [`serve`](crate::serve). If it cannot be started, within this one, and that is told.
    Apart(PathBuf),
    /// The same, and not at all if it cannot be started: for components that nobody approved yet.
    Separately(PathBuf),
    /// The same, and not at all if any part of the confinement cannot be had.
    Strictly(PathBuf),
    /// Within this process.
    Here,
}

/// The machinery that all plugins share.
pub struct Runtime {
    pub(crate) home: Home,
    pub(crate) cache: Cache,
    pub(crate) recording: Option<Recording>,
}

pub(crate) enum Home {
    Here(Box<Machine>),
    Apart(Box<Apart>),
}

/// What of what it asks for a component is given.
enum Given<'a> {
    /// All but this.
    Without(&'a [String]),
    /// What a person approved.
    Approved(&'a Approved),
}

impl Runtime {
    /// A runtime that keeps compiled plugins in this directory, and lets one call compute for
    /// this long, at most as long as the contract says.
    pub fn new(
        cache: &Path,
        computing: Option<Duration>,
        confine: &Confine,
    ) -> Result<Self, LoadError> {
        let limits = computing.map_or_else(Limits::default, Limits::of_calls);
        Self::limited(cache, limits, confine)
    }

    /// The same, with limits of its own.
    pub fn limited(cache: &Path, limits: Limits, confine: &Confine) -> Result<Self, LoadError> {
        let here = || -> Result<Home, LoadError> {
            let machine = Machine::new(limits).map_err(|e| LoadError::Host(format!("{e:#}")))?;
            Ok(Home::Here(Box::new(machine)))
        };
        let strict = matches!(confine, Confine::Strictly(_));
        let home = match confine {
            Confine::Here => here()?,
            Confine::Apart(program) | Confine::Separately(program) | Confine::Strictly(program) => {
                match Apart::start(program.clone(), limits, strict) {
                    Ok(apart) => Home::Apart(Box::new(apart)),
                    Err(error) if matches!(confine, Confine::Apart(_)) => {
                        tracing::warn!(%error, "plugins are not confined");
                        here()?
                    }
                    Err(error) => {
                        return Err(LoadError::Host(format!(
                            "plugins cannot be confined, because no process can be started: {error}"
                        )));
                    }
                }
            }
        };
        // Opened while the process readies itself.
        let runtime = Runtime { home, cache: Cache::open(cache), recording: None };
        if let (true, Home::Apart(apart)) = (strict, &runtime.home) {
            apart.confinement().map_err(LoadError::Host)?;
        }
        Ok(runtime)
    }

    /// Writes every call of every plugin down, from now on.
    #[must_use]
    pub fn recording(mut self, recording: Option<Recording>) -> Self {
        self.recording = recording;
        self
    }

    /// Ends the processes that run plugins; another call would start one again.
    pub fn end(&self) {
        if let Home::Apart(apart) = &self.home {
            apart.end();
        }
    }

    /// The same, without waiting until they are gone.
    pub fn end_soon(&self) {
        if let Home::Apart(apart) = &self.home {
            apart.end_soon();
        }
    }

    /// Removes the compiled code of a component from the cache.
    pub fn forget(&self, digest: &str) {
        self.cache.forget(digest);
    }

    /// What holds plugins besides wasm.
    pub fn confinement(&self) -> Confinement {
        match &self.home {
            Home::Here(_) => Confinement::default(),
            Home::Apart(apart) => apart.confinement().unwrap_or_default(),
        }
    }

    /// Has a component of this program's own be made ready before it is needed, if it was compiled before.
    pub fn expect(&self, digest: &str) {
        if let Home::Apart(apart) = &self.home {
            apart.expect(digest, &self.cache);
        }
    }

    /// Loads a component, asks it what it is, and grants it all it asks for.
    pub fn load(&self, bytes: &[u8]) -> Result<Plugin<'_>, LoadError> {
        self.load_with(bytes, &Given::Without(&[]))
    }

    /// The same with one of this program's own, whose sha256 is known.
    pub fn load_known(&self, bytes: &'static [u8], digest: &str) -> Result<Plugin<'_>, LoadError> {
        self.load_digested(Cow::Borrowed(bytes), digest.to_owned(), &Given::Without(&[]))
    }

    /// The same, but for the grants of these names.
    pub fn load_without(&self, bytes: &[u8], denied: &[String]) -> Result<Plugin<'_>, LoadError> {
        self.load_with(bytes, &Given::Without(denied))
    }

    /// Loads a component and grants it what it asks for and was approved. If it asks for something
    /// that was never shown, it is refused.
    pub fn load_approved(
        &self,
        bytes: &[u8],
        approved: &Approved,
    ) -> Result<Plugin<'_>, LoadError> {
        self.load_with(bytes, &Given::Approved(approved))
    }

    fn load_with(&self, bytes: &[u8], given: &Given<'_>) -> Result<Plugin<'_>, LoadError> {
        if bytes.len() > COMPONENT_MAX {
            let (size, limit) = (bytes.len() as u64, COMPONENT_MAX as u64);
            return Err(flawed(vec![Flaw::TooLarge { size, limit }]));
        }
        shape(bytes).map_err(|flaw| flawed(vec![flaw]))?;
        let digest = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        self.load_digested(Cow::Owned(bytes.to_vec()), digest, given)
    }

    fn load_digested(
        &self,
        bytes: Cow<'static, [u8]>,
        digest: String,
        given: &Given<'_>,
    ) -> Result<Plugin<'_>, LoadError> {
        let (code, linked) = match &self.home {
            Home::Here(machine) => {
                let loaded = self.load_here(machine, &digest, &bytes)?;
                let linked = loaded.linked.clone();
                (Code::Here(Box::new(loaded)), linked)
            }
            Home::Apart(apart) => {
                let component = Component { digest: digest.clone(), bytes, granted: None };
                let loaded = apart.load(&component, &self.cache).map_err(LoadError::Host)?;
                let linked = loaded.map_err(flawed)?;
                (Code::Apart(Box::new(component)), linked)
            }
        };
        let mut plugin = Plugin {
            runtime: self,
            code,
            digest,
            linked,
            description: Description::unknown(),
            grants: Arc::default(),
            denied: Vec::new(),
            templates: Vec::new(),
        };
        let cannot = |why: String, log| flawed(vec![Flaw::Describe { why, log }]);
        let description = match plugin.call(&Call::Describe, None) {
            Ok(Reply::Described(description)) => description,
            Ok(_) => return Err(cannot("it described something else".to_owned(), Vec::new())),
            Err(CallError::Refused(failure)) => return Err(cannot(failure.message, Vec::new())),
            Err(CallError::Fault { cause, log, .. }) => return Err(cannot(cause, log)),
        };
        let asks = description;
        // Grants nobody should be asked to approve are told first.
        let mut flaws = broken_limits(&asks);
        flaws.extend(effective(&asks).err().into_iter().flatten());
        if !flaws.is_empty() {
            return Err(flawed(flaws));
        }
        let (denied, has) = match given {
            Given::Without(denied) => (*denied, asks.without(denied)),
            Given::Approved(approved) => {
                let has = approved.effective(&asks);
                let has = has.map_err(|grants| LoadError::NotApproved { grants })?;
                (approved.denied.as_slice(), has)
            }
        };
        let asked_for = asks.grant_names();
        plugin.denied = denied.iter().filter(|name| asked_for.contains(name)).cloned().collect();
        plugin.templates = asks.templates(&plugin.denied);
        plugin.description = has;
        plugin.grants = Arc::new(effective(&plugin.description).map_err(flawed)?);
        if let Code::Apart(component) = &mut plugin.code {
            component.granted = Some(plugin.description.clone());
        }
        plugin.described(&asks);
        Ok(plugin)
    }

    fn load_here(
        &self,
        machine: &Machine,
        digest: &str,
        bytes: &[u8],
    ) -> Result<Loaded, LoadError> {
        let kept = self.cache.find(digest, machine.key()).and_then(|mut file| {
            let mut code = Vec::new();
            file.read_to_end(&mut code).ok()?;
            // SAFETY: the file was written by this user, as the cache checked for it and for its
            // directory, and this program writes there only what its own compiler made.
            unsafe { machine.revive(&code) }
        });
        let component = match kept {
            Some(component) => component,
            None => {
                let (component, code) =
                    machine.compile(bytes).map_err(|flaw| flawed(vec![flaw]))?;
                if let Some(code) = code {
                    self.cache.keep(digest, machine.key(), &code);
                }
                component
            }
        };
        machine.link(&component).map_err(flawed)
    }
}

fn flawed(flaws: Vec<Flaw>) -> LoadError {
    LoadError::Flawed { flaws: flaws.into_iter().map(Flaw::shown).collect() }
}
