//! Where things are kept if nobody says: the system's directories for root, XDG's for others.

use std::path::PathBuf;

use anyhow::{Context, anyhow};

pub fn state() -> anyhow::Result<PathBuf> {
    choose("/var/lib", "XDG_STATE_HOME", ".local/state")
}

pub fn cache() -> anyhow::Result<PathBuf> {
    choose("/var/cache", "XDG_CACHE_HOME", ".cache")
}

fn choose(system: &str, variable: &str, beneath_home: &str) -> anyhow::Result<PathBuf> {
    if nix::unistd::Uid::effective().is_root() {
        return Ok(PathBuf::from(system).join("snapslot"));
    }
    let given = std::env::var_os(variable).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = match given {
        Some(given) => given,
        None => std::env::var_os("HOME")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
            .ok_or_else(|| anyhow!("neither {variable} nor HOME is set"))
            .context("say where to keep things with --state-dir and --cache-dir")?
            .join(beneath_home),
    };
    Ok(base.join("snapslot"))
}
