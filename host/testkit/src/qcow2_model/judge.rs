//! Whether an image contradicts itself.

use std::fmt;

use super::{
    BITMAPS, COMPRESSED, COPIED, ENCRYPTION, OFFSET, Qcow2, ZERO, word16, word32, word64, words,
};

/// One contradiction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// A cluster is used more often than its refcount says: a later write would destroy data.
    Low {
        /// The cluster's number.
        cluster: u64,
        /// Its refcount.
        refcount: u64,
        /// How often it is referred to.
        references: u64,
    },
    /// A cluster's refcount is higher than its use: space is lost.
    Leak {
        /// The cluster's number.
        cluster: u64,
        /// Its refcount.
        refcount: u64,
        /// How often it is referred to.
        references: u64,
    },
    /// Bit 63 of an entry of the active tree does not match the refcount.
    Copied {
        /// Where the entry is in the file.
        at: u64,
        /// The entry.
        entry: u64,
        /// The refcount of what it refers to.
        refcount: u64,
    },
    /// Something refers to bytes outside the file.
    Outside {
        /// What does.
        what: String,
        /// First byte referred to.
        offset: u64,
    },
    /// A field or entry makes no sense.
    Senseless(String),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Flaw::Low { cluster, refcount, references } => {
                write!(
                    f,
                    "cluster {cluster}: refcount {refcount}, lower than {references} references"
                )
            }
            Flaw::Leak { cluster, refcount, references } => {
                write!(
                    f,
                    "cluster {cluster}: refcount {refcount}, higher than {references} references"
                )
            }
            Flaw::Copied { at, entry, refcount } => {
                write!(f, "entry {entry:#018x} at {at:#x} does not match refcount {refcount}")
            }
            Flaw::Outside { what, offset } => {
                write!(f, "{what} refers to {offset:#x}, outside the file")
            }
            Flaw::Senseless(what) => f.write_str(what),
        }
    }
}

/// What the judge found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What may cost data: low refcounts, references outside the file, senseless fields.
    pub errors: Vec<Flaw>,
    /// Entries of the active tree whose bit 63 is wrong.
    pub copied: Vec<Flaw>,
    /// Lost space.
    pub leaks: Vec<Flaw>,
}

impl Verdict {
    /// Whether nothing at all was found.
    pub fn clean(&self) -> bool {
        self.errors.is_empty() && self.copied.is_empty() && self.leaks.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, flaws) in
            [("error", &self.errors), ("copied bit", &self.copied), ("leak", &self.leaks)]
        {
            for flaw in flaws.iter().take(4) {
                write!(f, "\n  {kind}: {flaw}")?;
            }
            if flaws.len() > 4 {
                write!(f, "\n  and {} more of this kind", flaws.len() - 4)?;
            }
        }
        Ok(())
    }
}

struct Counting<'a, 'b> {
    image: &'b Qcow2<'a>,
    references: Vec<u64>,
    errors: Vec<Flaw>,
}

impl Qcow2<'_> {
    /// Counts every reference and compares with the refcounts and the copied bits.
    pub fn judge(&self) -> Verdict {
        let h = &self.header;
        let clusters = (self.bytes.len() as u64).div_ceil(h.cluster_size());
        let mut c =
            Counting { image: self, references: vec![0; clusters as usize], errors: Vec::new() };
        c.fields();
        c.count("the header", 0, h.cluster_size());
        c.refcount_structures();
        c.tree("the active L1 table", h.l1_table_offset, h.l1_size);
        for s in &self.snapshots {
            let what = format!("the L1 table of snapshot {} ({})", s.id, s.name);
            c.tree(&what, s.l1_table_offset, s.l1_size);
        }
        if !self.snapshots.is_empty() {
            c.aligned("the snapshot table", h.snapshots_offset);
            c.count("the snapshot table", h.snapshots_offset, self.snapshot_table_length);
        }
        c.extensions();
        let mut verdict = Verdict { errors: c.errors, ..Verdict::default() };
        self.compare(&c.references, &mut verdict);
        self.copied_bits(&mut verdict);
        verdict
    }

    fn compare(&self, references: &[u64], verdict: &mut Verdict) {
        let h = &self.header;
        let entries = (h.cluster_size() * 8) >> h.refcount_order;
        let length = u64::from(h.refcount_table_clusters) * h.cluster_size();
        let blocks = self.slice(h.refcount_table_offset, length).map_or(0, |t| t.len() as u64 / 8);
        let known = references.len() as u64;
        for block in 0..blocks.max(known.div_ceil(entries)) {
            let at = h.refcount_table_offset.saturating_add(block * 8);
            // Without a block all its refcounts are 0, which matters only within the file.
            let there = block < blocks && word64(self.bytes, at).is_some_and(|e| e != 0);
            let first = block * entries;
            let end = if there { first + entries } else { (first + entries).min(known) };
            for cluster in first..end {
                let refcount = self.refcount(cluster);
                let references = references.get(cluster as usize).copied().unwrap_or(0);
                if refcount < references {
                    verdict.errors.push(Flaw::Low { cluster, refcount, references });
                } else if refcount > references {
                    verdict.leaks.push(Flaw::Leak { cluster, refcount, references });
                }
            }
        }
    }

    fn copied_bits(&self, verdict: &mut Verdict) {
        let h = &self.header;
        let step = h.l2_entry_size();
        let mut check = |at: u64, entry: u64, offset: u64| {
            let refcount = self.refcount(offset >> h.cluster_bits);
            if (entry & COPIED != 0) != (refcount == 1) {
                verdict.copied.push(Flaw::Copied { at, entry, refcount });
            }
        };
        for (i, l1) in self.l1(h.l1_table_offset, h.l1_size).enumerate() {
            let table = l1 & OFFSET;
            if table == 0 {
                continue;
            }
            check(h.l1_table_offset + i as u64 * 8, l1, table);
            let Some(cluster) = self.cluster(table) else { continue };
            for (j, entry) in words(cluster).step_by(step as usize / 8).enumerate() {
                let at = table + j as u64 * step;
                if entry & COMPRESSED == 0 && entry & OFFSET != 0 {
                    check(at, entry, entry & OFFSET);
                }
            }
        }
    }
}

