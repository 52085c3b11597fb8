//! SIGKILL at random moments.
//!
//! Goal: whenever the process dies, the disk shows its content whole, before any recovery and
//! even if QEMU opens it first; after `snapslot recover` image, slot and record agree on the
//! state before or the state after.
//!
//! Method: a loop over one large disk. Each round starts a verb and kills it: either after a
//! random part of the time the verb takes, or a random moment after its journal appears. Then,
//! in turn: nothing; QEMU looks; QEMU writes, and with that repairs and unseals; somebody runs
//! `qemu-img check -r all`. Every third time recovery is killed as well. Then recovery, by its
//! own command or on the way of another verb, must succeed and everything is compared. `SNAPSLOT_TEST_KILLS` (100), `SNAPSLOT_TEST_SEED`.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use snapslot_test_support::{Process, Scratch, Snapslot, SplitMix64, journal_of, setting};

use crate::snapslot;
use crate::subject::Subject;

const DEADLINE: Duration = Duration::from_secs(60);

/// When to kill.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// This long after the start.
    After(Duration),
    /// This long after the journal is there.
    AfterJournal(Duration),
}

struct Loop {
    // First, so that it is told before the files go.
    story: Story,
    subject: Subject,
    product: Snapslot,
    random: SplitMix64,
    /// How long each verb takes when it is left alone.
    takes: HashMap<&'static str, Duration>,
    active: u8,
    slot: Option<(String, u8)>,
    counts: [u64; 4],
    _scratch: Scratch,
}

struct Story {
    seed: u64,
    rounds: Vec<String>,
}

impl Drop for Story {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let last = self.rounds.len().saturating_sub(6);
            eprintln!("the last rounds:\n  {}", self.rounds[last..].join("\n  "));
            eprintln!(
                "seed {}; moments differ from run to run, the rest replays with\n  SNAPSLOT_TEST_SEED={} \
                 cargo test --release -p snapslot --test crash kills -- --nocapture",
                self.seed, self.seed
            );
        }
    }
}

#[test]
fn killed_at_any_moment() {
    let kills = setting("SNAPSLOT_TEST_KILLS", 100);
    let seed = setting("SNAPSLOT_TEST_SEED", 0x6b69_6c6c);
    let scratch = Scratch::new();
    let product = snapslot(&scratch);
    let subject = Subject::new(&scratch);
    let mut this = Loop {
        story: Story { seed, rounds: Vec::new() },
        active: subject.shown(&[1]),
        subject,
        product,
        random: SplitMix64::new(seed),
        takes: HashMap::new(),
        slot: None,
        counts: [0; 4],
        _scratch: scratch,
    };
    this.measure();
    let mut rounds = 0;
    // More of them where too few kills came while there was a journal yet.
    while rounds < kills || (this.counts[2] * 10 <= kills && rounds < 5 * kills) {
        this.round(rounds);
        rounds += 1;
    }
    let [done, before, inside, after] = this.counts;
    println!(
        "{rounds} rounds: {inside} killed with a journal there, {before} before, {after} after it, \
         {done} ended first; {:?}",
        this.takes
    );
    assert!(inside * 10 > kills, "only {inside} of {rounds} kills came while there was a journal");
}

impl Loop {
    /// Each verb once, undisturbed, to know how long it takes.
    fn measure(&mut self) {
        for verb in ["take", "restore", "take --replace", "delete"] {
            if verb != "take" {
                self.active = self.subject.next_generation();
            }
            let done = self.start(verb).finish(DEADLINE);
            assert!(done.code == Some(0), "{}", done.account());
            self.takes.insert(verb, done.elapsed);
        }
        self.subject.image.assert_clean();
        let start = Instant::now();
        self.product.verb("recover", self.subject.path(), &[]).expect(0);
        self.takes.insert("recover", start.elapsed());
        self.active = self.subject.shown(&[self.active]);
    }

    fn start(&self, verb: &str) -> Process {
        let mut words = verb.split(' ');
        let mut arguments = vec![words.next().unwrap_or_default().into()];
        arguments.push(self.subject.path().as_os_str().to_owned());
        arguments.extend(words.map(Into::into));
        if matches!(verb, "restore" | "delete") {
            arguments.push("--yes".into());
        }
        self.product.start(arguments)
    }

    /// Kills the process at the moment, unless it ends before. True: it was killed.
    fn kill(&mut self, verb: &'static str, mut process: Process, moment: Moment) -> bool {
        let journal = journal_of(self.subject.path());
        let mut seen = None;
        loop {
            let due = match moment {
                Moment::After(delay) => process.age() >= delay,
                Moment::AfterJournal(delay) => {
                    if seen.is_none() && journal.exists() {
                        seen = Some(Instant::now());
                    }
                    seen.is_some_and(|at: Instant| at.elapsed() >= delay)
                }
            };
            if due {
                process.kill();
                break;
            }
            if process.has_ended() {
                break;
            }
            std::thread::yield_now();
        }
        let there = journal.exists();
        let finished = process.finish(DEADLINE);
        if finished.signal.is_none() {
            // Left alone once more: the first time was slower than most.
            self.takes.entry(verb).and_modify(|t| *t = (*t).min(finished.elapsed));
        }
        match (finished.signal, finished.code) {
            (Some(9), _) if there => self.counts[2] += 1,
            (Some(9), _) if seen.is_some() => self.counts[3] += 1,
            (Some(9), _) => self.counts[1] += 1,
            (_, Some(0)) => self.counts[0] += 1,
            _ => panic!("it was to be killed or to succeed: {}", finished.account()),
        }
        finished.signal == Some(9)
    }

