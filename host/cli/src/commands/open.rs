//! Serving a disk: where it listens, and a command that is run meanwhile.

use std::fs::DirBuilder;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt as _, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use snapslot_engine::nbd::{Announced, Listener, Server, Tls};
use snapslot_engine::{Engine, EngineError, OnFull, Opened, ReadOnly, ServeOptions, Which};

use crate::args::{ListenArgs, OpenArgs, ServeArgs, WhenFull};
use crate::output::{Failed, Output};
use crate::stop;
use crate::words::bytes;

pub fn open(engine: &Engine, output: Output, args: &OpenArgs) -> Result<ExitCode, Failed> {
    let which = if args.live { Which::Current } else { Which::Snapshot };
    stop::listen();
    let mut result = Ok(ExitCode::SUCCESS);
    engine.with_content(&args.machine, which, &args.backing, |opened| {
        result = serve(engine, output, args, opened);
        Ok(())
    })?;
    result
}

fn serve(
    engine: &Engine,
    output: Output,
    args: &OpenArgs,
    opened: &Opened,
) -> Result<ExitCode, Failed> {
    let place = Place::listen(engine.state_dir(), &args.at)?;
    let what = match opened.which {
        Which::Snapshot => "the snapshot",
        Which::Current => "the present disk",
    };
    let export = Announced {
        name: String::new(),
        description: format!("{what} of {}, read-only", opened.volume),
        export: std::sync::Arc::new(ReadOnly(opened.content.clone())),
    };
    let server = Server::new(vec![export], place.tls.clone());
    let words = format!(
        "{} {what} of {}, {}, read-only, as {}\n",
        output.strong("Open:"),
        opened.volume,
        bytes(opened.content.size()),
        place.in_words()
    );
    let object = json!({
        "volume": opened.volume, "content": opened.which, "uri": place.uri, "tcp": place.tcp,
        "virtual-size": opened.content.size(),
    });
    run(output, &server, &place, &args.command, object, &words)
}

/// Serves a disk that is written.
pub fn serve_live(engine: &Engine, output: Output, args: &ServeArgs) -> Result<ExitCode, Failed> {
    stop::listen();
    let options = ServeOptions {
        store: args.store_size,
        on_full: match args.on_full {
            WhenFull::LoseSnapshot => OnFull::LoseSnapshot,
            WhenFull::FailWrites => OnFull::FailWrites,
        },
    };
    engine.serve(&args.machine, options, |volume, live| {
        let place = Place::listen(engine.state_dir(), &args.at)?;
        let standing = live.standing();
        let size = snapslot_engine::nbd::Export::size(&*live);
        let (serving, at) = (output.strong("Serving:"), place.in_words());
        let mut words = format!("{serving} {volume}, {}, as {at}\n", bytes(size));
        words += &match (&standing.mark, &standing.why) {
            (None, _) => String::new(),
            (Some(mark), Some(why)) => {
                format!("  its snapshot {mark} is lost: {why}; `snapslot delete` empties the slot\n")
            }
            (Some(mark), None) => {
                format!("  its slot holds {mark}; {} saved so far\n", bytes(standing.saved_bytes))
            }
        };
        let object = json!({
            "volume": volume, "uri": place.uri, "tcp": place.tcp, "virtual-size": size, "live": standing
        });
        let description = format!("{volume}, with a slot for a snapshot");
        let export = Announced { name: String::new(), description, export: live };
        let server = Server::new(vec![export], place.tls.clone());
        run(output, &server, &place, &args.command, object, &words)
    })?
}

