//! Goal: whatever a plugin does, the engine lives, no byte of the volume changes, the slot stays
//! legal, and the error names the plugin. Method: one component that misbehaves as the volume's
//! name tells it (`tests/hostile`), in a real engine, on real files; `sound` shows that the same
//! plugin can also succeed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use snapslot_engine::content::Watch;
use snapslot_engine::{
    Asked, Confine, Depth, Engine, EngineError, Known, Measure, PLUGINS_ARGUMENT, PlaceKind,
    Settings, Verb, serve_plugins,
};

/// What it does, and the exit code it is worth: 7, unless it gave up with a word of the contract.
const CASES: [(&str, u8); 71] = [
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
    ("extents-of-no-length", 7),
    ("extents-go-back", 7),
    ("extents-without-end", 7),
    ("sound", 0),
    ("also-sound", 0),
];

/// Descriptions that are refused, by their number in the component.
const DESCRIPTIONS: usize = 31;

/// Builds the component, in a target directory of its own.
fn component() -> Vec<u8> {
    static BUILT: OnceLock<Vec<u8>> = OnceLock::new();
    BUILT.get_or_init(build).clone()
}

fn build() -> Vec<u8> {
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

/// Is the process that runs plugins, where this program was started as that; otherwise nothing.
#[test]
fn __plugins() {
    let told: Vec<String> = std::env::args().skip(1).collect();
    if told == [PLUGINS_ARGUMENT] {
        serve_plugins();
    }
}

fn confined() -> Confine {
    Confine::Apart(std::env::current_exe().expect("this program"))
}

fn engine(scratch: &Path, component: Vec<u8>, confine: Confine) -> Result<Engine, EngineError> {
    Engine::open(Settings {
        state_dir: scratch.join("state"),
        cache_dir: scratch.join("cache"),
        rehearsal: Depth::Full,
        enable_on_take: true,
        more_plugins: vec![(known(), component)],
        plugin_time_max: Some(Duration::from_millis(500)),
        confine,
        record: None,
        tools: None,
    })
}

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
    let engine = engine(scratch.path(), component(), confine).expect("an engine");
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
            println!("{case}: {}", text.chars().take(300).collect::<String>());
            assert!(text.contains(path.to_str().expect("text")), "{case}: which volume? {text}");
            assert!(!text.chars().any(char::is_control), "{case}: {text:?}");
            assert!(text.len() < 10_000, "{case}: {} bytes of error", text.len());
            assert!(!error.data().to_string().contains('\u{1b}'), "{case}: {}", error.data());
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
        let status = engine.status(&volume, Measure::Wholly).expect(case);
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
        let error = engine.diff(&volume, false, &[], &Watch::NONE).expect_err(case);
        assert_eq!(error.exit(), 7, "{case}: {error}");
        assert!(error.to_string().contains("hostile"), "{case}: which plugin? {error}");
        assert!(std::fs::read(&path).expect("it") == held, "{case}: the volume changed");
    }
    println!("{} cases", CASES.len() + 2 + wrong.len());
}

#[test]
fn nothing_a_component_says_of_itself_harms() {
    let sound = component();
    let marker = b"@@hostile-description:00";
    let at = sound.windows(marker.len()).position(|w| w == marker).expect("the marker");
    let scratch = tempfile::tempdir().expect("a directory");
    let path = scratch.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).expect("a volume");
    let volume = format!("hostile:{}", path.display());
    let mut said = Vec::new();
    for number in 0..=DESCRIPTIONS {
        let mut changed = sound.clone();
        let digits = format!("{number:02}");
        changed[at + marker.len() - 2..at + marker.len()].copy_from_slice(digits.as_bytes());
        let engine = engine(scratch.path(), changed, confined()).expect("an engine");
        let result = engine.operate(&volume, Verb::Take, &Asked::default(), &|_, _, _| ());
        match (number, result) {
            // The first, and the one whose recursion ends at once, are sound.
            (0, Ok(_)) => {
                engine
                    .operate(&volume, Verb::Delete, &Asked::default(), &|_, _, _| ())
                    .expect("a delete");
            }
            (0, Err(error)) => panic!("the sound one: {error}"),
            (_, Ok(_)) => panic!("description {number} was accepted"),
            (_, Err(error)) => {
                let text = error.to_string();
                println!("{number}: {}", text.chars().take(300).collect::<String>());
                assert_eq!(error.exit(), 7, "{number}: {text}");
                assert!(text.contains("hostile"), "{number}: which plugin? {text}");
                assert!(!text.chars().any(char::is_control), "{number}: {text:?}");
                said.push(text);
            }
        }
        assert!(std::fs::read(&path).expect("it")[512..].iter().all(|b| *b == 0), "{number}");
    }
    println!("{} descriptions", said.len());
}

#[test]
fn what_is_no_component_of_this_contract_is_refused() {
    let sound = component();
    let replaced = |from: &str, to: &str| {
        assert_eq!(from.len(), to.len());
        let mut bytes = sound.clone();
        let mut any = false;
        for at in 0..bytes.len() - from.len() {
            if bytes[at..at + from.len()] == *from.as_bytes() {
                bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
                any = true;
            }
        }
        assert!(any, "{from} is not in it");
        bytes
    };
    let mut cases = vec![
        ("nothing", Vec::new(), "is empty"),
        ("text", b"(component)".to_vec(), "written as text"),
        ("rubbish", vec![0x5a; 5000], "no WebAssembly"),
        ("a module", b"\0asm\x01\0\0\0".to_vec(), "not a component"),
        ("an empty component", b"\0asm\x0d\0\x01\0".to_vec(), "does not export"),
        ("half of it", sound[..sound.len() / 2].to_vec(), "does not compile"),
        ("all but a byte", sound[..sound.len() - 1].to_vec(), "does not compile"),
        (
            "another version",
            replaced("sight@0.1.0", "sight@0.2.0"),
            "speaks snapslot:backend/sight@0.2.0",
        ),
        ("another backend", replaced("backend/backend@0.1.0", "backend/backend@0.3.0"), "0.3.0"),
        ("another import", replaced("wasi:io/poll@", "wasi:xx/poll@"), "imports wasi:xx/poll"),
        ("another export", replaced("inspect", "inspekt"), ""),
        ("a huge one", vec![0; 65 << 20], "at most 67108864"),
    ];
    let mut noise = 0x1234_5678_9abc_def0_u64;
    for _ in 0..20 {
        let mut bytes = sound.clone();
        for _ in 0..8 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (noise >> 33) as usize % bytes.len().min(4096);
            bytes[at] ^= (noise >> 20) as u8 | 1;
        }
        cases.push(("damaged", bytes, ""));
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let path = scratch.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).expect("a volume");
    let volume = format!("hostile:{}", path.display());
    let count = cases.len();
    for (what, bytes, expected) in cases {
        let engine = engine(scratch.path(), bytes, confined()).expect("an engine");
        let result = engine.status(&volume, Measure::Wholly);
        let Err(error) = result else {
            // Damage may fall where nobody looks.
            assert_eq!(what, "damaged");
            continue;
        };
        let text = error.to_string();
        println!("{what}: {}", text.chars().take(200).collect::<String>());
        assert!(text.contains(expected), "{what}: {text}");
        assert!(error.exit() == 7 && !text.chars().any(char::is_control), "{what}: {text:?}");
        assert!(std::fs::read(&path).expect("it").iter().all(|b| *b == 0), "{what}");
    }
    println!("{count} components");
}
