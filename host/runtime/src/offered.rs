//! What of the contract this host offers, by name: so that a plugin that wants more is told in words
//! what it wants, and not in the linker's.

/// The contract's package.
pub(crate) const CONTRACT: &str = "snapslot:backend/";
/// The interface that a plugin exports.
pub(crate) const BACKEND: &str = "snapslot:backend/backend@";
/// The era of the contract that this host speaks.
pub(crate) const ERA: &str = "0.1.";

/// The functions that the interface `backend` has.
pub(crate) const EXPORTS: [&str; 7] =
    ["describe", "inspect", "plan", "extents", "measure", "differences", "explain"];

/// By interface, the functions and methods it has.
const IMPORTS: [(&str, &[&str]); 4] = [
    ("types", &[]),
    (
        "sight",
        &[
            "[method]image.size",
            "[method]image.read-at",
            "[method]image.read-ranges",
            "[method]target.place",
            "[method]target.image",
            "[method]target.ask",
            "[method]target.copies",
            "[method]target.saving",
        ],
    ),
    (
        "planning",
        &[
            "[method]plan.write",
            "[method]plan.fill",
            "[method]plan.mask",
            "[method]plan.extend",
            "[method]plan.act",
            "[method]plan.save",
            "[method]plan.put-back",
            "[method]plan.discard",
            "[method]plan.note",
            "[method]plan.barrier",
            "[method]plan.seal",
        ],
    ),
    ("log", &["write"]),
];

/// Whether this host has the function of the interface `import`, as in `snapslot:backend/log@0.1.0`.
pub(crate) fn has(import: &str, function: &str) -> bool {
    let name = import.strip_prefix(CONTRACT).unwrap_or(import);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    IMPORTS.iter().any(|(interface, functions)| *interface == name && functions.contains(&function))
}

/// Whether this host has that interface at all.
pub(crate) fn has_interface(import: &str) -> bool {
    let name = import.strip_prefix(CONTRACT).unwrap_or(import);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    IMPORTS.iter().any(|(interface, _)| *interface == name)
}

#[cfg(test)]
mod tests {
    //! Goal: the list is the contract's. Method: the contract's text, read line by line.

    use super::*;

    #[test]
    fn what_is_listed_is_what_the_contract_has() {
        let text = include_str!("../../../wit/backend/backend.wit");
        let mut found: Vec<(String, String)> = Vec::new();
        let (mut interface, mut resource) = ("", None);
        for line in text.lines().map(str::trim) {
            let begun = |kind| {
                line.strip_prefix(kind).and_then(|l: &str| l.strip_suffix(" {")).map(str::trim)
            };
            if let Some(name) = begun("interface ") {
                (interface, resource) = (name, None);
            } else if let Some(name) = begun("resource ") {
                resource = Some(name);
            } else if let Some((name, _)) = line.split_once(": func(") {
                let name = match resource {
                    Some(of) => format!("[method]{of}.{name}"),
                    None => name.to_owned(),
                };
                found.push((interface.to_owned(), name));
            } else if begun("enum ").or(begun("record ")).is_some() {
                resource = None;
            }
        }
        let listed = IMPORTS.iter().flat_map(|(i, all)| all.iter().map(move |f| (*i, *f)));
        let exported = EXPORTS.iter().map(|f| ("backend", *f));
        let mut listed: Vec<(String, String)> =
            listed.chain(exported).map(|(i, f)| (i.to_owned(), f.to_owned())).collect();
        found.sort();
        listed.sort();
        assert_eq!(found, listed);
        assert!(
            has("snapslot:backend/log@0.1.7", "write")
                && !has("snapslot:backend/log@0.1.7", "read")
        );
        assert!(has_interface("snapslot:backend/log@0.1.7"));
    }
}
