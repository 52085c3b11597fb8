//! What a machine's disk or its snapshot holds, opened to be read.
//!
//! | storage | the snapshot's content | the present content |
//! |---|---|---|
//! | image (qcow2) | the extents its plugin lists, while the machine may run | the same; nobody may write |
//! | copies (raw) | the copy | the file or device; nobody may write, or a server that holds the moment |
//! | LVM | the snapshot's device, active for that time | the volume's device; nobody may use it |
//! | ZFS volume | its device, shown for that time | the same of a snapshot of the present, made for that time |
//!
//! While it is read the engine's lock is shared: others may look too, and whoever would restore or
//! delete hears that it is busy. A snapshot's device is derived from the volume's own place and the
//! snapshot's name, which must be of the grammar of names that are ours.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use snapslot_command::{Grammar, Place};
use snapslot_content::{At, Compression, Content, ContentError, Extent, Map, Mapped, Plain};
use snapslot_disk::{Disk, DiskError, EngineLock, FileDisk, ImageLock};
use snapslot_runtime::{self as runtime, Facts, Plugin, View};
use snapslot_slot::{Refusal, State};

use crate::engine::{Engine, refused};
use crate::error::EngineError;
use crate::held::{Present, Shown};
use crate::locator::Locator;
use crate::status::{derive, image_lock_error, left_behind, lock_error};
use crate::volume::Volume;

/// How long another process is waited for that reads the same volume's present.
const PATIENCE: Duration = Duration::from_secs(10);

/// Extents asked for at once.
pub(crate) const PAGE: u32 = 10_000;

/// Which content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Which {
    /// What the slot holds.
    Snapshot,
    /// What the machine sees now.
    Current,
}

/// Content, opened.
pub struct Opened {
    /// The volume.
    pub volume: String,
    /// Which of it.
    pub which: Which,
    /// The content.
    pub content: Arc<dyn Content>,
    /// When the snapshot was taken, if it is one.
    pub taken: Option<snapslot_slot::Moment>,
}

/// A device cannot be shown; why was told.
pub(crate) struct NotShown;

/// One machine, looked at.
pub(crate) struct Looked<'e> {
    pub(crate) plugins: Vec<Plugin<'e>>,
    pub(crate) volumes: Vec<Volume>,
    pub(crate) facts: Vec<Facts>,
    pub(crate) state: State,
    pub(crate) name: String,
}

/// What is kept while content is read, and let go of in this order.
#[derive(Default)]
struct Kept<'k> {
    unwritten: Option<ImageLock<'k>>,
    shown: Option<Shown<'k>>,
    present: Option<Present<'k>>,
}

impl Engine {
    /// Opens content and has something done with it. `backing` names the chain of backing files, the
    /// nearest first, that may be read.
    pub fn with_content<T>(
        &self,
        text: &str,
        which: Which,
        backing: &[String],
        work: impl FnOnce(&Opened) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let looked = self.look_at_all(text)?;
        let index = self.one_of(text, &looked.name, &looked.locators())?;
        let (volume, plugin) = (&looked.volumes[index], &looked.plugins[index]);
        let _shared = share(volume)?;
        let disks =
            backing.iter().map(|text| self.open_file(text)).collect::<Result<Vec<_>, _>>()?;
        let _kept = reading_all(&disks)?;
        let mut below: Option<Arc<dyn Content>> = None;
        for (locator, disk) in disks.iter().rev() {
            let plugin = self.plugin(&locator.backend)?;
            below = Some(image(locator, disk, &plugin, &View::Current, below)?);
        }
        let (facts, mut kept) = (&looked.facts[index], Kept::default());
        let (content, taken) = match which {
            Which::Current => (self.current(volume, plugin, facts, below, &mut kept)?, None),
            Which::Snapshot => {
                let occupant = match &looked.state {
                    State::Held { occupant } => occupant,
                    State::Drifted { drift, .. } => {
                        let refusal = Refusal::Drifted { drift: *drift };
                        return Err(refused(&looked.name, refusal));
                    }
                    _ => return Err(refused(&looked.name, Refusal::Empty)),
                };
                let mark = &occupant.mark;
                let tried = self.show(volume, facts, mark);
                let mut then = snapshot(volume, plugin, facts, mark, below.clone());
                kept.shown = match tried {
                    // It was there for somebody who has hidden it meanwhile.
                    Ok(None) if then.is_err() => {
                        let again = self.show(volume, facts, mark);
                        then = snapshot(volume, plugin, facts, mark, below);
                        again.unwrap_or_default()
                    }
                    tried => tried.unwrap_or_default(),
                };
                (then?, Some(occupant.taken))
            }
        };
        if facts.findings.iter().any(|f| f.code == "encrypted") {
            let why = "its content is encrypted, and what is in it cannot be read without the key";
            return Err(no_content(volume, why));
        }
        let opened = Opened { volume: volume.locator.to_string(), which, content, taken };
        let result = work(&opened);
        // A device is hidden, and a moment let go of, when nobody reads it any more.
        drop(opened);
        drop(kept);
        result
    }

