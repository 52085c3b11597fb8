//! Helpers for requests that wait for a device: reads that are not in memory, and flushes.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

type Job = Box<dyn FnOnce() + Send>;

/// Requests that wait side by side: what a disk can put in order, and not so many threads that
/// they are a burden. Twice what one connection may have waiting, so that none has all of them.
pub(crate) const HELPERS: usize = 32;

/// Threads that do jobs. They end when it is dropped and all jobs are done.
#[derive(Clone)]
pub(crate) struct Pool {
    jobs: Sender<Job>,
}

impl Pool {
    pub(crate) fn new() -> std::io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for i in 0..HELPERS {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("nbd-{i}"))
                .stack_size(256 << 10)
                .spawn(move || help(&queue))?;
        }
        Ok(Pool { jobs })
    }

    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        // It fails only if every helper is gone, and they end last.
        let _ = self.jobs.send(Box::new(job));
    }
}

fn help(queue: &Mutex<Receiver<Job>>) {
    loop {
        let next = queue.lock().unwrap_or_else(|e| e.into_inner()).recv();
        match next {
            Ok(job) => {
                // A job that panics fails its own request: the connection finds no answer sent.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            }
            Err(_) => return,
        }
    }
}
