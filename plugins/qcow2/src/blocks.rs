//! Refcount blocks as they are on disk.
//!
//! A plan looks at a block up to three times: for free clusters, to count, and to say what
//! differs. They are kept while they fit, because a second read costs more than the memory does.
//! Whoever goes through neighbours, up or down, gets several with one read: small clusters make
//! many blocks. Whoever jumps about gets one.

use std::rc::Rc;

use snapslot_plugin_sdk::Failure;

use crate::corrupt;
use crate::volume::Volume;

/// Bytes read at once where neighbours are asked for, unless one block has more. As in `tables`:
/// they stay in the processor's second-level cache while they are handed over.
const AHEAD: u64 = 256 << 10;
/// Bytes that are kept: all of an image of 1 TiB with clusters of 64 KiB.
pub(crate) const KEPT_MAX: u64 = 32 << 20;

/// What has been read so far.
#[derive(Default)]
pub(crate) struct Blocks {
    /// By index; whichever came first stays.
    kept: Vec<Option<OnDisk>>,
    kept_bytes: u64,
    /// What the last read brought, kept or not.
    recent: Vec<(usize, OnDisk)>,
    /// The block that was asked for last.
    last: Option<usize>,
}

/// One block, among others that were read with it.
#[derive(Clone)]
pub(crate) struct OnDisk {
    read: Rc<Vec<u8>>,
    start: usize,
    end: usize,
}

impl std::ops::Deref for OnDisk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.read[self.start..self.end]
    }
}

/// The block of this index; nothing if the image has none there.
pub(crate) fn block(volume: &Volume<'_>, index: u64) -> Result<Option<OnDisk>, Failure> {
    let index = index as usize;
    if volume.refcount_table.get(index).is_none_or(|offset| *offset == 0) {
        return Ok(None);
    }
    let mut blocks = volume.blocks.borrow_mut();
    let last = blocks.last.replace(index);
    if let Some(block) = blocks.known(index) {
        return Ok(Some(block));
    }
    blocks.read(volume, &wanted(volume, index, last))?;
    Ok(blocks.known(index))
}

/// The block, and those behind it in the direction in which the caller goes.
fn wanted(volume: &Volume<'_>, index: usize, last: Option<usize>) -> Vec<usize> {
    let there = |i: &usize| volume.refcount_table.get(*i).is_some_and(|offset| *offset != 0);
    let most = (AHEAD / volume.cluster_size()).max(1) as usize;
    if last.is_some_and(|last| last + 1 == index) {
        (index..index + most).filter(there).collect()
    } else if last == Some(index + 1) {
        (index.saturating_sub(most - 1)..=index).filter(there).collect()
    } else {
        vec![index]
    }
}

impl Blocks {
    fn known(&self, index: usize) -> Option<OnDisk> {
        let kept = self.kept.get(index).cloned().flatten();
        kept.or_else(|| self.recent.iter().find(|(i, _)| *i == index).map(|(_, b)| b.clone()))
    }

    fn read(&mut self, volume: &Volume<'_>, indexes: &[usize]) -> Result<(), Failure> {
        let size = volume.cluster_size();
        let mut ranges: Vec<(u64, u32)> = Vec::with_capacity(indexes.len());
        for index in indexes {
            let offset = volume.refcount_table[*index];
            match ranges.last_mut() {
                Some(last) if last.0 + u64::from(last.1) == offset => last.1 += size as u32,
                _ => ranges.push((offset, size as u32)),
            }
        }
        let bytes = match ranges.as_slice() {
            [(offset, length)] => volume.image.read_at(*offset, *length)?,
            _ => volume.image.read_ranges(&ranges)?,
        };
        if bytes.len() as u64 != indexes.len() as u64 * size {
            let what = "the host read another number of bytes than asked";
            return Err(corrupt("refcount-read", what));
        }
        let read = Rc::new(bytes);
        self.recent.clear();
        for (i, index) in indexes.iter().enumerate() {
            let start = i * size as usize;
            let block = OnDisk { read: read.clone(), start, end: start + size as usize };
            self.recent.push((*index, block));
        }
        if self.kept_bytes + read.len() as u64 <= KEPT_MAX {
            self.kept_bytes += read.len() as u64;
            for (index, block) in &self.recent {
                if self.kept.len() <= *index {
                    self.kept.resize(index + 1, None);
                }
                self.kept[*index] = Some(block.clone());
            }
        }
        Ok(())
    }
}
