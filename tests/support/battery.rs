//! What every kernel is put through on the PTX machine: small cases that leave no path out, with the reference's answers worked
//! out once, so that many mutants of a kernel can be held to them.
//!
//! Lengths of every number of blocks that an unrolled loop tells apart, with tails in each of their quarters; queries that see no
//! key; rows that are not aligned to 16 bytes, for one reason at a time; strides of more than 32 bits; scales and values that
//! are hard; on Hopper, lists of tiles and rings that go round.

use crate::baseline::{self, Expected};
use crate::case::{Case, MOST_SHARED, Placement};
use crate::properties::{self, Kernels, Operand, representable, same_operands, within};
use crate::scores::some_score_mod;
use crate::sim::{Places, Simulator};
use crate::values::Values;
use anyhow::{Context, Result, ensure};
use int_flash_attention::reference::{self, Bounds, Int8};
use int_flash_attention::{AttentionProblem, DType, HostQuantized, HostTensor, Scheme, ScoreMod, Window};
use int_flash_attention_kernels::config::short::{SHORT, ShortVariant};
use int_flash_attention_kernels::config::{self, AttentionVariant, Family, Kind};
use ptx_machine::Module;
use std::sync::Arc;

mod append;
mod decode;

/// One run of a kernel, and what must come out.
pub enum Check {
    /// Of attention and of conversions.
    Tensors(Box<TensorCheck>),
    /// Of decode and merge.
    Decode(Box<decode::DecodeCheck>),
    /// Of appends.
    Append(Box<append::AppendCheck>),
}

impl Check {
    /// Runs the kernel of the module, which stands in the place of the one of that name.
    ///
    /// # Errors
    ///
    /// What the machine finds, or the first element that is wrong.
    pub fn run(&self, name: &str, module: &Arc<Module>) -> Result<()> {
        match self {
            Self::Tensors(check) => check.run(name, module),
            Self::Decode(check) => check.run(name, module),
            Self::Append(check) => check.run(name, module),
        }
    }
}

/// A run of a kernel on tensors.
pub struct TensorCheck {
    case: Case,
    places: Places,
    family: Family,
    multiprocessors: u32,
    /// That a CTA may have.
    shared_bytes: usize,
    wanted: Wanted,
}

enum Wanted {
    Attention { operands: Arc<HostQuantized>, want: Int8, bounds: Bounds },
    Operands { inputs: [HostTensor; 3], want: Arc<HostQuantized> },
    Dequantized { operands: Arc<HostQuantized>, operand: Operand },
    Float16 { inputs: [HostTensor; 3], want: Expected },
    Short { inputs: [HostTensor; 3], want: Int8, bounds: Bounds },
}

impl TensorCheck {
    fn run(&self, name: &str, module: &Arc<Module>) -> Result<()> {
        let Self { case, places, .. } = self;
        let simulator = Simulator::of(self.family, self.multiprocessors);
        let simulator = simulator.with_shared_bytes(self.shared_bytes).with_places(*places);
        self.compare(&simulator.with_module(name, module.clone())).with_context(|| format!("{places:?}, {case:?}"))
    }

