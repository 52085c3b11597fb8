//! Goal: whatever a crash leaves of a sequence on files, the disk is the old or the new, a copy is
//! whole or not there, and settling once is enough.
//!
//! Method: the sequence is stopped after each of its changes. What was not flushed by then may be
//! lost: names made since the last flush of the folder from any point on, content of files since
//! their last flush wholly or half. Every such state is built in a folder of its own, judged,
//! settled, judged again, and settled once more, which must change nothing.

use std::sync::Arc;

use super::super::*;
use super::*;

/// What of a file's content reaches the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    All,
    Nothing,
    Zeroes,
    Half,
}

pub(super) const FATES: [Fate; 4] = [Fate::All, Fate::Nothing, Fate::Zeroes, Fate::Half];

#[derive(Clone, Debug)]
enum Name {
    Add(OsString, usize),
    Move(OsString, OsString),
    Remove(OsString),
}

/// A folder as the disk has it, and what is on the way.
#[derive(Debug)]
pub(super) struct Model {
    dir: PathBuf,
    /// Content, and whether it is durable.
    files: Vec<(Vec<u8>, bool)>,
    durable: BTreeMap<OsString, usize>,
    pending: Vec<Name>,
}

impl Model {
    pub(super) fn of(dir: &Path) -> Self {
        let mut model = Model {
            dir: dir.to_owned(),
            files: Vec::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
        };
        for (name, content) in listing(dir) {
            model.durable.insert(name, model.files.len());
            model.files.push((content, true));
        }
        model
    }

    fn names(&self, pending: usize) -> BTreeMap<OsString, usize> {
        let mut names = self.durable.clone();
        for change in &self.pending[..pending] {
            match change {
                Name::Add(name, file) => {
                    names.insert(name.clone(), *file);
                }
                Name::Move(from, to) => {
                    let file = names.remove(from).expect("a name that was there");
                    names.insert(to.clone(), file);
                }
                Name::Remove(name) => {
                    names.remove(name);
                }
            }
        }
        names
    }

    pub(super) fn saw(&mut self, event: Event<'_>) {
        match event {
            Event::Created(name) => {
                self.pending.push(Name::Add(name.to_owned(), self.files.len()));
                self.files.push((Vec::new(), false));
            }
            Event::Wrote(name) | Event::Flushed(name) => {
                let file = self.names(self.pending.len())[name];
                let content = std::fs::read(self.dir.join(name)).expect("the file");
                self.files[file] = (content, matches!(event, Event::Flushed(_)));
            }
            Event::Renamed(from, to) => {
                self.pending.push(Name::Move(from.to_owned(), to.to_owned()));
            }
            Event::Removed(name) => self.pending.push(Name::Remove(name.to_owned())),
            Event::Synced => {
                self.durable = self.names(self.pending.len());
                self.pending.clear();
            }
            Event::DiskWrote | Event::DiskFlushed => {}
        }
    }

    /// Every state that a crash now may leave.
    pub(super) fn states(&self) -> Vec<Listing> {
        let mut states: Vec<Listing> = Vec::new();
        for pending in 0..=self.pending.len() {
            for fate in FATES {
                let content = |file: usize| {
                    let (content, durable) = &self.files[file];
                    match fate {
                        _ if *durable => content.clone(),
                        Fate::All => content.clone(),
                        Fate::Nothing => Vec::new(),
                        Fate::Zeroes => vec![0; content.len()],
                        Fate::Half => content[..content.len() / 2].to_vec(),
                    }
                };
                let state =
                    self.names(pending).into_iter().map(|(n, file)| (n, content(file))).collect();
                if !states.contains(&state) {
                    states.push(state);
                }
            }
        }
        states
    }
}

/// Runs it with a stop after every change, and gives each state that can be found then. The last
/// ones, with `true`, are those after it ended well.
fn crashes(
    prepare: &dyn Fn() -> (tempfile::TempDir, Copies),
    run: &dyn Fn(&Copies) -> Result<(), CopyError>,
    judge: &dyn Fn(&str, &Listing, bool),
) -> usize {
    let mut judged = 0;
    for stop in 0.. {
        let (dir, mut copies) = prepare();
        let model = Arc::new(Mutex::new((Model::of(dir.path()), 0)));
        let seen = Arc::clone(&model);
        probed(&mut copies, move |event| {
            let mut seen = seen.lock().expect("unpoisoned");
            if seen.1 > stop {
                return Err(DiskError::Crashed);
            }
            seen.0.saw(event);
            seen.1 += 1;
            if seen.1 > stop { Err(DiskError::Crashed) } else { Ok(()) }
        });
        let ended = run(&copies);
        let (model, count) = &*model.lock().expect("unpoisoned");
        assert!(ended.is_ok() || *count == stop + 1, "stopped by something else: {ended:?}");
        for state in model.states() {
            judge(&format!("after change {stop}: {:?}", brief(&state)), &state, ended.is_ok());
            judged += 1;
        }
        if ended.is_ok() {
            assert!(stop > 3, "too few changes were seen: {stop}");
            return judged;
        }
    }
    unreachable!("there are fewer changes than numbers")
}

