//! The model of LVM is held against what was recorded of the real one, and its own promises:
//! crashes, faults, content, and that it never guesses.
//!
//! Method: recordings of LVM 2.03.16 are replayed command by command (`lvm_model/replay.rs`);
//! the rest are small scenes on a model of their own. Nothing here needs LVM or root.

#[path = "lvm_model/replay.rs"]
mod replay;

use std::collections::BTreeMap;
use std::time::Duration;

use snapslot_command::{Command, Executor, RunError};
use snapslot_testkit::storage::lvm::{Fault, GuestError, Lvm, When};

const RECORDINGS: [(&str, &str); 4] = [
    ("lvm-lifecycle", include_str!("transcripts/lvm-lifecycle.txt")),
    ("lvm-restore-and-limits", include_str!("transcripts/lvm-restore-and-limits.txt")),
    ("lvm-errors", include_str!("transcripts/lvm-errors.txt")),
    // The plugin's own commands: made anew by `tests/real/run --record` whenever one changes.
    ("tests/real/transcripts/lvm", include_str!("../../../tests/real/transcripts/lvm.txt")),
];
/// Commands that were compared when this was written; fewer means that the replay lost some.
const LEAST_COMPARED: usize = 450;

#[test]
fn the_model_says_what_was_recorded() {
    let mut compared = 0;
    let mut differences = Vec::new();
    for (name, text) in RECORDINGS {
        let counts = replay::replay(name, text);
        let skipped: usize = counts.skipped.values().sum();
        println!("{name}: {} compared, {skipped} skipped: {:?}", counts.compared, counts.skipped);
        compared += counts.compared;
        differences.extend(counts.differences);
    }
    assert!(differences.is_empty(), "{} differ:\n{}", differences.len(), differences.join("\n\n"));
    assert!(compared >= LEAST_COMPARED, "only {compared} commands were compared");
}

/// A replay that compares nothing would pass too: a changed recording must not.
#[test]
fn a_changed_recording_is_noticed() {
    let (name, text) = RECORDINGS[0];
    for (from, to) in [
        ("swi-a-s---", "swi-a-s--k"),
        ("\"lv_size\":\"67108864\"", "\"lv_size\":\"67108865\""),
        ("-n vm1 vg   -> rc=5", "-n vm1 vg   -> rc=0"),
        ("already exists", "is there"),
        ("12.60", "14.60"),
        ("c01c421351  /dev/vg/vm1_s", "c01c421352  /dev/vg/vm1_s"),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from} is not in the recording");
        let counts = replay::replay(name, &changed);
        assert!(!counts.differences.is_empty(), "nobody noticed {to} for {from}");
    }
}

/// A group with a thin pool of 128 MiB and a thin volume of 16 MiB.
fn thin() -> Lvm {
    let lvm = Lvm::new(7);
    lvm.add_group("vg", 512 << 20);
    lvm.stage("lvcreate -y --type thin-pool -L 128M --poolmetadatasize 4M -n pool vg");
    lvm.stage("lvcreate -y -V 16M --thinpool pool -n vm vg");
    lvm
}

/// A group with a thick volume of 16 MiB.
fn thick() -> Lvm {
    let lvm = Lvm::new(7);
    lvm.add_group("vg", 512 << 20);
    lvm.stage("lvcreate -y -L 16M -n vm vg");
    lvm
}

fn command(line: &str) -> Command {
    let mut words = line.split_whitespace().map(str::to_owned);
    Command {
        program: words.next().expect("a program"),
        arguments: words.collect(),
        input: None,
        deadline: Duration::from_secs(9),
    }
}

/// Runs it as the engine does; its standard output.
#[track_caller]
fn good(lvm: &Lvm, line: &str) -> String {
    let answer = lvm.run(&command(line)).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(answer.exit_code, 0, "`{line}`: {}", answer.complaint());
    String::from_utf8(answer.output).expect("text")
}

#[track_caller]
fn write(lvm: &Lvm, volume: &str, blocks: &[(u64, u64)]) {
    for &(block, value) in blocks {
        lvm.guest_write(volume, block, value).expect("written");
    }
}

