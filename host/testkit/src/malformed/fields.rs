//! Fields and their boundary values.

use super::{Damage, be32, be64};

/// A field: what it is called in the specification, where it is, its bytes.
type Field = (&'static str, usize, usize);

const HEADER: [Field; 22] = [
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing_file_offset", 8, 8),
    ("backing_file_size", 16, 4),
    ("cluster_bits", 20, 4),
    ("size", 24, 8),
    ("crypt_method", 32, 4),
    ("l1_size", 36, 4),
    ("l1_table_offset", 40, 8),
    ("refcount_table_offset", 48, 8),
    ("refcount_table_clusters", 56, 4),
    ("nb_snapshots", 60, 4),
    ("snapshots_offset", 64, 8),
    ("incompatible_features", 72, 8),
    ("compatible_features", 80, 8),
    ("autoclear_features", 88, 8),
    ("refcount_order", 96, 4),
    ("header_length", 100, 4),
    ("compression_type", 104, 1),
    ("header padding", 105, 1),
    ("first extension type", 112, 4),
    ("first extension length", 116, 4),
];

const SNAPSHOT: [Field; 15] = [
    ("l1_table_offset", 0, 8),
    ("l1_size", 8, 4),
    ("id_str_size", 12, 2),
    ("name_size", 14, 2),
    ("date_sec", 16, 4),
    ("date_nsec", 20, 4),
    ("vm_clock_nsec", 24, 8),
    ("vm_state_size", 32, 4),
    ("extra_data_size", 36, 4),
    ("vm_state_size_large", 40, 8),
    ("disk_size", 48, 8),
    ("icount", 56, 8),
    ("first character of the id", 64, 1),
    ("first character of the name", 65, 1),
    ("second character of the name", 66, 1),
];

/// What a field of this many bytes is set to, beside neighbours of what it holds.
fn values(width: usize, holds: u64, file: u64) -> Vec<u64> {
    let most = u64::MAX >> (64 - 8 * width);
    let top = most / 2 + 1;
    let mut values = vec![
        0,
        1,
        most,
        most - 1,
        top,
        top - 1,
        holds.wrapping_add(1) & most,
        holds.wrapping_sub(1) & most,
    ];
    if width == 2 {
        values.extend([2, 255, 1025]);
    }
    if width >= 4 {
        values.extend([512, 4096, 65_537, file & !4095, (file + 4096) & !4095, (1 << 22) + 1]);
        // At and around where shifts of this width and sums of clusters wrap.
        values.extend([9, 16, 21, 31].map(|p| 1_u64 << p));
    }
    if width == 8 {
        // Beyond what an entry of a table can address; sums with it wrap.
        values.extend([1 << 56, (1 << 56) - 4096, top - 4096, most - 4095]);
        values.extend([1 << 32, (1 << 48) - 1, 1 << 55, 1 << 62]);
    }
    values.sort_unstable();
    values.dedup();
    values.retain(|value| *value != holds && *value <= most);
    values
}

fn each(sound: &[u8], base: usize, fields: &[Field], of: &str) -> Vec<Damage> {
    let mut damages = Vec::new();
    for &(name, at, width) in fields {
        let at = base.saturating_add(at);
        let Some(there) = sound.get(at..at.saturating_add(width)) else { continue };
        let mut word = [0; 8];
        word[8 - width..].copy_from_slice(there);
        let holds = u64::from_be_bytes(word);
        for value in values(width, holds, sound.len() as u64) {
            let mut bytes = sound.to_vec();
            bytes[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
            damages.push(Damage::new(format!("{of} {name} = {value:#x} (was {holds:#x})"), bytes));
        }
    }
    damages
}

/// The header's fields, and the first bytes behind it.
pub fn header(sound: &[u8]) -> Vec<Damage> {
    each(sound, 0, &HEADER, "header")
}

/// The last snapshot's fields: on an image with a held slot, ours. None without a snapshot.
pub fn snapshot_table(sound: &[u8]) -> Vec<Damage> {
    let (count, mut at) = (be32(sound, 60), be64(sound, 64) as usize);
    if count == 0 || at == 0 {
        return Vec::new();
    }
    for _ in 1..count {
        let Some(lengths) = sound.get(at.saturating_add(12)..at.saturating_add(16)) else {
            return Vec::new();
        };
        let strings = u16::from_be_bytes([lengths[0], lengths[1]]) as usize
            + u16::from_be_bytes([lengths[2], lengths[3]]) as usize;
        at += (40 + be32(sound, at + 36) as usize + strings).next_multiple_of(8);
    }
    each(sound, at, &SNAPSHOT, "last snapshot's")
}
