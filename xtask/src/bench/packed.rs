//! `cargo xtask bench --packed`: sequences of unlike lengths in one pack, as servers of encoders and the prefill of several prompts send
//! them.

use super::{Bench, data, timing};
use crate::workspace;
use anyhow::{Context, Result, ensure};
use half::f16;
use int_flash_attention::{
    Alibi, AttentionOutput, AttentionPlan, AttentionProblem, DType, DeviceBuffer, DeviceOperands, Family, HostTensor,
    JobPath, QuantizeLayouts, QuantizePlan, ScoreMod, ScoreTensors, ScoreViews, Scored, SeqLens, Sequences, Shape,
    StreamRef, TensorLayout, reference,
};
use int_flash_attention_tests::case::{takes_narrow, variant_of};
use int_flash_attention_tests::{properties, sequences};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A pack: its name, the lengths of its sequences, heads of Q and of K, head dim, causal or not.
struct Pack {
    name: &'static str,
    lengths: Vec<u32>,
    heads: usize,
    head_dim: usize,
    causal: bool,
}

fn packs() -> Vec<Pack> {
    // Of a linear congruential generator: the same lengths in every run.
    let mut state = 1_u64;
    let mut any = |n: usize, low: u32, high: u32| -> Vec<u32> {
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            low + ((state >> 33) % u64::from(high - low + 1)) as u32
        };
        (0..n).map(|_| next()).collect()
    };
    let pack = |name, lengths, heads, head_dim, causal| Pack { name, lengths, heads, head_dim, causal };
    let beside_short = std::iter::once(8192).chain([64; 63]).collect();
    vec![
        pack("packed-64x(16..512)-d64", any(64, 16, 512), 12, 64, false),
        pack("packed-256x(8..64)-d32", any(256, 8, 64), 12, 32, false),
        pack("packed-16x(128..4096)-llama", any(16, 128, 4096), 32, 128, true),
        pack("packed-1x8192+63x64-d128", beside_short, 32, 128, true),
    ]
}

/// A figure. An external script's rows have the name, what was measured, and the rate.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Row {
    name: String,
    what: String,
    us: f64,
    /// 1e12 operations a second: 4 * heads * head_dim * pairs / time, pairs of a query and a key that it sees.
    t: f64,
    /// The lengths, so that another program can be asked for the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lengths: Vec<u32>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Rows {
    #[serde(default)]
    device: String,
    rows: Vec<Row>,
}

/// Measures all packs; `yardstick` has another program's rows of the same names.
pub fn run(bench: &Bench, json: Option<&Path>, yardstick: Option<&Path>) -> Result<()> {
    let others: Option<Rows> = yardstick
        .map(|path| {
            let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{} has no such rows", path.display()))
        })
        .transpose()?;
    let mut rows = Vec::new();
    for pack in packs() {
        for row in measure(bench, &pack)? {
            let mut line = format!("{:28} {:20} {:10.1} us {:8.1} T", row.name, row.what, row.us, row.t);
            for other in others.iter().flat_map(|others| &others.rows).filter(|other| other.name == row.name) {
                line += &format!("  {:.2} x {}", row.t / other.t, other.what);
            }
            println!("{line}");
            rows.push(row);
        }
    }
    if let Some(file) = json {
        let rows = Rows { device: bench.gpu.name().to_owned(), rows };
        workspace::write_atomically(file, &serde_json::to_vec_pretty(&rows)?)?;
    }
    Ok(())
}

/// Of ALiBi, of every head.
const SLOPE: f32 = 0.05;

/// Tensors and operands of a pack.
struct Copy {
    inputs: [DeviceBuffer<f16>; 3],
    operands: DeviceOperands,
    o: DeviceBuffer<f16>,
}

