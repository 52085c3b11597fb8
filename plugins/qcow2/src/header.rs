//! The image header and the seal.
//!
//! Everything a plan switches lies in the header's first 512 bytes, one sector, so that a switch
//! happens whole or not at all:
//!
//! ```text
//! 0 magic 4 version 8 backing_file_offset 16 backing_file_size 20 cluster_bits 24 size
//! 32 crypt_method 36 l1_size 40 l1_table_offset 48 refcount_table_offset
//! 56 refcount_table_clusters 60 nb_snapshots 64 snapshots_offset            (v2 ends at 72)
//! 72 incompatible_features 80 compatible_features 88 autoclear_features
//! 96 refcount_order 100 header_length 104 compression_type
//! ```
//!
//! The seal is incompatible bit 0 (*dirty*: QEMU counts references anew before it writes) with a
//! stamp in a word of the first sector that means nothing to the format: behind the end of the
//! extensions, or in the padding of the feature name table's first name where the sector is
//! full. Whatever repairs a dirty image rewrites its header and so erases the stamp: seen with
//! QEMU 10 for opening, writing, `snapshot`, `resize` and `check -r`. Looking leaves it.
//!
//! An autoclear bit would say the same by the letter of the specification, and must not be used:
//! QEMU (10.0, `check -r`) meets an unknown one before it has read the snapshot table, writes
//! the header back with no snapshots, and then frees all that they held.
//!
//! A v2 header has no feature words; while a plan is under way it is a v3 header, its extensions
//! and backing name moved up by 32 bytes, and becomes v2 again with the last write. QEMU reads
//! either.

use snapslot_plugin_sdk::{Failure, Image};

use crate::{corrupt, unsupported};

pub(crate) const SECTOR: usize = 512;
const V2_LENGTH: usize = 72;
const V3_LENGTH: usize = 104;

pub(crate) const INCOMPATIBLE_DIRTY: u64 = 1;
pub(crate) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
pub(crate) const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
pub(crate) const INCOMPATIBLE_KNOWN: u64 = 0x1f;
pub(crate) const AUTOCLEAR_BITMAPS: u64 = 1;
/// Bitmaps, and a raw external data file.
const AUTOCLEAR_KNOWN: u64 = 3;

/// The stamp: "SNAPSLOT".
pub(crate) const STAMP: u64 = u64::from_be_bytes(*b"SNAPSLOT");
/// Its place where the sector has room: the last word.
const STAMP_AT: usize = SECTOR - 8;
/// Its place within a feature name table: the end of the first name's padding.
const STAMP_IN_NAMES: usize = 48;

/// QEMU's limits (block/qcow2.h), kept so that what we make it can open.
pub(crate) const L1_BYTES_MAX: u64 = 32 << 20;
pub(crate) const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;
pub(crate) const SNAPSHOTS_MAX: u32 = 65_536;

const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;

/// Header extensions are a few hundred bytes; a cluster can be 2 MiB.
const EXTENSIONS_MAX: u64 = 64 << 10;

/// The fields a plan may change, all in the first sector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields {
    pub size: u64,
    pub l1_size: u32,
    pub l1_table_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub nb_snapshots: u32,
    pub snapshots_offset: u64,
}

/// Where persistent bitmaps are listed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BitmapDirectory {
    pub count: u32,
    pub size: u64,
    pub offset: u64,
}

/// A validated header.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    sector: [u8; SECTOR],
    pub version: u32,
    pub cluster_bits: u32,
    pub fields: Fields,
    pub crypt_method: u32,
    pub backing_offset: u64,
    pub backing_size: u32,
    pub incompatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub zstd: bool,
    /// One past the last byte of the header extensions.
    extensions_end: usize,
    /// Where the feature name table begins, if there is one.
    feature_names: Option<usize>,
    pub bitmaps: Option<BitmapDirectory>,
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(word)
}

