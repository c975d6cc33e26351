//! Every kernel variant, as data: the device's entry points and the host's launches are generated from one table.

pub mod hopper;
pub mod shipping;

use crate::layout::{KV_BLOCK, block_bytes};
use core::fmt;

/// Kernels that share their instructions and the way they are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// `mma.sync`: every GPU of compute capability 8.0 or later; a CTA for each tile of query rows.
    Sm80,
    /// `wgmma` and bulk copies: compute capability 9.0 (Hopper) and no other; CTAs that stay and share all tiles.
    Sm90a,
}

impl Family {
    /// All families, the most general first.
    pub const ALL: [Self; 2] = [Self::Sm80, Self::Sm90a];

    /// The target that its modules are compiled for.
    #[must_use]
    pub const fn target(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm90a => "sm_90a",
        }
    }

    /// Whether a GPU of this compute capability runs it, with a driver for this CUDA version (`1000 * major + 10 * minor`): one for
    /// CUDA 12.4 is the first to know the PTX of sm_90a's kernels.
    #[must_use]
    pub const fn runs_on(self, (major, minor): (u32, u32), cuda: u32) -> bool {
        match self {
            Self::Sm80 => major >= 8,
            Self::Sm90a => major == 9 && minor == 0 && cuda >= 12040,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.target())
    }
}

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
    /// Which instructions it uses, and with them its grid.
    pub family: Family,
    /// Its module in [`MODULES`].
    pub module: &'static str,
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
    /// The fewest keys from which it was measured to be faster than the kernel of the family before; with fewer the library
    /// takes that.
    pub from_keys: usize,
}

impl AttentionVariant {
    /// The grid of a launch on a GPU of so many multiprocessors; `None` where there are more tiles than the kernel counts.
    #[must_use]
    pub fn grid(&self, batch: usize, heads_q: usize, seqlen_q: usize, multiprocessors: u32) -> Option<[u32; 3]> {
        let [tiles, heads, batches] = [seqlen_q.div_ceil(self.tile_m), heads_q, batch].map(|n| u32::try_from(n).ok());
        let (tiles, heads, batches) = (tiles?, heads?, batches?);
        match self.family {
            Family::Sm80 => Some([tiles, heads, batches]),
            Family::Sm90a => {
                let all = tiles.checked_mul(heads)?.checked_mul(batches)?;
                // A CTA's place in the list goes less than two rounds past the end.
                all.checked_add(multiprocessors.checked_mul(2)?)?;
                Some([all.min(multiprocessors), 1, 1])
            }
        }
    }
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
    /// The least PTX version, major and minor: a code generator knows what the target needs, and not what the kernels' inline
    /// assembly does.
    pub ptx: (u32, u32),
}

/// Bytes that an attention CTA parks in shared memory (`attention/parked.rs`).
pub const PARKED_BYTES: usize = 32;

/// Where that is: behind a ring of `slots` K or V blocks and two blocks' key factors.
#[must_use]
pub const fn parked_offset(head_dim: usize, slots: usize) -> usize {
    slots * block_bytes(head_dim) + 2 * KV_BLOCK * 4
}

