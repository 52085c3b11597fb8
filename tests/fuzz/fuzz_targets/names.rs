//! Places, and values in holes: what passes is never nothing, never an option, and names no other volume.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapslot_command::{Grammar, Grant, Hole, Place, PlaceKind};
use snapslot_fuzz::Bytes;

const GRAMMARS: [Grammar; 7] = [
    Grammar::LvmOwn,
    Grammar::ZfsOwn,
    Grammar::PathOwn,
    Grammar::Mark,
    Grammar::Number,
    Grammar::Uuid,
    Grammar::LvmTag,
];
const KINDS: [PlaceKind; 4] =
    [PlaceKind::Image, PlaceKind::LvmVolume, PlaceKind::ZfsDataset, PlaceKind::Directory];

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes(data);
    let kind = KINDS[usize::from(bytes.byte()) % KINDS.len()];
    let grammar = GRAMMARS[usize::from(bytes.byte()) % GRAMMARS.len()];
    let text = bytes.text(200);
    let value = bytes.text(200);
    let Ok(place) = Place::parse(kind, &text) else { return };
    // What is shown is what was parsed.
    assert_eq!(Place::parse(kind, &place.to_string()).as_ref(), Ok(&place));
    assert!(!text.is_empty() && !text.starts_with('-') && !text.contains(['\0', '\n']), "{text:?}");
    if matches!(kind, PlaceKind::LvmVolume | PlaceKind::ZfsDataset) {
        assert!(!text.contains(['@', '#', ' ', '\t']) || kind == PlaceKind::ZfsDataset, "{text:?}");
        assert!(!text.contains(['@', '#']) && text.split('/').all(|c| c != ".."), "{text:?}");
    }
    let grant = Grant {
        name: "x".to_owned(),
        template: vec!["zfs".to_owned(), "list".to_owned(), "{v}".to_owned()],
        holes: vec![Hole { name: "v".to_owned(), grammar }],
        input: None,
        guard: None,
        deadline_seconds: 1,
    };
    grant.check().expect("a grant");
    if let Ok(filled) = grant.fill(&place, &[("v", &value)]) {
        let word = &filled.command.arguments[1];
        assert!(*word == value && !word.is_empty(), "{word:?}");
        assert!(!word.starts_with('-') && !word.chars().any(char::is_control), "{word:?}");
        match (&place, grammar) {
            (Place::LvmVolume { volume, .. }, Grammar::LvmOwn) => {
                assert!(word.starts_with(&format!("{volume}_snapslot_")), "{word:?}");
            }
            (_, Grammar::ZfsOwn) => assert!(word.starts_with("snapslot-"), "{word:?}"),
            _ => {}
        }
    }
});
