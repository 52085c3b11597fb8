//! `lvcreate`.

use std::collections::{BTreeMap, BTreeSet};

use super::options::{Line, Output, display_size, extents, size};
use super::state::{
    Blocks, COW_CHUNK_BYTES, Cow, EXTENT_BYTES, Id, Kind, Pool, SECTOR_BYTES, State, Thin,
};

/// Parts of names that LVM keeps for itself, at the beginning and anywhere.
const RESERVED_FIRST: [&str; 2] = ["snapshot", "pvmove"];
const RESERVED_WITHIN: [&str; 14] = [
    "_cdata", "_cmeta", "_corig", "_mimage", "_mlog", "_pmspare", "_rimage", "_rmeta", "_tdata",
    "_tmeta", "_vdata", "_vorigin", "_imeta", "_iorig",
];

/// Why a name will not do.
pub(super) fn bad_name(line: &Line, name: &str) -> Option<String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    // Recorded: 128 bytes are refused, 120 are not.
    if (121..128).contains(&name.len()) {
        line.unknown("whether a name so long will do");
    }
    let plain = !name.is_empty() && name.len() < 128 && name.chars().all(allowed);
    if !plain || name.starts_with('-') || name == "." || name == ".." {
        return Some(format!("Logical volume name \"{name}\" is invalid."));
    }
    let choose = "are reserved. Please choose a different LV name.";
    if let Some(part) = RESERVED_FIRST.iter().find(|p| name.starts_with(*p)) {
        return Some(format!("Names starting \"{part}\" {choose}"));
    }
    let within = RESERVED_WITHIN.iter().find(|p| name.contains(*p));
    within.map(|part| format!("Names including \"{part}\" {choose}"))
}

/// Extents of a store that can never overflow (`cow_max_extents` of LVM): one chunk for each of
/// the origin's, those that list them, and a header.
fn most_extents(origin_bytes: u64) -> u64 {
    let chunks = origin_bytes.div_ceil(COW_CHUNK_BYTES);
    let listed = COW_CHUNK_BYTES / 16;
    extents((1 + chunks + (chunks + listed) / listed) * COW_CHUNK_BYTES)
}

/// What `-L` or `-l` asks for.
enum Amount {
    Extents(u64),
    PercentOfOrigin(u64),
    PercentOfFree(u64),
}

impl State {
    pub(super) fn create(&mut self, line: &Line) -> Output {
        let output = Output::new(line);
        if let Some((option, tag)) = line.bad_tag() {
            return output.unreadable(option, &tag);
        }
        for option in ["size", "virtualsize"] {
            if let Some(text) = line.value(option)
                && size(text).is_none_or(|bytes| bytes % SECTOR_BYTES != 0)
            {
                return output.unreadable(option, text);
            }
        }
        let thin_pool = line.value("thinpool").map(|p| p.rsplit('/').next().unwrap_or(p));
        let (group, origin) = match line.positional.as_slice() {
            [] => match line.value("thinpool").and_then(|p| p.split_once('/')) {
                Some((group, _)) => (group.to_owned(), None),
                None => line.unknown("lvcreate without a place"),
            },
            [place] => match place.split_once('/') {
                Some((group, name)) => (group.to_owned(), Some(name.to_owned())),
                None => (place.clone(), None),
            },
            _ => line.unknown("lvcreate with several places"),
        };
        if origin.is_some() != line.has("snapshot") {
            line.unknown("lvcreate of this kind");
        }
        let name = match line.value("name") {
            Some(name) => name.to_owned(),
            None => self.free_name(&group),
        };
        if let Some((other, _)) = name.split_once('/') {
            let text =
                format!("Please use a single volume group name (\"{group}\" or \"{other}\").");
            return output.misused(line, &text);
        }
        if let Some(text) = bad_name(line, &name) {
            return output.misused(line, &text);
        }
        if !self.groups.contains_key(&group) {
            return output.no_group(&group);
        }
        if self.find(&group, &name).is_some() {
            let text =
                format!("Logical Volume \"{name}\" already exists in volume group \"{group}\"");
            return output.failed(&text);
        }
        match (origin, line.value("type"), thin_pool) {
            (Some(origin), None, pool) => {
                let Some(origin_id) = self.find(&group, &origin) else {
                    return output.failed(&format!(
                        "Snapshot origin LV {origin} not found in Volume group {group}."
                    ));
                };
                self.create_snapshot(line, output, &group, &name, origin_id, pool)
            }
            (None, None | Some("thin"), Some(pool)) if line.has("virtualsize") => {
                self.create_thin(line, output, &group, &name, pool)
            }
            (None, Some("thin-pool"), None) => self.create_pool(line, output, &group, &name),
            (None, None, None) => self.create_thick(line, output, &group, &name),
            _ => line.unknown("lvcreate of this kind"),
        }
    }

