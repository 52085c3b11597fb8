//! Images: every state that a power cut leaves of each verb, and of all sequences of them; every event of them
//! failing.

use snapslot_plugin_sdk as sdk;
use snapslot_testkit::crash::Options as States;
use snapslot_testkit::qcow2_judge::Qcow2Judge;
use snapslot_testkit::qemu;
use snapslot_testkit::sim_host::RunError;
use snapslot_testkit::story::Story;
use snapslot_testkit::trial::{Depth, Judge, crash, faults, plain};
use snapslot_testkit::walk::{Walked, walk};

use crate::bench::Bench;
use crate::cases::{Cases, Step};
use crate::content::{content, disk_of, guest_writes, views};
use crate::convert::Component;
use crate::files::{Sample, qemu_is_there};

/// Judges by the plugin's own extents over the bytes that are there.
struct ByExtents<'a>(&'a Bench<'a>);

impl Judge for ByExtents<'_> {
    type Picture = Vec<(String, u128)>;

    fn picture(&self, image: &[u8]) -> Result<Self::Picture, String> {
        let sight = self.0.sight(disk_of(image));
        let facts = self.0.plugin.inspect(&sight).map_err(|e| e.to_string())?;
        let see = |(name, view, size): (String, _, _)| {
            Ok((name, content(self.0, &sight, &view, size)?.digest()))
        };
        views(&facts).into_iter().map(see).collect()
    }

    fn check_crashed(&self, _: &[u8]) -> Result<(), String> {
        // That it can be looked at is in its picture.
        Ok(())
    }

    fn check_settled(&self, image: &[u8]) -> Result<(), String> {
        let facts = self.0.plugin.inspect(&self.0.sight(disk_of(image)));
        let facts = facts.map_err(|e| e.to_string())?;
        match facts.findings.iter().find(|f| f.blocks) {
            Some(finding) => Err(finding.message.clone()),
            None => Ok(()),
        }
    }
}

/// Writes as the guest; what has no room of its own to be written to was not tried.
fn guest(bench: &Bench<'_>, sample: &Sample, image: Vec<u8>, n: usize) -> Result<Vec<u8>, String> {
    written(bench, sample, image, n)?.ok_or_else(|| {
        bench.beyond.note(CANNOT_WRITE.to_owned());
        CANNOT_WRITE.to_owned()
    })
}

/// Why a guest does not write.
pub const CANNOT_WRITE: &str =
    "the guest could not be made to write: nothing is allocated, or all is shared";

