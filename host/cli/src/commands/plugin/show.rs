//! Which plugins there are, and what each may do.

use std::fmt::Write;
use std::process::ExitCode;

use serde_json::json;
use snapslot_engine::Engine;

use super::words::grants;
use crate::output::{Failed, Output};
use crate::words::moment;

/// Of a digest, enough to tell plugins apart.
const DIGEST_SHOWN: usize = 12;

pub fn list(engine: &Engine, output: Output) -> Result<ExitCode, Failed> {
    let installed = engine.installed()?;
    let mut words = String::new();
    let mut rows = Vec::new();
    for known in engine.backends() {
        let of = (installed.iter()).find(|p| p.name == known.name && !engine.is_built_in(&p.name));
        let source = if of.is_some() { "installed" } else { "built-in" };
        // One that cannot be loaded is in the list all the same: with what is wrong with it.
        match engine.plugin(&known.name) {
            Ok(plugin) => {
                let d = plugin.description();
                let digest = plugin.digest();
                let short = &digest[..DIGEST_SHOWN.min(digest.len())];
                let _ =
                    writeln!(words, "{}\t{}\t{source}\t{short}\t{}", d.name, d.version, d.summary);
                rows.push(json!({
                    "name": d.name, "version": d.version, "summary": d.summary,
                    "source": source, "digest": digest, "problem": null,
                }));
            }
            Err(error) => {
                let _ = writeln!(words, "{}\t-\t{source}\t-\tcannot be used: {error}", known.name);
                rows.push(json!({
                    "name": known.name, "version": null, "summary": null, "source": source,
                    "digest": of.map(|p| &p.digest), "problem": error.to_string(),
                }));
            }
        }
    }
    output.done(json!({ "plugins": rows }), &words);
    Ok(ExitCode::SUCCESS)
}

pub fn show(engine: &Engine, output: Output, name: &str) -> Result<ExitCode, Failed> {
    // What befell the installed ones does not keep a built-in one from being shown.
    let installed = match engine.is_built_in(name) {
        true => None,
        false => engine.installed()?.into_iter().find(|p| p.name == name),
    };
    let plugin = engine.plugin(name)?;
    // What it has is a part of what it asks for.
    let has = plugin.description();
    let d = installed.as_ref().map_or(has, |p| &p.approved.declared);
    let denied = installed.as_ref().map_or(&[][..], |p| &p.approved.denied);
    let mut words = grants(d, denied);
    let _ = writeln!(words, "Digest: sha256 {}", plugin.digest());
    if let Some(p) = &installed {
        let _ = writeln!(words, "Added {} by user {}.", moment(p.added), p.user);
        if has.grant_names().is_empty() {
            words.push_str("Nothing was approved: it can do nothing.\n");
        }
    }
    let inert = plugin.imports().iter().filter(|i| !i.starts_with("snapslot:")).count();
    let _ = writeln!(
        words,
        "It is a wasm component: it has no file, network, process, clock or write access of any kind.\n\
         Of its {} imports {inert} are of its language's runtime and lead nowhere.",
        plugin.imports().len()
    );
    let held = engine.confinement();
    let _ = writeln!(words, "{}", held.in_words());
    let source = if installed.is_some() { "installed" } else { "built-in" };
    output.done(
        json!({
            "name": d.name, "version": d.version, "summary": d.summary, "source": source,
            "endings": d.endings, "place": d.place.word(), "copies": d.copies, "images": d.images,
            "queries": d.queries, "actions": d.actions, "digest": plugin.digest(),
            "imports": plugin.imports(), "confinement": held, "denied": denied,
            "effective": has.grant_names(),
            "added": installed.as_ref().map(|p| p.added), "user": installed.as_ref().map(|p| p.user),
        }),
        &words,
    );
    Ok(ExitCode::SUCCESS)
}
