//! The engine's core for storage that is changed by commands, on modelled storage: what
//! [`crate::sim_host`] is for images. Look, plan, make each command of a grant, run them in order, guards first; after a crash
//! look again, end what is half done.

use snapslot_command::{Executor, Filled, Grammar, Grant, Guard, Hole, Place, PlaceKind};
use snapslot_plugin_sdk::double::{Recorded, RecordedPlan};
use snapslot_plugin_sdk::{
    self as sdk, Answer, Argument, Backend, CommandGrant, Facts, Failure, FailureKind, Goal, Image,
    Role, SavedCopy, Saving, Target,
};

use crate::storage::machine::Machine;

/// A volume as a backend sees it: its place and its queries.
struct Volume<'a> {
    place: Place,
    queries: Vec<Grant>,
    actions: Vec<Grant>,
    storage: &'a Machine,
}

fn grammar(declared: sdk::Grammar) -> Grammar {
    match declared {
        sdk::Grammar::LvmGroup => Grammar::LvmGroup,
        sdk::Grammar::LvmVolume => Grammar::LvmVolume,
        sdk::Grammar::ZfsPool => Grammar::ZfsPool,
        sdk::Grammar::ZfsDataset => Grammar::ZfsDataset,
        sdk::Grammar::Path => Grammar::Path,
        sdk::Grammar::LvmOwn => Grammar::LvmOwn,
        sdk::Grammar::ZfsOwn => Grammar::ZfsOwn,
        sdk::Grammar::PathOwn => Grammar::PathOwn,
        sdk::Grammar::Mark => Grammar::Mark,
        sdk::Grammar::Number => Grammar::Number,
        sdk::Grammar::Uuid => Grammar::Uuid,
        sdk::Grammar::LvmTag => Grammar::LvmTag,
    }
}

fn grant(declared: CommandGrant) -> Grant {
    let hole = |h: sdk::Hole| Hole { name: h.name, grammar: grammar(h.grammar) };
    Grant {
        name: declared.name,
        template: declared.template,
        holes: declared.holes.into_iter().map(hole).collect(),
        input: declared.input,
        guard: declared.guard.map(|g| Guard { template: g.template, equals: g.equals }),
        deadline_seconds: u64::from(declared.deadline_seconds),
    }
}

impl<'a> Volume<'a> {
    fn of<B: Backend>(storage: &'a Machine) -> Result<Self, String> {
        let d = B::describe();
        let kind = match d.place {
            sdk::PlaceKind::Image => PlaceKind::Image,
            sdk::PlaceKind::LvmVolume => PlaceKind::LvmVolume,
            sdk::PlaceKind::ZfsDataset => PlaceKind::ZfsDataset,
            sdk::PlaceKind::Directory => PlaceKind::Directory,
        };
        Ok(Volume {
            place: Place::parse(kind, storage.kind().place()).map_err(|e| e.to_string())?,
            queries: d.queries.into_iter().map(grant).collect(),
            actions: d.actions.into_iter().map(grant).collect(),
            storage,
        })
    }

    fn filled(&self, grants: &[Grant], name: &str, values: &[Argument]) -> Result<Filled, String> {
        let values: Vec<(&str, &str)> =
            values.iter().map(|a| (a.hole.as_str(), a.value.as_str())).collect();
        let grant = grants.iter().find(|g| g.name == name).ok_or("it is not declared")?;
        grant.fill(&self.place, &values).map_err(|e| e.to_string())
    }
}

impl Target for Volume<'_> {
    fn place(&self) -> String {
        self.place.to_string()
    }

    fn image(&self, _: Role) -> Result<Box<dyn Image + '_>, Failure> {
        Err(Failure::new(FailureKind::NotGranted, "not-granted", "no image here"))
    }

    fn ask(&self, query: &str, arguments: &[Argument]) -> Result<Answer, Failure> {
        let io = |why: String| Failure::new(FailureKind::Io, "ask", why);
        let filled = self.filled(&self.queries, query, arguments).map_err(io)?;
        let a = self.storage.run(&filled.command).map_err(|e| io(e.to_string()))?;
        Ok(Answer { exit_code: a.exit_code, output: a.output, errors: a.errors })
    }

    fn copies(&self) -> Result<Vec<SavedCopy>, Failure> {
        Err(Failure::new(FailureKind::NotGranted, "not-granted", "no copies here"))
    }

    fn saving(&self) -> Result<Saving, Failure> {
        Err(Failure::new(FailureKind::NotGranted, "not-granted", "no copies here"))
    }
}

/// Looks at the volume.
pub fn inspect<B: Backend>(storage: &Machine) -> Result<Facts, String> {
    B::inspect(&Volume::of::<B>(storage)?).map_err(|f| f.message)
}

/// Plans a goal and runs the commands. The error says which one failed, or why there was none.
pub fn run<B: Backend>(storage: &Machine, goal: &Goal) -> Result<(), String> {
    let volume = Volume::of::<B>(storage)?;
    let mut plan = RecordedPlan::default();
    B::plan(&volume, goal, &mut plan).map_err(|f| f.message)?;
    let acts = plan.steps.into_iter().filter_map(|step| match step {
        Recorded::Act(action, arguments) => Some((action, arguments)),
        _ => None,
    });
    for (action, arguments) in acts {
        let told = |why: String| format!("{action}: {why}");
        let filled = volume.filled(&volume.actions, &action, &arguments).map_err(told)?;
        if let Some((look, expected)) = &filled.guard {
            let said = storage.run(look).map_err(|e| told(e.to_string()))?;
            let said = String::from_utf8_lossy(&said.output).trim().to_owned();
            if said != *expected {
                return Err(told(format!("`{look}` says {said:?}, not {expected:?}")));
            }
        }
        let answer = storage.run(&filled.command).map_err(|e| told(e.to_string()))?;
        if answer.exit_code != 0 {
            return Err(told(answer.complaint()));
        }
    }
    Ok(())
}

/// What the engine does at its next start: ends what is half done.
pub fn recover<B: Backend>(storage: &Machine) -> Result<Facts, String> {
    let facts = inspect::<B>(storage)?;
    if facts.unfinished.is_none() {
        return Ok(facts);
    }
    run::<B>(storage, &Goal::Settled)?;
    let facts = inspect::<B>(storage)?;
    match &facts.unfinished {
        None => Ok(facts),
        Some(what) => Err(format!("half done still: {what}")),
    }
}
