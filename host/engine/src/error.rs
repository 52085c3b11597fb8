//! Why a command failed, in words and for programs.

use serde_json::{Map, Value, json};
use snapslot_capture::journal::JournalError;
use snapslot_capture::{CheckError, CopyError, ExecuteError};
use snapslot_content::ContentError;
use snapslot_disk::{DiskError, Holder, Users};
use snapslot_runtime::{CallError, Failure, FailureKind, LoadError};
use snapslot_slot::{Moment, Refusal};

use crate::installed::InstallError;
use crate::locator::LocatorError;
use crate::store::StoreError;

/// A command that failed. Unless it says otherwise, nothing has changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// What was given makes no sense.
    #[error("{0}")]
    Usage(String),
    /// Not a volume.
    #[error(transparent)]
    Locator(#[from] LocatorError),
    /// No machine of this name.
    #[error(
        "there is no machine {name}; `snapslot list` shows those there are, `snapslot enable {name} --volume V` makes one"
    )]
    NoMachine {
        /// The name.
        name: String,
    },
    /// The slot's rule says no.
    #[error("{machine}: {refusal}{advice}")]
    Refused {
        /// The machine.
        machine: String,
        /// Why.
        refusal: Box<Refusal>,
        /// What to do next.
        advice: String,
    },
    /// Another engine works on it.
    #[error("{volume} is being worked on{}{}; nothing was changed", Holder::in_words(.holders), since_words(.since))]
    Busy {
        /// The volume.
        volume: String,
        /// Who.
        holders: Vec<Holder>,
        /// Since when, if the record says.
        since: Option<Moment>,
    },
    /// A command outlived the engine that ran it.
    #[error(
        "{volume}: a command of an operation that was killed is at work still{}; it is left to end. Try again then; nothing was changed", Holder::in_words(.holders)
    )]
    LeftOver {
        /// The volume.
        volume: String,
        /// The command.
        holders: Vec<Holder>,
    },
    /// Some program has the image open.
    #[error("{volume} is in use{}; stop the machine first, nothing was changed", .users.in_words())]
    InUse {
        /// The volume.
        volume: String,
        /// Who.
        users: Users,
    },
    /// Some program has the volume open, and no moment of it can be held meanwhile.
    #[error("{volume} is in use{}, and no moment of it can be held to be read: {why}; nothing was changed", .users.in_words())]
    NoMoment {
        /// The volume.
        volume: String,
        /// Who.
        users: Users,
        /// Why not.
        why: String,
    },
    /// The plugin says no.
    #[error("{volume}: {}; nothing was changed", .failure.message)]
    Backend {
        /// The volume.
        volume: String,
        /// Why.
        failure: Box<Failure>,
    },
    /// The plugin is at fault.
    #[error("{volume}: {cause}; nothing was changed")]
    Plugin {
        /// The volume.
        volume: String,
        /// The plugin.
        plugin: String,
        /// Why.
        cause: String,
        /// What it logged last.
        log: Vec<String>,
    },
    /// Reading, writing or locking failed before anything was changed.
    #[error("{volume}: {source}; nothing was changed")]
    Disk {
        /// The volume.
        volume: String,
        /// What the system said.
        source: DiskError,
    },
    /// It failed after the commit; the journal holds the rest.
    #[error(
        "{volume}: {source}. The disk's content is whole and the journal beside it holds the rest of the change: see to the cause, then `snapslot recover {volume}` finishes it"
    )]
    Interrupted {
        /// The volume.
        volume: String,
        /// What went wrong.
        source: ExecuteError,
    },
    /// A change was stopped in the middle and could not be taken back.
    #[error(
        "{volume}: {cause}. The change is half done and nothing is lost: see to the cause, leave the machine off, then `snapslot recover {volume}` ends it"
    )]
    Unsettled {
        /// The volume.
        volume: String,
        /// What went wrong.
        cause: String,
    },
    /// An import stopped in the middle, and there is no way back.
    #[error(
        "{volume}: an import onto it was interrupted, and the snapshot that led back is gone: it holds a part of the image, and of what was there before. `snapslot restore {volume} --from IMAGE` writes it whole; leave the machine off until then"
    )]
    HalfImported {
        /// The volume.
        volume: String,
    },
    /// A disk is served no longer, and what was written last is in nobody's hands.
    #[error(
        "{volume}: its server has ended and what the machine wrote last is not on the disk: {cause}. What was flushed with success is there; see to the cause before the machine is started again"
    )]
    NotDurable {
        /// The volume.
        volume: String,
        /// What went wrong.
        cause: String,
    },
    /// One of several volumes whose operation was interrupted, without the others.
    #[error(
        "{volume}: a {verb} of it was interrupted together with other volumes of the machine {machine}, and they are recovered together or not at all; nothing was changed. `snapslot enable {machine} {}` tells this host of them, then `snapslot recover {machine}` ends it",
        .all.iter().map(|v| format!("--volume {v}")).collect::<Vec<_>>().join(" ")
    )]
    Together {
        /// The volume.
        volume: String,
        /// What was interrupted.
        verb: String,
        /// The machine, as it was called where that began.
        machine: String,
        /// All its volumes.
        all: Vec<String>,
    },
    /// Ending what was interrupted stopped in its middle.
    #[error(
        "{}. What was interrupted on {machine} is ended in part, and nothing is lost: then `snapslot recover {machine}` ends the rest", .source.without_claim()
    )]
    Partly {
        /// The machine.
        machine: String,
        /// Why.
        source: Box<EngineError>,
    },
    /// An operation over several volumes went on where it could, and it could not everywhere.
    #[error(
        "{machine}: its restore was interrupted, and before it was recovered somebody wrote to, or removed the snapshot of, {}: that is left as it is, while the others are set back. `snapslot restore {machine}` sets all of them back, if all have the snapshot", .left.join(", ")
    )]
    Mixed {
        /// The machine.
        machine: String,
        /// The volumes that are not set back.
        left: Vec<String>,
    },
    /// A dry run found something that was interrupted.
    #[error(
        "{machine}: {what}. That is ended first, by `snapslot recover {machine}` or any verb without --dry-run; what would be planned then cannot be told before. Nothing was changed"
    )]
    Unrecovered {
        /// The machine.
        machine: String,
        /// What was.
        what: String,
    },
    /// The result is not what was planned.
    #[error(
        "{volume}: the change was carried out, but looking again shows {found}; the machine should stay off until `snapslot status {volume}` has been read (and `qemu-img check`, if it is an image)"
    )]
    Unexpected {
        /// The volume.
        volume: String,
        /// What was found.
        found: String,
    },
    /// The journal cannot be read or made.
    #[error("{volume}: {source}; nothing was changed")]
    Journal {
        /// The volume.
        volume: String,
        /// Why.
        source: JournalError,
    },
    /// The journal beside the image was written for something else.
    #[error(
        "{volume}: {why}; nothing was changed. Move {journal} away if it does not belong to this image"
    )]
    ForeignJournal {
        /// The volume.
        volume: String,
        /// The journal.
        journal: String,
        /// What is strange.
        why: String,
    },
    /// Installed plugins cannot be read or changed.
    #[error(transparent)]
    Install(#[from] InstallError),
    /// The record cannot be read or written.
    #[error("the record of slots cannot be used, and nothing was changed: {0}")]
    Store(#[from] StoreError),
    /// The record could not be written after the change was made.
    #[error(
        "{machine}: done in the storage, but the record could not be written: {source}; the next command on it puts the record right"
    )]
    Unrecorded {
        /// The machine.
        machine: String,
        /// What went wrong.
        source: StoreError,
    },
    /// The first half of a replacing take or consuming restore is done, the second is not.
    #[error(
        "{machine}: {done}, but the old snapshot could not be deleted yet: {}. `snapslot recover {machine}` tries again", .source.without_claim()
    )]
    HalfDone {
        /// The machine.
        machine: String,
        /// What is done.
        done: &'static str,
        /// Why the rest is not.
        source: Box<EngineError>,
    },
    /// Content could not be read, written out or compared.
    #[error("{volume}: {source}")]
    Content {
        /// The volume.
        volume: String,
        /// Why.
        source: ContentError,
    },
    /// The content cannot be had.
    #[error("{volume}: {why}; nothing was changed")]
    NoContent {
        /// The volume.
        volume: String,
        /// Why, and what helps.
        why: String,
    },
    /// The slot changed since the person was asked.
    #[error("{machine}: the slot is not what it was when you were asked; nothing was changed")]
    Changed {
        /// The machine.
        machine: String,
    },
}

