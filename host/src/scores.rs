//! The tensors that change scores, in the host's memory.

use crate::error::{Error, Result};
use crate::problem::{Alibi, AttentionProblem, BiasLayout, MaskKind, MaskLayout, ScoreMod};
use crate::tensor::HostData;
use crate::view::HostSlice;

/// The tensors of a problem's [`ScoreMod`], each exactly where that has it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreTensors<'a> {
    /// `[heads_q]` or `[batch][heads_q]`, by [`ScoreMod::alibi`].
    pub alibi_slopes: Option<&'a [f32]>,
    /// In the places of [`ScoreMod::bias`].
    pub bias: Option<HostSlice<'a>>,
    /// In the places of [`ScoreMod::mask`].
    pub mask: Option<&'a [u8]>,
    /// `[heads_q]`.
    pub sinks: Option<&'a [f32]>,
}

/// A problem and the tensors that change its scores; of a problem without them, `&problem` alone stands for it.
#[derive(Clone, Copy, Debug)]
pub struct Scored<'a> {
    /// The problem.
    pub problem: &'a AttentionProblem,
    /// Its tensors.
    pub tensors: ScoreTensors<'a>,
    /// For [`reference`](crate::reference): whether the kernel is one that takes narrow blocks (docs/kernel-abi.md), whose K is quantized with
    /// shared scales. It is false on the CPU; of a GPU `Gpu::takes_narrow` says it.
    pub narrow: bool,
}

impl<'a> From<&'a AttentionProblem> for Scored<'a> {
    fn from(problem: &'a AttentionProblem) -> Self {
        Self::new(problem, ScoreTensors::default())
    }
}

impl<'a> Scored<'a> {
    /// A problem and its tensors, for kernels that do not take narrow blocks.
    #[must_use]
    pub const fn new(problem: &'a AttentionProblem, tensors: ScoreTensors<'a>) -> Self {
        Self { problem, tensors, narrow: false }
    }

    /// The same for a kernel that takes narrow blocks ([`narrow`](Self::narrow)), or for another.
    #[must_use]
    pub fn with_narrow(self, narrow: bool) -> Self {
        Self { narrow, ..self }
    }

    /// Whether the tensors are those of the problem, and long enough.
    ///
    /// # Errors
    /// A tensor that is not there, or that the problem does not have; one of another type or too short; a slope or sink that is no
    /// finite number.
    pub(crate) fn check(&self) -> Result<()> {
        let (problem, tensors, score) = (self.problem, &self.tensors, &self.problem.score_mod);
        let there = [
            ("alibi_slopes", tensors.alibi_slopes.is_some(), score.alibi.is_some()),
            ("bias", tensors.bias.is_some(), score.bias.is_some()),
            ("mask", tensors.mask.is_some(), score.mask.is_some()),
            ("sinks", tensors.sinks.is_some(), score.sinks),
        ];
        if let Some(&(name, given, _)) = there.iter().find(|(_, given, planned)| given != planned) {
            let (given, posed) = if given { ("given", "without") } else { ("not given", "with") };
            return Err(Error::ScoreTensor { name, given, posed });
        }
        let enough = |name, given: usize, expected: usize| {
            if given < expected { Err(Error::Length { name, given, expected }) } else { Ok(()) }
        };
        for (name, values, expected) in
            [("alibi_slopes", tensors.alibi_slopes, score.slopes(problem)), ("sinks", tensors.sinks, problem.heads_q)]
        {
            let Some(values) = values else { continue };
            enough(name, values.len(), expected)?;
            if let Some((at, &value)) = values.iter().enumerate().find(|(_, value)| !value.is_finite()) {
                return Err(Error::HeadValue { name, value, at });
            }
        }
        if let (Some(layout), Some(bias)) = (score.bias, tensors.bias) {
            if bias.dtype() != layout.dtype {
                return Err(Error::DTypeMismatch { name: "bias", given: bias.dtype(), expected: layout.dtype });
            }
            enough("bias", bias.len(), layout.span(problem)?)?;
        }
        if let (Some(layout), Some(mask)) = (score.mask, tensors.mask) {
            enough("mask", mask.len(), layout.span(problem)?)?;
        }
        Ok(())
    }

