//! From what a plugin declares to what it gets.

use snapslot_command as command;

use crate::bindings::types::{CommandGrant, Description, Grammar, Hole, PlaceKind, Role};
use crate::flaw::Flaw;
use crate::outside::Grants;

/// The grants of a description, each one checked; or all that is wrong with them.
pub(crate) fn effective(description: &Description) -> Result<Grants, Vec<Flaw>> {
    let mut flaws = Vec::new();
    let kind = description.place.into();
    let mut checked = |list: &[CommandGrant], purpose| -> Vec<command::Grant> {
        let mut grants: Vec<command::Grant> = Vec::new();
        for declared in list {
            let grant = grant(declared);
            if let Err(error) = grant.check(kind, purpose) {
                flaws.push(Flaw::Grant { grant: error.grant, why: error.why });
            } else if grants.iter().any(|g| g.name == grant.name) {
                let why = "is declared twice".to_owned();
                flaws.push(Flaw::Grant { grant: grant.name.clone(), why });
            }
            grants.push(grant);
        }
        grants
    };
    let queries = checked(&description.queries, command::Purpose::Look);
    let actions = checked(&description.actions, command::Purpose::Change);
    if !flaws.is_empty() {
        return Err(flaws);
    }
    let disk = |i: &&crate::bindings::types::ImageGrant| i.role == Role::Disk;
    Ok(Grants {
        queries,
        actions,
        disk: description.images.iter().any(|i| disk(&i)),
        pool_metadata: description.images.iter().any(|i| i.role == Role::PoolMetadata),
        changes: description.images.iter().filter(disk).any(|i| i.changes),
        copies: description.copies.is_some(),
    })
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

impl Role {
    /// Its word in the contract.
    pub fn word(self) -> &'static str {
        match self {
            Role::Disk => "disk",
            Role::Backing => "backing",
            Role::PoolMetadata => "pool-metadata",
        }
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
