//! Whether a template is one of the table's commands.
//!
//! It is read as the tool would read it: which words are options, which are their values, which are
//! what the command is about. Only then can be said what a hole would name.

use crate::grammar::Grammar;
use crate::place::PlaceKind;
use crate::runner::PROGRAMS;
use crate::table::{Count, PROGRAMS_INSIDE, Purpose, Shape, TABLE, Thing, Value};

/// A piece of a word: what is fixed, or a hole by its name and what may stand in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    Text(&'a str),
    Hole(&'a str, Grammar),
}

/// A word of a template. No piece of text is empty.
pub(crate) type Word<'a> = Vec<Piece<'a>>;

/// Whether volumes of this kind may have this command for this purpose; if not, why: to go on behind
/// "the grant x …".
pub(crate) fn fits(
    kind: PlaceKind,
    words: &[Word<'_>],
    input: Option<&str>,
    purpose: Purpose,
) -> Result<(), String> {
    let shape = shape(kind, words)?;
    if purpose == Purpose::Look && shape.purpose != Purpose::Look {
        return Err(format!(
            "is to look with `{}`, which this host does not take for a look",
            shape.words.join(" ")
        ));
    }
    let named = shape.words.join(" ");
    let mut operands = Vec::new();
    let mut given = Vec::new();
    let mut rest = words[shape.words.len()..].iter();
    while let Some(word) = rest.next() {
        let text = plain(word);
        let stdin = text == Some("-");
        // What begins with a hole begins with no hyphen: no grammar lets one through.
        if stdin || !begins_like_an_option(word) {
            operands.push(word);
            continue;
        }
        let listed = text.filter(|t| shape.flags.contains(t));
        if let Some(flag) = listed {
            given.push(flag);
            continue;
        }
        let value = text.and_then(|t| shape.options.iter().find(|(name, _)| *name == t));
        let Some((name, value)) = value else {
            return Err(format!("has {}, no option that `{named}` may have", quoted(word)));
        };
        given.push(name);
        match rest.next() {
            Some(word) if value.allows(word) => {}
            Some(word) => {
                return Err(format!("has {} as value of {name} of `{named}`", quoted(word)));
            }
            None => return Err(format!("has {name} of `{named}` without a value")),
        }
    }
    if let Some(lacks) = shape.needs.iter().find(|n| !given.contains(*n)) {
        return Err(format!("has `{named}` without {lacks}"));
    }
    about(shape, &operands).map_err(|why| format!("has `{named}` {why}"))?;
    let programmed = shape.operands.iter().any(|o| o.any_of.contains(&Thing::KnownProgram));
    match input {
        None if !programmed => Ok(()),
        None => Err(format!("has `{named}` without a program")),
        Some(text) if programmed && PROGRAMS_INSIDE.contains(&text) => Ok(()),
        Some(_) if programmed => {
            Err(format!("has `{named}` with a program that this host does not know"))
        }
        Some(_) => Err(format!("has an input, which `{named}` does not read")),
    }
}

/// The command of the table that these words begin.
fn shape(kind: PlaceKind, words: &[Word<'_>]) -> Result<&'static Shape, String> {
    let begins = |shape: &&Shape| {
        shape.words.len() <= words.len()
            && shape.words.iter().zip(words).all(|(is, word)| plain(word) == Some(is))
    };
    if let Some(shape) = TABLE.iter().filter(|s| s.kind == kind).find(begins) {
        return Ok(shape);
    }
    let Some(first) = words.first() else { return Err("names no program".to_owned()) };
    let Some(program) = plain(first).filter(|p| PROGRAMS.contains(p)) else {
        return Err(format!(
            "wants the program {}, which this host does not run for plugins",
            quoted(first)
        ));
    };
    if kind == PlaceKind::Image {
        return Err(format!("wants `{program}`, and no plugin of images is given commands"));
    }
    if !TABLE.iter().any(|s| s.kind == kind && s.words[0] == program) {
        return Err(format!("wants `{program}`, which volumes of its kind have no use for"));
    }
    let what: Vec<String> = words.iter().take(3).map(|w| shown(w)).collect();
    Err(format!("wants `{}`, which this host does not run for plugins", what.join(" ")))
}

/// Whether what stands behind the options is what the command may be about.
fn about(shape: &Shape, words: &[&Word<'_>]) -> Result<(), String> {
    let mut left = words;
    for operand in shape.operands {
        let fits = |word: &&Word<'_>| operand.any_of.iter().any(|thing| thing.is(word));
        let most = if operand.count == Count::One { 1 } else { left.len() };
        let taken = left.iter().take(most).take_while(|w| fits(w)).count();
        if taken == 0 && operand.count != Count::Any {
            return Err(match left.first() {
                // To LVM nothing is everything, and to ZFS as well.
                None => "about nothing".to_owned(),
                Some(word) => format!("about {}, which is not the volume's or ours", quoted(word)),
            });
        }
        left = &left[taken..];
    }
    match left.first() {
        None => Ok(()),
        Some(word) => Err(format!("about {} too, which is not the volume's or ours", quoted(word))),
    }
}

impl Thing {
    fn is(self, word: &[Piece<'_>]) -> bool {
        use Grammar as G;
        use Piece::{Hole, Text};
        match (self, word) {
            (Thing::Group, [Hole(_, G::LvmGroup)])
            | (Thing::Volume, [Hole(_, G::LvmGroup), Text("/"), Hole(_, G::LvmVolume)])
            | (Thing::Own, [Hole(_, G::LvmGroup), Text("/"), Hole(_, G::LvmOwn)])
            | (Thing::VolumeName, [Hole(_, G::LvmVolume)])
            | (Thing::OwnName, [Hole(_, G::LvmOwn)])
            | (Thing::Pool, [Hole(_, G::ZfsPool)])
            | (Thing::Dataset, [Hole(_, G::ZfsDataset)])
            | (Thing::OwnSnapshot, [Hole(_, G::ZfsDataset), Text("@"), Hole(_, G::ZfsOwn)])
            | (Thing::OwnPart, [Hole(_, G::ZfsOwn)])
            | (Thing::Figure, [Hole(_, G::Number | G::Mark)])
            | (Thing::KnownProgram, [Text("-")])
            | (Thing::Path, [Hole(_, G::Path)])
            | (Thing::OwnPath, [Hole(_, G::PathOwn)]) => true,
            (Thing::Properties, word) => Value::Properties.allows(word),
            _ => false,
        }
    }
}

impl Value {
    fn allows(self, word: &[Piece<'_>]) -> bool {
        use Grammar as G;
        use Piece::{Hole, Text};
        // Whatever it is: not something that could be taken for another option.
        if word.is_empty() || begins_like_an_option(word) {
            return false;
        }
        match (self, word) {
            (Value::Fixed, [Text(_)]) => true,
            (Value::OneOf(words), [Text(text)]) => words.contains(text),
            (Value::OwnName, [Hole(_, G::LvmOwn)]) => true,
            (Value::Tag, pieces) => pieces.iter().all(|piece| match piece {
                Text(text) => Grammar::is_of_tags(text),
                Hole(_, grammar) => matches!(grammar, G::Mark | G::Number | G::LvmTag),
            }),
            (Value::Identity | Value::Selection, [Text("lv_uuid="), Hole(_, G::Uuid)]) => true,
            (Value::Selection, [Text(_)]) => true,
            (Value::ReportShape, [Text(setting)]) => shapes_a_report(setting),
            (Value::Size, [Text(_)] | [Hole(_, G::Number)] | [Hole(_, G::Number), Text(_)]) => true,
            (Value::Property, [Text(name), rest @ ..]) => {
                // Only what a user may set by itself has a colon in its name.
                let named = name.split_once('=').is_some_and(|(name, _)| name.contains(':'));
                named
                    && rest.iter().all(|piece| match piece {
                        Text(_) => true,
                        Hole(_, grammar) => matches!(grammar, G::Mark | G::Number),
                    })
            }
            (Value::Properties, pieces) => {
                let mut before = "";
                pieces.iter().all(|piece| match piece {
                    Text(text) => {
                        before = text;
                        text.bytes().all(|b| b.is_ascii_alphanumeric() || b",:._@-".contains(&b))
                    }
                    Hole(_, grammar) => *grammar == G::ZfsOwn && before.ends_with("written@"),
                })
            }
            _ => false,
        }
    }
}

fn begins_like_an_option(word: &[Piece<'_>]) -> bool {
    matches!(word.first(), Some(Piece::Text(text)) if text.starts_with('-'))
}

/// `report/name="text"`, once or more, with a space between: nothing that could end the section. Any
/// other setting could have a look write: `log/file` names a file that root makes.
fn shapes_a_report(setting: &str) -> bool {
    let mut left = setting;
    loop {
        let Some((name, rest)) = left.strip_prefix("report/").and_then(|s| s.split_once("=\""))
        else {
            return false;
        };
        let Some((text, rest)) = rest.split_once('"') else { return false };
        let named = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if !named || text.contains(['\\', '{', '}']) {
            return false;
        }
        if rest.is_empty() {
            return true;
        }
        let Some(rest) = rest.strip_prefix(' ') else { return false };
        left = rest;
    }
}

/// A word without holes.
fn plain<'a>(word: &Word<'a>) -> Option<&'a str> {
    match word.as_slice() {
        [Piece::Text(text)] => Some(text),
        _ => None,
    }
}

/// As the plugin wrote it.
fn shown(word: &[Piece<'_>]) -> String {
    let whole: String = (word.iter())
        .map(|piece| match piece {
            Piece::Text(text) => (*text).to_owned(),
            Piece::Hole(name, _) => format!("{{{name}}}"),
        })
        .collect();
    whole.chars().filter(|c| !c.is_control()).take(64).collect()
}

fn quoted(word: &[Piece<'_>]) -> String {
    format!("{:?}", shown(word))
}
