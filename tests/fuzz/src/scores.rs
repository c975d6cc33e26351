//! Where biases and masks lie, beside a model that counts elements one by one; small ones hide keys from rows, which is counted too.

use crate::is_sentence;
use arbitrary::{Arbitrary, Result, Unstructured};
use half::{bf16, f16};
use int_flash_attention::{
    Alibi, AttentionProblem, BiasLayout, DType, Error, HostData, HostTensor, MaskKind, MaskLayout, ScoreMod,
    ScoreTensors, Scored, TensorLayout, reference,
};

/// Scores that the model visits.
const FEW: usize = 1024;
/// Elements of a bias or bytes of a mask that are made.
const LONGEST: u128 = 1 << 14;

/// What changes scores is taken where the model takes it, lies where the model says, and does to small problems what it should.
pub fn scores(bytes: &[u8]) {
    // Too few bytes say nothing.
    let _ = run(&mut Unstructured::new(bytes));
}

fn size(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.int_in_range(0..=31_u8)? {
        0 => usize::arbitrary(u)?.max(1),
        1 => 1 << u.int_in_range(0..=63_u32)?,
        2 => u.int_in_range(1..=140)?,
        _ => u.int_in_range(1..=9)?,
    })
}

/// A tensor's dimensions, and whether it is dense; else these are its strides.
struct Place {
    dims: [usize; 4],
    strides: Option<[usize; 3]>,
}

impl Place {
    fn any(u: &mut Unstructured<'_>, sizes: [usize; 4]) -> Result<Self> {
        let mut dims = sizes;
        for dim in &mut dims[..3] {
            *dim = if bool::arbitrary(u)? { 1 } else { *dim };
        }
        if u.ratio(1, 8)? {
            dims[u.choose_index(4)?] = if bool::arbitrary(u)? { size(u)? } else { 0 };
        }
        let mut stride = || Ok(if u.ratio(1, 16)? { usize::arbitrary(u)? } else { u.int_in_range(0..=40)? });
        let strides = [stride()?, stride()?, stride()?];
        Ok(Self { dims, strides: bool::arbitrary(u)?.then_some(strides) })
    }

    /// Whether dense dimensions are taken.
    fn is_taken(&self, sizes: [usize; 4], row: usize) -> bool {
        let shared = |i: usize| self.dims[i] == sizes[i] || i < 3 && self.dims[i] == 1;
        let rows = self.dims[..3].iter().fold(row as u128, |n, &dim| n.saturating_mul(dim as u128));
        (0..4).all(shared) && rows <= usize::MAX as u128
    }

    /// The first element of a row: as many as there are before it, row by row, or what the strides say.
    fn row(&self, at: [usize; 3], row: usize) -> u128 {
        if let Some(strides) = self.strides {
            let steps = (0..3).map(|i| at[i] as u128 * strides[i] as u128);
            return steps.fold(0, u128::saturating_add);
        }
        let own = |i: usize| if self.dims[i] == 1 { 0 } else { at[i] as u128 };
        let heads = own(0).saturating_mul(self.dims[1] as u128).saturating_add(own(1));
        let rows = heads.saturating_mul(self.dims[2] as u128).saturating_add(own(2));
        rows.saturating_mul(row as u128)
    }

    /// From the first element to behind the last, where the kernels can count its bytes.
    fn span(&self, sizes: [usize; 4], row: usize) -> Option<u128> {
        let span = self.row([sizes[0] - 1, sizes[1] - 1, sizes[2] - 1], row).saturating_add(row as u128);
        (span <= i64::MAX as u128 / 4).then_some(span)
    }
}

