//! Two real processes at one image.
//!
//! `SNAPSLOT_TEST_RACES` (50) rounds of each.

use snapslot_test_support::{Image, Outcome, Scratch, Snapslot, SplitMix64, assert_same, setting};

use crate::snapslot;

fn image(scratch: &Scratch) -> Image {
    let image = Image::create(scratch.join("disk.qcow2"), &["cluster_size=4k"], 16 << 20);
    image.guest(["write -P 1 0 8M"]).expect_success();
    image
}

/// Starts both at once and waits for both.
fn both(product: &Snapslot, image: &Image, verbs: [&str; 2]) -> [Outcome; 2] {
    let arguments = |verb: &str| {
        let mut words = verb.split(' ').map(Into::into);
        let mut arguments = vec![words.next().unwrap_or_default()];
        arguments.push(image.path().as_os_str().to_owned());
        arguments.extend(words);
        arguments
    };
    let processes = verbs.map(|verb| product.start(arguments(verb)));
    processes.map(|process| Outcome::from(process.finish(std::time::Duration::from_secs(60))))
}

#[test]
fn of_two_takes_one_wins() {
    let rounds = setting("SNAPSLOT_TEST_RACES", 50);
    let scratch = Scratch::new();
    let product = snapslot(&scratch);
    let image = image(&scratch);
    let reference = image.active();
    let (mut held, mut busy) = (0, 0);
    for round in 0..rounds {
        let outcomes = both(&product, &image, ["take", "take"]);
        let mut codes = [outcomes[0].code(), outcomes[1].code()];
        codes.sort_unstable();
        let account = || outcomes.each_ref().map(|o| o.process.account()).join("\n");
        assert!(matches!(codes, [0, 3 | 5]), "round {round}: {codes:?}\n{}", account());
        held += u64::from(codes[1] == 3);
        busy += u64::from(codes[1] == 5);
        image.assert_clean();
        let winner = &outcomes[usize::from(outcomes[0].code() != 0)];
        let name = winner.snapshot_name();
        let names: Vec<String> = image.snapshots().into_iter().map(|s| s.name).collect();
        assert_eq!(names, std::slice::from_ref(&name), "round {round}: {}", account());
        let status = product.verb("status", image.path(), &[]);
        assert_eq!((status.slot(), status.snapshot_name()), ("held", name));
        product.verb("delete", image.path(), &[]).expect(0);
    }
    assert_same("the disk", &image.active(), &reference);
    println!(
        "{rounds} races of two takes: the other was told held {held} times, busy {busy} times"
    );
}

/// Any two verbs: each is done, or told held, empty or busy; and what is there afterwards is
/// what both tell. Of each pair, one at least can be done as the slot stands.
#[test]
fn any_two_verbs_leave_a_legal_slot() {
    const EMPTY: [&str; 2] = ["take", "take --replace"];
    const HELD: [&str; 4] =
        ["take --replace", "restore --yes", "restore --yes --consume", "delete --yes"];
    const ANY: [&str; 5] =
        ["take", "take --replace", "restore --yes", "restore --yes --consume", "delete --yes"];
    let rounds = setting("SNAPSLOT_TEST_RACES", 50);
    let seed = setting("SNAPSLOT_TEST_SEED", 0x7261_6365);
    println!("seed {seed}");
    let mut random = SplitMix64::new(seed);
    let scratch = Scratch::new();
    let product = snapslot(&scratch);
    let image = image(&scratch);
    let mut counts = std::collections::BTreeMap::<i32, u64>::new();
    product.verb("take", image.path(), &[]).expect(0);
    let mut held = true;
    for round in 0..rounds {
        let mut draw = |verbs: &[&'static str]| verbs[random.below(verbs.len() as u64) as usize];
        let mut pair = [draw(if held { &HELD } else { &EMPTY }), draw(&ANY)];
        if round % 2 == 1 {
            pair.reverse();
        }
        image.guest([format!("write -P {} {}k 64k", round % 255, 64 * (round % 100))]);
        let outcomes = both(&product, &image, pair);
        let account = || outcomes.each_ref().map(|o| o.process.account()).join("\n");
        for outcome in &outcomes {
            let legal = matches!(outcome.code(), 0 | 3 | 4 | 5);
            assert!(legal, "round {round}, {pair:?}:\n{}", account());
            *counts.entry(outcome.code()).or_default() += 1;
        }
        image.assert_clean();
        let status = product.verb("status", image.path(), &[]);
        let names: Vec<String> = image.snapshots().into_iter().map(|s| s.name).collect();
        held = status.slot() == "held";
        match status.slot() {
            "held" => assert_eq!(names, [status.snapshot_name()], "{pair:?}:\n{}", account()),
            "empty" => assert_eq!(names, [""; 0], "{pair:?}:\n{}", account()),
            other => panic!("round {round}, {pair:?}: the slot is {other}\n{}", account()),
        }
    }
    println!("{rounds} races of any two verbs, exit codes and how often: {counts:?}");
    // The one that can be done loses only to one that is refused while it holds the lock.
    assert!(counts.get(&0).is_some_and(|done| *done >= rounds / 4), "hardly any was done");
}
