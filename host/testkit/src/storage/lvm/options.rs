//! The command line: which options the model knows, and what LVM says about bad values.

use super::state::{EXTENT_BYTES, SECTOR_BYTES};

/// Options of all programs: long name, short one, whether a value follows.
const COMMON: &[(&str, char, bool)] =
    &[("yes", 'y', false), ("quiet", 'q', false), ("config", ' ', true)];

fn options_of(program: &str) -> &'static [(&'static str, char, bool)] {
    match program {
        "lvs" | "vgs" => &[
            ("all", 'a', false),
            ("options", 'o', true),
            ("units", ' ', true),
            ("nosuffix", ' ', false),
            ("noheadings", ' ', false),
            ("separator", ' ', true),
            ("reportformat", ' ', true),
            ("select", 'S', true),
        ],
        "lvcreate" => &[
            ("snapshot", 's', false),
            ("name", 'n', true),
            ("size", 'L', true),
            ("extents", 'l', true),
            ("virtualsize", 'V', true),
            ("thinpool", ' ', true),
            ("type", ' ', true),
            ("poolmetadatasize", ' ', true),
            ("zero", 'Z', true),
            ("permission", 'p', true),
            ("activate", 'a', true),
            ("setactivationskip", 'k', true),
            ("addtag", ' ', true),
        ],
        "lvremove" => &[("force", 'f', false), ("select", 'S', true)],
        "lvrename" => &[],
        "lvchange" => &[
            ("activate", 'a', true),
            ("ignoreactivationskip", 'K', false),
            ("setactivationskip", 'k', true),
            ("setautoactivation", ' ', true),
            ("permission", 'p', true),
            ("addtag", ' ', true),
            ("deltag", ' ', true),
            ("refresh", ' ', false),
            ("poll", ' ', true),
            ("errorwhenfull", ' ', true),
            ("readahead", 'r', true),
        ],
        "lvconvert" => &[
            ("merge", ' ', false),
            ("interval", 'i', true),
            ("background", 'b', false),
            ("startpoll", ' ', false),
        ],
        "lvextend" | "lvresize" => &[("size", 'L', true)],
        _ => panic!("the model does not know the program {program}"),
    }
}

/// A command line, taken apart.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) program: String,
    /// Long names with their values, in order.
    options: Vec<(String, String)>,
    pub(super) positional: Vec<String>,
    text: String,
}

impl Line {
    pub(super) fn parse(words: Vec<String>) -> Line {
        let text = words.join(" ");
        let mut words = words.into_iter();
        let program = words.next().expect("a program");
        let known: Vec<_> = COMMON.iter().chain(options_of(&program)).collect();
        let mut line = Line { program, options: Vec::new(), positional: Vec::new(), text };
        while let Some(word) = words.next() {
            if let Some(long) = word.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let Some((_, _, takes)) = known.iter().find(|(n, _, _)| *n == name) else {
                    line.unknown(&format!("the option --{name}"));
                };
                let value = match (takes, value) {
                    (true, None) => words.next(),
                    (_, value) => value,
                };
                if *takes != value.is_some() {
                    line.unknown(&format!("--{name} like this"));
                }
                line.options.push((name.to_owned(), value.unwrap_or_default()));
            } else if word.len() > 1 && word.starts_with('-') {
                line.short(&word[1..], &mut words, &known);
            } else {
                line.positional.push(word);
            }
        }
        line
    }

    fn short(
        &mut self,
        letters: &str,
        words: &mut impl Iterator<Item = String>,
        known: &[&(&str, char, bool)],
    ) {
        let mut rest = letters;
        while let Some(letter) = rest.chars().next() {
            rest = &rest[letter.len_utf8()..];
            let Some((name, _, takes)) = known.iter().find(|(_, s, _)| *s == letter) else {
                self.unknown(&format!("the option -{letter}"));
            };
            let value = match takes {
                false => String::new(),
                true if rest.is_empty() => {
                    words.next().unwrap_or_else(|| self.unknown(&format!("-{letter} at the end")))
                }
                true => std::mem::take(&mut rest).to_owned(),
            };
            self.options.push(((*name).to_owned(), value));
        }
    }

    /// The last value given for an option.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let last = self.options.iter().rfind(|(n, _)| n == name);
        last.map(|(_, value)| value.as_str())
    }

    pub(super) fn values(&self, name: &str) -> Vec<String> {
        let all = self.options.iter().filter(|(n, _)| n == name);
        all.map(|(_, value)| value.clone()).collect()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(n, _)| n == name)
    }

    /// Whether it is said with `-qq`.
    pub(super) fn silent(&self) -> bool {
        self.values("quiet").len() > 1
    }

    /// Whether the program changes something.
    pub(super) fn changes(&self) -> bool {
        !matches!(self.program.as_str(), "lvs" | "vgs")
    }

    /// `y` or `n`.
    pub(super) fn yes_or_no(&self, name: &str) -> Option<bool> {
        self.value(name).map(|v| match v {
            "y" => true,
            "n" => false,
            _ => self.unknown(&format!("the value of --{name}")),
        })
    }

    /// The permission asked for: whether it is writable.
    pub(super) fn permission(&self) -> Option<bool> {
        self.value("permission").map(|v| match v {
            "r" => false,
            "rw" => true,
            _ => self.unknown("the permission"),
        })
    }

    /// The first tag that LVM refuses.
    pub(super) fn bad_tag(&self) -> Option<(&'static str, String)> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:&#@".contains(c);
        let bad = |tag: &String| tag.is_empty() || tag.len() > 1024 || !tag.chars().all(allowed);
        ["addtag", "deltag"]
            .into_iter()
            .find_map(|name| self.values(name).into_iter().find(bad).map(|tag| (name, tag)))
    }

    /// Values of `--config`, as `section/key`.
    pub(super) fn config(&self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for text in self.values("config") {
            let mut section = String::new();
            for word in text.replace('{', "{ ").replace('}', " }").split_whitespace() {
                if let Some(name) = word.strip_suffix('{') {
                    section = format!("{name}/");
                } else if word == "}" {
                    section.clear();
                } else if let Some((key, value)) = word.split_once('=') {
                    all.push((format!("{section}{key}"), value.trim_matches('"').to_owned()));
                } else {
                    self.unknown("the configuration");
                }
            }
        }
        for (key, value) in &all {
            let known = match key.as_str() {
                "report/time_format" => value == "%s",
                "report/list_item_separator" => value == ",",
                "activation/thin_pool_autoextend_threshold" => value.parse::<u8>().is_ok(),
                "activation/monitoring" | "global/wait_for_locks" => value == "0",
                _ => false,
            };
            if !known {
                self.unknown(&format!("the setting {key}={value}"));
            }
        }
        all
    }

    /// The model has come to the end of its knowledge.
    #[track_caller]
    pub(super) fn unknown(&self, what: &str) -> ! {
        panic!("the model of LVM does not know {what}: {}", self.text)
    }
}

