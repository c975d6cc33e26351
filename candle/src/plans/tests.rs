//! On a pretended driver: what a call of the CUDA backend asks of it.

use super::*;
use crate::FlashAttn;
use crate::VarLen;
use crate::cache::{AppendCall, AttendCall, Attended};
use crate::op::{Attention, Lengths};
use crate::{CacheConfig, PackedQueries, PagedTables};
use candle_core::{DType as Type, Device, Layout, Shape, Tensor};
use int_flash_attention::{
    AnySlice, AnySliceMut, Appended, CacheFormat, CacheShape, DType, DeviceBuffer, Error, JobPath, KvCache, NewTokens,
    PageTables, ScoreViews, SeqLens, Slots, StreamRef, ViewMutCache,
};
use pretended_driver::{PretendedGpu, Session, begin};

/// Calls that allocate, fill, load or wait.
const CALLS: [&str; 10] = [
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemsetD8Async",
    "cuMemsetD8_v2",
    "cuModuleLoadDataEx",
    "cuLibraryLoadData",
    "cuStreamSynchronize",
    "cuEventSynchronize",
    "cuCtxSynchronize",
    "cuStreamCreate",
];

fn counted(session: &Session) -> [usize; 10] {
    CALLS.map(|name| session.calls(name))
}

/// Of what changes scores, and of lengths: two sequences of a model's layer.
fn attention(options: FlashAttn, lengths: Lengths) -> Attention {
    Attention { options: options.with_causal(true), lengths }
}

fn plain() -> Attention {
    attention(FlashAttn::new(0.125), Lengths::Equal)
}

fn call(op: &Attention, seqlen_q: usize, seqlen_kv: usize) -> Call {
    let layout = |tokens, heads| match op.lengths {
        Lengths::Packed(_) => Layout::contiguous(Shape::from((2 * tokens, heads, 64))),
        _ => Layout::contiguous(Shape::from((2, tokens, heads, 64))),
    };
    let kv = layout(seqlen_kv, 2);
    Call::new(op, DType::F16, [&layout(seqlen_q, 6), &kv, &kv]).unwrap()
}

/// Memory as candle would give it.
struct Tensors {
    inputs: [DeviceBuffer<u8>; 3],
    memory: DeviceBuffer<u8>,
    o: DeviceBuffer<u8>,
    floats: DeviceBuffer<f32>,
    ends: DeviceBuffer<u32>,
}

impl Tensors {
    fn new(gpu: &Gpu, call: &Call, bytes: usize) -> Self {
        let tensor = |layout: TensorLayout| gpu.alloc(layout.span() * call.dtype.size()).unwrap();
        let o = tensor(TensorLayout::bnhd(call.problem.q_shape()));
        let (floats, ends) = (gpu.alloc(12).unwrap(), gpu.alloc(3).unwrap());
        Self { inputs: call.layouts.map(tensor), memory: gpu.alloc(bytes).unwrap(), o, floats, ends }
    }

    fn launch(&mut self, op: &Attention, plan: &JobPlan) -> Result<()> {
        let inputs = [0, 1, 2].map(|at| AnySlice::from_bytes(self.inputs[at].slice(), DType::F16));
        let o = AnySliceMut::from_bytes(self.o.slice_mut(), DType::F16);
        let scores = ScoreViews {
            alibi_slopes: op.options.alibi_slopes.as_ref().map(|_| self.floats.slice()),
            sinks: op.options.sinks.as_ref().map(|_| self.floats.slice()),
            ..ScoreViews::default()
        };
        let lengths = match op.lengths {
            Lengths::Equal => SeqLens::Equal,
            Lengths::Packed(_) => SeqLens::Packed { cu_seqlens_q: self.ends.slice(), cu_seqlens_kv: self.ends.slice() },
            Lengths::Keys(_) => SeqLens::KeyLengths { seqlens_kv: self.ends.slice() },
        };
        plan.launch_scored(StreamRef::PER_THREAD, inputs, &scores, &lengths, self.memory.slice_mut(), o, None)
    }
}

