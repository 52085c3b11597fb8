//! Running the verbs on damaged images and judging what they did.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use snapslot_test_support::{Check, Image, Scratch, Snapslot, SplitMix64, difference, journal_of};

use snapslot_testkit::malformed::Damage;

use crate::snapslot;

/// Who comes near this hangs: none needs a second, and a busy machine takes its time.
const DEADLINE: Duration = Duration::from_secs(120);
/// No verb needs more new room than this for a disk so small.
const GROWTH_MAX: u64 = 16 << 20;
const SIZE: u64 = (4 << 20) + 512;
const FOREIGN: &str = "foreign";

/// An image in a place, its sound bytes, and the records that belong to it.
struct Patient {
    image: Image,
    sound: Vec<u8>,
    records: PathBuf,
    product: Snapslot,
    /// The snapshot in the slot.
    held: Option<String>,
}

pub(super) struct Bench {
    patients: [Patient; 2],
    problems: Vec<String>,
    done: u64,
    refused: u64,
    unread_but_done: Vec<String>,
    _scratch: Scratch,
}

impl Bench {
    /// Runs every damage that `damages` makes of a sound image, with an empty slot and with a
    /// held one.
    pub(super) fn run(test: &str, damages: impl Fn(&[u8]) -> Vec<Damage>) {
        let only = std::env::var("SNAPSLOT_TEST_CASE").unwrap_or_default();
        let mut bench = Bench::new();
        let mut cases = 0;
        for n in 0..bench.patients.len() {
            for (i, damage) in damages(&bench.patients[n].sound).into_iter().enumerate() {
                // On a held slot more verbs run, so every other case has to do.
                let wanted = if only.is_empty() {
                    n == 0 || i % 2 == 0
                } else {
                    damage.name.contains(&only)
                };
                if wanted {
                    cases += 1;
                    bench.case(n, &damage);
                }
            }
        }
        println!(
            "{test}: {cases} damaged images, {} verbs done, {} refused; {} done where QEMU reads nothing",
            bench.done,
            bench.refused,
            bench.unread_but_done.len()
        );
        for name in &bench.unread_but_done {
            println!("  done, though QEMU cannot read it: {name}");
        }
        assert!(cases > 0, "no case is called {only:?}");
        assert!(only.is_empty() == (cases > 20), "only {cases} cases");
        assert!(
            bench.problems.is_empty(),
            "{} problems; replay one with\n  SNAPSLOT_TEST_CASE='NAME' cargo test --release -p snapslot \
             --test images malformed::{test} -- --exact --nocapture\n{}",
            bench.problems.len(),
            bench.problems.join("\n")
        );
    }

    fn new() -> Bench {
        let scratch = Scratch::new();
        let patients = ["empty", "held"].map(|name| Patient::new(&scratch, name));
        Bench {
            patients,
            problems: Vec::new(),
            done: 0,
            refused: 0,
            unread_but_done: Vec::new(),
            _scratch: scratch,
        }
    }

    fn case(&mut self, n: usize, damage: &Damage) {
        let verbs: &[&str] = match self.patients[n].held {
            None => &["status", "check", "take"],
            Some(_) => &["status", "restore", "delete", "take --replace", "recover"],
        };
        let mut before = None;
        for verb in verbs {
            let patient = &self.patients[n];
            patient.reset(&damage.bytes);
            let mut words = verb.split(' ');
            let mut arguments: Vec<&std::ffi::OsStr> = vec![words.next().unwrap_or("").as_ref()];
            arguments.push(patient.image.path().as_os_str());
            arguments.extend(words.map(std::ffi::OsStr::new));
            if matches!(*verb, "restore" | "delete") {
                arguments.push("--yes".as_ref());
            }
            let outcome = patient.product.run_within(DEADLINE, arguments);
            let mut wrong = Vec::new();
            let code = outcome.code();
            if outcome.process.timed_out {
                wrong.push("hangs".to_owned());
            } else if !matches!(code, 0..=6 | 8) {
                wrong.push("ends as nothing should".to_owned());
            } else if outcome.json.is_none() {
                wrong.push("prints no JSON object".to_owned());
            }
            if journal_of(patient.image.path()).exists() {
                wrong.push("leaves a journal".to_owned());
            }
            let length = fs::metadata(patient.image.path()).map_or(0, |found| found.len());
            let after = if length <= damage.bytes.len() as u64 + GROWTH_MAX {
                patient.image.bytes()
            } else {
                wrong.push(format!("made the file {length} bytes long"));
                damage.bytes.clone()
            };
            let changes = matches!(*verb, "restore" | "delete" | "take" | "take --replace");
            match difference(&after, &damage.bytes) {
                Some(at) if code != 0 || !changes => {
                    wrong.push(format!("changed the image at {at:#x}, exit {code}"));
                }
                _ => {}
            }
            let done = code == 0 && changes;
            self.done += u64::from(done);
            self.refused += u64::from(code != 0);
            if done && damage.meaningful {
                // Asked only now: most are refused, and there is nothing to compare then.
                let before = before.get_or_insert_with(|| patient.judge_other(&damage.bytes));
                let after = Judgement::of(&patient.image, patient.held.as_deref());
                wrong.extend(before.compare(&after, *verb == "restore"));
                if before.active.is_err() {
                    self.unread_but_done.push(format!("{verb}: {}", damage.name));
                }
            }
            for what in wrong {
                let slot = if patient.held.is_some() { "held" } else { "empty" };
                let account = outcome.process.account();
                let account: String = account.chars().take(1500).collect();
                let name = &damage.name;
                self.problems.push(format!("* {name} [slot {slot}]: {verb} {what}\n    {account}"));
            }
        }
    }
}