fn since_words(moment: &Option<Moment>) -> String {
    let text = moment
        .and_then(|m| jiff::Timestamp::new(m.seconds, m.nanoseconds.min(999_999_999) as i32).ok())
        .map(|t| format!(" since {t:.0}"));
    text.unwrap_or_default()
}

impl EngineError {
    /// Whether there is no such volume.
    pub(crate) fn is_not_found(&self) -> bool {
        match self {
            EngineError::Disk { source, .. } => source.is_not_found(),
            EngineError::Backend { failure, .. } => failure.kind == FailureKind::NotFound,
            EngineError::Locator(LocatorError::Missing { .. }) => true,
            _ => false,
        }
    }
}

/// What errors say that come before any change.
const CLAIMS: [&str; 3] =
    ["; nothing was changed", ", nothing was changed", ". Try again then; nothing was changed"];

impl EngineError {
    /// Whether it says that nothing was changed.
    pub(crate) fn claims_nothing_changed(&self) -> bool {
        let words = self.to_string();
        CLAIMS.iter().any(|claim| words.ends_with(claim))
    }

    /// What it says, without that.
    pub(crate) fn without_claim(&self) -> String {
        let words = self.to_string();
        let bare = CLAIMS.iter().rev().find_map(|claim| words.strip_suffix(claim));
        bare.map_or(words.clone(), ToOwned::to_owned)
    }

