//! The rounds: who is measured at what, on which copy of the image, in which order.
//!
//! Each subject works on a copy of its own of the same image, and all go through the same life: take,
//! restore at once, random writes, restore, delete; after a round the guest reads what it read before.
//! Within a round every subject does one verb before any does the next, and who begins rotates, so that
//! whatever else the machine is busy with hits all alike. Before each measured process everything is
//! written out and the metadata of the image is in the page cache.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::{
    Failure,
    image::{self, Content, Recipe},
    process::{self, Run},
    qcow2::{self, Layout},
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verb {
    /// A snapshot of an image that has none.
    Take,
    /// Back to the snapshot when nothing was written since.
    RestoreUnchanged,
    /// Back to the snapshot after random 4 KiB writes.
    RestoreWritten,
    /// The snapshot goes, the disk stays.
    Delete,
}

impl Verb {
    /// In the order of a round.
    pub(crate) const ALL: [Self; 4] =
        [Self::Take, Self::RestoreUnchanged, Self::RestoreWritten, Self::Delete];

    /// The key in the JSON and the row in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::RestoreUnchanged => "restore-unchanged",
            Self::RestoreWritten => "restore-written",
            Self::Delete => "delete",
        }
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    /// The command of this repository.
    Snapslot,
    /// `qemu-img snapshot` as it comes.
    Default,
    /// `qemu-img snapshot` with caches that hold all metadata.
    Tuned,
    /// Reading and writing the metadata once, and nothing else.
    Limit,
    /// The command of this repository on the unshuffled twin of a shuffled image.
    Twin,
}

impl Subject {
    /// The key in the JSON and the word in the progress.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Snapslot => "snapslot",
            Self::Default => "qemu-img-default",
            Self::Tuned => "qemu-img-tuned",
            Self::Limit => "metadata-limit",
            Self::Twin => "snapslot-on-twin",
        }
    }
}

/// One measured process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Whole process, wall clock.
    pub(crate) wall: Duration,
    /// Processor time, user and kernel.
    pub(crate) cpu: Duration,
    /// Peak memory, KiB.
    pub(crate) peak_kib: u64,
    /// Flushes of the image, where the subject says so itself.
    pub(crate) flushes: Option<u64>,
}

impl From<&Run> for Sample {
    fn from(run: &Run) -> Self {
        Self { wall: run.wall, cpu: run.cpu, peak_kib: run.peak_kib, flushes: None }
    }
}

/// What was measured on one image.
#[derive(Debug)]
pub(crate) struct ImageResult {
    /// The image.
    pub(crate) recipe: Recipe,
    /// Bytes of L2 tables and refcount blocks.
    pub(crate) metadata_bytes: u64,
    /// The samples of the verbs. The limit's are under [`Verb::Take`].
    pub(crate) samples: BTreeMap<(Verb, Subject), Vec<Sample>>,
    /// `snapslot status` of the held slot.
    pub(crate) status: Vec<Sample>,
    /// What went wrong, if something did; what was measured before it stays.
    pub(crate) failure: Option<Failure>,
}

/// What holds for all images of a run.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The binary, unless only the peers are measured.
    pub(crate) snapslot: Option<PathBuf>,
    /// Where images and state live; emptied afterwards.
    pub(crate) dir: PathBuf,
    /// Rounds for whoever has no smaller number of their own.
    pub(crate) rounds: u32,
    /// Random 4 KiB writes before the second restore.
    pub(crate) writes: u64,
}

impl Bench {
    /// Makes the image of `recipe`, measures it and removes it.
    pub(crate) fn measure(&self, recipe: &Recipe) -> ImageResult {
        let mut result = ImageResult {
            recipe: recipe.clone(),
            metadata_bytes: 0,
            samples: BTreeMap::new(),
            status: Vec::new(),
            failure: None,
        };
        let place = self.dir.join(recipe.name);
        let measured = self.measure_in(&place, &mut result);
        let removed = std::fs::remove_dir_all(&place)
            .map_err(|error| Failure(format!("{}: {error}", place.display())));
        result.failure = measured.and(removed).err();
        result
    }

