//! A CUDA driver without a GPU. Programs that have [`begin`]-ed a session get it from `Driver::load`, whose functions it takes the
//! place of ([`Driver::set_lookup`]).
//!
//! Memory is the host's, so that copies work; kernels do nothing but be noted. What a real driver keeps to itself is counted
//! ([`Session::alive`]), and what it would punish much later, or not at all, is a sentence at once ([`Session::violations`]): memory
//! of another GPU in a launch, a graph that uses freed memory, a handle after its end.
//!
//! Recordings are broken by what breaks them on a GPU (`recording.rs` has the table), whole-device waits on any thread among it.

mod calls;
mod meeting;
mod module;
mod recording;
mod work;
mod world;

use int_flash_attention_driver::Driver;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

pub use world::{Alive, PretendedGpu};

/// The pretended driver, for one test at a time; it starts without anything alive.
pub struct Session {
    /// Held to the end, so that sessions do not overlap.
    _one: MutexGuard<'static, ()>,
}

/// Begins a session with these GPUs, after any other that is going on.
///
/// # Panics
/// Where the process has looked for a real driver before.
#[must_use]
pub fn begin(gpus: &[PretendedGpu]) -> Session {
    static ONE: Mutex<()> = Mutex::new(());
    static INSTALL: Once = Once::new();
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the functions have the driver's signatures, and their effects as far as this crate's users ask for them.
    INSTALL.call_once(|| assert!(unsafe { Driver::set_lookup(calls::lookup) }, "a driver was loaded before"));
    world::reset(gpus);
    meeting::cancel();
    Session { _one: one }
}

impl Session {
    /// What has been made and not been given back.
    #[must_use]
    pub fn alive(&self) -> Alive {
        world::with(|world| world.alive())
    }

    /// The rules that were broken, in words.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        world::with(|world| world.violations.clone())
    }

    /// Names of the kernels that were launched, those of graphs at the graph's launch.
    #[must_use]
    pub fn launched(&self) -> Vec<String> {
        world::with(|world| world.launched.clone())
    }

    /// How often a function was called, by its name in the library.
    #[must_use]
    pub fn calls(&self, name: &str) -> usize {
        world::with(|world| world.calls.get(name).copied().unwrap_or(0))
    }

    /// The functions that some work calls, by their names in the library, and how often each.
    pub fn calls_of(&self, work: impl FnOnce()) -> BTreeMap<&'static str, usize> {
        let before = world::with(|world| world.calls.clone());
        work();
        let new = |(&name, &count): (&&'static str, &usize)| (name, count - before.get(name).copied().unwrap_or(0));
        world::with(|world| world.calls.iter().map(new).filter(|&(_, count)| count > 0).collect())
    }

    /// Lets every call of a function return this `CUresult` from now on.
    pub fn refuse(&self, name: &'static str, code: u32) {
        world::with(|world| world.refused.push((name, code)));
    }

    /// Lets all functions work again.
    pub fn refuse_nothing(&self) {
        world::with(|world| world.refused.clear());
    }

    /// Lets threads that call a function wait until so many have called it; one that waits in vain is a violation.
    pub fn meet(&self, function: &'static str, threads: usize) {
        meeting::arrange(function, threads);
    }

    /// What the assembler writes when a module is refused.
    pub fn assembler_says(&self, log: &'static str) {
        world::with(|world| world.assembler_log = log);
    }

    /// Leaves a kernel out of all modules that are loaded from now on.
    pub fn leave_out(&self, kernel: &'static str) {
        world::with(|world| world.left_out.push(kernel));
    }

    /// One more GPU; returns its number.
    pub fn plug_in(&self, gpu: PretendedGpu) -> usize {
        world::with(|world| {
            world.gpus.push(gpu);
            world.retained.push(0);
            world.gpus.len() - 1
        })
    }

    /// Makes a context of its own current on this thread, as `cuCtxCreate` does.
    pub fn create_context(&self, gpu: usize) {
        let context = world::with(|world| world.create_context(gpu as i32));
        world::set_current(context);
    }

    /// Makes a GPU's primary context current on this thread and holds it, as another library would; returns what gives it back.
    #[must_use]
    pub fn other_library(&self, gpu: usize) -> OtherLibrary {
        let context = world::with(|world| world.retain(gpu as i32));
        world::set_current(context);
        OtherLibrary { gpu: gpu as i32 }
    }
}

/// A reference to a primary context that another library holds.
pub struct OtherLibrary {
    gpu: i32,
}

impl Drop for OtherLibrary {
    fn drop(&mut self) {
        world::with(|world| world.release(self.gpu));
    }
}
