//! What `zfs send` says was written: any bytes are a stream or are refused; what is told is in order, within the volume,
//! and the same however the bytes come.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapslot_content::{Sent, SentError, Told};

const SIZES: [u64; 2] = [1 << 20, 3 << 20];

fn told(stream: &[u8], guid: u64, piece: usize) -> Result<Told, SentError> {
    let mut sent = Sent::since(guid);
    for piece in stream.chunks(piece) {
        sent.take_in(piece)?;
    }
    sent.told(SIZES, None)
}

fuzz_target!(|data: &[u8]| {
    // The snapshot that it says it begins from.
    let guid = data.get(48..56).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let whole = told(data, guid, usize::MAX);
    assert_eq!(whole, told(data, guid, 101));
    let Ok(found) = whole else { return };
    for (ranges, end) in [(&found.written, SIZES[1]), (&found.freed, SIZES[0])] {
        let mut at = 0;
        for range in ranges {
            assert!(range.length > 0 && (at == 0 || range.offset > at), "{ranges:?}");
            at = range.offset + range.length;
        }
        assert!(at <= end, "{ranges:?}");
    }
    // What the larger one has more.
    assert!(found.written.iter().any(|r| r.offset + r.length == SIZES[1]));
});
