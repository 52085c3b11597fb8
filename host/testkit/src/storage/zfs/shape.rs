//! Commands that change the tree: `create`, `clone`, `promote`, `rename`, `set`, `inherit`,
//! `mount`, `load-key` and their opposites. Nobody plans these; they set the stage.

use std::collections::BTreeMap;

use super::names::{self, Named};
use super::pool::{Dataset, Kind, View, is_below, reservation_of};
use super::show::options;
use super::{Access, Reply, World};

/// Bytes of a block of a volume where nothing is said.
const VOLUME_BLOCK: u64 = 8_192;
/// Metadata of a new encrypted volume beyond that of another, as observed.
const ENCRYPTED_BASE: u64 = 39_936;

fn cannot_create(name: &str, why: &str) -> Option<Reply> {
    Some(Reply::fails(format!("cannot create '{name}': {why}")))
}

impl World {
    pub(super) fn add_dataset(
        &mut self,
        name: &str,
        kind: Kind,
        properties: BTreeMap<String, String>,
        key: Option<(String, bool)>,
        refreservation: u64,
    ) {
        let (guid, now) = (self.guid(), self.now);
        let createtxg = self.txg(name);
        let pool = self.pool_mut(name);
        let extra = if key.is_some() { ENCRYPTED_BASE } else { 0 };
        let head = pool.fresh_content(&kind, extra);
        let dataset = Dataset {
            kind,
            guid,
            createtxg,
            creation: now,
            properties,
            head,
            snapshots: Vec::new(),
            bookmarks: BTreeMap::new(),
            origin: None,
            refreservation,
            refquota: 0,
            key,
            corrupted: false,
        };
        pool.datasets.insert(name.to_owned(), dataset);
    }

    pub(super) fn create(&mut self, words: &[&str]) -> Option<Reply> {
        let (options, operands) = options(words, "sp", "Vbo")?;
        let [name] = operands[..] else { return None };
        let (mut size, mut block, mut sparse, mut parents) = (None, VOLUME_BLOCK, false, false);
        let (mut properties, mut encrypted) = (BTreeMap::new(), false);
        for (option, value) in options {
            match option {
                'V' => size = Some(names::size(value)?),
                'b' => block = names::size(value)?,
                's' => sparse = true,
                'p' => parents = true,
                'o' => match value.split_once('=')? {
                    ("volblocksize", value) => block = names::size(value)?,
                    ("refreservation", "none") => sparse = true,
                    ("encryption", "on") => encrypted = true,
                    ("keyformat" | "keylocation" | "pbkdf2iters", _) => {}
                    (property, value) if property == "mountpoint" || property.contains(':') => {
                        properties.insert(property.to_owned(), value.to_owned());
                    }
                    _ => return None,
                },
                _ => return None,
            }
        }
        if let Some(why) = names::fault(name, Named::Dataset) {
            return cannot_create(name, &why);
        }
        if self.access == Access::User {
            return cannot_create(name, "permission denied");
        }
        let (parent, _) = name.rsplit_once('/')?;
        if self.pool(name)?.readonly {
            return None;
        }
        if self.dataset(name).is_some() {
            return cannot_create(name, "dataset already exists");
        }
        if self.dataset(parent).is_none() {
            if !parents {
                return cannot_create(name, "parent does not exist");
            }
            let made = self.create(&["-p", parent])?;
            if made.code != 0 {
                return Some(made);
            }
        }
        let key = match encrypted {
            true => Some((name.to_owned(), true)),
            false => self.dataset(parent)?.key.clone(),
        };
        let mut reply = Reply::fine();
        let Some(size) = size else {
            let kind = Kind::FileSystem { mounted: false, busy: false };
            if self.pool(name)?.free() < 1 << 20 {
                return cannot_create(name, "out of space");
            }
            self.add_dataset(name, kind, properties, key, 0);
            let mounted = self.mountpoint(name).starts_with('/');
            if let Kind::FileSystem { mounted: now, .. } = &mut self.dataset_mut(name)?.kind {
                *now = mounted;
            }
            return Some(reply);
        };
        if !properties.keys().all(|p| p.contains(':')) || !block.is_power_of_two() {
            return None;
        }
        if block < VOLUME_BLOCK {
            reply.err = format!(
                "Warning: volblocksize ({block}) is less than the default minimum block size (8192).\n\
                 To reduce wasted space a volblocksize of 8192 is recommended.\n"
            );
        }
        let size = size.next_multiple_of(block);
        let reserved = if sparse { 0 } else { reservation_of(size, block) };
        if reserved.max(1 << 20) > self.pool(name)?.free() {
            return cannot_create(name, "out of space");
        }
        self.add_dataset(name, Kind::Volume { size, block, opens: 0 }, properties, key, reserved);
        Some(reply)
    }