impl Patient {
    /// A sound image with everything in it.
    fn new(scratch: &Scratch, name: &str) -> Patient {
        let place = scratch.join(name);
        fs::create_dir(&place).expect("a directory");
        let mut random = SplitMix64::new(7);
        let behind = place.join("behind.raw");
        fs::write(&behind, random.bytes(1 << 20)).expect("a backing file");
        let options = ["cluster_size=4k"];
        let path = place.join("disk.qcow2");
        let image = Image::create_backed(path, &options, SIZE, (&behind, "raw"));
        image.guest(["write -P 1 0 256k", "write -z 512k 64k"]).expect_success();
        image.guest((0..8).map(|n| format!("write -c -P {} {}k 4k", n + 10, 1024 + n * 8)));
        image.qemu_img(&["snapshot", "-c", FOREIGN], &[]).expect_success();
        image.guest(["write -P 2 4k 64k", "write -P 3 3M 128k"]).expect_success();
        let product = snapslot(scratch).with_state(place.join("state"));
        let mut held = None;
        if name == "held" {
            let take = product.verb("take", image.path(), &[]);
            take.expect(0);
            held = Some(take.snapshot_name());
            image.guest(["write -P 4 0 128k", "write -P 5 3M 64k"]).expect_success();
        } else {
            fs::create_dir_all(product.state()).expect("a directory");
        }
        image.assert_clean();
        let records = place.join("records");
        copy_directory(product.state(), &records);
        Patient { sound: image.bytes(), image, records, product, held }
    }

    /// What QEMU makes of these bytes, in a file beside.
    fn judge_other(&self, bytes: &[u8]) -> Judgement {
        let beside = Image::at(self.image.path().with_file_name("beside.qcow2"));
        fs::write(beside.path(), bytes).expect("the damaged image once more");
        Judgement::of(&beside, self.held.as_deref())
    }

    /// Damaged again, in place: the same file, as far as anyone can tell.
    fn reset(&self, bytes: &[u8]) {
        fs::write(self.image.path(), bytes).expect("the damaged image");
        let _ = fs::remove_file(journal_of(self.image.path()));
        fs::remove_dir_all(self.product.state()).expect("the old records");
        copy_directory(&self.records, self.product.state());
    }
}

/// What QEMU makes of an image.
struct Judgement {
    check: Result<Check, String>,
    active: Result<Vec<u8>, String>,
    foreign: Result<Vec<u8>, String>,
    held: Option<Result<Vec<u8>, String>>,
}

impl Judgement {
    fn of(image: &Image, held: Option<&str>) -> Judgement {
        Judgement {
            check: image.check(),
            active: image.try_active(),
            foreign: image.try_snapshot(FOREIGN),
            held: held.map(|name| image.try_snapshot(name)),
        }
    }

    /// What got worse, in words.
    fn compare(&self, after: &Judgement, restored: bool) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut same = |what: &str, was: &Result<Vec<u8>, String>, is: &Result<Vec<u8>, String>| {
            match (was, is) {
                (Ok(_), Err(account)) => wrong.push(format!("left {what} unreadable: {account}")),
                (Ok(was), Ok(is)) => {
                    // A restore may change the size, and with it how much of a snapshot shows.
                    let shared = if restored { was.len().min(is.len()) } else { usize::MAX };
                    let clip = |bytes: &[u8]| bytes[..bytes.len().min(shared)].to_vec();
                    if let Some(at) = difference(&clip(was), &clip(is)) {
                        wrong.push(format!("left {what} different at {at:#x}"));
                    }
                }
                (Err(_), _) => {}
            }
        };
        match &self.held {
            Some(held) if restored => same("the disk, restored,", held, &after.active),
            _ => same("the disk", &self.active, &after.active),
        }
        if let Ok(Check { errors: 0, leaks }) = self.check {
            same("the foreign snapshot", &self.foreign, &after.foreign);
            match &after.check {
                Ok(is) if is.errors == 0 && is.leaks <= leaks => {}
                is => wrong.push(format!("made an image with {leaks} leaks into {is:?}")),
            }
        }
        wrong
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    fs::set_permissions(to, fs::metadata(from).expect("a directory").permissions())
        .expect("its permissions");
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy_directory(&source, &target);
        } else {
            fs::copy(source, target).expect("a copy of the records");
        }
    }
}
