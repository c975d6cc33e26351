//! The families of attention kernels, and which GPUs run them.

use core::fmt;

/// Kernels that share their instructions and the way they are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `mma.sync`: every GPU of compute capability 8.0 or later; a CTA for each tile of query rows.
    Sm80,
    /// `wgmma` and bulk copies: compute capability 9.0 (Hopper) and no other; CTAs that stay and share all tiles.
    Sm90a,
}

impl Family {
    /// All families, the most general first.
    pub const ALL: [Self; 2] = [Self::Sm80, Self::Sm90a];

    /// The target that its modules are compiled for.
    #[must_use]
    pub const fn target(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm90a => "sm_90a",
        }
    }

    /// Whether a GPU of this compute capability runs it, with a driver for this CUDA version (`1000 * major + 10 * minor`): one for
    /// CUDA 12.4 is the first to know the PTX of sm_90a's kernels.
    #[must_use]
    pub const fn runs_on(self, (major, minor): (u32, u32), cuda: u32) -> bool {
        match self {
            Self::Sm80 => major >= 8,
            Self::Sm90a => major == 9 && minor == 0 && cuda >= 12040,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.target())
    }
}