impl Counting<'_, '_> {
    fn fields(&mut self) {
        let h = &self.image.header;
        let need = h.size.div_ceil(h.l2_reach());
        if u64::from(h.l1_size) < need {
            self.senseless(format!("the active L1 table has {} entries of {need}", h.l1_size));
        }
        for s in &self.image.snapshots {
            let size = s.disk_size.unwrap_or(h.size);
            let need = (size.div_ceil(h.l2_reach()).saturating_mul(h.l2_reach()))
                .saturating_add(s.vm_state_size)
                .div_ceil(h.l2_reach());
            // Without VM state only the disk must be covered.
            let need = if s.vm_state_size == 0 { size.div_ceil(h.l2_reach()) } else { need };
            if u64::from(s.l1_size) < need {
                self.senseless(format!(
                    "the L1 table of {} has {} entries of {need}",
                    s.id, s.l1_size
                ));
            }
        }
        let ids: std::collections::BTreeSet<_> =
            self.image.snapshots.iter().map(|s| s.id.as_str()).collect();
        if ids.len() != self.image.snapshots.len() {
            self.senseless("two snapshots have the same ID".to_owned());
        }
    }

    fn senseless(&mut self, what: String) {
        self.errors.push(Flaw::Senseless(what));
    }

    fn aligned(&mut self, what: &str, offset: u64) {
        if !offset.is_multiple_of(self.image.header.cluster_size()) {
            self.senseless(format!("{what} at {offset:#x} is not aligned to a cluster"));
        }
    }

    /// Counts a reference to each cluster of the run.
    fn count(&mut self, what: &str, offset: u64, length: u64) {
        let bits = self.image.header.cluster_bits;
        if length == 0 {
            return;
        }
        let Some(end) = offset.checked_add(length) else {
            self.errors.push(Flaw::Outside { what: what.to_owned(), offset });
            return;
        };
        for cluster in offset >> bits..end.div_ceil(1 << bits) {
            let index = usize::try_from(cluster).ok();
            let Some(slot) = index.and_then(|i| self.references.get_mut(i)) else {
                let offset = cluster << bits;
                self.errors.push(Flaw::Outside { what: what.to_owned(), offset });
                return;
            };
            *slot += 1;
        }
    }

    fn refcount_structures(&mut self) {
        let image = self.image;
        let h = &image.header;
        let length = u64::from(h.refcount_table_clusters) * h.cluster_size();
        self.aligned("the refcount table", h.refcount_table_offset);
        self.count("the refcount table", h.refcount_table_offset, length);
        let Some(table) = image.slice(h.refcount_table_offset, length) else {
            self.senseless("the refcount table reaches past the end of the file".to_owned());
            return;
        };
        for (i, entry) in words(table).enumerate() {
            if entry & 0x1ff != 0 {
                self.senseless(format!("refcount table entry {i} has reserved bits: {entry:#x}"));
            }
            if entry & !0x1ff != 0 {
                self.aligned("a refcount block", entry & !0x1ff);
                self.count(&format!("refcount table entry {i}"), entry & !0x1ff, h.cluster_size());
            }
        }
    }

