//! Test cases: shapes, layouts and values, named and generated.

use crate::scores::{Scores, any_score_mod, some_score_mod};
use crate::values::Values;
use anyhow::Result;
use int_flash_attention::{AttentionProblem, DType, HostTensor, Scheme, ScoreMod, Shape, TensorLayout, Window};
use int_flash_attention_kernels::config::shared_memory::CLASSES;
use int_flash_attention_kernels::config::{self, AttentionVariant, Family, Kind};
use int_flash_attention_kernels::layout::HEAD_DIMS;
use proptest::prelude::*;

/// How a tensor lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Dense, heads before tokens.
    Bhnd,
    /// Dense, tokens before heads.
    Bnhd,
    /// Heads before tokens, with gaps (in elements) after each token, head and batch.
    Padded {
        /// After each token.
        token: usize,
        /// After each head.
        head: usize,
        /// After each batch.
        batch: usize,
    },
}

impl Placement {
    /// With gaps of multiples of so many elements, which some kernels ask for.
    #[must_use]
    pub fn in_multiples_of(self, n: usize) -> Self {
        match self {
            Self::Padded { token, head, batch } => {
                let [token, head, batch] = [token, head, batch].map(|gap| gap.next_multiple_of(n));
                Self::Padded { token, head, batch }
            }
            dense => dense,
        }
    }

    /// The layout of a tensor of `shape`.
    ///
    /// # Errors
    ///
    /// When the strides overflow.
    pub fn layout(self, shape: Shape) -> Result<TensorLayout> {
        Ok(match self {
            Self::Bhnd => TensorLayout::bhnd(shape),
            Self::Bnhd => TensorLayout::bnhd(shape),
            Self::Padded { token, head, batch } => {
                let n = shape.head_dim + token;
                let h = shape.seqlen * n + head;
                let b = shape.heads * h + batch;
                TensorLayout::strided(shape, [i64::try_from(b)?, i64::try_from(h)?, i64::try_from(n)?])?
            }
        })
    }
}

/// Everything that a run of the kernels depends on.
#[derive(Clone, Debug)]
pub struct Case {
    /// Shapes, mask, scale and scheme.
    pub problem: AttentionProblem,
    /// Of Q, K and V.
    pub dtype: DType,
    /// Of the output.
    pub out_dtype: DType,
    /// Of Q, K, V and O.
    pub placement: [Placement; 4],
    /// Of Q, K and V.
    pub values: [Values; 3],
    /// Whether the log-sum-exp is asked for.
    pub lse: bool,
    /// Of the values.
    pub seed: u64,
}

impl Case {
    /// A dense float16 case of normal values.
    #[must_use]
    pub fn plain(problem: AttentionProblem, seed: u64) -> Self {
        Self {
            problem,
            dtype: DType::F16,
            out_dtype: DType::F16,
            placement: [Placement::Bhnd; 4],
            values: [Values::Normal; 3],
            lse: true,
            seed,
        }
    }

    /// A small case for a kernel, with a tail in queries and keys, grouped heads and a padded layout; `seed` also picks the
    /// window and the types, and what changes the scores in a general kernel.
    #[must_use]
    pub fn of_variant(variant: &AttentionVariant, seed: usize) -> Self {
        let problem = AttentionProblem::new(1, 2, 1, 67, 201, variant.head_dim);
        let problem =
            if variant.head_dim_v == variant.head_dim { problem } else { problem.with_head_dim_v(variant.head_dim_v) };
        let (dtype, out_dtype) =
            [(DType::F16, DType::F32), (DType::BF16, DType::F16), (DType::F32, DType::BF16)][seed % 3];
        let placement = [Placement::Padded { token: 8, head: 16, batch: 0 }; 4];
        let window = WINDOWS[seed % WINDOWS.len()];
        let mut problem = problem.with_window(window).with_scheme(variant.scheme);
        if variant.kind == Kind::General {
            problem.score_mod = some_score_mod(&problem, seed);
        }
        let plain = Self::plain(problem, seed as u64);
        Self { dtype, out_dtype, placement, ..plain }
    }

