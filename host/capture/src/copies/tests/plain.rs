//! Goal: each verb does what it says, and refuses with the right words what it cannot do.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::sync::atomic::{AtomicU64, Ordering};

use snapslot_disk::{EngineLock, FileDisk, LockError};

use super::super::*;
use super::*;

const MIB: usize = 1 << 20;

#[test]
fn a_copy_is_whole_has_its_time_and_comes_back() {
    let old = bytes(1, 3 * MIB + 777);
    let (dir, path, mut copies) = image(&old);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).expect("a mode");
    let part = dir.path().join(format!("vm.img.snapslot-{MARK}.part"));
    probed(&mut copies, move |event| {
        if matches!(event, Event::Flushed(_)) {
            let time = modified(&std::fs::metadata(&part).expect("the part"));
            assert_eq!(time, Duration::new(1_700_000_000, 123_456_789), "flushed without its time");
        }
        Ok(())
    });
    let before = copies.disk_identity().expect("an identity");
    let saved = copies.save(&save(true), QUIET).expect("saved");
    copies.pretend = Pretend::default();
    assert_eq!(copies.list().expect("a list"), std::slice::from_ref(&saved));
    assert_eq!((saved.taken_seconds, saved.taken_nanoseconds), (1_700_000_000, 123_456_789));
    assert_eq!(saved.size, old.len() as u64);
    let mode = std::fs::metadata(dir.path().join(&saved.name)).expect("the copy").mode();
    assert_eq!(mode & 0o777, 0o600, "nobody else reads a copy");

    let new = bytes(2, MIB);
    std::fs::write(&path, &new).expect("the machine writes and shrinks its disk");
    std::fs::read(dir.path().join(&saved.name)).expect("somebody reads the copy");
    assert_eq!(
        copies.list().expect("a list"),
        std::slice::from_ref(&saved),
        "reading changes no identity"
    );
    assert_eq!(copies.disk_identity().expect("an identity"), before, "writing changes none");
    copies.put_back(MARK, QUIET).expect("put back");
    assert!(std::fs::read(&path).expect("the image") == old, "the content is not that of the copy");
    assert_eq!(std::fs::metadata(&path).expect("the image").mode() & 0o777, 0o640);
    assert_ne!(copies.disk_identity().expect("an identity"), before, "a restore is to be seen");
    assert_eq!(copies.list().expect("a list"), [saved], "the copy stays");
    assert_eq!(copies.unfinished().expect("a look"), None);

    copies.discard(MARK).expect("discarded");
    copies.discard(MARK).expect("discarded twice");
    assert_eq!(brief(&listing(dir.path())), [(OsStr::new("vm.img"), old.len())]);
}

#[test]
fn another_file_under_the_name_is_another_identity() {
    let (dir, _path, copies) = image(&bytes(1, 5000));
    let first = copies.save(&save(true), QUIET).expect("saved");
    let name = dir.path().join(&first.name);
    let content = std::fs::read(&name).expect("the copy");
    std::fs::remove_file(&name).expect("removed");
    write(&name, &content);
    let now = copies.list().expect("a list");
    assert_ne!(now[0].identity, first.identity);
}

#[test]
fn holes_stay_and_are_not_counted() {
    let (dir, path, copies) = image(&[]);
    let file = std::fs::File::options().write(true).open(&path).expect("the image");
    file.set_len(64 * MIB as u64).expect("a hole");
    file.write_all_at(&bytes(1, 4096), 40 * MIB as u64).expect("data");
    // Zeroes that were written count as data and are not copied.
    file.write_all_at(&vec![0; 2 * MIB], 8 * MIB as u64).expect("zeroes");
    let saving = copies.saving().expect("a look");
    assert!(!saving.shares && saving.available > 0, "{saving:?}");
    assert!((2 * MIB as u64..4 * MIB as u64).contains(&saving.bytes), "{saving:?}");
    let last = AtomicU64::new(0);
    let progress = |done, total: u64| {
        assert!(done <= total && total == saving.bytes, "{done} of {total}");
        last.store(done, Ordering::Relaxed);
    };
    let watch = Watch { progress: &progress, stop: &|| false };
    let saved = copies.save(&save(true), &watch).expect("saved");
    assert_eq!(last.into_inner(), saving.bytes, "the last word is that all is done");
    assert!(saved.held_bytes <= 256 << 10, "{} bytes held", saved.held_bytes);
    let copy = std::fs::read(dir.path().join(&saved.name)).expect("the copy");
    assert!(copy == std::fs::read(&path).expect("the image"));
    std::fs::write(&path, b"x").expect("a change");
    copies.put_back(MARK, QUIET).expect("put back");
    assert!(copy == std::fs::read(&path).expect("the image"));
    let held = std::fs::metadata(&path).expect("the image").blocks() * 512;
    assert!(held <= 256 << 10, "the restored image has {held} bytes");
}

