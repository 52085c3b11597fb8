//! Threads that go on until a test has what it wants.

use std::sync::atomic::{AtomicBool, Ordering};

/// Tells the threads of a scope to end, also when a check fails: the scope waits for them.
#[derive(Debug, Default)]
pub struct Ends(AtomicBool);

/// Tells them when it goes.
#[derive(Debug)]
pub struct AtTheEnd<'a>(&'a Ends);

impl Ends {
    /// They are told when what is given back goes.
    #[must_use]
    pub fn at_the_end(&self) -> AtTheEnd<'_> {
        AtTheEnd(self)
    }

    /// Whether they were told.
    pub fn has_come(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
