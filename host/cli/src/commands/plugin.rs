//! Plugins: those there are, what they may do, adding and removing them.

mod install;
mod show;
mod words;

use std::process::ExitCode;

use snapslot_engine::Engine;

use crate::args::PluginCommand;
use crate::output::{Failed, Output};

pub fn run(engine: &Engine, output: Output, command: &PluginCommand) -> Result<ExitCode, Failed> {
    match command {
        PluginCommand::List => show::list(engine, output),
        PluginCommand::Show { name } => show::show(engine, output, name),
        PluginCommand::Add { file, without, yes, dry_run } => {
            install::add(engine, output, file, without, *yes, *dry_run)
        }
        PluginCommand::Remove { name, yes } => install::remove(engine, output, name, *yes),
        PluginCommand::Verify { name } => install::verify(engine, output, name.as_deref()),
    }
}