    fn moment(&mut self, verb: &str) -> Moment {
        let whole = self.takes[verb];
        if self.random.chance(1, 2) {
            let most = whole.as_micros() as u64;
            Moment::After(Duration::from_micros(self.random.below(most)))
        } else {
            // Short ones more often: much happens at first.
            let most = whole.as_micros() as u64 >> self.random.between(1, 6);
            Moment::AfterJournal(Duration::from_micros(self.random.below(most.max(1))))
        }
    }

    fn round(&mut self, round: u64) {
        let verb = match (&self.slot, self.random.below(4)) {
            (None, _) => "take",
            (Some(_), 0) => "delete",
            (Some(_), 1) => "take --replace",
            (Some(_), _) => "restore",
        };
        if verb != "delete" && self.random.chance(9, 10) {
            self.active = self.subject.next_generation();
        }
        let was = self.active;
        let moment = self.moment(verb);
        let process = self.start(verb);
        let killed = self.kill(verb, process, moment);
        let goal = match (&self.slot, verb) {
            (Some((_, generation)), "restore") => *generation,
            _ => was,
        };
        let between =
            ["nothing", "QEMU looks", "QEMU writes", "qemu-img check -r all"][(round % 4) as usize];
        self.story.rounds.push(format!(
            "{round}: {verb}, moment {moment:?}, killed {killed}, then {between}; disk {was}, slot {:?}",
            self.slot
        ));
        let mut may_show = if killed { vec![was, goal] } else { vec![goal] };
        match round % 4 {
            1 => may_show = vec![self.subject.shown(&may_show), goal],
            2 => {
                self.subject.shown(&may_show);
                may_show = vec![self.subject.next_generation()];
            }
            3 => {
                self.subject.image.qemu_img(&["check", "-q", "-r", "all"], &[]);
                may_show = vec![self.subject.shown(&may_show), goal];
                // With QEMU's repair done, recovery has no plan to go on with.
                may_show.truncate(1);
            }
            _ => {}
        }
        if round % 3 == 2 {
            // It takes as long as what it finishes, at most.
            let whole = self.takes["recover"].max(self.takes[verb]);
            let delay = self.random.below(whole.as_micros() as u64);
            let process = self.product.start(["recover".as_ref(), self.subject.path().as_os_str()]);
            self.kill("recover", process, Moment::After(Duration::from_micros(delay)));
        }
        if round % 5 == 4 {
            // Every verb recovers first; a dry run says that, and changes nothing.
            let journal = journal_of(self.subject.path());
            let before = std::fs::read(&journal).ok();
            let dry = self.product.verb("restore", self.subject.path(), &["--dry-run"]);
            let told = matches!(dry.code(), 0 | 4)
                || dry.expect(8)["error"]["code"].as_str() == Some("unrecovered");
            assert!(told, "{}", dry.process.account());
            assert!(std::fs::read(&journal).ok() == before, "a dry run recovered");
        }
        self.product.verb("recover", self.subject.path(), &[]).expect(0);
        self.judge(verb, killed, was, &may_show);
    }

    /// After recovery everything agrees, on the state before or the state after.
    fn judge(&mut self, verb: &str, killed: bool, was: u8, may_show: &[u8]) {
        self.subject.image.assert_clean();
        self.active = self.subject.shown(may_show);
        let status = self.product.verb("status", self.subject.path(), &[]);
        status.expect(0);
        let names = self.subject.snapshots();
        let now = match status.slot() {
            "held" => {
                let name = status.snapshot_name();
                assert_eq!(names, std::slice::from_ref(&name), "the snapshots in the image");
                let mut may_hold = vec![was];
                may_hold.extend(self.slot.as_ref().map(|(_, generation)| *generation));
                let same = self.slot.as_ref().filter(|(old, _)| *old == name);
                let may_hold = same.map_or(may_hold, |(_, generation)| vec![*generation]);
                let generation = self.subject.held(&name, &may_hold);
                Some((name, generation))
            }
            "empty" | "disabled" => {
                assert_eq!(names, [""; 0], "the slot is empty, the image is not");
                None
            }
            other => panic!("after recovery the slot is {other}: {}", status.process.account()),
        };
        let changed =
            now.as_ref().map(|(name, _)| name) != self.slot.as_ref().map(|(name, _)| name);
        match (verb, &now) {
            ("restore", now) => assert!(now.is_some() && !changed, "a restore changed the slot"),
            ("delete", Some(_)) => {
                assert!(killed && !changed, "the snapshot is there after delete")
            }
            ("take", None) => assert!(killed, "a take that ended well left nothing"),
            ("take --replace", None) => panic!("replacing left no snapshot at all"),
            ("take --replace", Some(_)) => assert!(killed || changed, "replacing left the old one"),
            _ => {}
        }
        self.slot = now;
    }
}
