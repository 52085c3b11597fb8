//! From samples to figures: medians, ratios, targets; as a table for people and as JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::{
    Failure,
    image::{self, Content},
    measure::{Bench, ImageResult, Sample, Subject, Verb},
    process,
};

/// "A handful" of flushes of the image: what QEMU needs for the same verbs when its caches never overflow.
const FLUSHES_MAX: u64 = 6;
/// Peak memory of any verb, at any size that is measured.
const PEAK_MIB_MAX: f64 = 128.0;
/// `snapslot status`, whole process.
const STATUS_MS_MAX: f64 = 15.0;
/// `snapslot --version`, whole process.
const STARTUP_MS_MAX: f64 = 5.0;
/// Take and delete of large images against qemu-img with large caches.
const BULK_TIMES_MIN: f64 = 20.0;
/// Restore at 1 TiB against qemu-img as it comes.
const RESTORE_TIMES_MIN: f64 = 100.0;
/// Take and delete of large images against reading and writing the metadata once.
const LIMIT_TIMES_MAX: f64 = 2.0;
/// A shuffled image against its unshuffled twin.
const SHUFFLED_TIMES_MAX: f64 = 2.0;

/// Everything that was measured.
#[derive(Debug)]
pub(crate) struct Report {
    rounds: u32,
    writes: u64,
    qemu: String,
    load_before: String,
    load_after: String,
    warnings: Vec<String>,
    peers_only: bool,
    judged: bool,
    /// `snapslot --version`.
    pub(crate) startup: Vec<Sample>,
    /// The very first take, with an empty cache.
    pub(crate) first_take: Option<Sample>,
    /// Take of an empty image, when all is prepared.
    pub(crate) tiny_take: Vec<Sample>,
    /// Takes and deletes of it with plugins in a process of their own, and without.
    pub(crate) confined: Vec<Sample>,
    pub(crate) not_confined: Vec<Sample>,
    images: Vec<ImageResult>,
}

/// Median, least and most of some samples.
#[derive(Clone, Copy, Debug)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

/// Something snapslot sets out to reach.
#[derive(Debug)]
struct Target {
    what: String,
    /// The figure reached, its unit and whether that is enough; nothing if it was not measured.
    reached: Option<(f64, &'static str, bool)>,
}

impl Report {
    /// An empty report of `bench`.
    pub(crate) fn new(bench: &Bench) -> Result<Self, Failure> {
        let mut version = std::process::Command::new("qemu-img");
        let said = process::run(version.arg("--version"))?.succeeded("qemu-img --version")?.stdout;
        Ok(Self {
            rounds: bench.rounds,
            writes: bench.writes,
            qemu: said.lines().next().unwrap_or_default().replace("qemu-img version ", ""),
            load_before: load(),
            load_after: String::new(),
            warnings: Vec::new(),
            peers_only: bench.snapslot.is_none(),
            judged: true,
            startup: Vec::new(),
            first_take: None,
            tiny_take: Vec::new(),
            confined: Vec::new(),
            not_confined: Vec::new(),
            images: Vec::new(),
        })
    }

    /// Something a reader of the figures has to know.
    pub(crate) fn warn(&mut self, line: &str) {
        self.warnings.push(line.into());
    }

    /// One more image.
    pub(crate) fn add(&mut self, result: ImageResult) {
        self.images.push(result);
    }

    /// All is measured. After `smoke` no target is judged: nothing there was large enough.
    pub(crate) fn finish(&mut self, smoke: bool) {
        self.load_after = load();
        self.judged = !smoke && !self.peers_only;
        let before: f64 = self.load_before.parse().unwrap_or(0.0);
        if before > 0.3 {
            self.warn("this machine had other work when the run began; repeat it on a quiet one");
        }
    }

    /// Whether everything that was measured did its work.
    pub(crate) fn all_worked(&self) -> bool {
        self.images.iter().all(|image| image.failure.is_none())
    }

