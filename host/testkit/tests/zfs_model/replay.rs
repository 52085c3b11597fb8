//! Replays what real machines said against the model.
//!
//! Commands of `zfs` are run on the model and compared: exit code, output, errors. What else a
//! transcript holds (`dd`, `zpool`, a shell's redirections) is done to the model where it has an
//! effect there, and is not compared. Numbers that cannot be the same are compared by what they
//! mean: a guid must stand for the same thing throughout, room must agree within a few per cent.

mod typed;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};

use snapslot_testkit::storage::zfs::{Access, Model, View};

/// Commands of `zfs` that are not compared, by a part of them, and why. Those whose effect later
/// commands need are done all the same.
const SKIPPED: &[(&str, &str)] = &[
    ("zfs list -H -t snapshot -o name,creation,used -d 1", "without -p: numbers for people"),
    ("zfs get -Hp -s local", "all of the properties"),
    ("zfs get -Hp all", "all of the properties"),
    ("zfs holds -Hr", "not a snapshot"),
    ("zfs destroy -n -v", "words for people"),
    ("zfs destroy -R -n -v", "words for people"),
    ("zfs diff", "files"),
    ("zfs send", "streams"),
    ("zfs allow", "delegation"),
    ("destroy tank/vm1@b%c", "ranges"),
    ("destroy -nvp tank/v@b%c", "ranges"),
    ("destroy -nvp tank/vm1@b", "a dry run of nothing"),
    ("zfs bogus", "no command"),
    ("tank/copy", "streams"),
];

/// Columns of bytes that are estimated.
const ROOM: [&str; 12] = [
    "used",
    "refer",
    "referenced",
    "written",
    "avail",
    "available",
    "usedbysnapshots",
    "usedbydataset",
    "usedbychildren",
    "usedbyrefreservation",
    "value",
    "logicalreferenced",
];

/// What came of a replay.
#[derive(Debug, Default)]
pub struct Tally {
    /// Commands compared and equal.
    pub compared: usize,
    /// Commands that were not compared, with the reason.
    pub skipped: Vec<String>,
    /// Differences, in words.
    pub different: Vec<String>,
}

/// One command as recorded.
#[derive(Debug, Default)]
struct Record {
    number: usize,
    line: String,
    code: i32,
    out: Vec<String>,
    err: Vec<String>,
    programs: BTreeMap<String, String>,
    effects: Vec<String>,
}

fn records(text: &str) -> Vec<Record> {
    let (mut all, mut programs) = (Vec::<Record>::new(), BTreeMap::<String, String>::new());
    let (mut effects, mut naming) = (Vec::new(), String::new());
    for (number, line) in (1..).zip(text.lines()) {
        if let Some(rest) = line.strip_prefix("$ ") {
            let (command, end) =
                rest.rsplit_once("   -> rc=").expect("a command ends with its code");
            let code = end.split(' ').next().and_then(|c| c.parse().ok()).expect("a code");
            all.push(Record {
                number,
                line: command.to_owned(),
                code,
                programs: programs.clone(),
                effects: std::mem::take(&mut effects),
                ..Record::default()
            });
        } else if let Some(name) = line.strip_prefix("% ") {
            name.clone_into(&mut naming);
            programs.insert(naming.clone(), String::new());
        } else if let Some(rest) = line.strip_prefix("   <") {
            let program = programs.entry(naming.clone()).or_default();
            *program += rest.strip_prefix(' ').unwrap_or(rest);
            program.push('\n');
        } else if let Some(effect) = line.strip_prefix("+ ") {
            effects.push(effect.to_owned());
        } else if line.starts_with("@ ") || line.starts_with("* ") {
            effects.push(line.to_owned());
        } else if let Some(rest) = line.strip_prefix("   |") {
            let last = all.last_mut().expect("output follows a command");
            last.out.push(rest.strip_prefix(' ').unwrap_or(rest).to_owned());
        } else if let Some(rest) = line.strip_prefix("   !") {
            let last = all.last_mut().expect("errors follow a command");
            last.err.push(rest.strip_prefix(' ').unwrap_or(rest).to_owned());
        } else {
            let is_other = line.is_empty() || line.starts_with('#') || line.starts_with("===");
            assert!(is_other, "line {number} of a transcript is not known: {line}");
        }
    }
    // What a recording by the harness ends with is its cleaning up.
    effects.retain(|effect| !effect.starts_with("@ "));
    assert!(effects.is_empty(), "effects at the end of a transcript do nothing: {effects:?}");
    all
}

