//! The entry points, from the table in `config`.

use super::epilogue::Out;
#[allow(unused_imports, reason = "not every module has both schemes")]
use super::softmax::{BlockMax, Paper};
use super::{Args, attention};

macro_rules! scheme {
    (Default, $mt:literal) => {
        BlockMax<$mt, false>
    };
    (Paper, $mt:literal) => {
        Paper<$mt>
    };
}

macro_rules! entries {
    ($($module:literal, $d:literal, $scheme:ident, $mt:literal, $warps:literal, $slots:literal, $ctas:literal, $team:literal, $causal:literal, $name:ident;)*) => {$(
        #[cfg(kernels = $module)]
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        #[allow(clippy::too_many_arguments)]
        pub unsafe extern "ptx-kernel" fn $name(
            q: *const u8, k: *const u8, v: *const u8, q_scale: *const f32, q_bias: *const f32, k_scale: *const f32, k_scale_max: *const f32,
            v_scale: *const f32, v_mean: *const f32, o: *mut u8, o_stride_b: i64, o_stride_h: i64, o_stride_n: i64, lse: *mut f32,
            seqlen_q: u32, seqlen_kv: u32, group: u32, o_dtype: u32, softmax_scale: f32,
        ) {
            let out = Out { o, stride_b: o_stride_b, stride_h: o_stride_h, stride_n: o_stride_n, lse, dtype: o_dtype };
            let args = Args { q, k, v, q_scale, q_bias, k_scale, k_scale_max, v_scale, v_mean, out, seqlen_q, seqlen_kv, group, softmax_scale };
            unsafe { attention::<scheme!($scheme, $mt), $d, $mt, $warps, $slots, $team, $causal>(args) }
        }
    )*};
}

crate::attention_table!(entries);
