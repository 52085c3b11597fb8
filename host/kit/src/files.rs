//! Volumes that are files: samples, a guest that writes to them, and what it sees.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use snapslot_disk::{Disk, FileDisk};
use snapslot_engine::{Engine, EngineError};
use snapslot_runtime::{Content, Plugin, Sight, View};
use snapslot_testkit::qemu;
use snapslot_testkit::rng::digest;

use crate::Bench;
use crate::life::{Live, image_in};

/// Larger samples are not read.
const SAMPLE_MAX: u64 = 256 << 20;
/// Content is compared in blocks of so many bytes.
const BLOCK: u64 = 4096;

/// An image to begin with.
pub struct Sample {
    /// Its name in cases.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Whether QEMU's tools are there.
pub fn qemu_is_there() -> bool {
    ["qemu-img", "qemu-io"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok())
}

/// Those the author gave, or some that the kit makes.
pub fn samples(bench: &Bench<'_>) -> Result<Vec<Sample>, String> {
    let mut samples = Vec::new();
    for path in &bench.subject.images {
        let told = |e: std::io::Error| format!("{}: {e}", path.display());
        let meta = std::fs::metadata(path).map_err(told)?;
        if !meta.is_file() || meta.len() > SAMPLE_MAX {
            return Err(format!("{}: a sample is a file of at most 256 MiB", path.display()));
        }
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or("sample").replace('/', "-");
        samples.push(Sample { name, bytes: std::fs::read(path).map_err(told)? });
    }
    if samples.is_empty() && bench.name() == "qcow2" && qemu_is_there() {
        for (name, options) in [
            ("64k", "cluster_size=65536"),
            ("512", "cluster_size=512"),
            ("v2", "compat=0.10,cluster_size=4096"),
        ] {
            let tools = qemu::Bench::new();
            tools.img(&["create", "-q", "-f", "qcow2", "-o", options, "a", "1M"]);
            tools.io("a", &["write -q -P 1 0 200k", "write -q -z 64k 8k"]);
            samples.push(Sample { name: name.to_owned(), bytes: tools.read("a") });
        }
    }
    if samples.is_empty() {
        let bytes = (0..1_u32 << 20).map(|i| (i / 4096 % 251) as u8 + 1).collect();
        samples.push(Sample { name: "plain-bytes".to_owned(), bytes });
    }
    Ok(samples)
}

/// A machine whose volume is a file.
pub struct FileMachine<'a> {
    bench: &'a Bench<'a>,
    directory: tempfile::TempDir,
    state: tempfile::TempDir,
}

impl<'a> FileMachine<'a> {
    pub fn new(bench: &'a Bench<'a>, sample: &Sample) -> Result<Self, String> {
        let machine =
            FileMachine { bench, directory: bench.directory()?, state: bench.directory()? };
        std::fs::write(machine.path(), &sample.bytes).map_err(|e| e.to_string())?;
        bench.plugin.inspect(&machine.sight()?).map_err(|e| {
            format!("the plugin does not take the sample ({e}); give one of its own with --image")
        })?;
        Ok(machine)
    }

    fn path(&self) -> PathBuf {
        image_in(&self.directory)
    }

    fn disk(&self) -> Result<Arc<dyn Disk>, String> {
        let disk = FileDisk::open_read_only(&self.path()).map_err(|e| e.to_string())?;
        Ok(Arc::new(disk))
    }
}

impl Live for FileMachine<'_> {
    fn volume(&self) -> String {
        format!("{}:{}", self.bench.name(), self.path().display())
    }

    fn engine(&self) -> Result<Engine, EngineError> {
        self.bench.engine(self.state.path(), None)
    }

    fn write(&self, generation: u64) -> Result<bool, String> {
        let pattern = generation as u8;
        if self.bench.name() == "qcow2" && qemu_is_there() {
            let wrote = Command::new("qemu-io")
                .args(["-f", "qcow2", "-c", &format!("write -q -P {pattern} 4k 100k")])
                .args(["-c", &format!("write -q -P {pattern} 700k 3k")])
                .arg(self.path())
                .output();
            return match wrote {
                Ok(out) if out.status.success() => Ok(true),
                Ok(out) => Err(String::from_utf8_lossy(&out.stderr).into_owned()),
                Err(e) => Err(e.to_string()),
            };
        }
        if !self.bench.lists_extents(&self.sight()?) {
            // Where content lies is not known: a sample of one's own keeps the middle free of what
            // the format needs, as the kit's sample does.
            let file = std::fs::OpenOptions::new().write(true).open(self.path());
            let size = std::fs::metadata(self.path()).map_err(|e| e.to_string())?.len();
            let bytes = vec![pattern; (size / 4).min(BLOCK) as usize];
            let wrote =
                file.and_then(|f| std::os::unix::fs::FileExt::write_all_at(&f, &bytes, size / 2));
            return wrote.map(|()| true).map_err(|e| e.to_string());
        }
        write_in_place(self.bench.plugin, self.disk()?, &self.path(), pattern)
    }

    fn sees(&self) -> Result<String, String> {
        if !self.bench.lists_extents(&self.sight()?) {
            let bytes = std::fs::read(self.path()).map_err(|e| e.to_string())?;
            return Ok(format!("bytes {:032x}", digest(&bytes)));
        }
        let content = content(self.bench.plugin, &sight_of(self.disk()?), &View::Current)?;
        Ok(format!("content {:032x}", content.digest()))
    }

    fn left(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path()).map(|all| {
            all.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        });
        entries.unwrap_or_default().into_iter().filter(|n| n != "disk.img").collect()
    }

    fn sight(&self) -> Result<Sight, String> {
        let place = snapslot_command::Place::Image(self.path());
        Ok(Sight {
            place,
            disk: Some(self.disk()?),
            commands: None,
            copies: Some(Arc::new(NoCopies)),
        })
    }
}

