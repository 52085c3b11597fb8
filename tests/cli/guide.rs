//! Goal: what the guide shows is what is there. Method: each block that names a file is a part of it, word
//! for word, and those files are built and run, with the kit, in `plugins`; every command and option that it
//! tells to type is one that the program knows; links lead to files.

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
    // What is to be typed: lines of their own, and what stands between backquotes. Options are read before
    // help is given, and one that does not exist is an error.
    let lines = guide.lines().map(str::trim).filter(|l| l.starts_with("snapslot "));
    let spans = guide.lines().flat_map(|l| l.split('`').skip(1).step_by(2));
    let spans = spans.filter(|s| s.starts_with("snapslot ") || s.starts_with("--"));
    let mut typed = 0;
    for line in lines.chain(spans) {
        let line = line.split(" #").next().unwrap_or(line);
        let of = line.strip_prefix("snapslot ");
        let told: Vec<&str> = of.unwrap_or(line).split_whitespace().collect();
        // An option by itself belongs to one of these verbs, and may take a value.
        let verbs: &[&[&str]] = match of {
            Some(_) => &[&[]],
            None => &[&["status"], &["plugin", "add"], &["plugin", "test"], &["plugin", "new"]],
        };
        let values: &[&[&str]] =
            if of.is_none() && told.len() == 1 { &[&[], &["x"], &["auto"]] } else { &[&[]] };
        let known = verbs.iter().any(|verb| {
            values.iter().any(|value| {
                let all = [verb, told.as_slice(), value, &["--help"]].concat();
                words(&snapslot, &all).0 == 0
            })
        });
        assert!(known, "the guide has {line:?}, and the program does not know it");
        typed += 1;
    }
    assert!(typed > 12, "the guide types only {typed} things");
}
