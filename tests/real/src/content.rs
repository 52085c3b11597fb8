//! The content of disks and file systems, judged byte by byte.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use snapslot_test_support::SplitMix64;

const BLOCK: usize = 64 * 1024;
/// What O_DIRECT may ask for.
const ALIGN: usize = 4096;

/// Every byte of a device or file, past the page cache.
#[track_caller]
pub fn read(device: &str) -> Vec<u8> {
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(device)
        .unwrap_or_else(|e| panic!("{device}: {e}"));
    let size = file.seek(SeekFrom::End(0)).unwrap_or_else(|e| panic!("{device}: {e}")) as usize;
    let mut room = vec![0_u8; BLOCK + ALIGN];
    let skip = room.as_ptr().align_offset(ALIGN);
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        let want = BLOCK.min(size - bytes.len());
        let got = file
            .read_at(&mut room[skip..skip + want], bytes.len() as u64)
            .unwrap_or_else(|e| panic!("{device} at {}: {e}", bytes.len()));
        assert!(got > 0, "{device} ends at {}, its size is {size}", bytes.len());
        bytes.extend_from_slice(&room[skip..skip + got]);
    }
    bytes
}

/// Writes `blocks` blocks of 64 KiB of noise, anywhere, and waits until they are on the disk.
#[track_caller]
pub fn scribble(device: &str, seed: u64, blocks: u32) {
    let mut file =
        File::options().write(true).open(device).unwrap_or_else(|e| panic!("{device}: {e}"));
    let size = file.seek(SeekFrom::End(0)).unwrap_or_else(|e| panic!("{device}: {e}"));
    let mut random = SplitMix64::new(seed);
    for _ in 0..blocks {
        let at = random.below(size / BLOCK as u64) * BLOCK as u64;
        let noise = random.bytes(BLOCK);
        file.seek(SeekFrom::Start(at)).expect("a place within the disk");
        file.write_all(&noise).unwrap_or_else(|e| panic!("{device} at {at}: {e}"));
    }
    file.sync_all().unwrap_or_else(|e| panic!("{device}: {e}"));
}

/// A tree of files: path to kind, mode, owner and bytes.
pub type Tree = BTreeMap<String, (u32, u32, Vec<u8>)>;

/// Everything below a folder.
#[track_caller]
pub fn tree(folder: &str) -> Tree {
    fn walk(base: &Path, at: &Path, into: &mut Tree) {
        let list = fs::read_dir(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        for entry in list {
            let path = entry.expect("an entry of a folder").path();
            let about = fs::symlink_metadata(&path).expect("an entry's metadata");
            let bytes = if about.is_symlink() {
                fs::read_link(&path).expect("a link").to_string_lossy().into_owned().into_bytes()
            } else if about.is_file() {
                fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            } else {
                Vec::new()
            };
            let name = path.strip_prefix(base).expect("a path below").display().to_string();
            into.insert(name, (about.mode(), about.uid(), bytes));
            if about.is_dir() {
                walk(base, &path, into);
            }
        }
    }
    let mut found = Tree::new();
    walk(Path::new(folder), Path::new(folder), &mut found);
    found
}

/// Writes some files, the same for a seed, over whatever is there.
#[track_caller]
pub fn scribble_tree(folder: &str, seed: u64, files: u32) {
    let mut random = SplitMix64::new(seed);
    for n in 0..files {
        let inside = Path::new(folder).join(format!("d{}", random.below(3)));
        fs::create_dir_all(&inside).unwrap_or_else(|e| panic!("{}: {e}", inside.display()));
        let length = random.between(1, 100_000) as usize;
        let path = inside.join(format!("f{n}-{}", random.below(4)));
        fs::write(&path, random.bytes(length))
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    crate::tools::run("sync");
}

/// Writes noise into every second block of 4 KiB of a device: changes that lie apart, so that each is a change
/// of its own to whoever keeps what was there.
#[track_caller]
pub fn stripe(device: &str, seed: u64) {
    let size = read(device).len();
    let mut random = SplitMix64::new(seed);
    let file = File::options().write(true).open(device).unwrap_or_else(|e| panic!("{device}: {e}"));
    for at in (0..size).step_by(2 * ALIGN) {
        let noise = random.bytes(ALIGN);
        file.write_all_at(&noise, at as u64).unwrap_or_else(|e| panic!("{device} at {at}: {e}"));
    }
    file.sync_all().unwrap_or_else(|e| panic!("{device}: {e}"));
}

/// Writes noise over all of a device.
#[track_caller]
pub fn overwrite(device: &str, seed: u64) {
    let size = read(device).len();
    let mut random = SplitMix64::new(seed);
    let file = File::options().write(true).open(device).unwrap_or_else(|e| panic!("{device}: {e}"));
    for at in (0..size).step_by(BLOCK) {
        let noise = random.bytes(BLOCK.min(size - at));
        file.write_all_at(&noise, at as u64).unwrap_or_else(|e| panic!("{device} at {at}: {e}"));
    }
    file.sync_all().unwrap_or_else(|e| panic!("{device}: {e}"));
}
