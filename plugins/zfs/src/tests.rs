//! Goal: what this backend reports, plans and explains is right for what ZFS really says.
//!
//! Method: `observed/zfs-2.1.11.txt` is a record of ZFS 2.1.11 on Linux 6.1: the commands of this
//! backend's own grants, the programs among them, with their output. The tests feed those
//! listings and complaints to the planner. Where a case needs a state that was not recorded, a
//! field of a recorded line is changed, and the test says which.

mod explains;
mod looks;
mod plans;

use snapslot_plugin_sdk::double::{MemoryTarget, Recorded, RecordedPlan};
use snapslot_plugin_sdk::{Answer, Backend, Facts, Failure, Goal, Grammar, NewSnapshot, argument};

use crate::Zfs;
use crate::grants::{self, COLUMNS, LOOK};

const MARK: &str = "0123456789abcdef";
const OTHER_MARK: &str = "fedcba9876543210";

/// A command of the record and what it said.
#[derive(Clone, Debug)]
struct Entry {
    section: String,
    command: String,
    answer: Answer,
}

/// Reads the record: `=== section`, `$ command   -> rc=N (T ms)`, `   | output`, `   ! errors`.
fn record() -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut section = String::new();
    for line in include_str!("../observed/zfs-2.1.11.txt").lines() {
        if let Some(name) = line.strip_prefix("=== ") {
            section = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("$ ") {
            let (command, result) = rest.rsplit_once("   -> rc=").expect("a command's result");
            let code = result.split(' ').next().and_then(|c| c.parse().ok()).expect("a code");
            let answer = Answer { exit_code: code, output: Vec::new(), errors: Vec::new() };
            entries.push(Entry { section: section.clone(), command: command.to_owned(), answer });
        } else if let (Some(entry), Some((stream, text))) = (
            entries.last_mut(),
            line.strip_prefix("   | ")
                .map(|t| (0, t))
                .or(line.strip_prefix("   ! ").map(|t| (1, t))),
        ) {
            let said =
                if stream == 0 { &mut entry.answer.output } else { &mut entry.answer.errors };
            said.extend_from_slice(text.as_bytes());
            said.push(b'\n');
        }
    }
    assert!(entries.len() > 100, "the record has only {} commands", entries.len());
    entries
}

/// What was said to the `n`th command (from 0) of a section that contains `part`.
fn said(section: &str, part: &str, n: usize) -> Answer {
    let all = record();
    let mut matching = all.iter().filter(|e| e.section == section && e.command.contains(part));
    let Some(entry) = matching.nth(n) else { panic!("no {n}th `{part}` in section {section}") };
    entry.answer.clone()
}

/// The volume as the `n`th look of a section at it shows it.
fn seen(section: &str, dataset: &str, n: usize) -> MemoryTarget {
    let look = format!("{} {dataset}", COLUMNS[..RECORDED].join(","));
    let all = record();
    let mut looks =
        all.iter().filter(|e| e.section == section && e.command.ends_with(look.as_str()));
    let Some(entry) = looks.nth(n) else { panic!("no {n}th look at {dataset} in {section}") };
    answering(dataset, with_of(dataset, entry.answer.clone()))
}

/// Of the columns, so many were recorded. The last one came later: `tests/real` has it from ZFS itself.
const RECORDED: usize = COLUMNS.len() - 1;

/// The column `snapslot:of` as a take of ours leaves it: the dataset's guid on what bears a mark.
fn with_of(dataset: &str, mut answer: Answer) -> Answer {
    let text = String::from_utf8(answer.output).expect("text");
    let field = |line: &str, n: usize| line.split('\t').nth(n).map(str::to_owned);
    let guid = text.lines().find(|l| field(l, 0).as_deref() == Some(dataset));
    let guid = guid.and_then(|line| field(line, 2)).unwrap_or_default();
    let mut whole = String::new();
    for line in text.lines() {
        // A tab in a property of ours tears its line; what follows is not a line of the listing.
        let marked = field(line, RECORDED - 2).is_some_and(|mark| mark != "-");
        whole.push_str(line);
        if line.matches('\t').count() + 1 >= RECORDED {
            whole.push_str(&format!("\t{}", if marked { &guid } else { "-" }));
        }
        whole.push('\n');
    }
    answer.output = whole.into_bytes();
    answer
}

fn answering(dataset: &str, answer: Answer) -> MemoryTarget {
    MemoryTarget {
        place: dataset.to_owned(),
        answers: vec![(LOOK.to_owned(), answer)],
        ..MemoryTarget::default()
    }
}

/// The same with one field changed: of the line that begins with this name.
fn changed(mut target: MemoryTarget, name: &str, column: &str, value: &str) -> MemoryTarget {
    let index = COLUMNS.iter().position(|c| *c == column).expect("a column");
    let text = String::from_utf8(target.answers[0].1.output.clone()).expect("text");
    let mut found = false;
    let mut lines = String::new();
    for line in text.lines() {
        let mut fields: Vec<&str> = line.split('\t').collect();
        if fields[0] == name {
            fields[index] = value;
            found = true;
        }
        lines.push_str(&fields.join("\t"));
        lines.push('\n');
    }
    assert!(found, "no line of {name} in:\n{text}");
    target.answers[0].1.output = lines.into_bytes();
    target
}

fn facts(target: &MemoryTarget) -> Facts {
    Zfs::inspect(target).unwrap_or_else(|f| panic!("looking at {}: {f:?}", target.place))
}

fn planned(target: &MemoryTarget, goal: &Goal) -> Result<RecordedPlan, Failure> {
    let mut plan = RecordedPlan::default();
    Zfs::plan(target, goal, &mut plan).map(|()| plan)
}

