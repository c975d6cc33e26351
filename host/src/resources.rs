//! Memory and threads: asked for in a way that can be refused, since the ordinary ways end the process.

use crate::error::{Error, Result};
use bytemuck::Zeroable;
use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};
use std::error::Error as _;
use std::sync::OnceLock;
use std::thread::available_parallelism;

/// `len` zeros for `what`.
pub(crate) fn zeroed<T: Zeroable>(what: &'static str, len: usize) -> Result<Vec<T>> {
    let refused = |()| Error::Memory { what, bytes: len.saturating_mul(size_of::<T>()) };
    bytemuck::allocation::try_zeroed_vec(len).map_err(refused)
}

/// `len` times the same for `what`.
pub(crate) fn filled<T: Copy>(what: &'static str, value: T, len: usize) -> Result<Vec<T>> {
    let mut values = Vec::new();
    let refused = |_| Error::Memory { what, bytes: len.saturating_mul(size_of::<T>()) };
    values.try_reserve_exact(len).map_err(refused)?;
    values.resize(len, value);
    Ok(values)
}

/// Whether there is room for `bytes` more. What is allocated in many small parts later cannot be refused one by one.
pub(crate) fn room_for(what: &'static str, bytes: usize) -> Result<()> {
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| Error::Memory { what, bytes })
}

/// More threads than this, or than there are cores, have nothing to do, and `RAYON_NUM_THREADS` may ask for so many that starting
/// them ends the process.
const MOST_THREADS: usize = 256;

/// Starts rayon's global pool, which the CPU device and this module work on, where nobody has: `RAYON_NUM_THREADS` threads, but
/// no more than 256 or the number of cores, else one a core. Every job on the CPU does so first; rayon itself panics at first
/// use where threads cannot be had.
///
/// # Errors
/// [`Error::Threads`].
pub fn start_threads() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    let start = || {
        let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|number| number.parse().ok());
        // 0 leaves it to rayon.
        let threads = asked.map_or(0, |number| most_threads(number, available_parallelism().map_or(1, usize::from)));
        let started = ThreadPoolBuilder::new().num_threads(threads).build_global();
        match started.as_ref().map_err(ThreadPoolBuildError::source) {
            // Without a source it is that there are threads already.
            Ok(()) | Err(None) => Ok(()),
            Err(Some(why)) => Err(Error::Threads { why: why.to_string() }),
        }
    };
    STARTED.get_or_init(start).clone()
}

fn most_threads(asked: usize, cores: usize) -> usize {
    asked.min(cores.max(MOST_THREADS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_an_error() {
        let error = zeroed::<f32>("a test", 1 << 60).unwrap_err();
        assert_eq!(error.to_string(), format!("there is no memory for a test, {} bytes", 1_u64 << 62));
        assert!(matches!(zeroed::<f32>("a test", usize::MAX), Err(Error::Memory { bytes: usize::MAX, .. })));
        assert!(room_for("a test", usize::MAX / 2).is_err() && room_for("a test", 1 << 10).is_ok());
        assert_eq!(zeroed::<i8>("a test", 3).unwrap(), [0; 3]);
        assert!(matches!(filled("a test", 1.0_f32, 1 << 60), Err(Error::Memory { .. })));
        assert_eq!(filled("a test", -1_i8, 3).unwrap(), [-1; 3]);
    }

    #[test]
    fn threads_are_as_asked_within_reason() {
        assert_eq!([0, 1, 256, 257, usize::MAX].map(|asked| most_threads(asked, 16)), [0, 1, 256, 256, 256]);
        assert_eq!([300, 513].map(|asked| most_threads(asked, 512)), [300, 512]);
        start_threads().unwrap();
        start_threads().unwrap();
    }
}
