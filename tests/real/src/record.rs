//! Runs lists of command lines and prints what the real tools say: the transcripts that the
//! models in memory are held against.
//!
//! A list is text; a line is one of
//!
//! ```text
//! # words                  for the reader; not in the transcript
//! = title                  a part of the transcript: `=== title`
//! @ command                run and must succeed; in the transcript as it is, without what it said (a disk
//!                          wiped, content written): who replays it has to do the same
//! set NAME = text          stands for ${NAME} in what follows
//! let NAME = command       its output, trimmed, stands for ${NAME} in what follows; not in the transcript
//! open PATH                a device held open for reading and writing, until `close`; `* open PATH`, `* close`
//! command                  run by bash, with its exit code and output in the transcript
//! ```
//!
//! In the transcript each command stands as it was run, holes filled:
//!
//! ```text
//! $ lvs vg/none   -> rc=5
//!    | a line of standard output
//!    ! a line of standard error
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use snapslot_test_support::Finished;

const DEADLINE: Duration = Duration::from_secs(120);

/// Runs these lists; false when a line that must succeed did not.
pub fn run(lists: &[&str]) -> Result<bool, String> {
    println!("TRANSCRIPT");
    for list in lists {
        let text = fs::read_to_string(list).map_err(|e| format!("{list}: {e}"))?;
        let mut values = BTreeMap::new();
        let mut open = None;
        for (number, line) in (1..).zip(text.lines()) {
            if let Err(why) = one(line.trim(), &mut values, &mut open) {
                println!("TRANSCRIPT-BROKEN {list}:{number}: {why}");
                return Ok(false);
            }
        }
    }
    println!("TRANSCRIPT-END");
    Ok(true)
}

fn one(
    line: &str,
    values: &mut BTreeMap<String, String>,
    open: &mut Option<File>,
) -> Result<(), String> {
    if line.is_empty() || line.starts_with('#') {
        return Ok(());
    }
    let mut line = line.to_owned();
    for (name, value) in values.iter() {
        line = line.replace(&format!("${{{name}}}"), value);
    }
    if let Some(title) = line.strip_prefix("= ") {
        println!("\n=== {title}");
    } else if let Some(path) = line.strip_prefix("open ") {
        let opened = File::options().read(true).write(true).open(path);
        *open = Some(opened.map_err(|e| format!("{path}: {e}"))?);
        println!("* open {path}");
    } else if line == "close" {
        *open = None;
        println!("* close");
    } else if let Some(command) = line.strip_prefix("@ ") {
        succeeded(&bash(command))?;
        println!("@ {command}");
    } else if let Some(rest) = line.strip_prefix("set ") {
        let (name, text) = rest.split_once(" = ").ok_or("set NAME = text")?;
        values.insert(name.to_owned(), text.to_owned());
    } else if let Some(rest) = line.strip_prefix("let ") {
        let (name, command) = rest.split_once(" = ").ok_or("let NAME = command")?;
        let done = bash(command);
        succeeded(&done)?;
        values.insert(name.to_owned(), done.text().trim().to_owned());
    } else {
        let done = bash(&line);
        let code = done.code.ok_or_else(|| done.account())?;
        println!("$ {line}   -> rc={code}");
        for (mark, text) in [('|', done.text()), ('!', done.stderr)] {
            for said in text.lines() {
                println!("   {mark} {said}");
            }
        }
    }
    Ok(())
}

fn bash(line: &str) -> Finished {
    let mut command = Command::new("bash");
    // As the engine runs its commands: nothing in the environment but this.
    command.args(["-c", line]).env_clear().env("LC_ALL", "C").env("PATH", "/usr/sbin:/usr/bin");
    snapslot_test_support::run(command, DEADLINE)
}

fn succeeded(done: &Finished) -> Result<(), String> {
    if done.code == Some(0) { Ok(()) } else { Err(done.account()) }
}
