//! The engine: settings, record, plugins, and which machine is meant.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use snapslot_command::{Executor, PlaceKind, Runner};
use snapslot_disk::EngineLock;
use snapslot_runtime::{Confine, Confinement, Plugin, Recording, Runtime};
use snapslot_slot::{Moment, Refusal};

use crate::clock::{Clock, OfThisMachine};
use crate::error::EngineError;
use crate::installed::{Installed, Shelf};
use crate::locator::{Known, Locator, LocatorError, is_machine_name, named};
use crate::plugins;
use crate::rehearse::Depth;
use crate::status::lock_error;
use crate::store::{Machine, Seen, SlotStore, SqliteStore};
use crate::volume::Volume;

/// Volumes of one machine.
const VOLUMES_MAX: usize = 64;
/// How long a command is waited for that outlived its engine. Most take a fraction of that; a merge may
/// take hours.
const LEFT_OVER_MAX: Duration = Duration::from_secs(15);

/// Where things are kept and how much is checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The record's directory.
    pub state_dir: PathBuf,
    /// The compiled plugins' directory.
    pub cache_dir: PathBuf,
    /// How deep plans are rehearsed.
    pub rehearsal: Depth,
    /// Whether a take enables a bare volume on the way.
    pub enable_on_take: bool,
    /// Plugins beside the built-in ones, and in place of those of the same name: what is known of
    /// them, and the component.
    pub more_plugins: Vec<(Known, Vec<u8>)>,
    /// How long one call of a plugin may compute; none: the contract's limit.
    pub plugin_time_max: Option<Duration>,
    /// Where plugins run.
    pub confine: Confine,
    /// A new file in which every call of a plugin is written down.
    pub record: Option<PathBuf>,
    /// What runs the storage's own commands; none: this machine's programs.
    pub tools: Option<Tools>,
}

/// Something that runs commands in place of this machine's programs.
#[derive(Clone)]
pub struct Tools(pub Arc<dyn Executor>);

impl fmt::Debug for Tools {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tools")
    }
}

/// The engine.
pub struct Engine {
    pub(crate) settings: Settings,
    pub(crate) store: Box<dyn SlotStore>,
    pub(crate) runtime: Arc<Runtime>,
    pub(crate) commands: Arc<dyn Executor>,
    pub(crate) shelf: Shelf,
    clock: Arc<dyn Clock>,
    pub(crate) patience: Duration,
    known: Vec<Known>,
    installed: Vec<Installed>,
    unreadable: bool,
    /// Whether it is there for one command: then plugins need not outlive what it asks them.
    one_command: bool,
}

fn built_in(name: &str) -> Option<&'static snapslot_builtin::Builtin> {
    snapslot_builtin::PLUGINS.iter().find(|b| b.name == name)
}

fn is_built_in(name: &str) -> bool {
    built_in(name).is_some()
}

impl Engine {
    /// Opens the record and readies the plugins' machinery.
    pub fn open(settings: Settings) -> Result<Engine, EngineError> {
        Self::open_for(settings, None)
    }

    /// The same, when it will be asked about this machine at once: the plugin that its volume needs, as far as its
    /// words tell, is made ready meanwhile, if it is one of ours.
    pub fn open_for(settings: Settings, machine: Option<&str>) -> Result<Engine, EngineError> {
        // First, because the process for plugins readies itself while the record is opened.
        let runtime =
            Runtime::new(&settings.cache_dir, settings.plugin_time_max, &settings.confine)
                .map_err(|e| EngineError::load("any", &e))?;
        let ours: Vec<Known> = snapslot_builtin::PLUGINS.iter().map(builtin).collect();
        let likely = machine.and_then(|text| named(text, &ours).ok());
        if let Some(plugin) = likely.and_then(|(known, _)| built_in(&known.name)) {
            runtime.expect(plugin.digest);
        }
        let recording = settings.record.as_deref().map(Recording::begin).transpose();
        let recording = recording.map_err(|e| {
            let path = settings.record.as_deref().unwrap_or(Path::new("")).display();
            EngineError::Usage(format!("nothing can be recorded in {path}: {e}"))
        })?;
        Self::open_sharing(settings, Arc::new(runtime.recording(recording)))
    }

