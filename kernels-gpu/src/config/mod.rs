//! Every kernel, as data: the device's entry points and the host's launches are generated from the tables in `rows`.

pub mod decode;
mod family;
mod modules;
pub(crate) mod rows;
mod scheme;
pub mod shared_memory;
pub mod shipping;
pub mod short;
pub mod sm80;
pub mod sm90a;

pub use family::Family;
pub use modules::{MODULES, Module};
pub use scheme::{Scheme, UnknownScheme};

use crate::layout::{HEAD_DIMS, KV_BLOCK, packed_dim};
use crate::params::AttentionParams;
use rows::{baseline_rows, sm80_rows, sm90a_rows};
use shared_memory::{CLASSES, class_of};

/// What a kernel knows of the things that change a score (docs/kernel-abi.md, "What changes a score").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Windows and sinks.
    #[default]
    Plain,
    /// Softcap, ALiBi, bias and mask too.
    General,
}

/// Bytes of shared memory in which a warp notes what it needs to know of a row of a special block (`attention/softmax`).
pub const NOTE_BYTES: usize = 16;
/// And in which it has the scores of a row of each of its lanes meanwhile: a word for each n8 tile.
pub const SCRATCH_BYTES: usize = KV_BLOCK / 8 * 32 * 4;

/// One INT8 attention kernel and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionVariant {
    /// Its PTX module and its entry point there.
    pub name: &'static str,
    /// Which instructions it uses, and with them its grid.
    pub family: Family,
    /// Head dimension of Q and K.
    pub head_dim: usize,
    /// Head dimension of V and of the output.
    pub head_dim_v: usize,
    /// Numeric scheme.
    pub scheme: Scheme,
    /// What it knows of the things that change a score.
    pub kind: Kind,
    /// Query rows of one CTA.
    pub tile_m: usize,
    /// Threads of one CTA.
    pub threads: usize,
    /// Dynamic shared memory of one CTA.
    pub shared_bytes: usize,
    /// CTAs that an SM should hold on GPUs of each of [`CLASSES`]; 0 where it is not for them. The most of them is written into the
    /// PTX as `.minnctapersm`.
    pub ctas: [usize; CLASSES.len()],
    /// The fewest keys from which it was measured to be faster than the kernel of the family before; with fewer the library
    /// takes that.
    pub from_keys: usize,
}

impl AttentionVariant {
    /// Whether it is the one for GPUs on which a CTA may have so many bytes of shared memory.
    #[must_use]
    pub const fn is_for(&self, shared_bytes: usize) -> bool {
        self.ctas[class_of(shared_bytes)] > 0 && self.shared_bytes <= shared_bytes
    }

    /// Whether heads of these dims, of Q and K and of V, are padded to its.
    #[must_use]
    pub const fn has(&self, [head_dim, head_dim_v]: [usize; 2]) -> bool {
        self.head_dim == packed_dim(head_dim) && self.head_dim_v == packed_dim(head_dim_v)
    }

    /// Whether it takes narrow blocks as such (docs/kernel-abi.md, "narrow").
    #[must_use]
    pub const fn takes_narrow(&self) -> bool {
        match (self.family, self.scheme, self.kind) {
            (Family::Sm90a, Scheme::Default, _) => true,
            (Family::Sm80, Scheme::Default, Kind::Plain) => sm80::takes_narrow(self.head_dim),
            _ => false,
        }
    }

    /// The KiB of shared memory a CTA that the smallest GPUs have that it is for.
    #[must_use]
    pub const fn from_kib(&self) -> usize {
        let mut class = 0;
        while self.ctas[class] == 0 {
            class += 1;
        }
        CLASSES[class]
    }

    /// The grid of a launch on a GPU of so many multiprocessors; `None` where there are more tiles than the kernel counts.
    #[must_use]
    pub const fn grid(&self, params: &AttentionParams, multiprocessors: u32) -> Option<[u32; 3]> {
        let AttentionParams { batch, heads_q, seqlens, .. } = *params;
        let tiles = seqlens.query_tiles(batch, params.seqlen_q, self.tile_m as u32);
        let batches = if seqlens.packed_q == 0 { batch } else { 1 };
        match self.family {
            Family::Sm80 => Some([tiles, heads_q, batches]),
            Family::Sm90a => sm90a::grid(params, tiles as u64 * heads_q as u64 * batches as u64, multiprocessors),
        }
    }
}

/// One float16 attention kernel (the yardstick) and how it is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaselineVariant {
    /// Its PTX module and its entry point there.
    pub name: &'static str,
    /// Head dimension.
    pub head_dim: usize,
    /// Query rows of one CTA.
    pub tile_m: usize,
    /// Threads of one CTA.
    pub threads: usize,
    /// Dynamic shared memory of one CTA.
    pub shared_bytes: usize,
    /// CTAs that an SM should hold on GPUs of each of [`CLASSES`]; 0 where it is not for them. The most of them is written into the
    /// PTX as `.minnctapersm`.
    pub ctas: [usize; CLASSES.len()],
}

