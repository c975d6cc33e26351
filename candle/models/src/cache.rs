//! Attention that keeps K and V for the tokens to come.

use crate::attention::{Attend, Int8, causal_mask, plain};
use candle_core::{Device, Error, Result, Tensor, bail};
use candle_nn::kv_cache::KvCache;
use int_flash_attention::reference::quantize_k;
use int_flash_attention::{
    CacheShape, DecodeHeads, DecodeProblem, HostCache, HostTables, HostTensor, Scheme, Shape, TensorLayout, Window,
};
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

/// The library's paged INT8 cache, in the host's memory.
#[derive(Debug)]
pub struct Int8Cache {
    layers: Vec<HostCache>,
    tables: HostTables,
    /// Those of the newest tokens, the same in all layers.
    slots: Vec<i64>,
}

impl Int8Cache {
    /// An empty cache of a sequence of up to so many tokens.
    ///
    /// # Errors
    /// A head dim without kernels, or memory that the system does not give.
    pub fn new(layers: usize, most: usize, heads_kv: usize, head_dim: usize) -> Result<Self> {
        let pages = most.div_ceil(CacheShape::PAGE_TOKENS);
        let shape = CacheShape::new(pages, heads_kv, head_dim).map_err(Error::wrap)?;
        let layers = (0..layers).map(|_| HostCache::alloc(shape).map_err(Error::wrap)).collect::<Result<_>>()?;
        Ok(Self { layers, tables: HostTables::contiguous(1, pages), slots: Vec::new() })
    }

    /// Bytes for K and V of all layers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|layer| layer.shape.bytes()).sum()
    }
}

impl Attend for Int8Cache {
    fn attend(&mut self, layer: usize, [q, k, v]: [&Tensor; 3], scale: f32, window: Option<usize>) -> Result<Tensor> {
        let (_, heads_q, tokens, head_dim) = q.dims4()?;
        if layer == 0 {
            self.slots = self.tables.extend(&[tokens]).map_err(Error::wrap)?;
        }
        let cache = &mut self.layers[layer];
        let prompt = self.tables.seqlens_kv[0] as usize == tokens;
        let [new_k, new_v] = [host(k)?, host(v)?];
        if prompt {
            // A constant of the layer, from the prompt's first tokens, makes the keys' codes finer.
            cache.k_offset = Some(quantize_k(Scheme::Default, &new_k).map_err(Error::wrap)?.offset);
        }
        cache.append(&new_k, &new_v, &self.slots).map_err(Error::wrap)?;
        if prompt {
            return Int8.attend(layer, [q, k, v], scale, window);
        }
        let most = self.tables.max_blocks * CacheShape::PAGE_TOKENS;
        let problem = DecodeProblem {
            seqlen_q: tokens,
            window: Window { left: window.map(|window| window - 1), right: Some(0) },
            softmax_scale: Some(scale),
            ..DecodeProblem::new(1, heads_q, cache.shape.heads_kv, most, head_dim)
        };
        let output = cache
            .quantize_q(&host(q)?)
            .and_then(|q| problem.on_cpu(&q, &cache.sequences(&self.tables)?, &DecodeHeads::default()));
        let o: Vec<f32> = output.map_err(Error::wrap)?.o.into_iter().map(|o| o as f32).collect();
        Tensor::from_vec(o, (1, heads_q, tokens, head_dim), &Device::Cpu)?.to_dtype(q.dtype())
    }
}

/// A tensor on the CPU, `(1, heads, tokens, head_dim)`, as the library's.
fn host(x: &Tensor) -> Result<HostTensor> {
    if !x.device().is_cpu() {
        bail!("this cache is in the host's memory, and the tensor is not")
    }
    let (batch, heads, tokens, head_dim) = x.dims4()?;
    let layout = TensorLayout::bhnd(Shape { batch, heads, seqlen: tokens, head_dim });
    let values = x.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1::<f32>()?;
    HostTensor::new(values, layout).map_err(Error::wrap)
}