struct Replay {
    model: Model,
    /// What a recorded number stands for here.
    guids: BTreeMap<String, String>,
    others: BTreeMap<(String, String), String>,
    opened: Vec<String>,
    value: u64,
    /// Blocks of the file `g`, to be removed with it.
    file: std::ops::Range<u64>,
    user: Access,
    /// By how much room may differ, beside some per cent: the model's disks have sectors of 512 bytes.
    slack: u64,
}

/// Replays one transcript; `name` goes into what is said.
pub fn replay(name: &str, text: &str) -> Tally {
    let mut replay = Replay {
        model: Model::new(7),
        guids: BTreeMap::new(),
        others: BTreeMap::new(),
        opened: Vec::new(),
        value: 0,
        file: 0..0,
        user: Access::User,
        slack: if text.contains("\n@ zpool create ") { 192 << 10 } else { 16 << 10 },
    };
    let mut tally = Tally::default();
    for record in records(text) {
        for effect in &record.effects {
            replay.effect(effect);
        }
        let place = format!("{name}:{}: {}", record.number, record.line);
        // What the model does not know it ends with words; the rest is compared all the same.
        let ran = catch_unwind(AssertUnwindSafe(|| replay.command(&record)));
        match ran {
            Ok(Ok(None)) => tally.compared += 1,
            Ok(Ok(Some(why))) => tally.skipped.push(format!("{place} ({why})")),
            Ok(Err(difference)) => tally.different.push(format!("{place}\n{difference}")),
            Err(said) => {
                let said = said.downcast_ref::<String>().map_or("a panic", String::as_str);
                tally.different.push(format!("{place}\n  {said}"));
            }
        }
    }
    tally
}

/// The commands of a line.
fn parts(line: &str) -> Vec<String> {
    let (mut all, mut part, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '\'' => {
                quoted = !quoted;
                part.push(c);
            }
            ';' if !quoted => all.push(std::mem::take(&mut part)),
            c => part.push(c),
        }
    }
    all.push(part);
    all.iter().map(|p| p.trim().to_owned()).collect()
}

fn after<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.split(' ').find_map(|word| word.strip_prefix(key))
}

impl Replay {
    fn effect(&mut self, effect: &str) {
        if let Some(text) = effect.strip_prefix("@ ").or_else(|| effect.strip_prefix("* ")) {
            return self.typed(text);
        }
        let words: Vec<&str> = effect.split(' ').collect();
        match words[..] {
            ["zfs", ..] => {
                self.model.must(effect);
            }
            ["open", name] => self.model.open(name),
            ["close", name] => self.model.close(name),
            ["view", snapshot, "used"] => self.model.view(snapshot, View::Used),
            ["user", "none"] => self.user = Access::NoDevice,
            ["user", "some"] => self.user = Access::User,
            ["modules", "none"] => self.model.set_access(Access::NoModules),
            ["modules", "loaded"] => self.model.set_access(Access::Root),
            ["pool", name, mib] => {
                self.model.add_pool(name, mib.parse::<u64>().expect("MiB") << 20);
            }
            ["write", name, kib] => self.write(name, 0, kib.parse().expect("KiB")),
            ["fill", name, left] => self.fill(name, left.parse().expect("bytes")),
            _ => panic!("this effect is not known: {effect}"),
        }
    }

    fn write(&mut self, name: &str, first: u64, kib: u64) {
        let block = self.model.typed(&format!("zfs list -Hp -o volblocksize {name}"));
        let block = String::from_utf8_lossy(&block.output).trim().parse().unwrap_or(8192);
        for at in 0..(kib << 10).div_ceil(block) {
            self.value += 1;
            let written = self.model.guest_write(name, first + at, Some(self.value));
            assert!(written.is_ok(), "no room for block {at} of {name}: {written:?}");
        }
    }

    /// Writes far up in a volume until no more than this is free in its pool.
    fn fill(&mut self, name: &str, left: u64) {
        let pool = name.split('/').next().expect("a pool").to_owned();
        let free = || {
            let said = self.model.must(&format!("zfs list -Hp -o available {pool}"));
            said.trim().parse::<u64>().expect("a number")
        };
        let first = (1 << 20) + self.value;
        let blocks = free().saturating_sub(left) / (8192 + 81);
        self.write(name, first, blocks * 8);
    }

