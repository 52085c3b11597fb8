//! Looking through a plan before it is carried out.
//!
//! The plugin inspects the image as the plan would make it, and content before and after is
//! compared: a take or delete must leave what the machine sees as it was; a restore must give
//! what the snapshot holds; and every snapshot that stays must hold what it held.
//!
//! Where content lies is the plugin's word, before and after. So this finds planners that are wrong, and
//! lies that do not fit together: bytes that were said to hold content and are written to, content that moves,
//! ends early or never. A plugin that tells the same lie both times is believed; what it can destroy then
//! is the one image that it was granted changes of.

use std::sync::Arc;

use serde::Serialize;
use snapslot_capture::{Plan, PlanView, Step, Way};
use snapslot_runtime::{CallError, Content, Extent, Facts, Goal, Plugin, Sight, Snapshot, View};

use crate::error::EngineError;
use crate::volume::Volume;

/// How deep to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// Facts, and the first extents of the disk: costs milliseconds at any size.
    Bounded,
    /// Facts, and every extent.
    Full,
}

/// Extents compared where the look is bounded: each may cost a table, read through the plan.
const BOUNDED_EXTENTS: u32 = 2;
/// Extents asked for at once where it is not.
const PAGE: u32 = 4096;

/// Sight of a volume whose image is as the plan would make it.
pub(crate) fn as_planned(volume: &Volume, plan: &Arc<Plan>) -> Result<Sight, EngineError> {
    let view = PlanView::new(plan.clone(), volume.disk()?.clone())
        .map_err(|e| EngineError::disk(&volume.locator, e))?;
    Ok(Sight { disk: Some(Arc::new(view)), ..volume.sight() })
}

/// Fails unless the plan leads to the goal and keeps the content it must keep.
pub(crate) fn rehearse(
    plugin: &Plugin<'_>,
    volume: &Volume,
    before: &Facts,
    plan: &Arc<Plan>,
    goal: &Goal,
    depth: Depth,
) -> Result<(), EngineError> {
    if plan.is_empty() {
        return reached(before, before, goal, None).map_err(|why| EngineError::Plugin {
            volume: volume.locator.to_string(),
            plugin: plugin.description().name.clone(),
            cause: format!(
                "the plugin {} says there is nothing to do: {why}",
                plugin.description().name
            ),
            log: Vec::new(),
        });
    }
    if plan.way() != Some(Way::Image) {
        // What a command does cannot be tried in memory: it is looked at afterwards.
        return Ok(());
    }
    let real = volume.sight();
    let planned = as_planned(volume, plan)?;
    let refuse = |why: &str| EngineError::Plugin {
        volume: volume.locator.to_string(),
        plugin: plugin.description().name.clone(),
        cause: format!(
            "the plan of the plugin {} was refused after rehearsal: {why}",
            plugin.description().name
        ),
        log: Vec::new(),
    };
    let call = |e| EngineError::call(&volume.locator, e);
    let after = plugin.inspect(&planned).map_err(call)?;
    reached(before, &after, goal, plan.way()).map_err(refuse)?;
    let from = match goal {
        Goal::Restored(identity) | Goal::Consumed(identity) => View::Snapshot(identity.clone()),
        Goal::Held(_) | Goal::Empty(_) | Goal::Settled => View::Current,
    };
    let compared =
        Compared { plugin, before: &real, after: &planned, touched: touched(plan), depth };
    let size = after.virtual_size;
    compared.same(&from, &View::Current, size, "the machine would see").map_err(|e| match e {
        Differs::Call(error) => call(error),
        Differs::So(why) => refuse(&why),
    })?;
    if depth == Depth::Bounded {
        return Ok(());
    }
    // What stays holds what it held. Of one that is set back to, the machine's view was compared with it.
    for snapshot in &before.snapshots {
        let Some(kept) = after.snapshots.iter().find(|s| s.identity == snapshot.identity) else {
            continue;
        };
        let view = View::Snapshot(kept.identity.clone());
        // One that cannot be listed as it is, damaged as it may be, stands in nobody's way.
        if let Err(CallError::Refused(_)) = plugin.extents(&real, &view, 0, 1) {
            continue;
        }
        let what = format!("the snapshot {} would hold", kept.name);
        compared.same(&view, &view, kept.virtual_size, &what).map_err(|e| match e {
            Differs::Call(error) => call(error),
            Differs::So(why) => refuse(&why),
        })?;
    }
    Ok(())
}

