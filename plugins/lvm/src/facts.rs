//! What is told of a volume: its snapshots, its health, what is not over.

use snapslot_plugin_sdk::{Facts, Failure, FailureKind, Finding, Snapshot};

use crate::look::{Fill, Lv};
use crate::state::{Kind, Slot, State};
use crate::unsupported;
use crate::words::{bytes, some_of};

/// From here on the fill of a store or a pool is told.
pub(crate) const FILL_TOLD: Fill = Fill(8_000);

/// The contract takes so many findings.
const FINDINGS_MAX: usize = 64;

/// The facts.
pub(crate) fn facts(state: &State<'_>) -> Result<Facts, Failure> {
    let Some(main) = state.volume.or(state.old).or(state.new) else {
        return Err(Failure::new(FailureKind::Internal, "no-volume", "a state without a volume"));
    };
    let format = match &state.kind {
        Kind::Thin(pool) => format!("LVM thin volume in pool {}", state.look.say(pool)),
        Kind::Thick => format!("LVM volume, {}", main.layout.join(", ")),
    };
    let ours = state.slots.iter().map(|slot| {
        let (taken_seconds, taken_nanoseconds) = slot.taken();
        Snapshot {
            mark: Some(slot.mark.to_owned()),
            taken_seconds,
            taken_nanoseconds,
            ..snapshot(slot.lv, main)
        }
    });
    let others = state.others.iter().map(|lv| snapshot(lv, main));
    Ok(Facts {
        identity: Some(main.uuid.clone()),
        virtual_size: main.size,
        format,
        snapshots: ours.chain(others).collect(),
        findings: findings(state),
        unfinished: unfinished(state),
    })
}

/// A snapshot as LVM knows it.
fn snapshot(lv: &Lv, volume: &Lv) -> Snapshot {
    Snapshot {
        identity: lv.uuid.clone(),
        name: lv.name.clone(),
        mark: None,
        taken_seconds: lv.created,
        taken_nanoseconds: 0,
        // A thick one's own size is that of its store; what it shows is as long as its origin.
        virtual_size: if lv.is_thin() { lv.size } else { volume.size },
        vm_state_size: 0,
        lost: lv.invalid,
    }
}

/// What is not over, and what will end it.
pub(crate) fn unfinished(state: &State<'_>) -> Option<String> {
    let look = state.look;
    let place = look.place();
    if let Some(merging) = state.merging {
        if !state.merge_is_ours() {
            // Whose it is ends it; it is a finding, and stands in the way of all else.
            return None;
        }
        let what = look.say(&merging.name);
        let Some(volume) = state.volume else {
            return Some(format!("{what} is being merged into {place}, which is gone"));
        };
        if volume.merge_failed || merging.merge_failed {
            return Some(format!(
                "the merge of {what} into {place} failed in the kernel, whose log (`dmesg`) says \
                 why; it is tried again when the volume is activated"
            ));
        }
        if let Some(left) = volume.store.filter(|_| volume.merge_is_under_way()) {
            return Some(format!(
                "{what} is being merged into {place}, which shows its content already; {left} of \
                 its store are left to copy"
            ));
        }
        let ends = match (volume.active, volume.open) {
            (_, true) => "LVM begins it when nobody has the volume open any more",
            (true, _) => "nobody has the volume open any more, so it can begin",
            (false, _) => "LVM begins it when the volume is activated",
        };
        return Some(format!("{what} waits to be merged into {place}, which sets it back; {ends}"));
    }
    match (state.volume, state.new, state.old) {
        (None, Some(_), Some(_)) => {
            return Some(format!(
                "a restore of {place} was stopped while its old content stepped aside; what is \
                 left is to put the restored volume in its place"
            ));
        }
        (None, Some(_), None) => {
            return Some(format!(
                "{place} is gone, and a volume made for its restore is there to take its place"
            ));
        }
        (None, None, Some(old)) => {
            return Some(format!(
                "{place} stepped aside as {} for a restore that cannot go on; it gets its name back",
                look.say(&old.name)
            ));
        }
        (Some(volume), _, Some(old)) if !state.took_the_place_of(volume, old) => {
            return Some(format!(
                "{place} stepped aside as {} for a restore, and somebody gave its name to another \
                 volume",
                look.say(&old.name)
            ));
        }
        (Some(_), _, Some(old)) => {
            return Some(format!(
                "{place} was restored; its content from before is left as {} and is to be removed",
                look.say(&old.name)
            ));
        }
        (Some(_), Some(new), None) => {
            return Some(format!(
                "a restore of {place} was stopped before it changed anything; {} is left of it",
                look.say(&new.name)
            ));
        }
        _ => {}
    }
    if let Some(store) = state.stores.first() {
        return Some(format!(
            "{} is left of a snapshot that was being made or merged; it holds nothing",
            look.say(&store.name)
        ));
    }
    let volume = state.volume?;
    if volume.is_suspended() {
        return Some(format!("{place} is suspended: an LVM command was ended in its middle"));
    }
    if state.is_merged(volume) {
        return Some(format!(
            "a restore of {place} was stopped after its merge: the content is set back, and the \
             snapshot is used up"
        ));
    }
    if !state.working_marks(volume).is_empty() {
        return Some(format!("{place} carries the marks of a restore that was stopped"));
    }
    None
}

