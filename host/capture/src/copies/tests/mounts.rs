//! Goal: on XFS and btrfs a copy shares its blocks; on a real block device and on a full file
//! system all is as promised. Method: loop mounts of one's own, which take root and mkfs.xfs and
//! mkfs.btrfs. Without them it is checked only that sharing is not claimed where it is not.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use snapslot_test_support::needs::{self, ROOT};

use super::super::*;
use super::*;

const MIB: u64 = 1 << 20;

fn run(program: &str, words: &[&OsStr]) -> String {
    let out = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|e| panic!("{program} is needed for this test: {e}"));
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {words:?}: {errors}");
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

fn words<const N: usize>(words: [&str; N]) -> Vec<&OsStr> {
    words.into_iter().map(OsStr::new).collect()
}

/// A mount that goes with it.
struct Mount {
    at: PathBuf,
    _dir: tempfile::TempDir,
}

impl Mount {
    /// A file system of this kind on a loop device, or in memory.
    fn new(kind: &str, megabytes: u64) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let (file, at) = (dir.path().join("file"), dir.path().join("mnt"));
        std::fs::create_dir(&at).expect("a folder");
        if kind == "tmpfs" {
            let options = format!("size={megabytes}m");
            let mut mount = words(["-t", "tmpfs", "-o", &options, "none"]);
            mount.push(at.as_os_str());
            run("mount", &mount);
        } else {
            let made = std::fs::File::create(&file).and_then(|f| f.set_len(megabytes * MIB));
            made.expect("a file");
            run(&format!("mkfs.{kind}"), &[OsStr::new("-q"), file.as_os_str()]);
            let mut mount = words(["-t", kind, "-o", "loop"]);
            mount.extend([file.as_os_str(), at.as_os_str()]);
            run("mount", &mount);
        }
        Mount { at, _dir: dir }
    }

    fn free(&self) -> u64 {
        run("sync", &[OsStr::new("-f"), self.at.as_os_str()]);
        let stat = nix::sys::statvfs::statvfs(&self.at).expect("the mount");
        let (blocks, size): (u64, u64) = (stat.blocks_available(), stat.fragment_size());
        blocks * size
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let ended = Command::new("umount").arg(&self.at).status();
        assert!(std::thread::panicking() || ended.is_ok_and(|s| s.success()), "not unmounted");
    }
}

/// A loop device that goes with it.
struct Loop(PathBuf);

impl Loop {
    fn new(file: &Path) -> Self {
        let mut find = words(["--find", "--show"]);
        find.push(file.as_os_str());
        Loop(run("losetup", &find).into())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let ended = Command::new("losetup").arg("--detach").arg(&self.0).status();
        assert!(std::thread::panicking() || ended.is_ok_and(|s| s.success()), "not detached");
    }
}

#[test]
fn blocks_are_shared_where_the_file_system_can() {
    if !needs::has(&[ROOT, "mkfs.xfs", "mkfs.btrfs"]) {
        let (_dir, _path, copies) = image(&bytes(1, 5000));
        assert!(!copies.saving().expect("a look").shares, "shared in memory");
        return;
    }
    for (kind, without_cow) in [("xfs", false), ("btrfs", false), ("btrfs", true)] {
        let mount = Mount::new(kind, 512);
        let path = mount.at.join("vm.img");
        write(&path, &[]);
        if without_cow {
            let mut flag = words(["+C"]);
            flag.push(path.as_os_str());
            run("chattr", &flag);
        }
        let content = bytes(1, 64 * MIB as usize + 777);
        let file = std::fs::File::options().write(true).open(&path).expect("the image");
        file.write_all_at(&content, 0).expect("content");
        file.set_len(100_000 * MIB).expect("a hole");
        drop(file);
        let copies = Copies::beside(&path);
        let saving = copies.saving().expect("a look");
        assert!(saving.shares, "{kind}: {saving:?}");
        let before = mount.free();
        let saved = copies.save(&save(false), QUIET).unwrap_or_else(|e| panic!("{kind}: {e}"));
        let taken = before.saturating_sub(mount.free());
        assert!(taken < 4 * MIB, "{kind}: a shared copy took {taken} bytes");
        assert_eq!((saved.size, saved.taken_nanoseconds), (100_000 * MIB, 123_456_789), "{kind}");

        let file = std::fs::File::options().write(true).open(&path).expect("the image");
        file.write_all_at(&bytes(2, 9 * MIB as usize), 40 * MIB).expect("a change");
        drop(file);
        let copy = mount.at.join(&saved.name);
        let start = |path: &Path| {
            let mut start = vec![0; content.len()];
            let file = std::fs::File::open(path).expect("the file");
            file.read_exact_at(&mut start, 0).expect("its start");
            start
        };
        assert!(start(&copy) == content, "{kind}: the copy changed with the disk");
        copies.put_back(MARK, QUIET).unwrap_or_else(|e| panic!("{kind}: {e}"));
        assert!(start(&path) == content, "{kind}: put back");
        assert_eq!(std::fs::metadata(&path).expect("the image").len(), 100_000 * MIB, "{kind}");
        let taken = before.saturating_sub(mount.free());
        assert!(taken < 4 * MIB, "{kind}: after a restore {taken} bytes are taken");
        let flags = sys::flags(&std::fs::File::open(&path).expect("the image"));
        assert_eq!(flags & sys::flag::NO_COW != 0, without_cow, "{kind}: {flags:#x}");
        copies.discard(MARK).expect("discarded");
        assert_eq!(listing_names(&mount.at), ["vm.img"], "{kind}");
    }
}