    fn tree(&mut self, what: &str, offset: u64, entries: u32) {
        let image = self.image;
        let h = &image.header;
        let length = u64::from(entries) * 8;
        self.aligned(what, offset);
        self.count(what, offset, length);
        if entries != 0 && image.slice(offset, length).is_none() {
            self.senseless(format!("{what} reaches past the end of the file"));
        }
        for (i, l1) in image.l1(offset, entries).enumerate() {
            if l1 & !OFFSET & !COPIED != 0 {
                self.senseless(format!("entry {i} of {what} has reserved bits: {l1:#x}"));
            }
            let table = l1 & OFFSET;
            if table == 0 {
                if l1 & COPIED != 0 {
                    self.senseless(format!("entry {i} of {what} is copied yet unallocated"));
                }
                continue;
            }
            let what = format!("entry {i} of {what}");
            self.aligned(&what, table);
            self.count(&what, table, h.cluster_size());
            let Some(cluster) = image.cluster(table) else { continue };
            if cluster.len() as u64 != h.cluster_size() {
                self.senseless(format!("the table of {what} is cut short by the end of the file"));
            }
            let wide = h.extended_l2();
            let mut entries = words(cluster);
            let mut j = 0;
            while let Some(entry) = entries.next() {
                let bitmap = if wide { entries.next().unwrap_or(0) } else { 0 };
                self.l2_entry(&what, j, entry, bitmap);
                j += 1;
            }
        }
    }

    fn l2_entry(&mut self, table: &str, j: u64, entry: u64, bitmap: u64) {
        if entry == 0 && bitmap == 0 {
            return;
        }
        let h = &self.image.header;
        let what = || format!("L2 entry {j} of {table}");
        if entry & COMPRESSED != 0 {
            if entry & COPIED != 0 || bitmap != 0 {
                self.senseless(format!("{} is compressed and has other marks: {entry:#x}", what()));
            }
            let (offset, length) = self.image.compressed_span(entry);
            // The last sector may lie past the end of a file that ends in the middle of it.
            let end = (self.image.bytes.len() as u64).next_multiple_of(h.cluster_size());
            let length = length.min(end.saturating_sub(offset)).max(1);
            self.count(&what(), offset, length);
            return;
        }
        let zero_allowed = if h.version == 3 && !h.extended_l2() { ZERO } else { 0 };
        let offset = entry & OFFSET;
        if entry & !(OFFSET | COPIED | zero_allowed) != 0 {
            self.senseless(format!("{} has reserved bits: {entry:#x}", what()));
        }
        if offset == 0 && (entry & COPIED != 0 || bitmap & 0xffff_ffff != 0) {
            self.senseless(format!(
                "{} is used yet has no cluster: {entry:#x} {bitmap:#x}",
                what()
            ));
        }
        if bitmap & bitmap >> 32 & 0xffff_ffff != 0 {
            self.senseless(format!("{} has subclusters of both kinds: {bitmap:#x}", what()));
        }
        if offset != 0 {
            if !offset.is_multiple_of(h.cluster_size()) {
                self.senseless(format!("{} is not aligned: {entry:#x}", what()));
            }
            self.count(&what(), offset, h.cluster_size());
        }
    }

    fn extensions(&mut self) {
        let image = self.image;
        let bytes = image.bytes;
        for (kind, at, length) in &image.header.extensions {
            match *kind {
                BITMAPS if image.header.autoclear_features & 1 != 0 => {
                    let directory = word64(bytes, at + 16).unwrap_or(0);
                    let size = word64(bytes, at + 8).unwrap_or(0);
                    let number = word32(bytes, *at).unwrap_or(0);
                    if *length < 24 {
                        self.senseless("the bitmaps extension is cut short".to_owned());
                    }
                    self.aligned("the bitmap directory", directory);
                    self.count("the bitmap directory", directory, size);
                    self.bitmaps(directory, number);
                }
                ENCRYPTION => {
                    let offset = word64(bytes, *at).unwrap_or(0);
                    let size = word64(bytes, at + 8).unwrap_or(0);
                    self.aligned("the encryption header", offset);
                    self.count("the encryption header", offset, size);
                }
                _ => {}
            }
        }
    }

    fn bitmaps(&mut self, directory: u64, number: u32) {
        let image = self.image;
        let cluster_size = image.header.cluster_size();
        let mut at = directory;
        for i in 0..number {
            let fields = (|| {
                let table = word64(image.bytes, at)?;
                let entries = word32(image.bytes, at.checked_add(8)?)?;
                let name = u64::from(word16(image.bytes, at + 18)?);
                let extra = u64::from(word32(image.bytes, at + 20)?);
                Some((table, entries, (24 + name + extra).next_multiple_of(8)))
            })();
            let Some((table, entries, length)) = fields else {
                self.senseless(format!("entry {i} of the bitmap directory is cut short"));
                return;
            };
            self.aligned("a bitmap table", table);
            self.count("a bitmap table", table, u64::from(entries) * 8);
            for entry in image.l1(table, entries) {
                if entry & OFFSET != 0 {
                    self.count("a bitmap table's entry", entry & OFFSET, cluster_size);
                }
            }
            at += length;
        }
    }
}
