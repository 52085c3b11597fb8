//! Runs a recording against the model, command by command.
//!
//! A recording has lines `$ COMMAND   -> rc=N (T ms)`, followed by what it printed: `   | ` for
//! standard output, `   ! ` for standard error. Lines with `%` say what was done beside:
//! `% run COMMAND`, `% open VOLUME`, `% close VOLUME`, `% write VOLUME MIB` (fresh content),
//! `% write-fails VOLUME MIB`, `% digest VOLUME HASH`.
//!
//! Recordings of `tests/real/run --record` have no times, and say what was done beside by `@ COMMAND`,
//! `* open PATH` and `* close`.
//!
//! UUIDs and hashes must match one to one over the whole recording, times only in form,
//! percentages within [`TOLERANCE`]; all else must be the same, layout included.
//!
//! What is no tool of LVM is done to the model where that is simple: `dd` writes fresh content,
//! `mkfs` and files of a mounted file system are some blocks, `sha256sum` compares content.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use snapslot_testkit::storage::lvm::{GuestError, Lvm};

/// By how many percentage points a share may differ: the model counts a pool's metadata and a
/// file system's blocks only about right.
const TOLERANCE: f64 = 0.75;
/// Length of a UUID as LVM writes it.
const UUID_BYTES: usize = 38;
/// Blocks of 4 KiB in a MiB.
const MIB: u64 = 256;

/// Commands that are not replayed, by a part of them, with the reason.
const SKIPPED: &[(&str, &str)] = &[
    ("pvcreate", "the model has groups, not devices"),
    ("vgcreate", "the model has groups, not devices"),
    ("ls -l", "device nodes"),
    ("dmsetup", "device-mapper itself"),
    ("nosuchfield", "the help text"),
    ("--binary", "the help text"),
    ("--nosuchopt", "an option the model does not know is a panic"),
    ("lv_ancestors", "fields the model does not have"),
    ("lv_time_removed", "a field the model does not have"),
    ("--nameprefixes", "a layout the model does not have"),
    ("--logonly", "LVM's log report"),
    ("report_command_log", "LVM's log report"),
    ("cut -c1-150", "a pipe"),
    (">/dev/null", "a redirection"),
    ("busybox su", "another user"),
    ("no_space_timeout", "a setting of the kernel"),
    ("no_such_field", "a pipe"),
    ("--nofield", "an option the model does not know is a panic"),
];

/// What came of a replay.
#[derive(Debug, Default)]
pub struct Counts {
    /// Commands whose exit code and output were compared.
    pub compared: usize,
    /// Commands that were not replayed, by reason.
    pub skipped: BTreeMap<&'static str, usize>,
    /// What differed, in words.
    pub differences: Vec<String>,
}

/// What one command printed.
#[derive(Debug, Default, PartialEq)]
struct Said {
    code: i32,
    out: Vec<String>,
    err: Vec<String>,
}

struct Replay {
    lvm: Lvm,
    /// What stands for what: recorded UUIDs and hashes, and the model's.
    pairs: BTreeMap<String, String>,
    mounted: Option<String>,
    opened: Option<String>,
    files: BTreeMap<u64, String>,
    fresh: u64,
}

/// Replays a recording of this name on a new model.
pub fn replay(name: &str, text: &str) -> Counts {
    let lvm = Lvm::new(0x1af5_2026);
    // Some begin before there is a group.
    if !text.contains("\n@ pvcreate ") {
        lvm.add_group("vg", 508 << 20);
    }
    let mut replay = Replay {
        lvm,
        pairs: BTreeMap::new(),
        mounted: None,
        opened: None,
        files: BTreeMap::new(),
        fresh: 1,
    };
    let mut counts = Counts::default();
    let lines: Vec<&str> = text.lines().collect();
    let mut at = 0;
    while at < lines.len() {
        let number = at + 1;
        let line = lines[at];
        at += 1;
        if let Some(aside) = line.strip_prefix("% ") {
            replay.aside(name, number, aside);
        }
        if let Some(done) = line.strip_prefix("@ ").or_else(|| line.strip_prefix("* ")) {
            replay.done(name, number, done);
        }
        let Some(command) = line.strip_prefix("$ ") else { continue };
        let (command, rest) = command.rsplit_once("   -> rc=").expect("an exit code");
        let code = rest.split(' ').next().unwrap_or_default();
        let mut wanted = Said { code: code.parse().expect("a number"), ..Said::default() };
        while let Some(line) = lines.get(at) {
            if let Some(line) = line.strip_prefix("   | ") {
                wanted.out.extend((!by_chance(line)).then(|| line.to_owned()));
            } else if let Some(line) = line.strip_prefix("   ! ") {
                wanted.err.push(line.to_owned());
            } else {
                break;
            }
            at += 1;
        }
        if let Some((_, why)) = SKIPPED.iter().find(|(part, _)| command.contains(part)) {
            *counts.skipped.entry(why).or_default() += 1;
            continue;
        }
        // What the model does not know it ends with words; the rest is compared all the same.
        let ran = catch_unwind(AssertUnwindSafe(|| replay.command(command, &wanted)));
        let said = match ran {
            Ok(said) => said,
            Err(why) => {
                let why = why.downcast_ref::<String>().map_or("a panic", String::as_str);
                counts.differences.push(format!("{name}.txt:{number}: {why}"));
                continue;
            }
        };
        counts.compared += 1;
        if let Err(why) = replay.same(&wanted, &said) {
            counts.differences.push(format!(
                "{name}.txt:{number}: `{command}`: {why}\nrecorded: {wanted:#?}\nmodel: {said:#?}"
            ));
        }
    }
    counts
}

