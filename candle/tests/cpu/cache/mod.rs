//! The cache against a plain model: the tokens of every sequence as float tensors, attended to by candle's own operations.

mod pages;
mod refusals;

use crate::plain::{Asked, ERROR, error, tensor, values};
use candle_core::{DType, Device, Result, Tensor};
use candle_int_flash_attention::{CacheConfig, FlashAttn, KvCache, PackedQueries, PagedTables};

const HEADS: usize = 6;
const HEADS_KV: usize = 2;
const DIM: usize = 64;
const PAGES: usize = 8;
const CONFIG: CacheConfig = CacheConfig { num_pages: PAGES, num_kv_heads: HEADS_KV, head_dim: DIM };

/// A cache and what it should hold.
struct Model {
    cache: KvCache,
    dtype: DType,
    /// The pages of each sequence, in no order.
    pages: [[u32; 3]; 2],
    /// K and V of each sequence, `(1, tokens, heads, head_dim)`.
    tokens: [Vec<[Tensor; 2]>; 2],
    lengths: [usize; 2],
    steps: usize,
}

impl Model {
    fn new(dtype: DType) -> Result<Self> {
        Ok(Self {
            cache: KvCache::new(CONFIG, &Device::Cpu)?,
            dtype,
            pages: [[5, 0, 3], [1, 7, 2]],
            tokens: Default::default(),
            lengths: [0, 0],
            steps: 0,
        })
    }

    /// New tokens of both sequences, those of one behind those of the other: K, V and their slots.
    fn new_tokens(&mut self, new: [usize; 2]) -> Result<[Tensor; 3]> {
        self.steps += 1;
        let all = new[0] + new[1];
        let kv = [0.2, 0.3].map(|seed| tensor((1, all, HEADS_KV, DIM), seed + self.steps as f32, self.dtype));
        let [k, v] = kv;
        let (k, v) = (k?.squeeze(0)?, v?.squeeze(0)?);
        let (mut slots, mut before) = (Vec::new(), 0);
        for (sequence, &count) in new.iter().enumerate() {
            for token in self.lengths[sequence]..self.lengths[sequence] + count {
                slots.push(i64::from(self.pages[sequence][token / 128]) * 128 + token as i64 % 128);
            }
            if count > 0 {
                let part = |tensor: &Tensor| tensor.narrow(0, before, count)?.unsqueeze(0);
                self.tokens[sequence].push([part(&k)?, part(&v)?]);
            }
            self.lengths[sequence] += count;
            before += count;
        }
        Ok([k, v, Tensor::from_vec(slots, all, &Device::Cpu)?])
    }

    fn append(&mut self, new: [usize; 2]) -> Result<()> {
        let [k, v, slots] = self.new_tokens(new)?;
        self.cache.append(&k, &v, &slots)
    }

    /// Both sequences, in tables that are a part of wider ones.
    fn tables(&self) -> Result<PagedTables> {
        let rows = self.pages.map(|[a, b, c]| [a, b, c, 99, 99]);
        let lengths = self.lengths.map(|length| length as u32);
        Ok(PagedTables {
            block_tables: Tensor::new(&rows, &Device::Cpu)?.narrow(1, 0, 4)?,
            context_lens: Tensor::new(&lengths, &Device::Cpu)?,
        })
    }

    /// Attends with so many queries of each sequence.
    fn check(&self, rows: usize, asked: &Asked) -> Result<()> {
        let q = tensor((2, rows, HEADS, DIM), 0.1 + self.steps as f32, self.dtype)?;
        let o = self.cache.attend(&q, &self.tables()?, &asked.attention()?)?;
        assert_eq!((o.dims(), o.dtype(), o.is_contiguous()), (q.dims(), self.dtype, true));
        for (sequence, tokens) in self.tokens.iter().enumerate() {
            let all = |which: usize| {
                let parts: Vec<&Tensor> = tokens.iter().map(|both| &both[which]).collect();
                Tensor::cat(&parts, 1)
            };
            let one = |tensor: &Tensor| tensor.narrow(0, sequence, 1);
            let want = asked.plain(&one(&q)?, &all(0)?, &all(1)?)?;
            let error = error(&one(&o)?, &want)?;
            assert!(error < ERROR, "{rows} rows of sequence {sequence}, {:?}, {asked:?}: {error}", self.lengths);
        }
        Ok(())
    }
}

