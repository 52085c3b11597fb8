//! The host's table: which commands may be had at all, for which kind of place, with which options,
//! and on what.
//!
//! It says what is possible, not what is granted: a plugin declares, a person approves, and neither
//! gets past this. What is not in it, word for word, is refused:
//!
//! - an option is one of those listed, spelled as here. LVM takes options cut short (`--comm`) and with
//!   their value in the same word (`--config=…`); neither is a word of the table.
//! - a hole stands where the table has a place for its grammar: never in an option's own word, nor
//!   where an option could stand.
//! - whatever changes has one target, and that is the volume at hand or something of ours. A group
//!   alone would mean all its volumes, an identifier alone another group.
//! - whatever looks has a target too: without one, LVM shows all groups and ZFS all pools.
//! - an image has no commands: its plans change its bytes, and no tool is needed for that.

use crate::place::PlaceKind;

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To see something: queries and guards.
    Look,
    /// To change something: actions.
    Change,
}

/// One command of the table.
pub(crate) struct Shape {
    /// The places whose volumes may have it.
    pub(crate) kind: PlaceKind,
    /// The program, and the word that says what it does where it does several things.
    pub(crate) words: &'static [&'static str],
    pub(crate) purpose: Purpose,
    /// Options that are a word by themselves.
    pub(crate) flags: &'static [&'static str],
    /// Options whose value is the next word.
    pub(crate) options: &'static [(&'static str, Value)],
    /// Options without which it would be another command.
    pub(crate) needs: &'static [&'static str],
    /// What stands behind the options, in order.
    pub(crate) operands: &'static [Operand],
}

/// What may be the value of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// Fixed text.
    Fixed,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A name of ours for a logical volume.
    OwnName,
    /// A tag: fixed text, marks, numbers, tags.
    Tag,
    /// `lv_uuid=` and an identifier.
    Identity,
    /// The same, or fixed text.
    Selection,
    /// What shapes a report and sets nothing else.
    ReportShape,
    /// A number, fixed or not, and fixed text behind it.
    Size,
    /// A property of a user's, `space:name=value`; the value of fixed text, marks and numbers.
    Property,
    /// Names of properties; `written@` may go on with a snapshot of ours.
    Properties,
}

/// What stands in one place, or in that one and all behind it.
pub(crate) struct Operand {
    pub(crate) any_of: &'static [Thing],
    pub(crate) count: Count,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    One,
    OneOrMore,
    Any,
}

/// Something a command can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Thing {
    /// The volume's group.
    Group,
    /// The volume, `group/volume`.
    Volume,
    /// A volume of ours in its group.
    Own,
    /// The volume's name alone.
    VolumeName,
    /// A name of ours alone.
    OwnName,
    /// The dataset's pool.
    Pool,
    /// The dataset.
    Dataset,
    /// A snapshot of ours of the dataset.
    OwnSnapshot,
    /// The part of ours of such a snapshot's name.
    OwnPart,
    /// A number or a mark.
    Figure,
    /// Names of properties.
    Properties,
    /// `-`: the standard input, a program this host knows.
    KnownProgram,
    /// The directory.
    Path,
    /// An entry of ours beside it.
    OwnPath,
}

impl Thing {
    /// As the guide writes it.
    fn sign(self) -> &'static str {
        match self {
            Thing::Group => "{lvm-group}",
            Thing::Volume => "{lvm-group}/{lvm-volume}",
            Thing::Own => "{lvm-group}/{lvm-own}",
            Thing::VolumeName => "{lvm-volume}",
            Thing::OwnName => "{lvm-own}",
            Thing::Pool => "{zfs-pool}",
            Thing::Dataset => "{zfs-dataset}",
            Thing::OwnSnapshot => "{zfs-dataset}@{zfs-own}",
            Thing::OwnPart => "{zfs-own}",
            Thing::Figure => "{number}|{mark}",
            Thing::Properties => "PROPERTIES",
            Thing::KnownProgram => "-",
            Thing::Path => "{path}",
            Thing::OwnPath => "{path-own}",
        }
    }
}

impl Value {
    fn sign(self) -> String {
        match self {
            Value::Fixed => "TEXT".to_owned(),
            Value::OneOf(words) => words.join("|"),
            Value::OwnName => "{lvm-own}".to_owned(),
            Value::Tag => "TAG".to_owned(),
            Value::Identity => "lv_uuid={uuid}".to_owned(),
            Value::Selection => "TEXT|lv_uuid={uuid}".to_owned(),
            Value::ReportShape => "report/NAME=\"TEXT\"".to_owned(),
            Value::Size => "SIZE".to_owned(),
            Value::Property => "SPACE:NAME=VALUE".to_owned(),
            Value::Properties => "PROPERTIES".to_owned(),
        }
    }
}

