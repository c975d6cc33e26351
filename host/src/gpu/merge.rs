//! States of attention over parts of the keys, merged.

use super::kernel::Kernel;
use super::memory::Checked;
use super::{AnySliceMut, AttentionOutput, DeviceSlice, DeviceSliceMut, Gpu, Stream, StreamRef};
use crate::decode::merged_params;
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::check_cache_head_dim;
use crate::quantized::Lengths;
use crate::shape::Order;
use int_flash_attention_kernels::config::decode::{MERGE, MERGE_BOUNDS, merge_shared_bytes, merge_states_cta};
use int_flash_attention_kernels::params::{Global, MergeStatesParams, MergedParams, Strided};

/// States to be merged: outputs in float32 `[batch][heads][seqlen][head_dim]`, and log-sum-exps (natural logarithms, minus infinity in rows that
/// see no key) `[batch][heads][seqlen]`.
#[derive(Clone, Copy, Debug)]
pub enum States<'a> {
    /// Two, wherever they are: output and log-sum-exp each.
    Two([(DeviceSlice<'a, f32>, DeviceSlice<'a, f32>); 2]),
    /// As many as the plan says, one after the other in one array of outputs and one of log-sum-exps.
    Stacked(DeviceSlice<'a, f32>, DeviceSlice<'a, f32>),
}

/// A merge of states, checked and ready to be launched.
#[derive(Clone, Debug)]
pub struct MergePlan {
    gpu: Gpu,
    kernel: Kernel,
    output: AttentionOutput,
    states: usize,
    lengths: Lengths,
    sinks: bool,
    merged: MergedParams,
}

impl Gpu {
    /// The merge of `states` states into an output of this layout and type; its shape is that of the states. With `sinks`, launches are given
    /// a logit a head that takes part in the softmax and has no value.
    ///
    /// # Errors
    /// No states; an output in which elements overlap; a head dim that the packed layouts do not have; more rows than a grid has blocks.
    pub fn plan_merge(&self, states: usize, output: &AttentionOutput, sinks: bool) -> Result<MergePlan> {
        let shape = output.layout.shape();
        if states == 0 {
            return Err(Error::ZeroSize { name: "the number of states" });
        }
        check_cache_head_dim(shape.head_dim)?;
        output.layout.check_disjoint()?;
        let lengths = Lengths::of(shape)?;
        let entry = MERGE_BOUNDS[0].entry;
        let fits = i32::try_from(lengths.q_scale).ok().zip(u32::try_from(states).ok());
        let (rows, count) = fits.ok_or_else(|| Error::Grid { kernel: entry, shape: shape.to_string() })?;
        // A CTA has whole rows: where the output is a state's memory, none reads what another has written.
        let d = shape.head_dim;
        let [of_cta, threads] = merge_states_cta(states, d);
        let grid = [(rows as u32).div_ceil(of_cta as u32), 1, 1];
        let kernel = self.kernel(MERGE, entry, grid, threads, merge_shared_bytes(d))?;
        let merged = merged_params(&output.layout, output.dtype, count as usize, d);
        Ok(MergePlan { gpu: self.clone(), kernel, output: *output, states: count as usize, lengths, sinks, merged })
    }
}

