//! What can go wrong between this crate and the driver.

/// A missing driver, a missing function, or a call that the driver refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// There is no driver on this machine (or not one that can be opened).
    #[error("the NVIDIA driver ({library}) was not found: {detail}")]
    NotFound {
        /// The file that was looked for.
        library: &'static str,
        /// What the dynamic linker said.
        detail: String,
    },

    /// The driver is there and too old.
    #[error("the NVIDIA driver has no function {symbol}; a driver for CUDA 12.0 or later is needed")]
    MissingFunction {
        /// The function.
        symbol: &'static str,
    },

    /// The process is a `fork` of one that had initialized the driver.
    #[error(
        "this process was forked from one that had initialized the NVIDIA driver, and CUDA does not work in such a child; fork before the first use of a GPU, or start the child with exec"
    )]
    Forked,

    /// A driver call returned an error.
    #[error("{call} failed: {name} ({code}), {text}")]
    Call {
        /// The function.
        call: &'static str,
        /// Its `CUresult`.
        code: u32,
        /// The result's name, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        name: String,
        /// The driver's sentence for it.
        text: String,
    },

    /// PTX or a cubin that the driver refused, with its log.
    #[error("{call} failed: {name} ({code}), {text}; the driver's log: {log}")]
    Load {
        /// The function.
        call: &'static str,
        /// Its `CUresult`.
        code: u32,
        /// The result's name.
        name: String,
        /// The driver's sentence for it.
        text: String,
        /// What its assembler wrote.
        log: String,
    },

    /// A name that holds a zero byte.
    #[error("{name:?} holds a zero byte, which no function name does")]
    Name {
        /// The name.
        name: String,
    },
}

/// `CUDA_ERROR_NOT_INITIALIZED`.
pub(crate) const NOT_INITIALIZED: u32 = 3;

impl DriverError {
    /// The driver's `CUresult`, where a call failed.
    #[must_use]
    pub const fn code(&self) -> Option<u32> {
        match self {
            Self::Call { code, .. } | Self::Load { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether a call was refused because of a recording under way (`CUDA_ERROR_STREAM_CAPTURE_...`,
    /// `CUDA_ERROR_CAPTURED_EVENT`).
    #[must_use]
    pub const fn is_about_recording(&self) -> bool {
        matches!(self.code(), Some(900..=908))
    }
}
