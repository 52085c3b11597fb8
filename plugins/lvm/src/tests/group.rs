//! A small LVM in memory: one group, the commands of the grants, and the states in which a killed
//! command leaves them. It knows what the planners rely on and panics at anything else.
//!
//! Content is a number per volume: `NOW` is what the machine has, `THEN` what the slot holds.

use snapslot_plugin_sdk::double::{Recorded, RecordedPlan};
use snapslot_plugin_sdk::{
    Answer, Argument, Failure, FailureKind, Image, Role, SavedCopy, Saving, Target,
};

/// What the machine has.
pub(super) const NOW: u32 = 2;
/// What the slot's snapshot holds.
pub(super) const THEN: u32 = 1;

/// Bytes of every volume.
const SIZE: u64 = 32 << 20;
const EXTENT: u64 = 4 << 20;

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) uuid: String,
    pub(super) content: u32,
    pub(super) thin: bool,
    /// UUID of what it is a snapshot of.
    pub(super) origin: Option<String>,
    pub(super) tags: Vec<String>,
    pub(super) active: bool,
    pub(super) open: bool,
    pub(super) read_only: bool,
    pub(super) skipped: bool,
    pub(super) auto: bool,
    pub(super) merging: bool,
    /// Bytes of a thick snapshot's store.
    pub(super) store: u64,
}

/// The group `vg` and its volume `vm1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) volumes: Vec<Volume>,
    /// UUIDs given so far.
    given: u32,
    pub(super) free: u64,
}

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As it should.
    Well,
    /// Killed inside, where that leaves something.
    Inside,
}

impl Group {
    /// A group with `vm1`, thin or thick.
    pub(super) fn new(thin: bool) -> Group {
        let mut group = Group { volumes: Vec::new(), given: 0, free: 1 << 30 };
        let volume = group.volume("vm1", NOW, thin);
        group.volumes.push(volume);
        group
    }

    /// The same with a slot that is held.
    pub(super) fn held(thin: bool) -> Group {
        let mut group = Group::new(thin);
        let slot = format!("vm1_snapslot_{}", super::MARK);
        let mut snapshot = group.volume(&slot, THEN, thin);
        snapshot.origin = Some(group.find("vm1").expect("the volume").uuid.clone());
        snapshot.tags =
            vec![format!("snapslot.mark={}", super::MARK), "snapslot.taken=17.5".to_owned()];
        snapshot.active = !thin;
        snapshot.read_only = thin;
        snapshot.skipped = thin;
        snapshot.store = 12 << 20;
        group.free -= snapshot.store;
        group.volumes.push(snapshot);
        group
    }

    fn volume(&mut self, name: &str, content: u32, thin: bool) -> Volume {
        self.given += 1;
        Volume {
            name: name.to_owned(),
            uuid: format!("aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-{:06}", self.given),
            content,
            thin,
            origin: None,
            tags: Vec::new(),
            active: true,
            open: false,
            read_only: false,
            skipped: false,
            auto: true,
            merging: false,
            store: 0,
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.name == name)
    }

    pub(super) fn find_mut(&mut self, name: &str) -> Option<&mut Volume> {
        self.volumes.iter_mut().find(|v| v.name == name)
    }

    /// The snapshot of the slot, if one is there that is a snapshot.
    pub(super) fn slot(&self) -> Option<&Volume> {
        let slot = self.find(&format!("vm1_snapslot_{}", super::MARK))?;
        (slot.thin || slot.origin.is_some()).then_some(slot)
    }

    /// Runs a plan to its end, or to the first command that fails.
    pub(super) fn run(&mut self, plan: &RecordedPlan) -> Result<(), String> {
        plan.steps.iter().try_for_each(|step| self.step(step, End::Well).map(|_| ()))
    }

