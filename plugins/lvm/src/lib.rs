//! The LVM backend: plans snapshots of thin and thick logical volumes.
//!
//! It asks LVM for one report on the volume's group ([`look`]), makes sense of it ([`state`]), and
//! plans commands out of its grants ([`grants`]). It holds no handle and remembers nothing: what
//! is half done is seen from names and tags, and every plan begins by ending that.
//!
//! # What is where
//!
//! A slot's snapshot is `NAME_snapslot_MARK`, tagged with its mark and the time it was taken. A
//! restore's own volumes are `NAME_snapslot_new` and `NAME_snapslot_old`, tagged too. Only a volume
//! whose name *and* tag say the same is ours; it is removed by name and UUID.
//!
//! # Why every crash is safe
//!
//! LVM changes a group's metadata in one step, so a command has happened or has not; the two that
//! take longer show what they have not done:
//!
//! - **take**: one `lvcreate`. Killed inside, a thick one leaves a plain volume with our name and
//!   tag that is no snapshot; it is removed. A thin one is there or is not.
//! - **restore, thin**: a new volume out of the snapshot, a swap of names, the old one removed
//!   last ([`thin`] has each state). Volume or restored volume is there at every moment, and the
//!   snapshot throughout.
//! - **restore, thick**: the merge is LVM's, and resumes whenever the volume is activated
//!   ([`thick`]). It consumes the snapshot; the volume holds its content from that moment on.
//! - **delete**: one `lvremove`.
//!
//! A merge that LVM puts off because something opened the volume at the last moment would set the
//! volume back at some later activation. It is told as unfinished, ended once nobody has the
//! volume open, and nothing else is planned before.

mod explain;
mod facts;
mod grants;
mod look;
mod metadata;
mod plan;
mod report;
mod state;
#[cfg(test)]
mod tests;
mod thick;
mod thin;
mod words;

use snapslot_plugin_sdk::{
    Answer, Backend, Change, Description, Facts, Failure, FailureKind, Goal, PlaceKind, Plan,
    StretchPage, Target,
};

use look::Look;
use state::State;

/// The backend.
#[derive(Debug)]
pub struct Lvm;

impl Backend for Lvm {
    fn describe() -> Description {
        Description {
            name: "lvm".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "snapshots of LVM's thin and thick logical volumes".to_owned(),
            endings: Vec::new(),
            place: PlaceKind::LvmVolume,
            images: vec![grants::pool_metadata()],
            copies: None,
            queries: grants::queries(),
            actions: grants::actions(),
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        facts::facts(&State::of(&Look::at(target)?)?)
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        plan::plan(&State::of(&Look::at(target)?)?, goal, plan)
    }

    fn measure(target: &dyn Target, identity: &str, quick: bool) -> Result<Change, Failure> {
        let look = Look::at(target)?;
        let state = State::of(&look)?;
        match state.slot(identity).is_some_and(|slot| slot.lv.is_thin()) {
            true => thin::measure(target, &state, identity, quick),
            false => thick::measure(&state, identity),
        }
    }

    fn differences(
        target: &dyn Target,
        identity: &str,
        cursor: u64,
        max: u32,
    ) -> Result<StretchPage, Failure> {
        thin::differences(target, &State::of(&Look::at(target)?)?, identity, cursor, max)
    }

    fn explain(command: &str, answer: &Answer) -> Failure {
        explain::explain(command, answer)
    }
}

/// The storage is sound and uses something this backend does not handle.
pub(crate) fn unsupported(code: &str, message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Unsupported, code, message)
}

#[cfg(not(feature = "library"))]
snapslot_plugin_sdk::export_backend!(crate::Lvm);