    /// What the machine sees now.
    fn current<'k>(
        &'k self,
        volume: &'k Volume,
        plugin: &Plugin<'_>,
        facts: &Facts,
        below: Option<Arc<dyn Content>>,
        kept: &mut Kept<'k>,
    ) -> Result<Arc<dyn Content>, EngineError> {
        if let Some(held) = self.served_now(volume)? {
            return Ok(held);
        }
        if let Some(disk) = volume.image.as_ref().filter(|d| d.is_file()) {
            kept.unwritten = Some(reading(&volume.locator, disk)?);
            return image(&volume.locator, disk, plugin, &View::Current, below);
        }
        // Also where nobody uses it: somebody may begin to, while it is read.
        let mut unheld = None;
        if is_zfs_volume(volume, facts) {
            match self.held_now(volume, kept) {
                Ok(held) => return Ok(held),
                Err(why) => unheld = Some(why),
            }
            *kept = Kept::default();
        }
        let (users, name) = (volume.users()?, volume.locator.to_string());
        match (users.is_empty(), unheld) {
            (false, None) => return Err(EngineError::InUse { volume: name, users }),
            (false, Some(why)) => return Err(EngineError::NoMoment { volume: name, users, why }),
            (true, Some(why)) => tracing::warn!(
                "{name}: nobody uses it now, and nobody may begin to while it is read, as no moment of it can be \
                 held: {why}"
            ),
            (true, None) => {}
        }
        match (&volume.image, &volume.locator.place) {
            (Some(disk), _) => image(&volume.locator, disk, plugin, &View::Current, below),
            (None, Place::LvmVolume { .. } | Place::ZfsDataset(_)) => {
                device(volume, volume.locator.place.device())
            }
            _ => Err(no_content(volume, "its content is no disk that could be read")),
        }
    }

    /// What a ZFS volume holds at this moment, whoever writes it.
    fn held_now<'k>(
        &'k self,
        volume: &Volume,
        kept: &mut Kept<'k>,
    ) -> Result<Arc<dyn Content>, String> {
        let mark = self.new_mark().map_err(|e| e.to_string())?;
        let state_dir = &self.settings.state_dir;
        let present = Present::of(volume, &mark, PATIENCE, &*self.commands, state_dir)?;
        let name = present.name().to_owned();
        kept.present = Some(present);
        let path = snapshot_device(volume, &name).ok_or("it has no device")?;
        let show = || Shown::of(volume, &name, &path, &*self.commands, state_dir);
        let open = || device(volume, Some(path.clone())).map_err(|e| e.to_string());
        kept.shown = show()?;
        match open() {
            // It was there for somebody who has hidden it meanwhile.
            Err(_) if kept.shown.is_none() => {
                kept.shown = show()?;
                open()
            }
            opened => opened,
        }
    }

    /// What a served disk holds at this moment; its server holds it for as long as what is given back is there.
    fn served_now(&self, volume: &Volume) -> Result<Option<Arc<dyn Content>>, EngineError> {
        let Some(copies) = &volume.copies else { return Ok(None) };
        copies.open_now(&self.new_mark()?).map_err(|e| EngineError::copy(&volume.locator, &e))
    }

    /// Shows the device of the snapshot with this mark, if it is hidden, for as long as what is given back is there.
    /// None: it is there. Where it cannot be shown, whoever opens it says what helps.
    pub(crate) fn show(
        &self,
        volume: &Volume,
        facts: &Facts,
        mark: &str,
    ) -> Result<Option<Shown<'_>>, NotShown> {
        let found = facts.snapshots.iter().find(|s| s.mark.as_deref() == Some(mark));
        let named = found.and_then(|found| {
            Some((own_name(volume, &found.name)?, snapshot_device(volume, &found.name)?))
        });
        let (name, path) = named.ok_or(NotShown)?;
        let state_dir = &self.settings.state_dir;
        Shown::of(volume, name, &path, &*self.commands, state_dir).map_err(|why| {
            tracing::info!("{}: {} is not shown: {why}", volume.locator, path.display());
            NotShown
        })
    }

    pub(crate) fn look_at_all(&self, text: &str) -> Result<Looked<'_>, EngineError> {
        let (machine, known) = self.resolve(text)?;
        let locators = self.locators(&machine)?;
        let (mut plugins, mut volumes, mut facts) = (Vec::new(), Vec::new(), Vec::new());
        for locator in &locators {
            let volume = Volume::open_to_look(self, locator, &self.looks())?;
            let plugin = self.plugin(&locator.backend)?;
            volume.suits(&plugin)?;
            if left_behind(&volume).is_some() {
                let why = "a change of it was interrupted; `snapslot recover` finishes it first";
                return Err(no_content(&volume, why));
            }
            facts.push(volume.inspect(&plugin)?);
            volumes.push(volume);
            plugins.push(plugin);
        }
        let state = derive(&machine, known, &facts.iter().collect::<Vec<_>>(), &volumes);
        Ok(Looked { plugins, volumes, facts, state, name: machine.name })
    }

    /// Which of a machine's volumes is meant.
    pub(crate) fn one_of(
        &self,
        text: &str,
        machine: &str,
        locators: &[Locator],
    ) -> Result<usize, EngineError> {
        if locators.len() == 1 {
            return Ok(0);
        }
        let named = Locator::parse(text, self.backends()).ok();
        let found = locators.iter().position(|l| Some(l) == named.as_ref());
        found.ok_or_else(|| {
            let names: Vec<String> = locators.iter().map(Locator::to_string).collect();
            EngineError::Usage(format!(
                "{machine} has {} volumes; name the one that is meant: {}",
                names.len(),
                names.join(", ")
            ))
        })
    }

    /// Opens an image that a person named, to be read.
    pub(crate) fn open_file(&self, text: &str) -> Result<(Locator, Arc<FileDisk>), EngineError> {
        let locator = Locator::parse(text, self.backends())?;
        let path = locator
            .path()
            .ok_or_else(|| EngineError::Usage(format!("{text} is no file, as an image is")))?;
        let disk = FileDisk::open_read_only(path).map_err(|e| EngineError::disk(&locator, e))?;
        Ok((locator, Arc::new(disk)))
    }
}

