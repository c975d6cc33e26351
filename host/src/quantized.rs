//! Quantized operands: the arrays of docs/kernel-abi.md, "Quantized operands", on the host, on the device, or as views.

use crate::error::{Error, Result};
use crate::problem::{AttentionProblem, Scheme, check_head_dim};
use crate::shape::Shape;
use int_flash_attention_kernels::layout::{KV_BLOCK, PACKED_FORMAT, block_bytes, kv_blocks, packed_dim, v_byte};

/// Q in INT8, one scale a token; in the default scheme rotated as K is. `I` is an array of `i8`, `F` one of `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedQ<I, F> {
    /// Shape of Q.
    pub shape: Shape,
    /// The scheme that it is quantized for.
    pub scheme: Scheme,
    /// `[batch][heads_q][seqlen_q][packed_dim]`, with `int_flash_attention_kernels::layout::packed_dim` of the head dim.
    pub data: I,
    /// `[batch][heads_q][seqlen_q]`.
    pub scale: F,
    /// `q . k_offset`, `[batch][heads_q][seqlen_q]`, for the log-sum-exp; `None` in the paper's scheme, which has no offset.
    pub bias: Option<F>,
}

/// How the bytes of K and V are packed (docs/kernel-abi.md, "Packed blocks").
///
/// The version is 3. Tokens that are appended to K and V change no byte of a block of 128 that was full in the default scheme; in the paper's,
/// V has one scale a head, and they may change all of it.
///
/// There is a value of this type for what this version of the library reads and writes, and for nothing else. Who keeps
/// quantized operands beyond a process stores [`version`](Self::version) with them, and comes back through
/// [`from_version`](Self::from_version).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PackedFormat(());

impl PackedFormat {
    /// What this version of the library packs.
    pub const CURRENT: Self = Self(());

    /// The number to store.
    #[must_use]
    pub const fn version(self) -> u32 {
        PACKED_FORMAT
    }

    /// The format with a stored number.
    ///
    /// # Errors
    /// A version that this library does not read.
    pub const fn from_version(version: u32) -> Result<Self> {
        if version == PACKED_FORMAT { Ok(Self::CURRENT) } else { Err(Error::PackedFormat { given: version }) }
    }
}

/// K in INT8, one scale a token, packed in blocks of 128 tokens (`int_flash_attention_kernels::layout::k_offset`).
///
/// In the default scheme a token is rotated (`int_flash_attention_kernels::layout::rotation`) after the head's offset has been taken
/// out. Nothing but the offset depends on other tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedK<I, F> {
    /// Shape of K.
    pub shape: Shape,
    /// How many sequences are packed in the one batch of the shape ([`Sequences::Packed`](crate::Sequences::Packed)); `None` of a dense
    /// one. Packed, `[blocks]` is `tokens / 128 + sequences`, of which the first of sequence `s` that begins at token `t` is
    /// `t / 128 + s`, and there is an offset for each sequence and head.
    pub packed: Option<usize>,
    /// The scheme that it is quantized for.
    pub scheme: Scheme,
    /// How `data` is packed.
    pub format: PackedFormat,
    /// `[batch][heads_kv][blocks][128 * packed_dim]`, padding zero.
    pub data: I,
    /// `[batch][heads_kv][blocks * 128]`, padding zero.
    pub scale: F,
    /// `[batch][heads_kv][blocks]`: the largest scale of the block's tokens.
    pub block_scale: F,
    /// `[batch][heads_kv][head_dim]`: what was taken out of every token, a constant that the head's first 64 tokens gave; zero in the
    /// paper's scheme.
    pub offset: F,
}

/// V in INT8, packed and transposed in blocks of 128 tokens (`int_flash_attention_kernels::layout::v_offset`). A byte of the blocks is a
/// code, -127 to 127, and 128: unsigned, so that sums of its products with P need no sign (`int_flash_attention_kernels::layout::v_byte`).
///
/// In the default scheme four neighbouring dims are rotated (`int_flash_attention_kernels::layout::rotate_v`), and all tokens of a block
/// share a scale where they are about as large; in the paper's, all tokens of a head do.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedV<I, F> {
    /// Shape of V.
    pub shape: Shape,
    /// As of [`QuantizedK`].
    pub packed: Option<usize>,
    /// The scheme that it is quantized for.
    pub scheme: Scheme,
    /// How `data` is packed.
    pub format: PackedFormat,
    /// `[batch][heads_kv][blocks][128 * packed_dim]`, padding 128.
    pub data: I,
    /// `[batch][heads_kv][blocks * 128]`: each token's scale, padding zero.
    pub scale: F,
    /// `[batch][heads_kv][blocks]`: the scale that all tokens of a block share, or NaN where they have scales of their own.
    pub block_scale: F,
    /// `[batch][heads_kv]`: a power of two near the scales, the unit in which the kernels add V up.
    pub unit: F,
}

