//! `snapslot`: one snapshot slot for every virtual machine disk.

mod args;
mod ask;
mod commands;
mod output;
mod progress;
mod stop;
mod words;

use std::process::ExitCode;

use clap::Parser;
use nix::sys::signal::{SigHandler, Signal, signal};

fn main() -> ExitCode {
    // Started by ourselves as the process that runs plugins.
    if std::env::args_os().nth(1).is_some_and(|a| a == snapslot_engine::PLUGINS_ARGUMENT) {
        snapslot_engine::serve_plugins();
    }
    // `snapslot list | head` ends quietly, as other tools do, not with a panic.
    reset_broken_pipe();
    commands::start_early();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return output::usage(&error),
    };
    if args.command.outlives_its_reader() {
        // SAFETY: no other thread runs yet, and to ignore a signal runs no code of ours.
        let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) };
    }
    output::start_log(args.common.verbose, args.command.is_noisy(), args.common.color);
    commands::run(args)
}

fn reset_broken_pipe() {
    // SAFETY: no other thread runs yet, and the default disposition runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}