impl MergePlan {
    /// Gives the kernel to the stream: no allocation, no waiting, capturable.
    ///
    /// # Errors
    /// Another number of states than the plan's; a buffer of another type, too short, or not aligned (16 bytes, `o` by its element); `sinks` or
    /// `lse` there or not, against the plan; the driver's.
    pub fn launch<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        states: &States<'_>,
        sinks: Option<DeviceSlice<'_, f32>>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let (elements, rows) = (self.lengths.q_data, self.lengths.q_scale);
        let check = |o: &DeviceSlice<'_, f32>, lse: &DeviceSlice<'_, f32>, count: usize| -> Result<[u64; 2]> {
            let all = |len: usize| len.saturating_mul(count);
            Ok([
                o.checked(launch, "the states' outputs", all(elements))?,
                lse.checked(launch, "the states' log-sum-exps", all(rows))?,
            ])
        };
        let (first, second) = match states {
            States::Two(_) if self.states != 2 => {
                return Err(Error::States { given: 2, planned: self.states });
            }
            States::Two([a, b]) => (check(&a.0, &a.1, 1)?, check(&b.0, &b.1, 1)?),
            States::Stacked(o, lse) => {
                let first = check(o, lse, self.states)?;
                let bytes = [elements, rows].map(|len| (len * size_of::<f32>()) as u64);
                (first, [first[0] + bytes[0], first[1] + bytes[1]])
            }
        };
        self.give(launch, first, second, sinks, o, lse)
    }

    /// Merges a state into one that is there, a float32 output `[batch][heads][seqlen][head_dim]` and its log-sum-exp: two states, the result in
    /// the first one's place.
    ///
    /// # Errors
    /// As [`launch`](Self::launch); a plan of another number of states, without the log-sum-exp, or of another output than that.
    pub fn launch_in_place<'s>(
        &self,
        stream: impl Into<StreamRef<'s>>,
        (o, lse): (DeviceSliceMut<'_, f32>, DeviceSliceMut<'_, f32>),
        (other_o, other_lse): (DeviceSlice<'_, f32>, DeviceSlice<'_, f32>),
    ) -> Result<()> {
        if self.output.layout.order() != Some(Order::Bhnd) {
            return Err(Error::InPlace);
        }
        let launch = &self.gpu.launching(stream.into())?;
        if self.states != 2 {
            return Err(Error::States { given: 2, planned: self.states });
        }
        let (elements, rows) = (self.lengths.q_data, self.lengths.q_scale);
        let first = [o.checked(launch, "o", elements)?, lse.checked(launch, "lse", rows)?];
        let second = [
            other_o.checked(launch, "the other state's output", elements)?,
            other_lse.checked(launch, "the other state's log-sum-exp", rows)?,
        ];
        self.give(launch, first, second, None, o.into(), Some(lse))
    }

    /// Merges states that lie in one array, each its outputs and right behind them its log-sum-exps, so many floats, a multiple of 4, from one state to the next.
    ///
    /// # Errors
    /// As [`launch`](Self::launch).
    pub(crate) fn launch_together(
        &self,
        stream: &Stream,
        (states, stride): (DeviceSlice<'_, f32>, usize),
        sinks: Option<DeviceSlice<'_, f32>>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        let launch = &self.gpu.launching(stream.into())?;
        let (elements, rows) = (self.lengths.q_data, self.lengths.q_scale);
        let all = stride.saturating_mul(self.states - 1).saturating_add(elements + rows);
        let first = states.checked(launch, "the states", all)?;
        let lse_of_first = first + (elements * size_of::<f32>()) as u64;
        let second = [first, lse_of_first].map(|address| address + (stride * size_of::<f32>()) as u64);
        self.give(launch, [first, lse_of_first], second, sinks, o, lse)
    }

    /// Launches on two states that have been checked, from which on the others follow at the same distance.
    fn give(
        &self,
        launch: &super::launch::Launch<'_>,
        first: [u64; 2],
        second: [u64; 2],
        sinks: Option<DeviceSlice<'_, f32>>,
        o: AnySliceMut<'_>,
        lse: Option<DeviceSliceMut<'_, f32>>,
    ) -> Result<()> {
        let optional = |name, given: bool, planned: bool| match (given, planned) {
            (true, false) => Err(Error::Optional { name, given: "given", planned: "without" }),
            (false, true) => Err(Error::Optional { name, given: "not given", planned: "with" }),
            _ => Ok(()),
        };
        optional("sinks", sinks.is_some(), self.sinks)?;
        optional("lse", lse.is_some(), self.output.lse)?;
        let o = o.checked(launch, "o", self.output.dtype, self.output.layout.span())?;
        let lse = lse.map_or(Ok(0), |lse| lse.checked(launch, "lse", self.lengths.q_scale))?;
        let heads = self.merged.heads_q as usize;
        let sinks = sinks.map_or(Ok(0), |sinks| sinks.checked(launch, "sinks", heads))?;
        let [o_stride, lse_stride] = [0, 1].map(|i| second[i].wrapping_sub(first[i]) as i64);
        let params = MergeStatesParams {
            o: Global::new(first[0]),
            lse: Global::new(first[1]),
            o_stride,
            lse_stride,
            out: MergedParams {
                o: Strided { data: Global::new(o), ..self.merged.o },
                lse: Global::new(lse),
                sinks: Global::new(sinks),
                ..self.merged
            },
        };
        // SAFETY: the kernel's parameter; all lengths have been checked; grid, block and shared memory are the kernel's. Where the output is a
        // state's memory, a row of it is written by the block that has read the row, after all its threads have.
        unsafe { launch.kernel_with(&self.kernel, &params) }
    }

    /// The element type of the output.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.output.dtype
    }
}
