//! Goal: whatever a plugin does, the engine lives, no byte of the volume changes, the slot stays
//! legal, and the error names the plugin and the cause. Method: one component that misbehaves as the
//! volume's name or the number of its description tells it (`tests/hostile`), in a real engine, on real
//! files and on modelled ZFS; `sound` shows that the same plugin can also succeed.

mod commands;
mod components;
mod descriptions;
mod held;
mod images;
mod replaced;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use snapslot_engine::{
    Confine, Depth, Engine, EngineError, Known, PLUGINS_ARGUMENT, PlaceKind, Settings, Tools,
    serve_plugins,
};

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

/// The component with another number of its description.
fn numbered(number: usize) -> Vec<u8> {
    let mut changed = component();
    let marker = b"@@hostile-description:00";
    let at = changed.windows(marker.len()).position(|w| w == marker).expect("the marker");
    let digits = format!("{number:02}");
    changed[at + marker.len() - 2..at + marker.len()].copy_from_slice(digits.as_bytes());
    changed
}

/// How long a call may compute: the product's own limit, so that a busy machine changes no verdict.
const PATIENT: Option<Duration> = None;
/// Where a call never ends by itself.
const HASTY: Option<Duration> = Some(Duration::from_millis(500));
/// Where one call never ends, and others have to end well before it.
const BRISK: Option<Duration> = Some(Duration::from_secs(2));

/// An engine with this component as the plugin `hostile`.
fn engine(
    scratch: &Path,
    component: Vec<u8>,
    confine: Confine,
    limit: Option<Duration>,
) -> Result<Engine, EngineError> {
    opened(scratch, component, PlaceKind::Image, confine, limit, None)
}

fn opened(
    scratch: &Path,
    component: Vec<u8>,
    place: PlaceKind,
    confine: Confine,
    limit: Option<Duration>,
    tools: Option<Tools>,
) -> Result<Engine, EngineError> {
    let known = Known { name: "hostile".to_owned(), place, endings: Vec::new() };
    Engine::open(Settings {
        state_dir: scratch.join("state"),
        cache_dir: scratch.join("cache"),
        rehearsal: Depth::Full,
        enable_on_take: true,
        more_plugins: vec![(known, component)],
        plugin_time_max: limit,
        confine,
        record: None,
        tools,
    })
}

/// What an error must be, whatever happened: of the plugin, fit for a terminal, and short.
#[track_caller]
fn is_told(case: &str, error: &EngineError, volume: &str) {
    let text = error.to_string();
    println!("{case}: {}", text.chars().take(300).collect::<String>());
    assert!(text.contains(volume), "{case}: which volume? {text}");
    let unfit = |c: char| c.is_control() || ('\u{200b}'..='\u{202e}').contains(&c);
    assert!(!text.chars().any(unfit), "{case}: {text:?}");
    assert!(text.len() < 10_000, "{case}: {} bytes of error", text.len());
    assert!(!error.data().to_string().contains('\u{1b}'), "{case}: {}", error.data());
    if error.exit() == 7 {
        assert!(text.contains("hostile "), "{case}: which plugin? {text}");
    }
}