    /// The same, with machinery that other engines share.
    pub fn open_sharing(settings: Settings, runtime: Arc<Runtime>) -> Result<Engine, EngineError> {
        let store = Box::new(SqliteStore::open(&settings.state_dir)?);
        let commands = match &settings.tools {
            Some(tools) => tools.0.clone(),
            None => Arc::new(Runner::default()),
        };
        let shelf = Shelf::of(&settings.state_dir);
        // Machines on built-in plugins are served whatever befell the installed ones.
        let read = shelf.read();
        if let Err(error) = &read {
            tracing::warn!("{error}; until then there are built-in plugins only");
        }
        let unreadable = read.is_err();
        let mut installed = read.unwrap_or_default();
        installed.retain(|p| !is_built_in(&p.name));
        let given = |name: &str| settings.more_plugins.iter().any(|(known, _)| known.name == name);
        let known = (settings.more_plugins.iter().map(|(known, _)| known.clone()))
            .chain(snapslot_builtin::PLUGINS.iter().map(builtin).filter(|b| !given(&b.name)))
            .chain(installed.iter().map(plugins::known).filter(|p| !given(&p.name)))
            .collect();
        let clock = Arc::new(OfThisMachine);
        let patience = LEFT_OVER_MAX;
        Ok(Engine {
            settings,
            store,
            runtime,
            commands,
            shelf,
            clock,
            patience,
            known,
            installed,
            unreadable,
            one_command: false,
        })
    }

