//! What it does to a slot that is held: restore, delete, and a take that replaces.

use snapslot_engine::{Asked, Verb};

use crate::{HASTY, PATIENT, component, confined, engine, is_told};

/// The verb, what it does then, and the exit code it is worth.
const CASES: [(Verb, bool, &str, u8); 15] = [
    (Verb::Restore, false, "restore-traps", 7),
    (Verb::Restore, false, "restore-loops", 7),
    (Verb::Restore, false, "restore-removes-the-snapshot", 7),
    (Verb::Restore, false, "restore-renames-the-snapshot", 7),
    (Verb::Restore, false, "restore-changes-content", 7),
    (Verb::Restore, false, "restore-grows", 7),
    (Verb::Restore, false, "restore-reaches-outside", 7),
    (Verb::Restore, false, "restore-soundly", 0),
    (Verb::Delete, false, "delete-traps", 7),
    (Verb::Delete, false, "delete-loops", 7),
    (Verb::Delete, false, "delete-changes-content", 7),
    (Verb::Delete, false, "delete-never-ends", 7),
    (Verb::Delete, false, "delete-says-no-in-colours", 6),
    // It has room for one snapshot, so the new one is written over the old.
    (Verb::Take, true, "replace-overwrites-the-old", 7),
    (Verb::Delete, false, "delete-soundly", 0),
];

/// Those that never end by themselves.
const ENDLESS: [&str; 3] = ["restore-loops", "delete-loops", "delete-never-ends"];

#[test]
fn a_held_slot_stays_held_whatever_it_does() {
    let scratch = tempfile::tempdir().expect("a directory");
    let [engine, hasty] = [PATIENT, HASTY]
        .map(|limit| engine(scratch.path(), component(), confined(), limit).expect("an engine"));
    let content: Vec<u8> =
        (0..2_u32 << 20).map(|i| if i < 512 { 0 } else { (i % 251) as u8 }).collect();
    for (verb, replace, case, exit) in CASES {
        let path = scratch.path().join(format!("{case}.img"));
        std::fs::write(&path, &content).expect("a volume");
        let volume = format!("hostile:{}", path.display());
        engine.operate(&volume, Verb::Take, &Asked::default(), &|_, _, _| ()).expect(case);
        let held = std::fs::read(&path).expect("it");
        let mark = || {
            let machine = engine.store().machine_of(&volume).expect("the record").expect("it");
            machine.occupant.map(|o| o.mark)
        };
        let before = mark();
        assert!(before.is_some(), "{case}");
        let asked = Asked { replace, ..Asked::default() };
        let with = if ENDLESS.contains(&case) { &hasty } else { &engine };
        let result = with.operate(&volume, verb, &asked, &|_, _, _| ());
        let found = result.as_ref().err().map_or(0, |e| e.exit());
        assert_eq!(found, exit, "{case}: {result:?}");
        let now = std::fs::read(&path).expect("it");
        match result {
            Err(error) => {
                is_told(case, &error, path.to_str().expect("text"));
                assert!(now == held, "{case}: the volume changed");
                assert_eq!(mark(), before, "{case}: the slot holds something else");
            }
            Ok(_) if verb == Verb::Restore => assert!(now == held && mark() == before, "{case}"),
            Ok(_) => assert!(now == content && mark().is_none(), "{case}"),
        }
        let names = std::fs::read_dir(scratch.path()).expect("it").flatten();
        let journal =
            names.into_iter().any(|n| n.file_name().to_string_lossy().contains("journal"));
        assert!(!journal, "{case}: a journal is left");
    }
    println!("{} cases", CASES.len());
}

/// What a rehearsal cannot show. It asks the plugin itself where content lies, so one that tells the same
/// lie before and after its plan is believed. It then destroys what it was granted, and nothing else: the
/// slot stays legal, other volumes of the same plugin and everything beside them stay as they are.
#[test]
fn who_lies_alike_before_and_after_harms_its_own_volume_alone() {
    let scratch = tempfile::tempdir().expect("a directory");
    let engine = engine(scratch.path(), component(), confined(), PATIENT).expect("an engine");
    let content: Vec<u8> = (0..1_u32 << 20).map(|i| (i % 251) as u8).collect();
    let volume = |name: &str| {
        let path = scratch.path().join(format!("{name}.img"));
        std::fs::write(&path, &content).expect("a volume");
        path
    };
    let (liar, other) = (volume("extents-claim-nothing"), volume("sound"));
    let named = |path: &std::path::Path| format!("hostile:{}", path.display());
    let done = engine.operate(&named(&liar), Verb::Take, &Asked::default(), &|_, _, _| ());
    assert!(done.is_ok(), "{done:?}");
    let now = std::fs::read(&liar).expect("it");
    assert!(now != content && now.len() == content.len());
    assert!(std::fs::read(&other).expect("it") == content, "another volume changed");
    let status = engine.status(&named(&liar), snapslot_engine::Measure::Wholly).expect("a status");
    assert_eq!(status.slot.word(), "held");
}
