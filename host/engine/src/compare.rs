//! What changed on a machine's disk since the take.
//!
//! | storage | told by | reads |
//! |---|---|---|
//! | image (qcow2) | its plugin, or where the extents of both lie | metadata |
//! | copies (raw) | the live store, or where blocks that both share lie | metadata |
//! | thin LVM | its plugin, from the pool's metadata, held for that time | metadata |
//! | ZFS volume | what `zfs send` would send, of a moment held for that time | what was written |
//! | anything else, or where asked | the bytes of both | all that is no hole |

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use snapslot_content::{ContentError, Range, Watch, by_content, by_map, joined, not_zero};
use snapslot_disk::Disk;
use snapslot_runtime::{self as runtime, Facts, FailureKind, Plugin, Snapshot, View};
use snapslot_slot::{Refusal, State};

use crate::engine::{Engine, refused};
use crate::error::EngineError;
use crate::held::{Metadata, Present, Untold};
use crate::view::{
    PAGE, Which, device, extents_of, is_zfs_volume, lists, own_name, share, snapshot_device,
};
use crate::volume::{Volume, changes_image};

/// How long a diff waits for another process that holds the same pool's metadata, or the same volume's present.
const PATIENCE: Duration = Duration::from_secs(60);

/// What changed on one volume since the take.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Compared {
    /// Its locator.
    pub volume: String,
    /// The larger of the two sizes, in bytes.
    pub size: u64,
    /// Whether the bytes were compared, or only where they lie.
    pub by_content: bool,
    /// Bytes that differ, or may.
    pub changed_bytes: u64,
    /// Where: offset and length, ascending.
    #[serde(serialize_with = "as_pairs")]
    pub ranges: Vec<Range>,
}

fn as_pairs<S: serde::Serializer>(ranges: &[Range], to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Pair {
        start: u64,
        length: u64,
    }
    to.collect_seq(ranges.iter().map(|r| Pair { start: r.offset, length: r.length }))
}

impl Engine {
    /// What changed since the take, on every volume of the machine, or on the one that was named.
    pub fn diff(
        &self,
        text: &str,
        content: bool,
        backing: &[String],
        watch: &Watch<'_>,
    ) -> Result<Vec<Compared>, EngineError> {
        let looked = self.look_at_all(text)?;
        let State::Held { occupant } = &looked.state else {
            return Err(refused(&looked.name, Refusal::Empty));
        };
        let named = self.one_of(text, &looked.name, &looked.locators()).ok();
        let mut all = Vec::new();
        for (i, volume) in looked.volumes.iter().enumerate() {
            if named.is_some_and(|n| n != i) {
                continue;
            }
            let locator = volume.locator.to_string();
            let plugin = &looked.plugins[i];
            let facts = &looked.facts[i];
            let then = facts.snapshots.iter().find(|s| s.mark.as_ref() == Some(&occupant.mark));
            let size = facts.virtual_size.max(then.map_or(0, |s| s.virtual_size));
            let shared = share(volume)?;
            let known = match (&volume.copies, lists(plugin)) {
                (Some(copies), false) if !content => copies
                    .changed(&occupant.mark)
                    .map_err(|e| EngineError::copy(&volume.locator, &e))?
                    .map(|changed| changed.ranges),
                _ => None,
            };
            let by_metadata = match content {
                true => None,
                false if known.is_some() => known,
                false => match then {
                    Some(then) => self.differing(volume, plugin, facts, then, watch)?,
                    None => None,
                },
            };
            drop(shared);
            let (ranges, by_content) = match by_metadata {
                Some(ranges) => (ranges, false),
                None => (self.compared(&locator, backing, watch)?, true),
            };
            let changed_bytes = ranges.iter().map(|r| r.length).sum();
            all.push(Compared { volume: locator, size, by_content, changed_bytes, ranges });
        }
        Ok(all)
    }

    /// By reading both.
    fn compared(
        &self,
        volume: &str,
        backing: &[String],
        watch: &Watch<'_>,
    ) -> Result<Vec<Range>, EngineError> {
        self.with_content(volume, Which::Snapshot, backing, |then| {
            self.with_content(volume, Which::Current, backing, |now| {
                by_content(&*now.content, &*then.content, watch)
                    .map_err(|e| EngineError::content(volume, e))
            })
        })
    }