    /// Takes moments and marks from there and not from this machine: for tests.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Engine {
        self.clock = clock;
        self
    }

    /// The present moment.
    pub(crate) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// A mark that no other snapshot has.
    pub(crate) fn new_mark(&self) -> Result<String, EngineError> {
        let bytes = self.clock.chance();
        let bytes =
            bytes.map_err(|e| EngineError::Usage(format!("the system has no randomness: {e}")))?;
        Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
    }

    /// The same, for one command: the plugins' process ends as soon as nothing more is asked of it, and is
    /// cleared up meanwhile.
    #[must_use]
    pub fn for_one_command(mut self) -> Engine {
        self.one_command = true;
        self
    }

    /// Nothing more is asked of plugins by the verb at hand.
    pub(crate) fn plugins_have_done(&self) {
        if self.one_command {
            self.runtime.end_soon();
        }
    }

    /// Has it wait so long for a command that outlived the engine that ran it.
    pub fn with_patience(self, patience: Duration) -> Engine {
        Engine { patience, ..self }
    }

    /// Ends the process that runs plugins, for who ends without dropping the engine.
    pub fn end_plugins(&self) {
        self.runtime.end();
    }

    /// What holds plugins besides wasm.
    pub fn confinement(&self) -> Confinement {
        self.runtime.confinement()
    }

    /// The compiled plugins' directory.
    pub fn cache_dir(&self) -> &Path {
        &self.settings.cache_dir
    }

    /// The record's directory.
    pub fn state_dir(&self) -> &Path {
        &self.settings.state_dir
    }

    /// Where plugins run.
    pub fn confine(&self) -> &Confine {
        &self.settings.confine
    }

    /// The backends there are.
    pub fn backends(&self) -> &[Known] {
        &self.known
    }

    /// Whether the plugin of this name is built in. Then it is the one that is used, even if an
    /// installed one, from before this release, has its name.
    pub fn is_built_in(&self, name: &str) -> bool {
        is_built_in(name)
    }

    /// The volume that is meant.
    pub(crate) fn located(&self, text: &str) -> Result<Locator, EngineError> {
        Locator::parse(text, self.backends()).or_else(|error| {
            let unknown = matches!(error, LocatorError::Backend { .. } | LocatorError::Form { .. });
            if unknown && self.unreadable {
                // It may be a volume of a plugin that cannot be known: that is the news.
                self.shelf.read()?;
            }
            Err(error.into())
        })
    }

    /// The plugin of this name, if it is one that was installed and is used.
    pub(crate) fn installed_plugin(&self, name: &str) -> Option<&Installed> {
        self.installed.iter().find(|p| p.name == name)
    }

    /// The plugin of this name.
    pub fn plugin(&self, name: &str) -> Result<Plugin<'_>, EngineError> {
        if let Some((_, component)) = self.given(name) {
            return self.runtime.load(component).map_err(|e| EngineError::load(name, &e));
        }
        if let Some(plugin) = self.installed_plugin(name) {
            return self.load_installed(plugin);
        }
        let loaded = match built_in(name) {
            Some(b) => self.runtime.load_known(b.component, b.digest),
            None => {
                if self.unreadable {
                    self.shelf.read()?;
                }
                return Err(LocatorError::Backend { backend: name.to_owned() }.into());
            }
        };
        loaded.map_err(|e| EngineError::load(name, &e))
    }

    /// The plugin of this name that the settings bring along. It comes before all others: whoever
    /// tries a plugin must not be answered by another one of its name.
    fn given(&self, name: &str) -> Option<&(Known, Vec<u8>)> {
        self.settings.more_plugins.iter().find(|(known, _)| known.name == name)
    }

    /// How deep plans of this plugin are rehearsed: in full where it is not one of ours.
    pub(crate) fn rehearsal_of(&self, name: &str) -> Depth {
        match is_built_in(name) && self.given(name).is_none() {
            true => self.settings.rehearsal,
            false => Depth::Full,
        }
    }

    /// The plugins of these volumes.
    pub(crate) fn plugins(&self, volumes: &[Volume]) -> Result<Vec<Plugin<'_>>, EngineError> {
        volumes.iter().map(|v| self.plugin(&v.locator.backend)).collect()
    }

    /// The machine that is meant: by its name, or by one of its volumes. A volume that belongs
    /// to no machine is a machine of its own, not yet enabled (`false`).
    pub fn resolve(&self, text: &str) -> Result<(Machine, bool), EngineError> {
        // A machine that has a name keeps it, whatever endings plugins serve that came later.
        if !text.contains([':', '/'])
            && let Some(machine) = self.store.machine(text)?
        {
            return Ok((machine, true));
        }
        if is_machine_name(text, self.backends()) {
            return Err(EngineError::NoMachine { name: text.to_owned() });
        }
        let locator = self.located(text)?.to_string();
        if let Some(machine) = self.store.machine_of(&locator)? {
            return Ok((machine, true));
        }
        let bare = Machine {
            name: locator.clone(),
            volumes: vec![locator],
            occupant: None,
            pending: None,
            seen: vec![Seen::default()],
        };
        Ok((bare, false))
    }

    /// The volumes of a machine, as locators.
    pub(crate) fn locators(&self, machine: &Machine) -> Result<Vec<Locator>, EngineError> {
        machine.volumes.iter().map(|v| self.located(v)).collect()
    }

    /// Makes an empty slot for a machine with these volumes. `name` may be a volume itself.
    pub fn enable(&self, name: &str, volumes: &[String]) -> Result<Machine, EngineError> {
        if volumes.is_empty() {
            let (machine, known) = self.resolve(name).map_err(|e| match e {
                EngineError::NoMachine { name } => EngineError::Usage(format!(
                    "a machine needs at least one volume: `snapslot enable {name} --volume V`"
                )),
                other => other,
            })?;
            if known {
                return Err(refused(&machine.name, Refusal::AlreadyEnabled));
            }
            return self.enable_volumes(&machine.name, &machine.volumes);
        }
        if !is_machine_name(name, self.backends()) {
            return Err(EngineError::Usage(format!(
                "{name:?} cannot be a machine's name: letters, digits, '.', '_' and '-', at most 64"
            )));
        }
        if volumes.len() > VOLUMES_MAX {
            return Err(EngineError::Usage(format!("a machine has at most {VOLUMES_MAX} volumes")));
        }
        let mut locators = Vec::new();
        for volume in volumes {
            let locator = self.located(volume)?.to_string();
            if locators.contains(&locator) {
                return Err(EngineError::Usage(format!("{locator} is named twice")));
            }
            locators.push(locator);
        }
        self.enable_volumes(name, &locators)
    }

    pub(crate) fn enable_volumes(
        &self,
        name: &str,
        locators: &[String],
    ) -> Result<Machine, EngineError> {
        let places: Vec<Locator> =
            locators.iter().map(|l| self.located(l)).collect::<Result<_, _>>()?;
        let _keeping = self.keep_plugins(&places)?;
        let mut files = Vec::new();
        for locator in locators {
            // What cannot be looked at cannot have a slot: say so now, not at the first take.
            let file = self.look(&self.located(locator)?)?;
            if file.is_some() && files.contains(&file) {
                return Err(EngineError::Usage(format!(
                    "{locator} is another volume's file by another name"
                )));
            }
            files.push(file);
        }
        let opened = self.shared(locators)?;
        let _shares = share(&opened)?;
        if !self.store.enable(name, locators)? {
            for locator in locators {
                if let Some(other) = self.store.machine_of(locator)?
                    && other.name != name
                {
                    return Err(EngineError::Usage(format!(
                        "{locator} belongs to the machine {} already",
                        other.name
                    )));
                }
            }
            return Err(refused(name, Refusal::AlreadyEnabled));
        }
        let now = self.now();
        let operation = self.store.begin(name, "enable", now)?;
        self.store.end(operation, now, "done")?;
        Ok(Machine {
            name: name.to_owned(),
            volumes: locators.to_vec(),
            occupant: None,
            pending: None,
            seen: vec![Seen::default(); locators.len()],
        })
    }

    /// Volumes, opened so that their locks can be shared.
    pub(crate) fn shared(&self, locators: &[String]) -> Result<Vec<Volume>, EngineError> {
        let looks = self.looks();
        locators.iter().map(|l| Volume::open_to_look(self, &self.located(l)?, &looks)).collect()
    }

    /// The record.
    pub fn store(&self) -> &dyn SlotStore {
        &*self.store
    }
}

