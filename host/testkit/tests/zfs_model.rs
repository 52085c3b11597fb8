//! The model of ZFS is held against recordings of the real one, and its own promises are held:
//! content, faults, crashes, and that it never guesses.
//!
//! `cargo test -p snapslot-testkit --test zfs_model -- --nocapture` also prints which recorded
//! commands are not compared, and why.

#[path = "zfs_model/replay.rs"]
mod replay;

use std::collections::BTreeMap;
use std::time::Duration;

use snapslot_command::{Answer, Command, Executor, RunError};
use snapslot_testkit::storage::zfs::{Access, Fault, GuestError, Model, View, When};

/// Programs as plugins write them, short.
const ROLLBACK: &str = "local errno = zfs.sync.rollback((...)['argv'][1]); return errno";
const DESTROY: &str = "return zfs.sync.destroy((...)['argv'][1])";

#[test]
fn the_model_says_what_zfs_said() {
    let transcripts = [
        ("zfs-lifecycle.txt", include_str!("transcripts/zfs-lifecycle.txt")),
        ("zfs-edges.txt", include_str!("transcripts/zfs-edges.txt")),
        ("zfs-programs.txt", include_str!("transcripts/zfs-programs.txt")),
        ("zfs-slot.txt", include_str!("transcripts/zfs-slot.txt")),
        ("zfs-states.txt", include_str!("transcripts/zfs-states.txt")),
        ("zfs-room.txt", include_str!("transcripts/zfs-room.txt")),
        // The plugin's own commands: made anew by `tests/real/run --record` whenever one changes.
        ("tests/real/transcripts/zfs.txt", include_str!("../../../tests/real/transcripts/zfs.txt")),
    ];
    let (mut compared, mut skipped, mut different) = (0, Vec::new(), Vec::new());
    for (name, text) in transcripts {
        let tally = replay::replay(name, text);
        compared += tally.compared;
        skipped.extend(tally.skipped);
        different.extend(tally.different);
    }
    println!("{compared} commands compared, {} not:", skipped.len());
    skipped.iter().for_each(|line| println!("  {line}"));
    assert!(different.is_empty(), "{} differ:\n{}", different.len(), different.join("\n"));
    assert!(compared >= COMPARED_MIN, "only {compared} commands were compared");
}

/// A transcript that is no longer read would be missed.
const COMPARED_MIN: usize = 550;

fn command(words: &[&str], input: Option<&str>) -> Command {
    Command {
        program: "zfs".to_owned(),
        arguments: words.iter().map(|&w| w.to_owned()).collect(),
        input: input.map(str::to_owned),
        deadline: Duration::from_secs(60),
    }
}

fn program(model: &Model, text: &str, name: &str) -> String {
    let answer = model.typed_with(&format!("zfs program -j tank - {name}"), Some(text));
    assert_eq!(answer.exit_code, 0, "{}", String::from_utf8_lossy(&answer.errors));
    String::from_utf8_lossy(&answer.output).into_owned()
}

/// A volume with blocks 1 and 2, a snapshot of them, and block 1 changed since.
fn volume() -> Model {
    let model = Model::with_tank(3);
    model.must("zfs create -V 16M tank/vm");
    model.guest_write("tank/vm", 1, Some(10)).expect("there is room");
    model.guest_write("tank/vm", 2, Some(20)).expect("there is room");
    model.must("zfs snapshot tank/vm@s");
    model.guest_write("tank/vm", 1, Some(11)).expect("there is room");
    model
}

fn map(pairs: &[(u64, u64)]) -> BTreeMap<u64, u64> {
    pairs.iter().copied().collect()
}

#[test]
fn content_goes_with_snapshots_clones_and_rollback() {
    let model = volume();
    assert_eq!(model.content("tank/vm"), Some(map(&[(1, 11), (2, 20)])));
    assert_eq!(model.content("tank/vm@s"), Some(map(&[(1, 10), (2, 20)])));
    model.must("zfs clone tank/vm@s tank/copy");
    model.guest_write("tank/copy", 2, None).expect("there is room");
    assert_eq!(model.content("tank/copy"), Some(map(&[(1, 10)])));
    model.resize("tank/vm", 32 << 20);
    model.must("zfs rollback tank/vm@s");
    assert_eq!(model.content("tank/vm"), Some(map(&[(1, 10), (2, 20)])));
    assert_eq!(model.must("zfs list -Hp -o volsize tank/vm").trim(), "16777216");
    assert_eq!(model.guest_read("tank/vm", 3), Ok(None));
    assert_eq!(model.content("tank/nope"), None);
}