    /// A stable word for programs.
    pub fn code(&self) -> String {
        let fixed = match self {
            EngineError::Usage(_) => "usage",
            EngineError::Locator(LocatorError::Missing { .. }) => "not-found",
            EngineError::Locator(LocatorError::Backend { .. }) => "no-backend",
            EngineError::Locator(_) => "usage",
            EngineError::NoMachine { .. } => "no-machine",
            EngineError::Refused { refusal, .. } => match **refusal {
                Refusal::Disabled => "disabled",
                Refusal::AlreadyEnabled => "already-enabled",
                Refusal::Occupied { .. } => "slot-held",
                Refusal::Empty => "slot-empty",
                Refusal::Busy { .. } => "busy",
                Refusal::Drifted { .. } => "drifted",
                Refusal::Policy { .. } => "policy",
            },
            EngineError::Busy { .. } | EngineError::LeftOver { .. } => "busy",
            EngineError::InUse { .. } | EngineError::NoMoment { .. } => "in-use",
            EngineError::Backend { failure, .. } => return failure.code.clone(),
            EngineError::Plugin { .. } => "plugin-fault",
            EngineError::Disk { source, .. } if source.is_no_space() => "no-space",
            EngineError::Disk { source, .. } if source.is_not_found() => "not-found",
            EngineError::Disk { source, .. } if source.is_denied() => "denied",
            EngineError::Disk { .. } => "io",
            EngineError::Interrupted { .. } => "interrupted",
            EngineError::Unsettled { .. } => "unsettled",
            EngineError::HalfImported { .. } => "half-imported",
            EngineError::NotDurable { .. } => "not-durable",
            EngineError::Partly { source, .. } if source.exit() == 5 => return source.code(),
            EngineError::Partly { .. } => "unsettled",
            EngineError::Together { .. } => "together",
            EngineError::Mixed { .. } => "mixed",
            EngineError::Unrecovered { .. } => "unrecovered",
            EngineError::Unexpected { .. } => "unexpected",
            EngineError::Journal { source: JournalError::Disk(d), .. } if d.is_no_space() => {
                "no-space"
            }
            EngineError::Journal { source: JournalError::Disk(_), .. } => "io",
            EngineError::Journal { .. } | EngineError::ForeignJournal { .. } => "journal",
            EngineError::Install(e) => match e {
                InstallError::Io { .. } => "io",
                InstallError::Untrusted { .. } => "untrusted",
                InstallError::Changed { .. } => "changed",
                InstallError::Busy => "busy",
                InstallError::Missing { .. } => "no-plugin",
                InstallError::Taken(_) => "taken",
                InstallError::Needed { .. } => "needed",
            },
            EngineError::Store(e) if e.is_busy() => "store-busy",
            EngineError::Store(_) => "store",
            EngineError::Unrecorded { .. } => "unrecorded",
            EngineError::HalfDone { .. } => "half-done",
            EngineError::Changed { .. } => "changed",
            EngineError::NoContent { .. } => "no-content",
            EngineError::Content { source, .. } => match source {
                ContentError::Disk(d) if d.is_no_space() => "no-space",
                ContentError::Disk(d) if d.is_denied() => "denied",
                ContentError::Disk(d) if d.is_not_found() => "not-found",
                ContentError::NoBacking { .. } => "backing",
                ContentError::TooMany { .. } => "limit",
                ContentError::Exists { .. } => "exists",
                ContentError::Target { .. } => "target",
                ContentError::Stopped => "stopped",
                ContentError::Packed { .. } => "corrupt",
                ContentError::Gone { .. } => "snapshot-lost",
                ContentError::NotHeld { .. } => "not-held",
                _ => "io",
            },
        };
        fixed.to_owned()
    }

