//! Putting a copy back onto a block device, which has no name to change.
//!
//! The device is overwritten in place, and what makes it a disk (partition tables, the label of a
//! volume manager, most file systems' superblocks) lies within its *ends*, the first and last
//! mebibyte. They are zeroes while the middle is neither the old nor the new: nothing starts
//! from half a disk. How far it is stands in the name of a file in the folder, the *marker*:
//!
//! ```text
//! marker           device                                   cut off there, settling
//! -                old
//! ….part           old                                      removes the file
//! …-begun          old; ends old or zero, in parts          writes back the ends: taken back
//! …-body           ends zero, middle old or new, in parts   goes on: finished
//! …-head           middle new; ends zero or new, in parts   writes the ends: finished
//! -                new
//! ```
//! Between two lines there is a flush of the device and then a rename of the marker, made durable.
//! The marker's content is the old ends. The middle is compared first: what is equal is not
//! written.
//!
//! Settling trusts no clock but the ends themselves: sectors there that are neither what they were
//! nor what they would be say that somebody wrote since. Then nothing is overwritten unless a
//! person asks for the restore once more.

use std::ffi::OsString;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use snapslot_disk::Doing;
use snapslot_slot::is_mark;

use super::content::{self, Move, Onto, read};
use super::folder::Event;
use super::{CopyError, Ended, Opened, PART, RESTORING, Watch};

/// Bytes at each end. The first mebibyte is before where partitions begin; the last holds the
/// second partition table.
const END: u64 = 1 << 20;
/// What a device writes wholly or not at all.
const SECTOR: usize = 512;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Begun,
    Body,
    Head,
}

const STAGES: [(Stage, &str); 3] =
    [(Stage::Begun, "begun"), (Stage::Body, "body"), (Stage::Head, "head")];

/// The file that tells.
#[derive(Clone, Debug)]
pub(super) struct Marker {
    name: OsString,
    mark: String,
    stage: Stage,
}

/// The marker's mark and stage, from its part of the name.
fn parse(part: &str) -> Option<(&str, Stage)> {
    let (mark, word) = part.strip_prefix(RESTORING)?.strip_prefix('-')?.split_once('-')?;
    let stage = STAGES.iter().find(|(_, w)| *w == word)?.0;
    is_mark(mark).then_some((mark, stage))
}

/// Whether this is the part of a marker's name.
pub(super) fn is_marker(part: &str) -> bool {
    parse(part).is_some()
}

/// The ends of a device of this size, and the middle.
fn ends(size: u64) -> ([Range<u64>; 2], Range<u64>) {
    let head = size.min(END);
    let tail = size.saturating_sub(END).max(head);
    ([0..head, tail..size], head..tail)
}

/// What sectors of the ends say, each against what it may be beside zeroes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Some are zeroes and should not be.
    missing: bool,
    /// Some are of neither kind.
    foreign: bool,
}

fn judge(now: &[u8], should: &[u8]) -> Verdict {
    let mut verdict = Verdict::default();
    for (now, should) in now.chunks(SECTOR).zip(should.chunks(SECTOR)) {
        if now != should {
            match now.iter().all(|b| *b == 0) {
                true => verdict.missing = true,
                false => verdict.foreign = true,
            }
        }
    }
    verdict
}

impl Opened {
    /// The marker, if a put-back is under way.
    pub(super) fn marker(&self) -> Result<Option<Marker>, CopyError> {
        if self.is_file {
            return Ok(None);
        }
        let mut found: Option<Marker> = None;
        for name in self.ours()? {
            let Some((mark, stage)) = self.part_of_ours(&name).and_then(parse) else { continue };
            let mark = mark.to_owned();
            if found.replace(Marker { name: name.clone(), mark, stage }).is_some() {
                let why = "there is more than one restore of this device";
                return Err(CopyError::Untrusted { name: self.folder.say(&name), why });
            }
        }
        Ok(found)
    }

