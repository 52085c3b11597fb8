//! What it does to files, when it is asked to fill an empty slot, to measure and to compare.

use snapslot_engine::content::Watch;
use snapslot_engine::{Asked, Confine, Measure, Verb};

use crate::{BRISK, HASTY, PATIENT, component, confined, engine, is_told};

/// What it does, and the exit code it is worth: 7, unless it gave up with a word of the contract.
const CASES: [(&str, u8); 85] = [
    ("inspect-traps", 7),
    ("inspect-loops", 7),
    ("inspect-recurses", 7),
    ("inspect-eats-memory", 7),
    ("inspect-blames-itself", 7),
    ("inspect-hoards-handles", 7),
    ("inspect-reads-outside", 7),
    ("inspect-reads-four-gibibytes", 7),
    ("inspect-reads-too-many-ranges", 7),
    ("inspect-reads-too-much-in-ranges", 7),
    ("inspect-wants-the-backing-file", 7),
    ("inspect-wants-copies", 7),
    ("inspect-wants-to-know-what-a-copy-costs", 7),
    ("inspect-forges-a-handle", 7),
    ("inspect-uses-the-volume-as-an-image", 7),
    ("inspect-drops-a-handle-twice", 7),
    ("inspect-uses-a-dropped-handle", 7),
    ("inspect-complains-for-ever", 6),
    ("inspect-gives-a-million-figures", 6),
    ("inspect-asks", 7),
    ("inspect-makes-a-million-handles", 7),
    ("inspect-keeps-a-handle", 0),
    ("inspect-reads-for-ever", 7),
    ("inspect-asks-the-size-for-ever", 7),
    ("inspect-prints-for-ever", 7),
    ("inspect-exits", 7),
    ("facts-that-grow-with-the-mark", 7),
    ("facts-that-lose-others-with-the-mark", 7),
    ("facts-that-block-with-the-mark", 7),
    ("facts-of-an-endless-disk", 7),
    ("facts-that-deceive", 7),
    ("facts-too-many-snapshots", 7),
    ("facts-too-many-findings", 7),
    ("facts-of-a-huge-disk", 7),
    ("facts-with-a-long-identity", 7),
    ("facts-with-an-identity-in-colours", 7),
    ("facts-with-a-mark-that-is-none", 7),
    ("facts-with-one-mark-twice", 3),
    ("facts-that-block-in-colours", 6),
    ("facts-that-are-half-done-for-ever", 7),
    ("plan-traps", 7),
    ("plan-loops", 7),
    ("plan-does-nothing", 7),
    ("plan-changes-content", 7),
    ("plan-fills-content", 7),
    ("plan-changes-all-at-once", 7),
    ("plan-reaches-outside", 7),
    ("plan-overflows", 7),
    ("plan-overlaps", 7),
    ("plan-grows", 7),
    ("plan-has-no-seal", 7),
    ("plan-lies-about-its-seal", 7),
    ("plan-seals-twice", 7),
    ("plan-seals-nothing", 7),
    ("plan-never-ends", 7),
    ("plan-masks-unaligned", 7),
    ("plan-masks-past-everything", 7),
    ("plan-masks-by-a-stride-of-none", 7),
    ("plan-masks-no-words", 7),
    ("plan-chooses-words-that-are-not-there", 7),
    ("plan-fills-with-nothing", 7),
    ("plan-fills-with-too-much", 7),
    ("plan-fills-a-part-of-a-pattern", 7),
    ("plan-fills-past-everything", 7),
    ("plan-names-another-snapshot", 7),
    ("plan-saves-a-copy", 7),
    ("plan-puts-back-a-copy", 7),
    ("plan-removes-a-copy", 7),
    ("plan-talks-for-ever", 7),
    ("plan-blames-itself", 7),
    ("plan-says-no-in-colours", 6),
    ("plan-acts", 7),
    ("plan-floods-the-log", 7),
    ("extents-overlap", 7),
    ("extents-never-end", 7),
    ("extents-trap", 7),
    ("extents-loop", 7),
    ("extents-end-early", 7),
    ("extents-of-another-move", 7),
    ("extents-of-no-length", 7),
    ("extents-go-back", 7),
    ("extents-without-end", 7),
    ("sound-and-talkative", 0),
    ("sound", 0),
    ("also-sound", 0),
];

