//! Two runs held against each other on the same inputs: a GPU and the PTX machine on the same kernels, or two families of
//! attention kernels on one GPU.
//!
//! The quantization kernels must give the same bits, `q_bias` included. PTX defines the rounding and the order of all that
//! they do (`.rn` keeps the assembler from contracting), but for `rcp.approx`; and of that comes the correctly rounded
//! reciprocal, whatever it is (`quantize::scale::reciprocal`).
//!
//! In the attention kernels the exponentials, `rcp.approx`, `lg2.approx` and the float16 `mma` are approximate on a GPU. The
//! tolerances are at `int8_tolerance` and [`Agreement::float16`].

use crate::baseline;
use crate::case::Case;
use crate::properties::{Kernels, Operand, identical_operands, representable};
use crate::sim::Simulator;
use anyhow::{Context, Result, ensure};
use int_flash_attention::reference::{self, Bounds};
use int_flash_attention::{DType, HostQuantized, HostTensor, Scheme, ScoreMod, Scored};
use int_flash_attention_kernels::config::BASELINE;
use std::collections::BTreeMap;
use std::fmt;

/// What was compared so far.
#[derive(Debug, Default)]
pub struct Agreement {
    kinds: BTreeMap<&'static str, Tally>,
}

/// Of one kind of output.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    cases: usize,
    elements: usize,
    /// Elements with the same bits.
    same: usize,
    /// The largest difference, as a share of what is allowed.
    largest: f64,
}

impl Agreement {
    /// Quantization, INT8 attention and dequantization of a case on both.
    ///
    /// # Errors
    ///
    /// When one of them fails, or the first difference that is not allowed.
    pub fn int8(&mut self, gpu: &impl Kernels, machine: &Simulator, case: &Case) -> Result<()> {
        let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
        let shared = Scored::from(problem).with_narrow(gpu.shares_k(problem));
        let operands = machine.quantize_part(shared, [&q, &k, &v], None)?;
        identical_operands(&gpu.quantize(problem, &q, &k, &v)?, &operands)?;
        self.add("GPU and PTX machine, quantize", Tally { cases: 1, ..Tally::exact(quantized_elements(&operands)) });

        let (layout, scores) = (case.output()?, case.scores());
        let scored = scores.scored(problem);
        let [(o_gpu, lse_gpu), (o_machine, lse_machine)] = [
            gpu.attention(&scored, &operands, &layout, case.out_dtype, case.lse)?,
            machine.attention(&scored, &operands, &layout, case.out_dtype, case.lse)?,
        ];
        let scored = scored.with_narrow(gpu.narrow(problem));
        let (want, bounds) = reference::gpu_bounds(scored, &operands, case.out_dtype)?;
        let [o_gpu, o_machine] = [&o_gpu, &o_machine].map(|o| representable(o, &want.o, &bounds.o));
        let tolerance = int8_tolerance(bounds, &reference::ideal_bounds(scored, &operands, case.out_dtype)?.1);
        let (o, lse) = match problem.scheme {
            Scheme::Default => ("GPU and PTX machine, default scheme, o", "GPU and PTX machine, default scheme, lse"),
            Scheme::Paper => ("GPU and PTX machine, paper's scheme, o", "GPU and PTX machine, paper's scheme, lse"),
        };
        self.compare(o, &o_gpu, &o_machine, &tolerance.o)?;
        ensure!(lse_gpu.is_some() == case.lse && lse_machine.is_some() == case.lse, "a log-sum-exp unasked, or none");
        if let (Some(gpu), Some(machine)) = (lse_gpu, lse_machine) {
            self.compare(lse, &doubles(&gpu), &doubles(&machine), &tolerance.lse)?;
        }
        for (operand, shape) in
            [(Operand::Q, problem.q_shape()), (Operand::K, problem.kv_shape()), (Operand::V, problem.v_shape())]
        {
            let layout = case.placement[3].layout(shape)?;
            let on_gpu = gpu.dequantize(problem, &operands, operand, &layout, case.out_dtype)?;
            let on_machine = machine.dequantize(problem, &operands, operand, &layout, case.out_dtype)?;
            let same = bits(&on_gpu) == bits(&on_machine);
            ensure!(same, "dequantized {operand:?} differs");
            let cases = usize::from(operand == Operand::Q);
            self.add("GPU and PTX machine, dequantize", Tally { cases, ..Tally::exact(shape.elements()) });
        }
        Ok(())
    }

