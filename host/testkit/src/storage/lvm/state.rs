//! What there is: groups, volumes, pools, and the rules that tie them together.

use std::collections::{BTreeMap, BTreeSet};

use snapslot_command::Answer;

use super::options::Line;
use crate::rng::Rng;

/// Bytes of a sector, the unit of sizes.
pub(super) const SECTOR_BYTES: u64 = 512;
/// Bytes in an extent, as `vgcreate` chooses by default.
pub(super) const EXTENT_BYTES: u64 = 4 << 20;
/// Bytes in a chunk of a thick snapshot's store, as `lvcreate -s` chooses by default.
pub(super) const COW_CHUNK_BYTES: u64 = 4096;
/// Bytes in a chunk of a thin pool.
pub(super) const POOL_CHUNK_BYTES: u64 = 64 << 10;
/// Blocks in a chunk of a thin pool.
pub(super) const POOL_CHUNK_BLOCKS: u64 = POOL_CHUNK_BYTES / super::BLOCK_BYTES;
/// When the first command is run. Each change takes a second.
const EPOCH: u64 = 1_795_347_000;

/// A volume, for good: names and UUIDs can change hands.
pub(super) type Id = u64;
/// Content by block; what is not there is zero.
pub(super) type Blocks = BTreeMap<u64, u64>;

#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) uuid: String,
    pub(super) extents: u64,
}

/// How far a merge has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// It waits for the origin's next activation.
    Pending,
    /// The kernel does it, and the origin shows its outcome already. It has copied all after so many
    /// looks; the snapshot goes then if somebody waits for that, and otherwise with the next refresh or
    /// activation.
    Running { waited_for: bool, looks: u32 },
}

/// The store of a thick snapshot.
#[derive(Clone, Debug)]
pub(super) struct Cow {
    pub(super) origin: Id,
    pub(super) store: Blocks,
    pub(super) invalid: bool,
    pub(super) merge: Option<Merge>,
}

#[derive(Clone, Debug)]
pub(super) struct Thin {
    pub(super) pool: Id,
    /// Chunk of the volume to block of the pool.
    pub(super) map: BTreeMap<u64, u64>,
    pub(super) origin: Option<Id>,
    /// The read-only volume outside of the pool that shows where nothing is mapped.
    pub(super) external: Option<Id>,
    /// It is to replace its origin at the next activation.
    pub(super) merging: bool,
    pub(super) thin_id: u64,
    pub(super) transaction: u64,
}

#[derive(Clone, Debug)]
pub(super) struct PoolBlock {
    pub(super) users: u32,
    pub(super) data: [u64; POOL_CHUNK_BLOCKS as usize],
}

#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) blocks: BTreeMap<u64, PoolBlock>,
    pub(super) next_block: u64,
    pub(super) metadata_bytes: u64,
    pub(super) transaction: u64,
    pub(super) zeroes: bool,
    pub(super) error_when_full: bool,
    /// A write found no room; cleared when room comes back.
    pub(super) out_of_data: bool,
    /// Chunks and metadata blocks in use besides those of the model's volumes.
    pub(super) occupied: u64,
    pub(super) occupied_metadata: u64,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Linear(Blocks),
    Cow(Cow),
    Thin(Thin),
    Pool(Pool),
}

#[derive(Clone, Debug)]
pub(super) struct Lv {
    pub(super) group: String,
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) created: u64,
    pub(super) tags: BTreeSet<String>,
    pub(super) writable: bool,
    pub(super) active: bool,
    pub(super) skip: bool,
    pub(super) auto: bool,
    /// Bytes read ahead, where that was set.
    pub(super) read_ahead: Option<u64>,
    /// Its device is suspended: all that reads or writes it hangs.
    pub(super) suspended: bool,
    /// Openers in the order they came: whether it is a mount.
    pub(super) openers: Vec<bool>,
    /// For a thick snapshot that of its store.
    pub(super) bytes: u64,
    pub(super) kind: Kind,
}

impl Lv {
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    pub(super) fn cow(&self) -> Option<&Cow> {
        if let Kind::Cow(cow) = &self.kind { Some(cow) } else { None }
    }

    pub(super) fn thin(&self) -> Option<&Thin> {
        if let Kind::Thin(thin) = &self.kind { Some(thin) } else { None }
    }

    pub(super) fn pool(&self) -> Option<&Pool> {
        if let Kind::Pool(pool) = &self.kind { Some(pool) } else { None }
    }

    /// Hidden from a look without `-a`: a snapshot that is being merged.
    pub(super) fn hidden(&self) -> bool {
        match &self.kind {
            Kind::Cow(cow) => cow.merge.is_some(),
            Kind::Thin(thin) => thin.merging,
            _ => false,
        }
    }
}

