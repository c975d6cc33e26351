//! What is asked, read from candle's layouts; what is refused, in candle's words.

use crate::op::{Attention, Lengths};
use crate::{FlashAttn, VarLen};
use candle_core::{DType as Type, Error, Layout, Result, Tensor, bail};
use int_flash_attention::{
    Alibi, AttentionProblem, BiasLayout, DType, MaskKind, MaskLayout, ScoreMod, Sequences, Shape, TensorLayout,
};

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
pub fn dtype_of([q, k, v]: [Type; 3]) -> Result<DType> {
    for other in [k, v] {
        if other != q {
            return Err(Error::DTypeMismatchBinaryOp { lhs: q, rhs: other, op: NAME }.bt());
        }
    }
    float(q)
}

/// A type of floats that the library has.
pub fn float(dtype: Type) -> Result<DType> {
    match dtype {
        Type::F16 => Ok(DType::F16),
        Type::BF16 => Ok(DType::BF16),
        Type::F32 => Ok(DType::F32),
        other => Err(Error::UnsupportedDTypeForOp(other, NAME).bt()),
    }
}

/// A sentence of the library as candle's error.
pub fn refused(error: int_flash_attention::Error) -> Error {
    Error::wrap(format!("{NAME}: {error}"))
}

/// Tensors whose shapes do not go together.
pub fn mismatch<T>(lhs: &Layout, rhs: &Layout) -> Result<T> {
    Err(Error::ShapeMismatchBinaryOp { lhs: lhs.shape().clone(), rhs: rhs.shape().clone(), op: NAME }.bt())
}

/// A tensor's sizes, and the strides of batch, head and token.
#[derive(Clone, Copy)]
pub struct Place {
    pub shape: Shape,
    strides: [usize; 3],
}

impl Place {
    /// Of `(batch, tokens, heads, head_dim)`, or `(tokens, heads, head_dim)` where sequences are `packed`.
    pub fn of(name: &str, layout: &Layout, packed: bool) -> Result<Self> {
        let (batch, seqlen, heads, head_dim) = if packed {
            let (tokens, heads, head_dim) = layout.shape().dims3()?;
            (1, tokens, heads, head_dim)
        } else {
            layout.shape().dims4()?
        };
        let strides = match *layout.stride() {
            [batch, token, head, 1] => [batch, head, token],
            [token, head, 1] => [0, head, token],
            _ => bail!(
                "{NAME}: the last dim of {name} must be contiguous, its strides are {:?}; `contiguous` copies what is not",
                layout.stride()
            ),
        };
        Ok(Self { shape: Shape { batch, heads, seqlen, head_dim }, strides })
    }

    /// Where the elements lie, from the first on.
    pub fn layout(&self) -> Result<TensorLayout> {
        // Candle's strides are sizes of memory, far below 2^63.
        TensorLayout::strided(self.shape, self.strides.map(|stride| stride as i64)).map_err(refused)
    }
}

impl Call {
    /// The attention that an operation is on tensors of these layouts.
    pub fn new(op: &Attention, dtype: DType, [q, k, v]: [&Layout; 3]) -> Result<Self> {
        let packed = matches!(op.lengths, Lengths::Packed(_));
        let places = [Place::of("q", q, packed)?, Place::of("k", k, packed)?, Place::of("v", v, packed)?];
        let [of_q, of_k, of_v] = places.map(|place| place.shape);
        if (of_k.batch, of_k.head_dim) != (of_q.batch, of_q.head_dim) {
            return mismatch(q, k);
        }
        if of_v != (Shape { head_dim: of_v.head_dim, ..of_k }) {
            return mismatch(k, v);
        }
        let (heads_q, heads_kv) = (of_q.heads, of_k.heads);
        check_heads(heads_q, heads_kv)?;
        let problem = AttentionProblem::new(of_q.batch, heads_q, heads_kv, of_q.seqlen, of_k.seqlen, of_q.head_dim);
        let problem = if of_v.head_dim == of_q.head_dim { problem } else { problem.with_head_dim_v(of_v.head_dim) };
        let problem = op.lengths.of(problem)?;
        let problem = problem.with_window(op.options.window).with_softmax_scale(op.options.softmax_scale);
        let problem = problem.with_score_mod(op.options.score_mod(&problem)?);
        problem.check().map_err(refused)?;
        let [q, k, v] = places;
        Ok(Self { problem, layouts: [q.layout()?, k.layout()?, v.layout()?], dtype })
    }

    /// The shape of the output.
    pub fn o_shape(&self) -> candle_core::Shape {
        let Shape { batch, heads, seqlen, head_dim } = self.problem.o_shape();
        match self.problem.sequences {
            Sequences::Packed { .. } => (seqlen, heads, head_dim).into(),
            _ => (batch, seqlen, heads, head_dim).into(),
        }
    }
}

/// Whether heads of K and V serve those of Q.
pub fn check_heads(heads_q: usize, heads_kv: usize) -> Result<()> {
    if heads_kv == 0 || !heads_q.is_multiple_of(heads_kv) {
        bail!(
            "{NAME}: the {heads_kv} heads of k and v do not divide the {heads_q} heads of q. Heads are the last dim but one: of tensors that are \
             (batch, heads, seqlen, head_dim) give `transpose(1, 2)`"
        )
    }
    Ok(())
}

