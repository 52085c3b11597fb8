//! What a report shows of a volume, field by field.
//!
//! Beside the recordings, from LVM's `report.c` and `lv_manip.c`: `lv_device_open` is `unknown`
//! where the device does not exist; `lv_snapshot_invalid` is set for a thick snapshot that is not
//! active, and `lv_merge_failed` unknown, since its status cannot be read then.

use super::content::cow_chunks_used;
use super::report::{fraction, time};
use super::state::{COW_CHUNK_BYTES, EXTENT_BYTES, Id, Kind, Merge, POOL_CHUNK_BYTES, State};

/// A line of a report.
#[derive(Clone, Debug)]
pub(super) enum Row {
    Group(String),
    Lv(Id),
    /// The two volumes a pool consists of, and the spare for the second.
    PoolData(Id),
    PoolMetadata(Id),
    Spare(String),
}

/// A value, and whether it is a size to be said in units.
pub(super) enum Value {
    Text(String),
    Size(u64),
}

impl State {
    pub(super) fn row_group(&self, row: &Row) -> String {
        match row {
            Row::Group(group) | Row::Spare(group) => group.clone(),
            Row::Lv(id) | Row::PoolData(id) | Row::PoolMetadata(id) => self.lv(*id).group.clone(),
        }
    }

    /// The name without brackets: what reports are sorted by.
    pub(super) fn row_name(&self, row: &Row) -> String {
        match row {
            Row::Group(group) => group.clone(),
            Row::Lv(id) => self.lv(*id).name.clone(),
            Row::PoolData(id) => format!("{}_tdata", self.lv(*id).name),
            Row::PoolMetadata(id) => format!("{}_tmeta", self.lv(*id).name),
            Row::Spare(_) => "lvol0_pmspare".to_owned(),
        }
    }

    /// A field's value; none if the model does not have the field.
    pub(super) fn field(&self, row: &Row, field: &str, epoch: bool) -> Option<Value> {
        self.group_field(&self.row_group(row), field).or_else(|| match row {
            Row::Group(_) => None,
            Row::Lv(id) => self.lv_field(*id, field, epoch),
            _ => self.internal_field(row, field, epoch),
        })
    }

    fn group_field(&self, group: &str, field: &str) -> Option<Value> {
        let lvs = || self.lvs.values().filter(|lv| lv.group == group);
        let text = match field {
            "vg_name" => group.to_owned(),
            "vg_uuid" => self.groups[group].uuid.clone(),
            "vg_attr" => "wz--n-".to_owned(),
            "vg_size" => return Some(Value::Size(self.groups[group].extents * EXTENT_BYTES)),
            "vg_free" => return Some(Value::Size(self.free_extents(group) * EXTENT_BYTES)),
            "vg_extent_size" => return Some(Value::Size(EXTENT_BYTES)),
            "lv_count" => lvs().filter(|lv| !lv.hidden()).count().to_string(),
            "snap_count" => lvs().filter(|lv| lv.cow().is_some()).count().to_string(),
            _ => return None,
        };
        Some(Value::Text(text))
    }

