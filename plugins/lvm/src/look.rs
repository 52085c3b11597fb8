//! The look: what LVM reports of a group, as typed logical volumes.
//!
//! One process answers everything a plan depends on. Values that LVM does not know (a volume that
//! is not active has no fill) are `None`; a report that is no report is a failure, never a guess.

use snapslot_plugin_sdk::{Failure, FailureKind, Target};

use crate::explain::explain;
use crate::grants::{LOOK, LOOK_OLDER};
use crate::report::{self, Row};

/// Hundredths of a percent, as LVM prints them: 0 to 10,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fill(pub(crate) u32);

impl Fill {
    /// This part of so many bytes, rounded up; and one step more, because LVM rounds what it
    /// prints.
    pub(crate) fn of(self, bytes: u64) -> u64 {
        let part = u128::from(bytes) * u128::from((self.0 + 1).min(10_000)) / 10_000;
        if self.0 == 0 { 0 } else { part as u64 }
    }
}

impl std::fmt::Display for Fill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:02} %", self.0 / 100, self.0 % 100)
    }
}

/// A logical volume.
#[derive(Clone, Debug)]
pub(crate) struct Lv {
    /// Its name, without the brackets of a hidden one.
    pub(crate) name: String,
    /// Its UUID; survives renames.
    pub(crate) uuid: String,
    /// Bytes; of a thick snapshot: of its store.
    pub(crate) size: u64,
    /// LVM's ten characters of attributes.
    pub(crate) attributes: Vec<u8>,
    /// How it is laid out: `linear`, `thin,sparse`, `raid,raid1`.
    pub(crate) layout: Vec<String>,
    /// What it is to others: `public`, `thicksnapshot`, `private`.
    pub(crate) roles: Vec<String>,
    /// Its tags.
    pub(crate) tags: Vec<String>,
    /// When it was made, seconds since 1970.
    pub(crate) created: u64,
    /// Whether it has a device.
    pub(crate) active: bool,
    /// Whether somebody has its device open.
    pub(crate) open: bool,
    /// Whether activation passes it over.
    pub(crate) skipped: bool,
    /// Whether it is activated by itself.
    pub(crate) autoactivated: bool,
    /// What ails it; empty if nothing does.
    pub(crate) health: String,
    /// A thick snapshot whose store overflowed.
    pub(crate) invalid: bool,
    /// A snapshot that is merged, or the volume it is merged into.
    pub(crate) merging: bool,
    /// A merge that the kernel gave up.
    pub(crate) merge_failed: bool,
    /// The volume it is a snapshot of.
    pub(crate) origin: Option<String>,
    /// Its thin pool.
    pub(crate) pool: Option<String>,
    /// How full its data is.
    pub(crate) data: Option<Fill>,
    /// How full a pool's metadata is.
    pub(crate) metadata: Option<Fill>,
    /// How full a thick snapshot's store is.
    pub(crate) store: Option<Fill>,
    /// How much is read ahead, where that was set.
    pub(crate) read_ahead: Option<String>,
    /// Its device's minor number, where that is persistent.
    pub(crate) minor: Option<String>,
}

impl Lv {
    /// Whether it is a thin volume or thin snapshot.
    pub(crate) fn is_thin(&self) -> bool {
        has(&self.layout, "thin") && !has(&self.layout, "pool")
    }

    /// Whether it is a snapshot with a store of its own.
    pub(crate) fn is_thick_snapshot(&self) -> bool {
        has(&self.roles, "thicksnapshot")
    }

    /// Whether it may not be written.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self.attributes.get(1), Some(b'r' | b'R'))
    }

    /// Whether a snapshot is being merged into it, and not only waits to be: LVM tells how much is
    /// left of it then. A volume as such has no store.
    pub(crate) fn merge_is_under_way(&self) -> bool {
        self.merging && self.store.is_some() && !self.is_thin()
    }

    /// Whether what ails it keeps it from being read or written in parts. RAID tells of smaller
    /// things there too.
    pub(crate) fn is_broken(&self) -> bool {
        self.health.contains("partial") || self.health.contains("failed")
    }

    /// Whether its device is suspended, which is what a command that was killed leaves.
    pub(crate) fn is_suspended(&self) -> bool {
        matches!(self.attributes.get(4), Some(b's' | b'S'))
    }
}

/// Whether the list has the word.
pub(crate) fn has(list: &[String], word: &str) -> bool {
    list.iter().any(|w| w == word)
}

/// A volume group, seen from one volume.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// The group's name.
    pub(crate) group: String,
    /// The volume's name. It need not be there.
    pub(crate) volume: String,
    /// Free bytes of the group.
    pub(crate) free: u64,
    /// Bytes of an extent: sizes are multiples of it.
    pub(crate) extent: u64,
    /// All its volumes, in LVM's order.
    pub(crate) all: Vec<Lv>,
}