    pub(super) fn overwrite(&self, mark: &str, watch: &Watch<'_>) -> Result<(), CopyError> {
        let work = self.open_overwrite(mark)?;
        let marker = match self.marker()? {
            // The ends may be zero already, and what the middle is nobody knows: there is no way
            // back, and the old ends are no use any more.
            Some(marker) if marker.stage != Stage::Begun => {
                work.write_ends(&vec![0; work.ends_length()])?;
                self.advance(&marker, mark, Stage::Body)?
            }
            begun => {
                if let Some(marker) = begun {
                    match self.take_back(&work, &marker) {
                        // They wrote, and now a person wants the restore all the same.
                        Err(CopyError::Overtaken { .. }) => self.drop_marker(&marker)?,
                        result => result?,
                    }
                }
                if (watch.stop)() {
                    return Err(CopyError::Cancelled);
                }
                let marker = self.begin(&work, mark)?;
                let zeroed = work.write_ends(&vec![0; work.ends_length()]);
                if let Err(e) = zeroed {
                    if !e.is_crash() {
                        // If this fails too, the marker stays and says so.
                        let _ = self.take_back(&work, &marker);
                    }
                    return Err(e);
                }
                self.advance(&marker, mark, Stage::Body)?
            }
        };
        self.finish(&work, marker, watch)
    }

    /// Ends a put-back that was cut off.
    pub(super) fn end_overwrite(&self, watch: &Watch<'_>) -> Result<Option<Ended>, CopyError> {
        let Some(marker) = self.marker()? else { return Ok(None) };
        let work = self.open_overwrite(&marker.mark)?;
        let overtaken =
            || CopyError::Overtaken { name: self.say(), marker: self.folder.say(&marker.name) };
        let now = work.read_ends(&work.device, &self.say())?;
        match marker.stage {
            Stage::Begun => {
                self.take_back(&work, &marker)?;
                return Ok(Some(Ended::TakenBack));
            }
            Stage::Body if now.iter().any(|b| *b != 0) => return Err(overtaken()),
            Stage::Body => {}
            Stage::Head => {
                let verdict = judge(&now, &work.read_ends(&work.copy, &work.copy_name)?);
                match (verdict.missing, verdict.foreign) {
                    (true, true) => return Err(overtaken()),
                    // All there, and written to since: it ended, only the marker stayed.
                    (false, true) => {
                        self.drop_marker(&marker)?;
                        return Ok(Some(Ended::Finished(marker.mark)));
                    }
                    (_, false) => {}
                }
            }
        }
        let mark = marker.mark.clone();
        self.finish(&work, marker, watch)?;
        Ok(Some(Ended::Finished(mark)))
    }

