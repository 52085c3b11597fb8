//! Goal: a plugin of a third party can be begun, checked, tried, approved, used, held to what was
//! approved, and removed, as the guide says; and what is not as it was approved is refused. Method: a
//! project made by the command itself, the VHD example, and files changed behind the host's back.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use snapslot_test_support::{Scratch, Snapslot, SplitMix64, qemu_img};

use crate::{snapslot, words};

/// Where components are built, once for all tests.
fn target() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("plugins")
}

/// Builds a project for wasm, and gives the component.
fn built(project: &Path, component: &str) -> PathBuf {
    let run = Command::new(env!("CARGO"))
        .current_dir(project)
        .args(["build", "--quiet", "--release", "--target", "wasm32-wasip2", "--target-dir"])
        .arg(target())
        .status();
    assert!(run.is_ok_and(|s| s.success()), "{} does not build", project.display());
    target().join("wasm32-wasip2/release").join(component)
}

/// The VHD example.
fn vhd() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/examples/vhd");
        built(&project, "snapslot_example_vhd.wasm")
    })
}

fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn add(snapslot: &Snapslot, more: &[&str]) -> (i32, String, String) {
    words(snapslot, &[&["plugin", "add", text(vhd())], more].concat())
}

#[test]
fn a_new_project_builds_passes_its_tests_and_the_kit() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    for (place, name, component) in
        [("image", "my-format", "my_format.wasm"), ("zfs-dataset", "my-zfs", "my_zfs.wasm")]
    {
        let directory = scratch.join(name);
        let arguments = ["plugin", "new", name, "--place", place, "--dir", text(&directory)];
        let (code, said, _) = words(&snapslot, &arguments);
        assert_eq!(code, 0, "{said}");
        let (code, _, said) = words(&snapslot, &arguments);
        assert!(code == 2 && said.contains("there already"), "{code}: {said}");
        let tested = Command::new(env!("CARGO"))
            .current_dir(&directory)
            .args(["test", "--quiet", "--release", "--lib", "--target-dir"])
            .arg(target())
            .output()
            .expect("cargo");
        assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
        let component = built(&directory, component);
        let (code, said, _) = words(&snapslot, &["plugin", "check", text(&component)]);
        assert!(code == 0 && said.contains("Nothing is wrong with it"), "{code}: {said}");
        let report = scratch.join("report.html");
        let missing = passes_the_kit(&snapslot, &component, &["--report", text(&report)]);
        assert!(missing.is_empty(), "{missing:?}");
        assert!(fs::read_to_string(&report).expect("a report").contains("held"));
    }
}

/// What the kit has at most. It takes minutes, and on a busy machine many more: who comes near this hangs.
const KIT_LONG: Duration = Duration::from_secs(3600);

/// The whole kit, every case of it. Gives what could not be tried, and why.
fn passes_the_kit(snapslot: &Snapslot, component: &Path, more: &[&str]) -> Vec<String> {
    let arguments = [&["plugin", "test", text(component)], more].concat();
    let outcome = snapslot.run_within(KIT_LONG, arguments);
    let found = outcome.json.clone().unwrap_or_default();
    let cases = found["cases"].as_array().cloned().unwrap_or_default();
    let failed: Vec<_> = cases.iter().filter(|c| c["outcome"] == "failed").collect();
    assert!(failed.is_empty(), "{}: {failed:?}", component.display());
    let missing: Vec<String> = (found["missing"].as_array().into_iter().flatten())
        .filter_map(|why| why.as_str().map(str::to_owned))
        .collect();
    let account = outcome.process.account();
    assert_eq!(outcome.code(), if missing.is_empty() { 0 } else { 9 }, "{account}");
    println!("{}: {} cases held", component.display(), found["held"]);
    missing
}

/// What the guide quotes is built, and does what it should.
#[test]
fn the_worked_examples_pass_their_tests_and_the_kit() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins/examples");
    let vhd_sample = scratch.join("sample.vhd");
    // With something in it: the kit's guest writes where there is room already.
    let filled = scratch.join("filled.raw");
    fs::write(&filled, SplitMix64::new(3).bytes(4 << 20)).expect("room");
    let words = ["convert", "-f", "raw", "-O", "vpc", text(&filled), text(&vhd_sample)];
    assert_eq!(qemu_img(words).code, Some(0));
    let tables_sample = scratch.join("sample.tables");
    fs::write(&tables_sample, tables_image()).expect("a sample");
    for (name, sample) in [("vhd", vhd_sample), ("tables", tables_sample)] {
        let project = examples.join(name);
        let tested = Command::new(env!("CARGO"))
            .current_dir(&project)
            .args(["test", "--quiet", "--release", "--target-dir"])
            .arg(target())
            .output()
            .expect("cargo");
        assert!(tested.status.success(), "{name}: {}", String::from_utf8_lossy(&tested.stdout));
        let component = built(&project, &format!("snapslot_example_{name}.wasm"));
        let missing = passes_the_kit(&snapslot, &component, &["--image", text(&sample)]);
        // In a format of its own the kit's guest overwrites what no snapshot shares, and after a take of such
        // tables all is shared.
        let may_miss = name == "tables";
        let unwritten =
            |why: &str| may_miss && why.contains("the guest could not be made to write");
        assert!(missing.iter().all(|why| unwritten(why)), "{name}: {missing:?}");
        assert_eq!(missing.is_empty(), !may_miss, "{name}");
    }
}

