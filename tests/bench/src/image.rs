//! The images that are measured, and how they are made.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{Failure, process, qcow2, random::Random};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// What the clusters of an image hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Every cluster is written, with bytes that no compressor shrinks.
    Random,
    /// Every cluster has its place and its reference count; none was written (`preallocation=metadata`).
    Preallocated,
    /// As `Preallocated`, the places in random order.
    Shuffled,
}

/// One image to measure.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// What `--only` and the tables call it.
    pub(crate) name: &'static str,
    /// Bytes the guest sees.
    pub(crate) virtual_size: u64,
    /// Bytes in a cluster.
    pub(crate) cluster: u64,
    /// What the clusters hold.
    pub(crate) content: Content,
    /// How often qemu-img as installed is measured: 1 where one verb takes it tens of seconds, 0 where
    /// there is no time for that.
    pub(crate) default_rounds: u32,
    /// How often qemu-img with large caches is measured.
    pub(crate) tuned_rounds: u32,
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Images of a few megabytes: that the bench works, not how fast anything is.
    Smoke,
    /// The three images that tell most, in some minutes.
    Quick,
    /// All images.
    Full,
}

/// The images of `extent`, cheapest first.
pub(crate) fn recipes(extent: Extent) -> Vec<Recipe> {
    let recipe = |name, virtual_size, cluster, content, default_rounds, tuned_rounds| Recipe {
        name,
        virtual_size,
        cluster,
        content,
        default_rounds,
        tuned_rounds,
    };
    use Content::{Preallocated, Random, Shuffled};
    const ALL: u32 = u32::MAX;
    match extent {
        Extent::Smoke => vec![
            recipe("smoke-real", 32 * MIB, 64 * KIB, Random, ALL, ALL),
            recipe("smoke-4k", 256 * MIB, 4 * KIB, Preallocated, ALL, ALL),
            recipe("smoke-plain", GIB, 64 * KIB, Preallocated, ALL, ALL),
            recipe("smoke-shuffled", GIB, 64 * KIB, Shuffled, ALL, ALL),
        ],
        Extent::Quick => vec![
            recipe("real-1g", GIB, 64 * KIB, Random, ALL, ALL),
            recipe("shuffled-20g", 20 * GIB, 64 * KIB, Shuffled, 0, ALL),
            recipe("meta-100g", 100 * GIB, 64 * KIB, Preallocated, 1, 3),
        ],
        Extent::Full => vec![
            recipe("real-1g", GIB, 64 * KIB, Random, ALL, ALL),
            recipe("real-10g", 10 * GIB, 64 * KIB, Random, ALL, ALL),
            recipe("plain-20g", 20 * GIB, 64 * KIB, Preallocated, ALL, ALL),
            recipe("shuffled-20g", 20 * GIB, 64 * KIB, Shuffled, 1, ALL),
            recipe("meta-100g", 100 * GIB, 64 * KIB, Preallocated, 3, 3),
            recipe("meta-1t-2m", TIB, 2 * MIB, Preallocated, 3, 3),
            recipe("meta-1t", TIB, 64 * KIB, Preallocated, 1, 1),
            recipe("meta-100g-4k", 100 * GIB, 4 * KIB, Preallocated, 1, 1),
        ],
    }
}

impl Recipe {
    /// One line for a reader: size, cluster size, what it holds.
    pub(crate) fn describe(&self) -> String {
        let content = match self.content {
            Content::Random => "real data",
            Content::Preallocated => "metadata only",
            Content::Shuffled => "metadata only, host clusters shuffled",
        };
        format!("{}, clusters of {}, {content}", bytes(self.virtual_size), bytes(self.cluster))
    }

    /// The most bytes of disk this image and `copies` of it need, counting what the random writes add.
    pub(crate) fn disk_bytes(&self, copies: u64, writes: u64) -> u64 {
        let data = if self.content == Content::Random { self.virtual_size } else { 0 };
        // While the image is made there is a raw file of the same size beside it. Metadata is 10 bytes a
        // cluster; a first write copies a cluster; the journal and the file system need some room.
        let metadata = self.virtual_size / self.cluster * 10;
        let each = data + 2 * metadata + writes * (self.cluster + 4 * KIB);
        (2 * data).max(copies * each) + 256 * MIB
    }

