//! Decode on a paged cache and the merge of states: cases, and what must hold of them.

mod merge;

pub use merge::{MergeCase, merges_as_the_reference};

use anyhow::{Context, Result, ensure};
use int_flash_attention::reference::{self, Bounds, Int8};
use int_flash_attention::{
    CacheShape, DType, DecodeHeads, DecodeProblem, HostPagedKv, HostQ, HostTensor, QuantizedQ, Scheme, Split, Window,
};
use int_flash_attention_kernels::config::decode::DecodeVariant;
use int_flash_attention_kernels::layout::page::{
    page_bytes, page_head, page_head_bytes, page_head_offset, page_k_scale_offset, page_v_scale_offset,
};
use int_flash_attention_kernels::layout::v4::{V4_LARGEST, V4_LARGEST_STEP, v4_steps_offset};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, v_byte};

/// Something that runs the kernels of decode and merge, as [`Kernels`](crate::properties::Kernels) of attention.
pub trait DecodeKernels {
    /// The output in `[batch][heads][token][dim]`, and the log-sum-exp.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn decode(&self, case: &DecodeCase, dtype: DType) -> Result<(HostTensor, Vec<f32>)>;

    /// The same of `states` states, an output and a log-sum-exp each.
    ///
    /// # Errors
    ///
    /// When a launch fails.
    fn merge(&self, case: &MergeCase, dtype: DType) -> Result<(HostTensor, Vec<f32>)>;
}

/// Numbers that follow from a seed.
#[derive(Clone)]
pub struct Numbers(u64);

