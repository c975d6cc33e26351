//! Attention of a decoder, `(batch, heads, tokens, head_dim)`: candle's own, what INT8 is compared with; and INT8.

use candle_core::{Device, Result, Tensor};
use candle_int_flash_attention::flash_attn_windowed;
use candle_nn::ops::softmax_last_dim;

/// Causal attention of a layer's new tokens on all of the sequence so far.
pub trait Attend {
    /// `softmax(scale q k^T) v` of layer `layer`: `q` is `(1, heads, tokens, head_dim)`, `k` and `v` `(1, heads_kv, tokens, head_dim)`, those
    /// of the tokens behind the ones of the calls before. A query sees the last `window` keys, itself included.
    ///
    /// # Errors
    /// Candle's, and what the attention refuses.
    fn attend(&mut self, layer: usize, qkv: [&Tensor; 3], scale: f32, window: Option<usize>) -> Result<Tensor>;
}

/// `softmax(scale q k^T + mask) v` by candle's operations. Heads of K and V divide those of Q; the mask is of a shape that broadcasts to
/// `(batch, heads, seqlen_q, seqlen_k)`.
///
/// # Errors
/// Candle's.
pub fn plain(q: &Tensor, k: &Tensor, v: &Tensor, scale: f32, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, heads, seqlen_q, head_dim) = q.dims4()?;
    let (heads_kv, seqlen_k) = (k.dim(1)?, k.dim(2)?);
    // The heads of a group are rows of one product: K and V are not repeated.
    let q = (q * f64::from(scale))?.reshape((batch, heads_kv, heads / heads_kv * seqlen_q, head_dim))?;
    let scores = q.matmul(&k.t()?)?.reshape((batch, heads, seqlen_q, seqlen_k))?;
    let scores = match mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let weights = softmax_last_dim(&scores)?.reshape((batch, heads_kv, (), seqlen_k))?;
    weights.matmul(v)?.reshape((batch, heads, seqlen_q, head_dim))
}

/// What [`plain`] adds to scores so that a query sees the key beside it and the `window - 1` before, `(1, 1, seqlen_q, seqlen_k)`. The sequences
/// end together.
///
/// # Errors
/// Candle's.
pub fn causal_mask(seqlen_q: usize, seqlen_k: usize, window: Option<usize>, device: &Device) -> Result<Tensor> {
    // Compared where the scores are: a mask of a long prompt is too large to be brought there.
    let key = Tensor::arange(0, seqlen_k as i64, device)?.unsqueeze(0)?;
    let beside = Tensor::arange((seqlen_k - seqlen_q) as i64, seqlen_k as i64, device)?.unsqueeze(1)?;
    let seen = key.broadcast_le(&beside)?;
    let seen = match window {
        Some(window) => {
            let before =
                Tensor::arange((seqlen_k - seqlen_q) as i64 - window as i64, seqlen_k as i64 - window as i64, device)?;
            (seen * key.broadcast_gt(&before.unsqueeze(1)?)?)?
        }
        None => seen,
    };
    let (zero, hidden) = (Tensor::new(0_f32, device)?, Tensor::new(f32::NEG_INFINITY, device)?);
    let dims = (seqlen_q, seqlen_k);
    seen.where_cond(&zero.broadcast_as(dims)?, &hidden.broadcast_as(dims)?)?.reshape((1, 1, seqlen_q, seqlen_k))
}

/// INT8 attention of tokens that are all of their sequence: nothing is kept.
#[derive(Clone, Copy, Debug)]
pub struct Int8;

impl Attend for Int8 {
    fn attend(&mut self, _: usize, [q, k, v]: [&Tensor; 3], scale: f32, window: Option<usize>) -> Result<Tensor> {
        // Views: nothing is copied.
        let [q, k, v] = [q.transpose(1, 2)?, k.transpose(1, 2)?, v.transpose(1, 2)?];
        flash_attn_windowed(&q, &k, &v, scale, window.map(|window| window - 1), Some(0))?.transpose(1, 2)
    }
}