    /// Whether it is for want of room.
    pub(crate) fn is_no_space(&self) -> bool {
        self.code() == "no-space"
    }

    /// The exit code.
    pub fn exit(&self) -> u8 {
        match self {
            EngineError::Usage(_) => 2,
            EngineError::Locator(LocatorError::Missing { .. }) => 1,
            EngineError::Locator(_) | EngineError::NoMachine { .. } => 2,
            EngineError::Refused { refusal, .. } => match **refusal {
                Refusal::Occupied { .. } => 3,
                Refusal::Empty => 4,
                Refusal::Busy { .. } => 5,
                Refusal::Drifted { .. } => 8,
                _ => 6,
            },
            EngineError::Busy { .. }
            | EngineError::LeftOver { .. }
            | EngineError::InUse { .. }
            | EngineError::NoMoment { .. } => 5,
            EngineError::Partly { source, .. } if source.exit() == 5 => 5,
            EngineError::Store(e) if e.is_busy() => 5,
            EngineError::Backend { failure, .. } => match failure.kind {
                FailureKind::InUse => 5,
                FailureKind::Unsupported | FailureKind::Corrupt => 6,
                FailureKind::NotGranted
                | FailureKind::Limit
                | FailureKind::Invalid
                | FailureKind::Internal => 7,
                FailureKind::NotFound
                | FailureKind::NoSpace
                | FailureKind::Io
                | FailureKind::Changed => 1,
            },
            EngineError::Plugin { .. } => 7,
            EngineError::Journal { source: JournalError::Disk(_), .. } => 1,
            EngineError::Interrupted { .. }
            | EngineError::Unsettled { .. }
            | EngineError::HalfImported { .. }
            | EngineError::NotDurable { .. }
            | EngineError::Partly { .. }
            | EngineError::Mixed { .. }
            | EngineError::Together { .. }
            | EngineError::Unrecovered { .. }
            | EngineError::Unexpected { .. }
            | EngineError::Journal { .. }
            | EngineError::ForeignJournal { .. }
            | EngineError::HalfDone { .. }
            | EngineError::Unrecorded { .. } => 8,
            EngineError::Install(e) => match e {
                InstallError::Io { .. } => 1,
                InstallError::Untrusted { .. } | InstallError::Changed { .. } => 7,
                InstallError::Busy => 5,
                InstallError::Missing { .. } => 2,
                InstallError::Taken(_) | InstallError::Needed { .. } => 6,
            },
            EngineError::NoContent { .. } => 6,
            EngineError::Content { source, .. } => match source {
                ContentError::NoBacking { .. }
                | ContentError::TooMany { .. }
                | ContentError::Exists { .. }
                | ContentError::Packed { .. }
                | ContentError::Target { .. } => 6,
                ContentError::Gone { .. } => 8,
                _ => 1,
            },
            EngineError::Disk { .. } | EngineError::Store(_) | EngineError::Changed { .. } => 1,
        }
    }