    /// Q, K and V.
    ///
    /// # Errors
    ///
    /// When the library refuses the layout.
    pub fn tensors(&self) -> Result<[HostTensor; 3]> {
        let (q, kv) = (self.problem.q_shape(), self.problem.kv_shape());
        let tensor = |i: usize, shape: Shape| -> Result<HostTensor> {
            let seed = self.seed.wrapping_mul(3).wrapping_add(i as u64);
            self.values[i].tensor(self.dtype, self.placement[i].layout(shape)?, seed)
        };
        Ok([tensor(0, q)?, tensor(1, kv)?, tensor(2, self.problem.v_shape())?])
    }

    /// What changes the scores.
    #[must_use]
    pub fn scores(&self) -> Scores {
        Scores::of(&self.problem, self.seed)
    }

    /// Where O goes.
    ///
    /// # Errors
    ///
    /// When the library refuses the layout.
    pub fn output(&self) -> Result<TensorLayout> {
        self.placement[3].layout(self.problem.o_shape())
    }
}

/// The kernel of sm_80 for a problem, so that every problem with a kernel has this one; the paper's scheme does not have one for
/// every head dim.
#[must_use]
pub fn variant(problem: &AttentionProblem) -> Option<&'static AttentionVariant> {
    variant_of(Family::Sm80, problem)
}

/// Whether the attention kernel of this name takes narrow blocks as such.
#[must_use]
pub fn takes_narrow(kernel: &str) -> bool {
    config::ATTENTION.iter().any(|variant| variant.name == kernel && variant.takes_narrow())
}

/// The kernel of a family for a problem.
#[must_use]
pub fn variant_of(family: Family, problem: &AttentionProblem) -> Option<&'static AttentionVariant> {
    variant_on(MOST_SHARED, family, problem)
}

/// Shared memory that a CTA may have on the GPUs with most of it.
pub const MOST_SHARED: usize = CLASSES[CLASSES.len() - 1] << 10;

/// The same on a GPU on which a CTA may have so many bytes of shared memory.
#[must_use]
pub fn variant_on(
    shared_bytes: usize,
    family: Family,
    problem: &AttentionProblem,
) -> Option<&'static AttentionVariant> {
    let plain = ScoreMod { sinks: problem.score_mod.sinks, ..ScoreMod::NONE };
    let kind = if problem.score_mod == plain { Kind::Plain } else { Kind::General };
    config::attention_on(shared_bytes, family, [problem.head_dim, problem.value_dim()], problem.scheme, kind)
}

/// None, causal, sliding, and local on both sides; the ends of the last two lie inside of blocks and between tiles.
pub const WINDOWS: [Window; 4] = [
    Window::FULL,
    Window::CAUSAL,
    Window { left: Some(97), right: Some(0) },
    Window { left: Some(30), right: Some(45) },
];

/// Query and key lengths that have broken kernels before: one, odd, one off a tile, primes, more queries than keys.
pub const AWKWARD: [(usize, usize); 12] = [
    (1, 1),
    (1, 129),
    (3, 3),
    (64, 128),
    (65, 127),
    (113, 203),
    (128, 128),
    (129, 257),
    (255, 1),
    (799, 3),
    (1, 1000),
    (1023, 1024),
];

/// Head dims that are padded: to each of the kernels' own, by a little and by much.
pub const PADDED_DIMS: [usize; 11] = [8, 24, 40, 56, 72, 80, 112, 136, 192, 248, 328];

/// Head dims of Q and K with others of V.
pub const VALUE_DIMS: [[usize; 2]; 5] = [[192, 128], [256, 128], [200, 104], [72, 96], [96, 80]];