/// All operands of an attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized<I, F> {
    /// Queries.
    pub q: QuantizedQ<I, F>,
    /// Keys.
    pub k: QuantizedK<I, F>,
    /// Values.
    pub v: QuantizedV<I, F>,
}

/// Quantized queries in the host's memory.
pub type HostQ = QuantizedQ<Vec<i8>, Vec<f32>>;
/// Quantized keys in the host's memory.
pub type HostK = QuantizedK<Vec<i8>, Vec<f32>>;
/// Quantized values in the host's memory.
pub type HostV = QuantizedV<Vec<i8>, Vec<f32>>;
/// Quantized operands in the host's memory.
pub type HostQuantized = Quantized<Vec<i8>, Vec<f32>>;

/// How many elements each array of the operands of a shape has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    /// Bytes of Q.
    pub q_data: usize,
    /// Bytes of K or V.
    pub kv_data: usize,
    /// Scales of Q: one a token.
    pub q_scale: usize,
    /// Scales of K or V: one a token, padding included.
    pub kv_scale: usize,
    /// Blocks: each has a scale of K and of V.
    pub blocks: usize,
    /// Offsets of K: one a channel of each head.
    pub channels: usize,
    /// Heads of all sequences.
    pub heads: usize,
    /// Sequences that are packed in one batch.
    pub packed: Option<usize>,
}

impl Lengths {
    /// For an operand of this shape.
    pub(crate) fn of(shape: Shape) -> Result<Self> {
        Self::of_packed(shape, None)
    }

    /// For K of a problem.
    pub(crate) fn of_kv(problem: &AttentionProblem) -> Result<Self> {
        Self::of_packed(problem.kv_shape(), problem.packed())
    }

    /// For V of a problem.
    pub(crate) fn of_v(problem: &AttentionProblem) -> Result<Self> {
        Self::of_packed(problem.v_shape(), problem.packed())
    }

    /// Whether the attention kernels, which do so with 32 bits, count the blocks of a problem.
    pub(crate) fn check_blocks(&self, problem: &AttentionProblem) -> Result<()> {
        let overflow = |_| Error::Overflow { what: "the packed blocks", shape: problem.kv_shape().to_string() };
        u32::try_from(self.blocks).map(|_| ()).map_err(overflow)
    }

    /// For an operand of this shape, whose one batch has so many sequences.
    pub(crate) fn of_packed(shape: Shape, packed: Option<usize>) -> Result<Self> {
        Shape::new(shape.batch, shape.heads, shape.seqlen, shape.head_dim)?;
        check_head_dim(shape.head_dim)?;
        let overflow = || Error::Overflow { what: "the packed blocks", shape: shape.to_string() };
        let heads = packed.unwrap_or(shape.batch).checked_mul(shape.heads).ok_or_else(overflow)?;
        let blocks = packed.map_or_else(|| kv_blocks(shape.seqlen), |sequences| packed_blocks(shape.seqlen, sequences));
        let all_blocks = (shape.batch * shape.heads).checked_mul(blocks).ok_or_else(overflow)?;
        let dims = packed_dim(shape.head_dim);
        let q_data = shape.rows().checked_mul(dims).ok_or_else(overflow)?;
        let kv_data = all_blocks.checked_mul(block_bytes(dims)).ok_or_else(overflow)?;
        if i64::try_from(kv_data.max(q_data)).is_err() {
            return Err(overflow());
        }
        Ok(Self {
            q_data,
            kv_data,
            q_scale: shape.rows(),
            kv_scale: all_blocks * KV_BLOCK,
            blocks: all_blocks,
            channels: heads.checked_mul(shape.head_dim).ok_or_else(overflow)?,
            heads,
            packed,
        })
    }
}

