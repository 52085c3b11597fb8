//! Verbs that read content: export and diff.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde_json::json;
use snapslot_engine::content::export::{
    Destination, Exported, Format, Packing, Wanted, export as write_out,
};
use snapslot_engine::content::{Range, Watch};
use snapslot_engine::{Compared, Engine, EngineError, Import, Way, Which};

use crate::args::{Compress, ExportArgs, ImageFormat};
use crate::ask::{Answer, confirm};
use crate::output::{Failed, Output};
use crate::progress::Progress;
use crate::stop;
use crate::words::{bytes, microseconds};

pub fn export(engine: &Engine, output: Output, args: &ExportArgs) -> Result<ExitCode, Failed> {
    let stdout = args.out == Path::new("-");
    if stdout && output.json {
        return Err(usage("standard output cannot be both the image and --json"));
    }
    if stdout && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        return Err(usage("a disk is not written to a terminal; redirect standard output"));
    }
    let ends = |e: &str| args.out.to_string_lossy().ends_with(e);
    let format = match args.format {
        Some(ImageFormat::Raw) if args.compress.is_some() => {
            return Err(usage("a raw image cannot be compressed; --format qcow2 can"));
        }
        Some(ImageFormat::Raw) => Format::Raw,
        Some(ImageFormat::Qcow2) => Format::Qcow2,
        None if args.compress.is_some() || ends(".qcow2") => Format::Qcow2,
        None => Format::Raw,
    };
    if args.compress == Some(Compress::Zlib) && args.level.is_some_and(|l| l > 9) {
        return Err(usage("zlib's levels are 0 to 9"));
    }
    let wanted = Wanted {
        format,
        packing: args.compress.map(|c| match c {
            Compress::Zlib => Packing::Zlib,
            Compress::Zstd => Packing::Zstd,
        }),
        level: args.level,
        digest: args.checksum,
        force: args.force,
        sync: !args.no_sync,
    };
    let to = match stdout {
        true => Destination::Stdout,
        false => Destination::Path(args.out.clone()),
    };
    let which = if args.live { Which::Current } else { Which::Snapshot };
    let begun = Instant::now();
    stop::listen();
    let progress = Progress::new(output.json);
    let work = || {
        engine.with_content(&args.machine, which, &args.backing, |opened| {
            let tell = |n, all| progress.tell(&opened.volume, n, all);
            let watch = Watch { progress: &tell, stop: &stop::wanted };
            let done = write_out(&*opened.content, &to, &wanted, &watch);
            let volume = opened.volume.clone();
            match done {
                Ok(done) => Ok((done, volume)),
                Err(source) => Err(EngineError::Content { volume, source }),
            }
        })
    };
    let (done, volume) = match stdout {
        true => work(),
        false => engine.writing_to(&args.out, &args.machine, &args.backing, work),
    }?;
    drop(progress);
    let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let words = exported(output, args, &volume, &done, took);
    if stdout {
        eprint!("{words}");
    } else {
        let mut data = json!(done);
        data["volume"] = json!(volume);
        data["out"] = json!(args.out);
        data["format"] = json!(format);
        data["compression"] = json!(wanted.packing);
        data["content"] = json!(which);
        data["elapsed-microseconds"] = json!(took);
        output.done(data, &words);
    }
    Ok(ExitCode::SUCCESS)
}

fn exported(output: Output, args: &ExportArgs, volume: &str, done: &Exported, took: u64) -> String {
    let mut words = String::new();
    let what = if args.live { "the present disk" } else { "the snapshot" };
    let _ = write!(
        words,
        "{} {what} of {volume}, {}, to {} in {}",
        output.strong("Exported:"),
        bytes(done.virtual_size),
        args.out.display(),
        microseconds(took)
    );
    let _ = match done.shared_bytes {
        0 => writeln!(
            words,
            ": {} read, {} written.",
            bytes(done.read_bytes),
            bytes(done.written_bytes)
        ),
        shared => {
            writeln!(words, ": {} shared, {} written.", bytes(shared), bytes(done.written_bytes))
        }
    };
    if let Some(sha256) = &done.sha256 {
        let _ = writeln!(words, "SHA-256 of the content: {sha256}");
    }
    words
}

fn usage(why: &str) -> Failed {
    EngineError::Usage(why.to_owned()).into()
}

