//! The whole job on host tensors: quantize, attend, round.

use crate::device::Device;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::gpu::{AttentionOutput, DeviceBuffer, Gpu, QuantizeLayouts};
use crate::problem::{AttentionProblem, HostSeqLens, Scheme, SeqLens, Window};
use crate::progress::ProgressFn;
use crate::quantized::Lengths;
use crate::reference::{self, sequences};
use crate::resources;
use crate::scores::{HostScores, Scored};
use crate::shape::{Order, TensorLayout};
use crate::tensor::HostTensor;
use crate::view::HostView;
use std::fmt;

/// How [`attention`] is done.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Which keys a query sees; [`Window::CAUSAL`] is the causal mask, its diagonal aligned to the bottom right.
    pub window: Window,
    /// Numeric scheme.
    pub scheme: Scheme,
    /// The lengths of sequences that are unlike: packed in the tensors' one batch, whose tokens they are together, or with fewer keys than
    /// the tensors have.
    pub lengths: HostSeqLens<'a>,
    /// Factor of the scores; `None` is `1 / sqrt(head_dim)`.
    pub softmax_scale: Option<f32>,
    /// What changes the scores: softcap, ALiBi, bias, mask and sinks.
    pub scores: HostScores<'a>,
    /// Whether the log-sum-exp is wanted.
    pub lse: bool,
    /// Element type of the output; `None` is Q's.
    pub output_dtype: Option<DType>,
    /// Order of the output's elements in memory. **`None` is Q's own order**, so that the output of a transposed view, such as
    /// `[batch][head][token][dim]` strides over `[batch][token][head][dim]` memory, is `bnhd`; and `bhnd` where Q is not
    /// contiguous.
    pub output_order: Option<Order>,
    /// Called as rows are done (on the CPU; a GPU is done at once).
    pub progress: Option<ProgressFn<'a>>,
}

impl fmt::Debug for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("window", &self.window)
            .field("scheme", &self.scheme)
            .field("lengths", &self.lengths)
            .field("softmax_scale", &self.softmax_scale)
            .field("scores", &self.scores)
            .field("lse", &self.lse)
            .field("output_dtype", &self.output_dtype)
            .field("output_order", &self.output_order)
            .finish_non_exhaustive()
    }
}

impl<'a> Options<'a> {
    /// The problem that these options pose on these tensors.
    ///
    /// # Errors
    /// Shapes that do not go together, or without kernels; lengths that are not those of the tensors.
    pub fn problem<'t>(
        &self,
        q: impl Into<HostView<'t>>,
        k: impl Into<HostView<'t>>,
        v: impl Into<HostView<'t>>,
    ) -> Result<AttentionProblem> {
        let problem = AttentionProblem::of(q.into().shape(), k.into().shape(), v.into().shape())?;
        let problem = AttentionProblem { softmax_scale: self.softmax_scale, ..problem };
        let problem = problem.with_window(self.window).with_scheme(self.scheme).of_lengths(&self.lengths)?;
        let problem = problem.with_score_mod(self.scores.score_mod(&problem)?);
        problem.check()?;
        problem.spans(&self.lengths)?;
        self.scored(&problem).check()?;
        Ok(problem)
    }

    /// A problem of [`problem`](Self::problem) and the tensors that change its scores, for the references.
    #[must_use]
    pub fn scored<'p>(&self, problem: &'p AttentionProblem) -> Scored<'p>
    where
        'a: 'p,
    {
        Scored::new(problem, self.scores.tensors())
    }
}

/// What [`attention`] returns.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// The output, contiguous in the order of [`Options::output_order`].
    pub o: HostTensor,
    /// The log-sum-exp of each row's scores (scaled, natural logarithm), `[batch][heads_q][seqlen_q]`, if it was wanted; `-inf` of a row that sees
    /// no key.
    pub lse: Option<Vec<f32>>,
}