#[test]
fn odd_sizes_and_runs_of_zeroes_are_exact() {
    let grain = 64 << 10;
    for size in [0, 1, 511, grain - 1, grain, grain + 1, MIB - 1, MIB, MIB + 1, 2 * MIB + grain + 3]
    {
        let mut content = bytes(3, size);
        for (i, chunk) in content.chunks_mut(grain).enumerate() {
            if i % 3 == 1 {
                chunk.fill(0);
            }
        }
        let (dir, path, copies) = image(&content);
        copies.save(&save(true), QUIET).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
        let copy = std::fs::read(dir.path().join(copy_name("vm.img"))).expect("the copy");
        assert!(copy == content, "the copy of {size} bytes");
        std::fs::write(&path, b"other").expect("a change");
        copies.put_back(MARK, QUIET).unwrap_or_else(|e| panic!("{size} bytes: {e}"));
        assert!(std::fs::read(&path).expect("the image") == content, "{size} bytes put back");
    }
}

#[test]
fn without_permission_nothing_is_copied_whole() {
    let (dir, _path, copies) = image(&bytes(1, 100_000));
    let before = listing(dir.path());
    let error = copies.save(&save(false), QUIET).expect_err("cannot share");
    assert!(matches!(error, CopyError::NotShared { bytes: 100_000.., .. }), "{error}");
    assert_eq!(brief(&listing(dir.path())), brief(&before));
}

#[test]
fn a_copy_is_not_made_over_another() {
    let (dir, path, copies) = image(&bytes(1, 5000));
    copies.save(&save(true), QUIET).expect("saved");
    std::fs::write(&path, b"other").expect("a change");
    let before = listing(dir.path());
    let error = copies.save(&save(true), QUIET).expect_err("there");
    assert!(matches!(error, CopyError::Exists { .. }), "{error}");
    assert!(listing(dir.path()) == before);
}

#[test]
fn stopped_by_the_caller_all_is_as_before() {
    let (dir, path, copies) = image(&bytes(1, 5000));
    copies.save(&save(true), QUIET).expect("saved");
    std::fs::write(&path, bytes(2, 6000)).expect("a change");
    let before = listing(dir.path());
    let stop = Watch { progress: &|_, _| {}, stop: &|| true };
    let mut other = save(true);
    other.mark = "00000000000000ff".to_owned();
    for result in [copies.save(&other, &stop).map(drop), copies.put_back(MARK, &stop)] {
        let error = result.expect_err("stopped");
        assert!(matches!(error, CopyError::Cancelled), "{error}");
        assert!(listing(dir.path()) == before, "{:?}", brief(&listing(dir.path())));
    }
}

#[test]
fn what_is_written_while_it_is_copied_is_no_snapshot() {
    // Story: times are kept in ticks; this one is far away from now, so a write shows at once.
    for (name, change) in [("grows", 1), ("is written", 2)] {
        let (dir, path, mut copies) = image(&bytes(1, 5000));
        let file = std::fs::File::options().write(true).open(&path).expect("the image");
        file.set_modified(UNIX_EPOCH + Duration::from_secs(5)).expect("a time");
        let image = path.clone();
        probed(&mut copies, move |event| {
            if matches!(event, Event::Wrote(_)) {
                let file = std::fs::File::options().write(true).open(&image).expect("the image");
                match change {
                    1 => file.set_len(6000).expect("longer"),
                    _ => file.write_all_at(b"x", 0).expect("a byte"),
                }
            }
            Ok(())
        });
        let error = copies.save(&save(true), QUIET).expect_err(name);
        assert!(matches!(error, CopyError::Changed { .. }), "{name}: {error}");
        assert_eq!(listing(dir.path()).len(), 1, "{name}: {:?}", brief(&listing(dir.path())));
    }
}

