//! Ring attention on a rank's GPU.
//!
//! ```text
//! stream   quantize | step 0: own keys      | step 1            | step 2 ...
//! travel              keys of step 1 arrive   keys of step 2 ...
//! ```
//!
//! Keys and values that arrive go to two buffers in turn, the second stream a step ahead.

use super::communicator::{OnGpu, check_rank, check_ranks};
use super::constants_gpu::{Constants, of_tokens, share};
use super::{Communicator, Message, Pair, RingProblem, Step};
use crate::dtype::DType;
use crate::error::Result;
use crate::gpu::{
    AnySlice, AnySliceMut, AttentionOutput, AttentionPlan, DeviceBuffer, DeviceK, DeviceQ, DeviceSeqLens, DeviceSlice,
    DeviceSliceMut, DeviceV, Event, Gpu, MergePlan, QuantizeKvPlan, QuantizeLayouts, QuantizeQPlan, States, Stream,
    ViewK, ViewMutK, ViewMutV, ViewOperands, ViewV,
};
use crate::problem::{AttentionProblem, SeqLens, Sequences};
use crate::shape::{Shape, TensorLayout};
use std::ops::Range;

/// A rank's part of ring attention on its GPU, checked and ready to be launched, with the memory that it needs.
#[derive(Debug)]
pub struct RingPlan {
    gpu: Gpu,
    ring: RingProblem,
    rank: usize,
    layouts: QuantizeLayouts,
    output: AttentionOutput,
    /// The first rank's.
    constants: Option<Constants>,
    /// Of each chunk: where it begins in the rank's tensors, and its quantization.
    chunks: Vec<(usize, QuantizeKvPlan)>,
    parts: Vec<Part>,
    steps: Vec<PlannedStep>,
    /// The rank's own keys and values, and those that arrive.
    own: DeviceBuffer<u8>,
    arriving: [DeviceBuffer<u8>; 2],
    /// A state to be merged into a part's.
    new: (DeviceBuffer<f32>, DeviceBuffer<f32>),
    travel: Stream,
    /// The keys are quantized; what has arrived; what is done with it; nothing travels any more.
    quantized: Event,
    arrived: [Event; 2],
    used: [Event; 2],
    sent: Event,
}

/// A part of the rank's queries.
#[derive(Debug)]
struct Part {
    /// Where it begins in the rank's tensors.
    start: usize,
    quantize: QuantizeQPlan,
    q: DeviceQ,
    /// What it has come to so far, where it sees several chunks.
    state: Option<(DeviceBuffer<f32>, DeviceBuffer<f32>)>,
}

#[derive(Debug)]
struct PlannedStep {
    step: Step,
    pairs: Vec<PlannedPair>,
}

#[derive(Debug)]
struct PlannedPair {
    attention: AttentionPlan,
    /// Where a chunk's last keys are hidden.
    seqlens_kv: Option<DeviceBuffer<u32>>,
    then: Then,
}

/// Where a pair's result goes.
#[derive(Debug)]
enum Then {
    /// It is the part's only one: the output.
    Output,
    /// It is the first: the part's state.
    State,
    /// Merged with the part's state, to be its state.
    Merge(MergePlan),
    /// It is the last: merged with the part's state to the output.
    Finish(MergePlan),
}