pub fn import(
    engine: &Engine,
    output: Output,
    machine: &str,
    wanted: &Import<'_>,
    yes: bool,
) -> Result<ExitCode, Failed> {
    if !yes && !wanted.dry_run {
        let question = format!(
            "{machine}: set the disk to what {} holds?\nWhat is on it now cannot be had back, but for what its slot holds.",
            wanted.from
        );
        match confirm(&question) {
            Answer::Yes => {}
            Answer::No => {
                return Err(Failed::NotConfirmed("not confirmed; nothing was changed".to_owned()));
            }
            Answer::Nobody => {
                return Err(Failed::NotConfirmed(format!(
                    "{machine}: there is no terminal to ask on, and --yes was not given; nothing was changed"
                )));
            }
        }
    }
    let begun = Instant::now();
    stop::listen();
    let progress = Progress::new(output.json);
    let tell = |n, all| progress.tell(machine, n, all);
    let watch = Watch { progress: &tell, stop: &stop::wanted };
    let done = engine.import(machine, wanted, &watch)?;
    drop(progress);
    let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    if done.dry_run {
        let how = match done.way {
            Way::Replaced => "a new file would take the disk's place when it is whole",
            Way::InPlace => {
                "its device would be written, while the slot holds a snapshot to go back to"
            }
        };
        let words = format!(
            "{} would be what {} holds, {}: {how}.\nNothing was changed.\n",
            done.volume,
            done.from,
            bytes(done.virtual_size)
        );
        output.done(json!(done), &words);
        return Ok(ExitCode::SUCCESS);
    }
    let words = format!(
        "{} {} is what {} holds, {}, in {}.\n",
        output.strong("Restored:"),
        done.volume,
        done.from,
        bytes(done.virtual_size),
        microseconds(took)
    );
    output.done(json!(done), &words);
    Ok(ExitCode::SUCCESS)
}

pub fn diff(
    engine: &Engine,
    output: Output,
    machine: &str,
    content: bool,
    backing: &[String],
) -> Result<ExitCode, Failed> {
    stop::listen();
    let progress = Progress::new(output.json);
    let tell = |n, all| progress.tell(machine, n, all);
    let watch = Watch { progress: &tell, stop: &stop::wanted };
    let all = engine.diff(machine, content, backing, &watch)?;
    drop(progress);
    let mut words = String::new();
    for volume in &all {
        in_words(&mut words, volume);
    }
    output.done(json!({ "machine": machine, "volumes": all }), &words);
    Ok(ExitCode::SUCCESS)
}

/// Ranges listed; all of them are in the JSON.
const LISTED: usize = 10;

fn in_words(words: &mut String, diff: &Compared) {
    let _ = writeln!(words, "{}", diff.volume);
    if diff.ranges.is_empty() {
        words.push_str("  nothing changed since the take\n");
        return;
    }
    let _ = writeln!(
        words,
        "  {} of {} changed since the take, in {} place{}{}",
        bytes(diff.changed_bytes),
        bytes(diff.size),
        diff.ranges.len(),
        if diff.ranges.len() == 1 { "" } else { "s" },
        match diff.by_content {
            true => "",
            false => ", by where content lies (--content compares it)",
        }
    );
    let _ = writeln!(words, "  {}", picture(diff));
    let mut longest: Vec<&Range> = diff.ranges.iter().collect();
    longest.sort_by_key(|r| (std::cmp::Reverse(r.length), r.offset));
    longest.truncate(LISTED);
    longest.sort_by_key(|r| r.offset);
    for range in &longest {
        let _ = writeln!(words, "  {:>12}  at {:#x}", bytes(range.length), range.offset);
    }
    if diff.ranges.len() > LISTED {
        let _ = writeln!(
            words,
            "  and {} more, each smaller; --json lists all",
            diff.ranges.len() - LISTED
        );
    }
}

/// Where on the disk: a character for each sixty-fourth, by how much of it changed.
fn picture(diff: &Compared) -> String {
    const CELLS: u64 = 64;
    const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];
    let cell = diff.size.div_ceil(CELLS).max(1);
    let mut changed = [0_u64; CELLS as usize];
    for range in &diff.ranges {
        let (mut at, end) = (range.offset, range.offset + range.length);
        while at < end {
            let i = at / cell;
            let stop = end.min((i + 1) * cell);
            if let Some(sum) = changed.get_mut(i as usize) {
                *sum += stop - at;
            }
            at = stop;
        }
    }
    let shade = |sum: &u64| match u128::from(*sum) * 4 / u128::from(cell) {
        0 if *sum == 0 => SHADES[0],
        0 => SHADES[1],
        quarters => SHADES[(quarters as usize).min(4)],
    };
    format!("│{}│ 0 … {}", changed.iter().map(shade).collect::<String>(), bytes(diff.size))
}