    fn lv_field(&self, id: Id, field: &str, epoch: bool) -> Option<Value> {
        let lv = self.lv(id);
        let set = |is: bool, word: &str| if is { word.to_owned() } else { String::new() };
        let (thin, cow, pool) = (lv.thin(), lv.cow(), lv.pool());
        let origin = cow.map(|c| c.origin).or(thin.and_then(|t| t.origin.or(t.external)));
        let usable = cow.is_some_and(|c| lv.active && !c.invalid);
        let text = match field {
            "lv_name" if lv.hidden() => format!("[{}]", lv.name),
            "lv_name" => lv.name.clone(),
            "lv_full_name" => lv.full_name(),
            "lv_uuid" => lv.uuid.clone(),
            "lv_size" => return Some(Value::Size(lv.bytes)),
            "lv_attr" => self.attributes(id),
            "lv_layout" => match lv.kind {
                Kind::Linear(_) | Kind::Cow(_) => "linear".to_owned(),
                Kind::Thin(_) => "thin,sparse".to_owned(),
                Kind::Pool(_) => "thin,pool".to_owned(),
            },
            "lv_role" => self.role(id),
            "lv_permissions" => if lv.writable { "writeable" } else { "read-only" }.to_owned(),
            "lv_time" => time(lv.created, epoch),
            "lv_tags" => lv.tags.iter().cloned().collect::<Vec<_>>().join(","),
            "lv_active" => set(lv.active, "active"),
            "lv_device_open" if !lv.active => "unknown".to_owned(),
            "lv_device_open" => set(pool.is_some() || !lv.openers.is_empty(), "open"),
            "lv_skip_activation" => set(lv.skip, "skip activation"),
            "lv_autoactivation" => set(lv.auto, "enabled"),
            "lv_health_status" => set(pool.is_some_and(|p| p.out_of_data), "out_of_data"),
            "lv_when_full" => match pool {
                Some(p) => if p.error_when_full { "error" } else { "queue" }.to_owned(),
                None => String::new(),
            },
            "lv_check_needed" => set(pool.is_none(), "unknown"),
            "lv_snapshot_invalid" if cow.is_none() || !lv.active => "unknown".to_owned(),
            "lv_snapshot_invalid" => set(!usable, "snapshot invalid"),
            "lv_merge_failed" => set(!cow.is_some_and(|_| lv.active), "unknown"),
            "lv_merging" => set(lv.hidden() || self.merging_into(id).is_some(), "merging"),
            "origin" => origin.map(|o| self.lv(o).name.clone()).unwrap_or_default(),
            "origin_uuid" => origin.map(|o| self.lv(o).uuid.clone()).unwrap_or_default(),
            "pool_lv" => thin.map(|t| self.lv(t.pool).name.clone()).unwrap_or_default(),
            "data_percent" => self.data_percent(id),
            "metadata_percent" => match pool {
                Some(p) if lv.active => {
                    fraction(self.pool_metadata_used(id), p.metadata_bytes / 4096)
                }
                _ => String::new(),
            },
            // Of thin volumes and pools it says what `data_percent` does.
            "snap_percent" => self.data_percent(id),
            "copy_percent" | "move_pv" | "mirror_log" | "convert_lv" => String::new(),
            "thin_count" => pool.map(|_| self.thins(id).len().to_string()).unwrap_or_default(),
            "thin_id" => thin.map(|t| t.thin_id.to_string()).unwrap_or_default(),
            "transaction_id" => match (thin, pool) {
                (Some(t), _) => t.transaction.to_string(),
                (_, Some(p)) => p.transaction.to_string(),
                _ => String::new(),
            },
            "chunk_size" => {
                let bytes = match lv.kind {
                    Kind::Cow(_) => COW_CHUNK_BYTES,
                    Kind::Pool(_) => POOL_CHUNK_BYTES,
                    _ => 0,
                };
                return Some(Value::Size(bytes));
            }
            "lv_metadata_size" => match pool {
                Some(p) => return Some(Value::Size(p.metadata_bytes)),
                None => String::new(),
            },
            "discards" => set(pool.is_some() || thin.is_some(), "passdown"),
            "zero" => match pool {
                Some(p) => set(p.zeroes, "zero"),
                None => set(thin.is_none(), "unknown"),
            },
            "seg_monitor" => String::new(),
            "lv_read_ahead" => lv.read_ahead.map_or("auto".to_owned(), |bytes| bytes.to_string()),
            "lv_minor" => "-1".to_owned(),
            _ => return None,
        };
        Some(Value::Text(text))
    }

    /// The merge that the kernel does into this volume.
    fn running_into(&self, id: Id) -> Option<Id> {
        let merging = self.merging_into(id)?;
        let running = |m| matches!(m, Some(Merge::Running { .. }));
        self.lv(merging).cow().is_some_and(|c| running(c.merge)).then_some(merging)
    }

