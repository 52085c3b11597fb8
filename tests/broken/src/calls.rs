//! What is said wrong, or asked for, where the plans are sound.

use snapslot_plugin_sdk::double::{Recorded, RecordedPlan};
use snapslot_plugin_sdk::{
    Answer, Argument, Backend, CommandGrant, Content, Description, Extent, ExtentPage, Facts,
    Failure, FailureKind, Goal, Grammar, Image, Role, SavedCopy, Saving, StretchPage, Target, View,
    hole,
};

use snapslot_plugin_lvm::Lvm;
use snapslot_plugin_qcow2::Qcow2;
use snapslot_plugin_zfs::Zfs;

use crate::{Base, Fault, How, of_base, planted};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// A take that is done is planned again.
    TakesAgain,
    /// Something is always to be settled.
    SettlesForEver,
    /// Extents leave out the end of the disk.
    ExtentsEndEarly,
    /// Extents say something else in short pages.
    ShortPagesDiffer,
    /// What changed is not listed.
    NothingDiffers,
    /// What cannot be read is taken for zeroes.
    ReadsZeroes,
    /// What cannot be read is told as corruption.
    BlamesTheImage,
    /// A damaged image breaks it down.
    Panics,
    /// A damaged image is told as its own fault.
    BlamesItself,
    /// The moment of the take is another.
    AnotherMoment,
    /// A snapshot that is not there is restored from the first one there is.
    RestoresTheFirst,
    /// A look that fails is taken for an empty slot.
    SeesNothing,
    /// Only the commands' own failure counts, not that nothing was understood of what they said.
    AsksBesideAnImage,
}

pub(crate) fn faults() -> impl Iterator<Item = Fault> {
    use Wrong as W;
    let image = [
        (W::TakesAgain, "a take that is done is planned again"),
        (W::SettlesForEver, "something is always to be settled"),
        (W::ExtentsEndEarly, "its extents leave out the end of the disk"),
        (W::ShortPagesDiffer, "its extents are others in short pages"),
        (W::NothingDiffers, "what changed is not listed"),
        (W::ReadsZeroes, "what cannot be read is taken for zeroes"),
        (W::BlamesTheImage, "what cannot be read is told as corruption"),
        (W::Panics, "a damaged image breaks it down"),
        (W::BlamesItself, "a damaged image is told as its own fault"),
        (W::AnotherMoment, "the moment of the take is another"),
        (W::RestoresTheFirst, "what is not there is restored from what is"),
        (W::AsksBesideAnImage, "it has commands run beside an image"),
    ];
    let commands = [
        (Base::Lvm("Thin"), W::SeesNothing, "a look that fails is taken for an empty slot"),
        (Base::Zfs("Zvol"), W::SeesNothing, "a look that fails is taken for an empty slot"),
        (Base::Zfs("Dataset"), W::SettlesForEver, "something is always to be settled"),
    ];
    (image.into_iter().map(|(wrong, what)| (Base::Qcow2, wrong, what)))
        .chain(commands)
        .map(|(base, wrong, what)| Fault { what, base, how: How::Calls(wrong) })
}

pub(crate) fn described(wrong: Wrong, mut d: Description) -> Description {
    if wrong == Wrong::AsksBesideAnImage {
        let grant = |name: &str, words: &[&str]| CommandGrant {
            name: name.to_owned(),
            template: words.iter().map(|w| (*w).to_owned()).collect(),
            holes: vec![hole("path", Grammar::Path)],
            input: None,
            guard: None,
            deadline_seconds: 10,
            reason: "to see whether it is run".to_owned(),
        };
        d.queries = vec![grant("look", &["btrfs", "filesystem", "df", "{path}"])];
        // It makes the file, whatever file system it is on.
        let plant = ["btrfs", "filesystem", "mkswapfile", "--size", "1M"];
        let mut plant = grant("plant", &plant);
        plant.template.push(planted());
        plant.holes = Vec::new();
        d.actions = vec![plant];
    }
    d
}

/// A volume with an image whose reads are never refused.
struct Numb<'a>(&'a dyn Target);

struct NumbImage<'a>(Box<dyn Image + 'a>);

impl Image for NumbImage<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, offset: u64, length: u32) -> Result<Vec<u8>, Failure> {
        Ok(self.0.read_at(offset, length).unwrap_or_else(|_| vec![0; length as usize]))
    }

    fn read_ranges(&self, ranges: &[(u64, u32)]) -> Result<Vec<u8>, Failure> {
        let length = ranges.iter().map(|(_, length)| *length as usize).sum();
        Ok(self.0.read_ranges(ranges).unwrap_or_else(|_| vec![0; length]))
    }
}

impl Target for Numb<'_> {
    fn place(&self) -> String {
        self.0.place()
    }

    fn image(&self, role: Role) -> Result<Box<dyn Image + '_>, Failure> {
        Ok(Box::new(NumbImage(self.0.image(role)?)))
    }

    fn ask(&self, query: &str, arguments: &[Argument]) -> Result<Answer, Failure> {
        self.0.ask(query, arguments)
    }

    fn copies(&self) -> Result<Vec<SavedCopy>, Failure> {
        self.0.copies()
    }

    fn saving(&self) -> Result<Saving, Failure> {
        self.0.saving()
    }
}

