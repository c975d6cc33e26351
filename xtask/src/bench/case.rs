//! One problem on the GPU: buffers, launches, and the check of what the timed launches wrote.

use super::data;
use anyhow::{Context, Result, ensure};
use half::f16;
use int_flash_attention::driver::Driver;
use int_flash_attention::gpu::{BaselineLayouts, BaselinePlan};
use int_flash_attention::{
    AttentionOutput, AttentionPlan, AttentionProblem, DType, DequantizePlan, DeviceBuffer, DeviceOperands, Family, Gpu,
    HostQuantized, Operand, QuantizeLayouts, QuantizePlan, QuantizedK, QuantizedQ, QuantizedV, Scheme, Scored,
    StreamRef, TensorLayout, reference,
};
use int_flash_attention_kernels::config;
use int_flash_attention_kernels::layout::{KV_BLOCK, block_bytes, kv_blocks, packed_dim};
use int_flash_attention_tests::case::takes_narrow;
use int_flash_attention_tests::{baseline, properties};

/// Query positions of a head that are compared with the reference.
const CHECKED_ROWS: usize = 12;

/// Inputs, operands and an output of their own.
struct Copy {
    seeds: [u64; 3],
    inputs: [DeviceBuffer<f16>; 3],
    operands: DeviceOperands,
    o: DeviceBuffer<f16>,
}

/// Copies of one problem, so that a launch does not find its inputs in the cache.
pub struct Case {
    pub problem: AttentionProblem,
    copies: Vec<Copy>,
    workspace: DeviceBuffer<f32>,
    quantize: QuantizePlan,
    /// One for each family.
    attention: Vec<AttentionPlan>,
    /// Whether K's tokens share scales.
    shares_k: bool,
    dequantize: DequantizePlan,
    /// Where it has the head dim.
    float16: Option<BaselinePlan>,
}

