//! Goal: each component runs in a process of its own, which is replaced when it is lost and ends with
//! the runtime; and where no process can be had it is as the setting says. Method: real processes, of
//! this very program, counted in /proc.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snapslot_command::{Place, PlaceKind};
use snapslot_runtime::{ARGUMENT, Confine, LoadError, Runtime, Sight, serve};

type Case = (&'static str, fn());

/// By itself and one after the other: they count processes.
const CASES: [Case; 4] = [
    ("each component has a process of its own", each_component_has_a_process_of_its_own),
    ("one that is lost is replaced, and no other", one_that_is_lost_is_replaced_and_no_other),
    ("many components share what there may be", many_components_share_what_there_may_be),
    ("without a process it is as the setting says", without_a_process_it_is_as_the_setting_says),
];

fn main() -> ExitCode {
    let told: Vec<String> = std::env::args().skip(1).collect();
    if told == [ARGUMENT] {
        serve();
    }
    for (name, case) in CASES {
        case();
        println!("ok   {name}");
        assert!(children().is_empty(), "{name}: {:?} are left", children());
    }
    println!(
        "test result: ok. {} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out",
        CASES.len()
    );
    ExitCode::SUCCESS
}

/// The processes whose parent this one is.
fn children() -> Vec<i32> {
    let of = |entry: fs::DirEntry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name may have anything in it; behind it stand the state and the parent.
        let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
        let (state, parent) = (rest.next()?, rest.next()?.parse::<u32>().ok()?);
        (state != "Z" && parent == std::process::id()).then_some(pid)
    };
    fs::read_dir("/proc").expect("it").flatten().filter_map(of).collect()
}

fn runtime(scratch: &tempfile::TempDir) -> Runtime {
    let program = std::env::current_exe().expect("this program");
    Runtime::new(scratch.path(), None, &Confine::Apart(program)).expect("a runtime")
}

fn component(name: &str) -> &'static [u8] {
    let found = snapslot_builtin::PLUGINS.iter().find(|p| p.name == name);
    found.expect("a built-in plugin").component
}

fn nowhere() -> Sight {
    let place = Place::parse(PlaceKind::Image, "/nowhere").expect("a place");
    Sight { place, disk: None, commands: None, copies: None }
}

/// Story: one process ran the plugins of all machines, so one that got out of wasm could lie in the name
/// of all others, about disks that it was never granted.
fn each_component_has_a_process_of_its_own() {
    let scratch = tempfile::tempdir().expect("a directory");
    let runtime = runtime(&scratch);
    assert_eq!(children().len(), 1, "the first readies itself");
    let raw = runtime.load(component("raw")).expect("loaded");
    assert_eq!(children().len(), 1, "it was for the first component");
    let qcow2 = runtime.load(component("qcow2")).expect("loaded");
    let both = children();
    assert_eq!(both.len(), 2);
    for _ in 0..3 {
        assert!(raw.inspect(&nowhere()).is_err());
        assert!(qcow2.inspect(&nowhere()).is_err());
        runtime.load(component("raw")).expect("loaded");
    }
    assert_eq!(children(), both, "none came and none went");
    // The same component is the same process, whoever asks, and each asks with grants of its own.
    let again = runtime.load(component("raw")).expect("loaded");
    assert!(again.inspect(&nowhere()).is_err());
    assert_eq!(children(), both);
}

fn one_that_is_lost_is_replaced_and_no_other() {
    let scratch = tempfile::tempdir().expect("a directory");
    let runtime = runtime(&scratch);
    let raw = runtime.load(component("raw")).expect("loaded");
    let first = children();
    let zfs = runtime.load(component("zfs")).expect("loaded");
    let second: Vec<i32> = children().into_iter().filter(|p| !first.contains(p)).collect();
    kill(Pid::from_raw(first[0]), Signal::SIGKILL).expect("killed");
    let told = raw.inspect(&nowhere()).expect_err("it is lost").to_string();
    assert!(told.contains("the process in which it ran"), "{told}");
    let told = raw.inspect(&nowhere()).expect_err("no image").to_string();
    assert!(!told.contains("process"), "a new one answers: {told}");
    assert!(zfs.inspect(&nowhere()).is_err());
    assert!(children().contains(&second[0]) && children().len() == 2);
    runtime.end();
    assert!(children().is_empty());
    assert!(zfs.inspect(&nowhere()).is_err());
    assert_eq!(children().len(), 1, "another call starts one again");
}

fn many_components_share_what_there_may_be() {
    let scratch = tempfile::tempdir().expect("a directory");
    let runtime = runtime(&scratch);
    let mut all = Vec::new();
    for n in 0..20_u8 {
        // A custom section at the end makes it another component that does the same.
        let mut bytes = component("raw").to_vec();
        bytes.extend([0, 3, 1, b'n', n]);
        all.push(runtime.load(&bytes).expect("loaded"));
    }
    assert!(children().len() <= 17, "{} processes", children().len());
    for plugin in &all {
        let told = plugin.inspect(&nowhere()).expect_err("no image").to_string();
        assert!(!told.contains("process"), "{told}");
    }
}

/// Story: where no process could be started, `plugin add` compiled a stranger's component within the
/// engine, with a warning, though it is said that it never does.
fn without_a_process_it_is_as_the_setting_says() {
    let scratch = tempfile::tempdir().expect("a directory");
    let none = PathBuf::from("/nowhere/no-such-program");
    let open = |confine: Confine| Runtime::new(scratch.path(), None, &confine);
    for confine in [Confine::Separately(none.clone()), Confine::Strictly(none.clone())] {
        match open(confine) {
            Err(LoadError::Host(why)) => {
                assert!(why.contains("no process can be started"), "{why}")
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("it went on without one"),
        }
    }
    let within = open(Confine::Apart(none)).expect("within this process");
    assert!(!within.confinement().process);
    within.load(component("raw")).expect("loaded");
    let program = std::env::current_exe().expect("this program");
    let held = open(Confine::Strictly(program)).expect("a runtime").confinement();
    assert!(held.is_whole(), "{held:?}");
}
