//! A qcow2 image as QEMU's tools see it: the judge.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::process::{Finished, cannot_start, run};
use crate::product::journal_of;

const DEADLINE: Duration = Duration::from_secs(120);

/// Runs `qemu-img` with these arguments.
///
/// # Panics
/// When it is not installed.
#[track_caller]
pub fn qemu_img<S: Into<OsString>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    tool("qemu-img", arguments)
}

/// Runs `qemu-io` with these arguments.
///
/// # Panics
/// When it is not installed.
#[track_caller]
pub fn qemu_io<S: Into<OsString>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    tool("qemu-io", arguments)
}

#[track_caller]
fn tool<S: Into<OsString>>(name: &str, arguments: impl IntoIterator<Item = S>) -> Finished {
    let mut command = Command::new(name);
    command.args(arguments.into_iter().map(Into::into)).env("LC_ALL", "C").env("TZ", "UTC");
    run(command, DEADLINE)
}

/// An image and what is needed to open it.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
    passphrase: Option<String>,
}

/// A line of `qemu-img snapshot -l`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The whole line: a foreign snapshot's must stay as it is.
    pub line: String,
}

/// What `qemu-img check` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    /// Errors that endanger content, and errors of the check itself.
    pub errors: u64,
    /// Clusters that are lost to use.
    pub leaks: u64,
}

