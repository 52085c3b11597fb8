//! An image put back onto a volume: wholly, or not at all.
//!
//! Judged by the bytes of the device and the storage's own list: whatever happens the volume has what it had or what
//! the image holds, and no snapshot is left. The engine is killed at each of its commands, and while it writes.

use std::time::{Duration, Instant};

use snapslot_test_support::SplitMix64;

use crate::harness::Test;
use crate::subject::{Content, Storage, Subject};
use crate::tap::{self, Trip};
use crate::{lvm, zfs};

const IMAGE: &str = "/tmp/image.raw";
const MIB: usize = 1 << 20;
/// Long enough to be killed in.
const SIZE: u32 = 32;

pub fn lvm(test: &mut Test) {
    let thin = test.step("a thin volume", |_| lvm::Volume::new(lvm::Kind::Thin, SIZE));
    whole(test, &thin, thin.device());
    if test.is_quick() {
        return;
    }
    let thick = test.step("a thick volume", |_| lvm::Volume::new(lvm::Kind::Thick, SIZE));
    whole(test, &thick, thick.device());
}

pub fn zfs(test: &mut Test) {
    let volume = test.step("a volume", |_| zfs::Dataset::new(zfs::Kind::Zvol, SIZE));
    whole(test, &volume, "/dev/zvol/tank/vm1");
    test.case("a file system has no device to write to", |subject| {
        let dataset = zfs::Dataset::new(zfs::Kind::Mounted, 8);
        let refused = import(subject, &dataset);
        assert_eq!(refused.expect(6)["error"]["code"], "no-content");
    });
}

fn import(subject: &Subject, storage: &dyn Storage) -> snapslot_test_support::Outcome {
    subject.verb("restore", storage.locator(), &["--from", &format!("raw:{IMAGE}")])
}

/// An image of so many bytes; gives what a device of `SIZE` MiB holds that has it.
fn make_image(seed: u64, bytes: usize) -> Content {
    let mut all = SplitMix64::new(seed).bytes(bytes);
    std::fs::write(IMAGE, &all).expect("room for an image");
    all.resize(all.len().max(SIZE as usize * MIB), 0);
    Content::Bytes(all)
}

fn whole(test: &mut Test, storage: &dyn Storage, device: &str) {
    let locator = storage.locator();
    test.step("an image is written, and zeroes behind it", |subject| {
        storage.scribble(1);
        let image = make_image(2, SIZE as usize * MIB - 3 * MIB - 512);
        let (done, ran) = tap::watch(|| import(subject, storage));
        done.expect(0);
        storage.content().expect(&image, "after the import");
        assert_eq!(storage.layout(), storage.base(), "{:?}", tap::changing(&ran));
        assert!(tap::changing(&ran).len() >= 2, "no way back was taken: {ran:?}");
    });
    test.case("what stands in the way is told, and nothing is changed", |subject| {
        let before = storage.content();
        make_image(3, SIZE as usize * MIB + 4096);
        assert_eq!(import(subject, storage).expect(6)["error"]["code"], "no-content");
        make_image(3, MIB);
        subject.verb("take", locator, &[]).expect(0);
        assert_eq!(import(subject, storage).expect(3)["error"]["code"], "slot-held");
        subject.verb("delete", locator, &[]).expect(0);
        let held = std::fs::File::open(device).expect("the device");
        assert_eq!(import(subject, storage).expect(5)["error"]["code"], "in-use");
        drop(held);
        storage.content().expect(&before, "after refusals");
        assert_eq!(storage.layout(), storage.base());
    });
    let commands = test.step("its commands are counted", |subject| {
        make_image(4, MIB);
        let (done, ran) = tap::watch(|| import(subject, storage));
        done.expect(0);
        tap::changing(&ran)
    });
    // A quick run has each command killed where most can be half done.
    let trips: [fn(u32) -> Trip; 3] = [Trip::During, Trip::Before, Trip::After];
    let trips = if test.is_quick() { &trips[..1] } else { &trips };
    for (n, command) in (1..).zip(&commands) {
        for trip in trips.iter().map(|trip| trip(n)) {
            test.case(&format!("killed {trip}: {command}"), |subject| {
                storage.scribble(5);
                let old = storage.content();
                let new = make_image(6, MIB);
                tap::arm(trip);
                let victim = import(subject, storage);
                let tripped = tap::tripped();
                tap::clear();
                assert!(tripped, "the command did not come: {}", victim.process.account());
                sound_again(subject, storage, &old, &new);
            });
        }
    }
    test.case("killed while it writes", |subject| {
        let mut half = 0;
        for seed in 10..22 {
            storage.scribble(seed);
            let old = storage.content();
            let new = make_image(100 + seed, SIZE as usize * MIB);
            let from = format!("raw:{IMAGE}");
            let mut process = subject.start("restore", locator, &["--from", &from]);
            let began = Instant::now();
            let (Content::Bytes(first), Content::Bytes(then)) = (&old, &new) else { return };
            // The image's first bytes are there: then it is at it.
            while !process.has_ended() && began.elapsed() < Duration::from_secs(60) {
                let mut head = [0; 4096];
                let read = std::fs::File::open(IMAGE)
                    .and_then(|_| std::fs::File::open(device))
                    .and_then(|d| std::os::unix::fs::FileExt::read_exact_at(&d, &mut head, 0));
                if read.is_ok() && head[..] == then[..4096] && head[..] != first[..4096] {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            process.kill();
            let _ = process.finish(Duration::from_secs(60));
            storage.settle();
            let Content::Bytes(found) = storage.content() else { return };
            half += u32::from(found != *first && found != *then);
            sound_again(subject, storage, &old, &new);
            if half >= 2 {
                break;
            }
        }
        assert!(half > 0, "it was never killed in the middle");
    });
}

fn sound_again(subject: &Subject, storage: &dyn Storage, old: &Content, new: &Content) {
    let (recovered, ran) = tap::watch(|| subject.verb("recover", storage.locator(), &[]));
    assert_eq!(recovered.code(), 0, "{}\n{ran:?}", recovered.process.account());
    let now = storage.content();
    assert!(now == *old || now == *new, "a mixture: {ran:?}\n{}", storage.layout());
    assert_eq!(storage.layout(), storage.base(), "{ran:?}");
    subject.verb("take", storage.locator(), &[]).expect(0);
    subject.verb("delete", storage.locator(), &[]).expect(0);
}