impl Header {
    /// Reads and validates the header. Feature bits are not judged here.
    pub fn read(image: &dyn Image) -> Result<Header, Failure> {
        let file_size = image.size();
        if file_size < SECTOR as u64 {
            return Err(corrupt("not-qcow2", "the file is too short to be a qcow2 image"));
        }
        let mut sector = [0; SECTOR];
        sector.copy_from_slice(&image.read_at(0, SECTOR as u32)?);
        if &sector[..4] != b"QFI\xfb" {
            return Err(corrupt("not-qcow2", "the file does not begin like a qcow2 image"));
        }
        let version = be32(&sector, 4);
        if !matches!(version, 2 | 3) {
            return Err(unsupported(
                "version",
                format!("the image is of qcow2 version {version}; versions 2 and 3 are handled"),
            ));
        }
        let cluster_bits = be32(&sector, 20);
        if !(9..=21).contains(&cluster_bits) {
            let what = format!("the header's cluster_bits is {cluster_bits}, not 9 to 21");
            return Err(corrupt("cluster-bits", what));
        }
        let fields = Fields {
            size: be64(&sector, 24),
            l1_size: be32(&sector, 36),
            l1_table_offset: be64(&sector, 40),
            refcount_table_offset: be64(&sector, 48),
            refcount_table_clusters: be32(&sector, 56),
            nb_snapshots: be32(&sector, 60),
            snapshots_offset: be64(&sector, 64),
        };
        let v3 = version == 3;
        let header_length = if v3 { be32(&sector, 100) as usize } else { V2_LENGTH };
        let cluster = 1_usize << cluster_bits;
        if v3 && (header_length < V3_LENGTH || header_length > cluster || header_length % 8 != 0) {
            let what = format!("the header says it is {header_length} bytes long");
            return Err(corrupt("header-length", what));
        }
        let refcount_order = if v3 { be32(&sector, 96) } else { 4 };
        if refcount_order > 6 {
            let what = format!("the header's refcount_order is {refcount_order}, more than 6");
            return Err(corrupt("refcount-order", what));
        }
        let incompatible = if v3 { be64(&sector, 72) } else { 0 };
        let compression = if v3 && header_length > V3_LENGTH { sector[104] } else { 0 };
        if compression > 1 || (compression == 1 && incompatible & INCOMPATIBLE_COMPRESSION == 0) {
            let what =
                format!("the image's compression type is {compression}, which is unknown here");
            return Err(unsupported("compression", what));
        }
        let crypt_method = be32(&sector, 32);
        if crypt_method > 2 {
            let what =
                format!("the image's encryption is of kind {crypt_method}, which is unknown here");
            return Err(unsupported("encryption", what));
        }
        let mut header = Header {
            sector,
            version,
            cluster_bits,
            fields,
            crypt_method,
            backing_offset: be64(&sector, 8),
            backing_size: be32(&sector, 16),
            incompatible,
            autoclear: if v3 { be64(&sector, 88) } else { 0 },
            refcount_order,
            zstd: compression == 1,
            extensions_end: header_length,
            feature_names: None,
            bitmaps: None,
        };
        header.validate(file_size)?;
        header.read_extensions(image, header_length, file_size)?;
        Ok(header)
    }

    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    pub fn l2_entry_size(&self) -> u64 {
        if self.extended_l2() { 16 } else { 8 }
    }

    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    pub fn extended_l2(&self) -> bool {
        self.incompatible & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    pub fn has_backing(&self) -> bool {
        self.backing_offset != 0 && self.backing_size != 0
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(self.cluster_size()).div_ceil(self.l2_entries())
    }

    pub fn sealed(&self) -> bool {
        let places = [Some(STAMP_AT), self.feature_names.map(|at| at + STAMP_IN_NAMES)];
        self.incompatible & INCOMPATIBLE_DIRTY != 0
            && places
                .into_iter()
                .flatten()
                .any(|at| at + 8 <= SECTOR && be64(&self.sector, at) == STAMP)
    }

    fn validate(&self, file_size: u64) -> Result<(), Failure> {
        let f = &self.fields;
        let cluster = self.cluster_size();
        let inside = |offset: u64, bytes: u64| {
            offset.is_multiple_of(cluster)
                && offset.checked_add(bytes).is_some_and(|end| end <= file_size)
        };
        let l1_bytes = u64::from(f.l1_size) * 8;
        if l1_bytes > L1_BYTES_MAX {
            let what = format!("the L1 table has {} entries, more than 4,194,304", f.l1_size);
            return Err(corrupt("l1-size", what));
        }
        if self.l1_entries_for(f.size) > u64::from(f.l1_size) {
            let what = format!(
                "the L1 table has {} entries, too few for a disk of {} bytes",
                f.l1_size, f.size
            );
            return Err(corrupt("l1-size", what));
        }
        if l1_bytes > 0 && (f.l1_table_offset == 0 || !inside(f.l1_table_offset, l1_bytes)) {
            let what = format!("the L1 table is said to be at {}", f.l1_table_offset);
            return Err(corrupt("l1-offset", what));
        }
        let table_bytes = u64::from(f.refcount_table_clusters) << self.cluster_bits;
        if table_bytes == 0 || table_bytes > REFCOUNT_TABLE_BYTES_MAX.max(cluster) {
            let what = format!("the refcount table has {} clusters", f.refcount_table_clusters);
            return Err(corrupt("refcount-table", what));
        }
        if f.refcount_table_offset == 0 || !inside(f.refcount_table_offset, table_bytes) {
            let what = format!("the refcount table is said to be at {}", f.refcount_table_offset);
            return Err(corrupt("refcount-table", what));
        }
        if f.nb_snapshots > SNAPSHOTS_MAX {
            let what = format!("the header counts {} snapshots, more than 65,536", f.nb_snapshots);
            return Err(corrupt("snapshots", what));
        }
        if f.nb_snapshots > 0 && (f.snapshots_offset == 0 || !inside(f.snapshots_offset, 40)) {
            let what = format!("the snapshot table is said to be at {}", f.snapshots_offset);
            return Err(corrupt("snapshots", what));
        }
        let name_end = self.backing_offset.checked_add(u64::from(self.backing_size));
        if self.has_backing()
            && (self.backing_size > 1023 || name_end.is_none_or(|end| end > cluster))
        {
            return Err(corrupt(
                "backing-name",
                "the backing file's name is not in the first cluster",
            ));
        }
        Ok(())
    }

    fn read_extensions(
        &mut self,
        image: &dyn Image,
        start: usize,
        file_size: u64,
    ) -> Result<(), Failure> {
        let mut limit = self.cluster_size().min(file_size).min(EXTENSIONS_MAX);
        if self.has_backing() && self.backing_offset >= start as u64 {
            limit = limit.min(self.backing_offset);
        }
        let bytes = image.read_at(0, limit as u32)?;
        let mut at = start;
        // A header without any room for extensions has none, not even an end mark.
        while at + 8 <= bytes.len() {
            let (kind, length) = (be32(&bytes, at), be32(&bytes, at + 4) as usize);
            at += 8;
            if kind == 0 {
                break;
            }
            let Some(data) = at.checked_add(length).and_then(|end| bytes.get(at..end)) else {
                return Err(corrupt("extension", "a header extension reaches past its room"));
            };
            if kind == EXTENSION_FEATURE_NAMES && length >= 48 {
                self.feature_names = Some(at - 8);
            }
            if kind == EXTENSION_BITMAPS && length >= 24 {
                self.bitmaps = Some(BitmapDirectory {
                    count: be32(data, 0),
                    size: be64(data, 8),
                    offset: be64(data, 16),
                });
            }
            at = at.saturating_add(length.next_multiple_of(8)).min(bytes.len());
        }
        self.extensions_end = at;
        Ok(())
    }

    /// The first sector with these fields, the seal as it is.
    fn with_fields(&self, f: &Fields) -> [u8; SECTOR] {
        let mut s = self.sector;
        s[24..32].copy_from_slice(&f.size.to_be_bytes());
        s[36..40].copy_from_slice(&f.l1_size.to_be_bytes());
        s[40..48].copy_from_slice(&f.l1_table_offset.to_be_bytes());
        s[48..56].copy_from_slice(&f.refcount_table_offset.to_be_bytes());
        s[56..60].copy_from_slice(&f.refcount_table_clusters.to_be_bytes());
        s[60..64].copy_from_slice(&f.nb_snapshots.to_be_bytes());
        s[64..72].copy_from_slice(&f.snapshots_offset.to_be_bytes());
        if self.version == 3 {
            // As the format asks of software that does not know a bit there.
            let known = self.autoclear & AUTOCLEAR_KNOWN;
            s[88..96].copy_from_slice(&known.to_be_bytes());
        }
        s
    }

    /// The first sector with these fields, not sealed.
    pub fn plain_sector(&self, fields: &Fields) -> [u8; SECTOR] {
        self.with_fields(fields)
    }

    /// The first sector with these fields, sealed, and where in it the stamp is.
    pub fn sealed_sector(&self, fields: &Fields) -> Result<([u8; SECTOR], u64), Failure> {
        let mut s = self.with_fields(fields);
        let shift = if self.version == 2 { self.make_v3(&mut s)? } else { 0 };
        let incompatible = be64(&s, 72) | INCOMPATIBLE_DIRTY;
        s[72..80].copy_from_slice(&incompatible.to_be_bytes());
        let name_end = match be64(&s, 8) as usize {
            at @ 1..SECTOR if self.has_backing() => at + self.backing_size as usize,
            _ => 0,
        };
        let behind = (self.extensions_end + shift).max(name_end) <= STAMP_AT;
        let in_names = self.feature_names.map(|at| at + shift + STAMP_IN_NAMES);
        let at = [behind.then_some(STAMP_AT), in_names]
            .into_iter()
            .flatten()
            .find(|at| at + 8 <= SECTOR && be64(&s, *at) == 0 && s[at - 1] == 0);
        let Some(at) = at else {
            return Err(unsupported(
                "header-full",
                "the first 512 bytes of the image have no room for the mark of a change under \
                 way; `qemu-img convert` makes an image that has",
            ));
        };
        s[at..at + 8].copy_from_slice(&STAMP.to_be_bytes());
        Ok((s, at as u64))
    }

    /// Makes it a v3 header; says by how much the extensions moved.
    fn make_v3(&self, s: &mut [u8; SECTOR]) -> Result<usize, Failure> {
        let no_room = || {
            unsupported(
                "v2-header-full",
                "this version 2 image has no room in its header to be changed atomically; \
                 `qemu-img amend -o compat=1.1` makes it version 3",
            )
        };
        // Extensions, then the backing name if it is in the way.
        let extensions = &self.sector[V2_LENGTH..self.extensions_end.min(SECTOR)];
        let moved_end = V3_LENGTH + extensions.len();
        if self.extensions_end > SECTOR || moved_end > SECTOR {
            return Err(no_room());
        }
        s[V2_LENGTH..].fill(0);
        s[V3_LENGTH..moved_end].copy_from_slice(extensions);
        s[4..8].copy_from_slice(&3_u32.to_be_bytes());
        s[96..100].copy_from_slice(&4_u32.to_be_bytes());
        s[100..104].copy_from_slice(&(V3_LENGTH as u32).to_be_bytes());
        if self.has_backing() {
            let (from, length) = (self.backing_offset as usize, self.backing_size as usize);
            if from >= SECTOR {
                return Ok(V3_LENGTH - V2_LENGTH); // stays where it is
            }
            let Some(name) = self.sector.get(from..from + length) else { return Err(no_room()) };
            let to = if from >= moved_end { from } else { moved_end };
            let Some(room) = s.get_mut(to..to + length) else { return Err(no_room()) };
            room.copy_from_slice(name);
            s[8..16].copy_from_slice(&(to as u64).to_be_bytes());
        }
        Ok(V3_LENGTH - V2_LENGTH)
    }
}
