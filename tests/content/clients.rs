//! The snapshot over NBD, with the clients people have: QEMU's and libnbd's.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use snapslot_test_support::needs::{self, ROOT};
use snapslot_test_support::{Image, Scratch, Snapslot, assert_same};

use crate::{MIB, program, snapslot};

fn held(scratch: &Scratch) -> (Snapslot, Image, Vec<u8>) {
    let image = Image::create(scratch.join("disk.qcow2"), &[], 32 * MIB);
    image.guest(["write -q -P 5 1M 3M", "write -q -P 6 20M 64k"]);
    let before = image.active();
    let snapslot = snapslot(scratch);
    snapslot.verb("take", image.path(), &[]).expect(0);
    image.guest(["write -q -P 7 0 32M"]);
    (snapslot, image, before)
}

/// Opens the snapshot for one command; gives its standard output.
#[track_caller]
fn opened(snapslot: &Snapslot, image: &Image, command: &[&str]) -> String {
    let mut all = vec!["open".to_owned(), image.path().display().to_string(), "--".to_owned()];
    all.extend(command.iter().map(|c| (*c).to_owned()));
    let done = snapslot.run(&all);
    assert!(done.code() == 0, "{command:?}: {}", done.process.account());
    done.process.text()
}

#[test]
fn libnbd_reads_what_was_taken_and_where_there_is_something() {
    if !needs::has(&["nbdcopy", "nbdinfo"]) {
        return;
    }
    let scratch = Scratch::new();
    let (snapslot, image, before) = held(&scratch);
    let copy = scratch.join("copy.raw").display().to_string();
    opened(&snapslot, &image, &["nbdcopy", "{uri}", &copy]);
    assert_same("by nbdcopy", &std::fs::read(&copy).expect("the copy"), &before);
    let one = scratch.join("one.raw").display().to_string();
    opened(&snapslot, &image, &["nbdcopy", "--connections=1", "--requests=1", "{uri}", &one]);
    assert_same("one by one", &std::fs::read(&one).expect("the copy"), &before);
    let info = opened(&snapslot, &image, &["nbdinfo", "{uri}"]);
    for fact in
        ["export-size: 33554432", "is_read_only: true", "base:allocation", "can_multi_conn: true"]
    {
        assert!(info.contains(fact), "{info}");
    }
    let map = opened(&snapslot, &image, &["nbdinfo", "--map", "{uri}"]);
    let rows: Vec<Vec<&str>> = map.lines().map(|l| l.split_whitespace().collect()).collect();
    let expected = [
        ["0", "1048576", "3", "hole,zero"],
        ["1048576", "3145728", "0", "data"],
        ["4194304", "16777216", "3", "hole,zero"],
        ["20971520", "65536", "0", "data"],
        ["21037056", "12517376", "3", "hole,zero"],
    ];
    assert_eq!(rows, expected, "{map}");
    let list = opened(&snapslot, &image, &["nbdinfo", "--list", "{uri}"]);
    assert!(list.contains("read-only"), "{list}");
}

/// As a file, for programs that know no NBD.
#[test]
fn fuse_shows_it_as_a_file() {
    if !needs::has(&[ROOT]) {
        return;
    }
    let scratch = Scratch::new();
    let (snapslot, image, before) = held(&scratch);
    let plain = scratch.join("plain.raw");
    std::fs::write(&plain, &before).expect("room");
    std::fs::create_dir(scratch.join("mnt")).expect("room");
    // It tells that it is mounted by writing its number.
    let script = format!(
        "cd {} && mkfifo ready && {{ nbdfuse --pidfile ready mnt/disk {{uri}} & }}
         cat ready > /dev/null && cmp mnt/disk plain.raw; code=$?
         umount mnt; wait; exit $code",
        scratch.path().display()
    );
    opened(&snapslot, &image, &["sh", "-c", &script]);
}

