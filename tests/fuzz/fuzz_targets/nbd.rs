//! A client of a network block device that sends anything: the server answers or hangs up, reaches nothing outside
//! the disk, and serves the next one.
#![no_main]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use snapslot_fuzz::{Bytes, nbd_client};
use snapslot_nbd::{Announced, Export, Server};

const SIZE: u64 = 65_536;

struct Memory(Mutex<Vec<u8>>);

impl Export for Memory {
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.0.lock().expect("the lock");
        buf.copy_from_slice(&bytes[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
    fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        self.read(offset, buf).map(|()| offset % 3 != 0)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut bytes = self.0.lock().expect("the lock");
        bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn writes_at_once(&self) -> bool {
        true
    }
    fn zero(&self, offset: u64, length: u64, _punch: bool) -> io::Result<()> {
        self.0.lock().expect("the lock")[offset as usize..(offset + length) as usize].fill(0);
        Ok(())
    }
    fn trim(&self, offset: u64, length: u64) -> io::Result<()> {
        self.zero(offset, length, true)
    }
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let export = Arc::new(Memory(Mutex::new(vec![0; SIZE as usize])));
    let announced = |name: &str| Announced {
        name: name.to_owned(),
        description: "memory".to_owned(),
        export: export.clone(),
    };
    Server::new(vec![announced("disk"), announced("same")], None)
});

fuzz_target!(|data: &[u8]| {
    let sent = nbd_client(&mut Bytes(data));
    let (mut ours, theirs) = UnixStream::pair().expect("a pair");
    std::thread::scope(|scope| {
        let mut reading = ours.try_clone().expect("a descriptor");
        scope.spawn(move || {
            let mut heard = Vec::new();
            let _ = reading.read_to_end(&mut heard);
            assert!(heard.starts_with(b"NBDMAGICIHAVEOPT"), "no greeting");
        });
        scope.spawn(move || {
            let _ = ours.write_all(&sent);
            let _ = ours.shutdown(Shutdown::Write);
        });
        SERVER.serve_one(theirs).expect("helpers");
    });
    assert_eq!(SERVER.served().connections, 0, "a connection is left");
});
