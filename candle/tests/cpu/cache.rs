//! The cache against a plain model: the tokens of every sequence as float tensors, attended to by candle's own operations.

use crate::plain::{Asked, ERROR, error, refusal, tensor, values};
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

#[test]
fn packed_queries_that_are_wrong_are_refused() -> Result<()> {
    let mut model = Model::new(DType::F16)?;
    model.append([140, 60])?;
    let tables = model.tables()?;
    let q = tensor((1, 20, HEADS, DIM), 0.1, DType::F16)?.squeeze(0)?;
    let ends = |ends: &[u32]| Tensor::new(ends, &Device::Cpu);
    for (seqlens_q, max_seqlen_q, part) in [
        (ends(&[0])?, 20, "seqlens_q has 1 elements"),
        (ends(&[0, 20])?, 20, "block_tables has rows for 2 sequences, q is of 1"),
        (ends(&[0, 10, 20])?.to_dtype(DType::I64)?, 20, "seqlens_q holds I64"),
        (ends(&[0, 15, 10])?, 20, "cu_seqlens_q"),
        (ends(&[0, 10, 21])?, 20, "cu_seqlens_q"),
        (ends(&[0, 5, 20])?, 14, "15"),
    ] {
        let queries = PackedQueries { seqlens_q, max_seqlen_q };
        let refused = refusal(model.cache.attend_varlen(&q, &queries, &tables, &FlashAttn::new(0.1))).to_string();
        assert!(refused.starts_with("int-flash-attn: ") && refused.contains(part), "{part}: {refused}");
    }
    let queries = PackedQueries { seqlens_q: ends(&[0, 10, 20])?, max_seqlen_q: 10 };
    let attend = |cache: &KvCache, q: &Tensor| refusal(cache.attend_varlen(q, &queries, &tables, &FlashAttn::new(0.1)));
    assert!(attend(&model.cache, &q.unsqueeze(0)?).to_string().contains("unexpected rank, expected: 3, got: 4"));
    let with_v4 = KvCache::layers_with_v4_pages(1, CONFIG, 2, &Device::Cpu)?.remove(0);
    let error = attend(&with_v4, &q).to_string();
    assert!(error.contains("pages with V in 4 bits") && error.contains("`attend`"), "{error}");
    Ok(())
}

/// The order of the tokens in an append, the type of the slots, the strides of K and V, and tokens that are left out.
#[test]
fn forms_of_an_append_are_the_same() -> Result<()> {
    let (k, v) = (tensor((2, 3, HEADS_KV, DIM), 0.2, DType::F32)?, tensor((2, 3, HEADS_KV, DIM), 0.3, DType::F32)?);
    let slots = [0_i64, 1, 2, 128, 129, 130];
    let bytes = |append: &dyn Fn(&mut KvCache) -> Result<()>| {
        let mut cache = KvCache::new(CONFIG, &Device::Cpu)?;
        append(&mut cache)?;
        cache.read_pages(&[0, 1])
    };
    let flat = |tensor: &Tensor| tensor.flatten_to(1);
    let of_slots = Tensor::new(&slots, &Device::Cpu)?;
    let want = bytes(&|cache| cache.append(&flat(&k)?, &flat(&v)?, &of_slots))?;
    assert!(want.iter().any(|&byte| byte != 0));
    // A batch of sequences.
    assert_eq!(bytes(&|cache| cache.append(&k, &v, &of_slots))?, want);
    // As u32, with a token that is left out in front.
    let more = Tensor::new(&[u32::MAX, 0, 1, 2, 128, 129, 130], &Device::Cpu)?;
    let with_one = |tensor: &Tensor| Tensor::cat(&[&flat(tensor)?.narrow(0, 5, 1)?, &flat(tensor)?], 0);
    assert_eq!(bytes(&|cache| cache.append(&with_one(&k)?, &with_one(&v)?, &more))?, want);
    // One after the other, backwards, from tensors whose heads come first.
    let heads_first = |tensor: &Tensor| flat(tensor)?.transpose(0, 1)?.contiguous()?.transpose(0, 1);
    let backwards = bytes(&|cache| {
        for token in (0..6).rev() {
            let part = |tensor: &Tensor| heads_first(tensor)?.narrow(0, token, 1);
            cache.append(&part(&k)?, &part(&v)?, &of_slots.narrow(0, token, 1)?)?;
        }
        Ok(())
    })?;
    assert_eq!(backwards, want);
    // Nothing at all.
    let nothing = |tensor: &Tensor| flat(tensor)?.narrow(0, 0, 0);
    let empty = bytes(&|cache| cache.append(&nothing(&k)?, &nothing(&v)?, &of_slots.narrow(0, 0, 0)?))?;
    assert!(empty.iter().all(|&byte| byte == 0));
    Ok(())
}

