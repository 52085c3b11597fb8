//! Goal: whatever a plugin does, the engine lives, no byte of the volume changes, the slot stays
//! legal, and the error names the plugin. Method: one component that misbehaves as the volume's
//! name tells it (`tests/hostile`), in a real engine, on real files; `sound` shows that the same
//! plugin can also succeed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use snapslot_engine::{Asked, Depth, Engine, Known, PlaceKind, Settings, Verb};

/// What it does, and the exit code it is worth: 7, unless it gave up with a word of the contract.
const CASES: [(&str, u8); 27] = [
    ("inspect-traps", 7),
    ("inspect-loops", 7),
    ("inspect-recurses", 7),
    ("inspect-eats-memory", 7),
    ("inspect-blames-itself", 7),
    ("inspect-hoards-handles", 7),
    ("inspect-reads-outside", 7),
    ("inspect-wants-the-backing-file", 7),
    ("inspect-asks", 7),
    ("plan-traps", 7),
    ("plan-loops", 7),
    ("plan-does-nothing", 7),
    ("plan-changes-content", 7),
    ("plan-fills-content", 7),
    ("plan-reaches-outside", 7),
    ("plan-overflows", 7),
    ("plan-overlaps", 7),
    ("plan-grows", 7),
    ("plan-has-no-seal", 7),
    ("plan-lies-about-its-seal", 7),
    ("plan-never-ends", 7),
    ("plan-acts", 7),
    ("plan-floods-the-log", 7),
    ("extents-overlap", 7),
    ("extents-never-end", 7),
    ("sound", 0),
    ("also-sound", 0),
];

/// Builds the component, in a target directory of its own.
fn component() -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("hostile");
    let built = Command::new(env!("CARGO"))
        .current_dir(&root)
        .args(["build", "--quiet", "--profile", "plugin", "--target", "wasm32-wasip2"])
        .args(["--package", "snapslot-test-hostile", "--target-dir"])
        .arg(&target)
        .status();
    assert!(built.is_ok_and(|s| s.success()), "the hostile plugin could not be built");
    std::fs::read(target.join("wasm32-wasip2/plugin/snapslot_test_hostile.wasm")).expect("it")
}

fn known() -> Known {
    Known { name: "hostile".to_owned(), place: PlaceKind::Image, endings: Vec::new() }
}

#[test]
fn nothing_a_plugin_does_harms() {
    let scratch = tempfile::tempdir().expect("a directory");
    let engine = Engine::open(Settings {
        state_dir: scratch.path().join("state"),
        cache_dir: scratch.path().join("cache"),
        rehearsal: Depth::Full,
        enable_on_take: true,
        more_plugins: vec![(known(), component())],
        plugin_time_max: Some(Duration::from_millis(500)),
        confine: snapslot_engine::Confine::Here,
        tools: None,
    })
    .expect("an engine");
    let content: Vec<u8> =
        (0..2_u32 << 20).map(|i| if i < 512 { 0 } else { (i % 251) as u8 }).collect();
    for (case, exit) in CASES {
        let path = scratch.path().join(format!("{case}.img"));
        std::fs::write(&path, &content).expect("a volume");
        let volume = format!("hostile:{}", path.display());
        let result = engine.operate(&volume, Verb::Take, &Asked::default(), &|_, _, _| ());
        let found = result.as_ref().err().map_or(0, |e| e.exit());
        assert_eq!(found, exit, "{case}: {result:?}");
        let now = std::fs::read(&path).expect("the volume");
        if let Err(error) = result {
            let text = error.to_string();
            println!("{case}: {text}");
            assert!(text.contains(path.to_str().expect("text")), "{case}: which volume? {text}");
            assert!(!text.chars().any(char::is_control), "{case}: {text:?}");
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
    println!("{} cases", CASES.len());
}