fn measure(bench: &Bench, pack: &Pack) -> Result<Vec<Row>> {
    let gpu = &bench.gpu;
    let offsets = sequences::offsets(&pack.lengths);
    let tokens = offsets[pack.lengths.len()] as usize;
    let longest = pack.lengths.iter().copied().max().unwrap_or(1) as usize;
    let problem = AttentionProblem::new(pack.lengths.len(), pack.heads, pack.heads, longest, longest, pack.head_dim)
        .with_causal(pack.causal)
        .with_sequences(Sequences::Packed { total_q: tokens, total_kv: tokens });
    let pairs: f64 = pack.lengths.iter().map(|&n| problem.of_one(n as usize, n as usize).visible_pairs() as f64).sum();
    let operations = 4.0 * (pack.heads * pack.head_dim) as f64 * pairs;
    let layout = TensorLayout::bnhd(problem.q_shape());
    let layouts = QuantizeLayouts { q: layout, k: layout, v: layout, dtype: DType::F16 };
    let quantize = gpu.plan_quantize(&problem, &layouts)?;
    let output = AttentionOutput { layout, dtype: DType::F16, lse: false };
    let values: Vec<Vec<f16>> = data::seeds(bench.run, 0).map(|seed| data::values(seed, 0, layout.span())).into();
    let copy = || -> Result<Copy> {
        Ok(Copy {
            inputs: [gpu.upload(&values[0])?, gpu.upload(&values[1])?, gpu.upload(&values[2])?],
            operands: DeviceOperands::alloc(gpu, &problem)?,
            o: gpu.alloc(layout.span())?,
        })
    };
    let copies = (bench.cache / (5 * layout.span()) + 1).min(8);
    let mut copies = (0..copies).map(|_| copy()).collect::<Result<Vec<_>>>()?;
    let cu = gpu.upload(&offsets)?;
    let lengths = SeqLens::Packed { cu_seqlens_q: cu.slice(), cu_seqlens_kv: cu.slice() };
    let mut workspace = gpu.alloc::<f32>(quantize.workspace_len())?;
    let mut quantized = |copy: &mut Copy, plan: &QuantizePlan| {
        let Copy { inputs: [q, k, v], operands, .. } = copy;
        let inputs = [(&*q).into(), (&*k).into(), (&*v).into()];
        plan.launch_with(StreamRef::DEFAULT, inputs, &lengths, workspace.slice_mut(), &mut operands.view_mut())
    };
    let attend = |copy: &mut Copy, plan: &AttentionPlan| {
        plan.launch_with(StreamRef::DEFAULT, &copy.operands.view(), &lengths, (&mut copy.o).into(), None)
    };
    let row = |what: String, ms: f64| Row {
        name: pack.name.to_owned(),
        what,
        us: 1e3 * ms,
        t: operations / ms * 1e-9,
        lengths: pack.lengths.clone(),
    };
    let n = copies.len();
    let times = timing::launch_ms(gpu, |number| Ok(quantized(&mut copies[number % n], &quantize)?))?;
    let mut rows = vec![row("quantize".into(), times.median)];
    let shares_k = gpu.takes_narrow(&problem);
    let has = |family: &Family| variant_of(*family, &problem).is_some();
    for family in bench.families.iter().copied().filter(has) {
        let plan = gpu.plan_attention_of(family, &problem, &output)?;
        let times = timing::launch_ms(gpu, |number| Ok(attend(&mut copies[number % n], &plan)?))?;
        check(&problem, pack, &offsets, &values, &copies[0], [shares_k, takes_narrow(plan.kernel())])
            .with_context(|| format!("{} with the kernel for {family}", pack.name))?;
        rows.push(row(format!("int8-{family}"), times.median));
        let times = timing::launch_ms(gpu, |number| {
            quantized(&mut copies[number % n], &quantize)?;
            Ok(attend(&mut copies[number % n], &plan)?)
        })?;
        rows.push(row(format!("job-{family}"), times.median));
    }
    let plan = gpu.plan_job(&problem, &layouts, &output)?;
    if plan.path() == JobPath::Fused {
        let mut none = gpu.alloc::<u8>(plan.workspace_bytes())?;
        let times = timing::launch_ms(gpu, |number| {
            let Copy { inputs: [q, k, v], o, .. } = &mut copies[number % n];
            let inputs = [(&*q).into(), (&*k).into(), (&*v).into()];
            Ok(plan.launch_with(StreamRef::DEFAULT, inputs, &lengths, none.slice_mut(), o.into(), None)?)
        })?;
        check(&problem, pack, &offsets, &values, &copies[0], [false; 2])
            .with_context(|| format!("{} in one launch", pack.name))?;
        rows.push(row("job".into(), times.median));
    }
    let slopes = gpu.upload(&vec![SLOPE; pack.heads])?;
    let none = ScoreViews::default();
    for (what, score_mod, views) in [
        ("softcap", ScoreMod { softcap: Some(30.0), ..ScoreMod::NONE }, none),
        (
            "alibi",
            ScoreMod { alibi: Some(Alibi::PerHead), ..ScoreMod::NONE },
            ScoreViews { alibi_slopes: Some(slopes.slice()), ..none },
        ),
    ] {
        if !bench.families.contains(&Family::Sm80) {
            continue;
        }
        let problem = problem.with_score_mod(score_mod);
        let plan = gpu.plan_attention_of(Family::Sm80, &problem, &output)?;
        let times = timing::launch_ms(gpu, |number| {
            let Copy { operands, o, .. } = &mut copies[number % n];
            Ok(plan.launch_scored(StreamRef::DEFAULT, &operands.view(), &views, &lengths, o.into(), None)?)
        })?;
        check(&problem, pack, &offsets, &values, &copies[0], [shares_k, false])
            .with_context(|| format!("{} with {what}", pack.name))?;
        rows.push(row(format!("int8-{}-{what}", Family::Sm80), times.median));
    }
    Ok(rows)
}

