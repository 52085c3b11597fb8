//! Commands that show: `zfs list`, `zfs get`, `zfs holds`.

use super::names::{self, Named};
use super::pool::{Kind, Snapshot, is_below};
use super::{Reply, World};

/// Properties ZFS has; of those the model does not keep it says so by panic, of any other word
/// that it is no property.
pub(super) const NATIVE: &str = "available clones compressratio createtxg creation defer_destroy \
    encryptionroot filesystem_count guid keystatus logicalreferenced logicalused mounted objsetid \
    origin receive_resume_token redact_snaps refcompressratio referenced snapshot_count type used \
    usedbychildren usedbydataset usedbyrefreservation usedbysnapshots userrefs written aclinherit \
    aclmode acltype atime canmount casesensitivity checksum compression context copies dedup \
    defcontext devices dnodesize encryption exec filesystem_limit fscontext keyformat keylocation \
    logbias mlslabel mountpoint nbmand normalization overlay pbkdf2iters primarycache quota \
    readonly recordsize redundant_metadata refquota refreservation relatime reservation \
    rootcontext secondarycache setuid sharenfs sharesmb snapdev snapdir snapshot_limit \
    special_small_blocks sync utf8only version volblocksize volmode volsize vscan xattr zoned \
    name";

/// A row that can be shown, by its full name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Row {
    Dataset(String),
    Snapshot(String, String),
    Bookmark(String, String),
}

impl Row {
    pub(super) fn name(&self) -> String {
        match self {
            Row::Dataset(name) => name.clone(),
            Row::Snapshot(dataset, name) => format!("{dataset}@{name}"),
            Row::Bookmark(dataset, name) => format!("{dataset}#{name}"),
        }
    }
}

/// A property's value, and where it comes from.
pub(super) struct Value {
    pub text: String,
    /// `-` for what cannot be set.
    pub source: String,
}

fn shown(text: impl ToString) -> Option<Value> {
    Some(Value { text: text.to_string(), source: "-".to_owned() })
}

/// Options with their values, `?` for one that is not known or has none; and operands.
type Options<'a> = (Vec<(char, &'a str)>, Vec<&'a str>);

/// The options of a `zfs` command, as getopt takes them: `-Hp`, `-d1`, `-d 1`.
pub(super) fn options<'a>(words: &[&'a str], plain: &str, valued: &str) -> Option<Options<'a>> {
    let (mut found, mut words) = (Vec::new(), words.iter());
    let mut operands = Vec::new();
    while let Some(&word) = words.next() {
        let Some(letters) = word.strip_prefix('-').filter(|l| !l.is_empty()) else {
            operands.push(word);
            operands.extend(words.by_ref());
            break;
        };
        for (at, letter) in letters.char_indices() {
            if plain.contains(letter) {
                found.push((letter, ""));
            } else if valued.contains(letter) {
                let rest = &letters[at + letter.len_utf8()..];
                let next = if rest.is_empty() { words.next().copied() } else { Some(rest) };
                let Some(value) = next else {
                    found.push(('?', word));
                    return Some((found, Vec::new()));
                };
                found.push((letter, value));
                break;
            } else {
                found.push(('?', word));
                return Some((found, Vec::new()));
            }
        }
    }
    // An option after an operand: getopt would find it, people should not rely on that.
    operands.iter().all(|o| !o.starts_with('-')).then_some((found, operands))
}

impl World {
    fn row_exists(&self, name: &str) -> Option<Row> {
        let (dataset, rest) = match name.find(['@', '#']) {
            Some(at) => (&name[..at], Some((&name[at..=at], &name[at + 1..]))),
            None => (name, None),
        };
        let found = self.dataset(dataset)?;
        match rest {
            None => Some(Row::Dataset(dataset.to_owned())),
            Some(("@", s)) => {
                found.snapshot(s).map(|_| Row::Snapshot(dataset.to_owned(), s.to_owned()))
            }
            Some((_, b)) => {
                found.bookmarks.get(b).map(|_| Row::Bookmark(dataset.to_owned(), b.to_owned()))
            }
        }
    }

