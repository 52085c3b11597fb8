//! States, requests and refusals.

use serde::{Deserialize, Serialize};

/// Digits of a mark.
pub const MARK_LENGTH: usize = 16;
/// Bytes of a note: a line or two, kept in the record.
pub const NOTE_MAX: usize = 1024;

/// Whether this is a well-formed mark: 16 lower-case hexadecimal digits.
pub fn is_mark(text: &str) -> bool {
    text.len() == MARK_LENGTH
        && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A moment, as observed on the host that acted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// Nanoseconds within the second.
    pub nanoseconds: u32,
}

/// One volume's part of an occupant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Part {
    /// The volume's locator.
    pub volume: String,
    /// The storage's own identity of the snapshot.
    pub identity: String,
    /// The name under which the storage's own tools show it.
    pub name: String,
    /// Guest-visible size when taken, in bytes.
    pub virtual_size: u64,
}

/// How much is known about the machine's state at the moment of the take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Nobody had the disk open for writing.
    Offline,
    /// The machine was running, its file systems frozen.
    Quiesced,
    /// The machine was running: like a power cut.
    Crash,
    /// Found in the storage without a record.
    Unknown,
}

/// The snapshot that holds the slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Occupant {
    /// The slot's mark.
    pub mark: String,
    /// When it was taken.
    pub taken: Moment,
    /// What the person wrote.
    pub note: Option<String>,
    /// What is known of the machine's state then.
    pub consistency: Consistency,
    /// One part for each volume.
    pub parts: Vec<Part>,
}

/// An operation under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Running {
    /// The operation's number on this host; 0 if this host has no record of it.
    pub operation: u64,
    /// When it began.
    pub since: Moment,
    /// The process that runs it, if it is alive.
    pub process: Option<u32>,
}

/// How storage and record differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case")]
pub enum Drift {
    /// The recorded snapshot is no longer in the storage.
    #[error("the snapshot is gone")]
    SnapshotGone,
    /// The storage is not the one in which the snapshot was recorded.
    #[error("the volume is not the one that was snapshotted")]
    VolumeReplaced,
    /// Some volumes hold the snapshot and some do not.
    #[error("some of its volumes hold the snapshot and some do not")]
    Partial,
    /// The snapshot's name is there and its content is gone.
    #[error("the snapshot is there and its content is lost")]
    SnapshotLost,
}

/// What a slot can be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum State {
    /// There is no slot.
    Disabled,
    /// Ready to be filled.
    Empty,
    /// Filled.
    Held {
        /// By what.
        occupant: Occupant,
    },
    /// Being filled.
    Taking {
        /// By what operation.
        running: Running,
    },
    /// The content is being set back.
    Restoring {
        /// By what operation.
        running: Running,
    },
    /// Being emptied.
    Deleting {
        /// By what operation.
        running: Running,
    },
    /// Storage and record differ.
    Drifted {
        /// How.
        drift: Drift,
        /// What the record says holds the slot.
        recorded: Option<Occupant>,
    },
}

impl State {
    /// The state's word.
    pub fn word(&self) -> &'static str {
        match self {
            State::Disabled => "disabled",
            State::Empty => "empty",
            State::Held { .. } => "held",
            State::Taking { .. } => "taking",
            State::Restoring { .. } => "restoring",
            State::Deleting { .. } => "deleting",
            State::Drifted { .. } => "drifted",
        }
    }

    /// What holds the slot.
    pub fn occupant(&self) -> Option<&Occupant> {
        match self {
            State::Held { occupant } => Some(occupant),
            _ => None,
        }
    }
}

/// What may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Make an empty slot.
    Enable,
    /// Remove the slot.
    Disable,
    /// Fill the slot.
    Take {
        /// A held slot is filled anew, the new made before the old goes.
        replace: bool,
    },
    /// Set the machine back.
    Restore {
        /// And empty the slot after it.
        consume: bool,
    },
    /// Empty the slot.
    Delete,
}

/// Why the answer is no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "refusal", rename_all = "kebab-case")]
pub enum Refusal {
    /// Snapshots are not enabled for this machine.
    #[error("snapshots are not enabled")]
    Disabled,
    /// They are enabled already.
    #[error("snapshots are enabled already")]
    AlreadyEnabled,
    /// The slot is held.
    #[error("the slot is held")]
    Occupied {
        /// By what.
        occupant: Box<Occupant>,
    },
    /// There is nothing in the slot.
    #[error("the slot is empty")]
    Empty,
    /// Another operation holds the slot.
    #[error("another operation is under way")]
    Busy {
        /// Which.
        running: Running,
    },
    /// Storage and record differ.
    #[error("storage and record differ: {drift}")]
    Drifted {
        /// How.
        drift: Drift,
    },
    /// A policy component narrowed the rule.
    #[error("the policy says no: {words}")]
    Policy {
        /// Its words.
        words: String,
    },
}