impl Looked<'_> {
    pub(crate) fn locators(&self) -> Vec<Locator> {
        self.volumes.iter().map(|v| v.locator.clone()).collect()
    }
}

fn snapshot(
    volume: &Volume,
    plugin: &Plugin<'_>,
    facts: &Facts,
    mark: &str,
    below: Option<Arc<dyn Content>>,
) -> Result<Arc<dyn Content>, EngineError> {
    let Some(found) = facts.snapshots.iter().find(|s| s.mark.as_deref() == Some(mark)) else {
        return Err(no_content(volume, "the snapshot is not there"));
    };
    match &volume.image {
        Some(disk) if lists(plugin) => {
            let view = View::Snapshot(found.identity.clone());
            image(&volume.locator, disk, plugin, &view, below)
        }
        Some(_) => {
            let Some(copies) = &volume.copies else {
                return Err(no_content(volume, "no copies are kept of it"));
            };
            copies.open_content(mark).map_err(|e| EngineError::copy(&volume.locator, &e))
        }
        None => device(volume, snapshot_device(volume, &found.name)),
    }
}

/// The device of a snapshot of ours: a neighbour of the volume's own.
pub(crate) fn snapshot_device(volume: &Volume, name: &str) -> Option<PathBuf> {
    let (place, name) = (&volume.locator.place, own_name(volume, name)?);
    match place {
        Place::LvmVolume { group, .. } => Some(Path::new("/dev").join(group).join(name)),
        Place::ZfsDataset(_) => {
            let volume = place.device()?.into_os_string().into_string().ok()?;
            Some(format!("{volume}@{name}").into())
        }
        Place::Image(_) | Place::Directory(_) => None,
    }
}