fn blamed(wrong: Wrong, failure: Failure) -> Failure {
    match (wrong, failure.kind) {
        (Wrong::BlamesTheImage, FailureKind::Io) => {
            Failure { kind: FailureKind::Corrupt, ..failure }
        }
        (Wrong::BlamesItself, FailureKind::Corrupt) => {
            Failure { kind: FailureKind::Internal, ..failure }
        }
        (Wrong::Panics, FailureKind::Corrupt) => panic!("{}", failure.message),
        _ => failure,
    }
}

pub(crate) fn inspect(wrong: Wrong, base: Base, target: &dyn Target) -> Result<Facts, Failure> {
    if wrong == Wrong::AsksBesideAnImage {
        // Whatever it says.
        let _ = target.ask("look", &[]);
    }
    let found = match wrong {
        Wrong::ReadsZeroes => of_base!(base, inspect(&Numb(target))),
        _ => of_base!(base, inspect(target)),
    };
    match (wrong, found) {
        (Wrong::SeesNothing, Err(_)) => Ok(Facts {
            identity: None,
            virtual_size: 1 << 20,
            format: "nothing".to_owned(),
            snapshots: Vec::new(),
            findings: Vec::new(),
            unfinished: None,
        }),
        (_, Err(failure)) => Err(blamed(wrong, failure)),
        (Wrong::AnotherMoment, Ok(mut facts)) => {
            facts.snapshots.iter_mut().for_each(|s| s.taken_seconds ^= 1);
            Ok(facts)
        }
        (_, Ok(facts)) => Ok(facts),
    }
}

pub(crate) fn plan(
    wrong: Wrong,
    base: Base,
    target: &dyn Target,
    goal: &Goal,
    plan: &mut RecordedPlan,
) -> Result<(), Failure> {
    let first = || -> Result<Option<String>, Failure> {
        let facts = of_base!(base, inspect(target))?;
        Ok(facts.snapshots.into_iter().next().map(|s| s.identity))
    };
    let meant = match (wrong, goal) {
        (Wrong::RestoresTheFirst, Goal::Restored(_)) => {
            first()?.map_or_else(|| goal.clone(), Goal::Restored)
        }
        _ => goal.clone(),
    };
    let planned = match wrong {
        Wrong::ReadsZeroes => of_base!(base, plan(&Numb(target), &meant, plan)),
        _ => of_base!(base, plan(target, &meant, plan)),
    };
    planned.map_err(|failure| blamed(wrong, failure))?;
    match (wrong, goal) {
        (Wrong::AsksBesideAnImage, Goal::Held(_)) => {
            plan.seal = None;
            plan.steps = vec![Recorded::Act("plant".to_owned(), Vec::new())];
        }
        (Wrong::TakesAgain, Goal::Held(_)) | (Wrong::SettlesForEver, Goal::Settled)
            if plan.steps.is_empty() =>
        {
            match base {
                // What is there already.
                Base::Qcow2 => plan.steps.push(Recorded::Write(0, b"QFI\xfb".to_vec())),
                Base::Lvm(_) | Base::Zfs(_) => {
                    // A snapshot, as in a take, under a mark of nobody's.
                    let new = snapslot_plugin_sdk::NewSnapshot {
                        mark: "00000000000000ee".to_owned(),
                        taken_seconds: 1,
                        taken_nanoseconds: 0,
                        room: None,
                        beside: 0,
                        full_copy: false,
                    };
                    of_base!(base, plan(target, &Goal::Held(new), plan))?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

pub(crate) fn extents(
    wrong: Wrong,
    base: Base,
    target: &dyn Target,
    view: &View,
    cursor: u64,
    max: u32,
) -> Result<ExtentPage, Failure> {
    let page = match wrong {
        Wrong::ReadsZeroes => of_base!(base, extents(&Numb(target), view, cursor, max)),
        _ => of_base!(base, extents(target, view, cursor, max)),
    };
    let mut page = page.map_err(|failure| blamed(wrong, failure))?;
    match wrong {
        Wrong::ExtentsEndEarly if page.next.is_none() => {
            if let Some(last) = page.extents.last_mut()
                && last.length > 512
            {
                last.length -= 512;
            }
        }
        Wrong::ShortPagesDiffer if max < 7 => {
            if let Some(Extent { content, .. }) = page.extents.first_mut() {
                *content = Content::Zero;
            }
        }
        _ => {}
    }
    Ok(page)
}

pub(crate) fn differences(
    wrong: Wrong,
    base: Base,
    target: &dyn Target,
    identity: &str,
    cursor: u64,
    max: u32,
) -> Result<StretchPage, Failure> {
    let page = match wrong {
        Wrong::ReadsZeroes => of_base!(base, differences(&Numb(target), identity, cursor, max)),
        _ => of_base!(base, differences(target, identity, cursor, max)),
    };
    let page = page.map_err(|failure| blamed(wrong, failure))?;
    match wrong {
        Wrong::NothingDiffers => Ok(StretchPage { stretches: Vec::new(), next: None }),
        _ => Ok(page),
    }
}
