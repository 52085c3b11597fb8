//! Loading plugins and calling them.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use snapslot_capture::Plan;
use snapslot_slot::is_mark;

use crate::apart::{Apart, Component, Confinement};
use crate::approved::Approved;
use crate::bindings::types::{
    Answer, Change, CommandGrant, Description, ExtentPage, Facts, Failure, Finding, Goal, Snapshot,
    StretchPage, View,
};
use crate::cache::Cache;
use crate::call::{Call, Ended, Reply};
use crate::fault::{CallError, LoadError};
use crate::flaw::{Flaw, shape};
use crate::grants::effective;
use crate::host::{Seen, Sight};
use crate::machine::{Loaded, Machine, OWN_TIME_MAX};
use crate::outside::{Grants, Outside, World};
use crate::record::{Ears, Recorded, Recording, answer};

/// A component of plain code has 50 KiB to a few MiB; one with a language runtime some 20 MiB.
pub const COMPONENT_MAX: usize = 64 << 20;

/// Where plugins run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confine {
    /// In a process of their own: this program, called with [`ARGUMENT`](crate::ARGUMENT), calls
    /// [`serve`](crate::serve). If it cannot be started, within this one, and that is told.
    Apart(PathBuf),
    /// The same, and not at all if any part of the confinement cannot be had.
    Strictly(PathBuf),
    /// Within this process.
    Here,
}

/// The machinery that all plugins share.
pub struct Runtime {
    home: Home,
    cache: Cache,
    recording: Option<Recording>,
}

enum Home {
    Here(Box<Machine>),
    Apart(Apart),
}

