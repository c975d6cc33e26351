//! The entry points, from the table in `config`.

use super::{Args, Tensor, attention};

macro_rules! entries {
    ($($d:literal, $mt:literal, $warps:literal, $keys:literal, $stages:literal, $resident:literal, $ctas:literal, $plain:ident, $causal:ident;)*) => {$(
        entries!(@one $d, $mt, $warps, $keys, $stages, $resident, false, $plain);
        entries!(@one $d, $mt, $warps, $keys, $stages, $resident, true, $causal);
    )*};
    (@one $d:literal, $mt:literal, $warps:literal, $keys:literal, $stages:literal, $resident:literal, $causal:literal, $name:ident) => {
        #[cfg_attr(feature = "cuda-std", cuda_std::kernel)]
        #[cfg_attr(not(feature = "cuda-std"), unsafe(no_mangle))]
        #[allow(clippy::too_many_arguments)]
        pub unsafe extern "ptx-kernel" fn $name(
            q: *const u8, k: *const u8, v: *const u8, q_stride_b: i64, q_stride_h: i64, q_stride_n: i64,
            k_stride_b: i64, k_stride_h: i64, k_stride_n: i64, v_stride_b: i64, v_stride_h: i64, v_stride_n: i64,
            o: *mut u8, o_stride_b: i64, o_stride_h: i64, o_stride_n: i64, lse: *mut f32,
            seqlen_q: u32, seqlen_kv: u32, group: u32, softmax_scale: f32,
        ) {
            let q = Tensor { data: q, stride_b: q_stride_b, stride_h: q_stride_h, stride_n: q_stride_n };
            let k = Tensor { data: k, stride_b: k_stride_b, stride_h: k_stride_h, stride_n: k_stride_n };
            let v = Tensor { data: v, stride_b: v_stride_b, stride_h: v_stride_h, stride_n: v_stride_n };
            let o = Tensor { data: o, stride_b: o_stride_b, stride_h: o_stride_h, stride_n: o_stride_n };
            let args = Args { q, k, v, o, lse, seqlen_q, seqlen_kv, group, softmax_scale };
            unsafe { attention::<$d, $mt, $warps, $keys, $stages, $resident, $causal>(args) }
        }
    };
}

crate::baseline_table!(entries);
