//! What bytes from the process would lead to, for tests and for the fuzzer: words or a refusal, and of
//! steps a plan that keeps to what was granted.

use std::sync::OnceLock;

use snapslot_command::{Place, PlaceKind as Kind};

use super::frames::decoded;
use super::wire::Word;
use crate::bindings::types::{
    CommandGrant, Description, Grammar, Hole, ImageGrant, PlaceKind, Role,
};
use crate::call::{Building, DraftEnd};
use crate::grants::effective;
use crate::outside::Grants;

/// What came of some bytes.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// They are words.
    pub words: bool,
    /// Plans that were made of them.
    pub plans: usize,
}

/// A plugin that may destroy what is ours of a dataset, and nothing else.
pub(super) fn of_commands() -> Description {
    let hole = |name: &str, grammar| Hole { name: name.to_owned(), grammar };
    let action = CommandGrant {
        name: "destroy".to_owned(),
        template: ["zfs", "destroy", "{d}@{s}"].map(str::to_owned).to_vec(),
        holes: vec![hole("d", Grammar::ZfsDataset), hole("s", Grammar::ZfsOwn)],
        input: None,
        guard: None,
        deadline_seconds: 10,
        reason: "why not".to_owned(),
    };
    Description {
        name: "played".to_owned(),
        place: PlaceKind::ZfsDataset,
        actions: vec![action],
        ..Description::unknown()
    }
}

/// One that may change its image, and nothing else.
fn of_images() -> Description {
    let image = ImageGrant { role: Role::Disk, changes: true, reason: "r".to_owned() };
    Description { name: "played".to_owned(), images: vec![image], ..Description::unknown() }
}

/// Takes bytes as a frame from the process.
///
/// # Panics
/// If a plan comes of them that was not granted.
#[doc(hidden)]
pub fn judge_words(bytes: &[u8]) -> Judged {
    static GRANTS: OnceLock<[Grants; 2]> = OnceLock::new();
    let all = GRANTS.get_or_init(|| {
        [of_commands(), of_images()].map(|d| effective(&d).expect("grants that may be had"))
    });
    let Ok(word) = decoded::<Word>(bytes) else { return Judged::default() };
    let mut judged = Judged { words: true, plans: 0 };
    let Word::Steps(steps) = word else { return judged };
    let place = Place::parse(Kind::ZfsDataset, "tank/vm1").expect("a place");
    for grants in all {
        let mut plan = Building::new(grants, Some(&place));
        let refused = steps.iter().cloned().any(|step| plan.add(step).is_err());
        let Ok(plan) = plan.end(DraftEnd { seal: None, notes: Vec::new() }) else { continue };
        judged.plans += usize::from(!refused);
        for act in plan.acts() {
            let line = act.command.to_string();
            let ours = line.strip_prefix("zfs destroy tank/vm1@snapslot-");
            assert!(ours.is_some_and(|rest| !rest.contains([' ', '/', '@', ','])), "{line}");
        }
        assert!(grants.changes || plan.steps().iter().all(|s| s.span().is_none()));
        assert!(!grants.changes || plan.acts().next().is_none());
    }
    judged
}