impl Runtime {
    /// A runtime that keeps compiled plugins in this directory, and lets one call compute for
    /// this long, at most as long as the contract says.
    pub fn new(
        cache: &Path,
        own_time_max: Option<Duration>,
        confine: &Confine,
    ) -> Result<Self, LoadError> {
        let own_time_max = own_time_max.unwrap_or(OWN_TIME_MAX).min(OWN_TIME_MAX);
        let unusable = |e: &dyn std::fmt::Display| LoadError::Host(e.to_string());
        let home = match confine {
            Confine::Here => None,
            Confine::Apart(program) | Confine::Strictly(program) => {
                match Apart::start(program.clone(), own_time_max) {
                    Ok(apart) => Some(Home::Apart(apart)),
                    Err(error) if matches!(confine, Confine::Strictly(_)) => {
                        return Err(unusable(&format!(
                            "plugins cannot be confined, because no process can be started: {error}"
                        )));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "plugins are not confined");
                        None
                    }
                }
            }
        };
        let home = match home {
            Some(home) => home,
            None => {
                let machine =
                    Machine::new(own_time_max).map_err(|e| unusable(&format!("{e:#}")))?;
                Home::Here(Box::new(machine))
            }
        };
        // Opened while the process readies itself.
        let runtime = Runtime { home, cache: Cache::open(cache), recording: None };
        if matches!(confine, Confine::Strictly(_)) {
            let held = runtime.confinement();
            if !held.is_whole() {
                return Err(unusable(&format!("plugins cannot be confined: {}", held.in_words())));
            }
        }
        Ok(runtime)
    }

    /// Writes every call of every plugin down, from now on.
    #[must_use]
    pub fn recording(mut self, recording: Option<Recording>) -> Self {
        self.recording = recording;
        self
    }

    /// Ends the process that runs plugins, if there is one; another call would start it again.
    pub fn end(&self) {
        if let Home::Apart(apart) = &self.home {
            apart.end();
        }
    }

    /// What holds plugins besides wasm.
    pub fn confinement(&self) -> Confinement {
        match &self.home {
            Home::Here(_) => Confinement::default(),
            Home::Apart(apart) => apart.confinement().unwrap_or_default(),
        }
    }

    /// Loads a component, asks it what it is, and grants it all it asks for.
    pub fn load(&self, bytes: &[u8]) -> Result<Plugin<'_>, LoadError> {
        self.load_with(bytes, None)
    }

    /// Loads a component and grants it what it asks for and was approved. If it asks for something
    /// that was never shown, it is refused.
    pub fn load_approved(
        &self,
        bytes: &[u8],
        approved: &Approved,
    ) -> Result<Plugin<'_>, LoadError> {
        self.load_with(bytes, Some(approved))
    }

    fn load_with(
        &self,
        bytes: &[u8],
        approved: Option<&Approved>,
    ) -> Result<Plugin<'_>, LoadError> {
        if bytes.len() > COMPONENT_MAX {
            let (size, limit) = (bytes.len() as u64, COMPONENT_MAX as u64);
            return Err(flawed(vec![Flaw::TooLarge { size, limit }]));
        }
        shape(bytes).map_err(|flaw| flawed(vec![flaw]))?;
        let digest: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
        let (code, imports) = match &self.home {
            Home::Here(machine) => {
                let loaded = self.load_here(machine, &digest, bytes)?;
                let imports = loaded.imports.clone();
                (Code::Here(Box::new(loaded)), imports)
            }
            Home::Apart(apart) => {
                let component =
                    Component { digest: digest.clone(), bytes: bytes.into(), granted: None };
                let loaded = apart.load(&component, &self.cache).map_err(LoadError::Host)?;
                let imports = loaded.map_err(flawed)?;
                (Code::Apart(Box::new(component)), imports)
            }
        };
        let mut plugin = Plugin {
            runtime: self,
            code,
            digest,
            imports,
            description: Description::unknown(),
            grants: Arc::default(),
        };
        let described = plugin.call(&Call::Describe, None);
        let cannot = |why: String| flawed(vec![Flaw::Describe { why }]);
        let Reply::Described(description) = described.map_err(|e| cannot(e.to_string()))? else {
            return Err(cannot("it described something else".to_owned()));
        };
        let asks = description;
        // Grants nobody should be asked to approve are told first.
        let mut flaws = broken_limits(&asks);
        flaws.extend(effective(&asks).err().into_iter().flatten());
        if !flaws.is_empty() {
            return Err(flawed(flaws));
        }
        plugin.description = match approved {
            None => asks,
            Some(approved) => {
                approved.effective(&asks).map_err(|grants| LoadError::NotApproved { grants })?
            }
        };
        plugin.grants = Arc::new(effective(&plugin.description).map_err(flawed)?);
        if let (Home::Apart(apart), Code::Apart(component)) = (&self.home, &mut plugin.code) {
            component.granted = Some(plugin.description.clone());
            apart.grant(component).map_err(LoadError::Host)?;
        }
        Ok(plugin)
    }

    fn load_here(
        &self,
        machine: &Machine,
        digest: &str,
        bytes: &[u8],
    ) -> Result<Loaded, LoadError> {
        let kept = self.cache.find(digest, machine.key()).and_then(|mut file| {
            let mut code = Vec::new();
            file.read_to_end(&mut code).ok()?;
            // SAFETY: the file was written by this user, as the cache checked for it and for its
            // directory, and this program writes there only what its own compiler made.
            unsafe { machine.revive(&code) }
        });
        let component = match kept {
            Some(component) => component,
            None => {
                let (component, code) =
                    machine.compile(bytes).map_err(|flaw| flawed(vec![flaw]))?;
                if let Some(code) = code {
                    self.cache.keep(digest, machine.key(), &code);
                }
                component
            }
        };
        machine.link(&component).map_err(flawed)
    }
}

fn flawed(flaws: Vec<Flaw>) -> LoadError {
    LoadError::Flawed { flaws }
}

impl Description {
    /// Of a plugin that was not asked yet.
    pub(crate) fn unknown() -> Description {
        Description {
            name: "new plugin".to_owned(),
            version: String::new(),
            summary: String::new(),
            endings: Vec::new(),
            place: crate::bindings::types::PlaceKind::Image,
            images: Vec::new(),
            copies: None,
            queries: Vec::new(),
            actions: Vec::new(),
        }
    }
}