#[test]
fn qemu_reads_it_and_may_not_write_it() {
    let scratch = Scratch::new();
    let (snapslot, image, before) = held(&scratch);
    let plain = scratch.join("plain.raw");
    std::fs::write(&plain, &before).expect("room");
    let plain = plain.display().to_string();
    let same = opened(
        &snapslot,
        &image,
        &["qemu-img", "compare", "-f", "raw", "-F", "raw", "{uri}", &plain],
    );
    assert!(same.contains("identical"), "{same}");
    let read = opened(
        &snapslot,
        &image,
        &[
            "qemu-io",
            "-r",
            "-f",
            "raw",
            "-c",
            "read -P 5 1M 3M",
            "-c",
            "read -P 0 4M 16M",
            "-c",
            "read -P 6 20M 64k",
            "{uri}",
        ],
    );
    assert!(!read.contains("failed"), "{read}");
    let write = ["qemu-io", "-f", "raw", "-c", "write 0 4k", "{uri}"];
    let mut all = vec!["open".to_owned(), image.path().display().to_string(), "--".to_owned()];
    all.extend(write.iter().map(|c| (*c).to_owned()));
    assert_ne!(snapslot.run(&all).code(), 0, "a snapshot is written");
    image.assert_clean();
}

#[test]
fn a_command_gives_its_exit_code_and_the_slot_is_busy_meanwhile() {
    let scratch = Scratch::new();
    let (snapslot, image, _) = held(&scratch);
    let path = image.path().display().to_string();
    let code = |script: &str| snapslot.run(["open", &path, "--", "sh", "-c", script]).code();
    assert_eq!(code("exit 7"), 7);
    assert_eq!(code("test -n \"$NBD_URI\""), 0);
    let busy = format!(
        "{} --json --state-dir {} delete --yes {path}; test $? = 5",
        env!("CARGO_BIN_EXE_snapslot"),
        snapslot.state().display()
    );
    assert_eq!(code(&busy), 0, "a snapshot that is looked into was deleted");
    // Two may look at once.
    let twice = format!(
        "{} --state-dir {} open {path} -- qemu-img info -U {{uri}}",
        env!("CARGO_BIN_EXE_snapslot"),
        snapslot.state().display()
    );
    assert_eq!(code(&twice), 0);
    snapslot.verb("delete", image.path(), &[]).expect(0);
}

#[test]
fn junk_ends_its_own_connection_and_no_other() {
    let scratch = Scratch::new();
    let (snapslot, image, before) = held(&scratch);
    let socket = scratch.join("s");
    let path = socket.display().to_string();
    let served = snapslot.start(["open", &image.path().display().to_string(), "--socket", &path]);
    let served = served.listening(&socket);
    let connect = || UnixStream::connect(&socket).expect("it listens");
    let greeted = || {
        let mut stream = connect();
        let mut hello = [0; 18];
        stream.read_exact(&mut hello).expect("a greeting");
        assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
        stream
    };
    let option = |kind: u32, data: &[u8]| {
        let mut out = b"IHAVEOPT".to_vec();
        out.extend(kind.to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
        out
    };
    let request = |kind: u16, offset: u64, length: u32| {
        let mut out = 0x2560_9513_u32.to_be_bytes().to_vec();
        out.extend([0; 2]);
        out.extend(kind.to_be_bytes());
        out.extend([7; 8]);
        out.extend(offset.to_be_bytes());
        out.extend(length.to_be_bytes());
        out
    };
    let chosen = |structured: bool| {
        let mut stream = greeted();
        stream.write_all(&3_u32.to_be_bytes()).expect("flags");
        if structured {
            stream.write_all(&option(8, b"")).expect("an option");
            let mut reply = [0; 20];
            stream.read_exact(&mut reply).expect("a reply");
        }
        stream.write_all(&option(1, b"")).expect("an option");
        let mut size = [0; 10];
        stream.read_exact(&mut size).expect("an export");
        assert_eq!(u64::from_be_bytes(size[..8].try_into().expect("8")), 32 * MIB);
        stream
    };
    let honest = chosen(false);
    // What ends a connection.
    let mut endings: Vec<(&str, Vec<u8>, bool)> = vec![
        ("flags nobody knows", u32::MAX.to_be_bytes().to_vec(), false),
        ("no option at all", [&3_u32.to_be_bytes()[..], &[0xff; 64]].concat(), false),
        (
            "an endless option",
            [&3_u32.to_be_bytes()[..], b"IHAVEOPT", &[0, 0, 0, 3], &[0xff; 4]].concat(),
            false,
        ),
        (
            "an export that is not there",
            [&3_u32.to_be_bytes()[..], &option(1, b"nothing")].concat(),
            false,
        ),
        ("no request at all", vec![0xff; 64], true),
    ];
    let mut endless = request(1, 0, u32::MAX);
    endless.extend([0; 100]);
    endings.push(("an endless write", endless, true));
    for (what, bytes, after_choice) in &endings {
        let mut stream = if *after_choice { chosen(false) } else { greeted() };
        let _ = stream.write_all(bytes);
        let _ = stream.set_read_timeout(Some(std::time::Duration::from_secs(20)));
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest);
        assert!(
            ended.is_ok() || ended.is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "{what} does not end the connection"
        );
    }
    // What is answered with an error, and the connection goes on.
    let mut stream = chosen(true);
    for (kind, offset, length, error) in [
        (0, 32 * MIB, 512, 22),
        (0, u64::MAX - 100, 512, 22),
        (0, 0, 0, 22),
        (0, 0, 64 << 20, 22),
        (1, 0, 4, 1),
        (4, 0, 512, 1),
        (6, 0, 512, 1),
        (7, 0, 512, 22),
        (99, 0, 512, 22),
    ] {
        let mut bytes = request(kind, offset, length);
        if kind == 1 {
            bytes.extend([1; 4]);
        }
        stream.write_all(&bytes).expect("a request");
        let mut head = [0; 4];
        stream.read_exact(&mut head).expect("a reply");
        let found = if head == 0x668e_33ef_u32.to_be_bytes() {
            let mut rest = [0; 22];
            stream.read_exact(&mut rest).expect("a chunk");
            u32::from_be_bytes(rest[16..20].try_into().expect("4"))
        } else {
            let mut rest = [0; 12];
            stream.read_exact(&mut rest).expect("a reply");
            u32::from_be_bytes(rest[..4].try_into().expect("4"))
        };
        assert_eq!(found, error, "request {kind} at {offset}, {length} bytes");
    }
    // The one that was there first is served still.
    let mut stream = honest;
    stream.write_all(&request(0, MIB, 4096)).expect("a request");
    let mut reply = [0; 16 + 4096];
    stream.read_exact(&mut reply).expect("a reply");
    assert_eq!(&reply[4..8], [0; 4]);
    assert_same("after all that", &reply[16..], &before[MIB as usize..][..4096]);
    drop(stream);
    program("kill", &["-INT", &served.id().to_string()]);
    let done = served.finish(std::time::Duration::from_secs(30));
    assert_eq!(done.code, Some(0), "{}", done.account());
    assert!(!Path::new(&path).exists(), "the socket is left");
}

