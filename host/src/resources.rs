//! Memory and threads: asked for in a way that can be refused, since the ordinary ways end the process.

use crate::error::{Error, Result};
use bytemuck::Zeroable;
use rayon::{ThreadPoolBuildError, ThreadPoolBuilder};
use std::error::Error as _;
use std::sync::OnceLock;

/// `len` zeros for `what`.
pub(crate) fn zeroed<T: Zeroable>(what: &'static str, len: usize) -> Result<Vec<T>> {
    let refused = |()| Error::Memory { what, bytes: len.saturating_mul(size_of::<T>()) };
    bytemuck::allocation::try_zeroed_vec(len).map_err(refused)
}

/// Whether there is room for `bytes` more. What is allocated in many small parts later cannot be refused one by one.
pub(crate) fn room_for(what: &'static str, bytes: usize) -> Result<()> {
    Vec::<u8>::new().try_reserve_exact(bytes).map_err(|_| Error::Memory { what, bytes })
}

/// Starts rayon's threads where nobody has; rayon itself panics at first use where they cannot be had.
pub(crate) fn threads() -> Result<()> {
    static STARTED: OnceLock<Result<()>> = OnceLock::new();
    let start = || match ThreadPoolBuilder::new().build_global().as_ref().map_err(ThreadPoolBuildError::source) {
        // Without a source it is that there are threads already.
        Ok(()) | Err(None) => Ok(()),
        Err(Some(why)) => Err(Error::Threads { why: why.to_string() }),
    };
    STARTED.get_or_init(start).clone()
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
    }
}
