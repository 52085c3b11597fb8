//! The look: one `zfs list`, read into what it says of the dataset.
//!
//! Lines of other datasets (children come along) are passed over; a line of this dataset that
//! cannot be read fails the look, as a plan on half a picture could harm.

use snapslot_plugin_sdk::{Failure, FailureKind, Target, is_mark};

use crate::explain;
use crate::grants::{COLUMNS, LOOK, POOL};

/// What kind of dataset it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A block device.
    Volume,
    /// A file system.
    FileSystem,
}

/// A dataset with its snapshots and bookmarks, oldest first.
#[derive(Debug)]
pub(crate) struct Dataset {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) guid: u64,
    /// What the guest sees of a volume; 0 for a file system.
    pub(crate) size: u64,
    pub(crate) referenced: u64,
    /// Bytes born since the newest snapshot, which nothing else refers to.
    pub(crate) written: u64,
    /// Bytes the dataset may still grow by, what is reserved for it included.
    pub(crate) available: u64,
    /// 0 for none.
    pub(crate) refquota: u64,
    /// 0 for none.
    pub(crate) refreservation: u64,
    /// The part of the reservation that is not used up.
    pub(crate) reserved_unused: u64,
    pub(crate) mounted: bool,
    pub(crate) encrypted: bool,
    pub(crate) key_loaded: bool,
    /// Whether a receive into it was begun and not ended.
    pub(crate) receiving: bool,
    pub(crate) snapshots: Vec<Snapshot>,
    pub(crate) bookmarks: Vec<Bookmark>,
}

/// A snapshot.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// The part after `@`.
    pub(crate) name: String,
    pub(crate) guid: u64,
    pub(crate) createtxg: u64,
    /// Bytes that only it holds.
    pub(crate) used: u64,
    pub(crate) referenced: u64,
    pub(crate) size: u64,
    pub(crate) holds: u64,
    /// Whether it is destroyed as soon as its holds and clones are gone.
    pub(crate) doomed: bool,
    pub(crate) clones: Vec<String>,
    /// Its mark, if it is ours.
    pub(crate) mark: Option<String>,
    /// Whether it has name and mark of a slot's and was taken of another dataset: it came by
    /// `zfs receive`, or when a clone was promoted.
    pub(crate) stray: bool,
    pub(crate) taken_seconds: u64,
    pub(crate) taken_nanoseconds: u32,
}

/// A bookmark.
#[derive(Debug)]
pub(crate) struct Bookmark {
    /// The part after `#`.
    pub(crate) name: String,
    pub(crate) createtxg: u64,
}

/// The part after `@` of the snapshot with this mark.
pub(crate) fn own_name(mark: &str) -> String {
    format!("snapslot-{mark}")
}

/// Whether a snapshot's name is one that only ours should have.
pub(crate) fn is_own_name(name: &str) -> bool {
    name.strip_prefix("snapslot-").is_some_and(is_mark)
}

impl Dataset {
    /// Looks.
    pub(crate) fn look(target: &dyn Target) -> Result<Dataset, Failure> {
        let place = target.place();
        if let Some(what) = place.chars().find_map(|c| match c {
            '@' => Some("a snapshot"),
            '#' => Some("a bookmark"),
            _ => None,
        }) {
            let message = format!(
                "{place} is {what}; a slot belongs to the ZFS volume or file system itself, \
                 the part before the `@` or `#`"
            );
            return Err(Failure::new(FailureKind::Unsupported, "not-a-dataset", message));
        }
        let answer = target.ask(LOOK, &[])?;
        if answer.exit_code != 0 {
            let failure = explain::explain(LOOK, &answer);
            // ZFS has the same words for both.
            if failure.kind == FailureKind::NotFound && target.ask(POOL, &[])?.exit_code != 0 {
                return Err(no_pool(&place));
            }
            return Err(failure);
        }
        let Ok(text) = std::str::from_utf8(&answer.output) else {
            return Err(unknown(&place, "it is not text"));
        };
        Dataset::read(&place, text)
    }

