//! Every kernel variant, as data: the device's entry points and the host's launches are generated from one table.

use crate::layout::{KV_BLOCK, block_bytes};

/// The numeric scheme of the softmax and of P.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// u8 P scaled by the block's row maximum, integer row sums, float16 softmax (docs/kernel-abi.md).
    Default,
    /// arXiv 2409.16997: int8 P scaled by the running maximum, float32 softmax.
    Paper,
}

/// One INT8 attention kernel and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionVariant {
    /// Entry point in the module's PTX.
    pub entry: &'static str,
    /// Head dimension.
    pub head_dim: usize,
    /// Whether the causal mask is applied.
    pub causal: bool,
    /// Numeric scheme.
    pub scheme: Scheme,
    /// Query rows of one CTA.
    pub tile_m: usize,
    /// Threads of one CTA.
    pub threads: usize,
    /// Dynamic shared memory of one CTA.
    pub shared_bytes: usize,
    /// CTAs an SM should hold; written into the PTX as `.minnctapersm`.
    pub min_ctas: usize,
}

/// One float16 attention kernel (the yardstick) and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaselineVariant {
    /// Entry point in the module's PTX.
    pub entry: &'static str,
    /// Head dimension.
    pub head_dim: usize,
    /// Whether the causal mask is applied.
    pub causal: bool,
    /// Query rows of one CTA.
    pub tile_m: usize,
    /// Threads of one CTA.
    pub threads: usize,
    /// Dynamic shared memory of one CTA.
    pub shared_bytes: usize,
    /// CTAs an SM should hold; written into the PTX as `.minnctapersm`.
    pub min_ctas: usize,
}

/// A PTX module: the name of its file and of its `--cfg kernels` value, and the target it is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// File stem in `host/ptx`.
    pub name: &'static str,
    /// `-Ctarget-cpu`.
    pub target: &'static str,
}

/// Where the teams' exchange begins in the shared memory of an attention CTA: behind a ring of `slots` K or V blocks and two
/// blocks' key scales.
#[must_use]
pub const fn exchange_offset(head_dim: usize, slots: usize) -> usize {
    slots * block_bytes(head_dim) + 2 * KV_BLOCK * 4
}

/// Shared memory in which the `team` warps of `16 * mt` query rows exchange row maxima and P.
#[must_use]
pub const fn exchange_bytes(mt: usize, team: usize) -> usize {
    if team == 1 { 0 } else { team * MAXIMA_BYTES + 16 * mt * KV_BLOCK }
}

/// Row maxima of a warp in the exchange: two words a row of eight.
pub const MAXIMA_BYTES: usize = 8 * 8;

/// Shared memory of an attention CTA.
#[must_use]
pub const fn attention_shared_bytes(head_dim: usize, slots: usize, mt: usize, warps: usize, team: usize) -> usize {
    exchange_offset(head_dim, slots) + warps / team * exchange_bytes(mt, team)
}

/// Shared memory of a float16 attention CTA: the query tile and a ring of `stages` pairs of tiles of `keys` K and V rows.
#[must_use]
pub const fn baseline_shared_bytes(head_dim: usize, tile_m: usize, keys: usize, stages: usize) -> usize {
    2 * head_dim * (tile_m + 2 * stages * keys)
}

/// The float16 table. A row: head_dim, m16 tiles a warp, warps, keys a tile, ring stages, whether Q stays in registers,
/// CTAs an SM, entry, causal entry.
#[macro_export]
macro_rules! baseline_table {
    ($emit:ident) => {
        $emit! {
            32, 2, 4, 32, 3, true, 3, attention_f16_d32, attention_f16_d32_causal;
            64, 2, 4, 64, 2, true, 2, attention_f16_d64, attention_f16_d64_causal;
            96, 2, 4, 64, 2, false, 2, attention_f16_d96, attention_f16_d96_causal;
            128, 2, 4, 32, 2, false, 2, attention_f16_d128, attention_f16_d128_causal;
            256, 1, 4, 32, 2, false, 2, attention_f16_d256, attention_f16_d256_causal;
        }
    };
}

