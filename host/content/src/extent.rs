//! Where content is.

use serde::Serialize;

/// Compression of packed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Raw deflate.
    Deflate,
    /// A Zstandard frame.
    Zstd,
}

/// Where the bytes of an extent are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// At this offset of the image.
    Data(u64),
    /// Nowhere: they are zeroes.
    Zero,
    /// Compressed inside the image.
    Packed {
        /// First byte.
        offset: u64,
        /// Bytes at most.
        length: u32,
        /// How.
        method: Compression,
    },
    /// In the backing file, at the same guest offset.
    Backing,
}

/// A run of guest-visible content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First guest byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Where they are.
    pub at: At,
}
