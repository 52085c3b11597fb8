//! A loaded plugin, and calling it.

use std::sync::Arc;

use snapslot_capture::Plan;
use snapslot_slot::is_mark;

use crate::apart::Component;
use crate::bindings::types::{
    Answer, Change, Description, ExtentPage, Facts, Failure, FailureKind, Finding, Goal, Snapshot,
    StretchPage, View,
};
use crate::call::{Call, Ended, Reply};
use crate::fault::CallError;
use crate::host::{Seen, Sight};
use crate::machine::{Linked, Loaded};
use crate::outside::{Grants, Outside, World};
use crate::record::{Asked, Ears, Recorded, in_short};
use crate::runtime::{Home, Runtime};
use crate::shown::{code, plain, unfit};

/// A loaded plugin.
pub struct Plugin<'r> {
    pub(crate) runtime: &'r Runtime,
    pub(crate) code: Code,
    pub(crate) digest: String,
    pub(crate) linked: Linked,
    pub(crate) description: Description,
    pub(crate) grants: Arc<Grants>,
    /// Names of what it asks for and was not given.
    pub(crate) denied: Vec<String>,
    /// Of those that are commands, the template.
    pub(crate) templates: Vec<(String, String)>,
}

/// Lines of its log that are shown with a fault.
const LINES_TOLD: usize = 32;

pub(crate) enum Code {
    Here(Box<Loaded>),
    Apart(Box<Component>),
}