/// Writes as the guest, the n-th time: by QEMU where the format is its own, else where content lies. None: there is
/// no place to which it may write.
fn written(
    bench: &Bench<'_>,
    sample: &Sample,
    image: Vec<u8>,
    n: usize,
) -> Result<Option<Vec<u8>>, String> {
    if sample.qemu_writes() {
        let tools = qemu::Bench::new();
        tools.write("guest", &image);
        let writes: Vec<String> = (0..4)
            .map(|i| format!("write -q -P {} {}k {}k", n + 2, 20 * n + 3 + 190 * i, 9 + 4 * i))
            .collect();
        tools.io("guest", &writes.iter().map(String::as_str).collect::<Vec<_>>());
        return Ok(Some(tools.read("guest")));
    }
    let mut image = image;
    let writes = guest_writes(bench, &bench.sight(disk_of(&image)), n as u8 + 2)?;
    if writes.is_empty() {
        return Ok(None);
    }
    for (at, bytes) in writes {
        image[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
    }
    Ok(Some(image))
}

/// Why crashes of its images cannot be judged, if they cannot.
fn cannot_be_judged(bench: &Bench<'_>, sample: &Sample) -> Option<&'static str> {
    let lists = bench.lists_extents(&bench.sight(disk_of(&sample.bytes)));
    (!sample.qcow2 && !lists).then_some(
        "it does not say where content lies (`extents`), so that content cannot be told from what the format needs",
    )
}

/// What a part of the kit does on a sample with a judge.
type On<'j> = &'j mut dyn FnMut(&Bench<'_>, &str, &Sample, &mut Cases<'_>);

fn prepared(bench: &Bench<'_>, prefix: &str, sample: &Sample, cases: &mut Cases<'_>, on: On<'_>) {
    if !cases.may_want(prefix) {
        return;
    }
    if !bench.changes_images() {
        cases.does_not_apply(
            prefix,
            "its plans change no image: copies are the host's own work, and are crashed by the host's own tests",
        );
    } else if let Some(why) = cannot_be_judged(bench, sample) {
        cases.not_tried(prefix, why);
    } else {
        on(bench, prefix, sample, cases);
    }
}

fn qcow2_judge(sample: &Sample) -> Qcow2Judge {
    Qcow2Judge::new(qemu::Bench::new(), &sample.bytes, Vec::new())
}

fn depth(bench: &Bench<'_>) -> Depth {
    let states = States {
        seeded: bench.options.states,
        exhaustive: 10,
        singles: usize::MAX,
        tears: true,
        seed: bench.options.seed,
    };
    let mut depth = Depth::new(states);
    if !qemu_is_there() {
        depth.opinion_every = 0;
    }
    depth
}

/// Take, restore, delete: each crashed everywhere, and each event failing.
pub fn crashes(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    let prefix = format!("crash/{}", sample.name);
    prepared(
        bench,
        &prefix,
        sample,
        cases,
        &mut |bench, prefix, sample, cases| match sample.qcow2 {
            true => verbs(bench, prefix, sample, &qcow2_judge(sample), cases),
            false => verbs(bench, prefix, sample, &ByExtents(bench), cases),
        },
    );
}

fn verbs<J: Judge>(
    bench: &Bench<'_>,
    prefix: &str,
    sample: &Sample,
    judge: &J,
    cases: &mut Cases<'_>,
) {
    let planner = Component::new(bench.plugin, bench);
    let depth = depth(bench);
    let image = std::cell::RefCell::new(sample.bytes.clone());
    let mut steps = Vec::new();
    let wrote = std::cell::Cell::new(false);
    for (n, verb) in ["take", "restore", "delete"].into_iter().enumerate() {
        let (image, planner, depth, wrote) = (&image, &planner, &depth, &wrote);
        let name = |what: &str| format!("{prefix}/{verb}{what}");
        let refusal = |e: RunError| match e {
            RunError::Refused(failure) => format!("refused: {}", failure.message),
            error => error.to_string(),
        };
        if n > 0 {
            // Or there would be nothing to restore. Where it cannot write, the rest is tried all the same.
            let step = Step::new(format!("{prefix}/guest-before-{verb}"), move || {
                let before = image.borrow().clone();
                *image.borrow_mut() = guest(bench, sample, before, n)?;
                wrote.set(true);
                Ok(())
            });
            steps.push(step.optional());
        }
        steps.push(Step::telling(name("/failing"), move || {
            let before = image.borrow().clone();
            let goal = goal_of(bench, verb, &before)?;
            let tally = faults(planner, judge, &before, &goal, depth)?;
            Ok(Some(format!(
                "{} runs that failed, {} states after them",
                tally.faults, tally.after_faults
            )))
        }));
        steps.push(Step::telling(name("/power-cut"), move || {
            let before = image.borrow().clone();
            let goal = goal_of(bench, verb, &before)?;
            let outcome = crash(planner, judge, &before, &goal, depth)?.map_err(refusal)?;
            let nothing_to_do = verb == "restore" && !wrote.get();
            if outcome.plan.is_empty() && !nothing_to_do {
                return Err("it plans nothing, and nothing is done yet".to_owned());
            }
            *image.borrow_mut() = outcome.after;
            Ok(Some(outcome.tally.to_string()))
        }));
    }
    cases.script(steps);
}

/// All sequences of up to three verbs, the guest writing between them, each crashed. Where QEMU is the guest it also
/// discards, and the disk grows and shrinks.
pub fn sequences(bench: &Bench<'_>, sample: &Sample, cases: &mut Cases<'_>) {
    let prefix = format!("crash/{}/sequences", sample.name);
    prepared(bench, &prefix, sample, cases, &mut |bench, name, sample, cases| match (
        sample.qemu_writes(),
        sample.qcow2,
    ) {
        (true, _) => cases.run_telling(name, || {
            let (planner, judge) = (Component::new(bench.plugin, bench), qcow2_judge(sample));
            // So many lives are walked through that fewer random states of each do.
            let mut depth = Depth { opinion_every: 0, ..depth(bench) };
            depth.states.seeded = depth.states.seeded.div_ceil(4);
            let story = Story::new(&planner, &judge, sample.bytes.clone(), depth);
            let walked = walk(&story, 3)?;
            let Walked { sequences, refused, tally } = walked;
            Ok(Some(format!("{sequences} sequences, {refused} acts refused; {tally}")))
        }),
        (false, true) => sequences_judged(bench, name, sample, &qcow2_judge(sample), cases),
        (false, false) => sequences_judged(bench, name, sample, &ByExtents(bench), cases),
    });
}

fn sequences_judged<J: Judge>(
    bench: &Bench<'_>,
    name: &str,
    sample: &Sample,
    judge: &J,
    cases: &mut Cases<'_>,
) {
    const VERBS: [&str; 3] = ["take", "restore", "delete"];
    let planner = Component::new(bench.plugin, bench);
    let seed = bench.options.seed;
    let states = States { seeded: 2, exhaustive: 2, singles: 2, tears: true, seed };
    let mut depth = Depth::new(states);
    depth.opinion_every = 0;
    cases.run_telling(name, || {
        let (mut walked, mut states) = (0, 0);
        for length in 1..=3_u32 {
            for number in 0..3_usize.pow(length) {
                let verbs: Vec<&str> =
                    (0..length).map(|i| VERBS[number / 3_usize.pow(i) % 3]).collect();
                let (mut image, mut held) = (sample.bytes.clone(), false);
                walked += 1;
                for (n, verb) in verbs.iter().enumerate() {
                    // What the slot's rule refuses never comes to the plugin.
                    if held == (*verb == "take") {
                        continue;
                    }
                    let at = |e: String| format!("{verbs:?}, at the {}. verb: {e}", n + 1);
                    let goal = goal_of(bench, verb, &image).map_err(at)?;
                    let outcome = crash(&planner, judge, &image, &goal, &depth).map_err(at)?;
                    let outcome = outcome.map_err(|e| at(e.to_string()))?;
                    states += outcome.tally.states.distinct;
                    image = outcome.after;
                    held = *verb != "delete";
                    image = guest(bench, sample, image, n).map_err(at)?;
                }
            }
        }
        Ok(Some(format!("{walked} sequences, {states} states")))
    });
}

/// The goal of a verb on this image.
pub fn goal_of(bench: &Bench<'_>, verb: &str, image: &[u8]) -> Result<sdk::Goal, String> {
    let facts = bench.plugin.inspect(&bench.sight(disk_of(image))).map_err(|e| e.to_string())?;
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

/// The image after a take and a guest that wrote since, and whether it could; of it none of the cases here says
/// anything.
pub fn held(bench: &Bench<'_>, sample: &Sample) -> Result<(Vec<u8>, bool), String> {
    let planner = Component::new(bench.plugin, bench);
    let goal = goal_of(bench, "take", &sample.bytes)?;
    let after = plain(&planner, &sample.bytes, &goal).map_err(|e| e.to_string())?;
    Ok(match written(bench, sample, after.clone(), 1)? {
        Some(image) => (image, true),
        None => (after, false),
    })
}
