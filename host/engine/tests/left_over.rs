//! Goal: a command that outlives its engine is neither cut off nor raced.
//!
//! Method: real processes. A shell script stands in for `zfs` and answers what the model of ZFS
//! answers; it waits at its change until it is let go. This program is begun a second time as the
//! engine, and killed while the script waits.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use snapslot_command::{Executor, Runner};
use snapslot_engine::{Asked, Depth, Engine, EngineError, Measure, Settings, Tools, Verb};
use snapslot_slot::State;
use snapslot_testkit::storage::machine::Kind;
use snapslot_testkit::storage::together::Together;

const VOLUME: &str = "zfs:tank/vm1";
/// Where the engine that is killed works: set for the second run of this program only.
const WORKS_IN: &str = "SNAPSLOT_TEST_WORKS_IN";

fn engine(scratch: &Path, tools: impl Executor + 'static) -> Engine {
    Engine::open(Settings {
        state_dir: scratch.join("state"),
        cache_dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugin-cache"),
        rehearsal: Depth::Bounded,
        enable_on_take: true,
        more_plugins: Vec::new(),
        plugin_time_max: None,
        confine: snapslot_engine::Confine::Here,
        record: None,
        tools: Some(Tools(Arc::new(tools))),
    })
    .expect("an engine")
}

fn stand_ins(scratch: &Path) -> Runner {
    Runner::in_directories(vec![scratch.join("tools")])
}

fn take(engine: &Engine) -> Result<State, EngineError> {
    let asked = Asked { note: Some("before".to_owned()), ..Asked::default() };
    engine.operate(VOLUME, Verb::Take, &asked, &|_, _, _| ()).map(|done| done.slot)
}

/// A script for `zfs` whose `snapshot` says that it came, waits to be let go, talks to nobody, and only
/// then does its work.
fn lay_out(scratch: &Path) {
    let model = Together::new(&[Kind::Zvol]);
    let modelled = engine(&scratch.join("model"), model.clone());
    modelled.status(VOLUME, Measure::Wholly).expect("a status");
    let look = model.log().pop().expect("a look");
    let said = || model.zfs().must(&look);
    let base = said();
    let held = take(&modelled).expect("a take");
    let mark = held.occupant().expect("held").mark.clone();
    // What the script's snapshot is called is told by the command it is given.
    let after = said().replace(&mark, "@MARK@");
    let tools = scratch.join("tools");
    fs::create_dir(&tools).expect("a directory");
    fs::write(scratch.join("now"), base).expect("an answer");
    fs::write(scratch.join("after"), after).expect("an answer");
    for name in ["came", "go"] {
        nix::unistd::mkfifo(&scratch.join(name), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    }
    let at = scratch.display();
    let script = format!(
        "#!/bin/sh\n\
         case $1 in\n\
         snapshot)\n\
             for word; do case $word in snapslot:mark=*) mark=${{word#*=}} ;; esac; done\n\
             echo $$ > {at}/came; read word < {at}/go\n\
             echo some words; echo more of them >&2\n\
             sed -e \"s/@MARK@/$mark/g\" {at}/after > {at}/part && mv {at}/part {at}/now ;;\n\
         *) cat {at}/now ;;\n\
         esac\n"
    );
    let path = tools.join("zfs");
    fs::write(&path, script).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
}

/// What is read from a FIFO until the other side closes it.
fn hear(path: PathBuf) -> String {
    let mut word = String::new();
    fs::File::open(path).and_then(|mut f| f.read_to_string(&mut word)).expect("a word");
    word.trim().to_owned()
}

fn let_go(scratch: &Path) {
    let gone = fs::OpenOptions::new().write(true).open(scratch.join("go"));
    gone.and_then(|mut f| f.write_all(b"go\n")).expect("somebody who waits");
}

/// The engine that is killed; run by itself it shows that the stand-ins serve a take.
#[test]
fn the_stand_ins_serve_a_take() {
    if let Some(scratch) = std::env::var_os(WORKS_IN).map(PathBuf::from) {
        let _ = take(&engine(&scratch, stand_ins(&scratch)));
        return;
    }
    let scratch = tempfile::tempdir().expect("a directory");
    lay_out(scratch.path());
    let taken = std::thread::scope(|scope| {
        let taking = scope.spawn(|| take(&engine(scratch.path(), stand_ins(scratch.path()))));
        hear(scratch.path().join("came"));
        let_go(scratch.path());
        taking.join().expect("no panic")
    });
    assert!(matches!(taken.expect("a take"), State::Held { .. }));
}

/// An engine that was killed while its `zfs snapshot` waits. Gives the number of that process.
fn killed(scratch: &Path) -> u32 {
    let program = std::env::current_exe().expect("this program");
    let mut engine = Command::new(program)
        .args(["--exact", "the_stand_ins_serve_a_take"])
        .env(WORKS_IN, scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("this program again");
    let tool = hear(scratch.join("came")).parse().expect("a number");
    engine.kill().and_then(|()| engine.wait()).expect("an end");
    tool
}

#[test]
fn what_a_killed_engine_left_running_is_named_and_not_disturbed() {
    // Story: recovery looked at the storage while the command of the killed engine was at work on it,
    // found nothing half done, and told so. A moment later the snapshot was there.
    let scratch = tempfile::tempdir().expect("a directory");
    lay_out(scratch.path());
    let before = fs::read_to_string(scratch.path().join("now")).expect("the storage");
    let tool = killed(scratch.path());
    let impatient = || {
        let engine = engine(scratch.path(), stand_ins(scratch.path()));
        engine.with_patience(Duration::from_millis(100))
    };
    let recovery = impatient().recover(VOLUME).expect_err("it is at work still");
    let verb = take(&impatient()).expect_err("it is at work still");
    for error in [recovery, verb] {
        assert_eq!((error.exit(), error.code().as_str()), (5, "busy"), "{error}");
        assert!(error.to_string().contains(&format!("zfs (pid {tool})")), "{error}");
    }
    // A look tells that something is going on.
    let status = impatient().status(VOLUME, Measure::Wholly).expect("a status");
    assert!(matches!(status.slot, State::Taking { .. }), "{:?}", status.slot);
    assert_eq!(fs::read_to_string(scratch.path().join("now")).expect("the storage"), before);
    let_go(scratch.path());
    // It went on to its end, though nobody listened, and what it did is what is found.
    let recovered = engine(scratch.path(), stand_ins(scratch.path())).recover(VOLUME);
    let slot = recovered.expect("recovered").slot;
    let State::Held { occupant } = slot else { panic!("the slot is {slot:?}") };
    assert_eq!(occupant.note.as_deref(), Some("before"));
}

#[test]
fn recovery_waits_for_what_ends_soon() {
    let scratch = tempfile::tempdir().expect("a directory");
    lay_out(scratch.path());
    killed(scratch.path());
    let slot = std::thread::scope(|scope| {
        let recovering = scope.spawn(|| {
            let engine = engine(scratch.path(), stand_ins(scratch.path()));
            engine.recover(VOLUME)
        });
        let_go(scratch.path());
        recovering.join().expect("no panic").expect("recovered").slot
    });
    assert!(matches!(slot, State::Held { .. }), "{slot:?}");
}
