//! What a look means: which volumes are ours, what is half done, what stands in the way.
//!
//! A volume is ours if its name and its tag say the same; one of the two alone is somebody
//! else's, and is never touched. The words, for a volume `vm1`:
//!
//! | name | tag | what it is |
//! |---|---|---|
//! | `vm1_snapslot_MARK` | `snapslot.mark=MARK` | the slot's snapshot |
//! | `vm1_snapslot_new` | `snapslot.new=MARK` | the volume-to-be of a restore |
//! | `vm1_snapslot_old` | `snapslot.old=MARK` | the volume that stepped aside |
//! | `vm1` | `snapslot.new`, `.old`, `.restoring`, `.inactive` | a restore is not over |

use snapslot_plugin_sdk::{Failure, FailureKind, is_mark};

use crate::look::{Look, Lv, has};
use crate::unsupported;

/// Tag of the slot's snapshot.
pub(crate) const MARK: &str = "snapslot.mark=";
/// Tag of the slot's snapshot: when it was taken.
pub(crate) const TAKEN: &str = "snapslot.taken=";
/// Tag of the volume-to-be.
pub(crate) const NEW: &str = "snapslot.new=";
/// Tag of the volume that steps aside.
pub(crate) const OLD: &str = "snapslot.old=";
/// Tag of a thick volume that is being restored.
pub(crate) const RESTORING: &str = "snapslot.restoring=";
/// Tag of a thick volume that is to be inactive after its restore.
pub(crate) const INACTIVE: &str = "snapslot.inactive=";

/// Tags a restore puts on the volume itself.
const WORKING: [&str; 4] = [NEW, OLD, RESTORING, INACTIVE];

/// What kind of volume it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In this thin pool.
    Thin(String),
    /// With extents of its own.
    Thick,
}

/// A snapshot of ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot<'a> {
    pub(crate) lv: &'a Lv,
    pub(crate) mark: &'a str,
}

impl Slot<'_> {
    /// When it was taken: seconds and nanoseconds.
    pub(crate) fn taken(&self) -> (u64, u32) {
        let tag = self.lv.tags.iter().find_map(|t| t.strip_prefix(TAKEN));
        let parts = tag.and_then(|t| t.split_once('.'));
        let read = parts.and_then(|(s, n)| Some((s.parse().ok()?, n.parse().ok()?)));
        read.filter(|(_, n)| *n < 1_000_000_000).unwrap_or((self.lv.created, 0))
    }
}

/// What there is.
#[derive(Clone, Debug)]
pub(crate) struct State<'a> {
    pub(crate) look: &'a Look,
    pub(crate) kind: Kind,
    /// The volume, unless a restore was stopped while it had no name.
    pub(crate) volume: Option<&'a Lv>,
    /// The volume-to-be of a thin restore.
    pub(crate) new: Option<&'a Lv>,
    /// The volume that stepped aside for it.
    pub(crate) old: Option<&'a Lv>,
    /// Snapshots of ours.
    pub(crate) slots: Vec<Slot<'a>>,
    /// Stores of ours that are no snapshots: a command was killed while it made one, or while it
    /// took one away after a merge.
    pub(crate) stores: Vec<&'a Lv>,
    /// Snapshots of others.
    pub(crate) others: Vec<&'a Lv>,
    /// The snapshot that is being merged into the volume, or waits to be.
    pub(crate) merging: Option<&'a Lv>,
}

impl<'a> State<'a> {
    /// Makes sense of a look. Fails if there is no such volume, or one that cannot have a slot.
    pub(crate) fn of(look: &'a Look) -> Result<State<'a>, Failure> {
        let ours = |rest: &str, tag: &str| {
            let lv = look.find(&format!("{}_snapslot_{rest}", look.volume))?;
            mark_in(lv, tag).map(|_| lv)
        };
        let volume = look.find(&look.volume);
        let new = ours("new", NEW);
        let old = ours("old", OLD);
        let Some(main) = volume.or(old).or(new) else {
            let message = format!(
                "there is no logical volume {}; `lvs {}` lists what there is",
                look.place(),
                look.group
            );
            return Err(Failure::new(FailureKind::NotFound, "no-such-volume", message));
        };
        let kind = kind(look, main)?;
        let mut state = State {
            look,
            kind,
            volume,
            new,
            old,
            slots: Vec::new(),
            stores: Vec::new(),
            others: Vec::new(),
            merging: None,
        };
        let of_volume = |lv: &Lv| lv.origin.as_deref() == Some(look.volume.as_str());
        for lv in &look.all {
            let mark = own_mark(look, lv);
            if lv.merging && of_volume(lv) {
                state.merging = Some(lv);
            } else if let Some(mark) = mark {
                if belongs(look, lv) {
                    state.slots.push(Slot { lv, mark });
                } else if lv.origin.is_none() && has(&lv.roles, "public") {
                    state.stores.push(lv);
                }
            } else if lv.is_thick_snapshot() && of_volume(lv) {
                state.others.push(lv);
            }
        }
        Ok(state)
    }

    /// Whether the merge that waits or is under way is a restore of ours.
    pub(crate) fn merge_is_ours(&self) -> bool {
        self.merging.is_some_and(|lv| own_mark(self.look, lv).is_some())
    }

    /// The snapshot of ours with this identity.
    pub(crate) fn slot(&self, identity: &str) -> Option<Slot<'a>> {
        self.slots.iter().find(|s| s.lv.uuid == identity).copied()
    }