/// The programs inside ZFS that may be had. One can name any dataset of the pool, so no other is
/// run, whoever approves it.
pub(crate) const PROGRAMS_INSIDE: [&str; 2] = [
    include_str!("../../../plugins/zfs/src/rollback.lua"),
    include_str!("../../../plugins/zfs/src/destroy.lua"),
];

const fn one(any_of: &'static [Thing]) -> Operand {
    Operand { any_of, count: Count::One }
}

const fn some(any_of: &'static [Thing]) -> Operand {
    Operand { any_of, count: Count::OneOrMore }
}

const YES: Value = Value::OneOf(&["y", "n"]);
const REPORT_FLAGS: &[&str] = &[
    "-a",
    "--binary",
    "--nameprefixes",
    "--noheadings",
    "--nosuffix",
    "--readonly",
    "--rows",
    "--segments",
    "--unquoted",
];
const REPORT_OPTIONS: &[(&str, Value)] = &[
    ("-o", Value::Fixed),
    ("-O", Value::Fixed),
    ("--select", Value::Selection),
    ("--config", Value::ReportShape),
    ("--reportformat", Value::Fixed),
    ("--separator", Value::Fixed),
    ("--units", Value::Fixed),
];
const LIST_FLAGS: &[&str] = &["-H", "-p", "-Hp", "-r"];

const LVM: PlaceKind = PlaceKind::LvmVolume;
const ZFS: PlaceKind = PlaceKind::ZfsDataset;
const DIRECTORY: PlaceKind = PlaceKind::Directory;

const fn look(
    kind: PlaceKind,
    words: &'static [&'static str],
    flags: &'static [&'static str],
    options: &'static [(&'static str, Value)],
    operands: &'static [Operand],
) -> Shape {
    Shape { kind, words, purpose: Purpose::Look, flags, options, needs: &[], operands }
}

const fn change(
    kind: PlaceKind,
    words: &'static [&'static str],
    flags: &'static [&'static str],
    options: &'static [(&'static str, Value)],
    needs: &'static [&'static str],
    operands: &'static [Operand],
) -> Shape {
    Shape { kind, words, purpose: Purpose::Change, flags, options, needs, operands }
}

