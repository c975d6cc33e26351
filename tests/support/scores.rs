//! The tensors that change scores: what a problem asks for, with values that are functions of seed and place.

use crate::values::Noise;
use half::{bf16, f16};
use int_flash_attention::{
    Alibi, AttentionProblem, BiasLayout, DType, HostData, HostScores, MaskKind, MaskLayout, ScoreMod, ScoreTensors,
    Scored,
};
use proptest::prelude::*;

/// Tensors for a problem's [`ScoreMod`].
#[derive(Clone, Debug, Default)]
pub struct Scores {
    alibi_slopes: Option<Vec<f32>>,
    bias: Option<HostData>,
    mask: Option<Vec<u8>>,
    sinks: Option<Vec<f32>>,
}

impl Scores {
    /// Slopes from 2^-8 to 1/2, a few of them negative; biases some of which hide their key, some blocks of 256 whole, by little; masks
    /// that keep two keys of three, and hide some blocks of 32 whole; sinks below, among and above the scores.
    ///
    /// # Panics
    ///
    /// On layouts that the library refuses.
    #[must_use]
    pub fn of(problem: &AttentionProblem, seed: u64) -> Self {
        let score = problem.score_mod;
        let noise = |what: usize, at: usize| Noise::new(seed, [what, at, 0, 0]);
        let heads = problem.heads_q;
        let slope = |at: usize| {
            let mut noise = noise(1, at);
            let sign = if noise.uniform() < 0.1 { -0.1 } else { 1.0 };
            sign * (-8.0 * noise.uniform()).exp2() / 2.0
        };
        let slopes =
            |alibi| (0..heads * if alibi == Alibi::PerSequence { problem.batch } else { 1 }).map(slope).collect();
        let sink = |at: usize| {
            let mut noise = noise(2, at);
            noise.normal() * if noise.uniform() < 0.3 { 30.0 } else { 3.0 }
        };
        let bias = |layout: BiasLayout| {
            let values = (0..layout.span(problem).unwrap()).map(|at| {
                if noise(6, at / 256).uniform() < 0.15 {
                    return -45010.0;
                }
                let mut noise = noise(3, at);
                match noise.uniform() {
                    x if x < 0.05 => f32::NEG_INFINITY,
                    x if x < 0.1 => -60000.0,
                    _ => 2.0 * noise.normal(),
                }
            });
            match layout.dtype {
                DType::F16 => HostData::F16(values.map(f16::from_f32).collect()),
                DType::BF16 => HostData::BF16(values.map(bf16::from_f32).collect()),
                DType::F32 => HostData::F32(values.collect()),
            }
        };
        let keeps = |at: usize| noise(4, at / 32).uniform() > 0.2 && noise(5, at).uniform() < 0.8;
        let mask = |layout: MaskLayout| {
            let bytes = 0..layout.span(problem).unwrap();
            let byte = |at| match layout.kind {
                // One bit of those that keep a key, or all of them.
                MaskKind::Bytes => u8::from(keeps(at)) * 1_u8.checked_shl(at as u32 % 9).unwrap_or(u8::MAX),
                MaskKind::Bits => (0..8).map(|bit| u8::from(keeps(8 * at + bit)) << bit).sum(),
            };
            bytes.map(byte).collect()
        };
        Self {
            alibi_slopes: score.alibi.map(slopes),
            bias: score.bias.map(bias),
            mask: score.mask.map(mask),
            sinks: score.sinks.then(|| (0..heads).map(sink).collect()),
        }
    }

    /// Those of the query heads, as [`attention`](int_flash_attention::attention()) takes them.
    #[must_use]
    pub fn of_heads(&self, problem: &AttentionProblem) -> HostScores<'_> {
        HostScores {
            softcap: problem.score_mod.softcap,
            alibi_slopes: self.alibi_slopes.as_deref(),
            sinks: self.sinks.as_deref(),
            ..HostScores::default()
        }
    }

    /// The problem with these.
    #[must_use]
    pub fn scored<'a>(&'a self, problem: &'a AttentionProblem) -> Scored<'a> {
        let tensors = ScoreTensors {
            alibi_slopes: self.alibi_slopes.as_deref(),
            bias: self.bias.as_ref().map(HostData::as_slice),
            mask: self.mask.as_deref(),
            sinks: self.sinks.as_deref(),
        };
        Scored::new(problem, tensors)
    }
}