    fn compare(&self, simulator: &Simulator) -> Result<()> {
        let (case, problem) = (&self.case, &self.case.problem);
        match &self.wanted {
            Wanted::Attention { operands, want, bounds } => {
                let scores = case.scores();
                let (o, lse) = simulator.attention(
                    &scores.scored(problem),
                    operands,
                    &case.output()?,
                    case.out_dtype,
                    case.lse,
                )?;
                within("o", &representable(&o, &want.o, &bounds.o), &want.o, &bounds.o, problem.value_dim())?;
                ensure!(lse.is_some() == case.lse, "a log-sum-exp unasked, or none");
                lse.map_or(Ok(()), |lse| within("lse", &doubles(&lse), &want.lse, &bounds.lse, 1))
            }
            Wanted::Operands { inputs: [q, k, v], want } => {
                same_operands(problem, &simulator.quantize(problem, q, k, v)?, want, q)
            }
            Wanted::Dequantized { operands, operand } => properties::dequantize(simulator, case, operands, *operand),
            Wanted::Float16 { inputs: [q, k, v], want } => {
                let (o, lse) = simulator.attention_f16(problem, [q, k, v], &case.output()?)?;
                within("o", &o.dense_f64(), &want.o, &want.bound, problem.head_dim)?;
                within("lse", &doubles(&lse), &want.lse, &want.lse_bound, 1)
            }
            Wanted::Short { inputs: [q, k, v], want, bounds } => {
                let (out, gpu) = (case.output()?, (self.multiprocessors as usize, self.shared_bytes));
                let (o, lse) = simulator.short(problem, [q, k, v], (&out, case.out_dtype), case.lse, gpu)?;
                within("o", &representable(&o, &want.o, &bounds.o), &want.o, &bounds.o, problem.head_dim)?;
                ensure!(lse.is_some() == case.lse, "a log-sum-exp unasked, or none");
                lse.map_or(Ok(()), |lse| within("lse", &doubles(&lse), &want.lse, &bounds.lse, 1))
            }
        }
    }
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// The checks of a kernel, quick ones first.
///
/// # Errors
///
/// A kernel that no cases are known for.
pub fn of(kernel: &str) -> Result<Vec<Check>> {
    if let Some(variant) = config::ATTENTION.iter().find(|variant| variant.name == kernel) {
        return attention(variant);
    }
    if let Some(variant) = config::BASELINE.iter().find(|variant| variant.name == kernel) {
        return float16(variant.head_dim);
    }
    if let Some(variant) = SHORT.iter().find(|variant| variant.name == kernel) {
        return short(variant);
    }
    if let Some(checks) = decode::of(kernel) {
        return checks;
    }
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        if kernel == format!("quantize_{dtype}") {
            return quantization(dtype);
        }
        // What it finds is in what `quantize` makes of it.
        if kernel == format!("v_amax_{dtype}") {
            let mut checks = quantization(dtype)?;
            checks.retain(|check| matches!(check, Check::Tensors(check) if check.case.problem.scheme == Scheme::Paper));
            return Ok(checks);
        }
        if kernel == format!("append_{dtype}") {
            return append::of(dtype);
        }
        if kernel == format!("dequantize_{dtype}") {
            return dequantization(dtype);
        }
    }
    anyhow::bail!("no cases are known for the kernel {kernel}")
}

const fn padded(token: usize, head: usize, batch: usize) -> [Placement; 4] {
    [Placement::Padded { token, head, batch }; 4]
}

/// A case without a mask, and with the causal one.
fn masks(case: Case) -> [Case; 2] {
    [Window::FULL, Window::CAUSAL].map(|window| Case { problem: case.problem.with_window(window), ..case.clone() })
}

/// Windows whose ends, the left one first, lie in each eight keys of a block; the right end is at a query's own key, near it or not there.
fn windows() -> impl Iterator<Item = Window> {
    let rights = [Some(0), Some(11), None, Some(61)];
    (0..16).map(move |eighth| Window { left: Some(8 * eighth + 2 * (eighth % 4)), right: rights[eighth * 5 / 4 % 4] })
}

