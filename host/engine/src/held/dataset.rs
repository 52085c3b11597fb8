//! The present content of a ZFS volume, held as a snapshot of its own while it is read, or what was written since the
//! take.
//!
//! ZFS tells which blocks of a volume were written since a snapshot by `zfs send` alone, and sends up to another
//! snapshot. So one is made for that time. It is of one moment, whoever writes the volume meanwhile; its name has
//! a mark of its own that was noted before it was made, so that whatever has that name is ours to destroy. It is newer
//! than the slot's, and while it is there the slot's cannot be restored, nor would it be anyway: who reads what the slot
//! holds keeps others from changing it.
//!
//! Notes are named by the volume, and say the snapshot's full name.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use snapslot_command::{Command, Executor, Place, PlaceKind};
use snapslot_content::{Sent, Told, Watch};

use super::note::Note;
use super::{Failed, Kind, PASSING, command, flush, patiently, run};
use crate::volume::Volume;

/// A snapshot is made when all that was written is on the disks.
const DEADLINE: Duration = Duration::from_secs(300);
/// What its name begins with; a mark follows.
const NAME: &str = "snapslot-now-";

pub(super) const KIND: Kind =
    Kind { what: "a snapshot of the present", folder: "datasets", note_of, undo: destroy };

/// A volume's present content.
pub(crate) struct Present<'e> {
    dataset: String,
    /// `dataset@name`.
    snapshot: String,
    note: Note,
    tools: &'e dyn Executor,
    /// Whether it is known to be there or not.
    made: bool,
}

/// Why there is nothing to be told.
pub(crate) enum Untold {
    /// Somebody stopped it.
    Stopped,
    /// It cannot be told this way.
    Because(String),
}

impl<'e> Present<'e> {
    /// Holds it, with a mark that no other has. Another process that holds it is waited for so long.
    pub(crate) fn of(
        volume: &Volume,
        mark: &str,
        patience: Duration,
        tools: &'e dyn Executor,
        state_dir: &Path,
    ) -> Result<Present<'e>, String> {
        let place = &volume.locator.place;
        let (Place::ZfsDataset(dataset), Some(note_name)) = (place, note_of(place)) else {
            return Err("it is no ZFS volume".to_owned());
        };
        if let Some(device) = place.device() {
            flush(&device);
        }
        let mut note = Note::take(&KIND.notes(state_dir), &note_name, patience)?;
        destroy(&mut note, tools, PASSING.0)?;
        let snapshot = format!("{dataset}@{NAME}{mark}");
        note.write(&format!("{snapshot}\n"))?;
        let mut present = Present { dataset: dataset.clone(), snapshot, note, tools, made: true };
        // Dropped, it is destroyed: it may have been made though nobody said so.
        let made = zfs(tools, &present.note, &["snapshot", &present.snapshot]);
        if let Err(failed) = made {
            // One that goes on may make it yet: the note stays.
            present.made = !failed.goes_on;
            return Err(failed.into());
        }
        Ok(present)
    }

    /// Its name behind the volume's.
    pub(crate) fn name(&self) -> &str {
        self.snapshot.rsplit('@').next().unwrap_or_default()
    }

    /// Where it was written since the snapshot of this name and guid; the contents have so many bytes.
    pub(crate) fn written_since(
        &self,
        name: &str,
        guid: u64,
        sizes: [u64; 2],
        watch: &Watch<'_>,
    ) -> Result<Told, Untold> {
        let from = format!("{}@{name}", self.dataset);
        let heard = |sent: Sent, words: &[&str], until: &dyn Fn(&Sent) -> bool| {
            // As it lies on the disks: nothing is unpacked, and no key is needed.
            let command = command("zfs", words, DEADLINE);
            hear(self.tools, &command, sent, until, watch)
        };
        let since = ["send", "-w", "-i", &from, &self.snapshot];
        let sent = heard(Sent::since(guid), &since, &|_| false)?;
        // Where the last block ended then is said by what would be sent of it alone, before any block.
        let then = match sent.last_block_ends() {
            Some(_) => {
                let told = |sent: &Sent| sent.last_block_ends().is_some();
                heard(Sent::since(0), &["send", "-w", &from], &told)?.last_block_ends()
            }
            None => None,
        };
        sent.told(sizes, then).map_err(|e| Untold::Because(e.to_string()))
    }
}

/// Hears what is sent, to its end or as far as wanted.
fn hear(
    tools: &dyn Executor,
    command: &Command,
    mut sent: Sent,
    until: &dyn Fn(&Sent) -> bool,
    watch: &Watch<'_>,
) -> Result<Sent, Untold> {
    let (mut failed, mut stopped) = (None, false);
    let answer = tools.run_listening(command, &mut |bytes| {
        stopped = (watch.stop)();
        failed = sent.take_in(bytes).err();
        match stopped || failed.is_some() || until(&sent) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    match (answer, failed) {
        (_, Some(why)) => Err(Untold::Because(why.to_string())),
        (Err(why), None) => Err(Untold::Because(why.to_string())),
        (Ok(None), None) if stopped => Err(Untold::Stopped),
        (Ok(Some(answer)), None) if answer.exit_code != 0 => {
            Err(Untold::Because(format!("`{command}`: {}", answer.complaint())))
        }
        (Ok(_), None) => Ok(sent),
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        let snapshot = &self.snapshot;
        let destroyed = match self.made {
            true => destroy(&mut self.note, self.tools, PASSING.0),
            false => Err("it is being made still".to_owned()),
        };
        if let Err(why) = destroyed {
            tracing::warn!(
                "{snapshot} is there still ({why}); `snapslot recover` destroys it, or `zfs destroy {snapshot}`"
            );
        }
    }
}

/// Destroys the snapshot that is noted, if one is.
fn destroy(note: &mut Note, tools: &dyn Executor, tries: u32) -> Result<(), String> {
    let snapshot = note.says()?;
    if snapshot.is_empty() {
        return Ok(());
    }
    // What is not of the grammar was not noted by us.
    let ours = snapshot.split_once('@').filter(|(dataset, name)| {
        Place::parse(PlaceKind::ZfsDataset, dataset).is_ok()
            && name.strip_prefix(NAME).is_some_and(snapslot_slot::is_mark)
    });
    let Some((dataset, _)) = ours else {
        return Err(format!("{snapshot:?} is noted, which is no snapshot of ours"));
    };
    // Where snapshots have devices, udev looks at every new one.
    let destroyed =
        patiently(|| zfs(tools, note, &["destroy", &snapshot]), "dataset is busy", tries);
    match destroyed {
        Ok(()) => {}
        // It was never made, or is gone.
        Err(failed) if failed.says("could not find any snapshots to destroy") => {}
        Err(failed) if is_gone(&failed, dataset, note, tools) => {}
        Err(failed) => return Err(failed.into()),
    }
    note.write("")
}

/// Whether it failed because the volume is gone, and what it had with it. Where its pool is not imported, nothing is
/// known.
pub(super) fn is_gone(failed: &Failed, dataset: &str, note: &Note, tools: &dyn Executor) -> bool {
    let pool = dataset.split('/').next().unwrap_or_default();
    failed.says("does not exist") && zfs(tools, note, &["list", "-Hp", "-o", "name", pool]).is_ok()
}

pub(super) fn zfs(tools: &dyn Executor, note: &Note, words: &[&str]) -> Result<(), Failed> {
    run(tools, note, DEADLINE, "zfs", words)
}

/// Names of datasets have no such sign.
fn note_of(place: &Place) -> Option<String> {
    let Place::ZfsDataset(dataset) = place else { return None };
    Some(dataset.replace('/', "="))
}
