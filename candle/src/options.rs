//! What attention is asked for: the one type that every function of this crate goes through.

use crate::op::{Attention, Lengths};
use candle_core::{Result, Tensor};
use int_flash_attention::Window;

/// INT8 attention, `softmax(scores) v`, and what its scores are.
///
/// With `z = softmax_scale * q.k`, in this order: `z` becomes `softcap * tanh(z / softcap)`; `slope * distance` is taken from it (ALiBi); the bias
/// is added; keys are hidden by the window and the mask; `exp(sink)` joins the sum of the row.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_int_flash_attention::FlashAttn;
/// let q = Tensor::randn(0f32, 1., (1, 20, 8, 64), &Device::Cpu)?;
/// let kv = Tensor::randn(0f32, 1., (1, 20, 2, 64), &Device::Cpu)?;
/// let sinks = Tensor::zeros(8, candle_core::DType::F32, &Device::Cpu)?;
/// let attention = FlashAttn::new(1.0 / 8.0).with_causal(true).with_softcap(50.0).with_sinks(sinks);
/// assert_eq!(attention.forward(&q, &kv, &kv)?.dims(), [1, 20, 8, 64]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// Tensors that it is given are on the device of `q`. It is cheap to clone: a model makes one for each kind of layer.
#[derive(Clone, Debug)]
pub struct FlashAttn {
    pub(crate) softmax_scale: f32,
    pub(crate) window: Window,
    pub(crate) softcap: Option<f32>,
    pub(crate) alibi_slopes: Option<Tensor>,
    pub(crate) sinks: Option<Tensor>,
    pub(crate) bias: Option<Tensor>,
    pub(crate) mask: Option<Tensor>,
}

/// The lengths of sequences that lie one behind the other.
#[derive(Clone, Debug)]
pub struct VarLen {
    /// Where the queries of each sequence begin, and the end of the last: `(batch + 1)` of u32, from 0.
    pub seqlens_q: Tensor,
    /// The same for keys and values.
    pub seqlens_k: Tensor,
    /// The most queries of a sequence.
    pub max_seqlen_q: usize,
    /// The most keys of a sequence.
    pub max_seqlen_k: usize,
}

impl FlashAttn {
    /// Without a mask; the factor of the scores is mostly `1 / sqrt(head_dim)`.
    #[must_use]
    pub const fn new(softmax_scale: f32) -> Self {
        Self {
            softmax_scale,
            window: Window::FULL,
            softcap: None,
            alibi_slopes: None,
            sinks: None,
            bias: None,
            mask: None,
        }
    }

    /// With the causal mask, or without a mask. Sequences end together, so the last query sees all keys.
    #[must_use]
    pub fn with_causal(self, causal: bool) -> Self {
        self.with_window(None, causal.then_some(0))
    }

    /// With a window: a query sees `left` keys before the one beside it, that one, and `right` keys behind it; `None` is all. A model's
    /// `sliding_window = W` is `Some(W - 1), Some(0)`.
    #[must_use]
    pub fn with_window(self, left: Option<usize>, right: Option<usize>) -> Self {
        Self { window: Window { left, right }, ..self }
    }

    /// With a cap of the scores, as Gemma 2 has it: from 2^-14 to 2^14, or `None`.
    #[must_use]
    pub fn with_softcap(self, softcap: impl Into<Option<f32>>) -> Self {
        Self { softcap: softcap.into(), ..self }
    }

    /// With ALiBi slopes: f32, `(heads_q)`, or `(batch, heads_q)` where sequences have their own.
    #[must_use]
    pub fn with_alibi_slopes(self, slopes: impl Into<Option<Tensor>>) -> Self {
        Self { alibi_slopes: slopes.into(), ..self }
    }

    /// With attention sinks, as gpt-oss has them: f32, `(heads_q)`, logits that are not multiplied by the scale and have no value.
    #[must_use]
    pub fn with_sinks(self, sinks: impl Into<Option<Tensor>>) -> Self {
        Self { sinks: sinks.into(), ..self }
    }

    /// With a bias that is added to the scores: f16, bf16 or f32, `(batch, heads_q, seqlen_q, seqlen_k)`, of which the first three may be 1.
    /// Elements below -45000, minus infinity among them, hide their key. `None` is none.
    #[must_use]
    pub fn with_bias(self, bias: impl Into<Option<Tensor>>) -> Self {
        Self { bias: bias.into(), ..self }
    }

    /// With a mask of the keys: u8, `(batch, heads_q, seqlen_q, seqlen_k)`, of which the first three may be 1; keys of elements that are 0 are
    /// hidden. `None` is none.
    #[must_use]
    pub fn with_mask(self, mask: impl Into<Option<Tensor>>) -> Self {
        Self { mask: mask.into(), ..self }
    }

    /// Attention of `q`, `(batch, seqlen_q, heads_q, head_dim)`, on `k` and `v`, `(batch, seqlen_k, heads_kv, head_dim)`: `(batch, seqlen_q,
    /// heads_q, head_dim)`, contiguous, of the type of `q`. A query that sees no key gets zeros.
    ///
    /// All three are of one type, f16, bf16 or f32. Views are taken as they are, whatever their strides, but for the last dimension, which is
    /// contiguous. `heads_kv` divides `heads_q`; the head dim of `v` may be another one where there are kernels for it (192 and 128).
    ///
    /// # Errors
    /// Shapes or types that do not go together; head dims without kernels (multiples of 8 up to 512 have them); tensors of the scores of other
    /// shapes, types or devices; what the GPU says; on the CPU also values that are not finite.
    pub fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.apply([q, k, v], Lengths::Equal)
    }

    /// [`forward`](Self::forward) of sequences of unlike lengths, one behind the other: `q` is `(total_q, heads_q, head_dim)`, `k` and `v` are
    /// `(total_k, heads_kv, head_dim)`, and so is the result.
    ///
    /// On a GPU the lengths are read there, when the kernels run: nothing waits for them, and a graph goes by what they are then. There may be
    /// tokens behind the last sequence, whose rows of the result have no meaning; lengths that are wrong give results without meaning, and no
    /// access outside of the tensors. On the CPU the last sequence ends where the tensors do, and what is wrong is an error.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); lengths that are no contiguous u32 of one dimension, or not as many of `q` as of `k`; on the CPU those that
    /// decrease, are longer than was said, or do not end with the tensors.
    pub fn forward_varlen(&self, q: &Tensor, k: &Tensor, v: &Tensor, lengths: &VarLen) -> Result<Tensor> {
        self.apply([q, k, v], Lengths::Packed(lengths.clone()))
    }

    /// [`forward`](Self::forward) of sequences that have fewer keys than `k` and `v` have room for: `seqlens_k` says how many, `(batch)` of u32.
    /// Keys behind them are not read, whatever they are; the last query stands beside the last key that counts.
    ///
    /// With `k` and `v` of one size, the planned maximum, one plan serves every length: for padded batches, and for caches that grow.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); lengths that are no contiguous u32 of one dimension, or not one a sequence; on the CPU lengths beyond the
    /// tensors (on a GPU they count as cut there).
    pub fn forward_padded(&self, q: &Tensor, k: &Tensor, v: &Tensor, seqlens_k: &Tensor) -> Result<Tensor> {
        self.apply([q, k, v], Lengths::Keys(seqlens_k.clone()))
    }

    fn apply(&self, [q, k, v]: [&Tensor; 3], lengths: Lengths) -> Result<Tensor> {
        q.apply_op3(k, v, Attention { options: self.clone(), lengths })
    }
}
