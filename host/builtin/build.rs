//! Builds the built-in plugins for `wasm32-wasip2`, in a target directory of their own, so that
//! one `cargo build` makes everything.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

const PLUGINS: [&str; 4] = ["qcow2", "lvm", "zfs", "raw"];

fn main() {
    let root = PathBuf::from(var("CARGO_MANIFEST_DIR")).join("../..");
    let out = PathBuf::from(var("OUT_DIR")).join("plugins");
    for watched in ["plugins", "wit/backend", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(watched).display());
    }
    for plugin in PLUGINS {
        let package = format!("snapslot-plugin-{plugin}");
        let status = Command::new(var("CARGO"))
            .current_dir(&root)
            .args(["build", "--profile", "plugin", "--target", "wasm32-wasip2", "--package"])
            .arg(&package)
            .arg("--target-dir")
            .arg(&out)
            // Flags meant for the host's own code must not reach the component.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("CLIPPY_ARGS")
            .env("RUSTFLAGS", "-C target-feature=+simd128")
            .status();
        let built = status.is_ok_and(|s| s.success());
        assert!(
            built,
            "the plugin {plugin} could not be built for wasm32-wasip2; \
             `rustup target add wasm32-wasip2` installs the target"
        );
        let file =
            out.join("wasm32-wasip2/plugin").join(format!("{}.wasm", package.replace('-', "_")));
        assert!(Path::new(&file).exists(), "the build made no {}", file.display());
        let name = plugin.to_uppercase();
        println!("cargo:rustc-env=SNAPSLOT_PLUGIN_{name}={}", file.display());
        let bytes = std::fs::read(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        println!("cargo:rustc-env=SNAPSLOT_PLUGIN_{name}_DIGEST={digest}");
    }
}

fn var(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
