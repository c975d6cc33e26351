//! What every kernel is put through on the PTX machine: small cases that leave no path out, with the reference's answers worked
//! out once, so that many mutants of a kernel can be held to them.
//!
//! Lengths of every number of blocks that an unrolled loop tells apart, with tails in each of their quarters; queries that see no
//! key; rows that are not aligned to 16 bytes, for one reason at a time; strides of more than 32 bits; scales and values that
//! are hard; on Hopper, lists of tiles and rings that go round.

use crate::baseline::{self, Expected};
use crate::case::{Case, MOST_SHARED, Placement, variant_on};
use crate::properties::{self, Kernels, OPERANDS, representable, same_operands, within};
use crate::sequences::{self, Lengths};
use crate::sim::{Part, Places, Simulator};
use anyhow::{Context, Result, ensure};
use int_flash_attention::reference::{self, Bounds, Int8};
use int_flash_attention::{AttentionProblem, DType, HostQuantized, HostTensor, Scheme, Scored, SeqLens, Window};
use int_flash_attention_kernels::config::short::SHORT;
use int_flash_attention_kernels::config::{self, AttentionVariant, Family};
use int_flash_attention_kernels::layout::packed_dim;
use int_flash_attention_kernels::quantize::launch::{CONVERT, GATHER, PAGE_SCALES, quantize};
use ptx_machine::Module;
use std::sync::{Arc, OnceLock};

mod append;
mod attention;
mod conversions;
mod convert;
mod decode;
mod float16;
mod gather;
mod prefill;
mod short;

/// One run of a kernel, and what must come out.
pub enum Check {
    /// Of attention and of conversions.
    Tensors(Box<TensorCheck>),
    /// Of decode and merge.
    Decode(Box<decode::DecodeCheck>),
    /// Of appends.
    Append(Box<append::AppendCheck>),
    /// Of pages as operands.
    Gather(Box<gather::GatherCheck>),
    /// Of pages from one kind to the other.
    Convert(Box<convert::ConvertCheck>),
    /// A prefill, by the kernels as they ship but for this.
    Prefill(Box<prefill::PrefillCheck>),
}

impl Check {
    /// Runs the kernel in the first of these modules that has it, which all stand in the place of the one of that name.
    ///
    /// # Errors
    ///
    /// What the machine finds, or the first element that is wrong.
    pub fn run(&self, name: &str, modules: &[Arc<Module>]) -> Result<()> {
        match self {
            Self::Tensors(check) => check.run(name, modules),
            Self::Decode(check) => check.run(name, modules),
            Self::Append(check) => check.run(name, modules),
            Self::Gather(check) => check.run(name, modules),
            Self::Convert(check) => check.run(name, modules),
            Self::Prefill(check) => check.run(name, modules),
        }
    }
}

/// A run of a kernel on tensors.
pub struct TensorCheck {
    what: What,
    case: Case,
    lengths: Lengths,
    places: Places,
    family: Family,
    multiprocessors: u32,
    /// That a CTA may have.
    shared_bytes: usize,
    wanted: Lazy<Wanted>,
}

/// What runs.
#[derive(Clone, Copy)]
enum What {
    Attention,
    Quantization,
    QuantizationOf(Part),
    Dequantization,
    Float16,
    Short,
}

/// The operands that the reference makes, and what the reference says.
enum Wanted {
    Attention { operands: HostQuantized, want: Int8, bounds: Bounds },
    Operands { inputs: [HostTensor; 3], want: HostQuantized },
    Float16 { inputs: [HostTensor; 3], want: Expected },
    Short { inputs: [HostTensor; 3], want: Int8, bounds: Bounds },
}

/// What is made when it is first needed: most mutants are killed before all of it is.
struct Lazy<T>(OnceLock<Result<T, String>>);

impl<T> Lazy<T> {
    const fn new() -> Self {
        Self(OnceLock::new())
    }

