//! A progress bar, on a terminal and for work that takes a while.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Work shorter than this shows nothing.
const PATIENCE: Duration = Duration::from_millis(300);

pub struct Progress {
    begun: Instant,
    wanted: bool,
    bar: OnceLock<ProgressBar>,
}

impl Progress {
    pub fn new(json: bool) -> Self {
        let wanted = !json && std::io::stderr().is_terminal();
        Progress { begun: Instant::now(), wanted, bar: OnceLock::new() }
    }

    /// Told from any thread.
    pub fn tell(&self, volume: &str, done: u64, total: u64) {
        if !self.wanted || (self.bar.get().is_none() && self.begun.elapsed() < PATIENCE) {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            let bar = ProgressBar::new(total);
            let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar
        });
        bar.set_length(total);
        bar.set_message(volume.to_owned());
        bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