    /// Makes the image at `path`.
    pub(crate) fn make(&self, path: &Path) -> Result<(), Failure> {
        match self.content {
            Content::Random => {
                let raw = path.with_extension("raw");
                let made = write_random(&raw, self.virtual_size, 1).and_then(|()| {
                    let mut convert = Command::new("qemu-img");
                    convert.args(["convert", "-f", "raw", "-O", "qcow2", "-o"]);
                    convert.arg(format!("cluster_size={}", self.cluster)).arg(&raw).arg(path);
                    process::run(&mut convert)?.succeeded("qemu-img convert").map(drop)
                });
                let removed = std::fs::remove_file(&raw).map_err(|error| failed(&raw, error));
                made.and(removed)
            }
            Content::Preallocated | Content::Shuffled => {
                let mut create = Command::new("qemu-img");
                create.args(["create", "-q", "-f", "qcow2", "-o"]);
                create.arg(format!("preallocation=metadata,cluster_size={}", self.cluster));
                create.arg(path).arg(self.virtual_size.to_string());
                process::run(&mut create)?.succeeded("qemu-img create")?;
                if self.content == Content::Shuffled {
                    qcow2::shuffle(path, 1)?;
                    check(path)?;
                }
                Ok(())
            }
        }
    }
}

/// A copy of `from` beside it, holes kept.
pub(crate) fn copy(from: &Path, name: &str) -> Result<PathBuf, Failure> {
    let to = from.with_file_name(name);
    let mut command = Command::new("cp");
    command.arg("--sparse=always").arg(from).arg(&to);
    process::run(&mut command)?.succeeded("cp")?;
    Ok(to)
}

/// Fails unless `qemu-img check` finds neither an error nor a leak.
pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    let mut command = Command::new("qemu-img");
    command.args(["check", "-q", "-f", "qcow2"]).arg(path);
    process::run(&mut command)?.succeeded("qemu-img check").map(drop)
}

/// Fails unless the guest reads the same from both images.
pub(crate) fn compare(one: &Path, other: &Path) -> Result<(), Failure> {
    let mut command = Command::new("qemu-img");
    command.args(["compare", "-q", "-f", "qcow2", "-F", "qcow2"]).arg(one).arg(other);
    process::run(&mut command)?.succeeded("qemu-img compare").map(drop)
}

/// Writes 4 KiB at each of `count` random places through one qemu-io, without its flushes: this is what
/// happens between two measurements, not a measurement.
pub(crate) fn write_at_random(
    path: &Path,
    virtual_size: u64,
    count: u64,
    seed: u64,
) -> Result<(), Failure> {
    let mut random = Random::new(seed);
    let mut script = String::new();
    for _ in 0..count {
        let at = random.below(virtual_size / (4 * KIB)) * 4 * KIB;
        let pattern = random.below(255) + 1;
        script.push_str(&format!("write -q -P {pattern} {at} 4k\n"));
    }
    script.push_str("quit\n");
    let mut command = Command::new("qemu-io");
    command.args(["-f", "qcow2", "-t", "unsafe"]).arg(path);
    let run = process::run_with_input(&mut command, Some(script.as_bytes()))?;
    let run = run.succeeded("qemu-io")?;
    if run.stderr.contains("failed") || run.stdout.contains("failed") {
        return Err(Failure(format!("qemu-io: {}{}", run.stderr, run.stdout)));
    }
    Ok(())
}

/// `count` in the largest unit it reaches, with a decimal where it is not whole.
pub(crate) fn bytes(count: u64) -> String {
    let units = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    match units.iter().find(|(unit, _)| count >= *unit) {
        Some((unit, name)) if count.is_multiple_of(*unit) => format!("{} {name}", count / unit),
        Some((unit, name)) => format!("{:.1} {name}", count as f64 / *unit as f64),
        None => format!("{count} B"),
    }
}

fn write_random(path: &Path, bytes: u64, seed: u64) -> Result<(), Failure> {
    let mut file = File::create_new(path).map_err(|error| failed(path, error))?;
    let mut random = Random::new(seed);
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        random.fill(&mut buffer[..now]);
        file.write_all(&buffer[..now]).map_err(|error| failed(path, error))?;
        left -= now as u64;
    }
    Ok(())
}

fn failed(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure(format!("{}: {error}", path.display()))
}
