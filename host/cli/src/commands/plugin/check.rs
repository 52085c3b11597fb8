//! Whether a component is a plugin for this host, in words for its author.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;
use snapslot_engine::Engine;

use super::AT_FAULT;
use super::words::grants;
use crate::output::{Failed, Output};

pub fn check(engine: &Engine, output: Output, file: &Path) -> Result<ExitCode, Failed> {
    let checked = engine.check_component(file)?;
    let mut words = format!("{}: {} bytes", file.display(), checked.size);
    if let Some(digest) = &checked.digest {
        let _ = write!(words, ", sha256 {digest}");
    }
    words.push('\n');
    let (contract, inert): (Vec<&String>, Vec<&String>) =
        checked.imports.iter().partition(|i| i.starts_with("snapslot:"));
    if !checked.imports.is_empty() {
        words.push_str("Imports of the contract:\n");
        for import in &contract {
            let _ = writeln!(words, "  {import}");
        }
        if !inert.is_empty() {
            words.push_str("Imports of its language's runtime, given, but leading nowhere:\n");
            for import in &inert {
                let _ = writeln!(words, "  {import}");
            }
        }
    }
    if let Some(description) = &checked.description {
        words.push_str(&grants(description, &[]));
    }
    let sound = checked.flaws.is_empty();
    let contract = checked.contract.as_ref().map(|version| format!("snapslot:backend {version}"));
    if sound {
        let speaks = contract.as_deref().unwrap_or("snapslot:backend");
        let _ = writeln!(words, "It speaks {speaks}, as this host does. Nothing is wrong with it.");
    } else {
        words.push_str("This host cannot use it:\n");
        for flaw in &checked.flaws {
            let _ = writeln!(words, "  {flaw}\n    {}", flaw.advice());
            for line in flaw.log() {
                let _ = writeln!(words, "    | {line}");
            }
        }
    }
    let flaws: Vec<_> = (checked.flaws.iter())
        .map(|f| json!({ "flaw": f, "message": f.to_string(), "advice": f.advice() }))
        .collect();
    output.done(
        json!({
            "file": file, "size": checked.size, "digest": checked.digest,
            "imports": checked.imports, "description": checked.description,
            "contract": contract, "flaws": flaws, "sound": sound,
        }),
        &words,
    );
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::from(AT_FAULT) })
}