    /// INT8 attention of a case on the same operands by two families of kernels on one GPU.
    ///
    /// Up to the exponentials both have the same bits, and these are the same instructions on the same GPU: their codes of P are the
    /// same, whatever they are. `int8_tolerance`, which has the codes' share once, is more than enough.
    ///
    /// # Errors
    ///
    /// When one of them fails, or the first difference that is not allowed.
    pub fn families<K: Kernels>(&mut self, both: [&K; 2], case: &Case, operands: &HostQuantized) -> Result<()> {
        if both[0].narrow(&case.problem) != both[1].narrow(&case.problem) {
            // Other numbers, for which each is held to the reference.
            return Ok(());
        }
        let (layout, scores) = (case.output()?, case.scores());
        let scored = scores.scored(&case.problem);
        let run = |kernels: &K| kernels.attention(&scored, operands, &layout, case.out_dtype, case.lse);
        let [(o_first, lse_first), (o_second, lse_second)] = [run(both[0])?, run(both[1])?];
        let (want, bounds) = reference::gpu_bounds(scored, operands, case.out_dtype)?;
        let [o_first, o_second] = [&o_first, &o_second].map(|o| representable(o, &want.o, &bounds.o));
        let tolerance = int8_tolerance(bounds, &reference::ideal_bounds(scored, operands, case.out_dtype)?.1);
        self.compare("two families, o", &o_first, &o_second, &tolerance.o)?;
        if let (Some(first), Some(second)) = (lse_first, lse_second) {
            self.compare("two families, lse", &doubles(&first), &doubles(&second), &tolerance.lse)?;
        }
        Ok(())
    }

    /// Float16 attention of a case of float16 tensors on both.
    ///
    /// Either run is within [`baseline::expected`]'s bounds of float64, so they are within twice as much of each other. There
    /// is no tighter bound to be had from their having all but the approximations in common: what dominates is the rounding
    /// of P, and a difference in an exponential's last bit may move P from one neighbour to the next, which is twice half a
    /// step.
    ///
    /// # Errors
    ///
    /// When one of them fails, or the first difference that is not allowed.
    pub fn float16(&mut self, gpu: &impl Kernels, machine: &Simulator, case: &Case) -> Result<()> {
        let (problem, [q, k, v]) = (&case.problem, case.tensors()?);
        let layout = case.output()?;
        let (o_gpu, lse_gpu) = gpu.attention_f16(problem, [&q, &k, &v], &layout)?;
        let (o_machine, lse_machine) = machine.attention_f16(problem, [&q, &k, &v], &layout)?;
        let rows: Vec<usize> = (0..problem.seqlen_q).collect();
        let expected = baseline::expected(problem, &q, &k, &v, &rows);
        let twice = |bounds: Vec<f64>| bounds.into_iter().map(|bound| 2.0 * bound).collect::<Vec<_>>();
        self.compare(
            "GPU and PTX machine, float16, o",
            &o_gpu.dense_f64(),
            &o_machine.dense_f64(),
            &twice(expected.bound),
        )?;
        self.compare(
            "GPU and PTX machine, float16, lse",
            &doubles(&lse_gpu),
            &doubles(&lse_machine),
            &twice(expected.lse_bound),
        )
    }

    fn compare(&mut self, name: &'static str, gpu: &[f64], machine: &[f64], allowed: &[f64]) -> Result<()> {
        ensure!(gpu.len() == machine.len() && gpu.len() == allowed.len(), "{name}: results of different lengths");
        if let Some(excess) = reference::first_excess(gpu, machine, allowed) {
            let reference::Excess { index, got, want, bound } = excess;
            anyhow::bail!("{name}, element {index}: {got:e} and {want:e}, allowed {bound:e} apart");
        }
        let mut tally = Tally { cases: 1, elements: gpu.len(), ..Tally::default() };
        for ((gpu, machine), allowed) in gpu.iter().zip(machine).zip(allowed) {
            if gpu.to_bits() == machine.to_bits() {
                tally.same += 1;
            } else {
                tally.largest = tally.largest.max((gpu - machine).abs() / allowed);
            }
        }
        self.add(name, tally);
        Ok(())
    }