    /// The name LVM makes up: one more than the highest in use, its spare's included.
    fn free_name(&self, group: &str) -> String {
        let numbers = self.lvs.values().filter(|lv| lv.group == group);
        let numbers = numbers.filter_map(|lv| lv.name.strip_prefix("lvol")?.parse::<u64>().ok());
        let spare = (self.spare_bytes(group) > 0).then_some(0);
        let next = numbers.chain(spare).max().map_or(0, |n| n + 1);
        format!("lvol{next}")
    }

    fn amount(&self, line: &Line, output: &mut Output) -> Option<Amount> {
        if let Some(text) = line.value("size") {
            let bytes = size(text).expect("checked");
            let rounded = extents(bytes);
            if rounded * EXTENT_BYTES != bytes {
                let text = display_size(rounded * EXTENT_BYTES);
                output.say(&format!("Rounding up size to full physical extent {text}"));
            }
            return Some(Amount::Extents(rounded));
        }
        let text = line.value("extents")?;
        let number = |t: &str| t.parse().unwrap_or_else(|_| line.unknown("the number of extents"));
        Some(match text.split_once('%') {
            None => Amount::Extents(number(text)),
            Some((percent, "ORIGIN")) => Amount::PercentOfOrigin(number(percent)),
            Some((percent, "FREE")) => Amount::PercentOfFree(number(percent)),
            Some(_) => line.unknown("percent of this"),
        })
    }

    fn create_thick(&mut self, line: &Line, mut output: Output, group: &str, name: &str) -> Output {
        let wanted = match self.amount(line, &mut output) {
            Some(Amount::Extents(n)) => n,
            Some(Amount::PercentOfFree(percent)) => self.free_extents(group) * percent / 100,
            _ => line.unknown("lvcreate without a size"),
        };
        if !self.room(&mut output, group, wanted) {
            return output;
        }
        let id = self.add(group, name, wanted * EXTENT_BYTES, Kind::Linear(Blocks::new()));
        self.dress(line, id, true);
        self.warn_of_promises(line, &mut output, group, None);
        created(output, name)
    }

    fn create_pool(&mut self, line: &Line, mut output: Output, group: &str, name: &str) -> Output {
        let Some(Amount::Extents(wanted)) = self.amount(line, &mut output) else {
            line.unknown("a pool without a size");
        };
        let metadata = line.value("poolmetadatasize").and_then(size);
        let metadata = metadata.map(extents).unwrap_or_else(|| line.unknown("the metadata's size"));
        let metadata_bytes = metadata * EXTENT_BYTES;
        let spare = metadata_bytes.saturating_sub(self.spare_bytes(group)) / EXTENT_BYTES;
        if !self.room(&mut output, group, wanted + metadata + spare) {
            return output;
        }
        output.say(
            "Thin pool volume with chunk size 64.00 KiB can address at most <15.88 TiB of data.",
        );
        let pool = Pool {
            blocks: BTreeMap::new(),
            next_block: 0,
            metadata_bytes,
            transaction: 0,
            zeroes: line.yes_or_no("zero").unwrap_or(true),
            error_when_full: false,
            out_of_data: false,
            occupied: 0,
            occupied_metadata: 0,
        };
        self.add(group, name, wanted * EXTENT_BYTES, Kind::Pool(pool));
        created(output, name)
    }

    fn create_thin(
        &mut self,
        line: &Line,
        mut output: Output,
        group: &str,
        name: &str,
        pool: &str,
    ) -> Output {
        let bytes = line.value("virtualsize").and_then(size).expect("checked");
        let pool = self.find(group, pool).filter(|&id| self.lv(id).pool().is_some());
        let pool = pool.unwrap_or_else(|| line.unknown("what is said of a missing pool"));
        if !self.pool_has_room(&mut output, pool) {
            return output;
        }
        let thin = self.new_thin(pool, BTreeMap::new());
        let id = self.add(group, name, extents(bytes) * EXTENT_BYTES, Kind::Thin(thin));
        self.dress(line, id, true);
        self.warn_of_promises(line, &mut output, group, Some(pool));
        created(output, name)
    }

    fn new_thin(&mut self, pool: Id, map: BTreeMap<u64, u64>) -> Thin {
        let used: BTreeSet<u64> =
            self.thins(pool).iter().map(|&t| self.lv(t).thin().expect("thin").thin_id).collect();
        let thin_id = (1..).find(|n| !used.contains(n)).expect("a number");
        let p = self.pool_mut(pool);
        let transaction = p.transaction;
        p.transaction += 1;
        Thin { pool, map, origin: None, external: None, merging: false, thin_id, transaction }
    }

