//! The same plugin on ZFS datasets: what it plans are commands. How it misbehaves stands in the number
//! of its description, because the dataset of the test has one name.

use snapslot_plugin_sdk::{
    Answer, Argument, CommandGrant, Description, Facts, Failure, FailureKind, Goal, Grammar, Hole,
    PlaceKind, Plan, Snapshot, Target, argument, hole, is_mark,
};

/// It does what it should.
const SOUND: u8 = 50;
/// The first number that is not one of these.
const END: u8 = 62;

/// Whether it is one for datasets now.
pub fn is_on() -> bool {
    (SOUND..END).contains(&crate::number())
}

/// What it says of itself then.
pub fn described(d: &mut Description) {
    let grant = |name: &str, words: &[&str], holes: Vec<Hole>| CommandGrant {
        name: name.to_owned(),
        template: words.iter().map(|w| (*w).to_owned()).collect(),
        holes,
        input: None,
        guard: None,
        deadline_seconds: 10,
        reason: "to try".to_owned(),
    };
    let dataset = || hole("dataset", Grammar::ZfsDataset);
    let both = || vec![dataset(), hole("own", Grammar::ZfsOwn)];
    d.place = PlaceKind::ZfsDataset;
    d.images = Vec::new();
    let look = ["zfs", "list", "-Hp", "-t", "all", "-d", "1", "-o", "name,guid", "{dataset}"];
    d.queries = vec![grant("look", &look, vec![dataset()])];
    d.actions = vec![
        grant("take", &["zfs", "snapshot", "{dataset}@{own}"], both()),
        grant("rollback", &["zfs", "rollback", "{dataset}@{own}"], both()),
        grant("drop", &["zfs", "destroy", "{dataset}@{own}"], both()),
    ];
}

/// Looks.
pub fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
    if crate::number() == 55 {
        // What it is told is of no interest to it.
        loop {
            let _ = std::hint::black_box(target.ask("look", &[]));
        }
    }
    let answer = target.ask("look", &[])?;
    let text = String::from_utf8_lossy(&answer.output).into_owned();
    let mut snapshots: Vec<Snapshot> = (text.lines().filter_map(|l| l.split_once('\t')))
        .filter_map(|(name, guid)| {
            let part = name.split_once('@')?.1;
            Some(Snapshot {
                identity: guid.to_owned(),
                name: name.to_owned(),
                mark: part.strip_prefix("snapslot-").filter(|m| is_mark(m)).map(str::to_owned),
                taken_seconds: 1,
                taken_nanoseconds: 0,
                virtual_size: 1 << 20,
                vm_state_size: 0,
                lost: false,
            })
        })
        .collect();
    // Facts that change between calls: what was made is not there.
    if crate::number() == 60 {
        snapshots.clear();
    }
    Ok(Facts {
        identity: None,
        virtual_size: 1 << 20,
        format: "hostile".to_owned(),
        snapshots,
        findings: Vec::new(),
        unfinished: None,
    })
}

/// Plans.
pub fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
    let own = |mark: &str| vec![argument("own", format!("snapslot-{mark}"))];
    let named = |name: &str| vec![argument("own", name)];
    let mark_of = |identity: &str| -> Result<String, Failure> {
        let found = inspect(target)?.snapshots.into_iter().find(|s| s.identity == identity);
        found
            .and_then(|s| s.mark)
            .ok_or_else(|| Failure::new(FailureKind::NotFound, "gone", "it is gone"))
    };
    let mark = match goal {
        Goal::Held(new) => new.mark.clone(),
        Goal::Restored(identity) | Goal::Consumed(identity) => {
            return plan.act("rollback", &own(&mark_of(identity)?));
        }
        Goal::Empty(identity) => return plan.act("drop", &own(&mark_of(identity)?)),
        Goal::Settled => return Ok(()),
    };
    match crate::number() {
        // Arguments that look like options, and names of others.
        51 => plan.act("take", &named("-r"))?,
        52 => plan.act("take", &named("--help"))?,
        53 => plan.act("take", &named("daily"))?,
        54 => plan.act("drop", &named("snapslot-x@y"))?,
        56 => {
            let other: Vec<Argument> =
                vec![argument("dataset", "tank/other"), argument("own", "snapslot-x")];
            plan.act("take", &other)?;
        }
        57 => plan.act("rollback-all", &[])?,
        58 => return Ok(()),
        59 => {
            for _ in 0..1000 {
                plan.act("take", &own(&mark))?;
            }
        }
        61 => plan.act("take", &[])?,
        _ => {}
    }
    plan.act("take", &own(&mark))
}

/// Puts a failure into words, or does not.
pub fn explain(command: &str, answer: &Answer) -> Failure {
    match answer.exit_code {
        41 => crate::forever(),
        42 => panic!("as told"),
        43 => {
            let words = "\u{1b}[2J\u{202e}no ".repeat(100_000);
            Failure::new(FailureKind::Io, "\u{1b}[31m", words)
        }
        code => Failure::new(FailureKind::Io, "failed", format!("{command} ended with {code}")),
    }
}
