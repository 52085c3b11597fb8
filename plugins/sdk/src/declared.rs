//! What a description declares, held against what is asked and planned: for the double, which says no
//! where the host would.

use crate::{Argument, CommandGrant, Failure, FailureKind, Grammar, is_mark};

/// The longest value of a hole, in bytes.
const VALUE_MAX: usize = 255;

/// Whether these arguments fill the holes of the grant with this name, of a volume at `place`.
///
/// As the host: `not-granted` for what is not declared, `invalid` (code `argument`, data `grant` and
/// `hole`) for a hole that is missing, given twice, unknown, the host's own to fill, or has a value that its
/// grammar does not let through.
pub(crate) fn check(
    grants: &[CommandGrant],
    kind: &str,
    name: &str,
    arguments: &[Argument],
    place: &str,
) -> Result<(), Failure> {
    let Some(grant) = grants.iter().find(|g| g.name == name) else {
        let what = format!("the plugin has no grant for the {kind} {name}");
        return Err(Failure::new(FailureKind::NotGranted, "not-granted", what)
            .with("grant", format!("{kind} {name}")));
    };
    let wrong = |hole: &str, why: String| {
        let what = format!("{hole:?} of {name:?} {why}");
        let failure = Failure::new(FailureKind::Invalid, "argument", what);
        Err(failure.with("grant", name).with("hole", hole))
    };
    for (i, argument) in arguments.iter().enumerate() {
        let known = grant.holes.iter().any(|h| h.name == argument.hole);
        if !known || arguments[..i].iter().any(|a| a.hole == argument.hole) {
            return wrong(&argument.hole, "is no hole of it, or filled twice".to_owned());
        }
    }
    for hole in &grant.holes {
        let value = arguments.iter().find(|a| a.hole == hole.name).map(|a| a.value.as_str());
        match (of_place(hole.grammar), value) {
            (true, None) => {}
            (true, Some(_)) => return wrong(&hole.name, "is filled by the host alone".to_owned()),
            (false, None) => return wrong(&hole.name, "is not filled".to_owned()),
            (false, Some(value))
                if value.len() > VALUE_MAX || !fits(hole.grammar, value, place) =>
            {
                return wrong(&hole.name, format!("cannot be {value:?}: {:?}", hole.grammar));
            }
            (false, Some(_)) => {}
        }
    }
    Ok(())
}

/// Whether the host fills such a hole, from the volume's own place.
fn of_place(grammar: Grammar) -> bool {
    matches!(
        grammar,
        Grammar::LvmGroup
            | Grammar::LvmVolume
            | Grammar::ZfsPool
            | Grammar::ZfsDataset
            | Grammar::Path
    )
}

fn fits(grammar: Grammar, value: &str, place: &str) -> bool {
    let made = |rest: Option<&str>, most: usize, hyphen: bool| {
        rest.is_some_and(|rest| {
            (1..=most).contains(&rest.len())
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || (hyphen && b == b'-'))
        })
    };
    let (above, name) = place.rsplit_once('/').unwrap_or(("", place));
    match grammar {
        Grammar::LvmOwn => {
            let rest = value.strip_prefix(name).and_then(|r| r.strip_prefix("_snapslot_"));
            made(rest, 24, false)
        }
        Grammar::ZfsOwn => made(value.strip_prefix("snapslot-"), 40, true),
        Grammar::PathOwn => {
            let rest = value.strip_prefix(above).and_then(|r| r.strip_prefix("/."));
            let rest = rest.and_then(|r| r.strip_prefix(name));
            made(rest.and_then(|r| r.strip_prefix(".snapslot-")), 40, true)
        }
        Grammar::Mark => is_mark(value),
        Grammar::Number => value.parse::<u64>().is_ok_and(|n| n.to_string() == value),
        Grammar::Uuid => {
            let groups: Vec<usize> = value.split('-').map(str::len).collect();
            let of = |allowed: fn(&u8) -> bool| value.bytes().all(|b| b == b'-' || allowed(&b));
            (groups == [6, 4, 4, 4, 4, 4, 6] && of(u8::is_ascii_alphanumeric))
                || (groups == [8, 4, 4, 4, 12] && of(u8::is_ascii_hexdigit))
        }
        Grammar::LvmTag => {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&b);
            (1..=128).contains(&value.len())
                && !value.starts_with('-')
                && value.bytes().all(allowed)
        }
        _ => false,
    }
}
