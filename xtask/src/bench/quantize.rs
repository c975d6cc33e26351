//! `cargo xtask bench --quantize`: quantization alone, of each element type, of all operands and of some, beside a copy.

use super::Bench;
use super::case::head_operands;
use super::timing::{self, Spread};
use crate::workspace;
use anyhow::Result;
use bytemuck::Pod;
use half::{bf16, f16};
use int_flash_attention::{
    AnySlice, AttentionProblem, DType, DeviceBuffer, DeviceOperands, Gpu, HostTensor, QuantizeLayouts, Scored,
    StreamRef, TensorLayout, reference,
};
use int_flash_attention_tests::properties;
use serde::Serialize;
use std::path::Path;

/// What a row quantizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Operands {
    All,
    KeysAndValues,
    /// With a scale for each token of K.
    KeysOfTheirOwnAndValues,
    Queries,
}

const OPERANDS: [Operands; 4] =
    [Operands::All, Operands::KeysAndValues, Operands::KeysOfTheirOwnAndValues, Operands::Queries];

impl Operands {
    fn name(self) -> &'static str {
        match self {
            Self::All => "q, k, v",
            Self::KeysAndValues => "k, v",
            Self::KeysOfTheirOwnAndValues => "k, v by token",
            Self::Queries => "q",
        }
    }

    /// Tensors.
    fn count(self) -> usize {
        match self {
            Self::All => 3,
            Self::KeysAndValues | Self::KeysOfTheirOwnAndValues => 2,
            Self::Queries => 1,
        }
    }
}

/// Elements after which the inputs come again: several times what L2 has.
const DIFFERENT: usize = (1 << 26) + 77;

#[derive(Serialize)]
struct Row {
    dtype: String,
    head_dim: usize,
    seqlen: usize,
    operands: Operands,
    spread: Spread,
    tb_per_s: f64,
    /// That over what a copy of 1 GiB comes to.
    of_copy: f64,
    /// The time of a copy that reads and writes as many bytes, launched and timed as this, over this one's.
    of_copy_as_large: f64,
}

#[derive(Serialize)]
struct Figures {
    device: String,
    copy_tb_per_s: f64,
    rows: Vec<Row>,
}

/// Measures these shapes, as `Args` has them.
pub fn run(
    bench: &Bench,
    ([batch, heads], head_dims, seqlens): ([usize; 2], &[usize], &[usize]),
    dtypes: &[DType],
    json: Option<&Path>,
) -> Result<()> {
    let copy = bench.copy_bandwidth()?.and_then(|row| row.tb_per_s).unwrap_or(f64::NAN);
    let mut figures = Figures { device: bench.gpu.name().to_owned(), copy_tb_per_s: copy, rows: Vec::new() };
    println!("copy of 1 GiB {copy:.3} TB/s; shares are of that, and of a copy of as many bytes");
    for (&head_dim, &seqlen) in head_dims.iter().flat_map(|d| seqlens.iter().map(move |n| (d, n))) {
        let problem = AttentionProblem::new(batch, heads, heads, seqlen, seqlen, head_dim);
        problem.check()?;
        let (all, some) = (3 * problem.q_shape().elements(), super::data::values(bench.run, 0, DIFFERENT));
        let mut normal = some.repeat(all.div_ceil(DIFFERENT));
        normal.truncate(all);
        for &dtype in dtypes {
            let wide = || normal.iter().map(|x| x.to_f32());
            figures.rows.extend(match dtype {
                DType::F16 => rows(&bench.gpu, &problem, dtype, &normal, copy)?,
                DType::BF16 => {
                    rows(&bench.gpu, &problem, dtype, &wide().map(bf16::from_f32).collect::<Vec<_>>(), copy)?
                }
                DType::F32 => rows(&bench.gpu, &problem, dtype, &wide().collect::<Vec<_>>(), copy)?,
            });
        }
    }
    if let Some(file) = json {
        workspace::write_atomically(file, &serde_json::to_vec_pretty(&figures)?)?;
    }
    Ok(())
}

