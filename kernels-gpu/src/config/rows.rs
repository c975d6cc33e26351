//! The attention kernels: a row each, and everything else about them generated from the rows.
//!
//! The name of a row is the name of its PTX module, of its entry point and of the `--cfg` that selects it. A list of kernels,
//! wherever one is needed, is one of these macros applied to another that takes the rows apart.
//!
//! A kernel for another head dim is another row: `cargo xtask build` compiles it, `cargo xtask check` shows its registers and
//! spills, the library launches it and the tests run it.

/// The INT8 kernels for every GPU. `head_dim`: of Q and K, `head_dim_v`: of V and the output, no larger; `m16_tiles`: m16 tiles of query rows a warp; `slots`: K or V blocks in shared memory,
/// or pieces of them ([`PIECE_DIMS`](super::sm80::PIECE_DIMS));
/// `ctas`: CTAs that an SM should hold on GPUs of each class of shared memory (`CLASSES`: 99, 163 and 227 KiB a CTA), 0 where the
/// class has another row; `team`: warps that share rows. A row that is not for the largest class has the KiB of the
/// smallest that it is for in its name. `kind`:
/// [`Kind`](super::Kind), plain where it is left out.
///
/// Where two shapes of a kernel are as fast, the one that does not spill stands here (docs/kernel-log/sm80.md); docs/testing.md lists what spills all
/// the same. The paper's scheme has no 256 and 512: its float32 scores leave no registers for so wide a head.
macro_rules! sm80_rows {
    ($emit:ident) => {
        $emit! {
            attention_sm80_d32_default { head_dim: 32, head_dim_v: 32, scheme: Default, m16_tiles: 1, warps: 4, slots: 4, ctas: [3, 3, 3], team: 1 }
            attention_sm80_d32_paper { head_dim: 32, head_dim_v: 32, scheme: Paper, m16_tiles: 1, warps: 4, slots: 4, ctas: [3, 3, 3], team: 1 }
            attention_sm80_d64_default { head_dim: 64, head_dim_v: 64, scheme: Default, m16_tiles: 2, warps: 4, slots: 3, ctas: [2, 2, 2], team: 1 }
            attention_sm80_d64_paper { head_dim: 64, head_dim_v: 64, scheme: Paper, m16_tiles: 1, warps: 4, slots: 3, ctas: [2, 2, 2], team: 1 }
            attention_sm80_d96_default { head_dim: 96, head_dim_v: 96, scheme: Default, m16_tiles: 1, warps: 4, slots: 3, ctas: [2, 3, 3], team: 1 }
            attention_sm80_d96_paper { head_dim: 96, head_dim_v: 96, scheme: Paper, m16_tiles: 1, warps: 4, slots: 3, ctas: [2, 2, 2], team: 1 }
            attention_sm80_d128_default { head_dim: 128, head_dim_v: 128, scheme: Default, m16_tiles: 2, warps: 4, slots: 2, ctas: [2, 2, 2], team: 2 }
            attention_sm80_d128_paper { head_dim: 128, head_dim_v: 128, scheme: Paper, m16_tiles: 1, warps: 4, slots: 2, ctas: [2, 2, 2], team: 1 }
            attention_sm80_d256_v128_default { head_dim: 256, head_dim_v: 128, scheme: Default, m16_tiles: 1, warps: 4, slots: 2, ctas: [1, 2, 2], team: 2 }
            attention_sm80_d256_default_kib99 { head_dim: 256, head_dim_v: 256, scheme: Default, m16_tiles: 1, warps: 8, slots: 2, ctas: [1, 0, 0], team: 2 }
            attention_sm80_d256_default { head_dim: 256, head_dim_v: 256, scheme: Default, m16_tiles: 1, warps: 4, slots: 2, ctas: [0, 2, 2], team: 2 }
            attention_sm80_d512_default { head_dim: 512, head_dim_v: 512, scheme: Default, m16_tiles: 1, warps: 8, slots: 2, ctas: [1, 1, 1], team: 4 }
            attention_sm80_d32_default_general { head_dim: 32, head_dim_v: 32, scheme: Default, m16_tiles: 1, warps: 4, slots: 4, ctas: [3, 3, 3], team: 1, kind: General }
            attention_sm80_d32_paper_general { head_dim: 32, head_dim_v: 32, scheme: Paper, m16_tiles: 1, warps: 4, slots: 4, ctas: [3, 3, 3], team: 1, kind: General }
            attention_sm80_d64_default_general { head_dim: 64, head_dim_v: 64, scheme: Default, m16_tiles: 1, warps: 4, slots: 3, ctas: [2, 3, 3], team: 1, kind: General }
            attention_sm80_d64_paper_general { head_dim: 64, head_dim_v: 64, scheme: Paper, m16_tiles: 1, warps: 4, slots: 3, ctas: [2, 3, 3], team: 1, kind: General }
            attention_sm80_d96_default_general { head_dim: 96, head_dim_v: 96, scheme: Default, m16_tiles: 1, warps: 4, slots: 3, ctas: [2, 3, 3], team: 1, kind: General }
            attention_sm80_d96_paper_general { head_dim: 96, head_dim_v: 96, scheme: Paper, m16_tiles: 1, warps: 4, slots: 3, ctas: [2, 3, 3], team: 1, kind: General }
            attention_sm80_d128_default_general { head_dim: 128, head_dim_v: 128, scheme: Default, m16_tiles: 1, warps: 4, slots: 2, ctas: [2, 2, 2], team: 1, kind: General }
            attention_sm80_d128_paper_general { head_dim: 128, head_dim_v: 128, scheme: Paper, m16_tiles: 1, warps: 4, slots: 2, ctas: [2, 2, 2], team: 1, kind: General }
            attention_sm80_d256_v128_default_general { head_dim: 256, head_dim_v: 128, scheme: Default, m16_tiles: 1, warps: 8, slots: 2, ctas: [1, 1, 1], team: 2, kind: General }
            attention_sm80_d256_default_general { head_dim: 256, head_dim_v: 256, scheme: Default, m16_tiles: 1, warps: 8, slots: 2, ctas: [1, 1, 1], team: 2, kind: General }
            attention_sm80_d512_default_general { head_dim: 512, head_dim_v: 512, scheme: Default, m16_tiles: 1, warps: 8, slots: 2, ctas: [1, 1, 1], team: 4, kind: General }
        }
    };
}

