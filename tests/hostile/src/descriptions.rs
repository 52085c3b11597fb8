//! What it says of itself, by a number: all that no host should take.

use snapslot_plugin_sdk::{CommandGrant, Description, Grammar, Guard, Hole, PlaceKind};

use crate::{commands, deep, forever};

/// Which of the descriptions below is given. The test writes another number into the component.
static DESCRIPTION: [u8; 24] = *b"@@hostile-description:00";

/// Its number.
pub(crate) fn number() -> u8 {
    // SAFETY: it is a static; read like this the compiler cannot know what is in it.
    let text = unsafe { std::ptr::read_volatile(&raw const DESCRIPTION) };
    (text[22] - b'0') * 10 + (text[23] - b'0')
}

pub(crate) fn described(mut d: Description) -> Description {
    if commands::is_on() {
        commands::described(&mut d);
        return d;
    }
    let grant = |name: &str, words: &[&str]| CommandGrant {
        name: name.to_owned(),
        template: words.iter().map(|w| (*w).to_owned()).collect(),
        holes: Vec::new(),
        input: None,
        guard: None,
        deadline_seconds: 10,
        reason: "to try".to_owned(),
    };
    let number = |name: &str| Hole { name: name.to_owned(), grammar: Grammar::Number };
    let dataset = || Hole { name: "dataset".to_owned(), grammar: Grammar::ZfsDataset };
    let tag = |name: &str| Hole { name: name.to_owned(), grammar: Grammar::LvmTag };
    let look =
        || CommandGrant { holes: vec![dataset()], ..grant("look", &["zfs", "list", "{dataset}"]) };
    let which = crate::number();
    // With commands that other volumes than images may have, so that only the flaw is one.
    if (10..30).contains(&which) {
        d.place = PlaceKind::ZfsDataset;
    }
    match which {
        1 => forever(),
        2 => panic!("as told"),
        3 => {
            deep(1);
        }
        4 => d.name = "../../hostile".to_owned(),
        5 => d.name = String::new(),
        6 => d.summary = "\x1b[2Jhostile".to_owned(),
        7 => d.images[0].reason = " ".to_owned(),
        8 => d.endings = vec![String::new()],
        9 => d.endings = (0..9).map(|n| format!(".x{n}")).collect(),
        10 => d.queries = vec![grant("look", &["rm", "-rf", "/"])],
        11 => d.actions = vec![grant("run", &["/bin/sh", "-c", "id"])],
        12 => d.queries = vec![grant("look", &["zfs", "destroy", "-r", "tank"])],
        13 => d.queries = vec![look(), look()],
        14 => d.actions = vec![grant("run", &[])],
        15 => d.actions = vec![grant("run", &["zfs", "destroy", "a\nb"])],
        16 => d.actions = vec![grant("run", &["zfs", "destroy", "{where}"])],
        17 => d.actions = vec![CommandGrant { holes: vec![number("unused")], ..look() }],
        18 => d.actions = vec![CommandGrant { holes: vec![number("--help")], ..look() }],
        19 => {
            let template = vec!["zfs".to_owned(), "destroy".to_owned(), "tank".to_owned()];
            let guard = Some(Guard { template, equals: "guid".to_owned() });
            let holes = vec![dataset(), number("guid")];
            d.actions = vec![CommandGrant { holes, guard, ..look() }];
        }
        20 => d.actions = vec![CommandGrant { deadline_seconds: 0, ..look() }],
        21 => d.actions = vec![CommandGrant { deadline_seconds: u32::MAX, ..look() }],
        22 => d.actions = vec![CommandGrant { input: Some("x".repeat(20_000)), ..look() }],
        23 => {
            d.queries = (0..65).map(|n| CommandGrant { name: format!("l{n}"), ..look() }).collect()
        }
        24 => d.images = vec![d.images[0].clone(); 100_000],
        25 => d.actions = vec![grant("run", &["zfs;id", "list"])],
        26 => d.summary = "x".repeat(1 << 20),
        27 => d.actions = vec![grant("run", &["zfs", "destroy", "-r", "tank"])],
        28 => {
            d.place = PlaceKind::LvmVolume;
            let words = ["lvs", "-dddddd", "--c{t}", "vg0"];
            d.queries = vec![CommandGrant { holes: vec![tag("t")], ..grant("look", &words) }];
        }
        29 => {
            d.place = PlaceKind::LvmVolume;
            let words = ["lvremove", "-y", "{x}"];
            d.actions = vec![CommandGrant { holes: vec![tag("x")], ..grant("run", &words) }];
        }
        // A plugin of images, which has no use for a tool.
        34 => {
            println!("before the end");
            panic!("as told");
        }
        30 => d.actions = vec![grant("run", &["zfs", "destroy", "-r", "tank"])],
        31 => d.queries = vec![look()],
        _ => {}
    }
    d
}
