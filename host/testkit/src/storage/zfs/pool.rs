//! What a pool holds, and how its room is counted.
//!
//! Room is counted by blocks, as ZFS does it: a block is charged once, to the dataset in which it
//! was born, until nothing of that dataset refers to it. What is estimated is metadata: constants
//! taken from recorded commands (`tests/transcripts/zfs-*.txt`), right within a few per cent.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Bytes of a new volume's metadata.
const VOLUME_BASE: u64 = 12_288;
/// Bytes of a new file system's metadata.
const FILE_SYSTEM_BASE: u64 = 24_576;
/// Bytes of an indirect block for each block it points to: 82,944 for 1,024 were observed.
const POINTER: u64 = 81;
/// Bytes the pool keeps for itself.
const POOL_BASE: u64 = 141_312;
/// Room a snapshot needs free in the pool: three blocks of metadata, thrice, of 16 KiB each.
pub(super) const SNAPSHOT_ROOM: u64 = 9 << 14;
/// Bytes of one block of a file system. Real ones vary; the model's files are blocks.
pub(super) const RECORD: u64 = 8_192;

/// A block as written once.
#[derive(Clone, Debug)]
pub(super) struct Block {
    /// Differs for each write.
    id: u64,
    /// What the guest wrote.
    pub value: u64,
    bytes: u64,
}

/// What a volume or file system, or a snapshot of one, holds.
#[derive(Clone, Debug)]
pub(super) struct Content {
    base: Block,
    pub blocks: BTreeMap<u64, Block>,
}

impl Content {
    fn all(&self) -> impl Iterator<Item = &Block> {
        std::iter::once(&self.base).chain(self.blocks.values())
    }

    fn ids(&self) -> BTreeSet<u64> {
        self.all().map(|b| b.id).collect()
    }

    pub(super) fn referenced(&self) -> u64 {
        self.all().map(|b| b.bytes).sum()
    }

    /// Bytes of what is here and not there.
    fn beyond(&self, other: Option<&Content>) -> u64 {
        let there = other.map(Content::ids).unwrap_or_default();
        self.all().filter(|b| !there.contains(&b.id)).map(|b| b.bytes).sum()
    }
}

/// What kind of dataset it is.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    FileSystem {
        mounted: bool,
        /// Somebody has a file in it open, or stands in it.
        busy: bool,
    },
    Volume {
        size: u64,
        block: u64,
        /// How many have its device open.
        opens: u32,
    },
}

impl Kind {
    pub(super) fn word(&self) -> &'static str {
        match self {
            Kind::FileSystem { .. } => "filesystem",
            Kind::Volume { .. } => "volume",
        }
    }

    /// Whether the kernel holds it: a channel program cannot change it.
    pub(super) fn held(&self) -> bool {
        match self {
            Kind::FileSystem { mounted, .. } => *mounted,
            Kind::Volume { opens, .. } => *opens > 0,
        }
    }
}

/// Whether a snapshot is seen under `.zfs/snapshot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Nobody looked.
    Closed,
    /// Mounted there, unused.
    Open,
    /// Mounted there and in use.
    Used,
}

/// A snapshot.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    pub name: String,
    pub guid: u64,
    pub createtxg: u64,
    pub creation: u64,
    pub properties: BTreeMap<String, String>,
    pub content: Content,
    /// Guest-visible size, of a volume.
    pub size: Option<u64>,
    /// Tags and when they were set.
    pub holds: BTreeMap<String, u64>,
    pub deferred: bool,
    pub view: View,
}

/// A bookmark.
#[derive(Clone, Debug)]
pub(super) struct Bookmark {
    pub guid: u64,
    pub createtxg: u64,
    pub creation: u64,
    pub referenced: u64,
}

/// A file system or volume.
#[derive(Clone, Debug)]
pub(super) struct Dataset {
    pub kind: Kind,
    pub guid: u64,
    pub createtxg: u64,
    pub creation: u64,
    /// Set here: user properties and those of ZFS the model knows.
    pub properties: BTreeMap<String, String>,
    pub head: Content,
    /// Oldest first.
    pub snapshots: Vec<Snapshot>,
    pub bookmarks: BTreeMap<String, Bookmark>,
    /// Guid of the snapshot it is a clone of.
    pub origin: Option<u64>,
    pub refreservation: u64,
    pub refquota: u64,
    /// The encryption root, where encrypted, and whether its key is loaded.
    pub key: Option<(String, bool)>,
    /// The ground was pulled away under somebody who has it open.
    pub corrupted: bool,
}

