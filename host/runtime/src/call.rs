//! A call of a plugin, and what comes of it: the shapes that go over the socket to the process
//! in which plugins run, and stay in memory where there is none.

use serde::{Deserialize, Serialize};
use snapslot_capture::{Act, Plan, PlanBuilder, PlanError, Save, Seal, Step};
use snapslot_command::Place;

use crate::bindings::types::{
    Answer, Argument, Change, Description, ExtentPage, Facts, Failure, Goal, StretchPage, View,
};
use crate::outside::Grants;

/// What is asked of a plugin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    Describe,
    Inspect,
    Plan(Goal),
    Extents { view: View, cursor: u64, max: u32 },
    Measure { identity: String, quick: bool },
    Differences { identity: String, cursor: u64, max: u32 },
    Explain { command: String, answer: Answer },
}

impl Call {
    /// The export's name.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Call::Describe => "describe",
            Call::Inspect => "inspect",
            Call::Plan(_) => "plan",
            Call::Extents { .. } => "extents",
            Call::Measure { .. } => "measure",
            Call::Differences { .. } => "differences",
            Call::Explain { .. } => "explain",
        }
    }
}

/// What it gave; a plan in one of the shapes it has on its way.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply<P> {
    Described(Description),
    Facts(Facts),
    Planned(P),
    Page(ExtentPage),
    Change(Change),
    Stretches(StretchPage),
    Explained(Failure),
}

impl<P> Reply<P> {
    pub(crate) fn try_map<Q, E>(self, f: impl FnOnce(P) -> Result<Q, E>) -> Result<Reply<Q>, E> {
        Ok(match self {
            Reply::Planned(p) => Reply::Planned(f(p)?),
            Reply::Described(d) => Reply::Described(d),
            Reply::Facts(facts) => Reply::Facts(facts),
            Reply::Page(page) => Reply::Page(page),
            Reply::Change(change) => Reply::Change(change),
            Reply::Stretches(page) => Reply::Stretches(page),
            Reply::Explained(failure) => Reply::Explained(failure),
        })
    }

    pub(crate) fn map<Q>(self, f: impl FnOnce(P) -> Q) -> Reply<Q> {
        match self.try_map(|p| Ok::<Q, std::convert::Infallible>(f(p))) {
            Ok(reply) => reply,
            Err(never) => match never {},
        }
    }
}

/// Why it gave nothing.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ended {
    /// It says no.
    Refused(Failure),
    /// It trapped, or ran out of a limit: the cause, and the wasm backtrace for its author.
    Fault { cause: String, trace: Vec<String> },
}

/// A plan with what each of its commands was made from.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    pub(crate) acts: Vec<(String, Vec<Argument>)>,
}

/// A plan in words for the socket. Commands are not in it, only what they are made from: the
/// receiver makes them, by its own grants.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Draft {
    steps: Vec<DraftStep>,
    seal: Option<(u64, u64)>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
enum DraftStep {
    Write {
        offset: u64,
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    Fill {
        offset: u64,
        length: u64,
        pattern: Vec<u8>,
    },
    Mask {
        offset: u64,
        count: u32,
        stride: u32,
        clear: u64,
        set: u64,
        #[serde(with = "serde_bytes")]
        select: Vec<u8>,
    },
    Extend {
        size: u64,
    },
    Act {
        action: String,
        arguments: Vec<Argument>,
    },
    Save {
        mark: String,
        taken_seconds: u64,
        taken_nanoseconds: u32,
        full_copy: bool,
    },
    PutBack {
        mark: String,
    },
    Discard {
        mark: String,
    },
    Barrier {
        title: String,
    },
}

impl From<Planned> for Draft {
    fn from(planned: Planned) -> Draft {
        let mut acts = planned.acts.into_iter();
        let seal = planned.plan.seal().map(|s| (s.offset, s.bits));
        let notes = planned.plan.notes().to_vec();
        let drafted = |step: Step| {
            Some(match step {
                Step::Write { offset, data } => DraftStep::Write { offset, data },
                Step::Fill { offset, length, pattern } => {
                    DraftStep::Fill { offset, length, pattern }
                }
                Step::Mask(m) => DraftStep::Mask {
                    offset: m.offset,
                    count: m.count,
                    stride: m.stride,
                    clear: m.clear,
                    set: m.set,
                    select: m.select,
                },
                Step::Extend { size } => DraftStep::Extend { size },
                Step::Act(_) => {
                    let (action, arguments) = acts.next()?;
                    DraftStep::Act { action, arguments }
                }
                Step::Save(s) => DraftStep::Save {
                    mark: s.mark,
                    taken_seconds: s.taken_seconds,
                    taken_nanoseconds: s.taken_nanoseconds,
                    full_copy: s.full_copy,
                },
                Step::PutBack { mark } => DraftStep::PutBack { mark },
                Step::Discard { mark } => DraftStep::Discard { mark },
                Step::Barrier { title } => DraftStep::Barrier { title },
            })
        };
        Draft {
            steps: planned.plan.into_steps().into_iter().filter_map(drafted).collect(),
            seal,
            notes,
        }
    }
}

/// A draft that is no plan.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DraftError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{}", .0.message)]
    Act(Failure),
}

impl Draft {
    /// The plan, every step of it checked anew and every command made here.
    pub(crate) fn build(self, grants: &Grants, place: &Place) -> Result<Plan, DraftError> {
        let mut plan = PlanBuilder::new();
        if let Some((offset, bits)) = self.seal {
            plan.seal(Seal { offset, bits })?;
        }
        for note in &self.notes {
            plan.note(note)?;
        }
        let image = |allowed: bool, what: &str| match allowed {
            true => Ok(()),
            false => Err(DraftError::Act(crate::outside::not_granted(what, ""))),
        };
        for step in self.steps {
            match step {
                DraftStep::Write { offset, data } => {
                    image(grants.changes, "change of image disk")?;
                    plan.write(offset, data)?;
                }
                DraftStep::Fill { offset, length, pattern } => {
                    image(grants.changes, "change of image disk")?;
                    plan.fill(offset, length, pattern)?;
                }
                DraftStep::Mask { offset, count, stride, clear, set, select } => {
                    image(grants.changes, "change of image disk")?;
                    plan.mask(snapslot_capture::Mask {
                        offset,
                        count,
                        stride,
                        clear,
                        set,
                        select,
                    })?;
                }
                DraftStep::Extend { size } => {
                    image(grants.changes, "change of image disk")?;
                    plan.extend(size)?;
                }
                DraftStep::Act { action, arguments } => {
                    let filled = grants.act(place, &action, &arguments).map_err(DraftError::Act)?;
                    plan.act(Act { action, command: filled.command, guard: filled.guard })?;
                }
                DraftStep::Save { mark, taken_seconds, taken_nanoseconds, full_copy } => {
                    image(grants.copies, "copies")?;
                    plan.save(Save { mark, taken_seconds, taken_nanoseconds, full_copy })?;
                }
                DraftStep::PutBack { mark } => {
                    image(grants.copies, "copies")?;
                    plan.put_back(mark)?;
                }
                DraftStep::Discard { mark } => {
                    image(grants.copies, "copies")?;
                    plan.discard(mark)?;
                }
                DraftStep::Barrier { title } => plan.barrier(&title)?,
            }
        }
        Ok(plan.finish()?)
    }
}