    /// Runs one command. Says whether being killed inside it leaves anything of its own.
    pub(super) fn step(&mut self, step: &Recorded, end: End) -> Result<bool, String> {
        let Recorded::Act(action, arguments) = step else { panic!("a plan has {step:?}") };
        let hole = |name: &str| -> &str {
            let found = arguments.iter().find(|a: &&Argument| a.hole == name);
            &found.unwrap_or_else(|| panic!("{action} without {name}: {arguments:?}")).value
        };
        let tag = |kind: &str| format!("snapslot.{kind}={}", hole("mark"));
        let inside = end == End::Inside;
        match action.as_str() {
            "take-thin" | "take-thick" => {
                let thin = action == "take-thin";
                let origin = self.lv("vm1")?.clone();
                if self.volumes.iter().any(|v| v.merging) && !thin {
                    return Err("a merging snapshot".to_owned());
                }
                let mut made = self.volume(hole("snapshot"), origin.content, thin);
                made.tags = vec![
                    tag("mark"),
                    format!("snapslot.taken={}.{}", hole("seconds"), hole("nanoseconds")),
                ];
                made.active = !thin && origin.active;
                made.read_only = thin;
                made.skipped = thin;
                made.origin = Some(origin.uuid);
                if !thin {
                    made.store = hole("room").parse().expect("bytes");
                    assert_eq!(made.store % EXTENT, 0, "a store of {} bytes", made.store);
                    self.free = self.free.checked_sub(made.store).ok_or("insufficient space")?;
                    if inside {
                        made.origin = None;
                    }
                }
                self.add(made)?;
                return Ok(!thin);
            }
            "remove" => {
                let lv = self.lv(hole("own"))?.clone();
                if lv.uuid == hole("uuid") {
                    if lv.open || lv.merging {
                        return Err(format!("{} in use", lv.name));
                    }
                    self.free += lv.store;
                    self.volumes.retain(|v| v.uuid != lv.uuid);
                    for v in &mut self.volumes {
                        if v.origin.as_deref() == Some(&lv.uuid) {
                            assert!(v.thin, "{} was removed together with {}", v.name, lv.name);
                            v.origin = None;
                        }
                    }
                }
            }
            "restore-make" | "restore-make-inactive" => {
                let source = self.guarded(hole("snapshot"), hole("uuid"), false)?;
                let mut made = self.volume(hole("own"), source.content, true);
                made.origin = Some(source.uuid);
                made.tags = vec![tag("new")];
                if action == "restore-make-inactive" {
                    made.tags.push(tag("inactive"));
                }
                made.active = false;
                self.add(made)?;
            }
            "restore-copy-read-only" => self.lv(hole("own"))?.read_only = true,
            "restore-copy-skip" => self.lv(hole("own"))?.skipped = true,
            "restore-copy-no-autoactivation" => self.lv(hole("own"))?.auto = false,
            "restore-copy-tag" => {
                let tag = hole("tag").to_owned();
                self.lv(hole("own"))?.tags.push(tag);
            }
            "restore-mark-old" => {
                self.guarded("vm1", hole("uuid"), true)?;
                self.lv("vm1")?.tags.push(tag("old"));
            }
            "restore-step-aside" => {
                self.guarded("vm1", hole("uuid"), true)?;
                self.rename("vm1", hole("own"))?;
            }
            "restore-step-in" => self.rename(hole("own"), "vm1")?,
            "restore-step-back" => {
                self.guarded(hole("own"), hole("uuid"), false)?;
                self.rename(hole("own"), "vm1")?;
            }
            "restore-begin" | "restore-begin-inactive" => {
                self.guarded("vm1", hole("uuid"), true)?;
                self.lv("vm1")?.tags.push(tag("restoring"));
                if action == "restore-begin-inactive" {
                    self.lv("vm1")?.tags.push(tag("inactive"));
                }
            }
            "activate" => self.activate(true)?,
            "deactivate" => self.activate(false)?,
            "restore-merge" => {
                let slot = self.guarded(hole("snapshot"), hole("uuid"), true)?;
                let volume = self.lv("vm1")?;
                volume.merging = true;
                let put_off = volume.open || !volume.active;
                self.lv(&slot.name)?.merging = true;
                if !put_off {
                    self.lv("vm1")?.content = slot.content;
                    if !inside {
                        self.end_merge();
                    }
                }
                return Ok(true);
            }
            "restore-refresh" => {
                let volume = self.lv("vm1")?;
                if volume.active && !volume.open {
                    self.end_merge();
                }
            }
            "unmark" => {
                let gone = ["new", "old", "restoring", "inactive"].map(tag);
                self.lv("vm1")?.tags.retain(|t| !gone.contains(t));
            }
            _ => panic!("the plan has {action}, which is no action"),
        }
        Ok(false)
    }

    fn lv(&mut self, name: &str) -> Result<&mut Volume, String> {
        let found = self.volumes.iter_mut().find(|v| v.name == name);
        found.ok_or_else(|| format!("Failed to find logical volume \"vg/{name}\""))
    }