    fn measure_in(&self, place: &Path, result: &mut ImageResult) -> Result<(), Failure> {
        let recipe = result.recipe.clone();
        std::fs::create_dir_all(place)
            .map_err(|error| Failure(format!("{}: {error}", place.display())))?;
        let needed = recipe.disk_bytes(4, self.writes);
        if let Some(free) = process::free_bytes(place).filter(|&free| free < needed) {
            return Err(Failure(format!(
                "not measured: it needs {} MiB of disk and {} MiB are free; give another place with --dir",
                needed >> 20,
                free >> 20
            )));
        }

        progress(recipe.name, &format!("making the image: {}", recipe.describe()));
        let first = place.join("first.qcow2");
        recipe.make(&first)?;
        let layout = Layout::read(&first)?;
        result.metadata_bytes = layout.metadata_bytes();

        // The last subject takes the image itself, the others a copy.
        let mut copies = BTreeMap::new();
        let mut subjects = Vec::new();
        for (subject, rounds) in [
            (Subject::Snapslot, if self.snapslot.is_some() { self.rounds } else { 0 }),
            (Subject::Default, self.rounds.min(recipe.default_rounds)),
            (Subject::Tuned, self.rounds.min(recipe.tuned_rounds)),
        ] {
            if rounds > 0 {
                copies.insert(subject, first.clone());
                subjects.push((subject, rounds));
            }
        }
        for (number, path) in copies.values_mut().enumerate().skip(1) {
            *path = image::copy(&first, &format!("copy-{number}.qcow2"))?;
        }
        if recipe.content == Content::Shuffled && self.snapslot.is_some() {
            // In the same rounds, so that the ratio of the two does not depend on the hour.
            let twin = place.join("twin.qcow2");
            Recipe { content: Content::Preallocated, ..recipe.clone() }.make(&twin)?;
            copies.insert(Subject::Twin, twin);
            subjects.push((Subject::Twin, self.rounds));
        }
        // It changes no byte, so it works on anybody's copy.
        copies.insert(Subject::Limit, first);
        subjects.push((Subject::Limit, self.rounds));

        for round in 0..self.rounds {
            let mut order: Vec<Subject> = subjects
                .iter()
                .filter(|(_, rounds)| round < *rounds)
                .map(|(who, _)| *who)
                .collect();
            let begin = round as usize % order.len();
            order.rotate_left(begin);
            self.round(round, &order, &copies, &layout, result)?;
        }

        if let Some(ours) = copies.get(&Subject::Snapslot) {
            progress(recipe.name, "qemu-img check");
            image::check(ours)?;
            const COMPARE_BYTES_MAX: u64 = 1 << 30;
            let theirs =
                copies.get(&Subject::Tuned).filter(|_| recipe.virtual_size <= COMPARE_BYTES_MAX);
            if let Some(theirs) = theirs {
                image::compare(ours, theirs)?;
            }
        }
        Ok(())
    }

    fn round(
        &self,
        round: u32,
        order: &[Subject],
        copies: &BTreeMap<Subject, PathBuf>,
        layout: &Layout,
        result: &mut ImageResult,
    ) -> Result<(), Failure> {
        for verb in Verb::ALL {
            if verb == Verb::RestoreWritten {
                for subject in order.iter().filter(|&&subject| subject != Subject::Limit) {
                    let size = layout.virtual_size;
                    image::write_at_random(&copies[subject], size, self.writes, round.into())?;
                }
            }
            for &subject in order {
                if subject == Subject::Limit && verb != Verb::Take {
                    continue;
                }
                let path = &copies[&subject];
                settle(path)?;
                let sample = match subject {
                    Subject::Snapslot | Subject::Twin => self.snapslot_verb(verb, path)?,
                    Subject::Default => qemu_verb(verb, path, None)?,
                    Subject::Tuned => qemu_verb(verb, path, Some(layout))?,
                    Subject::Limit => limit(path)?,
                };
                let what = if subject == Subject::Limit { "once" } else { verb.name() };
                let ms = sample.wall.as_secs_f64() * 1e3;
                progress(
                    result.recipe.name,
                    &format!("round {}: {} {what}: {ms:.1} ms", round + 1, subject.name()),
                );
                result.samples.entry((verb, subject)).or_default().push(sample);
            }
            if verb == Verb::Take && order.contains(&Subject::Snapslot) {
                for _ in 0..3 {
                    let run = self.snapslot_run("status", &[], &copies[&Subject::Snapslot])?.0;
                    result.status.push(Sample::from(&run));
                }
            }
        }
        Ok(())
    }

    /// One verb of snapslot, and a look at whether it did what it was measured for.
    pub(crate) fn snapslot_verb(&self, verb: Verb, path: &Path) -> Result<Sample, Failure> {
        self.snapslot_verb_confined(verb, path, "auto")
    }

