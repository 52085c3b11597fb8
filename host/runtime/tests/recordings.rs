//! Goal: a recording gives a plugin again all that it heard, failures as well, in their order and with
//! the grants it had; and what is no recording, or means harm, is refused. Method: built-in plugins over a
//! storage that fails in every way there is, recorded in one process and asked again in this one.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use snapslot_command::{Answer, Command, Executor, Place, PlaceKind, RunError};
use snapslot_disk::{Disk, DiskError, Doing, Range};
use snapslot_runtime::{
    ARGUMENT, Confine, Goal, NewSnapshot, Recording, Runtime, Sight, View, read_recording, serve,
};

/// Is the process that runs plugins, where this program was started as that; otherwise nothing.
#[test]
fn __plugins() {
    let told: Vec<String> = std::env::args().skip(1).collect();
    if told == [ARGUMENT] {
        serve();
    }
}

fn apart() -> Confine {
    Confine::Apart(std::env::current_exe().expect("this program"))
}

fn component(name: &str) -> &'static [u8] {
    let found = snapslot_builtin::PLUGINS.iter().find(|p| p.name == name);
    found.expect("a built-in plugin").component
}

type Ran = Result<Answer, RunError>;

/// Tools that say each of these once, in order, and then nothing any more.
struct Script(Mutex<Vec<Ran>>);

impl Executor for Script {
    fn run(&self, command: &Command) -> Ran {
        let mut left = self.0.lock().expect("it");
        match left.is_empty() {
            true => Err(RunError::Missing {
                program: command.program.clone(),
                why: "has nothing more to say".to_owned(),
            }),
            false => left.remove(0),
        }
    }
}

/// An image that reads as this, or fails.
struct Faulty(Vec<u8>, Option<i32>);