/// Those that never end by themselves.
const ENDLESS: [&str; 7] = [
    "inspect-loops",
    "inspect-reads-for-ever",
    "inspect-asks-the-size-for-ever",
    "inspect-prints-for-ever",
    "plan-loops",
    "plan-never-ends",
    "extents-loop",
];

#[test]
fn nothing_a_plugin_does_harms() {
    harmless(Confine::Here);
}

#[test]
fn nor_where_it_is_confined() {
    harmless(confined());
}

fn harmless(confine: Confine) {
    let scratch = tempfile::tempdir().expect("a directory");
    let [engine, hasty, brisk] = [PATIENT, HASTY, BRISK].map(|limit| {
        engine(scratch.path(), component(), confine.clone(), limit).expect("an engine")
    });
    let content: Vec<u8> =
        (0..2_u32 << 20).map(|i| if i < 512 { 0 } else { (i % 251) as u8 }).collect();
    for (case, exit) in CASES {
        let path = scratch.path().join(format!("{case}.img"));
        std::fs::write(&path, &content).expect("a volume");
        let volume = format!("hostile:{}", path.display());
        let with = if ENDLESS.contains(&case) { &hasty } else { &engine };
        let result = with.operate(&volume, Verb::Take, &Asked::default(), &|_, _, _| ());
        let found = result.as_ref().err().map_or(0, |e| e.exit());
        assert_eq!(found, exit, "{case}: {result:?}");
        let now = std::fs::read(&path).expect("the volume");
        if let Err(error) = result {
            is_told(case, &error, path.to_str().expect("text"));
            assert!(now == content, "{case}: the volume changed");
            let machine = engine.store().machine_of(&volume).expect("the record");
            assert!(machine.is_none_or(|m| m.occupant.is_none()), "{case}: the slot is held");
        } else {
            assert!(now[..4] == *b"SNAP" && now[512..] == content[512..], "{case}");
        }
        let names: Vec<_> = std::fs::read_dir(scratch.path()).expect("it").flatten().collect();
        let journal = names.iter().any(|n| n.file_name().to_string_lossy().contains("journal"));
        assert!(!journal, "{case}: a journal is left");
    }
    // What only measuring does wrong leaves out the figures and no more.
    for case in ["measure-traps", "measure-loops"] {
        let path = scratch.path().join(format!("{case}.img"));
        std::fs::write(&path, &content).expect("a volume");
        let volume = format!("hostile:{}", path.display());
        engine.operate(&volume, Verb::Take, &Asked::default(), &|_, _, _| ()).expect(case);
        let with = if case == "measure-loops" { &brisk } else { &engine };
        let status = with.status(&volume, Measure::Wholly).expect(case);
        assert_eq!((status.slot.word(), status.volumes[0].changed_bytes), ("held", None), "{case}");
    }
    // A list of what changed that is none.
    let wrong = [
        "differences-trap",
        "differences-loop",
        "differences-of-no-length",
        "differences-overflow",
        "differences-go-back",
        "differences-never-end",
        "differences-without-end",
    ];
    for case in wrong {
        let path = scratch.path().join(format!("{case}.img"));
        std::fs::write(&path, &content).expect("a volume");
        let volume = format!("hostile:{}", path.display());
        engine.operate(&volume, Verb::Take, &Asked::default(), &|_, _, _| ()).expect(case);
        let held = std::fs::read(&path).expect("it");
        let with = if case == "differences-loop" { &hasty } else { &engine };
        let error = with.diff(&volume, false, &[], &Watch::NONE).expect_err(case);
        assert_eq!(error.exit(), 7, "{case}: {error}");
        assert!(error.to_string().contains("hostile"), "{case}: which plugin? {error}");
        assert!(std::fs::read(&path).expect("it") == held, "{case}: the volume changed");
    }
    println!("{} cases", CASES.len() + 2 + wrong.len());
}
