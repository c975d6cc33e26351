//! What changes a score, beside the scale and the window (docs/kernel-abi.md, "What changes a score").

use super::{AttentionProblem, MAX_SEQLEN};
use crate::dtype::DType;
use crate::error::{Error, Result};
use int_flash_attention_kernels::config::Kind;
use int_flash_attention_kernels::params::{ScoreParams, mask_kind};
use std::hash::{Hash, Hasher};

/// What changes a score, as plain data: of tensors where their elements lie, so that a plan can be made before they are there. The
/// tensors themselves are [`ScoreViews`](crate::ScoreViews) of a launch, or [`ScoreTensors`](crate::ScoreTensors) of the host.
///
/// With `z = softmax_scale * q.k`, in this order: `z` becomes `cap * tanh(z / cap)`; `slope * |i + off - j|` is taken from it, `off =
/// seqlen_kv - seqlen_q`; the bias is added; keys are hidden by the mask and the window; `exp(sink)` joins the sum of the row.
///
/// ```
/// use int_flash_attention::{Alibi, AttentionProblem, MaskKind, MaskLayout, ScoreMod};
/// let problem = AttentionProblem::new(2, 8, 8, 100, 100, 64);
/// // padding of keys: one row of bytes a sequence
/// let mask = MaskLayout::broadcast(MaskKind::Bytes, [2, 1, 1, 100], &problem)?;
/// assert_eq!(mask.strides, [100, 0, 0]);
/// let problem = problem.with_score_mod(ScoreMod { mask: Some(mask), alibi: Some(Alibi::PerHead), ..ScoreMod::NONE });
/// problem.check()?;
/// # Ok::<(), int_flash_attention::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreMod {
    /// Scores become `cap * tanh(score / cap)`; from 2^-14 to 2^14.
    pub softcap: Option<f32>,
    /// Whether there are ALiBi slopes, and how many.
    pub alibi: Option<Alibi>,
    /// Where the elements of a bias lie. Elements below -45000 hide their key; NaN and infinity make rows NaN that see them.
    pub bias: Option<BiasLayout>,
    /// Where the elements of a mask lie; those that are set keep their key.
    pub mask: Option<MaskLayout>,
    /// Whether each query head has a sink: a logit, in natural units, that every row's sum has besides its keys.
    pub sinks: bool,
}

/// How many ALiBi slopes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alibi {
    /// `[heads_q]`.
    PerHead,
    /// `[batch][heads_q]`.
    PerSequence,
}

/// Where the elements of a bias of the scores lie: key after key, with a stride to the next batch, head and query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BiasLayout {
    /// The element type, of whatever type Q, K and V are.
    pub dtype: DType,
    /// From one batch, head and query to the next, in elements; 0 where they share.
    pub strides: [usize; 3],
}

/// Where the elements of a mask lie: key after key, with a stride to the next batch, head and query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaskLayout {
    /// What an element is.
    pub kind: MaskKind,
    /// From one batch, head and query to the next, in bytes; 0 where they share.
    pub strides: [usize; 3],
}

/// What an element of a mask is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MaskKind {
    /// A byte, set where it is not 0.
    Bytes,
    /// A bit; key `j` is bit `j % 8` of byte `j / 8` of its row.
    Bits,
}

impl MaskKind {
    /// Bytes of so many keys.
    #[must_use]
    pub const fn bytes(self, keys: usize) -> usize {
        match self {
            Self::Bytes => keys,
            Self::Bits => keys.div_ceil(8),
        }
    }
}

/// The largest softcap: beyond, float32's roundings of it would be larger than those of the quantization.
pub(crate) const MAX_SOFTCAP: f32 = 16384.0;

/// Whether kernels cap scores there.
pub(crate) fn check_softcap(softcap: Option<f32>) -> Result<()> {
    match softcap {
        Some(given) if !(1.0 / MAX_SOFTCAP..=MAX_SOFTCAP).contains(&given) => Err(Error::Softcap { given }),
        _ => Ok(()),
    }
}

/// The strides of a dense tensor `[batch][head][query][row]`, in which dimensions of 1 are shared.
fn strides(name: &'static str, dims: [usize; 4], row: usize, p: &AttentionProblem) -> Result<[usize; 3]> {
    let sizes = [p.batch, p.heads_q, p.seqlen_q, p.seqlen_kv];
    let fits = dims.iter().zip(sizes).take(3).all(|(&dim, size)| dim == size || dim == 1) && dims[3] == sizes[3];
    if !fits {
        let expected = format!("{sizes:?} (batch, query heads, queries, keys), the first three of which may be 1,");
        return Err(Error::ShapeMismatch { name, given: format!("{dims:?}"), expected });
    }
    let overflow = || Error::Overflow { what: "the elements", shape: format!("{name} {dims:?}") };
    let (mut strides, mut next) = ([0; 3], row);
    for i in (0..3).rev() {
        if dims[i] > 1 {
            strides[i] = next;
        }
        next = next.checked_mul(dims[i]).ok_or_else(overflow)?;
    }
    Ok(strides)
}

