//! What is in the volumes: copy on write, sharing in a pool, and what happens without room.

use super::BLOCK_BYTES;
use super::state::{
    Blocks, COW_CHUNK_BYTES, Id, Kind, Lv, POOL_CHUNK_BLOCKS, POOL_CHUNK_BYTES, PoolBlock, State,
};

/// Why the machine could not read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// There is no device: the volume is not active.
    NoDevice,
    /// The device is read-only.
    ReadOnly,
    /// An I/O error: a pool without room, or a snapshot whose content is lost.
    Io,
    /// Past the end.
    PastEnd,
}

/// Chunks a thick snapshot's store has in use: a header, and after every 256 chunks of content
/// one that lists them. Recorded: 2,048 chunks of content take 2,058.
pub(super) fn cow_chunks_used(content: u64) -> u64 {
    2 + content + content / (COW_CHUNK_BYTES / 16)
}

impl State {
    /// Guest-visible bytes.
    pub(super) fn guest_bytes(&self, id: Id) -> u64 {
        match self.lv(id).cow() {
            Some(cow) => self.lv(cow.origin).bytes,
            None => self.lv(id).bytes,
        }
    }

    pub(super) fn guest_write(&mut self, id: Id, block: u64, value: u64) -> Result<(), GuestError> {
        let lv = self.lv(id);
        if !lv.active {
            return Err(GuestError::NoDevice);
        }
        assert!(!lv.suspended, "writing {} would hang: it is suspended", lv.full_name());
        if !lv.writable {
            return Err(GuestError::ReadOnly);
        }
        if (block + 1) * BLOCK_BYTES > self.guest_bytes(id) {
            return Err(GuestError::PastEnd);
        }
        self.write(id, block, value)
    }

    pub(super) fn guest_read(&self, id: Id, block: u64) -> Result<u64, GuestError> {
        let lv = self.lv(id);
        if !lv.active {
            return Err(GuestError::NoDevice);
        }
        assert!(!lv.suspended, "reading {} would hang: it is suspended", lv.full_name());
        if (block + 1) * BLOCK_BYTES > self.guest_bytes(id) {
            return Err(GuestError::PastEnd);
        }
        self.read(id, block)
    }

    fn read(&self, id: Id, block: u64) -> Result<u64, GuestError> {
        match &self.lv(id).kind {
            Kind::Linear(data) => Ok(data.get(&block).copied().unwrap_or(0)),
            Kind::Cow(cow) if cow.invalid => Err(GuestError::Io),
            Kind::Cow(cow) => match cow.store.get(&block) {
                Some(&value) => Ok(value),
                None => self.read(cow.origin, block),
            },
            Kind::Thin(thin) => match (thin.map.get(&(block / POOL_CHUNK_BLOCKS)), thin.external) {
                (Some(at), _) => {
                    let pool = self.lv(thin.pool).pool().expect("a pool");
                    Ok(pool.blocks[at].data[(block % POOL_CHUNK_BLOCKS) as usize])
                }
                (None, Some(external)) => self.read(external, block),
                (None, None) => Ok(0),
            },
            Kind::Pool(_) => panic!("a pool has no content of its own"),
        }
    }

    /// Writes regardless of permission: merges do so too.
    pub(super) fn write(&mut self, id: Id, block: u64, value: u64) -> Result<(), GuestError> {
        self.save_for_snapshots(id, block);
        match &mut self.lv_mut(id).kind {
            Kind::Linear(data) => {
                if value == 0 {
                    data.remove(&block);
                } else {
                    data.insert(block, value);
                }
                Ok(())
            }
            Kind::Cow(cow) if cow.invalid => Err(GuestError::Io),
            Kind::Cow(_) => {
                if self.store(id, block, value) {
                    Ok(())
                } else {
                    Err(GuestError::Io)
                }
            }
            Kind::Thin(_) => self.write_thin(id, block, value),
            Kind::Pool(_) => panic!("a pool has no content of its own"),
        }
    }

    /// Before an origin's block changes, each thick snapshot that lacks the old one takes it.
    fn save_for_snapshots(&mut self, origin: Id, block: u64) {
        let lacks = |lv: &Lv| {
            lv.cow().is_some_and(|c| {
                let running = matches!(c.merge, Some(super::state::Merge::Running { .. }));
                c.origin == origin && !c.invalid && !running && !c.store.contains_key(&block)
            })
        };
        let all: Vec<Id> = self.lvs.iter().filter(|(_, lv)| lacks(lv)).map(|(&i, _)| i).collect();
        if all.is_empty() {
            return;
        }
        let old = self.read(origin, block).expect("an origin is no snapshot");
        for id in all {
            self.store(id, block, old);
        }
    }

    /// Puts a block into a store; without room the whole snapshot is lost.
    fn store(&mut self, id: Id, block: u64, value: u64) -> bool {
        let chunks = self.lv(id).bytes / COW_CHUNK_BYTES;
        let cow = self.cow_mut(id);
        if !cow.store.contains_key(&block) && cow_chunks_used(cow.store.len() as u64) + 1 > chunks {
            cow.invalid = true;
            return false;
        }
        cow.store.insert(block, value);
        true
    }

