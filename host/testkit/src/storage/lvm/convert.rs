//! `lvconvert --merge`, and how merges go on.

use super::options::{Line, Output};
use super::state::{Id, Kind, Merge, State};

impl State {
    pub(super) fn convert(&mut self, line: &Line) -> Output {
        let mut output = Output::new(line);
        let named = self.named(line, &mut output);
        let id = match (named.as_slice(), output.code) {
            ([id], 0) => *id,
            ([], 5) => return output,
            _ => line.unknown("lvconvert of several volumes"),
        };
        let name = self.lv(id).full_name();
        let refused = |mut output: Output, why: &str| {
            output.fail(&format!("Command on LV {name} {why}"));
            output.fail(&format!("Command not permitted on LV {name}."));
            output
        };
        let kind = match &self.lv(id).kind {
            Kind::Linear(_) | Kind::Cow(_) => "linear",
            Kind::Thin(_) => "thin",
            Kind::Pool(_) => "thinpool",
        };
        if line.has("startpoll") {
            // LVM's command definitions: `lvconvert --startpoll LV_mirror_raid`.
            return refused(output, &format!("does not accept LV type {kind}."));
        }
        if !line.has("merge") {
            line.unknown("lvconvert of this kind");
        }
        match &self.lv(id).kind {
            Kind::Pool(_) => refused(output, "does not accept LV type thinpool."),
            // Recorded for an origin of snapshots; LVM takes it for the leg of a mirror.
            Kind::Linear(_) => output
                .failed(&format!("{name} cannot be merged because --trackchanges was not used.")),
            Kind::Cow(cow) if cow.merge.is_some() => {
                refused(output, "is invalid on LV with properties: lv_is_merging_cow .")
            }
            Kind::Cow(cow) if cow.invalid => {
                output.failed(&format!("Unable to merge invalidated snapshot LV {name}."))
            }
            Kind::Cow(cow) => {
                let origin = cow.origin;
                self.merge_thick(line, output, id, origin)
            }
            Kind::Thin(thin) if thin.merging => line.unknown("a second merge of a thin snapshot"),
            Kind::Thin(thin) => match thin.origin {
                None => output.failed(&format!("{name} is not a mergeable logical volume.")),
                Some(origin) => self.merge_thin(line, output, id, origin),
            },
        }
    }

    fn merge_thick(&mut self, line: &Line, mut output: Output, id: Id, origin: Id) -> Output {
        let (name, into) = (self.lv(id).full_name(), self.lv(origin).full_name());
        if self.merging_into(origin).is_some() {
            line.unknown("a merge beside another");
        }
        if !matches!(self.lv(origin).kind, Kind::Linear(_)) {
            line.unknown("a merge into a thin volume with thick snapshots");
        }
        let active = self.lv(origin).active;
        let open = [(origin, "origin"), (id, "snapshot")]
            .into_iter()
            .find(|(id, _)| !self.lv(*id).openers.is_empty());
        self.cow_mut(id).merge = Some(Merge::Pending);
        if let (true, Some((_, what))) = (active, open) {
            output.say(&format!("Delaying merge since {what} is open."));
        }
        if !active || open.is_some() {
            output.say(&format!(
                "Merging of snapshot {name} will occur on next activation of {into}."
            ));
            return output;
        }
        self.begin_pending_merge(origin);
        output.say(&format!("Merging of volume {name} started."));
        if self.half {
            return output;
        }
        if line.has("background") {
            self.wait_for_merge(origin);
            return output;
        }
        output.say(&format!("{into}: Merged: 100.00%"));
        self.end_merge(&mut output, id);
        output
    }

