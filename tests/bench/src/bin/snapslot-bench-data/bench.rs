//! What all parts share: the binary, the directory, running commands and servers.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;

pub struct Bench {
    pub snapslot: PathBuf,
    pub dir: PathBuf,
    pub rounds: usize,
    pub seconds: u64,
    pub mib: u64,
}

/// Whether a program is there; says so if it is not.
pub fn there(program: &str) -> bool {
    let found =
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        println!("  {program} is not installed, and left out");
    }
    found.is_ok()
}

impl Bench {
    pub fn snapslot(&self) -> Command {
        let mut command = Command::new(&self.snapslot);
        command.env("SNAPSLOT_STATE_DIR", self.dir.join("state"));
        command.env("SNAPSLOT_CACHE_DIR", self.dir.join("cache"));
        command
    }

    /// Runs it to its end; gives milliseconds.
    pub fn done(&self, command: &mut Command) -> Outcome<f64> {
        let begun = Instant::now();
        let status = command.stdout(Stdio::null()).stderr(Stdio::inherit()).status()?;
        if !status.success() {
            return Err(format!("{command:?}: {status}").into());
        }
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    /// Something that compresses like a disk does: this machine's own programs and texts.
    pub fn content(&self, path: &Path) -> Outcome<()> {
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

    pub fn random(&self, path: &Path, mib: u64) -> Outcome<()> {
        let script = format!("head -c {} /dev/urandom > {}", mib << 20, path.display());
        self.done(Command::new("sh").args(["-c", &script]))?;
        Ok(())
    }

    /// Where servers listen.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("s")
    }

    /// Starts a server and waits until it listens.
    pub fn start(&self, mut command: Command) -> Outcome<Server> {
        let socket = self.socket();
        let _ = std::fs::remove_file(&socket);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let mut server = Server { child, socket: socket.clone() };
        let begun = Instant::now();
        // Until it listens or has ended, on a busy machine too.
        while begun.elapsed() < Duration::from_secs(120) && server.child.try_wait()?.is_none() {
            if UnixStream::connect(&socket).is_ok() {
                return Ok(server);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("{command:?} does not listen").into())
    }

    /// Runs fio; gives operations a second, or MiB a second for large blocks.
    pub fn fio(&self, load: &str, block: &str, depth: u32, more: &[&str]) -> Outcome<f64> {
        let uri = format!("--uri=nbd+unix:///?socket={}", self.socket().display());
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
}

/// A server; it is ended when dropped.
pub struct Server {
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
