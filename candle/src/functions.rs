//! The functions of candle-flash-attn, by their names: thin faces of [`FlashAttn`].

use crate::{FlashAttn, VarLen};
use candle_core::{Result, Tensor};

/// `softmax(softmax_scale * q k^T) v` in INT8.
///
/// * `q` is `(batch, seqlen_q, heads_q, head_dim)`, `k` and `v` are `(batch, seqlen_k, heads_kv, head_dim)`, of one type: f16, bf16 or
///   f32. Views are taken as they are, whatever their strides, but for the last dimension, which is contiguous.
/// * `heads_kv` divides `heads_q`: grouped heads need no `repeat_kv`.
/// * `causal` masks the keys behind a query; the sequences end together, so the last query sees all keys.
///
/// The result is `(batch, seqlen_q, heads_q, head_dim)`, contiguous, of the type of `q`. A query that sees no key gets zeros.
///
/// # Errors
/// As [`FlashAttn::forward`].
pub fn flash_attn(q: &Tensor, k: &Tensor, v: &Tensor, softmax_scale: f32, causal: bool) -> Result<Tensor> {
    FlashAttn::new(softmax_scale).with_causal(causal).forward(q, k, v)
}

/// [`flash_attn`] with a window: a query sees `window_size_left` keys before the one beside it, that one, and `window_size_right` keys
/// behind it. What lies outside is neither read nor computed. A model's `sliding_window = W` is `Some(W - 1), Some(0)`.
///
/// # Errors
/// As [`FlashAttn::forward`].
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    FlashAttn::new(softmax_scale).with_window(window_size_left, window_size_right).forward(q, k, v)
}

/// [`flash_attn`] with ALiBi: `alibi_slopes` is f32, `(heads_q)`, and `slope * distance` is taken from a score.
///
/// # Errors
/// As [`FlashAttn::forward`].
pub fn flash_attn_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    FlashAttn::new(softmax_scale).with_causal(causal).with_alibi_slopes(alibi_slopes.clone()).forward(q, k, v)
}

/// [`flash_attn_windowed`] with ALiBi.
///
/// # Errors
/// As [`FlashAttn::forward`].
pub fn flash_attn_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let attention = FlashAttn::new(softmax_scale).with_window(window_size_left, window_size_right);
    attention.with_alibi_slopes(alibi_slopes.clone()).forward(q, k, v)
}

/// [`flash_attn_windowed`] with ALiBi where there are slopes, and with scores that become `softcap * tanh(score / softcap)`; 0 is no cap.
///
/// # Errors
/// As [`FlashAttn::forward`].
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    let attention = FlashAttn::new(softmax_scale).with_window(window_size_left, window_size_right);
    attention.with_alibi_slopes(alibi_slopes.cloned()).with_softcap(cap(softcap)).forward(q, k, v)
}

/// [`flash_attn`] of sequences of unlike lengths, one behind the other: `q` is `(total_q, heads_q, head_dim)`, `k` and `v` are `(total_k, heads_kv,
/// head_dim)`. `seqlens_q` and `seqlens_k` say where each sequence begins and the last one ends, `(batch + 1)` of u32, on the device of `q`.
///
/// # Errors
/// As [`FlashAttn::forward_varlen`].
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    let lengths = var_len(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k);
    FlashAttn::new(softmax_scale).with_causal(causal).forward_varlen(q, k, v, &lengths)
}

/// [`flash_attn_varlen`] with the window of [`flash_attn_windowed`].
///
/// # Errors
/// As [`FlashAttn::forward_varlen`].
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let lengths = var_len(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k);
    let attention = FlashAttn::new(softmax_scale).with_window(window_size_left, window_size_right);
    attention.forward_varlen(q, k, v, &lengths)
}

/// [`flash_attn_varlen`] with ALiBi, as [`flash_attn_alibi`].
///
/// # Errors
/// As [`FlashAttn::forward_varlen`].
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_alibi(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    causal: bool,
) -> Result<Tensor> {
    let lengths = var_len(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k);
    let attention = FlashAttn::new(softmax_scale).with_causal(causal);
    attention.with_alibi_slopes(alibi_slopes.clone()).forward_varlen(q, k, v, &lengths)
}

/// [`flash_attn_varlen_windowed`] with ALiBi.
///
/// # Errors
/// As [`FlashAttn::forward_varlen`].
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_alibi_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: &Tensor,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    let lengths = var_len(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k);
    let attention = FlashAttn::new(softmax_scale).with_window(window_size_left, window_size_right);
    attention.with_alibi_slopes(alibi_slopes.clone()).forward_varlen(q, k, v, &lengths)
}

/// [`flash_attn_varlen_windowed`] with ALiBi and a softcap, as [`flash_attn_alibi_windowed_softcap`].
///
/// # Errors
/// As [`FlashAttn::forward_varlen`].
#[allow(clippy::too_many_arguments)]
pub fn flash_attn_varlen_alibi_windowed_softcap(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    alibi_slopes: Option<&Tensor>,
    seqlens_q: &Tensor,
    seqlens_k: &Tensor,
    max_seqlen_q: usize,
    max_seqlen_k: usize,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
    softcap: f32,
) -> Result<Tensor> {
    let lengths = var_len(seqlens_q, seqlens_k, max_seqlen_q, max_seqlen_k);
    let attention = FlashAttn::new(softmax_scale).with_window(window_size_left, window_size_right);
    let attention = attention.with_alibi_slopes(alibi_slopes.cloned()).with_softcap(cap(softcap));
    attention.forward_varlen(q, k, v, &lengths)
}

fn var_len(seqlens_q: &Tensor, seqlens_k: &Tensor, max_seqlen_q: usize, max_seqlen_k: usize) -> VarLen {
    VarLen { seqlens_q: seqlens_q.clone(), seqlens_k: seqlens_k.clone(), max_seqlen_q, max_seqlen_k }
}

/// candle-flash-attn's way to say that there is none.
fn cap(softcap: f32) -> Option<f32> {
    (softcap != 0.0).then_some(softcap)
}
