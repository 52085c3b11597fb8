//! What LVM's and ZFS's tools print: whatever it is, the plugins answer or say no.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapslot_plugin_lvm::Lvm;
use snapslot_plugin_sdk::double::{MemoryTarget, RecordedPlan};
use snapslot_plugin_sdk::{Answer, Backend, Goal, NewSnapshot};
use snapslot_plugin_zfs::Zfs;

fuzz_target!(|data: &[u8]| {
    let Some((which, output)) = data.split_first() else { return };
    match which % 2 {
        0 => all::<Lvm>("vg0/vm1", output),
        _ => all::<Zfs>("tank/vm1", output),
    }
});

fn all<B: Backend>(place: &str, output: &[u8]) {
    let mut target = MemoryTarget { place: place.to_owned(), ..MemoryTarget::default() };
    for query in B::describe().queries {
        target = target.answering(&query.name, output);
    }
    let facts = B::inspect(&target);
    let identity =
        facts.as_ref().ok().and_then(|f| f.snapshots.first().map(|s| s.identity.clone()));
    let identity = identity.unwrap_or_else(|| "x".to_owned());
    let new = NewSnapshot {
        mark: "00000000000000ab".to_owned(),
        taken_seconds: 1,
        taken_nanoseconds: 1,
        room: None,
        beside: 0,
        full_copy: false,
    };
    for goal in [
        Goal::Held(new),
        Goal::Restored(identity.clone()),
        Goal::Empty(identity.clone()),
        Goal::Settled,
    ] {
        let _ = B::plan(&target, &goal, &mut RecordedPlan::default());
    }
    let _ = B::measure(&target, &identity, false);
    let answer = Answer { exit_code: 5, output: output.to_vec(), errors: output.to_vec() };
    let _ = B::explain("look", &answer);
}