impl Numbers {
    /// The numbers of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    /// The next number (splitmix64).
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `0..n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() >> 11) as usize % n
    }

    /// From `low` to `high`.
    pub fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * ((self.draw() >> 40) as f32 / (1 << 24) as f32)
    }

    /// A code.
    fn code(&mut self) -> i8 {
        (self.below(255) as i32 - 127) as i8
    }
}

/// A decode with everything that a launch is given.
#[derive(Clone, Debug)]
pub struct DecodeCase {
    /// The problem.
    pub problem: DecodeProblem,
    /// Tokens of each sequence, as the device reads them.
    pub lengths: Vec<u32>,
    /// The block table, `stride` entries a sequence.
    pub table: Vec<u32>,
    /// Of the block table.
    pub stride: usize,
    /// The pool.
    pub pages: Vec<u8>,
    /// Queries.
    pub q: HostQ,
    /// Slopes of ALiBi.
    pub slopes: Vec<f32>,
    /// Sinks.
    pub sinks: Vec<f32>,
    /// CTAs of the kernel, and the fewest blocks of one; where nothing is said the GPU's own.
    pub workers: Option<(usize, usize)>,
    /// Whether, on the PTX machine, pages and rows of the table are where 32 bits do not reach.
    pub far: bool,
    /// Whether, on the PTX machine, kernels whose launches overlap are taken, where there are such.
    pub overlaps: bool,
}

impl DecodeCase {
    /// A case of these lengths, of which every block has a page of its own, in no order; bytes that no token has are NaN scales.
    #[must_use]
    pub fn new(problem: DecodeProblem, lengths: &[u32], seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        let (d, stride) = (problem.head_dim, problem.max_blocks() + 3);
        let blocks = |length: u32| (length as usize).min(problem.max_blocks() * KV_BLOCK).div_ceil(KV_BLOCK);
        let used: usize = lengths.iter().map(|&length| blocks(length)).sum();
        let mut order: Vec<u32> = (0..used as u32 + 1).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, numbers.below(i + 1));
        }
        let mut pages = vec![0_u8; order.len() * page_bytes(problem.heads_kv, d)];
        for head in pages.chunks_exact_mut(page_head_bytes(d)) {
            let (k, rest) = head.split_at_mut(block_bytes(d));
            k.fill_with(|| numbers.code() as u8);
            let (v, scales) = rest.split_at_mut(block_bytes(d));
            v.fill_with(|| v_byte(numbers.code()) as u8);
            scales.fill(0xff);
        }
        // What no sequence has is not a page.
        let mut table = vec![u32::MAX; lengths.len() * stride];
        let mut at = 0;
        for (sequence, &length) in lengths.iter().enumerate() {
            for block in 0..blocks(length) {
                let page = order[at];
                at += 1;
                table[sequence * stride + block] = page;
                for head in 0..problem.heads_kv {
                    let head = page_head_offset(page as usize, head, problem.heads_kv, d);
                    for key in 0..(length as usize - block * KV_BLOCK).min(KV_BLOCK) {
                        let scales = [
                            (page_k_scale_offset(d), numbers.between(0.02, 0.3)),
                            (page_v_scale_offset(d), 0.01 * numbers.between(-3.0, 2.0).exp2()),
                        ];
                        for (offset, scale) in scales {
                            pages[head + offset + 4 * key..][..4].copy_from_slice(&scale.to_le_bytes());
                        }
                    }
                }
            }
        }
        let (shape, rows) = (problem.q_shape(), problem.q_shape().rows());
        let mut floats = |n: usize, low, high| (0..n).map(|_| numbers.between(low, high)).collect::<Vec<f32>>();
        // Scores of a few powers of two.
        let spread = (d as f32).powf(1.0) / 128.0;
        let (scale, bias) = (floats(rows, 0.1 * spread, 0.5 * spread), floats(rows, -20.0, 20.0));
        let (slopes, sinks) = (floats(problem.heads_q, 0.0, 0.3), floats(problem.heads_q, -2.0, 4.0));
        let data = (0..shape.elements()).map(|_| numbers.code()).collect();
        let q = QuantizedQ { shape, scheme: Scheme::Default, data, scale, bias: Some(bias) };
        Self {
            problem,
            lengths: lengths.to_vec(),
            table,
            stride,
            pages,
            q,
            slopes,
            sinks,
            workers: None,
            far: false,
            overlaps: false,
        }
    }

    /// The cache.
    #[must_use]
    pub fn cache(&self) -> HostPagedKv<'_> {
        HostPagedKv {
            pages: &self.pages,
            v4_pages: self.problem.v4_pages,
            block_table: &self.table,
            table_stride: self.stride,
            seqlens_kv: &self.lengths,
        }
    }

    /// What the problem says that a launch is given head by head.
    #[must_use]
    pub fn heads(&self) -> DecodeHeads<&[f32]> {
        DecodeHeads {
            alibi_slopes: self.problem.alibi.then_some(&*self.slopes),
            sinks: self.problem.sinks.then_some(&*self.sinks),
        }
    }

    /// What the reference says, and how far an output in `dtype` may be from it.
    ///
    /// # Errors
    ///
    /// When the reference refuses the case.
    pub fn want(&self, dtype: DType) -> Result<(Int8, Bounds)> {
        // A kernel takes none as zeros; the reference asks for it, as plans do.
        let bias = self.q.bias.clone().or_else(|| Some(vec![0.0; self.q.scale.len()]));
        let q = HostQ { bias, ..self.q.clone() };
        Ok(reference::decode_bounds(&self.problem, &q, &self.cache(), &self.heads(), dtype)?)
    }

    /// The sizes of the pool.
    #[must_use]
    pub fn shape(&self) -> CacheShape {
        let DecodeProblem { heads_kv, head_dim, v4_pages, .. } = self.problem;
        let shape = CacheShape { pages: v4_pages, v4_pages, heads_kv, head_dim };
        CacheShape { pages: v4_pages + (self.pages.len() - shape.bytes()) / shape.page_bytes(), ..shape }
    }

    /// The pages of the pool.
    #[must_use]
    pub fn page_count(&self) -> usize {
        self.shape().pages
    }

    /// The same for a kernel: with V in 4 bits where it is for such pools, and with the merge that it overlaps with.
    #[must_use]
    pub fn of(self, variant: &DecodeVariant) -> Self {
        let case = if variant.v4 { self.with_v4(variant.head_dim as u64) } else { self };
        Self { overlaps: variant.overlaps, ..case }
    }

    /// The same with V in 4 bits, any nibbles, in half of the pages.
    #[must_use]
    pub fn with_v4(mut self, seed: u64) -> Self {
        let (old, d) = (self.shape(), self.problem.head_dim);
        let shape = CacheShape { v4_pages: old.pages.div_ceil(2), ..old };
        let pages = std::mem::replace(&mut self.pages, vec![0; shape.bytes()]);
        let mut numbers = Numbers::new(seed);
        for (page, head) in (0..old.pages).flat_map(|page| (0..old.heads_kv).map(move |head| (page, head))) {
            let from = &pages[page_head_offset(page, head, old.heads_kv, d)..][..page_head_bytes(d)];
            let at = page_head(page, head, old.heads_kv, d, shape.v8_pages());
            let to = &mut self.pages[at.offset..][..at.scales + from.len() - page_k_scale_offset(d)];
            to[at.scales..].copy_from_slice(&from[page_k_scale_offset(d)..]);
            if at.v4 {
                to[..block_bytes(d)].copy_from_slice(&from[..block_bytes(d)]);
                let (nibbles, steps) = to[block_bytes(d)..at.scales].split_at_mut(v4_steps_offset(d));
                nibbles.fill_with(|| numbers.draw() as u8);
                for range in steps.as_chunks_mut::<2>().0 {
                    *range = any_range(numbers.draw());
                }
            } else {
                to[..at.scales].copy_from_slice(&from[..at.scales]);
            }
        }
        self.problem.v4_pages = shape.v4_pages;
        self
    }
}

/// A first byte and a step of V in 4 bits, whose nibbles are all bytes of codes; among them the largest step and the outermost bytes.
#[must_use]
pub fn any_range(number: u64) -> [u8; 2] {
    let step = 1 + (number % u64::from(V4_LARGEST_STEP)) as u32;
    let room = 255 - V4_LARGEST * step;
    let first = match number >> 8 & 3 {
        0 => 1,
        1 => room,
        _ => 1 + (number >> 16) as u32 % room,
    };
    [first as u8, step as u8]
}

/// Lengths at which something begins or ends, with hostile ones.
pub const LENGTHS: [u32; 9] = [0, 1, 127, 128, 129, 300, 511, 640, u32::MAX];

/// Windows of a decode.
pub const WINDOWS: [Window; 4] = [
    Window::CAUSAL,
    Window::FULL,
    Window { left: Some(140), right: Some(0) },
    Window { left: Some(3), right: Some(1) },
];

/// What is off, if anything is: rows that are no numbers are such on both sides.
fn within(what: &str, got: &[f64], want: &[f64], bound: &[f64]) -> Result<()> {
    ensure!(got.len() == want.len(), "{what}: {} elements for {}", got.len(), want.len());
    let numbers = |x: &[f64]| -> Vec<f64> {
        x.iter().zip(want).map(|(&x, want)| if x.is_nan() && want.is_nan() { 0.0 } else { x }).collect()
    };
    let bound: Vec<f64> = bound.iter().map(|&bound| if bound.is_nan() { 0.0 } else { bound }).collect();
    match reference::first_excess(&numbers(got), &numbers(want), &bound) {
        Some(excess) => anyhow::bail!("{what}: {excess:?}"),
        None => Ok(()),
    }
}

/// Whether results are within the bounds of what they should be.
pub(crate) fn agree(got: &(HostTensor, Vec<f32>), want: &Int8, bounds: &Bounds, dtype: DType) -> Result<()> {
    let largest = dtype.largest();
    let want_o: Vec<f64> = want.o.iter().map(|&o| if o.is_nan() { o } else { o.clamp(-largest, largest) }).collect();
    within("lse", &got.1.iter().map(|&lse| f64::from(lse)).collect::<Vec<_>>(), &want.lse, &bounds.lse)?;
    within("o", &got.0.dense_f64(), &want_o, &bounds.o)
}

/// The kernels are within the reference's bound.
///
/// # Errors
///
/// The first element that is not.
pub fn matches_the_reference(kernels: &impl DecodeKernels, case: &DecodeCase, dtype: DType) -> Result<()> {
    let (want, bounds) = case.want(dtype)?;
    let describe = || format!("{:?}, lengths {:?}, workers {:?}, {dtype}", case.problem, case.lengths, case.workers);
    let got = kernels.decode(case, dtype).with_context(describe)?;
    agree(&got, &want, &bounds, dtype).with_context(describe)
}

/// Every feature, group and number of new tokens once, on short and awkward lengths, for a head dim.
#[must_use]
pub fn cases_of(head_dim: usize) -> Vec<(DecodeCase, DType)> {
    let dtypes = [DType::F32, DType::F16, DType::BF16];
    // heads_q, heads_kv, new tokens
    let groups = [(4, 1, 1), (2, 2, 3), (16, 1, 1), (7, 1, 5), (8, 2, 4), (3, 3, 8), (10, 1, 8)];
    let mut cases = Vec::new();
    for (i, &(heads_q, heads_kv, seqlen_q)) in groups.iter().enumerate() {
        let window = WINDOWS[i % WINDOWS.len()];
        let split = [Split::Even, Split::Fixed(128), Split::Fixed(384)][i % 3];
        let problem = DecodeProblem {
            seqlen_q,
            window,
            split,
            softcap: (i % 3 == 1).then_some(7.5),
            alibi: i % 3 == 2 || i == 4,
            sinks: i % 2 == 1,
            softmax_scale: (i == 5).then_some(-0.07),
            ..DecodeProblem::new(3, heads_q, heads_kv, 640, head_dim)
        };
        let lengths: Vec<u32> = (0..3).map(|k| LENGTHS[(i + 4 * k) % LENGTHS.len()]).collect();
        let mut case = DecodeCase::new(problem, &lengths, i as u64);
        case.workers = Some([(1, 1), (5, 1), (40, 1), (7, 2)][i % 4]);
        if i == 6 {
            case.q.bias = None;
        }
        cases.push((case, dtypes[i % 3]));
    }
    cases
}

/// [`cases_of`] a kernel: where it is for pools with V in 4 bits, half of the pages have it.
#[must_use]
pub fn cases_for(variant: &DecodeVariant) -> Vec<(DecodeCase, DType)> {
    cases_of(variant.head_dim).into_iter().map(|(case, dtype)| (case.of(variant), dtype)).collect()
}

/// Sequences that share pages, table entries outside the pool in the middle, at the end and everywhere, a length beyond the table.
#[must_use]
pub fn hostile_case(head_dim: usize, workers: usize) -> DecodeCase {
    let problem = DecodeProblem::new(4, 4, 1, 900, head_dim);
    let mut case = DecodeCase::new(problem, &[700, 900, 512, u32::MAX - 3], 1);
    for sequence in 0..4 {
        let row = &mut case.table[sequence * case.stride..][..8];
        match sequence {
            0 => row[2] = u32::MAX,
            1 => (row[0], row[6], row[7]) = (1 << 31, 1_000_000, u32::MAX - 1),
            2 => row.fill(77_777_777),
            _ => row[3] = row[1],
        }
    }
    case.table[3 * case.stride] = case.page_count() as u32;
    let shared = case.table[1];
    (case.table[case.stride + 3], case.table[3 * case.stride + 5]) = (shared, shared);
    case.workers = Some((workers, 1));
    case
}

/// More sequences than a warp has lanes, most of them empty, and so many workers.
#[must_use]
pub fn many_sequences(split: Split, workers: usize) -> DecodeCase {
    let lengths: Vec<u32> = (0..75).map(|i| [0, 0, 1, 0, 300, 129][i * i % 6]).collect();
    let problem = DecodeProblem { split, ..DecodeProblem::new(75, 2, 2, 300, 32) };
    DecodeCase { workers: Some((workers, 1)), ..DecodeCase::new(problem, &lengths, 3) }
}

/// Sequences that end in each pair of a block's keys, with windows that begin in each, and ALiBi, which shows every key's place.
#[must_use]
pub fn tails(head_dim: usize) -> DecodeCase {
    let lengths: Vec<u32> = (0..64).map(|i| 2 * i + 1 + 128 * (i % 2)).collect();
    let window = Window { left: Some(100), right: Some(0) };
    let problem = DecodeProblem { seqlen_q: 2, window, alibi: true, ..DecodeProblem::new(64, 3, 1, 260, head_dim) };
    DecodeCase { workers: Some((9, 1)), ..DecodeCase::new(problem, &lengths, 11) }
}

/// The bits of a tensor's elements.
#[must_use]
pub fn bits(tensor: &HostTensor) -> Vec<u64> {
    tensor.dense_f64().into_iter().map(f64::to_bits).collect()
}
