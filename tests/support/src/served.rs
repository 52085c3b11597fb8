//! Reading single places of a snapshot, without converting all of it.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{Finished, Process};
use crate::{Image, Scratch, qemu_io};

const DEADLINE: Duration = Duration::from_secs(120);

impl Image {
    /// Runs reading commands of `qemu-io` on the snapshot of this name, served by `qemu-nbd`.
    ///
    /// The socket listens before the server is started (`sd_listen_fds(3)`), so there is nothing
    /// to wait for; the server ends with its one client, so nobody holds the image afterwards.
    ///
    /// # Panics
    /// When QEMU's tools are missing or refuse to serve.
    #[track_caller]
    pub fn look_at_snapshot<S: AsRef<str>>(
        &self,
        name: &str,
        commands: impl IntoIterator<Item = S>,
    ) -> Finished {
        let scratch = Scratch::new();
        let socket = scratch.join("s");
        let listener = UnixListener::bind(&socket).expect("a listening socket");
        let mut server = Command::new("sh");
        let script = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec qemu-nbd \"$@\"";
        server.args(["-c", script, "qemu-nbd", "-r", "-l"]);
        server.arg(format!("snapshot.name={name}")).args(self.arguments()).env("LC_ALL", "C");
        let server = Process::start_with(server, Stdio::from(OwnedFd::from(listener)));
        let mut arguments: Vec<OsString> = vec!["-r".into(), "-f".into(), "raw".into()];
        for command in commands {
            arguments.extend(["-c".into(), command.as_ref().into()]);
        }
        arguments.push(format!("nbd+unix:///?socket={}", socket.display()).into());
        let seen = qemu_io(arguments);
        let served = server.finish(DEADLINE);
        assert!(served.code == Some(0), "{}\n{}", served.account(), seen.account());
        seen
    }
}

#[cfg(test)]
mod tests {
    use crate::{Image, Scratch};

    #[test]
    fn reads_places_of_a_snapshot() {
        let scratch = Scratch::new();
        let image = Image::create(scratch.join("a.qcow2"), &[], 1 << 30);
        image.guest(["write -P 7 1M 64k"]).expect_success();
        image.qemu_img(&["snapshot", "-c", "one"], &[]).expect_success();
        image.guest(["write -P 8 0 2M"]).expect_success();
        let seen = image.look_at_snapshot("one", ["read -P 7 1M 64k", "read -P 0 0 1M"]);
        seen.expect_success();
        assert_ne!(image.look_at_snapshot("one", ["read -P 8 1M 64k"]).code, Some(0));
        image.look(["read -P 8 1M 64k"]).expect_success();
    }
}
