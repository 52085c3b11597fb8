//! Volumes that are files: samples, a guest that writes to them, and what it sees.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use snapslot_capture::Copies;
use snapslot_disk::{Disk, FileDisk};
use snapslot_engine::{Engine, EngineError};
use snapslot_runtime::{CopiesView, Failure, FailureKind, SavedCopy, Saving, Sight, View};
use snapslot_testkit::qemu;
use snapslot_testkit::rng::digest;

use crate::bench::{Bench, Directory};
use crate::clock::KitClock;
use crate::content::{content, guest_writes};
use crate::machine::Live;
use crate::tools::KitTools;

/// Larger samples are not read.
const SAMPLE_MAX: u64 = 256 << 20;

/// An image to begin with.
pub struct Sample {
    /// Its name in cases.
    pub name: String,
    /// The name of its file, as endings may matter to the plugin.
    pub file: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether it is in QEMU's format. The kit knows that one by itself: a judge of its own, QEMU as the
    /// guest, damage to every field.
    pub qcow2: bool,
}

impl Sample {
    fn new(name: String, file: String, bytes: Vec<u8>) -> Sample {
        let qcow2 = bytes.starts_with(b"QFI\xfb");
        Sample { name, file, bytes, qcow2 }
    }

    /// Whether QEMU itself can write to it, as the guest.
    pub fn qemu_writes(&self) -> bool {
        self.qcow2 && qemu_is_there()
    }
}

/// Whether QEMU's tools are there.
pub fn qemu_is_there() -> bool {
    ["qemu-img", "qemu-io"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok())
}

/// Those the author gave, or some that the kit makes.
pub fn samples(images: &[PathBuf], plugin: &str) -> Result<Vec<Sample>, String> {
    let mut samples: Vec<Sample> = Vec::new();
    for path in images {
        let told = |e: std::io::Error| format!("{}: {e}", path.display());
        let meta = std::fs::metadata(path).map_err(told)?;
        if !meta.is_file() || meta.len() > SAMPLE_MAX {
            return Err(format!("{}: a sample is a file of at most 256 MiB", path.display()));
        }
        let file = path.file_name().and_then(|n| n.to_str()).unwrap_or("sample").to_owned();
        let mut name = file.clone();
        let mut n = 1;
        while samples.iter().any(|s| s.name == name) {
            n += 1;
            name = format!("{file}-{n}");
        }
        samples.push(Sample::new(name, file, std::fs::read(path).map_err(told)?));
    }
    if samples.is_empty() && plugin == "qcow2" && qemu_is_there() {
        for (name, options) in [
            ("64k", "cluster_size=65536"),
            ("512", "cluster_size=512"),
            ("v2", "compat=0.10,cluster_size=4096"),
        ] {
            let tools = qemu::Bench::new();
            tools.img(&["create", "-q", "-f", "qcow2", "-o", options, "a", "1M"]);
            tools.io("a", &["write -q -P 1 0 200k", "write -q -z 64k 8k"]);
            let file = "disk.qcow2".to_owned();
            samples.push(Sample::new(name.to_owned(), file, tools.read("a")));
        }
    }
    if samples.is_empty() {
        let bytes = (0..1_u32 << 20).map(|i| (i / 4096 % 251) as u8 + 1).collect();
        samples.push(Sample::new("plain-bytes".to_owned(), "disk.img".to_owned(), bytes));
    }
    Ok(samples)
}

/// A machine whose volume is a file.
pub struct FileMachine<'a> {
    bench: &'a Bench<'a>,
    sample: &'a Sample,
    clock: Arc<KitClock>,
    directory: Directory,
    state: Directory,
}

impl<'a> FileMachine<'a> {
    pub fn new(bench: &'a Bench<'a>, sample: &'a Sample) -> Result<Self, String> {
        let machine = FileMachine {
            bench,
            sample,
            clock: Arc::new(KitClock::new(bench.options.seed, &sample.name)),
            directory: bench.directory()?,
            state: bench.directory()?,
        };
        std::fs::write(machine.path(), &sample.bytes).map_err(|e| e.to_string())?;
        Ok(machine)
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join(&self.sample.file)
    }

    fn disk(&self) -> Result<Arc<dyn Disk>, String> {
        let disk = FileDisk::open_read_only(&self.path()).map_err(|e| e.to_string())?;
        Ok(Arc::new(disk))
    }

    fn bytes(&self) -> Result<Vec<u8>, String> {
        std::fs::read(self.path()).map_err(|e| e.to_string())
    }

    fn qemu(&self, program: &str, words: &[&str]) -> Result<(), String> {
        let ran = Command::new(program).args(words).arg(self.path()).output();
        match ran {
            Ok(out) if out.status.success() => Ok(()),
            Ok(out) => {
                let said = String::from_utf8_lossy(&out.stderr).into_owned();
                Err(format!("{program} {}: {said}", words.join(" ")))
            }
            Err(e) => Err(format!("{program}: {e}")),
        }
    }