/// What in a description breaks the contract's limits.
fn broken_limits(d: &Description) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let mut need = |holds: bool, why: &str| {
        if !holds {
            flaws.push(Flaw::Description { why: why.to_owned() });
        }
    };
    let name_ok = (1..=32).contains(&d.name.len())
        && d.name.starts_with(|c: char| c.is_ascii_lowercase())
        && d.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    need(name_ok, "its name is not 1 to 32 of a-z, 0-9 and -, beginning with a letter");
    let shown_ok = |t: &String| !t.chars().any(|c| c.is_control() || deceives(c));
    let text_ok = |t: &String| t.len() <= 4096 && shown_ok(t);
    need(
        text_ok(&d.version) && text_ok(&d.summary),
        "its version or summary is too long or has control or invisible characters",
    );
    let reasons = (d.images.iter().map(|i| &i.reason))
        .chain(d.queries.iter().chain(&d.actions).map(|c| &c.reason))
        .chain(&d.copies);
    let said = |t: &String| text_ok(t) && !t.trim().is_empty();
    need(
        reasons.into_iter().all(said),
        "a reason is missing, too long or has control or invisible characters",
    );
    // A command is read by who approves it: it must be what it looks like.
    let mut commands = d.queries.iter().chain(&d.actions);
    let plain = |c: &CommandGrant| {
        let guard = c.guard.iter().flat_map(|g| &g.template);
        let input = c.input.iter().flat_map(|i| i.chars()).filter(|c| !matches!(c, '\n' | '\t'));
        c.template.iter().chain(guard).all(shown_ok)
            && !input.into_iter().any(|c| c.is_control() || deceives(c))
    };
    need(commands.all(plain), "a command or its input has control or invisible characters");
    let ending_ok = |e: &String| {
        (2..=32).contains(&e.len())
            && e.starts_with('.')
            && e[1..]
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-' || b == b'_')
    };
    need(d.endings.iter().all(ending_ok), "an ending is not a dot and up to 31 letters and digits");
    need(d.endings.len() <= 8, "it has more than 8 endings");
    need(d.images.len() <= 2, "it asks for more images than there are roles");
    need(d.queries.len() <= 64 && d.actions.len() <= 64, "it has more than 64 queries or actions");
    flaws
}

/// Whether a character shows as nothing, or reorders what is shown around it: what a person reads is
/// then not what is there.
fn deceives(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// A loaded plugin.
pub struct Plugin<'r> {
    runtime: &'r Runtime,
    code: Code,
    digest: String,
    imports: Vec<String>,
    description: Description,
    grants: Arc<Grants>,
}

enum Code {
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
        &self.imports
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
    /// is passed over: the command's own words are at hand.
    pub fn explain(&self, command: &str, answer: &Answer) -> Option<Failure> {
        let call = Call::Explain { command: command.to_owned(), answer: answer.clone() };
        match self.call(&call, None) {
            Ok(Reply::Explained(failure)) => Some(cleaned(failure)),
            _ => None,
        }
    }

    fn confused(&self, call: &'static str) -> CallError {
        self.fault(call, "it answered something else", vec![])
    }

    fn fault(&self, call: &'static str, cause: &str, log: Vec<String>) -> CallError {
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).take(4096).collect();
        CallError::Fault {
            plugin: self.description.name.clone(),
            call,
            cause: clean(cause),
            log: log.iter().map(|line| clean(line)).collect(),
        }
    }

    /// Holds a recorded call again, and gives what it answers now.
    pub fn replay(&self, then: &Recorded) -> serde_json::Value {
        answer(&self.call_unheard(&then.asked, then.sight.as_ref()))
    }

    /// One call, and written down if that is wanted.
    fn call(&self, call: &Call, sight: Option<&Sight>) -> Result<Reply<Plan>, CallError> {
        // What it says of itself is asked when it is loaded, and hears nothing.
        let recording = self.runtime.recording.as_ref().filter(|_| !matches!(call, Call::Describe));
        let Some(recording) = recording else { return self.call_unheard(call, sight) };
        let ears = Ears::default();
        let heard = sight.map(|s| ears.at(s));
        let result = self.call_unheard(call, heard.as_ref());
        recording.write((&self.description.name, &self.digest), call, sight, &ears, &result);
        result
    }

    /// One call, wherever plugins run.
    fn call_unheard(&self, call: &Call, sight: Option<&Sight>) -> Result<Reply<Plan>, CallError> {
        let mut outside = Outside::new(&self.description.name, self.grants.clone(), sight);
        let (result, mut lines) = match (&self.runtime.home, &self.code) {
            (Home::Here(machine), Code::Here(loaded)) => {
                let seen = sight.map(|s| Seen { place: s.place.clone(), disk: s.disk.clone() });
                let grants = self.grants.clone();
                let (result, mut world) =
                    machine.call(loaded, call, grants, seen, Box::new(outside));
                (result.map(|reply| reply.map(|planned| planned.plan)), world.lines())
            }
            (Home::Apart(apart), Code::Apart(component)) => {
                let cache = &self.runtime.cache;
                let result = apart.call(component, cache, call, sight, &mut outside);
                // What comes from there is a draft: the plan is made here.
                let built = result.and_then(|reply| {
                    let place = sight.map(|s| &s.place);
                    reply
                        .try_map(|draft| match place {
                            Some(place) => {
                                draft.build(&self.grants, place).map_err(|e| e.to_string())
                            }
                            None => Err("it planned without a volume".to_owned()),
                        })
                        .map_err(|cause| Ended::Fault { cause, trace: Vec::new() })
                });
                (built, outside.lines())
            }
            // A plugin's code is where its runtime is.
            _ => return Err(self.confused(call.name())),
        };
        result.map_err(|ended| match ended {
            Ended::Refused(failure) => CallError::Refused(cleaned(failure)),
            Ended::Fault { cause, trace } => {
                lines.extend(trace.into_iter().take(16));
                self.fault(call.name(), &cause, lines)
            }
        })
    }
}

