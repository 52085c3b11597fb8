//! Which names ZFS takes, and what it says to others.

/// What is being named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// A file system or volume.
    Dataset,
    /// A snapshot: a name with `@`.
    Snapshot,
    /// Either.
    Any,
}

/// Why this is not a name; none: it is one. The order is ZFS's own.
pub(super) fn fault(name: &str, what: Named) -> Option<String> {
    let says = |text: &str| Some(text.to_owned());
    let has_at = name.contains('@');
    match what {
        Named::Dataset if has_at => return says("snapshot delimiter '@' is not expected here"),
        Named::Snapshot if !has_at => return says("missing '@' delimiter in snapshot name"),
        _ => {}
    }
    if name.contains('#') {
        return says("bookmark delimiter '#' is not expected here");
    }
    if name.len() >= 256 {
        return says("name is too long");
    }
    let (path, snapshot) = match name.split_once('@') {
        Some((_, rest)) if rest.contains('@') => {
            return says("multiple '@' and/or '#' delimiters in name");
        }
        Some((path, snapshot)) => (path, Some(snapshot)),
        None => (name, None),
    };
    // What follows the `@` is one component; a slash in it is said to be a trailing one.
    if snapshot.is_some_and(|s| s.contains('/')) {
        return says("trailing slash in name");
    }
    for part in path.split('/').chain(snapshot) {
        match part {
            "" => return says("empty component or misplaced '@' or '#' delimiter in name"),
            "." => return says("self reference, '.' is found in name"),
            ".." => return says("parent reference, '..' is found in name"),
            _ => {}
        }
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.: ".contains(c);
        if let Some(bad) = part.chars().find(|&c| !good(c)) {
            // ZFS prints the first byte of a character that has more.
            let quoted = if bad == '%' { "%".to_owned() } else { format!("'{bad}'") };
            return Some(format!("invalid character {quoted} in name"));
        }
    }
    None
}

/// Whether this may name a user property. ZFS says the same about a bad name as about one of its
/// own that a snapshot cannot have.
pub(super) fn is_user_property(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b":+._-".contains(&b);
    name.contains(':') && name.len() < 256 && name.bytes().all(good)
}

/// A size as typed: digits and at most one of the letters K, M, G.
pub(super) fn size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}
