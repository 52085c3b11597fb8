//! Stopping long work in an orderly way: at the first interrupt; a second one ends at once.

use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static WANTED: AtomicBool = AtomicBool::new(false);

extern "C" fn heard(_signal: i32) {
    WANTED.store(true, Ordering::Relaxed);
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
    WANTED.load(Ordering::Relaxed)
}