/// An image of the format of the example `tables`: sixteen blocks, every other one with content.
fn tables_image() -> Vec<u8> {
    const BLOCK: usize = 4096;
    let mut image = b"SNAPTABS".to_vec();
    for word in [0, 16, BLOCK as u64, 0] {
        image.extend(word.to_be_bytes());
    }
    // The header, and room for six tables.
    image.resize(7 * BLOCK, 0);
    for n in (0..16).step_by(2) {
        let (entry, at) = (image.len() as u64, BLOCK + 8 * n);
        image[at..at + 8].copy_from_slice(&entry.to_be_bytes());
        image.extend(vec![n as u8 + 1; BLOCK]);
    }
    image
}

#[test]
fn a_plugin_of_a_third_party_serves_volumes() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    assert_eq!(add(&snapslot, &["--yes"]).0, 0);
    let disk = scratch.join("vm.vhd");
    assert_eq!(qemu_img(["create", "-q", "-f", "vpc", text(&disk), "16M"]).code, Some(0));
    let write = |pattern: &str| {
        let done = Command::new("qemu-io")
            .args(["-f", "vpc", "-c", &format!("write -q -P {pattern} 1M 3M"), text(&disk)])
            .status();
        assert!(done.is_ok_and(|s| s.success()));
    };
    write("1");
    let then = scratch.join("then.vhd");
    fs::copy(&disk, &then).expect("a copy");
    snapslot.verb("take", &disk, &["--full-copy"]).expect(0);
    write("2");
    snapslot.verb("restore", &disk, &[]).expect(0);
    assert_eq!(
        qemu_img(["compare", "-f", "vpc", "-F", "vpc", text(&disk), text(&then)]).code,
        Some(0)
    );
    // A volume with a slot needs its plugin.
    let (code, _, said) = words(&snapslot, &["plugin", "remove", "vhd", "--yes"]);
    assert!(code == 6 && said.contains("vm.vhd"), "{code}: {said}");
    snapslot.verb("delete", &disk, &[]).expect(0);
    snapslot.verb("disable", &disk, &[]).expect(0);
    assert_eq!(words(&snapslot, &["plugin", "remove", "vhd", "--yes"]).0, 0);
    let (code, _, said) = words(&snapslot, &["take", &format!("vhd:{}", disk.display())]);
    assert!(code == 2 && said.contains("no backend"), "{code}: {said}");
    let left: Vec<_> = fs::read_dir(scratch.join("state/plugins")).expect("it").flatten().collect();
    assert!(!left.iter().any(|e| text(&e.path()).ends_with(".wasm")), "{left:?}");
}

#[test]
fn nothing_is_installed_that_nobody_approved() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let (code, _, said) = add(&snapslot, &[]);
    assert_eq!(code, 6, "{said}");
    for word in ["read the disk's image", "whole copies", "sha256", "--dry-run", "--yes"] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let (code, shown, _) = add(&snapslot, &["--dry-run"]);
    assert!(code == 0 && shown.contains("Nothing was added"), "{shown}");
    let (_, list, _) = words(&snapslot, &["plugin", "list"]);
    assert!(!list.contains("vhd"), "{list}");
}

#[test]
fn what_was_denied_is_not_had() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let (code, _, said) = add(&snapslot, &["--yes", "--without", "action frob"]);
    assert!(code == 2 && said.contains("copies"), "{code}: {said}");
    assert_eq!(add(&snapslot, &["--yes", "--without", "copies"]).0, 0);
    let (_, shown, _) = words(&snapslot, &["plugin", "show", "vhd"]);
    assert!(shown.contains("NOT approved: have whole copies"), "{shown}");
    let disk = scratch.join("vm.vhd");
    assert_eq!(qemu_img(["create", "-q", "-f", "vpc", text(&disk), "16M"]).code, Some(0));
    let before = fs::read(&disk).expect("it");
    let (code, _, said) = words(&snapslot, &["take", text(&disk), "--full-copy"]);
    assert!(code == 7 && said.contains("no grant for the copies"), "{code}: {said}");
    assert!(fs::read(&disk).expect("it") == before);
    // Nothing at all approved: nothing at all can be done, and that is said.
    assert_eq!(add(&snapslot, &["--yes", "--without", "copies", "--without", "image disk"]).0, 0);
    let (_, shown, _) = words(&snapslot, &["plugin", "show", "vhd"]);
    assert!(shown.contains("Nothing was approved"), "{shown}");
}

