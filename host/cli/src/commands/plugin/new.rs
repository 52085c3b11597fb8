//! A new plugin's project: small, whole, and built with plain cargo.
//!
//! The SDK and the contract it speaks are written into the project, exactly as this program was built
//! with, so that a project needs nothing but the public registry, and goes on building when this
//! program is replaced. `snapslot/` in it is not edited; a later release's `plugin new` gives the next.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use serde_json::json;

use crate::args::NewPlace;
use crate::output::{Failed, Output};
use crate::words::quoted;

macro_rules! of_tree {
    ($path:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../", $path))
    };
}

/// The SDK and the contract, by their path below `snapslot/`.
const SDK: [(&str, &str); 7] = [
    ("wit/backend/backend.wit", of_tree!("wit/backend/backend.wit")),
    ("plugins/sdk/src/lib.rs", of_tree!("plugins/sdk/src/lib.rs")),
    ("plugins/sdk/src/stretches.rs", of_tree!("plugins/sdk/src/stretches.rs")),
    ("plugins/sdk/src/guest.rs", of_tree!("plugins/sdk/src/guest.rs")),
    ("plugins/sdk/src/copies.rs", of_tree!("plugins/sdk/src/copies.rs")),
    ("plugins/sdk/src/declared.rs", of_tree!("plugins/sdk/src/declared.rs")),
    ("plugins/sdk/src/double.rs", of_tree!("plugins/sdk/src/double.rs")),
];

/// The version of `wit-bindgen` that the SDK was tested with.
const SDK_MANIFEST: &str = r#"# The SDK of the program that made this project. Not to be edited.
[package]
name = "snapslot-plugin-sdk"
version = "@VERSION@"
edition = "2024"
license = "Apache-2.0 OR MIT"
publish = false

[dependencies]
wit-bindgen = { version = "0.61", default-features = false, features = ["macros", "realloc"] }
"#;

const MANIFEST: &str = r#"[package]
name = "@NAME@"
version = "0.1.0"
edition = "2024"
publish = false

[lib]
# The component, and the same code for tests on this machine.
crate-type = ["cdylib", "rlib"]

[dependencies]
snapslot-plugin-sdk = { path = "snapslot/plugins/sdk" }

[profile.release]
lto = true
# Names of functions in a backtrace cost size: leave this out while you look for a fault.
strip = true
panic = "abort"

[workspace]
"#;

pub fn new(
    output: Output,
    name: &str,
    place: NewPlace,
    directory: Option<&Path>,
) -> Result<ExitCode, Failed> {
    let name_ok = (1..=32).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !name_ok {
        return Err(snapslot_engine::EngineError::Usage(format!(
            "{name:?} cannot be a plugin's name: 1 to 32 of a-z, 0-9 and -, beginning with a letter"
        ))
        .into());
    }
    let root = directory.map_or_else(|| PathBuf::from(name), Path::to_owned);
    if root.symlink_metadata().is_ok() {
        return Err(snapslot_engine::EngineError::Usage(format!(
            "{} is there already; nothing was written",
            root.display()
        ))
        .into());
    }
    let files = project(name, place);
    // Beside, and renamed when it is whole: half a project would only puzzle.
    let beside = root.with_extension("part");
    let written = files.iter().try_for_each(|(path, text)| write(&beside.join(path), text));
    let done = written.and_then(|()| {
        fs::rename(&beside, &root).with_context(|| format!("cannot make {}", root.display()))
    });
    if let Err(error) = done {
        let _ = fs::remove_dir_all(&beside);
        return Err(error.into());
    }
    let component = format!("target/wasm32-wasip2/release/{}.wasm", name.replace('-', "_"));
    let words = format!(
        "Made the plugin {name} in {root}.\n\
         \x20 cd {root}\n\
         \x20 cargo test                                            # its planner, on this machine\n\
         \x20 rustup target add wasm32-wasip2                       # once\n\
         \x20 cargo build --release --target wasm32-wasip2          # the component\n\
         \x20 snapslot plugin check {component}\n\
         \x20 snapslot plugin test {component}\n\
         \x20 snapslot plugin add {component}\n",
        root = quoted(&root.display().to_string()),
    );
    let names: Vec<&str> = files.iter().map(|(path, _)| path.as_str()).collect();
    output.done(
        json!({ "name": name, "directory": root, "component": component, "files": names }),
        &words,
    );
    Ok(ExitCode::SUCCESS)
}

/// Every file of the project.
fn project(name: &str, place: NewPlace) -> Vec<(String, String)> {
    let fill = |text: &str| {
        let kind: String = name.split('-').map(capitalised).collect();
        text.replace("@NAME@", name)
            .replace("@TYPE@", &kind)
            .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
    };
    let source = match place {
        NewPlace::Image => include_str!("new/image.rs.txt"),
        NewPlace::ZfsDataset => include_str!("new/zfs.rs.txt"),
    };
    let mut files: Vec<(String, String)> = [
        ("Cargo.toml", MANIFEST),
        (".gitignore", "/target\n"),
        ("README.md", include_str!("new/readme.md.txt")),
        ("src/lib.rs", source),
        ("snapslot/plugins/sdk/Cargo.toml", SDK_MANIFEST),
    ]
    .map(|(path, text)| (path.to_owned(), fill(text)))
    .to_vec();
    files.extend(SDK.iter().map(|(path, text)| (format!("snapslot/{path}"), (*text).to_owned())));
    files
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let parent = path.parent().ok_or_else(|| anyhow!("{} has no directory", path.display()))?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