impl Case {
    /// Allocates and fills as many copies as exceed `cache` bytes (at most 8), and quantizes them. INT8 attention with a kernel of
    /// each of these families; as on a GPU on which a CTA may have `shared_bytes` of shared memory, if that is said.
    pub fn new(
        gpu: &Gpu,
        problem: AttentionProblem,
        families: &[Family],
        shared_bytes: Option<usize>,
        cache: usize,
        run: u64,
    ) -> Result<Self> {
        let (q, kv) = (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()));
        let quantize = gpu.plan_quantize(&problem, &QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 })?;
        let output = AttentionOutput { layout: q, dtype: DType::F16, lse: false };
        let plan = |&family| match shared_bytes {
            Some(bytes) => gpu.plan_attention_as_with(bytes, &problem, &output),
            None => gpu.plan_attention_of(family, &problem, &output),
        };
        let attention = families.iter().map(plan);
        let attention = attention.collect::<int_flash_attention::Result<_>>()?;
        let dequantize = gpu.plan_dequantize(&problem, Operand::Q, &q, DType::F16)?;
        let baseline = || gpu.plan_baseline(&problem, &BaselineLayouts { q, k: kv, v: kv, o: q, lse: false });
        let float16 = config::baseline(problem.head_dim).map(|_| baseline()).transpose()?;
        let touched = 3 * q.span() + 2 * kv.span();
        let copies = (cache / touched + 1).min(8);
        let copy = |index: usize| -> Result<Copy> {
            let seeds = data::seeds(run, index);
            let input = |operand: usize, len| gpu.upload(&data::values(seeds[operand], 0, len));
            Ok(Copy {
                seeds,
                inputs: [input(0, q.span())?, input(1, kv.span())?, input(2, kv.span())?],
                operands: DeviceOperands::alloc(gpu, &problem)?,
                o: gpu.alloc(q.span())?,
            })
        };
        let shares_k = gpu.takes_narrow(&problem);
        let mut case = Self {
            copies: (0..copies).map(copy).collect::<Result<_>>()?,
            workspace: gpu.alloc(quantize.workspace_len())?,
            problem,
            quantize,
            attention,
            dequantize,
            float16,
            shares_k,
        };
        for copy in 0..copies {
            case.quantize(copy)?;
        }
        gpu.synchronize()?;
        Ok(case)
    }

    /// How many copies there are.
    pub fn copies(&self) -> usize {
        self.copies.len()
    }

    /// Quantizes Q, K and V of a copy.
    pub fn quantize(&mut self, copy: usize) -> Result<()> {
        let Copy { inputs: [q, k, v], operands, .. } = &mut self.copies[copy];
        let (q, k, v) = ((&*q).into(), (&*k).into(), (&*v).into());
        self.quantize.launch(StreamRef::DEFAULT, q, k, v, self.workspace.slice_mut(), &mut operands.view_mut())?;
        Ok(())
    }

    /// What is timed of the kernel of family number `plan`.
    pub fn timed(&self, plan: usize) -> Timed {
        Timed::Attention { narrow: takes_narrow(self.attention[plan].kernel()) }
    }

    /// INT8 attention on the operands of a copy, with the kernel of family number `plan`.
    pub fn attention(&mut self, plan: usize, copy: usize) -> Result<()> {
        let Copy { operands, o, .. } = &mut self.copies[copy];
        self.attention[plan].launch(StreamRef::DEFAULT, &operands.view(), o.into(), None)?;
        Ok(())
    }

    /// Q of a copy back to float16, into its output.
    pub fn dequantize(&mut self, copy: usize) -> Result<()> {
        let Copy { operands, o, .. } = &mut self.copies[copy];
        self.dequantize.launch(
            StreamRef::DEFAULT,
            operands.q.data.slice(),
            operands.q.scale.slice(),
            None,
            o.into(),
        )?;
        Ok(())
    }

    /// Float16 attention on the inputs of a copy.
    pub fn float16(&mut self, copy: usize) -> Result<()> {
        let Copy { inputs: [q, k, v], o, .. } = &mut self.copies[copy];
        let plan = self.float16.as_ref().context("no float16 kernel has this head dim")?;
        plan.launch(StreamRef::DEFAULT, (&*q).into(), (&*k).into(), (&*v).into(), o.into(), None)?;
        Ok(())
    }

    /// Whether there is a float16 kernel for the head dim.
    pub fn has_float16(&self) -> bool {
        self.float16.is_some()
    }

    /// Poisons a copy's output, so that a launch which writes nothing is found out.
    pub fn poison(&mut self, copy: usize) -> Result<()> {
        let o = &self.copies[copy].o;
        let driver = Driver::load()?;
        // SAFETY: the buffer has as many bytes; the default stream orders the launches that use it.
        unsafe { driver.fill(o.ptr(), 0xff, 2 * o.len()) }?;
        Ok(())
    }

    /// The largest error of O as a share of its bound, over sampled rows of the first, a middle and the last head; more
    /// than 1 is an error. `what` was the last launch on the copy.
    pub fn check(&self, copy: usize, what: Timed) -> Result<f64> {
        let heads = self.problem.batch * self.problem.heads_q;
        let mut worst = 0.0_f64;
        let mut sample = vec![0, heads / 2 + usize::from(heads > 2), heads - 1];
        sample.dedup();
        for head in sample.into_iter().filter(|&head| head < heads) {
            let share = self
                .check_head(copy, what, head)
                .with_context(|| format!("{what:?}, head {head}, {:?}", self.problem))?;
            worst = worst.max(share);
        }
        Ok(worst)
    }

    fn check_head(&self, copy: usize, what: Timed, head: usize) -> Result<f64> {
        let Copy { seeds, operands, o, .. } = &self.copies[copy];
        let (one, [q, k, v]) = data::one_head(&self.problem, *seeds, head)?;
        let (n, d) = (one.seqlen_q, one.head_dim);
        let rows: Vec<usize> = (0..CHECKED_ROWS).map(|i| (i * n / CHECKED_ROWS + i) % n).collect();
        let o: Vec<f16> = read(o, head * n * d, n * d)?;
        let at = |rows: &[usize]| {
            rows.iter().flat_map(|&row| &o[row * d..(row + 1) * d]).map(|x| x.to_f64()).collect::<Vec<f64>>()
        };
        if what == Timed::Float16 {
            // float64 on one core: fewer rows
            let rows: Vec<usize> = rows.into_iter().step_by(3).collect();
            let want = baseline::expected(&one, &q, &k, &v, &rows);
            return share(&at(&rows), &want.o, &want.bound);
        }
        let shared = Scored::from(&one).with_narrow(self.shares_k);
        let want = reference::quantize(shared, &q, &k, &v)?;
        properties::same_operands(&one, &head_operands(operands, &one, head)?, &want, &q)?;
        match what {
            Timed::Quantize => Ok(0.0),
            Timed::Dequantize => {
                let want = reference::dequantize_q(&want.q)?;
                let same = want.iter().zip(&o).all(|(&want, &got)| f16::from_f32(want) == got);
                ensure!(same, "the dequantized Q differs from the reference");
                Ok(0.0)
            }
            Timed::Attention { .. } | Timed::Float16 => {
                let one = Scored::from(&one).with_narrow(what == Timed::Attention { narrow: true });
                let (want, bounds) = reference::gpu_bounds_rows(one, &want, DType::F16, &rows)?;
                share(&at(&rows), &want.o, &bounds.o)
            }
        }
    }
}