impl Plugin<'_> {
    /// What it says of itself, with the grants it has: those it asks for and was given.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// The component's sha256, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What it imports, for people who ask.
    pub fn imports(&self) -> &[String] {
        &self.linked.imports
    }

    /// The version of the contract that it speaks, as in `0.1.0`.
    pub fn contract(&self) -> &str {
        &self.linked.contract
    }

    /// Looks at the volume.
    pub fn inspect(&self, sight: &Sight) -> Result<Facts, CallError> {
        let Reply::Facts(facts) = self.call(&Call::Inspect, Some(sight))? else {
            return Err(self.confused("inspect"));
        };
        fit(facts).map_err(|why| self.fault("inspect", why, vec![]))
    }

    /// Asks for the steps to the goal.
    pub fn plan(&self, sight: &Sight, goal: &Goal) -> Result<Plan, CallError> {
        match self.call(&Call::Plan(goal.clone()), Some(sight))? {
            Reply::Planned(plan) => Ok(plan),
            _ => Err(self.confused("plan")),
        }
    }

    /// Lists content.
    pub fn extents(
        &self,
        sight: &Sight,
        view: &View,
        cursor: u64,
        max: u32,
    ) -> Result<ExtentPage, CallError> {
        let call = Call::Extents { view: view.clone(), cursor, max };
        let Reply::Page(page) = self.call(&call, Some(sight))? else {
            return Err(self.confused("extents"));
        };
        let mut at = cursor;
        for extent in &page.extents {
            let end = extent.start.checked_add(extent.length);
            if extent.length == 0 || (at != cursor && extent.start != at) || extent.start > at {
                return Err(self.fault("extents", "its extents have gaps or overlap", vec![]));
            }
            at = end.ok_or_else(|| self.fault("extents", "an extent overflows", vec![]))?;
        }
        if page.extents.len() > max as usize || page.next.is_some_and(|n| n != at || n <= cursor) {
            return Err(self.fault("extents", "its page is longer or goes on elsewhere", vec![]));
        }
        Ok(page)
    }

    /// Measures change; `quick`: what little of the metadata shows is enough.
    pub fn measure(&self, sight: &Sight, identity: &str, quick: bool) -> Result<Change, CallError> {
        let call = Call::Measure { identity: identity.to_owned(), quick };
        match self.call(&call, Some(sight))? {
            Reply::Change(change) => Ok(change),
            _ => Err(self.confused("measure")),
        }
    }

    /// Lists where the machine's content lies elsewhere than the snapshot's.
    pub fn differences(
        &self,
        sight: &Sight,
        identity: &str,
        cursor: u64,
        max: u32,
    ) -> Result<StretchPage, CallError> {
        let call = Call::Differences { identity: identity.to_owned(), cursor, max };
        let Reply::Stretches(page) = self.call(&call, Some(sight))? else {
            return Err(self.confused("differences"));
        };
        let mut at = cursor;
        for stretch in &page.stretches {
            let end = stretch.start.checked_add(stretch.length);
            if stretch.length == 0 || stretch.start < at {
                return Err(self.fault("differences", "its runs overlap or go back", vec![]));
            }
            at = end.ok_or_else(|| self.fault("differences", "a run overflows", vec![]))?;
        }
        if page.stretches.len() > max as usize || page.next.is_some_and(|n| n < at || n <= cursor) {
            return Err(self.fault("differences", "its page is longer or goes back", vec![]));
        }
        Ok(page)
    }

    /// Puts into the contract's words what a command said when it failed. A plugin that cannot
    /// is passed over, and that is told: the command's own words are at hand.
    pub fn explain(&self, command: &str, answer: &Answer) -> Option<Failure> {
        let call = Call::Explain { command: command.to_owned(), answer: answer.clone() };
        let error = match self.call(&call, None) {
            Ok(Reply::Explained(failure)) => return Some(cleaned(failure)),
            Ok(_) => self.confused(call.name()),
            Err(error) => error,
        };
        tracing::warn!("{error}; what {command} said is told as it is");
        if let CallError::Fault { log, .. } = &error {
            for line in log {
                tracing::warn!(plugin = %self.description.name, "{line}");
            }
        }
        None
    }

    fn confused(&self, call: &'static str) -> CallError {
        self.fault(call, "it answered something else", vec![])
    }

    fn fault(&self, call: &'static str, cause: &str, log: Vec<String>) -> CallError {
        let clean = |text: &str| plain(text, 4096);
        CallError::Fault {
            plugin: self.description.name.clone(),
            call,
            cause: clean(cause),
            log: log.iter().map(|line| clean(line)).collect(),
        }
    }

    /// Holds a recorded call again, and gives what it answers now, in the shape of
    /// [`Recorded::result`].
    pub fn replay(&self, then: &Recorded) -> serde_json::Value {
        in_short(&self.call_unheard(&then.asked, then.sight.as_ref()).0)
    }

    /// One call, and written down if that is wanted.
    pub(crate) fn call(
        &self,
        call: &Call,
        sight: Option<&Sight>,
    ) -> Result<Reply<Plan>, CallError> {
        // The first thing it is asked is told when it is known what it was granted.
        let recording = self.runtime.recording.as_ref().filter(|_| !matches!(call, Call::Describe));
        let Some(recording) = recording else { return self.call_unheard(call, sight).0 };
        let ears = Ears::default();
        let heard = sight.map(|s| ears.at(s));
        let (result, log) = self.call_unheard(call, heard.as_ref());
        recording.write(self.asked(), call, sight, &ears, log, &result);
        result
    }

    /// Writes down, if that is wanted, what it said of itself.
    pub(crate) fn described(&self, asks: &Description) {
        if let Some(recording) = &self.runtime.recording {
            let result = Ok(Reply::Described(asks.clone()));
            let (none, log) = (Ears::default(), Vec::new());
            recording.write(self.asked(), &Call::Describe, None, &none, log, &result);
        }
    }

    fn asked(&self) -> Asked<'_> {
        let (plugin, digest) = (&self.description.name, &self.digest);
        Asked { plugin, digest, denied: &self.denied }
    }

    /// One call, wherever plugins run, and what it logged.
    fn call_unheard(
        &self,
        call: &Call,
        sight: Option<&Sight>,
    ) -> (Result<Reply<Plan>, CallError>, Vec<String>) {
        let mut outside = Outside::new(&self.description.name, self.grants.clone(), sight);
        outside.keep_all(self.runtime.recording.is_some());
        let (result, lines) = match (&self.runtime.home, &self.code) {
            (Home::Here(machine), Code::Here(loaded)) => {
                let seen = sight.map(|s| Seen { place: s.place.clone(), disk: s.disk.clone() });
                let grants = self.grants.clone();
                let prepared = machine.prepare(loaded);
                let (result, mut world, _) =
                    machine.call(prepared, call, grants, seen, Box::new(outside));
                (result.map(|reply| reply.map(|planned| planned.plan)), world.lines())
            }
            (Home::Apart(apart), Code::Apart(component)) => {
                let (cache, grants) = (&self.runtime.cache, &self.grants);
                let result = apart.call(component, cache, call, sight, grants, &mut outside);
                (result, outside.lines())
            }
            // A plugin's code is where its runtime is.
            _ => return (Err(self.confused(call.name())), Vec::new()),
        };
        let result = result.map_err(|ended| match ended {
            Ended::Refused(failure) => CallError::Refused(self.named(cleaned(failure))),
            Ended::Fault { cause, trace } => {
                let first = lines.len().saturating_sub(LINES_TOLD);
                let last = lines[first..].iter().cloned();
                let log = last.chain(trace.into_iter().take(16)).collect();
                self.fault(call.name(), &cause, log)
            }
        });
        (result, lines)
    }

    /// A failure that is the plugin's own fault, with whose it is: it asked for what it may not, and gave
    /// up. Which of the denied grants it lacks is told as it was declared: the plugin only says its name.
    fn named(&self, failure: Failure) -> Failure {
        use FailureKind::{Internal, Invalid, Limit, NotGranted};
        if !matches!(failure.kind, Internal | Invalid | Limit | NotGranted) {
            return failure;
        }
        let mut message =
            format!("the plugin {} gave up: {}", self.description.name, failure.message);
        let lacks = failure.data.iter().find(|(key, _)| key == "grant").map(|(_, name)| name);
        if let Some(name) = lacks.filter(|n| failure.kind == NotGranted && self.denied.contains(n))
        {
            let template = self.templates.iter().find(|(n, _)| n == name);
            let what = template.map_or("it".to_owned(), |(_, template)| format!("`{template}`"));
            message.push_str(&format!(
                "; {what} was denied when the plugin was added, and `snapslot plugin add` with its file \
                 and `--with '{name}'` gives it"
            ));
        }
        Failure { message, ..failure }
    }
}

