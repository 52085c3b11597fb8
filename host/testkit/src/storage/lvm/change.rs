//! `lvchange`.

use super::options::{Line, Output};
use super::state::{Id, SECTOR_BYTES, State};

impl State {
    pub(super) fn change(&mut self, line: &Line) -> Output {
        let mut output = Output::new(line);
        if let Some((option, tag)) = line.bad_tag() {
            return output.unreadable(option, &tag);
        }
        let targets = self.named(line, &mut output);
        for id in targets {
            if self.change_properties(line, &mut output, id) && output.code == 0 {
                let name = self.lv(id).full_name();
                output.say(&format!("Logical volume {name} changed."));
            }
            if output.code != 0 {
                break;
            }
            match line.yes_or_no("activate") {
                Some(true) => self.change_to_active(line, id),
                Some(false) => self.change_to_inactive(line, &mut output, id),
                None => {}
            }
            if line.has("refresh") {
                self.refresh(id);
            }
            if let Some(poll) = line.yes_or_no("poll") {
                if !poll {
                    line.unknown("the end of waiting");
                }
                self.wait_for_merge(id);
            }
        }
        output
    }

    /// Whether anything was to be changed.
    fn change_properties(&mut self, line: &Line, output: &mut Output, id: Id) -> bool {
        let name = self.lv(id).full_name();
        let mut asked = false;
        if self.lv(id).hidden() {
            line.unknown("a change of a snapshot that is being merged");
        }
        if let Some(writable) = line.permission() {
            asked = true;
            let external = !self.dependents(id).is_empty();
            let lv = self.lv_mut(id);
            if lv.pool().is_some() || lv.cow().is_some() || external {
                line.unknown("the permission of a volume of this kind");
            }
            // `_lvchange_permission` of LVM.
            if lv.writable == writable {
                let already = if writable { "writable" } else { "read only" };
                output.fail(&format!("Logical volume \"{name}\" is already {already}."));
                return asked;
            }
            lv.writable = writable;
        }
        if let Some(error) = line.yes_or_no("errorwhenfull") {
            asked = true;
            if self.lv(id).pool().is_none() {
                line.unknown("errorwhenfull of a volume that is no pool");
            }
            self.pool_mut(id).error_when_full = error;
        }
        let lv = self.lv_mut(id);
        if let Some(text) = line.value("readahead") {
            asked = true;
            let Ok(sectors) = text.parse::<u64>() else { line.unknown("the readahead") };
            lv.read_ahead = Some(sectors * SECTOR_BYTES);
        }
        if let Some(skip) = line.yes_or_no("setactivationskip") {
            asked = true;
            lv.skip = skip;
        }
        if let Some(auto) = line.yes_or_no("setautoactivation") {
            asked = true;
            lv.auto = auto;
        }
        let bare = |tag: String| tag.strip_prefix('@').map(str::to_owned).unwrap_or(tag);
        for tag in line.values("addtag") {
            asked = true;
            lv.tags.insert(bare(tag));
        }
        // A tag that is not there is no failure.
        for tag in line.values("deltag") {
            asked = true;
            lv.tags.remove(&bare(tag));
        }
        asked
    }

    fn change_to_active(&mut self, line: &Line, id: Id) {
        let lv = self.lv(id);
        if lv.cow().is_some() {
            line.unknown("the activation of a snapshot, which is that of its origin");
        }
        // Recorded: nothing is done, and the exit code is 0.
        if lv.skip && !line.has("ignoreactivationskip") {
            return;
        }
        self.activate(id);
    }

    fn change_to_inactive(&mut self, line: &Line, output: &mut Output, id: Id) {
        let lv = self.lv(id);
        if lv.cow().is_some() || lv.pool().is_some() {
            line.unknown("the deactivation of a volume of this kind");
        }
        if lv.suspended {
            line.unknown("the deactivation of a suspended volume");
        }
        let mut all = vec![id];
        all.extend(self.cows(id));
        for id in all {
            if let Some(text) = self.in_use(id) {
                output.fail(&text);
                return;
            }
        }
        self.deactivate(id);
    }

    /// A merge that waited begins, unless somebody still has the volumes open.
    fn refresh(&mut self, id: Id) {
        if self.lv(id).active {
            self.lv_mut(id).suspended = false;
            self.begin_pending_merge(id);
            self.wait_for_merge(id);
        }
    }
}