    /// Where a property of a dataset is set: on itself or above.
    pub(super) fn inherited(&self, name: &str, property: &str) -> Option<(String, String)> {
        let mut at = name;
        loop {
            if let Some(value) = self.dataset(at)?.properties.get(property) {
                return Some((value.clone(), at.to_owned()));
            }
            at = at.rsplit_once('/')?.0;
        }
    }

    fn user_property(&self, row: &Row, property: &str) -> Option<Value> {
        let own = |text: &String| Value { text: text.clone(), source: "local".to_owned() };
        let name = match row {
            Row::Bookmark(..) => return None,
            Row::Dataset(name) => name,
            Row::Snapshot(dataset, name) => {
                let snapshot = self.dataset(dataset)?.snapshot(name)?;
                if let Some(text) = snapshot.properties.get(property) {
                    return Some(own(text));
                }
                dataset
            }
        };
        let (text, from) = self.inherited(name, property)?;
        let is_own = *row == Row::Dataset(from.clone());
        let source = if is_own { "local".to_owned() } else { format!("inherited from {from}") };
        Some(Value { text, source })
    }

    /// A property of a row; outer none: the model does not know it, inner none: it has none.
    #[allow(clippy::option_option)]
    pub(super) fn property(&self, row: &Row, property: &str) -> Option<Option<Value>> {
        if let Some(snapshot) = property.strip_prefix("written@") {
            let Row::Dataset(name) = row else { return None };
            return Some(self.pool(name)?.written_since(name, snapshot).and_then(shown));
        }
        if property.contains(':') {
            return Some(self.user_property(row, property));
        }
        match row {
            Row::Dataset(name) => self.dataset_property(name, property),
            Row::Snapshot(dataset, name) => {
                let snapshot = self.dataset(dataset)?.snapshot(name)?;
                self.snapshot_property(dataset, snapshot, property)
            }
            Row::Bookmark(dataset, name) => {
                let bookmark = self.dataset(dataset)?.bookmarks.get(name)?;
                Some(match property {
                    "name" => shown(row.name()),
                    "type" => shown("bookmark"),
                    "guid" => shown(bookmark.guid),
                    "createtxg" => shown(bookmark.createtxg),
                    "creation" => shown(bookmark.creation),
                    "referenced" => shown(bookmark.referenced),
                    "logicalreferenced" => return None,
                    _ => None,
                })
            }
        }
    }

    #[allow(clippy::option_option)]
    fn dataset_property(&self, name: &str, property: &str) -> Option<Option<Value>> {
        let (pool, dataset) = (self.pool(name)?, self.dataset(name)?);
        let is_volume = matches!(dataset.kind, Kind::Volume { .. });
        // A number that is set here or not at all.
        let limit = |value: u64| {
            let source = if value == 0 { "default" } else { "local" };
            Some(Value { text: value.to_string(), source: source.to_owned() })
        };
        Some(match property {
            "name" => shown(name),
            "type" => shown(dataset.kind.word()),
            "guid" => shown(dataset.guid),
            "createtxg" => shown(dataset.createtxg),
            "creation" => shown(dataset.creation),
            "used" => shown(pool.used(name)),
            "referenced" => shown(dataset.head.referenced()),
            "written" => shown(pool.written(name, None)),
            "available" => shown(pool.available(name)),
            "usedbysnapshots" => shown(pool.used_by_snapshots(name)),
            "usedbydataset" => shown(pool.used_by_dataset(name)),
            "usedbychildren" => shown(pool.used_by_children(name)),
            "usedbyrefreservation" => shown(pool.used_by_refreservation(name)),
            "refreservation" => limit(dataset.refreservation),
            "refquota" if is_volume => None,
            "refquota" => limit(dataset.refquota),
            "volsize" => {
                dataset.size().map(|s| Value { text: s.to_string(), source: "local".to_owned() })
            }
            "volblocksize" if is_volume => shown(dataset.block()),
            "volblocksize" => None,
            "origin" => dataset.origin.and_then(|guid| {
                let (of, snapshot) = pool.by_guid(guid)?;
                shown(format!("{of}@{}", snapshot.name))
            }),
            "mounted" => match dataset.kind {
                Kind::FileSystem { mounted, .. } => shown(if mounted { "yes" } else { "no" }),
                Kind::Volume { .. } => None,
            },
            "mountpoint" if is_volume => None,
            "mountpoint" => {
                let source = match self.inherited(name, "mountpoint") {
                    Some((_, from)) if from == name => "local".to_owned(),
                    Some((_, from)) => format!("inherited from {from}"),
                    None => "default".to_owned(),
                };
                let text = self.mountpoint(name);
                Some(Value { text, source })
            }
            "readonly" | "canmount" if dataset.properties.contains_key(property) => return None,
            "readonly" => Some(Value { text: "off".to_owned(), source: "default".to_owned() }),
            "canmount" if is_volume => None,
            "canmount" => Some(Value { text: "on".to_owned(), source: "default".to_owned() }),
            "encryption" => shown(if dataset.key.is_some() { "aes-256-gcm" } else { "off" }),
            "encryptionroot" => dataset.key.as_ref().and_then(|(root, _)| shown(root)),
            "keystatus" => dataset
                .key
                .as_ref()
                .and_then(|(_, loaded)| shown(if *loaded { "available" } else { "unavailable" })),
            "userrefs" | "defer_destroy" | "clones" | "receive_resume_token" => None,
            _ => return None,
        })
    }

