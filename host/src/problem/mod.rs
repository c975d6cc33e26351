//! What is asked: one attention forward pass.

mod packed;
mod params;
mod score;
pub(crate) use params::strided;
pub(crate) use params::window_params;
mod window;

use crate::error::{Error, Result};
use crate::shape::Shape;
use int_flash_attention_kernels::config::{ATTENTION, Family, head_dims};
use int_flash_attention_kernels::layout::page::CACHE_HEAD_DIMS;
use int_flash_attention_kernels::layout::{HEAD_DIM_STEP, HEAD_DIMS, packed_dim};
use std::hash::{Hash, Hasher};
use std::ops::Range;

pub use int_flash_attention_kernels::config::Scheme;
pub use packed::{HostSeqLens, SeqLens, Sequences, Span};
pub(crate) use score::check_softcap;
pub use score::{Alibi, BiasLayout, MaskKind, MaskLayout, ScoreMod};
pub use window::Window;

/// `softmax(softmax_scale * Q K^T) V` for every sequence and head: plain data, checked by [`check`](Self::check) and by
/// every function that takes it.
///
/// ```
/// use int_flash_attention::AttentionProblem;
/// // 2 sequences, 32 query heads that share 8 key/value heads, 1 new token on 4096 cached ones
/// let problem = AttentionProblem::new(2, 32, 8, 1, 4096, 128).with_causal(true);
/// assert_eq!(problem.group(), 4);
/// assert_eq!(problem.visible_keys(0), 0..4096);
/// problem.check()?;
/// # Ok::<(), int_flash_attention::Error>(())
/// ```
///
/// Problems can be keys of a cache of plans; scales are the same there if their bits are.
#[derive(Clone, Copy, Debug)]
pub struct AttentionProblem {
    /// Sequences.
    pub batch: usize,
    /// Heads of Q and of the output.
    pub heads_q: usize,
    /// Heads of K and V; each serves `heads_q / heads_kv` query heads (grouped-query attention).
    pub heads_kv: usize,
    /// Query tokens of a sequence, or the most where they are unlike.
    pub seqlen_q: usize,
    /// Key and value tokens of a sequence, or the most where they are unlike.
    pub seqlen_kv: usize,
    /// Channels of a head, a multiple of 8 up to 512 (in the paper's scheme 128). Those between the kernels' own (32, 64, 96, 128, 256, 512) are
    /// padded where the operands are packed; tensors have no padding.
    pub head_dim: usize,
    /// Which keys a query sees.
    pub window: Window,
    /// Factor of the scores; `None` is `1 / sqrt(head_dim)`.
    pub softmax_scale: Option<f32>,
    /// Numeric scheme.
    pub scheme: Scheme,
    /// What changes a score, beside scale and window.
    pub score_mod: ScoreMod,
    /// Whether the sequences have lengths of their own.
    pub sequences: Sequences,
    /// Channels of a head of V and of the output, where they are others than those of Q and K; `None` is `head_dim`. Kernels have 192 and
    /// 128, and all pairs that are padded to the same dims.
    pub head_dim_v: Option<usize>,
}

impl AttentionProblem {
    /// All fields, comparable.
    fn key(&self) -> impl Eq + Hash {
        let Self { batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim, window, softmax_scale, scheme, .. } = *self;
        let Self { score_mod, sequences, .. } = *self;
        let scale = softmax_scale.map(f32::to_bits);
        let sizes = [batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim, self.value_dim()];
        (sizes, window, scale, scheme, score_mod.key(), sequences)
    }
}

impl PartialEq for AttentionProblem {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for AttentionProblem {}

impl Hash for AttentionProblem {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// The longest sequence: positions are 32-bit on the device, and a block of 128 past the end has to fit as well.
const MAX_SEQLEN: usize = (1 << 31) - 256;
/// y and z of a CUDA grid.
const MAX_GRID_YZ: usize = 65535;

impl AttentionProblem {
    /// A problem without a mask, with the usual scale, in the default scheme; not checked yet.
    #[must_use]
    pub const fn new(
        batch: usize,
        heads_q: usize,
        heads_kv: usize,
        seqlen_q: usize,
        seqlen_kv: usize,
        head_dim: usize,
    ) -> Self {
        Self {
            batch,
            heads_q,
            heads_kv,
            seqlen_q,
            seqlen_kv,
            head_dim,
            window: Window::FULL,
            softmax_scale: None,
            scheme: Scheme::Default,
            score_mod: ScoreMod::NONE,
            sequences: Sequences::Equal,
            head_dim_v: None,
        }
    }