fn listing_names(dir: &Path) -> Vec<OsString> {
    std::fs::read_dir(dir).expect("a folder").map(|e| e.expect("an entry").file_name()).collect()
}

#[test]
fn owner_mode_lists_and_labels_stay_through_a_restore() {
    if !needs::has(&[ROOT, "setfacl", "mkfs.xfs"]) {
        return;
    }
    let mount = Mount::new("xfs", 320);
    // What is made here gets an access list that the image does not have.
    let mut default = words(["-d", "-m", "u:7:rwx"]);
    default.push(mount.at.as_os_str());
    let path = mount.at.join("vm.img");
    write(&path, &bytes(1, 100_000));
    run("setfacl", &default);
    let copies = Copies::beside(&path);
    copies.save(&save(false), QUIET).expect("saved");
    for with_list in [false, true] {
        let file = std::fs::File::open(&path).expect("the image");
        nix::unistd::fchown(&file, Some(65_534.into()), Some(7.into())).expect("an owner");
        file.set_permissions(PermissionsExt::from_mode(0o660)).expect("a mode");
        sys::set_attribute(&file, c"user.note", b"kept").expect("an attribute");
        sys::set_attribute(&file, c"security.selinux", b"system_u:object_r:svirt_image_t:s0\0")
            .expect("a label");
        if with_list {
            let mut list = words(["-m", "u:9:r"]);
            list.push(path.as_os_str());
            run("setfacl", &list);
        }
        let show = || {
            let meta = std::fs::metadata(&path).expect("the image");
            let mut list = words(["-c", "-p"]);
            list.push(path.as_os_str());
            let file = std::fs::File::open(&path).expect("the image");
            let mut attributes: Vec<_> = sys::attributes(&file)
                .expect("attributes")
                .into_iter()
                .map(|name| (sys::attribute(&file, &name).expect("a value"), name))
                .collect();
            attributes.sort();
            (meta.uid(), meta.gid(), meta.mode(), run("getfacl", &list), attributes)
        };
        let (inode, before) = (std::fs::metadata(&path).expect("the image").ino(), show());
        copies.put_back(MARK, QUIET).expect("put back");
        assert_eq!(show(), before, "with a list: {with_list}");
        assert_ne!(std::fs::metadata(&path).expect("the image").ino(), inode);
    }
    let mut fixed = words(["+i"]);
    fixed.push(path.as_os_str());
    run("chattr", &fixed);
    let refused = copies.put_back(MARK, QUIET);
    fixed[0] = OsStr::new("-i");
    run("chattr", &fixed);
    let error = refused.expect_err("immutable");
    assert!(error.to_string().contains("chattr"), "{error}");
}

