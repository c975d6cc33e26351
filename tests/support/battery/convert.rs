//! Pages from one kind to the other.

use super::Check;
use crate::cache::{any_cache, copy_as_reference};
use crate::sim::{SimulatedCache, Simulator};
use anyhow::{Context, Result};
use int_flash_attention::{CacheShape, HostCache};
use int_flash_attention_kernels::layout::page::V4_HEAD_DIMS;
use ptx_machine::Module;
use std::sync::Arc;

/// A run of a conversion.
pub struct ConvertCheck {
    cache: HostCache,
    pairs: Vec<(u32, u32)>,
    ahead: usize,
}

impl ConvertCheck {
    pub(super) fn run(&self, name: &str, modules: &[Arc<Module>]) -> Result<()> {
        let simulator = Simulator::new().with_modules(name, modules);
        let mut cache = SimulatedCache::new(&simulator, self.cache.clone()).behind(self.ahead);
        copy_as_reference(&mut cache, &self.pairs).with_context(|| format!("{:?}", self.pairs))
    }
}

/// One pair and as many as a launch takes and more, both ways, where 32 bits reach and where they do not.
pub(super) fn of() -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (seed, head_dim) in V4_HEAD_DIMS.into_iter().enumerate() {
        let shape = CacheShape::new(36, 1 + seed, head_dim)?.with_v4_pages(18)?;
        let to_4_bits = |i: u32| (i, 35 - i);
        let both = |i: u32| if i.is_multiple_of(2) { to_4_bits(i) } else { (35 - i, i) };
        for (pairs, ahead) in [
            (vec![to_4_bits(3)], 0),
            (vec![both(5)], 1 << 19),
            (vec![to_4_bits(0)], 1 << 19),
            ((0..18).map(both).collect(), 0),
        ] {
            let cache = any_cache(shape, false, seed as u64);
            checks.push(Check::Convert(Box::new(ConvertCheck { cache, pairs, ahead })));
        }
    }
    Ok(checks)
}
