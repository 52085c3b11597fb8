//! The conformance kit: runs any plugin, built in or not, on simulated storage, and judges it.
//!
//! | part | on what | judged by |
//! |---|---|---|
//! | `describe` | the component alone | the same answer every time |
//! | `life` | the real engine over LVM and ZFS in memory, or over real files | content, the slot, exit codes |
//! | `plan` | the plugin alone | plans to a goal that is reached are empty, and the same twice |
//! | `crash` | commands: before, inside and after every one, also inside recovery; images: every state a power cut leaves | content of before or of after, never between |
//! | `trouble` | every command failing, hanging, dying, printing rubbish; every read failing; damaged images | a failure in words, nothing changed |
//!
//! Content of an image is told by the plugin's own extents over bytes that the kit keeps; for qcow2 an
//! independent reader of the format judges too, and QEMU's tools make the images and write as the guest.
//!
//! One seed gives one run. Each case has a name; a failed one is run again by it alone.

mod commands;
mod convert;
mod files;
mod images;
mod life;
mod report;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use snapslot_engine::{Confine, Depth, Engine, EngineError, Known, PlaceKind, Settings, Tools};
use snapslot_runtime::{CallError, LoadError, Plugin, Runtime, Sight, View};
use snapslot_testkit::storage::machine::Kind;

pub use report::{Case, Outcome, Report};

/// What to test.
pub struct Subject {
    /// The component.
    pub component: Vec<u8>,
    /// Whether it is one of the engine's own.
    pub built_in: bool,
    /// Sample images, for a plugin whose volumes are files.
    pub images: Vec<PathBuf>,
}

/// How to test it.
pub struct Options<'a> {
    /// Seed of all choices.
    pub seed: u64,
    /// Random states at each boundary of a crash.
    pub states: usize,
    /// Only cases whose names begin so.
    pub only: Option<String>,
    /// The compiled plugins' directory.
    pub cache_dir: PathBuf,
    /// Where plugins run.
    pub confine: Confine,
    /// Told of every case when it is done.
    pub progress: &'a (dyn Fn(&Case) + Sync),
}

/// Why nothing could be tested.
#[derive(Debug)]
pub enum KitError {
    /// The component cannot be loaded at all.
    Load(LoadError),
    /// The kit itself failed.
    Kit(String),
}

impl std::fmt::Display for KitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KitError::Load(error) => error.fmt(f),
            KitError::Kit(why) => write!(f, "the kit cannot work: {why}"),
        }
    }
}

impl std::error::Error for KitError {}

/// Runs all cases.
pub fn run(subject: &Subject, options: &Options<'_>) -> Result<Report, KitError> {
    let runtime = Runtime::new(&options.cache_dir, None, &options.confine);
    let runtime = Arc::new(runtime.map_err(KitError::Load)?);
    let plugin = runtime.load(&subject.component).map_err(KitError::Load)?;
    let scratch = tempfile::tempdir().map_err(|e| KitError::Kit(e.to_string()))?;
    let bench =
        Bench { subject, options, runtime: &runtime, plugin: &plugin, scratch: scratch.path() };
    let mut cases = Cases { options, cases: Vec::new() };
    cases.run("describe/the-same-every-time", || {
        for _ in 0..3 {
            let again = runtime.load(&subject.component).map_err(|e| e.to_string())?;
            if again.description() != plugin.description() {
                return Err("describe() gives another answer the second time".to_owned());
            }
        }
        Ok(())
    });
    let place: PlaceKind = plugin.description().place.into();
    let kinds: &[Kind] = match place {
        PlaceKind::LvmVolume => &Kind::LVM,
        PlaceKind::ZfsDataset => &Kind::ZFS,
        PlaceKind::Image | PlaceKind::Directory => &[],
    };
    for kind in kinds {
        life::on_storage(&bench, *kind, &mut cases);
        commands::crashes(&bench, *kind, &mut cases);
        commands::troubles(&bench, *kind, &mut cases);
    }
    match place {
        PlaceKind::Image => {
            for sample in files::samples(&bench).map_err(KitError::Kit)? {
                life::on_file(&bench, &sample, &mut cases);
                images::crashes(&bench, &sample, &mut cases);
                images::troubles(&bench, &sample, &mut cases);
            }
        }
        PlaceKind::Directory => cases.not_tried(
            "life/directory",
            "there is no model of storage with directories: try it on real storage",
        ),
        PlaceKind::LvmVolume | PlaceKind::ZfsDataset => {}
    }
    let d = plugin.description();
    Ok(Report {
        plugin: d.name.clone(),
        version: d.version.clone(),
        digest: plugin.digest().to_owned(),
        seed: options.seed,
        cases: cases.cases,
    })
}

/// What all parts of the kit share.
struct Bench<'a> {
    subject: &'a Subject,
    options: &'a Options<'a>,
    runtime: &'a Arc<Runtime>,
    plugin: &'a Plugin<'a>,
    scratch: &'a Path,
}

impl Bench<'_> {
    fn name(&self) -> &str {
        &self.plugin.description().name
    }

    /// An engine with the plugin, over this storage, with its record here.
    fn engine(&self, state_dir: &Path, tools: Option<Tools>) -> Result<Engine, EngineError> {
        let d = self.plugin.description();
        let known =
            Known { name: d.name.clone(), place: d.place.into(), endings: d.endings.clone() };
        let settings = Settings {
            state_dir: state_dir.to_owned(),
            cache_dir: self.options.cache_dir.clone(),
            rehearsal: Depth::Full,
            enable_on_take: true,
            more_plugins: match self.subject.built_in {
                true => Vec::new(),
                false => vec![(known, self.subject.component.clone())],
            },
            plugin_time_max: None,
            confine: self.options.confine.clone(),
            record: None,
            tools,
        };
        Engine::open_sharing(settings, self.runtime.clone())
    }

    /// Whether it can say where content is; otherwise all bytes of an image are its content.
    fn lists_extents(&self, sight: &Sight) -> bool {
        let asked = self.plugin.extents(sight, &View::Current, 0, 1);
        !matches!(asked, Err(CallError::Refused(f)) if f.code == "no-extents")
    }

    fn directory(&self) -> Result<tempfile::TempDir, String> {
        tempfile::tempdir_in(self.scratch).map_err(|e| e.to_string())
    }
}

/// Cases, as they are run.
struct Cases<'a> {
    options: &'a Options<'a>,
    cases: Vec<Case>,
}

impl Cases<'_> {
    /// Whether a case of this name, or one that begins so, is to be run.
    fn wants(&self, name: &str) -> bool {
        let Some(only) = &self.options.only else { return true };
        name.starts_with(only.as_str()) || only.starts_with(name)
    }

    fn run(&mut self, name: &str, f: impl FnOnce() -> Result<(), String>) {
        if !self.wants(name) {
            return;
        }
        let begun = Instant::now();
        let result = f();
        self.ran(name, result, begun.elapsed());
    }

    /// One that was run already.
    fn ran(&mut self, name: &str, result: Result<(), String>, took: Duration) {
        let outcome = match result {
            Ok(()) => Outcome::Held,
            Err(why) => Outcome::Failed { why },
        };
        self.add(name, outcome, took);
    }

    fn not_tried(&mut self, name: &str, why: &str) {
        if self.wants(name) {
            let why = why.to_owned();
            self.add(name, Outcome::NotTried { why }, Duration::ZERO);
        }
    }

    fn add(&mut self, name: &str, outcome: Outcome, took: Duration) {
        let case = Case {
            name: name.to_owned(),
            outcome,
            milliseconds: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        };
        (self.options.progress)(&case);
        self.cases.push(case);
    }
}