/// Health.
fn findings(state: &State<'_>) -> Vec<Finding> {
    let look = state.look;
    let mut all = Vec::new();
    let mut tell = |code: &str, blocks: bool, message: String| {
        all.push(Finding { code: code.to_owned(), message, blocks });
    };
    for lv in [state.volume, state.new, state.old].into_iter().flatten() {
        if !lv.health.is_empty() {
            let name = look.say(&lv.name);
            tell(
                "volume-health",
                lv.is_broken(),
                format!("LVM says that {name} is {}; `lvs -a -o+devices` tells more", lv.health),
            );
        }
    }
    if let Some(merging) = state.merging.filter(|_| !state.merge_is_ours()) {
        tell("merge-pending", false, crate::plan::merge_pending(state, merging).message);
    }
    for Slot { lv, .. } in &state.slots {
        let name = look.say(&lv.name);
        if lv.invalid {
            tell(
                "snapshot-lost",
                false,
                format!("more was changed than the store of {name} holds: its content is gone"),
            );
        } else if let Some(fill) = lv.store.filter(|f| *f >= FILL_TOLD && !lv.is_thin()) {
            tell(
                "store-filling",
                false,
                format!(
                    "the store of {name} is {fill} full; at 100 % the snapshot is lost. \
                     `lvextend -L +{} {name}` gives it room",
                    bytes(lv.size.div_ceil(2)).replace(' ', "").replace("iB", "")
                ),
            );
        } else if !lv.is_thin() && !lv.active {
            tell(
                "fill-unknown",
                false,
                format!(
                    "LVM tells only while the volume is active how full the store of {name} is, and \
                     whether it has run over"
                ),
            );
        }
    }
    if let Kind::Thin(name) = &state.kind
        && let Some(pool) = look.find(name)
    {
        let name = look.say(name);
        if !pool.health.is_empty() {
            tell("pool-health", false, format!("LVM says that the pool {name} is {}", pool.health));
        }
        for (what, fill) in [("data", pool.data), ("metadata", pool.metadata)] {
            if let Some(fill) = fill.filter(|f| *f >= FILL_TOLD) {
                tell(
                    "pool-filling",
                    false,
                    format!(
                        "the {what} of the pool {name} is {fill} full; `lvextend` gives it room"
                    ),
                );
            }
        }
    }
    let thin = state.thin_snapshots();
    if !thin.is_empty() {
        let names = some_of(thin.iter().map(|lv| look.say(&lv.name)));
        tell("other-snapshots", false, format!("others made snapshots of it too: {names}"));
    }
    all.truncate(FINDINGS_MAX);
    all
}

/// There is no snapshot with this identity.
pub(crate) fn no_such_snapshot(state: &State<'_>, identity: &str) -> Failure {
    let place = state.look.place();
    let foreign = state.others.iter().copied().chain(state.thin_snapshots());
    if let Some(lv) = foreign.into_iter().find(|lv| lv.uuid == identity) {
        let name = state.look.say(&lv.name);
        return unsupported("not-ours", format!("{name} is not a snapshot that Snapslot made"));
    }
    let message = format!("{place} has no snapshot {identity} of Snapslot's");
    Failure::new(FailureKind::NotFound, "no-such-snapshot", message)
}
