//! What all parts of the kit share: the plugin, engines around it, places for files.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use snapslot_disk::Disk;
use snapslot_engine::{Depth, Engine, EngineError, Known, Settings};
use snapslot_runtime::{CallError, CopiesView, Plugin, Runtime, Sight, View};

use crate::clock::KitClock;
use crate::tools::{Beyond, KitTools};
use crate::{Options, Subject};

/// The plugin on a bench of its own: each thread has one.
pub struct Bench<'a> {
    pub subject: &'a Subject,
    pub options: &'a Options<'a>,
    pub runtime: &'a Arc<Runtime>,
    pub plugin: &'a Plugin<'a>,
    pub beyond: Beyond,
    /// A directory of this part of the run.
    scratch: PathBuf,
    /// Directories made in it so far.
    made: Cell<u32>,
}

impl<'a> Bench<'a> {
    /// A bench whose files lie in this directory, which is its own.
    pub fn new(
        subject: &'a Subject,
        options: &'a Options<'a>,
        runtime: &'a Arc<Runtime>,
        plugin: &'a Plugin<'a>,
        scratch: PathBuf,
    ) -> std::io::Result<Self> {
        std::fs::create_dir_all(&scratch)?;
        let (beyond, made) = (Beyond::default(), Cell::new(0));
        Ok(Bench { subject, options, runtime, plugin, beyond, scratch, made })
    }

    pub fn name(&self) -> &str {
        &self.plugin.description().name
    }

    /// An engine with the plugin, its record here, and no commands but those that the tools answer.
    pub fn engine(
        &self,
        state_dir: &Path,
        tools: KitTools,
        clock: &Arc<KitClock>,
    ) -> Result<Engine, EngineError> {
        let d = self.plugin.description();
        let known =
            Known { name: d.name.clone(), place: d.place.into(), endings: d.endings.clone() };
        let settings = Settings {
            state_dir: state_dir.to_owned(),
            cache_dir: self.options.cache_dir.clone(),
            rehearsal: Depth::Full,
            enable_on_take: true,
            more_plugins: vec![(known, self.subject.component.clone())],
            plugin_time_max: None,
            confine: self.options.confine.clone(),
            record: None,
            tools: Some(snapslot_engine::Tools(Arc::new(tools))),
        };
        Ok(Engine::open_sharing(settings, self.runtime.clone())?.with_clock(clock.clone()))
    }

    /// A sight of a simulated disk, of no copies, and of no commands.
    pub fn sight(&self, disk: Arc<dyn Disk>) -> Sight {
        Sight {
            place: snapslot_command::Place::Image("/simulated/disk".into()),
            disk: Some(disk),
            commands: Some(Arc::new(KitTools::none(&self.beyond))),
            copies: Some(Arc::new(NoCopies)),
        }
    }

    /// Whether the plugin can say where content is; otherwise all bytes of an image are its content.
    pub fn lists_extents(&self, sight: &Sight) -> bool {
        let asked = self.plugin.extents(sight, &View::Current, 0, 1);
        !matches!(asked, Err(CallError::Refused(f)) if f.code == "no-extents")
    }

    /// Whether its plans change images.
    pub fn changes_images(&self) -> bool {
        self.plugin.description().images.iter().any(|i| i.changes)
    }

    /// A new directory, gone with the value. The n-th one of a part has the same name in every run.
    pub fn directory(&self) -> Result<Directory, String> {
        let n = self.made.replace(self.made.get() + 1);
        let path = self.scratch.join(n.to_string());
        std::fs::create_dir(&path).map_err(|e| e.to_string())?;
        Ok(Directory(path))
    }
}

/// A directory that goes with the value.
pub struct Directory(PathBuf);

impl Directory {
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left goes with the directory that all of them are in.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A shelf without copies, for plugins that look whether there are any.
pub struct NoCopies;

impl CopiesView for NoCopies {
    fn list(&self) -> Result<Vec<snapslot_runtime::SavedCopy>, snapslot_runtime::Failure> {
        Ok(Vec::new())
    }

    fn saving(&self) -> Result<snapslot_runtime::Saving, snapslot_runtime::Failure> {
        Ok(snapslot_runtime::Saving { shares: true, bytes: 0, available: 1 << 40 })
    }
}
