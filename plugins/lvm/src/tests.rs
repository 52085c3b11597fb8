//! Tests of the whole backend, through the contract: reports in, facts and plans out.
//!
//! - [`recorded`]: reports of a real LVM in every state a volume passes through, and what is made
//!   of them;
//! - [`crash`]: every plan, stopped before, inside and after every command, on a small LVM in
//!   memory ([`group`]);
//! - [`metadata`]: what two thin volumes share, in pools made here as the kernel makes them;
//! - [`refusals`]: what stands in the way, and the words for it.

mod crash;
mod grants;
mod group;
mod metadata;
mod recorded;
mod refusals;

use snapslot_plugin_sdk::double::{MemoryTarget, Recorded, RecordedPlan};
use snapslot_plugin_sdk::{Answer, Backend, Facts, Failure, Goal, NewSnapshot, Target};

use crate::Lvm;

/// The mark of the slot in all tests.
const MARK: &str = "0123456789abcdef";

/// What a real LVM printed.
const RECORDED: &str = include_str!("tests/recorded.txt");

/// A section of what was recorded.
fn recorded_text(name: &str) -> &'static str {
    let head = format!("\n== {name}\n");
    let at = RECORDED.find(&head).unwrap_or_else(|| panic!("{name} was not recorded"));
    let rest = &RECORDED[at + head.len()..];
    rest.find("\n== ").map_or(rest, |end| &rest[..=end])
}

/// A complaint that was recorded, as the answer of a command.
fn complaint(name: &str) -> Answer {
    let (first, errors) = recorded_text(name).split_once('\n').expect("exit code and words");
    let exit_code = first.strip_prefix("exit ").and_then(|n| n.parse().ok()).expect("exit N");
    Answer { exit_code, output: Vec::new(), errors: errors.as_bytes().to_vec() }
}

/// The volume `vm1` in the group that a recorded report tells of.
fn target(name: &str) -> MemoryTarget {
    let group = if name.starts_with("thin") { "vt" } else { "vk" };
    with_report(group, recorded_text(name))
}

fn with_report(group: &str, report: &str) -> MemoryTarget {
    let target = MemoryTarget { place: format!("{group}/vm1"), ..MemoryTarget::default() };
    target.answering("look", report)
}

fn facts(target: &dyn Target) -> Result<Facts, Failure> {
    Lvm::inspect(target)
}

/// A plan and its notes, or why there is none.
fn plan(target: &dyn Target, goal: &Goal) -> Result<RecordedPlan, Failure> {
    let mut plan = RecordedPlan::default();
    Lvm::plan(target, goal, &mut plan)?;
    Ok(plan)
}

/// A goal: held under the usual mark.
fn held(room: Option<u64>) -> Goal {
    Goal::Held(NewSnapshot {
        mark: MARK.to_owned(),
        taken_seconds: 1_700_000_000,
        taken_nanoseconds: 5,
        room,
        beside: 0,
        full_copy: false,
    })
}

/// A plan in short: `action hole=value …`, one line each.
fn short(plan: &RecordedPlan) -> Vec<String> {
    let line = |step: &Recorded| match step {
        Recorded::Act(action, arguments) => {
            let values = arguments.iter().map(|a| format!(" {}={}", a.hole, a.value));
            format!("{action}{}", values.collect::<String>())
        }
        other => panic!("a plan of commands has the step {other:?}"),
    };
    plan.steps.iter().map(line).collect()
}

/// The UUID of the volume with this name in a recorded report.
fn uuid(name: &str, volume: &str) -> String {
    let text = recorded_text(name);
    let at = text.find(&format!("\"lv_name\":\"{volume}\"")).expect("the volume");
    let rest = &text[at..];
    let at = rest.find("\"lv_uuid\":\"").expect("its UUID") + "\"lv_uuid\":\"".len();
    rest[at..at + 38].to_owned()
}
