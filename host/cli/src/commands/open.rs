//! Serving a disk: where it listens, and a command that is run meanwhile.

use std::fs::DirBuilder;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitCode};
use std::sync::Mutex;

use anyhow::{Context, anyhow};
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
        place.uri
    );
    let object = json!({
        "volume": opened.volume, "content": opened.which, "uri": place.uri,
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
        let mut words =
            format!("{} {volume}, {}, as {}\n", output.strong("Serving:"), bytes(size), place.uri);
        if let (Some(mark), false) = (&standing.mark, standing.lost) {
            words +=
                &format!("  its slot holds {mark}; {} saved so far\n", bytes(standing.saved_bytes));
        }
        let object =
            json!({ "volume": volume, "uri": place.uri, "virtual-size": size, "live": standing });
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
        let listener = UnixListener::bind(&socket)
            .with_context(|| format!("cannot listen on {}", socket.display()))?;
        let place = |listeners| Place {
            uri: format!("nbd+unix:///?socket={}", socket.display()),
            listeners,
            tls: tls.clone(),
            socket: socket.clone(),
        };
        let mut place = place(vec![Listener::Unix(listener)]);
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))
            .with_context(|| format!("cannot keep {} to its owner", socket.display()))?;
        if let Some(address) = at.tcp {
            let tcp = TcpListener::bind(address)
                .with_context(|| format!("cannot listen on {address}"))?;
            place.listeners.push(Listener::Tcp(tcp));
        }
        Ok(place)
    }
}

/// Serves until it is interrupted, or the command has ended.
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
    let fill = |word: &String| word.replace("{uri}", &place.uri);
    let child = std::process::Command::new(program)
        .args(arguments.iter().map(fill))
        .env("NBD_URI", &place.uri)
        .spawn()
        .map_err(|e| EngineError::Usage(format!("{program} cannot be run: {e}")))?;
    let child = Mutex::new((child, None));
    let ended = || {
        let mut child = child.lock().unwrap_or_else(|e| e.into_inner());
        let (process, status): &mut (Child, _) = &mut child;
        if status.is_none() {
            *status = process.try_wait().ok().flatten();
        }
        status.is_some() || stop::wanted()
    };
    server.run(&place.listeners, &ended).context("it cannot be served any longer")?;
    let (mut process, status) = child.into_inner().unwrap_or_else(|e| e.into_inner());
    let status = match status {
        Some(status) => status,
        None => {
            // Interrupted: the command heard it too, being of the same terminal.
            process.wait().context("the command cannot be waited for")?
        }
    };
    let code = status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}
