//! What plans and launches of a prefill on a cache refuse.

use crate::{is_one_short, is_other_context, nothing_is_left, output, sentence};
use half::f16;
use int_flash_attention::{
    DecodeResult, DeviceBuffer, DeviceQ, Error, Family, Gpu, PrefillPlan, PrefillProblem, PrefillQueries, QuantizedQ,
    Result, Scheme, ScoreViews, Shape, Stream, ViewPagedKv,
};
use int_flash_attention_kernels::layout::page::page_bytes;
use pretended_driver::{PretendedGpu, begin};

const PROBLEM: PrefillProblem = PrefillProblem::new(2, 4, 2, 40, 300, 64).with_packed_queries(50);

/// A prefill with everything that it needs, each as large as it has to be.
struct Job {
    pages: DeviceBuffer<u8>,
    table: DeviceBuffer<u32>,
    stride: usize,
    lengths: DeviceBuffer<u32>,
    offsets: Option<DeviceBuffer<u32>>,
    q: DeviceQ,
    sinks: Option<DeviceBuffer<f32>>,
    workspace: DeviceBuffer<f32>,
    o: DeviceBuffer<f16>,
    lse: Option<DeviceBuffer<f32>>,
    plan: PrefillPlan,
}

impl Job {
    fn new(gpu: &Gpu) -> Result<Self> {
        let shape = PROBLEM.q_shape();
        let plan = gpu.plan_prefill(&PROBLEM, &output(shape, false))?;
        Ok(Self {
            pages: gpu.alloc(5 * page_bytes(2, 64))?,
            table: gpu.alloc(3 + PROBLEM.max_blocks())?,
            stride: 3,
            lengths: gpu.alloc(2)?,
            offsets: Some(gpu.alloc(3)?),
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
        let queries = PrefillQueries { q: self.q.view(), cu_seqlens_q: self.offsets.as_ref().map(DeviceBuffer::slice) };
        let cache = ViewPagedKv {
            pages: self.pages.slice(),
            v4_pages: 0,
            block_table: self.table.slice(),
            table_stride: self.stride,
            seqlens_kv: self.lengths.slice(),
        };
        let scores = ScoreViews { sinks: self.sinks.as_ref().map(DeviceBuffer::slice), ..ScoreViews::default() };
        let result = DecodeResult { o: (&mut self.o).into(), lse: self.lse.as_mut().map(DeviceBuffer::slice_mut) };
        self.plan.launch(stream, &queries, &cache, &scores, self.workspace.slice_mut(), result)
    }
}

#[test]
fn a_prefill_refuses_what_does_not_fit() {
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
        shorter("cu_seqlens_q", &|job| job.offsets = Some(gpu.alloc(2).unwrap()));
        shorter("workspace", &|job| job.workspace = gpu.alloc(job.workspace.len() - 1).unwrap());
        shorter("q_scale", &|job| job.q.scale = gpu.alloc(job.q.scale.len() - 1).unwrap());
        let pool = sentence(refused(&|job| job.pages = gpu.alloc(job.pages.len() - 1).unwrap()));
        assert!(pool.contains("whole number of pages of 34816 bytes"), "{pool}");
        for (sentence, part) in [
            (sentence(refused(&|job| job.offsets = None)), "cu_seqlens_q was not given"),
            (sentence(refused(&|job| job.sinks = Some(gpu.alloc(4).unwrap()))), "sinks was given"),
            (sentence(refused(&|job| job.lse = Some(gpu.alloc(200).unwrap()))), "lse was given"),
            (sentence(refused(&|job| job.q.bias = None)), "q_bias was not given"),
        ] {
            assert!(sentence.contains(part), "{sentence}");
        }
        let shape = refused(&|job| job.q.shape.seqlen = 49);
        assert!(matches!(shape, Err(Error::ShapeMismatch { name: "q", .. })), "{shape:?}");
        is_other_context(refused(&|job| job.pages = other.alloc(job.pages.len()).unwrap()), "pages");

        let plan = |problem: &PrefillProblem, shape| gpu.plan_prefill(problem, &output(shape, true));
        let paper = PrefillProblem { attention: PROBLEM.attention.with_scheme(Scheme::Paper), ..PROBLEM };
        assert!(matches!(plan(&paper, paper.q_shape()), Err(Error::OperandScheme { .. })));
        let wide = Shape { seqlen: 51, ..PROBLEM.q_shape() };
        assert!(matches!(plan(&PROBLEM, wide), Err(Error::ShapeMismatch { name: "o", .. })));
        // Every head dim has a kernel that fits the GPUs with the least shared memory.
        for head_dim in [32, 64, 96, 128, 256] {
            let problem = PrefillProblem::new(2, 4, 2, 40, 300, head_dim);
            other.plan_prefill(&problem, &output(problem.q_shape(), false)).unwrap();
        }
        // Long sequences have the kernels of their GPU.
        let long = PrefillProblem::new(2, 4, 2, 40, 4000, 64);
        assert_eq!(plan(&long, long.q_shape()).unwrap().family(), Family::Sm90a);
        let family = other.plan_prefill_of(Family::Sm90a, &long, &output(long.q_shape(), false));
        assert!(matches!(family, Err(Error::Family { family: Family::Sm90a, .. })));
    }
    nothing_is_left(&session);
}