    /// Does what is no command of `zfs`; false: it has no effect the model could have.
    fn other(&mut self, part: &str, code: i32) -> bool {
        let words: Vec<&str> = part.split(' ').collect();
        match words[..] {
            ["zpool", "destroy", name] => self.model.remove_pool(name),
            // Its size is told by an effect: that of the file it is in says little.
            ["zpool", "create" | "export", ..] => {}
            ["zpool", "import", .., name] => {
                self.model.set_read_only(name, part.contains("readonly=on"));
            }
            ["udevadm", "settle"]
            | ["sleep", _]
            | ["sync"]
            | ["zpool", "sync", _]
            | ["modprobe", _] => {}
            ["dd", ..] if code == 0 && part.contains("of=/dev/zvol/") => {
                let name = after(part, "of=/dev/zvol/").expect("it has one").to_owned();
                let count: u64 =
                    after(part, "count=").and_then(|c| c.parse().ok()).expect("a count");
                self.write(&name, 0, count << 10);
            }
            ["dd", ..] if code == 0 && part.contains("of=/mnt/ds/") => {
                let count: u64 =
                    after(part, "count=").and_then(|c| c.parse().ok()).expect("a count");
                self.write("tank/ds", 1000, count * 64);
                self.file = 1000..1000 + count * 8;
            }
            ["rm", "/mnt/ds/g"] => {
                for at in std::mem::take(&mut self.file) {
                    self.model.guest_write("tank/ds", at, None).expect("the file is removed");
                }
            }
            ["echo", _, ">", file] if file.starts_with("/mnt/ds/") => {
                self.value += 1;
                let value = Some(self.value);
                self.model.guest_write("tank/ds", 0, value).expect("there is room for a line");
            }
            ["exec", opened] if opened.starts_with("9</dev/zvol/") => {
                let name = opened.trim_start_matches("9</dev/zvol/").to_owned();
                self.model.open(&name);
                self.opened.push(name);
            }
            ["exec", "9<&-"] => self.model.close(&self.opened.pop().expect("something is open")),
            ["cat" | "ls", path] if path.contains("/.zfs/snapshot/") => {
                let name = path.split('/').nth(5).expect("a snapshot");
                let dataset = path.split('/').nth(2).expect("a dataset");
                let snapshot = format!("tank/{dataset}@{name}");
                if self.model.content(&snapshot).is_some() {
                    self.model.view(&snapshot, View::Open);
                }
            }
            _ => return false,
        }
        true
    }

    /// Equal: none; not compared: why.
    fn command(&mut self, record: &Record) -> Result<Option<String>, String> {
        let (mut out, mut err, mut code) = (Vec::new(), Vec::new(), 0);
        let (mut skipped, mut columns, mut ran) = (None, VecDeque::new(), false);
        for part in parts(&record.line) {
            let inner = ["busybox su -s /bin/sh nobody -c '", "busybox su nobody -s /bin/sh -c '"];
            let (part, user) = match inner.iter().find_map(|su| part.strip_prefix(su)) {
                Some(inner) => (inner.trim_end_matches('\'').to_owned(), true),
                None => (part, false),
            };
            if let Some((_, why)) = SKIPPED.iter().find(|(text, _)| part.contains(text)) {
                skipped = Some((*why).to_owned());
                continue;
            }
            if !part.starts_with("zfs ") || part.contains('|') || part.contains('$') {
                let known = self.other(&part, record.code);
                let why = if known { "an effect" } else { "no effect here" };
                skipped = skipped.or(Some(why.to_owned())).filter(|_| !known || !part.is_empty());
                // What has no effect says nothing either, or something that is not compared.
                if known && (part.starts_with("udevadm") || part.starts_with("sleep")) {
                    skipped = None;
                }
                continue;
            }
            let (line, input) = match part.rsplit_once(" < ") {
                Some((line, "/root/one")) => (line, Some("return 1\n")),
                Some((line, name)) => (line, Some(record.programs[name].as_str())),
                None => match part.rsplit_once(" <").map(|(l, file)| (l, typed::program(file))) {
                    Some((line, Some(program))) => (line, Some(program)),
                    _ => (part.as_str(), None),
                },
            };
            let line = line.replace(" </dev/null", "");
            self.meet_guids(&line);
            let line: Vec<String> = line.split(' ').map(|w| self.here(w)).collect();
            if user {
                self.model.set_access(self.user);
            }
            let answer = self.model.typed_with(&line.join(" "), input);
            if user {
                self.model.set_access(Access::Root);
            }
            (code, ran) = (answer.exit_code, true);
            let said = String::from_utf8_lossy(&answer.output).into_owned();
            out.extend(said.lines().map(str::to_owned));
            for _ in said.lines() {
                columns.push_back(columns_of(&line));
            }
            err.extend(String::from_utf8_lossy(&answer.errors).lines().map(str::to_owned));
        }
        if !ran || skipped.is_some() {
            return Ok(skipped.or_else(|| Some("nothing to run".to_owned())));
        }
        let mut wrong = Vec::new();
        if code != record.code {
            wrong.push(format!("  exit code {} was recorded, the model says {code}", record.code));
        }
        if out.len() == record.out.len() {
            let mut recorded: Vec<&String> = record.out.iter().collect();
            // Holds come in an order of ZFS's own.
            if record.line.starts_with("zfs holds") {
                recorded.sort();
            }
            for (model, recorded) in out.iter().zip(recorded) {
                let columns = columns.pop_front().unwrap_or_default();
                if let Err(why) = self.same_line(recorded, model, &columns) {
                    wrong.push(format!("  recorded | {recorded}\n  model    | {model}\n  {why}"));
                }
            }
        } else {
            wrong.push(format!("  recorded | {:?}\n  model    | {out:?}", record.out));
        }
        let (recorded, model) = (plain(&record.err), plain(&err));
        if recorded != model {
            wrong.push(format!("  recorded ! {recorded:?}\n  model    ! {model:?}"));
        }
        if wrong.is_empty() { Ok(None) } else { Err(wrong.join("\n")) }
    }