#[test]
fn a_call_is_launches_and_nothing_else() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let engine = Engine::new(gpu.clone());
        let heads = Tensor::zeros(6, Type::F32, &Device::Cpu).unwrap();
        let scored = FlashAttn::new(0.125).with_softcap(30.0).with_alibi_slopes(heads.clone()).with_sinks(heads);
        for op in [plain(), attention(scored, Lengths::Equal)] {
            let call = call(&op, 100, 700);
            let plan = engine.job(&call).unwrap();
            assert_eq!(plan.path(), JobPath::Quantized);
            let mut tensors = Tensors::new(&gpu, &call, plan.workspace_bytes());
            let (before, launched) = (counted(&session), session.launched().len());
            for _ in 0..3 {
                let again = engine.job(&call).unwrap();
                assert!(Arc::ptr_eq(&plan, &again));
                tensors.launch(&op, &again).unwrap();
            }
            assert_eq!(counted(&session), before);
            assert_eq!(session.launched().len(), launched + 6);

            // Another length is another plan, of the kernels that are there.
            let longer = engine.job(&self::call(&op, 100, 701)).unwrap();
            assert!(!Arc::ptr_eq(&plan, &longer));
            assert_eq!(counted(&session), before);
        }
    }
    assert_eq!(session.violations(), Vec::<String>::new());
    assert_eq!(session.alive(), pretended_driver::Alive::default());
}

/// Short keys go through one kernel, which asks for no workspace.
#[test]
fn a_short_call_is_one_launch() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let call = call(&plain(), 20, 20);
        let plan = Engine::new(gpu.clone()).job(&call).unwrap();
        assert_eq!((plan.path(), plan.workspace_bytes()), (JobPath::Fused, 0));
        let mut tensors = Tensors::new(&gpu, &call, 1);
        tensors.launch(&plain(), &plan).unwrap();
        assert_eq!(session.launched().len(), 1);
    }
    assert_eq!(session.violations(), Vec::<String>::new());
}

/// Lengths that change from call to call are read on the GPU.
#[test]
fn lengths_make_no_plans() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let engine = Engine::new(gpu.clone());
        let packed = |ends: [u32; 3]| {
            let ends = Tensor::new(&ends, &Device::Cpu).unwrap();
            let lengths = VarLen { seqlens_q: ends.clone(), seqlens_k: ends, max_seqlen_q: 150, max_seqlen_k: 150 };
            attention(FlashAttn::new(0.125), Lengths::Packed(lengths))
        };
        let padded = |keys: [u32; 2]| {
            let keys = Tensor::new(&keys, &Device::Cpu).unwrap();
            attention(FlashAttn::new(0.125), Lengths::Keys(keys))
        };
        let heads = Tensor::zeros(6, Type::F32, &Device::Cpu).unwrap();
        let scored = |mut op: Attention| {
            op.options = op.options.with_softcap(30.0).with_alibi_slopes(heads.clone()).with_sinks(heads.clone());
            op
        };
        for [op, other] in [
            [packed([0, 50, 200]), packed([0, 150, 170])],
            [padded([5, 7]), padded([100, 1])],
            [packed([0, 50, 200]), packed([0, 150, 170])].map(scored),
            [padded([5, 7]), padded([100, 1])].map(scored),
        ] {
            let plan = engine.job(&call(&op, 100, 100)).unwrap();
            assert!(Arc::ptr_eq(&plan, &engine.job(&call(&other, 100, 100)).unwrap()));
            let mut tensors = Tensors::new(&gpu, &call(&op, 100, 100), plan.workspace_bytes());
            let before = counted(&session);
            tensors.launch(&op, &plan).unwrap();
            assert_eq!(counted(&session), before);
        }
    }
    assert_eq!(session.violations(), Vec::<String>::new());
}

#[test]
fn plans_are_forgotten_before_they_are_too_many() {
    let session = begin(&[PretendedGpu::A10]);
    {
        let engine = Engine::new(Gpu::new(0).unwrap());
        let call = |length| call(&plain(), 1, length);
        let first = engine.job(&call(1)).unwrap();
        for length in 2..=MOST_PLANS + 1 {
            engine.job(&call(length)).unwrap();
        }
        assert_eq!(engine.jobs.0.lock().unwrap().len(), 1);
        // What has been given out still works.
        let mut tensors = Tensors::new(&engine.gpu, &call(1), first.workspace_bytes().max(1));
        tensors.launch(&plain(), &first).unwrap();
    }
    assert_eq!(session.violations(), Vec::<String>::new());
}

#[test]
fn memory_that_is_too_small_is_refused() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let call = call(&plain(), 10, 700);
        let plan = Engine::new(gpu.clone()).job(&call).unwrap();
        let mut tensors = Tensors::new(&gpu, &call, plan.workspace_bytes() - 1);
        assert!(matches!(tensors.launch(&plain(), &plan), Err(Error::Length { .. })));
        assert_eq!(session.launched(), Vec::<String>::new());
    }
}

/// A layer's cache on the GPU, and a step's memory: two sequences of up to 4 pages, 6 query heads on 2.
struct Cached {
    shape: CacheShape,
    pool: DeviceBuffer<u8>,
    words: DeviceBuffer<u32>,
    floats: DeviceBuffer<f32>,
    tensor: DeviceBuffer<u8>,
    memory: DeviceBuffer<u8>,
    workspace: DeviceBuffer<f32>,
    o: DeviceBuffer<u8>,
}