    pub(super) fn clone_snapshot(&mut self, words: &[&str]) -> Option<Reply> {
        let (options, operands) = options(words, "", "o")?;
        // Nothing the model keeps depends on how the device is shown.
        if options.iter().any(|(_, value)| !value.starts_with("volmode=")) {
            return None;
        }
        let [full, name] = operands[..] else { return None };
        let Some(snapshot) = self.snapshot(full) else {
            return Some(Reply::fails(format!("cannot open '{full}': dataset does not exist")));
        };
        let (origin, head, size) = (snapshot.guid, snapshot.content.clone(), snapshot.size);
        let (of, _) = full.split_once('@')?;
        let (parent, _) = name.rsplit_once('/')?;
        if self.access != Access::Root || self.pool(name)?.readonly || self.dataset(name).is_some()
        {
            return None;
        }
        self.dataset(parent)?;
        let (kind, key) = (self.dataset(of)?.kind.clone(), self.dataset(of)?.key.clone());
        let kind = match (kind, size) {
            (Kind::Volume { block, .. }, Some(size)) => Kind::Volume { size, block, opens: 0 },
            _ => Kind::FileSystem { mounted: false, busy: false },
        };
        self.add_dataset(name, kind, BTreeMap::new(), key, 0);
        let mounted = self.mountpoint(name).starts_with('/');
        let made = self.dataset_mut(name)?;
        (made.origin, made.head) = (Some(origin), head);
        if let Kind::FileSystem { mounted: now, .. } = &mut made.kind {
            *now = mounted;
        }
        Some(Reply::fine())
    }

    /// Hands the origin, and what is older than it, over to the clone.
    pub(super) fn promote(&mut self, words: &[&str]) -> Option<Reply> {
        let [name] = words[..] else { return None };
        let origin = self.dataset(name)?.origin?;
        if self.access != Access::Root || self.pool(name)?.readonly {
            return None;
        }
        let (of, _) = self.pool(name)?.by_guid(origin)?;
        let of = of.to_owned();
        let parent = self.dataset_mut(&of)?;
        let at = parent.snapshots.iter().position(|s| s.guid == origin)?;
        let mut moved: Vec<_> = parent.snapshots.drain(..=at).collect();
        let grandparent = parent.origin.replace(origin);
        let clone = self.dataset_mut(name)?;
        if moved.iter().any(|s| clone.snapshot(&s.name).is_some()) {
            return None;
        }
        moved.append(&mut clone.snapshots);
        (clone.snapshots, clone.origin) = (moved, grandparent);
        self.txg(name);
        Some(Reply::fine())
    }

    pub(super) fn rename(&mut self, words: &[&str]) -> Option<Reply> {
        let [from, to] = words[..] else { return None };
        if self.access != Access::Root || self.pool(from).is_some_and(|p| p.readonly) {
            return None;
        }
        if !self.exists(from) {
            return Some(Reply::fails(format!("cannot open '{from}': dataset does not exist")));
        }
        let Some((dataset, name)) = from.split_once('@') else {
            return self.rename_dataset(from, to);
        };
        let (of, new) = to.split_once('@')?;
        if !(of.is_empty() || of == dataset) {
            return None;
        }
        let found = self.dataset_mut(dataset)?;
        if found.snapshot(new).is_some() {
            return Some(Reply::fails(format!("cannot rename '{from}': dataset already exists")));
        }
        new.clone_into(&mut found.snapshot_mut(name)?.name);
        self.txg(dataset);
        Some(Reply::fine())
    }

    fn rename_dataset(&mut self, from: &str, to: &str) -> Option<Reply> {
        let parent = to.rsplit_once('/').map(|(parent, _)| parent)?;
        if self.dataset(to).is_some() || self.dataset(parent).is_none() || is_below(to, from) {
            return None;
        }
        if super::pool_name(from) != super::pool_name(to) {
            return None;
        }
        self.txg(from);
        let datasets = &mut self.pool_mut(from).datasets;
        let moved: Vec<String> = datasets.keys().filter(|n| is_below(n, from)).cloned().collect();
        for old in moved {
            let new = format!("{to}{}", &old[from.len()..]);
            let mut dataset = datasets.remove(&old)?;
            // The key's root goes by name too.
            if let Some((root, _)) = &mut dataset.key
                && is_below(root, from)
            {
                *root = format!("{to}{}", &root[from.len()..]);
            }
            datasets.insert(new, dataset);
        }
        Some(Reply::fine())
    }

