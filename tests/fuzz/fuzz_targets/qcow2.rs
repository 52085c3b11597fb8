//! The qcow2 planner, as native code: whatever is in an image, it answers or says no; a plan of its
//! that passes the check leaves an image it can read, and a take leaves what is seen as it was.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use snapslot_disk::Disk;
use snapslot_disk::sim::World;
use snapslot_fuzz::{Bytes, image};
use snapslot_plugin_qcow2::Qcow2;
use snapslot_plugin_sdk::{Backend, Goal, NewSnapshot, View};
use snapslot_testkit::sim_host::{DiskTarget, IMAGE, Planner, native};

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let world = World::new(BTreeMap::from([(IMAGE.to_owned(), image(&mut bytes))]));
    let disk: Arc<dyn Disk> = Arc::new(world.disk(IMAGE));
    let target = DiskTarget(&*disk);
    let facts = Qcow2::inspect(&target);
    let identity =
        facts.as_ref().ok().and_then(|f| f.snapshots.first().map(|s| s.identity.clone()));
    let identity = identity.unwrap_or_else(|| "1".to_owned());
    let cursor = bytes.number();
    let _ = Qcow2::extents(&target, &View::Current, cursor, 100);
    let _ = Qcow2::extents(&target, &View::Snapshot(identity.clone()), 0, 100);
    let _ = Qcow2::measure(&target, &identity, false);
    let _ = Qcow2::measure(&target, &identity, true);
    let _ = Qcow2::differences(&target, &identity, 0, 50);
    let new = NewSnapshot {
        mark: "00000000000000ab".to_owned(),
        taken_seconds: bytes.number(),
        taken_nanoseconds: 1,
        room: None,
        beside: 0,
        full_copy: false,
    };
    let goals =
        [Goal::Held(new), Goal::Restored(identity.clone()), Goal::Empty(identity), Goal::Settled];
    let goal = &goals[usize::from(bytes.byte()) % goals.len()];
    let Ok(plan) = native::<Qcow2>().plan(disk.clone(), goal) else { return };
    if plan.is_empty() || snapslot_capture::check(&plan, &*disk).is_err() {
        return;
    }
    let seen =
        |d: &dyn Disk| Qcow2::extents(&DiskTarget(d), &View::Current, 0, 1000).map(|p| p.extents);
    let before = seen(&*disk);
    snapslot_capture::execute(&plan, &*disk, &|_, _| ())
        .expect("what passes the check can be done");
    if let (Goal::Held(_), Ok(before), Ok(after)) = (goal, before, seen(&*disk)) {
        assert_eq!(before, after, "a take changed what is seen");
    }
});