    fn create_snapshot(
        &mut self,
        line: &Line,
        mut output: Output,
        group: &str,
        name: &str,
        origin: Id,
        pool: Option<&str>,
    ) -> Output {
        let sized = line.has("size") || line.has("extents");
        if let Some(pool) = pool {
            return self.create_external(line, output, group, name, origin, pool);
        }
        if self.lv(origin).thin().is_some() && !sized {
            return self.create_thin_snapshot(line, output, group, name, origin);
        }
        let Some(amount) = self.amount(line, &mut output) else {
            return output.failed("Please specify either size or extents with snapshots.");
        };
        if self.lv(origin).pool().is_some() {
            return output.failed("Snapshots of thin pool type volumes are not supported.");
        }
        if self.lv(origin).cow().is_some() {
            return output.failed("Snapshots of snapshots are not supported.");
        }
        if self.merging_into(origin).is_some() {
            return output
                .failed("Snapshots of an origin that has a merging snapshot are not supported.");
        }
        if line.has("permission") || line.has("setactivationskip") || line.has("activate") {
            line.unknown("this option with a thick snapshot");
        }
        let most = most_extents(self.lv(origin).bytes);
        let free = self.free_extents(group);
        let wanted = match amount {
            Amount::PercentOfOrigin(percent) => {
                let wanted = (most * percent).div_ceil(100).min(most);
                if free == 0 {
                    return output.failed(&format!(
                        "Insufficient suitable allocatable extents found for logical volume {name}."
                    ));
                } else if wanted > free {
                    line.unknown("a percentage with too little room");
                }
                wanted
            }
            Amount::Extents(n) if n > most => {
                output.say(&format!(
                    "Reducing COW size {} down to maximum usable size {}.",
                    display_size(n * EXTENT_BYTES),
                    display_size(most * EXTENT_BYTES)
                ));
                most
            }
            Amount::Extents(n) => n,
            Amount::PercentOfFree(_) => line.unknown("a store of all free room"),
        };
        if !self.room(&mut output, group, wanted) {
            return output;
        }
        // The store is a volume of its own first, then joined: two commits.
        let cow = Cow { origin, store: Blocks::new(), invalid: false, merge: None };
        let kind = if self.half { Kind::Linear(Blocks::new()) } else { Kind::Cow(cow) };
        let id = self.add(group, name, wanted * EXTENT_BYTES, kind);
        self.dress(line, id, true);
        if !self.half {
            self.lv_mut(id).active = self.lv(origin).active;
        }
        self.warn_of_promises(line, &mut output, group, None);
        created(output, name)
    }

    fn create_thin_snapshot(
        &mut self,
        line: &Line,
        mut output: Output,
        group: &str,
        name: &str,
        origin: Id,
    ) -> Output {
        if self.lv(origin).thin().expect("thin").merging {
            line.unknown("a snapshot of a snapshot that is being merged");
        }
        let pool = self.lv(origin).thin().expect("thin").pool;
        if !self.pool_has_room(&mut output, pool) {
            return output;
        }
        let external = self.lv(origin).thin().expect("thin").external;
        let bytes = self.lv(origin).bytes;
        let map = self.share(origin);
        let thin = Thin { origin: Some(origin), external, ..self.new_thin(pool, map) };
        let id = self.add(group, name, bytes, Kind::Thin(thin));
        self.lv_mut(id).skip = true;
        self.dress(line, id, false);
        self.warn_of_promises(line, &mut output, group, Some(pool));
        created(output, name)
    }

    fn create_external(
        &mut self,
        line: &Line,
        mut output: Output,
        group: &str,
        name: &str,
        origin: Id,
        pool: &str,
    ) -> Output {
        let pool = self.find(group, pool).filter(|&id| self.lv(id).pool().is_some());
        let pool = pool.unwrap_or_else(|| line.unknown("what is said of a missing pool"));
        let lv = self.lv(origin);
        if !matches!(lv.kind, Kind::Linear(_)) {
            line.unknown("an external origin of this kind");
        }
        if lv.writable {
            return output.failed("Cannot use writable LV as the external origin.");
        }
        if lv.active {
            line.unknown("an external origin that is active");
        }
        let bytes = lv.bytes;
        if !self.pool_has_room(&mut output, pool) {
            return output;
        }
        let thin = Thin { external: Some(origin), ..self.new_thin(pool, BTreeMap::new()) };
        let id = self.add(group, name, bytes, Kind::Thin(thin));
        self.dress(line, id, true);
        self.warn_of_promises(line, &mut output, group, Some(pool));
        created(output, name)
    }

    /// Tags, permission, flags and activation of a new volume.
    fn dress(&mut self, line: &Line, id: Id, by_default: bool) {
        let tags = line.values("addtag");
        let skip = line.yes_or_no("setactivationskip");
        let writable = line.permission().unwrap_or(true);
        let wanted = line.yes_or_no("activate").unwrap_or(true);
        let half = self.half;
        let lv = self.lv_mut(id);
        // LVM takes a tag with or without its sign.
        lv.tags = tags.iter().map(|t| t.strip_prefix('@').unwrap_or(t).to_owned()).collect();
        lv.writable = writable;
        lv.skip = skip.unwrap_or(!by_default && lv.skip);
        lv.active = wanted && !lv.skip && !(half && lv.thin().is_some());
    }
}

fn created(mut output: Output, name: &str) -> Output {
    output.say(&format!("Logical volume \"{name}\" created."));
    output
}