    /// Sequence `sequence` as the dense problem `one` of its lengths ([`AttentionProblem::of_one`]), with its part of the tensors: query `i` and
    /// key `j` of a sequence have the elements of row `i` and column `j` of its batch, packed or not.
    ///
    /// # Panics
    /// Where the problem has no such sequence, or tensors too short for it.
    #[must_use]
    pub fn of_sequence<'b>(&self, one: &'b AttentionProblem, sequence: usize) -> Scored<'b>
    where
        'a: 'b,
    {
        let ScoreTensors { alibi_slopes, bias, mask, sinks } = self.tensors;
        let score = &self.problem.score_mod;
        let first = |strides: Option<[usize; 3]>| strides.map_or(0, |[batch, ..]| sequence * batch);
        let tensors = ScoreTensors {
            alibi_slopes: alibi_slopes.map(|slopes| &slopes[sequence * self.slopes_of_sequence()..]),
            bias: bias.map(|bias| bias.from(first(score.bias.map(|bias| bias.strides)))),
            mask: mask.map(|mask| &mask[first(score.mask.map(|mask| mask.strides))..]),
            sinks,
        };
        Scored { problem: one, tensors, narrow: self.narrow }
    }

    /// From one sequence's slopes to the next one's.
    fn slopes_of_sequence(&self) -> usize {
        if self.problem.score_mod.alibi == Some(Alibi::PerSequence) { self.problem.heads_q } else { 0 }
    }

    /// The slope of a query head of a sequence, if there are slopes.
    pub(crate) fn slope(&self, batch: usize, head_q: usize) -> Option<f32> {
        Some(self.tensors.alibi_slopes?[batch * self.slopes_of_sequence() + head_q])
    }

    /// What is added to a score, if anything is.
    pub(crate) fn bias(&self, at: [usize; 3], key: usize) -> Option<f32> {
        let layout = self.problem.score_mod.bias?;
        Some(self.tensors.bias?.get(offset(layout.strides, at) + key))
    }

    /// Whether the mask keeps a key for a query.
    pub(crate) fn keeps(&self, at: [usize; 3], key: usize) -> bool {
        let (Some(layout), Some(mask)) = (self.problem.score_mod.mask, self.tensors.mask) else { return true };
        let row = &mask[offset(layout.strides, at)..];
        match layout.kind {
            MaskKind::Bytes => row[key] != 0,
            MaskKind::Bits => row[key / 8] >> (key % 8) & 1 != 0,
        }
    }

    /// The sink of a query head, if there are sinks.
    pub(crate) fn sink(&self, head_q: usize) -> Option<f32> {
        Some(self.tensors.sinks?[head_q])
    }
}

/// Where the row of a batch, head and query begins.
fn offset(strides: [usize; 3], at: [usize; 3]) -> usize {
    strides.iter().zip(at).map(|(stride, at)| stride * at).sum()
}

/// What changes scores in [`attention`](crate::attention()) on host tensors.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostScores<'a> {
    /// Scores become `cap * tanh(score / cap)`.
    pub softcap: Option<f32>,
    /// ALiBi slopes, `[heads_q]` or `[batch][heads_q]`.
    pub alibi_slopes: Option<&'a [f32]>,
    /// What is added to the scores.
    pub bias: Option<HostBias<'a>>,
    /// Which keys are kept.
    pub mask: Option<HostMask<'a>>,
    /// A logit a query head that every row's sum has besides its keys, `[heads_q]`.
    pub sinks: Option<&'a [f32]>,
}

/// A dense bias `[batch][head][query][key]`, in which the first three dimensions may be 1.
#[derive(Clone, Copy, Debug)]
pub struct HostBias<'a> {
    /// Its dimensions.
    pub dims: [usize; 4],
    /// Its elements; those below -45000 hide their key.
    pub data: &'a HostData,
}

/// A dense mask `[batch][head][query][key]`, in which the first three dimensions may be 1.
#[derive(Clone, Copy, Debug)]
pub struct HostMask<'a> {
    /// Its dimensions.
    pub dims: [usize; 4],
    /// What an element is.
    pub kind: MaskKind,
    /// Its elements, set where the key is kept; rows of bits are whole bytes.
    pub data: &'a [u8],
}

impl<'a> HostScores<'a> {
    /// Where the tensors lie.
    ///
    /// # Errors
    /// Shapes that do not broadcast to the problem's; slopes or sinks of another number.
    pub(crate) fn score_mod(&self, problem: &AttentionProblem) -> Result<ScoreMod> {
        let exactly = |name, given: usize, expected: usize| {
            let given = format!("[{given}]");
            if given == format!("[{expected}]") {
                return Ok(());
            }
            Err(Error::ShapeMismatch { name, given, expected: format!("[{expected}], one a query head,") })
        };
        let alibi = match self.alibi_slopes.map(<[f32]>::len) {
            None => None,
            Some(slopes) if slopes == problem.heads_q => Some(Alibi::PerHead),
            Some(slopes) if slopes == problem.batch * problem.heads_q => Some(Alibi::PerSequence),
            Some(slopes) => exactly("alibi_slopes", slopes, problem.heads_q).map(|()| None)?,
        };
        if let Some(sinks) = self.sinks {
            exactly("sinks", sinks.len(), problem.heads_q)?;
        }
        let bias = self.bias.map(|bias| BiasLayout::broadcast(bias.data.dtype(), bias.dims, problem)).transpose()?;
        let mask = self.mask.map(|mask| MaskLayout::broadcast(mask.kind, mask.dims, problem)).transpose()?;
        Ok(ScoreMod { softcap: self.softcap, alibi, bias, mask, sinks: self.sinks.is_some() })
    }

    /// The tensors alone.
    pub(crate) fn tensors(&self) -> ScoreTensors<'a> {
        ScoreTensors {
            alibi_slopes: self.alibi_slopes,
            bias: self.bias.map(|bias| bias.data.as_slice()),
            mask: self.mask.map(|mask| mask.data),
            sinks: self.sinks,
        }
    }
}