#[test]
fn a_disk_that_is_replaced_meanwhile_stays_as_it_is() {
    let (dir, path, mut copies) = image(&bytes(1, 5000));
    copies.save(&save(true), QUIET).expect("saved");
    let (image, other) = (path.clone(), dir.path().join("other"));
    probed(&mut copies, move |event| {
        if matches!(event, Event::Flushed(_)) {
            write(&other, b"a disk from elsewhere");
            std::fs::rename(&other, &image).expect("replaced");
        }
        Ok(())
    });
    let error = copies.put_back(MARK, QUIET).expect_err("replaced");
    assert!(matches!(error, CopyError::Changed { .. }), "{error}");
    assert_eq!(std::fs::read(&path).expect("the image"), b"a disk from elsewhere");
    assert_eq!(listing(dir.path()).len(), 2, "{:?}", brief(&listing(dir.path())));
}

#[test]
fn what_cannot_be_ours_is_not_touched() {
    type Make = fn(&Path, &Path);
    let cases: [(&str, Make); 4] = [
        ("a symbolic link", |name, other| symlink(other, name).expect("a link")),
        ("a second name", |name, other| std::fs::hard_link(other, name).expect("a link")),
        ("a folder", |name, _| std::fs::create_dir(name).expect("a folder")),
        ("open to all", |name, _| {
            write(name, b"theirs");
            std::fs::set_permissions(name, PermissionsExt::from_mode(0o666)).expect("a mode");
        }),
    ];
    for (case, make) in cases {
        for part in [MARK.to_owned(), format!("{MARK}.part"), "restoring".to_owned()] {
            let (dir, path, copies) = image(&bytes(1, 5000));
            let other = dir.path().join("secret");
            write(&other, b"secret");
            let name = dir.path().join(format!("vm.img.snapslot-{part}"));
            make(&name, &other);
            let expect = |result: Result<(), CopyError>, what: &str| {
                let error = result.expect_err(what);
                let fits = matches!(error, CopyError::Untrusted { .. } | CopyError::Exists { .. });
                assert!(fits, "{case} as {part}: {what}: {error}");
            };
            match part.as_str() {
                MARK => {
                    expect(copies.list().map(drop), "list");
                    expect(copies.put_back(MARK, QUIET), "put back");
                    expect(copies.discard(MARK), "discard");
                    expect(copies.save(&save(true), QUIET).map(drop), "save");
                }
                "restoring" => expect(copies.settle(QUIET).map(drop), "settle"),
                _ => {
                    expect(copies.settle(QUIET).map(drop), "settle");
                    expect(copies.save(&save(true), QUIET).map(drop), "save");
                }
            }
            assert!(name.symlink_metadata().is_ok(), "{case} as {part} is gone");
            assert_eq!(std::fs::read(&other).expect("the other file"), b"secret");
            assert!(std::fs::read(&path).expect("the image") == bytes(1, 5000));
        }
    }
}

#[test]
fn a_disk_with_two_names_gets_no_snapshot_and_no_restore() {
    let (dir, path, copies) = image(&bytes(1, 5000));
    copies.save(&save(true), QUIET).expect("saved");
    std::fs::hard_link(&path, dir.path().join("second")).expect("a link");
    let mut other = save(true);
    other.mark = "00000000000000ff".to_owned();
    for result in [copies.save(&other, QUIET).map(drop), copies.put_back(MARK, QUIET)] {
        let error = result.expect_err("two names");
        assert!(error.to_string().contains("2 names"), "{error}");
    }
    assert_eq!(listing(dir.path()).len(), 3);
}

/// A process that has a file as its input, and waits until it is ended.
fn somebody(path: &Path) -> std::process::Child {
    let input = std::fs::File::open(path).expect("the image");
    let mut command = std::process::Command::new("tail");
    command.args(["-f", "/dev/null"]).stdin(input).spawn().expect("tail, of coreutils")
}

