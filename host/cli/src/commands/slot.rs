//! Verbs that change a slot.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::{Value, json};
use snapslot_engine::{Asked, Done, Engine, Measure, Shown, Status, Verb};
use snapslot_slot::{Consistency, State};

use crate::ask::{Answer, confirm};
use crate::output::{Failed, Output};
use crate::progress::Progress;
use crate::words::{ago, bytes, microseconds, moment, quoted};

pub fn enable(
    engine: &Engine,
    output: Output,
    name: &str,
    volumes: &[String],
) -> Result<ExitCode, Failed> {
    let machine = engine.enable(name, volumes)?;
    let mut words = format!("{} has a slot now", machine.name);
    if machine.volumes.len() > 1 {
        let _ = write!(words, " over {} volumes", machine.volumes.len());
    }
    let _ = writeln!(words, "; `snapslot take {}` fills it.", quoted(&machine.name));
    let slot = engine.status(name, Measure::Not)?.slot;
    output.done(json!({ "machine": machine.name, "volumes": machine.volumes, "slot": slot, "changed": true }), &words);
    Ok(ExitCode::SUCCESS)
}

pub fn disable(engine: &Engine, output: Output, machine: &str) -> Result<ExitCode, Failed> {
    let machine = engine.disable(machine)?;
    let words = format!("{} has no slot any more.\n", machine.name);
    output
        .done(json!({ "machine": machine.name, "slot": State::Disabled, "changed": true }), &words);
    Ok(ExitCode::SUCCESS)
}

pub fn take(
    engine: &Engine,
    output: Output,
    machine: &str,
    asked: &Asked,
) -> Result<ExitCode, Failed> {
    let done = operate(engine, output, machine, Verb::Take, asked)?;
    if asked.dry_run {
        return Ok(planned(output, &done));
    }
    let mut words = String::new();
    if let Some(occupant) = done.slot.occupant() {
        let _ = writeln!(
            words,
            "{} {} at {} in {}.",
            output.strong("Snapshot taken:"),
            done.machine,
            moment(occupant.taken),
            microseconds(done.elapsed_microseconds),
        );
        for part in &occupant.parts {
            let _ = writeln!(words, "  {} holds it as {}", part.volume, part.name);
        }
        if occupant.consistency == Consistency::Crash {
            words.push_str(
                "  The disk was in use: the snapshot is what a power cut would have left.\n",
            );
        }
    }
    let name = quoted(machine);
    let _ = writeln!(
        words,
        "Go back to it with `snapslot restore {name}`, or drop it with `snapslot delete {name}`."
    );
    finish(output, &done, words)
}

pub fn restore(
    engine: &Engine,
    output: Output,
    machine: &str,
    yes: bool,
    consume: bool,
    dry_run: bool,
) -> Result<ExitCode, Failed> {
    let mut asked = Asked { consume, dry_run, ..Asked::default() };
    if !yes && !dry_run {
        asked.shown = Some(asked_for(engine, machine, Verb::Restore)?);
    }
    let done = operate(engine, output, machine, Verb::Restore, &asked)?;
    if dry_run {
        return Ok(planned(output, &done));
    }
    let mut words = String::new();
    let took = microseconds(done.elapsed_microseconds);
    if done.changed {
        let _ = writeln!(words, "{} {} in {took}.", output.strong("Restored:"), done.machine);
    } else {
        let _ = writeln!(
            words,
            "{} is as the snapshot is; nothing had to be written ({took}).",
            done.machine
        );
    }
    match &done.slot {
        State::Held { occupant } => {
            let _ =
                writeln!(words, "The slot still holds the snapshot of {}.", moment(occupant.taken));
        }
        _ => {
            let _ = writeln!(words, "The slot is empty.");
        }
    }
    finish(output, &done, words)
}

