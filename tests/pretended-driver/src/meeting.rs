//! Threads that come to a function of the driver, and go on when others have come there too: whether work is done at the same time.

use crate::world::with;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

struct Meeting {
    function: &'static str,
    threads: usize,
    come: usize,
}

static MEETING: Mutex<Option<Meeting>> = Mutex::new(None);
static COME: Condvar = Condvar::new();

/// How long one waits for another that does not come.
const PATIENCE: Duration = Duration::from_secs(5);

fn meeting() -> MutexGuard<'static, Option<Meeting>> {
    MEETING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// So many threads meet at a function, once.
pub(crate) fn arrange(function: &'static str, threads: usize) {
    *meeting() = Some(Meeting { function, threads, come: 0 });
}

pub(crate) fn cancel() {
    *meeting() = None;
}

/// A thread comes to a function.
pub(crate) fn come(function: &'static str) {
    let mut arranged = meeting();
    let Some(here) = arranged.as_mut().filter(|meeting| meeting.function == function) else { return };
    here.come += 1;
    COME.notify_all();
    let alone = |arranged: &mut Option<Meeting>| arranged.as_ref().is_some_and(|here| here.come < here.threads);
    let waited = COME.wait_timeout_while(arranged, PATIENCE, alone);
    let (arranged, waited) = waited.unwrap_or_else(PoisonError::into_inner);
    drop(arranged);
    if waited.timed_out() {
        with(|world| world.violation(format!("a thread has waited for others at {function}, and none came")));
    }
}