/// Whether the facts show the goal, and every snapshot of others as it was. Where commands change the
/// storage, others are not held off meanwhile: they may take and remove snapshots of their own, so only
/// ours is judged.
pub(crate) fn reached(
    before: &Facts,
    after: &Facts,
    goal: &Goal,
    way: Option<Way>,
) -> Result<(), &'static str> {
    if way == Some(Way::Commands) {
        return reached_by_commands(before, after, goal);
    }
    // Others stay as they were, and in their order.
    let kept = |gone: Option<&str>| {
        let mut now = after.snapshots.iter();
        (before.snapshots.iter())
            .filter(|s| gone != Some(s.identity.as_str()))
            .all(|s| now.any(|n| same(n, s)))
    };
    if after.findings.iter().any(|f| f.blocks) {
        return Err("it leaves the image unsound");
    }
    match goal {
        Goal::Held(new) => {
            let made = after.snapshots.iter().find(|s| s.mark.as_ref() == Some(&new.mark));
            let Some(made) = made else { return Err("it makes no snapshot") };
            if made.virtual_size != before.virtual_size || after.virtual_size != before.virtual_size
            {
                return Err("it changes the disk's size");
            }
            let others = before.snapshots.iter().filter(|s| s.mark.as_ref() != Some(&new.mark));
            if after.snapshots.len() != others.count() + 1 || !kept(None) {
                return Err("it touches other snapshots");
            }
        }
        Goal::Restored(identity) | Goal::Consumed(identity) => {
            let of = before.snapshots.iter().find(|s| s.identity == *identity);
            if of.is_none_or(|s| s.virtual_size != after.virtual_size) {
                return Err("the disk's size is not the snapshot's");
            }
            let both = after.snapshots.iter().zip(&before.snapshots);
            if after.snapshots.len() != before.snapshots.len()
                || !both.into_iter().all(|(now, then)| {
                    now == then || (then.identity == *identity && same_but_identity(now, then))
                })
            {
                return Err("it touches snapshots");
            }
        }
        Goal::Settled if after.unfinished.is_some() => return Err("something is half done still"),
        Goal::Settled => {}
        Goal::Empty(identity) => {
            if after.snapshots.iter().any(|s| s.identity == *identity) {
                return Err("the snapshot is still there");
            }
            let others = before.snapshots.iter().filter(|s| s.identity != *identity);
            if after.snapshots.len() != others.count() || !kept(Some(identity)) {
                return Err("it touches other snapshots");
            }
            if after.virtual_size != before.virtual_size {
                return Err("it changes the disk's size");
            }
        }
    }
    Ok(())
}

fn reached_by_commands(before: &Facts, after: &Facts, goal: &Goal) -> Result<(), &'static str> {
    let is_there = |wanted: &dyn Fn(&Snapshot) -> bool| after.snapshots.iter().any(wanted);
    match goal {
        Goal::Held(new) if !is_there(&|s| s.mark.as_ref() == Some(&new.mark)) => {
            Err("it makes no snapshot")
        }
        Goal::Restored(identity) | Goal::Consumed(identity) => {
            let of = before.snapshots.iter().find(|s| s.identity == *identity);
            let Some(of) = of else { return Err("there was no such snapshot") };
            // It may have been made again, under its mark.
            let kept =
                |s: &Snapshot| s.identity == *identity || (s.mark.is_some() && s.mark == of.mark);
            match is_there(&kept) || matches!(goal, Goal::Consumed(_)) {
                true if of.virtual_size == after.virtual_size => Ok(()),
                true => Err("the disk's size is not the snapshot's"),
                false => Err("the snapshot is gone"),
            }
        }
        Goal::Empty(identity) if is_there(&|s| s.identity == *identity) => {
            Err("the snapshot is still there")
        }
        Goal::Settled if after.unfinished.is_some() => Err("something is half done still"),
        Goal::Held(_) | Goal::Empty(_) | Goal::Settled => Ok(()),
    }
}

/// Whether a snapshot is as it was. What its store holds may have run over meanwhile: that is
/// told by itself.
fn same(now: &Snapshot, then: &Snapshot) -> bool {
    now == then || Snapshot { lost: then.lost, ..now.clone() } == *then
}

/// Whether one snapshot stands for another: made again, of the same content, under its mark.
fn same_but_identity(now: &Snapshot, then: &Snapshot) -> bool {
    now.mark.is_some() && Snapshot { identity: then.identity.clone(), ..now.clone() } == *then
}

