//! What stands in the way of a goal, by name: each a failure that says what helps.
//!
//! The same words serve as findings before anybody tries. ZFS checks all of it again when the
//! command runs; here it is so that nobody has to guess.

use snapslot_plugin_sdk::{Failure, FailureKind};

use crate::look::{Dataset, Snapshot};

/// How many names a sentence has at most.
const NAMES_MAX: usize = 3;

/// In the names of snapshots that the host makes of the present, for as long as it is read.
const READ: &str = "@snapslot-now-";

/// Snapshots or bookmarks newer than this one: a restore would have to destroy them.
pub(crate) fn newer(dataset: &Dataset, slot: &Snapshot) -> Option<Failure> {
    let after = |txg: u64| txg > slot.createtxg;
    let (read, snapshots): (Vec<String>, Vec<String>) = (dataset.snapshots.iter())
        .filter(|s| after(s.createtxg))
        .map(|s| dataset.full_name(s))
        .partition(|name| name.contains(READ));
    let bookmarks: Vec<String> = (dataset.bookmarks.iter())
        .filter(|b| after(b.createtxg))
        .map(|b| format!("{}#{}", dataset.name, b.name))
        .collect();
    let (code, what, names) = match (snapshots.is_empty(), bookmarks.is_empty()) {
        (true, true) if read.is_empty() => return None,
        (true, true) => {
            let message = format!(
                "the present content of {} is being read, from {}: it can be restored when that is done; what a \
                 killed reader left `snapslot recover` destroys, or `zfs destroy` where the volume has another name now",
                dataset.name,
                listed(&read)
            );
            return Some(Failure::new(FailureKind::InUse, "being-read", message));
        }
        (false, true) => ("newer-snapshots", "snapshots", snapshots),
        (true, false) => ("newer-bookmarks", "bookmarks", bookmarks),
        (false, false) => {
            ("newer-snapshots", "snapshots and bookmarks", [snapshots, bookmarks].concat())
        }
    };
    let message = format!(
        "{} has newer {what} than the slot's, and ZFS restores the newest only: {}; destroy them, \
         or delete the slot's and take a new one",
        dataset.name,
        listed(&names)
    );
    let failure = Failure::new(FailureKind::Unsupported, code, message);
    Some(failure.with("newest", names.last().map_or("", |n| n)).with("count", names.len()))
}

/// Holds on the slot's snapshot: it cannot be destroyed. `tags` are their names, if known.
pub(crate) fn held(dataset: &Dataset, slot: &Snapshot, tags: &[String]) -> Option<Failure> {
    if slot.holds == 0 {
        return None;
    }
    let name = dataset.full_name(slot);
    let message = if tags.is_empty() {
        format!("{name} has {} holds; `zfs holds {name}` names them", slot.holds)
    } else {
        format!("{name} is held by {}; `zfs release TAG {name}` lets go", listed(tags))
    };
    let message = format!("{message}; it cannot be deleted before");
    Some(Failure::new(FailureKind::InUse, "held", message).with("holds", slot.holds))
}

/// Clones of the slot's snapshot: it cannot be destroyed.
pub(crate) fn cloned(dataset: &Dataset, slot: &Snapshot) -> Option<Failure> {
    if slot.clones.is_empty() {
        return None;
    }
    let message = format!(
        "{} is the origin of {}; destroy or promote them, it cannot be deleted before",
        dataset.full_name(slot),
        listed(&slot.clones)
    );
    let failure = Failure::new(FailureKind::InUse, "cloned", message);
    Some(failure.with("clones", slot.clones.len()))
}

/// A receive that was begun and not ended: the content is about to be somebody else's.
pub(crate) fn receiving(dataset: &Dataset) -> Option<Failure> {
    dataset.receiving.then(|| {
        let name = &dataset.name;
        let message = format!(
            "a `zfs receive` into {name} was begun and not ended; let it end, or give it up with \
             `zfs receive -A {name}`"
        );
        Failure::new(FailureKind::InUse, "receiving", message)
    })
}

/// A quota below what the snapshot refers to: a restore would go over it.
pub(crate) fn refquota(dataset: &Dataset, slot: &Snapshot) -> Option<Failure> {
    if dataset.refquota == 0 || slot.referenced <= dataset.refquota {
        return None;
    }
    let message = format!(
        "the snapshot refers to {} bytes and the refquota of {} is {}; raise it, as a restore does \
         not bring the old one back",
        slot.referenced, dataset.name, dataset.refquota
    );
    let failure = Failure::new(FailureKind::NoSpace, "refquota", message);
    Some(failure.with("needed", slot.referenced).with("available", dataset.refquota))
}

/// Room for the reservation.
///
/// A take, and a restore while it lasts, keep the present blocks beside the whole reservation: of
/// it, what is used by blocks of the dataset alone must be free a second time. ZFS's own rule
/// (`dsl_dataset_snapshot_reserve_space`, `dsl_dataset_rollback_check`). With a refquota
/// `available` may be what that leaves, so only ZFS itself can tell.
pub(crate) fn no_room(dataset: &Dataset) -> Option<Failure> {
    if dataset.refquota != 0 {
        return None;
    }
    let needed = dataset.refreservation.min(dataset.written);
    let free = dataset.available.saturating_sub(dataset.reserved_unused);
    if needed == 0 || needed <= free {
        return None;
    }
    let message = format!(
        "{} has a reservation (refreservation) of {} bytes, so {needed} more must be free and \
         {free} are; make room in the pool, or lower the reservation",
        dataset.name, dataset.refreservation
    );
    let failure = Failure::new(FailureKind::NoSpace, "no-space", message);
    Some(failure.with("needed", needed).with("available", free))
}

/// The first few of the names, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    // The newest stand last, and are what a person has just made.
    let shown: Vec<&str> = names.iter().rev().take(NAMES_MAX).map(String::as_str).collect();
    match names.len().saturating_sub(NAMES_MAX) {
        0 => shown.join(", "),
        more => format!("{} (and {more} more)", shown.join(", ")),
    }
}