    fn add(&mut self, name: &'static str, more: Tally) {
        let tally = self.kinds.entry(name).or_default();
        tally.cases += more.cases;
        tally.elements += more.elements;
        tally.same += more.same;
        tally.largest = tally.largest.max(more.largest);
    }
}

impl Tally {
    /// Of elements that are all the same.
    fn exact(elements: usize) -> Self {
        Self { elements, same: elements, ..Self::default() }
    }
}

impl fmt::Display for Agreement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, Tally { cases, elements, same, largest }) in &self.kinds {
            write!(f, "{name}: {cases} cases, {elements} elements")?;
            if same == elements {
                writeln!(f, ", all the same bits")?;
            } else {
                let share = 100.0 * *same as f64 / *elements as f64;
                writeln!(f, ", {share:.2} % the same bits, largest difference {largest:.3} of what is allowed")?;
            }
        }
        Ok(())
    }
}

/// How far two runs of an INT8 kernel on the same operands may be apart, the second with exact exponentials.
///
/// Up to the exponentials they have the same bits. The second then has the reference's codes of P, so of the distance to the
/// reference the codes' share ("1." at [`reference::gpu_bounds`]) is the first run's alone; sums, end and rounding ("2." and
/// "3.") are either's. In the paper's scheme, where even an exponential's last bit may decide between two codes, the share is
/// the width of a window that both runs' codes lie in, and counts once all the same.
fn int8_tolerance(first: Bounds, second: &Bounds) -> Bounds {
    let sum = |first: Vec<f64>, second: &[f64]| first.into_iter().zip(second).map(|(a, b)| a + b).collect();
    Bounds { o: sum(first.o, &second.o), lse: sum(first.lse, &second.lse) }
}

fn doubles(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn bits(tensor: &HostTensor) -> Vec<u64> {
    tensor.dense_f64().into_iter().map(f64::to_bits).collect()
}

/// Elements of all arrays of the operands.
fn quantized_elements(HostQuantized { q, k, v }: &HostQuantized) -> usize {
    let bytes = q.data.len() + k.data.len() + v.data.len();
    let tokens = q.scale.len() + q.bias.as_ref().map_or(0, Vec::len) + k.scale.len() + v.scale.len();
    bytes + tokens + k.block_scale.len() + k.offset.len() + v.block_scale.len() + v.unit.len()
}

/// A case's shapes and layouts, as far as the float16 kernels take them, with values that float16 attention has a bound for: with
/// scores in the thousands a rounding of a score is more than one exponential's worth.
#[must_use]
pub fn float16_case(case: &Case) -> Case {
    use crate::values::Values;
    let mut problem = case.problem;
    problem.score_mod = ScoreMod::NONE;
    let mild = |values| if matches!(values, Values::Huge | Values::LoudTokens) { Values::Normal } else { values };
    let placement = case.placement.map(|placement| placement.in_multiples_of(8));
    Case { problem, dtype: DType::F16, out_dtype: DType::F16, values: case.values.map(mild), placement, ..case.clone() }
}

/// Both comparisons of a case.
///
/// # Errors
///
/// As of both.
pub fn all(agreement: &mut Agreement, gpu: &impl Kernels, machine: &Simulator, case: &Case) -> Result<()> {
    agreement.int8(gpu, machine, case)?;
    let [d, value_dim] = [case.problem.head_dim, case.problem.value_dim()];
    // The float16 kernels pad nothing.
    if d != value_dim || !BASELINE.iter().any(|variant| variant.head_dim == d) {
        return Ok(());
    }
    agreement.float16(gpu, machine, &float16_case(case)).context("float16")
}
