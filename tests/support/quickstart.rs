//! The decode loop of docs/quickstart.md, to the letter, on the PTX machine: the names of the CPU's cache and decode stand for the kernels, and each
//! step is held to what the CPU makes of it.

/// Runs the loop.
///
/// # Errors
///
/// What the program gives: the library's.
///
/// # Panics
///
/// When a launch fails, or gives something else than the CPU: another byte of a page, another code or scale of Q, or an output out of its bound.
pub fn decode_loop() -> int_flash_attention::Result<()> {
    program::run()
}

/// The program of the page (`build.rs`), with the names of `machine`.
mod program {
    include!(concat!(env!("OUT_DIR"), "/decode_loop.rs"));

    pub(super) fn run() -> Result<()> {
        main()
    }
}

/// What the program uses of the library; where that runs on the CPU, the same on the machine.
mod machine {
    use crate::cache::{Cache, New, append_as_reference};
    use crate::decode::{DecodeCase, DecodeKernels, agree};
    use crate::sim::{SimulatedCache, Simulator};
    use anyhow::Context;
    use int_flash_attention::{HostPagedKv, HostQ};
    use std::sync::LazyLock;

    pub use int_flash_attention::{
        CacheShape, DType, DecodeHeads, HostTables, HostTensor, Result, Shape, TensorLayout,
    };

    static MACHINE: LazyLock<Simulator> = LazyLock::new(Simulator::new);

    /// A cache that the append kernels write.
    pub struct HostCache(int_flash_attention::HostCache);

    impl HostCache {
        pub fn alloc(shape: CacheShape) -> Result<Self> {
            Ok(Self(int_flash_attention::HostCache::alloc(shape)?))
        }

        pub fn append(&mut self, k: &HostTensor, v: &HostTensor, slots: &[i64]) -> Result<()> {
            self.0 = held(self.written(&New { q: None, k, v, slots, wide: true })).0;
            Ok(())
        }

        /// By an append that leaves out all tokens of K and V.
        pub fn quantize_q(&self, q: &HostTensor) -> Result<HostQ> {
            let Shape { batch, heads, seqlen, head_dim } = q.shape();
            let tokens = |heads| Shape::new(1, heads, batch * seqlen, head_dim).map(TensorLayout::bhnd);
            let new = HostTensor::from_fn(q.dtype(), tokens(heads)?, |_, h, n, d| q.get(n / seqlen, h, n % seqlen, d))?;
            let none = HostTensor::from_fn(q.dtype(), tokens(self.0.shape.heads_kv)?, |_, _, _, _| 0.0)?;
            let slots = vec![-1; batch * seqlen];
            let new = New { q: Some((&new, seqlen)), k: &none, v: &none, slots: &slots, wide: true };
            Ok(held(self.written(&new).and_then(|(_, q)| q.context("no queries"))))
        }

        pub fn sequences<'a>(&'a self, tables: &'a HostTables) -> Result<HostPagedKv<'a>> {
            self.0.sequences(tables)
        }

        /// The cache after an append, and the queries, both the CPU's.
        fn written(&self, new: &New<'_>) -> anyhow::Result<(int_flash_attention::HostCache, Option<HostQ>)> {
            let mut cache = SimulatedCache::new(&MACHINE, self.0.clone());
            append_as_reference(&mut cache, new)?;
            let q = cache.append(new)?;
            Ok((cache.host()?, q))
        }
    }

    /// A problem of the decode kernels.
    pub struct DecodeProblem(int_flash_attention::DecodeProblem);

    /// What they give.
    pub struct Output {
        pub o: Vec<f64>,
    }

    impl DecodeProblem {
        pub const fn new(batch: usize, heads_q: usize, heads_kv: usize, max_seqlen_kv: usize, head_dim: usize) -> Self {
            Self(int_flash_attention::DecodeProblem::new(batch, heads_q, heads_kv, max_seqlen_kv, head_dim))
        }

        pub const fn q_shape(&self) -> Shape {
            self.0.q_shape()
        }

        /// On the machine, within the bound of what the CPU gives.
        pub fn on_cpu(&self, q: &HostQ, cache: &HostPagedKv<'_>, _: &DecodeHeads<&[f32]>) -> Result<Output> {
            let case = DecodeCase {
                problem: self.0,
                lengths: cache.seqlens_kv.to_vec(),
                table: cache.block_table.to_vec(),
                stride: cache.table_stride,
                pages: cache.pages.to_vec(),
                q: q.clone(),
                slopes: Vec::new(),
                sinks: Vec::new(),
                workers: None,
                far: false,
                overlaps: false,
            };
            let (want, bounds) = held(case.want(DType::F32));
            let got = held(MACHINE.decode(&case, DType::F32));
            held(agree(&got, &want, &bounds, DType::F32));
            Ok(Output { o: got.0.dense_f64() })
        }
    }

    /// What the machine's is where nothing is wrong with it; the program has the library's errors alone.
    fn held<T>(result: anyhow::Result<T>) -> T {
        result.unwrap_or_else(|error| panic!("on the PTX machine: {error:#}"))
    }
}