/// Shared memory of a float16 attention CTA: the query tile and a ring of `stages` pairs of tiles of `keys` K and V rows.
#[must_use]
pub const fn baseline_shared_bytes(head_dim: usize, tile_m: usize, keys: usize, stages: usize) -> usize {
    2 * head_dim * (tile_m + 2 * stages * keys)
}

macro_rules! kind {
    () => {
        Kind::Plain
    };
    ($kind:ident) => {
        Kind::$kind
    };
}

macro_rules! sm80_variants {
    ($($name:ident { head_dim: $d:literal, head_dim_v: $dv:literal, scheme: $scheme:ident, m16_tiles: $mt:literal, warps: $warps:literal,
        slots: $slots:literal,
        ctas: $ctas:expr, team: $team:literal $(, kind: $kind:ident)? })*) => {
        &[$(AttentionVariant {
            name: stringify!($name), family: Family::Sm80, head_dim: $d, head_dim_v: $dv, scheme: Scheme::$scheme, kind: kind!($($kind)?),
            tile_m: 16 * $mt * $warps / $team, threads: 32 * $warps,
            shared_bytes: sm80::shared_bytes($d, $slots, $mt, $warps, $team), ctas: $ctas, from_keys: 0,
        }),*]
    };
}

macro_rules! sm90a_variants {
    ($($name:ident { head_dim: $d:literal, scheme: $scheme:ident, warpgroups: $wgs:literal, slots: $slots:literal,
        part: $part:literal, apart: $apart:literal, trimmed: $trimmed:literal, handover: $handover:literal, early: $early:literal, from_keys: $from:literal })*) => {
        &[$(AttentionVariant {
            name: stringify!($name), family: Family::Sm90a, head_dim: $d, head_dim_v: $d, scheme: Scheme::$scheme, kind: Kind::Plain,
            tile_m: sm90a::tile_m($wgs), threads: sm90a::threads($wgs),
            shared_bytes: sm90a::shared_bytes($d, $wgs, $slots), ctas: [0, 0, 1], from_keys: $from,
        }),*]
    };
}

macro_rules! baseline_variants {
    ($($name:ident { head_dim: $d:literal, m16_tiles: $mt:literal, warps: $warps:literal, keys: $keys:literal, stages: $stages:literal,
        q_in_registers: $resident:literal, ctas: $ctas:expr })*) => {
        &[$(BaselineVariant {
            name: stringify!($name), head_dim: $d, tile_m: 16 * $mt * $warps, threads: 32 * $warps,
            shared_bytes: baseline_shared_bytes($d, 16 * $mt * $warps, $keys, $stages), ctas: $ctas,
        }),*]
    };
}

const SM80: &[AttentionVariant] = sm80_rows!(sm80_variants);
const SM90A: &[AttentionVariant] = sm90a_rows!(sm90a_variants);

/// All INT8 attention kernels.
pub const ATTENTION: &[AttentionVariant] = &concat::<_, { SM80.len() + SM90A.len() }>(&[SM80, SM90A]);

/// All float16 attention kernels.
pub const BASELINE: &[BaselineVariant] = baseline_rows!(baseline_variants);

/// The parts, one after the other; `N` in all, and the first not empty.
const fn concat<T: Copy, const N: usize>(parts: &[&[T]]) -> [T; N] {
    let mut all = [parts[0][0]; N];
    let (mut part, mut from, mut to) = (0, 0, 0);
    while to < N {
        if from == parts[part].len() {
            (part, from) = (part + 1, 0);
        } else {
            all[to] = parts[part][from];
            (from, to) = (from + 1, to + 1);
        }
    }
    all
}

/// The plain INT8 attention kernel of a family for a head dim, or the one that it is padded to, and scheme; the one for the GPUs with
/// most shared memory, where there are several.
#[must_use]
pub fn attention(family: Family, head_dim: usize, scheme: Scheme) -> Option<&'static AttentionVariant> {
    attention_on(CLASSES[CLASSES.len() - 1] << 10, family, [head_dim; 2], scheme, Kind::Plain)
}

/// The one of this kind for these head dims, of Q and K and of V, and for GPUs on which a CTA may have so many bytes of shared memory.
#[must_use]
pub fn attention_on(
    shared_bytes: usize,
    family: Family,
    [head_dim, head_dim_v]: [usize; 2],
    scheme: Scheme,
    kind: Kind,
) -> Option<&'static AttentionVariant> {
    let is =
        |v: &&AttentionVariant| (v.family, v.scheme, v.kind) == (family, scheme, kind) && v.has([head_dim, head_dim_v]);
    ATTENTION.iter().filter(is).find(|v| v.is_for(shared_bytes))
}

/// The head dims for which one of these families has an INT8 attention kernel of this scheme, in order.
pub fn head_dims(families: &[Family], scheme: Scheme) -> impl Iterator<Item = usize> {
    let has = move |head_dim: &usize| families.iter().any(|&family| attention(family, *head_dim, scheme).is_some());
    HEAD_DIMS.into_iter().filter(has)
}

