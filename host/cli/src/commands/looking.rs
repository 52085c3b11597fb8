//! Verbs that only look.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;
use snapslot_engine::{Engine, EngineError, Holder, Measure, Status};
use snapslot_slot::{Consistency, Drift, State};

use crate::output::{Failed, Output};
use crate::words::{ago, bytes, moment, quoted};

pub fn status(engine: &Engine, output: Output, machine: &str) -> Result<ExitCode, Failed> {
    let status = engine.status(machine, Measure::Quickly)?;
    let held = engine.confinement();
    let mut data = json!(status);
    data["confinement"] = json!(held);
    let mut words = in_words(output, machine, &status);
    if !held.is_whole() {
        let _ = writeln!(words, "  {}", held.in_words());
    }
    output.done(data, &words);
    Ok(ExitCode::SUCCESS)
}

fn in_words(output: Output, given: &str, status: &Status) -> String {
    let mut words = String::new();
    let name = quoted(given);
    let _ = writeln!(words, "{}: {}", status.machine, output.strong(status.slot.word()));
    match &status.slot {
        State::Disabled => {
            let _ =
                writeln!(words, "  no slot yet; `snapslot take {name}` gives it one and fills it");
        }
        State::Empty => {
            let _ = writeln!(words, "  `snapslot take {name}` fills it");
        }
        State::Held { occupant } => {
            let _ = writeln!(words, "  taken {} ({})", moment(occupant.taken), ago(occupant.taken));
            if let Some(note) = &occupant.note {
                let _ = writeln!(words, "  note: {note}");
            }
            if occupant.consistency == Consistency::Crash {
                words.push_str(
                    "  taken while the disk was in use: what a power cut would have left\n",
                );
            }
        }
        State::Taking { running } | State::Restoring { running } | State::Deleting { running } => {
            match running.process {
                Some(pid) => {
                    let _ = writeln!(words, "  by process {pid} since {}", moment(running.since));
                }
                None => {
                    let _ = writeln!(
                        words,
                        "  interrupted; begun {}. `snapslot recover {name}` finishes it",
                        moment(running.since)
                    );
                }
            }
        }
        State::Drifted { drift, .. } => {
            let _ = writeln!(words, "  {}", drift_in_words(*drift));
            let _ = writeln!(
                words,
                "  `snapslot delete {name}` clears the record, then a new snapshot can be taken"
            );
        }
    }
    for v in &status.volumes {
        let _ = writeln!(words, "  {}", v.volume);
        match v.virtual_size {
            0 => writeln!(words, "    {}", v.format),
            size => writeln!(words, "    {}, {}", bytes(size), v.format),
        }
        .unwrap_or_default();
        if let Some(held) = v.held_bytes {
            let least = if v.at_least { "at least " } else { "" };
            let changed = match v.changed_bytes {
                Some(changed) => format!("{least}{}", bytes(changed)),
                None => "`diff` compares it".to_owned(),
            };
            let _ = writeln!(
                words,
                "    changed since the take: {changed}; held by the slot: {least}{}",
                bytes(held)
            );
        }
        let others = v.snapshots.iter().filter(|s| s.mark.is_none()).count();
        if others > 0 {
            let _ = writeln!(
                words,
                "    {others} snapshot{} of others, left alone",
                if others == 1 { "" } else { "s" }
            );
        }
        if let Some(unfinished) = &v.unfinished {
            let _ = writeln!(words, "    half done: {unfinished}");
        }
        if let Some(workers) = &v.workers {
            let _ = writeln!(words, "    being worked on{}", Holder::in_words(workers));
        }
        if let Some(users) = &v.users {
            let _ = writeln!(words, "    in use{}", users.in_words());
        }
        for finding in &v.findings {
            let _ = writeln!(
                words,
                "    {}: {}",
                if finding.blocks { "problem" } else { "note" },
                finding.message
            );
        }
    }
    words
}

fn drift_in_words(drift: Drift) -> &'static str {
    match drift {
        Drift::SnapshotGone => {
            "the snapshot in the record is no longer in the storage: another program removed it"
        }
        Drift::VolumeReplaced => "the volume is another one than when the snapshot was taken",
        Drift::Partial => "some volumes of the machine hold the snapshot and some do not",
        Drift::SnapshotLost => {
            "the snapshot is lost: its store ran full, or the disk was written past its server; its content is gone though its name is there"
        }
    }
}

