//! The device of a snapshot, shown for as long as somebody reads it.
//!
//! A snapshot of a thin LVM volume is not active, and one of a ZFS volume is hidden, as nobody needs them until their
//! content is read. The note says how it was before:
//!
//! | note | to show it | to let go |
//! |---|---|---|
//! | `lvm GROUP/NAME` | `lvchange -ay -K` | `lvchange -an` |
//! | `zfs SOURCE NAME DATASET` | `zfs set snapdev=visible` | `zfs set snapdev=hidden`, and where it was not set there, `zfs inherit snapdev` (`-S` where it was received) |
//!
//! Whoever reads the same snapshot meanwhile finds the device there. If that one goes on longer the device stays, and
//! the next change of the volume, or `recover`, lets go of it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use snapslot_command::{Executor, Grammar, Place, PlaceKind};

use super::dataset::{is_gone, zfs};
use super::note::Note;
use super::{Failed, Kind, PASSING, command, patiently, run};
use crate::volume::Volume;

/// Activation waits for whoever has the group's lock.
const DEADLINE: Duration = Duration::from_secs(120);
/// How long another process is waited for that shows, or hides, the same; and udev, to make the device's name: it makes
/// many, one after the other, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_millis(50);
/// Tries after which it is hidden anew.
const ANEW: u32 = 10;

pub(super) const KIND: Kind =
    Kind { what: "a snapshot's device", folder: "shown", note_of, undo: hide };

/// A device that is shown. Hidden again when dropped.
pub(crate) struct Shown<'e> {
    note: Note,
    tools: &'e dyn Executor,
    /// Whether the command that shows it has ended.
    ended: bool,
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
        let place = &volume.locator.place;
        let Some(note_name) = note_of(place) else { return Err("it has no device".to_owned()) };
        let begun = Instant::now();
        let mut note = loop {
            if device.exists() {
                return Ok(None);
            }
            // Where the volume itself has none, nothing of it is active, or it is a file system.
            if !place.device().is_some_and(|device| device.exists()) {
                return Err("the volume itself has no device".to_owned());
            }
            // Who has it may be about to show the device, or to hide it.
            match Note::open(&KIND.notes(state_dir), &note_name).map_err(|e| e.to_string())? {
                Some(note) => break note,
                None if begun.elapsed() > PATIENCE => {
                    return Err("somebody else shows it".to_owned());
                }
                None => std::thread::sleep(STEP),
            }
        };
        // What is noted of a volume of ZFS hides this device with the others, which may be open still; and it is not put
        // at risk.
        let said = note.says()?;
        if !matches!(place, Place::ZfsDataset(dataset) if is_noted(&said, dataset)) {
            hide(&mut note, tools, PASSING.0)?;
            match place {
                Place::ZfsDataset(dataset) => match snapdev(tools, dataset)? {
                    Some(source) => note.write(&format!("zfs {source} {name} {dataset}\n"))?,
                    // One that was made just now gets its name in a moment.
                    None => return wait_for(device).map(|()| None),
                },
                Place::LvmVolume { group, .. } => note.write(&format!("lvm {group}/{name}\n"))?,
                Place::Image(_) | Place::Directory(_) => return Err("it has no device".to_owned()),
            }
        }
        // Dropped, it is hidden: it may be shown though nobody said so.
        let mut shown = Shown { note, tools, ended: true };
        let done = match place {
            Place::LvmVolume { group, .. } => {
                let volume = format!("{group}/{name}");
                run(tools, &shown.note, DEADLINE, "lvchange", &["-ay", "-K", &volume])
            }
            _ => zfs(tools, &shown.note, &["set", "snapdev=visible", &place.to_string()]),
        };
        if let Err(failed) = done {
            // One that goes on may show it yet: the note stays.
            shown.ended = !failed.goes_on;
            return Err(failed.into());
        }
        wait_for(device)?;
        Ok(Some(shown))
    }
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if !self.ended {
            return;
        }
        if let Err(why) = hide(&mut self.note, self.tools, PASSING.0) {
            tracing::info!("a snapshot's device is there still: {why}");
        }
    }
}

/// No name of theirs has such a sign.
fn note_of(place: &Place) -> Option<String> {
    let kind = match place {
        Place::LvmVolume { .. } => "lvm",
        Place::ZfsDataset(_) => "zfs",
        Place::Image(_) | Place::Directory(_) => return None,
    };
    Some(format!("{kind}={}", place.to_string().replace('/', "=")))
}

