//! Grants, in words a person can approve.

use std::fmt::Write;

use snapslot_engine::{CommandGrant, Description, Role};

/// What it is, and every grant it asks for. Those of these names are marked as not given.
pub fn grants(d: &Description, denied: &[String]) -> String {
    let mut words = format!("{} {}: {}\n", d.name, d.version, d.summary);
    if !d.endings.is_empty() {
        let _ = writeln!(words, "Serves paths that end in {}", d.endings.join(", "));
    }
    let _ = writeln!(words, "Grants:");
    let not = |name: &str| match denied.iter().any(|d| d == name) {
        true => "NOT approved: ",
        false => "",
    };
    for grant in &d.images {
        let role = grant.role.word();
        let what = match grant.role {
            Role::Disk => "the disk's image",
            Role::Backing => "the backing file",
            Role::PoolMetadata => {
                "a moment of the thin pool's metadata, which the host holds meanwhile (a metadata snapshot)"
            }
        };
        let reason = &grant.reason;
        let _ = writeln!(words, "  {}read {what}: {reason}", not(&format!("image {role}")));
        if grant.changes {
            // What cannot be read cannot be changed either.
            let not = match not(&format!("image {role}")) {
                "" => not(&format!("change of image {role}")),
                denied => denied,
            };
            let _ = writeln!(words, "  {not}plan changes of {what}: {reason}");
        }
    }
    if let Some(reason) = &d.copies {
        let not = not("copies");
        let _ = writeln!(words, "  {not}have whole copies of the disk kept: {reason}");
    }
    for (kind, may, list) in [("query", "ask", &d.queries), ("action", "have done", &d.actions)] {
        for grant in list {
            let not = not(&format!("{kind} {}", grant.name));
            let template = grant.template.join(" ");
            let _ = writeln!(words, "  {not}{may} `{template}`: {}", grant.reason);
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
