//! The lengths that a launch is given, in a GPU's memory.

use super::DeviceSlice;
use super::launch::Launch;
use super::memory::Words;
use crate::error::Result;
use crate::problem::{AttentionProblem, SeqLens};
use int_flash_attention_kernels::params::{self, Global};

/// Lengths in a GPU's memory. The GPU reads them when a launch runs, so that a graph goes by what they are then. It does not trust
/// them: offsets that decrease or go beyond the planned tokens and lengths give results without meaning, and no access outside of the
/// tensors.
pub type DeviceSeqLens<'a> = SeqLens<DeviceSlice<'a, u32>>;

impl DeviceSeqLens<'_> {
    /// With the addresses in what the kernels are handed, after they have been checked.
    #[inline]
    pub(super) fn addresses(
        &self,
        launch: &Launch<'_>,
        problem: &AttentionProblem,
        planned: params::SeqLens,
    ) -> Result<params::SeqLens> {
        problem.check_kind(self)?;
        let word = |name, array: &DeviceSlice<'_, u32>, len| array.words(launch, name, len).map(Global::new);
        Ok(match self {
            Self::Equal => planned,
            Self::Packed { cu_seqlens_q, cu_seqlens_kv } => params::SeqLens {
                cu_seqlens_q: word("cu_seqlens_q", cu_seqlens_q, problem.batch + 1)?,
                cu_seqlens_kv: word("cu_seqlens_kv", cu_seqlens_kv, problem.batch + 1)?,
                ..planned
            },
            Self::KeyLengths { seqlens_kv } => {
                params::SeqLens { seqlens_kv: word("seqlens_kv", seqlens_kv, problem.batch)?, ..planned }
            }
        })
    }
}
