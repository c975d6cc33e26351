//! Ulysses on a rank's GPU.
//!
//! ```text
//! stream   quantize | constants | quantize |            attend to group 0 |
//! beside                                                          attend to group 1 |
//! travel                                     group 0 | group 1     outputs of 0       outputs of 1
//! ```
//!
//! What travels are rows, one a head: neighbours where a rank has its tokens of all heads, apart where it has all tokens of its heads.

use super::communicator::{OnGpu, check_rank, check_ranks};
use super::constants_gpu::{Constants, share};
use super::ulysses::{Heads, Rows, Spread};
use super::{Communicator, Message, RanksError, UlyssesProblem};
use crate::error::Result;
use crate::gpu::{
    AnySlice, AnySliceMut, AttentionOutput, AttentionPlan, DeviceBuffer, DeviceOperands, DeviceRows, DeviceSlice,
    DeviceSliceMut, Event, Gpu, QuantizeKvPlan, QuantizeLayouts, QuantizeQPlan, Stream, ViewMutOperands,
};
use crate::problem::AttentionProblem;
use crate::shape::{Order, TensorLayout};

/// A rank's part of Ulysses on its GPU, checked and ready to be launched, with the memory that it needs.
#[derive(Debug)]
pub struct UlyssesPlan {
    gpu: Gpu,
    ulysses: UlyssesProblem,
    rank: usize,
    /// The first rank's.
    constants: Option<Constants>,
    quantize_kv: QuantizeKvPlan,
    quantize_q: QuantizeQPlan,
    /// The rank's tokens of all heads.
    local: DeviceOperands,
    groups: Vec<Group>,
    output: AttentionOutput,
    travel: Stream,
    /// A group's attention is beside the one before, so that the last tiles of the one and the first of the other fill the GPU.
    beside: Stream,
    /// The rank's tokens are quantized; those of its own heads are in their place; all outputs have come.
    quantized: Event,
    own_spread: Event,
    returned: Event,
}