/// The float16 attention kernel for a head dim.
#[must_use]
pub fn baseline(head_dim: usize) -> Option<&'static BaselineVariant> {
    BASELINE.iter().find(|v| v.head_dim == head_dim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::SeqLens;

    #[test]
    fn variants_stand_once_in_modules_of_their_target() {
        for (i, v) in ATTENTION.iter().enumerate() {
            let module = MODULES.iter().find(|module| module.name == v.name).unwrap();
            assert_eq!(module.target, v.family.target(), "{}", v.name);
            let of_the_largest = v.ctas[CLASSES.len() - 1] > 0;
            let found = attention_on(227 << 10, v.family, [v.head_dim, v.head_dim_v], v.scheme, v.kind);
            assert_eq!(found == Some(v), of_the_largest, "{}", v.name);
            assert!(v.head_dim_v <= v.head_dim, "{}", v.name);
            assert!(ATTENTION[..i].iter().all(|other| other.name != v.name), "{}", v.name);
        }
    }

    #[test]
    fn names_say_what_a_kernel_is() {
        extern crate std;
        use std::format;
        for v in ATTENTION {
            let family = format!("{:?}", v.family).to_lowercase();
            let of_the_largest = v.ctas[CLASSES.len() - 1] > 0;
            let kib = if of_the_largest { "".into() } else { format!("_kib{}", v.from_kib()) };
            let value = if v.head_dim_v == v.head_dim { "".into() } else { format!("_v{}", v.head_dim_v) };
            let kind = if v.kind == Kind::General { "_general" } else { "" };
            assert_eq!(v.name, format!("attention_{family}_d{}{value}_{}{kib}{kind}", v.head_dim, v.scheme));
        }
        for v in BASELINE {
            assert_eq!(v.name, format!("baseline_f16_d{}", v.head_dim));
        }
    }

    #[test]
    fn every_packed_head_dim_has_a_kernel_for_every_gpu() {
        for (kib, kind) in CLASSES.into_iter().flat_map(|kib| [(kib, Kind::Plain), (kib, Kind::General)]) {
            let of_class = |scheme| {
                let alike = SM80.iter().filter(|v| v.head_dim_v == v.head_dim);
                alike.filter(move |v| (v.scheme, v.kind) == (scheme, kind) && v.is_for(kib << 10))
            };
            assert!(of_class(Scheme::Default).map(|v| v.head_dim).eq(HEAD_DIMS), "{kib} {kind:?}");
            assert!(of_class(Scheme::Paper).map(|v| v.head_dim).eq([32, 64, 96, 128]), "{kib} {kind:?}");
        }
        assert!(ATTENTION.iter().all(|v| HEAD_DIMS.contains(&v.head_dim)));
    }

    #[test]
    fn a_kernel_fits_the_gpus_that_it_is_for() {
        let attention = ATTENTION.iter().map(|v| (v.name, v.ctas, v.shared_bytes));
        for (name, ctas, shared_bytes) in attention.chain(BASELINE.iter().map(|v| (v.name, v.ctas, v.shared_bytes))) {
            let classes = || CLASSES.iter().zip(ctas).filter(|(_, ctas)| *ctas > 0);
            assert!(
                classes().count() > 0 && classes().all(|(kib, _)| shared_bytes <= kib << 10),
                "{name}: {shared_bytes}"
            );
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
        let [general, hopper] = [(Family::Sm80, 64), (Family::Sm90a, 192)]
            .map(|(family, tile_m)| AttentionVariant { tile_m, ..*attention(family, 64, Scheme::Default).unwrap() });
        let params = |batch, heads_q, total_q, packed_q| {
            let seqlens = SeqLens { total_q, packed_q, ..SeqLens::NONE };
            AttentionParams { batch, heads_q, seqlens, ..AttentionParams::NONE }
        };
        assert_eq!(general.grid(&params(2, 3, 1000, 0), 132), Some([16, 3, 2]));
        assert_eq!(hopper.grid(&params(2, 3, 1000, 0), 132), Some([36, 1, 1]));
        assert_eq!(hopper.grid(&params(4, 32, 1000, 0), 132), Some([132, 1, 1]));
        // Packed: whole tiles of all tokens, and a tile more for each sequence.
        assert_eq!(general.grid(&params(7, 3, 1000, 1), 132), Some([15 + 7, 3, 1]));
        assert_eq!(hopper.grid(&params(7, 3, 1000, 1), 132), Some([(5 + 7) * 3, 1, 1]));
        // 65535 * 65535 = 2^32 - 131071 places: two rounds of 65536 multiprocessors would step past the end.
        assert_eq!(hopper.grid(&params(65535, 65535, 192, 0), 65535), Some([65535, 1, 1]));
        assert_eq!(hopper.grid(&params(65535, 65535, 192, 0), 65536), None);
        assert_eq!(hopper.grid(&params(65535, 65535, 193, 0), 132), None);
        assert_eq!(hopper.grid(&params(u32::MAX, 2, 1, 0), 132), None);
    }
}
