//! As much of qcow2 as a measurement needs, and no line shared with what is measured: where the metadata
//! of an image lies, reading and writing it once, and shuffling the host clusters of an image.
//!
//! Only images this bench has made itself come here. What does not look like one is an error in words.

use std::{fs::OpenOptions, ops::Range, os::unix::fs::FileExt, path::Path};

use crate::{Failure, random::Random};

/// The host offset in an L1 or L2 entry (bits 9 to 55).
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Set in an L1 or L2 entry whose cluster has a reference count of exactly one.
const COPIED: u64 = 1 << 63;
/// Set in an L2 entry whose cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Pieces no larger than this are read and written in one call.
const PIECE_BYTES_MAX: u64 = 1 << 20;

/// Where the metadata of one image lies.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Bytes in a cluster.
    pub(crate) cluster: u64,
    /// Bytes the guest sees.
    pub(crate) virtual_size: u64,
    /// Host offsets of the L2 tables of the active disk, in the order of the L1.
    pub(crate) l2_tables: Vec<u64>,
    /// Host offsets of the refcount blocks.
    pub(crate) refcount_blocks: Vec<u64>,
}

impl Layout {
    /// Reads the layout of the image at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let file = OpenOptions::new().read(true).open(path).map_err(|error| wrong(path, error))?;
        let mut header = [0; 72];
        file.read_exact_at(&mut header, 0).map_err(|error| wrong(path, error))?;
        if &header[..4] != b"QFI\xfb" {
            return Err(wrong(path, "not a qcow2 image"));
        }
        let cluster_bits = be32(&header, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(wrong(path, "a cluster size outside the format"));
        }
        let cluster = 1 << cluster_bits;
        let l1 = read_table(&file, be64(&header, 40), u64::from(be32(&header, 36)) * 8, path)?;
        let refcount_bytes = u64::from(be32(&header, 56)) * cluster;
        let refcounts = read_table(&file, be64(&header, 48), refcount_bytes, path)?;
        Ok(Self {
            cluster,
            virtual_size: be64(&header, 24),
            l2_tables: offsets(&l1, OFFSET),
            refcount_blocks: offsets(&refcounts, !0x1ff),
        })
    }

    /// Bytes of L2 tables and refcount blocks together.
    pub(crate) fn metadata_bytes(&self) -> u64 {
        (self.l2_tables.len() + self.refcount_blocks.len()) as u64 * self.cluster
    }

    /// The tables and blocks as few pieces in the order they lie in the file: neighbours are joined, up to 1 MiB.
    fn pieces(&self) -> Vec<Range<u64>> {
        let mut starts: Vec<u64> =
            self.l2_tables.iter().chain(&self.refcount_blocks).copied().collect();
        starts.sort_unstable();
        let mut pieces: Vec<Range<u64>> = Vec::new();
        for start in starts {
            match pieces.last_mut() {
                Some(last) if last.end == start && last.end - last.start < PIECE_BYTES_MAX => {
                    last.end += self.cluster;
                }
                _ => pieces.push(start..start + self.cluster),
            }
        }
        pieces
    }
}

/// Reads the metadata of an image once, so that the next one to ask finds it in the page cache.
pub(crate) fn warm(path: &Path) -> Result<(), Failure> {
    let layout = Layout::read(path)?;
    let file = OpenOptions::new().read(true).open(path).map_err(|error| wrong(path, error))?;
    let mut buffer = Vec::new();
    for piece in layout.pieces() {
        buffer.resize(length(&piece), 0);
        file.read_exact_at(&mut buffer, piece.start).map_err(|error| wrong(path, error))?;
    }
    Ok(())
}

/// Reads every metadata byte of an image and writes it back as it was, once, then makes it durable. No
/// snapshot by any tool that changes each of these bytes can be cheaper than this.
pub(crate) fn rewrite_metadata(path: &Path) -> Result<(), Failure> {
    let layout = Layout::read(path)?;
    let file =
        OpenOptions::new().read(true).write(true).open(path).map_err(|error| wrong(path, error))?;
    let mut buffer = Vec::new();
    for piece in layout.pieces() {
        buffer.resize(length(&piece), 0);
        file.read_exact_at(&mut buffer, piece.start).map_err(|error| wrong(path, error))?;
        file.write_all_at(&buffer, piece.start).map_err(|error| wrong(path, error))?;
    }
    file.sync_data().map_err(|error| wrong(path, error))
}