    fn add(&mut self, volume: Volume) -> Result<(), String> {
        if self.find(&volume.name).is_some() {
            return Err(format!("{} already exists", volume.name));
        }
        self.volumes.push(volume);
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> Result<(), String> {
        if self.find(to).is_some() {
            return Err(format!("{to} already exists"));
        }
        self.lv(from)?.name = to.to_owned();
        Ok(())
    }

    fn guarded(&mut self, name: &str, uuid: &str, idle: bool) -> Result<Volume, String> {
        let lv = self.lv(name)?.clone();
        if lv.uuid != uuid || (idle && lv.open) {
            return Err(format!("{name} is not what it was"));
        }
        Ok(lv)
    }

    fn activate(&mut self, active: bool) -> Result<(), String> {
        let volume = self.lv("vm1")?;
        if volume.open && !active {
            return Err("vm1 in use".to_owned());
        }
        volume.active = active;
        let uuid = volume.uuid.clone();
        for v in self.volumes.iter_mut().filter(|v| !v.thin && v.origin.as_ref() == Some(&uuid)) {
            v.active = active;
        }
        if active {
            self.end_merge();
        }
        Ok(())
    }

    /// A merge begins, or goes on, and is complete.
    fn end_merge(&mut self) {
        let Some(at) = self.volumes.iter().position(|v| v.merging && v.origin.is_some()) else {
            return;
        };
        let snapshot = self.volumes.remove(at);
        self.free += snapshot.store;
        for v in &mut self.volumes {
            if v.merging {
                v.merging = false;
                v.content = snapshot.content;
            }
        }
    }

    /// The report that `lvs` prints.
    fn report(&self) -> String {
        let rows: Vec<String> = self.volumes.iter().map(|v| self.row(v)).collect();
        let mut all = vec![
            "{\"vg_name\":\"vg\",\"vg_free\":\"0\",\"vg_extent_size\":\"4194304\",\
             \"lv_name\":\"pool\",\"lv_uuid\":\"p\",\"lv_size\":\"1073741824\",\
             \"lv_attr\":\"twi-aotz--\",\"lv_layout\":\"thin,pool\",\"lv_role\":\"private\",\
             \"data_percent\":\"6.25\",\"metadata_percent\":\"10.94\"}"
                .to_owned(),
        ];
        all.extend(rows);
        format!("{{\"report\": [{{\"lv\": [{}]}}]}}", all.join(",\n"))
    }

    fn row(&self, v: &Volume) -> String {
        let origin = v.origin.as_ref().and_then(|uuid| {
            self.volumes.iter().find(|o| o.uuid == *uuid).map(|o| o.name.as_str())
        });
        let snapshot = !v.thin && origin.is_some();
        let has_snapshot =
            !v.thin && self.volumes.iter().any(|s| s.origin.as_deref() == Some(v.uuid.as_str()));
        let kind = match (v.thin, v.merging, snapshot, has_snapshot) {
            (true, ..) => 'V',
            (_, true, true, _) => 'S',
            (_, true, false, _) => 'O',
            (_, false, true, _) => 's',
            (_, false, false, true) => 'o',
            _ => '-',
        };
        let yes = |b: bool, word: &'static str| if b { word } else { "" };
        let attributes = format!(
            "{kind}{}i-{}{}{}--{}",
            if v.read_only { 'r' } else { 'w' },
            if v.active { 'a' } else { '-' },
            if v.open { 'o' } else { '-' },
            if v.thin { 't' } else { '-' },
            if v.skipped { 'k' } else { '-' },
        );
        let name = if v.merging && snapshot { format!("[{}]", v.name) } else { v.name.clone() };
        let fields = [
            ("vg_name", "vg".to_owned()),
            ("vg_free", self.free.to_string()),
            ("vg_extent_size", EXTENT.to_string()),
            ("lv_name", name),
            ("lv_uuid", v.uuid.clone()),
            ("lv_size", if snapshot || v.store > 0 { v.store } else { SIZE }.to_string()),
            ("lv_attr", attributes),
            ("lv_layout", if v.thin { "thin,sparse" } else { "linear" }.to_owned()),
            (
                "lv_role",
                if snapshot { "public,snapshot,thicksnapshot" } else { "public" }.to_owned(),
            ),
            ("lv_tags", v.tags.join(",")),
            ("lv_time", "1700000000".to_owned()),
            ("lv_active", yes(v.active, "active").to_owned()),
            ("lv_device_open", if v.active { yes(v.open, "open") } else { "unknown" }.to_owned()),
            ("lv_skip_activation", yes(v.skipped, "skip activation").to_owned()),
            ("lv_merging", yes(v.merging, "merging").to_owned()),
            ("origin", origin.unwrap_or_default().to_owned()),
            ("pool_lv", yes(v.thin, "pool").to_owned()),
            ("snap_percent", yes(snapshot && v.active, "50.26").to_owned()),
            ("lv_autoactivation", yes(v.auto, "enabled").to_owned()),
        ];
        let fields: Vec<String> =
            fields.iter().map(|(name, value)| format!("\"{name}\":\"{value}\"")).collect();
        format!("{{{}}}", fields.join(", "))
    }
}

impl Target for Group {
    fn place(&self) -> String {
        "vg/vm1".to_owned()
    }

    fn image(&self, _role: Role) -> Result<Box<dyn Image + '_>, Failure> {
        Err(none())
    }

    fn ask(&self, query: &str, _arguments: &[Argument]) -> Result<Answer, Failure> {
        assert_eq!(query, "look", "one look costs one process");
        Ok(Answer { exit_code: 0, output: self.report().into_bytes(), errors: Vec::new() })
    }

    fn copies(&self) -> Result<Vec<SavedCopy>, Failure> {
        Err(none())
    }

    fn saving(&self) -> Result<Saving, Failure> {
        Err(none())
    }
}

fn none() -> Failure {
    Failure::new(FailureKind::NotGranted, "none", "a group has none")
}