    fn write_thin(&mut self, id: Id, block: u64, value: u64) -> Result<(), GuestError> {
        let (chunk, within) = (block / POOL_CHUNK_BLOCKS, (block % POOL_CHUNK_BLOCKS) as usize);
        let thin = self.lv(id).thin().expect("a thin volume");
        let (pool, old) = (thin.pool, thin.map.get(&chunk).copied());
        let own =
            old.is_some_and(|at| self.lv(pool).pool().expect("a pool").blocks[&at].users == 1);
        if own {
            let at = old.expect("mapped");
            self.pool_mut(pool).blocks.get_mut(&at).expect("a block").data[within] = value;
            return Ok(());
        }
        if self.pool_chunks_used(pool) >= self.lv(pool).bytes / POOL_CHUNK_BYTES {
            self.pool_mut(pool).out_of_data = true;
            return Err(GuestError::Io);
        }
        let mut data = [0; POOL_CHUNK_BLOCKS as usize];
        for (i, slot) in data.iter_mut().enumerate() {
            *slot = self.read(id, chunk * POOL_CHUNK_BLOCKS + i as u64)?;
        }
        data[within] = value;
        let p = self.pool_mut(pool);
        if let Some(at) = old {
            p.blocks.get_mut(&at).expect("a block").users -= 1;
        }
        let at = p.next_block;
        p.next_block += 1;
        p.blocks.insert(at, PoolBlock { users: 1, data });
        self.thin_mut(id).map.insert(chunk, at);
        Ok(())
    }

    /// Shares all blocks of a thin volume with a new one.
    pub(super) fn share(&mut self, id: Id) -> std::collections::BTreeMap<u64, u64> {
        let thin = self.lv(id).thin().expect("a thin volume").clone();
        let pool = self.pool_mut(thin.pool);
        for at in thin.map.values() {
            pool.blocks.get_mut(at).expect("a block").users += 1;
        }
        thin.map
    }

    /// Gives all blocks of a thin volume back.
    pub(super) fn discard(&mut self, id: Id) {
        if self.lv(id).thin().is_none() {
            return;
        }
        let thin = self.thin_mut(id);
        let pool = thin.pool;
        let map = std::mem::take(&mut thin.map);
        let before = self.pool_chunks_used(pool);
        let p = self.pool_mut(pool);
        for at in map.into_values() {
            let block = p.blocks.get_mut(&at).expect("a block");
            block.users -= 1;
            if block.users == 0 {
                p.blocks.remove(&at);
            }
        }
        if self.pool_chunks_used(pool) < before {
            self.pool_mut(pool).out_of_data = false;
        }
    }

    pub(super) fn content(&self, id: Id) -> Option<Blocks> {
        let blocks = self.guest_bytes(id) / BLOCK_BYTES;
        let mut all = Blocks::new();
        for block in self.candidates(id).into_iter().filter(|&b| b < blocks) {
            match self.read(id, block) {
                Ok(0) => {}
                Ok(value) => {
                    all.insert(block, value);
                }
                Err(_) => return None,
            }
        }
        if self.lv(id).cow().is_some_and(|c| c.invalid) { None } else { Some(all) }
    }

    /// Blocks that may be other than zero.
    fn candidates(&self, id: Id) -> std::collections::BTreeSet<u64> {
        match &self.lv(id).kind {
            Kind::Linear(data) => data.keys().copied().collect(),
            Kind::Cow(cow) => {
                let mut all = self.candidates(cow.origin);
                all.extend(cow.store.keys());
                all
            }
            Kind::Thin(thin) => {
                let mut all = thin.external.map(|e| self.candidates(e)).unwrap_or_default();
                let first = thin.map.keys().map(|c| c * POOL_CHUNK_BLOCKS);
                all.extend(first.flat_map(|b| b..b + POOL_CHUNK_BLOCKS));
                all
            }
            Kind::Pool(_) => panic!("a pool has no content of its own"),
        }
    }

    pub(super) fn pool_chunks_used(&self, id: Id) -> u64 {
        let pool = self.lv(id).pool().expect("a pool");
        pool.occupied + pool.blocks.len() as u64
    }

    /// Blocks of 4 KiB in a pool's metadata. Recorded: 111 in an empty pool, one more for each
    /// volume that shares its map with no other, and about one for 240 mapped chunks.
    pub(super) fn pool_metadata_used(&self, id: Id) -> u64 {
        let pool = self.lv(id).pool().expect("a pool");
        let maps: std::collections::BTreeSet<_> =
            self.thins(id).into_iter().map(|t| &self.lv(t).thin().expect("thin").map).collect();
        111 + maps.len() as u64 + pool.blocks.len() as u64 / 240 + pool.occupied_metadata
    }

    #[track_caller]
    pub(super) fn occupy(&mut self, id: Id, bytes: u64) {
        let chunks = self.lv(id).bytes / POOL_CHUNK_BYTES;
        assert!(self.lv(id).pool().is_some(), "{} is no pool", self.lv(id).full_name());
        let used = self.pool_chunks_used(id) + bytes / POOL_CHUNK_BYTES;
        assert!(used <= chunks, "the pool has {chunks} chunks, {used} are asked for");
        self.pool_mut(id).occupied += bytes / POOL_CHUNK_BYTES;
    }

    #[track_caller]
    pub(super) fn occupy_metadata(&mut self, id: Id, percent: u64) {
        let pool = self.lv(id).pool().expect("a pool");
        let blocks = pool.metadata_bytes / 4096;
        let used = self.pool_metadata_used(id) + blocks * percent / 100;
        assert!(used <= blocks, "the metadata has {blocks} blocks, {used} are asked for");
        self.pool_mut(id).occupied_metadata += blocks * percent / 100;
    }
}
