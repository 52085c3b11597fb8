//! A grant: a command template with typed holes, as a plugin declares it and a person approves
//! it. Filling one is the only way a command comes to be.

use std::time::Duration;

use crate::command::Command;
use crate::fits::{Piece, Word, fits};
use crate::grammar::Grammar;
use crate::place::{Place, PlaceKind};
use crate::table::Purpose;

const WORDS_MAX: usize = 64;
const WORD_MAX: usize = 4096;
const HOLES_MAX: usize = 16;
const VALUE_MAX: usize = 255;
const INPUT_MAX: usize = 16 << 10;
const DEADLINE_MAX: u64 = 86_400;
/// A guard only looks: a program that takes longer has hung.
const GUARD_DEADLINE: Duration = Duration::from_secs(60);

/// A place in a template where a value goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Its name.
    pub name: String,
    /// What may stand in it.
    pub grammar: Grammar,
}

/// A look that must give an expected answer right before the command is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Program and arguments.
    pub template: Vec<String>,
    /// The hole whose value its output must be.
    pub equals: String,
}

/// A command template that may be filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The name by which it is asked for.
    pub name: String,
    /// Program and arguments.
    pub template: Vec<String>,
    /// Its holes.
    pub holes: Vec<Hole>,
    /// Text for the standard input.
    pub input: Option<String>,
    /// What must hold right before.
    pub guard: Option<Guard>,
    /// Seconds after which it is ended.
    pub deadline_seconds: u64,
}

/// A grant that no person should be asked to approve.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its grant {grant:?} {why}")]
pub struct GrantError {
    /// Its name.
    pub grant: String,
    /// What is wrong with it.
    pub why: String,
}

/// Values that do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{hole:?} of {grant:?} {why}")]
pub struct FillError {
    /// The grant.
    pub grant: String,
    /// The hole.
    pub hole: String,
    /// What is wrong.
    pub why: String,
}

/// A grant with its holes filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filled {
    /// What is run.
    pub command: Command,
    /// What is looked at right before, and what it must say.
    pub guard: Option<(Command, String)>,
}

impl Grant {
    /// Whether it is one that a person may be asked to approve: a command of the host's table, for
    /// volumes of this kind and for this purpose, with holes that are declared.
    pub fn check(&self, kind: PlaceKind, purpose: Purpose) -> Result<(), GrantError> {
        let broken = |why: String| GrantError { grant: shown(&self.name), why };
        let fail = |why: String| Err(broken(why));
        if !is_name(&self.name) {
            return fail("has a name that is none".to_owned());
        }
        if !(1..=DEADLINE_MAX).contains(&self.deadline_seconds) {
            return fail(format!("has a deadline that is not 1 to {DEADLINE_MAX} seconds"));
        }
        if self.input.as_ref().is_some_and(|i| i.len() > INPUT_MAX || i.contains('\0')) {
            return fail("has an input that is too long".to_owned());
        }
        if self.holes.len() > HOLES_MAX {
            return fail(format!("has more than {HOLES_MAX} holes"));
        }
        for (i, hole) in self.holes.iter().enumerate() {
            if !is_name(&hole.name) || self.holes[..i].iter().any(|h| h.name == hole.name) {
                return fail(format!(
                    "has the hole {:?} twice or wrongly named",
                    shown(&hole.name)
                ));
            }
        }
        let mut used = self.used(&self.template).map_err(&broken)?;
        if let Some(guard) = &self.guard {
            used.extend(self.used(&guard.template).map_err(&broken)?);
            if !self.holes.iter().any(|h| h.name == guard.equals) {
                return fail(format!("is guarded by {:?}, no hole of it", shown(&guard.equals)));
            }
            used.push(guard.equals.clone());
        }
        if let Some(hole) = self.holes.iter().find(|h| !used.contains(&h.name)) {
            return fail(format!("has the hole {:?}, which stands nowhere", hole.name));
        }
        fits(kind, &self.words(&self.template), self.input.as_deref(), purpose).map_err(&broken)?;
        match &self.guard {
            Some(guard) => fits(kind, &self.words(&guard.template), None, Purpose::Look)
                .map_err(|why| broken(format!("has a guard that {why}"))),
            None => Ok(()),
        }
    }

