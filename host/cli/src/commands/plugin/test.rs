//! The conformance kit on the command line.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, anyhow};
use serde_json::json;
use snapslot_engine::{Confine, Engine, EngineError};
use snapslot_kit::{Case, KitError, Options, Outcome, Report, Subject, Verdict};

use super::{AT_FAULT, component};
use crate::args::TestArgs;
use crate::output::{Failed, Output};
use crate::words::quoted;

/// The exit code where nothing failed and not everything could be tried.
const INCOMPLETE: u8 = 9;
/// Failed cases that are shown in full; the report has all.
const SHOWN_MAX: usize = 5;
/// Lines of one of them.
const LINES_MAX: usize = 12;

pub fn test(
    engine: &Engine,
    output: Output,
    args: &TestArgs,
    cache_dir: PathBuf,
    confine: Confine,
) -> Result<ExitCode, Failed> {
    for path in &args.report {
        written_as(path)?;
    }
    let (component, _) = component(engine, &args.plugin)?;
    let subject = Subject { component, images: args.image.clone() };
    let terminal = std::io::stderr().is_terminal() && !output.json;
    let done = AtomicUsize::new(0);
    let progress = |case: &Case| {
        let n = done.fetch_add(1, Ordering::Relaxed) + 1;
        if terminal {
            let name: String = case.name.chars().take(60).collect();
            // The line is written over by the next; nobody minds if it cannot be.
            let _ = write!(std::io::stderr(), "\r\x1b[K{n} cases  {name}");
        }
    };
    let options = Options {
        seed: args.seed,
        states: args.states,
        only: args.only.clone(),
        fail_fast: args.fail_fast,
        cache_dir,
        confine,
        progress: &progress,
    };
    let report = snapslot_kit::run(&subject, &options);
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    let report = report.map_err(|error| match error {
        KitError::Load(_) => EngineError::Plugin {
            volume: args.plugin.clone(),
            plugin: "under test".to_owned(),
            cause: format!("{error}; `snapslot plugin check` says more"),
            log: Vec::new(),
        }
        .into(),
        KitError::Kit(_) => Failed::Other(anyhow!("{error}")),
    })?;
    if report.cases.is_empty() {
        return Err(EngineError::Usage(format!(
            "no case is called {:?} or lies below it; a run without --only lists them with --json",
            args.only.as_deref().unwrap_or_default()
        ))
        .into());
    }
    for path in &args.report {
        let text = match written_as(path)? {
            "json" => format!("{:#}\n", report.json()),
            "xml" => report.junit(),
            _ => report.html(),
        };
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let counts = report.counts();
    let mut found = report.json();
    if let Some(found) = found.as_object_mut() {
        found.extend([
            ("held".to_owned(), json!(counts.held)),
            ("failed".to_owned(), json!(counts.failed)),
            ("not-tried".to_owned(), json!(counts.not_tried)),
            ("does-not-apply".to_owned(), json!(counts.does_not_apply)),
            ("sound".to_owned(), json!(report.verdict == Verdict::Sound)),
        ]);
    }
    output.done(found, &in_words(args, &report));
    Ok(match report.verdict {
        Verdict::Sound => ExitCode::SUCCESS,
        Verdict::Incomplete => ExitCode::from(INCOMPLETE),
        Verdict::Failed => ExitCode::from(AT_FAULT),
    })
}

/// How a report is written, by its ending.
fn written_as(path: &Path) -> Result<&'static str, Failed> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("json") => Ok("json"),
        Some("xml") => Ok("xml"),
        Some("html") => Ok("html"),
        _ => Err(EngineError::Usage(format!(
            "{}: a report ends in .json, .xml (JUnit) or .html",
            path.display()
        ))
        .into()),
    }
}

/// The command that runs one case again.
fn again(args: &TestArgs, name: &str) -> String {
    let images: String = (args.image.iter())
        .map(|i| format!(" --image {}", quoted(&i.display().to_string())))
        .collect();
    format!(
        "snapslot plugin test {}{images} --seed {} --states {} --only {}",
        quoted(&args.plugin),
        args.seed,
        args.states,
        quoted(name)
    )
}

fn in_words(args: &TestArgs, report: &Report) -> String {
    let counts = report.counts();
    let mut words = String::new();
    let all_failed: Vec<(&Case, &str)> = (report.cases.iter())
        .filter_map(|c| match &c.outcome {
            Outcome::Failed { why } => Some((c, why.as_str())),
            _ => None,
        })
        .collect();
    for (case, why) in all_failed.iter().take(SHOWN_MAX) {
        let _ = writeln!(words, "FAILED {}", case.name);
        for line in why.lines().take(LINES_MAX) {
            let _ = writeln!(words, "    {line}");
        }
        let _ = writeln!(words, "  again: {}", again(args, &case.name));
    }
    if all_failed.len() > SHOWN_MAX {
        let _ = writeln!(
            words,
            "and {} more; --report FILE.html has all",
            all_failed.len() - SHOWN_MAX
        );
    }
    if let (Some(case), true) = (report.smallest(), all_failed.len() > 1) {
        let _ = writeln!(words, "Begin with {}: it disturbs least.", case.name);
    }
    for missing in &report.missing {
        let _ = writeln!(words, "not tried: {missing}");
    }
    let _ = writeln!(
        words,
        "{} {}: {} cases held, {} failed, {} not tried, in {:.1} s (seed {})",
        report.plugin,
        report.version,
        counts.held,
        counts.failed,
        counts.not_tried,
        report.times.milliseconds as f64 / 1000.0,
        report.seed
    );
    let _ = match report.verdict {
        Verdict::Sound => writeln!(words, "It is sound, as far as the kit can see."),
        Verdict::Failed => Ok(()),
        Verdict::Incomplete => writeln!(
            words,
            "Nothing failed, but the run is incomplete: what was not tried may be right or wrong."
        ),
    };
    words
}