    #[allow(clippy::option_option)]
    fn snapshot_property(
        &self,
        dataset: &str,
        snapshot: &Snapshot,
        property: &str,
    ) -> Option<Option<Value>> {
        let pool = self.pool(dataset)?;
        Some(match property {
            "name" => shown(format!("{dataset}@{}", snapshot.name)),
            "type" => shown("snapshot"),
            "guid" => shown(snapshot.guid),
            "createtxg" => shown(snapshot.createtxg),
            "creation" => shown(snapshot.creation),
            "used" => shown(pool.used_by_snapshot(dataset, &snapshot.name)),
            "referenced" => shown(snapshot.content.referenced()),
            "written" => shown(pool.written(dataset, Some(&snapshot.name))),
            "userrefs" => shown(snapshot.holds.len()),
            "defer_destroy" => shown(if snapshot.deferred { "on" } else { "off" }),
            "clones" => {
                let clones = pool.clones(snapshot.guid);
                if clones.is_empty() { None } else { shown(clones.join(",")) }
            }
            "volsize" => {
                snapshot.size.map(|s| Value { text: s.to_string(), source: "local".to_owned() })
            }
            "encryption" | "encryptionroot" | "keystatus" => {
                return self.dataset_property(dataset, property);
            }
            "available"
            | "usedbysnapshots"
            | "usedbydataset"
            | "usedbychildren"
            | "usedbyrefreservation"
            | "refreservation"
            | "refquota"
            | "origin"
            | "mounted"
            | "mountpoint"
            | "readonly"
            | "receive_resume_token"
            | "volblocksize" => None,
            _ => return None,
        })
    }

    /// Where a file system is mounted: as set on it, or below what is set above.
    pub(super) fn mountpoint(&self, name: &str) -> String {
        match self.inherited(name, "mountpoint") {
            Some((path, _)) if path == "none" || path == "legacy" => path,
            Some((path, from)) => format!("{path}{}", &name[from.len()..]),
            None => format!("/{name}"),
        }
    }

    /// The rows at and below a dataset, to a depth.
    fn rows(&self, top: &str, depth: usize, types: &[&str], into: &mut Vec<Row>) {
        let Some(pool) = self.pool(top) else { return };
        for (name, dataset) in pool.datasets.iter().filter(|(n, _)| is_below(n, top)) {
            let level = name[top.len()..].matches('/').count();
            if level <= depth && types.contains(&dataset.kind.word()) {
                into.push(Row::Dataset(name.clone()));
            }
            if level >= depth {
                continue;
            }
            if types.contains(&"snapshot") {
                let row = |s: &Snapshot| Row::Snapshot(name.clone(), s.name.clone());
                into.extend(dataset.snapshots.iter().map(row));
            }
            if types.contains(&"bookmark") {
                let row = |b: &String| Row::Bookmark(name.clone(), b.clone());
                into.extend(dataset.bookmarks.keys().map(row));
            }
        }
    }