impl Look {
    /// Looks.
    pub(crate) fn at(target: &dyn Target) -> Result<Look, Failure> {
        let place = target.place();
        let Some((group, volume)) = place.split_once('/') else {
            let message = format!("{place} is not a volume group and a volume, `group/volume`");
            return Err(Failure::new(FailureKind::Invalid, "no-place", message));
        };
        let mut answer = target.ask(LOOK, &[])?;
        if answer.exit_code != 0 && says(&answer.errors, "Unrecognised field") {
            answer = target.ask(LOOK_OLDER, &[])?;
        }
        if answer.exit_code != 0 {
            return Err(explain(LOOK, &answer));
        }
        let rows = report::rows(&answer.output).map_err(|why| unreadable(group, why))?;
        let mut look = Look {
            group: group.to_owned(),
            volume: volume.to_owned(),
            free: 0,
            extent: 0,
            all: Vec::with_capacity(rows.len()),
        };
        for row in &rows {
            look.add(row).map_err(|why| unreadable(group, &why))?;
        }
        let mut names: Vec<&str> = look.all.iter().map(|lv| lv.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(unreadable(group, "it has a volume twice"));
        }
        Ok(look)
    }

    fn add(&mut self, row: &Row) -> Result<(), String> {
        let field = |name: &str| {
            row.iter().find(|(n, _)| n == name).map(|(_, v)| v.trim()).unwrap_or_default()
        };
        let number = |name: &str| {
            let value = field(name);
            value.parse::<u64>().map_err(|_| format!("{name} is {:?}, no number", clip(value)))
        };
        if field("vg_name") != self.group {
            return Err(format!("it tells of the group {:?}", clip(field("vg_name"))));
        }
        let name = bare(field("lv_name"));
        let uuid = field("lv_uuid");
        if name.is_empty() || uuid.is_empty() {
            return Err("it has a volume without name or UUID".to_owned());
        }
        self.free = number("vg_free")?;
        self.extent = number("vg_extent_size")?;
        if self.extent == 0 {
            return Err("its extents have no size".to_owned());
        }
        let list = |name: &str| -> Vec<String> {
            field(name).split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect()
        };
        // What LVM prints for yes depends on the administrator's settings: a word, or 1.
        let yes = |name: &str| !matches!(field(name), "" | "0" | "-1" | "unknown");
        let named = |name: &str| Some(bare(field(name)).to_owned()).filter(|n| !n.is_empty());
        self.all.push(Lv {
            name: name.to_owned(),
            uuid: uuid.to_owned(),
            size: number("lv_size")?,
            attributes: field("lv_attr").as_bytes().to_vec(),
            layout: list("lv_layout"),
            roles: list("lv_role"),
            tags: list("lv_tags"),
            created: field("lv_time").parse().unwrap_or(0),
            active: yes("lv_active"),
            open: yes("lv_device_open"),
            skipped: yes("lv_skip_activation"),
            // Before it could be turned off, it was on.
            autoactivated: yes("lv_autoactivation")
                || !row.iter().any(|(n, _)| n == "lv_autoactivation"),
            health: field("lv_health_status").to_owned(),
            // Without a device, LVM cannot know.
            invalid: yes("lv_active") && yes("lv_snapshot_invalid"),
            merging: yes("lv_merging")
                || matches!(field("lv_attr").as_bytes().first(), Some(b'S' | b'O')),
            merge_failed: yes("lv_merge_failed"),
            origin: named("origin"),
            pool: named("pool_lv"),
            data: fill(field("data_percent")),
            metadata: fill(field("metadata_percent")),
            store: fill(field("snap_percent")),
            read_ahead: set(field("lv_read_ahead"), "auto"),
            minor: set(field("lv_minor"), "-1"),
        });
        Ok(())
    }

    /// The volume of this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Lv> {
        self.all.iter().find(|lv| lv.name == name)
    }

    /// `group/name`, to say.
    pub(crate) fn say(&self, name: &str) -> String {
        format!("{}/{name}", self.group)
    }

    /// `group/volume`, to say.
    pub(crate) fn place(&self) -> String {
        self.say(&self.volume)
    }
}

/// A setting that is not what LVM chooses by itself.
fn set(value: &str, by_itself: &str) -> Option<String> {
    Some(clip(value)).filter(|v| !v.is_empty() && v != by_itself)
}

/// Whether a command's words contain these.
pub(crate) fn says(words: &[u8], part: &str) -> bool {
    String::from_utf8_lossy(words).contains(part)
}

/// A name without the brackets of a hidden volume.
fn bare(name: &str) -> &str {
    name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name)
}

/// `12.60` as hundredths of a percent.
fn fill(text: &str) -> Option<Fill> {
    let (whole, part) = text.split_once('.')?;
    if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value = whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part.parse().ok()?)?;
    Some(Fill(value.min(10_000)))
}

fn clip(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

fn unreadable(group: &str, why: &str) -> Failure {
    let message = format!("lvs gave a report on {group} that makes no sense: {why}");
    Failure::new(FailureKind::Io, "unreadable-report", message)
}
