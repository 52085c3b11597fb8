//! Goal: each component runs in a process of its own, which is replaced when it is lost and ends with
//! the runtime; and where no process can be had it is as the setting says. Method: real processes, of
//! this very program, counted in /proc.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snapslot_command::{Place, PlaceKind};
use snapslot_disk::{Disk, DiskError, Range};
use snapslot_runtime::{ARGUMENT, Confine, Limits, LoadError, Runtime, Sight, serve};

type Case = (&'static str, fn());

/// By itself and one after the other: they count processes.
const CASES: [Case; 6] = [
    ("each component has a process of its own", each_component_has_a_process_of_its_own),
    ("one that is lost is replaced, and no other", one_that_is_lost_is_replaced_and_no_other),
    ("many components share what there may be", many_components_share_what_there_may_be),
    ("without a process it is as the setting says", without_a_process_it_is_as_the_setting_says),
    ("reading has an end too", reading_has_an_end_too),
    ("a component that never compiles is ended", a_component_that_never_compiles_is_ended),
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

/// A disk on which every read takes its time.
struct Slow(Duration);

impl Disk for Slow {
    fn size(&self) -> Result<u64, DiskError> {
        Ok(1 << 30)
    }

    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        thread::sleep(self.0);
        // The beginning of a qcow2 image of version 3, and of nothing else.
        buf.fill(0);
        let head = [0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3];
        let much = buf.len().min(head.len());
        buf[..much].copy_from_slice(&head[..much]);
        Ok(())
    }

    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        panic!("nothing writes")
    }

    fn extend(&self, _: u64) -> Result<(), DiskError> {
        panic!("nothing grows")
    }

    fn reserve(&self, _: &[Range]) -> Result<bool, DiskError> {
        Ok(false)
    }

    fn release_reserve(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        panic!("nothing is flushed")
    }
}

/// Story: the time of its reads was not counted at all, so a plugin that read for ever was never ended.
fn reading_has_an_end_too() {
    let scratch = tempfile::tempdir().expect("a directory");
    let program = std::env::current_exe().expect("this program");
    let limits = Limits { waiting: Duration::from_millis(50), ..Limits::default() };
    for confine in [Confine::Apart(program), Confine::Here] {
        let runtime = Runtime::limited(scratch.path(), limits, &confine).expect("a runtime");
        let qcow2 = runtime.load(component("qcow2")).expect("loaded");
        let disk: Arc<dyn Disk> = Arc::new(Slow(Duration::from_millis(150)));
        let sight = Sight { disk: Some(disk), ..nowhere() };
        let told = qcow2.inspect(&sight).expect_err("it is ended").to_string();
        assert!(told.contains("had the host read for longer than 50ms"), "{told}");
    }
}

/// A module that takes the compiler longer than a plugin has: functions of megabytes, each of many values
/// that live at once.
fn compile_bomb() -> Vec<u8> {
    let number = |mut n: usize| {
        let mut bytes = Vec::new();
        while n > 0x7f {
            bytes.push((n & 0x7f) as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes
    };
    // Two hundred locals of 64 bits, each set from the one before and the first, again and again.
    let mut body = vec![1, 0xc8, 0x01, 0x7e];
    for n in 0..800_000_usize {
        let (from, to) = (number(n % 199), number((n * 7 + 1) % 199));
        body.extend([&[0x20][..], &from, &[0x20], &to, &[0x7e, 0x21], &to].concat());
    }
    body.push(0x0b);
    let bodies: Vec<u8> = [number(body.len()), body].concat().repeat(8);
    let code = [number(8), bodies].concat();
    let section = |id: u8, content: &[u8]| [&[id][..], &number(content.len()), content].concat();
    let functions = [number(8), vec![0; 8]].concat();
    let sections = [section(1, &[1, 0x60, 0, 0]), section(3, &functions), section(10, &code)];
    let module = [b"\0asm\x01\0\0\0".to_vec(), sections.concat()].concat();
    [component("raw").to_vec(), section(1, &module)].concat()
}

fn a_component_that_never_compiles_is_ended() {
    let scratch = tempfile::tempdir().expect("a directory");
    let program = std::env::current_exe().expect("this program");
    // Compiled and kept beforehand: the short time below is meant for the bomb alone.
    runtime(&scratch).load(component("raw")).expect("loaded");
    let limits = Limits { compiling: Duration::from_secs(2), ..Limits::default() };
    let runtime = Runtime::limited(scratch.path(), limits, &Confine::Apart(program)).expect("it");
    let begun = Instant::now();
    let told = match runtime.load(&compile_bomb()) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("it compiled: the bomb is none on this machine"),
    };
    assert!(told.contains("did not answer in time and was ended"), "{told}");
    assert!(begun.elapsed() < Duration::from_secs(60), "it took {:?}", begun.elapsed());
    assert!(children().is_empty(), "it compiles still");
    // Others are served.
    runtime.load(component("raw")).expect("loaded");
}
