//! Goal: whatever the process that runs plugins says, and however it says it, the engine's end answers
//! in time, takes in no more than it should, and makes no plan but one that the grants allow. Method: a
//! thread plays the process, on the real socket, and lies.

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Serialize;
use snapslot_command::Place;

use super::frames::{FRAME_MAX, Wary};
use super::judge::{judge_words, of_commands};
use super::parent::{Component, Lost, Worker};
use super::sandbox::Confinement;
use super::wire::Word;
use crate::bindings::types::{
    Argument, Change, Description, Facts, Failure, FailureKind, Goal, NewSnapshot, Snapshot,
};
use crate::cache::Cache;
use crate::call::{Building, Call, DraftEnd, DraftStep, Ended, Reply};
use crate::grants::effective;
use crate::host::Sight;
use crate::limits::Limits;
use crate::machine::Linked;
use crate::outside::{Loud, Outside};

/// What a test waits for at most.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);
/// Where something else than lateness is expected, so that a busy machine changes no verdict.
const PATIENT: Limits = Limits { computing: LONG, waiting: LONG, compiling: LONG };
/// Where a call is expected to be late, once it has begun.
const SHORT_CALL: Limits = Limits { computing: SHORT, waiting: SHORT, compiling: LONG };
/// Where it is expected to be late before that.
const SHORT_START: Limits = Limits { computing: LONG, waiting: LONG, compiling: SHORT };

fn frame<T: Serialize>(words: &T) -> Vec<u8> {
    let mut frame = postcard::to_extend(words, vec![0; 4]).expect("words");
    let length = u32::try_from(frame.len() - 4).expect("short");
    frame[..4].copy_from_slice(&length.to_le_bytes());
    frame
}

/// Says something, if anybody listens still.
fn say(socket: &mut UnixStream, words: &Word) -> bool {
    socket.write_all(&frame(words)).is_ok()
}

/// Hears one frame, whatever it says.
fn hear(socket: &mut UnixStream) -> bool {
    let mut head = [0; 4];
    if socket.read_exact(&mut head).is_err() {
        return false;
    }
    let mut rest = vec![0; u32::from_le_bytes(head) as usize];
    socket.read_exact(&mut rest).is_ok()
}

fn ready() -> Word {
    Word::Ready { key: 1, confinement: Confinement::default() }
}

fn linked() -> Word {
    Word::Linked(Ok(Linked { imports: vec!["x".to_owned()], contract: "0.1.0".to_owned() }))
}

/// A process that is played, from before anything was asked of it.
fn played(limits: Limits, play: impl FnOnce(UnixStream) + Send + 'static) -> Worker {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    thread::spawn(move || play(theirs));
    Worker::begin(None, Wary::new(ours), limits, false).expect("begun")
}

/// One that comes as far as a call, and then does this.
fn called(limits: Limits, play: impl FnOnce(&mut UnixStream) + Send + 'static) -> Worker {
    played(limits, |mut socket| {
        // Begin; Compile; Grant; Call.
        let as_usual = hear(&mut socket)
            && say(&mut socket, &ready())
            && hear(&mut socket)
            && say(&mut socket, &linked())
            && say(&mut socket, &Word::Code(None))
            && hear(&mut socket)
            && hear(&mut socket);
        assert!(as_usual, "the engine did not call");
        play(&mut socket);
        // Open until the engine has enough of it.
        while hear(&mut socket) {}
    })
}

fn component(granted: Option<Description>) -> Component {
    Component { digest: "0".repeat(64), bytes: b"bytes"[..].into(), granted }
}

fn load(worker: &mut Worker) -> Result<Linked, Lost> {
    let none = Cache::open(std::path::Path::new("/dev/null/none"));
    worker.load(&component(None), &none).map(|linked| linked.expect("no flaws"))
}

fn plan_call() -> Call {
    Call::Plan(Goal::Held(NewSnapshot {
        mark: "0123456789abcdef".to_owned(),
        taken_seconds: 1,
        taken_nanoseconds: 0,
        room: None,
        beside: 0,
        full_copy: false,
    }))
}