fn attention(variant: &AttentionVariant) -> Result<Vec<Check>> {
    let first = Case::of_variant(variant, 0);
    let problem = first.problem.with_window(Window::FULL).with_score_mod(ScoreMod::NONE);
    let first = Case { lse: true, problem, ..first };
    let sized = |batch, heads_q, seqlen_q, seqlen_kv| {
        let heads_kv = usize::div_ceil(heads_q, 2);
        let problem = AttentionProblem { batch, heads_q, heads_kv, seqlen_q, seqlen_kv, ..first.problem };
        Case { problem, ..first.clone() }
    };
    let scaled = |scale| {
        let case = sized(1, 2, 33, 140);
        Case { problem: case.problem.with_softmax_scale(scale), values: [Values::Uniform; 3], ..case }
    };
    let out = |case: Case, out_dtype, placement| Case { out_dtype, placement, ..case };
    let small = || sized(2, 4, 35, 40);
    let usual = Places::Usual;
    let mut cases = vec![
        (first.clone(), usual, 3),
        (out(sized(1, 1, 70, 700), DType::F16, padded(0, 0, 0)), usual, 1),
        (Case { lse: false, ..out(small(), DType::F16, padded(1, 0, 0)) }, usual, 2),
        (out(small(), DType::BF16, padded(0, 3, 0)), usual, 2),
        (out(small(), DType::F16, padded(0, 0, 5)), usual, 2),
        (out(small(), DType::BF16, padded(0, 0, 0)), Places::Aligned(1), 2),
        (out(sized(1, 4, 30, 40), DType::F16, padded(0, 0, 0)), Places::Last, 1),
        (sized(1, 2, 300, 20), usual, 2),
        (out(sized(1, 2, 129, 257), DType::BF16, padded(8, 0, 0)), usual, 1),
        (out(small(), DType::F16, padded(4, 4, 4)), Places::Aligned(8), 2),
        (sized(1, 1, 1, 1), usual, 1),
        (sized(1, 1, 65, 127), usual, 1),
        (sized(1, 1, 130, 384), usual, 1),
        (sized(1, 1, 3, 129), usual, 1),
        (scaled(-0.3), usual, 1),
        (scaled(0.0), usual, 1),
        (scaled(2.0), usual, 1),
    ];
    for values in [Values::LoudTokens, Values::Huge, Values::Zeros, Values::OutlierChannels, Values::Tiny] {
        cases.push((Case { values: [values; 3], out_dtype: DType::F32, ..sized(1, 2, 33, 270) }, usual, 1));
    }
    // Every way to store rows.
    let stores = [
        (DType::F16, padded(0, 0, 0)),
        (DType::BF16, padded(0, 0, 0)),
        (DType::F16, padded(1, 0, 0)),
        (DType::BF16, padded(1, 0, 0)),
        (DType::F32, padded(0, 0, 0)),
    ];
    for far in [0, 1, 2].map(Places::Far) {
        cases.extend(stores.map(|(out_dtype, placement)| (out(small(), out_dtype, placement), far, 2)));
    }
    // A tail that ends inside the pair of keys of a lane, for each eight keys of a block; and an end of the queries in each eight
    // rows of a warp, for each way to store them.
    for eighth in 0..16 {
        let tail = 8 * eighth + 1 + 2 * (eighth % 4);
        for blocks in [0, 1 + eighth % 4] {
            let rows = 5 + 8 * (cases.len() % 4) + if blocks > 0 { tail } else { 0 };
            let (out_dtype, placement) = stores[cases.len() / 4 % stores.len()];
            let case = sized(1, 1, rows, 128 * blocks + tail);
            let case = Case { seed: eighth as u64, lse: blocks > 0, ..case };
            cases.push((out(case, out_dtype, placement), usual, 1));
        }
    }
    if variant.family == Family::Sm90a {
        cases.push((sized(2, 4, 200, 1000), usual, 1));
        cases.push((sized(2, 4, 500, 300), usual, 3));
        cases.push((sized(2, 4, 3, 800), usual, 5));
    }
    let mut cases: Vec<_> =
        cases.into_iter().flat_map(|(case, places, n)| masks(case).map(|c| (c, places, n))).collect();
    for (i, window) in windows().enumerate() {
        let [rows, keys] = [[40, 300], [70, 520], [300, 40], [5, 135]][i % 4];
        let case = Case { seed: i as u64, ..sized(1, 1, rows, keys + i) };
        cases.push((Case { problem: case.problem.with_window(window), ..case }, usual, 1));
    }
    // Both ends in one block, at each of its keys.
    for (left, right) in [(0, 0), (3, 5), (40, 0)] {
        let case = sized(1, 1, 140, 256);
        let window = Window { left: Some(left), right: Some(right) };
        cases.push((Case { problem: case.problem.with_window(window), ..case }, usual, 1));
    }
    match variant.kind {
        // Every third with sinks.
        Kind::Plain => {
            for (case, ..) in cases.iter_mut().step_by(3) {
                case.problem.score_mod.sinks = true;
            }
        }
        // The loop is that of a plain kernel: some of the cases, and each change of the scores in many of them.
        Kind::General => {
            cases = cases.into_iter().step_by(3).collect();
            for (i, (case, ..)) in cases.iter_mut().enumerate() {
                case.problem.score_mod = some_score_mod(&case.problem, i);
            }
        }
    }
    let check = |(case, places, multiprocessors): (Case, Places, u32)| -> Result<Check> {
        let [q, k, v] = case.tensors()?;
        let operands = Arc::new(reference::quantize(&case.problem, &q, &k, &v)?);
        let scores = case.scores();
        let (want, bounds) = reference::ideal_bounds(
            scores.scored(&case.problem).with_narrow(variant.takes_narrow()),
            &operands,
            case.out_dtype,
        )?;
        let wanted = Wanted::Attention { operands, want, bounds };
        let family = variant.family;
        let shared_bytes = variant.from_kib() << 10;
        let check = TensorCheck { case, places, family, multiprocessors, shared_bytes, wanted };
        Ok(Check::Tensors(Box::new(check)))
    };
    cases.into_iter().map(check).collect()
}