fn causal() -> Asked {
    Asked { scale: 0.11, window: (None, Some(0)), ..Asked::default() }
}

fn slopes() -> Option<Vec<f32>> {
    Some((1..=HEADS).map(|head| (-(head as f64)).exp2() as f32).collect())
}

/// Engines share them between threads.
#[test]
fn caches_and_attentions_go_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<KvCache>();
    check::<FlashAttn>();
    check::<PagedTables>();
}

/// Prompts, then token after token across the end of a page, then a chunk, in every type.
#[test]
fn steps_of_an_engine_are_what_candle_computes() -> Result<()> {
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        let mut model = Model::new(dtype)?;
        model.append([126, 70])?;
        model.check(70, &causal())?;
        for _ in 0..4 {
            model.append([1, 1])?;
            model.check(1, &causal())?;
        }
        model.append([3, 3])?;
        model.check(3, &Asked { window: (Some(40), Some(0)), ..causal() })?;
        model.append([20, 90])?;
        model.check(20, &causal())?;
        assert_eq!(model.lengths, [153, 167]);
    }
    Ok(())
}

/// Every product, with few queries; more of them are attention on plain operands, which has them where it has lengths.
#[test]
fn decode_with_scores() -> Result<()> {
    let mut model = Model::new(DType::F16)?;
    model.append([140, 60])?;
    for features in 0..8 {
        let has = |feature: u32| features >> feature & 1 == 1;
        let asked = Asked {
            softcap: has(0).then_some(1.5),
            slopes: if has(1) { slopes() } else { None },
            sinks: has(2).then(|| (0..HEADS).map(|head| head as f32 - 1.0).collect()),
            ..causal()
        };
        for rows in [1, 2, 8] {
            model.check(rows, &asked)?;
        }
    }
    Ok(())
}

#[test]
fn prefill_with_scores() -> Result<()> {
    let mut model = Model::new(DType::F16)?;
    model.append([140, 60])?;
    for asked in [
        Asked { softcap: Some(1.5), ..causal() },
        Asked { slopes: slopes(), window: (Some(50), Some(0)), ..causal() },
        Asked { sinks: Some(vec![1.0; HEADS]), softcap: Some(1.5), slopes: slopes(), ..causal() },
    ] {
        model.check(9, &asked)?;
    }
    Ok(())
}

#[test]
fn together_is_one_after_the_other() -> Result<()> {
    let mut apart = Model::new(DType::BF16)?;
    let mut together = Model::new(DType::BF16)?;
    let attention = causal().attention()?;
    for (new, rows) in [([130, 50], 50), ([1, 1], 1), ([2, 2], 2), ([20, 20], 20)] {
        let q = tensor((2, rows, HEADS, DIM), 0.6, DType::BF16)?;
        apart.append(new)?;
        let want = apart.cache.attend(&q, &apart.tables()?, &attention)?;
        let [k, v, slots] = together.new_tokens(new)?;
        let tables = together.tables()?;
        let got = together.cache.append_and_attend([&q, &k, &v], &slots, &tables, &attention)?;
        assert_eq!(values(&got)?, values(&want)?);
    }
    // A token of each sequence, as engines have it.
    let q = tensor((1, 2, HEADS, DIM), 0.7, DType::BF16)?.squeeze(0)?;
    let o = apart.cache.attend(&q, &apart.tables()?, &attention)?;
    let wide = apart.cache.attend(&q.unsqueeze(1)?, &apart.tables()?, &attention)?;
    assert_eq!((o.dims(), wide.dims()), ([2, HEADS, DIM].as_slice(), [2, 1, HEADS, DIM].as_slice()));
    assert_eq!(values(&o)?, values(&wide)?);
    Ok(())
}

