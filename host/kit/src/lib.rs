//! The conformance kit: runs any plugin, built in or not, on simulated storage, and judges it.
//!
//! | part | on what | judged by |
//! |---|---|---|
//! | `describe` | the component alone | the same answer every time |
//! | `life` | the real engine over LVM and ZFS in memory, or over real files | content, the slot, exit codes; a dry run shows what is then run; what others do is told |
//! | `plan` | the plugin alone | plans to a goal that is reached are empty, and the same twice |
//! | `limits` | the plugin alone | pages of any length say the same; identities of nothing, moments at the edges |
//! | `crash` | commands: before, inside and after every one, also inside recovery; images: every state a power cut leaves, every event failing | content of before or of after, never between |
//! | `trouble` | every command, or every read, failing, hanging, dying, lying | a failure that is told as what it is, nothing changed |
//! | `damage` | images with bytes that are wrong | every call answers or says no, none breaks down |
//!
//! Content of an image is told by the plugin's own extents over bytes that the kit keeps; for qcow2 an
//! independent reader of the format judges too, and QEMU's tools make the images and write as the guest.
//!
//! No program of this machine is run for a plugin, whatever it asks for: see [`tools`]. What cannot be tried is told,
//! and then the run is incomplete, which is not the same as sound ([`Verdict`]).
//!
//! One seed gives one run, to the letter. Each case has a name; it is run again by it alone.

mod bench;
mod cases;
mod clock;
mod commands;
mod content;
mod convert;
mod damage;
mod files;
mod images;
mod life;
mod limits;
mod machine;
mod plans;
mod report;
mod sequences;
mod tools;

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use snapslot_engine::{Confine, PlaceKind};
use snapslot_runtime::{LoadError, Runtime};
use snapslot_testkit::storage::machine::Kind;

use bench::Bench;
use cases::{Cases, Selection, Stop};
use files::{FileMachine, Sample};
use machine::{Live, StorageMachine};
pub use report::{Case, Counts, Outcome, PARTS, Report, Times, Verdict};

/// What to test.
pub struct Subject {
    /// The component.
    pub component: Vec<u8>,
    /// Sample images, for a plugin whose volumes are files.
    pub images: Vec<PathBuf>,
}

/// How to test it.
pub struct Options<'a> {
    /// Seed of all choices.
    pub seed: u64,
    /// Random states at each boundary of a crash.
    pub states: usize,
    /// Only the case of this name, and those below it.
    pub only: Option<String>,
    /// End at the first case that fails.
    pub fail_fast: bool,
    /// The compiled plugins' directory.
    pub cache_dir: PathBuf,
    /// Where plugins run.
    pub confine: Confine,
    /// Told of every case when it is done.
    pub progress: &'a (dyn Fn(&Case) + Sync),
}

/// Why nothing could be tested.
#[derive(Debug)]
pub enum KitError {
    /// The component cannot be loaded at all.
    Load(LoadError),
    /// The kit itself failed.
    Kit(String),
}

impl std::fmt::Display for KitError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KitError::Load(error) => error.fmt(f),
            KitError::Kit(why) => write!(f, "the kit cannot work: {why}"),
        }
    }
}

impl std::error::Error for KitError {}

/// What a part does.
type Run<'a> = Box<dyn Fn(&Bench<'_>, &mut Cases<'_>) + Sync + 'a>;

/// Cases, and how long each took, with the number of their part.
type Ran = (usize, Vec<(Case, Duration)>);

/// A part of a run: it needs no other, and has a thread to itself.
struct Part<'a> {
    /// What the names of all its cases begin with.
    names: Vec<String>,
    run: Run<'a>,
}