impl Gpu {
    /// A rank's part of ring attention. `layouts` and `output` are of the rank's own tokens; a log-sum-exp is not written.
    ///
    /// # Errors
    /// As of [`RingProblem::check`], of quantization and attention; a communicator of another number of ranks; layouts of other shapes; what
    /// the driver says, for instance that there is not so much memory.
    pub fn plan_ring(
        &self,
        ring: &RingProblem,
        ranks: &dyn Communicator<OnGpu>,
        layouts: &QuantizeLayouts,
        output: &AttentionOutput,
    ) -> Result<RingPlan> {
        ring.check()?;
        let rank = check_ranks(ranks, ring.ranks)?;
        for (name, given, expected) in [
            ("q", layouts.q, ring.q_shape(rank)),
            ("k", layouts.k, ring.kv_shape(rank)),
            ("v", layouts.v, ring.v_shape(rank)),
            ("o", output.layout, ring.o_shape(rank)),
        ] {
            AttentionProblem::check_shape(name, given.shape(), expected)?;
        }
        output.layout.check_disjoint()?;
        let (chunks, parts) = (ring.chunks(rank), ring.parts(rank));
        let chunk = |(number, tokens): (usize, Range<usize>)| {
            let (problem, [k, v]) =
                (ring.of_tokens(&tokens), [layouts.k, layouts.v].map(|x| of_tokens(&x, tokens.len())));
            let (k, v) = (k?, v?);
            let plan = match (rank, number) {
                (0, 0) => self.plan_quantize_kv(&problem, k, v, layouts.dtype),
                _ => self.plan_quantize_kv_on(&problem, k, v, layouts.dtype),
            };
            Ok((tokens.start, plan?.with_shared_k(ring.shares_k(self))))
        };
        let steps = ring.steps(rank);
        let all = steps.iter().flat_map(|step| &step.pairs);
        let counts: Vec<usize> =
            (0..parts.len()).map(|part| all.clone().filter(|pair| pair.part == part).count()).collect();
        let part = |(number, tokens): (usize, Range<usize>)| {
            let problem = ring.of_tokens(&tokens);
            let shape = problem.o_shape();
            let state = || Ok::<_, crate::Error>((self.alloc(shape.elements())?, self.alloc(shape.rows())?));
            Ok(Part {
                start: tokens.start,
                quantize: self.plan_quantize_q(&problem, of_tokens(&layouts.q, tokens.len())?, layouts.dtype)?,
                q: DeviceQ::alloc(self, &problem)?,
                state: (counts[number] > 1).then(state).transpose()?,
            })
        };
        let largest = parts.iter().map(|part| ring.of_tokens(part).o_shape()).max_by_key(Shape::rows);
        let (elements, rows) =
            largest.filter(|_| counts.iter().any(|&count| count > 1)).map_or((0, 0), |s| (s.elements(), s.rows()));
        let mut done = vec![0; parts.len()];
        let mut planned = Vec::new();
        for step in steps {
            let pair = |pair: &Pair| {
                done[pair.part] += 1;
                self.plan_pair(pair, output, done[pair.part], counts[pair.part])
            };
            let pairs = step.pairs.iter().map(pair).collect::<Result<_>>()?;
            planned.push(PlannedStep { step, pairs });
        }
        let most =
            planned.iter().filter(|planned| planned.step.receives).map(|planned| kv_bytes(ring, planned.step.source));
        let most = most.collect::<Result<Vec<_>>>()?.into_iter().max().unwrap_or(0);
        Ok(RingPlan {
            gpu: self.clone(),
            ring: *ring,
            rank,
            layouts: *layouts,
            output: *output,
            constants: (rank == 0).then(|| Constants::new(self, &ring.of_tokens(&chunks[0]), layouts)).transpose()?,
            chunks: RingProblem::starts(&chunks).enumerate().map(chunk).collect::<Result<_>>()?,
            parts: RingProblem::starts(&parts).enumerate().map(part).collect::<Result<_>>()?,
            steps: planned,
            own: self.alloc(kv_bytes(ring, rank)?)?,
            arriving: [self.alloc(most)?, self.alloc(most)?],
            new: (self.alloc(elements)?, self.alloc(rows)?),
            travel: self.stream()?,
            quantized: self.event()?,
            arrived: [self.event()?, self.event()?],
            used: [self.event()?, self.event()?],
            sent: self.event()?,
        })
    }

    /// The plan of the pair that is number `number` of the part's `count`.
    fn plan_pair(&self, pair: &Pair, output: &AttentionOutput, number: usize, count: usize) -> Result<PlannedPair> {
        let shape = pair.problem.o_shape();
        let of_part = AttentionOutput { layout: of_tokens(&output.layout, shape.seqlen)?, lse: false, ..*output };
        let state = AttentionOutput { layout: TensorLayout::bhnd(shape), dtype: DType::F32, lse: true };
        let then = match number {
            1 if count == 1 => Then::Output,
            1 => Then::State,
            _ if number == count => Then::Finish(self.plan_merge(2, &of_part, false)?),
            _ => Then::Merge(self.plan_merge(2, &state, false)?),
        };
        let to = if matches!(then, Then::Output) { &of_part } else { &state };
        let cut = pair.problem.sequences == Sequences::KeyLengths;
        let lengths = cut.then(|| self.upload(&vec![pair.keys as u32; pair.problem.batch])).transpose()?;
        Ok(PlannedPair { attention: self.plan_attention(&pair.problem, to)?, seqlens_kv: lengths, then })
    }
}

