//! Goal: the process that runs plugins can write nothing, reach nothing and hurt nobody, even if
//! code in it does what it likes. Method: for each thing, a process that gives up its rights as
//! that one does and then tries it. The same tried without giving up must work, or the test would
//! prove nothing. And what planning needs must still work. Each wall is tried by itself too: what seccomp
//! refuses first would hide that Landlock, or a limit, is not there.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use nix::libc;
use snapslot_runtime::{Most, give_up_all, give_up_rights};

/// A thing to try. What it needs is open before rights are given up.
type Attempt = fn(&Path, File) -> io::Result<()>;

/// What must not be possible.
const REFUSED: [(&str, Attempt); 19] = [
    ("open a file for reading", |d, _| File::open(d.join("file")).map(drop)),
    ("open a file for writing", |d, _| {
        OpenOptions::new().write(true).open(d.join("file")).map(drop)
    }),
    ("make a file", |d, _| File::create(d.join("new")).map(drop)),
    ("open the image again, for writing", |_, image| {
        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
        OpenOptions::new().write(true).open(path).map(drop)
    }),
    ("remove a file", |d, _| fs::remove_file(d.join("file"))),
    ("rename a file", |d, _| fs::rename(d.join("file"), d.join("other"))),
    ("list a directory", |d, _| fs::read_dir(d).map(drop)),
    (WRITING, |_, mut image| image.write_all(b"x")),
    ("write to standard output", |_, _| {
        io::stdout().write_all(b"x\n").and_then(|()| io::stdout().flush())
    }),
    ("connect to a port", |_, _| {
        let port = std::env::var("TRY_PORT").ok().and_then(|p| p.parse::<u16>().ok());
        TcpStream::connect(("127.0.0.1", port.unwrap_or(0))).map(drop)
    }),
    ("connect to an abstract socket", |_, _| {
        let name = std::env::var("TRY_NAME").unwrap_or_default();
        let address = SocketAddr::from_abstract_name(name)?;
        UnixStream::connect_addr(&address).map(drop)
    }),
    ("make a socket", |_, _| UnixDatagram::unbound().map(drop)),
    ("ask about a path", |d, _| fs::metadata(d.join("file")).map(drop)),
    ("share memory", |_, _| {
        let how = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping touches nothing that is.
        let shared = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, how, -1, 0) };
        if shared == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }),
    ("run a program", |_, _| Command::new("/bin/true").status().map(drop)),
    (BECOMING, |_, _| Err(Command::new("/bin/true").exec())),
    ("fork", |_, _| {
        // SAFETY: the child ends at once.
        match unsafe { libc::fork() } {
            // SAFETY: as said.
            0 => unsafe { libc::_exit(0) },
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }),
    ("signal its parent", |_, _| {
        // SAFETY: signal 0 only asks whether it could be sent.
        match unsafe { libc::kill(libc::getppid(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    ("trace a thread of its parent", |_, _| {
        // SAFETY: it is let go again when this process ends.
        match unsafe { libc::ptrace(libc::PTRACE_SEIZE, libc::getppid(), 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
];

const WRITING: &str = "write to the image, were it open for that";
const BECOMING: &str = "become a program";

/// What Landlock refuses without any help.
const LANDLOCKED: [&str; 13] = [
    "open a file for reading",
    "open a file for writing",
    "make a file",
    "open the image again, for writing",
    "remove a file",
    "rename a file",
    "list a directory",
    "connect to a port",
    "connect to an abstract socket",
    "run a program",
    BECOMING,
    "signal its parent",
    "trace a thread of its parent",
];

/// What the limits end, how, and what is left of the other walls meanwhile.
const LIMITED: [(&str, Ends, Attempt); 5] = [
    ("hold more memory than there is for it", Ends::By(libc::SIGABRT), |_, _| {
        let much = vec![1_u8; 1 << 30];
        std::hint::black_box(&much);
        Ok(())
    }),
    ("compute for longer than it may", Ends::By(libc::SIGXCPU), |_, _| {
        let mut n = 0_u64;
        loop {
            n = std::hint::black_box(n).wrapping_add(1);
        }
    }),
    (GROWING, Ends::By(libc::SIGXFSZ), |_, mut image| image.write_all(&[1; 4096])),
    ("have a thousand descriptors", Ends::WithNo, |_, image| {
        let all: io::Result<Vec<File>> = (0..1000).map(|_| image.try_clone()).collect();
        all.map(drop)
    }),
    (CAPABLE, Ends::WithNo, |_, _| match capabilities()[0] {
        0 => Err(io::ErrorKind::PermissionDenied.into()),
        _ => Ok(()),
    }),
];

/// How an attempt ends that a limit ends.
#[derive(Clone, Copy, PartialEq)]
enum Ends {
    By(i32),
    WithNo,
}

const GROWING: &str = "write to a file that is open for that";
const CAPABLE: &str = "do as a user with capabilities what only root may";

/// What planning needs.
const ALLOWED: [(&str, Attempt); 3] = [
    ("read the image", |_, mut image| image.read_exact(&mut [0; 3])),
    ("set memory aside", |_, _| {
        let memory = vec![1_u8; 64 << 20];
        match std::hint::black_box(&memory).iter().all(|b| *b == 1) {
            true => Ok(()),
            false => Err(io::ErrorKind::Other.into()),
        }
    }),
    ("talk on its socket", |_, _| {
        // SAFETY: it was handed down as standard input, and nothing else uses it.
        let mut socket = unsafe { UnixStream::from_raw_fd(0) };
        socket.write_all(b"x")
    }),
];

/// What is given up before an attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    /// Nothing.
    Free,
    /// Files and others, by Landlock, and nothing else that would refuse.
    Landlock,
    /// All but system calls, with limits that are soon reached.
    Limits,
    /// All of it.
    All,
}

const HELD: [(&str, Held); 4] = [
    ("not confined", Held::Free),
    ("by Landlock alone", Held::Landlock),
    ("with limits", Held::Limits),
    ("confined", Held::All),
];

/// Exit codes of a process that tried: it could, it was told no, it could not be confined.
const COULD: u8 = 10;
const COULD_NOT: u8 = 11;
const FREE_STILL: u8 = 12;

fn main() -> ExitCode {
    let told: Vec<String> = std::env::args().collect();
    if let [_, flag, what, held, directory] = told.as_slice()
        && flag == "--try"
        && let Some((_, held)) = HELD.iter().find(|(word, _)| word == held)
    {
        return attempt(what, *held, Path::new(directory));
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let (mut tried, mut failed) = (0, 0);
    let mut judge = |what: &str, held: Held, good: &dyn Fn(ExitStatus, bool) -> bool| {
        let (status, changed) = try_it(scratch.path(), what, held);
        let good = good(status, changed) && status.code() != Some(i32::from(FREE_STILL));
        let how = HELD.iter().find(|(_, h)| *h == held).map_or("", |(word, _)| word);
        println!("{} {what}, {how}: {}", if good { "ok  " } else { "FAIL" }, in_words(status));
        tried += 1;
        failed += usize::from(!good);
    };
    let could = |what: &str, status: ExitStatus| {
        status.code() == Some(i32::from(COULD)) || (what == BECOMING && status.success())
    };
    for (what, _) in REFUSED {
        judge(what, Held::All, &|status, changed| !could(what, status) && !changed);
        judge(what, Held::Free, &|status, _| could(what, status));
    }
    for what in LANDLOCKED {
        let no = |status: ExitStatus| status.code() == Some(i32::from(COULD_NOT));
        judge(what, Held::Landlock, &|status, changed| no(status) && !changed);
    }
    for (what, ends, _) in LIMITED {
        judge(what, Held::Limits, &|status, _| match ends {
            Ends::By(signal) => status.signal() == Some(signal),
            Ends::WithNo => status.code() == Some(i32::from(COULD_NOT)),
        });
    }
    for (what, _) in ALLOWED {
        judge(what, Held::All, &|status, _| could(what, status));
    }
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out",
        tried - failed
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code().map(u8::try_from), status.signal()) {
        (Some(Ok(COULD)), _) => "it could".to_owned(),
        (Some(Ok(COULD_NOT)), _) => "it was refused".to_owned(),
        (Some(Ok(FREE_STILL)), _) => "what holds it could not be had".to_owned(),
        (_, Some(signal)) => format!("it was ended by signal {signal}"),
        _ => format!("{status}"),
    }
}

/// Lets a process try, and says whether anything changed in the directory.
fn try_it(scratch: &Path, what: &str, held: Held) -> (ExitStatus, bool) {
    let directory = scratch.join("place");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join("file"), b"as it was").expect("a file");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let name = format!("snapslot-confined-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).expect("a name");
    let _listens = UnixListener::bind_addr(&address).expect("a socket");
    let (_ours, theirs) = UnixStream::pair().expect("a pair");
    let how = HELD.iter().find(|(_, h)| *h == held).map_or("", |(word, _)| word);
    let status = Command::new(std::env::current_exe().expect("this program"))
        .args(["--try", what, how])
        .arg(&directory)
        .env("TRY_PORT", port.to_string())
        .env("TRY_NAME", &name)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("it runs");
    let names = fs::read_dir(&directory).expect("it").count();
    let content = fs::read(directory.join("file")).unwrap_or_default();
    (status, names != 1 || content != b"as it was")
}

fn attempt(what: &str, held: Held, directory: &Path) -> ExitCode {
    let plain = REFUSED.iter().chain(&ALLOWED).map(|(name, attempt)| (*name, *attempt));
    let limited = LIMITED.iter().map(|(name, _, attempt)| (*name, *attempt));
    let Some((_, attempt)) = plain.chain(limited).find(|(name, _)| *name == what) else {
        return ExitCode::FAILURE;
    };
    let writes = what == WRITING || what == GROWING;
    let image = OpenOptions::new().read(true).write(writes).open(directory.join("file"));
    let Ok(image) = image else { return ExitCode::FAILURE };
    if what == CAPABLE && !become_capable() {
        return ExitCode::from(FREE_STILL);
    }
    let most = Most { memory: 256 << 20, seconds: 1 };
    let is_held = match held {
        Held::Free => true,
        Held::Landlock => snapslot_runtime::give_up_files(),
        Held::Limits => {
            let now = give_up_rights(most);
            now.user && now.limits
        }
        Held::All => {
            let now = give_up_all(Most::default());
            now.calls && now.user && now.limits
        }
    };
    if !is_held {
        return ExitCode::from(FREE_STILL);
    }
    match attempt(directory, image) {
        Ok(()) => ExitCode::from(COULD),
        Err(_) => ExitCode::from(COULD_NOT),
    }
}

/// The third version of the kernel's structures for capabilities (capget(2)).
const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];
/// Effective, permitted and inheritable, of two halves.
type Sets = [u32; 6];

fn capabilities() -> Sets {
    let mut sets = Sets::default();
    // SAFETY: header and sets are laid out as the kernel's, and live as long as the call.
    unsafe { libc::syscall(libc::SYS_capget, CAPABILITIES.as_ptr(), sets.as_mut_ptr()) };
    sets
}

/// Becomes a user who is not root and has a capability all the same, as a service may be started. Who is
/// not root cannot become that, and is not.
fn become_capable() -> bool {
    const CAP_DAC_OVERRIDE: u32 = 1;
    const NOBODY: u32 = 65_534;
    if !nix::unistd::Uid::effective().is_root() {
        return true;
    }
    let bit = 1 << CAP_DAC_OVERRIDE;
    let sets: Sets = [bit, bit, bit, 0, 0, 0];
    // SAFETY: these change rights of this process alone; header and sets are as above.
    let done = unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
            && libc::setresuid(NOBODY, NOBODY, NOBODY) == 0
            && libc::syscall(libc::SYS_capset, CAPABILITIES.as_ptr(), sets.as_ptr()) == 0
            && libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, bit.ilog2(), 0, 0) == 0
    };
    done && capabilities()[0] == bit
}
