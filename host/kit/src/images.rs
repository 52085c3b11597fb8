//! Images: every state that a power cut leaves of each verb, reads that fail, bytes that are damaged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use snapslot_disk::sim::World;
use snapslot_disk::{Disk, DiskError, Doing, Range};
use snapslot_plugin_sdk as sdk;
use snapslot_runtime::{CallError, Goal, NewSnapshot, Sight, View};
use snapslot_testkit::crash::Options as States;
use snapslot_testkit::qcow2_judge::Qcow2Judge;
use snapslot_testkit::qemu;
use snapslot_testkit::rng::Rng;
use snapslot_testkit::sim_host::{IMAGE, RunError};
use snapslot_testkit::trial::{Depth, Judge, Tally, crash, faults};

use crate::convert::{Component, sight};
use crate::files::{NoCopies, Sample, content, qemu_is_there};
use crate::{Bench, Cases};

/// Reads that fail in turn, at most.
const READS_MAX: u64 = 500;
/// Damaged images that are tried.
const DAMAGED: usize = 200;

fn disk_of(bytes: &[u8]) -> Arc<dyn Disk> {
    let world = World::new(BTreeMap::from([(IMAGE.to_owned(), bytes.to_vec())]));
    Arc::new(world.disk(IMAGE))
}

fn sight_of(disk: Arc<dyn Disk>) -> Sight {
    Sight { copies: Some(Arc::new(NoCopies)), ..sight(disk) }
}

/// Judges by the plugin's own extents over the bytes that are there.
struct ByExtents<'a>(&'a Bench<'a>);

impl Judge for ByExtents<'_> {
    type Picture = Vec<(String, u128)>;

    fn picture(&self, image: &[u8]) -> Result<Self::Picture, String> {
        let sight = sight_of(disk_of(image));
        let facts = self.0.plugin.inspect(&sight).map_err(|e| e.to_string())?;
        let mut all =
            vec![("current".to_owned(), content(self.0.plugin, &sight, &View::Current)?.digest())];
        for snapshot in facts.snapshots {
            let view = View::Snapshot(snapshot.identity.clone());
            let seen = content(self.0.plugin, &sight, &view)?.digest();
            all.push((format!("{} {}", snapshot.identity, snapshot.name), seen));
        }
        Ok(all)
    }

    fn check_crashed(&self, image: &[u8]) -> Result<(), String> {
        self.picture(image).map(|_| ())
    }

    fn check_settled(&self, image: &[u8]) -> Result<(), String> {
        let facts = self.0.plugin.inspect(&sight_of(disk_of(image))).map_err(|e| e.to_string())?;
        match facts.findings.iter().find(|f| f.blocks) {
            Some(finding) => Err(finding.message.clone()),
            None => Ok(()),
        }
    }
}

pub fn crashes(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    let prefix = format!("crash/{}", sample.name);
    if !cases.wants(&prefix) {
        return;
    }
    if !bench.plugin.description().images.iter().any(|i| i.changes) {
        cases.not_tried(
            &prefix,
            "its plans change no image: copies are the host's, and are crashed by the host's own tests",
        );
        return;
    }
    if bench.name() == "qcow2" && qemu_is_there() {
        let judge = Qcow2Judge::new(qemu::Bench::new(), &sample.bytes, Vec::new());
        verbs(bench, &prefix, &judge, &sample.bytes, cases);
        // QEMU writes as the guest between the verbs.
        let guest = |image: Vec<u8>, n: usize| {
            let tools = qemu::Bench::new();
            tools.write("guest", &image);
            tools.io("guest", &[&format!("write -q -P {} {}k 9k", n + 2, 20 * n + 3)]);
            tools.read("guest")
        };
        sequences(bench, &prefix, &judge, &sample.bytes, &guest, cases);
    } else {
        verbs(bench, &prefix, &ByExtents(bench), &sample.bytes, cases);
        // How a guest writes in this format is not known: it writes nothing.
        sequences(bench, &prefix, &ByExtents(bench), &sample.bytes, &|image, _| image, cases);
    }
}

