//! What ships of the modules: machine code for which GPUs beside the PTX, and the cargo features that bring a module.

use super::shared_memory::class_of;
use super::{ATTENTION, Family, Kind, Module, Scheme};
use crate::params::dtype::BF16;
use crate::quantize::launch::{CONVERT, NARROW_DIMS, QUANTIZE_D32, QUANTIZE_F16_PAPER, QUANTIZE_WIDE};

/// A GPU architecture that machine code is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Architecture {
    /// As ptxas calls it.
    pub name: &'static str,
    /// Its compute capability, major and minor.
    pub capability: (u32, u32),
    /// KiB of shared memory that a CTA may have.
    pub shared_kib: usize,
}

impl Architecture {
    /// Whether a GPU of this compute capability runs its machine code: one of the same major version and no older minor one. A
    /// name that ends in a letter is of instructions which no other architecture has. The integrated GPUs ([`TEGRA`]) run their
    /// own alone.
    #[must_use]
    pub fn runs_on(&self, capability: (u32, u32)) -> bool {
        let exact = self.is_specific() || TEGRA.contains(&capability) || TEGRA.contains(&self.capability);
        let (major, minor) = self.capability;
        self.capability == capability || (!exact && major == capability.0 && minor <= capability.1)
    }

    /// Whether it is for one compute capability and no other, as `sm_90a`.
    const fn is_specific(&self) -> bool {
        self.name.as_bytes()[self.name.len() - 1].is_ascii_alphabetic()
    }
}

/// Compute capabilities of Tegra GPUs, with which machine code of other GPUs is not compatible (CUDA programming guide, "Binary
/// compatibility").
pub const TEGRA: [(u32, u32); 2] = [(8, 7), (10, 1)];

/// What machine code is made for. Every other GPU compiles the PTX.
pub const ARCHITECTURES: [Architecture; 7] = [
    Architecture { name: "sm_80", capability: (8, 0), shared_kib: 163 },
    Architecture { name: "sm_86", capability: (8, 6), shared_kib: 99 },
    Architecture { name: "sm_89", capability: (8, 9), shared_kib: 99 },
    Architecture { name: "sm_90", capability: (9, 0), shared_kib: 227 },
    Architecture { name: "sm_90a", capability: (9, 0), shared_kib: 227 },
    Architecture { name: "sm_100", capability: (10, 0), shared_kib: 227 },
    Architecture { name: "sm_120", capability: (12, 0), shared_kib: 99 },
];