    fn get(&self, make: impl FnOnce() -> Result<T>) -> Result<&T> {
        let made = self.0.get_or_init(|| make().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
    }
}

impl TensorCheck {
    /// On a GPU of one multiprocessor that every kernel runs on, with tensors as an allocator gives them.
    const fn new(what: What, case: Case) -> Self {
        Self {
            what,
            case,
            lengths: SeqLens::Equal,
            places: Places::Usual,
            family: Family::Sm80,
            multiprocessors: 1,
            shared_bytes: MOST_SHARED,
            wanted: Lazy::new(),
        }
    }

    fn run(&self, name: &str, modules: &[Arc<Module>]) -> Result<()> {
        let Self { case, places, lengths, .. } = self;
        let simulator = Simulator::of(self.family, self.multiprocessors);
        let simulator = simulator.with_shared_bytes(self.shared_bytes).with_places(*places).with_lengths(lengths);
        self.compare(&simulator.with_modules(name, modules))
            .with_context(|| format!("{places:?}, {lengths:?}, {case:?}"))
    }

    fn make(&self) -> Result<Wanted> {
        let Self { case, lengths, .. } = self;
        let (problem, inputs) = (&case.problem, case.tensors()?);
        let [q, k, v] = &inputs;
        let scores = case.scores();
        let variant = variant_on(self.shared_bytes, self.family, problem);
        let narrow = !matches!(self.what, What::Short) && variant.is_some_and(AttentionVariant::takes_narrow);
        let scored = scores.scored(problem).with_narrow(narrow);
        let on_host = lengths.map(Vec::as_slice);
        if let What::Float16 = self.what {
            let rows: Vec<usize> = (0..problem.seqlen_q).collect();
            return Ok(Wanted::Float16 { want: baseline::expected(problem, q, k, v, &rows), inputs });
        }
        let operands = match lengths {
            SeqLens::Equal => reference::quantize(scored, q, k, v)?,
            _ => reference::sequences::quantize(scored, &on_host, q, k, v)?,
        };
        let bounds = || match lengths {
            SeqLens::Equal => reference::ideal_bounds(scored, &operands, case.out_dtype),
            _ => reference::sequences::gpu_bounds(scored, &on_host, &operands, case.out_dtype, true),
        };
        Ok(match self.what {
            What::Attention => {
                let (want, bounds) = bounds()?;
                Wanted::Attention { operands, want, bounds }
            }
            What::Short => {
                let (want, bounds) = bounds()?;
                Wanted::Short { inputs, want, bounds }
            }
            _ => Wanted::Operands { inputs, want: operands },
        })
    }

