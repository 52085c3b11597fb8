//! Goal: whatever a crash leaves of a put-back on a device, nothing takes half of it for a disk,
//! and settling gives the old disk or the new one, once and for all; a device that somebody wrote
//! to since is left alone.
//!
//! Method: a file stands for the device. The sequence is stopped after each of its changes; what
//! was written since the last flush of the device may be there wholly, in parts, or not at all,
//! together with every state of the folder ([`super::crash`]). Each is settled twice, or put back
//! once more, or settled with another crash in between.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::super::*;
use super::crash::Model;
use super::*;

/// Two ends of a mebibyte and a middle that is no multiple of anything but the sector.
const SIZE: usize = (2 << 20) + (300 << 10) + 512;
const END: usize = 1 << 20;
const SECTOR: usize = 512;

struct Story {
    old: Vec<u8>,
    new: Vec<u8>,
}

impl Story {
    fn new() -> Self {
        let (old, mut new) = (bytes(1, SIZE), bytes(2, SIZE));
        // Some is equal, and some of the copy is zeroes.
        new[END + 4096..END + 70_000].copy_from_slice(&old[END + 4096..END + 70_000]);
        new[END + 100_000..END + 200_000].fill(0);
        Story { old, new }
    }

    /// A device with the old content and a folder with the copy of the new.
    fn begin(&self) -> (tempfile::TempDir, Copies) {
        let dir = scratch();
        let (disk, folder) = (dir.path().join("disk"), dir.path().join("copies"));
        write(&disk, &self.new);
        let copies = device(&disk, &folder);
        copies.save(&save(true), QUIET).expect("saved");
        write(&disk, &self.old);
        (dir, copies)
    }

    /// Nobody finds a disk in it that is neither the old nor the new.
    fn judge(&self, what: &str, disk: &[u8]) {
        let has = |of: &[u8]| {
            let end = |at: usize| !(END..SIZE - END).contains(&at);
            (0..SIZE / SECTOR).any(|i| {
                let at = i * SECTOR..(i + 1) * SECTOR;
                end(at.start) && end(at.end - 1) && disk[at.clone()] == of[at]
            })
        };
        let middle = END..SIZE - END;
        if has(&self.old) {
            assert!(
                disk[middle.clone()] == self.old[middle.clone()],
                "{what}: old ends, new middle"
            );
        }
        if has(&self.new) {
            assert!(disk[middle.clone()] == self.new[middle], "{what}: new ends, old middle");
        }
    }
}

/// What may be on the device when `now` was written since `flushed` was flushed.
fn torn(now: &[u8], flushed: &[u8]) -> Vec<Vec<u8>> {
    let mix = |chosen: &dyn Fn(usize) -> bool| {
        let mut mixed = flushed.to_vec();
        for (i, (to, from)) in mixed.chunks_mut(SECTOR).zip(now.chunks(SECTOR)).enumerate() {
            if chosen(i) {
                to.copy_from_slice(from);
            }
        }
        mixed
    };
    let sectors = now.len() / SECTOR;
    let mut all = vec![now.to_vec()];
    if now != flushed {
        all.push(flushed.to_vec());
        all.push(mix(&|i| i % 2 == 0));
        all.push(mix(&|i| i % 7 == 3));
        all.push(mix(&|i| i < sectors / 2));
        all.push(mix(&|i| i >= sectors / 2));
    }
    all
}

/// Builds a state in a folder of its own.
fn build(disk: &[u8], files: &Listing) -> (tempfile::TempDir, Copies) {
    let dir = scratch();
    let (path, folder) = (dir.path().join("disk"), dir.path().join("copies"));
    std::fs::create_dir(&folder).expect("a folder");
    write(&path, disk);
    for (name, content) in files {
        write(&folder.join(name), content);
    }
    let copies = device(&path, &folder);
    (dir, copies)
}

fn disk_of(dir: &tempfile::TempDir) -> Vec<u8> {
    std::fs::read(dir.path().join("disk")).expect("the device")
}

fn settled_once_and_for_all(what: &str, story: &Story, dir: &tempfile::TempDir, copies: &Copies) {
    let unfinished = copies.unfinished().unwrap_or_else(|e| panic!("{what}: {e}"));
    let settled = copies.settle(QUIET).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(unfinished.is_some(), settled != Settled::default(), "{what}: {unfinished:?}");
    let disk = disk_of(dir);
    assert!(disk == story.old || disk == story.new, "{what}: settled, it is neither old nor new");
    match settled.put_back {
        Some(Ended::TakenBack) => assert!(disk == story.old, "{what}: said to be taken back"),
        Some(Ended::Finished(mark)) => {
            assert!(disk == story.new && mark == MARK, "{what}: said to be finished");
        }
        None => {}
    }
    assert_eq!(copies.settle(QUIET).expect("settled again"), Settled::default(), "{what}");
    assert!(disk_of(dir) == disk, "{what}: settled again, it changed");
    let folder = listing(&dir.path().join("copies"));
    assert_eq!(brief(&folder), [(OsStr::new(&copy_name("pretended")), SIZE)], "{what}");
}