    pub(super) fn set(&mut self, words: &[&str]) -> Option<Reply> {
        let [assignment, name] = words[..] else { return None };
        let (property, value) = assignment.split_once('=')?;
        if !self.exists(name) {
            return Some(Reply::fails(format!("cannot open '{name}': dataset does not exist")));
        }
        let cannot =
            |why: &str| Some(Reply::fails(format!("cannot set property for '{name}': {why}")));
        match (self.access, self.pool(name)?.readonly) {
            (Access::User, _) => return cannot("permission denied"),
            (_, true) => return cannot("pool is read-only"),
            _ => {}
        }
        self.txg(name);
        if names::is_user_property(property) {
            if value.len() >= 8_192 {
                return cannot("property value too long");
            }
            self.own_properties(name)?.insert(property.to_owned(), value.to_owned());
            return Some(Reply::fine());
        }
        let dataset = self.dataset_mut(name)?;
        let bytes = if value == "none" { 0 } else { names::size(value).unwrap_or(0) };
        match property {
            "refquota" if dataset.size().is_none() => {
                if bytes > 0 && bytes < dataset.head.referenced() {
                    return cannot("size is less than current used or reserved space");
                }
                dataset.refquota = bytes;
            }
            "refreservation" => dataset.refreservation = bytes,
            "volsize" => {
                let whole = dataset.refreservation;
                let Kind::Volume { size, block, .. } = &mut dataset.kind else { return None };
                if bytes == 0 || bytes % *block != 0 {
                    return None;
                }
                // A reservation of the whole volume stays one.
                let follows = whole == reservation_of(*size, *block);
                *size = bytes;
                if follows {
                    dataset.refreservation = reservation_of(bytes, *block);
                }
            }
            // How snapshots are shown does not matter here.
            "snapdev" => {}
            _ => return None,
        }
        Some(Reply::fine())
    }

    /// The properties set on a dataset or snapshot itself.
    pub(super) fn own_properties(&mut self, name: &str) -> Option<&mut BTreeMap<String, String>> {
        match name.split_once('@') {
            Some((dataset, s)) => Some(&mut self.dataset_mut(dataset)?.snapshot_mut(s)?.properties),
            None => Some(&mut self.dataset_mut(name)?.properties),
        }
    }

    pub(super) fn inherit(&mut self, words: &[&str]) -> Option<Reply> {
        let [property, name] = words[..] else { return None };
        if self.access != Access::Root || !names::is_user_property(property) || !self.exists(name) {
            return None;
        }
        self.txg(name);
        self.own_properties(name)?.remove(property);
        Some(Reply::fine())
    }

    pub(super) fn mount(&mut self, words: &[&str], on: bool) -> Option<Reply> {
        let [name] = words[..] else { return None };
        let path = self.mountpoint(name);
        let dataset = self.dataset_mut(name)?;
        let Kind::FileSystem { mounted, busy } = &mut dataset.kind else { return None };
        if *mounted == on || !path.starts_with('/') {
            return None;
        }
        if !on && *busy {
            let why = format!("cannot unmount '{path}': pool or dataset is busy");
            return Some(Reply::fails(why));
        }
        *mounted = on;
        dataset.snapshots.iter_mut().for_each(|s| s.view = View::Closed);
        Some(Reply::fine())
    }

    /// Loads or unloads a key; the model does not look at keys, it has the right one.
    pub(super) fn key(&mut self, words: &[&str], load: bool) -> Option<Reply> {
        let [name] = words[..] else { return None };
        let verb = if load { "load" } else { "unload" };
        let fails = |text: &str| {
            let err = format!("Key {verb} error: {text}\n");
            Some(Reply { code: 255, out: String::new(), err })
        };
        let Some(dataset) = self.dataset(name) else {
            return Some(Reply::fails(format!("cannot open '{name}': dataset does not exist")));
        };
        let (root, loaded) = dataset.key.clone()?;
        if root != name || self.access != Access::Root {
            return None;
        }
        match (load, loaded) {
            (true, true) => return fails(&format!("Key already loaded for '{name}'.")),
            (false, true) if dataset.kind.held() => return fails(&format!("'{name}' is busy.")),
            (false, false) => return None,
            _ => {}
        }
        for other in self.pool_mut(name).datasets.values_mut() {
            if let Some((of, loaded)) = &mut other.key
                && *of == root
            {
                *loaded = load;
            }
        }
        Some(Reply::fine())
    }
}
