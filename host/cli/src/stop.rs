//! Stopping long work in an orderly way: at the first interrupt; a second one ends at once.

use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The signal that was heard; 0: none.
static WANTED: AtomicI32 = AtomicI32::new(0);

extern "C" fn heard(signal: i32) {
    WANTED.store(signal, Ordering::Relaxed);
}

/// From here on an interrupt or a request to end is taken note of, once.
pub fn listen() {
    let action = SigAction::new(SigHandler::Handler(heard), SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler stores to an atomic, which is allowed in one, and nothing else.
        let _ = unsafe { sigaction(signal, &action) };
    }
}

/// Whether somebody wants it to stop.
pub fn wanted() -> bool {
    WANTED.load(Ordering::Relaxed) != 0
}

/// The signal by which.
pub fn signal() -> Option<Signal> {
    Signal::try_from(WANTED.load(Ordering::Relaxed)).ok()
}