#[test]
fn a_full_file_system_is_told_before_and_harmless_during() {
    if !needs::has(&[ROOT]) {
        return;
    }
    let mount = Mount::new("tmpfs", 16);
    let path = mount.at.join("vm.img");
    let content = bytes(1, 6 << 20);
    write(&path, &content);
    let filler = mount.at.join("filler");
    write(&filler, &bytes(2, 6 << 20));
    let copies = Copies::beside(&path);
    let error = copies.save(&save(true), QUIET).expect_err("no room");
    let CopyError::NoSpace { needed, available, .. } = error else { panic!("{error}") };
    assert!(needed == 6 * MIB && available <= 4 * MIB, "{needed} of {available}");
    assert_eq!(listing(&mount.at).len(), 2, "{:?}", brief(&listing(&mount.at)));

    // Room for all of it when looked at, and gone when it is needed.
    std::fs::remove_file(&filler).expect("room");
    let grow = filler.clone();
    let watch = Watch {
        progress: &move |done, _| {
            if done == 0 {
                write(&grow, &bytes(2, 8 << 20));
            }
        },
        stop: &|| false,
    };
    let error = copies.save(&save(true), &watch).expect_err("no room on the way");
    assert!(error.is_no_space() && matches!(error, CopyError::Disk(_)), "{error}");
    let mut names = listing_names(&mount.at);
    names.sort();
    assert_eq!(names, ["filler", "vm.img"]);
    assert!(std::fs::read(&path).expect("the image") == content);
}

#[test]
fn a_block_device_is_saved_and_put_back() {
    if !needs::has(&[ROOT]) {
        return;
    }
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("backing");
    let (old, new) = (bytes(1, 9 << 20), bytes(2, 9 << 20));
    std::fs::write(&file, &old).expect("a file");
    let beside = Copies::beside(&file);
    let mut other = save(true);
    other.mark = "00000000000000ff".to_owned();
    beside.save(&other, QUIET).expect("saved");
    let disk = Loop::new(&file);
    let copies = Copies::in_directory(&disk.0, &dir.path().join("copies"));
    let saving = copies.saving().expect("a look");
    assert!(!saving.shares && saving.bytes == 9 * MIB, "{saving:?}");
    let saved = copies.save(&save(true), QUIET).expect("saved");
    let identity = copies.disk_identity().expect("an identity");
    assert!(saved.name.starts_with(&format!("{identity}.snapslot-")), "{} {identity}", saved.name);
    let raw = std::fs::File::options().read(true).write(true).open(&disk.0).expect("the device");
    raw.write_all_at(&new, 0).expect("a change");
    raw.sync_all().expect("a flush");
    drop(raw);
    copies.put_back(MARK, QUIET).expect("put back");
    let now = std::fs::read(&disk.0).expect("the device");
    assert!(now == old, "put back");

    // The file below a loop device is in use, though no process has it open.
    let mut third = save(true);
    third.mark = "00000000000000fe".to_owned();
    for result in [beside.put_back("00000000000000ff", QUIET), beside.save(&third, QUIET).map(drop)]
    {
        let error = result.expect_err("in use");
        assert!(matches!(&error, CopyError::InUse { who, .. } if who.contains("loop")), "{error}");
    }
    // Nor is a device copied that a process has open.
    let open = std::fs::File::open(&disk.0).expect("the device");
    let mut child = std::process::Command::new("sleep").arg("600").stdin(open).spawn();
    let child = child.as_mut().expect("sleep");
    let result = copies.save(&other, QUIET);
    child.kill().and_then(|()| child.wait()).expect("ended");
    let error = result.expect_err("in use");
    assert!(matches!(&error, CopyError::InUse { .. }), "{error}");

    // A mounted device is neither copied nor overwritten.
    run("mkfs.ext4", &[OsStr::new("-q"), disk.0.as_os_str()]);
    let at = dir.path().join("mnt");
    std::fs::create_dir(&at).expect("a folder");
    run("mount", &[disk.0.as_os_str(), at.as_os_str()]);
    let results = [copies.save(&other, QUIET).map(drop), copies.put_back(MARK, QUIET)];
    run("umount", &[at.as_os_str()]);
    for result in results {
        let error = result.expect_err("mounted");
        assert!(matches!(error, CopyError::InUse { .. }), "{error}");
    }
    assert_eq!(copies.unfinished().expect("a look"), None);
}