/// Extents of one view that are looked at. A disk of 64 TiB in clusters of 64 KiB that nowhere lie side by
/// side has as many.
const EXTENTS_MAX: u64 = 1 << 30;
/// No storage cuts content into smaller pieces, but for a few at its edges.
const PIECE_MIN: u64 = 512;
const PIECES_ODD: u64 = 1 << 16;

/// Content before a plan and after it.
struct Compared<'a> {
    plugin: &'a Plugin<'a>,
    before: &'a Sight,
    after: &'a Sight,
    touched: Vec<(u64, u64)>,
    depth: Depth,
}

/// Why content is not the same.
enum Differs {
    /// The plugin could not say.
    Call(CallError),
    /// It is another, in words.
    So(String),
}

impl Compared<'_> {
    /// Fails unless this view before is that one after, of so many bytes, and lies in bytes that the plan
    /// does not touch.
    fn same(&self, from: &View, to: &View, size: u64, what: &str) -> Result<(), Differs> {
        let page = |sight, view, cursor, most| {
            self.plugin.extents(sight, view, cursor, most).map_err(Differs::Call)
        };
        let other = || Differs::So(format!("what {what} is not what it must be"));
        let most = if self.depth == Depth::Full { PAGE } else { BOUNDED_EXTENTS };
        let (mut cursor, mut seen) = (0, 0);
        loop {
            let old = page(self.before, from, cursor, most)?;
            let new = page(self.after, to, cursor, most)?;
            if old.extents.iter().any(|e| overwritten(e, &self.touched)) {
                return Err(other());
            }
            let reach = [&old.next, &new.next].into_iter().flatten().min().copied();
            if clipped(&old.extents, cursor, reach) != clipped(&new.extents, cursor, reach) {
                return Err(other());
            }
            // What is not listed could be anything.
            let ends = new.extents.last().map_or(cursor, |e| e.start.saturating_add(e.length));
            match reach {
                None if ends < size => {
                    return Err(Differs::So(format!("its list of what {what} ends early")));
                }
                Some(next) if self.depth == Depth::Full && next < size => {
                    seen += old.extents.len() as u64;
                    if seen > EXTENTS_MAX || seen > next / PIECE_MIN + PIECES_ODD {
                        return Err(Differs::So(format!("its list of what {what} never ends")));
                    }
                    cursor = next;
                }
                _ => return Ok(()),
            }
        }
    }
}

/// The bytes that a plan's steps touch, ascending and joined.
fn touched(plan: &Plan) -> Vec<(u64, u64)> {
    let mut spans: Vec<(u64, u64)> = plan.steps().iter().filter_map(Step::span).collect();
    spans.sort_unstable();
    spans.dedup_by(|next, last| {
        let joined = next.0 <= last.1;
        if joined {
            last.1 = last.1.max(next.1);
        }
        joined
    });
    spans
}

/// Whether a step touches the bytes in which content lies: it would change what is read there.
fn overwritten(extent: &Extent, touched: &[(u64, u64)]) -> bool {
    let (start, length) = match extent.content {
        Content::Data(at) => (at, extent.length),
        Content::Compressed(packed) => (packed.offset, packed.length),
        Content::Zero | Content::Backing => return false,
    };
    let end = start.saturating_add(length);
    let next = touched.partition_point(|(_, span_end)| *span_end <= start);
    touched.get(next).is_some_and(|(span_start, _)| *span_start < end)
}

/// Extents between two guest offsets, joined: how they were cut into pages does not matter.
fn clipped(extents: &[Extent], from: u64, to: Option<u64>) -> Vec<(u64, u64, Content)> {
    let to = to.unwrap_or(u64::MAX);
    let mut joined: Vec<(u64, u64, Content)> = Vec::new();
    for extent in extents {
        let start = extent.start.max(from);
        let end = extent.start.saturating_add(extent.length).min(to);
        if start >= end {
            continue;
        }
        let content = match &extent.content {
            Content::Data(at) => Content::Data(at + (start - extent.start)),
            other => *other,
        };
        if let Some((last_start, last_end, last)) = joined.last_mut() {
            let goes_on = match (&last, &content) {
                (Content::Data(a), Content::Data(b)) => *a + (*last_end - *last_start) == *b,
                (Content::Zero, Content::Zero) | (Content::Backing, Content::Backing) => true,
                _ => false,
            };
            if goes_on && *last_end == start {
                *last_end = end;
                continue;
            }
        }
        joined.push((start, end, content));
    }
    joined
}