/// A size as `-L` takes it, in bytes; megabytes where no unit is said.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "b" | "B" => 1,
        "k" | "K" => 1 << 10,
        "" | "m" | "M" => 1 << 20,
        "g" | "G" => 1 << 30,
        "t" | "T" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok().map(|n| n * unit)
}

/// A size as `-L` takes it, in whole extents.
pub(super) fn extents(bytes: u64) -> u64 {
    bytes.div_ceil(EXTENT_BYTES)
}

/// What a program prints.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) code: i32,
    pub(super) out: String,
    pub(super) err: String,
    silent: bool,
}

impl Output {
    pub(super) fn new(line: &Line) -> Output {
        Output { silent: line.silent(), ..Output::default() }
    }

    /// A line on standard output, but with `-qq`.
    pub(super) fn say(&mut self, text: &str) {
        if !self.silent {
            self.out += &format!("  {text}\n");
        }
    }

    /// A line on standard error.
    pub(super) fn warn(&mut self, text: &str) {
        self.err += &format!("  {text}\n");
    }

    /// A line on standard error, and exit code 5.
    pub(super) fn fail(&mut self, text: &str) {
        self.warn(text);
        self.code = 5;
    }

    pub(super) fn failed(mut self, text: &str) -> Output {
        self.fail(text);
        self
    }

    /// Bad arguments: exit code 3, and where help is.
    pub(super) fn misused(mut self, line: &Line, text: &str) -> Output {
        self.warn(text);
        self.warn(&format!("Run `{} --help' for more information.", line.program));
        self.code = 3;
        self
    }

    /// An argument that could not be read: exit code 3.
    pub(super) fn unreadable(mut self, option: &str, value: &str) -> Output {
        match size(value) {
            Some(bytes) if option == "size" => {
                let below = bytes / SECTOR_BYTES * SECTOR_BYTES;
                let above = below + SECTOR_BYTES;
                self.warn(&format!(
                    "Size is not a multiple of {SECTOR_BYTES}. Try using {below} or {above}."
                ));
            }
            None if option == "size" => self.warn("Size requires number argument."),
            _ => {}
        }
        self.warn(&format!("Invalid argument for --{option}: {value}"));
        self.warn("Error during parsing of command line.");
        self.code = 3;
        self
    }

    pub(super) fn no_group(mut self, group: &str) -> Output {
        self.warn(&format!("Volume group \"{group}\" not found"));
        self.fail(&format!("Cannot process volume group {group}"));
        self
    }
}

/// A size for people, as LVM's messages have it: `4.00 MiB`.
pub(super) fn display_size(bytes: u64) -> String {
    sized(bytes, &[" KiB", " MiB", " GiB", " TiB"])
}

/// A size for people, as LVM's columns have it: `4.00m`.
pub(super) fn column_size(bytes: u64) -> String {
    sized(bytes, &["k", "m", "g", "t"])
}

fn sized(bytes: u64, units: &[&str]) -> String {
    let mut unit = 0;
    let mut divisor = 1u64 << 10;
    while unit + 1 < units.len() && bytes >= divisor << 10 {
        unit += 1;
        divisor <<= 10;
    }
    let hundredths = (u128::from(bytes) * 100 + u128::from(divisor) / 2) / u128::from(divisor);
    // Rounded up: LVM says so.
    let above = hundredths * u128::from(divisor) > u128::from(bytes) * 100;
    let sign = if above { "<" } else { "" };
    format!("{sign}{}.{:02}{}", hundredths / 100, hundredths % 100, units[unit])
}