    fn compare(&self, simulator: &Simulator) -> Result<()> {
        let (case, problem) = (&self.case, &self.case.problem);
        let outputs = |o: &HostTensor, lse: Option<Vec<f32>>, want: &Int8, bounds: &Bounds| {
            within("o", &representable(o, &want.o, &bounds.o), &want.o, &bounds.o, problem.value_dim())?;
            ensure!(lse.is_some() == case.lse, "a log-sum-exp unasked, or none");
            lse.map_or(Ok(()), |lse| within("lse", &doubles(&lse), &want.lse, &bounds.lse, 1))
        };
        match self.wanted.get(|| self.make())? {
            Wanted::Attention { operands, want, bounds } => {
                let (scores, out) = (case.scores(), case.output()?);
                let (o, lse) =
                    simulator.attention(&scores.scored(problem), operands, &out, case.out_dtype, case.lse)?;
                outputs(&o, lse, want, bounds)
            }
            Wanted::Operands { inputs: [q, k, v], want } => match (self.what, &self.lengths) {
                (What::Quantization, SeqLens::Equal) => {
                    same_operands(problem, &simulator.quantize(problem, q, k, v)?, want, q)
                }
                (What::QuantizationOf(part), SeqLens::Equal) => {
                    let shared = Scored::from(problem).with_narrow(simulator.shares_k(problem));
                    let got = simulator.quantize_part(shared, [q, k, v], Some((part, want)))?;
                    same_operands(problem, &got, want, q)
                }
                (What::QuantizationOf(part), lengths) => {
                    let shared = Scored::from(problem).with_narrow(simulator.shares_k(problem));
                    let got = simulator.quantize_part(shared, [q, k, v], Some((part, want)))?;
                    sequences::same_operands(problem, lengths, &got, want, q)
                }
                (What::Quantization, lengths) => {
                    sequences::same_operands(problem, lengths, &simulator.quantize(problem, q, k, v)?, want, q)
                }
                (_, SeqLens::Equal) => {
                    OPERANDS.into_iter().try_for_each(|operand| properties::dequantize(simulator, case, want, operand))
                }
                (_, lengths) => sequences::dequantized(simulator, case, lengths, want),
            },
            Wanted::Float16 { inputs: [q, k, v], want } => {
                let (o, lse) = simulator.attention_f16(problem, [q, k, v], &case.output()?)?;
                within("o", &o.dense_f64(), &want.o, &want.bound, problem.head_dim)?;
                within("lse", &doubles(&lse), &want.lse, &want.lse_bound, 1)
            }
            Wanted::Short { inputs: [q, k, v], want, bounds } => {
                let (out, gpu) = (case.output()?, (self.multiprocessors as usize, self.shared_bytes));
                let (o, lse) = simulator.short(problem, [q, k, v], (&out, case.out_dtype), case.lse, gpu)?;
                outputs(&o, lse, want, bounds)
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
        return attention::of(variant).into_iter().map(Ok).chain(prefill::of_attention(variant)).collect();
    }
    if let Some(variant) = config::BASELINE.iter().find(|variant| variant.name == kernel) {
        return Ok(float16::of(variant.head_dim));
    }
    if let Some(variant) = SHORT.iter().find(|variant| variant.name == kernel) {
        return Ok(short::of(variant));
    }
    if let Some(checks) = decode::of(kernel) {
        return checks;
    }
    if kernel == GATHER.entry {
        return gather::of();
    }
    if kernel == CONVERT.entry {
        return convert::of();
    }
    if kernel == PAGE_SCALES.entry {
        return prefill::of();
    }
    for dtype in [DType::F16, DType::BF16, DType::F32] {
        if ["", "_d32", "_paper", "_d32_paper"].iter().any(|of| kernel == format!("quantize_{dtype}{of}")) {
            let is = |p: &AttentionProblem| quantize(packed_dim(p.head_dim), dtype.code(), p.scheme).entry == kernel;
            let mut checks = conversions::quantization(dtype);
            checks.retain(|check| !matches!(check, Check::Tensors(check) if !is(&check.case.problem)));
            return Ok(checks);
        }
        if kernel == format!("quantize_wide_{dtype}") {
            return Ok(conversions::wide_quantization(dtype));
        }
        // What it finds is in what `quantize` makes of it.
        if kernel == format!("v_amax_{dtype}") {
            let mut checks = conversions::quantization(dtype);
            checks.retain(|check| matches!(check, Check::Tensors(check) if check.case.problem.scheme == Scheme::Paper));
            return Ok(checks);
        }
        if kernel == format!("append_{dtype}") {
            return append::of(dtype);
        }
        if kernel == format!("append_few_{dtype}") {
            return append::of_few(dtype);
        }
        if kernel == format!("dequantize_{dtype}") {
            return Ok(conversions::dequantization(dtype));
        }
    }
    anyhow::bail!("no cases are known for the kernel {kernel}")
}

const fn padded(token: usize, head: usize, batch: usize) -> [Placement; 4] {
    [Placement::Padded { token, head, batch }; 4]
}

/// The case with sequences of unlike lengths, among them none, one, and lengths about a tile and a block: packed, or as key lengths
/// of a dense batch.
fn unlike(case: Case, which: usize) -> (Case, Lengths) {
    if which.is_multiple_of(2) {
        return sequences::packed(case, &[(0, 0), (1, 1), (66, 129), (5, 0), (0, 7), (40, 130)], 10 * which);
    }
    let problem = AttentionProblem { seqlen_q: 35, seqlen_kv: 290, ..case.problem };
    sequences::key_lengths(Case { problem, ..case }, &[290, 0, 1, 128, 129])
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