    /// Thin snapshots of the volume that others made. They lose their link to it when it is
    /// restored, so they are told of and not counted.
    pub(crate) fn thin_snapshots(&self) -> Vec<&'a Lv> {
        let origin = Some(self.look.volume.as_str());
        let linked = self.look.all.iter().filter(|lv| lv.origin.as_deref() == origin);
        linked
            .filter(|lv| lv.is_thin() && !lv.merging && own_mark(self.look, lv).is_none())
            .filter(|lv| self.kind == Kind::Thin(lv.pool.clone().unwrap_or_default()))
            .collect()
    }

    /// Marks of restores that left their tags on the volume.
    pub(crate) fn working_marks(&self, volume: &'a Lv) -> Vec<&'a str> {
        let mut marks: Vec<&str> = WORKING.iter().flat_map(|tag| marks_in(volume, tag)).collect();
        marks.sort_unstable();
        marks.dedup();
        marks
    }

    /// Whether a restore of a thick volume was stopped between its merge, which consumed the
    /// snapshot, and the take that follows: the slot is empty then.
    pub(crate) fn is_merged(&self, volume: &Lv) -> bool {
        marks_in(volume, RESTORING).any(|mark| self.slots.iter().all(|slot| slot.mark != mark))
    }

    /// Whether it was made by a restore and has stepped in, or is about to.
    pub(crate) fn stepped_in(&self, volume: &Lv) -> bool {
        mark_in(volume, NEW).is_some()
    }

    /// Whether the volume is the one that the restore which moved `old` aside put in its place.
    pub(crate) fn took_the_place_of(&self, volume: &Lv, old: &Lv) -> bool {
        marks_in(old, OLD).any(|mark| marks_in(volume, NEW).any(|m| m == mark))
    }

    /// What would be removed together with this volume: LVM takes along thick snapshots, and thin
    /// volumes of other pools that read from it.
    pub(crate) fn dependents(&self, lv: &Lv) -> Vec<&'a Lv> {
        let origin = Some(lv.name.as_str());
        let linked = self.look.all.iter().filter(|d| d.origin.as_deref() == origin);
        linked.filter(|d| !d.is_thin() || d.pool != lv.pool).collect()
    }
}

/// The mark in a tag of this kind.
pub(crate) fn mark_in<'a>(lv: &'a Lv, tag: &str) -> Option<&'a str> {
    marks_in(lv, tag).next()
}

fn marks_in<'a>(lv: &'a Lv, tag: &str) -> impl Iterator<Item = &'a str> {
    lv.tags.iter().filter_map(move |t| t.strip_prefix(tag)).filter(|m| is_mark(m))
}

/// Whether it is a tag that only restores and takes of ours set.
pub(crate) fn is_own_tag(tag: &str) -> bool {
    [MARK, TAKEN].iter().chain(&WORKING).any(|own| tag.starts_with(own))
}

/// The mark of a snapshot of ours of this volume: its name and its tag agree.
fn own_mark<'a>(look: &Look, lv: &'a Lv) -> Option<&'a str> {
    let rest = lv.name.strip_prefix(look.volume.as_str())?.strip_prefix("_snapslot_")?;
    marks_in(lv, MARK).find(|mark| *mark == rest)
}

/// Whether a snapshot of ours still is one of this volume. A thin one has no link to it after a
/// restore; one that is linked to another volume went along when that was renamed. What a thin one reads
/// from outside of its pool, its external origin, is no such link: LVM shows it in that place once the
/// volume it was taken of is gone.
fn belongs(look: &Look, lv: &Lv) -> bool {
    let linked =
        |name: &&str| look.find(name).is_some_and(|origin| !lv.is_thin() || origin.pool == lv.pool);
    let old = format!("{}_snapslot_old", look.volume);
    match lv.origin.as_deref().filter(linked) {
        None => lv.is_thin(),
        Some(origin) => {
            (lv.is_thin() || lv.is_thick_snapshot()) && (origin == look.volume || origin == old)
        }
    }
}

/// What kind of volume it is; a failure for kinds that cannot have a slot.
fn kind(look: &Look, lv: &Lv) -> Result<Kind, Failure> {
    let name = look.say(&lv.name);
    let refuse = |code: &str, why: String| Err(unsupported(code, format!("{name} {why}")));
    if lv.tags.iter().any(|t| t.starts_with(MARK)) && lv.name.contains("_snapslot_") {
        return refuse("own-snapshot", "is a snapshot that Snapslot made, no volume".to_owned());
    }
    if has(&lv.layout, "pool") {
        return refuse("pool", "is a pool; name a volume in it".to_owned());
    }
    if has(&lv.roles, "private") {
        return refuse("hidden-volume", "is a part of another volume".to_owned());
    }
    let used = look.all.iter().find(|d| {
        d.origin.as_deref() == Some(lv.name.as_str()) && d.is_thin() && d.pool != lv.pool
    });
    if let Some(user) = used {
        let user = look.say(&user.name);
        return refuse("external-origin", format!("is what {user} reads from and must not change"));
    }
    if lv.is_thin() {
        let Some(pool) = &lv.pool else {
            return refuse("no-pool", "is thin and has no pool".to_owned());
        };
        return Ok(Kind::Thin(pool.clone()));
    }
    if lv.is_thick_snapshot() {
        return refuse("snapshot", "is itself a snapshot, and LVM makes none of those".to_owned());
    }
    let plain = |word: &String| word == "linear" || word == "striped" || word.starts_with("raid");
    if lv.layout.is_empty() || !lv.layout.iter().all(plain) {
        let layout = lv.layout.join(", ");
        return refuse(
            "layout",
            format!(
                "is laid out as {layout}; slots are for linear, striped, RAID and thin volumes"
            ),
        );
    }
    Ok(Kind::Thick)
}
