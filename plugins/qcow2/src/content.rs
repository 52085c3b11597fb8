//! Where content is, and how far it has moved away from a snapshot.

use snapslot_plugin_sdk::stretches::Stretches;
use snapslot_plugin_sdk::{
    Change, Compression, Content, Extent, ExtentPage, Failure, FailureKind, Packed, StretchPage,
    View,
};

use crate::refcounts::{Counts, windows};
use crate::restore::{differing, for_each_parting, part};
use crate::tables::{COMPRESSED, READS_ZERO, Refers, packed_bytes, refers, run_length};
use crate::volume::{OFFSET_MASK, Volume};

/// The contract's limit for a page.
const PAGE_MAX: u32 = 10_000;
const SUBCLUSTERS: u64 = 32;

pub(crate) fn extents(
    volume: &Volume<'_>,
    view: &View,
    cursor: u64,
    max: u32,
) -> Result<ExtentPage, Failure> {
    let fields = &volume.header.fields;
    let (l1, size) = match view {
        View::Current => (volume.active_l1()?, fields.size),
        View::Snapshot(identity) => {
            let (_, s) = volume.snapshots.find(identity)?;
            (volume.read_l1(s.l1_table_offset, s.l1_size)?, s.disk_size.unwrap_or(fields.size))
        }
    };
    if cursor > size || !(1..=PAGE_MAX).contains(&max) {
        return Err(Failure::new(FailureKind::Invalid, "cursor", "the cursor is past the end"));
    }
    let mut page = Page { extents: Vec::new(), max: max as usize, at: cursor, size };
    let cluster = volume.cluster_size();
    let span = cluster.saturating_mul(volume.header.l2_entries());
    let stride = volume.header.l2_entry_size() as usize;
    let nothing = if volume.header.has_backing() { Content::Backing } else { Content::Zero };
    volume.refuse_overlaid(&l1)?;
    while page.at < size {
        let index = page.at / span;
        // Behind the table's end there is nothing, however large the disk claims to be.
        let Some(entry) = usize::try_from(index).ok().and_then(|i| l1.get(i)) else {
            if !page.push(size, nothing) {
                break;
            }
            continue;
        };
        let table_end = (index + 1).saturating_mul(span);
        let offset = entry & OFFSET_MASK;
        if offset == 0 {
            if !page.push(table_end, nothing) {
                break;
            }
            continue;
        }
        let table = volume.read(offset, cluster)?;
        let mut full = false;
        while page.at < size.min(table_end) && !full {
            let i = (page.at - index * span) / cluster;
            let start = index * span + i * cluster;
            let at = i as usize * stride;
            let entry = Volume::word(&table, at);
            if stride == 8 && entry & (COMPRESSED | READS_ZERO) == 0 && entry & OFFSET_MASK != 0 {
                // Neighbouring clusters in one go.
                refers(volume, entry)?;
                let words = table[at + 8..].as_chunks::<8>().0;
                let more = run_length(words, entry, cluster) as u64;
                refers(volume, entry + more * cluster)?;
                let host = (entry & OFFSET_MASK) + (page.at - start);
                full = !page.push(start + (more + 1) * cluster, Content::Data(host));
                continue;
            }
            let bitmap = (stride == 16).then(|| Volume::word(&table, at + 8));
            full = !push_entry(volume, &mut page, start, entry, bitmap, nothing)?;
        }
        if full {
            break;
        }
    }
    let next = (page.at < size).then_some(page.at);
    Ok(ExtentPage { extents: page.extents, next })
}

struct Page {
    extents: Vec<Extent>,
    max: usize,
    /// Guest offset up to which all is listed.
    at: u64,
    size: u64,
}

impl Page {
    /// Lists content from where the page is up to `end`, joined to the last extent where that
    /// goes on. `Data` and `Compressed` are of the byte at which the page is. False: full.
    fn push(&mut self, end: u64, content: Content) -> bool {
        let end = end.min(self.size);
        let length = end - self.at;
        if let Some(last) = self.extents.last_mut() {
            let goes_on = match (&last.content, &content) {
                (Content::Zero, Content::Zero) | (Content::Backing, Content::Backing) => true,
                (Content::Data(a), Content::Data(b)) => a + last.length == *b,
                _ => false,
            };
            if goes_on {
                last.length += length;
                self.at = end;
                return true;
            }
        }
        if self.extents.len() == self.max {
            return false;
        }
        self.extents.push(Extent { start: self.at, length, content });
        self.at = end;
        true
    }
}