/// What the engine makes of a call, and that it makes it in time.
fn outcome(
    mut worker: Worker,
    call: &Call,
) -> Result<Result<Reply<snapslot_capture::Plan>, Ended>, Lost> {
    load(&mut worker).expect("loaded");
    let description = of_commands();
    let grants = effective(&description).expect("grants");
    let place = Place::parse(snapslot_command::PlaceKind::ZfsDataset, "tank/vm1").expect("it");
    let sight = Sight { place, disk: None, commands: None, copies: None };
    let mut outside = Outside::new("played", Arc::new(grants.clone()), Some(&sight));
    let begun = Instant::now();
    let result =
        worker.call(&component(Some(description)), call, Some(&sight), &grants, &mut outside);
    assert!(begun.elapsed() < LONG, "it took {:?}", begun.elapsed());
    result
}

#[track_caller]
fn nonsense<T: std::fmt::Debug>(result: Result<T, Lost>, says: &str) {
    match result {
        Err(Lost::Nonsense(why)) => assert!(why.contains(says), "{why}"),
        other => panic!("not nonsense: {other:?}"),
    }
}

#[test]
fn silence_and_dribbling_end_in_time() {
    let begun = Instant::now();
    let silent = |play: fn(&mut UnixStream)| {
        played(SHORT_START, move |mut s| {
            play(&mut s);
            while hear(&mut s) {}
        })
    };
    let plays: [fn(&mut UnixStream); 3] = [
        |_| {},
        |s| s.write_all(&[9, 0]).expect("half a head"),
        |s| s.write_all(&frame(&ready())[..6]).expect("half a frame"),
    ];
    for play in plays {
        assert!(matches!(silent(play).ready(), Err(Lost::Late)));
    }
    // Story: each byte gave it the whole patience anew, and so it went on for ever.
    let mut dribbling = played(SHORT_START, |mut socket| {
        for byte in frame(&Word::Damaged).iter().chain(&[9; 1 << 16]) {
            if socket.write_all(&[*byte]).is_err() {
                break;
            }
            thread::yield_now();
        }
        // The last frame never becomes whole.
        while socket.write_all(&[0]).is_ok() && hear(&mut socket) {}
    });
    assert!(dribbling.ready().is_err());
    assert!(begun.elapsed() < LONG, "it took {:?}", begun.elapsed());
}