    /// Reads a listing.
    fn read(place: &str, text: &str) -> Result<Dataset, Failure> {
        let mut found = None;
        let (mut snapshots, mut bookmarks) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let name = line.split('\t').next().unwrap_or_default();
            let Some(rest) = name.strip_prefix(place) else { continue };
            let part = match rest.chars().next() {
                None => None,
                Some('@' | '#') => Some(&rest[1..]),
                // A child, or a neighbour whose name begins alike.
                Some(_) => continue,
            };
            let row = Row::new(place, line)?;
            match (row.text("type"), part) {
                ("filesystem", None) if found.is_none() => {
                    found = Some(dataset(&row, Kind::FileSystem)?);
                }
                ("volume", None) if found.is_none() => found = Some(dataset(&row, Kind::Volume)?),
                ("snapshot", Some(part)) => {
                    snapshots.push((snapshot(&row, part)?, row.text("snapslot:of").to_owned()));
                }
                ("bookmark", Some(part)) => bookmarks
                    .push(Bookmark { name: part.to_owned(), createtxg: row.number("createtxg")? }),
                (kind, _) => return Err(unknown(place, &format!("{name} is a {kind:?} in it"))),
            }
        }
        let Some(mut dataset) = found else {
            return Err(unknown(place, "it does not tell of it"));
        };
        for (snapshot, of) in &mut snapshots {
            // Name and mark go along where a snapshot is sent, or moves to a clone: the slot does not.
            if snapshot.mark.is_some() && *of != dataset.guid.to_string() {
                (snapshot.mark, snapshot.stray) = (None, true);
            }
            // An incomplete one, of a receive, shows no size: the volume's is the best there is.
            snapshot.size = match dataset.kind {
                Kind::Volume if snapshot.size == 0 => dataset.size,
                Kind::Volume => snapshot.size,
                Kind::FileSystem => 0,
            };
        }
        let mut snapshots: Vec<Snapshot> = snapshots.into_iter().map(|(s, _)| s).collect();
        // No two snapshots of a dataset share a transaction group, so this is their order.
        snapshots.sort_by_key(|s| s.createtxg);
        bookmarks.sort_by_key(|b| b.createtxg);
        dataset.snapshots = snapshots;
        dataset.bookmarks = bookmarks;
        Ok(dataset)
    }

    /// The snapshot with this identity.
    pub(crate) fn snapshot(&self, identity: &str) -> Option<&Snapshot> {
        let guid = identity.parse::<u64>().ok()?;
        self.snapshots.iter().find(|s| s.guid == guid)
    }

    /// What its tools call the snapshot.
    pub(crate) fn full_name(&self, snapshot: &Snapshot) -> String {
        format!("{}@{}", self.name, snapshot.name)
    }

    /// Volume or file system, in words.
    pub(crate) fn kind_in_words(&self) -> &'static str {
        match self.kind {
            Kind::Volume => "volume",
            Kind::FileSystem => "file system",
        }
    }
}

fn dataset(row: &Row<'_>, kind: Kind) -> Result<Dataset, Failure> {
    let size = match kind {
        Kind::Volume => row.number("volsize")?,
        Kind::FileSystem => 0,
    };
    Ok(Dataset {
        name: row.place.to_owned(),
        kind,
        guid: row.number("guid")?,
        size,
        referenced: row.number("referenced")?,
        written: row.number("written")?,
        available: row.number("available")?,
        refquota: row.number_or_none("refquota")?,
        refreservation: row.number_or_none("refreservation")?,
        reserved_unused: row.number_or_none("usedbyrefreservation")?,
        mounted: row.text("mounted") == "yes",
        encrypted: !matches!(row.text("encryption"), "off" | "-"),
        key_loaded: row.text("keystatus") != "unavailable",
        receiving: !matches!(row.text("receive_resume_token"), "-" | ""),
        snapshots: Vec::new(),
        bookmarks: Vec::new(),
    })
}

