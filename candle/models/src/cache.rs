//! Attention that keeps K and V for the tokens to come.

use crate::attention::{Attend, causal_mask, plain};
use candle_core::{DType, Device, Result, Tensor, bail};
use candle_int_flash_attention::{self as int8, CacheConfig, FlashAttn, PagedTables};
use candle_nn::kv_cache::KvCache;
use std::collections::HashMap;

/// Candle's cache and operations, in the type of the model.
#[derive(Debug)]
pub struct PlainCache {
    layers: Vec<KvCache>,
    /// By the lengths and the window that they are of.
    masks: HashMap<(usize, usize, Option<usize>), Tensor>,
}

impl PlainCache {
    /// An empty cache of a sequence of up to so many tokens.
    #[must_use]
    pub fn new(layers: usize, most: usize) -> Self {
        Self { layers: vec![KvCache::new(2, most); layers], masks: HashMap::new() }
    }

    /// Bytes for K and V of all layers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let tensors = self.layers.iter().flat_map(|layer| [layer.k_cache(), layer.v_cache()]);
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        tensors.filter_map(|cache| cache.all_data().as_ref()).map(bytes).sum()
    }
}

impl Attend for PlainCache {
    fn attend(&mut self, layer: usize, [q, k, v]: [&Tensor; 3], scale: f32, window: Option<usize>) -> Result<Tensor> {
        let (k, v) = self.layers[layer].append(&k.contiguous()?, &v.contiguous()?)?;
        let (seqlen_q, seqlen_k) = (q.dim(2)?, k.dim(2)?);
        if seqlen_q == 1 {
            // The keys that it sees are the last ones.
            let seen = window.map_or(seqlen_k, |window| window.min(seqlen_k));
            let [k, v] = [k, v].map(|x| x.narrow(2, seqlen_k - seen, seen));
            return plain(q, &k?, &v?, scale, None);
        }
        let mask = match self.masks.entry((seqlen_q, seqlen_k, window)) {
            std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(causal_mask(seqlen_q, seqlen_k, window, q.device())?.to_dtype(q.dtype())?)
            }
        };
        plain(q, &k, &v, scale, Some(mask))
    }
}

/// The INT8 cache, pages of one sequence that follow one another.
#[derive(Debug)]
pub struct Int8Cache {
    layers: Vec<int8::KvCache>,
    block_tables: Tensor,
    /// Of the sequence so far.
    tokens: usize,
    /// Of the step that the first layer began.
    step: Option<Step>,
}

/// What all layers of a step are given.
#[derive(Debug)]
struct Step {
    slots: Tensor,
    tables: PagedTables,
}

impl Int8Cache {
    /// An empty cache of a sequence of up to so many tokens.
    ///
    /// # Errors
    /// A head dim without kernels, or memory that the device does not give.
    pub fn new(layers: usize, most: usize, heads_kv: usize, head_dim: usize, device: &Device) -> Result<Self> {
        let num_pages = most.div_ceil(int8::KvCache::PAGE_TOKENS);
        let config = CacheConfig { num_pages, num_kv_heads: heads_kv, head_dim };
        let block_tables = Tensor::arange(0, num_pages as u32, device)?.unsqueeze(0)?;
        Ok(Self { layers: int8::KvCache::layers(layers, config, device)?, block_tables, tokens: 0, step: None })
    }

    /// Bytes for K and V of all layers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.config().num_pages * layer.page_bytes()).sum()
    }
}

/// Tokens whose mean key is taken out of all keys.
const OFFSET_TOKENS: usize = 64;

impl Attend for Int8Cache {
    fn attend(&mut self, layer: usize, [q, k, v]: [&Tensor; 3], scale: f32, window: Option<usize>) -> Result<Tensor> {
        let tokens = q.dim(2)?;
        if layer == 0 {
            self.tokens += tokens;
            let slots = Tensor::arange((self.tokens - tokens) as i64, self.tokens as i64, q.device())?;
            let context_lens = Tensor::new(&[self.tokens as u32], q.device())?;
            let tables = PagedTables { block_tables: self.block_tables.clone(), context_lens };
            self.step = Some(Step { slots, tables });
        }
        let Some(Step { slots, tables }) = &self.step else { bail!("a step begins with layer 0") };
        let before = self.tokens - tokens;
        let attention = FlashAttn::new(scale).with_window(window.map(|window| window - 1), Some(0));
        let cache = &mut self.layers[layer];
        if before == 0 {
            let first = k.narrow(2, 0, tokens.min(OFFSET_TOKENS))?.to_dtype(DType::F32)?;
            cache.set_k_offset(&first.mean(2)?.squeeze(0)?)?;
        }
        // Views: nothing is copied.
        let [q, k, v] = [q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?];
        cache.append_and_attend([&q, &k, &v], slots, tables, &attention)?.transpose(1, 2)
    }
}
