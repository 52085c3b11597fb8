//! A machine of two disks whose verb is killed: after recovery both are before or both after.
//!
//! Story: volumes were carried out one after the other, and a volume that had not begun looked
//! like one that had ended; a crash between the two left one restored and the other not.

use std::time::Duration;

use snapslot_test_support::{Outcome, Scratch, Snapslot, SplitMix64, setting};

use crate::snapslot;
use crate::subject::Subject;

const VERBS: [&str; 4] = ["take", "restore", "take --replace", "delete"];

fn arguments(verb: &str) -> Vec<&str> {
    let mut words: Vec<&str> = verb.split(' ').collect();
    words.insert(1, "vm1");
    if matches!(verb, "restore" | "delete") {
        words.push("--yes");
    }
    words
}

fn run(product: &Snapslot, verb: &str) -> Outcome {
    product.run(arguments(verb))
}

#[test]
fn both_disks_or_neither() {
    let kills = setting("SNAPSLOT_TEST_MACHINE_KILLS", 60);
    let seed = setting("SNAPSLOT_TEST_SEED", 0x6d61_6368);
    let mut random = SplitMix64::new(seed);
    let scratches = [Scratch::new(), Scratch::new()];
    let product = snapslot(&scratches[0]);
    let mut disks = scratches.each_ref().map(Subject::new);
    let paths = disks.each_ref().map(|d| d.path().display().to_string());
    product.run(["enable", "vm1", "--volume", &paths[0], "--volume", &paths[1]]).expect(0);
    let (mut cut, mut before, mut after) = (0, 0, 0);
    // How late a kill may come; moved so that about as many come before the change as after it, on
    // a fast machine and on a busy one.
    let mut latest = 120_000;
    let mut round = 0;
    // More rounds where too few kills came at a telling moment yet.
    let telling = |cut: u64, before: u64, after: u64| cut * 2 > kills && before > 0 && after > 0;
    while round < kills || (!telling(cut, before, after) && round < 5 * kills) {
        let verb = VERBS[(round % 4) as usize];
        // From a known state: held unless the verb is a take, the disks one generation further.
        match (verb, product.run(["status", "vm1"]).slot()) {
            ("take", "held") => drop(run(&product, "delete").expect(0)),
            ("take", _) | (_, "held") => {}
            _ => drop(run(&product, "take").expect(0)),
        }
        let old = [disks[0].generation(), disks[1].generation()];
        let new = [disks[0].next_generation(), disks[1].next_generation()];
        let names = [disks[0].snapshots(), disks[1].snapshots()];
        let mut process = product.start(arguments(verb));
        let delay = Duration::from_micros(5_000 + random.below(latest));
        while process.age() < delay && !process.has_ended() {
            std::hint::spin_loop();
        }
        if !process.has_ended() {
            process.kill();
            cut += 1;
        }
        process.finish(Duration::from_secs(60));
        let told = format!("round {round}, {verb}, seed {seed:#x}");
        let recovered = product.run(["recover", "vm1"]);
        recovered.expect(0);
        let now = [disks[0].snapshots(), disks[1].snapshots()];
        assert_eq!(now[0], now[1], "{told}: the disks hold different snapshots");
        let expected = if recovered.slot() == "held" { 1 } else { 0 };
        assert_eq!(now[0].len(), expected, "{told}: {}", recovered.process.account());
        let shown = [0, 1].map(|i| disks[i].shown(&[new[i], old[i]]) == new[i]);
        assert_eq!(shown[0], shown[1], "{told}: one disk is back and the other is not");
        assert!(verb == "restore" || shown[0], "{told}: the disks went back by themselves");
        let done = if verb == "restore" { !shown[0] } else { now != names };
        *(if done { &mut after } else { &mut before }) += 1;
        latest = if done { latest * 3 / 4 } else { latest * 4 / 3 }.clamp(20_000, 20_000_000);
        for disk in &mut disks {
            disk.image.assert_clean();
            disk.is_at(if shown[0] { new[0] } else { old[0] });
        }
        round += 1;
    }
    println!("{round} rounds: {cut} killed, {before} ended before, {after} after");
    assert!(telling(cut, before, after), "the kills came at no telling moment");
}
