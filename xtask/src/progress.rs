//! A progress bar that appears only where a run takes over a second.

use indicatif::{ProgressBar, ProgressStyle};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Shows nothing for the first second, and nothing where stderr is no terminal.
pub struct LateBar {
    what: &'static str,
    started: Instant,
    bar: OnceLock<ProgressBar>,
}

impl LateBar {
    pub fn new(what: &'static str) -> Self {
        Self { what, started: Instant::now(), bar: OnceLock::new() }
    }

    /// `done` of `total` is done.
    pub fn update(&self, done: u64, total: u64) {
        if self.started.elapsed() < Duration::from_secs(1) {
            return;
        }
        let bar = self.bar.get_or_init(|| {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} % {elapsed} eta {eta}");
            let bar = ProgressBar::new(total).with_message(self.what).with_elapsed(self.started.elapsed());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        bar.set_length(total);
        bar.set_position(done);
    }
}

impl Drop for LateBar {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.get() {
            bar.finish_and_clear();
        }
    }
}