/// The INT8 table. A row: module, head_dim, scheme, m16 tiles a warp, warps, ring slots, CTAs an SM, warps a team,
/// causal, entry. No row spills on any architecture: where two shapes of a kernel are as fast, or the faster one spills, the
/// shape that fits stands here (docs/kernel-log.md). The paper's scheme has no d = 256: its float32 scores leave no room.
#[macro_export]
macro_rules! attention_table {
    ($emit:ident) => {
        $emit! {
            "attention_d32", 32, Default, 1, 4, 4, 3, 1, false, attention_int8_default_d32;
            "attention_d32", 32, Default, 1, 4, 4, 3, 1, true, attention_int8_default_d32_causal;
            "attention_d32", 32, Paper, 1, 4, 4, 3, 1, false, attention_int8_paper_d32;
            "attention_d32", 32, Paper, 1, 4, 4, 3, 1, true, attention_int8_paper_d32_causal;
            "attention_d64", 64, Default, 2, 4, 3, 2, 1, false, attention_int8_default_d64;
            "attention_d64", 64, Default, 1, 4, 3, 4, 1, true, attention_int8_default_d64_causal;
            "attention_d64", 64, Paper, 1, 4, 3, 2, 1, false, attention_int8_paper_d64;
            "attention_d64", 64, Paper, 1, 4, 3, 2, 1, true, attention_int8_paper_d64_causal;
            "attention_d96", 96, Default, 1, 4, 3, 3, 1, false, attention_int8_default_d96;
            "attention_d96", 96, Default, 1, 4, 3, 3, 1, true, attention_int8_default_d96_causal;
            "attention_d96", 96, Paper, 1, 4, 3, 2, 1, false, attention_int8_paper_d96;
            "attention_d96", 96, Paper, 1, 4, 3, 2, 1, true, attention_int8_paper_d96_causal;
            "attention_d128", 128, Default, 2, 4, 3, 2, 2, false, attention_int8_default_d128;
            "attention_d128", 128, Default, 2, 4, 3, 2, 2, true, attention_int8_default_d128_causal;
            "attention_d128", 128, Paper, 1, 4, 3, 2, 1, false, attention_int8_paper_d128;
            "attention_d128", 128, Paper, 1, 4, 3, 2, 1, true, attention_int8_paper_d128_causal;
            "attention_d256", 256, Default, 1, 4, 3, 2, 2, false, attention_int8_default_d256;
            "attention_d256", 256, Default, 1, 4, 3, 2, 2, true, attention_int8_default_d256_causal;
        }
    };
}

macro_rules! variants {
    ($($module:literal, $d:literal, $scheme:ident, $mt:literal, $warps:literal, $slots:literal, $ctas:literal, $team:literal, $causal:literal, $entry:ident;)*) => {
        &[$(AttentionVariant {
            entry: stringify!($entry), head_dim: $d, causal: $causal, scheme: Scheme::$scheme, tile_m: 16 * $mt * $warps / $team,
            threads: 32 * $warps, shared_bytes: attention_shared_bytes($d, $slots, $mt, $warps, $team), min_ctas: $ctas,
        }),*]
    };
}

/// All INT8 attention kernels.
pub const ATTENTION: &[AttentionVariant] = attention_table!(variants);

macro_rules! baseline_variants {
    ($($d:literal, $mt:literal, $warps:literal, $keys:literal, $stages:literal, $resident:literal, $ctas:literal, $plain:ident, $causal:ident;)*) => {
        &[$(
            BaselineVariant {
                entry: stringify!($plain), head_dim: $d, causal: false, tile_m: 16 * $mt * $warps, threads: 32 * $warps,
                shared_bytes: baseline_shared_bytes($d, 16 * $mt * $warps, $keys, $stages), min_ctas: $ctas,
            },
            BaselineVariant {
                entry: stringify!($causal), head_dim: $d, causal: true, tile_m: 16 * $mt * $warps, threads: 32 * $warps,
                shared_bytes: baseline_shared_bytes($d, 16 * $mt * $warps, $keys, $stages), min_ctas: $ctas,
            },
        )*]
    };
}

/// All float16 attention kernels.
pub const BASELINE: &[BaselineVariant] = baseline_table!(baseline_variants);

/// All PTX modules that `xtask build` writes.
pub const MODULES: &[Module] = &[
    Module { name: "quantize", target: "sm_80" },
    Module { name: "attention_d32", target: "sm_80" },
    Module { name: "attention_d64", target: "sm_80" },
    Module { name: "attention_d96", target: "sm_80" },
    Module { name: "attention_d128", target: "sm_80" },
    Module { name: "attention_d256", target: "sm_80" },
    Module { name: "baseline_f16", target: "sm_80" },
];

/// The INT8 attention kernel for a head dim, mask and scheme.
#[must_use]
pub fn attention(head_dim: usize, causal: bool, scheme: Scheme) -> Option<&'static AttentionVariant> {
    ATTENTION.iter().find(|v| v.head_dim == head_dim && v.causal == causal && v.scheme == scheme)
}

/// The float16 attention kernel for a head dim and mask.
#[must_use]
pub fn baseline(head_dim: usize, causal: bool) -> Option<&'static BaselineVariant> {
    BASELINE.iter().find(|v| v.head_dim == head_dim && v.causal == causal)
}
