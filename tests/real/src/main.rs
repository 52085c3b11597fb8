//! The suite that runs inside the guest, as root, with the real `snapslot` and the real tools.
//!
//! ```text
//! snapslot-test-real --list                     scenarios: group, name, what it shows
//! snapslot-test-real --list-quick               those of them that a quick run has
//! snapslot-test-real --run BINARY NAME...       runs scenarios; the exit code says whether all held
//! snapslot-test-real --run-quick BINARY NAME... the same, fewer rounds and verbs where there are many
//! snapslot-test-real --record LIST...           runs command lines and prints transcripts
//! snapslot-test-real --bench BINARY lvm|zfs     the engine against the same commands typed by hand
//! ```
//!
//! It is no `cargo test`: it makes volume groups and pools, and replaces the storage tools by
//! itself to see and stop what the engine runs (see [`tap`]). `tests/real/run` builds it, boots
//! the guest and reads what it prints. Outside that guest it refuses to work.
//!
//! What it prints, a line each, for the reader outside (see [`harness`]):
//!
//! ```text
//! SCENARIO name
//! ok name: check
//! FAILED name: check: why (further lines start with blanks)
//! DONE name CHECKS FAILED SECONDS
//! ```

mod bench;
mod content;
mod harness;
mod lvm;
mod record;
mod scenarios;
mod subject;
mod tap;
mod tools;
mod zfs;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = tap::run_if_tool() {
        return ExitCode::from(code);
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["--list" | "--list-quick"] => {
            let quick = words == ["--list-quick"];
            for scenario in scenarios::ALL {
                if quick && scenarios::NOT_QUICK.contains(&scenario.name) {
                    continue;
                }
                println!("{} {} {}", scenario.group.word(), scenario.name, scenario.shows);
            }
            Ok(true)
        }
        [how @ ("--run" | "--run-quick"), binary, names @ ..] if !names.is_empty() => {
            let quick = *how == "--run-quick";
            inside().and_then(|()| harness::run(Path::new(binary), names, quick))
        }
        ["--record", lists @ ..] if !lists.is_empty() => inside().and_then(|()| record::run(lists)),
        ["--bench", binary, what] => inside().and_then(|()| bench::run(Path::new(binary), what)),
        _ => Err("see the head of main.rs for what it can be asked".to_owned()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("snapslot-test-real: {why}");
            ExitCode::from(2)
        }
    }
}

/// Volume groups and pools of a machine that is not ours must not come to harm.
fn inside() -> Result<(), String> {
    let words = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let ours = words.split_whitespace().any(|w| w.starts_with("job.ram="));
    if ours { Ok(()) } else { Err("this only runs inside the guest of tests/real/run".to_owned()) }
}
