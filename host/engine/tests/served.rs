//! Goal: between a verb and the server of a disk there is no moment in which neither is answerable for it.
//!
//! Method: an engine in this process that serves, and the lock of another one that is at work meanwhile.

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use snapslot_disk::{EngineLock, FileDisk};
use snapslot_engine::{Depth, Engine, ServeOptions, Settings};
use snapslot_live::control::{Answer, Request, ask};

fn engine(scratch: &Path) -> Engine {
    Engine::open(Settings {
        state_dir: scratch.join("state"),
        cache_dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugin-cache"),
        rehearsal: Depth::Bounded,
        enable_on_take: true,
        more_plugins: Vec::new(),
        plugin_time_max: None,
        confine: snapslot_engine::Confine::Here,
        record: None,
        tools: None,
    })
    .expect("an engine")
}

fn control(scratch: &Path) -> PathBuf {
    let mut all = std::fs::read_dir(scratch.join("state/live")).expect("a folder").flatten();
    all.next().expect("a control socket").path()
}

/// Story: a server that was to stop gave up its control socket while a verb was at work on the disk, and then made
/// durable what it had: the verb found nobody to ask, and went on with a disk that was still being written.
#[test]
fn a_server_stops_only_between_verbs() {
    let scratch = tempfile::tempdir().expect("a directory");
    let disk = scratch.path().join("vm.img");
    std::fs::write(&disk, vec![1; 1 << 20]).expect("room");
    let engine = engine(scratch.path());
    let (serving, is_served) = channel();
    let (locked, is_locked) = channel();
    let at = (scratch.path(), disk.as_path());
    std::thread::scope(|scope| {
        let verb = scope.spawn(move || {
            is_served.recv().expect("it is served");
            let own = FileDisk::open_writable(at.1).expect("a disk");
            let lock = EngineLock::take(&own).expect("nobody is at work");
            locked.send(()).expect("a server");
            // For as long as it is at work its server answers, told to stop or not.
            let (begun, mut asked) = (Instant::now(), 0);
            while begun.elapsed() < Duration::from_millis(500) {
                let answer = ask(&control(at.0), &Request::Standing).expect("a socket");
                assert!(matches!(answer, Some(Answer::Done { .. })), "after {asked}: {answer:?}");
                asked += 1;
            }
            drop(lock);
        });
        let volume = format!("raw:{}", disk.display());
        let served = engine.serve(&volume, ServeOptions::default(), move |_, _| {
            serving.send(()).expect("a verb");
            is_locked.recv().expect("a verb");
        });
        verb.join().expect("a verb that was answered");
        served.expect("well");
    });
    let left = std::fs::read_dir(scratch.path().join("state/live")).expect("a folder").count();
    assert_eq!(left, 0, "a control socket is left");
}
