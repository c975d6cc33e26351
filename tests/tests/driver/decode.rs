//! What plans and launches of decode and merge refuse.

use crate::{is_one_short, is_other_context, nothing_is_left, output, sentence};
use half::f16;
use int_flash_attention::{
    AttentionOutput, DType, DecodeHeads, DecodePlan, DecodeProblem, DecodeResult, DeviceBuffer, DeviceQ, Error, Gpu,
    QuantizedQ, Result, Scheme, Shape, States, Stream, TensorLayout, ViewPagedKv,
};
use int_flash_attention_kernels::layout::page::page_bytes;
use pretended_driver::{PretendedGpu, begin};

const PROBLEM: DecodeProblem = DecodeProblem::new(2, 4, 2, 300, 64);

/// A decode with everything that it needs, each as large as it has to be.
struct Job {
    pages: DeviceBuffer<u8>,
    v4_pages: usize,
    table: DeviceBuffer<u32>,
    stride: usize,
    lengths: DeviceBuffer<u32>,
    q: DeviceQ,
    sinks: Option<DeviceBuffer<f32>>,
    workspace: DeviceBuffer<f32>,
    o: DeviceBuffer<f16>,
    lse: Option<DeviceBuffer<f32>>,
    plan: DecodePlan,
}

impl Job {
    fn new(gpu: &Gpu) -> Result<Self> {
        let shape = PROBLEM.q_shape();
        let plan = gpu.plan_decode(&PROBLEM, &output(shape, false))?;
        Ok(Self {
            pages: gpu.alloc(5 * page_bytes(2, 64))?,
            v4_pages: 0,
            table: gpu.alloc(3 + PROBLEM.max_blocks())?,
            stride: 3,
            lengths: gpu.alloc(2)?,
            q: QuantizedQ {
                shape,
                scheme: Scheme::Default,
                data: gpu.alloc(shape.elements())?,
                scale: gpu.alloc(shape.rows())?,
                bias: Some(gpu.alloc(shape.rows())?),
            },
            sinks: None,
            workspace: gpu.alloc(plan.workspace_len())?,
            o: gpu.alloc(shape.elements())?,
            lse: None,
            plan,
        })
    }

    fn launch(&mut self, stream: &Stream) -> Result<()> {
        let cache = ViewPagedKv {
            pages: self.pages.slice(),
            v4_pages: self.v4_pages,
            block_table: self.table.slice(),
            table_stride: self.stride,
            seqlens_kv: self.lengths.slice(),
        };
        let heads = DecodeHeads { alibi_slopes: None, sinks: self.sinks.as_ref().map(DeviceBuffer::slice) };
        let result = DecodeResult { o: (&mut self.o).into(), lse: self.lse.as_mut().map(DeviceBuffer::slice_mut) };
        self.plan.launch(stream, &self.q.view(), &cache, &heads, self.workspace.slice_mut(), result)
    }
}