/// Every panel that is the last, with tails inside of each eight of its keys; blocks before it; every type, layout and kind of values; one CTA for a
/// head, and several.
fn short(variant: &ShortVariant) -> Result<Vec<Check>> {
    let types = [DType::F16, DType::BF16, DType::F32];
    let case = |(batch, heads_q), (seqlen_q, seqlen_kv), seed: usize| {
        let heads_kv = usize::div_ceil(heads_q, 2);
        let problem = AttentionProblem::new(batch, heads_q, heads_kv, seqlen_q, seqlen_kv, variant.head_dim);
        let (dtype, out_dtype) = (types[seed % 3], types[(seed + seed / 3) % 3]);
        Case { dtype, out_dtype, lse: !seed.is_multiple_of(4), ..Case::plain(problem, seed as u64) }
    };
    let mut cases = Vec::new();
    for eighth in 0..16 {
        let tail = 8 * eighth + 1 + 2 * (eighth % 4);
        for blocks in [0, 1 + eighth % 2] {
            let rows = 5 + 8 * (eighth % 4) + if blocks > 0 { 16 * eighth } else { 0 };
            cases.push((case((1, 1), (rows, 128 * blocks + tail), cases.len()), Places::Usual, 1));
        }
    }
    for (i, window) in windows().enumerate() {
        let [rows, keys] = [[40, 300], [70, 150], [300, 40], [5, 135]][i % 4];
        let (case, multiprocessors) = (case((1, 1), (rows, keys + i), i), [1, 2, 3][i % 3]);
        cases.push((Case { problem: case.problem.with_window(window), ..case }, Places::Usual, multiprocessors));
    }
    for (i, (rows, keys)) in [(1, 1), (65, 127), (64, 128), (130, 256), (300, 20)].into_iter().enumerate() {
        for case in masks(case((2, 4), (rows, keys), i)) {
            cases.push((case, Places::Usual, [1, 5][i % 2]));
        }
    }
    for dtype in types {
        for (placement, places) in [
            (padded(1, 0, 0), Places::Usual),
            (padded(0, 3, 0), Places::Usual),
            (padded(0, 0, 5), Places::Usual),
            (padded(4, 4, 4), Places::Aligned(8)),
            (padded(0, 0, 0), Places::Far(0)),
            (padded(0, 0, 0), Places::Far(1)),
            (padded(1, 1, 1), Places::Far(2)),
        ] {
            cases.push((Case { dtype, out_dtype: dtype, placement, ..case((2, 4), (35, 70), 1) }, places, 2));
        }
        for values in [Values::LoudTokens, Values::Huge, Values::Zeros, Values::OutlierChannels, Values::Tiny] {
            let case = case((1, 2), (33, 270), cases.len());
            cases.push((Case { dtype, values: [values; 3], ..case }, Places::Usual, 1));
        }
    }
    for scale in [-0.3, 0.0, 2.0] {
        let case = case((1, 2), (33, 140), 2);
        let problem = case.problem.with_softmax_scale(scale);
        cases.push((Case { problem, values: [Values::Uniform; 3], ..case }, Places::Usual, 1));
    }
    let check = |(case, places, multiprocessors): (Case, Places, u32)| -> Result<Check> {
        let inputs = case.tensors()?;
        let [q, k, v] = &inputs;
        let operands = reference::quantize(&case.problem, q, k, v)?;
        let (want, bounds) = reference::ideal_bounds(&case.problem, &operands, case.out_dtype)?;
        let wanted = Wanted::Short { inputs, want, bounds };
        // Every other case as on a GPU that has room for one large CTA and not for two small ones.
        let large = variant.shared_bytes(variant.most_warps, case.problem.seqlen_kv);
        let shared_bytes = if case.seed.is_multiple_of(2) { large } else { 227 << 10 };
        let family = Family::Sm80;
        let check = TensorCheck { case, places, family, multiprocessors, shared_bytes, wanted };
        Ok(Check::Tensors(Box::new(check)))
    };
    cases.into_iter().map(check).collect()
}

