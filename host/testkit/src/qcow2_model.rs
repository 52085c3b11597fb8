//! A small reader and judge of qcow2 images, from the format's specification.
//!
//! It shares no code with the planner it judges and takes nothing for granted: every offset is
//! looked up with a bound, so that an image torn by a crash is told as it is and never panics.
//! Slow and plain on purpose: tables are walked anew for every question.
//!
//! Not here: external data files, encrypted content (read as stored), zstd (compressed content
//! is then the stored bytes).

mod content;
mod judge;

pub use content::{Picture, SnapshotPicture};
pub use judge::{Flaw, Verdict};

/// Bits 9 to 55: the host offset in entries of L1 and of L2 for standard clusters.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const BITMAPS: u32 = 0x2385_2875;
const ENCRYPTION: u32 = 0x0537_be77;

/// The header's fields, as the specification names them; `refcount_order` and `header_length`
/// are those assumed for version 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Offset of the backing file's name; 0 for none.
    pub backing_file_offset: u64,
    /// Length of the backing file's name in bytes.
    pub backing_file_size: u32,
    /// Cluster size as a power of two.
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// Kind of encryption; 0 for none.
    pub crypt_method: u32,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Offset of the active L1 table.
    pub l1_table_offset: u64,
    /// Offset of the refcount table.
    pub refcount_table_offset: u64,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Number of snapshots.
    pub nb_snapshots: u32,
    /// Offset of the snapshot table.
    pub snapshots_offset: u64,
    /// Features that must be understood.
    pub incompatible_features: u64,
    /// Features that may be ignored.
    pub compatible_features: u64,
    /// Features that are cleared by software that writes without knowing them.
    pub autoclear_features: u64,
    /// Refcount width as a power of two, in bits.
    pub refcount_order: u32,
    /// Bytes of the header.
    pub header_length: u32,
    /// Extensions: type, offset of the data, length.
    pub extensions: Vec<(u32, u64, u32)>,
}

impl Header {
    /// Incompatible bit 0: refcounts may be wrong.
    pub fn dirty(&self) -> bool {
        self.incompatible_features & 1 != 0
    }

    /// Incompatible bit 4: entries of 16 bytes, with subclusters.
    pub fn extended_l2(&self) -> bool {
        self.incompatible_features & 1 << 4 != 0
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of an L2 entry.
    pub fn l2_entry_size(&self) -> u64 {
        if self.extended_l2() { 16 } else { 8 }
    }

    /// Guest bytes that one L2 table describes.
    pub fn l2_reach(&self) -> u64 {
        self.cluster_size() / self.l2_entry_size() * self.cluster_size()
    }
}

/// An entry of the snapshot table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Offset of its L1 table.
    pub l1_table_offset: u64,
    /// Entries of its L1 table.
    pub l1_size: u32,
    /// Unique ID string.
    pub id: String,
    /// Name.
    pub name: String,
    /// Time taken: seconds and nanoseconds.
    pub taken: (u32, u32),
    /// Time the guest had been running, in nanoseconds.
    pub guest_clock: u64,
    /// Bytes of VM state.
    pub vm_state_size: u64,
    /// Virtual size; none where the entry does not say.
    pub disk_size: Option<u64>,
    /// Extra data as stored.
    pub extra: Vec<u8>,
}

/// An image.
#[derive(Debug)]
pub struct Qcow2<'a> {
    bytes: &'a [u8],
    header: Header,
    snapshots: Vec<Snapshot>,
    snapshot_table_length: u64,
}