    fn merge_thin(&mut self, line: &Line, mut output: Output, id: Id, origin: Id) -> Output {
        let (name, into) = (self.lv(id).full_name(), self.lv(origin).full_name());
        if self.merging_into(origin).is_some() || !self.cows(origin).is_empty() {
            line.unknown("a merge beside other snapshots that are merged or thick");
        }
        // `_lvconvert_merge_thin_snapshot` of LVM: the snapshot is deactivated first.
        let waits = if let Some(text) = self.in_use(id) {
            Some(("snapshot", text))
        } else {
            self.lv_mut(id).active = false;
            self.in_use(origin).map(|text| ("origin volume", text))
        };
        if let Some((what, text)) = waits {
            output.warn(&text);
            output.say(&format!("Delaying merge since {what} is open."));
            output.say(&format!(
                "Merging of thin snapshot {name} will occur on next activation of {into}."
            ));
            self.thin_mut(id).merging = true;
            return output;
        }
        if self.half {
            self.lv_mut(origin).active = false;
            return output;
        }
        self.replace_thin(id, origin);
        output.say(&format!("Volume {name} replaced origin {into}."));
        output
    }

    /// The snapshot takes its origin's place: name, UUID and time (`thin_merge_finish` of LVM).
    fn replace_thin(&mut self, id: Id, origin: Id) {
        let old = self.lv(origin).clone();
        let inherited = old.thin().expect("thin").origin;
        let new = self.lv_mut(id);
        assert!(
            new.tags.is_empty() && old.tags.is_empty(),
            "the model of LVM does not know which tags a thin merge keeps"
        );
        new.name = old.name;
        new.uuid = old.uuid;
        new.created = old.created;
        new.active = old.active;
        new.skip = old.skip;
        self.thin_mut(id).merging = false;
        self.drop_lv(origin);
        self.thin_mut(id).origin = inherited;
    }

    /// Begins the merge that waits for this volume, if nobody has either of the two open.
    pub(super) fn begin_pending_merge(&mut self, origin: Id) {
        let Some(id) = self.merging_into(origin) else { return };
        if !self.lv(origin).openers.is_empty() || !self.lv(id).openers.is_empty() {
            return;
        }
        if self.lv(id).thin().is_some() {
            return self.replace_thin(id, origin);
        }
        if self.cow_mut(id).merge != Some(Merge::Pending) {
            return;
        }
        let looks = self.merge_looks;
        let cow = self.cow_mut(id);
        cow.merge = Some(Merge::Running { waited_for: false, looks });
        let store = std::mem::take(&mut cow.store);
        for (block, value) in store {
            self.write(origin, block, value).expect("a thick volume takes every block");
        }
    }

    /// Somebody waits in the background for the end of the merge that is under way.
    pub(super) fn wait_for_merge(&mut self, origin: Id) {
        if self.half {
            return;
        }
        let Some(id) = self.lvs.contains_key(&origin).then(|| self.merging_into(origin)) else {
            return;
        };
        let Some(id) = id.filter(|&id| self.lv(id).cow().is_some()) else { return };
        if let Some(Merge::Running { waited_for, .. }) = &mut self.cow_mut(id).merge {
            *waited_for = true;
        }
    }

    /// Before each command: merges go on, and those that somebody waits for end.
    pub(super) fn look_at_merges(&mut self) {
        let all: Vec<Id> = self.lvs.keys().copied().collect();
        for id in all {
            let Kind::Cow(cow) = &mut self.lv_mut(id).kind else { continue };
            match &mut cow.merge {
                Some(Merge::Running { waited_for: true, looks: 0 }) => self.drop_lv(id),
                // The kernel goes on, whether or not somebody waits for it.
                Some(Merge::Running { looks, .. }) => *looks = looks.saturating_sub(1),
                _ => {}
            }
        }
    }

    fn end_merge(&mut self, output: &mut Output, id: Id) {
        let origin = self.lv(id).cow().expect("a thick snapshot").origin;
        let (name, into) = (self.lv(id).name.clone(), self.lv(origin).full_name());
        self.drop_lv(id);
        output.say(&format!("Merge of snapshot into logical volume {into} has finished."));
        output.say(&format!("Logical volume \"{name}\" successfully removed."));
    }
}