fn float16(head_dim: usize) -> Result<Vec<Check>> {
    let unmasked = float16_cases(head_dim).into_iter();
    let mut cases: Vec<_> = unmasked.flat_map(|(case, places)| masks(case).map(|c| (c, places))).collect();
    for (i, window) in windows().enumerate() {
        let [rows, keys] = [[70, 150], [130, 210], [150, 20], [5, 70]][i % 4];
        let problem = AttentionProblem::new(1, 1, 1, rows, keys + i, head_dim).with_window(window);
        cases.push((Case::plain(problem, i as u64), Places::Usual));
    }
    let check = |(case, places): (Case, Places)| -> Result<Check> {
        let inputs = case.tensors()?;
        let rows: Vec<usize> = (0..case.problem.seqlen_q).collect();
        let [q, k, v] = &inputs;
        let wanted = Wanted::Float16 { want: baseline::expected(&case.problem, q, k, v, &rows), inputs };
        Ok(Check::Tensors(Box::new(TensorCheck {
            case,
            places,
            family: Family::Sm80,
            shared_bytes: MOST_SHARED,
            multiprocessors: 1,
            wanted,
        })))
    };
    cases.into_iter().map(check).collect()
}

fn float16_cases(head_dim: usize) -> Vec<(Case, Places)> {
    let sizes = [(67, 203), (1, 1), (130, 64), (70, 300), (300, 20), (65, 127)];
    let mut cases = Vec::new();
    for (seed, (seqlen_q, seqlen_kv)) in sizes.into_iter().enumerate() {
        let problem = AttentionProblem::new(1, 2, 1, seqlen_q, seqlen_kv, head_dim);
        cases.push((Case { placement: padded(8, 16, 0), ..Case::plain(problem, seed as u64) }, Places::Usual));
    }
    // Scores that grow from block to block, so that sums are rescaled; tails in each eight keys, with queries' ends.
    for eighth in 0..16 {
        let (tail, blocks) = (8 * eighth + 1 + 2 * (eighth % 4), eighth % 4);
        let rows = 5 + 8 * (eighth % 4) + if eighth % 2 == 0 { 0 } else { 64 * blocks + tail };
        let problem = AttentionProblem::new(1, 1, 1, rows, 64 * blocks + tail, head_dim);
        let problem = problem.with_softmax_scale([0.25, 0.5, 1.0, -0.5][eighth / 4]);
        cases.push((Case::plain(problem, eighth as u64), Places::Usual));
    }
    let small = Case::plain(AttentionProblem::new(2, 4, 2, 70, 300, head_dim), 7);
    for (dimension, (token, head, batch)) in [(0, 0, 8), (0, 8, 0), (8, 0, 0)].into_iter().enumerate() {
        cases.push((Case { placement: padded(token, head, batch), ..small.clone() }, Places::Far(dimension)));
    }
    // Rows of the output are aligned to four bytes.
    for (token, head, batch) in [(2, 0, 0), (0, 6, 0), (0, 0, 10)] {
        let mut case = small.clone();
        case.placement[3] = padded(token, head, batch)[3];
        cases.push((case, Places::Usual));
    }
    cases
}

