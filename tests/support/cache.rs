//! A paged cache, whatever its kernels run on, against the reference bit for bit, and against a plain model of what sequences hold.

use crate::decode::any_range;
use crate::prefill::PrefillCase;
use crate::properties::bias_within_rounding;
use crate::values::{Noise, Values};
use anyhow::{Context, Result, ensure};
use int_flash_attention::{
    AttentionProblem, CacheShape, DType, DecodeHeads, DecodeProblem, HostCache, HostK, HostQ, HostQuantized,
    HostTables, HostTensor, HostV, PrefillProblem, Shape, TensorLayout, Window, reference,
};
use int_flash_attention_kernels::layout::page::{page_head, page_v_offset};
use int_flash_attention_kernels::layout::v4::v4_steps_offset;
use std::collections::HashSet;

/// New tokens.
pub struct New<'a> {
    /// Queries, `[1, heads_q, tokens, head_dim]`, and how many of a sequence follow one another in the operand.
    pub q: Option<(&'a HostTensor, usize)>,
    /// Keys.
    pub k: &'a HostTensor,
    /// Values.
    pub v: &'a HostTensor,
    /// A slot each, any number.
    pub slots: &'a [i64],
    /// Whether the kernel is handed the slots as `i64`.
    pub wide: bool,
}

/// A cache that something keeps.
pub trait Cache {
    /// The cache as it is.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn host(&self) -> Result<HostCache>;

    /// Appends, and gives the quantized queries.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn append(&mut self, new: &New<'_>) -> Result<Option<HostQ>>;

    /// The first tokens of each sequence as operands.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn gather(&self, tables: &HostTables, seqlen_kv: usize) -> Result<(HostK, HostV)>;

    /// The output of a prefill on the cache, which is the case's, `[batch][head][token][dim]`.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn prefill(&self, case: &PrefillCase) -> Result<Vec<f64>>;

    /// Copies pages.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn copy_pages(&mut self, pairs: &[(u32, u32)]) -> Result<()>;

    /// Takes pages out.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn swap_out(&self, pages: &[u32]) -> Result<Vec<u8>>;

    /// Brings pages back.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn swap_in(&mut self, pages: &[u32], bytes: &[u8]) -> Result<()>;
}

/// The CPU's.
impl Cache for HostCache {
    fn host(&self) -> Result<HostCache> {
        Ok(self.clone())
    }

    fn append(&mut self, new: &New<'_>) -> Result<Option<HostQ>> {
        let q = new.q.map(|(q, seqlen)| self.quantize_q(&in_sequences(q, seqlen)?).context("q")).transpose()?;
        Self::append(self, new.k, new.v, &in_pool(&self.shape, new.slots))?;
        Ok(q)
    }

    fn gather(&self, tables: &HostTables, seqlen_kv: usize) -> Result<(HostK, HostV)> {
        Ok(Self::gather(self, tables, seqlen_kv)?)
    }

    fn prefill(&self, case: &PrefillCase) -> Result<Vec<f64>> {
        let (cache, offsets) = (self.sequences(&case.tables)?, case.cu_seqlens_q.as_deref());
        Ok(case.problem.on_cpu(&case.q, offsets, &cache, &case.tensors())?.o)
    }

    fn copy_pages(&mut self, pairs: &[(u32, u32)]) -> Result<()> {
        Ok(Self::copy_pages(self, pairs)?)
    }

    fn swap_out(&self, pages: &[u32]) -> Result<Vec<u8>> {
        let pages: std::result::Result<Vec<_>, _> = pages.iter().map(|&page| self.page(page)).collect();
        Ok(pages?.concat())
    }

    fn swap_in(&mut self, pages: &[u32], bytes: &[u8]) -> Result<()> {
        let mut bytes = bytes;
        for &page in pages {
            let (own, rest) = bytes.split_at(self.shape.page_range(page).len());
            self.page_mut(page)?.copy_from_slice(own);
            bytes = rest;
        }
        Ok(())
    }
}

/// What the kernels make of slots: those that the pool has.
fn in_pool(shape: &CacheShape, slots: &[i64]) -> Vec<i64> {
    let inside = |slot: i64| usize::try_from(slot).is_ok_and(|slot| slot < shape.slots());
    slots.iter().map(|&slot| if inside(slot) { slot } else { -1 }).collect()
}