    /// How much of a merge is left: nothing once the kernel has copied all.
    fn left_to_merge(&self, id: Id) -> &'static str {
        let merging = self.running_into(id).and_then(|m| self.lv(m).cow());
        match merging.and_then(|c| c.merge) {
            Some(Merge::Running { looks: 0, .. }) => "0.00",
            _ => "50.00",
        }
    }

    fn data_percent(&self, id: Id) -> String {
        let lv = self.lv(id);
        if !lv.active {
            return String::new();
        }
        match &lv.kind {
            Kind::Linear(_) if self.running_into(id).is_some() => self.left_to_merge(id).to_owned(),
            Kind::Linear(_) => String::new(),
            Kind::Cow(cow) if cow.invalid => "100.00".to_owned(),
            // The header and an empty list do not count.
            Kind::Cow(cow) if cow.store.is_empty() => "0.00".to_owned(),
            Kind::Cow(cow) => {
                fraction(cow_chunks_used(cow.store.len() as u64), lv.bytes / COW_CHUNK_BYTES)
            }
            Kind::Thin(thin) => fraction(thin.map.len() as u64, lv.bytes / POOL_CHUNK_BYTES),
            Kind::Pool(_) => fraction(self.pool_chunks_used(id), lv.bytes / POOL_CHUNK_BYTES),
        }
    }

    /// The ten letters of `lvs(8)`.
    fn attributes(&self, id: Id) -> String {
        let lv = self.lv(id);
        let has_cows = !self.cows(id).is_empty();
        let merging = self.merging_into(id).is_some();
        let kind = match &lv.kind {
            _ if merging => 'O',
            _ if has_cows || !self.dependents(id).is_empty() => 'o',
            Kind::Linear(_) => '-',
            Kind::Cow(_) if lv.hidden() => 'S',
            Kind::Cow(_) => 's',
            Kind::Thin(_) if lv.hidden() => 'S',
            Kind::Thin(_) => 'V',
            Kind::Pool(_) => 't',
        };
        let state = match lv.cow() {
            _ if !lv.active => '-',
            Some(cow) if cow.invalid => {
                if lv.suspended {
                    'S'
                } else {
                    'I'
                }
            }
            _ if lv.suspended => 's',
            _ => 'a',
        };
        let pool = lv.thin().map(|t| self.lv(t.pool)).or(lv.pool().map(|_| lv));
        let open = lv.active && (lv.pool().is_some() || !lv.openers.is_empty());
        let target = match &lv.kind {
            Kind::Thin(_) | Kind::Pool(_) => 't',
            Kind::Cow(_) => 's',
            Kind::Linear(_) if has_cows => 's',
            Kind::Linear(_) => '-',
        };
        let zeroes = pool.and_then(|p| p.pool()).is_some_and(|p| p.zeroes);
        let letter = |is: bool, letter: char| if is { letter } else { '-' };
        [
            kind,
            if lv.writable { 'w' } else { 'r' },
            'i',
            '-',
            state,
            letter(open, 'o'),
            target,
            letter(zeroes, 'z'),
            letter(lv.pool().is_some_and(|p| p.out_of_data), 'D'),
            letter(lv.skip, 'k'),
        ]
        .into_iter()
        .collect()
    }

    /// `lv_layout_and_role` of LVM.
    fn role(&self, id: Id) -> String {
        let lv = self.lv(id);
        if lv.pool().is_some() {
            return "private".to_owned();
        }
        let mut words = vec!["public"];
        let mut add = |count: usize, one: &'static str, many: &'static str| {
            if count > 0 && !words.contains(&"origin") {
                words.push("origin");
            }
            words.extend((count > 0).then_some(one));
            words.extend((count > 1).then_some(many));
        };
        add(self.thin_snapshots(id).len(), "thinorigin", "multithinorigin");
        let thin = lv.thin().is_some_and(|t| t.origin.or(t.external).is_some());
        let (external, cows) = (self.dependents(id).len(), self.cows(id).len());
        add(external, "extthinorigin", "multiextthinorigin");
        add(cows, "thickorigin", "multithickorigin");
        if thin {
            let at = words.iter().position(|w| w.starts_with("ext") || w.starts_with("thick"));
            let at = at.unwrap_or(words.len());
            words.splice(at..at, ["snapshot", "thinsnapshot"]);
        }
        if lv.cow().is_some() {
            words.extend(["snapshot", "thicksnapshot"]);
        }
        words.join(",")
    }

    /// Fields of the volumes that LVM keeps for itself.
    fn internal_field(&self, row: &Row, field: &str, epoch: bool) -> Option<Value> {
        let (pool, bytes, attributes, role) = match row {
            Row::PoolData(id) => {
                (Some(*id), self.lv(*id).bytes, "Twi-ao----", "private,thin,pool,data")
            }
            Row::PoolMetadata(id) => {
                let bytes = self.lv(*id).pool().expect("a pool").metadata_bytes;
                (Some(*id), bytes, "ewi-ao----", "private,thin,pool,metadata")
            }
            Row::Spare(group) => {
                (None, self.spare_bytes(group), "ewi-------", "private,pool,spare")
            }
            _ => unreachable!("a volume of LVM's own"),
        };
        let active = pool.is_some_and(|id| self.lv(id).active);
        let attributes = if active { attributes } else { &attributes.replace("ao", "--") };
        let text = match field {
            "lv_name" => format!("[{}]", self.row_name(row)),
            "lv_full_name" => format!("{}/{}", self.row_group(row), self.row_name(row)),
            // Each has one of its own; nothing here depends on which.
            "lv_uuid" => {
                let of = pool.map_or_else(
                    || self.groups[&self.row_group(row)].uuid.clone(),
                    |id| self.lv(id).uuid.clone(),
                );
                let other = |c: char| match row {
                    Row::PoolMetadata(_) if c.is_lowercase() => c.to_ascii_uppercase(),
                    Row::PoolMetadata(_) => c.to_ascii_lowercase(),
                    _ => c,
                };
                of.chars().rev().map(other).collect()
            }
            "lv_size" => return Some(Value::Size(bytes)),
            "lv_attr" => attributes.to_owned(),
            "lv_layout" => "linear".to_owned(),
            "lv_role" => role.to_owned(),
            "lv_permissions" => "writeable".to_owned(),
            "lv_time" => time(pool.map_or(self.clock, |id| self.lv(id).created), epoch),
            "lv_active" => if active { "active" } else { "" }.to_owned(),
            "lv_read_ahead" => "auto".to_owned(),
            "lv_minor" => "-1".to_owned(),
            "lv_device_open" => if active { "open" } else { "unknown" }.to_owned(),
            "lv_autoactivation" => "enabled".to_owned(),
            "lv_snapshot_invalid" | "lv_merge_failed" | "lv_check_needed" => "unknown".to_owned(),
            "lv_tags" | "lv_skip_activation" | "lv_health_status" | "lv_when_full"
            | "lv_merging" | "origin" | "origin_uuid" | "pool_lv" | "data_percent"
            | "metadata_percent" | "snap_percent" | "copy_percent" | "move_pv" | "mirror_log"
            | "convert_lv" => String::new(),
            _ => return None,
        };
        Some(Value::Text(text))
    }
}
