//! What `diff` tells, in blocks.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::subject::Subject;

/// What it says of the one volume.
#[track_caller]
pub fn told(subject: &Subject, locator: &str, more: &[&str]) -> Value {
    subject.verb("diff", locator, more).expect(0)["volumes"][0].clone()
}

/// The blocks of so many bytes that lie in what is told.
pub fn blocks(diff: &Value, size: u64) -> BTreeSet<u64> {
    let ranges = diff["ranges"].as_array().expect("ranges");
    let number = |range: &Value, field: &str| range[field].as_u64().expect("a number");
    let each = ranges.iter().map(|r| (number(r, "start"), number(r, "length")));
    each.flat_map(|(start, length)| start / size..(start + length).div_ceil(size)).collect()
}
