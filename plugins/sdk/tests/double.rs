//! Goal: the double says no where the host would, so that a planner that passes its unit tests is not
//! refused for its shape; and nothing that is planned on it makes it panic.

use snapslot_plugin_sdk::double::{MemoryImage, MemoryTarget, Recorded, RecordedPlan};
use snapslot_plugin_sdk::{
    Argument, CommandGrant, Description, FailureKind, Fill, Grammar, Mask, NewSnapshot, PlaceKind,
    Plan, Role, Target, argument, hole,
};

fn mask(offset: u64, count: u32, stride: u32, select: Vec<u8>) -> Mask {
    Mask { offset, count, stride, clear: 0, set: 1, select }
}

fn fill(offset: u64, length: u64, pattern: &[u8]) -> Fill {
    Fill { offset, length, pattern: pattern.to_vec() }
}

#[test]
fn malformed_steps_are_refused_and_break_the_plan() {
    type Step = fn(&mut RecordedPlan) -> Result<(), snapslot_plugin_sdk::Failure>;
    let new = |mark: &str| NewSnapshot {
        mark: mark.to_owned(),
        taken_seconds: 1,
        taken_nanoseconds: 0,
        room: None,
        beside: 0,
        full_copy: false,
    };
    let bad: [(&str, Step); 17] = [
        ("no bytes", |p| p.write(0, &[])),
        ("past everything", |p| p.write(u64::MAX - 3, &[1; 8])),
        ("no pattern", |p| p.fill(vec![fill(0, 16, &[])])),
        ("a long pattern", |p| p.fill(vec![fill(0, 17, &[1; 17])])),
        ("a part of a pattern", |p| p.fill(vec![fill(0, 3, &[1, 2])])),
        ("a fill of nothing", |p| p.fill(vec![fill(0, 0, &[1])])),
        ("a fill past everything", |p| p.fill(vec![fill(u64::MAX - 1, 2, &[1])])),
        ("not aligned", |p| p.mask(vec![mask(3, 1, 8, vec![])])),
        ("a stride of none", |p| p.mask(vec![mask(0, 1, 0, vec![])])),
        ("no words", |p| p.mask(vec![mask(0, 0, 8, vec![])])),
        ("a short selection", |p| p.mask(vec![mask(0, 9, 8, vec![1])])),
        ("masks past everything", |p| p.mask(vec![mask(u64::MAX - 7, u32::MAX, 16, vec![])])),
        ("growth past everything", |p| p.extend(u64::MAX)),
        ("a seal of nothing", |p| p.seal(0, 0)),
        ("a seal that is askew", |p| p.seal(4, 1)),
        ("a mark that is none", |p| p.put_back("../x")),
        ("a mark that is long", |p| p.discard("0123456789abcdef0")),
    ];
    for (what, step) in bad {
        let mut plan = RecordedPlan::default();
        let failure = step(&mut plan).expect_err(what);
        assert_eq!(failure.kind, FailureKind::Invalid, "{what}: {failure:?}");
        // Once broken, always broken: who ignores the error gains nothing.
        assert!(plan.write(0, &[1]).is_err(), "{what}");
        plan.apply(&mut vec![0; 64]);
    }
    assert!(RecordedPlan::default().save(&new("MARK")).is_err());
    let mut two_ways = RecordedPlan::default();
    two_ways.write(0, &[1]).expect("a step");
    assert!(two_ways.save(&new("0123456789abcdef")).is_err());
    let mut twice = RecordedPlan::default();
    twice.seal(8, 1).expect("a seal");
    assert!(twice.seal(16, 1).is_err());
}

#[test]
fn limits_are_the_contracts() {
    let mut long = RecordedPlan::default();
    long.write(0, &vec![1; (8 << 20) + 1]).expect("split, as on the way to the host");
    assert_eq!(long.steps.len(), 2);
    let mut talkative = RecordedPlan::default();
    let notes = (0..20).filter(|n| talkative.note(&n.to_string()).is_ok()).count();
    assert_eq!(notes, 16);
    let mut busy = RecordedPlan::default();
    let acts = (0..70).filter(|_| busy.act("x", &[]).is_ok()).count();
    assert_eq!(acts, 64);
    let target = MemoryTarget { disk: MemoryImage(vec![0; 64]), ..MemoryTarget::default() };
    let image = target.image(Role::Disk).expect("an image");
    let kinds = [
        image.read_at(0, u32::MAX).expect_err("too much").kind,
        image.read_ranges(&vec![(0, 1); 65_537]).expect_err("too many").kind,
        image.read_ranges(&[(0, 1 << 22); 3]).expect_err("too much").kind,
    ];
    assert_eq!(kinds, [FailureKind::Limit; 3]);
    assert_eq!(image.read_at(60, 5).expect_err("outside").kind, FailureKind::Invalid);
}