/// Runs with a stop after change `stop`; what the folder had by then, and the last flushed
/// device. `None`: it ended before.
fn cut(
    copies: &mut Copies,
    dir: &tempfile::TempDir,
    stop: usize,
    run: &dyn Fn(&Copies) -> Result<(), CopyError>,
) -> Option<(Vec<Listing>, Vec<u8>)> {
    let path = dir.path().join("disk");
    let model = Model::of(&dir.path().join("copies"));
    let seen = Arc::new(Mutex::new((model, disk_of(dir), 0)));
    let watcher = Arc::clone(&seen);
    probed(copies, move |event| {
        let mut seen = watcher.lock().expect("unpoisoned");
        seen.0.saw(event);
        if event == Event::DiskFlushed {
            seen.1 = std::fs::read(&path).expect("the device");
        }
        seen.2 += 1;
        if seen.2 == stop + 1 { Err(DiskError::Crashed) } else { Ok(()) }
    });
    let ended = run(copies);
    copies.pretend.probe = None;
    let seen = seen.lock().expect("unpoisoned");
    match ended {
        Ok(()) => None,
        Err(e) if e.is_crash() => Some((seen.0.states(), seen.1.clone())),
        Err(e) => panic!("stopped by something else: {e}"),
    }
}

#[test]
fn a_put_back_that_is_cut_off_is_taken_back_or_finished() {
    let story = Story::new();
    let (mut judged, mut stops) = (0, 0);
    for stop in 0.. {
        let (dir, mut copies) = story.begin();
        let run = |copies: &Copies| copies.put_back(MARK, QUIET);
        let Some((folders, flushed)) = cut(&mut copies, &dir, stop, &run) else { break };
        stops += 1;
        for (f, files) in folders.iter().enumerate() {
            for (d, disk) in torn(&disk_of(&dir), &flushed).into_iter().enumerate() {
                let what = format!("change {stop}, device {d}, folder {f} {:?}", brief(files));
                story.judge(&what, &disk);
                let (dir, copies) = build(&disk, files);
                settled_once_and_for_all(&what, &story, &dir, &copies);
                // Asked for once more, from whatever is there.
                let (dir, copies) = build(&disk, files);
                copies.put_back(MARK, QUIET).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(disk_of(&dir) == story.new, "{what}: put back once more");
                assert_eq!(copies.unfinished().expect("a look"), None, "{what}");
                judged += 1;
            }
        }
    }
    assert!(stops >= 18 && judged > 50, "{judged} states of {stops} stops");
}

#[test]
fn a_settling_that_is_cut_off_is_carried_on_by_the_next() {
    let story = Story::new();
    let mut judged = 0;
    for stop in 0.. {
        let (dir, mut copies) = story.begin();
        let run = |copies: &Copies| copies.put_back(MARK, QUIET);
        let Some((folders, flushed)) = cut(&mut copies, &dir, stop, &run) else { break };
        let half = torn(&disk_of(&dir), &flushed).into_iter().nth(2).unwrap_or(disk_of(&dir));
        let files = folders.last().expect("a state");
        for again in 0.. {
            let (dir, mut copies) = build(&half, files);
            let run = |copies: &Copies| copies.settle(QUIET).map(drop);
            let Some((folders, flushed)) = cut(&mut copies, &dir, again, &run) else { break };
            for files in &folders {
                for (d, disk) in torn(&disk_of(&dir), &flushed).into_iter().enumerate() {
                    let what =
                        format!("change {stop}, then {again}, device {d}, {:?}", brief(files));
                    story.judge(&what, &disk);
                    let (dir, copies) = build(&disk, files);
                    settled_once_and_for_all(&what, &story, &dir, &copies);
                    judged += 1;
                }
            }
        }
    }
    assert!(judged > 60, "{judged} states");
}

