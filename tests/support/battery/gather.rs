//! Pages as operands.

use super::Check;
use crate::cache::{any_cache, gather_as_reference};
use crate::sim::{SimulatedCache, Simulator};
use anyhow::{Context, Result};
use int_flash_attention::{CacheShape, HostCache, HostTables};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_kernels::layout::page::V4_HEAD_DIMS;
use ptx_machine::Module;
use std::sync::Arc;

/// A run of a gather.
pub struct GatherCheck {
    cache: HostCache,
    tables: HostTables,
    seqlen_kv: usize,
    ahead: usize,
}

impl GatherCheck {
    pub(super) fn run(&self, name: &str, modules: &[Arc<Module>]) -> Result<()> {
        let simulator = Simulator::new().with_modules(name, modules);
        let cache = SimulatedCache::new(&simulator, self.cache.clone()).behind(self.ahead);
        let of = || format!("{}, {:?}", self.cache.shape.head_dim, self.tables);
        gather_as_reference(&cache, &self.tables, self.seqlen_kv).map(drop).with_context(of)
    }
}

/// Lengths about every edge of a block, pages that sequences share, of caches with something taken out of K and without.
pub(super) fn of() -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let v4 = V4_HEAD_DIMS.map(|head_dim| (head_dim, 4));
    for (seed, (head_dim, v4_pages)) in CACHE_HEAD_DIMS.map(|head_dim| (head_dim, 0)).into_iter().chain(v4).enumerate()
    {
        let shape = CacheShape::new(6, 2, head_dim)?.with_v4_pages(v4_pages)?;
        for (i, (lengths, seqlen_kv, ahead)) in [
            ([500, 256, 116], 500, 0),
            ([1, 0, 33], 40, 1 << 19),
            ([129, 127, 16], 129, 0),
            ([384, 200, 7], 300, 1 << 19),
        ]
        .into_iter()
        .enumerate()
        {
            let mut tables = HostTables::contiguous(3, 4);
            tables.block_table = vec![0, 1, 2, 3, 2, 0, 9, 9, 3, u32::MAX, 1, 1];
            tables.seqlens_kv = lengths.to_vec();
            let cache = any_cache(shape, (seed + i) % 2 == 0, (4 * seed + i) as u64);
            checks.push(Check::Gather(Box::new(GatherCheck { cache, tables, seqlen_kv, ahead })));
        }
    }
    Ok(checks)
}
