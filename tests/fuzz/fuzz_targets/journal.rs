//! The journal's reader: any bytes are a journal, none, or an error; what is read is what is written.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use snapslot_capture::journal::{Found, commit, parse};
use snapslot_capture::resume_at;
use snapslot_disk::sim::World;

fuzz_target!(|data: &[u8]| {
    let Ok(Found::Committed { plan, meta, .. }) = parse(data, "fuzz") else { return };
    let world = World::new(BTreeMap::from([("disk".to_owned(), vec![0; 4096])]));
    let _ = resume_at(&plan, &world.disk("disk"));
    commit(&world.companion("again"), &meta, &plan).expect("no fault");
    let bytes = world.bytes("again").expect("a journal");
    match parse(&bytes, "again") {
        Ok(Found::Committed { plan: read, meta: said, .. }) => {
            assert!(read == plan && said == meta)
        }
        other => panic!("written and not read: {other:?}"),
    }
});