impl Disk for Faulty {
    fn size(&self) -> Result<u64, DiskError> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        if let Some(errno) = self.1 {
            let source = io::Error::from_raw_os_error(errno);
            return Err(DiskError::io("the disk", Doing::Read, source));
        }
        let from = usize::try_from(offset).ok().filter(|from| *from <= self.0.len());
        let part = from.and_then(|from| self.0.get(from..from.checked_add(buf.len())?));
        let Some(part) = part else {
            return Err(DiskError::OutOfBounds {
                name: "the disk".to_owned(),
                size: self.0.len() as u64,
                offset,
                length: buf.len() as u64,
            });
        };
        buf.copy_from_slice(part);
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

fn sight(kind: PlaceKind, place: &str, disk: Option<Faulty>, script: Vec<Ran>) -> Sight {
    Sight {
        place: Place::parse(kind, place).expect("a place"),
        disk: disk.map(|d| Arc::new(d) as Arc<dyn Disk>),
        commands: Some(Arc::new(Script(Mutex::new(script)))),
        copies: None,
    }
}

fn held() -> Goal {
    Goal::Held(NewSnapshot {
        mark: "0123456789abcdef".to_owned(),
        taken_seconds: 1,
        taken_nanoseconds: 2,
        room: None,
        beside: 0,
        full_copy: false,
    })
}

fn said(output: &str, errors: &str, exit_code: i32) -> Ran {
    Ok(Answer { exit_code, output: output.into(), errors: errors.into() })
}

/// One `zfs list` of a volume without snapshots, in the order of the plugin's columns.
const ROW: &str = "tank/vm1\tvolume\t1234\t10\t1700000000\t4096\t4096\t4096\t1000000\t1048576\t-\t0\t0\t-\t-\t\
                   -\t-\toff\t-\t-\t-\t-\t-\n";

/// Every call of a recording, asked again here: what it answered then and what it answers now.
fn replayed(file: &Path) -> Vec<(&'static str, Value, Value)> {
    let scratch = tempfile::tempdir().expect("a directory");
    let runtime = Runtime::new(scratch.path(), None, &Confine::Here).expect("a runtime");
    let calls = read_recording(file).expect("a recording");
    (calls.iter())
        .map(|call| {
            let bytes = component(&call.plugin);
            let plugin = runtime.load_without(bytes, &call.denied).expect("loaded");
            assert_eq!(plugin.digest(), call.digest);
            (call.call, call.result.clone(), plugin.replay(call))
        })
        .collect()
}

#[test]
fn failures_are_heard_again_as_they_were() {
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("bug.jsonl");
    let recording = Recording::begin(&file).expect("begun");
    let runtime = Runtime::new(&scratch.path().join("cache"), None, &apart()).expect("a runtime");
    let runtime = runtime.recording(Some(recording));
    let failures: [fn() -> Ran; 6] = [
        || Err(RunError::Missing { program: "zfs".to_owned(), why: "is not here".to_owned() }),
        || {
            let source = io::Error::from_raw_os_error(13);
            Err(RunError::Start { program: "zfs".to_owned(), source })
        },
        || Err(RunError::Deadline { command: "zfs list".to_owned(), seconds: 60 }),
        || Err(RunError::TooMuch { command: "zfs list".to_owned(), limit: 7 }),
        || Err(RunError::Killed { command: "zfs list".to_owned(), signal: 9 }),
        || said("", "cannot open 'tank/vm1': dataset does not exist\n", 1),
    ];
    let zfs = runtime.load(component("zfs")).expect("loaded");
    let mut then = 0;
    for failure in failures {
        let sight = sight(PlaceKind::ZfsDataset, "tank/vm1", None, vec![failure()]);
        assert!(zfs.inspect(&sight).is_err());
        then += 1;
    }
    // One query, twice in a call, answered otherwise the second time: the older LVM does not know a field.
    let lvm = runtime.load(component("lvm")).expect("loaded");
    let script = vec![said("", "  Unrecognised field: lv_autoactivation\n", 3), said("{}", "", 0)];
    let _ = lvm.inspect(&sight(PlaceKind::LvmVolume, "vg0/vm1", None, script));
    let good = vec![said(ROW, "", 0), said(ROW, "", 0)];
    let good = sight(PlaceKind::ZfsDataset, "tank/vm1", None, good);
    assert!(zfs.inspect(&good).is_ok() && zfs.plan(&good, &held()).is_ok());
    then += 3;
    let qcow2 = runtime.load(component("qcow2")).expect("loaded");
    for disk in
        [Faulty(vec![1; 40], None), Faulty(vec![0; 4096], Some(5)), Faulty(vec![7; 4096], None)]
    {
        let sight = sight(PlaceKind::Image, "/srv/vm1.qcow2", Some(disk), Vec::new());
        assert!(qcow2.inspect(&sight).is_err());
        assert!(qcow2.extents(&sight, &View::Current, 0, 16).is_err());
        then += 2;
    }
    let replayed = replayed(&file);
    let described = replayed.iter().filter(|(call, ..)| *call == "describe").count();
    assert_eq!((described, replayed.len()), (3, 3 + then));
    let mut kinds = std::collections::BTreeSet::new();
    for (n, (call, then, now)) in replayed.iter().enumerate() {
        assert_eq!(then, now, "call {n}, {call}");
        kinds.extend(then["refused"]["code"].as_str().map(str::to_owned));
    }
    println!("{} calls, {kinds:?}", replayed.len());
    // The plan is there step by step.
    let plan = replayed.iter().find(|(call, ..)| *call == "plan").expect("a plan");
    let command = plan.1["plan"]["steps"][0]["command"].as_str().expect("a command");
    assert!(command.starts_with("zfs snapshot "), "{command}");
}

#[test]
fn what_was_not_granted_is_not_had_again() {
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("bug.jsonl");
    let runtime = Runtime::new(&scratch.path().join("cache"), None, &Confine::Here).expect("it");
    let runtime = runtime.recording(Some(Recording::begin(&file).expect("begun")));
    let denied = ["action take".to_owned(), "no such grant".to_owned()];
    let zfs = runtime.load_without(component("zfs"), &denied).expect("loaded");
    let there = vec![said(ROW, "", 0)];
    let there = sight(PlaceKind::ZfsDataset, "tank/vm1", None, there);
    let told = zfs.plan(&there, &held()).expect_err("it has no grant").to_string();
    assert!(told.contains("no grant for the action take"), "{told}");
    assert!(told.contains("the plugin zfs"), "{told}");
    // Story: a denial named the grant, and nobody could tell which command that was.
    assert!(told.contains("`zfs snapshot -o snapslot:mark={mark} "), "{told}");
    assert!(told.contains("`--with 'action take'`"), "{told}");
    let calls = read_recording(&file).expect("a recording");
    assert!(calls.iter().all(|c| c.denied == ["action take"]));
    for (call, then, now) in replayed(&file) {
        assert_eq!(then, now, "{call}");
    }
}

#[test]
fn what_is_no_recording_is_refused() {
    let scratch = tempfile::tempdir().expect("a directory");
    let file = scratch.path().join("bug.jsonl");
    let runtime = Runtime::new(&scratch.path().join("cache"), None, &Confine::Here).expect("it");
    let runtime = runtime.recording(Some(Recording::begin(&file).expect("begun")));
    let zfs = runtime.load(component("zfs")).expect("loaded");
    let there = || sight(PlaceKind::ZfsDataset, "tank/vm1", None, vec![said(ROW, "", 0)]);
    zfs.inspect(&there()).expect("facts");
    let sound = fs::read_to_string(&file).expect("text");
    let digest = zfs.digest().to_owned();
    let bad = scratch.path().join("bad.jsonl");
    let refused = |text: &str, why: &str| {
        fs::write(&bad, text).expect("written");
        match read_recording(&bad) {
            Err(told) => {
                assert!(told.contains(why), "{why}: {told}");
                assert!(!told.chars().any(char::is_control), "{told:?}");
            }
            Ok(_) => panic!("{why}: it was taken"),
        }
    };
    let changed = |from: &str, to: &str| {
        let text = sound.replace(from, to);
        assert_ne!(text, sound, "{from}");
        text
    };
    for name in ["/etc/passwd", "../zfs", "./x.wasm", "", "zfs\\u001b[2J", "Zfs"] {
        refused(&changed("\"plugin\":\"zfs\"", &format!("\"plugin\":\"{name}\"")), "no plugin");
    }
    refused(&changed(&digest, "\\u001b]0;mine\\u0007"), "no plugin and digest");
    refused(&changed("tank/vm1\",\"call\"", "tank/../vm1\",\"call\""), "not a ZFS dataset");
    refused(&changed("\"cut\":false", "\"cut\":true"), "more was heard");
    refused(&changed("snapslot-recording/2", "snapslot-recording/1"), "no recording");
    refused(&sound[..sound.len() - 5], "cut off");
    refused("", "no recording");
    // Terabytes of zeroes in a line: said to be so many, they would be made.
    let heard = format!("\"zeroes\":{}", 1_u64 << 40);
    refused(&changed("\"errors\":{\"zeroes\":0", &format!("\"errors\":{{{heard}")), "more zeroes");
    assert!(read_recording(Path::new("/dev/zero")).is_err_and(|e| e.contains("not a file")));
    assert!(read_recording(scratch.path()).is_err());
    let huge = scratch.path().join("huge.jsonl");
    fs::File::create(&huge).expect("made").set_len(2 << 30).expect("grown");
    assert!(read_recording(&huge).is_err_and(|e| e.contains("more than")));
    // Every line cut at every hundredth byte, and some bytes changed: an answer, and in time.
    for n in (0..sound.len()).step_by(101) {
        fs::write(&bad, &sound.as_bytes()[..n]).expect("written");
        let _ = read_recording(&bad);
        let mut bytes = sound.clone().into_bytes();
        bytes[n] = bytes[n].wrapping_add(1 + (n % 7) as u8);
        fs::write(&bad, bytes).expect("written");
        let _ = read_recording(&bad);
    }
}