/// Strides that the library gives a dense tensor, or that stand there; and that both agree on what is refused.
fn strides(
    place: &Place,
    sizes: [usize; 4],
    row: usize,
    dense: std::result::Result<[usize; 3], Error>,
) -> Option<[usize; 3]> {
    if place.strides.is_some() {
        return place.strides;
    }
    if let Err(error) = &dense {
        is_sentence(&error.to_string());
    }
    assert_eq!(dense.is_ok(), place.is_taken(sizes, row), "{:?} of {sizes:?}: {dense:?}", place.dims);
    dense.ok()
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let sizes = [size(u)?, size(u)?, size(u)?, size(u)?];
    let [b, h, n, m] = sizes;
    let problem = AttentionProblem::new(b, h, 1, n, m, 8);
    let dtype = *u.choose(&[DType::F16, DType::BF16, DType::F32])?;
    let kind = *u.choose(&[MaskKind::Bytes, MaskKind::Bits])?;
    let places = [Place::any(u, sizes)?, Place::any(u, sizes)?];
    let [bias, mask] = &places;
    let row_of_mask = kind.bytes(m);
    let dense = BiasLayout::broadcast(dtype, bias.dims, &problem).map(|layout| layout.strides);
    let bias_strides = strides(bias, sizes, m, dense);
    let dense = MaskLayout::broadcast(kind, mask.dims, &problem).map(|layout| layout.strides);
    let mask_strides = strides(mask, sizes, row_of_mask, dense);
    let (Some(bias_strides), Some(mask_strides)) = (bias_strides, mask_strides) else { return Ok(()) };
    let layouts = (BiasLayout { dtype, strides: bias_strides }, MaskLayout { kind, strides: mask_strides });
    let spans = [bias.span(sizes, m), mask.span(sizes, row_of_mask)];
    assert_eq!(layouts.0.span(&problem).ok().map(|span| span as u128), spans[0], "{problem:?}, {:?}", layouts.0);
    assert_eq!(layouts.1.span(&problem).ok().map(|span| span as u128), spans[1], "{problem:?}, {:?}", layouts.1);

    let softcap = match u.int_in_range(0..=3_u8)? {
        0 => Some(f32::arbitrary(u)?),
        1 => Some((u.int_in_range(-17..=17_i8)? as f32).exp2()),
        _ => None,
    };
    let score_mod = ScoreMod {
        softcap,
        alibi: *u.choose(&[None, None, Some(Alibi::PerHead), Some(Alibi::PerSequence)])?,
        bias: bool::arbitrary(u)?.then_some(layouts.0),
        mask: bool::arbitrary(u)?.then_some(layouts.1),
        sinks: bool::arbitrary(u)?,
    };
    let problem = problem.with_score_mod(score_mod);
    let few = sizes.iter().fold(1_usize, |n, &size| n.saturating_mul(size)) <= FEW;
    let lies = (score_mod.bias.is_none() || spans[0].is_some()) && (score_mod.mask.is_none() || spans[1].is_some());
    let capped = softcap.is_none_or(|cap| f64::from(cap) >= 1.0 / 16384.0 && f64::from(cap) <= 16384.0);
    if few {
        let checked = problem.check();
        assert_eq!(checked.is_ok(), lies && capped, "{problem:?}: {checked:?}");
        if lies && capped && spans.iter().flatten().all(|&span| span <= LONGEST) {
            hide(u, &problem, &places)?;
        }
    }
    Ok(())
}

/// Scores of zero, so that the log-sum-exp of a row counts its keys: those that neither the bias nor the mask hides.
fn hide(u: &mut Unstructured<'_>, problem: &AttentionProblem, [bias, mask]: &[Place; 2]) -> Result<()> {
    let AttentionProblem { batch, heads_q, seqlen_q, seqlen_kv, score_mod, .. } = *problem;
    let (seed, rare) = (u64::arbitrary(u)?, u.int_in_range(1..=6_u64)?);
    let bit = |what: u64, at: u64| (seed ^ (what << 32) ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40 & 7 >= rare;
    let hides = |at: usize| bit(1, at as u64);
    let keeps = |at: usize| bit(2, at as u64);
    let values = score_mod.bias.map(|layout| {
        let values = (0..layout.span(problem).expect("small")).map(|at| if hides(at) { -50000.0 } else { 0.0 });
        match layout.dtype {
            DType::F16 => HostData::F16(values.map(f16::from_f32).collect()),
            DType::BF16 => HostData::BF16(values.map(bf16::from_f32).collect()),
            DType::F32 => HostData::F32(values.collect()),
        }
    });
    let bytes: Option<Vec<u8>> = score_mod.mask.map(|layout| {
        let byte = |at: usize| match layout.kind {
            MaskKind::Bytes => u8::from(keeps(at)) << (at % 8),
            MaskKind::Bits => (0..8).map(|bit| u8::from(keeps(8 * at + bit)) << bit).sum(),
        };
        (0..layout.span(problem).expect("small")).map(byte).collect()
    });
    let (slopes, sinks) = (vec![0.0; batch * heads_q], vec![0.0; heads_q]);
    let tensors = ScoreTensors {
        alibi_slopes: score_mod.alibi.is_some().then_some(&*slopes),
        bias: values.as_ref().map(HostData::as_slice),
        mask: bytes.as_deref(),
        sinks: score_mod.sinks.then_some(&*sinks),
    };
    let zeros = |shape| HostTensor::from_fn(DType::F32, TensorLayout::bhnd(shape), |_, _, _, _| 0.0).expect("dense");
    let (q, kv) = (zeros(problem.q_shape()), zeros(problem.kv_shape()));
    let operands = reference::quantize(problem, &q, &kv, &kv).expect("a problem that was taken");
    let got = reference::int8(Scored::new(problem, tensors), &operands).expect("tensors of its layouts").lse;
    let rows = (0..batch).flat_map(|b| (0..heads_q).flat_map(move |h| (0..seqlen_q).map(move |n| [b, h, n])));
    for (row, (at, got)) in rows.zip(got).enumerate() {
        let seen = |key: usize| {
            let biased = score_mod.bias.is_some() && hides(bias.row(at, seqlen_kv) as usize + key);
            let masked = score_mod.mask.is_some_and(|layout| match layout.kind {
                MaskKind::Bytes => !keeps(mask.row(at, seqlen_kv) as usize + key),
                MaskKind::Bits => !keeps(8 * mask.row(at, seqlen_kv.div_ceil(8)) as usize + key),
            });
            !biased && !masked
        };
        let sum = (0..seqlen_kv).filter(|&key| seen(key)).count() + usize::from(score_mod.sinks);
        let want = (sum as f64).ln();
        assert!(got == want || (got - want).abs() < 1e-5, "row {row} of {problem:?}: {got}, should be {want}");
    }
    Ok(())
}
