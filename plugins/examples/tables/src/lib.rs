//! An example of a third party's backend: the slot on images of a format that keeps snapshots within.
//!
//! The format is made up and small; what it shows is how an image's bytes are changed by a plan, and every
//! step and export that it takes. All numbers are of 64 bits, big-endian.
//!
//! ```text
//! header    512 bytes: magic, state, blocks, where the tables are, which table is in use, four snapshots
//! tables    room for six; each has an entry for every block: its offset, or 0 where it is all zeroes.
//!           Bit 0 of an entry says SHARED: a snapshot has that block too, and a writer copies it first
//! blocks    of 4096 bytes, wherever there is room
//! ```
//!
//! A take copies the table in use into a free one, with all its blocks shared, and lets the old one be the
//! snapshot's. So a snapshot costs a table and nothing else, and no block is ever moved.
//!
//! **Why a crash at any moment loses nothing.** What is in use is never changed but for SHARED bits, and these
//! only to *shared* while a snapshot needs it and to *not shared* when none does any more. A new table is written
//! where none is in use, and is made to count by one write of the header, which is one sector. The state
//! word is the plan's seal: software that opens an image for writing sets it to 0, so that the host knows after
//! a crash whether anybody wrote meanwhile.

mod format;
mod plan;
#[cfg(test)]
mod tests;

use snapslot_plugin_sdk::{
    Backend, Change, Content, Description, Extent, ExtentPage, Facts, Failure, FailureKind,
    Finding, Goal, ImageGrant, PlaceKind, Plan, Role, Snapshot, Stretch, StretchPage, Target, View,
};

use format::{BLOCK, Header, SHARED, Saved};

/// The backend.
#[derive(Debug)]
pub struct Tables;

impl Backend for Tables {
    fn describe() -> Description {
        Description {
            name: "tables".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            summary: "snapshots within images that keep them by tables".to_owned(),
            endings: vec![".tables".to_owned()],
            place: PlaceKind::Image,
            images: vec![ImageGrant {
                role: Role::Disk,
                changes: true,
                reason: "to read its tables, and to plan the tables of a snapshot".to_owned(),
            }],
            copies: None,
            queries: Vec::new(),
            actions: Vec::new(),
        }
    }

    fn inspect(target: &dyn Target) -> Result<Facts, Failure> {
        let image = target.image(Role::Disk)?;
        let header = Header::read(&*image)?;
        // Every table must be sound before anything is planned on it.
        for table in header.tables_in_use() {
            header.table(&*image, table)?;
        }
        let half_done = Finding {
            code: "half-done".to_owned(),
            message: "a plan was begun on it and not ended, and its journal is not here".to_owned(),
            blocks: true,
        };
        Ok(Facts {
            identity: None,
            virtual_size: header.size(),
            format: "tables".to_owned(),
            snapshots: header.saved.iter().map(|saved| snapshot(saved, &header)).collect(),
            findings: if header.state == 0 { Vec::new() } else { vec![half_done] },
            unfinished: None,
        })
    }

    fn plan(target: &dyn Target, goal: &Goal, plan: &mut dyn Plan) -> Result<(), Failure> {
        let image = target.image(Role::Disk)?;
        let header = Header::read(&*image)?;
        match goal {
            // Reached already: asked again after a crash, there is nothing to do.
            Goal::Held(new) if header.saved.iter().any(|s| s.mark == new.mark) => Ok(()),
            Goal::Held(new) => plan::take(&*image, &header, new, plan),
            Goal::Restored(identity) | Goal::Consumed(identity) => {
                plan::restore(&*image, &header, find(&header, identity)?, plan)
            }
            Goal::Empty(identity) => match find(&header, identity) {
                Ok(saved) => plan::delete(&*image, &header, saved, plan),
                Err(_) => Ok(()),
            },
            // The host carries plans on images on by itself.
            Goal::Settled => Ok(()),
        }
    }