impl Replay {
    fn aside(&mut self, name: &str, number: usize, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["run", ..] => self.lvm.stage(&text["run ".len()..]),
            ["open", volume] => self.lvm.open(volume),
            ["close", volume] => self.lvm.close(volume),
            ["write", volume, mib] => {
                let wrote = self.write_fresh(volume, mib.parse().expect("a number"));
                assert!(wrote, "{name}.txt:{number}: `{text}` failed");
            }
            ["write-fails", volume, mib] => {
                let wrote = self.write_fresh(volume, mib.parse().expect("a number"));
                assert!(!wrote, "{name}.txt:{number}: `{text}` succeeded");
            }
            ["digest", volume, hash] => {
                let model = self.digest(volume);
                self.pair(hash, &model).unwrap_or_else(|e| panic!("{name}.txt:{number}: {e}"));
            }
            _ => panic!("{name}.txt:{number}: what is `{text}`?"),
        }
    }

    /// What was done beside, as it was typed.
    fn done(&mut self, name: &str, number: usize, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let value = |key: &str| words.iter().find_map(|w| w.strip_prefix(key)).unwrap_or_default();
        match words.as_slice() {
            ["open", path] => {
                let volume = path.strip_prefix("/dev/").expect("a device").to_owned();
                self.lvm.open(&volume);
                self.opened = Some(volume);
            }
            ["close"] => self.lvm.close(&self.opened.take().expect("something is open")),
            ["dd", ..] if text.contains("of=/dev/ram") => {}
            // A RAM disk of 256 MiB, of which LVM uses less than an extent for itself.
            ["pvcreate", ..] => self.lvm.add_group("vg", 252 << 20),
            ["vgremove", ..] => {}
            ["dd", ..] => {
                let volume = value("of=").strip_prefix("/dev/").expect("a device").to_owned();
                let blocks = value("count=").parse::<u64>().expect("a count") * 16;
                assert_eq!(value("bs="), "64K", "{name}.txt:{number}: {text}");
                let wrote = (0..blocks).all(|block| {
                    self.fresh += 1;
                    self.lvm.guest_write(&volume, block, self.fresh).is_ok()
                });
                assert!(wrote, "{name}.txt:{number}: `{text}` failed");
            }
            _ => panic!("{name}.txt:{number}: what is `{text}`?"),
        }
    }

    /// A recorded value and the model's stand for each other from now on.
    fn pair(&mut self, recorded: &str, model: &str) -> Result<(), String> {
        let other = self.pairs.insert(format!("recorded {recorded}"), model.to_owned());
        let back = self.pairs.insert(format!("model {model}"), recorded.to_owned());
        if other.as_deref().is_some_and(|o| o != model) {
            return Err(format!("{recorded} was another of the model's than {model}"));
        }
        if back.as_deref().is_some_and(|b| b != recorded) {
            return Err(format!("the model's {model} was another than {recorded}"));
        }
        Ok(())
    }

    fn digest(&self, volume: &str) -> String {
        let mut hasher = DefaultHasher::new();
        self.lvm.content(volume).expect("content").hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Whether all could be written. As with a page cache, what fails does not stop the rest.
    fn write_fresh(&mut self, volume: &str, mib: u64) -> bool {
        (0..mib * MIB).fold(true, |good, block| {
            self.fresh += 1;
            self.lvm.guest_write(volume, block, self.fresh).is_ok() && good
        })
    }

    /// Runs a line of the shell.
    fn command(&mut self, text: &str, wanted: &Said) -> Said {
        let mut said = Said::default();
        for part in text.split(" && ") {
            for part in part.split("; ") {
                let words = words_of(part);
                let words: Vec<String> = words.iter().map(|word| self.here(word)).collect();
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                said.code = self.part(&words, wanted, &mut said);
            }
            if said.code != 0 {
                break;
            }
        }
        said
    }

    /// A word of a recorded command as it is here: UUIDs are others.
    fn here(&self, word: &str) -> String {
        let at = word.len().saturating_sub(UUID_BYTES);
        match word.get(at..).and_then(uuid_at) {
            Some(uuid) => match self.pairs.get(&format!("recorded {uuid}")) {
                Some(model) => format!("{}{model}", &word[..at]),
                None => word.to_owned(),
            },
            None => word.to_owned(),
        }
    }

    fn part(&mut self, words: &[&str], wanted: &Said, said: &mut Said) -> i32 {
        let volume = |path: &str| path.strip_prefix("/dev/").expect("a device").to_owned();
        match words {
            ["sync"] | ["sleep", _] => 0,
            ["dd", from, to, ..] if *to == "of=/dev/null" => {
                let path = &from["if=".len()..];
                match self.lvm.guest_read(&volume(path), 0) {
                    Ok(_) => 0,
                    Err(_) => {
                        said.err.push(format!("dd: error reading '{path}': Input/output error"));
                        1
                    }
                }
            }
            // Until there is no more room.
            ["dd", "if=/dev/zero", to, "bs=64K", "oflag=direct", ..] => {
                let path = &to["of=".len()..];
                let volume = volume(path);
                let full = (0..).find_map(|block| self.lvm.guest_write(&volume, block, 0).err());
                let why = match full {
                    Some(GuestError::PastEnd | GuestError::Io) => "No space left on device",
                    other => panic!("{path}: {other:?}"),
                };
                said.err.push(format!("dd: error writing '{path}': {why}"));
                1
            }
            ["dd", from, to, _, count, ..] => {
                let path = &to["of=".len()..];
                let mib: u64 = count["count=".len()..].parse().expect("a number");
                let good = if *from == "if=/dev/zero" {
                    let volume = volume(path);
                    (0..mib * MIB).all(|b| self.lvm.guest_write(&volume, b, 0).is_ok())
                } else {
                    self.write_fresh(&volume(path), mib)
                };
                if !good {
                    said.err.push(format!("dd: fsync failed for '{path}': Input/output error"));
                }
                i32::from(!good)
            }
            ["sha256sum", paths @ ..] => {
                for (path, line) in paths.iter().zip(&wanted.out) {
                    let model = self.digest(&volume(path));
                    let hash = line.split_whitespace().next().expect("a hash").to_owned();
                    let hash = match self.pair(&hash, &model) {
                        Ok(()) => hash,
                        Err(why) => why,
                    };
                    said.out.push(format!("{hash}  {path}"));
                }
                0
            }
            ["ls", path] => {
                let there = self.lvm.field(&volume(path), "lv_active") == "active";
                if there {
                    said.out.push((*path).to_owned());
                } else {
                    said.err.push(format!("ls: {path}: No such file or directory"));
                }
                i32::from(!there)
            }
            ["mkfs.ext4", .., path] => {
                let volume = volume(path);
                self.lvm.guest_discard(&volume);
                // As many blocks as were seen to change: on a thin volume 71 chunks, on a thick
                // one 1,038 blocks.
                let thin = self.lvm.field(&volume, "lv_layout") == "thin,sparse";
                let blocks: Vec<u64> = match thin {
                    true => (0..71).map(|n| n * 16).collect(),
                    false => (2048..2048 + 1038).collect(),
                };
                for block in blocks {
                    self.fresh += 1;
                    self.lvm.guest_write(&volume, block, self.fresh).expect("room");
                }
                0
            }
            ["mount", path, "/mnt"] => {
                self.lvm.mount(&volume(path));
                self.mounted = Some(volume(path));
                0
            }
            ["umount", "/mnt"] => {
                self.lvm.close(&self.mounted.take().expect("mounted"));
                0
            }
            ["echo", word, ">", "/mnt/f"] => {
                let volume = self.mounted.clone().expect("mounted");
                self.fresh += 1;
                self.files.insert(self.fresh, (*word).to_owned());
                // Seven blocks in four chunks of a pool, as was seen.
                for block in [6000, 6001, 6002, 6003, 6016, 6032, 6048] {
                    self.lvm.guest_write(&volume, block, self.fresh).expect("room");
                }
                0
            }
            ["cat", "/mnt/f"] => {
                let volume = self.mounted.clone().expect("mounted");
                let value = self.lvm.guest_read(&volume, 6000).expect("read");
                said.out.push(self.files[&value].clone());
                0
            }
            _ => {
                let answer = self.lvm.words(words);
                let lines = |bytes: Vec<u8>| -> Vec<String> {
                    let text = String::from_utf8(bytes).expect("text");
                    text.lines().map(str::to_owned).collect()
                };
                said.out.extend(lines(answer.output));
                said.err.extend(lines(answer.errors));
                answer.exit_code
            }
        }
    }

    fn same(&mut self, wanted: &Said, said: &Said) -> Result<(), String> {
        if wanted.code != said.code {
            return Err(format!("exit code {} and not {}", said.code, wanted.code));
        }
        for (wanted, said) in [(&wanted.out, &said.out), (&wanted.err, &said.err)] {
            if wanted.len() != said.len() {
                return Err(format!("{} lines and not {}", said.len(), wanted.len()));
            }
            for (wanted, said) in wanted.iter().zip(said) {
                self.same_line(wanted, said)
                    .map_err(|why| format!("{why}\nrecorded: {wanted}\nmodel:    {said}"))?;
            }
        }
        Ok(())
    }

    fn same_line(&mut self, wanted: &str, said: &str) -> Result<(), String> {
        let (wanted, said) = (Shape::of(wanted), Shape::of(said));
        if wanted.uuids.len() != said.uuids.len() || wanted.shares.len() != said.shares.len() {
            return Err("the lines differ in form".to_owned());
        }
        for (recorded, model) in wanted.uuids.iter().zip(&said.uuids) {
            self.pair(recorded, model)?;
        }
        let mut moved = false;
        for (recorded, model) in wanted.shares.iter().zip(&said.shares) {
            if (recorded - model).abs() > TOLERANCE {
                return Err(format!("{model} % is too far from {recorded} %"));
            }
            moved |= recorded != model;
        }
        // A share of another width moves the rest of the line.
        let same = match moved {
            true => wanted.rest.split_whitespace().eq(said.rest.split_whitespace()),
            false => wanted.rest == said.rest,
        };
        if same { Ok(()) } else { Err("the lines differ".to_owned()) }
    }
}