/// Where the teams' exchange begins: behind that.
#[must_use]
pub const fn exchange_offset(head_dim: usize, slots: usize) -> usize {
    parked_offset(head_dim, slots) + PARKED_BYTES
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

/// The INT8 table for sm_90a. A row: module, head_dim, scheme, consumer warpgroups, ring slots, the step of a block's P after which
/// a warp leaves the special function unit to the next, keys from which it is the faster one, causal, entry.
#[macro_export]
macro_rules! hopper_table {
    ($emit:ident) => {
        $emit! {
            "hopper_d64", 64, Default, 3, 6, 0, 384, false, attention_int8_default_d64_sm90a;
            "hopper_d64", 64, Default, 3, 6, 0, 384, true, attention_int8_default_d64_sm90a_causal;
            "hopper_d64", 64, Paper, 2, 6, 1, 0, false, attention_int8_paper_d64_sm90a;
            "hopper_d64", 64, Paper, 2, 6, 1, 0, true, attention_int8_paper_d64_sm90a_causal;
            "hopper_d128", 128, Default, 3, 4, 0, 256, false, attention_int8_default_d128_sm90a;
            "hopper_d128", 128, Default, 3, 4, 0, 256, true, attention_int8_default_d128_sm90a_causal;
            "hopper_d128", 128, Paper, 2, 4, 1, 0, false, attention_int8_paper_d128_sm90a;
            "hopper_d128", 128, Paper, 2, 4, 1, 0, true, attention_int8_paper_d128_sm90a_causal;
        }
    };
}

macro_rules! variants {
    ($($module:literal, $d:literal, $scheme:ident, $mt:literal, $warps:literal, $slots:literal, $ctas:literal, $team:literal, $causal:literal, $entry:ident;)*) => {
        &[$(AttentionVariant {
            family: Family::Sm80, module: $module, entry: stringify!($entry), head_dim: $d, causal: $causal, scheme: Scheme::$scheme,
            tile_m: 16 * $mt * $warps / $team, threads: 32 * $warps,
            shared_bytes: attention_shared_bytes($d, $slots, $mt, $warps, $team), min_ctas: $ctas, from_keys: 0,
        }),*]
    };
}

macro_rules! hopper_variants {
    ($($module:literal, $d:literal, $scheme:ident, $wgs:literal, $slots:literal, $turn:literal, $from:literal, $causal:literal, $entry:ident;)*) => {
        &[$(AttentionVariant {
            family: Family::Sm90a, module: $module, entry: stringify!($entry), head_dim: $d, causal: $causal, scheme: Scheme::$scheme,
            tile_m: hopper::WARPGROUP_ROWS * $wgs, threads: hopper::threads($wgs),
            shared_bytes: hopper::shared_bytes($d, $wgs, $slots), min_ctas: 1, from_keys: $from,
        }),*]
    };
}

const SM80: &[AttentionVariant] = attention_table!(variants);
const SM90A: &[AttentionVariant] = hopper_table!(hopper_variants);

/// All INT8 attention kernels.
pub const ATTENTION: &[AttentionVariant] = &{
    let mut all = [SM80[0]; SM80.len() + SM90A.len()];
    let mut i = 0;
    while i < all.len() {
        all[i] = if i < SM80.len() { SM80[i] } else { SM90A[i - SM80.len()] };
        i += 1;
    }
    all
};

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

/// A module of kernels that every GPU from compute capability 8.0 on runs.
const fn sm80(name: &'static str) -> Module {
    Module { name, target: Family::Sm80.target(), ptx: (7, 0) }
}

/// A module of kernels for compute capability 9.0. `wgmma` of u8 and s8 came with PTX 8.4.
const fn sm90a(name: &'static str) -> Module {
    Module { name, target: Family::Sm90a.target(), ptx: (8, 4) }
}

/// The module of the float16 kernels.
pub const BASELINE_MODULE: &str = "baseline_f16";

/// All PTX modules that `xtask build` writes.
pub const MODULES: &[Module] = &[
    sm80("quantize"),
    sm80("attention_d32"),
    sm80("attention_d64"),
    sm80("attention_d96"),
    sm80("attention_d128"),
    sm80("attention_d256"),
    sm90a("hopper_d64"),
    sm90a("hopper_d128"),
    sm80(BASELINE_MODULE),
];

/// The INT8 attention kernel of a family for a head dim, mask and scheme.
#[must_use]
pub fn attention(family: Family, head_dim: usize, causal: bool, scheme: Scheme) -> Option<&'static AttentionVariant> {
    let mut variants = ATTENTION.iter().filter(|v| v.family == family);
    variants.find(|v| v.head_dim == head_dim && v.causal == causal && v.scheme == scheme)
}

/// The float16 attention kernel for a head dim and mask.
#[must_use]
pub fn baseline(head_dim: usize, causal: bool) -> Option<&'static BaselineVariant> {
    BASELINE.iter().find(|v| v.head_dim == head_dim && v.causal == causal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_stand_once_in_modules_of_their_target() {
        for (i, v) in ATTENTION.iter().enumerate() {
            let module = MODULES.iter().find(|module| module.name == v.module).unwrap();
            assert_eq!(module.target, v.family.target(), "{}", v.entry);
            assert_eq!(attention(v.family, v.head_dim, v.causal, v.scheme), Some(v));
            assert!(ATTENTION[..i].iter().all(|other| other.entry != v.entry), "{}", v.entry);
        }
    }

    #[test]
    fn one_family_runs_everywhere_and_one_on_hopper() {
        for (capability, cuda, hopper) in
            [((8, 0), 13000, false), ((9, 0), 12040, true), ((9, 0), 12030, false), ((10, 0), 13000, false)]
        {
            let runs = Family::ALL.map(|family| family.runs_on(capability, cuda));
            assert_eq!(runs, [true, hopper], "{capability:?} {cuda}");
        }
        assert!(!Family::Sm80.runs_on((7, 5), 13000));
    }

    #[test]
    fn hopper_grids_have_a_cta_a_multiprocessor_and_places_that_do_not_wrap() {
        let [general, hopper] = [(Family::Sm80, 64), (Family::Sm90a, 192)].map(|(family, tile_m)| AttentionVariant {
            tile_m,
            ..*attention(family, 64, false, Scheme::Default).unwrap()
        });
        assert_eq!(general.grid(2, 3, 1000, 132), Some([16, 3, 2]));
        assert_eq!(hopper.grid(2, 3, 1000, 132), Some([36, 1, 1]));
        assert_eq!(hopper.grid(4, 32, 1000, 132), Some([132, 1, 1]));
        // 65535 * 65535 = 2^32 - 131071 places: two rounds of 65536 multiprocessors would step past the end.
        assert_eq!(hopper.grid(65535, 65535, 192, 65535), Some([65535, 1, 1]));
        assert_eq!(hopper.grid(65535, 65535, 192, 65536), None);
        assert_eq!(hopper.grid(65535, 65535, 193, 132), None);
        assert_eq!(hopper.grid(1, 1, usize::MAX, 132), None);
    }
}