/// Cases over all head dims, dtypes, layouts, windows, schemes and values; no sequence longer than `longest`.
pub fn any_case(longest: usize) -> impl Strategy<Value = Case> {
    let awkward: Vec<_> = AWKWARD.into_iter().filter(|&(q, kv)| q.max(kv) <= longest).collect();
    let lengths = prop_oneof![1 => prop::sample::select(awkward), 2 => (1..=longest, 1..=longest)];
    let head_dims = [&HEAD_DIMS[..], &PADDED_DIMS].concat();
    let shape = (1..=2_usize, 1..=2_usize, 1..=3_usize, lengths, prop::sample::select(head_dims));
    let scale = prop_oneof![3 => Just(None), 1 => (0.01..2.0_f32).prop_map(Some), 1 => (-1.0..0.0_f32).prop_map(Some), 1 => Just(Some(0.0))];
    let mode = (any_window(longest), any::<bool>(), scale, any::<bool>(), any::<u64>());
    let kinds = ([any_dtype(), any_dtype()], any_values());
    (shape, mode, kinds, prop::array::uniform4(any_placement())).prop_map(|(shape, mode, kinds, placement)| {
        let (batch, heads_kv, group, (seqlen_q, seqlen_kv), head_dim) = shape;
        let (window, paper, softmax_scale, lse, seed) = mode;
        let mut problem =
            AttentionProblem::new(batch, heads_kv * group, heads_kv, seqlen_q, seqlen_kv, head_dim).with_window(window);
        if paper && variant(&problem.with_scheme(Scheme::Paper)).is_some() {
            problem.scheme = Scheme::Paper;
        }
        problem.softmax_scale = softmax_scale;
        let ([dtype, out_dtype], values) = kinds;
        Case { problem, dtype, out_dtype, placement, values, lse, seed }
    })
}

/// More keys than a block, so that the loop, its prologue and its tail run; one head keeps it quick.
pub fn long_keys() -> impl Strategy<Value = Case> {
    any_case(40).prop_flat_map(|case| {
        (130..700_usize, any_window(500)).prop_map(move |(seqlen_kv, window)| {
            let mut case = case.clone();
            case.problem = AttentionProblem { batch: 1, heads_q: 1, heads_kv: 1, seqlen_kv, window, ..case.problem };
            case
        })
    })
}

/// Cases of [`any_case`] and [`long_keys`], with any change of their scores.
pub fn any_scored_case(longest: usize) -> impl Strategy<Value = Case> {
    prop_oneof![2 => any_case(longest).boxed(), 1 => long_keys().boxed()].prop_flat_map(|case| {
        any_score_mod(case.problem).prop_map(move |score_mod| {
            let problem = case.problem.with_score_mod(score_mod);
            Case { problem, ..case.clone() }
        })
    })
}

/// None, causal, and every other kind: either side without an end, at the query's own key, near it, or anywhere.
fn any_window(longest: usize) -> impl Strategy<Value = Window> {
    let side = || prop_oneof![2 => Just(None), 2 => Just(Some(0)), 2 => (0..8_usize).prop_map(Some), 3 => (0..=longest).prop_map(Some)];
    let any = (side(), side()).prop_map(|(left, right)| Window { left, right });
    prop_oneof![2 => Just(Window::FULL), 2 => Just(Window::CAUSAL), 4 => any]
}

fn any_dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(vec![DType::F16, DType::BF16, DType::F32])
}

fn any_placement() -> impl Strategy<Value = Placement> {
    let padded = |step: usize| {
        let gap = move || (0..4_usize).prop_map(move |n| step * n);
        (gap(), gap(), gap()).prop_map(|(token, head, batch)| Placement::Padded { token, head, batch })
    };
    prop_oneof![3 => Just(Placement::Bhnd), 1 => Just(Placement::Bnhd), 1 => padded(8), 1 => padded(1)]
}

/// Mostly the same kind for all three, sometimes mixed.
fn any_values() -> impl Strategy<Value = [Values; 3]> {
    let one = || prop::sample::select(Values::ALL.to_vec());
    prop_oneof![3 => one().prop_map(|v| [v; 3]), 1 => prop::array::uniform3(one())]
}
