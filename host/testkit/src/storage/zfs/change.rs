//! Commands that change snapshots: `snapshot`, `rollback`, `destroy`, `bookmark`, `hold`,
//! `release`; and the checks the kernel makes before, which channel programs share.

use std::collections::BTreeMap;

use super::names::{self, Named};
use super::pool::{Bookmark, Kind, SNAPSHOT_ROOM, Snapshot, View, is_below};
use super::show::options;
use super::{Access, Reply, World, pool_name};

/// Error numbers as the kernel gives them.
pub(super) const ENOENT: i64 = 2;
pub(super) const ESRCH: i64 = 3;
pub(super) const EBUSY: i64 = 16;
pub(super) const EEXIST: i64 = 17;
pub(super) const EINVAL: i64 = 22;
pub(super) const ENOSPC: i64 = 28;
pub(super) const EDQUOT: i64 = 122;

impl World {
    /// Why nobody may change this pool, if so.
    fn barred(&self, name: &str) -> Option<&'static str> {
        match (self.access, self.pool(name)) {
            (Access::User, _) => Some("permission denied"),
            (_, Some(pool)) if pool.readonly => Some("pool is read-only"),
            _ => None,
        }
    }

    pub(super) fn take(&mut self, words: &[&str]) -> Option<Reply> {
        let (options, operands) = options(words, "r", "o")?;
        let mut properties = BTreeMap::new();
        let mut below = false;
        for (option, value) in options {
            match option {
                'r' => below = true,
                'o' => {
                    let (name, value) = value.split_once('=')?;
                    properties.insert(name.to_owned(), value.to_owned());
                }
                _ => return None,
            }
        }
        if operands.is_empty() {
            return Some(Reply::usage("missing snapshot argument"));
        }
        let mut wanted = Vec::new();
        for full in &operands {
            let Some((dataset, name)) = full.split_once('@') else { return Some(Reply::usage("")) };
            if let Some(why) = names::fault(full, Named::Snapshot) {
                return Some(Reply::fails(format!("cannot create snapshot '{full}': {why}")));
            }
            if self.dataset(dataset).is_none() {
                let why = format!("cannot open '{dataset}': dataset does not exist");
                return Some(Reply::usage(&why));
            }
            let pool = self.pool(dataset)?;
            let tops =
                pool.datasets.keys().filter(|d| *d == dataset || below && is_below(d, dataset));
            wanted.extend(tops.map(|d| (d.clone(), name.to_owned())));
        }
        let all = |why: &str| Some(Reply::fails(format!("cannot create snapshots : {why}")));
        let pool = pool_name(operands[0]).to_owned();
        if operands.iter().any(|o| pool_name(o) != pool) {
            return None;
        }
        if !properties.keys().all(|p| names::is_user_property(p)) {
            return all("this property can not be modified for snapshots");
        }
        if properties.values().any(|v| v.len() >= 8_192) {
            return None;
        }
        if let Some(why) = self.barred(&pool) {
            return all(why);
        }
        if self.pool(&pool)?.free() < SNAPSHOT_ROOM * wanted.len() as u64 {
            return all("out of space");
        }
        let mut faults = String::new();
        for (dataset, name) in &wanted {
            let why = match self.may_snapshot(dataset, name) {
                0 => continue,
                EEXIST => "dataset already exists",
                ENOSPC => "out of space",
                _ => return None,
            };
            faults += &format!("cannot create snapshot '{dataset}@{name}': {why}\n");
        }
        if !faults.is_empty() {
            if wanted.len() > 1 {
                faults += "no snapshots were created\n";
            }
            return Some(Reply { code: 1, out: String::new(), err: faults });
        }
        let txg = self.txg(&pool);
        for (dataset, name) in wanted {
            self.make_snapshot(&dataset, &name, txg, properties.clone());
        }
        Some(Reply::fine())
    }

    /// The kernel's check of one snapshot to be made; an error number, 0 for none.
    pub(super) fn may_snapshot(&self, dataset: &str, name: &str) -> i64 {
        let Some(found) = self.dataset(dataset) else { return ENOENT };
        if found.snapshot(name).is_some() {
            return EEXIST;
        }
        // What the reservation covers until now becomes shared, and is reserved anew.
        let pool = self.pool(dataset).expect("it has a dataset");
        let anew = found.refreservation.min(pool.unique(dataset));
        if anew > pool.free() { ENOSPC } else { 0 }
    }

    pub(super) fn make_snapshot(
        &mut self,
        dataset: &str,
        name: &str,
        txg: u64,
        properties: BTreeMap<String, String>,
    ) {
        let (guid, now) = (self.guid(), self.now);
        let found = self.dataset_mut(dataset).expect("the dataset is there");
        let snapshot = Snapshot {
            name: name.to_owned(),
            guid,
            createtxg: txg,
            creation: now,
            properties,
            content: found.head.clone(),
            size: found.size(),
            holds: BTreeMap::new(),
            deferred: false,
            view: View::Closed,
        };
        found.snapshots.push(snapshot);
    }

    pub(super) fn rollback(&mut self, words: &[&str]) -> Option<Reply> {
        let (options, operands) = options(words, "rRf", "")?;
        let (mut newer_too, mut clones_too) = (false, false);
        for (option, value) in options {
            match option {
                'r' => newer_too = true,
                'R' => (newer_too, clones_too) = (true, true),
                '?' => {
                    let letter = value.trim_start_matches('-').chars().next()?;
                    return Some(Reply::usage(&format!("invalid option '{letter}'")));
                }
                _ => return None,
            }
        }
        let full = match operands[..] {
            [] => return None,
            [full] => full,
            _ => return Some(Reply::usage("too many arguments")),
        };
        if let Some(why) = names::fault(full, Named::Snapshot) {
            return Some(Reply::fails(format!("cannot open '{full}': {why}")));
        }
        let Some(target) = self.snapshot(full).map(|s| s.createtxg) else {
            return Some(Reply::fails(format!("cannot open '{full}': dataset does not exist")));
        };
        let (dataset, name) = full.split_once('@')?;
        let found = self.dataset(dataset)?;
        // Newest first, as they are destroyed.
        let newer = found.snapshots.iter().rev().filter(|s| s.createtxg > target);
        let newer: Vec<(String, u64)> =
            newer.map(|s| (format!("{dataset}@{}", s.name), s.guid)).collect();
        let marks = found.bookmarks.iter().filter(|(_, b)| b.createtxg > target);
        let marks: Vec<String> = marks.map(|(b, _)| format!("{dataset}#{b}")).collect();
        let listed = |head: &str, help: &str, names: &[String]| {
            let names = names.join("\n");
            Some(Reply::fails(format!("cannot rollback to '{full}': {head}\n{help}\n{names}")))
        };
        let blocking: Vec<String> =
            newer.iter().map(|(n, _)| n.clone()).chain(marks.clone()).collect();
        if !blocking.is_empty() && !newer_too {
            return listed(
                "more recent snapshots or bookmarks exist",
                "use '-r' to force deletion of the following snapshots and bookmarks:",
                &blocking,
            );
        }
        let pool = self.pool(dataset)?;
        let clones: Vec<String> = newer.iter().flat_map(|(_, guid)| pool.clones(*guid)).collect();
        if !clones.is_empty() && !clones_too {
            return listed(
                "clones of previous snapshots exist",
                "use '-R' to force deletion of the following clones and dependents:",
                &clones,
            );
        }
        if clones.iter().any(|c| !self.dataset(c).is_some_and(|d| d.snapshots.is_empty())) {
            return None;
        }
        let mut faults = String::new();
        for doomed in clones.iter().chain(&blocking) {
            let why = match self.barred(dataset) {
                Some("pool is read-only") => "pool is read-only",
                Some(_) => return None,
                None if doomed.contains('#') => {
                    let (_, mark) = doomed.split_once('#')?;
                    self.dataset_mut(dataset)?.bookmarks.remove(mark);
                    continue;
                }
                None if doomed.contains('@') => match self.may_destroy_snapshot(doomed) {
                    0 => {
                        self.remove_snapshot(doomed);
                        continue;
                    }
                    EBUSY => "dataset is busy",
                    _ => return None,
                },
                None => {
                    self.remove_dataset(doomed);
                    continue;
                }
            };
            faults += &format!("cannot destroy '{doomed}': {why}\n");
        }
        if !faults.is_empty() {
            return Some(Reply { code: 1, out: String::new(), err: faults });
        }
        let why = match (self.barred(dataset), self.may_roll_back(dataset)) {
            (Some(why), _) => why,
            (None, 0) => {
                self.roll_back(dataset, name);
                return Some(Reply::fine());
            }
            (None, ENOSPC | EDQUOT) => "out of space",
            (None, _) => return None,
        };
        Some(Reply::fails(format!("cannot rollback '{dataset}': {why}")))
    }

    /// The kernel's check of a rollback to the newest snapshot, but for who holds the dataset: a
    /// command takes it over from its users, a channel program cannot.
    pub(super) fn may_roll_back(&self, dataset: &str) -> i64 {
        let Some(found) = self.dataset(dataset) else { return ENOENT };
        let pool = self.pool(dataset).expect("it has a dataset");
        let Some(newest) = found.snapshots.last() else {
            // A clone goes back to its origin; nobody has asked for that yet.
            assert!(found.origin.is_none(), "rollback of a clone without snapshots: {dataset}");
            return ESRCH;
        };
        if found.bookmarks.values().any(|b| b.createtxg > newest.createtxg) {
            return EEXIST;
        }
        if found.refquota > 0 && newest.content.referenced() > found.refquota {
            return EDQUOT;
        }
        let anew = found.refreservation.min(pool.unique(dataset));
        if anew > pool.free() { ENOSPC } else { 0 }
    }

    /// Sets content and size back. Who has a volume open goes on with what is no longer there.
    pub(super) fn roll_back(&mut self, dataset: &str, name: &str) {
        self.txg(dataset);
        let found = self.dataset_mut(dataset).expect("the dataset is there");
        let snapshot = found.snapshot(name).expect("the snapshot is there");
        (found.head, found.kind) =
            match (snapshot.content.clone(), found.kind.clone(), snapshot.size) {
                (content, Kind::Volume { block, opens, .. }, Some(size)) => {
                    (content, Kind::Volume { size, block, opens })
                }
                (content, kind, _) => (content, kind),
            };
        if let Kind::Volume { opens: 1.., .. } = found.kind {
            found.corrupted = true;
        }
        // The file system is mounted anew: views of its snapshots are closed.
        found.snapshots.iter_mut().for_each(|s| s.view = View::Closed);
    }

    pub(super) fn destroy(&mut self, words: &[&str]) -> Option<Reply> {
        let (options, operands) = options(words, "dnpvrR", "")?;
        let has = |letter| options.iter().any(|(o, _)| *o == letter);
        let [name] = operands[..] else { return None };
        if has('?') || has('R') {
            return None;
        }
        if name.contains('#') {
            return self.destroy_bookmark(name);
        }
        if name.contains('@') {
            let dry = has('n') && has('v') && has('p');
            if !dry && (has('n') || has('v') || has('p')) {
                return None;
            }
            return match has('r') {
                true => self.destroy_below(name, options.len()),
                false => self.destroy_snapshots(name, has('d'), dry),
            };
        }
        if options.iter().any(|(o, _)| *o != 'r') {
            return None;
        }
        self.destroy_dataset(name, has('r'))
    }

    fn destroy_bookmark(&mut self, full: &str) -> Option<Reply> {
        let (dataset, name) = full.split_once('#')?;
        if self.barred(dataset).is_some() {
            return None;
        }
        self.dataset(dataset)?;
        if self.dataset_mut(dataset)?.bookmarks.remove(name).is_none() {
            return Some(Reply::fails(format!("bookmark '{full}' does not exist.")));
        }
        self.txg(dataset);
        Some(Reply::fine())
    }

    /// `dataset@a,b,c`: those that are there, all or none of them.
    fn destroy_snapshots(&mut self, full: &str, deferred: bool, dry: bool) -> Option<Reply> {
        let (dataset, list) = full.split_once('@')?;
        if self.dataset(dataset).is_none() {
            return Some(Reply::fails(format!("cannot open '{dataset}': dataset does not exist")));
        }
        if list.contains('%') {
            return None;
        }
        let found = self.dataset(dataset)?;
        let names: Vec<String> = list
            .split(',')
            .filter(|n| found.snapshot(n).is_some())
            .map(|n| format!("{dataset}@{n}"))
            .collect();
        if names.is_empty() {
            let why = "could not find any snapshots to destroy; check snapshot names.";
            return Some(Reply::fails(why));
        }
        if dry {
            let lines: String = names.iter().map(|n| format!("destroy\t{n}\n")).collect();
            let [name] = &names[..] else { return None };
            let (_, short) = name.split_once('@')?;
            let freed = self.pool(dataset)?.used_by_snapshot(dataset, short);
            return Some(Reply::says(format!("{lines}reclaim\t{freed}\n")));
        }
        if let Some(why) = self.barred(dataset) {
            return Some(Reply::fails(format!("cannot destroy snapshots: {why}")));
        }
        // All or none, and what is wrong with each.
        let mut faults = String::new();
        for name in &names {
            let (_, short) = name.split_once('@')?;
            // The command closes a view nobody uses; the kernel alone does not.
            let snapshot = self.dataset_mut(dataset)?.snapshot_mut(short)?;
            if snapshot.view == View::Open {
                snapshot.view = View::Closed;
            }
            let guid = snapshot.guid;
            match self.may_destroy_snapshot(name) {
                0 => {}
                _ if deferred && self.snapshot(name)?.view == View::Closed => {}
                EBUSY => faults += &format!("cannot destroy snapshot {name}: dataset is busy\n"),
                EEXIST => {
                    let clones = self.pool(dataset)?.clones(guid).join("\n");
                    faults += &format!(
                        "cannot destroy '{name}': snapshot has dependent clones\n\
                         use '-R' to destroy the following datasets:\n{clones}\n"
                    );
                }
                _ => return None,
            }
        }
        if !faults.is_empty() {
            return Some(Reply { code: 1, out: String::new(), err: faults });
        }
        self.txg(dataset);
        for name in &names {
            if self.may_destroy_snapshot(name) == 0 {
                self.remove_snapshot(name);
            } else {
                let (_, short) = name.split_once('@')?;
                self.dataset_mut(dataset)?.snapshot_mut(short)?.deferred = true;
            }
        }
        Some(Reply::fine())
    }

    /// `-r dataset@a`: of the dataset and all below it, where nothing is in the way.
    fn destroy_below(&mut self, full: &str, options: usize) -> Option<Reply> {
        let (top, name) = full.split_once('@')?;
        let below = self.pool(top)?.datasets.iter().filter(|(d, _)| is_below(d, top));
        let found = below.filter(|(_, d)| d.snapshot(name).is_some());
        let all: Vec<String> = found.map(|(d, _)| format!("{d}@{name}")).collect();
        let free = |full: &String| self.may_destroy_snapshot(full) == 0;
        if options != 1 || all.is_empty() || self.barred(top).is_some() || !all.iter().all(free) {
            return None;
        }
        self.txg(top);
        all.iter().for_each(|full| self.remove_snapshot(full));
        Some(Reply::fine())
    }

    /// The kernel's check of a snapshot to be destroyed. One that is not there is destroyed.
    pub(super) fn may_destroy_snapshot(&self, full: &str) -> i64 {
        let Some(snapshot) = self.snapshot(full) else { return 0 };
        let pool = self.pool(full).expect("it has a snapshot");
        if snapshot.view != View::Closed || !snapshot.holds.is_empty() {
            EBUSY
        } else if !pool.clones(snapshot.guid).is_empty() {
            EEXIST
        } else {
            0
        }
    }

    pub(super) fn remove_snapshot(&mut self, full: &str) {
        let Some((dataset, name)) = full.split_once('@') else { return };
        if let Some(found) = self.dataset_mut(dataset) {
            found.snapshots.retain(|s| s.name != name);
        }
    }

    /// Removes a dataset, and its origin if that only waited for this.
    fn remove_dataset(&mut self, name: &str) {
        self.txg(name);
        let gone = self.pool_mut(name).datasets.remove(name);
        if let Some(origin) = gone.and_then(|d| d.origin) {
            self.destroy_deferred(name, origin);
        }
    }

    /// Destroys a snapshot whose destruction was put off, if nothing stands in the way any more.
    fn destroy_deferred(&mut self, pool: &str, guid: u64) {
        let Some((dataset, snapshot)) = self.pool(pool).and_then(|p| p.by_guid(guid)) else {
            return;
        };
        let (full, deferred) = (format!("{dataset}@{}", snapshot.name), snapshot.deferred);
        if deferred && self.may_destroy_snapshot(&full) == 0 {
            self.remove_snapshot(&full);
        }
    }

    /// What `-r` would destroy with it, in the order it would.
    fn dependents(&self, name: &str) -> Vec<String> {
        let Some(pool) = self.pool(name) else { return Vec::new() };
        let mut all = Vec::new();
        let child =
            |other: &&String| other.rsplit_once('/').is_some_and(|(parent, _)| parent == name);
        for child in pool.datasets.keys().filter(child) {
            all.extend(self.dependents(child));
            all.push(child.clone());
        }
        if let Some(dataset) = pool.datasets.get(name) {
            all.extend(dataset.snapshots.iter().map(|s| format!("{name}@{}", s.name)));
        }
        all
    }

    fn destroy_dataset(&mut self, name: &str, all: bool) -> Option<Reply> {
        let Some(found) = self.dataset(name) else {
            return Some(Reply::fails(format!("cannot open '{name}': dataset does not exist")));
        };
        let kind = found.kind.clone();
        let dependents = self.dependents(name);
        if !dependents.is_empty() && !all {
            return Some(Reply::fails(format!(
                "cannot destroy '{name}': {} has children\n\
                 use '-r' to destroy the following datasets:\n{}",
                kind.word(),
                dependents.join("\n")
            )));
        }
        let below_changes = |d: &String| !d.contains('@');
        if self.barred(name).is_some()
            || dependents.iter().any(below_changes)
            || dependents.iter().any(|d| self.may_destroy_snapshot(d) != 0)
        {
            return None;
        }
        // The snapshots go first, and stay gone when the rest fails.
        for snapshot in &dependents {
            self.remove_snapshot(snapshot);
        }
        match kind {
            Kind::Volume { opens: 1.., .. } => {
                Some(Reply::fails(format!("cannot destroy '{name}': dataset is busy")))
            }
            Kind::FileSystem { mounted: true, busy: true } => {
                let at = self.mountpoint(name);
                Some(Reply::fails(format!("cannot unmount '{at}': pool or dataset is busy")))
            }
            _ => {
                self.remove_dataset(name);
                Some(Reply::fine())
            }
        }
    }

    pub(super) fn bookmark(&mut self, words: &[&str]) -> Option<Reply> {
        let [full, mark] = words[..] else { return None };
        let (dataset, _) = full.split_once('@')?;
        let Some(snapshot) = self.snapshot(full) else {
            return Some(Reply::usage(&format!("cannot open '{full}': dataset does not exist")));
        };
        let new = Bookmark {
            guid: snapshot.guid,
            createtxg: snapshot.createtxg,
            creation: snapshot.creation,
            referenced: snapshot.content.referenced(),
        };
        let (of, name) = mark.split_once('#')?;
        if self.barred(dataset).is_some() || !(of.is_empty() || of == dataset) {
            return None;
        }
        let found = self.dataset_mut(dataset)?;
        if found.bookmarks.contains_key(name) {
            return None;
        }
        found.bookmarks.insert(name.to_owned(), new);
        self.txg(dataset);
        Some(Reply::fine())
    }

    pub(super) fn hold(&mut self, words: &[&str]) -> Option<Reply> {
        let [tag, full] = words[..] else { return None };
        let (dataset, name) = full.split_once('@')?;
        match self.barred(dataset) {
            Some("permission denied") => {
                return Some(Reply::fails("cannot hold: permission denied"));
            }
            Some(_) => return None,
            None => {}
        }
        let now = self.now;
        let cannot =
            |why: &str| Some(Reply::fails(format!("cannot hold snapshot '{full}': {why}")));
        let Some(snapshot) = self.dataset_mut(dataset).and_then(|d| d.snapshot_mut(name)) else {
            return cannot("dataset does not exist");
        };
        if snapshot.holds.contains_key(tag) {
            return cannot("tag already exists on this dataset");
        }
        snapshot.holds.insert(tag.to_owned(), now);
        self.txg(dataset);
        Some(Reply::fine())
    }

    pub(super) fn release(&mut self, words: &[&str]) -> Option<Reply> {
        let [tag, full] = words[..] else { return None };
        let (dataset, name) = full.split_once('@')?;
        if self.barred(dataset).is_some() {
            return None;
        }
        let cannot = |why: &str| {
            Some(Reply::fails(format!("cannot release hold from snapshot '{full}': {why}")))
        };
        let Some(snapshot) = self.dataset_mut(dataset).and_then(|d| d.snapshot_mut(name)) else {
            return cannot("dataset does not exist");
        };
        if snapshot.holds.remove(tag).is_none() {
            return cannot("no such tag on this dataset");
        }
        let guid = snapshot.guid;
        self.txg(dataset);
        self.destroy_deferred(dataset, guid);
        Some(Reply::fine())
    }
}
