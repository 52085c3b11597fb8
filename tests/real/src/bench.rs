//! What the engine adds to the storage's own commands.
//!
//! Method: the same life (take, change, restore, delete) by the engine and by the fewest commands
//! a person would type, in turn, in the same boot, on the same storage; medians of the rounds.
//! The engine's own processor time is told apart from that of the commands it runs, since under
//! emulation everything is many times slower than on a real processor, and not all alike.

use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use snapslot_test_support::{Snapslot, setting};

use crate::subject::Storage;
use crate::{lvm, tools, zfs};

/// One measured piece of work, in milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    wall: f64,
    /// Processor time of the processes started, without their children.
    own: f64,
    /// Processor time of their children.
    children: f64,
}

impl Cost {
    fn add(self, other: Cost) -> Cost {
        Cost {
            wall: self.wall + other.wall,
            own: self.own + other.own,
            children: self.children + other.children,
        }
    }
}

/// Runs the benchmark of one group; prints `BENCH` lines.
pub fn run(binary: &Path, group: &str) -> Result<bool, String> {
    let state = PathBuf::from("/run/snapslot");
    std::fs::create_dir_all(&state).map_err(|e| e.to_string())?;
    let snapslot = Snapslot::new(binary, state.join("bench"));
    println!(
        "BENCH {group}: milliseconds, medians; a guest under emulation, where all takes many times"
    );
    println!(
        "BENCH as long as on a real processor: read the ratio and the engine's own share, not the figures"
    );
    println!(
        "BENCH {:<16} {:>8} {:>8} {:>6} {:>8} {:>9} {:>9} {:>8}",
        "", "engine", "by hand", "ratio", "overhead", "own CPU", "its cmds", "hand CPU"
    );
    match group {
        "lvm" => {
            let volume = lvm::Volume::new(lvm::Kind::Thin, 16);
            measure(
                "thin",
                &snapslot,
                &volume,
                &[
                    ("take", &["lvcreate -y -s -pr -ky -n snap vg/vm1"]),
                    (
                        "restore",
                        &[
                            "lvcreate -y -s -prw -kn -n new vg/snap",
                            "lvrename vg vm1 old",
                            "lvrename vg new vm1",
                            "lvremove -y vg/old",
                        ],
                    ),
                    ("delete", &["lvremove -y vg/snap"]),
                ],
            );
            let volume = lvm::Volume::new(lvm::Kind::Thick, 16);
            measure(
                "thick",
                &snapslot,
                &volume,
                &[
                    ("take", &["lvcreate -y -s -l 100%ORIGIN -n snap vg/vm1"]),
                    (
                        "restore",
                        &[
                            "lvconvert -y -i 1 --merge vg/snap",
                            "lvcreate -y -s -l 100%ORIGIN -n snap vg/vm1",
                        ],
                    ),
                    ("delete", &["lvremove -y vg/snap"]),
                ],
            );
        }
        "zfs" => {
            for (name, kind) in [("zvol", zfs::Kind::Zvol), ("mounted", zfs::Kind::Mounted)] {
                let dataset = zfs::Dataset::new(kind, 16);
                measure(
                    name,
                    &snapslot,
                    &dataset,
                    &[
                        ("take", &["zfs snapshot tank/vm1@snap"]),
                        ("restore", &["zfs rollback tank/vm1@snap"]),
                        ("delete", &["zfs destroy tank/vm1@snap"]),
                    ],
                );
            }
        }
        _ => return Err(format!("there is no benchmark of {group}; lvm and zfs are known")),
    }
    Ok(true)
}

/// A verb, and the same by hand.
type Typed<'a> = (&'a str, &'a [&'a str]);

fn measure(name: &str, snapslot: &Snapslot, storage: &dyn Storage, verbs: &[Typed<'_>]) {
    let rounds = setting("SNAPSLOT_BENCH_ROUNDS", 9);
    let mut engine: Vec<Vec<Cost>> = vec![Vec::new(); verbs.len()];
    let mut hand = engine.clone();
    for round in 0..rounds {
        storage.scribble(round * 4);
        for (i, (verb, _)) in verbs.iter().enumerate() {
            if *verb == "restore" {
                storage.scribble(round * 4 + 1);
            }
            let mut words = vec![*verb, storage.locator()];
            if *verb != "take" {
                words.push("--yes");
            }
            engine[i].push(timed(snapslot.command(words)));
        }
        for (i, (verb, lines)) in verbs.iter().enumerate() {
            if *verb == "restore" {
                storage.scribble(round * 4 + 1);
            }
            let costs = lines
                .iter()
                .map(|line| timed(tools::command(&line.split_whitespace().collect::<Vec<_>>())));
            hand[i].push(costs.fold(Cost::default(), Cost::add));
        }
        assert_eq!(storage.layout(), storage.base(), "round {round} left something behind");
    }
    for (i, (verb, _)) in verbs.iter().enumerate() {
        let of = |list: &[Cost], what: fn(&Cost) -> f64| median(list.iter().map(what).collect());
        let (e, h) = (of(&engine[i], |c| c.wall), of(&hand[i], |c| c.wall));
        println!(
            "BENCH {:<16} {e:>8.0} {h:>8.0} {:>6.2} {:>8.0} {:>9.0} {:>9.0} {:>8.0}",
            format!("{name} {verb}"),
            e / h,
            e - h,
            of(&engine[i], |c| c.own),
            of(&engine[i], |c| c.children),
            of(&hand[i], |c| c.own + c.children),
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Runs it to its end, which must be a good one.
#[expect(clippy::zombie_processes, reason = "reaped by wait4, which tells what it used")]
fn timed(mut command: Command) -> Cost {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let began = Instant::now();
    let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let pid = child.id() as libc::pid_t;
    let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
    // SAFETY: waits for a child of ours and leaves it to be waited for again, so that its clock
    // can still be read; the kernel fills `info`, which is not looked at.
    let waited = unsafe {
        libc::waitid(
            libc::P_PID,
            pid as libc::id_t,
            info.as_mut_ptr(),
            libc::WEXITED | libc::WNOWAIT,
        )
    };
    let wall = began.elapsed().as_secs_f64() * 1e3;
    assert_eq!(waited, 0, "{command:?}: {}", std::io::Error::last_os_error());
    let own = clock_of(pid);
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: reaps the child waited for above, once; the kernel fills `status` and `usage`, which
    // was all zeroes before and is plain numbers.
    let usage = unsafe {
        let reaped = libc::wait4(pid, &raw mut status, 0, usage.as_mut_ptr());
        assert_eq!(reaped, pid, "{command:?}: {}", std::io::Error::last_os_error());
        usage.assume_init()
    };
    assert_eq!(status, 0, "{command:?} failed");
    let millis = |t: libc::timeval| t.tv_sec as f64 * 1e3 + t.tv_usec as f64 / 1e3;
    let all = millis(usage.ru_utime) + millis(usage.ru_stime);
    Cost { wall, own, children: (all - own).max(0.0) }
}

/// The processor time of a process of ours that has ended and was not reaped yet, without its
/// children's.
fn clock_of(pid: libc::pid_t) -> f64 {
    let mut clock = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both calls only write to the two locals given.
    let failed = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0
    };
    assert!(!failed, "the clock of process {pid}: {}", std::io::Error::last_os_error());
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}