fn map(blocks: &[(u64, u64)]) -> Option<BTreeMap<u64, u64>> {
    Some(blocks.iter().copied().collect())
}

#[test]
fn the_same_commands_give_the_same_answers() {
    let look =
        "lvs -a --units b --nosuffix --reportformat json -o lv_name,lv_uuid,lv_time,vg_uuid vg";
    assert_eq!(good(&thin(), look), good(&thin(), look));
    let other = Lvm::new(8);
    other.add_group("vg", 512 << 20);
    other.stage("lvcreate -y -L 16M -n vm vg");
    assert_ne!(other.field("vg/vm", "lv_uuid"), thick().field("vg/vm", "lv_uuid"));
}

/// What the LVM backend looks at.
const LOOK: &[&str] = &[
    "lvs",
    "-a",
    "--units",
    "b",
    "--nosuffix",
    "--reportformat",
    "json",
    "--config",
    "report/time_format=\"%s\" report/list_item_separator=\",\"",
    "-o",
    "vg_name,vg_free,vg_extent_size,lv_name,lv_uuid,lv_size,lv_attr,lv_layout,lv_role,lv_tags,\
     lv_time,lv_active,lv_device_open,lv_skip_activation,lv_health_status,lv_snapshot_invalid,\
     lv_merging,lv_merge_failed,origin,pool_lv,data_percent,metadata_percent,snap_percent,\
     lv_autoactivation",
    "vg",
];

fn look(lvm: &Lvm) -> String {
    let answer = lvm.words(LOOK);
    assert_eq!(answer.exit_code, 0, "{}", answer.complaint());
    String::from_utf8(answer.output).expect("text")
}

/// All commands of the LVM backend, in an order in which they work; each leaves what it is for.
#[test]
fn it_knows_the_commands_of_the_backend() {
    let mark = "0123456789abcdef";
    let lvm = thin();
    lvm.stage("lvchange --addtag theirs vg/vm");
    write(&lvm, "vg/vm", &[(0, 1)]);
    let slot = format!("vm_snapslot_{mark}");
    good(
        &lvm,
        &format!(
            "lvcreate -y -s -pr -ky -n {slot} --addtag snapslot.mark={mark} --addtag snapslot.taken=5.7 vg/vm"
        ),
    );
    write(&lvm, "vg/vm", &[(0, 2)]);
    assert!(
        look(&lvm).contains(&format!("\"lv_tags\":\"snapslot.mark={mark},snapslot.taken=5.7\""))
    );
    for line in [
        format!(
            "lvcreate -y -s -prw -kn -n vm_snapslot_new --addtag snapslot.new={mark} vg/{slot}"
        ),
        "lvchange --addtag theirs vg/vm_snapslot_new".to_owned(),
        "lvchange -pr vg/vm_snapslot_new".to_owned(),
        "lvchange -ky vg/vm_snapslot_new".to_owned(),
        "lvchange --setautoactivation n vg/vm_snapslot_new".to_owned(),
        format!("lvchange --addtag snapslot.old={mark} vg/vm"),
        "lvrename vg vm vm_snapslot_old".to_owned(),
        "lvrename vg vm_snapslot_new vm".to_owned(),
        format!(
            "lvremove -y --select lv_uuid={} vg/vm_snapslot_old",
            lvm.field("vg/vm", "lv_uuid")
        ),
        format!("lvchange --deltag snapslot.new={mark} --deltag snapslot.old={mark} vg/vm"),
    ] {
        good(&lvm, &line);
        look(&lvm);
    }
    assert_eq!(lvm.content("vg/vm"), map(&[(0, 1)]));
    assert_eq!(lvm.field("vg/vm", "lv_attr"), "Vri-a-tz-k");
    assert_eq!(lvm.field("vg/vm", "lv_tags"), "theirs");
    assert_eq!(lvm.field("vg/vm", "origin"), slot);
    assert!(!lvm.names("vg").contains(&"vm_snapslot_old".to_owned()));

    let lvm = thick();
    write(&lvm, "vg/vm", &[(0, 1)]);
    lvm.stage("lvchange -an vg/vm");
    let take = format!(
        "lvcreate -y -s -L 20971520b -n {slot} --addtag snapslot.mark={mark} --addtag snapslot.taken=5.7 vg/vm"
    );
    good(&lvm, &take);
    // The kernel is not asked about a store that is not active.
    assert!(!look(&lvm).contains("snapshot invalid"));
    good(&lvm, "lvchange -ay -K vg/vm");
    assert!(!look(&lvm).contains("snapshot invalid"));
    write(&lvm, "vg/vm", &[(0, 2)]);
    for line in [
        format!(
            "lvchange --addtag snapslot.restoring={mark} --addtag snapslot.inactive={mark} vg/vm"
        ),
        format!("lvconvert -y -i 1 --merge vg/{slot}"),
        take,
        "lvchange --refresh vg/vm".to_owned(),
        "lvchange -an vg/vm".to_owned(),
        format!(
            "lvchange --deltag snapslot.restoring={mark} --deltag snapslot.inactive={mark} vg/vm"
        ),
    ] {
        good(&lvm, &line);
        look(&lvm);
    }
    assert_eq!(lvm.content("vg/vm"), map(&[(0, 1)]));
    assert_eq!(lvm.content(&format!("vg/{slot}")), map(&[(0, 1)]));
    assert_eq!(lvm.field("vg/vm", "lv_attr"), "owi---s---");
}