/// Rows of the first, of the longest and of the last sequence, of the first and of the last head, against the reference: K's tokens share scales
/// or not, and the kernel takes narrow blocks or not.
fn check(
    problem: &AttentionProblem,
    pack: &Pack,
    offsets: &[u32],
    values: &[Vec<f16>],
    copy: &Copy,
    [shares_k, narrow]: [bool; 2],
) -> Result<()> {
    let o = copy.o.to_vec()?;
    let last = pack.lengths.len() - 1;
    let longest = (0..=last).max_by_key(|&s| pack.lengths[s]).unwrap_or(0);
    let (heads, d) = (pack.heads, pack.head_dim);
    for (sequence, head) in [0, longest, last].into_iter().flat_map(|s| [0, heads - 1].map(|head| (s, head))) {
        let (first, n) = (offsets[sequence] as usize, pack.lengths[sequence] as usize);
        let one = AttentionProblem { heads_q: 1, heads_kv: 1, ..problem.of_one(n, n) };
        let at = |row: usize| ((first + row) * heads + head) * d;
        let tensor = |values: &[f16]| -> Result<HostTensor> {
            let own: Vec<f16> = (0..n).flat_map(|row| values[at(row)..][..d].iter().copied()).collect();
            Ok(HostTensor::new(own, TensorLayout::bhnd(Shape::new(1, 1, n, d)?))?)
        };
        let [q, k, v] = [tensor(&values[0])?, tensor(&values[1])?, tensor(&values[2])?];
        let operands = reference::quantize(Scored::from(&one).with_narrow(shares_k), &q, &k, &v)?;
        let rows: Vec<usize> = (0..n.min(6)).map(|i| i * n / n.min(6)).collect();
        let alibi_slopes = one.score_mod.alibi.map(|_| &[SLOPE][..]);
        let tensors = ScoreTensors { alibi_slopes, ..ScoreTensors::default() };
        let scored = Scored { problem: &one, tensors, narrow };
        let (want, bounds) = reference::gpu_bounds_rows(scored, &operands, DType::F16, &rows)?;
        let got: Vec<f64> = rows.iter().flat_map(|&row| &o[at(row)..][..d]).map(|x| x.to_f64()).collect();
        ensure!(got.len() == want.o.len(), "rows are missing");
        properties::within("o", &got, &want.o, &bounds.o, d).with_context(|| format!("sequence {sequence}"))?;
    }
    Ok(())
}