#[test]
fn what_changed_since_it_was_approved_is_refused() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    assert_eq!(add(&snapslot, &["--yes"]).0, 0);
    let disk = scratch.join("vm.vhd");
    assert_eq!(qemu_img(["create", "-q", "-f", "vpc", text(&disk), "16M"]).code, Some(0));
    let lock = scratch.join("state/plugins/lock.json");
    let component = (fs::read_dir(scratch.join("state/plugins")).expect("it").flatten())
        .map(|e| e.path())
        .find(|p| text(p).ends_with(".wasm"))
        .expect("the component");
    let (good_lock, good) = (fs::read(&lock).expect("it"), fs::read(&component).expect("it"));
    let refused = |what: &str, words_of_it: &str| {
        for arguments in [&["plugin", "verify"][..], &["take", text(&disk), "--full-copy"]] {
            let (code, out, error) = words(&snapslot, arguments);
            assert_eq!(code, 7, "{what}, {arguments:?}: {out}{error}");
            assert!(format!("{out}{error}").contains(words_of_it), "{what}: {out}{error}");
        }
    };
    let (code, said, _) = words(&snapslot, &["plugin", "verify"]);
    assert!(code == 0 && said.contains("as it was approved"), "{said}");

    let mut other = good.clone();
    let last = other.len() - 1;
    other[last] ^= 1;
    fs::write(&component, &other).expect("written");
    refused("another component", "has changed since");
    fs::write(&component, &good).expect("written");

    let more = String::from_utf8(good_lock.clone()).expect("text");
    let narrowed = more.replace("whole copies of VHD", "whole copies of vhd").replace(
        "the snapshot is a copy of the image: VHD has none within",
        "another reason than was shown",
    );
    assert_ne!(narrowed, more);
    fs::write(&lock, narrowed).expect("written");
    refused("it asks for what was not approved", "what nobody approved: copies");

    fs::write(&lock, b"{ \"version\": 1, \"plugins\": [ {").expect("written");
    refused("half a lock file", "cannot be read as a list");
    fs::write(&lock, b"{ \"version\": 9, \"plugins\": [] }").expect("written");
    refused("a lock file of the future", "version 9");
    fs::write(&lock, &good_lock).expect("written");
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o666)).expect("changed");
    refused("a lock file that others may write", "others may write it");
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o600)).expect("changed");
    assert_eq!(words(&snapslot, &["plugin", "verify"]).0, 0);

    // What a crash left is told, and goes with the next change.
    let orphan = lock.with_file_name(format!("{}.wasm", "0".repeat(64)));
    fs::write(&orphan, b"half").expect("written");
    let (code, said, _) = words(&snapslot, &["plugin", "verify"]);
    assert!(code == 7 && said.contains("belongs to no plugin"), "{said}");
    assert_eq!(add(&snapslot, &["--yes", "--without", "copies"]).0, 0);
    assert!(!orphan.exists());
}

#[test]
fn what_is_no_plugin_is_told_why() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let file = scratch.join("x.wasm");
    let good = fs::read(vhd()).expect("it");
    let module = b"\0asm\x01\0\0\0".to_vec();
    // A component that exports nothing at all.
    let empty = b"\0asm\x0d\0\x01\0".to_vec();
    for (bytes, said) in [
        (Vec::new(), "it is empty"),
        (b"MZ what is this".to_vec(), "no WebAssembly"),
        (b"(component)".to_vec(), "written as text"),
        (module, "a WebAssembly module, not a component"),
        (empty, "does not export snapslot:backend/backend@0.1"),
        (good[..good.len() / 2].to_vec(), "does not compile"),
    ] {
        fs::write(&file, &bytes).expect("written");
        let (code, out, _) = words(&snapslot, &["plugin", "check", text(&file)]);
        assert!(code == 7 && out.contains(said), "{said}: {code}: {out}");
        let (code, _, out) = words(&snapslot, &["plugin", "add", "--yes", text(&file)]);
        assert!(code == 7 && out.contains(said), "{said}: {code}: {out}");
    }
    let file = fs::File::create(&file).expect("made");
    file.set_len(1 << 30).expect("grown");
    let big = scratch.join("x.wasm");
    let (code, out, _) = words(&snapslot, &["plugin", "check", text(&big)]);
    assert!(code == 7 && out.contains("at most 67108864"), "{code}: {out}");
    let (code, _, out) = words(&snapslot, &["plugin", "check", text(&scratch.join("none.wasm"))]);
    assert!(code == 1 && out.contains("cannot open"), "{code}: {out}");
    let (code, _, out) = words(&snapslot, &["plugin", "check", "/dev/zero"]);
    assert!(code == 2 && out.contains("not a file"), "{code}: {out}");
}