impl Lengths {
    /// A problem of the tensors' sizes as one of sequences of these lengths.
    fn of(&self, problem: AttentionProblem) -> Result<AttentionProblem> {
        match self {
            Self::Equal => Ok(problem),
            Self::Packed(VarLen { seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k }) => {
                let ends = beside("seqlens_q", seqlens_q, &[Type::U32])?.dims1()?;
                let ends_k = beside("seqlens_k", seqlens_k, &[Type::U32])?.dims1()?;
                if ends < 2 || ends_k != ends {
                    bail!(
                        "{NAME}: seqlens_q has {ends} elements, seqlens_k {ends_k}; both have the beginning of each sequence and the end of \
                         the last, one more than there are sequences"
                    )
                }
                let (total_q, total_kv) = (problem.seqlen_q, problem.seqlen_kv);
                // None is longer than all together.
                let (seqlen_q, seqlen_kv) = ((*max_seqlen_q).min(total_q), (*max_seqlen_k).min(total_kv));
                let problem = AttentionProblem { batch: ends - 1, seqlen_q, seqlen_kv, ..problem };
                Ok(problem.with_sequences(Sequences::Packed { total_q, total_kv }))
            }
            Self::Keys(seqlens_k) => {
                let given = beside("seqlens_k", seqlens_k, &[Type::U32])?.dims1()?;
                if given != problem.batch {
                    bail!(
                        "{NAME}: seqlens_k has {given} elements; it has one for each of the {} sequences",
                        problem.batch
                    )
                }
                Ok(problem.with_sequences(Sequences::KeyLengths))
            }
        }
    }
}

impl FlashAttn {
    /// Where what changes scores lies.
    pub(crate) fn score_mod(&self, problem: &AttentionProblem) -> Result<ScoreMod> {
        let (batch, heads) = (problem.batch, problem.heads_q);
        let alibi = match &self.alibi_slopes {
            None => None,
            Some(slopes) => match *beside("alibi_slopes", slopes, &[Type::F32])?.dims() {
                [given] if given == heads => Some(Alibi::PerHead),
                [of, given] if (of, given) == (batch, heads) => Some(Alibi::PerSequence),
                ref given => bail!(
                    "{NAME}: alibi_slopes has the shape {given:?}; ({heads}), one a query head, or ({batch}, {heads}) is expected"
                ),
            },
        };
        if let Some(sinks) = &self.sinks {
            let given = beside("sinks", sinks, &[Type::F32])?;
            if given.dims() != [heads] {
                bail!("{NAME}: sinks has the shape {:?}; ({heads}), one a query head, is expected", given.dims())
            }
        }
        let bias = match &self.bias {
            None => None,
            Some(bias) => {
                let strides = rows("bias", bias, &[Type::F16, Type::BF16, Type::F32], problem)?;
                Some(BiasLayout { dtype: float(bias.dtype())?, strides })
            }
        };
        let mask = match &self.mask {
            None => None,
            Some(mask) => {
                Some(MaskLayout { kind: MaskKind::Bytes, strides: rows("mask", mask, &[Type::U8], problem)? })
            }
        };
        Ok(ScoreMod { softcap: self.softcap, alibi, bias, mask, sinks: self.sinks.is_some() })
    }
}

/// The type of a tensor beside q, k and v.
fn check_type(name: &str, tensor: &Tensor, types: &[Type]) -> Result<()> {
    if !types.contains(&tensor.dtype()) {
        bail!("{NAME}: {name} holds {:?}; {types:?} is taken: `to_dtype` converts it, best once", tensor.dtype())
    }
    Ok(())
}

/// The shape of a tensor beside q, k and v, which is of one of these types and contiguous.
pub fn beside<'a>(name: &str, tensor: &'a Tensor, types: &[Type]) -> Result<&'a candle_core::Shape> {
    check_type(name, tensor, types)?;
    if !tensor.is_contiguous() {
        bail!("{NAME}: {name} must be contiguous, its strides are {:?}: `contiguous` makes it so", tensor.stride())
    }
    Ok(tensor.shape())
}

/// From one batch, head and query to the next in a tensor of `(batch, heads, queries, keys)`, of which the first three may be 1.
fn rows(name: &str, tensor: &Tensor, types: &[Type], problem: &AttentionProblem) -> Result<[usize; 3]> {
    check_type(name, tensor, types)?;
    let expected = [problem.batch, problem.heads_q, problem.seqlen_q, problem.seqlen_kv];
    let (dims, strides) = (tensor.dims(), tensor.stride());
    let fits = dims.len() == 4 && dims[3] == expected[3] && (0..3).all(|i| dims[i] == expected[i] || dims[i] == 1);
    if !fits {
        bail!("{NAME}: {name} has the shape {dims:?}; {expected:?} is expected, of which the first three may be 1")
    }
    if strides[3] != 1 && dims[3] > 1 {
        bail!("{NAME}: the last dim of {name} must be contiguous, its strides are {strides:?}")
    }
    Ok(std::array::from_fn(|i| if dims[i] == 1 { 0 } else { strides[i] }))
}
