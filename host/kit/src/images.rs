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
    } else {
        verbs(bench, &prefix, &ByExtents(bench), &sample.bytes, cases);
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
    let mut depth = Depth::new(states);
    depth.opinion_every = 0;
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

fn goal_of(bench: &Bench<'_>, verb: &str, image: &[u8]) -> Result<sdk::Goal, String> {
    let facts = bench.plugin.inspect(&sight_of(disk_of(image))).map_err(|e| e.to_string())?;
    let mine = facts.snapshots.iter().find(|s| s.mark.is_some()).map(|s| s.identity.clone());
    Ok(match (verb, mine) {
        ("take", _) => sdk::Goal::Held(sdk::NewSnapshot {
            mark: "00000000000000ab".to_owned(),
            taken_seconds: 1_700_000_000,
            taken_nanoseconds: 7,
            room: None,
            full_copy: false,
        }),
        ("restore", Some(identity)) => sdk::Goal::Restored(identity),
        (_, Some(identity)) => sdk::Goal::Empty(identity),
        (_, None) => return Err("after a take no snapshot bears its mark".to_owned()),
    })
}

pub fn troubles(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    cases.run(&format!("trouble/{}/reads-that-fail", sample.name), || {
        for n in 0.. {
            let disk = Arc::new(Failing {
                inner: disk_of(&sample.bytes),
                reads: AtomicU64::new(0),
                at: n,
            });
            all_calls(bench, disk.clone()).map_err(|e| format!("read {n} fails: {e}"))?;
            if disk.reads.load(Ordering::Relaxed) <= n || n > 500 {
                break;
            }
        }
        Ok(())
    });
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
    sound(bench.plugin.measure(&sight, &identity).map(|_| ()))
}

/// A disk one read of which fails.
struct Failing {
    inner: Arc<dyn Disk>,
    reads: AtomicU64,
    at: u64,
}

impl Disk for Failing {
    fn size(&self) -> Result<u64, DiskError> {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        if self.reads.fetch_add(1, Ordering::Relaxed) == self.at {
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