impl<'a> Qcow2<'a> {
    /// Reads header and snapshot table. The error says what makes the image unreadable.
    pub fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let header = read_header(bytes)?;
        let (snapshots, snapshot_table_length) = read_snapshots(bytes, &header)?;
        Ok(Qcow2 { bytes, header, snapshots, snapshot_table_length })
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The snapshots, in the order of the table.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    /// The refcount of a cluster; 0 outside what the refcount table covers.
    pub fn refcount(&self, cluster: u64) -> u64 {
        let order = self.header.refcount_order;
        let entries = (self.header.cluster_size() * 8) >> order;
        let table_entries =
            u64::from(self.header.refcount_table_clusters) * self.header.cluster_size() / 8;
        let index = cluster / entries;
        if index >= table_entries {
            return 0;
        }
        let block = word64(self.bytes, self.header.refcount_table_offset.saturating_add(index * 8));
        let block = block.unwrap_or(0) & !0x1ff;
        if block == 0 {
            return 0;
        }
        let bit = (cluster % entries) << order;
        let at = block + bit / 8;
        let byte = |i: u64| {
            let at = usize::try_from(at + i).ok();
            at.and_then(|at| self.bytes.get(at)).copied().map_or(0, u64::from)
        };
        match order {
            // Below a byte, bit 0 is the least significant one.
            0..3 => byte(0) >> (bit % 8) & ((1 << (1 << order)) - 1),
            _ => (0..1 << order >> 3).fold(0, |value, i| value << 8 | byte(i)),
        }
    }

    fn slice(&self, offset: u64, length: u64) -> Option<&'a [u8]> {
        slice(self.bytes, offset, length)
    }

    /// Entries of an L1 table; those that lie outside the file are missing.
    fn l1(&self, offset: u64, entries: u32) -> impl Iterator<Item = u64> {
        let available = (self.bytes.len() as u64).saturating_sub(offset) / 8;
        let entries = u64::from(entries).min(available);
        words(self.slice(offset, entries * 8).unwrap_or(&[]))
    }

    /// A cluster of the file, cut short at the end of the file; none if it begins past it.
    fn cluster(&self, offset: u64) -> Option<&'a [u8]> {
        let left = (self.bytes.len() as u64).checked_sub(offset).filter(|left| *left > 0)?;
        self.slice(offset, left.min(self.header.cluster_size()))
    }

    /// Where a compressed cluster's bytes lie: offset and bytes to the end of its last sector.
    fn compressed_span(&self, entry: u64) -> (u64, u64) {
        let x = 62 - (self.header.cluster_bits - 8);
        let offset = entry & ((1 << x) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> x;
        (offset, (sectors + 1) * 512 - offset % 512)
    }
}

fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    bytes.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

fn word64(bytes: &[u8], offset: u64) -> Option<u64> {
    Some(u64::from_be_bytes(slice(bytes, offset, 8)?.try_into().ok()?))
}

fn word32(bytes: &[u8], offset: u64) -> Option<u32> {
    Some(u32::from_be_bytes(slice(bytes, offset, 4)?.try_into().ok()?))
}

fn word16(bytes: &[u8], offset: u64) -> Option<u16> {
    Some(u16::from_be_bytes(slice(bytes, offset, 2)?.try_into().ok()?))
}

fn words(table: &[u8]) -> impl Iterator<Item = u64> {
    table.as_chunks::<8>().0.iter().map(|w| u64::from_be_bytes(*w))
}