    /// A word of a recorded command as it is here: guids are others.
    fn here(&self, word: &str) -> String {
        let (key, value) = match word.split_once("snapslot:of=") {
            Some(("", value)) => ("snapslot:of=", value),
            _ => ("", word),
        };
        let value = self.guids.get(value).map_or(value, String::as_str);
        format!("{key}{value}")
    }

    fn same_line(&mut self, recorded: &str, model: &str, columns: &[String]) -> Result<(), String> {
        let cells = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
        let (recorded, model) = (cells(recorded), cells(model));
        if recorded.len() != model.len() {
            return Err("the number of columns differs".to_owned());
        }
        for (at, (r, m)) in recorded.iter().zip(&model).enumerate() {
            let mut column = columns.get(at).map_or("", String::as_str);
            // A value means what the property beside it says.
            if let ("value", Some(beside)) = (column, columns.iter().position(|c| c == "property"))
            {
                column = &recorded[beside];
            }
            let numbers = r.parse::<u64>().ok().zip(m.parse::<u64>().ok());
            let same = match (column, numbers) {
                ("guid" | "snapslot:of", Some(_)) => {
                    let known = self.guids.entry(r.clone()).or_insert_with(|| m.clone());
                    known == m && self.guids.values().filter(|v| *v == m).count() == 1
                }
                ("createtxg" | "creation", Some(_)) => {
                    let key = (column.to_owned(), r.clone());
                    self.others.entry(key).or_insert_with(|| m.clone()) == m
                }
                ("date", _) => true,
                (column, Some((r, m))) if ROOM.contains(&column) => {
                    // What is left of a reservation is as uncertain as what was used of it.
                    let whole = columns.iter().position(|c| c == "refreservation");
                    let whole = whole.filter(|_| column == "usedbyrefreservation");
                    let whole = whole.and_then(|i| recorded[i].parse().ok()).unwrap_or(r);
                    r.abs_diff(m) <= self.slack + whole / 25
                }
                _ => r == m,
            };
            if !same {
                return Err(format!("column {column}: {r} and {m}"));
            }
        }
        Ok(())
    }
}

/// The columns a command prints.
fn columns_of(words: &[String]) -> Vec<String> {
    let all = |list: &str| list.split(',').map(str::to_owned).collect::<Vec<_>>();
    let option = words.iter().position(|w| w.starts_with('-') && w.ends_with('o'));
    let chosen = option.and_then(|i| words.get(i + 1)).map(|list| all(list));
    match words.get(1).map(String::as_str) {
        Some("list") => chosen.unwrap_or_else(|| all("name,used,available,referenced,mountpoint")),
        // With `-o value` alone the column's meaning is the property's.
        Some("get") if words.iter().any(|w| w == "guid") => all("guid"),
        Some("get") => chosen.unwrap_or_default(),
        Some("holds") => all("name,tag,date"),
        _ => Vec::new(),
    }
}

/// Errors in a form that can be compared: what is not ASCII as `?`, the head of a help text only,
/// lists in one order.
fn plain(lines: &[String]) -> Vec<String> {
    let ascii = |line: &String| {
        let mut out = String::new();
        for c in line.trim_end().chars() {
            let c = if c.is_ascii() { c } else { '?' };
            if c != '?' || !out.ends_with('?') {
                out.push(c);
            }
        }
        out
    };
    let mut all: Vec<String> = lines.iter().map(ascii).collect();
    if let Some(head) = all.iter().position(|l| l == "usage:") {
        all.truncate(head + 1);
    }
    if all.iter().any(|l| l.starts_with("use '-")) {
        all.sort();
    }
    all
}
