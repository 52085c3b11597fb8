//! Where guest-visible content is.

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

/// Where the content of an extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// At this offset of the image.
    Data(u64),
    /// Zeroes.
    Zero,
    /// Compressed bytes inside the image.
    Compressed {
        /// First byte.
        offset: u64,
        /// Bytes at most.
        length: u64,
        /// How.
        method: Compression,
    },
    /// In the backing file, at the same guest offset.
    Backing,
}

/// A run of guest-visible content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// First guest byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Where they are.
    pub content: Content,
}
