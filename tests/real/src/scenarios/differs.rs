//! What `diff` tells, in blocks; and that what is shown to be read is hidden again.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::harness::Test;
use crate::subject::{Storage, Subject};
use crate::tap::{self, Trip};

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

/// An export shows the snapshot's device and hides it, after it has made the snapshot if it is `--live`: killed at any
/// of that, `recover` and the next export hide it, and leave no snapshot but the slot's.
pub fn killed_exports(test: &mut Test, storage: &dyn Storage, live: bool) {
    let export = |subject: &Subject| {
        let mut words = vec!["/tmp/exported.raw", "--force", "--no-sync"];
        words.extend(live.then_some("--live"));
        subject.verb("export", storage.locator(), &words)
    };
    let of = if live { "the present content" } else { "the snapshot" };
    for trip in [Trip::During(1), Trip::After(1), Trip::Before(2), Trip::After(2)] {
        if test.is_quick() && trip != Trip::After(1) {
            continue;
        }
        test.case(&format!("an export of {of} killed {trip}"), |subject| {
            for by_recover in [true, false] {
                tap::arm(trip);
                let killed = export(subject);
                let (tripped, ran) = (tap::tripped(), tap::log());
                tap::clear();
                assert!(tripped, "it was not killed: {ran:?}\n{}", killed.process.account());
                storage.settle();
                if by_recover {
                    subject.verb("recover", storage.locator(), &[]).expect(0);
                } else {
                    // It finds the device there, as one that goes on beside it would.
                    export(subject).expect(0);
                    subject.verb("restore", storage.locator(), &[]).expect(0);
                }
                assert_eq!(storage.shown(), Vec::<String>::new(), "by recover: {by_recover}");
                assert_eq!(storage.snapshots().len(), 1, "by recover: {by_recover}");
            }
        });
    }
}
