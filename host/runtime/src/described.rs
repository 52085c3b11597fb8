//! What a plugin says of itself: whether a person can be asked to approve it.

use crate::bindings::types::{CommandGrant, Description, ImageGrant, PlaceKind, Role};
use crate::flaw::Flaw;
use crate::shown::unfit;

impl Description {
    /// Of a plugin that was not asked yet.
    pub(crate) fn unknown() -> Description {
        Description {
            name: "new plugin".to_owned(),
            version: String::new(),
            summary: String::new(),
            endings: Vec::new(),
            place: PlaceKind::Image,
            images: Vec::new(),
            copies: None,
            queries: Vec::new(),
            actions: Vec::new(),
        }
    }
}

/// What in a description breaks the contract's limits.
pub(crate) fn broken_limits(d: &Description) -> Vec<Flaw> {
    let mut flaws = Vec::new();
    let mut need = |holds: bool, why: &str| {
        if !holds {
            flaws.push(Flaw::Description { why: why.to_owned() });
        }
    };
    let name_ok = (1..=32).contains(&d.name.len())
        && d.name.starts_with(|c: char| c.is_ascii_lowercase())
        && d.name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    need(name_ok, "its name is not 1 to 32 of a-z, 0-9 and -, beginning with a letter");
    let shown_ok = |t: &String| !t.chars().any(unfit);
    let text_ok = |t: &String| t.len() <= 4096 && shown_ok(t);
    need(
        text_ok(&d.version) && text_ok(&d.summary),
        "its version or summary is too long or has control or invisible characters",
    );
    let reasons = (d.images.iter().map(|i| &i.reason))
        .chain(d.queries.iter().chain(&d.actions).map(|c| &c.reason))
        .chain(&d.copies);
    let said = |t: &String| text_ok(t) && !t.trim().is_empty();
    need(
        reasons.into_iter().all(said),
        "a reason is missing, too long or has control or invisible characters",
    );
    // A command is read by who approves it: it must be what it looks like.
    let mut commands = d.queries.iter().chain(&d.actions);
    let plain = |c: &CommandGrant| {
        let guard = c.guard.iter().flat_map(|g| &g.template);
        let input = c.input.iter().flat_map(|i| i.chars()).filter(|c| !matches!(c, '\n' | '\t'));
        c.template.iter().chain(guard).all(shown_ok) && !input.into_iter().any(unfit)
    };
    need(commands.all(plain), "a command or its input has control or invisible characters");
    let ending_ok = |e: &String| {
        (2..=32).contains(&e.len())
            && e.starts_with('.')
            && e[1..]
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-' || b == b'_')
    };
    need(d.endings.iter().all(ending_ok), "an ending is not a dot and up to 31 letters and digits");
    need(d.endings.len() <= 8, "it has more than 8 endings");
    need(d.images.len() <= 3, "it asks for more images than there are roles");
    let of_pool = |i: &ImageGrant| i.role == Role::PoolMetadata;
    let fits = |i: &ImageGrant| !of_pool(i) || (d.place == PlaceKind::LvmVolume && !i.changes);
    need(
        d.images.iter().all(fits),
        "the metadata of a pool is read, never changed, and only for logical volumes",
    );
    need(d.queries.len() <= 64 && d.actions.len() <= 64, "it has more than 64 queries or actions");
    flaws
}

#[cfg(test)]
mod tests {
    //! Goal: what a person is shown of a plugin is what is there.

    use super::*;

    #[test]
    fn what_deceives_a_reader_is_refused() {
        let flaws = |summary: &str, word: &str, input: Option<&str>| {
            let action = CommandGrant {
                name: "drop".to_owned(),
                template: vec!["zfs".to_owned(), word.to_owned()],
                holes: Vec::new(),
                input: input.map(str::to_owned),
                guard: None,
                deadline_seconds: 1,
                reason: "why not".to_owned(),
            };
            broken_limits(&Description {
                name: "x".to_owned(),
                summary: summary.to_owned(),
                actions: vec![action],
                ..Description::unknown()
            })
        };
        assert_eq!(flaws("für alle", "destroy", Some("if x then\n\ty()\nend")), Vec::new());
        for bad in ["\u{202e}yortsed", "a\u{200b}b", "\u{1b}[2K", "a\u{2028}b", "x\u{e0041}"] {
            assert_eq!(flaws(bad, "list", None).len(), 1, "{bad:?} as summary");
            assert_eq!(flaws("s", bad, None).len(), 1, "{bad:?} as a word");
            assert_eq!(flaws("s", "list", Some(bad)).len(), 1, "{bad:?} as input");
        }
    }
}