/// The INT8 kernels for compute capability 9.0. `warpgroups`: of consumers; `slots`: of each ring of K or V blocks; `part`: dims of the
/// output whose products are summed at a time; `apart`: special and narrow blocks have loop bodies of their own; `trimmed`: of
/// a tile's last block, the steps of 32 keys that no row sees are left out;
/// `handover`: the step of a block's P after which a warp leaves the special function unit to the next, and `early` whether before that step's products; `from_keys`: the fewest
/// keys from which the kernel was measured to be faster than the one for every GPU.
macro_rules! sm90a_rows {
    ($emit:ident) => {
        $emit! {
            attention_sm90a_d64_default { head_dim: 64, scheme: Default, warpgroups: 3, slots: 6, part: 64, apart: true, trimmed: false, handover: 0, early: true, from_keys: 384 }
            attention_sm90a_d64_paper { head_dim: 64, scheme: Paper, warpgroups: 2, slots: 6, part: 64, apart: true, trimmed: false, handover: 1, early: false, from_keys: 0 }
            attention_sm90a_d96_default { head_dim: 96, scheme: Default, warpgroups: 3, slots: 5, part: 96, apart: false, trimmed: true, handover: 0, early: false, from_keys: 384 }
            attention_sm90a_d128_default { head_dim: 128, scheme: Default, warpgroups: 3, slots: 4, part: 64, apart: false, trimmed: false, handover: 0, early: false, from_keys: 256 }
            attention_sm90a_d128_paper { head_dim: 128, scheme: Paper, warpgroups: 2, slots: 4, part: 64, apart: false, trimmed: false, handover: 1, early: false, from_keys: 0 }
            attention_sm90a_d256_default { head_dim: 256, scheme: Default, warpgroups: 2, slots: 2, part: 64, apart: false, trimmed: true, handover: 1, early: false, from_keys: 256 }
        }
    };
}

/// The float16 kernels. `m16_tiles` as above; `keys`: of a K or V tile; `stages`: pairs of these in shared memory;
/// `q_in_registers`: else Q is read from shared memory for every tile; `ctas` as above.
macro_rules! baseline_rows {
    ($emit:ident) => {
        $emit! {
            baseline_f16_d32 { head_dim: 32, m16_tiles: 2, warps: 4, keys: 32, stages: 3, q_in_registers: true, ctas: [3, 3, 3] }
            baseline_f16_d64 { head_dim: 64, m16_tiles: 2, warps: 4, keys: 64, stages: 2, q_in_registers: true, ctas: [2, 2, 2] }
            baseline_f16_d96 { head_dim: 96, m16_tiles: 2, warps: 4, keys: 64, stages: 2, q_in_registers: false, ctas: [1, 2, 2] }
            baseline_f16_d128 { head_dim: 128, m16_tiles: 2, warps: 4, keys: 32, stages: 2, q_in_registers: false, ctas: [1, 2, 2] }
            baseline_f16_d256 { head_dim: 256, m16_tiles: 1, warps: 4, keys: 32, stages: 2, q_in_registers: false, ctas: [1, 1, 2] }
        }
    };
}