/// Chunks of prompts beside sequences that decode, packed: what `attend` gives of each sequence alone, and what candle computes.
#[test]
fn chunks_and_single_tokens_in_one_call() -> Result<()> {
    let asked = [
        causal(),
        Asked { window: (Some(30), Some(0)), ..causal() },
        Asked { softcap: Some(1.5), slopes: slopes(), sinks: Some(vec![1.0; HEADS]), ..causal() },
    ];
    let mut model = Model::new(DType::F16)?;
    // A prompt in three chunks; the other sequence decodes, has no new token, and has three.
    for (new, asked) in [([126, 40], &asked[0]), ([50, 1], &asked[1]), ([30, 0], &asked[2]), ([1, 3], &asked[0])] {
        let attention = asked.attention()?;
        let all = new[0] + new[1];
        // There is room for two queries more.
        let q = tensor((1, all + 2, HEADS, DIM), 0.6 + model.steps as f32, DType::F16)?.squeeze(0)?;
        let of_tokens = q.narrow(0, 0, all)?;
        let seqlens_q = Tensor::new(&[0, new[0] as u32, all as u32], &Device::Cpu)?;
        let queries = PackedQueries { seqlens_q, max_seqlen_q: 126 };
        let [k, v, slots] = model.new_tokens(new)?;
        let tables = model.tables()?;
        let o = model.cache.append_and_attend_varlen([&of_tokens, &k, &v], &slots, &queries, &tables, &attention)?;
        assert_eq!((o.dims(), o.dtype()), (of_tokens.dims(), DType::F16));
        let again = model.cache.attend_varlen(&q, &queries, &tables, &attention)?;
        assert_eq!(values(&again.narrow(0, 0, all)?)?, values(&o)?);
        let mut before = 0;
        for (sequence, &count) in new.iter().enumerate() {
            if count == 0 {
                continue;
            }
            let one = |tensor: &Tensor| tensor.narrow(0, sequence, 1);
            let row =
                PagedTables { block_tables: one(&tables.block_tables)?, context_lens: one(&tables.context_lens)? };
            let (q, o) = (q.narrow(0, before, count)?.unsqueeze(0)?, o.narrow(0, before, count)?.unsqueeze(0)?);
            let alone = model.cache.attend(&q, &row, &attention)?;
            if count > 8 {
                assert_eq!(values(&alone)?, values(&o)?, "{new:?}, sequence {sequence}");
            }
            let all = |which: usize| {
                let parts: Vec<&Tensor> = model.tokens[sequence].iter().map(|both| &both[which]).collect();
                Tensor::cat(&parts, 1)
            };
            let error = error(&o, &asked.plain(&q, &all(0)?, &all(1)?)?)?;
            assert!(error < ERROR, "{new:?}, sequence {sequence}, {asked:?}: {error}");
            before += count;
        }
    }
    Ok(())
}

/// A sequence of a batch alone, on its row of the tables: with few queries, and with so many that others have fewer.
#[test]
fn rows_of_tables_are_tables() -> Result<()> {
    let mut model = Model::new(DType::F16)?;
    model.append([140, 60])?;
    let tables = model.tables()?;
    let attend = |q: &Tensor, tables: &PagedTables| model.cache.attend(q, tables, &causal().attention()?);
    for rows in [2, 20] {
        let q = tensor((2, rows, HEADS, DIM), 0.1, DType::F16)?;
        let both = attend(&q, &tables)?;
        for sequence in 0..2 {
            let one = |tensor: &Tensor| tensor.narrow(0, sequence, 1);
            let row =
                PagedTables { block_tables: one(&tables.block_tables)?, context_lens: one(&tables.context_lens)? };
            assert_eq!(values(&attend(&one(&q)?, &row)?)?, values(&one(&both)?)?);
            // Padding in front of a sequence's queries changes none of them.
            let last = one(&q)?.narrow(1, rows - 1, 1)?;
            let padded = Tensor::cat(&[&last.zeros_like()?.repeat((1, 19, 1, 1))?, &last], 1)?;
            let o = attend(&padded, &row)?.narrow(1, 19, 1)?;
            let error = error(&o, &one(&both)?.narrow(1, rows - 1, 1)?)?;
            assert!(error < ERROR, "{error}");
        }
    }
    Ok(())
}

/// A row of a batch that has no sequence, as graphs of fixed batches have them.
#[test]
fn sequences_of_no_tokens_give_zeros() -> Result<()> {
    let mut model = Model::new(DType::F32)?;
    model.append([40, 0])?;
    let tables = model.tables()?;
    for rows in [1, 12] {
        let q = tensor((2, rows, HEADS, DIM), 0.1, DType::F32)?;
        let o = model.cache.attend(&q, &tables, &causal().attention()?)?;
        assert!(values(&o.narrow(0, 1, 1)?)?.iter().all(|&o| o == 0.0));
        assert!(values(&o.narrow(0, 0, 1)?)?.iter().any(|&o| o != 0.0));
    }
    Ok(())
}
