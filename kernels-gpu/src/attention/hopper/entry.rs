//! The entry points for sm_90a, from the table in `config`.

use super::Heads;
use crate::attention::Args;
use crate::attention::epilogue::Out;
#[allow(unused_imports, reason = "not every module has both schemes")]
use crate::attention::softmax::{BlockMax, Paper};

macro_rules! scheme {
    (Default) => {
        BlockMax<1, true>
    };
    (Paper) => {
        Paper<1>
    };
}

macro_rules! entries {
    ($($module:literal, $d:literal, $scheme:ident, $wgs:literal, $slots:literal, $turn:literal, $from:literal, $causal:literal, $name:ident;)*) => {$(
        #[cfg(kernels = $module)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        #[allow(clippy::too_many_arguments)]
        pub unsafe extern "ptx-kernel" fn $name(
            q: *const u8, k: *const u8, v: *const u8, q_scale: *const f32, q_bias: *const f32, k_scale: *const f32, k_scale_max: *const f32,
            v_scale: *const f32, v_mean: *const f32, o: *mut u8, o_stride_b: i64, o_stride_h: i64, o_stride_n: i64, lse: *mut f32,
            seqlen_q: u32, seqlen_kv: u32, group: u32, o_dtype: u32, softmax_scale: f32, heads_q: u32, batch: u32,
        ) {
            let out = Out { o, stride_b: o_stride_b, stride_h: o_stride_h, stride_n: o_stride_n, lse, dtype: o_dtype };
            let args = Args { q, k, v, q_scale, q_bias, k_scale, k_scale_max, v_scale, v_mean, out, seqlen_q, seqlen_kv, group, softmax_scale };
            unsafe {
                super::attention::<scheme!($scheme), $d, $wgs, $slots, $turn, $causal>(args, Heads { heads_q, batch });
            }
        }
    )*};
}

crate::hopper_table!(entries);
