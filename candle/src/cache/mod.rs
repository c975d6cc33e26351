//! The cache of K and V: INT8 pages of 128 tokens, which block tables make sequences of.

mod call;
mod cpu;

use crate::FlashAttn;
use crate::call::{NAME, beside, refused};
use candle_core::{DType, Device, Result, Tensor, bail};
use int_flash_attention::{CacheShape, HostCache};

#[cfg(feature = "cuda")]
use crate::cuda::cache::{self as cuda, Pool};
pub use call::{AppendCall, AttendCall, Attended, OnPages};

/// The sizes of a layer's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheConfig {
    /// Pages of [`KvCache::PAGE_TOKENS`] tokens (an engine's blocks), shared by all sequences.
    pub num_pages: usize,
    /// Heads of K and V.
    pub num_kv_heads: usize,
    /// Channels of a head: 32, 64, 96, 128 or 256.
    pub head_dim: usize,
}

/// Which pages sequences are made of, and how long they are: what an engine keeps for every sequence of a step, on the cache's device.
#[derive(Clone, Debug)]
pub struct PagedTables {
    /// The page of each [`KvCache::PAGE_TOKENS`] tokens, `(batch, pages of a sequence)` of u32. What is behind a sequence's length means nothing. The
    /// width is the planned maximum: tables of one width are served by one plan, and by one CUDA graph.
    pub block_tables: Tensor,
    /// The tokens of each sequence, those included that the step has appended: `(batch)` of u32.
    pub context_lens: Tensor,
}

/// The queries of a step in which sequences have unlike numbers of new tokens, one sequence's behind another's: chunks of prompts, and single tokens of
/// those that decode among them.
#[derive(Clone, Debug)]
pub struct PackedQueries {
    /// Where the queries of each sequence begin, and the end of the last: `(batch + 1)` of u32, from 0.
    pub seqlens_q: Tensor,
    /// The most queries of a sequence. It is planned with; an engine's largest chunk serves every step.
    pub max_seqlen_q: usize,
}

/// A layer's cache of K and V in INT8: half of the memory of 16-bit floats and a little more, attended to in INT8.
///
/// A step of an engine appends K and V of its new tokens to the slots that they have (`PAGE_TOKENS * page + place in the page`), and attends with
/// their queries:
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_int_flash_attention::{CacheConfig, FlashAttn, KvCache, PagedTables};
/// let device = Device::cuda_if_available(0)?;
/// let mut cache = KvCache::new(CacheConfig { num_pages: 16, num_kv_heads: 2, head_dim: 64 }, &device)?;
/// let attention = FlashAttn::new(1.0 / 8.0).with_causal(true);
/// // two sequences of which 130 and 7 tokens are there already, on pages 3, 0 and 5
/// let block_tables = Tensor::from_slice(&[3u32, 0, 5, 0], (2, 2), &device)?;
/// let context_lens = Tensor::from_slice(&[131u32, 8], 2, &device)?; // with the new ones
/// let slot_mapping = Tensor::from_slice(&[0 * 128 + 2i64, 5 * 128 + 7], 2, &device)?;
/// let tokens = |heads| Tensor::randn(0f32, 1., (2, heads, 64), &device);
/// cache.append(&tokens(2)?, &tokens(2)?, &slot_mapping)?;
/// let o = cache.attend(&tokens(8)?, &PagedTables { block_tables, context_lens }, &attention)?;
/// assert_eq!(o.dims(), [2, 8, 64]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// On a GPU slots, tables and lengths are read there, when the kernels run, and nothing waits for them; entries that are wrong give results without
/// meaning, and no access outside of the cache. On the CPU they are errors.
#[derive(Debug)]
pub struct KvCache {
    shape: CacheShape,
    memory: Memory,
    /// Whether there may be tokens in it.
    written: bool,
}

/// An attention on a cache, as it is asked for.
pub struct Step<'a> {
    pub call: AttendCall,
    pub packed: Option<&'a PackedQueries>,
    pub tables: &'a PagedTables,
    pub attention: &'a FlashAttn,
}

#[derive(Debug)]
enum Memory {
    Cpu(HostCache),
    #[cfg(feature = "cuda")]
    Cuda(Pool),
}

impl KvCache {
    /// Tokens of a page.
    pub const PAGE_TOKENS: usize = CacheShape::PAGE_TOKENS;

