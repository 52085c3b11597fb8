//! Images that lie: a sound qcow2 image, damaged in one place.
//!
//! Every field of the header and of the snapshot table gets boundary values (the fields and values of QEMU's image
//! fuzzer among them), entries of tables point where they must not, counts are wrong, the file is cut, bits flip. Made
//! from the format's specification alone: what a damage does is for others to judge.

mod fields;
mod structure;

pub use fields::{header, snapshot_table};
pub use structure::{counts, garbage, pointers, truncations};

/// One damaged image.
#[derive(Clone, Debug)]
pub struct Damage {
    /// What was done to it.
    pub name: String,
    /// What it is now.
    pub bytes: Vec<u8>,
    /// Whether what the guest sees is a function of the guest's writes still.
    pub meaningful: bool,
}

impl Damage {
    fn new(name: impl Into<String>, bytes: Vec<u8>) -> Self {
        Damage { name: name.into(), bytes, meaningful: true }
    }
}

/// A kind of damage: its name, and all of it that a sound image can have. The number is the seed of what is random.
pub type Kind = (&'static str, fn(&[u8], u64) -> Vec<Damage>);

/// All kinds.
pub const KINDS: [Kind; 6] = [
    ("header-fields", |sound, _| header(sound)),
    ("snapshot-table-fields", |sound, _| snapshot_table(sound)),
    ("pointers", |sound, _| pointers(sound)),
    ("counts", |sound, _| counts(sound)),
    ("truncations", |sound, _| truncations(sound)),
    ("garbage", garbage),
];

fn be32(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    word.map_or(0, u32::from_be_bytes)
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    let word = bytes.get(at..at.saturating_add(8)).and_then(|b| b.try_into().ok());
    word.map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    //! Goal: there is as much damage as is said, each another, and each of it is damage.

    use super::*;
    use crate::qemu::Bench;

    #[test]
    fn there_is_enough_of_it() {
        let bench = Bench::new();
        bench.img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a", "4M"]);
        bench.io("a", &["write -q -P 1 0 256k", "write -q -P 3 3M 128k"]);
        let mut images = vec![("empty", bench.read("a"))];
        bench.img(&["snapshot", "-c", "one", "a"]);
        bench.io("a", &["write -q -P 2 4k 64k"]);
        images.push(("with a snapshot", bench.read("a")));
        for (what, sound) in images {
            let (mut fields, mut structural) = (0, 0);
            for (kind, damages) in KINDS {
                let all = damages(&sound, 1);
                println!("{what}, {kind}: {}", all.len());
                let names: std::collections::HashSet<_> = all.iter().map(|d| &d.name).collect();
                assert_eq!(names.len(), all.len(), "{what}, {kind}: one name for two");
                let none = all.iter().find(|d| d.bytes == sound);
                assert!(none.is_none(), "{what}, {kind}: no damage: {:?}", none.map(|d| &d.name));
                *(if kind.ends_with("fields") { &mut fields } else { &mut structural }) +=
                    all.len();
            }
            // What reliability asks for: some 400 of fields and 40 structural ones.
            assert!(structural >= 40, "{what}: {structural} structural ones");
            assert!(
                fields >= if what == "empty" { 250 } else { 400 },
                "{what}: {fields} of fields"
            );
        }
    }

    #[test]
    fn what_is_no_image_is_no_reason_to_break_down() {
        for sound in [Vec::new(), vec![0; 10], vec![0xff; 5000], b"QFI\xfb".to_vec()] {
            for (_, damages) in KINDS {
                damages(&sound, 1);
            }
        }
    }
}
