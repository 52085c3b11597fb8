//! From what a plugin declares to what it gets.

use snapslot_command as command;

use crate::bindings::types::{CommandGrant, Description, Grammar, Hole, PlaceKind, Role};
use crate::flaw::Flaw;
use crate::outside::Grants;

/// The grants of a description, each one checked; or all that is wrong with them.
pub(crate) fn effective(description: &Description) -> Result<Grants, Vec<Flaw>> {
    let mut flaws = Vec::new();
    let mut checked = |list: &[CommandGrant], looks: bool| -> Vec<command::Grant> {
        let mut grants: Vec<command::Grant> = Vec::new();
        for declared in list {
            let grant = grant(declared);
            let mut broken = |why: &str| {
                flaws.push(Flaw::Grant { grant: grant.name.clone(), why: why.to_owned() });
            };
            if let Err(error) = grant.check() {
                flaws.push(Flaw::Grant { grant: error.grant, why: error.why });
            } else if grants.iter().any(|g| g.name == grant.name) {
                broken("is declared twice");
            } else if (looks && !only_looks(&grant.template))
                || grant.guard.as_ref().is_some_and(|g| !only_looks(&g.template))
            {
                broken("is declared as a look, and is none this host knows");
            }
            grants.push(grant);
        }
        grants
    };
    let queries = checked(&description.queries, true);
    let actions = checked(&description.actions, false);
    if !flaws.is_empty() {
        return Err(flaws);
    }
    let disk = |i: &&crate::bindings::types::ImageGrant| i.role == Role::Disk;
    Ok(Grants {
        queries,
        actions,
        disk: description.images.iter().any(|i| disk(&i)),
        changes: description.images.iter().filter(disk).any(|i| i.changes),
        copies: description.copies.is_some(),
    })
}

/// Whether a template can change nothing, whatever its holes hold: reports of LVM's, and those
/// of the others' commands that list.
fn only_looks(template: &[String]) -> bool {
    let words: Vec<&str> = template.iter().map(String::as_str).collect();
    if matches!(words.first(), Some(&"lvs" | &"vgs")) && !only_shapes_reports(&words) {
        return false;
    }
    matches!(
        words.as_slice(),
        ["lvs" | "vgs", ..]
            | ["zfs", "list" | "get" | "holds", ..]
            | ["btrfs", "subvolume", "list" | "show" | "get-default", ..]
            | ["btrfs", "filesystem", "usage" | "show" | "df", ..]
    )
}

/// Whether all that a report of LVM's is configured with is the report's shape. Any other setting
/// could have it write: `log/file` names a file that root makes. LVM takes options cut short too.
fn only_shapes_reports(words: &[&str]) -> bool {
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        let sound = match *word {
            "--config" => rest.next().is_some_and(|setting| shapes_a_report(setting)),
            _ => !["--con", "--prof", "--comm"].iter().any(|option| word.starts_with(option)),
        };
        if !sound {
            return false;
        }
    }
    true
}

/// `report/name="text"`, once or more, with a space between: nothing that could end the section.
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

fn grant(declared: &CommandGrant) -> command::Grant {
    command::Grant {
        name: declared.name.clone(),
        template: declared.template.clone(),
        holes: declared.holes.iter().map(hole).collect(),
        input: declared.input.clone(),
        guard: declared
            .guard
            .as_ref()
            .map(|g| command::Guard { template: g.template.clone(), equals: g.equals.clone() }),
        deadline_seconds: u64::from(declared.deadline_seconds),
    }
}

fn hole(declared: &Hole) -> command::Hole {
    command::Hole { name: declared.name.clone(), grammar: declared.grammar.into() }
}

impl Grammar {
    /// For people: what stands there.
    pub fn in_words(self) -> &'static str {
        command::Grammar::from(self).in_words()
    }
}

impl PlaceKind {
    /// Its word in the contract.
    pub fn word(self) -> &'static str {
        match self {
            PlaceKind::Image => "image",
            PlaceKind::LvmVolume => "lvm-volume",
            PlaceKind::ZfsDataset => "zfs-dataset",
            PlaceKind::Directory => "directory",
        }
    }
}

impl From<Grammar> for command::Grammar {
    fn from(declared: Grammar) -> Self {
        use command::Grammar as G;
        match declared {
            Grammar::LvmGroup => G::LvmGroup,
            Grammar::LvmVolume => G::LvmVolume,
            Grammar::ZfsPool => G::ZfsPool,
            Grammar::ZfsDataset => G::ZfsDataset,
            Grammar::Path => G::Path,
            Grammar::LvmOwn => G::LvmOwn,
            Grammar::ZfsOwn => G::ZfsOwn,
            Grammar::PathOwn => G::PathOwn,
            Grammar::Mark => G::Mark,
            Grammar::Number => G::Number,
            Grammar::Uuid => G::Uuid,
            Grammar::LvmTag => G::LvmTag,
        }
    }
}

impl From<PlaceKind> for command::PlaceKind {
    fn from(kind: PlaceKind) -> Self {
        match kind {
            PlaceKind::Image => command::PlaceKind::Image,
            PlaceKind::LvmVolume => command::PlaceKind::LvmVolume,
            PlaceKind::ZfsDataset => command::PlaceKind::ZfsDataset,
            PlaceKind::Directory => command::PlaceKind::Directory,
        }
    }
}

impl From<command::PlaceKind> for PlaceKind {
    fn from(kind: command::PlaceKind) -> Self {
        match kind {
            command::PlaceKind::Image => PlaceKind::Image,
            command::PlaceKind::LvmVolume => PlaceKind::LvmVolume,
            command::PlaceKind::ZfsDataset => PlaceKind::ZfsDataset,
            command::PlaceKind::Directory => PlaceKind::Directory,
        }
    }
}

#[cfg(test)]
mod tests {
    //! Goal: what is declared as a look can change nothing.

    use super::*;

    #[test]
    fn looks_are_only_looks() {
        let looks =
            |line: &str| only_looks(&line.split('~').map(str::to_owned).collect::<Vec<_>>());
        for good in [
            "lvs~--reportformat~json~--config~report/time_format=\"%s\" report/list_item_separator=\",\"~{group}",
            "vgs~-o~vg_free~{group}",
            "zfs~get~-Hp~all~{dataset}",
            "zfs~list~-Hp~{dataset}",
            "btrfs~subvolume~show~{path}",
        ] {
            assert!(looks(good), "{good}");
        }
        // Story: `lvs` with a setting of its own wrote a log to any file, as root, while a status
        // was looked at.
        for bad in [
            "lvs~--config~log{file=\"/etc/cron.d/x\"}",
            "lvs~--config~log/file=\"/etc/cron.d/x\"",
            "lvs~--config=log/file=\"/etc/cron.d/x\"",
            "lvs~--conf~log{file=\"/x\"}",
            "lvs~--config~report/x=\"1\" log/file=\"/x\"",
            "lvs~--config~report/x=\"1\"log/file=\"/x\"",
            "lvs~--config~report/x=\"1\\\" log/file=\"/x\"",
            "lvs~--config~report/x=\"1",
            "lvs~--config~report{x=1}log{file=\"/x\"}",
            "vgs~--config",
            "vgs~--commandprofile~x",
            "vgs~--profile~x",
            "lvremove~vg/x",
            "zfs~set~x=y~{dataset}",
            "btrfs~subvolume~delete~{path}",
            "",
        ] {
            assert!(!looks(bad), "{bad}");
        }
    }
}