/// All tokens of some of the rank's heads.
#[derive(Debug)]
struct Group {
    attention: AttentionPlan,
    operands: DeviceOperands,
    o: DeviceBuffer<u8>,
    arrived: Event,
    attended: Event,
    /// Outputs of the rank's own tokens are in their place.
    kept: Event,
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
        let local = ulysses.of_tokens(rank);
        let shape = ulysses.o_shape(rank);
        AttentionProblem::check_shape("o", output.layout.shape(), shape)?;
        if output.layout.order() != Some(Order::Bhnd) {
            return Err(RanksError::Layout { shape: shape.to_string() }.into());
        }
        let QuantizeLayouts { q, k, v, dtype } = *layouts;
        let group = |heads: &Heads| {
            let own = ulysses.of_group(heads);
            let layout = TensorLayout::bhnd(own.o_shape());
            Ok(Group {
                attention: self.plan_attention(&own, &AttentionOutput { layout, lse: false, ..*output })?,
                operands: DeviceOperands::alloc(self, &own)?,
                o: self.alloc(layout.span() * output.dtype.size())?,
                arrived: self.event()?,
                attended: self.event()?,
                kept: self.event()?,
            })
        };
        let groups = ulysses.groups(rank);
        let shares = groups.iter().all(|heads| self.takes_narrow(&ulysses.of_group(heads)));
        Ok(UlyssesPlan {
            gpu: self.clone(),
            ulysses: *ulysses,
            rank,
            constants: (rank == 0).then(|| Constants::new(self, &local, layouts)).transpose()?,
            quantize_kv: match rank {
                0 => self.plan_quantize_kv(&local, k, v, dtype)?,
                _ => self.plan_quantize_kv_on(&local, k, v, dtype)?,
            }
            .with_shared_k(shares),
            quantize_q: self.plan_quantize_q(&local, q, dtype)?,
            local: DeviceOperands::alloc(self, &local)?,
            groups: groups.iter().map(group).collect::<Result<_>>()?,
            output: *output,
            travel: self.stream()?,
            beside: self.stream()?,
            quantized: self.event()?,
            own_spread: self.event()?,
            returned: self.event()?,
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
        o.check("o", self.output.dtype, self.output.layout.span())?;
        let mut local = self.local.view_mut();
        let kv = [(local.k, local.v)];
        let first = self.constants.as_mut().map(|constants| constants.launch(stream, k, v)).transpose()?;
        share(stream, ranks, first, &kv, |_| 1)?;
        let [(mut k_out, mut v_out)] = kv;
        self.quantize_kv.launch(stream, k, v, DeviceSliceMut::empty(), &mut k_out, &mut v_out)?;
        self.quantize_q.launch(stream, q, k_out.offset.as_slice(), &mut local.q)?;
        self.quantized.record(stream)?;
        self.travel.wait(&self.quantized)?;
        let of_tokens = arrays(&ViewMutOperands { q: local.q, k: k_out, v: v_out });
        let exchange = Exchange { gpu: &self.gpu, ulysses: &self.ulysses, rank: self.rank, ranks };
        for (number, group) in self.groups.iter_mut().enumerate() {
            let of_heads = arrays(&group.operands.view_mut());
            // Copies on a GPU may be work of its multiprocessors, which attention leaves nothing of: all are before it.
            exchange.to_own_heads(number, stream, &of_tokens, &of_heads)?;
            exchange.to_heads(number, &self.travel, &of_tokens, &of_heads)?;
            group.arrived.record(&self.travel)?;
        }
        if !ranks.copies_beside_kernels() {
            for group in &self.groups {
                stream.wait(&group.arrived)?;
            }
        }
        self.own_spread.record(stream)?;
        self.beside.wait(&self.own_spread)?;
        let output = self.ulysses.output(self.output.dtype.size());
        for (number, group) in self.groups.iter_mut().enumerate() {
            let stream = if number % 2 == 0 { stream } else { &self.beside };
            stream.wait(&group.arrived)?;
            let to = AnySliceMut::from_bytes(group.o.slice_mut(), self.output.dtype);
            group.attention.launch(stream, &group.operands.view(), to, None)?;
            group.attended.record(stream)?;
            exchange.to_own_tokens(number, stream, &output, group.o.slice(), o.bytes())?;
            group.kept.record(stream)?;
        }
        for (number, group) in self.groups.iter().enumerate() {
            self.travel.wait(&group.attended)?;
            exchange.to_tokens(number, &self.travel, &output, group.o.slice(), o.bytes())?;
            self.travel.wait(&group.kept)?;
        }
        self.returned.record(&self.travel)?;
        stream.wait(&self.returned)
    }

    /// The GPU that the plan is of.
    #[must_use]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }
}

/// A rank's exchanges, of a group of heads each.
struct Exchange<'a> {
    gpu: &'a Gpu,
    ulysses: &'a UlyssesProblem,
    rank: usize,
    ranks: &'a dyn Communicator<OnGpu>,
}

