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
        let rank = check_ranks(ranks, ulysses.ranks)?;
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
        let of_tokens: Vec<_> = of_tokens.iter().map(DeviceSliceMut::as_slice).collect();
        let exchange = Exchange { gpu: &self.gpu, ulysses: &self.ulysses, rank: self.rank, ranks };
        let operands = self.ulysses.operands();
        for (number, group) in self.groups.iter_mut().enumerate() {
            let of_heads = arrays(&group.operands.view_mut());
            let way = Way { arrays: &operands, from: Side::Tokens, out: &of_tokens, into: &of_heads };
            // Copies on a GPU may be work of its multiprocessors, which attention leaves nothing of: all are before it.
            exchange.keep(number, stream, &way)?;
            exchange.send(number, &self.travel, &way)?;
            group.arrived.record(&self.travel)?;
        }
        if !ranks.copies_beside_kernels() {
            for group in &self.groups {
                stream.wait(&group.arrived)?;
            }
        }
        self.own_spread.record(stream)?;
        self.beside.wait(&self.own_spread)?;
        let output = [self.ulysses.output(self.output.dtype.size())];
        let into = std::slice::from_ref(o.bytes());
        for (number, group) in self.groups.iter_mut().enumerate() {
            let stream = if number % 2 == 0 { stream } else { &self.beside };
            stream.wait(&group.arrived)?;
            let to = AnySliceMut::from_bytes(group.o.slice_mut(), self.output.dtype);
            group.attention.launch(stream, &group.operands.view(), to, None)?;
            group.attended.record(stream)?;
            let out = &[group.o.slice()];
            exchange.keep(number, stream, &Way { arrays: &output, from: Side::Heads, out, into })?;
            group.kept.record(stream)?;
        }
        for (number, group) in self.groups.iter().enumerate() {
            self.travel.wait(&group.attended)?;
            let out = &[group.o.slice()];
            exchange.send(number, &self.travel, &Way { arrays: &output, from: Side::Heads, out, into })?;
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

/// Which of a rank's two kinds of arrays: its tokens of all heads, or all tokens of its heads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Tokens,
    Heads,
}

/// Arrays that go from one side to the other: operands to the ranks of the heads, outputs back to the ranks of the tokens.
struct Way<'a> {
    arrays: &'a [Spread],
    from: Side,
    out: &'a [DeviceSlice<'a, u8>],
    into: &'a [DeviceSliceMut<'a, u8>],
}

impl<'a> Way<'a> {
    fn to(&self) -> Side {
        match self.from {
            Side::Tokens => Side::Heads,
            Side::Heads => Side::Tokens,
        }
    }

    fn each(
        &self,
    ) -> impl Iterator<Item = (&'a Spread, &'a DeviceSlice<'a, u8>, &'a DeviceSliceMut<'a, u8>)> + use<'a> {
        self.arrays.iter().zip(self.out.iter().zip(self.into)).map(|(array, (out, into))| (array, out, into))
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
    /// What this rank's arrays of one side and a peer's of the other have in common.
    fn rows(&self, side: Side, array: &Spread, number: usize, peer: usize) -> Vec<Rows> {
        let (of_tokens, of_heads) = match side {
            Side::Tokens => (self.rank, peer),
            Side::Heads => (peer, self.rank),
        };
        self.ulysses.rows(array, of_tokens, &self.ulysses.groups(of_heads).swap_remove(number))
    }

    /// A group to the other ranks, while theirs arrives.
    fn send(&self, number: usize, stream: &Stream, way: &Way<'_>) -> Result<()> {
        let (from, to) = (way.from, way.to());
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        for peer in (0..self.ulysses.ranks).filter(|&peer| peer != self.rank) {
            for (array, out, into) in way.each() {
                let outgoing = self.rows(from, array, number, peer).into_iter();
                sends.extend(outgoing.map(|rows| Message { peer, bytes: rows.read(from, *out) }));
                let incoming = self.rows(to, array, number, peer).into_iter();
                receives.extend(incoming.map(|rows| Message { peer, bytes: rows.write(to, into) }));
            }
        }
        self.ranks.exchange(stream.into(), &sends, &mut receives)
    }

    /// What of a group stays on this rank.
    fn keep(&self, number: usize, stream: &Stream, way: &Way<'_>) -> Result<()> {
        for (array, out, into) in way.each() {
            for rows in self.rows(way.from, array, number, self.rank) {
                self.gpu.copy_rows(stream.into(), rows.read(way.from, *out), rows.write(way.to(), into))?;
            }
        }
        Ok(())
    }
}

impl Rows {
    /// Where they begin in the arrays of a side, the bytes from there to their end, and from one to the next.
    fn on(&self, side: Side) -> [usize; 3] {
        match side {
            Side::Tokens => [self.of_tokens, self.len(), self.bytes],
            Side::Heads => [self.of_heads, self.span(), self.pitch],
        }
    }

    fn read<'a>(&self, side: Side, array: DeviceSlice<'a, u8>) -> DeviceRows<DeviceSlice<'a, u8>> {
        let [start, len, pitch] = self.on(side);
        DeviceRows::new(array.part(start, len), self.rows, self.bytes, pitch)
    }

    fn write<'a>(&self, side: Side, array: &DeviceSliceMut<'a, u8>) -> DeviceRows<DeviceSliceMut<'a, u8>> {
        let [start, len, pitch] = self.on(side);
        DeviceRows::new(array.part(start, len), self.rows, self.bytes, pitch)
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
