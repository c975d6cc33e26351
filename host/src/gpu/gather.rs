//! Pages of a cache to the operands that attention reads.

use super::cache::{ViewCache, ViewTables};
use super::kernel::Kernel;
use super::memory::Checked;
use super::operands::{Addresses, ViewMutK, ViewMutV, check_scheme};
use super::{Gpu, StreamRef};
use crate::cache::GatherProblem;
use crate::error::{Error, Result};
use crate::problem::Scheme;
use crate::quantized::Lengths;
use int_flash_attention_kernels::layout::kv_blocks;
use int_flash_attention_kernels::params::{GatherParams, Global};
use int_flash_attention_kernels::quantize::launch::{GATHER, GATHER_SHARED_BYTES, GATHER_THREADS};

/// A gather, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct GatherPlan {
    gpu: Gpu,
    kernel: Kernel,
    problem: GatherProblem,
    lengths: Lengths,
}

impl Gpu {
    /// The first tokens of the sequences of a cache as operands of the default scheme, which attention of any number of queries reads
    /// ([`plan_attention`](Self::plan_attention)): for prompts that have a part of their tokens in the cache already.
    ///
    /// # Errors
    /// A wrong problem, or more blocks than a grid has.
    pub fn plan_gather(&self, problem: &GatherProblem) -> Result<GatherPlan> {
        let (ctas, lengths) = problem.check()?;
        let kernel = self.kernel(GATHER.module, GATHER.entry, [ctas, 1, 1], GATHER_THREADS, GATHER_SHARED_BYTES)?;
        Ok(GatherPlan { gpu: self.clone(), kernel, problem: *problem, lengths })
    }
}

impl GatherPlan {
    /// Gives the kernel to the stream: no allocation, no waiting, capturable. Tables and lengths are read on the device; an entry that is no page has no
    /// tokens, and what is behind a sequence's length is padding.
    ///
    /// # Errors
    /// Another cache; tables of other sequences, or with fewer blocks; operands of another shape or scheme; a buffer that is too short, not aligned to 16 bytes
    /// or of another context; the driver's.
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        cache: &ViewCache<'_>,
        tables: &ViewTables<'_>,
        k: &mut ViewMutK<'_>,
        v: &mut ViewMutV<'_>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let (problem, shape) = (&self.problem, self.problem.shape());
        if cache.shape != problem.cache {
            let [given, expected] = [cache.shape, problem.cache].map(|shape| format!("{shape:?}"));
            return Err(Error::ShapeMismatch { name: "the cache", given, expected });
        }
        check_scheme("k", Scheme::Default, k.scheme)?;
        check_scheme("v", Scheme::Default, v.scheme)?;
        let mut params: GatherParams = problem.params(tables.batch, tables.max_blocks)?;
        let entries =
            (problem.batch - 1).saturating_mul(tables.max_blocks).saturating_add(kv_blocks(problem.seqlen_kv));
        params.pool = Global::new(cache.pool.checked(launch, "the pool", cache.shape.bytes())?);
        params.block_table = Global::new(tables.block_table.checked_elements(launch, "block_table", entries)?);
        params.seqlens_kv = Global::new(tables.seqlens_kv.checked_elements(launch, "seqlens_kv", problem.batch)?);
        if let Some(offset) = &cache.k_offset {
            let channels = cache.shape.heads_kv * cache.shape.head_dim;
            params.cache_k_offset = Global::new(offset.checked(launch, "k_offset", channels)?);
        }
        let [data, scale, block_scale, offset] = k.addresses(launch, shape, &self.lengths)?;
        (params.k_out, params.k_scale) = (Global::new(data), Global::new(scale));
        (params.k_block_scale, params.k_offset) = (Global::new(block_scale), Global::new(offset));
        let [data, scale, block_scale, unit] = v.addresses(launch, shape, &self.lengths)?;
        (params.v_out, params.v_scale) = (Global::new(data), Global::new(scale));
        (params.v_block_scale, params.v_unit) = (Global::new(block_scale), Global::new(unit));
        // SAFETY: the parameter of `gather_pages`; all that is in it has been checked, and the grid is that of the operands' blocks.
        unsafe { launch.kernel_with(&self.kernel, &params) }
    }
}