/// Runs all cases that are wanted.
pub fn run(subject: &Subject, options: &Options<'_>) -> Result<Report, KitError> {
    let begun = Instant::now();
    let kit = |e: std::io::Error| KitError::Kit(e.to_string());
    let runtime = Runtime::new(&options.cache_dir, None, &options.confine);
    let runtime = Arc::new(runtime.map_err(KitError::Load)?);
    let plugin = runtime.load(&subject.component).map_err(KitError::Load)?;
    let d = plugin.description().clone();
    let place: PlaceKind = d.place.into();
    let samples = match place {
        PlaceKind::Image => files::samples(&subject.images, &d.name).map_err(KitError::Kit)?,
        _ => Vec::new(),
    };
    let parts = parts(place, &samples);
    let selection = Selection(options.only.clone());
    let wanted = |p: &Part<'_>| p.names.iter().any(|n| selection.may_want(n));
    let parts: Vec<Part<'_>> = parts.into_iter().filter(wanted).collect();
    let scratch = scratch().map_err(kit)?;
    let stop = options.fail_fast.then(Stop::new);
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<Ran>> = Mutex::default();
    let lost: Mutex<Option<KitError>> = Mutex::default();
    // Each thread has a process for plugins of its own: one serves one call at a time.
    let work = || -> Result<(), KitError> {
        let runtime = Runtime::new(&options.cache_dir, None, &options.confine);
        let runtime = Arc::new(runtime.map_err(KitError::Load)?);
        let plugin = runtime.load(&subject.component).map_err(KitError::Load)?;
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let Some(part) = parts.get(n) else { return Ok(()) };
            let directory = scratch.path().join(n.to_string());
            let bench = Bench::new(subject, options, &runtime, &plugin, directory).map_err(kit)?;
            let mut cases = Cases {
                selection: &selection,
                progress: options.progress,
                stop: stop.as_ref(),
                part: n,
                beyond: &bench.beyond,
                hide: (scratch.path().display().to_string(), "/scratch"),
                cases: Vec::new(),
                over: false,
            };
            if cases.goes_on() {
                (part.run)(&bench, &mut cases);
            }
            done.lock().unwrap_or_else(PoisonError::into_inner).push((n, cases.cases));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(parts.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                if let Err(error) = work() {
                    lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    if let Some(error) = lost.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(n, _)| *n);
    let mut cases: Vec<(Case, Duration)> = done.into_iter().flat_map(|(_, cases)| cases).collect();
    let failed = |(case, _): &(Case, Duration)| matches!(case.outcome, Outcome::Failed { .. });
    if let (true, Some(first)) = (options.fail_fast, cases.iter().position(failed)) {
        cases.truncate(first + 1);
    }
    let milliseconds = |t: Duration| u64::try_from(t.as_millis()).unwrap_or(u64::MAX);
    let times = Times {
        milliseconds: milliseconds(begun.elapsed()),
        cases: cases.iter().map(|(c, took)| (c.name.clone(), milliseconds(*took))).collect(),
    };
    let cases: Vec<Case> = cases.into_iter().map(|(case, _)| case).collect();
    let (verdict, missing) = report::verdict(&cases, options.only.as_deref());
    Ok(Report {
        plugin: d.name,
        version: d.version,
        digest: plugin.digest().to_owned(),
        seed: options.seed,
        states: options.states,
        only: options.only.clone(),
        verdict,
        missing,
        cases,
        times,
    })
}

/// A directory in memory, where there is one: the record of slots is made durable with every change, and
/// thousands of slots live and die here.
fn scratch() -> std::io::Result<tempfile::TempDir> {
    let memory = std::path::Path::new("/dev/shm");
    let made = tempfile::Builder::new().prefix("snapslot-kit-").tempdir_in(memory);
    made.or_else(|_| tempfile::Builder::new().prefix("snapslot-kit-").tempdir())
}

/// All parts there are for a plugin with volumes of this kind.
fn parts<'a>(place: PlaceKind, samples: &'a [Sample]) -> Vec<Part<'a>> {
    let mut parts = vec![Part { names: vec!["describe".to_owned()], run: Box::new(describe) }];
    match place {
        PlaceKind::LvmVolume => Kind::LVM.into_iter().for_each(|k| on_storage(k, &mut parts)),
        PlaceKind::ZfsDataset => Kind::ZFS.into_iter().for_each(|k| on_storage(k, &mut parts)),
        PlaceKind::Image => samples.iter().for_each(|s| on_sample(s, &mut parts)),
        PlaceKind::Directory => parts.push(Part {
            names: PARTS[1..].iter().map(|p| (*p).to_owned()).collect(),
            run: Box::new(|_, cases| {
                for part in &PARTS[1..] {
                    cases.not_tried(
                        &format!("{part}/directory"),
                        "there is no model of storage with directories: try it on real storage",
                    );
                }
            }),
        }),
    }
    parts
}

fn describe(bench: &Bench<'_>, cases: &mut Cases<'_>) {
    cases.run("describe/the-same-every-time", || {
        for _ in 0..3 {
            let again = bench.runtime.load(&bench.subject.component).map_err(|e| e.to_string())?;
            if again.description() != bench.plugin.description() {
                return Err("describe() gives another answer the second time".to_owned());
            }
        }
        Ok(())
    });
}

