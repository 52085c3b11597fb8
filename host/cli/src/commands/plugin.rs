//! Plugins: those there are, what they may do, adding and removing them.

mod check;
mod install;
mod new;
mod replay;
mod show;
mod test;
mod words;

use std::process::ExitCode;

use snapslot_engine::Engine;

use crate::args::PluginCommand;
use crate::output::{Failed, Output};

pub use new::new;

/// The exit code where a plugin is at fault.
const AT_FAULT: u8 = 7;

/// The component of a built-in or installed plugin, and whether it is built in; none if none has this
/// name.
fn component_here(engine: &Engine, name: &str) -> Result<Option<(Vec<u8>, bool)>, Failed> {
    if let Some(bytes) = engine.built_in(name) {
        return Ok(Some((bytes.to_vec(), true)));
    }
    match engine.installed()?.iter().find(|p| p.name == name) {
        Some(plugin) => Ok(Some((engine.installed_component(plugin)?, false))),
        None => Ok(None),
    }
}

/// The same, or the component of a file that a person named.
fn component(engine: &Engine, text: &str) -> Result<(Vec<u8>, bool), Failed> {
    match component_here(engine, text)? {
        Some(found) => Ok(found),
        None => Ok((snapslot_engine::read_component(std::path::Path::new(text))?, false)),
    }
}

pub fn run(engine: &Engine, output: Output, command: &PluginCommand) -> Result<ExitCode, Failed> {
    match command {
        PluginCommand::List => show::list(engine, output),
        PluginCommand::Show { name } => show::show(engine, output, name),
        PluginCommand::Add(args) => install::add(engine, output, args),
        PluginCommand::Remove { name, yes } => install::remove(engine, output, name, *yes),
        PluginCommand::Check { file } => check::check(engine, output, file),
        PluginCommand::Replay { file, plugin } => {
            replay::replay(engine, output, file, plugin.as_deref())
        }
        PluginCommand::Test(args) => {
            let (cache_dir, confine) = (engine.cache_dir().to_owned(), engine.confine().clone());
            test::test(engine, output, args, cache_dir, confine)
        }
        // Needs no engine.
        PluginCommand::New { name, place, dir } => new(output, name, *place, dir.as_deref()),
        PluginCommand::Verify { name } => install::verify(engine, output, name.as_deref()),
    }
}