/// The machine code that a GPU of this compute capability runs, of what there is: its own, or that of the nearest older minor version.
#[must_use]
pub fn nearest(there: impl Iterator<Item = &'static str>, capability: (u32, u32)) -> Option<&'static str> {
    let known = there.filter_map(|name| ARCHITECTURES.iter().find(|architecture| architecture.name == name));
    known.filter(|architecture| architecture.runs_on(capability)).max_by_key(|a| a.capability).map(|a| a.name)
}

/// Of which PTX machine code was made, in a word: FNV-1a of its text. It tells an old file from a new one.
#[must_use]
pub const fn checksum(ptx: &[u8]) -> u64 {
    let (mut hash, mut i) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while i < ptx.len() {
        hash = (hash ^ ptx[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

impl Module {
    /// What it is assembled for: a target with a suffix (`sm_90a`) for itself only, another one for all that came since.
    pub fn architectures(&self) -> impl Iterator<Item = &'static Architecture> + use<> {
        let target = self.target;
        let own = ARCHITECTURES.iter().find(move |architecture| architecture.name == target);
        ARCHITECTURES.iter().filter(move |architecture| match own {
            Some(own) if own.is_specific() => *architecture == own,
            Some(own) => !architecture.is_specific() && architecture.capability >= own.capability,
            None => false,
        })
    }

    /// Those of which the package has machine code: all of its architectures where a first job is likely to wait for it, the default
    /// scheme's plain kernels on the GPUs for which they are planned, and what stands around them, but for float32, heads of more than
    /// 256 dims, V of other dims than K, heads of 32 dims in bfloat16 and pages with V in 4 bits; none else, so that the package stays
    /// small (docs/decisions/0004). For the same reason a GPU of 8.9 runs that of 8.6.
    pub fn machine_code(&self) -> impl Iterator<Item = &'static Architecture> + use<> {
        let attention = ATTENTION.iter().find(|variant| variant.name == self.name);
        let usual = attention.is_some_and(|v| v.scheme == Scheme::Default && v.kind == Kind::Plain);
        let there = usual || ["quantize", "dequantize", "decode", "merge", "short"].contains(&self.part);
        let wide = attention.is_some_and(|v| v.head_dim > NARROW_DIMS || v.head_dim_v != v.head_dim);
        let seldom = [QUANTIZE_WIDE[0], QUANTIZE_D32[BF16 as usize], CONVERT];
        let seldom = seldom.iter().chain(&QUANTIZE_F16_PAPER).any(|of| of.module == self.name);
        let seldom = seldom || wide || self.name.ends_with("_f32") || self.name.contains("_v4");
        let planned = move |kib: usize| attention.is_none_or(|v| v.ctas[class_of(kib << 10)] > 0);
        self.architectures().filter(move |a| there && !seldom && a.name != "sm_89" && planned(a.shared_kib))
    }

    /// Whether it is in the published package. The yardstick is for whoever works on this repository.
    #[must_use]
    pub fn ships(&self) -> bool {
        self.part != "baseline"
    }

    /// The cargo features of the host library that have to be on for it to be built in.
    pub fn features(&self) -> impl Iterator<Item = &'static str> + use<> {
        let paper = ATTENTION.iter().any(|variant| variant.name == self.name && variant.scheme == Scheme::Paper)
            || QUANTIZE_F16_PAPER.iter().any(|of| of.module == self.name);
        [("baseline", !self.ships()), ("sm90a", self.target == Family::Sm90a.target()), ("paper", paper)]
            .into_iter()
            .filter_map(|(feature, needed)| needed.then_some(feature))
    }
}

#[cfg(test)]
mod tests {
    use super::super::MODULES;
    use super::*;

    #[test]
    fn machine_code_runs_within_its_major_version_from_its_minor_version_on() {
        let all = || ARCHITECTURES.iter().map(|architecture| architecture.name);
        let general = || all().filter(|name| *name != "sm_90a");
        for (capability, expected) in [
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_86")),
            // Orin is a Tegra GPU.
            ((8, 7), None),
            ((8, 8), Some("sm_86")),
            ((8, 9), Some("sm_89")),
            ((9, 0), Some("sm_90")),
            ((10, 0), Some("sm_100")),
            ((10, 1), None),
            ((10, 3), Some("sm_100")),
            ((11, 0), None),
            ((12, 0), Some("sm_120")),
            ((12, 1), Some("sm_120")),
            ((7, 5), None),
            ((13, 0), None),
        ] {
            assert_eq!(nearest(general(), capability), expected, "{capability:?}");
        }
        // What is left where some is missing.
        assert_eq!(nearest(["sm_80"].into_iter(), (8, 9)), Some("sm_80"));
        assert_eq!(nearest(["sm_86", "sm_89"].into_iter(), (8, 0)), None);
        assert_eq!(nearest(["sm_80", "unknown"].into_iter(), (8, 6)), Some("sm_80"));
        // Hopper's own instructions on Hopper alone.
        for (capability, expected) in
            [((9, 0), Some("sm_90a")), ((8, 9), None), ((9, 1), None), ((10, 0), None), ((12, 0), None)]
        {
            assert_eq!(nearest(["sm_90a"].into_iter(), capability), expected, "{capability:?}");
        }
    }

    #[test]
    fn checksums_are_fnv_1a() {
        assert_eq!([checksum(b""), checksum(b"foobar")], [0xcbf2_9ce4_8422_2325, 0x8594_4171_f739_67e8]);
    }

    #[test]
    fn a_module_is_assembled_for_its_target_and_what_came_since() {
        for module in MODULES {
            let names = || module.architectures().map(|architecture| architecture.name);
            if module.target == "sm_90a" {
                assert!(names().eq(["sm_90a"]), "{}", module.name);
            } else if module.target == "sm_90" {
                assert!(names().eq(["sm_90", "sm_100", "sm_120"]), "{}", module.name);
            } else {
                assert!(names().eq(["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]), "{}", module.name);
            }
        }
        let unknown = Module { name: "x", part: "x", target: "sm_75", ptx: (7, 0) };
        assert_eq!(unknown.architectures().count(), 0);
    }

    #[test]
    fn machine_code_is_of_what_first_jobs_load() {
        let of = |name: &str| MODULES.iter().find(|module| module.name == name).unwrap().machine_code().count();
        assert_eq!(["quantize_f16", "attention_sm80_d64_default", "attention_sm90a_d128_default"].map(of), [5, 5, 1]);
        // On the GPUs that have its row: 8.6 and 12.0, and all others.
        assert_eq!(["attention_sm80_d256_default_kib99", "attention_sm80_d256_default"].map(of), [2, 3]);
        assert_eq!(
            [
                "attention_sm80_d64_paper",
                "attention_sm80_d64_default_general",
                "baseline_f16_d64",
                "quantize_f32",
                "decode_v4_d64",
                "convert_pages",
                "attention_sm80_d512_default",
                "attention_sm80_d256_v128_default",
                "quantize_bf16_d32",
                "quantize_wide"
            ]
            .map(of),
            [0; 10]
        );
    }

    #[test]
    fn features_bring_families_schemes_and_the_yardstick() {
        for module in MODULES {
            let has = |feature| module.features().any(|needed| needed == feature);
            assert_eq!(has("sm90a"), module.target == "sm_90a", "{}", module.name);
            assert_eq!(has("baseline"), !module.ships(), "{}", module.name);
            assert_eq!(has("paper"), module.name.contains("_paper"), "{}", module.name);
        }
        assert!(MODULES.iter().any(|module| module.features().count() == 0), "something is always there");
    }
}
