//! What an engine does with a cache, beside a plain model of what sequences hold: attention of both is compared.

use super::reference::{append_as_reference, copy_as_reference, gather_as_reference};
use super::{Cache, New};
use crate::prefill::PrefillCase;
use crate::values::{Noise, Values};
use anyhow::{Context, Result, ensure};
use int_flash_attention::{
    AttentionProblem, CacheShape, DType, DecodeHeads, DecodeProblem, HostCache, HostQuantized, HostTables, HostTensor,
    PrefillProblem, Shape, TensorLayout, Window, reference,
};

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