impl RingProblem {
    /// Whether tokens of a block of K share scales, on GPUs like this one: where every kernel that attends takes narrow blocks, whichever rank's it is, so that
    /// states which are merged are of the same operands.
    #[must_use]
    pub fn shares_k(&self, gpu: &Gpu) -> bool {
        (0..self.ranks).all(|rank| {
            self.steps(rank).iter().flat_map(|step| &step.pairs).all(|pair| gpu.takes_narrow(&pair.problem))
        })
    }
}

impl RingPlan {
    /// Gives a rank's part to the stream; `q`, `k`, `v` and `o` are of its own tokens. It allocates nothing, and does not wait for the GPU; an
    /// engine may let the thread wait for other ranks' threads. Every rank launches equally often.
    ///
    /// # Errors
    /// Another communicator's rank than the plan's; a buffer of another type or GPU, too short, or not aligned; a stream that is recorded; what
    /// the communicator or the driver says, after which the plans of all ranks are to be made again.
    pub fn launch(
        &mut self,
        stream: &Stream,
        ranks: &dyn Communicator<OnGpu>,
        [q, k, v]: [AnySlice<'_>; 3],
        mut o: AnySliceMut<'_>,
    ) -> Result<()> {
        check_rank(ranks, self.ring.ranks, self.rank)?;
        self.quantize(stream, ranks, [q, k, v])?;
        self.quantized.record(stream)?;
        self.travel.wait(&self.quantized)?;
        for at in 0..self.steps.len() {
            if at + 1 < self.steps.len() {
                // The buffer is that of the step before this one.
                if at > 0 {
                    self.travel.wait(&self.used[(at + 1) % 2])?;
                }
                self.exchange(ranks, at + 1)?;
                if !ranks.copies_beside_kernels() {
                    stream.wait(&self.arrived[(at + 1) % 2])?;
                }
            }
            // The first step is of the rank's own keys, and nothing travels in it.
            if self.steps[at].step.receives {
                stream.wait(&self.arrived[at % 2])?;
            }
            self.attend(stream, at, &mut o)?;
            self.used[at % 2].record(stream)?;
        }
        self.sent.record(&self.travel)?;
        stream.wait(&self.sent)
    }

    /// The keys of the chunks, with the constants of the first rank's first chunk, and the queries.
    fn quantize(
        &mut self,
        stream: &Stream,
        ranks: &dyn Communicator<OnGpu>,
        [q, k, v]: [AnySlice<'_>; 3],
    ) -> Result<()> {
        let (ring, layouts) = (self.ring, self.layouts);
        let stride = |layout: &TensorLayout, start: usize| layout.offset(0, 0, start);
        let mut views = kv_views_mut(&ring, self.rank, self.own.slice_mut())?;
        let quantize = |(start, plan): &(usize, QuantizeKvPlan), (k_out, v_out): &mut (ViewMutK<'_>, ViewMutV<'_>)| {
            let (k, v) = (k.skip(stride(&layouts.k, *start))?, v.skip(stride(&layouts.v, *start))?);
            plan.launch(stream, k, v, DeviceSliceMut::empty(), k_out, v_out)
        };
        let first = self.constants.as_mut().map(|constants| constants.launch(stream, k, v)).transpose()?;
        share(stream, ranks, first, &views, |rank| ring.chunks(rank).len())?;
        for (plan, view) in self.chunks.iter().zip(&mut views) {
            quantize(plan, view)?;
        }
        let offset = views[0].0.offset.as_slice();
        for part in &mut self.parts {
            part.quantize.launch(stream, q.skip(stride(&layouts.q, part.start))?, offset, &mut part.q.view_mut())?;
        }
        Ok(())
    }

    /// A step's keys and values on their way.
    fn exchange(&mut self, ranks: &dyn Communicator<OnGpu>, at: usize) -> Result<()> {
        let Step { source, to, receives, .. } = self.steps[at].step;
        let sends: Vec<_> = to.iter().map(|&peer| Message { peer, bytes: self.own.slice().into() }).collect();
        let mut arriving = Vec::new();
        if receives {
            let bytes = self.arriving[at % 2].slice_mut().range(0, kv_bytes(&self.ring, source)?)?;
            arriving.push(Message { peer: source, bytes: bytes.into() });
        }
        ranks.exchange((&self.travel).into(), &sends, &mut arriving)?;
        self.arrived[at % 2].record(&self.travel)
    }

    /// What a step computes.
    fn attend(&mut self, stream: &Stream, at: usize, o: &mut AnySliceMut<'_>) -> Result<()> {
        let PlannedStep { step, pairs } = &self.steps[at];
        let buffer = if step.receives { &self.arriving[at % 2] } else { &self.own };
        let keys = kv_views(&self.ring, step.source, buffer.slice())?;
        for (pair, planned) in step.pairs.iter().zip(pairs) {
            let (part, (k, v)) = (&mut self.parts[pair.part], keys[pair.chunk].clone());
            let operands = ViewOperands { q: part.q.view(), k, v };
            let lengths: DeviceSeqLens<'_> = match &planned.seqlens_kv {
                Some(lengths) => SeqLens::KeyLengths { seqlens_kv: lengths.slice() },
                None => SeqLens::Equal,
            };
            let out = o.skip(self.output.layout.offset(0, 0, part.start))?;
            let attend = |o: AnySliceMut<'_>, lse| planned.attention.launch_with(stream, &operands, &lengths, o, lse);
            let (new_o, new_lse) = &mut self.new;
            match (&planned.then, &mut part.state) {
                (Then::State, Some((o, lse))) => attend(o.into(), Some(lse.into()))?,
                (Then::Merge(merge), Some((o, lse))) => {
                    attend((&mut *new_o).into(), Some((&mut *new_lse).into()))?;
                    merge.launch_in_place(stream, (o.into(), lse.into()), ((&*new_o).into(), (&*new_lse).into()))?;
                }
                (Then::Finish(merge), Some((o, lse))) => {
                    attend((&mut *new_o).into(), Some((&mut *new_lse).into()))?;
                    let states = States::Two([((&*o).into(), (&*lse).into()), ((&*new_o).into(), (&*new_lse).into())]);
                    merge.launch(stream, &states, None, out, None)?;
                }
                _ => attend(out, None)?,
            }
        }
        Ok(())
    }

    /// The GPU that the plan is of.
    #[must_use]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Bytes of keys and values that the rank receives in a launch.
    ///
    /// # Errors
    /// None that the plan did not have.
    pub fn received_bytes(&self) -> Result<usize> {
        let received = self.steps.iter().filter(|planned| planned.step.receives);
        received.map(|planned| kv_bytes(&self.ring, planned.step.source)).sum()
    }
}

/// Where the keys and the values of a rank's chunks lie in its buffer: of each chunk K, then V.
fn places(ring: &RingProblem, rank: usize) -> Result<Vec<(AttentionProblem, [Range<usize>; 2])>> {
    let mut end = 0;
    let mut place = |bytes: usize| {
        end += bytes;
        end - bytes..end
    };
    let chunks = ring.chunks(rank).into_iter().map(|tokens| ring.of_tokens(&tokens));
    chunks.map(|chunk| Ok((chunk, [place(DeviceK::bytes(&chunk)?), place(DeviceV::bytes(&chunk)?)]))).collect()
}

fn kv_bytes(ring: &RingProblem, rank: usize) -> Result<usize> {
    Ok(places(ring, rank)?.last().map_or(0, |(_, [_, v])| v.end))
}

fn kv_views<'a>(ring: &RingProblem, rank: usize, buffer: DeviceSlice<'a, u8>) -> Result<Vec<(ViewK<'a>, ViewV<'a>)>> {
    let view = |(problem, [k, v]): (AttentionProblem, [Range<usize>; 2])| {
        let [k, v] = [k, v].map(|place| buffer.part(place.start, place.len()));
        Ok((ViewK::in_buffer(&problem, k)?, ViewV::in_buffer(&problem, v)?))
    };
    places(ring, rank)?.into_iter().map(view).collect()
}

fn kv_views_mut<'a>(
    ring: &RingProblem,
    rank: usize,
    buffer: DeviceSliceMut<'a, u8>,
) -> Result<Vec<(ViewMutK<'a>, ViewMutV<'a>)>> {
    let view = |(problem, [k, v]): (AttentionProblem, [Range<usize>; 2])| {
        let [k, v] = [k, v].map(|place| buffer.part(place.start, place.len()));
        Ok((ViewMutK::in_buffer(&problem, k)?, ViewMutV::in_buffer(&problem, v)?))
    };
    places(ring, rank)?.into_iter().map(view).collect()
}