/// INT8 attention on host tensors: quantizes Q, K and V, runs the forward pass (arXiv 2409.16997, or the more accurate
/// default scheme), and rounds the output.
///
/// `q` is `[batch, heads_q, seqlen_q, head_dim]`, `k` and `v` `[batch, heads_kv, seqlen_kv, head_dim]`, in any layout, of
/// one element type: a [`HostTensor`] by reference, or a [`HostView`] of memory that something else owns. For tensors that are on a GPU already, see [`Gpu`]. A GPU that was used stays open, with its kernels, until
/// the process ends.
///
/// ```
/// use int_flash_attention::{DType, Device, HostTensor, Options, Shape, TensorLayout, Window, attention};
/// let layout = TensorLayout::bhnd(Shape::new(1, 2, 100, 64)?);
/// let x = HostTensor::from_fn(DType::F32, layout, |_, h, n, d| ((h + 3 * n + 7 * d) as f32).sin())?;
/// let output = attention(Device::Cpu, &x, &x, &x, &Options { window: Window::CAUSAL, ..Options::default() })?;
/// assert_eq!(output.o.shape(), x.shape());
/// // the first row sees one key: its output is that key's value
/// assert!((output.o.get(0, 0, 0, 5) - x.get(0, 0, 0, 5)).abs() < 0.01);
/// # Ok::<(), int_flash_attention::Error>(())
/// ```
///
/// # Errors
/// Shapes that do not go together or have no kernels, tensors of different types, values that are not finite, results that
/// are not (docs/kernel-abi.md, "Range"), memory or threads that the system does not give, and everything about the GPU.
pub fn attention<'a>(
    device: Device,
    q: impl Into<HostView<'a>>,
    k: impl Into<HostView<'a>>,
    v: impl Into<HostView<'a>>,
    options: &Options<'_>,
) -> Result<Output> {
    let (q, k, v) = (q.into(), k.into(), v.into());
    match device {
        Device::Cpu => {
            let (problem, output) = check(q, k, v, options)?;
            check_result(&problem, &options.lengths, on_cpu(options.scored(&problem), q, k, v, &output, options)?)
        }
        Device::Cuda(ordinal) => Gpu::of_process(ordinal)?.attention(q, k, v, options),
    }
}

impl Gpu {
    /// [`attention`] on this GPU, without loading its kernels again for each call.
    ///
    /// # Errors
    /// As [`attention`].
    pub fn attention<'a>(
        &self,
        q: impl Into<HostView<'a>>,
        k: impl Into<HostView<'a>>,
        v: impl Into<HostView<'a>>,
        options: &Options<'_>,
    ) -> Result<Output> {
        let (q, k, v) = (q.into(), k.into(), v.into());
        let (problem, output) = check(q, k, v, options)?;
        check_result(
            &problem,
            &options.lengths,
            on_gpu(self, options.scored(&problem), [q, k, v], &output, &options.lengths)?,
        )
    }
}

/// The problem and its output, after all tensors have been checked.
fn check(
    q: HostView<'_>,
    k: HostView<'_>,
    v: HostView<'_>,
    options: &Options<'_>,
) -> Result<(AttentionProblem, AttentionOutput)> {
    let problem = options.problem(q, k, v)?;
    for (name, tensor) in [("q", q), ("k", k), ("v", v)] {
        if tensor.dtype() != q.dtype() {
            return Err(Error::DTypeMismatch { name, given: tensor.dtype(), expected: q.dtype() });
        }
    }
    q.check_finite("q")?;
    for (name, tensor) in [("k", k), ("v", v)] {
        match options.lengths {
            // Hidden keys may be anything.
            SeqLens::KeyLengths { .. } => {
                for span in problem.spans(&options.lengths)? {
                    tensor.check_tokens_finite(name, span.batch, span.kv)?;
                }
            }
            _ => tensor.check_finite(name)?,
        }
    }
    let order = options.output_order.or_else(|| q.layout().order()).unwrap_or(Order::Bhnd);
    let layout = TensorLayout::new(problem.o_shape(), order);
    let output = AttentionOutput { layout, dtype: options.output_dtype.unwrap_or(q.dtype()), lse: options.lse };
    Ok((problem, output))
}