/// Flat queries as those of sequences of so many.
fn in_sequences(q: &HostTensor, seqlen: usize) -> Result<HostTensor> {
    let Shape { heads, seqlen: tokens, head_dim, .. } = q.shape();
    let layout = TensorLayout::bhnd(Shape::new(tokens / seqlen, heads, seqlen, head_dim)?);
    Ok(HostTensor::from_fn(q.dtype(), layout, |b, h, n, d| q.get(0, h, b * seqlen + n, d))?)
}

/// Appends to `cache`, and holds it and the queries to the reference: every byte of the pool is what it should be, those of no new token included.
///
/// # Errors
///
/// Names the byte.
pub fn append_as_reference(cache: &mut impl Cache, new: &New<'_>) -> Result<()> {
    let mut want = cache.host()?;
    let q = cache.append(new)?;
    let want_q = Cache::append(&mut want, new)?;
    same_pool(&cache.host()?, &want)?;
    ensure!(q.is_some() == want_q.is_some(), "queries that were not asked for, or the other way round");
    if let (Some(got), Some(want_q), Some((flat, seqlen))) = (q, want_q, new.q) {
        ensure!(got.shape == want_q.shape && got.data == want_q.data, "the codes of Q");
        let bits = |scale: &[f32]| scale.iter().map(|scale| scale.to_bits()).collect::<Vec<_>>();
        ensure!(bits(&got.scale) == bits(&want_q.scale), "the scales of Q");
        let q = in_sequences(flat, seqlen)?;
        let Shape { batch, heads, seqlen, head_dim } = q.shape();
        let problem = AttentionProblem::new(batch, heads, want.shape.heads_kv, seqlen, 1, head_dim);
        let offset = want.k_offset.unwrap_or_else(|| vec![0.0; want.shape.heads_kv * head_dim]).repeat(batch);
        bias_within_rounding(&problem, got.bias.as_deref().context("no q_bias")?, &offset, &q)?;
    }
    Ok(())
}

fn same_pool(got: &HostCache, want: &HostCache) -> Result<()> {
    let differs = got.pool.iter().zip(&want.pool).position(|(got, want)| got != want);
    let Some(byte) = differs else { return Ok(()) };
    let range = (0..want.shape.pages as u32).map(|page| want.shape.page_range(page)).enumerate();
    let (page, range) = range.into_iter().find(|(_, range)| range.contains(&byte)).context("a byte of no page")?;
    let (of_head, at) = (range.len() / want.shape.heads_kv, byte - range.start);
    let (head, at) = (at / of_head, at % of_head);
    anyhow::bail!("byte {at} of head {head} of page {page} is {}, should be {}", got.pool[byte], want.pool[byte])
}

/// Gathers, and holds the operands to the reference, bit for bit.
///
/// # Errors
///
/// Names the array.
pub fn gather_as_reference(cache: &impl Cache, tables: &HostTables, seqlen_kv: usize) -> Result<(HostK, HostV)> {
    let (k, v) = cache.gather(tables, seqlen_kv)?;
    let (want_k, want_v) = cache.host()?.gather(tables, seqlen_kv)?;
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    ensure!(k.data == want_k.data && v.data == want_v.data, "the codes");
    for (name, got, want) in [
        ("k_scale", &k.scale, &want_k.scale),
        ("k_block_scale", &k.block_scale, &want_k.block_scale),
        ("k_offset", &k.offset, &want_k.offset),
        ("v_scale", &v.scale, &want_v.scale),
        ("v_block_scale", &v.block_scale, &want_v.block_scale),
        ("v_unit", &v.unit, &want_v.unit),
    ] {
        ensure!(bits(got) == bits(want), "{name}");
    }
    Ok((k, v))
}

/// Copies pages, and holds the pool to the reference, every byte.
///
/// # Errors
///
/// Names the byte.
pub fn copy_as_reference(cache: &mut impl Cache, pairs: &[(u32, u32)]) -> Result<()> {
    let mut want = cache.host()?;
    want.copy_pages(pairs)?;
    cache.copy_pages(pairs)?;
    same_pool(&cache.host()?, &want)
}