#[test]
fn a_decode_refuses_what_does_not_fit() {
    let session = begin(&[PretendedGpu::H200, PretendedGpu::A10]);
    {
        let (gpu, other) = (Gpu::new(0).unwrap(), Gpu::new(1).unwrap());
        let stream = gpu.stream().unwrap();
        Job::new(&gpu).unwrap().launch(&stream).unwrap();
        let refused = |change: &dyn Fn(&mut Job)| {
            let mut job = Job::new(&gpu).unwrap();
            change(&mut job);
            job.launch(&stream)
        };
        let shorter = |name: &str, change: &dyn Fn(&mut Job)| is_one_short(refused(change), name);
        shorter("block_table", &|job| job.table = gpu.alloc(job.table.len() - 1).unwrap());
        shorter("a row of block_table", &|job| job.stride = 2);
        shorter("seqlens_kv", &|job| job.lengths = gpu.alloc(1).unwrap());
        shorter("workspace", &|job| job.workspace = gpu.alloc(job.workspace.len() - 1).unwrap());
        shorter("q_scale", &|job| job.q.scale = gpu.alloc(job.q.scale.len() - 1).unwrap());
        let pool = sentence(refused(&|job| job.pages = gpu.alloc(job.pages.len() - 1).unwrap()));
        assert!(pool.contains("whole number of pages of 34816 bytes"), "{pool}");
        let v4 = sentence(refused(&|job| job.v4_pages = 1));
        assert!(v4.starts_with("1 pages of the cache have V in 4 bits; the problem was made for 0"), "{v4}");
        let sinks = sentence(refused(&|job| job.sinks = Some(gpu.alloc(4).unwrap())));
        assert!(sinks.contains("sinks was given"), "{sinks}");
        let lse = sentence(refused(&|job| job.lse = Some(gpu.alloc(8).unwrap())));
        assert!(lse.contains("lse was given"), "{lse}");
        let bias = sentence(refused(&|job| job.q.bias = None));
        assert!(bias.contains("q_bias was not given"), "{bias}");
        let shape = refused(&|job| job.q.shape.seqlen = 2);
        assert!(matches!(shape, Err(Error::ShapeMismatch { name: "q", .. })), "{shape:?}");
        is_other_context(refused(&|job| job.pages = other.alloc(job.pages.len()).unwrap()), "pages");
        is_other_context(refused(&|job| job.lengths = other.alloc(2).unwrap()), "seqlens_kv");

        let plan = |problem: &DecodeProblem, shape| gpu.plan_decode(problem, &output(shape, true));
        let nine = DecodeProblem { seqlen_q: 9, ..PROBLEM };
        assert!(matches!(plan(&nine, nine.q_shape()), Err(Error::TooLarge { name: "seqlen_q", .. })));
        let wide = Shape { seqlen: 2, ..PROBLEM.q_shape() };
        assert!(matches!(plan(&PROBLEM, wide), Err(Error::ShapeMismatch { name: "o", .. })));
        // Every head dim has a kernel that fits the GPUs with the least shared memory.
        for head_dim in [32, 64, 96, 128, 256] {
            let problem = DecodeProblem { head_dim, ..PROBLEM };
            other.plan_decode(&problem, &output(problem.q_shape(), false)).unwrap();
        }
    }
    nothing_is_left(&session);
}

#[test]
fn a_merge_refuses_what_does_not_fit() {
    let session = begin(&[PretendedGpu::H200]);
    {
        let gpu = Gpu::new(0).unwrap();
        let stream = gpu.stream().unwrap();
        let shape = Shape::new(2, 3, 5, 64).unwrap();
        let (elements, rows) = (shape.elements(), shape.rows());
        let floats = |len: usize| gpu.alloc::<f32>(len).unwrap();
        let (states, lses) = (floats(3 * elements), floats(3 * rows));
        let mut o = gpu.alloc::<f16>(elements).unwrap();
        let plan = gpu.plan_merge(3, &output(shape, false), false).unwrap();
        let all = States::Stacked(states.slice(), lses.slice());
        plan.launch(&stream, &all, None, (&mut o).into(), None).unwrap();
        let few = floats(3 * rows - 1);
        let short = States::Stacked(states.slice(), few.slice());
        let error = sentence(plan.launch(&stream, &short, None, (&mut o).into(), None));
        assert!(error.contains("log-sum-exps holds 89 elements"), "{error}");
        let two = States::Two([(states.slice(), lses.slice()); 2]);
        let error = sentence(plan.launch(&stream, &two, None, (&mut o).into(), None));
        assert!(error.contains("2 states were given"), "{error}");
        let sinks = floats(3);
        let error = sentence(plan.launch(&stream, &all, Some(sinks.slice()), (&mut o).into(), None));
        assert!(error.contains("sinks was given"), "{error}");
        assert!(gpu.plan_merge(0, &output(shape, false), false).is_err());

        let pair = gpu.plan_merge(2, &output(shape, true), false).unwrap();
        let (mut first, mut first_lse) = (floats(elements), floats(rows));
        let other = (states.slice(), lses.slice());
        let error = pair.launch_in_place(&stream, (first.slice_mut(), first_lse.slice_mut()), other);
        assert!(matches!(error, Err(Error::DTypeMismatch { name: "o", .. })), "{error:?}");
        let float32 = AttentionOutput { dtype: DType::F32, ..output(shape, true) };
        let pair = gpu.plan_merge(2, &float32, false).unwrap();
        pair.launch_in_place(&stream, (first.slice_mut(), first_lse.slice_mut()), other).unwrap();
        let transposed = AttentionOutput { layout: TensorLayout::bnhd(shape), ..float32 };
        let pair = gpu.plan_merge(2, &transposed, false).unwrap();
        let error = pair.launch_in_place(&stream, (first.slice_mut(), first_lse.slice_mut()), other);
        assert!(matches!(error, Err(Error::InPlace)), "{error:?}");
    }
    nothing_is_left(&session);
}