    /// An empty cache on the CPU or on a GPU.
    ///
    /// # Errors
    /// Sizes of zero or beyond the limits, a head dim without kernels, another device, or memory that there is not.
    pub fn new(config: CacheConfig, device: &Device) -> Result<Self> {
        Ok(Self::layers(1, config, device)?.remove(0))
    }

    /// An empty cache for each of so many layers. On a GPU they share the quantized queries and what kernels leave to each other, so that a model has
    /// them once: they are for layers that run one after the other. Attention of another thread or on another stream than the one before waits for the
    /// whole GPU, which ends recordings of CUDA graphs that are under way on any thread with an error: record while no other thread takes its turn.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn layers(layers: usize, config: CacheConfig, device: &Device) -> Result<Vec<Self>> {
        Self::layers_with_v4_pages(layers, config, 0, device)
    }

    /// [`layers`](Self::layers) with V in 4 bits in the last `num_v4_pages` of a cache's pages: a fifth less memory each, and a coarser V. A block table may mix them with
    /// the others, and [`copy_pages`](Self::copy_pages) from one kind to the other converts. What a model looks at most, a sequence's first page and its last two, is worth
    /// 8 bits.
    ///
    /// # Errors
    /// As [`new`](Self::new); more than there are pages, or a head dim other than 64 and 128.
    pub fn layers_with_v4_pages(
        layers: usize,
        config: CacheConfig,
        num_v4_pages: usize,
        device: &Device,
    ) -> Result<Vec<Self>> {
        let CacheConfig { num_pages, num_kv_heads, head_dim } = config;
        let shape = CacheShape::new(num_pages, num_kv_heads, head_dim).map_err(refused)?;
        let shape = shape.with_v4_pages(num_v4_pages).map_err(refused)?;
        let memories: Result<Vec<Memory>> = match device {
            Device::Cpu => (0..layers).map(|_| Ok(Memory::Cpu(HostCache::alloc(shape).map_err(refused)?))).collect(),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Ok(Pool::layers(layers, shape, device)?.into_iter().map(Memory::Cuda).collect()),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => {
                bail!("{NAME}: a cache on a GPU needs the feature `cuda` of candle-int-flash-attention")
            }
            Device::Metal(_) => {
                bail!("{NAME}: a cache was asked for on a Metal device; it can be on the CPU or on a CUDA device")
            }
        };
        Ok(memories?.into_iter().map(|memory| Self { shape, memory, written: false }).collect())
    }

    /// The sizes.
    #[must_use]
    pub const fn config(&self) -> CacheConfig {
        let CacheShape { pages, heads_kv, head_dim, .. } = self.shape;
        CacheConfig { num_pages: pages, num_kv_heads: heads_kv, head_dim }
    }

    /// How many of the pages, the last ones, have V in 4 bits.
    #[must_use]
    pub const fn num_v4_pages(&self) -> usize {
        self.shape.v4_pages
    }

    /// Bytes of a page of this layer with V in 8 bits.
    #[must_use]
    pub const fn page_bytes(&self) -> usize {
        self.shape.page_bytes()
    }

    /// Bytes of a page of this layer with V in 4 bits.
    #[must_use]
    pub const fn v4_page_bytes(&self) -> usize {
        self.shape.v4_page_bytes()
    }

    /// Takes a constant out of every token of K: f32, `(heads_kv, head_dim)`, on the cache's device. Attention gives the same without it, but for the
    /// error: it is for models whose keys have channels far from zero (as those with a bias in the projection of K), and their mean over the first
    /// tokens that the model has seen is a good one.
    ///
    /// # Errors
    /// A cache that tokens have been appended to; another shape or type; on the CPU values that are not finite; what the GPU says.
    pub fn set_k_offset(&mut self, offset: &Tensor) -> Result<()> {
        if self.written {
            bail!(
                "{NAME}: an offset of K was given to a cache with tokens, which another one was taken out of; give it to an empty cache"
            )
        }
        let CacheShape { heads_kv, head_dim, .. } = self.shape;
        let given = beside("the offset of K", offset, &[DType::F32])?;
        if given.dims() != [heads_kv, head_dim] {
            bail!("{NAME}: the offset of K has the shape {:?}; ({heads_kv}, {head_dim}) is expected", given.dims())
        }
        match &mut self.memory {
            Memory::Cpu(cache) => cpu::set_k_offset(cache, offset),
            #[cfg(feature = "cuda")]
            Memory::Cuda(pool) => pool.set_k_offset(offset),
        }
    }

    /// Quantizes new tokens to their slots, whatever sequences they are of. `k` and `v` are `(tokens, heads_kv, head_dim)`, or `(batch, seqlen,
    /// heads_kv, head_dim)`, in f16, bf16 or f32; `slot_mapping` is `(tokens)` of i64 or u32: `PAGE_TOKENS * page + place in the page`, where -1 (of u32
    /// the largest) leaves a token out.
    ///
    /// # Errors
    /// Shapes or types that do not go together; what the GPU says; on the CPU slots that the cache does not have or that two tokens have, and the
    /// cache is as it was then.
    pub fn append(&mut self, k: &Tensor, v: &Tensor, slot_mapping: &Tensor) -> Result<()> {
        let call = AppendCall::new(&self.shape, None, k, v, slot_mapping)?;
        if call.tokens == 0 {
            return Ok(());
        }
        match &mut self.memory {
            Memory::Cpu(cache) => cpu::append(cache, &call, k, v, slot_mapping)?,
            #[cfg(feature = "cuda")]
            Memory::Cuda(pool) => {
                // What a GPU says may come after it has written.
                self.written = true;
                cuda::append(pool, &call, [k, v], slot_mapping)?;
            }
        }
        self.written = true;
        Ok(())
    }

    /// Attention of the last tokens of each sequence on all that the cache has of it. `q` is `(batch, heads_q, head_dim)`, a token of each sequence, or
    /// `(batch, seqlen_q, heads_q, head_dim)`, and so is the result. The last query stands beside the sequence's last key; queries before the sequence's
    /// first token (padding, where a batch has fewer new tokens of one than of another) get what a row without keys gets. Sequences of no tokens are
    /// allowed.
    ///
    /// Up to 8 queries of a sequence are a decode, more are a prefill: of a prompt that has just been appended, of a chunk of it, or of what follows a
    /// prefix that sequences share. Both read the pages where they are and take nothing from candle's memory but the result. Where the cache has pages
    /// with V in 4 bits, the pages of a prefill become operands first, in memory of candle's that goes back in the order of the stream.
    ///
    /// # Errors
    /// Shapes or types that do not go together; a bias or a mask, which caches do not have; what the GPU says; on the CPU tables and lengths that are
    /// wrong.
    pub fn attend(&self, q: &Tensor, tables: &PagedTables, attention: &FlashAttn) -> Result<Tensor> {
        self.attend_step(q, &self.step(q, None, tables, attention)?)
    }

    /// [`attend`](Self::attend) of unlike numbers of new tokens of the sequences, chunks of prompts and single tokens in one call: `q` is `(total_q,
    /// heads_q, head_dim)`, and so is the result. Where each sequence has up to 8, and as many as the others, `attend` is faster.
    ///
    /// There may be queries behind those of the last sequence, whose rows of the result have no meaning: steps of one size are served by one plan, and by
    /// one CUDA graph. On a GPU `seqlens_q` is read there; offsets that are wrong give results without meaning, and no access outside of the tensors.
    ///
    /// # Errors
    /// As [`attend`](Self::attend); a `seqlens_q` that is no contiguous u32 of one dimension; a cache that has pages with V in 4 bits; on the CPU offsets
    /// that decrease or go behind the queries, and more queries of a sequence than was said.
    pub fn attend_varlen(
        &self,
        q: &Tensor,
        queries: &PackedQueries,
        tables: &PagedTables,
        attention: &FlashAttn,
    ) -> Result<Tensor> {
        self.attend_step(q, &self.step(q, Some(queries), tables, attention)?)
    }

    /// An attention of these queries, checked.
    fn step<'a>(
        &self,
        q: &Tensor,
        packed: Option<&'a PackedQueries>,
        tables: &'a PagedTables,
        attention: &'a FlashAttn,
    ) -> Result<Step<'a>> {
        Ok(Step { call: AttendCall::new(&self.shape, q, packed, tables, attention)?, packed, tables, attention })
    }

    fn attend_step(&self, q: &Tensor, step: &Step<'_>) -> Result<Tensor> {
        match &self.memory {
            Memory::Cpu(cache) => cpu::attend(cache, q, step),
            #[cfg(feature = "cuda")]
            Memory::Cuda(pool) => cuda::attend(pool, q, step),
        }
    }

    /// [`append`](Self::append), then [`attend`](Self::attend). On a GPU the queries are quantized with the new tokens, a launch less.
    ///
    /// # Errors
    /// As of both.
    pub fn append_and_attend(
        &mut self,
        qkv: [&Tensor; 3],
        slot_mapping: &Tensor,
        tables: &PagedTables,
        attention: &FlashAttn,
    ) -> Result<Tensor> {
        self.append_and_attend_with(qkv, slot_mapping, None, tables, attention)
    }

    /// [`append`](Self::append), then [`attend_varlen`](Self::attend_varlen): a step of an engine that takes chunks of prompts and single tokens together, whose
    /// K, V and queries are all one behind the other. On a GPU the queries are quantized with the new tokens, a launch less.
    ///
    /// # Errors
    /// As of both.
    pub fn append_and_attend_varlen(
        &mut self,
        qkv: [&Tensor; 3],
        slot_mapping: &Tensor,
        queries: &PackedQueries,
        tables: &PagedTables,
        attention: &FlashAttn,
    ) -> Result<Tensor> {
        self.append_and_attend_with(qkv, slot_mapping, Some(queries), tables, attention)
    }

    fn append_and_attend_with(
        &mut self,
        [q, k, v]: [&Tensor; 3],
        slot_mapping: &Tensor,
        packed: Option<&PackedQueries>,
        tables: &PagedTables,
        attention: &FlashAttn,
    ) -> Result<Tensor> {
        // Nothing is appended where the attention is refused.
        let step = self.step(q, packed, tables, attention)?;
        match &mut self.memory {
            Memory::Cpu(cache) => {
                let new = AppendCall::new(&self.shape, None, k, v, slot_mapping)?;
                if new.tokens > 0 {
                    let output = cpu::append_and_attend(cache, &new, [q, k, v], slot_mapping, &step)?;
                    self.written = true;
                    return Ok(output);
                }
            }
            #[cfg(feature = "cuda")]
            Memory::Cuda(pool) => {
                let new = AppendCall::new(&self.shape, Some(&step.call), k, v, slot_mapping)?;
                if new.q.is_some() {
                    self.written = true;
                    return cuda::append_and_attend(pool, &new, [q, k, v], slot_mapping, &step);
                }
            }
        }
        self.append(k, v, slot_mapping)?;
        self.attend_step(q, &step)
    }

    /// Copies pages, the pairs `(from, to)` one after the other, in the order of the device's stream: for sequences that share a prefix and go on
    /// with tokens of their own on its last page, and from pages with V in 8 bits to pages with 4, or back.
    ///
    /// # Errors
    /// A page that the cache does not have, and nothing is copied then; what the GPU says.
    pub fn copy_pages(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        match &mut self.memory {
            Memory::Cpu(cache) => cache.copy_pages(pairs).map_err(refused),
            #[cfg(feature = "cuda")]
            Memory::Cuda(pool) => cuda::copy_pages(pool, pairs),
        }
    }

    /// The bytes of pages, one behind the other, to be kept elsewhere. On a GPU this waits for the stream.
    ///
    /// # Errors
    /// A page that the cache does not have; what the GPU says.
    pub fn read_pages(&self, pages: &[u32]) -> Result<Vec<u8>> {
        match &self.memory {
            Memory::Cpu(cache) => cpu::read_pages(cache, pages),
            #[cfg(feature = "cuda")]
            Memory::Cuda(pool) => cuda::read_pages(pool, pages),
        }
    }

    /// Brings pages back, to any pages of a cache of the same sizes and the same offset of K, with V in as many bits. On a GPU this waits for the stream.
    ///
    /// # Errors
    /// A page that the cache does not have; other than [`page_bytes`](Self::page_bytes) or [`v4_page_bytes`](Self::v4_page_bytes) for each; what the GPU says.
    pub fn write_pages(&mut self, pages: &[u32], bytes: &[u8]) -> Result<()> {
        let expected = self.shape.bytes_of(pages);
        if bytes.len() != expected {
            bail!("{NAME}: {} bytes were given for {} pages, which have {expected}", bytes.len(), pages.len())
        }
        match &mut self.memory {
            Memory::Cpu(cache) => cpu::write_pages(cache, pages, bytes)?,
            #[cfg(feature = "cuda")]
            Memory::Cuda(pool) => {
                self.written = true;
                cuda::write_pages(pool, pages, bytes)?;
            }
        }
        self.written = true;
        Ok(())
    }
}