    /// The names of our snapshots, as the plugin tells them.
    fn ours(&self) -> Result<Vec<String>, String> {
        let facts = self.bench.plugin.inspect(&self.sight()?).map_err(|e| e.to_string())?;
        Ok(facts.snapshots.into_iter().filter(|s| s.mark.is_some()).map(|s| s.name).collect())
    }
}

impl Live for FileMachine<'_> {
    fn volume(&self) -> String {
        format!("{}:{}", self.bench.name(), self.path().display())
    }

    fn engine(&self) -> Result<Engine, EngineError> {
        self.bench.engine(self.state.path(), KitTools::none(&self.bench.beyond), &self.clock)
    }

    fn clock(&self) -> &KitClock {
        &self.clock
    }

    fn write(&self, generation: u64) -> Result<bool, String> {
        let pattern = generation as u8;
        if self.sample.qemu_writes() {
            let writes = [
                format!("write -q -P {pattern} 4k 100k"),
                format!("write -q -P {pattern} 700k 3k"),
            ];
            self.qemu("qemu-io", &["-f", "qcow2", "-c", &writes[0], "-c", &writes[1]])?;
            return Ok(true);
        }
        let writes = guest_writes(self.bench, &self.sight()?, pattern)?;
        let file = std::fs::OpenOptions::new().write(true).open(self.path());
        let file = file.map_err(|e| e.to_string())?;
        for (at, bytes) in &writes {
            file.write_all_at(bytes, *at).map_err(|e| e.to_string())?;
        }
        Ok(!writes.is_empty())
    }

    fn sees(&self) -> Result<String, String> {
        let sight = self.sight()?;
        if !self.bench.lists_extents(&sight) {
            return Ok(format!("bytes {:032x}", digest(&self.bytes()?)));
        }
        let facts = self.bench.plugin.inspect(&sight).map_err(|e| e.to_string())?;
        let content = content(self.bench, &sight, &View::Current, facts.virtual_size)?;
        Ok(format!("content {:032x} of {}", content.digest(), facts.virtual_size))
    }

    fn all(&self) -> Result<String, String> {
        Ok(format!("{:032x}, {}", digest(&self.bytes()?), self.left().join(", ")))
    }

    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).map(|all| {
            all.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        });
        let mut left = entries.unwrap_or_default();
        left.retain(|name| *name != self.sample.file);
        left.sort();
        left
    }

    fn others_delete(&self) -> Result<(), String> {
        if self.sample.qemu_writes() {
            for name in self.ours()? {
                self.qemu("qemu-img", &["snapshot", "-q", "-d", &name])?;
            }
            return Ok(());
        }
        for name in self.left() {
            std::fs::remove_file(self.directory.path().join(name)).map_err(|e| e.to_string())?;
        }
        if self.bench.changes_images() {
            // Somebody puts the image back as it once was.
            let file = std::fs::OpenOptions::new().write(true).truncate(true).open(self.path());
            file.and_then(|f| f.write_all_at(&self.sample.bytes, 0)).map_err(|e| e.to_string())?;
        }
        Ok(())
    }

    fn others_take(&self) -> Result<bool, String> {
        if !self.sample.qemu_writes() {
            return Ok(false);
        }
        self.qemu("qemu-img", &["snapshot", "-q", "-c", "foreign"])?;
        Ok(true)
    }

    fn of_others(&self) -> Result<String, String> {
        let sight = self.sight()?;
        let facts = self.bench.plugin.inspect(&sight).map_err(|e| e.to_string())?;
        let mut all = String::new();
        for foreign in facts.snapshots.iter().filter(|s| s.mark.is_none()) {
            let view = View::Snapshot(foreign.identity.clone());
            let seen = content(self.bench, &sight, &view, foreign.virtual_size)?;
            all.push_str(&format!("{foreign:?} of {:032x}\n", seen.digest()));
        }
        Ok(all)
    }

    fn sight(&self) -> Result<Sight, String> {
        Ok(Sight {
            place: snapslot_command::Place::Image(self.path()),
            disk: Some(self.disk()?),
            commands: Some(Arc::new(KitTools::none(&self.bench.beyond))),
            copies: Some(Arc::new(Kept(Copies::beside(&self.path())))),
        })
    }
}

/// The copies that lie beside an image, for a plugin to see.
struct Kept(Copies);

fn failure(error: &snapslot_capture::CopyError) -> Failure {
    Failure::new(FailureKind::Io, error.code(), error.to_string())
}

impl CopiesView for Kept {
    fn list(&self) -> Result<Vec<SavedCopy>, Failure> {
        let found = self.0.list().map_err(|e| failure(&e))?;
        let in_contract = |c: snapslot_capture::SavedCopy| SavedCopy {
            mark: c.mark,
            identity: c.identity,
            name: c.name,
            taken_seconds: c.taken_seconds,
            taken_nanoseconds: c.taken_nanoseconds,
            size: c.size,
            held_bytes: c.held_bytes,
            lost: c.lost,
        };
        Ok(found.into_iter().map(in_contract).collect())
    }

    fn saving(&self) -> Result<Saving, Failure> {
        let s = self.0.saving().map_err(|e| failure(&e))?;
        Ok(Saving { shares: s.shares, bytes: s.bytes, available: s.available })
    }
}
