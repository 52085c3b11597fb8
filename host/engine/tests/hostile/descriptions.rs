//! What it says of itself, and what it does before it is asked anything.

use snapslot_engine::{Asked, Verb};

use crate::{HASTY, PATIENT, confined, engine, numbered};

/// Descriptions that are refused, by their number in the component.
const DESCRIPTIONS: usize = 34;

#[test]
fn nothing_a_component_says_of_itself_harms() {
    let scratch = tempfile::tempdir().expect("a directory");
    let path = scratch.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20]).expect("a volume");
    let volume = format!("hostile:{}", path.display());
    let mut said = Vec::new();
    for number in 0..=DESCRIPTIONS {
        // These two never end: in `describe`, and at the start of the instance.
        let limit = if matches!(number, 1 | 32) { HASTY } else { PATIENT };
        let engine = engine(scratch.path(), numbered(number), confined(), limit);
        let engine = engine.expect("an engine");
        let result = engine.operate(&volume, Verb::Take, &Asked::default(), &|_, _, _| ());
        match (number, result) {
            // The first, and the one whose recursion ends at once, are sound.
            (0, Ok(_)) => {
                engine
                    .operate(&volume, Verb::Delete, &Asked::default(), &|_, _, _| ())
                    .expect("a delete");
            }
            (0, Err(error)) => panic!("the sound one: {error}"),
            (_, Ok(_)) => panic!("description {number} was accepted"),
            (_, Err(error)) => {
                let text = error.to_string();
                println!("{number}: {}", text.chars().take(300).collect::<String>());
                assert_eq!(error.exit(), 7, "{number}: {text}");
                assert!(text.contains("hostile"), "{number}: which plugin? {text}");
                let log = error.data().to_string();
                if number == 34 {
                    // Story: printing ended the plugin, though nothing was wrong with it.
                    assert!(log.contains("before the end"), "{log}");
                }
                if matches!(number, 2 | 33 | 34) {
                    // Story: the words of a panic in `describe` were lost.
                    assert!(text.contains("as told"), "{number}: {text}\n{log}");
                }
                assert!(!text.chars().any(char::is_control), "{number}: {text:?}");
                said.push(text);
            }
        }
        assert!(std::fs::read(&path).expect("it")[512..].iter().all(|b| *b == 0), "{number}");
    }
    println!("{} descriptions", said.len());
}
