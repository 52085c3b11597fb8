//! What a test needs that not every machine has.
//!
//! On a machine without it the test is left out, and standard error says so past the harness that hides what tests
//! print. With `SNAPSLOT_TEST_ALL` set, as in the gate, nothing is left out: what is missing is a failure.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;

/// Programs that tests use, and the Debian packages that have them. QEMU's tools are not among them: they judge,
/// and without them there is no test.
const PACKAGES: [(&str, &str); 6] = [
    ("mkfs.xfs", "xfsprogs"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("setfacl", "acl"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdinfo", "libnbd-bin"),
    ("openssl", "openssl"),
];

/// Asked for instead of a program: mounts and loop devices of one's own.
pub const ROOT: &str = "root";

/// Whether this process is root's.
#[must_use]
pub fn is_root() -> bool {
    // The owner of our own process, as /proc has it.
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Whether all of this is there: names of programs, or [`ROOT`]. If not, the caller's test ends here.
///
/// # Panics
/// When something is missing and nothing may be left out; for a program that is not listed above.
#[must_use]
pub fn has(needs: &[&str]) -> bool {
    let mut missing = String::new();
    for need in needs {
        if *need == ROOT {
            if !is_root() {
                missing.push_str(" root");
            }
            continue;
        }
        let package = PACKAGES.iter().find(|(program, _)| program == need);
        let (_, package) = package.unwrap_or_else(|| panic!("which package has {need}?"));
        if !is_program(need) {
            let _ = write!(missing, " {need} (package {package})");
        }
    }
    if missing.is_empty() {
        return true;
    }
    let all = std::env::var_os("SNAPSLOT_TEST_ALL").is_some();
    assert!(!all, "missing, and SNAPSLOT_TEST_ALL leaves nothing out:{missing}");
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    // The macros that print are held back by the harness; this is not.
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {test} needs{missing}");
    false
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(std::path::PathBuf::from);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(name).is_file())
}