#[test]
fn over_tcp_it_takes_tls_and_a_certificate() {
    if !needs::has(&["openssl", "nbdcopy", "nbdinfo"]) {
        return;
    }
    let scratch = Scratch::new();
    let (snapslot, image, before) = held(&scratch);
    let pki = scratch.join("pki");
    std::fs::create_dir(&pki).expect("room");
    let openssl = |script: &str| {
        let whole = format!("cd {} && {script}", pki.display());
        program("sh", &["-c", &whole]).expect_success();
    };
    openssl(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 9 -subj /CN=ca -keyout ca-key.pem -out ca-cert.pem \
           -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2>/dev/null
         printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > ext
         for who in server client; do
           openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout $who-key.pem -out $who.csr 2>/dev/null
           openssl x509 -req -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -days 9 -extfile ext -out $who-cert.pem 2>/dev/null
         done",
    );
    let (path, pki) = (image.path().display().to_string(), pki.display().to_string());
    let run = |command: &[&str]| {
        let mut all = vec!["open", &path, "--tcp", "127.0.0.1:0", "--tls", &pki, "--"];
        all.extend(command);
        snapslot.run(&all)
    };
    let copy = scratch.join("copy.raw").display().to_string();
    let uri = format!("nbds://{{tcp}}/?tls-certificates={pki}");
    let done = run(&["nbdcopy", &uri, &copy]);
    assert!(done.code() == 0, "{}", done.process.account());
    assert_same("over TLS", &std::fs::read(&copy).expect("the copy"), &before);
    // Without TLS there is nothing, and without a certificate neither.
    assert_ne!(run(&["nbdinfo", "--size", "nbd://{tcp}/"]).code(), 0, "served without TLS");
    let stranger = scratch.join("stranger");
    std::fs::create_dir(&stranger).expect("room");
    std::fs::copy(format!("{pki}/ca-cert.pem"), stranger.join("ca-cert.pem")).expect("room");
    let uri = format!("nbds://{{tcp}}/?tls-certificates={}", stranger.display());
    assert_ne!(run(&["nbdinfo", "--size", &uri]).code(), 0, "served to a stranger");
}
