//! Decode of a cache that is spread over ranks, on a rank's GPU.

use super::communicator::{OnGpu, check_rank, check_ranks};
use super::{Communicator, Message, RanksDecode};
use crate::decode::{DecodeHeads, DecodeResult, ViewPagedKv};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{
    AnySliceMut, AttentionOutput, DecodePlan, DeviceBuffer, DeviceSlice, DeviceSliceMut, Gpu, MergePlan, States,
    Stream, ViewQ,
};
use crate::shape::TensorLayout;

/// A rank's part of a decode over ranks, checked and ready to be launched, with the memory that it needs.
#[derive(Debug)]
pub struct RanksDecodePlan {
    gpu: Gpu,
    plan: RanksDecode,
    rank: usize,
    decode: DecodePlan,
    merge: MergePlan,
    workspace: DeviceBuffer<f32>,
    /// The states of all ranks: outputs, and log-sum-exps.
    states: (DeviceBuffer<f32>, DeviceBuffer<f32>),
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
        check_ranks(ranks.ranks(), plan.ranks)?;
        let shape = plan.decode.q_shape();
        let state = AttentionOutput { layout: TensorLayout::bhnd(shape), dtype: DType::F32, lse: true };
        let decode = self.plan_decode(&plan.of_rank(ranks.rank()), &state)?;
        Ok(RanksDecodePlan {
            gpu: self.clone(),
            plan: *plan,
            rank: ranks.rank(),
            merge: self.plan_merge(plan.ranks, output, plan.decode.sinks)?,
            workspace: self.alloc(decode.workspace_len())?,
            decode,
            states: (self.alloc(plan.ranks * shape.elements())?, self.alloc(plan.ranks * shape.rows())?),
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
        let lengths = [shape.elements(), shape.rows()];
        let (o, lse) = (self.states.0.slice_mut(), self.states.1.slice_mut());
        let own = [&o, &lse].into_iter().zip(lengths).map(|(states, len)| state::<f32>(states, self.rank, len, 1));
        if let [o, lse] = &mut own.collect::<Vec<_>>()[..] {
            let result = DecodeResult { o: AnySliceMut::from(o.reborrow()), lse: Some(lse.reborrow()) };
            self.decode.launch(stream, q, cache, &DecodeHeads::default(), self.workspace.slice_mut(), result)?;
        }
        let bytes =
            |rank| [&o, &lse].into_iter().zip(lengths).map(move |(states, len)| state::<u8>(states, rank, len, 4));
        let others = || (0..self.plan.ranks).filter(|&peer| peer != self.rank);
        let own: Vec<_> = bytes(self.rank).collect();
        let sends = others().flat_map(|peer| own.iter().map(move |bytes| Message { peer, bytes: bytes.as_slice() }));
        let sends: Vec<_> = sends.collect();
        let mut receives: Vec<_> =
            others().flat_map(|peer| bytes(peer).map(move |bytes| Message { peer, bytes })).collect();
        ranks.exchange(stream.into(), &sends, &mut receives)?;
        let states = States::Stacked(o.as_slice(), lse.as_slice());
        self.merge.launch(stream, &states, sinks, result.o, result.lse)
    }

    /// The GPU that the plan is of.
    #[must_use]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}

/// A rank's part of the states' array: so many floats, of `each` elements of another type.
fn state<'a, T: bytemuck::Pod>(
    states: &DeviceSliceMut<'a, f32>,
    rank: usize,
    floats: usize,
    each: usize,
) -> DeviceSliceMut<'a, T> {
    states.part(rank * floats * size_of::<f32>(), floats * each)
}
