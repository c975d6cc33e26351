//! The caller's tensors in the machine's memory: where they start, how far apart their rows are, and what was written.

use super::global;
use anyhow::{Result, ensure};
use bytemuck::NoUninit;
use int_flash_attention::{AttentionProblem, DType, HostTensor, Scored, Shape, TensorLayout};
use int_flash_attention_kernels::layout::KV_BLOCK;
use int_flash_attention_kernels::params::ScoreParams;
use ptx_machine::{DevPtr, Memory};
use std::ops::Range;

/// How the caller's tensors lie, beside what their layouts say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Places {
    /// As an allocator gives them.
    #[default]
    Usual,
    /// Aligned to this many bytes, or to an element where that is more, and to nothing beyond.
    Aligned(u64),
    /// As the last heads of the last of very many sequences, of which the others are not there: no array of the operands is
    /// reached with 32 bits, nor are the rows of the output. Q has a tile a head.
    Last,
    /// Of batch, head and token (0 to 2), this one's stride is more than 2^32 elements.
    Far(usize),
    /// All three are, so that one case shows what loses the upper bits of any.
    AllFar,
}

/// So many sequences of so many heads of one block have more than 2^32 rows; and of more blocks more than 2^32 keys, in memory that the machine has.
fn many(keys: usize) -> usize {
    12_000 / if keys <= KV_BLOCK { 1 } else { 4 }
}

/// More elements than 32 bits count, and a multiple of 16 bytes.
const FAR: i64 = (1 << 32) + 256;

impl Places {
    /// The sizes of which a problem's are the end, in batch and heads.
    pub(super) fn whole(self, problem: &AttentionProblem) -> AttentionProblem {
        if self != Self::Last {
            return *problem;
        }
        let many = many(problem.seqlen_kv);
        AttentionProblem { batch: many, heads_q: many, heads_kv: many / problem.group(), ..*problem }
    }

    /// An array of the operands, whose heads are the last of those of the whole.
    pub(super) fn operand<T: NoUninit>(self, memory: &mut Memory, values: &[T], [own, all]: [usize; 2]) -> DevPtr {
        let (bytes, head) = (size_of_val(values) as u64, size_of_val(values) as u64 / own as u64);
        let array = memory.alloc(head * all as u64, 256);
        memory.write(last(array, bytes, head * all as u64), values).expect("the end of the array is inside");
        array
    }

    /// The tensors that change scores, those of the last heads of the whole.
    pub(super) fn scores(
        self,
        memory: &mut Memory,
        scored: &Scored<'_>,
        whole: &AttentionProblem,
        params: ScoreParams,
    ) -> Result<ScoreParams> {
        let (p, tensors) = (scored.problem, &scored.tensors);
        let [batches, heads] = [whole.batch - p.batch, whole.heads_q - p.heads_q];
        // Slopes of each sequence are those of all heads, slopes and sinks of a head those of the last sequence's.
        let mut of_heads = |values: Option<&[f32]>, stride: usize| -> Result<DevPtr> {
            let Some(values) = values else { return Ok(DevPtr::NULL) };
            let (before, rows) = (batches * stride + heads, values.len() / p.heads_q);
            let array = memory.alloc(4 * (before + (rows - 1) * stride + p.heads_q) as u64, 4);
            for (row, values) in values.chunks_exact(p.heads_q).enumerate() {
                memory.write(array.offset(4 * (before + row * stride) as u64), values)?;
            }
            Ok(array)
        };
        let mut alibi_stride_b = params.alibi_stride_b;
        if alibi_stride_b > 0 && self.is_far(0) {
            alibi_stride_b += 1 << 31;
        }
        let alibi_slopes = of_heads(tensors.alibi_slopes, alibi_stride_b as usize)?;
        let sinks = of_heads(tensors.sinks, 0)?;
        // Far apart, rows are copied one by one, those that are shared as well.
        let far = |strides: [i64; 3]| [0, 1, 2].map(|i| strides[i] + if self.is_far(i) { FAR } else { 0 });
        let mut of_rows = |bytes: Option<&[u8]>, [size, row]: [u64; 2], strides: [i64; 3]| -> Result<DevPtr> {
            let Some(bytes) = bytes else { return Ok(DevPtr::NULL) };
            let offset = |strides: [i64; 3], at: [usize; 3]| {
                strides.iter().zip(at).map(|(&stride, at)| stride as u64 * at as u64).sum::<u64>() * size
            };
            // As an allocator gives it, or not aligned to more than an element: kernels may read several at a time.
            let align = if (bytes.len() as u64 / size).is_multiple_of(3) { size } else { 256 };
            if let Self::Far(_) | Self::AllFar = self {
                let last = [p.batch - 1, p.heads_q - 1, p.seqlen_q - 1];
                let array = memory.alloc(offset(far(strides), last) + row, align);
                for (b, h, n) in rows(p.q_shape()) {
                    let from = offset(strides, [b, h, n]) as usize;
                    memory.write(array.offset(offset(far(strides), [b, h, n])), &bytes[from..][..row as usize])?;
                }
                return Ok(array);
            }
            let before = offset(strides, [batches, heads, 0]);
            let array = memory.alloc(before + bytes.len() as u64, align);
            memory.write(array.offset(before), bytes)?;
            Ok(array)
        };
        let keys = p.seqlen_kv;
        let row = p.score_mod.mask.map_or(0, |mask| mask.kind.bytes(keys)) as u64;
        let mask = of_rows(tensors.mask, [1, row], params.mask_strides)?;
        let size = tensors.bias.map_or(1, |bias| bias.dtype().size() as u64);
        let bias = of_rows(tensors.bias.map(|bias| bias.bytes()), [size, size * keys as u64], params.bias_strides)?;
        Ok(ScoreParams {
            sinks: global(sinks),
            alibi_slopes: global(alibi_slopes),
            mask: global(mask),
            bias: global(bias),
            mask_strides: far(params.mask_strides),
            bias_strides: far(params.bias_strides),
            alibi_stride_b,
            ..params
        })
    }