impl Cached {
    const CONFIG: CacheConfig = CacheConfig { num_pages: 8, num_kv_heads: 2, head_dim: 64 };

    /// The last pages have V in 4 bits.
    fn new(gpu: &Gpu, v4_pages: usize) -> Self {
        let CacheConfig { num_pages, num_kv_heads, head_dim } = Self::CONFIG;
        let shape = CacheShape::new(num_pages, num_kv_heads, head_dim).unwrap().with_v4_pages(v4_pages).unwrap();
        let bytes = |len| gpu.alloc::<u8>(len).unwrap();
        Self {
            shape,
            pool: bytes(shape.bytes()),
            words: gpu.alloc(64).unwrap(),
            floats: gpu.alloc(1 << 10).unwrap(),
            tensor: bytes(1 << 18),
            memory: bytes(1 << 21),
            workspace: gpu.alloc(1 << 20).unwrap(),
            o: bytes(1 << 18),
        }
    }

    /// The calls of a step of so many new tokens of each sequence, or of the two together, whose lengths and slots do not matter.
    fn calls(&self, step: &Step<'_>) -> (AttendCall, AppendCall) {
        let zeros = |dims: &[usize], dtype| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
        let tables = PagedTables { block_tables: zeros(&[2, 4], Type::U32), context_lens: zeros(&[2], Type::U32) };
        let packed = step.packed.map(|max_seqlen_q| PackedQueries { seqlens_q: zeros(&[3], Type::U32), max_seqlen_q });
        let (q, tokens) = match step.packed {
            Some(_) => (zeros(&[step.tokens, 6, 64], Type::F16), step.tokens),
            None => (zeros(&[2, step.tokens, 6, 64], Type::F16), 2 * step.tokens),
        };
        let kv = zeros(&[tokens, 2, 64], Type::F16);
        let attend = AttendCall::new(&self.shape, &q, packed.as_ref(), &tables, step.options).unwrap();
        let append = AppendCall::new(&self.shape, Some(&attend), &kv, &kv, &zeros(&[tokens], Type::I64)).unwrap();
        (attend, append)
    }

    /// Appends, then attends, as `crate::cuda::cache` does, and says how much memory the attention has asked for.
    fn step(&mut self, engine: &Engine, step: &Step<'_>) -> usize {
        let (call, new) = self.calls(step);
        let at = StreamRef::PER_THREAD;
        let heads_q = new.q.filter(|_| step.together).map_or(0, |q| q.shape().heads);
        let problem = AppendProblem { cache: self.shape, heads_q, max_tokens: new.tokens, dtype: new.dtype };
        let append = engine.append(&problem).unwrap();
        let data = AnySlice::from_bytes(self.tensor.slice(), DType::F16);
        let appended = Appended {
            q: new.q.filter(|_| step.together).map(|layout| NewTokens { data, layout }),
            k: NewTokens { data, layout: new.layouts[0] },
            v: NewTokens { data, layout: new.layouts[1] },
            slots: Slots::U32(self.words.slice()),
        };
        let mut cache: ViewMutCache<'_> =
            KvCache { shape: self.shape, format: CacheFormat::CURRENT, pool: self.pool.slice_mut(), k_offset: None };
        // Parts of an engine's tensors, which begin anywhere.
        let tables = PageTables {
            batch: 2,
            max_blocks: call.table_stride,
            block_table: self.words.slice().range(1, 9).unwrap(),
            seqlens_kv: self.words.slice().range(3, 5).unwrap(),
        };
        let o = AnySliceMut::from_bytes(self.o.slice_mut(), DType::F16);
        let scores = ScoreViews {
            sinks: step.options.sinks.as_ref().map(|_| self.floats.slice().range(1, 7).unwrap()),
            alibi_slopes: step.options.alibi_slopes.as_ref().map(|_| self.floats.slice().range(2, 8).unwrap()),
            ..ScoreViews::default()
        };
        match call.attended {
            Attended::Pages(on) => {
                let plans = engine.step(&StepKey { on, q: call.q, dtype: call.dtype }).unwrap();
                // No more than is asked for.
                let of_q = self.memory.slice_mut().range(0, plans.q_bytes()).unwrap();
                let workspace = self.workspace.slice_mut().range(0, plans.workspace_len()).unwrap();
                let q = if step.together {
                    let mut q = plans.queries(of_q).unwrap();
                    append.launch(at, &appended, &mut cache, Some(&mut q)).unwrap();
                    q
                } else {
                    append.launch(at, &appended, &mut cache, None).unwrap();
                    let zeros = self.floats.slice().range(0, plans.offsets_len()).unwrap();
                    plans.quantize(at, data, zeros, of_q).unwrap()
                };
                let seqlens_q = step.packed.map(|_| self.words.slice().range(5, 8).unwrap());
                let pages = (&cache.as_view(), &tables);
                plans.attend(at, (q.as_view(), seqlens_q), pages, &scores, workspace, o).unwrap();
                plans.q_bytes() + plans.workspace_len() * size_of::<f32>()
            }
            Attended::Gathered(gather, problem) => {
                append.launch(at, &appended, &mut cache, None).unwrap();
                let plans = engine.gathered(&GatheredKey { gather, problem, q: call.q, dtype: call.dtype }).unwrap();
                let memory = self.memory.slice_mut().range(0, plans.bytes()).unwrap();
                plans.launch(at, data, (&cache.as_view(), &tables), &scores, memory, o).unwrap();
                plans.bytes()
            }
        }
    }
}