/// Lives of machines, each with one of its own.
fn lives<L: Live>(
    machine: impl Fn() -> Result<L, String>,
    prefix: &str,
    bench: &Bench<'_>,
    cases: &mut Cases<'_>,
) {
    if let Some(live) = begun(&machine, prefix, cases) {
        life::script(prefix, &live, &bench.beyond, cases);
    }
    if let Some(live) = begun(&machine, prefix, cases) {
        life::what_others_delete(prefix, &live, cases);
    }
    if let Some(live) = begun(&machine, prefix, cases) {
        life::what_others_took(prefix, &live, cases);
    }
    life::clock_jumps(prefix, machine, cases);
}

fn on_storage(kind: Kind, parts: &mut Vec<Part<'_>>) {
    let mut part = |name: &str, run: fn(&Bench<'_>, Kind, &mut Cases<'_>)| {
        parts.push(Part {
            names: vec![format!("{name}/{kind:?}")],
            run: Box::new(move |bench, cases| run(bench, kind, cases)),
        });
    };
    // A machine of its own for each: a case must not lean on what another left.
    part("life", |bench, kind, cases| {
        let prefix = format!("life/{kind:?}");
        lives(|| StorageMachine::new(bench, kind), &prefix, bench, cases);
        sequences::undisturbed(bench, kind, cases);
    });
    part("plan", |bench, kind, cases| {
        let prefix = format!("plan/{kind:?}");
        if let Some(live) = begun(|| StorageMachine::new(bench, kind), &prefix, cases) {
            plans::plans(bench, &prefix, &live, cases);
        }
    });
    part("limits", |bench, kind, cases| {
        let prefix = format!("limits/{kind:?}");
        if let Some(live) = begun(|| StorageMachine::new(bench, kind), &prefix, cases) {
            limits::identities(bench, &prefix, &live, cases);
        }
    });
    part("crash", |bench, kind, cases| {
        commands::crashes(bench, kind, cases);
        sequences::crashed(bench, kind, cases);
    });
    part("trouble", commands::troubles);
    part("damage", |_, kind, cases| {
        let why = "it sees no image";
        cases.does_not_apply(&format!("damage/{kind:?}"), why);
    });
}

fn on_sample<'a>(sample: &'a Sample, parts: &mut Vec<Part<'a>>) {
    let mut part = |name: &'static str, run: fn(&Bench<'_>, &Sample, &mut Cases<'_>)| {
        let (name, below) = name.split_once('/').unwrap_or((name, ""));
        let all = format!("{name}/{}/{below}", sample.name).trim_end_matches('/').to_owned();
        parts.push(Part {
            names: vec![all.clone()],
            run: Box::new(move |bench, cases| match refused(bench, sample) {
                None => run(bench, sample, cases),
                Some(why) => cases.not_tried(&all, &why),
            }),
        });
    };
    part("life", |bench, sample, cases| {
        let prefix = format!("life/{}", sample.name);
        lives(|| FileMachine::new(bench, sample), &prefix, bench, cases);
    });
    part("plan", |bench, sample, cases| {
        let prefix = format!("plan/{}", sample.name);
        if let Some(live) = begun(|| FileMachine::new(bench, sample), &prefix, cases) {
            plans::plans(bench, &prefix, &live, cases);
        }
    });
    part("limits", |bench, sample, cases| {
        let prefix = format!("limits/{}", sample.name);
        if let Some(live) = begun(|| FileMachine::new(bench, sample), &prefix, cases) {
            limits::identities(bench, &prefix, &live, cases);
        }
        limits::images(bench, sample, cases);
    });
    // Two parts, as each takes as long as all the others together.
    part("crash", images::crashes);
    part("crash/sequences", images::sequences);
    part("trouble", damage::reads);
    part("damage", |bench, sample, cases| {
        damage::bytes(bench, sample, cases);
        damage::structure(bench, sample, cases);
    });
}

/// Why the plugin takes nothing to do with a sample, if it does not.
fn refused(bench: &Bench<'_>, sample: &Sample) -> Option<String> {
    let live = FileMachine::new(bench, sample).ok()?;
    let sight = machine::Live::sight(&live).ok()?;
    let refusal = bench.plugin.inspect(&sight).err()?;
    let beyond = bench.beyond.take();
    Some(beyond.unwrap_or_else(|| {
        format!("the plugin does not take the sample ({refusal}); give one of its own with --image")
    }))
}

/// A machine for some cases; if there is none they are not tried.
fn begun<T>(
    machine: impl Fn() -> Result<T, String>,
    prefix: &str,
    cases: &mut Cases<'_>,
) -> Option<T> {
    if !cases.may_want(prefix) {
        return None;
    }
    machine().map_err(|why| cases.not_tried(prefix, &why)).ok()
}
