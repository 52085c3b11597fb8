//! Live copy-on-write: one snapshot of a disk that is being written, for storage that has none.
//!
//! A [`LiveDisk`] stands between a machine and its disk. While it holds a snapshot, the first write to a
//! block of 4 KiB waits in memory; at the machine's next flush, or when enough has gathered, all such
//! blocks are read as they are on the disk, appended to the [`store`], made durable there with one
//! flush, and only then overwritten. What the disk cache of real hardware may do, memory does here:
//! a write that was not flushed may be lost in a power cut, one that was flushed is not.
//!
//! # What is promised
//!
//! - At any instant the snapshot is whole: a block's old content is durable in the store before the disk
//!   is changed there. A store that is full, or fails, ends the *snapshot*, durably and said aloud, never
//!   the machine's writes; or the other way round, where that is wanted ([`OnFull`]).
//! - A take is a point in time: what was answered before it is in the snapshot, what was asked after it is
//!   not. It takes as long as one flush; writes go on meanwhile.
//! - A restore that is cut off is gone on with when the disk is next opened; until then the store is whole.
//! - Other processes read the snapshot beside it ([`Snapshot`]): the store tells them what was saved
//!   before the disk shows the new content.
//!
//! This crate knows no plugin, no protocol but its own [`control`], and no policy.

mod blocks;
pub mod control;
mod disk;
mod snapshot;
pub mod store;

pub use blocks::BLOCK;
pub use disk::{Knobs, LiveDisk, LiveError, OnFull, Standing};
pub use snapshot::Snapshot;
