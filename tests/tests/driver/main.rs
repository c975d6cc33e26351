//! The library on a pretended driver: what plans refuse, which context things are of, what recordings survive, and that nothing
//! is left behind. No GPU is needed, and none is used.

mod cache;
mod contexts;
mod decode;
mod devices;
mod foreign;
mod jobs;
mod modules;
mod one_buffer;
mod plans;
mod prefill;
mod ranks;
mod recordings;
mod scores;

use half::f16;
use int_flash_attention::{
    AttentionOutput, AttentionPlan, AttentionProblem, DType, DeviceBuffer, DeviceOperands, Error, Gpu, QuantizeLayouts,
    QuantizePlan, Result, Shape, Stream, TensorLayout,
};
use pretended_driver::Session;

/// The end of a test: no rule was broken, and nothing is alive.
fn nothing_is_left(session: &Session) {
    assert_eq!(session.violations(), Vec::<String>::new());
    assert_eq!(session.alive(), pretended_driver::Alive::default());
}

/// A small problem on a GPU: inputs, plans, operands, output.
struct Job {
    inputs: [DeviceBuffer<f16>; 3],
    workspace: DeviceBuffer<f32>,
    operands: DeviceOperands,
    o: DeviceBuffer<f16>,
    lse: DeviceBuffer<f32>,
    quantize: QuantizePlan,
    attention: AttentionPlan,
}

fn problem() -> AttentionProblem {
    AttentionProblem::new(1, 2, 1, 10, 20, 64)
}

fn layouts(problem: &AttentionProblem) -> (TensorLayout, TensorLayout) {
    (TensorLayout::bhnd(problem.q_shape()), TensorLayout::bhnd(problem.kv_shape()))
}

impl Job {
    fn new(gpu: &Gpu) -> Result<Self> {
        Self::of(gpu, problem())
    }

    fn of(gpu: &Gpu, problem: AttentionProblem) -> Result<Self> {
        let (q, kv) = layouts(&problem);
        let quantize = gpu.plan_quantize(&problem, &QuantizeLayouts { q, k: kv, v: kv, dtype: DType::F16 })?;
        let output = AttentionOutput { layout: q, dtype: DType::F16, lse: true };
        let kv_len = kv.span();
        Ok(Self {
            inputs: [gpu.alloc(q.span())?, gpu.alloc(kv_len)?, gpu.alloc(kv_len)?],
            workspace: gpu.alloc(quantize.workspace_len())?,
            operands: DeviceOperands::alloc(gpu, &problem)?,
            o: gpu.alloc(q.span())?,
            lse: gpu.alloc(problem.q_shape().rows())?,
            attention: gpu.plan_attention(&problem, &output)?,
            quantize,
        })
    }

    fn launch(&mut self, stream: &Stream) -> Result<()> {
        self.quantize(stream)?;
        self.attend(stream)
    }

    fn quantize(&mut self, stream: &Stream) -> Result<()> {
        let [q, k, v] = &self.inputs;
        let (workspace, mut out) = (self.workspace.slice_mut(), self.operands.view_mut());
        self.quantize.launch(stream, q.into(), k.into(), v.into(), workspace, &mut out)
    }

    fn attend(&mut self, stream: &Stream) -> Result<()> {
        self.attention.launch(stream, &self.operands.view(), (&mut self.o).into(), Some(self.lse.slice_mut()))
    }
}

/// The sentence of an error.
#[track_caller]
fn sentence<T>(result: Result<T>) -> String {
    result.err().expect("an error").to_string()
}

/// A launch whose buffer or row `what` is one element shorter than it has to be.
#[track_caller]
fn is_one_short(result: Result<()>, what: &str) {
    match result {
        Err(Error::Length { name, given, expected }) => assert_eq!((name, given + 1), (what, expected)),
        other => panic!("{what}: {other:?}"),
    }
}

/// A contiguous output of float16.
fn output(shape: Shape, lse: bool) -> AttentionOutput {
    AttentionOutput { layout: TensorLayout::bhnd(shape), dtype: DType::F16, lse }
}

#[track_caller]
fn is_other_context(result: Result<()>, what: &str) {
    match result {
        Err(Error::OtherContext { name, .. }) => assert_eq!(name, what),
        other => panic!("{what}: {other:?}"),
    }
}
