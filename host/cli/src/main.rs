//! `snapslot`: one snapshot slot for every virtual machine disk.

mod args;
mod ask;
mod commands;
mod output;
mod progress;
mod words;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // `snapslot list | head` ends quietly, as other tools do, not with a panic.
    reset_broken_pipe();
    let args = match args::Args::try_parse() {
        Ok(args) => args,
        Err(error) => return output::usage(&error),
    };
    output::start_log(args.common.verbose, args.common.color);
    commands::run(args)
}

fn reset_broken_pipe() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: no other thread runs yet, and the default disposition runs no code of ours.
    let _ = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
}
