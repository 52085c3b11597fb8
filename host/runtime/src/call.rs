//! A call of a plugin, and what comes of it: the shapes that go over the socket to the process
//! in which plugins run, and stay in memory where there is none.

use serde::{Deserialize, Serialize};
use snapslot_capture::{Act, Plan, PlanBuilder, PlanError, Save, Seal, Step};
use snapslot_command::Place;

use crate::bindings::types::{
    Answer, Argument, Change, Description, ExtentPage, Facts, Failure, Goal, StretchPage, View,
};
use crate::outside::Grants;
use crate::shown::plain;

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

/// A plan on its way over the socket: its steps, and what belongs to all of it. Commands are not in it,
/// only what they are made from: the receiver makes them, by its own grants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DraftEnd {
    pub(crate) seal: Option<(u64, u64)>,
    pub(crate) notes: Vec<String>,
}

/// One step of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum DraftStep {
    Write {
        offset: u64,
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    Fill {
        offset: u64,
        length: u64,
        #[serde(with = "serde_bytes")]
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

impl DraftStep {
    /// Roughly how many bytes it takes on its way.
    pub(crate) fn weight(&self) -> usize {
        let data = match self {
            DraftStep::Write { data, .. } => data.len(),
            DraftStep::Mask { select, .. } => select.len(),
            DraftStep::Act { arguments, .. } => {
                arguments.iter().map(|a| a.hole.len() + a.value.len()).sum()
            }
            _ => 0,
        };
        data + 64
    }
}

/// The steps of a plan for the socket, and the rest of it.
pub(crate) fn drafted(planned: Planned) -> (impl Iterator<Item = DraftStep>, DraftEnd) {
    let mut acts = planned.acts.into_iter();
    let seal = planned.plan.seal().map(|s| (s.offset, s.bits));
    let end = DraftEnd { seal, notes: planned.plan.notes().to_vec() };
    let drafted = move |step: Step| {
        Some(match step {
            Step::Write { offset, data } => DraftStep::Write { offset, data },
            Step::Fill { offset, length, pattern } => DraftStep::Fill { offset, length, pattern },
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
    (planned.plan.into_steps().into_iter().filter_map(drafted), end)
}

/// A draft that is no plan.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DraftError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{}", .0.message)]
    Act(Failure),
    #[error("it planned without being asked for a plan")]
    Unasked,
}

/// A plan being made of what comes over the socket: every step is checked anew, and every command made
/// here.
pub(crate) struct Building<'g> {
    plan: PlanBuilder,
    grants: &'g Grants,
    /// Where, if a plan was asked for.
    place: Option<&'g Place>,
}

impl<'g> Building<'g> {
    pub(crate) fn new(grants: &'g Grants, place: Option<&'g Place>) -> Self {
        Building { plan: PlanBuilder::new(), grants, place }
    }

    pub(crate) fn add(&mut self, step: DraftStep) -> Result<(), DraftError> {
        let Some(place) = self.place else { return Err(DraftError::Unasked) };
        let granted = match &step {
            DraftStep::Write { .. }
            | DraftStep::Fill { .. }
            | DraftStep::Mask { .. }
            | DraftStep::Extend { .. } => {
                self.grants.changes.then_some(()).ok_or("change of image disk")
            }
            DraftStep::Save { .. } | DraftStep::PutBack { .. } | DraftStep::Discard { .. } => {
                self.grants.copies.then_some(()).ok_or("copies")
            }
            DraftStep::Act { .. } | DraftStep::Barrier { .. } => Ok(()),
        };
        granted.map_err(|what| DraftError::Act(crate::outside::not_granted(what, "")))?;
        let plan = &mut self.plan;
        match step {
            DraftStep::Write { offset, data } => plan.write(offset, data)?,
            DraftStep::Fill { offset, length, pattern } => plan.fill(offset, length, pattern)?,
            DraftStep::Mask { offset, count, stride, clear, set, select } => {
                plan.mask(snapslot_capture::Mask { offset, count, stride, clear, set, select })?;
            }
            DraftStep::Extend { size } => plan.extend(size)?,
            DraftStep::Act { action, arguments } => {
                let filled =
                    self.grants.act(place, &action, &arguments).map_err(DraftError::Act)?;
                plan.act(Act { action, command: filled.command, guard: filled.guard })?;
            }
            DraftStep::Save { mark, taken_seconds, taken_nanoseconds, full_copy } => {
                plan.save(Save { mark, taken_seconds, taken_nanoseconds, full_copy })?;
            }
            DraftStep::PutBack { mark } => plan.put_back(mark)?,
            DraftStep::Discard { mark } => plan.discard(mark)?,
            DraftStep::Barrier { title } => plan.barrier(&plain(&title, usize::MAX))?,
        }
        Ok(())
    }

    pub(crate) fn end(mut self, end: DraftEnd) -> Result<Plan, DraftError> {
        if self.place.is_none() {
            return Err(DraftError::Unasked);
        }
        if let Some((offset, bits)) = end.seal {
            self.plan.seal(Seal { offset, bits })?;
        }
        for note in &end.notes {
            self.plan.note(&plain(note, usize::MAX))?;
        }
        Ok(self.plan.finish()?)
    }
}
