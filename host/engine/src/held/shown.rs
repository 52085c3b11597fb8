//! The device of a slot's snapshot, shown for as long as somebody reads it.
//!
//! A snapshot of a thin LVM volume is not active, and one of a ZFS volume is hidden, as nobody needs them until their
//! content is read. The note says how it was before:
//!
//! | note | to show it | to let go |
//! |---|---|---|
//! | `lvm GROUP/NAME` | `lvchange -ay -K` | `lvchange -an` |
//! | `zfs SOURCE VALUE DATASET` | `zfs set snapdev=visible` | `zfs inherit snapdev` (`-S` where it was received), or `zfs set snapdev=VALUE` where it was set there |
//!
//! Whoever reads the same snapshot meanwhile finds the device there. If that one goes on longer the device stays, and
//! the next verb on any volume lets go of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use snapslot_command::{Executor, Grammar, Place, PlaceKind};

use super::note::Note;
use super::{command, patiently, run};
use crate::volume::Volume;

/// Activation waits for whoever has the group's lock.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long another process is waited for that shows, or hides, the same.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long udev is waited for to make the device's name.
const STEPS: u32 = 100;
const STEP: Duration = Duration::from_millis(50);

/// A device that is shown. Hidden again when dropped.
pub(crate) struct Shown<'e> {
    note: Note,
    tools: &'e dyn Executor,
}

impl<'e> Shown<'e> {
    /// Shows the device with this path, of the snapshot of this name; or why it cannot be. None: it is there.
    pub(crate) fn of(
        volume: &Volume,
        name: &str,
        device: &Path,
        tools: &'e dyn Executor,
        state_dir: &Path,
    ) -> Result<Option<Shown<'e>>, String> {
        if device.exists() {
            return Ok(None);
        }
        let place = &volume.locator.place;
        // Where the volume itself has none, nothing of it is active, or it is a file system.
        if !place.device().is_some_and(|device| device.exists()) {
            return Err("the volume itself has no device".to_owned());
        }
        let (kind, before) = match place {
            Place::LvmVolume { group, .. } => ("lvm", format!("lvm {group}/{name}")),
            Place::ZfsDataset(dataset) => ("zfs", format!("zfs {}", snapdev(tools, dataset)?)),
            Place::Image(_) | Place::Directory(_) => return Err("it has no device".to_owned()),
        };
        // No name of theirs has such a sign.
        let note = format!("{kind}={}", place.to_string().replace('/', "="));
        let mut note = Note::take(&notes(state_dir), &note, PATIENCE)?;
        hide(&mut note, tools)?;
        note.write(&format!("{before}\n"))?;
        // Dropped, it is hidden: it may be shown though nobody said so.
        let shown = Shown { note, tools };
        match place {
            Place::ZfsDataset(dataset) => {
                run(tools, DEADLINE, "zfs", &["set", "snapdev=visible", dataset])?
            }
            _ => {
                run(tools, DEADLINE, "lvchange", &["-ay", "-K", before.trim_start_matches("lvm ")])?
            }
        }
        for _ in 0..STEPS {
            if device.exists() {
                return Ok(Some(shown));
            }
            std::thread::sleep(STEP);
        }
        Err(format!("{} did not come", device.display()))
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if let Err(why) = hide(&mut self.note, self.tools) {
            tracing::info!("a snapshot's device is there still: {why}");
        }
    }
}

/// Hides what was left shown.
pub(super) fn let_go(tools: &dyn Executor, state_dir: &Path) {
    for (name, mut note) in Note::all(&notes(state_dir)) {
        if let Err(why) = hide(&mut note, tools) {
            tracing::warn!("the device of a snapshot of {name} may be there still: {why}");
        }
    }
}

fn notes(state_dir: &Path) -> PathBuf {
    state_dir.join("shown")
}

/// `SOURCE VALUE DATASET`.
fn snapdev(tools: &dyn Executor, dataset: &str) -> Result<String, String> {
    let words = ["get", "-Hp", "-o", "source,value", "snapdev", dataset];
    let command = command("zfs", &words, DEADLINE);
    let answer = tools.run(&command).map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&answer.output);
    let (source, value) = said.trim_end().split_once('\t').unwrap_or_default();
    let source = match source {
        "local" | "received" => source,
        _ => "inherited",
    };
    match value {
        "hidden" => Ok(format!("{source} {value} {dataset}")),
        "visible" => Err("the snapshot is shown, and has no device".to_owned()),
        _ => Err(format!("`{command}`: {}", answer.complaint())),
    }
}

/// Does what the note says, if it says anything.
fn hide(note: &mut Note, tools: &dyn Executor) -> Result<(), String> {
    let said = note.says()?;
    let words: Vec<&str> = said.splitn(4, ' ').collect();
    let (result, gone) = match words[..] {
        [""] => return Ok(()),
        ["lvm", volume] if is_ours(volume) => {
            // udev looks at what was activated.
            let hidden = patiently(|| run(tools, DEADLINE, "lvchange", &["-an", volume]), "in use");
            (hidden, "Failed to find logical volume")
        }
        ["zfs", source, value @ "hidden", dataset]
            if Place::parse(PlaceKind::ZfsDataset, dataset).is_ok() =>
        {
            let hidden = match source {
                "local" => {
                    run(tools, DEADLINE, "zfs", &["set", &format!("snapdev={value}"), dataset])
                }
                "received" => run(tools, DEADLINE, "zfs", &["inherit", "-S", "snapdev", dataset]),
                _ => run(tools, DEADLINE, "zfs", &["inherit", "snapdev", dataset]),
            };
            (hidden, "dataset does not exist")
        }
        _ => return Err(format!("{said:?} is noted, which is nothing of ours")),
    };
    match result {
        Ok(()) => {}
        // The volume is gone, or the snapshot, and with it what was shown.
        Err(why) if why.contains(gone) => {}
        Err(why) => return Err(why),
    }
    note.write("")
}

/// Whether it is a snapshot of ours, `GROUP/NAME_snapslot_MARK`.
fn is_ours(name: &str) -> bool {
    let Some((group, own)) = name.split_once('/') else { return false };
    let Some((volume, _)) = own.rsplit_once("_snapslot_") else { return false };
    Place::parse(PlaceKind::LvmVolume, &format!("{group}/{volume}"))
        .is_ok_and(|place| Grammar::LvmOwn.allows(own, &place))
}
