//! Ulysses on a rank's GPU.

use super::communicator::{OnGpu, check_rank, check_ranks};
use super::ring_gpu::share;
use super::ulysses::Spread;
use super::{Communicator, Message, RanksError, UlyssesProblem};
use crate::error::Result;
use crate::gpu::{
    AnySlice, AnySliceMut, AttentionOutput, AttentionPlan, DeviceBuffer, DeviceOperands, DeviceSlice, DeviceSliceMut,
    Gpu, QuantizeKvPlan, QuantizeLayouts, QuantizeQPlan, Stream, ViewMutOperands,
};
use crate::problem::AttentionProblem;
use crate::shape::{Order, TensorLayout};

/// A rank's part of Ulysses on its GPU, checked and ready to be launched, with the memory that it needs.
#[derive(Debug)]
pub struct UlyssesPlan {
    gpu: Gpu,
    ulysses: UlyssesProblem,
    rank: usize,
    quantize_kv: QuantizeKvPlan,
    quantize_q: QuantizeQPlan,
    attention: AttentionPlan,
    /// The rank's tokens of all heads.
    local: DeviceOperands,
    /// All tokens of the rank's heads, and what comes of them.
    of_heads: DeviceOperands,
    o: DeviceBuffer<u8>,
    output: AttentionOutput,
}

impl Gpu {
    /// A rank's part of Ulysses. `layouts` are of the rank's own tokens, and so is the output, `[batch][heads_q][tokens][head_dim]`
    /// without gaps; a log-sum-exp is not written.
    ///
    /// # Errors
    /// As of [`UlyssesProblem::check`], of quantization and attention; a communicator of another number of ranks; layouts of other shapes, or
    /// an output of another order; what the driver says, for instance that there is not so much memory.
    pub fn plan_ulysses(
        &self,
        ulysses: &UlyssesProblem,
        ranks: &dyn Communicator<OnGpu>,
        layouts: &QuantizeLayouts,
        output: &AttentionOutput,
    ) -> Result<UlyssesPlan> {
        ulysses.check()?;
        check_ranks(ranks.ranks(), ulysses.ranks)?;
        let rank = ranks.rank();
        let (local, own) = (ulysses.of_tokens(rank), ulysses.of_heads(rank));
        let shape = ulysses.o_shape(rank);
        AttentionProblem::check_shape("o", output.layout.shape(), shape)?;
        if output.layout.order() != Some(Order::Bhnd) {
            return Err(RanksError::Layout { shape: shape.to_string() }.into());
        }
        let QuantizeLayouts { q, k, v, dtype } = *layouts;
        let of_heads = TensorLayout::bhnd(own.o_shape());
        Ok(UlyssesPlan {
            gpu: self.clone(),
            ulysses: *ulysses,
            rank,
            quantize_kv: match rank {
                0 => self.plan_quantize_kv(&local, k, v, dtype)?,
                _ => self.plan_quantize_kv_on(&local, k, v, dtype)?,
            }
            .with_shared_k(self.takes_narrow(&own)),
            quantize_q: self.plan_quantize_q(&local, q, dtype)?,
            attention: self.plan_attention(&own, &AttentionOutput { layout: of_heads, lse: false, ..*output })?,
            local: DeviceOperands::alloc(self, &local)?,
            of_heads: DeviceOperands::alloc(self, &own)?,
            o: self.alloc(of_heads.span() * output.dtype.size())?,
            output: *output,
        })
    }
}

