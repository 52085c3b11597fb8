//! The present disk, held for a reader as its server holds it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use snapslot_disk::Disk;
use snapslot_disk::sim::{SimDisk, World};
use snapslot_live::{LiveDisk, LiveError, Snapshot};

pub const READER: &str = "00000000000000d4";

/// A moment that is held.
pub struct Moment {
    room: World,
    gone: Arc<AtomicBool>,
}

impl Moment {
    pub fn of(live: &LiveDisk) -> Result<Moment, LiveError> {
        Moment::stored(live, |room| Box::new(room))
    }

    /// In a store that is made of this simulated one.
    pub fn stored(
        live: &LiveDisk,
        store: impl FnOnce(SimDisk) -> Box<dyn Disk>,
    ) -> Result<Moment, LiveError> {
        let room = World::new(BTreeMap::from([("room".to_owned(), Vec::new())]));
        let gone = Arc::new(AtomicBool::new(false));
        let tell = gone.clone();
        live.hold(READER, store(room.disk("room")), move |_| tell.store(true, Ordering::SeqCst))?;
        Ok(Moment { room, gone })
    }

    /// Whether its reader was told that it is held no longer.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// What its reader has of it.
    pub fn opened(&self, disk: SimDisk) -> Snapshot {
        let gone = self.gone.clone();
        let held = move || !gone.load(Ordering::SeqCst);
        let now = Snapshot::of_now(Arc::new(disk), Box::new(self.room.disk("room")), held);
        now.expect("its store").expect("a moment")
    }
}
