//! Reports of how far a run on the CPU is.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far a run is, in query rows of all heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rows done.
    pub done: u64,
    /// Rows in all.
    pub total: u64,
}

/// Called from any thread, in no particular order.
pub type ProgressFn<'a> = &'a (dyn Fn(Progress) + Sync);

/// Counts rows for a callback.
pub(crate) struct Ticker<'a> {
    callback: Option<ProgressFn<'a>>,
    done: AtomicU64,
    total: u64,
}

impl<'a> Ticker<'a> {
    pub(crate) fn new(callback: Option<ProgressFn<'a>>, total: usize) -> Self {
        Self { callback, done: AtomicU64::new(0), total: total as u64 }
    }

    pub(crate) fn add(&self, rows: usize) {
        if let Some(callback) = self.callback {
            let done = self.done.fetch_add(rows as u64, Ordering::Relaxed) + rows as u64;
            callback(Progress { done, total: self.total });
        }
    }
}