    /// A template's words, cut at their holes. What is no hole of this grant's stays text.
    fn words<'a>(&self, template: &'a [String]) -> Vec<Word<'a>> {
        let piece = |part: Part<'a>| match part {
            Part::Text("") => None,
            Part::Text(text) => Some(Piece::Text(text)),
            Part::Hole(name) => {
                let hole = self.holes.iter().find(|h| h.name == name)?;
                Some(Piece::Hole(name, hole.grammar))
            }
        };
        let cut = |word: &'a String| parts(word).unwrap_or_default().into_iter().filter_map(piece);
        template.iter().map(|word| cut(word).collect()).collect()
    }

    /// The holes that stand in a template.
    fn used(&self, template: &[String]) -> Result<Vec<String>, String> {
        if template.len() > WORDS_MAX || template.iter().any(|w| w.is_empty() || w.len() > WORD_MAX)
        {
            return Err("has empty words, or too many, or too long ones".to_owned());
        }
        let mut used = Vec::new();
        for word in template {
            if word.chars().any(char::is_control) {
                return Err("has control characters".to_owned());
            }
            for part in parts(word).map_err(|why| format!("has {word:?}, {why}"))? {
                if let Part::Hole(name) = part {
                    if !self.holes.iter().any(|h| h.name == name) {
                        return Err(format!("has {name:?} in it, no hole of its own"));
                    }
                    used.push(name.to_owned());
                }
            }
        }
        Ok(used)
    }

    /// Makes the command, and its guard. `values` are hole and value; holes that the place
    /// determines are filled from it.
    pub fn fill(&self, place: &Place, values: &[(&str, &str)]) -> Result<Filled, FillError> {
        let fail = |hole: &str, why: String| FillError {
            grant: shown(&self.name),
            hole: shown(hole),
            why,
        };
        for (i, (name, _)) in values.iter().enumerate() {
            let known = self.holes.iter().any(|h| h.name == *name);
            if !known || values[..i].iter().any(|(n, _)| n == name) {
                return Err(fail(name, "is no hole of it, or filled twice".to_owned()));
            }
        }
        let mut filled: Vec<(&str, String)> = Vec::new();
        for hole in &self.holes {
            let given = values.iter().find(|(n, _)| *n == hole.name).map(|(_, v)| *v);
            let value = match (hole.grammar.of_place(place), given) {
                (Some(Ok(value)), None) => value,
                (Some(Err(why)), None) => return Err(fail(&hole.name, why.to_owned())),
                (Some(_), Some(_)) => {
                    return Err(fail(&hole.name, "is filled by the host alone".to_owned()));
                }
                (None, Some(v)) if v.len() <= VALUE_MAX && hole.grammar.allows(v, place) => {
                    v.to_owned()
                }
                (None, Some(v)) => {
                    let why = format!("must be {}, not {:?}", hole.grammar.in_words(), shown(v));
                    return Err(fail(&hole.name, why));
                }
                (None, None) => return Err(fail(&hole.name, "is not filled".to_owned())),
            };
            filled.push((&hole.name, value));
        }
        let make = |template: &[String], input: Option<String>, deadline| {
            let words: Vec<String> = template.iter().map(|w| substituted(w, &filled)).collect();
            // No grammar lets such a value through. If one ever did, it would end here.
            let optional = |(word, was): (&String, &String)| {
                word.is_empty() || (word.starts_with('-') && !was.starts_with('-'))
            };
            if words.iter().zip(template).any(optional) {
                return Err(fail("a hole", "would become an option, or nothing".to_owned()));
            }
            let mut words = words.into_iter();
            let program = words.next().unwrap_or_default();
            Ok(Command { program, arguments: words.collect(), input, deadline })
        };
        let deadline = Duration::from_secs(self.deadline_seconds);
        let command = make(&self.template, self.input.clone(), deadline)?;
        let guard = match &self.guard {
            None => None,
            Some(guard) => {
                let expected = filled.iter().find(|(n, _)| *n == guard.equals);
                let expected = expected.map(|(_, v)| v.clone()).unwrap_or_default();
                Some((make(&guard.template, None, GUARD_DEADLINE)?, expected))
            }
        };
        Ok(Filled { command, guard })
    }
}

