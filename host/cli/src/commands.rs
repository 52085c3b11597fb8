//! What each verb does and says.

mod content;
mod directories;
mod looking;
mod open;
mod plugin;
mod slot;

use std::mem::ManuallyDrop;
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory;
use serde_json::json;
use snapslot_engine::{Asked, Confine, Depth, Engine, EngineError, Import, Settings};

use crate::args::{self, Args, Command, Common, PluginCommand, Rehearse};
use crate::output::{Failed, Output};

/// This program, even if another one has taken its name meanwhile.
const OURSELVES: &str = "/proc/self/exe";

/// Verbs that ask plugins, and are waited for by people and scripts.
const ASKING: [&str; 7] = ["take", "status", "restore", "delete", "export", "diff", "check"];

/// Starts the process for plugins, before arguments are understood, where they look as if it will be needed.
pub fn start_early() {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let is = |word: &str| words.iter().any(|w| w == word);
    let within = std::env::var_os("SNAPSLOT_CONFINE").is_some_and(|w| w == "never");
    if ASKING.into_iter().any(is) && !within && !is("never") && !is("--confine=never") {
        snapslot_engine::start_plugins_early(std::path::Path::new(OURSELVES));
    }
}

pub fn run(args: Args) -> ExitCode {
    let output = Output::new(args.common.json, args.command.verb(), args.common.color);
    match dispatch(args, output) {
        Ok(code) => code,
        Err(failed) => output.failed(&failed),
    }
}

fn dispatch(args: Args, output: Output) -> Result<ExitCode, Failed> {
    match &args.command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "snapslot", &mut script);
            let script = String::from_utf8_lossy(&script);
            output.done(json!({ "script": script }), &script);
            return Ok(ExitCode::SUCCESS);
        }
        Command::Man { dir } => return manual(dir.as_deref(), output),
        Command::Plugin { command: PluginCommand::New { name, place, dir } } => {
            return plugin::new(output, name, *place, dir.as_deref());
        }
        _ => {}
    }
    // Never dropped: the process ends with it, and the system clears up faster.
    let engine = Engine::open_for(settings(&args)?, asked_about(&args.command))?;
    let engine = ManuallyDrop::new(engine.for_one_command());
    // But for the process that runs plugins: in a container nobody else may take note of its end.
    let _ended = EndPlugins(&engine);
    match args.command {
        Command::Enable { name, volumes } => slot::enable(&engine, output, &name, &volumes),
        Command::Disable { machine } => slot::disable(&engine, output, &machine),
        Command::Take { machine, note, replace, dry_run, store_size, full_copy, .. } => {
            let asked =
                Asked { note, replace, dry_run, room: store_size, full_copy, ..Asked::default() };
            slot::take(&engine, output, &machine, &asked)
        }
        Command::Restore {
            machine, yes, from: Some(from), backing, full_copy, dry_run, ..
        } => {
            let wanted = Import { from: &from, backing: &backing, full_copy, dry_run };
            content::import(&engine, output, &machine, &wanted, yes)
        }
        Command::Restore { machine, yes, consume, dry_run, .. } => {
            slot::restore(&engine, output, &machine, yes, consume, dry_run)
        }
        Command::Delete { machine, yes, dry_run } => {
            slot::delete(&engine, output, &machine, yes, dry_run)
        }
        Command::Recover { machine } => slot::recover(&engine, output, machine.as_deref()),
        Command::Export(args) => content::export(&engine, output, &args),
        Command::Serve(args) => open::serve_live(&engine, output, &args),
        Command::Open(args) => open::open(&engine, output, &args),
        Command::Diff { machine, content, backing } => {
            content::diff(&engine, output, &machine, content, &backing)
        }
        Command::Status { machine } => looking::status(&engine, output, &machine),
        Command::List => looking::list(&engine, output),
        Command::Check { machine } => looking::check(&engine, output, machine.as_deref()),
        Command::History { machine, limit } => {
            looking::history(&engine, output, machine.as_deref(), limit)
        }
        Command::Plugin { command } => plugin::run(&engine, output, &command),
        Command::Completions { .. } | Command::Man { .. } => Ok(ExitCode::SUCCESS),
    }
}

/// Ends the process that runs plugins when a command is done.
struct EndPlugins<'e>(&'e Engine);

impl Drop for EndPlugins<'_> {
    fn drop(&mut self) {
        self.0.end_plugins();
    }
}

/// The machine that was named, or all there are.
fn named_or_all(engine: &Engine, machine: Option<&str>) -> Result<Vec<String>, Failed> {
    if let Some(name) = machine {
        return Ok(vec![name.to_owned()]);
    }
    let all = engine.store().machines().map_err(EngineError::from)?;
    Ok(all.into_iter().map(|m| m.name).collect())
}

fn settings(args: &Args) -> Result<Settings, Failed> {
    let Common { state_dir, cache_dir, rehearse, .. } = &args.common;
    let no_enable = matches!(args.command, Command::Take { no_enable: true, .. });
    Ok(Settings {
        state_dir: state_dir.clone().map_or_else(directories::state, Ok)?,
        cache_dir: cache_dir.clone().map_or_else(directories::cache, Ok)?,
        rehearsal: match rehearse {
            Rehearse::Bounded => Depth::Bounded,
            Rehearse::Full => Depth::Full,
        },
        enable_on_take: !no_enable,
        more_plugins: Vec::new(),
        plugin_time_max: None,
        confine: match args.common.confine {
            args::Confine::Always => Confine::Strictly(OURSELVES.into()),
            // What nobody approved yet runs in a process of its own, or not at all.
            _ if is_of_strangers(&args.command) => Confine::Separately(OURSELVES.into()),
            args::Confine::Auto => Confine::Apart(OURSELVES.into()),
            args::Confine::Never => Confine::Here,
        },
        record: args.common.record.clone(),
        tools: None,
    })
}

/// The machine whose plugins a command will ask first.
fn asked_about(command: &Command) -> Option<&str> {
    match command {
        Command::Take { machine, .. }
        | Command::Restore { machine, .. }
        | Command::Delete { machine, .. }
        | Command::Status { machine }
        | Command::Diff { machine, .. } => Some(machine),
        _ => None,
    }
}

fn is_of_strangers(command: &Command) -> bool {
    use PluginCommand::{Add, Check, Replay, Test};
    let of_file = |c: &PluginCommand| matches!(c, Add(_) | Check { .. } | Replay { .. } | Test(_));
    matches!(command, Command::Plugin { command } if of_file(command))
}

fn manual(dir: Option<&std::path::Path>, output: Output) -> Result<ExitCode, Failed> {
    let command = Args::command();
    if let Some(dir) = dir {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        clap_mangen::generate_to(command, dir)
            .with_context(|| format!("cannot write manual pages to {}", dir.display()))?;
        let words = format!("Wrote the manual pages to {}.\n", dir.display());
        output.done(json!({ "directory": dir }), &words);
        return Ok(ExitCode::SUCCESS);
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).context("cannot render the manual page")?;
    let page = String::from_utf8_lossy(&page);
    output.done(json!({ "page": page }), &page);
    Ok(ExitCode::SUCCESS)
}
