//! Goal: what the program knows of a built-in plugin before it starts it is what the plugin says of
//! itself, and none of them reaches for anything but the contract. Method: each component of the
//! table, loaded by a real engine, side by side with its line.

use std::collections::BTreeSet;

use snapslot_engine::{Depth, Engine, PlaceKind, Settings};

/// What a plugin may import: the contract, and what leads nowhere. A list of this test's own, so
/// that the engine's cannot grow unseen.
const ALLOWED: [&str; 11] = [
    "snapslot:backend/",
    "wasi:cli/environment@",
    "wasi:cli/exit@",
    "wasi:cli/stdin@",
    "wasi:cli/stdout@",
    "wasi:cli/stderr@",
    "wasi:cli/terminal-",
    "wasi:io/error@",
    "wasi:io/poll@",
    "wasi:io/streams@",
    "wasi:random/insecure-seed@",
];

fn engine(scratch: &tempfile::TempDir) -> Engine {
    Engine::open(Settings {
        state_dir: scratch.path().join("state"),
        cache_dir: scratch.path().join("cache"),
        rehearsal: Depth::Full,
        enable_on_take: true,
        more_plugins: Vec::new(),
        plugin_time_max: None,
        confine: snapslot_engine::Confine::Here,
        record: None,
        tools: None,
    })
    .expect("an engine")
}

#[test]
fn the_table_says_what_the_plugins_say() {
    let scratch = tempfile::tempdir().expect("a directory");
    let engine = engine(&scratch);
    let table = snapslot_builtin::PLUGINS;
    let names: Vec<_> = table.iter().map(|b| b.name).collect();
    assert_eq!(names, ["qcow2", "lvm", "zfs", "raw"], "a plugin came or went: say so here");
    let known: Vec<_> = engine.backends().iter().map(|k| k.name.as_str()).collect();
    assert_eq!(known, names, "the engine's list is another");
    let mut endings = BTreeSet::new();
    for (line, known) in table.iter().zip(engine.backends()) {
        let plugin = engine.plugin(line.name).expect("a plugin that loads");
        let says = plugin.description();
        assert_eq!(says.name, line.name);
        assert_eq!(says.place.word(), line.place, "{}: what kind of place", line.name);
        assert_eq!(says.endings, line.endings, "{}: endings", line.name);
        // The engine reads the table's word for itself: a word it does not know must not pass.
        let word = match known.place {
            PlaceKind::Image => "image",
            PlaceKind::LvmVolume => "lvm-volume",
            PlaceKind::ZfsDataset => "zfs-dataset",
            PlaceKind::Directory => "directory",
        };
        assert_eq!(word, line.place, "{}: as the engine reads it", line.name);
        assert_eq!(known.endings, line.endings, "{}: as the engine knows them", line.name);
        for ending in line.endings {
            assert!(endings.insert(*ending), "{ending} is that of two plugins");
        }
    }
}

#[test]
fn no_plugin_imports_more_than_the_contract() {
    let scratch = tempfile::tempdir().expect("a directory");
    let engine = engine(&scratch);
    for line in snapslot_builtin::PLUGINS {
        let plugin = engine.plugin(line.name).expect("a plugin that loads");
        let imports = plugin.imports();
        for import in imports {
            let allowed = ALLOWED.iter().any(|a| import.starts_with(a));
            assert!(allowed, "{} imports {import}", line.name);
        }
        let contract = imports.iter().any(|i| i.starts_with("snapslot:backend/"));
        assert!(contract, "{}: the list is not that of a plugin: {imports:?}", line.name);
    }
}
