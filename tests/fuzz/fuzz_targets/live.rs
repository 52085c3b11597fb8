//! The store of a live snapshot with any bytes: it is a snapshot, none, or an error; what it says it holds can be
//! read, restored and deleted, and nothing outside the disk is touched.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use snapslot_disk::sim::World;
use snapslot_fuzz::Bytes;
use snapslot_live::{BLOCK, Knobs, LiveDisk, OnFull};

const SIZE: u64 = 9 * BLOCK + 700;
const MARK: &str = "00000000000000aa";

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let knobs = Knobs { store_max: 1 << 20, on_full: OnFull::LoseSnapshot, waiting_max: 1 << 16 };
    let world = World::new(BTreeMap::from([("disk".to_owned(), vec![3; SIZE as usize])]));
    let open = |world: &World| {
        LiveDisk::open(Arc::new(world.disk("disk")), Box::new(world.companion("store")), knobs)
    };
    // A real store, some of whose bytes are changed; with their checksums left as they are, or all of it.
    let live = open(&world).expect("an empty one");
    live.take(MARK, 1, 2).expect("a take");
    live.write(BLOCK, &[9; 3 * BLOCK as usize]).expect("a write");
    live.flush().expect("a flush");
    drop(live);
    let mut files = world.files();
    let store = files.get_mut("store").expect("a store");
    while bytes.more() {
        let at = bytes.number() as usize % store.len();
        match bytes.byte() % 4 {
            0 => store.truncate(at.max(1)),
            1 => store[at] = bytes.byte(),
            2 => store[at] ^= 1 << (bytes.byte() % 8),
            _ => {
                let n = usize::from(bytes.byte()).min(store.len() - at);
                store[at..at + n].fill(bytes.byte());
            }
        }
    }
    let damaged = World::new(files);
    let Ok(live) = open(&damaged) else { return };
    let standing = live.standing();
    let mut content = vec![0; SIZE as usize];
    live.read(0, &mut content).expect("a read");
    live.write(0, &[1; 100]).expect("a write");
    let _ = live.flush();
    if let Some(mark) = standing.mark {
        let _ = live.restore(&mark);
        live.delete(&mark).expect("a delete");
    }
    assert_eq!(damaged.bytes("disk").expect("it").len() as u64, SIZE, "the disk grew");
});
