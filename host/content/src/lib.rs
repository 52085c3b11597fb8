//! What a disk or its snapshot holds, whatever the storage: read, written out as an image, compared.
//!
//! [`Content`] is one view of a volume: a size, where there is something, and reading. A view of an
//! image is [`Mapped`], made of the extents its plugin lists; of a file or device [`Plain`]. From there
//! content goes out as an image ([`export`]) or is held against another ([`diff`]). This crate knows
//! no plugin, no slot and no policy; and the only format it knows is the one it writes.

mod content;
mod diff;
mod error;
pub mod export;
mod extent;
mod laid;
mod mapped;
mod pieces;
mod plain;
mod sent;
mod unpack;

pub use content::{Content, Run, SharedRange, is_zero};
pub use diff::{by_content, by_map, joined, not_zero};
pub use error::ContentError;
pub use extent::{At, Compression, Extent};
pub use laid::{Laid, laid};
pub use mapped::{EXTENTS_MAX, Map, Mapped};
pub use pieces::Watch;
pub use plain::Plain;
pub use sent::{Sent, SentError, Told};
pub use snapslot_disk::Range;
