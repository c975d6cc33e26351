//! What is asked, read from candle's layouts; what is refused, in candle's words.

use crate::FlashAttn;
use candle_core::{Error, Layout, Result, bail};
use int_flash_attention::{AttentionProblem, DType, Shape, TensorLayout, Window};

/// The operation's name in errors.
pub const NAME: &str = "int-flash-attn";

/// An attention on tensors that lie in a certain way: all that a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Call {
    /// The attention.
    pub problem: AttentionProblem,
    /// Where the elements of Q, K and V lie, from each tensor's first on.
    pub layouts: [TensorLayout; 3],
    /// Their type, and the output's.
    pub dtype: DType,
}

/// The type of all three tensors.
pub fn dtype_of([q, k, v]: [candle_core::DType; 3]) -> Result<DType> {
    for other in [k, v] {
        if other != q {
            return Err(Error::DTypeMismatchBinaryOp { lhs: q, rhs: other, op: NAME }.bt());
        }
    }
    match q {
        candle_core::DType::F16 => Ok(DType::F16),
        candle_core::DType::BF16 => Ok(DType::BF16),
        candle_core::DType::F32 => Ok(DType::F32),
        other => Err(Error::UnsupportedDTypeForOp(other, NAME).bt()),
    }
}

impl Call {
    /// The attention that an operation is on tensors of these layouts, `(batch, tokens, heads, head_dim)` each.
    pub fn new(op: &FlashAttn, dtype: DType, [q, k, v]: [&Layout; 3]) -> Result<Self> {
        let (batch, seqlen_q, heads_q, head_dim) = q.shape().dims4()?;
        let (_, seqlen_kv, heads_kv, _) = k.shape().dims4()?;
        let mismatch = |lhs: &Layout, rhs: &Layout| {
            Err(Error::ShapeMismatchBinaryOp { lhs: lhs.shape().clone(), rhs: rhs.shape().clone(), op: NAME }.bt())
        };
        if k.shape().dims4()? != (batch, seqlen_kv, heads_kv, head_dim) {
            return mismatch(q, k);
        }
        if v.shape().dims4()? != k.shape().dims4()? {
            return mismatch(k, v);
        }
        if heads_kv == 0 || !heads_q.is_multiple_of(heads_kv) {
            bail!("{NAME}: the {heads_kv} heads of k and v do not divide the {heads_q} heads of q")
        }
        let window = Window { left: op.window_size_left, right: op.window_size_right };
        let problem = AttentionProblem::new(batch, heads_q, heads_kv, seqlen_q, seqlen_kv, head_dim)
            .with_window(window)
            .with_softmax_scale(op.softmax_scale);
        problem.check().map_err(refused)?;
        let layouts = [
            layout("q", q, problem.q_shape())?,
            layout("k", k, problem.kv_shape())?,
            layout("v", v, problem.kv_shape())?,
        ];
        Ok(Self { problem, layouts, dtype })
    }
}

/// A sentence of the library as candle's error.
pub fn refused(error: int_flash_attention::Error) -> Error {
    Error::wrap(format!("{NAME}: {error}"))
}

/// Where a tensor's elements lie, from its first on.
fn layout(name: &str, layout: &Layout, shape: Shape) -> Result<TensorLayout> {
    let [batch, token, head, dim] = *layout.stride() else { bail!("{NAME}: {name} has other than 4 strides") };
    if dim != 1 {
        bail!("{NAME}: the last dim of {name} must be contiguous, its strides are {:?}", layout.stride())
    }
    // Candle's strides are sizes of memory, far below 2^63.
    TensorLayout::strided(shape, [batch, head, token].map(|stride| stride as i64)).map_err(refused)
}