    /// The same, with plugins confined or not.
    pub(crate) fn snapslot_verb_confined(
        &self,
        verb: Verb,
        path: &Path,
        confine: &str,
    ) -> Result<Sample, Failure> {
        let (name, flags, state): (_, &[&str], _) = match verb {
            Verb::Take => ("take", &[], "held"),
            Verb::RestoreUnchanged | Verb::RestoreWritten => ("restore", &["--yes"], "held"),
            Verb::Delete => ("delete", &["--yes"], "empty"),
        };
        let flags = &[flags, &["--confine", confine][..]].concat();
        let (run, said) = self.snapslot_run(name, flags, path)?;
        if said["slot"]["state"] != state {
            return Err(Failure(format!(
                "snapslot {name} left the slot not {state}: {}",
                run.stdout
            )));
        }
        let flushes = said["volumes"].as_array().map(|volumes| {
            volumes.iter().filter_map(|volume| volume["executed"]["flushes"].as_u64()).sum()
        });
        Ok(Sample { flushes, ..Sample::from(&run) })
    }

    fn snapslot_run(
        &self,
        verb: &str,
        flags: &[&str],
        path: &Path,
    ) -> Result<(Run, Value), Failure> {
        let mut command = self.snapslot_command()?;
        command.arg(verb).args(flags).arg("--json").arg(path);
        let run = process::run(&mut command)?.succeeded(&format!("snapslot {verb}"))?;
        let said = serde_json::from_str(&run.stdout)
            .map_err(|error| Failure(format!("snapslot {verb} --json: {error}: {}", run.stdout)))?;
        Ok((run, said))
    }

    /// `snapslot` with state and cache inside the bench's own directory.
    pub(crate) fn snapslot_command(&self) -> Result<Command, Failure> {
        let binary = self.snapslot.as_ref().ok_or_else(|| Failure("no snapslot".into()))?;
        let mut command = Command::new(binary);
        command.env("SNAPSLOT_STATE_DIR", self.dir.join("state"));
        command.env("SNAPSLOT_CACHE_DIR", self.dir.join("cache"));
        Ok(command)
    }
}

/// One verb of `qemu-img snapshot`; with `tuned`, both caches hold twice the metadata of the image, so
/// that the tables of the snapshot and of the disk fit in together.
fn qemu_verb(verb: Verb, path: &Path, tuned: Option<&Layout>) -> Result<Sample, Failure> {
    let mut command = Command::new("qemu-img");
    command.arg("snapshot");
    command.arg(match verb {
        Verb::Take => "-c",
        Verb::RestoreUnchanged | Verb::RestoreWritten => "-a",
        Verb::Delete => "-d",
    });
    command.arg("bench");
    match tuned {
        None => command.arg(path),
        Some(layout) => {
            let cache = |tables: &[u64]| (2 * tables.len() as u64 + 8) * layout.cluster;
            command.arg("--image-opts").arg(format!(
                "driver=qcow2,file.driver=file,file.filename={},l2-cache-size={},refcount-cache-size={}",
                path.to_string_lossy().replace(',', ",,"),
                cache(&layout.l2_tables),
                cache(&layout.refcount_blocks),
            ))
        }
    };
    let run = process::run(&mut command)?.succeeded("qemu-img snapshot")?;
    Ok(Sample::from(&run))
}

/// The bench binary itself, as a process of its own, at nothing but the metadata.
fn limit(path: &Path) -> Result<Sample, Failure> {
    let own = std::env::current_exe().map_err(|error| Failure(format!("own path: {error}")))?;
    let mut command = Command::new(own);
    command.arg("--metadata-limit").arg(path);
    let run = process::run(&mut command)?.succeeded("--metadata-limit")?;
    Ok(Sample::from(&run))
}

/// The same state before each measured process: nothing waits to be written, the metadata is cached.
fn settle(path: &Path) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| Failure(format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(cannot)?;
    // SAFETY: the descriptor is open for as long as `file` lives.
    if unsafe { libc::syncfs(file.as_raw_fd()) } != 0 {
        return Err(cannot(std::io::Error::last_os_error()));
    }
    qcow2::warm(path)
}

/// One line to a person who waits.
pub(crate) fn progress(what: &str, line: &str) {
    eprintln!("{what}: {line}");
}