/// A cache whose bytes are any, with what is taken out of K where that is asked for.
#[must_use]
pub fn any_cache(shape: CacheShape, offset: bool, seed: u64) -> HostCache {
    let mut cache = HostCache::alloc(shape).expect("a small cache");
    for (i, four) in cache.pool.chunks_exact_mut(4).enumerate() {
        four.copy_from_slice(&Noise::new(seed, [i, 1, 2, 3]).word().to_le_bytes());
    }
    for (page, head) in (shape.v8_pages()..shape.pages).flat_map(|page| (0..shape.heads_kv).map(move |h| (page, h))) {
        let at = page_head(page, head, shape.heads_kv, shape.head_dim, shape.v8_pages());
        let steps = at.offset + page_v_offset(shape.head_dim) + v4_steps_offset(shape.head_dim);
        for (i, range) in cache.pool[steps..at.offset + at.scales].as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *range = any_range(Noise::new(seed, [i, page, head, 7]).word().into());
        }
    }
    let channel = |i| Noise::new(seed, [i, 4, 5, 6]).normal() * 0.3;
    cache.k_offset = offset.then(|| (0..shape.heads_kv * shape.head_dim).map(channel).collect());
    cache
}

/// Slots for so many tokens, none twice: runs of any length, some from the beginning of a page, and runs of none.
#[must_use]
pub fn any_slots(shape: &CacheShape, tokens: usize, noise: &mut Noise) -> Vec<i64> {
    let (mut slots, mut taken) = (Vec::new(), HashSet::new());
    while slots.len() < tokens {
        let run = 1 + noise.word() as usize % if noise.word().is_multiple_of(3) { 300 } else { 40 };
        let skip = noise.word().is_multiple_of(5);
        let mut first = noise.word() as usize % shape.slots();
        if noise.word().is_multiple_of(2) {
            first -= first % CacheShape::PAGE_TOKENS;
        }
        for slot in first..first + run {
            if slots.len() == tokens {
                break;
            }
            let free = slot < shape.slots() && !skip && taken.insert(slot);
            slots.push(if free { slot as i64 } else { -1 });
        }
    }
    slots
}

/// A sequence as a plain model has it.
#[derive(Clone, Default)]
struct Sequence {
    pages: Vec<u32>,
    /// `[token][head][dim]`.
    k: Vec<f32>,
    v: Vec<f32>,
}

/// Sequences of a cache, and which pages are free.
struct Model {
    shape: CacheShape,
    sequences: Vec<Sequence>,
    free: Vec<u32>,
    noise: Noise,
    /// Tokens that there have been.
    tokens: usize,
}

impl Model {
    fn row(&self) -> usize {
        self.shape.heads_kv * self.shape.head_dim
    }

    fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].k.len() / self.row()
    }

    fn any(&mut self, below: usize) -> usize {
        self.noise.word() as usize % below
    }

    fn uses(&self, page: u32) -> usize {
        self.sequences.iter().filter(|sequence| sequence.pages.contains(&page)).count()
    }

    /// Gives back the pages that nobody uses.
    fn collect(&mut self) {
        self.free = (0..self.shape.pages as u32).filter(|&page| self.uses(page) == 0).collect();
        for i in (1..self.free.len()).rev() {
            let other = self.any(i + 1);
            self.free.swap(i, other);
        }
    }

    fn tables(&self) -> HostTables {
        let max_blocks = self.sequences.iter().map(|sequence| sequence.pages.len()).max().unwrap_or(1).max(1);
        let mut tables = HostTables::contiguous(self.sequences.len(), max_blocks);
        // What is no page, where there is none.
        tables.block_table.fill(u32::MAX);
        for (i, sequence) in self.sequences.iter().enumerate() {
            tables.block_table[i * max_blocks..][..sequence.pages.len()].copy_from_slice(&sequence.pages);
            tables.seqlens_kv[i] = self.len(i) as u32;
        }
        tables
    }

    /// A few new tokens for some of the sequences.
    fn append(&mut self, cache: &mut impl Cache) -> Result<()> {
        let mut new = vec![0; self.sequences.len()];
        let mut copies = Vec::new();
        for (sequence, new) in new.iter_mut().enumerate() {
            let wanted = match self.any(4) {
                0 => 0,
                1 => 1,
                2 => self.any(20),
                _ => self.any(200),
            };
            let (len, has) = (self.len(sequence), self.sequences[sequence].pages.len());
            let room = (self.free.len() + has) * CacheShape::PAGE_TOKENS - len;
            let last_is_shared = !len.is_multiple_of(CacheShape::PAGE_TOKENS)
                && self.uses(self.sequences[sequence].pages[len / CacheShape::PAGE_TOKENS]) > 1;
            if last_is_shared && self.free.is_empty() {
                continue;
            }
            *new = wanted.min(room);
            if last_is_shared && *new > 0 {
                let (copy, last) = (self.free.pop().context("no page")?, len / CacheShape::PAGE_TOKENS);
                copies.push((self.sequences[sequence].pages[last], copy));
                self.sequences[sequence].pages[last] = copy;
                let room = (self.free.len() + has) * CacheShape::PAGE_TOKENS - len;
                *new = (*new).min(room);
            }
            while self.sequences[sequence].pages.len() * CacheShape::PAGE_TOKENS < len + *new {
                let page = self.free.pop().context("no page")?;
                self.sequences[sequence].pages.push(page);
            }
        }
        cache.copy_pages(&copies)?;
        let tokens: usize = new.iter().sum();
        if tokens == 0 {
            return Ok(());
        }
        let slots = self.tables().extend(&new)?;
        let shape = Shape::new(1, self.shape.heads_kv, tokens, self.shape.head_dim)?;
        let seed = self.tokens as u64;
        self.tokens += tokens;
        let [k, v] =
            [2 * seed, 2 * seed + 1].map(|seed| Values::Normal.tensor(DType::F16, TensorLayout::bnhd(shape), seed));
        let (k, v) = (k?, v?);
        append_as_reference(cache, &New { q: None, k: &k, v: &v, slots: &slots, wide: tokens.is_multiple_of(2) })?;
        let mut token = 0;
        for (sequence, new) in self.sequences.iter_mut().zip(new) {
            for n in token..token + new {
                for h in 0..shape.heads {
                    sequence.k.extend((0..shape.head_dim).map(|d| k.get(0, h, n, d)));
                    sequence.v.extend((0..shape.head_dim).map(|d| v.get(0, h, n, d)));
                }
            }
            token += new;
        }
        Ok(())
    }

    /// One thing that an engine does.
    fn step(&mut self, cache: &mut impl Cache) -> Result<()> {
        let sequence = self.any(self.sequences.len());
        match self.any(8) {
            0 => {
                // Fork: all pages are shared.
                let other = self.any(self.sequences.len());
                self.sequences[other] = self.sequences[sequence].clone();
                self.collect();
            }
            1 => {
                let len = self.any(self.len(sequence) + 1);
                let row = self.row();
                let one = &mut self.sequences[sequence];
                one.k.truncate(len * row);
                one.v.truncate(len * row);
                one.pages.truncate(len.div_ceil(CacheShape::PAGE_TOKENS));
                self.collect();
            }
            2 => {
                // Out, and back to other pages, after others have been written.
                let pages = self.sequences[sequence].pages.clone();
                let bytes = cache.swap_out(&pages)?;
                let swapped = std::mem::take(&mut self.sequences[sequence]);
                self.collect();
                // A page's bytes mean something in pages of its kind alone.
                let mut free = self.free.clone();
                let back: Option<Vec<u32>> = pages
                    .iter()
                    .map(|&page| {
                        let is_v4 = |page| self.shape.is_v4(page);
                        free.iter().position(|&other| is_v4(other) == is_v4(page)).map(|i| free.remove(i))
                    })
                    .collect();
                if let Some(back) = back.filter(|_| !free.is_empty()) {
                    self.free = free;
                    self.append(cache)?;
                    // What the append gave to the sequence that is out is dropped.
                    cache.swap_in(&back, &bytes)?;
                    self.sequences[sequence] = Sequence { pages: back, ..swapped };
                } else {
                    cache.swap_in(&pages, &bytes)?;
                    self.sequences[sequence] = Sequence { pages, ..swapped };
                }
                self.collect();
            }
            3 if self.shape.v4_pages > 0 => self.convert(sequence, cache)?,
            _ => self.append(cache)?,
        }
        Ok(())
    }

    /// Some of a sequence's pages become free ones, of the other kind where there are such.
    fn convert(&mut self, sequence: usize, cache: &mut impl Cache) -> Result<()> {
        let mut pairs = Vec::new();
        for block in 0..self.sequences[sequence].pages.len() {
            let page = self.sequences[sequence].pages[block];
            let other = self.free.iter().position(|&other| self.shape.is_v4(other) != self.shape.is_v4(page));
            if let Some(i) = other
                && self.any(3) > 0
            {
                let other = self.free.remove(i);
                pairs.push((page, other));
                self.sequences[sequence].pages[block] = other;
            }
        }
        copy_as_reference(cache, &pairs)?;
        self.collect();
        Ok(())
    }

    /// How far an output may be from float64's: of V in 4 bits a token has half a step of 16 in its range, of normal values a tenth of them.
    fn most_error(&self) -> f64 {
        if self.shape.v4_pages > 0 { 1.2e-1 } else { 3e-2 }
    }

    /// Attention of the last tokens of all sequences, any number of each, on the pages, against float64 on the model.
    fn prefill_pages(&mut self, cache: &impl Cache) -> Result<()> {
        if self.shape.v4_pages > 0 {
            // Refused.
            return Ok(());
        }
        let (heads_kv, d) = (self.shape.heads_kv, self.shape.head_dim);
        let lengths: Vec<usize> = (0..self.sequences.len()).map(|sequence| self.len(sequence)).collect();
        let new: Vec<usize> = lengths.iter().map(|&len| self.any(24).min(len)).collect();
        let mut offsets = vec![0];
        offsets.extend(new.iter().scan(0, |sum, &new| {
            *sum += new as u32;
            Some(*sum)
        }));
        let total = new.iter().sum::<usize>().max(1);
        let tables = self.tables();
        let longest = tables.max_blocks * CacheShape::PAGE_TOKENS;
        let problem = PrefillProblem::new(new.len(), 2 * heads_kv, heads_kv, 24, longest, d).with_packed_queries(total);
        let q = Values::Normal.tensor(DType::F32, TensorLayout::bhnd(problem.q_shape()), self.tokens as u64)?;
        let host = cache.host()?;
        let got =
            cache.prefill(&PrefillCase::new(problem, host.quantize_q(&q)?, Some(offsets.clone()), host, tables))?;
        for (i, (&len, &new)) in lengths.iter().zip(&new).enumerate().filter(|(_, (_, new))| **new > 0) {
            let first = offsets[i] as usize;
            let problem = AttentionProblem::new(1, 2 * heads_kv, heads_kv, new, len, d).with_window(Window::CAUSAL);
            let of = |values: &[f32]| {
                let layout = TensorLayout::bnhd(problem.kv_shape());
                HostTensor::new(values.to_vec(), layout)
            };
            let own = TensorLayout::bhnd(problem.q_shape());
            let q = HostTensor::from_fn(DType::F32, own, |_, h, n, d| q.get(0, h, first + n, d))?;
            let want = reference::exact(&problem, &q, &of(&self.sequences[i].k)?, &of(&self.sequences[i].v)?)?;
            let rows = (0..2 * heads_kv).flat_map(|head| (0..new).map(move |row| head * total + first + row));
            let got: Vec<f64> = rows.flat_map(|row| got[row * d..][..d].iter().copied()).collect();
            let error = reference::compare(&got, &want.o).relative_l2;
            ensure!(error < 3e-2, "the last {new} tokens of sequence {i} of {len} are off by {error:e}");
        }
        Ok(())
    }

    /// Attention of the last queries of a sequence on what a gather gives, against float64 on the model.
    fn prefill(&mut self, cache: &impl Cache) -> Result<()> {
        let sequence = self.any(self.sequences.len());
        let (len, heads_kv, d) = (self.len(sequence), self.shape.heads_kv, self.shape.head_dim);
        if len == 0 {
            return Ok(());
        }
        let one = &self.sequences[sequence];
        let tables = HostTables {
            batch: 1,
            max_blocks: one.pages.len(),
            block_table: one.pages.clone(),
            seqlens_kv: vec![len as u32],
        };
        let (k, v) = gather_as_reference(cache, &tables, len)?;
        let problem = AttentionProblem::new(1, 2 * heads_kv, heads_kv, len.min(20), len, d).with_window(Window::CAUSAL);
        let q = Values::Normal.tensor(DType::F32, TensorLayout::bhnd(problem.q_shape()), self.tokens as u64)?;
        let operands = HostQuantized { q: cache.host()?.quantize_q(&q)?, k, v };
        let got = reference::int8(&problem, &operands)?;
        let of = |values: &[f32]| {
            let by_head = |h, n, d: usize| values[(n * heads_kv + h) * problem.head_dim + d];
            HostTensor::from_fn(DType::F32, TensorLayout::bhnd(problem.kv_shape()), |_, h, n, d| by_head(h, n, d))
        };
        let want = reference::exact(&problem, &q, &of(&one.k)?, &of(&one.v)?)?;
        let error = reference::compare(&got.o, &want.o).relative_l2;
        ensure!(
            error < self.most_error(),
            "the last queries of sequence {sequence} of {len} tokens are off by {error:e}"
        );
        Ok(())
    }

    /// Attention of a query a sequence, on the cache, against float64 on the model.
    fn attend(&self, cache: &HostCache) -> Result<()> {
        let (batch, heads_kv, d) = (self.sequences.len(), self.shape.heads_kv, self.shape.head_dim);
        let tables = self.tables();
        let q = Values::Normal.tensor(
            DType::F32,
            TensorLayout::bhnd(Shape::new(batch, 2 * heads_kv, 1, d)?),
            self.tokens as u64,
        )?;
        let longest = tables.max_blocks * CacheShape::PAGE_TOKENS;
        let problem = DecodeProblem {
            v4_pages: self.shape.v4_pages,
            ..DecodeProblem::new(batch, 2 * heads_kv, heads_kv, longest, d)
        };
        let got = problem.on_cpu(&cache.quantize_q(&q)?, &cache.sequences(&tables)?, &DecodeHeads::default())?;
        for i in 0..batch {
            let len = self.len(i);
            let got = &got.o[i * 2 * heads_kv * d..][..2 * heads_kv * d];
            if len == 0 {
                ensure!(got.iter().all(|&o| o == 0.0), "sequence {i} has no key");
                continue;
            }
            let of = |values: &[f32]| {
                let layout = TensorLayout::bnhd(Shape::new(1, heads_kv, len, d)?);
                HostTensor::new(values.to_vec(), layout)
            };
            let one = TensorLayout::bhnd(Shape::new(1, 2 * heads_kv, 1, d)?);
            let q = HostTensor::from_fn(DType::F32, one, |_, h, n, d| q.get(i, h, n, d))?;
            let exact = AttentionProblem::new(1, 2 * heads_kv, heads_kv, 1, len, d).with_window(Window::CAUSAL);
            let want = reference::exact(&exact, &q, &of(&self.sequences[i].k)?, &of(&self.sequences[i].v)?)?;
            let error = reference::compare(got, &want.o).relative_l2;
            ensure!(error < self.most_error(), "sequence {i} of {len} tokens is off by {error:e}");
        }
        Ok(())
    }
}

/// Appends, forks, truncations, copies and swaps in any order, and attention in between.
///
/// # Errors
///
/// Says after which step what is wrong.
pub fn behaves_as_a_model(cache: &mut impl Cache, seed: u64, steps: usize) -> Result<()> {
    let shape = cache.host()?.shape;
    let mut model = Model {
        shape,
        sequences: vec![Sequence::default(); 3],
        free: Vec::new(),
        noise: Noise::new(seed, [0; 4]),
        tokens: 0,
    };
    model.collect();
    for step in 0..steps {
        let done = model.step(cache).and_then(|()| match step % 4 {
            1 => model.prefill(cache),
            2 => model.prefill_pages(cache),
            3 => model.attend(&cache.host()?),
            _ => Ok(()),
        });
        done.with_context(|| format!("seed {seed}, step {step}"))?;
    }
    Ok(())
}