    /// Figures and names, by key.
    pub fn data(&self) -> Value {
        let holders = |list: &[Holder]| -> Value {
            list.iter()
                .map(|h| json!({ "pid": h.pid, "program": h.program, "machine": h.machine }))
                .collect()
        };
        match self {
            EngineError::Refused { machine, refusal, .. } => {
                let mut data = json!({ "machine": machine });
                if let (Some(into), Ok(Value::Object(more))) =
                    (data.as_object_mut(), serde_json::to_value(refusal))
                {
                    into.extend(more);
                }
                data
            }
            EngineError::Busy { volume, holders: list, since } => {
                json!({ "volume": volume, "holders": holders(list), "since": since })
            }
            EngineError::LeftOver { volume, holders: list } => {
                json!({ "volume": volume, "holders": holders(list) })
            }
            EngineError::Partly { machine, source } => json!({
                "machine": machine,
                "cause": { "code": source.code(), "data": source.data() },
            }),
            EngineError::Mixed { machine, left } => json!({ "machine": machine, "volumes": left }),
            EngineError::Together { volume, verb, machine, all } => {
                json!({ "volume": volume, "verb": verb, "machine": machine, "volumes": all })
            }
            EngineError::Unrecovered { machine, .. } => json!({ "machine": machine }),
            EngineError::InUse { volume, users } | EngineError::NoMoment { volume, users, .. } => {
                json!({
                    "volume": volume, "holders": holders(&users.holders), "mounts": users.mounts,
                    "claimed": users.claimed,
                })
            }
            EngineError::Backend { volume, failure } => {
                let more: Map<String, Value> =
                    failure.data.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
                json!({ "volume": volume, "details": more })
            }
            EngineError::Plugin { volume, plugin, log, .. } => {
                json!({ "volume": volume, "plugin": plugin, "log": log })
            }
            EngineError::Interrupted { volume, source } => {
                json!({ "volume": volume, "phase": source.phase, "title": source.title })
            }
            EngineError::Disk { volume, .. }
            | EngineError::Content { volume, .. }
            | EngineError::NoContent { volume, .. }
            | EngineError::Unsettled { volume, .. }
            | EngineError::HalfImported { volume, .. }
            | EngineError::NotDurable { volume, .. }
            | EngineError::Unexpected { volume, .. }
            | EngineError::Journal { volume, .. }
            | EngineError::ForeignJournal { volume, .. } => json!({ "volume": volume }),
            EngineError::NoMachine { name } => json!({ "machine": name }),
            EngineError::Unrecorded { machine, .. } | EngineError::Changed { machine } => {
                json!({ "machine": machine })
            }
            EngineError::HalfDone { machine, done, source } => json!({
                "machine": machine, "done": done,
                "cause": { "code": source.code(), "data": source.data() },
            }),
            EngineError::Install(InstallError::Changed { name, found, approved, .. }) => {
                json!({ "plugin": name, "found": found, "approved": approved })
            }
            EngineError::Install(InstallError::Needed { name, machines }) => {
                json!({ "plugin": name, "machines": machines })
            }
            EngineError::Usage(_)
            | EngineError::Locator(_)
            | EngineError::Install(_)
            | EngineError::Store(_) => json!({}),
        }
    }

    pub(crate) fn disk(volume: impl ToString, source: DiskError) -> Self {
        EngineError::Disk { volume: volume.to_string(), source }
    }

    pub(crate) fn content(volume: impl ToString, source: ContentError) -> Self {
        EngineError::Content { volume: volume.to_string(), source }
    }

    pub(crate) fn backend(volume: impl ToString, failure: Failure) -> Self {
        EngineError::Backend { volume: volume.to_string(), failure: Box::new(failure) }
    }

    pub(crate) fn copy(volume: impl ToString, error: &CopyError) -> Self {
        Self::backend(volume, crate::keep::in_contract(error))
    }

    pub(crate) fn call(volume: impl ToString, error: CallError) -> Self {
        match error {
            CallError::Refused(failure) => {
                EngineError::Backend { volume: volume.to_string(), failure: Box::new(failure) }
            }
            CallError::Fault { ref plugin, ref log, .. } => EngineError::Plugin {
                volume: volume.to_string(),
                plugin: plugin.clone(),
                log: log.clone(),
                cause: error.to_string(),
            },
        }
    }

    pub(crate) fn load(plugin: &str, error: &LoadError) -> Self {
        EngineError::Plugin {
            volume: format!("backend {plugin}"),
            plugin: plugin.to_owned(),
            cause: error.to_string(),
            log: error.log(),
        }
    }

    pub(crate) fn unsafe_plan(volume: impl ToString, plugin: &str, error: CheckError) -> Self {
        match error {
            CheckError::Disk(source) => Self::disk(volume, source),
            other => EngineError::Plugin {
                volume: volume.to_string(),
                plugin: plugin.to_owned(),
                cause: format!("the plan of the plugin {plugin} was refused: {other}"),
                log: Vec::new(),
            },
        }
    }
}