fn wait_for(device: &Path) -> Result<(), String> {
    let begun = Instant::now();
    while !device.exists() {
        if begun.elapsed() > PATIENCE {
            return Err(format!("{} did not come", device.display()));
        }
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// Whether a note says where this dataset's snapshots were hidden.
fn is_noted(said: &str, dataset: &str) -> bool {
    let words: Vec<&str> = said.splitn(4, ' ').collect();
    matches!(words[..], ["zfs", "local" | "received" | "inherited", _, of] if of == dataset)
}

/// Where it is said that a dataset's snapshots are hidden; none: they are not.
fn snapdev(tools: &dyn Executor, dataset: &str) -> Result<Option<&'static str>, String> {
    let words = ["get", "-Hp", "-o", "source,value", "snapdev", dataset];
    let command = command("zfs", &words, DEADLINE);
    let answer = tools.run(&command).map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&answer.output);
    match said.trim_end().split_once('\t').unwrap_or_default() {
        ("local", "hidden") => Ok(Some("local")),
        ("received", "hidden") => Ok(Some("received")),
        (_, "hidden") => Ok(Some("inherited")),
        (_, "visible") => Ok(None),
        _ => Err(format!("`{command}`: {}", answer.complaint())),
    }
}

/// Does what the note says, if it says anything.
fn hide(note: &mut Note, tools: &dyn Executor, tries: u32) -> Result<(), String> {
    let said = note.says()?;
    let words: Vec<&str> = said.splitn(4, ' ').collect();
    match words[..] {
        [""] => return Ok(()),
        ["lvm", volume] if is_ours(volume) => {
            let hide = || run(tools, note, DEADLINE, "lvchange", &["-an", volume]);
            // udev looks at what was activated.
            match patiently(hide, "in use", tries) {
                Ok(()) => {}
                // The snapshot is gone, or the group, and with it what was shown.
                Err(failed) if failed.says("Failed to find logical volume") => {}
                Err(failed) if failed.says("not found") => {}
                Err(failed) => return Err(failed.into()),
            }
        }
        ["zfs", source, name, dataset] => {
            let place = Place::parse(PlaceKind::ZfsDataset, dataset).map_err(|e| e.to_string())?;
            if !Grammar::ZfsOwn.allows(name, &place) {
                return Err(format!("{said:?} is noted, which is nothing of ours"));
            }
            let is_there = || has_devices(&place);
            for turn in 0..tries {
                // ZFS leaves a device that somebody has open, as udev has it to look, and says nothing.
                if turn % ANEW == 0 {
                    match hide_zfs(note, tools, source, dataset) {
                        Ok(()) => {}
                        Err(failed) if is_gone(&failed, dataset, note, tools) => break,
                        Err(failed) => return Err(failed.into()),
                    }
                }
                if !is_there() {
                    break;
                }
                std::thread::sleep(PASSING.1);
            }
            if is_there() {
                return Err("somebody has it open".to_owned());
            }
        }
        _ => return Err(format!("{said:?} is noted, which is nothing of ours")),
    }
    note.write("")
}

/// Whether a snapshot of ours of this volume has a device: the property shows and hides all of them.
fn has_devices(volume: &Place) -> bool {
    let Some(device) = volume.device() else { return false };
    let (Some(folder), Some(name)) = (device.parent(), device.file_name()) else { return false };
    let is_ours = |entry: fs::DirEntry| {
        let entry = entry.file_name();
        let (Some(entry), Some(name)) = (entry.to_str(), name.to_str()) else { return false };
        let own = entry.strip_prefix(name).and_then(|rest| rest.strip_prefix('@'));
        own.is_some_and(|own| Grammar::ZfsOwn.allows(own, volume))
    };
    fs::read_dir(folder).into_iter().flatten().flatten().any(is_ours)
}

fn hide_zfs(note: &Note, tools: &dyn Executor, source: &str, dataset: &str) -> Result<(), Failed> {
    // Also where it is inherited: what is set anew is done anew, to a device that was open the last time.
    zfs(tools, note, &["set", "snapdev=hidden", dataset])?;
    match source {
        "local" => Ok(()),
        "received" => zfs(tools, note, &["inherit", "-S", "snapdev", dataset]),
        _ => zfs(tools, note, &["inherit", "snapdev", dataset]),
    }
}

/// Whether it is a snapshot of ours, `GROUP/NAME_snapslot_MARK`.
fn is_ours(name: &str) -> bool {
    let Some((group, own)) = name.split_once('/') else { return false };
    let Some((volume, _)) = own.rsplit_once("_snapslot_") else { return false };
    Place::parse(PlaceKind::LvmVolume, &format!("{group}/{volume}"))
        .is_ok_and(|place| Grammar::LvmOwn.allows(own, &place))
}
