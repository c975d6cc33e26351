//! What the kernels are handed for a problem.

use super::{AttentionProblem, Sequences, Window};
use crate::dtype::DType;
use crate::shape::{Shape, TensorLayout};
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, packed_dim};
use int_flash_attention_kernels::params::{
    AttentionParams, BaselineParams, BlockParams, DequantizeParams, Global, QuantizeParams, SeqLens, ShortParams,
    Strided, UNLIMITED, operand,
};
use int_flash_attention_kernels::quantize::work::Work;

impl AttentionProblem {
    /// What the INT8 kernels are handed for an output of this layout and type, all but the addresses. For the launches of this crate
    /// and of its tests.
    #[doc(hidden)]
    #[must_use]
    pub fn params(&self, o: &TensorLayout, dtype: DType) -> AttentionParams {
        let (window_left, window_right) = self.window_params();
        AttentionParams {
            o: strided(o),
            batch: self.batch as u32,
            heads_q: self.heads_q as u32,
            heads_kv: self.heads_kv as u32,
            group: self.group() as u32,
            seqlen_q: self.seqlen_q as u32,
            seqlen_kv: self.seqlen_kv as u32,
            window_left,
            window_right,
            o_dtype: dtype.code(),
            softmax_scale: self.scale(),
            score: self.score_mod.params(self),
            seqlens: self.seqlens_params(),
            o_dims: self.value_dim() as u32,
            blocks: BlockParams {
                k_bytes: block_bytes(packed_dim(self.head_dim)) as u32,
                v_bytes: block_bytes(packed_dim(self.value_dim())) as u32,
                scale_bytes: (size_of::<f32>() * KV_BLOCK) as u32,
                ..BlockParams::NONE
            },
            ..AttentionParams::NONE
        }
    }

    /// What the kernels for short K and V are handed for tensors of these layouts (Q, K, V) and this type, an output, and so many CTAs for a head
    /// of K and V; all but the addresses.
    #[doc(hidden)]
    #[must_use]
    pub fn short_params(
        &self,
        [q, k, v]: [&TensorLayout; 3],
        dtype: DType,
        (o, o_dtype): (&TensorLayout, DType),
        parts: u32,
    ) -> ShortParams {
        let [q, k, v] = [q, k, v].map(strided);
        // Heads at a time where they are neighbours in memory. Where each is a piece of its own, it was measured to be slower to have neighbouring pieces
        // at a time. The grid's second dimension has 16 bits.
        let apart = k.stride_h.unsigned_abs() > k.stride_n.unsigned_abs();
        let sequences_first = u32::from(apart && u16::try_from(self.heads_kv).is_ok());
        let attention = self.params(o, o_dtype);
        ShortParams { attention, q, k, v, dtype: dtype.code(), parts, sequences_first, reserved: 0 }
    }

    /// What the float16 kernels are handed for tensors of these layouts (Q, K, V, O), all but the addresses.
    #[doc(hidden)]
    #[must_use]
    pub fn baseline_params(&self, [q, k, v, o]: [&TensorLayout; 4]) -> BaselineParams {
        let (window_left, window_right) = self.window_params();
        BaselineParams {
            q: strided(q),
            k: strided(k),
            v: strided(v),
            o: strided(o),
            lse: Global::NULL,
            heads_q: self.heads_q as u32,
            group: self.group() as u32,
            seqlen_q: self.seqlen_q as u32,
            seqlen_kv: self.seqlen_kv as u32,
            window_left,
            window_right,
            softmax_scale: self.scale(),
            reserved: 0,
        }
    }

    /// What the quantization kernels are handed for tensors of these layouts, those that are quantized, all but the addresses.
    #[doc(hidden)]
    #[must_use]
    pub fn quantize_params(&self, q: Option<&TensorLayout>, kv: Option<[&TensorLayout; 2]>) -> QuantizeParams {
        let unused = TensorLayout::bhnd(self.q_shape());
        let [k, v] = kv.unwrap_or([&unused; 2]);
        let params = QuantizeParams {
            q: strided(q.unwrap_or(&unused)),
            k: strided(k),
            v: strided(v),
            batch: self.batch as u32,
            heads_q: if q.is_some() { self.heads_q as u32 } else { 0 },
            heads_kv: self.heads_kv as u32,
            seqlen_q: self.seqlen_q as u32,
            seqlen_kv: self.seqlen_kv as u32,
            head_dim: packed_dim(self.head_dim) as u32,
            dims: self.head_dim as u32,
            head_dim_v: packed_dim(self.value_dim()) as u32,
            dims_v: self.value_dim() as u32,
            quantize_kv: u32::from(kv.is_some()),
            rotate: u32::from(self.scheme.rotates()),
            seqlens: self.seqlens_params(),
            ..QuantizeParams::NONE
        };
        QuantizeParams { work: Work::new(&params), ..params }
    }

    /// What the dequantization kernels are handed for an operand (`int_flash_attention_kernels::params::operand`), all but the addresses.
    #[doc(hidden)]
    #[must_use]
    pub fn dequantize_params(&self, which: u32, out: &TensorLayout) -> DequantizeParams {
        let Shape { heads, head_dim, .. } = out.shape();
        DequantizeParams {
            out: strided(out),
            seqlen: if which == operand::Q { self.seqlen_q } else { self.seqlen_kv } as u32,
            heads: heads as u32,
            head_dim: packed_dim(head_dim) as u32,
            dims: head_dim as u32,
            operand: which,
            rotated: u32::from(self.scheme.rotates()),
            batch: self.batch as u32,
            seqlens: self.seqlens_params(),
            ..DequantizeParams::NONE
        }
    }

    /// Where sequences lie as the kernels take it, all but the addresses.
    fn seqlens_params(&self) -> SeqLens {
        let packed = u32::from(matches!(self.sequences, Sequences::Packed { .. }));
        let (total_q, total_kv) = (self.q_shape().seqlen as u32, self.kv_shape().seqlen as u32);
        SeqLens { total_q, total_kv, packed_q: packed, packed_kv: packed, ..SeqLens::NONE }
    }

    /// The window's sides as the kernels take them.
    fn window_params(&self) -> (u32, u32) {
        // A side that hides nothing has no limit: the kernels need not look at it.
        window_params(self.window.of_lengths(self.seqlen_q, self.seqlen_kv))
    }
}

/// A window's sides as the kernels take them.
pub(crate) fn window_params(window: Window) -> (u32, u32) {
    let side = |side: Option<usize>| side.map_or(UNLIMITED, |keys| keys as u32);
    (side(window.left), side(window.right))
}

/// A layout without an address.
pub(crate) fn strided(layout: &TensorLayout) -> Strided {
    let [stride_b, stride_h, stride_n] = layout.strides();
    Strided { stride_b, stride_h, stride_n, ..Strided::NONE }
}