/// A command that was ended while it changed tables can leave a device suspended.
#[test]
fn a_suspended_volume_is_seen_and_refreshed() {
    for by in ["lvchange --refresh vg/vm", "lvchange -ay vg/vm"] {
        let lvm = thick();
        lvm.suspend("vg/vm");
        assert_eq!(lvm.field("vg/vm", "lv_attr"), "-wi-s-----");
        good(&lvm, by);
        assert_eq!(lvm.guest_write("vg/vm", 0, 1), Ok(()), "{by}");
    }
}

/// All crash points of a thin restore, typed out: at each, the old content or the snapshot's is
/// there under one of the three names, and the snapshot itself is whole.
#[test]
fn a_thin_restore_that_crashes_anywhere_loses_nothing() {
    let plan = [
        "lvcreate -y -s -prw -kn -n vm_new vg/vm_slot",
        "lvchange --addtag a=b vg/vm_new",
        "lvrename vg vm vm_old",
        "lvrename vg vm_new vm",
        "lvremove -y vg/vm_old",
    ];
    let (old, new) = ([(0, 1), (100, 2)], [(0, 9), (100, 2), (4000, 3)]);
    let mut seen = Vec::new();
    for n in 1..=plan.len() as u64 {
        for when in [When::Before, When::Inside, When::After] {
            let lvm = thin();
            write(&lvm, "vg/vm", &old);
            lvm.stage("lvcreate -y -s -pr -n vm_slot vg/vm");
            write(&lvm, "vg/vm", &new);
            lvm.crash_at(n, when);
            let ran = plan.iter().take_while(|line| lvm.run(&command(line)).is_ok()).count();
            let place = format!("crash_at({n}, {when:?})");
            assert_eq!(ran as u64, n - 1, "{place}");
            assert!(lvm.crashed(), "{place}");
            let dead = lvm.run(&command("lvs vg"));
            assert!(matches!(dead, Err(RunError::Killed { .. })), "{place}: {dead:?}");
            lvm.restart();
            assert_eq!(lvm.content("vg/vm_slot"), map(&old), "{place}");
            let names = lvm.names("vg");
            let has = |name: &str| names.iter().any(|n| n == name);
            let (first, last) = match (has("vm"), has("vm_old")) {
                (true, true) => (lvm.content("vg/vm"), lvm.content("vg/vm_old")),
                (true, false) => (lvm.content("vg/vm"), None),
                (false, true) => (None, lvm.content("vg/vm_old")),
                (false, false) => panic!("{place}: there is no volume: {names:?}"),
            };
            let whole = [map(&old), map(&new), None];
            assert!(whole.contains(&first) && whole.contains(&last), "{place}: {first:?} {last:?}");
            seen.push(names);
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 4, "the states a crash can leave: {seen:#?}");
}

/// A thick snapshot is made and removed in two commits. Between them its store is a volume like
/// any other, under the snapshot's name and with its tags.
#[test]
fn half_a_thick_snapshot_is_a_plain_volume() {
    let lvm = thick();
    write(&lvm, "vg/vm", &[(0, 1)]);
    let take = "lvcreate -y -s -L 8M -n vm_s --addtag snapslot.mark=0123456789abcdef vg/vm";
    lvm.crash_at(1, When::Inside);
    lvm.run(&command(take)).expect_err("dead");
    lvm.restart();
    let expect_plain = || {
        assert_eq!(lvm.field("vg/vm_s", "origin"), "");
        assert_eq!(lvm.field("vg/vm_s", "lv_attr"), "-wi-a-----");
        assert_eq!(lvm.field("vg/vm_s", "lv_tags"), "snapslot.mark=0123456789abcdef");
        assert_eq!(lvm.field("vg/vm", "lv_attr"), "-wi-a-----");
    };
    expect_plain();
    good(&lvm, "lvremove -y vg/vm_s");
    good(&lvm, take);
    assert_eq!(lvm.field("vg/vm_s", "lv_attr"), "swi-a-s---");
    lvm.crash_at(1, When::Inside);
    lvm.run(&command("lvremove -y vg/vm_s")).expect_err("dead");
    lvm.restart();
    expect_plain();
}

/// A merge that is cut off shows its outcome, and the kernel copies on; its snapshot does not go by
/// itself. A refresh has somebody see to that, and a restart of the machine too.
#[test]
fn a_merge_that_is_cut_off_is_ended_by_who_asks() {
    for by in ["lvchange --refresh vg/vm", "lvchange -ay vg/vm", "reboot"] {
        let lvm = thick();
        write(&lvm, "vg/vm", &[(0, 1), (9, 1)]);
        lvm.stage("lvcreate -y -s -L 8M -n vm_s vg/vm");
        write(&lvm, "vg/vm", &[(0, 2), (8, 2)]);
        lvm.slow_merges(2);
        lvm.crash_at(1, When::Inside);
        lvm.run(&command("lvconvert -y -i 1 --merge vg/vm_s")).expect_err("dead");
        lvm.restart();
        assert_eq!(lvm.field("vg/vm", "snap_percent"), "50.00", "{by}");
        for _ in 0..5 {
            assert_eq!(lvm.names("vg"), ["vm", "[vm_s]"], "{by}");
        }
        // The kernel is through by then; what is left is to take the snapshot out of the metadata.
        assert_eq!(lvm.field("vg/vm", "snap_percent"), "0.00", "{by}");
        assert_eq!(lvm.field("vg/vm", "lv_merging"), "merging");
        assert_eq!(lvm.content("vg/vm"), map(&[(0, 1), (9, 1)]), "{by}");
        let refused = lvm.hand("lvcreate -y -s -L 8M -n other vg/vm");
        assert_eq!(refused.exit_code, 5);
        match by {
            "reboot" => lvm.reboot(),
            line => drop(good(&lvm, line)),
        }
        let looks = (0..9).take_while(|_| lvm.names("vg").len() > 1).count();
        assert_eq!(looks, 0, "{by}");
        assert_eq!(lvm.content("vg/vm"), map(&[(0, 1), (9, 1)]), "{by}");
        assert_eq!(lvm.field("vg/vm", "lv_attr"), "-wi-a-----", "{by}");
    }
}

/// An open origin puts a merge off, with exit code 0; refreshing does nothing while it is open.
#[test]
fn a_merge_that_is_put_off_waits_for_the_last_opener() {
    let lvm = thick();
    write(&lvm, "vg/vm", &[(0, 1)]);
    lvm.stage("lvcreate -y -s -L 8M -n vm_s vg/vm");
    lvm.open("vg/vm");
    write(&lvm, "vg/vm", &[(0, 2)]);
    assert!(good(&lvm, "lvconvert -y --merge vg/vm_s").contains("Delaying merge"));
    good(&lvm, "lvchange --refresh vg/vm");
    assert_eq!(lvm.field("vg/vm", "lv_attr"), "Owi-aos---");
    write(&lvm, "vg/vm", &[(0, 3)]);
    lvm.close("vg/vm");
    assert_eq!(lvm.content("vg/vm"), map(&[(0, 3)]));
    good(&lvm, "lvchange --refresh vg/vm");
    assert_eq!(lvm.content("vg/vm"), map(&[(0, 1)]));
    assert_eq!(lvm.names("vg"), ["vm"]);
}

/// What is named by UUID is left alone once another volume has the name.
#[test]
fn a_selection_is_a_check_and_an_act_in_one() {
    let lvm = thin();
    lvm.stage("lvcreate -y -s -kn -n vm_s vg/vm");
    let uuid = lvm.field("vg/vm_s", "lv_uuid");
    lvm.stage("lvremove -y vg/vm_s");
    lvm.stage("lvcreate -y -s -kn -n vm_s vg/vm");
    let other = lvm.field("vg/vm_s", "lv_uuid");
    assert_eq!(good(&lvm, &format!("lvremove -y --select lv_uuid={uuid} vg/vm_s")), "");
    assert_eq!(lvm.field("vg/vm_s", "lv_uuid"), other);
    let idle = "lvs --noheadings -o lv_uuid --select lv_device_open!=open vg/vm_s";
    assert_eq!(good(&lvm, idle).trim(), other);
    lvm.open("vg/vm_s");
    assert_eq!(good(&lvm, idle).trim(), "");
    lvm.close("vg/vm_s");
    let removed = good(&lvm, &format!("lvremove -y --select lv_uuid={other} vg/vm_s"));
    assert_eq!(removed, "  Logical volume \"vm_s\" successfully removed.\n");
}

#[test]
fn content_without_room_is_lost_as_it_is_for_real() {
    let lvm = thick();
    lvm.stage("lvcreate -y -s -L 4M -n vm_s vg/vm");
    // 1,024 chunks: a header, lists of 256, and what fits besides.
    for block in 0..1018 {
        lvm.guest_write("vg/vm", block, 5).expect("the origin takes all");
        assert!(lvm.content("vg/vm_s").is_some(), "after block {block}");
    }
    for block in 1018..1024 {
        lvm.guest_write("vg/vm", block, 5).expect("the origin takes all");
    }
    assert_eq!(lvm.content("vg/vm_s"), None);
    assert_eq!(lvm.guest_read("vg/vm_s", 0), Err(GuestError::Io));
    assert_eq!(lvm.field("vg/vm_s", "lv_attr"), "swi-I-s---");

    let lvm = thin();
    lvm.occupy_pool("vg/pool", 127 << 20);
    for block in 0..256 {
        lvm.guest_write("vg/vm", block, 5).expect("a MiB is left");
    }
    assert_eq!(lvm.field("vg/pool", "lv_health_status"), "");
    assert_eq!(lvm.guest_write("vg/vm", 256, 5), Err(GuestError::Io));
    assert_eq!(lvm.field("vg/pool", "lv_attr"), "twi-aotzD-");
    assert_eq!(lvm.guest_write("vg/vm", 255, 6), Ok(()));
    let refused = lvm.hand("lvcreate -y -s -n vm_s vg/vm");
    assert!(refused.complaint().contains("out of data space"), "{}", refused.complaint());
    lvm.guest_discard("vg/vm");
    assert_eq!(lvm.field("vg/pool", "lv_attr"), "twi-aotz--");

    let lvm = thin();
    lvm.occupy_pool_metadata("vg/pool", 65);
    let refused = lvm.hand("lvcreate -y -s -n vm_s vg/vm");
    assert_eq!(refused.exit_code, 5);
    assert!(refused.complaint().contains(">= 75.00%"), "{}", refused.complaint());
}

#[test]
fn the_machine_meets_permission_activation_and_size() {
    let lvm = thin();
    write(&lvm, "vg/vm", &[(1, 1)]);
    lvm.stage("lvcreate -y -s -pr -kn -n ro vg/vm");
    assert_eq!(lvm.guest_write("vg/ro", 0, 1), Err(GuestError::ReadOnly));
    assert_eq!(lvm.guest_read("vg/ro", 1), Ok(1));
    assert_eq!(lvm.guest_read("vg/vm", 4096), Err(GuestError::PastEnd));
    lvm.stage("lvchange -an vg/vm");
    assert_eq!(lvm.guest_read("vg/vm", 0), Err(GuestError::NoDevice));
    assert_eq!(lvm.field("vg/vm", "lv_device_open"), "unknown");
    lvm.stage("lvchange -ky vg/vm");
    lvm.stage("lvchange --setautoactivation n vg/ro");
    lvm.reboot();
    assert_eq!(lvm.field("vg/vm", "lv_active"), "");
    assert_eq!(lvm.field("vg/ro", "lv_active"), "");
    assert_eq!(lvm.field("vg/pool", "lv_active"), "active");
}

/// A thin volume on a read-only one outside of the pool shows it where nothing was written.
#[test]
fn an_external_origin_shows_through() {
    let lvm = thin();
    lvm.stage("lvcreate -y -L 16M -n base vg");
    write(&lvm, "vg/base", &[(0, 1), (1, 2), (50, 3)]);
    lvm.stage("lvchange -an vg/base");
    lvm.stage("lvchange -pr vg/base");
    lvm.stage("lvcreate -y -s --thinpool vg/pool -n top vg/base");
    write(&lvm, "vg/top", &[(1, 9)]);
    lvm.stage("lvcreate -y -s -kn -n top_s vg/top");
    write(&lvm, "vg/top", &[(50, 8)]);
    assert_eq!(lvm.content("vg/top"), map(&[(0, 1), (1, 9), (50, 8)]));
    assert_eq!(lvm.content("vg/top_s"), map(&[(0, 1), (1, 9), (50, 3)]));
    assert_eq!(lvm.content("vg/base"), map(&[(0, 1), (1, 2), (50, 3)]));
}

/// Each fault comes once, at the command it was asked for.
#[test]
fn faults_come_where_they_are_asked_for() {
    let take = "lvcreate -y -s -n vm_s vg/vm";
    let cases: [(Fault, bool); 10] = [
        (Fault::Hangs(When::Before), false),
        (Fault::Hangs(When::Inside), true),
        (Fault::Hangs(When::After), true),
        (Fault::Dies(When::Before), false),
        (Fault::Dies(When::After), true),
        (Fault::Silent, true),
        (Fault::Prints(b"rubbish".to_vec()), true),
        (Fault::Prints(vec![0xff, 0xfe]), true),
        (Fault::Fails(5, "  no.\n".to_owned()), false),
        (Fault::Missing, false),
    ];
    for (fault, done) in cases {
        let lvm = thin();
        lvm.fault_at(2, fault.clone());
        good(&lvm, "lvs vg");
        let came = lvm.run(&command(take));
        let right = match (&fault, &came) {
            (Fault::Hangs(_), Err(RunError::Deadline { seconds: 9, command })) => command == take,
            (Fault::Dies(_), Err(RunError::Killed { signal: 11, .. })) => true,
            (Fault::Silent, Ok(answer)) => answer.output.is_empty() && answer.exit_code == 0,
            (Fault::Prints(text), Ok(answer)) => answer.output == *text,
            (Fault::Fails(..), Ok(answer)) => answer.exit_code == 5 && answer.complaint() == "no.",
            (Fault::Missing, Err(RunError::Missing { program, .. })) => program == "lvcreate",
            _ => false,
        };
        assert!(right, "{fault:?}: {came:?}");
        let there = lvm.names("vg").contains(&"vm_s".to_owned());
        assert_eq!(there, done, "{fault:?}");
        good(&lvm, "lvs vg");
        assert_eq!(lvm.log(), ["lvs vg", take, "lvs vg"]);
        assert_eq!(lvm.changes(), 1);
    }
}

#[test]
#[should_panic(expected = "does not know the option --resizefs: lvchange --resizefs vg/vm")]
fn an_option_it_does_not_know_is_a_panic() {
    let _ = thick().run(&command("lvchange --resizefs vg/vm"));
}

#[test]
#[should_panic(expected = "does not know the field lv_modules: lvs -o lv_modules vg")]
fn a_field_it_does_not_know_is_a_panic() {
    let _ = thick().run(&command("lvs -o lv_modules vg"));
}

#[test]
#[should_panic(expected = "does not know the program vgreduce")]
fn a_program_it_does_not_know_is_a_panic() {
    let _ = thick().run(&command("vgreduce vg"));
}