    /// Whether this dimension's stride is more than 2^32 elements.
    pub(super) fn is_far(self, dimension: usize) -> bool {
        self == Self::AllFar || self == Self::Far(dimension)
    }

    fn layout(self, layout: TensorLayout) -> Result<TensorLayout> {
        let strides = layout.strides();
        let strides = [0, 1, 2].map(|i| strides[i] + if self.is_far(i) { FAR } else { 0 });
        Ok(TensorLayout::strided(layout.shape(), strides)?)
    }

    fn alloc(self, memory: &mut Memory, layout: &TensorLayout, dtype: DType) -> DevPtr {
        let align = match self {
            Self::Aligned(bytes) => bytes.max(dtype.size() as u64),
            Self::Usual | Self::Last | Self::Far(_) | Self::AllFar => 256,
        };
        memory.alloc((layout.span() * dtype.size()) as u64, align)
    }

    /// Writes the rows of a tensor and leaves the gaps between them unwritten, so that reading one is an error.
    pub(super) fn upload(self, memory: &mut Memory, tensor: &HostTensor) -> Result<Placed> {
        let (from, size) = (tensor.layout(), tensor.dtype().size());
        let placed = self.output(memory, &from, tensor.dtype())?;
        if from == placed.layout && from.span() == from.shape().elements() {
            memory.write(placed.data, tensor.bytes())?;
            return Ok(placed);
        }
        for (b, h, n) in rows(from.shape()) {
            let row = &tensor.bytes()[from.offset(b, h, n) * size..][..from.shape().head_dim * size];
            memory.write(placed.row(b, h, n), row)?;
        }
        Ok(placed)
    }

    /// Room for the output of a problem, unwritten.
    pub(super) fn output_of(
        self,
        memory: &mut Memory,
        problem: &AttentionProblem,
        out: &TensorLayout,
        dtype: DType,
    ) -> Result<Placed> {
        if self != Self::Last {
            return self.output(memory, out, dtype);
        }
        let all = TensorLayout::bhnd(self.whole(problem).o_shape());
        let data = self.alloc(memory, &all, dtype);
        let [batches, heads] = [all.shape().batch - out.shape().batch, all.shape().heads - out.shape().heads];
        let own = TensorLayout::strided(out.shape(), all.strides())?;
        Ok(Placed { data, before: all.offset(batches, heads, 0), layout: own, dtype })
    }

    /// Room for a tensor, unwritten.
    pub(super) fn output(self, memory: &mut Memory, layout: &TensorLayout, dtype: DType) -> Result<Placed> {
        let layout = self.layout(*layout)?;
        Ok(Placed { data: self.alloc(memory, &layout, dtype), before: 0, layout, dtype })
    }
}

/// Where the last bytes of an array begin.
pub(super) fn last(array: DevPtr, bytes: u64, all: u64) -> DevPtr {
    array.offset(all - bytes)
}

fn rows(shape: Shape) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..shape.batch).flat_map(move |b| (0..shape.heads).flat_map(move |h| (0..shape.seqlen).map(move |n| (b, h, n))))
}

/// A tensor in the machine's memory.
pub(super) struct Placed {
    pub(super) data: DevPtr,
    /// Elements that are others'.
    before: usize,
    layout: TensorLayout,
    dtype: DType,
}

impl Placed {
    /// Where its rows lie.
    pub(super) const fn layout(&self) -> &TensorLayout {
        &self.layout
    }

    fn row(&self, b: usize, h: usize, n: usize) -> DevPtr {
        self.data.offset(((self.before + self.layout.offset(b, h, n)) * self.dtype.size()) as u64)
    }

    /// The elements, each of which a kernel must have written, and nothing between them.
    pub(super) fn read(&self, memory: &Memory) -> Result<HostTensor> {
        let Shape { batch, seqlen, .. } = self.layout.shape();
        self.read_rows(memory, &(0..batch).map(|batch| (batch, 0..seqlen)).collect::<Vec<_>>())
    }

    /// The elements of these rows of each batch, which a kernel must have written, and nothing else; others are zero. Of no rows at
    /// all nothing is asked.
    pub(super) fn read_rows(&self, memory: &Memory, own: &[(usize, Range<usize>)]) -> Result<HostTensor> {
        let (shape, size) = (self.layout.shape(), self.dtype.size());
        let (mut values, mut bytes) = (Vec::with_capacity(shape.elements() * size), 0);
        for (b, h, n) in rows(shape) {
            if own.iter().any(|(batch, tokens)| *batch == b && tokens.contains(&n)) {
                values.extend(memory.read::<u8>(self.row(b, h, n), shape.head_dim * size)?);
                bytes += (shape.head_dim * size) as u64;
            } else {
                values.resize(values.len() + shape.head_dim * size, 0);
            }
        }
        let written = memory.written(self.data)?;
        ensure!(own.is_empty() || written == bytes, "{written} bytes were written to {bytes} bytes of rows");
        Ok(HostTensor::from_bytes(self.dtype, &values, TensorLayout::bhnd(shape))?)
    }
}