/// All there is on the machine.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) groups: BTreeMap<String, Group>,
    /// In the order of creation.
    pub(super) lvs: BTreeMap<Id, Lv>,
    pub(super) merge_looks: u32,
    pub(super) clock: u64,
    /// The command being run is ended half way.
    pub(super) half: bool,
    next_id: Id,
    chance: Rng,
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        State {
            groups: BTreeMap::new(),
            lvs: BTreeMap::new(),
            merge_looks: 0,
            clock: EPOCH,
            half: false,
            next_id: 1,
            chance: Rng::new(seed),
        }
    }

    pub(super) fn add_group(&mut self, name: &str, bytes: u64) {
        assert_eq!(bytes % EXTENT_BYTES, 0, "{name}: {bytes} is not a multiple of the extent");
        let group = Group { uuid: self.new_uuid(), extents: bytes / EXTENT_BYTES };
        let old = self.groups.insert(name.to_owned(), group);
        assert!(old.is_none(), "the group {name} exists");
    }

    /// Runs one command; `half` ends it half way.
    pub(super) fn run(&mut self, line: &Line, half: bool) -> Answer {
        self.look_at_merges();
        self.half = half;
        let output = match line.program.as_str() {
            "lvs" | "vgs" => self.report(line),
            "lvcreate" => self.create(line),
            "lvremove" => self.remove(line),
            "lvrename" => self.rename(line),
            "lvchange" => self.change(line),
            "lvconvert" => self.convert(line),
            "lvextend" | "lvresize" => self.extend(line),
            _ => line.unknown("the program"),
        };
        self.half = false;
        if line.changes() {
            self.clock += 1;
        }
        Answer {
            exit_code: output.code,
            output: output.out.into_bytes(),
            errors: output.err.into_bytes(),
        }
    }

    /// Six, five times four, and six letters or digits, as LVM writes a UUID.
    pub(super) fn new_uuid(&mut self) -> String {
        const LETTERS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let parts = [6, 4, 4, 4, 4, 4, 6].map(|n| {
            (0..n)
                .map(|_| char::from(LETTERS[self.chance.below(LETTERS.len() as u64) as usize]))
                .collect::<String>()
        });
        parts.join("-")
    }

    /// Adds a volume. New ones are writable, active and without tags.
    pub(super) fn add(&mut self, group: &str, name: &str, bytes: u64, kind: Kind) -> Id {
        let id = self.next_id;
        self.next_id += 1;
        let lv = Lv {
            group: group.to_owned(),
            name: name.to_owned(),
            uuid: self.new_uuid(),
            created: self.clock,
            tags: BTreeSet::new(),
            writable: true,
            active: true,
            skip: false,
            auto: true,
            read_ahead: None,
            suspended: false,
            openers: Vec::new(),
            bytes,
            kind,
        };
        self.lvs.insert(id, lv);
        id
    }

    pub(super) fn find(&self, group: &str, name: &str) -> Option<Id> {
        let mut all = self.lvs.iter();
        all.find(|(_, lv)| lv.group == group && lv.name == name).map(|(&id, _)| id)
    }

    /// The volume of a test's own call.
    #[track_caller]
    pub(super) fn expect(&self, volume: &str) -> Id {
        let found = volume.split_once('/').and_then(|(group, name)| self.find(group, name));
        found.unwrap_or_else(|| panic!("there is no volume {volume}"))
    }

    pub(super) fn lv(&self, id: Id) -> &Lv {
        &self.lvs[&id]
    }

    pub(super) fn lv_mut(&mut self, id: Id) -> &mut Lv {
        self.lvs.get_mut(&id).expect("a volume that is referred to")
    }

    pub(super) fn cow_mut(&mut self, id: Id) -> &mut Cow {
        match &mut self.lv_mut(id).kind {
            Kind::Cow(cow) => cow,
            _ => unreachable!("volume {id} is a thick snapshot"),
        }
    }

    pub(super) fn thin_mut(&mut self, id: Id) -> &mut Thin {
        match &mut self.lv_mut(id).kind {
            Kind::Thin(thin) => thin,
            _ => unreachable!("volume {id} is thin"),
        }
    }

    pub(super) fn pool_mut(&mut self, id: Id) -> &mut Pool {
        match &mut self.lv_mut(id).kind {
            Kind::Pool(pool) => pool,
            _ => unreachable!("volume {id} is a pool"),
        }
    }

    fn all_where(&self, mut wanted: impl FnMut(&Lv) -> bool) -> Vec<Id> {
        self.lvs.iter().filter(|(_, lv)| wanted(lv)).map(|(&id, _)| id).collect()
    }

    /// Thick snapshots of a volume, oldest first.
    pub(super) fn cows(&self, origin: Id) -> Vec<Id> {
        self.all_where(|lv| lv.cow().is_some_and(|c| c.origin == origin))
    }

    /// Thin snapshots of a volume.
    pub(super) fn thin_snapshots(&self, origin: Id) -> Vec<Id> {
        self.all_where(|lv| lv.thin().is_some_and(|t| t.origin == Some(origin)))
    }

    /// Thin volumes that show this volume where they have nothing of their own.
    pub(super) fn dependents(&self, external: Id) -> Vec<Id> {
        self.all_where(|lv| lv.thin().is_some_and(|t| t.external == Some(external)))
    }

    /// Thin volumes of a pool.
    pub(super) fn thins(&self, pool: Id) -> Vec<Id> {
        self.all_where(|lv| lv.thin().is_some_and(|t| t.pool == pool))
    }

    /// The snapshot that is being merged into this volume, thick or thin.
    pub(super) fn merging_into(&self, origin: Id) -> Option<Id> {
        let both = [self.cows(origin), self.thin_snapshots(origin)].concat();
        both.into_iter().find(|&id| self.lv(id).hidden())
    }

    /// The spare metadata volume that LVM keeps while a group has a pool.
    pub(super) fn spare_bytes(&self, group: &str) -> u64 {
        let pools = self.lvs.values().filter(|lv| lv.group == group).filter_map(Lv::pool);
        pools.map(|p| p.metadata_bytes).max().unwrap_or(0)
    }

    pub(super) fn free_extents(&self, group: &str) -> u64 {
        let of = |lv: &Lv| match &lv.kind {
            Kind::Linear(_) | Kind::Cow(_) => lv.bytes,
            Kind::Thin(_) => 0,
            Kind::Pool(pool) => lv.bytes + pool.metadata_bytes,
        };
        let used: u64 = self.lvs.values().filter(|lv| lv.group == group).map(of).sum();
        let used = (used + self.spare_bytes(group)) / EXTENT_BYTES;
        let all = self.groups[group].extents;
        all.checked_sub(used).unwrap_or_else(|| panic!("{group} uses {used} of {all} extents"))
    }

    #[track_caller]
    pub(super) fn open(&mut self, volume: &str, mount: bool) {
        let id = self.expect(volume);
        let lv = self.lv_mut(id);
        assert!(lv.active, "{volume} is not active");
        lv.openers.push(mount);
    }

    #[track_caller]
    pub(super) fn close(&mut self, volume: &str) {
        let id = self.expect(volume);
        self.lv_mut(id).openers.pop().unwrap_or_else(|| panic!("{volume} is not open"));
    }

    /// Why LVM cannot take the volume's device away, if it cannot.
    pub(super) fn in_use(&self, id: Id) -> Option<String> {
        let lv = self.lv(id);
        let name = lv.full_name();
        match lv.openers.first() {
            None => None,
            Some(true) => Some(format!("Logical volume {name} contains a filesystem in use.")),
            Some(false) => Some(format!("Logical volume {name} in use.")),
        }
    }

    /// Sets a volume's state, with that of its thick snapshots; begins a merge that waited.
    pub(super) fn activate(&mut self, id: Id) {
        let was = std::mem::replace(&mut self.lv_mut(id).active, true);
        self.lv_mut(id).suspended = false;
        for cow in self.cows(id) {
            self.lv_mut(cow).active = true;
        }
        if !was {
            self.begin_pending_merge(id);
        }
        self.wait_for_merge(id);
    }

    pub(super) fn deactivate(&mut self, id: Id) {
        self.lv_mut(id).active = false;
        for cow in self.cows(id) {
            self.lv_mut(cow).active = false;
            if let Some(Merge::Running { waited_for, .. }) = &mut self.cow_mut(cow).merge {
                *waited_for = false;
            }
        }
    }

    pub(super) fn reboot(&mut self) {
        for lv in self.lvs.values_mut() {
            lv.openers.clear();
            lv.active = false;
            lv.suspended = false;
        }
        for id in self.lvs.keys().copied().collect::<Vec<_>>() {
            // A merge may have removed it meanwhile.
            let Some(lv) = self.lvs.get(&id) else { continue };
            if lv.auto && !lv.skip && lv.cow().is_none() && !lv.hidden() {
                self.activate(id);
            }
        }
        self.clock += 60;
    }
}