/// Builds the state, settles it twice, and gives what is there then.
fn settle(what: &str, state: &Listing) -> (Settled, Listing) {
    let dir = scratch();
    for (name, content) in state {
        write(&dir.path().join(name), content);
    }
    let copies = Copies::beside(&dir.path().join("vm.img"));
    let unfinished = copies.unfinished().unwrap_or_else(|e| panic!("{what}: {e}"));
    let settled = copies.settle(QUIET).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(unfinished.is_some(), settled != Settled::default(), "{what}: {unfinished:?}");
    let after = listing(dir.path());
    assert_eq!(copies.settle(QUIET).expect("settled again"), Settled::default(), "{what}");
    assert!(listing(dir.path()) == after, "{what}: settled again, it changed");
    assert_eq!(copies.unfinished().expect("a look"), None, "{what}");
    (settled, after)
}

fn expect(what: &str, found: &Listing, allowed: &[&Listing]) {
    assert!(allowed.contains(&found), "{what}: then {:?}", brief(found));
}

fn files<const N: usize>(files: [(&str, &[u8]); N]) -> Listing {
    files.into_iter().map(|(n, c)| (n.into(), c.to_vec())).collect()
}

#[test]
fn a_save_that_is_cut_off_leaves_a_whole_copy_or_none() {
    let disk = bytes(1, 150_000);
    let copy = copy_name("vm.img");
    let none = files([("vm.img", &disk)]);
    let mut held = none.clone();
    held.insert(copy.clone(), disk.clone());
    let prepare = || {
        let (dir, _, copies) = image(&disk);
        (dir, copies)
    };
    let judged = crashes(
        &prepare,
        &|copies| copies.save(&save(true), QUIET).map(drop),
        &|what, state, ended| {
            assert!(
                state.get(&copy).is_none_or(|c| *c == disk),
                "{what}: half a copy has its name"
            );
            let (_, after) = settle(what, state);
            let allowed: &[&Listing] = if ended { &[&held] } else { &[&none, &held] };
            expect(what, &after, allowed);
        },
    );
    assert!(judged > 10, "{judged} states");
}

#[test]
fn a_restore_that_is_cut_off_leaves_the_old_disk_or_the_new() {
    let (disk, now) = (bytes(1, 150_000), bytes(2, 99_000));
    let copy = copy_name("vm.img");
    let mut old = files([("vm.img", &now)]);
    old.insert(copy.clone(), disk.clone());
    let mut new = old.clone();
    new.insert("vm.img".into(), disk.clone());
    let prepare = || {
        let (dir, path, copies) = image(&disk);
        copies.save(&save(true), QUIET).expect("saved");
        write(&path, &now);
        (dir, copies)
    };
    let judged =
        crashes(&prepare, &|copies| copies.put_back(MARK, QUIET), &|what, state, ended| {
            let is = &state[OsStr::new("vm.img")];
            assert!(*is == disk || *is == now, "{what}: neither old nor new, before settling");
            let (settled, after) = settle(what, state);
            let allowed: &[&Listing] = if ended { &[&new] } else { &[&old, &new] };
            expect(what, &after, allowed);
            if settled.put_back == Some(Ended::TakenBack) {
                expect(what, &after, &[&old]);
            }
        });
    assert!(judged > 10, "{judged} states");
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let (disk, now) = (bytes(1, 150_000), bytes(2, 99_000));
    for restore in [false, true] {
        for stop in 0.. {
            let (dir, path, mut copies) = image(&disk);
            if restore {
                copies.save(&save(true), QUIET).expect("saved");
                write(&path, &now);
            }
            let before = listing(dir.path());
            stopping(&mut copies, stop, Stop::Fail);
            let result = match restore {
                false => copies.save(&save(true), QUIET).map(drop),
                true => copies.put_back(MARK, QUIET),
            };
            let Err(error) = result else {
                assert!(stop > 2, "too few changes were seen: {stop}");
                break;
            };
            assert!(error.is_no_space(), "{error}");
            let mut renamed = before.clone();
            renamed.insert("vm.img".into(), disk.clone());
            // Past the rename, the failed flush of the folder cannot take it back.
            let allowed: &[&Listing] = if restore { &[&before, &renamed] } else { &[&before] };
            expect(&format!("failed at change {stop}"), &listing(dir.path()), allowed);
            copies.pretend = Pretend::default();
            assert_eq!(copies.settle(QUIET).expect("settled"), Settled::default(), "{stop}");
        }
    }
}

#[test]
fn a_delete_that_is_cut_off_leaves_a_whole_copy_or_none() {
    let disk = bytes(1, 5000);
    for stop in 0..2 {
        let (dir, _, mut copies) = image(&disk);
        copies.save(&save(true), QUIET).expect("saved");
        stopping(&mut copies, stop, Stop::Crash);
        assert!(copies.discard(MARK).expect_err("stopped").is_crash());
        // The removal is one change: before it the copy is untouched, after it it is gone.
        assert_eq!(brief(&listing(dir.path())), [(OsStr::new("vm.img"), disk.len())]);
    }
}