/// The kernels for short K and V, which quantize and attend in one launch (`config::short`). `m16_tiles`: of query rows that a warp has at a
/// time; `most_warps`: of a CTA; `min_ctas`: CTAs of so many that an SM should hold; `any_queries`, `to_keys`: the most
/// keys up to which the kernel was measured to be faster than two, with many more queries than keys and with no more; `to_keys_filled`: the latter where
/// CTAs fill the multiprocessors once.
macro_rules! short_rows {
    ($emit:ident) => {
        $emit! {
            attention_short_d32 { head_dim: 32, m16_tiles: 1, most_warps: 8, min_ctas: 3, any_queries: 64, to_keys: 256, to_keys_filled: 256 }
            attention_short_d64 { head_dim: 64, m16_tiles: 1, most_warps: 16, min_ctas: 1, any_queries: 128, to_keys: 384, to_keys_filled: 512 }
            attention_short_d128 { head_dim: 128, m16_tiles: 1, most_warps: 8, min_ctas: 1, any_queries: 0, to_keys: 256, to_keys_filled: 512 }
        }
    };
}

/// The modules that convert between floats and codes, and the part that each is of; their entry points are named in the parts' `launch` modules.
/// `overlaps`: as of the decode kernels, of the launch in front and of the one behind.
macro_rules! conversion_rows {
    ($emit:ident) => {
        $emit! {
            quantize_f16 { part: "quantize", overlaps: false }
            quantize_bf16 { part: "quantize", overlaps: false }
            quantize_f32 { part: "quantize", overlaps: false }
            quantize_f16_d32 { part: "quantize", overlaps: false }
            quantize_f16_paper { part: "quantize", overlaps: false }
            quantize_f16_d32_paper { part: "quantize", overlaps: false }
            quantize_bf16_d32 { part: "quantize", overlaps: false }
            v_amax { part: "quantize", overlaps: false }
            quantize_wide { part: "quantize", overlaps: false }
            append_f16 { part: "quantize", overlaps: false }
            append_bf16 { part: "quantize", overlaps: false }
            append_f32 { part: "quantize", overlaps: false }
            append_few_f16 { part: "quantize", overlaps: true }
            append_few_bf16 { part: "quantize", overlaps: true }
            append_few_f32 { part: "quantize", overlaps: true }
            gather_pages { part: "quantize", overlaps: false }
            convert_pages { part: "quantize", overlaps: false }
            dequantize_f16 { part: "dequantize", overlaps: false }
            dequantize_bf16 { part: "dequantize", overlaps: false }
            dequantize_f32 { part: "dequantize", overlaps: false }
        }
    };
}

/// The decode kernels. `team`: warps of a CTA, which have a part of the output's dims each; `min_ctas`: CTAs that an SM should hold, as many
/// as the GPUs with the least shared memory have room for; a plan counts with what a GPU has. `v4`: pages may have V in 4 bits, which makes the loop two.
/// `overlaps`: the merge behind it may start before it ends, for which
/// there is an instruction from compute capability 9.0 on; these kernels are in modules for that alone.
macro_rules! decode_rows {
    ($emit:ident) => {
        $emit! {
            decode_d32 { head_dim: 32, team: 1, min_ctas: 6, v4: false, overlaps: false }
            decode_d64 { head_dim: 64, team: 1, min_ctas: 3, v4: false, overlaps: false }
            decode_d96 { head_dim: 96, team: 1, min_ctas: 2, v4: false, overlaps: false }
            decode_d128 { head_dim: 128, team: 1, min_ctas: 1, v4: false, overlaps: false }
            decode_d256 { head_dim: 256, team: 2, min_ctas: 1, v4: false, overlaps: false }
            decode_v4_d64 { head_dim: 64, team: 1, min_ctas: 3, v4: true, overlaps: false }
            decode_v4_d128 { head_dim: 128, team: 2, min_ctas: 1, v4: true, overlaps: false }
            decode_sm90_d64 { head_dim: 64, team: 1, min_ctas: 3, v4: false, overlaps: true }
            decode_sm90_d128 { head_dim: 128, team: 1, min_ctas: 1, v4: false, overlaps: true }
            decode_sm90_v4_d64 { head_dim: 64, team: 1, min_ctas: 3, v4: true, overlaps: true }
            decode_sm90_v4_d128 { head_dim: 128, team: 2, min_ctas: 1, v4: true, overlaps: true }
        }
    };
}

/// The modules that merge states of attention; their entry points are in `config::decode`. `overlaps`: as of the decode kernels.
macro_rules! merge_rows {
    ($emit:ident) => {
        $emit! {
            merge { overlaps: false }
            merge_sm90 { overlaps: true }
        }
    };
}

pub(crate) use {baseline_rows, conversion_rows, decode_rows, merge_rows, short_rows, sm80_rows, sm90a_rows};
