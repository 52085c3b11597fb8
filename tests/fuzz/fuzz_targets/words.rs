//! What the process that runs plugins says to the engine: whatever the bytes are, they are words or refused, and
//! what they plan keeps to what was granted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use snapslot_runtime::judge_words;

fuzz_target!(|data: &[u8]| {
    let _ = judge_words(data);
});
