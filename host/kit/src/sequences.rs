//! All sequences of up to three verbs on storage with commands, against a slot of paper; then each once more
//! with a crash in it.

use snapslot_engine::{Asked, EngineError, Verb};
use snapslot_testkit::rng::Rng;
use snapslot_testkit::storage::When;
use snapslot_testkit::storage::machine::Kind;

use crate::bench::Bench;
use crate::cases::Cases;
use crate::machine::{Live, StorageMachine, mark, operate};

const VERBS: [(Verb, bool); 5] = [
    (Verb::Take, false),
    (Verb::Take, true),
    (Verb::Restore, false),
    (Verb::Restore, true),
    (Verb::Delete, false),
];

/// Shorter ones first: the first that fails is the shortest that does.
fn all() -> Vec<Vec<(Verb, bool)>> {
    let all = (1..=3_u32).flat_map(|length| (0..5_usize.pow(length)).map(move |n| (length, n)));
    all.map(|(length, n)| (0..length).map(|i| VERBS[n / 5_usize.pow(i) % 5]).collect()).collect()
}

fn asked(verb: Verb, also: bool) -> Asked {
    Asked {
        replace: verb == Verb::Take && also,
        consume: verb == Verb::Restore && also,
        ..Asked::default()
    }
}

/// In words: `take, restore and delete it`.
fn told(verbs: &[(Verb, bool)]) -> String {
    let word = |(verb, also): &(Verb, bool)| match (verb, also) {
        (Verb::Take, true) => "replace",
        (Verb::Restore, true) => "consume",
        _ => verb.word(),
    };
    verbs.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// The guest writes between the verbs; after each, what it sees and whether the slot is held is what a
/// slot of paper says.
pub fn undisturbed(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    cases.run_telling(&format!("life/{kind:?}/sequences"), || {
        let all = all();
        for verbs in &all {
            let live = StorageMachine::new(bench, kind)?;
            let (mut sees, mut held): (u64, Option<u64>) = (1, None);
            for (n, (verb, also)) in verbs.iter().enumerate() {
                let at = |e: String| format!("{}, at the {}. verb: {e}", told(verbs), n + 1);
                let expected = match (verb, held, also) {
                    (Verb::Take, Some(_), false) => 3,
                    (Verb::Restore | Verb::Delete, None, _) => 4,
                    _ => 0,
                };
                let result = operate(&live, *verb, asked(*verb, *also));
                let exit = result.as_ref().err().map_or(0, EngineError::exit);
                if exit != expected {
                    let said = result.err().map_or_else(|| "it was done".to_owned(), |e| e.to_string());
                    return Err(at(format!("exit code {exit}, not {expected}: {said}")));
                }
                match (verb, held, also) {
                    _ if exit != 0 => {}
                    (Verb::Take, ..) => held = Some(sees),
                    (Verb::Restore, Some(then), consume) => {
                        (sees, held) = (then, held.filter(|_| !consume));
                    }
                    _ => held = None,
                }
                let (found, there) = (live.storage.sees().map_err(at)?, mark(&live)?.is_some());
                if (found, there) != (sees, held.is_some()) {
                    return Err(at(format!(
                        "the guest sees {found} and the slot is held: {there}; it should be {sees} and {}",
                        held.is_some()
                    )));
                }
                sees = 10 + n as u64;
                live.storage.write(sees);
            }
        }
        Ok(Some(format!("{} sequences", all.len())))
    });
}

/// Each once more, with a crash in it at a command that the seed chooses.
pub fn crashed(bench: &Bench<'_>, kind: Kind, cases: &mut Cases<'_>) {
    cases.run_telling(&format!("crash/{kind:?}/sequences"), || {
        let mut rng = Rng::new(bench.options.seed);
        let (all, mut crashes) = (all(), 0);
        for verbs in &all {
            let live = StorageMachine::new(bench, kind)?;
            let when = [When::Before, When::Inside, When::After][rng.below(3) as usize];
            let (n, which) = (1 + rng.below(8), rng.below(verbs.len() as u64) as usize);
            let at = |e: String| {
                format!(
                    "{}, crashed in the {}. verb at its command {n}, {when:?}: {e}",
                    told(verbs),
                    which + 1
                )
            };
            let mut then = Vec::new();
            for (i, (verb, also)) in verbs.iter().enumerate() {
                then.push(live.storage.sees().map_err(at)?);
                if i == which {
                    live.storage.crash_at(n, when);
                }
                let result = operate(&live, *verb, asked(*verb, *also));
                if live.storage.restart() {
                    crashes += 1;
                    let engine = live.engine().map_err(|e| at(e.to_string()))?;
                    engine
                        .recover(&live.volume())
                        .map_err(|e| at(format!("recovery fails: {e}")))?;
                } else if let Err(error) = result
                    && !matches!(error.exit(), 3 | 4)
                {
                    return Err(at(error.to_string()));
                }
                let sees = live.storage.sees().map_err(at)?;
                if !then.contains(&sees) {
                    return Err(at(format!("the guest sees {sees}, which it never wrote then")));
                }
                live.storage.write(20 + i as u64);
            }
        }
        Ok(Some(format!("{} sequences, {crashes} crashes", all.len())))
    });
}
