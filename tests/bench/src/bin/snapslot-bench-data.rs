//! Measures the data plane in one run: exports against `qemu-img convert` and `cp`, a served disk against
//! `qemu-nbd` and `nbdkit`, first writes with a snapshot held against QEMU's copy-before-write and nbdkit's cow
//! filter; and what the machine itself allows.
//!
//! Who is measured takes turns within each round, medians are printed, and each as a ratio to the best peer. A
//! missed target is no failure. Needs qemu-utils, nbdkit and fio; what is missing is said and left out.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

const HELP: &str = "\
Measures exports, a served disk, and first writes with a snapshot held.

Usage: snapslot-bench-data [export | serve | first-writes | limits]... [OPTIONS]

  --rounds N    rounds of each [default: 7]
  --seconds N   seconds of each load on a served disk [default: 3]
  --mib N       size of what is exported, MiB [default: 1024]
  --dir DIR     where files are made and removed [default: the temporary directory]
  --smoke       tiny: that the bench works, not how fast anything is";

struct Bench {
    snapslot: PathBuf,
    dir: PathBuf,
    rounds: usize,
    seconds: u64,
    mib: u64,
}

/// Figures by who and what.
#[derive(Default)]
struct Table {
    rows: BTreeMap<String, BTreeMap<String, Vec<f64>>>,
}

impl Table {
    fn add(&mut self, what: &str, who: &str, figure: f64) {
        self.rows
            .entry(what.to_owned())
            .or_default()
            .entry(who.to_owned())
            .or_default()
            .push(figure);
    }

    /// Prints medians; `more`: a larger figure is the better one.
    fn print(&self, unit: &str, more: bool) {
        for (what, all) in &self.rows {
            println!("  {what} ({unit})");
            let medians: BTreeMap<&String, f64> = all.iter().map(|(w, f)| (w, median(f))).collect();
            let peers = medians.iter().filter(|(w, _)| !w.starts_with("snapslot")).map(|(_, m)| *m);
            let best = peers.fold(None, |b: Option<f64>, m| {
                Some(b.map_or(m, |b| if more { b.max(m) } else { b.min(m) }))
            });
            for (who, figure) in &medians {
                let ratio = match best {
                    Some(best) if who.starts_with("snapslot") && *figure > 0.0 && best > 0.0 => {
                        let ratio = if more { figure / best } else { best / figure };
                        format!("   {ratio:.2}x the best peer")
                    }
                    _ => String::new(),
                };
                println!("    {who:<32} {figure:>12.1}{ratio}");
            }
        }
    }
}

fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let (mut parts, mut rounds, mut seconds, mut mib) = (Vec::new(), 7, 3, 1024);
    let mut parent = std::env::temp_dir();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--help" | "-h" => {
                println!("{HELP}");
                return Ok(());
            }
            "--rounds" => rounds = value()?.parse()?,
            "--seconds" => seconds = value()?.parse()?,
            "--mib" => mib = value()?.parse()?,
            "--dir" => parent = value()?.into(),
            "--smoke" => (rounds, seconds, mib) = (1, 1, 32),
            "export" | "serve" | "first-writes" | "limits" => parts.push(word),
            _ => return Err(format!("{word}: no such part or option; see --help").into()),
        }
    }
    if parts.is_empty() {
        parts = ["limits", "export", "serve", "first-writes"].map(str::to_owned).to_vec();
    }
    let snapslot = std::env::current_exe()?.with_file_name("snapslot");
    if !snapslot.is_file() {
        return Err(
            "there is no snapslot beside this binary: build it with `cargo build --release`".into(),
        );
    }
    let dir = tempfile::Builder::new().prefix("snapslot-bench-").tempdir_in(&parent)?;
    let bench = Bench { snapslot, dir: dir.path().to_path_buf(), rounds, seconds, mib };
    for part in parts {
        match part.as_str() {
            "limits" => limits(&bench)?,
            "export" => bench.exports()?,
            "serve" => bench.served()?,
            _ => bench.first_writes()?,
        }
    }
    Ok(())
}