fn on_cpu(
    scored: Scored<'_>,
    q: HostView<'_>,
    k: HostView<'_>,
    v: HostView<'_>,
    output: &AttentionOutput,
    options: &Options<'_>,
) -> Result<Output> {
    let problem = scored.problem;
    resources::start_threads()?;
    resources::room_for("attention on the CPU", cpu_bytes(problem, output)?)?;
    let (lengths, progress) = (&options.lengths, options.progress);
    let mut result = if *lengths == SeqLens::Equal {
        let operands = reference::quantize(problem, q, k, v)?;
        reference::int8_with_progress(scored, &operands, progress)?
    } else {
        let operands = sequences::quantize(problem, lengths, q, k, v)?;
        sequences::int8_with_progress(scored, lengths, &operands, progress)?
    };
    if output.dtype != DType::F32 {
        let largest = output.dtype.largest();
        result.o.iter_mut().for_each(|o| *o = o.clamp(-largest, largest));
    }
    Ok(Output {
        o: HostTensor::from_dense(output.dtype, output.layout, &result.o)?,
        lse: output.lse.then(|| result.lse.iter().map(|&lse| lse as f32).collect()),
    })
}

/// What [`on_cpu`] allocates, to within the small parts.
fn cpu_bytes(problem: &AttentionProblem, output: &AttentionOutput) -> Result<usize> {
    let (q, kv) = (Lengths::of(problem.q_shape())?, Lengths::of_kv(problem)?);
    // a head of K or V in float32, or both unpacked, for each thread
    let heads = rayon::current_num_threads().min(kv.heads).saturating_mul(kv.kv_data / kv.heads * size_of::<f32>());
    // float64 results, as they come and put together
    let results = q.q_data.saturating_add(q.q_scale).saturating_mul(2 * size_of::<f64>());
    let codes = q.q_data.saturating_add(kv.kv_data).saturating_add(kv.kv_data);
    let scales = q
        .q_scale
        .saturating_mul(2)
        .saturating_add(kv.kv_scale)
        .saturating_add(kv.kv_scale)
        .saturating_mul(size_of::<f32>());
    let output = output.layout.span().saturating_mul(output.dtype.size());
    Ok([heads, results, codes, scales, output].into_iter().fold(0, usize::saturating_add))
}

/// Whether a result is one: finite inputs may leave the range of a scheme or of the output's element type.
fn check_result(problem: &AttentionProblem, lengths: &HostSeqLens<'_>, result: Output) -> Result<Output> {
    let dtype = result.o.dtype();
    let refused = |name, value, [batch, head, token]: [usize; 3]| {
        Err(Error::ResultNotFinite { name, value, batch, head, token, dtype })
    };
    if let Err(Error::NotFinite { name, value, batch, head, token, .. }) = result.o.check_finite("o") {
        return refused(name, value, [batch, head, token]);
    }
    // A mask or a bias may hide all keys that the window leaves.
    let may_hide = problem.score_mod.mask.is_some() || problem.score_mod.bias.is_some();
    let Some(lse) = &result.lse else { return Ok(result) };
    for span in problem.spans(lengths)? {
        let one = problem.of_one(span.q.len(), span.kv.len());
        for head in 0..problem.heads_q {
            for (row, &value) in lse[span.rows(problem, head)].iter().enumerate() {
                let no_keys = value == f32::NEG_INFINITY && (may_hide || one.visible_keys(row).is_empty());
                if !value.is_finite() && !no_keys {
                    return refused("lse", value, [span.batch, head, span.q.start + row]);
                }
            }
        }
    }
    Ok(result)
}