    /// By metadata, where that can be; none where it cannot.
    fn differing(
        &self,
        volume: &Volume,
        plugin: &Plugin<'_>,
        facts: &Facts,
        then: &Snapshot,
        watch: &Watch<'_>,
    ) -> Result<Option<Vec<Range>>, EngineError> {
        let unsupported = |e: &runtime::CallError| matches!(e, runtime::CallError::Refused(f) if f.kind == FailureKind::Unsupported);
        let mut sight = volume.sight();
        // Let go of when all pages are there.
        let _held = self.show_pool(volume, plugin, PATIENCE, &mut sight);
        let identity = &then.identity;
        let (mut cursor, mut ranges) = (0, Vec::new());
        loop {
            match plugin.differences(&sight, identity, cursor, PAGE) {
                Ok(page) => {
                    let range = |s: &runtime::Stretch| Range { offset: s.start, length: s.length };
                    ranges.extend(page.stretches.iter().map(range));
                    match page.next {
                        Some(next) => cursor = next,
                        None => return Ok(Some(joined(ranges))),
                    }
                }
                Err(e) if unsupported(&e) && changes_image(plugin) => break,
                Err(e) if unsupported(&e) => return self.written(volume, facts, then, watch),
                Err(e) => return Err(EngineError::call(&volume.locator, e)),
            }
        }
        // It lists extents at least: where they lie apart is where it changed.
        let map = |view: &View| extents_of(&volume.locator, plugin, &sight, view);
        match (map(&View::Current), map(&View::Snapshot(identity.clone()))) {
            (Ok(now), Ok(then)) => Ok(Some(by_map(&now, &then))),
            _ => Ok(None),
        }
    }

    /// Shows a plugin that wants it the metadata of the thin pool that the volume lies in, for as long as what is
    /// given back is there.
    pub(crate) fn show_pool(
        &self,
        volume: &Volume,
        plugin: &Plugin<'_>,
        patience: Duration,
        sight: &mut runtime::Sight,
    ) -> Option<Metadata<'_>> {
        let of_pool = |i: &runtime::ImageGrant| i.role == runtime::Role::PoolMetadata;
        if !plugin.description().images.iter().any(of_pool) {
            return None;
        }
        match Metadata::of(volume, &*self.commands, &self.settings.state_dir, patience) {
            Ok(held) => {
                sight.disk = held.as_ref().map(|held| held.disk.clone() as Arc<dyn Disk>);
                held
            }
            Err(why) => {
                // Who waited for it hears what becomes of it; a look goes without.
                let locator = &volume.locator;
                match patience.is_zero() {
                    true => tracing::info!("{locator}: no metadata of its pool: {why}"),
                    false => tracing::warn!("{locator}: no metadata of its pool: {why}"),
                }
                None
            }
        }
    }

    /// Where a ZFS volume was written since the snapshot; none where ZFS cannot tell.
    fn written(
        &self,
        volume: &Volume,
        facts: &Facts,
        then: &Snapshot,
        watch: &Watch<'_>,
    ) -> Result<Option<Vec<Range>>, EngineError> {
        let (Some(name), true) = (own_name(volume, &then.name), is_zfs_volume(volume, facts))
        else {
            return Ok(None);
        };
        let told = |why: String| {
            tracing::warn!("{}: its bytes are compared: {why}", volume.locator);
            Ok(None)
        };
        let Ok(guid) = then.identity.parse() else { return told("no guid".to_owned()) };
        let mark = self.new_mark()?;
        let present =
            match Present::of(volume, &mark, PATIENCE, &*self.commands, &self.settings.state_dir) {
                Ok(present) => present,
                Err(why) => return told(why),
            };
        let failed = |e| EngineError::content(&volume.locator, e);
        let sizes = [then.virtual_size, facts.virtual_size];
        let mut changed = match present.written_since(name, guid, sizes, watch) {
            Ok(changed) => changed,
            Err(Untold::Stopped) => return Err(failed(ContentError::Stopped)),
            Err(Untold::Because(why)) => return told(why),
        };
        drop(present);
        // What is zeroes now may have been zeroes then: the snapshot says, where it has a device.
        let _shown = match changed.freed.is_empty() {
            true => None,
            false => then.mark.as_ref().and_then(|mark| self.show(volume, facts, mark).ok()?),
        };
        if let Ok(then) = device(volume, snapshot_device(volume, &then.name)) {
            changed.freed = not_zero(&*then, &changed.freed, watch).map_err(failed)?;
        }
        changed.written.extend(changed.freed);
        Ok(Some(joined(changed.written)))
    }
}
