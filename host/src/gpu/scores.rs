//! The tensors that change scores, in a GPU's memory.

use super::launch::Launch;
use super::{AnySlice, DeviceSlice};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::problem::AttentionProblem;
use int_flash_attention_kernels::params::{Global, ScoreParams};

/// The tensors of a problem's [`ScoreMod`](crate::ScoreMod) at a launch, each exactly where that has it.
///
/// Their values are not looked at: a slope or a sink that is no number makes the rows of its head NaN, one of a bias those that see it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreViews<'a> {
    /// `[heads_q]` or `[batch][heads_q]`, by [`ScoreMod::alibi`](crate::ScoreMod::alibi).
    pub alibi_slopes: Option<DeviceSlice<'a, f32>>,
    /// In the places of [`ScoreMod::bias`](crate::ScoreMod::bias).
    pub bias: Option<AnySlice<'a>>,
    /// In the places of [`ScoreMod::mask`](crate::ScoreMod::mask).
    pub mask: Option<DeviceSlice<'a, u8>>,
    /// `[heads_q]`.
    pub sinks: Option<DeviceSlice<'a, f32>>,
}

impl ScoreViews<'_> {
    /// The parameters of a problem with the tensors' addresses, after their types, lengths, alignments and contexts have been checked.
    #[inline]
    pub(super) fn params(
        &self,
        launch: &Launch<'_>,
        problem: &AttentionProblem,
        params: &ScoreParams,
    ) -> Result<ScoreParams> {
        let score = &problem.score_mod;
        let floats = |name, given: Option<DeviceSlice<'_, f32>>, len: Option<usize>| {
            let planned = len.map(|len| (DType::F32, len));
            address(name, given.map(AnySlice::from), planned, |slice, (dtype, len)| {
                slice.checked(launch, name, dtype, len)
            })
        };
        let alibi_slopes = floats("alibi_slopes", self.alibi_slopes, score.alibi.map(|_| score.slopes(problem)))?;
        let sinks = floats("sinks", self.sinks, score.sinks.then_some(problem.heads_q))?;
        let bias = address("bias", self.bias, score.bias, |slice, layout| {
            slice.checked(launch, "bias", layout.dtype, layout.span(problem)?)
        })?;
        let mask = address("mask", self.mask, score.mask, |slice, layout| {
            slice.checked_bytes(launch, "mask", layout.span(problem)?)
        })?;
        Ok(ScoreParams {
            sinks: Global::new(sinks),
            alibi_slopes: Global::new(alibi_slopes),
            mask: Global::new(mask),
            bias: Global::new(bias),
            ..*params
        })
    }
}

/// The address of a tensor that is given where it was planned, zero of one that is neither.
fn address<T, P>(
    name: &'static str,
    given: Option<T>,
    planned: Option<P>,
    checked: impl FnOnce(T, P) -> Result<u64>,
) -> Result<u64> {
    match (given, planned) {
        (Some(given), Some(planned)) => checked(given, planned),
        (None, None) => Ok(0),
        (Some(_), None) => Err(Error::Optional { name, given: "given", planned: "without" }),
        (None, Some(_)) => Err(Error::Optional { name, given: "not given", planned: "with" }),
    }
}