/// The part of a snapshot's name that is not the volume's, if it is of the grammar of ours.
pub(crate) fn own_name<'n>(volume: &Volume, name: &'n str) -> Option<&'n str> {
    let place = &volume.locator.place;
    let (sign, grammar) = match place {
        Place::LvmVolume { .. } => ('/', Grammar::LvmOwn),
        Place::ZfsDataset(_) => ('@', Grammar::ZfsOwn),
        Place::Image(_) | Place::Directory(_) => return None,
    };
    let name = name.rsplit(sign).next().unwrap_or_default();
    grammar.allows(name, place).then_some(name)
}

/// Whether it is a volume of ZFS: a file system has no size that a machine sees, and nothing is at a place of it.
pub(crate) fn is_zfs_volume(volume: &Volume, facts: &Facts) -> bool {
    facts.virtual_size > 0 && matches!(volume.locator.place, Place::ZfsDataset(_))
}

/// One view of an image, by its plugin's extents.
pub(crate) fn image(
    locator: &Locator,
    disk: &Arc<FileDisk>,
    plugin: &Plugin<'_>,
    view: &View,
    below: Option<Arc<dyn Content>>,
) -> Result<Arc<dyn Content>, EngineError> {
    if !lists(plugin) {
        let plain = Plain::new(disk.clone()).map_err(|e| EngineError::content(locator, e))?;
        return Ok(Arc::new(plain));
    }
    let map = extents_of(locator, plugin, &sight_of(locator, disk), view)?;
    Ok(Arc::new(Mapped::new(&locator.to_string(), disk.clone(), map, below)))
}

pub(crate) fn extents_of(
    locator: &Locator,
    plugin: &Plugin<'_>,
    sight: &runtime::Sight,
    view: &View,
) -> Result<Map, EngineError> {
    let name = locator.to_string();
    let (mut map, mut cursor) = (Map::default(), 0);
    loop {
        let page =
            plugin.extents(sight, view, cursor, PAGE).map_err(|e| EngineError::call(locator, e))?;
        for extent in &page.extents {
            // A page may begin before the cursor, with the extent that it lies in.
            let skip = map.end().saturating_sub(extent.start);
            if skip >= extent.length {
                continue;
            }
            let unlike = || ContentError::Unlike { name: name.clone(), at: extent.start };
            let result =
                converted(extent, skip).ok_or_else(unlike).and_then(|e| map.push(&e, &name));
            result.map_err(|e| EngineError::content(&name, e))?;
        }
        match page.next {
            Some(next) => cursor = next,
            None => return Ok(map),
        }
    }
}

