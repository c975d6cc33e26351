//! Ulysses on a rank's GPU.
//!
//! ```text
//! stream   quantize | constants | quantize |            attend to group 0 |    and 2 |
//! beside                                                          attend to group 1 |
//! travel                                     group 0 | 1 | 2       outputs of 0       outputs of 1 | 2
//! ```
//!
//! What travels are rows of many heads in one piece. Where the heads' tokens are whole they lie apart, so they are spread on arrival, and
//! gathered before they leave, by copies on the GPU.

use super::communicator::{OnGpu, check_rank, check_ranks};
use super::constants_gpu::{Constants, share};
use super::ulysses::{Heads, Rows, Spread};
use super::{Communicator, Message, RanksError, UlyssesProblem};
use crate::error::Result;
use crate::gpu::{
    AnySlice, AnySliceMut, AttentionOutput, AttentionPlan, DeviceBuffer, DeviceOperands, DeviceSlice, DeviceSliceMut,
    Event, Gpu, QuantizeKvPlan, QuantizeLayouts, QuantizeQPlan, Stream, ViewMutOperands,
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
    /// Rows without gaps between them, as they travel.
    rows: DeviceBuffer<u8>,
    output: AttentionOutput,
    travel: Stream,
    /// A group's attention is beside the one before, so that the last tiles of the one and the first of the other fill the GPU.
    beside: Stream,
    /// The rank's tokens are quantized; all outputs have come.
    quantized: Event,
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
            rows: self.alloc(travelling_bytes(ulysses, rank, output.dtype.size()))?,
            output: *output,
            travel: self.stream()?,
            beside: self.stream()?,
            quantized: self.event()?,
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
        let exchange =
            Exchange { gpu: &self.gpu, ulysses: &self.ulysses, rank: self.rank, ranks, stream: &self.travel };
        let mut rows = self.rows.slice_mut();
        for (number, group) in self.groups.iter_mut().enumerate() {
            exchange.to_heads(number, &of_tokens, &arrays(&group.operands.view_mut()), &mut rows)?;
            group.arrived.record(&self.travel)?;
        }
        for (number, group) in self.groups.iter_mut().enumerate() {
            let stream = if number % 2 == 0 { stream } else { &self.beside };
            stream.wait(&group.arrived)?;
            let o = AnySliceMut::from_bytes(group.o.slice_mut(), self.output.dtype);
            group.attention.launch(stream, &group.operands.view(), o, None)?;
            group.attended.record(stream)?;
        }
        let output = self.ulysses.output(self.output.dtype.size());
        for (number, group) in self.groups.iter().enumerate() {
            self.travel.wait(&group.attended)?;
            exchange.back(number, &output, group.o.slice(), &o.bytes(), &mut rows)?;
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

/// Where parts of a buffer begin, as if each were an allocation of its own.
const ALIGN: usize = 256;

/// Parts of the buffer of travelling rows, one behind the other.
struct Parts<'a> {
    buffer: &'a DeviceSliceMut<'a, u8>,
    end: usize,
}

impl<'a> Parts<'a> {
    const fn of(buffer: &'a DeviceSliceMut<'a, u8>) -> Self {
        Self { buffer, end: 0 }
    }

    fn next(&mut self, bytes: usize) -> DeviceSliceMut<'a, u8> {
        let start = self.end;
        self.end += bytes.next_multiple_of(ALIGN);
        self.buffer.part(start, bytes)
    }
}

/// The most bytes of rows that travel to or from a rank at a time.
fn travelling_bytes(ulysses: &UlyssesProblem, rank: usize, element: usize) -> usize {
    let others = || (0..ulysses.ranks).filter(|&peer| peer != rank);
    let bytes = |array: &Spread, source: usize, heads: &Heads| -> usize {
        ulysses.rows(array, source, heads).iter().map(|rows| rows.len().next_multiple_of(ALIGN)).sum()
    };
    let of_group = |heads: &Heads| {
        let arrive = others().flat_map(|peer| ulysses.operands().map(|array| bytes(&array, peer, heads))).sum();
        let leave: usize = others().map(|peer| bytes(&ulysses.output(element), peer, heads)).sum();
        leave.max(arrive)
    };
    ulysses.groups(rank).iter().map(of_group).max().unwrap_or(0)
}