/// Hands the host clusters of a fully allocated image out anew, at random, among the same guest clusters.
///
/// Every data cluster keeps its one reference and its COPIED flag, so the image stays sound; what is lost
/// is that neighbours in the guest are neighbours in the file. The guest reads the same only where all
/// clusters hold the same, as in an image whose metadata alone was preallocated.
pub(crate) fn shuffle(path: &Path, seed: u64) -> Result<(), Failure> {
    let layout = Layout::read(path)?;
    let file =
        OpenOptions::new().read(true).write(true).open(path).map_err(|error| wrong(path, error))?;
    let table_bytes = length(&(0..layout.cluster));
    let mut tables = vec![0; table_bytes * layout.l2_tables.len()];
    for (table, &at) in tables.chunks_exact_mut(table_bytes).zip(&layout.l2_tables) {
        file.read_exact_at(table, at).map_err(|error| wrong(path, error))?;
    }
    let mut entries: Vec<u64> =
        tables.chunks_exact(8).map(|entry| be64(entry, 0)).filter(|&entry| entry != 0).collect();
    let plain = |entry: &u64| entry & COMPRESSED == 0 && entry & COPIED != 0 && entry & OFFSET != 0;
    if entries.is_empty() || !entries.iter().all(plain) {
        return Err(wrong(path, "only plain clusters with one reference each can be shuffled"));
    }
    Random::new(seed).shuffle(&mut entries);
    let mut next = entries.into_iter();
    for slot in tables.chunks_exact_mut(8).filter(|slot| slot.iter().any(|&byte| byte != 0)) {
        let entry = next.next().ok_or_else(|| wrong(path, "changed while it was shuffled"))?;
        slot.copy_from_slice(&entry.to_be_bytes());
    }
    for (table, &at) in tables.chunks_exact(table_bytes).zip(&layout.l2_tables) {
        file.write_all_at(table, at).map_err(|error| wrong(path, error))?;
    }
    file.sync_data().map_err(|error| wrong(path, error))
}

fn read_table(file: &std::fs::File, at: u64, bytes: u64, path: &Path) -> Result<Vec<u8>, Failure> {
    /// The largest L1 the format's implementation accepts.
    const TABLE_BYTES_MAX: u64 = 32 << 20;
    if bytes > TABLE_BYTES_MAX {
        return Err(wrong(path, "a table larger than any that QEMU makes"));
    }
    let mut table = vec![0; length(&(0..bytes))];
    file.read_exact_at(&mut table, at).map_err(|error| wrong(path, error))?;
    Ok(table)
}

fn offsets(table: &[u8], mask: u64) -> Vec<u64> {
    table.chunks_exact(8).map(|entry| be64(entry, 0) & mask).filter(|&at| at != 0).collect()
}

/// The length of a range that is known to fit in memory.
fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).expect("pieces and tables are far smaller than memory")
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn wrong(path: &Path, what: impl std::fmt::Display) -> Failure {
    Failure(format!("{}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    //! The goal: that the limit rewrites and the shuffle permutes, and neither damages. The method: small images by
    //! qemu-img, judged by `qemu-img check` and `qemu-img compare`. Replay: `cargo test -p snapslot-test-bench`.

    use super::*;
    use crate::image::{self, Content, Recipe};

    fn made(dir: &Path, content: Content, cluster: u64) -> std::path::PathBuf {
        let recipe = Recipe {
            name: "test",
            virtual_size: 16 << 20,
            cluster,
            content,
            default_rounds: 0,
            tuned_rounds: 0,
        };
        let path = dir.join(format!("{content:?}-{cluster}.qcow2"));
        recipe.make(&path).expect("qemu-img (Debian: qemu-utils) makes an image");
        path
    }

    #[test]
    fn the_layout_holds_every_table_of_a_full_image() {
        let dir = tempfile::tempdir().expect("a directory");
        for cluster in [4 << 10, 64 << 10, 2 << 20] {
            let layout =
                Layout::read(&made(dir.path(), Content::Preallocated, cluster)).expect("layout");
            let clusters = layout.virtual_size / cluster;
            let tables = clusters.div_ceil(cluster / 8);
            assert_eq!(layout.l2_tables.len() as u64, tables, "clusters of {cluster}");
            assert!(!layout.refcount_blocks.is_empty(), "clusters of {cluster}");
            let covered: u64 = layout.pieces().iter().map(|piece| piece.end - piece.start).sum();
            assert_eq!(covered, layout.metadata_bytes(), "clusters of {cluster}");
        }
    }

    #[test]
    fn rewriting_the_metadata_changes_no_byte() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = made(dir.path(), Content::Random, 4 << 10);
        let before = std::fs::read(&path).expect("the image");
        rewrite_metadata(&path).expect("rewritten");
        assert!(before == std::fs::read(&path).expect("the image"), "the image changed");
    }

    #[test]
    fn a_shuffled_image_is_sound_and_nearly_without_neighbours() {
        let dir = tempfile::tempdir().expect("a directory");
        let cluster = 4 << 10;
        let plain = made(dir.path(), Content::Preallocated, cluster);
        let shuffled = made(dir.path(), Content::Shuffled, cluster);
        image::check(&shuffled).expect("sound");
        image::compare(&plain, &shuffled).expect("the guest reads the same");
        let breaks = |path: &Path| {
            let file = std::fs::File::open(path).expect("the image");
            let layout = Layout::read(path).expect("layout");
            let mut entries = Vec::new();
            for at in layout.l2_tables {
                let table = read_table(&file, at, cluster, path).expect("a table");
                entries.extend(offsets(&table, OFFSET));
            }
            entries.windows(2).filter(|pair| pair[1] != pair[0] + cluster).count()
        };
        let clusters = (16 << 20) / 4096;
        assert!(breaks(&plain) < clusters / 100, "the plain twin is not in order");
        assert!(breaks(&shuffled) > clusters * 9 / 10, "the shuffled image still is in order");
    }

    #[test]
    fn what_is_not_an_image_is_an_error_in_words() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("no.qcow2");
        std::fs::write(&path, vec![0x5a; 4096]).expect("a file");
        let said = rewrite_metadata(&path).expect_err("no image").to_string();
        assert!(said.contains("not a qcow2 image"), "{said}");
    }
}
