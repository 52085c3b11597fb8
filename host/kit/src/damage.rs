//! Bad input: reads that fail, bytes that are damaged. Every call may say no; none may break down, go on without
//! an answer it needed, or blame something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use snapslot_disk::{Disk, DiskError, Doing, Range};
use snapslot_runtime::{CallError, Content, FailureKind, Goal, View};
use snapslot_testkit::malformed;
use snapslot_testkit::qcow2_model::Qcow2;
use snapslot_testkit::rng::Rng;
use snapslot_testkit::trial::plain;

use crate::bench::Bench;
use crate::cases::Cases;
use crate::content::disk_of;
use crate::convert::Component;
use crate::files::Sample;
use crate::images::{goal_of, held};
use crate::plans::new_snapshot;

/// Reads that fail in turn, at most.
const READS_MAX: u64 = 500;
/// Damaged images that are tried.
const DAMAGED: usize = 200;

/// The slot, and an image of which it is the slot; or why there is none.
type Slotted<'s> = (&'static str, Result<std::borrow::Cow<'s, [u8]>, String>);

/// The images that are damaged: empty, and held where the plugin keeps its snapshots in the image.
fn images<'s>(bench: &Bench<'_>, sample: &'s Sample) -> Vec<Slotted<'s>> {
    let mut images: Vec<Slotted<'s>> = vec![("empty", Ok(sample.bytes.as_slice().into()))];
    if bench.changes_images() {
        images.push(("held", held(bench, sample).map(|(image, _)| image.into())));
    }
    images
}

/// Each read failing in turn: what cannot be read is told as that, and not taken for something else.
pub fn reads(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    let prefix = format!("trouble/{}", sample.name);
    if !cases.may_want(&prefix) {
        return;
    }
    for (slot, image) in images(bench, sample) {
        cases.run_telling(&format!("{prefix}/reads-that-fail/{slot}"), || {
            let image = image?;
            let mut failed = 0;
            let identity = identity(bench, disk_of(&image));
            let sound = every_call(bench, disk_of(&image), &identity);
            for for_ever in [false, true] {
                for (number, (what, sound)) in sound.iter().enumerate() {
                    for n in 0..=READS_MAX {
                        let disk = Arc::new(Failing {
                            inner: disk_of(&image),
                            reads: AtomicU64::new(0),
                            at: n,
                            for_ever,
                        });
                        let answer = call(bench, disk.clone(), number, &identity);
                        if disk.reads.load(Ordering::Relaxed) <= n {
                            break;
                        }
                        failed += 1;
                        let how = if for_ever { ", and all after it" } else { "" };
                        unread(&answer, sound)
                            .map_err(|e| format!("{what}: read {n}{how} fails: {e}"))?;
                    }
                }
            }
            Ok(Some(format!("{failed} reads failed")))
        });
    }
}

/// What a call says when a read failed: that, or what it says without.
fn unread(answer: &Answered, sound: &Answered) -> Result<(), String> {
    match answer {
        Answered::Fault(why) => Err(why.clone()),
        Answered::No(FailureKind::Io, ..) => Ok(()),
        found if found == sound => Ok(()),
        Answered::No(kind, _, message) => Err(format!(
            "that is told as `{kind:?}` and not as `Io`, so that a loose cable passes for something else: {message}"
        )),
        Answered::Yes(_) => Err("it answers something else, as if it had read it".to_owned()),
    }
}

/// Bytes changed here and there, and the end cut off.
pub fn bytes(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    let prefix = format!("damage/{}", sample.name);
    if !cases.may_want(&prefix) {
        return;
    }
    for (slot, image) in images(bench, sample) {
        cases.run_telling(&format!("{prefix}/bytes/{slot}"), || {
            let image = image?;
            let mut rng = Rng::new(bench.options.seed);
            for n in 0..DAMAGED {
                let mut bytes = image.to_vec();
                // Most faults are near the beginning, where formats keep what they lean on.
                let reach = if n % 2 == 0 { bytes.len().min(1024) } else { bytes.len() };
                for _ in 0..1 + rng.below(4) {
                    let at = rng.below(reach.max(1) as u64) as usize;
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte = [0, 0xff, 0x80, rng.next_u64() as u8][rng.below(4) as usize];
                    }
                }
                if n % 10 == 9 {
                    bytes.truncate(rng.below(bytes.len() as u64) as usize);
                }
                answered(bench, disk_of(&bytes)).map_err(|e| format!("damaged image {n}: {e}"))?;
            }
            Ok(Some(format!("{DAMAGED} damaged images")))
        });
    }
}