impl Image {
    /// An image that is there.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Image { path: path.into(), passphrase: None }
    }

    /// Makes a qcow2 image; `options` as in `qemu-img create -o`.
    ///
    /// # Panics
    /// When QEMU refuses.
    #[track_caller]
    pub fn create(path: impl Into<PathBuf>, options: &[&str], size: u64) -> Self {
        Image::at(path).created(options, size, None)
    }

    /// Makes one on top of a backing file, whose format is stated.
    ///
    /// # Panics
    /// When QEMU refuses.
    #[track_caller]
    pub fn create_backed(
        path: impl Into<PathBuf>,
        options: &[&str],
        size: u64,
        backing: (&Path, &str),
    ) -> Self {
        Image::at(path).created(options, size, Some(backing))
    }

    /// Makes one encrypted by LUKS.
    ///
    /// # Panics
    /// When QEMU refuses.
    #[track_caller]
    pub fn create_luks(path: impl Into<PathBuf>, options: &[&str], size: u64) -> Self {
        let mut all = vec!["encrypt.format=luks", "encrypt.key-secret=key", "encrypt.iter-time=10"];
        all.extend(options);
        let image = Image { path: path.into(), passphrase: Some("correct horse".to_owned()) };
        image.created(&all, size, None)
    }

    #[track_caller]
    fn created(self, options: &[&str], size: u64, backing: Option<(&Path, &str)>) -> Self {
        let mut arguments: Vec<OsString> = vec!["create".into(), "-q".into()];
        arguments.extend(self.secret());
        arguments.extend(["-f".into(), "qcow2".into()]);
        if !options.is_empty() {
            arguments.extend(["-o".into(), options.join(",").into()]);
        }
        if let Some((file, format)) = backing {
            arguments.extend(["-b".into(), file.into(), "-F".into(), format.into()]);
        }
        arguments.extend([self.path.clone().into(), size.to_string().into()]);
        qemu_img(arguments).expect_success();
        self
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same image elsewhere, byte for byte.
    ///
    /// # Panics
    /// When it cannot be copied.
    pub fn copy_to(&self, path: impl Into<PathBuf>) -> Image {
        let copy = Image { path: path.into(), passphrase: self.passphrase.clone() };
        std::fs::copy(&self.path, &copy.path).expect("a copy of the image");
        copy
    }

    /// The file's bytes.
    ///
    /// # Panics
    /// When it cannot be read.
    #[track_caller]
    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).expect("the bytes of the image")
    }

    fn secret(&self) -> Vec<OsString> {
        match &self.passphrase {
            Some(phrase) => vec!["--object".into(), format!("secret,id=key,data={phrase}").into()],
            None => Vec::new(),
        }
    }

    /// Arguments that name this image, its format stated and never probed.
    pub fn arguments(&self) -> Vec<OsString> {
        // A comma in a value is written twice.
        let path = self.path.to_string_lossy().replace(',', ",,");
        let mut options = format!("driver=qcow2,file.driver=file,file.filename={path}");
        if self.passphrase.is_some() {
            options.push_str(",encrypt.key-secret=key");
        }
        let mut arguments = self.secret();
        arguments.extend(["--image-opts".into(), options.into()]);
        arguments
    }

    /// Runs a `qemu-img` command on it: `before` the image's arguments, `after` them.
    #[track_caller]
    pub fn qemu_img(&self, before: &[&str], after: &[&str]) -> Finished {
        let named = self.arguments();
        let (image, options) = named.split_last().expect("arguments that name an image");
        let mut arguments: Vec<OsString> = before.iter().map(OsString::from).collect();
        arguments.extend(options.iter().cloned());
        arguments.push(image.clone());
        arguments.extend(after.iter().map(OsString::from));
        qemu_img(arguments)
    }

    /// Runs commands of `qemu-io`, the guest, in one go. Not flushed to the device: the tests
    /// do not cut the power.
    #[track_caller]
    pub fn guest<S: AsRef<str>>(&self, commands: impl IntoIterator<Item = S>) -> Finished {
        let mut arguments: Vec<OsString> = vec!["-t".into(), "unsafe".into()];
        for command in commands {
            arguments.extend(["-c".into(), command.as_ref().into()]);
        }
        arguments.extend(self.arguments());
        qemu_io(arguments)
    }

    /// Runs reading commands of `qemu-io` without opening the image for writing.
    #[track_caller]
    pub fn look<S: AsRef<str>>(&self, commands: impl IntoIterator<Item = S>) -> Finished {
        let mut arguments: Vec<OsString> = vec!["-r".into()];
        for command in commands {
            arguments.extend(["-c".into(), command.as_ref().into()]);
        }
        arguments.extend(self.arguments());
        qemu_io(arguments)
    }

    /// What `qemu-img check` says; the account of it when it could not check at all.
    #[track_caller]
    pub fn check(&self) -> Result<Check, String> {
        let done = self.qemu_img(&["check", "--output=json"], &[]);
        // 0 clean, 2 errors, 3 leaks; 1 and 63: no check was made.
        match (done.code, serde_json::from_slice::<Value>(&done.stdout)) {
            (Some(0 | 2 | 3), Ok(found)) => {
                let count = |name: &str| found[name].as_u64().unwrap_or(0);
                let errors = count("corruptions") + count("check-errors");
                Ok(Check { errors, leaks: count("leaks") })
            }
            _ => Err(done.account()),
        }
    }

    /// `qemu-img check` finds no error and no leak, and no journal is left.
    ///
    /// # Panics
    /// When it does.
    #[track_caller]
    pub fn assert_clean(&self) {
        let done = self.qemu_img(&["check"], &[]);
        assert!(done.code == Some(0), "the image is not clean: {}", done.account());
        let journal = journal_of(&self.path);
        assert!(!journal.exists(), "a journal is left: {}", journal.display());
    }

    /// The snapshots it has, in order.
    ///
    /// # Panics
    /// When QEMU does not list them.
    #[track_caller]
    pub fn snapshots(&self) -> Vec<Snapshot> {
        let list = self.qemu_img(&["snapshot", "-l"], &[]).expect_success().text();
        // A heading of two lines, unless there are none.
        let line = |line: &str| {
            let mut words = line.split_whitespace().map(str::to_owned);
            let id = words.next().unwrap_or_default();
            Snapshot { id, name: words.next().unwrap_or_default(), line: line.to_owned() }
        };
        list.lines().skip(2).map(line).collect()
    }

    /// What `qemu-img info` says.
    ///
    /// # Panics
    /// When it says nothing.
    #[track_caller]
    pub fn info(&self) -> Value {
        let done = self.qemu_img(&["info", "--output=json"], &[]).expect_success();
        serde_json::from_slice(&done.stdout).expect("JSON of qemu-img info")
    }

    /// What the guest sees.
    ///
    /// # Panics
    /// When QEMU cannot read it.
    #[track_caller]
    pub fn active(&self) -> Vec<u8> {
        self.try_active().unwrap_or_else(|account| panic!("{account}"))
    }

    /// What the guest sees, or why QEMU cannot read it.
    #[track_caller]
    pub fn try_active(&self) -> Result<Vec<u8>, String> {
        self.convert(&[])
    }

    /// The content of the snapshot of this name, as far as the *present* virtual size reaches:
    /// QEMU reads a snapshot through the size of the active disk.
    ///
    /// # Panics
    /// When QEMU cannot read it.
    #[track_caller]
    pub fn snapshot(&self, name: &str) -> Vec<u8> {
        self.try_snapshot(name).unwrap_or_else(|account| panic!("{account}"))
    }

    /// The same, or why QEMU cannot read it.
    #[track_caller]
    pub fn try_snapshot(&self, name: &str) -> Result<Vec<u8>, String> {
        self.convert(&["-l", &format!("snapshot.name={name}")])
    }

    #[track_caller]
    fn convert(&self, more: &[&str]) -> Result<Vec<u8>, String> {
        let raw = tempfile::NamedTempFile::new().expect("a temporary file");
        let out = raw.path().to_string_lossy().into_owned();
        let mut before = vec!["convert", "-O", "raw", "-t", "unsafe"];
        before.extend(more);
        let done = self.qemu_img(&before, &[&out]);
        if done.code != Some(0) {
            return Err(done.account());
        }
        Ok(std::fs::read(&out).expect("the converted content"))
    }

    /// Opens it as a running machine would and holds it until dropped.
    ///
    /// # Panics
    /// When QEMU refuses.
    #[track_caller]
    pub fn hold(&self, writable: bool) -> Holding {
        let mut command = Command::new("qemu-io");
        if !writable {
            command.arg("-r");
        }
        command.args(self.arguments()).env("LC_ALL", "C");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().unwrap_or_else(|e| panic!("{}", cannot_start("qemu-io", &e)));
        let mut holding = Holding { child };
        // It prompts once the image is open, with its locks taken.
        let mut prompt = [0; 8];
        let output = holding.child.stdout.as_mut().expect("a pipe from qemu-io");
        output.read_exact(&mut prompt).expect("qemu-io's prompt");
        assert_eq!(&prompt, b"qemu-io>", "qemu-io did not open {}", self.path.display());
        holding
    }

    /// Has a `qemu-storage-daemon` hold it for writing until dropped.
    ///
    /// # Panics
    /// When it refuses.
    #[track_caller]
    pub fn hold_by_daemon(&self) -> Holding {
        let path = self.path.to_string_lossy().replace(',', ",,");
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev");
        command.arg(format!("driver=qcow2,node-name=disk,file.driver=file,file.filename={path}"));
        command.args(["--chardev", "stdio,id=control", "--monitor", "control"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let name = "qemu-storage-daemon";
        let child = command.spawn().unwrap_or_else(|e| panic!("{}", cannot_start(name, &e)));
        let mut holding = Holding { child };
        let output = holding.child.stdout.as_mut().expect("a pipe from the daemon");
        let mut greeting = String::new();
        // The options are worked off in order: the monitor greets when the image is open.
        BufReader::new(output).read_line(&mut greeting).expect("the daemon's greeting");
        assert!(greeting.contains("QMP"), "the daemon did not open {}", self.path.display());
        holding
    }
}

/// A process that has an image open. Ends when dropped.
#[derive(Debug)]
pub struct Holding {
    child: Child,
}

impl Holding {
    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use crate::{Holding, Image, Scratch, assert_same};

    #[test]
    fn tells_content_snapshots_and_faults() {
        let scratch = Scratch::new();
        let image = Image::create(scratch.join("a.qcow2"), &["cluster_size=4k"], 1 << 20);
        image.guest(["write -P 7 4096 4096"]).expect_success();
        image.qemu_img(&["snapshot", "-c", "one"], &[]).expect_success();
        image.guest(["write -P 8 0 8192"]).expect_success();
        let mut active = vec![0; 1 << 20];
        active[4096..8192].fill(7);
        assert_same("the snapshot", &image.snapshot("one"), &active);
        active[..8192].fill(8);
        assert_same("the disk", &image.active(), &active);
        let found = image.snapshots();
        assert_eq!((found.len(), found[0].id.as_str(), found[0].name.as_str()), (1, "1", "one"));
        image.assert_clean();

        // A cluster that nothing refers to any more: clear the first entry of the active L1.
        let mut bytes = image.bytes();
        let l1 = u64::from_be_bytes(bytes[40..48].try_into().expect("eight bytes")) as usize;
        bytes[l1..l1 + 8].fill(0);
        std::fs::write(image.path(), bytes).expect("the damaged image");
        let check = image.check().expect("a check");
        assert!(check.leaks > 0, "a leak was made and not told: {check:?}");
    }

    #[test]
    fn opens_encrypted_images() {
        let scratch = Scratch::new();
        let image = Image::create_luks(scratch.join("a.qcow2"), &[], 1 << 20);
        image.guest(["write -P 9 512 512"]).expect_success();
        assert_eq!(image.active()[512..1024], [9; 512]);
        image.assert_clean();
    }

    #[test]
    fn holds_an_image() {
        let scratch = Scratch::new();
        let image = Image::create(scratch.join("a.qcow2"), &[], 1 << 20);
        let refused = |held: &Holding| {
            assert!(image.check().is_err(), "process {} does not hold the image", held.id());
        };
        refused(&image.hold(true));
        refused(&image.hold_by_daemon());
        image.assert_clean();
    }
}
