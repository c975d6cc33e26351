//! A cache in a GPU's memory: its bytes are the CPU's, its attention is as near to the reference as it has to be.

use crate::{check, host, tensor};
use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::{CacheConfig, FlashAttn, KvCache, PackedQueries, PagedTables};
use int_flash_attention::reference::{self, sequences};
use int_flash_attention::{
    Alibi, AttentionProblem, CacheFormat, CacheShape, DecodeHeads, DecodeProblem, HostCache, HostTables, Quantized,
    ScoreMod, ScoreTensors, Scored, SeqLens, Sequences, TensorLayout,
};

pub const CONFIG: CacheConfig = CacheConfig { num_pages: 8, num_kv_heads: 2, head_dim: 64 };
const PAGES: [u32; 8] = [5, 0, 3, 4, 1, 7, 2, 6];

/// What the GPU's cache holds, on the CPU.
fn on_host(cache: &KvCache, k_offset: Option<&[f32]>) -> Result<HostCache> {
    let shape = CacheShape::new(CONFIG.num_pages, CONFIG.num_kv_heads, CONFIG.head_dim).expect("a shape");
    let pool = cache.read_pages(&[0, 1, 2, 3, 4, 5, 6, 7])?;
    Ok(HostCache { shape, format: CacheFormat::CURRENT, pool, k_offset: k_offset.map(<[f32]>::to_vec) })
}

/// Two sequences of up to four pages.
pub struct Two {
    gpu: Device,
    pub tables: HostTables,
    k_offset: Option<Vec<f32>>,
}

impl Two {
    pub fn new(gpu: &Device) -> Self {
        let tables = HostTables { batch: 2, max_blocks: 4, block_table: PAGES.to_vec(), seqlens_kv: vec![0; 2] };
        Self { gpu: gpu.clone(), tables, k_offset: None }
    }

    /// K and V of new tokens, and their slots, on the CPU.
    pub fn extend(&mut self, new: [usize; 2], seed: f32, dtype: DType) -> Result<[Tensor; 3]> {
        let slots = self.tables.extend(&new).expect("room");
        let dims = [slots.len(), CONFIG.num_kv_heads, CONFIG.head_dim];
        let slots = Tensor::new(slots.as_slice(), &Device::Cpu)?;
        Ok([tensor(&dims, seed, dtype)?, tensor(&dims, seed + 0.5, dtype)?, slots])
    }

    pub fn on_gpu(&self) -> Result<PagedTables> {
        let HostTables { block_table, seqlens_kv, .. } = &self.tables;
        Ok(PagedTables {
            block_tables: Tensor::from_slice(block_table, (2, 4), &Device::Cpu)?.to_device(&self.gpu)?,
            context_lens: Tensor::from_slice(seqlens_kv, 2, &Device::Cpu)?.to_device(&self.gpu)?,
        })
    }

    /// The output of a decode with slopes and sinks against the reference.
    pub fn check_decode(&self, cache: &KvCache, q: &Tensor, per_head: Option<&[f32]>, o: &Tensor) -> Result<()> {
        let (_, seqlen_q, heads_q, head_dim) = q.dims4()?;
        let problem = DecodeProblem {
            seqlen_q,
            softmax_scale: Some(0.1),
            softcap: per_head.map(|_| 1.5),
            alibi: per_head.is_some(),
            sinks: per_head.is_some(),
            ..DecodeProblem::new(2, heads_q, CONFIG.num_kv_heads, 4 * KvCache::PAGE_TOKENS, head_dim)
        };
        let layout = TensorLayout::bnhd(problem.q_shape());
        let (on_host, o) = (on_host(cache, self.k_offset.as_deref())?, host(o, layout)?);
        let q = on_host.quantize_q(&host(q, layout)?).expect("queries");
        let pages = on_host.sequences(&self.tables).expect("tables");
        let heads = DecodeHeads { alibi_slopes: per_head, sinks: per_head };
        let (want, bounds) = reference::decode_bounds(&problem, &q, &pages, &heads, o.dtype()).expect("a reference");
        check(&format!("{problem:?}"), &o, &want.o, &bounds);
        Ok(())
    }