#[test]
fn a_rollback_under_an_opener_corrupts_and_a_program_refuses() {
    let model = volume();
    model.open("tank/vm");
    assert_eq!(program(&model, ROLLBACK, "tank/vm"), "{\"return\":16}");
    assert_eq!(model.content("tank/vm"), Some(map(&[(1, 11), (2, 20)])));
    assert!(!model.is_corrupted("tank/vm"));
    let other = model.fork();
    model.must("zfs rollback tank/vm@s");
    assert!(model.is_corrupted("tank/vm"));
    other.close("tank/vm");
    assert_eq!(program(&other, ROLLBACK, "tank/vm"), "{\"return\":0}");
    assert!(!other.is_corrupted("tank/vm"), "the fork is a machine of its own");
    assert_eq!(other.content("tank/vm"), Some(map(&[(1, 10), (2, 20)])));
}

#[test]
fn a_program_that_hands_on_two_values_fails_after_its_work() {
    let model = volume();
    let text = "return zfs.sync.rollback((...)['argv'][1])";
    let answer = model.typed_with("zfs program -j tank - tank/vm", Some(text));
    assert_eq!(answer.exit_code, 1);
    assert!(String::from_utf8_lossy(&answer.errors).contains("Multiple return values"));
    assert_eq!(model.content("tank/vm"), Some(map(&[(1, 10), (2, 20)])), "it was rolled back");
}

#[test]
fn a_view_of_a_snapshot_stops_the_kernel_and_not_the_command() {
    let model = Model::with_tank(3);
    model.must("zfs create -o mountpoint=/mnt/ds tank/ds");
    model.must("zfs snapshot tank/ds@a");
    model.view("tank/ds@a", View::Open);
    assert_eq!(program(&model, DESTROY, "tank/ds@a"), "{\"return\":16}");
    model.must("zfs destroy tank/ds@a");
    assert!(model.snapshots("tank/ds").is_empty());
}

#[test]
fn the_guest_feels_a_full_pool_a_quota_and_a_missing_key() {
    let model = Model::new(3);
    model.add_pool("tank", 8 << 20);
    model.must("zfs create -s -V 64M tank/thin");
    let written = (0..1024).take_while(|&at| model.guest_write("tank/thin", at, Some(at)).is_ok());
    let written = written.count() as u64;
    assert!((400..512).contains(&written), "4 MiB hold less than 512 blocks of 8 KiB: {written}");
    assert_eq!(model.guest_write("tank/thin", 2000, Some(1)), Err(GuestError::NoRoom));
    assert_eq!(model.content("tank/thin").map(|c| c.len() as u64), Some(written));
    assert_eq!(model.guest_write("tank/thin", 0, None), Ok(()), "giving back needs no room");
    assert_eq!(model.guest_write("tank/thin", 2000, Some(1)), Ok(()), "and makes some");
    model.set_read_only("tank", true);
    assert_eq!(model.guest_write("tank/thin", 2000, Some(2)), Err(GuestError::ReadOnly));

    let model = Model::with_tank(3);
    model.must("zfs create tank/ds");
    model.must("zfs set refquota=64K tank/ds");
    let written = (0..64).take_while(|&at| model.guest_write("tank/ds", at, Some(at)).is_ok());
    assert_eq!(written.count(), 4, "64 KiB less what an empty file system takes");
    model.must("zfs create -o encryption=on -o keyformat=passphrase -V 16M tank/enc");
    model.must("zfs unload-key tank/enc");
    assert_eq!(model.guest_write("tank/enc", 0, Some(1)), Err(GuestError::NoKey));
    assert_eq!(model.guest_read("tank/enc", 0), Err(GuestError::NoKey));
}

#[test]
fn the_same_seed_gives_the_same_guids() {
    let guids = |seed| {
        let model = Model::with_tank(seed);
        model.must("zfs create -V 16M tank/vm");
        model.must("zfs snapshot tank/vm@s");
        model.snapshots("tank/vm")[0].1
    };
    assert_eq!(guids(1), guids(1));
    assert_ne!(guids(1), guids(2));
    assert!((0..32).any(|seed| guids(seed) > i64::MAX.cast_unsigned()), "some do not fit a sign");
}