/// A share of the lock on each volume: nobody fills or empties a slot while it is made or removed.
pub(crate) fn share(volumes: &[Volume]) -> Result<Vec<EngineLock<'_>>, EngineError> {
    (volumes.iter())
        .map(|v| EngineLock::share(&v.lock).map_err(|e| lock_error(&v.locator, e, |_| None)))
        .collect()
}

/// What is known of a built-in plugin. Its place is one of four words, as a test makes sure.
fn builtin(plugin: &snapslot_builtin::Builtin) -> Known {
    Known {
        name: plugin.name.to_owned(),
        place: match plugin.place {
            "lvm-volume" => PlaceKind::LvmVolume,
            "zfs-dataset" => PlaceKind::ZfsDataset,
            "directory" => PlaceKind::Directory,
            _ => PlaceKind::Image,
        },
        endings: plugin.endings.iter().map(|e| (*e).to_owned()).collect(),
    }
}

/// A refusal with what to do next.
pub(crate) fn refused(machine: &str, refusal: Refusal) -> EngineError {
    let advice = match &refusal {
        Refusal::Occupied { occupant } => {
            let taken = jiff::Timestamp::new(
                occupant.taken.seconds,
                occupant.taken.nanoseconds.min(999_999_999) as i32,
            );
            let when = taken.map_or_else(|_| String::new(), |t| format!(" since {t:.0}"));
            let note = occupant.note.as_ref().map_or_else(String::new, |n| format!(" ({n})"));
            format!(
                " by the snapshot {}{when}{note}; restore it, delete it, or take with --replace",
                occupant.mark
            )
        }
        Refusal::Empty => "; `snapslot take` fills it".to_owned(),
        Refusal::Disabled => "; `snapslot enable` makes a slot".to_owned(),
        Refusal::Drifted { .. } => {
            "; `snapslot status` says more, `snapslot delete` clears the record".to_owned()
        }
        Refusal::AlreadyEnabled | Refusal::Busy { .. } | Refusal::Policy { .. } => String::new(),
    };
    EngineError::Refused { machine: machine.to_owned(), refusal: Box::new(refusal), advice }
}
