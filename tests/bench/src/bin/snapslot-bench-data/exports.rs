//! Exports of a qcow2 image's snapshot, against `qemu-img convert` and, where blocks can be shared, `cp`.
//!
//! The limit of a copy is a process that writes as many bytes of its memory to a new file, a mebibyte at a time: a file's
//! page cache is filled by one thread at a time, whoever asks, so no copy can be faster.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::Outcome;
use crate::bench::{Bench, there};
use crate::table::{LIMIT, Table};

/// One who makes a copy.
enum Who {
    Program(Command),
    /// Bytes written from memory, and whether they are made durable.
    Memory {
        bytes: u64,
        durable: bool,
    },
}

struct Run<'a> {
    what: &'a str,
    who: &'a str,
    by: Who,
    out: PathBuf,
}

const FLAGS: [&str; 3] = ["-W", "-m", "16"];

fn with(more: &[&'static str]) -> Vec<&'static str> {
    [&FLAGS[..], more].concat()
}

/// The command, then its target made durable.
fn durable(command: &Command, out: &Path) -> Command {
    let mut all = Command::new("sh");
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|w| format!("'{}'", w.to_string_lossy()))
        .collect();
    all.args(["-c", &format!("{} && sync -d '{}'", words.join(" "), out.display())]);
    all.stdin(Stdio::null());
    all
}

pub fn measure(bench: &Bench) -> Outcome<()> {
    if !there("qemu-img") {
        return Ok(());
    }
    println!(
        "Exports of {} MiB from the page cache, milliseconds; the durable ones are so marked",
        bench.mib
    );
    let here = bench.dir.join("plain");
    std::fs::create_dir(&here)?;
    let mut table = Table::default();
    let images = Images::make(bench, &here)?;
    for round in 0..=bench.rounds {
        let mut runs = images.copies(bench);
        if round > 2 {
            // Seconds each, and the same every time.
            runs.retain(|run| !run.what.starts_with('5'));
        }
        turn(bench, runs, round, &images.raw, &mut table)?;
    }
    drop(images);
    std::fs::remove_dir_all(&here)?;
    table.print("ms", false);
    Ok(())
}

/// Exports on a file system that shares blocks.
pub fn measure_sharing(bench: &Bench) -> Outcome<()> {
    if !there("qemu-img") {
        return Ok(());
    }
    let disk = match SharingDisk::mount(bench) {
        Ok(disk) => disk,
        Err(why) => {
            println!("No file system that shares blocks: {why}");
            return Ok(());
        }
    };
    println!("Exports of {} MiB that share blocks, milliseconds", bench.mib);
    let mut table = Table::default();
    let images = Images::make(bench, &disk.at)?;
    for round in 0..=bench.rounds {
        turn(bench, images.shares(bench), round, &images.raw, &mut table)?;
    }
    let scattered = Scattered::make(bench, &disk.at)?;
    for round in 0..=bench.rounds {
        turn(bench, scattered.shares(bench), round, &images.raw, &mut table)?;
    }
    table.print("ms", false);
    Ok(())
}

/// One round: all do their work, and who begins moves on.
fn turn(
    bench: &Bench,
    mut runs: Vec<Run<'_>>,
    round: usize,
    raw: &Path,
    table: &mut Table,
) -> Outcome<()> {
    let n = runs.len();
    runs.rotate_left(round % n);
    for Run { what, who, by, out } in runs {
        let _ = std::fs::remove_file(&out);
        bench.done(&mut Command::new("sync"))?;
        warm(std::fs::metadata(raw)?.len())?;
        let took = match by {
            Who::Program(mut command) => bench.done(&mut command)?,
            Who::Memory { bytes, durable } => from_memory(&out, bytes, durable)?,
        };
        // The first round warms up.
        if round > 0 || bench.rounds == 1 {
            table.add(what, who, took);
            if what.starts_with('4') || what.starts_with('5') {
                let size = std::fs::metadata(&out)?.len() as f64 / f64::from(1 << 20);
                table.add(&format!("{what}, size in MiB"), who, size);
            }
        }
        let _ = std::fs::remove_file(&out);
    }
    Ok(())
}

/// Has the machine's idle memory at hand. A virtual machine gives memory back that lies idle, and gets it again page by
/// page, at a tenth of the speed of a copy: a run would measure how much of it the one before it had left. So several times
/// what a copy takes is used right before each.
fn warm(bytes: u64) -> Outcome<()> {
    let length = usize::try_from(bytes.min(4 << 30) * 4)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE | libc::MAP_NORESERVE;
    // SAFETY: new memory at a place of the kernel's choice, which nothing refers to; unmapped as it was mapped.
    unsafe {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let at = libc::mmap(std::ptr::null_mut(), length, prot, flags, -1, 0);
        if at == libc::MAP_FAILED {
            return Err(
                format!("{length} bytes of memory: {}", std::io::Error::last_os_error()).into()
            );
        }
        libc::munmap(at, length);
    }
    Ok(())
}

fn from_memory(out: &Path, bytes: u64, durable: bool) -> Outcome<f64> {
    let piece = vec![7_u8; 1 << 20];
    let begun = Instant::now();
    let file = File::create(out)?;
    let mut at = 0;
    while at < bytes {
        file.write_all_at(&piece, at)?;
        at += piece.len() as u64;
    }
    if durable {
        file.sync_data()?;
    }
    drop(file);
    Ok(begun.elapsed().as_secs_f64() * 1e3)
}

/// What is exported: an image that holds a snapshot, and the same as a raw disk.
struct Images {
    folder: PathBuf,
    raw: PathBuf,
    image: PathBuf,
    bytes: u64,
}

impl Images {
    fn make(bench: &Bench, folder: &Path) -> Outcome<Images> {
        let (raw, image) = (folder.join("in.raw"), folder.join("in.qcow2"));
        bench.content(&raw)?;
        let mut command = Command::new("qemu-img");
        command.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(&image);
        bench.done(&mut command)?;
        bench.done(bench.snapslot().arg("take").arg(&image))?;
        Ok(Images { folder: folder.to_owned(), raw, image, bytes: bench.mib << 20 })
    }

    fn ours(&self, bench: &Bench, more: &[&str], out: &Path) -> Who {
        let mut command = bench.snapslot();
        command.arg("export").arg(&self.image).arg(out).args(more);
        Who::Program(command)
    }

    fn theirs(&self, more: &[&str], out: &Path) -> Command {
        let mut command = Command::new("qemu-img");
        command.arg("convert").args(more).args(["-f", "qcow2"]).arg(&self.image).arg(out);
        command
    }

    fn copies<'a>(&self, bench: &Bench) -> Vec<Run<'a>> {
        let (raw, qcow2) = (self.folder.join("out.raw"), self.folder.join("out.qcow2"));
        let memory = |durable| Who::Memory { bytes: self.bytes, durable };
        let theirs = |more: &[&str], out: &Path| Who::Program(self.theirs(more, out));
        let zstd = ["-c", "-o", "compression_type=zstd", "-O", "qcow2"];
        let list: Vec<(&str, &str, Who, &Path)> = vec![
            ("1 raw", "snapslot --no-sync", self.ours(bench, &["--no-sync"], &raw), &raw),
            ("1 raw", "qemu-img -W -m 16", theirs(&with(&["-O", "raw"]), &raw), &raw),
            ("1 raw", "qemu-img -C", theirs(&["-C", "-O", "raw"], &raw), &raw),
            ("1 raw", LIMIT, memory(false), &raw),
            ("2 qcow2", "snapslot --no-sync", self.ours(bench, &["--no-sync"], &qcow2), &qcow2),
            ("2 qcow2", "qemu-img -W -m 16", theirs(&with(&["-O", "qcow2"]), &qcow2), &qcow2),
            ("2 qcow2", "qemu-img -C", theirs(&["-C", "-O", "qcow2"], &qcow2), &qcow2),
            ("2 qcow2", LIMIT, memory(false), &qcow2),
            ("3 raw, durable", "snapslot", self.ours(bench, &[], &raw), &raw),
            (
                "3 raw, durable",
                "qemu-img -W -m 16, sync",
                Who::Program(durable(&self.theirs(&with(&["-O", "raw"]), &raw), &raw)),
                &raw,
            ),
            (
                "3 raw, durable",
                "qemu-img -C, sync",
                Who::Program(durable(&self.theirs(&["-C", "-O", "raw"], &raw), &raw)),
                &raw,
            ),
            (
                "3 raw, durable",
                "qemu-img -t none -W -m 16",
                theirs(&with(&["-t", "none", "-O", "raw"]), &raw),
                &raw,
            ),
            ("3 raw, durable", LIMIT, memory(true), &raw),
            (
                "4 zstd",
                "snapslot",
                self.ours(bench, &["--no-sync", "--compress", "zstd"], &qcow2),
                &qcow2,
            ),
            (
                "4 zstd",
                "snapslot --level 3",
                self.ours(bench, &["--no-sync", "--compress", "zstd", "--level", "3"], &qcow2),
                &qcow2,
            ),
            ("4 zstd", "qemu-img -W -m 16", theirs(&with(&zstd), &qcow2), &qcow2),
            (
                "5 zlib",
                "snapslot",
                self.ours(bench, &["--no-sync", "--compress", "zlib"], &qcow2),
                &qcow2,
            ),
            ("5 zlib", "qemu-img -W -m 16", theirs(&with(&["-c", "-O", "qcow2"]), &qcow2), &qcow2),
        ];
        list.into_iter()
            .map(|(what, who, by, out)| Run { what, who, by, out: out.to_owned() })
            .collect()
    }

    /// Where blocks can be shared. `cp` copies the raw disk, which is the least that can be done.
    fn shares<'a>(&self, bench: &Bench) -> Vec<Run<'a>> {
        let (raw, qcow2) = (self.folder.join("out.raw"), self.folder.join("out.qcow2"));
        let mut cp = Command::new("cp");
        cp.arg("--reflink=always").arg(&self.raw).arg(&raw);
        let theirs = |more: &[&str], out: &Path| Who::Program(self.theirs(more, out));
        let list: Vec<(&str, &str, Who, &Path)> = vec![
            ("6 raw, shared (XFS)", "snapslot", self.ours(bench, &["--no-sync"], &raw), &raw),
            ("6 raw, shared (XFS)", "qemu-img -C", theirs(&["-C", "-O", "raw"], &raw), &raw),
            ("6 raw, shared (XFS)", "cp --reflink of the raw disk", Who::Program(cp), &raw),
            ("7 qcow2, shared (XFS)", "snapslot", self.ours(bench, &["--no-sync"], &qcow2), &qcow2),
            (
                "7 qcow2, shared (XFS)",
                "qemu-img -C",
                theirs(&["-C", "-O", "qcow2"], &qcow2),
                &qcow2,
            ),
        ];
        list.into_iter()
            .map(|(what, who, by, out)| Run { what, who, by, out: out.to_owned() })
            .collect()
    }
}

/// A raw disk of runs of 8 KiB with holes of the same length between them, as a slot and by itself.
struct Scattered {
    disk: PathBuf,
    out: PathBuf,
}

impl Scattered {
    fn make(bench: &Bench, folder: &Path) -> Outcome<Scattered> {
        const RUN: usize = 8192;
        let disk = folder.join("scattered.raw");
        let file = File::create(&disk)?;
        file.set_len(bench.mib << 20)?;
        for at in (0..bench.mib << 20).step_by(RUN * 2) {
            file.write_all_at(&[(at / 3) as u8 | 1; RUN], at)?;
        }
        file.sync_all()?;
        bench.done(bench.snapslot().args(["take", &format!("raw:{}", disk.display())]))?;
        Ok(Scattered { disk, out: folder.join("out.raw") })
    }

    fn shares<'a>(&self, bench: &Bench) -> Vec<Run<'a>> {
        let what = "8 raw disk in runs of 8 KiB, shared (XFS)";
        let mut ours = bench.snapslot();
        ours.args(["export", &format!("raw:{}", self.disk.display()), "--no-sync"]).arg(&self.out);
        let mut cp = Command::new("cp");
        cp.arg("--reflink=always").arg(&self.disk).arg(&self.out);
        let run =
            |who, command| Run { what, who, by: Who::Program(command), out: self.out.clone() };
        vec![run("snapslot", ours), run("cp --reflink", cp)]
    }
}

/// An XFS of its own, on a loop device.
struct SharingDisk {
    at: PathBuf,
}

impl SharingDisk {
    fn mount(bench: &Bench) -> Outcome<SharingDisk> {
        let (image, at) = (bench.dir.join("xfs.img"), bench.dir.join("xfs"));
        std::fs::create_dir(&at)?;
        File::create(&image)?.set_len((bench.mib * 6).max(512) << 20)?;
        let run = |program: &str, arguments: &[&Path]| -> Outcome<()> {
            let status = Command::new(program).args(arguments).stdout(Stdio::null()).status();
            match status {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(format!("{program}: {status}").into()),
                Err(e) => Err(format!("{program}: {e}").into()),
            }
        };
        run("mkfs.xfs", &[Path::new("-q"), &image])?;
        run("mount", &[Path::new("-o"), Path::new("loop"), &image, &at])?;
        Ok(SharingDisk { at })
    }
}

impl Drop for SharingDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.at).status();
    }
}
