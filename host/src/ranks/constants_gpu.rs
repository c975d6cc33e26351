//! What later tokens are quantized by, from the first rank's first tokens, on GPUs.

use super::communicator::OnGpu;
use super::{Communicator, Message};
use crate::error::Result;
use crate::gpu::{
    AnySlice, DeviceK, DeviceSliceMut, DeviceV, Gpu, QuantizeKvPlan, QuantizeLayouts, Stream, ViewMutK, ViewMutV,
};
use crate::problem::AttentionProblem;
use crate::shape::{Shape, TensorLayout};
use int_flash_attention_kernels::layout::KV_BLOCK;

/// The quantization of the first block of tokens, which K's offsets and V's units depend on: the other ranks wait for no more.
#[derive(Debug)]
pub(super) struct Constants {
    quantize: QuantizeKvPlan,
    k: DeviceK,
    v: DeviceV,
}

impl Constants {
    /// Of tokens of such a problem and layouts.
    pub(super) fn new(gpu: &Gpu, problem: &AttentionProblem, layouts: &QuantizeLayouts) -> Result<Self> {
        let tokens = problem.seqlen_kv.min(KV_BLOCK);
        let problem = AttentionProblem { seqlen_q: tokens, seqlen_kv: tokens, ..*problem };
        let (k, v) = (of_tokens(&layouts.k, tokens)?, of_tokens(&layouts.v, tokens)?);
        Ok(Self {
            quantize: gpu.plan_quantize_kv(&problem, k, v, layouts.dtype)?,
            k: DeviceK::alloc(gpu, &problem)?,
            v: DeviceV::alloc(gpu, &problem)?,
        })
    }

    /// Quantizes these, the first tokens, and says where the constants are.
    pub(super) fn launch(
        &mut self,
        stream: &Stream,
        k: AnySlice<'_>,
        v: AnySlice<'_>,
    ) -> Result<(ViewMutK<'_>, ViewMutV<'_>)> {
        let (mut k_out, mut v_out) = (self.k.view_mut(), self.v.view_mut());
        self.quantize.launch(stream, k, v, DeviceSliceMut::empty(), &mut k_out, &mut v_out)?;
        Ok((k_out, v_out))
    }
}

/// K's offsets and V's units of the whole sequence's first tokens, which the first rank gives, to the chunks of all ranks but its first. `first`: where they are
/// on the first rank.
pub(super) fn share(
    stream: &Stream,
    ranks: &dyn Communicator<OnGpu>,
    first: Option<(ViewMutK<'_>, ViewMutV<'_>)>,
    views: &[(ViewMutK<'_>, ViewMutV<'_>)],
    chunks: impl Fn(usize) -> usize,
) -> Result<()> {
    fn bytes<'a>((k, v): &(ViewMutK<'a>, ViewMutV<'a>)) -> [DeviceSliceMut<'a, u8>; 2] {
        [&k.offset, &v.unit].map(|x| x.part::<u8>(0, x.len() * size_of::<f32>()))
    }
    let others = &views[usize::from(first.is_some())..];
    let mut receives: Vec<_> =
        others.iter().flat_map(bytes).map(|bytes| Message { peer: 0, bytes: bytes.into() }).collect();
    let mut sends = Vec::new();
    let own = first.as_ref().map(bytes);
    for peer in (0..ranks.ranks()).filter(|_| own.is_some()) {
        let copies = (0..chunks(peer) - usize::from(peer == 0)).flat_map(|_| own.iter().flatten());
        sends.extend(copies.map(|bytes| Message { peer, bytes: bytes.as_slice().into() }));
    }
    ranks.exchange(stream.into(), &sends, &mut receives)
}

/// The layout of some tokens of a tensor.
pub(super) fn of_tokens(layout: &TensorLayout, tokens: usize) -> Result<TensorLayout> {
    TensorLayout::strided(Shape { seqlen: tokens, ..layout.shape() }, layout.strides())
}