fn is_name(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

enum Part<'a> {
    Text(&'a str),
    Hole(&'a str),
}

/// Cuts a word at its holes. A brace that opens none is plain text, as in LVM's `report{…}`:
/// only `{name}` with a hole's name between is a hole.
fn parts(word: &str) -> Result<Vec<Part<'_>>, &'static str> {
    let mut all = Vec::new();
    let mut rest = word;
    while let Some(open) = rest.find('{') {
        let inside = &rest[open + 1..];
        let close = inside.find('}').ok_or("in which a brace is not closed")?;
        if is_name(&inside[..close]) {
            all.push(Part::Text(&rest[..open]));
            all.push(Part::Hole(&inside[..close]));
        } else {
            all.push(Part::Text(&rest[..open + close + 2]));
        }
        rest = &inside[close + 1..];
    }
    all.push(Part::Text(rest));
    Ok(all)
}

fn substituted(word: &str, filled: &[(&str, String)]) -> String {
    let find = |name: &str| filled.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
    (parts(word).unwrap_or_default().into_iter())
        .map(|part| match part {
            Part::Text(text) => text,
            Part::Hole(name) => find(name).unwrap_or_default(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    //! Goal: no value of a plugin's ever becomes an option, another volume, or nothing.

    use super::*;

    fn grant() -> Grant {
        let word = |s: &&str| (*s).to_owned();
        let hole = |name: &str, grammar| Hole { name: name.to_owned(), grammar };
        Grant {
            name: "remove".to_owned(),
            template: ["lvremove", "-y", "{group}/{own}"].iter().map(word).collect(),
            holes: vec![
                hole("group", Grammar::LvmGroup),
                hole("own", Grammar::LvmOwn),
                hole("uuid", Grammar::Uuid),
            ],
            input: None,
            guard: Some(Guard {
                template: ["lvs", "--noheadings", "-o", "lv_uuid", "{group}/{own}"]
                    .iter()
                    .map(word)
                    .collect(),
                equals: "uuid".to_owned(),
            }),
            deadline_seconds: 60,
        }
    }

    const UUID: &str = "fO2Njv-fQQz-EhKf-NUQm-x6ZY-Mgle-iQyrbA";

    fn place() -> Place {
        Place::parse(PlaceKind::LvmVolume, "vg/vm1").expect("a place")
    }

    #[test]
    fn a_grant_is_filled() {
        grant().check(PlaceKind::LvmVolume, Purpose::Change).expect("a sound grant");
        let own = "vm1_snapslot_0123456789abcdef";
        let filled = grant().fill(&place(), &[("own", own), ("uuid", UUID)]).expect("filled");
        assert_eq!(filled.command.to_string(), format!("lvremove -y vg/{own}"));
        let (guard, expected) = filled.guard.expect("guarded");
        assert_eq!(guard.to_string(), format!("lvs --noheadings -o lv_uuid vg/{own}"));
        assert_eq!(expected, UUID);
    }

    #[test]
    fn values_that_are_not_ours_are_refused() {
        let bad = [
            "",
            "vm1",
            "vm2",
            "-f",
            "vm1_snapslot_",
            "vm2_snapslot_1",
            "vm1_snapslot_1 vm2",
            "vm1_snapslot_../x",
            "vm1_snapslot_A",
            "vm1_snapslot_1234567890123456789012345",
            "vm1_snapslot_a\n",
            "vm1_snapslot_tmeta_tmeta",
            "@tag",
        ];
        for own in bad {
            let error = grant().fill(&place(), &[("own", own), ("uuid", UUID)]);
            assert!(error.is_err(), "{own:?} was let through");
        }
        let own = ("own", "vm1_snapslot_new");
        for uuid in [
            "",
            "-",
            "x",
            "fO2Njv",
            &UUID.replace('-', "_"),
            "fO2Njv-fQQz-EhKf-NUQm-x6ZY-Mgle-iQyrb'",
        ] {
            assert!(grant().fill(&place(), &[own, ("uuid", uuid)]).is_err(), "{uuid:?}");
        }
        // What the host fills cannot be given, nothing may be left out, doubled or made up.
        let group = ("group", "other");
        assert!(grant().fill(&place(), &[own, ("uuid", UUID), group]).is_err());
        assert!(grant().fill(&place(), &[own]).is_err());
        assert!(grant().fill(&place(), &[own, own, ("uuid", UUID)]).is_err());
        assert!(grant().fill(&place(), &[own, ("uuid", UUID), ("more", "x")]).is_err());
        let elsewhere = Place::ZfsDataset("tank/vm1".to_owned());
        assert!(grant().fill(&elsewhere, &[own, ("uuid", UUID)]).is_err());
    }

    #[test]
    fn grants_that_ask_for_too_much_are_refused() {
        type Breaks = fn(&mut Grant);
        let broken: [(&str, Breaks); 9] = [
            ("a shell", |g| g.template[0] = "sh".to_owned()),
            ("a path", |g| g.template[0] = "/bin/rm".to_owned()),
            ("no program", |g| g.template.clear()),
            ("an unknown hole", |g| g.template.push("{what}".to_owned())),
            ("an unused hole", |g| g.template[2] = "{group}/x".to_owned()),
            ("an empty word", |g| g.template.push(String::new())),
            ("an endless deadline", |g| g.deadline_seconds = u64::MAX),
            ("a guard of nothing", |g| g.guard.as_mut().expect("one").equals = "x".to_owned()),
            ("a hole as program", |g| g.template[0] = "{own}".to_owned()),
        ];
        for (what, change) in broken {
            let mut grant = grant();
            if what == "an unused hole" {
                grant.guard = None;
                grant.holes.pop();
            }
            change(&mut grant);
            let checked = grant.check(PlaceKind::LvmVolume, Purpose::Change);
            assert!(checked.is_err(), "{what} was let through");
        }
    }

    #[test]
    fn numbers_marks_and_snapshots() {
        let zfs = Place::ZfsDataset("tank/vm1".to_owned());
        for good in ["0", "18446744073709551615"] {
            assert!(Grammar::Number.allows(good, &zfs));
        }
        for bad in ["", "-1", "+1", "01", "1.0", "18446744073709551616", " 1"] {
            assert!(!Grammar::Number.allows(bad, &zfs), "{bad:?}");
        }
        assert!(Grammar::Mark.allows("0123456789abcdef", &zfs));
        assert!(!Grammar::Mark.allows("0123456789ABCDEF", &zfs));
        assert!(Grammar::ZfsOwn.allows("snapslot-0123456789abcdef", &zfs));
        for bad in ["daily", "snapslot-", "snapslot-a@b", "snapslot-a,b", "snapslot-a%b"] {
            assert!(!Grammar::ZfsOwn.allows(bad, &zfs), "{bad:?}");
        }
        let directory = Place::Directory("/srv/vms/vm1".into());
        assert!(Grammar::PathOwn.allows("/srv/vms/.vm1.snapslot-0123", &directory));
        for bad in [
            "/srv/vms/vm1",
            "/srv/vms/.vm2.snapslot-1",
            "/etc/.vm1.snapslot-1",
            "/srv/vms/.vm1.snapslot-../x",
        ] {
            assert!(!Grammar::PathOwn.allows(bad, &directory), "{bad:?}");
        }
    }
}
