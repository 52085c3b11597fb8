//! The engine under test, inside the guest.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use snapslot_test_support::{Outcome, Process, Snapslot, assert_same};

use crate::content::Tree;
use crate::tap;

const WARM_UP_MAX: Duration = Duration::from_secs(600);

/// The engine with records of its own.
#[derive(Clone, Debug)]
pub struct Subject {
    snapslot: Snapslot,
    state: PathBuf,
}

impl Subject {
    /// The binary, its plugins compiled, the tap in place. Once a boot.
    pub fn prepare(binary: &Path) -> Subject {
        let state = PathBuf::from("/run/snapslot");
        std::fs::create_dir_all(&state).expect("a folder for records");
        let began = Instant::now();
        warm_up(binary);
        let snapslot = Snapslot::new(binary, state.join("warm"));
        println!("NOTE plugins compiled in {:.1} s", began.elapsed().as_secs_f64());
        tap::install();
        Subject { snapslot, state }
    }

    /// The same with records for one scenario.
    pub fn named(&self, name: &str) -> Subject {
        let state = self.state.join(name);
        std::fs::create_dir_all(&state).expect("a folder for records");
        Subject { snapslot: self.snapslot.with_state(&state), state: self.state.clone() }
    }

    /// The runner of the binary, for what is not said by a verb and a volume.
    pub fn snapslot(&self) -> &Snapslot {
        &self.snapslot
    }

    /// A verb on a volume or machine, confirmed where it asks.
    #[track_caller]
    pub fn verb(&self, verb: &str, volume: &str, more: &[&str]) -> Outcome {
        self.snapslot.run(words(verb, volume, more))
    }

    /// The same, not waited for.
    #[track_caller]
    pub fn start(&self, verb: &str, volume: &str, more: &[&str]) -> Process {
        self.snapslot.start(words(verb, volume, more))
    }

    /// The state of the slot that `status` prints.
    #[track_caller]
    pub fn state(&self, volume: &str) -> String {
        let status = self.verb("status", volume, &[]);
        status.expect(0);
        status.slot().to_owned()
    }
}

/// Has the plugins compiled into the cache that [`Snapslot`] uses. Under emulation, on a machine
/// with other work, that takes longer than any other command may.
fn warm_up(binary: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    let cache = binary.with_file_name("snapslot-test-cache");
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&cache);
    made.expect("a cache directory beside the binary");
    let mut command = std::process::Command::new(binary);
    command.args(["plugin", "list", "--cache-dir"]).arg(cache);
    snapslot_test_support::run(command, WARM_UP_MAX).expect_success();
}

fn words<'a>(verb: &'a str, volume: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec![verb, volume];
    if matches!(verb, "restore" | "delete") {
        words.push("--yes");
    }
    words.extend(more);
    words
}

/// The content of a volume, whatever it is of.
#[derive(Clone, PartialEq, Eq)]
pub enum Content {
    /// A block device's bytes.
    Bytes(Vec<u8>),
    /// A file system's files.
    Tree(Tree),
}

impl Content {
    /// Fails, with the first difference, unless it is the other.
    #[track_caller]
    pub fn expect(&self, expected: &Content, when: &str) {
        match (self, expected) {
            (Content::Bytes(found), Content::Bytes(expected)) => {
                assert_same(&format!("the content {when}"), found, expected);
            }
            (Content::Tree(found), Content::Tree(expected)) => {
                let differing = found
                    .keys()
                    .chain(expected.keys())
                    .filter(|name| found.get(*name) != expected.get(*name))
                    .collect::<Vec<_>>();
                assert!(differing.is_empty(), "the files {when}: these differ: {differing:?}");
            }
            _ => panic!("a device was compared with files"),
        }
    }
}

/// A volume on real storage, whatever the storage is.
pub trait Storage {
    /// As the command line names it.
    fn locator(&self) -> &str;
    /// Changes some of the content; the same for a seed.
    fn scribble(&self, seed: u64);
    /// The content now.
    fn content(&self) -> Content;
    /// Every snapshot the storage's own tools show for it, by name.
    fn snapshots(&self) -> Vec<String>;
    /// The devices that the snapshots have now, and where a property shows them that was hidden.
    fn shown(&self) -> Vec<String>;
    /// Everything the tools show around it, without what use changes.
    fn layout(&self) -> String;
    /// The layout when it was made: what an empty slot has to come back to.
    fn base(&self) -> &str;
    /// Waits until nobody looks at its devices after a change.
    fn settle(&self) {}
    /// Whether a restore consumes the snapshot before it is taken again.
    fn merges(&self) -> bool {
        false
    }
    /// Removes a snapshot as a person would.
    fn remove_by_hand(&self, snapshot: &str);
    /// Removes the volume, and makes another of that name.
    fn replace_by_hand(&self);
}

/// Mark and name of the snapshot that holds the slot, as a command printed it.
#[track_caller]
pub fn occupant(outcome: &Outcome) -> (String, String) {
    let printed = outcome.json.as_ref().map(|j| &j["slot"]["occupant"]);
    let mark = printed.and_then(|o| o["mark"].as_str());
    let mark = mark.unwrap_or_else(|| panic!("no occupant printed: {}", outcome.process.account()));
    (mark.to_owned(), outcome.snapshot_name())
}