/// A sequence that shares its prefix: its last page is copied; pages that were kept elsewhere come back.
#[test]
fn pages_are_copied_and_swapped() -> Result<()> {
    let mut model = Model::new(DType::F16)?;
    model.append([150, 150])?;
    let q = tensor((2, 1, HEADS, DIM), 0.1, DType::F16)?;
    let attend = |cache: &KvCache, rows: [[u32; 2]; 2]| {
        let tables = PagedTables {
            block_tables: Tensor::new(&rows, &Device::Cpu)?,
            context_lens: Tensor::new(&[150_u32, 150], &Device::Cpu)?,
        };
        values(&cache.attend(&q, &tables, &causal().attention()?)?)
    };
    let want = attend(&model.cache, [[5, 0], [1, 7]])?;
    model.cache.copy_pages(&[(0, 6), (6, 4)])?;
    assert_eq!(attend(&model.cache, [[5, 4], [1, 7]])?, want);
    let mut other = KvCache::layers(2, CONFIG, &Device::Cpu)?.remove(1);
    let kept = model.cache.read_pages(&[5, 0, 1, 7])?;
    assert_eq!((kept.len(), other.config()), (4 * other.page_bytes(), CONFIG));
    other.write_pages(&[2, 3, 0, 1], &kept)?;
    assert_eq!(attend(&other, [[2, 3], [0, 1]])?, want);
    Ok(())
}

/// Pages whose V has 4 bits, beside others: by a copy, and swapped.
#[test]
fn pages_with_v_in_4_bits() -> Result<()> {
    let mut model = Model::new(DType::F16)?;
    model.append([150, 150])?;
    let attend = |cache: &KvCache, queries: usize, rows: [[u32; 2]; 2]| {
        let tables = PagedTables {
            block_tables: Tensor::new(&rows, &Device::Cpu)?,
            context_lens: Tensor::new(&[150_u32, 150], &Device::Cpu)?,
        };
        values(&cache.attend(&tensor((2, queries, HEADS, DIM), 0.1, DType::F16)?, &tables, &causal().attention()?)?)
    };
    let mut cache = KvCache::layers_with_v4_pages(1, CONFIG, 3, &Device::Cpu)?.remove(0);
    assert_eq!((cache.num_v4_pages(), cache.config()), (3, CONFIG));
    cache.write_pages(&[0, 1, 2, 3], &model.cache.read_pages(&[5, 0, 1, 7])?)?;
    cache.copy_pages(&[(0, 5), (2, 6)])?;
    let kept = cache.read_pages(&[5, 1])?;
    assert_eq!(kept.len(), cache.v4_page_bytes() + cache.page_bytes());
    cache.write_pages(&[7, 4], &kept)?;
    // By a decode, and by a prefill.
    for queries in [1, 40] {
        let want = attend(&model.cache, queries, [[5, 0], [1, 7]])?;
        let got = attend(&cache, queries, [[7, 4], [6, 3]])?;
        let square = |of: &mut dyn Iterator<Item = f64>| of.map(|x| x * x).sum::<f64>().sqrt();
        let off = square(&mut got.iter().zip(&want).map(|(a, b)| a - b));
        let error = off / square(&mut want.iter().copied());
        assert!(error > 0.0 && error < 1e-1, "{queries}: {error:e}");
    }
    let v4_page_bytes = cache.v4_page_bytes();
    let wrong = cache.write_pages(&[0], &kept[..v4_page_bytes]).unwrap_err().to_string();
    assert!(wrong.contains("bytes were given for 1 pages"), "{wrong}");
    let wrong = KvCache::layers_with_v4_pages(1, CacheConfig { head_dim: 96, ..CONFIG }, 1, &Device::Cpu);
    assert!(wrong.unwrap_err().to_string().contains("V in 4 bits"));
    Ok(())
}

