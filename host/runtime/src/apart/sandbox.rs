//! What the process that runs plugins gives up, and in which order.
//!
//! 1. Descriptors but for the socket, the panic hook, the terminal.
//! 2. By Landlock: every file and directory, TCP, abstract sockets, signals to others.
//! 3. The user: root becomes nobody, without groups. Capabilities, whoever it is.
//! 4. By limits: memory, processor time, files written (none), descriptors, core dumps.
//! 5. Once wasm is ready and its clock runs, by seccomp: every system call but some thirty that compute,
//!    read and talk on the socket. Among those left is none that writes to a file, makes a process or a
//!    socket, or takes a path. What libraries try by themselves and do without is refused; any other call
//!    ends the process. Memory that is shared is not to be had: the limit on memory would not count it.
//!
//! What a kernel does not have is left out and told; the rest holds.

use std::collections::BTreeMap;

use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus, Scope};
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use serde::{Deserialize, Serialize};

/// The limits of the process itself.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// Bytes of memory: a plan's gigabyte of data, in the plan and on its way, and that of the plugin.
    pub memory: u64,
    /// Seconds of processor time, over all calls of an operation.
    pub seconds: u64,
}

impl Default for Most {
    fn default() -> Self {
        Most { memory: 4 << 30, seconds: 3600 }
    }
}

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
    /// It is not root and has no capability: it never had, or gave them up.
    pub user: bool,
    /// It has limits on memory, processor time and descriptors.
    pub limits: bool,
}

impl Confinement {
    /// Whether all of it holds.
    pub fn is_whole(self) -> bool {
        self.process && self.files && self.calls && self.user && self.limits
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
            missing.push("it has rights of root still");
        }
        if !self.limits {
            missing.push("its memory and processor time are not limited");
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
pub fn give_up_all(most: Most) -> Confinement {
    let held = give_up_rights(most);
    Confinement { calls: give_up_calls(), ..held }
}

/// Steps 2 to 4, of this process. It must have one thread.
#[doc(hidden)]
pub fn give_up_rights(most: Most) -> Confinement {
    let mut now = Confinement { process: true, ..Confinement::default() };
    // SAFETY: these only set flags of this process: no rights are gained any more, no core is
    // dumped and nobody of this user may look into its memory.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
    }
    now.files = give_up_files();
    if Uid::effective().is_root() {
        // Which of it failed is asked below.
        let _ = setgroups(&[])
            .and_then(|()| setgid(Gid::from_raw(NOBODY)))
            .and_then(|()| setuid(Uid::from_raw(NOBODY)));
    }
    now.user = give_up_capabilities() && !Uid::effective().is_root() && !Uid::current().is_root();
    now.limits = [
        (Resource::RLIMIT_DATA, most.memory, most.memory),
        // At the second limit it is killed like by anybody; at the first it is said why.
        (Resource::RLIMIT_CPU, most.seconds, most.seconds + 1),
        (Resource::RLIMIT_FSIZE, 0, 0),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX, DESCRIPTORS_MAX),
        (Resource::RLIMIT_CORE, 0, 0),
    ]
    .into_iter()
    .all(|(what, first, second)| {
        // A limit that is lower already stays as it is.
        getrlimit(what)
            .and_then(|(soft, hard)| setrlimit(what, soft.min(first), hard.min(second)))
            .is_ok()
    });
    now
}

/// Step 2 alone.
#[doc(hidden)]
pub fn give_up_files() -> bool {
    landlocked().is_ok_and(|status| status != RulesetStatus::NotEnforced)
}

/// Gives up every capability, also those that a user who is not root can have; says whether none is
/// left.
fn give_up_capabilities() -> bool {
    /// The third version of the kernel's structures, of two halves (capget(2)).
    const VERSION: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Default, PartialEq)]
    struct Half {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: VERSION, pid: 0 };
    let none = [Half::default(), Half::default()];
    let mut left = [Half::default(), Half::default()];
    // SAFETY: the structures are the kernel's, and live as long as the calls.
    unsafe {
        libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
        libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) == 0
            && libc::syscall(libc::SYS_capget, &raw const header, left.as_mut_ptr()) == 0
            && left == none
    }
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
    let (Ok(arch), Some(some)) = (std::env::consts::ARCH.try_into(), partly()) else {
        return false;
    };
    let list = |calls: &[i64]| calls.iter().map(|call| (*call, Vec::new())).collect();
    let apply = |calls: BTreeMap<i64, Vec<SeccompRule>>, others, these| {
        let filter = SeccompFilter::new(calls, others, these, arch);
        let program: Result<BpfProgram, _> = filter.and_then(TryInto::try_into);
        program.is_ok_and(|program| seccompiler::apply_filter_all_threads(&program).is_ok())
    };
    // Of two filters the stricter answer holds.
    let denied = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    let mut allowed: BTreeMap<_, _> = list(&[CALLS, DENIED].concat());
    allowed.extend(some);
    apply(list(DENIED), SeccompAction::Allow, denied)
        && apply(allowed, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Of `prctl`, include/uapi/linux/prctl.h: only gives memory a name.
const PR_SET_VMA: u32 = 0x5356_4d41;

/// Calls that are left for some arguments.
fn partly() -> Option<BTreeMap<i64, Vec<SeccompRule>>> {
    let when = |argument, length, operator, value| {
        SeccompCondition::new(argument, length, operator, value)
    };
    use SeccompCmpArgLen::Dword;
    // MAP_TYPE, of which the limit on memory counts one kind.
    let private =
        when(3, Dword, SeccompCmpOp::MaskedEq(0x0f), u64::from(libc::MAP_PRIVATE.unsigned_abs()));
    // What ends a program that has no memory left: so that this is told apart from a call that
    // nobody has reason to make.
    let itself = when(0, Dword, SeccompCmpOp::Eq, u64::from(std::process::id()));
    let abort = when(2, Dword, SeccompCmpOp::Eq, u64::from(libc::SIGABRT.unsigned_abs()));
    // Names for memory, which allocators give it.
    let naming = when(0, Dword, SeccompCmpOp::Eq, u64::from(PR_SET_VMA));
    let rule = |conditions| SeccompRule::new(conditions).ok();
    Some(BTreeMap::from([
        (libc::SYS_mmap, vec![rule(vec![private.ok()?])?]),
        (libc::SYS_tgkill, vec![rule(vec![itself.ok()?, abort.ok()?])?]),
        (libc::SYS_prctl, vec![rule(vec![naming.ok()?])?]),
    ]))
}

/// What libraries try by themselves and do without: how many processors there are, words on standard
/// error before an abort, what a file is. Not `prctl`: the second filter is installed by it.
const DENIED: &[i64] = &[
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
];

const CALLS: &[i64] = &[
    // Memory; code that was compiled is made executable. Of `mmap` see above.
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
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_pread64,
    libc::SYS_lseek,
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