/// What a plugin sees of an image alone.
pub(crate) fn sight_of(locator: &Locator, disk: &Arc<FileDisk>) -> runtime::Sight {
    runtime::Sight {
        place: locator.place.clone(),
        disk: Some(disk.clone() as Arc<dyn Disk>),
        commands: None,
        copies: None,
    }
}

/// Whether the volume's content is where its plugin says, not the image itself.
pub(crate) fn lists(plugin: &Plugin<'_>) -> bool {
    let of_disk = |i: &runtime::ImageGrant| i.role == runtime::Role::Disk;
    plugin.description().copies.is_none() && plugin.description().images.iter().any(of_disk)
}

pub(crate) fn share(volume: &Volume) -> Result<EngineLock<'_>, EngineError> {
    EngineLock::share(&volume.lock).map_err(|e| lock_error(&volume.locator, e, |_| None))
}

/// The present content of an image is read only while nobody writes it.
fn reading<'d>(locator: &Locator, disk: &'d FileDisk) -> Result<ImageLock<'d>, EngineError> {
    ImageLock::reading(disk).map_err(|e| image_lock_error(locator, e))
}

/// The same of a chain of images.
pub(crate) fn reading_all(
    chain: &[(Locator, Arc<FileDisk>)],
) -> Result<Vec<ImageLock<'_>>, EngineError> {
    chain.iter().map(|(locator, disk)| reading(locator, disk)).collect()
}

fn no_content(volume: &Volume, why: &str) -> EngineError {
    EngineError::NoContent { volume: volume.locator.to_string(), why: why.to_owned() }
}

pub(crate) fn device(
    volume: &Volume,
    path: Option<PathBuf>,
) -> Result<Arc<dyn Content>, EngineError> {
    let Some(path) = path else {
        return Err(no_content(volume, "its snapshot has no device that could be read"));
    };
    let open = |path: &Path| -> Result<FileDisk, DiskError> {
        // Device names are links; what they lead to is opened.
        let real = std::fs::canonicalize(path).map_err(|e| {
            DiskError::io(path.display().to_string(), snapslot_disk::Doing::Open, e)
        })?;
        FileDisk::open_read_only(&real)
    };
    let disk = open(&path).map_err(|e| match e.is_not_found() {
        true => no_content(volume, &not_shown(volume, &path)),
        false => EngineError::disk(&volume.locator, e),
    })?;
    if disk.is_file() {
        return Err(no_content(volume, "its device is no device"));
    }
    let plain = Plain::new(Arc::new(disk));
    Ok(Arc::new(plain.map_err(|e| EngineError::content(&volume.locator, e))?))
}

/// Why a device is not there, and what shows it.
fn not_shown(volume: &Volume, path: &Path) -> String {
    let path_said = path.display();
    match &volume.locator.place {
        Place::LvmVolume { group, .. } => {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            format!("{path_said} is not there; `lvchange -ay -K {group}/{name}` activates it")
        }
        Place::ZfsDataset(dataset) => format!(
            "{path_said} is not there; for a ZFS volume `zfs set snapdev=visible {dataset}` shows it, a \
             file system has no device and can be copied with `zfs send`"
        ),
        _ => format!("{path_said} is not there"),
    }
}

fn converted(extent: &runtime::Extent, skip: u64) -> Option<Extent> {
    let at = match extent.content {
        runtime::Content::Data(offset) => At::Data(offset.checked_add(skip)?),
        runtime::Content::Zero => At::Zero,
        runtime::Content::Backing => At::Backing,
        runtime::Content::Compressed(_) if skip > 0 => return None,
        runtime::Content::Compressed(packed) => At::Packed {
            offset: packed.offset,
            length: u32::try_from(packed.length).ok()?,
            method: match packed.method {
                runtime::Compression::Deflate => Compression::Deflate,
                runtime::Compression::Zstd => Compression::Zstd,
            },
        },
    };
    Some(Extent { start: extent.start + skip, length: extent.length - skip, at })
}