fn on_gpu(
    gpu: &Gpu,
    scored: Scored<'_>,
    [q, k, v]: [HostView<'_>; 3],
    output: &AttentionOutput,
    lengths: &HostSeqLens<'_>,
) -> Result<Output> {
    use crate::gpu::{AnySlice, AnySliceMut, ScoreViews};
    let Scored { problem, tensors, .. } = scored;
    let layouts = QuantizeLayouts { q: q.layout(), k: k.layout(), v: v.layout(), dtype: q.dtype() };
    // Also where float16 would be faster: what was asked for is INT8, and the copies take longer than either.
    let job = gpu.plan_job_anyway(problem, &layouts, output)?;
    let mut workspace = gpu.alloc::<u8>(job.workspace_bytes())?;
    let [q_device, k_device, v_device] = [gpu.upload(q.bytes())?, gpu.upload(k.bytes())?, gpu.upload(v.bytes())?];
    let slopes = tensors.alibi_slopes.map(|slopes| gpu.upload(slopes)).transpose()?;
    let bias = tensors.bias.map(|bias| gpu.upload(bias.bytes())).transpose()?;
    let mask = tensors.mask.map(|mask| gpu.upload(mask)).transpose()?;
    let sinks = tensors.sinks.map(|sinks| gpu.upload(sinks)).transpose()?;
    let mut o = gpu.alloc::<u8>(output.layout.span() * output.dtype.size())?;
    let mut lse = output.lse.then(|| gpu.alloc::<f32>(problem.q_shape().rows())).transpose()?;

    let lengths = lengths.try_map(|array| gpu.upload(array))?;
    let lengths = lengths.map(DeviceBuffer::slice);

    let stream = gpu.stream()?;
    let inputs = [&q_device, &k_device, &v_device].map(|bytes| AnySlice::from_bytes(bytes.slice(), layouts.dtype));
    let o_view = AnySliceMut::from_bytes(o.slice_mut(), output.dtype);
    let scores = ScoreViews {
        alibi_slopes: slopes.as_ref().map(DeviceBuffer::slice),
        bias: bias.as_ref().zip(tensors.bias).map(|(bytes, of)| AnySlice::from_bytes(bytes.slice(), of.dtype())),
        mask: mask.as_ref().map(DeviceBuffer::slice),
        sinks: sinks.as_ref().map(DeviceBuffer::slice),
    };
    let lse_view = lse.as_mut().map(|lse| lse.slice_mut());
    job.launch_scored(&stream, inputs, &scores, &lengths, workspace.slice_mut(), o_view, lse_view)?;
    Ok(Output {
        o: HostTensor::from_bytes(output.dtype, &o.to_vec_on(&stream)?, output.layout)?,
        lse: lse.map(|lse| lse.to_vec_on(&stream)).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::Shape;

    fn constant(value: f32) -> HostTensor {
        let layout = TensorLayout::bhnd(Shape::new(1, 1, 4, 32).unwrap());
        HostTensor::from_fn(DType::F32, layout, |_, _, _, _| value).unwrap()
    }

    #[test]
    fn results_that_are_not_finite_are_errors() {
        let (x, large) = (constant(1.0), constant(1e6));
        // Fine in float32; more than float16 holds, where it is the largest number.
        let options = Options { lse: true, ..Options::default() };
        assert!(attention(Device::Cpu, &x, &x, &large, &options).is_ok());
        let narrow = Options { output_dtype: Some(DType::F16), ..options };
        let output = attention(Device::Cpu, &x, &x, &large, &narrow).unwrap();
        assert!(output.o.dense_f64().iter().all(|&o| o == DType::F16.largest()));
        // Products of 1e39 and more with what is taken out of K: a row's log-sum-exp leaves float32.
        let huge = constant(1e19);
        let scaled = Options { softmax_scale: Some(30.0), ..options };
        let error = attention(Device::Cpu, &huge, &huge, &x, &scaled).unwrap_err();
        assert!(matches!(error, Error::ResultNotFinite { name: "lse", .. }), "{error}");
        // The paper's scheme takes nothing out; elements saturate.
        let paper = Options { scheme: Scheme::Paper, ..scaled };
        let lse = attention(Device::Cpu, &huge, &huge, &x, &paper).unwrap().lse.unwrap();
        let saturated = 30.0 * 32.0 * (127.0 * f64::from(1 << 20)).powi(2);
        assert!(lse.iter().all(|&lse| (f64::from(lse) / saturated - 1.0).abs() < 1e-6), "{lse:?}");
        // The paper's scores themselves leave it under a larger scale.
        let steep = Options { softmax_scale: Some(1e30), ..paper };
        let error = attention(Device::Cpu, &huge, &huge, &x, &steep).unwrap_err();
        assert!(matches!(error, Error::ResultNotFinite { .. }), "{error}");
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let tensor = |x: f32| {
            let layout = TensorLayout::bhnd(Shape::new(1, 1, 3, 32).unwrap());
            let value = move |_, _, n, d| if (n, d) == (1, 7) { x } else { 1.0 };
            HostTensor::from_fn(DType::F32, layout, value).unwrap()
        };
        let good = tensor(1.0);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(tensor) {
            for (name, [q, k, v]) in
                [("q", [&bad, &good, &good]), ("k", [&good, &bad, &good]), ("v", [&good, &good, &bad])]
            {
                let error = attention(Device::Cpu, q, k, v, &Options::default()).unwrap_err();
                let at = matches!(error, Error::NotFinite { name: which, token: 1, dim: 7, .. } if which == name);
                assert!(at, "{name}: {error}");
            }
        }
    }

    #[test]
    fn rows_without_keys_are_results() {
        let layout = TensorLayout::bhnd(Shape::new(1, 1, 2, 32).unwrap());
        let kv = HostTensor::from_fn(DType::F32, layout, |_, _, n, _| n as f32).unwrap();
        let options = Options { lse: true, window: Window::CAUSAL, ..Options::default() };
        let output = attention(Device::Cpu, &constant(1.0), &kv, &kv, &options).unwrap();
        assert_eq!(output.lse.unwrap()[..2], [f32::NEG_INFINITY; 2]);
    }

    /// 2^60 elements that are 32: neither walked nor allocated.
    #[test]
    fn inputs_that_pose_as_more_than_memory_holds_are_refused() {
        let repeated = |shape: Shape| {
            let layout = TensorLayout::strided(shape, [0; 3]).unwrap();
            HostTensor::new(vec![1.0_f32; 32], layout).unwrap()
        };
        let q = repeated(Shape::new(65535, 65535, 1 << 20, 32).unwrap());
        let kv = repeated(Shape::new(65535, 1, 1, 32).unwrap());
        let error = attention(Device::Cpu, &q, &kv, &kv, &Options::default()).unwrap_err();
        assert!(matches!(error, Error::Memory { .. }), "{error}");
    }

    #[test]
    fn the_output_has_the_order_that_was_asked_for() {
        let shape = Shape::new(2, 3, 5, 32).unwrap();
        let value = |b, h, n, d| ((b + 3 * h + 7 * n + 11 * d) as f32).sin();
        let q = HostTensor::from_fn(DType::F32, TensorLayout::bnhd(shape), value).unwrap();
        let run = |output_order| {
            attention(Device::Cpu, &q, &q, &q, &Options { output_order, ..Options::default() }).unwrap().o
        };
        let own = run(None);
        assert_eq!(own.layout(), TensorLayout::bnhd(shape));
        for order in [Order::Bhnd, Order::Bnhd] {
            let asked = run(Some(order));
            assert_eq!(asked.layout(), TensorLayout::new(shape, order));
            assert_eq!(asked.dense_f64(), own.dense_f64());
        }
    }
}