    fn open_overwrite(&self, mark: &str) -> Result<Overwrite<'_>, CopyError> {
        let (name, copy, meta) = self.open_copy(mark)?;
        let device = self.open_disk(true)?;
        self.refuse_used(&device)?;
        let size = content::size(&device, &self.say())?;
        if size != meta.len() {
            return Err(CopyError::Size { name: self.say(), device: size, copy: meta.len() });
        }
        Ok(Overwrite { copies: self, device, copy, copy_name: self.folder.say(&name), size })
    }

    /// Makes the first marker: the old ends, durable before they go.
    fn begin(&self, work: &Overwrite<'_>, mark: &str) -> Result<Marker, CopyError> {
        let name = self.marker_name(mark, Stage::Begun);
        let mut part = name.clone();
        part.push(PART);
        self.remove_own(&part)?;
        let make = || {
            let old = work.read_ends(&work.device, &self.say())?;
            let file = self.folder.create(&part)?;
            file.write_all_at(&old, 0)
                .map_err(|e| CopyError::io(self.folder.say(&part), Doing::Write, e))?;
            self.folder.tell(Event::Wrote(&part))?;
            self.folder.flush(&part, &file)?;
            self.folder.rename_new(&part, &name)?;
            self.tidy(&name, self.folder.sync())
        };
        self.tidy(&part, make())?;
        Ok(Marker { name, mark: mark.to_owned(), stage: Stage::Begun })
    }

    fn marker_name(&self, mark: &str, stage: Stage) -> OsString {
        let word = STAGES.iter().find(|(s, _)| *s == stage).map_or("", |(_, word)| word);
        self.name(&format!("{RESTORING}-{mark}-{word}"))
    }

    fn advance(&self, from: &Marker, mark: &str, stage: Stage) -> Result<Marker, CopyError> {
        let name = self.marker_name(mark, stage);
        if name != from.name {
            self.folder.rename_new(&from.name, &name)?;
            self.folder.sync()?;
        }
        Ok(Marker { name, mark: mark.to_owned(), stage })
    }

    fn drop_marker(&self, marker: &Marker) -> Result<(), CopyError> {
        self.folder.remove(&marker.name)?;
        self.folder.sync()
    }

    fn take_back(&self, work: &Overwrite<'_>, marker: &Marker) -> Result<(), CopyError> {
        let (name, say) = (&marker.name, self.folder.say(&marker.name));
        let Some(file) = self.folder.read(name)? else {
            return Err(CopyError::Changed { name: say });
        };
        let meta = self.folder.trust(name, &file, None)?;
        if meta.len() != work.ends_length() as u64 {
            return Err(CopyError::Changed { name: say });
        }
        let mut old = vec![0; work.ends_length()];
        read(&file, &say, 0, &mut old)?;
        let verdict = judge(&work.read_ends(&work.device, &self.say())?, &old);
        match (verdict.missing, verdict.foreign) {
            (true, true) => {
                return Err(CopyError::Overtaken { name: self.say(), marker: say });
            }
            // Nothing was zeroed, or the ends were written whole since.
            (false, true) => {}
            (_, false) => work.write_ends(&old)?,
        }
        self.drop_marker(marker)
    }

    /// From zeroed ends on: the middle, the ends, the end.
    fn finish(
        &self,
        work: &Overwrite<'_>,
        marker: Marker,
        watch: &Watch<'_>,
    ) -> Result<(), CopyError> {
        let marker = match marker.stage {
            Stage::Head => marker,
            _ => {
                work.write_middle(watch)?;
                self.advance(&marker, &marker.mark, Stage::Head)?
            }
        };
        work.write_ends(&work.read_ends(&work.copy, &work.copy_name)?)?;
        self.drop_marker(&marker)
    }
}

/// A device and the copy that goes onto it.
struct Overwrite<'a> {
    copies: &'a Opened,
    device: File,
    copy: File,
    copy_name: String,
    size: u64,
}

impl Overwrite<'_> {
    fn ends_length(&self) -> usize {
        // At most 2 MiB.
        ends(self.size).0.iter().map(|r| (r.end - r.start) as usize).sum()
    }

    fn read_ends(&self, file: &File, name: &str) -> Result<Vec<u8>, CopyError> {
        let mut bytes = vec![0; self.ends_length()];
        let [head, tail] = ends(self.size).0;
        let (first, second) = bytes.split_at_mut((head.end - head.start) as usize);
        read(file, name, head.start, first)?;
        read(file, name, tail.start, second)?;
        Ok(bytes)
    }

    fn write_ends(&self, bytes: &[u8]) -> Result<(), CopyError> {
        let [head, tail] = ends(self.size).0;
        let (first, second) = bytes.split_at((head.end - head.start) as usize);
        for (at, bytes) in [(head.start, first), (tail.start, second)] {
            self.device
                .write_all_at(bytes, at)
                .map_err(|e| CopyError::io(self.copies.say(), Doing::Write, e))?;
            self.copies.folder.tell(Event::DiskWrote)?;
        }
        self.flush()
    }

    fn write_middle(&self, watch: &Watch<'_>) -> Result<(), CopyError> {
        let content = Move {
            from: &self.copy,
            to: &self.device,
            from_name: self.copy_name.clone(),
            to_name: self.copies.say(),
            onto: Onto::Used,
        };
        // There is no way back from here, so nothing stops it.
        let watch = Watch { progress: watch.progress, stop: &|| false };
        let middle = ends(self.size).1;
        content.run(std::slice::from_ref(&middle), &watch, &|| {
            self.copies.folder.tell(Event::DiskWrote)?;
            self.flush()
        })
    }

    fn flush(&self) -> Result<(), CopyError> {
        self.device.sync_data().map_err(|e| CopyError::io(self.copies.say(), Doing::Flush, e))?;
        self.copies.folder.tell(Event::DiskFlushed)
    }
}
