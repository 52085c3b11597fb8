//! Putting pieces in order again.

use std::sync::{Condvar, Mutex};

use sha2::{Digest as _, Sha256};

use crate::ContentError;

/// Lets pieces through by their number.
#[derive(Default)]
pub(super) struct Order {
    /// The number whose turn it is; none: somebody failed.
    now: Mutex<(u64, bool)>,
    turned: Condvar,
}

impl Order {
    /// Waits for the turn of this number, does the work, and lets the next one through.
    pub(super) fn turn(
        &self,
        number: u64,
        work: impl FnOnce() -> Result<(), ContentError>,
    ) -> Result<(), ContentError> {
        let now = self.now.lock().unwrap_or_else(|e| e.into_inner());
        let wait = |(now, over): &mut (u64, bool)| *now != number && !*over;
        let mut now = self.turned.wait_while(now, wait).unwrap_or_else(|e| e.into_inner());
        if now.1 {
            return Err(ContentError::Stopped);
        }
        let result = work();
        now.0 += 1;
        self.turned.notify_all();
        result
    }

    /// Nobody waits any longer.
    pub(super) fn give_up(&self) {
        self.now.lock().unwrap_or_else(|e| e.into_inner()).1 = true;
        self.turned.notify_all();
    }
}

/// SHA-256 over content in order.
#[derive(Default)]
pub(super) struct Digest(Mutex<Sha256>);

impl Digest {
    fn hash(&self) -> std::sync::MutexGuard<'_, Sha256> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    pub(super) fn data(&self, bytes: &[u8]) -> Result<(), ContentError> {
        self.hash().update(bytes);
        Ok(())
    }

    pub(super) fn zero(&self, mut length: u64) -> Result<(), ContentError> {
        static ZEROES: [u8; 65_536] = [0; 65_536];
        let mut hash = self.hash();
        while length > 0 {
            let n = length.min(ZEROES.len() as u64);
            hash.update(&ZEROES[..n as usize]);
            length -= n;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> String {
        let hash = self.0.into_inner().unwrap_or_else(|e| e.into_inner());
        hash.finalize().iter().map(|b| format!("{b:02x}")).collect()
    }
}