fn push_entry(
    volume: &Volume<'_>,
    page: &mut Page,
    start: u64,
    entry: u64,
    bitmap: Option<u64>,
    nothing: Content,
) -> Result<bool, Failure> {
    let cluster = volume.cluster_size();
    let end = start.saturating_add(cluster);
    if let Refers::Packed(..) = refers(volume, entry)? {
        let (offset, length) = packed_bytes(volume, entry);
        let method = if volume.header.zstd { Compression::Zstd } else { Compression::Deflate };
        // The whole cluster unpacks at once: a page never begins inside one.
        page.at = start;
        return Ok(page.push(end, Content::Compressed(Packed { offset, length, method })));
    }
    let host = entry & OFFSET_MASK;
    let Some(bitmap) = bitmap else {
        let content = match (entry & READS_ZERO != 0, host) {
            (true, _) => Content::Zero,
            (false, 0) => nothing,
            (false, host) => Content::Data(host + (page.at - start)),
        };
        return Ok(page.push(end, content));
    };
    let sub = cluster / SUBCLUSTERS;
    while page.at < end.min(page.size) {
        let k = (page.at - start) / sub;
        let content = if bitmap >> (SUBCLUSTERS + k) & 1 == 1 {
            Content::Zero
        } else if bitmap >> k & 1 == 1 {
            Content::Data(host + (page.at - start))
        } else {
            nothing
        };
        if !page.push(start + (k + 1) * sub, content) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Tables compared before it is asked whether the page is full.
const AT_ONCE: usize = 64;

/// Lists guest runs whose entries differ; reads only tables that are not shared.
pub(crate) fn differences(
    volume: &Volume<'_>,
    identity: &str,
    cursor: u64,
    max: u32,
) -> Result<StretchPage, Failure> {
    let found = Stretches::new(cursor, max)?;
    let (_, snapshot) = volume.snapshots.find(identity)?;
    let now = volume.header.fields.size;
    let then = snapshot.disk_size.unwrap_or(now);
    let (short, long) = (now.min(then), now.max(then));
    let mut found = found.up_to(long);
    let active = volume.active_l1()?;
    let kept = volume.read_l1(snapshot.l1_table_offset, snapshot.l1_size)?;
    let cluster = volume.cluster_size();
    let entries = volume.header.l2_entries();
    let span = cluster.saturating_mul(entries);
    let mut partings = part(&active, &kept);
    partings.retain(|(i, ..)| (*i as u64 + 1).saturating_mul(span) > cursor);
    let stride = volume.header.l2_entry_size() as usize;
    for some in partings.chunks(AT_ONCE) {
        if found.is_full() {
            break;
        }
        for_each_parting(volume, some, |(index, ..), of_active, of_kept| {
            differing(stride, of_active, of_kept, |at, _, _| {
                let start =
                    (*index as u64).saturating_mul(span).saturating_add(at as u64 * cluster);
                if start < short {
                    found.add(start, start.saturating_add(cluster));
                }
                Ok(())
            })
        })?;
    }
    found.add(short, long);
    Ok(found.into_page())
}

/// Bytes of tables compared when it is to be quick: two milliseconds, and at clusters of 64 KiB what
/// 32 GiB of disk need.
const QUICK_MAX: u64 = 8 << 20;

/// Compares the tables; reads no content.
pub(crate) fn measure(volume: &Volume<'_>, identity: &str, quick: bool) -> Result<Change, Failure> {
    let (_, snapshot) = volume.snapshots.find(identity)?;
    let size = volume.header.fields.size;
    let then = snapshot.disk_size.unwrap_or(size);
    let active = volume.active_l1()?;
    let kept = volume.read_l1(snapshot.l1_table_offset, snapshot.l1_size)?;
    let mut partings = part(&active, &kept);
    let cluster = volume.cluster_size();
    let most = if quick { (QUICK_MAX / (2 * cluster)).max(1) as usize } else { usize::MAX };
    let at_least = partings.len() > most;
    partings.truncate(most);
    let stride = volume.header.l2_entry_size() as usize;
    let reach = size.max(then).div_ceil(cluster);
    let entries = volume.header.l2_entries();
    let mut changed = 0;
    let mut held = u64::from(snapshot.l1_size) * 8;
    held = volume.clusters_for(held);
    for (i, window) in windows(volume, volume.clusters()).into_iter().enumerate() {
        let mut counts = Counts::new(volume, window);
        for_each_parting(volume, &partings, |(index, _, kept_at), of_active, of_kept| {
            let mut only_kept = |c: u64| -> Result<u64, Failure> {
                Ok(u64::from(counts.covers(c) && counts.get(c)? == 1))
            };
            if *kept_at != 0 {
                held += only_kept(kept_at >> volume.header.cluster_bits)?;
            }
            differing(stride, of_active, of_kept, |at, a, k| {
                if i == 0 && (*index as u64) * entries + (at as u64) < reach {
                    changed += 1;
                }
                if k & COMPRESSED != 0 || (a ^ k) & OFFSET_MASK != 0 {
                    match refers(volume, k)? {
                        Refers::Nothing => {}
                        Refers::Cluster(c) => held += only_kept(c)?,
                        Refers::Packed(first, last) => {
                            for c in first..=last {
                                held += only_kept(c)?;
                            }
                        }
                    }
                }
                Ok(())
            })
        })?;
    }
    let changed = (changed * cluster).min(size.max(then)).max(size.abs_diff(then));
    Ok(Change { changed_bytes: changed, held_bytes: held * cluster, at_least })
}
