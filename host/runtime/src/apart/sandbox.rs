//! What the process that runs plugins gives up, and in which order.
//!
//! 1. Descriptors but for the socket, the panic hook, the terminal.
//! 2. By Landlock: every file and directory, TCP, abstract sockets, signals to others.
//! 3. The user: root becomes nobody, without groups.
//! 4. By limits: memory, processor time, files written (none), descriptors, core dumps.
//! 5. Once wasm is ready and its clock runs, by seccomp: every system call but some thirty that compute,
//!    read and talk on the socket. Among those left is none that writes to a file, makes a process or a
//!    socket. Opening is refused; any other call ends the process.
//!
//! What a kernel does not have is left out and told; the rest holds.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule};
use serde::{Deserialize, Serialize};

/// Memory: a plan's gigabyte of data, in the plan and on its way, and that of the plugin.
const MEMORY_MAX: u64 = 4 << 30;
/// Processor time in seconds, over all calls of an operation.
const SECONDS_MAX: u64 = 3600;
const DESCRIPTORS_MAX: u64 = 32;
/// The user and group `nobody`, as Linux numbers them where nothing else is known.
const NOBODY: u32 = 65_534;

/// What holds plugins besides wasm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Confinement {
    /// They run in a process of their own.
    pub process: bool,
    /// It can open no file (Landlock).
    pub files: bool,
    /// It can make few system calls, none that writes (seccomp).
    pub calls: bool,
    /// It is not root: it never was, or has become nobody.
    pub user: bool,
}

impl Confinement {
    /// Whether all of it holds.
    pub fn is_whole(self) -> bool {
        self.process && self.files && self.calls && self.user
    }

    /// For people.
    pub fn in_words(self) -> String {
        if !self.process {
            return "Plugins run within the engine's own process, held by wasm alone.".to_owned();
        }
        let mut missing = Vec::new();
        if !self.files {
            missing.push("Landlock is missing");
        }
        if !self.calls {
            missing.push("seccomp is missing");
        }
        if !self.user {
            missing.push("it is root still");
        }
        let all = "Plugins run in a process of their own that can open no file, make no connection and write nothing";
        match missing.is_empty() {
            true => format!("{all}."),
            false => format!("{all}; not in full here: {}.", missing.join(", ")),
        }
    }
}

/// All of it, of this process: for a test that tries what is left.
#[doc(hidden)]
pub fn give_up_all() -> Confinement {
    let held = give_up_files();
    Confinement { calls: give_up_calls(), ..held }
}

/// Steps 2 to 4. The process must have one thread.
pub(super) fn give_up_files() -> Confinement {
    let mut now = Confinement { process: true, ..Confinement::default() };
    // SAFETY: these only set flags of this process: no rights are gained any more, no core is
    // dumped and nobody of this user may look into its memory.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    now.files = landlocked().is_ok_and(|status| status != RulesetStatus::NotEnforced);
    if Uid::effective().is_root() {
        let gone = setgroups(&[])
            .and_then(|()| setgid(Gid::from_raw(NOBODY)))
            .and_then(|()| setuid(Uid::from_raw(NOBODY)));
        now.user = gone.is_ok() && !Uid::effective().is_root();
    } else {
        now.user = true;
    }
    for (what, most) in [
        (Resource::RLIMIT_DATA, MEMORY_MAX),
        (Resource::RLIMIT_CPU, SECONDS_MAX),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX),
        (Resource::RLIMIT_CORE, 0),
    ] {
        // A limit that is lower already stays as it is.
        let _ = setrlimit(what, most, most);
    }
    now
}

/// Handles every right there is and allows none.
fn landlocked() -> Result<RulesetStatus, landlock::RulesetError> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .restrict_self()?;
    Ok(status.ruleset)
}

/// Step 5, for all threads there are.
pub(super) fn give_up_calls() -> bool {
    let Ok(arch) = std::env::consts::ARCH.try_into() else { return false };
    let list = |calls: &[i64]| calls.iter().map(|call| (*call, Vec::new())).collect();
    let apply = |calls: BTreeMap<i64, Vec<SeccompRule>>, others, these| {
        let filter = SeccompFilter::new(calls, others, these, arch);
        let program: Result<BpfProgram, _> = filter.and_then(TryInto::try_into);
        program.is_ok_and(|program| seccompiler::apply_filter_all_threads(&program).is_ok())
    };
    // Of two filters the stricter answer holds.
    let denied = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    apply(list(DENIED), SeccompAction::Allow, denied)
        && apply(list(&[CALLS, DENIED].concat()), SeccompAction::KillProcess, SeccompAction::Allow)
}

/// What the C library tries by itself (how many processors are there?) and does without.
const DENIED: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_openat,
];

const CALLS: &[i64] = &[
    // Memory; code that was compiled is made executable.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // The socket, and descriptors that came over it.
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_setsockopt,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_close,
    // Time, threads that are there, signals by which wasm traps.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getrandom,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];