/// Whether a program is there; says so if it is not.
fn there(program: &str) -> bool {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("  {program} is not installed, and left out");
    }
    found.is_ok()
}

/// What the machine allows: copying memory, and one request and answer between two processes.
fn limits(bench: &Bench) -> Outcome<()> {
    println!("The machine");
    let from = vec![1_u8; 256 << 20];
    let mut to = vec![0_u8; 256 << 20];
    let copies: Vec<f64> = (0..bench.rounds.max(3))
        .map(|_| {
            let begun = Instant::now();
            to.copy_from_slice(std::hint::black_box(&from));
            std::hint::black_box(&to);
            256.0 / begun.elapsed().as_secs_f64()
        })
        .collect();
    println!("  copying memory, one thread (MiB/s)            {:>10.0}", median(&copies));
    // Two processes that wake each other, 28 bytes there and 16 back with 4 KiB: a request at depth 1.
    let (mut ours, mut theirs) = UnixStream::pair()?;
    const TURNS: u32 = 20_000;
    std::thread::scope(|scope| -> Outcome<()> {
        scope.spawn(move || {
            let mut request = [0; 28];
            let reply = vec![0; 16 + 4096];
            while theirs.read_exact(&mut request).is_ok() && theirs.write_all(&reply).is_ok() {}
        });
        let mut reply = vec![0; 16 + 4096];
        let begun = Instant::now();
        for _ in 0..TURNS {
            ours.write_all(&[0; 28])?;
            ours.read_exact(&mut reply)?;
        }
        let rate = f64::from(TURNS) / begun.elapsed().as_secs_f64();
        println!("  bare request and answer of 4 KiB, sleeping (1/s) {rate:>7.0}");
        drop(ours);
        Ok(())
    })
}

impl Bench {
    fn snapslot(&self) -> Command {
        let mut command = Command::new(&self.snapslot);
        command.env("SNAPSLOT_STATE_DIR", self.dir.join("state"));
        command.env("SNAPSLOT_CACHE_DIR", self.dir.join("cache"));
        command
    }