#[test]
fn a_disk_that_somebody_has_is_not_copied_whole() {
    // Story: a block device that a machine was writing was copied whole: the copy was of no moment. A
    // file's time of modification tells of that, and a device has none.
    let (dir, path, mut copies) = image(&bytes(1, 5000));
    let mut child = somebody(&path);
    let before = copies.save(&save(true), QUIET);
    child.kill().and_then(|()| child.wait()).expect("ended");
    let error = before.expect_err("in use");
    let pid = format!("(pid {})", child.id());
    assert!(matches!(&error, CopyError::InUse { who, .. } if who.contains(&pid)), "{error}");
    assert_eq!(listing(dir.path()).len(), 1, "{:?}", brief(&listing(dir.path())));
    // And one who comes while it is copied.
    let child = Arc::new(Mutex::new(None));
    let (late, image) = (child.clone(), path.clone());
    probed(&mut copies, move |event| {
        if matches!(event, Event::Wrote(_)) {
            *late.lock().expect("unpoisoned") = Some(somebody(&image));
        }
        Ok(())
    });
    let during = copies.save(&save(true), QUIET);
    let mut child = child.lock().expect("unpoisoned").take().expect("somebody came");
    child.kill().and_then(|()| child.wait()).expect("ended");
    let error = during.expect_err("in use");
    assert!(matches!(error, CopyError::InUse { .. }), "{error}");
    assert_eq!(listing(dir.path()).len(), 1, "{:?}", brief(&listing(dir.path())));
    copies.pretend = Pretend::default();
    copies.save(&save(true), QUIET).expect("saved when they are gone");
}

#[test]
fn the_lock_goes_with_the_name() {
    // Story: a restore gave the name to a file without a lock. Another engine came in between that and the
    // end, took a snapshot, and the first one's record was of neither.
    let (_dir, path, copies) = image(&bytes(1, 5000));
    copies.save(&save(true), QUIET).expect("saved");
    let disk = || FileDisk::open_writable(&path).expect("the image");
    let old = disk();
    let lock = EngineLock::take(&old).expect("nobody has it");
    copies.put_back(MARK, QUIET).expect("put back");
    let new = disk();
    assert_ne!(new.id(), old.id());
    assert!(
        matches!(EngineLock::take(&new), Err(LockError::Held { .. })),
        "nobody has the new one"
    );
    drop(lock);
    assert!(matches!(EngineLock::take(&new), Err(LockError::Held { .. })), "it is the copies'");
    drop(copies);
    EngineLock::take(&new).expect("free");
}

#[test]
fn a_disk_that_another_process_has_open_is_not_replaced() {
    let (_dir, path, copies) = image(&bytes(1, 5000));
    copies.save(&save(true), QUIET).expect("saved");
    std::fs::write(&path, bytes(2, 5000)).expect("a change");
    let mut child = somebody(&path);
    let result = copies.put_back(MARK, QUIET);
    child.kill().expect("ended");
    child.wait().expect("ended");
    let error = result.expect_err("in use");
    let pid = format!("(pid {})", child.id());
    assert!(matches!(&error, CopyError::InUse { who, .. } if who.contains(&pid)), "{error}");
    assert!(std::fs::read(&path).expect("the image") == bytes(2, 5000));
    copies.put_back(MARK, QUIET).expect("put back when they are gone");
}

#[test]
fn marks_that_are_none_are_refused() {
    let (_dir, _path, copies) = image(&bytes(1, 50));
    for mark in ["", "../../etc/passwd", "0123456789abcdeF", "0123456789abcdef0"] {
        let mut new = save(true);
        new.mark = mark.to_owned();
        assert!(copies.save(&new, QUIET).is_err(), "{mark:?}");
        assert!(copies.put_back(mark, QUIET).is_err(), "{mark:?}");
        assert!(copies.discard(mark).is_err(), "{mark:?}");
    }
}

#[test]
fn names_that_only_resemble_ours_are_somebody_elses() {
    let (dir, _path, copies) = image(&bytes(1, 50));
    for name in [
        "vm.img.snapslot-0123456789abcdeg",
        "vm.img.snapslot-0123456789abcdef.part.bak",
        "vm.img.snapslot-journal",
        "vm.img2.snapslot-0123456789abcdef.part",
        "vm.img.snapslot-restoring-0123456789abcdef-begun.part",
    ] {
        write(&dir.path().join(name), b"theirs");
    }
    let before = listing(dir.path());
    assert_eq!(copies.list().expect("a list"), []);
    assert_eq!(copies.settle(QUIET).expect("settled"), Settled::default());
    assert!(listing(dir.path()) == before);
}
