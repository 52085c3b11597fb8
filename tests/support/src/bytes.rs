//! Comparing bytes.

/// The first offset at which the two differ, if they do; a missing tail counts.
pub fn difference(left: &[u8], right: &[u8]) -> Option<usize> {
    const PIECE: usize = 4096;
    // Whole pieces first: slices compare at memory speed, single bytes do not.
    let pieces = left.chunks(PIECE).zip(right.chunks(PIECE));
    for (i, (l, r)) in pieces.enumerate() {
        if l != r {
            let within = l.iter().zip(r).position(|(a, b)| a != b);
            return Some(i * PIECE + within.unwrap_or(l.len().min(r.len())));
        }
    }
    (left.len() != right.len()).then_some(left.len().min(right.len()))
}

/// Fails with the first offset that differs and the bytes around it.
///
/// # Panics
/// When they differ.
#[track_caller]
pub fn assert_same(what: &str, found: &[u8], expected: &[u8]) {
    let Some(at) = difference(found, expected) else { return };
    let around = |bytes: &[u8]| {
        let end = bytes.len().min(at + 16);
        bytes.get(at..end).map_or_else(|| "past its end".to_owned(), |b| format!("{b:02x?}"))
    };
    let differing = found.iter().zip(expected).filter(|(a, b)| a != b).count();
    panic!(
        "{what}: differs first at offset {at} ({at:#x}); found {} there, expected {}; {differing} bytes \
         differ, lengths {} and {}",
        around(found),
        around(expected),
        found.len(),
        expected.len(),
    );
}

/// A 64-bit digest (FNV-1a over words) to see whether a file changed; not for adversaries.
pub fn digest(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ bytes.len() as u64;
    let mut words = bytes.chunks_exact(8);
    let mut take = |word: u64| {
        hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
        hash ^= hash >> 29;
    };
    for word in &mut words {
        let mut eight = [0; 8];
        eight.copy_from_slice(word);
        take(u64::from_le_bytes(eight));
    }
    for byte in words.remainder() {
        take(u64::from(*byte));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::{difference, digest};

    #[test]
    fn finds_the_first_difference() {
        let left = vec![0; 10_000];
        for at in [0, 1, 4095, 4096, 9_999] {
            let mut right = left.clone();
            right[at] = 1;
            assert_eq!(difference(&left, &right), Some(at));
            assert_ne!(digest(&left), digest(&right));
        }
        assert_eq!(difference(&left, &left), None);
        assert_eq!(difference(&left, &left[..4096]), Some(4096));
        assert_eq!(difference(&left[..4097], &left[..4096]), Some(4096));
    }
}