/// New tokens of two sequences.
#[derive(Clone, Copy)]
struct Step<'a> {
    /// Of each, or of both together where they are packed.
    tokens: usize,
    /// The most of one where they are packed.
    packed: Option<usize>,
    options: &'a FlashAttn,
    /// Whether their queries are quantized with them.
    together: bool,
}

#[test]
fn a_step_is_launches_and_nothing_else() {
    for gpu in [PretendedGpu::H200, PretendedGpu::A10] {
        let session = begin(&[gpu]);
        {
            let gpu = Gpu::new(0).unwrap();
            let engine = Engine::new(gpu.clone());
            let mut cached = Cached::new(&gpu, 0);
            let plain = &FlashAttn::new(0.125).with_causal(true);
            let heads = Tensor::zeros(6, Type::F32, &Device::Cpu).unwrap();
            let scored = &plain.clone().with_softcap(30.0).with_alibi_slopes(heads.clone()).with_sinks(heads);
            let step = |tokens, options, together| Step { tokens, packed: None, options, together };
            let packed = |tokens, options, together| Step { tokens, packed: Some(20), options, together };
            // Append, quantization of Q, decode and merge, of which the first two may be one; where there are more queries, scales of blocks and
            // attention take the place of decode and merge.
            for (step, launches) in [
                (step(1, plain, false), 4),
                (step(1, plain, true), 3),
                (step(4, scored, true), 3),
                (step(20, plain, false), 4),
                (step(20, plain, true), 3),
                (step(20, scored, true), 3),
                (packed(21, plain, false), 4),
                (packed(21, plain, true), 3),
                (packed(21, scored, true), 3),
            ] {
                cached.step(&engine, &step);
                let (before, launched) = (counted(&session), session.launched().len());
                for _ in 0..3 {
                    cached.step(&engine, &step);
                }
                let new = &session.launched()[launched..];
                assert_eq!(counted(&session), before, "{} tokens", step.tokens);
                assert_eq!(new.len(), 3 * launches, "{} tokens, {new:?}", step.tokens);
                assert!(!new.iter().any(|name| name.contains("gather")), "{new:?}");
            }
            // One plan for appends of any size up to a power of two.
            let before = engine.appends.0.lock().unwrap().len();
            cached.step(&engine, &step(19, plain, false));
            assert_eq!(engine.appends.0.lock().unwrap().len(), before);
        }
        assert_eq!(session.violations(), Vec::<String>::new());
    }
}

/// A prefill has memory for its queries, and not for keys and values: those stay where they are. A cache with V in 4 bits has them gathered.
#[test]
fn a_prefill_takes_no_memory_for_keys_and_values() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let engine = Engine::new(gpu.clone());
        let options = &FlashAttn::new(0.125).with_causal(true);
        let step = Step { tokens: 20, packed: None, options, together: false };
        // Two sequences of 4 pages, 2 heads, 64 bytes of K and V and two scales a token.
        let operands = 2 * 4 * 128 * 2 * (64 + 64 + 8);
        let (queries, blocks) = (2 * 20 * 6 * (64 + 8), 2 * 4 * 2);
        let on_pages = Cached::new(&gpu, 0).step(&engine, &step);
        assert!((queries..queries + 32 * blocks).contains(&on_pages), "{on_pages}");
        let launched = session.launched().len();
        assert!(Cached::new(&gpu, 2).step(&engine, &step) > operands);
        let new = &session.launched()[launched..];
        assert!(new.len() == 4 && new[1].contains("gather"), "{new:?}");
    }
    assert_eq!(session.violations(), Vec::<String>::new());
}