/// Elements from the first to behind the last of rows of `row` elements.
fn span(name: &'static str, strides: [usize; 3], row: usize, p: &AttentionProblem) -> Result<usize> {
    let steps = [p.batch, p.heads_q, p.seqlen_q].map(|size| size.saturating_sub(1));
    let last = strides
        .iter()
        .zip(steps)
        .try_fold(0_usize, |sum, (&stride, steps)| sum.checked_add(stride.checked_mul(steps)?));
    // In bytes, of the widest type, as the device counts them.
    let fits = |&span: &usize| span.checked_mul(4).is_some_and(|bytes| i64::try_from(bytes).is_ok());
    let overflow = || Error::Overflow { what: "the elements", shape: format!("{name} with the strides {strides:?}") };
    last.and_then(|last| last.checked_add(row)).filter(fits).ok_or_else(overflow)
}

impl BiasLayout {
    /// Of a dense `[batch][head][query][key]` tensor, in which a dimension of 1 is shared by all batches, heads or queries.
    ///
    /// # Errors
    /// Dimensions that are neither the problem's nor 1.
    pub fn broadcast(dtype: DType, dims: [usize; 4], problem: &AttentionProblem) -> Result<Self> {
        Ok(Self { dtype, strides: strides("bias", dims, dims[3], problem)? })
    }

    /// Elements that a bias of the problem has to have.
    ///
    /// # Errors
    /// More than 63 bits count.
    pub fn span(&self, problem: &AttentionProblem) -> Result<usize> {
        span("bias", self.strides, problem.seqlen_kv, problem)
    }
}

impl MaskLayout {
    /// Of a dense `[batch][head][query][key]` tensor, in which a dimension of 1 is shared by all batches, heads or queries; rows of bits are
    /// whole bytes.
    ///
    /// # Errors
    /// Dimensions that are neither the problem's nor 1.
    pub fn broadcast(kind: MaskKind, dims: [usize; 4], problem: &AttentionProblem) -> Result<Self> {
        Ok(Self { kind, strides: strides("mask", dims, kind.bytes(dims[3]), problem)? })
    }

    /// Bytes that a mask of the problem has to have.
    ///
    /// # Errors
    /// More than 63 bits count.
    pub fn span(&self, problem: &AttentionProblem) -> Result<usize> {
        span("mask", self.strides, self.kind.bytes(problem.seqlen_kv), problem)
    }
}

impl ScoreMod {
    /// Nothing changes a score.
    pub const NONE: Self = Self { softcap: None, alibi: None, bias: None, mask: None, sinks: false };

    /// Which kernels it takes.
    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self { softcap: None, alibi: None, bias: None, mask: None, .. } => Kind::Plain,
            _ => Kind::General,
        }
    }

    /// All fields, comparable.
    pub(super) fn key(&self) -> impl Eq + Hash + use<> {
        let Self { softcap, alibi, bias, mask, sinks } = *self;
        (softcap.map(f32::to_bits), alibi, bias, mask, sinks)
    }

    pub(super) fn check(&self, problem: &AttentionProblem) -> Result<()> {
        check_softcap(self.softcap)?;
        let tokens = problem.seqlen_q.saturating_add(problem.seqlen_kv);
        if self.alibi.is_some() && tokens > MAX_SEQLEN {
            let way = "the distances of ALiBi are 32-bit numbers; take the queries in parts";
            return Err(Error::TooLarge { name: "seqlen_q + seqlen_kv", given: tokens, max: MAX_SEQLEN, way });
        }
        if let Some(bias) = self.bias {
            bias.span(problem)?;
        }
        if let Some(mask) = self.mask {
            mask.span(problem)?;
        }
        Ok(())
    }

    /// Slopes that there have to be.
    pub(crate) const fn slopes(&self, problem: &AttentionProblem) -> usize {
        match self.alibi {
            Some(Alibi::PerSequence) => problem.batch * problem.heads_q,
            _ => problem.heads_q,
        }
    }

    /// What the kernels are handed, all but the addresses.
    pub(super) fn params(&self, problem: &AttentionProblem) -> ScoreParams {
        let strides = |strides: Option<[usize; 3]>| strides.unwrap_or_default().map(|stride| stride as i64);
        ScoreParams {
            mask_strides: strides(self.mask.map(|mask| mask.strides)),
            bias_strides: strides(self.bias.map(|bias| bias.strides)),
            alibi_stride_b: if self.alibi == Some(Alibi::PerSequence) { problem.heads_q as u32 } else { 0 },
            mask_kind: match self.mask.map(|mask| mask.kind) {
                Some(MaskKind::Bits) => mask_kind::BITS,
                _ => mask_kind::BYTES,
            },
            bias_dtype: self.bias.map_or(0, |bias| bias.dtype.code()),
            softcap: self.softcap.map_or(0.0, |cap| cap * std::f32::consts::LOG2_E),
            softcap_argument: self.softcap.map_or(0.0, |cap| 2.0 / cap),
            ..ScoreParams::NONE
        }
    }
}

impl PartialEq for ScoreMod {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ScoreMod {}

impl Hash for ScoreMod {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}