impl Dataset {
    pub(super) fn snapshot(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|s| s.name == name)
    }

    pub(super) fn snapshot_mut(&mut self, name: &str) -> Option<&mut Snapshot> {
        self.snapshots.iter_mut().find(|s| s.name == name)
    }

    pub(super) fn size(&self) -> Option<u64> {
        match self.kind {
            Kind::Volume { size, .. } => Some(size),
            Kind::FileSystem { .. } => None,
        }
    }

    /// Bytes of one block of content.
    pub(super) fn block(&self) -> u64 {
        match self.kind {
            Kind::Volume { block, .. } => block,
            Kind::FileSystem { .. } => RECORD,
        }
    }
}

/// A pool.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub name: String,
    pub bytes: u64,
    pub readonly: bool,
    pub txg: u64,
    next_block: u64,
    /// Bytes that are free at least: until they are used up, a write need not count again.
    pub slack: u64,
    /// By full name; the pool's own file system has the pool's name.
    pub datasets: BTreeMap<String, Dataset>,
}

/// Finds what is of a dataset: itself and all below it.
pub(super) fn is_below(name: &str, top: &str) -> bool {
    name.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

impl Pool {
    pub(super) fn new(name: &str, bytes: u64) -> Self {
        let (name, datasets) = (name.to_owned(), BTreeMap::new());
        Pool { name, bytes, readonly: false, txg: 4, next_block: 1, slack: 0, datasets }
    }

    fn block(&mut self, value: u64, bytes: u64) -> Block {
        self.next_block += 1;
        Block { id: self.next_block, value, bytes }
    }

    pub(super) fn fresh_content(&mut self, kind: &Kind, extra: u64) -> Content {
        let bytes = match kind {
            Kind::FileSystem { .. } => FILE_SYSTEM_BASE,
            Kind::Volume { .. } => VOLUME_BASE,
        };
        Content { base: self.block(0, bytes + extra), blocks: BTreeMap::new() }
    }

    /// Writes one block, or gives its room back. False: no room for it.
    pub(super) fn write(&mut self, name: &str, at: u64, value: Option<u64>) -> bool {
        let bytes = self.datasets[name].block() + POINTER;
        let new = value.map(|v| self.block(v, bytes));
        let quota = self.datasets[name].refquota;
        // At most this much more will be used: nothing of what it replaces becomes free.
        if self.slack < bytes {
            self.slack = self.free();
        }
        let sure = quota == 0 && self.slack >= bytes;
        let before = (!sure).then(|| self.datasets[name].head.clone());
        let head = &mut self.datasets.get_mut(name).expect("the dataset is there").head;
        match new {
            Some(block) => head.blocks.insert(at, block),
            None => head.blocks.remove(&at),
        };
        self.slack = self.slack.saturating_sub(bytes);
        let over_quota = quota > 0 && self.datasets[name].head.referenced() > quota;
        if let Some(before) = before
            && value.is_some()
            && (over_quota || self.used(&self.name) > self.usable())
        {
            self.datasets.get_mut(name).expect("the dataset is there").head = before;
            return false;
        }
        true
    }

    /// The snapshot with this guid: its dataset's name and itself.
    pub(super) fn by_guid(&self, guid: u64) -> Option<(&str, &Snapshot)> {
        let found = |(name, d): (&'_ String, &'_ Dataset)| {
            d.snapshots.iter().any(|s| s.guid == guid).then(|| name.clone())
        };
        let name = self.datasets.iter().find_map(found)?;
        let (name, dataset) = self.datasets.get_key_value(&name)?;
        dataset.snapshots.iter().find(|s| s.guid == guid).map(|s| (name.as_str(), s))
    }

    /// Names of the clones of the snapshot with this guid.
    pub(super) fn clones(&self, guid: u64) -> Vec<String> {
        let clone = |(name, d): (&String, &Dataset)| (d.origin == Some(guid)).then(|| name.clone());
        self.datasets.iter().filter_map(clone).collect()
    }

    fn origin_content(&self, dataset: &Dataset) -> Option<&Content> {
        self.by_guid(dataset.origin?).map(|(_, s)| &s.content)
    }

    /// What came right before the head, or before the snapshot with this index.
    fn before(&self, dataset: &Dataset, index: Option<usize>) -> Option<Content> {
        let last = index.unwrap_or(dataset.snapshots.len()).checked_sub(1);
        match last {
            Some(i) => Some(dataset.snapshots[i].content.clone()),
            None => self.origin_content(dataset).cloned(),
        }
    }

    /// Full name of the newest snapshot; that of the origin for a clone without its own.
    pub(super) fn newest(&self, name: &str) -> Option<String> {
        let dataset = &self.datasets[name];
        match dataset.snapshots.last() {
            Some(s) => Some(format!("{name}@{}", s.name)),
            None => self.by_guid(dataset.origin?).map(|(of, s)| format!("{of}@{}", s.name)),
        }
    }

    /// Bytes of the head that nothing older shares.
    pub(super) fn unique(&self, name: &str) -> u64 {
        let dataset = &self.datasets[name];
        dataset.head.beyond(self.before(dataset, None).as_ref())
    }

    pub(super) fn used_by_refreservation(&self, name: &str) -> u64 {
        self.datasets[name].refreservation.saturating_sub(self.unique(name))
    }

    /// Bytes charged to the head and its snapshots together.
    fn charged(&self, name: &str) -> u64 {
        let dataset = &self.datasets[name];
        let origin = self.origin_content(dataset).map(Content::ids).unwrap_or_default();
        let mut seen = origin;
        let contents = dataset.snapshots.iter().map(|s| &s.content).chain([&dataset.head]);
        contents.flat_map(Content::all).filter(|b| seen.insert(b.id)).map(|b| b.bytes).sum()
    }

    pub(super) fn used_by_dataset(&self, name: &str) -> u64 {
        let dataset = &self.datasets[name];
        dataset.head.beyond(self.origin_content(dataset))
    }

    pub(super) fn used_by_snapshots(&self, name: &str) -> u64 {
        self.charged(name).saturating_sub(self.used_by_dataset(name))
    }

    pub(super) fn used_by_children(&self, name: &str) -> u64 {
        let child = |other: &&String| *other != name && is_below(other, name);
        let base = if name == self.name { POOL_BASE } else { 0 };
        let own = |other: &String| self.charged(other) + self.used_by_refreservation(other);
        base + self.datasets.keys().filter(child).map(own).sum::<u64>()
    }

    pub(super) fn used(&self, name: &str) -> u64 {
        self.charged(name) + self.used_by_refreservation(name) + self.used_by_children(name)
    }

    /// Bytes only this snapshot holds.
    pub(super) fn used_by_snapshot(&self, name: &str, snapshot: &str) -> u64 {
        let mut holders: HashMap<u64, u32> = HashMap::new();
        for dataset in self.datasets.values() {
            let contents = dataset.snapshots.iter().map(|s| &s.content).chain([&dataset.head]);
            for block in contents.flat_map(Content::all) {
                *holders.entry(block.id).or_default() += 1;
            }
        }
        let found = self.datasets[name].snapshot(snapshot).expect("the snapshot is there");
        found.content.all().filter(|b| holders[&b.id] == 1).map(|b| b.bytes).sum()
    }

    /// Bytes written since what came before.
    pub(super) fn written(&self, name: &str, snapshot: Option<&str>) -> u64 {
        let dataset = &self.datasets[name];
        let index = snapshot.and_then(|s| dataset.snapshots.iter().position(|o| o.name == s));
        let content = index.map_or(&dataset.head, |i| &dataset.snapshots[i].content);
        content.beyond(self.before(dataset, index).as_ref())
    }

    /// Bytes of the head that this snapshot does not share.
    pub(super) fn written_since(&self, name: &str, snapshot: &str) -> Option<u64> {
        let dataset = &self.datasets[name];
        Some(dataset.head.beyond(Some(&dataset.snapshot(snapshot)?.content)))
    }

    /// Bytes for everybody: a part of the pool, 128 MiB where it is small, is held back.
    pub(super) fn usable(&self) -> u64 {
        let slop = (self.bytes >> 5).max((self.bytes >> 1).min(128 << 20));
        self.bytes - slop
    }

    /// Bytes free in the pool beyond all reservations.
    pub(super) fn free(&self) -> u64 {
        self.usable().saturating_sub(self.used(&self.name))
    }

    /// Bytes free for this dataset.
    pub(super) fn available(&self, name: &str) -> u64 {
        let dataset = &self.datasets[name];
        let free = self.free() + self.used_by_refreservation(name);
        match dataset.refquota {
            0 => free,
            quota => free.min(quota.saturating_sub(dataset.head.referenced())),
        }
    }
}

/// What a volume reserves so that every write finds room, as `zfs create -V` counts it: its size,
/// and twice the indirect blocks of 128 KiB with 1,024 pointers each.
pub(super) fn reservation_of(size: u64, block: u64) -> u64 {
    let (mut indirect, mut blocks) = (7, size / block);
    while blocks > 1 {
        blocks = blocks.div_ceil(1024);
        indirect += blocks;
    }
    size + 2 * indirect * (128 << 10)
}
