//! Goal: the grants are such as a person can approve, and a host can fill.

use snapslot_plugin_sdk::Backend;

use crate::Lvm;

#[test]
fn grants_are_sound() {
    let description = Lvm::describe();
    let mut names = Vec::new();
    for grant in description.queries.iter().chain(&description.actions) {
        let name = &grant.name;
        assert!((1..=32).contains(&name.len()), "{name}");
        assert!(!names.contains(name), "{name} is there twice");
        names.push(name.clone());
        assert!((1..=86_400).contains(&grant.deadline_seconds), "{name}");
        assert!(grant.reason.len() > 10, "{name} has no reason");
        let guard = grant.guard.iter().flat_map(|g| &g.template);
        let words: Vec<&String> = grant.template.iter().chain(guard).collect();
        assert!(words.iter().any(|w| w.starts_with("{group}")), "{name} names no group");
        for word in &words {
            // A hole is a whole operand, follows `=`, or is a part of one of our tags: no value
            // can become an option.
            if let Some(at) = word.find('{') {
                assert!(!word.starts_with('-'), "{name}: {word}");
                assert!(at == 0 || word[..at].ends_with(['=', '/', '.']), "{name}: {word}");
            }
        }
        for hole in &grant.holes {
            let place = format!("{{{}}}", hole.name);
            let equals = grant.guard.as_ref().is_some_and(|g| g.equals == hole.name);
            assert!(equals || words.iter().any(|w| w.contains(&place)), "{name}: {}", hole.name);
        }
        for word in &words {
            for part in word.split('{').skip(1) {
                let hole = part.split('}').next().expect("closed");
                assert!(grant.holes.iter().any(|h| h.name == hole), "{name}: {hole}");
            }
        }
    }
    for query in &description.queries {
        assert_eq!(query.template[0], "lvs", "{} only looks", query.name);
    }
    for action in &description.actions {
        // What destroys is bound to an identity.
        let binds = action.template.iter().any(|w| w == "lv_uuid={uuid}");
        if ["lvremove", "lvconvert"].contains(&action.template[0].as_str()) {
            assert!(binds || action.guard.is_some(), "{} is not bound", action.name);
        }
    }
}
