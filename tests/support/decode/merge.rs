//! The merge of states: cases, and what must hold of them.

use super::{DecodeKernels, Numbers, agree};
use anyhow::{Context, Result};
use int_flash_attention::reference::{self, Bounds, HostState, Int8};
use int_flash_attention::{DType, Shape};

/// A merge with everything that a launch is given.
#[derive(Clone, Debug)]
pub struct MergeCase {
    /// Of the output and of each state.
    pub shape: Shape,
    /// Outputs, one state after the other.
    pub o: Vec<f32>,
    /// And log-sum-exps.
    pub lse: Vec<f32>,
    /// How many.
    pub states: usize,
    /// A sink a head.
    pub sinks: Option<Vec<f32>>,
    /// Whether the first state is where the result goes.
    pub in_place: bool,
}

impl MergeCase {
    /// States with rows at minus infinity among them, whose outputs are no numbers.
    #[must_use]
    pub fn new(shape: Shape, states: usize, seed: u64) -> Self {
        let mut numbers = Numbers::new(seed);
        let lse: Vec<f32> = (0..states * shape.rows())
            .map(|row| {
                let empty = numbers.below(4) == 0 || row % shape.rows() == 0;
                // So far apart, too, that all but one state count nothing, and that powers of the distance leave float32.
                let spread = if row % 5 == 0 { 300.0 } else { 8.0 };
                if empty { f32::NEG_INFINITY } else { numbers.between(-spread, spread) }
            })
            .collect();
        let of_row = |row: usize, x: f32| if lse[row] == f32::NEG_INFINITY { f32::NAN } else { x };
        let o =
            (0..states * shape.elements()).map(|i| of_row(i / shape.head_dim, numbers.between(-2.0, 2.0))).collect();
        Self { shape, o, lse, states, sinks: None, in_place: false }
    }

    /// What the reference says, and how far an output in `dtype` may be from it.
    ///
    /// # Errors
    ///
    /// When the reference refuses the case.
    pub fn want(&self, dtype: DType) -> Result<(Int8, Bounds)> {
        Ok(reference::merge_bounds(self.shape, &self.states(), self.sinks.as_deref(), dtype)?)
    }

    fn states(&self) -> Vec<HostState<'_>> {
        let o = self.o.chunks_exact(self.shape.elements());
        o.zip(self.lse.chunks_exact(self.shape.rows())).map(|(o, lse)| HostState { o, lse }).collect()
    }
}

/// The merge is within the reference's bound.
///
/// # Errors
///
/// The first element that is not.
pub fn merges_as_the_reference(kernels: &impl DecodeKernels, case: &MergeCase, dtype: DType) -> Result<()> {
    let (want, bounds) = case.want(dtype)?;
    let describe = || format!("{} of {} states, {dtype}", case.shape, case.states);
    let got = kernels.merge(case, dtype).with_context(describe)?;
    agree(&got, &want, &bounds, dtype).with_context(describe)
}
