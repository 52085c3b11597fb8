//! Figures and lists in sentences.

/// Bytes in the largest unit that fits, with one decimal where it is not even.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 5] =
        [(1 << 50, "PiB"), (1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| count >= *unit) {
        Some((unit, name)) if count.is_multiple_of(*unit) => format!("{} {name}", count / unit),
        Some((unit, name)) => {
            let tenths = u128::from(count) * 10 / u128::from(*unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{count} bytes"),
    }
}

/// The first few, and how many more.
pub(crate) fn some_of(names: impl ExactSizeIterator<Item = String>) -> String {
    const FEW: usize = 4;
    let more = names.len().saturating_sub(FEW);
    let few: Vec<String> = names.take(FEW).collect();
    match more {
        0 => few.join(", "),
        _ => format!("{} and {more} more", few.join(", ")),
    }
}