#[test]
fn a_failure_before_the_middle_is_taken_back_and_one_in_it_is_told() {
    let story = Story::new();
    let (mut back, mut told) = (0, 0);
    for stop in 0.. {
        let (dir, mut copies) = story.begin();
        stopping(&mut copies, stop, Stop::Fail);
        if copies.put_back(MARK, QUIET).is_ok() {
            break;
        }
        copies.pretend.probe = None;
        if copies.unfinished().expect("a look").is_none() {
            let disk = disk_of(&dir);
            assert!(disk == story.old || disk == story.new, "failed at change {stop}");
            back += 1;
        } else {
            // What would be needed to finish it is kept.
            assert!(matches!(copies.discard(MARK), Err(CopyError::Unfinished { .. })), "{stop}");
            let mut other = save(true);
            other.mark = "00000000000000ff".to_owned();
            let refused = copies.save(&other, QUIET).expect_err("a copy of half a disk");
            assert!(matches!(refused, CopyError::Unfinished { .. }), "{refused}");
            told += 1;
        }
        settled_once_and_for_all(&format!("failed at change {stop}"), &story, &dir, &copies);
    }
    assert!(back > 3 && told > 3, "{back} taken back, {told} told");
}

/// Stops where `reached` is true of the folder's names and the device.
fn stopped_where(
    story: &Story,
    reached: &dyn Fn(&str, &[u8]) -> bool,
) -> (tempfile::TempDir, Copies) {
    for stop in 0.. {
        let (dir, mut copies) = story.begin();
        let run = |copies: &Copies| copies.put_back(MARK, QUIET);
        cut(&mut copies, &dir, stop, &run).expect("no such moment");
        let names = format!("{:?}", brief(&listing(&dir.path().join("copies"))));
        if reached(&names, &disk_of(&dir)) {
            return (dir, copies);
        }
    }
    unreachable!("there are fewer changes than numbers")
}

fn scribble(dir: &tempfile::TempDir, at: usize) -> Vec<u8> {
    let file = std::fs::File::options().write(true).open(dir.path().join("disk"));
    file.expect("the device").write_all_at(&[0xff; SECTOR], at as u64).expect("a write");
    disk_of(dir)
}

#[test]
fn what_somebody_wrote_since_is_left_alone_until_a_person_asks_again() {
    type Reached = fn(&str, &[u8]) -> bool;
    let cases: [(&str, Reached); 3] = [
        ("ends partly zeroed", |names, disk| names.contains("-begun\"") && disk[0] == 0),
        ("middle half done", |names, _| names.contains("-body\"")),
        ("ends partly new", |names, _| names.contains("-head\"")),
    ];
    let story = Story::new();
    for (case, reached) in cases {
        let (dir, copies) = stopped_where(&story, &reached);
        let disk = scribble(&dir, 4096);
        for _ in 0..2 {
            let error = copies.settle(QUIET).expect_err(case);
            assert!(matches!(error, CopyError::Overtaken { .. }), "{case}: {error}");
            assert!(disk_of(&dir) == disk, "{case}: it was overwritten");
        }
        copies.put_back(MARK, QUIET).unwrap_or_else(|e| panic!("{case}: asked again: {e}"));
        assert!(disk_of(&dir) == story.new, "{case}: asked again");
        assert_eq!(copies.unfinished().expect("a look"), None, "{case}");
    }
}

#[test]
fn a_disk_that_was_used_before_its_marker_went_keeps_what_was_written() {
    let story = Story::new();
    type Reached<'a> = &'a dyn Fn(&str, &[u8]) -> bool;
    let cases: [(&str, Reached<'_>, Ended); 2] = [
        (
            "restored",
            &|n, disk| n.contains("-head\"") && disk == story.new,
            Ended::Finished(MARK.to_owned()),
        ),
        ("not begun", &|n, disk| n.contains("-begun\"") && disk == story.old, Ended::TakenBack),
    ];
    for (case, reached, ended) in cases {
        let (dir, copies) = stopped_where(&story, reached);
        scribble(&dir, 4096);
        let disk = scribble(&dir, END + 8192);
        assert_eq!(copies.settle(QUIET).expect(case).put_back, Some(ended), "{case}");
        assert!(disk_of(&dir) == disk, "{case}: what the machine wrote is gone");
    }
}

#[test]
fn what_is_equal_is_not_written_and_sizes_must_agree() {
    let story = Story::new();
    for size in [0, 512, END, END + 512, 2 * END, 2 * END + 512] {
        let dir = scratch();
        let (path, folder) = (dir.path().join("disk"), dir.path().join("copies"));
        write(&path, &story.new[..size]);
        let copies = device(&path, &folder);
        copies.save(&save(true), QUIET).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
        write(&path, &story.old[..size]);
        copies.put_back(MARK, QUIET).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
        assert!(disk_of(&dir) == story.new[..size], "{size} bytes");
        write(&path, &story.old[..size + 512]);
        let error = copies.put_back(MARK, QUIET).expect_err("another size");
        assert!(matches!(error, CopyError::Size { .. }), "{error}");
        assert!(disk_of(&dir) == story.old[..size + 512], "{size} bytes and 512");
    }
}
