//! Room: in a group, in a pool, and what LVM warns of; `lvextend` and `lvresize`.

use super::options::{Line, Output, display_size, extents, size};
use super::report::{hundredths, percent};
use super::state::{EXTENT_BYTES, Id, State};

impl State {
    /// Whether the group has so many extents free; says so if not.
    pub(super) fn room(&self, output: &mut Output, group: &str, wanted: u64) -> bool {
        let free = self.free_extents(group);
        if wanted > free {
            output.fail(&format!(
                "Volume group \"{group}\" has insufficient free space ({free} extents): {wanted} required."
            ));
        }
        wanted <= free
    }

    /// Whether LVM lets a pool have one more volume (`pool_below_threshold`).
    pub(super) fn pool_has_room(&self, output: &mut Output, id: Id) -> bool {
        let name = self.lv(id).full_name();
        let pool = self.lv(id).pool().expect("a pool");
        let mut room = true;
        if pool.out_of_data {
            output.warn(&format!("WARNING: Thin pool {name} is out of data space."));
            room = false;
        }
        let blocks = pool.metadata_bytes / 4096;
        let used = percent(self.pool_metadata_used(id), blocks);
        // A quarter has to be free, or 4 MiB if that is less.
        let least = 10_000 - 2_500.min((4 << 20) * 10_000 / pool.metadata_bytes);
        if used >= least {
            output.warn(&format!(
                "WARNING: Remaining free space in metadata of thin pool {name} is too low \
                 ({}% >= {}%). Resize is recommended.",
                hundredths(used),
                hundredths(least)
            ));
            room = false;
        }
        if !room {
            output.fail(&format!(
                "Cannot create new thin volume, free space in thin pool {name} reached threshold."
            ));
        }
        room
    }

    /// Warns when thin volumes could want more than there is (`pool_check_overprovisioning`).
    pub(super) fn warn_of_promises(
        &self,
        line: &Line,
        output: &mut Output,
        group: &str,
        pool: Option<Id>,
    ) {
        let lvs = || self.lvs.iter().filter(|(_, lv)| lv.group == group);
        let settings = line.config();
        let threshold =
            settings.iter().rfind(|(k, _)| k == "activation/thin_pool_autoextend_threshold");
        let threshold = threshold.map_or(100, |(_, v)| v.parse::<u32>().expect("checked"));
        let sums = |wanted: Option<Id>| -> (u64, u64) {
            let thins = lvs().filter(|(_, lv)| {
                lv.thin().is_some_and(|t| wanted.is_none_or(|pool| t.pool == pool))
            });
            let pools = lvs()
                .filter(|(id, lv)| lv.pool().is_some() && wanted.is_none_or(|pool| pool == **id));
            (thins.map(|(_, lv)| lv.bytes).sum(), pools.map(|(_, lv)| lv.bytes).sum())
        };
        if pool.is_some() && lvs().filter(|(_, lv)| lv.pool().is_some()).count() > 1 {
            line.unknown("what is warned of with several pools");
        }
        let (thin, have) = sums(pool);
        if thin <= have {
            return;
        }
        let of = match pool {
            Some(pool) => format!(" {}", self.lv(pool).full_name()),
            None => "s".to_owned(),
        };
        let (all, free) =
            (self.groups[group].extents * EXTENT_BYTES, self.free_extents(group) * EXTENT_BYTES);
        let (but, limit) = if thin > all {
            (" and the size of whole volume group", all)
        } else if thin > free {
            (if free == 0 { "" } else { " and the amount of free space in volume group" }, free)
        } else if threshold > 99 {
            ("", have)
        } else {
            return;
        };
        let limit = match limit {
            0 => "no free space in volume group".to_owned(),
            n => display_size(n),
        };
        output.warn(&format!(
            "WARNING: Sum of all thin volume sizes ({}) exceeds the size of thin pool{of}{but} \
             ({limit}).",
            display_size(thin)
        ));
        if threshold > 99 {
            output.say(
                "WARNING: You have not turned on protection against thin pools running out of \
                 space.",
            );
            output.say(
                "WARNING: Set activation/thin_pool_autoextend_threshold below 100 to trigger \
                 automatic extension of thin pools before they get full.",
            );
        }
    }

    /// `lvextend` and `lvresize`: only growing, as an administrator would.
    pub(super) fn extend(&mut self, line: &Line) -> Output {
        let mut output = Output::new(line);
        let ([place], Some(text)) = (line.positional.as_slice(), line.value("size")) else {
            line.unknown("growing like this");
        };
        let found = place.split_once('/').and_then(|(group, name)| self.find(group, name));
        let id = found.unwrap_or_else(|| line.unknown("the volume"));
        let old = self.lv(id).bytes;
        let asked = size(text.trim_start_matches('+'))
            .filter(|n| n % EXTENT_BYTES == 0)
            .unwrap_or_else(|| line.unknown("the size"));
        let new = if text.starts_with('+') { old + asked } else { asked };
        if new <= old || self.lv(id).thin().is_some() {
            line.unknown("a volume that does not grow, or a thin one");
        }
        let group = self.lv(id).group.clone();
        if !self.room(&mut output, &group, (new - old) / EXTENT_BYTES) {
            return output;
        }
        self.lv_mut(id).bytes = new;
        let name = self.lv(id).full_name();
        let what = match self.lv(id).pool() {
            Some(_) => format!("{name}_tdata"),
            None => name.clone(),
        };
        output.say(&format!(
            "Size of logical volume {what} changed from {} ({} extents) to {} ({} extents).",
            display_size(old),
            extents(old),
            display_size(new),
            extents(new)
        ));
        output.say(&format!("Logical volume {name} successfully resized."));
        if self.lv(id).pool().is_some() {
            self.pool_mut(id).out_of_data = false;
        }
        output
    }
}