    fn extents(
        target: &dyn Target,
        view: &View,
        cursor: u64,
        max: u32,
    ) -> Result<ExtentPage, Failure> {
        let image = target.image(Role::Disk)?;
        let header = Header::read(&*image)?;
        let table = match view {
            View::Current => header.current,
            View::Snapshot(identity) => find(&header, identity)?.table,
        };
        let entries = header.table(&*image, table)?;
        if cursor > header.size() || !cursor.is_multiple_of(BLOCK) {
            return Err(Failure::new(FailureKind::Invalid, "cursor", "no block begins there"));
        }
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = cursor;
        for entry in &entries[(cursor / BLOCK) as usize..] {
            let content = match entry & !SHARED {
                0 => Content::Zero,
                offset => Content::Data(offset),
            };
            let full = extents.len() == max as usize;
            match extents.last_mut() {
                // Joined where one goes on with the other: fewer extents, the same content.
                Some(last) if goes_on(last, &content) => last.length += BLOCK,
                _ if full => break,
                _ => extents.push(Extent { start: at, length: BLOCK, content }),
            }
            at += BLOCK;
        }
        let next = (at < header.size()).then_some(at);
        Ok(ExtentPage { extents, next })
    }

    fn measure(target: &dyn Target, identity: &str, _quick: bool) -> Result<Change, Failure> {
        let image = target.image(Role::Disk)?;
        let header = Header::read(&*image)?;
        let saved = find(&header, identity)?;
        let now = header.table(&*image, header.current)?;
        let then = header.table(&*image, saved.table)?;
        let others: Vec<Vec<u64>> = (header.saved.iter().filter(|s| s.mark != saved.mark))
            .map(|s| header.table(&*image, s.table))
            .collect::<Result<_, _>>()?;
        let block = |table: &[u64], n: usize| table[n] & !SHARED;
        let changed = (0..now.len()).filter(|n| block(&now, *n) != block(&then, *n)).count();
        let held = (0..now.len()).filter(|n| {
            let its = block(&then, *n);
            its != 0 && its != block(&now, *n) && others.iter().all(|o| block(o, *n) != its)
        });
        Ok(Change {
            changed_bytes: changed as u64 * BLOCK,
            held_bytes: held.count() as u64 * BLOCK,
            at_least: false,
        })
    }

    fn differences(
        target: &dyn Target,
        identity: &str,
        cursor: u64,
        max: u32,
    ) -> Result<StretchPage, Failure> {
        let image = target.image(Role::Disk)?;
        let header = Header::read(&*image)?;
        let now = header.table(&*image, header.current)?;
        let then = header.table(&*image, find(&header, identity)?.table)?;
        let mut stretches: Vec<Stretch> = Vec::new();
        for n in (cursor / BLOCK) as usize..now.len() {
            if now[n] & !SHARED == then[n] & !SHARED {
                continue;
            }
            let start = n as u64 * BLOCK;
            let full = stretches.len() == max as usize;
            match stretches.last_mut() {
                Some(last) if last.start + last.length == start => last.length += BLOCK,
                _ if full => {
                    return Ok(StretchPage { stretches, next: Some(start) });
                }
                _ => stretches.push(Stretch { start, length: BLOCK }),
            }
        }
        Ok(StretchPage { stretches, next: None })
    }
}

fn goes_on(last: &Extent, content: &Content) -> bool {
    match (&last.content, content) {
        (Content::Zero, Content::Zero) => true,
        (Content::Data(a), Content::Data(b)) => a + last.length == *b,
        _ => false,
    }
}

/// The identity of a snapshot is its mark: no two have the same.
fn find<'h>(header: &'h Header, identity: &str) -> Result<&'h Saved, Failure> {
    header.saved.iter().find(|s| s.mark == identity).ok_or_else(|| {
        let what = format!("the image has no snapshot {identity}");
        Failure::new(FailureKind::NotFound, "no-such-snapshot", what)
    })
}

fn snapshot(saved: &Saved, header: &Header) -> Snapshot {
    Snapshot {
        identity: saved.mark.clone(),
        name: format!("snapslot-{}", saved.mark),
        mark: Some(saved.mark.clone()),
        taken_seconds: saved.seconds,
        taken_nanoseconds: saved.nanoseconds,
        virtual_size: header.size(),
        vm_state_size: 0,
        lost: false,
    }
}

snapslot_plugin_sdk::export_backend!(crate::Tables);