impl UlyssesPlan {
    /// Gives a rank's part to the stream; `q`, `k`, `v` and `o` are of its own tokens. It allocates nothing, and does not wait for the GPU; an
    /// engine may let the thread wait for other ranks' threads. Every rank launches equally often.
    ///
    /// # Errors
    /// As of [`RingPlan::launch`](super::RingPlan::launch).
    pub fn launch(
        &mut self,
        stream: &Stream,
        ranks: &dyn Communicator<OnGpu>,
        [q, k, v]: [AnySlice<'_>; 3],
        o: AnySliceMut<'_>,
    ) -> Result<()> {
        check_rank(ranks, self.ulysses.ranks, self.rank)?;
        let mut local = self.local.view_mut();
        let kv = [(local.k, local.v)];
        let [(mut k_out, mut v_out)] = kv;
        if self.rank == 0 {
            self.quantize_kv.launch(stream, k, v, DeviceSliceMut::empty(), &mut k_out, &mut v_out)?;
        }
        let kv = [(k_out, v_out)];
        share(stream, ranks, &kv, |_| 1)?;
        let [(mut k_out, mut v_out)] = kv;
        if self.rank != 0 {
            self.quantize_kv.launch(stream, k, v, DeviceSliceMut::empty(), &mut k_out, &mut v_out)?;
        }
        self.quantize_q.launch(stream, q, k_out.offset.as_slice(), &mut local.q)?;
        let from = arrays(&ViewMutOperands { q: local.q, k: k_out, v: v_out });
        let to = arrays(&self.of_heads.view_mut());
        let spread = self.ulysses.operands();
        to_heads(&self.ulysses, stream, ranks, spread.iter().zip(from.iter().zip(&to)))?;
        self.attention.launch(
            stream,
            &self.of_heads.view(),
            AnySliceMut::from_bytes(self.o.slice_mut(), self.output.dtype),
            None,
        )?;
        self.back(stream, ranks, o)
    }

    /// Outputs of all tokens of the rank's heads, to the ranks of the tokens.
    fn back(&self, stream: &Stream, ranks: &dyn Communicator<OnGpu>, o: AnySliceMut<'_>) -> Result<()> {
        let AttentionOutput { layout, dtype, .. } = self.output;
        o.check("o", dtype, layout.span())?;
        let array = self.ulysses.output(dtype.size());
        let (from, to): (DeviceSlice<'_, u8>, _) = (self.o.slice(), o.bytes());
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        for peer in 0..self.ulysses.ranks {
            let out = self.ulysses.pieces(&array, peer, self.rank).into_iter().map(|piece| piece.to);
            sends.extend(out.map(|at| Message { peer, bytes: from.part(at.start, at.len()) }));
            let incoming = self.ulysses.pieces(&array, self.rank, peer).into_iter().map(|piece| piece.from);
            receives.extend(incoming.map(|at| Message { peer, bytes: to.part(at.start, at.len()) }));
        }
        ranks.exchange(stream.into(), &sends, &mut receives)
    }

    /// The GPU that the plan is of.
    #[must_use]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}

/// Pieces of all arrays, each beside what it is filled from, to the ranks of their heads.
fn to_heads<'a>(
    ulysses: &UlyssesProblem,
    stream: &Stream,
    ranks: &dyn Communicator<OnGpu>,
    arrays: impl Iterator<Item = (&'a Spread, (&'a DeviceSliceMut<'a, u8>, &'a DeviceSliceMut<'a, u8>))> + Clone,
) -> Result<()> {
    let (mut sends, mut receives) = (Vec::new(), Vec::new());
    for peer in 0..ulysses.ranks {
        for (array, (from, to)) in arrays.clone() {
            let out = ulysses.pieces(array, ranks.rank(), peer).into_iter().map(|piece| piece.from);
            sends.extend(out.map(|at| Message { peer, bytes: from.as_slice().part(at.start, at.len()) }));
            let incoming = ulysses.pieces(array, peer, ranks.rank()).into_iter().map(|piece| piece.to);
            receives.extend(incoming.map(|at| Message { peer, bytes: to.part(at.start, at.len()) }));
        }
    }
    ranks.exchange(stream.into(), &sends, &mut receives)
}

/// The arrays in the order of [`UlyssesProblem::operands`], as bytes.
fn arrays<'a>(operands: &ViewMutOperands<'a>) -> Vec<DeviceSliceMut<'a, u8>> {
    let ViewMutOperands { q, k, v } = operands;
    let codes = |x: &DeviceSliceMut<'a, i8>| x.part(0, x.len());
    let floats = |x: &DeviceSliceMut<'a, f32>| x.part(0, x.len() * size_of::<f32>());
    let bias = q.bias.as_ref().map(floats);
    let of_q = [Some(codes(&q.data)), Some(floats(&q.scale)), bias].into_iter().flatten();
    let of_k = [codes(&k.data), floats(&k.scale), floats(&k.block_scale)];
    let of_v = [codes(&v.data), floats(&v.scale), floats(&v.block_scale), floats(&v.unit)];
    of_q.chain(of_k).chain(of_v).collect()
}