/// Inputs of both schemes, all head dims, and every kind of layout and of values.
fn conversions(dtype: DType) -> Vec<(Case, Places)> {
    let layouts = [
        (padded(8, 16, 0), Places::Usual),
        (padded(1, 0, 0), Places::Usual),
        (padded(0, 3, 0), Places::Usual),
        (padded(0, 0, 5), Places::Usual),
        (padded(4, 4, 4), Places::Aligned(8)),
        ([Placement::Bnhd; 4], Places::Aligned(1)),
        (padded(0, 0, 0), Places::Far(0)),
        (padded(1, 1, 1), Places::Far(1)),
        (padded(0, 0, 0), Places::Far(2)),
        (padded(1, 1, 1), Places::Far(2)),
    ];
    let values =
        [Values::Normal, Values::OutlierChannels, Values::LoudTokens, Values::Huge, Values::Tiny, Values::Zeros];
    let mut cases = Vec::new();
    for (i, (placement, places)) in layouts.into_iter().enumerate() {
        for (j, scheme) in [Scheme::Default, Scheme::Paper].into_iter().enumerate() {
            let dims: Vec<usize> = config::head_dims(&Family::ALL, scheme).collect();
            let far = matches!(places, Places::Far(_));
            let lengths = [(67, 201), (130, 40), (3, 600), (200, 530)];
            let (seqlen_q, seqlen_kv) = if far { (70, 140) } else { lengths[(i + j) % lengths.len()] };
            let head_dim = dims[(2 * i + j) % dims.len()];
            let problem = AttentionProblem::new(2, 4, 2, seqlen_q, seqlen_kv, head_dim).with_scheme(scheme);
            let plain = Case::plain(problem, (2 * i + j) as u64);
            let values = [values[(i + 3 * j) % values.len()]; 3];
            cases.push((Case { dtype, out_dtype: dtype, placement, values, ..plain }, places));
        }
    }
    // many blocks, and one token
    for (seqlen_q, seqlen_kv) in [(1, 1), (1, 5200)] {
        let plain = Case::plain(AttentionProblem::new(1, 1, 1, seqlen_q, seqlen_kv, 32), 5);
        cases.push((Case { dtype, out_dtype: dtype, ..plain }, Places::Usual));
    }
    cases
}

fn quantization(dtype: DType) -> Result<Vec<Check>> {
    let check = |(case, places): (Case, Places)| -> Result<Check> {
        let inputs = case.tensors()?;
        let [q, k, v] = &inputs;
        let want = Arc::new(reference::quantize(&case.problem, q, k, v)?);
        let wanted = Wanted::Operands { inputs, want };
        Ok(Check::Tensors(Box::new(TensorCheck {
            case,
            places,
            family: Family::Sm80,
            shared_bytes: MOST_SHARED,
            multiprocessors: 1,
            wanted,
        })))
    };
    conversions(dtype).into_iter().map(check).collect()
}

fn dequantization(dtype: DType) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for (case, places) in conversions(dtype) {
        let [q, k, v] = case.tensors()?;
        let operands = Arc::new(reference::quantize(&case.problem, &q, &k, &v)?);
        for operand in [Operand::Q, Operand::K, Operand::V] {
            let (case, operands) = (case.clone(), operands.clone());
            let wanted = Wanted::Dequantized { operands, operand };
            checks.push(Check::Tensors(Box::new(TensorCheck {
                case,
                places,
                family: Family::Sm80,
                shared_bytes: MOST_SHARED,
                multiprocessors: 1,
                wanted,
            })));
        }
    }
    Ok(checks)
}
