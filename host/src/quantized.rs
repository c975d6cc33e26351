//! Quantized operands: the arrays of docs/kernel-abi.md, "Quantized operands", on the host, on the device, or as views.

use crate::error::{Error, Result};
use crate::problem::{Scheme, check_head_dim};
use crate::shape::Shape;
use int_flash_attention_kernels::layout::{KV_BLOCK, PACKED_FORMAT, block_bytes, kv_blocks};

/// Q in INT8, one scale a token; in the default scheme rotated as K is. `I` is an array of `i8`, `F` one of `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedQ<I, F> {
    /// Shape of Q.
    pub shape: Shape,
    /// The scheme that it is quantized for.
    pub scheme: Scheme,
    /// `[batch][heads_q][seqlen_q][head_dim]`.
    pub data: I,
    /// `[batch][heads_q][seqlen_q]`.
    pub scale: F,
    /// `q . k_offset`, `[batch][heads_q][seqlen_q]`, for the log-sum-exp; `None` in the paper's scheme, which has no offset.
    pub bias: Option<F>,
}

/// How the bytes of K and V are packed (docs/kernel-abi.md, "Packed blocks").
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
    /// The scheme that it is quantized for.
    pub scheme: Scheme,
    /// How `data` is packed.
    pub format: PackedFormat,
    /// `[batch][heads_kv][blocks][128 * head_dim]`, padding zero.
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
    /// The scheme that it is quantized for.
    pub scheme: Scheme,
    /// How `data` is packed.
    pub format: PackedFormat,
    /// `[batch][heads_kv][blocks][128 * head_dim]`, padding 128.
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
}

impl Lengths {
    /// For an operand of this shape.
    pub(crate) fn of(shape: Shape) -> Result<Self> {
        Shape::new(shape.batch, shape.heads, shape.seqlen, shape.head_dim)?;
        check_head_dim(shape.head_dim)?;
        let heads = shape.batch * shape.heads;
        let blocks = kv_blocks(shape.seqlen);
        let overflow = || Error::Overflow { what: "the packed blocks", shape: shape.to_string() };
        let all_blocks = heads.checked_mul(blocks).ok_or_else(overflow)?;
        let kv_data = all_blocks.checked_mul(block_bytes(shape.head_dim)).ok_or_else(overflow)?;
        if i64::try_from(kv_data).is_err() {
            return Err(overflow());
        }
        Ok(Self {
            q_data: shape.elements(),
            kv_data,
            q_scale: shape.rows(),
            kv_scale: all_blocks * KV_BLOCK,
            blocks: all_blocks,
            channels: heads * shape.head_dim,
            heads,
        })
    }
}

/// The length of an array, given against needed.
pub(crate) fn check_len(name: &'static str, given: usize, expected: usize) -> Result<()> {
    if given == expected { Ok(()) } else { Err(Error::Length { name, given, expected }) }
}

impl HostQ {
    /// Whether every array has the length that the shape asks.
    ///
    /// # Errors
    /// A wrong shape or length.
    pub fn check(&self) -> Result<()> {
        let lengths = Lengths::of(self.shape)?;
        check_len("q", self.data.len(), lengths.q_data)?;
        check_len("q_scale", self.scale.len(), lengths.q_scale)?;
        self.bias.as_ref().map_or(Ok(()), |bias| check_len("q_bias", bias.len(), lengths.q_scale))
    }
}

impl HostK {
    /// Whether every array has the length that the shape asks.
    ///
    /// # Errors
    /// A wrong shape or length.
    pub fn check(&self) -> Result<()> {
        let lengths = Lengths::of(self.shape)?;
        check_len("k", self.data.len(), lengths.kv_data)?;
        check_len("k_scale", self.scale.len(), lengths.kv_scale)?;
        check_len("k_block_scale", self.block_scale.len(), lengths.blocks)?;
        check_len("k_offset", self.offset.len(), lengths.channels)
    }
}

impl HostV {
    /// Whether every array has the length that the shape asks.
    ///
    /// # Errors
    /// A wrong shape or length.
    pub fn check(&self) -> Result<()> {
        let lengths = Lengths::of(self.shape)?;
        check_len("v", self.data.len(), lengths.kv_data)?;
        check_len("v_scale", self.scale.len(), lengths.kv_scale)?;
        check_len("v_block_scale", self.block_scale.len(), lengths.blocks)?;
        check_len("v_unit", self.unit.len(), lengths.heads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