    /// The problem that tensors of these shapes pose.
    ///
    /// # Errors
    /// K and V of different shapes but for their head dims; a batch or head_dim other than Q's; query heads that are not a multiple of K's.
    pub fn of(q: Shape, k: Shape, v: Shape) -> Result<Self> {
        if k != (Shape { head_dim: k.head_dim, ..v }) {
            return Err(Error::ShapeMismatch { name: "v", given: v.to_string(), expected: format!("k's, {k},") });
        }
        let expected = Shape { batch: q.batch, head_dim: q.head_dim, ..k };
        if k != expected {
            return Err(Error::ShapeMismatch { name: "k", given: k.to_string(), expected: expected.to_string() });
        }
        let problem = Self::new(q.batch, q.heads, k.heads, q.seqlen, k.seqlen, q.head_dim);
        let head_dim_v = (v.head_dim != k.head_dim).then_some(v.head_dim);
        let problem = Self { head_dim_v, ..problem };
        problem.check_sizes()?;
        Ok(problem)
    }

    /// With or without the causal mask: [`Window::CAUSAL`] or [`Window::FULL`].
    #[must_use]
    pub const fn with_causal(self, causal: bool) -> Self {
        Self { window: if causal { Window::CAUSAL } else { Window::FULL }, ..self }
    }

    /// With this window.
    #[must_use]
    pub const fn with_window(self, window: Window) -> Self {
        Self { window, ..self }
    }

    /// With this change of the scores.
    #[must_use]
    pub const fn with_score_mod(self, score_mod: ScoreMod) -> Self {
        Self { score_mod, ..self }
    }

    /// In this scheme.
    #[must_use]
    pub const fn with_scheme(self, scheme: Scheme) -> Self {
        Self { scheme, ..self }
    }

    /// With heads of V, and of the output, of so many channels.
    #[must_use]
    pub const fn with_head_dim_v(self, head_dim_v: usize) -> Self {
        Self { head_dim_v: Some(head_dim_v), ..self }
    }

    /// With this factor of the scores.
    #[must_use]
    pub const fn with_softmax_scale(self, softmax_scale: f32) -> Self {
        Self { softmax_scale: Some(softmax_scale), ..self }
    }

    /// The factor of the scores.
    #[must_use]
    pub fn scale(&self) -> f32 {
        self.softmax_scale.unwrap_or_else(|| (1.0 / (self.head_dim as f64).sqrt()) as f32)
    }

    /// Query heads of one key/value head.
    #[must_use]
    pub const fn group(&self) -> usize {
        match self.heads_q.checked_div(self.heads_kv) {
            Some(group) => group,
            None => 0,
        }
    }

    /// Channels of a head of V and of the output.
    #[must_use]
    pub const fn value_dim(&self) -> usize {
        match self.head_dim_v {
            Some(head_dim_v) => head_dim_v,
            None => self.head_dim,
        }
    }

    /// Shape of V.
    #[must_use]
    pub const fn v_shape(&self) -> Shape {
        Shape { head_dim: self.value_dim(), ..self.kv_shape() }
    }

    /// Shape of the output.
    #[must_use]
    pub const fn o_shape(&self) -> Shape {
        Shape { head_dim: self.value_dim(), ..self.q_shape() }
    }

    /// Shape of Q: of one batch where sequences are packed.
    #[must_use]
    pub const fn q_shape(&self) -> Shape {
        let (batch, seqlen) = match self.sequences {
            Sequences::Packed { total_q, .. } => (1, total_q),
            _ => (self.batch, self.seqlen_q),
        };
        Shape { batch, heads: self.heads_q, seqlen, head_dim: self.head_dim }
    }

    /// Shape of K, and of V but for its head dim: of one batch where sequences are packed.
    #[must_use]
    pub const fn kv_shape(&self) -> Shape {
        let (batch, seqlen) = match self.sequences {
            Sequences::Packed { total_kv, .. } => (1, total_kv),
            _ => (self.batch, self.seqlen_kv),
        };
        Shape { batch, heads: self.heads_kv, seqlen, head_dim: self.head_dim }
    }

    /// Keys that query `row` sees.
    #[must_use]
    pub fn visible_keys(&self, row: usize) -> Range<usize> {
        let within = |key: usize| key.saturating_sub(self.seqlen_q).min(self.seqlen_kv);
        // Counted from `seqlen_q` keys before the first, so that nothing is negative.
        let beside = row.saturating_add(self.seqlen_kv);
        let from = self.window.left.map_or(0, |left| within(beside.saturating_sub(left)));
        let to =
            self.window.right.map_or(self.seqlen_kv, |right| within(beside.saturating_add(right).saturating_add(1)));
        from..to
    }

    /// Pairs of a query and a key that it sees, of one head.
    #[must_use]
    pub fn visible_pairs(&self) -> u64 {
        (0..self.seqlen_q).map(|row| self.visible_keys(row).len() as u64).sum()
    }

