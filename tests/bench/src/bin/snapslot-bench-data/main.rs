//! Measures the data plane in one run: exports against `qemu-img convert` and `cp`, a served disk against
//! `qemu-nbd` and `nbdkit`, first writes with a snapshot held against QEMU's copy-before-write and nbdkit's cow
//! filter, a diff of a large disk; and what the machine itself allows.
//!
//! Who is measured takes turns within each round, medians are printed, and each of ours as a ratio to the best peer
//! and to the limit. A missed target is no failure. Needs qemu-utils, nbdkit and fio; what is missing is said and left out.

mod bench;
mod diff;
mod exports;
mod first_writes;
mod limits;
mod served;
mod table;

use std::error::Error;
use std::process::ExitCode;

use bench::Bench;

type Outcome<T> = Result<T, Box<dyn Error>>;

const HELP: &str = "\
Measures exports, a served disk, first writes with a snapshot held, and a diff.

Usage: snapslot-bench-data [limits | export | share | serve | first-writes | diff]... [OPTIONS]

  --rounds N    rounds of each [default: 7]
  --seconds N   seconds of each load on a served disk [default: 3]
  --mib N       size of what is exported, MiB [default: 1024]
  --dir DIR     where files are made and removed [default: the temporary directory]
  --smoke       tiny: that the bench works, not how fast anything is";

const PARTS: [&str; 6] = ["limits", "export", "share", "serve", "first-writes", "diff"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let (mut parts, mut rounds, mut seconds, mut mib) = (Vec::new(), 7, 3, 1024);
    let mut parent = std::env::temp_dir();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--help" | "-h" => {
                println!("{HELP}");
                return Ok(());
            }
            "--rounds" => rounds = value()?.parse()?,
            "--seconds" => seconds = value()?.parse()?,
            "--mib" => mib = value()?.parse()?,
            "--dir" => parent = value()?.into(),
            "--smoke" => (rounds, seconds, mib) = (1, 1, 32),
            part if PARTS.contains(&part) => parts.push(word),
            _ => return Err(format!("{word}: no such part or option; see --help").into()),
        }
    }
    if parts.is_empty() {
        parts = PARTS.map(str::to_owned).to_vec();
    }
    let snapslot = std::env::current_exe()?.with_file_name("snapslot");
    if !snapslot.is_file() {
        return Err(
            "there is no snapslot beside this binary: build it with `cargo build --release`".into(),
        );
    }
    let dir = tempfile::Builder::new().prefix("snapslot-bench-").tempdir_in(&parent)?;
    let bench = Bench { snapslot, dir: dir.path().to_path_buf(), rounds, seconds, mib };
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("Load when it began: {}", load.trim());
    for part in parts {
        match part.as_str() {
            "limits" => limits::measure(&bench)?,
            "export" => exports::measure(&bench)?,
            "share" => exports::measure_sharing(&bench)?,
            "serve" => served::measure(&bench)?,
            "first-writes" => first_writes::measure(&bench)?,
            _ => diff::measure(&bench)?,
        }
    }
    Ok(())
}