/// Where a disk is served; its socket goes when this does.
pub struct Place {
    pub listeners: Vec<Listener>,
    pub uri: String,
    /// Where it listens besides.
    pub tcp: Option<std::net::SocketAddr>,
    pub tls: Option<Tls>,
    socket: PathBuf,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Bytes of a unix socket's path, its end included (unix(7)).
const SOCKET_PATH_MAX: usize = 108;

impl Place {
    pub fn listen(state_dir: &Path, at: &ListenArgs) -> Result<Place, Failed> {
        let tls = (at.tls.as_deref().map(Tls::from_directory).transpose())
            .context("the certificates cannot be used")?;
        let socket = match &at.socket {
            Some(path) => std::path::absolute(path).context("the socket has no path")?,
            None => {
                let directory = state_dir.join("nbd");
                let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
                made.with_context(|| format!("cannot make {}", directory.display()))?;
                directory.join(format!("{}.sock", std::process::id()))
            }
        };
        if socket.as_os_str().len() >= SOCKET_PATH_MAX {
            return Err(anyhow!(
                "{} is too long for a socket's path; --socket names a shorter one",
                socket.display()
            )
            .into());
        }
        let listener =
            bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        let place = |listeners| Place {
            uri: format!("nbd+unix:///?socket={}", socket.display()),
            listeners,
            tcp: None,
            tls: tls.clone(),
            socket: socket.clone(),
        };
        let mut place = place(vec![Listener::Unix(listener)]);
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot keep {} to its owner", socket.display()))?;
        if let Some(address) = at.tcp {
            let tcp = TcpListener::bind(address)
                .with_context(|| format!("cannot listen on {address}"))?;
            place.tcp = Some(tcp.local_addr().context("a listener without an address")?);
            place.listeners.push(Listener::Tcp(tcp));
        }
        Ok(place)
    }

    fn in_words(&self) -> String {
        match self.tcp {
            None => self.uri.clone(),
            Some(address) => format!("{}, and with TLS at {address}", self.uri),
        }
    }
}

/// Listens on a socket; in place of one that a server left which did not end in good order.
fn bind(socket: &Path) -> std::io::Result<UnixListener> {
    match UnixListener::bind(socket) {
        Err(e) if e.kind() == ErrorKind::AddrInUse => {
            let is_socket = std::fs::symlink_metadata(socket)?.file_type().is_socket();
            let refused = UnixStream::connect(socket)
                .is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
            if !is_socket || !refused {
                return Err(e);
            }
            std::fs::remove_file(socket)?;
            UnixListener::bind(socket)
        }
        bound => bound,
    }
}

/// Serves until it is interrupted, or the command has ended. One that is interrupted while a command runs has that
/// end first: it may have something to write.
pub fn run(
    output: Output,
    server: &Server,
    place: &Place,
    command: &[String],
    object: serde_json::Value,
    words: &str,
) -> Result<ExitCode, Failed> {
    let Some((program, arguments)) = command.split_first() else {
        output.done(object, words);
        let _ = std::io::stdout().flush();
        let served = server.run(&place.listeners, &stop::wanted);
        served.context("it cannot be served any longer")?;
        return Ok(ExitCode::SUCCESS);
    };
    let tcp = place.tcp.map(|address| address.to_string()).unwrap_or_default();
    let fill = |word: &String| word.replace("{uri}", &place.uri).replace("{tcp}", &tcp);
    let child = std::process::Command::new(program)
        .args(arguments.iter().map(fill))
        .env("NBD_URI", &place.uri)
        .env("NBD_TCP", &tcp)
        .spawn()
        .map_err(|e| EngineError::Usage(format!("{program} cannot be run: {e}")))?;
    let child = Mutex::new((child, None));
    let told = AtomicBool::new(false);
    let ended = || {
        let mut child = child.lock().unwrap_or_else(|e| e.into_inner());
        let (process, status): &mut (Child, _) = &mut child;
        if status.is_none() {
            *status = process.try_wait().ok().flatten();
        }
        if status.is_none()
            && let Some(signal) = stop::signal().filter(|_| !told.swap(true, Ordering::Relaxed))
        {
            // A terminal tells both; whoever told us alone wants both to end.
            let by_terminal = signal == Signal::SIGINT && std::io::stdin().is_terminal();
            if let (false, Ok(pid)) = (by_terminal, i32::try_from(process.id())) {
                let _ = kill(Pid::from_raw(pid), signal);
            }
        }
        status.is_some()
    };
    server.run(&place.listeners, &ended).context("it cannot be served any longer")?;
    let (mut process, status) = child.into_inner().unwrap_or_else(|e| e.into_inner());
    let status = match status {
        Some(status) => status,
        None => process.wait().context("the command cannot be waited for")?,
    };
    let code = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}