fn steps(target: &MemoryTarget, goal: &Goal) -> Vec<Recorded> {
    match planned(target, goal) {
        Ok(plan) => plan.steps,
        Err(failure) => panic!("{goal:?} of {}: {failure:?}", target.place),
    }
}

fn refused(target: &MemoryTarget, goal: &Goal) -> Failure {
    match planned(target, goal) {
        Ok(plan) => panic!("{goal:?} of {} is planned: {plan:?}", target.place),
        Err(failure) => failure,
    }
}

fn held(mark: &str) -> Goal {
    Goal::Held(NewSnapshot {
        mark: mark.to_owned(),
        taken_seconds: 1_795_344_146,
        taken_nanoseconds: 5,
        room: None,
        beside: 0,
        full_copy: false,
    })
}

fn restored(guid: u64) -> Goal {
    Goal::Restored(guid.to_string())
}

fn empty(guid: u64) -> Goal {
    Goal::Empty(guid.to_string())
}

fn act(action: &str, mark: &str, guid: u64) -> Vec<Recorded> {
    let snapshot = argument("snapshot", format!("snapslot-{mark}"));
    vec![Recorded::Act(action.to_owned(), vec![snapshot, argument("guid", guid)])]
}

fn data<'a>(failure: &'a Failure, key: &str) -> &'a str {
    let found = failure.data.iter().find(|(k, _)| k == key);
    found.map_or("", |(_, value)| value)
}

/// What stands for a guid in a line that is looked for.
const GUID: &str = "<guid>";

/// A template as it stands in the record.
fn filled(template: &[String], values: &[(&str, &str)]) -> String {
    let mut line = template.join(" ");
    for (hole, value) in values {
        line = line.replace(&format!("{{{hole}}}"), value);
    }
    line
}

#[test]
fn the_record_was_made_with_these_grants() {
    let all = record();
    // The latter is made anew whenever a grant changes, by `tests/real/run --record`.
    let latest = include_str!("../../../tests/real/transcripts/zfs.txt");
    let latest = latest.lines().filter_map(|l| l.strip_prefix("$ ")?.rsplit_once("   -> rc="));
    let latest: Vec<&str> = latest.map(|(command, _)| command).collect();
    // Which guid it was does not matter.
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let alike = |line: &str, command: &str| match line.split_once(GUID) {
        None => line == command,
        Some((before, after)) => command
            .strip_prefix(before)
            .and_then(|rest| rest.strip_suffix(after))
            .is_some_and(number),
    };
    let recorded = |line: &str| {
        let real = line.replace(" < ", " </job/record/");
        all.iter().any(|e| alike(line, &e.command)) || latest.iter().any(|c| alike(&real, c))
    };
    let values = [
        ("pool", "tank"),
        ("dataset", "tank/vm1"),
        ("snapshot", "snapslot-0123456789abcdef"),
        ("mark", MARK),
        ("seconds", "1795344146"),
        ("nanoseconds", "5"),
        ("guid", GUID),
    ];
    for grant in grants::queries().iter().chain(&grants::actions()) {
        let mut lines = vec![filled(&grant.template, &values)];
        lines.extend(grant.guard.iter().map(|g| filled(&g.template, &values)));
        for mut line in lines {
            if grant.name.ends_with("mounted") {
                line = line.replace("tank/vm1", "tank/ds");
            }
            if grant.input.is_some() {
                line = format!("{line} < {}.lua", grant.name);
            }
            assert!(recorded(&line), "the record lacks `{line}` of the grant {}", grant.name);
        }
    }
    // What a guard compares: nothing but the guid is printed.
    let guard = said("guards", "zfs list -Hp -o guid", 0);
    assert_eq!(guard.output, b"7919502299107989175\n");
}

#[test]
fn grants_hold_what_they_promise() {
    let (queries, actions) = (grants::queries(), grants::actions());
    for grant in queries.iter().chain(&actions) {
        let name = &grant.name;
        assert_eq!(grant.template[0], "zfs", "{name}");
        assert!(!grant.reason.is_empty() && grant.reason.len() < 300, "{name}");
        let guard = grant.guard.iter().flat_map(|g| &g.template);
        let words: Vec<&String> = grant.template.iter().chain(guard).collect();
        for hole in &grant.holes {
            let stands = words.iter().any(|w| w.contains(&format!("{{{}}}", hole.name)));
            let guards = grant.guard.as_ref().is_some_and(|g| g.equals == hole.name);
            assert!(stands || guards, "{name} has the hole {} nowhere", hole.name);
        }
        // Options that reach further than the one snapshot, or later than now.
        for word in ["-r", "-R", "-f", "-rf", "-Rf"] {
            assert!(!grant.template.iter().any(|w| w == word), "{name} has {word}");
        }
        let depth = grant.template.iter().position(|w| w == "-d");
        assert!(depth.is_none() || name == LOOK, "{name} has -d");
    }
    for action in &actions {
        let destroys = !action.name.starts_with("take");
        let checked = action.guard.is_some() || action.input.is_some();
        assert_eq!(destroys, checked, "{} must look at the guid right before", action.name);
        assert!(action.holes.iter().any(|h| h.grammar == Grammar::ZfsOwn), "{}", action.name);
        if let Some(program) = &action.input {
            assert!(program.starts_with(&format!("-- snapslot: {}\n", action.name)));
            assert!(program.contains(r#"zfs.get_prop(snapshot, "guid") ~= number(arguments[3])"#));
        }
    }
    assert!(queries.iter().all(|q| ["list", "get", "holds"].contains(&q.template[1].as_str())));
}