/// Keys with channels far from zero, as a bias in their projection makes them.
#[test]
fn an_offset_of_k_changes_nothing_but_the_error() -> Result<()> {
    let far: Vec<f32> = (0..HEADS_KV * DIM).map(|at| if at % 5 == 0 { 300.0 } else { 0.1 * (at % 3) as f32 }).collect();
    let far = Tensor::from_vec(far, (HEADS_KV, DIM), &Device::Cpu)?;
    let k = tensor((1, 200, HEADS_KV, DIM), 0.2, DType::F32)?.broadcast_add(&far)?;
    let v = tensor((1, 200, HEADS_KV, DIM), 0.3, DType::F32)?;
    let slots = Tensor::arange(0_i64, 200, &Device::Cpu)?;
    let tables = PagedTables {
        block_tables: Tensor::new(&[[0_u32, 1]], &Device::Cpu)?,
        context_lens: Tensor::new(&[200_u32], &Device::Cpu)?,
    };
    let errors = |offset: Option<&Tensor>| -> Result<[f64; 2]> {
        let mut cache = KvCache::new(CONFIG, &Device::Cpu)?;
        offset.iter().try_for_each(|offset| cache.set_k_offset(offset))?;
        cache.append(&k, &v, &slots)?;
        assert!(cache.set_k_offset(&far).expect_err("a refusal").to_string().contains("give it to an empty cache"));
        let of = |rows| -> Result<f64> {
            let q = tensor((1, rows, HEADS, DIM), 0.1, DType::F32)?;
            error(&cache.attend(&q, &tables, &causal().attention()?)?, &causal().plain(&q, &k, &v)?)
        };
        Ok([of(2)?, of(20)?])
    };
    let (with, without) = (errors(Some(&k.narrow(1, 0, 64)?.mean(1)?.squeeze(0)?))?, errors(None)?);
    assert!(with.iter().all(|&error| error < ERROR), "{with:?}");
    assert!(without.iter().all(|&error| error > 2.0 * ERROR), "{without:?}");

    let mut cache = KvCache::new(CONFIG, &Device::Cpu)?;
    for (offset, part) in [
        (far.t()?.contiguous()?, "the shape [64, 2]; (2, 64) is expected"),
        (far.to_dtype(DType::F16)?, "the offset of K holds F16"),
        ((&far / 0.0)?, "the offset of K holds inf at element 0"),
    ] {
        let error = cache.set_k_offset(&offset).expect_err("a refusal").to_string();
        assert!(error.contains(part), "{part}: {error}");
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

#[test]
fn refused_appends_leave_the_cache_as_it_was() -> Result<()> {
    let mut cache = KvCache::new(CONFIG, &Device::Cpu)?;
    let x = tensor((1, 4, HEADS_KV, DIM), 0.1, DType::F16)?.squeeze(0)?;
    let slots = |slots: &[i64]| Tensor::new(slots, &Device::Cpu);
    let good = slots(&[0, 1, 2, 3])?;
    let uneven = tensor((2, 3, HEADS_KV, DIM), 0.1, DType::F16)?.narrow(1, 0, 2)?;
    for (k, v, slots, part) in [
        (&x, &x, &slots(&[0, 1, 2])?, "slot_mapping has 3 slots for 4 new tokens"),
        (&x, &x, &slots(&[0, 1, 2, 1024])?, "token 3 has the slot 1024"),
        (&x, &x, &slots(&[0, 1, 2, 1])?, "the tokens 1 and 3 have both the slot 1"),
        (&x, &x, &good.to_dtype(DType::F32)?, "slot_mapping holds F32; [I64, U32] is taken"),
        (&x.narrow(1, 0, 1)?, &x, &good, "k has the shape [4, 1, 64]; (tokens, 2, 64)"),
        (&x, &x.narrow(2, 0, 32)?, &good, "v has the shape [4, 2, 32]"),
        (&uneven, &uneven, &good, "the tokens of k lie unevenly"),
        (&x, &x.narrow(0, 0, 3)?, &good, "shape mismatch"),
        (&x, &x.to_dtype(DType::F32)?, &good, "dtype mismatch"),
    ] {
        let error = cache.append(k, v, slots).expect_err("a refusal").to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    // An attention that is refused appends nothing either.
    let q = tensor((1, 4, 5, DIM), 0.1, DType::F16)?;
    let tables = PagedTables {
        block_tables: Tensor::new(&[[0_u32]], &Device::Cpu)?,
        context_lens: Tensor::new(&[4_u32], &Device::Cpu)?,
    };
    let both = cache.append_and_attend([&q, &x, &x], &good, &tables, &FlashAttn::new(0.1));
    assert!(refusal(both).to_string().contains("2 heads of k and v do not divide the 5 heads of q"));
    let far = PagedTables { context_lens: Tensor::new(&[129_u32], &Device::Cpu)?, ..tables };
    let q = tensor((1, 4, 4, DIM), 0.1, DType::F16)?;
    let both = cache.append_and_attend([&q, &x, &x], &good, &far, &FlashAttn::new(0.1));
    assert!(refusal(both).to_string().contains("sequence 0 has 129 tokens"));
    assert!(cache.read_pages(&(0..PAGES as u32).collect::<Vec<_>>())?.iter().all(|&byte| byte == 0));
    Ok(())
}

#[test]
fn refusals_say_what_was_given_and_the_way_out() -> Result<()> {
    let config = |num_pages, head_dim| CacheConfig { num_pages, head_dim, ..CONFIG };
    for (config, part) in [(config(0, 64), "the number of pages is 0"), (config(1, 80), "zeros to the next")] {
        let error = KvCache::new(config, &Device::Cpu).expect_err("a refusal").to_string();
        assert!(error.starts_with("int-flash-attn: ") && error.contains(part), "{part}: {error}");
    }
    let mut model = Model::new(DType::F16)?;
    model.append([140, 60])?;
    let good = model.tables()?;
    let blocks = |block_tables: Tensor| PagedTables { block_tables, ..good.clone() };
    let lengths = |lengths: &[u32]| -> Result<PagedTables> {
        Ok(PagedTables { context_lens: Tensor::new(lengths, &Device::Cpu)?, ..good.clone() })
    };
    let pages = |rows: &[[u32; 2]]| Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu);
    let plain = FlashAttn::new(0.1);
    let per_sequence = plain.clone().with_alibi_slopes(Tensor::zeros((2, HEADS), DType::F32, &Device::Cpu)?);
    let masked = plain.clone().with_mask(Tensor::ones((1, 1, 1, 512), DType::U8, &Device::Cpu)?);
    let q = tensor((2, 1, HEADS, DIM), 0.1, DType::F16)?;
    let narrow = tensor((2, 1, HEADS, 32), 0.1, DType::F16)?;
    for (q, tables, attention, part) in [
        (&q, &blocks(pages(&[[5, 0]])?), &plain, "block_tables has rows for 1 sequences, q is of 2"),
        (&q, &blocks(pages(&[[5, 0], [1, 7]])?.to_dtype(DType::I64)?), &plain, "block_tables holds I64; U32 is taken"),
        (&q, &blocks(pages(&[[5, 1], [0, 7]])?.t()?), &plain, "last dim of block_tables must be contiguous"),
        (&q, &blocks(pages(&[[5, 0], [8, 7]])?), &plain, "sequence 1 names page 8"),
        (&q, &blocks(pages(&[[5, 0]])?.broadcast_as((2, 2))?), &plain, "the rows of block_tables overlap"),
        (&q, &lengths(&[140])?, &plain, "context_lens has 1 elements"),
        (&q, &lengths(&[140, 513])?, &plain, "sequence 1 has 513 tokens"),
        (&q, &good, &per_sequence, "attend on the sequences one at a time"),
        (&q, &good, &masked, "a bias or a mask was given for attention on a cache"),
        (&q, &good, &plain.clone().with_softcap(0.0), "softcap is 0"),
        (&narrow, &good, &plain, "q has the head dim 32, the cache 64"),
        (&q.narrow(2, 0, 5)?, &good, &plain, "do not divide the 5 heads of q"),
    ] {
        let error = refusal(model.cache.attend(q, tables, attention)).to_string();
        assert!(error.starts_with("int-flash-attn: ") && error.contains(part), "{part}: {error}");
    }
    let double = model.cache.attend(&q.to_dtype(DType::F64)?, &good, &plain);
    assert!(matches!(refusal(double), candle_core::Error::UnsupportedDTypeForOp(DType::F64, _)));
    let missing = model.cache.copy_pages(&[(0, 8)]).expect_err("a refusal").to_string();
    assert!(missing.contains("page 8"), "{missing}");
    let short = model.cache.write_pages(&[0, 1], &[0; 3]).expect_err("a refusal").to_string();
    assert!(short.contains("3 bytes were given for 2 pages"), "{short}");
    Ok(())
}
