//! QEMU at an image that is being changed.

use std::time::Duration;

use snapslot_test_support::{Scratch, journal_of};

use crate::subject::Subject;
use crate::{signal, snapslot};

/// Stopped while its journal is there, the process holds the image: nobody else may have it,
/// not even to read, as its tables are half-way.
#[test]
fn nobody_opens_an_image_while_it_is_changed() {
    let scratch = Scratch::new();
    let product = snapslot(&scratch);
    let subject = Subject::new(&scratch);
    let journal = journal_of(subject.path());
    let mut caught = 0;
    for verb in ["take", "delete"].into_iter().cycle().take(20) {
        let mut arguments = vec![verb.as_ref(), subject.path().as_os_str()];
        if verb == "delete" {
            arguments.push("--yes".as_ref());
        }
        let mut process = product.start(arguments);
        while !journal.exists() && !process.has_ended() {
            std::thread::yield_now();
        }
        signal(&process, "STOP");
        // It may have ended between the look and the signal: then nothing was caught.
        let inside = journal.exists();
        if inside {
            caught += 1;
            let check = subject.image.check();
            let told = check.expect_err("qemu-img opened an image that is being changed");
            assert!(told.contains("lock"), "{told}");
            let written = subject.image.guest(["write -P 77 0 64k"]);
            assert_ne!(written.code, Some(0), "{}", written.account());
        }
        signal(&process, "CONT");
        let done = process.finish(Duration::from_secs(60));
        assert!(done.code == Some(0), "{}", done.account());
        subject.image.assert_clean();
        if caught == 4 {
            break;
        }
    }
    println!("caught in the act {caught} times");
    assert!(caught > 0, "never caught in the act: the disk is too small for this machine");
}
