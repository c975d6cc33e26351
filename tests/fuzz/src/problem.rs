//! Problems, beside a model of what is allowed; small ones are run.

use crate::is_sentence;
use crate::score_inputs::Scores;
use arbitrary::{Arbitrary, Result, Unstructured};
use int_flash_attention::{
    AttentionProblem, DType, Device, Error, HostTensor, Options, Scheme, SeqLens, Shape, TensorLayout, Window,
    attention,
};
use int_flash_attention_kernels::layout::KV_BLOCK;

/// Multiply-adds of a problem that is run, its blocks of keys whole.
const FEW: usize = 1 << 18;

/// A problem is checked as the model says, and a small one gives a result or a sentence.
pub fn problem(bytes: &[u8]) {
    // Too few bytes say nothing.
    let _ = run(&mut Unstructured::new(bytes));
}

fn size(u: &mut Unstructured<'_>) -> Result<usize> {
    Ok(match u.int_in_range(0..=15_u8)? {
        0 => usize::arbitrary(u)?,
        1 => 1 << u.int_in_range(0..=63_u32)?,
        2 => (1_usize << u.int_in_range(0..=63_u32)?).wrapping_sub(u.int_in_range(0..=300)?),
        _ => u.int_in_range(0..=9)?,
    })
}

fn any(u: &mut Unstructured<'_>) -> Result<AttentionProblem> {
    let head_dim = if u.ratio(7, 8)? { *u.choose(&[32, 64, 72, 80, 96, 128, 200, 256, 264, 512])? } else { size(u)? };
    let heads_kv = size(u)?;
    let heads_q = if u.ratio(3, 4)? { heads_kv.wrapping_mul(u.int_in_range(1..=3)?) } else { size(u)? };
    let mut problem = AttentionProblem::new(size(u)?, heads_q, heads_kv, size(u)?, size(u)?, head_dim);
    let mut side = || if bool::arbitrary(u)? { Ok(None) } else { size(u).map(Some) };
    problem.window = Window { left: side()?, right: side()? };
    problem.softmax_scale = match u.int_in_range(0..=3_u8)? {
        0 => Some(f32::arbitrary(u)?),
        1 => Some(u.int_in_range(-100..=100_i8)?.into()),
        _ => None,
    };
    problem.scheme = if bool::arbitrary(u)? { Scheme::Default } else { Scheme::Paper };
    Ok(problem)
}