/// Blocks of a head of so many packed tokens, in which every sequence begins a block (`int_flash_attention_kernels::seqlens`).
pub(crate) const fn packed_blocks(tokens: usize, sequences: usize) -> usize {
    (tokens / KV_BLOCK).saturating_add(sequences)
}

/// The length of an array, given against needed.
pub(crate) fn check_len(name: &'static str, given: usize, expected: usize) -> Result<()> {
    if given == expected { Ok(()) } else { Err(Error::Length { name, given, expected }) }
}

/// Whether an operand is of the scheme that is planned.
#[inline]
pub(crate) fn check_scheme(name: &'static str, planned: Scheme, given: Scheme) -> Result<()> {
    if given == planned { Ok(()) } else { Err(Error::OperandScheme { name, given, planned }) }
}

/// Whether the queries are of the scheme that is planned, and their `bias` is there exactly where it has one.
#[inline]
pub(crate) fn check_q<I, F>(scheme: Scheme, q: &QuantizedQ<I, F>) -> Result<()> {
    check_scheme("q", scheme, q.scheme)?;
    let (given, planned) = match (scheme, &q.bias) {
        (Scheme::Default, None) => ("not given", "with"),
        (Scheme::Paper, Some(_)) => ("given", "without"),
        _ => return Ok(()),
    };
    Err(Error::Optional { name: "q_bias", given, planned })
}

/// Whether an operand's one batch has as many sequences as is planned.
#[inline]
pub(crate) fn check_packing(name: &'static str, given: Option<usize>, planned: Option<usize>) -> Result<()> {
    if given == planned {
        return Ok(());
    }
    let of = |packed: Option<usize>| {
        packed.map_or_else(|| "one sequence a batch".to_owned(), |sequences| format!("{sequences} packed sequences"))
    };
    Err(Error::ShapeMismatch { name, given: of(given), expected: of(planned) })
}

/// Whether scales are what a quantizer gives: NaN is that of a token that is no number, and of a mixed block of V.
fn check_scales(name: &'static str, scales: &[f32]) -> Result<()> {
    match scales.iter().position(|scale| !scale.is_nan() && !(0.0..f32::INFINITY).contains(scale)) {
        Some(at) => Err(Error::Scale { name, value: scales[at], at }),
        None => Ok(()),
    }
}

/// Whether codes are -127 to 127; `missing` is the byte of -128.
fn check_codes(name: &'static str, codes: &[i8], missing: i8) -> Result<()> {
    match codes.iter().position(|&code| code == missing) {
        Some(at) => Err(Error::Code { name, at }),
        None => Ok(()),
    }
}

impl HostQ {
    /// Whether every array has the length that the shape asks, and values that a quantizer gives.
    ///
    /// # Errors
    /// A wrong shape or length; a code of -128; a scale that is negative or infinite.
    pub fn check(&self) -> Result<()> {
        let lengths = Lengths::of(self.shape)?;
        check_len("q", self.data.len(), lengths.q_data)?;
        check_len("q_scale", self.scale.len(), lengths.q_scale)?;
        check_codes("q", &self.data, i8::MIN)?;
        check_scales("q_scale", &self.scale)?;
        self.bias.as_ref().map_or(Ok(()), |bias| check_len("q_bias", bias.len(), lengths.q_scale))
    }
}

impl HostK {
    /// Whether every array has the length that the shape asks, and values that a quantizer gives.
    ///
    /// # Errors
    /// A wrong shape or length; a code of -128; a scale that is negative or infinite.
    pub fn check(&self) -> Result<()> {
        let lengths = Lengths::of_packed(self.shape, self.packed)?;
        check_len("k", self.data.len(), lengths.kv_data)?;
        check_len("k_scale", self.scale.len(), lengths.kv_scale)?;
        check_len("k_block_scale", self.block_scale.len(), lengths.blocks)?;
        check_len("k_offset", self.offset.len(), lengths.channels)?;
        check_codes("k", &self.data, i8::MIN)?;
        check_scales("k_scale", &self.scale)?;
        check_scales("k_block_scale", &self.block_scale)
    }
}

