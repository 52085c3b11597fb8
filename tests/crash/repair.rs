//! QEMU's own repair on an image whose change was interrupted.
//!
//! Story: in check mode QEMU writes the header before it has read the list of snapshots, if it
//! finds something in the header to bring up to date: an autoclear feature bit it does not know
//! is enough (observed with 10.0.2). `qemu-img check -r` then forgets every snapshot in the
//! image, ours and everybody's. What we leave in a header must not lead it there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use snapslot_test_support::{Scratch, Snapslot};

use crate::snapslot;
use crate::subject::Subject;

/// Whether the image says that its tables are being changed: the dirty bit.
fn is_dirty(image: &File) -> bool {
    let mut bits = [0; 8];
    image.read_exact_at(&mut bits, 72).is_ok_and(|()| bits[7] & 1 == 1)
}

/// Starts the verb and kills it while the image is marked. False: it ended before.
fn interrupt(product: &Snapslot, subject: &Subject, verb: &str) -> bool {
    let mut arguments = vec![verb.as_ref(), subject.path().as_os_str()];
    if verb != "take" {
        arguments.push("--yes".as_ref());
    }
    let header = File::open(subject.path()).expect("the image");
    let mut process = product.start(arguments);
    while !is_dirty(&header) && !process.has_ended() {
        std::thread::yield_now();
    }
    process.kill();
    process.finish(Duration::from_secs(60)).signal == Some(9) && is_dirty(&header)
}

#[test]
fn repairing_an_interrupted_image_keeps_every_snapshot() {
    let scratch = Scratch::new();
    let product = snapslot(&scratch);
    let mut subject = Subject::new(&scratch);
    let mut interrupted = 0;
    for (verb, repair) in [
        ("take", "all"),
        ("take", "leaks"),
        ("restore", "all"),
        ("restore", "leaks"),
        ("delete", "all"),
    ] {
        // It may end between the look and the kill; then once more, and many times on a busy machine.
        for _ in 0..100 {
            let slot = product.verb("status", subject.path(), &[]);
            if verb == "take" && slot.slot() == "held" {
                product.verb("delete", subject.path(), &[]).expect(0);
            } else if verb != "take" && slot.slot() != "held" {
                product.verb("take", subject.path(), &[]).expect(0);
            }
            let was = subject.snapshots();
            subject.next_generation();
            if !interrupt(&product, &subject, verb) {
                product.verb("recover", subject.path(), &[]).expect(0);
                continue;
            }
            interrupted += 1;
            println!("{verb} interrupted, then qemu-img check -r {repair}");
            let shown = subject.snapshots();
            subject.image.qemu_img(&["check", "-q", "-r", repair], &[]);
            assert_eq!(subject.snapshots(), shown, "{verb}: -r {repair} lost snapshots");
            product.verb("recover", subject.path(), &[]).expect(0);
            subject.image.assert_clean();
            if verb == "restore" {
                assert_eq!(subject.snapshots(), was);
            }
            break;
        }
    }
    assert_eq!(interrupted, 5, "not every verb could be interrupted: the disk is too small");
}