/// What docs say of sizes, in numbers that do not overflow.
fn allowed(p: &AttentionProblem) -> bool {
    let sizes = [p.batch, p.heads_q, p.heads_kv, p.seqlen_q, p.seqlen_kv, p.head_dim];
    let bytes = |heads: usize, seqlen: usize| {
        [p.batch, heads, seqlen, p.head_dim].iter().fold(4_i128, |n, &size| n.saturating_mul(size as i128))
    };
    let longest = (1 << 31) - 256;
    !sizes.contains(&0)
        && p.seqlen_q <= longest
        && p.seqlen_kv <= longest
        && p.batch <= 65535
        && p.heads_q <= 65535
        && bytes(p.heads_q, p.seqlen_q).max(bytes(p.heads_kv, p.seqlen_kv)) <= i64::MAX.into()
        && p.heads_q.is_multiple_of(p.heads_kv)
        && p.softmax_scale.is_none_or(f32::is_finite)
        && p.head_dim.is_multiple_of(8)
        && (1..=if p.scheme == Scheme::Default { 512 } else { 128 }).contains(&p.head_dim)
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let problem = any(u)?;
    match problem.check() {
        Ok(()) => assert!(allowed(&problem), "{problem:?} was taken"),
        Err(error) => {
            is_sentence(&error.to_string());
            assert!(!allowed(&problem), "{problem:?}: {error}");
            return Ok(());
        }
    }
    let (q, kv) = (problem.q_shape(), problem.kv_shape());
    let keys = problem.seqlen_kv.next_multiple_of(KV_BLOCK);
    let work = q.rows().saturating_mul(keys).saturating_mul(problem.head_dim);
    if work > FEW || kv.elements() > FEW {
        return Ok(());
    }
    let dtype = *u.choose(&[DType::F16, DType::BF16, DType::F32])?;
    let [q, k, v] = [tensor(u, dtype, q)?, tensor(u, dtype, kv)?, tensor(u, dtype, kv)?];
    let (offsets, lens) = (any_offsets(u, &problem)?, any_offsets(u, &problem)?);
    let lengths = match u.int_in_range(0..=3_u8)? {
        0 => SeqLens::Packed { cu_seqlens_q: offsets.as_slice(), cu_seqlens_kv: lens.as_slice() },
        1 => SeqLens::KeyLengths { seqlens_kv: lens.as_slice() },
        _ => SeqLens::Equal,
    };
    let lse = bool::arbitrary(u)?;
    let scores = Scores::any(u, &problem, &lengths)?;
    let options = Options {
        window: problem.window,
        scheme: problem.scheme,
        lengths,
        softmax_scale: problem.softmax_scale,
        scores: scores.host(),
        lse,
        ..Options::default()
    };
    match attention(Device::Cpu, &q, &k, &v, &options) {
        Ok(output) => {
            assert_eq!((output.o.shape(), output.o.dtype()), (problem.q_shape(), dtype));
            assert!(scores.allowed() && output.o.check_finite("o").is_ok());
            let lse = output.lse.into_iter().flatten().enumerate();
            for (row, lse) in lse.filter(|(_, lse)| !lse.is_finite() && lengths == SeqLens::Equal) {
                assert_eq!(lse, f32::NEG_INFINITY);
                assert!(scores.may_hide() || problem.visible_keys(row % problem.seqlen_q).is_empty());
            }
        }
        Err(error) => {
            is_sentence(&error.to_string());
            let of_values = matches!(error, Error::ResultNotFinite { .. } | Error::NotFinite { .. });
            assert!(of_values || !scores.allowed() || lengths != SeqLens::Equal, "{problem:?}: {error}");
        }
    }
    Ok(())
}

/// Offsets or lengths that are right now and then.
fn any_offsets(u: &mut Unstructured<'_>, problem: &AttentionProblem) -> Result<Vec<u32>> {
    let end = *u.choose(&[problem.seqlen_q, problem.seqlen_kv])? as u32;
    let mut offsets = vec![0];
    for _ in 0..u.int_in_range(0..=4)? {
        offsets.push(if u.ratio(7, 8)? { u.int_in_range(0..=end)? } else { u32::arbitrary(u)? });
    }
    if u.ratio(3, 4)? {
        offsets.sort_unstable();
        offsets.push(end);
    }
    Ok(offsets)
}

/// Values of every magnitude, repeated along the tensor; padding between tokens and heads where the bytes say so.
fn tensor(u: &mut Unstructured<'_>, dtype: DType, shape: Shape) -> Result<HostTensor> {
    let mut few = [0.0; 7];
    for value in &mut few {
        *value = match u.int_in_range(0..=7_u8)? {
            0 => f32::arbitrary(u)?,
            1 => 65504.0,
            2 => -65504.0,
            _ => f32::from(i16::arbitrary(u)?) / 256.0,
        };
    }
    let token = shape.head_dim + u.int_in_range(0..=3)?;
    let head = token * shape.seqlen + u.int_in_range(0..=3)?;
    let strides = [head * shape.heads, head, token].map(|stride| stride as i64);
    let layout = TensorLayout::strided(shape, strides).expect("a small layout");
    let at = |b, h, n, d| few[(b * 5 + h * 3 + n * 11 + d * (1 + n % 3)) % 7];
    Ok(HostTensor::from_fn(dtype, layout, at).expect("a layout without overlaps"))
}
