#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod call;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
// The tests run it on a pretended driver.
#[cfg(any(feature = "cuda", test))]
mod plans;

use call::{Call, dtype_of};
use candle_core::{CpuStorage, CudaStorage, CustomOp3, Layout, Result, Shape, Tensor};

/// INT8 attention as an operation on three tensors, for [`Tensor::apply_op3_no_bwd`]. [`flash_attn`] and [`flash_attn_windowed`] are
/// shorter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlashAttn {
    /// Factor of the scores, mostly `1 / sqrt(head_dim)`.
    pub softmax_scale: f32,
    /// How many keys before the one beside it a query sees; `None` is all.
    pub window_size_left: Option<usize>,
    /// How many keys behind the one beside it a query sees; `None` is all, and `Some(0)` the causal mask.
    pub window_size_right: Option<usize>,
}

/// `softmax(softmax_scale * q k^T) v` in INT8.
///
/// * `q` is `(batch, seqlen_q, heads_q, head_dim)`, `k` and `v` are `(batch, seqlen_kv, heads_kv, head_dim)`, of one type: f16, bf16 or
///   f32. Views are taken as they are, whatever their strides, but for the last dimension, which is contiguous.
/// * `heads_kv` divides `heads_q`: grouped heads need no `repeat_kv`.
/// * `causal` masks the keys behind a query; the sequences end together, so the last query sees all keys.
///
/// The result is `(batch, seqlen_q, heads_q, head_dim)`, contiguous, of the type of `q`. A query that sees no key gets zeros.
///
/// # Errors
/// Shapes or types that do not go together, head dims without kernels (32, 64, 96, 128 and 256 have them), and what the GPU says; on the
/// CPU also values that are not finite.
pub fn flash_attn(q: &Tensor, k: &Tensor, v: &Tensor, softmax_scale: f32, causal: bool) -> Result<Tensor> {
    flash_attn_windowed(q, k, v, softmax_scale, None, causal.then_some(0))
}

/// [`flash_attn`] with a window: a query sees `window_size_left` keys before the one beside it, that one, and `window_size_right` keys
/// behind it. What lies outside is neither read nor computed. A model's `sliding_window = W` is `Some(W - 1), Some(0)`.
///
/// # Errors
/// As [`flash_attn`].
pub fn flash_attn_windowed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    softmax_scale: f32,
    window_size_left: Option<usize>,
    window_size_right: Option<usize>,
) -> Result<Tensor> {
    q.apply_op3(k, v, FlashAttn { softmax_scale, window_size_left, window_size_right })
}

impl CustomOp3 for FlashAttn {
    fn name(&self) -> &'static str {
        call::NAME
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let dtype = dtype_of([q.dtype(), k.dtype(), v.dtype()])?;
        let call = Call::new(self, dtype, [q_layout, k_layout, v_layout])?;
        let o = cpu::forward(&call, [(q, q_layout), (k, k_layout), (v, v_layout)])?;
        Ok((o, q_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &CudaStorage,
        q_layout: &Layout,
        k: &CudaStorage,
        k_layout: &Layout,
        v: &CudaStorage,
        v_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let dtype = dtype_of([q.dtype(), k.dtype(), v.dtype()])?;
        let call = Call::new(self, dtype, [q_layout, k_layout, v_layout])?;
        let o = cuda::forward(&call, [(q, q_layout), (k, k_layout), (v, v_layout)])?;
        Ok((o, q_layout.shape().clone()))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        candle_core::bail!("{}: tensors on a GPU need the feature `cuda` of candle-int-flash-attention", call::NAME)
    }
}