/// For an image in QEMU's format: every field at its boundary values, every table with what must not be in it.
pub fn structure(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    let prefix = format!("damage/{}", sample.name);
    if !sample.qcow2 || !cases.may_want(&prefix) {
        return;
    }
    for (slot, image) in images(bench, sample) {
        for (kind, damages) in malformed::KINDS {
            cases.run_telling(&format!("{prefix}/{kind}/{slot}"), || {
                let image = image.as_ref().map_err(String::clone)?;
                let (mut tried, mut done) = (0, 0);
                for damage in damages(image, bench.options.seed) {
                    tried += 1;
                    let at = |e: String| format!("{}: {e}", damage.name);
                    answered(bench, disk_of(&damage.bytes)).map_err(at)?;
                    if damage.meaningful && bench.changes_images() {
                        let verbs: &[&str] =
                            if slot == "empty" { &["take"] } else { &["restore", "delete"] };
                        for verb in verbs {
                            let at = |e: String| at(format!("{verb}: {e}"));
                            done += usize::from(harmless(bench, verb, &damage.bytes).map_err(at)?);
                        }
                    }
                }
                Ok(Some(format!("{tried} damaged images, {done} verbs done on them")))
            });
        }
    }
}

/// A verb on a damaged image is refused, or does no harm: what could be read of the disk before reads the same (after a
/// restore as the snapshot did), and an independent reader finds no error now. That is asked where it found nothing
/// before: where a cluster that is in use is counted as free, or is a table and content in one, whoever writes to the
/// image harms it, and no plan can be held to more than to leave an image. Gives whether it was done.
fn harmless(bench: &Bench<'_>, verb: &str, image: &[u8]) -> Result<bool, String> {
    let Ok(goal) = goal_of(bench, verb, image) else { return Ok(false) };
    let planner = Component::new(bench.plugin, bench);
    // Refused, or not to be carried out: then nothing was written.
    let Ok(after) = plain(&planner, image, &goal) else { return Ok(false) };
    // What the reader makes nothing of it cannot judge.
    let Ok(before) = Qcow2::read(image) else { return Ok(true) };
    let found = before.judge();
    if !found.errors.is_empty() || !found.leaks.is_empty() {
        Qcow2::read(&after).map_err(|e| format!("it left no image: {e}"))?;
        return Ok(true);
    }
    let ours = |q: &Qcow2<'_>| {
        let mut found = q.snapshots().iter().filter(|s| s.name.starts_with("snapslot-"));
        found.next().map(|s| q.snapshot_digest(s, &[]))
    };
    let was = match verb {
        "restore" => ours(&before).unwrap_or_else(|| Err("no snapshot".to_owned())),
        _ => before.active_digest(&[]),
    };
    // What could not be read before can be anything now.
    let Ok(was) = was else { return Ok(true) };
    let now = Qcow2::read(&after).map_err(|e| format!("it left no image: {e}"))?;
    match now.active_digest(&[]) {
        Ok(is) if is == was => {}
        Ok(_) => return Err("the guest sees something else afterwards".to_owned()),
        Err(e) => return Err(format!("the guest sees nothing afterwards: {e}")),
    }
    let verdict = now.judge();
    match !verdict.errors.is_empty() {
        true => Err(format!("it left errors where there were none: {verdict}")),
        false => Ok(true),
    }
}