/// Story: only the first process was asked whether all of it holds; one that took its place was not.
#[test]
fn a_process_that_is_not_held_is_not_used_where_it_must_be() {
    for (strict, limits_held) in [(true, false), (true, true), (false, false)] {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let held = Confinement {
            process: true,
            files: true,
            calls: true,
            user: true,
            limits: limits_held,
        };
        thread::spawn(move || {
            let mut theirs = theirs;
            let _ = say(&mut theirs, &Word::Ready { key: 1, confinement: held });
            while hear(&mut theirs) {}
        });
        let mut worker = Worker::begin(None, Wary::new(ours), PATIENT, strict).expect("begun");
        match worker.ready() {
            Err(Lost::Free(_)) => assert!(strict && !limits_held),
            Ok(_) => assert!(!strict || limits_held),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn who_closes_is_gone() {
    // Once it was told to begin: before that its end is known already when it is.
    let closes = |mut socket: UnixStream| {
        hear(&mut socket);
    };
    assert!(matches!(played(PATIENT, closes).ready(), Err(Lost::Gone(_))));
    let closes = |socket: &mut UnixStream| {
        socket.shutdown(std::net::Shutdown::Both).expect("closed");
    };
    let call = outcome(called(PATIENT, closes), &Call::Inspect);
    assert!(matches!(call, Err(Lost::Gone(_))), "{call:?}");
}

#[test]
fn frames_that_are_none_are_refused() {
    for length in [u32::MAX, 1 << 30, (FRAME_MAX as u32) + 1] {
        let worker = called(PATIENT, move |s| s.write_all(&length.to_le_bytes()).expect("said"));
        nonsense(outcome(worker, &Call::Inspect), "longer than any");
    }
    let rubbish: [(&[u8], &str); 4] = [
        (&[1, 0, 0, 0, 0xff], "understood"),
        (&[0, 0, 0, 0], "understood"),
        // A list of four thousand million.
        (&[6, 0, 0, 0, 10, 0xff, 0xff, 0xff, 0xff, 0x0f], "understood"),
        (&[3, 0, 0, 0, 5, 1, 2], "behind its words"),
    ];
    for (bytes, says) in rubbish {
        let worker = called(PATIENT, move |s| s.write_all(bytes).expect("said"));
        nonsense(outcome(worker, &Call::Inspect), says);
    }
    // Many values in few bytes: in memory each is four dozen.
    let empty = Failure::new(FailureKind::Io, "", "");
    let figures = vec![(String::new(), String::new()); 8 << 20];
    let ended = Word::Ended(Err(Ended::Refused(Failure { data: figures, ..empty })));
    // Made into bytes beforehand: that takes its time, and none of it is the call's.
    let ended = frame(&ended);
    let worker = called(PATIENT, move |s| {
        let _ = s.write_all(&ended);
    });
    nonsense(outcome(worker, &Call::Inspect), "understood");
}

/// Every kind of word.
fn words() -> Vec<Word> {
    vec![
        ready(),
        linked(),
        Word::Linked(Err(Vec::new())),
        Word::Damaged,
        Word::Code(Some(serde_bytes::ByteBuf::from(vec![1; 3]))),
        Word::Ask { query: "x".to_owned(), arguments: Vec::new() },
        Word::Copies,
        Word::Saving,
        Word::Log { loud: Loud::Debug, message: "x".to_owned() },
        Word::Size,
        Word::Read { offset: 0, length: 1 },
        Word::Steps(vec![step("a")]),
        Word::Ended(Err(Ended::Fault { cause: "x".to_owned(), trace: Vec::new() })),
        Word::Ended(Ok(Reply::Change(Change { changed_bytes: 1, held_bytes: 1, at_least: false }))),
    ]
}

fn step(snapshot: &str) -> DraftStep {
    let argument = Argument { hole: "s".to_owned(), value: format!("snapslot-{snapshot}") };
    DraftStep::Act { action: "destroy".to_owned(), arguments: vec![argument] }
}

#[test]
fn words_out_of_turn_end_it() {
    for (n, word) in words().into_iter().enumerate() {
        let first = frame(&word);
        let mut worker = played(PATIENT, move |mut socket| {
            let _ = socket.write_all(&first);
            while hear(&mut socket) {}
        });
        let ready = worker.ready();
        assert_eq!(n == 0, ready.is_ok(), "{word:?}: {ready:?}");

        let second = frame(&word);
        // Its code is waited for, and does not come.
        let codeless = matches!(word, Word::Linked(Ok(_)));
        let limits = if codeless { SHORT_START } else { PATIENT };
        let mut worker = played(limits, move |mut socket| {
            let _ = say(&mut socket, &self::ready()) && hear(&mut socket) && hear(&mut socket);
            let _ = socket.write_all(&second);
            while hear(&mut socket) {}
        });
        let none = Cache::open(std::path::Path::new("/dev/null/none"));
        match (worker.load(&component(None), &none), &word) {
            (Ok(Err(_)), Word::Linked(Err(_))) => {}
            (Err(Lost::Late), _) if codeless => {}
            (Err(Lost::Nonsense(why)), _) => assert!(why.contains("out of turn"), "{why}"),
            (other, _) => panic!("{word:?}: {other:?}"),
        }

        let third = frame(&word);
        // Answered, and then it says nothing more.
        let answered = matches!(
            word,
            Word::Ask { .. }
                | Word::Copies
                | Word::Saving
                | Word::Log { .. }
                | Word::Size
                | Word::Read { .. }
        );
        let limits = if answered { SHORT_CALL } else { PATIENT };
        let worker = called(limits, move |s| s.write_all(&third).expect("said"));
        match (outcome(worker, &Call::Inspect), &word) {
            (Ok(_), Word::Ended(_)) => {}
            (Err(Lost::Late), _) if answered => {}
            (Err(Lost::Nonsense(why)), _) => println!("{why}"),
            (other, _) => panic!("{word:?}: {other:?}"),
        }
    }
}

#[test]
fn who_never_ends_is_ended() {
    let endless = [
        Word::Log { loud: Loud::Debug, message: "\u{1b}[2J".repeat(1000) },
        Word::Copies,
        Word::Saving,
        Word::Size,
        Word::Read { offset: 0, length: u32::MAX },
        Word::Ask { query: "x".to_owned(), arguments: Vec::new() },
        Word::Steps(Vec::new()),
    ];
    for word in endless {
        let again = frame(&word);
        // Story: every sign of life gave it another eleven minutes.
        let worker = called(SHORT_CALL, move |socket| {
            let mut listener = socket.try_clone().expect("a clone");
            thread::spawn(move || while hear(&mut listener) {});
            while socket.write_all(&again).is_ok() {}
        });
        let result = outcome(worker, &plan_call());
        assert!(matches!(result, Err(Lost::Late)), "{word:?}: {result:?}");
    }
}

/// Story: what was said to it was written without any end of time, so one that did not read held the
/// engine, and all its locks, for ever.
#[test]
fn who_does_not_listen_is_ended() {
    let again = frame(&Word::Ask { query: "x".repeat(4000), arguments: Vec::new() });
    let worker = called(SHORT_CALL, move |socket| while socket.write_all(&again).is_ok() {});
    assert!(matches!(outcome(worker, &Call::Inspect), Err(Lost::Late)));
    // Nor does it take in its component.
    let mut deaf = played(SHORT_START, |mut socket| {
        let _ = say(&mut socket, &ready());
        let mut ends = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        let _ = poll(&mut ends, PollTimeout::NONE);
    });
    let huge = Component { bytes: vec![0; 32 << 20].into(), ..component(None) };
    let none = Cache::open(std::path::Path::new("/dev/null/none"));
    assert!(matches!(deaf.load(&huge, &none), Err(Lost::Late)));
}

#[test]
fn descriptors_from_there_are_not_taken_in() {
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    let fault = Ended::Fault { cause: "x".to_owned(), trace: Vec::new() };
    let worker = called(PATIENT, move |socket| {
        let raw = [theirs.as_raw_fd(); 3];
        let last = frame(&Word::Ended(Err(fault)));
        let parts = [IoSlice::new(&last)];
        let with = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(socket.as_raw_fd(), &parts, &with, MsgFlags::empty(), None).expect("sent");
        drop(theirs);
    });
    assert!(matches!(outcome(worker, &Call::Inspect), Ok(Err(Ended::Fault { .. }))));
    // Nobody has the other end any more.
    ours.set_read_timeout(Some(LONG)).expect("set");
    assert_eq!(ours.read(&mut [0]).expect("the end"), 0);
}

#[test]
fn plans_are_made_of_what_was_granted_and_of_nothing_else() {
    let place = Place::parse(snapslot_command::PlaceKind::ZfsDataset, "tank/vm1").expect("it");
    let grants = effective(&of_commands()).expect("grants");
    let end = || DraftEnd { seal: None, notes: Vec::new() };
    let mark = || "0123456789abcdef".to_owned();
    let act = |action: &str, hole: &str, value: &str| DraftStep::Act {
        action: action.to_owned(),
        arguments: vec![Argument { hole: hole.to_owned(), value: value.to_owned() }],
    };
    let save =
        DraftStep::Save { mark: mark(), taken_seconds: 1, taken_nanoseconds: 1, full_copy: true };
    let mask = DraftStep::Mask { offset: 0, count: 1, stride: 8, clear: 0, set: 1, select: vec![] };
    let refused = [
        DraftStep::Write { offset: 0, data: vec![1] },
        DraftStep::Fill { offset: 0, length: 1, pattern: vec![1] },
        mask,
        DraftStep::Extend { size: 1 << 40 },
        save,
        DraftStep::PutBack { mark: mark() },
        DraftStep::Discard { mark: mark() },
        act("rollback", "s", "snapslot-a"),
        act("destroy", "s", "daily"),
        act("destroy", "s", "snapslot-a@b"),
        act("destroy", "d", "tank/other"),
        act("destroy", "s", ""),
        DraftStep::Act { action: "destroy".to_owned(), arguments: Vec::new() },
    ];
    for step in refused {
        let mut plan = Building::new(&grants, Some(&place));
        let told = plan.add(step.clone());
        assert!(told.is_err(), "{step:?}");
        // One that was refused and is sent on all the same ends the process.
        let worker = called(PATIENT, move |s| {
            let _ =
                say(s, &Word::Steps(vec![step])) && say(s, &Word::Ended(Ok(Reply::Planned(end()))));
        });
        assert!(matches!(outcome(worker, &plan_call()), Err(Lost::Nonsense(_))));
    }
    let steps = vec![step("a"), DraftStep::Barrier { title: "x\u{202e}\u{7}y".to_owned() }];
    let good = steps.clone();
    let worker = called(PATIENT, move |s| {
        let _ = say(s, &Word::Steps(good)) && say(s, &Word::Ended(Ok(Reply::Planned(end()))));
    });
    let Ok(Ok(Reply::Planned(plan))) = outcome(worker, &plan_call()) else {
        panic!("a sound plan was refused")
    };
    let commands: Vec<String> = plan.acts().map(|a| a.command.to_string()).collect();
    assert_eq!(commands, ["zfs destroy tank/vm1@snapslot-a"]);
    assert_eq!(plan.phases().map(|(title, _)| title).collect::<Vec<_>>(), ["xy"]);
    // Nobody asked for a plan.
    let worker = called(PATIENT, move |s| {
        say(s, &Word::Steps(steps));
    });
    nonsense(outcome(worker, &Call::Inspect), "without being asked");
    let worker = called(PATIENT, move |s| {
        say(s, &Word::Ended(Ok(Reply::Planned(end()))));
    });
    nonsense(outcome(worker, &Call::Inspect), "without being asked");
    // More than a plan may have: counted while it comes, not when all of it is there.
    let many = Word::Steps((0..65).map(|n| step(&n.to_string())).collect());
    let worker = called(PATIENT, move |s| {
        say(s, &many);
    });
    nonsense(outcome(worker, &plan_call()), "64 allowed");
    let askew = DraftEnd { seal: Some((3, 1)), notes: Vec::new() };
    let worker = called(PATIENT, move |s| {
        say(s, &Word::Ended(Ok(Reply::Planned(askew))));
    });
    nonsense(outcome(worker, &plan_call()), "seal");
}

/// Words with some bytes changed are words again or refused; and what they would have planned is held to
/// the grants. Every case has its seed in its number.
#[test]
fn damaged_words_are_words_or_refused() {
    let facts = Facts {
        identity: Some("1".to_owned()),
        virtual_size: 1 << 30,
        format: "x".to_owned(),
        snapshots: vec![
            Snapshot {
                identity: "1".to_owned(),
                name: "n".to_owned(),
                mark: Some("0123456789abcdef".to_owned()),
                taken_seconds: 1,
                taken_nanoseconds: 2,
                virtual_size: 3,
                vm_state_size: 4,
                lost: false,
            };
            3
        ],
        findings: Vec::new(),
        unfinished: None,
    };
    let mut seeds = words();
    seeds.push(Word::Ended(Ok(Reply::Facts(facts))));
    seeds.push(Word::Ended(Ok(Reply::Described(of_commands()))));
    seeds.push(Word::Steps(vec![
        DraftStep::Write { offset: 512, data: vec![7; 40] },
        DraftStep::Fill { offset: 4096, length: 64, pattern: vec![1, 2] },
        DraftStep::Mask {
            offset: 8192,
            count: 9,
            stride: 16,
            clear: 1,
            set: 2,
            select: vec![255, 1],
        },
        DraftStep::Barrier { title: "first".to_owned() },
        DraftStep::Extend { size: 1 << 20 },
    ]));
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        noise as usize
    };
    let (mut words, mut plans) = (0, 0);
    for case in 0..60_000 {
        let seed = &seeds[case % seeds.len()];
        let mut bytes = postcard::to_allocvec(seed).expect("bytes");
        for _ in 0..next() % 4 {
            let at = next() % (bytes.len() + 1);
            match next() % 4 {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, next() as u8),
                _ if at < bytes.len() => bytes[at] = next() as u8,
                _ => bytes.extend([0xff; 5]),
            }
        }
        let judged = judge_words(&bytes);
        words += usize::from(judged.words);
        plans += judged.plans;
    }
    println!("{words} words, {plans} plans");
    assert!(words > 1000 && plans > 100, "{words} words, {plans} plans");
}