/// A rank's exchanges, in the order of a stream.
struct Exchange<'a> {
    gpu: &'a Gpu,
    ulysses: &'a UlyssesProblem,
    rank: usize,
    ranks: &'a dyn Communicator<OnGpu>,
    stream: &'a Stream,
}

impl Exchange<'_> {
    /// The other ranks.
    fn peers(&self) -> impl Iterator<Item = usize> {
        let rank = self.rank;
        (0..self.ulysses.ranks).filter(move |&peer| peer != rank)
    }

    /// Operands of the rank's tokens, of all heads, to the ranks of the heads: those of this rank's group `number` arrive.
    fn to_heads(
        &self,
        number: usize,
        of_tokens: &[DeviceSliceMut<'_, u8>],
        of_heads: &[DeviceSliceMut<'_, u8>],
        rows: &mut DeviceSliceMut<'_, u8>,
    ) -> Result<()> {
        let (arrays, own) = (self.ulysses.operands(), &self.ulysses.groups(self.rank)[number]);
        let all = || arrays.iter().enumerate();
        // What stays here has no part in the exchange, and is done while other ranks are not ready.
        for (at, array) in all() {
            for rows in self.ulysses.rows(array, self.rank, own) {
                let from = of_tokens[at].as_slice().part(rows.of_tokens, rows.len());
                self.spread((from, rows.bytes), (&of_heads[at], rows.of_heads, rows.pitch), &rows)?;
            }
        }
        let mut parts = Parts::of(rows);
        let (mut sends, mut receives, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for peer in self.peers() {
            let heads = &self.ulysses.groups(peer)[number];
            for (at, array) in all() {
                for rows in self.ulysses.rows(array, self.rank, heads) {
                    let bytes = of_tokens[at].as_slice().part(rows.of_tokens, rows.len());
                    sends.push(Message { peer, bytes });
                }
                for rows in self.ulysses.rows(array, peer, own) {
                    receives.push(Message { peer, bytes: parts.next(rows.len()) });
                    places.push((at, rows));
                }
            }
        }
        self.ranks.exchange(self.stream.into(), &sends, &mut receives)?;
        for (message, (at, rows)) in receives.iter().zip(places) {
            self.spread((message.bytes.as_slice(), rows.bytes), (&of_heads[at], rows.of_heads, rows.pitch), &rows)?;
        }
        Ok(())
    }

    /// Outputs of all tokens of this rank's group `number`, to the ranks of the tokens; those of this rank's tokens arrive.
    fn back(
        &self,
        number: usize,
        array: &Spread,
        of_heads: DeviceSlice<'_, u8>,
        of_tokens: &DeviceSliceMut<'_, u8>,
        rows: &mut DeviceSliceMut<'_, u8>,
    ) -> Result<()> {
        let own = &self.ulysses.groups(self.rank)[number];
        let from = |rows: &Rows| (of_heads.part(rows.of_heads, of_heads.len() - rows.of_heads), rows.pitch);
        let mut parts = Parts::of(rows);
        let (mut sends, mut receives) = (Vec::new(), Vec::new());
        for peer in self.peers() {
            for rows in self.ulysses.rows(array, peer, own) {
                let part = parts.next(rows.len());
                self.spread(from(&rows), (&part, 0, rows.bytes), &rows)?;
                sends.push((peer, part));
            }
            for rows in self.ulysses.rows(array, self.rank, &self.ulysses.groups(peer)[number]) {
                receives.push(Message { peer, bytes: of_tokens.part(rows.of_tokens, rows.len()) });
            }
        }
        let sends: Vec<_> = sends.iter().map(|(peer, part)| Message { peer: *peer, bytes: part.as_slice() }).collect();
        self.ranks.exchange(self.stream.into(), &sends, &mut receives)?;
        for rows in self.ulysses.rows(array, self.rank, own) {
            self.spread(from(&rows), (of_tokens, rows.of_tokens, rows.bytes), &rows)?;
        }
        Ok(())
    }

    /// Copies rows; the distance from a row to the next is that of either side.
    fn spread(
        &self,
        from: (DeviceSlice<'_, u8>, usize),
        (to, start, pitch): (&DeviceSliceMut<'_, u8>, usize, usize),
        rows: &Rows,
    ) -> Result<()> {
        let to = to.part(start, to.len() - start);
        self.gpu.copy_rows(self.stream.into(), from, (to, pitch), (rows.rows, rows.bytes))
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