/// Takes a snapshot with a caller that dies; gives whether it is there afterwards.
fn taken_by_the_dying(seed: u64, when: When) -> bool {
    let model = Model::with_tank(seed);
    model.must("zfs create -V 16M tank/vm");
    model.crash_at(2, when);
    let look = command(&["list", "-Hp", "-o", "name", "tank/vm"], None);
    assert!(model.run(&command(&["snapshot", "tank/vm@a"], None)).is_ok(), "the first goes well");
    assert!(model.run(&look).is_ok(), "looks do not count");
    let died = model.run(&command(&["snapshot", "tank/vm@b"], None));
    assert!(matches!(died, Err(RunError::Killed { .. })), "{died:?}");
    assert!(model.is_dead());
    assert!(matches!(model.run(&look), Err(RunError::Killed { .. })), "the dead do not look");
    model.restart();
    assert!(model.run(&look).is_ok());
    model.snapshots("tank/vm").len() == 2
}

#[test]
fn a_crash_is_before_inside_or_after() {
    assert!(!taken_by_the_dying(1, When::Before));
    assert!(taken_by_the_dying(1, When::After));
    let inside: Vec<bool> = (0..16).map(|seed| taken_by_the_dying(seed, When::Inside)).collect();
    assert!(inside.contains(&true) && inside.contains(&false), "{inside:?}");
}

#[test]
fn faults_hit_the_command_they_are_for() {
    let model = volume();
    let look = command(&["list", "-Hp", "-o", "name,volsize", "tank/vm"], None);
    let good = model.run(&look).expect("nothing is wrong yet");
    let said = Answer { exit_code: 3, output: b"no".to_vec(), errors: Vec::new() };
    let faults = [
        Fault::Missing,
        Fault::Hang { done: false },
        Fault::Dies { done: false },
        Fault::Empty,
        Fault::Rubbish,
        Fault::NotText,
        Fault::ExtraColumn,
        Fault::Says(said.clone()),
    ];
    for (nth, fault) in (2..).step_by(2).zip(faults) {
        model.fault_at(nth, fault);
    }
    let answers: Vec<_> = (0..16).map(|_| model.run(&look)).collect();
    let outputs: Vec<_> =
        answers.iter().map(|a| a.as_ref().ok().map(|a| a.output.clone())).collect();
    assert!(answers.iter().step_by(2).all(|a| a.as_ref().ok() == Some(&good)), "{answers:?}");
    assert!(matches!(answers[1], Err(RunError::Missing { .. })));
    assert!(matches!(answers[3], Err(RunError::Deadline { seconds: 60, .. })));
    assert!(matches!(answers[5], Err(RunError::Killed { .. })));
    assert_eq!(outputs[7].as_deref(), Some(&b""[..]));
    assert_ne!(outputs[9].as_ref(), Some(&good.output));
    assert!(outputs[11].as_ref().is_some_and(|o| String::from_utf8(o.clone()).is_err()));
    assert_eq!(outputs[13].as_deref(), Some(&b"tank/vm\t16777216\t-\n"[..]));
    assert_eq!(answers[15].as_ref().ok(), Some(&said));
    assert_eq!(model.log().len(), 17);

    for (done, left) in [(true, 0), (false, 1)] {
        let model = volume();
        model.fault_at(1, Fault::Hang { done });
        let hung = model.run(&command(&["program", "-j", "tank", "-", "tank/vm@s"], Some(DESTROY)));
        assert!(matches!(hung, Err(RunError::Deadline { .. })), "{hung:?}");
        assert_eq!(model.snapshots("tank/vm").len(), left);
    }
}

#[test]
fn who_may_not_is_told() {
    let model = volume();
    model.set_access(Access::NoModules);
    assert_eq!(model.typed("zfs list").complaint(), "The ZFS modules are not loaded.");
    model.set_access(Access::User);
    let answer = model.typed("zfs rollback tank/vm@s");
    assert_eq!(answer.complaint(), "cannot rollback 'tank/vm': permission denied");
    assert_eq!(model.content("tank/vm"), Some(map(&[(1, 11), (2, 20)])));
}

#[test]
fn what_it_does_not_know_it_does_not_guess() {
    let unknown = [
        "zfs list tank",
        "zfs list -Hp -o dedup tank/vm",
        "zfs snapshot -Z tank/vm@a",
        "zfs set compression=on tank/vm",
        "zfs receive tank/new",
        "zfs program -j tank /root/file.lua",
    ];
    for line in unknown {
        let model = volume();
        let said = std::panic::catch_unwind(|| model.typed(line)).expect_err(line);
        let said = said.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(said.contains(line), "{said}");
    }
    for text in ["return zfs.sync.promote('tank/vm')", "return os.time()", "return x:y()"] {
        let model = volume();
        let run = || model.typed_with("zfs program -j tank - tank/vm", Some(text));
        assert!(std::panic::catch_unwind(run).is_err(), "{text}");
    }
}
