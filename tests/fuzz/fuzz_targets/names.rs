//! Places, grants, and values in holes: what passes is never nothing, never an option that the template
//! has not, and names no other volume, wherever in a word a hole stands.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapslot_command::{Command, Place, PlaceKind, Purpose};
use snapslot_fuzz::{Bytes, grant};

const KINDS: [PlaceKind; 4] =
    [PlaceKind::LvmVolume, PlaceKind::ZfsDataset, PlaceKind::Directory, PlaceKind::Image];
const PLACES: [&str; 4] = ["vg0/vm1", "tank/vm1", "/srv/vms/vm1", "/srv/vm1.img"];

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let n = usize::from(bytes.byte()) % KINDS.len();
    let kind = KINDS[n];
    let text = match bytes.byte() % 4 {
        0 => bytes.text(200),
        _ => PLACES[n].to_owned(),
    };
    let Ok(place) = Place::parse(kind, &text) else { return };
    // What is shown is what was parsed.
    assert_eq!(Place::parse(kind, &place.to_string()).as_ref(), Ok(&place));
    assert!(!text.is_empty() && !text.starts_with('-') && !text.contains(['\0', '\n']), "{text:?}");
    if matches!(kind, PlaceKind::LvmVolume | PlaceKind::ZfsDataset) {
        assert!(!text.contains(['@', '#', ' ', '\t']), "{text:?}");
        assert!(text.split('/').all(|part| part != ".." && !part.is_empty()), "{text:?}");
    }
    let purpose = if bytes.byte() % 2 == 0 { Purpose::Look } else { Purpose::Change };
    let (grant, values) = grant(&mut bytes);
    if grant.check(kind, purpose).is_err() {
        return;
    }
    let values: Vec<(&str, &str)> = values.iter().map(|(h, v)| (h.as_str(), v.as_str())).collect();
    let Ok(filled) = grant.fill(&place, &values) else { return };
    assert_eq!(filled.command.arguments.len() + 1, grant.template.len());
    harmless(&filled.command, &place, purpose);
    if let Some((guard, _)) = &filled.guard {
        harmless(guard, &place, Purpose::Look);
    }
});

/// Reads a command as its tool would, and fails if it is about anything but the volume at hand. Shares
/// nothing with the table it judges.
fn harmless(command: &Command, place: &Place, purpose: Purpose) {
    let line = command.to_string();
    let mut words = command.arguments.iter().map(String::as_str).peekable();
    let looks = match command.program.as_str() {
        "lvs" | "vgs" => true,
        "lvchange" | "lvconvert" | "lvcreate" | "lvremove" | "lvrename" => false,
        "zfs" => matches!(words.next(), Some("list" | "get" | "holds")),
        "btrfs" => {
            let (group, verb) = (words.next(), words.next());
            group == Some("filesystem") || matches!(verb, Some("list" | "show" | "get-default"))
        }
        other => panic!("{other} is no tool for plugins"),
    };
    assert!(looks || purpose == Purpose::Change, "{line}: it is no look");
    const VALUED: [&str; 16] = [
        "-o",
        "-O",
        "--select",
        "--config",
        "--reportformat",
        "--separator",
        "--units",
        "-n",
        "--addtag",
        "--deltag",
        "-L",
        "-l",
        "-c",
        "-i",
        "-t",
        "--setautoactivation",
    ];
    let lvm = matches!(place, Place::LvmVolume { .. });
    let mut about = Vec::new();
    while let Some(word) = words.next() {
        assert!(!word.is_empty() && !word.chars().any(char::is_control), "{line}");
        if !word.starts_with('-') || word == "-" {
            about.push(word);
            continue;
        }
        for prefix in ["--con", "--comm", "--pro", "--dr", "-d", "-f", "-ff", "-R", "--force"] {
            let depth = matches!(place, Place::ZfsDataset(_)) && looks && prefix == "-d";
            let raw = matches!(place, Place::Directory(_)) && looks && prefix == "-R";
            let known = word == "--config" && looks;
            assert!(!word.starts_with(prefix) || depth || raw || known, "{line}: {word}");
        }
        if !looks && matches!(place, Place::ZfsDataset(_)) {
            assert!(!word.contains('r'), "{line}: it reaches below the dataset");
        }
        let of_zfs = !lvm && matches!(word, "-s" | "-S" | "-d");
        let flag = !lvm && matches!(place, Place::Directory(_)) || (word == "-c" && !lvm);
        if (VALUED.contains(&word) || of_zfs) && !flag {
            let value = words.next().unwrap_or_else(|| panic!("{line}: {word} without a value"));
            assert!(!value.starts_with('-'), "{line}: {value}");
            if word == "--config" {
                let shapes = value.split("\" ").all(|s| s.starts_with("report/"));
                assert!(shapes && !value.contains(['{', '}', '\\', '\n']), "{line}");
            }
        }
    }
    assert!(!about.is_empty(), "{line}: it is about everything");
    for (n, word) in about.iter().enumerate() {
        let sound = match place {
            Place::LvmVolume { group, volume } => {
                let own = format!("{volume}_snapslot_");
                let volume_of = word.strip_prefix(group.as_str()).and_then(|r| r.strip_prefix('/'));
                let named = |name: &str| name == volume || name.starts_with(&own);
                match command.program.as_str() {
                    "lvs" | "vgs" => word == group || volume_of.is_some_and(named),
                    "lvrename" if n == 0 => word == group,
                    "lvrename" => named(word),
                    "lvremove" | "lvconvert" => volume_of.is_some_and(|v| v.starts_with(&own)),
                    _ => volume_of.is_some_and(named),
                }
            }
            Place::ZfsDataset(dataset) => {
                let own = word.strip_prefix(dataset.as_str());
                let own = own.is_some_and(|r| r.starts_with("@snapslot-") && !r.contains('/'));
                let properties = command.arguments[0] == "get" && n == 0;
                let pool = dataset.split('/').next() == Some(word);
                let program = command.arguments[0] == "program";
                own || properties || program || (looks && (word == dataset || pool))
            }
            Place::Directory(path) => {
                let path = path.to_str().expect("it was text");
                let own = word.contains(".snapslot-") && !word.contains("/../");
                *word == path || own
            }
            Place::Image(_) => false,
        };
        assert!(sound, "{line}: {word} is not the volume's or ours");
    }
}