    fn check_prefill(&self, cache: &KvCache, q: &Tensor, per_head: Option<&[f32]>, o: &Tensor) -> Result<()> {
        self.check_prefill_of(cache, &self.tables, q, per_head, o)
    }

    /// The output of a prefill of the sequences of these tables against the reference.
    fn check_prefill_of(
        &self,
        cache: &KvCache,
        tables: &HostTables,
        q: &Tensor,
        per_head: Option<&[f32]>,
        o: &Tensor,
    ) -> Result<()> {
        let (batch, seqlen_q, heads_q, head_dim) = q.dims4()?;
        let keys = 4 * KvCache::PAGE_TOKENS;
        let problem = AttentionProblem::new(batch, heads_q, CONFIG.num_kv_heads, seqlen_q, keys, head_dim)
            .with_sequences(Sequences::KeyLengths)
            .with_causal(true)
            .with_softmax_scale(0.1)
            .with_score_mod(ScoreMod {
                softcap: per_head.map(|_| 1.5),
                alibi: per_head.map(|_| Alibi::PerHead),
                sinks: per_head.is_some(),
                ..ScoreMod::NONE
            });
        let layout = TensorLayout::bnhd(problem.q_shape());
        let (on_host, o) = (on_host(cache, self.k_offset.as_deref())?, host(o, layout)?);
        let q = on_host.quantize_q(&host(q, layout)?).expect("queries");
        let (k, v) = on_host.gather(tables, keys).expect("operands");
        let tensors = ScoreTensors { alibi_slopes: per_head, sinks: per_head, ..ScoreTensors::default() };
        let scored = Scored::new(&problem, tensors);
        let lengths = SeqLens::KeyLengths { seqlens_kv: tables.seqlens_kv.as_slice() };
        let bounds = sequences::gpu_bounds(scored, &lengths, &Quantized { q, k, v }, o.dtype(), false);
        let (want, bounds) = bounds.expect("a reference");
        check(&format!("{problem:?}"), &o, &want.o, &bounds);
        Ok(())
    }
}

/// Prompts, steps of one and of a few tokens, appended apart and together, and a chunk.
pub fn steps_of_an_engine(gpu: &Device) -> Result<()> {
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let mut cache = KvCache::layers(2, CONFIG, gpu)?.remove(1);
        let mut on_cpu = KvCache::new(CONFIG, &Device::Cpu)?;
        let mut sequences = Two::new(gpu);
        // One type with an offset of K.
        if dtype == DType::BF16 {
            let offset = tensor(&[CONFIG.num_kv_heads, CONFIG.head_dim], 0.9, DType::F32)?;
            cache.set_k_offset(&offset.to_device(gpu)?)?;
            on_cpu.set_k_offset(&offset)?;
            sequences.k_offset = Some(offset.flatten_all()?.to_vec1()?);
        }
        let attention = FlashAttn::new(0.1).with_causal(true);
        let values: Vec<f32> = (0..6).map(|head| 0.5 / (1 + head) as f32).collect();
        let per_head = Tensor::new(values.as_slice(), &Device::Cpu)?.to_device(gpu)?;
        let scored =
            attention.clone().with_softcap(1.5).with_alibi_slopes(per_head.clone()).with_sinks(per_head.clone());
        let there = |tensor: &Tensor| tensor.to_device(gpu);
        for (step, (new, rows, together)) in [
            ([126, 70], 70, false),
            ([1, 1], 1, false),
            ([1, 1], 1, true),
            ([4, 4], 4, true),
            ([30, 90], 30, true),
            ([40, 40], 40, true),
        ]
        .into_iter()
        .enumerate()
        {
            let seed = step as f32;
            let [k, v, slots] = sequences.extend(new, seed, dtype)?;
            on_cpu.append(&k, &v, &slots)?;
            let q = tensor(&[2, rows, 6, CONFIG.head_dim], seed + 0.7, dtype)?;
            let tables = sequences.on_gpu()?;
            let (of_q, of_k, of_v, of_slots) = (there(&q)?, there(&k)?, there(&v)?, there(&slots)?);
            let o = if together {
                cache.append_and_attend([&of_q, &of_k, &of_v], &of_slots, &tables, &attention)?
            } else {
                cache.append(&of_k, &of_v, &of_slots)?;
                cache.attend(&of_q, &tables, &attention)?
            };
            assert_eq!((o.dims(), o.dtype()), (q.dims(), dtype));
            assert!(
                on_host(&cache, None)?.pool == on_host(&on_cpu, None)?.pool,
                "the bytes of step {step} in {dtype:?}"
            );
            let with = cache.attend(&of_q, &tables, &scored)?;
            for (per_head, o) in [(None, o), (Some(values.as_slice()), with)] {
                if rows > DecodeProblem::MAX_NEW_TOKENS {
                    sequences.check_prefill(&cache, &q, per_head, &o)?;
                } else {
                    sequences.check_decode(&cache, &q, per_head, &o)?;
                }
            }
        }
    }
    Ok(())
}

