//! Adding, removing and verifying plugins of third parties.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;
use snapslot_engine::{Candidate, Engine};

use super::AT_FAULT;
use super::words::grants;
use crate::args::AddArgs;
use crate::ask::{Answer, confirm};
use crate::output::{Failed, Output};
use crate::words::quoted;

pub fn add(engine: &Engine, output: Output, args: &AddArgs) -> Result<ExitCode, Failed> {
    let AddArgs { file, without, with, yes, dry_run } = args;
    let candidate = engine.consider(file)?;
    let denied = &candidate.denied(without, with)?;
    let shown = in_words(&candidate, denied);
    let data = json!({
        "name": candidate.description.name, "version": candidate.description.version,
        "digest": candidate.digest, "contract": format!("snapslot:backend {}", candidate.contract),
        "grants": candidate.description.grant_names(), "new-grants": candidate.news(),
        "denied": denied, "description": candidate.description,
        "replaces": candidate.replaces.as_ref().map(|p| &p.digest),
    });
    let name = candidate.description.name.clone();
    if *dry_run {
        let words = format!("{shown}Nothing was added.\n");
        return finished(output, data, "added", false, &words);
    }
    let same = candidate.replaces.as_ref().is_some_and(|p| p.approved.denied == *denied);
    if candidate.is_there() && same {
        let words = format!("{name} is installed already, with this digest and these grants.\n");
        return finished(output, data, "added", false, &words);
    }
    // Nobody approves what they did not see: with `--json` too, where standard output is not theirs.
    if !*yes {
        eprint!("{shown}");
        match confirm(&format!("Give {name} these grants?")) {
            Answer::Yes => {}
            Answer::No => return Err(Failed::NotConfirmed(format!("{name} was not added"))),
            Answer::Nobody => {
                return Err(Failed::NotConfirmed(format!(
                    "nobody is there to approve the grants of {name}, and it was not added; \
                     `snapslot plugin add {} --dry-run` shows them, `--yes` approves them",
                    quoted(&file.display().to_string())
                )));
            }
        }
    }
    let replaced = candidate.replaces.is_some();
    let place = candidate.description.place.word();
    let plugin = engine.install(candidate, denied)?;
    let did = if replaced { "now has the new component" } else { "is installed" };
    let example = match place {
        "lvm-volume" => "vg0/vm1",
        "zfs-dataset" => "tank/vm1",
        _ => "/srv/vm1",
    };
    let seen = if *yes { shown.as_str() } else { "" };
    let words = format!(
        "{seen}{name} {did} (sha256 {}).\nIts volumes are {name}:PLACE, as in `snapslot take {name}:{example}`; \
         `snapslot plugin show {name}` shows what it may do.\n",
        plugin.digest
    );
    finished(output, data, "added", true, &words)
}

fn finished(
    output: Output,
    mut data: serde_json::Value,
    key: &str,
    done: bool,
    words: &str,
) -> Result<ExitCode, Failed> {
    data[key] = json!(done);
    output.done(data, words);
    Ok(ExitCode::SUCCESS)
}

fn in_words(candidate: &Candidate, without: &[String]) -> String {
    let mut words = grants(&candidate.description, without);
    let _ = writeln!(words, "Digest: sha256 {}", candidate.digest);
    let _ = writeln!(words, "Speaks: snapslot:backend {}", candidate.contract);
    if let Some(before) = &candidate.replaces {
        let _ = writeln!(
            words,
            "Takes the place of {} {} (sha256 {}).",
            before.name, before.approved.declared.version, before.digest
        );
        let news = candidate.news();
        let _ = match news.is_empty() {
            true => writeln!(words, "It asks for no more than that one."),
            false => writeln!(words, "NEW, not asked for before: {}", news.join(", ")),
        };
        let asked = candidate.description.grant_names();
        for name in before.approved.denied.iter().filter(|name| asked.contains(name)) {
            let _ = match without.contains(name) {
                true => writeln!(words, "Denied before, and still: {name} (`--with` gives it)"),
                false => writeln!(words, "Denied before, and approved now: {name}"),
            };
        }
    }
    words
}

pub fn remove(engine: &Engine, output: Output, name: &str, yes: bool) -> Result<ExitCode, Failed> {
    engine.may_uninstall(name)?;
    if !yes {
        match confirm(&format!("Remove the plugin {name}?")) {
            Answer::Yes => {}
            Answer::No => return Err(Failed::NotConfirmed(format!("{name} was not removed"))),
            Answer::Nobody => {
                return Err(Failed::NotConfirmed(format!(
                    "nobody is there to confirm, and {name} was not removed; `--yes` does not ask"
                )));
            }
        }
    }
    engine.uninstall(name)?;
    output.done(json!({ "name": name, "removed": true }), &format!("{name} is removed.\n"));
    Ok(ExitCode::SUCCESS)
}

pub fn verify(engine: &Engine, output: Output, name: Option<&str>) -> Result<ExitCode, Failed> {
    let all = engine.verify_plugins(name)?;
    let mut words = String::new();
    for plugin in &all {
        if plugin.problems.is_empty() {
            let _ = writeln!(words, "{}: as it was approved", plugin.name);
        }
        for problem in &plugin.problems {
            let _ = writeln!(words, "{}: {problem}", plugin.name);
        }
    }
    if all.is_empty() {
        words.push_str("No plugin is installed; the built-in ones are part of this program.\n");
    }
    let sound = all.iter().all(|p| p.problems.is_empty());
    output.done(json!({ "plugins": all, "sound": sound }), &words);
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(AT_FAULT) })
}