pub fn delete(
    engine: &Engine,
    output: Output,
    machine: &str,
    yes: bool,
    dry_run: bool,
) -> Result<ExitCode, Failed> {
    let mut asked = Asked { dry_run, ..Asked::default() };
    if !yes && !dry_run {
        asked.shown = Some(asked_for(engine, machine, Verb::Delete)?);
    }
    let done = operate(engine, output, machine, Verb::Delete, &asked)?;
    if dry_run {
        return Ok(planned(output, &done));
    }
    let took = microseconds(done.elapsed_microseconds);
    let words = if done.changed {
        format!("{} {} in {took}. The slot is empty.\n", output.strong("Deleted:"), done.machine)
    } else {
        format!("{}: there was nothing left to delete; the record is cleared.\n", done.machine)
    };
    finish(output, &done, words)
}

pub fn recover(engine: &Engine, output: Output, machine: Option<&str>) -> Result<ExitCode, Failed> {
    let names = super::named_or_all(engine, machine)?;
    let mut words = String::new();
    let mut results = Vec::new();
    let mut failed = None;
    for name in names {
        let progress = Progress::new(output.json);
        let tell = |volume: &str, n: u64, all: u64| progress.tell(volume, n, all);
        match engine.recover_watched(&name, &tell) {
            Ok(r) => {
                for volume in &r.finished {
                    let _ = writeln!(words, "{volume}: an interrupted change was finished");
                }
                for volume in &r.cleared {
                    let _ = writeln!(
                        words,
                        "{volume}: the journal of a change that never began, or had ended, was removed"
                    );
                }
                if r.finished.is_empty() && r.cleared.is_empty() {
                    let _ = writeln!(words, "{}: nothing to recover", r.machine);
                }
                let _ = writeln!(words, "{}: the slot is {}", r.machine, r.slot.word());
                results.push(json!(r));
            }
            // Over all machines one that fails must not keep the others waiting.
            Err(error) if machine.is_none() => {
                let _ = writeln!(words, "{name}: {error}");
                results.push(json!({ "machine": name, "error": { "code": error.code(), "exit": error.exit(), "message": error.to_string(), "data": error.data() } }));
                failed = failed.max(Some(error.exit()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let mut object = json!({ "machines": results });
    if machine.is_some()
        && let (Some(Value::Object(one)), Some(object)) = (results.first(), object.as_object_mut())
    {
        object.extend(one.clone());
    }
    output.done(object, &words);
    Ok(failed.map_or(ExitCode::SUCCESS, ExitCode::from))
}

fn operate(
    engine: &Engine,
    output: Output,
    machine: &str,
    verb: Verb,
    asked: &Asked,
) -> Result<Done, Failed> {
    let progress = Progress::new(output.json);
    Ok(engine.operate(machine, verb, asked, &|volume, n, all| progress.tell(volume, n, all))?)
}

fn finish(output: Output, done: &Done, mut words: String) -> Result<ExitCode, Failed> {
    words.push_str(&notes(done));
    output.done(json!(done), &words);
    Ok(ExitCode::SUCCESS)
}

/// What is worth knowing of each volume.
fn notes(done: &Done) -> String {
    let mut words = String::new();
    for volume in &done.volumes {
        for warning in &volume.warnings {
            let _ = writeln!(words, "Note: {}: {warning}.", volume.volume);
        }
    }
    words
}

/// Prints the plan that would run.
fn planned(output: Output, done: &Done) -> ExitCode {
    let mut words = String::new();
    let mut result = json!(done);
    for (i, volume) in done.volumes.iter().enumerate() {
        let _ = writeln!(words, "{}: {} steps", volume.volume, volume.plan.steps);
        for (n, phase) in volume.plan.phases.iter().enumerate() {
            let _ = write!(words, "  {}. {} ({} steps", n + 1, phase.title, phase.count);
            if phase.bytes > 0 {
                let _ = write!(words, ", {}", bytes(phase.bytes));
            }
            let _ = writeln!(words, ")");
            for step in &phase.steps {
                let _ = writeln!(words, "       {step}");
            }
            if phase.bytes > 0 {
                let _ = writeln!(words, "       flush");
            }
            result["volumes"][i]["plan"]["phases"][n]["steps"] = json!(phase.steps);
        }
        if volume.plan.phases.is_empty() {
            let _ = writeln!(words, "  nothing to do");
        }
    }
    words.push_str(&notes(done));
    let _ = writeln!(words, "Nothing was changed.");
    result["dry-run"] = json!(true);
    output.done(result, &words);
    ExitCode::SUCCESS
}

/// Shows what would be lost and asks. Gives what was shown.
fn asked_for(engine: &Engine, machine: &str, verb: Verb) -> Result<Shown, Failed> {
    let mut status = engine.status(machine, Measure::Wholly)?;
    let mut so_far = "nothing was changed";
    if status.volumes.iter().any(|v| v.interrupted) {
        // What is to be asked about is what recovery makes of it.
        engine.recover(machine)?;
        so_far = "only what had been interrupted was ended, nothing else was changed";
        status = engine.status(machine, Measure::Wholly)?;
    }
    let Some(occupant) = status.slot.occupant() else {
        let parts = status.volumes.iter().any(|v| v.snapshots.iter().any(|s| s.mark.is_some()));
        if verb == Verb::Delete && parts {
            let question = format!(
                "{}: only some volumes hold the snapshot. Delete what is left of it?",
                status.machine
            );
            return answered(&status, so_far, &question, "", Shown { mark: None });
        }
        // Nothing in the storage that could be lost: the engine says what is the matter.
        return Ok(Shown { mark: None });
    };
    let taken = format!("{} ({})", moment(occupant.taken), ago(occupant.taken));
    let question = match verb {
        Verb::Restore => format!(
            "{}: set back to the snapshot of {taken}?\n{} and cannot be had back.",
            status.machine,
            lost(&status)
        ),
        _ => format!("{}: delete the snapshot of {taken}?\n{}", status.machine, given_up(&status)),
    };
    let price = if verb == Verb::Restore { lost(&status) } else { given_up(&status) };
    answered(&status, so_far, &question, &price, Shown { mark: Some(occupant.mark.clone()) })
}

/// Asks. Where there is nobody to ask, the refusal says the price.
fn answered(
    status: &Status,
    so_far: &str,
    question: &str,
    price: &str,
    shown: Shown,
) -> Result<Shown, Failed> {
    match confirm(question) {
        Answer::Yes => Ok(shown),
        Answer::No => Err(Failed::NotConfirmed(format!("not confirmed; {so_far}"))),
        Answer::Nobody => Err(Failed::NotConfirmed(format!(
            "{}: there is no terminal to ask on, and --yes was not given; {so_far}. {price}",
            status.machine,
        ))),
    }
}

fn lost(status: &Status) -> String {
    let changed: Option<u64> = status.volumes.iter().map(|v| v.changed_bytes).sum();
    match changed {
        Some(0) => "Nothing has changed since, so nothing would be lost".to_owned(),
        Some(n) => format!("{} changed since would be lost", bytes(n)),
        None => "All that changed since would be lost".to_owned(),
    }
}

/// What a delete costs: the way back over what changed since.
fn given_up(status: &Status) -> String {
    let changed: Option<u64> = status.volumes.iter().map(|v| v.changed_bytes).sum();
    let held: Option<u64> = status.volumes.iter().map(|v| v.held_bytes).sum();
    let mut words = "The disk stays as it is; going back will not be possible any more".to_owned();
    match changed {
        Some(0) => words.push_str(", and nothing has changed since"),
        Some(n) => words.push_str(&format!(", and {} changed since would be final", bytes(n))),
        None => {}
    }
    if let Some(held) = held {
        words.push_str(&format!(". {} of storage would be freed", bytes(held)));
    }
    words.push('.');
    words
}
