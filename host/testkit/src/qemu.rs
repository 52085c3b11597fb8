//! QEMU's own tools, as makers of images and as a second judge.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A directory for images, gone with the value.
pub struct Bench(TempDir);

impl Bench {
    /// A fresh directory.
    ///
    /// # Panics
    /// If there is no room for one.
    pub fn new() -> Self {
        Bench(tempfile::tempdir().expect("a temporary directory"))
    }

    /// A fresh directory in memory where the system has one: for tests that crash an engine and no disk,
    /// where a flush is only time.
    ///
    /// # Panics
    /// If there is no room for one.
    pub fn in_memory() -> Self {
        let made = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Bench(made.expect("a temporary directory"))
    }

    /// The path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs qemu-img in the directory.
    ///
    /// # Panics
    /// If it is missing or fails.
    pub fn img(&self, words: &[&str]) -> String {
        let out = self.run("qemu-img", words);
        assert!(out.status.success(), "qemu-img {}: {}", words.join(" "), say(&out));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Runs qemu-io commands on an image, one after the other.
    ///
    /// # Panics
    /// If it is missing or a command fails.
    pub fn io(&self, image: &str, commands: &[&str]) {
        let out = self.try_io(image, commands);
        let text = say(&out);
        // qemu-io tells of failed writes on its output, and not always by its exit status.
        let failed = ["failed", "rror", "Pattern verification"].iter().any(|w| text.contains(w));
        assert!(out.status.success() && !failed, "qemu-io {}: {text}", commands.join("; "));
    }

    /// Runs qemu-io commands on an image and gives what came of it.
    pub fn try_io(&self, image: &str, commands: &[&str]) -> Output {
        let mut words = vec!["-f", "qcow2"];
        for command in commands {
            words.extend(["-c", command]);
        }
        words.push(image);
        self.run("qemu-io", &words)
    }

    /// `qemu-img check`, with an extra option or none: exit status and what it said.
    pub fn check(&self, image: &str, repair: bool) -> (i32, String) {
        let mut words = vec!["check", "-q", "-f", "qcow2"];
        if repair {
            words.extend(["-r", "all"]);
        }
        words.push(image);
        let out = self.run("qemu-img", &words);
        (out.status.code().unwrap_or(-1), say(&out))
    }

    /// Reads a file of the directory.
    ///
    /// # Panics
    /// If it cannot be read.
    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("the image just made")
    }

    /// Writes a file of the directory.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).expect("room for an image");
    }

    /// The path of the directory.
    pub fn directory(&self) -> &Path {
        self.0.path()
    }

    fn run(&self, program: &str, words: &[&str]) -> Output {
        let run = Command::new(program).args(words).current_dir(self.0.path()).output();
        run.unwrap_or_else(|e| panic!("cannot run {program} ({e}); install Debian's qemu-utils"))
    }
}

impl Default for Bench {
    fn default() -> Self {
        Bench::new()
    }
}

fn say(out: &Output) -> String {
    let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&out.stderr));
    text
}

/// The files of a world with one image.
pub fn world_files(image: Vec<u8>) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([(crate::sim_host::IMAGE.to_owned(), image)])
}