/// Take, restore, delete: each crashed everywhere, and each event failing.
fn verbs<J: Judge>(
    bench: &Bench<'_>,
    prefix: &str,
    judge: &J,
    first: &[u8],
    cases: &mut Cases<'_>,
) {
    let planner = Component(bench.plugin);
    let options = bench.options;
    let states = States {
        seeded: options.states,
        exhaustive: 6,
        singles: usize::MAX,
        tears: true,
        seed: options.seed,
    };
    let depth = Depth::new(states);
    let mut image = first.to_vec();
    for verb in ["take", "restore", "delete"] {
        let goal = match goal_of(bench, verb, &image) {
            Ok(goal) => goal,
            Err(why) => {
                cases.run(&format!("{prefix}/{verb}"), || Err(why));
                return;
            }
        };
        let mut after = None;
        let mut tally = Tally::default();
        cases.run(&format!("{prefix}/{verb}"), || {
            match crash(&planner, judge, &image, &goal, &depth)? {
                Ok(outcome) => {
                    tally = outcome.tally;
                    after = Some(outcome.after);
                    Ok(())
                }
                Err(RunError::Refused(failure)) => Err(format!("refused: {}", failure.message)),
                Err(error) => Err(error.to_string()),
            }
        });
        // Without what the verb leads to, the next has nothing to begin with.
        let Some(after) = after else { return };
        cases.run(&format!("{prefix}/{verb}/failing"), || {
            faults(&planner, judge, &image, &goal, options.seed).map(|_| ())
        });
        image = after;
    }
}

/// All sequences of up to three verbs, each crashed, not as deep as one by one.
fn sequences<J: Judge>(
    bench: &Bench<'_>,
    prefix: &str,
    judge: &J,
    first: &[u8],
    guest: &dyn Fn(Vec<u8>, usize) -> Vec<u8>,
    cases: &mut Cases<'_>,
) {
    const VERBS: [&str; 3] = ["take", "restore", "delete"];
    let planner = Component(bench.plugin);
    let seed = bench.options.seed;
    let states = States { seeded: 2, exhaustive: 2, singles: 2, tears: false, seed };
    let mut depth = Depth::new(states);
    depth.opinion_every = 0;
    cases.run(&format!("{prefix}/sequences"), || {
        for length in 1..=3_u32 {
            for number in 0..3_usize.pow(length) {
                let verbs: Vec<&str> =
                    (0..length).map(|i| VERBS[number / 3_usize.pow(i) % 3]).collect();
                let (mut image, mut held) = (first.to_vec(), false);
                for (n, verb) in verbs.iter().enumerate() {
                    // What the slot's rule refuses never comes to the plugin.
                    if held == (*verb == "take") {
                        continue;
                    }
                    let at = |e: String| format!("{verbs:?}, at the {}. verb: {e}", n + 1);
                    let goal = goal_of(bench, verb, &image).map_err(at)?;
                    let outcome = crash(&planner, judge, &image, &goal, &depth).map_err(at)?;
                    image = outcome.map_err(|e| at(e.to_string()))?.after;
                    held = *verb != "delete";
                    image = guest(image, n);
                }
            }
        }
        Ok(())
    });
}

fn goal_of(bench: &Bench<'_>, verb: &str, image: &[u8]) -> Result<sdk::Goal, String> {
    let facts = bench.plugin.inspect(&sight_of(disk_of(image))).map_err(|e| e.to_string())?;
    let mine = facts.snapshots.iter().find(|s| s.mark.is_some()).map(|s| s.identity.clone());
    Ok(match (verb, mine) {
        ("take", _) => sdk::Goal::Held(sdk::NewSnapshot {
            mark: "00000000000000ab".to_owned(),
            taken_seconds: 1_700_000_000,
            taken_nanoseconds: 7,
            room: None,
            beside: 0,
            full_copy: false,
        }),
        ("restore", Some(identity)) => sdk::Goal::Restored(identity),
        (_, Some(identity)) => sdk::Goal::Empty(identity),
        (_, None) => return Err("after a take no snapshot bears its mark".to_owned()),
    })
}

