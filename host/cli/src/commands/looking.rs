//! Verbs that only look.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;
use snapslot_engine::{CommandGrant, Description, Engine, EngineError, Role, Status};
use snapslot_slot::{Consistency, Drift, State};

use crate::args::PluginCommand;
use crate::output::{Failed, Output};
use crate::words::{ago, bytes, moment, quoted};

pub fn status(engine: &Engine, output: Output, machine: &str) -> Result<ExitCode, Failed> {
    let status = engine.status(machine)?;
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
        if let (Some(changed), Some(held)) = (v.changed_bytes, v.held_bytes) {
            let _ = writeln!(
                words,
                "    changed since the take: {}; held by the slot: {}",
                bytes(changed),
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
            "the snapshot is lost: its store ran full, so its content is gone though its name is there"
        }
    }
}

pub fn list(engine: &Engine, output: Output) -> Result<ExitCode, Failed> {
    let machines = engine.store().machines().map_err(EngineError::from)?;
    let mut rows = Vec::new();
    let mut words = String::new();
    for machine in &machines {
        match engine.status(&machine.name) {
            Ok(status) => {
                let mut line = format!("{}\t{}", status.slot.word(), status.machine);
                if let Some(o) = status.slot.occupant() {
                    let _ = write!(line, "\t{}", moment(o.taken));
                    if let Some(note) = &o.note {
                        let _ = write!(line, "\t{note}");
                    }
                }
                let _ = writeln!(words, "{line}");
                rows.push(json!({ "machine": status.machine, "volumes": machine.volumes, "slot": status.slot }));
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
    for name in &names {
        let (problems, state, exit) = match engine.status(name) {
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
        for finding in v.findings.iter().filter(|f| f.blocks && !v.interrupted) {
            add(format!("{}: {}", v.volume, finding.message), 6);
        }
    }
    (found, exit)
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

pub fn plugin(
    engine: &Engine,
    output: Output,
    command: &PluginCommand,
) -> Result<ExitCode, Failed> {
    match command {
        PluginCommand::List => {
            let mut words = String::new();
            let mut rows = Vec::new();
            for known in engine.backends() {
                let plugin = engine.plugin(&known.name)?;
                let d = plugin.description();
                let _ = writeln!(words, "{}\t{}\tbuilt-in\t{}", d.name, d.version, d.summary);
                rows.push(json!({
                    "name": d.name, "version": d.version, "summary": d.summary,
                    "source": "built-in", "digest": plugin.digest(),
                }));
            }
            output.done(json!({ "plugins": rows }), &words);
        }
        PluginCommand::Show { name } => {
            let plugin = engine.plugin(name)?;
            let d = plugin.description();
            let mut words = grants(d);
            let _ = writeln!(words, "Digest: sha256 {}", plugin.digest());
            let inert = plugin.imports().iter().filter(|i| !i.starts_with("snapslot:")).count();
            let _ = writeln!(
                words,
                "It is a wasm component: it has no file, network, process, clock or write access of any kind.\n\
                 Of its {} imports {inert} are of its language's runtime and lead nowhere.",
                plugin.imports().len()
            );
            let held = engine.confinement();
            let _ = writeln!(words, "{}", held.in_words());
            output.done(
                json!({
                    "name": d.name, "version": d.version, "summary": d.summary, "source": "built-in",
                    "endings": d.endings, "place": d.place.word(), "copies": d.copies, "images": d.images, "queries": d.queries,
                    "actions": d.actions, "digest": plugin.digest(), "imports": plugin.imports(),
                    "confinement": held,
                }),
                &words,
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn grants(d: &Description) -> String {
    let mut words = format!("{} {}: {}\n", d.name, d.version, d.summary);
    if !d.endings.is_empty() {
        let _ = writeln!(words, "Serves paths that end in {}", d.endings.join(", "));
    }
    let _ = writeln!(words, "Grants:");
    for grant in &d.images {
        let what = match grant.role {
            Role::Disk => "the disk's image",
            Role::Backing => "the backing file",
        };
        let may = if grant.changes { "read, and plan changes of," } else { "read" };
        let _ = writeln!(words, "  {may} {what}: {}", grant.reason);
    }
    if let Some(reason) = &d.copies {
        let _ = writeln!(words, "  have whole copies of the disk kept: {reason}");
    }
    for (may, list) in [("ask", &d.queries), ("have done", &d.actions)] {
        for grant in list {
            let _ = writeln!(words, "  {may} `{}`: {}", grant.template.join(" "), grant.reason);
            in_detail(grant, &mut words);
        }
    }
    if d.queries.is_empty() && d.actions.is_empty() {
        let _ = writeln!(words, "  no commands");
    } else {
        let _ = writeln!(
            words,
            "Commands are run by this host alone: by absolute path, without a shell, with an empty\n\
             environment, and only with values that fit the volume at hand. Those that change\n\
             something run only from a plan that was checked and written down before."
        );
    }
    words
}

/// What stands in a command's holes, what is looked at before it, what it is told, how long it has.
fn in_detail(grant: &CommandGrant, words: &mut String) {
    for hole in &grant.holes {
        let _ = writeln!(words, "      {{{}}} is {}", hole.name, hole.grammar.in_words());
    }
    if let Some(guard) = &grant.guard {
        let look = guard.template.join(" ");
        let _ = writeln!(words, "      only if `{look}` says {{{}}} right before", guard.equals);
    }
    if let Some(input) = &grant.input {
        let _ = writeln!(words, "      with this on its standard input:");
        for line in input.lines() {
            let _ = writeln!(words, "        | {line}");
        }
    }
    let _ = writeln!(words, "      ended after {} s", grant.deadline_seconds);
}
