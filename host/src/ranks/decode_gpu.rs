//! Decode of a cache that is spread over ranks, on a rank's GPU.

use super::communicator::{OnGpu, check_rank, check_ranks};
use super::{Communicator, Message, RanksDecode};
use crate::decode::{DecodeHeads, DecodeResult, ViewPagedKv};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{AnySliceMut, AttentionOutput, DecodePlan, DeviceBuffer, DeviceSlice, Gpu, MergePlan, Stream, ViewQ};
use crate::shape::{Shape, TensorLayout};

/// A rank's part of a decode over ranks, checked and ready to be launched, with the memory that it needs.
#[derive(Debug)]
pub struct RanksDecodePlan {
    gpu: Gpu,
    plan: RanksDecode,
    rank: usize,
    decode: DecodePlan,
    merge: MergePlan,
    workspace: DeviceBuffer<f32>,
    /// The states of all ranks, each its outputs and behind them its log-sum-exps: one message.
    states: DeviceBuffer<f32>,
}

impl Gpu {
    /// A rank's part of a decode over ranks; the output is the whole result, on every rank.
    ///
    /// # Errors
    /// As of [`RanksDecode::check`], of [`Gpu::plan_decode`] and [`Gpu::plan_merge`]; a communicator of another number of ranks; what the
    /// driver says.
    pub fn plan_decode_over_ranks(
        &self,
        plan: &RanksDecode,
        ranks: &dyn Communicator<OnGpu>,
        output: &AttentionOutput,
    ) -> Result<RanksDecodePlan> {
        plan.check()?;
        let rank = check_ranks(ranks, plan.ranks)?;
        let shape = plan.decode.q_shape();
        let state = AttentionOutput { layout: TensorLayout::bhnd(shape), dtype: DType::F32, lse: true };
        let decode = self.plan_decode(&plan.of_rank(rank), &state)?;
        Ok(RanksDecodePlan {
            gpu: self.clone(),
            plan: *plan,
            rank,
            merge: self.plan_merge(plan.ranks, output, plan.decode.sinks)?,
            workspace: self.alloc(decode.workspace_len())?,
            decode,
            states: self.alloc(plan.ranks * state_len(&shape))?,
        })
    }
}

impl RanksDecodePlan {
    /// Gives a rank's part to the stream, on its own part of the cache. `sinks` are where the problem says so. It allocates nothing, and does
    /// not wait for the GPU; an engine may let the thread wait for other ranks' threads. Every rank launches equally often.
    ///
    /// # Errors
    /// As of [`DecodePlan::launch`] and [`RingPlan::launch`](super::RingPlan::launch).
    pub fn launch(
        &mut self,
        stream: &Stream,
        ranks: &dyn Communicator<OnGpu>,
        q: &ViewQ<'_>,
        cache: &ViewPagedKv<'_>,
        sinks: Option<DeviceSlice<'_, f32>>,
        result: DecodeResult<'_>,
    ) -> Result<()> {
        check_rank(ranks, self.plan.ranks, self.rank)?;
        let shape = self.plan.decode.q_shape();
        let (elements, rows, each) = (shape.elements(), shape.rows(), state_len(&shape));
        let states = self.states.slice_mut();
        let start = |rank: usize| rank * each * size_of::<f32>();
        let own = start(self.rank);
        let (mut o, mut lse) =
            (states.part::<f32>(own, elements), states.part(own + elements * size_of::<f32>(), rows));
        let of_own = DecodeResult { o: AnySliceMut::from(o.reborrow()), lse: Some(lse.reborrow()) };
        self.decode.launch(stream, q, cache, &DecodeHeads::default(), self.workspace.slice_mut(), of_own)?;
        let bytes = |rank: usize| states.part::<u8>(start(rank), each * size_of::<f32>());
        let others = || (0..self.plan.ranks).filter(|&peer| peer != self.rank);
        let own = bytes(self.rank);
        let sends: Vec<_> = others().map(|peer| Message { peer, bytes: own.as_slice().into() }).collect();
        let mut receives: Vec<_> = others().map(|peer| Message { peer, bytes: bytes(peer).into() }).collect();
        ranks.exchange(stream.into(), &sends, &mut receives)?;
        self.merge.launch_together(stream, (states.as_slice(), each), sinks, result.o, result.lse)
    }

    /// The GPU that the plan is of.
    #[must_use]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}

/// Floats of a state, a multiple of 16 bytes.
const fn state_len(shape: &Shape) -> usize {
    (shape.elements() + shape.rows()).next_multiple_of(4)
}
