//! Goal: what the guide shows is what is there. Method: each block that names a file is a part of it, word
//! for word; every command it tells to type is one that the program knows; links lead to files. That
//! the project it begins with builds, passes its tests and the kit is tried in `plugins`.

use std::fs;
use std::path::Path;

use snapslot_test_support::Scratch;

use crate::{snapslot, words};

#[test]
fn what_the_guide_shows_is_what_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let guide = fs::read_to_string(root.join("plugins/GUIDE.md")).expect("the guide");
    let mut quoted = 0;
    for part in guide.split("<!-- ").skip(1) {
        let (file, rest) = part.split_once(" -->").expect("the end of a name");
        let block = rest.split("```rust\n").nth(1).and_then(|r| r.split("```").next());
        let block = block.expect("a block after the name");
        let text = fs::read_to_string(root.join(file)).expect("the file");
        assert!(text.contains(block), "{file} has not what the guide shows of it:\n{block}");
        quoted += 1;
    }
    assert!(quoted > 0, "the guide quotes nothing");
    for link in guide.split("](").skip(1).filter_map(|l| l.split(')').next()) {
        assert!(root.join("plugins").join(link).exists(), "{link} leads nowhere");
    }
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let mut typed = 0;
    for line in guide.lines().filter_map(|l| l.trim_start().strip_prefix("snapslot plugin ")) {
        let verb = line.split_whitespace().next().expect("a verb");
        let (code, _, said) = words(&snapslot, &["plugin", verb, "--help"]);
        assert_eq!(code, 0, "plugin {verb}: {said}");
        typed += 1;
    }
    assert!(typed > 3, "the guide types nothing");
}