pub fn troubles(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    cases.run(&format!("trouble/{}/reads-that-fail", sample.name), || {
        for for_ever in [false, true] {
            for n in 0..=READS_MAX {
                let disk = Arc::new(Failing {
                    inner: disk_of(&sample.bytes),
                    reads: AtomicU64::new(0),
                    at: n,
                    for_ever,
                });
                let how = if for_ever { ", and all after it" } else { "" };
                all_calls(bench, disk.clone()).map_err(|e| format!("read {n}{how} fails: {e}"))?;
                if disk.reads.load(Ordering::Relaxed) <= n {
                    break;
                }
            }
        }
        Ok(())
    });
    if bench.name() == "qcow2" {
        cases.run(&format!("trouble/{}/every-header-field", sample.name), || {
            for (field, at, width) in QCOW2_FIELDS {
                for value in boundaries(width) {
                    let mut bytes = sample.bytes.clone();
                    let Some(room) = bytes.get_mut(at..at + width) else { continue };
                    room.copy_from_slice(&value.to_be_bytes()[8 - width..]);
                    all_calls(bench, disk_of(&bytes))
                        .map_err(|e| format!("{field} = {value:#x}: {e}"))?;
                }
            }
            Ok(())
        });
    }
    cases.run(&format!("trouble/{}/damaged-bytes", sample.name), || {
        let mut rng = Rng::new(bench.options.seed);
        for n in 0..DAMAGED {
            let mut bytes = sample.bytes.clone();
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
            all_calls(bench, disk_of(&bytes)).map_err(|e| format!("damaged image {n}: {e}"))?;
        }
        Ok(())
    });
}

/// Fields of a qcow2 header: name, offset, bytes (the specification, "Header" and "Header extensions").
const QCOW2_FIELDS: [(&str, usize, usize); 21] = [
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing_file_offset", 8, 8),
    ("backing_file_size", 16, 4),
    ("cluster_bits", 20, 4),
    ("size", 24, 8),
    ("crypt_method", 32, 4),
    ("l1_size", 36, 4),
    ("l1_table_offset", 40, 8),
    ("refcount_table_offset", 48, 8),
    ("refcount_table_clusters", 56, 4),
    ("nb_snapshots", 60, 4),
    ("snapshots_offset", 64, 8),
    ("incompatible_features", 72, 8),
    ("compatible_features", 80, 8),
    ("autoclear_features", 88, 8),
    ("refcount_order", 96, 4),
    ("header_length", 100, 4),
    ("compression_type", 104, 1),
    ("extension type", 112, 4),
    ("extension length", 116, 4),
];

/// Values at which arithmetic and limits break.
fn boundaries(width: usize) -> impl Iterator<Item = u64> {
    let bits = 8 * width as u32;
    let all = u64::MAX >> (64 - bits);
    let powers = [1, 9, 12, 16, 21, 31, 32, 48, 55, 56, 62, 63];
    let powers = powers.into_iter().filter(move |p| *p < bits);
    let around = powers.flat_map(|p| [(1_u64 << p) - 1, 1 << p, (1 << p) + 1]);
    [0, all, all - 1, all >> 1].into_iter().chain(around)
}

/// Every call; any of them may say no, none may break down.
fn all_calls(bench: &Bench<'_>, disk: Arc<dyn Disk>) -> Result<(), String> {
    let sight = sight_of(disk);
    let sound = |result: Result<(), CallError>| match result {
        Err(fault @ CallError::Fault { .. }) => Err(fault.to_string()),
        Err(CallError::Refused(failure)) if failure.message.trim().is_empty() => {
            Err("it says no without a word".to_owned())
        }
        _ => Ok(()),
    };
    let facts = bench.plugin.inspect(&sight);
    let identity =
        facts.as_ref().ok().and_then(|f| f.snapshots.first().map(|s| s.identity.clone()));
    sound(facts.map(|_| ()))?;
    sound(bench.plugin.extents(&sight, &View::Current, 0, 100).map(|_| ()))?;
    let new = NewSnapshot {
        mark: "00000000000000ab".to_owned(),
        taken_seconds: 1,
        taken_nanoseconds: 0,
        room: None,
        beside: 0,
        full_copy: true,
    };
    let identity = identity.unwrap_or_else(|| "1".to_owned());
    for goal in [
        Goal::Held(new),
        Goal::Restored(identity.clone()),
        Goal::Empty(identity.clone()),
        Goal::Settled,
    ] {
        sound(bench.plugin.plan(&sight, &goal).map(|_| ()))?;
    }
    sound(bench.plugin.differences(&sight, &identity, 0, 100).map(|_| ()))?;
    sound(bench.plugin.measure(&sight, &identity, false).map(|_| ()))
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