    fn done(&self, command: &mut Command) -> Outcome<f64> {
        let begun = Instant::now();
        let status = command.stdout(Stdio::null()).stderr(Stdio::inherit()).status()?;
        if !status.success() {
            return Err(format!("{command:?}: {status}").into());
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// Something that compresses like a disk does: this machine's own programs and texts.
    fn content(&self, path: &Path) -> Outcome<()> {
        let script = format!(
            "tar cf - /usr/lib /usr/share /usr/bin 2>/dev/null | head -c {} > {}; truncate -s {} {}",
            self.mib << 20,
            path.display(),
            self.mib << 20,
            path.display()
        );
        self.done(Command::new("sh").args(["-c", &script]))?;
        Ok(())
    }

    fn exports(&self) -> Outcome<()> {
        if !there("qemu-img") {
            return Ok(());
        }
        println!(
            "Exports of {} MiB from the page cache, milliseconds; then durable ones",
            self.mib
        );
        let (raw, image) = (self.dir.join("in.raw"), self.dir.join("in.qcow2"));
        self.content(&raw)?;
        let image_of = |to: &Path| {
            let mut command = Command::new("qemu-img");
            command.args(["convert", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(to);
            command
        };
        self.done(&mut image_of(&image))?;
        self.done(self.snapslot().arg("take").arg(&image))?;
        let ours = |more: &[&str], out: &Path| {
            let mut command = self.snapslot();
            command.arg("export").arg(&image).arg(out).args(more);
            command
        };
        let theirs = |more: &[&str], out: &Path| {
            let mut command = Command::new("qemu-img");
            command.arg("convert").args(more).args(["-f", "qcow2"]).arg(&image).arg(out);
            command
        };
        let durable = |mut command: Command, out: &Path| {
            let mut all = Command::new("sh");
            let words: Vec<String> = std::iter::once(command.get_program())
                .chain(command.get_args())
                .map(|w| format!("'{}'", w.to_string_lossy()))
                .collect();
            all.args(["-c", &format!("{} && sync -d '{}'", words.join(" "), out.display())]);
            command.stdin(Stdio::null());
            all
        };
        let mut table = Table::default();
        let (to_raw, to_qcow2) = (self.dir.join("out.raw"), self.dir.join("out.qcow2"));
        let w = ["-W", "-m", "16"];
        let with = |more: &[&'static str]| [&w[..], more].concat();
        for round in 0..=self.rounds {
            let mut runs: Vec<(&str, &str, Command, &Path)> = vec![
                ("1 raw", "snapslot --no-sync", ours(&["--no-sync"], &to_raw), &to_raw),
                ("1 raw", "qemu-img -W -m 16", theirs(&with(&["-O", "raw"]), &to_raw), &to_raw),
                ("1 raw", "qemu-img -C", theirs(&["-C", "-O", "raw"], &to_raw), &to_raw),
                ("2 qcow2", "snapslot --no-sync", ours(&["--no-sync"], &to_qcow2), &to_qcow2),
                (
                    "2 qcow2",
                    "qemu-img -W -m 16",
                    theirs(&with(&["-O", "qcow2"]), &to_qcow2),
                    &to_qcow2,
                ),
                ("3 raw, durable", "snapslot", ours(&[], &to_raw), &to_raw),
                (
                    "3 raw, durable",
                    "qemu-img -W -m 16, sync",
                    durable(theirs(&with(&["-O", "raw"]), &to_raw), &to_raw),
                    &to_raw,
                ),
                (
                    "3 raw, durable",
                    "qemu-img -t none -W -m 16",
                    theirs(&with(&["-t", "none", "-O", "raw"]), &to_raw),
                    &to_raw,
                ),
                (
                    "4 zstd",
                    "snapslot",
                    ours(&["--no-sync", "--compress", "zstd"], &to_qcow2),
                    &to_qcow2,
                ),
                (
                    "4 zstd",
                    "snapslot --level 3",
                    ours(&["--no-sync", "--compress", "zstd", "--level", "3"], &to_qcow2),
                    &to_qcow2,
                ),
                (
                    "4 zstd",
                    "qemu-img -W -m 16",
                    theirs(&with(&["-c", "-o", "compression_type=zstd", "-O", "qcow2"]), &to_qcow2),
                    &to_qcow2,
                ),
                (
                    "5 zlib",
                    "snapslot",
                    ours(&["--no-sync", "--compress", "zlib"], &to_qcow2),
                    &to_qcow2,
                ),
                (
                    "5 zlib",
                    "qemu-img -W -m 16",
                    theirs(&with(&["-c", "-O", "qcow2"]), &to_qcow2),
                    &to_qcow2,
                ),
            ];
            if round > 2 {
                // Seconds each, and the same every time.
                runs.retain(|(what, ..)| !what.starts_with('5'));
            }
            let n = runs.len();
            runs.rotate_left(round % n);
            for (what, who, mut command, out) in runs {
                let _ = std::fs::remove_file(out);
                self.done(&mut Command::new("sync"))?;
                // A virtual machine may have given memory back that lay idle, and gets it again page by page: whoever
                // came first after a pause would pay for all. So as much as is needed is used right before.
                let warm = self.dir.join("warm");
                std::fs::copy(&raw, &warm)?;
                std::fs::remove_file(&warm)?;
                let took = self.done(&mut command)?;
                // The first round warms up.
                if round > 0 || self.rounds == 1 {
                    table.add(what, who, took);
                    if what.starts_with('4') || what.starts_with('5') {
                        let size = std::fs::metadata(out)?.len() as f64 / f64::from(1 << 20);
                        table.add(&format!("{what}, size in MiB"), who, size);
                    }
                }
                let _ = std::fs::remove_file(out);
            }
        }
        table.print("ms", false);
        let _ = std::fs::remove_file(&raw);
        let _ = std::fs::remove_file(&image);
        Ok(())
    }

    /// Starts a server and waits until it listens.
    fn start(&self, mut command: Command) -> Outcome<Server> {
        let socket = self.dir.join("s");
        let _ = std::fs::remove_file(&socket);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let server = Server { child, socket: socket.clone() };
        for _ in 0..300 {
            if UnixStream::connect(&socket).is_ok() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("{command:?} does not listen").into())
    }

    /// Runs fio; gives operations a second, or MiB a second for large blocks.
    fn fio(&self, load: &str, block: &str, depth: u32, more: &[&str]) -> Outcome<f64> {
        let uri = format!("--uri=nbd+unix:///?socket={}", self.dir.join("s").display());
        let mut command = Command::new("fio");
        command.args(["--name=j", "--ioengine=nbd", "--minimal", &uri]);
        command.args([
            format!("--rw={load}"),
            format!("--bs={block}"),
            format!("--iodepth={depth}"),
        ]);
        command.args(more);
        let out = command.stderr(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&out.stdout);
        let fields: Vec<&str> = text.trim().split(';').collect();
        // fio(1), terse version 3: 7 and 8 are read bandwidth and IOPS, 48 and 49 those of writes.
        let base = if load.contains("read") { 6 } else { 47 };
        let at = if block == "1m" { base } else { base + 1 };
        let figure: f64 = fields.get(at).ok_or("fio says nothing")?.parse()?;
        Ok(if block == "1m" { figure / 1024.0 } else { figure })
    }

    fn served(&self) -> Outcome<()> {
        if !there("fio") {
            return Ok(());
        }
        println!("A served raw disk of 1 GiB in the page cache, unix socket, no snapshot");
        let disk = self.dir.join("disk.img");
        self.random(&disk, 1024.min(self.mib.max(64)))?;
        let socket = self.dir.join("s");
        let volume = format!("raw:{}", disk.display());
        let mut iops = Table::default();
        let mut rate = Table::default();
        let runtime = format!("--runtime={}", self.seconds);
        let size = format!("--size={}", std::fs::metadata(&disk)?.len());
        let more = ["--time_based", runtime.as_str(), size.as_str()];
        let peers: Vec<&str> = ["snapslot", "qemu-nbd", "nbdkit"]
            .into_iter()
            .filter(|p| *p == "snapslot" || there(p))
            .collect();
        for round in 0..self.rounds.min(3) {
            let mut order = peers.clone();
            order.rotate_left(round % peers.len());
            for who in order {
                let mut command = match who {
                    "snapslot" => self.snapslot(),
                    other => Command::new(other),
                };
                match who {
                    "snapslot" => command.args(["serve", &volume, "--socket"]).arg(&socket),
                    "qemu-nbd" => {
                        command.args(["-f", "raw", "-t", "-e", "8", "-k"]).arg(&socket).arg(&disk)
                    }
                    _ => command.args(["-f", "-U"]).arg(&socket).arg("file").arg(&disk),
                };
                let server = self.start(command)?;
                for (what, load, block, depth) in [
                    ("random read, 4 KiB, depth 1", "randread", "4k", 1),
                    ("random read, 4 KiB, depth 16", "randread", "4k", 16),
                    ("random write, 4 KiB, depth 1", "randwrite", "4k", 1),
                    ("random write, 4 KiB, depth 16", "randwrite", "4k", 16),
                ] {
                    iops.add(what, who, self.fio(load, block, depth, &more)?);
                }
                rate.add("sequential read, 1 MiB, depth 4", who, self.fio("read", "1m", 4, &more)?);
                rate.add(
                    "sequential write, 1 MiB, depth 4",
                    who,
                    self.fio("write", "1m", 4, &more)?,
                );
                drop(server);
            }
        }
        iops.print("operations a second", true);
        rate.print("MiB a second", true);
        let _ = std::fs::remove_file(&disk);
        Ok(())
    }

    fn random(&self, path: &Path, mib: u64) -> Outcome<()> {
        let script = format!("head -c {} /dev/urandom > {}", mib << 20, path.display());
        self.done(Command::new("sh").args(["-c", &script]))?;
        Ok(())
    }

    fn first_writes(&self) -> Outcome<()> {
        if !there("fio") {
            return Ok(());
        }
        let mib = (self.mib * 4).clamp(64, 4096);
        println!(
            "First writes with a snapshot held: 4 KiB in each 64 KiB of {mib} MiB, random order"
        );
        println!(
            "  (snapslot's are durable at each flush and outlive the server; nbdkit's are thrown away at exit)"
        );
        let disk = self.dir.join("disk.img");
        self.random(&disk, mib)?;
        let socket = self.dir.join("s");
        let volume = format!("raw:{}", disk.display());
        let scratch = self.dir.join("scratch.qcow2");
        let count = format!("--number_ios={}", mib * 16);
        let size = format!("--size={mib}m");
        let io_size = format!("--io_size={}m", mib / 16);
        let more = ["--blockalign=64k", &size, &io_size, &count, "--randseed=7"];
        let mut table = Table::default();
        let mut peers = vec!["snapslot"];
        if there("qemu-storage-daemon") {
            peers.push("qemu copy-before-write");
        }
        if there("nbdkit") {
            peers.extend(["nbdkit cow, 64 KiB", "nbdkit cow, 4 KiB"]);
        }
        for round in 0..self.rounds.min(3) {
            let mut order = peers.clone();
            order.rotate_left(round % peers.len());
            for who in order {
                for depth in [1, 16] {
                    let mut command = match who {
                        "snapslot" => {
                            let mut command = self.snapslot();
                            command.args(["serve", &volume, "--socket"]).arg(&socket);
                            command
                        }
                        "qemu copy-before-write" => {
                            let _ = std::fs::remove_file(&scratch);
                            let mut make = Command::new("qemu-img");
                            make.args(["create", "-q", "-f", "qcow2"])
                                .arg(&scratch)
                                .arg(format!("{mib}M"));
                            self.done(&mut make)?;
                            let mut command = Command::new("qemu-storage-daemon");
                            for node in [
                                format!("driver=file,node-name=f,filename={}", disk.display()),
                                "driver=raw,node-name=d,file=f".to_owned(),
                                format!("driver=file,node-name=tf,filename={}", scratch.display()),
                                "driver=qcow2,node-name=t,file=tf".to_owned(),
                                "driver=copy-before-write,node-name=c,file=d,target=t".to_owned(),
                            ] {
                                command.arg("--blockdev").arg(node);
                            }
                            command.arg("--nbd-server");
                            command.arg(format!("addr.type=unix,addr.path={}", socket.display()));
                            command
                                .args(["--export", "type=nbd,id=e,node-name=c,name=,writable=on"]);
                            command
                        }
                        cow => {
                            let mut command = Command::new("nbdkit");
                            command
                                .args(["-f", "-U"])
                                .arg(&socket)
                                .args(["--filter=cow", "file"])
                                .arg(&disk);
                            if cow.ends_with(", 4 KiB") {
                                command.arg("cow-block-size=4096");
                            }
                            command
                        }
                    };
                    let server =
                        self.start(std::mem::replace(&mut command, Command::new("true")))?;
                    if who == "snapslot" {
                        self.done(self.snapslot().args(["take", &volume]))?;
                    }
                    let figure = self.fio("randwrite", "4k", depth, &more)?;
                    if who == "snapslot" {
                        self.done(self.snapslot().args(["delete", "--yes", &volume]))?;
                    }
                    table.add(&format!("depth {depth}"), who, figure);
                    drop(server);
                }
            }
        }
        table.print("operations a second", true);
        let _ = std::fs::remove_file(&disk);
        Ok(())
    }
}

/// A server; it is ended when dropped.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
