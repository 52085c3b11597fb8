//! The present content of a ZFS volume, held as a snapshot of its own while it is read what was written since the take.
//!
//! ZFS tells which blocks of a volume were written since a snapshot by `zfs send` alone, and sends up to another
//! snapshot. So one is made for that time. It is of the present moment, whoever writes the volume meanwhile; its name has
//! a mark of its own that was noted before it was made, so that whatever has that name is ours to destroy. It is newer
//! than the slot's, and while it is there the slot's cannot be restored, nor would it be anyway: who reads what the slot
//! holds keeps others from changing it.
//!
//! Notes are named by the volume, and say the snapshot's full name.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use snapslot_command::{Executor, Place, PlaceKind};
use snapslot_content::{Sent, Told, Watch};

use super::note::Note;
use super::{command, patiently, run};
use crate::volume::Volume;

/// A snapshot is made when all that was written is on the disks.
const DEADLINE: Duration = Duration::from_secs(300);
/// What its name begins with; a mark follows.
const NAME: &str = "snapslot-now-";
/// How long it is waited for another process that reads what was written.
const PATIENCE: Duration = Duration::from_secs(5);

/// A volume's present content.
pub(crate) struct Present<'e> {
    dataset: String,
    /// `dataset@name`.
    snapshot: String,
    note: Note,
    tools: &'e dyn Executor,
}

/// Why there is nothing to be told.
pub(crate) enum Untold {
    /// Somebody stopped it.
    Stopped,
    /// It cannot be told this way.
    Because(String),
}

impl<'e> Present<'e> {
    /// Holds it, with a mark that no other has.
    pub(crate) fn of(
        volume: &Volume,
        mark: &str,
        tools: &'e dyn Executor,
        state_dir: &Path,
    ) -> Result<Present<'e>, String> {
        let Place::ZfsDataset(dataset) = &volume.locator.place else {
            return Err("it is no ZFS volume".to_owned());
        };
        // Names of datasets have no such sign.
        let name = dataset.replace('/', "=");
        let mut note = Note::take(&notes(state_dir), &name, PATIENCE)?;
        destroy(&mut note, tools)?;
        let snapshot = format!("{dataset}@{NAME}{mark}");
        note.write(&format!("{snapshot}\n"))?;
        let present = Present { dataset: dataset.clone(), snapshot, note, tools };
        // Dropped, it is destroyed: it may have been made though nobody said so.
        zfs(tools, &["snapshot", &present.snapshot])?;
        Ok(present)
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
        // As it lies on the disks: nothing is unpacked, and no key is needed.
        let command = command("zfs", &["send", "-w", "-i", &from, &self.snapshot], DEADLINE);
        let mut sent = Sent::since(guid);
        let mut failed = None;
        let answer = self.tools.run_listening(&command, &mut |bytes| {
            if (watch.stop)() {
                return ControlFlow::Break(());
            }
            match sent.take_in(bytes) {
                Ok(()) => ControlFlow::Continue(()),
                Err(why) => {
                    failed = Some(why.to_string());
                    ControlFlow::Break(())
                }
            }
        });
        match (answer, failed) {
            (_, Some(why)) => Err(Untold::Because(why)),
            (Err(why), None) => Err(Untold::Because(why.to_string())),
            (Ok(None), None) => Err(Untold::Stopped),
            (Ok(Some(answer)), None) if answer.exit_code != 0 => {
                Err(Untold::Because(format!("`{command}`: {}", answer.complaint())))
            }
            (Ok(Some(_)), None) => sent.told(sizes).map_err(|e| Untold::Because(e.to_string())),
        }
    }
}

impl Drop for Present<'_> {
    fn drop(&mut self) {
        if let Err(why) = destroy(&mut self.note, self.tools) {
            let snapshot = &self.snapshot;
            tracing::warn!(
                "{snapshot} is there still ({why}); `snapslot recover` destroys it, or `zfs destroy {snapshot}`"
            );
        }
    }
}

/// Lets go of what was left held.
pub(super) fn let_go(tools: &dyn Executor, state_dir: &Path) {
    for (_, mut note) in Note::all(&notes(state_dir)) {
        if let Err(why) = destroy(&mut note, tools) {
            let snapshot = note.says().unwrap_or_default();
            tracing::warn!("{snapshot} may be there still: {why}");
        }
    }
}

/// Destroys the snapshot that is noted, if one is.
fn destroy(note: &mut Note, tools: &dyn Executor) -> Result<(), String> {
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
    match patiently(|| zfs(tools, &["destroy", &snapshot]), "dataset is busy") {
        Ok(()) => {}
        // It was never made, or is gone.
        Err(why) if why.contains("could not find any snapshots to destroy") => {}
        Err(why) if why.contains("does not exist") => {
            // The volume is gone, and what it had with it. Where its pool is not imported, nothing is known.
            let pool = dataset.split('/').next().unwrap_or_default();
            zfs(tools, &["list", "-Hp", "-o", "name", pool]).map_err(|_| why)?;
        }
        Err(why) => return Err(why),
    }
    note.write("")
}

fn zfs(tools: &dyn Executor, words: &[&str]) -> Result<(), String> {
    run(tools, DEADLINE, "zfs", words)
}

fn notes(state_dir: &Path) -> PathBuf {
    state_dir.join("datasets")
}