    /// The tables.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_text(&mut text).expect("writing to a string does not fail");
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "\nQEMU {}, {} processors, load {} before and {} after, rounds: {}",
            self.qemu,
            processors(),
            self.load_before,
            self.load_after,
            self.rounds
        )?;
        writeln!(
            out,
            "Whole process, milliseconds: median (least–most); × is snapslot's median in theirs."
        )?;
        for warning in &self.warnings {
            writeln!(out, "Mind: {warning}.")?;
        }
        if let (Some(startup), Some(first)) = (milliseconds(&self.startup), self.first_take) {
            writeln!(out, "\nsnapslot --version {startup}")?;
            writeln!(out, "the first take, empty image, empty cache {:.1}", ms(&first))?;
            if let Some(tiny) = milliseconds(&self.tiny_take) {
                writeln!(out, "take of an empty image after that {tiny}")?;
            }
            if let (Some(with), Some(without)) =
                (milliseconds(&self.confined), milliseconds(&self.not_confined))
            {
                writeln!(
                    out,
                    "take or delete of it, plugins confined {with}, not confined {without}: {:.1} more",
                    with.median - without.median
                )?;
            }
        }
        for image in &self.images {
            self.write_image(image, out)?;
        }
        if self.judged {
            writeln!(out, "\nTargets")?;
            for target in self.targets() {
                match target.reached {
                    None => writeln!(out, "  -        {}: not measured", target.what)?,
                    Some((figure, unit, met)) => {
                        let word = if met { "met    " } else { "NOT MET" };
                        writeln!(out, "  {word}  {}: {}{unit}", target.what, short(figure))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write_image(&self, image: &ImageResult, out: &mut String) -> std::fmt::Result {
        let recipe = &image.recipe;
        writeln!(out, "\n{}: {}", recipe.name, recipe.describe())?;
        if let Some(limit) = image.spread(Verb::Take, Subject::Limit) {
            let size = image::bytes(image.metadata_bytes);
            writeln!(out, "  the limit: {size} of metadata, read and written once: {limit}")?;
        }
        writeln!(
            out,
            "  {:<18}{:>24}{:>28}{:>7}{:>28}{:>7}{:>8}{:>9}{:>10}",
            "", "snapslot", "qemu-img", "×", "qemu-img tuned", "×", "÷limit", "flushes", "peak MiB"
        )?;
        for verb in Verb::ALL {
            let cell = |subject| match image.spread(verb, subject) {
                Some(spread) => spread.to_string(),
                None => "-".into(),
            };
            let number = |figure: Option<f64>| figure.map_or("-".into(), short);
            writeln!(
                out,
                "  {:<18}{:>24}{:>28}{:>7}{:>28}{:>7}{:>8}{:>9}{:>10}",
                verb.name(),
                cell(Subject::Snapslot),
                cell(Subject::Default),
                number(image.times_faster(verb, Subject::Default)),
                cell(Subject::Tuned),
                number(image.times_faster(verb, Subject::Tuned)),
                number(image.times_limit(verb)),
                image.flushes(verb).map_or("-".into(), |flushes| flushes.to_string()),
                number(image.peak_mib(verb)),
            )?;
        }
        for verb in Verb::ALL {
            let twin = image.spread(verb, Subject::Twin).zip(image.times_twin(verb));
            if twin.is_some() && verb == Verb::Take {
                writeln!(out, "  on the unshuffled twin:")?;
            }
            if let Some((twin, times)) = twin {
                let cell = twin.to_string();
                writeln!(out, "  {:<18}{cell:>24}  (÷{})", verb.name(), short(times))?;
            }
        }
        if let Some(status) = milliseconds(&image.status) {
            writeln!(out, "  {:<18}{:>24}", "status", status.to_string())?;
        }
        if recipe.default_rounds == 0 && recipe.tuned_rounds > 0 {
            writeln!(out, "  (qemu-img without tuning takes minutes here: --full)")?;
        }
        if let Some(failure) = &image.failure {
            writeln!(out, "  FAILED: {failure}")?;
        }
        Ok(())
    }

    /// The whole report as one JSON object. Times are milliseconds.
    pub(crate) fn to_json(&self) -> Value {
        let images: Vec<Value> = self.images.iter().map(ImageResult::to_json).collect();
        let targets: Vec<Value> = if self.judged { self.targets() } else { Vec::new() }
            .into_iter()
            .map(|target| {
                json!({
                    "target": target.what,
                    "measured": target.reached.is_some(),
                    "reached": target.reached.map(|(figure, _, _)| figure),
                    "met": target.reached.map(|(_, _, met)| met),
                })
            })
            .collect();
        json!({
            "schema": "snapslot-bench/1",
            "qemu": self.qemu,
            "processors": processors(),
            "load": { "before": self.load_before, "after": self.load_after },
            "rounds": self.rounds,
            "writes": self.writes,
            "warnings": self.warnings,
            "own-peak-kib": process::own_peak_kib(),
            "start-up": samples_json(&self.startup),
            "first-take": self.first_take.map(|sample| ms(&sample)),
            "tiny-take": samples_json(&self.tiny_take),
            "confined": samples_json(&self.confined),
            "not-confined": samples_json(&self.not_confined),
            "images": images,
            "targets": targets,
        })
    }

    fn targets(&self) -> Vec<Target> {
        let image = |name: &str| self.images.iter().find(|image| image.recipe.name == name);
        let mut targets = Vec::new();
        let mut target = |what: String, unit, figure: Option<f64>, enough: &dyn Fn(f64) -> bool| {
            let reached = figure.map(|figure| (figure, unit, enough(figure)));
            targets.push(Target { what, reached });
        };
        for name in ["meta-100g", "meta-1t"] {
            for verb in [Verb::Take, Verb::Delete] {
                target(
                    format!(
                        "{} at {name} at least {BULK_TIMES_MIN}× as fast as qemu-img tuned",
                        verb.name()
                    ),
                    "×",
                    image(name).and_then(|image| image.times_faster(verb, Subject::Tuned)),
                    &|times| times >= BULK_TIMES_MIN,
                );
                target(
                    format!(
                        "{} at {name} within {LIMIT_TIMES_MAX}× of its metadata once",
                        verb.name()
                    ),
                    "×",
                    image(name).and_then(|image| image.times_limit(verb)),
                    &|times| times <= LIMIT_TIMES_MAX,
                );
            }
        }
        for verb in Verb::ALL {
            // The better of the two peers.
            let least = image("real-1g").and_then(|image| {
                [Subject::Default, Subject::Tuned]
                    .into_iter()
                    .filter_map(|peer| image.times_faster(verb, peer))
                    .min_by(f64::total_cmp)
            });
            target(
                format!("{} at real-1g not slower than either qemu-img", verb.name()),
                "×",
                least,
                &|times| times >= 1.0,
            );
        }
        for verb in [Verb::RestoreUnchanged, Verb::RestoreWritten] {
            target(
                format!(
                    "{} at meta-1t at least {RESTORE_TIMES_MIN}× as fast as qemu-img",
                    verb.name()
                ),
                "×",
                image("meta-1t").and_then(|image| image.times_faster(verb, Subject::Default)),
                &|times| times >= RESTORE_TIMES_MIN,
            );
        }
        for verb in Verb::ALL {
            target(
                format!(
                    "{} at shuffled-20g within {SHUFFLED_TIMES_MAX}× of its unshuffled twin",
                    verb.name()
                ),
                "×",
                image("shuffled-20g").and_then(|image| image.times_twin(verb)),
                &|times| times <= SHUFFLED_TIMES_MAX,
            );
        }
        let all = || self.images.iter().flat_map(|image| Verb::ALL.map(|verb| (image, verb)));
        let flushes = all().filter_map(|(image, verb)| image.flushes(verb)).max();
        target(
            format!("at most {FLUSHES_MAX} flushes of the image in any verb on any image"),
            "",
            flushes.map(|flushes| flushes as f64),
            &|flushes| flushes <= FLUSHES_MAX as f64,
        );
        target(
            format!("at most {PEAK_MIB_MAX} MiB of memory in any verb at meta-1t"),
            " MiB",
            image("meta-1t").and_then(|image| {
                Verb::ALL.iter().filter_map(|&verb| image.peak_mib(verb)).max_by(f64::total_cmp)
            }),
            &|mib| mib <= PEAK_MIB_MAX,
        );
        let slowest = self
            .images
            .iter()
            .filter_map(|image| milliseconds(&image.status))
            .map(|status| status.median)
            .max_by(f64::total_cmp);
        target(format!("status within {STATUS_MS_MAX} ms on any image"), " ms", slowest, &|ms| {
            ms < STATUS_MS_MAX
        });
        target(
            format!("start-up (--version) within {STARTUP_MS_MAX} ms"),
            " ms",
            milliseconds(&self.startup).map(|startup| startup.median),
            &|ms| ms < STARTUP_MS_MAX,
        );
        targets
    }
}

impl ImageResult {
    fn of(&self, verb: Verb, subject: Subject) -> &[Sample] {
        self.samples.get(&(verb, subject)).map_or(&[], Vec::as_slice)
    }

    fn spread(&self, verb: Verb, subject: Subject) -> Option<Spread> {
        milliseconds(self.of(verb, subject))
    }

    /// How many times snapslot's median goes into the peer's.
    fn times_faster(&self, verb: Verb, peer: Subject) -> Option<f64> {
        let ours = self.spread(verb, Subject::Snapslot)?;
        Some(self.spread(verb, peer)?.median / ours.median)
    }

    /// How many times the limit's median goes into snapslot's.
    fn times_limit(&self, verb: Verb) -> Option<f64> {
        let ours = self.spread(verb, Subject::Snapslot)?;
        Some(ours.median / self.spread(Verb::Take, Subject::Limit)?.median)
    }

    /// How many times the median at the unshuffled twin goes into that at the shuffled image.
    fn times_twin(&self, verb: Verb) -> Option<f64> {
        let ours = self.spread(verb, Subject::Snapslot)?;
        Some(ours.median / self.spread(verb, Subject::Twin)?.median)
    }

    /// The most flushes of any round.
    fn flushes(&self, verb: Verb) -> Option<u64> {
        self.of(verb, Subject::Snapslot).iter().filter_map(|sample| sample.flushes).max()
    }

    /// The most memory of any round.
    fn peak_mib(&self, verb: Verb) -> Option<f64> {
        let peak = self.of(verb, Subject::Snapslot).iter().map(|sample| sample.peak_kib).max()?;
        Some(peak as f64 / 1024.0)
    }

    fn to_json(&self) -> Value {
        let mut verbs = serde_json::Map::new();
        for verb in Verb::ALL {
            let mut subjects = serde_json::Map::new();
            for subject in [Subject::Snapslot, Subject::Default, Subject::Tuned, Subject::Twin] {
                subjects.insert(subject.name().into(), samples_json(self.of(verb, subject)));
            }
            subjects
                .insert("times-default".into(), self.times_faster(verb, Subject::Default).into());
            subjects.insert("times-tuned".into(), self.times_faster(verb, Subject::Tuned).into());
            subjects.insert("times-limit".into(), self.times_limit(verb).into());
            subjects.insert("times-twin".into(), self.times_twin(verb).into());
            subjects.insert("flushes".into(), self.flushes(verb).into());
            verbs.insert(verb.name().into(), subjects.into());
        }
        json!({
            "name": self.recipe.name,
            "virtual-size": self.recipe.virtual_size,
            "cluster-size": self.recipe.cluster,
            "content": match self.recipe.content {
                Content::Random => "random",
                Content::Preallocated => "preallocated",
                Content::Shuffled => "shuffled",
            },
            "described": format!("{} ({})", self.recipe.describe(), image::bytes(self.metadata_bytes)),
            "metadata-bytes": self.metadata_bytes,
            "metadata-limit": samples_json(self.of(Verb::Take, Subject::Limit)),
            "status": samples_json(&self.status),
            "verbs": verbs,
            "failure": self.failure.as_ref().map(ToString::to_string),
        })
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { median, least, most } = *self;
        formatter.pad(&format!("{} ({}–{})", short(median), short(least), short(most)))
    }
}

fn samples_json(samples: &[Sample]) -> Value {
    let Some(spread) = milliseconds(samples) else { return Value::Null };
    json!({
        "median": spread.median,
        "least": spread.least,
        "most": spread.most,
        "wall": samples.iter().map(ms).collect::<Vec<_>>(),
        "cpu": samples.iter().map(|sample| sample.cpu.as_secs_f64() * 1e3).collect::<Vec<_>>(),
        "peak-kib": samples.iter().map(|sample| sample.peak_kib).max(),
    })
}

fn milliseconds(samples: &[Sample]) -> Option<Spread> {
    let mut sorted: Vec<f64> = samples.iter().map(ms).collect();
    sorted.sort_by(f64::total_cmp);
    let (&least, &most) = (sorted.first()?, sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    };
    Some(Spread { median, least, most })
}

fn ms(sample: &Sample) -> f64 {
    sample.wall.as_secs_f64() * 1e3
}

/// Three digits or so: 0.83, 8.3, 83, 8300.
fn short(figure: f64) -> String {
    match figure {
        small if small < 1.0 => format!("{small:.2}"),
        middle if middle < 100.0 => format!("{middle:.1}"),
        large => format!("{large:.0}"),
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

/// The load of the last minute, or "unknown".
fn load() -> String {
    let said = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    said.split(' ').next().filter(|word| !word.is_empty()).unwrap_or("unknown").into()
}
