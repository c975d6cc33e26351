//! Where a job runs.

use crate::error::{Error, Result};
use crate::gpu::Gpu;
use std::fmt;

/// Where the job runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// All cores of this machine.
    Cpu,
    /// The NVIDIA GPU with this number.
    Cuda(usize),
}

impl Device {
    /// The first GPU that works, whichever number it has, else the CPU, and why no GPU does. A GPU works if it loads the
    /// kernels; those of the one that is returned stay loaded.
    ///
    /// ```
    /// use int_flash_attention::Device;
    /// let (device, reason) = Device::auto();
    /// if let Some(reason) = reason {
    ///     assert_eq!(device, Device::Cpu);
    ///     println!("on the CPU: {reason}");
    /// }
    /// ```
    #[must_use]
    pub fn auto() -> (Self, Option<Error>) {
        match Gpu::first_usable() {
            Ok(ordinal) => (Self::Cuda(ordinal), None),
            Err(error) => (Self::Cpu, Some(error)),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        let error = || Error::Parse { what: "device", given: s.into(), allowed: "cpu, cuda, cuda:N" };
        match s.to_ascii_lowercase().as_str() {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            other => {
                let ordinal = other.strip_prefix("cuda:").and_then(|ordinal| ordinal.parse().ok());
                ordinal.map(Self::Cuda).ok_or_else(error)
            }
        }
    }
}