    /// The order of names: a dataset before its snapshots, those by age.
    fn by_name(&self, a: &Row, b: &Row) -> std::cmp::Ordering {
        let key = |row: &Row| match row {
            Row::Dataset(name) => (name.clone(), 0),
            Row::Bookmark(..) => (row.name(), 0),
            Row::Snapshot(dataset, name) => {
                let txg = self.dataset(dataset).and_then(|d| d.snapshot(name)).map(|s| s.createtxg);
                (dataset.clone(), 1 + txg.unwrap_or(0))
            }
        };
        key(a).cmp(&key(b))
    }

    pub(super) fn list(&self, words: &[&str]) -> Option<Reply> {
        let (options, operands) = options(words, "Hpr", "dostS")?;
        let (mut depth, mut columns, mut types, mut sort) = (None, None, None, None);
        let (mut bare, mut exact) = (false, false);
        for (option, value) in options {
            match option {
                'H' => bare = true,
                'p' => exact = true,
                'r' => depth = Some(usize::MAX),
                'd' => depth = Some(value.parse().ok()?),
                'o' => columns = Some(value),
                't' => types = Some(value),
                's' if sort.is_none() => sort = Some(value),
                '?' => {
                    let letter =
                        value.trim_start_matches('-').chars().find(|c| !"Hpr".contains(*c))?;
                    return Some(Reply::usage(&format!("invalid option '{letter}'")));
                }
                _ => return None,
            }
        }
        let columns: Vec<String> = match columns {
            None => {
                ["name", "used", "available", "referenced", "mountpoint"].map(str::to_owned).into()
            }
            Some(list) => list.split(',').map(long_name).collect(),
        };
        let bad = columns.iter().find(|c| !c.contains(':') && !NATIVE.split(' ').any(|n| n == *c));
        if let Some(bad) = bad {
            return Some(Reply::usage(&format!("bad property list: invalid property '{bad}'")));
        }
        if !bare || !exact {
            return None;
        }
        let all = ["filesystem", "volume", "snapshot", "bookmark"];
        let chosen: Vec<&str> = match types {
            None => vec!["filesystem", "volume"],
            Some("all") => all.to_vec(),
            Some(list) => {
                list.split(',').map(|t| if t == "snap" { "snapshot" } else { t }).collect()
            }
        };
        if !chosen.iter().all(|t| all.contains(t)) {
            return None;
        }
        // Snapshots or bookmarks alone: one means those of the dataset named.
        if depth.is_none()
            && !operands.is_empty()
            && matches!(chosen[..], ["snapshot" | "bookmark"])
        {
            depth = Some(1);
        }
        let (mut rows, mut reply) = (Vec::new(), Reply::fine());
        let pools: Vec<&str> = self.pools.keys().map(String::as_str).collect();
        let tops = if operands.is_empty() { pools } else { operands.clone() };
        for top in tops {
            let depth = if operands.is_empty() { depth.or(Some(usize::MAX)) } else { depth };
            let found = match self.named(top, types.is_some_and(|t| t.contains("bookmark")))? {
                Ok(row) => row,
                Err(failed) => {
                    reply.code = failed.code;
                    reply.err += &failed.err;
                    continue;
                }
            };
            match (found, depth) {
                (Row::Dataset(name), Some(depth)) => self.rows(&name, depth, &chosen, &mut rows),
                (row @ Row::Dataset(_), None) => rows.push(row),
                (row, None) if types.is_none() => rows.push(row),
                (row @ Row::Snapshot(..), _) if chosen.contains(&"snapshot") => rows.push(row),
                _ => return None,
            }
        }
        rows.sort_by(|a, b| self.by_name(a, b));
        rows.dedup();
        match sort.map(long_name).as_deref() {
            None | Some("name") => {}
            Some(by @ ("createtxg" | "creation" | "used" | "guid")) => {
                let mut keyed = Vec::new();
                for row in rows {
                    let value = self.property(&row, by)??;
                    keyed.push((value.text.parse::<u64>().ok()?, row));
                }
                keyed.sort_by_key(|(key, _)| *key);
                rows = keyed.into_iter().map(|(_, row)| row).collect();
            }
            Some(_) => return None,
        }
        for row in &rows {
            let mut cells = Vec::new();
            for column in &columns {
                let value = self.property(row, column)?;
                cells.push(value.map_or_else(|| "-".to_owned(), |v| v.text));
            }
            reply.out += &format!("{}\n", cells.join("\t"));
        }
        Some(reply)
    }

