//! `lvremove` and `lvrename`.

use super::create::bad_name;
use super::options::{Line, Output};
use super::state::{Blocks, Id, Kind, State};

impl State {
    /// The volumes a command line names, in its order; those that are missing are said to be.
    pub(super) fn named(&self, line: &Line, output: &mut Output) -> Vec<Id> {
        let mut all = Vec::new();
        let mut missing = Vec::new();
        if line.positional.is_empty() {
            line.unknown("a change without a volume");
        }
        for place in &line.positional {
            let place = place.strip_prefix("/dev/").unwrap_or(place);
            let Some((group, name)) = place.split_once('/') else {
                line.unknown("a change of a whole group");
            };
            if !self.groups.contains_key(group) {
                missing.push(format!("Volume group \"{group}\" not found"));
                missing.push(format!("Cannot process volume group {group}"));
            } else if let Some(id) = self.find(group, name) {
                all.push(id);
            } else {
                missing.push(format!("Failed to find logical volume \"{place}\""));
            }
        }
        // Recorded: what is there is done first.
        for text in missing {
            output.fail(&text);
        }
        all.retain(|&id| self.selected(line, id));
        all
    }

    pub(super) fn remove(&mut self, line: &Line) -> Output {
        let mut output = Output::new(line);
        let targets = self.named(line, &mut output);
        let mut order: Vec<Id> = Vec::new();
        for id in targets {
            for dependent in self.removed_with(id).into_iter().chain([id]) {
                if !order.contains(&dependent) {
                    order.push(dependent);
                }
            }
            // What cannot go is told before anything that depends on it goes.
            if let Some(text) = self.refuses_removal(line, id) {
                if text.ends_with("not removed.") {
                    output.err += &question(&self.lv(id).full_name());
                }
                output.fail(&text);
                return output;
            }
        }
        let last = order.last().copied();
        for id in order {
            if !self.lvs.contains_key(&id) {
                continue;
            }
            if self.half && Some(id) == last {
                self.half_remove(id);
                break;
            }
            if let Some(text) = self.refuses_removal(line, id)
                && !self.lv(id).hidden()
            {
                output.fail(&text);
                break;
            }
            let name = self.lv(id).name.clone();
            self.drop_lv(id);
            output.say(&format!("Logical volume \"{name}\" successfully removed."));
        }
        output
    }

    /// What LVM removes first: snapshots of a thick volume, volumes of a pool, thin volumes that
    /// show this one where they have nothing.
    fn removed_with(&self, id: Id) -> Vec<Id> {
        let mut first: Vec<Id> = Vec::new();
        let next = [self.cows(id), self.thins(id), self.dependents(id)].concat();
        for dependent in next {
            first.extend(self.removed_with(dependent));
            first.push(dependent);
        }
        first
    }

    fn refuses_removal(&self, line: &Line, id: Id) -> Option<String> {
        let lv = self.lv(id);
        let name = lv.full_name();
        if lv.hidden() {
            return Some(match lv.thin().and_then(|t| t.origin) {
                None => format!("Can't remove merging snapshot logical volume {name}."),
                Some(origin) => {
                    let origin = self.lv(origin).full_name();
                    format!("Unable to remove {name}, volume is merged to {origin}.")
                }
            });
        }
        if let Some(text) = self.in_use(id) {
            return Some(text);
        }
        if !line.has("yes") && !line.has("force") {
            if !lv.active {
                line.unknown("what is asked of an inactive volume");
            }
            // It asks, and nobody answers.
            return Some(format!("Logical volume {name} not removed."));
        }
        None
    }

    /// The first of two commits.
    fn half_remove(&mut self, id: Id) {
        if self.lv(id).cow().is_some() {
            self.lv_mut(id).kind = Kind::Linear(Blocks::new());
        } else {
            self.lv_mut(id).active = false;
        }
    }

    /// Takes a volume away. Snapshots of a thin one lose the link to it.
    pub(super) fn drop_lv(&mut self, id: Id) {
        for snapshot in self.thin_snapshots(id) {
            self.thin_mut(snapshot).origin = None;
        }
        self.discard(id);
        if let Some(pool) = self.lv(id).thin().map(|t| t.pool) {
            self.pool_mut(pool).transaction += 1;
        }
        self.lvs.remove(&id);
    }

    pub(super) fn rename(&mut self, line: &Line) -> Output {
        let output = Output::new(line);
        let words: Vec<&str> = line.positional.iter().map(String::as_str).collect();
        let (group, old, new) = match words.as_slice() {
            [group, old, new] => (*group, *old, *new),
            [old, new] => match (old.split_once('/'), new.split_once('/')) {
                (Some((group, old)), Some((other, new))) if group == other => (group, old, new),
                _ => line.unknown("lvrename like this"),
            },
            _ => line.unknown("lvrename like this"),
        };
        if let Some(text) = bad_name(line, new) {
            return output.misused(line, &text);
        }
        if old == new {
            return output.misused(line, "Old and new logical volume names must differ");
        }
        if !self.groups.contains_key(group) {
            return output.no_group(group);
        }
        let Some(id) = self.find(group, old) else {
            return output.failed(&format!(
                "Existing logical volume \"{old}\" not found in volume group \"{group}\""
            ));
        };
        if self.find(group, new).is_some() {
            // `lv_rename_update` of LVM.
            return output.failed(&format!(
                "Logical Volume \"{new}\" already exists in volume group \"{group}\""
            ));
        }
        if self.lv(id).hidden() {
            line.unknown("the new name of a snapshot that is being merged");
        }
        self.lv_mut(id).name = new.to_owned();
        let mut output = output;
        output.say(&format!("Renamed \"{old}\" to \"{new}\" in volume group \"{group}\""));
        output
    }
}

fn question(name: &str) -> String {
    format!("Do you really want to remove active logical volume {name}? [y/n]: [n]\n")
}
