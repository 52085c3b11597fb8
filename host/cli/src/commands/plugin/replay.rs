//! Holding a recorded conversation again.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use snapslot_engine::{Engine, EngineError, plain, read_recording};

use super::{AT_FAULT, component, component_here};
use crate::output::{Failed, Output};

/// Of an answer, what is shown where two differ.
const SHOWN_MAX: usize = 600;

pub fn replay(
    engine: &Engine,
    output: Output,
    file: &Path,
    other: Option<&str>,
) -> Result<ExitCode, Failed> {
    let calls = read_recording(file).map_err(EngineError::Usage)?;
    let mut components = HashMap::new();
    for call in &calls {
        let name = other.unwrap_or(&call.plugin);
        if components.contains_key(name) {
            continue;
        }
        let found = match other {
            Some(named) => Some(component(engine, named)?),
            // A recording comes from somebody else: it does not say which file is opened.
            None => component_here(engine, name)?,
        };
        let Some((bytes, _)) = found else {
            return Err(EngineError::Usage(format!(
                "{} is of the plugin {name}, which is not here; name its component with --plugin FILE",
                file.display()
            ))
            .into());
        };
        components.insert(name.to_owned(), bytes);
    }
    let (mut words, mut rows, mut differing) = (String::new(), Vec::new(), 0);
    let mut strangers = Vec::new();
    for call in &calls {
        let name = other.unwrap_or(&call.plugin);
        let plugin = engine.load_component(name, &components[name], &call.denied)?;
        if plugin.digest() != call.digest && !strangers.contains(&name) {
            strangers.push(name);
            let _ = writeln!(
                words,
                "{name} is not the component that was recorded (sha256 {}).",
                call.digest
            );
        }
        let now = plugin.replay(call);
        let same = now == call.result;
        differing += usize::from(!same);
        let place = call.place.as_deref().unwrap_or("-");
        let verdict = if same { "the same" } else { "DIFFERS" };
        let _ = writeln!(words, "{:9} {place}: {verdict}: {}", call.call, gist(&now));
        if !same {
            let _ = writeln!(words, "    then {}\n    now  {}", shown(&call.result), shown(&now));
            for line in &call.log {
                let _ = writeln!(words, "    then it logged: {line}");
            }
        }
        rows.push(json!({
            "call": call.call, "place": call.place, "same": same, "then": call.result, "now": now,
            "log": call.log,
        }));
    }
    let _ = writeln!(words, "{} calls, {differing} answered otherwise", calls.len());
    output.done(json!({ "calls": rows, "same": differing == 0 }), &words);
    Ok(if differing == 0 { ExitCode::SUCCESS } else { ExitCode::from(AT_FAULT) })
}

/// An answer in a few words.
fn gist(answer: &Value) -> String {
    let text = |v: &Value| plain(v.as_str().unwrap_or("-"), SHOWN_MAX);
    if let Some(facts) = answer.get("facts") {
        let count = facts["snapshots"].as_array().map_or(0, Vec::len);
        return format!("{}, {count} snapshots", text(&facts["format"]));
    }
    if let Some(plan) = answer.get("plan") {
        let phases = plan["phases"].as_array().map_or(0, Vec::len);
        let commands = plan["commands"].as_array().map_or(0, Vec::len);
        return format!("a plan of {phases} phases, {commands} commands");
    }
    if let Some(failure) = answer.get("refused").or(answer.get("explained")) {
        return format!("it says: {}", text(&failure["message"]));
    }
    if let Some(cause) = answer.get("fault") {
        return format!("it breaks down: {}", text(cause));
    }
    if let Some(description) = answer.get("description") {
        return format!("{} {}", text(&description["name"]), text(&description["version"]));
    }
    if let Some(count) = answer.get("extents") {
        return format!("{count} extents");
    }
    shown(answer)
}

fn shown(answer: &Value) -> String {
    plain(&answer.to_string(), SHOWN_MAX)
}