    /// What an operand names, or what is said when there is none.
    fn named(&self, name: &str, bookmarks: bool) -> Option<Result<Row, Reply>> {
        if bookmarks && name.contains('#') {
            return self.row_exists(name).map(Ok);
        }
        if let Some(why) = names::fault(name, Named::Any) {
            return Some(Err(Reply::fails(format!("cannot open '{name}': {why}"))));
        }
        let missing = || Reply::fails(format!("cannot open '{name}': dataset does not exist"));
        Some(self.row_exists(name).ok_or_else(missing))
    }

    pub(super) fn get(&self, words: &[&str]) -> Option<Reply> {
        let (options, operands) = options(words, "Hp", "o")?;
        let (mut fields, mut bare, mut exact) = ("name,property,value,source", false, false);
        for (option, value) in options {
            match option {
                'H' => bare = true,
                'p' => exact = true,
                'o' => fields = value,
                _ => return None,
            }
        }
        let (properties, names) = operands.split_first()?;
        if !bare || !exact || names.is_empty() || *properties == "all" {
            return None;
        }
        let (mut rows, mut reply) = (Vec::new(), Reply::fine());
        for name in names {
            match self.named(name, name.contains('#'))? {
                Ok(row) => rows.push(row),
                Err(failed) => {
                    reply.code = failed.code;
                    reply.err += &failed.err;
                }
            }
        }
        rows.sort_by(|a, b| self.by_name(a, b));
        for row in &rows {
            for property in properties.split(',').map(long_name) {
                let value = self.property(row, &property)?;
                let none = || Value { text: "-".to_owned(), source: "-".to_owned() };
                let Value { text, source } = value.unwrap_or_else(none);
                let cell = |field: &str| match field {
                    "name" => Some(row.name()),
                    "property" => Some(property.clone()),
                    "value" => Some(text.clone()),
                    "source" => Some(source.clone()),
                    _ => None,
                };
                let cells: Option<Vec<String>> = fields.split(',').map(cell).collect();
                reply.out += &format!("{}\n", cells?.join("\t"));
            }
        }
        Some(reply)
    }

    pub(super) fn holds(&self, words: &[&str]) -> Option<Reply> {
        let (options, operands) = options(words, "H", "")?;
        let [name] = operands[..] else { return None };
        if options.is_empty() {
            return None;
        }
        let Some(snapshot) = self.snapshot(name) else {
            let why =
                format!("cannot open '{name}': dataset does not exist\nno datasets available");
            return Some(Reply::fails(why));
        };
        // By tag; ZFS has an order of its own.
        let line = |(tag, at): (&String, &u64)| format!("{name}\t{tag}\t{}\n", date(*at));
        Some(Reply::says(snapshot.holds.iter().map(line).collect::<String>()))
    }
}

/// The long name of a column.
fn long_name(name: &str) -> String {
    let long = match name {
        "avail" => "available",
        "refer" => "referenced",
        "refreserv" => "refreservation",
        "volblock" => "volblocksize",
        other => other,
    };
    long.to_owned()
}

/// A moment as people read it, in universal time: `Sun Nov 22 10:42 2026`.
fn date(seconds: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (weekday, name) = (DAYS[(days % 7) as usize], MONTHS[month]);
    let (hour, minute) = (rest / 3600, rest % 3600 / 60);
    format!("{weekday} {name} {:>2} {hour:02}:{minute:02} {year}", day + 1)
}