fn read_header(bytes: &[u8]) -> Result<Header, String> {
    let short = || "the header is cut short".to_owned();
    let u32_at = |at| word32(bytes, at).ok_or_else(short);
    let u64_at = |at| word64(bytes, at).ok_or_else(short);
    if u32_at(0)? != 0x5146_49fb {
        return Err("no qcow2 magic".to_owned());
    }
    let version = u32_at(4)?;
    if !matches!(version, 2 | 3) {
        return Err(format!("version {version}"));
    }
    let v3 = version == 3;
    let mut header = Header {
        version,
        backing_file_offset: u64_at(8)?,
        backing_file_size: u32_at(16)?,
        cluster_bits: u32_at(20)?,
        size: u64_at(24)?,
        crypt_method: u32_at(32)?,
        l1_size: u32_at(36)?,
        l1_table_offset: u64_at(40)?,
        refcount_table_offset: u64_at(48)?,
        refcount_table_clusters: u32_at(56)?,
        nb_snapshots: u32_at(60)?,
        snapshots_offset: u64_at(64)?,
        incompatible_features: if v3 { u64_at(72)? } else { 0 },
        compatible_features: if v3 { u64_at(80)? } else { 0 },
        autoclear_features: if v3 { u64_at(88)? } else { 0 },
        refcount_order: if v3 { u32_at(96)? } else { 4 },
        header_length: if v3 { u32_at(100)? } else { 72 },
        extensions: Vec::new(),
    };
    if !(9..=21).contains(&header.cluster_bits) || header.refcount_order > 6 {
        let Header { cluster_bits, refcount_order, .. } = header;
        return Err(format!("cluster bits {cluster_bits}, refcount order {refcount_order}"));
    }
    if v3 && (header.header_length < 104 || !header.header_length.is_multiple_of(8)) {
        return Err(format!("header length {}", header.header_length));
    }
    let first = header.cluster_size();
    // A name without a letter is none, wherever it is said to lie: QEMU takes it so.
    let unnamed = header.backing_file_offset == 0 || header.backing_file_size == 0;
    let end = if unnamed { first } else { header.backing_file_offset };
    if end > first || u64::from(header.header_length) > end {
        return Err(format!("header and backing name outside the first cluster: {end}"));
    }
    let mut at = u64::from(header.header_length);
    while at + 8 <= end {
        let (kind, length) = (u32_at(at)?, u32_at(at + 4)?);
        if kind == 0 {
            break;
        }
        if at + 8 + u64::from(length) > end {
            return Err(format!("header extension {kind:#x} at {at} is {length} bytes long"));
        }
        header.extensions.push((kind, at + 8, length));
        at += 8 + u64::from(length).next_multiple_of(8);
    }
    Ok(header)
}

/// The snapshots and the length of their table in bytes.
fn read_snapshots(bytes: &[u8], header: &Header) -> Result<(Vec<Snapshot>, u64), String> {
    let mut found = Vec::new();
    let mut at = header.snapshots_offset;
    if header.nb_snapshots > 65_536 {
        return Err(format!("{} snapshots", header.nb_snapshots));
    }
    for number in 0..header.nb_snapshots {
        let read = |at: u64| -> Option<(Snapshot, u64)> {
            let (id_size, name_size) = (word16(bytes, at + 12)?, word16(bytes, at + 14)?);
            let extra_size = word32(bytes, at + 36)?;
            let extra = slice(bytes, at + 40, u64::from(extra_size))?.to_vec();
            let id_at = at + 40 + u64::from(extra_size);
            let name_at = id_at + u64::from(id_size);
            let text = |at, size: u16| {
                let raw = slice(bytes, at, u64::from(size))?;
                Some(String::from_utf8_lossy(raw).into_owned())
            };
            let snapshot = Snapshot {
                l1_table_offset: word64(bytes, at)?,
                l1_size: word32(bytes, at + 8)?,
                id: text(id_at, id_size)?,
                name: text(name_at, name_size)?,
                taken: (word32(bytes, at + 16)?, word32(bytes, at + 20)?),
                guest_clock: word64(bytes, at + 24)?,
                vm_state_size: word64(&extra, 0).or(word32(bytes, at + 32).map(u64::from))?,
                disk_size: word64(&extra, 8),
                extra,
            };
            Some((snapshot, (name_at + u64::from(name_size)).next_multiple_of(8)))
        };
        let (snapshot, next) = at
            .checked_add(1 << 32)
            .and_then(|_| read(at))
            .ok_or_else(|| format!("snapshot {number} at {at} is cut short"))?;
        if header.version == 3 && snapshot.extra.len() < 16 {
            return Err(format!(
                "snapshot {number} has {} bytes of extra data",
                snapshot.extra.len()
            ));
        }
        found.push(snapshot);
        at = next;
    }
    Ok((found, at - header.snapshots_offset))
}