/// A chunk of a prompt beside a single token, packed, with room behind them.
pub fn chunks_and_single_tokens_in_one_call(gpu: &Device) -> Result<()> {
    let mut cache = KvCache::new(CONFIG, gpu)?;
    let mut sequences = Two::new(gpu);
    let attention = FlashAttn::new(0.1).with_causal(true);
    for (step, new) in [[100, 30], [60, 1], [1, 1], [9, 100]].into_iter().enumerate() {
        let (seed, total) = (step as f32, new[0] + new[1]);
        let [k, v, slots] = sequences.extend(new, seed, DType::F16)?;
        let q = tensor(&[total + 5, 6, CONFIG.head_dim], seed + 0.7, DType::F16)?;
        let there = |tensor: &Tensor| tensor.to_device(gpu);
        let (of_q, of_k, of_v, of_slots) = (there(&q)?, there(&k)?, there(&v)?, there(&slots)?);
        let seqlens_q = Tensor::new(&[0, new[0] as u32, total as u32], &Device::Cpu)?.to_device(gpu)?;
        let queries = PackedQueries { seqlens_q, max_seqlen_q: 100 };
        let tables = sequences.on_gpu()?;
        // The queries with the tokens, then on their own with room behind them: the same bits.
        let exact = of_q.narrow(0, 0, total)?;
        let o = cache.append_and_attend_varlen([&exact, &of_k, &of_v], &of_slots, &queries, &tables, &attention)?;
        let roomy = cache.attend_varlen(&of_q, &queries, &tables, &attention)?.to_device(&Device::Cpu)?;
        let o = o.to_device(&Device::Cpu)?;
        let bits = |o: &Tensor| o.narrow(0, 0, total)?.flatten_all()?.to_vec1::<half::f16>();
        assert!(bits(&o)? == bits(&roomy)?, "step {step}");
        let mut before = 0;
        for (sequence, &count) in new.iter().enumerate() {
            let HostTables { max_blocks, block_table, seqlens_kv, .. } = &sequences.tables;
            let own = HostTables {
                batch: 1,
                max_blocks: *max_blocks,
                block_table: block_table[sequence * max_blocks..][..*max_blocks].to_vec(),
                seqlens_kv: vec![seqlens_kv[sequence]],
            };
            let part = |tensor: &Tensor| tensor.narrow(0, before, count)?.unsqueeze(0);
            sequences.check_prefill_of(&cache, &own, &part(&q)?, None, &part(&o)?)?;
            before += count;
        }
    }
    Ok(())
}

pub fn pages_are_copied_and_swapped(gpu: &Device) -> Result<()> {
    let mut cache = KvCache::new(CONFIG, gpu)?;
    let [k, v, slots] = Two::new(gpu).extend([200, 130], 0.3, DType::F16)?;
    cache.append(&k.to_device(gpu)?, &v.to_device(gpu)?, &slots.to_device(gpu)?)?;
    let kept = cache.read_pages(&[5, 1])?;
    assert!(kept.iter().any(|&byte| byte != 0));
    cache.copy_pages(&[(5, 6), (1, 2)])?;
    assert!(cache.read_pages(&[6, 2])? == kept);
    let mut other = KvCache::new(CONFIG, gpu)?;
    assert!(other.read_pages(&[0])?.iter().all(|&byte| byte == 0));
    other.write_pages(&[3, 0], &kept)?;
    assert!(other.read_pages(&[3, 0])? == kept);
    assert!(cache.copy_pages(&[(0, 8)]).is_err());
    Ok(())
}