/// Facts as they may be shown and kept: within the contract's limits, and without anything that a
/// terminal would act on. What cannot be mended is the plugin's fault.
fn fit(facts: Facts) -> Result<Facts, &'static str> {
    // What identifies is compared, so it is refused rather than changed.
    let plain = |t: &str, most: usize| t.len() <= most && !t.chars().any(char::is_control);
    let words = |t: &str| t.chars().filter(|c| !c.is_control()).take(4096).collect::<String>();
    if facts.snapshots.len() > 65_536 || facts.findings.len() > 64 {
        return Err("it reports more than the contract allows");
    }
    // Of a snapshot's size nothing depends but what is shown: an image may claim what it likes.
    if i64::try_from(facts.virtual_size).is_err() {
        return Err("it reports a size that no disk has");
    }
    if !facts.identity.iter().all(|i| plain(i, 512))
        || !facts.snapshots.iter().all(|s| plain(&s.identity, 512))
    {
        return Err("it reports an identity that is too long or has control characters");
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
        code: f
            .code
            .chars()
            .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
            .take(64)
            .collect(),
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
    let clean = |text: &str, max: usize| -> String {
        text.chars().filter(|c| !c.is_control()).take(max).collect()
    };
    Failure {
        kind: failure.kind,
        code: failure
            .code
            .chars()
            .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
            .take(64)
            .collect(),
        message: clean(&failure.message, 4096),
        data: (failure.data.iter().take(16))
            .map(|(key, value)| (clean(key, 64), clean(value, 4096)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what a person is shown of a plugin is what is there.

    use super::*;

    #[test]
    fn what_deceives_a_reader_is_refused() {
        let flaws = |summary: &str, word: &str, input: Option<&str>| {
            let action = CommandGrant {
                name: "drop".to_owned(),
                template: vec!["zfs".to_owned(), word.to_owned()],
                holes: Vec::new(),
                input: input.map(str::to_owned),
                guard: None,
                deadline_seconds: 1,
                reason: "why not".to_owned(),
            };
            broken_limits(&Description {
                name: "x".to_owned(),
                summary: summary.to_owned(),
                actions: vec![action],
                ..Description::unknown()
            })
        };
        assert_eq!(flaws("für alle", "destroy", Some("if x then\n\ty()\nend")), Vec::new());
        for bad in ["\u{202e}yortsed", "a\u{200b}b", "\u{1b}[2K", "a\u{2028}b", "x\u{e0041}"] {
            assert_eq!(flaws(bad, "list", None).len(), 1, "{bad:?} as summary");
            assert_eq!(flaws("s", bad, None).len(), 1, "{bad:?} as a word");
            assert_eq!(flaws("s", "list", Some(bad)).len(), 1, "{bad:?} as input");
        }
    }
}