/// The table.
pub(crate) const TABLE: &[Shape] = &[
    look(
        LVM,
        &["lvs"],
        REPORT_FLAGS,
        REPORT_OPTIONS,
        &[some(&[Thing::Group, Thing::Volume, Thing::Own])],
    ),
    look(LVM, &["vgs"], REPORT_FLAGS, REPORT_OPTIONS, &[some(&[Thing::Group])]),
    change(
        LVM,
        &["lvcreate"],
        &["-y", "-s", "-pr", "-prw", "-ky", "-kn", "-ay", "-an"],
        &[
            ("-n", Value::OwnName),
            ("--addtag", Value::Tag),
            ("-L", Value::Size),
            ("-l", Value::Size),
            ("-c", Value::Size),
            ("--setautoactivation", YES),
        ],
        &["-s", "-n"],
        &[one(&[Thing::Volume, Thing::Own])],
    ),
    change(
        LVM,
        &["lvchange"],
        &["-y", "-pr", "-prw", "-ky", "-kn", "-ay", "-an", "-K", "--refresh"],
        &[
            ("--addtag", Value::Tag),
            ("--deltag", Value::Tag),
            ("--setautoactivation", YES),
            ("--select", Value::Identity),
        ],
        &[],
        &[one(&[Thing::Volume, Thing::Own])],
    ),
    // Of ours alone: a volume that is itself a snapshot would be merged into another.
    change(
        LVM,
        &["lvconvert"],
        &["-y", "--merge"],
        &[("-i", Value::Fixed)],
        &["--merge"],
        &[one(&[Thing::Own])],
    ),
    change(
        LVM,
        &["lvremove"],
        &["-y"],
        &[("--select", Value::Identity)],
        &[],
        &[one(&[Thing::Own])],
    ),
    change(
        LVM,
        &["lvrename"],
        &["-y"],
        &[],
        &[],
        &[
            one(&[Thing::Group]),
            one(&[Thing::VolumeName, Thing::OwnName]),
            one(&[Thing::VolumeName, Thing::OwnName]),
        ],
    ),
    look(
        ZFS,
        &["zfs", "list"],
        LIST_FLAGS,
        &[
            ("-t", Value::Fixed),
            ("-s", Value::Fixed),
            ("-S", Value::Fixed),
            ("-d", Value::Fixed),
            ("-o", Value::Properties),
        ],
        &[some(&[Thing::Dataset, Thing::OwnSnapshot, Thing::Pool])],
    ),
    look(
        ZFS,
        &["zfs", "get"],
        LIST_FLAGS,
        &[("-o", Value::Fixed), ("-s", Value::Fixed), ("-t", Value::Fixed), ("-d", Value::Fixed)],
        &[one(&[Thing::Properties]), some(&[Thing::Dataset, Thing::OwnSnapshot, Thing::Pool])],
    ),
    look(ZFS, &["zfs", "holds"], &["-H"], &[], &[some(&[Thing::OwnSnapshot])]),
    // None of those that change takes `-r` or `-R`, which reach what others made, or `-f`.
    change(
        ZFS,
        &["zfs", "snapshot"],
        &[],
        &[("-o", Value::Property)],
        &[],
        &[one(&[Thing::OwnSnapshot])],
    ),
    change(ZFS, &["zfs", "rollback"], &[], &[], &[], &[one(&[Thing::OwnSnapshot])]),
    change(ZFS, &["zfs", "destroy"], &[], &[], &[], &[one(&[Thing::OwnSnapshot])]),
    change(
        ZFS,
        &["zfs", "program"],
        &["-j"],
        &[],
        &[],
        &[
            one(&[Thing::Pool]),
            one(&[Thing::KnownProgram]),
            one(&[Thing::Dataset]),
            one(&[Thing::OwnPart]),
            Operand { any_of: &[Thing::Figure], count: Count::Any },
        ],
    ),
    look(
        DIRECTORY,
        &["btrfs", "subvolume", "list"],
        &["-a", "-c", "-g", "-o", "-p", "-q", "-r", "-R", "-s", "-t", "-u"],
        &[],
        &[one(&[Thing::Path, Thing::OwnPath])],
    ),
    look(
        DIRECTORY,
        &["btrfs", "subvolume", "show"],
        &["-b", "--raw"],
        &[],
        &[one(&[Thing::Path, Thing::OwnPath])],
    ),
    look(DIRECTORY, &["btrfs", "subvolume", "get-default"], &[], &[], &[one(&[Thing::Path])]),
    look(
        DIRECTORY,
        &["btrfs", "filesystem", "usage"],
        &["-b", "--raw"],
        &[],
        &[one(&[Thing::Path])],
    ),
    look(DIRECTORY, &["btrfs", "filesystem", "show"], &["--raw"], &[], &[one(&[Thing::Path])]),
    look(DIRECTORY, &["btrfs", "filesystem", "df"], &["-b", "--raw"], &[], &[one(&[Thing::Path])]),
    change(
        DIRECTORY,
        &["btrfs", "subvolume", "snapshot"],
        &["-r"],
        &[],
        &[],
        &[one(&[Thing::Path, Thing::OwnPath]), one(&[Thing::Path, Thing::OwnPath])],
    ),
    change(
        DIRECTORY,
        &["btrfs", "subvolume", "delete"],
        &["-c", "-C"],
        &[],
        &[],
        &[one(&[Thing::OwnPath])],
    ),
];

/// The table in words, a line for each command: what the guide shows.
pub fn table_in_words() -> Vec<String> {
    TABLE.iter().map(Shape::in_words).collect()
}

impl Shape {
    fn in_words(&self) -> String {
        let may_lack = |name: &str, text: String| match self.needs.contains(&name) {
            true => text,
            false => format!("[{text}]"),
        };
        let mut words: Vec<String> = self.words.iter().map(|w| (*w).to_owned()).collect();
        words.extend(self.flags.iter().map(|f| may_lack(f, (*f).to_owned())));
        let options = self.options.iter();
        words.extend(
            options.map(|(name, value)| may_lack(name, format!("{name} {}", value.sign()))),
        );
        words.extend(self.operands.iter().map(|operand| {
            let signs: Vec<&str> = operand.any_of.iter().map(|t| t.sign()).collect();
            match operand.count {
                Count::One => signs.join("|"),
                Count::OneOrMore => format!("{}…", signs.join("|")),
                Count::Any => format!("[{}…]", signs.join("|")),
            }
        }));
        words.join(" ")
    }
}