impl HostV {
    /// Whether every array has the length that the shape asks, and values that a quantizer gives.
    ///
    /// # Errors
    /// A wrong shape or length; a code of -128; a scale that is negative or infinite.
    pub fn check(&self) -> Result<()> {
        let lengths = Lengths::of_packed(self.shape, self.packed)?;
        check_len("v", self.data.len(), lengths.kv_data)?;
        check_len("v_scale", self.scale.len(), lengths.kv_scale)?;
        check_len("v_block_scale", self.block_scale.len(), lengths.blocks)?;
        check_len("v_unit", self.unit.len(), lengths.heads)?;
        check_codes("v", &self.data, v_byte(i8::MIN))?;
        check_scales("v_scale", &self.scale)?;
        check_scales("v_block_scale", &self.block_scale)?;
        check_scales("v_unit", &self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Operands of one head, 3 tokens, 32 channels.
    fn operands() -> HostQuantized {
        use crate::{AttentionProblem, DType, HostTensor, TensorLayout, reference};
        let p = AttentionProblem::new(1, 1, 1, 3, 3, 32);
        let value = |_, _, n, d| (n * 32 + d) as f32;
        let x = HostTensor::from_fn(DType::F32, TensorLayout::bhnd(p.q_shape()), value).unwrap();
        reference::quantize(&p, &x, &x, &x).unwrap()
    }

    #[test]
    fn arrays_of_other_lengths_are_refused() {
        type Arrays = fn(&mut HostQuantized) -> &mut Vec<f32>;
        let arrays: [(&str, Arrays); 8] = [
            ("q_scale", |x| &mut x.q.scale),
            ("q_bias", |x| x.q.bias.as_mut().unwrap()),
            ("k_scale", |x| &mut x.k.scale),
            ("k_block_scale", |x| &mut x.k.block_scale),
            ("k_offset", |x| &mut x.k.offset),
            ("v_scale", |x| &mut x.v.scale),
            ("v_block_scale", |x| &mut x.v.block_scale),
            ("v_unit", |x| &mut x.v.unit),
        ];
        let check = |x: &HostQuantized| x.q.check().and(x.k.check()).and(x.v.check());
        check(&operands()).unwrap();
        for (name, array) in arrays {
            let (mut short, mut long) = (operands(), operands());
            array(&mut short).pop();
            array(&mut long).push(0.0);
            for wrong in [short, long] {
                let error = check(&wrong).unwrap_err();
                assert!(matches!(error, Error::Length { name: which, .. } if which == name), "{name}: {error}");
            }
        }
    }

    #[test]
    fn values_that_no_quantizer_gives_are_refused() {
        let p = crate::AttentionProblem::new(1, 1, 1, 3, 3, 32);
        let refused = |change: fn(&mut HostQuantized)| {
            let mut x = operands();
            change(&mut x);
            // Where operands go: the references must not panic on them either.
            crate::reference::gpu_bounds(&p, &x, crate::DType::F16).unwrap_err()
        };
        assert_eq!(refused(|x| x.q.data[5] = -128), Error::Code { name: "q", at: 5 });
        assert_eq!(refused(|x| x.k.data[6] = -128), Error::Code { name: "k", at: 6 });
        assert_eq!(refused(|x| x.v.data[7] = v_byte(-128)), Error::Code { name: "v", at: 7 });
        assert!(matches!(refused(|x| x.q.scale[1] = -1.0), Error::Scale { name: "q_scale", at: 1, .. }));
        assert!(matches!(refused(|x| x.k.scale[2] = f32::NEG_INFINITY), Error::Scale { name: "k_scale", at: 2, .. }));
        assert!(matches!(refused(|x| x.k.block_scale[0] = f32::INFINITY), Error::Scale { name: "k_block_scale", .. }));
        assert!(matches!(refused(|x| x.v.scale[2] = -0.5), Error::Scale { name: "v_scale", at: 2, .. }));
        assert!(matches!(refused(|x| x.v.block_scale[0] = -0.5), Error::Scale { name: "v_block_scale", .. }));
        assert!(matches!(refused(|x| x.v.unit[0] = f32::INFINITY), Error::Scale { name: "v_unit", .. }));
    }

    #[test]
    fn a_packed_format_is_what_this_version_reads() {
        let stored = PackedFormat::CURRENT.version();
        assert_eq!(PackedFormat::from_version(stored), Ok(PackedFormat::CURRENT));
        for other in [stored - 1, stored + 1] {
            let error = PackedFormat::from_version(other).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("packed blocks of version {other} were given; this library reads version {stored}")
            );
        }
    }
}
