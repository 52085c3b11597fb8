//! Raw content to a pipe, a socket or a terminal's redirection: in order, zeroes included.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use snapslot_disk::Doing;

use super::Sink;
use super::order::Order;
use crate::ContentError;

pub(super) struct Stream<W> {
    to: Mutex<W>,
    name: String,
    order: Order,
    written: AtomicU64,
}

impl<W: Write> Stream<W> {
    pub(super) fn new(to: W, name: &str) -> Self {
        let (order, written) = (Order::default(), AtomicU64::new(0));
        Stream { to: Mutex::new(to), name: name.to_owned(), order, written }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), ContentError> {
        let mut to = self.to.lock().unwrap_or_else(|e| e.into_inner());
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        to.write_all(bytes).map_err(|e| ContentError::io(&self.name, Doing::Write, e))
    }
}

impl<W: Write + Send> Sink for Stream<W> {
    fn data(&self, number: u64, _start: u64, bytes: &[u8]) -> Result<(), ContentError> {
        self.order.turn(number, || self.write(bytes))
    }

    fn zero(&self, number: u64, _start: u64, length: u64) -> Result<(), ContentError> {
        static ZEROES: [u8; 65_536] = [0; 65_536];
        self.order.turn(number, || {
            let mut rest = length;
            while rest > 0 {
                let n = rest.min(ZEROES.len() as u64);
                self.write(&ZEROES[..n as usize])?;
                rest -= n;
            }
            Ok(())
        })
    }

    fn finish(&self) -> Result<u64, ContentError> {
        let mut to = self.to.lock().unwrap_or_else(|e| e.into_inner());
        to.flush().map_err(|e| ContentError::io(&self.name, Doing::Write, e))?;
        Ok(self.written.load(Ordering::Relaxed))
    }

    fn give_up(&self) {
        self.order.give_up();
    }
}