impl Exchange<'_> {
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.ulysses.ranks).filter(move |&peer| peer != rank)
    }

    fn heads(&self, rank: usize, number: usize) -> Heads {
        self.ulysses.groups(rank).swap_remove(number)
    }

    /// Operands of the rank's tokens, of all heads, to the ranks of the heads; those of this rank's heads arrive.
    fn to_heads(
        &self,
        number: usize,
        stream: &Stream,
        of_tokens: &[DeviceSliceMut<'_, u8>],
        of_heads: &[DeviceSliceMut<'_, u8>],
    ) -> Result<()> {
        let (arrays, own) = (self.ulysses.operands(), self.heads(self.rank, number));
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        for peer in self.others() {
            let heads = self.heads(peer, number);
            for (array, (from, to)) in arrays.iter().zip(of_tokens.iter().zip(of_heads)) {
                let out = self.ulysses.rows(array, self.rank, &heads).into_iter();
                sends.extend(out.map(|rows| Message { peer, bytes: rows.on_tokens(from.as_slice()) }));
                let incoming = self.ulysses.rows(array, peer, &own).into_iter();
                receives.extend(incoming.map(|rows| Message { peer, bytes: rows.on_heads_mut(to) }));
            }
        }
        self.ranks.exchange(stream.into(), &sends, &mut receives)
    }

    /// Of the rank's own heads what stays here.
    fn to_own_heads(
        &self,
        number: usize,
        stream: &Stream,
        of_tokens: &[DeviceSliceMut<'_, u8>],
        of_heads: &[DeviceSliceMut<'_, u8>],
    ) -> Result<()> {
        let own = self.heads(self.rank, number);
        for (array, (from, to)) in self.ulysses.operands().iter().zip(of_tokens.iter().zip(of_heads)) {
            for rows in self.ulysses.rows(array, self.rank, &own) {
                self.gpu.copy_rows(stream.into(), rows.on_tokens(from.as_slice()), rows.on_heads_mut(to))?;
            }
        }
        Ok(())
    }

    /// Outputs of all tokens of this rank's heads, to the ranks of the tokens; those of this rank's tokens arrive.
    fn to_tokens(
        &self,
        number: usize,
        stream: &Stream,
        array: &Spread,
        of_heads: DeviceSlice<'_, u8>,
        of_tokens: &DeviceSliceMut<'_, u8>,
    ) -> Result<()> {
        let own = self.heads(self.rank, number);
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        for peer in self.others() {
            let out = self.ulysses.rows(array, peer, &own).into_iter();
            sends.extend(out.map(|rows| Message { peer, bytes: rows.on_heads(of_heads) }));
            let incoming = self.ulysses.rows(array, self.rank, &self.heads(peer, number)).into_iter();
            receives.extend(incoming.map(|rows| Message { peer, bytes: rows.on_tokens_mut(of_tokens) }));
        }
        self.ranks.exchange(stream.into(), &sends, &mut receives)
    }

    /// Of these what stays here.
    fn to_own_tokens(
        &self,
        number: usize,
        stream: &Stream,
        array: &Spread,
        of_heads: DeviceSlice<'_, u8>,
        of_tokens: &DeviceSliceMut<'_, u8>,
    ) -> Result<()> {
        for rows in self.ulysses.rows(array, self.rank, &self.heads(self.rank, number)) {
            self.gpu.copy_rows(stream.into(), rows.on_heads(of_heads), rows.on_tokens_mut(of_tokens))?;
        }
        Ok(())
    }
}

impl Rows {
    /// In the array of all heads of a rank's tokens.
    fn on_tokens<'a>(&self, array: DeviceSlice<'a, u8>) -> DeviceRows<DeviceSlice<'a, u8>> {
        DeviceRows::new(array.part(self.of_tokens, self.len()), self.rows, self.bytes, self.bytes)
    }

    fn on_tokens_mut<'a>(&self, array: &DeviceSliceMut<'a, u8>) -> DeviceRows<DeviceSliceMut<'a, u8>> {
        DeviceRows::new(array.part(self.of_tokens, self.len()), self.rows, self.bytes, self.bytes)
    }

    /// In the array of all tokens of a rank's heads.
    fn on_heads<'a>(&self, array: DeviceSlice<'a, u8>) -> DeviceRows<DeviceSlice<'a, u8>> {
        DeviceRows::new(array.part(self.of_heads, self.span()), self.rows, self.bytes, self.pitch)
    }

    fn on_heads_mut<'a>(&self, array: &DeviceSliceMut<'a, u8>) -> DeviceRows<DeviceSliceMut<'a, u8>> {
        DeviceRows::new(array.part(self.of_heads, self.span()), self.rows, self.bytes, self.pitch)
    }
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