/// Every call; any of them may say no, none may break down.
pub fn answered(bench: &Bench<'_>, disk: Arc<dyn Disk>) -> Result<(), String> {
    let identity = identity(bench, disk.clone());
    for (what, answer) in every_call(bench, disk, &identity) {
        match answer {
            Answered::Fault(why) => return Err(format!("{what}: {why}")),
            Answered::No(_, _, message) if message.trim().is_empty() => {
                return Err(format!("{what}: it says no without a word"));
            }
            Answered::No(
                FailureKind::Internal | FailureKind::NotGranted | FailureKind::Limit,
                _,
                message,
            ) => {
                return Err(format!(
                    "{what}: what is wrong with the image is told as its own fault: {message}"
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What a call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// An answer, in words.
    Yes(String),
    /// It says no: kind, code, message.
    No(FailureKind, String, String),
    /// It broke down.
    Fault(String),
}

fn of<T: std::fmt::Debug>(result: Result<T, CallError>) -> Answered {
    match result {
        Ok(answer) => Answered::Yes(format!("{answer:?}")),
        Err(CallError::Refused(f)) => Answered::No(f.kind, f.code, f.message),
        Err(fault) => Answered::Fault(fault.to_string()),
    }
}

const CALLS: [&str; 9] = [
    "inspect",
    "extents",
    "extents of the snapshot",
    "plan of a take",
    "plan of a restore",
    "plan of a delete",
    "plan to settle",
    "differences",
    "measure",
];

/// The snapshot that is there, or one that may not be.
fn identity(bench: &Bench<'_>, disk: Arc<dyn Disk>) -> String {
    let facts = bench.plugin.inspect(&bench.sight(disk)).ok();
    let first = facts.and_then(|f| f.snapshots.first().map(|s| s.identity.clone()));
    first.unwrap_or_else(|| "1".to_owned())
}

fn every_call(
    bench: &Bench<'_>,
    disk: Arc<dyn Disk>,
    identity: &str,
) -> Vec<(&'static str, Answered)> {
    let called = |(n, what)| (what, call(bench, disk.clone(), n, identity));
    CALLS.into_iter().enumerate().map(called).collect()
}

/// Makes the n-th of all calls.
fn call(bench: &Bench<'_>, disk: Arc<dyn Disk>, n: usize, identity: &str) -> Answered {
    let sight = bench.sight(disk);
    let plugin = bench.plugin;
    let identity = || identity.to_owned();
    let plan = |goal: Goal| of(plugin.plan(&sight, &goal));
    let extents = |view: View| {
        let page = plugin.extents(&sight, &view, 0, 100);
        // Content may lie anywhere, but not beyond what can be counted.
        match &page {
            Ok(page) if page.extents.iter().any(wraps) => {
                Answered::Fault("an extent lies beyond 2^64".to_owned())
            }
            _ => of(page),
        }
    };
    match n {
        0 => of(plugin.inspect(&sight)),
        1 => extents(View::Current),
        2 => extents(View::Snapshot(identity())),
        3 => plan(Goal::Held(new_snapshot())),
        4 => plan(Goal::Restored(identity())),
        5 => plan(Goal::Empty(identity())),
        6 => plan(Goal::Settled),
        7 => of(plugin.differences(&sight, &identity(), 0, 100)),
        _ => of(plugin.measure(&sight, &identity(), false)),
    }
}

fn wraps(extent: &snapslot_runtime::Extent) -> bool {
    match extent.content {
        Content::Data(at) => at.checked_add(extent.length).is_none(),
        Content::Compressed(p) => p.offset.checked_add(p.length).is_none(),
        Content::Zero | Content::Backing => false,
    }
}

/// A disk one read of which fails, or all from one on.
struct Failing {
    inner: Arc<dyn Disk>,
    reads: AtomicU64,
    at: u64,
    for_ever: bool,
}

impl Disk for Failing {
    fn size(&self) -> Result<u64, DiskError> {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        let n = self.reads.fetch_add(1, Ordering::Relaxed);
        if n == self.at || (self.for_ever && n > self.at) {
            let error = std::io::Error::from_raw_os_error(5);
            return Err(DiskError::io("simulated", Doing::Read, error));
        }
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.inner.write_at(offset, data)
    }

    fn extend(&self, size: u64) -> Result<(), DiskError> {
        self.inner.extend(size)
    }

    fn reserve(&self, ranges: &[Range]) -> Result<bool, DiskError> {
        self.inner.reserve(ranges)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        self.inner.release_reserve()
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.inner.flush()
    }
}
