//! What the engine and the process that runs plugins say to each other.
//!
//! A process serves one component: `Begin`, then `Load` or `Compile`, then `Grant` and `Call` as often as
//! it takes. All but `Grant` are answered; during a call the process asks and the engine answers.

use serde::{Deserialize, Serialize};

use super::sandbox::Confinement;
use crate::bindings::types::{Answer, Argument, Description, Failure, SavedCopy, Saving};
use crate::call::{Call, DraftEnd, DraftStep, Ended, Reply};
use crate::flaw::Flaw;
use crate::limits::Limits;
use crate::machine::Linked;
use crate::outside::Loud;
use crate::read_fault::ReadFault;

/// To the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// First of all: how long things may take.
    Begin { limits: Limits },
    /// Make ready what was compiled before: its code is the file that comes with this.
    Load,
    /// Compile and make ready.
    Compile {
        #[serde(with = "serde_bytes")]
        component: Vec<u8>,
    },
    /// What it may see and plan: its own description, narrowed to what was approved.
    Grant { description: Description },
    /// Call it. A descriptor that comes with this is the volume's image.
    Call { call: Call, seen: Option<SeenThere> },
}

/// A volume as the process is told of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SeenThere {
    pub(super) kind: u8,
    pub(super) place: String,
    pub(super) disk: DiskThere,
}

/// Where its image is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum DiskThere {
    /// There is none, or it is not granted.
    None,
    /// By the descriptor that comes with the order.
    Descriptor,
    /// Over the socket.
    Socket,
}

/// From the process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    Ready {
        key: u64,
        confinement: Confinement,
    },
    Linked(Result<Linked, Vec<Flaw>>),
    /// The kept code is damaged.
    Damaged,
    /// After `Linked`, where it was compiled: its code, if it can be kept.
    Code(Option<serde_bytes::ByteBuf>),
    Ask {
        query: String,
        arguments: Vec<Argument>,
    },
    Copies,
    Saving,
    Log {
        loud: Loud,
        message: String,
    },
    Size,
    Read {
        offset: u64,
        length: u32,
    },
    /// Steps of the plan, in order: those of a long one come in many frames, and each is checked as it
    /// comes.
    Steps(Vec<DraftStep>),
    Ended(Result<Reply<DraftEnd>, Ended>),
}

/// What the engine says to a word that asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Told {
    Answer(Result<Answer, Failure>),
    Copies(Result<Vec<SavedCopy>, Failure>),
    Saving(Result<Saving, Failure>),
    Size(Result<u64, ReadFault>),
    Bytes(Result<serde_bytes::ByteBuf, ReadFault>),
}