    /// Everything but the head dims that the INT8 kernels are limited to; what the float64 reference asks.
    ///
    /// # Errors
    /// A size of zero or past the device's limits, heads that do not divide, a scale that is not finite, a softcap or strides of the
    /// score's tensors beyond what is allowed.
    pub fn check_sizes(&self) -> Result<()> {
        for (name, size) in [("batch", self.batch), ("heads_q", self.heads_q), ("heads_kv", self.heads_kv)] {
            if size == 0 {
                return Err(Error::ZeroSize { name });
            }
        }
        let (q, kv) = (self.q_shape(), self.kv_shape());
        for (name, seqlen) in [
            ("seqlen_q", self.seqlen_q),
            ("seqlen_kv", self.seqlen_kv),
            ("the number of query tokens", q.seqlen),
            ("the number of key tokens", kv.seqlen),
        ] {
            check_seqlen(name, seqlen)?;
        }
        for (name, given) in [("batch", self.batch), ("heads_q", self.heads_q)] {
            if given > MAX_GRID_YZ {
                let way =
                    "they are y and z of a CUDA grid; make a plan for a part and launch it on each part of the tensors";
                return Err(Error::TooLarge { name, given, max: MAX_GRID_YZ, way });
            }
        }
        Shape::new(q.batch, q.heads, q.seqlen, q.head_dim)?;
        Shape::new(kv.batch, kv.heads, kv.seqlen, kv.head_dim)?;
        for shape in [self.v_shape(), self.o_shape()] {
            Shape::new(shape.batch, shape.heads, shape.seqlen, shape.head_dim)?;
        }
        if !self.heads_q.is_multiple_of(self.heads_kv) {
            return Err(Error::HeadGroups { heads_q: self.heads_q, heads_kv: self.heads_kv });
        }
        match self.softmax_scale {
            Some(given) if !given.is_finite() => Err(Error::SoftmaxScale { given }),
            _ => self.score_mod.check(self),
        }
    }

    /// [`check_sizes`](Self::check_sizes), and a head dim of the scheme's INT8 kernels. It is the same on the CPU.
    ///
    /// # Errors
    /// As there, and [`Error::HeadDim`].
    pub fn check(&self) -> Result<()> {
        self.check_sizes()?;
        for head_dim in [self.head_dim, self.value_dim()] {
            check_head_dim_of(head_dim, head_dims(&Family::ALL, self.scheme))?;
        }
        let dims = [self.head_dim, self.value_dim()];
        match ATTENTION.iter().any(|v| v.scheme == self.scheme && v.has(dims)) {
            true => Ok(()),
            false => Err(Error::HeadDimOfV { head_dim: self.head_dim, head_dim_v: self.value_dim() }),
        }
    }

    /// `expected`'s shape against a tensor's.
    pub(crate) fn check_shape(name: &'static str, given: Shape, expected: Shape) -> Result<()> {
        if given == expected {
            return Ok(());
        }
        Err(Error::ShapeMismatch { name, given: given.to_string(), expected: expected.to_string() })
    }
}

/// Whether kernels count so many tokens.
pub(crate) fn check_seqlen(name: &'static str, seqlen: usize) -> Result<()> {
    match seqlen {
        0 => Err(Error::ZeroSize { name }),
        1..=MAX_SEQLEN => Ok(()),
        given => {
            let way = "positions are 32-bit numbers; take the queries in parts, each with the keys that it sees";
            Err(Error::TooLarge { name, given, max: MAX_SEQLEN, way })
        }
    }
}

/// Whether caches, decode and the merge of states, which pad nothing, have this head dim.
pub(crate) fn check_cache_head_dim(given: usize) -> Result<()> {
    if CACHE_HEAD_DIMS.contains(&given) {
        return Ok(());
    }
    Err(Error::CacheHeadDim { given, allowed: CACHE_HEAD_DIMS.to_vec() })
}

/// Whether the INT8 kernels and the packed layouts have this head dim.
pub(crate) fn check_head_dim(given: usize) -> Result<()> {
    check_head_dim_of(given, HEAD_DIMS)
}

/// Whether these kernels have this head dim: it is padded to the next of theirs.
fn check_head_dim_of(given: usize, kernels: impl IntoIterator<Item = usize>) -> Result<()> {
    let most = kernels.into_iter().max().unwrap_or(0);
    let has = given > 0 && given.is_multiple_of(HEAD_DIM_STEP) && packed_dim(given) <= most && given <= most;
    if has { Ok(()) } else { Err(Error::HeadDim { given, most }) }
}

#[cfg(test)]
mod tests;
