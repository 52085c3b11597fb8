//! The check of plans, the view through them, and what carries them out: what passes the check can be
//! done, stays within the image's bounds, and gives what the view showed; also when done twice.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use snapslot_capture::{PlanView, check, execute};
use snapslot_disk::Disk;
use snapslot_disk::sim::World;
use snapslot_fuzz::{Bytes, plan};

fuzz_target!(|data: &[u8]| {
    let Ok(plan) = plan(&mut Bytes(data)).finish() else { return };
    let before: Vec<u8> = (0..2048_u32).map(|i| (i % 251) as u8).collect();
    let world = World::new(BTreeMap::from([("disk".to_owned(), before)]));
    let disk = Arc::new(world.disk("disk"));
    if check(&plan, &*disk).is_err() {
        return;
    }
    let plan = Arc::new(plan);
    let view = PlanView::new(plan.clone(), disk.clone()).expect("a view");
    let size = view.size().expect("a size");
    if size > 1 << 20 {
        return;
    }
    let mut shown = vec![0; size as usize];
    view.read_at(0, &mut shown).expect("its bytes");
    execute(&plan, &*disk, &|_, _| ()).expect("what passes the check can be done");
    assert!(world.bytes("disk").as_deref() == Some(&shown[..]), "the view showed something else");
});