/// One of a few changes of the scores that between them have every feature alone and with others, in every type and broadcast.
///
/// # Panics
///
/// On sizes that the library refuses.
#[must_use]
pub fn some_score_mod(problem: &AttentionProblem, which: usize) -> ScoreMod {
    let AttentionProblem { batch: b, heads_q: h, seqlen_q: n, seqlen_kv: m, .. } = *problem;
    let bias = |dtype, dims| Some(BiasLayout::broadcast(dtype, dims, problem).unwrap());
    let mask = |kind, dims| Some(MaskLayout::broadcast(kind, dims, problem).unwrap());
    let none = ScoreMod::NONE;
    match which % 10 {
        0 => ScoreMod { softcap: Some(30.0), ..none },
        1 => ScoreMod { alibi: Some(Alibi::PerHead), ..none },
        2 => ScoreMod { mask: mask(MaskKind::Bytes, [b, 1, n, m]), ..none },
        3 => ScoreMod { bias: bias(DType::F16, [1, h, n, m]), ..none },
        4 => ScoreMod { mask: mask(MaskKind::Bits, [b, h, n, m]), sinks: true, ..none },
        5 => ScoreMod { bias: bias(DType::F32, [b, h, n, m]), alibi: Some(Alibi::PerSequence), ..none },
        6 => ScoreMod { softcap: Some(5.0), alibi: Some(Alibi::PerHead), sinks: true, ..none },
        7 => ScoreMod { bias: bias(DType::BF16, [b, 1, 1, m]), softcap: Some(50.0), ..none },
        8 => ScoreMod { mask: mask(MaskKind::Bits, [1, 1, n, m]), alibi: Some(Alibi::PerSequence), ..none },
        _ => ScoreMod {
            softcap: Some(20.0),
            alibi: Some(Alibi::PerHead),
            bias: bias(DType::F16, [b, 1, n, m]),
            mask: mask(MaskKind::Bytes, [b, 1, 1, m]),
            sinks: true,
        },
    }
}

/// Any change of the scores of a problem: sinks alone, which plain kernels have, or each feature as often as not, dimensions shared or not, strides with gaps.
pub fn any_score_mod(problem: AttentionProblem) -> impl Strategy<Value = ScoreMod> {
    let sizes = [problem.batch, problem.heads_q, problem.seqlen_q];
    let dims = move || {
        prop::array::uniform3(any::<bool>()).prop_map(move |own| {
            let [b, h, n] = [0, 1, 2].map(|i| if own[i] { sizes[i] } else { 1 });
            [b, h, n, problem.seqlen_kv]
        })
    };
    let gaps = || prop::array::uniform3(prop_oneof![3 => Just(0_usize), 1 => 1..9_usize]);
    let widened = |strides: [usize; 3], gaps: [usize; 3]| [0, 1, 2].map(|i| strides[i] + gaps[i]);
    let dtype = prop::sample::select(vec![DType::F16, DType::BF16, DType::F32]);
    let bias = (dtype, dims(), gaps()).prop_map(move |(dtype, dims, gaps)| {
        let layout = BiasLayout::broadcast(dtype, dims, &problem).unwrap();
        BiasLayout { strides: widened(layout.strides, gaps), ..layout }
    });
    let kind = prop::sample::select(vec![MaskKind::Bytes, MaskKind::Bits]);
    let mask = (kind, dims(), gaps()).prop_map(move |(kind, dims, gaps)| {
        let layout = MaskLayout::broadcast(kind, dims, &problem).unwrap();
        MaskLayout { strides: widened(layout.strides, gaps), ..layout }
    });
    let softcap = prop::option::of(prop_oneof![Just(30.0_f32), Just(50.0), 0.5..200.0_f32]);
    let alibi = prop::option::of(prop::sample::select(vec![Alibi::PerHead, Alibi::PerSequence]));
    let any = (softcap, alibi, prop::option::of(bias), prop::option::of(mask), any::<bool>())
        .prop_map(|(softcap, alibi, bias, mask, sinks)| ScoreMod { softcap, alibi, bias, mask, sinks });
    prop_oneof![1 => Just(ScoreMod { sinks: true, ..ScoreMod::NONE }), 3 => any]
}