#[test]
fn a_recorded_conversation_is_held_again_without_the_storage() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let image = crate::image(&scratch, "disk.qcow2");
    let file = scratch.join("bug.jsonl");
    let disk = text(image.path()).to_owned();
    let (code, _, said) = words(&snapslot, &["--record", text(&file), "take", &disk]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(fs::metadata(&file).expect("it").permissions().mode() & 0o777, 0o600);
    // Never over something that is there.
    let (code, _, said) = words(&snapslot, &["--record", text(&file), "status", &disk]);
    assert!(code == 2 && said.contains("nothing can be recorded"), "{code}: {said}");
    fs::remove_file(image.path()).expect("removed");
    let replayed = snapslot.run(["plugin", "replay", text(&file)]);
    let calls = replayed.expect(0)["calls"].as_array().expect("calls").clone();
    let kinds: Vec<&str> = calls.iter().filter_map(|c| c["call"].as_str()).collect();
    for call in ["describe", "inspect", "plan", "extents"] {
        assert!(kinds.contains(&call), "{call} is not in {kinds:?}");
    }
    // What was heard otherwise is answered otherwise; what is no recording is told.
    let recorded = fs::read_to_string(&file).expect("text");
    let other = scratch.join("other.jsonl");
    fs::write(&other, recorded.replace("\"virtual_size\":8388608", "\"virtual_size\":5"))
        .expect("it");
    assert_eq!(words(&snapslot, &["plugin", "replay", text(&other)]).0, 7);
    // What is in it is a stranger's: it never says which file is opened, and never reaches the terminal raw.
    // Story: a name in it that no plugin has was opened as a path.
    let marked = scratch.join("opened.wasm");
    fs::write(&marked, b"").expect("a file");
    for (name, says) in [(text(&marked), "no plugin"), ("another", "--plugin")] {
        let renamed = recorded.replace("\"plugin\":\"qcow2\"", &format!("\"plugin\":\"{name}\""));
        assert_ne!(renamed, recorded);
        fs::write(&other, renamed).expect("it");
        let (code, out, said) = words(&snapslot, &["plugin", "replay", text(&other)]);
        assert!(code == 2 && said.contains(says), "{name}: {code}: {out}{said}");
    }
    let painted = recorded.replace("\"format\":\"qcow2", "\"format\":\"\\u001b[2J\\u202eqcow2");
    assert_ne!(painted, recorded);
    fs::write(&other, painted).expect("it");
    let (code, out, said) = words(&snapslot, &["plugin", "replay", text(&other)]);
    assert_eq!(code, 7, "{out}{said}");
    let unfit = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    assert!(!out.chars().chain(said.chars()).any(unfit), "{out:?}{said:?}");
    let half: String = recorded.chars().take(recorded.len() / 2).collect();
    for rubbish in ["", "{}\n", "what\n", &half] {
        fs::write(&other, rubbish).expect("it");
        let (code, _, said) = words(&snapslot, &["plugin", "replay", text(&other)]);
        assert!(code == 2 && said.contains("other.jsonl"), "{rubbish:.20}: {code}: {said}");
    }
}

#[test]
fn the_built_in_plugins_pass_the_kit() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    for (plugin, least) in [("lvm", 500), ("zfs", 200), ("qcow2", 40), ("raw", 10)] {
        let tested = snapslot.run_within(KIT_LONG, ["plugin", "test", plugin]);
        let found = tested.expect(0);
        let failed: Vec<_> = (found["cases"].as_array().expect("cases").iter())
            .filter(|c| c["outcome"] == "failed")
            .collect();
        assert!(failed.is_empty(), "{plugin}: {failed:?}");
        let held = found["held"].as_u64().expect("a number");
        println!("{plugin}: {held} cases");
        assert!(held >= least, "{plugin}: only {held} cases");
    }
}

#[test]
fn one_seed_gives_one_run_of_the_kit() {
    let scratch = Scratch::new();
    let snapslot = snapslot(&scratch);
    let run = |seed: &str| {
        let words = ["plugin", "test", "zfs", "--only", "crash/Zvol", "--seed", seed];
        let tested = snapslot.run_within(KIT_LONG, words);
        let found = tested.expect(0);
        let cases = found["cases"].as_array().expect("cases").iter();
        cases.map(|c| (c["name"].clone(), c["outcome"].clone())).collect::<Vec<_>>()
    };
    let first = run("7");
    assert!(first.len() > 10 && first == run("7"));
    // A name that no case has is no success.
    let (code, _, said) = words(&snapslot, &["plugin", "test", "zfs", "--only", "crash/nothing"]);
    assert!(code == 2 && said.contains("no case"), "{code}: {said}");
}