/// What was launched last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// By a kernel that takes narrow blocks as such, or none.
    Attention {
        narrow: bool,
    },
    Float16,
    Quantize,
    Dequantize,
}

/// The largest error as a share of its bound.
fn share(got: &[f64], want: &[f64], bound: &[f64]) -> Result<f64> {
    properties::within("o", got, want, bound, got.len().max(1))?;
    let shares = got.iter().zip(want).zip(bound).filter(|((got, want), _)| got != want);
    Ok(shares.map(|((got, want), bound)| (got - want).abs() / bound).fold(0.0, f64::max))
}

/// Elements of a buffer, after everything that the GPU was given.
pub fn read<T: bytemuck::Pod>(buffer: &DeviceBuffer<T>, start: usize, len: usize) -> Result<Vec<T>> {
    ensure!(start + len <= buffer.len(), "the range leaves the buffer");
    buffer.gpu().synchronize()?;
    let mut values = vec![T::zeroed(); len];
    let from = buffer.ptr() + (start * size_of::<T>()) as u64;
    // SAFETY: the range lies inside the buffer, and the GPU is idle.
    unsafe { Driver::load()?.copy_to_host(bytemuck::cast_slice_mut(&mut values), from)? };
    Ok(values)
}

/// The operands of one head, as those of a problem of one head.
pub fn head_operands(all: &DeviceOperands, one: &AttentionProblem, head: usize) -> Result<HostQuantized> {
    let (n, d, blocks) = (one.seqlen_q, one.head_dim, kv_blocks(one.seqlen_kv));
    let (wide, keys) = (packed_dim(d), blocks * KV_BLOCK);
    let packed = blocks * block_bytes(wide);
    let bias = match (&all.q.bias, one.scheme) {
        (Some(bias), Scheme::Default) => Some(read(bias, head * n, n)?),
        _ => None,
    };
    Ok(HostQuantized {
        q: QuantizedQ {
            shape: one.q_shape(),
            scheme: one.scheme,
            data: read(&all.q.data, head * n * wide, n * wide)?,
            scale: read(&all.q.scale, head * n, n)?,
            bias,
        },
        k: QuantizedK {
            packed: None,
            shape: one.kv_shape(),
            scheme: one.scheme,
            format: all.k.format,
            data: read(&all.k.data, head * packed, packed)?,
            scale: read(&all.k.scale, head * keys, keys)?,
            block_scale: read(&all.k.block_scale, head * blocks, blocks)?,
            offset: read(&all.k.offset, head * d, d)?,
        },
        v: QuantizedV {
            packed: None,
            shape: one.kv_shape(),
            scheme: one.scheme,
            format: all.v.format,
            data: read(&all.v.data, head * packed, packed)?,
            scale: read(&all.v.scale, head * keys, keys)?,
            block_scale: read(&all.v.block_scale, head * blocks, blocks)?,
            unit: read(&all.v.unit, head, 1)?,
        },
    })
}