/// A shelf without copies, for plugins that look whether there are any.
pub struct NoCopies;

impl snapslot_runtime::CopiesView for NoCopies {
    fn list(&self) -> Result<Vec<snapslot_runtime::SavedCopy>, snapslot_runtime::Failure> {
        Ok(Vec::new())
    }

    fn saving(&self) -> Result<snapslot_runtime::Saving, snapslot_runtime::Failure> {
        Ok(snapslot_runtime::Saving { shares: true, bytes: 0, available: 1 << 40 })
    }
}

fn sight_of(disk: Arc<dyn Disk>) -> Sight {
    Sight { copies: Some(Arc::new(NoCopies)), ..crate::convert::sight(disk) }
}

/// What a view shows: its size, and a digest of every block that is not all zeroes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    blocks: BTreeMap<u64, u128>,
}

impl Seen {
    pub fn digest(&self) -> u128 {
        self.blocks.iter().fold(0, |all, (at, block)| {
            all.rotate_left(13) ^ block ^ u128::from(*at).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        })
    }
}

/// Reads what a view shows, by the plugin's extents and the image's bytes.
pub fn content(plugin: &Plugin<'_>, sight: &Sight, view: &View) -> Result<Seen, String> {
    let disk = sight.disk.clone().ok_or("no image")?;
    let mut seen = Seen::default();
    let mut cursor = 0;
    // A block may be in two extents: its bytes are put together first.
    let mut part: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    loop {
        let page = plugin.extents(sight, view, cursor, 1000).map_err(|e| e.to_string())?;
        for extent in &page.extents {
            match extent.content {
                Content::Zero | Content::Backing => {}
                Content::Compressed(packed) => {
                    let mut bytes = vec![0; packed.length as usize];
                    disk.read_at(packed.offset, &mut bytes).map_err(|e| e.to_string())?;
                    seen.blocks.insert(extent.start / BLOCK, digest(&bytes));
                }
                Content::Data(at) => {
                    let mut done = 0;
                    while done < extent.length {
                        let guest = extent.start + done;
                        let within = guest % BLOCK;
                        let length = (BLOCK - within).min(extent.length - done);
                        let block =
                            part.entry(guest / BLOCK).or_insert_with(|| vec![0; BLOCK as usize]);
                        let room = &mut block[within as usize..(within + length) as usize];
                        disk.read_at(at + done, room).map_err(|e| e.to_string())?;
                        done += length;
                    }
                }
            }
        }
        match page.next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    for (at, bytes) in part {
        if bytes.iter().any(|b| *b != 0) {
            *seen.blocks.entry(at).or_default() ^= digest(&bytes);
        }
    }
    Ok(seen)
}

/// The guest overwrites where its content lies, but for what a snapshot shares.
fn write_in_place(
    plugin: &Plugin<'_>,
    disk: Arc<dyn Disk>,
    path: &std::path::Path,
    pattern: u8,
) -> Result<bool, String> {
    use std::os::unix::fs::FileExt;
    let sight = sight_of(disk);
    let facts = plugin.inspect(&sight).map_err(|e| e.to_string())?;
    let places = |view: &View| -> Result<Vec<(u64, u64)>, String> {
        let page = plugin.extents(&sight, view, 0, 1000).map_err(|e| e.to_string())?;
        let data = page.extents.iter().filter_map(|e| match e.content {
            Content::Data(at) => Some((at, e.length)),
            _ => None,
        });
        Ok(data.collect())
    };
    let mut shared = Vec::new();
    for snapshot in &facts.snapshots {
        shared.extend(places(&View::Snapshot(snapshot.identity.clone()))?);
    }
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(|e| e.to_string())?;
    let mut wrote = false;
    for (at, length) in places(&View::Current)? {
        let length = length.min(3 * BLOCK);
        let free = shared.iter().all(|(s, l)| at + length <= *s || s + l <= at);
        if free {
            file.write_all_at(&vec![pattern; length as usize], at).map_err(|e| e.to_string())?;
            wrote = true;
        }
    }
    Ok(wrote)
}