/// Story: a mask past the end, or a pattern of nothing, made the double panic, and the author of a planner
/// looked for the fault in the wrong place.
#[test]
fn steps_made_by_hand_do_not_make_it_panic() {
    let mut plan = RecordedPlan::default();
    plan.steps = vec![
        Recorded::Mask(mask(0, 100, 8, vec![])),
        Recorded::Mask(mask(0, 16, 8, vec![1])),
        Recorded::Mask(mask(u64::MAX - 7, u32::MAX, 16, vec![])),
        Recorded::Fill(fill(0, 8, &[])),
        Recorded::Fill(fill(u64::MAX, 8, &[1])),
        Recorded::Write(u64::MAX, vec![1]),
        Recorded::Extend(u64::MAX),
    ];
    let mut image = vec![0; 20];
    plan.apply(&mut image);
    assert_eq!(image[7], 1);
    assert_eq!(image[15], 1);
    assert_eq!(image.len(), 20);
}

#[test]
fn what_is_not_declared_or_filled_wrongly_is_refused() {
    let holes = |all: &[(&str, Grammar)]| all.iter().map(|(n, g)| hole(n, *g)).collect();
    let grant = |name: &str, all: &[(&str, Grammar)]| CommandGrant {
        name: name.to_owned(),
        template: vec!["x".to_owned()],
        holes: holes(all),
        input: None,
        guard: None,
        deadline_seconds: 10,
        reason: "to test".to_owned(),
    };
    let all = [
        ("group", Grammar::LvmGroup),
        ("own", Grammar::LvmOwn),
        ("mark", Grammar::Mark),
        ("uuid", Grammar::Uuid),
        ("number", Grammar::Number),
        ("tag", Grammar::LvmTag),
    ];
    let description = Description {
        name: "x".to_owned(),
        version: "1".to_owned(),
        summary: "x".to_owned(),
        endings: Vec::new(),
        place: PlaceKind::LvmVolume,
        images: Vec::new(),
        copies: None,
        queries: vec![grant("look", &[("own", Grammar::ZfsOwn)])],
        actions: vec![grant("do", &all)],
    };
    let good = || {
        vec![
            argument("own", "vm1_snapslot_a1"),
            argument("mark", "0123456789abcdef"),
            argument("uuid", "fO2Njv-fQQz-EhKf-NUQm-x6ZY-Mgle-iQyrbA"),
            argument("number", 7),
            argument("tag", "a=b"),
        ]
    };
    let act =
        |arguments: &[Argument]| RecordedPlan::of(&description, "vg/vm1").act("do", arguments);
    act(&good()).expect("it fits");
    for (hole, value) in [
        ("own", "vm2_snapslot_a1"),
        ("own", "vm1_snapslot_"),
        ("own", "-f"),
        ("mark", "0123456789ABCDEF"),
        ("uuid", "x"),
        ("number", "-1"),
        ("number", "01"),
        ("tag", "-x"),
        ("tag", ""),
        ("group", "vg"),
        ("other", "x"),
    ] {
        let mut bad = good();
        bad.retain(|a| a.hole != hole);
        bad.push(argument(hole, value));
        let failure = act(&bad).expect_err(value);
        assert_eq!(failure.kind, FailureKind::Invalid, "{hole} {value}: {failure:?}");
    }
    assert!(act(&good()[1..]).is_err(), "a hole is left");
    let twice = [good(), good()].concat();
    assert!(act(&twice).is_err());
    let mut plan = RecordedPlan::of(&description, "vg/vm1");
    let undeclared = plan.act("undo", &[]).expect_err("not declared");
    assert_eq!(undeclared.kind, FailureKind::NotGranted);
    let target = MemoryTarget::default().answering("look", "x").declaring(&description);
    assert!(target.ask("look", &[argument("own", "snapslot-1")]).is_ok());
    assert!(target.ask("look", &[argument("own", "daily")]).is_err());
    assert!(target.ask("other", &[]).is_err());
}
