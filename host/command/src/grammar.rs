//! What may stand in a hole of a template.

use snapslot_slot::is_mark;

use crate::place::{Place, lvm_reserved};

/// What may stand in a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// The volume group; filled by the host.
    LvmGroup,
    /// The logical volume's name; filled by the host.
    LvmVolume,
    /// The ZFS pool; filled by the host.
    ZfsPool,
    /// The ZFS dataset; filled by the host.
    ZfsDataset,
    /// The directory's or file's path; filled by the host.
    Path,
    /// `NAME_snapslot_` and 1 to 24 of `[a-z0-9]`, NAME being the logical volume's.
    LvmOwn,
    /// `snapslot-` and 1 to 40 of `[a-z0-9-]`.
    ZfsOwn,
    /// `.NAME.snapslot-` and 1 to 40 of `[a-z0-9-]` beside the directory, as a path.
    PathOwn,
    /// 16 lower-case hexadecimal digits.
    Mark,
    /// An unsigned number of 64 bits.
    Number,
    /// A universally unique identifier, as LVM writes it or in hexadecimal; behind `lv_uuid=`, or
    /// what a guard expects.
    Uuid,
    /// A tag as LVM allows them, behind `--addtag` or `--deltag`.
    LvmTag,
}

impl Grammar {
    /// For people: what stands there.
    pub fn in_words(self) -> &'static str {
        match self {
            Grammar::LvmGroup => "the volume's group",
            Grammar::LvmVolume => "the volume's name",
            Grammar::ZfsPool => "the dataset's pool",
            Grammar::ZfsDataset => "the dataset",
            Grammar::Path => "the volume's path",
            Grammar::LvmOwn => "the volume's name with `_snapslot_` and a mark",
            Grammar::ZfsOwn => "`snapslot-` and a mark",
            Grammar::PathOwn => "the path with `.snapslot-` and a mark",
            Grammar::Mark => "16 hexadecimal digits",
            Grammar::Number => "a number",
            Grammar::Uuid => "an identifier",
            Grammar::LvmTag => "a tag",
        }
    }

    /// The value that the volume's own place gives; none for holes the plugin fills.
    pub fn of_place(self, place: &Place) -> Option<Result<String, &'static str>> {
        let value = match (self, place) {
            (Grammar::LvmGroup, Place::LvmVolume { group, .. }) => group.clone(),
            (Grammar::LvmVolume, Place::LvmVolume { volume, .. }) => volume.clone(),
            (Grammar::ZfsPool, Place::ZfsDataset(dataset)) => {
                dataset.split('/').next().unwrap_or_default().to_owned()
            }
            (Grammar::ZfsDataset, Place::ZfsDataset(dataset)) => dataset.clone(),
            (Grammar::Path, Place::Image(path) | Place::Directory(path)) => match path.to_str() {
                Some(text) => text.to_owned(),
                None => return Some(Err("its path is not text")),
            },
            (
                Grammar::LvmGroup
                | Grammar::LvmVolume
                | Grammar::ZfsPool
                | Grammar::ZfsDataset
                | Grammar::Path,
                _,
            ) => return Some(Err("volumes of this kind have no such thing")),
            _ => return None,
        };
        Some(Ok(value))
    }

    /// Whether the value may stand there. What passes is never empty, never begins like an
    /// option, and names nothing but what is ours.
    pub fn allows(self, value: &str, place: &Place) -> bool {
        let own = |rest: &str, most: usize, hyphen: bool| {
            (1..=most).contains(&rest.len())
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || (hyphen && b == b'-'))
        };
        match self {
            Grammar::LvmGroup
            | Grammar::LvmVolume
            | Grammar::ZfsPool
            | Grammar::ZfsDataset
            | Grammar::Path => false,
            Grammar::LvmOwn => {
                let Place::LvmVolume { volume, .. } = place else { return false };
                let rest = value.strip_prefix(volume).and_then(|r| r.strip_prefix("_snapslot_"));
                rest.is_some_and(|r| own(r, 24, false))
                    && value.len() <= 127
                    && !lvm_reserved(value)
            }
            Grammar::ZfsOwn => {
                matches!(place, Place::ZfsDataset(_))
                    && value.strip_prefix("snapslot-").is_some_and(|r| own(r, 40, true))
            }
            Grammar::PathOwn => {
                let Place::Directory(path) = place else { return false };
                let (Some(parent), Some(name)) = (
                    path.parent().and_then(|p| p.to_str()),
                    path.file_name().and_then(|n| n.to_str()),
                ) else {
                    return false;
                };
                let parent = parent.trim_end_matches('/');
                let rest = value
                    .strip_prefix(parent)
                    .and_then(|r| r.strip_prefix("/."))
                    .and_then(|r| r.strip_prefix(name))
                    .and_then(|r| r.strip_prefix(".snapslot-"));
                rest.is_some_and(|r| own(r, 40, true))
            }
            Grammar::Mark => is_mark(value),
            Grammar::Number => value.parse::<u64>().is_ok_and(|n| n.to_string() == value),
            Grammar::Uuid => {
                let groups: Vec<usize> = value.split('-').map(str::len).collect();
                let lvm = groups == [6, 4, 4, 4, 4, 4, 6]
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                let plain = groups == [8, 4, 4, 4, 12]
                    && value.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
                lvm || plain
            }
            Grammar::LvmTag => {
                (1..=128).contains(&value.len())
                    && !value.starts_with('-')
                    && Grammar::is_of_tags(value)
            }
        }
    }

    /// Whether all of a text may stand in a tag.
    pub(crate) fn is_of_tags(text: &str) -> bool {
        text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&b))
    }
}