/// Lines that depend on what was on the disk before, and on how fast it is.
fn by_chance(line: &str) -> bool {
    line.starts_with("  Wiping ") || line.contains(": Merged: ") && !line.ends_with(" 100.00%")
}

/// A line without what may differ.
#[derive(Debug, Default)]
struct Shape {
    rest: String,
    uuids: Vec<String>,
    shares: Vec<f64>,
}

impl Shape {
    fn of(line: &str) -> Shape {
        let mut shape = Shape::default();
        let mut rest = line;
        while let Some(c) = rest.chars().next() {
            let boundary = shape.rest.chars().last().is_none_or(|c| !c.is_ascii_alphanumeric());
            if boundary && let Some(uuid) = uuid_at(rest) {
                shape.uuids.push(uuid.to_owned());
                shape.rest.push_str("UUID");
                rest = &rest[uuid.len()..];
            } else if boundary && let Some(length) = time_at(rest) {
                shape.rest.push_str("TIME");
                rest = &rest[length..];
            } else if boundary && let Some(share) = share_at(rest) {
                shape.shares.push(share.parse().expect("a number"));
                shape.rest.push_str("SHARE");
                rest = &rest[share.len()..];
            } else {
                shape.rest.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        shape
    }
}

fn uuid_at(text: &str) -> Option<&str> {
    let candidate = text.get(..UUID_BYTES)?;
    let lengths = candidate.split('-').map(str::len);
    let plain = candidate.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (plain && lengths.eq([6, 4, 4, 4, 4, 4, 6])).then_some(candidate)
}

/// `2026-11-22 10:19:58 +0000`, or seconds.
fn time_at(text: &str) -> Option<usize> {
    let digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if let Some(date) = text.get(..25)
        && date.ends_with(" +0000")
        && date.split(['-', ' ', ':']).take(6).all(digits)
    {
        return Some(25);
    }
    let seconds = |s: &&str| (s.starts_with("17") || s.starts_with("18")) && digits(s);
    text.get(..10).filter(seconds).map(|_| 10)
}

/// `12.34` that is no size.
fn share_at(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, after) = text.split_at(end);
    let (_, fraction) = number.split_once('.')?;
    let size = after.starts_with(|c: char| c.is_ascii_alphabetic())
        || ["KiB", "MiB", "GiB", "TiB"].iter().any(|u| after.trim_start().starts_with(u));
    let whole = fraction.len() == 2 && number.parse::<f64>().is_ok();
    (whole && !size).then_some(number)
}

/// Words of a line of the shell: blanks divide, single quotes join.
fn words_of(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    for c in text.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}
