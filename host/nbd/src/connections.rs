//! The connections there are: how many may be, and how they are ended.
//!
//! Who has not chosen an export yet is a stranger. Strangers have few places of their own, and the one that has
//! been one for longest makes room for the next: so that silent ones lock nobody out. Of the places of those who have
//! chosen some are kept for clients of this host, which is where machines come from.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};

/// Connections at once that have chosen an export: each has a thread and a mebibyte of buffers.
pub const CONNECTIONS_MAX: usize = 64;
/// Of these, for clients of this host alone.
pub const LOCAL_MIN: usize = 16;
/// Connections at once that have not, of this host and of others each.
pub const STRANGERS_MAX: usize = 16;

/// All of them.
#[derive(Default)]
pub(crate) struct Connections {
    list: Mutex<List>,
    left: Condvar,
}

#[derive(Default)]
struct List {
    /// In the order in which they came.
    all: Vec<Entry>,
    next: u64,
    stopping: bool,
}

struct Entry {
    number: u64,
    /// A descriptor of our own: whoever serves it may close his at any time, and the number be another file's then.
    socket: OwnedFd,
    local: bool,
    chosen: bool,
}

impl Entry {
    fn end(&self, how: Shutdown) {
        // One that is gone already needs no end.
        let _ = shutdown(self.socket.as_raw_fd(), how);
    }
}

impl Connections {
    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.list().all.len()
    }

    /// Takes in one more, `local` if it is of this host.
    pub(crate) fn enter(&self, socket: &impl AsFd, local: bool) -> io::Result<Place<'_>> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let mut list = self.list();
        let strangers = list.all.iter().filter(|e| !e.chosen && e.local == local);
        if strangers.clone().count() >= STRANGERS_MAX
            && let Some(first) = strangers.clone().next()
        {
            tracing::info!("a client that said nothing made room for another one");
            first.end(Shutdown::Both);
            let first = first.number;
            // Its own thread finds out in a moment; its place is free at once.
            list.all.retain(|e| e.number != first);
        }
        let number = list.next;
        list.next += 1;
        let entry = Entry { number, socket, local, chosen: false };
        if list.stopping {
            entry.end(Shutdown::Read);
        }
        list.all.push(entry);
        Ok(Place { connections: self, number })
    }

    /// Ends them all: nothing more is read; what is being answered may go out for so long. Waits no longer.
    pub(crate) fn stop(&self, grace: Duration) {
        let mut list = self.list();
        list.stopping = true;
        list.all.iter().for_each(|e| e.end(Shutdown::Read));
        let (list, _) = self
            .left
            .wait_timeout_while(list, grace, |list| !list.all.is_empty())
            .unwrap_or_else(|e| e.into_inner());
        list.all.iter().for_each(|e| e.end(Shutdown::Both));
    }
}

/// A connection's place; it is free when this goes.
pub(crate) struct Place<'c> {
    connections: &'c Connections,
    number: u64,
}

impl Place<'_> {
    /// It has chosen an export. `false`: there is no place for one more of its kind.
    pub(crate) fn choose(&self) -> bool {
        let mut list = self.connections.list();
        let chosen = list.all.iter().filter(|e| e.chosen);
        let (all, remote) = (chosen.clone().count(), chosen.filter(|e| !e.local).count());
        let Some(own) = list.all.iter_mut().find(|e| e.number == self.number) else { return false };
        own.chosen = all < CONNECTIONS_MAX && (own.local || remote < CONNECTIONS_MAX - LOCAL_MIN);
        own.chosen
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.connections.list().all.retain(|e| e.number != self.number);
        self.connections.left.notify_all();
    }
}