/// Facts as they may be shown and kept: within the contract's limits, and without anything that a
/// terminal would act on. What cannot be mended is the plugin's fault.
fn fit(facts: Facts) -> Result<Facts, &'static str> {
    // What identifies is compared, so it is refused rather than changed.
    let fits = |t: &str, most: usize| t.len() <= most && !t.chars().any(unfit);
    let words = |t: &str| plain(t, 4096);
    if facts.snapshots.len() > 65_536 || facts.findings.len() > 64 {
        return Err("it reports more than the contract allows");
    }
    // Of a snapshot's size nothing depends but what is shown: an image may claim what it likes.
    if i64::try_from(facts.virtual_size).is_err() {
        return Err("it reports a size that no disk has");
    }
    if !facts.identity.iter().all(|i| fits(i, 512))
        || !facts.snapshots.iter().all(|s| fits(&s.identity, 512))
    {
        return Err(
            "it reports an identity that is too long or has control or invisible characters",
        );
    }
    if !facts.snapshots.iter().filter_map(|s| s.mark.as_ref()).all(|m| is_mark(m)) {
        return Err("it reports a mark that is none");
    }
    // Of two with one mark (somebody copied a name or a tag) the first is ours, the other another's.
    let mut marks = std::collections::HashSet::new();
    let mut ours = |mark: Option<String>| mark.filter(|m| marks.insert(m.clone()));
    let snapshots = facts.snapshots.into_iter().map(|s| Snapshot {
        name: words(&s.name),
        mark: ours(s.mark.clone()),
        ..s
    });
    let findings = facts.findings.into_iter().map(|f| Finding {
        code: code(&f.code),
        message: words(&f.message),
        ..f
    });
    Ok(Facts {
        format: words(&facts.format),
        unfinished: facts.unfinished.map(|u| words(&u)),
        snapshots: snapshots.collect(),
        findings: findings.collect(),
        ..facts
    })
}

/// A failure as a plugin worded it, fit to be shown.
fn cleaned(failure: Failure) -> Failure {
    Failure {
        kind: failure.kind,
        code: code(&failure.code),
        message: plain(&failure.message, 4096),
        data: (failure.data.iter().take(16))
            .map(|(key, value)| (plain(key, 64), plain(value, 4096)))
            .collect(),
    }
}