/// A dtype's rows of a shape, of one array with the elements of Q, K and V.
fn rows<T: Pod>(gpu: &Gpu, problem: &AttentionProblem, dtype: DType, values: &[T], copy: f64) -> Result<Vec<Row>>
where
    for<'a> &'a DeviceBuffer<T>: Into<AnySlice<'a>>,
    HostTensor: OfElements<T>,
{
    let layout = TensorLayout::bhnd(problem.q_shape());
    let buffers = values.chunks_exact(layout.span()).map(|part| gpu.upload(part)).collect::<Result<Vec<_>, _>>()?;
    let input = |i: usize| -> AnySlice<'_> { (&buffers[i]).into() };
    let mut out = DeviceOperands::alloc(gpu, problem)?;
    let all = gpu.plan_quantize(problem, &QuantizeLayouts { q: layout, k: layout, v: layout, dtype })?;
    let kv = gpu.plan_quantize_kv(problem, layout, layout, dtype)?;
    let own = kv.clone().with_shared_k(false);
    let q = gpu.plan_quantize_q(problem, layout, dtype)?;
    let mut none = gpu.alloc::<f32>(0)?;
    let mut figures = Vec::new();
    for operands in OPERANDS {
        let spread = timing::launch_ms(gpu, |_| {
            let stream = StreamRef::DEFAULT;
            Ok(match operands {
                Operands::All => {
                    all.launch(stream, input(0), input(1), input(2), none.slice_mut(), &mut out.view_mut())
                }
                Operands::KeysAndValues | Operands::KeysOfTheirOwnAndValues => {
                    let plan = if operands == Operands::KeysAndValues { &kv } else { &own };
                    let mut out = out.view_mut();
                    plan.launch(stream, input(1), input(2), none.slice_mut(), &mut out.k, &mut out.v)
                }
                Operands::Queries => q.launch(stream, input(0), out.k.offset.slice(), &mut out.q.view_mut()),
            }?)
        })?;
        let shares = match operands {
            Operands::All => all.shares_k(),
            Operands::KeysAndValues => kv.shares_k(),
            Operands::KeysOfTheirOwnAndValues | Operands::Queries => false,
        };
        check(problem, values, &out, shares)?;
        let bytes = operands.count() * problem.q_shape().elements() * (dtype.size() + 1);
        let tb_per_s = bytes as f64 / spread.median * 1e-9;
        let of_copy_as_large = timing::copy_ms(gpu, bytes / 2)?.median / spread.median;
        let row = Row {
            dtype: dtype.to_string(),
            head_dim: problem.head_dim,
            seqlen: problem.seqlen_q,
            operands,
            spread,
            tb_per_s,
            of_copy: tb_per_s / copy,
            of_copy_as_large,
        };
        println!(
            "{:<5} d {:<4} n {:<6} {:<14} {:>9.4} ms {:>7.3} TB/s {:>6.3} {:>6.3}",
            row.dtype,
            row.head_dim,
            row.seqlen,
            operands.name(),
            spread.median,
            row.tb_per_s,
            row.of_copy,
            row.of_copy_as_large
        );
        figures.push(row);
    }
    Ok(figures)
}

/// A host tensor of elements of a type.
pub trait OfElements<T>: Sized {
    /// Of contiguous heads.
    fn of(values: &[T], layout: TensorLayout) -> int_flash_attention::Result<Self>;
}

macro_rules! of_elements {
    ($($t:ty),*) => {$(
        impl OfElements<$t> for HostTensor {
            fn of(values: &[$t], layout: TensorLayout) -> int_flash_attention::Result<Self> {
                Self::new(values.to_vec(), layout)
            }
        }
    )*};
}
of_elements!(f16, bf16, f32);

/// What the last launch wrote of the last head, and what others wrote before, against the reference.
fn check<T: Pod>(problem: &AttentionProblem, values: &[T], out: &DeviceOperands, shares: bool) -> Result<()>
where
    HostTensor: OfElements<T>,
{
    let (head, elements) = (problem.batch * problem.heads_q - 1, problem.q_shape().elements());
    let one = AttentionProblem { batch: 1, heads_q: 1, heads_kv: 1, ..*problem };
    let span = one.q_shape().elements();
    let tensor =
        |i: usize| HostTensor::of(&values[i * elements + head * span..][..span], TensorLayout::bhnd(one.q_shape()));
    let [q, k, v] = [tensor(0)?, tensor(1)?, tensor(2)?];
    let want = reference::quantize(Scored::from(&one).with_narrow(shares), &q, &k, &v)?;
    properties::same_operands(&one, &head_operands(out, &one, head)?, &want, &q)
}
