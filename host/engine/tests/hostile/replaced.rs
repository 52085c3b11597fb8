//! Components that are replaced and removed while engines are at work.

use snapslot_engine::{Confine, Depth, Engine, Settings};

use crate::{component, confined};

fn installed_engine(scratch: &std::path::Path, confine: Confine) -> Engine {
    Engine::open(Settings {
        state_dir: scratch.join("state"),
        cache_dir: scratch.join("cache"),
        rehearsal: Depth::Full,
        enable_on_take: true,
        more_plugins: Vec::new(),
        plugin_time_max: None,
        confine,
        record: None,
        tools: None,
    })
    .expect("an engine")
}

/// Story: an engine read the list of plugins when it was opened and the component when it needed it.
/// When another process had put a later version in its place meanwhile, the old component was gone, and the
/// command failed with `cannot open`.
#[test]
fn a_version_that_came_meanwhile_is_used() {
    let scratch = tempfile::tempdir().expect("a directory");
    let install = |bytes: &[u8]| {
        let file = scratch.path().join("hostile.wasm");
        std::fs::write(&file, bytes).expect("written");
        let engine = installed_engine(scratch.path(), confined());
        let candidate = engine.consider(&file).expect("a candidate");
        engine.install(candidate, &[]).expect("installed").digest
    };
    let first = install(&component());
    let engine = installed_engine(scratch.path(), confined());
    assert_eq!(engine.plugin("hostile").expect("it").digest(), first);
    // A custom section at the end: another component that does the same.
    let later = [component(), vec![0, 3, 1, b'n', 7]].concat();
    let second = install(&later);
    assert_ne!(first, second);
    assert_eq!(engine.plugin("hostile").expect("the later one").digest(), second);
    // Removed, it is gone, and so is its compiled code.
    let compiled = |digest: &str| {
        let cache = std::fs::read_dir(scratch.path().join("cache")).expect("it").flatten();
        cache.into_iter().filter(|e| e.file_name().to_string_lossy().starts_with(digest)).count()
    };
    assert_eq!(compiled(&second), 1);
    installed_engine(scratch.path(), confined()).uninstall("hostile").expect("removed");
    assert_eq!(compiled(&second), 0);
    assert!(engine.plugin("hostile").is_err());
}
