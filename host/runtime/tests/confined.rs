//! Goal: the process that runs plugins can write nothing, reach nothing and hurt nobody, even if
//! code in it does what it likes. Method: for each thing, a process that gives up its rights as
//! that one does and then tries it. The same tried without giving up must work, or the test would
//! prove nothing. And what planning needs must still work.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use nix::libc;

/// A thing to try. What it needs is open before rights are given up.
type Attempt = fn(&Path, File) -> io::Result<()>;

/// What must not be possible.
const REFUSED: [(&str, Attempt); 16] = [
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
    ("make a socket", |_, _| UnixDatagram::unbound().map(drop)),
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

/// Exit codes of a process that tried: it could, it was told no, it could not be confined.
const COULD: u8 = 10;
const COULD_NOT: u8 = 11;
const FREE_STILL: u8 = 12;

fn main() -> ExitCode {
    let told: Vec<String> = std::env::args().collect();
    if let [_, flag, what, confined, directory] = told.as_slice()
        && flag == "--try"
    {
        return attempt(what, confined == "confined", Path::new(directory));
    }
    let scratch = tempfile::tempdir().expect("a directory");
    let mut failed = 0;
    let confined = REFUSED.iter().map(|(what, _)| (*what, true, false));
    let free = REFUSED.iter().map(|(what, _)| (*what, false, true));
    let needed = ALLOWED.iter().map(|(what, _)| (*what, true, true));
    for (what, confined, expected) in confined.chain(free).chain(needed) {
        let (status, changed) = tried(scratch.path(), what, confined);
        let could =
            status.code() == Some(i32::from(COULD)) || (what == BECOMING && status.success());
        let good = could == expected
            && status.code() != Some(i32::from(FREE_STILL))
            && (expected || !changed);
        let how = if confined { "confined" } else { "not confined" };
        println!("{} {what}, {how}: {}", if good { "ok  " } else { "FAIL" }, in_words(status));
        failed += usize::from(!good);
    }
    let all = 2 * REFUSED.len() + ALLOWED.len();
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "test result: {verdict}. {} passed; {failed} failed; 0 ignored; 0 measured; 0 filtered out",
        all - failed
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code().map(u8::try_from), status.signal()) {
        (Some(Ok(COULD)), _) => "it could".to_owned(),
        (Some(Ok(COULD_NOT)), _) => "it was refused".to_owned(),
        (Some(Ok(FREE_STILL)), _) => "seccomp could not be had".to_owned(),
        (_, Some(signal)) => format!("it was ended by signal {signal}"),
        _ => format!("{status}"),
    }
}

/// Lets a process try, and says whether anything changed in the directory.
fn tried(scratch: &Path, what: &str, confined: bool) -> (ExitStatus, bool) {
    let directory = scratch.join("place");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).expect("a directory");
    fs::write(directory.join("file"), b"as it was").expect("a file");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let (_ours, theirs) = UnixStream::pair().expect("a pair");
    let status = Command::new(std::env::current_exe().expect("this program"))
        .args(["--try", what, if confined { "confined" } else { "free" }])
        .arg(&directory)
        .env("TRY_PORT", port.to_string())
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("it runs");
    let names = fs::read_dir(&directory).expect("it").count();
    let content = fs::read(directory.join("file")).unwrap_or_default();
    (status, names != 1 || content != b"as it was")
}

fn attempt(what: &str, confined: bool, directory: &Path) -> ExitCode {
    let Some((_, attempt)) = REFUSED.iter().chain(&ALLOWED).find(|(name, _)| *name == what) else {
        return ExitCode::FAILURE;
    };
    let image = OpenOptions::new().read(true).write(what == WRITING).open(directory.join("file"));
    let Ok(image) = image else { return ExitCode::FAILURE };
    // What Landlock refuses is refused by seccomp too; a kernel may lack the first.
    if confined && !snapslot_runtime::give_up_all().calls {
        return ExitCode::from(FREE_STILL);
    }
    match attempt(directory, image) {
        Ok(()) => ExitCode::from(COULD),
        Err(_) => ExitCode::from(COULD_NOT),
    }
}