pub fn list(engine: &Engine, output: Output) -> Result<ExitCode, Failed> {
    let machines = engine.store().machines().map_err(EngineError::from)?;
    let mut rows = Vec::new();
    let mut words = String::new();
    let names: Vec<String> = machines.iter().map(|m| m.name.clone()).collect();
    for (machine, status) in machines.iter().zip(engine.statuses(&names, Measure::Not)) {
        match status {
            Ok(status) => {
                let mut line = format!("{}\t{}", status.slot.word(), status.machine);
                if let Some(o) = status.slot.occupant() {
                    let _ = write!(line, "\t{}", moment(o.taken));
                    if let Some(note) = &o.note {
                        let _ = write!(line, "\t{note}");
                    }
                }
                let filling = filling(&status);
                if !filling.is_empty() {
                    let _ = write!(line, "\t{}", output.strong("filling up"));
                }
                let _ = writeln!(words, "{line}");
                rows.push(json!({
                    "machine": status.machine, "volumes": machine.volumes, "slot": status.slot,
                    "filling": filling,
                }));
            }
            Err(error) => {
                let _ = writeln!(words, "unknown\t{}\t{error}", machine.name);
                rows.push(json!({
                    "machine": machine.name, "volumes": machine.volumes,
                    "error": { "code": error.code(), "exit": error.exit(), "message": error.to_string() },
                }));
            }
        }
    }
    if machines.is_empty() {
        words
            .push_str("No machine has a slot yet; `snapslot take ./disk.qcow2` makes the first.\n");
    }
    output.done(json!({ "machines": rows }), &words);
    Ok(ExitCode::SUCCESS)
}

pub fn check(engine: &Engine, output: Output, machine: Option<&str>) -> Result<ExitCode, Failed> {
    let names = super::named_or_all(engine, machine)?;
    let mut words = String::new();
    let mut rows = Vec::new();
    let mut worst = 0;
    for (name, status) in names.iter().zip(engine.statuses(&names, Measure::Not)) {
        let (problems, state, exit) = match status {
            Ok(status) => {
                let (problems, exit) = problems(&status);
                (problems, Some(status.slot), exit)
            }
            Err(error) if machine.is_none() => (vec![error.to_string()], None, error.exit()),
            Err(error) => return Err(error.into()),
        };
        worst = worst.max(exit);
        if problems.is_empty() {
            let _ = writeln!(words, "{name}: sound");
        }
        for problem in &problems {
            let _ = writeln!(words, "{name}: {problem}");
        }
        rows.push(json!({ "machine": name, "slot": state, "problems": problems }));
    }
    output.done(json!({ "machines": rows, "sound": worst == 0 }), &words);
    Ok(ExitCode::from(worst))
}

/// What is wrong, and the exit code it is worth.
fn problems(status: &Status) -> (Vec<String>, u8) {
    let mut found = Vec::new();
    let mut exit = 0;
    let mut add = |text: String, code: u8| {
        found.push(text);
        exit = exit.max(code);
    };
    match &status.slot {
        State::Drifted { drift, .. } => add(drift_in_words(*drift).to_owned(), 8),
        State::Taking { running } | State::Restoring { running } | State::Deleting { running }
            if running.process.is_none() =>
        {
            add("a change was interrupted; `snapslot recover` finishes it".to_owned(), 8);
        }
        _ => {}
    }
    for v in &status.volumes {
        if let Some(workers) = &v.workers {
            add(format!("{}: being worked on{}", v.volume, Holder::in_words(workers)), 5);
        }
        for finding in v.findings.iter().filter(|f| f.blocks && !v.interrupted) {
            add(format!("{}: {}", v.volume, finding.message), 6);
        }
    }
    filling(status).into_iter().for_each(|text| add(text, 8));
    (found, exit)
}

/// What is running out of room, as the storage's plugin finds it: then the snapshot will be lost, or
/// the machine's writes will fail, if nobody sees to it.
fn filling(status: &Status) -> Vec<String> {
    let fills = |code: &str| code.ends_with("-filling") || code == "full";
    let all = status.volumes.iter().flat_map(|v| v.findings.iter().map(move |f| (v, f)));
    all.filter(|(_, f)| fills(&f.code))
        .map(|(v, f)| format!("{}: {}", v.volume, f.message))
        .collect()
}

pub fn history(
    engine: &Engine,
    output: Output,
    machine: Option<&str>,
    limit: u32,
) -> Result<ExitCode, Failed> {
    let name = match machine {
        None => None,
        Some(text) => Some(match engine.resolve(text) {
            Ok((machine, _)) => machine.name,
            // A machine that was disabled still has a history.
            Err(EngineError::NoMachine { name }) => name,
            Err(error) => return Err(error.into()),
        }),
    };
    let rows = engine.store().history(name.as_deref(), limit).map_err(EngineError::from)?;
    let mut words = String::new();
    for row in &rows {
        let outcome = row.outcome.as_deref().unwrap_or("not ended");
        let _ = writeln!(
            words,
            "{}  {:8} {:12} {}",
            moment(row.started),
            row.verb,
            outcome,
            row.machine
        );
    }
    if rows.is_empty() {
        words.push_str("Nothing yet.\n");
    }
    output.done(json!({ "operations": rows }), &words);
    Ok(ExitCode::SUCCESS)
}