fn snapshot(row: &Row<'_>, name: &str) -> Result<Snapshot, Failure> {
    // The property alone proves nothing: a snapshot shows what its dataset or the dataset's
    // parents were given, too. Which dataset it was taken of is compared when that is known.
    let mark = row.text("snapslot:mark");
    let ours = is_mark(mark) && name == own_name(mark);
    let taken = if ours { taken(row.text("snapslot:taken")) } else { None };
    let (taken_seconds, taken_nanoseconds) = match taken {
        Some(taken) => taken,
        None => (row.number("creation")?, 0),
    };
    let clones = row.text("clones").split(',').filter(|c| !matches!(*c, "" | "-"));
    Ok(Snapshot {
        name: name.to_owned(),
        guid: row.number("guid")?,
        createtxg: row.number("createtxg")?,
        used: row.number("used")?,
        referenced: row.number("referenced")?,
        size: row.number_or_none("volsize")?,
        holds: row.number("userrefs")?,
        doomed: row.text("defer_destroy") == "on",
        clones: clones.map(str::to_owned).collect(),
        mark: ours.then(|| mark.to_owned()),
        stray: false,
        taken_seconds,
        taken_nanoseconds,
    })
}

/// Reads `SECONDS.NANOSECONDS`: two whole numbers, not a fraction.
fn taken(text: &str) -> Option<(u64, u32)> {
    let (seconds, nanoseconds) = text.split_once('.')?;
    let nanoseconds = nanoseconds.parse::<u32>().ok().filter(|&n| n < 1_000_000_000)?;
    Some((seconds.parse().ok()?, nanoseconds))
}

/// A line of the listing.
struct Row<'a> {
    place: &'a str,
    fields: Vec<&'a str>,
}

impl<'a> Row<'a> {
    fn new(place: &'a str, line: &'a str) -> Result<Row<'a>, Failure> {
        // A person may have put a tab into a property of a snapshot of theirs, and the last column takes what is
        // over. Elsewhere one column more is no better than one less: a snapshot of ours would not be seen as that.
        let name = line.split('\t').next().unwrap_or_default();
        let theirs = name.split_once('@').is_some_and(|(_, part)| !is_own_name(part));
        let most = if theirs { COLUMNS.len() } else { usize::MAX };
        let fields: Vec<&str> = line.splitn(most, '\t').collect();
        if fields.len() != COLUMNS.len() {
            let (has, wanted) = (fields.len(), COLUMNS.len());
            let message = format!("the line of {name} has {has} columns, not {wanted}");
            return Err(unknown(place, &message));
        }
        Ok(Row { place, fields })
    }

    fn text(&self, column: &str) -> &'a str {
        let index = COLUMNS.iter().position(|c| *c == column);
        index.and_then(|i| self.fields.get(i)).copied().unwrap_or_default()
    }

    fn number(&self, column: &str) -> Result<u64, Failure> {
        self.text(column).parse().map_err(|_| {
            let (name, value) = (self.text("name"), self.text(column));
            unknown(self.place, &format!("{column} of {name} is {value:?}"))
        })
    }

    /// 0 where the dataset has no such property.
    fn number_or_none(&self, column: &str) -> Result<u64, Failure> {
        match self.text(column) {
            "-" | "none" => Ok(0),
            _ => self.number(column),
        }
    }
}

/// The pool is not there, so nobody knows whether the dataset is.
fn no_pool(place: &str) -> Failure {
    let pool = place.split('/').next().unwrap_or(place);
    let message = format!("there is no pool {pool}; is it imported (`zpool import`)?");
    Failure::new(FailureKind::Io, "no-pool", message)
}

/// The listing is not what this backend knows.
fn unknown(place: &str, why: &str) -> Failure {
    let shown: String = why.chars().filter(|c| !c.is_control()).take(256).collect();
    let message = format!(
        "what `zfs list` says of {place} cannot be understood: {shown}; \
         is this a version of ZFS after 2.x?"
    );
    Failure::new(FailureKind::Unsupported, "unknown-answer", message)
}
